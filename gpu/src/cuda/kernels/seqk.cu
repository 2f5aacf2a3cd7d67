// GEMM for few rows with K added up strictly in order: y[M][N] = x[M][K] w[N][K]^T (+ residual), M <= 8, 16, 32, 64.
//
// On an H200 its bits are those of cuBLASLt's algorithms without split-K, so decode and prefill projections agree, at
// nearly split-K's speed. Weight rows are the 64-wide side of wgmma; a tile has 32 to 64 of them, whichever divides N
// among the multiprocessors best (the rows of wgmma behind a short tile's last compute what nobody reads). A CTA takes
// tiles by stride, and its TMA ring, as deep as shared memory, runs on into the next tile: only bytes in flight (about
// 200 KB a multiprocessor) draw the bandwidth. A stage holds several blocks of 64 along K: waiting for a stage and
// starting its products costs about 190 cycles, in which a multiprocessor's share of the bandwidth is 3 KB.
#include "prims.cuh"
#include "hopper.cuh"

#define STAGES_AT 1024   // behind the barriers: full from 0, empty from 512
#define EMPTY 512

template <int ROWS, int BLOCKS>
DEV void seqk_body(const TensorMap* mw, const TensorMap* mx, u16* y, const u16* residual, int M, int N, int K, int outputs,
                   int stages) {
    DYN_SMEM(smem);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const u32 base = smem_u32(smem), ring = base + STAGES_AT;
    const u32 w_bytes = outputs * 128, x_bytes = ROWS * 128, x_at = BLOCKS * w_bytes, stage_bytes = BLOCKS * (w_bytes + x_bytes);
    const int steps = (K + 64 * BLOCKS - 1) / (64 * BLOCKS), tiles = (N + outputs - 1) / outputs;
    const int mine = (tiles - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x;
    if (threadIdx.x == 0) {
        for (int i = 0; i < stages; i++) {
            mbar_init(base + i * 8, 1);
            mbar_init(base + EMPTY + i * 8, 4);
        }
        fence_mbar_init();
    }
    sync_cta();
    if (warp == 4) {
        // Weights were there before the kernel in front: the ring fills with them while that one ends.
        const int all = mine * steps, early = min_i(stages, all);
        if (lane == 0) {
            for (int i = 0; i < early; i++) {
                const int tile = blockIdx.x + i / steps * gridDim.x, k = i % steps;
                mbar_expect_tx(base + i * 8, stage_bytes);
                UNROLL
                for (int b = 0; b < BLOCKS; b++)
                    tma_4d(ring + i * stage_bytes + b * w_bytes, mw, base + i * 8, (k * BLOCKS + b) * 64, tile * outputs, 0, 0);
            }
        }
        pdl_wait();
        pdl_launch();
        if (lane != 0) return;
        for (int i = 0; i < early; i++) {
            UNROLL
            for (int b = 0; b < BLOCKS; b++)
                tma_4d(ring + i * stage_bytes + x_at + b * x_bytes, mx, base + i * 8, (i % steps * BLOCKS + b) * 64, 0, 0, 0);
        }
        int tile = blockIdx.x + early / steps * gridDim.x, k = early % steps, s = 0;
        u32 phase = 0;
        for (int i = early; i < all; i++) {
            mbar_wait(base + EMPTY + s * 8, phase);
            mbar_expect_tx(base + s * 8, stage_bytes);
            UNROLL
            for (int b = 0; b < BLOCKS; b++) {
                const int at = (k * BLOCKS + b) * 64;
                tma_4d(ring + s * stage_bytes + b * w_bytes, mw, base + s * 8, at, tile * outputs, 0, 0);
                tma_4d(ring + s * stage_bytes + x_at + b * x_bytes, mx, base + s * 8, at, 0, 0, 0);
            }
            if (++k == steps) k = 0, tile += gridDim.x;
            if (++s == stages) s = 0, phase ^= 1;
        }
        return;
    }
    int s = 0;
    u32 phase = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        float d[ROWS / 2];
        UNROLL
        for (int i = 0; i < ROWS / 2; i++) d[i] = 0.f;
        u32 before = 0;
        for (int k = 0; k < steps; k++) {
            mbar_wait(base + s * 8, phase);
            const u32 w = ring + s * stage_bytes, x = w + x_at;
            hold(d);
            wgmma_fence();
            UNROLL
            for (int j = 0; j < 4 * BLOCKS; j++) {
                const u32 wj = w + (j >> 2) * w_bytes + (j & 3) * 32, xj = x + (j >> 2) * x_bytes + (j & 3) * 32;
                wgmma_ss<ROWS>(d, smem_desc(wj, 16, 1024), smem_desc(xj, 16, 1024), 1);
            }
            wgmma_commit();
            wgmma_wait<1>();  // the stage before has been read
            if (k > 0 && lane == 0) mbar_arrive(before);
            before = base + EMPTY + s * 8;
            if (++s == stages) s = 0, phase ^= 1;
        }
        wgmma_wait<0>();
        hold(d);
        if (lane == 0) mbar_arrive(before);
        pdl_wait();  // residual and y belong to earlier kernels
        UNROLL
        for (int n = 0; n < ROWS / 8; n++) {
            UNROLL
            for (int i = 0; i < 4; i++) {
                const int m = n * 8 + (lane & 3) * 2 + (i & 1), out = warp * 16 + (lane >> 2) + (i >> 1) * 8;
                const int r = tile * outputs + out;
                if (m >= M || out >= outputs || r >= N) continue;
                const long long at = (long long)m * N + r;
                // Rounded before it is added, as cuBLASLt's kernels for Hopper do, and a framework without fusion.
                y[at] = to_bf16(residual ? round_bf16(d[n * 4 + i]) + from_bf16(residual[at]) : d[n * 4 + i]);
            }
        }
    }
    pdl_wait();  // also of a CTA without tiles
}

// mw, mx: 4-d maps of w and x, dims {K, N, 1, 1} and {K, M, 1, 1}, boxes {64, outputs, 1, 1} and {64, rows, 1, 1},
// 128-byte swizzle (outside of them zeros, so N and K need only be multiples of 8). residual [M][N] or null; it may be y.
// outputs: weight rows of a tile, a multiple of 8 up to 64. stages: at most 64.
// grid: up to ceil(N / outputs). block: 160.
// Dynamic shared memory: 1024 + stages * blocks * (outputs + rows) * 128 + (64 - outputs) * 128.
#define SEQK(rows, blocks)                                                                                                   \
    KERNEL(160, 1)                                                                                                   \
    seqk_wgmma_##rows(const __grid_constant__ TensorMap mw, const __grid_constant__ TensorMap mx, u16* y,            \
                      const u16* residual, int M, int N, int K, int outputs, int stages) {                           \
        seqk_body<rows, blocks>(&mw, &mx, y, residual, M, N, K, outputs, stages);                                            \
    }
SEQK(8, 4)
SEQK(16, 4)
SEQK(32, 2)
SEQK(64, 2)
