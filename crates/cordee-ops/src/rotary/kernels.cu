// Rotary positions in the half-split convention.

// Element i of a head, i below `half`, and element i + half become
//     x[i] * cos - x[i + half] * sin    and    x[i + half] * cos + x[i] * sin,
// the cosine and the sine being those of `direction`, 1 or -1, times the angle of i at the position of
// the token: cosines and sines [positions, half]. The heads of a token lie one after the other, each
// 2 * half wide; token t begins at x + t * x_stride and at y + t * y_stride. y may be x where the strides
// are the same. The position of token t is positions[t], or t % len where `positions` is null.
//
// A block has `block_tokens` tokens: a grid of ceil(tokens / block_tokens), blocks of up to 256.
// CORDEE_SCALAR unless `half` and the strides are whole numbers of vectors.
extern "C" __global__ void __launch_bounds__(256)
    rotate(const element *x, element *y, const float *__restrict__ cosines, const float *__restrict__ sines,
           const u32 *__restrict__ positions, u32 tokens, u32 len, u32 heads, u32 half, u64 x_stride, u64 y_stride,
           u32 block_tokens, float direction) {
    u32 vectors = half / ROW_VECTOR, items = heads * vectors;
    for (u32 item = threadIdx.x; item < block_tokens * items; item += blockDim.x) {
        u32 token = blockIdx.x * block_tokens + item / items;
        if (token >= tokens) {
            return;
        }
        u32 head = item % items / vectors, column = item % vectors * ROW_VECTOR;
        u64 start = (u64)head * 2 * half + column;
        const element *from = x + token * x_stride + start;
        element *to = y + token * y_stride + start;
        Vector<element, ROW_VECTOR> a = load_vector<ROW_VECTOR>(from), b = load_vector<ROW_VECTOR>(from + half);
        u64 position = positions ? positions[token] : token % len;
        Vector<float, ROW_VECTOR> cosine = load_vector<ROW_VECTOR>(cosines + position * half + column);
        Vector<float, ROW_VECTOR> sine = load_vector<ROW_VECTOR>(sines + position * half + column);
#pragma unroll
        for (u32 j = 0; j < ROW_VECTOR; j++) {
            float first = widen(a.at[j]), second = widen(b.at[j]), s = sine.at[j] * direction;
            a.at[j] = narrow<element>(first * cosine.at[j] - second * s);
            b.at[j] = narrow<element>(second * cosine.at[j] + first * s);
        }
        store_vector(to, a);
        store_vector(to + half, b);
    }
}
