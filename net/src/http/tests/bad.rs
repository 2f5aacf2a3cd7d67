//! What is wrong is said: with a status, the field, and what to do.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use pd_core::config::Mode;
use pd_core::event::Refusal;
use serde_json::{Value, json};

use super::Server;
use crate::http::EdgeConfig;
use crate::http::backend::Refused;
use crate::http::mock::Mock;

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";
const NATIVE: &str = "/generate";

fn user(text: &str) -> Value {
    json!([{ "role": "user", "content": text }])
}

/// Path, body, the field at fault, and a part of the message.
fn cases() -> Vec<(&'static str, Value, &'static str, &'static str)> {
    let chat = |name: &str, value: Value| {
        let mut body = json!({ "messages": user("hi") });
        body[name] = value;
        body
    };
    let text = |name: &str, value: Value| {
        let mut body = json!({ "prompt": "hi" });
        body[name] = value;
        body
    };
    let native = |name: &str, value: Value| json!({ "text": "hi", "sampling_params": { name: value } });
    vec![
        (CHAT, json!({}), "messages", "missing"),
        (CHAT, json!({ "messages": [] }), "messages", "at least one message"),
        (CHAT, json!({ "messages": "hi" }), "messages", "the text \"hi\""),
        (CHAT, json!({ "messages": [3] }), "messages[0]", "an object with role and content"),
        (CHAT, json!({ "messages": [{ "content": "x" }] }), "messages[0]", "role"),
        (CHAT, json!({ "messages": [{ "role": "user", "content": 5 }] }), "messages[0]", "content must be a text"),
        (
            CHAT,
            json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] }),
            "messages[0]",
            "image_url",
        ),
        (CHAT, json!({ "messages": [{ "role": "wizard", "content": "x" }] }), "messages", "role wizard is not known"),
        (CHAT, chat("temperature", json!(99)), "temperature", "from 0 to 2; it is 99"),
        (CHAT, chat("temperature", json!("warm")), "temperature", "the text \"warm\""),
        (CHAT, chat("top_p", json!(0)), "top_p", "above 0"),
        (CHAT, chat("top_k", json!(-7)), "top_k", "-1 (all)"),
        (CHAT, chat("max_tokens", json!(0)), "max_tokens", "at least 1"),
        (CHAT, chat("max_tokens", json!(-1)), "max_tokens", "from 0"),
        (CHAT, chat("max_completion_tokens", json!(1.5)), "max_completion_tokens", "whole number"),
        (CHAT, chat("n", json!(0)), "n", "from 1 to 128"),
        (CHAT, chat("n", json!(1000)), "n", "from 1 to 128"),
        (CHAT, chat("stream", json!("yes")), "stream", "true or false"),
        (CHAT, chat("stream_options", json!(1)), "stream_options", "an object"),
        (CHAT, chat("stream_options", json!({ "include_usage": 1 })), "stream_options.include_usage", "true or false"),
        (CHAT, chat("stop", json!([1])), "stop", "a text or a list"),
        (CHAT, chat("stop", json!("x".repeat(5000))), "stop", "4096 bytes"),
        (CHAT, chat("stop_token_ids", json!([1, 99_999])), "stop_token_ids[1]", "0 to 381"),
        (CHAT, chat("logit_bias", json!({ "a": 1 })), "logit_bias", "an object of at most"),
        (CHAT, chat("logit_bias", json!({ "5": 1000 })), "logit_bias", "-100 to 100"),
        (CHAT, chat("top_logprobs", json!(3)), "top_logprobs", "needs logprobs"),
        (CHAT, chat("seed", json!("x")), "seed", "whole number of 64 bits"),
        (CHAT, chat("response_format", json!({ "type": "json_object" })), "response_format", "no grammars"),
        (CHAT, chat("tool_choice", json!("required")), "tool_choice", "auto"),
        (CHAT, chat("tools", json!("hammer")), "tools", "a list"),
        (CHAT, chat("lora_path", json!("adapter")), "lora_path", "no LoRA"),
        (CHAT, chat("rid", json!("two words")), "rid", "printable ASCII"),
        (CHAT, chat("rid", json!(7)), "rid", "a text"),
        (CHAT, chat("priority", json!(1e12)), "priority", "32 bits"),
        (CHAT, chat("chat_template", json!("rag")), "chat_template", "no chat template named \"rag\""),
        (CHAT, chat("chat_template_kwargs", json!([1])), "chat_template_kwargs", "an object"),
        (CHAT, json!({ "messages": user(&"long ".repeat(10_000)) }), "prompt", "512 tokens"),
        (TEXT, json!({}), "prompt", "missing"),
        (TEXT, json!({ "prompt": [] }), "prompt", "not empty"),
        (TEXT, json!({ "prompt": [[]] }), "prompt", "no tokens"),
        (TEXT, json!({ "prompt": [1, -2] }), "prompt[1]", "0 to 381"),
        (TEXT, json!({ "prompt": [1, 382] }), "prompt[1]", "is 382"),
        (TEXT, json!({ "prompt": ["a", 1] }), "prompt", "list of texts"),
        (TEXT, json!({ "prompt": { "a": 1 } }), "prompt", "an object"),
        (TEXT, text("max_tokens", json!(0)), "max_tokens", "echo"),
        (TEXT, text("best_of", json!(4)), "best_of", "equal to n"),
        (TEXT, text("logprobs", json!(50)), "logprobs", "at most 20"),
        (TEXT, text("suffix", json!("end")), "suffix", "cannot fill gaps"),
        (TEXT, json!({ "prompt": vec!["a"; 100], "n": 100 }), "n", "4096 sequences"),
        (NATIVE, json!({}), "text", "both are missing"),
        (NATIVE, json!({ "text": "a", "input_ids": [1] }), "input_ids", "both given"),
        (NATIVE, json!({ "text": [] }), "text", "at least one"),
        (NATIVE, json!({ "input_ids": [[1], 2] }), "input_ids", "list of lists"),
        (NATIVE, json!({ "input_ids": ["x"] }), "input_ids[0]", "whole numbers"),
        (NATIVE, json!({ "text": "a", "sampling_params": 1 }), "sampling_params", "an object"),
        (NATIVE, json!({ "text": "a", "sampling_params": [{}] }), "sampling_params", "one object for all"),
        (NATIVE, native("max_new_tokens", json!("many")), "sampling_params.max_new_tokens", "whole number"),
        (NATIVE, native("regex", json!("a+")), "sampling_params.regex", "no grammars"),
        (NATIVE, json!({ "text": ["a", "b"], "rid": ["only one"] }), "rid", "2 names"),
        (NATIVE, json!({ "text": "a", "return_hidden_states": true }), "return_hidden_states", "not kept"),
        ("/tokenize", json!({}), "prompt", "missing"),
        ("/detokenize", json!({ "tokens": [1, "a"] }), "tokens[1]", "the text \"a\""),
        ("/detokenize", json!({}), "tokens", "missing"),
        ("/abort_request", json!({}), "rid", "abort_all"),
    ]
}

