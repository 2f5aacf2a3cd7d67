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

use std::collections::{BTreeMap, VecDeque};

use pd_core::id::PageKey;
use pd_core::rng::Rng;
use pd_core::table::Table;

/// An object store of pages.
#[derive(Debug)]
pub struct Store {
    /// Places of objects; those in `free` are of the namespace [`FREE`].
    places: Vec<Place>,
    free: Vec<u32>,
    /// From key to place.
    table: Table,
    /// Objects whose KV is that of another page: faults only.
    strange: BTreeMap<PageKey, PageKey>,
    /// Root keys that objects name by their place here.
    namespaces: Vec<PageKey>,
    /// Writes by number, some of which may be removed or replaced by now; see [`Self::is_volatile`].
    written: VecDeque<(u64, PageKey)>,
    /// Objects that no fsync has covered.
    volatile: u64,
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
    /// Its size.
    pub bytes: u64,
    /// What its header tells a reader.
    pub state: ObjectState,
    /// The page whose KV a reader really gets; differs from the key only after a fault.
    pub content: PageKey,
    /// True once an fsync has covered it.
    pub durable: bool,
}

/// A stored page as it is kept: stores of a large deployment hold millions.
#[derive(Clone, Copy, Debug)]
struct Place {
    key: PageKey,
    bytes: u64,
    put: u64,
    /// When it was last touched, or the chain that it was put behind.
    used: u64,
    /// Pages between it and the one that was last touched.
    behind: u32,
    /// Index in the list of namespaces, or [`FREE`].
    namespace: u16,
    state: ObjectState,
    durable: bool,
}

impl Place {
    /// Larger is later; an object is older than what it was put behind.
    fn recency(&self) -> u64 {
        self.used << BEHIND_BITS | ((1 << BEHIND_BITS) - 1 - u64::from(self.behind).min((1 << BEHIND_BITS) - 1))
    }
}

const FREE: u16 = u16::MAX;

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

