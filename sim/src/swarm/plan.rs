//! A plan: one deployment, its load and its faults as plain data, which is a scenario file and nothing else.
//!
//! A plan is what a seed draws and what the shrinker makes smaller. It runs only as the text of a scenario
//! ([`Plan::text`]), through the loader of all scenarios: what a failure leaves behind is that text.
//!
//! 1. All faults end at [`Plan::healed_ns`] and all workers that come back are back: then the liveness phase begins, and
//!    by [`Plan::until_ns`] every request must have ended.
//! 2. Workers, stores and requests are named by index. Whatever is taken out of a plan takes with it the faults that name
//!    it, and the other names follow.

use super::keys::{Keys, Value, span};

/// A scenario as data.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Seed of the run.
    pub seed: u64,
    /// Name of the model.
    pub model: &'static str,
    /// What connects the workers.
    pub network: Keys,
    /// What all workers have in common: all must have the same page size.
    pub common: Keys,
    /// Groups of equal workers.
    pub groups: Vec<Group>,
    /// The router, if there is one.
    pub router: Option<Keys>,
    /// Requests one by one, by arrival.
    pub requests: Vec<Request>,
    /// Other loads.
    pub loads: Vec<Keys>,
    /// What goes wrong, by time.
    pub faults: Vec<Fault>,
}

/// Which legs the workers of a group serve.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Role {
    /// All.
    Unified,
    /// Prompts.
    Prefill,
    /// Answers.
    Decode,
}

/// A group of equal workers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group {
    /// Unique in the plan; says which group is which when others are gone.
    pub name: u32,
    /// How many workers.
    pub count: u32,
    /// What they serve.
    pub role: Role,
    /// All else.
    pub keys: Keys,
}

/// A request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// When it arrives.
    pub at_ns: u64,
    /// Length of the prompt.
    pub prompt: u64,
    /// Length of the answer.
    pub output: u64,
    /// Its content, by number; alike prompts have alike tokens.
    pub content: Option<u32>,
    /// How many of its first tokens are those of another content.
    pub prefix: Option<(u32, u64)>,
    /// Larger is more urgent.
    pub priority: i64,
}

/// Something that goes wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// When.
    pub at_ns: u64,
    /// What, as scenarios call it.
    pub what: &'static str,
    /// For how long: the key, and the time.
    pub lasts: Option<(&'static str, u64)>,
    /// All else.
    pub keys: Keys,
}

/// One worker, whatever its index is.
type WorkerName = (u32, u32);

impl Plan {
    /// When all faults have ended and all workers that come back are back.
    #[must_use]
    pub fn healed_ns(&self) -> u64 {
        let ends = self.faults.iter().map(|fault| fault.at_ns + fault.lasts.map_or(0, |(_, ns)| ns));
        ends.max().unwrap_or(0)
    }

    /// When every request must have ended: the bound of the liveness phase. Each wait that a worker or the router may
    /// begin has its timeout; the bound is what they come to one behind another, and ten minutes of work.
    #[must_use]
    pub fn until_ns(&self) -> u64 {
        const WORK_NS: u64 = 600_000_000_000;
        let longest = |key: &str, default: u64| {
            self.groups.iter().map(|group| group.keys.span(key).unwrap_or(default)).max().unwrap_or(default)
        };
        let most = |key: &str, default: u64| {
            self.groups.iter().map(|group| group.keys.count(key).unwrap_or(default)).max().unwrap_or(default)
        };
        let has_pairs = self.groups.iter().any(|group| group.role != Role::Unified);
        let handoff_ns = longest("disaggregation_bootstrap_timeout", DEFAULT_TIMEOUT_NS)
            + longest("disaggregation_waiting_timeout", DEFAULT_TIMEOUT_NS);
        let retries = self.router.as_ref().map_or(0, |router| router.count("retries").unwrap_or(5));
        let attempt_ns = if has_pairs { handoff_ns * (1 + most("handoff_retries", 1)) } else { 0 };
        let last = self.requests.iter().map(|request| request.at_ns).max().unwrap_or(0);
        self.healed_ns().max(last) + attempt_ns * (1 + retries) + WORK_NS
    }

