//! What a store suffers at present: which of its reads and writes fail, tear or go astray. The storage lane asks here
//! for each object; the faults themselves are in files of their own.

use pd_core::id::PageKey;
use pd_core::rng::Rng;

use super::{Hits, Share};
use crate::store::Store;

/// The faults of one store that last.
#[derive(Clone, Debug, Default)]
pub(crate) struct StoreFaults {
    active: Vec<Active>,
}

#[derive(Clone, Debug)]
struct Active {
    line: u32,
    share: Share,
    kind: Kind,
    rng: Rng,
}

/// One way in which a store fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Full,
    Error { reads: bool, writes: bool },
    Torn,
    Misdirected,
}

/// What became of one write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Written {
    /// It is where it belongs, and whole.
    Well,
    /// Only so many bytes of it.
    Torn(u64),
    /// In the place of this object.
    Astray(PageKey),
}

impl StoreFaults {
    pub(super) fn add(&mut self, line: u32, share: Share, kind: Kind, rng: Rng) {
        self.active.push(Active { line, share, kind, rng });
    }

    pub(super) fn end(&mut self, line: u32) {
        self.active.retain(|active| active.line != line);
    }

    /// True if the disk has no room for anything new.
    pub(crate) fn is_full(&self, hits: &mut Hits) -> bool {
        self.active.iter().find(|active| active.kind == Kind::Full).is_some_and(|active| {
            hits.add(active.line, 1);
            true
        })
    }

    /// Draws whether a read fails.
    pub(crate) fn fails_read(&mut self, hits: &mut Hits) -> bool {
        self.fails(hits, |kind| matches!(kind, Kind::Error { reads: true, .. }))
    }

    /// Draws whether a write fails.
    pub(crate) fn fails_write(&mut self, hits: &mut Hits) -> bool {
        self.fails(hits, |kind| matches!(kind, Kind::Error { writes: true, .. }))
    }

    fn fails(&mut self, hits: &mut Hits, concerns: impl Fn(Kind) -> bool) -> bool {
        let mut has_failed = false;
        for active in self.active.iter_mut().filter(|active| concerns(active.kind)) {
            let fails = active.share.draw(&mut active.rng);
            hits.add(active.line, u64::from(fails));
            has_failed |= fails;
        }
        has_failed
    }

    /// Draws what becomes of a write of `bytes` that the disk says went well.
    pub(crate) fn write(&mut self, store: &Store, key: PageKey, bytes: u64, hits: &mut Hits) -> Written {
        let mut written = Written::Well;
        for active in &mut self.active {
            let fate = match active.kind {
                Kind::Full | Kind::Error { .. } => continue,
                Kind::Torn if !active.share.draw(&mut active.rng) => continue,
                Kind::Misdirected if !active.share.draw(&mut active.rng) => continue,
                Kind::Torn => Written::Torn(SECTOR_BYTES * active.rng.below(bytes.div_ceil(SECTOR_BYTES).max(1))),
                Kind::Misdirected => {
                    let others = store.count() - u64::from(store.contains(key));
                    if others == 0 {
                        continue;
                    }
                    let chosen = active.rng.below(others) as usize;
                    match store.iter().map(|(key, _)| key).filter(|other| *other != key).nth(chosen) {
                        Some(victim) => Written::Astray(victim),
                        None => continue,
                    }
                }
            };
            hits.add(active.line, 1);
            // What tears and goes astray, too, is not found under its name in either case.
            written = fate;
        }
        written
    }
}

/// What a disk writes at once: a logical block of an NVMe device, and a page of the page cache.
const SECTOR_BYTES: u64 = 4096;

#[cfg(test)]
mod tests {
    use pd_core::rng::Stream;

    use super::*;

    fn faults(kind: Kind) -> StoreFaults {
        let mut faults = StoreFaults::default();
        faults.add(7, Share::ALL, kind, Rng::new(1, Stream::TornWrite, 7));
        faults
    }

    #[test]
    fn a_torn_write_ends_at_a_sector_and_is_never_whole() {
        let (mut faults, mut hits) = (faults(Kind::Torn), Hits::default());
        for _ in 0..1000 {
            let Written::Torn(bytes) = faults.write(&Store::default(), PageKey(1), 10_000, &mut hits) else {
                panic!("all are torn")
            };
            assert!(bytes < 10_000 && bytes % 4096 == 0);
        }
        assert_eq!(hits.of(7), 1000);
    }

    #[test]
    fn a_misdirected_write_needs_another_object_and_never_hits_its_own() {
        let (mut faults, mut hits) = (faults(Kind::Misdirected), Hits::default());
        let mut store = Store::default();
        assert_eq!(faults.write(&store, PageKey(1), 10, &mut hits), Written::Well);
        store.put(PageKey(1), PageKey(0), PageKey(0), 10).expect("room");
        assert_eq!(faults.write(&store, PageKey(1), 10, &mut hits), Written::Well);
        store.put(PageKey(2), PageKey(0), PageKey(0), 10).expect("room");
        assert_eq!(faults.write(&store, PageKey(1), 10, &mut hits), Written::Astray(PageKey(2)));
        assert_eq!(hits.of(7), 1);
    }

    #[test]
    fn errors_concern_the_side_that_they_name_and_end_with_their_line() {
        let (mut faults, mut hits) = (faults(Kind::Error { reads: true, writes: false }), Hits::default());
        assert_eq!((faults.fails_read(&mut hits), faults.fails_write(&mut hits)), (true, false));
        faults.end(7);
        assert!(!faults.fails_read(&mut hits));
        assert_eq!(hits.of(7), 1);
    }
}
