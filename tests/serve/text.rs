//! Text of real answers: streams, characters that are cut, counts.

use serde_json::{Value, json};

use crate::http::{ask, post};
use crate::process::Pd;

/// What answers are made of: a bias lets the model choose only among the tokens of such a text.
const ALPHABETS: [&str; 5] =
    ["🙂👨‍👩‍👧🇯🇵🧑🏽‍🚀", "你好，世界。漢字かな交じり文", "é ñ ü ß Привет", "नमस्ते สวัสดี", "the old river ☃ 🙂"];

/// Answers in which characters of several bytes lie in pieces, as the draw has it, and a limit cuts the last one.
fn bodies(address: &str) -> Vec<Value> {
    let mut bodies = Vec::new();
    for (number, alphabet) in ALPHABETS.iter().enumerate() {
        let tokens = post(address, "/tokenize", &json!({ "prompt": alphabet, "add_special_tokens": false }));
        let mut bias = serde_json::Map::new();
        for token in tokens["tokens"].as_array().expect("tokens") {
            bias.insert(token.to_string(), 100.into());
        }
        for limit in 1..=40 {
            bodies.push(json!({
                "prompt": alphabet, "max_tokens": limit, "ignore_eos": true, "temperature": 1.5,
                "seed": 1000 * number + limit, "logit_bias": bias,
            }));
        }
    }
    bodies
}

/// The text of a stream, and its usage.
fn streamed(address: &str, body: &Value) -> (String, Value) {
    let mut body = body.clone();
    body["stream"] = true.into();
    body["stream_options"] = json!({ "include_usage": true });
    let (status, text) = ask(address, "POST", "/v1/completions", &body.to_string());
    assert_eq!(status, 200, "{text}");
    let (mut joined, mut usage) = (String::new(), Value::Null);
    for event in text.split_terminator("\n\n") {
        let data = event.strip_prefix("data: ").expect("an event");
        if data == "[DONE]" {
            break;
        }
        let event: Value = serde_json::from_str(data).expect("JSON");
        joined += event["choices"][0]["text"].as_str().unwrap_or_default();
        if event["usage"].is_object() {
            usage = event["usage"].clone();
        }
    }
    (joined, usage)
}

#[test]
fn a_stream_joins_to_the_complete_answer_wherever_characters_are_cut() {
    let pd = Pd::start(&["serve", "--port", "0"]);
    let bodies = bodies(&pd.address);
    assert_eq!(bodies.len(), 200);
    let clients = 4;
    let texts: Vec<String> = std::thread::scope(|scope| {
        let ask_some = |client: usize| {
            let (bodies, address) = (&bodies, &pd.address);
            move || {
                let mine = bodies.iter().skip(client).step_by(clients);
                mine.map(|body| {
                    let whole = post(address, "/v1/completions", body);
                    let said = whole["choices"][0]["text"].as_str().expect("text").to_owned();
                    let (joined, usage) = streamed(address, body);
                    assert_eq!(joined, said, "{body}");
                    assert_eq!(usage["completion_tokens"], body["max_tokens"], "{body}");
                    assert_eq!(whole["usage"]["completion_tokens"], body["max_tokens"], "{body}");
                    said
                })
                .collect::<Vec<_>>()
            }
        };
        let handles: Vec<_> = (0..clients).map(|client| scope.spawn(ask_some(client))).collect();
        handles.into_iter().flat_map(|handle| handle.join().expect("a client that asks")).collect()
    });
    // The draws did what they were for: whole characters, broken ones, and some broken by the limit alone.
    let count = |is: &dyn Fn(&str) -> bool| texts.iter().filter(|text| is(text)).count();
    assert!(count(&|text| text.chars().any(|one| one > '\u{7f}' && one != '\u{fffd}')) > 50);
    assert!(count(&|text| text.contains('\u{fffd}')) > 20);
    assert!(count(&|text| text.ends_with('\u{fffd}')) > 10);
}

#[test]
fn cached_tokens_are_counted_alike_with_and_without_a_hand_off() {
    let long = "The old river is quiet. A green boat waits near the mill. ".repeat(12);
    let prompts = [long.clone(), long.clone(), format!("{long} And then?"), "Something else.".to_owned()];
    let counts = |address: &str| -> Vec<u64> {
        let asked = prompts.iter().map(|prompt| {
            let answer =
                post(address, "/v1/completions", &json!({ "prompt": prompt, "max_tokens": 4, "temperature": 0 }));
            answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a whole number")
        });
        asked.collect()
    };
    let unified = Pd::start(&["serve", "--port", "0"]);
    let alone = counts(&unified.address);
    assert_eq!((alone[0], alone[3]), (0, 0), "{alone:?}");
    assert!(alone[1] >= 100 && alone[2] >= 100, "{alone:?}");
    let up = Pd::start(&["up", "--port", "0", "--no-storage"]);
    assert_eq!(counts(&up.address), alone);
}
