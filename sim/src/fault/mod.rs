//! What happens to a deployment besides its load: faults, orders of an operator, clients that go away.
//!
//! Each fault is a file: its keys, its effect on the world, and what it models. This file holds what they share: the
//! list of them, the checks of what they name, and the state of those that last.
//!
//! ```text
//!   script:  at ──begin──▶ active ──`for` is over──▶ end
//!                            │ again (flaps, bursts)
//! ```
//!
//! 1. All of them are data: a script is the same in TOML, in code and in a dumped failure.
//! 2. Whatever is drawn comes from a stream of the fault's kind and its line, so a line more or less moves no other.
//! 3. A world without faults takes the very steps that it took before there were any.
//! 4. A line that hit nothing is counted, so that a scenario whose fault missed does not pass for one that survived it.

mod bit_rot;
mod bootstrap_late;
mod bootstrap_restart;
mod cancel;
mod cancel_all;
mod clock_skew;
mod crash;
mod delay;
mod disk_error;
mod disk_full;
mod drop;
mod duplicate;
mod failed_copy;
mod failed_step;
mod keys;
mod link_flap;
mod links;
mod lost_peer;
mod misdirected_write;
mod nonsense;
mod order;
mod partition;
mod places;
mod post;
mod registry;
mod reorder;
mod restart;
mod router_restart;
mod slow_disk;
mod slow_gpu;
mod slow_link;
mod store_damage;
mod stores;
mod stray;
mod stuck_gpu;
#[cfg(test)]
mod tests;
mod torn_write;
mod wires;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pd_core::event::Control;
use pd_core::id::RequestId;
use pd_core::rng::{Rng, Stream};
use serde::{Deserialize, Serialize};

pub use self::bit_rot::BitRot;
pub use self::bootstrap_late::BootstrapLate;
pub use self::bootstrap_restart::BootstrapRestart;
pub use self::cancel::Cancel;
pub use self::cancel_all::CancelAll;
pub(crate) use self::clock_skew::Clock;
pub use self::clock_skew::ClockSkew;
pub use self::crash::Crash;
pub use self::delay::Delay;
pub use self::disk_error::DiskError;
pub use self::disk_full::DiskFull;
pub use self::drop::Drop;
pub use self::duplicate::Duplicate;
pub use self::failed_copy::FailedCopy;
pub use self::failed_step::FailedStep;
pub use self::keys::{Peer, Share, Speed};
pub use self::link_flap::LinkFlap;
pub use self::lost_peer::LostPeer;
pub use self::misdirected_write::MisdirectedWrite;
pub use self::nonsense::Nonsense;
pub use self::order::Order;
pub use self::partition::Partition;
pub use self::places::{Places, Wrong};
pub(crate) use self::post::{Class, Parcel, ROUTER, reporter, sender};
pub use self::reorder::Reorder;
pub use self::restart::{Change, Restart};
pub use self::router_restart::RouterRestart;
pub use self::slow_disk::SlowDisk;
pub use self::slow_gpu::SlowGpu;
pub use self::slow_link::{SetLink, SlowLink};
pub use self::store_damage::{StoreRemove, StoreTear, StoreWipe};
pub(crate) use self::stores::{StoreFaults, Written};
pub use self::stray::Stray;
pub(crate) use self::stray::{Astray, astray};
pub use self::stuck_gpu::StuckGpu;
pub use self::torn_write::TornWrite;

use crate::node::Serve;
use crate::world::WorldOf;

