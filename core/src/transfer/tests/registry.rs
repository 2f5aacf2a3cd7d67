//! Leases, lives, readiness and compatibility of registered workers.

use core::time::Duration;
use std::format;
use std::vec::Vec;

use super::net::{D, P, Q, ROOT, layout};
use crate::config::Mode;
use crate::id::{Epoch, PageKey, WorkerId};
use crate::message::{Layout, Mismatch};
use crate::time::Instant;
use crate::transfer::registry::{Registration, Registry, RegistryConfig, RegistryError};

fn config() -> RegistryConfig {
    RegistryConfig { lease: Duration::from_nanos(10), workers_max: 3, ..RegistryConfig::default() }
}

fn worker(worker: WorkerId, mode: Mode, epoch: u32) -> Registration {
    let endpoint = format!("10.0.0.{worker}:8998");
    Registration { worker, epoch: Epoch(epoch), mode, root: ROOT, layout: layout(), endpoint }
}

fn found(registry: &Registry, now: u64, mode: Mode) -> Vec<u32> {
    registry.discover(Instant(now), mode).expect("ready").map(|it| it.worker.0).collect()
}

#[test]
fn workers_are_found_by_mode_in_the_order_of_their_ids() {
    let mut registry = Registry::new(config());
    for it in [worker(Q, Mode::Prefill, 1), worker(D, Mode::Decode, 1), worker(P, Mode::Prefill, 1)] {
        assert_eq!(registry.register(Instant(0), it), Ok(Instant(10)));
        registry.check();
    }
    assert_eq!(found(&registry, 0, Mode::Prefill), [2, 3]);
    assert_eq!(found(&registry, 0, Mode::Decode), [1]);
    assert_eq!(found(&registry, 0, Mode::Unified), []);
}

#[test]
fn a_lease_that_is_not_renewed_ends() {
    let mut registry = Registry::new(config());
    registry.register(Instant(0), worker(P, Mode::Prefill, 1)).expect("fits");
    registry.register(Instant(0), worker(Q, Mode::Prefill, 1)).expect("fits");
    assert_eq!(registry.renew(Instant(5), P, Epoch(1)), Ok(Instant(15)));
    assert_eq!(registry.deadline().map(|(at, _)| at), Some(Instant(10)));
    assert_eq!(found(&registry, 10, Mode::Prefill), [2], "hidden before anybody looks at the clock");
    assert_eq!(registry.expire(Instant(10)), [(Q, Epoch(1))]);
    assert_eq!(registry.find(Instant(10), Q), Err(RegistryError::NotFound));
    assert_eq!(registry.renew(Instant(10), Q, Epoch(1)), Err(RegistryError::NotFound));
    assert_eq!(registry.renew(Instant(15), P, Epoch(1)), Err(RegistryError::NotFound));
    assert_eq!(registry.deadline(), None);
    registry.check();
}

#[test]
fn a_later_life_replaces_an_earlier_one_and_not_the_other_way_round() {
    let mut registry = Registry::new(config());
    registry.register(Instant(0), worker(P, Mode::Prefill, 2)).expect("fits");
    let moved = Registration { endpoint: "10.0.0.9:1".into(), ..worker(P, Mode::Prefill, 3) };
    registry.register(Instant(1), moved).expect("a later life");
    let known = RegistryError::OldEpoch { known: Epoch(3) };
    assert_eq!(registry.register(Instant(2), worker(P, Mode::Prefill, 2)), Err(known.clone()));
    assert_eq!(registry.renew(Instant(2), P, Epoch(2)), Err(known.clone()));
    assert_eq!(registry.renew(Instant(2), P, Epoch(4)), Err(RegistryError::NotFound), "it has to register");
    assert!(!registry.leave(P, Epoch(2)));
    assert_eq!(registry.find(Instant(2), P).map(|it| it.endpoint.as_str()), Ok("10.0.0.9:1"));
    assert_eq!(known.status(), 409);
    assert!(registry.leave(P, Epoch(3)));
    registry.check();
}

