//! What a world is made of, as plain data: workers, links, stores, a router, loads and a script of what happens when.
//!
//! The scenario layer fills it from TOML; tests write it by hand. Nothing here checks or decides anything.

use std::sync::Arc;
use std::time::Duration;

use pd_core::config::{Mode, WorkerConfig};
use pd_core::cost::{Cost, LinkCost};
use pd_core::id::Token;
use pd_core::key::Namespace;
use pd_core::op::Prompt;
use pd_core::router::RouterConfig;
use pd_core::time::Instant;

use crate::disk::DiskSpec;
use crate::fault::Places;
pub use crate::fault::{Action, Change};

/// One worker and the machine it runs on.
#[derive(Clone, Debug)]
pub struct WorkerSetup {
    /// What it is told. `worker` must be its index in the list of workers.
    pub config: WorkerConfig,
    /// What its policies believe that things cost.
    pub cost: Cost,
    /// How long its forwards really take.
    pub step: StepCost,
    /// Layers of the model, for what overlaps layer by layer.
    pub layers: u32,
    /// The machine; workers of one machine reach each other over `near`.
    pub host: u32,
    /// L2 to L1.
    pub copy_in: PathSetup,
    /// L1 to L2.
    pub copy_out: PathSetup,
    /// To and from workers of the same machine.
    pub near: WireSetup,
    /// To and from workers of other machines.
    pub far: WireSetup,
    /// Index of its L3 among the stores.
    pub store: Option<u32>,
    /// Time of a message from it to anybody.
    pub control_latency_ns: u64,
    /// When its first life begins.
    pub start: Instant,
}

/// How long forwards take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum StepCost {
    /// What the worker's cost model says.
    #[default]
    Model,
    /// A fixed time on the device and on the host.
    Fixed {
        /// On the device.
        gpu_ns: u64,
        /// On the host.
        cpu_ns: u64,
    },
}

/// A shared piece of hardware that carries bytes. Links of the same name are one link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LinkSetup {
    /// Its name.
    pub name: String,
    /// How much it carries.
    pub bytes_per_second: u64,
}

/// The way of a copy.
#[derive(Clone, Debug)]
pub struct PathSetup {
    /// The links that it shares with others.
    pub links: Vec<LinkSetup>,
    /// What one copy costs when it is alone.
    pub cost: LinkCost,
}

/// The way to other workers.
#[derive(Clone, Debug)]
pub struct WireSetup {
    /// Links of what leaves.
    pub out: Vec<LinkSetup>,
    /// Links of what arrives.
    pub into: Vec<LinkSetup>,
    /// What one push costs when it is alone.
    pub cost: LinkCost,
}

/// An L3, private or shared.
#[derive(Clone, Debug)]
pub struct StoreSetup {
    /// Its name in reports.
    pub name: String,
    /// The disk under it.
    pub disk: DiskSpec,
    /// From the question to the answer of a query, a scan or a removal.
    pub query_ns: u64,
    /// Most bytes in it.
    pub bytes_max: Option<u64>,
}

/// Token `index` of the answer whose seed is `seed`: cheap, pure, and the same wherever it is generated.
pub type Answer = fn(seed: u64, index: u32) -> Token;

/// What the engines of a run say.
#[derive(Clone, Debug)]
pub enum Answers {
    /// All of it by a rule.
    Rule(Answer),
    /// As it was recorded: the seed of a request is its place in the list. The rule goes on behind the end of a record.
    Recorded(Arc<[Vec<Token>]>, Answer),
}

impl Answers {
    /// Token `index` of the answer whose seed is `seed`.
    #[inline]
    #[must_use]
    pub fn token(&self, seed: u64, index: u32) -> Token {
        match self {
            Self::Rule(rule) => rule(seed, index),
            Self::Recorded(answers, rule) => {
                let recorded = usize::try_from(seed).ok().and_then(|place| answers.get(place)?.get(index as usize));
                recorded.copied().unwrap_or_else(|| rule(seed, index))
            }
        }
    }
}

