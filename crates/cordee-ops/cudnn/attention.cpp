// Causal attention by cuDNN, forward and backward: graphs built with cuDNN's header-only C++ frontend,
// behind a C interface. The build script compiles this file into a shared object that the crate embeds
// and opens when a GPU asks for it; libcudnn is opened at run time, and no other library is linked.
//
// Functions return 0 or, where they fail, 1, and then they write why as text. No exception leaves.
// Handles and plans live as long as the process.

#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

// What the plan that is being made allows for, as the frontend reads it: see `frontend_getenv`.
thread_local std::string score_memory;

}  // namespace

namespace std {

// How much memory a deterministic backward on Hopper may take for scores is a variable of the
// environment to the frontend. Here it belongs to the plan; the other variables are for debugging.
inline char *frontend_getenv(const char *name) {
    if (strcmp(name, "CUDNN_FRONTEND_ATTN_DP_WORKSPACE_LIMIT") == 0) {
        return score_memory.empty() ? nullptr : &score_memory[0];
    }
    return std::getenv(name);
}

}  // namespace std

#define getenv frontend_getenv
#include <cudnn_frontend.h>
#undef getenv

// Older ones check less, and take what they know of the GPU from CUDA's runtime library.
#if CUDNN_FRONTEND_VERSION < 13200
#error "cudnn-frontend 1.32 or newer is needed: pip install -U nvidia-cudnn-frontend"
#endif

namespace cudnn_frontend {
void *cudnn_dlhandle = nullptr;
}

namespace fe = cudnn_frontend;

extern "C" {

// What a plan is made for. Lengths count elements. Activations are bf16 `[batch * seq, heads,
// head_dim]`, the heads of a token without gaps; the log-sum-exp is f32 `[batch, heads, seq]` with
// strides. Kept the same in `src/attention/cudnn/library.rs`.
struct cordee_cudnn_shape {
    int64_t batch, seq, heads, kv_heads, head_dim;
    // A token sees this many, itself included; all before it, where this is 0.
    int64_t window;
    // From one token to the next, in the order of `Operand`.
    int64_t token_strides[9];
    int64_t lse_batch_stride, lse_head_stride;
    // Bytes that a deterministic backward on Hopper may take for scores; more, and it takes the
    // slower way whose memory is linear in the length (cuDNN 9.25).
    int64_t score_memory;
    // Most bytes of workspace.
    int64_t most_workspace;
    double scale;
    // 10 * major + minor.
    int32_t compute_capability;
    int32_t backward, deterministic;
};

}  // extern "C"

namespace {

constexpr int32_t DONE = 0, FAILED = 1;

// Operands by their place in the array of addresses. A tensor's uid is its place plus one.
enum Operand { Q, K, V, OUT, LSE, DOUT, DQ, DK, DV, OPERANDS };

constexpr const char *NAMES[OPERANDS] = {"q", "k", "v", "out", "lse", "dout", "dq", "dk", "dv"};

using Tensor = std::shared_ptr<fe::graph::Tensor_attributes>;

struct Text {
    char *start;
    size_t len;

    int32_t says(int32_t outcome, const std::string &why) const {
        if (start != nullptr && len > 0) {
            size_t count = std::min(why.size(), len - 1);
            std::memcpy(start, why.data(), count);
            start[count] = '\0';
        }
        return outcome;
    }
};

// Runs what may throw.
template <typename Body> int32_t guarded(const Text &error, Body body) {
    try {
        return body();
    } catch (const std::exception &exception) {
        return error.says(FAILED, exception.what());
    } catch (...) {
        return error.says(FAILED, "an exception without a text");
    }
}

std::string status_text(cudnnStatus_t status) {
    std::string text = fe::detail::get_error_string(status);
    std::string more = fe::detail::get_last_error_string_();
    return more.empty() ? text : text + ": " + more;
}

struct Plan {
    fe::graph::Graph graph;
    bool backward;
    std::vector<Operand> operands;
};

class Builder {
   public:
    Builder(const cordee_cudnn_shape &shape, Plan &plan) : shape(shape), plan(plan) {}

