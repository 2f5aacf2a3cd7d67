//! What can be done about a cause or a miss, by the names of the keys that do it.

use pd_core::event::{MissReason, Refusal};
use pd_core::router::RouteRefusal;
use pd_core::sched::Hold;

use super::path::Cause;

/// What shortens a part of the way to the first token.
pub(super) fn of_cause(cause: Cause, hold: Option<Hold>, is_disk_bound: bool) -> Option<&'static str> {
    Some(match cause {
        Cause::Queue => match hold {
            Some(Hold::Running { .. }) => "raise max_running_requests, or add workers",
            Some(Hold::Pages { .. }) => "give L1 more pages (mem_fraction_static, max_total_tokens), or add workers",
            Some(Hold::Device { .. } | Hold::Budget | Hold::Leader { .. }) | None => {
                "more workers that compute prompts shorten the queue; a larger chunked_prefill_size serves it in fewer \
                 forwards; schedule_policy decides who goes first"
            }
        },
        Cause::Leader => {
            "nothing: computing the shared prefix twice at once would take longer than waiting for the first to publish it"
        }
        Cause::Memory => "give L1 more pages (mem_fraction_static, max_total_tokens, tp), or add workers",
        Cause::Scan => {
            "the index of a private L3 is rebuilt after each start; hicache_storage mode = \"shared\" asks instead"
        }
        Cause::Query => "hicache_storage mode = \"private\" keeps an index and asks nothing",
        Cause::Room => "raise prefetch_capacity, or give L2 more room (hicache_ratio, hicache_size)",
        Cause::Fetch if is_disk_bound => {
            "a faster disk (hicache_storage disk = ...), or an L2 that is large enough to keep the pages (hicache_ratio, \
             hicache_size)"
        }
        Cause::Fetch => "give L2 more room (hicache_ratio, hicache_size), so that less has to come from L3",
        Cause::LoadBack => {
            "give L1 more pages (mem_fraction_static, max_total_tokens), so that they need not come from L2, or a faster \
             host_link"
        }
        Cause::Others => {
            "a smaller chunked_prefill_size lets others in more often; workers of their own for prefill and decode \
             (mode = \"prefill\", \"decode\") keep prompts from stalling answers"
        }
        Cause::Push => "a faster network between the workers (network.far, network.near), or workers on one machine",
        Cause::Want => "the decode worker offers its pages only when it has them: give it more, or add decode workers",
        Cause::Retracted => {
            "raise reserve_steps, or give L1 more pages (mem_fraction_static, max_total_tokens), so that fewer are \
             admitted than can stay"
        }
        Cause::Away => "a second worker, and a router in front of both",
        Cause::Backoff => "the pause grows with each failure ; see why the attempts failed",
        Cause::Forward | Cause::Routing | Cause::Handoff | Cause::Unknown => return None,
    })
}

/// What keeps a worker from refusing a request.
pub(super) const fn of_refusal(refusal: Refusal) -> Option<&'static str> {
    Some(match refusal {
        Refusal::QueueFull { .. } => {
            "the worker had more to do than it could serve: add workers; a larger max_queued_requests only makes clients \
             wait longer"
        }
        Refusal::NeverFits { .. } => {
            "prompt and answer can never fit L1: give it more pages (mem_fraction_static, max_total_tokens, tp), or ask \
             for less"
        }
        Refusal::PromptTooLong { .. } => {
            "the prompt leaves no room for an answer in the context: send less, or raise context_length if the model bears it"
        }
        Refusal::Draining => "the worker was told to take nothing more (drain): send requests elsewhere",
        Refusal::Late => "its deadline had passed on arrival: raise request_timeout",
        Refusal::WrongMode => "send it to a worker of the right mode",
        Refusal::Malformed | Refusal::NoOutput | Refusal::DuplicateRequest | Refusal::DuplicateRoom => {
            "the request itself is at fault"
        }
    })
}

/// What keeps a router from refusing a request.
pub(super) const fn of_route_refusal(refusal: RouteRefusal) -> Option<&'static str> {
    Some(match refusal {
        RouteRefusal::NoWorkers => "no worker was up that could serve it: start one, or keep another in reserve",
        RouteRefusal::Overloaded { .. } => {
            "as many requests as router.max_live_requests allows were under way: add workers"
        }
        RouteRefusal::RetriesExhausted { .. } => {
            "every attempt failed, see the log; router.retries allows more of them"
        }
        RouteRefusal::BadRequest | RouteRefusal::Malformed | RouteRefusal::DuplicateRequest => {
            "the request itself is at fault"
        }
    })
}

