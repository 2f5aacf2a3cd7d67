//! `/kv_events`.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use pd_core::config::Mode;
use pd_core::event::{KvChange, Tier};
use pd_core::id::PageKey;
use pd_core::key::Namespace;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::Server;
use crate::client::sse::SseParser;
use crate::http::EdgeConfig;
use crate::http::kv_events::KvEvents;
use crate::http::mock::Mock;

const EPOCH: u32 = 7;

fn events(bytes_max: usize) -> (Arc<KvEvents>, Server) {
    let namespace = Namespace { model: "tiny".into(), page_size: 4, ..Namespace::default() };
    let events = KvEvents::new(EPOCH, namespace, bytes_max);
    let mock = Mock::new(Mock::info("tiny-model", Mode::Unified)).with_kv_events(Arc::clone(&events));
    (events, Server::of(mock, EdgeConfig::default()))
}

fn stored(key: u128) -> KvChange {
    KvChange::Stored { key: PageKey(key), parent: PageKey(key - 1), tier: Tier::Device }
}

/// A reader of the stream.
struct Reader {
    body: Body,
    parser: SseParser,
    ready: std::collections::VecDeque<Value>,
}

impl Reader {
    async fn open(server: &Server, query: &str) -> Self {
        let request = Request::get(format!("/kv_events{query}")).body(Body::empty()).unwrap();
        let response = server.app().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { body: response.into_body(), parser: SseParser::default(), ready: std::collections::VecDeque::new() }
    }

    async fn next(&mut self) -> Value {
        while self.ready.is_empty() {
            let frame = self.body.frame().await.expect("it never ends").unwrap().into_data().unwrap();
            let ready = &mut self.ready;
            self.parser.push(&frame, |event| ready.push_back(serde_json::from_slice(event).unwrap())).unwrap();
        }
        self.ready.pop_front().unwrap()
    }
}

#[tokio::test]
async fn a_reader_is_told_everything_in_order_from_the_beginning() {
    let (events, server) = events(1 << 20);
    events.publish(&[stored(1), stored(2)]);
    events.publish(&[KvChange::Removed { key: PageKey(0xab), tier: Tier::Host }]);
    events.publish(&[]);
    let mut reader = Reader::open(&server, "").await;
    let reset = reader.next().await;
    assert_eq!((&reset["reset"], &reset["is_complete"], &reset["seq"]), (&json!(true), &json!(true), &json!(0)));
    assert_eq!((&reset["epoch"], &reset["namespace"]["page_size"]), (&json!(EPOCH), &json!(4)));
    let first = reader.next().await;
    assert_eq!((&first["seq"], first["events"].as_array().unwrap().len()), (&json!(0), 2));
    let hash = |key: u128| format!("{key:032x}");
    assert_eq!(
        first["events"][1],
        json!({ "type": "BlockStored", "block_hashes": [hash(2)], "parent_block_hash": hash(1), "medium": "GPU" })
    );
    assert_eq!(
        reader.next().await,
        json!({ "seq": 1, "events": [{ "type": "BlockRemoved", "block_hashes": [hash(0xab)], "medium": "CPU" }] })
    );
    // What comes while it waits, comes.
    let (next, ()) = tokio::join!(reader.next(), async {
        tokio::task::yield_now().await;
        events.publish(&[KvChange::Cleared { tier: Tier::Storage }]);
    });
    assert_eq!(next, json!({ "seq": 2, "events": [{ "type": "AllBlocksCleared", "medium": "DISK" }] }));
}

#[tokio::test]
async fn a_reader_that_falls_behind_is_reset_and_goes_on_without_a_gap() {
    let (events, server) = events(1000);
    events.publish(&[stored(1)]);
    let mut reader = Reader::open(&server, "").await;
    reader.next().await;
    reader.next().await;
    for key in 2..200 {
        events.publish(&[stored(key)]);
    }
    let reset = reader.next().await;
    assert_eq!((&reset["reset"], &reset["is_complete"]), (&json!(true), &json!(false)));
    let from = reset["seq"].as_u64().unwrap();
    assert!(from > 150, "{from}");
    for seq in from..199 {
        assert_eq!(reader.next().await["seq"], seq);
    }
}

#[tokio::test]
async fn a_reader_that_was_cut_off_goes_on_where_it_was_in_the_same_life() {
    let (events, server) = events(1 << 20);
    for key in 1..=3 {
        events.publish(&[stored(key)]);
    }
    let mut same = Reader::open(&server, &format!("?epoch={EPOCH}&after=1")).await;
    assert_eq!(same.next().await["seq"], 2);
    for other in [format!("?epoch={}&after=1", EPOCH + 1), "?after=1".into(), format!("?epoch={EPOCH}&after=77")] {
        let mut reader = Reader::open(&server, &other).await;
        assert_eq!(reader.next().await["reset"], true, "{other}");
        assert_eq!(reader.next().await["seq"], 0, "{other}");
    }
}

#[tokio::test]
async fn a_worker_that_publishes_nothing_says_how_it_would() {
    let answer = Server::new().get("/kv_events").await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert!(answer.text.contains("--enable-kv-events"), "{}", answer.text);
}
