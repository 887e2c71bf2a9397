// Tensor cores: bf16 matrices of 16 x 16 and 16 x 8 spread over the lanes of a warp, and what brings
// them there. Comes after prelude.cuh, before the kernels that use it.
//
// Lane `4 g + c` (g = 0..8, c = 0..4) holds, in words of two neighbouring elements,
//   of A, 16 x 16: a[0] = A[g][2c..], a[1] = A[g + 8][2c..], a[2] = A[g][2c + 8..], a[3] = A[g + 8][2c + 8..]
//   of B, 16 x 8:  b0 = B[2c..][g], b1 = B[2c + 8..][g]
//   of C, 16 x 8:  c[0..2] = C[g][2c..], c[2..4] = C[g + 8][2c..], f32
// so that two C side by side, rounded, are one A: what a product gives, the next one takes.
// (PTX ISA, "Matrix Fragments for mma.m16n8k16".)

#ifdef CORDEE_STAND_IN

// An address in shared memory.
typedef u64 shared_address;

struct Words4 {
    u32 at[4];
};

__device__ __forceinline__ shared_address address_of(const void *shared) { return (u64)shared; }

// `element` of a row whose address a lane gave.
__device__ __forceinline__ u32 element_of_row(const shared_address *rows, u32 row, u32 element) {
    if (rows[row] % 16 != 0) {
        stand_in::fail("a row of a matrix is not 16-byte aligned");
    }
    return ((const u16 *)rows[row])[element];
}

__device__ __forceinline__ void load_matrices(u32 (&matrices)[4], shared_address row) {
    Words4 mine = stand_in::warp_together<Words4>(row, [](const shared_address *rows, Words4 *results) {
        for (u32 lane = 0; lane < WARP; lane++) {
            for (u32 i = 0; i < 4; i++) {
                u32 from = 8 * i + lane / 4, at = lane % 4 * 2;
                results[lane].at[i] = element_of_row(rows, from, at) | element_of_row(rows, from, at + 1) << 16;
            }
        }
    });
    for (u32 i = 0; i < 4; i++) {
        matrices[i] = mine.at[i];
    }
}

__device__ __forceinline__ void load_matrices_transposed(u32 (&matrices)[4], shared_address row) {
    Words4 mine = stand_in::warp_together<Words4>(row, [](const shared_address *rows, Words4 *results) {
        for (u32 lane = 0; lane < WARP; lane++) {
            for (u32 i = 0; i < 4; i++) {
                u32 from = 8 * i + lane % 4 * 2, at = lane / 4;
                results[lane].at[i] = element_of_row(rows, from, at) | element_of_row(rows, from + 1, at) << 16;
            }
        }
    });
    for (u32 i = 0; i < 4; i++) {
        matrices[i] = mine.at[i];
    }
}

struct Operands {
    u32 a[4], b[2];
    float c[4];
};

struct Sums4 {
    float at[4];
};

__device__ __forceinline__ void multiply_add(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    Operands given = {{a[0], a[1], a[2], a[3]}, {b0, b1}, {c[0], c[1], c[2], c[3]}};
    Sums4 mine = stand_in::warp_together<Sums4>(given, [](const Operands *lanes, Sums4 *results) {
        float whole_a[16][16], whole_b[16][8];
        auto half = [](u32 word, u32 which) { return __uint_as_float(which ? word & 0xffff0000u : word << 16); };
        for (u32 lane = 0; lane < WARP; lane++) {
            u32 g = lane / 4, c = lane % 4 * 2;
            for (u32 i = 0; i < 2; i++) {
                whole_a[g][c + i] = half(lanes[lane].a[0], i);
                whole_a[g + 8][c + i] = half(lanes[lane].a[1], i);
                whole_a[g][c + 8 + i] = half(lanes[lane].a[2], i);
                whole_a[g + 8][c + 8 + i] = half(lanes[lane].a[3], i);
                whole_b[c + i][g] = half(lanes[lane].b[0], i);
                whole_b[c + 8 + i][g] = half(lanes[lane].b[1], i);
            }
        }
        for (u32 lane = 0; lane < WARP; lane++) {
            u32 g = lane / 4, c = lane % 4 * 2;
            for (u32 i = 0; i < 4; i++) {
                float sum = lanes[lane].c[i];
                for (u32 k = 0; k < 16; k++) {
                    sum = fmaf(whole_a[g + i / 2 * 8][k], whole_b[k][c + i % 2], sum);
                }
                results[lane].at[i] = sum;
            }
        }
    });
    for (u32 i = 0; i < 4; i++) {
        c[i] = mine.at[i];
    }
}

