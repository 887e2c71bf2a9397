/* A peer of `cordee bench comm`: all-reduce in place by MPI (f32, sum), between processes of one machine.
 *
 * Prints one JSON line for each size, measured by the same rule: a barrier before each round, the time of the
 * slowest rank, the middle of as many rounds as fit into half a second (5 to 1000) after three that do not count.
 *
 *   mpicc -O3 scripts/peers/mpi_allreduce.c -o mpi_allreduce    (Debian: openmpi-bin libopenmpi-dev)
 *   mpirun --oversubscribe --bind-to none -np RANKS ./mpi_allreduce MIB...
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

enum { WARM_UP = 3, FEWEST = 5, MOST = 1000 };

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The middle of `rounds` rounds, in seconds, the same on every rank. */
static double measure(float *numbers, int len, int rounds) {
    double own[MOST], slowest[MOST];
    for (int round = 0; round < rounds; round++) {
        MPI_Barrier(MPI_COMM_WORLD);
        double started = MPI_Wtime();
        MPI_Allreduce(MPI_IN_PLACE, numbers, len, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
        own[round] = MPI_Wtime() - started;
    }
    MPI_Allreduce(own, slowest, rounds, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    qsort(slowest, rounds, sizeof *slowest, ascending);
    return slowest[rounds / 2];
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    int rank, world;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &world);
    for (int size = 1; size < argc; size++) {
        int len = atoi(argv[size]) << 18;
        double bytes = 4.0 * len;
        float *numbers = malloc(4 * (size_t)len);
        for (int i = 0; i < len; i++) numbers[i] = 1;
        double fitting = 0.5 / measure(numbers, len, WARM_UP);
        int rounds = fitting < FEWEST ? FEWEST : fitting > MOST ? MOST : (int)fitting;
        double middle = measure(numbers, len, rounds);
        if (rank == 0)
            printf("{\"peer\": \"openmpi\", \"operation\": \"all_reduce\", \"bytes\": %.0f, \"world\": %d, "
                   "\"rounds\": %d, \"ms\": %.4f, \"busbw_gbs\": %.3f}\n",
                   bytes, world, rounds, middle * 1e3, bytes / middle / 1e9 * 2 * (world - 1) / world);
        free(numbers);
    }
    MPI_Finalize();
}
