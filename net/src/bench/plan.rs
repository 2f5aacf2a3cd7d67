//! What will be asked, and when: a pure function of the configuration, its seed, and what the caller has read.
//!
//! ```text
//! script 0   at 0.00 s   turn 0 ──answer──> turn 1 ──answer──> turn 2     (conversations have several turns)
//! script 1   at 0.13 s   turn 0
//! ```

use std::fmt;
use std::time::Duration;

use thiserror::Error;

use pd_core::rng::{Rng, Stream};

use super::config::{BenchConfig, DatasetName};

/// A prompt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Prompt {
    /// As text.
    Text(String),
    /// As token ids.
    Ids(Vec<u32>),
}

/// One question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Turn {
    /// What is asked; in a conversation, behind all that was said before.
    pub prompt: Prompt,
    /// Tokens of the prompt as planned; the server's count is taken where it gives one.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub output_tokens: u32,
}

/// Questions of one client, each asked after the answer to the one before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Script {
    /// When the first is asked, since the start of the run.
    pub at: Duration,
    /// The questions; at least one.
    pub turns: Vec<Turn>,
}

/// A row of a trace that the caller has read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TraceRow {
    /// When it arrived, since the start of the trace.
    pub at: Duration,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub output_tokens: u32,
    /// Ids of blocks of the prompt: equal ids are equal tokens. Empty if the trace does not say.
    pub blocks: Vec<u64>,
    /// Tokens per block.
    pub block_tokens: u32,
}

/// Turns token ids into text; what a caller with the model's tokenizer brings.
pub trait Detokenize: Send + Sync + fmt::Debug {
    /// The text of ids.
    fn text(&self, ids: &[u32]) -> String;
}

/// What a caller may bring along.
#[derive(Debug, Default)]
pub struct BenchInputs {
    /// The rows of the dataset `trace`.
    pub trace: Vec<TraceRow>,
    /// Makes the text of random prompts; without it, words.
    pub tokenizer: Option<Box<dyn Detokenize>>,
}

/// Why there is nothing to ask.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum PlanError {
    /// The dataset `trace` has no rows.
    #[error("the dataset trace needs rows; none were read")]
    NoRows,
    /// A row makes no sense.
    #[error("row {row} of the trace: {why}")]
    Row {
        /// Counts from 0.
        row: usize,
        /// What is wrong.
        why: &'static str,
    },
    /// The prompts file cannot be read.
    #[error("{path}: {why}")]
    File {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
}

/// Makes the plan. `prompts` is the text of the prompts file.
pub(super) fn plan(
    config: &BenchConfig,
    inputs: &BenchInputs,
    prompts: Option<&str>,
) -> Result<Vec<Script>, PlanError> {
    let mut maker = Maker { config, inputs, lengths: Rng::new(config.seed, Stream::Lengths, 0) };
    let mut scripts: Vec<Script> = match config.dataset_name {
        DatasetName::Random => (0..config.num_prompts).map(|index| maker.random(index, false)).collect(),
        DatasetName::RandomIds => (0..config.num_prompts).map(|index| maker.random(index, true)).collect(),
        DatasetName::GeneratedSharedPrefix => maker.shared_prefix(),
        DatasetName::MultiTurn => (0..config.num_prompts).map(|index| maker.conversation(index)).collect(),
        DatasetName::Trace => return maker.trace(),
        DatasetName::Prompts => {
            let path = config.dataset_path.as_ref().map_or_else(String::new, |path| path.display().to_string());
            read_prompts(prompts.unwrap_or(""), config).map_err(|why| PlanError::File { path: path.clone(), why })?
        }
    };
    for (script, at) in scripts.iter_mut().zip(arrivals(config)) {
        script.at = at;
    }
    Ok(scripts)
}

struct Maker<'a> {
    config: &'a BenchConfig,
    inputs: &'a BenchInputs,
    lengths: Rng,
}

