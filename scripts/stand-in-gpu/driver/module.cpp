// The stand-in driver's modules and launches. A module is a shared library that the stand-in libnvrtc made;
// a launch runs its grid before it returns.
#include "../entry.h"
#include "driver.h"
#include <dlfcn.h>
#include <fcntl.h>
#include <memory>
#include <unistd.h>

using namespace driver;

namespace {

struct Function {
    std::string name;
    const stand_in::Entry *entry;
    size_t most_shared = SHARED_DEFAULT;
};

struct Module {
    void *library = nullptr; // null where the image was empty
    std::mutex lock;
    std::map<std::string, std::unique_ptr<Function>> functions;
};

// One grid at a time: a module's threads have one set of stacks.
std::mutex running;

Result open_library(Module *module, const char *bytes, size_t count) {
    const char *directory = getenv("TMPDIR");
    std::string path = std::string(directory && *directory ? directory : "/tmp") + "/stand-in-gpu-XXXXXX";
    int file = mkostemp(path.data(), O_CLOEXEC);
    if (file < 0) {
        say("no module can be written to %s", path.c_str());
        return OPERATING_SYSTEM;
    }
    while (count > 0) {
        ssize_t written = write(file, bytes, count);
        if (written <= 0) {
            break;
        }
        bytes += written, count -= (size_t)written;
    }
    close(file);
    module->library = count ? nullptr : dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    unlink(path.c_str());
    if (!module->library) {
        say("a module cannot be loaded: %s", count ? "the disk is full" : dlerror());
        return INVALID_IMAGE;
    }
    return SUCCESS;
}

// What nvrtcGetPTX gives is the image in hexadecimal digits behind a line of comment.
bool from_digits(const char *text, std::string &image) {
    if (strncmp(text, "// " STAND_IN_IMAGE "\n", 4 + sizeof STAND_IN_IMAGE - 1)) {
        return false;
    }
    auto digit = [](char c) { return c <= '9' ? c - '0' : c - 'a' + 10; };
    for (text = strchr(text, '\n') + 1; text[0] && text[1]; text += 2) {
        image.push_back((char)(digit(text[0]) << 4 | digit(text[1])));
    }
    return true;
}

Result load(Module **module, const void *data) {
    if (!current) {
        return INVALID_CONTEXT;
    }
    auto made = std::make_unique<Module>();
    const char *image = (const char *)data;
    std::string decoded;
    if (*image) { // an empty one comes from the stand-in nvcc, and has no functions
        if (from_digits(image, decoded)) {
            image = decoded.data();
        }
        if (memcmp(image, STAND_IN_IMAGE, sizeof STAND_IN_IMAGE)) {
            return INVALID_IMAGE;
        }
        stand_in_image head;
        memcpy(&head, image, sizeof head);
        if (head.version != STAND_IN_VERSION) {
            return INVALID_IMAGE;
        }
        if (Result result = open_library(made.get(), image + sizeof head, head.bytes)) {
            return result;
        }
    }
    *module = made.release();
    return SUCCESS;
}

Result launch(Function *function, const stand_in::Launch &launch, Stream *stream) {
    Device *device = device_of(stream);
    if (!device) {
        return INVALID_HANDLE;
    }
    auto refuse = [&](Result result, const char *why) {
        say("%s is not launched: %s (grid %u x %u x %u, block %u x %u x %u, %lu bytes of dynamic shared memory)",
            function->name.c_str(), why, launch.grid[0], launch.grid[1], launch.grid[2], launch.block[0], launch.block[1],
            launch.block[2], launch.shared_bytes);
        return result;
    };
    uint64_t threads = (uint64_t)launch.block[0] * launch.block[1] * launch.block[2];
    if (threads == 0 || (uint64_t)launch.grid[0] * launch.grid[1] * launch.grid[2] == 0) {
        return refuse(INVALID_VALUE, "there is nothing in it");
    }
    if (threads > 1024 || launch.block[0] > 1024 || launch.block[1] > 1024 || launch.block[2] > 64) {
        return refuse(INVALID_VALUE, "a block has at most 1024 threads, 64 in z");
    }
    if (launch.grid[0] > 2147483647 || launch.grid[1] > 65535 || launch.grid[2] > 65535) {
        return refuse(INVALID_VALUE, "a grid has at most 2147483647 x 65535 x 65535 blocks");
    }
    if (launch.shared_bytes > function->most_shared) {
        return refuse(INVALID_VALUE, "more shared memory than was asked for with cuFuncSetAttribute");
    }
    if (threads > function->entry->most_threads) {
        return refuse(LAUNCH_OUT_OF_RESOURCES, "more threads than its __launch_bounds__ say");
    }
    for (unsigned i = 0; i < function->entry->parameters; i++) {
        Address address = *(Address *)launch.parameters[i];
        std::string what = function->name + ", parameter " + std::to_string(i) + " (from 0)";
        if (function->entry->pointers[i] && address && !points_into(address, what.c_str())) {
            return refuse(INVALID_VALUE, "a parameter that is an address must be one of device memory, or null");
        }
    }
    settle(stream, function->name.c_str());
    if (!computes()) {
        return SUCCESS;
    }
    std::lock_guard<std::mutex> guard(running);
    function->entry->launch(launch);
    check_memory(("found after kernel " + function->name).c_str());
    return SUCCESS;
}

} // namespace

