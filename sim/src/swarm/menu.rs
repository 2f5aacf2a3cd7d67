//! The menu of faults: what may go wrong in a plan. One entry each; a new `do` of scenarios is a new line here.

use super::dice::Dice;
use super::keys::{Keys, Value};
use super::plan::{Fault, Plan, Role};

/// A kind of fault.
#[derive(Debug)]
pub struct Kind {
    /// As scenarios call it behind `do`.
    pub name: &'static str,
    /// What must be there.
    needs: Needs,
    /// Most of them in a plan.
    pub(super) most: u64,
    /// The key that says for how long, and the longest time; none for what is over at once.
    lasts: Option<(&'static str, u64)>,
    /// Its other keys.
    keys: fn(&mut Dice, &Scene) -> Keys,
}

/// What a kind of fault needs of a deployment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Needs {
    Nothing,
    Store,
    Request,
    /// A worker that others of its role can stand in for.
    Spare,
    /// Workers that hand over to others.
    Pair,
    Router,
    /// Somebody to talk to.
    Company,
    /// Links that take time.
    Links,
}

/// What a fault can be about.
#[derive(Debug)]
pub(super) struct Scene {
    workers: u32,
    stores: u32,
    /// Workers with a store, for orders about it.
    stored: Vec<u32>,
    /// Workers that may go for good.
    spare: Vec<u32>,
    arrivals: Vec<u64>,
    has_pairs: bool,
    has_router: bool,
    has_links: bool,
    /// Pages of the longest prompt.
    pages: u64,
}

const SECOND: u64 = 1_000_000_000;