#[test]
fn nobody_is_shown_before_all_that_are_expected_are_there() {
    let expected = [(Mode::Prefill, 2)].into();
    let mut registry = Registry::new(RegistryConfig { expected, ..config() });
    registry.register(Instant(0), worker(P, Mode::Prefill, 1)).expect("fits");
    let refused = registry.discover(Instant(0), Mode::Prefill).map(Iterator::count);
    assert_eq!(refused, Err(RegistryError::NotReady { registered: 1, expected: 2 }));
    assert_eq!(refused.map_err(|error| error.status()), Err(503));
    registry.register(Instant(5), worker(Q, Mode::Prefill, 1)).expect("fits");
    assert_eq!(found(&registry, 5, Mode::Prefill), [2, 3]);
    assert!(registry.discover(Instant(12), Mode::Prefill).is_err(), "one lease has ended");
}

#[test]
fn a_worker_whose_kv_fits_no_other_is_refused_when_it_joins() {
    let mut registry = Registry::new(config());
    registry.register(Instant(0), worker(P, Mode::Prefill, 1)).expect("fits");
    let other = |layout: Layout| Registration { layout, ..worker(D, Mode::Decode, 1) };
    let refused = registry.register(Instant(0), other(Layout { page_size: 8, ..layout() }));
    let mismatch = Mismatch::PageSize { ours: 4, theirs: 8 };
    assert_eq!(refused, Err(RegistryError::Incompatible { with: P, mismatch }));
    let refused = registry.register(Instant(0), Registration { root: PageKey(1), ..worker(D, Mode::Decode, 1) });
    assert_eq!(refused, Err(RegistryError::Incompatible { with: P, mismatch: Mismatch::Namespace }));
    let three = Layout { tp: 3, ..layout() };
    assert!(registry.register(Instant(0), other(three.clone())).is_err(), "three ranks cannot send to one");
    let alike = Registration { layout: three, ..worker(Q, Mode::Prefill, 1) };
    assert_eq!(registry.register(Instant(0), alike), Ok(Instant(10)), "prefills do not send to each other");
    assert_eq!(found(&registry, 0, Mode::Decode), []);
}

#[test]
fn the_layout_of_a_deployment_can_change_once_all_leases_of_the_old_one_have_ended() {
    let mut registry = Registry::new(config());
    registry.register(Instant(0), worker(P, Mode::Prefill, 1)).expect("fits");
    let other = Registration { layout: Layout { page_size: 8, ..layout() }, ..worker(D, Mode::Decode, 1) };
    assert!(registry.register(Instant(9), other.clone()).is_err());
    assert_eq!(registry.register(Instant(10), other), Ok(Instant(20)));
}

#[test]
fn an_address_that_begins_like_another_is_another() {
    let mut registry = Registry::new(config());
    let at = |id, endpoint: &str| Registration { endpoint: endpoint.into(), ..worker(id, Mode::Prefill, 1) };
    registry.register(Instant(0), at(P, "10.0.0.1:899")).expect("fits");
    registry.register(Instant(0), at(Q, "10.0.0.1:8998")).expect("fits");
    assert!(registry.leave(P, Epoch(1)));
    assert_eq!(found(&registry, 0, Mode::Prefill), [3]);
}

#[test]
fn junk_is_refused_and_the_number_of_workers_is_bounded() {
    let mut registry = Registry::new(config());
    for endpoint in ["", &"x".repeat(257)] {
        let junk = Registration { endpoint: endpoint.into(), ..worker(P, Mode::Prefill, 1) };
        assert!(matches!(registry.register(Instant(0), junk), Err(RegistryError::Endpoint { .. })));
    }
    for id in 1..=3 {
        registry.register(Instant(0), worker(WorkerId(id), Mode::Prefill, 1)).expect("fits");
    }
    let refused = registry.register(Instant(0), worker(WorkerId(4), Mode::Prefill, 1));
    assert_eq!(refused, Err(RegistryError::Full { max: 3 }));
    assert!(registry.register(Instant(1), worker(P, Mode::Prefill, 1)).is_ok(), "again is not one more");
    assert!(registry.register(Instant(10), worker(WorkerId(4), Mode::Prefill, 1)).is_ok(), "two leases have ended");
}
