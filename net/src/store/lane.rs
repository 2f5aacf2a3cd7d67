//! The storage lane: threads that carry out a worker's commands on a store and answer each exactly once.
//!
//! Commands run side by side and end in any order. A prefetch of many pages is shared by the threads: a disk is fast
//! only if it is asked for several things at a time. A persist is answered when all of it is durable.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use pd_core::id::{OpId, PageKey};
use pd_core::op::{Command, Fault, Object, Outcome};
use pd_sync::Arena;

use super::{Identity, Record, Store, lock};

/// A lane; dropping it withdraws what was not begun, and returns when all is answered.
pub struct StorageLane {
    shared: Arc<LaneShared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Takes the answer of a command, on a thread of the lane; must not block for long.
pub type Answer = dyn Fn(OpId, Outcome) + Send + Sync;

struct LaneShared {
    store: Store,
    arena: Arc<Arena>,
    root: PageKey,
    /// Work for other threads of a prefetch has at least this many pages.
    threads: u32,
    queue: Mutex<Queue>,
    changed: Condvar,
    answer: Box<Answer>,
}

#[derive(Default)]
struct Queue {
    tasks: VecDeque<Task>,
    is_closed: bool,
}

enum Task {
    Whole(OpId, Command),
    /// Some objects of a prefetch.
    Part(Arc<Prefetch>, std::ops::Range<usize>),
}

/// A prefetch that several threads carry out.
struct Prefetch {
    op: OpId,
    objects: Vec<Object>,
    state: Mutex<PrefetchState>,
}

struct PrefetchState {
    parts_left: u32,
    failed: Vec<(u32, Fault)>,
}

impl StorageLane {
    /// A lane of `threads` threads for the worker whose namespace has this `root` and whose host pages are in `arena`.
    ///
    /// # Errors
    /// If threads cannot be started.
    ///
    /// # Panics
    /// If there are no threads.
    pub fn start(
        store: Store,
        arena: Arc<Arena>,
        root: PageKey,
        threads: u32,
        answer: impl Fn(OpId, Outcome) + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        assert!(threads > 0, "a lane without threads answers nothing");
        let (queue, changed, answer) = (Mutex::default(), Condvar::new(), Box::new(answer));
        let shared = Arc::new(LaneShared { store, arena, root, threads, queue, changed, answer });
        let lane = Self { shared, threads: Mutex::default() };
        for number in 0..threads {
            let shared = Arc::clone(&lane.shared);
            let thread = std::thread::Builder::new().name(format!("storage-{number}"));
            lock(&lane.threads).push(thread.spawn(move || shared.run())?);
        }
        Ok(lane)
    }

    /// Starts a command. Its answer never comes from inside this call unless the lane is closed.
    pub fn submit(&self, op: OpId, command: Command) {
        let mut queue = lock(&self.shared.queue);
        if queue.is_closed {
            drop(queue);
            (self.shared.answer)(op, Outcome::Failed(Fault::Withdrawn));
            return;
        }
        queue.tasks.push_back(Task::Whole(op, command));
        drop(queue);
        self.shared.changed.notify_one();
    }

    /// Withdraws what was not begun; what was begun ends as ever. Each command has its answer when this returns.
    pub fn close(&self) {
        let tasks = {
            let mut queue = lock(&self.shared.queue);
            queue.is_closed = true;
            std::mem::take(&mut queue.tasks)
        };
        self.shared.changed.notify_all();
        for task in tasks {
            match task {
                Task::Whole(op, _) => (self.shared.answer)(op, Outcome::Failed(Fault::Withdrawn)),
                Task::Part(prefetch, range) => {
                    let failed = range.map(|at| (at as u32, Fault::Withdrawn)).collect();
                    self.shared.end_part(&prefetch, failed);
                }
            }
        }
        for thread in lock(&self.threads).drain(..) {
            // A panic was reported where it happened.
            let _ = thread.join();
        }
    }
}

impl Drop for StorageLane {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for StorageLane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StorageLane").field("root", &self.shared.root).finish_non_exhaustive()
    }
}

impl LaneShared {
    fn run(&self) {
        loop {
            let mut queue = lock(&self.queue);
            let task = loop {
                if let Some(task) = queue.tasks.pop_front() {
                    break task;
                }
                if queue.is_closed {
                    return;
                }
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
            };
            drop(queue);
            match task {
                Task::Whole(op, Command::Prefetch(objects)) => self.split(op, objects),
                Task::Whole(op, command) => (self.answer)(op, self.carry_out(&command)),
                Task::Part(prefetch, range) => self.prefetch(&prefetch, range),
            }
        }
    }

