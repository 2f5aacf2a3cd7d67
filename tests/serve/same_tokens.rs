//! The same prompts give the same tokens, however they are served.

use serde_json::{Value, json};

use crate::http::{ask, generate, metric, tokens};
use crate::process::{Folder, Pd};

/// Prompts of many lengths, some behind a common prefix, greedy and drawn; answers have this many tokens.
fn prompts(answer: u32) -> Vec<(Vec<u32>, Value)> {
    let common = tokens(77, 150);
    (0..40_u64)
        .map(|number| {
            let mut prompt = if number % 3 == 0 { common.clone() } else { Vec::new() };
            prompt.extend(tokens(1000 + number, 5 + (number as usize * 37) % 260));
            let sampling = match number % 4 {
                0 | 1 => json!({ "temperature": 0, "max_new_tokens": answer, "ignore_eos": true }),
                2 => json!({
                    "temperature": 0.9, "top_p": 0.95, "sampling_seed": number, "max_new_tokens": answer, "ignore_eos": true,
                }),
                _ => json!({
                    "temperature": 1.2, "top_k": 40, "min_p": 0.02, "frequency_penalty": 0.5, "sampling_seed": number,
                    "max_new_tokens": answer, "ignore_eos": true,
                }),
            };
            (prompt, sampling)
        })
        .collect()
}

/// All answers, asked by so many clients at once.
fn answers(address: &str, prompts: &[(Vec<u32>, Value)], clients: usize) -> Vec<Vec<u32>> {
    let mut answers = vec![Vec::new(); prompts.len()];
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..clients)
            .map(|client| {
                scope.spawn(move || {
                    let mine = prompts.iter().enumerate().skip(client).step_by(clients);
                    mine.map(|(at, (prompt, sampling))| (at, generate(address, prompt, sampling).0)).collect::<Vec<_>>()
                })
            })
            .collect();
        for handle in handles {
            for (at, answer) in handle.join().expect("a client that asks") {
                answers[at] = answer;
            }
        }
    });
    answers
}

#[test]
fn however_a_prompt_is_served_its_answer_is_the_same() {
    let prompts = prompts(12);
    let unified = Pd::start(&["serve", "--port", "0"]);
    let alone = answers(&unified.address, &prompts, 1);
    assert!(alone.iter().all(|answer| answer.len() == 12), "{alone:?}");
    // The check can fail: other prompts have other answers.
    assert!(alone.iter().any(|answer| *answer != alone[0]));
    assert_eq!(answers(&unified.address, &prompts, 8), alone, "cached, in batches");
    drop(unified);

    // So little memory that pages come back from L2 and L3.
    let folder = Folder::new("tight");
    let tight = Pd::start(&[
        "serve",
        "--port",
        "0",
        "--max-total-tokens",
        "1k",
        "--context-length",
        "512",
        "--hicache-ratio",
        "4",
        "--hicache-storage-dir",
        &folder.join("kv"),
        "--max-running-requests",
        "16",
    ]);
    assert_eq!(answers(&tight.address, &prompts, 16), alone, "tight");
    drop(tight);

    for backend in ["shm", "tcp"] {
        let up = Pd::start(&["up", "--port", "0", "--no-storage", "--disaggregation-transfer-backend", backend]);
        assert_eq!(answers(&up.address, &prompts, 1), alone, "{backend}, one by one");
        assert_eq!(answers(&up.address, &prompts, 8), alone, "{backend}, in batches");
    }
}

/// Goal: a sequence that gave its pages back goes on as if it had not. Method: long answers side by side in an L1 that
/// holds few of them to their end.
#[test]
fn a_sequence_that_was_retracted_goes_on_with_the_same_tokens() {
    let prompts = prompts(96);
    let roomy = Pd::start(&["serve", "--port", "0"]);
    let alone = answers(&roomy.address, &prompts, 1);
    assert!(alone.iter().all(|answer| answer.len() == 96), "{alone:?}");
    assert_eq!(metric(&roomy.address, "sglang:num_retractions_total"), 0);
    drop(roomy);
    let tight = ["serve", "--port", "0", "--max-total-tokens", "1k", "--context-length", "640"];
    // Without L2 a retracted sequence computes its KV again; with it, it comes back from there.
    for ratio in ["0", "4"] {
        let tight = Pd::start(&[&tight[..], &["--hicache-ratio", ratio]].concat());
        assert_eq!(answers(&tight.address, &prompts, 16), alone, "--hicache-ratio {ratio}");
        let retractions = metric(&tight.address, "sglang:num_retractions_total");
        assert!(retractions > 0, "--hicache-ratio {ratio}: nothing was retracted");
    }
}

