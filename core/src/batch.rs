//! What one forward computes, and what it sampled: a buffer that goes to the device and comes back.
//!
//! The scheduler lends a [`Batch`] with `Command::Forward` and gets it back with `Outcome::Sampled`, so that a step
//! allocates nothing once it is warm. Only what is new travels in the codec's form: the runs on the way out, the tokens
//! on the way back.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::codec::{Codec, DecodeError, Sink, Source};
use crate::id::{GpuPage, RequestId, Token};

/// The runs of one forward, in the order of their sequences.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Batch {
    runs: Vec<Run>,
    pages: Vec<GpuPage>,
    tokens: Vec<Token>,
}

/// One sequence's share of a forward pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// Whose sequence.
    pub request: RequestId,
    /// Tokens whose KV is there before the pass (L).
    pub start: u32,
    /// Tokens to compute (m); 1 when decoding.
    pub count: u32,
    /// True if the pass yields the next token of this sequence.
    pub sample: bool,
    /// Index in the sequence's page table of the first of its new pages.
    pub table_from: u32,
    /// Its new pages among those of the batch.
    pages_from: u32,
    pages_count: u32,
}

impl Run {
    /// A run that tells no pages yet; see [`Batch::push`].
    #[must_use]
    pub const fn new(request: RequestId, start: u32, count: u32, sample: bool, table_from: u32) -> Self {
        Self { request, start, count, sample, table_from, pages_from: 0, pages_count: 0 }
    }

    /// How many pages the sequence's table has gained since its last run.
    #[must_use]
    pub const fn pages_count(&self) -> u32 {
        self.pages_count
    }
}

impl Batch {
    /// Appends a run and the pages that the table of its sequence has gained since its last run.
    #[inline]
    pub fn push(&mut self, mut run: Run, pages: &[GpuPage]) {
        run.pages_from = self.pages.len() as u32;
        run.pages_count = pages.len() as u32;
        self.pages.extend_from_slice(pages);
        self.runs.push(run);
    }

    /// The runs in order.
    #[inline]
    #[must_use]
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The new pages of one of its runs.
    #[must_use]
    pub fn pages(&self, run: &Run) -> &[GpuPage] {
        &self.pages[run.pages_from as usize..][..run.pages_count as usize]
    }

    /// Runs that yield a token.
    #[must_use]
    pub fn samples(&self) -> usize {
        self.runs.iter().filter(|run| run.sample).count()
    }

    /// Fills in what was sampled: one token for each run with `sample`, in order.
    #[inline]
    pub fn sample(&mut self, mut token: impl FnMut(&Run) -> Token) {
        self.tokens.clear();
        self.tokens.extend(self.runs.iter().filter(|run| run.sample).map(&mut token));
    }

    /// The runs of the same sequences `steps` decode steps later.
    #[inline]
    pub fn advance(&mut self, steps: u32) {
        for run in &mut self.runs {
            run.start += steps;
        }
    }

    /// The runs of the same sequences at another time: where each of them starts.
    pub fn set_starts(&mut self, starts: impl Iterator<Item = u32>) {
        for (run, start) in self.runs.iter_mut().zip(starts) {
            run.start = start;
        }
    }

    /// Forgets everything but the memory.
    pub fn clear(&mut self) {
        self.runs.clear();
        self.pages.clear();
        self.tokens.clear();
    }
}

// The form of a list of runs, each with the list of its pages.
impl Codec for Batch {
    fn encode<S: Sink>(&self, sink: &mut S) {
        sink.u32(self.runs.len() as u32);
        for run in &self.runs {
            run.request.encode(sink);
            sink.pair(run.start, run.count);
            run.sample.encode(sink);
            sink.pair(run.table_from, run.pages_count);
            self.pages(run).iter().for_each(|page| page.encode(sink));
        }
    }

    fn decode(source: &mut Source<'_>) -> Result<Self, DecodeError> {
        let mut batch = Self::default();
        for _ in 0..source.length(1)? {
            let run = Run::new(
                Codec::decode(source)?,
                Codec::decode(source)?,
                Codec::decode(source)?,
                Codec::decode(source)?,
                Codec::decode(source)?,
            );
            batch.push(run, &Vec::<GpuPage>::decode(source)?);
        }
        Ok(batch)
    }
}

/// A batch that comes back with its tokens. Equal to another one if the tokens are equal.
#[derive(Clone, Debug, Default)]
pub struct Sampled(pub Box<Batch>);

impl Sampled {
    /// The tokens.
    #[inline]
    #[must_use]
    pub fn tokens(&self) -> &[Token] {
        &self.0.tokens
    }
}

impl FromIterator<Token> for Sampled {
    fn from_iter<I: IntoIterator<Item = Token>>(tokens: I) -> Self {
        Self(Box::new(Batch { tokens: tokens.into_iter().collect(), ..Batch::default() }))
    }
}

impl PartialEq for Sampled {
    fn eq(&self, other: &Self) -> bool {
        self.tokens() == other.tokens()
    }
}

impl Eq for Sampled {}

impl Codec for Sampled {
    fn encode<S: Sink>(&self, sink: &mut S) {
        self.0.tokens.encode(sink);
    }

    fn decode(source: &mut Source<'_>) -> Result<Self, DecodeError> {
        Ok(Vec::<Token>::decode(source)?.into_iter().collect())
    }
}
