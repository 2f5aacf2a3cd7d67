//! From facts to sentences: what took the time, where the prompt came from, why the rest of it did not, what to do.

use pd_core::event::{Miss, MissReason, Served};
use pd_core::sched::Hold;
use pd_core::time::Instant;

use super::path::Cause;
use super::story::{MoveKind, PageEvent, Role, Visit};
use super::{Explanation, Kin, advice, site};
use crate::record::End;
use crate::words::{at, bytes, count, ms, plural, rate, requests};

/// Something that was found out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// In a sentence or two.
    pub text: String,
    /// What to do about it, if there is something.
    pub advice: Option<String>,
}

fn found(text: impl Into<String>) -> Finding {
    Finding { text: text.into(), advice: None }
}

/// All that is to be said.
pub(super) fn findings(e: &Explanation) -> Vec<Finding> {
    let mut all = vec![verdict(e)];
    all.extend(before(e));
    if let Some(served) = served(e) {
        all.extend(served.misses.iter().filter(|miss| miss.tokens > 0).map(|miss| self::miss(e, served, *miss)));
    }
    all.extend(weighed(e));
    all.extend(troubles(e));
    all.extend(stalls(e));
    all
}

/// Where the prompt came from, at the worker that computed it or was to.
pub(super) fn served(e: &Explanation) -> Option<&Served> {
    e.story.computing().and_then(|visit| visit.served.as_deref()).or_else(|| crate::report::served(&e.story.record))
}

/// What took most of the time, and why.
fn verdict(e: &Explanation) -> Finding {
    let record = &e.story.record;
    let goal = if record.first_token.is_some() { "the time to the first token" } else { "its time" };
    let mut text = match (record.first_token, record.end) {
        (Some(_), _) => String::new(),
        (None, Some(End::Refused(refusal))) => format!("It never got a token: a worker refused it ({refusal:?}). "),
        (None, Some(End::NotRouted(refusal))) => format!("It never got a token: the router refused it ({refusal:?}). "),
        (None, Some(End::Finished(finish))) => format!("It never got a token: it ended with {finish:?}. "),
        (None, None) => "It had no token when the run ended. ".to_owned(),
    };
    let Some((part, ns)) = e.ttft.longest() else {
        return found(text + "No time passed.");
    };
    let share = 100.0 * ns as f64 / (e.ttft.total_ns as f64).max(1.0);
    text += &format!("{:.0} % of {goal} ({}) went into {}", share, ms(ns), part.cause.words(false));
    if let Some(worker) = part.worker {
        text += &format!(" on worker {worker}");
    }
    if let Some(detail) = detail(e, part.cause) {
        text += &format!(": {detail}");
    }
    let hold = e.story.computing().and_then(|visit| visit.first).and_then(|first| first.hold);
    let is_worth_it = ns > 1_000_000;
    let advice = advice::of_cause(part.cause, hold, is_disk_bound(e)).filter(|_| is_worth_it);
    Finding { text: text + ".", advice: advice.map(str::to_owned) }
}

