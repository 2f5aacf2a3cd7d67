//! Round trips, and what damage does: an error that names the place, never a panic, never a record that was not written.

use std::num::NonZeroU64;

use pd_core::batch::{Batch, Run};
use pd_core::config::{KvConfig, Mode, SchedConfig, TransferConfig, WorkerConfig};
use pd_core::event::{Event, KvChange, Tier};
use pd_core::id::{Epoch, GpuPage, OpId, PageKey, RequestId, Token, WorkerId};
use pd_core::op::{Command, Outcome};
use proptest::prelude::*;

use super::*;

fn worker_life() -> Life {
    let config = WorkerConfig {
        worker: WorkerId(3),
        epoch: Epoch(2),
        mode: Mode::Decode,
        seed: 7,
        kv: KvConfig { root: PageKey(u128::MAX - 5), ..KvConfig::default() },
        sched: SchedConfig::default(),
        transfer: TransferConfig::default(),
    };
    Life::worker(&config, &Cost::fixed(1_000, 10, 500, 1 << 20))
}

fn router_life() -> Life {
    let mut config = RouterConfig::default();
    config.link.bytes_per_second = NonZeroU64::MIN;
    Life::router(&config, &Cost::fixed(1, 2, 3, 4))
}

fn step(at: u64, number: u64) -> Record {
    let op = OpId { epoch: Epoch(2), seq: number };
    let mut batch = Batch::default();
    batch.push(Run::new(RequestId(number), 100, 1, true, 7), &[GpuPage(number as u32)]);
    let asked = vec![
        Output::Start { op, after: Vec::new(), command: Command::Forward(Box::new(batch)) },
        Output::Emit { request: RequestId(number), event: Event::Token(Token(9)) },
    ];
    Record::Step(Box::new(StepRecord {
        at: Instant(at),
        who: Who::Worker(3),
        told: Told::Worker(Input::Done { op, outcome: Outcome::Sampled([Token(4)].into_iter().collect()) }),
        outputs: fingerprint(&asked),
        asked: Some(Asked::Worker(asked)),
    }))
}

fn changes(at: u64) -> Record {
    let changes = vec![KvChange::Stored { key: PageKey(1 << 100), parent: PageKey(0), tier: Tier::Host }];
    Record::Step(Box::new(StepRecord {
        at: Instant(at),
        who: Who::Router,
        told: Told::Router(RouterInput::Changes { worker: WorkerId(3), changes }),
        outputs: fingerprint::<RouterOutput>(&[]),
        asked: Some(Asked::Router(Vec::new())),
    }))
}

fn records() -> Vec<Record> {
    let who = Who::Worker(3);
    vec![
        Record::Launch { at: Instant(0), who: Who::Router, life: Box::new(router_life()) },
        Record::Launch { at: Instant(5), who, life: Box::new(worker_life()) },
        step(1_000, 0),
        changes(1_000),
        step(u64::MAX / 2, 1),
        Record::Stop { at: Instant(u64::MAX / 2), who },
        Record::End { at: Instant(u64::MAX) },
    ]
}

/// Writes records, a block for each `per_block` of them.
fn write(records: &[Record], detail: Detail, per_block: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, &Header::new("a test", detail)).unwrap();
    for (index, record) in records.iter().enumerate() {
        match record {
            Record::Launch { at, who, life } => writer.launch(*at, *who, life).unwrap(),
            Record::Stop { at, who } => writer.stop(*at, *who).unwrap(),
            Record::Step(step) => match (&step.told, step.asked.as_ref().unwrap()) {
                (Told::Worker(input), Asked::Worker(outputs)) => writer.worker(step.at, 3, input, outputs).unwrap(),
                (Told::Router(input), Asked::Router(outputs)) => writer.router(step.at, input, outputs).unwrap(),
                _ => unreachable!("a step is told and asked by one machine"),
            },
            Record::End { at } => {
                writer.finish(*at).unwrap();
                return bytes;
            }
        }
        if index % per_block == per_block - 1 {
            writer.flush().unwrap();
        }
    }
    writer.flush().unwrap();
    drop(writer);
    bytes
}

/// All records up to the first error, and that.
fn read(bytes: &[u8]) -> (Vec<Record>, Option<JournalError>) {
    let reader = match Reader::new(bytes) {
        Ok(reader) => reader,
        Err(error) => return (Vec::new(), Some(error)),
    };
    let mut found = Vec::new();
    for record in reader {
        match record {
            Ok(record) => found.push(record),
            Err(error) => return (found, Some(error)),
        }
    }
    (found, None)
}

#[test]
fn what_is_written_is_read_however_it_falls_into_blocks() {
    for per_block in [1, 2, 3, 100] {
        let (found, error) = read(&write(&records(), Detail::Outputs, per_block));
        assert!(error.is_none(), "{error:?}");
        assert_eq!(found, records());
    }
}

