//! The same prompts give the same tokens, however they are served.

use serde_json::{Value, json};

use crate::http::{ask, generate, tokens};
use crate::process::{Folder, Pd};

/// Prompts of many lengths, some behind a common prefix, greedy and drawn.
fn prompts() -> Vec<(Vec<u32>, Value)> {
    let common = tokens(77, 150);
    (0..40_u64)
        .map(|number| {
            let mut prompt = if number % 3 == 0 { common.clone() } else { Vec::new() };
            prompt.extend(tokens(1000 + number, 5 + (number as usize * 37) % 260));
            let sampling = match number % 4 {
                0 | 1 => json!({ "temperature": 0, "max_new_tokens": 12, "ignore_eos": true }),
                2 => json!({
                    "temperature": 0.9, "top_p": 0.95, "sampling_seed": number, "max_new_tokens": 12, "ignore_eos": true,
                }),
                _ => json!({
                    "temperature": 1.2, "top_k": 40, "min_p": 0.02, "frequency_penalty": 0.5, "sampling_seed": number,
                    "max_new_tokens": 12, "ignore_eos": true,
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
    let prompts = prompts();
    let unified = Pd::start(&["serve", "--port", "0"]);
    let alone = answers(&unified.address, &prompts, 1);
    assert!(alone.iter().all(|answer| answer.len() == 12), "{alone:?}");
    // The check can fail: other prompts have other answers.
    assert!(alone.iter().any(|answer| *answer != alone[0]));
    assert_eq!(answers(&unified.address, &prompts, 8), alone, "cached, in batches");
    drop(unified);

    // So little memory that sequences are retracted and pages come back from L2.
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

#[test]
fn a_recorded_worker_replays_bit_for_bit() {
    let folder = Folder::new("journal");
    let journal = folder.join("run.pdj");
    let worker = Pd::start(&["serve", "--port", "0", "--journal", &journal]);
    answers(&worker.address, &prompts()[..12], 4);
    let (status, log) = worker.terminate();
    assert!(status.success(), "{log}");
    let (is_same, said) = replay(&journal);
    assert!(is_same, "{said}");

    // What a worker that is killed leaves is whole up to its last rest.
    let worker = Pd::start(&["serve", "--port", "0", "--journal", &journal]);
    answers(&worker.address, &prompts()[..4], 2);
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
    let prompts = prompts();
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
