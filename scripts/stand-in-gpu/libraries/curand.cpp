// The stand-in libcurand.so.10: generators of random numbers, all of one kind; their numbers are not those
// of the real one.
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#define EXPORT extern "C" __attribute__((visibility("default")))
extern "C" void stand_in_expect(const void *address, size_t bytes, const char *what);

namespace {

enum Status { SUCCESS = 0, NOT_INITIALIZED = 101, LENGTH_NOT_MULTIPLE = 105 };

struct Generator {
    uint64_t seed = 0, offset = 0;
    // splitmix64 of the seed and the number's place.
    uint64_t next() {
        uint64_t x = seed * 0xd1342543de82ef95 + ++offset * 0x9e3779b97f4a7c15;
        x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
        x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
        return x ^ (x >> 31);
    }
    // Above 0, up to 1.
    double uniform() { return ((double)(next() >> 11) + 1) * 0x1p-53; }
};

template <typename T> Status uniform(Generator *generator, T *to, size_t count) {
    stand_in_expect(to, count * sizeof(T), "cuRAND: what it writes to");
    for (size_t i = 0; i < count; i++) {
        T x = (T)generator->uniform();
        to[i] = x > 0 ? x : (T)1;
    }
    return SUCCESS;
}

template <typename T> Status normal(Generator *generator, T *to, size_t count, T mean, T deviation) {
    if (count % 2) {
        return LENGTH_NOT_MULTIPLE; // as the real one: pairs
    }
    stand_in_expect(to, count * sizeof(T), "cuRAND: what it writes to");
    for (size_t i = 0; i < count; i += 2) {
        double radius = sqrt(-2 * log(generator->uniform())), angle = 6.283185307179586 * generator->uniform();
        to[i] = mean + deviation * (T)(radius * cos(angle));
        to[i + 1] = mean + deviation * (T)(radius * sin(angle));
    }
    return SUCCESS;
}

} // namespace

EXPORT Status curandCreateGenerator(Generator **generator, int) {
    *generator = new Generator;
    return SUCCESS;
}
EXPORT Status curandDestroyGenerator(Generator *generator) {
    delete generator;
    return SUCCESS;
}
EXPORT Status curandSetStream(Generator *generator, void *) { return generator ? SUCCESS : NOT_INITIALIZED; }
EXPORT Status curandSetPseudoRandomGeneratorSeed(Generator *generator, unsigned long long seed) {
    generator->seed = seed, generator->offset = 0;
    return SUCCESS;
}
EXPORT Status curandSetGeneratorOffset(Generator *generator, unsigned long long offset) {
    generator->offset = offset;
    return SUCCESS;
}
EXPORT Status curandGenerate(Generator *generator, unsigned *to, size_t count) {
    stand_in_expect(to, count * 4, "cuRAND: what it writes to");
    for (size_t i = 0; i < count; i++) {
        to[i] = (unsigned)(generator->next() >> 32);
    }
    return SUCCESS;
}
EXPORT Status curandGenerateUniform(Generator *generator, float *to, size_t count) { return uniform(generator, to, count); }
EXPORT Status curandGenerateUniformDouble(Generator *generator, double *to, size_t count) { return uniform(generator, to, count); }
EXPORT Status curandGenerateNormal(Generator *generator, float *to, size_t count, float mean, float deviation) {
    return normal(generator, to, count, mean, deviation);
}
EXPORT Status curandGenerateNormalDouble(Generator *generator, double *to, size_t count, double mean, double deviation) {
    return normal(generator, to, count, mean, deviation);
}
EXPORT Status curandGetVersion(int *version) {
    *version = 10400;
    return SUCCESS;
}