    /// How many workers there are.
    #[must_use]
    pub fn workers(&self) -> u32 {
        self.groups.iter().map(|group| group.count).sum()
    }

    /// The roles of all workers, by index.
    #[must_use]
    pub fn roles(&self) -> Vec<Role> {
        self.groups.iter().flat_map(|group| (0..group.count).map(|_| group.role)).collect()
    }

    /// How many stores there are.
    #[must_use]
    pub fn stores(&self) -> u32 {
        self.store_names().len() as u32
    }

    /// True if requests can end: a role that loses a worker for good has another one that stays.
    #[must_use]
    pub fn can_recover(&self) -> bool {
        let roles = self.roles();
        let mut stays = vec![true; roles.len()];
        for fault in &self.faults {
            if fault.what == "crash"
                && fault.lasts.is_none()
                && let Some(Value::Worker(worker)) = fault.keys.get("worker")
                && let Some(stays) = stays.get_mut(*worker as usize)
            {
                *stays = false;
            }
        }
        let has = |role: Role| roles.iter().zip(&stays).any(|(other, stays)| *other == role && *stays);
        roles.iter().all(|role| has(*role))
    }

    /// The plan without a worker of a group.
    #[must_use]
    pub fn without_worker(&self, group: usize) -> Self {
        let mut plan = self.clone();
        if plan.groups[group].count > 1 {
            plan.groups[group].count -= 1;
        } else {
            plan.groups.remove(group);
        }
        self.rename(plan)
    }

    /// The plan with other groups, whose faults still mean the same workers and stores.
    #[must_use]
    pub(super) fn rename(&self, mut plan: Self) -> Self {
        let (workers, stores) = (self.worker_names(), self.store_names());
        let (new_workers, new_stores) = (plan.worker_names(), plan.store_names());
        let worker = |index: u32| find(&workers, &new_workers, index);
        let store = |index: u32| find(&stores, &new_stores, index);
        plan.faults.retain_mut(|fault| {
            let mut is_there = true;
            fault.keys.for_each_mut(&mut |value| match value {
                Value::Worker(index) => worker(*index).map_or_else(|| is_there = false, |new| *index = new),
                Value::Store(index) => store(*index).map_or_else(|| is_there = false, |new| *index = new),
                Value::Flag(_)
                | Value::Count(_)
                | Value::Signed(_)
                | Value::PerMille(_)
                | Value::Span(_)
                | Value::Rate(_)
                | Value::Bytes(_)
                | Value::Word(_)
                | Value::Request(_)
                | Value::Pages(..)
                | Value::Between(..)
                | Value::Table(_) => {}
            });
            is_there
        });
        plan
    }

    /// The plan with only these of its requests, in order of arrival.
    #[must_use]
    pub(super) fn with_requests(&self, kept: &[usize]) -> Self {
        let mut plan = self.clone();
        plan.requests = kept.iter().map(|index| self.requests[*index].clone()).collect();
        let new = |index: u32| kept.iter().position(|kept| *kept == index as usize).map(|place| place as u32);
        // With other loads beside them the ordinals of requests are no one's in particular.
        let is_list = self.loads.is_empty();
        plan.faults.retain_mut(|fault| {
            let mut is_there = true;
            fault.keys.for_each_mut(&mut |value| {
                if let Value::Request(index) = value
                    && is_list
                {
                    new(*index).map_or_else(|| is_there = false, |new| *index = new);
                }
            });
            is_there
        });
        plan
    }

    /// The plan with one request changed; requests stay in order of arrival, and faults mean the same ones.
    #[must_use]
    pub(super) fn with_request(&self, index: usize, request: Request) -> Self {
        let mut plan = self.clone();
        plan.requests[index] = request;
        let mut order: Vec<usize> = (0..plan.requests.len()).collect();
        order.sort_by_key(|index| plan.requests[*index].at_ns);
        if order.is_sorted() { plan } else { plan.with_requests(&order) }
    }

