//! `/generate`.

use pd_core::config::Mode;
use pd_core::id::{RequestId, Room};
use serde_json::{Value, json};

use super::{END, Server};
use crate::http::EdgeConfig;
use crate::http::backend::{JobLeg, Source};
use crate::http::mock::Mock;

async fn ask(server: &Server, body: Value) -> Value {
    server.post("/generate", &body).await.ok()
}

fn greedy(count: u32) -> Value {
    json!({ "temperature": 0, "max_new_tokens": count, "ignore_eos": true })
}

#[tokio::test]
async fn an_answer_says_where_its_prompt_came_from() {
    let server = Server::new();
    let body = json!({ "text": "hello world hello world", "sampling_params": greedy(4), "rid": "r1" });
    ask(&server, body.clone()).await;
    let answer = ask(&server, body).await;
    let meta = &answer["meta_info"];
    assert_eq!((&meta["id"], &meta["finish_reason"]), (&json!("r1"), &json!({ "type": "length", "length": 4 })));
    assert_eq!(answer["output_ids"].as_array().unwrap().len(), 4);
    let (prompt, cached) = (meta["prompt_tokens"].as_u64().unwrap(), meta["cached_tokens"].as_u64().unwrap());
    assert!(cached > 0);
    assert_eq!(meta["cached_tokens_details"]["device"], cached);
    assert_eq!(meta["miss_reasons"], json!({ "nothing_stored": prompt - cached }));
    assert!(meta["e2e_latency"].as_f64().unwrap() >= meta["first_token_latency"].as_f64().unwrap());
    assert_eq!((&meta["num_retractions"], &meta["total_retractions"]), (&json!(0), &json!(0)));
}

