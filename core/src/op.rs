//! The vocabulary of a worker: what it learns, what it asks for, and the commands that lanes carry out.
//!
//! Commands name pages, never pointers. Ordering contract: commands of a lane start in order; [`LaneKind::Compute`] and
//! the two copy lanes also complete in order, [`LaneKind::Storage`] and [`LaneKind::Wire`] in any order; nothing is
//! ordered across lanes except by `after`, which a lane may honour layer by layer (load back overlaps forward, push
//! overlaps prefill). Completion contract: exactly one [`Input::Done`] per [`Output::Start`], never from inside the
//! call that started it; when a prerequisite fails, its dependants fail with [`Fault::Prerequisite`].

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::batch::{Batch, Sampled};
use crate::codec;
use crate::event::{Control, Event, KvChange};
use crate::id::{Epoch, Generation, GpuPage, HostPage, OpId, PageKey, RequestId, Room, Token, WorkerId};
use crate::message::Message;
use crate::time::Instant;

/// Everything a worker can ever learn.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// A deadline has passed.
    Tick,
    /// A client's request, or this worker's share of one.
    Submit(Box<Submit>),
    /// The client has gone, or asked to stop.
    Cancel {
        /// Which request.
        request: RequestId,
    },
    /// A peer's connection came up in some life, or is torn down: no write of that life can still land here.
    Peer {
        /// Which peer.
        id: WorkerId,
        /// Its life, or `None` when it is gone.
        up: Option<Epoch>,
    },
    /// A message of a peer whose connection is up.
    Recv {
        /// Who sent it.
        from: WorkerId,
        /// What it says.
        message: Message,
    },
    /// A command of this worker has ended, well or badly.
    Done {
        /// Which command.
        op: OpId,
        /// How it ended.
        outcome: Outcome,
    },
    /// An operator's order.
    Control(Control),
}

codec!(enum Input {
    0 = Tick, 1 = Submit(submit), 2 = Cancel { request }, 3 = Peer { id, up }, 4 = Recv { from, message },
    5 = Done { op, outcome }, 6 = Control(control),
});

/// Everything a worker can ever ask for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Carry out a command.
    Start {
        /// Its name in the [`Input::Done`] that answers it.
        op: OpId,
        /// Commands that have to be far enough before this one may use their results.
        after: Vec<OpId>,
        /// What to do.
        command: Command,
    },
    /// Tell a peer; lost when its connection is down.
    Send {
        /// Whom.
        to: WorkerId,
        /// What.
        message: Message,
    },
    /// Tell the client of a request.
    Emit {
        /// Whose client.
        request: RequestId,
        /// What.
        event: Event,
    },
    /// Tell routers what this worker's cache holds.
    Publish(Vec<KvChange>),
}

codec!(enum Output {
    0 = Start { op, after, command }, 1 = Send { to, message }, 2 = Emit { request, event }, 3 = Publish(changes),
});

/// A prompt as the machines see it: keyed, and with as many of its last tokens as are at hand.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Prompt {
    /// Root key of the namespace the prompt belongs to; see [`crate::key::Namespace::root`].
    pub root: PageKey,
    /// Tokens in all.
    pub length: u32,
    /// One key for each full page.
    pub keys: Vec<PageKey>,
    /// The last tokens: at least those behind the last full page, at most all. A simulation has only the former.
    pub tokens: Vec<Token>,
}

codec!(struct Prompt { root, length, keys, tokens });

impl Prompt {
    /// The tokens behind the last full page.
    #[must_use]
    pub fn tail(&self, page_size: u32) -> &[Token] {
        let count = (self.length % page_size) as usize;
        &self.tokens[self.tokens.len() - count..]
    }

    /// The tokens of full page `page`, if they are at hand.
    #[must_use]
    pub fn page(&self, page: u32, page_size: u32) -> Option<&[Token]> {
        let missing = (self.length as usize).checked_sub(self.tokens.len())?;
        let start = (page as usize * page_size as usize).checked_sub(missing)?;
        self.tokens.get(start..start + page_size as usize)
    }

    /// True if lengths, keys and tokens fit together for this page size.
    #[must_use]
    pub fn is_well_formed(&self, page_size: u32) -> bool {
        self.length > 0
            && self.keys.len() == (self.length / page_size) as usize
            && self.tokens.len() >= (self.length % page_size) as usize
            && self.tokens.len() <= self.length as usize
    }
}

/// A request, or one leg of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Submit {
    /// Its name, unique in the deployment.
    pub request: RequestId,
    /// What to continue.
    pub prompt: Prompt,
    /// Most tokens to generate.
    pub limit: u32,
    /// Tokens that end the answer; empty to ignore the end of sequence.
    pub stop: Vec<Token>,
    /// Larger is more urgent.
    pub priority: i32,
    /// When the client stops waiting.
    pub deadline: Option<Instant>,
    /// Which part of the work falls to this worker.
    pub leg: Leg,
}

codec!(struct Submit { request, prompt, limit, stop, priority, deadline, leg });

/// Which part of a request a worker is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leg {
    /// Prefill and decode here.
    Whole,
    /// Prefill here, then hand over to whoever asks for the room.
    Prefill {
        /// The hand-off.
        room: Room,
    },
    /// Take over from `prefill`, then decode here.
    Decode {
        /// The hand-off.
        room: Room,
        /// Who computes the prompt.
        prefill: WorkerId,
    },
}

