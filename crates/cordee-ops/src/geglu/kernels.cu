// GeGLU by either curve, forward and backward. `gelu/curve.cuh` comes before.
//
// One thread per vector of the rows, as `each_of_rows` of the prelude has it; blocks of up to 256.
// CORDEE_SCALAR unless `width` and all strides are whole numbers of vectors. All tensors are [rows, width].

template <typename Curve>
__device__ __forceinline__ void forward(const element *gate, const element *up, element *y, u32 rows, u32 width,
                                        u32 gate_stride, u32 up_stride, u32 y_stride) {
    each_of_rows({gate, up}, {gate_stride, up_stride}, {y}, {y_stride}, rows, width,
                 [](const float (&in)[2], float (&out)[1]) { out[0] = Curve::at(in[0]).value * in[1]; });
}

template <typename Curve>
__device__ __forceinline__ void backward(const element *dy, const element *gate, const element *up, element *dgate,
                                         element *dup, u32 rows, u32 width, u32 dy_stride, u32 gate_stride,
                                         u32 up_stride, u32 dgate_stride, u32 dup_stride) {
    each_of_rows({dy, gate, up}, {dy_stride, gate_stride, up_stride}, {dgate, dup}, {dgate_stride, dup_stride}, rows,
                 width, [](const float (&in)[3], float (&out)[2]) {
                     ValueAndSlope curve = Curve::at(in[1]);
                     out[0] = in[0] * in[2] * curve.slope;
                     out[1] = in[0] * curve.value;
                 });
}

// y = gelu(gate) * up.
extern "C" __global__ void __launch_bounds__(256)
    forward_exact(const element *gate, const element *up, element *y, u32 rows, u32 width, u32 gate_stride,
                  u32 up_stride, u32 y_stride) {
    forward<Exact>(gate, up, y, rows, width, gate_stride, up_stride, y_stride);
}

extern "C" __global__ void __launch_bounds__(256)
    forward_tanh(const element *gate, const element *up, element *y, u32 rows, u32 width, u32 gate_stride,
                 u32 up_stride, u32 y_stride) {
    forward<Tanh>(gate, up, y, rows, width, gate_stride, up_stride, y_stride);
}

// dgate = dy * up * gelu'(gate), dup = dy * gelu(gate).
extern "C" __global__ void __launch_bounds__(256)
    backward_exact(const element *dy, const element *gate, const element *up, element *dgate, element *dup, u32 rows,
                   u32 width, u32 dy_stride, u32 gate_stride, u32 up_stride, u32 dgate_stride, u32 dup_stride) {
    backward<Exact>(dy, gate, up, dgate, dup, rows, width, dy_stride, gate_stride, up_stride, dgate_stride, dup_stride);
}

extern "C" __global__ void __launch_bounds__(256)
    backward_tanh(const element *dy, const element *gate, const element *up, element *dgate, element *dup, u32 rows,
                  u32 width, u32 dy_stride, u32 gate_stride, u32 up_stride, u32 dgate_stride, u32 dup_stride) {
    backward<Tanh>(dy, gate, up, dgate, dup, rows, width, dy_stride, gate_stride, up_stride, dgate_stride, dup_stride);
}
