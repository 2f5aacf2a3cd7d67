// From bf16 logits [rows][stride] to tokens. Greedy, or an exact draw by Gumbel noise: the largest of logit /
// temperature + noise is a draw from the softmax. The noise is a function of (seed, position, token), so a draw depends
// on nothing else; with top-k, top-p or min-p the same draw is among the tokens that are kept.
//
// What is kept is a prefix of the tokens in the order (larger logit first, then lower id), whichever filter ends it: no
// more than top_k tokens; a token only if the probability of those before it is at most top_p; none less probable than
// min_p of the first. A bf16 logit has 65280 finite values, so counting the tokens at each value finds the end of the
// prefix exactly, without a sort and without a float sum whose order could vary.
#include "prims.cuh"

// What a row's sampling asks for. Rows with slot < 0 are padding.
struct SampleRow {
    float temperature;  // below 1e-6: greedy
    float top_p, min_p; // 1 and 0 for none
    u32 top_k;          // 0 for none
    u32 seed_lo, seed_hi;
    u32 position;       // the new token's index in its sequence
    int slot;           // where `last` takes the token
    u32 flags;
};
#define HOST_CHOOSES 1u  // the host will choose from the logits (penalties, bias): only `finite` is written

DEV bool is_greedy(const SampleRow& r) { return r.temperature < 1e-6f || r.top_k == 1; }
DEV bool is_filtered(const SampleRow& r) {
    return !is_greedy(r) && !(r.flags & HOST_CHOOSES) && (r.top_k > 0 || r.top_p < 1.f || r.min_p > 0.f);
}

struct Noise {
    u32 base, twist;
};
DEV u32 mix32(u32 x, u32 twist) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= (x >> 15) ^ twist;
    x *= 0x846ca68bu;
    return x ^ (x >> 16);
}
DEV Noise noise_of(const SampleRow& r) {
    Noise n;
    n.base = mix32(r.seed_lo, mix32(r.position + 0x9e3779b9u, r.seed_hi));
    n.twist = mix32(n.base ^ r.seed_hi, r.position);
    return n;
}
// -ln(-ln(1 - v)), v uniform in (0, 1) with 32 bits. What wins a draw is large noise, from v near 0: there floats are
// dense, and the series keeps -ln(1 - v) exact where a logarithm near 1 would not.
DEV float gumbel(Noise n, u32 token) {
    const float v = ((float)mix32(n.base + token * 0x85ebca6bu, n.twist) + 0.5f) * (1.0f / 4294967296.0f);
    const float near = v * (1.f + v * (0.5f + v * (0.333333333f + v * 0.25f)));
    const float e = v < 0.03125f ? near : -LN_2 * lg2(max_f(1.f - v, 1e-9f));
    return -LN_2 * lg2(e);
}

struct Best {
    float score;
    u32 token;
};
#define LOWEST u2f(0xff800000u) // minus infinity
#define NO_TOKEN 0xfffffffeu   // of nothing looked at
#define NOT_FINITE 0xffffffffu // of a row with a logit that is no finite number
DEV Best better(Best a, Best b) {
    if (a.token == NOT_FINITE || b.token == NOT_FINITE) return Best{0.f, NOT_FINITE};
    return (b.score > a.score || (b.score == a.score && b.token < a.token)) ? b : a;
}
DEV Best warp_best(Best b) {
    UNROLL
    for (int d = 16; d; d >>= 1) b = better(b, Best{shfl_xor(b.score, d), shfl_xor(b.token, d)});
    return b;
}
// `places` has one for each warp. Thread 0 has the result.
DEV Best cta_best(Best b, Best* places) {
    b = warp_best(b);
    sync_cta();
    if ((threadIdx.x & 31) == 0) places[threadIdx.x >> 5] = b;
    sync_cta();
    if (threadIdx.x == 0)
        for (u32 w = 1; w < blockDim.x / 32; w++) b = better(b, places[w]);
    return b;
}
DEV bool is_finite(float x) { return (f2u(x) & 0x7f800000u) != 0x7f800000u; }
DEV float element(const u32 (&words)[4], int j) { return (j & 1) ? bf_hi(words[j >> 1]) : bf_lo(words[j >> 1]); }

