// Attention on tensor cores: bf16, head_dim 64 and 128 (`FlashAttention`-2, Dao, 2023). Products of bf16 with sums in
// f32, the softmax in f32, probabilities rounded to bf16 for the next product, results rounded once.
//
// Each warp owns 16 rows: of queries in `forward` and `backward_queries`, of keys in `backward_keys`, which computes the
// scores transposed. So what one product leaves in a warp's registers is what the next one reads (mma.cuh), and warps
// share nothing but the tiles they read. Those come by asynchronous copies, the next one while one is worked on.
//
// Without atomic additions dq needs a pass of its own, which computes scores and dout v^T again: 7 products of
// tokens^2 head_dim in the backward where 5 would do, for results that are the same every time.
//
// Blocks: one dimension, as many as (heads or kv_heads) x ceil(tokens / rows of a block), the longest first:
//   forward           128 rows, 256 threads, shared memory 2 HEAD_DIM (128 + 4 * 64)
//   backward_queries   64 rows, 128 threads, shared memory 2 HEAD_DIM (2 * 64 + 4 * 64)
//   backward_keys      64 rows, 128 threads, shared memory 2 HEAD_DIM (2 * 64 + 4 * 64) + 4 * 4 * 64
// q, k, v, out and all gradients are 16-byte aligned, strides are multiples of 8.

// Rows of a warp, and of the tiles that go by.
constexpr u32 BAND = 16;
constexpr u32 TILE = 64;
constexpr u32 FORWARD_WARPS = 8;
constexpr u32 BACKWARD_WARPS = 4;
// Bytes of a row of a tile. Within a row the 16-byte chunks change places with the row's number, so that the same
// chunk of eight rows that follow one another lies in all 32 banks.
constexpr u32 ROW = HEAD_DIM * 2;
constexpr u32 CHUNKS = HEAD_DIM / 8;
constexpr u32 TILE_BYTES = TILE * ROW;
// Steps of 16 through head_dim.
constexpr u32 STEPS = HEAD_DIM / 16;
// Columns of scores that `backward_keys` has in registers at a time.
constexpr u32 PART = HEAD_DIM == 64 ? 64 : 32;

constexpr float LOG2_E = 1.44269504088896340736f;
constexpr float LN_2 = 0.69314718055994530942f;

typedef float Sums[4];

__device__ __forceinline__ u32 smaller(u32 a, u32 b) { return a < b ? a : b; }

// Rows `first ..` of one head into a tile; zeros after the last token.
template <u32 ROWS, u32 THREADS>
__device__ __forceinline__ void copy_tile(shared_address tile, const bf16 *head, u32 stride, u32 first, u32 tokens) {
#pragma unroll
    for (u32 i = 0; i < ROWS * CHUNKS / THREADS; i++) {
        u32 index = threadIdx.x + i * THREADS, row = index / CHUNKS, chunk = index % CHUNKS;
        bool there = first + row < tokens;
        const bf16 *from = head + (there ? (u64)(first + row) * stride : 0) + chunk * 8;
        copy_async_16(tile + row * ROW + ((chunk ^ row % 8) << 4), from, there);
    }
}

// Where a lane's row and chunk of 16 x 16 elements of a tile are, for load_matrices.
struct Place {
    u32 row, chunk;

    // `step` counts 16 columns.
    __device__ __forceinline__ shared_address at(shared_address tile, u32 first_row, u32 step) const {
        return tile + first_row * ROW + row + ((step << 5) ^ chunk);
    }
};

// The four 8 x 8 matrices one below the other, then to the right: A, and B transposed when it is loaded (rows are k).
__device__ __forceinline__ Place place_down(u32 lane) {
    return {lane % 16 * ROW, (lane / 16 ^ lane % 8) << 4};
}

// To the right, then down: B as rows of what it is the transpose of (rows are n).
__device__ __forceinline__ Place place_right(u32 lane) {
    return {(lane % 8 + lane / 16 * 8) * ROW, (lane / 8 % 2 ^ lane % 8) << 4};
}

