//! One pass of the model: which kernels, in which order, over which buffers.

use std::sync::PoisonError;

use pd_core::batch::{Batch, Run};

use super::buffers::UPDATES_MAX;
use super::driver::{Buffer, Result};
use super::finish::{Awaited, Flight, Place, Wanted};
use super::kernels::{AnyLists, DecodeLists, PrefillLists, SampleLists};
use super::lists::Lists;
use super::model::Layer;
use super::module::Graph;
use super::pool::CudaPool;
use super::products::{Inputs, padded_rows, paddings};
use super::state::Requests;
use super::step::{Part, SampleRow, Step};
use super::{CudaEngine, CudaError};
use crate::engine::EngineError;

/// What of a step kernels have to know beside its lists.
#[derive(Clone, Copy)]
struct Pass {
    /// Rows, padded.
    rows: usize,
    /// Rows whose logits are wanted, padded.
    picks: usize,
    /// Rows of prompts.
    prompt_rows: usize,
    /// Rows that are really there.
    real_rows: usize,
    tiles: u32,
    last_tiles: u32,
    /// True if every row is picked, in order.
    all_picked: bool,
}

impl CudaEngine {
    /// Starts a batch. What it writes is there, and its tokens are known, when its flight has been finished; the next
    /// batch may be started before.
    ///
    /// # Errors
    /// All that a run can have wrong, found before anything has changed, and what the GPU says; with the batch.
    pub fn submit(&mut self, batch: Box<Batch>) -> std::result::Result<Flight, (EngineError, Box<Batch>)> {
        match self.try_submit(&batch) {
            Ok(awaited) => Ok(Flight::new(awaited, batch)),
            Err(error) => Err((error, batch)),
        }
    }

    fn try_submit(&mut self, batch: &Batch) -> std::result::Result<Awaited, EngineError> {
        let pool = self.pool.clone().ok_or_else(|| CudaError::Unsupported("no pages were allocated".into()))?;
        self.model.context.bind()?;
        self.wait_for_tokens(batch)?;
        let mut requests = self.shared.requests();
        let mut rows = 0;
        for run in batch.runs() {
            let live = requests.get(run.request)?;
            live.sequence.check(run, &self.geometry, live.pending as usize)?;
            let known = batch.pages(run).iter().all(|page| page.0 < pool.pages());
            if !known {
                return Err(EngineError::Table { request: run.request, pages: run.pages_count() });
            }
            rows += run.count as usize;
        }
        if let Some(first) = batch.runs().first()
            && (padded_rows(rows) > self.limits.rows || padded_rows(batch.samples().max(1)) > self.limits.picks)
        {
            let why = format!(
                "a forward of {rows} tokens, {} of them sampled; the engine was made for {} and {}",
                batch.samples(),
                self.limits.rows,
                self.limits.picks
            );
            return Err(EngineError::Prompt { request: first.request, why });
        }
        let mut slots = Vec::with_capacity(batch.runs().len());
        self.updates.clear();
        for run in batch.runs() {
            requests.get_mut(run.request)?.sequence.extend(run, batch.pages(run));
            requests.truncated(run.request, run.table_from as usize);
            let is_busy = |request| batch.runs().iter().any(|run| run.request == request);
            slots.push(requests.place(run.request, is_busy, &mut self.updates)?);
        }
        let mut parts = Vec::with_capacity(slots.len());
        for (run, slot) in batch.runs().iter().zip(&slots) {
            let live = requests.get(run.request)?;
            let sequence = &live.sequence;
            let end = (run.start + run.count) as usize;
            parts.push(Part {
                slot: *slot,
                start: run.start,
                known: &sequence.tokens
                    [(run.start as usize).min(sequence.tokens.len())..end.min(sequence.tokens.len())],
                count: run.count,
                prompt: sequence.prompt() as u32,
                table: &sequence.table,
                sampling: run.sample.then_some(&sequence.sampling),
                by_host: live.is_chosen_by_host(),
            });
        }
        self.step.plan(&parts, self.shape);
        drop(parts);
        let mut awaited = Vec::with_capacity(batch.samples());
        for run in batch.runs().iter().filter(|run| run.sample) {
            let live = requests.get_mut(run.request)?;
            live.pending += 1;
            let by_host = live.is_chosen_by_host();
            awaited.push(Wanted { request: run.request, life: live.life, position: run.start + run.count, by_host });
        }
        drop(requests);
        match self.start(&pool, &awaited) {
            Ok(place) => Ok(Awaited { place, wanted: awaited }),
            Err(error) => {
                let mut requests = self.shared.requests();
                for wanted in &awaited {
                    if let Some(live) = requests.find(wanted.request, wanted.life) {
                        live.pending -= 1;
                    }
                }
                Err(error.into())
            }
        }
    }

