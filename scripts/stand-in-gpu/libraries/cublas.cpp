// The stand-in libcublas.so.13: handles, and products of matrices. All is column-major.
#include "gemm.h"

using namespace gemm;

namespace {

struct Handle {
    void *stream = nullptr;
    int math_mode = 0, pointer_mode = 0;
};

// What op(operand) is, of the given leading dimension.
Matrix operand(const void *data, int type, int transposed, int64_t leading, int64_t batch) {
    return {const_cast<void *>(data), type, transposed ? leading : 1, transposed ? 1 : leading, batch};
}

struct Product {
    int transpose_a, transpose_b;
    int64_t m, n, k;
    const void *alpha, *a;
    int a_type;
    int64_t a_leading, a_stride;
    const void *b;
    int b_type;
    int64_t b_leading, b_stride;
    const void *beta;
    void *c;
    int c_type;
    int64_t c_leading, c_stride, batches;
};

template <typename T> Status compute(const Product &one, T alpha, T beta) {
    Matrix a = operand(one.a, one.a_type, one.transpose_a, one.a_leading, one.a_stride);
    Matrix b = operand(one.b, one.b_type, one.transpose_b, one.b_leading, one.b_stride);
    Matrix c = operand(one.c, one.c_type, 0, one.c_leading, one.c_stride);
    a.expect(one.m, one.k, one.batches, "cuBLAS: matrix A");
    b.expect(one.k, one.n, one.batches, "cuBLAS: matrix B");
    c.expect(one.m, one.n, one.batches, "cuBLAS: matrix C");
    for (int64_t batch = 0; stand_in_computes() && batch < one.batches; batch++) {
        multiply<T>(one.m, one.n, one.k, a, b, batch, [&](int64_t row, int64_t column, T sum) {
            int64_t at = batch * c.batch + row + column * c.right;
            c.set(at, alpha * sum + (beta == 0 ? (T)0 : beta * c.get<T>(at)));
        });
    }
    return SUCCESS;
}

Status run(const Handle *handle, const Product &one, int compute_type) {
    if (!handle) {
        return NOT_INITIALIZED;
    }
    stand_in_settle(handle->stream, "cuBLAS");
    if (one.m < 0 || one.n < 0 || one.k < 0 || one.batches < 0 || one.a_leading < (one.transpose_a ? one.k : one.m) ||
        one.b_leading < (one.transpose_b ? one.n : one.k) || one.c_leading < one.m) {
        return INVALID_VALUE;
    }
    if (one.a_type != one.b_type || handle->pointer_mode != 0) {
        return NOT_SUPPORTED;
    }
    if (one.a_type == F64) {
        return compute<double>(one, *(const double *)one.alpha, *(const double *)one.beta);
    }
    // 64 is CUBLAS_COMPUTE_16F, whose alpha and beta are f16.
    float alpha = compute_type == 64 ? (float)*(const _Float16 *)one.alpha : *(const float *)one.alpha;
    float beta = compute_type == 64 ? (float)*(const _Float16 *)one.beta : *(const float *)one.beta;
    return compute<float>(one, alpha, beta);
}

} // namespace

EXPORT Status cublasCreate_v2(Handle **handle) {
    *handle = new Handle;
    return SUCCESS;
}
EXPORT Status cublasDestroy_v2(Handle *handle) {
    delete handle;
    return SUCCESS;
}
EXPORT Status cublasSetStream_v2(Handle *handle, void *stream) {
    handle->stream = stream;
    return SUCCESS;
}
EXPORT Status cublasGetStream_v2(Handle *handle, void **stream) {
    *stream = handle->stream;
    return SUCCESS;
}
EXPORT Status cublasSetWorkspace_v2(Handle *, void *, size_t) { return SUCCESS; }
EXPORT Status cublasSetMathMode(Handle *handle, int mode) {
    handle->math_mode = mode;
    return SUCCESS;
}
EXPORT Status cublasGetMathMode(Handle *handle, int *mode) {
    *mode = handle->math_mode;
    return SUCCESS;
}
EXPORT Status cublasSetPointerMode_v2(Handle *handle, int mode) {
    handle->pointer_mode = mode;
    return SUCCESS;
}
EXPORT Status cublasGetVersion_v2(Handle *, int *version) {
    *version = 130000;
    return SUCCESS;
}

EXPORT Status cublasGemmStridedBatchedEx(Handle *handle, int transpose_a, int transpose_b, int m, int n, int k, const void *alpha,
                                         const void *a, int a_type, int lda, long long stride_a, const void *b, int b_type, int ldb,
                                         long long stride_b, const void *beta, void *c, int c_type, int ldc, long long stride_c,
                                         int batches, int compute_type, int) {
    return run(handle, {transpose_a, transpose_b, m, n, k, alpha, a, a_type, lda, stride_a, b, b_type, ldb, stride_b, beta, c, c_type, ldc, stride_c, batches},
               compute_type);
}
EXPORT Status cublasGemmEx(Handle *handle, int transpose_a, int transpose_b, int m, int n, int k, const void *alpha, const void *a,
                           int a_type, int lda, const void *b, int b_type, int ldb, const void *beta, void *c, int c_type, int ldc,
                           int compute_type, int) {
    return run(handle, {transpose_a, transpose_b, m, n, k, alpha, a, a_type, lda, 0, b, b_type, ldb, 0, beta, c, c_type, ldc, 0, 1}, compute_type);
}

#define PLAIN(name, number, type) \
    EXPORT Status cublas##name##gemmStridedBatched(Handle *handle, int transpose_a, int transpose_b, int m, int n, int k, \
        const number *alpha, const number *a, int lda, long long stride_a, const number *b, int ldb, long long stride_b, \
        const number *beta, number *c, int ldc, long long stride_c, int batches) { \
        return run(handle, {transpose_a, transpose_b, m, n, k, alpha, a, type, lda, stride_a, b, type, ldb, stride_b, beta, c, type, ldc, stride_c, batches}, 68); \
    } \
    EXPORT Status cublas##name##gemm_v2(Handle *handle, int transpose_a, int transpose_b, int m, int n, int k, const number *alpha, \
        const number *a, int lda, const number *b, int ldb, const number *beta, number *c, int ldc) { \
        return cublas##name##gemmStridedBatched(handle, transpose_a, transpose_b, m, n, k, alpha, a, lda, 0, b, ldb, 0, beta, c, ldc, 0, 1); \
    }
PLAIN(S, float, F32)
PLAIN(D, double, F64)