DEV void finish(const SampleRow& r, int row, Best b, int* next, int* last, int* finite) {
    const bool ok = b.token < NO_TOKEN;
    finite[row] = ok ? 1 : 0;
    if (r.flags & HOST_CHOOSES) return;
    next[row] = ok ? (int)b.token : 0;
    last[r.slot] = ok ? (int)b.token : 0;
}

// Rows without filters. next[row] and last[slot] get the token, finite[row] is 0 if a logit of the row is none (the
// token is 0 then). Of equals the lower token wins. The CTA of a row that finishes last chooses.
// part [rows][gridDim.x]; arrived [rows], zero at the start and at the end. V tokens, stride a multiple of 8 and at
// least V. vectors = the logits a CTA looks at, in eights, gridDim.x * vectors * 8 >= V.
// grid: (CTAs a row, rows). block: 512. Dynamic shared memory: 128 bytes.
KERNEL(512, 2) sample_greedy_gumbel(const u16* logits, const SampleRow* rows, float2* part, u32* arrived, int* next,
                                    int* last, int* finite, int V, int stride, int vectors) {
    DYN_SMEM(smem);
    const int row = blockIdx.y;
    pdl_wait();
    pdl_launch();
    const SampleRow r = rows[row];
    if (r.slot < 0 || is_filtered(r)) return;
    const bool draws = !is_greedy(r);
    const float inverse = draws ? 1.0f / r.temperature : 1.0f;
    const Noise noise = noise_of(r);
    const u16* from = logits + (long long)row * stride;
    const int v0 = blockIdx.x * vectors, v1 = min_i((V + 7) >> 3, v0 + vectors);
    Best b = {LOWEST, NO_TOKEN};
    for (int i = v0 + threadIdx.x; i < v1; i += 512) {
        const uint4 x = ld_once16(from + i * 8);
        const u32 words[4] = {x.x, x.y, x.z, x.w};
        UNROLL
        for (int j = 0; j < 8; j++) {
            const u32 token = i * 8 + j;
            const float logit = element(words, j);
            if (token >= (u32)V) continue;
            const float score = draws ? logit * inverse + gumbel(noise, token) : logit;
            b = better(b, Best{score, is_finite(logit) ? token : NOT_FINITE});
        }
    }
    b = cta_best(b, (Best*)smem);
    if (threadIdx.x != 0) return;
    float2* parts = part + (long long)row * gridDim.x;
    parts[blockIdx.x] = make_float2(b.score, u2f(b.token));
    fence_gpu();
    if (atomic_inc(arrived + row, gridDim.x - 1) != gridDim.x - 1) return;
    fence_gpu();
    b = Best{LOWEST, NO_TOKEN};
    for (u32 k = 0; k < gridDim.x; k++) {
        const float2 p = ld_peer(parts + k);
        b = better(b, Best{p.x, f2u(p.y)});
    }
    finish(r, row, b, next, last, finite);
}

// ---- counting logits by value ----

#define COUNT_THREADS 1024
#define BINS_A_THREAD 47  // odd: neighbours' bins lie in different banks of shared memory
#define BINS (COUNT_THREADS * BINS_A_THREAD)
#define WARPS (COUNT_THREADS / 32)
#define COUNTS_BYTES (BINS * 4)
#define SHARED_BYTES (COUNTS_BYTES + 1024)

// Finite logits in their order, as 0 .. 65279 and holes.
DEV u32 key_of(float logit) {
    const u32 b = logit == 0.f ? 0u : f2u(logit) >> 16;  // -0 is 0
    return (b & 0x8000u) ? 0xffffu ^ b : b | 0x8000u;
}
DEV float logit_of(u32 key) { return u2f(((key & 0x8000u) ? key & 0x7fffu : 0xffffu ^ key) << 16); }

// Bin b counts the logits b steps of bf16 below the largest. The 48128 bins reach from any logit below 2^124 to
// -2^123 and less; what lies further down (a mass of nothing unless the temperature is astronomical) is left out.
struct Counts {
    u32* bins;
    double* sums;  // one a warp
    u32* numbers;  // one a warp
    Best* best;    // one a warp; shares its place with `sums`
    u32* cut;      // [2]
    u32 top;       // the largest logit's key
};

