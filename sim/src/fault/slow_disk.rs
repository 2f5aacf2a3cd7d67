//! A disk is slow: a rebuild, a noisy neighbour, a device that throttles. Bandwidth and IOPS shrink, latencies and fsync
//! stretch; commands under way keep their time.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::places::{Places, Wrong};
use super::{Fault, Speed};
use crate::disk::DiskSpec;
use crate::node::Serve;
use crate::units::Span;
use crate::world::WorldOf;

/// A slow disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlowDisk {
    /// Index of the store, in the order of the workers that have one.
    #[serde(default)]
    pub store: u32,
    /// How fast it still is: 0.1 is a tenth.
    pub factor: Speed,
    /// For how long; for good if none.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Span>,
}

/// How slow the disks are at present.
#[derive(Debug, Default)]
pub(super) struct DiskSpeeds {
    active: Vec<(u32, u32, Speed)>,
    /// What they can do without faults, once one was slow.
    specs: BTreeMap<u32, DiskSpec>,
}

impl Fault for SlowDisk {
    fn check(&self, places: &Places) -> Result<(), Wrong> {
        if self.factor.is_stopped() {
            return Err(Wrong::new("factor", "factor is 0; a disk that does nothing is a disk_error"));
        }
        places.store(self.store)
    }

    fn lasts(&self) -> Option<Duration> {
        self.lasts.map(|span| span.0)
    }

    fn begin<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        world.faults.disks.active.push((line, self.store, self.factor));
        world.fabric.hits.add(line, 1);
        apply(world, self.store);
    }

    fn end<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        world.faults.disks.active.retain(|(other, ..)| *other != line);
        apply(world, self.store);
    }
}

fn apply<M: Serve>(world: &mut WorldOf<M>, store: u32) {
    let disk = &mut world.fabric.depots[store as usize].disk;
    let speeds = &mut world.faults.disks;
    let mut spec = *speeds.specs.entry(store).or_insert(*disk.spec());
    for (_, _, speed) in speeds.active.iter().filter(|(_, other, _)| *other == store) {
        spec = slowed(&spec, *speed);
    }
    disk.set_spec(world.now, spec);
    world.fabric.has_disk_jobs = true;
}

fn slowed(spec: &DiskSpec, speed: Speed) -> DiskSpec {
    DiskSpec {
        read_bytes_per_second: speed.rate(spec.read_bytes_per_second).max(1),
        write_bytes_per_second: speed.rate(spec.write_bytes_per_second).max(1),
        read_iops: speed.rate(spec.read_iops).max(1),
        write_iops: speed.rate(spec.write_iops).max(1),
        read_latency_ns: speed.time(spec.read_latency_ns),
        write_latency_ns: speed.time(spec.write_latency_ns),
        queue_depth: spec.queue_depth,
        fsync_ns: speed.time(spec.fsync_ns),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_but_the_queue_gets_slower() {
        let spec = DiskSpec {
            read_bytes_per_second: 1000,
            write_bytes_per_second: 500,
            read_iops: 100,
            write_iops: 3,
            read_latency_ns: 10,
            write_latency_ns: 20,
            queue_depth: 4,
            fsync_ns: 30,
        };
        let slow = slowed(&spec, Speed::new(0.1).expect("a fraction"));
        assert_eq!((slow.read_bytes_per_second, slow.write_bytes_per_second), (100, 50));
        assert_eq!((slow.read_iops, slow.write_iops), (10, 1));
        assert_eq!((slow.read_latency_ns, slow.write_latency_ns, slow.fsync_ns), (100, 200, 300));
        assert_eq!(slow.queue_depth, 4);
    }
}
