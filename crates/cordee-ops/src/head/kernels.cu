// The cross-entropy of a chunk of logits, and its gradient in their place.

// A target that is not trained: the loss is 0, and so is the gradient.
constexpr u32 UNTRAINED = 0xffffffff;

// What a thread knows of the logits it has seen: the largest, and the sum of the exponentials of the
// differences from it. Before the first, and while all are -inf, differences are from 0: a difference
// of infinities would be no number.
struct Softmax {
    float largest, sum;

    __device__ __forceinline__ Softmax() : largest(-INFINITY), sum(0.0f) {}

    static __device__ __forceinline__ float base(float largest) { return largest == -INFINITY ? 0.0f : largest; }

    // A NaN among them stays in the sum.
    template <u32 N> __device__ __forceinline__ void add(const Vector<element, N> &logits) {
        float most = largest;
#pragma unroll
        for (u32 j = 0; j < N; j++) {
            most = fmaxf(most, widen(logits.at[j]));
        }
        float from = base(most);
        if (most > largest) {
            sum *= __expf(largest - from);
            largest = most;
        }
#pragma unroll
        for (u32 j = 0; j < N; j++) {
            sum += __expf(widen(logits.at[j]) - from);
        }
    }

    // Of all logits of the block, in every thread.
    __device__ __forceinline__ Softmax together(float *scratch) const {
        Softmax all;
        all.largest = block_max(largest, scratch);
        all.sum = block_sum(sum * __expf(largest - base(all.largest)), scratch);
        return all;
    }
};

// Calls `visit(column)` for each vector of N columns of a row of `vocab`, of which this thread has its
// share, and `rest(column)` for the columns that fill no vector.
template <u32 N, typename Visit, typename Rest>
__device__ __forceinline__ void columns(u32 vocab, Visit visit, Rest rest) {
    u32 whole = vocab / N * N;
    for (u32 column = threadIdx.x * N; column < whole; column += blockDim.x * N) {
        visit(column);
    }
    for (u32 column = whole + threadIdx.x; column < vocab; column += blockDim.x) {
        rest(column);
    }
}

template <u32 N, bool GRADIENT>
__device__ __forceinline__ void row_cross_entropy(element *row, u32 target, float *loss, u32 vocab, float *scratch) {
    if (target == UNTRAINED) {
        if (threadIdx.x == 0) {
            *loss = 0.0f;
        }
        if (GRADIENT) {
            columns<N>(
                vocab, [&](u32 column) { store_vector(row + column, Vector<element, N>{}); },
                [&](u32 column) { row[column] = element{}; });
        }
        return;
    }
    // Before another thread writes the gradient over it: both sums below wait for all threads.
    float target_logit = widen(row[target]);
    Softmax mine;
    columns<N>(
        vocab, [&](u32 column) { mine.add(load_vector<N>(row + column)); },
        [&](u32 column) { mine.add(load_vector<1>(row + column)); });
    Softmax all = mine.together(scratch);
    float base = Softmax::base(all.largest);
    if (threadIdx.x == 0) {
        *loss = (base - target_logit) + logf(all.sum);
    }
    if (!GRADIENT) {
        return;
    }
    float share = 1.0f / all.sum;
    auto probability = [&](float logit) { return __expf(logit - base) * share; };
    columns<N>(
        vocab,
        [&](u32 column) {
            Vector<element, N> logits = load_vector<N>(row + column);
#pragma unroll
            for (u32 j = 0; j < N; j++) {
                logits.at[j] = narrow<element>(probability(widen(logits.at[j])));
            }
            store_vector(row + column, logits);
        },
        [&](u32 column) { row[column] = narrow<element>(probability(widen(row[column]))); });
    __syncthreads();
    if (threadIdx.x == 0) {
        row[target] = narrow<element>(probability(target_logit) - 1.0f);
    }
}

template <bool GRADIENT>
__device__ __forceinline__ void block_cross_entropy(element *logits, const u32 *targets, float *losses, u32 vocab,
                                                    u32 stride) {
    __shared__ float scratch[WARP];
    constexpr u32 COUNT = Vector<element>::COUNT;
    element *row = logits + (u64)blockIdx.x * stride;
    u32 target = targets[blockIdx.x];
    float *loss = losses + blockIdx.x;
    if (stride % COUNT == 0 && aligned<COUNT>(logits)) {
        row_cross_entropy<COUNT, GRADIENT>(row, target, loss, vocab, scratch);
    } else {
        row_cross_entropy<1, GRADIENT>(row, target, loss, vocab, scratch);
    }
}

// losses[row] = -ln of the probability of the row's target, 0 where the target is UNTRAINED, for
// `logits` [rows, vocab] with `stride` elements from one row to the next. A block of whole warps, at most
// 1024 threads, for each row.
extern "C" __global__ void __launch_bounds__(1024)
    cross_entropy(element *logits, const u32 *targets, float *losses, u32 vocab, u32 stride) {
    block_cross_entropy<false>(logits, targets, losses, vocab, stride);
}

// The same, and replaces the logits by the gradient of the sum of the losses: probabilities, less 1 at the
// target; 0 where the target is UNTRAINED.
extern "C" __global__ void __launch_bounds__(1024)
    cross_entropy_gradient(element *logits, const u32 *targets, float *losses, u32 vocab, u32 stride) {
    block_cross_entropy<true>(logits, targets, losses, vocab, stride);
}

// Adds the sum of `losses` [count] to `nll` [1], in f64 and one order. One block of whole warps, at most
// 1024 threads.
extern "C" __global__ void __launch_bounds__(1024) add_losses(const float *losses, double *nll, u32 count) {
    __shared__ double scratch[WARP];
    constexpr u32 COUNT = Vector<float>::COUNT;
    u32 whole = aligned<COUNT>(losses) ? count / COUNT * COUNT : 0;
    double sum = 0.0;
    for (u32 index = threadIdx.x * COUNT; index < whole; index += blockDim.x * COUNT) {
        Vector<float> some = load_vector(losses + index);
#pragma unroll
        for (u32 j = 0; j < COUNT; j++) {
            sum += (double)some.at[j];
        }
    }
    for (u32 index = whole + threadIdx.x; index < count; index += blockDim.x) {
        sum += (double)losses[index];
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) {
        *nll += sum;
    }
}
