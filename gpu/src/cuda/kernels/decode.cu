// Decode attention: one query token a row over paged KV, grouped query heads, split along the keys.
//
// A unit of work is some blocks of a row's context, for one KV head and up to 8 of its query heads. A fixed grid of CTAs
// takes units from a list, each from a place to the next CTA's, so that one CUDA graph serves any context and the host
// gives every CTA equally much. A CTA's four warps take 16-token tiles in turn, each through a cp.async ring of its own:
// no CTA barrier in the main loop. The ring of the next unit fills while this one is merged.
//
// Tensor cores run "transposed": S^T[16 tokens x 8 heads] = K Q^T and O^T[D x 8] += V^T P^T, so that the 8-wide side
// holds the query heads, and V^T comes out of ldmatrix.trans.
//
// The order of sums is that of a tree which is the same however a row is cut into work items:
//
//   leaf (block, warp)   the warp's 4 tiles of a block of 256 tokens, by an online softmax that begins anew
//   state (warp)         its leaves, folded in the order of blocks
//   row                  the four states, merged in the order of warps
//
// A CTA that has all blocks folds in registers. Where several share them each stores its leaves, and the one that
// finishes last folds them all. So the bits are the same however the host cuts.
#include "prims.cuh"

#define WARPS 4
#define TILE 16                       // tokens
#define LEAF_TILES 4                  // of a warp
#define BLOCK (TILE * WARPS * LEAF_TILES)
#define HEADS 8                       // query heads a unit
#define MERGE_AT(D, STAGES) (WARPS * (STAGES) * 2 * TILE * (D) * 2)
#define SUMS_AT(D, STAGES) (MERGE_AT(D, STAGES) + WARPS * HEADS * (D) * 4)

struct DecodeArgs {
    const u16* q;
    const u16* kp;
    const u16* vp;
    const int* table;
    const int* starts;
    const int4* work;
    const int2* lengths;
    u16* out;
    float4* leaves;
    u32* arrived;
    long long page_stride, head_stride, tok_stride;
    int max_pages, page_shift, hq, hkv;
    float scale_log2;
};

struct Unit {
    int row, table_row, first, end, of_row, kv_head, head0, heads;
    int blocks, pieces, leaf;  // of the row: its blocks; if they are shared, by how many, and where its leaves begin
};

// What a warp has of a unit's 8 heads: outputs as the accumulators of the tensor cores lie in registers, and maximum
// (in log2 units) and sum of the two heads of this lane.
template <int D> struct State {
    float o[D / 16][4];
    float m0, m1, l0, l1;
};
template <int D> DEV void reset(State<D>& s) {
    UNROLL
    for (int d = 0; d < D / 16; d++) s.o[d][0] = s.o[d][1] = s.o[d][2] = s.o[d][3] = 0.f;
    s.m0 = s.m1 = NEG_INF;
    s.l0 = s.l1 = 0.f;
}
// Rounded as written: the compiler must not choose another way in another place.
template <int D> DEV void fold(State<D>& s, const State<D>& leaf) {
    const float n0 = max_f(s.m0, leaf.m0), n1 = max_f(s.m1, leaf.m1);
    const float f0 = ex2(s.m0 - n0), f1 = ex2(s.m1 - n1), g0 = ex2(leaf.m0 - n0), g1 = ex2(leaf.m1 - n1);
    s.m0 = n0, s.m1 = n1;
    s.l0 = fma_rn(s.l0, f0, mul_rn(leaf.l0, g0));
    s.l1 = fma_rn(s.l1, f1, mul_rn(leaf.l1, g1));
    UNROLL
    for (int d = 0; d < D / 16; d++) {
        s.o[d][0] = fma_rn(s.o[d][0], f0, mul_rn(leaf.o[d][0], g0));
        s.o[d][1] = fma_rn(s.o[d][1], f1, mul_rn(leaf.o[d][1], g1));
        s.o[d][2] = fma_rn(s.o[d][2], f0, mul_rn(leaf.o[d][2], g0));
        s.o[d][3] = fma_rn(s.o[d][3], f1, mul_rn(leaf.o[d][3], g1));
    }
}
// Where a leaf is kept: the registers of each lane, D / 16 + 1 times 4 of them.
template <int D> DEV float4* leaf_at(const DecodeArgs& a, int leaf, int warp) {
    return a.leaves + ((long long)leaf * WARPS + warp) * (32 * (D / 16 + 1)) + (threadIdx.x & 31);
}
template <int D> DEV void store(const State<D>& s, float4* to) {
    UNROLL
    for (int d = 0; d < D / 16; d++) to[32 * d] = make_float4(s.o[d][0], s.o[d][1], s.o[d][2], s.o[d][3]);
    to[32 * (D / 16)] = make_float4(s.m0, s.m1, s.l0, s.l1);
}
template <int D> DEV void load_leaf(State<D>& s, const float4* from) {
    UNROLL
    for (int d = 0; d < D / 16; d++) {
        const float4 x = ld_peer(from + 32 * d);
        s.o[d][0] = x.x, s.o[d][1] = x.y, s.o[d][2] = x.z, s.o[d][3] = x.w;
    }
    const float4 x = ld_peer(from + 32 * (D / 16));
    s.m0 = x.x, s.m1 = x.y, s.l0 = x.z, s.l1 = x.w;
}

