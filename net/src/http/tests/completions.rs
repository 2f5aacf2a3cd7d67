//! `/v1/completions`.

use serde_json::{Value, json};

use super::Server;

async fn ask(server: &Server, body: Value) -> Value {
    server.post("/v1/completions", &body).await.ok()
}

fn ids(server: &Server, text: &str) -> Vec<u32> {
    server.text.encode(text, true).unwrap().iter().map(|token| token.0).collect()
}

#[tokio::test]
async fn the_four_forms_of_a_prompt_are_one() {
    let server = Server::new();
    let tokens = ids(&server, "hello world");
    let forms = [json!("hello world"), json!(["hello world"]), json!(tokens), json!([tokens])];
    let mut answers = Vec::new();
    for prompt in forms {
        let answer = ask(&server, json!({ "model": "tiny-model", "prompt": prompt, "max_tokens": 8 })).await;
        assert_eq!(answer["object"], "text_completion");
        answers.push(answer["choices"].clone());
    }
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "{answers:?}");
    assert_eq!(server.mock.jobs()[0].prompt.tokens[0].0, 377, "plain prompts begin with the begin token");
}

#[tokio::test]
async fn answers_to_several_prompts_lie_side_by_side() {
    let server = Server::new();
    let body = json!({ "prompt": ["the city", "hello world and brief"], "n": 2, "max_tokens": 3, "ignore_eos": true });
    let answer = ask(&server, body.clone()).await;
    let jobs = server.mock.jobs();
    assert_eq!(jobs.len(), 4);
    assert_eq!((&jobs[0].prompt, &jobs[2].prompt), (&jobs[1].prompt, &jobs[3].prompt));
    assert_ne!(jobs[0].prompt, jobs[2].prompt);
    assert_eq!(answer["usage"]["prompt_tokens"], jobs[0].prompt.length + jobs[2].prompt.length);
    assert_eq!(answer["usage"]["completion_tokens"], 12);
    let mut body = body;
    body["stream"] = true.into();
    let events = server.post("/v1/completions", &body).await.events();
    for index in 0..4 {
        let choices = events.iter().map(|event| &event["choices"][0]).filter(|choice| choice["index"] == index);
        let text: String = choices.map(|choice| choice["text"].as_str().unwrap()).collect();
        assert_eq!(text, answer["choices"][index]["text"].as_str().unwrap());
    }
}

#[tokio::test]
async fn the_default_limit_is_sixteen() {
    let server = Server::new();
    let answer = ask(&server, json!({ "prompt": "hello", "ignore_eos": true })).await;
    assert_eq!(answer["usage"]["completion_tokens"], 16);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn echo_with_log_probabilities_scores_the_prompt() {
    let server = Server::new();
    let tokens = ids(&server, "the weather");
    let body = json!({ "prompt": tokens, "echo": true, "max_tokens": 1, "logprobs": 1, "ignore_eos": true });
    let choice = ask(&server, body).await["choices"][0].clone();
    let lists = &choice["logprobs"];
    for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(lists[name].as_array().unwrap().len(), tokens.len() + 1, "{name}");
    }
    assert_eq!(lists["token_logprobs"][0], Value::Null);
    assert_eq!(lists["top_logprobs"][0], Value::Null);
    assert_eq!(lists["token_logprobs"][1], -0.5);
    assert_eq!(lists["text_offset"][0], 0);
    assert_eq!(lists["text_offset"][1], "<|begin|>".len());
    assert!(choice["text"].as_str().unwrap().starts_with("the weather"));
}

#[tokio::test]
async fn echo_without_tokens_is_the_prompt_alone() {
    let server = Server::new();
    let tokens = ids(&server, "the weather");
    let body = json!({ "prompt": "the weather", "echo": true, "max_tokens": 0, "logprobs": 1 });
    let answer = ask(&server, body.clone()).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], "the weather");
    assert_eq!(choice["logprobs"]["tokens"].as_array().unwrap().len(), tokens.len());
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    assert_eq!(choice["finish_reason"], "length");
    let mut body = body;
    body["stream"] = true.into();
    let events = server.post("/v1/completions", &body).await.events();
    assert_eq!(events[0]["choices"][0]["text"], "the weather");
    assert_eq!(events.len(), 1);
}

#[tokio::test]
async fn a_streamed_echo_comes_first_and_offsets_go_on_behind_it() {
    let server = Server::new();
    let body = json!({ "prompt": "the weather", "echo": true, "max_tokens": 3, "logprobs": 0, "ignore_eos": true });
    let whole = ask(&server, body.clone()).await["choices"][0].clone();
    let mut body = body;
    body["stream"] = true.into();
    let events = server.post("/v1/completions", &body).await.events();
    let choices = || events.iter().map(|event| &event["choices"][0]);
    let text: String = choices().map(|choice| choice["text"].as_str().unwrap()).collect();
    assert_eq!(text, whole["text"].as_str().unwrap());
    let offsets: Vec<Value> =
        choices().flat_map(|choice| choice["logprobs"]["text_offset"].as_array().unwrap().clone()).collect();
    assert_eq!(json!(offsets), whole["logprobs"]["text_offset"]);
}

#[tokio::test]
async fn ids_and_names_of_requests_come_back() {
    let server = Server::new();
    let answer =
        server.post("/v1/completions", &json!({ "prompt": "hello", "rid": "mine", "return_token_ids": true })).await;
    let body = answer.ok();
    assert_eq!((&body["id"], &answer.headers["x-request-id"]), (&json!("mine"), &"mine".parse().unwrap()));
    let count = body["usage"]["completion_tokens"].as_u64().unwrap();
    assert_eq!(body["choices"][0]["token_ids"].as_array().unwrap().len() as u64, count);
    assert_eq!(server.mock.jobs()[0].rid, "mine");
}