// Thread 0..: every thread gets the same answer. False if a logit is not finite.
DEV bool count_logits(Counts& c, unsigned char* smem, const u16* from, int V) {
    c.bins = (u32*)smem;
    c.sums = (double*)(smem + COUNTS_BYTES);
    c.best = (Best*)c.sums;
    c.numbers = (u32*)(c.sums + WARPS);
    c.cut = c.numbers + WARPS;
    for (int i = threadIdx.x; i < BINS; i += COUNT_THREADS) c.bins[i] = 0;
    Best b = {LOWEST, NO_TOKEN};
    for (int i = threadIdx.x; i < (V + 7) >> 3; i += COUNT_THREADS) {
        const uint4 x = ld_once16(from + i * 8);
        const u32 words[4] = {x.x, x.y, x.z, x.w};
        UNROLL
        for (int j = 0; j < 8; j++) {
            const float logit = element(words, j);
            if (i * 8 + j < V) b = better(b, Best{logit, is_finite(logit) ? (u32)(i * 8 + j) : NOT_FINITE});
        }
    }
    b = cta_best(b, c.best);
    if (threadIdx.x == 0) {
        c.cut[0] = b.token;
        c.cut[1] = key_of(b.score);
    }
    sync_cta();
    const bool ok = c.cut[0] < NO_TOKEN;
    c.top = c.cut[1];
    sync_cta();
    if (!ok) return false;
    for (int i = threadIdx.x; i < (V + 7) >> 3; i += COUNT_THREADS) {
        const uint4 x = *(const uint4*)(from + i * 8);
        const u32 words[4] = {x.x, x.y, x.z, x.w};
        UNROLL
        for (int j = 0; j < 8; j++) {
            const u32 bin = c.top - key_of(element(words, j));
            if (i * 8 + j < V && bin < BINS) atomic_add(c.bins + bin, 1);
        }
    }
    sync_cta();
    return true;
}

DEV float mass_of(const Counts& c, u32 bin, float inverse) {
    return ex2((logit_of(c.top - bin) - logit_of(c.top)) * inverse * LOG2_E);
}

// What lies before this thread's bins and in all: numbers of tokens and their masses, added up in the order of bins.
struct Before {
    double mass, total;
    u32 count;
};
DEV Before scan(const Counts& c, float inverse) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    double mass = 0.0;
    u32 count = 0;
    for (int i = 0; i < BINS_A_THREAD; i++) {
        const u32 bin = threadIdx.x * BINS_A_THREAD + i, n = c.bins[bin];
        if (n == 0) continue;
        mass += (double)n * (double)mass_of(c, bin, inverse);
        count += n;
    }
    double mass_to = mass;
    u32 count_to = count;
    UNROLL
    for (int d = 1; d < 32; d <<= 1) {
        const double m = shfl(mass_to, lane >= d ? lane - d : lane);
        const u32 n = shfl(count_to, lane >= d ? lane - d : lane);
        if (lane >= d) mass_to += m, count_to += n;
    }
    if (lane == 31) {
        c.sums[warp] = mass_to;
        c.numbers[warp] = count_to;
    }
    sync_cta();
    Before b = {0.0, 0.0, 0};
    for (int w = 0; w < WARPS; w++) {
        if (w < warp) b.mass += c.sums[w], b.count += c.numbers[w];
        b.total += c.sums[w];
    }
    b.mass += mass_to - mass;
    b.count += count_to - count;
    sync_cta();
    return b;
}

