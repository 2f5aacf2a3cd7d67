//! Goodput of queues whose answer is known, and plans of small deployments.

use std::path::Path;

use super::*;
use crate::scenario::{Document, Overrides};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios")
}

fn file(name: &str, set: &[&str]) -> File {
    let overrides = Overrides { set: set.iter().map(|&one| one.to_owned()).collect(), ..Overrides::default() };
    let document = Document::read(&folder().join(name), &overrides).unwrap_or_else(|error| panic!("{error}"));
    document.file(name, &[]).unwrap_or_else(|error| panic!("{error}"))
}

fn goal(ttft_us: u64, attain_per_mille: u32, seconds: u64) -> Goal {
    Goal {
        ttft: Duration::from_micros(ttft_us),
        tpot: Duration::from_secs(1),
        attain_per_mille,
        span: Duration::from_secs(seconds),
    }
}

fn plan(file: File, gpus: u32, goal: Goal) -> Plan {
    Plan {
        file,
        folder: folder(),
        gpus,
        tps: vec![1],
        links: Vec::new(),
        tiers: Vec::new(),
        goal,
        seeds: vec![1, 2, 3],
        precision: 0.01,
    }
}

/// M/D/1 with services of 1 ms: P(wait = 0) = 1 - rho, and P(wait <= t) = (1 - rho) e^(rho t / s) for t <= s. A TTFT of
/// one service and a bit for 70 % of requests is kept up to rho = 0.3; one and a half services for 70 % up to the rho
/// with (1 - rho) e^(rho / 2) = 0.7, which is 0.4376.
#[test]
fn the_goodput_of_m_d_1_is_that_of_theory() {
    for (ttft_us, rho) in [(1_001, 0.3), (1_500, 0.4376)] {
        let plan = plan(file("md1.toml", &[]), 1, goal(ttft_us, 700, 100));
        let candidate = Candidate { layout: Layout::Unified { count: 1, tp: 1 }, link: None, tier: None };
        let goodput = plan.point(&candidate).unwrap().goodput();
        let exact = 1000.0 * rho;
        // The bracket is 1 % wide and the answer its lower end; 30,000 requests leave less than that of noise.
        assert!((goodput.mean - exact).abs() <= 0.02 * exact, "{goodput:?}, theory {exact}");
        assert!(goodput.half_width < 0.03 * exact, "{goodput:?}");
    }
}

#[test]
fn layouts_use_all_gpus_and_are_told_once() {
    let layouts = Layout::all(4, &[1, 2]);
    let names: Vec<String> = layouts.iter().map(Layout::to_string).collect();
    assert_eq!(names, ["4U", "2Utp2", "1P+3D", "2P+2D", "3P+1D", "2P+1Dtp2", "1Ptp2+2D", "1Ptp2+1Dtp2",]);
    assert!(layouts.iter().all(|layout| layout.gpus() == 4));
    assert_eq!(Layout::all(1, &[1, 2]), [Layout::Unified { count: 1, tp: 1 }]);
}

#[test]
fn tiers_are_read_and_refused_in_words() {
    assert_eq!(Tier::parse("none"), Ok(Tier { host_bytes: 0, disk: None }));
    let tier = Tier::parse("64GB+nvme_gen5").unwrap();
    assert_eq!((tier.host_bytes, tier.disk.as_deref()), (64_000_000_000, Some("nvme_gen5")));
    assert!(Tier::parse("64").unwrap_err().contains("write none, 64GB"));
}

/// Eight times the work in prompts as in answers: more prefill than decode workers, and prefill limits.
#[test]
fn a_plan_does_not_depend_on_threads_and_names_what_limits() {
    let set = ["load.0.prompt_tokens=4000", "load.0.output_tokens=8", "load.0.rate=2/s", "worker.0.gpu=h100_sxm"];
    let goal = Goal {
        ttft: Duration::from_secs(1),
        tpot: Duration::from_millis(100),
        attain_per_mille: 900,
        span: Duration::from_secs(15),
    };
    let mut plan = plan(file("one_p_one_d.toml", &set), 3, goal);
    plan.precision = 0.03;
    let run = |threads| plan.run(NonZeroUsize::new(threads).unwrap(), &mut |_, _| {}).unwrap();
    let (one, two) = (run(1), run(2));
    assert_eq!((page(&one), json(&one)), (page(&two), json(&two)));
    let splits: Vec<&Point> = one.points.iter().filter(|point| point.candidate.layout.is_split()).collect();
    assert_eq!(splits[0].candidate.to_string(), "2P+1D", "{}", page(&one));
    assert!(splits[0].goodput().mean > 1.5 * splits[1].goodput().mean, "{}", page(&one));
    assert!(matches!(one.limit(), Some("GPU prefill" | "GPU")), "{}", page(&one));
    let bought = |what_if| one.gains.iter().find(|gain| gain.what_if == what_if).map(|gain| gain.gain.mean);
    assert!(bought(WhatIf::Unified).or(bought(WhatIf::Prefill)).unwrap() > 0.15, "{}", page(&one));
    assert!(bought(WhatIf::KvMemory).unwrap().abs() < 0.05, "{}", page(&one));
}

#[test]
fn bad_plans_are_refused_in_words() {
    let good = plan(file("one_p_one_d.toml", &[]), 2, goal(1_000_000, 900, 10));
    let fails = |change: &dyn Fn(&mut Plan)| {
        let mut plan = good.clone();
        change(&mut plan);
        plan.run(NonZeroUsize::MIN, &mut |_, _| {}).expect_err("it is wrong").message
    };
    for (part, change) in [
        ("0 GPUs", &(|plan: &mut Plan| plan.gpus = 0) as &dyn Fn(&mut Plan)),
        ("there is no seed", &|plan| plan.seeds.clear()),
        ("group sizes", &|plan| plan.tps = vec![0]),
        ("do not divide", &|plan| plan.tps = vec![4]),
        ("share of requests", &|plan| plan.goal.attain_per_mille = 0),
        ("at least 1s", &|plan| plan.goal.span = Duration::ZERO),
        ("precision", &|plan| plan.precision = 0.0),
        ("no load", &|plan| plan.file.load.clear()),
        ("net_400g", &|plan| {
            plan.links = vec!["net_40g".to_owned()];
            plan.tps = vec![1];
            plan.file.network.near = "net_40g".to_owned();
        }),
        ("has no rate", &|plan| plan.file.load = file("cache_reuse.toml", &[]).load),
        ("no deployment of 2 GPUs is possible", &|plan| {
            plan.file = file("unequal_tp.toml", &["worker.0.gpu=h100_sxm", "worker.1.gpu=h100_sxm"]);
        }),
    ] {
        let message = fails(change);
        assert!(message.contains(part), "no \"{part}\" in: {message}");
    }
}
