//! Guards and leases within one process.

use super::*;

fn soon() -> Instant {
    Instant::now() + Duration::from_millis(5)
}

#[test]
fn a_page_has_one_writer_or_some_readers() {
    let arena = Arena::new(64, 2).unwrap();
    let one = arena.read(0).unwrap();
    let two = arena.read(0).unwrap();
    assert_eq!(arena.write(0).unwrap_err(), Busy { page: 0 });
    assert!(arena.write(1).is_ok(), "another page");
    drop((one, two));
    let writer = arena.write(0).unwrap();
    assert_eq!(arena.read(0).unwrap_err(), Busy { page: 0 });
    drop(writer);
    assert!(arena.read(0).is_ok());
}

#[test]
fn pages_are_leased_all_or_none() {
    let arena = Arena::new(64, 4).unwrap();
    let reader = arena.read(2).unwrap();
    assert_eq!(arena.grant(&[0, 1, 2, 3], 7), Err(Busy { page: 2 }));
    assert!((0..4).all(|page| arena.leased(page) == 0));
    drop(reader);
    arena.grant(&[0, 1, 2, 3], 7).unwrap();
    assert_eq!(arena.grant(&[3], 8), Err(Busy { page: 3 }), "leased already");
    assert_eq!(arena.grant(&[3, 3], 7), Err(Busy { page: 3 }));
    assert_eq!(arena.leased(3), 7, "a grant that fails takes nothing away");
}

#[test]
fn a_revoked_lease_ends_when_its_writer_does() {
    let arena = Arena::new(64, 1).unwrap();
    arena.grant(&[0], 7).unwrap();
    assert_eq!(arena.write_leased(0, 8).unwrap_err(), Denied::Fenced);
    let mut write = arena.write_leased(0, 7).unwrap();
    write[0] = 1;
    assert_eq!(arena.revoke(&[0], 7, soon()), Err(Writing { page: 0 }), "a timeout is no fence");
    assert_eq!(arena.grant(&[0], 8), Err(Busy { page: 0 }), "nobody else gets it meanwhile");
    assert!(!write.finish(), "the writer is told");
    assert_eq!(arena.revoke(&[0], 7, soon()), Ok(()));
    assert_eq!(arena.write_leased(0, 7).unwrap_err(), Denied::Fenced);
    arena.grant(&[0], 8).unwrap();
}

#[test]
fn a_write_that_ends_in_time_counts() {
    let arena = Arena::new(64, 1).unwrap();
    arena.grant(&[0], 7).unwrap();
    let mut write = arena.write_leased(0, 7).unwrap();
    write.fill(9);
    assert!(write.finish());
    assert!(arena.read(0).unwrap().iter().all(|byte| *byte == 9));
}
