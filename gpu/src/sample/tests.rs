//! Choices against naive rules and known distributions, and what is refused.

use proptest::prelude::*;

use super::*;

fn tokens(ids: impl IntoIterator<Item = u32>) -> Vec<Token> {
    ids.into_iter().map(Token).collect()
}

/// The answer's tokens as counts, and the choice behind it.
fn choose(sampling: &Sampling, prompt: &[Token], answer: &[Token], logits: &[f32]) -> (u32, Option<Logprobs>) {
    let mut counts = BTreeMap::new();
    for token in answer {
        *counts.entry(*token).or_default() += 1;
    }
    let output = answer.len() as u32;
    let context = Context { prompt, counts: &counts, output, position: prompt.len() as u32 + output };
    let (token, logprobs) = sample(sampling, context, &mut logits.to_vec()).expect("sound logits");
    (token.0, logprobs)
}

/// How often each token is drawn at many positions.
fn histogram(sampling: &Sampling, logits: &[f32], draws: u32) -> Vec<u32> {
    let mut histogram = vec![0; logits.len()];
    let counts = BTreeMap::new();
    for position in 0..draws {
        let context = Context { prompt: &[], counts: &counts, output: 0, position };
        let (token, _) = sample(sampling, context, &mut logits.to_vec()).expect("sound logits");
        histogram[token.0 as usize] += 1;
    }
    histogram
}

#[test]
fn greedy_takes_the_first_of_the_largest() {
    let greedy = Sampling::greedy();
    assert_eq!(choose(&greedy, &[], &[], &[0.0, 3.0, -1.0, 3.0]).0, 1);
    assert_eq!(choose(&Sampling { top_k: 1, ..Sampling::default() }, &[], &[], &[0.0, 3.0, -1.0, 3.0]).0, 1);
    assert_eq!(choose(&greedy, &[], &[], &[-5.0]).0, 0);
}

#[test]
fn draws_follow_the_softmax_at_their_temperature() {
    let logits = [0.5_f32, 2.0, -1.0, 1.0, 0.0];
    for temperature in [0.5_f32, 1.0, 2.0] {
        let found = histogram(&Sampling { temperature, seed: 11, ..Sampling::default() }, &logits, 4000);
        let masses: Vec<f64> = logits.iter().map(|logit| f64::from(logit / temperature).exp()).collect();
        let total: f64 = masses.iter().sum();
        let chi: f64 = masses
            .iter()
            .zip(&found)
            .map(|(mass, found)| {
                let want = mass / total * 4000.0;
                (f64::from(*found) - want).powi(2) / want
            })
            .sum();
        // 4 degrees of freedom: one in 10 000 is above this.
        assert!(chi < 23.5, "temperature {temperature}: {chi} {found:?}");
    }
}

#[test]
fn seed_and_position_decide_and_nothing_else() {
    let logits: Vec<f32> = (0..50).map(|index| (index % 7) as f32 * 0.3).collect();
    let at = |seed: u64, answer: u32| {
        let sampling = Sampling { seed, ..Sampling::default() };
        choose(&sampling, &tokens(0..4), &tokens(0..answer), &logits).0
    };
    let path = |seed: u64| (0..40).map(|answer| at(seed, answer)).collect::<Vec<_>>();
    assert_eq!(path(1), path(1));
    assert_ne!(path(1), path(2));
    assert!(path(1).windows(2).any(|pair| pair[0] != pair[1]), "positions differ");
}

