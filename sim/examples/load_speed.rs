//! How long the conversation trace takes to read and to turn into prompts: `cargo run --release --example load_speed`.

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use pd_core::id::{PageKey, Token};
use pd_core::key::{Namespace, page_key};
use pd_sim::load::{Context, Load, LoadConfig};
use pd_sim::trace::{Format, Trace};

const ROUNDS: usize = 9;

fn main() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios");
    let file = directory.join("traces/conversation_trace.jsonl.gz");
    report("read, decompress, parse", || {
        Trace::read(&file, Format::Mooncake, None).expect("the trace is in the repository").rows.len()
    });
    for page_size in [512, 64, 16] {
        let table = "kind = 'trace'\nfile = 'traces/conversation_trace.jsonl.gz'\nformat = 'mooncake'";
        let config: LoadConfig = toml::from_str(table).expect("a right table");
        let namespace = Namespace { page_size, ..Namespace::default() };
        let cx = Context { seed: 1, index: 0, namespace: &namespace, directory: &directory };
        let mut loads: Vec<Load> = (0..ROUNDS).map(|_| Load::new(&config, &cx).expect("a right table")).collect();
        report(&format!("all prompts at page {page_size}"), || {
            let mut load = loads.pop().expect("one load a round");
            let mut keys = 0;
            while let Some((_, arrival)) = load.next_arrival() {
                keys += arrival.prompt.keys.len();
            }
            keys
        });
    }
    let tokens: Vec<Token> = (0..512).map(Token).collect();
    report("1000 exact keys of 512 tokens", || {
        let last = (0..1000).fold(PageKey(1), |parent, _| page_key(parent, black_box(&tokens)));
        1000 + (black_box(last) == PageKey(0)) as usize
    });
}

fn report(what: &str, mut work: impl FnMut() -> usize) {
    let mut times: Vec<_> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            let count = work();
            (start.elapsed(), count)
        })
        .collect();
    times.sort();
    println!("{what}: median {:?}, best {:?}, {} items", times[ROUNDS / 2].0, times[0].0, times[0].1);
}
