//! Which values a report can have at all, so that a misspelt gate is refused before the run.
//!
//! Nothing is listed twice: the names are those of the reports of runs in which everything happened, so a value that is
//! added to a report is known here at once.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::{LazyLock, OnceLock};

use pd_core::codec::{Codec, Source};
use pd_core::event::{Finish, Miss, MissReason, Refusal, Served};
use pd_core::metrics::MARKS;
use pd_core::router::{RouteRefusal, RouterMetrics};
use pd_core::time::Instant;

use super::{REQUESTS_LISTED_MAX, values, word};
use crate::disk::DiskUse;
use crate::link::LinkUse;
use crate::record::{End, Outcome, Record, StoreRecord, WorkerRecord};
use crate::scenario::error::nearest;
use crate::setup::Setup;
use crate::stats::LogHistogram;

/// The names of all values that the report of one deployment can have.
#[derive(Clone, Debug)]
pub struct Names {
    links: Vec<String>,
    stores: Vec<String>,
    has_router: bool,
    /// Those of its links and stores, once somebody asks for one that is not common: most gates are.
    own: OnceLock<BTreeSet<String>>,
}

/// Those of any deployment: all but links and stores.
static COMMON: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
    let mut names = BTreeSet::new();
    let ends = every::<Finish>().into_iter().map(End::Finished);
    let ends = ends.chain(every::<Refusal>().into_iter().map(End::Refused));
    let ends = ends.chain(every::<RouteRefusal>().into_iter().map(End::NotRouted));
    for end in ends.chain([End::RouterLost]) {
        names.extend(values(&one_request(end)).into_keys());
    }
    names
});

impl Names {
    /// Of a deployment.
    #[must_use]
    pub fn of(setup: &Setup) -> Self {
        let links = setup.workers.iter().flat_map(|worker| {
            let wires = [&worker.near, &worker.far].into_iter().flat_map(|wire| wire.out.iter().chain(&wire.into));
            worker.copy_in.links.iter().chain(&worker.copy_out.links).chain(wires)
        });
        Self {
            links: links.map(|link| link.name.clone()).collect(),
            stores: setup.stores.iter().map(|store| store.name.clone()).collect(),
            has_router: setup.router.is_some(),
            own: OnceLock::new(),
        }
    }

    fn own(&self) -> &BTreeSet<String> {
        self.own.get_or_init(|| {
            let mut outcome = one_request(End::Finished(Finish::Length));
            outcome.links.extend(self.links.iter().map(|name| (name.clone(), LinkUse::default())));
            let store =
                |name: &String| StoreRecord { name: name.clone(), disk: DiskUse::default(), objects: 0, bytes: 0 };
            outcome.stores.extend(self.stores.iter().map(store));
            values(&outcome).into_keys().collect()
        })
    }

    /// Checks that a report can have a value of this name.
    ///
    /// # Errors
    /// Why it cannot, with the nearest name that it can have.
    pub fn check(&self, name: &str) -> Result<(), String> {
        if name.starts_with("router.") && !self.has_router {
            return Err("there is no [router], so nothing counts its routes".to_owned());
        }
        if let Some((number, value)) = name.strip_prefix("request.").and_then(|rest| rest.split_once('.')) {
            let Ok(number) = number.parse::<usize>() else {
                return Err(format!("\"{number}\" is no number; write request.0.{value} for the first request"));
            };
            if number >= REQUESTS_LISTED_MAX {
                return Err(format!(
                    "requests have values of their own in runs of up to {REQUESTS_LISTED_MAX} requests"
                ));
            }
            return self.find(&format!("request.0.{value}")).map_err(|near| hint(near, number));
        }
        self.find(name).map_err(|near| hint(near, 0))
    }

    /// The nearest name as an error, if there is none of this.
    fn find(&self, name: &str) -> Result<(), Option<&str>> {
        if COMMON.contains(name) || self.own().contains(name) {
            return Ok(());
        }
        // A name of the same group if there is one like it: "misses.hol" is not about "marks".
        let group = |one: &&str| one.split('.').next() == name.split('.').next();
        let all: BTreeSet<&str> = COMMON.iter().chain(self.own()).map(String::as_str).collect();
        let names = || all.iter().copied();
        Err(nearest(name, names().filter(group)).or_else(|| nearest(name, names())))
    }
}

fn hint(near: Option<&str>, request: usize) -> String {
    let near = near.map(|near| match near.strip_prefix("request.0.") {
        Some(value) => format!("request.{request}.{value}"),
        None => near.to_owned(),
    });
    near.map_or_else(
        || "no report has such a value; `pd sim --json` lists those of a run".to_owned(),
        |near| format!("no report has such a value; did you mean \"{near}\"?"),
    )
}

