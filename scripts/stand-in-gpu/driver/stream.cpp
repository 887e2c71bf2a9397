// The stand-in driver's streams, events and copies: what is asked of a stream is done at once.
#include "driver.h"
#include <set>
#include <time.h>

namespace driver {
namespace {
std::mutex lock;
std::set<Stream *> streams;
std::set<Event *> events;

bool alive(Event *event) {
    std::lock_guard<std::mutex> guard(lock);
    return events.count(event) > 0;
}

Result copy(Address to, Address from, size_t bytes, bool to_device, bool from_device, const char *what) {
    if ((to_device && !holds(to, bytes, what)) || (from_device && !holds(from, bytes, what))) {
        return INVALID_VALUE;
    }
    memmove((void *)to, (const void *)from, bytes);
    return SUCCESS;
}

template <typename T> Result set(Address to, T value, size_t count, const char *what) {
    if (to % sizeof(T) || !holds(to, count * sizeof(T), what)) {
        return INVALID_VALUE;
    }
    for (size_t i = 0; i < count; i++) {
        ((T *)to)[i] = value;
    }
    return SUCCESS;
}
} // namespace

Device *device_of(Stream *stream) {
    if ((uintptr_t)stream <= 2) { // the default streams
        return current;
    }
    std::lock_guard<std::mutex> guard(lock);
    return streams.count(stream) ? stream->device : nullptr;
}

double now() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

} // namespace driver

using namespace driver;
#define STREAM(stream) \
    if (!device_of(stream)) return INVALID_HANDLE

EXPORT Result cuStreamCreateWithPriority(Stream **stream, unsigned flags, int priority) {
    if (!current) {
        return INVALID_CONTEXT;
    }
    *stream = new Stream{current, flags, priority};
    std::lock_guard<std::mutex> guard(lock);
    streams.insert(*stream);
    return SUCCESS;
}
EXPORT Result cuStreamCreate(Stream **stream, unsigned flags) { return cuStreamCreateWithPriority(stream, flags, 0); }
EXPORT Result cuStreamDestroy_v2(Stream *stream) {
    std::lock_guard<std::mutex> guard(lock);
    if (!streams.erase(stream)) {
        return INVALID_HANDLE;
    }
    delete stream;
    return SUCCESS;
}
EXPORT Result cuStreamSynchronize(Stream *stream) {
    STREAM(stream);
    check_memory("found at a synchronisation");
    trim(device_of(stream));
    return SUCCESS;
}
EXPORT Result cuStreamQuery(Stream *stream) {
    STREAM(stream);
    return SUCCESS;
}
EXPORT Result cuStreamWaitEvent(Stream *stream, Event *event, unsigned) {
    STREAM(stream);
    return alive(event) ? SUCCESS : INVALID_HANDLE;
}
EXPORT Result cuStreamIsCapturing(Stream *stream, int *status) {
    STREAM(stream);
    *status = 0;
    return SUCCESS;
}
EXPORT Result cuStreamGetCtx(Stream *stream, Device **context) {
    STREAM(stream);
    *context = device_of(stream);
    return SUCCESS;
}
EXPORT Result cuStreamGetPriority(Stream *stream, int *priority) {
    *priority = (uintptr_t)stream <= 2 ? 0 : stream->priority;
    return SUCCESS;
}
EXPORT Result cuStreamGetFlags(Stream *stream, unsigned *flags) {
    *flags = (uintptr_t)stream <= 2 ? 0 : stream->flags;
    return SUCCESS;
}
EXPORT Result cuStreamAttachMemAsync(Stream *, Address, size_t, unsigned) { return SUCCESS; }
EXPORT Result cuLaunchHostFunc(Stream *stream, void (*function)(void *), void *data) {
    STREAM(stream);
    function(data);
    return SUCCESS;
}

