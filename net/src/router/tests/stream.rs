//! Streams: as they come, cut, and left by their clients.

use super::*;

async fn next(body: &mut Incoming) -> Option<Result<String, hyper::Error>> {
    let frame = within(body.frame()).await?;
    Some(frame.map(|frame| String::from_utf8_lossy(&frame.into_data().unwrap_or_default()).into_owned()))
}

#[tokio::test]
async fn events_reach_the_client_while_the_workers_are_still_at_work() {
    // The prefill worker never ends its answer; the decode worker sends one event and waits.
    let (prefill, decode) = (Mock::start("p", vec![Behave::Gated]).await, Mock::start("d", vec![Behave::Gated]).await);
    let router = Served::ready(pair(&prefill, &decode), 2).await;
    let response = router.open("POST", "/v1/chat/completions", &[], &streamed(chat()).to_string()).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut body = response.into_body();
    for index in 0..3 {
        // Each event is a chunk of its own.
        assert_eq!(
            next(&mut body).await.expect("more").expect("whole"),
            format!("data: {{\"w\":\"d\",\"i\":{index}}}\n\n")
        );
        decode.shared.gate.notify_one();
    }
    assert!(next(&mut body).await.is_none());
}

#[tokio::test]
async fn a_client_that_goes_away_before_the_first_byte_cancels_both_legs() {
    let (mut prefill, mut decode) =
        (Mock::start("p", vec![Behave::Silent]).await, Mock::start("d", vec![Behave::Silent]).await);
    let router = Served::ready(pair(&prefill, &decode), 2).await;
    {
        let body = streamed(chat()).to_string();
        let call = router.open("POST", "/v1/chat/completions", &[("x-request-id", "gone")], &body);
        tokio::select! {
            _ = call => panic!("nobody answers"),
            _ = async { tokio::join!(prefill.until("/v1/chat/completions", 1), decode.until("/v1/chat/completions", 1)) } => {}
        }
    }
    for mock in [&mut prefill, &mut decode] {
        within(mock.dropped.recv()).await.expect("the connection is dropped");
        assert_eq!(mock.until("/abort_request", 1).await[0].json(), json!({"rid": "gone"}));
    }
    let metrics = router.get("/metrics").await.body;
    assert!(metrics.contains("pd_router_cancelled_total 1\n"), "{metrics}");
}

#[tokio::test]
async fn a_client_that_goes_away_in_mid_stream_cancels_the_decode_leg() {
    let (prefill, mut decode) = (Mock::well("p").await, Mock::start("d", vec![Behave::Gated]).await);
    let router = Served::ready(pair(&prefill, &decode), 2).await;
    let response =
        router.open("POST", "/generate", &[], &json!({"text": "x", "stream": true, "rid": "mine"}).to_string()).await;
    let mut body = response.into_body();
    next(&mut body).await.expect("one event").expect("whole");
    drop(body);
    within(decode.dropped.recv()).await.expect("the connection is dropped");
    assert_eq!(decode.until("/abort_request", 1).await[0].json(), json!({"rid": "mine"}));
}

#[tokio::test]
async fn a_stream_that_breaks_between_events_ends_with_an_error_event_and_done() {
    let (prefill, decode) = (Mock::well("p").await, Mock::start("d", vec![Behave::CutAfter(2)]).await);
    let router = Served::ready(pair(&prefill, &decode), 2).await;
    let got = router.post("/v1/chat/completions", &streamed(chat())).await;
    let events: Vec<&str> = got.body.split_terminator("\n\n").collect();
    assert_eq!(got.status, 200);
    assert_eq!(events.len(), 4, "{events:?}");
    let error: Value = serde_json::from_str(events[2].trim_start_matches("data: ")).expect("JSON");
    assert_eq!(error["error"]["code"], "stream_error");
    assert_eq!(events[3], "data: [DONE]");
    // It went out: nothing was tried again.
    assert_eq!(decode.asked().len(), 1);

    let got = router.post("/v1/messages", &streamed(chat())).await;
    let last = got.body.split_terminator("\n\n").last().expect("an event");
    assert!(last.starts_with("event: error\ndata: {\"type\":\"error\""), "{last}");
}

#[tokio::test]
async fn an_answer_that_is_no_stream_and_breaks_is_cut() {
    let (prefill, decode) = (Mock::well("p").await, Mock::start("d", vec![Behave::CutAfter(1)]).await);
    let router = Served::ready(pair(&prefill, &decode), 2).await;
    let response = router.open("POST", "/v1/chat/completions", &[], &chat().to_string()).await;
    assert_eq!(response.status(), 200);
    let mut body = response.into_body();
    assert!(next(&mut body).await.expect("the first part").is_ok());
    assert!(next(&mut body).await.expect("not the end").is_err());
}
