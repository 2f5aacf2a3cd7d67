//! What pd says to the world: HTTP, peers, disks.
#![forbid(unsafe_code)]

pub mod store;
pub mod wire;
pub mod http;
pub mod text;