EXPORT Result cuEventCreate(Event **event, unsigned) {
    if (!current) {
        return INVALID_CONTEXT;
    }
    *event = new Event{current};
    std::lock_guard<std::mutex> guard(lock);
    events.insert(*event);
    return SUCCESS;
}
EXPORT Result cuEventDestroy_v2(Event *event) {
    std::lock_guard<std::mutex> guard(lock);
    if (!events.erase(event)) {
        return INVALID_HANDLE;
    }
    delete event;
    return SUCCESS;
}
EXPORT Result cuEventRecord(Event *event, Stream *stream) {
    STREAM(stream);
    if (!alive(event)) {
        return INVALID_HANDLE;
    }
    event->time = now();
    event->recorded = true;
    return SUCCESS;
}
EXPORT Result cuEventRecordWithFlags(Event *event, Stream *stream, unsigned) { return cuEventRecord(event, stream); }
EXPORT Result cuEventQuery(Event *event) { return alive(event) ? SUCCESS : INVALID_HANDLE; }
EXPORT Result cuEventSynchronize(Event *event) { return alive(event) ? SUCCESS : INVALID_HANDLE; }
EXPORT Result cuEventElapsedTime_v2(float *milliseconds, Event *begin, Event *end) {
    if (!alive(begin) || !alive(end) || !begin->recorded || !end->recorded) {
        return INVALID_HANDLE;
    }
    *milliseconds = (float)((end->time - begin->time) * 1e3);
    return SUCCESS;
}
EXPORT Result cuEventElapsedTime(float *milliseconds, Event *begin, Event *end) {
    return cuEventElapsedTime_v2(milliseconds, begin, end);
}

EXPORT Result cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, Stream *stream) {
    STREAM(stream);
    return copy(to, (Address)from, bytes, true, false, "a copy to the device");
}
EXPORT Result cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, Stream *stream) {
    STREAM(stream);
    return copy((Address)to, from, bytes, false, true, "a copy from the device");
}
EXPORT Result cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, Stream *stream) {
    STREAM(stream);
    return copy(to, from, bytes, true, true, "a copy on the device");
}
EXPORT Result cuMemcpyAsync(Address to, Address from, size_t bytes, Stream *stream) {
    STREAM(stream);
    return copy(to, from, bytes, false, false, "a copy");
}
EXPORT Result cuMemcpyPeerAsync(Address to, Device *, Address from, Device *, size_t bytes, Stream *stream) {
    return cuMemcpyDtoDAsync_v2(to, from, bytes, stream);
}
EXPORT Result cuMemcpyHtoD_v2(Address to, const void *from, size_t bytes) {
    return copy(to, (Address)from, bytes, true, false, "a copy to the device");
}
EXPORT Result cuMemcpyDtoH_v2(void *to, Address from, size_t bytes) {
    return copy((Address)to, from, bytes, false, true, "a copy from the device");
}
EXPORT Result cuMemcpyDtoD_v2(Address to, Address from, size_t bytes) {
    return copy(to, from, bytes, true, true, "a copy on the device");
}
EXPORT Result cuMemcpy(Address to, Address from, size_t bytes) { return copy(to, from, bytes, false, false, "a copy"); }

EXPORT Result cuMemsetD8Async(Address to, unsigned char value, size_t count, Stream *stream) {
    STREAM(stream);
    return set(to, value, count, "a fill");
}
EXPORT Result cuMemsetD16Async(Address to, unsigned short value, size_t count, Stream *stream) {
    STREAM(stream);
    return set(to, value, count, "a fill");
}
EXPORT Result cuMemsetD32Async(Address to, unsigned value, size_t count, Stream *stream) {
    STREAM(stream);
    return set(to, value, count, "a fill");
}
EXPORT Result cuMemsetD8_v2(Address to, unsigned char value, size_t count) { return set(to, value, count, "a fill"); }
EXPORT Result cuMemsetD16_v2(Address to, unsigned short value, size_t count) { return set(to, value, count, "a fill"); }
EXPORT Result cuMemsetD32_v2(Address to, unsigned value, size_t count) { return set(to, value, count, "a fill"); }
EXPORT Result cuMemPrefetchAsync_v2(Address, size_t, uint64_t, unsigned, Stream *) { return SUCCESS; }
EXPORT Result cuProfilerStart() { return SUCCESS; }
EXPORT Result cuProfilerStop() { return SUCCESS; }
