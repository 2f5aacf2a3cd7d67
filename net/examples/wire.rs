//! What the wires reach, beside what the machine gives: a raw socket copy and a memcpy of the same blocks, in turns.
//!
//! `cargo run --release -p pd-net --example wire`
//!
//! Estimate, for one core a side at 11.6 GB/s of memcpy, 4.5 GB/s of raw loopback and 13.8 GB/s of crc32c (more in the
//! second-level cache, where a chunk of 256 KiB is when it is sent): TCP 1 / (1/4.5 + 1/13.8) = 3.4 GB/s, which is 75 % of
//! raw; shared memory one copy and two atomics a page, 95 % of memcpy. To be reached: 70 % and 60 %.
//!
//! Measured in one run on two Zen 4 cores with other work on them (the run had the higher priority), best of 24, GB/s:
//!
//! ```text
//!  blocks    streams   memcpy   shared          raw tcp   tcp
//!    64 KiB  1         15.6     15.8  (101 %)   2.14      1.78  (83 %)
//!    64 KiB  2         12.7     15.1  (119 %)   3.37      2.68  (80 %)
//!   256 KiB  1         16.7     16.6  (99 %)    2.37      2.11  (89 %)
//!   256 KiB  2         21.0     17.0  (81 %)    3.73      3.70  (99 %)
//!  1024 KiB  1         16.2     16.1  (99 %)    2.86      2.08  (73 %)
//!  1024 KiB  2         26.0     26.2  (101 %)   3.63      4.22  (116 %)
//! ```
//!
//! Shares above 100 % are the other work's doing.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, mpsc};
use std::time::Instant;

use pd_core::id::{Epoch, Generation, GpuPage, OpId, Room, WorkerId};
use pd_core::op::{Outcome, Push};
use pd_net::wire::{Endpoint, Receiver, ReceiverConfig, Transport, Wire, WireConfig};
use pd_sync::Arena;

const TOTAL: usize = 128 << 20;
const ROUNDS: usize = 24;
const LIFE: Epoch = Epoch(1);

fn main() {
    println!("GB/s, best of {ROUNDS}; shares of memcpy and of raw TCP, by the best and by the median");
    println!("blocks   streams   memcpy   shared                raw tcp  tcp");
    for page_bytes in [64 << 10, 256 << 10, 1 << 20] {
        for streams in [1, 2] {
            row(page_bytes, streams);
        }
    }
}

fn row(page_bytes: usize, streams: u32) {
    let pages = (TOTAL / page_bytes) as u32;
    let from = Arc::new(Arena::new(page_bytes, pages).expect("memory"));
    let into = Arc::new(Arena::shared(page_bytes, pages, LIFE.0).expect("memory"));
    for page in 0..pages {
        from.write(page).expect("free").fill(page as u8);
        into.write(page).expect("free").fill(0);
    }
    let mut tcp = Bench::new(&from, &into, streams, Wire::tcp);
    let mut shared = Bench::new(&from, &into, streams, Wire::shared);
    let mut all = [const { Vec::new() }; 4];
    for round in 0..ROUNDS {
        // In turns, and each of them behind each other one: what the one before left in caches counts.
        for turn in 0..all.len() {
            let which = (round + turn * (1 + 2 * (round / 4 % 2))) % all.len();
            let speed = match which {
                0 => timed(|| memcpy(&from, &into, streams)),
                1 => timed(|| shared.push_all()),
                2 => timed(|| raw(&from, &into, streams)),
                _ => timed(|| tcp.push_all()),
            };
            all[which].push(speed);
        }
    }
    for page in 0..pages {
        assert!(into.read(page).expect("free").iter().all(|byte| *byte == back(page, pages) as u8), "page {page}");
    }
    assert_eq!(shared.wire.counters().fallbacks, 0, "it did go through shared memory");
    let best = |index: usize| all[index].iter().copied().fold(0.0, f64::max);
    let median = |index: usize| {
        let mut speeds = all[index].clone();
        speeds.sort_by(f64::total_cmp);
        speeds[speeds.len() / 2]
    };
    let shares = |index: usize| {
        let of = |value: &dyn Fn(usize) -> f64| 100.0 * value(index) / value(index - 1);
        format!("{:>4.0} % {:>4.0} %", of(&best), of(&median))
    };
    println!(
        "{:>4} KiB  {streams}        {:>6.2}   {:>6.2}  {}   {:>6.2}   {:>6.2}  {}",
        page_bytes >> 10,
        best(0),
        best(1),
        shares(1),
        best(2),
        best(3),
        shares(3),
    );
}

