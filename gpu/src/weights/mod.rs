//! Models: a folder as Hugging Face lays it out, bytes inside the binary, or numbers drawn from a seed.
//!
//! [`Weights::open`] reads headers only and checks that each tensor that the configuration asks for is there, with its
//! shape and with elements that are understood; numbers are read when an engine packs them.

mod config;
mod dummy;
mod error;
mod fingerprint;
mod shards;
mod tensors;

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use half::{bf16, f16};

pub use config::{Architecture, Config, Recommended, Scaling};
pub use error::LoadError;
pub use tensors::Wanted;
pub(crate) use tensors::{EMBEDDING, NORM, OUTPUT, layer};

use shards::Shards;

/// Where a model comes from.
#[derive(Clone, Debug)]
pub enum ModelSource {
    /// A folder with `config.json`, `model.safetensors` or `model.safetensors.index.json`, and perhaps
    /// `generation_config.json`.
    Folder(PathBuf),
    /// Weights drawn from a seed: for measuring and testing where no model is at hand.
    Dummy {
        /// The text of a `config.json`.
        config: String,
        /// Equal seeds give equal weights, on any machine.
        seed: u64,
    },
    /// The same files, in memory (`include_bytes!`).
    Bytes {
        /// `config.json`.
        config: Cow<'static, [u8]>,
        /// `generation_config.json`.
        generation: Option<Cow<'static, [u8]>>,
        /// `model.safetensors`.
        weights: Cow<'static, [u8]>,
    },
}

/// A model that was opened and found complete.
#[derive(Debug)]
pub struct Weights {
    config: Config,
    recommended: Recommended,
    store: Store,
    /// Elements that were read so far.
    read: AtomicU64,
}

#[derive(Debug)]
enum Store {
    Shards(Shards),
    Dummy { seed: u64 },
}

/// One tensor's numbers, to be read in pieces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tensor<'a> {
    file: &'a str,
    name: &'a str,
    elements: Elements<'a>,
    read: &'a AtomicU64,
}

#[derive(Clone, Copy, Debug)]
enum Elements<'a> {
    Bf16(&'a [u8]),
    F16(&'a [u8]),
    F32(&'a [u8]),
    Drawn(dummy::Drawn),
}

/// What a tensor's numbers are read from, for engines that take them as they are.
pub(crate) enum Source<'a> {
    /// Bytes of bf16.
    Bf16(&'a [u8]),
    /// Word `i` of the ChaCha8 stream of a key is element `i`; see [`dummy`].
    Drawn { key: [u32; 8], middle: f32, width: f32 },
    /// To be read through [`Tensor::read`].
    Other,
}

impl Weights {
    /// Opens a model and checks that it is complete.
    ///
    /// # Errors
    /// What is wrong, with file and tensor.
    pub fn open(source: &ModelSource) -> Result<Self, LoadError> {
        match source {
            ModelSource::Folder(folder) => Self::open_folder(folder),
            ModelSource::Dummy { config, seed } => Ok(Self {
                config: Config::parse("config.json", config.as_bytes())?,
                recommended: Recommended::default(),
                store: Store::Dummy { seed: *seed },
                read: AtomicU64::new(0),
            }),
            ModelSource::Bytes { config, generation, weights } => {
                let mut config = Config::parse("config.json (built in)", config)?;
                let recommended = match generation {
                    Some(json) => config.generation("generation_config.json (built in)", json)?,
                    None => Recommended::default(),
                };
                Self::checked(config, recommended, Shards::from_bytes("model.safetensors (built in)", weights.clone())?)
            }
        }
    }

    /// The model's shape and rules.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What its makers recommend for requests that say nothing.
    #[must_use]
    pub fn recommended(&self) -> Recommended {
        self.recommended
    }

    /// Bytes of the weights as stored; 0 for drawn ones.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match &self.store {
            Store::Shards(shards) => shards.bytes(),
            Store::Dummy { .. } => 0,
        }
    }

    /// Share of the elements that were read, from 0 to 1: how far an engine is that packs them. To be asked from another
    /// thread meanwhile.
    #[must_use]
    pub fn share_read(&self) -> f64 {
        let all: u64 = self.config.tensors().iter().map(|want| want.shape.iter().product::<usize>() as u64).sum();
        (self.read.load(Ordering::Relaxed) as f64 / all.max(1) as f64).min(1.0)
    }

    fn open_folder(folder: &Path) -> Result<Self, LoadError> {
        let path = folder.join("config.json");
        let json = std::fs::read(&path).map_err(|source| LoadError::Io { file: path.clone(), source })?;
        let mut config = Config::parse(&path.display().to_string(), &json)?;
        let path = folder.join("generation_config.json");
        let recommended = match std::fs::read(&path) {
            Ok(json) => config.generation(&path.display().to_string(), &json)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Recommended::default(),
            Err(source) => return Err(LoadError::Io { file: path, source }),
        };
        Self::checked(config, recommended, Shards::open(folder)?)
    }

    fn checked(config: Config, recommended: Recommended, shards: Shards) -> Result<Self, LoadError> {
        shards.check(&config)?;
        Ok(Self { config, recommended, store: Store::Shards(shards), read: AtomicU64::new(0) })
    }

    /// A tensor of [`Config::tensors`].
    ///
    /// # Panics
    /// If it is none of these: `open` has checked that those are there.
    pub(crate) fn tensor<'a>(&'a self, want: &'a Wanted) -> Tensor<'a> {
        let (file, elements) = match &self.store {
            Store::Shards(shards) => shards.tensor(&want.name).expect("a tensor that was checked to be there"),
            Store::Dummy { seed } => ("dummy weights", Elements::Drawn(dummy::Drawn::new(*seed, want))),
        };
        Tensor { file, name: &want.name, elements, read: &self.read }
    }
}

