//! What moving KV takes: RDMA, incast, small pieces.

use super::{off, runs};

/// Mooncake, vLLM v1 support benchmark: tokens, MiB of KV and GB/s (2^30), from which the time follows with four digits.
const MOONCAKE: [(u32, f64, f64); 9] = [
    (128, 20.25, 36.53),
    (256, 38.25, 60.78),
    (512, 74.25, 78.73),
    (1024, 146.25, 95.23),
    (2048, 290.25, 112.88),
    (4096, 578.25, 119.00),
    (8192, 1154.25, 127.57),
    (16384, 2306.25, 137.09),
    (32768, 4610.25, 142.25),
];

#[test]
fn nine_rdma_transfers_take_what_mooncake_measured() {
    let run = runs("transfer_h800").remove(0);
    assert_eq!(run.outcome.transfers.len(), MOONCAKE.len());
    for ((tokens, mebibytes, rate), transfer) in MOONCAKE.iter().zip(&run.outcome.transfers) {
        assert_eq!(transfer.bytes as f64, mebibytes * 1_048_576.0, "the published size");
        let published = mebibytes / 1024.0 / rate * 1e3;
        let found = transfer.ended.ns_since(transfer.started) as f64 / 1e6;
        let off = off(found, published);
        println!("{tokens:6} tokens: {found:6.3} ms, published {published:6.3} ({off:+.1} %)");
        assert!(off.abs() <= 5.0, "{tokens} tokens: {found} ms, published {published}");
    }
}

#[test]
fn eight_senders_share_the_receivers_link() {
    let [eight, single] = runs("incast").try_into().unwrap_or_else(|_| panic!("two runs"));
    let alone = &single.outcome.transfers[0];
    let (alone_ns, bytes) = (alone.ended.ns_since(alone.started), alone.bytes);
    // request + 128 pages of 2 us + latency, as in hw/net_400g.toml
    let setup_ns = 395_000 + 128 * 2_000 + 5_000;
    let rate = 45e9;
    assert_eq!(alone_ns, setup_ns + (bytes as f64 / rate * 1e9).ceil() as u64);
    let transfers = &eight.outcome.transfers;
    let from = transfers.iter().map(|one| one.started).min().expect("eight");
    let to = transfers.iter().map(|one| one.ended).max().expect("eight");
    let total: u64 = transfers.iter().map(|one| one.bytes).sum();
    let aggregate = total as f64 / (to.ns_since(from) - setup_ns) as f64 * 1e9;
    println!("8 to 1: {:.2} GB/s together on a link of {:.2}", aggregate / 1e9, rate / 1e9);
    assert!(aggregate <= rate, "{aggregate}");
    assert!(aggregate > 0.99 * rate, "nothing but the link limits: {aggregate}");
    for one in transfers {
        let ns = one.ended.ns_since(one.started);
        // Each of the eight single times is rounded up to a whole ns.
        assert!(ns + 8 >= 8 * alone_ns - 7 * setup_ns, "{ns} ns, alone {alone_ns}");
    }
    println!("each {:.2} ms, alone {:.2} ms", transfers[0].ended.ns_since(from) as f64 / 1e6, alone_ns as f64 / 1e6);
}

#[test]
fn small_reads_reach_a_tenth_of_the_bandwidth_of_large_ones() {
    // Time to first token of the second request, less what it takes with everything in L2: the reads.
    let rates: Vec<f64> = runs("small_pages")
        .iter()
        .map(|run| {
            let store = &run.outcome.stores[0];
            assert!((store.disk.read.bytes as f64 - 629_145_600.0).abs() < 1.0, "the same bytes");
            let ms = run.values["request.1.ttft_ms"];
            println!("{}: {} reads, {ms:.1} ms", run.name, store.disk.read.commands);
            store.disk.read.bytes as f64 / ms / 1e6
        })
        .collect();
    let ratio = rates[0] / rates[1];
    println!("disk to device: {:.2} and {:.2} GB/s, {ratio:.1}:1; published about 10:1", rates[0], rates[1]);
    assert!((6.7..=15.0).contains(&ratio), "{ratio}");
}

#[test]
fn fifteen_thousand_segments_take_six_tenths_of_a_second() {
    let times: Vec<f64> = runs("segments")
        .iter()
        .map(|run| run.outcome.transfers[0].ended.ns_since(run.outcome.transfers[0].started) as f64 / 1e9)
        .collect();
    println!("15,000 segments: {:.3} s, published 0.6 s of posting; 235 pages: {:.3} s", times[0], times[1]);
    assert!(off(times[0], 0.6).abs() <= 5.0, "{times:?}");
    assert!(times[1] < 0.06, "{times:?}");
}

#[test]
fn layer_wise_hand_offs_hide_what_serialised_ones_do_not() {
    let e2e: Vec<f64> = runs("splitwise_overlap").iter().map(|run| run.values["e2e.mean_ms"]).collect();
    let [layer_wise, serialised, together] = e2e[..] else { panic!("three runs") };
    // A token takes 31 ms; what comes late is the second one.
    let second = |e2e: f64| 100.0 * (e2e - together) / 31.0;
    println!(
        "second token: serialised {:+.1} %, layer-wise {:+.1} %; published +64, +16.5",
        second(serialised),
        second(layer_wise)
    );
    println!(
        "whole answer: serialised {:+.2} %, layer-wise {:+.2} %; published +3, +0.8",
        off(serialised, together),
        off(layer_wise, together)
    );
    assert!(off(second(layer_wise), 16.5).abs() <= 10.0);
    assert!(off(second(serialised), 64.0).abs() <= 25.0);
    let ratio = second(serialised) / second(layer_wise);
    println!("{ratio:.1}:1, published 3.9:1");
    assert!((3.0..=5.0).contains(&ratio), "{ratio}");
    assert!((2.0..=4.0).contains(&off(serialised, together)));
    assert!((0.4..=1.2).contains(&off(layer_wise, together)));
}