#[tokio::test]
async fn ids_and_text_are_two_ways_to_the_same_answer_and_lists_give_lists() {
    let server = Server::new();
    let ids: Vec<u32> = server.text.encode("the city", true).unwrap().iter().map(|token| token.0).collect();
    let one = ask(&server, json!({ "text": "the city", "sampling_params": greedy(5) })).await;
    let other = ask(&server, json!({ "input_ids": ids, "sampling_params": greedy(5) })).await;
    assert_eq!(one["output_ids"], other["output_ids"]);
    let texts =
        ask(&server, json!({ "text": ["the city", "hello"], "sampling_params": greedy(5), "rid": ["a", "b"] })).await;
    assert_eq!(texts[0]["output_ids"], one["output_ids"]);
    assert_eq!((&texts[0]["meta_info"]["id"], &texts[1]["meta_info"]["id"]), (&json!("a"), &json!("b")));
    let lists = ask(&server, json!({ "input_ids": [ids], "sampling_params": greedy(5) })).await;
    assert_eq!(lists.as_array().unwrap().len(), 1);
    let mut params = greedy(5);
    params["n"] = 2.into();
    assert_eq!(ask(&server, json!({ "text": "hello", "sampling_params": params })).await.as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn streams_are_cumulative_and_end_with_the_reason() {
    let server = Server::saying("the weather 你好 in the city");
    let events = server.post("/generate", &json!({ "text": "hello", "stream": true })).await.events();
    let texts: Vec<&str> = events.iter().map(|event| event["text"].as_str().unwrap()).collect();
    assert!(texts.windows(2).all(|pair| pair[1].starts_with(pair[0])));
    assert_eq!(texts.last().unwrap(), &"the weather 你好 in the city");
    let (last, before) = events.split_last().unwrap();
    assert!(before.iter().all(|event| event["meta_info"]["finish_reason"].is_null()));
    assert_eq!(last["meta_info"]["finish_reason"], json!({ "type": "stop", "matched": END.0 }));
    assert_eq!(last["output_ids"].as_array().unwrap().len(), before.len());
}

#[tokio::test]
async fn incremental_streams_join_to_the_cumulative_one() {
    let config = EdgeConfig { is_stream_incremental: true, ..EdgeConfig::default() };
    let server = Server::of(Mock::new(Mock::info("tiny-model", Mode::Unified)), config);
    let mut body = json!({ "text": ["hello world", "the city"], "sampling_params": greedy(6), "return_logprob": true });
    let whole = ask(&server, body.clone()).await;
    body["stream"] = true.into();
    let events = server.post("/generate", &body).await.events();
    for index in 0..2 {
        let mine: Vec<&Value> = events.iter().filter(|event| event["index"] == index).collect();
        let text: String = mine.iter().map(|event| event["text"].as_str().unwrap()).collect();
        assert_eq!(text, whole[index]["text"].as_str().unwrap());
        let rows: Vec<Value> = mine
            .iter()
            .flat_map(|event| event["meta_info"]["output_token_logprobs"].as_array().unwrap().clone())
            .collect();
        assert_eq!(json!(rows), whole[index]["meta_info"]["output_token_logprobs"]);
    }
}

#[tokio::test]
async fn log_probabilities_are_rows_of_number_token_and_text() {
    let server = Server::saying("hello world");
    let body = json!({
        "text": "the city", "return_logprob": true, "top_logprobs_num": 2, "logprob_start_len": 0, "return_text_in_logprobs": true,
    });
    let answer = ask(&server, body).await;
    let meta = &answer["meta_info"];
    let token = server.text.encode("hello", false).unwrap()[0];
    assert_eq!(meta["output_token_logprobs"][0], json!([-0.5, token.0, server.text.text_of(token)]));
    assert_eq!(meta["input_token_logprobs"][0], json!([null, 377, "<|begin|>"]));
    assert_eq!(meta["input_token_logprobs"].as_array().unwrap().len() as u64, meta["prompt_tokens"].as_u64().unwrap());
    assert_eq!(meta["output_top_logprobs"][0].as_array().unwrap().len(), 2);
    assert_eq!(meta["input_top_logprobs"][0], Value::Null);
}

#[tokio::test]
async fn the_limit_is_128_and_0_gives_what_is_known_of_the_prompt() {
    let server = Server::new();
    let answer = ask(&server, json!({ "text": "hello", "sampling_params": { "ignore_eos": true } })).await;
    assert_eq!(answer["meta_info"]["completion_tokens"], 128);
    let answer = ask(&server, json!({ "text": "hello", "sampling_params": { "max_new_tokens": 0 } })).await;
    assert_eq!((&answer["text"], &answer["meta_info"]["completion_tokens"]), (&json!(""), &json!(0)));
}

fn pair(more: Value) -> Value {
    let mut body =
        json!({ "text": "hello", "bootstrap_host": "10.0.0.1", "bootstrap_port": 8998, "bootstrap_room": 77 });
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

#[tokio::test]
async fn both_halves_of_a_hand_off_name_it_alike() {
    let mut requests = Vec::new();
    for mode in [Mode::Prefill, Mode::Decode] {
        let server = Server::mode(mode);
        let answer = ask(&server, pair(json!({}))).await;
        let job = server.mock.jobs().remove(0);
        let wanted = if mode == Mode::Prefill {
            assert_eq!(answer["meta_info"]["finish_reason"], json!({ "type": "length", "length": 1 }));
            JobLeg::Prefill { room: Room(77) }
        } else {
            JobLeg::Decode { room: Room(77), from: Source::At { host: "10.0.0.1".into(), port: Some(8998) } }
        };
        assert_eq!(job.leg, wanted);
        requests.push((job.request, job.prompt));
    }
    assert_eq!(requests[0], requests[1]);
    assert_eq!(requests[0].0, RequestId(77));
    let server = Server::new();
    ask(&server, pair(json!({}))).await;
    assert_eq!(server.mock.jobs()[0].leg, JobLeg::Whole, "a unified worker does both halves");
}

#[tokio::test]
async fn rooms_come_as_one_number_or_as_lists() {
    let server = Server::mode(Mode::Decode);
    let texts = json!(["hello", "city"]);
    ask(&server, pair(json!({ "text": texts, "bootstrap_room": [5, 9], "bootstrap_host": ["a", "[::1]"], "bootstrap_port": [1, null] }))).await;
    ask(&server, pair(json!({ "text": texts, "bootstrap_room": 30, "bootstrap_port": null }))).await;
    let two = json!({ "n": 2, "max_new_tokens": 1 });
    ask(&server, pair(json!({ "text": texts, "bootstrap_room": [50, 60], "sampling_params": two }))).await;
    let at = |host: &str, port| Source::At { host: host.into(), port };
    let legs: Vec<JobLeg> = server.mock.jobs().into_iter().map(|job| job.leg).collect();
    assert_eq!(legs[0], JobLeg::Decode { room: Room(5), from: at("a", Some(1)) });
    assert_eq!(legs[1], JobLeg::Decode { room: Room(9), from: at("::1", None) });
    let rooms: Vec<u64> = legs
        .iter()
        .map(|leg| match leg {
            JobLeg::Decode { room, .. } | JobLeg::Prefill { room } => room.0,
            JobLeg::Whole => 0,
        })
        .collect();
    assert_eq!(rooms, [5, 9, 30, 31, 50, 51, 60, 61]);
}

#[tokio::test]
async fn the_fake_host_means_that_nothing_is_transferred() {
    for mode in [Mode::Prefill, Mode::Decode] {
        let server = Server::mode(mode);
        let fake = pair(json!({ "bootstrap_host": "2.2.2.2", "bootstrap_room": 0 }));
        ask(&server, fake.clone()).await;
        ask(&server, fake).await;
        let jobs = server.mock.jobs();
        assert_ne!(jobs[0].request, jobs[1].request, "room 0 is everybody's");
        for job in jobs {
            match job.leg {
                JobLeg::Decode { room, from } => assert!(room.is_fake() && from == Source::Fake),
                JobLeg::Prefill { room } => assert!(room.is_fake()),
                JobLeg::Whole => panic!("a worker of one half"),
            }
        }
    }
}

#[tokio::test]
async fn a_retry_with_a_new_room_drops_the_old_one() {
    let server = Server::mode(Mode::Decode);
    server.mock.hold();
    let first = tokio::spawn(server.app_post("/generate", pair(json!({ "rid": "again" }))));
    server.submitted(1).await;
    let second = tokio::spawn(server.app_post("/generate", pair(json!({ "rid": "again", "bootstrap_room": 78 }))));
    server.submitted(2).await;
    let answer: Value = serde_json::from_str(&first.await.unwrap()).unwrap();
    assert_eq!(answer["meta_info"]["finish_reason"]["type"], "abort");
    assert_eq!(*server.mock.cancels().borrow(), [RequestId(77)]);
    server.mock.release();
    let answer: Value = serde_json::from_str(&second.await.unwrap()).unwrap();
    assert_eq!(answer["meta_info"]["id"], "again");
}
