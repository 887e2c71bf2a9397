// The stand-in libnccl.so.2: ranks are processes or threads of one machine, which meet in POSIX shared memory
// named by the unique id. As with the real one, a call begins work on a stream and returns; the work ends when
// all ranks have come, or when its communicator is aborted. A rank that does not come is waited for without end;
// so are ranks that call different things, with a word on stderr, where the real one gives garbage or waits.
//
// Sums are in the order of ranks; those of bf16 add in f32 and round after each addition, as a ring does.
//
// For tests:
//   STAND_IN_NCCL_VERSION     what ncclGetVersion gives; default 23003
//   STAND_IN_NCCL_DELAY       milliseconds that each collective takes longer
//   STAND_IN_NCCL_FAIL        RANK:N, the N-th collective (from 1) of that rank ends in ncclSystemError
//   STAND_IN_NCCL_ABORT=hang  ncclCommAbort does not return
#include <atomic>
#include <fcntl.h>
#include <functional>
#include <memory>
#include <mutex>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <string>
#include <sys/mman.h>
#include <thread>
#include <time.h>
#include <unistd.h>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

extern "C" void stand_in_expect(const void *address, size_t bytes, const char *what);
extern "C" int stand_in_begin(void *stream, void (*run)(void *), void *data);
extern "C" int cuCtxGetDevice(int *ordinal);

namespace {

enum Status {
    SUCCESS = 0,
    CUDA_ERROR = 1,
    SYSTEM_ERROR = 2,
    INVALID_ARGUMENT = 4,
    INVALID_USAGE = 5,
    IN_PROGRESS = 7,
};
enum Type { F32 = 7, F64 = 8, BF16 = 9 };
enum Kind : uint32_t { ALL_REDUCE = 1, REDUCE_SCATTER, ALL_GATHER, BROADCAST, REDUCE, SEND, RECV, FINALIZE, SPLIT };
const char *const KINDS[] = {"", "AllReduce", "ReduceScatter", "AllGather", "Broadcast", "Reduce", "Send", "Recv", "Finalize", "Split"};

constexpr size_t PIECE = 256 << 10, LETTER = 64 << 10;
constexpr int MOST_RANKS = 64;

struct UniqueId {
    char internal[128];
};
struct Config { // the first fields of ncclConfig_t
    size_t size;
    unsigned magic, version;
    int blocking;
};

thread_local std::string last_error;
// What asynchronous errors were about; of the last communicator that had one.
std::mutex &told_lock = *new std::mutex;
std::string &told = *new std::string;

int refuse(Status status, const std::string &why) {
    last_error = "stand-in NCCL: " + why;
    return status;
}

long number_of(const char *variable, long otherwise) {
    const char *text = getenv(variable);
    return text && *text ? strtol(text, nullptr, 10) : otherwise;
}

void sleep_for(long microseconds) {
    timespec time{microseconds / 1000000, microseconds % 1000000 * 1000};
    nanosleep(&time, nullptr);
}

size_t size_of(int type) { return type == F64 ? 8 : type == F32 ? 4 : 2; }

// What ranks share. Fresh memory is zero.
struct Seat {
    std::atomic<uint32_t> taken;
    std::atomic<int32_t> device, colour, key;
    // What it does: kind, type, root, elements.
    std::atomic<uint64_t> call[4];
};
struct Letter {
    std::atomic<uint32_t> full;
    size_t bytes;
    char content[LETTER];
};
struct Shared {
    std::atomic<uint32_t> ranks, arrived, met;
    Seat seats[MOST_RANKS];
};
size_t up(size_t bytes) { return (bytes + 4095) / 4096 * 4096; }

struct State {
    int rank = 0, ranks = 0, blocking = 1, device = 0;
    std::string name;
    Shared *shared = nullptr;
    std::atomic<int> async{SUCCESS}, running{0};
    std::atomic<bool> aborted{false};
    long collectives = 0;
    int splits = 0;
    bool first = true;

