//! The state machines of pd: scheduler, radix cache, HiCache controller, KV transfer protocol and router.
//!
//! Values in, values out. What is absent on purpose:
//!
//! 1. **No clock.** `now` arrives with each input; deadlines are pulled by the driver.
//! 2. **No IO, no threads, no async.** The crate is `no_std`; the compiler refuses what could do any of it.
//! 3. **No floats, no hash maps.** Equal inputs give equal outputs, bit for bit, on every platform and build.
//! 4. **No shared ownership.** One owner, `&mut self`; parents lend components to each other as arguments.
//! 5. **No handles.** Commands name pages; KV bytes, sockets and files exist only behind the lanes of a driver.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod batch;
pub mod codec;
pub mod config;
pub mod cost;
pub mod cx;
pub mod digest;
pub mod event;
pub mod evict;
mod hicache;
pub mod id;
pub mod key;
pub mod kv;
pub mod limits;
pub mod machine;
pub mod message;
pub mod metrics;
pub mod mutant;
pub mod op;
pub mod pool;
pub mod pump;
pub mod radix;
pub mod rng;
pub mod router;
pub mod sched;
pub mod table;
#[cfg(any(test, feature = "testkit"))]
pub mod testkit;
pub mod time;
pub mod transfer;
pub mod worker;

/// Fingerprint of this crate's sources: builds of equal fingerprints answer equal inputs equally.
pub const BUILD: &str = env!("PD_CORE_BUILD");