/// What a part of the way consisted of.
pub(super) fn detail(e: &Explanation, cause: Cause) -> Option<String> {
    let story = &e.story;
    Some(match cause {
        Cause::Fetch => fetched(e)?,
        Cause::LoadBack => moved(e, MoveKind::LoadBack)?,
        Cause::Push => moved(e, MoveKind::Push)?,
        Cause::Forward => {
            let tokens: u32 = story.chunks.iter().map(|chunk| chunk.count).sum();
            let chunks = story.chunks.len() as u64;
            let cached = story.chunks.first().map_or(0, |chunk| chunk.start);
            let shared = story.chunks.iter().filter(|chunk| chunk.others.0 > 0).count() as u64;
            let mut text = format!("{} computed in {}", plural(u64::from(tokens), "token"), plural(chunks, "forward"));
            if cached > 0 {
                text += &format!(" behind {} cached", count(u64::from(cached)));
            }
            if shared > 0 {
                let others: u32 = story.chunks.iter().map(|chunk| chunk.others.1).sum();
                text += &format!("; {shared} of them shared with {} of others", plural(u64::from(others), "token"));
            }
            text
        }
        Cause::Queue | Cause::Memory | Cause::Leader => {
            let visit = story.visits.iter().find(|visit| visit.first.is_some())?;
            let first = visit.first?;
            let why = match first.hold {
                Some(Hold::Device { forwards }) => {
                    format!("{} in flight were of others", plural(u64::from(forwards), "forward"))
                }
                Some(Hold::Running { max }) => format!("max_running_requests = {max} were admitted"),
                Some(Hold::Leader { request }) => format!("request {request} was computing the same prefix"),
                Some(Hold::Pages { needed, available }) => {
                    format!("{} were needed, {available} could be had", plural(needed, "device page"))
                }
                Some(Hold::Budget) => "the forwards that were composed had no room left".to_owned(),
                None => "it waited for L3 first".to_owned(),
            };
            let ahead = match visit.ahead {
                0 => String::new(),
                ahead => format!("{} before it; ", plural(u64::from(ahead), "request")),
            };
            let (running, waiting) = visit.load;
            format!("{ahead}{why} (on arrival {running} were running and {waiting} waiting)")
        }
        Cause::Scan => "a private L3 is listed after each start of its worker".to_owned(),
        Cause::Routing
        | Cause::Backoff
        | Cause::Away
        | Cause::Query
        | Cause::Room
        | Cause::Others
        | Cause::Want
        | Cause::Handoff
        | Cause::Retracted
        | Cause::Unknown => return None,
    })
}

/// Bytes, first start and last end of the moves of a kind that ended.
fn traffic(e: &Explanation, kind: MoveKind) -> Option<(u64, u32, u64, u64)> {
    let moves = || e.story.moves_of(kind).filter(|one| one.done.is_some());
    let start = moves().map(|one| one.at).min()?;
    let end = moves().filter_map(|one| one.done).max()?;
    let pages = moves().map(|one| one.pages - one.failed.len().min(one.pages as usize) as u32).sum();
    let bytes = moves().map(|one| one.bytes).sum();
    Some((bytes, pages, end.ns_since(start), moves().count() as u64))
}

fn is_disk_bound(e: &Explanation) -> bool {
    disk(e).is_some_and(|(_, reached, limit)| reached * 100 >= limit * DISK_BOUND_PERCENT)
}

/// The store, what the fetch got of it, and the most that could be had, in bytes per second.
fn disk(e: &Explanation) -> Option<(&site::StoreSite, u64, u64)> {
    let (bytes, _, ns, _) = traffic(e, MoveKind::Prefetch)?;
    let worker = e.story.moves_of(MoveKind::Prefetch).next()?.worker;
    let site = &e.site.workers[worker as usize];
    let store = &e.site.stores[site.store? as usize];
    let reached = (u128::from(bytes) * 1_000_000_000 / u128::from(ns.max(1))) as u64;
    Some((store, reached, store.read_rate(site.config.kv.page_bytes)))
}

fn fetched(e: &Explanation) -> Option<String> {
    let (moved, pages, ns, commands) = traffic(e, MoveKind::Prefetch)?;
    let worker = e.story.moves_of(MoveKind::Prefetch).next()?.worker;
    let page_size = e.site.workers[worker as usize].config.kv.page_size;
    let tokens = plural(u64::from(pages) * u64::from(page_size), "token");
    let mut text = format!("{tokens}, {} at {} in {}", bytes(moved), rate(moved, ns), plural(commands, "read"));
    if let Some((store, reached, limit)) = disk(e) {
        text += &if reached * 100 >= limit * DISK_BOUND_PERCENT {
            format!("; the disk of {} is the limit ({})", store.name, rate(limit, 1_000_000_000))
        } else {
            format!("; the disk of {} could give {}", store.name, rate(limit, 1_000_000_000))
        };
    }
    text += &sharing(e, MoveKind::Prefetch);
    Some(text)
}

fn sharing(e: &Explanation, kind: MoveKind) -> String {
    let shared: std::collections::BTreeSet<_> = e.story.moves_of(kind).flat_map(|one| &one.shared).collect();
    let names: std::collections::BTreeSet<_> = e.story.moves_of(kind).flat_map(|one| &one.shared_with).collect();
    match (shared.len() as u64, names.is_empty()) {
        (0, _) => String::new(),
        (many, true) => format!("; shared with {} of others", plural(many, "command")),
        (many, false) => format!("; shared with {} of request {}", plural(many, "command"), requests(names)),
    }
}

