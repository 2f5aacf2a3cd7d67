//! Drives the state machines of pd in virtual time.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod append_map;
pub mod calibrate;
pub mod check;
pub mod disk;
pub mod dump;
pub mod explain;
pub mod fault;
pub mod fields;
pub mod hardware;
pub mod heap;
pub mod journal;
pub mod lane;
pub mod link;
pub mod load;
pub mod memory;
pub mod node;
pub mod observe;
pub mod parallel;
pub mod plan;
pub mod record;
pub mod report;
pub mod scenario;
pub mod setup;
pub mod stats;
pub mod store;
pub mod swarm;
pub mod sweep;
pub mod trace;
pub mod units;
pub mod words;
pub mod world;
