// The stand-in libcublasLt.so.13: products of matrices with what cuBLASLt does to them on the way out, as
// its documentation defines it. It refuses what the real one is documented to refuse, so that a wrong
// description shows here.
#include "gemm.h"
#include <math.h>
#include <stdio.h>

using namespace gemm;

namespace {

// Attributes by their numbers in cublasLt.h.
struct MatmulDescription {
    int compute_type = 68, scale_type = F32, pointer_mode = 0, transpose_a = 0, transpose_b = 0, transpose_c = 0;
    int fill_mode = 0, epilogue = 1, bias_type = NONE, aux_type = NONE, sm_count = 0, fast_accumulation = 0;
    void *bias = nullptr, *aux = nullptr;
    int64_t bias_stride = 0, aux_leading = 0, aux_stride = 0;
};

struct Layout {
    int type, order = 0, batches = 1;
    uint64_t rows, columns;
    int64_t leading, batch_stride = 0;
};

struct Preference {
    uint64_t most_workspace = 0;
};

struct Algorithm {
    uint64_t data[8];
};

struct Heuristic {
    Algorithm algorithm;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

enum Epilogue { RELU = 2, BIAS = 4, BIAS_GRADIENT = 16, GELU = 32, DGELU = 64, AUX = 128, BIAS_GRADIENT_A = 256, BIAS_GRADIENT_B = 512 };

struct Field {
    void *value;
    size_t bytes;
};

Field field(MatmulDescription *of, int attribute) {
    switch (attribute) {
    case 0: return {&of->compute_type, 4};
    case 1: return {&of->scale_type, 4};
    case 2: return {&of->pointer_mode, 4};
    case 3: return {&of->transpose_a, 4};
    case 4: return {&of->transpose_b, 4};
    case 5: return {&of->transpose_c, 4};
    case 6: return {&of->fill_mode, 4};
    case 7: return {&of->epilogue, 4};
    case 8: return {&of->bias, 8};
    case 10: return {&of->bias_stride, 8};
    case 11: return {&of->aux, 8};
    case 12: return {&of->aux_leading, 8};
    case 13: return {&of->aux_stride, 8};
    case 15: return {&of->sm_count, 4};
    case 22: return {&of->aux_type, 4};
    case 25: return {&of->fast_accumulation, 1};
    case 26: return {&of->bias_type, 4};
    default: return {nullptr, 0};
    }
}

Field field(Layout *of, int attribute) {
    switch (attribute) {
    case 0: return {&of->type, 4};
    case 1: return {&of->order, 4};
    case 2: return {&of->rows, 8};
    case 3: return {&of->columns, 8};
    case 4: return {&of->leading, 8};
    case 5: return {&of->batches, 4};
    case 6: return {&of->batch_stride, 8};
    default: return {nullptr, 0};
    }
}

template <typename Of> Status set(Of *of, int attribute, const void *from, size_t bytes) {
    Field found = field(of, attribute);
    if (!found.value || !from) {
        fprintf(stderr, "stand-in cuBLASLt: attribute %d is not known here\n", attribute);
        return NOT_SUPPORTED;
    }
    if (bytes < found.bytes) {
        return INVALID_VALUE;
    }
    memcpy(found.value, from, found.bytes);
    return SUCCESS;
}

template <typename Of> Status get(Of *of, int attribute, void *to, size_t bytes, size_t *written) {
    Field found = field(of, attribute);
    if (!found.value) {
        return NOT_SUPPORTED;
    }
    if (written) {
        *written = found.bytes;
    }
    if (bytes == 0 && written) {
        return SUCCESS;
    }
    if (bytes < found.bytes || !to) {
        return INVALID_VALUE;
    }
    memcpy(to, found.value, found.bytes);
    return SUCCESS;
}

Status refuse(Status status, const char *why) {
    fprintf(stderr, "stand-in cuBLASLt: %s\n", why);
    return status;
}

// What the documentation of cublasLtMatmul() and of the attributes asks for.
Status check(const MatmulDescription &one, const Layout &a, const Layout &b, const Layout &c, const Layout &d) {
    uint64_t m = one.transpose_a ? a.columns : a.rows, k = one.transpose_a ? a.rows : a.columns;
    uint64_t k_b = one.transpose_b ? b.columns : b.rows, n = one.transpose_b ? b.rows : b.columns;
    if (k != k_b || d.rows != m || d.columns != n || c.rows != m || c.columns != n) {
        return refuse(INVALID_VALUE, "the shapes of A, B, C and D do not fit");
    }
    for (const Layout *layout : {&a, &b, &c, &d}) {
        if (layout->order > 1 || layout->batches != d.batches) {
            return refuse(NOT_SUPPORTED, "an order that is neither of columns nor of rows, or numbers of batches that differ");
        }
        if (layout->leading < (int64_t)(layout->order ? layout->columns : layout->rows)) {
            return refuse(INVALID_VALUE, "a leading dimension is less than the rows (columns, in order of rows)");
        }
        if (layout->batches > 1 && layout->batch_stride == 0 && layout == &d) {
            return refuse(INVALID_VALUE, "several batches of D at one place");
        }
    }
    bool half = a.type == BF16 || a.type == F16;
    if (a.type != b.type || c.type != d.type || !(half ? d.type == a.type || d.type == F32 : d.type == a.type) ||
        one.scale_type != (a.type == F64 ? F64 : F32) || one.pointer_mode != 0 || one.compute_type == 64) {
        return refuse(NOT_SUPPORTED, "these types do not go together: A and B alike, C and D alike; scale f32; pointers of the host");
    }
    if (a.type == F32 && one.compute_type != 68 && one.compute_type != 69 && one.compute_type != 77 && one.compute_type != 75 && one.compute_type != 74) {
        return refuse(NOT_SUPPORTED, "a compute type that f32 does not have");
    }
    int known[] = {1, BIAS, RELU, RELU | BIAS, GELU, GELU | BIAS, GELU | AUX, GELU | AUX | BIAS, DGELU | AUX, DGELU | AUX | BIAS_GRADIENT,
                   BIAS_GRADIENT_A, BIAS_GRADIENT_B};
    bool found = false;
    for (int one_known : known) {
        found |= one.epilogue == one_known;
    }
    if (!found) {
        return refuse(NOT_SUPPORTED, "an epilogue that is not known here");
    }
    if (one.epilogue & (BIAS | BIAS_GRADIENT | BIAS_GRADIENT_A | BIAS_GRADIENT_B)) {
        if (!one.bias) {
            return refuse(INVALID_VALUE, "an epilogue with a bias, and no address of it");
        }
        if (one.bias_type != NONE && one.bias_type != d.type && one.bias_type != F32) {
            return refuse(NOT_SUPPORTED, "a type of the bias that is neither D's nor f32");
        }
    }
    if (one.epilogue & AUX && (!one.aux || one.aux_leading < (int64_t)m || one.aux_leading % 8 || d.order != 0)) {
        return refuse(INVALID_VALUE, "an epilogue with an auxiliary matrix: it needs an address, a leading dimension that is a multiple of 8 and at least the rows, and D in order of columns");
    }
    return SUCCESS;
}

Matrix matrix(const void *data, const Layout &layout, bool transposed) {
    int64_t down = layout.order ? layout.leading : 1, right = layout.order ? 1 : layout.leading;
    return {const_cast<void *>(data), layout.type, transposed ? right : down, transposed ? down : right, layout.batch_stride};
}

// The form with tanh, and its derivative.
float gelu(float x) {
    float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
    return 0.5f * x * (1.0f + tanhf(inner));
}
float gelu_derivative(float x) {
    float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x), t = tanhf(inner);
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * 0.7978845608028654f * (1.0f + 3.0f * 0.044715f * x * x);
}

// bias[i] = the sum over `count` of the elements (i, .) of what has these strides.
void sum_into(const Matrix &bias, int64_t base, const Matrix &of, int64_t start, int64_t length, int64_t count, int64_t along, int64_t across) {
    for (int64_t i = 0; i < length; i++) {
        float sum = 0;
        for (int64_t j = 0; j < count; j++) {
            sum += of.get<float>(start + i * along + j * across);
        }
        bias.set(base + i, sum);
    }
}

template <typename T>
Status compute(const MatmulDescription &one, T alpha, T beta, const Matrix &a, const Matrix &b, const Matrix &c, const Matrix &d,
               int64_t m, int64_t n, int64_t k, int64_t batches) {
    bool has_bias = one.epilogue & BIAS, has_aux = one.epilogue & AUX;
    int64_t bias_length = one.epilogue == BIAS_GRADIENT_B ? n : m;
    Matrix bias{one.bias, one.bias_type == NONE ? d.type : one.bias_type, 1, 0, one.bias_stride};
    Matrix aux{one.aux, one.aux_type == NONE ? d.type : one.aux_type, 1, one.aux_leading, one.aux_stride};
    a.expect(m, k, batches, "cuBLASLt: matrix A");
    b.expect(k, n, batches, "cuBLASLt: matrix B");
    d.expect(m, n, batches, "cuBLASLt: matrix D");
    if (beta != 0) {
        c.expect(m, n, batches, "cuBLASLt: matrix C");
    }
    if (one.epilogue & (BIAS | BIAS_GRADIENT | BIAS_GRADIENT_A | BIAS_GRADIENT_B)) {
        bias.expect(bias_length, 1, batches, "cuBLASLt: the bias");
    }
    if (has_aux) {
        aux.expect(m, n, batches, "cuBLASLt: the auxiliary matrix");
    }
    for (int64_t batch = 0; stand_in_computes() && batch < batches; batch++) {
        std::vector<float> columns(one.epilogue & BIAS_GRADIENT ? (size_t)m : 0, 0.0f);
        multiply<T>(m, n, k, a, b, batch, [&](int64_t row, int64_t column, T sum) {
            T x = alpha * sum;
            if (beta != 0) {
                x += beta * c.get<T>(batch * c.batch + row * c.down + column * c.right);
            }
            if (has_bias) {
                x += bias.get<T>(batch * bias.batch + row);
            }
            int64_t beside = batch * aux.batch + row + column * aux.right;
            if (one.epilogue & DGELU) {
                x *= (T)gelu_derivative(aux.get<float>(beside));
            } else if (has_aux) {
                aux.set(beside, x);
            }
            if (one.epilogue & GELU) {
                x = (T)gelu((float)x);
            }
            if (one.epilogue & RELU) {
                x = x > 0 ? x : (T)0;
            }
            if (one.epilogue & BIAS_GRADIENT) {
                columns[(size_t)row] += (float)x;
            }
            d.set(batch * d.batch + row * d.down + column * d.right, x);
        });
        for (size_t row = 0; row < columns.size(); row++) {
            bias.set(batch * bias.batch + (int64_t)row, columns[row]);
        }
        if (one.epilogue == BIAS_GRADIENT_A) {
            sum_into(bias, batch * bias.batch, a, batch * a.batch, m, k, a.down, a.right);
        }
        if (one.epilogue == BIAS_GRADIENT_B) {
            sum_into(bias, batch * bias.batch, b, batch * b.batch, n, k, b.right, b.down);
        }
    }
    return SUCCESS;
}

} // namespace

