//! What is measured, and how it is told.

use super::*;

/// A server that waits 40 ms for the first and 10 ms for each further token cannot be faster than that, and on a busy
/// machine is slower: lower bounds are hard, and all that is measured of requests in turn fits into the run.
#[tokio::test]
async fn known_delays_are_measured() {
    let mock = Mock::start(|_, _| completion(40, 10, 5)).await;
    let report = measure(BenchConfig { max_concurrency: Some(1), ..quick(&mock) }).await;
    assert_eq!((report.completed, report.failed, report.exit_code()), (8, 0, 0));
    for record in &report.records {
        assert_eq!((record.itl.len(), record.output_tokens, record.prompt_tokens), (4, 5, 10));
        assert!(record.ttft >= 0.039, "{record:?}");
        // Not of the rest alone: if the first token was read late, that was shorter.
        assert!(record.latency >= 0.079, "{record:?}");
        let tpot = record.tpot().expect("five tokens");
        assert!((record.ttft + tpot * 4.0 - record.latency).abs() < 1e-6);
        assert!((tpot * 4.0 - record.itl.iter().sum::<f64>()).abs() < 1e-6);
    }
    assert!(report.records.iter().map(|record| record.latency).sum::<f64>() <= report.duration);
    assert_eq!(report.max_concurrent_requests, 1);
    assert_eq!((report.input_tokens, report.output_tokens, report.cached_tokens), (80, 40, Some(32)));
    assert_eq!(report.cache_hit_rate(), Some(0.4));
}

#[tokio::test]
async fn failures_are_counted_by_reason_and_end_in_a_bad_exit_code() {
    let mock = Mock::start(|index, _| match index {
        0 => Script { status: 429, chunks: vec![(0, "slow down".into())], is_cut: false },
        1 => Script { chunks: vec![(0, text_event(" a"))], is_cut: true, ..completion(0, 0, 1) },
        2 => Script { chunks: vec![(0, "data: {\"error\":{\"message\":\"boom\"}}\n\n".into())], ..completion(0, 0, 1) },
        3 => Script { chunks: vec![(0, "data: nonsense\n\n".into())], ..completion(0, 0, 1) },
        4 => Script { chunks: vec![(0, "data: [DONE]\n\n".into())], ..completion(0, 0, 1) },
        5 => Script { chunks: vec![(0, text_event(" a")), (0, "data: {\"choices\"".into())], ..completion(0, 0, 1) },
        _ => completion(0, 0, 4),
    })
    .await;
    let report = measure(BenchConfig { max_concurrency: Some(1), ..quick(&mock) }).await;
    assert_eq!((report.completed, report.failed, report.exit_code()), (2, 6, 1));
    let errors: Vec<&str> = report.records.iter().filter_map(|record| record.error.as_deref()).collect();
    for (error, says) in errors.iter().zip(["429", "", "boom", "nonsense", "no tokens", "middle of an event"]) {
        assert!(error.contains(says), "{error}: {says}");
    }
    // They are in no distribution.
    assert_eq!((report.ttft_ms.count, report.output_tokens), (2, 8));
    let table = report.to_string();
    assert!(table.contains("Failed requests") && table.contains("boom"), "{table}");
}

#[tokio::test]
async fn a_request_without_end_is_given_up() {
    let mock = Mock::start(|_, _| completion(3_600_000, 0, 1)).await;
    let config = BenchConfig { request_timeout_secs: 0.05, num_prompts: 1, ..quick(&mock) };
    let report = measure(config).await;
    assert_eq!(report.failed, 1);
    assert!(report.records[0].error.as_ref().expect("failed").contains("0.05 s"));
}

#[tokio::test]
async fn goodput_counts_requests_that_keep_to_all_limits() {
    let mock = Mock::start(|index, _| completion(if index % 2 == 0 { 0 } else { 400 }, 0, 3)).await;
    let slo = |text: &str| Slo::try_from(text.to_owned()).expect("valid");
    let limits =
        [(vec![slo("ttft:200")], 4), (vec![slo("ttft:60000"), slo("tpot:60000")], 8), (vec![slo("e2el:0")], 0)];
    for (goodput, good) in limits {
        let report = measure(BenchConfig { max_concurrency: Some(1), goodput, ..quick(&mock) }).await;
        assert_eq!(report.good, Some(good));
    }
}

#[tokio::test]
async fn max_concurrency_is_kept_and_what_waits_is_seen() {
    let mock = Mock::start(|_, _| completion(150, 0, 2)).await;
    let config = BenchConfig { max_concurrency: Some(2), progress_interval_secs: 0.02, ..quick(&mock) };
    let mut lines = Vec::new();
    let report = run(config, BenchInputs::default(), |progress| lines.push(*progress)).await.expect("it runs");
    assert_eq!(report.max_concurrent_requests, 2);
    assert!(lines.iter().all(|line| line.running <= 2 && line.total == 8));
    assert!(lines.iter().any(|line| line.waiting >= 4 && line.running == 2), "{lines:?}");
    assert!(lines.iter().any(|line| line.ttft_ms.count > 0 && line.ttft_ms.mean >= 149.0), "{lines:?}");
    assert!(report.records.last().expect("eight").queue >= 0.25);
    let shown = lines[0].to_string();
    assert!(shown.contains("running") && shown.contains("tok/s") && shown.contains("ttft"), "{shown}");
}

