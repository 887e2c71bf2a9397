// The stand-in driver's devices and contexts, and the names of its errors. A device says of itself what an
// H100 would, but for its name and the memory that STAND_IN_MEMORY gives it.
#include "driver.h"

namespace driver {

Device devices[MOST_DEVICES];
thread_local Device *current = nullptr;

namespace {
int count = 0;
std::once_flag begun;

uint64_t number_from(const char *variable, uint64_t otherwise) {
    const char *text = getenv(variable);
    if (!text || !*text) {
        return otherwise;
    }
    char *end;
    uint64_t number = strtoull(text, &end, 10);
    if (*end) {
        say("%s is `%s`: it takes a number", variable, text);
        abort();
    }
    return number;
}

void begin() {
    uint64_t memory = number_from("STAND_IN_MEMORY", 80ull << 30), wanted = number_from("STAND_IN_DEVICES", 1);
    count = wanted > MOST_DEVICES ? (int)MOST_DEVICES : (int)wanted;
    for (int i = 0; i < count; i++) {
        devices[i].ordinal = i;
        devices[i].total = memory;
    }
}

bool exists(int ordinal) { return ordinal >= 0 && ordinal < device_count(); }
} // namespace

bool computes() {
    static const bool computing = number_from("STAND_IN_IDLE", 0) == 0;
    return computing;
}

int device_count() {
    std::call_once(begun, begin);
    return count;
}

} // namespace driver

using namespace driver;

EXPORT Result cuInit(unsigned) { return device_count() ? SUCCESS : 100; }
EXPORT Result cuDriverGetVersion(int *version) {
    *version = 13000;
    return SUCCESS;
}
EXPORT Result cuDeviceGetCount(int *number) {
    *number = device_count();
    return SUCCESS;
}
EXPORT Result cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return exists(ordinal) ? SUCCESS : INVALID_DEVICE;
}
EXPORT Result cuDeviceGetName(char *name, int length, int ordinal) {
    snprintf(name, (size_t)length, "stand-in GPU (no hardware)");
    return exists(ordinal) ? SUCCESS : INVALID_DEVICE;
}
EXPORT Result cuDeviceGetUuid_v2(unsigned char *uuid, int ordinal) {
    memcpy(uuid, "stand-in GPU   ", 15);
    uuid[15] = (unsigned char)ordinal;
    return exists(ordinal) ? SUCCESS : INVALID_DEVICE;
}
EXPORT Result cuDeviceGetUuid(unsigned char *uuid, int ordinal) { return cuDeviceGetUuid_v2(uuid, ordinal); }
EXPORT Result cuDeviceGetPCIBusId(char *id, int length, int ordinal) {
    snprintf(id, (size_t)length, "0000:%02x:00.0", ordinal + 1);
    return exists(ordinal) ? SUCCESS : INVALID_DEVICE;
}
EXPORT Result cuDeviceTotalMem_v2(size_t *bytes, int ordinal) {
    if (!exists(ordinal)) {
        return INVALID_DEVICE;
    }
    *bytes = devices[ordinal].total;
    return SUCCESS;
}
EXPORT Result cuDeviceComputeCapability(int *major, int *minor, int) {
    *major = 9, *minor = 0;
    return SUCCESS;
}
EXPORT Result cuDeviceCanAccessPeer(int *can, int, int) {
    *can = 1;
    return SUCCESS;
}

