//! Control connections between workers on loopback, and with callers that are none.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use pd_core::codec::Codec;
use pd_core::id::{Epoch, WorkerId};
use pd_core::message::{Message, VERSION};
use proptest::prelude::*;

use super::frame::{self, Greeting};
use super::*;

mod bootstrap;

const LONG: Duration = Duration::from_secs(20);
/// For addresses that are free for a while: no other socket of a test is given a port there.
const ELSEWHERE: &str = "127.83.0.1:0";

#[derive(Clone, PartialEq, Eq, Debug)]
enum Told {
    Up(Life),
    Down(Life),
    Recv(WorkerId, Message),
}

struct Ear(Mutex<mpsc::Sender<Told>>);

impl Ear {
    fn tell(&self, told: Told) {
        let _ = self.0.lock().unwrap().send(told);
    }
}

impl Events for Ear {
    fn up(&self, peer: &Life) {
        self.tell(Told::Up(peer.clone()));
    }
    fn down(&self, peer: &Life) {
        self.tell(Told::Down(peer.clone()));
    }
    fn recv(&self, from: WorkerId, message: Message) {
        self.tell(Told::Recv(from, message));
    }
}

struct Worker {
    peers: Peers,
    told: mpsc::Receiver<Told>,
}

fn life(id: u32, epoch: u32) -> Life {
    Life { id: WorkerId(id), epoch: Epoch(epoch), wire: format!("10.0.0.{id}:1") }
}

fn config(id: u32, epoch: u32) -> PeersConfig {
    let backoff = Duration::from_millis(5);
    PeersConfig {
        backoff,
        connect_timeout: Duration::from_millis(500),
        ..PeersConfig::new(WorkerId(id), Epoch(epoch), life(id, epoch).wire)
    }
}

fn worker_with(config: PeersConfig) -> Worker {
    let (sender, told) = mpsc::channel();
    Worker { peers: Peers::listen(config, Arc::new(Ear(Mutex::new(sender)))).unwrap(), told }
}

fn worker(id: u32, epoch: u32) -> Worker {
    worker_with(config(id, epoch))
}

impl Worker {
    fn address(&self) -> String {
        self.peers.address().to_string()
    }

    fn next(&self) -> Told {
        self.told.recv_timeout(LONG).expect("something is told")
    }
}

fn ping(number: u64) -> Message {
    Message::Ping { number }
}

#[test]
fn messages_arrive_in_order_between_an_up_and_a_down() {
    let (one, two) = (worker(1, 1), worker(2, 7));
    one.peers.connect(&two.address()).unwrap();
    assert_eq!(one.next(), Told::Up(life(2, 7)));
    assert_eq!(two.next(), Told::Up(life(1, 1)));
    for number in 0..500 {
        assert!(one.peers.send(WorkerId(2), &ping(number)));
        assert!(two.peers.send(WorkerId(1), &ping(number)));
    }
    for number in 0..500 {
        assert_eq!(two.next(), Told::Recv(WorkerId(1), ping(number)));
        assert_eq!(one.next(), Told::Recv(WorkerId(2), ping(number)));
    }
    drop(one.peers);
    assert_eq!(two.next(), Told::Down(life(1, 1)));
    assert_eq!(one.told.recv_timeout(LONG), Ok(Told::Down(life(2, 7))), "its own side is told, too");
    assert!(!two.peers.send(WorkerId(1), &ping(0)), "lost, and said so");
    assert_eq!(two.peers.counters().lost, 1);
}

#[test]
fn a_lost_connection_comes_back() {
    let (one, two) = (worker(1, 1), worker(2, 1));
    one.peers.connect(&two.address()).unwrap();
    for _ in 0..3 {
        assert_eq!(one.next(), Told::Up(life(2, 1)));
        assert_eq!(two.next(), Told::Up(life(1, 1)));
        two.peers.cut(WorkerId(1));
        assert_eq!(two.next(), Told::Down(life(1, 1)));
        assert_eq!(one.next(), Told::Down(life(2, 1)));
    }
}

#[test]
fn a_peer_that_starts_later_is_found() {
    let one = worker(1, 1);
    let free = TcpListener::bind(ELSEWHERE).unwrap().local_addr().unwrap();
    one.peers.connect(&free.to_string()).unwrap();
    let two = worker_with(PeersConfig { listen: free.to_string(), ..config(2, 1) });
    assert_eq!(one.next(), Told::Up(life(2, 1)));
    assert_eq!(two.next(), Told::Up(life(1, 1)));
}

/// Another life is a down and an up, also if the earlier connection still looks well.
#[test]
fn a_later_life_replaces_an_earlier_one_and_an_earlier_one_is_refused() {
    let two = worker(2, 1);
    let older = worker(1, 1);
    older.peers.connect(&two.address()).unwrap();
    assert_eq!(two.next(), Told::Up(life(1, 1)));
    let newer = worker(1, 2);
    newer.peers.connect(&two.address()).unwrap();
    assert_eq!(two.next(), Told::Down(life(1, 1)));
    assert_eq!(two.next(), Told::Up(life(1, 2)));
    assert_eq!(newer.next(), Told::Up(life(2, 1)));
    assert!(two.peers.send(WorkerId(1), &ping(4)));
    assert_eq!(newer.next(), Told::Recv(WorkerId(2), ping(4)), "the later life has it");
    assert_eq!(two.peers.connected(), [life(1, 2)]);
}

