//! What all generating routes have in common: how the client wants its tokens chosen, stopped and named.
//!
//! OpenAI's routes and `/generate` spell a few names differently ([`Dialect`]) and mean the same.

use pd_core::id::Token;
use pd_core::limits::STOP_TOKENS_MAX;
use serde_json::Value;

use super::Edge;
use super::backend::{Info, JobLeg, Sampling};
use super::error::ApiError;
use super::fields::Fields;
use crate::text::Ending;

/// Most stop strings of a request.
const STOPS_MAX: usize = 64;
/// Most bytes of a stop string: as much text may be held back.
const STOP_BYTES_MAX: usize = 4096;
/// Most biased tokens.
const BIAS_MAX: usize = 1024;
/// Most answers to one prompt.
const CHOICES_MAX: u32 = 128;
/// Most sequences that one request may start.
pub(super) const SEQUENCES_MAX: usize = 4096;
/// Most bytes of a request's name.
const RID_BYTES_MAX: usize = 512;

/// Whose names a body uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Dialect {
    /// `max_tokens`, `min_tokens`.
    OpenAi,
    /// `max_new_tokens`, `min_new_tokens`, in an object of its own.
    Native,
}

/// The sequences that a request asks for.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    /// The client's name for it, or ours.
    pub(super) rids: Rids,
    /// The prompts.
    pub(super) prompts: Vec<Vec<Token>>,
    /// Answers to each prompt.
    pub(super) choices: u32,
    /// How tokens are chosen.
    pub(super) sampling: Sampling,
    /// Most tokens to generate; `None` for as many as there is room for.
    pub(super) limit: Option<u32>,
    /// What ends an answer.
    pub(super) stop: Stop,
    /// Special tokens say nothing.
    pub(super) is_special_skipped: bool,
    /// Larger is more urgent.
    pub(super) priority: i32,
    /// The tenant's or client's salt of the cache.
    pub(super) salt: String,
    /// For each sequence.
    pub(super) legs: Vec<JobLeg>,
    /// Which route this is, for the status page.
    pub(super) route: &'static str,
}

/// Names of the sequences of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Rids {
    /// One for the request, or one for each prompt.
    pub(super) names: Vec<String>,
    /// The client chose them, so it may not choose one that is in use.
    pub(super) is_given: bool,
}

/// What ends an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Stop {
    pub(super) texts: Vec<String>,
    pub(super) tokens: Vec<Token>,
    pub(super) ending: Ending,
}

/// Fields that would change the answer, with what to do instead. Refused by name wherever they ask for something.
const REFUSED: &[(&str, &str)] = &[
    ("regex", "this server has no grammars; remove it and check the answer"),
    ("ebnf", "this server has no grammars; remove it and check the answer"),
    ("json_schema", "this server has no grammars; remove it and check the answer"),
    ("structural_tag", "this server has no grammars; remove it and check the answer"),
    ("structured_outputs", "this server has no grammars; remove it and check the answer"),
    ("guided_json", "this server has no grammars; remove it and check the answer"),
    ("guided_regex", "this server has no grammars; remove it and check the answer"),
    ("guided_choice", "this server has no grammars; remove it and check the answer"),
    ("guided_grammar", "this server has no grammars; remove it and check the answer"),
    ("stop_regex", "use stop (texts) or stop_token_ids"),
    ("lora_path", "no LoRA adapters are loaded; remove it"),
    ("return_hidden_states", "hidden states are not kept; remove it"),
    ("input_embeds", "send text or input_ids"),
    ("image_data", "the model reads text only"),
    ("audio_data", "the model reads text only"),
    ("video_data", "the model reads text only"),
    ("token_ids_logprob", "use top_logprobs_num (or top_logprobs) and pick the tokens from the answer"),
    ("suffix", "the model continues text and cannot fill gaps; remove it"),
    ("use_beam_search", "answers are sampled; use n and temperature"),
    ("logits_processors", "use logit_bias"),
    ("custom_logit_processor", "use logit_bias"),
];

/// Refuses what cannot be honoured.
pub(super) fn refuse(fields: &Fields<'_>) -> Result<(), ApiError> {
    fields.refuse(REFUSED)?;
    if let Some(format) = fields.get("response_format") {
        let kind = format.get("type").and_then(Value::as_str);
        if kind != Some("text") {
            let message = format!(
                "response_format {} is not supported: this server has no grammars; use {{\"type\": \"text\"}} and check the answer",
                kind.unwrap_or("without a type"),
            );
            return Err(ApiError::unsupported("response_format", message));
        }
    }
    Ok(())
}

