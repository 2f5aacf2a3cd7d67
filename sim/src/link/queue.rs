//! The next event of each flow: an indexed 4-ary min-heap keyed by (time, flow ordinal).
//!
//! Indexed, because a change of rates moves the ends of all flows of a component: moving an entry in place leaves no
//! stale ones behind, and the top is always the truth, so that `next` needs no `&mut`.

/// One flow's place in time.
#[derive(Clone, Copy, Debug)]
struct Entry {
    at: u64,
    ordinal: u64,
    slot: u32,
}

impl Entry {
    #[inline]
    fn is_before(&self, other: &Self) -> bool {
        (self.at, self.ordinal) < (other.at, other.ordinal)
    }
}

/// The queue. An entry at [`NEVER`] waits for a change of rates.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    entries: Vec<Entry>,
    /// Where the entry of a slot lies.
    places: Vec<u32>,
}

impl Queue {
    /// Adds a slot that is not in the queue.
    pub(super) fn insert(&mut self, slot: u32, ordinal: u64, at: u64) {
        if self.places.len() <= slot as usize {
            self.places.resize(slot as usize + 1, ABSENT);
        }
        assert!(self.places[slot as usize] == ABSENT, "one entry a flow");
        self.entries.push(Entry { at, ordinal, slot });
        self.rise(self.entries.len() - 1);
    }

    /// Moves the entry of a slot to another time.
    pub(super) fn update(&mut self, slot: u32, at: u64) {
        let place = self.places[slot as usize] as usize;
        let older = std::mem::replace(&mut self.entries[place].at, at);
        if at < older {
            self.rise(place);
        } else {
            self.sink(place);
        }
    }

    /// Takes the entry of a slot out.
    pub(super) fn remove(&mut self, slot: u32) {
        let place = self.places[slot as usize] as usize;
        self.places[slot as usize] = ABSENT;
        let last = self.entries.pop().expect("the removed entry is in it");
        if place < self.entries.len() {
            let rises = last.is_before(&self.entries[place]);
            self.entries[place] = last;
            if rises {
                self.rise(place);
            } else {
                self.sink(place);
            }
        }
    }

    /// The earliest entry: its time and slot.
    #[inline]
    pub(super) fn peek(&self) -> Option<(u64, u32)> {
        self.entries.first().map(|entry| (entry.at, entry.slot))
    }

    fn rise(&mut self, mut place: usize) {
        let entry = self.entries[place];
        while place > 0 {
            let parent = (place - 1) / ARITY;
            if !entry.is_before(&self.entries[parent]) {
                break;
            }
            self.set(place, self.entries[parent]);
            place = parent;
        }
        self.set(place, entry);
    }

    fn sink(&mut self, mut place: usize) {
        let entry = self.entries[place];
        loop {
            let first = place * ARITY + 1;
            let last = (first + ARITY).min(self.entries.len());
            let mut least = place;
            let mut least_entry = entry;
            for child in first..last {
                if self.entries[child].is_before(&least_entry) {
                    least = child;
                    least_entry = self.entries[child];
                }
            }
            if least == place {
                break;
            }
            self.set(place, least_entry);
            place = least;
        }
        self.set(place, entry);
    }

    #[inline]
    fn set(&mut self, place: usize, entry: Entry) {
        self.entries[place] = entry;
        self.places[entry.slot as usize] = place as u32;
    }
}

/// Later than everything: the flow is stalled.
pub(super) const NEVER: u64 = u64::MAX;
const ARITY: usize = 4;
const ABSENT: u32 = u32::MAX;
