// Tests the stand-in NCCL with two ranks in threads, a device each (STAND_IN_DEVICES=2): what is not ready
// until the other rank comes, what streams and the host wait for, letters both ways, parts of a communicator,
// and what an abort ends.
#include <atomic>
#include <chrono>
#include <stdint.h>
#include <stdio.h>
#include <thread>
#include <vector>

typedef uint64_t Address;
struct UniqueId {
    char internal[128];
};
extern "C" {
int cuInit(unsigned);
int cuDevicePrimaryCtxRetain(void **, int);
int cuCtxSetCurrent(void *);
int cuStreamCreate(void **, unsigned);
int cuStreamQuery(void *);
int cuStreamSynchronize(void *);
int cuStreamWaitEvent(void *, void *, unsigned);
int cuEventCreate(void **, unsigned);
int cuEventRecord(void *, void *);
int cuEventQuery(void *);
int cuMemAllocAsync(Address *, size_t, void *);
int cuMemFreeAsync(Address, void *);
int cuMemcpyHtoDAsync_v2(Address, const void *, size_t, void *);
int cuMemcpyDtoHAsync_v2(void *, Address, size_t, void *);
int ncclGetUniqueId(UniqueId *);
int ncclCommInitRank(void **, int, UniqueId, int);
int ncclCommSplit(void *, int, int, void **, void *);
int ncclCommUserRank(void *, int *);
int ncclCommCount(void *, int *);
int ncclCommDestroy(void *);
int ncclCommAbort(void *);
int ncclCommGetAsyncError(void *, int *);
int ncclAllReduce(const void *, void *, size_t, int, int, void *, void *);
int ncclSend(const void *, size_t, int, int, void *, void *);
int ncclRecv(void *, size_t, int, int, void *, void *);
int ncclGroupStart();
int ncclGroupEnd();
}
constexpr int F32 = 7, SUM = 0, READY = 0, NOT_READY = 600;

static std::atomic<int> passed{0}, failed{0}, begun{0};
static void expect(bool holds, const char *what, int rank) {
    (holds ? passed : failed) += 1;
    if (!holds) {
        printf("FAILED on rank %d: %s\n", rank, what);
    }
}

struct Rank {
    int rank;
    void *comm, *compute, *exchange;

    Address put(const std::vector<float> &values) {
        Address address = 0;
        cuMemAllocAsync(&address, values.size() * 4, compute);
        cuMemcpyHtoDAsync_v2(address, values.data(), values.size() * 4, compute);
        return address;
    }
    std::vector<float> take(Address address, size_t count) {
        std::vector<float> values(count);
        cuMemcpyDtoHAsync_v2(values.data(), address, count * 4, compute);
        return values;
    }
    void expect(bool holds, const char *what) { ::expect(holds, what, rank); }
};

static void after(void *stream, void *first) {
    void *event;
    cuEventCreate(&event, 2);
    cuEventRecord(event, first);
    cuStreamWaitEvent(stream, event, 0);
}

static void run(UniqueId id, int rank) {
    void *context;
    Rank r{rank, nullptr, nullptr, nullptr};
    cuDevicePrimaryCtxRetain(&context, rank);
    cuCtxSetCurrent(context);
    cuStreamCreate(&r.compute, 1);
    cuStreamCreate(&r.exchange, 1);
    r.expect(ncclCommInitRank(&r.comm, 2, id, rank) == 0, "a communicator");

    // Not ready until the other comes; what is to follow is not ready either, and the host waits for it.
    Address sum = r.put(std::vector<float>(100000, rank + 1));
    if (rank == 1) {
        while (begun == 0) {
            std::this_thread::yield();
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    r.expect(ncclAllReduce((void *)sum, (void *)sum, 100000, F32, SUM, r.comm, r.exchange) == 0, "a sum is begun");
    void *event;
    cuEventCreate(&event, 2);
    cuEventRecord(event, r.exchange);
    if (rank == 0) {
        r.expect(cuStreamQuery(r.exchange) == NOT_READY && cuEventQuery(event) == NOT_READY, "nothing is done alone");
        r.expect(cuStreamQuery(r.compute) == READY, "a stream that does not wait is ready");
    }
    after(r.compute, r.exchange);
    if (rank == 0) {
        r.expect(cuStreamQuery(r.compute) == NOT_READY, "a stream that waits is not");
        begun = 1;
    }
    std::vector<float> all = r.take(sum, 100000);
    r.expect(all[0] == 3 && all[99999] == 3, "a sum");
    r.expect(cuStreamQuery(r.exchange) == READY && cuEventQuery(event) == READY, "all is done");
    // Memory goes back in the order of its stream, though that waits.
    ncclAllReduce((void *)sum, (void *)sum, 100000, F32, SUM, r.comm, r.exchange);
    after(r.compute, r.exchange);
    cuMemFreeAsync(sum, r.compute);
    cuStreamSynchronize(r.compute);

    // Letters of more than one piece cross.
    std::vector<float> own(50000, 10.0f + rank);
    Address out = r.put(own), in = r.put(std::vector<float>(50000, 0));
    after(r.exchange, r.compute);
    ncclGroupStart();
    ncclSend((void *)out, 50000, F32, 1 - rank, r.comm, r.exchange);
    ncclRecv((void *)in, 50000, F32, 1 - rank, r.comm, r.exchange);
    r.expect(ncclGroupEnd() == 0, "letters are begun");
    cuStreamSynchronize(r.exchange);
    r.expect(r.take(in, 50000) == std::vector<float>(50000, 11.0f - rank), "letters");

    // Parts: both in another order, and each alone.
    void *part;
    int new_rank = -1, count = -1;
    r.expect(ncclCommSplit(r.comm, 0, -rank, &part, nullptr) == 0, "a part");
    ncclCommUserRank(part, &new_rank), ncclCommCount(part, &count);
    r.expect(new_rank == 1 - rank && count == 2, "keys order a part");
    ncclCommDestroy(part);
    r.expect(ncclCommSplit(r.comm, rank, 0, &part, nullptr) == 0, "a part of one");
    ncclCommCount(part, &count);
    r.expect(count == 1, "colours part");
    r.expect(ncclAllReduce((void *)in, (void *)in, 50000, F32, SUM, part, r.exchange) == 0, "a sum of one");
    cuStreamSynchronize(r.exchange);
    r.expect(r.take(in, 1)[0] == 11.0f - rank, "what one gives is its sum");
    ncclCommDestroy(part);

    // What only one begins ends with an abort.
    if (rank == 0) {
        ncclAllReduce((void *)in, (void *)in, 50000, F32, SUM, r.comm, r.exchange);
        r.expect(cuStreamQuery(r.exchange) == NOT_READY, "nothing ends alone");
    }
    ncclCommAbort(r.comm);
    cuStreamSynchronize(r.exchange);
    r.expect(cuStreamQuery(r.exchange) == READY, "an abort ends what is under way");
}

int main() {
    UniqueId id;
    if (cuInit(0) || ncclGetUniqueId(&id)) {
        return 2;
    }
    std::thread other(run, id, 1);
    run(id, 0);
    other.join();
    printf("collectives: %d passed, %d failed\n", passed.load(), failed.load());
    return failed > 0;
}