EXPORT Status cublasLtCreate(void **handle) {
    *handle = new int(0);
    return SUCCESS;
}
EXPORT Status cublasLtDestroy(void *handle) {
    delete (int *)handle;
    return SUCCESS;
}
EXPORT size_t cublasLtGetVersion() { return 130000; }
EXPORT const char *cublasLtGetStatusString(Status status) { return status == SUCCESS ? "success" : "an error of the stand-in cuBLASLt"; }
EXPORT const char *cublasLtGetStatusName(Status status) { return status == SUCCESS ? "CUBLAS_STATUS_SUCCESS" : "CUBLAS_STATUS_NOT_SUPPORTED"; }
EXPORT Status cublasLtLoggerSetLevel(int) { return SUCCESS; }
EXPORT Status cublasLtLoggerOpenFile(const char *) { return SUCCESS; }

EXPORT Status cublasLtMatmulDescCreate(MatmulDescription **made, int compute_type, int scale_type) {
    *made = new MatmulDescription;
    (*made)->compute_type = compute_type, (*made)->scale_type = scale_type;
    return SUCCESS;
}
EXPORT Status cublasLtMatmulDescDestroy(MatmulDescription *one) {
    delete one;
    return SUCCESS;
}
EXPORT Status cublasLtMatmulDescSetAttribute(MatmulDescription *one, int attribute, const void *value, size_t bytes) {
    return set(one, attribute, value, bytes);
}
EXPORT Status cublasLtMatmulDescGetAttribute(MatmulDescription *one, int attribute, void *value, size_t bytes, size_t *written) {
    return get(one, attribute, value, bytes, written);
}

