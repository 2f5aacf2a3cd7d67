//! What is fuzzed: each function takes any bytes. They may be refused; they must not cause a panic, here or in a thread
//! of a server, nor a status 500, nor take time or memory without a bound.
//!
//! `cargo fuzz run TARGET` (nightly) looks for such bytes; `cargo test --test fuzz` (stable) runs all that are kept in
//! `corpus`, of which what was once found goes by a name that says what it was. Checksums are put right before bytes are
//! used, so that a fuzzer gets behind them.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use pd_core::codec::{Codec, Compact, Source};
use pd_core::config::Mode;
use pd_core::id::{Epoch, PageKey, WorkerId};
use pd_core::message::Message;
use pd_core::op::{Input, Output};
use pd_core::router::{RouterInput, RouterOutput};
use pd_gpu::weights::{Config, ModelSource, Weights};
use pd_net::ctrl::bootstrap::{Bootstrap, BootstrapConfig};
use pd_net::http::mock::Mock;
use pd_net::http::{Edge, EdgeConfig};
use pd_net::store::{DirectIo, Store, StoreConfig};
use pd_net::text::{Chat, Files, Text};
use pd_net::wire::{Receiver, ReceiverConfig};
use pd_sim::journal::Reader;
use pd_sim::scenario::{Document, Overrides};
use pd_sim::trace::{Format, Trace};
use pd_sync::Arena;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// A name, which is that of its folder in `corpus`, and what it does with bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 11] = [
    ("bootstrap", bootstrap),
    ("chat", chat),
    ("codec", codec),
    ("generate", generate),
    ("journal", journal),
    ("model", model),
    ("scenario", scenario),
    ("store", store),
    ("template", template),
    ("trace", trace),
    ("wire", wire),
];

/// Values in the codec's two forms; the first byte says of what. What decodes comes back the same.
pub fn codec(bytes: &[u8]) {
    fn one<T: Codec + PartialEq + std::fmt::Debug>(bytes: &[u8], is_compact: bool) {
        let mut source = if is_compact { Source::compact(bytes) } else { Source::new(bytes) };
        let Ok(value) = T::decode(&mut source) else { return };
        assert_eq!(T::from_bytes(&value.to_bytes()).as_ref(), Ok(&value));
        let mut compact = Vec::new();
        value.encode(&mut Compact(&mut compact));
        assert_eq!(T::decode(&mut Source::compact(&compact)).as_ref(), Ok(&value));
    }
    let Some((first, rest)) = bytes.split_first() else { return };
    let is_compact = first & 8 != 0;
    match first % 5 {
        0 => one::<Message>(rest, is_compact),
        1 => one::<Input>(rest, is_compact),
        2 => one::<Output>(rest, is_compact),
        3 => one::<RouterInput>(rest, is_compact),
        _ => one::<RouterOutput>(rest, is_compact),
    }
}

/// Journals, with the checksums of their blocks put right.
pub fn journal(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    let (mut at, mut number) = (12_usize, 0_u32);
    while let Some(head) = bytes.get(at..at + 8) {
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let Some(payload) = bytes.get(at + 8..).and_then(|rest| rest.get(..length)) else { break };
        let mut sum = crc32fast::Hasher::new();
        sum.update(&number.to_le_bytes());
        sum.update(payload);
        let sum = sum.finalize().to_le_bytes();
        bytes[at + 4..at + 8].copy_from_slice(&sum);
        at += 8 + length;
        number += 1;
    }
    let Ok(reader) = Reader::new(&bytes[..]) else { return };
    for record in reader {
        match record {
            Ok(record) => _ = record.line(),
            Err(error) => _ = error.to_string(),
        }
    }
}

/// Scenario files.
pub fn scenario(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Document::of(text.to_owned(), Path::new("fuzz.toml"), &Overrides::default(), None) {
        Ok(document) => _ = document.file("fuzz", &[]),
        Err(error) => _ = error.to_string(),
    }
}

/// Recorded workloads; the first byte is the format. Not compressed: the limit of what is unpacked is 4 GiB.
pub fn trace(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    if rest.starts_with(&[0x1f, 0x8b]) {
        return;
    }
    let formats = [Format::Mooncake, Format::Azure, Format::Tokens, Format::Bailian, Format::Burstgpt, Format::Vidur];
    let format = formats[*first as usize % formats.len()];
    match Trace::parse("fuzz", rest, format, None) {
        Ok(trace) => assert!(trace.rows.is_sorted_by_key(|row| row.at_ns)),
        Err(error) => _ = error.to_string(),
    }
}

/// `config.json`, a zero byte, `model.safetensors`.
pub fn model(bytes: &[u8]) {
    let (config, weights) = match bytes.iter().position(|byte| *byte == 0) {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (bytes, &[][..]),
    };
    if Config::parse("config.json", config).is_err() {
        return;
    }
    let (config, weights) = (config.to_vec().into(), weights.to_vec().into());
    match Weights::open(&ModelSource::Bytes { config, generation: None, weights }) {
        Ok(weights) => assert!(weights.bytes() > 0, "a model of nothing"),
        Err(error) => _ = error.to_string(),
    }
}

/// A file of L3. The store opens, or says why not; what it then lists can be asked for.
pub fn store(bytes: &[u8]) {
    let folder = Folder::new();
    std::fs::write(folder.0.join("00000000-00000000.seg"), bytes).expect("a file in a folder of our own");
    let mut config = StoreConfig::new(&folder.0);
    config.segment_bytes = 64 << 10;
    config.direct_io = DirectIo::Never;
    config.poll = Duration::from_secs(3600);
    let Ok((store, _)) = Store::open(config) else { return };
    // The root of the pages in the corpus.
    let root = PageKey(7 << 64);
    let listed: Vec<PageKey> = store.scan(root, None, 1000).keys.into_iter().map(|(key, _)| key).collect();
    assert!(store.contains(&listed, root).into_iter().all(|is_there| is_there));
}

