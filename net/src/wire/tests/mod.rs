//! One suite for all transports: `conformance` says what they have in common, `rules` that no write lands where it must
//! not, `hostile` what damaged and malicious bytes do.

use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc;

use pd_core::id::{Generation, GpuPage, Room};
use pd_core::op::Fault;
use pd_sync::{Arena, Gate};

use super::*;

mod conformance;
mod hostile;
mod rules;

const SOURCE: WorkerId = WorkerId(1);
const SINK: WorkerId = WorkerId(2);
const LIFE: Epoch = Epoch(3);
const PAGE: usize = 4096;
const PAGES: u32 = 64;
/// Longer than any machine should need for anything here.
const LONG: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Tcp,
    Shared,
    Fake,
}

const MOVING: [Kind; 2] = [Kind::Tcp, Kind::Shared];
const ALL: [Kind; 3] = [Kind::Tcp, Kind::Shared, Kind::Fake];

/// Two workers and the wire between them.
struct Pair {
    wire: Box<dyn Transport>,
    outcomes: mpsc::Receiver<(OpId, Outcome)>,
    receiver: Receiver,
    from: Arc<Arena>,
    into: Arc<Arena>,
}

fn source_config() -> WireConfig {
    let backoff = Duration::from_millis(1);
    // Several chunks a page.
    WireConfig { chunk_bytes: 1024, backoff, window_bytes: 8 * PAGE as u64, ..WireConfig::new(SOURCE, LIFE) }
}

fn sink_config() -> ReceiverConfig {
    ReceiverConfig {
        greeting_timeout: Duration::from_millis(300),
        revoke_timeout: Duration::from_millis(20),
        ..ReceiverConfig::new(SINK, LIFE)
    }
}

fn op(seq: u64) -> OpId {
    OpId { epoch: LIFE, seq }
}

fn room(number: u64) -> Room {
    Room(number)
}

/// What page `page` of the source holds.
fn content(page: u32, byte: usize) -> u8 {
    (page as usize * 31 + byte * 7 + byte / 256) as u8
}

fn filled(pages: u32) -> Arc<Arena> {
    let arena = Arena::new(PAGE, pages).unwrap();
    for page in 0..pages {
        let mut bytes = arena.write(page).unwrap();
        (0..PAGE).for_each(|byte| bytes[byte] = content(page, byte));
    }
    Arc::new(arena)
}

fn push_of(generation: u32, pages: &[(u32, u32)]) -> Push {
    Push {
        to: SINK,
        epoch: LIFE,
        room: room(u64::from(generation)),
        generation: Generation(generation),
        pages: pages.iter().map(|(from, into)| (GpuPage(*from), GpuPage(*into))).collect(),
        pieces: 1,
    }
}

fn transport(
    kind: Kind,
    config: WireConfig,
    arena: Arc<Arena>,
) -> (Box<dyn Transport>, mpsc::Receiver<(OpId, Outcome)>) {
    let (sender, outcomes) = mpsc::channel();
    let sender = std::sync::Mutex::new(sender);
    let done: Done = Arc::new(move |op, outcome| {
        let _ = sender.lock().unwrap().send((op, outcome));
    });
    let wire: Box<dyn Transport> = match kind {
        Kind::Tcp => Box::new(Wire::tcp(config, arena, done)),
        Kind::Shared => Box::new(Wire::shared(config, arena, done)),
        Kind::Fake => Box::new(Fake::new(config, PAGE as u64, done)),
    };
    (wire, outcomes)
}

impl Pair {
    fn new(kind: Kind) -> Self {
        Self::with(kind, source_config(), sink_config())
    }

    fn with(kind: Kind, source: WireConfig, sink: ReceiverConfig) -> Self {
        let pair = Self::apart(kind, source, sink);
        pair.wire.up(&pair.endpoint());
        pair
    }

