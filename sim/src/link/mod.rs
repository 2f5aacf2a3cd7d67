//! Links shared max-min fairly by flows: GPU copy engines, PCIe switches, NICs, fabric ports, NVLink.
//!
//! A flow first waits for its setup (request and descriptors, computed by the caller), then its bytes move over all
//! links of its path at once, at the rate that `fair` gives it. Knows nothing of pages, peers or faults.
//!
//! ```text
//!   start          setup over                        done
//!     |--setup_ns-----|=====rate=====|==rate'==|=======|
//!                     joins its links  somebody else came or left
//! ```
//!
//! 1. Work is counted in nano-bytes (rate x ns), so progress is exact: a flow of B bytes alone on a link of rate R
//!    takes `setup_ns + ceil(B * 1e9 / R)` ns, and `carried` of a link ends at the exact sum of its flows.
//! 2. Everything that happens at one instant is applied before rates are recomputed once. Hence all changes (`start`,
//!    `cancel`, `set_rate`) become visible to `next`, and take effect in `advance`.
//! 3. Only the connected component of a changed link is recomputed. A flow alone on its path costs no search at all.
//! 4. The caller advances to `now` before it changes anything at `now`.

mod fair;
mod flow;
mod queue;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_random;
mod view;

use pd_core::time::Instant;

use self::fair::Fair;
use self::flow::{Flow, whole};
pub use self::flow::{FlowId, FlowSpec, PATH_LINKS_MAX, Path};
use self::queue::{NEVER, Queue};
pub use self::view::FlowView;

/// A set of links and the flows on them.
#[derive(Clone, Debug, Default)]
pub struct Links {
    links: Vec<Link>,
    /// A slab; `free` are the slots to use again.
    flows: Vec<Flow>,
    free: Vec<u32>,
    queue: Queue,
    fair: Fair,
    /// Links whose flows or rate have changed at `changed_at`, before their rates were recomputed.
    changed: Vec<u32>,
    changed_at: Instant,
    started: u64,
    round: u64,
    /// Links whose flows have changed since their rates were told, while somebody watches.
    watched: Option<Vec<u32>>,
}

/// Names a link of one [`Links`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct LinkId(pub u32);

/// What a link has done since the start of the run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LinkUse {
    /// Bytes carried, rounded down.
    pub bytes: u64,
    /// Bytes it could have carried at its rates over time, rounded down.
    pub bytes_max: u64,
    /// Time with at least one flow on it, stalled ones included.
    pub busy_ns: u64,
}

#[derive(Clone, Debug)]
struct Link {
    name: String,
    rate: u64,
    /// Flows past their setup, by ordinal.
    flows: Vec<FlowId>,
    /// Nano-bytes carried by flows up to their `since`.
    carried: u128,
    /// Nano-bytes that could have been carried up to `rate_since`.
    carried_max: u128,
    rate_since: Instant,
    busy_ns: u64,
    busy_since: Instant,
}

impl Links {
    /// No links, no flows.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a link that has been there since the start of the run.
    ///
    /// # Panics
    /// If it is faster than 2^63 bytes per second.
    pub fn add(&mut self, name: &str, bytes_per_second: u64) -> LinkId {
        assert!(bytes_per_second <= RATE_MAX, "a link of {bytes_per_second} bytes per second");
        let id = LinkId(self.links.len() as u32);
        self.links.push(Link {
            name: name.to_owned(),
            rate: bytes_per_second,
            flows: Vec::new(),
            carried: 0,
            carried_max: 0,
            rate_since: Instant::ZERO,
            busy_ns: 0,
            busy_since: Instant::ZERO,
        });
        self.fair.add();
        id
    }

    /// Changes the rate of a link; at 0 its flows stall.
    ///
    /// # Panics
    /// If something earlier than `now` has not been advanced over, or the rate is above 2^63.
    pub fn set_rate(&mut self, now: Instant, link: LinkId, bytes_per_second: u64) {
        assert!(bytes_per_second <= RATE_MAX, "a link of {bytes_per_second} bytes per second");
        self.expect_advanced(now);
        let real = &mut self.links[link.0 as usize];
        real.carried_max += u128::from(real.rate) * u128::from(now.ns_since(real.rate_since));
        real.rate_since = now;
        real.rate = bytes_per_second;
        if let Some(watched) = &mut self.watched {
            watched.push(link.0);
        }
        if !real.flows.is_empty() {
            self.changed.push(link.0);
            self.changed_at = now;
        }
    }

    /// Starts a flow. It ends in the `done` of [`advance`](Self::advance).
    ///
    /// # Panics
    /// If something earlier than `now` has not been advanced over.
    pub fn start(&mut self, now: Instant, flow: FlowSpec) -> FlowId {
        self.expect_advanced(now);
        let ordinal = self.started;
        self.started += 1;
        let flow = Flow::new(ordinal, now, flow);
        let at = flow.since.0;
        let slot = if let Some(slot) = self.free.pop() {
            self.flows[slot as usize] = flow;
            slot
        } else {
            self.flows.push(flow);
            self.flows.len() as u32 - 1
        };
        self.queue.insert(slot, ordinal, at);
        FlowId { ordinal, slot }
    }

