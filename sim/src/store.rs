//! What an L3 store holds: pages by key, as they are on disk, whatever happens to the workers that wrote them.
//!
//! Takes no time (the disk does) and decides nothing: it answers what a read would find. A write becomes durable only by
//! an fsync that began after it ended; a crash keeps, tears or drops what is not durable.
//!
//! ```text
//!   put --> volatile --sync--> durable      tear, corrupt, misdirect: faults on either
//!              |
//!            crash --> kept | torn | dropped
//! ```

use std::collections::BTreeMap;
use std::ops::Bound;

use pd_core::id::PageKey;
use pd_core::rng::Rng;

/// An object store of pages.
#[derive(Clone, Debug, Default)]
pub struct Store {
    objects: BTreeMap<PageKey, Object>,
    /// Writes that no fsync has covered, by number.
    volatile: BTreeMap<u64, PageKey>,
    puts: u64,
    /// Counts puts and touches.
    uses: u64,
    bytes: u64,
    bytes_max: Option<u64>,
}

/// One stored page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Object {
    /// Root key of the namespace that it belongs to.
    pub namespace: PageKey,
    /// The page before it, or the root.
    pub parent: PageKey,
    /// Its size.
    pub bytes: u64,
    /// What its header tells a reader.
    pub state: ObjectState,
    /// The page whose KV a reader really gets; differs from the key only after a fault.
    pub content: PageKey,
    /// True once an fsync has covered it.
    pub durable: bool,
    put: u64,
    /// When it was last touched, or the chain that it was put behind.
    used: u64,
    /// Pages between it and the one that was last touched.
    behind: u64,
}

impl Object {
    /// Larger is later; an object is older than what it was put behind.
    fn recency(&self) -> u64 {
        self.used << BEHIND_BITS | ((1 << BEHIND_BITS) - 1 - self.behind.min((1 << BEHIND_BITS) - 1))
    }
}

/// Bits of a recency for the distance from what was touched last.
const BEHIND_BITS: u32 = 20;

/// What the header and checksum of an object tell a reader.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ObjectState {
    /// Header and checksum are right.
    Intact,
    /// Shorter than its header says, or the checksum is wrong.
    Torn,
    /// A whole object, but the header names another page.
    Foreign,
}

/// Why a read got no page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreFault {
    /// There is no such object.
    Missing,
    /// It is incomplete.
    Torn,
    /// It is of another page or namespace.
    Foreign,
}

/// The store has no room for the object; nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// A part of the list of objects. `keys`, `foreign` and `torn` add up to what was looked at.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ScanPage {
    /// Intact objects of the namespace, in key order, each with its last use as a count of uses.
    pub keys: Vec<(PageKey, u64)>,
    /// Pass as `after` to go on; none at the end.
    pub next: Option<PageKey>,
    /// Objects of other namespaces or pages, left out.
    pub foreign: u32,
    /// Torn objects, left out.
    pub torn: u32,
}

/// What a crash did to objects that were not durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CrashReport {
    /// Survived by luck.
    pub kept: u32,
    /// Are there in part.
    pub torn: u32,
    /// Are gone.
    pub dropped: u32,
}

impl Store {
    /// An empty store; puts beyond `bytes_max` are refused.
    #[must_use]
    pub fn new(bytes_max: Option<u64>) -> Self {
        Self { bytes_max, ..Self::default() }
    }

    /// Writes a page. True if it was written; false if an intact object of this page was there and stays as it is.
    ///
    /// # Errors
    /// If there is no room.
    pub fn put(&mut self, key: PageKey, parent: PageKey, namespace: PageKey, bytes: u64) -> Result<bool, Full> {
        if self.get(key, namespace).is_ok() {
            return Ok(false);
        }
        let replaced = self.objects.get(&key).map_or(0, |object| object.bytes);
        let bytes_after = (self.bytes - replaced).checked_add(bytes).ok_or(Full)?;
        if self.bytes_max.is_some_and(|max| bytes_after > max) {
            return Err(Full);
        }
        self.remove(key);
        self.bytes = bytes_after;
        let put = self.puts;
        self.puts += 1;
        self.volatile.insert(put, key);
        let (used, behind) = match self.objects.get(&parent) {
            Some(parent) => (parent.used, parent.behind + 1),
            None => {
                self.uses += 1;
                (self.uses, 0)
            }
        };
        let state = ObjectState::Intact;
        let object = Object { namespace, parent, bytes, state, content: key, durable: false, put, used, behind };
        self.objects.insert(key, object);
        Ok(true)
    }

    /// Notes that objects were used, the most recent use first.
    pub fn touch(&mut self, keys: &[PageKey]) {
        for key in keys.iter().rev() {
            if let Some(object) = self.objects.get_mut(key) {
                self.uses += 1;
                (object.used, object.behind) = (self.uses, 0);
            }
        }
    }

