//! Times of steps, over a grid and at random between its points.

use std::time::Duration;

use pd_core::rng::{Rng, Stream};
use pd_sim::calibrate::{DecodePoint, PrefillPoint, Step};

use crate::serve::trial::{Shape, Times, Trial};

/// How far to go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Most sequences that decode at a time.
    pub(crate) sequences: u32,
    /// Most tokens of a chunk.
    pub(crate) chunk: u32,
    /// No step of the grid may take longer.
    pub(crate) step: Duration,
}

impl Limits {
    /// Whether the next step of a series, in which times grow about as the size, would take too long.
    fn is_passed(self, before: Option<(u32, u64)>, next: u32) -> bool {
        before.is_some_and(|(size, ns)| {
            let growth = f64::from(next) / f64::from(size.max(1));
            ns as f64 * growth > self.step.as_nanos() as f64
        })
    }
}

/// What a grid of steps took.
#[derive(Debug, Default)]
pub(crate) struct Grid {
    pub(crate) decodes: Vec<DecodePoint>,
    pub(crate) prefills: Vec<PrefillPoint>,
    /// `[rows, ns]`: what logits add.
    pub(crate) heads: Vec<[u64; 2]>,
    /// `[sequences, ns]` of the thread that starts steps.
    pub(crate) hosts: Vec<[u64; 2]>,
}

impl Grid {
    /// The largest chunk that was measured behind nothing.
    fn chunk_max(&self) -> u32 {
        let alone = self.prefills.iter().filter(|point| point.cached == 0);
        alone.map(|point| point.new).max().unwrap_or(1)
    }
}

/// Measures the grid. What would take longer than the limits allow is left out: tables go on as lines.
///
/// # Errors
/// If the engine cannot compute.
pub(crate) fn grid(trial: &mut Trial<'_>, limits: Limits, tell: &dyn Fn(String)) -> Result<Grid, String> {
    let mut grid = Grid::default();
    let context_max = trial.geometry().context;
    let tokens = trial.tokens();
    let mut first: Option<(u32, u64)> = None;
    for sequences in BATCHES.into_iter().filter(|batch| *batch <= limits.sequences) {
        if limits.is_passed(first, sequences) {
            break;
        }
        let mut before: Option<(u32, u64)> = None;
        for context in CONTEXTS.into_iter().filter(|context| context * 3 / 2 + STEPS_AHEAD <= context_max) {
            if u64::from(sequences) * u64::from(context + STEPS_AHEAD) > tokens || limits.is_passed(before, context) {
                break;
            }
            tell(format!("decode, {sequences} sequences of {context} tokens"));
            let times = median(trial, &decoding(spread(sequences, context)), before.map(|(_, ns)| ns))?;
            if before.is_none() {
                first = Some((sequences, times.step_ns));
                grid.hosts.push([u64::from(sequences), times.host_ns]);
            }
            before = Some((context, times.step_ns));
            grid.decodes.push(DecodePoint { sequences, context, ns: times.step_ns });
        }
    }
    for cached in CACHED {
        let mut before: Option<(u32, u64)> = None;
        for new in NEW.into_iter().filter(|new| *new <= limits.chunk) {
            let all = cached + new;
            if all > context_max || u64::from(all) * CHUNKS_AT_A_TIME > tokens || limits.is_passed(before, new) {
                break;
            }
            tell(format!("chunk of {new} tokens behind {cached}"));
            let shape = Shape { chunks: vec![[cached, new]], ..Shape::default() };
            let ns = median(trial, &shape, before.map(|(_, ns)| ns))?.step_ns;
            before = Some((new, ns));
            grid.prefills.push(PrefillPoint { cached, new, ns });
        }
    }
    // The sequences of the step before are there as well.
    let rows_max = (limits.sequences / 2).min(grid.chunk_max() / HEAD_TOKENS);
    for rows in BATCHES.into_iter().filter(|rows| *rows <= rows_max) {
        tell(format!("logits of {rows} rows"));
        // Not decoding sequences: what of those is recorded has its logits with it.
        let chunks = vec![[0, HEAD_TOKENS]; rows as usize];
        // A small difference of large times: of several of each, in turn, the least.
        let mut least = [u64::MAX; 2];
        for _ in 0..HEAD_ROUNDS {
            for (least, ends) in least.iter_mut().zip([0, rows as usize]) {
                let shape = Shape { chunks: chunks.clone(), ends, ..Shape::default() };
                let times = trial.steps(&shape, WARM, FEW)?;
                *least = times.iter().map(|times| times.step_ns).min().unwrap_or(u64::MAX).min(*least);
            }
        }
        grid.heads.push([u64::from(rows), least[1].saturating_sub(least[0])]);
    }
    Ok(grid)
}

