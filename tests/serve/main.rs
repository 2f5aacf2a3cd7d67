//! The real thing: processes of `pd`, sockets, files, the model inside the binary.
//!
//! Tests wait for what they want to see, never for a time; each has its own ports and folders.

#![expect(clippy::disallowed_methods, reason = "real processes take real time")]

mod abort;
mod attach;
mod ends;
mod health;
mod http;
mod journal;
mod kv_events;
mod pairing;
mod process;
mod restart;
mod rooms;
mod same_tokens;
mod text;
mod wrong;