/// How tokens are chosen.
pub(super) fn sampling(fields: &Fields<'_>, dialect: Dialect, vocabulary: u32) -> Result<Sampling, ApiError> {
    let plain = Sampling::default();
    let top_k = match fields.i32("top_k")? {
        None | Some(-1 | 0) => None,
        Some(count) => Some(u32::try_from(count).map_err(|_| fields.wrong("top_k", "-1 (all) or at least 1"))?),
    };
    let penalty = |name| fields.number(name, |value| (-2.0..=2.0).contains(&value), "a number from -2 to 2");
    let min_tokens = match dialect {
        Dialect::OpenAi => fields.u32("min_tokens")?,
        Dialect::Native => fields.u32("min_new_tokens")?,
    };
    Ok(Sampling {
        temperature: fields
            .number("temperature", |value| (0.0..=2.0).contains(&value), "a number from 0 to 2")?
            .unwrap_or(plain.temperature),
        top_p: fields
            .number("top_p", |value| value > 0.0 && value <= 1.0, "a number above 0, at most 1")?
            .unwrap_or(plain.top_p),
        top_k,
        min_p: fields
            .number("min_p", |value| (0.0..=1.0).contains(&value), "a number from 0 to 1")?
            .unwrap_or(plain.min_p),
        frequency_penalty: penalty("frequency_penalty")?.unwrap_or(plain.frequency_penalty),
        presence_penalty: penalty("presence_penalty")?.unwrap_or(plain.presence_penalty),
        repetition_penalty: fields
            .number("repetition_penalty", |value| value > 0.0 && value <= 2.0, "a number above 0, at most 2")?
            .unwrap_or(plain.repetition_penalty),
        seed: match fields.seed("seed")? {
            Some(seed) => Some(seed),
            None => fields.seed("sampling_seed")?,
        },
        bias: bias(fields, vocabulary)?,
        min_tokens: min_tokens.unwrap_or(0),
        logprobs: None,
        prompt_logprobs_from: None,
    })
}

fn bias(fields: &Fields<'_>, vocabulary: u32) -> Result<Vec<(Token, f32)>, ApiError> {
    let Some(value) = fields.get("logit_bias") else { return Ok(Vec::new()) };
    let must = format!(
        "an object of at most {BIAS_MAX} tokens (0 to {}), each with a number from -100 to 100",
        vocabulary - 1
    );
    let wrong = || fields.wrong("logit_bias", &must);
    let map = value.as_object().filter(|map| map.len() <= BIAS_MAX).ok_or_else(wrong)?;
    let one = |(name, value): (&String, &Value)| {
        let token = name.parse::<u32>().ok().filter(|&id| id < vocabulary)?;
        let amount = value.as_f64().filter(|amount| (-100.0..=100.0).contains(amount))?;
        #[expect(clippy::cast_possible_truncation, reason = "engines sample in f32")]
        Some((Token(token), amount as f32))
    };
    let mut bias: Vec<_> = map.iter().map(|entry| one(entry).ok_or_else(wrong)).collect::<Result<_, _>>()?;
    bias.sort_by_key(|&(token, _)| token);
    Ok(bias)
}

/// What ends an answer: the client's texts and tokens, and the model's end of sequence unless it is to be ignored.
pub(super) fn stop(fields: &Fields<'_>, eos: &[Token], vocabulary: u32) -> Result<Stop, ApiError> {
    let texts = fields.texts("stop", STOPS_MAX)?;
    if texts.iter().any(|text| text.len() > STOP_BYTES_MAX) {
        return Err(fields.wrong("stop", &format!("texts of at most {STOP_BYTES_MAX} bytes")));
    }
    let mut tokens = fields.tokens("stop_token_ids", vocabulary)?;
    if !fields.bool("ignore_eos")? {
        tokens.extend(eos);
    }
    tokens.sort_unstable();
    tokens.dedup();
    if tokens.len() > STOP_TOKENS_MAX {
        return Err(
            fields.wrong("stop_token_ids", &format!("at most {STOP_TOKENS_MAX} tokens, the model's own included"))
        );
    }
    let is_kept = fields.bool("include_stop_str_in_output")? || fields.bool("no_stop_trim")?;
    Ok(Stop { texts, tokens, ending: if is_kept { Ending::Included } else { Ending::Excluded } })
}

