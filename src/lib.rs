//! pd: prefill/decode disaggregated serving of large language models, simulated with the code that serves.
//!
//! The crates behind the command, for its tests and benches.

pub use pd_core as core;
pub use pd_sim as sim;
