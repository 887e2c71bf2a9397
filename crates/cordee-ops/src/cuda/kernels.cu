// What several operators need beside their own kernels.

template <typename To, typename From> __device__ __forceinline__ void convert(const From *from, To *to, u64 count) {
    constexpr u32 COUNT = Vector<bf16>::COUNT;
    u64 first = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * COUNT;
    if (first + COUNT <= count && aligned<COUNT>(from) && aligned<COUNT>(to)) {
        Vector<From, COUNT> vector = load_vector<COUNT>(from + first);
        Vector<To, COUNT> result;
#pragma unroll
        for (u32 j = 0; j < COUNT; j++) {
            result.at[j] = narrow<To>(widen(vector.at[j]));
        }
        store_vector(to + first, result);
        return;
    }
    for (u64 index = first; index < min(first + COUNT, count); index++) {
        to[index] = narrow<To>(widen(from[index]));
    }
}

// to [count] = from [count], rounded. One thread per 8 numbers: a grid of ceil(count / (8 * blockDim)),
// blocks of up to 256.
extern "C" __global__ void __launch_bounds__(256) to_bf16(const float *from, bf16 *to, u64 count) {
    convert(from, to, count);
}

// to [count] = from [count]. Grid and blocks are those of `to_bf16`.
extern "C" __global__ void __launch_bounds__(256) to_f32(const bf16 *from, float *to, u64 count) {
    convert(from, to, count);
}

// Adds the sum of each column of `partials` [rows, dim] to sums [dim]: the second stage of a sum over
// rows. The order is that of the rows modulo 32.
//
// A grid of ceil(dim / 32), blocks of 1024.
extern "C" __global__ void __launch_bounds__(1024)
    add_columns(const float *partials, float *sums, u32 rows, u32 dim) {
    __shared__ float tile[WARP][WARP + 1];
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u32 column = blockIdx.x * WARP + lane;
    float sum = 0.0f;
    if (column < dim) {
        for (u32 row = warp; row < rows; row += WARP) {
            sum += partials[(u64)row * dim + column];
        }
    }
    tile[warp][lane] = sum;
    __syncthreads();
    // A warp per column from here on.
    sum = warp_sum(tile[lane][warp]);
    column = blockIdx.x * WARP + warp;
    if (lane == 0 && column < dim) {
        sums[column] += sum;
    }
}
