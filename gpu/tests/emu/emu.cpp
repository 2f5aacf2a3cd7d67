// Runs the threads of emu.h, and jobs: a job comes on standard input, the buffers as its launches left them go to
// standard output. Everything is 64-bit little-endian words and raw bytes; gpu/tests/kernels/emu.rs writes them.
#include "run.h"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

#if defined(__x86_64__) && defined(__linux__)
// Saves what a function call must keep and changes stacks: swapcontext would make a system call each time.
extern "C" void emu_switch(void** save, void* load);
asm(R"(
.text
.globl emu_switch
.type emu_switch,@function
emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
struct Context {
    void* stack_pointer;
    void start(char* stack, size_t bytes, void (*entry)()) {
        void** top = (void**)(stack + bytes - 64);
        *--top = nullptr;  // the entry sees a stack as after a call
        *--top = (void*)entry;
        for (int i = 0; i < 6; i++) *--top = nullptr;
        stack_pointer = top;
    }
    void to(Context& other) { emu_switch(&stack_pointer, other.stack_pointer); }
};
#else
#include <ucontext.h>
struct Context {
    ucontext_t u;
    void start(char* stack, size_t bytes, void (*entry)()) {
        getcontext(&u);
        u.uc_stack.ss_sp = stack;
        u.uc_stack.ss_size = bytes;
        u.uc_link = nullptr;
        makecontext(&u, entry, 0);
    }
    void to(Context& other) { swapcontext(&u, &other.u); }
};
#endif

namespace emu {
struct Barrier {
    u32 count = 0, generation = 0;
};
struct MemoryBarrier {
    int arrivals = 0, pending = 0;
    long long bytes = 0;
    u32 phase = 0;
};
struct Thread {
    Context context;
    bool is_done;
    u32 index, warp;
    std::vector<Copy> copies;
    u64 copy_group;
    std::vector<Product> products;
    u64 product_group, product_done;
};
struct Box {
    u32 to, bar;
    u64 map[MAP_END];  // a copy: the parameter is in the frame of a thread that may leave first
    int at[4];
};

Index thread_index, block_index, block_size, grid_size;
unsigned char* shared;
u32 shared_bytes;
static std::vector<unsigned char> shared_memory, exchange;
static std::vector<Thread> threads;
static std::vector<char*> stacks;
static std::vector<Barrier> warp_barriers;
static std::vector<u32> warp_live;
static std::map<int, Barrier> barriers;
static std::map<u32, MemoryBarrier> memory_barriers;
static std::vector<Box> boxes;
static Thread* current;
static Context scheduler;
static const Launch* launch;
static u32 cta_live;
static u64 progress_count;
static u64 state = 1;
static const size_t STACK = 128 << 10;

void die(const char* what) {
    fprintf(stderr, "emulator: %s (kernel %s, block %u,%u, thread %u)\n", what, launch ? launch->name : "none",
            block_index.x, block_index.y, current ? current->index : 0);
    fflush(stderr);
    _exit(3);
}
u32 random(u32 below) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (u32)((state >> 33) % below);
}
void progress() { progress_count++; }
void yield() { current->context.to(scheduler); }
int lane() { return current->index & 31; }
unsigned char* place(int lane) { return &exchange[(current->warp * 32 + lane) * 64]; }

// `live` may fall while threads wait: those that have left count as arrived.
static void wait_at(Barrier& b, const u32& live) {
    const u32 generation = b.generation;
    b.count++;
    progress();
    while (b.generation == generation) {
        if (b.count >= live) {
            b.count = 0;
            b.generation++;
            return;
        }
        yield();
    }
}
void warp_barrier() { wait_at(warp_barriers[current->warp], warp_live[current->warp]); }
void cta_barrier() { wait_at(barriers[0], cta_live); }
void named_barrier(int id, u32 threads) { wait_at(barriers[id], threads); }

static void land(Copy& c) {
    if (c.landed) return;
    unsigned char* to = in_shared(c.to, 16);
    if (c.from) {
        memcpy(to, c.from, 16);
    } else {
        memset(to, 0, 16);
    }
    c.landed = true;
}
void copy_issue(u32 to, const void* from) {
    current->copies.push_back({to, from, false, current->copy_group});
    if (random(2)) land(current->copies.back());
}
void copy_commit() { current->copy_group++; }
void copy_wait(u32 pending) {
    std::vector<Copy> left;
    for (Copy& c : current->copies) {
        if (c.group + pending < current->copy_group) {
            land(c);
        } else {
            left.push_back(c);
        }
    }
    current->copies.swap(left);
}

void product_issue(const Product& p) {
    current->products.push_back(p);
    current->products.back().group = current->product_group;
}
static void carry_out(u64 before) {
    Thread& t = *current;
    size_t n = 0;
    while (n < t.products.size() && t.products[n].group < before) t.products[n].run(t.products[n]), n++;
    t.products.erase(t.products.begin(), t.products.begin() + n);
}
void product_commit() {
    current->product_group++;
    if (random(2)) carry_out(current->product_group);
}
// Warp-wide: when one lane is told that a product has read its memory, all lanes' parts have.
void product_wait(u32 pending) {
    if (current->product_group > pending) carry_out(current->product_group - pending);
    warp_barrier();
}

static void settle(MemoryBarrier& b) {
    if (b.pending != 0 || b.bytes != 0) return;
    b.phase ^= 1;
    b.pending = b.arrivals;
    progress();
}
static MemoryBarrier& memory_barrier(u32 bar) {
    in_shared(bar, 8);
    const auto found = memory_barriers.find(bar);
    if (found == memory_barriers.end()) die("an mbarrier that was not initialised");
    return found->second;
}
void mbar_init(u32 bar, int arrivals) {
    MemoryBarrier b;
    b.arrivals = b.pending = arrivals;
    memory_barriers[bar] = b;
}
void mbar_arrive(u32 bar, u32 expected_bytes) {
    MemoryBarrier& b = memory_barrier(bar);
    if (b.pending <= 0) die("an mbarrier with too many arrivals");
    b.bytes += expected_bytes;
    b.pending--;
    progress();
    settle(b);
}
void mbar_wait(u32 bar, u32 parity) {
    const MemoryBarrier& b = memory_barrier(bar);
    while ((b.phase & 1) == (parity & 1)) yield();
}
void box_issue(u32 to, const void* map, u32 bar, const int (&at)[4]) {
    Box b = {to, bar, {}, {at[0], at[1], at[2], at[3]}};
    memcpy(b.map, map, sizeof b.map);
    if (b.map[MAP_MAGIC_AT] != MAP_MAGIC) die("no tensor map");
    if (to & 127) die("a TMA box to an address that is not aligned");
    boxes.push_back(b);
}
// With the 128-byte swizzle that all maps here have; elements outside of the tensor are zeros.
static void land(const Box& b) {
    const u64* dims = b.map + MAP_DIMS_AT;
    const u64* strides = b.map + MAP_STRIDES_AT;
    const u64* box = b.map + MAP_BOX_AT;
    u32 n = 0;
    for (u64 i = 0; i < box[3] * box[2] * box[1]; i++) {
        const long long x[3] = {b.at[1] + (long long)(i % box[1]), b.at[2] + (long long)(i / box[1] % box[2]),
                                b.at[3] + (long long)(i / box[1] / box[2])};
        bool row_in = true;
        u64 row = 0;
        for (int d = 0; d < 3; d++) {
            row_in = row_in && x[d] >= 0 && x[d] < (long long)dims[d + 1];
            row += x[d] * strides[d];
        }
        for (u64 j = 0; j < box[0]; j++, n++) {
            const long long c = b.at[0] + (long long)j;
            u16 v = 0;
            if (row_in && c >= 0 && c < (long long)dims[0])
                memcpy(&v, (const char*)b.map[MAP_ADDRESS_AT] + row + c * 2, 2);
            u32 a = b.to + n * 2;
            a ^= (a >> 7 & 7) << 4;
            memcpy(in_shared(a, 2), &v, 2);
        }
    }
    MemoryBarrier& bar = memory_barrier(b.bar);
    bar.bytes -= n * 2;
    progress();
    settle(bar);
}

static void entry() {
    launch->kernel(launch->arguments);
    current->is_done = true;
    cta_live--;
    warp_live[current->warp]--;
    progress();
    for (;;) yield();
}
// One of those in flight; if late, all of one barrier before those of another, in an order of barriers that varies.
static void land_one(bool is_late, u32 order) {
    size_t one = random((u32)boxes.size());
    for (size_t i = 0; is_late && i < boxes.size(); i++)
        if ((boxes[i].bar ^ order) * 2654435761u < (boxes[one].bar ^ order) * 2654435761u) one = i;
    const Box b = boxes[one];
    boxes.erase(boxes.begin() + one);
    land(b);
}
static void run_cta(u32 block) {
    const u32 n = block_size.x, warps = (n + 31) / 32;
    block_index = {block % grid_size.x, block / grid_size.x, 0};
    for (u32 i = 0; i < shared_bytes; i++) shared[i] = i & 1 ? 0x7f : 0xc0;
    barriers.clear();
    memory_barriers.clear();
    boxes.clear();
    warp_barriers.assign(warps, Barrier());
    warp_live.assign(warps, 0);
    exchange.assign(warps * 32 * 64, 0);
    cta_live = n;
    threads.assign(n, Thread());
    while (stacks.size() < n) stacks.push_back((char*)aligned_alloc(4096, STACK));
    for (u32 i = 0; i < n; i++) {
        Thread& t = threads[i];
        t.index = i;
        t.warp = i / 32;
        warp_live[t.warp]++;
        t.context.start(stacks[i], STACK, entry);
    }
    // What a race needs differs from CTA to CTA: warps that get on only when the others wait, copies that land only when
    // everybody does.
    std::vector<bool> lags(warps);
    for (u32 i = 0; i < warps; i++) lags[i] = random(4) == 0;
    const bool lands_late = random(2);
    const u32 order = random(1 << 16);
    u64 seen = progress_count, idle = 0;
    while (cta_live > 0) {
        const u32 warp = random(warps), first = warp * 32, lanes = n - first < 32 ? n - first : 32;
        if (lags[warp] && idle < 4 * warps && random(64) != 0) {
            idle++;
            continue;
        }
        u64 before = progress_count + 1;
        for (u32 rounds = 1 + random(8); rounds > 0 && before != progress_count; rounds--) {
            before = progress_count;
            const u32 turn = random(lanes), backwards = random(2);
            for (u32 i = 0; i < lanes; i++) {
                const u32 l = (backwards ? lanes - 1 - i : i) + turn;
                Thread& t = threads[first + l % lanes];
                if (t.is_done) continue;
                current = &t;
                thread_index = {t.index, 0, 0};
                scheduler.to(t.context);
            }
        }
        idle = seen == progress_count ? idle + 1 : 0;
        seen = progress_count;
        if (!boxes.empty() && (lands_late ? idle > 4 * warps : random(3) == 0)) land_one(lands_late, order);
        if (idle > 300 * warps && boxes.empty()) die("deadlock: no thread gets on");
    }
    current = nullptr;
    if (!boxes.empty()) die("a CTA left before its TMA boxes landed");
}
void run_grid(const Launch& l) {
    launch = &l;
    grid_size = {l.grid[0], l.grid[1], 1};
    block_size = {l.block, 1, 1};
    shared_memory.assign(l.shared + 1024, 0);
    shared = (unsigned char*)(((uintptr_t)shared_memory.data() + 1023) & ~(uintptr_t)1023);
    shared_bytes = l.shared;
    std::vector<u32> order(l.grid[0] * l.grid[1]);
    for (u32 i = 0; i < order.size(); i++) order[i] = i;
    for (u32 i = (u32)order.size(); i > 1; i--) std::swap(order[i - 1], order[random(i)]);
    for (u32 block : order) run_cta(block);
    launch = nullptr;
}
void seed(u64 s) { state = s * 0x9e3779b97f4a7c15ull + 1; }

// Ends at memory that is not mapped, and begins little behind such, so that what reads or writes outside stops the program.
static unsigned char* buffer(size_t bytes) {
    const size_t page = 4096, guard = 1 << 20, room = (bytes + 15) & ~(size_t)15, mapped = (room + page - 1) / page * page;
    void* p = mmap(nullptr, mapped + 2 * guard, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) die("no memory for a buffer");
    if (mprotect((char*)p + guard, mapped, PROT_READ | PROT_WRITE) != 0) die("no memory for a buffer");
    return (unsigned char*)p + guard + mapped - room;
}
static void read_all(void* to, size_t bytes) {
    if (bytes > 0 && fread(to, 1, bytes, stdin) != bytes) die("a job that ends early");
}
static u64 word() {
    u64 w;
    read_all(&w, 8);
    return w;
}
}  // namespace emu

