//! Engines: what computes, on the CPU ([`cpu`]) or on a GPU ([`cuda`]).
//!
//! A model comes from [`weights`], an engine computes forwards over pages of KV that core names, [`sample`] turns logits
//! into tokens. Nothing here knows of clients, peers, tiers or time.

pub mod cpu;
pub mod cuda;
mod engine;
pub mod geometry;
pub mod sample;
mod sequence;
pub mod weights;

pub use cpu::{CpuEngine, Options};
pub use cuda::{CudaEngine, CudaError};
pub use engine::{EngineError, Sample};
pub use geometry::{Element, Geometry};
pub use sample::{Logprobs, Sampling, SamplingError};
pub use weights::{Config, LoadError, ModelSource, Weights};
