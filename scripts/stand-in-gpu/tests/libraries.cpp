// Tests the stand-in libraries as a program would use them. With no argument: what they compute; with a
// number: something wrong, that has to end the process (kernel `wrong`, or from 10 the memory itself).
#include <functional>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <string>
#include <vector>

typedef uint64_t Address;
extern "C" {
int cuInit(unsigned);
int cuDevicePrimaryCtxRetain(void **, int);
int cuCtxSetCurrent(void *);
int cuStreamCreate(void **, unsigned);
int cuStreamSynchronize(void *);
int cuMemAllocAsync(Address *, size_t, void *);
int cuMemFreeAsync(Address, void *);
int cuMemcpyHtoDAsync_v2(Address, const void *, size_t, void *);
int cuMemcpyDtoHAsync_v2(void *, Address, size_t, void *);
int cuMemGetInfo_v2(size_t *, size_t *);
int cuDeviceGetDefaultMemPool(void **, int);
int cuMemPoolGetAttribute(void *, int, void *);
int cuMemPoolSetAttribute(void *, int, void *);
int cuModuleLoadData(void **, const void *);
int cuModuleUnload(void *);
int cuModuleGetFunction(void **, void *, const char *);
int cuFuncSetAttribute(void *, int, int);
int cuFuncGetAttribute(int *, int, void *);
int cuLaunchKernel(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **);
int cuGraphDestroy(void *) __attribute__((weak));
int nvrtcCreateProgram(void **, const char *, const char *, int, const char *const *, const char *const *);
int nvrtcCompileProgram(void *, int, const char *const *);
int nvrtcGetCUBINSize(void *, size_t *);
int nvrtcGetCUBIN(void *, char *);
int nvrtcGetPTXSize(void *, size_t *);
int nvrtcGetPTX(void *, char *);
int nvrtcGetProgramLogSize(void *, size_t *);
int nvrtcGetProgramLog(void *, char *);
int cublasCreate_v2(void **);
int cublasGemmStridedBatchedEx(void *, int, int, int, int, int, const void *, const void *, int, int, long long, const void *, int, int,
                               long long, const void *, void *, int, int, long long, int, int, int);
int cublasLtCreate(void **);
int cublasLtMatmulDescCreate(void **, int, int);
int cublasLtMatmulDescSetAttribute(void *, int, const void *, size_t);
int cublasLtMatrixLayoutCreate(void **, int, uint64_t, uint64_t, int64_t);
int cublasLtMatrixLayoutSetAttribute(void *, int, const void *, size_t);
int cublasLtMatmul(void *, void *, const void *, const void *, void *, const void *, void *, const void *, const void *, void *, void *,
                   void *, const void *, void *, size_t, void *);
int curandCreateGenerator(void **, int);
int curandGenerateNormal(void *, float *, size_t, float, float);
}

static int passed = 0, failed = 0;
static void expect(bool holds, const char *what) {
    (holds ? passed : failed) += 1;
    if (!holds) {
        printf("FAILED: %s\n", what);
    }
}

static void *stream;

static Address device(size_t bytes) {
    Address address = 0;
    if (cuMemAllocAsync(&address, bytes, stream)) {
        printf("no memory\n");
        exit(2);
    }
    return address;
}
template <typename T> static Address upload(const std::vector<T> &values) {
    Address address = device(values.size() * sizeof(T));
    cuMemcpyHtoDAsync_v2(address, values.data(), values.size() * sizeof(T), stream);
    return address;
}
template <typename T = float> static std::vector<T> download(Address address, size_t count) {
    std::vector<T> values(count);
    cuMemcpyDtoHAsync_v2(values.data(), address, count * sizeof(T), stream);
    return values;
}
static std::vector<float> numbers(size_t count, unsigned seed) {
    std::vector<float> values(count);
    for (float &value : values) {
        seed = seed * 1664525 + 1013904223;
        value = (float)(int)(seed >> 8) / (1 << 23) - 1;
    }
    return values;
}
static float rounded(float x) { // to bf16
    uint32_t bits;
    memcpy(&bits, &x, 4);
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000;
    memcpy(&x, &bits, 4);
    return x;
}
static std::vector<uint16_t> halves(const std::vector<float> &values) {
    std::vector<uint16_t> bits;
    for (float value : values) {
        uint32_t word;
        value = rounded(value);
        memcpy(&word, &value, 4);
        bits.push_back((uint16_t)(word >> 16));
    }
    return bits;
}

