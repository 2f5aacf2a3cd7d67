//! What threads of pd share. The only home of lock-free code; no async runtime in its tree.

pub mod arena;

pub use arena::{Arena, Busy, PageMut, PageRef};