DEV Unit unit_at(const DecodeArgs& a, int index) {
    Unit u;
    const int4 w = a.work[index];
    const int g = a.hq / a.hkv, groups = (g + HEADS - 1) / HEADS;
    u.row = w.x & 0xffff;
    u.of_row = (u32)w.x >> 16;
    const int2 length = a.lengths[u.row];
    u.table_row = length.x;
    u.first = (w.y & 0xffff) * BLOCK;
    u.end = min_i(length.y, u.first + (int)((u32)w.y >> 16) * BLOCK);
    u.blocks = (length.y + BLOCK - 1) / BLOCK;
    u.pieces = w.z;
    u.leaf = w.w;
    u.kv_head = u.of_row / groups;
    const int group = u.of_row - u.kv_head * groups;
    u.head0 = u.kv_head * g + group * HEADS;
    u.heads = min_i(HEADS, g - group * HEADS);
    return u;
}

template <int D, int STAGES> DEV void decode_body(const DecodeArgs& a) {
    DYN_SMEM(smem);
    const int CHUNKS = D / 8, ROWS_A_LOAD = 32 / CHUNKS, LOADS = TILE / ROWS_A_LOAD;  // 16-byte chunks
    const u32 TILE_BYTES = TILE * D * 2, ROW_BYTES = D * 2;
    static_assert(STAGES >= 2, "a ring");
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const u32 ring = smem_u32(smem) + warp * (STAGES * 2 * TILE_BYTES);
    float* merge = (float*)(smem + MERGE_AT(D, STAGES));      // [warp][head][D]
    float2* sums = (float2*)(smem + SUMS_AT(D, STAGES));      // [warp][head]: maximum in log2 units, sum
    u32* is_last = (u32*)(sums + WARPS * HEADS);

    // Lists and page tables are older than the kernel in front, so they need not wait for its end; KV and queries do.
    int index = a.starts[blockIdx.x];
    const int until = a.starts[blockIdx.x + 1], units = a.hkv * ((a.hq / a.hkv + HEADS - 1) / HEADS);
    if (index >= until) {
        pdl_wait();
        return;
    }
    Unit u = unit_at(a, index);

    const int page_mask = (1 << a.page_shift) - 1;
    const int load_row = lane / CHUNKS, chunk = lane % CHUNKS;
    int pages = 0;       // lane i: the page of this warp's tile i, of the 32 tiles in hand
    u32 qb[D / 16][2];   // Q as the B operand: n = query head (lane / 4), k = dim

    auto tiles_of = [&](const Unit& v) { return ((v.end - v.first + TILE - 1) / TILE - warp + WARPS - 1) / WARPS; };
    // Lane i gets the page of this warp's tile `from` + i.
    auto fetch_pages = [&](const Unit& v, int from) {
        const int t = v.first + TILE * (warp + WARPS * (from + lane));
        pages = t < v.end ? a.table[(long long)v.table_row * a.max_pages + (t >> a.page_shift)] : 0;
    };
    // Issues the loads of this warp's i-th tile of `v` into its slot of the ring.
    auto load = [&](const Unit& v, int i) {
        if (i < tiles_of(v)) {
            const int* row = a.table + (long long)v.table_row * a.max_pages;
            if ((i & 31) == 0 && i > 0) fetch_pages(v, i);
            const int t0 = v.first + TILE * (warp + WARPS * i);
            const long long head = (long long)v.kv_head * a.head_stride + chunk * 8;
            const long long tile =
                (long long)shfl(pages, i & 31) * a.page_stride + (long long)(t0 & page_mask) * a.tok_stride + head;
            const u32 to = ring + (i % STAGES) * (2 * TILE_BYTES);
            UNROLL
            for (int j = 0; j < LOADS; j++) {
                const int r = ROWS_A_LOAD * j + load_row;
                const bool have = t0 + r < v.end;
                long long at = tile + r * a.tok_stride;
                if (page_mask < TILE - 1 && have) {  // the tile spans pages
                    const int t = t0 + r;
                    at = (long long)row[t >> a.page_shift] * a.page_stride + (long long)(t & page_mask) * a.tok_stride + head;
                }
                const u32 o = r * ROW_BYTES + ((chunk ^ (r & 7)) << 4);
                cp_async16(to + o, have ? a.kp + at : a.kp, have);
                cp_async16(to + TILE_BYTES + o, have ? a.vp + at : a.vp, have);
            }
        }
        cp_commit();
    };
    auto begin = [&](const Unit& v) {
        UNROLL
        for (int s = 0; s < STAGES - 1; s++) load(v, s);
        const int h = lane >> 2;
        const u32* from = (const u32*)(a.q + ((long long)v.row * a.hq + v.head0 + h) * D) + (lane & 3);
        UNROLL
        for (int k = 0; k < D / 16; k++) {
            qb[k][0] = h < v.heads ? from[k * 8] : 0u;
            qb[k][1] = h < v.heads ? from[k * 8 + 4] : 0u;
        }
    };
    fetch_pages(u, 0);
    pdl_wait();
    pdl_launch();
    begin(u);

    const int matrix = lane >> 3, r8 = lane & 7;
    const u32 k_row = ((matrix & 1) * 8 + r8) * ROW_BYTES, k_chunk = matrix >> 1;
    const u32 v_row = ((matrix >> 1) * 8 + r8) * ROW_BYTES, v_chunk = matrix & 1;  // transposed
    for (;;) {
        const bool more = ++index < until;
        const Unit next = more ? unit_at(a, index) : u;
        State<D> state, leaf;
        reset(state);
        reset(leaf);
        const int leaves = u.leaf + u.first / BLOCK;
        const int n = tiles_of(u);
        for (int i = 0; i < n; i++) {
            load(u, i + STAGES - 1);
            cp_wait<STAGES - 1>();
            sync_warp();
            const u32 kb = ring + (i % STAGES) * (2 * TILE_BYTES), vb = kb + TILE_BYTES;
            float s[4] = {0.f, 0.f, 0.f, 0.f}, s2[4] = {0.f, 0.f, 0.f, 0.f};
            UNROLL
            for (int k = 0; k < D / 16; k += 2) {  // two chains of products hide each other's latency
                u32 x[4], y[4];
                ldsm4(x, kb + k_row + (((k * 2 + k_chunk) ^ r8) << 4));
                ldsm4(y, kb + k_row + (((k * 2 + 2 + k_chunk) ^ r8) << 4));
                mma16816(s, x, qb[k][0], qb[k][1]);
                mma16816(s2, y, qb[k + 1][0], qb[k + 1][1]);
            }
            const int t = u.first + TILE * (warp + WARPS * i) + (lane >> 2);
            const bool have0 = t < u.end, have1 = t + 8 < u.end;
            float x0 = have0 ? (s[0] + s2[0]) * a.scale_log2 : NEG_INF;
            float x1 = have0 ? (s[1] + s2[1]) * a.scale_log2 : NEG_INF;
            float x2 = have1 ? (s[2] + s2[2]) * a.scale_log2 : NEG_INF;
            float x3 = have1 ? (s[3] + s2[3]) * a.scale_log2 : NEG_INF;
            float a0 = max_f(x0, x2), a1 = max_f(x1, x3);
            UNROLL
            for (int d = 4; d < 32; d <<= 1) {
                a0 = max_f(a0, shfl_xor(a0, d));
                a1 = max_f(a1, shfl_xor(a1, d));
            }
            const float n0 = max_f(leaf.m0, a0), n1 = max_f(leaf.m1, a1);
            const float f0 = ex2(leaf.m0 - n0), f1 = ex2(leaf.m1 - n1);
            leaf.m0 = n0, leaf.m1 = n1;
            x0 = ex2(x0 - n0), x1 = ex2(x1 - n1), x2 = ex2(x2 - n0), x3 = ex2(x3 - n1);
            leaf.l0 = leaf.l0 * f0 + (x0 + x2), leaf.l1 = leaf.l1 * f1 + (x1 + x3);
            const u32 p0 = movm_t(pack_bf16(x0, x1)), p1 = movm_t(pack_bf16(x2, x3));
            UNROLL
            for (int d = 0; d < D / 16; d++)
                leaf.o[d][0] *= f0, leaf.o[d][1] *= f1, leaf.o[d][2] *= f0, leaf.o[d][3] *= f1;
            UNROLL
            for (int d = 0; d < D / 16; d++) {
                u32 x[4];
                ldsm4t(x, vb + v_row + (((d * 2 + v_chunk) ^ r8) << 4));
                mma16816(leaf.o[d], x, p0, p1);
            }
            sync_warp();  // the slot may be refilled
            if (i % LEAF_TILES == LEAF_TILES - 1 || i == n - 1) {
                UNROLL
                for (int d = 4; d < 32; d <<= 1) leaf.l0 += shfl_xor(leaf.l0, d), leaf.l1 += shfl_xor(leaf.l1, d);
                if (u.pieces == 1) {
                    fold(state, leaf);
                } else {
                    store(leaf, leaf_at<D>(a, leaves + i / LEAF_TILES, warp));
                }
                reset(leaf);
            }
        }
        if (more) {
            fetch_pages(next, 0);
            begin(next);
        }
        if (u.pieces > 1) {
            // A block whose last tiles other warps have all of: nothing is nothing.
            for (int i = (n + LEAF_TILES - 1) / LEAF_TILES; i < (u.end - u.first + BLOCK - 1) / BLOCK; i++)
                store(leaf, leaf_at<D>(a, leaves + i, warp));
            fence_gpu();
            sync_cta();
            if (threadIdx.x == 0) {
                u32* counter = a.arrived + (long long)u.row * units + u.of_row;
                *is_last = atomic_inc(counter, u.pieces - 1) == (u32)u.pieces - 1;
                fence_gpu();
            }
            sync_cta();
            if (*is_last) {
                for (int block = 0; block < u.blocks; block++) {
                    load_leaf(leaf, leaf_at<D>(a, u.leaf + block, warp));
                    fold(state, leaf);
                }
            }
        }
        if (u.pieces == 1 || *is_last) {
            sync_cta();  // the merge before this one has been read
            const int h = (lane & 3) * 2, dim = lane >> 2;
            float* to = merge + (warp * HEADS + h) * D + dim;
            UNROLL
            for (int d = 0; d < D / 16; d++) {
                to[d * 16] = state.o[d][0], to[d * 16 + D] = state.o[d][1];
                to[d * 16 + 8] = state.o[d][2], to[d * 16 + 8 + D] = state.o[d][3];
            }
            if (dim == 0) {
                sums[warp * HEADS + h] = make_float2(state.m0, state.l0);
                sums[warp * HEADS + h + 1] = make_float2(state.m1, state.l1);
            }
            sync_cta();
            for (int x = threadIdx.x; x < u.heads * D; x += WARPS * 32) {
                const int h = x / D, dim = x % D;
                float largest = NEG_INF, acc = 0.f, sum = 0.f;
                UNROLL
                for (int w = 0; w < WARPS; w++) largest = max_f(largest, sums[w * HEADS + h].x);
                UNROLL
                for (int w = 0; w < WARPS; w++) {
                    const float2 ml = sums[w * HEADS + h];
                    const float f = ex2(ml.x - largest);
                    acc += f * merge[(w * HEADS + h) * D + dim];
                    sum += f * ml.y;
                }
                a.out[((long long)u.row * a.hq + u.head0 + h) * D + dim] = to_bf16(acc / sum);
            }
        }
        if (!more) return;
        u = next;
    }
}

