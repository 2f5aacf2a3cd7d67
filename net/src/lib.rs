//! What pd says to the world: HTTP, peers, disks.
#![forbid(unsafe_code)]

pub mod http;
pub mod text;