static std::string read_file(const char *path) {
    std::string text;
    if (FILE *file = fopen(path, "rb")) {
        char part[4096];
        for (size_t count; (count = fread(part, 1, sizeof part, file)) > 0;) {
            text.append(part, count);
        }
        fclose(file);
    }
    return text;
}

static void *compile(const std::string &source, bool as_text) {
    void *program, *module = nullptr;
    const char *options[] = {"--gpu-architecture=sm_90a", "--std=c++17", "--define-macro=ANY=1"};
    nvrtcCreateProgram(&program, source.c_str(), "kernels.cu", 0, nullptr, nullptr);
    if (nvrtcCompileProgram(program, 3, options)) {
        return nullptr;
    }
    size_t size;
    std::vector<char> image;
    if (as_text) {
        nvrtcGetPTXSize(program, &size);
        image.resize(size);
        nvrtcGetPTX(program, image.data());
    } else {
        nvrtcGetCUBINSize(program, &size);
        image.resize(size);
        nvrtcGetCUBIN(program, image.data());
    }
    cuModuleLoadData(&module, image.data());
    return module;
}

static int launch(void *module, const char *name, unsigned grid, unsigned block, unsigned shared, std::vector<uint64_t> slots) {
    void *function;
    if (int error = cuModuleGetFunction(&function, module, name)) {
        return error;
    }
    std::vector<void *> parameters;
    for (uint64_t &slot : slots) {
        parameters.push_back(&slot);
    }
    return cuLaunchKernel(function, grid, 1, 1, block, 1, 1, shared, stream, parameters.data(), nullptr);
}

static void test_kernels(const std::string &source) {
    void *module = compile(source, false);
    expect(module != nullptr, "the kernels compile and load");
    std::vector<float> x = numbers(100 * 300, 1);
    Address on_device = upload(x), sums = device(100 * 4), out = device(64 * 4);
    expect(launch(module, "row_sums", 100, 256, 1024, {on_device, sums, 300, 1}) == 0, "a launch");
    std::vector<float> found = download(sums, 100);
    bool right = true;
    for (int row = 0; row < 100; row++) {
        double sum = 0;
        for (int i = 0; i < 300; i++) {
            sum += x[(size_t)(row * 300 + i)];
        }
        right &= fabs(found[(size_t)row] - sum) < 1e-4;
    }
    expect(right, "sums of rows");
    launch(module, "row_sums", 1, 256, 1024, {on_device, sums, 300, 0});
    bool forward = !getenv("STAND_IN_ORDER") || !strcmp(getenv("STAND_IN_ORDER"), "forward");
    expect(!(fabs(download(sums, 1)[0] - found[0]) < 1e-6) || !forward, "a missing barrier shows, as a NaN");
    expect(launch(module, "collectives", 1, 64, 0, {out}) == 0, "a launch of the collectives");
    found = download(out, 64);
    right = true;
    for (unsigned i = 0; i < 64; i++) {
        unsigned lane = i % 32, half = lane < 16 ? (lane == 15 ? 15 : lane + 1) : (lane == 16 ? 16 : lane - 1);
        double wanted = (double)(i / 32 * 32 + 31 - lane) + 100.0 * 496 + 1e5 * half + 1e7 * (lane ^ 3);
        right &= fabs(found[i] - wanted) < 32;
    }
    expect(right, "collectives");
    expect(launch(module, "collectives", 1, 1025, 0, {out}) == 1, "too many threads");
    expect(launch(module, "row_sums", 1, 512, 2048, {on_device, sums, 300, 1}) == 701, "more threads than the launch bounds");
    expect(launch(module, "row_sums", 1, 256, 60 << 10, {on_device, sums, 300, 1}) == 1, "more shared memory than allowed");
    void *function;
    cuModuleGetFunction(&function, module, "row_sums");
    int most = 0;
    cuFuncGetAttribute(&most, 0, function);
    expect(most == 256, "the launch bounds as an attribute");
    expect(cuFuncSetAttribute(function, 8, 228 << 10) == 1 && cuFuncSetAttribute(function, 8, 227 << 10) == 0, "allowing shared memory");
    expect(launch(module, "row_sums", 1, 256, 60 << 10, {on_device, sums, 300, 1}) == 0, "more shared memory, allowed");
    expect(launch(module, "row_sums", 1, 256, 1024, {300, sums, 300, 1}) == 1, "a number where an address belongs");
    expect(launch(module, "none", 1, 1, 0, {}) == 500, "a kernel that is not there");
    expect(launch(module, "made", 1, 64, 0, {out}) == 0 && download(out, 1)[0] == 4, "a kernel that a macro makes, and a definition");
    expect(launch(module, "made", 1, 65, 0, {out}) == 701, "its launch bounds");
    void *text = compile("extern \"C\" __global__ void seven(float *x, double y) { *x = 7 + (float)y; }", true), *empty;
    double half = 0.5;
    uint64_t bits;
    memcpy(&bits, &half, 8);
    expect(launch(text, "seven", 1, 1, 0, {out, bits}) == 0 && download(out, 1)[0] == 7.5f, "a module from text, a double");
    expect(cuModuleUnload(text) == 0, "unloading");
    expect(cuModuleLoadData(&empty, "") == 0 && launch(empty, "any", 1, 1, 0, {}) == 500, "an empty module");
    expect(cuModuleLoadData(&empty, "\177ELF something else") == 200, "an image of something else");
    void *program;
    nvrtcCreateProgram(&program, "extern \"C\" __global__ void f() { y = 1; }", "f.cu", 0, nullptr, nullptr);
    size_t size = 0;
    expect(nvrtcCompileProgram(program, 0, nullptr) == 6 && nvrtcGetProgramLogSize(program, &size) == 0, "an error of the compiler");
    std::string log(size, ' ');
    nvrtcGetProgramLog(program, log.data());
    expect(log.find("f.cu:1") != std::string::npos, "the log says where");
    const char *option = "--gpu-architekture=sm_90a";
    expect(nvrtcCompileProgram(program, 1, &option) == 5, "an option that does not exist");
    for (Address address : {on_device, sums, out}) {
        cuMemFreeAsync(address, stream);
    }
}

