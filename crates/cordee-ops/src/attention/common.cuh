// What both families of kernels share. HEAD_DIM is defined for each compilation.
//
// Tensors of all kernels, `element` unless said otherwise:
//   q, dq [tokens, heads, HEAD_DIM], k, v, dk, dv [tokens, kv_heads, HEAD_DIM]; each token begins `..._stride`
//   elements after the one before, so that they may be parts of wider rows;
//   out, dout [tokens, heads, HEAD_DIM], contiguous; lse, delta f32 [heads, tokens].
// `documents` is u32 [2, tokens]: the first token of each token's sequence, then the token after its last; null
// where all sequences have `len` tokens. A query sees at most `window` keys.

#ifndef HEAD_DIM
#define HEAD_DIM 64
#endif

// Which tokens see which. Each query sees the keys from `first_key` to itself, so each key is seen by the queries
// from itself to before `query_end`; neither ever falls from one token to the next.
struct Sees {
    const u32 *documents;
    u32 tokens, len, window;

    __device__ __forceinline__ u32 first_key(u32 query) const {
        u32 first = documents ? documents[query] : query / len * len;
        return query - first < window ? first : query - window + 1;
    }

    __device__ __forceinline__ u32 query_end(u32 key) const {
        u32 end = documents ? documents[tokens + key] : key / len * len + len;
        return end - key < window ? end : key + window;
    }
};

// delta = the sum over each head of dout * out.
//
// Blocks: ceil(heads tokens / (256 / DELTA_LANES)), 256 threads. DELTA_LANES lanes take one head of one token.
constexpr u32 DELTA_PIECE = Vector<element>::COUNT;
constexpr u32 DELTA_PIECES = (HEAD_DIM + DELTA_PIECE - 1) / DELTA_PIECE;
constexpr u32 DELTA_LANES = DELTA_PIECES > 16 ? 32 : DELTA_PIECES > 8 ? 16 : DELTA_PIECES > 4 ? 8 : 4;

extern "C" __global__ void __launch_bounds__(256)
    deltas(const element *__restrict__ dout, const element *__restrict__ out, float *__restrict__ delta, u32 tokens,
           u32 heads) {
    u64 row = (u64)blockIdx.x * (256 / DELTA_LANES) + threadIdx.x / DELTA_LANES;
    u32 lane = threadIdx.x % DELTA_LANES;
    bool there = row < (u64)heads * tokens;
    bool wide = HEAD_DIM % DELTA_PIECE == 0 && ((u64)dout | (u64)out) % 16 == 0;
    float sum = 0;
    if (there) {
        u64 start = (row % tokens * heads + row / tokens) * HEAD_DIM;
        for (u32 column = lane * DELTA_PIECE; column < HEAD_DIM; column += DELTA_LANES * DELTA_PIECE) {
            if (wide) {
                Vector<element> a = load_vector(dout + start + column), b = load_vector(out + start + column);
#pragma unroll
                for (u32 i = 0; i < DELTA_PIECE; i++) {
                    sum = fmaf(widen(a.at[i]), widen(b.at[i]), sum);
                }
            } else {
                for (u32 i = column; i < column + DELTA_PIECE && i < HEAD_DIM; i++) {
                    sum = fmaf(widen(dout[start + i]), widen(out[start + i]), sum);
                }
            }
        }
    }
#pragma unroll
    for (u32 distance = DELTA_LANES / 2; distance > 0; distance /= 2) {
        sum += __shfl_xor_sync(ALL_LANES, sum, distance);
    }
    if (there && lane == 0) {
        delta[row] = sum;
    }
}