/// Something that the script does at its time; `do` names it in TOML.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Action {
    /// The process of a worker ends and starts again.
    Restart(Restart),
    /// The machine of a worker fails.
    Crash(Crash),
    /// Nothing gets through between a worker and others.
    Partition(Partition),
    /// Messages vanish.
    Drop(Drop),
    /// Messages come twice.
    Duplicate(Duplicate),
    /// Messages are overtaken by later ones.
    Reorder(Reorder),
    /// Messages are late.
    Delay(Delay),
    /// A link carries less, or nothing.
    SlowLink(SlowLink),
    /// A link comes and goes.
    LinkFlap(LinkFlap),
    /// A link has another rate from here on.
    SetLink(SetLink),
    /// A disk is slow.
    SlowDisk(SlowDisk),
    /// A disk takes no more.
    DiskFull(DiskFull),
    /// Reads and writes of a disk fail.
    DiskError(DiskError),
    /// Writes are cut short.
    TornWrite(TornWrite),
    /// What is stored changes by itself.
    BitRot(BitRot),
    /// Writes land under another name.
    MisdirectedWrite(MisdirectedWrite),
    /// Pages vanish from a store behind everybody's back.
    StoreRemove(StoreRemove),
    /// Objects are cut short.
    StoreTear(StoreTear),
    /// Everything vanishes from a store.
    StoreWipe(StoreWipe),
    /// The connection between two workers breaks and comes back.
    LostPeer(LostPeer),
    /// The bootstrap registry comes up late.
    BootstrapLate(BootstrapLate),
    /// The bootstrap registry restarts and has forgotten everybody.
    BootstrapRestart(BootstrapRestart),
    /// The router restarts and has forgotten everything.
    RouterRestart(RouterRestart),
    /// The clock of a worker is off.
    ClockSkew(ClockSkew),
    /// No forward ends for a while.
    StuckGpu(StuckGpu),
    /// Forwards take longer.
    SlowGpu(SlowGpu),
    /// A forward fails.
    FailedStep(FailedStep),
    /// A copy between L1 and L2 fails.
    FailedCopy(FailedCopy),
    /// The client of a request goes away.
    Cancel(Cancel),
    /// Many clients go away at once.
    CancelAll(CancelAll),
    /// A peer says things that make no sense.
    Nonsense(Nonsense),
    /// Messages of another attempt or about another prompt.
    Stray(Stray),
    /// L1 and L2 are forgotten.
    Flush(Order),
    /// L3 is used again.
    AttachStorage(Order),
    /// L3 is no longer used.
    DetachStorage(Order),
    /// L3 is emptied by the worker.
    ClearStorage(Order),
    /// The worker takes no new requests.
    Drain(Order),
}

/// What each kind of action can do. Times, workers and stores have been checked when it begins.
pub(crate) trait Fault {
    /// Holds what it names against what there is.
    ///
    /// # Errors
    /// What is wrong, and the key.
    fn check(&self, places: &Places) -> Result<(), Wrong>;
    /// For how long it lasts; for good, or no time at all, if none.
    fn lasts(&self) -> Option<Duration> {
        None
    }
    /// Its time has come.
    fn begin<M: Serve>(&self, world: &mut WorldOf<M>, line: u32);
    /// It is over.
    fn end<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        let _ = (world, line);
    }
    /// A time that it set itself has come; turns count from 1.
    fn again<M: Serve>(&self, world: &mut WorldOf<M>, line: u32, turn: u32) {
        let _ = (world, line, turn);
    }
}

/// The same for each kind.
macro_rules! each {
    ($action:expr, $fault:ident, $order:ident, $control:ident => $body:expr, $ordered:expr) => {
        match $action {
            Action::Restart($fault) => $body,
            Action::Crash($fault) => $body,
            Action::Partition($fault) => $body,
            Action::Drop($fault) => $body,
            Action::Duplicate($fault) => $body,
            Action::Reorder($fault) => $body,
            Action::Delay($fault) => $body,
            Action::SlowLink($fault) => $body,
            Action::LinkFlap($fault) => $body,
            Action::SetLink($fault) => $body,
            Action::SlowDisk($fault) => $body,
            Action::DiskFull($fault) => $body,
            Action::DiskError($fault) => $body,
            Action::TornWrite($fault) => $body,
            Action::BitRot($fault) => $body,
            Action::MisdirectedWrite($fault) => $body,
            Action::StoreRemove($fault) => $body,
            Action::StoreTear($fault) => $body,
            Action::StoreWipe($fault) => $body,
            Action::LostPeer($fault) => $body,
            Action::BootstrapLate($fault) => $body,
            Action::BootstrapRestart($fault) => $body,
            Action::RouterRestart($fault) => $body,
            Action::ClockSkew($fault) => $body,
            Action::StuckGpu($fault) => $body,
            Action::SlowGpu($fault) => $body,
            Action::FailedStep($fault) => $body,
            Action::FailedCopy($fault) => $body,
            Action::Cancel($fault) => $body,
            Action::CancelAll($fault) => $body,
            Action::Nonsense($fault) => $body,
            Action::Stray($fault) => $body,
            Action::Flush($order) => {
                let $control = Control::Flush;
                $ordered
            }
            Action::AttachStorage($order) => {
                let $control = Control::AttachStorage;
                $ordered
            }
            Action::DetachStorage($order) => {
                let $control = Control::DetachStorage;
                $ordered
            }
            Action::ClearStorage($order) => {
                let $control = Control::ClearStorage;
                $ordered
            }
            Action::Drain($order) => {
                let $control = Control::Drain;
                $ordered
            }
        }
    };
}