/// Both call each other: one connection stays, and it works both ways.
#[test]
fn calls_that_cross_leave_one_connection() {
    for _ in 0..10 {
        let (one, two) = (worker(1, 1), worker(2, 1));
        let (caller, address) = (&one.peers, two.address());
        std::thread::scope(|scope| {
            scope.spawn(move || caller.connect(&address).unwrap());
            two.peers.connect(&one.address()).unwrap();
        });
        // However many came and went, in the end each has the other, and a message gets through in each direction.
        for (from, into, to) in [(&one, &two, 2), (&two, &one, 1)] {
            let mut number = 0;
            loop {
                number += 1;
                from.peers.send(WorkerId(to), &ping(number));
                match into.told.recv_timeout(Duration::from_millis(20)) {
                    Ok(Told::Recv(..)) => break,
                    Ok(Told::Up(_) | Told::Down(_)) | Err(_) => assert!(number < 1000, "they never meet"),
                }
            }
        }
    }
}

/// The events of a peer are a sentence: up, anything, down, and so on.
#[test]
fn ups_and_downs_alternate_under_churn() {
    let (one, two) = (worker(1, 1), worker(2, 1));
    one.peers.connect(&two.address()).unwrap();
    two.peers.connect(&one.address()).unwrap();
    for round in 0..20 {
        one.peers.send(WorkerId(2), &ping(round));
        one.peers.cut(WorkerId(2));
        two.peers.cut(WorkerId(1));
        std::thread::yield_now();
    }
    drop((one.peers, two.peers));
    for told in [one.told, two.told] {
        let mut up: Option<Life> = None;
        for event in told {
            match event {
                Told::Up(life) => assert!(up.replace(life).is_none(), "up twice"),
                Told::Down(life) => assert_eq!(up.take(), Some(life), "down without up"),
                Told::Recv(from, _) => assert_eq!(up.as_ref().map(|it| it.id), Some(from), "heard of nobody"),
            }
        }
        assert_eq!(up, None, "each up has its down");
    }
}

#[test]
fn a_peer_that_does_not_read_is_cut() {
    let one = worker_with(PeersConfig { outbox_messages_max: 4, ..config(1, 1) });
    let mut deaf = TcpStream::connect(one.peers.address()).unwrap();
    let greeting = Greeting { version: VERSION, worker: WorkerId(2), epoch: Epoch(1), wire: life(2, 1).wire };
    frame::greet(&mut deaf, &greeting).unwrap();
    assert_eq!(one.next(), Told::Up(life(2, 1)));
    let mut sent = 0_u64;
    while one.peers.send(WorkerId(2), &ping(sent)) {
        sent += 1;
        assert!(sent < 50_000_000, "bounded by the sockets and the outbox");
    }
    assert_eq!(one.next(), Told::Down(life(2, 1)));
    assert_eq!(one.peers.counters().flooded, 1);
}

#[test]
fn strangers_are_refused_with_a_count() {
    let one = worker(1, 1);
    for greeting in [
        Greeting { version: VERSION + 1, worker: WorkerId(2), epoch: Epoch(1), wire: String::new() },
        Greeting { version: VERSION, worker: WorkerId(1), epoch: Epoch(1), wire: String::new() },
    ] {
        let mut stream = TcpStream::connect(one.peers.address()).unwrap();
        // It says who it is, then hangs up.
        let _ = frame::greet(&mut stream, &greeting);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    // The connection is closed before it is counted.
    one.peers.connect(&one.address()).unwrap();
    let deadline = std::time::Instant::now() + LONG;
    while one.peers.counters().refused < 2 {
        assert!(std::time::Instant::now() < deadline);
        std::thread::yield_now();
    }
    assert!(one.told.try_recv().is_err(), "nobody came up");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn random_bytes_change_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..200), greets: bool, magic: bool) {
        let one = worker(1, 1);
        let mut stream = TcpStream::connect(one.peers.address()).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        if greets {
            let greeting = Greeting { version: VERSION, worker: WorkerId(2), epoch: Epoch(1), wire: String::new() };
            frame::greet(&mut stream, &greeting).unwrap();
        } else if magic {
            stream.write_all(b"pd-ctrl1").unwrap();
        }
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
        if greets {
            prop_assert!(matches!(one.next(), Told::Up(_)));
            prop_assert!(matches!(one.next(), Told::Down(_)));
        }
        prop_assert!(one.told.try_recv().is_err(), "nothing is told that was not said");
    }

    #[test]
    fn frames_survive_the_way_and_no_damage(number: u64, at in 0_usize..17, bit in 0_u8..8) {
        let message = ping(number);
        let mut bytes = frame::frame(&message).unwrap();
        prop_assert_eq!(bytes.len(), 8 + message.to_bytes().len());
        let read = |bytes: &[u8]| frame::read::<Message>(&mut &bytes[..], 64);
        prop_assert_eq!(read(&bytes).unwrap(), Some(message));
        bytes[at] ^= 1 << bit;
        prop_assert!(read(&bytes).is_err());
    }
}

#[test]
fn a_frame_beyond_the_limit_is_not_read() {
    let mut bytes = (FRAME_BYTES_MAX + 1).to_le_bytes().to_vec();
    bytes.extend([0; 100]);
    let error = frame::read::<Message>(&mut &bytes[..], FRAME_BYTES_MAX).unwrap_err();
    assert!(error.to_string().contains("beyond the limit"), "{error}");
}
