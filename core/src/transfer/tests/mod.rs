//! Two or three workers on simulated lines; see [`net`].

mod drive;
mod exhaustive;
mod layout;
mod net;
mod random;
mod registry;
mod sink;
mod source;
