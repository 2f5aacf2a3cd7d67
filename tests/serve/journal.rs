//! What a real worker was asked for, asked of a simulated deployment.

use std::path::PathBuf;

use pd_sim::record::Outcome;
use pd_sim::scenario::{self, Overrides};
use pd_sim::world::World;
use serde_json::{Value, json};

use crate::http::{ask, generate, post, tokens};
use crate::process::{Folder, Pd, command};

/// What a client was told: length of the prompt, of the answer, and how much of the prompt was cached.
type Told = (u32, u32, u32);

fn told(prompt: &[u32], answer: &(Vec<u32>, Value)) -> Told {
    let cached = answer.1["cached_tokens"].as_u64().expect("a count");
    (prompt.len() as u32, answer.0.len() as u32, cached as u32)
}

/// Some prompts, one of them twice, one that goes on where an answer ended, one whose answer stops early.
fn serve(address: &str) -> Vec<Told> {
    let greedy = |count: u32| json!({ "temperature": 0, "max_new_tokens": count, "ignore_eos": true });
    let mut all = Vec::new();
    let mut say = |prompt: &[u32], sampling: &Value| {
        let answer = generate(address, prompt, sampling);
        all.push(told(prompt, &answer));
        answer.0
    };
    let first = tokens(1, 160);
    let answer = say(&first, &greedy(40));
    assert_eq!(say(&first, &greedy(5)), answer[..5]);
    let mut next: Vec<u32> = first.iter().chain(&answer).copied().collect();
    next.extend(tokens(2, 30));
    say(&next, &greedy(7));
    say(&tokens(3, 500), &greedy(1));
    let stop = json!({ "temperature": 0, "max_new_tokens": 40, "stop_token_ids": [answer[2]], "ignore_eos": true });
    let stopped = say(&first, &stop);
    assert!(stopped.len() < 5, "{stopped:?}");
    all
}

/// Runs journals on a modelled prefill and a modelled decode worker.
fn simulate(journals: &[String]) -> Outcome {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scenarios/one_p_one_d.toml");
    let overrides = Overrides {
        set: vec!["worker.page_size=16".to_owned()],
        load: Some(journals.iter().map(PathBuf::from).collect()),
        ..Overrides::default()
    };
    let case = scenario::load(&path, &overrides).expect("journals of real workers").remove(0);
    let outcome = World::new(case.setup).run();
    assert_eq!(outcome.violations, []);
    outcome
}

fn simulated(outcome: &Outcome) -> Vec<Told> {
    let told = outcome.requests.iter().map(|record| {
        assert!(record.is_complete(), "{record:?}");
        let served = record.served.as_ref().expect("it was admitted");
        (record.prompt_tokens, record.tokens, served.device + served.host + served.storage)
    });
    told.collect()
}

fn stop(worker: Pd) {
    let (status, log) = worker.terminate();
    assert!(status.success(), "{log}");
}

#[test]
fn what_a_worker_was_asked_for_runs_in_the_simulator() {
    let folder = Folder::new("unified");
    let journal = folder.join("unified.pdj");
    let worker = Pd::start(&["serve", "--port", "0", "--journal", &journal]);
    let mut real = serve(&worker.address);
    // An order of an operator is part of it: what was cached is computed again.
    let (status, text) = ask(&worker.address, "POST", "/flush_cache", "");
    assert_eq!(status, 200, "{text}");
    let again = tokens(1, 160);
    let answer = generate(&worker.address, &again, &json!({ "temperature": 0, "max_new_tokens": 2 }));
    real.push(told(&again, &answer));
    assert_eq!(real.last().map(|told| told.2), Some(0));
    stop(worker);
    assert_eq!(real[1], (160, 5, 144));
    assert!(real[2].2 > 160, "the answer is cached, too: {real:?}");

    // Simulated by a pair: the prompt goes to a worker that has not generated the answer before it.
    let outcome = simulate(std::slice::from_ref(&journal));
    let there = simulated(&outcome);
    assert_eq!(there.len(), real.len());
    for (real, there) in real.iter().zip(&there) {
        assert_eq!((there.0, there.1), (real.0, real.1));
    }
    assert_eq!(there[1].2, 144);

    // The same by the command, on one worker, which has the answer.
    let scenario = format!("{}/scenarios/one_p_one_d.toml", env!("CARGO_MANIFEST_DIR"));
    let load = format!("journal:{journal}");
    let sim = |set: &[&str]| {
        let mut arguments = vec!["sim", &scenario, "--load", &load, "--json"];
        arguments.extend(set.iter().flat_map(|one| ["--set", one]));
        let output = command(&arguments).output().expect("pd runs");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned(), output.stderr)
    };
    let (status, text, _) = sim(&["worker.page_size=16", "worker.0.mode=unified", "worker.1.mode=unified"]);
    assert_eq!(status, Some(0), "{text}");
    let page: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(page["values"]["requests.finished"].as_f64(), Some(real.len() as f64), "{text}");
    let (status, _, problem) = sim(&[]);
    let problem = String::from_utf8_lossy(&problem).into_owned();
    assert_eq!(status, Some(2), "{problem}");
    assert!(problem.contains("--set worker.page_size=16"), "{problem}");
}

