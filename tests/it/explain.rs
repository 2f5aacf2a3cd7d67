//! Explanations: sums that are exact for every request of many runs, and answers that name the reason.

use pd::core::id::RequestId;
use pd::core::time::Instant;
use pd::sim::dump::dump;
use pd::sim::explain::{Cause, Explanation, Wanted, explain};
use pd::sim::scenario::{self, Overrides};

use crate::replay::{Scratch, pd};
use crate::root;

/// Explains requests of a variant of a scenario.
fn explained(file: &str, variant: &str, set: &[&str], wanted: Wanted) -> Vec<Explanation> {
    let path = root().join("scenarios").join(file);
    let overrides = Overrides { set: set.iter().map(|&change| change.to_owned()).collect(), ..Overrides::default() };
    let mut make = || {
        let cases = scenario::load(&path, &overrides).unwrap_or_else(|error| panic!("{error}"));
        let is_wanted = |name: &str| name.split_once('/').map_or("base", |(_, variant)| variant) == variant;
        let mut case = cases.into_iter().find(|case| is_wanted(&case.name)).expect("there is such a variant");
        case.setup.check = false;
        case.setup
    };
    explain(&mut make, wanted).unwrap_or_else(|error| panic!("{error}")).1
}

fn one(variant: &str, request: u64) -> Explanation {
    explained("restart_reload.toml", variant, &[], Wanted::One(RequestId(request))).remove(0)
}

#[test]
fn parts_add_up_to_ttft_and_e2e_exactly_for_every_request() {
    let mut count = 0;
    for (file, variant, set) in [
        ("restart_reload.toml", "base", &[][..]),
        ("restart_reload.toml", "hole", &[]),
        ("restart_reload.toml", "split_in_flight", &[]),
        ("one_p_one_d.toml", "base", &[]),
        ("unequal_tp.toml", "base", &[]),
        ("multi_turn.toml", "base", &[]),
        ("host_pressure.toml", "base", &[]),
        ("long_context.toml", "base", &[]),
        ("overload.toml", "base", &[]),
    ] {
        for explanation in explained(file, variant, set, Wanted::All) {
            count += 1;
            let record = &explanation.story.record;
            let name = format!("{file}/{variant} request {}", explanation.story.request);
            let total = |sum: &pd::sim::explain::Sum| sum.parts.iter().map(|(_, ns)| ns).sum::<u64>();
            if let Some(ttft) = record.ttft_ns() {
                assert_eq!(total(&explanation.ttft), ttft, "{name}: TTFT");
                let rest = explanation.rest.as_ref().expect("what has a first token has a rest");
                if let Some(e2e) = record.e2e_ns() {
                    assert_eq!(ttft + total(rest), e2e, "{name}: E2E");
                }
                assert_eq!(rest.of(Cause::Unknown), 0, "{name}: {:?}", rest.parts);
            }
            assert_eq!(explanation.ttft.of(Cause::Unknown), 0, "{name}: {:?}", explanation.ttft.parts);
            assert!(!explanation.text().is_empty() && explanation.json().is_object());
        }
    }
    assert!(count > 300, "only {count} requests");
}

#[test]
fn a_reload_is_explained_by_the_restart_the_scan_and_the_disk() {
    insta::assert_snapshot!("explain_base", one("base", 1).text());
}

#[test]
fn a_hole_is_explained_by_who_removed_the_page_and_when_it_is_healed() {
    insta::assert_snapshot!("explain_hole", one("hole", 1).text());
}

#[test]
fn each_way_in_which_a_reload_goes_wrong_has_its_own_reason_and_advice() {
    for (variant, says, advice) in [
        (
            "torn",
            &["Page 200 of the prompt (tokens 12,800 to 12,863)", "cut short at 61.000000 s"][..],
            "written again at",
        ),
        (
            "dtype",
            &["another namespace (393 objects were skipped)", "never taken for KV of another"],
            "dtype, page_size",
        ),
        ("storage_lost", &["until it was emptied at 61.000000 s", "L3 held 393 pages"], "stored again (393 pages"),
    ] {
        let text = one(variant, 1).text().split_whitespace().collect::<Vec<_>>().join(" ");
        for part in says {
            assert!(text.contains(part), "{variant}: {part} is missing in\n{text}");
        }
        assert!(text.split("what to do").nth(1).is_some_and(|rest| rest.contains(advice)), "{variant}: {text}");
    }
}

#[test]
fn a_pair_is_explained_from_routing_to_the_push() {
    let explanation = explained("one_p_one_d.toml", "base", &[], Wanted::Slowest(1)).remove(0);
    assert_eq!(explanation.story.decisions.len(), 1);
    assert_eq!(explanation.story.decisions[0].alternatives.len(), 2);
    assert!(explanation.ttft.of(Cause::Forward) > 0);
    assert!(explanation.ttft.of(Cause::Handoff) > 0, "{:?}", explanation.ttft.parts);
    let json = explanation.json();
    assert_eq!(json["routing"][0]["alternatives"].as_array().map(Vec::len), Some(2));
    assert!(json["moves"].as_array().is_some_and(|moves| moves.iter().any(|one| one["kind"] == "push")));
}

#[test]
fn a_dump_says_what_each_request_waits_for() {
    let path = root().join("scenarios/restart_reload.toml");
    let case = || scenario::load(&path, &Overrides::default()).unwrap().remove(0).setup;
    // In the middle of the fetch.
    let (text, is_over) = dump(case(), Instant(90_200_000_000));
    assert!(!is_over);
    assert!(text.contains("request 1 Waiting") && text.contains("its pages from L3"), "{text}");
    assert!(text.contains("prefetch") && text.contains("job "), "{text}");
    assert!(text.contains("fetch ") && text.contains("against compute "), "{text}");

    let path = root().join("scenarios/overload.toml");
    let case = || scenario::load(&path, &Overrides::default()).unwrap().remove(0).setup;
    let (text, _) = dump(case(), Instant(2_000_000_000));
    assert!(text.contains("Waiting: ") && text.contains("waits for its turn"), "{text}");
}

#[test]
fn the_command_explains_dumps_and_refuses_what_makes_no_sense() {
    let folder = Scratch::new("explain");
    let base = "sim scenarios/restart_reload.toml --variant base";
    for (flags, code, says) in [
        ("--explain 1", 0, "TTFT 530"),
        ("--explain worst", 0, "request 0:"),
        ("--explain all-slow --json", 0, "\"cause\":\"fetch\""),
        ("--explain 7", 2, "there is no request 7; there are requests 0 to 1"),
        ("--explain wurst", 2, "did you mean worst?"),
        ("--dump --until 90.2s", 0, "its pages from L3"),
        ("--dump", 2, "--until"),
    ] {
        let (output, text) = pd(&folder, &format!("{base} {flags}"));
        assert_eq!(output.status.code(), Some(code), "{flags}: {text}");
        assert!(text.contains(says), "{flags}: {text}");
    }
}
