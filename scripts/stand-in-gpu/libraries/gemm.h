// Products of matrices for the stand-in cuBLAS and cuBLASLt: operands in f32, bf16, f16 or f64 with any
// strides, sums in f32 (f64 where the operands are), one order of summation for each k.
#pragma once
#include <stdint.h>
#include <string.h>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

// Of libcuda.so.1: whether anything is computed; and ends the process where an operand is not within one
// allocation of the device.
extern "C" bool stand_in_computes();
extern "C" void stand_in_expect(const void *address, size_t bytes, const char *what);
// Waits for what other libraries have begun on a stream; so does libcuda.so.1.
extern "C" void stand_in_settle(void *stream, const char *what);

namespace gemm {

// As library_types.h and cublas_api.h have them.
enum Type : int { F32 = 0, F64 = 1, F16 = 2, BF16 = 14, NONE = -1 };
enum Status : int { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };

inline size_t size_of(int type) { return type == F64 ? 8 : type == F32 ? 4 : 2; }

inline float from_bf16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float x;
    memcpy(&x, &wide, 4);
    return x;
}
inline uint16_t to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fff : (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// A matrix with an address for each element: `down` from row to row, `right` from column to column, `batch` from
// matrix to matrix, in elements.
struct Matrix {
    void *data;
    int type;
    int64_t down, right, batch;

    template <typename T> T get(int64_t index) const {
        switch (type) {
        case F64: return (T)((const double *)data)[index];
        case F32: return (T)((const float *)data)[index];
        case BF16: return (T)from_bf16(((const uint16_t *)data)[index]);
        default: return (T)((const _Float16 *)data)[index];
        }
    }
    template <typename T> void set(int64_t index, T value) const {
        switch (type) {
        case F64: ((double *)data)[index] = (double)value; break;
        case F32: ((float *)data)[index] = (float)value; break;
        case BF16: ((uint16_t *)data)[index] = to_bf16((float)value); break;
        default: ((_Float16 *)data)[index] = (_Float16)value;
        }
    }
    void expect(int64_t rows, int64_t columns, int64_t batches, const char *what) const {
        int64_t last = (rows - 1) * down + (columns - 1) * right + (batches - 1) * batch + 1;
        stand_in_expect(data, rows && columns && batches ? (size_t)last * size_of(type) : 0, what);
    }
};

// The block of the product that is summed in registers: 2 vectors of 64 bytes by 8 columns.
template <typename T> struct Block {
    typedef T Lane __attribute__((vector_size(64)));
    static constexpr int LANES = 64 / sizeof(T), ROWS = 2 * LANES, COLUMNS = 8;
};

// sums[COLUMNS][ROWS] = the sum over k of a[k][ROWS] b[k][COLUMNS].
template <typename T> void multiply_block(int64_t k, const T *a, const T *b, T *sums) {
    using B = Block<T>;
    typename B::Lane low[B::COLUMNS] = {}, high[B::COLUMNS] = {};
    for (int64_t i = 0; i < k; i++) {
        typename B::Lane first, second;
        memcpy(&first, a + i * B::ROWS, sizeof first);
        memcpy(&second, a + i * B::ROWS + B::LANES, sizeof second);
        for (int column = 0; column < B::COLUMNS; column++) {
            low[column] += first * b[i * B::COLUMNS + column];
            high[column] += second * b[i * B::COLUMNS + column];
        }
    }
    for (int column = 0; column < B::COLUMNS; column++) {
        memcpy(sums + column * B::ROWS, &low[column], sizeof low[column]);
        memcpy(sums + column * B::ROWS + B::LANES, &high[column], sizeof high[column]);
    }
}

// Strips of `width` rows (of the transpose, columns), each with its k innermost but for the width; zeros beyond the end.
template <typename T>
void pack(const Matrix &matrix, int64_t base, int64_t count, int64_t k, int64_t along, int64_t inner, int width, std::vector<T> &packed) {
    packed.assign((size_t)((count + width - 1) / width * width * k), 0);
    for (int64_t strip = 0; strip < count; strip += width) {
        T *to = packed.data() + strip * k;
        int64_t here = count - strip < width ? count - strip : width;
        for (int64_t i = 0; i < k; i++) {
            for (int64_t j = 0; j < here; j++) {
                to[i * width + j] = matrix.get<T>(base + (strip + j) * along + i * inner);
            }
        }
    }
}

// Calls `write(row, column, sum)` for every element of a (m x k) times b (k x n), of one of the batches.
template <typename T, typename Write>
void multiply(int64_t m, int64_t n, int64_t k, const Matrix &a, const Matrix &b, int64_t batch, Write write) {
    using B = Block<T>;
    std::vector<T> left, right;
    pack(a, batch * a.batch, m, k, a.down, a.right, B::ROWS, left);
    pack(b, batch * b.batch, n, k, b.right, b.down, B::COLUMNS, right);
    T sums[B::ROWS * B::COLUMNS];
    for (int64_t column = 0; column < n; column += B::COLUMNS) {
        for (int64_t row = 0; row < m; row += B::ROWS) {
            multiply_block<T>(k, left.data() + row * k, right.data() + column * k, sums);
            for (int64_t j = 0; j < B::COLUMNS && column + j < n; j++) {
                for (int64_t i = 0; i < B::ROWS && row + i < m; i++) {
                    write(row + i, column + j, sums[j * B::ROWS + i]);
                }
            }
        }
    }
}

} // namespace gemm