/// SGLang's rule, written down naively: sort, cut by count, by mass before, by the largest.
fn allowed(logits: &[f32], top_k: i64, top_p: f32, min_p: f32) -> Vec<usize> {
    let largest = logits.iter().copied().fold(f32::MIN, f32::max);
    let masses: Vec<f32> = logits.iter().map(|logit| exp(logit - largest)).collect();
    let total: f64 = masses.iter().map(|mass| f64::from(*mass)).sum();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| masses[*b].total_cmp(&masses[*a]).then(a.cmp(b)));
    let mut before = 0.0;
    let mut kept = Vec::new();
    for (rank, id) in order.into_iter().enumerate() {
        let mass = masses[id];
        if (top_k == -1 || (rank as i64) < top_k) && before <= f64::from(top_p) * total && mass >= min_p {
            kept.push(id);
        }
        before += f64::from(mass);
    }
    kept.sort_unstable();
    kept
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn only_allowed_tokens_are_drawn_and_all_of_them(
        levels in prop::collection::vec(0_i32..12, 2..14),
        top_k in prop_oneof![Just(-1_i64), 1_i64..10],
        top_p in prop_oneof![Just(1.0_f32), 0.05_f32..1.0],
        min_p in prop_oneof![Just(0.0_f32), 0.0_f32..0.6],
    ) {
        let logits: Vec<f32> = levels.iter().map(|level| *level as f32 * 0.2).collect();
        let sampling = Sampling { top_k, top_p, min_p, seed: 3, ..Sampling::default() };
        let found = histogram(&sampling, &logits, 1500);
        let drawn: Vec<usize> = (0..logits.len()).filter(|id| found[*id] > 0).collect();
        // The least probable token that may come has more than 1 in 130: missing it 1500 times is 1 in 100 000.
        prop_assert_eq!(drawn, allowed(&logits, top_k, top_p, min_p));
    }

    #[test]
    fn blocks_of_a_large_vocabulary_are_cut_like_a_sorted_one(
        seed in 0_u32..1000, limit in 1_usize..900, part in 0.01_f64..1.0,
    ) {
        let masses: Vec<(f32, usize)> =
            (0..900).map(|id: usize| (((id as u32).wrapping_mul(seed * 2 + 1) % 97) as f32 / 97.0, id)).collect();
        let wanted = part * masses.iter().map(|(mass, _)| f64::from(*mass)).sum::<f64>();
        let mut sorted = masses.clone();
        sorted.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let mut sum = 0.0;
        let mut want = Vec::new();
        for (mass, id) in sorted.into_iter().take(limit) {
            if sum > wanted {
                break;
            }
            sum += f64::from(mass);
            want.push((mass, id));
        }
        let mut found = masses;
        keep_top(&mut found, limit, wanted);
        prop_assert_eq!(found, want);
    }
}

#[test]
fn penalties_and_bias_change_logits_as_they_say() {
    let logits = [1.0, 0.9, 0.8, -0.5];
    let greedy = Sampling::greedy();
    let (prompt, answer) = (tokens([0]), tokens([1, 1, 2]));
    let choice = |sampling: Sampling| choose(&sampling, &prompt, &answer, &logits).0;
    assert_eq!(choice(greedy.clone()), 0);
    // Prompt and answer are divided: 0.5, 0.45, 0.4, and -0.5 is left alone.
    assert_eq!(choice(Sampling { repetition_penalty: 2.0, ..greedy.clone() }), 0);
    let untouched = Sampling { logit_bias: [(3, 1.1)].into(), ..greedy.clone() };
    assert_eq!(choice(Sampling { repetition_penalty: 2.0, ..untouched }), 3);
    // Only the answer: 0.9 - 2 * 0.1 is below 0.8 - 0.1, and 1.0 is not penalised.
    let first = [0.0, 0.9, 0.8, -0.5];
    let frequency = Sampling { frequency_penalty: 0.2, ..greedy.clone() };
    assert_eq!(choose(&frequency, &prompt, &answer, &first).0, 2);
    let presence = Sampling { presence_penalty: 0.2, ..greedy.clone() };
    assert_eq!(choose(&presence, &prompt, &answer, &first).0, 1);
    let strong = Sampling { presence_penalty: 2.0, ..greedy.clone() };
    assert_eq!(choose(&strong, &prompt, &answer, &first).0, 0);
    let biased = Sampling { logit_bias: [(3, 5.0), (0, -100.0)].into(), ..greedy };
    assert_eq!(choice(biased), 3);
    // A negative logit moves away from zero.
    let negative = Sampling { repetition_penalty: 2.0, ..Sampling::greedy() };
    assert_eq!(choose(&negative, &prompt, &[], &[-0.5, -0.8, -9.0, -9.0]).0, 1);
}

#[test]
fn stop_tokens_wait_until_the_answer_is_long_enough() {
    let sampling = Sampling { min_tokens: 2, stop: tokens([1, 3]), ..Sampling::greedy() };
    let logits = [0.0, 5.0, 1.0, 4.0];
    let path: Vec<u32> =
        (0..4).map(|answer| choose(&sampling, &tokens([0]), &tokens(vec![2; answer]), &logits).0).collect();
    assert_eq!(path, [2, 2, 1, 1]);
    let drawn = Sampling { temperature: 1.0, ..sampling };
    let found = histogram(&drawn, &logits, 200);
    assert_eq!((found[1], found[3]), (0, 0));
}