static void test_memory() {
    void *pool;
    cuDeviceGetDefaultMemPool(&pool, 0);
    auto get = [&](int attribute) {
        uint64_t value = 0;
        cuMemPoolGetAttribute(pool, attribute, &value);
        return value;
    };
    uint64_t everything = UINT64_MAX, zero = 0;
    cuMemPoolSetAttribute(pool, 4, &everything);
    uint64_t used = get(7), reserved = get(5);
    size_t free_before, total, free_after;
    cuMemGetInfo_v2(&free_before, &total);
    Address address = device(5 << 20);
    expect(address % 256 == 0 && get(7) == used + (5 << 20) && get(5) > reserved, "the pool counts");
    std::vector<float> found = download(address, 4);
    expect(isnan(found[0]), "memory begins as NaN");
    cuMemGetInfo_v2(&free_after, &total);
    expect(free_before - free_after == get(5) - reserved, "what is free");
    cuMemFreeAsync(address, stream);
    cuStreamSynchronize(stream);
    uint64_t kept = get(5);
    expect(get(7) == used && get(8) >= used + (5 << 20) && kept > reserved, "freed, and kept");
    address = device(4 << 20);
    expect(get(5) == kept, "used again");
    cuMemFreeAsync(address, stream);
    cuMemPoolSetAttribute(pool, 4, &zero);
    cuStreamSynchronize(stream);
    expect(get(5) <= reserved, "given back at a synchronisation, without a threshold");
    cuMemPoolSetAttribute(pool, 8, &zero);
    expect(get(8) == used, "the mark set back");
    expect(cuMemAllocAsync(&address, total + 1, stream) == 2, "out of memory");
    expect(cuMemFreeAsync(12345, stream) == 1, "an address that is not allocated");
    float one = 1;
    address = device(4);
    expect(cuMemcpyHtoDAsync_v2(address + 4, &one, 4, stream) == 1, "a copy past the end");
    expect(cuMemcpyHtoDAsync_v2(address, &one, 4, (void *)0x1234) == 400, "a stream that is none");
    cuMemFreeAsync(address, stream);
    expect(!cuGraphDestroy || cuGraphDestroy(nullptr) == 801, "what is not written says so");
    void *generator;
    address = device(1000 * 4);
    curandCreateGenerator(&generator, 100);
    curandGenerateNormal(generator, (float *)address, 1000, 1, 2);
    double mean = 0;
    for (float x : download(address, 1000)) {
        mean += x / 1000;
    }
    expect(fabs(mean - 1) < 0.3, "random numbers");
    cuMemFreeAsync(address, stream);
}