impl Action {
    /// Holds what it names against what there is.
    ///
    /// # Errors
    /// What is wrong, and the key.
    pub fn check(&self, places: &Places) -> Result<(), Wrong> {
        each!(self, fault, order, _control => fault.check(places), order.check(places))
    }

    /// For how long it lasts; for good, or no time at all, if none.
    #[must_use]
    pub fn lasts(&self) -> Option<Duration> {
        each!(self, fault, _order, _control => fault.lasts(), None)
    }

    /// Whom it concerns, and what it does: its keys as a scenario spells them.
    #[must_use]
    pub fn describe(&self) -> (Option<u32>, String) {
        let table = toml::Table::try_from(self).unwrap_or_default();
        let worker = table.get("worker").and_then(toml::Value::as_integer);
        let keys = table.iter().filter(|(key, _)| *key != "do").map(|(key, value)| format!("{key} {value}"));
        let keys: Vec<String> = keys.collect();
        let name = self.name().replace('_', " ");
        let text = if keys.is_empty() { name } else { format!("{name} ({})", keys.join(", ")) };
        (worker.and_then(|worker| u32::try_from(worker).ok()), text)
    }

    /// Its name behind `do` in TOML.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Restart(_) => "restart",
            Self::Crash(_) => "crash",
            Self::Partition(_) => "partition",
            Self::Drop(_) => "drop",
            Self::Duplicate(_) => "duplicate",
            Self::Reorder(_) => "reorder",
            Self::Delay(_) => "delay",
            Self::SlowLink(_) => "slow_link",
            Self::LinkFlap(_) => "link_flap",
            Self::SetLink(_) => "set_link",
            Self::SlowDisk(_) => "slow_disk",
            Self::DiskFull(_) => "disk_full",
            Self::DiskError(_) => "disk_error",
            Self::TornWrite(_) => "torn_write",
            Self::BitRot(_) => "bit_rot",
            Self::MisdirectedWrite(_) => "misdirected_write",
            Self::StoreRemove(_) => "store_remove",
            Self::StoreTear(_) => "store_tear",
            Self::StoreWipe(_) => "store_wipe",
            Self::LostPeer(_) => "lost_peer",
            Self::BootstrapLate(_) => "bootstrap_late",
            Self::BootstrapRestart(_) => "bootstrap_restart",
            Self::RouterRestart(_) => "router_restart",
            Self::ClockSkew(_) => "clock_skew",
            Self::StuckGpu(_) => "stuck_gpu",
            Self::SlowGpu(_) => "slow_gpu",
            Self::FailedStep(_) => "failed_step",
            Self::FailedCopy(_) => "failed_copy",
            Self::Cancel(_) => "cancel",
            Self::CancelAll(_) => "cancel_all",
            Self::Nonsense(_) => "nonsense",
            Self::Stray(_) => "stray",
            Self::Flush(_) => "flush",
            Self::AttachStorage(_) => "attach_storage",
            Self::DetachStorage(_) => "detach_storage",
            Self::ClearStorage(_) => "clear_storage",
            Self::Drain(_) => "drain",
        }
    }

    /// The request whose page keys it will ask for.
    pub(crate) fn pages_of(&self) -> Option<RequestId> {
        let request = if let Self::StoreRemove(StoreRemove { request, .. })
        | Self::StoreTear(StoreTear { request, .. })
        | Self::BitRot(BitRot { request, .. }) = self
        {
            *request
        } else {
            None
        };
        request.map(RequestId)
    }

    /// False if it changes how long forwards take, when answers arrive or what time it is, so that the steps of a
    /// worker that only decodes have to be taken one by one.
    pub(crate) const fn is_between_steps(&self) -> bool {
        match self {
            Self::Partition(_)
            | Self::Drop(_)
            | Self::Duplicate(_)
            | Self::Reorder(_)
            | Self::Delay(_)
            | Self::Stray(_)
            | Self::ClockSkew(_)
            | Self::StuckGpu(_)
            | Self::SlowGpu(_)
            | Self::FailedStep(_) => false,
            Self::Restart(_)
            | Self::Crash(_)
            | Self::SlowLink(_)
            | Self::LinkFlap(_)
            | Self::SetLink(_)
            | Self::SlowDisk(_)
            | Self::DiskFull(_)
            | Self::DiskError(_)
            | Self::TornWrite(_)
            | Self::BitRot(_)
            | Self::MisdirectedWrite(_)
            | Self::StoreRemove(_)
            | Self::StoreTear(_)
            | Self::StoreWipe(_)
            | Self::FailedCopy(_)
            | Self::LostPeer(_)
            | Self::BootstrapLate(_)
            | Self::BootstrapRestart(_)
            | Self::RouterRestart(_)
            | Self::Cancel(_)
            | Self::CancelAll(_)
            | Self::Nonsense(_)
            | Self::Flush(_)
            | Self::AttachStorage(_)
            | Self::DetachStorage(_)
            | Self::ClearStorage(_)
            | Self::Drain(_) => true,
        }
    }

    pub(crate) fn begin<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        each!(self, fault, order, control => fault.begin(world, line), order.give(control, world, line));
    }

    pub(crate) fn end<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        each!(self, fault, _order, _control => fault.end(world, line), ());
    }

    pub(crate) fn again<M: Serve>(&self, world: &mut WorldOf<M>, line: u32, turn: u32) {
        each!(self, fault, _order, _control => fault.again(world, line, turn), ());
    }
}