/// All kinds. Their places do not matter: each draws from a stream that its name gives it. `set_link` is left out, which
/// is a `slow_link` for good.
pub const MENU: &[Kind] = &[
    // Processes and machines.
    Kind { name: "restart", needs: Needs::Nothing, most: 4, lasts: Some(("down_for", 2 * SECOND)), keys: restart },
    Kind { name: "crash", needs: Needs::Spare, most: 1, lasts: None, keys: spare },
    Kind { name: "crash", needs: Needs::Nothing, most: 2, lasts: Some(("down_for", 2 * SECOND)), keys: worker },
    Kind { name: "router_restart", needs: Needs::Router, most: 2, lasts: Some(("down_for", SECOND)), keys: nothing },
    Kind { name: "bootstrap_late", needs: Needs::Pair, most: 1, lasts: Some(("for", SECOND)), keys: nothing },
    Kind { name: "bootstrap_restart", needs: Needs::Pair, most: 2, lasts: Some(("down_for", SECOND)), keys: nothing },
    // What is said.
    Kind { name: "partition", needs: Needs::Company, most: 3, lasts: Some(("for", 5 * SECOND)), keys: partition },
    Kind { name: "lost_peer", needs: Needs::Pair, most: 3, lasts: Some(("for", SECOND)), keys: lost_peer },
    Kind { name: "drop", needs: Needs::Company, most: 2, lasts: Some(("for", 3 * SECOND)), keys: noise },
    Kind { name: "duplicate", needs: Needs::Company, most: 2, lasts: Some(("for", 3 * SECOND)), keys: late_noise },
    Kind { name: "reorder", needs: Needs::Company, most: 2, lasts: Some(("for", 3 * SECOND)), keys: late_noise },
    Kind { name: "delay", needs: Needs::Company, most: 2, lasts: Some(("for", 3 * SECOND)), keys: late_noise },
    Kind { name: "nonsense", needs: Needs::Pair, most: 2, lasts: Some(("for", SECOND)), keys: nonsense },
    Kind { name: "stray", needs: Needs::Company, most: 2, lasts: Some(("for", 3 * SECOND)), keys: late_noise },
    // Links and devices.
    Kind { name: "slow_link", needs: Needs::Links, most: 3, lasts: Some(("for", 2 * SECOND)), keys: slow_link },
    Kind { name: "link_flap", needs: Needs::Links, most: 2, lasts: Some(("for", 2 * SECOND)), keys: link_flap },
    Kind { name: "stuck_gpu", needs: Needs::Nothing, most: 2, lasts: Some(("for", 2 * SECOND)), keys: worker },
    Kind { name: "slow_gpu", needs: Needs::Nothing, most: 2, lasts: Some(("for", 2 * SECOND)), keys: slow_gpu },
    Kind { name: "failed_step", needs: Needs::Nothing, most: 3, lasts: None, keys: failed_step },
    Kind { name: "failed_copy", needs: Needs::Nothing, most: 3, lasts: None, keys: failed_copy },
    Kind { name: "clock_skew", needs: Needs::Nothing, most: 2, lasts: Some(("for", 2 * SECOND)), keys: clock_skew },
    // Disks and what is on them.
    Kind { name: "slow_disk", needs: Needs::Store, most: 2, lasts: Some(("for", 2 * SECOND)), keys: slow_disk },
    Kind { name: "disk_full", needs: Needs::Store, most: 2, lasts: Some(("for", 2 * SECOND)), keys: store },
    Kind { name: "disk_error", needs: Needs::Store, most: 2, lasts: Some(("for", 2 * SECOND)), keys: disk_error },
    Kind { name: "torn_write", needs: Needs::Store, most: 2, lasts: Some(("for", 2 * SECOND)), keys: store_share },
    Kind {
        name: "misdirected_write",
        needs: Needs::Store,
        most: 2,
        lasts: Some(("for", 2 * SECOND)),
        keys: store_share,
    },
    Kind { name: "bit_rot", needs: Needs::Store, most: 3, lasts: None, keys: store_share },
    Kind { name: "store_remove", needs: Needs::Store, most: 3, lasts: None, keys: stored_pages },
    Kind { name: "store_tear", needs: Needs::Store, most: 3, lasts: None, keys: stored_pages },
    Kind { name: "store_wipe", needs: Needs::Store, most: 2, lasts: None, keys: store },
    // Clients and operators.
    Kind { name: "cancel", needs: Needs::Request, most: 6, lasts: None, keys: request },
    Kind { name: "cancel_all", needs: Needs::Nothing, most: 2, lasts: None, keys: share },
    Kind { name: "flush", needs: Needs::Nothing, most: 3, lasts: None, keys: worker },
    Kind { name: "detach_storage", needs: Needs::Store, most: 2, lasts: None, keys: worker_with_store },
    Kind { name: "attach_storage", needs: Needs::Store, most: 2, lasts: None, keys: worker_with_store },
    Kind { name: "clear_storage", needs: Needs::Store, most: 2, lasts: None, keys: worker_with_store },
    Kind { name: "drain", needs: Needs::Nothing, most: 1, lasts: None, keys: worker },
];

impl Kind {
    /// The kind of a name.
    #[must_use]
    pub fn parse(name: &str) -> Option<&'static Self> {
        MENU.iter().find(|kind| kind.name == name)
    }

    /// The stream that its draws come from: the name as a number (FNV-1a), so that the order of the menu is free.
    pub(super) fn topic(&self) -> u64 {
        let hash = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(16_777_619);
        let name = self.name.bytes().fold(2_166_136_261, hash);
        u64::from(name) << 1 | u64::from(self.lasts.is_some())
    }

    /// True if there is what it needs.
    pub(super) fn fits(&self, scene: &Scene) -> bool {
        match self.needs {
            Needs::Nothing => true,
            Needs::Store => scene.stores > 0,
            Needs::Request => !scene.arrivals.is_empty(),
            Needs::Spare => !scene.spare.is_empty(),
            Needs::Pair => scene.has_pairs,
            Needs::Router => scene.has_router,
            Needs::Company => scene.has_router || scene.workers > 1,
            Needs::Links => scene.has_links,
        }
    }

    /// One of its kind.
    pub(super) fn draw(&self, dice: &mut Dice, scene: &Scene) -> Option<Fault> {
        let at_ns = scene.time(dice);
        let lasts = self.lasts.map(|(key, most)| (key, dice.span(1_000, most)));
        Some(Fault { at_ns, what: self.name, lasts, keys: (self.keys)(dice, scene) })
    }
}