impl<'a> Tensor<'a> {
    /// Where its numbers come from.
    pub(crate) fn source(&self) -> Source<'a> {
        if let Elements::Bf16(bytes) = self.elements {
            self.read.fetch_add(bytes.len() as u64 / 2, Ordering::Relaxed);
        }
        match self.elements {
            Elements::Bf16(bytes) => Source::Bf16(bytes),
            Elements::Drawn(drawn) => drawn.source(),
            Elements::F16(_) | Elements::F32(_) => Source::Other,
        }
    }

    /// Reads elements from index `from` on.
    ///
    /// # Errors
    /// [`LoadError::NotFinite`].
    ///
    /// # Panics
    /// If there are not so many.
    pub(crate) fn read(&self, from: usize, out: &mut [f32]) -> Result<(), LoadError> {
        fn each<const N: usize>(bytes: &[u8], from: usize, out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
            let (elements, _) = bytes.as_chunks::<N>();
            let elements = &elements[from..][..out.len()];
            for (out, element) in out.iter_mut().zip(elements) {
                *out = value(*element);
            }
        }
        match &self.elements {
            Elements::Bf16(bytes) => each(bytes, from, out, |raw| bf16::from_le_bytes(raw).to_f32()),
            Elements::F16(bytes) => each(bytes, from, out, |raw| f16::from_le_bytes(raw).to_f32()),
            Elements::F32(bytes) => each(bytes, from, out, f32::from_le_bytes),
            Elements::Drawn(drawn) => drawn.read(from, out),
        }
        self.read.fetch_add(out.len() as u64, Ordering::Relaxed);
        // Zero times a finite number is zero; one odd weight makes the sum NaN.
        if out.iter().map(|value| value * 0.0).sum::<f32>() == 0.0 {
            Ok(())
        } else {
            Err(LoadError::NotFinite { file: self.file.to_owned(), tensor: self.name.to_owned() })
        }
    }

    /// True if every element is exact in bf16.
    pub(crate) fn is_bf16(&self) -> bool {
        matches!(self.elements, Elements::Bf16(_))
    }
}
