//! Workers that a file lists.

use super::*;
use pd_core::config::Mode;

/// Replaces a file as a whole: between the two halves of a plain write, the list would be empty, and valid.
fn put(path: &std::path::Path, text: &str) {
    let draft = path.with_extension("draft");
    std::fs::write(&draft, text).expect("written");
    std::fs::rename(&draft, path).expect("renamed");
}

#[tokio::test]
async fn workers_come_and_go_with_the_file_and_a_broken_file_changes_nothing() {
    let (first, second) = (Mock::well("a").await, Mock::well("b").await);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("workers.toml");
    let entry = |mock: &Mock| format!("[[worker]]\nurl = \"{}\"\n", mock.url);
    put(&path, &entry(&first));
    let router = Served::ready(RouterConfig { discovery_file: Some(path.clone()), ..quick() }, 1).await;
    assert_eq!(router.post("/generate", &json!({"text": "x"})).await.json()["id"], "a");

    put(&path, &(entry(&first) + &entry(&second)));
    router.until_up(2).await;

    put(&path, "[[worker]]\nurl = 3");
    within(async {
        while !router.get("/metrics").await.body.contains("pd_router_discovery_errors_total 1") {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(router.get("/readiness").await.json()["total_workers"], 2);

    put(&path, &entry(&second));
    within(async {
        while router.get("/readiness").await.json()["total_workers"] != 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for _ in 0..3 {
        assert_eq!(router.post("/generate", &json!({"text": "x"})).await.json()["id"], "b");
    }
}

#[tokio::test]
async fn a_file_that_is_not_there_at_the_start_is_an_error_that_names_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let config = RouterConfig { discovery_file: Some("/nowhere/workers.toml".into()), ..quick() };
    let error = within(serve(config, listener, std::future::pending())).await.expect_err("no file").to_string();
    assert!(error.contains("/nowhere/workers.toml"), "{error}");
}

#[test]
fn both_formats_say_the_same() {
    let toml = "[[worker]]\nurl = \"http://a:1\"\nmode = \"prefill\"\nbootstrap_port = 8998\n[[worker]]\nurl = \"http://b:1\"\nmode = \"decode\"";
    let json = r#"[{"url":"http://a:1","mode":"prefill","bootstrap_port":8998},{"url":"http://b:1","mode":"decode"}]"#;
    let specs = discover::parse(toml, false).expect("valid");
    assert_eq!(specs, discover::parse(json, true).expect("valid"));
    assert_eq!(specs, discover::parse(&format!("{{\"worker\":{json}}}"), true).expect("valid"));
    assert_eq!((specs[0].mode, specs[0].bootstrap_port, specs[1].mode), (Mode::Prefill, Some(8998), Mode::Decode));
    assert!(discover::parse("", false).expect("an empty list").is_empty());
}

#[test]
fn lists_that_make_no_sense_are_refused_with_the_entry() {
    for (text, is_json, says) in [
        ("x", false, "x"),
        ("[[worker]]", false, "url"),
        ("[[worker]]\nurl = \"ftp://a\"", false, "worker 0"),
        ("[[worker]]\nurl = \"http://a:1\"\nmode = \"both\"", false, "both"),
        ("[[worker]]\nurl = \"http://a:1\"\nport = 1", false, "port"),
        ("[[worker]]\nurl = \"http://a:1\"\nbootstrap_port = 1", false, "prefill"),
        ("[[worker]]\nurl = \"http://a:1\"\nmode = \"prefill\"\nbootstrap_port = 0", false, "65535"),
        ("[[worker]]\nurl = \"http://a:1\"\n[[worker]]\nurl = \"http://a:1/\"", false, "twice"),
        ("{", true, "EOF"),
        ("{\"workers\":[]}", true, "workers"),
        ("[3]", true, "invalid type"),
        ("null", true, "invalid"),
    ] {
        let error = discover::parse(text, is_json).expect_err(text);
        assert!(error.contains(says), "{text}: {error}");
    }
}
