//! What a peer may send at worst: it is refused, counted, and everybody else is served on.

use std::io::{Read, Write};

use proptest::prelude::*;

use super::*;
use crate::wire::frame::{self, Ack, Chunk, Hello, Reply, Status, VERSION};

fn hello(stream: u32) -> Hello {
    Hello {
        version: VERSION,
        from: SOURCE,
        from_epoch: LIFE,
        to: SINK,
        to_epoch: LIFE,
        page_bytes: PAGE as u64,
        stream,
        wants_shared: false,
        is_fake: false,
    }
}

fn called(pair: &Pair) -> TcpStream {
    let stream = TcpStream::connect(pair.receiver.address()).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
}

fn greeted(pair: &Pair, stream: u32) -> TcpStream {
    let mut socket = called(pair);
    frame::write_greeting(&mut socket, &hello(stream)).unwrap();
    let reply: Reply = frame::read_greeting(&mut socket).unwrap().unwrap();
    assert!(matches!(reply, Reply::Welcome(_)), "{reply:?}");
    socket
}

/// The other end closes, whatever it says before.
fn assert_closed(mut stream: TcpStream) {
    let mut rest = Vec::new();
    let error = stream.read_to_end(&mut rest).err();
    assert!(error.is_none_or(|error| error.kind() == std::io::ErrorKind::ConnectionReset), "closed, not left hanging");
}

fn chunk(payload: &[u8]) -> Chunk {
    Chunk {
        sequence: 1,
        room: room(1),
        generation: Generation(1),
        page: 0,
        offset: 0,
        length: payload.len() as u32,
        crc: crc32c::crc32c(payload),
        wants_ack: true,
    }
}

fn ack(stream: &mut TcpStream) -> Ack {
    let mut bytes = [0; frame::ACK_BYTES];
    stream.read_exact(&mut bytes).unwrap();
    Ack::from_bytes(&bytes).unwrap()
}

#[test]
fn malformed_chunks_close_the_connection_and_are_counted() {
    let payload = [9; 64];
    let good = chunk(&payload);
    let bad = [
        Chunk { sequence: 2, ..good },
        Chunk { page: PAGES, ..good },
        Chunk { page: u32::MAX, ..good },
        Chunk { offset: PAGE as u32 - 63, ..good },
        Chunk { offset: u32::MAX, ..good },
        Chunk { length: u32::MAX, ..good },
        Chunk { length: 0, ..good },
    ];
    let pair = Pair::new(Kind::Tcp);
    pair.grant(1, &[0]).unwrap();
    for (number, bad) in bad.iter().enumerate() {
        let mut stream = greeted(&pair, 4);
        stream.write_all(&bad.to_bytes()).unwrap();
        assert_closed(stream);
        assert_eq!(pair.receiver.counters().malformed, number as u64 + 1, "{bad:?}");
    }
    let mut stream = greeted(&pair, 4);
    let mut bytes = good.to_bytes();
    bytes[30] ^= 1;
    stream.write_all(&bytes).unwrap();
    assert_closed(stream);
    let mut stream = greeted(&pair, 4);
    stream.write_all(&[0xee; 500]).unwrap();
    assert_closed(stream);
    assert_eq!(pair.receiver.counters().malformed, bad.len() as u64 + 2);
    pair.assert_holds(0, 0);
    let mut stream = greeted(&pair, 4);
    stream.write_all(&good.to_bytes()).unwrap();
    stream.write_all(&payload).unwrap();
    assert_eq!(ack(&mut stream), Ack { sequence: 1, status: Status::Landed }, "the good one is taken");
}

#[test]
fn a_wrong_checksum_is_told_counted_and_ends_the_connection() {
    let pair = Pair::new(Kind::Tcp);
    pair.grant(1, &[0]).unwrap();
    let mut stream = greeted(&pair, 4);
    stream.write_all(&Chunk { crc: 1, ..chunk(&[9; 64]) }.to_bytes()).unwrap();
    stream.write_all(&[9; 64]).unwrap();
    assert_eq!(ack(&mut stream), Ack { sequence: 1, status: Status::Damaged });
    assert_closed(stream);
    assert_eq!(pair.receiver.counters().damaged, 1);
}

#[test]
fn rooms_that_are_not_known_are_refused_chunk_by_chunk_and_the_connection_goes_on() {
    let pair = Pair::new(Kind::Tcp);
    pair.grant(1, &[0]).unwrap();
    let mut stream = greeted(&pair, 4);
    for (sequence, room_number, status) in [(1, 77, Status::Fenced), (2, 1, Status::Landed), (3, 78, Status::Fenced)] {
        let chunk = Chunk { sequence, room: room(room_number), wants_ack: sequence == 2, ..chunk(&[9; 64]) };
        stream.write_all(&chunk.to_bytes()).unwrap();
        stream.write_all(&[9; 64]).unwrap();
        assert_eq!(ack(&mut stream), Ack { sequence, status });
    }
    assert_eq!(pair.receiver.counters().fenced, 2);
}

