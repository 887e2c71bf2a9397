// Stands in for crates/cordee-ops/cudnn/attention.cpp: the same functions, computed by plain loops on the
// memory of the stand-in GPU, without cuDNN. `CORDEE_CUDNN_SHIM` has a build embed it.
//
// STAND_IN_CUDNN is the version it says that libcudnn has (default 92801): one before 9.26 is given the
// log-sum-exp as [batch, heads, seq], and refuses it otherwise; with 0 there is no libcudnn.
#include "gemm.h"
#include <algorithm>
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string>

struct cordee_cudnn_shape {
    int64_t batch, seq, heads, kv_heads, head_dim, window, token_strides[9], lse_batch_stride, lse_head_stride,
        score_memory, most_workspace;
    double scale;
    int32_t compute_capability, backward, deterministic;
};

enum Operand { Q, K, V, OUT, LSE, DOUT, DQ, DK, DV };

struct Plan {
    cordee_cudnn_shape shape;
    size_t workspace;
};

static int says(char *text, size_t len, int outcome, const std::string &what) {
    snprintf(text, len, "%s", what.c_str());
    return outcome;
}

static uint64_t version() {
    const char *given = getenv("STAND_IN_CUDNN");
    return given ? strtoull(given, nullptr, 10) : 92801;
}

// A name without a folder is found; what is in a folder is opened as the real one would.
EXPORT int32_t cordee_cudnn_open(const char *path, uint64_t *found, char *text, size_t len) {
    if (strchr(path, '/') != nullptr) {
        void *library = dlopen(path, RTLD_NOW);
        return says(text, len, 1, library == nullptr ? dlerror() : "it has no cudnnGetVersion");
    }
    *found = version();
    if (*found == 0) {
        return says(text, len, 1, "STAND_IN_CUDNN is 0");
    }
    return says(text, len, 0, std::string("/stand-in/") + path);
}

EXPORT int32_t cordee_cudnn_create_handle(void *stream, void **handle, char *, size_t) {
    *handle = stream;
    return 0;
}

EXPORT int32_t cordee_cudnn_create_plan(void *, const char *, const cordee_cudnn_shape *shape, void **plan,
                                          int64_t *workspace, char *text, size_t len) {
    const auto &s = *shape;
    bool heads_first = s.lse_batch_stride == s.seq && s.lse_head_stride == s.batch * s.seq;
    bool packed = s.lse_batch_stride == s.heads * s.seq && s.lse_head_stride == s.seq;
    if (!packed && !(heads_first && version() >= 92600)) {
        return says(text, len, 1, "a log-sum-exp of strange strides");
    }
    if (s.head_dim % 8 != 0 || s.head_dim > 256 || s.heads % s.kv_heads != 0 || s.compute_capability < 80) {
        return says(text, len, 1, "sizes that cuDNN refuses");
    }
    size_t bytes = s.backward ? 4 * s.batch * s.seq * s.heads * s.head_dim : 0;
    *workspace = bytes;
    *plan = new Plan{s, bytes};
    return 0;
}

namespace {

struct Run {
    const cordee_cudnn_shape &s;
    void *const *at;

    uint16_t *row(Operand operand, int64_t batch, int64_t token, int64_t head) const {
        return (uint16_t *)at[operand] + (batch * s.seq + token) * s.token_strides[operand] + head * s.head_dim;
    }

    double dot(const uint16_t *a, const uint16_t *b) const {
        double sum = 0;
        for (int64_t d = 0; d < s.head_dim; d++) {
            sum += (double)gemm::from_bf16(a[d]) * gemm::from_bf16(b[d]);
        }
        return sum;
    }

    int64_t first(int64_t query) const { return s.window > 0 && query >= s.window ? query - s.window + 1 : 0; }

    float &lse(int64_t batch, int64_t head, int64_t query) const {
        return ((float *)at[LSE])[batch * s.lse_batch_stride + head * s.lse_head_stride + query];
    }

