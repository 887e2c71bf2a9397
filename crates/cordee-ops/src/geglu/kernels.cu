// GeGLU by either curve, forward and backward. `gelu/curve.cuh` comes before.
//
// One thread per 16 bytes: a grid of ceil(count / (blockDim * Vector<element>::COUNT)), blocks of up
// to 256. All tensors have `count` elements.

template <typename Curve>
__device__ __forceinline__ void forward(const element *gate, const element *up, element *y, u64 count) {
    each_element<element>({gate, up}, {y}, count, [](const float (&in)[2], float (&out)[1]) {
        out[0] = Curve::at(in[0]).value * in[1];
    });
}

template <typename Curve>
__device__ __forceinline__ void backward(const element *dy, const element *gate, const element *up, element *dgate,
                                         element *dup, u64 count) {
    each_element<element>({dy, gate, up}, {dgate, dup}, count, [](const float (&in)[3], float (&out)[2]) {
        ValueAndSlope curve = Curve::at(in[1]);
        out[0] = in[0] * in[2] * curve.slope;
        out[1] = in[0] * curve.value;
    });
}

// y = gelu(gate) * up.
extern "C" __global__ void __launch_bounds__(256)
    forward_exact(const element *gate, const element *up, element *y, u64 count) {
    forward<Exact>(gate, up, y, count);
}

extern "C" __global__ void __launch_bounds__(256)
    forward_tanh(const element *gate, const element *up, element *y, u64 count) {
    forward<Tanh>(gate, up, y, count);
}

// dgate = dy * up * gelu'(gate), dup = dy * gelu(gate).
extern "C" __global__ void __launch_bounds__(256)
    backward_exact(const element *dy, const element *gate, const element *up, element *dgate, element *dup, u64 count) {
    backward<Exact>(dy, gate, up, dgate, dup, count);
}

extern "C" __global__ void __launch_bounds__(256)
    backward_tanh(const element *dy, const element *gate, const element *up, element *dgate, element *dup, u64 count) {
    backward<Tanh>(dy, gate, up, dgate, dup, count);
}