#[test]
fn pages_that_come_back_from_host_memory_give_the_same_tokens() {
    let prompts = prompts(12);
    let roomy = Pd::start(&["serve", "--port", "0"]);
    let alone = answers(&roomy.address, &prompts, 1);
    drop(roomy);
    // All prompts together have five times as many tokens as L1, and fit L2.
    let layered = Pd::start(&[
        "serve",
        "--port",
        "0",
        "--max-total-tokens",
        "1k",
        "--context-length",
        "512",
        "--hicache-ratio",
        "12",
    ]);
    assert_eq!(answers(&layered.address, &prompts, 1), alone, "cold");
    let mut reloaded = 0;
    for (at, (prompt, sampling)) in prompts.iter().enumerate() {
        let (answer, about) = generate(&layered.address, prompt, sampling);
        assert_eq!(answer, alone[at], "prompt {at}: {about}");
        reloaded += about["cached_tokens_details"]["host"].as_u64().expect("a count");
        assert_eq!(about["cached_tokens_details"]["storage"].as_u64().unwrap_or(0), 0, "there is no L3: {about}");
    }
    assert!(reloaded > 1000, "{reloaded} tokens came from L2");
    // Side by side, loads and evictions overlap.
    assert_eq!(answers(&layered.address, &prompts, 8), alone, "in batches");
}

#[test]
fn a_recorded_worker_replays_bit_for_bit() {
    let folder = Folder::new("journal");
    let journal = folder.join("run.pdj");
    let worker = Pd::start(&["serve", "--port", "0", "--journal", &journal]);
    answers(&worker.address, &prompts(12)[..12], 4);
    let (status, log) = worker.terminate();
    assert!(status.success(), "{log}");
    let (is_same, said) = replay(&journal);
    assert!(is_same, "{said}");

    // What a worker that is killed leaves is whole up to its last rest.
    let worker = Pd::start(&["serve", "--port", "0", "--journal", &journal]);
    answers(&worker.address, &prompts(12)[..4], 2);
    std::thread::sleep(std::time::Duration::from_millis(300));
    worker.kill();
    let (_, said) = replay(&journal);
    assert!(said.contains("step"), "{said}");
}

#[test]
fn a_recorded_router_replays_bit_for_bit() {
    let folder = Folder::new("router-journal");
    let journal = folder.join("router.pdj");
    let workers = [Pd::start(&["serve", "--port", "0"]), Pd::start(&["serve", "--port", "0"])];
    let urls = workers.each_ref().map(|worker| format!("http://{}", worker.address));
    let mut arguments = vec!["router", "--port", "0", "--journal", &journal, "--policy", "cache_aware"];
    arguments.extend(["--health-check-interval-secs", "0.1", "--worker-urls", &urls[0], &urls[1]]);
    let router = Pd::start(&arguments);
    while ask(&router.address, "GET", "/workers", "").1.matches("\"up\"").count() < 2 {}
    let prompts = prompts(12);
    answers(&router.address, &prompts[..8], 2);
    // A failure, its retries and the breaker are lived again, too.
    let [lost, _kept] = workers;
    lost.kill();
    answers(&router.address, &prompts[8..16], 2);
    let (status, log) = router.terminate();
    assert!(status.success(), "{log}");
    let (is_same, said) = replay(&journal);
    assert!(is_same && said.contains("1 machine"), "{said}");
    let steps = said.split(": ").nth(1).and_then(|rest| rest.split_whitespace().next()).expect("a count");
    assert!(steps.replace(',', "").parse::<u32>().expect("a count of steps") >= 16 * 3, "{said}");
}

/// True if each step of a journal is the same, and what was said of it.
fn replay(journal: &str) -> (bool, String) {
    let replay = crate::process::command(&["replay", journal]).output().expect("pd runs");
    let said = String::from_utf8_lossy(&replay.stdout).into_owned() + &String::from_utf8_lossy(&replay.stderr);
    (replay.status.success(), said)
}
