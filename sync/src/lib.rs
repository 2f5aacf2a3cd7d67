//! What threads of pd share, and processes of one host. The only home of lock-free code; no async runtime in its tree.

#[cfg(not(loom))]
pub mod arena;
pub mod gate;
pub mod inbox;
#[cfg(not(loom))]
pub mod shared;
mod shim;
pub mod word;

#[cfg(not(loom))]
pub use arena::{Arena, Busy, Device, Held, LeasedMut, PageMut, PageRef, Reach, Writing};
pub use gate::{Gate, Pass};
pub use inbox::{Closed, Inbox, Received, Refused};
#[cfg(not(loom))]
pub use shared::{Identity, OpenError, Remote};
pub use word::Denied;
