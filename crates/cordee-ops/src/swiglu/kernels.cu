// SwiGLU, forward and backward.
//
// One thread per vector of the rows, as `each_of_rows` of the prelude has it; blocks of up to 256.
// CORDEE_SCALAR unless `width` and all strides are whole numbers of vectors. All tensors are [rows, width].

// Where the exponential overflows this is 0, as it should be.
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// y = gate * sigmoid(gate) * up.
extern "C" __global__ void __launch_bounds__(256)
    forward(const element *gate, const element *up, element *y, u32 rows, u32 width, u32 gate_stride, u32 up_stride,
            u32 y_stride) {
    each_of_rows({gate, up}, {gate_stride, up_stride}, {y}, {y_stride}, rows, width,
                 [](const float (&in)[2], float (&out)[1]) { out[0] = in[0] * sigmoid(in[0]) * in[1]; });
}

// With s = sigmoid(gate): dgate = dy * up * s * (1 + gate * (1 - s)), and dup = dy * gate * s.
extern "C" __global__ void __launch_bounds__(256)
    backward(const element *dy, const element *gate, const element *up, element *dgate, element *dup, u32 rows,
             u32 width, u32 dy_stride, u32 gate_stride, u32 up_stride, u32 dgate_stride, u32 dup_stride) {
    each_of_rows({dy, gate, up}, {dy_stride, gate_stride, up_stride}, {dgate, dup}, {dgate_stride, dup_stride}, rows,
                 width, [](const float (&in)[3], float (&out)[2]) {
                     float d = in[0], g = in[1], u = in[2], s = sigmoid(g);
                     out[0] = d * u * (s * (1.0f + g * (1.0f - s)));
                     out[1] = d * (g * s);
                 });
}
