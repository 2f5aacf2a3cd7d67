//! Draws: their distribution, and that they are the same everywhere.

use pd_core::rng::Stream;

use super::*;

#[derive(serde::Deserialize)]
struct Table {
    #[serde(default)]
    tokens: Option<Lengths>,
    #[serde(default)]
    pause: Option<Pause>,
}

/// Against the library's ln, which is right to 1e-15 wherever the tests run.
#[test]
fn the_logarithm_is_right_to_a_part_in_a_billion() {
    let mut rng = Rng::new(1, Stream::Arrivals, 0);
    let random = (0..20_000).map(|_| rng.next());
    let near_zero = (0..64).map(|shift| u64::MAX >> shift);
    let near_one = (0..64).map(|shift| u64::MAX - (u64::MAX >> 1 >> shift));
    let mut worst = 0.0_f64;
    for draw in random.chain(near_zero).chain(near_one).chain([0, 1, 2, 1 << 63, (SQRT_HALF - 1) as u64]) {
        let below_one = (!draw) as f64 / 2_f64.powi(64);
        let exact = if draw >> 63 == 1 { -(-below_one).ln_1p() } else { -((draw as f64 + 1.0) / 2_f64.powi(64)).ln() };
        let ours = neg_ln_q96(draw) as f64 / 2_f64.powi(96);
        worst = worst.max(if exact == 0.0 { ours } else { ((ours - exact) / exact).abs() });
    }
    assert!(worst < 1e-9, "{worst:e}");
    assert!(worst < 1e-14, "the documented error: {worst:e}");
}

#[test]
fn the_power_of_two_is_right_to_a_part_in_a_billion() {
    for part in (0..1_u64 << 32).step_by(9_999_991) {
        let exact = 2_f64.powf(part as f64 / 2_f64.powi(32));
        let ours = exp2_q62(part) as f64 / 2_f64.powi(62);
        assert!(((ours - exact) / exact).abs() < 1e-9, "{part}");
    }
}

#[test]
fn lengths_have_the_distribution_they_are_named_for() {
    let [mean, _, _, most] = drawn("{ uniform = [100, 200] }");
    assert!(mean.abs_diff(150) <= 1 && most == 200, "{mean} {most}");
    let [mean, p50, p90, _] = drawn("{ exponential = { mean = 1000 } }");
    assert!(mean.abs_diff(1000) < 20 && p50.abs_diff(693) < 15 && p90.abs_diff(2303) < 50, "{mean} {p50} {p90}");
    let [_, p50, p90, most] = drawn("{ log_normal = { p50 = 1000, p90 = 4000, max = 9000 } }");
    assert!(p50.abs_diff(1000) < 25 && p90.abs_diff(4000) < 150 && most == 9000, "{p50} {p90} {most}");
    let [_, p50, p90, most] = drawn("{ quantiles = [1, 100, 10000] }");
    assert!(p50.abs_diff(100) < 200 && p90.abs_diff(8020) < 150 && most <= 10_000, "{p50} {p90} {most}");
    assert_eq!(drawn("200"), [200; 4]);
    assert_eq!(drawn("\"8k\""), [8000; 4]);
}

#[test]
fn no_draw_of_any_shape_leaves_its_bounds() {
    for shape in [
        "{ exponential = { mean = 16777216 } }",
        "{ log_normal = { p50 = 1, p90 = 16777216 } }",
        "{ log_normal = { p50 = 5, p90 = 5 } }",
        "{ uniform = [1, 16777216] }",
        "{ quantiles = [1, 1] }",
    ] {
        let lengths = read(&format!("tokens = {shape}")).expect(shape).tokens.expect("tokens");
        let mut rng = Rng::new(2, Stream::Lengths, 0);
        for _ in 0..2_000 {
            assert!((1..=lengths.max()).contains(&lengths.draw(&mut rng)), "{shape}");
        }
    }
}

