//! What makes no sense.

use super::*;

#[test]
fn wrong_configurations_name_the_key_and_what_it_must_be() {
    let base = BenchConfig::default();
    base.check().expect("the base is right");
    let cases: Vec<(&str, &str, BenchConfig)> = vec![
        ("base_url", "http://", BenchConfig { base_url: "localhost:1".into(), ..base.clone() }),
        ("base_url", "https", BenchConfig { base_url: "https://a".into(), ..base.clone() }),
        ("endpoint", "start with /", BenchConfig { endpoint: Some("v1".into()), ..base.clone() }),
        ("num_prompts", "from 1", BenchConfig { num_prompts: 0, ..base.clone() }),
        ("random_input_len", "from 1", BenchConfig { random_input_len: 0, ..base.clone() }),
        ("random_output_len", "from 1", BenchConfig { random_output_len: 0, ..base.clone() }),
        ("random_range_ratio", "from 0 to 1", BenchConfig { random_range_ratio: 1.1, ..base.clone() }),
        ("random_range_ratio", "from 0 to 1", BenchConfig { random_range_ratio: f64::NAN, ..base.clone() }),
        ("vocab_size", "from 1", BenchConfig { vocab_size: 0, ..base.clone() }),
        ("turns", "from 1", BenchConfig { turns: 0, ..base.clone() }),
        ("request_rate", "from", BenchConfig { request_rate: Some(0.0), ..base.clone() }),
        ("request_rate", "from", BenchConfig { request_rate: Some(f64::INFINITY), ..base.clone() }),
        ("burstiness", "from", BenchConfig { burstiness: 0.0, ..base.clone() }),
        ("max_concurrency", "from 1", BenchConfig { max_concurrency: Some(0), ..base.clone() }),
        ("temperature", "from 0", BenchConfig { temperature: -1.0, ..base.clone() }),
        ("trace_speed", "from", BenchConfig { trace_speed: 0.0, ..base.clone() }),
        ("progress_interval_secs", "from", BenchConfig { progress_interval_secs: 0.0, ..base.clone() }),
        ("api_key", "ASCII", BenchConfig { api_key: Some("a\nb".into()), ..base.clone() }),
        ("dataset_path", "file", BenchConfig { dataset_name: DatasetName::Prompts, ..base.clone() }),
        (
            "dataset_name",
            "chat",
            BenchConfig { dataset_name: DatasetName::RandomIds, backend: Backend::OpenaiChat, ..base.clone() },
        ),
    ];
    for (key, says, config) in cases {
        let error = config.check().expect_err(key);
        assert_eq!(error.key, key);
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn limits_are_a_name_and_milliseconds() {
    assert_eq!(Slo::try_from("ttft:200".to_owned()).expect("valid").to_string(), "ttft:200");
    for text in ["", "ttft", "ttft:", "ttft:x", "ttft:-1", "ttft:NaN", "itl:5", "200", "ttft:inf"] {
        let error = Slo::try_from(text.to_owned()).expect_err(text);
        assert!(error.contains("ttft:200"), "{error}");
    }
}

#[test]
fn a_configuration_is_toml_under_the_peers_names() {
    let config: BenchConfig = toml::from_str(
        "backend = \"sglang-oai-chat\"\ndataset_name = \"generated-shared-prefix\"\ngoodput = [\"ttft:200\", \"tpot:50\"]\n",
    )
    .expect("valid");
    assert_eq!((config.backend, config.goodput.len()), (Backend::OpenaiChat, 2));
    for text in ["num_prompt = 3", "backend = \"grpc\"", "goodput = [\"itl:1\"]", "seed = -1"] {
        assert!(toml::from_str::<BenchConfig>(text).is_err(), "{text}");
    }
}

#[tokio::test]
async fn prompts_files_are_read_line_by_line_and_errors_name_the_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("prompts.jsonl");
    let config = BenchConfig {
        dataset_name: DatasetName::Prompts,
        dataset_path: Some(path.clone()),
        output_len: 9,
        ..BenchConfig::default()
    };
    let plan = |text: &str| {
        std::fs::write(&path, text).expect("written");
        let config = config.clone();
        async move { make_plan(&config, &BenchInputs::default()).await }
    };
    let scripts = plan("{\"prompt\":\"a b\",\"output_len\":3}\n\nplain text\n").await.expect("valid");
    let turns: Vec<_> =
        scripts.iter().map(|script| (script.turns[0].output_tokens, script.turns[0].prompt_tokens)).collect();
    assert_eq!(turns, [(3, 2), (9, 2)]);
    for (text, says) in [
        ("", "no prompts"),
        ("{\"prompt\":\"a\"}\n{\"prompt\":3}", "line 2"),
        ("{\"text\":\"a\"}", "line 1"),
        ("{\"prompt\":\"\"}", "line 1"),
        ("{\"prompt\":\"a\",\"output_len\":0}", "line 1"),
        ("{", "line 1"),
    ] {
        let error = plan(text).await.expect_err(text).to_string();
        assert!(error.contains(says) && error.contains("prompts.jsonl"), "{text}: {error}");
    }
    let gone = BenchConfig { dataset_path: Some(folder.path().join("gone")), ..config.clone() };
    assert!(make_plan(&gone, &BenchInputs::default()).await.expect_err("gone").to_string().contains("gone"));
}

#[tokio::test]
async fn traces_that_make_no_sense_are_refused_with_the_row() {
    let good = TraceRow { at: Duration::ZERO, prompt_tokens: 4, output_tokens: 1, blocks: vec![1], block_tokens: 4 };
    let config = BenchConfig { dataset_name: DatasetName::Trace, ..BenchConfig::default() };
    let plan = |trace: Vec<TraceRow>| {
        let config = config.clone();
        async move { make_plan(&config, &BenchInputs { trace, tokenizer: None }).await }
    };
    plan(vec![good.clone()]).await.expect("valid");
    assert!(plan(vec![]).await.expect_err("empty").to_string().contains("rows"));
    for bad in [
        TraceRow { prompt_tokens: 0, ..good.clone() },
        TraceRow { output_tokens: 0, ..good.clone() },
        TraceRow { block_tokens: 0, ..good.clone() },
        TraceRow { prompt_tokens: u32::MAX, ..good.clone() },
    ] {
        assert!(plan(vec![good.clone(), bad]).await.expect_err("bad").to_string().contains("row 1"));
    }
}

#[tokio::test]
async fn a_server_that_cannot_be_used_is_told_before_the_run() {
    let mock = Mock::start(|_, _| Script { status: 500, chunks: vec![(0, "broken".into())], is_cut: false }).await;
    let error = run(BenchConfig { warmup_requests: 1, ..quick(&mock) }, BenchInputs::default(), |_| ()).await;
    let error = error.expect_err("it is broken").to_string();
    assert!(error.contains("warm-up") && error.contains("500") && error.contains("broken"), "{error}");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    drop(listener);
    let error = run(BenchConfig { base_url: url, ..quick(&mock) }, BenchInputs::default(), |_| ()).await;
    assert!(error.expect_err("nobody is there").to_string().contains("/v1/models"));
}
