//! One sequence from its arrival to the return of its last page, and the slab that holds all of them.
//!
//! Positions of a sequence; `prompt` and `generated` are told apart only by who supplied the tokens, and a retraction
//! moves the border to the right (`fold`):
//!
//! ```text
//!  tokens     0 ............ prompt.length ........ + generated.len()
//!             |<--- prompt --->|<---- generated ---->|
//!  committed  |=============================|              KV is there: forwards that are done
//!  computed   |=================================|          KV will be there: forwards that are launched
//!  table      [page][page][page][page][page][page][page]   covers at least `computed`
//! ```

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::cx::Cx;
use crate::event::Served;
use crate::id::{RequestId, Token};
use crate::key::page_key;
use crate::kv::{Kv, Lease};
use crate::op::{Leg, Prompt, Submit};
use crate::time::Instant;

use super::Wait;

/// Where a sequence is in its life.
///
/// ```text
///             ┌──────────── retracted, or no prefill delivers ───────────────┐
///             v                                                              │
///  submit ─> Waiting ─ admit ─> Prefilling ─ last chunk ─> Running ─> Retracting
///    │        ^  │                  │                        ^  │
///    │        │  └ sink: want ─> Receiving ─── Landed ───────┘  │
///    └> Offered                     │                           │
///     (source, no sink yet)         └ source: last chunk ─> HandingOver
///
///  any of them ─ finished, cancelled, late, failed ─> Leaving ─ no forward, no push names its pages ─> gone
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// A prefill leg whose sink has not asked yet.
    Offered,
    /// In one of the two queues.
    Waiting,
    /// A decode leg whose pages are leased to a prefill worker.
    Receiving,
    /// Admitted; part of its prompt is yet to be launched.
    Prefilling,
    /// All of its prompt is launched; decoding.
    Running,
    /// A prefill leg whose last chunk is launched.
    HandingOver,
    /// Loses its pages once no forward in flight names them.
    Retracting,
    /// Over for its client; its pages are still named by a forward or a push.
    Leaving,
}

/// A sequence and what it holds.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) request: RequestId,
    pub(super) prompt: Prompt,
    pub(super) leg: Leg,
    pub(super) limit: u32,
    pub(super) stop: Vec<Token>,
    pub(super) priority: i32,
    pub(super) deadline: Option<Instant>,
    pub(super) arrival: Instant,
    pub(super) state: State,
    /// Its number in the queue while it is [`State::Waiting`]; `None` at the front of the queue.
    pub(super) order: Option<u64>,
    /// Why it was not admitted when it was last looked at.
    pub(super) blocked: Wait,
    pub(super) lease: Option<Lease>,
    /// The account of its prompt until it can be told: a sink's when the hand-off has landed, that of one with a tail when
    /// it has met it.
    pub(super) served: Option<Box<Served>>,
    pub(super) is_announced: bool,
    /// A source's account, which goes to the sink with the hand-off.
    pub(super) announced: Option<Box<Served>>,
    /// The cache was told that it waits, for its pages or for its tail.
    pub(super) is_entered: bool,
    /// The hand-off knows it and must be told when it ends.
    pub(super) has_room: bool,
    /// A load back failed under its forward: wait for all loads before the next one.
    pub(super) holds: bool,
    /// Stands before pages that are on their way from L3, at most until then.
    pub(super) stands_until: Option<Instant>,
    /// Tokens sampled behind `prompt`.
    pub(super) generated: Vec<Token>,
    /// Tokens sampled in all; those before the last fold are in `prompt`.
    pub(super) produced: u32,
    pub(super) computed: u32,
    pub(super) committed: u32,
    /// Pages of the table that the device knows.
    pub(super) told: u32,
    /// Pages offered to the sink.
    pub(super) pushed: u32,
    /// Forwards in flight that name it.
    pub(super) flights: u32,
    /// Counts rollbacks: rows of another life say nothing.
    pub(super) life: u32,
    /// Forwards that failed under it since the last good one.
    pub(super) faults: u32,
    /// Free pages (guaranteed, expected) that it lacked when it was last looked at.
    pub(super) needs: (u64, u64),
    /// Fewer guaranteed pages than these are known not to do.
    pub(super) floor: u64,
}

