//! Which decode worker a conversation was on, and how much of it that worker holds.
//!
//! A decode worker keeps the KV of the answer, too, but its page keys are made there; until an event names them, this
//! note is all the router knows of them. The client's word is not enough: a note counts only if the new prompt goes
//! on where the noted one ended.

use alloc::collections::BTreeMap;

use crate::codec;
use crate::digest::Digest;
use crate::id::{Epoch, PageKey, WorkerId};

/// Notes on the most recent conversations.
#[derive(Debug)]
pub(super) struct Sessions {
    notes: BTreeMap<u64, (u64, Note)>,
    /// Session by time of use.
    uses: BTreeMap<u64, u64>,
    clock: u64,
    max: usize,
}

/// Where a conversation was left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Note {
    pub(super) worker: WorkerId,
    pub(super) epoch: Epoch,
    /// Full pages of the last prompt, and the key of the last of them.
    pub(super) pages: u32,
    pub(super) key: PageKey,
    /// Tokens of the last prompt and its answer.
    pub(super) tokens: u32,
}

codec!(struct Note { worker, epoch, pages, key, tokens });

impl Sessions {
    pub(super) const fn new(max: u32) -> Self {
        Self { notes: BTreeMap::new(), uses: BTreeMap::new(), clock: 0, max: max as usize }
    }

    pub(super) fn put(&mut self, session: u64, note: Note) {
        if self.max == 0 {
            return;
        }
        if let Some((used, _)) = self.notes.insert(session, (self.clock, note)) {
            self.uses.remove(&used);
        }
        self.uses.insert(self.clock, session);
        self.clock += 1;
        if self.notes.len() > self.max
            && let Some((_, oldest)) = self.uses.pop_first()
        {
            self.notes.remove(&oldest);
        }
    }

    /// The note of a conversation, if a prompt with these keys goes on where it ended.
    pub(super) fn lookup(&self, session: u64, keys: &[PageKey]) -> Option<Note> {
        let (_, note) = self.notes.get(&session)?;
        let last = keys.get((note.pages as usize).checked_sub(1)?)?;
        (*last == note.key).then_some(*note)
    }

    pub(super) fn digest(&self, digest: &mut Digest) {
        for session in self.uses.values() {
            digest.value(session);
            digest.value(&self.notes[session].1);
        }
    }

    pub(super) fn check(&self) {
        assert!(self.notes.len() <= self.max);
        assert_eq!(self.notes.len(), self.uses.len());
    }
}
