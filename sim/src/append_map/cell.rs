//! One cell of the map: the same moment again and again, with the append on either side and at the router.
//!
//! What an append waits for first is the step under way on the decode worker. So a first world tells when the steps
//! before it end, and each side is simulated with the append at several places of a step; the mean is what counts.
//! Worlds are equal up to the append, so the places are exact.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use pd_core::config::Mode;
use pd_core::cost::LinkCost;
use pd_core::event::Event;
use pd_core::id::RequestId;
use pd_core::op::{Input, Output};
use pd_core::router::{AppendReason, Policy, RouterInput, RouterOutput};
use pd_core::time::Instant;

use super::MapConfig;
use super::claim::{By, Side};
use crate::fault::{Action, Order, Restart};
use crate::load::{ListConfig, ListRequest, LoadConfig};
use crate::observe::Observer;
use crate::scenario::Document;
use crate::scenario::error::ScenarioError;
use crate::scenario::loads::sources;
use crate::scenario::schema::{File, Router};
use crate::setup::Setup;
use crate::units::{Count, Span};
use crate::world::World;

/// Where a cell lies.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    pub(super) link: String,
    pub(super) decodes: u32,
    pub(super) tokens: u64,
    pub(super) reuse: f64,
}

/// What was found in a cell.
#[derive(Clone, Debug)]
pub struct Found {
    /// The link between the workers.
    pub link: String,
    /// Answers under way on the decode worker.
    pub decodes: u32,
    /// Length of the prompt.
    pub tokens: u64,
    /// Share of it that the decode worker was to hold.
    pub reuse: f64,
    /// Tokens of it that it held: whole pages.
    pub reused_tokens: u64,
    /// Over the pair.
    pub pair: Sample,
    /// On the decode worker.
    pub append: Sample,
    /// What the router would have done.
    pub router: Decision,
}

/// One side of a cell.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Sample {
    /// Time to first token of the append, mean over its places in a step.
    pub ttft_ns: f64,
    /// Time per token of the answers under way, mean over them and over those places.
    pub tpot_ns: f64,
}

/// The router's word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    /// Where it would have sent the append, with the weights that it has.
    pub side: Side,
    /// Why.
    pub reason: AppendReason,
}

impl Decision {
    /// Where it sends the append with the weights of a measure.
    #[must_use]
    pub fn side_by(&self, by: By) -> Side {
        let weights = match by {
            By::Ttft => [1000, 0],
            By::Tpot => [0, 1000],
            By::Weighted(w_tpot) => [1000, (w_tpot * 1000.0).round() as u32],
        };
        if self.reason.appends(weights) { Side::Append } else { Side::Pair }
    }
}

impl Found {
    /// How much better the append is by a measure, as a share; 0 or less where the pair is as good.
    #[must_use]
    pub fn margin(&self, by: By) -> f64 {
        let ttft = 1.0 - self.append.ttft_ns / self.pair.ttft_ns;
        let tpot = 1.0 - self.append.tpot_ns / self.pair.tpot_ns;
        match by {
            By::Ttft => ttft,
            By::Tpot => tpot,
            By::Weighted(w_tpot) => ttft + w_tpot * tpot,
        }
    }

    /// Who is better by a measure; the pair where both are as good.
    #[must_use]
    pub fn winner(&self, by: By) -> Side {
        if self.margin(by) > 0.0 { Side::Append } else { Side::Pair }
    }

    /// The share of the append's time by which each answer under way was late, when both were over.
    #[must_use]
    pub fn lost_share(&self, window_tokens: u32) -> f64 {
        (self.append.tpot_ns - self.pair.tpot_ns) * f64::from(window_tokens) / self.append.ttft_ns
    }
}

/// Which world.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ask {
    /// When do steps end?
    Steps,
    Pair,
    Append,
    Router,
}

