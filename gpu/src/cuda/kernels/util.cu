// What a start needs: dummy weights, the comparison of results, tables of pages.
#include "prims.cuh"

DEV u32 rotate(u32 x, int by) { return (x << by) | (x >> (32 - by)); }
DEV void quarter(u32& a, u32& b, u32& c, u32& d) {
    a += b;
    d = rotate(d ^ a, 16);
    c += d;
    b = rotate(b ^ c, 12);
    a += b;
    d = rotate(d ^ a, 8);
    c += d;
    b = rotate(b ^ c, 7);
}

// out[i] = middle + width * u with u uniform in [-1, 1): element i is word i of the ChaCha8 stream of the key, so that
// the CPU's dummy weights are the same (gpu/src/weights/dummy.rs). No operation is fused there, so none is here.
// A thread makes 16 elements, one block of the stream; n may be any number. grid: ceil(n / 4096).
KERNEL(256, 4) draw_bf16(u16* out, u64 n, u64 key0, u64 key1, u64 key2, u64 key3, float middle, float width) {
    const u64 block = (u64)blockIdx.x * 256 + threadIdx.x;
    pdl_wait();
    pdl_launch();
    if (block * 16 >= n) return;
    u32 s[16] = {0x61707865, 0x3320646e, 0x79622d32, 0x6b206574, (u32)key0, (u32)(key0 >> 32), (u32)key1, (u32)(key1 >> 32),
                 (u32)key2,  (u32)(key2 >> 32), (u32)key3, (u32)(key3 >> 32), (u32)block, (u32)(block >> 32), 0, 0};
    u32 x[16];
    UNROLL
    for (int i = 0; i < 16; i++) x[i] = s[i];
    UNROLL
    for (int round = 0; round < 4; round++) {
        UNROLL
        for (int i = 0; i < 4; i++) quarter(x[i], x[4 + i], x[8 + i], x[12 + i]);
        UNROLL
        for (int i = 0; i < 4; i++) quarter(x[i], x[4 + (i + 1) % 4], x[8 + (i + 2) % 4], x[12 + (i + 3) % 4]);
    }
    UNROLL
    for (int i = 0; i < 16; i++) {
        const float unit = sub_rn((float)((x[i] + s[i]) >> 8) * (1.0f / 8388608.0f), 1.0f);
        if (block * 16 + i < n) out[block * 16 + i] = to_bf16(add_rn(middle, mul_rn(width, unit)));
    }
}

// count += how many of n elements differ, as bits. One CTA an SM or so, by stride.
KERNEL(256, 4) count_differences(const u16* left, const u16* right, u64 n, u32* count) {
    u32 found = 0;
    pdl_wait();
    pdl_launch();
    for (u64 i = (u64)blockIdx.x * 256 + threadIdx.x; i < n; i += (u64)gridDim.x * 256) found += left[i] != right[i];
    if (found) atomic_add(count, found);
}

// table[slot][index] = page for each {slot, index, page, 0}.
KERNEL(256, 4) update_tables(const int4* updates, int count, int* table, int max_pages) {
    const int i = blockIdx.x * 256 + threadIdx.x;
    pdl_wait();
    pdl_launch();
    if (i < count) {
        const int4 u = updates[i];
        table[(long long)u.x * max_pages + u.y] = u.z;
    }
}

// to[i] = from[rows[i]], rows of `width` elements, a multiple of 8; zeros where rows[i] < 0. grid: rows wanted.
KERNEL(256, 4) gather_rows(const u16* from, const int* rows, u16* to, int width) {
    pdl_wait();
    pdl_launch();
    const int row = rows[blockIdx.x];
    const uint4* src = (const uint4*)(from + (long long)(row < 0 ? 0 : row) * width);
    uint4* dst = (uint4*)(to + (long long)blockIdx.x * width);
    for (int i = threadIdx.x; i < width / 8; i += 256) dst[i] = row < 0 ? make_uint4(0, 0, 0, 0) : ld_once16(src + i);
}

// to[offsets[2 i + 1] + b] = from[offsets[2 i] + b] for `vectors` 16-byte vectors b of each piece i; offsets in bytes,
// multiples of 16. Any grid: blocks take parts of pieces in turn, each thread with several reads under way, for `to` may be
// far away.
KERNEL(512, 2) push_pieces(const u64* offsets, int count, int vectors, const uint4* from, uint4* to) {
    constexpr int LOADS = 8, PART = LOADS * 512;
    pdl_wait();
    pdl_launch();
    const int parts = (vectors + PART - 1) / PART;
    for (long long job = blockIdx.x; job < (long long)count * parts; job += gridDim.x) {
        const long long piece = job / parts;
        const int begin = (int)(job % parts) * PART, tid = threadIdx.x;
        const uint4* src = from + offsets[2 * piece] / 16 + begin;
        uint4* dst = to + offsets[2 * piece + 1] / 16 + begin;
        const int left = vectors - begin;
        uint4 v[LOADS];
#pragma unroll
        for (int i = 0; i < LOADS; i++)
            if (i * 512 + tid < left) v[i] = ld_once16(src + i * 512 + tid);
#pragma unroll
        for (int i = 0; i < LOADS; i++)
            if (i * 512 + tid < left) dst[i * 512 + tid] = v[i];
    }
}
