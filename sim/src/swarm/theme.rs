//! Plans with a plot: what independent draws bring together too seldom.
//!
//! - *rounds*: a few prompts come again and again to caches that are too small for them, and between the rounds memory is
//!   flushed, workers restart with their storage kept, L3 is detached and attached, or what is in it is damaged.
//! - *tight*: a sink with room for one prompt asks a source that cannot send, and then another one that goes away; or it
//!   hears nothing for a while.
//! - *crowded*: a worker that refuses most of what comes, so that the router tries again and again, while what is said of
//!   the first attempts comes twice.
//! - *wide*: a prompt whose pages fill the storage lane, so that some wait before it, and a client that does not.
//! - *ends*: a long prompt comes again and finds itself on a disk that is about as fast as the device, so that it is computed
//!   from one end and fetched from the other; and something goes wrong before the two have met.

use super::dice::Dice;
use super::draw::{group_of, prefetching};
use super::keys::{Keys, Value};
use super::plan::{Fault, Group, Plan, Request, Role};

/// What a plan is about besides its draws.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Theme {
    Plain,
    Rounds,
    Tight,
    Crowded,
    Wide,
    Ends,
}

impl Theme {
    pub(super) fn draw(dice: &mut Dice) -> Self {
        match dice.between(0, 999) {
            0..350 => Self::Rounds,
            350..430 => Self::Tight,
            430..470 => Self::Crowded,
            470..480 => Self::Wide,
            480..530 => Self::Ends,
            _ => Self::Plain,
        }
    }

    /// Other workers, if the theme wants them.
    pub(super) fn groups(self, dice: &mut Dice, groups: &mut Vec<Group>) {
        let of = |roles: &[Role]| (0..).zip(roles).map(|(name, role)| group_of(name, *role)).collect();
        match self {
            Self::Plain => {}
            Self::Rounds if dice.chance(350) => {}
            Self::Rounds | Self::Wide => *groups = of(&[Role::Unified]),
            Self::Ends if dice.chance(700) => *groups = of(&[Role::Unified]),
            Self::Crowded | Self::Ends => *groups = of(&[Role::Prefill, Role::Decode]),
            Self::Tight => *groups = of(&[Role::Prefill, Role::Prefill, Role::Decode]),
        }
    }

    /// Pages of one token, where a prompt has to have many; larger ones, where it has to be long.
    pub(super) const fn page_size(self, drawn: u64) -> u64 {
        match self {
            Self::Wide => 1,
            Self::Ends if drawn < 16 => 16,
            Self::Plain | Self::Rounds | Self::Tight | Self::Crowded | Self::Ends => drawn,
        }
    }

    /// Caches, requests and faults of the theme.
    pub(super) fn apply(self, dice: &mut Dice, plan: &mut Plan, page_size: u64) {
        match self {
            Self::Plain => {}
            Self::Rounds => rounds(dice, plan, page_size),
            Self::Tight => tight(dice, plan, page_size),
            Self::Crowded => crowded(dice, plan, page_size),
            Self::Wide => wide(dice, plan),
            Self::Ends => ends(dice, plan, page_size),
        }
    }
}

fn rounds(dice: &mut Dice, plan: &mut Plan, page_size: u64) {
    let pages = dice.between(4, 32);
    for group in &mut plan.groups {
        cache(dice, &mut group.keys, page_size, pages);
    }
    let contents: Vec<u64> = (0..dice.between(1, 5))
        .map(|_| dice.between(1, (pages * 3 / 4).max(2)) * page_size + dice.between(1, page_size))
        .collect();
    let gap_ns = dice.span(2_000_000, 500_000_000);
    let is_burst = dice.chance(500);
    plan.requests.clear();
    let mut at_ns = 0;
    for round in 0..dice.between(2, 4) {
        if round > 0 {
            at_ns += gap_ns / 2;
            between(dice, plan, at_ns);
            at_ns += gap_ns / 2;
        }
        for (content, prompt) in (0..).zip(&contents) {
            if !dice.chance(800) {
                continue;
            }
            let more = if dice.chance(300) { dice.between(1, 2 * page_size) } else { 0 };
            let request = request(at_ns, prompt + more, dice.log(1, 6), content);
            at_ns += if is_burst { 0 } else { dice.span(10_000, 20_000_000) };
            plan.requests.push(request);
        }
    }
    if plan.requests.is_empty() {
        plan.requests.push(request(0, contents[0], 1, 0));
    }
}

