//! The bootstrap server, as its clients and SGLang's see it.

use std::time::Duration;

use pd_core::config::Mode;
use pd_core::message::Layout;
use pd_core::transfer::registry::RegistryConfig;

use super::super::bootstrap::client::{AskError, Client};
use super::super::bootstrap::{Announcement, Bootstrap, BootstrapConfig, Name};
use super::*;

fn announcement(id: u32, mode: Mode) -> Announcement {
    Announcement {
        worker: WorkerId(id),
        epoch: Epoch(1),
        mode,
        root: "ab12".into(),
        layout: Layout {
            page_size: 16,
            dtype: "bf16".into(),
            layers: 2,
            kv_heads: 2,
            head_dim: 8,
            page_bytes: 2048,
            tp: 1,
        },
        control: format!("127.0.0.1:{}", 1000 + id),
        wire: format!("127.0.0.1:{}", 2000 + id),
    }
}

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

async fn server(change: impl FnOnce(&mut BootstrapConfig)) -> Bootstrap {
    let mut config = BootstrapConfig { listen: "127.0.0.1:0".into(), ..BootstrapConfig::new(WorkerId(1)) };
    change(&mut config);
    Bootstrap::start(config).await.unwrap()
}

fn client(token: Option<&str>) -> Client {
    Client::new(token.map(Into::into), LONG)
}

fn status<T: std::fmt::Debug>(asked: Result<T, AskError>) -> u16 {
    match asked {
        Err(AskError::Refused { status, .. }) => status,
        other => panic!("refused, not {other:?}"),
    }
}

/// A request by hand, as SGLang's clients make it.
async fn http(server: &Bootstrap, method: &str, path: &str, body: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(server.address()).await.unwrap();
    let length = body.len();
    let text = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.into())
}

#[test]
fn a_request_s_host_and_port_lead_to_the_prefill_worker() {
    run(async {
        let server = server(|_| {}).await;
        let (client, port) = (client(None), server.address().port());
        assert_eq!(status(client.resolve("127.0.0.1", port).await), 503, "not registered yet");
        let ours = announcement(1, Mode::Prefill);
        let lease = client.register(&server.address().to_string(), &ours).await.unwrap();
        assert!((15_000..=20_000).contains(&lease.lease_ms), "what is left, not when it ends: {lease:?}");
        let found = client.resolve("127.0.0.1", port).await.unwrap();
        assert_eq!(found, Announcement { root: format!("{:0>32}", "ab12"), ..ours });
    });
}

#[test]
fn workers_are_found_by_id_and_by_mode_and_lives_are_told_apart() {
    run(async {
        let server = server(|_| {}).await;
        let (client, at) = (client(None), server.address().to_string());
        for (id, mode) in [(1, Mode::Prefill), (2, Mode::Decode), (3, Mode::Decode)] {
            client.register(&at, &announcement(id, mode)).await.unwrap();
        }
        assert_eq!(client.find(&at, WorkerId(2)).await.unwrap().wire, "127.0.0.1:2002");
        assert_eq!(status(client.find(&at, WorkerId(9)).await), 404);
        let decodes = client.workers(&at, Mode::Decode).await.unwrap();
        assert_eq!(decodes.iter().map(|it| it.worker.0).collect::<Vec<_>>(), [2, 3]);
        let later = Announcement { epoch: Epoch(2), ..announcement(2, Mode::Decode) };
        client.register(&at, &later).await.unwrap();
        assert_eq!(status(client.register(&at, &announcement(2, Mode::Decode)).await), 409, "an earlier life");
        client.leave(&at, Name { worker: WorkerId(2), epoch: Epoch(1) }).await.unwrap();
        assert_eq!(client.find(&at, WorkerId(2)).await.unwrap().epoch, Epoch(2), "the leave of an earlier life");
        client.leave(&at, Name { worker: WorkerId(2), epoch: Epoch(2) }).await.unwrap();
        assert_eq!(status(client.find(&at, WorkerId(2)).await), 404);
    });
}

