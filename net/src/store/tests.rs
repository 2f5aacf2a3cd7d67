//! What tests of the store share: pages whose bytes follow from their key, and folders in memory.

use std::path::Path;

use pd_core::id::{PageKey, Token};
use pd_core::op::Fault;
use tempfile::TempDir;

use super::{Identity, OpenReport, Record, Store, StoreConfig};

mod basics;
mod crash;
mod damage;
mod faulty;
mod kill;
mod lanes;
mod quota;
mod sharing;

/// A page of a test: all of it follows from its number and its size.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Page {
    root: PageKey,
    key: PageKey,
    parent: PageKey,
    tokens: Vec<Token>,
    bytes: Vec<u8>,
}

const ROOT: PageKey = PageKey(7 << 64);
const OTHER_ROOT: PageKey = PageKey(8 << 64);

impl Page {
    fn new(number: u64, size: usize) -> Self {
        Self::of(ROOT, number, size)
    }

    fn of(root: PageKey, number: u64, size: usize) -> Self {
        let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ root.0 as u64 ^ (root.0 >> 64) as u64;
        let mut bytes = vec![0; size];
        for chunk in bytes.chunks_mut(8) {
            state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
            let word = (state ^ state >> 29).to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
        let key = PageKey(root.0 ^ u128::from(number) << 32 ^ 1);
        let parent = if number == 0 { root } else { PageKey(root.0 ^ u128::from(number - 1) << 32 ^ 1) };
        Self { root, key, parent, tokens: (0..4).map(|at| Token(number as u32 * 4 + at)).collect(), bytes }
    }

    fn identity(&self) -> Identity<'_> {
        Identity { key: self.key, root: self.root, parent: self.parent, tokens: &self.tokens }
    }

    fn record(&self) -> Record<'_> {
        Record { page: self.identity(), bytes: &self.bytes }
    }

    /// Reads the page; panics if the store serves other bytes.
    fn read(&self, store: &Store) -> Result<(), Fault> {
        let mut into = vec![0xEE; self.bytes.len()];
        store.read(self.identity(), &mut into)?;
        assert_eq!(into, self.bytes, "a wrong byte was served");
        Ok(())
    }

    fn write(&self, store: &Store) -> Result<(), Fault> {
        write(store, std::slice::from_ref(self)).remove(0)
    }
}

fn write(store: &Store, pages: &[Page]) -> Vec<Result<(), Fault>> {
    store.write(&pages.iter().map(Page::record).collect::<Vec<Record<'_>>>())
}

/// A folder in memory where there is such a thing: an fsync there costs nothing.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.expect("a folder for tests")
}

/// Small segments, and no upkeep but what tests ask for.
fn config(dir: &Path) -> StoreConfig {
    StoreConfig { segment_bytes: 64 << 10, poll: std::time::Duration::from_secs(3600), ..StoreConfig::new(dir) }
}

fn open(dir: &Path) -> (Store, OpenReport) {
    Store::open(config(dir)).expect("the store opens")
}

/// What a crash leaves: the files as they are at one instant, in which nobody writes.
fn image(store: &Store) -> TempDir {
    let copy = folder();
    let dir = &store.0.shared.config.dir;
    let _nobody = super::lock(&store.0.shared.upkeep.turn);
    for entry in std::fs::read_dir(dir).expect("a folder") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).expect("a copy");
    }
    copy
}

/// File, offset and length of the record of a page.
fn place(store: &Store, key: PageKey) -> Option<(String, u64, u64)> {
    let index = store.0.shared.index();
    index.place(key).map(|place| (index.segment(place.segment).id.name(), place.at(), place.bytes()))
}
