//! A step's lists on their way to the GPU: packed into pinned memory, copied as one piece, named by address.
//!
//! ```text
//!   | starts | tokens | slots | positions | kv slots | picks | samples | lengths | prompts | tiles | last tiles | pieces | tables |
//!     of as many entries as the step is padded to .................... |  as many as there are
//! ```
//! Of a step that is one row a sequence, all up to the pieces has its place by the number of padded rows alone: recorded
//! graphs find it there.

use bytemuck::{NoUninit, cast_slice};

use super::step::{SampleRow, Step};

/// Where a step's lists are on the GPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Lists {
    pub(super) starts: u64,
    pub(super) tokens: u64,
    pub(super) slots: u64,
    pub(super) positions: u64,
    pub(super) kv_slots: u64,
    pub(super) picks: u64,
    pub(super) samples: u64,
    pub(super) lengths: u64,
    pub(super) prompts: u64,
    pub(super) tiles: u64,
    pub(super) last_tiles: u64,
    pub(super) pieces: u64,
    pub(super) tables: u64,
    /// Bytes that the copy has.
    pub(super) bytes: usize,
}

/// Most bytes of the lists of a step.
pub(super) fn bytes_max(rows: usize, picks: usize, pieces: usize, updates: usize, heads_per_kv: usize) -> usize {
    let of_rows = 4 + 4 + 4 + 8 + 8 + 16;
    let tiles = 16 * (rows + (rows * heads_per_kv).div_ceil(128));
    let lists = 15 * ALIGN + STARTS_MAX * 4;
    rows * of_rows + picks * (4 + size_of::<SampleRow>()) + tiles + pieces * 16 + updates * 16 + lists
}

impl Lists {
    /// Packs a step, filled up to so many rows and picks, and changes to tables, for memory at `base`.
    ///
    /// # Panics
    /// If there is no room; see [`bytes_max`].
    pub(super) fn pack(
        memory: &mut [u8],
        base: u64,
        step: &Step,
        updates: &[[i32; 4]],
        rows: usize,
        picks: usize,
    ) -> Self {
        let mut packer = Packer { memory, base, used: 0 };
        // Rows that are only there to fill up take token 0, write no KV and choose nothing.
        let nothing = SampleRow { slot: -1, ..SampleRow::default() };
        Self {
            starts: packer.list(&step.starts, STARTS_MAX, 0),
            tokens: packer.list(&step.tokens, rows, 0),
            slots: packer.list(&step.slots, rows, -1),
            positions: packer.list(&step.positions, rows, 0),
            kv_slots: packer.list(&step.kv_slots, rows, -1),
            picks: packer.list(&step.picks, picks, -1),
            samples: packer.list(&step.samples, picks, nothing),
            lengths: packer.list(&step.lengths, rows, [0, 0]),
            prompts: packer.list(&step.prompts, 0, [0; 4]),
            tiles: packer.list(&step.tiles, 0, [0; 2]),
            last_tiles: packer.list(&step.last_tiles, 0, [0; 2]),
            pieces: packer.list(&step.pieces, 0, [0; 4]),
            tables: packer.list(updates, 0, [0; 4]),
            bytes: packer.used,
        }
    }
}

struct Packer<'a> {
    memory: &'a mut [u8],
    base: u64,
    used: usize,
}

impl Packer<'_> {
    /// Appends a list and fills it up to `least` entries. Its address.
    fn list<T: NoUninit>(&mut self, list: &[T], least: usize, filler: T) -> u64 {
        let at = self.used;
        let bytes: &[u8] = cast_slice(list);
        self.memory[at..][..bytes.len()].copy_from_slice(bytes);
        self.used += bytes.len();
        for _ in list.len()..least {
            let bytes = bytemuck::bytes_of(&filler);
            self.memory[self.used..][..bytes.len()].copy_from_slice(bytes);
            self.used += bytes.len();
        }
        self.used = self.used.next_multiple_of(ALIGN);
        self.base + at as u64
    }
}

/// Places for the starts of blocks of threads: more than any GPU runs at a time.
pub(super) const STARTS_MAX: usize = 512;
/// What vectors of kernels need, and a sector of memory.
const ALIGN: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_of_a_graph_lie_where_its_rows_say() {
        let mut memory = vec![0_u64; bytes_max(8, 8, 64, 8, 4) / 8];
        let memory: &mut [u8] = bytemuck::cast_slice_mut(&mut memory);
        let mut of = |rows: usize, pieces: usize| {
            let step = Step {
                tokens: vec![1; rows],
                slots: vec![2; rows],
                positions: vec![3; rows],
                kv_slots: vec![4; rows],
                picks: (0..rows as i32).collect(),
                samples: vec![SampleRow::default(); rows],
                starts: vec![0; 265],
                lengths: vec![[0, 1]; rows],
                pieces: vec![[0, 1 << 16, 1, 0]; pieces],
                ..Step::default()
            };
            let lists = Lists::pack(memory, 4096, &step, &[], 8, 8);
            let slots: &[i32] = bytemuck::cast_slice(&memory[(lists.slots - 4096) as usize..][..32]);
            assert!(slots.iter().enumerate().all(|(row, slot)| *slot == if row < rows { 2 } else { -1 }));
            Lists { tables: 0, bytes: 0, ..lists }
        };
        assert_eq!(of(5, 5), of(8, 60));
    }
}