    /// Waits for tokens that the host has to know before this batch: all but the last of each run that is fed on the GPU.
    fn wait_for_tokens(&self, batch: &Batch) -> std::result::Result<(), EngineError> {
        let is_known = |requests: &Requests, run: &Run| {
            requests.get(run.request).is_ok_and(|live| {
                let known = live.sequence.tokens.len();
                let end = (run.start + run.count) as usize;
                // A run may read one token that is in flight: the newest, if no host chooses it.
                let fed = usize::from(!live.is_chosen_by_host() && run.count == 1 && end == live.tokens());
                end <= known + fed || end > live.tokens()
            })
        };
        let mut requests = self.shared.requests();
        for run in batch.runs() {
            while requests.get(run.request).is_ok() && !is_known(&requests, run) {
                requests = self.shared.settled.wait(requests).unwrap_or_else(PoisonError::into_inner);
            }
        }
        Ok(())
    }

    /// Starts the step that was planned. Its place in the ring.
    fn start(&self, pool: &CudaPool, wanted: &[Wanted]) -> Result<usize> {
        let updates = &self.updates;
        // More changes to tables than travel with a step: those before the last lot go ahead.
        let ahead = updates.len().saturating_sub(1) / UPDATES_MAX * UPDATES_MAX;
        for lot in updates[..ahead].chunks(UPDATES_MAX) {
            let mut place = self.shared.take_place();
            let lists = place.pack(self.buffers.lists.address(), &Step::default(), lot, 0, 0);
            self.stream.upload(self.buffers.lists.address(), place.lists(), lists.bytes)?;
            let table = self.buffers.tables.address();
            self.model.kernels.update_tables(&self.stream, lists.tables, lot.len(), table, self.limits.pages)?;
            self.stream.wait()?;
            self.shared.give_place(place);
        }
        let updates = &updates[ahead..];
        let step = &self.step;
        let is_decode = step.is_decode() && self.kernels_fit_decode();
        let rows = padded_rows(step.tokens.len());
        let picks = match step.picks.len() {
            _ if is_decode => rows,
            0 => 0,
            count => padded_rows(count),
        };
        let pass = Pass {
            rows,
            picks,
            prompt_rows: step.prompt_rows,
            real_rows: step.tokens.len(),
            tiles: step.tiles.len() as u32,
            last_tiles: step.last_tiles.len() as u32,
            all_picked: is_decode,
        };
        let mut place = self.shared.take_place();
        match self.fill(&mut place, pool, pass, wanted, updates) {
            Ok(()) => self.shared.launched(place, &self.stream),
            Err(error) => {
                self.shared.give_place(place);
                Err(error)
            }
        }
    }

    fn fill(
        &self,
        place: &mut Place,
        pool: &CudaPool,
        pass: Pass,
        wanted: &[Wanted],
        updates: &[[i32; 4]],
    ) -> Result<()> {
        let step = &self.step;
        let base = self.buffers.lists.address();
        let lists = place.pack(base, step, updates, pass.rows, pass.picks);
        self.stream.upload(base, place.lists(), lists.bytes)?;
        if !updates.is_empty() {
            let table = self.buffers.tables.address();
            self.model.kernels.update_tables(&self.stream, lists.tables, updates.len(), table, self.limits.pages)?;
        }
        match self.graphs.get(&pass.rows).filter(|_| pass.all_picked) {
            Some(graph) => graph.launch(&self.stream)?,
            None => self.pass(pool, pass, &lists)?,
        }
        if step.samples.iter().any(SampleRow::is_filtered) {
            let of = self.samples(&lists);
            self.model.kernels.sample_filtered(&self.stream, pass.picks, &of, self.shared.vocab)?;
        }
        let sampled = step.samples.len();
        let by_host: Vec<usize> = (0..sampled).filter(|at| wanted[*at].by_host).collect();
        place.fetch(&self.stream, &self.buffers.results, self.limits.picks, sampled)?;
        place.fetch_logits(&self.model.context, &self.stream, &self.buffers.logits, self.shared.vocab, &by_host)
    }

