//! `/v1/chat/completions`.

use serde_json::{Value, json};

use super::{END, Server};

fn hello(more: &Value) -> Value {
    let mut body = json!({ "model": "tiny-model", "messages": [{ "role": "user", "content": "hello world" }] });
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

async fn ask(server: &Server, more: Value) -> Value {
    server.post("/v1/chat/completions", &hello(&more)).await.ok()
}

async fn stream(server: &Server, mut more: Value) -> Vec<Value> {
    more["stream"] = true.into();
    server.post("/v1/chat/completions", &hello(&more)).await.events()
}

fn joined(events: &[Value], index: usize) -> String {
    let choices = events.iter().flat_map(|event| event["choices"].as_array().unwrap());
    choices.filter(|choice| choice["index"] == index).filter_map(|choice| choice["delta"]["content"].as_str()).collect()
}

#[tokio::test]
async fn an_answer_has_the_shape_that_clients_read() {
    let answer = ask(&Server::saying("the weather 🙂"), json!({})).await;
    assert_eq!(answer["object"], "chat.completion");
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert!(answer["created"].as_u64().unwrap() > 1_600_000_000);
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"], json!({ "role": "assistant", "content": "the weather 🙂" }));
    assert_eq!((&choice["finish_reason"], &choice["matched_stop"]), (&json!("stop"), &json!(END.0)));
    assert_eq!(choice["stop_reason"], choice["matched_stop"]);
    let usage = &answer["usage"];
    assert_eq!(
        usage["total_tokens"],
        usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap()
    );
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 0);
}

#[tokio::test]
async fn the_prompt_is_what_the_template_says_and_is_tokenised_without_another_begin() {
    let server = Server::new();
    ask(&server, json!({})).await;
    let job = &server.mock.jobs()[0];
    let wanted = server.text.encode("<|begin|><|user|>hello world<|end|><|assistant|>", false).unwrap();
    assert_eq!(job.prompt.tokens, wanted);
    assert!(job.prompt.is_well_formed(4));
    assert_eq!(job.stop, [END]);
}

