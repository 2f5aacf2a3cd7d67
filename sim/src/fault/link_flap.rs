//! A link comes and goes: down for half of each period, up for the other half, beginning with down.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::places::{Places, Wrong, some_time};
use super::{Fault, Speed, links, slow_link};
use crate::lane::Mark;
use crate::node::Serve;
use crate::units::Span;
use crate::world::WorldOf;

/// A link that flaps.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkFlap {
    /// Its name as in the report, such as `w0.nic.out`; `w0.nic` is both directions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// Instead: index of the worker whose link it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<u32>,
    /// Which of the worker's links: `nic` (by default), `nic.in`, `nic.out`, `nvlink`, `h2d`, `d2h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub side: Option<String>,
    /// From one going down to the next.
    #[serde(default = "one_second")]
    pub period: Span,
    /// For how long.
    #[serde(rename = "for")]
    pub lasts: Span,
}

const fn one_second() -> Span {
    Span::seconds(1)
}

impl LinkFlap {
    fn name(&self) -> Result<String, Wrong> {
        slow_link::name(self.link.as_deref(), self.worker, self.side.as_deref())
    }

    fn go_down<M: Serve>(&self, world: &mut WorldOf<M>, line: u32, turn: u32) {
        let links = self.name().map_or_else(|_| Vec::new(), |name| links::named(world, &name));
        world.fabric.hits.add(line, links.len() as u64);
        links::slow(world, line, &links, Speed::STOPPED);
        let next = world.now.after_ns((self.period.ns() / 2).max(1));
        world.fabric.heap.push(next, Mark::Again { line, turn: turn + 1 });
    }
}

impl Fault for LinkFlap {
    fn check(&self, places: &Places) -> Result<(), Wrong> {
        some_time("period", self.period.0)?;
        if self.lasts.ns() / self.period.ns() > FLAPS_MAX {
            return Err(Wrong::new("period", format!("that is more than {FLAPS_MAX} flaps; make period longer")));
        }
        places.links(if self.link.is_some() { "link" } else { "worker" }, &self.name()?)
    }

    fn lasts(&self) -> Option<Duration> {
        Some(self.lasts.0)
    }

    fn begin<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        self.go_down(world, line, 0);
    }

    fn again<M: Serve>(&self, world: &mut WorldOf<M>, line: u32, turn: u32) {
        let at = world.script[line as usize].0;
        if world.now >= at + self.lasts.0 {
            return;
        }
        if turn.is_multiple_of(2) {
            self.go_down(world, line, turn);
        } else {
            links::restore(world, line);
            let next = world.now.after_ns((self.period.ns() - self.period.ns() / 2).max(1));
            world.fabric.heap.push(next, Mark::Again { line, turn: turn + 1 });
        }
    }

    fn end<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        links::restore(world, line);
    }
}

/// Most flaps of a line: the run handles each of them.
const FLAPS_MAX: u64 = 1_000_000;