int main() {
    using namespace emu;
    seed(word());
    std::vector<std::pair<unsigned char*, size_t>> buffers(word());
    for (auto& b : buffers) {
        b.second = word();
        b.first = buffer(b.second);
        read_all(b.first, b.second);
    }
    for (u64 n = word(); n > 0; n--) {
        Launch l = {};
        read_all(l.name, sizeof l.name);
        l.grid[0] = (u32)word(), l.grid[1] = (u32)word(), l.block = (u32)word(), l.shared = (u32)word();
        std::vector<std::vector<u64>> values(word());
        std::vector<void*> arguments;
        for (auto& v : values) {
            const u64 kind = word();
            if (kind == ARGUMENT_VALUE) {
                v = {word()};
            } else if (kind == ARGUMENT_BUFFER) {
                const u64 which = word(), offset = word();
                v = {which == ~0ull ? 0 : (u64)buffers[which].first + offset};
            } else {
                v.assign(16, 0);
                v[MAP_MAGIC_AT] = MAP_MAGIC;
                const u64 which = word();
                v[MAP_ADDRESS_AT] = (u64)buffers[which].first + word();
                for (int i = MAP_DIMS_AT; i < MAP_END; i++) v[i] = word();
            }
            arguments.push_back(v.data());
        }
        find(l, arguments.size());
        l.arguments = arguments.data();
        run_grid(l);
    }
    for (auto& b : buffers) fwrite(b.first, 1, b.second, stdout);
    return 0;
}