/// What makes a miss of this kind a hit.
pub(super) const fn of_miss(reason: MissReason) -> Option<&'static str> {
    Some(match reason {
        MissReason::PartialPage => "a smaller page_size loses fewer tokens behind the last full page",
        MissReason::LastToken => return None,
        MissReason::NothingStored => return None,
        MissReason::Hole { .. } => return None,
        MissReason::TooShort { .. } => "lower prefetch_threshold",
        MissReason::Revoked => {
            "hicache_storage_prefetch_policy = \"timeout\" or \"wait_complete\" waits longer than best_effort does"
        }
        MissReason::Timeout => {
            "raise prefetch_timeout_base or prefetch_timeout_per_ki_token (both under prefetch_timeout_max), or set \
             hicache_storage_prefetch_policy = \"wait_complete\""
        }
        MissReason::HostMemory => "give L2 more room: hicache_ratio or hicache_size",
        MissReason::Capacity => "raise prefetch_capacity",
        MissReason::Checksum => {
            "the broken objects are written again when their pages are computed; look at the disk if it happens again"
        }
        MissReason::Namespace => {
            "start the worker with the dtype, page_size and model that wrote the pages, or let it fill L3 anew; the old \
             pages are never read and may be removed"
        }
        MissReason::StorageFailed => "look at the disk; after a detach, attach_storage uses L3 again",
        MissReason::Vanished => "find who else removes objects from this store; what is missing is written again",
        MissReason::Recompute => "fetch_by_cost = false fetches even what could be computed sooner",
        MissReason::ComputedMeanwhile => {
            "a faster disk delivers more of them; fetch_bidirectional = false fetches or computes all"
        }
        MissReason::LoadBackMinimum => "lower load_back_threshold",
        MissReason::Evicted => {
            "give L1 and L2 more room (mem_fraction_static, hicache_ratio, hicache_size), or keep pages in L3 \
             (hicache_storage)"
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Advice that names a key which no scenario has would send its reader looking for ever.
    #[test]
    fn every_key_that_is_named_exists() {
        let causes = [
            Cause::Routing,
            Cause::Backoff,
            Cause::Away,
            Cause::Queue,
            Cause::Leader,
            Cause::Memory,
            Cause::Scan,
            Cause::Query,
            Cause::Room,
            Cause::Fetch,
            Cause::LoadBack,
            Cause::Others,
            Cause::Forward,
            Cause::Want,
            Cause::Push,
            Cause::Handoff,
            Cause::Retracted,
        ];
        let holds = [None, Some(Hold::Running { max: 1 }), Some(Hold::Pages { needed: 1, available: 0 })];
        let misses = [
            MissReason::PartialPage,
            MissReason::TooShort { threshold: 1 },
            MissReason::Revoked,
            MissReason::Timeout,
            MissReason::HostMemory,
            MissReason::Capacity,
            MissReason::Checksum,
            MissReason::Namespace,
            MissReason::StorageFailed,
            MissReason::Vanished,
            MissReason::Recompute,
            MissReason::LoadBackMinimum,
            MissReason::Evicted,
            MissReason::ComputedMeanwhile,
        ];
        let mut all: Vec<&str> = misses.into_iter().filter_map(of_miss).collect();
        for cause in causes {
            all.extend(
                holds.iter().flat_map(|hold| [true, false].map(|bound| of_cause(cause, *hold, bound))).flatten(),
            );
        }
        all.extend(
            [Refusal::QueueFull { max: 1 }, Refusal::Late, Refusal::Draining].into_iter().filter_map(of_refusal),
        );
        let fault = pd_core::router::RouteFault::Refused;
        let refusals = [RouteRefusal::Overloaded { max: 1 }, RouteRefusal::RetriesExhausted { attempts: 1, fault }];
        all.extend(refusals.into_iter().filter_map(of_route_refusal));
        // Keys and most values; policies of the cache are core's.
        let known = [
            include_str!("../scenario/schema.rs"),
            include_str!("../../../core/src/config.rs"),
            include_str!("../fault/mod.rs"),
        ]
        .concat();
        let mut named = 0;
        for word in
            all.iter().flat_map(|text| text.split(|letter: char| !(letter.is_ascii_lowercase() || letter == '_')))
        {
            // Values of keys are variants; serde writes them as words.
            let capital = |part: &str| {
                part.chars().take(1).flat_map(char::to_uppercase).chain(part.chars().skip(1)).collect::<String>()
            };
            let variant: String = word.split('_').map(capital).collect();
            if word.contains('_') && !word.starts_with('_') && !word.ends_with('_') {
                named += 1;
                assert!(known.contains(word) || known.contains(&variant), "{word} is not a key of a scenario");
            }
        }
        assert!(named > 30, "only {named} keys were looked at");
    }
}
