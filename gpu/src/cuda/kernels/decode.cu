// Decode attention: one query token a row over paged KV, grouped query heads, split along the keys.
//
// A unit of work is (work item, KV head, group of up to 8 of its query heads); a fixed grid of CTAs takes units by
// stride, and how many there are is read from device memory, so one CUDA graph serves any context. A CTA's four warps
// take 16-token tiles in turn, each through a cp.async ring of its own: no CTA barrier in the main loop. The ring of
// the next unit fills while this one is merged.
//
// Tensor cores run "transposed": S^T[16 tokens x 8 heads] = K Q^T and O^T[D x 8] += V^T P^T, so that the 8-wide side
// holds the query heads, and V^T comes out of ldmatrix.trans.
//
// Where a row is split and the order of every sum depend only on its own length. A row in one part is written at once;
// of a row in several, the CTA that finishes last adds the parts up in their order.
#include "prims.cuh"

#define WARPS 4
#define TILE 16       // tokens
#define HEADS 8       // query heads a unit
#define MERGE_AT(D, STAGES) (WARPS * (STAGES) * 2 * TILE * (D) * 2)
#define SUMS_AT(D, STAGES) (MERGE_AT(D, STAGES) + WARPS * HEADS * (D) * 4)

struct DecodeArgs {
    const u16* q;
    const u16* kp;
    const u16* vp;
    const int* table;
    const int* nwork;
    const int4* work;
    const int2* parts;
    u16* out;
    float* po;
    float2* pml;
    u32* arrived;
    long long page_stride, head_stride, tok_stride;
    int max_pages, page_shift, hq, hkv;
    float scale_log2;
};

struct Unit {
    int item, row, table_row, first, end, kv_head, group, head0, heads;
};

DEV Unit unit_at(const DecodeArgs& a, int index, int groups) {
    Unit u;
    const int g = a.hq / a.hkv, per_item = a.hkv * groups;
    u.item = index / per_item;
    const int rest = index - u.item * per_item;
    u.kv_head = rest / groups;
    u.group = rest - u.kv_head * groups;
    u.head0 = u.kv_head * g + u.group * HEADS;
    u.heads = min_i(HEADS, g - u.group * HEADS);
    const int4 w = a.work[u.item];
    u.row = w.x;
    u.table_row = w.y;
    u.first = w.z;
    u.end = w.z + w.w;
    return u;
}