/// The draws are part of every recorded run: these values hold on every platform.
#[test]
fn draws_are_pinned() {
    let mut rng = Rng::new(3, Stream::Lengths, 0);
    let mut four = |shape: &str| {
        let lengths = read(&format!("tokens = {shape}")).expect(shape).tokens.expect("tokens");
        [(); 4].map(|()| lengths.draw(&mut rng))
    };
    let shapes = [
        "{ uniform = [1, 1000000] }",
        "{ exponential = { mean = 100000 } }",
        "{ log_normal = { p50 = 10000, p90 = 400000 } }",
        "{ quantiles = [1, 10000, 1000000] }",
    ];
    let draws = shapes.map(|shape| format!("{shape} {:?}", four(shape)));
    insta::assert_snapshot!(draws.join("\n"), @r#"
    { uniform = [1, 1000000] } [662321, 582855, 892961, 197554]
    { exponential = { mean = 100000 } } [75895, 22882, 69139, 2736]
    { log_normal = { p50 = 10000, p90 = 400000 } } [253696, 5143, 4667, 503801]
    { quantiles = [1, 10000, 1000000] } [712537, 7185, 540140, 810602]
    "#);
}

#[test]
fn a_wrong_shape_is_explained() {
    let errors = [
        "tokens = 0",
        "tokens = -1",
        "tokens = \"many\"",
        "tokens = { uniform = [9, 3] }",
        "tokens = { normal = 5 }",
        "tokens = { exponential = { mean = 5, least = 3 } }",
        "tokens = { quantiles = [5] }",
        "tokens = { uniform = [1, 99999999] }",
        "tokens = [1, 2]",
        "pause = 3",
        "pause = { uniform = [\"2s\", \"1s\"] }",
    ]
    .map(|text| match read(text) {
        Ok(_) => format!("{text}: accepted"),
        Err(error) => format!("{text}: {}", error.message()),
    });
    insta::assert_snapshot!(errors.join("\n"), @r#"
    tokens = 0: 0 is not a length; expected 1 to 16777216 tokens
    tokens = -1: invalid value: integer `-1`, expected a length like 200, or one of { uniform = [1, 9] }, { exponential = { mean = 5 } }, { log_normal = { p50 = 5, p90 = 9 } }, { quantiles = [1, 5, 9] }
    tokens = "many": "many" does not start with a number; write one like "328k" or "1M"
    tokens = { uniform = [9, 3] }: the numbers of uniform = [smallest, largest] must be at least two, and rise
    tokens = { normal = 5 }: unknown variant `normal`, expected one of `uniform`, `exponential`, `log_normal`, `quantiles`
    tokens = { exponential = { mean = 5, least = 3 } }: unknown field `least`, expected `mean` or `max`
    tokens = { quantiles = [5] }: the numbers of quantiles = [smallest, ..., largest] must be at least two, and rise
    tokens = { uniform = [1, 99999999] }: 99999999 is not a length; expected 1 to 16777216 tokens
    tokens = [1, 2]: invalid type: sequence, expected a length like 200, or one of { uniform = [1, 9] }, { exponential = { mean = 5 } }, { log_normal = { p50 = 5, p90 = 9 } }, { quantiles = [1, 5, 9] }
    pause = 3: invalid value: integer `3`, expected a pause like "2s", { exponential = "2s" } or { uniform = ["1s", "3s"] }
    pause = { uniform = ["2s", "1s"] }: a pause is at most 13 days, and uniform = [shortest, longest]
    "#);
}

#[test]
fn a_pause_has_its_mean() {
    for shape in ["\"2s\"", "{ exponential = \"2s\" }", "{ uniform = [\"1s\", \"3s\"] }"] {
        let pause = read(&format!("pause = {shape}")).expect(shape).pause.expect("pause");
        let mut rng = Rng::new(4, Stream::Think, 0);
        let mean = (0..10_000).map(|_| pause.draw_ns(&mut rng)).sum::<u64>() / 10_000;
        assert!(mean.abs_diff(2_000_000_000) < 60_000_000, "{shape}: {mean}");
    }
}

fn read(text: &str) -> Result<Table, toml::de::Error> {
    toml::from_str(text)
}

/// Mean, median, 90 % quantile and largest of many draws.
fn drawn(shape: &str) -> [u32; 4] {
    let lengths = read(&format!("tokens = {shape}")).expect(shape).tokens.expect("tokens");
    let mut rng = Rng::new(1, Stream::Lengths, 0);
    let mut draws: Vec<u32> = (0..20_000).map(|_| lengths.draw(&mut rng)).collect();
    draws.sort_unstable();
    let mean = draws.iter().map(|draw| u64::from(*draw)).sum::<u64>() / 20_000;
    [mean as u32, draws[10_000], draws[18_000], draws[19_999]]
}