    /// True if generated tokens go through the kernel that graphs were recorded with.
    fn kernels_fit_decode(&self) -> bool {
        self.model.kernels.has_decode(self.heads) && self.model.model.layers.iter().all(|layer| layer.window == 0)
    }

    /// Records decode steps.
    pub(super) fn record(&mut self) -> Result<()> {
        let Some(pool) = self.pool.clone().filter(|_| self.kernels_fit_decode()) else { return Ok(()) };
        for rows in paddings(self.limits.picks) {
            let mut place = self.shared.take_place();
            let lists = place.pack(self.buffers.lists.address(), &Step::default(), &[], rows, rows);
            let pass =
                Pass { rows, picks: rows, prompt_rows: 0, real_rows: rows, tiles: 0, last_tiles: 0, all_picked: true };
            // Once outside of a graph: what is loaded at its first use must not be loaded within one.
            self.stream.upload(self.buffers.lists.address(), place.lists(), lists.bytes)?;
            if rows == 1 {
                self.pass(&pool, pass, &lists)?;
            }
            self.stream.wait()?;
            let graph = Graph::record(&self.model.context, &self.stream, || self.pass(&pool, pass, &lists))?;
            self.graphs.insert(rows, graph);
            self.shared.give_place(place);
        }
        self.stream.wait()
    }

    fn pass(&self, pool: &CudaPool, pass: Pass, lists: &Lists) -> Result<()> {
        let Self { stream, buffers, model, products, .. } = self;
        let (kernels, weights) = (&model.kernels, &model.model);
        let config = &weights.config;
        let (hidden, eps, rows) = (config.hidden, config.eps, pass.rows);
        let residual = buffers.residual.address();
        let embedding = weights.embedding.buffer.address();
        let (newest, tokens, slots) = (buffers.last.address(), lists.tokens, lists.slots);
        kernels.embed(stream, rows, tokens, newest, slots, embedding, residual, hidden)?;
        let last = weights.layers.len() - 1;
        for (index, layer) in weights.layers.iter().enumerate() {
            let normed = buffers.normed.buffer.address();
            kernels.norm(stream, rows, residual, layer.norm.address(), normed, hidden, eps)?;
            let qkv = buffers.qkv.address();
            // SAFETY: buffers have room for `rows` rows, here and below.
            unsafe { products.run(stream, kernels, &layer.qkv, &buffers.normed, qkv, rows)? };
            let head_norms = layer.head_norms.as_ref().map_or((0, 0), |(q, k)| (q.address(), k.address()));
            let bias = layer.qkv_bias.as_ref().map_or(0, Buffer::address);
            let (queries, rotation) = (buffers.queries.address(), weights.rotation.address());
            let of = pool.layer(index);
            let (positions, kv_slots, heads) = (lists.positions, lists.kv_slots, self.heads);
            kernels
                .rotate(stream, rows, qkv, bias, positions, kv_slots, rotation, head_norms, queries, of, heads, eps)?;
            if index < last || pass.all_picked {
                self.attend(pool, pass, lists, index, layer.window)?;
                self.feed(layer, &buffers.attended, residual, rows)?;
            } else if pass.picks > 0 {
                // Nobody reads what the last layer gives for the other rows: their KV is all that is left of them.
                self.attend(pool, pass, lists, index, layer.window)?;
                let (attended, picks) = (buffers.attended.buffer.address(), pass.picks);
                let to = buffers.picked_attended.buffer.address();
                kernels.gather(stream, picks, attended, lists.picks, to, (heads.queries * heads.dim) as usize)?;
                let to = buffers.picked_residual.address();
                kernels.gather(stream, picks, residual, lists.picks, to, hidden)?;
                self.feed(layer, &buffers.picked_attended, to, picks)?;
            }
        }
        if pass.picks == 0 {
            return Ok(());
        }
        let picked = buffers.picked.buffer.address();
        let residual = if pass.all_picked { residual } else { buffers.picked_residual.address() };
        kernels.norm(stream, pass.picks, residual, weights.norm.address(), picked, hidden, eps)?;
        let logits = buffers.logits.address();
        // SAFETY: buffers have room for `picks` rows.
        unsafe { products.run(stream, kernels, weights.output(), &buffers.picked, logits, pass.picks)? };
        kernels.sample(stream, pass.picks, &self.samples(lists), config.vocab)
    }

