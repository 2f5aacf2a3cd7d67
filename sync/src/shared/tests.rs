//! Leases between mappings, and between processes that stop and die.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::*;
use crate::arena::{Arena, Writing};

fn soon() -> Instant {
    Instant::now() + Duration::from_millis(5)
}

fn opened(arena: &Arena) -> Remote {
    Remote::open(arena.identity().unwrap()).unwrap()
}

#[test]
fn what_a_peer_writes_is_there() {
    let arena = Arena::shared(4096, 3, 1).unwrap();
    let remote = opened(&arena);
    arena.grant(&[1], 5).unwrap();
    let mut write = remote.write_leased(1, 5).unwrap();
    let filled = write.fill(0..4096, |bytes| {
        bytes.fill(7);
        Ok(bytes.len())
    });
    assert_eq!(filled.unwrap(), 4096);
    assert!(arena.read(1).is_err(), "it is being written");
    assert!(write.finish());
    assert!(arena.read(1).unwrap().iter().all(|byte| *byte == 7));
    for page in [0, 2] {
        assert!(arena.read(page).unwrap().iter().all(|byte| *byte == 0), "page {page} is none of its business");
    }
}

#[test]
fn what_is_not_leased_is_refused() {
    let arena = Arena::shared(64, 2, 1).unwrap();
    let remote = opened(&arena);
    arena.grant(&[1], 5).unwrap();
    for (page, generation) in [(0, 5), (1, 4), (1, 0), (2, 5), (u32::MAX, 5)] {
        assert_eq!(remote.write_leased(page, generation).unwrap_err(), Denied::Fenced, "{page} {generation}");
    }
    arena.revoke(&[1], 5, soon()).unwrap();
    assert_eq!(remote.write_leased(1, 5).unwrap_err(), Denied::Fenced);
}

#[test]
fn another_file_is_not_opened() {
    let arena = Arena::shared(64, 2, 1).unwrap();
    let identity = arena.identity().unwrap();
    let others = [
        Identity { id: [0; 16], ..identity.clone() },
        Identity { epoch: 2, ..identity.clone() },
        Identity { pages: 3, ..identity.clone() },
        Identity { page_bytes: 128, pages: 1, ..identity.clone() },
        Identity { page_bytes: u64::MAX - 63, ..identity.clone() },
        Identity { page_bytes: 0, ..identity.clone() },
        Identity { path: "/proc/self/exe".into(), ..identity.clone() },
        Identity { path: "/nowhere".into(), ..identity.clone() },
    ];
    for other in others {
        assert!(Remote::open(&other).is_err(), "{other:?}");
    }
    assert!(Remote::open(identity).is_ok());
}

#[test]
fn a_file_that_could_shrink_is_not_opened() {
    let arena = Arena::shared(64, 2, 1).unwrap();
    let copy = tempfile::NamedTempFile::new().unwrap();
    std::fs::copy(&arena.identity().unwrap().path, copy.path()).unwrap();
    let identity = Identity { path: copy.path().to_str().unwrap().into(), ..arena.identity().unwrap().clone() };
    let error = Remote::open(&identity).unwrap_err();
    assert!(error.to_string().contains("could shrink"), "{error}");
}

#[test]
fn a_writer_that_drops_its_mapping_in_the_middle_of_a_page_is_cleared_away() {
    let arena = Arena::shared(64, 1, 1).unwrap();
    let remote = opened(&arena);
    arena.grant(&[0], 5).unwrap();
    std::mem::forget(remote.write_leased(0, 5).unwrap());
    assert_eq!(arena.revoke(&[0], 5, soon()), Err(Writing { page: 0 }), "it has the memory mapped");
    drop(remote);
    assert_eq!(arena.revoke(&[0], 5, soon()), Ok(()));
    assert!(arena.write(0).is_ok());
}

#[test]
fn whoever_takes_a_slot_over_clears_what_was_left_in_it() {
    let arena = Arena::shared(64, 1, 1).unwrap();
    let remote = opened(&arena);
    arena.grant(&[0], 5).unwrap();
    std::mem::forget(remote.write_leased(0, 5).unwrap());
    drop(remote);
    let _next = opened(&arena);
    assert_eq!(arena.revoke(&[0], 5, soon()), Ok(()));
}

/// Goal: the proof that a writer is gone holds for a process that is stopped, then killed, in the middle of a page.
/// Method: this test runs itself as that process.
#[test]
fn a_killed_process_is_gone_and_a_stopped_one_is_not() {
    const CHILD: &str = "PD_SYNC_TEST_CHILD";
    if let Ok(text) = std::env::var(CHILD) {
        let (path, id) = text.split_once(' ').unwrap();
        let id = std::array::from_fn(|at| u8::from_str_radix(&id[at * 2..at * 2 + 2], 16).unwrap());
        let identity = Identity { path: path.into(), id, epoch: 1, page_bytes: 64, pages: 1, device: None };
        let remote = Remote::open(&identity).unwrap();
        let _write = remote.write_leased(0, 5).unwrap();
        println!("in the middle");
        loop {
            std::thread::park();
        }
    }
    let arena = Arena::shared(64, 1, 1).unwrap();
    arena.grant(&[0], 5).unwrap();
    let identity = arena.identity().unwrap();
    let id: String = identity.id.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "shared::tests::a_killed_process_is_gone_and_a_stopped_one_is_not", "--nocapture"])
        .env(CHILD, format!("{} {id}", identity.path))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    assert!(lines.any(|line| line.unwrap().contains("in the middle")), "the child writes");
    // SAFETY: a signal to our own child.
    unsafe { libc::kill(child.id() as i32, libc::SIGSTOP) };
    assert_eq!(arena.revoke(&[0], 5, soon()), Err(Writing { page: 0 }), "it could go on at any time");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(arena.revoke(&[0], 5, Instant::now() + Duration::from_secs(10)), Ok(()));
}
