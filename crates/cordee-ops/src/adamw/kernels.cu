// AdamW in one pass.

// The constants of a step.
struct Constants {
    float scale, keep, beta2, rest1, rest2, root_correction, eps, step_size;

    // param *= 1 - lr wd; m += (g - m)(1 - beta1); v = beta2 v + (1 - beta2) g^2;
    // param -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps).
    __device__ __forceinline__ void update(float &param, float &m, float &v, float gradient) const {
        gradient *= scale;
        m = fmaf(gradient - m, rest1, m);
        v = fmaf(v, beta2, gradient * gradient * rest2);
        float denominator = sqrtf(v) / root_correction + eps;
        param = fmaf(param, keep, -step_size * (m / denominator));
    }
};

// One step over `count` parameters: `params`, `m`, `v` and `gradients` [count] in f32. Writes the parameters to
// `compute` [count], too, unless that is null. Gradients are multiplied by `scale` [1]; where it is not
// finite, nothing changes. The rest are constants, as `update` has them. A thread for four parameters: a
// grid of ceil(count / (4 * blockDim)).
extern "C" __global__ void __launch_bounds__(256)
    adamw(float *params, float *m, float *v, const float *gradients, element *compute, const double *scale, u64 count,
          float keep, float beta2, float rest1, float rest2, float root_correction, float eps, float step_size) {
    constexpr u32 COUNT = 4;
    double factor = *scale;
    if (!(factor - factor == 0.0)) {
        return;
    }
    Constants constants = {(float)factor, keep, beta2, rest1, rest2, root_correction, eps, step_size};
    u64 first = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * COUNT;
    if (first >= count) {
        return;
    }
    if (first + COUNT <= count && aligned<COUNT>(params, m, v, gradients) && aligned<COUNT>(compute)) {
        auto params4 = load_vector<COUNT>(params + first);
        auto m4 = load_vector<COUNT>(m + first);
        auto v4 = load_vector<COUNT>(v + first);
        auto gradients4 = load_vector<COUNT>(gradients + first);
        Vector<element, COUNT> compute4;
#pragma unroll
        for (u32 j = 0; j < COUNT; j++) {
            constants.update(params4.at[j], m4.at[j], v4.at[j], gradients4.at[j]);
            compute4.at[j] = narrow<element>(params4.at[j]);
        }
        store_vector(params + first, params4);
        store_vector(m + first, m4);
        store_vector(v + first, v4);
        if (compute) {
            store_vector(compute + first, compute4);
        }
        return;
    }
    for (u64 index = first; index < min(first + COUNT, count); index++) {
        constants.update(params[index], m[index], v[index], gradients[index]);
        if (compute) {
            compute[index] = narrow<element>(params[index]);
        }
    }
}
