//! A client of few words: one request, one connection.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::process::PATIENCE;

/// A request that was sent. Dropping it is a client that goes away.
pub(crate) struct Asked {
    pub(crate) stream: TcpStream,
}

/// Sends a request.
pub(crate) fn begin(address: &str, method: &str, path: &str, body: &str) -> Asked {
    let mut stream = TcpStream::connect(address).expect("the server takes connections");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: pd\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("sent");
    stream.write_all(body.as_bytes()).expect("sent");
    Asked { stream }
}

impl Asked {
    /// The status, and the body.
    pub(crate) fn end(mut self) -> (u16, String) {
        let mut answer = Vec::new();
        self.stream.read_to_end(&mut answer).expect("an answer in time");
        let answer = String::from_utf8(answer).expect("UTF-8");
        let (head, rest) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a status");
        let is_chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        (status, if is_chunked { dechunked(rest) } else { rest.to_owned() })
    }

    /// The answer of a request that went well.
    pub(crate) fn good(self) -> Value {
        let (status, text) = self.end();
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).expect("JSON")
    }
}

/// Sends a request; the status, and the body.
pub(crate) fn ask(address: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    begin(address, method, path, body).end()
}

/// Waits until a router has workers to route to.
pub(crate) fn ready(router: &str) {
    let begin = Instant::now();
    loop {
        let (status, text) = ask(router, "GET", "/readiness", "");
        if status == 200 {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "{text}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A number that a server says of itself. A metric that is not there is a misspelling.
pub(crate) fn metric(address: &str, name: &str) -> u64 {
    let (status, text) = ask(address, "GET", "/metrics", "");
    assert_eq!(status, 200, "{text}");
    let is_it = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
    let line = text.lines().find(is_it).unwrap_or_else(|| panic!("no {name} in:\n{text}"));
    line.rsplit(' ').next().and_then(|word| word.parse::<f64>().ok()).expect("a number") as u64
}

/// Waits until a metric is as wanted.
pub(crate) fn until(address: &str, name: &str, is_wanted: impl Fn(u64) -> bool) {
    let begin = Instant::now();
    loop {
        let value = metric(address, name);
        if is_wanted(value) {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "{name} stays {value}:\n{}", ask(address, "GET", "/metrics", "").1);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Posts JSON; the answer must be good.
pub(crate) fn post(address: &str, path: &str, body: &Value) -> Value {
    begin(address, "POST", path, &body.to_string()).good()
}

/// Generates from token ids; the answer's ids, and all that is said about it.
pub(crate) fn generate(address: &str, ids: &[u32], sampling: &Value) -> (Vec<u32>, Value) {
    let answer = post(address, "/generate", &json!({ "input_ids": ids, "sampling_params": sampling }));
    (output(&answer), answer["meta_info"].clone())
}

/// The tokens of an answer of `/generate`.
pub(crate) fn output(answer: &Value) -> Vec<u32> {
    answer["output_ids"].as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
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
