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
    set(&mut write, 1);
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
    set(&mut write, 9);
    assert!(write.finish());
    assert!(arena.read(0).unwrap().iter().all(|byte| *byte == 9));
}

fn set(write: &mut LeasedMut<'_>, value: u8) {
    let filled = write.fill(0..64, |bytes| {
        bytes.fill(value);
        Ok(bytes.len())
    });
    assert_eq!(filled.unwrap(), 64);
}

/// Bytes behind a lock: what a GPU's memory is to the host.
#[derive(Debug)]
struct Far(std::sync::Mutex<Vec<u8>>);

impl Device for Far {
    fn read(&self, at: u64, bytes: &mut [u8]) -> std::io::Result<()> {
        bytes.copy_from_slice(&self.0.lock().unwrap()[at as usize..][..bytes.len()]);
        Ok(())
    }

    fn write(&self, at: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.0.lock().unwrap()[at as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn handle(&self) -> Option<Vec<u8>> {
        Some(b"far".to_vec())
    }

    fn reach(&self, _: &[u8]) -> std::io::Result<Box<dyn Reach>> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

#[test]
fn the_pages_of_a_device_are_fenced_as_any() {
    let arena = Arena::over(std::sync::Arc::new(Far(vec![0; 192].into())), 64, 3);
    arena.grant(&[1], 7).unwrap();
    let mut write = arena.write_leased(1, 7).unwrap();
    set(&mut write, 5);
    assert!(arena.read(1).is_err() && arena.hold(1, false).is_err(), "it is being written");
    assert_eq!(arena.revoke(&[1], 7, soon()), Err(Writing { page: 1 }));
    assert!(!write.finish());
    arena.revoke(&[1], 7, soon()).unwrap();
    assert!(arena.read(1).unwrap().iter().all(|byte| *byte == 5));
    assert!(arena.read(0).unwrap().iter().chain(arena.read(2).unwrap().iter()).all(|byte| *byte == 0));
    let held = arena.hold(2, true).unwrap();
    assert!(arena.read(2).is_err());
    drop(held);
    assert!(arena.region().is_none() && arena.identity().is_none());
}

#[test]
fn the_words_of_a_device_can_be_shared() {
    let device = std::sync::Arc::new(Far(vec![0; 192].into()));
    let arena = Arena::over_shared(device, 64, 3, 1).unwrap();
    let identity = arena.identity().expect("it is shared");
    assert_eq!(identity.device.as_deref(), Some(&b"far"[..]));
    let remote = crate::Remote::open(identity).unwrap();
    arena.grant(&[2], 4).unwrap();
    assert_eq!(remote.write_leased(1, 4).unwrap_err(), Denied::Fenced);
    let write = remote.write_leased(2, 4).unwrap();
    assert!(arena.read(2).is_err(), "it is being written");
    assert!(write.finish());
    assert!(arena.read(2).is_ok());
    let plain = crate::Identity { device: None, ..identity.clone() };
    assert!(crate::Remote::open(&plain).is_err(), "pages that are not there");
}
