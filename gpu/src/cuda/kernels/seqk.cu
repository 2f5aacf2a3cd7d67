// GEMM for few rows with K added up strictly in order: y[M][N] = x[M][K] w[N][K]^T (+ residual), M <= 8, 16, 32, 64.
//
// On an H200 its bits are those of every cuBLASLt algorithm without split-K, so decode and prefill projections agree,
// at nearly split-K's speed. 64 weight rows a CTA as the 64-wide side of wgmma, and a TMA ring as deep as shared memory:
// with one CTA a multiprocessor on half of them, only bytes in flight (about 220 KB each) draw the bandwidth.
#include "prims.cuh"
#include "hopper.cuh"

#define OUTPUTS 64                  // weight rows a CTA
#define W_BYTES (OUTPUTS * 128)     // of a stage: 64 rows x 64 k
#define STAGES_AT 1024              // behind the barriers: full from 0, empty from 512
#define EMPTY 512

template <int ROWS, int STAGES>
DEV void seqk_body(const TensorMap* mw, const TensorMap* mx, u16* y, const u16* residual, int M, int N, int K) {
    DYN_SMEM(smem);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const u32 base = smem_u32(smem), ring = base + STAGES_AT;
    const u32 STAGE_BYTES = W_BYTES + ROWS * 128;
    const int n0 = blockIdx.x * OUTPUTS, steps = (K + 63) >> 6;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            mbar_init(base + i * 8, 1);
            mbar_init(base + EMPTY + i * 8, 4);
        }
        fence_mbar_init();
    }
    sync_cta();
    if (warp == 4) {
        // Weights were there before the kernel in front: the ring fills with them while that one ends.
        const int early = min_i(STAGES, steps);
        if (lane == 0) {
            for (int k = 0; k < early; k++) {
                mbar_expect_tx(base + k * 8, STAGE_BYTES);
                tma_4d(ring + k * STAGE_BYTES, mw, base + k * 8, k * 64, n0, 0, 0);
            }
        }
        pdl_wait();
        pdl_launch();
        if (lane != 0) return;
        for (int k = 0; k < early; k++) tma_4d(ring + k * STAGE_BYTES + W_BYTES, mx, base + k * 8, k * 64, 0, 0, 0);
        for (int k = early; k < steps; k++) {
            const int s = k % STAGES;
            mbar_wait(base + EMPTY + s * 8, ((k / STAGES) & 1) ^ 1);
            mbar_expect_tx(base + s * 8, STAGE_BYTES);
            tma_4d(ring + s * STAGE_BYTES, mw, base + s * 8, k * 64, n0, 0, 0);
            tma_4d(ring + s * STAGE_BYTES + W_BYTES, mx, base + s * 8, k * 64, 0, 0, 0);
        }
        return;
    }
    float d[ROWS / 2];
    UNROLL
    for (int i = 0; i < ROWS / 2; i++) d[i] = 0.f;
    for (int k = 0; k < steps; k++) {
        const int s = k % STAGES;
        mbar_wait(base + s * 8, (k / STAGES) & 1);
        const u32 w = ring + s * STAGE_BYTES, x = w + W_BYTES;
        hold(d);
        wgmma_fence();
        UNROLL
        for (int j = 0; j < 4; j++) wgmma_ss<ROWS>(d, smem_desc(w + j * 32, 16, 1024), smem_desc(x + j * 32, 16, 1024), 1);
        wgmma_commit();
        wgmma_wait<1>();  // the stage before has been read
        if (k > 0 && lane == 0) mbar_arrive(base + EMPTY + ((k - 1) % STAGES) * 8);
    }
    wgmma_wait<0>();
    hold(d);
    pdl_wait();  // residual and y belong to earlier kernels
    UNROLL
    for (int n = 0; n < ROWS / 8; n++) {
        UNROLL
        for (int i = 0; i < 4; i++) {
            const int m = n * 8 + (lane & 3) * 2 + (i & 1), r = n0 + warp * 16 + (lane >> 2) + (i >> 1) * 8;
            if (m >= M || r >= N) continue;
            const long long at = (long long)m * N + r;
            y[at] = to_bf16(residual ? d[n * 4 + i] + from_bf16(residual[at]) : d[n * 4 + i]);
        }
    }
}

// mw, mx: 4-d maps of w and x, dims {K, N, 1, 1} and {K, M, 1, 1}, boxes {64, 64, 1, 1} and {64, rows, 1, 1}, 128-byte
// swizzle (outside of them zeros, so N and K need only be multiples of 8). residual [M][N] or null; it may be y.
// grid: ceil(N / 64). block: 160. Dynamic shared memory: 1024 + stages * (8192 + rows * 128).
#define SEQK(rows, stages)                                                                                           \
    KERNEL(160, 1)                                                                                                   \
    seqk_wgmma_##rows(const __grid_constant__ TensorMap mw, const __grid_constant__ TensorMap mx, u16* y,            \
                      const u16* residual, int M, int N, int K) {                                                    \
        seqk_body<rows, stages>(&mw, &mx, y, residual, M, N, K);                                                     \
    }