// q, out [rows][hq][D]; kp, vp this layer's pools, strides in elements; table [..][max_pages] page ids, pages of
// 1 << page_shift tokens; lengths[row] = {table row, tokens of context}. CTA c takes work[starts[c] .. starts[c + 1]):
// {row | unit << 16, first block | blocks << 16, pieces that share the row's blocks for this unit, first leaf}, with
// blocks of 256 tokens, unit < units = hkv * ceil(hq / hkv / 8), and leaves that matter for several pieces only: leaves
// [..][4][D / 16 + 1][32] float4, one for each block of the row. arrived [rows][units], zero at the start and zero again
// at the end. Rows without work are left as they are. With programmatic launch the kernel directly in front may write q
// and KV; table, starts, work and lengths must be older. scale_log2 = log2(e) / sqrt(D).
// grid: as many CTAs as there are starts, less one: those that fit the device at once (2 a multiprocessor). block: 128.
// Dynamic shared memory: 115216 bytes for D = 128 (3 stages) and 106768 for D = 64 (6 stages).
#define DECODE(name, D, STAGES)                                                                                   \
    KERNEL(128, 2)                                                                                                \
    name(const u16* q, const u16* kp, const u16* vp, const int* table, const int* starts, const int4* work,       \
         const int2* lengths, u16* out, float4* leaves, u32* arrived, long long page_stride,                      \
         long long head_stride, long long tok_stride, int max_pages, int page_shift, int hq, int hkv,             \
         float scale_log2) {                                                                                      \
        DecodeArgs a = {q,           kp,          vp,         table,     starts,     work, lengths, out, leaves,  \
                        arrived,     page_stride, head_stride, tok_stride, max_pages, page_shift, hq, hkv,        \
                        scale_log2};                                                                              \
        decode_body<D, STAGES>(a);                                                                                \
    }
DECODE(decode_d128, 128, 3)
DECODE(decode_d64, 64, 6)