#[tokio::test]
async fn a_prompt_that_comes_again_is_counted_as_cached() {
    let server = Server::new();
    ask(&server, json!({})).await;
    let cached = ask(&server, json!({})).await["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert!(cached > 0);
    let salted = ask(&server, json!({ "cache_salt": "tenant" })).await;
    assert_eq!(salted["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
}

#[tokio::test]
async fn a_stream_is_role_tokens_reason_and_done() {
    let server = Server::saying("the city says é 你好 🙂");
    let events = stream(&server, json!({})).await;
    assert_eq!(events[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
    assert!(events.iter().all(|event| event["object"] == "chat.completion.chunk" && event.get("usage").is_none()));
    let reasons: Vec<&Value> = events.iter().map(|event| &event["choices"][0]["finish_reason"]).collect();
    assert!(reasons[..reasons.len() - 1].iter().all(|reason| reason.is_null()));
    assert_eq!(*reasons[reasons.len() - 1], "stop");
    assert_eq!(joined(&events, 0), "the city says é 你好 🙂");
}

#[tokio::test]
async fn usage_comes_in_one_chunk_without_choices_when_asked_for() {
    let server = Server::new();
    let plain = ask(&server, json!({ "max_tokens": 5, "ignore_eos": true })).await;
    let events =
        stream(&server, json!({ "max_tokens": 5, "ignore_eos": true, "stream_options": { "include_usage": true } }))
            .await;
    let with_usage: Vec<&Value> = events.iter().filter(|event| event.get("usage").is_some()).collect();
    assert_eq!(with_usage.len(), 1);
    let last = events.last().unwrap();
    assert_eq!((with_usage[0], &last["choices"]), (last, &json!([])));
    assert_eq!(last["usage"]["completion_tokens"], 5);
    assert_eq!(last["usage"]["prompt_tokens"], plain["usage"]["prompt_tokens"]);
}

#[tokio::test]
async fn continuous_usage_is_on_every_chunk_and_never_goes_down() {
    let options = json!({ "include_usage": true, "continuous_usage_stats": true });
    let events =
        stream(&Server::new(), json!({ "max_tokens": 6, "ignore_eos": true, "stream_options": options })).await;
    let counts: Vec<u64> = events.iter().map(|event| event["usage"]["completion_tokens"].as_u64().unwrap()).collect();
    assert!(counts.is_sorted());
    assert_eq!((counts[0], counts[counts.len() - 1]), (0, 6));
}

#[tokio::test]
async fn streamed_and_complete_answers_are_the_same_text_wherever_they_are_cut() {
    // The mock repeats the prompt's tokens, so limits and seeds cut characters in all places.
    let server = Server::new();
    for limit in 1..40 {
        let more = json!({
            "messages": [{ "role": "user", "content": "é你🙂👨‍👩‍👧 the weather" }], "max_tokens": limit, "seed": limit, "ignore_eos": true,
        });
        let whole = ask(&server, more.clone()).await;
        assert_eq!(whole["usage"]["completion_tokens"], limit);
        assert_eq!(
            joined(&stream(&server, more).await, 0),
            whole["choices"][0]["message"]["content"].as_str().unwrap()
        );
    }
}

#[tokio::test]
async fn limits_are_the_new_name_then_the_old_one_then_what_there_is_room_for() {
    let server = Server::new();
    for body in [
        json!({ "max_completion_tokens": 3 }),
        json!({ "max_tokens": 3 }),
        json!({ "max_completion_tokens": 3, "max_tokens": 9 }),
        json!({ "max_completion_tokens": null, "max_tokens": 3.0 }),
        json!({}),
        json!({ "max_tokens": 100_000 }),
    ] {
        ask(&server, body).await;
    }
    let jobs = server.mock.jobs();
    let room = 512 - jobs[0].prompt.length;
    assert_eq!(jobs.iter().map(|job| job.limit).collect::<Vec<_>>(), [3, 3, 3, 3, room, room]);
}

#[tokio::test]
async fn several_answers_have_indexes_and_seeds_of_their_own() {
    let server = Server::new();
    let more = json!({ "n": 3, "seed": 7, "max_tokens": 4 });
    let answer = ask(&server, more.clone()).await;
    let indexes: Vec<&Value> = answer["choices"].as_array().unwrap().iter().map(|choice| &choice["index"]).collect();
    assert_eq!(indexes, [0, 1, 2]);
    assert_eq!(server.mock.jobs().iter().map(|job| job.sampling.seed).collect::<Vec<_>>(), [Some(7), Some(8), Some(9)]);
    assert_eq!(answer["usage"]["prompt_tokens"], server.mock.jobs()[0].prompt.length, "a prompt counts once");
    let events = stream(&server, more).await;
    let ends = events.iter().filter(|event| !event["choices"][0]["finish_reason"].is_null()).count();
    assert_eq!(ends, 3);
    for index in 0..3 {
        assert_eq!(joined(&events, index), answer["choices"][index]["message"]["content"].as_str().unwrap());
    }
}

#[tokio::test]
async fn a_stop_string_ends_the_answer_and_the_work() {
    let server = Server::saying("the weather in the city is fine and goes on");
    for (stop, wanted) in
        [(json!("city"), "the weather in the "), (json!(["zzz", "r i"]), "the weathe"), (json!("the"), "")]
    {
        let matched = stop.as_str().map_or("r i", |stop| stop);
        let more = json!({ "stop": stop });
        let answer = ask(&server, more.clone()).await;
        let choice = &answer["choices"][0];
        assert_eq!(choice["message"]["content"], wanted);
        assert_eq!((&choice["finish_reason"], &choice["matched_stop"]), (&json!("stop"), &json!(matched)));
        assert_eq!(joined(&stream(&server, more).await, 0), wanted);
    }
    assert_eq!(server.mock.cancels().borrow().len(), 6, "the worker is told");
    assert_eq!(server.edge.in_flight(), 0);
}

#[tokio::test]
async fn stop_strings_stay_where_they_are_included_and_wait_for_the_least_tokens() {
    let server = Server::saying("the weather in the city");
    for name in ["include_stop_str_in_output", "no_stop_trim"] {
        let answer = ask(&server, json!({ "stop": "weather", name: true })).await;
        assert_eq!(answer["choices"][0]["message"]["content"], "the weather");
    }
    // The first "the" comes too early to count; the next one is in "weather".
    let answer = ask(&server, json!({ "stop": "the", "min_tokens": 2 })).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "the wea");
}

#[tokio::test]
async fn stop_tokens_end_the_answer_and_are_not_in_it() {
    let server = Server::saying("hello world hello");
    let token = server.text.encode(" world", false).unwrap()[0];
    let answer = ask(&server, json!({ "stop_token_ids": [token.0], "ignore_eos": true })).await;
    let choice = &answer["choices"][0];
    assert_eq!((&choice["message"]["content"], &choice["matched_stop"]), (&json!("hello"), &json!(token.0)));
    let before = server.text.encode("hello", false).unwrap().len();
    assert_eq!(answer["usage"]["completion_tokens"], before + 1, "the stop token counts");
}

#[tokio::test]
async fn log_probabilities_have_one_entry_for_each_token() {
    let server = Server::saying("hello 🙂");
    let answer = ask(&server, json!({ "logprobs": true, "top_logprobs": 2 })).await;
    let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len() as u64, answer["usage"]["completion_tokens"].as_u64().unwrap());
    assert!(
        content.iter().all(|entry| entry["logprob"] == -0.5 && entry["top_logprobs"].as_array().unwrap().len() == 2)
    );
    let bytes: Vec<u8> = content[..content.len() - 1]
        .iter()
        .flat_map(|entry| entry["bytes"].as_array().unwrap())
        .map(|byte| u8::try_from(byte.as_u64().unwrap()).unwrap())
        .collect();
    assert_eq!(bytes, "hello 🙂".as_bytes(), "bytes join to the text where tokens cannot");
    let events = stream(&server, json!({ "logprobs": true })).await;
    assert_eq!(events[1]["choices"][0]["logprobs"]["content"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn content_may_be_parts_and_messages_may_be_left_open() {
    let server = Server::new();
    let part = json!([{ "type": "text", "text": "hello" }, { "type": "text", "text": "world" }]);
    ask(&server, json!({ "messages": [{ "role": "user", "content": part }] })).await;
    let open = json!([{ "role": "user", "content": "hello" }, { "role": "assistant", "content": "The city" }]);
    ask(&server, json!({ "messages": open, "continue_final_message": true })).await;
    let jobs = server.mock.jobs();
    let prompts: Vec<String> = jobs.iter().map(|job| server.text.decode(&job.prompt.tokens, false)).collect();
    assert_eq!(prompts[0], "<|begin|><|user|>hello\nworld<|end|><|assistant|>");
    assert_eq!(prompts[1], "<|begin|><|user|>hello<|end|><|assistant|>The city");
}

#[tokio::test]
async fn unknown_fields_are_ignored_and_null_is_absent() {
    let server = Server::new();
    let plain = ask(&server, json!({ "temperature": 0 })).await;
    let full = json!({
        "temperature": 0.0, "frobnicate": { "x": 1 }, "top_p": null, "n": null, "stop": null, "logprobs": null,
        "max_tokens": null, "stream_options": null, "user": "u", "store": false, "service_tier": "auto", "lora_path": null,
        "metadata": { "k": "v" }, "response_format": { "type": "text" }, "kv_transfer_params": { "a": 1 },
    });
    let full = ask(&server, full).await;
    assert_eq!(full["choices"], plain["choices"]);
}

#[tokio::test]
async fn sampling_reaches_the_worker_as_it_was_asked_for() {
    let server = Server::new();
    let more = json!({
        "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "frequency_penalty": 0.25, "presence_penalty": -0.25,
        "repetition_penalty": 1.5, "seed": -1, "logit_bias": { "5": 1.5 }, "min_tokens": 2, "priority": -3, "max_tokens": 9,
    });
    ask(&server, more).await;
    insta::assert_debug_snapshot!(server.mock.jobs()[0].sampling, @r"
    Sampling {
        temperature: 0.5,
        top_p: 0.9,
        top_k: Some(
            5,
        ),
        min_p: 0.1,
        frequency_penalty: 0.25,
        presence_penalty: -0.25,
        repetition_penalty: 1.5,
        seed: Some(
            18446744073709551615,
        ),
        bias: [
            (
                Token(
                    5,
                ),
                1.5,
            ),
        ],
        min_tokens: 2,
        logprobs: None,
        prompt_logprobs_from: None,
    }
    ");
    assert_eq!(server.mock.jobs()[0].priority, -3);
}