template <u32 COUNT> __device__ __forceinline__ void clear(Sums (&sums)[COUNT]) {
#pragma unroll
    for (u32 i = 0; i < COUNT; i++) {
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            sums[i][j] = 0;
        }
    }
}

// scores = a b^T: 16 rows of one tile with some of another, over head_dim.
template <u32 COUNT>
__device__ __forceinline__ void multiply(Sums (&scores)[COUNT], shared_address a, u32 a_row, shared_address b,
                                         u32 b_row, Place down, Place right) {
    clear(scores);
#pragma unroll
    for (u32 step = 0; step < STEPS; step++) {
        u32 of_a[4];
        load_matrices(of_a, down.at(a, a_row, step));
#pragma unroll
        for (u32 i = 0; i < COUNT; i += 2) {
            u32 of_b[4];
            load_matrices(of_b, right.at(b, b_row + i * 8, step));
            multiply_add(scores[i], of_a, of_b[0], of_b[1]);
            multiply_add(scores[i + 1], of_a, of_b[2], of_b[3]);
        }
    }
}

// results += scores b: 16 rows of scores in registers, and as many rows of a tile as they have columns.
template <u32 COUNT>
__device__ __forceinline__ void accumulate(Sums (&results)[CHUNKS], const Sums (&scores)[COUNT], shared_address b,
                                           u32 b_row, Place down) {
#pragma unroll
    for (u32 i = 0; i < COUNT; i += 2) {
        u32 of_a[4] = {narrow2(scores[i][0], scores[i][1]), narrow2(scores[i][2], scores[i][3]),
                       narrow2(scores[i + 1][0], scores[i + 1][1]), narrow2(scores[i + 1][2], scores[i + 1][3])};
#pragma unroll
        for (u32 step = 0; step < STEPS; step++) {
            u32 of_b[4];
            load_matrices_transposed(of_b, down.at(b, b_row + i * 8, step));
            multiply_add(results[2 * step], of_a, of_b[0], of_b[1]);
            multiply_add(results[2 * step + 1], of_a, of_b[2], of_b[3]);
        }
    }
}

// Writes a warp's 16 rows by way of 16 rows of shared memory that are its own; `factors` are those of rows g and g + 8.
__device__ __forceinline__ void store_band(bf16 *head, u32 stride, u32 first, u32 tokens,
                                           const Sums (&results)[CHUNKS], const float (&factors)[2],
                                           unsigned char *band) {
    u32 lane = threadIdx.x % WARP, g = lane / 4, c = lane % 4;
    __syncwarp();
#pragma unroll
    for (u32 chunk = 0; chunk < CHUNKS; chunk++) {
        unsigned char *at = band + g * ROW + ((chunk ^ g) << 4) + c * 4;
        *(u32 *)at = narrow2(results[chunk][0] * factors[0], results[chunk][1] * factors[0]);
        *(u32 *)(at + 8 * ROW) = narrow2(results[chunk][2] * factors[1], results[chunk][3] * factors[1]);
    }
    __syncwarp();
#pragma unroll
    for (u32 i = lane; i < BAND * CHUNKS; i += WARP) {
        u32 row = i / CHUNKS, chunk = i % CHUNKS;
        Vector<bf16> vector = load_vector((const bf16 *)(band + row * ROW + ((chunk ^ row % 8) << 4)));
        if (first + row < tokens) {
            store_vector(head + (u64)(first + row) * stride + chunk * 8, vector);
        }
    }
}

// Over the four lanes that share rows.
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

