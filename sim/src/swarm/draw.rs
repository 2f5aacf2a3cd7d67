//! What a seed draws: a deployment that is too small, a load that is awkward, and some of the faults.
//!
//! Swarm testing (Groce et al., ISSTA 2012): each feature is there in some plans and absent in others, since what is
//! always there hides what needs its absence. Knobs are log-uniform: most values that matter are small. Pools hold a few
//! pages, so that evictions, retractions and full tiers are the rule.
//!
//! Each topic draws from a stream of its own: fewer kinds of faults (`--faults`) leave deployment, load and the faults
//! that stay as they were.

use super::dice::Dice;
use super::keys::{Keys, Value};
use super::menu::{MENU, Scene};
use super::plan::{Group, Plan, Request, Role};
use super::theme::Theme;

/// Draws the plan of a seed, with faults of those kinds only that `wanted` names; with all kinds if it is empty.
#[must_use]
pub fn draw(seed: u64, wanted: &[&str]) -> Plan {
    let mut shape = Dice::new(seed, 0);
    let mut knobs = Dice::new(seed, 1);
    let mut plot = Dice::new(seed, 5);
    let theme = Theme::draw(&mut plot);
    let mut plan = Plan {
        seed,
        model: shape.pick(&["qwen3-0.6b", "qwen3-0.6b", "llama-3.1-8b"]),
        network: network(&mut shape),
        common: Keys::new(),
        groups: Vec::new(),
        router: None,
        requests: Vec::new(),
        loads: Vec::new(),
        faults: Vec::new(),
    };
    let page_size = theme.page_size(shape.pick(&[1, 2, 4, 8, 16, 16, 32, 64, 64, 128]));
    plan.common.set("page_size", Value::Count(page_size));
    common(&mut shape, &mut plan);
    roles(&mut shape, &mut plan.groups);
    theme.groups(&mut plot, &mut plan.groups);
    for group in &mut plan.groups {
        group.keys = worker(&mut knobs, page_size, group.role != Role::Unified);
    }
    if plan.workers() > 1 || shape.chance(300) {
        plan.router = Some(router(&mut Dice::new(seed, 2)));
    }
    let l1 = plan.groups.iter().filter_map(|group| group.keys.count("max_total_tokens")).max().unwrap_or(page_size);
    load(&mut Dice::new(seed, 3), &mut plan, page_size, l1);
    theme.apply(&mut plot, &mut plan, page_size);
    plan.faults.retain(|fault| wanted.is_empty() || wanted.contains(&fault.what));
    faults(seed, wanted, &mut plan, page_size);
    plan
}

fn network(dice: &mut Dice) -> Keys {
    let mut keys = Keys::new();
    if dice.chance(500) {
        keys.set("far", Value::Word(dice.pick(&["net_200g", "net_25g", "tcp_100g"])));
    }
    if dice.chance(200) {
        keys.set("host_link", Value::Word("pcie4"));
    }
    if dice.chance(150) {
        keys.set("fabric", Value::Rate(dice.log(1, 50) * 1_000_000_000));
    }
    if dice.chance(500) {
        let ns = if dice.chance(300) { 0 } else { dice.span(1_000, 20_000_000) };
        keys.set("control_latency", Value::Span(ns));
    }
    keys
}

fn common(dice: &mut Dice, plan: &mut Plan) {
    let keys = &mut plan.common;
    if dice.chance(150) {
        // Forwards of fixed length and links that take no time: many things happen at the same instant.
        let service = Keys::new()
            .with("prefill", Value::Span(dice.pick(&[0, 1_000_000, 10_000_000])))
            .with("prefill_token", Value::Span(dice.pick(&[0, 1_000, 100_000])))
            .with("decode", Value::Span(dice.pick(&[1_000_000, 10_000_000])))
            .with("ideal_links", Value::Flag(dice.chance(500)));
        keys.set("service", Value::Table(service));
    }
    if dice.chance(100) {
        keys.set("dtype", Value::Word(dice.pick(&["fp8_e4m3", "fp16"])));
    }
    if dice.chance(20) {
        keys.set("disaggregation_transfer_backend", Value::Word("fake"));
    }
    if dice.chance(150) {
        keys.set("request_timeout", Value::Span(dice.span(10_000_000, 30_000_000_000)));
    }
}

