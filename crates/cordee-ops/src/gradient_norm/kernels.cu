// The sum of squares in two stages, and what the update makes of it.

// Elements that one block squares.
constexpr u32 BLOCK = 16384;

// partials[block] = the sum of the squares of the block's elements of `values` [count], in f64. NaN or
// infinite where an element is. A block of 256 threads for each BLOCK elements.
extern "C" __global__ void __launch_bounds__(256) squares(const element *values, double *partials, u64 count) {
    __shared__ double scratch[WARP];
    constexpr u32 COUNT = Vector<element>::COUNT;
    u64 start = (u64)blockIdx.x * BLOCK;
    const element *mine = values + start;
    u32 left = (u32)min((u64)BLOCK, count - start);
    u32 whole = aligned<COUNT>(values) ? left / COUNT * COUNT : 0;
    // One for each element of a vector: sums that wait for each other would wait long in f64.
    double sums[COUNT] = {};
#pragma unroll 4
    for (u32 index = threadIdx.x * COUNT; index < whole; index += blockDim.x * COUNT) {
        Vector<element> some = load_vector(mine + index);
#pragma unroll
        for (u32 j = 0; j < COUNT; j++) {
            double value = (double)widen(some.at[j]);
            sums[j] = fma(value, value, sums[j]);
        }
    }
    for (u32 index = whole + threadIdx.x; index < left; index += blockDim.x) {
        double value = (double)widen(mine[index]);
        sums[0] = fma(value, value, sums[0]);
    }
    // Neighbours first.
#pragma unroll
    for (u32 step = 1; step < COUNT; step *= 2) {
#pragma unroll
        for (u32 j = 0; j < COUNT; j += 2 * step) {
            sums[j] += sums[j + step];
        }
    }
    double sum = block_sum(sums[0], scratch);
    if (threadIdx.x == 0) {
        partials[blockIdx.x] = sum;
    }
}

// sum [1] = the sum of `partials` [count], in one order. One block of whole warps, at most 1024 threads.
extern "C" __global__ void __launch_bounds__(1024) add_squares(const double *partials, double *sum, u64 count) {
    __shared__ double scratch[WARP];
    double mine = 0.0;
    for (u64 index = threadIdx.x; index < count; index += blockDim.x) {
        mine += partials[index];
    }
    mine = block_sum(mine, scratch);
    if (threadIdx.x == 0) {
        *sum = mine;
    }
}

// sum [1] = the sum of `squares` [count], one after the other; scale [1] = what summed gradients over
// `tokens` tokens are multiplied by, where that is their sum of squares: 1 / tokens, less where the norm
// of their mean is larger than `max_norm`, which 0 turns off; NaN where the sum is not finite. One thread.
extern "C" __global__ void update_scale(const double *squares, u64 count, double tokens, double max_norm,
                                        double *sum, double *scale) {
    double total = 0.0, clip = 1.0;
    for (u64 index = 0; index < count; index++) {
        total += squares[index];
    }
    *sum = total;
    if (max_norm != 0.0) {
        clip = min(1.0, max_norm / (sqrt(total) / tokens + 1e-6));
    }
    // A number less itself is 0, if it is finite, and otherwise NaN.
    *scale = clip / tokens + (total - total);
}