EXPORT Status cublasLtMatrixLayoutCreate(Layout **made, int type, uint64_t rows, uint64_t columns, int64_t leading) {
    if (type != F32 && type != F64 && type != F16 && type != BF16) {
        return refuse(NOT_SUPPORTED, "a type that is none of f32, f64, f16, bf16");
    }
    *made = new Layout{type, 0, 1, rows, columns, leading};
    return SUCCESS;
}
EXPORT Status cublasLtMatrixLayoutDestroy(Layout *one) {
    delete one;
    return SUCCESS;
}
EXPORT Status cublasLtMatrixLayoutSetAttribute(Layout *one, int attribute, const void *value, size_t bytes) {
    return set(one, attribute, value, bytes);
}
EXPORT Status cublasLtMatrixLayoutGetAttribute(Layout *one, int attribute, void *value, size_t bytes, size_t *written) {
    return get(one, attribute, value, bytes, written);
}

EXPORT Status cublasLtMatmulPreferenceCreate(Preference **made) {
    *made = new Preference;
    return SUCCESS;
}
EXPORT Status cublasLtMatmulPreferenceDestroy(Preference *one) {
    delete one;
    return SUCCESS;
}
EXPORT Status cublasLtMatmulPreferenceSetAttribute(Preference *one, int attribute, const void *value, size_t bytes) {
    if (attribute == 1 && bytes >= 8) {
        memcpy(&one->most_workspace, value, 8);
    }
    return SUCCESS;
}

