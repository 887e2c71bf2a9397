// The stand-in driver's streams, events and copies: what is asked of a stream is done at once, unless work of
// another library is open there; then the host waits for that first.
#include "driver.h"
#include <chrono>
#include <condition_variable>
#include <set>
#include <thread>
#include <time.h>

namespace driver {
namespace {
// Never destroyed: work may still run when the process ends.
std::mutex &lock = *new std::mutex;
std::condition_variable &ended = *new std::condition_variable;
std::set<Stream *> &streams = *new std::set<Stream *>;
std::set<Event *> &events = *new std::set<Event *>;
// The default streams, which are null, 1 and 2 to a caller.
Stream &by_default = *new Stream{nullptr, 0, 0, {}};

Stream *named(Stream *stream) { return (uintptr_t)stream <= 2 ? &by_default : stream; }

// Forgets what is done. With the lock held.
Works &open(Works &works) {
    Works left;
    for (auto &work : works) {
        if (!work->done) {
            left.push_back(work);
        }
    }
    return works = left;
}

double patience() {
    const char *text = getenv("STAND_IN_PATIENCE");
    return text && *text ? atof(text) : 120;
}

// Waits for works, whose lock the caller holds through `guard`.
void wait_for(std::unique_lock<std::mutex> &guard, Works works, const char *what) {
    auto limit = std::chrono::duration<double>(patience());
    if (!ended.wait_for(guard, limit, [&] { return open(works).empty(); })) {
        say("%s: the host waited %.0f s for work of a stream that does not end: a collective whose ranks do not all come?", what, limit.count());
        abort();
    }
}

bool alive(Event *event) {
    std::lock_guard<std::mutex> guard(lock);
    return events.count(event) > 0;
}

Result copy(Address to, Address from, size_t bytes, bool to_device, bool from_device, const char *what) {
    if ((to_device && !holds(to, bytes, what)) || (from_device && !holds(from, bytes, what))) {
        return INVALID_VALUE;
    }
    if (computes()) {
        memmove((void *)to, (const void *)from, bytes);
    } else if (from_device && !to_device) {
        memset((void *)to, 0x3f, bytes); // between 0 and 1 in every type
    }
    return SUCCESS;
}

template <typename T> Result set(Address to, T value, size_t count, const char *what) {
    if (to % sizeof(T) || !holds(to, count * sizeof(T), what)) {
        return INVALID_VALUE;
    }
    for (size_t i = 0; computes() && i < count; i++) {
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

Result begin_work(Stream *stream, std::function<void()> run) {
    if (!device_of(stream)) {
        return INVALID_HANDLE;
    }
    auto work = std::make_shared<Work>();
    work->run = std::move(run);
    {
        std::lock_guard<std::mutex> guard(lock);
        Works &before = named(stream)->open;
        work->after = open(before);
        before = {work};
    }
    std::thread([work] {
        std::unique_lock<std::mutex> guard(lock);
        ended.wait(guard, [&] { return open(work->after).empty(); });
        guard.unlock();
        work->run();
        guard.lock();
        work->run = nullptr;
        work->done = true;
        work->ended = now();
        ended.notify_all();
    }).detach();
    return SUCCESS;
}

void settle(Stream *stream, const char *what) {
    std::unique_lock<std::mutex> guard(lock);
    Works &works = open(named(stream)->open);
    if (!works.empty()) {
        wait_for(guard, works, what);
    }
}

void settle(Device *device, const char *what) {
    std::unique_lock<std::mutex> guard(lock);
    Works all = open(by_default.open);
    for (Stream *stream : streams) {
        if (stream->device == device) {
            Works &works = open(stream->open);
            all.insert(all.end(), works.begin(), works.end());
        }
    }
    if (!all.empty()) {
        wait_for(guard, all, what);
    }
}

bool idle(Stream *stream) {
    std::lock_guard<std::mutex> guard(lock);
    return open(named(stream)->open).empty();
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
// For what is done at once: after all that is open.
#define SETTLED(stream) \
    STREAM(stream);     \
    settle(stream, __func__)

// For the other stand-in libraries: work that ends later, and the wait of what is done at once.
EXPORT Result stand_in_begin(Stream *stream, void (*run)(void *), void *data) {
    return begin_work(stream, [=] { run(data); });
}
EXPORT void stand_in_settle(Stream *stream, const char *what) {
    if (device_of(stream)) {
        settle(stream, what);
    }
}

EXPORT Result cuStreamCreateWithPriority(Stream **stream, unsigned flags, int priority) {
    if (!current) {
        return INVALID_CONTEXT;
    }
    *stream = new Stream{current, flags, priority, {}};
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
    SETTLED(stream);
    check_memory("found at a synchronisation");
    trim(device_of(stream));
    return SUCCESS;
}
EXPORT Result cuStreamQuery(Stream *stream) {
    STREAM(stream);
    return idle(stream) ? SUCCESS : NOT_READY;
}
EXPORT Result cuStreamWaitEvent(Stream *stream, Event *event, unsigned) {
    STREAM(stream);
    if (!alive(event)) {
        return INVALID_HANDLE;
    }
    std::lock_guard<std::mutex> guard(lock);
    Works &works = open(named(stream)->open), after = event->after; // which keep the event's time
    open(after);
    works.insert(works.end(), after.begin(), after.end());
    return SUCCESS;
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
    SETTLED(stream);
    function(data);
    return SUCCESS;
}

EXPORT Result cuEventCreate(Event **event, unsigned) {
    if (!current) {
        return INVALID_CONTEXT;
    }
    *event = new Event;
    (*event)->device = current;
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
    std::lock_guard<std::mutex> guard(lock);
    event->after = open(named(stream)->open);
    event->time = now();
    event->recorded = true;
    return SUCCESS;
}
EXPORT Result cuEventRecordWithFlags(Event *event, Stream *stream, unsigned) { return cuEventRecord(event, stream); }
EXPORT Result cuEventQuery(Event *event) {
    if (!alive(event)) {
        return INVALID_HANDLE;
    }
    std::lock_guard<std::mutex> guard(lock);
    for (auto &work : event->after) {
        if (!work->done) {
            return NOT_READY;
        }
    }
    return SUCCESS;
}
EXPORT Result cuEventSynchronize(Event *event) {
    if (!alive(event)) {
        return INVALID_HANDLE;
    }
    std::unique_lock<std::mutex> guard(lock);
    wait_for(guard, event->after, __func__);
    return SUCCESS;
}
EXPORT Result cuEventElapsedTime_v2(float *milliseconds, Event *begin, Event *end) {
    if (!alive(begin) || !alive(end) || !begin->recorded || !end->recorded) {
        return INVALID_HANDLE;
    }
    std::lock_guard<std::mutex> guard(lock);
    double times[2];
    for (Event *event : {begin, end}) {
        double &time = times[event == end] = event->time;
        for (auto &work : event->after) {
            if (!work->done) {
                return NOT_READY;
            }
            time = work->ended > time ? work->ended : time;
        }
    }
    *milliseconds = (float)((times[1] - times[0]) * 1e3);
    return SUCCESS;
}
EXPORT Result cuEventElapsedTime(float *milliseconds, Event *begin, Event *end) {
    return cuEventElapsedTime_v2(milliseconds, begin, end);
}

EXPORT Result cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, Stream *stream) {
    SETTLED(stream);
    return copy(to, (Address)from, bytes, true, false, "a copy to the device");
}
EXPORT Result cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, Stream *stream) {
    SETTLED(stream);
    return copy((Address)to, from, bytes, false, true, "a copy from the device");
}
EXPORT Result cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, Stream *stream) {
    SETTLED(stream);
    return copy(to, from, bytes, true, true, "a copy on the device");
}
EXPORT Result cuMemcpyAsync(Address to, Address from, size_t bytes, Stream *stream) {
    SETTLED(stream);
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
    SETTLED(stream);
    return set(to, value, count, "a fill");
}
EXPORT Result cuMemsetD16Async(Address to, unsigned short value, size_t count, Stream *stream) {
    SETTLED(stream);
    return set(to, value, count, "a fill");
}
EXPORT Result cuMemsetD32Async(Address to, unsigned value, size_t count, Stream *stream) {
    SETTLED(stream);
    return set(to, value, count, "a fill");
}
EXPORT Result cuMemsetD8_v2(Address to, unsigned char value, size_t count) { return set(to, value, count, "a fill"); }
EXPORT Result cuMemsetD16_v2(Address to, unsigned short value, size_t count) { return set(to, value, count, "a fill"); }
EXPORT Result cuMemsetD32_v2(Address to, unsigned value, size_t count) { return set(to, value, count, "a fill"); }
EXPORT Result cuMemPrefetchAsync_v2(Address, size_t, uint64_t, unsigned, Stream *) { return SUCCESS; }
EXPORT Result cuProfilerStart() { return SUCCESS; }
EXPORT Result cuProfilerStop() { return SUCCESS; }
