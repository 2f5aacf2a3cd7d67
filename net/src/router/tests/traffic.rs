//! What workers get and what clients get, without faults.

use super::*;

#[tokio::test]
async fn both_legs_get_the_same_request_and_the_client_gets_the_decode_workers_answer() {
    let (prefill, decode) = (Mock::well("p").await, Mock::well("d").await);
    let router = Served::ready(pair(&prefill, &decode), 2).await;
    let body =
        r#"{"model":"tiny","messages":[{"role":"user","content":"é \u00e9"}],"temperature":0.10,"unknown":[1e2]}"#;
    let headers = [("x-request-id", "abc"), ("authorization", "Bearer k"), ("connection", "x-hop"), ("x-hop", "1")];
    let got = router.send("POST", "/v1/chat/completions?a=b", &headers, body).await;

    assert_eq!((got.status, got.json()["id"].as_str()), (200, Some("d")));
    let legs = [prefill.asked(), decode.asked()];
    assert_eq!(legs[0].len(), 1);
    assert_eq!(legs[0][0].body, legs[1][0].body);
    let start = body.strip_suffix('}').expect("an object");
    let rest = legs[0][0].body.strip_prefix(start).expect("the client's bytes come first, unchanged");
    let room = legs[0][0].json()["bootstrap_room"].as_u64().expect("a number");
    assert!(room < 1 << 63);
    assert_eq!(
        rest,
        format!(r#","rid":"abc","bootstrap_host":"127.0.0.1","bootstrap_port":8998,"bootstrap_room":{room}}}"#)
    );
    for leg in legs.iter().flatten() {
        assert_eq!(leg.headers["x-request-id"], "abc");
        assert_eq!(leg.headers["authorization"], "Bearer k");
        assert!(!leg.headers.contains_key("x-hop"));
    }
    assert_eq!(got.headers["x-request-id"], "abc");
    assert_eq!(got.headers["x-mock"], "yes");
    assert_eq!(got.headers["x-pd-prefill"], prefill.url.as_str());
    assert_eq!(got.headers["x-pd-decode"], decode.url.as_str());
    assert_eq!(got.headers["x-pd-room"], room.to_string().as_str());
    assert_eq!(got.headers["content-length"], got.body.len().to_string().as_str());
}

/// Requests that clients sent through sglang-router 0.3.2 and smg 1.13.0, with the form in which those sent the
/// bootstrap fields on.
#[tokio::test]
async fn recorded_requests_reach_workers_in_the_form_that_sglangs_routers_give_them() {
    let rows: Vec<Value> = serde_json::from_str(include_str!("golden.json")).expect("the fixture");
    assert!(rows.len() > 20);
    let (prefill, decode) = (Mock::well("p").await, Mock::well("d").await);
    let router = Served::ready(pair(&prefill, &decode), 2).await;
    let mut rooms = std::collections::BTreeSet::new();
    for (index, row) in rows.iter().enumerate() {
        let (path, client) = (row["path"].as_str().expect("a path"), &row["client"]);
        let got = router.post(path, client).await;
        assert_eq!(got.status, 200, "{row}: {}", got.body);
        let legs = [&prefill.asked()[index], &decode.asked()[index]];
        assert_eq!(legs[0].body, legs[1].body);
        assert_eq!(legs[0].path, path);
        let mut sent = legs[0].json();
        let fields = sent.as_object_mut().expect("an object");
        let taken = ["bootstrap_host", "bootstrap_port", "bootstrap_room"].map(|name| fields.remove(name));
        let [Some(host), Some(port), Some(room)] = taken else { panic!("{row}: no bootstrap fields") };
        match row["prompts"].as_u64() {
            None => {
                assert_eq!((host.as_str(), port.as_u64()), (Some("127.0.0.1"), Some(8998)), "{row}");
                assert!(rooms.insert(room.as_u64().expect("a room")));
            }
            Some(count) => {
                let list = |value: &Value| value.as_array().expect("a list").len() as u64;
                assert_eq!([list(&host), list(&port), list(&room)], [count; 3], "{row}");
                assert!(
                    room.as_array().expect("a list").iter().all(|room| rooms.insert(room.as_u64().expect("a room")))
                );
            }
        }
        if client.get("rid").is_none() {
            fields.remove("rid");
        }
        let mut expected = client.clone();
        if let Some(expected) = expected.as_object_mut() {
            expected.retain(|name, _| !name.starts_with("bootstrap_"));
        }
        assert_eq!(&sent, &expected);
    }
}

#[tokio::test]
async fn a_unified_worker_gets_the_request_alone_and_without_bootstrap() {
    let worker = Mock::well("u").await;
    let router =
        Served::ready(RouterConfig { worker_urls: vec![worker.url.clone()], send_rid: false, ..quick() }, 1).await;
    let body = json!({"text": "x", "sampling_params": {}, "bootstrap_room": 5, "bootstrap_host": "evil"});
    let got = router.post("/generate", &body).await;
    assert_eq!(got.status, 200);
    assert_eq!(worker.asked()[0].json(), json!({"text": "x", "sampling_params": {}}));
    assert!(!got.headers.contains_key("x-pd-prefill"));
}

#[tokio::test]
async fn without_a_bootstrap_port_null_is_sent() {
    let (prefill, decode) = (Mock::well("p").await, Mock::well("d").await);
    let config = RouterConfig { prefill: vec![prefill.url.clone()], ..pair(&prefill, &decode) };
    let router = Served::ready(config, 2).await;
    router.post("/v1/chat/completions", &chat()).await;
    assert_eq!(prefill.asked()[0].json()["bootstrap_port"], Value::Null);
}

#[tokio::test]
async fn the_next_turn_of_a_chat_goes_to_the_prefill_worker_that_has_the_last_one() {
    let prefills = [Mock::well("p0").await, Mock::well("p1").await, Mock::well("p2").await];
    let decode = Mock::well("d").await;
    let config = RouterConfig {
        prefill: prefills.iter().map(|mock| mock.url.clone()).collect(),
        policy: pd_core::router::Policy::CacheAware,
        page_size: 4,
        ..pair(&prefills[0], &decode)
    };
    let router = Served::ready(config, 4).await;
    for user in 0..6 {
        let mut messages = vec![json!({"role": "user", "content": format!("{user} asks {}", "about it ".repeat(40))})];
        let mut places = Vec::new();
        for _turn in 0..4 {
            let got = router.post("/v1/chat/completions", &json!({"model": "tiny", "messages": messages})).await;
            places.push(got.headers["x-pd-prefill"].clone());
            messages.push(json!({"role": "assistant", "content": "yes"}));
            messages.push(json!({"role": "user", "content": "and then?"}));
        }
        assert!(places.windows(2).all(|pair| pair[0] == pair[1]), "{places:?}");
    }
    // A negative control: different conversations spread.
    assert!(prefills.iter().all(|mock| !mock.asked().is_empty()));
}

#[tokio::test]
async fn the_prompts_logprobs_of_the_prefill_worker_come_before_the_decode_workers() {
    let (prefill, decode) = (Mock::well("p").await, Mock::well("d").await);
    *prefill.shared.answer.lock().unwrap() = json!({"meta_info": {"input_token_logprobs": [[null, 1, null]]}});
    *decode.shared.answer.lock().unwrap() =
        json!({"text": "x", "meta_info": {"input_token_logprobs": [[-1.5, 2, null]]}});
    let router = Served::ready(pair(&prefill, &decode), 2).await;
    let got = router.post("/generate", &json!({"text": "x", "return_logprob": true})).await;
    assert_eq!(got.json()["meta_info"]["input_token_logprobs"], json!([[null, 1, null], [-1.5, 2, null]]));
    // The length is that of the merged body, not the worker's.
    assert_eq!(got.headers["content-length"], got.body.len().to_string().as_str());
    let got = router.post("/generate", &json!({"text": "x"})).await;
    assert_eq!(got.json()["meta_info"]["input_token_logprobs"], json!([[-1.5, 2, null]]));
}

fn ids(first: u32) -> Value {
    json!({"input_ids": (first..first + 64).collect::<Vec<u32>>(), "sampling_params": {}})
}

#[tokio::test]
async fn what_workers_say_of_their_caches_decides_where_a_prompt_goes() {
    let mocks = [Mock::well("a").await, Mock::well("b").await];
    let config = RouterConfig {
        worker_urls: mocks.iter().map(|mock| mock.url.clone()).collect(),
        policy: pd_core::router::Policy::CacheAware,
        page_size: 16,
        ..quick()
    };
    let (tell, changes) = mpsc::channel(4);
    let hooks = RouterHooks { changes: Some(changes), ..RouterHooks::default() };
    let router = Served::start_with(config, hooks).await;
    router.until_up(2).await;
    // Equal prompts whose keys are told of one worker, prompt by prompt: each goes where its pages are.
    for (round, holder) in [1, 0, 1, 1, 0].into_iter().enumerate() {
        let first = 1000 * round as u32;
        let tokens: Vec<u32> = (first..first + 64).collect();
        let view = PromptView { model: "", salt: "", lora: "", content: PromptContent::Tokens(&tokens) };
        let keys = TextKeyer.keys(16, &view).keys;
        let stored = |key: &pd_core::id::PageKey| KvChange::Stored {
            key: *key,
            parent: pd_core::id::PageKey(0),
            tier: pd_core::event::Tier::Device,
        };
        let url = mocks[holder].url.clone();
        tell.send(WorkerChanges { url, changes: keys.iter().map(stored).collect() }).await.expect("it listens");
        // The channel is read by another task of the same thread.
        tokio::task::yield_now().await;
        let got = router.post("/generate", &ids(first)).await;
        assert_eq!(got.json()["id"], ["a", "b"][holder], "round {round}");
    }
}

#[tokio::test]
async fn a_worker_that_says_to_be_busy_is_left_alone() {
    let (busy, idle) = (Mock::well("busy").await, Mock::well("idle").await);
    busy.shared.info.lock().unwrap()["loads"] = json!([{"num_running_reqs": 50, "num_waiting_reqs": 9}]);
    let config = RouterConfig {
        worker_urls: vec![busy.url.clone(), idle.url.clone()],
        policy: pd_core::router::Policy::CacheAware,
        load_monitor_interval_secs: 0.05,
        ..quick()
    };
    let router = Served::ready(config, 2).await;
    // Without reports, prompts that nobody holds go to the emptier index in turn, never twelve times to one.
    let mut in_a_row = 0;
    let mut asked = 0;
    within(async {
        while in_a_row < 12 {
            asked += 1;
            let got = router.post("/generate", &ids(100_000 + 100 * asked)).await;
            in_a_row = if got.json()["id"] == "idle" { in_a_row + 1 } else { 0 };
        }
    })
    .await;
}
