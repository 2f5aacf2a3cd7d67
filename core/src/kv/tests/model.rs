#![allow(clippy::disallowed_types, reason = "prop_oneof! makes an Arc")]
//! Random histories: whatever happens in whatever order, no page is lost, found in the wrong place or read too early.

use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::{End, Rig, tokens};
use crate::config::{HostPolicy, KvConfig, PrefetchPolicy, StorageMode, WritePolicy};
use crate::event::Control;
use crate::evict::Policy;
use crate::id::RequestId;
use crate::op::{Fault, Prompt};

#[derive(Clone, Debug)]
enum Act {
    Enter {
        family: u32,
        length: u32,
    },
    Admit(prop::sample::Index),
    Leave(prop::sample::Index),
    /// Computes and publishes up to so many pages more.
    Compute(prop::sample::Index, u32),
    Save(prop::sample::Index),
    Grow(prop::sample::Index, u32),
    Release(prop::sample::Index),
    End(prop::sample::Index, bool),
    /// An object vanishes behind the index.
    Lose(prop::sample::Index),
    Control(u8),
    Pass(u32),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (0..4_u32, 1..60_u32).prop_map(|(family, length)| Act::Enter { family, length }),
        4 => any::<prop::sample::Index>().prop_map(Act::Admit),
        1 => any::<prop::sample::Index>().prop_map(Act::Leave),
        4 => (any::<prop::sample::Index>(), prop_oneof![Just(u32::MAX), 1..4_u32]).prop_map(|(at, pages)| Act::Compute(at, pages)),
        1 => any::<prop::sample::Index>().prop_map(Act::Save),
        1 => (any::<prop::sample::Index>(), 1..20_u32).prop_map(|(at, tokens)| Act::Grow(at, tokens)),
        4 => any::<prop::sample::Index>().prop_map(Act::Release),
        12 => (any::<prop::sample::Index>(), prop::bool::weighted(0.9)).prop_map(|(at, well)| Act::End(at, well)),
        1 => any::<prop::sample::Index>().prop_map(Act::Lose),
        1 => (0..4_u8).prop_map(Act::Control),
        2 => (1..40_u32).prop_map(Act::Pass),
    ];
    prop::collection::vec(act, 1..120)
}

fn configs() -> impl Strategy<Value = KvConfig> {
    (
        20..40_u32,
        prop_oneof![Just(0_u32), 10..50_u32],
        prop_oneof![Just(StorageMode::None), Just(StorageMode::Private), Just(StorageMode::Shared)],
        prop_oneof![
            Just(WritePolicy::WriteThrough),
            Just(WritePolicy::WriteThroughSelective),
            Just(WritePolicy::WriteBack)
        ],
        prop_oneof![Just(HostPolicy::Inclusive), Just(HostPolicy::Exclusive)],
        prop_oneof![
            Just(PrefetchPolicy::BestEffort),
            Just(PrefetchPolicy::WaitComplete),
            Just(PrefetchPolicy::Timeout)
        ],
        prop_oneof![
            Just(Policy::Lru),
            Just(Policy::Lfu),
            Just(Policy::Slru),
            Just(Policy::Fifo),
            Just(Policy::Priority),
            Just(Policy::S3Fifo)
        ],
        prop_oneof![Just(u64::MAX), 5..30_u64],
        (prop_oneof![4 => Just(1000_u32), 1 => 0..500_u32], 1..16_u32, prop_oneof![2 => Just(1_u32), 1 => 1..16_u32]),
    )
        .prop_map(|(gpu, host, storage, write_policy, host_policy, prefetch_policy, eviction, quota, small)| {
            KvConfig {
                prefetch_capacity_per_mille: small.0,
                prefetch_threshold: small.1,
                load_back_threshold: small.2,
                write_policy,
                host_policy,
                prefetch_policy,
                device_eviction: eviction,
                host_eviction: eviction,
                storage_pages_max: quota,
                kv_events: true,
                ..Rig::config(gpu, host, if host == 0 { StorageMode::None } else { storage })
            }
        })
}

