// Primitives that every kernel is written in: PTX on the device; under the CPU emulator (EMU, gpu/tests/emu) the same
// names in C++. No system header is included, so NVRTC needs no include path.
//
// Rules of all kernels here:
// 1. bf16 in memory (as u16), f32 in arithmetic, sums in an order that depends on the row alone.
// 2. Every thread calls `pdl_wait` before it touches what the kernel in front wrote or still reads, and `pdl_launch` only
//    after it. So a grid starts when the kernel in front of the one in front has ended, and what is that old may be read
//    at once. A thread that leaves without waiting would break this for those behind.
// 3. A whole row is right or refused: sizes that a kernel cannot serve trap.
#ifndef PRIMS_CUH
#define PRIMS_CUH
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifndef EMU
#define DEV __device__ __forceinline__
#define KERNEL(threads, ctas_per_sm) extern "C" __global__ void __launch_bounds__(threads, ctas_per_sm)
#define DYN_SMEM(name) extern __shared__ __align__(1024) unsigned char name[]
#define UNROLL _Pragma("unroll")

DEV u32 smem_u32(const void* p) { return (u32)__cvta_generic_to_shared(p); }
// Rounded one by one, in every place alike: the compiler fuses and parts none of these.
DEV float mul_rn(float a, float b) { return __fmul_rn(a, b); }
DEV float add_rn(float a, float b) { return __fadd_rn(a, b); }
DEV float sub_rn(float a, float b) { return __fsub_rn(a, b); }
DEV float fma_rn(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEV u32 f2u(float x) { return __float_as_uint(x); }
DEV float u2f(u32 x) { return __uint_as_float(x); }

// Two f32 to packed bf16, `lo` in the low half, to nearest even.
DEV u32 pack_bf16(float lo, float hi) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}
DEV u16 to_bf16(float x) {
    u16 r;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(x));
    return r;
}
DEV float ex2(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
DEV float lg2(float x) {
    float r;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
DEV float rsq(float x) {
    float r;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

// 16 bytes of activations, pages or logits, read once. Not ld.global.nc: with programmatic launch this grid has started
// before the one in front has written them.
DEV uint4 ld_once16(const void* p) {
    uint4 v;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}
// 16 bytes of weights, which nobody writes. L2::evict_first would need a createpolicy hint on sm_90.
DEV uint4 ld_weights16(const void* p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}
// What another CTA of this grid wrote: past L1, which may hold the line from before.
DEV float2 ld_peer(const float2* p) {
    float2 v;
    asm volatile("ld.global.cg.v2.f32 {%0,%1}, [%2];" : "=f"(v.x), "=f"(v.y) : "l"(p) : "memory");
    return v;
}
DEV float4 ld_peer(const float4* p) {
    float4 v;
    asm volatile("ld.global.cg.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(p) : "memory");
    return v;
}

// 16 bytes to shared memory, zeros if not `ok` (the source is then not read).
DEV void cp_async16(u32 dst, const void* src, bool ok) {
    int n = ok ? 16 : 0;
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(dst), "l"(src), "r"(n) : "memory");
}
DEV void cp_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
template <int N> DEV void cp_wait() { asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory"); }

DEV void ldsm4(u32 (&r)[4], u32 a) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(a));
}
DEV void ldsm4t(u32 (&r)[4], u32 a) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(a));
}
// d[16 x 8] += a[16 x 16] b[16 x 8]
DEV void mma16816(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEV u32 movm_t(u32 a) {
    u32 r;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(a));
    return r;
}

template <class T> DEV T shfl_xor(T v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
template <class T> DEV T shfl(T v, int lane) { return __shfl_sync(0xffffffffu, v, lane); }
DEV void sync_warp() { __syncwarp(); }
DEV void sync_cta() { __syncthreads(); }
DEV void bar_sync(int id, int n) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n) : "memory"); }
DEV void fence_gpu() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }
// Adds 1, or goes back to 0 from `last`. Returns what was there.
DEV u32 atomic_inc(u32* p, u32 last) { return atomicInc(p, last); }
DEV u32 atomic_add(u32* p, u32 v) { return atomicAdd(p, v); }
DEV u32 atomic_max(u32* p, u32 v) { return atomicMax(p, v); }
DEV void trap() { asm volatile("trap;"); }
DEV void pdl_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
// The next kernel of the stream may start its prologue.
DEV void pdl_launch() { asm volatile("griddepcontrol.launch_dependents;"); }
#endif  // !EMU

DEV float bf_lo(u32 x) { return u2f(x << 16); }
DEV float bf_hi(u32 x) { return u2f(x & 0xffff0000u); }
DEV float from_bf16(u16 x) { return u2f((u32)x << 16); }
DEV float round_bf16(float x) { return from_bf16(to_bf16(x)); }
DEV float max_f(float a, float b) { return a > b ? a : b; }
DEV int min_i(int a, int b) { return a < b ? a : b; }

// Stands for minus infinity where differences of two of them are taken.
#define NEG_INF (-1e30f)
#define LOG2_E 1.442695041f
#define LN_2 0.693147181f
#endif