impl Default for Store {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Store {
    /// An empty store; puts beyond `bytes_max` are refused.
    #[must_use]
    pub fn new(bytes_max: Option<u64>) -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
            table: Table::new(0),
            strange: BTreeMap::new(),
            namespaces: Vec::new(),
            written: VecDeque::new(),
            volatile: 0,
            puts: 0,
            uses: 0,
            bytes: 0,
            bytes_max,
        }
    }

    /// Writes a page. True if it was written; false if an intact object of this page was there and stays as it is.
    ///
    /// # Errors
    /// If there is no room.
    pub fn put(&mut self, key: PageKey, parent: PageKey, namespace: PageKey, bytes: u64) -> Result<bool, Full> {
        let present = self.place(key);
        if present.is_some_and(|present| self.check(present, namespace).is_ok()) {
            return Ok(false);
        }
        let replaced = present.map_or(0, |present| present.bytes);
        let bytes_after = (self.bytes - replaced).checked_add(bytes).ok_or(Full)?;
        if self.bytes_max.is_some_and(|max| bytes_after > max) {
            return Err(Full);
        }
        if present.is_some() {
            self.remove(key);
        }
        self.bytes = bytes_after;
        let put = self.puts;
        self.puts += 1;
        self.written.push_back((put, key));
        self.volatile += 1;
        let (used, behind) = match self.place(parent) {
            Some(parent) => (parent.used, parent.behind + 1),
            None => {
                self.uses += 1;
                (self.uses, 0)
            }
        };
        let namespace = self.namespaces.iter().position(|known| *known == namespace).unwrap_or_else(|| {
            self.namespaces.push(namespace);
            self.namespaces.len() - 1
        }) as u16;
        let place = Place { key, bytes, put, used, behind, namespace, state: ObjectState::Intact, durable: false };
        let at = match self.free.pop() {
            Some(at) => {
                self.places[at as usize] = place;
                at
            }
            None => {
                self.places.push(place);
                self.places.len() as u32 - 1
            }
        };
        self.table.insert(key, at);
        Ok(true)
    }

    /// Notes that objects were used, the most recent use first.
    pub fn touch(&mut self, keys: &[PageKey]) {
        for &key in keys.iter().rev() {
            let used = self.uses + 1;
            if self.change(key, |place| (place.used, place.behind) = (used, 0)) {
                self.uses = used;
            }
        }
    }

    /// What a read of `key` finds. The KV it gets is that of `content`.
    ///
    /// # Errors
    /// If there is nothing that the reader would accept.
    #[inline]
    pub fn get(&self, key: PageKey, namespace: PageKey) -> Result<Object, StoreFault> {
        let place = self.place(key).ok_or(StoreFault::Missing)?;
        self.check(place, namespace).map(|()| self.object_of(place))
    }

    /// True if there is an object under `key`, readable or not.
    #[must_use]
    pub fn contains(&self, key: PageKey) -> bool {
        self.find(key).is_some()
    }

    /// The object as it is, without a reader's checks.
    #[must_use]
    pub fn object(&self, key: PageKey) -> Option<Object> {
        self.place(key).map(|place| self.object_of(place))
    }

    /// Deletes an object; true if there was one.
    pub fn remove(&mut self, key: PageKey) -> bool {
        let Some(at) = self.find(key) else { return false };
        self.table.remove(key, |at| self.places[at as usize].key);
        self.free.push(at);
        self.strange.remove(&key);
        let Place { durable, bytes, ref mut namespace, .. } = self.places[at as usize];
        *namespace = FREE;
        self.volatile -= u64::from(!durable);
        self.bytes -= bytes;
        true
    }

    /// Deletes everything; returns how many objects there were.
    pub fn wipe(&mut self) -> u64 {
        let count = self.count();
        *self = Self { puts: self.puts, uses: self.uses, ..Self::new(self.bytes_max) };
        count
    }

    /// Looks at up to `max` objects behind `after` in key order and lists those readable in `namespace`.
    #[must_use]
    pub fn scan(&self, namespace: PageKey, after: Option<PageKey>, max: u32) -> ScanPage {
        let mut page = ScanPage { next: after, ..ScanPage::default() };
        let mut places: Vec<&Place> =
            self.places().filter(|place| after.is_none_or(|after| place.key > after)).collect();
        let is_last = places.len() <= max as usize;
        if !is_last {
            // The least ones only: scans are rare, puts are not, so that nothing is kept in order.
            places.select_nth_unstable_by_key(max as usize, |place| place.key);
            places.truncate(max as usize);
        }
        places.sort_unstable_by_key(|place| place.key);
        for place in places {
            page.next = Some(place.key);
            match self.check(place, namespace) {
                Ok(()) => page.keys.push((place.key, place.recency())),
                Err(StoreFault::Torn) => page.torn += 1,
                Err(StoreFault::Foreign | StoreFault::Missing) => page.foreign += 1,
            }
        }
        if is_last {
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
        let mut covered = 0;
        while let Some(&(put, key)) = self.written.front()
            && put < mark
        {
            self.written.pop_front();
            if self.is_volatile(put, key) {
                self.change(key, |place| place.durable = true);
                covered += 1;
            }
        }
        self.volatile -= u64::from(covered);
        covered
    }

    /// Cuts an object short; true if there is one.
    pub fn tear(&mut self, key: PageKey) -> bool {
        self.change(key, |place| place.state = ObjectState::Torn)
    }

    /// Cuts an object to `bytes`, if it is longer; true if it was.
    pub fn cut(&mut self, key: PageKey, bytes: u64) -> bool {
        let Some(cut) = self.place(key).and_then(|place| place.bytes.checked_sub(bytes)).filter(|cut| *cut > 0) else {
            return false;
        };
        self.bytes -= cut;
        self.change(key, |place| (place.state, place.bytes) = (ObjectState::Torn, bytes))
    }

    /// Puts the KV of `content` under `key` with a header that says so: a misdirected write; true if there was one.
    pub fn misdirect(&mut self, key: PageKey, content: PageKey) -> bool {
        self.corrupt(key, content) && self.change(key, |place| place.state = ObjectState::Foreign)
    }

    /// Puts the KV of `content` under `key` where no header or checksum shows it; true if there was an object.
    pub fn corrupt(&mut self, key: PageKey, content: PageKey) -> bool {
        let is_there = self.contains(key);
        if content == key {
            self.strange.remove(&key);
        } else if is_there {
            self.strange.insert(key, content);
        }
        is_there
    }

    /// Power fails: each object that is not durable is kept, torn or dropped with equal chances, in order of writing.
    pub fn crash(&mut self, rng: &mut Rng) -> CrashReport {
        let mut report = CrashReport::default();
        for (put, key) in std::mem::take(&mut self.written) {
            if !self.is_volatile(put, key) {
                continue;
            }
            let fate = rng.below(3);
            if fate == 2 {
                report.dropped += 1;
                self.remove(key);
                continue;
            }
            self.volatile -= 1;
            self.change(key, |place| place.durable = true);
            if fate == 1 {
                report.torn += 1;
                self.tear(key);
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
        u64::from(self.table.count())
    }

    /// Objects that a crash may take.
    #[must_use]
    pub fn volatile_count(&self) -> u64 {
        self.volatile
    }

    /// All objects in key order.
    pub fn iter(&self) -> impl Iterator<Item = (PageKey, Object)> {
        let mut places: Vec<&Place> = self.places().collect();
        places.sort_unstable_by_key(|place| place.key);
        places.into_iter().map(|place| (place.key, self.object_of(place)))
    }

    /// What a reader of `namespace` makes of an object.
    #[inline]
    fn check(&self, place: &Place, namespace: PageKey) -> Result<(), StoreFault> {
        match place.state {
            ObjectState::Torn => Err(StoreFault::Torn),
            ObjectState::Foreign => Err(StoreFault::Foreign),
            ObjectState::Intact if self.namespaces[usize::from(place.namespace)] != namespace => {
                Err(StoreFault::Foreign)
            }
            ObjectState::Intact => Ok(()),
        }
    }

    /// All that hold an object, in no order that means anything.
    fn places(&self) -> impl Iterator<Item = &Place> {
        self.places.iter().filter(|place| place.namespace != FREE)
    }

    fn object_of(&self, place: &Place) -> Object {
        Object {
            namespace: self.namespaces[usize::from(place.namespace)],
            bytes: place.bytes,
            state: place.state,
            content: self.strange.get(&place.key).copied().unwrap_or(place.key),
            durable: place.durable,
        }
    }

    /// True if a write is still there and no fsync has covered it.
    fn is_volatile(&self, put: u64, key: PageKey) -> bool {
        self.place(key).is_some_and(|place| place.put == put && !place.durable)
    }

    #[inline]
    fn place(&self, key: PageKey) -> Option<&Place> {
        self.find(key).map(|at| &self.places[at as usize])
    }

    #[inline]
    fn find(&self, key: PageKey) -> Option<u32> {
        self.table.find(key, |at| self.places[at as usize].key)
    }

    fn change(&mut self, key: PageKey, change: impl FnOnce(&mut Place)) -> bool {
        self.find(key).map(|at| change(&mut self.places[at as usize])).is_some()
    }
}

#[cfg(test)]
mod tests;
