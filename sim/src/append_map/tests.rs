//! Small maps of the scenario's own workers.

use std::path::Path;

use pd_core::router::AppendReason;

use super::cell::{Decision, Sample};
use super::*;
use crate::scenario::Overrides;

fn document(set: &[&str]) -> Document {
    let overrides = Overrides { set: set.iter().map(|&one| one.to_owned()).collect(), ..Overrides::default() };
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios/append_prefill.toml");
    Document::read(&file, &overrides).unwrap_or_else(|error| panic!("{error}"))
}

fn run(set: &[&str], threads: usize) -> Result<Map, ScenarioError> {
    let document = document(set);
    let config = document.append_map().expect("the file has a map");
    config.run(&document, NonZeroUsize::new(threads).unwrap(), &mut |_| {})
}

const SMALL: [&str; 5] = [
    "append_map.reuse=[0.0, 0.5, 0.9]",
    "append_map.tokens=[\"8Ki\"]",
    "append_map.decodes=[16]",
    "append_map.links=[\"net_400g\", \"net_25g\"]",
    "append_map.expect=[]",
];

/// The sides differ where they must: the pair computes the whole prompt whatever is reused, the append only what is
/// new, and it is the append that holds up the others.
#[test]
fn both_sides_are_simulated_and_do_not_depend_on_threads() {
    let (one, two) = (run(&SMALL, 1).unwrap(), run(&SMALL, 2).unwrap());
    assert_eq!((page(&one), json(&one)), (page(&two), json(&two)));
    let row = one.row("net_400g", 16, 8192);
    assert_eq!(row.iter().map(|cell| cell.reused_tokens).collect::<Vec<_>>(), [0, 4096, 7360]);
    assert!(row[0].append.ttft_ns > 3.0 * row[2].append.ttft_ns, "{row:?}");
    assert!(row[0].pair.ttft_ns < 1.1 * row[2].pair.ttft_ns, "{row:?}");
    for cell in &one.cells {
        assert!(cell.append.tpot_ns > cell.pair.tpot_ns, "{cell:?}");
        let lost = cell.lost_share(one.config.window_tokens);
        assert!((0.1..1.1).contains(&lost), "{lost} {cell:?}");
    }
}

#[test]
fn a_crossover_lies_between_the_cells_where_the_winner_changes() {
    let cell = |reuse, append_ns| Found {
        link: "l".to_owned(),
        decodes: 1,
        tokens: 1,
        reuse,
        reused_tokens: 0,
        pair: Sample { ttft_ns: 100.0, tpot_ns: 10.0 },
        append: Sample { ttft_ns: append_ns, tpot_ns: 11.0 },
        router: Decision { side: Side::Pair, reason: AppendReason::default() },
    };
    let row = [cell(0.0, 150.0), cell(0.5, 110.0), cell(0.9, 70.0)];
    assert!((Map::crossover(&row, By::Ttft).unwrap() - 0.6).abs() < 1e-9);
    assert_eq!(Map::crossover(&row, By::Tpot), None, "never");
    assert_eq!(Map::crossover(&row[2..], By::Ttft), Some(0.0), "always");
    assert!(Map::crossover(&row, By::Weighted(1.0)).unwrap() > 0.6, "a weight of TPOT speaks for the pair");
}

#[test]
fn claims_that_do_not_hold_say_what_was_found() {
    let mut set = SMALL;
    set[4] = "append_map.expect=[\
        { kind = \"wins\", side = \"pair\", by = \"ttft\", reuse_min = 0.9 },\
        { kind = \"wins\", side = \"pair\", by = \"ttft\", decodes_min = 17 },\
        { kind = \"wins\", side = \"append\", by = \"ttft\", reuse_min = 0.9 },\
        { kind = \"router_agrees\", by = { weighted = 1.0 }, percent_min = 100.5 }]";
    let broken = run(&set, 2).unwrap().broken();
    assert_eq!(broken.len(), 3, "{broken:?}");
    assert!(broken[0].contains("Pair wins Ttft in 0 of 2 cells; not with 8192 tokens, reuse 0.9, 16 decodes"));
    assert!(broken[1].contains("no cell is in this region"));
    assert!(broken[2].contains("less than 100.5 %"));
}

#[test]
fn bad_maps_are_refused_with_key() {
    for (set, part) in [
        ("append_map.reuse=[]", "reuse is empty"),
        ("append_map.reuse=[0.5, 1.0]", "reuse has 1; it must be from 0 to less than 1"),
        ("append_map.reuse=[0.5, 0.2]", "reuse must ascend"),
        ("append_map.tokens=[0]", "tokens has 0"),
        ("append_map.decodes=[5000]", "decodes has 5000"),
        ("append_map.w_tpot=[-1.0]", "w_tpot has -1"),
        ("append_map.window_tokens=0", "window_tokens is 0"),
        ("append_map.links=[\"net_40g\"]", "net_400g"),
        ("worker.0.mode=unified", "one prefill worker and one decode worker"),
        ("worker.max_total_tokens=4096", "is there memory for"),
    ] {
        let error = run(&[set], 1).expect_err(set).to_string();
        assert!(error.contains(part), "{set}: {error}");
    }
}
