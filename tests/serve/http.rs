//! A client of few words: one request, one connection.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::process::PATIENCE;

/// Sends a request whose answer is read later, or never.
pub(crate) fn send(address: &str, method: &str, path: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("the server takes connections");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: pd\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("sent");
    stream.write_all(body.as_bytes()).expect("sent");
    stream
}

/// The answer to a request that was sent: the status, and the body.
pub(crate) fn receive(mut stream: TcpStream) -> (u16, String) {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer in time");
    let answer = String::from_utf8(answer).expect("UTF-8");
    let (head, rest) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a status");
    let is_chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    (status, if is_chunked { dechunked(rest) } else { rest.to_owned() })
}

/// Sends a request; the status, and the body.
pub(crate) fn ask(address: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    receive(send(address, method, path, body))
}

/// One of a worker's own numbers, by the name that `/metrics` gives it.
pub(crate) fn metric(address: &str, name: &str) -> u64 {
    let (status, text) = ask(address, "GET", "/metrics", "");
    assert_eq!(status, 200, "{text}");
    let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
    let value = line.and_then(|line| line.rsplit(' ').next()).and_then(|word| word.parse::<f64>().ok());
    value.unwrap_or_else(|| panic!("no {name} in:\n{text}")) as u64
}

/// Waits until such a number is at least this.
pub(crate) fn until(address: &str, name: &str, least: u64) {
    let begin = Instant::now();
    while metric(address, name) < least {
        assert!(begin.elapsed() < PATIENCE, "{name} stays below {least}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Posts JSON; the answer must be good.
pub(crate) fn post(address: &str, path: &str, body: &Value) -> Value {
    let (status, text) = ask(address, "POST", path, &body.to_string());
    assert_eq!(status, 200, "{path}: {text}");
    serde_json::from_str(&text).expect("JSON")
}

/// Generates from token ids; the answer's ids, and all that is said about it.
pub(crate) fn generate(address: &str, ids: &[u32], sampling: &Value) -> (Vec<u32>, Value) {
    let answer = post(address, "/generate", &json!({ "input_ids": ids, "sampling_params": sampling }));
    let ids = answer["output_ids"].as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id") as u32);
    (ids.collect(), answer["meta_info"].clone())
}

fn dechunked(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, more)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).expect("a size");
        if size == 0 {
            break;
        }
        body.push_str(&more[..size]);
        rest = more[size..].strip_prefix("\r\n").expect("the end of a chunk");
    }
    body
}

/// Numbers that look random and never change.
pub(crate) fn tokens(seed: u64, count: usize) -> Vec<u32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    };
    (0..count).map(|_| 300 + next() % 1700).collect()
}
