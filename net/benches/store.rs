//! L3 on disk against plain files of the same blocks, syncs and flags, in one run and in turns: quote the ratio.
//!
//! `cargo bench -p pd-net --bench store -- [folder] [MiB per pass]`

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use pd_core::id::{PageKey, Token};
use pd_net::store::{Identity, Record, Store, StoreConfig};

type Outcome<T> = Result<T, Box<dyn Error>>;

const ROOT: PageKey = PageKey(1);
const MIB: usize = 1 << 20;
/// Bytes between syncs.
const SYNC: usize = 64 * MIB;
const ROUNDS: usize = 4;

fn main() -> Outcome<()> {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let base = words.first().map_or_else(std::env::temp_dir, PathBuf::from);
    let total = words.get(1).map_or(Ok(512), |word| word.parse::<usize>())? * MIB;
    let dir = base.join(format!("pd-bench-store-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let result = measure(&dir, total);
    std::fs::remove_dir_all(&dir)?;
    result
}

fn measure(dir: &Path, total: usize) -> Outcome<()> {
    println!("GB/s, best of {ROUNDS} rounds; {} MiB a pass, a sync every {} MiB", total / MIB, SYNC / MIB);
    println!("{:>10} {:>7} {:>7} {:>7} {:>7}", "page", "what", "plain", "store", "ratio");
    for page_bytes in [256 << 10, MIB] {
        let mut best = [[0.0_f64; 3]; 2];
        for round in 0..ROUNDS {
            let plain = dir.join(format!("plain-{page_bytes}-{round}"));
            let store = dir.join(format!("store-{page_bytes}-{round}"));
            // Who is first takes turns.
            for which in [round % 2, 1 - round % 2] {
                let path = if which == 0 { &plain } else { &store };
                let rates = if which == 0 {
                    plain_rates(path, page_bytes, total)?
                } else {
                    store_rates(path, page_bytes, total)?
                };
                for (best, rate) in best[which].iter_mut().zip(rates) {
                    *best = best.max(rate);
                }
            }
            std::fs::remove_file(plain)?;
            std::fs::remove_dir_all(store)?;
        }
        for (what, (plain, store)) in ["write", "read", "read x4"].iter().zip(best[0].iter().zip(best[1])) {
            println!("{:>6} KiB {what:>7} {plain:>7.2} {store:>7.2} {:>6.0}%", page_bytes >> 10, store / plain * 100.0);
        }
    }
    open_many(dir)
}

/// Aligned memory for direct IO.
struct Memory(Vec<u8>, usize, usize);

impl Memory {
    fn new(bytes: usize) -> Self {
        let mut memory: Vec<u8> = (0..bytes + 4096).map(|at| ((at * 31) >> 3) as u8).collect();
        let start = memory.as_mut_ptr().align_offset(4096);
        Self(memory, start, bytes)
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.0[self.1..self.1 + self.2]
    }
}

fn rate(bytes: usize, start: Instant) -> f64 {
    bytes as f64 / start.elapsed().as_secs_f64() / 1e9
}

fn direct(path: &Path) -> std::io::Result<File> {
    let open =
        |flags| OpenOptions::new().read(true).write(true).create(true).truncate(false).custom_flags(flags).open(path);
    open(libc::O_DIRECT).or_else(|_| open(0))
}

fn plain_rates(path: &Path, page_bytes: usize, total: usize) -> Outcome<[f64; 3]> {
    let mut memory = Memory::new(SYNC);
    let file = direct(path)?;
    let start = Instant::now();
    for (number, at) in (0..total).step_by(page_bytes).enumerate() {
        let from = number * page_bytes % SYNC;
        file.write_all_at(&memory.bytes()[from..from + page_bytes], at as u64)?;
        if (at + page_bytes).is_multiple_of(SYNC) {
            file.sync_data()?;
        }
    }
    file.sync_data()?;
    let write = rate(total, start);
    let read = |thread: usize, threads: usize| -> std::io::Result<()> {
        let mut memory = Memory::new(page_bytes);
        (0..total)
            .step_by(page_bytes)
            .skip(thread)
            .step_by(threads)
            .try_for_each(|at| file.read_exact_at(memory.bytes(), at as u64))
    };
    let start = Instant::now();
    read(0, 1)?;
    let one = rate(total, start);
    Ok([write, one, four(total, |thread| Ok(read(thread, 4)?))?])
}

fn four(total: usize, read: impl Fn(usize) -> Outcome<()> + Sync) -> Outcome<f64> {
    let start = Instant::now();
    let all = std::thread::scope(|scope| {
        let read = &read;
        let threads: Vec<_> = (0..4).map(|thread| scope.spawn(move || read(thread).is_ok())).collect();
        threads.into_iter().all(|thread| thread.join().unwrap_or(false))
    });
    if all { Ok(rate(total, start)) } else { Err("a read failed".into()) }
}

fn identity(number: usize, tokens: &[Token]) -> Identity<'_> {
    let key = |number: usize| PageKey((number as u128 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835));
    Identity { key: key(number), root: ROOT, parent: if number == 0 { ROOT } else { key(number - 1) }, tokens }
}

fn store_rates(path: &Path, page_bytes: usize, total: usize) -> Outcome<[f64; 3]> {
    let (store, _) = Store::open(StoreConfig::new(path))?;
    let mut memory = Memory::new(SYNC);
    let tokens = [Token(7); 16];
    let start = Instant::now();
    for first in (0..total / page_bytes).step_by(SYNC / page_bytes) {
        let pages = memory.bytes().chunks(page_bytes).enumerate();
        let records: Vec<Record<'_>> =
            pages.map(|(at, bytes)| Record { page: identity(first + at, &tokens), bytes }).collect();
        store.write(&records).into_iter().collect::<Result<Vec<()>, _>>().map_err(|fault| format!("{fault:?}"))?;
    }
    let write = rate(total, start);
    let read = |thread: usize, threads: usize| -> Outcome<()> {
        let mut memory = Memory::new(page_bytes);
        for number in (0..total / page_bytes).skip(thread).step_by(threads) {
            store.read(identity(number, &tokens), memory.bytes()).map_err(|fault| format!("{fault:?}"))?;
        }
        Ok(())
    };
    let start = Instant::now();
    read(0, 1)?;
    let one = rate(total, start);
    Ok([write, one, four(total, |thread| read(thread, 4))?])
}

fn open_many(dir: &Path) -> Outcome<()> {
    const PAGES: usize = 1_000_000;
    let path = dir.join("many");
    let (store, _) = Store::open(StoreConfig::new(&path))?;
    let tokens = [Token(7); 16];
    let start = Instant::now();
    for first in (0..PAGES).step_by(20_000) {
        let bytes = [5; 64];
        let records: Vec<Record<'_>> =
            (first..first + 20_000).map(|number| Record { page: identity(number, &tokens), bytes: &bytes }).collect();
        store.write(&records).into_iter().collect::<Result<Vec<()>, _>>().map_err(|fault| format!("{fault:?}"))?;
    }
    println!("{PAGES} pages of 64 bytes: written in {:?}", start.elapsed());
    let start = Instant::now();
    drop(store);
    println!("closed, with a snapshot, in {:?}", start.elapsed());
    for _ in 0..2 {
        let (store, report) = Store::open(StoreConfig::new(&path))?;
        println!("{report}");
        let start = Instant::now();
        let (mut after, mut count) = (None, 0);
        loop {
            let page = store.scan(ROOT, after, 4096);
            count += page.keys.len();
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        println!("listed {count} in {:?}", start.elapsed());
        drop(store);
        std::fs::remove_file(path.join("index.snap"))?;
    }
    Ok(())
}
