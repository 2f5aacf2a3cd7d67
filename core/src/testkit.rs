//! What tests of components need to lend: a context that is not part of a worker.

pub mod lanes;

use alloc::vec::Vec;

use crate::cost::Cost;
use crate::cx::{Cx, Ops};
use crate::id::{Epoch, PageKey, Token};
use crate::key::page_keys;
use crate::machine::Outbox;
use crate::metrics::Metrics;
use crate::op::{Output, Prompt};
use crate::rng::{Rng, Stream};
use crate::time::Instant;

/// Owns what a [`Cx`] borrows.
#[derive(Debug)]
pub struct Bench {
    /// The time of the next step.
    pub now: Instant,
    /// The cost model.
    pub cost: Cost,
    /// Counters.
    pub metrics: Metrics,
    /// Operations in flight.
    pub ops: Ops,
    rng: Rng,
    out: Outbox<Output>,
}

impl Bench {
    /// A bench at time zero.
    #[must_use]
    pub fn new(cost: Cost) -> Self {
        Self {
            now: Instant::ZERO,
            cost,
            metrics: Metrics::default(),
            ops: Ops::new(Epoch(0)),
            rng: Rng::new(0, Stream::Schedule, 0),
            out: Outbox::default(),
        }
    }

    /// A context to lend.
    pub fn cx(&mut self) -> Cx<'_> {
        Cx {
            now: self.now,
            cost: &self.cost,
            rng: &mut self.rng,
            metrics: &mut self.metrics,
            ops: &mut self.ops,
            out: &mut self.out,
        }
    }

    /// The outputs since the last call.
    pub fn outputs(&mut self) -> Vec<Output> {
        self.out.drain().collect()
    }
}

/// A prompt of these tokens in the namespace `root`, with all its tokens.
#[must_use]
pub fn prompt(root: PageKey, page_size: u32, tokens: &[u32]) -> Prompt {
    let tokens: Vec<Token> = tokens.iter().copied().map(Token).collect();
    Prompt { root, length: tokens.len() as u32, keys: page_keys(root, page_size, &tokens), tokens }
}