/// GB/s of something that moves all pages.
fn timed(run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    TOTAL as f64 / start.elapsed().as_secs_f64() / 1e9
}

/// Blocks go to where they were not: the last one first.
fn back(page: u32, pages: u32) -> u32 {
    pages - 1 - page
}

fn memcpy(from: &Arena, into: &Arena, threads: u32) {
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                for page in (thread..from.pages()).step_by(threads as usize) {
                    let source = from.read(page).expect("free");
                    into.write(back(page, from.pages())).expect("free").copy_from_slice(&source);
                }
            });
        }
    });
}

/// Pages in order over plain sockets, read to where they belong; nothing is checked.
fn raw(from: &Arena, into: &Arena, streams: u32) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let (step, pages) = (streams as usize, from.pages());
    std::thread::scope(|scope| {
        for stream in 0..streams {
            let mut source = TcpStream::connect(address).expect("somebody listens");
            let (mut sink, _) = listener.accept().expect("somebody calls");
            source.set_nodelay(true).expect("a socket");
            scope.spawn(move || {
                for page in (stream..pages).step_by(step) {
                    source.write_all(&from.read(page).expect("free")).expect("sent");
                }
                source.read_exact(&mut [0]).expect("all there");
            });
            scope.spawn(move || {
                for page in (stream..pages).step_by(step) {
                    sink.read_exact(&mut into.write(back(page, pages)).expect("free")).expect("received");
                }
                sink.write_all(&[1]).expect("sent");
            });
        }
    });
}

/// Two workers.
struct Bench {
    wire: Wire,
    outcomes: mpsc::Receiver<(OpId, Outcome)>,
    receiver: Receiver,
    pages: u32,
    generation: u32,
}

type Make = fn(WireConfig, Arc<Arena>, pd_net::wire::Done) -> Wire;

impl Bench {
    fn new(from: &Arc<Arena>, into: &Arc<Arena>, streams: u32, make: Make) -> Self {
        let (sender, outcomes) = mpsc::channel();
        let sender = std::sync::Mutex::new(sender);
        let done = Arc::new(move |op, outcome| sender.lock().expect("whole").send((op, outcome)).expect("awaited"));
        let receiver = Receiver::listen(ReceiverConfig::new(WorkerId(2), LIFE), into.clone()).expect("a port");
        let wire = make(WireConfig { streams, ..WireConfig::new(WorkerId(1), LIFE) }, from.clone(), done);
        wire.up(&Endpoint { id: WorkerId(2), epoch: LIFE, address: receiver.address().to_string() });
        Self { wire, outcomes, receiver, pages: from.pages(), generation: 0 }
    }

    /// In pushes of 32 MiB, as the chunks of a long prompt would.
    fn push_all(&mut self) {
        self.generation += 1;
        let (room, generation) = (Room(1), Generation(self.generation));
        let all: Vec<_> = (0..self.pages).map(|page| (GpuPage(page), GpuPage(back(page, self.pages)))).collect();
        let sinks: Vec<_> = all.iter().map(|(_, sink)| *sink).collect();
        self.receiver.grant(room, generation, WorkerId(1), LIFE, &sinks).expect("free");
        let chunks = all.chunks(all.len() / (TOTAL / (32 << 20)));
        let count = chunks.len();
        for (seq, pages) in chunks.enumerate() {
            let push = Push { to: WorkerId(2), epoch: LIFE, room, generation, pages: pages.to_vec(), pieces: 1 };
            self.wire.push(OpId { epoch: LIFE, seq: seq as u64 }, push);
        }
        for _ in 0..count {
            assert_eq!(self.outcomes.recv().expect("answered").1, Outcome::Moved);
        }
        self.receiver.revoke(room, generation).expect("nobody writes");
    }
}
