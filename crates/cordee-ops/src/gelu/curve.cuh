// The two curves of the Gaussian error linear unit, and their slopes: what `curve.rs` is on the host.

struct ValueAndSlope {
    float value;
    float slope;
};

// x, no further from 0 than `range`. Outside of the ranges below the curves are 0 or x, but for 1e-30.
// Where powers or exponentials are taken, x is held inside, so that nothing overflows and what is nearly
// 0 is not multiplied with what is huge. Comparisons, not fmaxf and fminf, which would make a number of a
// NaN.
__device__ __forceinline__ float not_below(float x, float range) { return x < -range ? -range : x; }

__device__ __forceinline__ float not_above(float x, float range) { return x > range ? range : x; }

// x * Phi(x), with Phi the distribution function of the normal distribution.
struct Exact {
    // The tail of the distribution beyond |x| is b = exp(-x^2 / 2) times a smooth function of |x|,
    // which is t times a polynomial of t with t = 1 / (1 + 0.34 |x|): the form of Abramowitz and
    // Stegun's 7.1.26, interpolated at the Chebyshev nodes of the t of |x| from 0 to 12. Relative
    // error: 4.3e-8. The slope of the unit is Phi(x) + x b / sqrt(2 pi).
    static __device__ __forceinline__ ValueAndSlope at(float x) {
        float above = not_below(x, 12.0f);
        x = not_above(above, 12.0f);
        float bell = expf(-0.5f * x * x);
        float t = 1.0f / (1.0f + 0.34f * fabsf(x));
        float sum = -2.8090395e-2f;
        sum = fmaf(sum, t, 1.4879543e-1f);
        sum = fmaf(sum, t, -2.917176e-1f);
        sum = fmaf(sum, t, 2.2268046e-1f);
        sum = fmaf(sum, t, -5.8316186e-2f);
        sum = fmaf(sum, t, 1.20897025e-1f);
        sum = fmaf(sum, t, 1.13849536e-1f);
        sum = fmaf(sum, t, 1.362911e-1f);
        sum = fmaf(sum, t, 1.3561061e-1f);
        float tail = bell * (sum * t);
        float distribution = x > 0.0f ? 1.0f - tail : tail;
        return {above * distribution, distribution + x * (0.3989422804f * bell)};
    }
};

// The approximation by a hyperbolic tangent.
struct Tanh {
    // With a = 2 sqrt(2 / pi), b = 0.044715, v = a x (1 + b x^2), e = exp(-v) and s = 1 / (1 + e) the
    // sigmoid of v: the slope is s + x * s * (1 - s) * a (1 + 3 b x^2), in which 1 - s = e * s.
    static __device__ __forceinline__ ValueAndSlope at(float x) {
        constexpr float a = 1.5957691216f, ab = 0.0713548163f;
        // Where it is not held, e is up to exp(88).
        float above = not_below(x, 10.0f);
        x = not_above(above, 10.0f);
        float square = x * x;
        float e = expf(-x * fmaf(ab, square, a));
        float s = 1.0f / (1.0f + e);
        return {above * s, s + x * s * (e * s) * fmaf(3.0f * ab, square, a)};
    }
};
