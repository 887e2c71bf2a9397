// The language of GPU kernels for a plain C++ compiler: g++ -std=c++17 -O2 -include device.h compiles
// kernel sources for the CPU, so that they can be tested where there is no GPU.
//
// From a test's main, after the kernel source:
//
//   stand_in::run(grid, block, shared_bytes, kernel, argument...);      // grid and block: dim3, or a number
//
// runs the whole grid at once: blocks one after another, the threads of a block as fibers that take turns
// at barriers and warp collectives. STAND_IN_ORDER says in which order: `forward` (default), `reverse`,
// or a number, the seed of a random order. A kernel that lacks a barrier gives other results in another
// order; one whose threads do not all reach a barrier or a collective ends the process with a message.
// Arguments are converted to the kernel's parameter types. Shared memory begins as bytes 0xFF (NaN),
// so what is read before it is written shows too.
//
// An instruction of a whole warp, such as mma.sync, is written in C++ with `stand_in::warp_together`
// (one function sees the operands of all 32 lanes, and gives 32 results) or `stand_in::warp_exchange`
// (each lane sees what the 32 lanes gave); both in fiber.h.
#pragma once
#define CORDEE_STAND_IN 1

#include "fiber.h"
#include <math.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __constant__ static
// With STAND_IN_SHARED_SECTION static shared memory can be found, to be filled with 0xFF before each block;
// the kernels then have to be in a namespace without name, for no template's may be shared with other files.
#ifdef STAND_IN_SHARED_SECTION
#define __shared__ static __attribute__((section("shared_memory")))
#else
#define __shared__ static
#endif
#define DYNAMIC_SHARED(name) unsigned char *const name = stand_in::state.dynamic_shared

// What the host's headers would otherwise give these names to.
#undef INFINITY
#define INFINITY __builtin_inff()
#define __expf(x) expf(x)
#define __exp2f(x) exp2f(x)
#define __exp10f(x) exp10f(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __powf(x, y) powf(x, y)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)

struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };

#define threadIdx stand_in::state.thread_index
#define blockIdx stand_in::state.block_index
#define blockDim stand_in::state.block_size
#define gridDim stand_in::state.grid_size
#define warpSize 32

inline void __syncthreads() { stand_in::barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { stand_in::collective(stand_in::SYNC, mask, 0, 0); }
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    return (unsigned)stand_in::collective(stand_in::BALLOT, mask, predicate != 0, 0);
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
inline unsigned __activemask() { return stand_in::fail("__activemask says nothing one may rely on"), 0u; }

template <typename T> T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    int lane = stand_in::lane();
    return stand_in::shuffle(mask, value, (lane & ~(width - 1)) | (source & (width - 1)));
}
template <typename T> T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32) {
    int lane = stand_in::lane(), from = lane - (int)distance;
    return stand_in::shuffle(mask, value, from < (lane & ~(width - 1)) ? lane : from);
}
template <typename T> T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32) {
    int lane = stand_in::lane(), from = lane + (int)distance;
    return stand_in::shuffle(mask, value, from > (lane | (width - 1)) ? lane : from);
}
template <typename T> T __shfl_xor_sync(unsigned mask, T value, int with, int width = 32) {
    int lane = stand_in::lane(), from = lane ^ with;
    return stand_in::shuffle(mask, value, from > (lane | (width - 1)) ? lane : from);
}

template <typename T> inline T __ldg(const T *address) { return *address; }
template <typename To, typename From> inline To stand_in_bits(From x) {
    static_assert(sizeof(To) == sizeof(From), "bits of another size");
    To result;
    __builtin_memcpy(&result, &x, sizeof result);
    return result;
}
inline unsigned __float_as_uint(float x) { return stand_in_bits<unsigned>(x); }
inline int __float_as_int(float x) { return stand_in_bits<int>(x); }
inline float __uint_as_float(unsigned x) { return stand_in_bits<float>(x); }
inline float __int_as_float(int x) { return stand_in_bits<float>(x); }
inline long long __double_as_longlong(double x) { return stand_in_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return stand_in_bits<double>(x); }
inline float __double2float_rn(double x) { return (float)x; }
inline int __float2int_rn(float x) { return (int)nearbyintf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float stand_in_rsqrt(float x) { return 1.0f / sqrtf(x); }
inline double stand_in_rsqrt(double x) { return 1.0 / sqrt(x); }
#define rsqrtf(x) stand_in_rsqrt((float)(x))
#define rsqrt(x) stand_in_rsqrt(x)
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned x, unsigned y) { return (unsigned)((unsigned long long)x * y >> 32); }
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    return (unsigned long long)((unsigned __int128)x * y >> 64);
}

#define STAND_IN_MIN_MAX(type) \
    inline type min(type x, type y) { return y < x ? y : x; } \
    inline type max(type x, type y) { return x < y ? y : x; }
STAND_IN_MIN_MAX(int)
STAND_IN_MIN_MAX(unsigned)
STAND_IN_MIN_MAX(long)
STAND_IN_MIN_MAX(unsigned long)
STAND_IN_MIN_MAX(long long)
STAND_IN_MIN_MAX(unsigned long long)
inline float min(float x, float y) { return fminf(x, y); }
inline float max(float x, float y) { return fmaxf(x, y); }
inline double min(double x, double y) { return fmin(x, y); }
inline double max(double x, double y) { return fmax(x, y); }
inline unsigned min(int x, unsigned y) { return min((unsigned)x, y); }
inline unsigned min(unsigned x, int y) { return min(x, (unsigned)y); }
inline unsigned max(int x, unsigned y) { return max((unsigned)x, y); }
inline unsigned max(unsigned x, int y) { return max(x, (unsigned)y); }
