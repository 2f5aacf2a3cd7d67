//! Bits of stored objects flip while nobody looks. The checksum of an object gives it away to a reader.

use pd_core::id::PageKey;
use pd_core::rng::Stream;
use serde::{Deserialize, Serialize};

use super::places::{Places, Wrong};
use super::store_damage::Which;
use super::{Fault, Share};
use crate::node::Serve;
use crate::world::WorldOf;

/// Objects that rot.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BitRot {
    /// Index of the store.
    #[serde(default)]
    pub store: u32,
    /// Of the objects meant.
    #[serde(default)]
    pub share: Share,
    /// Those of the prompt of this request (its ordinal, by arrival); all of the store by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<u64>,
    /// Its full pages from the first of these to before the second; all of them by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pages: Option<[u32; 2]>,
}

impl BitRot {
    fn which(&self) -> Which {
        let every = self.request.is_none().then_some(1);
        Which { store: self.store, request: self.request, pages: self.pages, every }
    }
}

impl Fault for BitRot {
    fn check(&self, places: &Places) -> Result<(), Wrong> {
        self.which().check(places)
    }

    fn begin<M: Serve>(&self, world: &mut WorldOf<M>, line: u32) {
        let keys: Vec<PageKey> = self.which().keys(world);
        for key in keys {
            if self.share.draw(world.faults.rng(line, Stream::BitRot)) {
                let was_there = world.fabric.depots[self.store as usize].store.tear(key);
                world.fabric.hits.add(line, u64::from(was_there));
            }
        }
    }
}