impl Sequence {
    pub(super) fn new(submit: Submit, now: Instant, deadline: Option<Instant>) -> Self {
        let limit = if matches!(submit.leg, Leg::Prefill { .. }) { 1 } else { submit.limit };
        Self {
            request: submit.request,
            prompt: submit.prompt,
            leg: submit.leg,
            limit,
            stop: submit.stop,
            priority: submit.priority,
            deadline,
            arrival: now,
            state: State::Waiting,
            order: None,
            blocked: Wait::Queue,
            lease: None,
            served: None,
            is_announced: false,
            announced: None,
            is_entered: false,
            has_room: false,
            holds: false,
            stands_until: None,
            generated: Vec::new(),
            produced: 0,
            computed: 0,
            committed: 0,
            told: 0,
            pushed: 0,
            flights: 0,
            life: 0,
            faults: 0,
            needs: (0, 0),
            floor: 0,
        }
    }

    /// True for a prefill leg.
    pub(super) const fn is_source(&self) -> bool {
        matches!(self.leg, Leg::Prefill { .. })
    }

    /// True for a decode leg that has not been given up for a local prefill.
    pub(super) const fn is_sink(&self) -> bool {
        matches!(self.leg, Leg::Decode { .. })
    }

    /// Tokens that it may still produce.
    pub(super) const fn remaining(&self) -> u32 {
        self.limit - self.produced
    }

    /// Most tokens whose KV it will ever need: all but the last one sampled.
    pub(super) fn tokens_max(&self) -> u32 {
        self.prompt.length + (self.limit - (self.produced - self.generated.len() as u32)) - 1
    }

    /// Tokens to make room for at admission: the prompt, and its first decode step if there is one.
    pub(super) fn tokens_first(&self) -> u32 {
        self.tokens_max().min(self.prompt.length + 1)
    }

    /// Tokens for which it is guaranteed pages, `steps` ahead of where it is.
    pub(super) fn tokens_ahead(&self, steps: u32) -> u32 {
        self.tokens_max().min(self.prompt.length.max(self.computed).saturating_add(steps))
    }

    /// True if a decode step may be launched: its prompt is, and a token within the limit is still to be sampled.
    pub(super) fn has_step(&self) -> bool {
        self.computed >= self.prompt.length && self.computed < self.tokens_max()
    }

    /// Offers the full committed pages of the prompt to the cache.
    pub(super) fn publish(&mut self, cx: &mut Cx<'_>, kv: &mut Kv, page_size: u32) {
        let Some(lease) = &mut self.lease else { return };
        let from = lease.published_pages() as usize;
        let to = (self.committed.min(self.prompt.length) / page_size) as usize;
        if to <= from {
            return;
        }
        let missing = self.prompt.length as usize - self.prompt.tokens.len();
        let first = (from * page_size as usize).checked_sub(missing);
        let tokens = first.map_or(&[][..], |first| {
            let end = first + (to - from) * page_size as usize;
            &self.prompt.tokens[first..end]
        });
        kv.publish(cx, lease, self.prompt.root, &self.prompt.keys[from..to], tokens, self.priority);
    }

    /// False while loads are under way of which one failed under its forward.
    pub(super) fn may_go(&mut self, cx: &Cx<'_>) -> bool {
        self.holds = self.holds && self.lease().loading().iter().any(|&op| cx.ops.is_live(op));
        !self.holds
    }

