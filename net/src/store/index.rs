//! What is where: the index of a store, all of it in memory, 48 bytes a page and about 16 to find it.
//!
//! Takes what logs say entry by entry and in any order: of two records of a key the one of the larger *version* counts,
//! and a record that moved keeps its version, so that whoever reads a log twice, or two logs in another order, ends with
//! the same index. Versions and uses are counters that each process continues behind the largest it has seen.
//! ```text
//!   recency    44 bits count of uses | 20 bits (all ones minus the pages between this one and the one last used)
//! ```

use std::collections::{BTreeMap, BTreeSet};

use pd_core::id::PageKey;
use pd_core::table::Table;

use super::ScanPage;
use super::format::{Entry, SegmentId, UNIT};

/// All that is known of a store's pages.
#[derive(Debug)]
pub(super) struct Index {
    /// Those in `free` have the segment [`NOWHERE`].
    places: Vec<Place>,
    free: Vec<u32>,
    table: Table,
    roots: Vec<PageKey>,
    segments: Vec<Segment>,
    slots: BTreeMap<SegmentId, u32>,
    /// Discarded keys: all records up to the version are dead. Kept while the segment is there.
    discards: BTreeMap<PageKey, (u64, SegmentId)>,
    /// Wiped namespaces, likewise, for good.
    wipes: BTreeMap<PageKey, u64>,
    /// The largest seen.
    version: u64,
    uses: u64,
    /// Logs are read that a crash may have left with a page in two places.
    pub(super) is_loading: bool,
    /// Keys in order while somebody lists them.
    listing: Option<Listing>,
}

/// A page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) key: PageKey,
    pub(super) recency: u64,
    pub(super) version: u64,
    /// Offset and length in units.
    at: u32,
    length: u32,
    pub(super) segment: u32,
    pub(super) root: u16,
    /// A read found it damaged.
    pub(super) is_damaged: bool,
    /// Another record of the key is on the disk: a discard has to be remembered for longer.
    pub(super) has_others: bool,
}

const _: () = assert!(size_of::<Place>() == 48, "a page of the index");

impl Place {
    pub(super) const fn at(&self) -> u64 {
        self.at as u64 * UNIT
    }

    pub(super) const fn bytes(&self) -> u64 {
        self.length as u64 * UNIT
    }

    /// Offset and length in units.
    pub(super) const fn units(&self) -> (u32, u32) {
        (self.at, self.length)
    }
}

/// A file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) id: SegmentId,
    pub(super) nonce: u64,
    /// Of the file.
    pub(super) bytes: u64,
    /// Of records that count.
    pub(super) live: u64,
    pub(super) is_sealed: bool,
    /// This process may remove it.
    pub(super) is_own: bool,
    is_gone: bool,
}

#[derive(Debug)]
struct Listing {
    sorted: Vec<PageKey>,
    added: BTreeSet<PageKey>,
}

const NOWHERE: u32 = u32::MAX;

const BEHIND_BITS: u32 = 20;
const BEHIND_MAX: u64 = (1 << BEHIND_BITS) - 1;

