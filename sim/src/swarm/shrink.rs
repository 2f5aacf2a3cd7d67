//! Makes a failing plan small: delta debugging (Zeller and Hildebrandt, IEEE TSE 2002) on its parts, then on its values.
//!
//! What is left out or made simpler is decided by one question only: does the plan still fail in the same way? Faults go
//! first, since each of them makes the rest slow to read; then requests, workers, keys (a key that is gone has its
//! default) and at last values: earlier and rounder times, shorter prompts, smaller numbers. Rounds are repeated until one
//! changes nothing.
//!
//! Deterministic: equal plans and answers give equal results. Bounded: by a number of runs.

use super::keys::{Keys, Value, lower, spans};
use super::plan::{Plan, Request};

/// What shrinking took.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Effort {
    /// Plans that were tried.
    pub tries: u32,
    /// False if the bound on tries ended it.
    pub is_minimal: bool,
}

/// Makes a plan small that `fails` holds for, with at most so many tries.
pub fn shrink(plan: &Plan, tries_max: u32, fails: &mut dyn FnMut(&Plan) -> bool) -> (Plan, Effort) {
    let mut shrinker = Shrinker { best: plan.clone(), fails, tries: 0, tries_max };
    loop {
        let before = shrinker.best.clone();
        shrinker.faults();
        shrinker.requests();
        shrinker.loads();
        shrinker.workers();
        shrinker.keys();
        shrinker.values();
        if shrinker.best == before || shrinker.is_spent() {
            break;
        }
    }
    let effort = Effort { tries: shrinker.tries, is_minimal: !shrinker.is_spent() };
    (shrinker.best, effort)
}

struct Shrinker<'a> {
    best: Plan,
    fails: &'a mut dyn FnMut(&Plan) -> bool,
    tries: u32,
    tries_max: u32,
}

/// Where the keys of a plan are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Network,
    Common,
    Group(usize),
    Router,
    Load(usize),
    Fault(usize),
}