static double gelu(double x) { return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }
static double gelu_slope(double x) { return (gelu(x + 1e-5) - gelu(x - 1e-5)) / 2e-5; }

// One product with all that can vary; m x k times k x n, compared with sums in f64.
static void test_product(int epilogue, bool bf16, bool transpose_a, bool transpose_b, bool wide_output, int m, int n, int k) {
    const int batches = epilogue == 1 ? 2 : 1;
    auto value = [&](float x) { return bf16 ? rounded(x) : x; };
    std::vector<float> a = numbers((size_t)(batches * (m + 3) * (k + 3)), 2), b = numbers((size_t)(batches * (n + 3) * (k + 3)), 3);
    int lda = (transpose_a ? k : m) + 3, ldb = (transpose_b ? n : k) + 3, ldd = m + 1, aux_leading = (m + 7) / 8 * 8;
    int64_t stride_a = (int64_t)lda * (transpose_a ? m : k), stride_b = (int64_t)ldb * (transpose_b ? k : n), stride_d = (int64_t)ldd * n;
    std::vector<float> c = numbers((size_t)(batches * stride_d), 4), bias = numbers((size_t)(m > n ? m : n), 5);
    std::vector<float> aux = numbers((size_t)(aux_leading * n), 6);
    bool narrow = bf16 && !wide_output;
    auto put = [&](const std::vector<float> &values, bool half) { return half ? upload(halves(values)) : upload(values); };
    auto take = [&](Address address, size_t count) {
        if (!narrow) {
            return download(address, count);
        }
        std::vector<float> wide;
        for (uint16_t bits : download<uint16_t>(address, count)) {
            uint32_t word = (uint32_t)bits << 16;
            float x;
            memcpy(&x, &word, 4);
            wide.push_back(x);
        }
        return wide;
    };
    auto kept = [&](float x) { return narrow ? rounded(x) : x; };
    Address da = put(a, bf16), db = put(b, bf16), dd = put(c, narrow), dbias = put(bias, narrow), daux = put(aux, narrow);
    void *handle, *one, *la, *lb, *ld;
    cublasLtCreate(&handle);
    cublasLtMatmulDescCreate(&one, 68, 0);
    int type = bf16 ? 14 : 0, ta = transpose_a, tb = transpose_b, of_output = narrow ? 14 : 0;
    int64_t leading = aux_leading;
    cublasLtMatmulDescSetAttribute(one, 3, &ta, 4);
    cublasLtMatmulDescSetAttribute(one, 4, &tb, 4);
    cublasLtMatmulDescSetAttribute(one, 7, &epilogue, 4);
    cublasLtMatmulDescSetAttribute(one, 8, &dbias, 8);
    cublasLtMatmulDescSetAttribute(one, 11, &daux, 8);
    cublasLtMatmulDescSetAttribute(one, 12, &leading, 8);
    cublasLtMatrixLayoutCreate(&la, type, (uint64_t)(ta ? k : m), (uint64_t)(ta ? m : k), lda);
    cublasLtMatrixLayoutCreate(&lb, type, (uint64_t)(tb ? n : k), (uint64_t)(tb ? k : n), ldb);
    cublasLtMatrixLayoutCreate(&ld, of_output, (uint64_t)m, (uint64_t)n, ldd);
    for (auto layout : {std::make_pair(la, stride_a), std::make_pair(lb, stride_b), std::make_pair(ld, stride_d)}) {
        cublasLtMatrixLayoutSetAttribute(layout.first, 5, &batches, 4);
        cublasLtMatrixLayoutSetAttribute(layout.first, 6, &layout.second, 8);
    }
    float alpha = 0.5f, beta = 0.25f;
    std::string what = "cuBLASLt epilogue " + std::to_string(epilogue) + (bf16 ? " bf16" : " f32");
    int status = cublasLtMatmul(handle, one, &alpha, (void *)da, la, (void *)db, lb, &beta, (void *)dd, ld, (void *)dd, ld, nullptr, nullptr, 0, stream);
    std::vector<float> d = take(dd, c.size()), bias_after = take(dbias, bias.size()), aux_after = take(daux, aux.size());
    double worst = status ? INFINITY : 0, tolerance = narrow ? 1e-2 : 1e-4;
    auto compare = [&](double wanted, float found) { worst = fmax(worst, fabs(wanted - found) / (1 + fabs(wanted))); };
    std::vector<double> rows((size_t)m), of_a((size_t)m), of_b((size_t)n);
    auto at_a = [&](int batch, int i, int l) { return value(a[(size_t)(batch * stride_a + (ta ? l + i * lda : i + l * lda))]); };
    auto at_b = [&](int batch, int l, int j) { return value(b[(size_t)(batch * stride_b + (tb ? j + l * ldb : l + j * ldb))]); };
    for (int batch = 0; batch < batches; batch++) {
        for (int j = 0; j < n; j++) {
            for (int i = 0; i < m; i++) {
                double sum = 0;
                for (int l = 0; l < k; l++) {
                    sum += (double)at_a(batch, i, l) * at_b(batch, l, j);
                }
                size_t at = (size_t)(batch * stride_d + i + j * ldd), beside = (size_t)(i + j * aux_leading);
                double x = alpha * sum + beta * kept(c[at]) + (epilogue & 4 ? kept(bias[(size_t)i]) : 0);
                if (epilogue & 128 && !(epilogue & 64)) {
                    compare(x, aux_after[beside]);
                }
                x = epilogue & 64 ? x * gelu_slope(kept(aux[beside])) : epilogue & 32 ? gelu(x) : x;
                rows[(size_t)i] += x;
                compare(x, d[at]);
            }
        }
    }
    for (int l = 0; l < k; l++) {
        for (int i = 0; i < m; i++) {
            of_a[(size_t)i] += at_a(0, i, l);
        }
        for (int j = 0; j < n; j++) {
            of_b[(size_t)j] += at_b(0, l, j);
        }
    }
    for (int i = 0; i < m; i++) {
        if (epilogue == 208 || epilogue == 256) {
            compare((epilogue == 208 ? rows : of_a)[(size_t)i], bias_after[(size_t)i]);
        }
    }
    for (int j = 0; j < n && epilogue == 512; j++) {
        compare(of_b[(size_t)j], bias_after[(size_t)j]);
    }
    if (!(worst < tolerance)) {
        printf("status %d, worst %g\n", status, worst);
    }
    expect(worst < tolerance, what.c_str());
    if (epilogue == 1) { // the same from cuBLAS
        void *blas;
        cublasCreate_v2(&blas);
        Address again = put(c, narrow);
        cublasGemmStridedBatchedEx(blas, ta, tb, m, n, k, &alpha, (void *)da, type, lda, stride_a, (void *)db, type, ldb, stride_b, &beta,
                                   (void *)again, of_output, ldd, stride_d, batches, 68, 99);
        expect(take(again, c.size()) == d, "cuBLAS gives the same");
        cuMemFreeAsync(again, stream);
    }
    for (Address address : {da, db, dd, dbias, daux}) {
        cuMemFreeAsync(address, stream);
    }
}

