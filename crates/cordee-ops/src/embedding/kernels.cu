// The token embedding: rows gathered, and their gradients added up. CORDEE_SCALAR unless `dim` is a
// whole number of vectors.

// y [n, dim] = rows `tokens` [n] of weight [vocab, dim], times `scale`.
//
// A block has `block_rows` rows: a grid of ceil(n / block_rows), blocks of up to 256.
extern "C" __global__ void __launch_bounds__(256)
    forward(const u32 *__restrict__ tokens, const element *__restrict__ weight, element *__restrict__ y, u32 n,
            u32 dim, u32 block_rows, float scale) {
    u32 vectors = dim / ROW_VECTOR;
    for (u32 item = threadIdx.x; item < block_rows * vectors; item += blockDim.x) {
        u32 row = blockIdx.x * block_rows + item / vectors;
        if (row >= n) {
            return;
        }
        u32 column = item % vectors * ROW_VECTOR;
        Vector<element, ROW_VECTOR> vector = load_vector<ROW_VECTOR>(weight + (u64)tokens[row] * dim + column);
#pragma unroll
        for (u32 j = 0; j < ROW_VECTOR; j++) {
            vector.at[j] = narrow<element>(widen(vector.at[j]) * scale);
        }
        store_vector(y + (u64)row * dim + column, vector);
    }
}

// Rows that a thread asks for before it adds the first of them.
constexpr u32 AHEAD = 4;

// The sum over `columns` of the rows order[begin] .. order[end] of `rows`, or the rows begin .. end where
// `order` is null.
template <typename E>
__device__ __forceinline__ Vector<float, ROW_VECTOR> sum_of_rows(const E *__restrict__ rows,
                                                                 const u32 *__restrict__ order, u32 begin, u32 end,
                                                                 u32 dim, u32 column) {
    Vector<float, ROW_VECTOR> total = {};
    for (u32 next = begin; next < end; next += AHEAD) {
        Vector<E, ROW_VECTOR> vectors[AHEAD];
#pragma unroll
        for (u32 k = 0; k < AHEAD; k++) {
            // Past the end the last one once more, so that nothing waits for a decision.
            u32 index = min(next + k, end - 1);
            u64 row = order ? order[index] : index;
            vectors[k] = load_vector<ROW_VECTOR>(rows + row * dim + column);
        }
#pragma unroll
        for (u32 k = 0; k < AHEAD; k++) {
            if (next + k < end) {
#pragma unroll
                for (u32 j = 0; j < ROW_VECTOR; j++) {
                    total.at[j] += widen(vectors[k].at[j]);
                }
            }
        }
    }
    return total;
}

template <typename E>
__device__ __forceinline__ void add_rows(const E *__restrict__ rows, const u32 *__restrict__ order,
                                         const u32 *__restrict__ bounds, const u32 *__restrict__ targets,
                                         float *__restrict__ sums, u32 dim, float scale, bool add) {
    u32 begin = bounds[blockIdx.x], end = bounds[blockIdx.x + 1];
    float *target = sums + (u64)targets[blockIdx.x] * dim;
    for (u32 column = (blockIdx.y * blockDim.x + threadIdx.x) * ROW_VECTOR; column < dim;
         column += gridDim.y * blockDim.x * ROW_VECTOR) {
        Vector<float, ROW_VECTOR> total = sum_of_rows(rows, order, begin, end, dim, column), held = {};
        if (add) {
            held = load_vector<ROW_VECTOR>(target + column);
        }
#pragma unroll
        for (u32 j = 0; j < ROW_VECTOR; j++) {
            held.at[j] = fmaf(total.at[j], scale, held.at[j]);
        }
        store_vector(target + column, held);
    }
}

// Group g is the rows order[bounds[g]] .. order[bounds[g + 1]] of `rows` [.., dim]. Their sum, taken in
// this order, times `scale` is written to row targets[g] of `sums` [.., dim], or added to it where `add`
// is not 0. No two groups have one target.
//
// A grid of [groups, blocks that share the columns], blocks of up to 256.
extern "C" __global__ void __launch_bounds__(256)
    add_gradients(const element *rows, const u32 *order, const u32 *bounds, const u32 *targets, float *sums, u32 dim,
                  float scale, u32 add) {
    add_rows(rows, order, bounds, targets, sums, dim, scale, add != 0);
}

// Adds the sums of parts of groups, which lie one after the other: those of group g are the rows bounds[g]
// .. bounds[g + 1] of `rows` [.., dim], and are added to row targets[g] of `sums` [.., dim].
//
// Grid and blocks are those of `add_gradients`.
extern "C" __global__ void __launch_bounds__(256)
    add_parts(const float *rows, const u32 *bounds, const u32 *targets, float *sums, u32 dim) {
    add_rows(rows, nullptr, bounds, targets, sums, dim, 1.0f, true);
}