/// The state of the faults that last, as far as it is not that of a lane or a store.
#[derive(Debug)]
pub(crate) struct Faults {
    seed: u64,
    rngs: BTreeMap<u32, Rng>,
    pub(crate) post: post::Post,
    pub(crate) wires: wires::Wires,
    pub(crate) registry: Option<registry::Bootstrap>,
    links: links::LinkRates,
    disks: slow_disk::DiskSpeeds,
    /// Workers whose streams the router has given up, and that may come back.
    given_up: BTreeSet<u32>,
}

impl Faults {
    /// None yet; `has_registry` puts the bootstrap registry between workers.
    pub(crate) fn new(seed: u64, has_registry: bool) -> Self {
        Self {
            seed,
            rngs: BTreeMap::new(),
            post: post::Post::default(),
            wires: wires::Wires::new(has_registry),
            registry: has_registry.then(registry::Bootstrap::default),
            links: links::LinkRates::default(),
            disks: slow_disk::DiskSpeeds::default(),
            given_up: BTreeSet::new(),
        }
    }

    /// The generator of a line of the script.
    pub(crate) fn rng(&mut self, line: u32, stream: Stream) -> &mut Rng {
        self.rngs.entry(line).or_insert_with(|| Rng::new(self.seed, stream, u64::from(line)))
    }
}

/// How often each line of a script has hit anything.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Hits(BTreeMap<u32, u64>);

impl Hits {
    pub(crate) fn add(&mut self, line: u32, count: u64) {
        if count > 0 {
            *self.0.entry(line).or_default() += count;
        }
    }

    /// How often a line has hit.
    #[must_use]
    pub fn of(&self, line: u32) -> u64 {
        self.0.get(&line).copied().unwrap_or(0)
    }
}