#[tokio::test]
async fn bad_values_are_refused_with_the_field_and_the_reason() {
    let server = Server::new();
    for (path, body, param, part) in cases() {
        let answer = server.post(path, &body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path} {body} {}", answer.text);
        let json = answer.json();
        let error = &json["error"];
        assert_eq!(error["param"], param, "{path} {body} {}", answer.text);
        assert!(error["message"].as_str().unwrap().contains(part), "{path} {body} {}", answer.text);
        assert_eq!((&error["type"], &error["status"]), (&json!("invalid_request_error"), &json!(400)));
        assert_eq!(
            (&json["object"], &json["code"], &json["message"]),
            (&json!("error"), &json!(400), &error["message"])
        );
    }
    assert_eq!(server.mock.jobs().len(), 0, "nothing of it reached the worker");
}

#[tokio::test]
async fn rooms_that_do_not_fit_are_refused() {
    let server = Server::mode(Mode::Decode);
    for (more, param) in [
        (json!({ "bootstrap_host": "h" }), "bootstrap_room"),
        (json!({ "bootstrap_room": 1 }), "bootstrap_host"),
        (json!({ "bootstrap_host": "h", "bootstrap_room": -1 }), "bootstrap_room"),
        (json!({ "bootstrap_host": "h", "bootstrap_room": u64::MAX }), "bootstrap_room"),
        (json!({ "bootstrap_host": "h", "bootstrap_room": [1, 2, 3] }), "bootstrap_room"),
        (json!({ "bootstrap_host": "h", "bootstrap_room": 1, "bootstrap_port": 99999 }), "bootstrap_port"),
        (json!({ "bootstrap_host": 4, "bootstrap_room": 1 }), "bootstrap_host"),
    ] {
        let mut body = more;
        body["text"] = json!(["a", "b"]);
        let answer = server.post(NATIVE, &body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body} {}", answer.text);
        assert_eq!(answer.json()["error"]["param"], param, "{body} {}", answer.text);
    }
}

