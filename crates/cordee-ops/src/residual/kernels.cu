// The addition of the residual stream.
//
// One thread per 16 bytes: a grid of ceil(count / (blockDim * Vector<element>::COUNT)), blocks of up
// to 256.

// y = x + added, `count` elements each.
extern "C" __global__ void __launch_bounds__(256)
    forward(const element *x, const element *added, element *y, u64 count) {
    each_element<element>({x, added}, {y}, count,
                          [](const float (&in)[2], float (&out)[1]) { out[0] = in[0] + in[1]; });
}
