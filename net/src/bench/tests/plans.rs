//! What is asked, and when.

use super::*;

async fn plan_of(config: &BenchConfig) -> Vec<super::super::Script> {
    make_plan(config, &BenchInputs::default()).await.expect("valid")
}

fn base() -> BenchConfig {
    BenchConfig { num_prompts: 40, random_input_len: 64, random_range_ratio: 0.5, ..BenchConfig::default() }
}

#[tokio::test]
async fn equal_seeds_plan_equal_runs_and_others_do_not() {
    let datasets =
        [DatasetName::Random, DatasetName::RandomIds, DatasetName::MultiTurn, DatasetName::GeneratedSharedPrefix];
    for dataset_name in datasets {
        let config = BenchConfig {
            dataset_name,
            request_rate: Some(10.0),
            gsp_num_groups: 3,
            gsp_prompts_per_group: 2,
            ..base()
        };
        assert_eq!(plan_of(&config).await, plan_of(&config).await);
        assert_ne!(plan_of(&config).await, plan_of(&BenchConfig { seed: 2, ..config.clone() }).await);
    }
}

#[tokio::test]
async fn lengths_are_drawn_from_the_whole_range() {
    let plan = plan_of(&BenchConfig { num_prompts: 400, dataset_name: DatasetName::RandomIds, ..base() }).await;
    let lengths: Vec<u32> = plan.iter().map(|script| script.turns[0].prompt_tokens).collect();
    assert_eq!((lengths.iter().min(), lengths.iter().max()), (Some(&32), Some(&64)));
    for script in &plan {
        let Prompt::Ids(ids) = &script.turns[0].prompt else { panic!("ids were asked for") };
        assert_eq!(ids.len() as u32, script.turns[0].prompt_tokens);
        assert!(ids.iter().all(|&id| id < 8000));
    }
    let same = plan_of(&BenchConfig { random_range_ratio: 1.0, ..base() }).await;
    assert!(same.iter().all(|script| script.turns[0].prompt_tokens == 64 && script.turns[0].output_tokens == 128));
}

#[tokio::test]
async fn groups_share_their_system_prompt_and_nothing_else() {
    let config = BenchConfig {
        dataset_name: DatasetName::GeneratedSharedPrefix,
        gsp_num_groups: 5,
        gsp_prompts_per_group: 4,
        gsp_system_prompt_len: 100,
        gsp_question_len: 20,
        ..base()
    };
    let plan = plan_of(&config).await;
    assert_eq!(plan.len(), 20);
    let mut groups = std::collections::BTreeMap::<Vec<String>, std::collections::BTreeSet<Vec<String>>>::new();
    for script in &plan {
        let Prompt::Text(text) = &script.turns[0].prompt else { panic!("text") };
        let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
        assert_eq!(words.len(), 120);
        groups.entry(words[..100].to_vec()).or_default().insert(words[100..].to_vec());
    }
    assert_eq!(groups.values().map(|questions| questions.len()).collect::<Vec<_>>(), [4; 5]);
}

/// Gaps of a gamma distribution of shape k have mean 1/rate and squared coefficient of variation 1/k. With 20,000 draws
/// the standard error of either is below 2 %; the seed is fixed, the gate is at four times that.
#[test]
fn gaps_have_the_mean_of_the_rate_and_the_spread_of_the_burstiness() {
    for burstiness in [0.5, 1.0, 4.0] {
        let config = BenchConfig { request_rate: Some(50.0), burstiness, ..base() };
        let times: Vec<f64> = plan::arrivals(&config).take(20_001).map(|at| at.as_secs_f64()).collect();
        assert_eq!(times[0], 0.0);
        let spread = Spread::of(times.windows(2).map(|pair| pair[1] - pair[0]));
        assert!((spread.mean * 50.0 - 1.0).abs() < 0.08, "{burstiness}: {spread:?}");
        let variation = (spread.std / spread.mean).powi(2) * burstiness;
        assert!((variation - 1.0).abs() < 0.15, "{burstiness}: {variation}");
    }
    let mut all_at_once = plan::arrivals(&base());
    assert!(all_at_once.by_ref().take(10).all(|at| at == Duration::ZERO));
}

#[tokio::test]
async fn rows_of_a_trace_keep_their_times_and_their_shared_blocks() {
    let row = |ms: u64, blocks: &[u64]| TraceRow {
        at: Duration::from_millis(ms),
        prompt_tokens: 20,
        output_tokens: 3,
        blocks: blocks.to_vec(),
        block_tokens: 8,
    };
    let inputs = BenchInputs { trace: vec![row(500, &[1, 2, 3]), row(0, &[1, 2, 4]), row(900, &[])], tokenizer: None };
    let config = BenchConfig { dataset_name: DatasetName::Trace, trace_speed: 2.0, ..base() };
    let plan = make_plan(&config, &inputs).await.expect("valid");
    let times: Vec<u128> = plan.iter().map(|script| script.at.as_millis()).collect();
    assert_eq!(times, [0, 250, 450]);
    let ids: Vec<&Vec<u32>> = plan
        .iter()
        .map(|script| match &script.turns[0].prompt {
            Prompt::Ids(ids) => ids,
            Prompt::Text(_) => panic!("ids"),
        })
        .collect();
    assert!(ids.iter().all(|ids| ids.len() == 20));
    assert_eq!(ids[0][..16], ids[1][..16]);
    assert_ne!(ids[0][16..], ids[1][16..]);
    assert_ne!(ids[0][..8], ids[2][..8]);
}

#[tokio::test]
async fn bodies_are_those_of_the_peers() {
    let mock = Mock::start(|_, _| completion(0, 0, 4)).await;
    let mut extra = serde_json::Map::new();
    extra.insert("top_p".into(), json!(0.5));
    let config = BenchConfig { num_prompts: 1, extra_request_body: extra, ..quick(&mock) };
    measure(config.clone()).await;
    measure(BenchConfig { dataset_name: DatasetName::RandomIds, ..config.clone() }).await;
    measure(BenchConfig { backend: Backend::OpenaiChat, ..config.clone() }).await;
    measure(BenchConfig { backend: Backend::Sglang, dataset_name: DatasetName::RandomIds, ..config }).await;
    let seen = mock.seen.lock().unwrap();
    let paths: Vec<&str> = seen.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(paths, ["/v1/completions", "/v1/completions", "/v1/chat/completions", "/generate"]);
    let keys =
        |index: usize| seen[index].1.as_object().expect("an object").keys().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(keys(0), "best_of ignore_eos max_tokens model prompt stream stream_options temperature top_p");
    assert_eq!(keys(2), "ignore_eos max_completion_tokens messages model stream stream_options temperature top_p");
    assert_eq!(keys(3), "input_ids logprob_start_len return_logprob sampling_params stream top_p");
    assert_eq!(seen[0].1["prompt"].as_str().expect("text").split(' ').count(), 16);
    assert_eq!(seen[1].1["prompt"].as_array().expect("ids").len(), 16);
}