impl Scene {
    pub(super) fn of(plan: &Plan, page_size: u64) -> Self {
        let roles = plan.roles();
        let mut stored = Vec::new();
        let mut worker = 0;
        for group in &plan.groups {
            for _ in 0..group.count {
                if group.keys.get("hicache_storage").is_some() {
                    stored.push(worker);
                }
                worker += 1;
            }
        }
        // The first of each role stays.
        let is_first = |index: usize| !roles[..index].contains(&roles[index]);
        let spare = (0..roles.len()).filter(|index| !is_first(*index)).map(|index| index as u32).collect();
        let is_ideal = matches!(
            plan.common.get("service"),
            Some(Value::Table(service)) if service.get("ideal_links") == Some(&Value::Flag(true))
        );
        let longest = plan.requests.iter().map(|request| request.prompt).max().unwrap_or(1);
        Self {
            workers: worker,
            stores: plan.stores(),
            stored,
            spare,
            has_pairs: roles.contains(&Role::Prefill) && roles.contains(&Role::Decode),
            has_router: plan.router.is_some(),
            has_links: !is_ideal,
            arrivals: plan.requests.iter().map(|request| request.at_ns).collect(),
            pages: (longest / page_size).max(1),
        }
    }

    /// A time: soon after the arrival of some request, when things are on their way, or any.
    fn time(&self, dice: &mut Dice) -> u64 {
        let last = self.arrivals.last().copied().unwrap_or(0);
        if self.arrivals.is_empty() || dice.chance(300) {
            let at = dice.between(0, last + SECOND);
            return at - at % 1_000;
        }
        dice.pick(&self.arrivals) + dice.span(1_000, 2 * SECOND)
    }

    fn worker(&self, dice: &mut Dice) -> Value {
        Value::Worker(dice.between(0, u64::from(self.workers) - 1) as u32)
    }

    fn store(&self, dice: &mut Dice) -> Value {
        Value::Store(dice.between(0, u64::from(self.stores) - 1) as u32)
    }

    fn request(&self, dice: &mut Dice) -> Value {
        Value::Request(dice.between(0, self.arrivals.len() as u64 - 1) as u32)
    }
}

fn worker(dice: &mut Dice, scene: &Scene) -> Keys {
    Keys::new().with("worker", scene.worker(dice))
}

fn worker_with_store(dice: &mut Dice, scene: &Scene) -> Keys {
    Keys::new().with("worker", Value::Worker(dice.pick(&scene.stored)))
}

fn restart(dice: &mut Dice, scene: &Scene) -> Keys {
    let keys = worker(dice, scene);
    if dice.chance(200) { keys.with("dtype", Value::Word(dice.pick(&["fp8_e4m3", "bf16"]))) } else { keys }
}

fn spare(dice: &mut Dice, scene: &Scene) -> Keys {
    Keys::new().with("worker", Value::Worker(dice.pick(&scene.spare)))
}

fn store(dice: &mut Dice, scene: &Scene) -> Keys {
    Keys::new().with("store", scene.store(dice))
}

fn stored_pages(dice: &mut Dice, scene: &Scene) -> Keys {
    let from = dice.log(0, scene.pages - 1);
    let to = from + dice.log(1, scene.pages);
    store(dice, scene).with("request", scene.request(dice)).with("pages", Value::Pages(from as u32, to as u32))
}

fn request(dice: &mut Dice, scene: &Scene) -> Keys {
    Keys::new().with("request", scene.request(dice))
}

fn nothing(_: &mut Dice, _: &Scene) -> Keys {
    Keys::new()
}

