//! What can be wrong with a model's files: each error names the file, what was expected and what is there.

use std::path::PathBuf;

use thiserror::Error;

/// Why a model cannot be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// A file or the folder cannot be read.
    #[error(
        "{file}: cannot be read: {source}; a model folder has config.json and model.safetensors or an index of shards"
    )]
    Io {
        /// Which.
        file: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The configuration is no JSON, lacks something, or says what cannot be.
    #[error("{file}: {why}")]
    Config {
        /// Which file.
        file: String,
        /// What is wrong and what would be right.
        why: String,
    },
    /// No engine for this kind of model.
    #[error("{file}: architecture {found:?} is not supported; supported are {supported}")]
    Architecture {
        /// Which file.
        file: String,
        /// What it names.
        found: String,
        /// What it could name.
        supported: String,
    },
    /// Not a safetensors file, or not all of one.
    #[error("{file}: not a whole safetensors file: {why} ({bytes} bytes)")]
    Safetensors {
        /// Which file.
        file: String,
        /// What the header says that does not hold.
        why: String,
        /// Its size.
        bytes: usize,
    },
    /// The index of shards names a file that is not there.
    #[error("{index}: names {shard} for {tensor}, which cannot be read: {source}")]
    Shard {
        /// The index.
        index: String,
        /// The file.
        shard: String,
        /// One of its tensors.
        tensor: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// A tensor is nowhere.
    #[error("{file}: has no tensor {tensor}; the configuration asks for one of shape {want:?}")]
    Missing {
        /// Where it should be.
        file: String,
        /// Its name.
        tensor: String,
        /// Its shape.
        want: Vec<usize>,
    },
    /// A tensor is of another shape than the configuration says.
    #[error("{file}: tensor {tensor} has shape {found:?}, the configuration asks for {want:?}")]
    Shape {
        /// Where it is.
        file: String,
        /// Its name.
        tensor: String,
        /// As configured.
        want: Vec<usize>,
        /// As found.
        found: Vec<usize>,
    },
    /// A tensor's elements are of a kind that is not supported.
    #[error("{file}: tensor {tensor} is {found}; supported are BF16, F16 and F32 (quantised models are not)")]
    Dtype {
        /// Where it is.
        file: String,
        /// Its name.
        tensor: String,
        /// Its type.
        found: String,
    },
    /// A weight is infinite or not a number.
    #[error("{file}: tensor {tensor} holds a weight that is not finite")]
    NotFinite {
        /// Where it is.
        file: String,
        /// Its name.
        tensor: String,
    },
    /// A layer has a tensor that the configured architecture would leave out, so that results would be wrong.
    #[error("{file}: tensor {tensor} has no place in this architecture with these settings")]
    Unexpected {
        /// Where it is.
        file: String,
        /// Its name.
        tensor: String,
    },
    /// The model is sound but this engine cannot run it.
    #[error("this engine cannot run the model: {why}")]
    Engine {
        /// What to change.
        why: String,
    },
}
