// Older cuDNN keeps the log-sum-exp as [batch, heads, seq]; ours is [heads, batch, seq].

// to[b][a][i] = from[a][b][i]; from [outer, inner, len]. Grid: a thread for each element, blocks of any
// size in x.
extern "C" __global__ void exchange(const float *__restrict__ from, float *__restrict__ to, u32 outer, u32 inner,
                                    u32 len) {
    u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (u64)outer * inner * len) {
        return;
    }
    u64 row = at / len, i = at % len;
    to[((row % inner) * outer + row / inner) * len + i] = from[at];
}
