// The stand-in driver's memory: allocations between red zones, filled with 0xFF (NaN) when they begin and
// when they are freed; pools that count.
#include "driver.h"
#include <stdarg.h>

namespace driver {
namespace {

constexpr size_t ALIGNMENT = 256, STEP = 2 << 20, QUARANTINE = 64 << 20;
// NaN in all types, so that what is read there shows too.
constexpr unsigned char POISON = 0xff;

struct Allocation {
    size_t bytes;  // as asked for
    size_t charged; // in whole units
    Device *device;
    bool from_pool;
    size_t zone;          // bytes of each red zone
    unsigned char *begin; // of the memory of the host, a red zone before the address
};

// Never destroyed: work may still run when the process ends.
std::mutex &lock = *new std::mutex;
std::map<Address, Allocation> &living = *new std::map<Address, Allocation>;
// Freed, and kept a while to see that nobody writes there; the oldest first.
std::vector<Allocation> &freed = *new std::vector<Allocation>;
size_t freed_bytes = 0;

size_t up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

bool all(const unsigned char *bytes, size_t count, unsigned char value) {
    return count == 0 || (bytes[0] == value && memcmp(bytes, bytes + 1, count - 1) == 0);
}

[[noreturn]] void damaged(const Allocation &allocation, const char *what, const char *after) {
    size_t zone = allocation.zone, size = zone + allocation.charged + zone;
    long at = 0;
    for (size_t i = 0; i < size; i++) {
        bool inside = i >= zone && i < zone + allocation.bytes;
        if (inside == !strcmp(what, "freed") && allocation.begin[i] != POISON) {
            at = (long)i - (long)zone;
            break;
        }
    }
    say("%s: wrote to offset %ld of an allocation of %zu bytes%s", after, at, allocation.bytes,
        !strcmp(what, "freed") ? " that was freed before" : "");
    abort();
}

void check_zones(const Allocation &allocation, const char *after) {
    const unsigned char *inside = allocation.begin + allocation.zone;
    if (!all(allocation.begin, allocation.zone, POISON) ||
        !all(inside + allocation.bytes, allocation.charged - allocation.bytes + allocation.zone, POISON)) {
        damaged(allocation, "zone", after);
    }
}

void check_freed(const Allocation &allocation, const char *after) {
    if (!all(allocation.begin + allocation.zone, allocation.bytes, POISON)) {
        damaged(allocation, "freed", after);
    }
}

} // namespace

void say(const char *format, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    fprintf(stderr, "stand-in GPU: %s\n", text);
    fflush(stderr);
}

Result allocate(Address *address, size_t bytes, Device *device, bool from_pool) {
    if (!device) {
        return INVALID_CONTEXT;
    }
    if (bytes == 0 || !address) {
        return INVALID_VALUE;
    }
    std::lock_guard<std::mutex> guard(lock);
    size_t charged = up(bytes, ALIGNMENT);
    Pool &pool = device->pool;
    size_t reserved = from_pool && pool.used + charged > pool.reserved ? up(pool.used + charged, STEP) : pool.reserved;
    size_t plain = device->plain + (from_pool ? 0 : charged);
    if (bytes > device->total || reserved + plain > device->total) {
        return OUT_OF_MEMORY;
    }
    size_t zone = up(bytes / 4, ALIGNMENT);
    zone = zone < 256 ? 256 : zone > 2048 ? 2048 : zone;
    static unsigned char *nowhere = (unsigned char *)(1ull << 44);
    void *memory = computes() ? aligned_alloc(ALIGNMENT, zone + charged + zone) : nowhere;
    if (!memory) {
        say("the host has no %zu bytes left for device memory", bytes);
        return OUT_OF_MEMORY;
    }
    Allocation allocation{bytes, charged, device, from_pool, zone, (unsigned char *)memory};
    if (computes()) {
        memset(memory, POISON, zone + charged + zone);
    } else {
        nowhere += zone + charged + zone;
    }
    if (from_pool) {
        pool.used += charged;
        pool.used_high = pool.used > pool.used_high ? pool.used : pool.used_high;
        pool.reserved = reserved;
        pool.reserved_high = reserved > pool.reserved_high ? reserved : pool.reserved_high;
    } else {
        device->plain = plain;
    }
    *address = (Address)(allocation.begin + zone);
    living.emplace(*address, allocation);
    return SUCCESS;
}

Result release(Address address) {
    std::lock_guard<std::mutex> guard(lock);
    auto found = living.find(address);
    if (found == living.end()) {
        say("an address is freed that is not allocated: %#llx", (unsigned long long)address);
        return INVALID_VALUE;
    }
    Allocation allocation = found->second;
    living.erase(found);
    (allocation.from_pool ? allocation.device->pool.used : allocation.device->plain) -= allocation.charged;
    if (!computes()) {
        return SUCCESS;
    }
    check_zones(allocation, "found as it was freed");
    memset(allocation.begin + allocation.zone, POISON, allocation.bytes);
    freed.push_back(allocation);
    freed_bytes += allocation.charged;
    size_t kept = 0;
    while (freed_bytes > QUARANTINE || freed.size() - kept > 1024) {
        check_freed(freed[kept], "found later");
        freed_bytes -= freed[kept].charged;
        free(freed[kept].begin);
        kept += 1;
    }
    freed.erase(freed.begin(), freed.begin() + (ptrdiff_t)kept);
    return SUCCESS;
}

bool holds(Address address, size_t bytes, const char *what) {
    if (bytes == 0) {
        return true;
    }
    std::lock_guard<std::mutex> guard(lock);
    auto next = living.upper_bound(address);
    if (next != living.begin()) {
        auto found = std::prev(next);
        size_t offset = address - found->first;
        if (offset <= found->second.bytes && bytes <= found->second.bytes - offset) {
            return true;
        }
        if (offset < found->second.bytes) {
            say("%s: %zu bytes from offset %zu of an allocation of %zu bytes", what, bytes, offset, found->second.bytes);
            return false;
        }
    }
    say("%s: %#llx is no address of device memory", what, (unsigned long long)address);
    return false;
}

bool points_into(Address address, const char *what) {
    {
        std::lock_guard<std::mutex> guard(lock);
        auto next = living.upper_bound(address);
        if (next != living.begin() && address - std::prev(next)->first == std::prev(next)->second.bytes) {
            return true;
        }
    }
    return holds(address, 1, what);
}

void check_memory(const char *after) {
    if (!computes()) {
        return;
    }
    std::lock_guard<std::mutex> guard(lock);
    for (const auto &entry : living) {
        check_zones(entry.second, after);
    }
}

void trim(Device *device) {
    std::lock_guard<std::mutex> guard(lock);
    Pool &pool = device->pool;
    size_t needed = up(pool.used, STEP);
    size_t kept = pool.threshold > needed ? pool.threshold : needed;
    pool.reserved = pool.reserved > kept ? kept : pool.reserved;
}

} // namespace driver

