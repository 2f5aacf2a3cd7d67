//! Quantities as people write them, right and wrong.

use super::*;

#[derive(serde::Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Table {
    wait: Option<Span>,
    tokens: Option<Count>,
    link: Option<BytesPerSecond>,
}

#[test]
fn quantities_come_out_as_whole_numbers_of_the_smallest_unit() {
    let ns = |text| duration(text).map(nanos);
    for (text, expected) in [
        ("250ms", 250_000_000),
        ("1.5s", 1_500_000_000),
        ("2m", 120_000_000_000),
        ("0.001us", 1),
        ("1 h", 3600 * BILLION),
    ] {
        assert_eq!(ns(text), Ok(expected), "{text}");
    }
    for (text, expected) in [("256GB", 256 * BILLION), ("64GiB", 64 << 30), ("1.5KiB", 1536), ("0B", 0)] {
        assert_eq!(bytes(text), Ok(expected), "{text}");
    }
    for (text, expected) in [("400Gb/s", 50 * BILLION), ("7GB/s", 7 * BILLION), ("100Gbps", 12_500_000_000)] {
        assert_eq!(bytes_per_second(text), Ok(expected), "{text}");
    }
    for (text, expected) in [("1M", 1_000_000), ("328k", 328_000), ("12_031", 12_031), ("1.5k", 1500), ("4Ki", 4096)] {
        assert_eq!(count(text), Ok(expected), "{text}");
    }
    assert_eq!(rate("3.4/s"), Ok(Rate { count: 17, span_ns: 5 * BILLION }));
    assert_eq!(rate("90/min"), Ok(Rate { count: 3, span_ns: 2 * BILLION }));
}

#[test]
fn errors_say_what_was_written_and_what_is_accepted() {
    let text = |result: Result<u64, UnitError>| result.expect_err("bad quantity").to_string();
    let ns = |text: &str| duration(text).map(nanos);
    insta::assert_snapshot!(text(ns("12 parsecs")), @r#""12 parsecs": no unit "parsecs"; a duration takes one of ns, us, ms, s, m, min, h, d"#);
    insta::assert_snapshot!(text(ns("12")), @r#""12": the unit is missing; a duration takes one of ns, us, ms, s, m, min, h, d"#);
    insta::assert_snapshot!(text(ns("soon")), @r#""soon" does not start with a number; write one like "250ms" or "1.5s""#);
    insta::assert_snapshot!(text(ns("0.3ns")), @r#""0.3ns" is not a whole number of nanoseconds"#);
    insta::assert_snapshot!(text(ns("99999999999999h")), @r#""99999999999999h" is out of range for a duration"#);
    insta::assert_snapshot!(text(count("-1")), @r#""-1" does not start with a number; write one like "328k" or "1M""#);
    for wrong in ["", ".", "1.2.3s", "1e3s", "0/s", "1/s/s", "0.0000001/d", "\u{663}s"] {
        assert!(duration(wrong).is_err() && rate(wrong).is_err() && bytes(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_table_names_the_key_and_the_form_it_wants() {
    let table: Table = toml::from_str("wait = \"2s\"\ntokens = 7\nlink = \"8kb/s\"").expect("right table");
    assert_eq!(table.wait, Some(Span(Duration::from_secs(2))));
    assert_eq!((table.tokens, table.link), (Some(Count(7)), Some(BytesPerSecond(1000))));
    let error = toml::from_str::<Table>("wait = 2").expect_err("a duration without unit").to_string();
    assert!(error.contains("wait = 2") && error.contains("like \"250ms\""), "{error}");
}

const BILLION: u64 = 1_000_000_000;
