//! What pd says to the world: HTTP, peers, disks.
#![forbid(unsafe_code)]

mod client;
pub mod router;