using namespace driver;

// For the other stand-in libraries: ends the process where an operand is not device memory.
EXPORT void stand_in_expect(const void *address, size_t bytes, const char *what) {
    if (!holds((Address)address, bytes, what)) {
        abort();
    }
}

EXPORT bool stand_in_computes() { return computes(); }

EXPORT void stand_in_check(const char *after) { check_memory(after); }

EXPORT Result cuMemAlloc_v2(Address *address, size_t bytes) { return allocate(address, bytes, current, false); }
EXPORT Result cuMemAllocManaged(Address *address, size_t bytes, unsigned) { return allocate(address, bytes, current, false); }
EXPORT Result cuMemFree_v2(Address address) {
    if (current) {
        settle(current, __func__);
    }
    return address ? release(address) : SUCCESS;
}

EXPORT Result cuMemAllocAsync(Address *address, size_t bytes, Stream *stream) {
    Device *device = device_of(stream);
    return device ? allocate(address, bytes, device, true) : INVALID_HANDLE;
}
EXPORT Result cuMemAllocFromPoolAsync(Address *address, size_t bytes, Device *pool, Stream *) {
    return allocate(address, bytes, pool, true);
}
EXPORT Result cuMemFreeAsync(Address address, Stream *stream) {
    if (!device_of(stream)) {
        return INVALID_HANDLE;
    }
    if (idle(stream)) {
        return release(address);
    }
    return begin_work(stream, [=] { release(address); });
}