    /// Not connected.
    fn apart(kind: Kind, source: WireConfig, sink: ReceiverConfig) -> Self {
        let from = filled(PAGES);
        let into = Arc::new(match kind {
            Kind::Shared => Arena::shared(PAGE, PAGES, sink.epoch.0).unwrap(),
            Kind::Tcp | Kind::Fake => Arena::new(PAGE, PAGES).unwrap(),
        });
        let receiver = match kind {
            Kind::Fake => Receiver::fake(sink).unwrap(),
            Kind::Tcp | Kind::Shared => Receiver::listen(sink, into.clone()).unwrap(),
        };
        let (wire, outcomes) = transport(kind, source, from.clone());
        Self { wire, outcomes, receiver, from, into }
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint { id: SINK, epoch: LIFE, address: self.receiver.address().to_string() }
    }

    fn grant(&self, generation: u32, pages: &[u32]) -> Result<(), GrantError> {
        let pages: Vec<_> = pages.iter().map(|page| GpuPage(*page)).collect();
        self.receiver.grant(room(u64::from(generation)), Generation(generation), SOURCE, LIFE, &pages)
    }

    fn revoke(&self, generation: u32) -> Result<(), pd_sync::Writing> {
        self.receiver.revoke(room(u64::from(generation)), Generation(generation))
    }

    fn outcome(&self) -> (OpId, Outcome) {
        self.outcomes.recv_timeout(LONG).expect("each push is answered")
    }

    fn assert_landed(&self, from: u32, into: u32) {
        let page = self.into.read(into).unwrap();
        assert!((0..PAGE).all(|byte| page[byte] == content(from, byte)), "page {from} in page {into}");
    }

    fn assert_holds(&self, page: u32, value: u8) {
        assert!(self.into.read(page).unwrap().iter().all(|byte| *byte == value), "page {page} is {value} all over");
    }

    /// The next request's use of a page.
    fn reuse(&self, page: u32, value: u8) {
        self.into.write(page).unwrap().fill(value);
    }
}

/// Stops the writer at a page until it is let go.
#[derive(Clone)]
struct Barrier {
    reached: Arc<Gate>,
    go: Arc<Gate>,
}

impl Barrier {
    fn new() -> Self {
        Self { reached: Arc::default(), go: Arc::default() }
    }

    fn hook(&self, wanted: At, page: u32) -> Hook {
        let barrier = self.clone();
        Arc::new(move |at, sink| {
            if (at, sink) == (wanted, page) {
                barrier.reached.close();
                // Not for ever: a test that fails has to end, too.
                barrier.go.wait_until(Some(Instant::now() + LONG));
            }
        })
    }

    fn await_reached(&self) {
        assert!(self.reached.wait_until(Some(Instant::now() + LONG)), "the writer gets there");
    }
}

/// What a [`Proxy`] does to the bytes towards the sink, once.
#[derive(Clone, Copy)]
enum Harm {
    /// Breaks the connection behind so many bytes.
    Cut(usize),
    /// Flips a bit of this byte.
    Flip(usize),
}

/// Stands between source and sink, and harms the first connection. Returns its address.
fn proxy(to: std::net::SocketAddr, harm: Harm) -> String {
    use std::io::{Read, Write};
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for (number, inward) in listener.incoming().enumerate() {
            let (Ok(mut inward), Ok(mut outward)) = (inward, TcpStream::connect(to)) else { return };
            let (mut back, mut answers) = (inward.try_clone().unwrap(), outward.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut answers, &mut back));
            std::thread::spawn(move || {
                let mut buffer = [0; 512];
                let mut passed = 0;
                while let Ok(count @ 1..) = inward.read(&mut buffer) {
                    let mut count = count;
                    match harm {
                        Harm::Flip(at) if number == 0 && (passed..passed + count).contains(&at) => {
                            buffer[at - passed] ^= 4;
                        }
                        Harm::Cut(at) if number == 0 && passed + count >= at => count = at - passed,
                        Harm::Flip(_) | Harm::Cut(_) => {}
                    }
                    passed += count;
                    if outward.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                    if matches!(harm, Harm::Cut(at) if number == 0 && passed >= at) {
                        let _ = inward.shutdown(Shutdown::Both);
                        break;
                    }
                }
                let _ = outward.shutdown(Shutdown::Both);
                let _ = inward.shutdown(Shutdown::Both);
            });
        }
    });
    address
}
