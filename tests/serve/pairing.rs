//! Workers whose KV does not fit: refused where they would pair, with both values.

use serde_json::json;

use crate::http::{ask, metric, tokens};
use crate::process::Pd;

#[test]
fn a_pair_that_does_not_fit_is_refused_with_both_values() {
    let decode = Pd::start(&["serve", "--mode", "decode", "--port", "0"]);
    let cases: [(&[&str], &[&str]); 4] = [
        (&["--page-size", "32"], &["page size 32", "ours, 16"]),
        (&["--kv-cache-dtype", "float32"], &["f32", "ours, bf16"]),
        (&["--load-format", "dummy", "--random-seed", "7"], &["weights", "ours, "]),
        (&[], &[]),
    ];
    for (room, (options, says)) in (100_u64..).zip(cases) {
        let mut arguments = vec!["serve", "--mode", "prefill", "--port", "0", "--disaggregation-bootstrap-port", "0"];
        arguments.extend(options);
        let prefill = Pd::start(&arguments);
        let port: u16 = prefill.banner("bootstrap server at port ").parse().expect("a port");
        let body = json!({
            "input_ids": tokens(5, 40), "sampling_params": { "max_new_tokens": 3, "ignore_eos": true },
            "bootstrap_host": "127.0.0.1", "bootstrap_port": port, "bootstrap_room": room,
        })
        .to_string();
        let sent = crate::http::begin(&prefill.address, "POST", "/generate", &body);
        let (status, text) = ask(&decode.address, "POST", "/generate", &body);
        if says.is_empty() {
            // The control: workers that fit do pair.
            assert_eq!(status, 200, "{text}");
            assert_eq!(sent.end().0, 200);
            continue;
        }
        assert_eq!(status, 502, "{options:?}: {text}");
        assert!(text.contains("prefill_unreachable"), "{text}");
        for word in says {
            assert!(text.contains(word), "{options:?} should say {word:?}: {text}");
            assert!(decode.log().contains(word), "{options:?} should log {word:?}: {}", decode.log());
        }
        assert_eq!(metric(&decode.address, "pd_rooms"), 0, "no room was opened");
    }
}
