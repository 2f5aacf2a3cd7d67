// Between the emulator's program and the kernels that are compiled into it.
#pragma once
#include "emu.h"

#include <utility>

namespace emu {
struct Launch {
    char name[32];
    u32 grid[2], block, shared;
    void** arguments;
    void (*kernel)(void** arguments);
};
// Fills in the kernel of this name; dies if there is none or it takes another number of arguments.
void find(Launch& l, size_t arguments);

enum { ARGUMENT_VALUE, ARGUMENT_BUFFER, ARGUMENT_MAP };
enum { MAP_MAGIC_AT, MAP_ADDRESS_AT, MAP_DIMS_AT, MAP_STRIDES_AT = 6, MAP_BOX_AT = 9, MAP_END = 13 };
const u64 MAP_MAGIC = 0x7e5e;

template <class... A, size_t... I> void apply(void (*kernel)(A...), void** p, std::index_sequence<I...>) {
    kernel(*(A*)p[I]...);
}
template <class... A> size_t count(void (*)(A...)) { return sizeof...(A); }
template <class... A> void call(void (*kernel)(A...), void** p) { apply(kernel, p, std::index_sequence_for<A...>{}); }
}  // namespace emu

// One line for each kernel, in the body of emu::find.
#define FIND(kernel_name)                                                                  \
    if (strcmp(l.name, #kernel_name) == 0) {                                               \
        if (count(kernel_name) != arguments) die("another number of arguments");           \
        l.kernel = [](void** p) { call(kernel_name, p); };                                 \
        return;                                                                            \
    }
