//! Loads: arrivals, lengths, errors.

use std::collections::{BTreeMap, BTreeSet};

use pd_core::id::{PageKey, Token};
use pd_core::key::page_key;

use super::*;

mod oracle;

const PAGE: u32 = 16;
const SECOND: u64 = 1_000_000_000;

/// All kinds at once, each answer taking a time that depends on the request.
#[test]
fn equal_seeds_give_equal_arrivals_and_other_seeds_others() {
    let run = |seed| play(&mut loads(ALL_KINDS, seed), 40_000_000);
    let (one, again, other) = (run(1), run(1), run(2));
    assert_eq!(one.len(), 40 * 5 + 3 * 4 + 30 + 2);
    assert_eq!(one, again);
    assert_ne!(one, other);
    let ordinals: BTreeSet<u64> = one.iter().map(|(_, arrival)| arrival.ordinal).collect();
    assert_eq!(ordinals.len(), one.len(), "ordinals are unique over all loads");
    assert!(one.iter().all(|(_, arrival)| arrival.prompt.is_well_formed(PAGE)));
}

#[test]
fn poisson_gaps_have_the_mean_and_the_variance_of_their_rate() {
    let arrivals = play(
        &mut loads(
            "[[load]]\nkind = 'poisson'\nrate = '3.4/s'\nrequests = 20000\nprompt_tokens = 1\noutput_tokens = 1",
            5,
        ),
        0,
    );
    let times: Vec<u64> = arrivals.iter().map(|(at, _)| at.0).collect();
    let gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]) as f64 / 1e9).collect();
    let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
    let variance = gaps.iter().map(|gap| (gap - mean) * (gap - mean)).sum::<f64>() / gaps.len() as f64;
    // Standard errors: 0.7 % of the mean, 2 % of the variance.
    assert!((mean * 3.4 - 1.0).abs() < 0.02, "{mean}");
    assert!((variance * 3.4 * 3.4 - 1.0).abs() < 0.06, "{variance}");
}

#[test]
fn bursts_and_fixed_intervals_come_when_they_should() {
    let drawn = "requests = 6\nprompt_tokens = 5\noutput_tokens = 1\nstart = '1s'";
    let times = |text: &str| -> Vec<u64> {
        let arrivals = play(&mut loads(&format!("[[load]]\n{text}\n{drawn}"), 1), 0);
        arrivals.iter().map(|(at, _)| at.0 / 1_000_000).collect()
    };
    assert_eq!(times("kind = 'fixed'\nevery = '250ms'"), [1000, 1250, 1500, 1750, 2000, 2250]);
    assert_eq!(times("kind = 'burst'\nsize = 4\nevery = '10s'"), [1000, 1000, 1000, 1000, 11_000, 11_000]);
}

#[test]
fn an_on_off_load_is_silent_while_it_is_off() {
    let text = "[[load]]\nkind = 'on_off'\nrate = '20/s'\non = '5s'\noff = '15s'\nrequests = 1000\nprompt_tokens = 5\noutput_tokens = 1";
    let arrivals = play(&mut loads(text, 1), 0);
    assert!(arrivals.iter().all(|(at, _)| at.0 % (20 * SECOND) < 5 * SECOND));
    let last = arrivals.last().expect("arrivals").0;
    assert!(last.0 > 160 * SECOND && last.0 < 240 * SECOND, "1000 requests take 50 s of on: {last}");
}