fn moved(e: &Explanation, kind: MoveKind) -> Option<String> {
    let (moved, pages, ns, commands) = traffic(e, kind)?;
    let first = e.story.moves_of(kind).next()?;
    let site = &e.site;
    let limit = match (kind, first.to) {
        (MoveKind::Push, Some(to)) => site.wire(first.worker, to).bytes_per_second.get(),
        _ => site.workers[first.worker as usize].copy_in.bytes_per_second.get(),
    };
    let what = if kind == MoveKind::Push { "push" } else { "copy" };
    let many = if commands == 1 {
        format!("1 {what}")
    } else {
        format!("{commands} {what}{}", if what == "copy" { "s" } else { "es" })
    };
    let many = many.replace("copys", "copies");
    Some(format!(
        "{}, {} at {} in {many}; the link carries {}{}{}",
        plural(u64::from(pages), "page"),
        bytes(moved),
        rate(moved, ns),
        rate(limit, 1_000_000_000),
        if kind == MoveKind::Push { ", layer by layer under the forwards" } else { "" },
        sharing(e, kind)
    ))
}

/// What had been there before, and what became of it.
fn before(e: &Explanation) -> Vec<Finding> {
    let mut all = Vec::new();
    let Some(visit) = e.story.computing() else { return all };
    let page_size = e.site.workers[visit.worker as usize].config.kv.page_size;
    let Some(kin) = e.kin.first() else {
        if !e.story.keys.is_empty() {
            all.push(found("No earlier request begins with the same full page: its prompt was new to every cache."));
        }
        return all;
    };
    let tokens = plural(u64::from(kin.pages) * u64::from(page_size), "token");
    let who = kin.worker.map_or_else(String::new, |worker| format!(" on worker {worker}"));
    all.push(found(format!(
        "The first {tokens} had been seen before: request {} had them at {}{who}.",
        kin.request,
        at(kin.at)
    )));
    let has_all_local = served(e).is_some_and(|served| served.device + served.host >= kin.pages * page_size);
    if !has_all_local {
        all.extend(lost(e, visit, kin));
    }
    all
}

/// Why L1 and L2 of the worker did not have what was seen before.
fn lost(e: &Explanation, visit: &Visit, kin: &Kin) -> Option<Finding> {
    let worker = &e.site.workers[visit.worker as usize];
    let (began, life) = worker.lives.iter().rev().find(|(began, _)| *began <= visit.at).copied()?;
    let elsewhere = e.kin.iter().all(|kin| ![kin.worker, kin.decode].contains(&Some(visit.worker)));
    if elsewhere {
        let text = format!(
            "Worker {}, which computed this prompt, had not served it before; what worker {} has in L1 and L2 is its own.",
            visit.worker,
            kin.worker.unwrap_or_default()
        );
        let advice = e.site.has_router.then(|| {
            "router policy = \"cache_aware\" sends prompts where their pages are; a shared L3 (hicache_storage mode = \
             \"shared\") lets all workers read them"
                .to_owned()
        });
        return Some(Finding { text, advice });
    }
    if kin.at < began {
        let by = e
            .site
            .ended_by(visit.worker, began)
            .map_or_else(String::new, |(when, action)| format!(" (script at {}: {})", at(*when), site::action(action)));
        return Some(found(format!(
            "Life {life} of worker {} began at {}{by}, with empty L1 and L2.{}",
            visit.worker,
            at(began),
            storage(e, visit)
        )));
    }
    let flushed = e.site.flushed(visit.worker, kin.at, visit.at)?;
    Some(found(format!("An operator flushed L1 and L2 of worker {} at {}.", visit.worker, at(flushed))))
}

/// What L3 had, in a sentence with a blank before it.
fn storage(e: &Explanation, visit: &Visit) -> String {
    let worker = &e.site.workers[visit.worker as usize];
    let Some(store) = worker.store else {
        return " There is no L3 (hicache_storage) that would have outlived it.".to_owned();
    };
    let name = &e.site.stores[store as usize].name;
    match worker.scan {
        Some(scan) => {
            let rest = match (scan.foreign, scan.torn) {
                (0, 0) => String::new(),
                (foreign, 0) => format!(", and {} of other namespaces", plural(foreign, "object")),
                (0, torn) => format!(", and {} with a broken checksum", plural(torn, "object")),
                (foreign, torn) => format!(", {foreign} of other namespaces and {torn} with a broken checksum"),
            };
            format!(" Its scan of {name} found {} at {}{rest}.", plural(scan.present, "usable object"), at(scan.at))
        }
        None => format!(" {name} outlived it."),
    }
}

