// Products of matrices for sizes, strides and addresses that cuBLASLt has no algorithm for: any of
// them, in tiles that a block holds in shared memory. Sums are f32, of sums over `SPAN` steps of the
// inner dimension each. Right, not fast.

constexpr u32 THREADS = 256;
// Rows and columns of the output that a block computes.
constexpr u32 TILE = 64;
// Steps of the inner dimension that it holds at a time.
constexpr u32 DEPTH = 16;
// Steps of the inner dimension that are summed on their own, so that long sums lose few digits.
constexpr u32 SPAN = 256;
// Rows and columns that a thread computes.
constexpr u32 EACH = TILE / 16;

// Bits of `epilogue`.
constexpr u32 BIAS = 1;
constexpr u32 GELU = 2;
constexpr u32 GELU_GRADIENT = 4;

// The tanh form, as cuBLASLt has it.
__device__ __forceinline__ float gelu(float x) {
    float inner = 0.7978845608f * fmaf(0.044715f * x, x * x, x);
    return 0.5f * x * (1.0f + tanhf(inner));
}

__device__ __forceinline__ float gelu_slope(float x) {
    float inner = 0.7978845608f * fmaf(0.044715f * x, x * x, x);
    float slope = 0.7978845608f * fmaf(3.0f * 0.044715f, x * x, 1.0f);
    float t = tanhf(inner);
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * slope;
}

// Reads the part of a matrix that begins at (`across`, `inner`) into tile[DEPTH][TILE], zeros
// outside. Neighbouring threads read neighbours in memory, whichever stride is 1.
__device__ __forceinline__ void fill(float (*tile)[TILE + 1], const element *matrix, u64 across_stride,
                                     u64 inner_stride, u32 across, u32 inner, u32 across_end, u32 inner_end) {
    for (u32 index = threadIdx.x; index < TILE * DEPTH; index += THREADS) {
        u32 a = inner_stride == 1 ? index / DEPTH : index % TILE;
        u32 i = inner_stride == 1 ? index % DEPTH : index / TILE;
        bool inside = across + a < across_end && inner + i < inner_end;
        tile[i][a] = inside ? widen(matrix[(across + a) * across_stride + (inner + i) * inner_stride]) : 0.0f;
    }
}

