//! In which order waiting requests are tried: pure functions from a queue to a short list.
//!
//! A list is at most [`PICKS_MAX`] long (policies that scan: [`RANKED_MAX`]); what is behind it is not looked at in
//! this step. So the cost of a step does not grow with the number of waiting requests, except for one linear scan of
//! 16-byte keys by the policies that rank all of them.

use alloc::vec::Vec;

use crate::config::{SchedConfig, SchedulePolicy};
use crate::cx::Cx;
use crate::id::PageKey;
use crate::kv::Kv;
use crate::op::Prompt;
use crate::rng::Rng;
use crate::time::Instant;

use super::queue::{Key, Pick, Queue};
use super::seq::Slab;

/// Requests looked at in one pass.
pub(super) const PICKS_MAX: usize = 64;
/// Requests looked at in one pass by a policy that ranks the whole queue. Insertion into the list is linear in this.
pub(super) const RANKED_MAX: usize = 16;

/// What a request weighs under a policy that ranks: service for [`SchedulePolicy::Hrrn`], urgency for
/// [`SchedulePolicy::Priority`].
pub(super) fn weight(policy: SchedulePolicy, priority: i32, service_ns: u64) -> u64 {
    match policy {
        SchedulePolicy::Hrrn => service_ns.max(1),
        SchedulePolicy::Priority => (i64::from(priority) - i64::from(i32::MIN)) as u64,
        SchedulePolicy::Fcfs | SchedulePolicy::Lpm | SchedulePolicy::DfsWeight | SchedulePolicy::Random => 0,
    }
}

/// Fills `picks` with the requests to try next, best first. True if another pass may find more.
pub(super) fn order(
    config: &SchedConfig,
    queue: &Queue,
    slots: &Slab,
    kv: &Kv,
    cx: &mut Cx<'_>,
    picks: &mut Vec<Pick>,
) {
    picks.clear();
    let few = queue.len() <= config.sort_max as usize;
    match config.policy {
        SchedulePolicy::Lpm if few => longest_first(queue, picks, |slot| cached(kv, &slots.at(slot).prompt)),
        SchedulePolicy::DfsWeight if few => depth_first(queue, picks, |slot| &slots.at(slot).prompt.keys),
        SchedulePolicy::Fcfs | SchedulePolicy::Lpm | SchedulePolicy::DfsWeight => {
            picks.extend(queue.iter().take(PICKS_MAX));
        }
        SchedulePolicy::Random => shuffled(queue, cx.rng, picks),
        SchedulePolicy::Priority => best(queue, picks, |a, b| a.weight > b.weight),
        SchedulePolicy::Hrrn => best(queue, picks, |a, b| has_higher_ratio(a, b, cx.now)),
    }
}

/// True if the list is as long as the policy makes it, so that there may be more behind it.
pub(super) fn is_full(policy: SchedulePolicy, picks: &[Pick]) -> bool {
    match policy {
        SchedulePolicy::Priority | SchedulePolicy::Hrrn => picks.len() == RANKED_MAX,
        SchedulePolicy::Fcfs | SchedulePolicy::Lpm | SchedulePolicy::DfsWeight | SchedulePolicy::Random => {
            picks.len() == PICKS_MAX
        }
    }
}

/// (wait + service) / service of `a` exceeds that of `b`, by cross-multiplication.
fn has_higher_ratio(a: &Key, b: &Key, now: Instant) -> bool {
    let wait = |key: &Key| u128::from(now.0.saturating_sub(key.since));
    wait(a) * u128::from(b.weight) > wait(b) * u128::from(a.weight)
}