#[test]
fn a_closed_loop_keeps_its_concurrency_and_its_requests_do_not_depend_on_speed() {
    let text = "[[load]]\nkind = 'closed'\nconcurrency = 4\nrequests = 50\nthink = '1s'\n\
                prompt_tokens = { uniform = [1, 500] }\noutput_tokens = 9";
    let mut load = loads(text, 3);
    let first: Vec<_> = std::iter::from_fn(|| load.next_arrival()).collect();
    assert_eq!(first.len(), 4);
    assert!(first.iter().all(|(at, _)| *at == Instant::ZERO));
    let (at, arrival) = load.finished(first[2].1.ordinal, Instant(5)).expect("a next question");
    assert_eq!((at, arrival.ordinal), (Instant(5 + SECOND), 4));
    assert!(load.failed(first[0].1.ordinal, Instant(6)).is_some(), "a refused client asks again");

    let [slow, fast] = [SECOND, 1].map(|answer_ns| play(&mut loads(text, 3), answer_ns));
    assert_eq!(slow.len(), 50);
    let prompts = |arrivals: &[(Instant, Arrival)]| {
        let by_ordinal: BTreeMap<u64, Prompt> =
            arrivals.iter().map(|(_, arrival)| (arrival.ordinal, arrival.prompt.clone())).collect();
        by_ordinal
    };
    assert_eq!(prompts(&slow), prompts(&fast));
}

#[test]
fn groups_share_exactly_the_full_pages_of_their_prefix() {
    let text = "[[load]]\nkind = 'fixed'\nevery = '1s'\nrequests = 400\nprompt_tokens = { uniform = [100, 200] }\noutput_tokens = 1\n\
                prefixes = [{ tokens = 1000, weight = 3 }, { tokens = 50 }, { tokens = 0 }]";
    let arrivals = play(&mut loads(text, 1), 0);
    let mut groups: BTreeMap<PageKey, Vec<&Prompt>> = BTreeMap::new();
    for (_, arrival) in &arrivals {
        groups.entry(arrival.prompt.keys[0]).or_default().push(&arrival.prompt);
    }
    let alone = groups.values().filter(|group| group.len() == 1).count();
    let mut together: Vec<_> = groups.values().filter(|group| group.len() > 1).collect();
    together.sort_by_key(|group| group.len());
    assert_eq!(together.len(), 2);
    assert!(alone.abs_diff(80) < 25 && together[1].len().abs_diff(240) < 30, "weights 3:1:1 of 400, alone {alone}");
    for (group, prefix_tokens) in together.iter().zip([50, 1000]) {
        let shared = (prefix_tokens / PAGE) as usize;
        let different: BTreeSet<_> = group.iter().map(|prompt| prompt.keys[shared]).collect();
        assert_eq!(different.len(), group.len());
        assert!(group.iter().all(|prompt| prompt.keys[..shared] == group[0].keys[..shared]));
        assert!(group.iter().all(|prompt| prompt.length >= prefix_tokens + 100));
    }
}

/// A model of a machine keeps the keys of all pages whose KV is computed: those of the prompt, and those it fills by
/// generating, which it keys by their tokens. The last generated token is never computed on.
#[test]
fn a_turn_finds_exactly_the_pages_that_the_turns_before_have_committed() {
    for (page_size, think) in [(1, "0s"), (16, "2s"), (64, "2s")] {
        let text = format!(
            "[[load]]\nkind = 'sessions'\nsessions = 8\nturns = 6\nthink = '{think}'\nfirst_prompt_tokens = {{ uniform = [1, 400] }}\n\
             user_tokens = {{ uniform = [1, 90] }}\noutput_tokens = {{ uniform = [1, 150] }}"
        );
        let mut load = loads_of(&text, 11, page_size);
        let mut cache: BTreeSet<PageKey> = BTreeSet::new();
        let mut committed: BTreeMap<u64, u32> = BTreeMap::new();
        let mut turns = 0;
        play_with(&mut load, |_, arrival| {
            turns += 1;
            let prompt = &arrival.prompt;
            let hit = prompt.keys.iter().take_while(|key| cache.contains(key)).count() as u32;
            let before = committed.get(&arrival.session).copied().unwrap_or(0);
            assert_eq!(hit, before / page_size, "turn {} of session {}", arrival.turn, arrival.session);
            // The machine computes the prompt, then each generated token but the last.
            cache.extend(&prompt.keys);
            let mut parent = prompt.keys.last().copied().unwrap_or(prompt.root);
            let mut page: Vec<Token> = prompt.tail(page_size).to_vec();
            for position in 0..arrival.output_tokens - 1 {
                page.push(arrival.answer.token(position));
                if page.len() == page_size as usize {
                    parent = page_key(parent, &page);
                    cache.insert(parent);
                    page.clear();
                }
            }
            committed.insert(arrival.session, prompt.length + arrival.output_tokens - 1);
            1_000_000
        });
        assert_eq!(turns, 48);
    }
}

