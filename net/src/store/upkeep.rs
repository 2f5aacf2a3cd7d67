//! What happens beside reads and writes: ends of segments, other processes' logs, notes, room, snapshots.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::append::note;
use super::log::Active;
use super::{Shared, lock, peers, reclaim, snapshot};

/// When the thread that does it works.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    state: Mutex<State>,
    changed: Condvar,
    /// One at a time puts ends to segments.
    sealing: Mutex<()>,
    /// One turn at a time.
    pub(super) turn: Mutex<Turn>,
}

#[derive(Debug, Default)]
struct State {
    is_woken: bool,
    is_stopping: bool,
}

#[derive(Debug, Default)]
pub(super) struct Turn {
    /// Segments sealed since the last snapshot.
    sealed: u32,
}

impl Upkeep {
    /// There is something to do.
    pub(super) fn wake(&self) {
        lock(&self.state).is_woken = true;
        self.changed.notify_all();
    }

    /// No more turns.
    pub(super) fn stop(&self) {
        lock(&self.state).is_stopping = true;
        self.changed.notify_all();
    }

    pub(super) fn is_stopping(&self) -> bool {
        lock(&self.state).is_stopping
    }
}

/// Starts the thread of a store.
pub(super) fn start(shared: &Arc<Shared>) -> std::io::Result<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    std::thread::Builder::new().name("store".into()).spawn(move || {
        loop {
            let upkeep = &shared.upkeep;
            let mut state = lock(&upkeep.state);
            if !state.is_woken && !state.is_stopping {
                let waited = upkeep.changed.wait_timeout(state, shared.config.poll);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            state.is_woken = false;
            if state.is_stopping {
                break;
            }
            drop(state);
            turn(&shared);
        }
    })
}

/// Does what is due.
pub(super) fn turn(shared: &Shared) {
    let mut turn = lock(&shared.upkeep.turn);
    turn.sealed += seal(shared);
    peers::poll(shared, true);
    write_notes(shared);
    while !shared.upkeep.is_stopping() && reclaim::reclaim(shared) {
        turn.sealed += seal(shared);
    }
    forget_logs(shared);
    if turn.sealed >= SNAPSHOT_SEGMENTS {
        turn.sealed = 0;
        take_snapshot(shared);
    }
}

/// The last turn: leaves nothing that has to be recovered.
pub(super) fn close(shared: &Shared) {
    let _turn = lock(&shared.upkeep.turn);
    write_notes(shared);
    shared.log.retire();
    seal(shared);
    if shared.index().count() > 0 {
        take_snapshot(shared);
    }
}

/// Puts ends to segments that nobody writes to any more; how many.
pub(super) fn seal(shared: &Shared) -> u32 {
    let _sealing = lock(&shared.upkeep.sealing);
    let mut count = 0;
    for segment in shared.log.take_quiet() {
        let Active { id, nonce, .. } = *segment;
        let bytes = match segment.seal() {
            Ok((bytes, _)) => bytes,
            Err(error) => {
                let _ = shared.fault("seal a segment", &error);
                segment.file.len().unwrap_or(shared.config.segment_bytes)
            }
        };
        // Without an end it is read through when it is opened again; here it is done all the same.
        shared.index_mut().add_segment(id, nonce, bytes, true, true);
        count += 1;
    }
    count
}

fn write_notes(shared: &Shared) {
    let notes = shared.log.take_notes();
    // What cannot be written is lost with this process: uses, and reasons why something is gone.
    let _ = note(shared, &notes, false);
}

fn take_snapshot(shared: &Shared) {
    let writer = lock(&shared.owners).own();
    if let Err(error) = snapshot::write(shared, writer) {
        let _ = shared.fault("write a snapshot", &error);
    }
}

/// Removes locks of logs that have nothing left.
fn forget_logs(shared: &Shared) {
    let mut owners = lock(&shared.owners);
    let index = shared.index();
    let with_segments: Vec<u32> = index.segments().map(|(_, segment)| segment.id.writer).collect();
    drop(index);
    for writer in owners.held() {
        if !with_segments.contains(&writer) {
            owners.forget(writer);
        }
    }
}

/// Segments sealed between snapshots.
const SNAPSHOT_SEGMENTS: u32 = 32;
