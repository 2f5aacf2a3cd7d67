//! Scenarios.
pub mod error;
pub mod expect;
