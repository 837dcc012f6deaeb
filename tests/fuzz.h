/* fuzz.h: what a harness, fuzz_NAME.c, gives its driver: fuzz_driver.c, or libFuzzer where clang is:
 *
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined -I. '-Dfuzz_fail(fault)=abort()' \
 *       tests/fuzz_NAME.c SOURCES LIBRARIES
 *
 * with the sources and libraries that CMakeLists.txt gives it. */
#ifndef RAFTC_TESTS_FUZZ_H
#define RAFTC_TESTS_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Tries an input; what must not be ends in an abort. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The memory that an input of so many bytes justifies: base + factor x size. */
typedef struct FuzzLimits {
    size_t base, factor;
} FuzzLimits;
extern const FuzzLimits fuzz_limits;

/* Ends the process: the input shows a fault. */
_Noreturn void fuzz_fail(const char *fault);

#endif