/// Why some tokens were not served from a cache.
fn miss(e: &Explanation, served: &Served, miss: Miss) -> Finding {
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
                .and_then(|worker| worker.scan)
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
        MissReason::LoadBackMinimum => {
            format!("{share} are in L2, but fewer than load_back_threshold: copying them back was not worth it")
        }
        MissReason::Evicted => format!(
            "{share} had been dropped from L1 and L2 for want of room{}",
            if worker.is_some_and(|worker| worker.store.is_none()) { ", and there is no L3" } else { "" }
        ),
    };
    let advice = match miss.reason {
        MissReason::NothingStored => nothing_advice(e),
        reason => advice::of_miss(reason).filter(|_| miss.tokens > page_size).map(str::to_owned),
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

/// Fetch or compute: what was weighed.
fn weighed(e: &Explanation) -> Option<Finding> {
    let visit = e.story.computing()?;
    let plan = visit.plan?;
    let weighed = plan.weighed?;
    let was_fetched = weighed.fetch_ns <= weighed.compute_ns;
    let pages = plural(u64::from(plan.until.saturating_sub(plan.local)), "page");
    let mut text = format!(
        "Fetching {pages} from L3 was estimated to take {}, computing them {}: {}.",
        ms(weighed.fetch_ns),
        ms(weighed.compute_ns),
        if was_fetched { "so they were fetched" } else { "so they were computed" }
    );
    if was_fetched && let Some(until) = visit.patience {
        let policy = e.site.workers[visit.worker as usize].config.kv.prefetch_policy;
        text += &match until {
            Instant::MAX => format!(" The policy ({policy:?}) would have waited for all of them."),
            until => format!(" The policy ({policy:?}) would have waited until {}.", at(until)),
        };
    }
    Some(found(text))
}

/// What went wrong on the way.
fn troubles(e: &Explanation) -> Vec<Finding> {
    let record = &e.story.record;
    let mut all = Vec::new();
    if record.retries > 0 {
        all.push(Finding {
            text: format!(
                "It took {}; see the log below for what ended the earlier ones.",
                plural(u64::from(record.retries) + 1, "attempt")
            ),
            advice: None,
        });
    }
    if let Some((when, worker)) = e.story.retractions.first() {
        all.push(Finding {
            text: format!(
                "It gave its pages back {} (first at {} on worker {worker}), so that others could go on, and was resumed.",
                match e.story.retractions.len() {
                    1 => "once".to_owned(),
                    many => format!("{many} times"),
                },
                at(*when)
            ),
            advice: advice::of_cause(Cause::Retracted, None, false).map(str::to_owned),
        });
    }
    let end = record.finished.unwrap_or(e.ended);
    for (when, action) in e.site.actions.iter().filter(|(when, _)| *when >= record.arrival && *when <= end) {
        all.push(found(format!("While it was under way, at {}: {}.", at(*when), site::action(action))));
    }
    all
}

/// What held up its answer.
fn stalls(e: &Explanation) -> Option<Finding> {
    let rest = e.rest.as_ref()?;
    let ns = rest.of(Cause::Others);
    (ns * 10 > rest.total_ns && ns > 1_000_000).then(|| Finding {
        text: format!(
            "{} of its decoding ({:.0} %) it stood behind forwards of others on worker {}.",
            ms(ns),
            100.0 * ns as f64 / rest.total_ns as f64,
            e.story.record.decode.unwrap_or_default()
        ),
        advice: advice::of_cause(Cause::Others, None, false).map(str::to_owned),
    })
}

/// Where it came to, and as what.
pub(super) fn visits(e: &Explanation) -> Vec<(Role, u32)> {
    e.story.visits.iter().map(|visit| (visit.role, visit.worker)).collect()
}

/// Share of the disk's rate from which on it is the limit.
const DISK_BOUND_PERCENT: u64 = 85;