// out = softmax(scale q k^T) v, lse its logarithm of sums. Blocks: heads x tiles of queries.
extern "C" __global__ void __launch_bounds__(FORWARD_WARPS *WARP, 2)
    forward(const bf16 *__restrict__ q, const bf16 *__restrict__ k, const bf16 *__restrict__ v,
            bf16 *__restrict__ out, float *__restrict__ lse, const u32 *__restrict__ documents, u32 tokens,
            u32 heads, u32 kv_heads, u32 q_stride, u32 k_stride, u32 v_stride, u32 len, u32 window, float scale) {
    constexpr u32 QUERIES = FORWARD_WARPS * BAND, THREADS = FORWARD_WARPS * WARP;
    DYNAMIC_SHARED(memory);
    shared_address queries = address_of(memory), stages = queries + QUERIES * ROW;
    Sees sees = {documents, tokens, len, window};
    u32 lane = threadIdx.x % WARP, g = lane / 4, c = lane % 4;
    Place down = place_down(lane), right = place_right(lane);
    u32 tiles = (tokens + QUERIES - 1) / QUERIES, head = blockIdx.x % heads;
    // The last queries see most keys.
    u32 first = (tiles - 1 - blockIdx.x / heads) * QUERIES, last = smaller(first + QUERIES, tokens) - 1;
    k += head / (heads / kv_heads) * HEAD_DIM;
    v += head / (heads / kv_heads) * HEAD_DIM;

    // The rows of this warp, the keys that its first and its last query see first, and those of this lane's two rows.
    u32 band = threadIdx.x / WARP * BAND, band_first = first + band, band_last = smaller(band_first + BAND, tokens) - 1;
    bool idle = band_first >= tokens;
    u32 first_key = idle ? 0 : sees.first_key(band_first), last_first_key = idle ? 0 : sees.first_key(band_last);
    u32 first_keys[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        first_keys[half] = sees.first_key(smaller(band_first + g + 8 * half, tokens - 1));
    }

    Sums results[CHUNKS];
    clear(results);
    float largest[2] = {-INFINITY, -INFINITY}, sums[2] = {0, 0};
    float to_log2 = scale * LOG2_E;

    // From the last keys to the first: every query sees itself, so that its largest is a number from the first tile on.
    u32 first_tile = sees.first_key(first) / TILE, tile = last / TILE;
    copy_tile<QUERIES, THREADS>(queries, q + head * HEAD_DIM, q_stride, first, tokens);
    copy_tile<TILE, THREADS>(stages, k, k_stride, tile * TILE, tokens);
    copy_tile<TILE, THREADS>(stages + TILE_BYTES, v, v_stride, tile * TILE, tokens);
    for (u32 stage = 0;; stage ^= 1, tile--) {
        shared_address keys = stages + stage * (2 * TILE_BYTES), values = keys + TILE_BYTES;
        // After this the tile is there, and no warp reads the one before any more.
        wait_for_copies();
        __syncthreads();
        if (tile > first_tile) {
            shared_address next = stages + (stage ^ 1) * (2 * TILE_BYTES);
            copy_tile<TILE, THREADS>(next, k, k_stride, (tile - 1) * TILE, tokens);
            copy_tile<TILE, THREADS>(next + TILE_BYTES, v, v_stride, (tile - 1) * TILE, tokens);
        }
        u32 key = tile * TILE;
        if (!idle && key <= band_last && key + TILE > first_key) {
            Sums scores[TILE / 8];
            multiply(scores, queries, band, keys, 0, down, right);
            bool whole = key + TILE - 1 <= band_first && key >= last_first_key;
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                u32 query = band_first + g + 8 * half;
                float most = largest[half];
#pragma unroll
                for (u32 i = 0; i < TILE / 8; i++) {
#pragma unroll
                    for (u32 j = 0; j < 2; j++) {
                        u32 column = key + i * 8 + c * 2 + j;
                        bool seen = whole || (column <= query && column >= first_keys[half]);
                        float &score = scores[i][half * 2 + j];
                        score = seen ? score * to_log2 : -INFINITY;
                        most = fmaxf(most, score);
                    }
                }
                most = quad_max(most);
                float shrink = fast_exp2(largest[half] - most), add = 0;
                largest[half] = most;
#pragma unroll
                for (u32 i = 0; i < TILE / 8; i++) {
#pragma unroll
                    for (u32 j = 0; j < 2; j++) {
                        float &score = scores[i][half * 2 + j];
                        score = fast_exp2(score - most);
                        add += score;
                    }
                }
                // Of this lane's columns; the four lanes' are added at the end.
                sums[half] = fmaf(sums[half], shrink, add);
#pragma unroll
                for (u32 i = 0; i < CHUNKS; i++) {
                    results[i][half * 2] *= shrink;
                    results[i][half * 2 + 1] *= shrink;
                }
            }
            accumulate(results, scores, values, 0, down);
        }
        if (tile == first_tile) {
            break;
        }
    }
    if (idle) {
        return;
    }

    float factors[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        u32 query = band_first + g + 8 * half;
        float sum = quad_sum(sums[half]);
        factors[half] = 1 / sum;
        if (query < tokens && c == 0) {
            lse[(u64)head * tokens + query] = (largest[half] + log2f(sum)) * LN_2;
        }
    }
    store_band(out + head * HEAD_DIM, heads * HEAD_DIM, band_first, tokens, results, factors, memory + band * ROW);
}