    /// What a read of `key` finds. The KV it gets is that of `content`.
    ///
    /// # Errors
    /// If there is nothing that the reader would accept.
    pub fn get(&self, key: PageKey, namespace: PageKey) -> Result<&Object, StoreFault> {
        let object = self.objects.get(&key).ok_or(StoreFault::Missing)?;
        match object.state {
            ObjectState::Torn => Err(StoreFault::Torn),
            ObjectState::Foreign => Err(StoreFault::Foreign),
            ObjectState::Intact if object.namespace != namespace => Err(StoreFault::Foreign),
            ObjectState::Intact => Ok(object),
        }
    }

    /// True if there is an object under `key`, readable or not.
    #[must_use]
    pub fn contains(&self, key: PageKey) -> bool {
        self.objects.contains_key(&key)
    }

    /// The object as it is, without a reader's checks.
    #[must_use]
    pub fn object(&self, key: PageKey) -> Option<&Object> {
        self.objects.get(&key)
    }

    /// Deletes an object; true if there was one.
    pub fn remove(&mut self, key: PageKey) -> bool {
        let Some(object) = self.objects.remove(&key) else { return false };
        self.volatile.remove(&object.put);
        self.bytes -= object.bytes;
        true
    }

    /// Deletes everything; returns how many objects there were.
    pub fn wipe(&mut self) -> u64 {
        let count = self.count();
        self.objects.clear();
        self.volatile.clear();
        self.bytes = 0;
        count
    }

    /// Looks at up to `max` objects behind `after` in key order and lists those readable in `namespace`.
    #[must_use]
    pub fn scan(&self, namespace: PageKey, after: Option<PageKey>, max: u32) -> ScanPage {
        let mut page = ScanPage { next: after, ..ScanPage::default() };
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut objects = self.objects.range((start, Bound::Unbounded));
        for (&key, _) in objects.by_ref().take(max as usize) {
            page.next = Some(key);
            match self.get(key, namespace) {
                Ok(object) => page.keys.push((key, object.recency())),
                Err(StoreFault::Torn) => page.torn += 1,
                Err(StoreFault::Foreign | StoreFault::Missing) => page.foreign += 1,
            }
        }
        if objects.next().is_none() {
            page.next = None;
        }
        page
    }

    /// The mark to pass to [`sync`](Self::sync) when an fsync that begins here ends.
    #[must_use]
    pub fn mark(&self) -> u64 {
        self.puts
    }

    /// An fsync has ended: everything put before `mark` is durable. Returns how many objects that were.
    pub fn sync(&mut self, mark: u64) -> u32 {
        let later = self.volatile.split_off(&mark);
        let covered = std::mem::replace(&mut self.volatile, later);
        for key in covered.values() {
            self.objects.get_mut(key).expect("a volatile object is there").durable = true;
        }
        covered.len() as u32
    }

    /// Cuts an object short; true if there is one.
    pub fn tear(&mut self, key: PageKey) -> bool {
        self.change(key, |object| object.state = ObjectState::Torn)
    }

    /// Cuts an object to `bytes`, if it is longer; true if it was.
    pub fn cut(&mut self, key: PageKey, bytes: u64) -> bool {
        let Some(object) = self.objects.get_mut(&key).filter(|object| object.bytes > bytes) else { return false };
        self.bytes -= object.bytes - bytes;
        (object.state, object.bytes) = (ObjectState::Torn, bytes);
        true
    }

    /// Puts the KV of `content` under `key` with a header that says so: a misdirected write; true if there was one.
    pub fn misdirect(&mut self, key: PageKey, content: PageKey) -> bool {
        self.change(key, |object| (object.state, object.content) = (ObjectState::Foreign, content))
    }

    /// Puts the KV of `content` under `key` where no header or checksum shows it; true if there was an object.
    pub fn corrupt(&mut self, key: PageKey, content: PageKey) -> bool {
        self.change(key, |object| object.content = content)
    }

    /// Power fails: each object that is not durable is kept, torn or dropped with equal chances, in order of writing.
    pub fn crash(&mut self, rng: &mut Rng) -> CrashReport {
        let mut report = CrashReport::default();
        for key in std::mem::take(&mut self.volatile).into_values() {
            let fate = rng.below(3);
            if fate == 2 {
                report.dropped += 1;
                self.remove(key);
                continue;
            }
            let object = self.objects.get_mut(&key).expect("a volatile object is there");
            object.durable = true;
            if fate == 1 {
                report.torn += 1;
                object.state = ObjectState::Torn;
            } else {
                report.kept += 1;
            }
        }
        report
    }

    /// Bytes of all objects.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// All objects.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.objects.len() as u64
    }

    /// Objects that a crash may take.
    #[must_use]
    pub fn volatile_count(&self) -> u64 {
        self.volatile.len() as u64
    }

    /// All objects in key order.
    pub fn iter(&self) -> impl Iterator<Item = (PageKey, &Object)> {
        self.objects.iter().map(|(key, object)| (*key, object))
    }

    fn change(&mut self, key: PageKey, change: impl FnOnce(&mut Object)) -> bool {
        self.objects.get_mut(&key).map(change).is_some()
    }
}

#[cfg(test)]
mod tests;
