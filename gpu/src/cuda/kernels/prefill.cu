// Causal prefill attention over paged KV for Hopper, head size 128: TMA loads whole pages (128-byte swizzle) through
// an mbarrier ring, one producer warp, two consumer warpgroups of 64 packed rows each, wgmma m64n128k16 (Q K^T from
// shared memory, P V with P in registers), the softmax of a block overlapped with the P V product of the one before.
//
// A tile is 128 packed rows (query token x query heads of one KV head, heads fastest) of one sequence. CTAs take
// (tile, KV head) pairs in turns, so the grid may be all pairs or as many CTAs as the device holds; in the second
// case the producer runs ahead into the next pair while the consumers finish this one.
//
// Keys are walked in blocks of 128 anchored at position 0, and a block that is masked in full adds exactly nothing: a
// row has the same bits however its prompt is cut into chunks.
#include "prims.cuh"
#include "hopper.cuh"

#define D 128
#define ROWS 128                   // packed rows a tile
#define KEYS 128                   // keys a block
#define HALF_KV (KEYS * 128)       // bytes of one 64-dim half of a block of K or V
#define HALF_Q (64 * 128)          // bytes of one 64-dim half of a warpgroup's rows
#define Q_AT 1024
#define K_AT (Q_AT + 2 * 2 * HALF_Q)
#define V_AT (K_AT + 2 * 2 * HALF_KV)

// mbarriers, two stages each
#define FULL_K 0
#define FULL_V 16
#define EMPTY_K 32
#define EMPTY_V 48

struct PrefillArgs {
    const u16* q;
    const int* table;
    const int4* seqs;
    const int2* work;
    u16* out;
    int nwork, max_pages, page_shift, hq, g;
    float scale_log2;
};

struct Tile {
    int q0, rows, row0, before, kv_len, blocks, first_masked, table_row, kv_head;
};

DEV Tile tile_at(const PrefillArgs& a, int index, int hkv) {
    Tile t;
    const int item = index / hkv;
    t.kv_head = index - item * hkv;
    const int2 w = a.work[item];
    const int4 s = a.seqs[w.x];
    t.q0 = s.x;
    t.rows = s.y * a.g;
    t.kv_len = s.z;
    t.table_row = s.w;
    t.before = s.z - s.y;
    t.row0 = w.y * ROWS;
    const int last = min_i((t.row0 + ROWS - 1) / a.g, s.y - 1);
    t.blocks = (t.before + last + KEYS) / KEYS;
    t.first_masked = (t.before + t.row0 / a.g + 1) / KEYS;
    return t;
}