impl Shrinker<'_> {
    const fn is_spent(&self) -> bool {
        self.tries >= self.tries_max
    }

    /// Takes the candidate if it fails in the same way.
    fn take(&mut self, candidate: Plan) -> bool {
        if self.is_spent() || candidate == self.best || !candidate.can_recover() {
            return false;
        }
        self.tries += 1;
        let takes = (self.fails)(&candidate);
        if takes {
            self.best = candidate;
        }
        takes
    }

    /// Leaves out as many of `count` parts as possible: half of them at once, then quarters, down to single ones.
    fn leave_out(&mut self, count: usize, without: &dyn Fn(&Plan, &[usize]) -> Plan) {
        let mut count = count;
        let mut size = count;
        while size > 0 && !self.is_spent() {
            let mut end = count;
            // From the back: what comes late depends on what comes early, seldom the other way round.
            while end > 0 {
                let start = end.saturating_sub(size);
                let kept: Vec<usize> = (0..count).filter(|index| *index < start || *index >= end).collect();
                let candidate = without(&self.best, &kept);
                if self.take(candidate) {
                    count = kept.len();
                }
                end = start;
            }
            size /= 2;
        }
    }

    fn faults(&mut self) {
        self.leave_out(self.best.faults.len(), &|plan, kept| {
            let mut plan = plan.clone();
            plan.faults = kept.iter().map(|index| plan.faults[*index].clone()).collect();
            plan
        });
    }

    fn requests(&mut self) {
        // Faults that name a request that goes would go with it; they were all needed, so no request of theirs goes.
        self.leave_out(self.best.requests.len(), &|plan, kept| plan.with_requests(kept));
    }

    fn loads(&mut self) {
        self.leave_out(self.best.loads.len(), &|plan, kept| {
            let mut plan = plan.clone();
            plan.loads = kept.iter().map(|index| plan.loads[*index].clone()).collect();
            plan
        });
    }

    fn workers(&mut self) {
        let mut group = self.best.groups.len();
        while group > 0 {
            group -= 1;
            while group < self.best.groups.len() && self.best.workers() > 1 {
                let candidate = self.best.without_worker(group);
                if !self.take_alone(candidate) {
                    break;
                }
            }
        }
        let mut candidate = self.best.clone();
        candidate.router = None;
        self.take(candidate);
    }

    /// Takes the candidate with its router or, if there is only one worker left, without.
    fn take_alone(&mut self, candidate: Plan) -> bool {
        let mut alone = candidate.clone();
        alone.router = None;
        (alone.workers() == 1 && self.take(alone)) || self.take(candidate)
    }

    fn keys(&mut self) {
        let places = self.places();
        let all: Vec<(Place, &'static str)> = places
            .into_iter()
            .flat_map(|place| keys(&self.best, place).iter().map(move |(key, _)| (place, key)).collect::<Vec<_>>())
            .filter(|(place, key)| !must_stay(*place, key))
            .collect();
        let original = self.best.clone();
        // The keys that are gone are those of `all` that are not kept, whatever the present plan is.
        let mut kept: Vec<usize> = (0..all.len()).collect();
        let mut size = kept.len();
        while size > 0 && !self.is_spent() {
            let mut end = kept.len();
            while end > 0 {
                let start = end.saturating_sub(size);
                let mut fewer = kept.clone();
                fewer.drain(start..end);
                let mut candidate = original.clone();
                for (index, (place, key)) in all.iter().enumerate() {
                    if !fewer.contains(&index) {
                        keys_mut(&mut candidate, *place).remove(key);
                    }
                }
                if self.take(original.rename(candidate)) {
                    kept = fewer;
                }
                end = start;
            }
            size /= 2;
        }
        let mut candidate = self.best.clone();
        candidate.seed = 1;
        self.take(candidate);
        let mut candidate = self.best.clone();
        candidate.model = "llama-3.1-8b";
        self.take(candidate);
    }

    fn places(&self) -> Vec<Place> {
        let plan = &self.best;
        let mut places = vec![Place::Network, Place::Common];
        places.extend((0..plan.groups.len()).map(Place::Group));
        if plan.router.is_some() {
            places.push(Place::Router);
        }
        places.extend((0..plan.loads.len()).map(Place::Load));
        places.extend((0..plan.faults.len()).map(Place::Fault));
        places
    }

    fn values(&mut self) {
        for index in 0..self.best.requests.len() {
            self.request(index);
        }
        for index in 0..self.best.faults.len() {
            self.fault(index);
        }
        for place in self.places() {
            let count = keys(&self.best, place).len();
            for index in 0..count {
                self.value(place, index);
            }
        }
    }

    /// Goes through candidates until one is taken, and again from there.
    fn descend<T: Clone>(
        &mut self,
        read: impl Fn(&Plan) -> T,
        simpler: impl Fn(&T) -> Vec<T>,
        write: impl Fn(&Plan, T) -> Plan,
    ) {
        while !self.is_spent() {
            let candidates = simpler(&read(&self.best));
            let taken = candidates.into_iter().any(|candidate| {
                let plan = write(&self.best, candidate);
                self.take(plan)
            });
            if !taken {
                return;
            }
        }
    }

    fn request(&mut self, index: usize) {
        let read = |plan: &Plan| plan.requests[index].clone();
        let write = |plan: &Plan, request: Request| plan.with_request(index, request);
        self.descend(read, plainer, write);
        self.descend(read, times, write);
        self.descend(read, lengths, write);
    }

    fn fault(&mut self, index: usize) {
        let write = |plan: &Plan, at_ns: u64| {
            let mut plan = plan.clone();
            plan.faults[index].at_ns = at_ns;
            plan.faults.sort_by_key(|fault| fault.at_ns);
            plan
        };
        self.descend(|plan| plan.faults[index].at_ns, |at_ns| spans(*at_ns).collect(), write);
        if let Some((key, _)) = self.best.faults[index].lasts {
            let write = |plan: &Plan, ns: u64| {
                let mut plan = plan.clone();
                plan.faults[index].lasts = Some((key, ns));
                plan
            };
            let read = |plan: &Plan| plan.faults[index].lasts.map_or(0, |(_, ns)| ns);
            self.descend(read, |ns| spans(*ns).filter(|ns| *ns > 0).collect(), write);
        }
    }

    fn value(&mut self, place: Place, index: usize) {
        let read = |plan: &Plan| keys(plan, place).iter().nth(index).map(|(key, value)| (key, value.clone()));
        let write = |plan: &Plan, entry: Option<(&'static str, Value)>| {
            let mut changed = plan.clone();
            if let Some((key, value)) = entry {
                keys_mut(&mut changed, place).set(key, value);
            }
            plan.rename(changed)
        };
        let simpler = |entry: &Option<(&'static str, Value)>| {
            let Some((key, value)) = entry else { return Vec::new() };
            let values = if let Value::Table(inner) = value { smaller_tables(inner) } else { value.simpler() };
            values.into_iter().map(|value| Some((*key, value))).collect()
        };
        self.descend(read, simpler, write);
    }
}

