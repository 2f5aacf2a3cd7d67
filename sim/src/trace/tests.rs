//! Traces: the published statistics, and no panic on any bytes.

use std::path::PathBuf;

use proptest::prelude::*;

use pd_core::rng::{Rng, Stream};

use super::*;

/// Figures of a separate count over the same files.
#[test]
fn the_conversation_trace_has_its_published_statistics() {
    let stats = stats(&conversation(), 512);
    assert_eq!(stats.rows, 12_031);
    assert_eq!(shape(stats.prompt), [12_035, 6_909, 27_367, 85_400, 126_195]);
    assert_eq!([stats.output.mean, stats.output.p50, stats.output.p99], [343, 350, 1_119]);
    assert_eq!(format!("{:.2}", stats.rate()), "3.40");
    assert_eq!(stats.span_ns / 1_000_000, 3_536_999);
    assert_eq!((stats.hits.blocks, stats.hits.hit_blocks), (288_500, 105_710));
    assert_eq!(per_cent(stats.hits.hit_blocks, stats.hits.blocks), "36.64");
    assert_eq!(per_cent(stats.hits.hit_tokens, stats.hits.tokens), "37.36");
    assert_eq!(format!("{:.4}", stats.hits.mean_of_requests), "0.4094");
}

#[test]
fn the_azure_trace_has_its_published_statistics() {
    let trace = Trace::read(&path("AzureLLMInferenceTrace_conv_2023.csv.gz"), Format::Azure, None).expect("trace");
    let stats = stats(&trace, 512);
    assert_eq!(stats.rows, 19_366);
    assert_eq!(shape(stats.prompt), [1_155, 1_020, 2_735, 4_142, 14_050]);
    assert_eq!([stats.output.mean, stats.output.p50, stats.output.p99], [211, 129, 601]);
    assert_eq!(format!("{:.2}", stats.rate()), "5.53");
    assert_eq!(stats.hits, Hits::default());
    assert_eq!([trace.rows[0].at_ns, trace.rows[1].at_ns], [0, 4_314_579_000]);
}

#[test]
fn the_sharegpt_trace_has_its_published_statistics() {
    let trace = Trace::read(&path("sharegpt300_llama31_8b.jsonl.gz"), Format::Tokens, None).expect("trace");
    let stats = stats(&trace, 16);
    assert_eq!(stats.rows, 300);
    assert_eq!(shape(stats.prompt), [857, 732, 1_460, 2_765, 3_998]);
    assert_eq!([stats.output.mean, stats.output.p50, stats.output.p99], [653, 632, 784]);
    assert_eq!(format!("{:.1}", stats.rate()), "10.3");
    assert_eq!(per_cent(stats.hits.hit_tokens, stats.hits.tokens), "7.59");
}

#[test]
fn jitter_fills_each_bucket_and_keeps_the_order() {
    let recorded = conversation();
    let mut spread = recorded.clone();
    assert!(spread.jitter(&mut Rng::new(7, Stream::Trace, 0)));
    for (before, after) in recorded.rows.iter().zip(&spread.rows) {
        assert_eq!(before.content, after.content, "the order has changed");
        assert_eq!(after.at_ns / BUCKET_NS, (before.at_ns + BUCKET_NS / 2) / BUCKET_NS);
    }
    assert!(spread.rows.is_sorted_by_key(|row| row.at_ns));
    let mean_offset = spread.rows.iter().map(|row| row.at_ns % BUCKET_NS).sum::<u64>() / 12_031;
    assert!(mean_offset.abs_diff(BUCKET_NS / 2) < BUCKET_NS / 50, "{mean_offset}");

    let again = spread.clone();
    assert!(!spread.jitter(&mut Rng::new(7, Stream::Trace, 0)), "times between buckets are exact already");
    assert_eq!(spread, again);
}

