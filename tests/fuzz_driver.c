/* fuzz_driver.c: the main of every fuzz_NAME.c: its files first, then changes to them, for a time.
 *
 *     fuzz_NAME [--seconds N] [--seed N] FILE|FOLDER...
 *
 * What libFuzzer does, where there is no clang: gcc's -fsanitize-coverage=trace-pc tells which code
 * an input reaches, and one that reaches more is kept and changed further. Every input may take a
 * second of CPU time and the memory that the harness allows (fuzz.h), no more; that is checked
 * under AddressSanitizer, which also ends the process at the first wrong access. An input at which
 * it ends is written to crash-NAME, which fuzz_NAME crash-NAME tries again. */
#define _GNU_SOURCE /* program_invocation_short_name */
#include "tests/fuzz.h"
#include "tests/random.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { MOST_INPUTS = 1 << 16, MOST_BYTES = 1 << 16, MAP_SIZE = 1 << 16 };

typedef struct Input {
    uint8_t *data;
    size_t size;
} Input;

static Input inputs[MOST_INPUTS];
static size_t input_count;
static Random random_state;
static Input current; /* what is tried */

/* Provided by harnesses that know how to change their inputs; see fuzz_mutator.h. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed)
    __attribute__((weak));
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most);

/* ---- coverage -------------------------------------------------------------------------------- */

static uint8_t reached[MAP_SIZE], ever_reached[MAP_SIZE];
static uintptr_t last_place;

/* gcc calls it at the start of each basic block. */
void __sanitizer_cov_trace_pc(void);
void __sanitizer_cov_trace_pc(void)
{
    uintptr_t place = (uintptr_t)__builtin_return_address(0);
    uint8_t *count = &reached[(place ^ last_place << 1) % MAP_SIZE];
    *count = (uint8_t)(*count + (*count < 255));
    last_place = place;
}

/* Whether the last input went a new way, or one more often (1, 2, 3, 4-7, 8-31, more). */
static bool is_new(void)
{
    bool found = false;
    for (size_t i = 0; i < MAP_SIZE; i++) {
        uint8_t n = reached[i];
        if (!n) continue;
        uint8_t class = n < 4 ? n : n < 8 ? 4 : n < 32 ? 5 : 6;
        found |= !(ever_reached[i] >> class & 1);
        ever_reached[i] |= (uint8_t)(1 << class);
    }
    memset(reached, 0, sizeof reached);
    last_place = 0;
    return found;
}

/* ---- memory and time ------------------------------------------------------------------------- */

static size_t live_bytes, most_bytes;

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>

/* gcc brings these, but not their header. */
int __sanitizer_install_malloc_and_free_hooks(void (*on_malloc)(const volatile void *, size_t),
                                              void (*on_free)(const volatile void *));
size_t __sanitizer_get_allocated_size(const volatile void *memory);

static void on_malloc(const volatile void *memory, size_t size)
{
    if (!memory) return;
    live_bytes += size;
    if (live_bytes > most_bytes) most_bytes = live_bytes;
}

static void on_free(const volatile void *memory)
{
    if (!memory) return;
    size_t size = __sanitizer_get_allocated_size(memory);
    live_bytes -= size < live_bytes ? size : live_bytes;
}
#endif