    void forward(int64_t b, int64_t h) const {
        int64_t group = s.heads / s.kv_heads;
        std::vector<double> p(s.seq), out(s.head_dim);
        for (int64_t i = 0; i < s.seq; i++) {
            double most = -INFINITY, sum = 0;
            for (int64_t j = first(i); j <= i; j++) {
                p[j] = s.scale * dot(row(Q, b, i, h), row(K, b, j, h / group));
                most = fmax(most, p[j]);
            }
            std::fill(out.begin(), out.end(), 0);
            for (int64_t j = first(i); j <= i; j++) {
                double weight = exp(p[j] - most);
                sum += weight;
                for (int64_t d = 0; d < s.head_dim; d++) {
                    out[d] += weight * gemm::from_bf16(row(V, b, j, h / group)[d]);
                }
            }
            for (int64_t d = 0; d < s.head_dim; d++) {
                row(OUT, b, i, h)[d] = gemm::to_bf16(out[d] / sum);
            }
            lse(b, h, i) = most + log(sum);
        }
    }

    // The gradients of one key head.
    void backward(int64_t b, int64_t kv_head) const {
        int64_t group = s.heads / s.kv_heads, width = s.head_dim;
        std::vector<double> dk(s.seq * width), dv(s.seq * width), dq(width);
        for (int64_t h = kv_head * group; h < (kv_head + 1) * group; h++) {
            for (int64_t i = 0; i < s.seq; i++) {
                const uint16_t *q = row(Q, b, i, h), *dout = row(DOUT, b, i, h);
                double delta = dot(dout, row(OUT, b, i, h));
                std::fill(dq.begin(), dq.end(), 0);
                for (int64_t j = first(i); j <= i; j++) {
                    const uint16_t *k = row(K, b, j, kv_head);
                    double p = exp(s.scale * dot(q, k) - lse(b, h, i));
                    double ds = s.scale * p * (dot(dout, row(V, b, j, kv_head)) - delta);
                    for (int64_t d = 0; d < width; d++) {
                        dv[j * width + d] += p * gemm::from_bf16(dout[d]);
                        dk[j * width + d] += ds * gemm::from_bf16(q[d]);
                        dq[d] += ds * gemm::from_bf16(k[d]);
                    }
                }
                for (int64_t d = 0; d < width; d++) {
                    row(DQ, b, i, h)[d] = gemm::to_bf16(dq[d]);
                }
            }
        }
        for (int64_t j = 0; j < s.seq; j++) {
            for (int64_t d = 0; d < width; d++) {
                row(DK, b, j, kv_head)[d] = gemm::to_bf16(dk[j * width + d]);
                row(DV, b, j, kv_head)[d] = gemm::to_bf16(dv[j * width + d]);
            }
        }
    }
};

}  // namespace

EXPORT int32_t cordee_cudnn_run(void *stream, const void *plan, void *const *addresses, void *workspace, char *text,
                                  size_t len) {
    const auto &made = *(const Plan *)plan;
    const auto &s = made.shape;
    stand_in_settle(stream, "cuDNN");
    for (int operand = Q; operand <= (s.backward ? DV : LSE); operand++) {
        bool keys = operand == K || operand == V || operand == DK || operand == DV;
        size_t tokens = s.batch * s.seq;
        size_t bytes = operand == LSE ? 4 * s.heads * tokens
                                      : 2 * tokens * (keys ? s.kv_heads : s.heads) * s.head_dim;
        if (addresses[operand] == nullptr || (uintptr_t)addresses[operand] % 16 != 0) {
            return says(text, len, 1, "operand " + std::to_string(operand) + " has no or no aligned address");
        }
        stand_in_expect(addresses[operand], bytes, "cuDNN: an operand");
    }
    if (made.workspace > 0) {
        stand_in_expect(workspace, made.workspace, "cuDNN: the workspace");
    }
    if (!stand_in_computes()) {
        return 0;
    }
    if (made.workspace > 0) {
        memset(workspace, 0xff, made.workspace);
    }
    Run run{s, addresses};
    for (int64_t batch = 0; batch < s.batch; batch++) {
        for (int64_t head = 0; head < (s.backward ? s.kv_heads : s.heads); head++) {
            s.backward ? run.backward(batch, head) : run.forward(batch, head);
        }
    }
    return 0;
}