// The parts of a (row, query heads), each unnormalised with its maximum and sum, to the row's output.
template <int D> DEV void combine(const DecodeArgs& a, const Unit& u, int2 parts) {
    for (int x = threadIdx.x; x < u.heads * D; x += WARPS * 32) {
        const int head = u.head0 + x / D, dim = x % D;
        float largest = NEG_INF;
        for (int i = 0; i < parts.y; i++)
            largest = max_f(largest, ld_peer(a.pml + (long long)(parts.x + i) * a.hq + head).x);
        float acc = 0.f, sum = 0.f;
        for (int i = 0; i < parts.y; i++) {
            const long long at = (long long)(parts.x + i) * a.hq + head;
            const float2 ml = ld_peer(a.pml + at);
            const float f = ex2(ml.x - largest);
            acc += f * ld_peer(a.po + at * D + dim);
            sum += f * ml.y;
        }
        a.out[((long long)u.row * a.hq + head) * D + dim] = to_bf16(acc / sum);
    }
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

    // What follows was written before the kernel in front of the kernel in front: it need not be waited for.
    const int groups = (a.hq / a.hkv + HEADS - 1) / HEADS, units = *a.nwork * a.hkv * groups;
    int index = blockIdx.x;
    if (index >= units) {
        pdl_wait();
        return;
    }
    Unit u = unit_at(a, index, groups);

    const int page_mask = (1 << a.page_shift) - 1;
    const int load_row = lane / CHUNKS, chunk = lane % CHUNKS;
    int pages = 0;       // lane i: the page of this warp's tile i, of the 32 tiles in hand
    u32 qb[D / 16][2];   // Q as the B operand: n = query head (lane / 4), k = dim

    auto tiles_of = [&](const Unit& v) { return ((v.end - v.first + TILE - 1) / TILE - warp + WARPS - 1) / WARPS; };
    // Issues the loads of this warp's i-th tile of `v` into its slot of the ring.
    auto load = [&](const Unit& v, int i) {
        if (i < tiles_of(v)) {
            const int* row = a.table + (long long)v.table_row * a.max_pages;
            if ((i & 31) == 0) {
                const int t = v.first + TILE * (warp + WARPS * (i + lane));
                pages = t < v.end ? row[t >> a.page_shift] : 0;
            }
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
    auto load_q = [&](const Unit& v) {
        const int h = lane >> 2;
        const u32* from = (const u32*)(a.q + ((long long)v.row * a.hq + v.head0 + h) * D) + (lane & 3);
        UNROLL
        for (int k = 0; k < D / 16; k++) {
            qb[k][0] = h < v.heads ? from[k * 8] : 0u;
            qb[k][1] = h < v.heads ? from[k * 8 + 4] : 0u;
        }
    };
    // A row's last token is what the kernel in front writes: the tile that may hold it comes after the wait, those before
    // it do not have to. So four loads that wait for each other (count, item, page, K) overlap that kernel.
    const int old = ((u.end - u.first - 1) / TILE - warp + WARPS - 1) / WARPS;  // of this warp's tiles
    ROLLED
    for (int s = 0; s < STAGES - 1; s++)
        if (s < old) load(u, s);
    pdl_wait();
    pdl_launch();
    ROLLED
    for (int s = 0; s < STAGES - 1; s++)
        if (s >= old) load(u, s);
    load_q(u);

    const int matrix = lane >> 3, r8 = lane & 7;
    const u32 k_row = ((matrix & 1) * 8 + r8) * ROW_BYTES, k_chunk = matrix >> 1;
    const u32 v_row = ((matrix >> 1) * 8 + r8) * ROW_BYTES, v_chunk = matrix & 1;  // transposed
    for (;;) {
        const bool more = index + (int)gridDim.x < units;
        index += gridDim.x;
        const Unit next = more ? unit_at(a, index, groups) : u;
        const int2 parts = a.parts[u.row];
        float o[D / 16][4];
        UNROLL
        for (int d = 0; d < D / 16; d++) o[d][0] = o[d][1] = o[d][2] = o[d][3] = 0.f;
        float m0 = NEG_INF, m1 = NEG_INF, l0 = 0.f, l1 = 0.f;
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
            const float n0 = max_f(m0, a0), n1 = max_f(m1, a1);
            const float f0 = ex2(m0 - n0), f1 = ex2(m1 - n1);
            m0 = n0, m1 = n1;
            x0 = ex2(x0 - n0), x1 = ex2(x1 - n1), x2 = ex2(x2 - n0), x3 = ex2(x3 - n1);
            l0 = l0 * f0 + (x0 + x2), l1 = l1 * f1 + (x1 + x3);
            const u32 p0 = movm_t(pack_bf16(x0, x1)), p1 = movm_t(pack_bf16(x2, x3));
            UNROLL
            for (int d = 0; d < D / 16; d++) o[d][0] *= f0, o[d][1] *= f1, o[d][2] *= f0, o[d][3] *= f1;
            UNROLL
            for (int d = 0; d < D / 16; d++) {
                u32 x[4];
                ldsm4t(x, vb + v_row + (((d * 2 + v_chunk) ^ r8) << 4));
                mma16816(o[d], x, p0, p1);
            }
            sync_warp();  // the slot may be refilled
        }
        UNROLL
        for (int d = 4; d < 32; d <<= 1) l0 += shfl_xor(l0, d), l1 += shfl_xor(l1, d);
        if (more) {
            ROLLED
            for (int s = 0; s < STAGES - 1; s++) load(next, s);
            load_q(next);
        }

        sync_cta();  // the merge before this one has been read
        {
            const int h = (lane & 3) * 2, dim = lane >> 2;
            float* to = merge + (warp * HEADS + h) * D + dim;
            UNROLL
            for (int d = 0; d < D / 16; d++) {
                to[d * 16] = o[d][0], to[d * 16 + D] = o[d][1];
                to[d * 16 + 8] = o[d][2], to[d * 16 + 8 + D] = o[d][3];
            }
            if (dim == 0) {
                sums[warp * HEADS + h] = make_float2(m0, l0);
                sums[warp * HEADS + h + 1] = make_float2(m1, l1);
            }
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
            if (parts.y == 1) {
                a.out[((long long)u.row * a.hq + u.head0 + h) * D + dim] = to_bf16(acc / sum);
            } else {
                const long long at = (long long)u.item * a.hq + u.head0 + h;
                a.po[at * D + dim] = acc;
                if (dim == 0) a.pml[at] = make_float2(largest, sum);
            }
        }
        if (parts.y > 1) {
            fence_gpu();
            sync_cta();
            if (threadIdx.x == 0) {
                u32* counter = a.arrived + (long long)u.row * (a.hkv * groups) + u.kv_head * groups + u.group;
                *is_last = atomic_inc(counter, parts.y - 1) == (u32)parts.y - 1;
                fence_gpu();
            }
            sync_cta();
            if (*is_last) combine<D>(a, u, parts);
        }
        if (!more) return;
        u = next;
    }
}

// q, out [rows][hq][D]; kp, vp this layer's pools, strides in elements; table [..][max_pages] page ids, pages of
// 1 << page_shift tokens. work[i] = {row, table row, first token (a multiple of 16), tokens (at least 1)} for
// i < *nwork; parts[row] = {first work item, count}, a row's items following each other in the order of its tokens.
// For rows with several parts: po [*nwork][hq][D], pml [*nwork][hq], arrived [rows][hkv * ceil(hq / hkv / 8)], zero at
// the start and zero again at the end. Rows without work items are left as they are. scale_log2 = log2(e) / sqrt(D).
// With programmatic launch, the kernel directly in front may write q and the last token of each row; nwork, work, parts,
// table and the other tokens must be older than that.
// grid: CTAs that fit the device at once (2 a multiprocessor). block: 128.
// Dynamic shared memory: 114960 bytes for D = 128 (3 stages) and 106768 for D = 64 (6 stages).
#define DECODE(name, D, STAGES)                                                                                   \
    KERNEL(128, 2)                                                                                                \
    name(const u16* q, const u16* kp, const u16* vp, const int* table, const int* nwork, const int4* work,        \
         const int2* parts, u16* out, float* po, float2* pml, u32* arrived, long long page_stride,                \
         long long head_stride, long long tok_stride, int max_pages, int page_shift, int hq, int hkv,             \
         float scale_log2) {                                                                                      \
        DecodeArgs a = {q,   kp,      vp,          table,       nwork,      work,      parts,      out, po, pml,  \
                        arrived, page_stride, head_stride, tok_stride, max_pages, page_shift, hq, hkv,            \
                        scale_log2};                                                                              \
        decode_body<D, STAGES>(a);                                                                                \
    }
DECODE(decode_d128, 128, 3)
DECODE(decode_d64, 64, 6)
