//! Steps of an engine that nobody uses yet, of any shape and one behind the other: what computing costs here.
//!
//! Where an engine takes the next step before the last one has ended, so does a trial: a step's time is that from the end
//! of the one before to its own, as in serving.

use std::collections::VecDeque;
use std::time::Instant;

use pd_core::batch::{Batch, Run};
use pd_core::id::{GpuPage, RequestId, Token};
use pd_gpu::cuda::{Finisher, Flight};
use pd_gpu::{CpuEngine, CudaEngine, EngineError, Geometry, Sampling};
use pd_sync::Arena;

/// What each step of a trial computes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shape {
    /// Tokens of each sequence that decodes, the new one included.
    pub(crate) contexts: Vec<u32>,
    /// Cached and new tokens of each chunk.
    pub(crate) chunks: Vec<[u32; 2]>,
    /// How many of the chunks, from the first on, end their prompts and want logits.
    pub(crate) ends: usize,
}

/// What a step took.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Times {
    /// From the end of the step before it to its own.
    pub(crate) step_ns: u64,
    /// Until it was started, of the thread that starts steps.
    pub(crate) host_ns: u64,
}

/// An engine and its pages, lent for trials.
pub(crate) struct Trial<'a> {
    under: Under<'a>,
    geometry: Geometry,
    pages: u32,
    next_page: u32,
    next_request: u64,
}

enum Under<'a> {
    Cpu(&'a mut CpuEngine, &'a Arena),
    Cuda(&'a mut CudaEngine, Finisher),
}

impl<'a> Trial<'a> {
    pub(crate) fn cpu(engine: &'a mut CpuEngine, arena: &'a Arena) -> Self {
        let geometry = engine.geometry().clone();
        Self { under: Under::Cpu(engine, arena), geometry, pages: arena.pages(), next_page: 0, next_request: 0 }
    }

    /// `pages`: how many the engine has.
    pub(crate) fn cuda(engine: &'a mut CudaEngine, pages: u32) -> Self {
        let (geometry, finisher) = (engine.geometry().clone(), engine.finisher());
        Self { under: Under::Cuda(engine, finisher), geometry, pages, next_page: 0, next_request: 0 }
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Tokens that there are pages for.
    pub(crate) fn tokens(&self) -> u64 {
        u64::from(self.pages) * u64::from(self.geometry.page_size)
    }

    /// Takes `count` such steps behind `warm` others, whose times say nothing. Sequences grow by a token a step.
    ///
    /// # Errors
    /// If the engine cannot compute that.
    pub(crate) fn steps(&mut self, shape: &Shape, warm: u32, count: u32) -> Result<Vec<Times>, String> {
        let taken = self.try_steps(shape, warm + count);
        Ok(taken.map_err(|error| error.to_string())?.split_off(warm as usize))
    }

    /// The middle of the times of `count` steps, each for itself.
    ///
    /// # Errors
    /// As [`Trial::steps`].
    pub(crate) fn median(&mut self, shape: &Shape, warm: u32, count: u32) -> Result<Times, String> {
        let mut times = self.steps(shape, warm, count)?;
        let mut middle = |of: fn(&Times) -> u64| {
            times.sort_by_key(of);
            of(&times[times.len() / 2])
        };
        Ok(Times { step_ns: middle(|times| times.step_ns), host_ns: middle(|times| times.host_ns) })
    }

    fn try_steps(&mut self, shape: &Shape, count: u32) -> Result<Vec<Times>, EngineError> {
        let mut decoding = Vec::with_capacity(shape.contexts.len());
        for context in &shape.contexts {
            // The last token is the one that the first step computes.
            decoding.push((self.admit(*context)?, self.table(context + count)));
        }
        let ahead = match &self.under {
            Under::Cpu(..) => 0,
            Under::Cuda(..) => AHEAD,
        };
        let mut flying = VecDeque::new();
        let mut hosts = Vec::new();
        let mut ends = vec![Instant::now()];
        for step in 0..count {
            let mut batch = Box::new(Batch::default());
            for ((request, table), context) in decoding.iter().zip(&shape.contexts) {
                let (told, pages) = if step == 0 { (0, table.as_slice()) } else { (table.len() as u32, &[][..]) };
                batch.push(Run::new(*request, context - 1 + step, 1, true, told), pages);
            }
            let mut chunks = Vec::with_capacity(shape.chunks.len());
            for (index, [cached, new]) in shape.chunks.iter().enumerate() {
                let request = self.admit(cached + new)?;
                let table = self.table(cached + new);
                batch.push(Run::new(request, *cached, *new, index < shape.ends, 0), &table);
                chunks.push(request);
            }
            let begin = Instant::now();
            let flight = self.start(batch)?;
            // What computes on the thread that starts steps has no host work beside.
            hosts.push(if flight.is_some() { nanos(begin) } else { 0 });
            flying.push_back((flight, chunks));
            let left = if step + 1 == count { 0 } else { ahead };
            while flying.len() > left {
                let (flight, chunks) = flying.pop_front().expect("more than may be left");
                self.end(flight)?;
                ends.push(Instant::now());
                chunks.into_iter().for_each(|request| self.forget(request));
            }
        }
        decoding.into_iter().for_each(|(request, _)| self.forget(request));
        let spans = ends.windows(2).map(|pair| u64::try_from((pair[1] - pair[0]).as_nanos()).unwrap_or(u64::MAX));
        Ok(spans.zip(hosts).map(|(step_ns, host_ns)| Times { step_ns, host_ns }).collect())
    }

    /// A request of so many tokens of its own.
    fn admit(&mut self, tokens: u32) -> Result<RequestId, EngineError> {
        let request = RequestId(self.next_request);
        self.next_request += 1;
        let vocab = self.geometry.vocab;
        let first = request.0 as u32 % vocab;
        let prompt: Vec<Token> = (0..tokens).map(|at| Token((first + at) % vocab)).collect();
        match &mut self.under {
            Under::Cpu(engine, _) => engine.admit(request, &prompt, Sampling::greedy())?,
            Under::Cuda(engine, _) => engine.admit(request, &prompt, Sampling::greedy())?,
        }
        Ok(request)
    }

    /// Pages for so many tokens: the next ones, whatever they hold.
    fn table(&mut self, tokens: u32) -> Vec<GpuPage> {
        let count = tokens.min(self.geometry.context).div_ceil(self.geometry.page_size);
        (0..count)
            .map(|_| {
                let page = self.next_page;
                self.next_page = (page + 1) % self.pages;
                GpuPage(page)
            })
            .collect()
    }

    fn start(&mut self, mut batch: Box<Batch>) -> Result<Option<Flight>, EngineError> {
        match &mut self.under {
            Under::Cpu(engine, arena) => engine.forward(&mut batch, arena).map(|_| None),
            Under::Cuda(engine, _) => engine.submit(batch).map(Some).map_err(|(error, _)| error),
        }
    }

    fn end(&mut self, flight: Option<Flight>) -> Result<(), EngineError> {
        match (&self.under, flight) {
            (Under::Cuda(_, finisher), Some(flight)) => finisher.finish(flight).1.map(drop),
            (Under::Cpu(..) | Under::Cuda(..), _) => Ok(()),
        }
    }

    fn forget(&mut self, request: RequestId) {
        match &mut self.under {
            Under::Cpu(engine, _) => engine.forget(request),
            Under::Cuda(engine, _) => engine.forget(request),
        }
    }
}

fn nanos(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Steps that are started before the one before them has ended, where the engine can do that.
const AHEAD: usize = 1;