SEQK(8, 24)
SEQK(16, 22)
SEQK(32, 18)
SEQK(64, 13)

// The same for M <= 8 with mma.sync: 16 weight rows a warp, each warp with a cp.async ring of its own. Smaller pieces
// than wgmma's 64 rows put every multiprocessor to work: 11.7 against 13.9 us for N = K = 4096 on an H200, the same bits.
#define MMA_STAGES 16
#define MMA_W_BYTES (16 * 128)
#define MMA_STAGE_BYTES (MMA_W_BYTES + 8 * 128)

DEV void seqk_mma_body(const u16* w, const u16* x, u16* y, const u16* residual, int M, int N, int K) {
    DYN_SMEM(smem);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int n0 = (blockIdx.x * 2 + warp) * 16, steps = (K + 63) >> 6;
    const u32 ring = smem_u32(smem) + warp * (MMA_STAGES * MMA_STAGE_BYTES);
    const int row = lane >> 3, chunk = lane & 7;  // of 16 bytes

    auto load_w = [&](int k) {
        if (k >= steps) return;
        const u32 to = ring + (k % MMA_STAGES) * MMA_STAGE_BYTES;
        const bool in_k = k * 64 + chunk * 8 < K;
        UNROLL
        for (int i = 0; i < 4; i++) {
            const int r = i * 4 + row;
            const bool have = in_k && n0 + r < N;
            cp_async16(to + r * 128 + ((chunk ^ (r & 7)) << 4),
                       have ? w + (long long)(n0 + r) * K + k * 64 + chunk * 8 : w, have);
        }
    };
    auto load_x = [&](int k) {
        if (k >= steps) return;
        const u32 to = ring + (k % MMA_STAGES) * MMA_STAGE_BYTES + MMA_W_BYTES;
        const bool in_k = k * 64 + chunk * 8 < K;
        UNROLL
        for (int i = 0; i < 2; i++) {
            const int r = i * 4 + row;
            const bool have = in_k && r < M;
            cp_async16(to + r * 128 + ((chunk ^ (r & 7)) << 4),
                       have ? x + (long long)r * K + k * 64 + chunk * 8 : x, have);
        }
    };
    UNROLL
    for (int k = 0; k < MMA_STAGES - 1; k++) load_w(k);
    pdl_wait();
    pdl_launch();
    UNROLL
    for (int k = 0; k < MMA_STAGES - 1; k++) {
        load_x(k);
        cp_commit();  // the first group carries every early load of weights as well
    }
    float acc[4] = {0.f, 0.f, 0.f, 0.f};
    const int matrix = lane >> 3, r8 = lane & 7;
    const u32 w_row = ((matrix & 1) * 8 + r8) * 128, x_row = r8 * 128;
    for (int k = 0; k < steps; k++) {
        cp_wait<MMA_STAGES - 2>();
        sync_warp();
        const u32 ws = ring + (k % MMA_STAGES) * MMA_STAGE_BYTES, xs = ws + MMA_W_BYTES;
        UNROLL
        for (int j = 0; j < 4; j += 2) {  // 32 of k
            u32 a0[4], a1[4], b[4];
            ldsm4(a0, ws + w_row + (((j * 2 + (matrix >> 1)) ^ r8) << 4));
            ldsm4(a1, ws + w_row + (((j * 2 + 2 + (matrix >> 1)) ^ r8) << 4));
            ldsm4(b, xs + x_row + (((j * 2 + matrix) ^ r8) << 4));
            mma16816(acc, a0, b[0], b[1]);
            mma16816(acc, a1, b[2], b[3]);
        }
        sync_warp();  // the slot of the step before this one may be refilled
        load_w(k + MMA_STAGES - 1);
        load_x(k + MMA_STAGES - 1);
        cp_commit();
    }
    cp_wait<0>();
    UNROLL
    for (int i = 0; i < 4; i++) {
        const int m = (lane & 3) * 2 + (i & 1), r = n0 + (lane >> 2) + (i >> 1) * 8;
        if (m >= M || r >= N) continue;
        const long long at = (long long)m * N + r;
        y[at] = to_bf16(residual ? acc[i] + from_bf16(residual[at]) : acc[i]);
    }
}

// M <= 8, K a multiple of 8. grid: ceil(N / 32). block: 64. Dynamic shared memory: 98304 bytes.
KERNEL(64, 2) seqk_mma_8(const u16* w, const u16* x, u16* y, const u16* residual, int M, int N, int K) {
    seqk_mma_body(w, x, y, residual, M, N, K);
}
