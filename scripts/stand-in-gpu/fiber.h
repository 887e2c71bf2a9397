// How the stand-in GPU runs a grid on one thread of a CPU: each thread of a block is a fiber with a stack
// of its own, and gives way to another at barriers and warp collectives. For x86-64.
#pragma once
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <utility>

struct uint3 { unsigned x, y, z; };
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace stand_in {

constexpr unsigned THREADS = 1024, LANES = 32, STACK = 64 << 10, SHARED = 227 << 10, RED_ZONE = 256;
constexpr unsigned EXCHANGED = 64; // the most bytes a lane gives to, or gets from, an instruction of its warp
constexpr uint64_t CANARY = 0x5afe5afe5afe5afe;

enum Kind : uint8_t { SYNC, BALLOT, SHUFFLE, INSTRUCTION };
enum Where : uint8_t { RUNNABLE, AT_BARRIER, AT_COLLECTIVE, EXITED };

struct Fiber {
    void *stack_pointer;
    uint3 index;
    Where where;
    Kind kind;           // of the collective it waits at, with the three below
    uint8_t source;      // the lane a shuffle reads from
    unsigned mask;
    uint64_t value;      // what it gives
    uint64_t result;     // what it gets
};

struct Warp {
    unsigned waiting, exited; // lanes: at a collective, and past the kernel's end
    alignas(16) unsigned char given[LANES][EXCHANGED];
    alignas(16) unsigned char got[LANES][EXCHANGED];
};

struct State {
    uint3 thread_index, block_index;
    dim3 block_size, grid_size;
    unsigned char *dynamic_shared = nullptr;
    const char *kernel = "?";
    void (*body)(void *) = nullptr;
    void *argument = nullptr;
    Fiber fibers[THREADS];
    Warp warps[THREADS / LANES];
    unsigned threads = 0, current = 0, live = 0, waiting = 0;
    unsigned runnable[THREADS], first = 0, count = 0; // a ring
    void *host = nullptr;
    unsigned char *stacks = nullptr;
    enum { FORWARD, REVERSE, RANDOM } order = FORWARD;
    uint64_t random = 0;
};

inline State state;

[[noreturn]] inline void die() {
    fflush(stderr);
    abort();
}

inline void fail(const char *what) {
    fprintf(stderr, "stand-in GPU: %s: block (%u, %u, %u), thread (%u, %u, %u): %s\n", state.kernel, state.block_index.x,
            state.block_index.y, state.block_index.z, state.thread_index.x, state.thread_index.y, state.thread_index.z, what);
    die();
}

inline uint64_t random_number() { // splitmix64
    uint64_t x = state.random += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

// Saves the registers that a call keeps on the stack, and goes on where `to` was left.
__attribute__((naked, noinline, noipa)) inline void switch_stack(void ** /* rdi */, void * /* rsi */) {
    __asm__ volatile("pushq %rbx\n\tpushq %rbp\n\tpushq %r12\n\tpushq %r13\n\tpushq %r14\n\tpushq %r15\n\t"
                     "movq %rsp, (%rdi)\n\tmovq %rsi, %rsp\n\t"
                     "popq %r15\n\tpopq %r14\n\tpopq %r13\n\tpopq %r12\n\tpopq %rbp\n\tpopq %rbx\n\tret");
}

// Threads that may run again do so before others, which keeps a warp together; in random order anyone may.
inline void make_runnable(unsigned thread) {
    state.fibers[thread].where = RUNNABLE;
    state.first = (state.first + THREADS - 1) % THREADS;
    state.runnable[state.first] = thread;
    state.count += 1;
}

// Makes `count` threads from `begin` runnable whose bit, or all where there is no mask, is set.
inline void make_all_runnable(unsigned begin, unsigned count, unsigned mask, Where from) {
    for (unsigned i = 0; i < count; i++) {
        unsigned offset = state.order == State::REVERSE ? i : count - 1 - i;
        unsigned thread = begin + offset;
        if ((count > LANES || mask >> offset & 1) && state.fibers[thread].where == from) {
            make_runnable(thread);
        }
    }
}

[[noreturn]] inline void report_deadlock() {
    fprintf(stderr, "stand-in GPU: %s: block (%u, %u, %u) is stuck: %u threads, %u still live, %u at a barrier\n", state.kernel,
            state.block_index.x, state.block_index.y, state.block_index.z, state.threads, state.live, state.waiting);
    const char *const names[] = {"__syncwarp", "vote", "shuffle", "warp instruction"};
    unsigned shown = 0;
    for (unsigned thread = 0; thread < state.threads && shown < 4; thread++) {
        const Fiber &fiber = state.fibers[thread];
        if (fiber.where != AT_COLLECTIVE) {
            continue;
        }
        unsigned warp = thread / LANES * LANES, at_barrier = 0, exited = 0, elsewhere = 0, here = 0;
        for (unsigned lane = 0; lane < LANES && warp + lane < state.threads; lane++) {
            const Fiber &other = state.fibers[warp + lane];
            bool same = other.where == AT_COLLECTIVE && other.mask == fiber.mask && other.kind == fiber.kind;
            here |= (unsigned)same << lane;
            at_barrier |= (unsigned)(other.where == AT_BARRIER) << lane;
            exited |= (unsigned)(other.where == EXITED) << lane;
            elsewhere |= (unsigned)(other.where == AT_COLLECTIVE && !same) << lane;
        }
        fprintf(stderr, "  warp %u: a %s waits for lanes %08x: reached by %08x; at a barrier %08x, exited %08x, at another collective %08x\n",
                warp / LANES, names[fiber.kind], fiber.mask, here, at_barrier & fiber.mask, exited & fiber.mask, elsewhere & fiber.mask);
        thread = warp + LANES - 1;
        shown += 1;
    }
    die();
}

// Leaves one stack, whose place is kept in `from`, for that of the next runnable thread.
inline void switch_to_next(void **from) {
    if (state.order == State::RANDOM) {
        unsigned chosen = (state.first + (unsigned)(random_number() % state.count)) % THREADS;
        std::swap(state.runnable[chosen], state.runnable[state.first]);
    }
    unsigned thread = state.runnable[state.first];
    state.first = (state.first + 1) % THREADS;
    state.count -= 1;
    state.current = thread;
    state.thread_index = state.fibers[thread].index;
    if (from != &state.fibers[thread].stack_pointer) {
        switch_stack(from, state.fibers[thread].stack_pointer);
    }
}

// Gives way: to the next runnable thread, or to the host when the block is done.
inline void give_way() {
    void **from = &state.fibers[state.current].stack_pointer;
    if (state.count == 0) {
        if (state.live > 0) {
            report_deadlock();
        }
        switch_stack(from, state.host);
        return;
    }
    switch_to_next(from);
}

inline void release_barrier() {
    state.waiting = 0;
    make_all_runnable(0, state.threads, 0xffffffff, AT_BARRIER);
}

inline void barrier() {
    state.fibers[state.current].where = AT_BARRIER;
    if (++state.waiting == state.live) {
        release_barrier();
    }
    give_way();
}

inline int lane() { return (int)(state.current % LANES); }

// Waits for the lanes of `mask`; the last to come sets what each of them gets.
template <typename Complete> void meet(Kind kind, unsigned mask, Complete complete) {
    unsigned warp = state.current - (unsigned)lane(), lanes = state.threads - warp < LANES ? state.threads - warp : LANES;
    unsigned there = lanes == LANES ? 0xffffffffu : (1u << lanes) - 1;
    Fiber &self = state.fibers[state.current];
    if (!(mask >> lane() & 1)) {
        fail("a warp collective whose mask does not name the calling lane");
    }
    self.where = AT_COLLECTIVE, self.kind = kind, self.mask = mask;
    unsigned &waiting = state.warps[warp / LANES].waiting;
    waiting |= 1u << lane();
    if (mask & there & ~waiting & state.warps[warp / LANES].exited) {
        report_deadlock();
    }
    if (mask & there & ~waiting) {
        give_way();
        return;
    }
    for (unsigned rest = mask & there; rest; rest &= rest - 1) {
        const Fiber &other = state.fibers[warp + (unsigned)__builtin_ctz(rest)];
        if (other.mask != mask || other.kind != kind) {
            give_way();
            return;
        }
    }
    waiting &= ~mask;
    complete(warp, mask & there);
    make_all_runnable(warp, lanes, mask, AT_COLLECTIVE);
    give_way();
}

inline uint64_t collective(Kind kind, unsigned mask, uint64_t value, unsigned source) {
    Fiber &self = state.fibers[state.current];
    self.value = value, self.source = (uint8_t)source;
    meet(kind, mask, [kind](unsigned warp, unsigned lanes) {
        uint64_t votes = 0;
        for (unsigned rest = lanes; rest; rest &= rest - 1) {
            unsigned lane = (unsigned)__builtin_ctz(rest);
            votes |= state.fibers[warp + lane].value << lane;
        }
        for (unsigned rest = lanes; rest; rest &= rest - 1) {
            Fiber &fiber = state.fibers[warp + (unsigned)__builtin_ctz(rest)];
            if (kind == SHUFFLE && !(lanes >> fiber.source & 1)) {
                fail("a shuffle from a lane that takes no part in it");
            }
            fiber.result = kind == SHUFFLE ? state.fibers[warp + fiber.source].value : votes;
        }
    });
    return self.result;
}

template <typename T> T shuffle(unsigned mask, T value, int source) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = collective(SHUFFLE, mask, bits, (unsigned)source);
    memcpy(&value, &bits, sizeof value);
    return value;
}

// An instruction of all 32 lanes: `compute(const Given *given, Result *results)` runs once, with 32 of each,
// when the last lane has come. Both types are plain data of at most 64 bytes.
template <typename Result, typename Given, typename Compute> Result warp_together(const Given &mine, Compute compute) {
    static_assert(sizeof(Given) <= EXCHANGED && sizeof(Result) <= EXCHANGED, "more than a lane may exchange");
    unsigned at = (unsigned)lane(), begin = state.current - at;
    Warp &warp = state.warps[begin / LANES];
    if (state.threads - begin < LANES) {
        fail("an instruction of a whole warp, in a warp of fewer than 32 threads");
    }
    const uint64_t sizes = (uint64_t)sizeof(Given) << 32 | sizeof(Result);
    state.fibers[state.current].value = sizes;
    memcpy(warp.given[0] + at * sizeof(Given), &mine, sizeof mine);
    meet(INSTRUCTION, 0xffffffff, [&](unsigned, unsigned) {
        for (unsigned i = 0; i < LANES; i++) {
            if (state.fibers[begin + i].value != sizes) {
                fail("the lanes of a warp are at different instructions");
            }
        }
        compute(reinterpret_cast<const Given *>(warp.given[0]), reinterpret_cast<Result *>(warp.got[0]));
    });
    Result result;
    memcpy(&result, warp.got[0] + at * sizeof(Result), sizeof result);
    return result;
}

// What the 32 lanes gave, in their order; holds until this lane's next instruction of the warp.
template <typename Given> const Given *warp_exchange(const Given &mine) {
    warp_together<Given>(mine, [](const Given *given, Given *results) { memcpy(results, given, LANES * sizeof(Given)); });
    return reinterpret_cast<const Given *>(state.warps[state.current / LANES].got[0]);
}

// Where each fiber begins, and ends.
[[noreturn]] inline void fiber_main() {
    state.body(state.argument);
    state.fibers[state.current].where = EXITED;
    state.warps[state.current / LANES].exited |= 1u << lane();
    state.live -= 1;
    if (state.live > 0 && state.waiting == state.live) {
        release_barrier();
    }
    give_way();
    __builtin_unreachable();
}

#ifdef STAND_IN_SHARED_SECTION
extern "C" unsigned char __start_shared_memory[] __attribute__((weak, visibility("hidden")));
extern "C" unsigned char __stop_shared_memory[] __attribute__((weak, visibility("hidden")));
#endif

inline void prepare() {
    size_t shared = SHARED + RED_ZONE + 16;
    void *memory = mmap(nullptr, (size_t)THREADS * STACK + shared, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        fail("no memory for the stacks of its threads");
    }
    state.stacks = (unsigned char *)memory;
    // Aligned for accesses of 16 bytes, and for no more: what relies on more shows.
    state.dynamic_shared = state.stacks + (size_t)THREADS * STACK + 16;
}

inline void choose_order() {
    const char *order = getenv("STAND_IN_ORDER");
    if (!order || !*order || !strcmp(order, "forward")) {
        state.order = State::FORWARD;
        return;
    }
    if (!strcmp(order, "reverse")) {
        state.order = State::REVERSE;
        return;
    }
    char *end;
    state.order = State::RANDOM, state.random = strtoull(order, &end, 10);
    if (*end) {
        fprintf(stderr, "stand-in GPU: STAND_IN_ORDER is `%s`: it takes forward, reverse, or a number\n", order);
        die();
    }
}

inline void run_block(unsigned shared_bytes) {
    dim3 size = state.block_size;
    state.threads = state.live = size.x * size.y * size.z;
    state.waiting = state.count = state.first = 0;
    memset(state.dynamic_shared, 0xff, shared_bytes + RED_ZONE); // NaN
#ifdef STAND_IN_SHARED_SECTION
    if (&__start_shared_memory[0]) {
        memset(__start_shared_memory, 0xff, (size_t)(__stop_shared_memory - __start_shared_memory));
    }
#endif
    for (unsigned thread = 0; thread < state.threads; thread++) {
        Fiber &fiber = state.fibers[thread];
        fiber.index = {thread % size.x, thread / size.x % size.y, thread / size.x / size.y};
        unsigned char *stack = state.stacks + (size_t)thread * STACK;
        *(uint64_t *)stack = CANARY;
        // Tops a few cache lines apart: at one distance, all would share the same lines of the cache.
        uint64_t *top = (uint64_t *)(stack + STACK - thread % 61 * 64);
        // The return address of switch_stack at a multiple of 16 from the top, as if fiber_main were called.
        *--top = 0;
        *--top = (uint64_t)&fiber_main;
        fiber.stack_pointer = top - 6;
        fiber.where = AT_BARRIER;
        state.warps[thread / LANES].waiting = state.warps[thread / LANES].exited = 0;
    }
    make_all_runnable(0, state.threads, 0xffffffff, AT_BARRIER);
    switch_to_next(&state.host);
    for (unsigned i = 0; i < RED_ZONE; i++) {
        if (state.dynamic_shared[shared_bytes + i] != 0xff) {
            fail("wrote past the end of its dynamic shared memory");
        }
    }
    for (unsigned i = 0; i < state.threads; i++) {
        if (*(uint64_t *)(state.stacks + (size_t)i * STACK) != CANARY) {
            fail("a thread's stack of 64 KiB ran over");
        }
    }
}

// Runs `body(argument)` as every thread of every block.
inline void run_grid(const char *name, dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void *), void *argument) {
    if (!state.stacks) {
        prepare();
    }
    uint64_t threads = (uint64_t)block.x * block.y * block.z, blocks = (uint64_t)grid.x * grid.y * grid.z;
    state.kernel = name, state.grid_size = grid, state.block_size = block, state.body = body, state.argument = argument;
    state.block_index = state.thread_index = {0, 0, 0};
    if (threads == 0 || threads > THREADS || blocks == 0 || shared_bytes > SHARED) {
        fail("a launch with no block, no thread, more than 1024 threads, or more than 227 KiB of shared memory");
    }
    choose_order();
    // A random order of blocks: steps of a length that has no divisor in common with their number.
    uint64_t step = 1, begin = 0;
    if (state.order == State::RANDOM) {
        begin = random_number() % blocks;
        auto divisor = [](uint64_t a, uint64_t b) {
            while (b) {
                uint64_t rest = a % b;
                a = b, b = rest;
            }
            return a;
        };
        do {
            step = random_number() % blocks + 1;
        } while (divisor(step, blocks) != 1);
    }
    for (uint64_t i = 0; i < blocks; i++) {
        uint64_t at = state.order == State::REVERSE ? blocks - 1 - i : (uint64_t)((begin + (unsigned __int128)i * step) % blocks);
        state.block_index = {(unsigned)(at % grid.x), (unsigned)(at / grid.x % grid.y), (unsigned)(at / grid.x / grid.y)};
        run_block((unsigned)shared_bytes);
    }
}

template <typename... A> struct Call {
    void (*kernel)(A...);
    void **parameters;
};

template <typename... A, size_t... I> void call(const Call<A...> &one, std::index_sequence<I...>) {
    one.kernel(*static_cast<A *>(one.parameters[I])...);
}

// Launches a kernel as the driver does: `parameters` has the address of each of its parameters.
template <typename... A>
void launch(const char *name, dim3 grid, dim3 block, size_t shared_bytes, void (*kernel)(A...), void **parameters) {
    Call<A...> one{kernel, parameters};
    run_grid(name, grid, block, shared_bytes,
             [](void *argument) { call(*static_cast<Call<A...> *>(argument), std::index_sequence_for<A...>()); }, &one);
}

template <typename T> struct Same { using Type = T; };

template <typename... A>
void run(dim3 grid, dim3 block, size_t shared_bytes, void (*kernel)(A...), typename Same<A>::Type... arguments) {
    void *parameters[] = {(void *)&arguments..., nullptr};
    launch("kernel", grid, block, shared_bytes, kernel, parameters);
}

} // namespace stand_in
