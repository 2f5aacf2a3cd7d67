//! What pd says to the world: HTTP, peers, disks.
#![forbid(unsafe_code)]

pub mod bench;
mod client;
pub mod router;
