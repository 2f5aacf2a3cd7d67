//! What the next decode steps of the same sequences take, one after the other.
//!
//! Only attention changes from step to step, and its place in a measured grid moves slowly: the rest is worked out once.
//! Each step is what [`Cost::forward`] says of it, to the nanosecond.

use super::fixed::ns_of_ps;
use super::table::Cursor;
use super::{Cost, Form, Forward, Kernels, Load, mul_div};

/// Steps without end; see [`Cost::decodes`].
#[derive(Clone, Debug)]
pub struct Decodes<'a> {
    cost: &'a Cost,
    load: Load,
    cpu_ns: u64,
    /// All but attention, in picoseconds.
    rest_ps: u64,
    is_graph: bool,
    cursor: Cursor,
}

impl Cost {
    /// Of a step that only decodes, and of those that follow it: each sequence then reads one token more.
    #[must_use]
    pub fn decodes(&self, load: Load) -> Decodes<'_> {
        let (rest_ps, is_graph) = match &self.form {
            Form::Kernels(kernels) => (kernels.rest_ps(&load), kernels.is_graph(&load)),
            Form::Polynomial(_) => (0, false),
        };
        Decodes { cost: self, load, cpu_ns: self.cpu_ns(&load), rest_ps, is_graph, cursor: Cursor::default() }
    }
}

impl Iterator for Decodes<'_> {
    type Item = Forward;

    #[inline]
    fn next(&mut self) -> Option<Forward> {
        let load = self.load;
        self.load.next_decode();
        let Form::Kernels(kernels) = &self.cost.form else { return Some(self.cost.forward(&load)) };
        if load.chunks > 0 || load.decodes == 0 {
            return Some(self.cost.forward(&load));
        }
        let attention_ps = kernels.attention.next_decode_ps(load.decodes, load.context_tokens, &mut self.cursor);
        let ps = self.rest_ps.saturating_add(kernels.layers.saturating_mul(attention_ps));
        let ps = if kernels.decode_per_mille == 1_000 { ps } else { mul_div(ps, kernels.decode_per_mille, 1_000) };
        let ps = if self.is_graph { ps } else { ps.max(kernels.launches_ps) };
        Some(Forward { gpu_ns: ns_of_ps(ps), cpu_ns: self.cpu_ns })
    }
}

impl Kernels {
    fn is_graph(&self, load: &Load) -> bool {
        usize::try_from(load.decodes).ok().is_some_and(|decodes| decodes < self.padded.len())
    }

    /// A step that only decodes, without its attention.
    fn rest_ps(&self, load: &Load) -> u64 {
        let graph = usize::try_from(load.decodes).ok().and_then(|decodes| self.padded.get(decodes));
        let decodes = graph.map_or(load.decodes, |&padded| u64::from(padded));
        self.step_ps.saturating_add(self.dense.body_ps(decodes)).saturating_add(self.dense.head_ps(load.rows))
    }
}
