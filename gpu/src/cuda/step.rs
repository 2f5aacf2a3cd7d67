//! What one forward looks like to the kernels: a row for each token, and lists of work.
//!
//! ```text
//!   rows     | prompt tokens of run 0 | of run 1 | ... | generated tokens ... |
//!              attended by tiles of rows                 attended row by row
//! ```
//!
//! **A token's kernel is chosen by what it is, never by its batch**: tokens of the prompt go through the kernel for
//! prompts even when they come alone, and generated ones through the kernel for single rows even when a run computes many
//! of them again. Each kernel's result for a row depends on nothing but the row and what stands before it, so that the
//! same KV comes out however a sequence was cut, retracted or moved.

use bytemuck::{Pod, Zeroable};

use crate::sample::Sampling;

/// What a step is cut to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Tokens of a page.
    pub(super) page_size: u32,
    /// Query heads of a KV head.
    pub(super) heads_per_kv: u32,
    /// Units of work in each row: KV heads, times groups of 8 query heads.
    pub(super) units: u32,
    /// Blocks of threads that share them.
    pub(super) blocks: u32,
    /// Blocks of context that there is room for several of them to share.
    pub(super) leaves_max: u32,
}

/// A run, with what the engine knows of its sequence.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part<'a> {
    /// Where its sequence's table and last token are.
    pub(super) slot: u32,
    /// First token to compute.
    pub(super) start: u32,
    /// The tokens to compute; those behind the last known one (at most one) are fed on the GPU.
    pub(super) known: &'a [pd_core::id::Token],
    pub(super) count: u32,
    /// Tokens of the prompt.
    pub(super) prompt: u32,
    /// Pages of its KV, from the first on.
    pub(super) table: &'a [u32],
    /// How the next token is chosen, if one is to be.
    pub(super) sampling: Option<&'a Sampling>,
    /// True if the host chooses it from the logits.
    pub(super) by_host: bool,
}

/// How the token of one row is chosen, as kernels read it.
#[derive(Clone, Copy, PartialEq, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub(super) struct SampleRow {
    /// 0 takes the most probable token.
    pub(super) temperature: f32,
    pub(super) top_p: f32,
    pub(super) min_p: f32,
    /// 0 for all.
    pub(super) top_k: u32,
    pub(super) seed_low: u32,
    pub(super) seed_high: u32,
    /// Of the token that is chosen.
    pub(super) position: u32,
    /// Where the token is kept for the next forward; negative: the row is not there.
    pub(super) slot: i32,
    /// [`SampleRow::HOST_CHOOSES`] or 0.
    pub(super) flags: u32,
}

/// The lists of one forward. Their meaning is that of the kernels' arguments.
#[derive(Clone, Default, PartialEq, Debug)]
pub(super) struct Step {
    /// Token of each row, or -1 for the last one of its slot.
    pub(super) tokens: Vec<i32>,
    pub(super) slots: Vec<i32>,
    pub(super) positions: Vec<i32>,
    /// Where KV goes: page times page size plus place in the page.
    pub(super) kv_slots: Vec<i64>,
    /// Runs of prompt tokens: first row, rows, tokens of KV behind the last of them, slot.
    pub(super) prompts: Vec<[i32; 4]>,
    /// Tiles of these: run, tile; longest first.
    pub(super) tiles: Vec<[i32; 2]>,
    /// Those of them that hold rows whose logits are wanted: all that the last layer has to compute.
    pub(super) last_tiles: Vec<[i32; 2]>,
    /// Rows that hold prompt tokens; the rest are generated ones.
    pub(super) prompt_rows: usize,
    /// Pieces of the context of generated rows, as the decode kernel reads them.
    pub(super) pieces: Vec<[i32; 4]>,
    /// Where the pieces of each block of threads begin, and where those of the last one end.
    pub(super) starts: Vec<i32>,
    /// Slot and tokens of KV of every row, for the kernel that takes them one by one.
    pub(super) lengths: Vec<[i32; 2]>,
    /// Rows whose logits are wanted, in the order of the runs.
    pub(super) picks: Vec<i32>,
    pub(super) samples: Vec<SampleRow>,
}

impl Step {
    /// Forgets everything but the memory.
    pub(super) fn clear(&mut self) {
        self.tokens.clear();
        self.slots.clear();
        self.positions.clear();
        self.kv_slots.clear();
        self.prompts.clear();
        self.tiles.clear();
        self.last_tiles.clear();
        self.prompt_rows = 0;
        self.pieces.clear();
        self.starts.clear();
        self.lengths.clear();
        self.picks.clear();
        self.samples.clear();
    }

