//! Drives the state machines of pd in virtual time.
#![forbid(unsafe_code)]

pub mod disk;
pub mod hardware;
pub mod heap;
pub mod link;
pub mod stats;
pub mod store;
