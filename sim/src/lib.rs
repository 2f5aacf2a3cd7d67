//! Drives the state machines of pd in virtual time.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod disk;
pub mod hardware;
pub mod heap;
pub mod link;
pub mod load;
pub mod stats;
pub mod store;
pub mod trace;
pub mod units;
