//! What the lanes of all workers share: the event queue, links, stores, and who lives.

use std::collections::BTreeMap;

use pd_core::cost::LinkCost;
use pd_core::event::Event;
use pd_core::id::{Epoch, RequestId, Room, Token};
use pd_core::op::Input;
use pd_core::router::RouterInput;
use pd_core::time::Instant;

use crate::disk::{Disk, JobId};
use crate::fault::{Hits, StoreFaults};
use crate::heap::Heap;
use crate::link::{FlowId, FlowSpec, LinkId, Links, Path};
use crate::memory::Memory;
use crate::observe::Activity;
use crate::setup::{Answers, LinkSetup};
use crate::store::Store;

/// Shared by all lanes of a world.
#[derive(Debug)]
pub struct Fabric {
    /// What happens when.
    pub heap: Heap<Mark>,
    /// PCIe, NVLink, NICs.
    pub links: Links,
    /// L3.
    pub depots: Vec<Depot>,
    /// The present life of each worker.
    pub lives: Vec<Option<Epoch>>,
    /// What each page holds, if contents are checked.
    pub memory: Option<Memory>,
    /// Pushes that went well.
    pub transfers: Vec<Transfer>,
    /// The text of each request.
    pub texts: Vec<Text>,
    /// A disk has a new job since this was last looked at.
    pub(crate) has_disk_jobs: bool,
    /// From whom to whom no push gets through, and for how many reasons.
    pub(crate) blocked: BTreeMap<(u32, u32), u32>,
    /// What the lines of the script have hit.
    pub(crate) hits: Hits,
    answers: Answers,
    pub(crate) wires: Vec<WireEnd>,
    /// What has ended since the world last looked, if somebody watches.
    pub(crate) activities: Option<Vec<Activity>>,
    flows: BTreeMap<FlowId, Place>,
}

/// An event of a world.
#[derive(Debug)]
pub enum Mark {
    /// A lane's timer.
    Timer(Place),
    /// The end of a forward. Comes before everything else of its instant but links and disks.
    Forward(Place),
    /// The end of the plan of a worker that coasts.
    Coast {
        /// Whose.
        node: u32,
        /// Which plan.
        plan: u64,
    },
    /// A machine's deadline.
    Tick {
        /// Whose.
        node: u32,
    },
    /// Something arrives at a worker, if it still lives the life it was sent to.
    Letter(Box<Letter>),
    /// Something arrives at the router.
    Note(Box<RouterInput>),
    /// The router's deadline.
    RouterTick,
    /// The next arrival of a load is due.
    Arrival,
    /// Workers tell the router how busy they are.
    Report,
    /// The run ends here.
    Stop,
    /// A line of the script.
    Script {
        /// Which.
        index: u32,
    },
    /// What a line of the script has begun is over.
    Over {
        /// Which.
        line: u32,
    },
    /// A line of the script goes on.
    Again {
        /// Which.
        line: u32,
        /// How often it has.
        turn: u32,
    },
    /// A worker registers with the bootstrap registry, or renews its lease.
    Register {
        /// Which.
        node: u32,
        /// In which life.
        epoch: Epoch,
    },
    /// What a worker tells a client arrives late.
    Emit {
        /// Which worker.
        node: u32,
        /// In which life.
        epoch: Epoch,
        /// Whose client.
        request: RequestId,
        /// What.
        event: Box<Event>,
    },
    /// A worker comes back.
    Start {
        /// Which.
        node: u32,
        /// Into which life; not if the script has ended that one before it began.
        epoch: Epoch,
    },
}

/// Something on its way to a worker.
#[derive(Debug)]
pub struct Letter {
    /// To whom.
    pub to: u32,
    /// The life that it was sent to.
    pub epoch: Epoch,
    /// Of what a peer says or what is said of it: the life of the peer, and which connection in these lives.
    pub sender: Option<(Epoch, u32)>,
    /// What it is.
    pub input: Input,
}

/// An operation of a life of a worker.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Place {
    /// Index of the worker.
    pub node: u32,
    /// Its life.
    pub epoch: Epoch,
    /// The operation's number.
    pub seq: u64,
}

impl Place {
    /// Orders the ends of forwards of one instant: by worker, then by start.
    pub(crate) const fn key(self) -> u64 {
        (self.node as u64) << 32 | (self.seq & 0xffff_ffff)
    }
}

/// Where the answer to a request begins, and what it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Text {
    /// Length of the prompt as the client sent it.
    pub prompt: u32,
    /// For [`Answers`].
    pub seed: u64,
}

/// A push that went well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transfer {
    /// Index of the source.
    pub from: u32,
    /// Index of the sink.
    pub to: u32,
    /// The hand-off.
    pub room: Room,
    /// Pages.
    pub pages: u32,
    /// Bytes.
    pub bytes: u64,
    /// When the source asked for it.
    pub issued: Instant,
    /// When its first flow began.
    pub started: Instant,
    /// When its last byte had landed.
    pub ended: Instant,
}