/// A worker and whom it talks to: everybody, another worker or the router.
fn ends(dice: &mut Dice, scene: &Scene) -> Keys {
    let worker = dice.between(0, u64::from(scene.workers) - 1) as u32;
    let keys = Keys::new().with("worker", Value::Worker(worker));
    let others: Vec<u32> = (0..scene.workers).filter(|other| *other != worker).collect();
    let keys = if !others.is_empty() && dice.chance(400) {
        keys.with("peer", Value::Worker(dice.pick(&others)))
    } else if scene.has_router && dice.chance(400) {
        keys.with("peer", Value::Word("router"))
    } else {
        keys
    };
    if dice.chance(400) { keys.with("one_way", Value::Flag(true)) } else { keys }
}

fn partition(dice: &mut Dice, scene: &Scene) -> Keys {
    let keys = ends(dice, scene);
    if dice.chance(500) { keys.with("patience", Value::Span(dice.span(1_000_000, 2 * SECOND))) } else { keys }
}

fn lost_peer(dice: &mut Dice, scene: &Scene) -> Keys {
    worker(dice, scene)
}

fn part(dice: &mut Dice) -> Value {
    Value::PerMille(1000 - dice.log(0, 999))
}

fn noise(dice: &mut Dice, scene: &Scene) -> Keys {
    let share = if dice.chance(300) { part(dice) } else { Value::PerMille(dice.log(10, 1000)) };
    ends(dice, scene).with("share", share)
}

fn late_noise(dice: &mut Dice, scene: &Scene) -> Keys {
    noise(dice, scene).with("delay", Value::Span(dice.span(1_000, SECOND)))
}

fn nonsense(dice: &mut Dice, scene: &Scene) -> Keys {
    worker(dice, scene).with("count", Value::Count(dice.log(1, 60)))
}

const SIDES: [&str; 6] = ["nic", "nic.in", "nic.out", "nvlink", "h2d", "d2h"];

fn slow_link(dice: &mut Dice, scene: &Scene) -> Keys {
    let factor = if dice.chance(300) { 0 } else { dice.log(1, 500) };
    worker(dice, scene).with("side", Value::Word(dice.pick(&SIDES))).with("factor", Value::PerMille(factor))
}

fn link_flap(dice: &mut Dice, scene: &Scene) -> Keys {
    let keys = worker(dice, scene).with("side", Value::Word(dice.pick(&SIDES)));
    keys.with("period", Value::Span(dice.span(20_000_000, SECOND)))
}

fn slow_gpu(dice: &mut Dice, scene: &Scene) -> Keys {
    worker(dice, scene).with("factor", Value::PerMille(dice.log(10, 900)))
}

fn failed_step(dice: &mut Dice, scene: &Scene) -> Keys {
    worker(dice, scene).with("count", Value::Count(dice.log(1, 4)))
}

fn failed_copy(dice: &mut Dice, scene: &Scene) -> Keys {
    let keys = failed_step(dice, scene);
    if dice.chance(400) { keys } else { keys.with("side", Value::Word(dice.pick(&["h2d", "d2h"]))) }
}

fn clock_skew(dice: &mut Dice, scene: &Scene) -> Keys {
    let keys = worker(dice, scene);
    let by = Value::Span(dice.span(1_000, 100 * SECOND));
    match dice.between(0, 2) {
        0 => keys.with("ahead", by),
        1 => keys.with("behind", by),
        _ => keys.with("ppm", Value::Signed(dice.log(1, 1000) as i64 * dice.pick(&[-1, 1]))),
    }
}

fn slow_disk(dice: &mut Dice, scene: &Scene) -> Keys {
    store(dice, scene).with("factor", Value::PerMille(dice.log(1, 500)))
}

fn share(dice: &mut Dice, _: &Scene) -> Keys {
    if dice.chance(500) { Keys::new() } else { Keys::new().with("share", part(dice)) }
}

fn store_share(dice: &mut Dice, scene: &Scene) -> Keys {
    let keys = store(dice, scene);
    if dice.chance(400) { keys } else { keys.with("share", part(dice)) }
}

fn disk_error(dice: &mut Dice, scene: &Scene) -> Keys {
    let keys = store_share(dice, scene);
    match dice.between(0, 2) {
        0 => keys.with("reads", Value::Flag(false)),
        1 => keys.with("writes", Value::Flag(false)),
        _ => keys,
    }
}
