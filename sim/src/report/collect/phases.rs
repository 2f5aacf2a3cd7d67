//! Where the time of a request went: phases without gaps from its arrival to its end.
//!
//! ```text
//!   arrival                admitted      computed     first token         finished
//!      |--queue--|--L3--|-q.--|--prefill-----|--hand-off--|-----decode-------|
//! ```

use pd_core::id::Room;
use pd_core::time::Instant;

use crate::record::Record;

/// What reports know of a request beyond its record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Journey {
    /// From the first question to L3 for its pages until the last of them arrived, before it was admitted.
    pub fetched: Option<(Instant, Instant)>,
    /// When the pass that completes its prompt ended, where the prompt is computed.
    pub computed: Option<Instant>,
    /// From the beginning of its first push to the end of its last one.
    pub pushed: Option<(Instant, Instant)>,
    /// Who computes its prompt, as far as is known.
    pub(super) computes: Option<u32>,
    pub(super) room: Option<Room>,
}

/// A part of the life of a request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Phase {
    /// It waits for its turn.
    Queue,
    /// Its pages come from L3.
    Fetch,
    /// Its prompt is computed.
    Prefill,
    /// Its KV moves to the decode worker.
    HandOff,
    /// Its answer is generated.
    Decode,
}

impl Phase {
    /// All of them, in their order.
    pub const ALL: [Self; 5] = [Self::Queue, Self::Fetch, Self::Prefill, Self::HandOff, Self::Decode];

    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Fetch => "prefetch",
            Self::Prefill => "prefill",
            Self::HandOff => "hand-off",
            Self::Decode => "decode",
        }
    }
}

impl Journey {
    /// The phases of a request, up to `end` if it has not ended. They follow each other without a gap; none is empty.
    #[must_use]
    pub fn phases(&self, record: &Record, end: Instant) -> Vec<(Phase, Instant, Instant)> {
        let finished = record.finished.unwrap_or(end).max(record.arrival);
        let first_token = record.first_token.unwrap_or(finished).min(finished);
        let admitted = record.admitted.unwrap_or(finished).min(first_token);
        let computed = match (record.prefill, self.computed) {
            (Some(_), Some(computed)) => computed.clamp(admitted, first_token),
            // Who computes the prompt also decodes, or it was never computed.
            (_, None) | (None, _) => first_token,
        };
        let (fetch_from, fetch_to) = self.fetched.unwrap_or((admitted, admitted));
        let fetch_from = fetch_from.clamp(record.arrival, admitted);
        let fetch_to = fetch_to.clamp(fetch_from, admitted);
        let mut from = record.arrival;
        let mut phases = Vec::new();
        for (phase, to) in [
            (Phase::Queue, fetch_from),
            (Phase::Fetch, fetch_to),
            (Phase::Queue, admitted),
            (Phase::Prefill, computed),
            (Phase::HandOff, first_token),
            (Phase::Decode, finished),
        ] {
            if to > from {
                phases.push((phase, from, to));
                from = to;
            }
        }
        phases
    }

    /// Nanoseconds in a phase.
    #[must_use]
    pub fn time_in(&self, phase: Phase, record: &Record, end: Instant) -> u64 {
        let phases = self.phases(record, end);
        phases.iter().filter(|one| one.0 == phase).map(|(_, from, to)| to.ns_since(*from)).sum()
    }
}

/// Stretches a span of time to cover another one.
pub(super) fn cover(span: &mut Option<(Instant, Instant)>, from: Instant, to: Instant) {
    *span = Some(span.map_or((from, to), |(first, last)| (first.min(from), last.max(to))));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            arrival: Instant(100),
            admitted: Some(Instant(300)),
            first_token: Some(Instant(600)),
            finished: Some(Instant(900)),
            prefill: Some(0),
            decode: Some(1),
            ..Record::default()
        }
    }

    fn at(phases: &[(Phase, Instant, Instant)]) -> Vec<(&'static str, u64, u64)> {
        phases.iter().map(|(phase, from, to)| (phase.name(), from.0, to.0)).collect()
    }

    #[test]
    fn phases_follow_each_other_without_a_gap() {
        let journey =
            Journey { fetched: Some((Instant(150), Instant(250))), computed: Some(Instant(500)), ..Journey::default() };
        assert_eq!(
            at(&journey.phases(&record(), Instant(1000))),
            [
                ("queue", 100, 150),
                ("prefetch", 150, 250),
                ("queue", 250, 300),
                ("prefill", 300, 500),
                ("hand-off", 500, 600),
                ("decode", 600, 900)
            ]
        );
    }

    #[test]
    fn a_request_that_never_left_the_queue_only_queues() {
        let record = Record { arrival: Instant(100), ..Record::default() };
        assert_eq!(at(&Journey::default().phases(&record, Instant(700))), [("queue", 100, 700)]);
    }

    #[test]
    fn what_is_known_out_of_order_is_clipped() {
        let journey =
            Journey { fetched: Some((Instant(0), Instant(5000))), computed: Some(Instant(5000)), ..Journey::default() };
        let phases = at(&journey.phases(&record(), Instant(1000)));
        assert_eq!(phases, [("prefetch", 100, 300), ("prefill", 300, 600), ("decode", 600, 900)]);
    }
}
