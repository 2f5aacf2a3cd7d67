//! Every bound of the core, and how they relate.

/// Most tokens per page.
pub const PAGE_SIZE_MAX: u32 = 1024;
/// Most pages that one storage command moves (SGLang's storage batch).
pub const STORAGE_BATCH_PAGES: u32 = 128;
/// Batches of a fetch that begins at the end of its prompt: as many as it can be ended between.
pub const TAIL_BATCHES: usize = 32;
/// Fewest pages of such a batch, so that a disk has enough to do.
pub const TAIL_BATCH_PAGES_MIN: usize = 8;
/// Most of its batches with the storage lane at once: one that is read and one behind it. More would all end at the same
/// time, and none of them early.
pub const TAIL_OPS_MAX: usize = 2;
/// Most keys that one query asks for.
pub const QUERY_KEYS_MAX: u32 = 4096;
/// About the most keys whose use L3 has not been told of; the latest uses are kept.
pub const TOUCH_KEYS_MAX: usize = 65_536;
/// Most forwards in flight: the one that runs and one batch ahead.
pub const FORWARDS_IN_FLIGHT_MAX: usize = 2;
/// Most stop tokens of a request.
pub const STOP_TOKENS_MAX: usize = 64;
/// Most storage reads or writes in flight per worker.
pub const STORAGE_OPS_MAX: u32 = 16;
/// Most other prefill workers that a sink tries after the first one failed.
pub const HANDOFF_RETRIES_MAX: u32 = 3;
/// Most tensor-parallel ranks of a peer whose heads are mapped to other ranks.
pub const TP_RANKS_MAX: u32 = 1024;
/// Most timers of the hand-off that one step serves; the rest asks for another step at once.
pub const TRANSFER_TIMERS_PER_STEP: u32 = 1024;
/// Most bytes of an endpoint that a worker registers.
pub const ENDPOINT_BYTES_MAX: usize = 256;
/// Most reasons why the tokens of one prompt were not served.
pub const MISSES_MAX: usize = 16;
/// Most KV changes in one published batch.
pub const CHANGES_PER_PUBLISH: usize = 4096;

const _: () = assert!(PAGE_SIZE_MAX.is_power_of_two());
const _: () = assert!(STORAGE_BATCH_PAGES <= QUERY_KEYS_MAX);
const _: () = assert!(TAIL_BATCH_PAGES_MIN <= STORAGE_BATCH_PAGES as usize);
