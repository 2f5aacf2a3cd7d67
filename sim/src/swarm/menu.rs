//! The menu of faults: what may go wrong in a plan. One entry each; a new `do` of scenarios is a new line here.

use super::dice::Dice;
use super::keys::{Keys, Value};
use super::plan::{Fault, Plan};

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
    /// Pages of the longest prompt.
    pages: u64,
}

const SECOND: u64 = 1_000_000_000;

/// All kinds. Their places do not matter: each draws from a stream that its name gives it.
pub const MENU: &[Kind] = &[
    Kind { name: "restart", needs: Needs::Nothing, most: 4, lasts: Some(("down_for", 2 * SECOND)), keys: restart },
    Kind { name: "crash", needs: Needs::Spare, most: 1, lasts: None, keys: spare },
    Kind { name: "store_remove", needs: Needs::Store, most: 3, lasts: None, keys: stored_pages },
    Kind { name: "store_tear", needs: Needs::Store, most: 3, lasts: None, keys: stored_pages },
    Kind { name: "store_wipe", needs: Needs::Store, most: 2, lasts: None, keys: store },
    Kind { name: "cancel", needs: Needs::Request, most: 6, lasts: None, keys: request },
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
        u64::from(self.name.bytes().fold(2_166_136_261, hash))
    }

    /// True if there is what it needs.
    pub(super) fn fits(&self, scene: &Scene) -> bool {
        match self.needs {
            Needs::Nothing => true,
            Needs::Store => scene.stores > 0,
            Needs::Request => !scene.arrivals.is_empty(),
            Needs::Spare => !scene.spare.is_empty(),
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
        let longest = plan.requests.iter().map(|request| request.prompt).max().unwrap_or(1);
        Self {
            workers: worker,
            stores: plan.stores(),
            stored,
            spare,
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
    if dice.chance(80) { keys.with("dtype", Value::Word(dice.pick(&["fp8_e4m3", "bf16"]))) } else { keys }
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
