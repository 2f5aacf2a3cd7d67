//! Figures that are known from elsewhere: queueing theory, and cache studies of a public trace.

use std::path::Path;

use pd::sim::record::{Outcome, Record};
use pd::sim::scenario::{self, Overrides};
use pd::sim::stats::Samples;
use pd::sim::world::World;

use crate::root;

fn run(scenario: &Path, set: &[String]) -> Outcome {
    run_variant(scenario, 0, set)
}

fn run_variant(scenario: &Path, variant: usize, set: &[String]) -> Outcome {
    let overrides = Overrides { set: set.to_vec(), ..Overrides::default() };
    let case = scenario::load(scenario, &overrides).unwrap_or_else(|error| panic!("{error}")).remove(variant);
    World::new(case.setup).run()
}

/// Mean wait and its 95 % confidence interval from batch means, in service times of 1 ms.
fn wait(outcome: &Outcome) -> (f64, f64) {
    let mut samples = Samples::new();
    // The first tenth is warm-up.
    let from = outcome.requests.len() / 10;
    samples.extend(
        outcome.requests[from..]
            .iter()
            .map(|record| record.admitted.expect("all were served").ns_since(record.arrival)),
    );
    let interval = samples.batch_means(30).expect("enough samples");
    (interval.mean / 1e6, interval.half_width / 1e6)
}

fn queue(rho: f64, requests: u64, exponential: bool) -> (f64, f64) {
    let mut set = vec![format!("load.0.rate={:.0}/s", rho * 1000.0), format!("load.0.requests={requests}")];
    if exponential {
        // 1,000 tokens of 1 us each in the mean: the same mean service time, now exponential.
        set.push("load.0.prompt_tokens={ exponential = { mean = 1000, max = 60_000 } }".to_owned());
        set.push("worker.0.service={ prefill_token = \"1us\", ideal_links = true }".to_owned());
        set.push("worker.0.chunked_prefill_size=65536".to_owned());
    }
    wait(&run(&root().join("scenarios/md1.toml"), &set))
}

/// Pollaczek-Khinchine: W = rho (1 + c^2) / (2 (1 - rho)) service times, c = 0 for M/D/1 and 1 for M/M/1.
fn expected(rho: f64, exponential: bool) -> f64 {
    rho * if exponential { 2.0 } else { 1.0 } / (2.0 * (1.0 - rho))
}

#[test]
fn waiting_times_are_those_of_m_d_1_and_m_m_1() {
    // PD_ORACLE_REQUESTS changes how many; the interval widens with fewer.
    let requests = std::env::var("PD_ORACLE_REQUESTS").ok().and_then(|text| text.parse().ok()).unwrap_or(1_000_000);
    for exponential in [false, true] {
        for rho in [0.3, 0.6, 0.9] {
            let (mean, half_width) = queue(rho, requests, exponential);
            let oracle = expected(rho, exponential);
            println!(
                "{} rho {rho}: wait {mean:.4} +- {half_width:.4} service times, theory {oracle:.4}",
                if exponential { "M/M/1" } else { "M/D/1" }
            );
            assert!(
                (mean - oracle).abs() <= half_width,
                "rho {rho}, exponential {exponential}: {mean:.4} +- {half_width:.4}, theory {oracle:.4}"
            );
        }
    }
}

/// Token hit rate in percent over requests that arrived in a window of the trace, prompts counted as the studies do.
fn hit_rate(requests: &[Record], seconds: std::ops::Range<f64>) -> f64 {
    let (mut hits, mut tokens) = (0, 0);
    for record in requests {
        if !seconds.contains(&(record.arrival.0 as f64 / 1e9)) {
            continue;
        }
        let served = record.served.as_ref().expect("all were served");
        let counted = u64::from(record.counted_tokens);
        hits += u64::from(served.device + served.host + served.storage).min(counted);
        tokens += counted;
    }
    100.0 * hits as f64 / tokens as f64
}

/// A separate study: LRU over the conversation trace in sequence, blocks of 512, prompts only.
#[test]
fn hit_rates_of_the_conversation_trace_are_those_of_an_lru_cache() {
    let file = root().join("scenarios/oracles/lru_curve.toml");
    for (tokens, percent) in
        [(328_000, 4.33), (1_000_000, 5.43), (4_000_000, 17.83), (16_000_000, 33.60), (160_000_000, 37.36)]
    {
        // One page more than the study's cache: the token that is computed has to be somewhere.
        let pool = (tokens / 512 + 1) * 512;
        let outcome = run(&file, &[format!("worker.max_total_tokens={pool}")]);
        let rate = hit_rate(&outcome.requests, 0.0..1e9);
        println!("LRU of {tokens} tokens: {rate:.2} % of tokens, study {percent}");
        assert!((rate - percent).abs() <= 0.1, "{tokens}: {rate:.2} %, study {percent}");
    }
}

/// The same study: the only cache restarts at half time.
#[test]
fn hit_rates_after_a_restart_are_those_of_the_study() {
    let file = root().join("scenarios/oracles/restart_table.toml");
    let half = 1768.0;
    for (variant, whole, windows) in [(0, 36.58, [42.6, 38.3, 38.0]), (1, 34.72, [7.5, 18.6, 26.4])] {
        let outcome = run_variant(&file, variant, &[]);
        let case = ["disk kept", "all lost"][variant];
        let rates: Vec<f64> =
            [60.0, 300.0, 600.0].iter().map(|span| hit_rate(&outcome.requests, half..half + span)).collect();
        let all = hit_rate(&outcome.requests, 0.0..1e9);
        println!("{case}: +60/+300/+600 s {rates:.2?} %, whole trace {all:.2} %; study {windows:?}, {whole}");
        for (rate, study) in rates.iter().zip(windows) {
            assert!((rate - study).abs() <= 0.1, "{case}: {rates:.2?}, study {windows:?}");
        }
        assert!((all - whole).abs() <= 0.1, "{case}: {all:.2}, study {whole}");
    }
}