    fn worker_names(&self) -> Vec<WorkerName> {
        let members = |group: &Group| (0..group.count).map(move |index| (group.name, index)).collect::<Vec<_>>();
        self.groups.iter().flat_map(members).collect()
    }

    /// The stores in the order of the workers that have them: one each, or one for a group that shares.
    fn store_names(&self) -> Vec<WorkerName> {
        let mut names = Vec::new();
        for group in &self.groups {
            let Some(Value::Table(storage)) = group.keys.get("hicache_storage") else { continue };
            let is_shared = storage.get("mode") == Some(&Value::Word("shared"));
            names.extend((0..if is_shared { 1 } else { group.count }).map(|index| (group.name, index)));
        }
        names
    }

    /// The scenario file.
    #[must_use]
    pub fn text(&self, about: &str) -> String {
        let mut text =
            format!("about = \"\"\"\n{}\n\"\"\"\n", about.trim().replace('\\', "\\\\").replace("\"\"\"", "'''"));
        text.push_str(&format!("seed = {}\ncheck = true\nuntil = \"{}\"\n", self.seed, span(self.until_ns())));
        text.push_str(&format!("model = \"{}\"\n", self.model));
        if !self.network.is_empty() {
            text.push_str("\n[network]\n");
            self.network.lines(&mut text);
        }
        for group in &self.groups {
            text.push_str("\n[[worker]]\n");
            if group.count > 1 {
                text.push_str(&format!("count = {}\n", group.count));
            }
            match group.role {
                Role::Unified => {}
                Role::Prefill => text.push_str("mode = \"prefill\"\n"),
                Role::Decode => text.push_str("mode = \"decode\"\n"),
            }
            for (key, value) in self.common.iter().filter(|(key, _)| group.keys.get(key).is_none()) {
                text.push_str(&format!("{key} = {value}\n"));
            }
            group.keys.lines(&mut text);
        }
        if let Some(router) = &self.router {
            text.push_str("\n[router]\n");
            router.lines(&mut text);
        }
        if !self.requests.is_empty() {
            text.push_str("\n[[load]]\nkind = \"list\"\nrequests = [\n");
            for request in &self.requests {
                text.push_str(&format!("    {{ {} }},\n", request.line(&self.requests)));
            }
            text.push_str("]\n");
        }
        for load in &self.loads {
            text.push_str("\n[[load]]\n");
            load.lines(&mut text);
        }
        for fault in &self.faults {
            text.push_str(&format!("\n[[event]]\nat = \"{}\"\ndo = \"{}\"\n", span(fault.at_ns), fault.what));
            fault.keys.lines(&mut text);
            if let Some((key, ns)) = fault.lasts {
                text.push_str(&format!("{key} = \"{}\"\n", span(ns)));
            }
        }
        text.push_str("\n[expect]\n\"requests.arrived\" = \">= 1\"\n\"requests.unfinished\" = \"== 0\"\n");
        text.push_str("\"run.violations\" = \"== 0\"\n");
        text
    }
}

impl Request {
    /// Its line in a list beside these others.
    fn line(&self, all: &[Self]) -> String {
        let mut line =
            format!("at = \"{}\", prompt_tokens = {}, output_tokens = {}", span(self.at_ns), self.prompt, self.output);
        if let Some(content) = self.content {
            line.push_str(&format!(", content = \"c{content}\""));
        }
        // A prefix of a content that nobody has is an error in a scenario; whoever had it has been taken out.
        if let Some((of, tokens)) = self.prefix.filter(|(of, _)| all.iter().any(|other| other.content == Some(*of))) {
            line.push_str(&format!(", prefix = {{ of = \"c{of}\", tokens = {tokens} }}"));
        }
        if self.priority != 0 {
            line.push_str(&format!(", priority = {}", self.priority));
        }
        line
    }
}

/// Where what was at an index is.
fn find(old: &[WorkerName], new: &[WorkerName], index: u32) -> Option<u32> {
    let name = old.get(index as usize)?;
    new.iter().position(|other| other == name).map(|place| place as u32)
}

/// `bootstrap_timeout` and `waiting_timeout` where a plan does not say.
const DEFAULT_TIMEOUT_NS: u64 = 300_000_000_000;