impl Maker<'_> {
    fn length(&mut self, full: u32) -> u32 {
        let least = (f64::from(full) * self.config.random_range_ratio).floor().max(1.0) as u32;
        least + self.lengths.below(u64::from(full.saturating_sub(least)) + 1) as u32
    }

    /// `count` ids that depend on nothing but `name`.
    fn ids(&self, name: u64, count: u32) -> Vec<u32> {
        let mut rng = Rng::new(self.config.seed, Stream::Content, name);
        (0..count).map(|_| rng.below(u64::from(self.config.vocab_size)) as u32).collect()
    }

    fn prompt(&self, ids: Vec<u32>, wants_ids: bool) -> Prompt {
        if wants_ids {
            return Prompt::Ids(ids);
        }
        Prompt::Text(match &self.inputs.tokenizer {
            Some(tokenizer) => tokenizer.text(&ids),
            // Short words that most vocabularies have, so that a word is about a token.
            None => ids.iter().map(|&id| WORDS[id as usize % WORDS.len()]).collect::<Vec<_>>().join(" "),
        })
    }

    fn random(&mut self, index: usize, wants_ids: bool) -> Script {
        let prompt_tokens = self.length(self.config.random_input_len);
        let output_tokens = self.length(self.config.random_output_len);
        let prompt = self.prompt(self.ids(index as u64, prompt_tokens), wants_ids);
        one(Turn { prompt, prompt_tokens, output_tokens })
    }

    fn shared_prefix(&mut self) -> Vec<Script> {
        let config = self.config;
        let mut scripts = Vec::with_capacity(config.gsp_num_groups * config.gsp_prompts_per_group);
        for group in 0..config.gsp_num_groups as u64 {
            let system = self.ids(SYSTEM_NAMES + group, config.gsp_system_prompt_len);
            for question in 0..config.gsp_prompts_per_group as u64 {
                let mut ids = system.clone();
                ids.extend(self.ids(group << 24 | question, config.gsp_question_len));
                let prompt_tokens = ids.len() as u32;
                let prompt = self.prompt(ids, false);
                scripts.push(one(Turn { prompt, prompt_tokens, output_tokens: config.gsp_output_len }));
            }
        }
        // Groups are mixed, as sglang.bench_serving does it; num_prompts does not count here, as there.
        Rng::new(config.seed, Stream::Content, u64::MAX).shuffle(&mut scripts);
        scripts
    }

    fn conversation(&mut self, index: usize) -> Script {
        let turns = (0..self.config.turns as u64).map(|turn| {
            let prompt_tokens = self.length(self.config.random_input_len);
            let output_tokens = self.length(self.config.random_output_len);
            let prompt = self.prompt(self.ids((index as u64) << 16 | turn, prompt_tokens), false);
            Turn { prompt, prompt_tokens, output_tokens }
        });
        let turns = turns.collect();
        Script { at: Duration::ZERO, turns }
    }

    fn trace(&self) -> Result<Vec<Script>, PlanError> {
        let rows = &self.inputs.trace;
        if rows.is_empty() {
            return Err(PlanError::NoRows);
        }
        let wants_ids = self.config.backend != super::config::Backend::OpenaiChat;
        let mut scripts = Vec::new();
        for (index, row) in rows.iter().enumerate().take(self.config.num_prompts) {
            let fail = |why| PlanError::Row { row: index, why };
            if row.prompt_tokens == 0 || row.output_tokens == 0 {
                return Err(fail("prompt and answer have at least one token"));
            }
            if row.prompt_tokens > TRACE_TOKENS_MAX {
                return Err(fail("its prompt has more than 16 million tokens"));
            }
            let mut ids: Vec<u32> = Vec::new();
            for &block in &row.blocks {
                if row.block_tokens == 0 {
                    return Err(fail("its blocks have no tokens"));
                }
                let left = row.prompt_tokens.saturating_sub(ids.len() as u32);
                ids.extend(self.ids(TRACE_NAMES | block, left.min(row.block_tokens)));
            }
            let left = row.prompt_tokens.saturating_sub(ids.len() as u32);
            ids.extend(self.ids(index as u64, left));
            let prompt = self.prompt(ids, wants_ids && self.inputs.tokenizer.is_none());
            let turn = Turn { prompt, prompt_tokens: row.prompt_tokens, output_tokens: row.output_tokens };
            scripts.push(Script { at: row.at.div_f64(self.config.trace_speed), turns: vec![turn] });
        }
        scripts.sort_by_key(|script| script.at);
        Ok(scripts)
    }
}