impl Cell {
    pub(super) fn run(
        &self,
        map: &MapConfig,
        document: &Document,
        file: &File,
        slowest: LinkCost,
    ) -> Result<Found, ScenarioError> {
        let name = format!(
            "{}/{} tokens, reuse {}, {} decodes, {}",
            document.name(),
            self.tokens,
            self.reuse,
            self.decodes,
            self.link
        );
        let error = |key: &str, problem: &str| document.error(key, format!("{name}: {problem}"));
        let mut file = file.clone();
        file.network.near.clone_from(&self.link);
        file.network.far.clone_from(&self.link);
        file.load.clear();
        file.event.clear();
        file.until = None;
        file.router.get_or_insert(Router {
            policy: Policy::RoundRobin,
            decode_policy: Policy::CacheAware,
            kv_events: false,
            cache_threshold: None,
            load_weight: None,
            load_report: None,
            w_tpot: None,
            append_ratio_min: None,
            w_ttft: None,
            retries: None,
            max_live_requests: None,
        });
        let mut reused_tokens = 0;
        let mut world = |ask: Ask, append_at: Option<Instant>| -> Result<Watch, ScenarioError> {
            if let Some(router) = &mut file.router {
                // Everything over the pair, or as it likes; without a prefill worker it has no choice.
                router.policy = if ask == Ask::Router { Policy::AppendAware } else { Policy::RoundRobin };
                router.decode_policy = Policy::CacheAware;
            }
            let mut setup = document.setup(&name, &file)?;
            if let Some((router, _)) = &mut setup.router {
                router.append_window_tokens = map.window_tokens;
            }
            let modes: Vec<Mode> = setup.workers.iter().map(|worker| worker.config.mode).collect();
            if modes != [Mode::Prefill, Mode::Decode] {
                return Err(error(
                    "worker",
                    "[append_map] needs one prefill worker and one decode worker, in this order",
                ));
            }
            let page_size = u64::from(setup.workers[0].config.kv.page_size);
            reused_tokens = (self.reuse * self.tokens as f64) as u64 / page_size * page_size;
            let (setup, watch) = self
                .scene(setup, ask, reused_tokens, append_at, (map, slowest))
                .map_err(|problem| error("append_map", &problem))?;
            let watch = Rc::new(RefCell::new(watch));
            let mut world = World::new(setup);
            world.observe(Box::new(Rc::clone(&watch)));
            world.begin();
            while !watch.borrow().is_over() && world.turn() {}
            drop(world);
            let watch = Rc::into_inner(watch).expect("the world is gone").into_inner();
            watch.check().map_err(|problem| error("append_map", &problem))?;
            Ok(watch)
        };
        let [before, last] = world(Ask::Steps, None)?.steps;
        let step_ns = last.ns_since(before);
        let at = |place: u64| last.after_ns(step_ns + (2 * place + 1) * step_ns / (2 * PLACES));
        let mut mean = |ask| -> Result<Sample, ScenarioError> {
            let mut sum = Sample { ttft_ns: 0.0, tpot_ns: 0.0 };
            for place in 0..PLACES {
                let sample = world(ask, Some(at(place)))?.sample();
                sum.ttft_ns += sample.ttft_ns / PLACES as f64;
                sum.tpot_ns += sample.tpot_ns / PLACES as f64;
            }
            Ok(sum)
        };
        let pair = mean(Ask::Pair)?;
        let append = mean(Ask::Append)?;
        let router = world(Ask::Router, Some(at(0)))?.decision.expect("this world runs until there is one");
        let Self { link, decodes, tokens, reuse } = self.clone();
        Ok(Found { link, decodes, tokens, reuse, reused_tokens, pair, append, router })
    }

    /// The world of one answer, and who watches it.
    fn scene(
        &self,
        mut setup: Setup,
        ask: Ask,
        reused_tokens: u64,
        append_at: Option<Instant>,
        (map, slowest): (&MapConfig, LinkCost),
    ) -> Result<(Setup, Watch), String> {
        let cost = &setup.workers[0].cost;
        let moved_ns = |tokens: u64| slowest.time_ns(tokens.saturating_mul(cost.kv_bytes_per_token()), 1);
        let request = |at: Instant, prompt_tokens: u64, output_tokens: u64, content: Option<&str>| ListRequest {
            at: Span(Duration::from_nanos(at.0)),
            prompt_tokens: Count(prompt_tokens),
            output_tokens: Count(output_tokens),
            content: content.map(str::to_owned),
            prefix: None,
            priority: None,
            lora: String::new(),
            salt: String::new(),
        };
        // Each phase gets twice what its work takes over the slowest link, so that it is over when the next one begins
        // (which is checked), and the answers under way are equally long over all links.
        let enough = |ns: u64| ns.saturating_mul(2).saturating_add(5 * PAUSE_NS);
        let mut requests = Vec::new();
        let mut at = Instant::ZERO;
        if reused_tokens > 0 {
            requests.push(request(at, reused_tokens, 1, Some("conversation")));
            at = at.after_ns(enough(cost.prefill_ns(0, reused_tokens) + moved_ns(reused_tokens)));
        }
        let others = requests.len() as u64..requests.len() as u64 + u64::from(self.decodes);
        let each = map.decode_prompt_tokens.0;
        let prefill_ns = cost.prefill_ns(0, each).saturating_mul(u64::from(self.decodes));
        let together = each.saturating_mul(u64::from(self.decodes));
        let begin_ns = enough(prefill_ns.saturating_add(moved_ns(together)));
        // No step is shorter than that of one answer. Not more than that: schedulers believe what they are told.
        let steps = (begin_ns + PAUSE_NS) / cost.decode_step_ns(1, each).max(1) + 2 * u64::from(map.window_tokens);
        requests.extend(others.clone().map(|_| request(at, each, steps, None)));
        at = at.after_ns(begin_ns);
        let restart = Action::Restart(Restart::new(0, Duration::from_nanos(PAUSE_NS / 4)));
        setup.script = vec![(at, restart)];
        if ask == Ask::Append {
            let drain = Action::Drain(Order { worker: 0 });
            setup.script.push((at.after_ns(PAUSE_NS / 2), drain));
        }
        let at = append_at.unwrap_or(at.after_ns(PAUSE_NS));
        requests.push(request(at, self.tokens, 1, Some("conversation")));
        let load = LoadConfig::List(ListConfig { requests, priority: 0, start: Span::default() });
        setup.loads = sources(&[load], setup.seed, std::path::Path::new(""), &setup.prompts)?;
        setup.check = false;
        let watch = Watch {
            ask,
            from: at,
            append: RequestId(others.end),
            first_other: others.start,
            window_tokens: map.window_tokens,
            tokens: vec![Tokens::default(); self.decodes as usize],
            left: self.decodes,
            steps: [Instant::ZERO; 2],
            is_late: false,
            ttft_ns: None,
            decision: None,
            has_appended: false,
        };
        Ok((setup, watch))
    }
}