fn cache(dice: &mut Dice, keys: &mut Keys, page_size: u64, pages: u64) {
    keys.set("max_total_tokens", Value::Count((pages + dice.between(1, 4)) * page_size));
    keys.set("hicache_ratio", Value::PerMille(dice.between(1000_u64.div_ceil(pages), 2500)));
    keys.set("load_back_threshold", Value::Count(dice.log(0, 2)));
    if dice.chance(100) {
        keys.remove("hicache_storage");
        return;
    }
    if keys.get("hicache_storage").is_none() {
        let mut storage = Keys::new().with("disk", Value::Word(dice.pick(&["nvme_gen4", "nvme_gen5", "object_store"])));
        if dice.chance(300) {
            storage.set("mode", Value::Word("shared"));
        }
        keys.set("hicache_storage", Value::Table(storage));
        prefetching(dice, keys);
    }
    if dice.chance(350)
        && let Some(Value::Table(storage)) = keys.get("hicache_storage").cloned()
    {
        let quota = Value::Count(dice.between(1, 2 * pages) * page_size);
        keys.set("hicache_storage", Value::Table(storage.with("max_tokens", quota)));
    }
    keys.set("prefetch_threshold", Value::Count(dice.log(1, 2 * page_size)));
    keys.set("fetch_by_cost", Value::Flag(dice.chance(250)));
}

/// What an operator, a crash or a disk does between two rounds.
fn between(dice: &mut Dice, plan: &mut Plan, at_ns: u64) {
    let (workers, stores) = (u64::from(plan.workers()), u64::from(plan.stores()));
    let worker = Value::Worker(dice.between(0, workers - 1) as u32);
    let of_worker = || Keys::new().with("worker", worker.clone());
    let mut add = |at_ns: u64, what: &'static str, lasts: Option<(&'static str, u64)>, keys: Keys| {
        plan.faults.push(Fault { at_ns, what, lasts, keys });
    };
    match dice.between(0, 9) {
        0..=2 => add(at_ns, "flush", None, of_worker()),
        3..=5 => add(at_ns, "restart", Some(("down_for", dice.span(1_000, 1_000_000))), of_worker()),
        6 if stores > 0 => {
            add(at_ns, "detach_storage", None, of_worker());
            add(at_ns + dice.span(1_000, 1_000_000), "attach_storage", None, of_worker());
        }
        _ => {}
    }
    if stores == 0 {
        return;
    }
    let store = Keys::new().with("store", Value::Store(dice.between(0, stores - 1) as u32));
    let later = at_ns + dice.span(1_000, 4_000_000);
    match dice.between(0, 11) {
        0 => add(later, "bit_rot", None, store),
        1 => add(later, "store_remove", None, store.with("request", Value::Request(0))),
        2 => add(later, "store_wipe", None, store),
        3 => {
            let keys =
                if dice.chance(700) { store.with("share", Value::PerMille(dice.between(1, 9) * 100)) } else { store };
            add(at_ns, "disk_error", Some(("for", dice.span(10_000_000, 2 * SECOND))), keys);
        }
        4 => {
            let keys = store.with("factor", Value::PerMille(dice.log(1, 100)));
            add(at_ns, "slow_disk", Some(("for", dice.span(1_000_000, 500_000_000))), keys);
        }
        _ => {}
    }
}