#[test]
fn what_does_not_fit_is_refused_with_the_reason() {
    run(async {
        let server = server(|config| config.token = Some("secret".into())).await;
        let at = server.address().to_string();
        let ours = announcement(1, Mode::Prefill);
        assert_eq!(status(client(None).register(&at, &ours).await), 401);
        assert_eq!(status(client(Some("secre")).register(&at, &ours).await), 401);
        let client = client(Some("secret"));
        client.register(&at, &ours).await.unwrap();
        let other = Announcement { root: "ff".into(), ..announcement(2, Mode::Decode) };
        assert_eq!(status(client.register(&at, &other).await), 409, "other weights");
        for bad in [
            Announcement { root: "xyz".into(), ..announcement(2, Mode::Decode) },
            Announcement { wire: "nowhere".into(), ..announcement(2, Mode::Decode) },
            Announcement { control: "host:99999".into(), ..announcement(2, Mode::Decode) },
            Announcement { control: "a b:1".into(), ..announcement(2, Mode::Decode) },
        ] {
            assert_eq!(status(client.register(&at, &bad).await), 400, "{bad:?}");
        }
        for body in ["", "{", "[1]", "{\"worker\":1}", "\u{0}\u{1}"] {
            let (status, _) = http(&server, "PUT", "/route", body).await;
            assert_eq!(status, 401, "{body:?}: nobody writes without the token");
            let (status, _) = http(&server, "POST", "/query_dp_ranks", body).await;
            assert!((400..500).contains(&status), "{body:?}: {status}");
        }
    });
}