/// Bytes on a connection of the wire, with the checksum of the greeting put right.
pub fn wire(bytes: &[u8]) {
    static RECEIVER: OnceLock<Receiver> = OnceLock::new();
    let receiver = RECEIVER.get_or_init(|| {
        let arena = Arc::new(Arena::new(4096, 4).expect("memory"));
        let limits = Duration::from_secs(5);
        let config = ReceiverConfig {
            greeting_timeout: limits,
            progress_timeout: limits,
            ..ReceiverConfig::new(WorkerId(2), Epoch(3))
        };
        Receiver::listen(config, arena).expect("a port")
    });
    let mut bytes = bytes.to_vec();
    if let Some(head) = bytes.get(4..8) {
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        if let Some(body) = bytes.get(12..).and_then(|rest| rest.get(..length)) {
            let sum = crc32c::crc32c(body).to_le_bytes();
            bytes[8..12].copy_from_slice(&sum);
        }
    }
    exchange(receiver.address(), &bytes, true);
}

/// Bodies of `/generate`.
pub fn generate(bytes: &[u8]) {
    post(worker(), "POST", "/generate", bytes);
}

/// Bodies of `/v1/chat/completions`.
pub fn chat(bytes: &[u8]) {
    post(worker(), "POST", "/v1/chat/completions", bytes);
}

/// Questions to a bootstrap server: the path in the first line, the body behind it; a body is put, without one it is a
/// question.
pub fn bootstrap(bytes: &[u8]) {
    static ADDRESS: OnceLock<SocketAddr> = OnceLock::new();
    let address = *ADDRESS.get_or_init(|| {
        let config = BootstrapConfig { listen: "127.0.0.1:0".into(), ..BootstrapConfig::new(WorkerId(1)) };
        let server = runtime().block_on(Bootstrap::start(config)).expect("a port");
        let address = server.address();
        std::mem::forget(server);
        address
    });
    let mut parts = bytes.splitn(2, |byte| *byte == b'\n');
    let path = parts.next().unwrap_or_default();
    if !path.starts_with(b"/") || !path.iter().all(u8::is_ascii_graphic) {
        return;
    }
    let path = String::from_utf8_lossy(path).into_owned();
    match parts.next() {
        Some(body) => {
            post(address, "PUT", &path, body);
            post(address, "POST", &path, body);
        }
        None => post(address, "GET", &path, b""),
    }
}

/// Chat templates of models, with a conversation.
pub fn template(bytes: &[u8]) {
    let Ok(source) = std::str::from_utf8(bytes) else { return };
    let Ok(text) = Text::from_files(&Files { template: Some(source.to_owned()), ..files() }) else { return };
    let messages = serde_json::json!([
        { "role": "system", "content": "Be brief." },
        { "role": "user", "content": [{ "type": "text", "text": "Count." }] },
        { "role": "assistant", "content": "One.", "tool_calls": [{ "function": { "name": "f", "arguments": {} } }] },
        { "role": "user", "content": "On." },
    ]);
    let tools = serde_json::json!([{ "type": "function", "function": { "name": "f", "parameters": {} } }]);
    let chat = Chat {
        messages: minijinja::Value::from_serialize(messages),
        tools: minijinja::Value::from_serialize(tools),
        variables: std::collections::BTreeMap::new(),
        template: None,
        is_prompted: true,
        is_continued: false,
    };
    match text.chat(&chat) {
        Ok(prompt) => assert!(prompt.len() <= 64 << 20, "{} bytes of prompt", prompt.len()),
        Err(error) => _ = error.to_string(),
    }
}

/// The small tokenizer of `net`'s tests.
fn files() -> Files {
    Files {
        tokenizer: include_bytes!("../../net/tests/data/tiny/tokenizer.json").to_vec(),
        config: Some(include_bytes!("../../net/tests/data/tiny/tokenizer_config.json").to_vec()),
        ..Files::default()
    }
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::new().expect("threads"))
}

/// The API edge of a worker that answers at once.
fn worker() -> SocketAddr {
    static ADDRESS: OnceLock<SocketAddr> = OnceLock::new();
    *ADDRESS.get_or_init(|| {
        let text = Arc::new(Text::from_files(&files()).expect("the tokenizer of tests"));
        let backend = Arc::new(Mock::new(Mock::info("tiny-model", Mode::Unified)));
        let edge = Edge::new(backend, text, EdgeConfig::default());
        let listener = runtime().block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = listener.local_addr().expect("it is bound");
        runtime().spawn(pd_net::http::serve(listener, edge, std::future::pending()));
        address
    })
}

fn post(address: SocketAddr, method: &str, path: &str, body: &[u8]) {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: pd\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    // A client that says no more is one that has gone, and gets no answer.
    let answer = exchange(address, &[head.as_bytes(), body].concat(), false);
    let status = answer.get(9..12).map(String::from_utf8_lossy);
    assert!(
        answer.starts_with(b"HTTP/1.1 ") && status.as_deref() != Some("500"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
}

/// Says it all, and that this was all if so asked; then listens until the other end has closed.
fn exchange(address: SocketAddr, bytes: &[u8], says_end: bool) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    // Who is refused early may find the connection closed.
    let _ = stream.write_all(bytes);
    if says_end {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "the other end hangs");
    }
    answer
}

/// A folder in memory where there is such a thing; goes when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let path = parent.join(format!("pd-fuzz-{}-{:?}", std::process::id(), std::thread::current().id()));
        std::fs::create_dir_all(&path).expect("a folder of our own");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(30);