codec!(enum Leg { 0 = Whole, 1 = Prefill { room }, 2 = Decode { room, prefill } });

/// A page to read from or write to L3, with what identifies it there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Object {
    /// Its key.
    pub key: PageKey,
    /// The key before it in the chain.
    pub parent: PageKey,
    /// The host page that holds or receives it.
    pub page: HostPage,
    /// Its tokens where they are known (always, outside of simulation).
    pub tokens: Vec<Token>,
}

codec!(struct Object { key, parent, page, tokens });

/// Work for a lane.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// One pass of the model. Answer: [`Outcome::Sampled`].
    Forward(Box<Batch>),
    /// L2 to L1, layer by layer.
    LoadBack(Vec<(HostPage, GpuPage)>),
    /// L1 to L2.
    Backup(Vec<(GpuPage, HostPage)>),
    /// Which of these keys does L3 hold? Answer: [`Outcome::Found`].
    Query(Vec<PageKey>),
    /// L3 to L2.
    Prefetch(Vec<Object>),
    /// L2 to L3, durable when done.
    Persist(Vec<Object>),
    /// Remove from L3.
    Discard(Vec<PageKey>),
    /// List what L3 holds of this worker's namespaces, behind a key. Answer: [`Outcome::Scanned`].
    Scan {
        /// The last key of the previous answer.
        after: Option<PageKey>,
    },
    /// Remove everything of this worker's namespaces from L3.
    Wipe,
    /// Note that these objects of L3 were used, the most recent use first: what is kept under a quota has to outlive
    /// this process with its order.
    Touch(Vec<PageKey>),
    /// L1 to the L1 of a peer, layer by layer as `after` allows.
    Push(Box<Push>),
}

codec!(enum Command {
    0 = Forward(batch), 1 = LoadBack(pages), 2 = Backup(pages), 3 = Query(keys), 4 = Prefetch(objects),
    5 = Persist(objects), 6 = Discard(keys), 7 = Scan { after }, 8 = Wipe, 9 = Push(push), 10 = Touch(keys),
});

/// Pages for a peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Push {
    /// Who receives them.
    pub to: WorkerId,
    /// The life of the receiver that leased the destination pages.
    pub epoch: Epoch,
    /// The hand-off.
    pub room: Room,
    /// The attempt.
    pub generation: Generation,
    /// Ours to theirs.
    pub pages: Vec<(GpuPage, GpuPage)>,
    /// Contiguous pieces per page and layer that the two layouts cut it into; see `transfer::layout`.
    pub pieces: u32,
}

codec!(struct Push { to, epoch, room, generation, pages, pieces });

/// A queue of a device. See the module's ordering contract.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum LaneKind {
    /// The model.
    Compute,
    /// Host to device copies.
    CopyIn,
    /// Device to host copies.
    CopyOut,
    /// L3.
    Storage,
    /// Peers.
    Wire,
}

impl Command {
    /// The lane that carries it out.
    #[must_use]
    pub const fn lane(&self) -> LaneKind {
        match self {
            Self::Forward(_) => LaneKind::Compute,
            Self::LoadBack(_) => LaneKind::CopyIn,
            Self::Backup(_) => LaneKind::CopyOut,
            Self::Query(_)
            | Self::Prefetch(_)
            | Self::Persist(_)
            | Self::Discard(_)
            | Self::Scan { .. }
            | Self::Wipe
            | Self::Touch(_) => LaneKind::Storage,
            Self::Push(_) => LaneKind::Wire,
        }
    }
}

/// How a command ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// All of it was carried out.
    Moved,
    /// All but these items of the command (by index) were carried out.
    Partly(Vec<(u32, Fault)>),
    /// One token for each run with `sample`, in order.
    Sampled(Sampled),
    /// For each key of the query whether L3 holds it.
    Found(Vec<bool>),
    /// A page of the listing.
    Scanned {
        /// Keys in ascending order, each with its last use as the store counts uses: larger is later, 0 is unknown.
        keys: Vec<(PageKey, u64)>,
        /// Where to go on; `None` at the end.
        next: Option<PageKey>,
        /// Objects of other namespaces that were skipped.
        foreign: u32,
        /// Objects that failed their check and were skipped.
        torn: u32,
    },
    /// Nothing of it can be relied on.
    Failed(Fault),
}

codec!(enum Outcome {
    0 = Moved, 1 = Partly(failed), 2 = Sampled(tokens), 3 = Found(held), 4 = Scanned { keys, next, foreign, torn },
    5 = Failed(fault),
});

/// What can go wrong outside of the machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Fault {
    /// A command named in `after` failed.
    Prerequisite,
    /// L3 does not hold the object.
    Missing,
    /// The object's checksum, length or key is wrong.
    Checksum,
    /// The object belongs to another namespace.
    Namespace,
    /// Reading or writing failed.
    Io,
    /// No space left.
    Full,
    /// The peer or the store cannot be reached.
    Unreachable,
    /// The receiver no longer leases the pages, or lives another life.
    Fenced,
    /// The device failed.
    Device,
    /// The command was withdrawn by a shutdown or a detach.
    Withdrawn,
}

codec!(enum Fault {
    0 = Prerequisite, 1 = Missing, 2 = Checksum, 3 = Namespace, 4 = Io, 5 = Full, 6 = Unreachable, 7 = Fenced,
    8 = Device, 9 = Withdrawn,
});
