// AdamW in one pass. `random/philox.cuh` comes before.

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

// Rounds up with the probability of how far x lies behind the next smaller (in magnitude): `chance` has
// 16 bits. What is not finite stays so.
__device__ __forceinline__ bf16 round_by(float x, u32 chance) {
    u32 bits = __float_as_uint(x);
    if ((bits & 0x7f800000) == 0x7f800000) {
        return narrow<bf16>(x);
    }
    bf16 result;
    result.bits = (u16)((bits + (chance & 0xffff)) >> 16);
    return result;
}

__device__ __forceinline__ void update_bf16(const Constants &constants, bf16 &param, bf16 &m, bf16 &v, float gradient,
                                            const Block &block, bool second) {
    float wide_param = widen(param), wide_m = widen(m), wide_v = widen(v);
    constants.update(wide_param, wide_m, wide_v, gradient);
    u32 shift = second ? 16 : 0;
    param = round_by(wide_param, block.at[0] >> shift);
    m = round_by(wide_m, block.at[1] >> shift);
    v = round_by(wide_v, block.at[2] >> shift);
}

// The same step where `params`, `m` and `v` [count] are bf16 and there is no other copy: what it changes is
// rounded by chance. Parameter i has the place first_place + i; two neighbours in places share a block of
// (seed, id), each half of its words. A thread for eight parameters: a grid of ceil(count / (8 * blockDim)).
extern "C" __global__ void __launch_bounds__(256)
    adamw_bf16(bf16 *params, bf16 *m, bf16 *v, const float *gradients, const double *scale, u64 count, u64 seed, u64 id,
               u64 first_place, float keep, float beta2, float rest1, float rest2, float root_correction, float eps,
               float step_size) {
    constexpr u32 COUNT = 8;
    double factor = *scale;
    if (!(factor - factor == 0.0)) {
        return;
    }
    Constants constants = {(float)factor, keep, beta2, rest1, rest2, root_correction, eps, step_size};
    u64 first = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * COUNT;
    if (first >= count) {
        return;
    }
    u64 place = first_place + first;
    if (first + COUNT <= count && place % 2 == 0 && aligned<COUNT>(params, m, v) && aligned<4>(gradients)) {
        auto params8 = load_vector<COUNT>(params + first);
        auto m8 = load_vector<COUNT>(m + first);
        auto v8 = load_vector<COUNT>(v + first);
        Vector<float, 4> gradients4[2] = {load_vector<4>(gradients + first), load_vector<4>(gradients + first + 4)};
#pragma unroll
        for (u32 j = 0; j < COUNT; j += 2) {
            Block block = philox(seed, (place + j) / 2, id);
#pragma unroll
            for (u32 i = j; i < j + 2; i++) {
                update_bf16(constants, params8.at[i], m8.at[i], v8.at[i], gradients4[i / 4].at[i % 4], block, i != j);
            }
        }
        store_vector(params + first, params8);
        store_vector(m + first, m8);
        store_vector(v + first, v8);
        return;
    }
    for (u64 index = first; index < min(first + COUNT, count); index++) {
        u64 at = first_place + index;
        Block block = philox(seed, at / 2, id);
        update_bf16(constants, params[index], m[index], v[index], gradients[index], block, at % 2 == 1);
    }
}
