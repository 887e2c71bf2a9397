// The gradient of a bias: sums of the columns of dy, in two stages so that few columns of many rows
// keep the GPU busy. The rows of a block depend on the shape alone, and sums are added in order.

constexpr u32 WARPS = 8;

// A block sums `block_rows` rows of 32 * V columns: a lane has V columns, a warp every eighth row.
template <u32 V>
__device__ __forceinline__ void sum_rows(const element *dy, float *partials, u32 rows, u32 columns, u32 block_rows) {
    __shared__ float shared[WARPS][WARP * V + 1];
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u32 column = (blockIdx.x * WARP + lane) * V;
    u32 first = blockIdx.y * block_rows, end = min(first + block_rows, rows);
    float sums[V] = {};
    if (column < columns) {
        for (u32 row = first + warp; row < end; row += WARPS) {
            const element *from = dy + (u64)row * columns + column;
            if constexpr (V == 1) {
                sums[0] += widen(*from);
            } else {
                Vector<element> values = load_vector(from);
#pragma unroll
                for (u32 i = 0; i < V; i++) {
                    sums[i] += widen(values.at[i]);
                }
            }
        }
    }
#pragma unroll
    for (u32 i = 0; i < V; i++) {
        shared[warp][i * WARP + lane] = sums[i];
    }
    __syncthreads();
    // What thread t adds up is the i-th column of some lane, where t = i * 32 + lane.
    for (u32 at = threadIdx.x; at < WARP * V; at += WARP * WARPS) {
        u32 to = (blockIdx.x * WARP + at % WARP) * V + at / WARP;
        if (to < columns) {
            float sum = 0.0f;
#pragma unroll
            for (u32 w = 0; w < WARPS; w++) {
                sum += shared[w][at];
            }
            partials[(u64)blockIdx.y * columns + to] = sum;
        }
    }
}

// partials[blocks, columns]: sums of the columns of dy[rows, columns] over `block_rows` rows each.
// `columns` is a multiple of what a 16-byte access moves, and dy is aligned to it.
// Grid: [ceil(columns / (32 * Vector<element>::COUNT)), blocks]; block: 256.
extern "C" __global__ void __launch_bounds__(256)
    sum_rows_vectors(const element *dy, float *partials, u32 rows, u32 columns, u32 block_rows) {
    sum_rows<Vector<element>::COUNT>(dy, partials, rows, columns, block_rows);
}

// The same for any number of columns. Grid: [ceil(columns / 32), blocks]; block: 256.
extern "C" __global__ void __launch_bounds__(256)
    sum_rows_any(const element *dy, float *partials, u32 rows, u32 columns, u32 block_rows) {
    sum_rows<1>(dy, partials, rows, columns, block_rows);
}

// dbias[columns] += the sums of the columns of partials[blocks, columns].
// Grid: ceil(columns / 32); block: 256.
extern "C" __global__ void __launch_bounds__(256)
    add_partials(const float *partials, float *dbias, u32 blocks, u32 columns) {
    __shared__ float shared[WARPS][WARP];
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u32 column = blockIdx.x * WARP + lane;
    float sum = 0.0f;
    if (column < columns) {
        for (u32 block = warp; block < blocks; block += WARPS) {
            sum += partials[(u64)block * columns + column];
        }
    }
    shared[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && column < columns) {
        float total = 0.0f;
#pragma unroll
        for (u32 w = 0; w < WARPS; w++) {
            total += shared[w][lane];
        }
        dbias[column] += total;
    }
}