    /// Takes a flow off its links and returns the whole bytes that it had moved; none if it had ended before.
    ///
    /// # Panics
    /// If something earlier than `now` has not been advanced over.
    pub fn cancel(&mut self, now: Instant, flow: FlowId) -> Option<u64> {
        self.expect_advanced(now);
        if !self.is_live(flow) {
            return None;
        }
        let moving = self.flows[flow.slot as usize].is_moving;
        if moving {
            self.leave(now, flow);
            self.changed_at = now;
        }
        let bytes = self.flows[flow.slot as usize].moved(now);
        self.release(flow);
        Some(bytes)
    }

    /// The earliest instant at which something happens inside; the caller advances to it.
    #[inline]
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        if !self.changed.is_empty() {
            return Some(self.changed_at);
        }
        match self.queue.peek() {
            Some((at, _)) if at != NEVER => Some(Instant(at)),
            _ => None,
        }
    }

    /// Moves everything on to `now` and appends the flows that ended, by time and then by start.
    pub fn advance(&mut self, now: Instant, done: &mut Vec<FlowId>) {
        while let Some(at) = self.next()
            && at <= now
        {
            self.step(at, done);
        }
    }

    /// The rate of a flow in bytes per second, 0 during its setup; none once it has ended.
    #[must_use]
    pub fn rate(&self, flow: FlowId) -> Option<u64> {
        self.is_live(flow).then(|| self.flows[flow.slot as usize].rate)
    }

    /// Whole bytes that a flow has moved until `now`; none once it has ended.
    #[must_use]
    pub fn moved(&self, now: Instant, flow: FlowId) -> Option<u64> {
        self.is_live(flow).then(|| {
            let flow = &self.flows[flow.slot as usize];
            flow.moved(now)
        })
    }

    /// Flows that have not ended.
    #[must_use]
    pub fn flows_count(&self) -> u32 {
        (self.flows.len() - self.free.len()) as u32
    }

    /// Links, whose ids count from 0.
    #[must_use]
    pub fn links_count(&self) -> u32 {
        self.links.len() as u32
    }

    /// The name given to a link.
    #[must_use]
    pub fn name(&self, link: LinkId) -> &str {
        &self.links[link.0 as usize].name
    }

    /// Bytes per second of a link.
    #[must_use]
    pub fn link_rate(&self, link: LinkId) -> u64 {
        self.links[link.0 as usize].rate
    }

    /// What a link has carried until `now`.
    #[must_use]
    pub fn link_use(&self, now: Instant, link: LinkId) -> LinkUse {
        let link = &self.links[link.0 as usize];
        let mut carried = link.carried;
        for id in &link.flows {
            carried += self.flows[id.slot as usize].progress(now);
        }
        let open = u128::from(link.rate) * u128::from(now.ns_since(link.rate_since));
        let busy = if link.flows.is_empty() { 0 } else { now.ns_since(link.busy_since) };
        LinkUse { bytes: whole(carried), bytes_max: whole(link.carried_max + open), busy_ns: link.busy_ns + busy }
    }

    /// From here on, [`take_changes`](Self::take_changes) has something to tell.
    pub fn watch(&mut self) {
        self.watched.get_or_insert_default();
    }

    /// Calls `told` with each link whose rate may have changed since the last call: what it carries, and what it could.
    pub fn take_changes(&mut self, mut told: impl FnMut(LinkId, u64, u64)) {
        let Some(mut watched) = self.watched.take() else { return };
        watched.sort_unstable();
        watched.dedup();
        for link in watched.drain(..) {
            let Link { flows, rate, .. } = &self.links[link as usize];
            told(LinkId(link), flows.iter().map(|id| self.flows[id.slot as usize].rate).sum(), *rate);
        }
        self.watched = Some(watched);
    }

    /// Recounts that no link is over its rate and that each moving flow is held back by a full link or by itself.
    ///
    /// # Panics
    /// If one is. Changes at the present instant must have been advanced over.
    pub fn check(&self) {
        assert!(self.changed.is_empty(), "rates are out of date until the next advance");
        let used = |link: &Link| -> u64 { link.flows.iter().map(|id| self.flows[id.slot as usize].rate).sum() };
        for link in &self.links {
            assert!(used(link) <= link.rate, "{} carries {} of {}", link.name, used(link), link.rate);
            for id in &link.flows {
                let flow = &self.flows[id.slot as usize];
                let at_limit = flow.rate_max == Some(flow.rate);
                let is_full = |id: LinkId| used(&self.links[id.0 as usize]) == self.links[id.0 as usize].rate;
                assert!(at_limit || flow.path.iter().any(is_full), "flow {} could be faster", flow.ordinal);
            }
        }
    }

    /// All that happens at one instant, then the rates that follow from it.
    fn step(&mut self, at: Instant, done: &mut Vec<FlowId>) {
        while let Some((time, slot)) = self.queue.peek()
            && time == at.0
            && time != NEVER
        {
            let flow = &self.flows[slot as usize];
            let id = FlowId { ordinal: flow.ordinal, slot };
            if flow.is_moving {
                self.leave(at, id);
                assert!(self.flows[slot as usize].left == 0, "a flow ends when nothing is left");
            } else if flow.bytes > 0 && (flow.path.count > 0 || flow.rate_max.is_some()) {
                self.join(at, id);
                continue;
            }
            self.release(id);
            done.push(id);
        }
        self.share(at);
    }

    /// Recomputes the rates around all changed links.
    fn share(&mut self, now: Instant) {
        self.round += 1;
        let mut changed = std::mem::take(&mut self.changed);
        for link in changed.drain(..) {
            let Some(&first) = self.links[link as usize].flows.first() else { continue };
            if self.fair.has_seen(link, self.round) {
                continue;
            }
            if let Some(rate) = self.rate_alone(first) {
                self.set_flow_rate(now, first, rate);
                continue;
            }
            let mut fair = std::mem::take(&mut self.fair);
            for &id in fair.fill(&self.links, &mut self.flows, link, self.round) {
                self.set_flow_rate(now, id, self.flows[id.slot as usize].fresh);
            }
            self.fair = fair;
        }
        self.changed = changed;
    }

    /// The rate of a flow that meets no other one on its path.
    fn rate_alone(&self, id: FlowId) -> Option<u64> {
        let flow = &self.flows[id.slot as usize];
        let mut rate = flow.rate_max.unwrap_or(u64::MAX);
        for link in flow.path.iter() {
            let link = &self.links[link.0 as usize];
            if link.flows.len() > 1 {
                return None;
            }
            rate = rate.min(link.rate);
        }
        Some(rate)
    }

    fn set_flow_rate(&mut self, now: Instant, id: FlowId, rate: u64) {
        if self.flows[id.slot as usize].rate == rate {
            return;
        }
        self.settle(now, id);
        self.note(id);
        let flow = &mut self.flows[id.slot as usize];
        flow.rate = rate;
        self.queue.update(id.slot, flow.end());
    }

    /// Books the progress of a flow until `now`.
    fn settle(&mut self, now: Instant, id: FlowId) {
        let flow = &mut self.flows[id.slot as usize];
        let progress = flow.progress(now);
        flow.left -= progress;
        flow.since = now;
        for link in flow.path.iter() {
            self.links[link.0 as usize].carried += progress;
        }
    }

    /// The rates of the links of a flow change.
    fn note(&mut self, id: FlowId) {
        if let Some(watched) = &mut self.watched {
            watched.extend(self.flows[id.slot as usize].path.iter().map(|link| link.0));
        }
    }

    fn join(&mut self, now: Instant, id: FlowId) {
        let flow = &mut self.flows[id.slot as usize];
        flow.is_moving = true;
        for link in flow.path.iter() {
            let real = &mut self.links[link.0 as usize];
            if real.flows.is_empty() {
                real.busy_since = now;
            }
            let place = real.flows.partition_point(|other| *other < id);
            real.flows.insert(place, id);
            self.changed.push(link.0);
        }
        if flow.path.count == 0 {
            flow.rate = flow.rate_max.expect("a flow without links and limit never moves");
        }
        self.queue.update(id.slot, flow.end());
    }

    fn leave(&mut self, now: Instant, id: FlowId) {
        self.settle(now, id);
        self.note(id);
        for link in self.flows[id.slot as usize].path.iter() {
            let real = &mut self.links[link.0 as usize];
            let place = real.flows.binary_search(&id).expect("a moving flow is on its links");
            real.flows.remove(place);
            if real.flows.is_empty() {
                real.busy_ns += now.ns_since(real.busy_since);
            } else {
                self.changed.push(link.0);
            }
        }
    }

    fn release(&mut self, id: FlowId) {
        self.queue.remove(id.slot);
        self.flows[id.slot as usize].ordinal = ENDED;
        self.free.push(id.slot);
    }

    fn is_live(&self, id: FlowId) -> bool {
        self.flows[id.slot as usize].ordinal == id.ordinal
    }

    fn expect_advanced(&self, now: Instant) {
        assert!(self.next().is_none_or(|at| at >= now), "advance to {now} first");
    }
}

impl LinkUse {
    /// Bytes carried per thousand that could have been, 0 for a link that could carry none.
    #[must_use]
    pub fn per_mille(&self) -> u32 {
        (u128::from(self.bytes) * 1000).checked_div(u128::from(self.bytes_max)).unwrap_or(0) as u32
    }
}

const RATE_MAX: u64 = 1 << 63;
const ENDED: u64 = u64::MAX;