#[test]
fn what_a_session_says_does_not_depend_on_how_fast_others_are_served() {
    let text = "[[load]]\nkind = 'sessions'\nsessions = 5\nturns = { uniform = [1, 4] }\nthink = { exponential = '1s' }\nrate = '1/s'\n\
                first_prompt_tokens = { uniform = [1, 400] }\nuser_tokens = { uniform = [1, 90] }\noutput_tokens = 20";
    let said = |answer_ns| -> BTreeMap<(u64, u32), Prompt> {
        let arrivals = play(&mut loads(text, 1), answer_ns);
        arrivals.into_iter().map(|(_, arrival)| ((arrival.session, arrival.turn), arrival.prompt)).collect()
    };
    assert_eq!(said(1), said(30 * SECOND));
}

#[test]
fn a_failed_turn_ends_its_session() {
    let text = "[[load]]\nkind = 'sessions'\nsessions = 1\nturns = 3\nfirst_prompt_tokens = 9\nuser_tokens = 9\noutput_tokens = 9";
    let mut load = loads(text, 1);
    let (_, arrival) = load.next_arrival().expect("the first turn");
    assert!(load.failed(arrival.ordinal, Instant(1)).is_none());
    assert!(load.finished(arrival.ordinal, Instant(2)).is_none(), "nobody waits for this answer any more");
}

#[test]
fn contents_of_a_list_share_by_name_and_by_prefix() {
    let text = "[[load]]\nkind = 'list'\nrequests = [
        { at = '60s', prompt_tokens = 1000, content = 'A' },
        { at = '0s', prompt_tokens = 500, output_tokens = 8, content = 'A' },
        { at = '60s', prompt_tokens = 800, content = 'B', prefix = { of = 'A', tokens = 330 } },
        { at = '61s', prompt_tokens = 900, content = 'B' },
        { at = '62s', prompt_tokens = 900, prefix = { of = 'B', tokens = 640 }, priority = 3 },
        { at = '62s', prompt_tokens = 900 },
    ]";
    let arrivals = play(&mut loads(text, 1), 0);
    assert_eq!(arrivals.iter().map(|(at, _)| at.0 / SECOND).collect::<Vec<_>>(), [0, 60, 60, 61, 62, 62]);
    assert_eq!(arrivals.iter().map(|(_, arrival)| arrival.ordinal).collect::<Vec<_>>(), [1, 0, 2, 3, 4, 5]);
    let shared = |one: usize, other: usize| {
        let (one, other) = (&arrivals[one].1.prompt.keys, &arrivals[other].1.prompt.keys);
        one.iter().zip(other).take_while(|(a, b)| a == b).count() as u32
    };
    assert_eq!(shared(0, 1), 500 / PAGE);
    assert_eq!(shared(1, 2), 330 / PAGE);
    assert_eq!(shared(2, 3), 800 / PAGE);
    assert_eq!(shared(3, 4), 640 / PAGE);
    assert_eq!([shared(1, 4), shared(4, 5)], [330 / PAGE, 0]);
    assert_eq!((arrivals[4].1.priority, arrivals[0].1.output_tokens), (3, 8));
}