/// A group of one worker.
pub(super) const fn group_of(name: u32, role: Role) -> Group {
    Group { name, count: 1, role, keys: Keys::new() }
}

fn roles(dice: &mut Dice, groups: &mut Vec<Group>) {
    let mut add = |role, count: u64| {
        let name = groups.len() as u32;
        groups.push(Group { count: count as u32, ..group_of(name, role) });
    };
    match dice.between(0, 9) {
        0..=2 => add(Role::Unified, 1),
        3 => add(Role::Unified, dice.between(2, 3)),
        4 => {
            add(Role::Unified, 1);
            add(Role::Unified, dice.between(1, 2));
        }
        5..=6 => {
            add(Role::Prefill, 1);
            add(Role::Decode, 1);
        }
        7..=8 => {
            add(Role::Prefill, dice.between(1, 2));
            add(Role::Decode, dice.between(1, 2));
            if dice.chance(300) {
                add(Role::Prefill, 1);
            }
            if dice.chance(300) {
                add(Role::Decode, 1);
            }
        }
        _ => {
            add(Role::Prefill, dice.between(1, 2));
            add(Role::Decode, dice.between(1, 2));
            add(Role::Unified, dice.between(1, 2));
        }
    }
}

fn worker(dice: &mut Dice, page_size: u64, is_pair: bool) -> Keys {
    let mut keys = Keys::new();
    if dice.chance(300) {
        keys.set("gpu", Value::Word(dice.pick(&["h100_sxm", "a100_sxm"])));
    }
    if dice.chance(200) {
        keys.set("tp", Value::Count(dice.pick(&[2, 4])));
    }
    if dice.chance(250) {
        keys.set("machine", Value::Count(0));
    }
    let pages = dice.log(2, 200).max(if dice.chance(800) { 8 } else { 2 });
    keys.set("max_total_tokens", Value::Count(pages * page_size));
    if dice.chance(500) {
        let policy = dice.pick(&["lfu", "slru", "fifo", "priority", "s3fifo"]);
        keys.set("radix_eviction_policy", Value::Word(policy));
    }
    if dice.chance(650) {
        tiers(dice, page_size, pages, &mut keys);
    }
    scheduler(dice, page_size, &mut keys);
    if is_pair {
        handoff(dice, &mut keys);
    }
    keys
}

fn tiers(dice: &mut Dice, page_size: u64, pages: u64, keys: &mut Keys) {
    // At least one page of L2.
    let least = 1000_u64.div_ceil(pages);
    keys.set("hicache_ratio", Value::PerMille(dice.log(least, 4000.max(least))));
    if dice.chance(500) {
        let policy = dice.pick(&["write_through_selective", "write_back"]);
        keys.set("hicache_write_policy", Value::Word(policy));
    }
    if dice.chance(300) {
        keys.set("hicache_host_policy", Value::Word("exclusive"));
    }
    if dice.chance(300) {
        keys.set("hicache_eviction_policy", Value::Word(dice.pick(&["lfu", "slru", "fifo", "priority", "s3fifo"])));
    }
    if dice.chance(500) {
        keys.set("load_back_threshold", Value::Count(dice.log(0, 64)));
    }
    if dice.chance(400) {
        keys.set("fetch_by_cost", Value::Flag(false));
    }
    if !dice.chance(700) {
        return;
    }
    let mut storage = Keys::new().with("disk", Value::Word(dice.pick(&["nvme_gen4", "nvme_gen5", "object_store"])));
    if dice.chance(300) {
        storage.set("mode", Value::Word("shared"));
    }
    if dice.chance(300) {
        storage.set("max_tokens", Value::Count(dice.log(1, 4 * pages) * page_size));
    }
    if dice.chance(150) {
        storage.set("capacity", Value::Bytes(dice.log(1_000_000, 4_000_000_000)));
    }
    keys.set("hicache_storage", Value::Table(storage));
    prefetching(dice, keys);
}