#[test]
fn a_journal_of_inputs_keeps_the_fingerprint_of_its_outputs() {
    let (found, error) = read(&write(&records(), Detail::Inputs, 100));
    assert!(error.is_none());
    for (found, written) in found.iter().zip(&records()) {
        if let (Record::Step(found), Record::Step(written)) = (found, written) {
            assert_eq!((found.outputs, &found.told), (written.outputs, &written.told));
            assert_eq!(found.asked, None);
        } else {
            assert_eq!(found, written);
        }
    }
}

#[test]
fn a_cut_at_any_byte_is_noticed_and_what_is_before_it_is_read() {
    let bytes = write(&records(), Detail::Outputs, 2);
    let mut most = 0;
    for length in 0..bytes.len() {
        let (found, error) = read(&bytes[..length]);
        assert!(error.is_some(), "cut to {length} of {}", bytes.len());
        assert_eq!(found, records()[..found.len()]);
        assert!(found.len() >= most, "a longer file has no fewer records");
        most = found.len();
    }
    assert_eq!(most, 6, "the cut before the last block leaves all others");
}

#[test]
fn damage_at_any_byte_is_noticed_and_gives_no_wrong_record() {
    let bytes = write(&records(), Detail::Outputs, 2);
    for place in 0..bytes.len() {
        for flip in [1, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[place] ^= flip;
            let (found, error) = read(&damaged);
            assert!(error.is_some(), "byte {place} ^ {flip}");
            assert_eq!(found, records()[..found.len()], "byte {place} ^ {flip}");
        }
    }
}

#[test]
fn blocks_that_change_places_or_are_left_out_are_noticed() {
    let bytes = write(&records(), Detail::Outputs, 1);
    let mut ends = Vec::new();
    let mut at = 12;
    while at < bytes.len() {
        let length = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        at += 8 + length as usize;
        ends.push(at);
    }
    let left_out = [&bytes[..ends[2]], &bytes[ends[3]..]].concat();
    assert!(matches!(read(&left_out).1, Some(JournalError::Damaged { .. })));
    let twice = [&bytes[..], &bytes[ends[2]..ends[3]]].concat();
    assert!(read(&twice).1.is_some());
}

#[test]
fn errors_say_what_the_file_is() {
    let text = |bytes: &[u8]| read(bytes).1.map_or_else(String::new, |error| error.to_string());
    assert!(text(b"").contains("empty or cut off"));
    assert!(text(b"about = \"\"\"\nA scenario").contains("ends in .toml"));
    assert!(text(&[0; 64]).contains("does not start with the journal's mark"));
    let mut newer = write(&records(), Detail::Outputs, 2);
    newer[8] = 9;
    assert!(text(&newer).contains("version 9; this pd reads version 1"), "{}", text(&newer));
    let whole = write(&records(), Detail::Outputs, 2);
    assert!(text(&whole[..whole.len() - 1]).contains("cut off in block 4"), "{}", text(&whole[..whole.len() - 1]));
    let unclosed = write(&records()[..6], Detail::Outputs, 2);
    assert!(text(&unclosed).contains("did not end well; the 6 records before it"), "{}", text(&unclosed));
}

/// A journal whose checksums are right and whose payload is anything.
fn forged(payload: &[u8]) -> Vec<u8> {
    let mut bytes = write(&[], Detail::Outputs, 1);
    bytes.extend((payload.len() as u32).to_le_bytes());
    bytes.extend(write::checksum(1, payload).to_le_bytes());
    bytes.extend(payload);
    bytes
}

proptest! {
    #[test]
    fn no_payload_makes_a_reader_panic(payload in prop::collection::vec(any::<u8>(), 1..300)) {
        let (_, error) = read(&forged(&payload));
        prop_assert!(error.is_some());
    }

    #[test]
    fn a_damaged_record_with_a_right_checksum_does_not_make_a_reader_panic(
        place in any::<prop::sample::Index>(),
        value in any::<u8>(),
    ) {
        let whole = write(&records(), Detail::Outputs, 100);
        let start = write(&[], Detail::Outputs, 1).len() + 8;
        let mut payload = whole[start..].to_vec();
        let place = place.index(payload.len());
        payload[place] = value;
        let _ = read(&forged(&payload));
    }

    #[test]
    fn any_damage_is_noticed(
        places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
    ) {
        let whole = write(&records(), Detail::Outputs, 2);
        let mut damaged = whole.clone();
        for (place, value) in places {
            damaged[place.index(whole.len())] = value;
        }
        let (found, error) = read(&damaged);
        prop_assert_eq!(damaged == whole, error.is_none());
        prop_assert_eq!(&found[..], &records()[..found.len()]);
    }
}
