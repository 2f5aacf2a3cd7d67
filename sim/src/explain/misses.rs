//! Why tokens of a prompt were in no cache, and what to do about each reason.

use pd_core::event::{Miss, MissReason, Served};
use pd_core::time::Instant;

use super::story::PageEvent;
use super::why::Finding;
use super::{Explanation, advice};
use crate::words::{at, count, ms, plural};

/// Why some tokens were not served from a cache.
pub(super) fn miss(e: &Explanation, served: &Served, miss: Miss) -> Finding {
    let tokens = plural(u64::from(miss.tokens), "token");
    let visit = e.story.computing();
    let worker = visit.map(|visit| &e.site.workers[visit.worker as usize]);
    let page_size = worker.map_or(1, |worker| worker.config.kv.page_size);
    let asked = visit.map_or(e.ended, |visit| visit.admitted.unwrap_or(visit.at));
    let share = format!("{tokens} of {}", count(u64::from(served.prompt)));
    let plan = visit.and_then(|visit| visit.plan);
    let text = match miss.reason {
        MissReason::PartialPage => {
            format!("{tokens} behind the last full page (page_size {page_size}): only full pages are kept")
        }
        MissReason::LastToken => {
            format!("{tokens} of the last page, which has to be computed for the logits of its last token")
        }
        MissReason::NothingStored => format!("{share} were in no tier{}", nothing_stored(e, asked)),
        MissReason::Hole { page } => return hole(e, page, page_size, &share, asked),
        MissReason::TooShort { threshold } => {
            format!("{share} are in L3, but fewer than prefetch_threshold = {threshold}: reading them was not tried")
        }
        MissReason::Revoked => format!(
            "{share} are in L3, but best_effort stopped waiting{} when they could have been computed in the time",
            plan.and_then(|plan| plan.blocked_at).map_or_else(String::new, |since| format!(" (since {})", at(since)))
        ),
        MissReason::Timeout => format!(
            "{share} are in L3, but did not arrive in time{}",
            visit
                .and_then(|visit| visit.patience)
                .map_or_else(String::new, |until| format!(": the policy waited until {}", at(until)))
        ),
        MissReason::HostMemory => format!("{share} are in L3, but L2 had no page to receive them"),
        MissReason::Capacity => format!("{share} are in L3, but as much of L2 as prefetch_capacity allows was in use"),
        MissReason::Checksum => format!("{share}: their objects in L3 failed their check"),
        MissReason::Namespace => format!(
            "{share}: L3 has only pages of another namespace{}. A namespace is model, dtype, page_size and layout: KV \
             of one is never taken for KV of another",
            worker
                .and_then(|worker| worker.scans.get(&visit?.life))
                .map_or_else(String::new, |scan| format!(" ({} were skipped)", plural(scan.foreign, "object")))
        ),
        MissReason::StorageFailed => format!("{share}: L3 could not be read{}", failures(e)),
        MissReason::Vanished => format!("{share} were expected in L3 and are gone{}", failures(e)),
        MissReason::Recompute => format!(
            "{share} are in a lower tier, but computing them was estimated to be faster{}",
            plan.and_then(|plan| plan.weighed)
                .or_else(|| visit.and_then(|visit| visit.prospect).and_then(|prospect| prospect.weighed))
                .map_or_else(String::new, |weighed| format!(
                    " ({} against {} for the fetch)",
                    ms(weighed.compute_ns),
                    ms(weighed.fetch_ns)
                ))
        ),
        MissReason::ComputedMeanwhile => format!(
            "{share} are in L3 and were computed while those behind them were fetched, which both together was estimated to \
             be the fastest{}",
            plan.and_then(|plan| plan.weighed).map_or_else(String::new, |weighed| format!(
                " ({} against {} for computing all and {} for fetching all)",
                ms(weighed.both_ns.unwrap_or_default()),
                ms(weighed.compute_ns),
                ms(weighed.fetch_ns)
            ))
        ),
        MissReason::LoadBackMinimum => {
            format!("{share} are in L2, but fewer than load_back_threshold: copying them back was not worth it")
        }
        MissReason::Evicted => format!(
            "{share} had been dropped from L1 and L2 for want of room{}",
            if worker.is_some_and(|worker| worker.store.is_none()) { ", and there is no L3" } else { "" }
        ),
    };
    let advice = if miss.reason == MissReason::NothingStored {
        nothing_advice(e)
    } else {
        advice::of_miss(miss.reason).filter(|_| miss.tokens > page_size).map(str::to_owned)
    };
    Finding { text: text + ".", advice }
}

