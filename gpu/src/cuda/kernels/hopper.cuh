// What only sm_90a has: mbarriers, TMA tiled loads, wgmma. Pasted behind prims.cuh.
#ifndef HOPPER_CUH
#define HOPPER_CUH
#ifndef EMU
struct __align__(128) TensorMap {
    u64 words[16];
};

DEV void mbar_init(u32 bar, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(arrivals) : "memory");
}
DEV void mbar_expect_tx(u32 bar, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
DEV void mbar_arrive(u32 bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
// Waits for the phase of this parity to end. Bounded: a wait that never ends traps instead of hanging the GPU. The trap
// is inside the asm on purpose: as C it costs ptxas registers, and it then serialises the wgmmas (C7512).
DEV void mbar_wait(u32 bar, u32 parity) {
    asm volatile("{\n"
                 ".reg .pred ready, late;\n"
                 ".reg .u32 tries;\n"
                 "mov.u32 tries, 0;\n"
                 "TRY:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 ready, [%0], %1;\n"
                 "@ready bra READY;\n"
                 "add.u32 tries, tries, 1;\n"
                 "setp.gt.u32 late, tries, 4000000;\n"
                 "@late trap;\n"
                 "bra TRY;\n"
                 "READY:\n"
                 "}\n" ::"r"(bar),
                 "r"(parity)
                 : "memory");
}
DEV void fence_mbar_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// Makes plain writes to shared memory visible to TMA and wgmma.
DEV void fence_async_smem() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// Loads the box of `map` at these element coordinates; what lies outside of the tensor arrives as zeros.
DEV void tma_4d(u32 dst, const TensorMap* map, u32 bar, int c0, int c1, int c2, int c3) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
                 "[%1, {%3, %4, %5, %6}], [%2];" ::"r"(dst),
                 "l"(map), "r"(bar), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
                 : "memory");
}

DEV void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEV void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> DEV void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }
// Keeps the compiler from moving reads of accumulators above a wait, or writes below an issue.
template <int C> DEV void hold(float (&d)[C]) {
    UNROLL
    for (int i = 0; i < C; i++) asm volatile("" : "+f"(d[i])::"memory");
}
template <int R> DEV void registers_up() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(R)); }
template <int R> DEV void registers_down() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(R)); }

#define ACC4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define ACC16(d, i) ACC4(d, i), ACC4(d, i + 4), ACC4(d, i + 8), ACC4(d, i + 12)
#define ACC32(d) ACC16(d, 0), ACC16(d, 16)
#define ACC64(d) ACC32(d), ACC16(d, 32), ACC16(d, 48)
#define REGS4 "%0, %1, %2, %3"
#define REGS8 REGS4 ", %4, %5, %6, %7"
#define REGS16 REGS8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define REGS32 REGS16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define REGS64                                                                                             \
    REGS32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"              \
           ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// d[64 x N] (+)= a[64 x 16] b[N x 16]^T, both K-major in shared memory; `add` 0 starts from zero.
template <int N> DEV void wgmma_ss(float (&d)[N / 2], u64 a, u64 b, int add);
#define WGMMA_SS(N, C, REGS, A, B, P, ACC)                                                                  \
    template <> DEV void wgmma_ss<N>(float (&d)[C], u64 a, u64 b, int add) {                                \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #P ", 0;\n"                                       \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" REGS "}, %" #A ", %" #B   \
                     ", p, 1, 1, 0, 0;\n}\n"                                                                \
                     : ACC                                                                                  \
                     : "l"(a), "l"(b), "r"(add));                                                           \
    }
#define COMMA ,
WGMMA_SS(8, 4, REGS4, 4, 5, 6, ACC4(d, 0))
WGMMA_SS(16, 8, REGS8, 8, 9, 10, ACC4(d, 0) COMMA ACC4(d, 4))
WGMMA_SS(32, 16, REGS16, 16, 17, 18, ACC16(d, 0))
WGMMA_SS(64, 32, REGS32, 32, 33, 34, ACC32(d))
WGMMA_SS(128, 64, REGS64, 64, 65, 66, ACC64(d))

// d[64 x 128] += a[64 x 16] b[16 x 128], a in registers, b in shared memory with its rows (k) far apart (MN-major).
DEV void wgmma_rs128(float (&d)[64], const u32 (&a)[4], u64 b) {
    asm volatile("{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" REGS64
                 "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}\n"
                 : ACC64(d)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
#endif  // !EMU

// The descriptor of an operand in shared memory with 128-byte swizzle: `sbo` bytes between groups of 8 rows; `lbo`
// bytes between columns of 64 elements, which only an MN-major operand has more than one of.
DEV u64 smem_desc(u32 addr, u32 lbo, u32 sbo) {
    return (u64)((addr & 0x3ffff) >> 4) | ((u64)(lbo >> 4) << 16) | ((u64)(sbo >> 4) << 32) | (1ull << 62);
}
#endif
