// Layer normalisation, forward and backward.
//
// A row belongs to a team of `team_size` threads (`Team` of the prelude), and a block has
// blockDim / team_size of them. x, added, sum, y, dy, residual and dx are [n, dim], weight and bias
// [dim], mean and rstd [n]. CORDEE_SCALAR unless `dim` is a whole number of vectors.

// y = (x - mean) * rstd * weight + bias with rstd = 1 / sqrt(variance + eps). Where `added` is not
// null, x + added takes the place of x, as it is stored in `sum`. The variance is taken of the
// differences from the mean, which does not cancel as the difference of squares would.
//
// A grid of ceil(n / teams of a block).
extern "C" __global__ void __launch_bounds__(1024)
    forward(const element *__restrict__ x, const element *__restrict__ added, const element *__restrict__ weight,
            const element *__restrict__ bias, element *__restrict__ sum, element *__restrict__ y,
            float *__restrict__ mean, float *__restrict__ rstd, u64 n, u32 dim, u32 team_size, float eps) {
    __shared__ float scratch[WARP];
    Team team(team_size);
    u64 row = (u64)blockIdx.x * team.count + team.index;
    // A team without a row takes part in sums all the same.
    u32 width = row < n ? dim : 0;
    u64 at = row * dim;
    bool whole = dim <= team.segment();
    Held held;

    float total[1] = {0.0f};
    for (u32 start = 0; start < width; start += team.segment()) {
        held.load(x + at, team, start, width);
        if (added) {
            Held more;
            more.load(added + at, team, start, width);
            team.each(start, width, [&](u32 i, u32 column) {
#pragma unroll
                for (u32 j = 0; j < ROW_VECTOR; j++) {
                    held.at[i].at[j] = narrow<element>(widen(held.at[i].at[j]) + widen(more.at[i].at[j]));
                }
                store_vector(sum + at + column, held.at[i]);
            });
        }
        team.each(start, width, [&](u32 i, u32) {
#pragma unroll
            for (u32 j = 0; j < ROW_VECTOR; j++) {
                total[0] += widen(held.at[i].at[j]);
            }
        });
    }
    team.sum(total, scratch);
    float middle = total[0] / (float)dim;

    float squares[1] = {0.0f};
    for (u32 start = 0; start < width; start += team.segment()) {
        if (!whole) {
            held.load((added ? sum : x) + at, team, start, width);
        }
        team.each(start, width, [&](u32 i, u32) {
#pragma unroll
            for (u32 j = 0; j < ROW_VECTOR; j++) {
                float difference = widen(held.at[i].at[j]) - middle;
                squares[0] = fmaf(difference, difference, squares[0]);
            }
        });
    }
    team.sum(squares, scratch);
    float scale = 1.0f / sqrtf(squares[0] / (float)dim + eps);
    if (row < n && team.rank == 0) {
        mean[row] = middle;
        rstd[row] = scale;
    }

    for (u32 start = 0; start < width; start += team.segment()) {
        if (!whole) {
            held.load((added ? sum : x) + at, team, start, width);
        }
        team.each(start, width, [&](u32 i, u32 column) {
            Vector<element, ROW_VECTOR> gains = load_vector<ROW_VECTOR>(weight + column);
            Vector<element, ROW_VECTOR> shifts = load_vector<ROW_VECTOR>(bias + column), result;
#pragma unroll
            for (u32 j = 0; j < ROW_VECTOR; j++) {
                float normalised = (widen(held.at[i].at[j]) - middle) * scale;
                result.at[j] = narrow<element>(fmaf(normalised, widen(gains.at[j]), widen(shifts.at[j])));
            }
            store_vector(y + at + column, result);
        });
    }
}