/// What is known of tokens that nobody has, behind "in no tier".
fn nothing_stored(e: &Explanation, asked: Instant) -> String {
    if e.kin.is_empty() {
        return ": nobody had sent them before".to_owned();
    }
    let wiped = e.story.history.values().flatten().filter(|(when, event)| *event == PageEvent::Wiped && *when <= asked);
    if let Some((when, _)) = wiped.max_by_key(|(when, _)| *when) {
        let pages = e.story.stored_at(Instant(when.0.saturating_sub(1)));
        return format!(
            "; L3 held {} of this prompt until it was emptied at {}",
            plural(u64::from(pages), "page"),
            at(*when)
        );
    }
    let stored = e.story.stored_at(asked);
    let is_off = e.story.computing().is_some_and(|visit| e.site.workers[visit.worker as usize].store.is_none());
    match (stored, is_off) {
        (_, true) => "; there is no L3".to_owned(),
        (0, false) => "; they had never reached L3".to_owned(),
        (pages, false) => format!("; L3 held {} of this prompt", plural(u64::from(pages), "page")),
    }
}

fn nothing_advice(e: &Explanation) -> Option<String> {
    let visit = e.story.computing()?;
    let has_store = e.site.workers[visit.worker as usize].store.is_some();
    let was_known = !e.kin.is_empty();
    let was_wiped = e.story.history.values().flatten().any(|(_, event)| *event == PageEvent::Wiped);
    let again = e
        .story
        .history
        .values()
        .flatten()
        .filter(|(when, event)| *when > visit.at && matches!(event, PageEvent::Persisted { .. }));
    match (was_known, has_store, was_wiped) {
        (true, false, _) => Some("hicache_storage gives the worker an L3 that outlives it".to_owned()),
        (true, true, true) => {
            let written = again.count() as u64;
            Some(format!(
                "a disk that was lost cannot be helped; the prompt was stored again ({} written after it)",
                plural(written, "page")
            ))
        }
        (true, true, false) => {
            Some("hicache_write_policy = \"write_through\" writes pages down as soon as they are complete".to_owned())
        }
        (false, _, _) => None,
    }
}

/// A page that is missing before others.
fn hole(e: &Explanation, page: u32, page_size: u32, share: &str, asked: Instant) -> Finding {
    let first = u64::from(page) * u64::from(page_size);
    let behind = e.story.stored_at(asked).saturating_sub(page);
    let since = e.story.last_event(page, asked);
    let how = match since {
        Some((when, PageEvent::Removed)) => format!("it was removed at {}, by the script", at(when)),
        Some((when, PageEvent::Torn)) => {
            format!("its object was cut short at {}, by the script, and failed its check", at(when))
        }
        Some((when, PageEvent::Discarded { worker })) => {
            format!("worker {worker} discarded it at {} for its quota", at(when))
        }
        Some((when, PageEvent::Wiped)) => format!("the store was emptied at {}", at(when)),
        Some((when, PageEvent::FetchFailed { worker, fault })) => {
            format!("worker {worker} could not read it at {} ({fault:?})", at(when))
        }
        Some((when, PageEvent::PersistFailed { worker, fault })) => {
            format!("worker {worker} could not write it at {} ({fault:?})", at(when))
        }
        Some((when, PageEvent::Persisted { .. } | PageEvent::Fetched { .. })) => {
            format!("it was last seen there at {}", at(when))
        }
        None => "it had never been written".to_owned(),
    };
    let healed = e
        .story
        .history
        .get(&page)
        .into_iter()
        .flatten()
        .find(|(when, event)| *when > asked && matches!(event, PageEvent::Persisted { .. }));
    let text = format!(
        "Page {page} of the prompt (tokens {} to {}) is missing in L3: {how}. {} behind it are there, but KV is of use \
         only together with all of it before, so {share} were computed.",
        count(first),
        count(first + u64::from(page_size) - 1),
        plural(u64::from(behind), "page"),
    );
    let cause = match since {
        Some((_, PageEvent::Discarded { .. })) => "raise the quota (hicache_storage max_tokens)",
        Some((_, PageEvent::PersistFailed { .. } | PageEvent::FetchFailed { .. })) => "look at the disk",
        Some((_, PageEvent::Torn)) => {
            "an object that is cut short is the mark of a crash in the middle of a write, or of a failing disk"
        }
        Some(_) => "pd writes and removes chains from the right end: find who else changes this store",
        None => "hicache_write_policy = \"write_through\" writes pages as soon as they are complete",
    };
    let advice = match healed {
        Some((when, _)) => format!("nothing for this prompt: the page was written again at {}; {cause}", at(*when)),
        None => cause.to_owned(),
    };
    Finding { text, advice: Some(advice) }
}

fn failures(e: &Explanation) -> String {
    let failed: Vec<_> = e.story.moves.iter().flat_map(|one| &one.failed).collect();
    failed.first().map_or_else(String::new, |(page, fault)| {
        format!(" ({} failed, the first of them page {page} with {fault:?})", plural(failed.len() as u64, "page"))
    })
}