    /// What is behind attention in a layer, of some rows of the residual stream.
    fn feed(&self, layer: &Layer, attended: &Inputs, residual: u64, rows: usize) -> Result<()> {
        let Self { stream, buffers, model, products, .. } = self;
        let (kernels, config) = (&model.kernels, &model.model.config);
        let normed = buffers.normed.buffer.address();
        // SAFETY: buffers have room for `rows` rows, here and below.
        unsafe { products.run(stream, kernels, &layer.out, attended, residual, rows)? };
        kernels.norm(stream, rows, residual, layer.ffn_norm.address(), normed, config.hidden, config.eps)?;
        let gate_up = buffers.gate_up.address();
        // SAFETY: as above.
        unsafe { products.run(stream, kernels, &layer.gate_up, &buffers.normed, gate_up, rows)? };
        kernels.silu(stream, rows, gate_up, buffers.activated.buffer.address(), config.ffn)?;
        // SAFETY: as above.
        unsafe { products.run(stream, kernels, &layer.down, &buffers.activated, residual, rows) }
    }

    /// Attention of one layer: prompts by tiles, generated tokens row by row, or all by the kernel for anything.
    fn attend(&self, pool: &CudaPool, pass: Pass, lists: &Lists, layer: usize, window: u32) -> Result<()> {
        let Self { stream, buffers, model, heads, .. } = self;
        let kernels = &model.kernels;
        let of = pool.layer(layer);
        let row_bytes = u64::from(heads.queries * heads.dim) * 2;
        let table = buffers.tables.address();
        let (queries, out) = (buffers.queries.address(), buffers.attended.buffer.address());
        let any = |first: usize, rows: usize| {
            let (at, lengths) = (first as u64 * row_bytes, lists.lengths + first as u64 * 8);
            let of_any = AnyLists { queries: queries + at, table, lengths, out: out + at };
            kernels.any(stream, rows, &of_any, of, *heads, window)
        };
        let generated = pass.real_rows - pass.prompt_rows;
        if pass.prompt_rows > 0 {
            if window == 0 && kernels.has_prefill(*heads, self.geometry.page_size) {
                let maps = pool.maps(layer);
                let is_last = layer + 1 == model.model.layers.len();
                let (tiles, count) =
                    if is_last { (lists.last_tiles, pass.last_tiles) } else { (lists.tiles, pass.tiles) };
                let of_prefill = PrefillLists { maps, queries, table, prompts: lists.prompts, tiles, count, out };
                if count > 0 {
                    kernels.prefill(stream, &of_prefill, of, *heads)?;
                }
            } else {
                any(0, pass.prompt_rows)?;
            }
        }
        if generated == 0 {
            return Ok(());
        }
        if window > 0 || !kernels.has_decode(*heads) {
            return any(pass.prompt_rows, generated);
        }
        let at = pass.prompt_rows as u64 * row_bytes;
        let of_decode = DecodeLists {
            queries: queries + at,
            table,
            starts: lists.starts,
            pieces: lists.pieces,
            lengths: lists.lengths + pass.prompt_rows as u64 * 8,
            out: out + at,
            leaves: buffers.leaves.address(),
            arrived: buffers.arrived.address(),
        };
        kernels.decode(stream, &of_decode, of, *heads)
    }

    fn samples(&self, lists: &Lists) -> SampleLists {
        let buffers = &self.buffers;
        SampleLists {
            logits: buffers.logits.address(),
            samples: lists.samples,
            partial: buffers.sample_partial.address(),
            arrived: buffers.sample_arrived.address(),
            next: buffers.results.address(),
            last: buffers.last.address(),
            finite: buffers.results.at(self.limits.picks * 4),
        }
    }
}