    void build() {
        fe::graph::Graph &graph = plan.graph;
        graph.set_io_data_type(fe::DataType_t::BFLOAT16)
            .set_intermediate_data_type(fe::DataType_t::FLOAT)
            .set_compute_data_type(fe::DataType_t::FLOAT)
            .set_sm_version(shape.compute_capability);
        plan.backward = shape.backward != 0;
        Tensor q = input(Q), k = input(K), v = input(V);
        if (!plan.backward) {
            auto attributes = fe::graph::SDPA_attributes().set_name("attention").set_generate_stats(true);
            mask(attributes);
            auto [out, lse] = graph.sdpa(q, k, v, attributes);
            output(out, OUT);
            output(lse, LSE);
            return;
        }
        Tensor out = input(OUT), lse = input(LSE), dout = input(DOUT);
        auto attributes = fe::graph::SDPA_backward_attributes().set_name("attention_backward");
        attributes.set_deterministic_algorithm(shape.deterministic != 0);
        mask(attributes);
        auto [dq, dk, dv] = graph.sdpa_backward(q, k, v, out, dout, lse, attributes);
        output(dq, DQ);
        output(dk, DK);
        output(dv, DV);
    }

   private:
    // Token i sees token j where 0 <= i - j < window: the frontend keeps j + left bound > i.
    template <typename Attributes> void mask(Attributes &attributes) {
        attributes.set_attn_scale(static_cast<float>(shape.scale));
        attributes.set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT).set_diagonal_band_right_bound(0);
        if (shape.window > 0 && shape.window < shape.seq) {
            attributes.set_diagonal_band_left_bound(static_cast<int>(shape.window));
        }
    }

    // `[batch, heads, seq, head_dim]` with the strides of the memory.
    void lay_out(fe::graph::Tensor_attributes &tensor, Operand operand) {
        plan.operands.push_back(operand);
        tensor.set_name(NAMES[operand]).set_uid(operand + 1);
        if (operand == LSE) {
            tensor.set_dim({shape.batch, shape.heads, shape.seq, 1})
                .set_stride({shape.lse_batch_stride, shape.lse_head_stride, 1, 1})
                .set_data_type(fe::DataType_t::FLOAT);
            return;
        }
        bool keys = operand == K || operand == V || operand == DK || operand == DV;
        int64_t token = shape.token_strides[operand];
        tensor.set_dim({shape.batch, keys ? shape.kv_heads : shape.heads, shape.seq, shape.head_dim})
            .set_stride({shape.seq * token, shape.head_dim, token, 1})
            .set_data_type(fe::DataType_t::BFLOAT16);
    }

    Tensor input(Operand operand) {
        fe::graph::Tensor_attributes tensor;
        lay_out(tensor, operand);
        return plan.graph.tensor(tensor);
    }

    void output(const Tensor &tensor, Operand operand) {
        lay_out(*tensor, operand);
        tensor->set_output(true);
    }

    const cordee_cudnn_shape &shape;
    Plan &plan;
};

// Why a version of cuDNN is not used; empty for one that is. Before 9.6 a backward clears memory by
// CUDA's runtime library, which is not opened here; the frontend knows the attention of 9.10.0 and
// 9.10.1 for faulty.
std::string refusal(size_t version) {
    std::string found = "it is version " + std::to_string(version);
    if (version / 10000 != 9 || version < 90600) {
        return found + ", outside of 9.6 to 9.x";
    }
    if (version == 91000 || version == 91001) {
        return found + ", whose attention is faulty";
    }
    return "";
}

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

// Opens libcudnn, once for the process; `version` becomes its version, as 10000 * major + 100 * minor
// + patch, and the text where it is.
EXPORTED int32_t cordee_cudnn_open(const char *path, uint64_t *version, char *error, size_t len) {
    Text text{error, len};
    return guarded(text, [&]() -> int32_t {
        if (fe::cudnn_dlhandle == nullptr) {
            void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
            if (library == nullptr) {
                const char *why = dlerror();
                return text.says(FAILED, why != nullptr ? why : "dlopen failed without a reason");
            }
            auto get_version = reinterpret_cast<size_t (*)()>(dlsym(library, "cudnnGetVersion"));
            if (get_version == nullptr) {
                dlclose(library);
                return text.says(FAILED, "it has no cudnnGetVersion");
            }
            std::string why = refusal(get_version());
            if (!why.empty()) {
                dlclose(library);
                return text.says(FAILED, why);
            }
            fe::cudnn_dlhandle = library;
        }
        *version = fe::detail::get_backend_version();
        Dl_info info{};
        bool known = dladdr(dlsym(fe::cudnn_dlhandle, "cudnnGetVersion"), &info) != 0 && info.dli_fname != nullptr;
        return text.says(DONE, known ? info.dli_fname : path);
    });
}