#[tokio::test]
async fn cumulative_events_of_sglang_are_counted_by_token() {
    let mock = Mock::start(|_, _| {
        let event = |text: &str, tokens: u32| {
            let meta =
                json!({"prompt_tokens": 7, "completion_tokens": tokens, "cached_tokens": 3, "finish_reason": null});
            format!("data: {}\n\n", json!({"text": text, "meta_info": meta}))
        };
        let chunks = vec![(0, event(" a", 1)), (30, event(" a b c", 3)), (0, "data: [DONE]\n\n".into())];
        Script { status: 200, chunks, is_cut: false }
    })
    .await;
    let report = measure(BenchConfig { backend: Backend::Sglang, num_prompts: 1, ..quick(&mock) }).await;
    let record = &report.records[0];
    assert_eq!((record.output_tokens, record.prompt_tokens, record.cached_tokens), (3, 7, Some(3)));
    // A chunk of two tokens is two equal gaps.
    assert_eq!(record.itl.len(), 2);
    assert_eq!(record.itl[0], record.itl[1]);
    assert!(record.latency >= 0.029, "{record:?}");
    assert_eq!(mock.seen.lock().unwrap()[0].0, "/generate");
}

#[tokio::test]
async fn an_answer_in_one_piece_has_its_time_as_time_to_first_token() {
    let answer =
        json!({"choices": [{"message": {"content": "a b"}}], "usage": {"prompt_tokens": 3, "completion_tokens": 2}});
    let mock =
        Mock::start(move |_, _| Script { status: 200, chunks: vec![(20, answer.to_string())], is_cut: false }).await;
    let config = BenchConfig { backend: Backend::OpenaiChat, disable_stream: true, num_prompts: 1, ..quick(&mock) };
    let report = measure(config).await;
    let record = &report.records[0];
    assert_eq!((report.completed, record.output_tokens), (1, 2));
    assert!(record.ttft >= 0.019 && record.latency >= record.ttft);
    assert_eq!(mock.bodies()[0]["stream"], false);
}

#[tokio::test]
async fn a_conversation_repeats_what_was_said() {
    let mock = Mock::start(|index, _| {
        let event = json!({"choices": [{"delta": {"content": format!("answer {index}")}}]});
        Script { status: 200, chunks: vec![(0, format!("data: {event}\n\n"))], is_cut: false }
    })
    .await;
    let config = BenchConfig {
        backend: Backend::OpenaiChat,
        dataset_name: DatasetName::MultiTurn,
        num_prompts: 1,
        turns: 3,
        ..quick(&mock)
    };
    let report = measure(config).await;
    assert_eq!(report.completed, 3);
    let bodies = mock.bodies();
    let messages = |index: usize| bodies[index]["messages"].as_array().expect("a list").clone();
    assert_eq!([messages(0).len(), messages(1).len(), messages(2).len()], [1, 3, 5]);
    assert_eq!(messages(2)[..3], messages(1)[..]);
    assert_eq!(messages(2)[3], json!({"role": "assistant", "content": "answer 1"}));
}

/// The keys are those of recorded results of sglang 0.5.23, and of vllm 0.33 as its documentation lists them.
#[tokio::test]
async fn results_have_the_keys_that_the_peers_have() {
    let mock = Mock::start(|_, _| completion(0, 0, 4)).await;
    let report = measure(quick(&mock)).await;
    let (sglang, vllm) = (report.sglang_json(), report.vllm_json("20260101-000000", true));
    let mut wanted = String::from(
        "tag backend dataset_name request_rate max_concurrency sharegpt_output_len random_input_len random_output_len \
         random_range_ratio server_info duration completed total_input_tokens total_input_text_tokens \
         total_input_vision_tokens total_output_tokens total_output_tokens_retokenized request_throughput \
         input_throughput output_throughput total_throughput concurrency accept_length max_output_tokens_per_s \
         max_concurrent_requests",
    );
    for name in ["e2e_latency", "ttft", "tpot", "itl"] {
        for part in ["mean", "median", "std", "p90", "p95", "p99"] {
            wanted += &format!(" {part}_{name}_ms");
        }
    }
    for key in wanted.split_whitespace() {
        assert!(sglang.get(key).is_some(), "sglang: {key}");
    }
    let mut wanted = String::from(
        "date endpoint_type backend label model_id tokenizer_id num_prompts request_rate burstiness max_concurrency \
         duration completed failed total_input_tokens total_output_tokens request_throughput request_goodput \
         output_throughput total_token_throughput max_output_tokens_per_s max_concurrent_requests rtfx input_lens \
         output_lens ttfts itls latencies start_times queue_times errors",
    );
    for name in ["ttft", "tpot", "itl", "e2el"] {
        for part in ["mean", "median", "std", "p50", "p90", "p99"] {
            wanted += &format!(" {part}_{name}_ms");
        }
    }
    for key in wanted.split_whitespace() {
        assert!(vllm.get(key).is_some(), "vllm: {key}");
    }
    assert_eq!((&sglang["completed"], &sglang["server_info"]), (&json!(8), &json!({"version": "1"})));
    assert_eq!((&vllm["model_id"], &vllm["request_rate"]), (&json!("tiny"), &json!("inf")));
    let lines = report.records_jsonl();
    assert_eq!(lines.lines().count(), 8);
    assert!(lines.lines().all(|line| serde_json::from_str::<Value>(line).is_ok_and(|record| record["ttft"].is_f64())));
}
