// Attention for every head_dim up to 256 in f32 and bf16, on the ordinary cores and in f32: tiles of queries and keys
// in shared memory, the softmax computed as the keys come (Dao et al., 2022). What tensor cores do not compute.
//
// A block of 16 x 16 threads has a tile of TILE rows (of queries; of keys for dk and dv) and goes over tiles of TILE
// columns. Thread (y, x) has scores of ROWS rows from ROWS y and of the columns x, x + 16, ..., and of the rows' results the elements x,
// x + 16, ... Sums are in the order of the columns: they depend on shapes alone.
//
// Blocks: one dimension, as many as (heads or kv_heads) x ceil(tokens / TILE), the longest first; 256 threads;
// shared memory: the tiles as f32, rows of STRIDE:
//   forward           4 (2 TILE STRIDE + TILE (TILE + 4))
//   backward_queries  4 (4 TILE STRIDE + TILE (TILE + 4))
//   backward_keys     4 (4 TILE STRIDE + 2 TILE (TILE + 4))

// 64, 32 or 16: what the shared memory of the GPU has room for.
#ifndef TILE
#define TILE (HEAD_DIM <= 128 ? 64 : 32)
#endif

constexpr u32 THREADS = 256;
constexpr u32 SIDE = 16;
constexpr u32 ROWS = TILE / SIDE;
constexpr u32 COLUMNS = (HEAD_DIM + SIDE - 1) / SIDE;
// Rows in shared memory: of whole 16 bytes, an odd number of them, so that those of eight rows lie in different banks.
constexpr u32 QUADS = (HEAD_DIM + 3) / 4;
constexpr u32 STRIDE = 4 * (QUADS + 1 - QUADS % 2);
constexpr u32 SCORES = TILE + 4;

struct Thread {
    u32 x, y;
};

__device__ __forceinline__ Thread thread_of_block() { return {threadIdx.x % SIDE, threadIdx.x / SIDE}; }

__device__ __forceinline__ u32 smaller(u32 a, u32 b) { return a < b ? a : b; }

// Rows `first ..` of one head, as f32; zeros after the last token and in the columns after HEAD_DIM.
__device__ __forceinline__ void load_tile(float *tile, const element *head, u32 stride, u32 first, u32 tokens) {
    constexpr u32 VECTORS = Vector<element>::COUNT;
    if constexpr (HEAD_DIM % VECTORS == 0) {
        if (((u64)head | (u64)stride * sizeof(element)) % 16 == 0) {
            constexpr u32 PIECES = (HEAD_DIM + VECTORS - 1) / VECTORS;
#pragma unroll 4
            for (u32 i = threadIdx.x; i < TILE * PIECES; i += THREADS) {
                u32 row = i / PIECES, column = i % PIECES * VECTORS;
                Vector<element> vector = {};
                if (first + row < tokens) {
                    vector = load_vector(head + (u64)(first + row) * stride + column);
                }
#pragma unroll
                for (u32 j = 0; j < VECTORS; j += 4) {
                    Vector<float> wide = {{widen(vector.at[j]), widen(vector.at[j + 1]), widen(vector.at[j + 2]),
                                           widen(vector.at[j + 3])}};
                    store_vector(tile + row * STRIDE + column + j, wide);
                }
            }
            return;
        }
    }
    for (u32 i = threadIdx.x; i < TILE * STRIDE; i += THREADS) {
        u32 row = i / STRIDE, column = i % STRIDE;
        bool there = first + row < tokens && column < HEAD_DIM;
        tile[i] = there ? widen(head[(u64)(first + row) * stride + column]) : 0.0f;
    }
}

// The products of a thread's rows of one tile with its columns, rows of the other.
__device__ __forceinline__ void multiply(float (&scores)[ROWS][ROWS], const float *rows, const float *columns,
                                         Thread me) {
#pragma unroll
    for (u32 i = 0; i < ROWS; i++) {
#pragma unroll
        for (u32 j = 0; j < ROWS; j++) {
            scores[i][j] = 0;
        }
    }
#pragma unroll 2
    for (u32 quad = 0; quad < QUADS; quad++) {
        Vector<float> row[ROWS], column[ROWS];
#pragma unroll
        for (u32 i = 0; i < ROWS; i++) {
            row[i] = load_vector(rows + (me.y * ROWS + i) * STRIDE + quad * 4);
            column[i] = load_vector(columns + (me.x + i * SIDE) * STRIDE + quad * 4);
        }
#pragma unroll
        for (u32 d = 0; d < 4; d++) {
#pragma unroll
            for (u32 i = 0; i < ROWS; i++) {
#pragma unroll
                for (u32 j = 0; j < ROWS; j++) {
                    scores[i][j] = fmaf(row[i].at[d], column[j].at[d], scores[i][j]);
                }
            }
        }
    }
}