fn one(turn: Turn) -> Script {
    Script { at: Duration::ZERO, turns: vec![turn] }
}

fn read_prompts(text: &str, config: &BenchConfig) -> Result<Vec<Script>, String> {
    #[derive(serde::Deserialize)]
    struct Line {
        prompt: String,
        #[serde(alias = "output_tokens", alias = "max_tokens")]
        output_len: Option<u32>,
    }
    let mut scripts = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).take(config.num_prompts) {
        let (prompt, output) = if line.trim_start().starts_with('{') {
            let line: Line = serde_json::from_str(line).map_err(|error| format!("line {}: {error}", index + 1))?;
            (line.prompt, line.output_len)
        } else {
            (line.to_owned(), None)
        };
        if prompt.is_empty() || output == Some(0) {
            return Err(format!("line {}: prompt and answer have at least one token", index + 1));
        }
        let prompt_tokens = prompt.split_whitespace().count().max(1) as u32;
        let output_tokens = output.unwrap_or(config.output_len);
        scripts.push(one(Turn { prompt: Prompt::Text(prompt), prompt_tokens, output_tokens }));
    }
    if scripts.is_empty() {
        return Err("it holds no prompts".into());
    }
    Ok(scripts)
}

/// When requests arrive: gaps of a gamma distribution whose mean is the rate's, without end. The first is at 0.
pub(super) fn arrivals(config: &BenchConfig) -> impl Iterator<Item = Duration> + use<> {
    let mut rng = Rng::new(config.seed, Stream::Arrivals, 0);
    let (rate, shape) = (config.request_rate, config.burstiness);
    let mut at = 0.0_f64;
    std::iter::from_fn(move || {
        let now = Duration::try_from_secs_f64(at).unwrap_or(Duration::MAX);
        if let Some(rate) = rate {
            at += gamma(&mut rng, shape) / (shape * rate);
        }
        Some(now)
    })
}

/// A gamma variate of scale 1 (Marsaglia and Tsang, ACM TOMS 2000).
fn gamma(rng: &mut Rng, shape: f64) -> f64 {
    if shape < 1.0 {
        // Boosted from shape + 1.
        return gamma(rng, shape + 1.0) * uniform(rng).powf(1.0 / shape);
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = normal(rng);
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && uniform(rng).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return d * v;
        }
    }
}

/// Box and Muller.
fn normal(rng: &mut Rng) -> f64 {
    let radius = (-2.0 * uniform(rng).ln()).sqrt();
    radius * (std::f64::consts::TAU * uniform(rng)).cos()
}

/// Between 0 and 1, never 0.
fn uniform(rng: &mut Rng) -> f64 {
    ((rng.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
}

const WORDS: [&str; 64] = [
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state",
    "family", "student", "group", "country", "problem", "hand", "part", "place", "case", "week", "company", "system",
    "program", "question", "work", "night", "point", "home", "water", "room", "mother", "area", "money", "story",
    "fact", "month", "lot", "right", "study", "book", "eye", "job", "word", "business", "issue", "side", "kind",
    "head", "house", "service", "friend", "father", "power", "hour", "game", "line", "end", "member", "law", "car",
    "city",
];
/// Names of contents that are no single requests.
const SYSTEM_NAMES: u64 = 1 << 60;
const TRACE_NAMES: u64 = 1 << 61;
const TRACE_TOKENS_MAX: u32 = 16_000_000;
