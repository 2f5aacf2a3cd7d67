// The meaning of hopper.cuh under the emulator: see emu.h. Accumulators of a wgmma live in the issuing thread's frame
// and are written when the product is carried out, which is at some time from its commit to the wait for it.
#pragma once
#include "emu.h"

struct TensorMap {
    u64 words[16];
};
DEV void mbar_init(u32 bar, int arrivals) { emu::mbar_init(bar, arrivals); }
DEV void mbar_expect_tx(u32 bar, u32 bytes) { emu::mbar_arrive(bar, bytes); }
DEV void mbar_arrive(u32 bar) { emu::mbar_arrive(bar, 0); }
DEV void mbar_wait(u32 bar, u32 parity) { emu::mbar_wait(bar, parity); }
DEV void fence_mbar_init() {}
DEV void fence_async_smem() {}
DEV void tma_4d(u32 to, const TensorMap* map, u32 bar, int c0, int c1, int c2, int c3) {
    const int at[4] = {c0, c1, c2, c3};
    emu::box_issue(to, map, bar, at);
}
DEV void wgmma_fence() {}
DEV void wgmma_commit() { emu::product_commit(); }
template <int N> DEV void wgmma_wait() { emu::product_wait(N); }
template <int C> DEV void hold(float (&)[C]) {}
template <int R> DEV void registers_up() {}
template <int R> DEV void registers_down() {}

namespace emu {
struct Operand {
    u32 start, lbo, sbo;
    explicit Operand(u64 d) {
        start = (u32)(d & 0x3fff) << 4;
        lbo = (u32)(d >> 16 & 0x3fff) << 4;
        sbo = (u32)(d >> 32 & 0x3fff) << 4;
        if (d >> 62 != 1) die("a wgmma descriptor without 128-byte swizzle");
    }
    static float at(u32 a) {
        a ^= (a >> 7 & 7) << 4;
        u16 v;
        memcpy(&v, in_shared(a, 2), 2);
        return u2f((u32)v << 16);
    }
    float k_major(int row, int k) const { return at(start + row / 8 * sbo + row % 8 * 128 + k * 2); }
    float mn_major(int k, int n) const {
        return at(start + n / 64 * lbo + k / 8 * sbo + k % 8 * 128 + n % 64 * 2);
    }
};
template <int N> void run_ss(const Product& p) {
    const Operand a(p.a_desc), b(p.b_desc);
    const int l = lane(), warp = threadIdx.x % 128 / 32;
    float rows[2][16];
    for (int h = 0; h < 2; h++)
        for (int k = 0; k < 16; k++) rows[h][k] = a.k_major(warp * 16 + l / 4 + h * 8, k);
    for (int col = 0; col < N; col++) {
        if (col % 8 / 2 != l % 4) continue;
        float cols[16];
        for (int k = 0; k < 16; k++) cols[k] = b.k_major(col, k);
        for (int h = 0; h < 2; h++) {
            float sum = 0;
            for (int k = 0; k < 16; k++) sum += rows[h][k] * cols[k];
            float& d = p.d[col / 8 * 4 + h * 2 + (col & 1)];
            d = p.add ? d + sum : sum;
        }
    }
}
inline void run_rs128(const Product& p) {
    const Operand b(p.b_desc);
    const int l = lane();
    if (memcmp(p.a[l % 4], p.a_registers, 16) != 0) die("registers of a wgmma in flight were changed");
    for (int col = 0; col < 128; col++) {
        if (col % 8 / 2 != l % 4) continue;
        float cols[16];
        for (int k = 0; k < 16; k++) cols[k] = b.mn_major(k, col);
        for (int h = 0; h < 2; h++) {
            float sum = 0;
            for (int k = 0; k < 16; k++) sum += of_a(p.a[k % 8 / 2], h * 8, k) * cols[k];
            p.d[col / 8 * 4 + h * 2 + (col & 1)] += sum;
        }
    }
}
}  // namespace emu
template <int N> DEV void wgmma_ss(float (&d)[N / 2], u64 a, u64 b, int add) {
    emu::Product p = {};
    p.run = emu::run_ss<N>, p.d = d, p.a_desc = a, p.b_desc = b, p.add = add;
    emu::product_issue(p);
}
DEV void wgmma_rs128(float (&d)[64], const u32 (&a)[4], u64 b) {
    emu::Product p = {};
    p.run = emu::run_rs128, p.d = d, p.a_registers = a, p.b_desc = b;
    const int l = emu::lane();
    memcpy(emu::place(l), a, 16);
    emu::warp_barrier();
    for (int i = 0; i < 4; i++) memcpy(p.a[i], emu::place(l / 4 * 4 + i), 16);
    emu::warp_barrier();
    emu::product_issue(p);
}
#include "hopper.cuh"
