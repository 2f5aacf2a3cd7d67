// The small kernels of a decoder layer: embedding, norms, rotation with the write into KV pages, the gated unit.
// Each is bound by memory; they exist to touch every byte once.
#include "prims.cuh"

// out[m] = table[token], token = tok[m], or last[slot[m]] where tok[m] < 0: what the step before chose, which the host
// need not have seen. Rows with neither (padding) become zeros.
// grid: rows. block: 256. H a multiple of 8.
KERNEL(256, 4) embed(const int* tok, const int* last, const int* slot, const u16* table, u16* out, int H) {
    const int row = blockIdx.x;
    pdl_wait();
    pdl_launch();
    int token = tok[row];
    if (token < 0 && slot[row] >= 0) token = last[slot[row]];
    uint4* to = (uint4*)(out + (long long)row * H);
    const uint4* from = (const uint4*)(table + (long long)token * H);
    for (int i = threadIdx.x; i < H / 8; i += 256) to[i] = token < 0 ? make_uint4(0, 0, 0, 0) : ld_weights16(from + i);
}

// The sum over the CTA, in an order that only its size decides. `sums` has a place for each warp.
DEV float cta_sum(float v, float* sums) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    UNROLL
    for (int d = 16; d; d >>= 1) v += shfl_xor(v, d);
    if (lane == 0) sums[warp] = v;
    sync_cta();
    float total = 0.f;
    for (int i = 0; i < warps; i++) total += sums[i];
    return total;
}

#define NORM_VECTORS 4  // of 8 elements, a thread

// y = bf16(s * rsqrt(mean(s^2) + eps)) * w with s = from + x (from alone where x is null), rounded to bf16 as a layer's
// residual is. `keep` gets s; it may be `from`, or null. The rounding before the weight is the reference's.
DEV void norm_row(const u16* from, u16* keep, const u16* x, const u16* w, u16* y, int H, float eps) {
    DYN_SMEM(smem);
    const int vectors = H >> 3;
    if (vectors > NORM_VECTORS * (int)blockDim.x) trap();
    uint4 weight[NORM_VECTORS];
    // Weights were there before the kernel in front: fetched while that one ends.
    UNROLL
    for (int k = 0; k < NORM_VECTORS; k++) {
        int i = threadIdx.x + k * blockDim.x;
        if (i < vectors) weight[k] = ld_weights16(w + i * 8);
    }
    pdl_wait();
    pdl_launch();
    float v[NORM_VECTORS][8];
    float squares = 0.f;
    UNROLL
    for (int k = 0; k < NORM_VECTORS; k++) {
        int i = threadIdx.x + k * blockDim.x;
        if (i >= vectors) continue;
        uint4 a = *(const uint4*)(from + i * 8);
        u32 s[4] = {a.x, a.y, a.z, a.w};
        if (x) {
            uint4 b = *(const uint4*)(x + i * 8);
            u32 t[4] = {b.x, b.y, b.z, b.w};
            UNROLL
            for (int j = 0; j < 4; j++) s[j] = pack_bf16(bf_lo(s[j]) + bf_lo(t[j]), bf_hi(s[j]) + bf_hi(t[j]));
            if (keep) *(uint4*)(keep + i * 8) = make_uint4(s[0], s[1], s[2], s[3]);
        }
        UNROLL
        for (int j = 0; j < 4; j++) {
            v[k][2 * j] = bf_lo(s[j]);
            v[k][2 * j + 1] = bf_hi(s[j]);
        }
        UNROLL
        for (int j = 0; j < 8; j++) squares += v[k][j] * v[k][j];
    }
    const float scale = rsq(cta_sum(squares, (float*)smem) / (float)H + eps);
    UNROLL
    for (int k = 0; k < NORM_VECTORS; k++) {
        int i = threadIdx.x + k * blockDim.x;
        if (i >= vectors) continue;
        u32 c[4] = {weight[k].x, weight[k].y, weight[k].z, weight[k].w}, o[4];
        UNROLL
        for (int j = 0; j < 4; j++) {
            float lo = round_bf16(v[k][2 * j] * scale) * bf_lo(c[j]);
            float hi = round_bf16(v[k][2 * j + 1] * scale) * bf_hi(c[j]);
            o[j] = pack_bf16(lo, hi);
        }
        *(uint4*)(y + i * 8) = make_uint4(o[0], o[1], o[2], o[3]);
    }
}