template <typename Output>
__device__ __forceinline__ void multiply(const element *left, u64 left_row, u64 left_inner, const element *right,
                                         u64 right_inner, u64 right_column, Output *to, u64 to_row, u32 rows,
                                         u32 columns, u32 inner, const Output *added, u32 epilogue, const Output *bias,
                                         Output *auxiliary, u64 auxiliary_row) {
    __shared__ float left_tile[DEPTH][TILE + 1];
    __shared__ float right_tile[DEPTH][TILE + 1];
    u32 tiles_across = (columns + TILE - 1) / TILE;
    u32 first_row = blockIdx.x / tiles_across * TILE, first_column = blockIdx.x % tiles_across * TILE;
    u32 thread_row = threadIdx.x / 16 * EACH, thread_column = threadIdx.x % 16;
    float sums[EACH][EACH] = {}, span[EACH][EACH] = {};
    for (u32 step = 0; step < inner; step += DEPTH) {
        fill(left_tile, left, left_row, left_inner, first_row, step, rows, inner);
        fill(right_tile, right, right_column, right_inner, first_column, step, columns, inner);
        __syncthreads();
#pragma unroll
        for (u32 k = 0; k < DEPTH; k++) {
#pragma unroll
            for (u32 r = 0; r < EACH; r++) {
#pragma unroll
                for (u32 c = 0; c < EACH; c++) {
                    span[r][c] = fmaf(left_tile[k][thread_row + r], right_tile[k][thread_column + 16 * c], span[r][c]);
                }
            }
        }
        if ((step + DEPTH) % SPAN == 0 || step + DEPTH >= inner) {
#pragma unroll
            for (u32 r = 0; r < EACH; r++) {
#pragma unroll
                for (u32 c = 0; c < EACH; c++) {
                    sums[r][c] += span[r][c];
                    span[r][c] = 0.0f;
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (u32 r = 0; r < EACH; r++) {
#pragma unroll
        for (u32 c = 0; c < EACH; c++) {
            u32 row = first_row + thread_row + r, column = first_column + thread_column + 16 * c;
            if (row >= rows || column >= columns) {
                continue;
            }
            float x = sums[r][c];
            if (added) {
                x += widen(added[row * to_row + column]);
            }
            if (epilogue & BIAS) {
                x += widen(bias[column]);
            }
            if (epilogue & GELU) {
                auxiliary[row * auxiliary_row + column] = narrow<Output>(x);
                x = gelu(x);
            }
            if (epilogue & GELU_GRADIENT) {
                x *= gelu_slope(widen(auxiliary[row * auxiliary_row + column]));
            }
            to[row * to_row + column] = narrow<Output>(x);
        }
    }
}

// sums[i] = the sum over `count` of source[i * stride + j * count_stride]: the gradient of a bias,
// which replaces what was there, as cuBLASLt does. One thread for each of `length` sums.
template <typename Source, typename Output>
__device__ __forceinline__ void sum(const Source *source, u64 stride, u64 count_stride, Output *sums, u32 length,
                                    u32 count) {
    u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= length) {
        return;
    }
    float x = 0.0f;
    for (u32 j = 0; j < count; j++) {
        x += widen(source[i * stride + j * count_stride]);
    }
    sums[i] = narrow<Output>(x);
}

// to[rows, columns] = left[rows, inner] right[inner, columns], plus `added` [rows, columns], of the stride of
// `to` and perhaps `to` itself, unless that is null; then the epilogue. `bias` [columns] and `auxiliary`
// [rows, columns] hold what the output holds. Strides are in elements. Grid: a block for each tile of the output, those of a row of tiles one after the
// other; block: THREADS.
extern "C" __global__ void __launch_bounds__(THREADS)
    product_element(const element *left, u64 left_row, u64 left_inner, const element *right, u64 right_inner,
                    u64 right_column, element *to, u64 to_row, u32 rows, u32 columns, u32 inner,
                    const element *added, u32 epilogue, const element *bias, element *auxiliary, u64 auxiliary_row) {
    multiply(left, left_row, left_inner, right, right_inner, right_column, to, to_row, rows, columns, inner, added,
             epilogue, bias, auxiliary, auxiliary_row);
}

// The same with an output of f32.
extern "C" __global__ void __launch_bounds__(THREADS)
    product_f32(const element *left, u64 left_row, u64 left_inner, const element *right, u64 right_inner,
                u64 right_column, float *to, u64 to_row, u32 rows, u32 columns, u32 inner,
                const float *added, u32 epilogue, const float *bias, float *auxiliary, u64 auxiliary_row) {
    multiply(left, left_row, left_inner, right, right_inner, right_column, to, to_row, rows, columns, inner, added,
             epilogue, bias, auxiliary, auxiliary_row);
}

// Sums of a matrix of `element`, see `sum`. Grid: ceil(length / THREADS); block: THREADS.
extern "C" __global__ void sum_elements(const element *source, u64 stride, u64 count_stride, element *sums, u32 length,
                                        u32 count) {
    sum(source, stride, count_stride, sums, length, count);
}

// The same with sums of f32.
extern "C" __global__ void sum_elements_f32(const element *source, u64 stride, u64 count_stride, float *sums,
                                            u32 length, u32 count) {
    sum(source, stride, count_stride, sums, length, count);
}

// Sums of a matrix of f32.
extern "C" __global__ void sum_f32(const float *source, u64 stride, u64 count_stride, float *sums, u32 length,
                                   u32 count) {
    sum(source, stride, count_stride, sums, length, count);
}
