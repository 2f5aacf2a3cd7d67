//! What a request waited for, from its arrival on: each nanosecond has exactly one cause, so the parts add up.
//!
//! The cause at an instant is what the machines themselves say that the request waits for. Where several things are
//! under way at once, the one that the others wait for counts: a forward of others before an own one, a load before the
//! forward that needs it, the source of a hand-off before the sink.

use pd_core::time::Instant;

/// What a request waits for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Cause {
    /// Messages between client, router and worker.
    Routing,
    /// The pause before the next attempt, after one that failed.
    Backoff,
    /// The only worker is away.
    Away,
    /// Its turn.
    Queue,
    /// Another request that computes the same prefix.
    Leader,
    /// Device pages.
    Memory,
    /// The list of what L3 holds.
    Scan,
    /// The answer of a shared L3.
    Query,
    /// Room in L2 for what is to be fetched.
    Room,
    /// Pages on their way from L3 to L2.
    Fetch,
    /// Pages on their way from L2 to L1.
    LoadBack,
    /// Forwards of others on the same GPU.
    Others,
    /// Its own forwards.
    Forward,
    /// The sink's pages, or the connection over which they are offered.
    Want,
    /// KV on its way to the decode worker.
    Push,
    /// The message that the KV has landed.
    Handoff,
    /// To come back after it gave its pages up.
    Retracted,
    /// Something that has no name here.
    Unknown,
}

impl Cause {
    /// The name in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Routing => "routing",
            Self::Backoff => "backoff",
            Self::Away => "worker_away",
            Self::Queue => "queue",
            Self::Leader => "leader",
            Self::Memory => "memory",
            Self::Scan => "scan",
            Self::Query => "query",
            Self::Room => "host_room",
            Self::Fetch => "fetch",
            Self::LoadBack => "load_back",
            Self::Others => "forwards_of_others",
            Self::Forward => "forward",
            Self::Want => "want",
            Self::Push => "push",
            Self::Handoff => "handoff",
            Self::Retracted => "retracted",
            Self::Unknown => "unknown",
        }
    }

    /// What time goes into.
    #[must_use]
    pub const fn doing(self) -> &'static str {
        match self {
            Self::Routing => "messages between client, router and worker",
            Self::Backoff => "the pause before a retry",
            Self::Away => "waiting for its worker to come back",
            Self::Queue => "waiting for its turn",
            Self::Leader => "waiting for another request that computed the same prefix",
            Self::Memory => "waiting for device pages",
            Self::Scan => "waiting for the scan of L3",
            Self::Query => "asking L3",
            Self::Room => "waiting for room in L2",
            Self::Fetch => "fetching pages from L3 to L2",
            Self::LoadBack => "copying pages back from L2 to L1",
            Self::Others => "standing behind forwards of others",
            Self::Forward => "computing the prompt",
            Self::Want => "waiting for the decode worker's offer of pages to arrive",
            Self::Push => "pushing KV to the decode worker",
            Self::Handoff => "the hand-off message",
            Self::Retracted => "waiting to be resumed after a retraction",
            Self::Unknown => "something that cannot be told",
        }
    }

    /// The words in a sum.
    #[must_use]
    pub const fn words(self, is_decoding: bool) -> &'static str {
        match self {
            Self::Routing => "routing",
            Self::Backoff => "pause before a retry",
            Self::Away => "waiting for the worker to come back",
            Self::Queue => "queue",
            Self::Leader => "waiting for a request with the same prefix",
            Self::Memory => "waiting for device pages",
            Self::Scan => "scan of L3",
            Self::Query => "query of L3",
            Self::Room => "waiting for room in L2",
            Self::Fetch => "fetch L3 -> L2",
            Self::LoadBack => "load back L2 -> L1",
            Self::Others if is_decoding => "stalled behind prefills of others",
            Self::Others => "forwards of others",
            Self::Forward if is_decoding => "decode steps",
            Self::Forward => "forward",
            Self::Want => "sink's offer on its way",
            Self::Push => "push of KV",
            Self::Handoff => "hand-off message",
            Self::Retracted => "retracted",
            Self::Unknown => "unknown",
        }
    }
}

/// A cause, and the worker on which it was.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Part {
    /// What.
    pub cause: Cause,
    /// Where; none for what is on no worker.
    pub worker: Option<u32>,
}

/// A stretch of time taken apart.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Sum {
    /// How long it is.
    pub total_ns: u64,
    /// Its parts, in the order in which they first occur; none is empty.
    pub parts: Vec<(Part, u64)>,
}