#[tokio::test]
async fn broken_json_is_located() {
    let server = Server::new();
    for (body, part) in [
        ("", "empty"),
        ("  \n", "empty"),
        ("{\n  \"prompt\": \"a\",\n  oops\n}", "line 3 column 3"),
        ("{\"prompt\": \"a\"", "line 1"),
        ("[1]", "must be a JSON object; it is a list of 1"),
        ("\"text\"", "must be a JSON object"),
        ("{\"prompt\": 1e999}", "line 1"),
    ] {
        let answer = server.post_text(TEXT, body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body:?}");
        let error = answer.json()["error"].clone();
        assert_eq!(error["code"], "invalid_json");
        assert!(error["message"].as_str().unwrap().contains(part), "{body:?} {error}");
    }
    let deep = format!("{{\"prompt\": {}1{}}}", "[".repeat(5000), "]".repeat(5000));
    assert_eq!(server.post_text(TEXT, &deep).await.status, StatusCode::BAD_REQUEST);
    let raw = Request::post(TEXT).body(Body::from(&b"{\"prompt\": \"\xff\"}"[..])).unwrap();
    assert_eq!(server.send(raw).await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn paths_methods_types_and_sizes_have_statuses_of_their_own() {
    let config = EdgeConfig { body_max: 1000, ..EdgeConfig::default() };
    let server = Server::of(Mock::new(Mock::info("tiny-model", Mode::Unified)), config);
    let nowhere = server.get("/v1/nowhere").await;
    assert_eq!((nowhere.status, &nowhere.json()["error"]["code"]), (StatusCode::NOT_FOUND, &json!("unknown_path")));
    let got = server.get(CHAT).await;
    assert_eq!((got.status, got.headers["allow"].to_str().unwrap()), (StatusCode::METHOD_NOT_ALLOWED, "POST"));
    assert_eq!(got.json()["error"]["code"], "method_not_allowed");
    let form =
        Request::post(TEXT).header("content-type", "application/x-www-form-urlencoded").body(Body::from("{}")).unwrap();
    let form = server.send(form).await;
    assert_eq!(form.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert!(form.json()["error"]["message"].as_str().unwrap().contains("application/json"));
    let large = server.post(TEXT, &json!({ "prompt": "x".repeat(2000) })).await;
    assert_eq!(large.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(large.json()["error"]["message"].as_str().unwrap().contains("1000 bytes"));
    // Chunked: the size is known only once it is exceeded.
    let chunks = futures_util::stream::iter((0..20).map(|_| Ok::<_, std::io::Error>("x".repeat(100))));
    let chunked = Request::post(TEXT).body(Body::from_stream(chunks)).unwrap();
    assert_eq!(server.send(chunked).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    let other = server.post(TEXT, &json!({ "model": "gpt-9", "prompt": "a" })).await;
    assert_eq!((other.status, &other.json()["error"]["code"]), (StatusCode::NOT_FOUND, &json!("model_not_found")));
}

#[tokio::test]
async fn refusals_of_the_worker_have_their_statuses_streamed_or_not() {
    let server = Server::new();
    let table = [
        (Refused::Machine(Refusal::QueueFull { max: 3 }), 429, "queue_full"),
        (Refused::Machine(Refusal::NeverFits { pages: 9, total: 4 }), 400, "never_fits"),
        (Refused::Machine(Refusal::DuplicateRequest), 409, "duplicate_request"),
        (Refused::Machine(Refusal::DuplicateRoom), 409, "duplicate_room"),
        (Refused::Machine(Refusal::WrongMode), 400, "wrong_mode"),
        (Refused::Machine(Refusal::Draining), 503, "draining"),
        (Refused::Machine(Refusal::Late), 504, "deadline"),
        (Refused::Machine(Refusal::PromptTooLong { tokens: 9, max: 8 }), 400, "context_length_exceeded"),
        (Refused::Unavailable("it is loading".into()), 503, "unavailable"),
        (Refused::Peer("10.0.0.1:8998 refuses".into()), 502, "prefill_unreachable"),
        (Refused::Sampling { field: "min_p", problem: "min_p is not built".into() }, 400, "unsupported"),
    ];
    for (refused, status, code) in table {
        for is_streamed in [false, true] {
            server.mock.refuse(refused.clone());
            let answer = server.post(CHAT, &json!({ "messages": user("hi"), "stream": is_streamed })).await;
            assert_eq!(answer.status.as_u16(), status, "{refused:?}");
            assert_eq!(answer.json()["error"]["code"], code);
            assert_eq!(answer.headers.contains_key("retry-after"), status == 429 || status == 503, "{refused:?}");
        }
    }
    assert_eq!(server.edge.in_flight(), 0);
}

#[tokio::test]
async fn a_name_in_use_is_refused() {
    let server = Server::new();
    server.mock.hold();
    let first = tokio::spawn(server.app_post(NATIVE, json!({ "text": "a", "rid": "mine" })));
    server.submitted(1).await;
    let second = server.post(NATIVE, &json!({ "text": "a", "rid": "mine" })).await;
    assert_eq!((second.status, &second.json()["error"]["param"]), (StatusCode::CONFLICT, &json!("rid")));
    server.mock.release();
    first.await.unwrap();
    assert_eq!(server.post(NATIVE, &json!({ "text": "a", "rid": "mine" })).await.status, StatusCode::OK);
}