#[test]
fn logprobs_are_those_of_the_model_whatever_is_chosen() {
    let logits = [1.0_f32, 3.0, 2.0, 3.0];
    let total: f32 = logits.iter().map(|logit| logit.exp()).sum::<f32>().ln();
    let sampling = Sampling { logprobs: Some(3), logit_bias: [(0, 50.0)].into(), ..Sampling::greedy() };
    let (token, logprobs) = choose(&sampling, &[], &[], &logits);
    let logprobs = logprobs.expect("asked for");
    assert_eq!(token, 0);
    assert!((logprobs.chosen - (1.0 - total)).abs() < 1e-6);
    let ids: Vec<u32> = logprobs.top.iter().map(|(token, _)| token.0).collect();
    assert_eq!(ids, [1, 3, 2]);
    assert!(logprobs.top.iter().all(|(token, logprob)| (logprob - (logits[token.0 as usize] - total)).abs() < 1e-6));
    assert_eq!(
        choose(&Sampling { logprobs: Some(0), ..sampling.clone() }, &[], &[], &logits).1.map(|all| all.top),
        Some(vec![])
    );
    assert_eq!(
        choose(&Sampling { logprobs: Some(99), ..sampling.clone() }, &[], &[], &logits).1.map(|all| all.top.len()),
        Some(4)
    );
    assert_eq!(choose(&Sampling { logprobs: None, ..sampling }, &[], &[], &logits).1, None);
}

#[test]
fn logits_that_are_no_numbers_are_refused() {
    let counts = BTreeMap::new();
    let context = Context { prompt: &[], counts: &counts, output: 0, position: 0 };
    for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert_eq!(sample(&Sampling::greedy(), context, &mut [0.0, odd, 1.0]), None);
    }
}

#[test]
fn what_is_refused_is_said_in_sglangs_words() {
    let base = Sampling::default();
    let cases = [
        (Sampling { temperature: -1.0, ..base.clone() }, "temperature must be a non-negative finite number, got -1."),
        (
            Sampling { temperature: f32::NAN, ..base.clone() },
            "temperature must be a non-negative finite number, got NaN.",
        ),
        (Sampling { top_p: 0.0, ..base.clone() }, "top_p must be in (0, 1], got 0."),
        (Sampling { top_p: 1.5, ..base.clone() }, "top_p must be in (0, 1], got 1.5."),
        (Sampling { top_k: 0, ..base.clone() }, "top_k must be -1 (disable) or at least 1, got 0."),
        (Sampling { top_k: -2, ..base.clone() }, "top_k must be -1 (disable) or at least 1, got -2."),
        (Sampling { min_p: -0.1, ..base.clone() }, "min_p must be in [0, 1], got -0.1."),
        (Sampling { frequency_penalty: 2.5, ..base.clone() }, "frequency_penalty must be in [-2, 2], got 2.5."),
        (Sampling { presence_penalty: f32::NAN, ..base.clone() }, "presence_penalty must be in [-2, 2], got NaN."),
        (
            Sampling { repetition_penalty: 0.0, ..base.clone() },
            "repetition_penalty must be in (0, 2] (1.0 = no penalty), got 0.",
        ),
        (Sampling { logit_bias: [(100, 1.0)].into(), ..base.clone() }, "logit_bias must has keys in [0, 99], got 100."),
        (
            Sampling { logit_bias: [(1, f32::INFINITY)].into(), ..base.clone() },
            "logit_bias must have finite values, got inf for 1.",
        ),
        (Sampling { stop: tokens([100]), ..base.clone() }, "stop_token_ids must be in [0, 99], got 100."),
    ];
    for (sampling, want) in cases {
        assert_eq!(sampling.check(100).expect_err("refused").to_string(), want);
    }
    assert_eq!(base.check(100), Ok(()));
    assert_eq!(Sampling::greedy().check(1), Ok(()));
}

#[test]
fn parameters_survive_json_and_default_where_nothing_is_said() {
    let some = Sampling { top_k: 5, seed: 7, logit_bias: [(3, -1.5)].into(), logprobs: Some(2), ..Sampling::greedy() };
    let json = serde_json::to_string(&some).expect("plain values");
    assert_eq!(serde_json::from_str::<Sampling>(&json).expect("the same values"), some);
    assert_eq!(serde_json::from_str::<Sampling>("{}").expect("defaults"), Sampling::default());
    assert!(serde_json::from_str::<Sampling>(r#"{"temprature": 1}"#).is_err(), "a misspelt field is refused");
}
