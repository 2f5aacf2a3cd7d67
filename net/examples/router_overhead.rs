//! What the router costs: the latency that it adds to a request, and the tokens that one core of it passes on.
//!
//! `cargo run --release -p pd-net --example router_overhead`
//!
//! Mock workers, the router and the load generator each have a thread of their own, on loopback. Latency is the
//! difference of the medians of the time to first token, behind the router and without it, one request at a time.
//! Throughput is tokens (an SSE event each) per second of CPU time of the router's thread, because the machine also runs
//! the other two.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::thread;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use tokio::net::TcpListener;

use pd_net::bench::{self, BenchConfig, BenchInputs, BenchReport};
use pd_net::router::{self, RouterConfig};

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Error> {
    let [prefill, decode] = [start_thread(serve_mock)?, start_thread(serve_mock)?];
    let (tell, cpu) = mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let config = RouterConfig {
        prefill: vec![format!("http://{prefill} 8998")],
        decode: vec![format!("http://{decode}")],
        ..RouterConfig::default()
    };
    let front = start_thread(move |listener| async move {
        let done = router::serve(config, listener, async {
            let _ = stopped.await;
        });
        let result = done.await.map(|_| ()).map_err(Error::from);
        let _ = tell.send(thread_cpu_seconds());
        result
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let quick = |url: SocketAddr, tokens: u32, requests, concurrency| BenchConfig {
            base_url: format!("http://{url}"),
            model: Some("mock".into()),
            random_input_len: 256,
            random_output_len: tokens,
            num_prompts: requests,
            max_concurrency: Some(concurrency),
            warmup_requests: 50,
            ..BenchConfig::default()
        };
        // The router finds its workers within a second.
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        let (direct, routed) = (run(quick(decode, 8, 2000, 1)).await?, run(quick(front, 8, 2000, 1)).await?);
        for (name, report) in [("direct", &direct), ("routed", &routed)] {
            println!("{name}: ttft p50 {:.3} ms, p99 {:.3} ms", report.ttft_ms.median, report.ttft_ms.p99);
        }
        println!("added latency p50: {:.3} ms", routed.ttft_ms.median - direct.ttft_ms.median);
        let load = run(quick(front, 500, 600, 32)).await?;
        println!("load: {} tokens in {:.2} s, {} failed", load.output_tokens, load.duration, load.failed);
        let _ = stop.send(());
        let seconds = cpu.recv()?;
        let tokens = load.output_tokens + routed.output_tokens;
        println!("router: {seconds:.2} s of CPU, {:.0} tokens per core and second", tokens as f64 / seconds);
        Ok(())
    })
}

async fn run(config: BenchConfig) -> Result<BenchReport, Error> {
    let report = bench::run(config, BenchInputs::default(), |progress| println!("{progress}")).await?;
    if report.exit_code() == 0 { Ok(report) } else { Err(report.to_string().into()) }
}

/// Runs a server in a thread with a runtime of its own; returns its address.
fn start_thread<F: Future<Output = Result<(), Error>>>(
    serve: impl FnOnce(TcpListener) -> F + Send + 'static,
) -> Result<SocketAddr, Error> {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || -> Result<(), Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            tell.send(listener.local_addr()?)?;
            serve(listener).await
        })
    });
    Ok(told.recv()?)
}

async fn serve_mock(listener: TcpListener) -> Result<(), Error> {
    use axum::serve::ListenerExt as _;
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, axum::Router::new().fallback(mock)).await?;
    Ok(())
}

/// Answers with as many events as tokens were asked for, one chunk each.
async fn mock(request: Request) -> Response {
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let tokens = body["max_tokens"].as_u64().unwrap_or(1);
    let event = Bytes::from_static(
        b"data: {\"id\":\"cmpl-1\",\"object\":\"text_completion\",\"choices\":[{\"index\":0,\"text\":\" token\"}]}\n\n",
    );
    let events = futures_util::stream::unfold(0, move |sent| {
        let event = event.clone();
        async move {
            if sent >= tokens {
                return None;
            }
            // Each event is written for itself, as a worker does it.
            tokio::task::yield_now().await;
            Some((Ok::<_, Infallible>(event), sent + 1))
        }
    });
    let mut response = Response::new(Body::from_stream(events));
    response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static("text/event-stream"));
    response
}

/// CPU time of this thread, in steps of the kernel's tick (10 ms).
fn thread_cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap_or_default();
    // Behind the name in brackets come the state and numbers; user and system time are the 12th and 13th of them.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks: f64 = fields.iter().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    ticks / 100.0
}
