//! The worker as a whole.