#[test]
fn errors_of_a_table_say_what_is_wrong() {
    let drawn = "requests = 6\nprompt_tokens = 5\noutput_tokens = 1";
    let sessions = "kind = 'sessions'\nsessions = 1\nfirst_prompt_tokens = 9\noutput_tokens = 9";
    let list =
        "kind = 'list'\nrequests = [{ at = '0s', prompt_tokens = 9, content = 'A' }, { at = '0s', prompt_tokens = 9";
    let errors = [
        format!("kind = 'poison'\n{drawn}"),
        format!("kind = 'poisson'\n{drawn}"),
        format!("kind = 'poisson'\nrate = '3'\n{drawn}"),
        format!("kind = 'poisson'\nrate = '3/s'\nrats = 1\n{drawn}"),
        format!("kind = 'on_off'\nrate = '3/s'\non = '0s'\noff = '1s'\n{drawn}"),
        format!("kind = 'closed'\nconcurrency = 0\n{drawn}"),
        format!("kind = 'fixed'\nevery = '1s'\nprefixes = [{{ tokens = 1, weight = 0 }}]\n{drawn}"),
        format!("kind = 'fixed'\nevery = '1s'\nprefixes = [{{ tokens = '16Mi' }}]\n{drawn}"),
        format!("{sessions}\nturns = 16777216\nuser_tokens = 1"),
        format!("{list}, content = 'A', prefix = {{ of = 'Z', tokens = 4 }} }}]"),
        format!("{list}, content = 'A', prefix = {{ of = 'A', tokens = 4 }} }}]"),
        "kind = 'trace'\nfile = 'sharegpt300_llama31_8b.jsonl.gz'\nformat = 'tokens'\npad = true".into(),
        "kind = 'trace'\nfile = 'conversation_trace.jsonl.gz'\nformat = 'mooncake'\nspeed = 0".into(),
        "kind = 'trace'\nfile = 'conversation_trace.jsonl.gz'\nformat = 'mooncake'\nblock = 16".into(),
    ]
    .map(|text| match try_loads(&format!("[[load]]\n{text}"), 1, PAGE) {
        Ok(_) => format!("accepted: {text}"),
        Err(error) => error.replace(&traces().display().to_string(), ""),
    });
    insta::assert_snapshot!(errors.join("\n"), @r#"
    unknown variant `poison`, expected one of `poisson`, `fixed`, `burst`, `on_off`, `closed`, `sessions`, `trace`, `list`, `journal`
    missing field `rate`
    "3": the unit is missing; a rate takes one of /s, /m, /min, /h, /d
    unknown field `rats`, expected one of `rate`, `requests`, `prompt_tokens`, `output_tokens`, `prefixes`, `priority`, `start`
    load 0: on: is 0s; expected a time in which requests arrive
    load 0: concurrency: is 0; expected 1 to 4294967295
    load 0: prefixes: all weights are 0; expected one above
    load 0: prompt_tokens: may come to 16777221 tokens; expected 1 to 16777216 in all
    load 0: turns: may come to 167772169 tokens; expected 1 to 16777216 in all
    load 0: prefix: no request has the content "Z"; give a request content = "..." of that name
    load 0: prefix: content "A" began otherwise in an earlier request; the same name is the same tokens
    load 0: pad: needs a trace whose contents are blocks
    load 0: speed: is 0; expected 0.000001 to 1000000000
    /conversation_trace.jsonl.gz:1: hash_ids: has 14 ids; expected 423, which is input_length 6758 in blocks of 16
    "#);
}

const ALL_KINDS: &str = "
[[load]]
kind = 'poisson'
rate = '3.4/s'
requests = 40
prompt_tokens = { uniform = [128, 2048] }
output_tokens = { exponential = { mean = 50 } }
prefixes = [{ tokens = 500 }, { tokens = 20 }]
[[load]]
kind = 'fixed'
every = '250ms'
requests = 40
prompt_tokens = { quantiles = [1, 800, 2000, 9000] }
output_tokens = 200
[[load]]
kind = 'burst'
size = 8
every = '2s'
requests = 40
prompt_tokens = { log_normal = { p50 = 1000, p90 = 4000, max = 32000 } }
output_tokens = 200
[[load]]
kind = 'on_off'
rate = '20/s'
on = '1s'
off = '1s'
requests = 40
prompt_tokens = 70
output_tokens = 200
priority = -1
[[load]]
kind = 'closed'
concurrency = 7
requests = 40
think = { uniform = ['10ms', '20ms'] }
prompt_tokens = { exponential = { mean = 300 } }
output_tokens = 20
[[load]]
kind = 'sessions'
sessions = 3
turns = 4
think = { exponential = '2s' }
rate = '1/s'
first_prompt_tokens = 200
user_tokens = { uniform = [1, 50] }
output_tokens = 25
prefixes = [{ tokens = 100, content = 'system' }]
[[load]]
kind = 'trace'
file = 'conversation_trace.jsonl.gz'
format = 'mooncake'
speed = 2.5
requests = 30
[[load]]
kind = 'list'
requests = [{ at = '0s', prompt_tokens = 25153, content = 'A' }, { at = '60s', prompt_tokens = 25153, content = 'A' }]
";

#[derive(serde::Deserialize)]
struct Tables {
    load: Vec<LoadConfig>,
}

fn traces() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios/traces")
}

