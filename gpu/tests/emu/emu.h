// A SIMT emulator: runs the CUDA sources of gpu/src/cuda/kernels on the CPU, so that they are tested where there is no
// GPU. This header gives the names of prims.cuh their meaning; hopper.h those of hopper.cuh; emu.cpp runs the threads.
//
// Modelled: a CTA's threads as coroutines that are run in random order, CTAs one after the other in random order; warp
// shuffles, ldmatrix, mma, movmatrix with the hardware's fragment layouts; named barriers; cp.async groups that land at
// any time from issue to wait; mbarriers and TMA boxes that land at any later time; wgmma that reads shared memory and
// writes its registers at any time from commit to wait. Shared memory starts as NaN and has bounds; global buffers end
// at an unmapped page; misaligned vector accesses and deadlocks end the program with a message.
//
// Not shown: what is slow; two CTAs at once (so missing fences between them); missing fences between the generic and
// the async proxy; a missing sync_warp (warp-wide operations imply it here); the last bits of approximate functions.
#pragma once
#define EMU 1
#include <cmath>
#include <cstdint>
#include <cstring>

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
struct uint4 {
    u32 x, y, z, w;
};
struct int4 {
    int x, y, z, w;
};
struct int2 {
    int x, y;
};
struct float2 {
    float x, y;
};
struct float4 {
    float x, y, z, w;
};
static inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace emu {
struct Index {
    u32 x, y, z;
};
struct Copy {  // a cp.async
    u32 to;
    const void* from;  // null for zeros
    bool landed;
    u64 group;
};
struct Thread;
struct Product {  // a wgmma
    void (*run)(const Product&);
    float* d;
    const u32* a_registers;
    u32 a[4][4];  // of the thread's quad, as issued
    u64 a_desc, b_desc;
    int add;
    u64 group;
};

extern Index thread_index, block_index, block_size, grid_size;
extern unsigned char* shared;
extern u32 shared_bytes;

[[noreturn]] void die(const char* what);
void yield();
void progress();
u32 random(u32 below);
int lane();
// The lane's place for what the warp exchanges.
unsigned char* place(int lane);
void warp_barrier();
void cta_barrier();
void named_barrier(int id, u32 threads);
void copy_issue(u32 to, const void* from);
void copy_commit();
void copy_wait(u32 pending);
void product_issue(const Product& p);
void product_commit();
void product_wait(u32 pending);
void mbar_init(u32 bar, int arrivals);
void mbar_arrive(u32 bar, u32 expected_bytes);
void mbar_wait(u32 bar, u32 parity);
// Lands at a random later time; `bytes` count for the barrier then.
void box_issue(u32 to, const void* map, u32 bar, const int (&at)[4]);

inline unsigned char* in_shared(u32 at, u32 bytes) {
    if (at > shared_bytes || bytes > shared_bytes - at) die("shared memory out of bounds");
    return shared + at;
}
template <class T> T of_lane(T mine, int from) {
    memcpy(place(lane()), &mine, sizeof mine);
    warp_barrier();
    T v;
    memcpy(&v, place(from & 31), sizeof v);
    warp_barrier();
    return v;
}
inline void aligned16(const void* p) {
    if ((uintptr_t)p & 15) die("a 16-byte access that is not aligned");
}
}  // namespace emu

#define threadIdx (emu::thread_index)
#define blockIdx (emu::block_index)
#define blockDim (emu::block_size)
#define gridDim (emu::grid_size)
#define DEV static inline
#define KERNEL(threads, ctas_per_sm) static void
#define DYN_SMEM(name) unsigned char* name = emu::shared
#define UNROLL
#define __grid_constant__