    /// Shares a prefetch with the other threads.
    fn split(&self, op: OpId, objects: Vec<Object>) {
        if objects.is_empty() {
            (self.answer)(op, Outcome::Moved);
            return;
        }
        let count = objects.len();
        let part = count.div_ceil(self.threads as usize);
        let ranges: Vec<_> = (0..count).step_by(part).map(|from| from..(from + part).min(count)).collect();
        let state = Mutex::new(PrefetchState { parts_left: ranges.len() as u32, failed: Vec::new() });
        let prefetch = Arc::new(Prefetch { op, objects, state });
        let mut ranges = ranges.into_iter();
        let own = ranges.next().unwrap_or(0..count);
        {
            let mut queue = lock(&self.queue);
            // Ahead of what came later, and even while the lane closes: this one was begun.
            for range in ranges.rev() {
                queue.tasks.push_front(Task::Part(Arc::clone(&prefetch), range));
            }
        }
        self.changed.notify_all();
        self.prefetch(&prefetch, own);
    }

    fn prefetch(&self, prefetch: &Prefetch, range: std::ops::Range<usize>) {
        let failed = range.filter_map(|at| Some((at as u32, self.read(&prefetch.objects[at]).err()?))).collect();
        self.end_part(prefetch, failed);
    }

    fn end_part(&self, prefetch: &Prefetch, failed: Vec<(u32, Fault)>) {
        let mut state = lock(&prefetch.state);
        state.failed.extend(failed);
        state.parts_left -= 1;
        if state.parts_left == 0 {
            let mut failed = std::mem::take(&mut state.failed);
            drop(state);
            failed.sort_unstable();
            (self.answer)(prefetch.op, moved(failed));
        }
    }

    fn read(&self, object: &Object) -> Result<(), Fault> {
        if object.page.0 >= self.arena.pages() {
            return Err(Fault::Device);
        }
        // Somebody uses the page: whoever planned this was wrong, and the page is left alone.
        let mut page = self.arena.write(object.page.0).map_err(|_| Fault::Device)?;
        self.store.read(self.identity(object), &mut page)
    }

    fn carry_out(&self, command: &Command) -> Outcome {
        let done = |result: Result<(), Fault>| result.map_or_else(Outcome::Failed, |()| Outcome::Moved);
        match command {
            Command::Query(keys) => Outcome::Found(self.store.contains(keys, self.root)),
            Command::Persist(objects) => self.persist(objects),
            Command::Discard(keys) => done(self.store.discard(keys)),
            Command::Scan { after } => {
                let page = self.store.scan(self.root, *after, SCAN_OBJECTS);
                Outcome::Scanned { keys: page.keys, next: page.next, foreign: page.foreign, torn: page.torn }
            }
            Command::Wipe => done(self.store.wipe(self.root)),
            Command::Touch(keys) => {
                self.store.touch(keys);
                Outcome::Moved
            }
            // Not of this lane, or handled before.
            Command::Prefetch(_)
            | Command::Forward(_)
            | Command::LoadBack(_)
            | Command::Backup(_)
            | Command::Push(_) => Outcome::Failed(Fault::Unreachable),
        }
    }

    fn persist(&self, objects: &[Object]) -> Outcome {
        let mut failed = Vec::new();
        let mut pages = Vec::with_capacity(objects.len());
        for (at, object) in (0_u32..).zip(objects) {
            let is_there = object.page.0 < self.arena.pages();
            match is_there.then(|| self.arena.read(object.page.0)) {
                Some(Ok(page)) => pages.push((at, object, page)),
                Some(Err(_)) | None => failed.push((at, Fault::Device)),
            }
        }
        let records: Vec<Record<'_>> =
            pages.iter().map(|(_, object, page)| Record { page: self.identity(object), bytes: page }).collect();
        for ((at, _, _), result) in pages.iter().zip(self.store.write(&records)) {
            failed.extend(result.err().map(|fault| (*at, fault)));
        }
        failed.sort_unstable();
        moved(failed)
    }

    fn identity<'a>(&self, object: &'a Object) -> Identity<'a> {
        Identity { key: object.key, root: self.root, parent: object.parent, tokens: &object.tokens }
    }
}

fn moved(failed: Vec<(u32, Fault)>) -> Outcome {
    if failed.is_empty() { Outcome::Moved } else { Outcome::Partly(failed) }
}

/// Pages that one scan looks at.
const SCAN_OBJECTS: u32 = 4096;