__device__ __forceinline__ void store_scores(float *tile, const float (&scores)[ROWS][ROWS], Thread me) {
#pragma unroll
    for (u32 i = 0; i < ROWS; i++) {
#pragma unroll
        for (u32 j = 0; j < ROWS; j++) {
            tile[(me.y * ROWS + i) * SCORES + me.x + j * SIDE] = scores[i][j];
        }
    }
}

// results += scores x values
__device__ __forceinline__ void accumulate(float (&results)[ROWS][COLUMNS], const float *scores, const float *values,
                                           Thread me) {
    for (u32 quad = 0; quad < TILE; quad += 4) {
        Vector<float> score[ROWS];
#pragma unroll
        for (u32 i = 0; i < ROWS; i++) {
            score[i] = load_vector(scores + (me.y * ROWS + i) * SCORES + quad);
        }
#pragma unroll
        for (u32 k = 0; k < 4; k++) {
            const float *row = values + (quad + k) * STRIDE;
#pragma unroll
            for (u32 j = 0; j < COLUMNS; j++) {
                u32 column = me.x + j * SIDE;
                // What is read after HEAD_DIM is not stored; only after the row there is nothing to read.
                float value = column < STRIDE ? row[column] : 0.0f;
#pragma unroll
                for (u32 i = 0; i < ROWS; i++) {
                    results[i][j] = fmaf(score[i].at[k], value, results[i][j]);
                }
            }
        }
    }
}

__device__ __forceinline__ void clear(float (&results)[ROWS][COLUMNS]) {
#pragma unroll
    for (u32 i = 0; i < ROWS; i++) {
#pragma unroll
        for (u32 j = 0; j < COLUMNS; j++) {
            results[i][j] = 0;
        }
    }
}

// Writes a thread's rows, each multiplied with its factor.
__device__ __forceinline__ void store_results(element *head, u32 stride, u32 first, u32 tokens,
                                              const float (&results)[ROWS][COLUMNS], const float (&factors)[ROWS],
                                              Thread me) {
#pragma unroll
    for (u32 i = 0; i < ROWS; i++) {
        u32 token = first + me.y * ROWS + i;
#pragma unroll
        for (u32 j = 0; j < COLUMNS; j++) {
            u32 column = me.x + j * SIDE;
            if (token < tokens && column < HEAD_DIM) {
                head[(u64)token * stride + column] = narrow<element>(results[i][j] * factors[i]);
            }
        }
    }
}

// The largest, and the sum, over the 16 threads that share rows.
__device__ __forceinline__ float row_max(float x) {
#pragma unroll
    for (u32 distance = SIDE / 2; distance > 0; distance /= 2) {
        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, distance));
    }
    return x;
}

__device__ __forceinline__ float row_sum(float x) {
#pragma unroll
    for (u32 distance = SIDE / 2; distance > 0; distance /= 2) {
        x += __shfl_xor_sync(ALL_LANES, x, distance);
    }
    return x;
}

