//! The page: one file, no network, and nothing that a user names becomes markup.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use serde_json::Value;

use super::*;
use crate::report;
use crate::report::collect::Plan;
use crate::scenario::{self, Case, Overrides};
use crate::world::World;

fn case(file: &str, set: &[&str]) -> Case {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios").join(file);
    let overrides = Overrides { set: set.iter().map(ToString::to_string).collect(), ..Overrides::default() };
    scenario::load(&path, &overrides).unwrap_or_else(|error| panic!("{error}")).remove(0)
}

/// The page of a case that is called `name`, and the data in it.
fn drawn(case: Case, name: &str) -> (String, Value) {
    let collector = Rc::new(RefCell::new(Collector::new(Plan::of(&case.setup))));
    let mut world = World::new(case.setup);
    world.observe(Box::new(Rc::clone(&collector)));
    let outcome = world.run();
    let values = report::values(&outcome);
    let broken: Vec<Broken> = case.gates.iter().filter_map(|gate| gate.check(&values).err()).collect();
    let about = About { name, about: name, gates: &case.gates, values: &values, broken: &broken };
    let page = page(&about, &collector.borrow(), &outcome);
    let (_, behind) = page.split_once("id=\"data\">").expect("the page has data");
    let (json, _) = behind.split_once("</script>").expect("the data ends");
    let data = serde_json::from_str(json).expect("the data are JSON");
    (page, data)
}

#[test]
fn what_a_user_names_never_becomes_markup() {
    let name = "</script><script>alert('1')</script><!-- & \"quoted\"";
    let (page, data) = drawn(case("short_prompt.toml", &[]), name);
    assert_eq!(data["name"], name);
    assert_eq!(data["about"], name);
    assert_eq!(page.matches("</script>").count(), 2, "the data and the script end once each");
    assert!(!page.contains("alert('1')</script>"));
    let title = "<title>&lt;/script&gt;&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&lt;!-- &amp; &quot;quoted&quot; · pd</title>";
    assert!(page.contains(title));
}

#[test]
fn a_name_with_a_placeholder_stays_text() {
    let (page, data) = drawn(case("short_prompt.toml", &[]), "{{style}}");
    assert_eq!(data["name"], "{{style}}");
    assert!(page.contains("<title>{{style}} · pd</title>"));
}

#[test]
fn the_page_needs_no_network() {
    let (page, _) = drawn(case("short_prompt.toml", &[]), "short_prompt");
    for mark in ["http://", "https://", "src=", "@import", "url(", "fetch(", "XMLHttpRequest", "innerHTML"] {
        assert!(!page.contains(mark), "the page contains {mark}");
    }
}

#[test]
fn a_restart_is_on_the_page() {
    let (_, data) = drawn(case("restart_reload.toml", &[]), "restart_reload");
    let rows = data["requests"]["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 2);
    // Slowest first: the first request computes, the second one fetches most of its time.
    assert_eq!(rows[0][0], 0);
    let phases = data["phases"].as_array().expect("names");
    let longest = |row: &Value| {
        let ends: Vec<f64> = row[2].as_array().expect("phases").iter().filter_map(Value::as_f64).collect();
        let mut from = 0.0;
        let mut times: Vec<(f64, usize)> = Vec::new();
        for part in ends.chunks_exact(2) {
            times.push((part[1] - from, part[0] as usize));
            from = part[1];
        }
        let (_, phase) = times.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).expect("a phase");
        phases[phase].as_str().expect("a name").to_owned()
    };
    assert_eq!((longest(&rows[0]).as_str(), longest(&rows[1]).as_str()), ("prefill", "prefetch"));
    assert_eq!(data["marks"].as_array().map(Vec::len), Some(3), "restart, down, up");
    assert_eq!(data["gates"].as_array().map(Vec::len), Some(7));
    assert!(data["gates"].as_array().expect("gates").iter().all(|gate| gate[1].is_null()));
    let tiers = data["bins"]["tiers"].as_array().expect("tiers");
    let storage: u64 = tiers[2].as_array().expect("bins").iter().filter_map(Value::as_u64).sum();
    assert_eq!(storage, 25152);
}

#[test]
fn many_requests_are_shown_in_part_and_all_are_counted() {
    let (_, data) = drawn(case("two_p_two_d.toml", &[]), "two_p_two_d");
    let requests = &data["requests"];
    assert_eq!(requests["count"], 600);
    let rows = requests["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 200 + 200, "the worst, and one in two of the others");
    let worst: Vec<f64> = rows[..200].iter().filter_map(|row| row[3].as_f64()).collect();
    assert!(worst.is_sorted_by(|a, b| a >= b));
    assert!(rows[200..].iter().filter_map(|row| row[3].as_f64()).all(|ttft| ttft <= worst[199]));
    assert_eq!(data["moves"]["count"], 600);
    assert!(data["links"].as_array().is_some_and(|links| links.len() >= 4));
}

#[test]
fn requests_that_were_refused_at_once_do_not_hide_slow_ones() {
    let (_, data) = drawn(case("overload.toml", &[]), "overload");
    let rows = data["requests"]["rows"].as_array().expect("rows");
    assert!(rows.len() > 300);
    assert!(rows[..200].iter().all(|row| row[8] == ""), "the slowest got an answer");
    assert!(rows[200..].iter().any(|row| row[8] != ""), "some that were refused are in the sample");
}