impl Sum {
    /// The longest part.
    #[must_use]
    pub fn longest(&self) -> Option<(Part, u64)> {
        self.parts.iter().copied().max_by_key(|(part, ns)| (*ns, std::cmp::Reverse(*part)))
    }

    /// Time with this cause, on all workers.
    #[must_use]
    pub fn of(&self, cause: Cause) -> u64 {
        self.parts.iter().filter(|(part, _)| part.cause == cause).map(|(_, ns)| ns).sum()
    }

    /// Each part in tenths of a millisecond, rounded so that what is printed adds up to the rounded total, too.
    #[must_use]
    pub fn tenths(&self) -> (u64, Vec<u64>) {
        let total = (self.total_ns + 50_000) / 100_000;
        let mut tenths: Vec<u64> = self.parts.iter().map(|(_, ns)| ns / 100_000).collect();
        let mut order: Vec<usize> = (0..tenths.len()).collect();
        order.sort_by_key(|&index| std::cmp::Reverse(self.parts[index].1 % 100_000));
        let short = total.saturating_sub(tenths.iter().sum());
        for &index in order.iter().cycle().take(if order.is_empty() { 0 } else { short as usize }) {
            tenths[index] += 1;
        }
        (total, tenths)
    }
}

/// Causes over time, each from its instant to the next one.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Timeline {
    turns: Vec<(Instant, Part)>,
}

impl Timeline {
    /// From here on it is this.
    pub fn turn(&mut self, at: Instant, part: Part) {
        while self.turns.last().is_some_and(|(last, _)| *last == at) {
            self.turns.pop();
        }
        if self.turns.last().is_none_or(|(_, last)| *last != part) {
            self.turns.push((at, part));
        }
    }

    /// The stretches, with their ends; the last one ends at `until`.
    pub fn stretches(&self, until: Instant) -> impl Iterator<Item = (Instant, Instant, Part)> + '_ {
        let ends = self.turns.iter().skip(1).map(|(at, _)| *at).chain([until]);
        self.turns.iter().zip(ends).map(|((from, part), to)| (*from, to, *part))
    }

    /// Takes `from..to` apart. What comes before the first turn is unknown.
    #[must_use]
    pub fn sum(&self, from: Instant, to: Instant) -> Sum {
        let mut sum = Sum { total_ns: to.ns_since(from), parts: Vec::new() };
        let mut add = |part: Part, ns: u64| {
            if ns > 0 {
                match sum.parts.iter_mut().find(|(known, _)| *known == part) {
                    Some((_, total)) => *total += ns,
                    None => sum.parts.push((part, ns)),
                }
            }
        };
        let start = self.turns.first().map_or(to, |(at, _)| *at);
        add(Part { cause: Cause::Unknown, worker: None }, start.min(to).ns_since(from));
        for (begin, end, part) in self.stretches(to) {
            add(part, end.min(to).ns_since(begin.max(from)));
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(cause: Cause) -> Part {
        Part { cause, worker: None }
    }

    #[test]
    fn parts_add_up_whatever_is_asked_for() {
        let mut timeline = Timeline::default();
        for (at, cause) in
            [(10, Cause::Routing), (20, Cause::Queue), (20, Cause::Fetch), (50, Cause::Queue), (90, Cause::Queue)]
        {
            timeline.turn(Instant(at), part(cause));
        }
        for (from, to) in [(10, 100), (0, 100), (15, 60), (25, 26), (60, 60), (0, 5)] {
            let sum = timeline.sum(Instant(from), Instant(to));
            assert_eq!(sum.parts.iter().map(|(_, ns)| ns).sum::<u64>(), sum.total_ns, "{from} to {to}");
            assert!(sum.parts.iter().all(|(_, ns)| *ns > 0));
        }
        let sum = timeline.sum(Instant(10), Instant(100));
        assert_eq!(sum.parts, [(part(Cause::Routing), 10), (part(Cause::Fetch), 30), (part(Cause::Queue), 50)]);
        assert_eq!(sum.longest(), Some((part(Cause::Queue), 50)));
        assert_eq!(timeline.sum(Instant(0), Instant(20)).of(Cause::Unknown), 10);
    }

    #[test]
    fn what_is_printed_adds_up_too() {
        let parts = [33_333, 33_333, 33_334, 149_999, 50_001].map(|ns| (part(Cause::Queue), ns));
        let sum = Sum { total_ns: 300_000, parts: parts.to_vec() };
        let (total, tenths) = sum.tenths();
        assert_eq!(total, 3);
        assert_eq!(tenths.iter().sum::<u64>(), 3);
        assert_eq!(Sum::default().tenths(), (0, Vec::new()));
    }
}