static double seconds_on(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* ---- the end --------------------------------------------------------------------------------- */

static void save_input(void)
{
    char path[256];
    snprintf(path, sizeof path, "crash-%s", program_invocation_short_name);
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    bool good = file >= 0 && write(file, current.data, current.size) == (ssize_t)current.size;
    fprintf(stderr, "%s: an input of %zu bytes failed, %s %s\n", program_invocation_short_name,
            current.size, good ? "written to" : "which cannot be written to", path);
    if (file >= 0) close(file);
}

static void on_signal(int number)
{
    save_input();
    signal(number, SIG_DFL);
    raise(number);
}

void fuzz_fail(const char *fault)
{
    fprintf(stderr, "%s: %s\n", program_invocation_short_name, fault);
    abort();
}

/* ---- trying ---------------------------------------------------------------------------------- */

typedef struct Record {
    uint64_t tries;
    double seconds;       /* the longest */
    size_t memory, claim; /* the most bytes at once, and what was allowed then */
} Record;
static Record record;

/* Tries a copy that ends where the bytes do; returns whether it went a new way. */
static bool try_input(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size + !size);
    if (!copy) fuzz_fail("no memory for the input");
    if (size) memcpy(copy, data, size);
    current = (Input){copy, size};
    size_t before = most_bytes = live_bytes;
    double start = seconds_on(CLOCK_PROCESS_CPUTIME_ID);
    LLVMFuzzerTestOneInput(copy, size);
    double seconds = seconds_on(CLOCK_PROCESS_CPUTIME_ID) - start;
    size_t taken = most_bytes - before, allowed = fuzz_limits.base + fuzz_limits.factor * size;
    char fault[128];
    snprintf(fault, sizeof fault, "%.2f s, %zu bytes of memory; allowed: 1 s, %zu bytes", seconds,
             taken, allowed);
    if (seconds > 1 || taken > allowed) fuzz_fail(fault);
    record.tries++;
    if (seconds > record.seconds) record.seconds = seconds;
    if (!record.claim || taken * record.claim > record.memory * allowed) {
        record.memory = taken;
        record.claim = allowed;
    }
    free(copy);
    return is_new();
}

static void keep(const uint8_t *data, size_t size)
{
    if (input_count == MOST_INPUTS || size == 0) return;
    uint8_t *copy = malloc(size);
    if (!copy) fuzz_fail("no memory for the input");
    memcpy(copy, data, size);
    inputs[input_count++] = (Input){copy, size};
}

/* ---- changing -------------------------------------------------------------------------------- */

static size_t below(size_t count)
{
    return (size_t)random_from(&random_state, 0, (int64_t)count - 1);
}

/* Moves the end of the data so that `length` bytes at `at` become `wanted`. */
static size_t resize(uint8_t *data, size_t size, size_t most, size_t at, size_t length,
                     size_t wanted)
{
    if (size - length + wanted > most) return size;
    memmove(data + at + wanted, data + at + length, size - at - length);
    return size - length + wanted;
}

static void put_number(uint8_t *data, size_t size)
{
    static const int64_t numbers[] = {0,   1,      2,       -1,        INT8_MAX,  INT16_MAX,
                                      256, 65536,  1 << 24, INT32_MAX, INT32_MIN, UINT32_MAX,
                                      100, 100000, 1 << 20, INT64_MAX, INT64_MIN, 1ll << 40};
    size_t bytes = (size_t)1 << below(4), at = below(size);
    if (bytes > size - at) return;
    int64_t number = numbers[below(sizeof numbers / sizeof *numbers)];
    bool big_endian = below(2);
    for (size_t i = 0; i < bytes; i++)
        data[at + (big_endian ? bytes - 1 - i : i)] = (uint8_t)(number >> 8 * i);
}

/* A stretch of this input, or of another, put in or over what is there. */
static size_t put_stretch(uint8_t *data, size_t size, size_t most)
{
    const Input *other = &inputs[below(input_count)];
    const uint8_t *from = below(2) ? data : other->data;
    size_t available = from == data ? size : other->size, start = below(available);
    size_t length = 1 + below(below(4) ? 16 : available);
    uint8_t stretch[MOST_BYTES];
    if (length > available - start) length = available - start;
    memcpy(stretch, from + start, length);
    size_t at = below(size + 1), over = below(2) ? 0 : length;
    if (over > size - at) over = size - at;
    if (size - over + length > most) return size;
    size = resize(data, size, most, at, over, length);
    memcpy(data + at, stretch, length);
    return size;
}

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most)
{
    static const char characters[] = "0123456789-+.,:;[]{}()\"'%@#&*!|> \n\t<=_eEXx\\/";
    if (size == 0) {
        data[0] = (uint8_t)below(256);
        return 1;
    }
    size_t at = below(size), length = 1 + below(below(4) ? 8 : size);
    if (length > size - at) length = size - at;
    switch (below(8)) {
    case 0:
        data[at] ^= (uint8_t)(1 << below(8));
        return size;
    case 1:
        data[at] = (uint8_t)below(256);
        return size;
    case 2:
        data[at] = (uint8_t)characters[below(sizeof characters - 1)];
        return size;
    case 3:
        put_number(data, size);
        return size;
    case 4:
        return size > length ? resize(data, size, most, at, length, 0) : size;
    case 5:
        return 1 + at; /* cut off */
    default:
        return put_stretch(data, size, most);
    }
}

