//! Real sockets: clients that go away, read slowly, or speak HTTP/2.

use std::time::Duration;

use pd_core::id::{RequestId, Token};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Server;

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

struct Listening {
    server: Server,
    address: std::net::SocketAddr,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

async fn listen(server: Server) -> Listening {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let shutdown = async {
        let _ = stopped.await;
    };
    let task = tokio::spawn(crate::http::serve(listener, server.edge.clone(), shutdown));
    Listening { server, address, stop, task }
}

impl Listening {
    async fn post(&self, path: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        stream
    }

    async fn cancelled(&self) -> Vec<RequestId> {
        let mut cancels = self.server.mock.cancels();
        timeout(PATIENCE, cancels.wait_for(|cancels| !cancels.is_empty())).await.unwrap().unwrap().clone()
    }
}

async fn read_until(stream: &mut TcpStream, part: &str) -> String {
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&seen).into_owned();
        if text.contains(part) {
            return text;
        }
        let count = timeout(PATIENCE, stream.read(&mut buffer)).await.unwrap().unwrap();
        assert!(count > 0, "closed after {text:?}");
        seen.extend_from_slice(&buffer[..count]);
    }
}

#[tokio::test]
async fn a_client_that_goes_away_before_its_answer_cancels_its_request() {
    let listening = listen(Server::new()).await;
    listening.server.mock.hold();
    let stream = listening.post("/v1/completions", r#"{"prompt": "hello"}"#).await;
    listening.server.submitted(1).await;
    drop(stream);
    assert_eq!(listening.cancelled().await, [listening.server.mock.jobs()[0].request]);
    assert_eq!(listening.server.edge.in_flight(), 0);
}

#[tokio::test]
async fn a_client_that_goes_away_in_a_stream_cancels_all_of_its_sequences() {
    let listening = listen(Server::new()).await;
    listening.server.mock.hold();
    let body = r#"{"messages": [{"role": "user", "content": "hi"}], "n": 3, "stream": true}"#;
    let mut stream = listening.post("/v1/chat/completions", body).await;
    listening.server.submitted(3).await;
    listening.server.mock.trickle(Token(70));
    read_until(&mut stream, "\"content\":\"F\"").await;
    drop(stream);
    let mut cancels = listening.server.mock.cancels();
    timeout(PATIENCE, cancels.wait_for(|cancels| cancels.len() == 3)).await.unwrap().unwrap();
    let status = listening.server.get("/status.json").await.ok();
    assert_eq!(status["live"]["aborted"], 3);
}

#[tokio::test]
async fn an_answer_that_is_read_to_the_end_cancels_nothing() {
    let listening = listen(Server::new()).await;
    let mut stream = listening.post("/generate", r#"{"text": "hello", "stream": true}"#).await;
    read_until(&mut stream, "data: [DONE]\n\n").await;
    drop(stream);
    assert!(listening.server.mock.cancels().borrow().is_empty());
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_nobody() {
    let listening = listen(Server::new()).await;
    // More than socket buffers hold, because each event repeats the whole text; nobody reads it.
    let body = json!({ "text": vec!["hello world"; 64], "stream": true, "sampling_params": { "max_new_tokens": 480, "ignore_eos": true } });
    let slow = listening.post("/generate", &body.to_string()).await;
    listening.server.submitted(64).await;
    let mut quick = listening.post("/generate", r#"{"text": "hello", "stream": true}"#).await;
    read_until(&mut quick, "data: [DONE]\n\n").await;
    drop(slow);
    listening.cancelled().await;
}

#[tokio::test]
async fn the_http2_preface_is_answered_on_the_same_port() {
    let listening = listen(Server::new()).await;
    let mut h2 = TcpStream::connect(listening.address).await.unwrap();
    // The preface, then an empty SETTINGS frame.
    h2.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut frame = [0; 9];
    timeout(PATIENCE, h2.read_exact(&mut frame)).await.unwrap().unwrap();
    assert_eq!(frame[3], 4, "the server's own SETTINGS");
    let mut h1 = TcpStream::connect(listening.address).await.unwrap();
    h1.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    read_until(&mut h1, "HTTP/1.1 200 OK").await;
}

/// Load balancers keep connections for minutes: only the client ends one. Time is the runtime's, and jumps.
#[tokio::test]
async fn a_connection_that_was_idle_for_ten_minutes_is_served() {
    let listening = listen(Server::new()).await;
    let mut stream = TcpStream::connect(listening.address).await.unwrap();
    for _ in 0..2 {
        stream.write_all(b"GET /get_load HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        read_until(&mut stream, "num_waiting_reqs").await;
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(600)).await;
        tokio::time::resume();
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_shutdown_waits_for_what_is_in_flight() {
    let listening = listen(Server::new()).await;
    listening.server.mock.hold();
    let mut stream = listening.post("/generate", r#"{"text": "hello", "stream": true}"#).await;
    listening.server.submitted(1).await;
    listening.stop.send(()).unwrap();
    listening.server.mock.release();
    read_until(&mut stream, "data: [DONE]\n\n").await;
    drop(stream);
    timeout(PATIENCE, listening.task).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_failure_in_the_middle_of_a_stream_is_an_event() {
    let server = Server::new();
    server.mock.hold();
    let streamed = tokio::spawn(server.app_post("/generate", json!({ "text": "hello", "stream": true })));
    server.submitted(1).await;
    server.mock.trickle(Token(70));
    server.mock.fail();
    let text = streamed.await.unwrap();
    let events: Vec<&str> = text.split("\n\n").collect();
    assert_eq!(events[events.len() - 2..], ["data: [DONE]", ""]);
    let error: serde_json::Value =
        serde_json::from_str(events[events.len() - 3].strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!((&error["error"]["status"], &error["error"]["code"]), (&json!(503), &json!("kv_transfer_failed")));
    assert!(server.mock.cancels().borrow().is_empty());
}
