//! Hand-offs as routers cause them: in any order, twice, and with one half gone.

use std::collections::VecDeque;

use serde_json::{Value, json};

use crate::http::{Asked, ask, begin, generate, metric, output, tokens, until};
use crate::process::Pd;

/// A prefill worker and a decode worker; no router.
struct Pair {
    prefill: Pd,
    decode: Pd,
    port: u16,
}

impl Pair {
    fn start(more: &[&str]) -> Self {
        let serve = |mode: &str| {
            let mut arguments = vec!["serve", "--mode", mode, "--port", "0", "--disaggregation-bootstrap-port", "0"];
            arguments.extend(more);
            Pd::start(&arguments)
        };
        let (prefill, decode) = (serve("prefill"), serve("decode"));
        let port = prefill.banner("bootstrap server at port ").parse().expect("a port");
        Self { prefill, decode, port }
    }

    fn body(&self, room: u64, prompt: &[u32], limit: u32) -> Value {
        json!({
            "input_ids": prompt, "rid": format!("r-{room}"),
            "sampling_params": { "max_new_tokens": limit, "ignore_eos": true, "temperature": 0 },
            "bootstrap_host": "127.0.0.1", "bootstrap_port": self.port, "bootstrap_room": room,
        })
    }

    fn send(pd: &Pd, body: &Value) -> Asked {
        begin(&pd.address, "POST", "/generate", &body.to_string())
    }

    /// Waits until both have nothing left: no room, no page that anybody holds.
    fn rest(&self) {
        for pd in [&self.prefill, &self.decode] {
            for name in ["pd_rooms", "sglang:num_running_reqs", "sglang:num_queue_reqs", "pd_device_pinned_pages"] {
                until(&pd.address, name, |count| count == 0);
            }
        }
    }
}

#[test]
fn whichever_half_comes_first_the_answer_is_the_same() {
    let unified = Pd::start(&["serve", "--port", "0"]);
    let pair = Pair::start(&[]);
    for (room, is_decode_first) in [(1, true), (2, false)] {
        let prompt = tokens(30 + room, 200);
        let alone =
            generate(&unified.address, &prompt, &json!({ "max_new_tokens": 6, "ignore_eos": true, "temperature": 0 }));
        let body = pair.body(room, &prompt, 6);
        let (first, second) =
            if is_decode_first { (&pair.decode, &pair.prefill) } else { (&pair.prefill, &pair.decode) };
        let one = Pair::send(first, &body);
        until(&first.address, "pd_rooms", |count| count == 1);
        if !is_decode_first {
            // All of it is computed before anybody asks for it.
            until(&first.address, "pd_computed_tokens_total", |count| count >= 200);
        }
        let other = Pair::send(second, &body);
        let (mut prefill, mut decode) = (one.good(), other.good());
        if is_decode_first {
            std::mem::swap(&mut prefill, &mut decode);
        }
        assert_eq!(output(&decode), alone.0, "decode first: {is_decode_first}");
        assert_eq!(prefill["meta_info"]["finish_reason"]["type"], "length", "{prefill}");
        pair.rest();
    }
    assert_eq!(metric(&pair.decode.address, "pd_handoffs_received_total"), 2);
    assert_eq!(metric(&pair.decode.address, "pd_computed_tokens_total"), 0);
}

