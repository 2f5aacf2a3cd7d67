//! Drives the state machines of pd in virtual time.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod load;
pub mod trace;
pub mod units;