DEV u32 smem_u32(const void* p) { return (u32)((const unsigned char*)p - emu::shared); }
// The compiler is told to fuse nothing.
DEV float mul_rn(float a, float b) { return a * b; }
DEV float add_rn(float a, float b) { return a + b; }
DEV float sub_rn(float a, float b) { return a - b; }
DEV float fma_rn(float a, float b, float c) { return fmaf(a, b, c); }
DEV u32 f2u(float x) {
    u32 r;
    memcpy(&r, &x, 4);
    return r;
}
DEV float u2f(u32 x) {
    float r;
    memcpy(&r, &x, 4);
    return r;
}
DEV u16 to_bf16(float f) {
    u32 x = f2u(f);
    if ((x & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return (u16)((x + 0x7fff + ((x >> 16) & 1)) >> 16);
}
DEV u32 pack_bf16(float lo, float hi) { return (u32)to_bf16(lo) | ((u32)to_bf16(hi) << 16); }
DEV float ex2(float x) { return exp2f(x); }
DEV float lg2(float x) { return log2f(x); }
DEV float rsq(float x) { return 1.0f / sqrtf(x); }
DEV uint4 ld_once16(const void* p) {
    emu::aligned16(p);
    return *(const uint4*)p;
}
DEV uint4 ld_weights16(const void* p) { return ld_once16(p); }
DEV float2 ld_peer(const float2* p) { return *p; }
DEV float4 ld_peer(const float4* p) {
    emu::aligned16(p);
    return *p;
}
DEV void cp_async16(u32 to, const void* from, bool ok) {
    if (to & 15) emu::die("a cp.async to an address that is not aligned");
    if (ok) emu::aligned16(from);
    emu::copy_issue(to, ok ? from : nullptr);
}
DEV void cp_commit() { emu::copy_commit(); }
template <int N> DEV void cp_wait() { emu::copy_wait(N); }

// Lane l holds of 8x8 matrix i the elements (l / 4, l % 4 * 2 ..); its row r starts where lane 8 i + r says.
DEV void ldsm(u32 (&r)[4], u32 a, bool transposed) {
    if (a & 15) emu::die("an ldmatrix address that is not aligned");
    const int l = emu::lane();
    memcpy(emu::place(l), &a, 4);
    emu::warp_barrier();
    for (int i = 0; i < 4; i++) {
        u16 v[2];
        for (int j = 0; j < 2; j++) {
            const int row = transposed ? l % 4 * 2 + j : l / 4, col = transposed ? l / 4 : l % 4 * 2 + j;
            u32 at;
            memcpy(&at, emu::place(8 * i + row), 4);
            memcpy(&v[j], emu::in_shared(at + col * 2, 2), 2);
        }
        r[i] = v[0] | (u32)v[1] << 16;
    }
    emu::warp_barrier();
}
DEV void ldsm4(u32 (&r)[4], u32 a) { ldsm(r, a, false); }
DEV void ldsm4t(u32 (&r)[4], u32 a) { ldsm(r, a, true); }

namespace emu {
inline float half_of(u32 word, int high) { return u2f(high ? word & 0xffff0000u : word << 16); }
// Element (row % 8, k) of A in the registers of the lane that holds it: (row % 8) * 4 + k % 8 / 2.
inline float of_a(const u32* a, int row, int k) { return half_of(a[(row >= 8) + 2 * (k >= 8)], k & 1); }
}  // namespace emu
DEV void mma16816(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    struct Registers {
        u32 a[4], b[2];
    } mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}}, all[32];
    const int l = emu::lane();
    memcpy(emu::place(l), &mine, sizeof mine);
    emu::warp_barrier();
    for (int i = 0; i < 32; i++) memcpy(&all[i], emu::place(i), sizeof mine);
    emu::warp_barrier();
    for (int i = 0; i < 4; i++) {
        const int row = l / 4 + (i >= 2 ? 8 : 0), col = l % 4 * 2 + (i & 1);
        float sum = 0;
        for (int k = 0; k < 16; k++) {
            const float b = emu::half_of(all[col * 4 + k % 8 / 2].b[k >= 8], k & 1);
            sum += emu::of_a(all[row % 8 * 4 + k % 8 / 2].a, row, k) * b;
        }
        d[i] += sum;
    }
}
DEV u32 movm_t(u32 a) {
    const int l = emu::lane();
    memcpy(emu::place(l), &a, 4);
    emu::warp_barrier();
    u32 r = 0;
    for (int j = 0; j < 2; j++) {
        const int row = l % 4 * 2 + j, col = l / 4;
        u32 w;
        memcpy(&w, emu::place(row * 4 + col / 2), 4);
        r |= (col & 1 ? w >> 16 : w & 0xffff) << 16 * j;
    }
    emu::warp_barrier();
    return r;
}
template <class T> DEV T shfl_xor(T v, int mask) { return emu::of_lane(v, emu::lane() ^ mask); }
template <class T> DEV T shfl(T v, int from) { return emu::of_lane(v, from); }
DEV void sync_warp() { emu::warp_barrier(); }
DEV void sync_cta() { emu::cta_barrier(); }
DEV void bar_sync(int id, int n) { emu::named_barrier(id, n); }
DEV void fence_gpu() {}
DEV u32 atomic_inc(u32* p, u32 last) {
    const u32 was = *p;
    *p = was >= last ? 0 : was + 1;
    return was;
}
DEV u32 atomic_add(u32* p, u32 v) {
    const u32 was = *p;
    *p = was + v;
    return was;
}
DEV u32 atomic_max(u32* p, u32 v) {
    const u32 was = *p;
    if (v > was) *p = v;
    return was;
}
DEV void trap() { emu::die("trap"); }
DEV void pdl_wait() {}
DEV void pdl_launch() {}
#include "prims.cuh"
