//! Drives the state machines of pd in virtual time.

pub mod hardware;