EXPORT Result cuMemHostAlloc(void **address, size_t bytes, unsigned) {
    *address = aligned_alloc(4096, up(bytes ? bytes : 1, 4096));
    return *address ? SUCCESS : OUT_OF_MEMORY;
}
EXPORT Result cuMemAllocHost_v2(void **address, size_t bytes) { return cuMemHostAlloc(address, bytes, 0); }
EXPORT Result cuMemFreeHost(void *address) {
    free(address);
    return SUCCESS;
}
EXPORT Result cuMemHostRegister_v2(void *, size_t, unsigned) { return SUCCESS; }
EXPORT Result cuMemHostUnregister(void *) { return SUCCESS; }
EXPORT Result cuMemHostGetDevicePointer_v2(Address *address, void *host, unsigned) {
    *address = (Address)host;
    return SUCCESS;
}

EXPORT Result cuMemGetInfo_v2(size_t *free, size_t *total) {
    if (!current) {
        return INVALID_CONTEXT;
    }
    std::lock_guard<std::mutex> guard(lock);
    *total = current->total;
    *free = current->total - current->pool.reserved - current->plain;
    return SUCCESS;
}

EXPORT Result cuDeviceGetDefaultMemPool(Device **pool, int ordinal) {
    if (ordinal < 0 || ordinal >= device_count()) {
        return INVALID_DEVICE;
    }
    *pool = &devices[ordinal];
    return SUCCESS;
}
EXPORT Result cuDeviceGetMemPool(Device **pool, int ordinal) { return cuDeviceGetDefaultMemPool(pool, ordinal); }
EXPORT Result cuDeviceSetMemPool(int, Device *) { return SUCCESS; }

EXPORT Result cuMemPoolTrimTo(Device *device, size_t kept) {
    std::lock_guard<std::mutex> guard(lock);
    size_t needed = up(device->pool.used, STEP);
    kept = up(kept, STEP) > needed ? up(kept, STEP) : needed;
    device->pool.reserved = device->pool.reserved > kept ? kept : device->pool.reserved;
    return SUCCESS;
}

EXPORT Result cuMemPoolGetAttribute(Device *device, int attribute, void *value) {
    std::lock_guard<std::mutex> guard(lock);
    const Pool &pool = device->pool;
    switch (attribute) {
    case 1: case 2: case 3: *(int *)value = 1; break; // how freed memory is used again
    case 4: *(uint64_t *)value = pool.threshold; break;
    case 5: *(uint64_t *)value = pool.reserved; break;
    case 6: *(uint64_t *)value = pool.reserved_high; break;
    case 7: *(uint64_t *)value = pool.used; break;
    case 8: *(uint64_t *)value = pool.used_high; break;
    default: return INVALID_VALUE;
    }
    return SUCCESS;
}

EXPORT Result cuMemPoolSetAttribute(Device *device, int attribute, void *value) {
    std::lock_guard<std::mutex> guard(lock);
    Pool &pool = device->pool;
    uint64_t number = attribute < 4 ? 0 : *(uint64_t *)value;
    switch (attribute) {
    case 1: case 2: case 3: return SUCCESS;
    case 4: pool.threshold = number; return SUCCESS;
    // The marks can be set back, and to nothing but 0.
    case 6: pool.reserved_high = pool.reserved; return number ? INVALID_VALUE : SUCCESS;
    case 8: pool.used_high = pool.used; return number ? INVALID_VALUE : SUCCESS;
    default: return INVALID_VALUE;
    }
}
EXPORT Result cuMemPoolSetAccess(Device *, const void *, size_t) { return SUCCESS; }

EXPORT Result cuPointerGetAttribute(void *value, int attribute, Address address) {
    std::lock_guard<std::mutex> guard(lock);
    auto next = living.upper_bound(address);
    if (next == living.begin() || address - std::prev(next)->first >= std::prev(next)->second.bytes) {
        return INVALID_VALUE;
    }
    const auto &found = *std::prev(next);
    switch (attribute) {
    case 1: *(Device **)value = found.second.device; return SUCCESS;
    case 2: *(unsigned *)value = 2; return SUCCESS; // memory of a device
    case 9: *(int *)value = found.second.device->ordinal; return SUCCESS;
    case 11: *(Address *)value = found.first; return SUCCESS;
    case 12: *(size_t *)value = found.second.bytes; return SUCCESS;
    default: return NOT_SUPPORTED;
    }
}
