//! How a router ends.

use super::*;

#[tokio::test]
async fn running_answers_finish_and_nothing_new_is_taken() {
    let worker = Mock::start("u", vec![Behave::Gated]).await;
    let mut router = Served::ready(RouterConfig { worker_urls: vec![worker.url.clone()], ..quick() }, 1).await;
    let response = router.open("POST", "/generate", &[], &json!({"text": "x", "stream": true}).to_string()).await;
    router.stop.take().expect("once").send(()).expect("it listens");
    // New connections are refused as soon as the listener is closed.
    within(async {
        let address = router.url.trim_start_matches("http://").to_owned();
        while tokio::net::TcpStream::connect(&address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(!router.done.is_finished());
    let gate = async {
        loop {
            worker.shared.gate.notify_one();
            tokio::task::yield_now().await;
        }
    };
    let body = tokio::select! {
        body = response.into_body().collect() => body.expect("whole").to_bytes(),
        () = gate => unreachable!(),
    };
    assert_eq!(body.iter().filter(|&&byte| byte == b'\n').count(), 6);
    assert_eq!(within(&mut router.done).await.expect("no panic").expect("no error"), Drained { cut: 0 });
}

#[tokio::test]
async fn answers_that_outlast_the_grace_period_end_with_an_error_event() {
    let worker = Mock::start("u", vec![Behave::Gated]).await;
    let config = RouterConfig { worker_urls: vec![worker.url.clone()], shutdown_grace_period_secs: 0.05, ..quick() };
    let mut router = Served::ready(config, 1).await;
    let response = router.open("POST", "/generate", &[], &json!({"text": "x", "stream": true}).to_string()).await;
    router.stop.take().expect("once").send(()).expect("it listens");
    let body = within(response.into_body().collect()).await.expect("ends well").to_bytes();
    let text = String::from_utf8_lossy(&body);
    assert!(text.contains("shutting down") && text.ends_with("data: [DONE]\n\n"), "{text}");
    assert_eq!(within(&mut router.done).await.expect("no panic").expect("no error"), Drained { cut: 1 });
}

#[tokio::test]
async fn a_removed_worker_finishes_what_it_has() {
    let (first, second) = (Mock::start("a", vec![Behave::Gated]).await, Mock::well("b").await);
    let config = RouterConfig { worker_urls: vec![first.url.clone()], ..quick() };
    let router = Served::ready(config, 1).await;
    let response = router.open("POST", "/generate", &[], &json!({"text": "x", "stream": true}).to_string()).await;
    router.post("/workers", &json!({"url": second.url})).await;
    router.until_up(2).await;
    let id = router.get("/workers").await.json()["workers"][0]["id"].as_str().expect("an id").to_owned();
    assert_eq!(router.send("DELETE", &format!("/workers/{id}"), &[], "").await.status, 202);
    for _ in 0..3 {
        assert_eq!(router.post("/generate", &json!({"text": "x"})).await.json()["id"], "b");
    }
    assert_eq!(router.get(&format!("/workers/{id}")).await.json()["status"], "draining");
    let gate = async {
        loop {
            first.shared.gate.notify_one();
            tokio::task::yield_now().await;
        }
    };
    let body = tokio::select! {
        body = response.into_body().collect() => body.expect("whole").to_bytes(),
        () = gate => unreachable!(),
    };
    assert_eq!(body.iter().filter(|&&byte| byte == b'\n').count(), 6);
    within(async {
        while router.get(&format!("/workers/{id}")).await.status != 404 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