static size_t change(uint8_t *data, size_t size, size_t most)
{
    for (size_t left = 1 + below(4); left > 0; left--) {
        if (LLVMFuzzerCustomMutator)
            size = LLVMFuzzerCustomMutator(data, size, most, (unsigned)below(1u << 31));
        else
            size = LLVMFuzzerMutate(data, size, most);
    }
    return size;
}

static void fuzz(double seconds)
{
    static uint8_t data[MOST_BYTES];
    double end = seconds_on(CLOCK_MONOTONIC) + seconds;
    while (seconds_on(CLOCK_MONOTONIC) < end) {
        /* half the time one of the newest */
        size_t newest = input_count < 64 ? input_count : 64;
        const Input *input =
            &inputs[below(2) ? below(input_count) : input_count - 1 - below(newest)];
        memcpy(data, input->data, input->size);
        size_t most = input->size < 2048 ? 4096 : 2 * input->size;
        size_t size = change(data, input->size, most < MOST_BYTES ? most : MOST_BYTES);
        if (try_input(data, size)) keep(data, size);
    }
}

/* ---- files ----------------------------------------------------------------------------------- */

static void read_file(const char *path)
{
    static uint8_t data[1 << 24];
    FILE *file = fopen(path, "rb");
    size_t size = file ? fread(data, 1, sizeof data, file) : 0;
    if (!file || ferror(file)) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        exit(1);
    }
    fclose(file);
    try_input(data, size);
    if (size <= MOST_BYTES / 2) keep(data, size);
}

static void read_path(const char *path)
{
    struct stat status;
    DIR *folder = stat(path, &status) == 0 && S_ISDIR(status.st_mode) ? opendir(path) : NULL;
    if (!folder) {
        read_file(path);
        return;
    }
    for (const struct dirent *entry; (entry = readdir(folder));) {
        char inner[1024];
        if (entry->d_name[0] == '.') continue;
        snprintf(inner, sizeof inner, "%s/%s", path, entry->d_name);
        read_path(inner);
    }
    closedir(folder);
}

int main(int argc, char **argv)
{
    double seconds = 0;
    int first = 1;
    random_state = (Random){1};
    for (; first + 1 < argc && argv[first][0] == '-'; first += 2) {
        if (!strcmp(argv[first], "--seconds")) seconds = atof(argv[first + 1]);
        if (!strcmp(argv[first], "--seed"))
            random_state = (Random){strtoull(argv[first + 1], NULL, 10)};
    }
    const char *told = getenv("FUZZ_SECONDS");
    if (told && seconds > 0) seconds = atof(told);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_install_malloc_and_free_hooks(on_malloc, on_free);
    __sanitizer_set_death_callback(save_input);
#endif
    signal(SIGABRT, on_signal);
    for (int i = first; i < argc; i++) read_path(argv[i]);
    uint64_t files = record.tries;
    if (input_count > 0) fuzz(seconds);
    printf(
        "%s: %llu files, %llu changed ones, %zu kept; the longest took %.3f s; the most memory %zu "
        "of %zu bytes\n",
        program_invocation_short_name, (unsigned long long)files,
        (unsigned long long)(record.tries - files), input_count, record.seconds, record.memory,
        record.claim);
    for (size_t i = 0; i < input_count; i++) free(inputs[i].data);
    return files == 0;
}