#[test]
fn a_pair_reports_what_one_worker_would_and_its_journals_run_in_the_simulator() {
    let unified = Pd::start(&["serve", "--port", "0"]);
    let alone = serve(&unified.address);
    let chat = json!({
        "model": "pd-tiny", "temperature": 0, "max_tokens": 4,
        "messages": [{ "role": "user", "content": "The old river is quiet. ".repeat(20) }],
    });
    let cached = |address: &str| {
        let usage = post(address, "/v1/chat/completions", &chat)["usage"].clone();
        usage["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a count")
    };
    let chats = [cached(&unified.address), cached(&unified.address)];
    assert!(chats[0] < chats[1], "{chats:?}");
    stop(unified);

    let folder = Folder::new("pair");
    let (p, d) = (folder.join("p.pdj"), folder.join("d.pdj"));
    let free = ["--disaggregation-bootstrap-port", "0"];
    let prefill = Pd::start(&[&["serve", "--mode", "prefill", "--port", "0", "--journal", &p][..], &free].concat());
    let decode = Pd::start(&["serve", "--mode", "decode", "--port", "0", "--journal", &d]);
    let port = bootstrap_port(&prefill);
    let (prefill_at, decode_at) = (format!("http://{}", prefill.address), format!("http://{}", decode.address));
    let router = Pd::start(&["router", "--port", "0", "--prefill", &prefill_at, &port, "--decode", &decode_at]);
    let pair = serve(&router.address);
    // A prefill worker has no answers: the third prompt finds only the first one.
    let mut expected = alone;
    expected[2].2 = 160;
    assert_eq!(pair, expected);
    assert_eq!([cached(&router.address), cached(&router.address)], chats);
    drop(router);
    stop(decode);
    stop(prefill);

    let outcome = simulate(&[d.clone(), p.clone()]);
    let there = simulated(&outcome);
    assert_eq!(there[..pair.len()], pair);
    assert_eq!(there.len(), pair.len() + 2);
    // The decode worker's alone is enough; the prefill worker's is not.
    assert_eq!(simulated(&simulate(&[d])), there);
    let scenario = format!("{}/scenarios/one_p_one_d.toml", env!("CARGO_MANIFEST_DIR"));
    let alone = command(&["sim", &scenario, "--load", &format!("journal:{p}")]).output().expect("pd runs");
    let problem = String::from_utf8_lossy(&alone.stderr).into_owned();
    assert_eq!(alone.status.code(), Some(2), "{problem}");
    assert!(problem.contains("prefill worker") && problem.contains(",DECODE"), "{problem}");
}

fn bootstrap_port(prefill: &Pd) -> String {
    let (status, text) = ask(&prefill.address, "GET", "/server_info", "");
    assert_eq!(status, 200, "{text}");
    let info: Value = serde_json::from_str(&text).expect("JSON");
    info["disaggregation_bootstrap_port"].as_u64().expect("a port").to_string()
}
