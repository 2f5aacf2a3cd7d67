//! What can be done about a cause or a miss, by the names of the keys that do it.

use pd_core::event::MissReason;
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
        Cause::Backoff => "the pause grows with each failure (router.backoff_base); see why the attempts failed",
        Cause::Forward | Cause::Routing | Cause::Handoff | Cause::Unknown => return None,
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
        MissReason::LoadBackMinimum => "lower load_back_threshold",
        MissReason::Evicted => {
            "give L1 and L2 more room (mem_fraction_static, hicache_ratio, hicache_size), or keep pages in L3 \
             (hicache_storage)"
        }
    })
}
