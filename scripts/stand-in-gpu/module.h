// Follows a kernel source that libnvrtc compiles: makes its kernels' entries for the driver, and says which
// kernel it was when one touches memory that is not there.
#pragma once
#include "entry.h"
#include <signal.h>
#include <unistd.h>

namespace stand_in {

inline void report_fault(int signal, siginfo_t *info, void *) {
    fprintf(stderr, "stand-in GPU: %s: block (%u, %u, %u), thread (%u, %u, %u): %s at %p\n", state.kernel, state.block_index.x,
            state.block_index.y, state.block_index.z, state.thread_index.x, state.thread_index.y, state.thread_index.z,
            signal == SIGFPE ? "a division by zero" : "an access to memory that is not there", info->si_addr);
    die();
}

// While a grid runs.
struct FaultReports {
    static constexpr int SIGNALS[3] = {SIGSEGV, SIGBUS, SIGFPE};
    struct sigaction before[3];
    stack_t stack_before;
    FaultReports() {
        static char stack_memory[64 << 10];
        stack_t stack = {};
        stack.ss_sp = stack_memory, stack.ss_size = sizeof stack_memory;
        sigaltstack(&stack, &stack_before);
        struct sigaction action = {};
        action.sa_sigaction = report_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        for (int i = 0; i < 3; i++) {
            sigaction(SIGNALS[i], &action, &before[i]);
        }
    }
    ~FaultReports() {
        for (int i = 0; i < 3; i++) {
            sigaction(SIGNALS[i], &before[i], nullptr);
        }
        sigaltstack(&stack_before, nullptr);
    }
};

template <typename T> struct IsPointer { enum { VALUE = 0 }; };
template <typename T> struct IsPointer<T *> { enum { VALUE = 1 }; };

template <auto kernel, typename... A> Entry make(void (*)(A...), unsigned most_threads) {
    static_assert(((sizeof(A) <= 8) && ...), "a kernel's parameters are of at most 8 bytes");
    static const unsigned char pointers[] = {IsPointer<A>::VALUE..., 0};
    auto run = [](const Launch &one) {
        FaultReports reports;
        launch(one.kernel, dim3(one.grid[0], one.grid[1], one.grid[2]), dim3(one.block[0], one.block[1], one.block[2]),
               one.shared_bytes, kernel, one.parameters);
    };
    return {run, sizeof...(A), pointers, most_threads};
}

} // namespace stand_in

#define STAND_IN_KERNEL(name, most_threads) \
    extern "C" __attribute__((visibility("default"))) const stand_in::Entry stand_in_entry_##name = \
        stand_in::make<&name>(&name, most_threads);