/// Where requests come from.
pub trait Source: std::fmt::Debug {
    /// When the next request arrives, as far as is known now.
    fn next(&self) -> Option<Instant>;
    /// Takes that request.
    fn take(&mut self) -> Arrival;
    /// A request of this source has ended, with its whole answer or without; more may arrive because of it.
    fn finished(&mut self, now: Instant, ordinal: u64, is_complete: bool);
    /// How many requests there will be, as far as is known; 0 if it is not.
    fn total(&self) -> u64 {
        0
    }
}

/// One request as a source makes it.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Its number within the source, for [`Source::finished`].
    pub ordinal: u64,
    /// The conversation it belongs to.
    pub session: Option<u64>,
    /// What to continue.
    pub prompt: Prompt,
    /// Tokens of the prompt as a study of its trace counts them; differs from its length if it was padded.
    pub counted_tokens: u32,
    /// How long the answer is.
    pub output_tokens: u32,
    /// Larger is more urgent.
    pub priority: i32,
    /// For [`Answers`].
    pub seed: u64,
}

/// All of a world.
#[derive(Debug)]
pub struct Setup {
    /// Seed of the run, for what is drawn (what a crash leaves of a write).
    pub seed: u64,
    /// In the order of their ids, which count from 0.
    pub workers: Vec<WorkerSetup>,
    /// L3 stores.
    pub stores: Vec<StoreSetup>,
    /// The router and what it believes that things cost; none for exactly one worker.
    pub router: Option<(RouterConfig, Cost)>,
    /// Least time between the router and anybody.
    pub router_latency_ns: u64,
    /// How often workers tell the router how busy they are; never if zero.
    pub load_report: Duration,
    /// The namespace of the prompts that the loads make.
    pub prompts: Namespace,
    /// Requests.
    pub loads: Vec<Box<dyn Source>>,
    /// Their answers.
    pub answers: Answers,
    /// What happens when; by time.
    pub script: Vec<(Instant, Action)>,
    /// When to stop even if requests are left.
    pub until: Option<Instant>,
    /// How long to go on after the last request has ended, so that writes reach L3.
    pub linger: Duration,
    /// Recount all invariants after each step, and check what pages hold.
    pub check: bool,
    /// What the reader of its report should know of where it comes from.
    pub notes: Vec<String>,
}

impl Setup {
    /// A world of these workers and nothing else: no router, no loads, answers that count up.
    #[must_use]
    pub fn new(workers: Vec<WorkerSetup>) -> Self {
        Self {
            seed: 0,
            workers,
            stores: Vec::new(),
            router: None,
            router_latency_ns: 0,
            load_report: Duration::ZERO,
            prompts: Namespace::default(),
            loads: Vec::new(),
            answers: Answers::Rule(|seed, index| Token((seed as u32).wrapping_mul(1_000_003).wrapping_add(index))),
            script: Vec::new(),
            until: None,
            linger: Duration::ZERO,
            check: false,
            notes: Vec::new(),
        }
    }

    /// What there is for an action to name.
    #[must_use]
    pub fn places(&self) -> Places {
        let mut links: Vec<String> = Vec::new();
        for worker in &self.workers {
            let ways = [&worker.near, &worker.far].into_iter().flat_map(|wire| wire.out.iter().chain(&wire.into));
            for link in ways.chain(&worker.copy_in.links).chain(&worker.copy_out.links) {
                if !links.contains(&link.name) {
                    links.push(link.name.clone());
                }
            }
        }
        let has = |mode| self.workers.iter().any(|worker| worker.config.mode == mode);
        Places {
            workers: self.workers.len() as u32,
            stores: self.stores.len() as u32,
            links,
            has_router: self.router.is_some(),
            has_pairs: has(Mode::Prefill) && has(Mode::Decode),
        }
    }
}
