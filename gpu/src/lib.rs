//! Engines: what computes. Today the CPU; see [`cpu`].
//!
//! A model comes from [`weights`], an engine computes forwards over pages of KV that core names, [`sample`] turns logits
//! into tokens. Nothing here knows of clients, peers, tiers or time.

pub mod cpu;
pub mod geometry;
pub mod sample;
pub mod weights;

pub use cpu::{CpuEngine, EngineError, Options, Sample};
pub use geometry::{Element, Geometry};
pub use sample::{Logprobs, Sampling, SamplingError};
pub use weights::{Config, LoadError, ModelSource, Weights};
