//! Two or three workers on simulated lines; see [`net`].

mod drive;
mod layout;
mod net;
mod random;
mod registry;
mod sink;
mod source;