/// How many answers to each prompt.
pub(super) fn choices(fields: &Fields<'_>) -> Result<u32, ApiError> {
    let count = fields.u32("n")?.unwrap_or(1);
    if !(1..=CHOICES_MAX).contains(&count) {
        return Err(fields.wrong("n", &format!("from 1 to {CHOICES_MAX}")));
    }
    if fields.u32("best_of")?.is_some_and(|best| best != count) {
        return Err(ApiError::unsupported(
            "best_of",
            "best_of must be equal to n: all answers are returned, none is ranked",
        ));
    }
    Ok(count)
}

/// The salt of the cache: requests of different salts share no KV.
pub(super) fn salt(fields: &Fields<'_>) -> Result<String, ApiError> {
    let parts = [fields.text("cache_salt")?, fields.text("extra_key")?];
    Ok(match parts {
        [None, None] => String::new(),
        [Some(one), None] | [None, Some(one)] => one.to_owned(),
        [Some(salt), Some(extra)] => format!("{}:{salt}{extra}", salt.len()),
    })
}

/// A client's name for a request, fit for headers and logs.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= RID_BYTES_MAX && name.bytes().all(|byte| (0x21..0x7f).contains(&byte))
}

/// The client's name for a request out of the body.
pub(super) fn rid(fields: &Fields<'_>, name: &str) -> Result<Option<String>, ApiError> {
    let given = fields.text(name)?;
    if given.is_some_and(|rid| !is_name(rid)) {
        return Err(fields.wrong(name, &format!("1 to {RID_BYTES_MAX} printable ASCII characters without spaces")));
    }
    Ok(given.map(str::to_owned))
}

impl Ask {
    /// Checks prompts against the model, and gives the limit of each sequence.
    pub(super) fn limits(&self, info: &Info) -> Result<Vec<u32>, ApiError> {
        let sequences = self.prompts.len().saturating_mul(self.choices as usize);
        if sequences > SEQUENCES_MAX {
            let message = format!(
                "{} prompts with {} answers each are more than {SEQUENCES_MAX} sequences; split the request",
                self.prompts.len(),
                self.choices
            );
            return Err(ApiError::field("n", message));
        }
        let limit = |(at, prompt): (usize, &Vec<Token>)| {
            let name = if self.prompts.len() == 1 { "the prompt".to_owned() } else { format!("prompt {at}") };
            if prompt.is_empty() {
                return Err(ApiError::field("prompt", format!("{name} has no tokens; send at least one")));
            }
            let room = u32::try_from(prompt.len()).ok().and_then(|length| info.context_length.checked_sub(length));
            match room {
                Some(room) if room > 0 => Ok(self.limit.map_or(room, |limit| limit.clamp(1, room))),
                Some(_) | None => {
                    let message = format!(
                        "{name} has {} tokens, which leaves no room for an answer: this model's context length is {} tokens; shorten it",
                        prompt.len(),
                        info.context_length,
                    );
                    Err(ApiError { code: "context_length_exceeded", ..ApiError::field("prompt", message) })
                }
            }
        };
        self.prompts.iter().enumerate().map(limit).collect()
    }
}

/// What the log probabilities of a request may ask for.
pub(super) fn logprobs(edge: &Edge, name: &str, count: u32) -> Result<u32, ApiError> {
    let most = edge.info().logprobs_max;
    if count > most {
        return Err(ApiError::field(
            name,
            format!("{name} is {count}; this engine reports at most {most} alternatives"),
        ));
    }
    Ok(count)
}

/// Asks for log probabilities of the prompt, if the engine has them.
pub(super) fn score_prompt(edge: &Edge, sampling: &mut Sampling, from: u32, name: &str) -> Result<(), ApiError> {
    if !edge.info().has_prompt_logprobs {
        return Err(ApiError::unsupported(
            name,
            format!("{name}: this engine has no log probabilities of prompts; ask for those of the answer only"),
        ));
    }
    sampling.prompt_logprobs_from = Some(from);
    Ok(())
}
