//! Every interleaving of what threads share, within loom's bounds. Each model has a negative control: the same model with
//! one thing left out, which must be caught.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p pd-sync --release --test loom`
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

use pd_sync::word::PageWord;
use pd_sync::{Gate, Inbox, Received};

fn model(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(body);
}

/// A page with its word. The cell panics if two threads touch it at once without order.
struct Page {
    word: PageWord,
    bytes: UnsafeCell<u32>,
}

// SAFETY: that access is ordered by the word is what the models check.
unsafe impl Sync for Page {}
// SAFETY: as above.
unsafe impl Send for Page {}

impl Page {
    fn new() -> Arc<Self> {
        Arc::new(Self { word: PageWord::new(), bytes: UnsafeCell::new(0) })
    }

    fn store(&self, value: u32) {
        // SAFETY: see above.
        self.bytes.with_mut(|bytes| unsafe { *bytes = value });
    }

    fn load(&self) -> u32 {
        // SAFETY: see above.
        self.bytes.with(|bytes| unsafe { *bytes })
    }
}

/// A writer from outside, and an owner that revokes and gives the page to the next request.
fn revocation(waits: bool) {
    model(move || {
        let page = Page::new();
        assert!(page.word.grant(7));
        let writer = {
            let page = page.clone();
            thread::spawn(move || {
                if page.word.enter(7, 1).is_ok() {
                    page.store(7);
                    page.word.leave(7);
                }
            })
        };
        page.word.revoke(7);
        while waits && page.word.outside().is_some() {
            thread::yield_now();
        }
        page.store(8);
        assert_eq!(page.load(), 8, "the next request's page");
        writer.join().unwrap();
        assert_eq!(page.load(), 8, "the next request's page");
    });
}

#[test]
fn after_a_revocation_no_write_lands() {
    revocation(true);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn negative_control_a_revocation_that_does_not_wait() {
    revocation(false);
}

/// A reader and a writer, guarded or not.
fn guards(guarded: bool) {
    model(move || {
        let page = Page::new();
        let writer = {
            let page = page.clone();
            thread::spawn(move || {
                if !guarded || page.word.write() {
                    page.store(1);
                    page.word.unwrite();
                }
            })
        };
        if page.word.read() {
            page.load();
            page.word.unread();
        }
        writer.join().unwrap();
    });
}

#[test]
fn a_reader_and_a_writer_exclude_each_other() {
    guards(true);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn negative_control_a_writer_without_a_guard() {
    guards(false);
}

/// What was written from outside is seen by who reads after it was told.
#[test]
fn a_landed_page_is_visible() {
    model(|| {
        let page = Page::new();
        assert!(page.word.grant(7));
        let landed = Arc::new(AtomicBool::new(false));
        let writer = {
            let (page, landed) = (page.clone(), landed.clone());
            thread::spawn(move || {
                page.word.enter(7, 1).unwrap();
                page.store(7);
                assert!(page.word.leave(7));
                // Relaxed: the order is the word's to keep.
                landed.store(true, Ordering::Relaxed);
            })
        };
        if landed.load(Ordering::Relaxed) && page.word.revoke(7) && page.word.outside().is_none() {
            assert_eq!(page.load(), 7);
        }
        writer.join().unwrap();
    });
}

#[test]
fn an_inbox_loses_no_item_and_no_wake_up() {
    model(|| {
        let inbox = Arc::new(Inbox::new(1));
        let senders: Vec<_> = (0..2)
            .map(|number| {
                let inbox = inbox.clone();
                thread::spawn(move || inbox.send(number).unwrap())
            })
            .collect();
        let mut sum = 0;
        for _ in 0..2 {
            let Received::Item(item) = inbox.recv_until(None) else { panic!("nobody closed it") };
            sum += item + 1;
        }
        assert_eq!(sum, 3);
        senders.into_iter().for_each(|sender| sender.join().unwrap());
    });
}

#[test]
fn closing_wakes_the_receiver_and_blocked_senders() {
    model(|| {
        let inbox = Arc::new(Inbox::new(1));
        let sender = {
            let inbox = inbox.clone();
            thread::spawn(move || {
                let taken = inbox.send(1).is_ok();
                taken && inbox.send(2).is_ok()
            })
        };
        let closer = {
            let inbox = inbox.clone();
            thread::spawn(move || inbox.close())
        };
        let mut items = 0;
        while let Received::Item(_) = inbox.recv_until(None) {
            items += 1;
        }
        let both = sender.join().unwrap();
        closer.join().unwrap();
        assert!(items <= 2 && (!both || items == 2), "what was taken is received");
    });
}

/// The inbox without its lock: the receiver looks, then sleeps, and an item comes in between. Loom sees the deadlock.
#[test]
#[should_panic(expected = "deadlock")]
fn negative_control_a_receiver_that_looks_before_it_locks() {
    model(|| {
        // Leaked: loom's own destructors would panic while the deadlock unwinds.
        let state: &'static (AtomicBool, loom::sync::Mutex<()>, loom::sync::Condvar) =
            Box::leak(Box::new((AtomicBool::new(false), loom::sync::Mutex::new(()), loom::sync::Condvar::new())));
        let sender = thread::spawn(move || {
            state.0.store(true, Ordering::SeqCst);
            state.2.notify_one();
        });
        if !state.0.load(Ordering::SeqCst) {
            let guard = state.1.lock().unwrap();
            drop(state.2.wait(guard).unwrap());
        }
        sender.join().unwrap();
    });
}

/// Somebody inside uses what is taken away once the gate is drained.
fn gate(waits: bool) {
    model(move || {
        let shared = Arc::new((Gate::new(), Page::new()));
        let user = {
            let shared = shared.clone();
            thread::spawn(move || {
                if let Some(_pass) = shared.0.enter() {
                    shared.1.store(1);
                }
            })
        };
        shared.0.close();
        if waits {
            assert!(shared.0.drained_until(None));
        }
        shared.1.store(2);
        user.join().unwrap();
        assert_eq!(shared.1.load(), 2);
    });
}

#[test]
fn a_drained_gate_has_nobody_inside_and_lets_nobody_in() {
    gate(true);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn negative_control_a_gate_that_is_closed_but_not_drained() {
    gate(false);
}
