// Root-mean-square normalisation, forward and backward.
//
// A row belongs to a team of `team_size` threads (`Team` of the prelude), and a block has
// blockDim / team_size of them. x, added, sum, y, dy, residual and dx are [n, dim], weight is [dim],
// rstd is [n]. CORDEE_SCALAR unless `dim` is a whole number of vectors.

// y = x * rstd * (weight + offset) with rstd = 1 / sqrt(mean(x^2) + eps). Where `added` is not null,
// x + added takes the place of x, as it is stored in `sum`.
//
// A grid of ceil(n / teams of a block).
extern "C" __global__ void __launch_bounds__(1024)
    forward(const element *__restrict__ x, const element *__restrict__ added, const element *__restrict__ weight,
            element *__restrict__ sum, element *__restrict__ y, float *__restrict__ rstd, u64 n, u32 dim,
            u32 team_size, float offset, float eps) {
    __shared__ float scratch[WARP];
    Team team(team_size);
    u64 row = (u64)blockIdx.x * team.count + team.index;
    // A team without a row takes part in sums all the same.
    u32 width = row < n ? dim : 0;
    u64 at = row * dim;
    Held held;

    float squares[1] = {0.0f};
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
                float value = widen(held.at[i].at[j]);
                squares[0] = fmaf(value, value, squares[0]);
            }
        });
    }
    team.sum(squares, scratch);
    float scale = 1.0f / sqrtf(squares[0] / (float)dim + eps);
    if (row < n && team.rank == 0) {
        rstd[row] = scale;
    }

    for (u32 start = 0; start < width; start += team.segment()) {
        if (width > team.segment()) {
            held.load((added ? sum : x) + at, team, start, width);
        }
        team.each(start, width, [&](u32 i, u32 column) {
            Vector<element, ROW_VECTOR> gains = load_vector<ROW_VECTOR>(weight + column), result;
#pragma unroll
            for (u32 j = 0; j < ROW_VECTOR; j++) {
                result.at[j] = narrow<element>(widen(held.at[i].at[j]) * scale * (widen(gains.at[j]) + offset));
            }
            store_vector(y + at + column, result);
        });
    }
}

// With g = dy * (weight + offset): dx = rstd * (g - x * rstd^2 * mean(g * x)), plus `residual` where it
// is not null. partials [grid, dim] receives the sums of dy * x * rstd over the rows of each block.
//
// A team has `rows` rows, one after the other; a grid of ceil(n / (teams of a block * rows)). Shared
// memory: 4 * HELD bytes per thread where a block has several teams.
extern "C" __global__ void __launch_bounds__(1024)
    backward(const element *__restrict__ dy, const element *__restrict__ x, const element *__restrict__ weight,
             const float *__restrict__ rstd, const element *__restrict__ residual, element *__restrict__ dx,
             float *__restrict__ partials, u64 n, u32 dim, u32 team_size, u32 rows, float offset) {
    DYNAMIC_SHARED(shared);
    __shared__ float scratch[WARP];
    Team team(team_size);
    u64 first = ((u64)blockIdx.x * team.count + team.index) * rows;
    float *partial = partials + (u64)blockIdx.x * dim;
    bool whole = dim <= team.segment();
    Held slopes, inputs;
    ColumnSums dweight;
    dweight.clear();

    for (u32 index = 0; index < rows; index++) {
        u64 row = first + index, at = row * dim;
        u32 width = row < n ? dim : 0;
        float scale = row < n ? rstd[row] : 0.0f;
        float product[1] = {0.0f};
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
                    float g = widen(slopes.at[i].at[j]) * (widen(gains.at[j]) + offset);
                    product[0] = fmaf(g, widen(inputs.at[i].at[j]), product[0]);
                }
            });
        }
        team.sum(product, scratch);
        float slope = scale * scale * (product[0] / (float)dim);

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
                    float d = widen(slopes.at[i].at[j]), value = widen(inputs.at[i].at[j]);
                    float g = d * (widen(gains.at[j]) + offset);
                    result.at[j] = narrow<element>(scale * (g - value * slope) + widen(past.at[i].at[j]));
                    dweight.at[i].at[j] = fmaf(d, value * scale, dweight.at[i].at[j]);
                }
                store_vector(dx + at + column, result);
            });
            if (!whole) {
                index == 0 ? dweight.store(partial, team, start, dim) : dweight.add(partial, team, start, dim);
                dweight.clear();
            }
        }
    }
    if (whole) {
        dweight.store_all(partial, team, dim, (float *)shared);
    }
}