// dq = scale (p (dout v^T - delta)) k, where p = exp(scale q k^T - lse). Blocks: heads x tiles of queries.
extern "C" __global__ void __launch_bounds__(BACKWARD_WARPS *WARP, 2)
    backward_queries(const bf16 *__restrict__ q, const bf16 *__restrict__ k, const bf16 *__restrict__ v,
                     const bf16 *__restrict__ dout, const float *__restrict__ lse, const float *__restrict__ delta,
                     bf16 *__restrict__ dq, const u32 *__restrict__ documents, u32 tokens, u32 heads, u32 kv_heads,
                     u32 q_stride, u32 k_stride, u32 v_stride, u32 dq_stride, u32 len, u32 window, float scale) {
    constexpr u32 QUERIES = BACKWARD_WARPS * BAND, THREADS = BACKWARD_WARPS * WARP;
    DYNAMIC_SHARED(memory);
    shared_address queries = address_of(memory), douts = queries + QUERIES * ROW, stages = douts + QUERIES * ROW;
    Sees sees = {documents, tokens, len, window};
    u32 lane = threadIdx.x % WARP, g = lane / 4, c = lane % 4;
    Place down = place_down(lane), right = place_right(lane);
    u32 tiles = (tokens + QUERIES - 1) / QUERIES, head = blockIdx.x % heads;
    u32 first = (tiles - 1 - blockIdx.x / heads) * QUERIES, last = smaller(first + QUERIES, tokens) - 1;
    k += head / (heads / kv_heads) * HEAD_DIM;
    v += head / (heads / kv_heads) * HEAD_DIM;

    u32 band = threadIdx.x / WARP * BAND, band_first = first + band, band_last = smaller(band_first + BAND, tokens) - 1;
    bool idle = band_first >= tokens;
    u32 first_key = idle ? 0 : sees.first_key(band_first), last_first_key = idle ? 0 : sees.first_key(band_last);
    u32 first_keys[2];
    float lses[2], deltas[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        u32 query = smaller(band_first + g + 8 * half, tokens - 1);
        first_keys[half] = sees.first_key(query);
        lses[half] = lse[(u64)head * tokens + query] * LOG2_E;
        deltas[half] = delta[(u64)head * tokens + query];
    }

    Sums results[CHUNKS];
    clear(results);
    float to_log2 = scale * LOG2_E;

    u32 first_tile = sees.first_key(first) / TILE, last_tile = last / TILE;
    copy_tile<QUERIES, THREADS>(queries, q + head * HEAD_DIM, q_stride, first, tokens);
    copy_tile<QUERIES, THREADS>(douts, dout + head * HEAD_DIM, heads * HEAD_DIM, first, tokens);
    copy_tile<TILE, THREADS>(stages, k, k_stride, first_tile * TILE, tokens);
    copy_tile<TILE, THREADS>(stages + TILE_BYTES, v, v_stride, first_tile * TILE, tokens);
    for (u32 tile = first_tile; tile <= last_tile; tile++) {
        u32 stage = (tile - first_tile) % 2;
        shared_address keys = stages + stage * (2 * TILE_BYTES), values = keys + TILE_BYTES;
        wait_for_copies();
        __syncthreads();
        if (tile < last_tile) {
            shared_address next = stages + (stage ^ 1) * (2 * TILE_BYTES);
            copy_tile<TILE, THREADS>(next, k, k_stride, (tile + 1) * TILE, tokens);
            copy_tile<TILE, THREADS>(next + TILE_BYTES, v, v_stride, (tile + 1) * TILE, tokens);
        }
        u32 key = tile * TILE;
        if (idle || key > band_last || key + TILE <= first_key) {
            continue;
        }
        Sums scores[TILE / 8], dscores[TILE / 8];
        multiply(scores, queries, band, keys, 0, down, right);
        multiply(dscores, douts, band, values, 0, down, right);
        bool whole = key + TILE - 1 <= band_first && key >= last_first_key;
#pragma unroll
        for (u32 i = 0; i < TILE / 8; i++) {
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                u32 half = j / 2, query = band_first + g + 8 * half, column = key + i * 8 + c * 2 + j % 2;
                bool seen = whole || (column <= query && column >= first_keys[half]);
                float p = fast_exp2(fmaf(scores[i][j], to_log2, -lses[half]));
                dscores[i][j] = seen ? p * (dscores[i][j] - deltas[half]) : 0.0f;
            }
        }
        accumulate(results, dscores, keys, 0, down);
    }
    if (idle) {
        return;
    }
    float factors[2] = {scale, scale};
    store_band(dq + head * HEAD_DIM, dq_stride, band_first, tokens, results, factors, memory + band * ROW);
}