// The end of the kept prefix: every token in a bin before `bin`, and the first `ties` of those in it, by id.
struct Cut {
    u32 bin, ties;
};
DEV Cut find_cut(const Counts& c, u32 limit, float top_p, float min_p, float inverse) {
    const Before before = scan(c, inverse);
    const double wanted = (double)top_p * before.total;
    double mass = before.mass;
    u32 count = before.count, cut = BINS, ties = 0;
    for (int i = 0; i < BINS_A_THREAD && cut == BINS; i++) {
        const u32 bin = threadIdx.x * BINS_A_THREAD + i, n = c.bins[bin];
        if (n == 0) continue;
        const float each = mass_of(c, bin, inverse);
        u32 keep = count >= limit ? 0 : limit - count < n ? limit - count : n;
        if (each <= 0.f || each < min_p) {
            keep = 0;
        } else if (top_p < 1.f && mass > wanted) {
            keep = 0;
        } else if (top_p < 1.f) {
            const double fit = (wanted - mass) / (double)each;  // tokens after which the probability is reached
            if (fit < (double)keep - 1.0) keep = (u32)fit + 1;
        }
        if (keep < n) cut = bin, ties = keep;
        mass += (double)n * (double)each;
        count += n;
    }
    if (threadIdx.x == 0) c.cut[0] = 0;
    sync_cta();
    if (cut < BINS) atomic_max(c.cut, BINS - cut);  // the first bin that is not kept whole
    sync_cta();
    const u32 first = BINS - c.cut[0];
    if (cut == first && first < BINS) c.cut[1] = ties;
    sync_cta();
    Cut result = {first, first < BINS ? c.cut[1] : 0};
    sync_cta();
    return result;
}

// The id below which tokens in the cut's bin are kept.
DEV u32 tie_end(const Counts& c, Cut cut, const u16* from, int V) {
    if (cut.ties == 0 || cut.bin >= BINS) return 0;
    if (cut.ties == c.bins[cut.bin]) return V;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int each = (V + COUNT_THREADS - 1) / COUNT_THREADS, t0 = threadIdx.x * each, t1 = min_i(V, t0 + each);
    u32 count = 0;
    for (int t = t0; t < t1; t++) count += c.top - key_of(from_bf16(from[t])) == cut.bin;
    u32 to = count;
    UNROLL
    for (int d = 1; d < 32; d <<= 1) {
        const u32 n = shfl(to, lane >= d ? lane - d : lane);
        if (lane >= d) to += n;
    }
    if (lane == 31) c.numbers[warp] = to;
    sync_cta();
    u32 before = to - count;
    for (int w = 0; w < warp; w++) before += c.numbers[w];
    if (before < cut.ties && before + count >= cut.ties) {
        for (int t = t0; t < t1; t++) {
            before += c.top - key_of(from_bf16(from[t])) == cut.bin;
            if (before == cut.ties) {
                c.cut[0] = t + 1;
                break;
            }
        }
    }
    sync_cta();
    return c.cut[0];
}
DEV bool is_kept(const Counts& c, Cut cut, u32 end, float logit, u32 token) {
    const u32 bin = c.top - key_of(logit);
    return bin < cut.bin ? bin < BINS : bin == cut.bin && token < end;
}

// Rows with top_k, top_p or min_p; others leave at once. Parameters as in sample_greedy_gumbel.
// grid: rows. block: 1024. Dynamic shared memory: 193536 bytes.
KERNEL(1024, 1) sample_filtered(const u16* logits, const SampleRow* rows, int* next, int* last, int* finite, int V,
                                int stride) {
    DYN_SMEM(smem);
    const int row = blockIdx.x;
    pdl_wait();
    pdl_launch();
    const SampleRow r = rows[row];
    if (r.slot < 0 || !is_filtered(r)) return;
    const u16* from = logits + (long long)row * stride;
    Counts c;
    Best b = {LOWEST, NOT_FINITE};
    if (count_logits(c, smem, from, V)) {
        const float inverse = 1.0f / r.temperature;
        const Cut cut = find_cut(c, r.top_k > 0 ? r.top_k : (u32)V, r.top_p, r.min_p, inverse);
        const u32 end = tie_end(c, cut, from, V);
        const Noise noise = noise_of(r);
        b.token = NO_TOKEN;
        for (int i = threadIdx.x; i < (V + 7) >> 3; i += COUNT_THREADS) {
            const uint4 x = *(const uint4*)(from + i * 8);
            const u32 words[4] = {x.x, x.y, x.z, x.w};
            UNROLL
            for (int j = 0; j < 8; j++) {
                const u32 token = i * 8 + j;
                const float logit = element(words, j);
                if (token < (u32)V && is_kept(c, cut, end, logit, token))
                    b = better(b, Best{logit * inverse + gumbel(noise, token), token});
            }
        }
        b = cta_best(b, c.best);
    }
    if (threadIdx.x == 0) finish(r, row, b, next, last, finite);
}