/// What breaks off in the middle of a page stays a page of this lease, which nobody has been told is complete.
#[test]
fn a_connection_that_breaks_in_a_chunk_holds_nothing() {
    let pair = Pair::new(Kind::Tcp);
    pair.grant(1, &[0]).unwrap();
    let mut stream = greeted(&pair, 4);
    stream.write_all(&chunk(&[9; 64]).to_bytes()).unwrap();
    stream.write_all(&[9; 20]).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_closed(stream);
    pair.revoke(1).unwrap();
    pair.reuse(0, 5);
}

#[test]
fn a_chunk_that_stalls_and_a_greeting_that_stalls_end() {
    let config = ReceiverConfig { progress_timeout: Duration::from_millis(30), ..sink_config() };
    let pair = Pair::with(Kind::Tcp, source_config(), config);
    pair.grant(1, &[0]).unwrap();
    let mut stream = greeted(&pair, 4);
    stream.write_all(&chunk(&[9; 64]).to_bytes()).unwrap();
    stream.write_all(&[9; 20]).unwrap();
    assert_closed(stream);
    let mut stream = called(&pair);
    stream.write_all(b"PD").unwrap();
    assert_closed(stream);
    assert_eq!(pair.receiver.counters().broken, 2);
}

#[test]
fn more_connections_than_the_limit_are_turned_away() {
    let pair = Pair::with(Kind::Tcp, source_config(), ReceiverConfig { connections_max: 1, ..sink_config() });
    let kept = greeted(&pair, 4);
    assert_closed(called(&pair));
    assert_eq!(pair.receiver.counters().rejected, 1);
    drop(kept);
}

/// The newer connection of a stream ends the older one first: nothing of it lands behind what is sent again.
#[test]
fn a_stream_has_one_connection() {
    let pair = Pair::new(Kind::Tcp);
    pair.grant(1, &[0]).unwrap();
    let mut older = greeted(&pair, 4);
    older.write_all(&chunk(&[9; 64]).to_bytes()).unwrap();
    let newer = greeted(&pair, 4);
    let _ = older.write_all(&[9; 64]);
    assert_closed(older);
    pair.assert_holds(0, 0);
    drop(newer);
}

/// A push goes on with what was not acknowledged, wherever the connection breaks.
#[test]
fn a_push_is_resumed_after_its_connection_broke() {
    for at in [10, 300, PAGE, 2 * PAGE + 17, 5 * PAGE] {
        // Two pages under way at a time, so that some are acknowledged before the later cuts.
        let config = WireConfig { streams: 1, window_bytes: 2 * PAGE as u64, ..source_config() };
        let pair = Pair::apart(Kind::Tcp, config, sink_config());
        let address = proxy(pair.receiver.address(), Harm::Cut(at));
        pair.wire.up(&Endpoint { address, ..pair.endpoint() });
        let pages: Vec<u32> = (0..8).collect();
        pair.grant(1, &pages).unwrap();
        pair.wire.push(op(0), push_of(1, &pages.iter().map(|page| (page + 20, *page)).collect::<Vec<_>>()));
        assert_eq!(pair.outcome(), (op(0), Outcome::Moved), "cut at {at}");
        pages.iter().for_each(|page| pair.assert_landed(page + 20, *page));
        let counters = pair.wire.counters();
        assert!(counters.resent <= 2, "at most a window goes again: {counters:?}");
        assert_eq!(counters.pages, 8);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn random_bytes_neither_stop_nor_change_anything(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        greets in any::<bool>(),
        starts_well in any::<bool>(),
    ) {
        let pair = Pair::new(Kind::Tcp);
        pair.grant(1, &[0]).unwrap();
        let mut stream = if greets { greeted(&pair, 4) } else { called(&pair) };
        if starts_well {
            let magic: &[u8] = if greets { b"PDWC" } else { b"PDWG" };
            let _ = stream.write_all(magic);
        }
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        assert_closed(stream);
        pair.assert_holds(0, 0);
        pair.wire.push(op(0), push_of(1, &[(3, 0)]));
        prop_assert_eq!(pair.outcome(), (op(0), Outcome::Moved));
    }

    #[test]
    fn headers_survive_the_way_and_no_damage(flip in 0..frame::CHUNK_BYTES * 8, words in any::<[u32; 4]>(), long in any::<[u64; 2]>()) {
        let chunk = Chunk {
            sequence: long[0],
            room: Room(long[1]),
            generation: Generation(words[0]),
            page: words[1],
            offset: words[2],
            length: words[3],
            crc: words[0] ^ words[3],
            wants_ack: words[1] & 1 == 1,
        };
        let mut bytes = chunk.to_bytes();
        prop_assert_eq!(Chunk::from_bytes(&bytes), Ok(chunk));
        bytes[flip / 8] ^= 1 << (flip % 8);
        prop_assert!(Chunk::from_bytes(&bytes).is_err());
    }
}
