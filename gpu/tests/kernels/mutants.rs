//! Mistakes put into the kernels: each must be found by the check of its kernel, or the checks are worth little.

use crate::check::Checked;
use crate::emu::{ANY, DECODE, LAYER, PREFILL, Program, SAMPLE, SEQK, UTIL, Unit, mutant};
use crate::{attention, decode, gemm, layer, prefill, sampling, util};

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
    is_found(DECODE, "atomic_inc(counter, u.pieces - 1)", "atomic_inc(counter, u.pieces)", check);
    is_found(DECODE, "store(leaf, leaf_at<D>(a, leaves + i, warp));", ";", check);
    is_found(DECODE, "u.leaf + u.first / BLOCK", "u.leaf", check);
    is_found(DECODE, "u.leaf + block, warp", "u.leaf + u.blocks - 1 - block, warp", decode::order_is_right);
    is_found(DECODE, "if (i % LEAF_TILES ==", "if (u.pieces > 1 && i % LEAF_TILES ==", decode::order_is_right);
    is_found(DECODE, "if ((i & 31) == 0 && i > 0) fetch_pages(v, i);", "", decode::long_is_right);
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
    is_found(ANY, "keys - a.window : 0", "keys - a.window + 1 : 0", attention::windows_are_right);
    is_found(ANY, "a.window > 0 && keys > a.window", "keys > a.window", attention::is_right);
    is_found(ANY, "min_i(32, keys - t0)", "min_i(31, keys - t0)", attention::is_right);
}

#[test]
fn mistakes_in_gemms_are_found() {
    let check = gemm::is_right;
    is_found(SEQK, "mbar_wait(base + s * 8, phase);", "", check);
    is_found(SEQK, "mbar_wait(base + EMPTY + s * 8, phase);", "", check);
    is_found(SEQK, "wgmma_wait<1>();  // the stage before", "// the stage before", check);
    is_found(SEQK, "(j & 3) * 32, xj", "(j & 3) * 64, xj", check);
    is_found(SEQK, "if (++k == steps) k = 0, tile += gridDim.x;", "if (++k == steps) k = 0, tile++;", check);
    is_found(SEQK, "early / steps * gridDim.x", "early / steps", check);
    is_found(SEQK, "|| out >= outputs", "", check);
    is_found(SEQK, "round_bf16(d[n * 4 + i]) +", "d[n * 4 + i] +", check);
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
    is_found(SAMPLE, "c.cut[0] = t + 1;", "c.cut[0] = t;", sampling::filters_are_right);
}

#[test]
fn mistakes_in_what_a_start_needs_are_found() {
    is_found(UTIL, "(u32)(block >> 32), 0, 0}", "(u32)(block >> 32), 1, 0}", util::draws_are_right);
    is_found(UTIL, "rotate(b ^ c, 7)", "rotate(b ^ c, 8)", util::draws_are_right);
    is_found(UTIL, "if (block * 16 + i < n) ", "", util::draws_are_right);
    is_found(UTIL, "i += (u64)gridDim.x * 256", "i += 256", util::counts_are_right);
    is_found(UTIL, "if (i < count)", "if (i <= count)", util::tables_are_right);
    is_found(UTIL, "row < 0 ? make_uint4", "row < -1 ? make_uint4", util::rows_are_right);
    is_found(UTIL, "dst[i * 512 + tid] = v[i]", "dst[i * 512] = v[i]", util::pieces_are_right);
    is_found(UTIL, "offsets[2 * piece + 1]", "offsets[2 * piece]", util::pieces_are_right);
    is_found(UTIL, "job += gridDim.x", "job += gridDim.x + 1", util::pieces_are_right);
}
