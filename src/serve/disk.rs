//! How fast a folder of L3 can be read: what a fetch is weighed against computing with.

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Bytes per second, read past the system's cache from the largest files that are there, several at a time. `None` where
/// there is too little to read, or it cannot be read so.
pub(crate) fn read_bytes_per_second(folder: &Path) -> Option<u64> {
    let entries = fs::read_dir(folder).ok()?.flatten();
    let mut files: Vec<(u64, PathBuf)> =
        entries.filter_map(|entry| Some((entry.metadata().ok()?.len(), entry.path()))).collect();
    files.retain(|(bytes, _)| *bytes >= BYTES_OF_FILE as u64);
    files.sort_unstable_by(|a, b| b.cmp(a));
    files.truncate(FILES);
    if files.len() < FILES {
        return None;
    }
    let begin = Instant::now();
    let read: Option<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = files.iter().map(|(_, file)| scope.spawn(|| read(file))).collect();
        threads.into_iter().map(|thread| thread.join().ok().flatten()).sum()
    });
    let seconds = begin.elapsed().as_secs_f64();
    read.map(|bytes| (bytes as f64 / seconds) as u64)
}

/// Reads the beginning of a file; how much that was.
fn read(file: &Path) -> Option<u64> {
    let mut file = OpenOptions::new().read(true).custom_flags(O_DIRECT).open(file).ok()?;
    // The system reads into aligned memory only.
    let mut memory = vec![0; BLOCK_BYTES + ALIGNMENT];
    let from = memory.as_ptr().align_offset(ALIGNMENT);
    let block = &mut memory[from..][..BLOCK_BYTES];
    let mut all = 0;
    while all < BYTES_OF_FILE {
        match file.read(block).ok()? {
            0 => break,
            count => all += count,
        }
    }
    Some(all as u64)
}

/// Of Linux.
const O_DIRECT: i32 = 0o40000;
const FILES: usize = 4;
const BYTES_OF_FILE: usize = 32 << 20;
const BLOCK_BYTES: usize = 4 << 20;
const ALIGNMENT: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_to_read_is_no_measurement() {
        let folder = std::env::temp_dir().join(format!("pd-disk-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        assert_eq!(read_bytes_per_second(&folder), None);
        fs::write(folder.join("small"), [0; 4096]).unwrap();
        assert_eq!(read_bytes_per_second(&folder), None);
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(read_bytes_per_second(&folder), None, "no folder");
    }
}
