//! How fast the disk under a folder is.

use std::fs;
use std::io::{self, IoSlice};
use std::num::{NonZeroU32, NonZeroU64};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pd_core::cost::Disk;
use pd_core::rng::{Rng, Stream};

use super::faults::Faults;
use super::file::{BLOCK, Buffer, PageFile, can_be_direct};

/// Bytes per second, read past the system's cache from the largest files that are there, several at a time. `None` where
/// there is too little to read, or it cannot be read so.
#[must_use]
pub fn read_bytes_per_second(folder: &Path) -> Option<u64> {
    let entries = fs::read_dir(folder).ok()?.flatten();
    let mut files: Vec<(u64, PathBuf)> =
        entries.filter_map(|entry| Some((entry.metadata().ok()?.len(), entry.path()))).collect();
    files.retain(|(bytes, _)| *bytes >= BYTES_OF_FILE);
    files.sort_unstable_by(|a, b| b.cmp(a));
    files.truncate(FILES);
    if files.len() < FILES {
        return None;
    }
    let paths: Vec<PathBuf> = files.into_iter().map(|(_, path)| path).collect();
    read_rate(&paths, BYTES_OF_FILE, true).ok()
}

/// Measures the disk under a folder with files of `bytes` in all, which are removed again, and says whether the page cache
/// was bypassed: where it cannot be, its own speed is in the figures.
///
/// # Errors
/// If files cannot be written or read there, or the disk has no room for them.
pub fn measure(folder: &Path, name: &str, bytes: u64) -> io::Result<(Disk, bool)> {
    fs::create_dir_all(folder)?;
    let is_direct = can_be_direct(folder);
    let each = (bytes / FILES as u64).next_multiple_of(BYTES_AT_ONCE as u64);
    let files = Files((0..FILES).map(|_| folder.join(format!("probe-{:016x}.tmp", super::owners::random()))).collect());

    let begin = Instant::now();
    let written = side_by_side(FILES, |number| {
        let file = PageFile::create(&files.0[number], is_direct, Faults::default())?;
        let mut buffer = Buffer::new(BYTES_AT_ONCE);
        // No disk that compresses shall have it easy.
        let mut rng = Rng::new(number as u64, Stream::Probe, 0);
        buffer.bytes_mut().chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&rng.next().to_le_bytes()));
        for at in (0..each).step_by(BYTES_AT_ONCE) {
            file.write(&mut [IoSlice::new(buffer.bytes())], at)?;
        }
        file.sync()?;
        Ok(each)
    })?;
    let write_bytes_per_second = per_second(written, begin);
    let read_bytes_per_second = read_rate(&files.0, each, is_direct)?;

    let operations = |is_write: bool, depth: usize| {
        let begin = Instant::now();
        let done = side_by_side(depth, |number| {
            let file = PageFile::open(&files.0[number % FILES], is_write, is_direct, Faults::default())?;
            let mut buffer = Buffer::new(BLOCK);
            let mut rng = Rng::new(number as u64, Stream::Probe, 1);
            let mut count = 0;
            while begin.elapsed() < SPAN {
                let at = rng.below(each / BLOCK as u64) * BLOCK as u64;
                if is_write {
                    file.write(&mut [IoSlice::new(buffer.bytes())], at)?;
                } else {
                    file.read_into(buffer.bytes_mut(), at)?;
                }
                count += 1;
            }
            Ok(count)
        })?;
        Ok::<_, io::Error>(per_second(done, begin))
    };
    let latency_ns = |is_write| Ok::<_, io::Error>(1_000_000_000 / operations(is_write, 1)?.max(1));
    let mut syncs = Vec::with_capacity(SYNCS);
    let file = PageFile::open(&files.0[0], true, is_direct, Faults::default())?;
    let block = Buffer::new(BLOCK);
    for number in 0..SYNCS as u64 {
        file.write(&mut [IoSlice::new(block.bytes())], number * BLOCK as u64)?;
        let begin = Instant::now();
        file.sync()?;
        syncs.push(u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
    syncs.sort_unstable();
    let positive = |value: u64| NonZeroU64::new(value).unwrap_or(NonZeroU64::MIN);
    let disk = Disk {
        name: name.to_owned(),
        read_bytes_per_second: positive(read_bytes_per_second),
        write_bytes_per_second: positive(write_bytes_per_second),
        read_operations_per_second: positive(operations(false, DEPTH)?),
        write_operations_per_second: positive(operations(true, DEPTH)?),
        read_latency_ns: latency_ns(false)?,
        write_latency_ns: latency_ns(true)?,
        queue_depth: NonZeroU32::new(DEPTH as u32).unwrap_or(NonZeroU32::MIN),
        fsync_ns: syncs[SYNCS / 2],
    };
    Ok((disk, is_direct))
}

/// Files that go when this does.
struct Files(Vec<PathBuf>);

impl Drop for Files {
    fn drop(&mut self) {
        for path in &self.0 {
            // Absent if it could not be created.
            let _ = fs::remove_file(path);
        }
    }
}

/// Bytes per second of reading the beginnings of files, side by side.
fn read_rate(files: &[PathBuf], each: u64, is_direct: bool) -> io::Result<u64> {
    let begin = Instant::now();
    let read = side_by_side(files.len(), |number| {
        let file = PageFile::open(&files[number], false, is_direct, Faults::default())?;
        let mut buffer = Buffer::new(BYTES_AT_ONCE);
        let mut all = 0;
        while all < each {
            match file.read_into(buffer.bytes_mut(), all)? {
                0 => break,
                count => all += count,
            }
        }
        Ok(all)
    })?;
    Ok(per_second(read, begin))
}

/// The sum of what threads count.
fn side_by_side(threads: usize, work: impl Fn(usize) -> io::Result<u64> + Sync) -> io::Result<u64> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..threads).map(|number| scope.spawn(move || work(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))).sum()
    })
}

