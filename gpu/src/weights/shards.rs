//! Files of tensors: one `model.safetensors`, or several with an index.
//!
//! Files are mapped, not read: opening costs their headers, and pages that packing has read can be dropped by the system.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorInfo};
use serde::Deserialize;

use super::config::Config;
use super::error::LoadError;
use super::{Elements, tensors};

/// All files of a model.
#[derive(Debug)]
pub(super) struct Shards {
    /// What errors name where no shard can be named.
    name: String,
    shards: Vec<Shard>,
    /// Each tensor's shard, type and place.
    tensors: BTreeMap<String, (usize, TensorInfo)>,
}

#[derive(Debug)]
struct Shard {
    name: String,
    bytes: Bytes,
    /// Where the tensors begin.
    data: usize,
}

#[derive(Debug)]
enum Bytes {
    Mapped(Mmap),
    Held(Cow<'static, [u8]>),
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Shards {
    pub(super) fn open(folder: &Path) -> Result<Self, LoadError> {
        let path = folder.join("model.safetensors.index.json");
        if path.exists() {
            return Self::open_index(folder, &path);
        }
        let path = folder.join("model.safetensors");
        let bytes = map(&path).map_err(|source| LoadError::Io { file: path.clone(), source })?;
        let mut shards = Self::empty(path.display().to_string());
        shards.add(path.display().to_string(), Bytes::Mapped(bytes))?;
        Ok(shards)
    }

    pub(super) fn from_bytes(name: &str, bytes: Cow<'static, [u8]>) -> Result<Self, LoadError> {
        let mut shards = Self::empty(name.to_owned());
        shards.add(name.to_owned(), Bytes::Held(bytes))?;
        Ok(shards)
    }

    fn open_index(folder: &Path, path: &Path) -> Result<Self, LoadError> {
        let name = path.display().to_string();
        let json = std::fs::read(path).map_err(|source| LoadError::Io { file: path.to_owned(), source })?;
        let index: Index = serde_json::from_slice(&json)
            .map_err(|error| LoadError::Config { file: name.clone(), why: error.to_string() })?;
        let mut files: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tensor, file) in &index.weight_map {
            if file.contains(['/', '\\']) || file.starts_with('.') {
                let why = format!("places {tensor} in {file:?}; shards have to lie in the same folder");
                return Err(LoadError::Config { file: name, why });
            }
            files.entry(file).or_default().push(tensor);
        }
        let mut shards = Self::empty(name.clone());
        for (file, tensors) in files {
            let path = folder.join(file);
            let bytes = map(&path).map_err(|source| LoadError::Shard {
                index: name.clone(),
                shard: file.to_owned(),
                tensor: tensors[0].to_owned(),
                source,
            })?;
            shards.add(path.display().to_string(), Bytes::Mapped(bytes))?;
        }
        Ok(shards)
    }

    fn empty(name: String) -> Self {
        Self { name, shards: Vec::new(), tensors: BTreeMap::new() }
    }

    fn add(&mut self, name: String, bytes: Bytes) -> Result<(), LoadError> {
        let (header, metadata) = SafeTensors::read_metadata(bytes.all()).map_err(|error| LoadError::Safetensors {
            file: name.clone(),
            why: error.to_string(),
            bytes: bytes.all().len(),
        })?;
        let shard = self.shards.len();
        for tensor in metadata.offset_keys() {
            if let Some(info) = metadata.info(&tensor) {
                self.tensors.insert(tensor, (shard, info.clone()));
            }
        }
        self.shards.push(Shard { name, bytes, data: header + size_of::<u64>() });
        Ok(())
    }

    pub(super) fn bytes(&self) -> u64 {
        self.tensors.values().map(|(_, info)| (info.data_offsets.1 - info.data_offsets.0) as u64).sum()
    }

    /// Refuses files in which something is missing, misshapen or left over.
    pub(super) fn check(&self, config: &Config) -> Result<(), LoadError> {
        let wanted = config.tensors();
        for want in &wanted {
            let Some((shard, info)) = self.tensors.get(&want.name) else {
                let (file, tensor) = (self.name.clone(), want.name.clone());
                return Err(LoadError::Missing { file, tensor, want: want.shape.clone() });
            };
            let file = || self.shards[*shard].name.clone();
            if !matches!(info.dtype, Dtype::BF16 | Dtype::F16 | Dtype::F32) {
                let found = format!("{:?}", info.dtype);
                return Err(LoadError::Dtype { file: file(), tensor: want.name.clone(), found });
            }
            if info.shape != want.shape {
                let (want, found) = (want.clone(), info.shape.clone());
                return Err(LoadError::Shape { file: file(), tensor: want.name, want: want.shape, found });
            }
        }
        let mut names: Vec<&str> = wanted.iter().map(|want| want.name.as_str()).collect();
        names.sort_unstable();
        let left_over = self.tensors.iter().find(|(name, _)| {
            // Old checkpoints store the rotation's frequencies, which the configuration gives.
            name.starts_with("model.layers.")
                && !name.ends_with("rotary_emb.inv_freq")
                && names.binary_search(&name.as_str()).is_err()
        });
        match left_over {
            Some((tensor, (shard, _))) => {
                Err(LoadError::Unexpected { file: self.shards[*shard].name.clone(), tensor: tensor.clone() })
            }
            None => Ok(()),
        }
    }

    pub(super) fn tensor(&self, name: &str) -> Option<(&str, Elements<'_>)> {
        let (shard, info) = self.tensors.get(name)?;
        let shard = &self.shards[*shard];
        let bytes = &shard.bytes.all()[shard.data..][info.data_offsets.0..info.data_offsets.1];
        let elements = if info.dtype == Dtype::BF16 {
            Elements::Bf16(bytes)
        } else if info.dtype == Dtype::F16 {
            Elements::F16(bytes)
        } else if info.dtype == Dtype::F32 {
            Elements::F32(bytes)
        } else {
            return None;
        };
        Some((&shard.name, elements))
    }

    /// Type and bytes of a tensor, as stored.
    pub(super) fn raw(&self, want: &tensors::Wanted) -> Option<(String, &[u8])> {
        let (shard, info) = self.tensors.get(&want.name)?;
        let shard = &self.shards[*shard];
        let bytes = &shard.bytes.all()[shard.data..][info.data_offsets.0..info.data_offsets.1];
        Some((format!("{:?}", info.dtype), bytes))
    }
}

impl Bytes {
    fn all(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Held(bytes) => bytes,
        }
    }
}

fn map(path: &Path) -> std::io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: a mapping is sound as long as nobody shortens or rewrites the file while it is read. As with every loader
    // of models that maps files, this is asked of whoever owns the folder; the mapping ends when the engine has packed
    // the weights.
    unsafe { Mmap::map(&file) }
}
