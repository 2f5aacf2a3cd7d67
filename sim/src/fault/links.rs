//! What links carry at present: their own rate, times the speed that each fault leaves them.

use std::collections::BTreeMap;

use super::Speed;
use super::places::is_link;
use crate::link::LinkId;
use crate::node::Serve;
use crate::world::WorldOf;

/// The slowed links and those that were.
#[derive(Debug, Default)]
pub(super) struct LinkRates {
    active: Vec<(u32, LinkId, Speed)>,
    /// Rates without faults, of the links that had one or were given another rate.
    own: BTreeMap<LinkId, u64>,
}

/// The links of this name, or the parts of it.
pub(super) fn named<M: Serve>(world: &WorldOf<M>, wanted: &str) -> Vec<LinkId> {
    let names = world.link_names.iter().zip(0..);
    names.filter(|(name, _)| is_link(name, wanted)).map(|(_, id)| LinkId(id)).collect()
}

/// A fault leaves links this speed.
pub(super) fn slow<M: Serve>(world: &mut WorldOf<M>, line: u32, links: &[LinkId], speed: Speed) {
    for link in links {
        world.faults.links.active.push((line, *link, speed));
        apply(world, *link);
    }
}

/// A fault is over.
pub(super) fn restore<M: Serve>(world: &mut WorldOf<M>, line: u32) {
    let rates = &mut world.faults.links;
    let links: Vec<LinkId> =
        rates.active.iter().filter(|(other, ..)| *other == line).map(|(_, link, _)| *link).collect();
    rates.active.retain(|(other, ..)| *other != line);
    for link in links {
        apply(world, link);
    }
}

/// Links have another rate of their own.
pub(super) fn set_own<M: Serve>(world: &mut WorldOf<M>, links: &[LinkId], bytes_per_second: u64) {
    for link in links {
        world.faults.links.own.insert(*link, bytes_per_second);
        apply(world, *link);
    }
}

fn apply<M: Serve>(world: &mut WorldOf<M>, link: LinkId) {
    let rates = &mut world.faults.links;
    let mut rate = *rates.own.entry(link).or_insert_with(|| world.fabric.links.link_rate(link));
    for (_, _, speed) in rates.active.iter().filter(|(_, other, _)| *other == link) {
        rate = speed.rate(rate);
    }
    world.fabric.links.set_rate(world.now, link, rate);
}
