//! A warm step of the scheduler allocates nothing: what it hands to the device comes back and is used again.
//!
//! Alone in its process, because it counts what the allocator is asked for.

#[path = "../../benches/busy/mod.rs"]
mod busy;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use pd_core::config::SchedulePolicy;

use self::busy::{LIMIT, RUNNING, World};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: hands each call on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above; the pointer came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_warm_step_allocates_nothing() {
    for policy in [SchedulePolicy::Fcfs, SchedulePolicy::Priority, SchedulePolicy::Hrrn, SchedulePolicy::Random] {
        let mut world = World::new(policy, RUNNING as u32);
        // Warm: each sequence has grown by a page once.
        for _ in 0..32 {
            world.step();
        }
        let mut at = Vec::with_capacity(LIMIT as usize);
        while world.steps < LIMIT - 10 {
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            world.step();
            let count = ALLOCATIONS.load(Ordering::Relaxed) - before;
            if count > 0 {
                at.push((world.steps, count));
            }
        }
        let all: u64 = at.iter().map(|(_, count)| count).sum();
        assert_eq!(all, 0, "{policy:?}: {} of {LIMIT} steps allocate: {:?} ...", at.len(), &at[..at.len().min(20)]);
    }
}
