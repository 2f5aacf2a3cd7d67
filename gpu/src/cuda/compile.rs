//! Kernel sources to cubins: compiled by NVRTC for the GPU at hand, and kept on disk.
//!
//! The sources are in this binary. A cubin is named after all that it depends on (source, architecture, options, version
//! of the compiler), so that nothing stale is ever loaded; a file that does not hold what was written is compiled anew.

use std::ffi::{CStr, CString};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cudarc::nvrtc::sys;

use super::driver::{Context, Result};
use super::error::CudaError;
use super::library;
use super::module::Module;

/// One file of kernels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    /// Name of the file, without its end.
    pub(crate) name: &'static str,
    /// Its text.
    pub(crate) text: &'static str,
}

/// What kernels include: name and text.
const HEADERS: [(&CStr, &str); 2] =
    [(c"prims.cuh", include_str!("kernels/prims.cuh")), (c"hopper.cuh", include_str!("kernels/hopper.cuh"))];

/// Where compiled kernels are kept: below `$PD_CACHE_DIR`, `$XDG_CACHE_HOME/pd` or `~/.cache/pd`. Without any of them
/// kernels are compiled at each start.
pub(crate) fn cache_folder() -> Option<PathBuf> {
    let named = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    named("PD_CACHE_DIR")
        .or_else(|| named("XDG_CACHE_HOME").map(|folder| folder.join("pd")))
        .or_else(|| named("HOME").map(|folder| folder.join(".cache/pd")))
}

/// Loads sets of kernels, from disk or by compiling them, several at a time.
///
/// # Errors
/// [`CudaError::Library`] without a compiler, [`CudaError::Compile`], [`CudaError::Unsupported`] for old GPUs.
pub(crate) fn load(context: &Arc<Context>, sources: &[Source]) -> Result<Vec<Module>> {
    let (major, minor) = context.capability;
    if context.capability < least_capability() {
        return Err(CudaError::Unsupported(format!(
            "{} has compute capability {major}.{minor}; the kernels need 9.0 or newer (Hopper)",
            context.name
        )));
    }
    // Hopper's own instructions are in the set with an `a` only.
    let arch = if (major, minor) == (9, 0) { "sm_90a".to_owned() } else { format!("sm_{major}{minor}") };
    let version = version()?;
    let folder = cache_folder().map(|folder| folder.join("kernels"));
    let images: Vec<Result<Vec<u8>>> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            sources.iter().map(|source| scope.spawn(|| image(source, &arch, version, folder.as_deref()))).collect();
        threads.into_iter().map(|thread| thread.join().expect("compiling does not panic")).collect()
    });
    images.into_iter().map(|image| Module::load(context, &image?)).collect()
}

/// The oldest GPUs that the kernels run on: those whose kernels may start before the one in front has ended.
pub(super) const fn least_capability() -> (u32, u32) {
    (9, 0)
}

fn version() -> Result<(i32, i32)> {
    library::nvrtc()?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library is loaded; both pointers are to live integers.
    let status = unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
    if status == sys::nvrtcResult::NVRTC_SUCCESS {
        Ok((major, minor))
    } else {
        Err(CudaError::Unsupported(format!("nvrtcVersion: {status:?}")))
    }
}

fn image(source: &Source, arch: &str, version: (i32, i32), folder: Option<&Path>) -> Result<Vec<u8>> {
    let mut hasher = blake3::Hasher::new_derive_key("pd kernel image 1");
    let (options, version) = (OPTIONS.join(" "), format!("{version:?}"));
    let headers = HEADERS.map(|(_, text)| text);
    for part in [source.name, source.text, arch, &options, &version].into_iter().chain(headers) {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let key = hasher.finalize().to_hex();
    let file = folder.map(|folder| folder.join(format!("{}-{arch}-{}.cubin", source.name, &key[..16])));
    if let Some(image) = file.as_deref().and_then(read) {
        return Ok(image);
    }
    let image = compile(source, arch)?;
    if let Some(file) = file
        && let Err(error) = write(&file, &image)
    {
        tracing::debug!("compiled kernels are not kept: {}: {error}", file.display());
    }
    Ok(image)
}

/// An image that was kept whole: its hash, then its bytes.
fn read(file: &Path) -> Option<Vec<u8>> {
    let bytes = fs::read(file).ok()?;
    let (hash, image) = bytes.split_at_checked(blake3::OUT_LEN)?;
    (blake3::hash(image).as_bytes() == hash).then(|| image.to_vec())
}

fn write(file: &Path, image: &[u8]) -> std::io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    // Renamed when it is whole; two processes that compile at once write the same.
    let part = file.with_extension(format!("{}.part", std::process::id()));
    fs::write(&part, [blake3::hash(image).as_bytes(), image].concat())?;
    fs::rename(part, file)
}

fn compile(source: &Source, arch: &str) -> Result<Vec<u8>> {
    let failed = |log: String| CudaError::Compile { set: source.name, arch: arch.to_owned(), log };
    let text = CString::new(source.text).map_err(|error| failed(error.to_string()))?;
    let name = CString::new(format!("{}.cu", source.name)).map_err(|error| failed(error.to_string()))?;
    let options = OPTIONS.iter().map(|option| (*option).to_owned()).chain([format!("--gpu-architecture={arch}")]);
    let options: Vec<CString> = options.map(|option| CString::new(option).expect("an option without zeros")).collect();
    let pointers: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
    let headers = HEADERS.map(|(_, text)| CString::new(text).expect("a header without zeros"));
    let texts: Vec<_> = headers.iter().map(|text| text.as_ptr()).collect();
    let names = HEADERS.map(|(name, _)| name.as_ptr());
    let count = HEADERS.len() as i32;
    let mut program = std::ptr::null_mut();
    // SAFETY: all strings end with a zero and live until the call returns; there are `count` headers.
    let created = unsafe {
        sys::nvrtcCreateProgram(&mut program, text.as_ptr(), name.as_ptr(), count, texts.as_ptr(), names.as_ptr())
    };
    if created != sys::nvrtcResult::NVRTC_SUCCESS {
        return Err(failed(format!("nvrtcCreateProgram: {created:?}")));
    }
    // SAFETY: the program was created above; buffers have the sizes that the library names; it is destroyed once.
    let (status, log, image) = unsafe {
        let status = sys::nvrtcCompileProgram(program, pointers.len() as i32, pointers.as_ptr());
        let mut bytes = 0;
        sys::nvrtcGetProgramLogSize(program, &mut bytes);
        let mut log = vec![0_u8; bytes];
        sys::nvrtcGetProgramLog(program, log.as_mut_ptr().cast());
        let mut image = Vec::new();
        if status == sys::nvrtcResult::NVRTC_SUCCESS
            && sys::nvrtcGetCUBINSize(program, &mut bytes) == sys::nvrtcResult::NVRTC_SUCCESS
        {
            image = vec![0_u8; bytes];
            sys::nvrtcGetCUBIN(program, image.as_mut_ptr().cast());
        }
        sys::nvrtcDestroyProgram(&mut program);
        (status, log, image)
    };
    let log = String::from_utf8_lossy(&log).trim_matches(['\0', '\n', ' ']).to_owned();
    if status == sys::nvrtcResult::NVRTC_SUCCESS && !image.is_empty() { Ok(image) } else { Err(failed(log)) }
}

const OPTIONS: &[&str] = &["--std=c++17", "--use_fast_math", "--device-as-default-execution-space"];