/// A registration outlives a restart of the server, and waits for one that is late.
#[test]
fn a_registration_is_kept_through_a_restart() {
    run(async {
        let listen = {
            let free = TcpListener::bind(ELSEWHERE).unwrap();
            free.local_addr().unwrap().to_string()
        };
        let (client, ours) = (client(None), announcement(1, Mode::Prefill));
        let keeper = {
            let (client, listen, ours) = (client.clone(), listen.clone(), ours.clone());
            tokio::spawn(async move { client.keep(&listen, &ours, |_| {}).await })
        };
        for _ in 0..2 {
            let started = server(|config| {
                config.listen = listen.clone();
                config.registry = RegistryConfig { lease: Duration::from_millis(150), ..RegistryConfig::default() };
            });
            let server = tokio::time::timeout(LONG, started).await.unwrap();
            let found = async {
                while client.find(&listen, WorkerId(1)).await.is_err() {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(LONG, found).await.expect("it registers by itself");
            tokio::time::timeout(LONG, server.stop()).await.expect("it stops");
        }
        keeper.abort();
    });
}

#[test]
fn a_keeper_gives_up_on_what_no_retry_mends() {
    run(async {
        let server = server(|_| {}).await;
        let (client, at) = (client(None), server.address().to_string());
        client.register(&at, &Announcement { epoch: Epoch(5), ..announcement(1, Mode::Prefill) }).await.unwrap();
        let mut told = 0;
        let kept = client.keep(&at, &announcement(1, Mode::Prefill), |_| told += 1).await;
        assert_eq!(status(kept), 409);
        assert_eq!(told, 1);
    });
}

fn rank(tp_rank: u32, page_size: u32) -> String {
    serde_json::json!({
        "attn_tp_size": 2, "attn_tp_rank": tp_rank, "attn_cp_size": 1, "attn_cp_rank": 0, "attn_dp_size": 1,
        "attn_dp_rank": 0, "pp_size": 1, "pp_rank": 0, "system_dp_size": 1, "system_dp_rank": 0,
        "rank_ip": "10.0.0.7", "rank_port": 45_000 + tp_rank, "page_size": page_size, "kv_cache_dtype": "auto",
        "role": "Prefill", "some_new_field": true,
    })
    .to_string()
}

#[test]
fn sglang_s_routes_answer_as_its_clients_expect() {
    run(async {
        let server = server(|_| {}).await;
        let all = "/route?prefill_dp_rank=-1&prefill_cp_rank=-1&target_tp_rank=-1&target_pp_rank=-1";
        let one = "/route?prefill_dp_rank=0&prefill_cp_rank=0&target_tp_rank=1&target_pp_rank=0";
        assert_eq!(http(&server, "GET", "/health", "").await, (200, "OK".into()));
        assert_eq!(http(&server, "GET", "/route", "").await.0, 400);
        assert_eq!(http(&server, "DELETE", "/route", "").await.0, 405);
        assert_eq!(http(&server, "GET", all, "").await.0, 503);
        assert_eq!(http(&server, "PUT", "/route", &rank(0, 64)).await, (200, "OK".into()));
        assert_eq!(http(&server, "PUT", "/route", &rank(0, 64)).await.0, 200, "again");
        assert_eq!(http(&server, "GET", all, "").await.0, 503, "one rank, counted once");
        assert_eq!(http(&server, "PUT", "/route", &rank(1, 32)).await.0, 409, "another page size");
        assert_eq!(http(&server, "PUT", "/route", &rank(2, 64)).await.0, 400, "no such rank");
        assert_eq!(http(&server, "PUT", "/route", &rank(1, 64)).await.0, 200);
        let (status, body) = http(&server, "GET", all, "").await;
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(status, 200);
        for (field, value) in [("attn_tp_size", 2), ("prefill_attn_tp_size", 2), ("dp_size", 1), ("page_size", 64)] {
            assert_eq!(body[field], value, "{field} of {body}");
        }
        let (status, body) = http(&server, "GET", one, "").await;
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, body), (200, serde_json::json!({"rank_ip": "10.0.0.7", "rank_port": 45_001})));
        let older = "/route?engine_rank=1&target_dp_group=0&target_pp_rank=0";
        assert_eq!(http(&server, "GET", older, "").await.0, 200, "the older names");
        assert_eq!(http(&server, "GET", &one.replace("tp_rank=1", "tp_rank=7"), "").await.0, 404);
        assert_eq!(http(&server, "POST", "/register_dp_rank", r#"{"bootstrap_room":41,"dp_rank":3}"#).await.0, 200);
        let asked = http(&server, "POST", "/query_dp_ranks", r#"{"bootstrap_rooms":[40,41]}"#).await;
        assert_eq!(asked, (200, r#"{"41":3}"#.into()));
    });
}

#[test]
fn rooms_are_remembered_up_to_a_number_and_a_time() {
    run(async {
        let server = server(|config| config.rooms_max = 2).await;
        for room in 1..=3 {
            let body = format!("{{\"bootstrap_room\":{room},\"dp_rank\":{room}}}");
            assert_eq!(http(&server, "POST", "/register_dp_rank", &body).await.0, 200);
        }
        let asked = http(&server, "POST", "/query_dp_ranks", r#"{"bootstrap_rooms":[1,2,3]}"#).await.1;
        assert_eq!(asked, r#"{"2":2,"3":3}"#);
    });
    run(async {
        let server = server(|config| config.room_lifetime = Duration::ZERO).await;
        http(&server, "POST", "/register_dp_rank", r#"{"bootstrap_room":1,"dp_rank":1}"#).await;
        assert_eq!(http(&server, "POST", "/query_dp_ranks", r#"{"bootstrap_rooms":[1]}"#).await.1, "{}");
    });
}

#[test]
fn nobody_there_and_somebody_else_are_told_apart() {
    run(async {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let asked = client(None).resolve("127.0.0.1", free.port()).await;
        assert!(matches!(asked, Err(AskError::Unreachable { .. })), "{asked:?}");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi");
        });
        let asked = client(None).resolve("127.0.0.1", port).await;
        assert!(matches!(asked, Err(AskError::Nonsense { .. })), "{asked:?}");
    });
}
