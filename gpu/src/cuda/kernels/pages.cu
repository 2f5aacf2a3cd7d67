// Moving and filling memory: KV pages between devices and to mapped host memory, weights from a seed.
#include "prims.cuh"

// Copies `bytes` (a multiple of 16) from pairs[i].y to pairs[i].x, for i < count; all aligned to 16, none overlapping.
// Either end may be another device's memory or mapped host memory. On H200s 8 CTAs fill PCIe and 16 to 32 NVLink; more
// only take multiprocessors from a forward.
// grid: the CTAs to spend. block: 512.
KERNEL(512, 1) copy_pages(const ulonglong2* pairs, int count, long long bytes) {
    const long long vectors = bytes >> 4;
    pdl_wait();
    pdl_launch();
    for (int page = blockIdx.x; page < count; page += gridDim.x) {
        uint4* to = (uint4*)pairs[page].x;
        const uint4* from = (const uint4*)pairs[page].y;
        long long i = threadIdx.x;
        for (; i + 3 * 512 < vectors; i += 4 * 512) {  // four loads in flight a thread
            const uint4 a = ld_once16(from + i), b = ld_once16(from + i + 512);
            const uint4 c = ld_once16(from + i + 1024), d = ld_once16(from + i + 1536);
            st_cs16(to + i, a);
            st_cs16(to + i + 512, b);
            st_cs16(to + i + 1024, c);
            st_cs16(to + i + 1536, d);
        }
        for (; i < vectors; i += 512) st_cs16(to + i, ld_once16(from + i));
    }
}

DEV u32 mix32(u32 x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ (x >> 16);
}

// out[i] = middle + width * u, u uniform in [-1, 1) and a function of (seed, i) alone.
// grid: any. block: 256.
KERNEL(256, 4) fill_bf16(u16* out, u64 n, u64 seed, float middle, float width) {
    const u32 key = mix32((u32)seed ^ mix32((u32)(seed >> 32) + 0x9e3779b9u));
    pdl_wait();
    pdl_launch();
    for (u64 i = (u64)blockIdx.x * 256 + threadIdx.x; i < n; i += (u64)gridDim.x * 256) {
        const u32 bits = mix32((u32)i * 0x85ebca6bu + mix32(key + (u32)(i >> 32)));
        out[i] = to_bf16(middle + width * ((float)(int)bits * (1.0f / 2147483648.0f)));
    }
}