fn try_loads(text: &str, seed: u64, page_size: u32) -> Result<Loads, String> {
    let tables: Tables = toml::from_str(text).map_err(|error| error.message().to_owned())?;
    let namespace = Namespace { page_size, ..Namespace::default() };
    let cx = Context { seed, index: 0, namespace: &namespace, directory: &traces() };
    Loads::new(&tables.load, &cx).map_err(|error| error.to_string())
}

fn loads_of(text: &str, seed: u64, page_size: u32) -> Loads {
    try_loads(text, seed, page_size).expect(text)
}

fn loads(text: &str, seed: u64) -> Loads {
    loads_of(text, seed, PAGE)
}

/// Answers each request after `token_ns` times the tokens of its answer, and returns all arrivals in order of time.
fn play(loads: &mut Loads, token_ns: u64) -> Vec<(Instant, Arrival)> {
    let mut all = Vec::new();
    play_with(loads, |at, arrival| {
        all.push((at, arrival.clone()));
        token_ns * u64::from(arrival.output_tokens)
    });
    all
}

/// A world without machines: `serve` says how long an answer takes.
fn play_with(loads: &mut Loads, mut serve: impl FnMut(Instant, &Arrival) -> u64) {
    enum Event {
        Arrive(Arrival, bool),
        End(u64),
    }
    let mut events: BTreeMap<(Instant, u64), Event> = BTreeMap::new();
    let mut number = 0;
    let mut last = Instant::ZERO;
    let mut add = |events: &mut BTreeMap<_, _>, at: Instant, event| {
        number += 1;
        events.insert((at, number), event);
    };
    if let Some((at, arrival)) = loads.next_arrival() {
        add(&mut events, at, Event::Arrive(arrival, true));
    }
    while let Some(((now, _), event)) = events.pop_first() {
        assert!(now >= last, "time runs forward");
        last = now;
        match event {
            Event::Arrive(arrival, from_stream) => {
                let end = now.after_ns(serve(now, &arrival));
                add(&mut events, end, Event::End(arrival.ordinal));
                // Only an arrival of the stream makes way for the stream's next.
                let next = if from_stream { loads.next_arrival() } else { None };
                if let Some((at, next)) = next {
                    assert!(at >= now, "arrivals are in order");
                    add(&mut events, at, Event::Arrive(next, true));
                }
            }
            Event::End(ordinal) => {
                if let Some((at, next)) = loads.finished(ordinal, now) {
                    assert!(at >= now, "what an end brings is not before it");
                    add(&mut events, at, Event::Arrive(next, false));
                }
            }
        }
    }
}