static void wrong(const std::string &source, int how) {
    if (how < 10) {
        launch(compile(source, false), "wrong", 1, 64, how == 2 ? 32 : 0, {upload(numbers(64, 1)), (uint64_t)how});
    } else if (how == 10) { // a write after it was freed shows as soon as it leaves the memory of what was freed
        Address address = device(64);
        cuMemFreeAsync(address, stream);
        *(float *)address = 1;
        for (int i = 0; i < 2000; i++) {
            cuMemFreeAsync(device(64), stream);
        }
    } else if (how == 11) { // a matrix that is not all there
        void *blas;
        cublasCreate_v2(&blas);
        float one = 1;
        Address x = device(64 * 4);
        cublasGemmStridedBatchedEx(blas, 0, 0, 8, 8, 9, &one, (void *)x, 0, 8, 0, (void *)x, 0, 9, 0, &one, (void *)x, 0, 8, 0, 1, 68, 99);
    }
}

int main(int count, char **arguments) {
    void *context;
    if (count < 2 || cuInit(0) || cuDevicePrimaryCtxRetain(&context, 0) || cuCtxSetCurrent(context) || cuStreamCreate(&stream, 1)) {
        return 2;
    }
    std::string source = read_file(arguments[1]);
    if (count > 2) {
        wrong(source, atoi(arguments[2]));
        return 0;
    }
    test_memory();
    test_kernels(source);
    for (int epilogue : {1, 4, 32, 36, 160, 164, 192, 208, 256, 512}) {
        for (int kind = 0; kind < 12; kind++) {
            test_product(epilogue, kind >= 4, kind & 1, kind & 2, kind >= 8, 37, 21, 50);
        }
    }
    cuStreamSynchronize(stream);
    printf("libraries: %d passed, %d failed\n", passed, failed);
    return failed > 0;
}