fn tight(dice: &mut Dice, plan: &mut Plan, page_size: u64) {
    let pages = dice.between(2, 16);
    let timeout_ns = dice.span(20_000_000, 300_000_000);
    // Links take time, and nothing of the drawn pools is left.
    plan.common.remove("service");
    let is_cut = dice.chance(300);
    let is_followed = dice.chance(500);
    for group in &mut plan.groups {
        group.keys.set("max_total_tokens", Value::Count((pages + 1) * page_size));
        if group.keys.get("hicache_ratio").is_some() {
            group.keys.set("hicache_ratio", Value::PerMille(1000));
        }
        if group.role == Role::Decode {
            let ns = if is_cut { 10 * timeout_ns } else { timeout_ns };
            group.keys.set("disaggregation_waiting_timeout", Value::Span(ns));
            if is_cut {
                let ns = dice.span(20_000_000, 100_000_000);
                group.keys.set("disaggregation_heartbeat_interval", Value::Span(ns));
            }
            group.keys.set("handoff_retries", Value::Count(dice.between(1, 3)));
        }
    }
    let at_ns = dice.between(1, 100) * 1_000_000;
    plan.loads.clear();
    let count = if dice.chance(600) { 1 } else { dice.between(2, 4) };
    plan.requests = (0..count)
        .map(|content| {
            let prompt = dice.between(pages / 2 + 1, pages) * page_size;
            request(at_ns, prompt, dice.log(1, 4), content as u32)
        })
        .collect();
    if is_followed {
        plan.requests.push(request(at_ns + dice.between(1, 4) * SECOND, pages * page_size, 1, 9));
    }
    if is_cut {
        plan.faults.push(Fault {
            at_ns: at_ns + dice.span(10_000, 5_000_000),
            what: "partition",
            lasts: Some(("for", dice.span(100_000_000, 2_000_000_000))),
            keys: Keys::new().with("worker", Value::Worker(2)),
        });
        return;
    }
    if dice.chance(300) {
        let keys = Keys::new().with("worker", Value::Worker(2)).with("share", Value::PerMille(1000));
        plan.faults.push(Fault { at_ns, what: "stray", lasts: Some(("for", SECOND)), keys });
    }
    // The source that is stuck can send again before the sink, which has asked it in vain, gives up for good.
    let stuck = dice.between(0, 1) as u32;
    let late_ns = dice.between(timeout_ns / 5, timeout_ns * 9 / 10);
    let side = Keys::new().with("worker", Value::Worker(stuck)).with("side", Value::Word("nic.out"));
    plan.faults.push(Fault {
        at_ns,
        what: "slow_link",
        lasts: Some(("for", whole_us(timeout_ns + late_ns))),
        keys: side.with("factor", Value::PerMille(0)),
    });
    if dice.chance(700) {
        let other = Keys::new().with("worker", Value::Worker(1 - stuck));
        plan.faults.push(Fault {
            at_ns: at_ns + whole_us(timeout_ns + dice.between(1_000, late_ns)),
            what: "restart",
            lasts: Some(("down_for", whole_us(timeout_ns + dice.span(1_000_000, SECOND)))),
            keys: if dice.chance(600) { other } else { other.with("dtype", Value::Word("fp8_e4m3")) },
        });
    }
}

const SECOND: u64 = 1_000_000_000;

const fn whole_us(ns: u64) -> u64 {
    ns - ns % 1_000
}

fn crowded(dice: &mut Dice, plan: &mut Plan, page_size: u64) {
    for group in &mut plan.groups {
        group.keys.set("max_total_tokens", Value::Count((200 / page_size + 8) * page_size));
        if group.keys.get("hicache_ratio").is_some() {
            group.keys.set("hicache_ratio", Value::PerMille(1000));
        }
    }
    let crowded = dice.between(0, 1) as u32;
    let keys = &mut plan.groups[crowded as usize].keys;
    keys.set("max_running_requests", Value::Count(1));
    keys.set("max_queued_requests", Value::Count(dice.between(0, 1)));
    plan.common.remove("request_timeout");
    plan.router = Some(Keys::new().with("policy", Value::Word("round_robin")));
    plan.loads.clear();
    let at_ns = dice.between(1, 100) * 1_000_000;
    plan.requests = (0..dice.between(2, 4))
        .map(|content| request(at_ns + content * 1_000_000, dice.log(1, 64), dice.between(10, 120), content as u32))
        .collect();
    let keys = Keys::new().with("worker", Value::Worker(crowded)).with("share", Value::PerMille(1000));
    let keys = keys.with("delay", Value::Span(dice.span(20_000_000, 2 * SECOND)));
    plan.faults.push(Fault { at_ns: 0, what: "stray", lasts: Some(("for", 10 * SECOND)), keys });
}

