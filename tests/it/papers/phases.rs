//! What separating the phases is good for: DistServe's figure 1, and appends where an answer was decoded.

use pd::sim::record::Record;

use super::{Run, off, run_with, runs};

/// The highest rate at which both objectives hold, per second.
fn goodput(variant: &str, mut high: f64) -> f64 {
    let mut low = 0.1;
    let holds = |rate: f64| {
        let run = run_with("distserve_fig1", variant, &[format!("load.0.rate={rate:.4}/s")]);
        run.values["ttft.p90_ms"] <= 400.0 && run.values.get("tpot.p90_ms").is_none_or(|ms| *ms <= 40.0)
    };
    assert!(holds(low) && !holds(high), "{variant}: the rate is between {low} and {high}");
    while high - low > 0.005 * low {
        let middle = f64::midpoint(low, high);
        if holds(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

#[test]
fn phases_apart_serve_twice_as_many_requests() {
    runs("distserve_fig1");
    let together = goodput("together", 8.0);
    let prefill = goodput("prefill", 12.0);
    let decode = goodput("decode", 30.0);
    let apart = goodput("", 30.0) / 3.0;
    let mut wrong = Vec::new();
    for (name, found, published, bound) in [
        ("together", together, 1.6, 10.0),
        ("prefill alone", prefill, 5.6, 10.0),
        ("decoding alone", decode, 10.0, 10.0),
        ("apart, a GPU", apart, 3.3, 10.0),
        ("apart : together", apart / together, 2.1, 10.0),
    ] {
        let off = off(found, published);
        println!("{name}: {found:.2} requests/s, published {published} ({off:+.1} %)");
        if off.abs() > bound {
            wrong.push(format!("{name}: {found:.2}, published {published}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// Mean TTFT and TPOT of second turns, in ms.
fn second_turns(run: &Run) -> (f64, f64) {
    let mut seen = std::collections::BTreeSet::new();
    let second: Vec<&Record> =
        run.outcome.requests.iter().filter(|record| !seen.insert(record.session.expect("a session"))).collect();
    assert_eq!(second.len() * 2, run.outcome.requests.len());
    let mean = |value: fn(&Record) -> Option<u64>| {
        second.iter().map(|record| value(record).expect("a whole answer") as f64).sum::<f64>()
            / second.len() as f64
            / 1e6
    };
    (mean(Record::ttft_ns), mean(Record::tpot_ns))
}

#[test]
fn appends_shorten_second_turns_and_cost_running_ones_little() {
    let runs = runs("ppd");
    for (append, plain, qps, ttft, tpot) in [(&runs[0], &runs[1], 8, -96.0, 7.0), (&runs[2], &runs[3], 16, -94.0, 12.1)]
    {
        let ((ttft_a, tpot_a), (ttft_p, tpot_p)) = (second_turns(append), second_turns(plain));
        println!(
            "QPS {qps}: TTFT {ttft_p:.1} -> {ttft_a:.1} ms ({:+.1} %), TPOT {tpot_p:.2} -> {tpot_a:.2} ms ({:+.1} %); \
             published {ttft:+} %, {tpot:+} %",
            off(ttft_a, ttft_p),
            off(tpot_a, tpot_p)
        );
        assert!(off(ttft_a, ttft_p) < -80.0, "QPS {qps}");
        assert!((0.0..=15.0).contains(&off(tpot_a, tpot_p)), "QPS {qps}");
    }
}
