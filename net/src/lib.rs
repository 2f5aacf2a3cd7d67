//! What pd says to the world: HTTP, peers, disks.
#![forbid(unsafe_code)]

mod accept;
pub mod bench;
mod client;
pub mod ctrl;
pub mod exposition;
pub mod http;
pub mod router;
pub mod store;
pub mod text;
pub mod wire;
