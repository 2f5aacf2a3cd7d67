// GEMM for up to 8 rows that streams weights straight into registers: y[M][N] = x[M][K] w[N][K]^T (+ residual). For
// --fast-math: a little faster than seqk.cu on an H200 (10.1 us for N = K = 4096), but K is added up in an order of its
// own, so its bits are not those of a GEMM with more rows. They still depend on the row alone.
//
// Weights are the 16-row side of mma.sync m16n8k16, rows of x the 8-wide side. K is permuted inside each chunk of 32
// elements, the same way for both, so that 16-byte loads are fragments: no shared memory, no ldmatrix. The 8 warps of a
// CTA take chunks in turn and are added up in a fixed order. The first weights are asked for before the kernel in front
// has ended.
#include "prims.cuh"

#define SKINNY_WARPS 8
#define UNITS_LD 9  // floats from a weight row to the next in the sums: 8 rows of x, one against bank conflicts

// R x 16 weight rows a CTA, U steps (of 32 k a warp) a half of the double buffer.
template <int R, int U>
DEV void skinny_body(const u16* w, const u16* x, u16* y, const u16* residual, int M, int N, int K) {
    DYN_SMEM(smem);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int n0 = blockIdx.x * (16 * R), row = lane >> 2;
    const int steps = K / (SKINNY_WARPS * 32), k0 = warp * 32 + (lane & 3) * 8;
    const u16* wp = w + (long long)(n0 + row) * K + k0;
    const u16* xp = x + (long long)row * K + k0;
    const long long row8 = 8ll * K;
    const uint4 zero = make_uint4(0, 0, 0, 0);
    float acc[R][4];
    UNROLL
    for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = acc[r][2] = acc[r][3] = 0.f;
    uint4 wb[2][U][R][2], xb[2][U];
    auto load_w = [&](int buffer, int step) {
        UNROLL
        for (int u = 0; u < U; u++) {
            UNROLL
            for (int r = 0; r < R; r++) {
                const u16* from = wp + (long long)(step + u) * (SKINNY_WARPS * 32) + 2 * r * row8;
                wb[buffer][u][r][0] = step + u < steps ? ld_weights16(from) : zero;
                wb[buffer][u][r][1] = step + u < steps ? ld_weights16(from + row8) : zero;
            }
        }
    };
    auto load_x = [&](int buffer, int step) {
        UNROLL
        for (int u = 0; u < U; u++) {
            const bool have = step + u < steps && row < M;
            xb[buffer][u] = have ? *(const uint4*)(xp + (long long)(step + u) * (SKINNY_WARPS * 32)) : zero;
        }
    };
    auto multiply = [&](int buffer) {
        UNROLL
        for (int u = 0; u < U; u++) {
            const uint4 b = xb[buffer][u];
            UNROLL
            for (int r = 0; r < R; r++) {
                const uint4 p = wb[buffer][u][r][0], q = wb[buffer][u][r][1];
                const u32 a0[4] = {p.x, q.x, p.y, q.y}, a1[4] = {p.z, q.z, p.w, q.w};
                mma16816(acc[r], a0, b.x, b.y);
                mma16816(acc[r], a1, b.z, b.w);
            }
        }
    };
    load_w(0, 0);
    pdl_wait();
    pdl_launch();
    load_x(0, 0);
    for (int step = 0; step < steps; step += 2 * U) {
        load_w(1, step + U);
        load_x(1, step + U);
        multiply(0);
        load_w(0, step + 2 * U);
        load_x(0, step + 2 * U);
        multiply(1);
    }
    float* sums = (float*)smem;  // [warp][weight row][row of x]
    UNROLL
    for (int r = 0; r < R; r++) {
        float* to = sums + (warp * 16 * R + r * 16 + row) * UNITS_LD + (lane & 3) * 2;
        to[0] = acc[r][0], to[1] = acc[r][1];
        to[8 * UNITS_LD] = acc[r][2], to[8 * UNITS_LD + 1] = acc[r][3];
    }
    sync_cta();
    for (int i = threadIdx.x; i < 16 * R * M; i += SKINNY_WARPS * 32) {
        const int m = i / (16 * R), n = i % (16 * R);
        float v = 0.f;
        UNROLL
        for (int k = 0; k < SKINNY_WARPS; k++) v += sums[(k * 16 * R + n) * UNITS_LD + m];
        const long long at = (long long)m * N + n0 + n;
        y[at] = to_bf16(residual ? v + from_bf16(residual[at]) : v);
    }
}

// M <= 8, N a multiple of the CTA's weight rows (16 for n1r1, 32 for n1r2), K of 256. residual [M][N] or null; it may
// be y. n1r1 is the faster one for N about K, n1r2 for many outputs.
// grid: N / 16 or N / 32. block: 256. Dynamic shared memory: 4608 or 9216 bytes.
#define SKINNY(name, R, U)                                                                                           \
    KERNEL(256, 2) name(const u16* w, const u16* x, u16* y, const u16* residual, int M, int N, int K) {              \
        skinny_body<R, U>(w, x, y, residual, M, N, K);                                                               \
    }
SKINNY(skinny_n1r1, 1, 4)
SKINNY(skinny_n1r2, 2, 2)