/// A run of one request that ended so, and to which everything else happened, too.
pub(super) fn one_request(end: End) -> Outcome {
    let misses = every::<MissReason>().into_iter().map(|reason| Miss { reason, tokens: 1 }).collect();
    let served = Some(Box::new(Served { misses, ..Served::default() }));
    let at = Some(Instant::ZERO);
    let record = Record {
        routed: at,
        admitted: at,
        handed_over: at,
        first_token: at,
        last_token: at,
        finished: at,
        end: Some(end),
        tokens: 2,
        served: served.clone(),
        sink_served: served,
        ..Record::default()
    };
    let mut worker = WorkerRecord::default();
    worker.metrics.marks.extend(MARKS.iter().map(|mark| (*mark, 1)));
    let mut itl = LogHistogram::new();
    itl.push(1);
    Outcome {
        ended: Instant::ZERO,
        events: 0,
        requests: vec![record],
        itl,
        workers: vec![worker],
        router: Some(RouterMetrics::default()),
        transfers: Vec::new(),
        links: Vec::new(),
        stores: Vec::new(),
        violations: Vec::new(),
        lost_letters: 0,
        idle: Vec::new(),
        hash: 0,
    }
}

/// One value for each name that an enum has in reports: what the tags of its binary form stand for, with small numbers
/// in its fields.
fn every<T: Codec + Debug>() -> Vec<T> {
    let mut names = BTreeSet::new();
    let mut found = Vec::new();
    let mut bytes = [0; BYTES_MAX];
    for tags in 0..TAGS_MAX.pow(DEPTH) {
        for (depth, byte) in (0..DEPTH).zip(&mut bytes) {
            *byte = (tags / TAGS_MAX.pow(depth) % TAGS_MAX) as u8;
        }
        if let Ok(value) = T::decode(&mut Source::new(&bytes))
            && names.insert(word(&format!("{value:?}")))
        {
            found.push(value);
        }
    }
    found
}

/// How deep enums are in each other: `Finish::Failed(Failure::Lane(Fault::Io))`.
const DEPTH: u32 = 3;
/// More than any of them has variants.
const TAGS_MAX: u32 = 24;
/// More than any of them takes.
const BYTES_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_is_found_however_deep() {
        let names: Vec<String> = every::<Finish>().iter().map(|finish| word(&format!("{finish:?}"))).collect();
        for name in ["stop", "length", "cancelled", "deadline", "failed_memory", "failed_peer", "failed_lane_withdrawn"]
        {
            assert!(names.iter().any(|found| found == name), "{name} in {names:?}");
        }
        // The last tags, so that one more variant than there is room for would be noticed.
        for count in [every::<Refusal>().len(), every::<RouteRefusal>().len(), every::<MissReason>().len()] {
            assert!((5..TAGS_MAX as usize).contains(&count), "{count} variants");
        }
        assert_eq!(MissReason::from_bytes(&[every::<MissReason>().len() as u8]).ok(), None);
    }

    fn check(name: &str) -> Result<(), String> {
        Names { links: Vec::new(), stores: Vec::new(), has_router: false, own: OnceLock::new() }.check(name)
    }

    #[test]
    fn what_a_report_can_have_is_known_and_nothing_else() {
        for name in [
            "requests.finished",
            "misses.hole",
            "marks.kv.write_back",
            "finish.cancelled",
            "refused.queue_full",
            "refused.no_workers",
            "workers.persist_pages",
            "ttft.p99_ms",
            "request.3.storage_tokens",
            "request.3.sink.device_tokens",
        ] {
            assert_eq!(check(name), Ok(()), "{name}");
        }
        for (name, near) in [
            ("misses.hol", "misses.hole"),
            ("marks.kv.writeback", "marks.kv.write_back"),
            ("finish.canceled", "finish.cancelled"),
            ("refused.queue_ful", "refused.queue_full"),
            ("request.3.storage_token", "request.3.storage_tokens"),
            ("requests.finnished", "requests.finished"),
        ] {
            let problem = check(name).unwrap_err();
            assert!(problem.contains(&format!("did you mean \"{near}\"?")), "{name}: {problem}");
        }
        assert!(check("router.requests").unwrap_err().contains("[router]"));
        assert!(check("request.x.tokens").unwrap_err().contains("request.0.tokens"));
        assert!(check("request.24.tokens").unwrap_err().contains("up to 24"));
    }
}