fn per_second(count: u64, since: Instant) -> u64 {
    (count as f64 / since.elapsed().as_secs_f64()) as u64
}

const FILES: usize = 4;
const BYTES_OF_FILE: u64 = 32 << 20;
const BYTES_AT_ONCE: usize = 4 << 20;
/// Small operations in flight.
const DEPTH: usize = 32;
const SPAN: Duration = Duration::from_millis(500);
const SYNCS: usize = 15;

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("pd-rate-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn too_little_to_read_is_no_measurement() {
        let folder = folder("little");
        assert_eq!(read_bytes_per_second(&folder), None);
        fs::write(folder.join("small"), [0; 4096]).unwrap();
        assert_eq!(read_bytes_per_second(&folder), None);
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(read_bytes_per_second(&folder), None, "no folder");
    }

    #[test]
    fn what_can_be_read_directly_is_measured() {
        let folder = folder("much");
        for number in 0..FILES {
            fs::write(folder.join(number.to_string()), vec![1; BYTES_OF_FILE as usize]).unwrap();
        }
        let (is_direct, rate) = (can_be_direct(&folder), read_bytes_per_second(&folder));
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(rate.is_some(), is_direct, "{rate:?}");
        assert_ne!(rate, Some(0));
    }

    #[test]
    fn a_measured_disk_has_a_value_for_everything_and_is_left_as_it_was() {
        let folder = folder("all");
        let (disk, is_direct) = measure(&folder, "here", 64 << 20).unwrap();
        assert_eq!(is_direct, can_be_direct(&folder));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "files were left");
        fs::remove_dir_all(&folder).unwrap();
        let least = [disk.read_bytes_per_second, disk.write_bytes_per_second].into_iter().min().unwrap();
        assert!(least.get() > 1 << 20, "{disk:?}");
        let small = [disk.read_operations_per_second, disk.write_operations_per_second].into_iter().min().unwrap();
        assert!(small.get() > 1, "{disk:?}");
        assert!(disk.read_latency_ns > 0 && disk.write_latency_ns > 0 && disk.fsync_ns > 0, "{disk:?}");
    }

    #[test]
    fn where_nothing_can_be_written_that_is_said() {
        let file = folder("none").join("file");
        fs::write(&file, "in the way").unwrap();
        assert!(measure(&file.join("below"), "nowhere", 1 << 20).is_err());
        fs::remove_dir_all(file.parent().unwrap()).unwrap();
    }
}