// A handle for the GPU that is current in the calling thread; its work goes to `stream`.
EXPORTED int32_t cordee_cudnn_create_handle(void *stream, void **handle, char *error, size_t len) {
    Text text{error, len};
    return guarded(text, [&]() -> int32_t {
        cudnnHandle_t created = nullptr;
        cudnnStatus_t status = fe::detail::create_handle(&created);
        if (status != CUDNN_STATUS_SUCCESS) {
            return text.says(FAILED, "cudnnCreate: " + status_text(status));
        }
        status = fe::detail::set_stream(created, static_cast<cudaStream_t>(stream));
        if (status != CUDNN_STATUS_SUCCESS) {
            std::string why = "cudnnSetStream: " + status_text(status);
            fe::detail::destroy_handle(created);
            return text.says(FAILED, why);
        }
        *handle = created;
        return DONE;
    });
}

// Makes a plan, which takes from a tenth of a second to a few: checks the graph, asks the heuristics
// for engines and compiles the first that works. `workspace` becomes the bytes that a run of it needs.
// Without a handle the plan is for the GPU that `device` describes (the JSON of a device property of
// cuDNN), which need not be there: such a plan cannot be run.
EXPORTED int32_t cordee_cudnn_create_plan(void *handle, const char *device, const cordee_cudnn_shape *shape,
                                          void **plan, int64_t *workspace, char *error, size_t len) {
    Text text{error, len};
    return guarded(text, [&]() -> int32_t {
        if (fe::cudnn_dlhandle == nullptr) {
            return text.says(FAILED, "libcudnn was not opened");
        }
        score_memory = shape->score_memory >= 0 ? std::to_string(shape->score_memory) : std::string();
        auto made = std::make_unique<Plan>();
        Builder(*shape, *made).build();
        auto refused = [&](const char *step, fe::error_t found) {
            return text.says(FAILED, std::string(step) + ": " + found.get_message());
        };
        fe::graph::Graph &graph = made->graph;
        if (auto found = graph.validate(); found.is_bad()) {
            return refused("checking the graph", found);
        }
        if (handle == nullptr && device == nullptr) {
            return text.says(FAILED, "the graph is valid, but there is no GPU to make a plan for");
        }
        if (handle == nullptr) {
            auto described = std::make_shared<fe::DeviceProperties>();
            std::vector<uint8_t> bytes(device, device + std::strlen(device) + 1);
            if (auto found = described->deserialize(bytes); found.is_bad()) {
                return refused("reading what the GPU is", found);
            }
            graph.set_device_properties(described);
        }
        auto cudnn = static_cast<cudnnHandle_t>(handle);
        if (auto found = graph.build_operation_graph(cudnn); found.is_bad()) {
            return refused("building the graph", found);
        }
        if (auto found = graph.create_execution_plans({fe::HeurMode_t::A, fe::HeurMode_t::FALLBACK});
            found.is_bad()) {
            return refused("looking for an engine", found);
        }
        if (shape->deterministic != 0) {
            graph.deselect_numeric_notes({fe::NumericalNote_t::NONDETERMINISTIC});
        }
        if (auto found = graph.check_support(cudnn); found.is_bad()) {
            return refused("choosing an engine", found);
        }
        if (auto found = graph.build_plans(cudnn); found.is_bad()) {
            return refused("compiling the plan", found);
        }
        if (auto found = graph.get_workspace_size(*workspace); found.is_bad()) {
            return refused("asking for the workspace", found);
        }
        if (*workspace > shape->most_workspace) {
            return text.says(FAILED, "it takes " + std::to_string(*workspace) + " bytes of workspace, more than the " +
                                         std::to_string(shape->most_workspace) + " that are well spent");
        }
        *plan = made.release();
        return DONE;
    });
}

// Asks for a run on the handle's stream; nothing is waited for. `addresses` are those of `Operand`, of
// which those that the plan does not have may be null.
EXPORTED int32_t cordee_cudnn_run(void *handle, const void *plan, void *const *addresses, void *workspace, char *error,
                                  size_t len) {
    Text text{error, len};
    return guarded(text, [&]() -> int32_t {
        auto made = static_cast<const Plan *>(plan);
        std::unordered_map<int64_t, void *> tensors;
        for (Operand operand : made->operands) {
            tensors.emplace(operand + 1, addresses[operand]);
        }
        auto found = made->graph.execute(static_cast<cudnnHandle_t>(handle), tensors, workspace);
        return found.is_bad() ? text.says(FAILED, found.get_message()) : DONE;
    });
}