EXPORT Status cublasLtMatmulAlgoGetHeuristic(void *handle, const MatmulDescription *one, const Layout *a, const Layout *b, const Layout *c,
                                             const Layout *d, const Preference *, int wanted, Heuristic *found, int *count) {
    if (!handle || !one || !a || !b || !c || !d || wanted < 1) {
        return INVALID_VALUE;
    }
    *count = 0;
    if (Status status = check(*one, *a, *b, *c, *d)) {
        return status;
    }
    *found = {{{0x5354414e44494e}}, 0, SUCCESS, 1.0f, {0, 0, 0, 0}};
    *count = 1;
    return SUCCESS;
}
EXPORT Status cublasLtMatmulAlgoCheck(void *, const MatmulDescription *one, const Layout *a, const Layout *b, const Layout *c,
                                      const Layout *d, const Algorithm *algorithm, Heuristic *result) {
    *result = {*algorithm, 0, SUCCESS, 1.0f, {0, 0, 0, 0}};
    return check(*one, *a, *b, *c, *d);
}

EXPORT Status cublasLtMatmul(void *handle, const MatmulDescription *one, const void *alpha, const void *a, const Layout *a_layout,
                             const void *b, const Layout *b_layout, const void *beta, const void *c, const Layout *c_layout, void *d,
                             const Layout *d_layout, const Algorithm *, void *workspace, size_t workspace_bytes, void *stream) {
    if (!handle) {
        return NOT_INITIALIZED;
    }
    stand_in_settle(stream, __func__);
    if (!one || !alpha || !beta || !a || !b || !d || !a_layout || !b_layout || !c_layout || !d_layout) {
        return refuse(INVALID_VALUE, "an operand or its layout is null");
    }
    if (Status status = check(*one, *a_layout, *b_layout, *c_layout, *d_layout)) {
        return status;
    }
    if (workspace && workspace_bytes) {
        stand_in_expect(workspace, workspace_bytes, "cuBLASLt: the workspace");
    }
    Matrix left = matrix(a, *a_layout, one->transpose_a), right = matrix(b, *b_layout, one->transpose_b);
    Matrix before = matrix(c, *c_layout, false), after = matrix(d, *d_layout, false);
    int64_t m = (int64_t)d_layout->rows, n = (int64_t)d_layout->columns;
    int64_t k = (int64_t)(one->transpose_a ? a_layout->rows : a_layout->columns), batches = d_layout->batches;
    if (a_layout->type == F64) {
        return compute<double>(*one, *(const double *)alpha, *(const double *)beta, left, right, before, after, m, n, k, batches);
    }
    float by = *(const float *)alpha, with = *(const float *)beta;
    if (with != 0 && !c) {
        return refuse(INVALID_VALUE, "beta is not 0, and C is null");
    }
    return compute<float>(*one, by, with, left, right, before, after, m, n, k, batches);
}