// residual += x (unless x is null: the first layer); y = norm(residual) * w.
// grid: rows. block: a multiple of 32 up to 512, at least H / 32, and a function of the model alone: the order of the
// sum follows from it. Dynamic shared memory: 64 bytes. H a multiple of 8 up to 16384.
KERNEL(512, 2) rmsnorm_residual(u16* residual, const u16* x, const u16* w, u16* y, int H, float eps) {
    const long long at = (long long)blockIdx.x * H;
    norm_row(residual + at, residual + at, x ? x + at : x, w, y + at, H, eps);
}

struct RopeArgs {
    const u16* qkv;
    const u16* bias;
    const int* pos;
    const long long* kvslot;
    const float2* cossin;
    const u16* qw;
    const u16* kw;
    u16* qout;
    u16* kp;
    u16* vp;
    long long page_stride, head_stride, tok_stride;
    int page_shift, hq, hkv, D, M;
    float eps;
};

#define ROPE_WARPS 8

// One warp a head of a token; lane l has the words (two dims each) l, l + 32, .. of both halves of the head. D_ is 0
// where the head's size is not one of the common ones.
template <int D_> DEV void rope_head(const RopeArgs& a) {
    const int D = D_ ? D_ : a.D, words = D / 4;  // words of half a head
    const int WORDS_A_LANE = D_ ? (D_ / 4 + 31) / 32 : 2;
    const int lane = threadIdx.x & 31, heads = a.hq + 2 * a.hkv;
    const long long unit = (long long)blockIdx.x * ROPE_WARPS + (threadIdx.x >> 5);
    if (unit >= (long long)a.M * heads) {
        pdl_wait();
        return;
    }
    const int m = (int)(unit / heads), h = (int)(unit - (long long)m * heads);
    const bool is_q = h < a.hq, is_v = h >= a.hq + a.hkv;
    const u32* from = (const u32*)(a.qkv + unit * D);
    const u32* bias = a.bias ? (const u32*)(a.bias + (long long)h * D) : 0;
    const u16* norm = is_v ? 0 : is_q ? a.qw : a.kw;

    // Where the token is and goes is older than the kernel in front: these loads, one behind the other, overlap it.
    const long long slot = is_q ? 0 : a.kvslot[m];
    const float2* turn = a.cossin + (long long)a.pos[m] * (D / 2);
    float2 cs[2][2];
    UNROLL
    for (int k = 0; k < WORDS_A_LANE; k++) {
        const int w = lane + 32 * k;
        cs[k][0] = cs[k][1] = make_float2(1.f, 0.f);
        if (!is_v && w < words) cs[k][0] = turn[2 * w], cs[k][1] = turn[2 * w + 1];
    }
    pdl_wait();
    pdl_launch();

    float lo[2][2], hi[2][2];  // [word][element]: dims 2w, 2w + 1 and those half a head on
    float squares = 0.f;
    UNROLL
    for (int k = 0; k < WORDS_A_LANE; k++) {
        const int w = lane + 32 * k;
        const bool have = w < words;
        u32 x = have ? from[w] : 0u, y = have ? from[w + words] : 0u;
        if (bias && have) {
            u32 p = bias[w], q = bias[w + words];
            x = pack_bf16(bf_lo(x) + bf_lo(p), bf_hi(x) + bf_hi(p));
            y = pack_bf16(bf_lo(y) + bf_lo(q), bf_hi(y) + bf_hi(q));
        }
        lo[k][0] = bf_lo(x), lo[k][1] = bf_hi(x), hi[k][0] = bf_lo(y), hi[k][1] = bf_hi(y);
        squares += lo[k][0] * lo[k][0] + lo[k][1] * lo[k][1] + hi[k][0] * hi[k][0] + hi[k][1] * hi[k][1];
    }
    if (norm) {
        UNROLL
        for (int d = 16; d; d >>= 1) squares += shfl_xor(squares, d);
        const float scale = rsq(squares / (float)D + a.eps);
        UNROLL
        for (int k = 0; k < WORDS_A_LANE; k++) {
            const int w = lane + 32 * k;
            if (w >= words) continue;
            u32 p = ((const u32*)norm)[w], q = ((const u32*)norm)[w + words];
            lo[k][0] = round_bf16(round_bf16(lo[k][0] * scale) * bf_lo(p));
            lo[k][1] = round_bf16(round_bf16(lo[k][1] * scale) * bf_hi(p));
            hi[k][0] = round_bf16(round_bf16(hi[k][0] * scale) * bf_lo(q));
            hi[k][1] = round_bf16(round_bf16(hi[k][1] * scale) * bf_hi(q));
        }
    }
    u32* to;
    if (is_q) {
        to = (u32*)(a.qout + ((long long)m * a.hq + h) * D);
    } else {
        if (slot < 0) return;
        const int head = is_v ? h - a.hq - a.hkv : h - a.hq;
        const long long token = slot & ((1 << a.page_shift) - 1);
        to = (u32*)((is_v ? a.vp : a.kp) + (slot >> a.page_shift) * a.page_stride + head * a.head_stride +
                    token * a.tok_stride);
    }
    UNROLL
    for (int k = 0; k < WORDS_A_LANE; k++) {
        const int w = lane + 32 * k;
        if (w >= words) continue;
        const float2 c0 = cs[k][0], c1 = cs[k][1];
        to[w] = pack_bf16(lo[k][0] * c0.x - hi[k][0] * c0.y, lo[k][1] * c1.x - hi[k][1] * c1.y);
        to[w + words] = pack_bf16(hi[k][0] * c0.x + lo[k][0] * c0.y, hi[k][1] * c1.x + lo[k][1] * c1.y);
    }
}

