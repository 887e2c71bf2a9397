// Adds the elements of a tensor to an f32 array, both of `count` elements. A thread an element.
extern "C" __global__ void __launch_bounds__(256) add(float *sum, const element *x, u64 count) {
    u64 index = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (index < count) {
        sum[index] += widen(x[index]);
    }
}

// Sets `count` elements to `value`. A thread an element.
extern "C" __global__ void __launch_bounds__(256) fill(element *to, u64 count, float value) {
    u64 index = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (index < count) {
        to[index] = narrow<element>(value);
    }
}
