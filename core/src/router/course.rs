//! When a prompt has been computed, chunk by chunk, and when its KV is at another worker.
//!
//! ```text
//!   compute   | chunk 0   | chunk 1     | chunk 2       |
//!   link        |0 0 0 0 0 0|1 1 1 1 1 1 1| 2 2 2 2 2 |  |2|
//!               first layer of a chunk is there            last layer of the last chunk
//! ```
//! Layer by layer, a push starts behind the first layer of its chunk and keeps the last one back until it is there. Whole
//! chunks take longer the later they come (they attend to more), their bytes do not: either the link never rests from
//! some push on, the first or (if the other worker holds most of that chunk) the second, or the last push is what it
//! waits for. So no others are looked at.

use super::load::Load;
use super::place::Estimate;
use crate::cost;

/// What a prompt does on the worker that computes it.
#[derive(Debug)]
pub(super) struct Course {
    /// Tokens before each chunk, and behind the last one.
    tokens: [u64; CHUNKS_MAX + 1],
    /// When each chunk begins, and when the last one ends.
    at_ns: [u64; CHUNKS_MAX + 1],
    count: usize,
}

impl Course {
    /// On a worker that can begin at `start_ns` and holds `cached` tokens.
    pub(super) fn new(estimate: &Estimate<'_>, start_ns: u64, cached: u32) -> Self {
        let mut course = Self { tokens: [0; CHUNKS_MAX + 1], at_ns: [start_ns; CHUNKS_MAX + 1], count: 0 };
        for (cached, new) in estimate.chunks(cached, 0) {
            let next = course.count + 1;
            course.tokens[course.count] = cached;
            course.tokens[next] = cached + new;
            course.at_ns[next] = course.at_ns[course.count].saturating_add(estimate.chunk_ns(cached, new));
            course.count = next;
        }
        course
    }

    /// When all of it is computed.
    pub(super) const fn end_ns(&self) -> u64 {
        self.at_ns[self.count]
    }

    /// When all of it is at a worker that held so much of it.
    pub(super) fn arrival_ns(&self, estimate: &Estimate<'_>, held: u32) -> u64 {
        let config = estimate.config();
        if !config.layerwise {
            return self.end_ns().saturating_add(estimate.transfer_ns(held));
        }
        let (held, length) = (u64::from(held), self.tokens[self.count]);
        if held >= length {
            return self.end_ns();
        }
        let layers = estimate.layers();
        let begun_ns = |chunk: usize| self.at_ns[chunk] + (self.at_ns[chunk + 1] - self.at_ns[chunk]) / layers;
        let bytes = |tokens: u64| tokens.saturating_mul(config.token_bytes);
        let pieces = |tokens: u64| {
            tokens.div_ceil(u64::from(config.page_size)).saturating_mul(u64::from(config.page_descriptors))
        };
        let link = &config.link;
        let moving_ns = |bytes: u64, pieces: u64| link.time_ns(bytes, pieces) - link.setup_ns(pieces);

        // The first push takes with it what the prefill worker held and the other one does not.
        let first = (0..self.count).find(|&chunk| self.tokens[chunk + 1] > held).unwrap_or(0);
        let last = self.count - 1;
        let from = |chunk: usize| if chunk == first { held } else { self.tokens[chunk] };
        let in_last = length - from(last);
        let kept = bytes(in_last) / layers;
        let streamed_ns = |chunk: usize| {
            let left = length - from(chunk);
            begun_ns(chunk)
                .saturating_add(link.setup_ns(pieces(self.tokens[chunk + 1] - from(chunk))))
                .saturating_add(moving_ns(bytes(left) - kept, pieces(left)))
        };
        let streamed = [first, last.min(first + 1), last].map(streamed_ns);
        let behind_ns = link.setup_ns(pieces(in_last)).saturating_add(link.wire_ns(kept));
        streamed.into_iter().fold(self.end_ns(), u64::max).saturating_add(behind_ns)
    }
}

impl Estimate<'_> {
    /// The chunks of what is not cached, as (tokens before, tokens): as workers cut them, `riding` decode rows counted
    /// against each, but not more than [`CHUNKS_MAX`].
    pub(super) fn chunks(&self, cached: u32, riding: u32) -> impl Iterator<Item = (u64, u64)> {
        let config = self.config();
        let fresh = self.fresh(cached);
        let chunk = config.chunk_tokens.saturating_sub(riding).max(config.page_size);
        let chunk = chunk.max(fresh.div_ceil(CHUNKS_MAX as u32));
        let (from, to) = (self.length() - fresh, self.length());
        (from..to).step_by(chunk as usize).map(move |at| (u64::from(at), u64::from(chunk.min(to - at))))
    }

    /// A chunk in a step of its own.
    pub(super) fn chunk_ns(&self, cached: u64, new: u64) -> u64 {
        let mut load = cost::Load::new();
        load.prefill(self.cost(), cached, new);
        self.step_ns(&load)
    }

    /// A chunk in a step in which all answers of a worker ride along.
    pub(super) fn mixed_ns(&self, cached: u64, new: u64, answers: &Load) -> u64 {
        let mut load = cost::Load::decodes(u64::from(answers.decodes), answers.decode_tokens);
        load.prefill(self.cost(), cached, new);
        self.step_ns(&load)
    }

    /// The present step of the answers of a worker.
    pub(super) fn present_ns(&self, answers: &Load) -> u64 {
        self.step_ns(&cost::Load::decodes(u64::from(answers.decodes), answers.decode_tokens))
    }

    /// A step of the answers of a worker in the middle of the time over which they feel an append; of this one, where
    /// there is no other.
    pub(super) fn answers_ns(&self, answers: &Load) -> u64 {
        let (count, tokens) = match answers.decodes {
            0 => (1, u64::from(self.length())),
            count => (u64::from(count), answers.decode_tokens),
        };
        let grown = count * u64::from(self.config().append_window_tokens / 2);
        self.step_ns(&cost::Load::decodes(count, tokens.saturating_add(grown))).max(1)
    }

    /// What the host does for a step with one sequence, where no step before hides it.
    pub(super) fn first_host_ns(&self) -> u64 {
        if !self.config().overlap {
            return 0;
        }
        self.cost().forward(&cost::Load::decodes(1, 1)).cpu_ns
    }

    fn step_ns(&self, load: &cost::Load) -> u64 {
        let forward = self.cost().forward(load);
        if self.config().overlap { forward.overlapped_ns(0) } else { forward.synchronous_ns() }
    }
}

/// What prompts take behind so many cached tokens: most workers hold equally much.
#[derive(Debug, Default)]
pub(super) struct Known {
    entries: [(u32, u64); KNOWN_MAX],
    count: usize,
}

impl Known {
    /// All chunks, each in a step of its own.
    pub(super) fn chunks_ns(&mut self, estimate: &Estimate<'_>, cached: u32) -> u64 {
        if let Some(&(_, ns)) = self.entries[..self.count].iter().find(|(known, _)| *known == cached) {
            return ns;
        }
        let chunks = estimate.chunks(cached, 0).map(|(cached, new)| estimate.chunk_ns(cached, new));
        let ns = chunks.fold(0, u64::saturating_add);
        if let Some(entry) = self.entries.get_mut(self.count) {
            *entry = (cached, ns);
            self.count += 1;
        }
        ns
    }
}

/// Most chunks that an estimate tells apart: 512 Ki tokens of SGLang's 8,192.
const CHUNKS_MAX: usize = 64;
/// Distinct cached lengths of one prompt that are worth remembering.
const KNOWN_MAX: usize = 16;