fn wide(dice: &mut Dice, plan: &mut Plan) {
    let tokens = dice.between(2_100, 2_600);
    let keys = &mut plan.groups[0].keys;
    cache(dice, keys, 1, tokens);
    keys.set("hicache_ratio", Value::PerMille(dice.between(1000, 1500)));
    let storage = Keys::new().with("disk", Value::Word(dice.pick(&["nvme_gen4", "object_store"])));
    keys.set("hicache_storage", Value::Table(storage));
    keys.set("fetch_by_cost", Value::Flag(false));
    keys.set("prefetch_capacity", Value::PerMille(1000));
    keys.remove("chunked_prefill_size");
    let gap_ns = dice.between(1, 4) * 1_000_000_000;
    plan.loads.clear();
    plan.requests = vec![request(0, tokens, 1, 0), request(gap_ns, tokens, 1, 0)];
    if dice.chance(500) {
        plan.requests.push(request(gap_ns, tokens / 2, 1, 0));
    }
    let keys = Keys::new().with("worker", Value::Worker(0));
    plan.faults.push(Fault { at_ns: gap_ns / 2, what: "flush", lasts: None, keys });
    if dice.chance(700) {
        let keys = Keys::new().with("request", Value::Request(1));
        let at_ns = gap_ns + dice.span(10_000, 20_000_000);
        plan.faults.push(Fault { at_ns, what: "cancel", lasts: None, keys });
    }
}

fn ends(dice: &mut Dice, plan: &mut Plan, page_size: u64) {
    plan.model = "llama-3.1-8b";
    plan.common.remove("service");
    plan.common.remove("request_timeout");
    let tokens = dice.between(1_000, 4_000);
    let room = (tokens * dice.between(1, 3) / page_size + 4) * page_size;
    for group in &mut plan.groups {
        group.keys.set("max_total_tokens", Value::Count(room));
        if group.keys.get("hicache_ratio").is_some() {
            group.keys.set("hicache_ratio", Value::PerMille(1000));
        }
    }
    let keys = &mut plan.groups[0].keys;
    let storage = Keys::new().with("disk", Value::Word(dice.pick(&["nvme_cloud", "nvme_cloud", "nvme_gen4"])));
    let storage = if dice.chance(200) { storage.with("mode", Value::Word("shared")) } else { storage };
    keys.set("hicache_storage", Value::Table(storage));
    keys.set("hicache_ratio", Value::PerMille(dice.between(1000, 2500)));
    keys.set("prefetch_capacity", Value::PerMille(1000));
    keys.set("prefetch_threshold", Value::Count(dice.log(1, 256)));
    keys.remove("hicache_write_policy");
    keys.remove("fetch_by_cost");
    if dice.chance(700) {
        keys.remove("hicache_storage_prefetch_policy");
    }
    plan.loads.clear();
    plan.requests = vec![request(0, tokens, 1, 0)];
    let again_ns = dice.between(3, 5) * SECOND;
    let mut at_ns = again_ns;
    for _ in 0..dice.between(1, 3) {
        plan.requests.push(request(at_ns, tokens + dice.log(0, page_size), dice.log(1, 8), 0));
        at_ns += dice.span(1_000, 200_000_000);
    }
    let worker = || Keys::new().with("worker", Value::Worker(0));
    let store = || Keys::new().with("store", Value::Store(0));
    let mut add = |at_ns: u64, what: &'static str, lasts: Option<(&'static str, u64)>, keys: Keys| {
        plan.faults.push(Fault { at_ns, what, lasts, keys });
    };
    add(again_ns / 2, "flush", None, worker());
    for _ in 0..dice.between(0, 2) {
        let at_ns = again_ns + dice.span(10_000, 300_000_000);
        let soon_ns = dice.span(1_000_000, 500_000_000);
        match dice.between(0, 9) {
            0 => add(at_ns, "cancel", None, Keys::new().with("request", Value::Request(1))),
            1 => add(at_ns, "flush", None, worker()),
            2 => add(at_ns, "restart", Some(("down_for", soon_ns)), worker()),
            3 => add(at_ns, "detach_storage", None, worker()),
            4 => add(at_ns, "clear_storage", None, worker()),
            5 => add(at_ns, "failed_step", None, worker().with("count", Value::Count(dice.log(1, 2)))),
            6 => add(
                at_ns,
                "failed_copy",
                None,
                worker().with("count", Value::Count(1)).with("side", Value::Word("h2d")),
            ),
            7 => add(again_ns, "disk_error", Some(("for", soon_ns)), store()),
            8 => add(again_ns - SECOND, "store_tear", None, store().with("every", Value::Count(dice.between(2, 40)))),
            _ => {
                let keys = store().with("factor", Value::PerMille(dice.log(1, 1000)));
                add(again_ns, "slow_disk", Some(("for", soon_ns)), keys);
            }
        }
    }
}

fn request(at_ns: u64, prompt: u64, output: u64, content: u32) -> Request {
    let at_ns = at_ns - at_ns % 1_000;
    Request { at_ns, prompt, output, content: Some(content), prefix: None, priority: 0 }
}