#[test]
fn a_thousand_retries_of_one_name_leave_nothing_behind() {
    let pair = Pair::start(&[]);
    let prompt = tokens(40, 40);
    // A room is dropped by its workers when the next one comes, not by a client that goes away.
    let mut sent = VecDeque::new();
    let mut answers = Vec::new();
    for room in 1..=1000 {
        let mut body = pair.body(room, &prompt, 4);
        body["rid"] = "again".into();
        sent.push_back((Pair::send(&pair.prefill, &body), Pair::send(&pair.decode, &body)));
        if sent.len() > 40
            && let Some((prefill, decode)) = sent.pop_front()
        {
            answers.push((prefill.end(), decode.end()));
        }
    }
    answers.extend(sent.into_iter().map(|(prefill, decode)| (prefill.end(), decode.end())));
    let dropped = answers.iter().filter(|(_, (_, text))| text.contains("\"abort\"")).count();
    assert!(dropped > 0, "no room was overtaken");
    // Now that all others are over, the name is served.
    let mut body = pair.body(1001, &prompt, 4);
    body["rid"] = "again".into();
    let (prefill, decode) = (Pair::send(&pair.prefill, &body), Pair::send(&pair.decode, &body));
    assert_eq!(output(&decode.good()).len(), 4);
    assert_eq!(prefill.end().0, 200);
    pair.rest();
}

#[test]
fn a_half_whose_client_goes_away_frees_both() {
    // Nobody waits for the other half for longer than this.
    let pair =
        Pair::start(&["--disaggregation-bootstrap-timeout", "400ms", "--disaggregation-waiting-timeout", "400ms"]);
    // The decode side goes first, before there is anything to hand over.
    let body = pair.body(1, &tokens(50, 100), 4000);
    let decode = Pair::send(&pair.decode, &body);
    until(&pair.decode.address, "pd_rooms", |count| count == 1);
    drop(decode);
    until(&pair.decode.address, "pd_cancelled_total", |count| count == 1);
    let (status, text) = Pair::send(&pair.prefill, &body).end();
    assert!(status >= 500, "nobody takes it: {status} {text}");
    pair.rest();
    let failed = metric(&pair.prefill.address, "pd_handoffs_failed_total");
    assert!(failed >= 1, "{failed}");

    // It goes in the middle of its answer: the prefill worker has long finished.
    let body = pair.body(2, &tokens(51, 100), 4000);
    let (prefill, decode) = (Pair::send(&pair.prefill, &body), Pair::send(&pair.decode, &body));
    assert_eq!(prefill.end().0, 200);
    until(&pair.decode.address, "sglang:num_running_reqs", |count| count == 1);
    drop(decode);
    pair.rest();
    assert_eq!(metric(&pair.decode.address, "pd_cancelled_total"), 2);

    // The prefill side goes away alone, before the decode side has asked.
    let body = pair.body(3, &tokens(52, 100), 4);
    let cancelled = metric(&pair.prefill.address, "pd_cancelled_total");
    let prefill = Pair::send(&pair.prefill, &body);
    until(&pair.prefill.address, "pd_rooms", |count| count == 1);
    drop(prefill);
    until(&pair.prefill.address, "pd_cancelled_total", |count| count == cancelled + 1);
    // Nobody hands it over: the decode worker computes the prompt itself.
    assert_eq!(output(&Pair::send(&pair.decode, &body).good()).len(), 4);
    pair.rest();
    for name in ["pd_handoffs_failed_total", "pd_local_recomputes_total"] {
        assert!(metric(&pair.decode.address, name) >= 1, "{name}");
    }
    assert!(metric(&pair.decode.address, "pd_computed_tokens_total") >= 100);
}

#[test]
fn the_fake_host_answers_locally_and_transfers_nothing() {
    let pair = Pair::start(&[]);
    let mut body = pair.body(0, &tokens(60, 64), 3);
    body["bootstrap_host"] = "2.2.2.2".into();
    for _ in 0..2 {
        assert_eq!(output(&Pair::send(&pair.decode, &body).good()).len(), 3);
        let prefill = Pair::send(&pair.prefill, &body).good();
        assert_eq!(prefill["meta_info"]["finish_reason"]["type"], "length", "{prefill}");
    }
    pair.rest();
    for pd in [&pair.prefill, &pair.decode] {
        let (_, text) = ask(&pd.address, "GET", "/metrics", "");
        assert!(text.contains("pd_push_pages_total"), "{text}");
        assert_eq!(metric(&pd.address, "pd_push_pages_total"), 0);
    }
}