// What this CTA does in its nth turn. Pairs come heaviest first; every other turn goes through the CTAs backwards, or the
// first would do a whole heaviest tile more than the last.
DEV int pair_of(int round) {
    return round * gridDim.x + (round & 1 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
}

// Where chunk c (16 bytes) of row r of a warpgroup's Q lies: swizzled as TMA would have.
DEV u32 q_offset(int r, int c) { return (u32)((c >> 3) * HALF_Q + r * 128 + (((c & 7) ^ (r & 7)) << 4)); }

// One warp: K and V of every block of every tile of this CTA, page by page, half a head's dims each.
DEV void produce(const TensorMap* mk, const TensorMap* mv, const PrefillArgs& a, u32 base, int lane) {
    const int hkv = a.hq / a.g, page = 1 << a.page_shift, boxes = (KEYS >> a.page_shift) * 2;
    const int half = lane & 1, nth = lane >> 1;
    const u32 to = half * HALF_KV + nth * page * 128;
    u32 n = 0;
    for (int round = 0, index; (index = pair_of(round)) < a.nwork * hkv; round++) {
        const Tile t = tile_at(a, index, hkv);
        const int* pages = a.table + (long long)t.table_row * a.max_pages;
        for (int b = 0; b < t.blocks; b++, n++) {
            const u32 stage = n & 1, parity = ((n >> 1) & 1) ^ 1;
            const int token = b * KEYS + nth * page;
            // A page past the end is out of the tensor's bounds: TMA writes zeros.
            const int id = (lane < boxes && token < t.kv_len) ? pages[token >> a.page_shift] : 0x7fffffff;
            mbar_wait(base + EMPTY_K + stage * 8, parity);
            if (lane == 0) mbar_expect_tx(base + FULL_K + stage * 8, 2 * HALF_KV);
            sync_warp();
            if (lane < boxes)
                tma_4d(base + K_AT + stage * 2 * HALF_KV + to, mk, base + FULL_K + stage * 8, half * 64, 0, t.kv_head, id);
            mbar_wait(base + EMPTY_V + stage * 8, parity);
            if (lane == 0) mbar_expect_tx(base + FULL_V + stage * 8, 2 * HALF_KV);
            sync_warp();
            if (lane < boxes)
                tma_4d(base + V_AT + stage * 2 * HALF_KV + to, mv, base + FULL_V + stage * 8, half * 64, 0, t.kv_head, id);
        }
    }
}

// One of two warpgroups: rows group * 64 .. group * 64 + 63 of every tile of this CTA.
DEV void consume(const PrefillArgs& a, unsigned char* smem, u32 base, int group) {
    const int t128 = threadIdx.x & 127, lane = t128 & 31, warp = t128 >> 5, hkv = a.hq / a.g;
    unsigned char* qs = smem + Q_AT + group * 2 * HALF_Q;
    const u32 qb = base + Q_AT + group * 2 * HALF_Q;
    const float scale = a.scale_log2;
    float o[64], s[64], m[2], l[2], f[2];
    u32 p[8][4];
    int limit[2];  // the last key that this thread's two rows see

    auto scores = [&](u32 stage) {
        hold(s);
        wgmma_fence();
        UNROLL
        for (int k = 0; k < 8; k++) {
            const u32 at = (k & 3) * 32;
            wgmma_ss<128>(s, smem_desc(qb + (k >> 2) * HALF_Q + at, 16, 1024),
                          smem_desc(base + K_AT + stage * 2 * HALF_KV + (k >> 2) * HALF_KV + at, 16, 1024), k > 0);
        }
        wgmma_commit();
    };
    auto values = [&](u32 stage) {
        hold(o);
        wgmma_fence();
        UNROLL
        for (int k = 0; k < 8; k++)
            wgmma_rs128(o, p[k], smem_desc(base + V_AT + stage * 2 * HALF_KV + k * 2048, HALF_KV, 1024));
        wgmma_commit();
    };
    auto softmax = [&](int b, bool is_masked) {
        UNROLL
        for (int h = 0; h < 2; h++) {
            if (is_masked) {
                UNROLL
                for (int n = 0; n < 16; n++) {
                    const int key = b * KEYS + n * 8 + (lane & 3) * 2;
                    if (key > limit[h]) s[n * 4 + 2 * h] = NEG_INF;
                    if (key + 1 > limit[h]) s[n * 4 + 2 * h + 1] = NEG_INF;
                }
            }
            float largest = NEG_INF;
            UNROLL
            for (int n = 0; n < 16; n++) largest = max_f(largest, max_f(s[n * 4 + 2 * h], s[n * 4 + 2 * h + 1]));
            largest = max_f(largest, shfl_xor(largest, 1));
            largest = max_f(largest, shfl_xor(largest, 2));
            const float nm = max_f(m[h], largest * scale);
            f[h] = ex2(m[h] - nm);
            m[h] = nm;
            float sum = 0.f;
            UNROLL
            for (int n = 0; n < 16; n++) {
                const float x = ex2(s[n * 4 + 2 * h] * scale - nm), y = ex2(s[n * 4 + 2 * h + 1] * scale - nm);
                s[n * 4 + 2 * h] = x;
                s[n * 4 + 2 * h + 1] = y;
                sum += x + y;
            }
            l[h] = l[h] * f[h] + sum;
        }
    };
    auto pack = [&]() {
        UNROLL
        for (int k = 0; k < 8; k++)
            UNROLL
            for (int j = 0; j < 4; j++) p[k][j] = pack_bf16(s[8 * k + 2 * j], s[8 * k + 2 * j + 1]);
    };
    // The rest of a page behind the last token holds what its last owner left. Its scores are masked, but 0 * NaN is
    // NaN: one sequence must not spoil another.
    auto clear_tail = [&](int b, int kv_len, u32 stage) {
        const int from = kv_len - b * KEYS, page = 1 << a.page_shift;
        if (from >= KEYS || (kv_len & (page - 1)) == 0) return;
        const int rows = page - (kv_len & (page - 1));
        unsigned char* v = smem + V_AT + stage * 2 * HALF_KV + from * 128;
        for (int i = t128; i < rows * 16; i += 128)
            *(uint4*)(v + (i & 1) * HALF_KV + (i >> 1) * 16) = make_uint4(0, 0, 0, 0);
        fence_async_smem();
        bar_sync(1 + group, 128);
    };

    u32 n = 0;  // blocks before this tile
    for (int round = 0, index; (index = pair_of(round)) < a.nwork * hkv; round++) {
        const Tile t = tile_at(a, index, hkv);
        const int row0 = t.row0 + group * 64, heads = t.kv_head * a.g, last_token = t.rows / a.g - 1;
        UNROLL
        for (int i = 0; i < 8; i++) {
            const int x = t128 + 128 * i, r = x >> 4, c = x & 15, row = row0 + r;
            uint4 v = make_uint4(0, 0, 0, 0);
            if (row < t.rows) {
                const int token = row / a.g, h = row - token * a.g;
                v = *(const uint4*)(a.q + ((long long)(t.q0 + token) * a.hq + heads + h) * D + c * 8);
            }
            *(uint4*)(qs + q_offset(r, c)) = v;
        }
        fence_async_smem();
        bar_sync(1 + group, 128);
        UNROLL
        for (int i = 0; i < 64; i++) o[i] = 0.f;
        UNROLL
        for (int h = 0; h < 2; h++) {
            m[h] = NEG_INF;
            l[h] = 0.f;
            limit[h] = t.before + min_i((row0 + warp * 16 + h * 8 + (lane >> 2)) / a.g, last_token);
        }

        mbar_wait(base + FULL_K + (n & 1) * 8, (n >> 1) & 1);
        scores(n & 1);
        wgmma_wait<0>();
        hold(s);
        if (lane == 0) mbar_arrive(base + EMPTY_K + (n & 1) * 8);
        softmax(0, t.first_masked <= 0);
        pack();
        for (int b = 0; b + 1 < t.blocks; b++) {
            const u32 here = n + b, next = here + 1;
            mbar_wait(base + FULL_K + (next & 1) * 8, (next >> 1) & 1);
            scores(next & 1);
            mbar_wait(base + FULL_V + (here & 1) * 8, (here >> 1) & 1);
            values(here & 1);
            wgmma_wait<1>();  // the scores are there; the values go on
            hold(s);
            if (lane == 0) mbar_arrive(base + EMPTY_K + (next & 1) * 8);
            softmax(b + 1, b + 1 >= t.first_masked);
            wgmma_wait<0>();
            hold(o);
            if (lane == 0) mbar_arrive(base + EMPTY_V + (here & 1) * 8);
            UNROLL
            for (int i = 0; i < 16; i++) {
                o[i * 4] *= f[0];
                o[i * 4 + 1] *= f[0];
                o[i * 4 + 2] *= f[1];
                o[i * 4 + 3] *= f[1];
            }
            pack();
        }
        const u32 final = n + t.blocks - 1;
        mbar_wait(base + FULL_V + (final & 1) * 8, (final >> 1) & 1);
        clear_tail(t.blocks - 1, t.kv_len, final & 1);
        values(final & 1);
        wgmma_wait<0>();
        hold(o);
        if (lane == 0) mbar_arrive(base + EMPTY_V + (final & 1) * 8);
        n += t.blocks;

        bar_sync(1 + group, 128);  // every warp is done with Q, whose place the output takes
        UNROLL
        for (int h = 0; h < 2; h++) {
            float sum = l[h];
            sum += shfl_xor(sum, 1);
            sum += shfl_xor(sum, 2);
            const float inverse = 1.0f / sum;
            const int r = warp * 16 + h * 8 + (lane >> 2);
            UNROLL
            for (int i = 0; i < 16; i++)
                *(u32*)(qs + q_offset(r, i) + (lane & 3) * 4) =
                    pack_bf16(o[i * 4 + 2 * h] * inverse, o[i * 4 + 2 * h + 1] * inverse);
        }
        sync_warp();
        UNROLL
        for (int i = 0; i < 8; i++) {
            const int r = warp * 16 + i * 2 + (lane >> 4), row = row0 + r;
            if (row < t.rows) {
                const int token = row / a.g, h = row - token * a.g;
                *(uint4*)(a.out + ((long long)(t.q0 + token) * a.hq + heads + h) * D + (lane & 15) * 8) =
                    *(const uint4*)(qs + q_offset(r, lane & 15));
            }
        }
        bar_sync(1 + group, 128);  // the place is free for the next tile's Q
    }
}

// seqs[s] = {first row of q, rows, KV length with these rows, table row}; work[i] = {sequence, tile}, tile < ceil(rows
// * g / 128), the heaviest (most keys) first. q, out [rows][hq][128], g = hq / hkv query heads a KV head, up to 128.
// mk, mv: 4-d maps of this layer's K and V, dims {128, page, hkv, pages}, strides of token, head, page, box {64, page,
// 1, 1}, 128-byte swizzle; pages of 8 to 128 tokens. scale_log2 = log2(e) / sqrt(128).
// grid: up to nwork * hkv. block: 384. Dynamic shared memory: 164864 bytes.
KERNEL(384, 1) prefill_wgmma(const __grid_constant__ TensorMap mk, const __grid_constant__ TensorMap mv, const u16* q,
                             const int* table, const int4* seqs, const int2* work, int nwork, u16* out, int max_pages,
                             int page_shift, int hq, int g, float scale_log2) {
    DYN_SMEM(smem);
    PrefillArgs a = {q, table, seqs, work, out, nwork, max_pages, page_shift, hq, g, scale_log2};
    const u32 base = smem_u32(smem);
    if (threadIdx.x == 0) {
        for (int i = 0; i < 4; i++) {
            mbar_init(base + FULL_K + i * 8, 1);
            mbar_init(base + EMPTY_K + i * 8, 8);  // an arrival of each consumer warp
        }
        fence_mbar_init();
    }
    pdl_wait();
    pdl_launch();
    sync_cta();
    const int warpgroup = threadIdx.x >> 7;
    if (warpgroup == 0) {
        registers_down<24>();
        if (threadIdx.x < 32) produce(&mk, &mv, a, base, threadIdx.x);
    } else {
        registers_up<240>();
        consume(a, smem, base, warpgroup - 1);
    }
}