    char *piece(int of) const { return (char *)shared + up(sizeof(Shared)) + (size_t)of * PIECE; }
    Letter *letter(int from, int to) const {
        return (Letter *)((char *)shared + up(sizeof(Shared)) + (size_t)ranks * PIECE + (size_t)(from * ranks + to) * up(sizeof(Letter)));
    }
    size_t bytes() const { return up(sizeof(Shared)) + (size_t)ranks * PIECE + (size_t)ranks * (size_t)ranks * up(sizeof(Letter)); }

    // Returns when `until` holds; false when the communicator is aborted before.
    template <typename Until> bool wait(Until until) const {
        for (long looks = 0; !until(); looks++) {
            if (aborted) {
                return false;
            }
            looks < 100 ? std::this_thread::yield() : sleep_for(looks < 1000 ? 50 : 500);
        }
        return true;
    }

    // Returns when all ranks have called it.
    bool meet() const {
        uint32_t before = shared->met.load();
        if (shared->arrived.fetch_add(1) + 1 == (uint32_t)ranks) {
            shared->arrived = 0;
            shared->met.fetch_add(1);
            return true;
        }
        return wait([&] { return shared->met.load() != before; });
    }
};
} // namespace

// What a caller has.
struct ncclComm {
    std::shared_ptr<State> state;
};