/// The [`RANKED_MAX`] best, ties by arrival: one scan, insertion into a short sorted list.
fn best(queue: &Queue, picks: &mut Vec<Pick>, better: impl Fn(&Key, &Key) -> bool) {
    let keys = queue.keys();
    let mut list = [0_usize; RANKED_MAX];
    let mut count = 0;
    for (index, key) in keys.iter().enumerate() {
        if count == RANKED_MAX && !better(key, &keys[list[count - 1]]) || queue.pick(index).is_none() {
            continue;
        }
        let mut place = count.min(RANKED_MAX - 1);
        while place > 0 && better(key, &keys[list[place - 1]]) {
            list[place] = list[place - 1];
            place -= 1;
        }
        list[place] = index;
        count = (count + 1).min(RANKED_MAX);
    }
    picks.extend(list[..count].iter().filter_map(|&index| queue.pick(index)));
}

/// Pages of the prompt that L1 and L2 hold.
fn cached(kv: &Kv, prompt: &Prompt) -> u32 {
    let hit = kv.lookup(prompt);
    hit.device + hit.host
}

fn longest_first(queue: &Queue, picks: &mut Vec<Pick>, pages: impl Fn(u32) -> u32) {
    let mut ranked: Vec<(u32, Pick)> = queue.iter().map(|pick| (u32::MAX - pages(pick.slot), pick)).collect();
    ranked.sort_by_key(|&(missing, pick)| (missing, pick.order));
    picks.extend(ranked.into_iter().take(PICKS_MAX).map(|(_, pick)| pick));
}

/// Depth first over the tree that the waiting prompts form, the child with most requests below first, so that those who
/// share most are admitted one after the other.
fn depth_first<'a>(queue: &Queue, picks: &mut Vec<Pick>, keys: impl Fn(u32) -> &'a [PageKey]) {
    let mut all: Vec<Pick> = queue.iter().collect();
    visit(&mut all, 0, &keys, picks);
    picks.truncate(PICKS_MAX);
}

/// All of `group` share their first `depth` keys. Recursion is as deep as the group branches, so at most its length.
fn visit<'a>(group: &mut [Pick], depth: usize, keys: &impl Fn(u32) -> &'a [PageKey], picks: &mut Vec<Pick>) {
    let mut depth = depth;
    if let [first, rest @ ..] = &*group {
        let path = keys(first.slot);
        while path.get(depth).is_some_and(|key| rest.iter().all(|pick| keys(pick.slot).get(depth) == Some(key))) {
            depth += 1;
        }
    }
    if group.len() < 2 {
        picks.extend_from_slice(group);
        return;
    }
    let child = |pick: &Pick| keys(pick.slot).get(depth).copied();
    group.sort_by_key(|pick| (child(pick), pick.order));
    let mut children: Vec<(usize, u64, usize)> = Vec::new();
    let mut start = 0;
    while start < group.len() {
        let key = child(&group[start]);
        let count = group[start..].iter().take_while(|pick| child(pick) == key).count();
        children.push((count, group[start].order, start));
        start += count;
    }
    children.sort_by_key(|&(count, order, _)| (usize::MAX - count, order));
    for (count, _, start) in children {
        let members = &mut group[start..start + count];
        if child(&members[0]).is_none() {
            picks.extend_from_slice(members);
        } else {
            visit(members, depth + 1, keys, picks);
        }
    }
}

/// [`PICKS_MAX`] requests drawn without repetition; draws no more numbers than that, however many wait.
fn shuffled(queue: &Queue, rng: &mut Rng, picks: &mut Vec<Pick>) {
    if queue.len() <= PICKS_MAX {
        picks.extend(queue.iter());
        rng.shuffle(picks);
        return;
    }
    let places = queue.keys().len() as u64;
    // Tombstones are at most as many as the living (plus 64), so about every second or third draw is a new one.
    for _ in 0..4 * PICKS_MAX {
        if picks.len() == PICKS_MAX {
            break;
        }
        let drawn = queue.pick(rng.below(places) as usize);
        picks.extend(drawn.filter(|pick| !picks.contains(pick)));
    }
}

#[cfg(test)]
#[path = "tests/policy.rs"]
mod tests;