    /// Lays out a forward.
    pub(super) fn plan(&mut self, parts: &[Part<'_>], shape: Shape) {
        let Shape { page_size, heads_per_kv, .. } = shape;
        self.clear();
        for part in parts {
            let end = part.prompt.min(part.start + part.count);
            if part.start < end {
                let first = self.tokens.len() as i32;
                let rows = end - part.start;
                let run = self.prompts.len() as i32;
                self.prompts.push([first, rows as i32, end as i32, part.slot as i32]);
                let tiles = (rows * heads_per_kv).div_ceil(TILE_ROWS);
                self.tiles.extend((0..tiles as i32).map(|tile| [run, tile]));
                if part.sampling.is_some() && end == part.start + part.count {
                    // The query heads of the last row may lie in two tiles.
                    let first = (rows - 1) * heads_per_kv / TILE_ROWS;
                    self.last_tiles.extend((first as i32..tiles as i32).map(|tile| [run, tile]));
                }
                self.rows(part, part.start, end, page_size);
            }
        }
        // Tiles that see most keys first: the last ones to end are short.
        let prompts = &self.prompts;
        let keys = |tile: &[i32; 2]| {
            let [_, rows, length, _] = prompts[tile[0] as usize];
            let last = ((tile[1] + 1) * TILE_ROWS as i32 - 1) / heads_per_kv as i32;
            length - rows + last.min(rows - 1) + 1
        };
        self.tiles.sort_by_key(|tile| std::cmp::Reverse(keys(tile)));
        self.prompt_rows = self.tokens.len();
        for part in parts {
            for position in part.start.max(part.prompt)..part.start + part.count {
                self.rows(part, position, position + 1, page_size);
            }
        }
        let contexts = self.lengths[self.prompt_rows..].iter().map(|[_, length]| *length as u32);
        shape.cut(contexts, &mut self.pieces, &mut self.starts);
        self.pick(parts);
    }

    /// The rows of the runs that sample: each run's last one.
    fn pick(&mut self, parts: &[Part<'_>]) {
        let (mut prompt_row, mut row) = (0, self.prompt_rows);
        for part in parts {
            let end = part.start + part.count;
            let of_prompt = part.prompt.min(end).saturating_sub(part.start) as usize;
            prompt_row += of_prompt;
            row += part.count as usize - of_prompt;
            if let Some(sampling) = part.sampling {
                let last = if end > part.prompt { row - 1 } else { prompt_row - 1 };
                self.picks.push(last as i32);
                self.samples.push(SampleRow::new(sampling, part.slot, end, part.by_host));
            }
        }
    }

    fn rows(&mut self, part: &Part<'_>, from: u32, to: u32, page_size: u32) {
        for position in from..to {
            let token = part.known.get((position - part.start) as usize);
            self.tokens.push(token.map_or(-1, |token| token.0 as i32));
            self.slots.push(part.slot as i32);
            self.positions.push(position as i32);
            let page = part.table[(position / page_size) as usize];
            self.kv_slots.push(i64::from(page) * i64::from(page_size) + i64::from(position % page_size));
            self.lengths.push([part.slot as i32, position as i32 + 1]);
        }
    }

    /// True if each run computes one generated token and chooses the next: a shape that is recorded as a graph.
    pub(super) fn is_decode(&self) -> bool {
        self.prompt_rows == 0 && self.picks.len() == self.tokens.len()
    }
}

impl SampleRow {
    /// The logits are the result.
    const HOST_CHOOSES: u32 = 1;

    fn new(sampling: &Sampling, slot: u32, position: u32, by_host: bool) -> Self {
        Self {
            temperature: if sampling.is_greedy() { 0.0 } else { sampling.temperature },
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            top_k: u32::try_from(sampling.top_k).unwrap_or(0),
            seed_low: sampling.seed as u32,
            seed_high: (sampling.seed >> 32) as u32,
            position,
            slot: slot as i32,
            flags: if by_host { Self::HOST_CHOOSES } else { 0 },
        }
    }

    /// True if the kernel for filters chooses the token.
    pub(super) fn is_filtered(&self) -> bool {
        self.flags == 0 && self.temperature > 0.0 && (self.top_k > 0 || self.top_p < 1.0 || self.min_p > 0.0)
    }
}

impl Shape {
    /// Shares the contexts of rows out among blocks of threads, each as many blocks of context as the next. That changes
    /// no bit (see `kernels/decode.cu`), so it may depend on the batch.
    ///
    /// ```text
    ///   rows x units   |    0,0    |    0,1    |    1,0    |    1,1    |
    ///   threads        |    0    |    1    |    2    |    3    |   4   |     cut where a share ends, unless next to nothing
    /// ```                                                                     would be left of it
    fn cut(self, contexts: impl Iterator<Item = u32> + Clone, pieces: &mut Vec<[i32; 4]>, starts: &mut Vec<i32>) {
        let blocks = |length: u32| u64::from(length.div_ceil(BLOCK_TOKENS));
        let all = contexts.clone().map(blocks).sum::<u64>() * u64::from(self.units);
        let threads = u64::from(self.blocks);
        // Whole rows, if that takes hardly longer: a share that is cut has to be put together again.
        let longest = contexts.clone().map(blocks).max().unwrap_or(0);
        let rows = contexts.clone().count() as u64 * u64::from(self.units);
        let is_whole = rows.div_ceil(threads) * longest <= all.div_ceil(threads) + CUT_COST;
        // What is not worth a piece of its own.
        let little = if is_whole { longest } else { all / threads / 8 };
        let (mut given, mut leaves) = (0, 0);
        starts.push(0);
        for (row, length) in (0_u32..).zip(contexts) {
            for unit in 0..self.units {
                let first_piece = pieces.len();
                let count = blocks(length);
                let mut from = 0;
                while from < count {
                    let is_last = starts.len() as u64 == threads;
                    let room = (all * starts.len() as u64 / threads).saturating_sub(given);
                    if !is_last && (room == 0 || (room <= little && room < count - from)) {
                        starts.push(pieces.len() as i32);
                        continue;
                    }
                    let left = count - from;
                    let has_leaves = leaves + count <= u64::from(self.leaves_max);
                    let take = if is_last || left <= room + little || !has_leaves { left } else { room };
                    pieces.push([(row | unit << 16) as i32, (from | take << 16) as i32, 1, 0]);
                    from += take;
                    given += take;
                }
                let shared = &mut pieces[first_piece..];
                if shared.len() > 1 {
                    let count_of = shared.len() as i32;
                    shared.iter_mut().for_each(|piece| (piece[2], piece[3]) = (count_of, leaves as i32));
                    leaves += count;
                }
            }
        }
        starts.resize(self.blocks as usize + 1, pieces.len() as i32);
    }
}

/// What it costs to share a row, in blocks.
const CUT_COST: u64 = 2;
/// Tokens whose attention is summed without a break: a block of the decode kernel.
const BLOCK_TOKENS: u32 = 256;
/// Rows (query heads of one KV head, token by token) that a tile of the kernel for prompts takes.
const TILE_ROWS: u32 = 128;

#[cfg(test)]
mod tests {
    use pd_core::id::Token;

    use super::*;

    const SHAPE: Shape = Shape { page_size: 16, heads_per_kv: 4, units: 8, blocks: 264, leaves_max: 8192 };

    fn part<'a>(slot: u32, start: u32, known: &'a [Token], count: u32, prompt: u32, table: &'a [u32]) -> Part<'a> {
        Part { slot, start, known, count, prompt, table, sampling: None, by_host: false }
    }

    #[test]
    fn a_step_of_decodes_has_one_row_each_and_feeds_unknown_tokens_on_the_device() {
        let greedy = Sampling::greedy();
        let pages: Vec<u32> = (0..38).collect();
        let parts = [
            Part { sampling: Some(&greedy), ..part(3, 40, &[], 1, 40, &[7, 8, 9]) },
            Part { sampling: Some(&greedy), ..part(1, 600, &[Token(5)], 1, 20, &pages) },
        ];
        let mut step = Step::default();
        step.plan(&parts, SHAPE);
        assert!(step.is_decode());
        assert_eq!((step.tokens.as_slice(), step.slots.as_slice()), (&[-1, 5][..], &[3, 1][..]));
        assert_eq!(step.kv_slots, [9 * 16 + 8, 37 * 16 + 8]);
        assert_eq!(step.lengths, [[3, 41], [1, 601]]);
        check(&step, &SHAPE);
        assert_eq!(step.picks, [0, 1]);
        assert_eq!(step.samples[1].position, 601);
    }

    #[test]
    fn a_run_over_prompt_and_answer_is_cut_at_the_prompts_end() {
        let tokens: Vec<Token> = (0..6).map(Token).collect();
        let greedy = Sampling::greedy();
        let parts = [
            Part { sampling: Some(&greedy), ..part(0, 2, &tokens, 6, 5, &[4, 5]) },
            Part { sampling: Some(&greedy), ..part(9, 0, &tokens[..3], 3, 3, &[6]) },
        ];
        let mut step = Step::default();
        step.plan(&parts, Shape { page_size: 4, heads_per_kv: 1, ..SHAPE });
        assert!(!step.is_decode());
        assert_eq!(step.prompt_rows, 6, "three of the first run, three of the second");
        assert_eq!(step.prompts, [[0, 3, 5, 0], [3, 3, 3, 9]]);
        assert_eq!(step.positions, [2, 3, 4, 0, 1, 2, 5, 6, 7]);
        assert_eq!(step.picks, [8, 5], "each run's last row, in the order of the runs");
        assert_eq!(step.lengths[6..], [[0, 6], [0, 7], [0, 8]]);
        check(&step, &SHAPE);
    }

    /// Each row and unit is covered once, in order; shared blocks have leaves of their own; no thread has much more than
    /// its share. Returns the largest share.
    fn check(step: &Step, shape: &Shape) -> u64 {
        let rows = &step.lengths[step.prompt_rows..];
        assert_eq!(step.starts.len(), shape.blocks as usize + 1);
        assert!(step.starts.is_sorted() && *step.starts.last().unwrap() as usize == step.pieces.len());
        let mut pieces = step.pieces.iter();
        let mut leaves = Vec::new();
        for (row, [_, length]) in rows.iter().enumerate() {
            let count = (*length as u32).div_ceil(BLOCK_TOKENS);
            for unit in 0..shape.units {
                let (mut at, mut shared) = (0, Vec::new());
                while at < count {
                    let [who, what, of, leaf] = *pieces.next().expect("a piece");
                    assert_eq!(who as u32, row as u32 | unit << 16);
                    assert_eq!(what as u32 & 0xffff, at);
                    at += what as u32 >> 16;
                    shared.push((of, leaf));
                }
                assert_eq!(at, count);
                assert!(shared.iter().all(|(of, leaf)| *of as usize == shared.len() && *leaf == shared[0].1));
                if shared.len() > 1 {
                    leaves.extend(shared[0].1..shared[0].1 + count as i32);
                }
            }
        }
        assert!(pieces.next().is_none());
        leaves.sort_unstable();
        assert!(leaves.windows(2).all(|pair| pair[0] < pair[1]) && leaves.len() <= shape.leaves_max as usize);
        let share = |pair: &[i32]| {
            step.pieces[pair[0] as usize..pair[1] as usize].iter().map(|piece| (piece[1] as u64) >> 16).sum::<u64>()
        };
        step.starts.windows(2).map(share).max().unwrap_or(0)
    }

    fn decodes(rows: u32, length: u32, shape: Shape) -> (Step, u64) {
        let table: Vec<u32> = (0..length.div_ceil(shape.page_size)).collect();
        let parts: Vec<Part<'_>> = (0..rows).map(|slot| part(slot, length - 1, &[Token(1)], 1, 1, &table)).collect();
        let mut step = Step::default();
        step.plan(&parts, shape);
        let most = check(&step, &shape);
        (step, most)
    }

    #[test]
    fn contexts_are_shared_out_evenly() {
        for (rows, length) in
            [(1, 1), (1, 1100), (1, 100_000), (18, 4300), (32, 1100), (33, 257), (256, 1100), (256, 4096)]
        {
            let (step, most) = decodes(rows, length, SHAPE);
            let all = u64::from(rows * length.div_ceil(BLOCK_TOKENS) * SHAPE.units);
            let fair = all.div_ceil(u64::from(SHAPE.blocks));
            assert!(most <= fair + fair / 4 + 1, "{rows} x {length}: {most} blocks, {fair} would be fair");
            assert!(step.pieces.len() < (rows * SHAPE.units + SHAPE.blocks) as usize);
        }
    }

    #[test]
    fn without_room_for_leaves_rows_stay_whole() {
        let (step, _) = decodes(3, 10_000, Shape { leaves_max: 50, ..SHAPE });
        assert_eq!(
            step.pieces.iter().filter(|piece| piece[2] == 1).count(),
            23,
            "one row and unit of 40 blocks is cut"
        );
    }

    #[test]
    fn tiles_that_see_most_come_first() {
        let tokens: Vec<Token> = (0..400).map(Token).collect();
        let table: Vec<u32> = (0..100).collect();
        let parts = [part(0, 0, &tokens[..64], 64, 64, &table), part(1, 1000, &tokens, 400, 1400, &table)];
        let mut step = Step::default();
        step.plan(&parts, SHAPE);
        assert_eq!(step.tiles.len(), 2 + 13);
        assert_eq!(step.tiles[0], [1, 12]);
        assert_eq!(step.tiles[14], [0, 0]);
    }
}
