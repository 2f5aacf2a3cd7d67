//! Every kernel against its formula in f64, and every instruction set of this machine against the others.

use super::lanes::sum_lanes;
use super::*;

/// Numbers without structure, in (-1, 1).
fn numbers(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn bf16_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect()
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// What the bytes stand for.
fn widened(values: &[f32], bf16: bool) -> Vec<f64> {
    let round = |value: f32| if bf16 { half::bf16::from_f32(value).to_f32() } else { value };
    values.iter().map(|value| f64::from(round(*value))).collect()
}

#[test]
fn tiles_agree_with_exact_sums_and_with_each_other() {
    for (rows, k, bf16) in [(1, 1, false), (12, 77, true), (5, 200, false), (7, 64, true), (3, 3, true)] {
        let (stride, weights) = (k + 3, numbers(1, k * PANEL));
        let x = numbers(2, rows * stride);
        let panel = if bf16 { bf16_bytes(&weights) } else { f32_bytes(&weights) };
        let exact = widened(&weights, bf16);
        let mut results = Vec::new();
        for isa in Isa::available() {
            let mut out = [[0.0; PANEL]; TILE_ROWS];
            isa.tile(Rows { data: &x, rows, stride }, k, &panel, bf16, &mut out);
            for row in 0..rows {
                for column in 0..PANEL {
                    let terms = (0..k).map(|index| f64::from(x[row * stride + index]) * exact[index * PANEL + column]);
                    let want: f64 = terms.sum();
                    assert!((f64::from(out[row][column]) - want).abs() < 1e-4, "{isa:?} {rows} {k} {row} {column}");
                }
            }
            results.push(out.map(|row| row.map(f32::to_bits)));
        }
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "rows {rows} k {k}");
    }
}

#[test]
fn scores_and_mixes_agree_with_exact_sums_and_with_each_other() {
    for (rows, dim, count, bf16) in [(1, 16, 1, false), (6, 80, 23, true), (4, 128, 9, false), (9, 64, 4, true)] {
        let vectors: Vec<Vec<f32>> = (0..count).map(|token| numbers(token as u32 + 10, dim + 4)).collect();
        let bytes: Vec<Vec<u8>> =
            vectors.iter().map(|vector| if bf16 { bf16_bytes(vector) } else { f32_bytes(vector) }).collect();
        let tokens: Vec<*const u8> = bytes.iter().map(|bytes| bytes.as_ptr()).collect();
        // The vector begins behind four elements that belong to something else.
        let stored = Vectors { tokens: &tokens, offset: if bf16 { 8 } else { 16 }, bf16, dim };
        let exact: Vec<Vec<f64>> = vectors.iter().map(|vector| widened(&vector[4..], bf16)).collect();
        let (queries, weights) = (numbers(3, rows * dim), numbers(4, rows * count));
        let mut results = Vec::new();
        for isa in Isa::available() {
            let (mut scores, mut sums) = (vec![0.0; rows * count], vec![0.0; rows * dim]);
            // SAFETY: `bytes` outlives the calls and nobody writes it.
            unsafe {
                isa.scores(&queries, stored, &mut scores);
                isa.mix(&weights, stored, &mut sums);
            }
            for row in 0..rows {
                for token in 0..count {
                    let query = queries[row * dim..][..dim].iter().map(|value| f64::from(*value));
                    let want: f64 = query.zip(&exact[token]).map(|(query, key)| query * key).sum();
                    assert!((f64::from(scores[row * count + token]) - want).abs() < 1e-4, "{isa:?} score");
                }
                for element in 0..dim {
                    let weight = |token: usize| f64::from(weights[row * count + token]);
                    let want: f64 = (0..count).map(|token| weight(token) * exact[token][element]).sum();
                    assert!((f64::from(sums[row * dim + element]) - want).abs() < 1e-4, "{isa:?} sum");
                }
            }
            results.push(scores.into_iter().chain(sums).map(f32::to_bits).collect::<Vec<_>>());
        }
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "rows {rows} dim {dim}");
    }
}

#[test]
fn the_exponential_is_exact_to_two_units_and_keeps_nan() {
    for step in 0..40_000 {
        let x = -87.0 + step as f32 * (175.0 / 40_000.0);
        let want = f64::from(x).exp();
        let error = (f64::from(math::exp(x)) - want).abs() / want;
        assert!(error < 2.0 * f64::from(f32::EPSILON), "exp({x}) is off by {error:e}");
    }
    assert_eq!(math::exp(0.0), 1.0);
    assert!(math::exp(f32::NAN).is_nan());
    assert_eq!(math::exp(-1e30), math::exp(-87.0), "clamped");
    assert!(math::exp(f32::NEG_INFINITY) < 1e-37);
    assert_eq!(math::exp(1e30), math::exp(88.0));
}

#[test]
fn a_softmax_sees_only_its_part_of_a_row_and_its_end_changes_no_bit() {
    let scores = numbers(9, 70);
    for isa in Isa::available() {
        let mut long = scores.clone();
        let total = isa.softmax(&mut long, 5, 50);
        let mut short = scores[..51].to_vec();
        assert_eq!(total.to_bits(), isa.softmax(&mut short, 5, 50).to_bits());
        assert_eq!(long[..51], short);
        assert!(long[..5].iter().chain(&long[50..]).all(|weight| *weight == 0.0));
        let exact: f64 = scores[5..50].iter().map(|score| f64::from(*score).exp()).sum();
        for index in 5..50 {
            let want = f64::from(scores[index]).exp() / exact;
            assert!((f64::from(long[index] / total) - want).abs() < 1e-6);
        }
        let mut broken = scores.clone();
        broken[20] = f32::NAN;
        assert!(isa.softmax(&mut broken, 0, 70).is_nan(), "a broken score is not hidden");
    }
}

#[test]
fn norms_and_gates_agree_with_their_formulas_on_all_instruction_sets() {
    let (x, weight) = (numbers(5, 75), numbers(6, 75));
    let mut results = Vec::new();
    for isa in Isa::available() {
        let mut normed = vec![0.0; 75];
        isa.rms_norm(&x, &weight, 1e-5, &mut normed);
        let mean = x.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>() / 75.0;
        let mut gated = vec![0.0; 37];
        isa.silu(&x[..74], &mut gated);
        for index in 0..75 {
            let want = f64::from(x[index]) / (mean + 1e-5).sqrt() * f64::from(weight[index]);
            assert!((f64::from(normed[index]) - want).abs() < 1e-5);
        }
        for index in 0..37 {
            let (gate, up) = (f64::from(x[index]), f64::from(x[37 + index]));
            assert!((f64::from(gated[index]) - gate / (1.0 + (-gate).exp()) * up).abs() < 1e-6);
        }
        results.push(normed.into_iter().chain(gated).map(f32::to_bits).collect::<Vec<_>>());
    }
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn lanes_are_summed_by_halves() {
    // Chosen so that any other order gives another result.
    let mut lanes = [0.0; 16];
    (lanes[0], lanes[8], lanes[1]) = (1e8, -1e8, 1.0);
    assert_eq!(sum_lanes(&lanes), 1.0);
    (lanes[8], lanes[9]) = (1.0, -1e8);
    assert_eq!(sum_lanes(&lanes), 0.0);
}