// out = softmax(scale q k^T) v, lse its logarithm of sums. Blocks: heads x tiles of queries.
extern "C" __global__ void __launch_bounds__(THREADS)
    forward(const element *__restrict__ q, const element *__restrict__ k, const element *__restrict__ v,
            element *__restrict__ out, float *__restrict__ lse, const u32 *__restrict__ documents, u32 tokens,
            u32 heads, u32 kv_heads, u32 q_stride, u32 k_stride, u32 v_stride, u32 len, u32 window, float scale) {
    DYNAMIC_SHARED(memory);
    float *queries = (float *)memory, *keys = queries + TILE * STRIDE, *scores = keys + TILE * STRIDE;
    Sees sees = {documents, tokens, len, window};
    Thread me = thread_of_block();
    u32 tiles = (tokens + TILE - 1) / TILE, head = blockIdx.x % heads;
    u32 kv_offset = head / (heads / kv_heads) * HEAD_DIM;
    // The last queries see most keys.
    u32 first = (tiles - 1 - blockIdx.x / heads) * TILE;
    u32 first_keys[ROWS];
    float largest[ROWS], sum[ROWS], results[ROWS][COLUMNS];
#pragma unroll
    for (u32 i = 0; i < ROWS; i++) {
        first_keys[i] = sees.first_key(smaller(first + me.y * ROWS + i, tokens - 1));
        largest[i] = -INFINITY;
        sum[i] = 0;
    }
    clear(results);
    load_tile(queries, q + head * HEAD_DIM, q_stride, first, tokens);

    // From the last keys to the first: every query sees itself, so that its largest is a number from the first tile on.
    u32 first_tile = sees.first_key(first) / TILE;
    for (u32 tile = first / TILE + 1; tile-- > first_tile;) {
        __syncthreads();
        load_tile(keys, k + kv_offset, k_stride, tile * TILE, tokens);
        __syncthreads();
        float own[ROWS][ROWS];
        multiply(own, queries, keys, me);
#pragma unroll
        for (u32 i = 0; i < ROWS; i++) {
            u32 query = first + me.y * ROWS + i;
            float most = largest[i];
#pragma unroll
            for (u32 j = 0; j < ROWS; j++) {
                u32 key = tile * TILE + me.x + j * SIDE;
                own[i][j] = key <= query && key >= first_keys[i] ? own[i][j] * scale : -INFINITY;
                most = fmaxf(most, own[i][j]);
            }
            most = row_max(most);
            float shrink = expf(largest[i] - most), add = 0;
            largest[i] = most;
#pragma unroll
            for (u32 j = 0; j < ROWS; j++) {
                own[i][j] = expf(own[i][j] - most);
                add += own[i][j];
            }
            sum[i] = fmaf(sum[i], shrink, row_sum(add));
#pragma unroll
            for (u32 j = 0; j < COLUMNS; j++) {
                results[i][j] *= shrink;
            }
        }
        store_scores(scores, own, me);
        __syncthreads();
        load_tile(keys, v + kv_offset, v_stride, tile * TILE, tokens);
        __syncthreads();
        accumulate(results, scores, keys, me);
    }

    float factors[ROWS];
#pragma unroll
    for (u32 i = 0; i < ROWS; i++) {
        u32 query = first + me.y * ROWS + i;
        factors[i] = 1 / sum[i];
        if (query < tokens && me.x == 0) {
            lse[(u64)head * tokens + query] = largest[i] + logf(sum[i]);
        }
    }
    store_results(out + head * HEAD_DIM, heads * HEAD_DIM, first, tokens, results, factors, me);
}

// dq = scale (p (dout v^T - delta)) k, where p = exp(scale q k^T - lse). Blocks: heads x tiles of queries.
extern "C" __global__ void __launch_bounds__(THREADS)
    backward_queries(const element *__restrict__ q, const element *__restrict__ k, const element *__restrict__ v,
                     const element *__restrict__ dout, const float *__restrict__ lse,
                     const float *__restrict__ delta, element *__restrict__ dq, const u32 *__restrict__ documents,
                     u32 tokens, u32 heads, u32 kv_heads, u32 q_stride, u32 k_stride, u32 v_stride, u32 dq_stride,
                     u32 len, u32 window, float scale) {
    DYNAMIC_SHARED(memory);
    float *queries = (float *)memory, *douts = queries + TILE * STRIDE, *keys = douts + TILE * STRIDE;
    float *values = keys + TILE * STRIDE, *scores = values + TILE * STRIDE;
    Sees sees = {documents, tokens, len, window};
    Thread me = thread_of_block();
    u32 tiles = (tokens + TILE - 1) / TILE, head = blockIdx.x % heads;
    u32 kv_offset = head / (heads / kv_heads) * HEAD_DIM;
    u32 first = (tiles - 1 - blockIdx.x / heads) * TILE;
    u32 first_keys[ROWS];
    float lses[ROWS], deltas[ROWS], factors[ROWS], results[ROWS][COLUMNS];
#pragma unroll
    for (u32 i = 0; i < ROWS; i++) {
        u32 query = smaller(first + me.y * ROWS + i, tokens - 1);
        first_keys[i] = sees.first_key(query);
        lses[i] = lse[(u64)head * tokens + query];
        deltas[i] = delta[(u64)head * tokens + query];
        factors[i] = scale;
    }
    clear(results);
    load_tile(queries, q + head * HEAD_DIM, q_stride, first, tokens);
    load_tile(douts, dout + head * HEAD_DIM, heads * HEAD_DIM, first, tokens);

    u32 first_tile = sees.first_key(first) / TILE;
    for (u32 tile = first_tile; tile <= first / TILE; tile++) {
        __syncthreads();
        load_tile(keys, k + kv_offset, k_stride, tile * TILE, tokens);
        load_tile(values, v + kv_offset, v_stride, tile * TILE, tokens);
        __syncthreads();
        float own[ROWS][ROWS], own_d[ROWS][ROWS];
        multiply(own, queries, keys, me);
        multiply(own_d, douts, values, me);
#pragma unroll
        for (u32 i = 0; i < ROWS; i++) {
            u32 query = first + me.y * ROWS + i;
#pragma unroll
            for (u32 j = 0; j < ROWS; j++) {
                u32 key = tile * TILE + me.x + j * SIDE;
                bool seen = query < tokens && key <= query && key >= first_keys[i];
                own[i][j] = seen ? expf(own[i][j] * scale - lses[i]) * (own_d[i][j] - deltas[i]) : 0.0f;
            }
        }
        store_scores(scores, own, me);
        __syncthreads();
        accumulate(results, scores, keys, me);
    }
    store_results(dq + head * HEAD_DIM, dq_stride, first, tokens, results, factors, me);
}

