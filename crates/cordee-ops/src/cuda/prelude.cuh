// What every kernel begins with. NVRTC compiles this text followed by one kernel source; there are
// no other headers, so that a user's machine needs none. CORDEE_BF16 says which numbers `element`
// is: weights and activations. Statistics, losses and gradients of weights are f32 in both.
//
// CORDEE_STAND_IN is defined where a plain C++ compiler stands in for NVRTC (scripts/stand-in-gpu):
// what is written in PTX here has a second form there, which says in C++ what the instruction does.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;

#ifndef CORDEE_STAND_IN
#define INFINITY __int_as_float(0x7f800000)
// Shared memory whose size the launch gives, aligned for 16-byte accesses.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

// The upper half of an f32.
struct __align__(2) bf16 {
    u16 bits;
};

#ifdef CORDEE_BF16
typedef bf16 element;
#else
typedef float element;
#endif

__device__ __forceinline__ float widen(float x) { return x; }

__device__ __forceinline__ float widen(bf16 x) { return __uint_as_float((u32)x.bits << 16); }

template <typename E> __device__ __forceinline__ E narrow(float x);

template <> __device__ __forceinline__ float narrow<float>(float x) { return x; }

// Rounds to nearest, ties to even; a NaN stays one.
template <> __device__ __forceinline__ bf16 narrow<bf16>(float x) {
    bf16 result;
#ifdef CORDEE_STAND_IN
    u32 bits = __float_as_uint(x);
    result.bits = (bits & 0x7fffffff) > 0x7f800000 ? 0x7fff : (u16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
#else
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
#endif
    return result;
}

// Two numbers as one word, the first in the lower half: an operand of the tensor cores.
__device__ __forceinline__ u32 narrow2(float first, float second) {
#ifdef CORDEE_STAND_IN
    return (u32)narrow<bf16>(first).bits | (u32)narrow<bf16>(second).bits << 16;
#else
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
    return both;
#endif
}

// What one 16-byte access moves.
template <typename E> struct __align__(16) Vector {
    static constexpr u32 COUNT = 16 / sizeof(E);
    E at[COUNT];
};

template <typename E> __device__ __forceinline__ Vector<E> load_vector(const E *address) {
    return *reinterpret_cast<const Vector<E> *>(address);
}

template <typename E> __device__ __forceinline__ void store_vector(E *address, const Vector<E> &vector) {
    *reinterpret_cast<Vector<E> *>(address) = vector;
}

constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xffffffff;

// The sum over the 32 lanes of a warp, in every lane, in one order.
template <typename N> __device__ __forceinline__ N warp_sum(N x) {
#pragma unroll
    for (u32 distance = WARP / 2; distance > 0; distance /= 2) {
        x += __shfl_xor_sync(ALL_LANES, x, distance);
    }
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (u32 distance = WARP / 2; distance > 0; distance /= 2) {
        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, distance));
    }
    return x;
}

// The sum over a block of at most 1024 threads, whole warps of them, in every thread, in one order.
// `scratch` has room for 32 numbers and may be used again at once.
template <typename N> __device__ __forceinline__ N block_sum(N x, N *scratch) {
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_sum(x);
    if (lane == 0) {
        scratch[warp] = x;
    }
    __syncthreads();
    x = warp_sum(lane < warps ? scratch[lane] : (N)0);
    __syncthreads();
    return x;
}

__device__ __forceinline__ float block_max(float x, float *scratch) {
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_max(x);
    if (lane == 0) {
        scratch[warp] = x;
    }
    __syncthreads();
    x = warp_max(lane < warps ? scratch[lane] : -INFINITY);
    __syncthreads();
    return x;
}
