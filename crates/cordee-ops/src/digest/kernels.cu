// As in `cpu.rs`: words mixed with their places, and added up.

__device__ __forceinline__ u64 mix(u64 place, u64 word) {
    u64 x = word ^ ((place + 1) * 0x9e3779b97f4a7c15ull);
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

// sums[block] = the sum of every `gridDim.x`-th stretch of mixed words of `memory`, which has `count` bytes and
// begins at a multiple of 16. Blocks of whole warps.
extern "C" __global__ void __launch_bounds__(256) digest(const unsigned char *memory, u64 count, u64 *sums) {
    __shared__ u64 scratch[WARP];
    u64 thread = (u64)blockIdx.x * blockDim.x + threadIdx.x, threads = (u64)gridDim.x * blockDim.x, sum = 0;
    for (u64 pair = thread; pair < count / 16; pair += threads) {
        Vector<u64> words = load_vector((const u64 *)memory + 2 * pair);
        sum += mix(2 * pair, words.at[0]) + mix(2 * pair + 1, words.at[1]);
    }
    // What is left: at most two words, of which the second may not be whole.
    for (u64 word = count / 16 * 2 + thread; word * 8 < count; word += threads) {
        u64 last = 0;
        for (u64 byte = word * 8; byte < min(word * 8 + 8, count); byte++) {
            last |= (u64)memory[byte] << (8 * (byte % 8));
        }
        sum += mix(word, last);
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) {
        sums[blockIdx.x] = sum;
    }
}