/// A store and the disk under it.
#[derive(Debug)]
pub struct Depot {
    /// Its name in reports.
    pub name: String,
    /// Timing.
    pub disk: Disk,
    /// Content.
    pub store: Store,
    /// Latency of what is not a read or a write.
    pub query_ns: u64,
    /// What goes wrong with it at present.
    pub(crate) faults: StoreFaults,
    pub(super) jobs: BTreeMap<JobId, Place>,
}

/// Where the wire of a worker ends.
#[derive(Clone, Debug)]
pub(crate) struct WireEnd {
    pub(crate) host: u32,
    pub(crate) near: Way,
    pub(crate) far: Way,
}

/// One kind of way out of and into a worker.
#[derive(Clone, Debug)]
pub(crate) struct Way {
    pub(crate) out: Path,
    pub(crate) into: Path,
    pub(crate) cost: LinkCost,
}

impl Fabric {
    pub(crate) fn new(answers: Answers) -> Self {
        Self {
            heap: Heap::new(),
            links: Links::new(),
            depots: Vec::new(),
            lives: Vec::new(),
            memory: None,
            transfers: Vec::new(),
            texts: Vec::new(),
            has_disk_jobs: false,
            blocked: BTreeMap::new(),
            hits: Hits::default(),
            answers,
            wires: Vec::new(),
            activities: None,
            flows: BTreeMap::new(),
        }
    }

    /// The path over these links, added where they are new.
    pub(crate) fn path(&mut self, names: &mut Vec<String>, links: &[LinkSetup]) -> Path {
        let mut ids: Vec<LinkId> = Vec::new();
        for link in links {
            let index = names.iter().position(|name| *name == link.name).unwrap_or_else(|| {
                names.push(link.name.clone());
                self.links.add(&link.name, link.bytes_per_second).0 as usize
            });
            ids.push(LinkId(index as u32));
        }
        Path::new(&ids)
    }

    /// The operation whose flow this was.
    pub fn flow_ended(&mut self, flow: FlowId) -> Option<Place> {
        self.flows.remove(&flow)
    }

    /// The operation whose disk job this was.
    pub fn job_ended(&mut self, depot: usize, job: JobId) -> Option<Place> {
        self.depots[depot].jobs.remove(&job)
    }

    /// All flows, and whose they are.
    pub fn flows(&self) -> impl Iterator<Item = (FlowId, Place)> + '_ {
        self.flows.iter().map(|(flow, place)| (*flow, *place))
    }

    /// The jobs of a store's disk, and whose they are.
    pub fn jobs(&self, depot: usize) -> impl Iterator<Item = (JobId, Place)> + '_ {
        self.depots[depot].jobs.iter().map(|(job, place)| (*job, *place))
    }

    pub(super) fn start(&mut self, now: Instant, place: Place, flow: FlowSpec) -> FlowId {
        let id = self.links.start(now, flow);
        self.flows.insert(id, place);
        id
    }

    pub(super) fn cancel(&mut self, now: Instant, flow: FlowId) {
        self.links.cancel(now, flow);
        self.flows.remove(&flow);
    }

    /// Takes everything of a worker off links and disks.
    pub(super) fn forget(&mut self, now: Instant, node: u32) {
        let ended: Vec<FlowId> =
            self.flows.iter().filter(|(_, place)| place.node == node).map(|(flow, _)| *flow).collect();
        for flow in ended {
            self.cancel(now, flow);
        }
        for depot in &mut self.depots {
            depot.jobs.retain(|_, place| place.node != node);
        }
    }

    /// Links and cost of the way between two workers.
    pub(super) fn way(&self, from: u32, to: u32) -> (Path, LinkCost) {
        let (source, sink) = (&self.wires[from as usize], &self.wires[to as usize]);
        let (out, into) = if source.host == sink.host { (&source.near, &sink.near) } else { (&source.far, &sink.far) };
        let mut links: Vec<LinkId> = out.out.iter().collect();
        for link in into.into.iter() {
            if !links.contains(&link) {
                links.push(link);
            }
        }
        (Path::new(&links), out.cost)
    }

    /// The token at `position` of a request's sequence.
    #[inline]
    pub(crate) fn answer(&self, request: RequestId, position: u32) -> Token {
        let text = self.texts.get(request.0 as usize).copied().unwrap_or_default();
        self.answers.token(text.seed, position.saturating_sub(text.prompt))
    }
}

impl Depot {
    /// An idle disk under an empty store.
    #[must_use]
    pub fn new(name: String, disk: Disk, store: Store, query_ns: u64) -> Self {
        Self { name, disk, store, query_ns, faults: StoreFaults::default(), jobs: BTreeMap::new() }
    }
}

/// The most that the flows of one transfer get.
#[expect(clippy::unnecessary_wraps, reason = "the form that FlowSpec wants")]
pub(super) fn rate(cost: &LinkCost, bytes: u64, descriptors: u64) -> Option<u64> {
    Some(cost.rate(bytes, descriptors))
}
