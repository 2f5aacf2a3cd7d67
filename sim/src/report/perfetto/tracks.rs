//! The tracks of a trace: which there are, how they hang together, and which one is free.

use std::collections::{BTreeMap, BTreeSet};

use pd_core::time::Instant;

use super::proto::{Proto, track};
use crate::report::collect::{Plan, mode_name};

/// Names a track in the trace.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct TrackId(pub(super) u64);

/// What tracks hang from; Perfetto shows each as a process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Group {
    Script,
    Requests,
    Worker(u32),
    Links,
}

/// One track.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Track {
    pub(super) group: Group,
    pub(super) name: String,
    /// Counts tracks of the same name.
    pub(super) slot: u32,
    /// The unit of a counter; none for slices and instants.
    pub(super) unit: Option<&'static str>,
}

/// All tracks so far.
#[derive(Debug)]
pub(super) struct Tracks {
    names: BTreeMap<Group, String>,
    groups: BTreeMap<Group, TrackId>,
    known: BTreeMap<Track, TrackId>,
    /// When each track of a name is free again: (time, slot).
    free: BTreeMap<(Group, &'static str), BTreeSet<(Instant, u32)>>,
    next: u64,
}

impl Tracks {
    pub(super) fn new(plan: &Plan) -> Self {
        let mut names = BTreeMap::from([
            (Group::Script, "script and lives".to_owned()),
            (Group::Requests, "requests".to_owned()),
            (Group::Links, "links".to_owned()),
        ]);
        for (index, worker) in (0..).zip(&plan.workers) {
            names.insert(Group::Worker(index), format!("worker {index} ({})", mode_name(worker.mode)));
        }
        Self { names, groups: BTreeMap::new(), known: BTreeMap::new(), free: BTreeMap::new(), next: 1 }
    }

    /// A track of this name that nobody uses between `from` and `to`, which come in the order of `to`.
    pub(super) fn slot(&mut self, group: Group, name: &'static str, from: Instant, to: Instant) -> u32 {
        let free = self.free.entry((group, name)).or_default();
        // The one that has been free for the shortest time: longer gaps stay for slices that began earlier.
        let found = free.range(..=(from, u32::MAX)).next_back().copied();
        let slot = match found {
            Some(entry) => {
                free.remove(&entry);
                entry.1
            }
            None => free.len() as u32,
        };
        free.insert((to, slot));
        slot
    }

    /// The id of a track, and the descriptors of what has to be announced first.
    pub(super) fn find(&mut self, one: Track) -> (TrackId, Vec<Proto>) {
        if let Some(id) = self.known.get(&one) {
            return (*id, Vec::new());
        }
        let mut news = Vec::new();
        let parent = if let Some(id) = self.groups.get(&one.group) {
            *id
        } else {
            let id = self.name();
            let process = Proto::new()
                .int(track::PROCESS_PID, pid(one.group))
                .text(track::PROCESS_NAME, self.names.get(&one.group).map_or("", String::as_str));
            news.push(
                Proto::new()
                    .int(track::UUID, id.0)
                    .message(track::PROCESS, &process)
                    .int(track::CHILD_ORDERING, track::EXPLICIT),
            );
            self.groups.insert(one.group, id);
            id
        };
        let id = self.name();
        let mut descriptor = Proto::new()
            .int(track::UUID, id.0)
            .text(track::NAME, &one.name)
            .int(track::PARENT, parent.0)
            .int(track::RANK, rank(&one));
        if let Some(unit) = one.unit {
            descriptor = descriptor.message(track::COUNTER, &Proto::new().text(track::COUNTER_UNIT_NAME, unit));
        }
        news.push(descriptor);
        self.known.insert(one, id);
        (id, news)
    }

    fn name(&mut self) -> TrackId {
        self.next += 1;
        TrackId(self.next - 1)
    }
}

/// Perfetto lists processes by number.
const fn pid(group: Group) -> u64 {
    match group {
        Group::Script => 1,
        Group::Requests => 2,
        Group::Worker(index) => 10 + index as u64,
        Group::Links => 1 << 30,
    }
}

/// The place of a track in its group.
fn rank(one: &Track) -> u64 {
    const ORDER: [&str; 8] = ["scheduler", "GPU", "copy in", "copy out", "storage", "wire", "receive", "requests"];
    let place = ORDER.iter().position(|name| *name == one.name).unwrap_or(ORDER.len());
    (place as u64) << 20 | u64::from(one.slot)
}
