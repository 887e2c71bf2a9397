// What the parts of the stand-in driver (libcuda.so.1) share. A device is memory of the host, and what is asked
// of a stream is done before the call returns. Other libraries may begin work that ends later (`begin_work`): what is
// asked of the stream after it waits for it, the host with it.
#pragma once
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <string>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

// The driver's numbers, as cuda.h has them.
typedef int Result;
enum : Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    FILE_NOT_FOUND = 301,
    OPERATING_SYSTEM = 304,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    LAUNCH_OUT_OF_RESOURCES = 701,
    NOT_SUPPORTED = 801,
};
typedef uint64_t Address;

namespace driver {

constexpr size_t MOST_DEVICES = 16, SHARED_DEFAULT = 48 << 10, SHARED_MOST = 227 << 10;

// A pool of memory that grows in steps and keeps what is freed up to its threshold.
struct Pool {
    size_t used = 0, used_high = 0, reserved = 0, reserved_high = 0, threshold = 0;
};

// Also its primary context, and its default pool.
struct Device {
    int ordinal = 0;
    size_t total = 0;
    size_t plain = 0; // bytes that are not the pool's
    Pool pool;
};

// Work of a stream that ends later than the call that began it.
struct Work {
    std::function<void()> run;
    std::vector<std::shared_ptr<Work>> after; // what must be done before
    bool done = false;
    double ended = 0;
};
typedef std::vector<std::shared_ptr<Work>> Works;

struct Stream {
    Device *device;
    unsigned flags;
    int priority;
    Works open; // what comes next on this stream comes after these
};

struct Event {
    Device *device;
    double time = 0;
    bool recorded = false;
    Works after; // of the stream, when it was recorded
};

// All of them; the first `device_count()` are there.
extern Device devices[MOST_DEVICES];
int device_count();

// Of the calling thread; null where none was chosen.
extern thread_local Device *current;

// The device of a stream, of the thread where it is one of the default streams. Null if the stream is not alive.
Device *device_of(Stream *stream);

// Begins work on a stream, which runs in a thread of its own after what the stream was asked before.
Result begin_work(Stream *stream, std::function<void()> run);

// Whether anything is computed and remembered: see STAND_IN_IDLE.
bool computes();

// Waits until a stream, or all of a device, has nothing open. Ends the process when that takes too long.
void settle(Stream *stream, const char *what);
void settle(Device *device, const char *what);

// Whether nothing is open on a stream.
bool idle(Stream *stream);

Result allocate(Address *address, size_t bytes, Device *device, bool from_pool);
Result release(Address address);

// Whether the bytes are within one living allocation; says so on stderr where they are not.
bool holds(Address address, size_t bytes, const char *what);

// Whether an address is within, or at the end of, one: an empty part may begin where its whole ends.
bool points_into(Address address, const char *what);

// Ends the process when something was written outside an allocation, or to one that was freed.
void check_memory(const char *after);

// Memory that a pool keeps beyond its threshold goes back at a synchronisation.
void trim(Device *device);

double now();

__attribute__((format(printf, 1, 2))) void say(const char *format, ...);

} // namespace driver
