//! Serving: the machines of core, driven by threads, sockets and files.
//!
//! ```text
//!   HTTP (tokio) ─ door ─▶ worker's thread (shell: pump) ─▶ compute lane   engine (CPU or GPU)
//!   peers (tokio) ───────▶                               ─▶ copy lanes     L1 <-> L2
//!                                                        ─▶ storage lane   L2 <-> L3
//!                                                        ─▶ wire           L1 -> a peer's L1
//! ```

pub(crate) mod backend;
pub(crate) mod clock;
pub(crate) mod compute;
pub(crate) mod copies;
pub(crate) mod engine;
pub(crate) mod journal;
pub(crate) mod listen;
pub(crate) mod model;
pub(crate) mod options;
pub(crate) mod order;
pub(crate) mod peers;
pub(crate) mod plan;
pub(crate) mod shell;
pub(crate) mod status;
pub(crate) mod storage;
pub(crate) mod tiny;
pub(crate) mod trial;
pub(crate) mod worker;