/// Keys without which a plan is another one: whom a fault is about; and the size of L1, whose default is that of a GPU,
/// a million pages that are recounted again and again.
fn must_stay(place: Place, key: &str) -> bool {
    match place {
        Place::Fault(_) => matches!(key, "worker" | "store" | "request"),
        Place::Group(_) => key == "max_total_tokens",
        Place::Load(_) => key == "kind",
        Place::Network | Place::Common | Place::Router => false,
    }
}

fn keys(plan: &Plan, place: Place) -> &Keys {
    match place {
        Place::Network => &plan.network,
        Place::Common => &plan.common,
        Place::Group(index) => &plan.groups[index].keys,
        Place::Router => plan.router.as_ref().expect("named only where there is one"),
        Place::Load(index) => &plan.loads[index],
        Place::Fault(index) => &plan.faults[index].keys,
    }
}

fn keys_mut(plan: &mut Plan, place: Place) -> &mut Keys {
    match place {
        Place::Network => &mut plan.network,
        Place::Common => &mut plan.common,
        Place::Group(index) => &mut plan.groups[index].keys,
        Place::Router => plan.router.as_mut().expect("named only where there is one"),
        Place::Load(index) => &mut plan.loads[index],
        Place::Fault(index) => &mut plan.faults[index].keys,
    }
}

/// A table with a key less, or with a simpler value.
fn smaller_tables(table: &Keys) -> Vec<Value> {
    let mut smaller = Vec::new();
    for (key, value) in table.iter() {
        let mut fewer = table.clone();
        fewer.remove(key);
        smaller.push(Value::Table(fewer));
        smaller.extend(value.simpler().into_iter().map(|value| Value::Table(table.clone().with(key, value))));
    }
    smaller
}

/// The request with less to say.
fn plainer(request: &Request) -> Vec<Request> {
    let mut plainer = Vec::new();
    if request.priority != 0 {
        plainer.push(Request { priority: 0, ..request.clone() });
    }
    if request.content.is_some() {
        plainer.push(Request { content: None, prefix: None, ..request.clone() });
    }
    if let Some((of, _)) = request.prefix {
        plainer.push(Request { prefix: None, ..request.clone() });
        if request.content.is_some() && request.content != Some(of) {
            plainer.push(Request { content: Some(of), prefix: None, ..request.clone() });
        }
    }
    plainer
}

fn times(request: &Request) -> Vec<Request> {
    spans(request.at_ns).map(|at_ns| Request { at_ns, ..request.clone() }).collect()
}

fn lengths(request: &Request) -> Vec<Request> {
    let outputs = lower(request.output, 1).map(|output| Request { output, ..request.clone() });
    let prompts = lower(request.prompt, 1).map(|prompt| Request { prompt, ..request.clone() });
    let prefixes = request.prefix.into_iter().flat_map(|(of, tokens)| {
        lower(tokens, 1).map(move |tokens| Request { prefix: Some((of, tokens)), ..request.clone() })
    });
    outputs.chain(prompts).chain(prefixes).collect()
}
