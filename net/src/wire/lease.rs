//! Which attempts may write into this worker's pages. The words of the pages decide; this says whose they are.

use std::collections::BTreeMap;

use pd_core::id::{Epoch, Generation, Room, WorkerId};
use thiserror::Error;

/// Why pages were not leased. Nothing was.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum GrantError {
    /// A page is leased already, or somebody reads or writes it: its last user is not through with it.
    #[error("page {page} is in use")]
    Busy {
        /// The page.
        page: u32,
    },
    /// There is no such page.
    #[error("page {page} is beyond the {pages} pages of this worker")]
    NoPage {
        /// The page.
        page: u32,
        /// How many there are.
        pages: u32,
    },
    /// This generation has been leased before in this life, or is 0.
    #[error("generation {generation} is not new")]
    Generation {
        /// The generation.
        generation: Generation,
    },
    /// As many leases stand as may.
    #[error("{max} leases stand, which is the limit")]
    Full {
        /// The limit.
        max: u32,
    },
}

/// One attempt that may write.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    pub(super) room: Room,
    pub(super) peer: WorkerId,
    pub(super) epoch: Epoch,
    pub(super) pages: Vec<u32>,
    /// Revoked, but a write of it has been seen at work after that.
    pub(super) is_ended: bool,
}

/// All that stand, and those whose last write has not ended.
#[derive(Debug, Default)]
pub(super) struct Leases {
    all: BTreeMap<Generation, Lease>,
    newest: Generation,
}

impl Leases {
    /// Notes a lease, if its generation is new.
    pub(super) fn add(&mut self, generation: Generation, lease: Lease, max: u32) -> Result<(), GrantError> {
        if generation <= self.newest {
            return Err(GrantError::Generation { generation });
        }
        if self.all.len() >= max as usize {
            return Err(GrantError::Full { max });
        }
        self.newest = generation;
        self.all.insert(generation, lease);
        Ok(())
    }

    /// True if this life of this peer may write for the attempt.
    pub(super) fn admits(&self, room: Room, generation: Generation, peer: WorkerId, epoch: Epoch) -> bool {
        self.all
            .get(&generation)
            .is_some_and(|it| it.room == room && it.peer == peer && it.epoch == epoch && !it.is_ended)
    }

    /// Ends a lease; says which pages are to become quiet.
    pub(super) fn end(&mut self, room: Room, generation: Generation) -> Option<Vec<u32>> {
        let lease = self.all.get_mut(&generation).filter(|it| it.room == room)?;
        lease.is_ended = true;
        Some(lease.pages.clone())
    }

    /// Whose lease it is.
    pub(super) fn holder(&self, room: Room, generation: Generation) -> Option<(WorkerId, Epoch)> {
        self.all.get(&generation).filter(|it| it.room == room).map(|it| (it.peer, it.epoch))
    }

    /// The last write of a lease has ended.
    pub(super) fn remove(&mut self, generation: Generation) {
        self.all.remove(&generation);
    }

    /// The attempts for which a peer may write.
    pub(super) fn of(&self, peer: WorkerId) -> Vec<(Room, Generation)> {
        self.all.iter().filter(|(_, it)| it.peer == peer).map(|(generation, it)| (it.room, *generation)).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }
}
