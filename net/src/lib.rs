//! What pd says to the world: HTTP, peers, disks.
#![forbid(unsafe_code)]

pub mod ctrl;
pub mod wire;