#[test]
fn errors_name_file_line_and_field() {
    let error = |text: &str, format| Trace::parse("t", text.as_bytes(), format, None).expect_err(text).to_string();
    let good = r#"{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": [1]}"#;
    let mooncake = |line: &str| error(&format!("{good}\n\n{line}"), Format::Mooncake);
    let azure = |line: &str| error(&format!("TIMESTAMP,ContextTokens,GeneratedTokens\r\n{line}\r\n"), Format::Azure);
    let tokens = |line: &str| error(line, Format::Tokens);
    let errors = [
        mooncake("{"),
        mooncake("[1]"),
        mooncake(&good.replace("5", "\"5\"")),
        mooncake(&good.replace("5", "-5")),
        mooncake(&good.replace("5", "0")),
        mooncake(&good.replace("5", "513")),
        mooncake(&good.replace("[1]", "[1.5]")),
        mooncake(&good.replace("[1]", "{}")),
        mooncake(&good.replace("hash_ids", "hashes")),
        mooncake(&good.replace("p\": 0", "p\": 9999999999999999")),
        error("a,b,c", Format::Azure),
        azure("2023-11-16 18:15:46.6805900,374"),
        azure("2023-11-16 25:15:46.6805900,374,44"),
        azure("2023-11-16 18:15:46.6805900,many,44"),
        tokens(r#"{"input_tok_ids": [1, 2]}"#),
        tokens(r#"{"input_tok_ids": [1, 2], "input_toks": 3, "output_toks": 1}"#),
        tokens(r#"{"input_tok_ids": [1, 4294967296], "output_toks": 1}"#),
    ];
    insta::assert_snapshot!(errors.join("\n"), @r#"
    t:3: the line: is not JSON (EOF while parsing an object at column 1); expected a JSON object with timestamp, input_length, output_length, hash_ids
    t:3: the line: is [1]; expected a JSON object with timestamp, input_length, output_length, hash_ids
    t:3: input_length: is "5"; expected an integer up to 16777216
    t:3: input_length: is -5; expected an integer up to 16777216
    t:3: input_length: is 0; expected 1 to 16777216 tokens
    t:3: hash_ids: has 1 ids; expected 2, which is input_length 513 in blocks of 512
    t:3: hash_ids: item 0 is 1.5; expected integers up to 18446744073709551615
    t:3: hash_ids: is {}; expected a list of integers up to 18446744073709551615
    t:3: hash_ids: missing; expected a list of integers up to 18446744073709551615
    t:3: timestamp: is 9999999999999999; expected at most 3162240000000, which is 100 years
    t:1: header: is "a,b,c"; expected "TIMESTAMP,ContextTokens,GeneratedTokens"
    t:2: the line: has 2 columns; expected TIMESTAMP,ContextTokens,GeneratedTokens
    t:2: TIMESTAMP: is "2023-11-16 25:15:46.6805900"; expected a time like 2023-11-16 18:15:46.680590
    t:2: ContextTokens: is "many"; expected a count of tokens
    t:1: output_toks: missing; expected the length of the answer here, or its tokens in output_tok_ids
    t:1: input_toks: is 3; expected 2, the length of input_tok_ids
    t:1: input_tok_ids: item 1 is 4294967296; expected integers up to 4294967295
    "#);
}

#[test]
fn a_token_row_needs_neither_arrival_nor_answer() {
    let text = br#"{"input_tok_ids": [1, 2], "output_toks": 7}"#;
    let trace = Trace::parse("t", text, Format::Tokens, None).expect("row");
    let content = Content::Tokens { prompt: vec![1, 2], output: vec![] };
    assert_eq!(trace.rows, [Row { at_ns: 0, prompt_tokens: 2, output_tokens: 7, content }]);
}

#[test]
fn a_missing_file_suggests_the_nearest_name() {
    let error = |name| Trace::read(&path(name), Format::Mooncake, None).expect_err("no such file").to_string();
    let near = error("conversation_trace.jsonl");
    assert!(near.contains("did you mean") && near.ends_with("conversation_trace.jsonl.gz?"), "{near}");
    let far = error("zzzzzzzz");
    assert!(!far.contains("did you mean"), "{far}");
}

#[test]
fn damaged_gzip_data_is_an_error() {
    let bytes = fs::read(path("conversation_trace.jsonl.gz")).expect("trace");
    let error = |name, bytes: &[u8]| Trace::parse(name, bytes, Format::Mooncake, None).expect_err("bad").to_string();
    assert!(error("cut", &bytes[..5000]).contains("damaged gzip"));
    assert!(error("plain.gz", b"{}").contains("damaged gzip"));
}

#[test]
fn dates_are_counted_right_across_leap_days() {
    let at = |rows: &str| {
        let text = format!("TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}");
        Trace::parse("t", text.as_bytes(), Format::Azure, None).expect("rows").rows.last().expect("row").at_ns
    };
    assert_eq!(at("2024-02-28 23:59:59,1,1\n2024-03-01 00:00:00.5,1,1"), 86_401_500_000_000);
    assert_eq!(at("2023-02-28 23:59:59,1,1\n2023-03-01 00:00:00,1,1"), 1_000_000_000);
    assert_eq!(at("2023-12-31 23:59:59,1,1\n2024-01-01 00:00:00,1,1"), 1_000_000_000);
}

proptest! {
    /// Bytes of a file never cause a panic: right lines, damaged in a few places.
    #[test]
    fn damaged_lines_are_rows_or_errors(
        which in 0..LINES.len(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 0..6),
    ) {
        let (format, line) = LINES[which];
        let mut bytes = line.as_bytes().to_vec();
        for (at, byte, how) in damage {
            let at = at.index(bytes.len().max(1));
            match how {
                0 => bytes.insert(at.min(bytes.len()), byte),
                1 if at < bytes.len() => { bytes.remove(at); }
                2 if at < bytes.len() => bytes[at] = b"0123456789-.,\"[]{}:\n"[byte as usize % 20],
                _ => bytes.truncate(at.max(8)),
            }
        }
        if let Ok(trace) = Trace::parse("t", &bytes, format, Some(u32::from(bytes.len() as u8))) {
            prop_assert!(trace.rows.iter().all(|row| row.prompt_tokens > 0 && row.at_ns <= AT_NS_MAX));
            let _ = stats(&trace, 16);
        }
    }
}

const LINES: [(Format, &str); 4] = [
    (Format::Mooncake, "{\"timestamp\": 27, \"input_length\": 600, \"output_length\": 52, \"hash_ids\": [0, 46]}\n"),
    (Format::Azure, "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"),
    (Format::Tokens, "{\"input_toks\": 2, \"output_toks\": 1, \"arrival_time_ns\": 46, \"input_tok_ids\": [5, 2]}\n"),
    (Format::Mooncake, "\u{1f}\u{fffd}"),
];

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios/traces").join(name)
}

fn conversation() -> Trace {
    Trace::read(&path("conversation_trace.jsonl.gz"), Format::Mooncake, None).expect("the trace is in the repository")
}

fn shape(spread: Spread) -> [u32; 5] {
    [spread.mean, spread.p50, spread.p90, spread.p99, spread.max]
}

fn per_cent(part: u64, whole: u64) -> String {
    format!("{:.2}", part as f64 * 100.0 / whole as f64)
}

#[test]
fn what_is_written_is_read_again() {
    let blocks = |at_ns, prompt_tokens, ids: &[u64]| Row {
        at_ns,
        prompt_tokens,
        output_tokens: 7,
        content: Content::Blocks { block: 16, ids: ids.to_vec() },
    };
    let trace = Trace { rows: vec![blocks(0, 20, &[1, 2]), blocks(1_500_000_000, 33, &[1, 2, 9])] };
    let again = |format, block| {
        let mut out = Vec::new();
        let loss = trace.write(format, &mut out).expect("memory takes everything");
        (Trace::parse("t", &out, format, block).expect("what we write"), loss)
    };
    assert_eq!(again(Format::Bailian, None), (trace.clone(), Loss::default()));
    assert_eq!(again(Format::Mooncake, Some(16)), (trace.clone(), Loss::default()));
    for format in [Format::Vidur, Format::Burstgpt, Format::Azure] {
        let (bare, loss) = again(format, None);
        assert_eq!(loss, Loss { contents: 2, arrivals: 0 }, "{format:?}");
        let lengths = |trace: &Trace| -> Vec<_> {
            trace.rows.iter().map(|row| (row.at_ns, row.prompt_tokens, row.output_tokens)).collect()
        };
        assert_eq!(lengths(&bare), lengths(&trace), "{format:?}");
        assert!(bare.rows.iter().all(|row| row.content == Content::Opaque));
    }
}

#[test]
fn rows_without_content_share_nothing_as_blocks() {
    let row = |at_ns| Row { at_ns, prompt_tokens: 600, output_tokens: 1, content: Content::Opaque };
    let mut out = Vec::new();
    Trace { rows: vec![row(0), row(1_000_000)] }.write(Format::Mooncake, &mut out).expect("memory");
    let again = Trace::parse("t", &out, Format::Mooncake, None).expect("what we write");
    assert_eq!(stats(&again, 64).hits.hit_blocks, 0);
}

#[test]
fn columns_are_told_by_name_and_what_is_wrong_with_them_is_said() {
    let error = |text: &str, format| Trace::parse("t.csv", text.as_bytes(), format, None).expect_err("bad").to_string();
    assert_eq!(
        error("arrived_at,num_prefill_tokens\n", Format::Vidur),
        "t.csv:1: header: has \"arrived_at,num_prefill_tokens\"; expected a column \"num_decode_tokens\""
    );
    assert_eq!(
        error("num_decode_tokens,arrived_at,num_prefill_tokens\n1,soon,2\n", Format::Vidur),
        "t.csv:2: arrived_at: is \"soon\"; expected seconds, such as 12.5, of at most 100 years"
    );
    assert_eq!(
        error(
            "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,0,3,3,API log\n",
            Format::Burstgpt
        ),
        "t.csv:2: Request tokens: is 0; expected 1 to 16777216 tokens"
    );
}
