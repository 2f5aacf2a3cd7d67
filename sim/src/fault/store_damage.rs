//! Damage done to a store behind everybody's back: objects removed or cut short, or everything gone. What an operator
//! with `rm`, a tidy script or a replaced disk does.

use pd_core::id::{PageKey, RequestId};
use serde::{Deserialize, Serialize};

use super::Fault;
use super::places::{Places, Wrong};
use crate::node::Serve;
use crate::world::WorldOf;

/// Pages vanish.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreRemove {
    /// Index of the store.
    #[serde(default)]
    pub store: u32,
    /// Those of the prompt of this request (its ordinal, by arrival), once it has arrived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<u64>,
    /// Its full pages from the first of these to before the second; all of them by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pages: Option<[u32; 2]>,
    /// Instead: every so-manieth object in key order, from the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<u32>,
}

/// Objects are cut short.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreTear {
    /// Index of the store.
    #[serde(default)]
    pub store: u32,
    /// Those of the prompt of this request (its ordinal, by arrival), once it has arrived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<u64>,
    /// Its full pages from the first of these to before the second; all of them by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pages: Option<[u32; 2]>,
    /// Instead: every so-manieth object in key order, from the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<u32>,
}

/// Everything vanishes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreWipe {
    /// Index of the store.
    #[serde(default)]
    pub store: u32,
}

/// Which objects of a store are meant.
#[derive(Clone, Copy, Debug)]
pub(super) struct Which {
    pub(super) store: u32,
    pub(super) request: Option<u64>,
    pub(super) pages: Option<[u32; 2]>,
    pub(super) every: Option<u32>,
}

impl Which {
    pub(super) fn check(self, places: &Places) -> Result<(), Wrong> {
        places.store(self.store)?;
        match (self.request, self.pages, self.every) {
            (Some(_), Some([from, to]), None) if from >= to => Err(Wrong::new(
                "pages",
                format!("pages = [{from}, {to}] names none; the second is behind the last one"),
            )),
            (Some(_), _, None) | (None, None, Some(1..)) => Ok(()),
            (None, None, Some(0)) => Err(Wrong::new("every", "every is 0; it must be at least 1")),
            (Some(_), _, Some(_)) => Err(Wrong::new("every", "request and every name objects in two ways; keep one")),
            (None, Some(_), _) => Err(Wrong::new("pages", "pages of which request? Say request = N, too")),
            (None, None, None) => {
                Err(Wrong::new("do", "which pages? Say request = N and pages = [from, to], or every = N"))
            }
        }
    }

    /// The keys, whether or not the store has them.
    pub(super) fn keys<M: Serve>(self, world: &WorldOf<M>) -> Vec<PageKey> {
        if let Some(request) = self.request {
            let [from, to] = self.pages.unwrap_or([0, u32::MAX]);
            let keys = world.clients.keys(RequestId(request));
            return keys.get(from as usize..keys.len().min(to as usize)).unwrap_or_default().to_vec();
        }
        let store = &world.fabric.depots[self.store as usize].store;
        store.iter().map(|(key, _)| key).step_by(self.every.unwrap_or(1).max(1) as usize).collect()
    }
}

macro_rules! damage {
    ($name:ident, $do:ident) => {
        impl $name {
            fn which(&self) -> Which {
                Which { store: self.store, request: self.request, pages: self.pages, every: self.every }
            }
        }

        impl Fault for $name {
            fn check(&self, places: &Places) -> Result<(), Wrong> {
                self.which().check(places)
            }

            fn begin<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
                for key in self.which().keys(world) {
                    let was_there = world.fabric.depots[self.store as usize].store.$do(key);
                    world.fabric.hits.add(line, u64::from(was_there));
                }
            }
        }
    };
}

damage!(StoreRemove, remove);
damage!(StoreTear, tear);

impl Fault for StoreWipe {
    fn check(&self, places: &Places) -> Result<(), Wrong> {
        places.store(self.store)
    }

    fn begin<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        let objects = world.fabric.depots[self.store as usize].store.wipe();
        world.fabric.hits.add(line, objects);
    }
}