// What each thread asked for. The copies happen when it waits; until then there are NaNs where they go, so that it shows
// both when something is read too early and when it is still needed.
struct Copies {
    struct {
        shared_address to;
        const void *from;
        u32 bytes;
        bool there;
    } at[128];
    u32 count;
};
static Copies asked_copies[1024];

__device__ __forceinline__ void copy_async(shared_address to, const void *from, bool there, u32 bytes) {
    Copies &mine = asked_copies[threadIdx.x];
    if (mine.count == 128 || to % bytes != 0 || (u64)from % bytes != 0) {
        stand_in::fail("too many copies at once, or one that is not aligned");
    }
    mine.at[mine.count++] = {to, from, bytes, there};
    for (u32 i = 0; i < bytes; i++) {
        ((u8 *)to)[i] = 0xff;
    }
}

__device__ __forceinline__ void copy_async_16(shared_address to, const void *from, bool there) {
    copy_async(to, from, there, 16);
}

__device__ __forceinline__ void copy_async_4(shared_address to, const void *from, bool there) {
    copy_async(to, from, there, 4);
}

__device__ __forceinline__ void wait_for_copies() {
    Copies &mine = asked_copies[threadIdx.x];
    for (u32 i = 0; i < mine.count; i++) {
        for (u32 j = 0; j < mine.at[i].bytes; j++) {
            ((u8 *)mine.at[i].to)[j] = mine.at[i].there ? ((const u8 *)mine.at[i].from)[j] : 0;
        }
    }
    mine.count = 0;
}

__device__ __forceinline__ float fast_exp2(float x) { return exp2f(x); }

#else

// An address in shared memory.
typedef u32 shared_address;

__device__ __forceinline__ shared_address address_of(const void *shared) {
    shared_address address;
    asm("{ .reg .u64 whole; cvta.to.shared.u64 whole, %1; cvt.u32.u64 %0, whole; }" : "=r"(address) : "l"(shared));
    return address;
}

// Four matrices of 8 x 8 elements from shared memory. Lane 8 i + r gives the address of row r of matrix
// i, 16 bytes; lane 4 g + c gets elements 2c and 2c + 1 of row g of each.
__device__ __forceinline__ void load_matrices(u32 (&matrices)[4], shared_address row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(row)
                 : "memory");
}

// The same, each matrix transposed: lane 4 g + c gets elements g of rows 2c and 2c + 1.
__device__ __forceinline__ void load_matrices_transposed(u32 (&matrices)[4], shared_address row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(row)
                 : "memory");
}

// c += a b
__device__ __forceinline__ void multiply_add(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 16 bytes from global to shared memory, on their own; zeros where nothing is there.
__device__ __forceinline__ void copy_async_16(shared_address to, const void *from, bool there) {
    asm volatile("{ .reg .u64 whole; cvta.to.global.u64 whole, %1; cp.async.cg.shared.global [%0], [whole], 16, %2; }"
                 :
                 : "r"(to), "l"(from), "r"(there ? 16 : 0)
                 : "memory");
}

// 4 bytes in the same way.
__device__ __forceinline__ void copy_async_4(shared_address to, const void *from, bool there) {
    asm volatile("{ .reg .u64 whole; cvta.to.global.u64 whole, %1; cp.async.ca.shared.global [%0], [whole], 4, %2; }"
                 :
                 : "r"(to), "l"(from), "r"(there ? 4 : 0)
                 : "memory");
}

// Waits for this thread's copies. Those of others are there after a __syncthreads that follows.
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" : : : "memory"); }

// To 2 in 2^22; the smallest numbers become 0.
__device__ __forceinline__ float fast_exp2(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

#endif