// dv = p^T dout, dk = scale (p (dout v^T - delta))^T q, over the query heads of each key head one after the other.
// Blocks: kv_heads x tiles of keys.
extern "C" __global__ void __launch_bounds__(THREADS)
    backward_keys(const element *__restrict__ q, const element *__restrict__ k, const element *__restrict__ v,
                  const element *__restrict__ dout, const float *__restrict__ lse, const float *__restrict__ delta,
                  element *__restrict__ dk, element *__restrict__ dv, const u32 *__restrict__ documents, u32 tokens,
                  u32 heads, u32 kv_heads, u32 q_stride, u32 k_stride, u32 v_stride, u32 dk_stride, u32 dv_stride,
                  u32 len, u32 window, float scale) {
    DYNAMIC_SHARED(memory);
    float *keys = (float *)memory, *values = keys + TILE * STRIDE, *queries = values + TILE * STRIDE;
    float *douts = queries + TILE * STRIDE, *scores = douts + TILE * STRIDE, *dscores = scores + TILE * SCORES;
    Sees sees = {documents, tokens, len, window};
    Thread me = thread_of_block();
    u32 kv_head = blockIdx.x % kv_heads, group = heads / kv_heads;
    // The first keys are seen by most queries.
    u32 first = blockIdx.x / kv_heads * TILE;
    u32 query_ends[ROWS];
    float ones[ROWS], factors[ROWS], dkeys[ROWS][COLUMNS], dvalues[ROWS][COLUMNS];
#pragma unroll
    for (u32 i = 0; i < ROWS; i++) {
        query_ends[i] = sees.query_end(smaller(first + me.y * ROWS + i, tokens - 1));
        ones[i] = 1;
        factors[i] = scale;
    }
    clear(dkeys);
    clear(dvalues);
    load_tile(keys, k + kv_head * HEAD_DIM, k_stride, first, tokens);
    load_tile(values, v + kv_head * HEAD_DIM, v_stride, first, tokens);

    u32 last_tile = (sees.query_end(smaller(first + TILE, tokens) - 1) - 1) / TILE;
    for (u32 head = kv_head * group; head < kv_head * group + group; head++) {
        for (u32 tile = first / TILE; tile <= last_tile; tile++) {
            __syncthreads();
            load_tile(queries, q + head * HEAD_DIM, q_stride, tile * TILE, tokens);
            load_tile(douts, dout + head * HEAD_DIM, heads * HEAD_DIM, tile * TILE, tokens);
            __syncthreads();
            float own[ROWS][ROWS], own_d[ROWS][ROWS];
            multiply(own, keys, queries, me);
            multiply(own_d, values, douts, me);
#pragma unroll
            for (u32 j = 0; j < ROWS; j++) {
                u32 query = tile * TILE + me.x + j * SIDE;
                u64 at = (u64)head * tokens + smaller(query, tokens - 1);
                float lse_here = lse[at], delta_here = delta[at];
#pragma unroll
                for (u32 i = 0; i < ROWS; i++) {
                    u32 key = first + me.y * ROWS + i;
                    bool seen = query >= key && query < query_ends[i];
                    float p = seen ? expf(own[i][j] * scale - lse_here) : 0.0f;
                    own[i][j] = p;
                    own_d[i][j] = seen ? p * (own_d[i][j] - delta_here) : 0.0f;
                }
            }
            store_scores(scores, own, me);
            store_scores(dscores, own_d, me);
            __syncthreads();
            accumulate(dvalues, scores, douts, me);
            accumulate(dkeys, dscores, queries, me);
        }
    }
    store_results(dk + kv_head * HEAD_DIM, dk_stride, first, tokens, dkeys, factors, me);
    store_results(dv + kv_head * HEAD_DIM, dv_stride, first, tokens, dvalues, ones, me);
}
