// The gradient of a bias: the first stage of the sums of the columns of dy. The rows of a block depend
// on the shape alone, and sums are added in order.

constexpr u32 WARPS = 8;

// partials[blocks, columns]: sums of the columns of dy[rows, columns], rows of which begin every `stride`
// elements, over `block_rows` rows each. A lane has ROW_VECTOR columns, a warp every eighth row.
//
// Grid: [ceil(columns / (32 * ROW_VECTOR)), blocks]; block: 256.
extern "C" __global__ void __launch_bounds__(256)
    sum_rows(const element *dy, float *partials, u32 rows, u32 columns, u32 stride,
             u32 block_rows) {
    __shared__ float shared[WARPS][WARP * ROW_VECTOR];
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u32 column = (blockIdx.x * WARP + lane) * ROW_VECTOR;
    u32 first = blockIdx.y * block_rows, end = min(first + block_rows, rows);
    float sums[ROW_VECTOR] = {};
    if (column < columns) {
        for (u32 row = first + warp; row < end; row += WARPS) {
            Vector<element, ROW_VECTOR> values = load_vector<ROW_VECTOR>(dy + (u64)row * stride + column);
#pragma unroll
            for (u32 i = 0; i < ROW_VECTOR; i++) {
                sums[i] += widen(values.at[i]);
            }
        }
    }
    // Column i of each lane lies beside that of the next lane: no two lanes of a warp in one bank.
#pragma unroll
    for (u32 i = 0; i < ROW_VECTOR; i++) {
        shared[warp][i * WARP + lane] = sums[i];
    }
    __syncthreads();
    for (u32 at = threadIdx.x; at < WARP * ROW_VECTOR; at += WARP * WARPS) {
        u32 to = (blockIdx.x * WARP + at % WARP) * ROW_VECTOR + at / WARP;
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
