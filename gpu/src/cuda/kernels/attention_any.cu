// Attention where the fast kernels do not apply: any head size that is a multiple of 8 up to 256, any power of two as
// page size, any number of query heads a KV head; prompts and decode alike. Plain f32 arithmetic, one warp a (row,
// query head), keys from position 0 in blocks of 32: a row's result depends on its own keys alone.
#include "prims.cuh"

#define ANY_WARPS 4
#define ANY_WORDS 4  // of two dims, a lane: 256 dims

struct AnyArgs {
    const u16* q;
    const u16* kp;
    const u16* vp;
    const int* table;
    const int2* rows;
    u16* out;
    long long page_stride, head_stride, tok_stride;
    int max_pages, page_shift, hq, hkv, D, M, window;
    float scale_log2;
};

DEV float dot8(const float* q, uint4 k) {
    return q[0] * bf_lo(k.x) + q[1] * bf_hi(k.x) + q[2] * bf_lo(k.y) + q[3] * bf_hi(k.y) + q[4] * bf_lo(k.z) +
           q[5] * bf_hi(k.z) + q[6] * bf_lo(k.w) + q[7] * bf_hi(k.w);
}

DEV void any_head(const AnyArgs& a, float* q) {
    const int lane = threadIdx.x & 31, D = a.D;
    const long long unit = (long long)blockIdx.x * ANY_WARPS + (threadIdx.x >> 5);
    if (unit >= (long long)a.M * a.hq) return;
    const int m = (int)(unit / a.hq), head = (int)(unit - (long long)m * a.hq);
    const long long kv_head = (long long)(head / (a.hq / a.hkv)) * a.head_stride;
    const int keys = a.rows[m].y, mask = (1 << a.page_shift) - 1;
    const int first = a.window > 0 && keys > a.window ? keys - a.window : 0;
    const int* pages = a.table + (long long)a.rows[m].x * a.max_pages;

    const u32* from = (const u32*)(a.q + unit * D);
    for (int w = lane; w < D / 2; w += 32) {
        q[2 * w] = bf_lo(from[w]);
        q[2 * w + 1] = bf_hi(from[w]);
    }
    sync_warp();
    float o[ANY_WORDS][2];
    UNROLL
    for (int i = 0; i < ANY_WORDS; i++) o[i][0] = o[i][1] = 0.f;
    float largest = NEG_INF, sum = 0.f;
    for (int t0 = first & ~31; t0 < keys; t0 += 32) {  // blocks stay anchored at 0
        const int t = t0 + lane;
        long long at = 0;  // of this lane's key
        float score = NEG_INF;
        if (t >= first && t < keys) {
            at = (long long)pages[t >> a.page_shift] * a.page_stride + kv_head + (long long)(t & mask) * a.tok_stride;
            score = 0.f;
            for (int d = 0; d < D; d += 8) score += dot8(q + d, *(const uint4*)(a.kp + at + d));
            score *= a.scale_log2;
        }
        float top = score;
        UNROLL
        for (int d = 16; d; d >>= 1) top = max_f(top, shfl_xor(top, d));
        top = max_f(top, largest);
        const float f = ex2(largest - top), p = t >= first && t < keys ? ex2(score - top) : 0.f;
        largest = top;
        float block = p;
        UNROLL
        for (int d = 16; d; d >>= 1) block += shfl_xor(block, d);
        sum = sum * f + block;
        UNROLL
        for (int i = 0; i < ANY_WORDS; i++) o[i][0] *= f, o[i][1] *= f;
        const int from_j = t0 < first ? first - t0 : 0, here = min_i(32, keys - t0);
        for (int j = from_j; j < here; j++) {
            const float pj = shfl(p, j);
            const u32* v = (const u32*)(a.vp + shfl(at, j));
            UNROLL
            for (int i = 0; i < ANY_WORDS; i++) {
                const int w = lane + 32 * i;
                if (w < D / 2) {
                    const u32 x = v[w];
                    o[i][0] += pj * bf_lo(x);
                    o[i][1] += pj * bf_hi(x);
                }
            }
        }
    }
    u32* to = (u32*)(a.out + unit * D);
    const float inverse = keys > 0 ? 1.0f / sum : 0.f;
    UNROLL
    for (int i = 0; i < ANY_WORDS; i++) {
        const int w = lane + 32 * i;
        if (w < D / 2) to[w] = pack_bf16(o[i][0] * inverse, o[i][1] * inverse);
    }
}

// q, out [M][hq][D]; rows[m] = {table row, keys that the row sees}, zeros to `out` for no keys (padding); of these the
// last `window`, or all if that is 0. kp, vp: this layer's, strides in elements. scale_log2 = log2(e) / sqrt(D).
// grid: ceil(M * hq / 4). block: 128. Dynamic shared memory: 16 * D bytes.
KERNEL(128, 4) attention_any(const u16* q, const u16* kp, const u16* vp, const int* table, const int2* rows, u16* out,
                             long long page_stride, long long head_stride, long long tok_stride, int max_pages,
                             int page_shift, int hq, int hkv, int D, int M, int window, float scale_log2) {
    DYN_SMEM(smem);
    AnyArgs a = {q,          kp,        vp,         table, rows, out, page_stride, head_stride,
                 tok_stride, max_pages, page_shift, hq,    hkv,  D,   M,           window,
                 scale_log2};
    pdl_wait();
    pdl_launch();
    any_head(a, (float*)smem + (threadIdx.x >> 5) * D);
}
