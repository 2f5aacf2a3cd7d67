//! Two ends on the loopback device, one of them restarted, mistaken for another, or no peer at all.

use std::sync::Arc;
use std::time::Duration;

use pd_core::config::Mode;
use pd_core::id::{Epoch, WorkerId};
use pd_core::message::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::bootstrap::{self, Card};
use super::frame::Greeting;
use super::{Ctrl, CtrlConfig, Hear, Heard};

struct End {
    ctrl: Ctrl,
    heard: mpsc::UnboundedReceiver<Heard>,
}

impl End {
    fn new(worker: u32, epoch: u32) -> Self {
        let greeting = Greeting { worker: WorkerId(worker), epoch: Epoch(epoch), wire: "127.0.0.1:1".into() };
        let (tell, heard) = mpsc::unbounded_channel();
        let hear: Hear = Arc::new(move |heard| drop(tell.send(heard)));
        let config = CtrlConfig {
            backoff: Duration::from_millis(5),
            backoff_max: Duration::from_millis(20),
            lookup_timeout: Duration::from_millis(400),
            greeting_timeout: Duration::from_millis(300),
            connections_max: 4,
            ..CtrlConfig::new(greeting)
        };
        Self { ctrl: Ctrl::new(config, hear), heard }
    }

    async fn next(&mut self) -> Heard {
        let heard = tokio::time::timeout(Duration::from_secs(20), self.heard.recv()).await;
        heard.expect("something is heard in time").expect("the end lives")
    }
}

fn ping(number: u64) -> Message {
    Message::Ping { number }
}

fn card(worker: u32, epoch: u32, control: String) -> Card {
    Card {
        worker: WorkerId(worker),
        epoch: Epoch(epoch),
        mode: Mode::Prefill,
        control,
        wire: "127.0.0.1:1".into(),
        page_size: 16,
        kv_cache_dtype: "bf16".into(),
    }
}

/// A prefill worker with its bootstrap server at `address`, or anywhere.
async fn prefill(epoch: u32, address: &str) -> (End, String, tokio::task::JoinHandle<()>) {
    let end = End::new(1, epoch);
    let control = end.ctrl.listen("127.0.0.1:0").await.expect("a port").to_string();
    let mut listener = TcpListener::bind(address).await;
    while listener.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
        listener = TcpListener::bind(address).await;
    }
    let listener = listener.expect("a port");
    let bound = listener.local_addr().expect("bound").to_string();
    let card = card(1, epoch, control);
    let serving = tokio::spawn(async move { drop(bootstrap::serve(listener, card).await) });
    (end, bound, serving)
}

fn port(address: &str) -> u16 {
    address.rsplit_once(':').expect("a port").1.parse().expect("a number")
}

#[tokio::test]
async fn messages_come_in_order_behind_the_rise() {
    let (mut prefill, address, _serving) = prefill(7, "127.0.0.1:0").await;
    let mut decode = End::new(2, 9);
    assert_eq!(decode.ctrl.resolve("127.0.0.1", port(&address)).await, Ok(WorkerId(1)));
    assert!(matches!(decode.next().await, Heard::Up(greeting) if greeting.epoch == Epoch(7)));
    assert!(matches!(prefill.next().await, Heard::Up(greeting) if greeting.worker == WorkerId(2)));
    for number in 0..100 {
        decode.ctrl.send(WorkerId(1), &ping(number));
        prefill.ctrl.send(WorkerId(2), &ping(1000 + number));
    }
    for number in 0..100 {
        assert_eq!(prefill.next().await, Heard::Message(WorkerId(2), Box::new(ping(number))));
        assert_eq!(decode.next().await, Heard::Message(WorkerId(1), Box::new(ping(1000 + number))));
    }
    // To nobody: lost, not an error.
    decode.ctrl.send(WorkerId(99), &ping(1));
}

#[tokio::test]
async fn a_restarted_peer_is_down_and_up_again_in_its_new_life() {
    let (first, address, serving) = prefill(7, "127.0.0.1:0").await;
    let mut decode = End::new(2, 9);
    decode.ctrl.resolve("127.0.0.1", port(&address)).await.expect("found");
    assert!(matches!(decode.next().await, Heard::Up(_)));
    first.ctrl.close();
    serving.abort();
    assert_eq!(decode.next().await, Heard::Down(WorkerId(1)));
    let (mut second, _, _serving) = prefill(8, &address).await;
    assert!(matches!(decode.next().await, Heard::Up(greeting) if greeting.epoch == Epoch(8)));
    assert!(matches!(second.next().await, Heard::Up(_)));
    decode.ctrl.send(WorkerId(1), &ping(5));
    assert_eq!(second.next().await, Heard::Message(WorkerId(2), Box::new(ping(5))));
}

