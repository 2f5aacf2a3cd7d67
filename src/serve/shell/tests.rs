//! What becomes of those who tell a worker something when nobody hears any more.

use pd_core::id::PageKey;
use pd_core::op::Prompt;
use pd_sync::{Closed, Refused};

use super::*;

/// Notes its own end.
struct Ending(std::sync::mpsc::Sender<()>);

impl Sink for Ending {
    fn event(&mut self, _: Event, _: Option<Sample>) -> bool {
        self.0.send(()).is_ok()
    }
}

fn job(sink: Ending) -> Told {
    let prompt = Prompt { root: PageKey(0), length: 1, keys: Vec::new(), tokens: Vec::new() };
    let submit = Submit {
        request: RequestId(1),
        prompt,
        limit: 1,
        stop: Vec::new(),
        priority: 0,
        deadline: None,
        leg: Leg::Whole,
    };
    Told::Job(Box::new(NewJob { submit, tokens: vec![Token(7)], sampling: Sampling::greedy(), sink: Box::new(sink) }))
}

#[test]
fn a_worker_that_dies_leaves_nobody_waiting() {
    let (inbox, hearing) = Hearing::open();
    let (ending, ended) = std::sync::mpsc::channel();
    assert!(inbox.try_send(job(Ending(ending))).is_ok());
    while inbox.try_send(Told::Input(Input::Tick)).is_ok() {}
    assert_eq!(inbox.len(), INBOX_ITEMS_MAX);
    std::thread::scope(|scope| {
        // A lane with an answer: it waits for room by now, or comes too late.
        let lane = scope.spawn(|| inbox.send(Told::Input(Input::Tick)));
        drop(hearing);
        let refused = lane.join().expect("it does not panic");
        assert!(matches!(refused, Err(Closed(_))));
    });
    assert!(inbox.is_empty(), "what was inside is gone, and with it the sink of the job");
    assert!(matches!(ended.try_recv(), Err(std::sync::mpsc::TryRecvError::Disconnected)));
    assert!(matches!(inbox.try_send(Told::Input(Input::Tick)), Err(Refused::Closed(_))));
}
