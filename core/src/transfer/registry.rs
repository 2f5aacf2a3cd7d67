//! Who is there: the leases that workers take on their place in the deployment.
//!
//! Used by routers, and by the bootstrap server of a prefill worker. A registration is a lease: it is renewed or it
//! ends. Geometry is checked when a worker joins, not when the first request fails (sglang #33043). Workers are told
//! apart by their id and life, never by the text of an address (port 899 is no part of 8998, S-141).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use thiserror::Error;

use crate::codec;
use crate::config::Mode;
use crate::digest::Digest;
use crate::id::{Epoch, PageKey, WorkerId};
use crate::limits::ENDPOINT_BYTES_MAX;
use crate::message::{Layout, Mismatch};
use crate::time::Instant;
use crate::transfer::layout;

/// What a worker says of itself when it joins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Registration {
    /// Its name.
    pub worker: WorkerId,
    /// Its life.
    pub epoch: Epoch,
    /// What it serves.
    pub mode: Mode,
    /// Its base namespace.
    pub root: PageKey,
    /// How its KV is cut.
    pub layout: Layout,
    /// Where peers and routers reach it.
    pub endpoint: String,
}

codec!(struct Registration { worker, epoch, mode, root, layout, endpoint });

/// Limits of a registry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RegistryConfig {
    /// How long a registration lasts without a renewal.
    pub lease: Duration,
    /// Most workers.
    pub workers_max: u32,
    /// Workers of a mode that have to be there before any of them is shown.
    pub expected: BTreeMap<Mode, u32>,
}

impl Default for RegistryConfig {
    /// Twice the time in which a silent peer is noticed, any number of workers up to a thousand.
    fn default() -> Self {
        Self { lease: Duration::from_secs(20), workers_max: 1000, expected: BTreeMap::new() }
    }
}

/// Why the registry refuses.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum RegistryError {
    /// Its KV fits none of the others.
    #[error("worker {with} is registered with other KV: {mismatch}")]
    Incompatible {
        /// A worker that it does not fit.
        with: WorkerId,
        /// In what.
        mismatch: Mismatch,
    },
    /// A later life of this worker is known.
    #[error("a later life of this worker is registered (epoch {known})")]
    OldEpoch {
        /// Its epoch.
        known: Epoch,
    },
    /// No more workers are taken.
    #[error("{max} workers are registered, which is the limit")]
    Full {
        /// The limit.
        max: u32,
    },
    /// The endpoint is empty or too long.
    #[error("an endpoint has 1 to 256 bytes; this one has {bytes}")]
    Endpoint {
        /// Its length.
        bytes: u64,
    },
    /// No such worker, or its lease has ended.
    #[error("no such worker")]
    NotFound,
    /// Not all workers that are expected are there.
    #[error("{registered} of {expected} workers are registered")]
    NotReady {
        /// How many are.
        registered: u32,
        /// How many should be.
        expected: u32,
    },
}

impl RegistryError {
    /// The status in which HTTP answers say it.
    #[must_use]
    pub const fn status(&self) -> u16 {
        match self {
            Self::Incompatible { .. } | Self::OldEpoch { .. } => 409,
            Self::Full { .. } | Self::NotReady { .. } => 503,
            Self::Endpoint { .. } => 400,
            Self::NotFound => 404,
        }
    }
}

/// All workers that have registered and keep renewing.
#[derive(Debug)]
pub struct Registry {
    config: RegistryConfig,
    workers: BTreeMap<WorkerId, Entry>,
    expiry: BTreeSet<(Instant, WorkerId)>,
}

#[derive(Debug)]
struct Entry {
    registration: Registration,
    until: Instant,
}

impl Registry {
    /// Nobody yet.
    #[must_use]
    pub const fn new(config: RegistryConfig) -> Self {
        Self { config, workers: BTreeMap::new(), expiry: BTreeSet::new() }
    }

    /// Takes a worker in, or a later life of one, or renews the lease of the same life. Says until when it lasts.
    ///
    /// # Errors
    /// [`RegistryError::Endpoint`], [`RegistryError::OldEpoch`], [`RegistryError::Incompatible`],
    /// [`RegistryError::Full`]; nothing has changed.
    pub fn register(&mut self, now: Instant, registration: Registration) -> Result<Instant, RegistryError> {
        self.expire(now);
        let bytes = registration.endpoint.len();
        if bytes == 0 || bytes > ENDPOINT_BYTES_MAX {
            return Err(RegistryError::Endpoint { bytes: bytes as u64 });
        }
        let worker = registration.worker;
        match self.workers.get(&worker) {
            Some(entry) if registration.epoch < entry.registration.epoch => {
                return Err(RegistryError::OldEpoch { known: entry.registration.epoch });
            }
            Some(_) => {}
            None if self.workers.len() >= self.config.workers_max as usize => {
                return Err(RegistryError::Full { max: self.config.workers_max });
            }
            None => {}
        }
        for entry in self.workers.values().filter(|entry| entry.registration.worker != worker) {
            if let Some(mismatch) = mismatch(&entry.registration, &registration) {
                return Err(RegistryError::Incompatible { with: entry.registration.worker, mismatch });
            }
        }
        let until = now + self.config.lease;
        self.remove(worker);
        self.workers.insert(worker, Entry { registration, until });
        self.expiry.insert((until, worker));
        Ok(until)
    }