#[tokio::test]
async fn nobody_there_is_an_error_that_says_what_was_tried() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let free = listener.local_addr().expect("bound").port();
    drop(listener);
    let error = End::new(2, 1).ctrl.resolve("127.0.0.1", free).await.expect_err("nobody is there");
    assert!(error.contains("no prefill worker at bootstrap address 127.0.0.1") && error.contains("reached"), "{error}");
    let error = End::new(2, 1).ctrl.resolve("not a host", free).await.expect_err("that is no address");
    assert!(error.contains("no address"), "{error}");
}

#[tokio::test]
async fn a_worker_of_another_mode_or_name_is_refused() {
    for (wrong, says) in [
        (Card { mode: Mode::Decode, ..card(1, 7, String::new()) }, "not prefill"),
        (card(5, 7, String::new()), "is worker 1, not 5"),
    ] {
        let prefill = End::new(1, 7);
        let control = prefill.ctrl.listen("127.0.0.1:0").await.expect("a port").to_string();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let at = listener.local_addr().expect("bound").port();
        tokio::spawn(bootstrap::serve(listener, Card { control, ..wrong }));
        let error = End::new(2, 1).ctrl.resolve("127.0.0.1", at).await.expect_err("refused");
        assert!(error.contains(says), "{error}");
    }
}

#[tokio::test]
async fn whoever_is_no_peer_is_shown_the_door_and_others_are_served() {
    let mut prefill = End::new(1, 7);
    let control = prefill.ctrl.listen("127.0.0.1:0").await.expect("a port");
    let greeting = br#"{"worker":2,"epoch":1,"wire":""}"#;
    let frame = |payload: &[u8], sum: u32| {
        let mut bytes = (payload.len() as u32).to_le_bytes().to_vec();
        bytes.extend_from_slice(&sum.to_le_bytes());
        bytes.extend_from_slice(payload);
        bytes
    };
    let hello = [b"pdctrl\x01\x00".to_vec(), frame(greeting, crc32c::crc32c(greeting))].concat();
    let bad: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        b"pdctrl\x09\x00".to_vec(),
        [b"pdctrl\x01\x00".to_vec(), frame(b"{}", crc32c::crc32c(b"{}"))].concat(),
        [b"pdctrl\x01\x00".to_vec(), frame(greeting, 1)].concat(),
        [b"pdctrl\x01\x00".to_vec(), u32::MAX.to_le_bytes().to_vec()].concat(),
        [hello.clone(), u32::MAX.to_le_bytes().to_vec(), vec![0; 8]].concat(),
        [hello.clone(), frame(b"\xff\xff", crc32c::crc32c(b"\xff\xff"))].concat(),
        [hello.clone(), frame(b"\x02", 7)].concat(),
        // Says nothing: closed when its time is over.
        Vec::new(),
    ];
    for bytes in bad {
        let mut stream = TcpStream::connect(control).await.expect("connected");
        stream.write_all(&bytes).await.expect("sent");
        let mut rest = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut rest)).await;
        end.expect("closed in time").ok();
    }
    // A peer among them, and the machine has heard of no others.
    let mut stream = TcpStream::connect(control).await.expect("connected");
    stream.write_all(&hello).await.expect("sent");
    let mut ups = 0;
    while ups < 4 {
        match prefill.next().await {
            Heard::Up(greeting) => {
                assert_eq!(greeting.worker, WorkerId(2));
                ups += 1;
            }
            Heard::Down(worker) => assert_eq!(worker, WorkerId(2)),
            Heard::Message(..) => panic!("nobody sent a message"),
        }
    }
    assert_eq!(prefill.ctrl.up(), [(WorkerId(2), Epoch(1))]);
}

#[tokio::test]
async fn sglang_s_routes_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(bootstrap::serve(listener, Card { wire: "127.0.0.1:77".into(), ..card(1, 7, "c".into()) }));
    for (path, has) in [
        ("/health", "OK"),
        ("/route?engine_rank=-1&target_dp_group=-1&target_pp_rank=-1", "\"prefill_dp_size\":1"),
        ("/route?engine_rank=0&target_dp_group=0&target_pp_rank=0", "\"rank_port\":77"),
        ("/route?engine_rank=3&target_dp_group=0", "404 Not Found"),
        ("/route?engine_rank=x", "400 Bad Request"),
        ("/pd/worker", "\"control\":\"c\""),
    ] {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        let ask = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(ask.as_bytes()).await.expect("sent");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("answered");
        assert!(text.contains(has), "{path}: {text}");
    }
}

