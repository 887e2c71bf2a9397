// Philox4x32-10, as `philox.rs` has it: the four numbers at (index, id) under `seed`.
struct Block {
    u32 at[4];
};

__device__ __forceinline__ Block philox(u64 seed, u64 index, u64 id) {
    u32 a = (u32)index, b = (u32)(index >> 32), c = (u32)id, d = (u32)(id >> 32);
    u32 low = (u32)seed, high = (u32)(seed >> 32);
#pragma unroll
    for (u32 round = 0; round < 10; round++) {
        u64 first = (u64)0xd2511f53 * a, second = (u64)0xcd9e8d57 * c;
        a = (u32)(second >> 32) ^ b ^ low;
        b = (u32)second;
        c = (u32)(first >> 32) ^ d ^ high;
        d = (u32)first;
        low += 0x9e3779b9;
        high += 0xbb67ae85;
    }
    return {{a, b, c, d}};
}

