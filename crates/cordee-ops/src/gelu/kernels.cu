// GELU by either curve, forward and backward. `curve.cuh` comes before.
//
// One thread per 16 bytes: a grid of ceil(count / (blockDim * Vector<element>::COUNT)), blocks of up
// to 256. All tensors have `count` elements.

template <typename Curve> __device__ __forceinline__ void forward(const element *x, element *y, u64 count) {
    each_element<element>({x}, {y}, count,
                          [](const float (&in)[1], float (&out)[1]) { out[0] = Curve::at(in[0]).value; });
}

template <typename Curve>
__device__ __forceinline__ void backward(const element *dy, const element *x, element *dx, u64 count) {
    each_element<element>({dy, x}, {dx}, count,
                          [](const float (&in)[2], float (&out)[1]) { out[0] = in[0] * Curve::at(in[1]).slope; });
}

// y = gelu(x).
extern "C" __global__ void __launch_bounds__(256) forward_exact(const element *x, element *y, u64 count) {
    forward<Exact>(x, y, count);
}

extern "C" __global__ void __launch_bounds__(256) forward_tanh(const element *x, element *y, u64 count) {
    forward<Tanh>(x, y, count);
}

// dx = dy * gelu'(x).
extern "C" __global__ void __launch_bounds__(256)
    backward_exact(const element *dy, const element *x, element *dx, u64 count) {
    backward<Exact>(dy, x, dx, count);
}

extern "C" __global__ void __launch_bounds__(256)
    backward_tanh(const element *dy, const element *x, element *dx, u64 count) {
    backward<Tanh>(dy, x, dx, count);
}
