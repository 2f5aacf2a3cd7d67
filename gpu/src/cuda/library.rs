//! Finds NVIDIA's libraries at run time: nothing of CUDA is needed to build or to start.
//!
//! cudarc opens libraries by name when a symbol is first used, and panics where that fails. So each is opened here first,
//! by name and then in the known places, and stays open: the loader then gives cudarc this very copy.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::error::CudaError;

/// A library that was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// What it is for.
    pub name: &'static str,
    /// The file, as the system mapped it.
    pub path: String,
}

/// What was found, or why nothing, from the first look on.
type Once = OnceLock<Result<Found, CudaError>>;

/// Opens the driver's library.
///
/// # Errors
/// [`CudaError::Library`].
pub fn driver() -> Result<&'static Found, CudaError> {
    static FOUND: Once = Once::new();
    let hint = "it comes with the NVIDIA driver; in a container, run with --gpus all";
    open_once(&FOUND, "libcuda", &["libcuda.so.1", "libcuda.so"], &[], hint)
}

/// Opens the compiler of kernels.
///
/// # Errors
/// [`CudaError::Library`].
pub fn nvrtc() -> Result<&'static Found, CudaError> {
    static FOUND: Once = Once::new();
    let hint = "install a CUDA 13 toolkit or `pip install nvidia-cuda-nvrtc`, or set PD_CUDA_LIB_PATH to its folder";
    open_once(&FOUND, "libnvrtc", &["libnvrtc.so.13", "libnvrtc.so.12"], &["libnvrtc-builtins.so"], hint)
}

/// Opens the library of matrix products.
///
/// # Errors
/// [`CudaError::Library`].
pub fn blas() -> Result<&'static Found, CudaError> {
    static FOUND: Once = Once::new();
    let hint = "install a CUDA 13 toolkit or `pip install nvidia-cublas`, or set PD_CUDA_LIB_PATH to its folder";
    open_once(&FOUND, "libcublasLt", &["libcublasLt.so.13", "libcublasLt.so.12"], &[], hint)
}

fn open_once(
    once: &'static Once,
    name: &'static str,
    names: &[&str],
    companions: &[&str],
    hint: &'static str,
) -> Result<&'static Found, CudaError> {
    once.get_or_init(|| open(name, names, companions, hint)).as_ref().map_err(Clone::clone)
}

/// Tries the names as the loader's own, then in all known folders. `companions` are prefixes of libraries that have to be
/// open before, found beside it.
fn open(name: &'static str, names: &[&str], companions: &[&str], hint: &'static str) -> Result<Found, CudaError> {
    let mut why = String::new();
    for file in names {
        match load(file) {
            Ok(()) => return Ok(Found { name, path: mapped(file).unwrap_or_else(|| (*file).to_owned()) }),
            Err(error) => why = error,
        }
    }
    let folders = folders();
    for folder in &folders {
        for file in names.iter().map(|file| folder.join(file)).filter(|file| file.exists()) {
            for companion in companions_of(folder, companions) {
                // If it cannot be opened, the library itself says what is missing.
                let _ = load(&companion.to_string_lossy());
            }
            let path = file.to_string_lossy().into_owned();
            match load(&path) {
                Ok(()) => return Ok(Found { name, path }),
                Err(error) => why = error,
            }
        }
    }
    let places = match folders.as_slice() {
        [] => "the loader's folders".to_owned(),
        [first, rest @ ..] => format!("the loader's folders, {} and {} more", first.display(), rest.len()),
    };
    Err(CudaError::Library { library: name, why, places, hint })
}

fn load(file: &str) -> Result<(), String> {
    // SAFETY: opening a library runs its initialisers. These are NVIDIA's, which are made to be opened at any time.
    match unsafe { libloading::Library::new(file) } {
        Ok(library) => {
            // Never closed: cudarc keeps pointers into it.
            std::mem::forget(library);
            Ok(())
        }
        Err(error) => Err(std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string)),
    }
}

fn companions_of(folder: &Path, prefixes: &[&str]) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_one = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        prefixes.iter().any(|prefix| name.starts_with(prefix))
    };
    let mut found: Vec<PathBuf> = entries.filter(is_one).collect();
    found.sort();
    found
}

/// The file behind a name that the loader resolved.
fn mapped(name: &str) -> Option<String> {
    let stem = name.split(".so").next()?;
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let path = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..])).find(|path| {
        let file = Path::new(path).file_name().map(|file| file.to_string_lossy().into_owned()).unwrap_or_default();
        file.starts_with(&format!("{stem}.so"))
    });
    path.map(str::to_owned)
}

/// Where toolkits and Python's wheels keep libraries, the caller's choice first.
fn folders() -> Vec<PathBuf> {
    let mut list = Vec::new();
    for variable in ["PD_CUDA_LIB_PATH", "LD_LIBRARY_PATH"] {
        list.extend(env::var_os(variable).iter().flat_map(env::split_paths).collect::<Vec<_>>());
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let mut kits = children(Path::new("/usr/local"), "cuda");
    kits.reverse();
    for kit in homes.chain(kits) {
        list.extend(["lib64", "lib", "targets/x86_64-linux/lib"].map(|part| kit.join(part)));
    }
    for root in python_roots() {
        for python in children(&root.join("lib"), "python3") {
            for packages in ["site-packages", "dist-packages"] {
                let wheels = children(&python.join(packages).join("nvidia"), "");
                list.extend(wheels.into_iter().map(|wheel| wheel.join("lib")));
            }
        }
    }
    let system = [
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib64",
        "/usr/local/nvidia/lib64",
        "/usr/lib/wsl/lib",
        "/run/opengl-driver/lib",
    ];
    list.extend(system.map(PathBuf::from));
    let mut seen = BTreeSet::new();
    list.retain(|folder| folder.is_dir() && seen.insert(folder.clone()));
    list
}

fn python_roots() -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> = env::var_os("VIRTUAL_ENV").map(PathBuf::from).into_iter().collect();
    let path = env::var_os("PATH").unwrap_or_default();
    let pythons = env::split_paths(&path).filter(|folder| folder.join("python3").exists());
    roots.extend(pythons.filter_map(|folder| folder.parent().map(Path::to_owned)));
    roots.extend(["/usr", "/usr/local"].map(PathBuf::from));
    for home in children(Path::new("/opt"), "") {
        roots.extend([home.join(".venv"), home.join("venv"), home]);
    }
    roots
}

fn children(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect();
    found.sort();
    found
}
