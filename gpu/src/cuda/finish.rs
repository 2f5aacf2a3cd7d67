//! Forwards in flight: where their lists and results are, and what becomes of their tokens.
//!
//! A forward has a *place* in a ring: pinned memory that its lists are copied from and its results are copied to, and an
//! event behind both. It is taken when the forward is started and free again when it has been finished.

use std::fmt;
use std::sync::{Arc, PoisonError};

use half::bf16;
use pd_core::batch::Batch;
use pd_core::id::{RequestId, Token};

use super::buffers::{Buffers, Limits};
use super::driver::{Buffer, Context, Event, Pinned, Result, Stream};
use super::kernels::Heads;
use super::lists::Lists;
use super::step::Step;
use super::{CudaError, Shared};
use crate::engine::{EngineError, Sample};

/// A forward that was started.
pub struct Flight {
    awaited: Awaited,
    batch: Box<Batch>,
}

/// What a forward in flight will tell.
pub(super) struct Awaited {
    pub(super) place: usize,
    pub(super) wanted: Vec<Wanted>,
}

/// A token that a forward chooses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) request: RequestId,
    pub(super) life: u64,
    /// Its index in the sequence.
    pub(super) position: u32,
    /// True if the forward gives logits only.
    pub(super) by_host: bool,
}

/// Sees forwards end, in the order in which they were started.
#[derive(Clone)]
pub struct Finisher {
    context: Arc<Context>,
    shared: Arc<Shared>,
}

/// Places of forwards.
pub(crate) struct Ring {
    free: Vec<Place>,
    flying: Vec<Option<Place>>,
}

/// Memory of one forward that the GPU copies from and to.
pub(super) struct Place {
    lists: Pinned,
    results: Pinned,
    logits: Option<Pinned>,
    ended: Event,
}

impl Flight {
    pub(super) fn new(awaited: Awaited, batch: Box<Batch>) -> Self {
        Self { awaited, batch }
    }
}

impl Ring {
    pub(super) fn new(context: &Context, heads: Heads, limits: &Limits) -> Result<Self> {
        let lists = Buffers::lists_bytes(heads, limits);
        let place = || {
            Ok(Place {
                lists: Pinned::new(context, lists)?,
                results: Pinned::new(context, limits.picks * 8)?,
                logits: None,
                ended: Event::new(context, false)?,
            })
        };
        let free = (0..FLIGHTS_MAX).map(|_| place()).collect::<Result<Vec<_>>>()?;
        Ok(Self { free, flying: (0..FLIGHTS_MAX).map(|_| None).collect() })
    }
}

impl Place {
    pub(super) fn pack(&mut self, base: u64, step: &Step, updates: &[[i32; 4]], rows: usize, picks: usize) -> Lists {
        Lists::pack(self.lists.bytes_mut(), base, step, updates, rows, picks)
    }

    pub(super) fn lists(&self) -> *const u8 {
        self.lists.as_ptr()
    }

    /// Copies what the kernels have chosen: tokens, and behind them whether logits were finite.
    pub(super) fn fetch(&mut self, stream: &Stream, results: &Buffer, picks_max: usize, count: usize) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        stream.download(self.results.as_ptr(), results.address(), count * 4)?;
        stream.download(self.results.bytes_mut()[count * 4..].as_mut_ptr(), results.at(picks_max * 4), count * 4)
    }

    /// Copies the logits of some rows.
    pub(super) fn fetch_logits(
        &mut self,
        context: &Context,
        stream: &Stream,
        logits: &Buffer,
        vocab: usize,
        rows: &[usize],
    ) -> Result<()> {
        let row_bytes = vocab * 2;
        let bytes = rows.len() * row_bytes;
        if bytes == 0 {
            return Ok(());
        }
        if self.logits.as_ref().is_none_or(|memory| memory.bytes().len() < bytes) {
            self.logits = Some(Pinned::new(context, bytes)?);
        }
        let Some(memory) = &mut self.logits else { return Ok(()) };
        let (chunks, _) = memory.bytes_mut().split_at_mut(bytes);
        for (to, row) in chunks.chunks_exact_mut(row_bytes).zip(rows) {
            stream.download(to.as_mut_ptr(), logits.at(row * row_bytes), row_bytes)?;
        }
        Ok(())
    }
}