/// Watches the tokens of the append and of the others.
#[derive(Debug)]
struct Watch {
    ask: Ask,
    /// When the append comes.
    from: Instant,
    append: RequestId,
    first_other: u64,
    window_tokens: u32,
    tokens: Vec<Tokens>,
    /// Others whose window is not over.
    left: u32,
    /// When the last two steps before the append ended.
    steps: [Instant; 2],
    /// The append has come.
    is_late: bool,
    ttft_ns: Option<u64>,
    decision: Option<Decision>,
    /// It was computed on the decode worker.
    has_appended: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Tokens {
    has_begun: bool,
    in_window: u32,
    window_ns: u64,
}

impl Watch {
    fn is_over(&self) -> bool {
        match self.ask {
            Ask::Pair | Ask::Append => self.left == 0 && self.ttft_ns.is_some(),
            Ask::Router => self.decision.is_some(),
            Ask::Steps => self.is_late,
        }
    }

    /// Whether it was the scene that was meant.
    fn check(&self) -> Result<(), String> {
        let begun = self.tokens.iter().filter(|tokens| tokens.has_begun).count();
        if begun < self.tokens.len() {
            let count = self.tokens.len();
            return Err(format!(
                "only {begun} of {count} answers were under way when the append came; is there memory for all?"
            ));
        }
        if !self.is_over() {
            return Err("the run ended before the append had its first token; is there memory for it?".to_owned());
        }
        let is_forced = matches!(self.ask, Ask::Pair | Ask::Append);
        if is_forced && self.has_appended != (self.ask == Ask::Append) {
            return Err(format!("the append was not computed where it was to be ({:?})", self.ask));
        }
        Ok(())
    }

    fn sample(&self) -> Sample {
        let sum: u64 = self.tokens.iter().map(|tokens| tokens.window_ns).sum();
        let tpot_ns = sum as f64 / self.tokens.len() as f64 / f64::from(self.window_tokens);
        Sample { ttft_ns: self.ttft_ns.expect("checked") as f64, tpot_ns }
    }
}

impl Observer for Watch {
    fn on_worker(&mut self, now: Instant, _worker: u32, _input: &Input, outputs: &[Output]) {
        self.is_late |= now >= self.from;
        for output in outputs {
            let Output::Emit { request, event: Event::Token(_) } = output else { continue };
            if *request == self.append {
                self.ttft_ns.get_or_insert(now.ns_since(self.from));
                continue;
            }
            let index = request.0.checked_sub(self.first_other).and_then(|index| usize::try_from(index).ok());
            let Some(tokens) = index.and_then(|index| self.tokens.get_mut(index)) else { continue };
            if now < self.from {
                tokens.has_begun = true;
                if now > self.steps[1] {
                    self.steps = [self.steps[1], now];
                }
            } else {
                tokens.in_window += 1;
                if tokens.in_window == self.window_tokens {
                    tokens.window_ns = now.ns_since(self.from);
                    self.left -= 1;
                }
            }
        }
    }

    fn on_router(&mut self, _now: Instant, _input: &RouterInput, outputs: &[RouterOutput]) {
        for output in outputs {
            let RouterOutput::Route(route) = output else { continue };
            if route.request == self.append {
                self.has_appended = route.prefill.is_none();
                let side = if route.prefill.is_none() { Side::Append } else { Side::Pair };
                self.decision = route.reason.append.map(|reason| Decision { side, reason });
            }
        }
    }
}

/// Places of a step at which the append comes.
const PLACES: u64 = 2;
/// Between two phases.
const PAUSE_NS: u64 = 100_000_000;
