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

// What one access moves: 16 bytes, where not said otherwise. A larger one is moved in pieces of 16.
template <typename E, u32 N = 16 / sizeof(E)> struct __align__(N * sizeof(E) < 16 ? N * sizeof(E) : 16) Vector {
    static constexpr u32 COUNT = N;
    E at[N];
};

template <typename E> __device__ __forceinline__ Vector<E> load_vector(const E *address) {
    return *reinterpret_cast<const Vector<E> *>(address);
}

template <u32 N, typename E> __device__ __forceinline__ Vector<E, N> load_vector(const E *address) {
    return *reinterpret_cast<const Vector<E, N> *>(address);
}

template <typename E, u32 N> __device__ __forceinline__ void store_vector(E *address, const Vector<E, N> &vector) {
    *reinterpret_cast<Vector<E, N> *>(address) = vector;
}

// Whether vectors of N may be read at all of the addresses. A null pointer asks for nothing.
template <u32 N, typename... E> __device__ __forceinline__ bool aligned(const E *...addresses) {
    return ((... | ((u64)addresses % (N * sizeof(E)))) == 0);
}

// outputs[..][i] = f of all inputs[..][i], for `count` elements, all in f32: `f(in, out)`.
//
// One thread per 16 bytes: a grid of ceil(count / (blockDim * Vector<E>::COUNT)).
template <typename E, u32 INPUTS, u32 OUTPUTS, typename F>
__device__ __forceinline__ void each_element(const E *const (&inputs)[INPUTS], E *const (&outputs)[OUTPUTS], u64 count,
                                             F f) {
    constexpr u32 COUNT = Vector<E>::COUNT;
    u64 first = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * COUNT;
    bool whole = first + COUNT <= count;
#pragma unroll
    for (u32 k = 0; k < INPUTS; k++) {
        whole = whole && aligned<COUNT>(inputs[k]);
    }
#pragma unroll
    for (u32 k = 0; k < OUTPUTS; k++) {
        whole = whole && aligned<COUNT>(outputs[k]);
    }
    float in[INPUTS], out[OUTPUTS];
    if (whole) {
        Vector<E> from[INPUTS], to[OUTPUTS];
#pragma unroll
        for (u32 k = 0; k < INPUTS; k++) {
            from[k] = load_vector(inputs[k] + first);
        }
#pragma unroll
        for (u32 j = 0; j < COUNT; j++) {
#pragma unroll
            for (u32 k = 0; k < INPUTS; k++) {
                in[k] = widen(from[k].at[j]);
            }
            f(in, out);
#pragma unroll
            for (u32 k = 0; k < OUTPUTS; k++) {
                to[k].at[j] = narrow<E>(out[k]);
            }
        }
#pragma unroll
        for (u32 k = 0; k < OUTPUTS; k++) {
            store_vector(outputs[k] + first, to[k]);
        }
        return;
    }
    for (u64 index = first; index < min(first + COUNT, count); index++) {
#pragma unroll
        for (u32 k = 0; k < INPUTS; k++) {
            in[k] = widen(inputs[k][index]);
        }
        f(in, out);
#pragma unroll
        for (u32 k = 0; k < OUTPUTS; k++) {
            outputs[k][index] = narrow<E>(out[k]);
        }
    }
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

// The elements of a row that one access moves. CORDEE_SCALAR says that rows are no whole number of
// vectors, or begin where no vector does.
#ifdef CORDEE_SCALAR
constexpr u32 ROW_VECTOR = 1;
#else
constexpr u32 ROW_VECTOR = Vector<element>::COUNT;
#endif

// outputs[..][row, column] = f of all inputs[..][row, column], all in f32: `f(in, out)`. Rows of `width`
// elements; those of an array begin every so many elements as its stride says. CORDEE_SCALAR unless width
// and strides are whole numbers of vectors.
//
// One thread per vector: a grid of ceil(rows * (width / ROW_VECTOR) / blockDim), fewer than 2^32 of them.
template <u32 INPUTS, u32 OUTPUTS, typename F>
__device__ __forceinline__ void each_of_rows(const element *const (&inputs)[INPUTS], const u32 (&input_strides)[INPUTS],
                                             element *const (&outputs)[OUTPUTS], const u32 (&output_strides)[OUTPUTS],
                                             u32 rows, u32 width, F f) {
    u32 vectors = width / ROW_VECTOR, item = blockIdx.x * blockDim.x + threadIdx.x;
    u32 row = item / vectors, column = item % vectors * ROW_VECTOR;
    if (row >= rows) {
        return;
    }
    Vector<element, ROW_VECTOR> from[INPUTS], to[OUTPUTS];
#pragma unroll
    for (u32 k = 0; k < INPUTS; k++) {
        from[k] = load_vector<ROW_VECTOR>(inputs[k] + (u64)row * input_strides[k] + column);
    }
#pragma unroll
    for (u32 j = 0; j < ROW_VECTOR; j++) {
        float in[INPUTS], out[OUTPUTS];
#pragma unroll
        for (u32 k = 0; k < INPUTS; k++) {
            in[k] = widen(from[k].at[j]);
        }
        f(in, out);
#pragma unroll
        for (u32 k = 0; k < OUTPUTS; k++) {
            to[k].at[j] = narrow<element>(out[k]);
        }
    }
#pragma unroll
    for (u32 k = 0; k < OUTPUTS; k++) {
        store_vector(outputs[k] + (u64)row * output_strides[k] + column, to[k]);
    }
}

// Elements of a row that a thread of its team holds in registers.
constexpr u32 HELD = 8;

// The threads that work on a row together: 1, 2, 4, 8, 16 or 32 of them, several teams to a block,
// or a whole block. Rows up to HELD times as wide as the team are read once. Wider ones, for which
// the team must be the block, are walked in segments of that width.
struct Team {
    u32 size;
    // Of this thread in its team.
    u32 rank;
    // Of the team in its block.
    u32 index;
    // Teams of the block.
    u32 count;

    __device__ __forceinline__ explicit Team(u32 size)
        : size(size), rank(threadIdx.x % size), index(threadIdx.x / size), count(blockDim.x / size) {}

    // Columns that the team holds at once.
    __device__ __forceinline__ u32 segment() const { return size * HELD; }

    // Calls `visit(i, column)` for each vector that this thread holds of the segment that begins at
    // `start`: its number, and the column of the row where it begins.
    template <typename Visit> __device__ __forceinline__ void each(u32 start, u32 dim, Visit visit) const {
#pragma unroll
        for (u32 i = 0; i < HELD / ROW_VECTOR; i++) {
            u32 column = start + (i * size + rank) * ROW_VECTOR;
            if (column < dim) {
                visit(i, column);
            }
        }
    }

    // Sums over the team, K of them at once, in every thread of it, in one order. All threads of the
    // block come here; `scratch` has room for 32 * K numbers and may be used again at once.
    template <u32 K> __device__ __forceinline__ void sum(float (&x)[K], float *scratch) const {
        for (u32 distance = min(size, WARP) / 2; distance > 0; distance /= 2) {
#pragma unroll
            for (u32 k = 0; k < K; k++) {
                x[k] += __shfl_xor_sync(ALL_LANES, x[k], distance);
            }
        }
        if (size <= WARP) {
            return;
        }
        u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = size / WARP;
        if (lane == 0) {
#pragma unroll
            for (u32 k = 0; k < K; k++) {
                scratch[k * WARP + warp] = x[k];
            }
        }
        __syncthreads();
#pragma unroll
        for (u32 k = 0; k < K; k++) {
            x[k] = warp_sum(lane < warps ? scratch[k * WARP + lane] : 0.0f);
        }
        __syncthreads();
    }
};

// A thread's part of a segment of a row.
struct Held {
    Vector<element, ROW_VECTOR> at[HELD / ROW_VECTOR];

    __device__ __forceinline__ void load(const element *row, const Team &team, u32 start, u32 dim) {
        team.each(start, dim, [&](u32 i, u32 column) { at[i] = load_vector<ROW_VECTOR>(row + column); });
    }
};

// Sums over rows that the threads of a team hold, one for each column of a segment.
struct ColumnSums {
    Vector<float, ROW_VECTOR> at[HELD / ROW_VECTOR];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (u32 i = 0; i < HELD / ROW_VECTOR; i++) {
            at[i] = Vector<float, ROW_VECTOR>{};
        }
    }

    // Writes the columns of a segment to `sums` `[dim]`.
    __device__ __forceinline__ void store(float *sums, const Team &team, u32 start, u32 dim) const {
        team.each(start, dim, [&](u32 i, u32 column) { store_vector(sums + column, at[i]); });
    }

    // Adds them to what is there.
    __device__ __forceinline__ void add(float *sums, const Team &team, u32 start, u32 dim) const {
        team.each(start, dim, [&](u32 i, u32 column) {
            Vector<float, ROW_VECTOR> sum = load_vector<ROW_VECTOR>(sums + column);
#pragma unroll
            for (u32 j = 0; j < ROW_VECTOR; j++) {
                sum.at[j] += at[i].at[j];
            }
            store_vector(sums + column, sum);
        });
    }

    // Writes the sums of all teams of the block, added in their order, to `sums` `[dim]`, which is one
    // segment at most. `shared` has room for HELD numbers per thread where there are several teams;
    // all threads come here, and it may be used again at once.
    __device__ __forceinline__ void store_all(float *sums, const Team &team, u32 dim, float *shared) const {
        if (team.count == 1) {
            store(sums, team, 0, dim);
            return;
        }
        store(shared + team.index * team.segment(), team, 0, dim);
        __syncthreads();
        for (u32 column = threadIdx.x; column < dim; column += blockDim.x) {
            float sum = 0.0f;
            for (u32 index = 0; index < team.count; index++) {
                sum += shared[index * team.segment() + column];
            }
            sums[column] = sum;
        }
        __syncthreads();
    }
};