impl Index {
    pub(super) fn new(salt: u64) -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
            table: Table::new(salt),
            roots: Vec::new(),
            segments: Vec::new(),
            slots: BTreeMap::new(),
            discards: BTreeMap::new(),
            wipes: BTreeMap::new(),
            version: 0,
            uses: 0,
            is_loading: false,
            listing: None,
        }
    }

    /// Notes a segment, or what has changed of it; its slot.
    pub(super) fn add_segment(&mut self, id: SegmentId, nonce: u64, bytes: u64, is_sealed: bool, is_own: bool) -> u32 {
        let slot = match self.slots.get(&id) {
            Some(&slot) => slot,
            None => {
                let free = self.segments.iter().position(|segment| segment.is_gone);
                let slot = free.unwrap_or(self.segments.len()) as u32;
                let segment = Segment { id, nonce, bytes, live: 0, is_sealed, is_own, is_gone: false };
                match free {
                    Some(at) => self.segments[at] = segment,
                    None => self.segments.push(segment),
                }
                self.slots.insert(id, slot);
                slot
            }
        };
        let segment = &mut self.segments[slot as usize];
        (segment.nonce, segment.bytes, segment.is_sealed, segment.is_own) = (nonce, bytes, is_sealed, is_own);
        slot
    }

    /// Forgets a segment and all that it holds; how many pages that were.
    pub(super) fn remove_segment(&mut self, id: SegmentId) -> u64 {
        let Some(slot) = self.slots.remove(&id) else { return 0 };
        let mut count = 0;
        if self.segments[slot as usize].live > 0 {
            for at in 0..self.places.len() as u32 {
                if self.places[at as usize].segment == slot {
                    self.remove_at(at);
                    count += 1;
                }
            }
        }
        self.segments[slot as usize].is_gone = true;
        self.discards.retain(|_, (_, killed)| *killed != id);
        count
    }

    /// Takes what the log of a segment says.
    pub(super) fn apply(&mut self, slot: u32, entry: Entry) {
        match entry {
            Entry::Page { key, root, version, recency, at, length } => {
                self.version = self.version.max(version);
                self.uses = self.uses.max(recency >> BEHIND_BITS);
                let is_dead = self.wipes.get(&root).is_some_and(|wiped| *wiped >= version)
                    || self.discards.get(&key).is_some_and(|(discarded, _)| *discarded >= version);
                if is_dead {
                    return;
                }
                let root = self.root_number(root);
                let (at, length) = ((at / UNIT) as u32, (u64::from(length) / UNIT) as u32);
                self.put(Place {
                    key,
                    recency,
                    version,
                    at,
                    length,
                    segment: slot,
                    root,
                    is_damaged: false,
                    has_others: false,
                });
            }
            Entry::Discard { key, version, killed } => {
                self.version = self.version.max(version);
                if self.place(key).is_some_and(|place| place.version < version) {
                    self.remove(key);
                }
                // Without the segment nothing is left that could come back.
                let known = self.discards.entry(key).or_insert((version, killed));
                let killed = if known.1 == killed { killed } else { SegmentId::ANY };
                *known = (known.0.max(version), killed);
            }
            Entry::Wipe { root, version } => {
                self.version = self.version.max(version);
                let known = self.wipes.entry(root).or_default();
                *known = version.max(*known);
                let limit = *known;
                let Some(root) = self.roots.iter().position(|known| *known == root) else { return };
                for at in 0..self.places.len() as u32 {
                    let place = self.places[at as usize];
                    if place.segment != NOWHERE && usize::from(place.root) == root && place.version < limit {
                        self.remove_at(at);
                    }
                }
            }
            Entry::Touch { key, recency } => {
                self.uses = self.uses.max(recency >> BEHIND_BITS);
                if let Some(at) = self.find(key) {
                    let place = &mut self.places[at as usize];
                    place.recency = place.recency.max(recency);
                }
            }
        }
    }

    /// Puts a place that is as it was in a snapshot.
    pub(super) fn put(&mut self, place: Place) {
        let new = place.bytes();
        match self.find(place.key) {
            Some(at) => {
                let known = self.places[at as usize];
                let is_same = known.segment == place.segment && known.at == place.at;
                // One of the same version that is met later was moved, and goes with its segment; after a crash both
                // are there.
                let has_others = known.has_others || !is_same && (known.version != place.version || self.is_loading);
                if known.version > place.version || known.version == place.version && is_same {
                    self.places[at as usize].has_others = has_others;
                    return;
                }
                self.segments[known.segment as usize].live -= known.bytes();
                self.segments[place.segment as usize].live += new;
                let recency = known.recency.max(place.recency);
                self.places[at as usize] = Place { recency, has_others, ..place };
            }
            None => {
                // What was discarded is still on the disk.
                let has_others = place.has_others || self.discards.contains_key(&place.key);
                let place = Place { has_others, ..place };
                self.segments[place.segment as usize].live += new;
                if let Some(listing) = &mut self.listing {
                    listing.added.insert(place.key);
                }
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
                self.table.insert(place.key, at);
            }
        }
    }

    /// The number of a namespace.
    pub(super) fn root_number(&mut self, root: PageKey) -> u16 {
        let known = self.roots.iter().position(|known| *known == root);
        known.unwrap_or_else(|| {
            assert!(self.roots.len() < usize::from(u16::MAX), "fewer namespaces than a store can name");
            self.roots.push(root);
            self.roots.len() - 1
        }) as u16
    }

    /// Removes keys: what to write to the log about those that were there.
    pub(super) fn discard(&mut self, keys: &[PageKey]) -> Vec<Entry> {
        let mut entries = Vec::new();
        for &key in keys {
            if let Some(place) = self.remove(key) {
                self.version += 1;
                let id = self.segments[place.segment as usize].id;
                let killed = if place.has_others { SegmentId::ANY } else { id };
                let entry = Entry::Discard { key, version: self.version, killed };
                self.apply(0, entry);
                entries.push(entry);
            }
        }
        entries
    }

    /// Removes a namespace: what to write to the log.
    pub(super) fn wipe(&mut self, root: PageKey) -> Entry {
        self.version += 1;
        let entry = Entry::Wipe { root, version: self.version };
        self.apply(0, entry);
        entry
    }

    /// Notes uses, the most recent first: what to write to the log about those that were there.
    pub(super) fn touch(&mut self, keys: &[PageKey]) -> Vec<Entry> {
        let mut entries = Vec::new();
        for &key in keys.iter().rev() {
            if let Some(at) = self.find(key) {
                self.uses += 1;
                let recency = self.uses << BEHIND_BITS | BEHIND_MAX;
                self.places[at as usize].recency = recency;
                entries.push(Entry::Touch { key, recency });
            }
        }
        entries
    }

    /// (Version, recency) of pages that are about to be written, given (key, parent) of each.
    pub(super) fn stamp(&mut self, pages: impl Iterator<Item = (PageKey, PageKey)>) -> Vec<(u64, u64)> {
        let mut known = BTreeMap::new();
        pages
            .map(|(key, parent)| {
                self.version += 1;
                let recency = match known.get(&parent).copied().or_else(|| Some(self.place(parent)?.recency)) {
                    // One page further behind what was used.
                    Some(recency) if recency & BEHIND_MAX > 0 => recency - 1,
                    Some(recency) => recency,
                    None => {
                        self.uses += 1;
                        self.uses << BEHIND_BITS | BEHIND_MAX
                    }
                };
                known.insert(key, recency);
                (self.version, recency)
            })
            .collect()
    }

    /// Notes that a read of this very record found it damaged; true if it is what the index names.
    pub(super) fn mark_damaged(&mut self, record: &Place) -> bool {
        let Some(at) = self.find(record.key) else { return false };
        let place = &mut self.places[at as usize];
        let is_it = place.segment == record.segment && place.at == record.at && place.version == record.version;
        place.is_damaged |= is_it;
        is_it
    }

    /// Looks at up to `max` pages behind `after` in key order and lists those of a namespace.
    pub(super) fn scan(&mut self, root: PageKey, after: Option<PageKey>, max: u32) -> ScanPage {
        let (places, listing) = (&self.places, &mut self.listing);
        if after.is_none() {
            *listing = None;
        }
        let listing = listing.get_or_insert_with(|| {
            let mut sorted: Vec<PageKey> =
                places.iter().filter(|place| place.segment != NOWHERE).map(|place| place.key).collect();
            sorted.sort_unstable();
            Listing { sorted, added: BTreeSet::new() }
        });
        let start = listing.sorted.partition_point(|key| after.is_some_and(|after| *key <= after));
        let bound = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let mut older = listing.sorted[start..].iter().copied().peekable();
        let mut newer = listing.added.range((bound, std::ops::Bound::Unbounded)).copied().peekable();
        let mut page = ScanPage { next: after, ..ScanPage::default() };
        let (mut looked_at, mut last) = (0, None);
        loop {
            let next = match (older.peek(), newer.peek()) {
                (Some(one), Some(two)) if two < one => newer.next(),
                (Some(_), _) => older.next(),
                (None, _) => newer.next(),
            };
            let Some(key) = next else {
                page.next = None;
                break;
            };
            // Removed by now, or added again.
            let Some(at) = self.table.find(key, |at| places[at as usize].key).filter(|_| last != Some(key)) else {
                continue;
            };
            if looked_at == max {
                break;
            }
            looked_at += 1;
            last = Some(key);
            page.next = last;
            let place = &places[at as usize];
            if self.roots[usize::from(place.root)] != root {
                page.foreign += 1;
            } else if place.is_damaged {
                page.torn += 1;
            } else {
                page.keys.push((key, place.recency));
            }
        }
        if page.next.is_none() {
            self.listing = None;
        }
        page
    }

    /// Where a page is, damaged or not.
    pub(super) fn place(&self, key: PageKey) -> Option<&Place> {
        self.find(key).map(|at| &self.places[at as usize])
    }

    /// True if a read by this namespace may succeed.
    pub(super) fn is_readable(&self, key: PageKey, root: PageKey) -> bool {
        self.place(key).is_some_and(|place| !place.is_damaged && self.roots[usize::from(place.root)] == root)
    }

    pub(super) fn root(&self, number: u16) -> PageKey {
        self.roots[usize::from(number)]
    }
    pub(super) fn roots(&self) -> &[PageKey] {
        &self.roots
    }

    pub(super) fn segment(&self, slot: u32) -> &Segment {
        &self.segments[slot as usize]
    }

    pub(super) fn slot(&self, id: SegmentId) -> Option<u32> {
        self.slots.get(&id).copied()
    }

    /// All segments by id, each with its slot.
    pub(super) fn segments(&self) -> impl Iterator<Item = (u32, &Segment)> {
        self.slots.values().map(|slot| (*slot, &self.segments[*slot as usize]))
    }

    /// Pages at these positions of an arbitrary order; positions end at [`Self::positions`].
    pub(super) fn places(&self, from: usize, to: usize) -> impl Iterator<Item = &Place> {
        self.places[from.min(self.places.len())..to.min(self.places.len())]
            .iter()
            .filter(|place| place.segment != NOWHERE)
    }

    pub(super) fn positions(&self) -> usize {
        self.places.len()
    }
    /// Pages held.
    pub(super) fn count(&self) -> u64 {
        u64::from(self.table.count())
    }

    /// Discards and wipes that still matter.
    pub(super) fn notes(&self) -> impl Iterator<Item = Entry> {
        let discards = self.discards.iter();
        let wipes = self.wipes.iter();
        discards
            .map(|(key, (version, killed))| Entry::Discard { key: *key, version: *version, killed: *killed })
            .chain(wipes.map(|(root, version)| Entry::Wipe { root: *root, version: *version }))
    }

    /// True if a note of a segment that is about to go still says something.
    pub(super) fn is_needed(&self, entry: &Entry, going: u32) -> bool {
        match *entry {
            Entry::Page { .. } => false,
            Entry::Discard { key, version, killed } => {
                (killed == SegmentId::ANY || self.slots.get(&killed).is_some_and(|slot| *slot != going))
                    && self.discards.get(&key).is_some_and(|(known, _)| *known == version)
            }
            Entry::Wipe { root, version } => self.wipes.get(&root) == Some(&version),
            Entry::Touch { key, recency } => {
                self.place(key).is_some_and(|place| place.recency == recency && place.segment != going)
            }
        }
    }

    /// Forgets discards whose victims are gone with their segment.
    pub(super) fn prune(&mut self) {
        let slots = &self.slots;
        self.discards.retain(|_, (_, killed)| *killed == SegmentId::ANY || slots.contains_key(killed));
    }

    /// Counters may not fall behind these.
    pub(super) fn advance(&mut self, version: u64, uses: u64) {
        self.version = self.version.max(version);
        self.uses = self.uses.max(uses);
    }

    /// (Largest version, uses).
    pub(super) fn counters(&self) -> (u64, u64) {
        (self.version, self.uses)
    }

    /// A place from its stored parts.
    pub(super) fn place_of(key: PageKey, recency: u64, version: u64, units: (u32, u32), at: (u32, u16, u16)) -> Place {
        let ((start, length), (segment, root, flags)) = (units, at);
        let (is_damaged, has_others) = (flags & 1 != 0, flags & 2 != 0);
        Place { key, recency, version, at: start, length, segment, root, is_damaged, has_others }
    }

    fn remove(&mut self, key: PageKey) -> Option<Place> {
        let at = self.find(key)?;
        Some(self.remove_at(at))
    }

    fn remove_at(&mut self, at: u32) -> Place {
        let place = self.places[at as usize];
        self.table.remove(place.key, |at| self.places[at as usize].key);
        self.segments[place.segment as usize].live -= place.bytes();
        self.places[at as usize].segment = NOWHERE;
        self.free.push(at);
        place
    }

    #[inline]
    fn find(&self, key: PageKey) -> Option<u32> {
        self.table.find(key, |at| self.places[at as usize].key)
    }
}
