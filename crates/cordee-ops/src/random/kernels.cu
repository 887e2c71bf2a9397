// Normal deviates by the method of Box and Muller, in f64 as on the host. `philox.cuh` comes before.

// A number between 0 and 1, both excluded.
__device__ __forceinline__ double unit(u32 bits) { return ((double)bits + 0.5) / 4294967296.0; }

// Two independent deviates from two uniform numbers.
__device__ __forceinline__ void normal_pair(u32 radius_bits, u32 angle_bits, double *pair) {
    double radius = sqrt(-2.0 * log(unit(radius_bits))), sine, cosine;
#ifdef CORDEE_STAND_IN
    double angle = 6.283185307179586476925286766559 * unit(angle_bits);
    sine = sin(angle);
    cosine = cos(angle);
#else
    sincospi(2.0 * unit(angle_bits), &sine, &cosine);
#endif
    pair[0] = radius * cosine;
    pair[1] = radius * sine;
}

// values[i] = deviate first + i of (seed, id), of standard deviation `std`, for i below `count`. A thread for
// four deviates, those of a block of numbers: a grid over the blocks from first / 4 to that of the last.
extern "C" __global__ void __launch_bounds__(256)
    normal_fill(element *values, u64 count, u64 seed, u64 id, u64 first, double std) {
    u64 index = first / 4 + (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (index * 4 >= first + count) {
        return;
    }
    Block numbers = philox(seed, index, id);
    double deviates[4];
    normal_pair(numbers.at[0], numbers.at[1], deviates);
    normal_pair(numbers.at[2], numbers.at[3], deviates + 2);
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        u64 place = index * 4 + j;
        if (place >= first && place < first + count) {
            values[place - first] = narrow<element>((float)(deviates[j] * std));
        }
    }
}