/// Prompts of a family share their beginning and fork at token 10 and 30.
fn family(rig: &Rig, family: u32, length: u32) -> Prompt {
    let token = |at: u32| match at {
        0..10 => at,
        10..30 => 1000 * (family / 2 + 1) + at,
        _ => 1000 * (family + 3) + at,
    };
    rig.prompt(&tokens(0..length).into_iter().map(token).collect::<Vec<_>>())
}

fn run(config: KvConfig, acts: Vec<Act>) {
    let mut rig = Rig::new(config);
    let mut waiting: Vec<(RequestId, Prompt)> = Vec::new();
    let is_private = rig.kv.config().storage == StorageMode::Private;
    let mut has_lost = false;
    for act in acts {
        match act {
            Act::Enter { family: which, length } => {
                let prompt = family(&rig, which, length);
                let request = rig.next_request();
                rig.kv.enter(&mut rig.bench.cx(), request, &prompt, true);
                waiting.push((request, prompt));
            }
            Act::Admit(at) if !waiting.is_empty() => {
                let at = at.index(waiting.len());
                let (request, prompt) = waiting[at].clone();
                let _ = rig.kv.ready(&mut rig.bench.cx(), request, false);
                if rig.admit(request, &prompt).is_ok() {
                    waiting.remove(at);
                }
            }
            Act::Leave(at) if !waiting.is_empty() => {
                let (request, _) = waiting.remove(at.index(waiting.len()));
                rig.kv.leave(request);
            }
            Act::Compute(at, pages) if !rig.leases.is_empty() => {
                let at = at.index(rig.leases.len());
                let loading = rig.leases[at].0.loading().iter().any(|op| rig.bench.ops.is_live(*op));
                if !loading {
                    rig.compute_some(at, pages, (pages % 3) as i32);
                }
            }
            Act::Save(at) if !rig.leases.is_empty() => {
                let at = at.index(rig.leases.len());
                rig.kv.save(&rig.leases[at].0);
            }
            Act::Grow(at, more) if !rig.leases.is_empty() => {
                let at = at.index(rig.leases.len());
                let (lease, _) = &mut rig.leases[at];
                let want = lease.table().len() as u32 * 4 + more;
                let _ = rig.kv.grow(&mut rig.bench.cx(), lease, want);
            }
            Act::Release(at) if !rig.leases.is_empty() => {
                let at = at.index(rig.leases.len());
                rig.release(at);
            }
            Act::End(at, well) if !rig.flying.is_empty() => {
                let op = *rig.flying.keys().nth(at.index(rig.flying.len())).unwrap();
                rig.end(op, if well { End::Well } else { End::Badly(Fault::Io) });
            }
            Act::Lose(at) if !rig.store.is_empty() => {
                let key = *rig.store.iter().nth(at.index(rig.store.len())).unwrap();
                rig.store.remove(&key);
                has_lost = true;
            }
            Act::Control(which) => {
                let control = [Control::Flush, Control::AttachStorage, Control::DetachStorage, Control::ClearStorage];
                rig.kv.control(&mut rig.bench.cx(), control[which as usize]);
            }
            Act::Pass(tenths) => rig.bench.now.0 += u64::from(tenths) * 100_000_000,
            Act::Admit(_)
            | Act::Leave(_)
            | Act::Compute(..)
            | Act::Save(_)
            | Act::Grow(..)
            | Act::Release(_)
            | Act::End(..)
            | Act::Lose(_) => {}
        }
        rig.settle();
    }
    // Everything comes to rest, and then nothing is held but by the cache.
    for (request, _) in waiting {
        rig.kv.leave(request);
    }
    rig.settle();
    rig.drain();
    while !rig.leases.is_empty() {
        rig.release(0);
    }
    rig.drain();
    rig.kv.check_idle();
    if is_private && !has_lost {
        for key in rig.kv.hicache.index.keys_present() {
            assert!(rig.store.contains(&key), "the index says that L3 has what it has not");
        }
    }
    rig.kv.control(&mut rig.bench.cx(), Control::Flush);
    rig.settle();
    rig.drain();
    assert_eq!(rig.kv.used(), (0, 0), "a flushed cache at rest holds nothing");
}

proptest! {

    #[test]
    fn no_history_loses_a_page_or_serves_a_wrong_one(config in configs(), acts in acts()) {
        run(config, acts);
    }
}
