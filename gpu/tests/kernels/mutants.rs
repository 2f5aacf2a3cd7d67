//! Mistakes put into the kernels: each must be found by the check of its kernel, or the checks are worth little.

use crate::check::Checked;
use crate::emu::{ANY, DECODE, LAYER, PREFILL, Program, SAMPLE, SEQK, SKINNY, Unit, mutant};
use crate::{attention, decode, gemm, layer, prefill, sampling};

/// Fails unless the check finds the mistake that exchanging `from` for `to` makes.
fn is_found(unit: Unit, from: &str, to: &str, check: impl Fn(&Program) -> Checked) {
    if let Some(program) = mutant(unit, from, to) {
        let found = check(&program).expect_err(&format!("nobody notices: {from} -> {to}"));
        println!("{from} -> {to}\n    {found}");
    }
}

#[test]
fn mistakes_in_decode_are_found() {
    let check = decode::is_right;
    is_found(DECODE, "have1 = t + 8 < u.end", "have1 = t + 8 <= u.end", check);
    is_found(DECODE, "cp_wait<STAGES - 1>()", "cp_wait<STAGES>()", check);
    is_found(DECODE, "sync_cta();  // the merge before this one has been read", "", check);
    is_found(DECODE, "k_chunk = matrix >> 1", "k_chunk = matrix & 1", check);
    is_found(DECODE, "parts.y - 1) == (u32)parts.y - 1", "parts.y) == (u32)parts.y - 1", check);
    is_found(DECODE, "if ((i & 31) == 0)", "if (i == 0)", decode::long_is_right);
}

#[test]
fn mistakes_in_prefill_are_found() {
    let check = prefill::is_right;
    is_found(PREFILL, "if (key > limit[h])", "if (key > limit[h] + 1)", check);
    is_found(PREFILL, "t.before + t.row0 / a.g + 1) / KEYS", "t.before + t.row0 / a.g + KEYS) / KEYS", check);
    is_found(PREFILL, "mbar_wait(base + FULL_V + (here & 1) * 8, (here >> 1) & 1);", "", check);
    is_found(PREFILL, "mbar_wait(base + EMPTY_K + stage * 8, parity);", "", check);
    is_found(PREFILL, "stage * 2 * HALF_KV + k * 2048", "stage * 2 * HALF_KV + k * 1024", check);
    is_found(PREFILL, "wgmma_wait<1>();", "", check);
    is_found(PREFILL, "clear_tail(t.blocks - 1, t.kv_len, final & 1);", "", check);
    is_found(PREFILL, "if (lane == 0) mbar_arrive(base + EMPTY_V + (final & 1) * 8);", "", check);
}

#[test]
fn mistakes_in_other_attention_are_found() {
    is_found(ANY, "sum = sum * f + block;", "sum = sum + block;", attention::is_right);
    is_found(ANY, "min_i(32, keys - t0)", "min_i(31, keys - t0)", attention::is_right);
}

#[test]
fn mistakes_in_gemms_are_found() {
    is_found(SEQK, "mbar_wait(base + s * 8, (k / STAGES) & 1);", "", gemm::seqk_is_right);
    is_found(SEQK, "((k / STAGES) & 1) ^ 1)", "(k / STAGES) & 1)", gemm::seqk_is_right);
    is_found(SEQK, "smem_desc(x + j * 32, 16, 1024)", "smem_desc(x + j * 64, 16, 1024)", gemm::seqk_is_right);
    is_found(SEQK, "cp_wait<MMA_STAGES - 2>()", "cp_wait<MMA_STAGES - 1>()", gemm::seqk_is_right);
    is_found(SKINNY, "load_x(0, step + 2 * U);", "load_x(0, step + U);", gemm::skinny_is_right);
}

#[test]
fn mistakes_in_layer_kernels_are_found() {
    is_found(LAYER, "sync_cta();\n    float total", "float total", layer::norm_is_right);
    is_found(LAYER, "keep + i * 8", "keep + i * 4", layer::norm_is_right);
    is_found(LAYER, "if (slot < 0) return;", "", layer::rope_is_right);
}

#[test]
fn mistakes_in_sampling_are_found() {
    is_found(SAMPLE, "b.score == a.score && b.token < a.token", "b.score == a.score", sampling::ties_are_right);
    is_found(SAMPLE, "n.base + token * 0x85ebca6bu", "n.base", sampling::draws_are_right);
    is_found(SAMPLE, "keep = (u32)fit + 1;", "keep = (u32)fit;", sampling::filters_are_right);
    is_found(SAMPLE, "if (keep < n) cut = bin", "if (keep + 1 < n) cut = bin", sampling::filters_are_right);
    is_found(SAMPLE, "c.cut[0] = t + 1;", "c.cut[0] = t;", sampling::logprobs_are_right);
}