/// When a fetch is worth it, and how long it may take.
pub(super) fn prefetching(dice: &mut Dice, keys: &mut Keys) {
    if dice.chance(600) {
        let policy = dice.pick(&["best_effort", "wait_complete"]);
        keys.set("hicache_storage_prefetch_policy", Value::Word(policy));
    }
    if dice.chance(800) {
        keys.set("prefetch_threshold", Value::Count(dice.log(1, 256)));
    }
    if dice.chance(400) {
        keys.set("prefetch_timeout_base", Value::Span(dice.span(100_000, 2_000_000_000)));
        keys.set("prefetch_timeout_per_ki_token", Value::Span(dice.span(10_000, 100_000_000)));
        keys.set("prefetch_timeout_max", Value::Span(dice.span(1_000_000, 10_000_000_000)));
    }
    if dice.chance(300) {
        keys.set("prefetch_capacity", Value::PerMille(dice.log(0, 1000)));
    }
}

fn scheduler(dice: &mut Dice, page_size: u64, keys: &mut Keys) {
    if dice.chance(500) {
        let policy = dice.pick(&["lpm", "dfs-weight", "random", "priority", "hrrn"]);
        keys.set("schedule_policy", Value::Word(policy));
    }
    if dice.chance(600) {
        keys.set("chunked_prefill_size", Value::Count(dice.log(1, 32) * page_size));
    }
    if dice.chance(500) {
        keys.set("max_running_requests", Value::Count(dice.log(1, 16)));
    }
    if dice.chance(150) {
        keys.set("max_queued_requests", Value::Count(dice.log(0, 8)));
    }
    if dice.chance(300) {
        keys.set("enable_mixed_chunk", Value::Flag(true));
    }
    if dice.chance(400) {
        keys.set("disable_overlap_schedule", Value::Flag(true));
    }
    if dice.chance(600) {
        keys.set("reserve_steps", Value::Count(dice.log(1, 32)));
    }
}

fn handoff(dice: &mut Dice, keys: &mut Keys) {
    if dice.chance(850) {
        keys.set("disaggregation_bootstrap_timeout", Value::Span(dice.span(5_000_000, 10_000_000_000)));
    }
    if dice.chance(850) {
        keys.set("disaggregation_waiting_timeout", Value::Span(dice.span(5_000_000, 10_000_000_000)));
    }
    if dice.chance(500) {
        keys.set("handoff_retries", Value::Count(dice.between(0, 3)));
    }
    if dice.chance(300) {
        let ns = dice.span(100_000_000, 5_000_000_000);
        keys.set("disaggregation_heartbeat_interval", Value::Span(ns));
    }
    if dice.chance(20) {
        keys.set("dtype", Value::Word("f32"));
    }
}

fn router(dice: &mut Dice) -> Keys {
    const POLICIES: [&str; 5] = ["random", "round_robin", "power_of_two", "cache_aware", "append_aware"];
    let mut keys = Keys::new().with("policy", Value::Word(dice.pick(&POLICIES)));
    if dice.chance(500) {
        keys.set("decode_policy", Value::Word(dice.pick(&POLICIES[..4])));
    }
    if dice.chance(500) {
        keys.set("kv_events", Value::Flag(true));
    }
    if dice.chance(400) {
        keys.set("retries", Value::Count(dice.log(0, 5)));
    }
    if dice.chance(100) {
        keys.set("max_live_requests", Value::Count(dice.log(1, 16)));
    }
    keys
}

