// SwiGLU, forward and backward.
//
// One thread per 16 bytes: a grid of ceil(count / (blockDim * Vector<element>::COUNT)), blocks of up
// to 256. All tensors have `count` elements.

// Where the exponential overflows this is 0, as it should be.
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// y = gate * sigmoid(gate) * up.
extern "C" __global__ void __launch_bounds__(256)
    forward(const element *gate, const element *up, element *y, u64 count) {
    each_element<element>({gate, up}, {y}, count, [](const float (&in)[2], float (&out)[1]) {
        out[0] = in[0] * sigmoid(in[0]) * in[1];
    });
}

// With s = sigmoid(gate): dgate = dy * up * s * (1 + gate * (1 - s)), and dup = dy * gate * s.
extern "C" __global__ void __launch_bounds__(256)
    backward(const element *dy, const element *gate, const element *up, element *dgate, element *dup, u64 count) {
    each_element<element>({dy, gate, up}, {dgate, dup}, count, [](const float (&in)[3], float (&out)[2]) {
        float d = in[0], g = in[1], u = in[2], s = sigmoid(g);
        out[0] = d * u * (s * (1.0f + g * (1.0f - s)));
        out[1] = d * (g * s);
    });
}