// One tile of queries for `backward_keys`: q, dout, lse, delta of one head.
template <u32 THREADS>
__device__ __forceinline__ void copy_queries(shared_address stage, const bf16 *q, u32 q_stride, const bf16 *dout,
                                             const float *lse, const float *delta, u32 head, u32 heads, u32 first,
                                             u32 tokens) {
    copy_tile<TILE, THREADS>(stage, q + head * HEAD_DIM, q_stride, first, tokens);
    copy_tile<TILE, THREADS>(stage + TILE_BYTES, dout + head * HEAD_DIM, heads * HEAD_DIM, first, tokens);
    static_assert(THREADS == 2 * TILE, "each thread copies one statistic");
    u32 query = threadIdx.x % TILE;
    bool there = first + query < tokens;
    const float *from = (threadIdx.x < TILE ? lse : delta) + (there ? (u64)head * tokens + first + query : 0);
    copy_async_4(stage + 2 * TILE_BYTES + threadIdx.x * 4, from, there);
}

// dv = p^T dout, dk = scale (p (dout v^T - delta))^T q, over the query heads of each key head one after the other.
// Blocks: kv_heads x tiles of keys.
extern "C" __global__ void __launch_bounds__(BACKWARD_WARPS *WARP, 2)
    backward_keys(const bf16 *__restrict__ q, const bf16 *__restrict__ k, const bf16 *__restrict__ v,
                  const bf16 *__restrict__ dout, const float *__restrict__ lse, const float *__restrict__ delta,
                  bf16 *__restrict__ dk, bf16 *__restrict__ dv, const u32 *__restrict__ documents, u32 tokens,
                  u32 heads, u32 kv_heads, u32 q_stride, u32 k_stride, u32 v_stride, u32 dk_stride, u32 dv_stride,
                  u32 len, u32 window, float scale) {
    constexpr u32 KEYS = BACKWARD_WARPS * BAND, THREADS = BACKWARD_WARPS * WARP;
    constexpr u32 STAGE = 2 * TILE_BYTES + 2 * TILE * 4;
    DYNAMIC_SHARED(memory);
    shared_address keys = address_of(memory), values = keys + KEYS * ROW, stages = values + KEYS * ROW;
    const unsigned char *stages_memory = memory + 2 * KEYS * ROW;
    Sees sees = {documents, tokens, len, window};
    u32 lane = threadIdx.x % WARP, g = lane / 4, c = lane % 4;
    Place down = place_down(lane), right = place_right(lane);
    u32 kv_head = blockIdx.x % kv_heads, group = heads / kv_heads;
    // The first keys are seen by most queries.
    u32 first = blockIdx.x / kv_heads * KEYS, last = smaller(first + KEYS, tokens) - 1;

    u32 band = threadIdx.x / WARP * BAND, band_first = first + band, band_last = smaller(band_first + BAND, tokens) - 1;
    bool idle = band_first >= tokens;
    u32 first_query_end = idle ? 0 : sees.query_end(band_first), query_end = idle ? 0 : sees.query_end(band_last);
    u32 query_ends[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        query_ends[half] = sees.query_end(smaller(band_first + g + 8 * half, tokens - 1));
    }

    Sums dkeys[CHUNKS], dvalues[CHUNKS];
    clear(dkeys);
    clear(dvalues);
    float to_log2 = scale * LOG2_E;

    u32 first_tile = first / TILE, last_tile = (sees.query_end(last) - 1) / TILE;
    u32 head = kv_head * group, last_head = head + group - 1, tile = first_tile;
    copy_tile<KEYS, THREADS>(keys, k + kv_head * HEAD_DIM, k_stride, first, tokens);
    copy_tile<KEYS, THREADS>(values, v + kv_head * HEAD_DIM, v_stride, first, tokens);
    copy_queries<THREADS>(stages, q, q_stride, dout, lse, delta, head, heads, tile * TILE, tokens);
    for (u32 stage = 0;; stage ^= 1) {
        shared_address queries = stages + stage * STAGE, douts = queries + TILE_BYTES;
        const float *statistics = (const float *)(stages_memory + stage * STAGE + 2 * TILE_BYTES);
        u32 query = tile * TILE;
        bool more = tile < last_tile || head < last_head;
        wait_for_copies();
        __syncthreads();
        if (more) {
            if (tile < last_tile) {
                tile++;
            } else {
                tile = first_tile;
                head++;
            }
            copy_queries<THREADS>(stages + (stage ^ 1) * STAGE, q, q_stride, dout, lse, delta, head, heads,
                                  tile * TILE, tokens);
        }
        if (!idle && query + TILE > band_first && query < query_end) {
            // After the last token no query is seen: query_end says so.
            bool whole = query >= band_last && query + TILE <= first_query_end;
#pragma unroll
            for (u32 part = 0; part < TILE; part += PART) {
                Sums scores[PART / 8], dscores[PART / 8];
                multiply(scores, keys, band, queries, part, down, right);
                multiply(dscores, values, band, douts, part, down, right);
#pragma unroll
                for (u32 i = 0; i < PART / 8; i++) {
#pragma unroll
                    for (u32 j = 0; j < 2; j++) {
                        u32 at = part + i * 8 + c * 2 + j, column = query + at;
                        float lse_here = statistics[at] * LOG2_E, delta_here = statistics[TILE + at];
#pragma unroll
                        for (u32 half = 0; half < 2; half++) {
                            u32 key = band_first + g + 8 * half;
                            bool seen = whole || (column >= key && column < query_ends[half]);
                            float &score = scores[i][half * 2 + j], &dscore = dscores[i][half * 2 + j];
                            score = seen ? fast_exp2(fmaf(score, to_log2, -lse_here)) : 0.0f;
                            dscore = seen ? score * (dscore - delta_here) : 0.0f;
                        }
                    }
                }
                accumulate(dvalues, scores, douts, part, down);
                accumulate(dkeys, dscores, queries, part, down);
            }
        }
        if (!more) {
            break;
        }
    }
    if (idle) {
        return;
    }
    float factors[2] = {scale, scale}, ones[2] = {1, 1};
    store_band(dk + kv_head * HEAD_DIM, dk_stride, band_first, tokens, dkeys, factors, memory + band * ROW);
    store_band(dv + kv_head * HEAD_DIM, dv_stride, band_first, tokens, dvalues, ones, memory + (KEYS + band) * ROW);
}