impl Shared {
    /// A free place; waits for one.
    pub(super) fn take_place(&self) -> Place {
        let mut ring = self.ring();
        loop {
            if let Some(place) = ring.free.pop() {
                return place;
            }
            ring = self.landed.wait(ring).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A place that no forward took.
    pub(super) fn give_place(&self, place: Place) {
        self.ring().free.push(place);
        self.landed.notify_all();
    }

    /// All of a forward was started.
    pub(super) fn launched(&self, place: Place, stream: &Stream) -> Result<usize> {
        if let Err(error) = place.ended.record(stream) {
            self.give_place(place);
            return Err(error);
        }
        let mut ring = self.ring();
        let at = ring.flying.iter().position(Option::is_none).expect("as many as there are places");
        ring.flying[at] = Some(place);
        Ok(at)
    }
}

impl Finisher {
    pub(super) fn new(context: Arc<Context>, shared: Arc<Shared>) -> Self {
        Self { context, shared }
    }

    /// Waits for a forward, and fills its tokens into its batch.
    ///
    /// # Errors
    /// Beside the batch: [`EngineError::NotFinite`], or what the GPU says.
    pub fn finish(&self, flight: Flight) -> (Box<Batch>, std::result::Result<Vec<Sample>, EngineError>) {
        let Flight { awaited, mut batch } = flight;
        let place = self.shared.ring().flying[awaited.place].take().expect("a flight is finished once");
        let waited = self.context.bind().and_then(|()| place.ended.wait());
        let samples = self.settle(&awaited.wanted, &place, waited);
        self.shared.give_place(place);
        self.shared.settled.notify_all();
        if let Ok(samples) = &samples {
            let mut tokens = samples.iter().map(|sample| sample.token);
            batch.sample(|_| tokens.next().expect("a token for each run that samples"));
        }
        (batch, samples)
    }

    /// Tells sequences their tokens.
    fn settle(
        &self,
        wanted: &[Wanted],
        place: &Place,
        waited: std::result::Result<(), CudaError>,
    ) -> std::result::Result<Vec<Sample>, EngineError> {
        let mut requests = self.shared.requests();
        let mut failed = waited.err().map(EngineError::from);
        let mut samples = Vec::with_capacity(wanted.len());
        let count = wanted.len();
        let number = |at: usize| {
            let bytes = place.results.bytes()[at * 4..].first_chunk::<4>().expect("a result of each row");
            u32::from_le_bytes(*bytes)
        };
        let vocab = self.shared.vocab;
        let mut host_rows = place.logits.iter().flat_map(|memory| memory.bytes().chunks_exact(vocab * 2));
        for (at, wanted) in wanted.iter().enumerate() {
            let Wanted { request, life, position, by_host } = *wanted;
            let logits = if by_host { host_rows.next() } else { None };
            // A request that was forgotten meanwhile: the batch wants a token all the same.
            let mut sample = Sample { request, position, token: Token(0), logprobs: None };
            let live = requests.find(request, life);
            if failed.is_none() && number(count + at) == 0 {
                failed = Some(EngineError::NotFinite { request, position });
            }
            let Some(live) = live else {
                samples.push(sample);
                continue;
            };
            live.pending -= 1;
            if failed.is_some() {
                continue;
            }
            if let Some(logits) = logits {
                let (elements, _) = logits.as_chunks::<2>();
                let mut logits: Vec<f32> =
                    elements.iter().map(|element| bf16::from_le_bytes(*element).to_f32()).collect();
                match live.sequence.sample(position as usize, &mut logits) {
                    Some((token, logprobs)) => (sample.token, sample.logprobs) = (token, logprobs),
                    None => failed = Some(EngineError::NotFinite { request, position }),
                }
            } else {
                sample.token = Token(number(at));
                live.sequence.push(position as usize, sample.token);
            }
            samples.push(sample);
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(samples),
        }
    }
}

impl fmt::Debug for Flight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flight").field("place", &self.awaited.place).finish_non_exhaustive()
    }
}

impl fmt::Debug for Finisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Finisher").field("gpu", &self.context).finish_non_exhaustive()
    }
}

/// Forwards in flight: the scheduler's two, and one for changes to tables.
const FLIGHTS_MAX: usize = 3;
