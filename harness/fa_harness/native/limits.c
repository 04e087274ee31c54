// Two limits of a core, for `fa-harness bench --against`: how fast it reads memory, and how many F32
// multiply-adds it computes on numbers that stay in registers.

#include <stddef.h>
#include <stdint.h>

#if defined(__AVX512F__)
#    define BYTES 64
#elif defined(__AVX__)
#    define BYTES 32
#else
#    define BYTES 16
#endif

enum { AHEAD  = 4096 }; // bytes; more is no faster
enum { CHAINS = 12 }; // more than latency times units, and fewer than 16 registers

typedef float    floats __attribute__((vector_size(BYTES)));
typedef uint64_t words  __attribute__((vector_size(BYTES)));

// Reads n_bytes, rounded down to a multiple of 512, from an address that is a multiple of 64.
uint64_t read_memory(const void * memory, size_t n_bytes) {
    enum { UNROLLED = 8 };
    const words * data = memory;
    words found[UNROLLED] = {0};
    for (size_t i = 0; i < n_bytes/512; i++) {
        for (size_t j = 0; j < 512/BYTES; j++) {
            __builtin_prefetch((const char *) data + AHEAD); // or fewer lines are on their way
            found[j % UNROLLED] ^= *data++;
        }
    }
    for (int j = 1; j < UNROLLED; j++) {
        found[0] ^= found[j];
    }
    return found[0][0] ^ found[0][1];
}

// Returns the number of multiply-adds; `factor` is known to no compiler.
uint64_t multiply_add(size_t n_turns, float factor) {
    floats sums[CHAINS];
    for (int i = 0; i < CHAINS; i++) {
        sums[i] = (floats){0} + (float) i;
    }
    const floats a = (floats){0} + factor;
    for (size_t turn = 0; turn < n_turns; turn++) {
        for (int i = 0; i < CHAINS; i++) {
            sums[i] = sums[i]*a + a;
        }
    }
    float total = 0;
    for (int i = 0; i < CHAINS; i++) {
        total += sums[i][0];
    }
    return n_turns*CHAINS*(BYTES/sizeof(float)) + (total == factor); // so that the loop stays
}