// Rows of qkv are [hq | hkv (K) | hkv (V)] heads of D. Adds the bias (or none, if null), norms q and k by head with the
// weights qw and kw[D] (or not, if null), rotates them (dim d with d + D/2, by cossin[pos][d]), and writes q to
// qout[M][hq][D], k and v to the token's place: kvslot = page << page_shift | offset, negative where none is written.
// kp and vp are this layer's; strides in elements. D a multiple of 8 up to 256; positions are not negative. With
// programmatic launch, the kernel directly in front may write qkv; pos and kvslot must be older than that.
// grid: ceil(M * (hq + 2 hkv) / 8). block: 256.
KERNEL(256, 4) rope_kv_write(const u16* qkv, const u16* bias, const int* pos, const long long* kvslot,
                             const float2* cossin, const u16* qw, const u16* kw, u16* qout, u16* kp, u16* vp,
                             long long page_stride, long long head_stride, long long tok_stride, int page_shift,
                             int hq, int hkv, int D, int M, float eps) {
    RopeArgs a = {qkv,         bias,        pos,        kvslot,     cossin, qw,  kw, qout, kp, vp,
                  page_stride, head_stride, tok_stride, page_shift, hq,     hkv, D,  M,    eps};
    if (D == 128) {
        rope_head<128>(a);
    } else if (D == 64) {
        rope_head<64>(a);
    } else {
        rope_head<0>(a);
    }
}

// bf16(silu(gate)) * up of two packed elements.
DEV u32 silu_mul2(u32 gate, u32 up) {
    const float g0 = bf_lo(gate), g1 = bf_hi(gate);
    return pack_bf16(round_bf16(g0 / (1.0f + ex2(-LOG2_E * g0))) * bf_lo(up),
                     round_bf16(g1 / (1.0f + ex2(-LOG2_E * g1))) * bf_hi(up));
}

// y[m][i] = silu(gu[m][i]) * gu[m][I + i]. n8 = M * I / 8, I a multiple of 8. grid: ceil(n8 / 256). block: 256.
KERNEL(256, 4) silu_mul(const u16* gu, u16* y, long long n8, int I) {
    const long long i = (long long)blockIdx.x * 256 + threadIdx.x;
    pdl_wait();
    pdl_launch();
    if (i >= n8) return;
    const int vectors = I >> 3;
    const long long m = i / vectors;
    const int at = (int)(i - m * vectors) * 8;
    const uint4 g = ld_once16(gu + m * 2 * I + at), u = ld_once16(gu + m * 2 * I + I + at);
    *(uint4*)(y + m * I + at) =
        make_uint4(silu_mul2(g.x, u.x), silu_mul2(g.y, u.y), silu_mul2(g.z, u.z), silu_mul2(g.w, u.w));
}