EXPORT Result cuDeviceGetAttribute(int *value, int attribute, int ordinal) {
    if (!exists(ordinal)) {
        return INVALID_DEVICE;
    }
    switch (attribute) {
    case 1: case 2: case 3: *value = 1024; break;  // threads of a block, in all, in x, in y
    case 4: *value = 64; break;                    // in z
    case 5: *value = 2147483647; break;            // blocks in x
    case 6: case 7: *value = 65535; break;         // in y and z
    case 8: *value = (int)SHARED_DEFAULT; break;
    case 9: *value = 65536; break;                 // constant memory
    case 10: *value = 32; break;                   // a warp
    case 12: case 82: *value = 65536; break;       // registers of a block, of a multiprocessor
    case 13: *value = 1980000; break;              // kHz
    case 16: *value = 132; break;                  // multiprocessors
    case 33: *value = ordinal + 1; break;          // PCI bus
    case 36: *value = 2619000; break;              // kHz of the memory
    case 37: *value = 5120; break;                 // bits of its bus
    case 38: *value = 50 << 20; break;             // second-level cache
    case 39: *value = 2048; break;                 // threads of a multiprocessor
    case 40: *value = 3; break;                    // copy engines
    case 75: *value = 9; break;                    // compute capability
    case 76: *value = 0; break;
    case 81: *value = 228 << 10; break;            // shared memory of a multiprocessor
    case 97: *value = (int)SHARED_MOST; break;     // of a block that asks for it
    case 106: *value = 32; break;                  // blocks of a multiprocessor
    case 111: *value = 1024; break;                // shared memory the system takes of each block
    // Yes: overlap, mapping host memory, concurrent kernels, unified addresses, priorities, managed memory,
    // cooperative launches, pools, clusters.
    case 15: case 19: case 31: case 41: case 78: case 83: case 95: case 115: case 120: *value = 1; break;
    default: *value = 0;
    }
    return SUCCESS;
}

EXPORT Result cuDevicePrimaryCtxRetain(Device **context, int ordinal) {
    if (!exists(ordinal)) {
        return INVALID_DEVICE;
    }
    *context = &devices[ordinal];
    return SUCCESS;
}
EXPORT Result cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
EXPORT Result cuDevicePrimaryCtxSetFlags_v2(int, unsigned) { return SUCCESS; }
EXPORT Result cuDevicePrimaryCtxGetState(int, unsigned *flags, int *active) {
    *flags = 0, *active = 1;
    return SUCCESS;
}
EXPORT Result cuCtxGetCurrent(Device **context) {
    *context = current;
    return SUCCESS;
}
EXPORT Result cuCtxSetCurrent(Device *context) {
    current = context;
    return SUCCESS;
}
EXPORT Result cuCtxGetDevice(int *ordinal) {
    *ordinal = current ? current->ordinal : 0;
    return current ? SUCCESS : INVALID_CONTEXT;
}
EXPORT Result cuCtxSynchronize() {
    if (!current) {
        return INVALID_CONTEXT;
    }
    settle(current, "cuCtxSynchronize");
    check_memory("found at a synchronisation");
    trim(current);
    return SUCCESS;
}
EXPORT Result cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0, *greatest = -5;
    return SUCCESS;
}
EXPORT Result cuCtxSetFlags(unsigned) { return SUCCESS; }
EXPORT Result cuCtxGetFlags(unsigned *flags) {
    *flags = 0;
    return SUCCESS;
}
EXPORT Result cuCtxSetLimit(int, size_t) { return SUCCESS; }
EXPORT Result cuCtxGetLimit(size_t *value, int) {
    *value = 64 << 10;
    return SUCCESS;
}
EXPORT Result cuCtxSetCacheConfig(int) { return SUCCESS; }
EXPORT Result cuCtxEnablePeerAccess(Device *, unsigned) { return SUCCESS; }

namespace {
struct Named {
    Result result;
    const char *name, *text;
};
const Named ERRORS[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {FILE_NOT_FOUND, "CUDA_ERROR_FILE_NOT_FOUND", "file not found"},
    {OPERATING_SYSTEM, "CUDA_ERROR_OPERATING_SYSTEM", "OS call failed or operation not supported on this OS"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {LAUNCH_OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "the stand-in GPU has no such operation"},
};
const Named *find(Result result) {
    for (const Named &error : ERRORS) {
        if (error.result == result) {
            return &error;
        }
    }
    return nullptr;
}
} // namespace

EXPORT Result cuGetErrorName(Result result, const char **name) {
    const Named *found = find(result);
    *name = found ? found->name : "CUDA_ERROR_UNKNOWN";
    return SUCCESS;
}
EXPORT Result cuGetErrorString(Result result, const char **text) {
    const Named *found = find(result);
    *text = found ? found->text : "unknown error";
    return SUCCESS;
}