// With h = (x - mean) * rstd and g = dy * weight: dx = rstd * (g - mean(g) - h * mean(g * h)), plus
// `residual` where it is not null. weight_partials and bias_partials [grid, dim] receive the sums of
// dy * h and of dy over the rows of each block.
//
// A team has `rows` rows, one after the other; a grid of ceil(n / (teams of a block * rows)). Shared
// memory: 4 * HELD bytes per thread where a block has several teams.
extern "C" __global__ void __launch_bounds__(1024)
    backward(const element *__restrict__ dy, const element *__restrict__ x, const element *__restrict__ weight,
             const float *__restrict__ mean, const float *__restrict__ rstd, const element *__restrict__ residual,
             element *__restrict__ dx, float *__restrict__ weight_partials, float *__restrict__ bias_partials, u64 n,
             u32 dim, u32 team_size, u32 rows) {
    DYNAMIC_SHARED(shared);
    __shared__ float scratch[2 * WARP];
    Team team(team_size);
    u64 first = ((u64)blockIdx.x * team.count + team.index) * rows;
    float *weight_partial = weight_partials + (u64)blockIdx.x * dim;
    float *bias_partial = bias_partials + (u64)blockIdx.x * dim;
    bool whole = dim <= team.segment();
    Held slopes, inputs;
    ColumnSums dweight, dbias;
    dweight.clear();
    dbias.clear();

    for (u32 index = 0; index < rows; index++) {
        u64 row = first + index, at = row * dim;
        u32 width = row < n ? dim : 0;
        float middle = row < n ? mean[row] : 0.0f, scale = row < n ? rstd[row] : 0.0f;
        // Of g, and of g * h.
        float sums[2] = {0.0f, 0.0f};
        Held past = {};
        if (residual && whole) {
            past.load(residual + at, team, 0, width);
        }
        for (u32 start = 0; start < width; start += team.segment()) {
            slopes.load(dy + at, team, start, width);
            inputs.load(x + at, team, start, width);
            team.each(start, width, [&](u32 i, u32 column) {
                Vector<element, ROW_VECTOR> gains = load_vector<ROW_VECTOR>(weight + column);
#pragma unroll
                for (u32 j = 0; j < ROW_VECTOR; j++) {
                    float g = widen(slopes.at[i].at[j]) * widen(gains.at[j]);
                    sums[0] += g;
                    sums[1] = fmaf(g, (widen(inputs.at[i].at[j]) - middle) * scale, sums[1]);
                }
            });
        }
        team.sum(sums, scratch);
        float mean_slope = sums[0] / (float)dim, product = sums[1] / (float)dim;

        for (u32 start = 0; start < width; start += team.segment()) {
            if (!whole) {
                slopes.load(dy + at, team, start, width);
                inputs.load(x + at, team, start, width);
            }
            if (residual && !whole) {
                past.load(residual + at, team, start, width);
            }
            team.each(start, width, [&](u32 i, u32 column) {
                Vector<element, ROW_VECTOR> gains = load_vector<ROW_VECTOR>(weight + column), result;
#pragma unroll
                for (u32 j = 0; j < ROW_VECTOR; j++) {
                    float d = widen(slopes.at[i].at[j]), g = d * widen(gains.at[j]);
                    float normalised = (widen(inputs.at[i].at[j]) - middle) * scale;
                    float slope = scale * (g - mean_slope - normalised * product);
                    result.at[j] = narrow<element>(slope + widen(past.at[i].at[j]));
                    dweight.at[i].at[j] = fmaf(d, normalised, dweight.at[i].at[j]);
                    dbias.at[i].at[j] += d;
                }
                store_vector(dx + at + column, result);
            });
            if (!whole) {
                index == 0 ? dweight.store(weight_partial, team, start, dim)
                           : dweight.add(weight_partial, team, start, dim);
                index == 0 ? dbias.store(bias_partial, team, start, dim)
                           : dbias.add(bias_partial, team, start, dim);
                dweight.clear();
                dbias.clear();
            }
        }
    }
    if (whole) {
        dweight.store_all(weight_partial, team, dim, (float *)shared);
        dbias.store_all(bias_partial, team, dim, (float *)shared);
    }
}
