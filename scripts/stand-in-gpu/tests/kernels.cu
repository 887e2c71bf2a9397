// Kernels for the tests of the stand-in GPU: right ones, and ones that are wrong on purpose.

extern "C" __global__ void __launch_bounds__(256) row_sums(const float *x, float *sums, unsigned width, unsigned with_barrier) {
    DYNAMIC_SHARED(bytes);
    float *part = reinterpret_cast<float *>(bytes);
    float own = 0;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        own += x[(unsigned long long)blockIdx.x * width + i];
    }
    part[threadIdx.x] = own;
    if (with_barrier) {
        __syncthreads();
    }
    __shared__ float total;
    if (threadIdx.x == 0) {
        total = 0;
        for (unsigned i = 0; i < blockDim.x; i++) {
            total += part[blockDim.x - 1 - i];
        }
        sums[blockIdx.x] = total;
    }
}

// extern "C" __global__ void not_there(float *x) would be found by who reads comments.
#ifdef NOT_DEFINED
extern "C" __global__ void nor_there(float *x) {}
#endif
constexpr unsigned THREADS_OF_MADE = 64;
#define MADE(name, value) \
    extern "C" __global__ void __launch_bounds__(THREADS_OF_MADE, 2) name(float *x) { *x = value + ANY; }
MADE(made, 3)

struct Pair {
    float value, lane;
};

// What each collective gives, as one number for each of 64 threads.
extern "C" __global__ void collectives(float *out) {
    unsigned lane = threadIdx.x % 32;
    Pair mine = {(float)threadIdx.x, (float)lane};
    float mirrored = stand_in::warp_together<float>(mine, [](const Pair *given, float *results) {
        for (int i = 0; i < 32; i++) {
            results[i] = given[31 - i].value;
        }
    });
    const Pair *all = stand_in::warp_exchange(mine);
    float lanes = 0;
    for (int i = 0; i < 32; i++) {
        lanes += all[i].lane;
    }
    unsigned odd = __ballot_sync(0xffffffff, lane % 2);
    float half = lane < 16 ? __shfl_down_sync(0xffff, (float)lane, 1, 16) : __shfl_up_sync(0xffff0000, (float)lane, 1, 16);
    double crossed = __shfl_xor_sync(0xffffffff, (double)lane, 3);
    bool votes = odd == 0xaaaaaaaa && __any_sync(0xffffffff, lane == 7) && !__all_sync(0xffffffff, lane == 7);
    __syncwarp();
    out[threadIdx.x] = mirrored + 100 * lanes + 1e5f * half + 1e7f * (float)crossed + (votes ? 0 : NAN);
}

extern "C" __global__ void wrong(float *x, unsigned how) {
    DYNAMIC_SHARED(bytes);
    if (how == 0 && threadIdx.x % 32 < 8) { // leaves, and is named all the same
        return;
    }
    if (how == 1 && threadIdx.x == 40) { // elsewhere than its warp
        __syncthreads();
    }
    if (how == 2) {
        bytes[threadIdx.x] = 1;
    }
    if (how == 3) { // past the end, from the address of the last element
        x[64] = 1;
    }
    if (how == 4) { // before the beginning
        x[-1] = 1;
    }
    if (how == 5) {
        x[1ull << 40] = 1;
    }
    if (how == 6) { // reads a lane that takes no part
        x[threadIdx.x] = threadIdx.x % 32 < 16 ? __shfl_sync(0xffff, x[threadIdx.x], 20) : 0;
    }
    x[threadIdx.x] = __shfl_xor_sync(0xffffffff, x[threadIdx.x], 1);
}