namespace {

struct Call {
    std::shared_ptr<State> state;
    Kind kind;
    const char *from;
    char *to;
    size_t count;
    int type;
    int root; // or the peer
    void *stream;
};

float wide(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}
uint16_t narrow(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) {
        return (uint16_t)(bits >> 16 | 0x40);
    }
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
template <typename T> T plus(T a, T b) { return a + b; }
template <> uint16_t plus(uint16_t a, uint16_t b) { return narrow(wide(a) + wide(b)); }

template <typename T> void sum_as(const State &state, char *to, size_t bytes) {
    for (size_t i = 0; i < bytes / sizeof(T); i++) {
        T sum = ((const T *)state.piece(0))[i];
        for (int rank = 1; rank < state.ranks; rank++) {
            sum = plus(sum, ((const T *)state.piece(rank))[i]);
        }
        ((T *)to)[i] = sum;
    }
}
void sum(const State &state, int type, char *to, size_t bytes) {
    type == F64 ? sum_as<double>(state, to, bytes) : type == F32 ? sum_as<float>(state, to, bytes) : sum_as<uint16_t>(state, to, bytes);
}

// That all ranks call the same.
bool agree(const Call &call) {
    const State &state = *call.state;
    const uint64_t words[4] = {call.kind, (uint64_t)call.type, (uint64_t)call.root, call.count};
    for (int i = 0; i < 4; i++) {
        state.shared->seats[state.rank].call[i] = words[i];
    }
    if (!state.meet()) {
        return false;
    }
    for (int rank = 0; rank < state.ranks; rank++) {
        for (int i = 0; i < 4; i++) {
            if (state.shared->seats[rank].call[i] != words[i]) {
                fprintf(stderr, "stand-in NCCL: rank %d calls %s of %zu elements, rank %d something else: this does not end\n",
                        state.rank, KINDS[call.kind], call.count, rank);
                state.wait([] { return false; });
                return false;
            }
        }
    }
    return state.meet();
}

// Ranks that give put a part into their piece, then all take what they want.
template <typename Part, typename Take> bool in_pieces(const State &state, size_t bytes, bool gives, Part from, Take take) {
    for (size_t start = 0; start < bytes; start += PIECE) {
        size_t size = bytes - start < PIECE ? bytes - start : PIECE;
        if (gives) {
            memcpy(state.piece(state.rank), from + start, size);
        }
        if (!state.meet()) {
            return false;
        }
        take(start, size);
        if (!state.meet()) {
            return false;
        }
    }
    return true;
}

void collective(const Call &call) {
    const State &state = *call.state;
    size_t bytes = call.count * size_of(call.type);
    bool is_root = state.rank == call.root;
    if (!agree(call)) {
        return;
    }
    switch (call.kind) {
    case ALL_REDUCE:
    case REDUCE:
        in_pieces(state, bytes, true, call.from, [&](size_t start, size_t size) {
            if (call.kind == ALL_REDUCE || is_root) {
                sum(state, call.type, call.to + start, size);
            }
        });
        break;
    case REDUCE_SCATTER:
        for (int owner = 0; owner < state.ranks; owner++) {
            bool on = in_pieces(state, bytes, true, call.from + (size_t)owner * bytes, [&](size_t start, size_t size) {
                if (owner == state.rank) {
                    sum(state, call.type, call.to + start, size);
                }
            });
            if (!on) {
                return;
            }
        }
        break;
    case BROADCAST:
        in_pieces(state, bytes, is_root, call.from, [&](size_t start, size_t size) {
            memcpy(call.to + start, state.piece(call.root), size);
        });
        break;
    case ALL_GATHER:
        in_pieces(state, bytes, true, call.from, [&](size_t start, size_t size) {
            for (int rank = 0; rank < state.ranks; rank++) {
                memcpy(call.to + (size_t)rank * bytes + start, state.piece(rank), size);
            }
        });
        break;
    default: break;
    }
}

// Sends and receives of one group go on side by side.
void letters(const std::vector<Call> &calls) {
    std::vector<size_t> done(calls.size(), 0);
    const State &state = *calls[0].state;
    state.wait([&] {
        bool all = true;
        for (size_t i = 0; i < calls.size(); i++) {
            const Call &call = calls[i];
            size_t bytes = call.count * size_of(call.type);
            if (done[i] == bytes) {
                continue;
            }
            bool sends = call.kind == SEND;
            Letter *letter = sends ? state.letter(state.rank, call.root) : state.letter(call.root, state.rank);
            if (letter->full == (uint32_t)!sends) {
                size_t left = bytes - done[i];
                size_t size = sends ? (left < LETTER ? left : LETTER) : letter->bytes;
                size = size > left ? left : size;
                sends ? memcpy(letter->content, call.from + done[i], size) : memcpy(call.to + done[i], letter->content, size);
                letter->bytes = size;
                letter->full = sends;
                done[i] += size;
            }
            all = all && done[i] == bytes;
        }
        return all;
    });
}

// The calls of one group on one stream.
struct Group {
    std::vector<Call> calls;
};

void run(void *data) {
    std::unique_ptr<Group> group((Group *)data);
    std::shared_ptr<State> state = group->calls[0].state;
    if (state->async == IN_PROGRESS) {
        sleep_for(2000); // connecting
        int busy = IN_PROGRESS;
        state->async.compare_exchange_strong(busy, SUCCESS);
    }
    sleep_for(number_of("STAND_IN_NCCL_DELAY", 0) * 1000);
    std::vector<Call> sent;
    int failing_rank = -1;
    long failing = 0;
    if (const char *fail = getenv("STAND_IN_NCCL_FAIL")) {
        sscanf(fail, "%d:%ld", &failing_rank, &failing);
    }
    for (const Call &call : group->calls) {
        if (call.kind == SEND || call.kind == RECV) {
            sent.push_back(call);
            continue;
        }
        state->collectives += 1;
        if (state->rank == failing_rank && state->collectives == failing) {
            {
                std::lock_guard<std::mutex> guard(told_lock);
                told = "stand-in NCCL: collective " + std::to_string(failing) + " was to fail";
            }
            state->async = SYSTEM_ERROR;
            state->wait([] { return false; });
        }
        if (state->aborted) {
            break;
        }
        collective(call);
    }
    if (!sent.empty()) {
        letters(sent);
    }
    state->running -= 1;
}

thread_local int depth = 0;
thread_local std::vector<Call> gathered;

int begin_all() {
    std::vector<Call> calls;
    calls.swap(gathered);
    // Of each communicator and stream, in the order of calls.
    while (!calls.empty()) {
        auto group = std::make_unique<Group>();
        std::vector<Call> others;
        std::shared_ptr<State> state = calls[0].state;
        void *stream = calls[0].stream;
        for (Call &call : calls) {
            (call.state == state && call.stream == stream ? group->calls : others).push_back(call);
        }
        calls.swap(others);
        state->running += 1;
        // The first time, as the real one may, it says that it is still at it.
        bool first = state->first && !state->blocking;
        state->first = false;
        if (first) {
            state->async = IN_PROGRESS;
        }
        if (stand_in_begin(stream, run, group.release())) {
            state->running -= 1;
            return refuse(CUDA_ERROR, "the stream is none");
        }
        if (first && calls.empty()) {
            return IN_PROGRESS;
        }
    }
    return SUCCESS;
}

int call(Call call, ncclComm *comm, size_t from_bytes, size_t to_bytes) {
    if (!comm) {
        return refuse(INVALID_ARGUMENT, "comm is null");
    }
    call.state = comm->state;
    const char *name = KINDS[call.kind];
    if (call.state->async == IN_PROGRESS) {
        return refuse(INVALID_USAGE, std::string(name) + ": the call before is still in progress");
    }
    if (call.type != F32 && call.type != F64 && call.type != BF16) {
        return refuse(INVALID_ARGUMENT, std::string(name) + ": of f32, f64 and bf16 only");
    }
    if (call.root < 0 || call.root >= call.state->ranks) {
        return refuse(INVALID_ARGUMENT, std::string(name) + ": there is no rank " + std::to_string(call.root));
    }
    if (call.from) {
        stand_in_expect(call.from, from_bytes, "NCCL: what it reads");
    }
    if (call.to) {
        stand_in_expect(call.to, to_bytes, "NCCL: what it writes");
    }
    gathered.push_back(call);
    return depth ? SUCCESS : begin_all();
}

// Takes a place among the ranks, and waits for all others.
int join(State &state) {
    if (state.ranks < 1 || state.ranks > MOST_RANKS || state.rank < 0 || state.rank >= state.ranks) {
        return refuse(INVALID_ARGUMENT, "rank " + std::to_string(state.rank) + " of " + std::to_string(state.ranks));
    }
    int file = shm_open(state.name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0 || ftruncate(file, (off_t)state.bytes())) {
        return refuse(SYSTEM_ERROR, "no shared memory " + state.name);
    }
    void *memory = mmap(nullptr, state.bytes(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
    close(file);
    if (memory == MAP_FAILED) {
        return refuse(SYSTEM_ERROR, "no room for " + std::to_string(state.bytes()) + " bytes of shared memory");
    }
    state.shared = (Shared *)memory;
    uint32_t none = 0;
    if (!state.shared->ranks.compare_exchange_strong(none, (uint32_t)state.ranks) && none != (uint32_t)state.ranks) {
        return refuse(INVALID_ARGUMENT, "another rank says that there are " + std::to_string(none));
    }
    Seat &seat = state.shared->seats[state.rank];
    if (seat.taken.exchange(1)) {
        return refuse(INVALID_USAGE, "rank " + std::to_string(state.rank) + " is there twice");
    }
    seat.device = state.device;
    if (!state.meet()) {
        return refuse(SYSTEM_ERROR, "aborted");
    }
    shm_unlink(state.name.c_str());
    const char *sharing = getenv("NCCL_MULTI_RANK_GPU_ENABLE");
    for (int rank = 0; rank < state.ranks && !(sharing && *sharing == '1'); rank++) {
        if (rank != state.rank && state.shared->seats[rank].device == seat.device) {
            return refuse(INVALID_USAGE, "Duplicate GPU detected : rank " + std::to_string(state.rank) + " and rank " +
                                             std::to_string(rank) + " both on CUDA device " + std::to_string(seat.device) + "000");
        }
    }
    return SUCCESS;
}

// Runs something that waits: in a thread of its own, unless the communicator blocks.
template <typename Work> int go_on(std::shared_ptr<State> state, Work work) {
    if (state->blocking) {
        return work(*state);
    }
    state->async = IN_PROGRESS;
    std::thread([state, work] {
        int status = work(*state);
        {
            std::lock_guard<std::mutex> guard(told_lock);
            told = last_error;
        }
        state->async = status;
    }).detach();
    return IN_PROGRESS;
}

int make(ncclComm **comm, std::shared_ptr<State> state, const Config *config) {
    if (config && config->magic != 0xcafebeef) {
        return refuse(INVALID_ARGUMENT, "the config is none");
    }
    if (cuCtxGetDevice(&state->device)) {
        return refuse(CUDA_ERROR, "no CUDA device is current in this thread");
    }
    state->blocking = config ? config->blocking != 0 : 1;
    *comm = new ncclComm{state};
    return go_on(state, join);
}

} // namespace

EXPORT int ncclGetVersion(int *version) {
    *version = (int)number_of("STAND_IN_NCCL_VERSION", 23003);
    return SUCCESS;
}

EXPORT int ncclGetUniqueId(UniqueId *id) {
    memset(id, 0, sizeof *id);
    uint64_t random = 0;
    FILE *source = fopen("/dev/urandom", "rb");
    if (!source || fread(&random, sizeof random, 1, source) != 1) {
        random = (uint64_t)time(nullptr);
    }
    if (source) {
        fclose(source);
    }
    snprintf(id->internal, sizeof id->internal, "/stand-in-nccl-%d-%016llx", (int)getpid(), (unsigned long long)random);
    return SUCCESS;
}

EXPORT int ncclCommInitRankConfig(ncclComm **comm, int ranks, UniqueId id, int rank, const Config *config) {
    auto state = std::make_shared<State>();
    state->rank = rank, state->ranks = ranks;
    state->name = std::string(id.internal, strnlen(id.internal, sizeof id.internal));
    if (state->name.empty()) {
        return refuse(INVALID_ARGUMENT, "the id is none");
    }
    return make(comm, state, config);
}
EXPORT int ncclCommInitRank(ncclComm **comm, int ranks, UniqueId id, int rank) {
    return ncclCommInitRankConfig(comm, ranks, id, rank, nullptr);
}

EXPORT int ncclCommSplit(ncclComm *comm, int colour, int key, ncclComm **made, const Config *config) {
    State &state = *comm->state;
    Seat &seat = state.shared->seats[state.rank];
    seat.colour = colour, seat.key = key;
    // Waits for the other ranks, whatever the config says.
    if (!agree({comm->state, SPLIT, nullptr, nullptr, 0, 0, 0, nullptr})) {
        return refuse(SYSTEM_ERROR, "aborted");
    }
    auto part = std::make_shared<State>();
    for (int rank = 0; rank < state.ranks; rank++) {
        Seat &other = state.shared->seats[rank];
        bool before = other.key < key || (other.key == key && rank < state.rank);
        part->ranks += other.colour == colour;
        part->rank += other.colour == colour && before;
    }
    part->name = state.name + "-" + std::to_string(++state.splits) + "-" + std::to_string(colour);
    if (!state.meet()) {
        return refuse(SYSTEM_ERROR, "aborted");
    }
    *made = nullptr;
    return colour < 0 ? (int)SUCCESS : make(made, part, config);
}

EXPORT int ncclCommGetAsyncError(ncclComm *comm, int *status) {
    *status = comm->state->async;
    return SUCCESS;
}

EXPORT int ncclCommFinalize(ncclComm *comm) {
    return go_on(comm->state, [](State &state) {
        bool ended = state.wait([&] { return state.running == 0; });
        Call call{std::shared_ptr<State>(&state, [](State *) {}), FINALIZE, nullptr, nullptr, 0, 0, 0, nullptr};
        return ended && agree(call) ? (int)SUCCESS : refuse(SYSTEM_ERROR, "aborted");
    });
}

EXPORT int ncclCommDestroy(ncclComm *comm) {
    comm->state->wait([&] { return comm->state->running == 0; });
    delete comm;
    return SUCCESS;
}

EXPORT int ncclCommAbort(ncclComm *comm) {
    const char *how = getenv("STAND_IN_NCCL_ABORT");
    while (how && !strcmp(how, "hang")) {
        sleep_for(1000000);
    }
    comm->state->aborted = true;
    while (comm->state->running > 0) {
        sleep_for(100);
    }
    shm_unlink(comm->state->name.c_str()); // where not all ranks came
    delete comm;
    return SUCCESS;
}

EXPORT int ncclCommCount(ncclComm *comm, int *count) {
    *count = comm->state->ranks;
    return SUCCESS;
}
EXPORT int ncclCommUserRank(ncclComm *comm, int *rank) {
    *rank = comm->state->rank;
    return SUCCESS;
}
EXPORT int ncclCommCuDevice(ncclComm *comm, int *device) {
    *device = comm->state->device;
    return SUCCESS;
}

EXPORT int ncclCommRegister(ncclComm *, void *address, size_t bytes, void **handle) {
    stand_in_expect(address, bytes, "NCCL: what is registered");
    *handle = malloc(1);
    return SUCCESS;
}
EXPORT int ncclCommDeregister(ncclComm *, void *handle) {
    free(handle);
    return SUCCESS;
}

EXPORT int ncclAllReduce(const char *from, char *to, size_t count, int type, int operation, ncclComm *comm, void *stream) {
    if (operation) {
        return refuse(INVALID_ARGUMENT, "AllReduce: sums only");
    }
    size_t bytes = count * size_of(type);
    return call({nullptr, ALL_REDUCE, from, to, count, type, 0, stream}, comm, bytes, bytes);
}
EXPORT int ncclReduceScatter(const char *from, char *to, size_t count, int type, int operation, ncclComm *comm, void *stream) {
    if (operation) {
        return refuse(INVALID_ARGUMENT, "ReduceScatter: sums only");
    }
    size_t bytes = count * size_of(type), ranks = comm ? (size_t)comm->state->ranks : 0;
    return call({nullptr, REDUCE_SCATTER, from, to, count, type, 0, stream}, comm, bytes * ranks, bytes);
}
EXPORT int ncclAllGather(const char *from, char *to, size_t count, int type, ncclComm *comm, void *stream) {
    size_t bytes = count * size_of(type), ranks = comm ? (size_t)comm->state->ranks : 0;
    return call({nullptr, ALL_GATHER, from, to, count, type, 0, stream}, comm, bytes, bytes * ranks);
}
EXPORT int ncclBroadcast(const char *from, char *to, size_t count, int type, int root, ncclComm *comm, void *stream) {
    size_t bytes = count * size_of(type);
    return call({nullptr, BROADCAST, from, to, count, type, root, stream}, comm, bytes, bytes);
}
EXPORT int ncclReduce(const char *from, char *to, size_t count, int type, int operation, int root, ncclComm *comm, void *stream) {
    if (operation) {
        return refuse(INVALID_ARGUMENT, "Reduce: sums only");
    }
    size_t bytes = count * size_of(type);
    return call({nullptr, REDUCE, from, to, count, type, root, stream}, comm, bytes, bytes);
}
EXPORT int ncclSend(const char *from, size_t count, int type, int peer, ncclComm *comm, void *stream) {
    return call({nullptr, SEND, from, nullptr, count, type, peer, stream}, comm, count * size_of(type), 0);
}
EXPORT int ncclRecv(char *to, size_t count, int type, int peer, ncclComm *comm, void *stream) {
    return call({nullptr, RECV, nullptr, to, count, type, peer, stream}, comm, 0, count * size_of(type));
}

EXPORT int ncclGroupStart() {
    depth += 1;
    return SUCCESS;
}
EXPORT int ncclGroupEnd() {
    if (depth == 0) {
        return refuse(INVALID_USAGE, "a group ends that was not begun");
    }
    depth -= 1;
    return depth ? SUCCESS : begin_all();
}

EXPORT const char *ncclGetErrorString(int status) {
    switch (status) {
    case SUCCESS: return "no error";
    case CUDA_ERROR: return "unhandled cuda error (run with NCCL_DEBUG=INFO for details)";
    case SYSTEM_ERROR: return "unhandled system error (run with NCCL_DEBUG=INFO for details)";
    case INVALID_ARGUMENT: return "invalid argument (run with NCCL_DEBUG=WARN for details)";
    case INVALID_USAGE: return "invalid usage (run with NCCL_DEBUG=WARN for details)";
    case IN_PROGRESS: return "NCCL operation in progress";
    default: return "unknown result code";
    }
}
EXPORT const char *ncclGetLastError(ncclComm *) {
    if (last_error.empty()) {
        std::lock_guard<std::mutex> guard(told_lock);
        last_error = told;
    }
    return last_error.c_str();
}