    /// Renews the lease of a life. Says until when it lasts.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`] if the lease has ended (the worker registers again) and
    /// [`RegistryError::OldEpoch`].
    pub fn renew(&mut self, now: Instant, worker: WorkerId, epoch: Epoch) -> Result<Instant, RegistryError> {
        self.expire(now);
        let entry = self.workers.get_mut(&worker).ok_or(RegistryError::NotFound)?;
        let known = entry.registration.epoch;
        if epoch < known {
            return Err(RegistryError::OldEpoch { known });
        }
        if epoch > known {
            return Err(RegistryError::NotFound);
        }
        self.expiry.remove(&(entry.until, worker));
        entry.until = now + self.config.lease;
        self.expiry.insert((entry.until, worker));
        Ok(entry.until)
    }

    /// Lets a life go. False if it is not registered.
    pub fn leave(&mut self, worker: WorkerId, epoch: Epoch) -> bool {
        let is_it = self.workers.get(&worker).is_some_and(|entry| entry.registration.epoch == epoch);
        if is_it {
            self.remove(worker);
        }
        is_it
    }

    /// Ends the leases that were not renewed in time, and says whose.
    pub fn expire(&mut self, now: Instant) -> Vec<(WorkerId, Epoch)> {
        let mut gone = Vec::new();
        while let Some(&(until, worker)) = self.expiry.first()
            && until <= now
        {
            gone.extend(self.remove(worker));
        }
        gone
    }

    /// The workers of a mode, by id.
    ///
    /// # Errors
    /// [`RegistryError::NotReady`] while fewer are there than are expected.
    pub fn discover(&self, now: Instant, mode: Mode) -> Result<impl Iterator<Item = &Registration>, RegistryError> {
        let live = move || self.live(now).filter(move |registration| registration.mode == mode);
        let expected = self.config.expected.get(&mode).copied().unwrap_or(0);
        let registered = live().count() as u32;
        if registered < expected {
            return Err(RegistryError::NotReady { registered, expected });
        }
        Ok(live())
    }

    /// One worker.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`].
    pub fn find(&self, now: Instant, worker: WorkerId) -> Result<&Registration, RegistryError> {
        let entry = self.workers.get(&worker).filter(|entry| entry.until > now);
        entry.map(|entry| &entry.registration).ok_or(RegistryError::NotFound)
    }

    /// When the next lease ends.
    #[must_use]
    pub fn deadline(&self) -> Option<(Instant, &'static str)> {
        self.expiry.first().map(|(until, _)| (*until, "registry.lease"))
    }

    /// Feeds all state that can change the future.
    pub fn digest(&self, digest: &mut Digest) {
        for entry in self.workers.values() {
            digest.value(&entry.registration);
            digest.value(&entry.until);
        }
    }

    /// Panics on a broken invariant.
    pub fn check(&self) {
        assert_eq!(self.workers.len(), self.expiry.len(), "one lease each");
        assert!(self.workers.len() <= self.config.workers_max as usize, "more workers than the limit");
        for (worker, entry) in &self.workers {
            assert_eq!(*worker, entry.registration.worker, "a worker under another name");
            assert!(self.expiry.contains(&(entry.until, *worker)), "a lease that never ends");
        }
    }

    /// By id. Leases that have ended are not shown, whether or not anybody has called `expire`.
    fn live(&self, now: Instant) -> impl Iterator<Item = &Registration> {
        self.workers.values().filter(move |entry| entry.until > now).map(|entry| &entry.registration)
    }

    fn remove(&mut self, worker: WorkerId) -> Option<(WorkerId, Epoch)> {
        let entry = self.workers.remove(&worker)?;
        self.expiry.remove(&(entry.until, worker));
        Some((worker, entry.registration.epoch))
    }
}

/// Why two workers cannot be part of one deployment. Only ends that would exchange KV have to map their ranks.
fn mismatch(ours: &Registration, theirs: &Registration) -> Option<Mismatch> {
    let exchange = ours.mode != theirs.mode && ours.mode != Mode::Unified && theirs.mode != Mode::Unified;
    layout::mismatch(&ours.layout, &theirs.layout)
        .filter(|mismatch| exchange || !matches!(mismatch, Mismatch::TensorParallel { .. }))
        .or_else(|| (ours.root != theirs.root).then_some(Mismatch::Namespace))
}