/// Requests: prompts from one token on, just around page borders, as long as L1 and beyond; alike and unlike; one by one
/// and all at once.
fn load(dice: &mut Dice, plan: &mut Plan, page_size: u64, l1: u64) {
    let count = dice.log(2, 24);
    let horizon_ns = dice.span(1_000_000, 4_000_000_000);
    let longest = l1.clamp(2, 2_000);
    let contents = dice.log(1, 6) as u32;
    // Contents fork off plain ones, so that any part of the requests is as good a list as all of them.
    let mut beginnings: Vec<Option<(u32, u64)>> = Vec::new();
    for _ in 0..contents {
        let plain: Vec<u32> =
            (0..).zip(&beginnings).filter(|(_, fork)| fork.is_none()).map(|(index, _)| index).collect();
        let is_fork = !plain.is_empty() && dice.chance(500);
        beginnings.push(is_fork.then(|| (dice.pick(&plain), length(dice, page_size, longest))));
    }
    let (sharing, bursts) = (dice.pick(&[0, 500, 900, 1000]), dice.pick(&[0, 300, 800]));
    let answers = dice.pick(&[1, 4, 30, 120]);
    let priorities = dice.chance(250);
    let mut at_ns = 0;
    for _ in 0..count {
        if !dice.chance(bursts) {
            at_ns = dice.between(0, horizon_ns);
            at_ns -= at_ns % 1_000;
        }
        let content = dice.chance(sharing).then(|| dice.between(0, u64::from(contents) - 1) as u32);
        // Few prompts are longer than any worker has room for: they are refused at the door.
        let prompt = if dice.chance(30) { longest * 2 } else { length(dice, page_size, longest) };
        plan.requests.push(Request {
            at_ns,
            prompt,
            output: dice.log(1, answers),
            content,
            prefix: content.and_then(|content| beginnings[content as usize]),
            priority: if priorities { dice.between(0, 4) as i64 - 2 } else { 0 },
        });
    }
    plan.requests.sort_by_key(|request| request.at_ns);
    if dice.chance(150) {
        plan.loads.push(sessions(dice, longest));
    }
    if dice.chance(100) {
        plan.loads.push(closed(dice, longest));
    }
}

/// A length in tokens, more often than not at the border of a page.
fn length(dice: &mut Dice, page_size: u64, longest: u64) -> u64 {
    let tokens = dice.log(1, longest);
    if dice.chance(500) {
        return tokens;
    }
    let border = tokens.next_multiple_of(page_size);
    (border + dice.between(0, 2)).saturating_sub(1).clamp(1, longest)
}

fn sessions(dice: &mut Dice, longest: u64) -> Keys {
    let part = (longest / 4).max(1);
    Keys::new()
        .with("kind", Value::Word("sessions"))
        .with("sessions", Value::Count(dice.log(1, 3)))
        .with("turns", Value::Between(1, dice.between(2, 4)))
        .with("first_prompt_tokens", Value::Between(1, dice.log(1, part)))
        .with("user_tokens", Value::Between(1, dice.log(1, part)))
        .with("output_tokens", Value::Between(1, dice.log(1, 20)))
}

fn closed(dice: &mut Dice, longest: u64) -> Keys {
    Keys::new()
        .with("kind", Value::Word("closed"))
        .with("concurrency", Value::Count(dice.log(1, 3)))
        .with("requests", Value::Count(dice.log(1, 8)))
        .with("prompt_tokens", Value::Between(1, dice.log(1, longest)))
        .with("output_tokens", Value::Between(1, dice.log(1, 20)))
}

/// Streams from here on belong to kinds of faults.
const FIRST_FAULT_TOPIC: u64 = 1 << 32;

fn faults(seed: u64, wanted: &[&str], plan: &mut Plan, page_size: u64) {
    let mut dice = Dice::new(seed, 4);
    // Some plans have no faults at all, some one kind, some many.
    let share = dice.pick(&[0, 60, 60, 150, 150, 400]);
    let scene = Scene::of(plan, page_size);
    for kind in MENU {
        let mut dice = Dice::new(seed, FIRST_FAULT_TOPIC + kind.topic());
        if !dice.chance(share) || !(wanted.is_empty() || wanted.contains(&kind.name)) || !kind.fits(&scene) {
            continue;
        }
        for _ in 0..dice.log(1, kind.most) {
            plan.faults.extend(kind.draw(&mut dice, &scene));
        }
    }
    plan.faults.sort_by_key(|fault| fault.at_ns);
}