/// Measures steps that are not of the grid: any number of sequences, contexts that differ, several chunks.
///
/// # Errors
/// If the engine cannot compute.
pub(crate) fn held_out(
    trial: &mut Trial<'_>,
    limits: Limits,
    grid: &Grid,
    tell: &dyn Fn(String),
) -> Result<Vec<Step>, String> {
    let mut rng = Rng::new(0, Stream::Probe, 2);
    let mut between = |low: u32, high: u32| low + rng.below(u64::from(high.saturating_sub(low).max(1))) as u32;
    let sequences_max = grid.decodes.iter().map(|point| point.sequences).max().unwrap_or(1).min(limits.sequences);
    let mut steps = Vec::with_capacity(HELD_OUT);
    for number in 0..HELD_OUT {
        tell(format!("held out, {number} of {HELD_OUT}"));
        let shape = if number % 2 == 0 {
            let sequences = between(1, sequences_max + 1);
            let fits = |point: &&DecodePoint| point.sequences >= sequences;
            let context_max = grid.decodes.iter().filter(fits).map(|point| point.context).max().unwrap_or(1);
            decoding((0..sequences).map(|_| between(1, context_max)).collect())
        } else {
            let count = between(1, 5);
            let all = between(grid.chunk_max() / 8, grid.chunk_max()).max(count);
            let fits = |point: &&PrefillPoint| point.new >= all / count;
            let cached_max = grid.prefills.iter().filter(fits).map(|point| point.cached).max().unwrap_or(0);
            let cached_max = cached_max.min((trial.tokens() / CHUNKS_AT_A_TIME / u64::from(count)) as u32);
            let chunks: Vec<[u32; 2]> = (0..count).map(|_| [between(0, cached_max), all / count]).collect();
            Shape { ends: chunks.len(), chunks, ..Shape::default() }
        };
        let ns = median(trial, &shape, None)?.step_ns;
        // The median of steps that grow: the sequences of the middle one.
        let contexts = shape.contexts.iter().map(|context| context + WARM + FEW / 2).collect();
        steps.push(Step { contexts, chunks: shape.chunks, ns });
    }
    Ok(steps)
}

/// Contexts of so many sequences around a mean, from half of it to half more, in no order: as unequal as in serving, where
/// the longest hold up the others.
fn spread(sequences: u32, mean: u32) -> Vec<u32> {
    let place = |index: u32| (u64::from(index) * SPREAD_STRIDE % u64::from(sequences)) as u32;
    (0..sequences)
        .map(|index| mean / 2 + mean * (2 * place(index) + 1) / (2 * sequences))
        .map(|context| context.max(1))
        .collect()
}

fn decoding(contexts: Vec<u32>) -> Shape {
    Shape { contexts, ..Shape::default() }
}

/// As many steps as are worth their time, if one is known to be short.
fn median(trial: &mut Trial<'_>, shape: &Shape, about_ns: Option<u64>) -> Result<Times, String> {
    let is_short = about_ns.is_some_and(|ns| ns < SHORT.as_nanos() as u64);
    trial.median(shape, WARM, if is_short { MANY } else { FEW })
}

const BATCHES: [u32; 10] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512];
const CONTEXTS: [u32; 6] = [64, 512, 2_048, 8_192, 32_768, 131_072];
const CACHED: [u32; 5] = [0, 1_024, 4_096, 16_384, 65_536];
const NEW: [u32; 9] = [16, 64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192];
/// Tokens of a chunk whose logits are measured: few, so that those count.
const HEAD_TOKENS: u32 = 2;
/// A prime: strides through all places of any number that is not its multiple.
const SPREAD_STRIDE: u64 = 7_919;
const HEAD_ROUNDS: u32 = 3;
const HELD_OUT: usize = 32;
const SHORT: Duration = Duration::from_millis(50);
/// Steps before those that count: the first tells all tables and has no step before it, the second waits for the first.
const WARM: u32 = 2;
const FEW: u32 = 3;
const MANY: u32 = 9;
/// Tokens that a sequence of a trial gains.
const STEPS_AHEAD: u32 = WARM + MANY;
/// Chunks whose pages there have to be at a time, so that they do not overwrite each other's.
const CHUNKS_AT_A_TIME: u64 = 2;
