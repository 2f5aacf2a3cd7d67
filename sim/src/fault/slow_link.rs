//! A link carries less than it should, or nothing: a bad cable that retrains, a congested fabric, a switch that pauses
//! (PFC). Also the plain change of a rate.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::places::{Places, Wrong};
use super::{Fault, Speed, links};
use crate::node::Serve;
use crate::units::{BytesPerSecond, Span};
use crate::world::WorldOf;

/// A slow link.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlowLink {
    /// Its name as in the report, such as `w0.nic.out` or `fabric`; `w0.nic` is both directions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// Instead: index of the worker whose link it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<u32>,
    /// Which of the worker's links: `nic` (by default), `nic.in`, `nic.out`, `nvlink`, `h2d`, `d2h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub side: Option<String>,
    /// How fast it still is: 0.1 is a tenth, 0 is stopped.
    pub factor: Speed,
    /// For how long; for good if none.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Span>,
}

/// A link gets another rate for good.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetLink {
    /// Its name as in the report.
    pub link: String,
    /// What it carries from here on, such as `"10GB/s"`.
    pub rate: BytesPerSecond,
}

/// The name of the link that the keys mean.
pub(super) fn name(link: Option<&str>, worker: Option<u32>, side: Option<&str>) -> Result<String, Wrong> {
    match (link, worker, side) {
        (Some(link), None, None) => Ok(link.to_owned()),
        (None, Some(worker), side) => Ok(format!("w{worker}.{}", side.unwrap_or("nic"))),
        (Some(_), Some(_), _) => Err(Wrong::new("link", "link and worker name links in two ways; keep one")),
        (_, None, Some(_)) => Err(Wrong::new("side", "side is a key beside worker; say whose")),
        (None, None, None) => Err(Wrong::new("do", "which link? Say link = NAME, or worker = N and side = NAME")),
    }
}

impl SlowLink {
    fn name(&self) -> Result<String, Wrong> {
        name(self.link.as_deref(), self.worker, self.side.as_deref())
    }
}

impl Fault for SlowLink {
    fn check(&self, places: &Places) -> Result<(), Wrong> {
        if self.factor.is_stopped() && self.lasts.is_none() {
            // A copy or a push that never ends holds its pages for ever, here as in reality.
            return Err(Wrong::new(
                "factor",
                "factor is 0, so say for how long (for = \"10s\"): nothing on it would end",
            ));
        }
        places.links(if self.link.is_some() { "link" } else { "worker" }, &self.name()?)
    }

    fn lasts(&self) -> Option<Duration> {
        self.lasts.map(|span| span.0)
    }

    fn begin<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        let links = self.name().map_or_else(|_| Vec::new(), |name| links::named(world, &name));
        world.fabric.hits.add(line, links.len() as u64);
        links::slow(world, line, &links, self.factor);
    }

    fn end<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        links::restore(world, line);
    }
}

impl Fault for SetLink {
    fn check(&self, places: &Places) -> Result<(), Wrong> {
        if self.rate.0 == 0 {
            return Err(Wrong::new("rate", "rate is 0; a link that stops for a while is a slow_link of factor 0"));
        }
        places.links("link", &self.link)
    }

    fn begin<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        let links = links::named(world, &self.link);
        world.fabric.hits.add(line, links.len() as u64);
        links::set_own(world, &links, self.rate.0);
    }
}