EXPORT Result cuModuleLoadData(Module **module, const void *image) { return load(module, image); }
EXPORT Result cuModuleLoadDataEx(Module **module, const void *image, unsigned, int *, void **) { return load(module, image); }
EXPORT Result cuModuleLoadFatBinary(Module **module, const void *image) { return load(module, image); }
EXPORT Result cuModuleLoad(Module **module, const char *path) {
    std::string image;
    FILE *file = fopen(path, "rb");
    if (!file) {
        return FILE_NOT_FOUND;
    }
    char part[4096];
    for (size_t count; (count = fread(part, 1, sizeof part, file)) > 0;) {
        image.append(part, count);
    }
    fclose(file);
    return load(module, image.c_str());
}
EXPORT Result cuModuleUnload(Module *module) {
    if (module->library) {
        dlclose(module->library);
    }
    delete module;
    return SUCCESS;
}

EXPORT Result cuModuleGetFunction(Function **function, Module *module, const char *name) {
    std::lock_guard<std::mutex> guard(module->lock);
    std::unique_ptr<Function> &found = module->functions[name];
    if (!found) {
        void *entry = module->library ? dlsym(module->library, (std::string("stand_in_entry_") + name).c_str()) : nullptr;
        if (!entry) {
            module->functions.erase(name);
            say("there is no kernel `%s`%s", name,
                module->library ? " in this module" : ": its module is empty, as all that the stand-in nvcc compiles (candle's own kernels) are");
            return NOT_FOUND;
        }
        found.reset(new Function{name, (const stand_in::Entry *)entry});
    }
    *function = found.get();
    return SUCCESS;
}
EXPORT Result cuModuleGetGlobal_v2(Address *, size_t *, Module *, const char *) { return NOT_FOUND; }

EXPORT Result cuFuncGetName(const char **name, Function *function) {
    *name = function->name.c_str();
    return SUCCESS;
}
EXPORT Result cuFuncGetParamInfo(Function *function, size_t index, size_t *offset, size_t *size) {
    if (index >= function->entry->parameters) {
        return INVALID_VALUE;
    }
    *offset = index * 8;
    if (size) {
        *size = 8;
    }
    return SUCCESS;
}
// How much static shared memory a kernel has is not known here: none is said.
EXPORT Result cuFuncGetAttribute(int *value, int attribute, Function *function) {
    switch (attribute) {
    case 0: *value = (int)function->entry->most_threads; break;
    case 4: *value = 64; break;           // registers
    case 5: case 6: *value = 90; break;   // versions of PTX and of the machine code
    case 8: *value = (int)function->most_shared; break;
    default: *value = 0;
    }
    return SUCCESS;
}
EXPORT Result cuFuncSetAttribute(Function *function, int attribute, int value) {
    if (attribute == 8) {
        if (value < 0 || (size_t)value > SHARED_MOST) {
            say("%s cannot have %d bytes of dynamic shared memory: %zu at most", function->name.c_str(), value, SHARED_MOST);
            return INVALID_VALUE;
        }
        function->most_shared = (size_t)value > SHARED_DEFAULT ? (size_t)value : SHARED_DEFAULT;
    }
    return SUCCESS;
}
EXPORT Result cuFuncSetCacheConfig(Function *, int) { return SUCCESS; }
EXPORT Result cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, Function *, int threads, size_t shared) {
    int by_threads = 2048 / (threads < 1 ? 1 : threads), by_shared = (int)((228 << 10) / (shared + 1024));
    *blocks = by_threads < by_shared ? by_threads : by_shared;
    return SUCCESS;
}
EXPORT Result cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, Function *function, int threads, size_t shared, unsigned) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, shared);
}

EXPORT Result cuLaunchKernel(Function *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                             unsigned block_y, unsigned block_z, unsigned shared_bytes, Stream *stream, void **parameters, void **extra) {
    if (extra) {
        return NOT_SUPPORTED;
    }
    return launch(function, {function->name.c_str(), {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes, parameters}, stream);
}

namespace {
struct LaunchConfig { // CUlaunchConfig
    unsigned grid[3], block[3], shared_bytes;
    Stream *stream;
    void *attributes;
    unsigned attribute_count;
};
} // namespace

EXPORT Result cuLaunchKernelEx(const LaunchConfig *config, Function *function, void **parameters, void **extra) {
    return cuLaunchKernel(function, config->grid[0], config->grid[1], config->grid[2], config->block[0], config->block[1],
                          config->block[2], config->shared_bytes, config->stream, parameters, extra);
}