    /// Makes the generated tokens part of the prompt, so that they can be published, or computed again.
    pub(super) fn fold(&mut self, page_size: u32) {
        self.prompt.length += self.generated.len() as u32;
        self.prompt.tokens.append(&mut self.generated);
        while self.prompt.keys.len() < (self.prompt.length / page_size) as usize {
            let page = self.prompt.keys.len() as u32;
            let parent = self.prompt.keys.last().copied().unwrap_or(self.prompt.root);
            let tokens = self.prompt.page(page, page_size).expect("the tail of a prompt and what follows are at hand");
            self.prompt.keys.push(page_key(parent, tokens));
        }
    }

    /// Goes back to `tokens` committed tokens: rows in flight say nothing any more, and the device is told the whole
    /// table again.
    pub(super) fn roll_back(&mut self, tokens: u32) {
        self.computed = tokens;
        self.committed = self.committed.min(tokens);
        self.told = 0;
        self.life = self.life.wrapping_add(1);
    }

    /// Has that many tokens by having taken pages that others filled; no forward names it. The device is told the whole
    /// table again, of which pages have changed.
    pub(super) fn skip_to(&mut self, tokens: u32) {
        assert!(self.flights == 0 && self.committed == self.computed, "what is before is there");
        assert!(tokens > self.computed, "pages were taken");
        self.computed = tokens;
        self.committed = tokens;
        self.told = 0;
    }

    /// Takes what an admission brought.
    pub(super) fn settle_in(&mut self, mut lease: Lease, page_size: u32) {
        self.roll_back(0);
        self.computed = lease.cached_tokens();
        self.committed = self.computed;
        self.pushed = 0;
        self.faults = 0;
        self.holds = false;
        self.stands_until = None;
        self.is_entered = lease.has_tail();
        self.needs = (0, 0);
        self.floor = 0;
        let ahead = self.remaining().min(GENERATED_RESERVED);
        self.generated.reserve(ahead as usize);
        lease.reserve(pages(self.prompt.length.saturating_add(ahead), page_size));
        self.lease = Some(lease);
    }

    /// Its pages. Only for states that have some.
    pub(super) fn lease(&self) -> &Lease {
        self.lease.as_ref().expect("an admitted sequence has a lease")
    }

    /// The same, to grow or to publish.
    pub(super) fn lease_mut(&mut self) -> &mut Lease {
        self.lease.as_mut().expect("an admitted sequence has a lease")
    }
}

/// Pages that `tokens` tokens need.
pub(super) const fn pages(tokens: u32, page_size: u32) -> u32 {
    tokens.div_ceil(page_size)
}

/// Sequences by slot. A slot is not given to another sequence before the first one is gone for good.
#[derive(Debug, Default)]
pub(super) struct Slab {
    slots: Vec<Option<Sequence>>,
    free: Vec<u32>,
}

impl Slab {
    pub(super) fn insert(&mut self, sequence: Sequence) -> u32 {
        if let Some(slot) = self.free.pop() {
            self.slots[slot as usize] = Some(sequence);
            return slot;
        }
        self.slots.push(Some(sequence));
        self.slots.len() as u32 - 1
    }

    pub(super) fn remove(&mut self, slot: u32) -> Sequence {
        self.free.push(slot);
        self.slots[slot as usize].take().expect("a slot is freed once")
    }

    pub(super) fn at(&self, slot: u32) -> &Sequence {
        self.slots[slot as usize].as_ref().expect("a slot in use is named")
    }

    pub(super) fn at_mut(&mut self, slot: u32) -> &mut Sequence {
        self.slots[slot as usize].as_mut().expect("a slot in use is named")
    }

    /// All sequences, by slot.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Sequence)> {
        self.slots.iter().enumerate().filter_map(|(slot, sequence)| Some((slot as u32, sequence.as_ref()?)))
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

/// Room for generated tokens, and for their pages in the table, that is taken at admission, so that decoding does not
/// allocate; longer answers grow by doubling.
const GENERATED_RESERVED: u32 = 8192;
