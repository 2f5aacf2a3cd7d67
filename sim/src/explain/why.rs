//! From facts to sentences: what took the time, where the prompt came from, why the rest of it did not, what to do.

use pd_core::event::Served;
use pd_core::sched::Hold;
use pd_core::time::Instant;

use super::path::Cause;
use super::story::{MoveKind, Visit};
use super::{Explanation, Kin, advice, misses, site};
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
        all.extend(served.misses.iter().filter(|miss| miss.tokens > 0).map(|miss| misses::miss(e, served, *miss)));
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
        (None, Some(End::RouterLost)) => "It never got a token: the router restarted and forgot it. ".to_owned(),
        (None, None) => "It had no token when the run ended. ".to_owned(),
    };
    let refused = match record.end {
        Some(End::Refused(refusal)) => advice::of_refusal(refusal),
        Some(End::NotRouted(refusal)) => advice::of_route_refusal(refusal),
        Some(End::RouterLost) => Some("Ask again: the request itself was not at fault"),
        Some(End::Finished(_)) | None => None,
    };
    if refused.is_some() {
        return Finding { text: text.trim_end().to_owned(), advice: refused.map(str::to_owned) };
    }
    let Some((part, ns)) = e.ttft.longest() else {
        return found(text + "No time passed.");
    };
    let share = 100.0 * ns as f64 / (e.ttft.total_ns as f64).max(1.0);
    text += &format!("{:.0} % of {goal} ({}) went into {}", share, ms(ns), part.cause.doing());
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
                Some(Hold::Device { .. }) => match blockers(e) {
                    Some(blockers) => format!("the GPU was busy with {blockers}"),
                    None => "the GPU was busy with forwards of others".to_owned(),
                },
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
        Cause::Others => blockers(e)?,
        Cause::Routing
        | Cause::Backoff
        | Cause::Away
        | Cause::Query
        | Cause::Room
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
        (many, true) => format!("; {} of others went on meanwhile", plural(many, "command")),
        (_, false) => format!("; meanwhile those of request {} went on", requests(names)),
    }
}

fn moved(e: &Explanation, kind: MoveKind) -> Option<String> {
    let (moved, pages, ns, commands) = traffic(e, kind)?;
    let first = e.story.moves_of(kind).next()?;
    let site = &e.site;
    let pages = plural(u64::from(pages), "page");
    let many = |one: &str, more: &str| if commands == 1 { format!("1 {one}") } else { format!("{commands} {more}") };
    Some(match (kind, first.to) {
        (MoveKind::Push, Some(to)) => {
            let link = site.wire(first.worker, to);
            let pieces = match first.pieces {
                1 => String::new(),
                pieces => format!(", each page and layer in {pieces} pieces since the layouts differ"),
            };
            format!(
                "{pages}, {} in {} layer by layer under the forwards{pieces}; alone they take {} of the link ({}){}",
                bytes(moved),
                many("push", "pushes"),
                ms(link.wire_ns(moved)),
                rate(link.bytes_per_second.get(), 1_000_000_000),
                sharing(e, kind)
            )
        }
        _ => {
            let limit = site.workers[first.worker as usize].copy_in.bytes_per_second.get();
            format!(
                "{pages}, {} at {} in {}; the link carries {}{}",
                bytes(moved),
                rate(moved, ns),
                many("copy", "copies"),
                rate(limit, 1_000_000_000),
                sharing(e, kind)
            )
        }
    })
}

/// Whose forwards it waited for, those of the most tokens first.
fn blockers(e: &Explanation) -> Option<String> {
    let mut order: Vec<_> = e.story.blockers.iter().collect();
    order.sort_by_key(|(request, tokens)| (std::cmp::Reverse(**tokens), **request));
    let tokens: u64 = order.iter().map(|(_, tokens)| **tokens).sum();
    let names: Vec<_> = order.iter().map(|(request, _)| **request).collect();
    (!order.is_empty()).then(|| format!("{} of request {}", plural(tokens, "token"), requests(&names)))
}

/// What had been there before, and what became of it.
fn before(e: &Explanation) -> Vec<Finding> {
    let mut all = Vec::new();
    let Some(visit) = e.story.computing() else { return all };
    let page_size = e.site.workers[visit.worker as usize].config.kv.page_size;
    // A prompt that nobody had sent before is told of with its misses; one that was not admitted missed nothing.
    let (Some(kin), Some(_)) = (e.kin.first(), visit.admitted) else { return all };
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
    match worker.scans.get(&visit.life) {
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

/// Fetch or compute: what was weighed.
fn weighed(e: &Explanation) -> Option<Finding> {
    let visit = e.story.computing()?;
    let plan = visit.plan?;
    let weighed = plan.weighed?;
    let was_fetched = weighed.both_ns.is_none() && weighed.fetch_ns <= weighed.compute_ns;
    let pages = plural(u64::from(plan.until.saturating_sub(plan.local)), "page");
    let mut text = format!(
        "Fetching {pages} from L3 was estimated to take {}, computing them {}: {}.",
        ms(weighed.fetch_ns),
        ms(weighed.compute_ns),
        match weighed.both_ns {
            Some(both_ns) => format!(
                "so they were computed from the head while they were fetched from the end, which was to take {}",
                ms(both_ns)
            ),
            None if was_fetched => "so they were fetched".to_owned(),
            None => "so they were computed".to_owned(),
        }
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

/// Share of the disk's rate from which on it is the limit.
const DISK_BOUND_PERCENT: u64 = 85;
