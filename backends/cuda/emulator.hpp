/* emulator.hpp: what the emitted CUDA text stands on where it is compiled for the CPU (emulate.c).
 *
 * One thread of the CPU runs the thread blocks of its share one after another. Each thread of a
 * block is a fiber: a stack of its own, on which it runs until it waits for the block or for its
 * warp, or ends; then the next one runs. So between two barriers all of one thread comes before all
 * of the next. On a GPU any order is possible, so what would depend on it is a fault:
 *
 *   - an index outside an argument, the scratch, or a table
 *   - several floats that are taken at once, at a place that is no multiple of their size
 *   - a read of a word of scratch that no thread of the block has written
 *   - a word of scratch that one thread writes and another reads or writes, with no barrier between.
 *     The threads of a warp are no exception: they exchange values by raft_warp_sum alone
 *   - a read of a word that a copy is to bring and its thread has not waited for
 *   - a barrier, or a sum over a warp, that not every thread reaches
 *
 * The first fault is kept; the kernel that met it stops there, and others no longer start. Nothing
 * is allocated: all memory is the scratch that the shell gives to a kernel.
 */
#define RAFT_EMULATE
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <ucontext.h>

#define __device__
#define __global__
#define __forceinline__      inline
#define __launch_bounds__(threads, blocks) /* checked where the wrappers are made */
#define RAFT_INLINE          inline __attribute__((always_inline))

namespace emulator {

enum { WARP = 32, STACK_BYTES = 64 << 10, ALIGNMENT = 64, MANY = UINT16_MAX, MOST_COPIES = 256 };

/* A float of scratch, and in which round it was last written and read, and by which thread. A round
 * is the time between two barriers; they are counted over all blocks, from 1. ON_ITS_WAY: a copy has
 * started, and its thread not waited for it. */
enum : uint32_t { ON_ITS_WAY = UINT32_MAX };
struct Word {
    float value;
    uint32_t written, read;
    uint16_t writer, reader; /* reader: MANY if several threads did */
};

struct Launch;
struct Memory {
    const Launch *launch;
    Word *word;
    long long count;
    long long start; /* index of the first word: spilled scratch is a part of one long array */
};

/* A float that is copied; group: how many groups the thread had sent before. */
struct Copy {
    Word *word;
    float value;
    long long group;
};

enum State { READY, AT_BARRIER, AT_SUM, ENDED };
struct Fiber {
    long long groups; /* of copies that it has sent */
    int copies;
    Copy copy[MOST_COPIES]; /* that it has not waited for */
    jmp_buf place; /* where it goes on */
    State state;
    int line;    /* at which it waits */
    float value; /* of raft_warp_sum: what it gives, then what it gets */
    bool greatest; /* not the sum: raft_warp_max */
};

struct Kernel {
    const char *name;
    void (*call)(const Launch &launch); /* the kernel, with its arguments */
    int threads;                        /* of a block: full warps */
    long long block, fine, units;       /* as in struct CudaKernel */
    bool batched;
    long long shared_floats, fine_shared_floats, spill_floats;
};

struct Launch {
    const Kernel *kernel;
    float *const *argument;
    long long batch, units; /* units: of the whole grid */
    long long block, grid;  /* number of this block, and of blocks */
    int thread;             /* which runs, or has faulted */
    bool failed;
    uint32_t round, first_round; /* now, and of this block */
    Memory shared, spill;
    jmp_buf scheduler;
    Fiber *fiber; /* of each thread */
    char *stacks;
};

/* ---- faults ---- */

static struct Fault {
    int claimed, complete; /* atomic */
    int line;
    char text[400];
} the_fault;

static thread_local Launch *now;

/* Keeps the fault if it is the first. */
static void keep_fault(int thread, int line, const char *format, va_list values)
{
    Launch *launch = now;
    launch->failed = true;
    if (__atomic_exchange_n(&the_fault.claimed, 1, __ATOMIC_ACQ_REL)) return;
    char *text = the_fault.text;
    int length = snprintf(text, sizeof the_fault.text, "kernel %s, block %lld, thread %d: ",
                          launch->kernel->name, launch->block, thread);
    if (length < (int)sizeof the_fault.text)
        vsnprintf(text + length, sizeof the_fault.text - length, format, values);
    the_fault.line = line;
    __atomic_store_n(&the_fault.complete, 1, __ATOMIC_RELEASE);
}

/* A fault of the thread that runs, which never goes on. */
[[noreturn]] __attribute__((noinline, cold, format(printf, 2, 3))) static void
fault(int line, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    keep_fault(now->thread, line, format, values);
    va_end(values);
    _longjmp(now->scheduler, 1);
}

/* A fault that the scheduler finds. */
__attribute__((format(printf, 3, 4))) static bool fail(int thread, int line, const char *format,
                                                       ...)
{
    va_list values;
    va_start(values, format);
    keep_fault(thread, line, format, values);
    va_end(values);
    return false;
}

/* ---- memory ---- */

/* An index, and the line of the text where it stands. */
struct Place {
    long long index;
    int line;
    RAFT_INLINE Place(long long i, int where = __builtin_LINE()) : index(i), line(where) {}
};

[[noreturn]] __attribute__((noinline, cold)) static void
outside(const char *does, const char *what, int number, Place at, long long start, long long count)
{
    char name[16] = "";
    if (number >= 0) snprintf(name, sizeof name, "%d", number);
    fault(at.line, "%s %s%s[%lld], outside %s%s[%lld .. %lld]", does, what, name, at.index, what,
          name, start, start + count - 1);
}

template <typename Type, int count> struct Table {
    Type element[count];
    RAFT_INLINE Type operator[](Place at) const
    {
        if (at.index < 0 || at.index >= count) outside("reads", "table", -1, at, 0, count);
        return element[at.index];
    }
};

/* An element of scratch. */
struct Cell {
    const Memory *memory;
    Place at;

    RAFT_INLINE Word *find(const char *does) const
    {
        long long i = at.index - memory->start;
        if (i < 0 || i >= memory->count)
            outside(does, "scratch", -1, at, memory->start, memory->count);
        return &memory->word[i];
    }
    RAFT_INLINE operator float() const
    {
        const Launch *launch = memory->launch;
        Word *word = find("reads");
        if (word->written == ON_ITS_WAY)
            fault(at.line, "reads scratch[%lld], which a copy by thread %d is still to bring",
                  at.index, word->writer);
        if (word->written < launch->first_round)
            fault(at.line, "reads scratch[%lld], which no thread has written", at.index);
        if (word->written == launch->round && word->writer != launch->thread)
            fault(at.line, "reads scratch[%lld], which thread %d writes with no barrier between",
                  at.index, word->writer);
        if (word->read != launch->round)
            word->reader = (uint16_t)launch->thread;
        else if (word->reader != launch->thread)
            word->reader = MANY;
        word->read = launch->round;
        return word->value;
    }
    RAFT_INLINE void operator=(float value) const
    {
        Word *word = claim();
        word->value = value;
        word->written = memory->launch->round;
    }
    /* As of a plain float: `a[i] = b[j]` copies the value. */
    RAFT_INLINE void operator=(const Cell &other) const { *this = (float)other; }
    RAFT_INLINE Word *claim() const
    {
        const Launch *launch = memory->launch;
        Word *word = find("writes");
        if (word->written == ON_ITS_WAY)
            fault(at.line, "writes scratch[%lld], which a copy by thread %d is still to bring",
                  at.index, word->writer);
        if (word->written == launch->round && word->writer != launch->thread)
            fault(at.line,
                  "writes scratch[%lld], which thread %d writes too with no barrier between",
                  at.index, word->writer);
        if (word->read == launch->round && word->reader != launch->thread)
            conflict(word->reader);
        word->writer = (uint16_t)launch->thread;
        return word;
    }

private:
    [[noreturn]] __attribute__((noinline, cold)) void conflict(int reader) const
    {
        if (reader == MANY)
            fault(at.line, "writes scratch[%lld], which other threads read with no barrier between",
                  at.index);
        fault(at.line, "writes scratch[%lld], which thread %d reads with no barrier between",
              at.index, reader);
    }
};

/* An element of an argument that the kernel writes; what it has left there it may read again. */
struct Target {
    float *element;
    RAFT_INLINE operator float() const { return *element; }
    RAFT_INLINE void operator=(float value) const { *element = value; }
};

} // namespace emulator

/* ---- what the text uses ---- */

struct raft_input {
    const float *data;
    long long count;
    int number; /* of the argument */
    RAFT_INLINE float operator[](emulator::Place at) const
    {
        if (at.index < 0 || at.index >= count) emulator::outside("reads", "a", number, at, 0, count);
        return data[at.index];
    }
};

struct raft_output {
    float *data;
    long long count;
    int number;
    RAFT_INLINE emulator::Target operator[](emulator::Place at) const
    {
        if (at.index < 0 || at.index >= count)
            emulator::outside("writes", "a", number, at, 0, count);
        return {&data[at.index]};
    }
};

struct raft_scratch {
    const emulator::Memory *memory;
    long long offset;
    RAFT_INLINE raft_scratch operator+(long long distance) const
    {
        return {memory, offset + distance};
    }
    RAFT_INLINE emulator::Cell operator[](emulator::Place at) const
    {
        return {memory, {offset + at.index, at.line}};
    }
};

#define raft_table(type, name, count) static const emulator::Table<type, count> name
#define raft_unroll
#define raft_several
#define raft_loop
#define raft_twice
#define raft_shared(name, floats)                                                                  \
    const raft_scratch name = {emulator::shared_memory(floats, __LINE__), 0}

namespace emulator {

struct Index {
    unsigned x;
};

/* An argument of a kernel, of which the text knows whether it is read or written. */
struct Argument {
    float *data;
    long long count;
    int number;
    operator raft_input() const { return {data, count, number}; }
    operator raft_output() const { return {data, count, number}; }
};

static Argument argument(const Launch &launch, int number, long long elements, bool batched)
{
    return {launch.argument[number], batched ? elements * launch.batch : elements, number};
}

static const Memory *shared_memory(long long floats, int line)
{
    long long count = now->shared.count;
    if (floats != count)
        fault(line, "wants %lld floats of shared memory, but is launched with %lld", floats, count);
    return &now->shared;
}

/* ---- fibers ---- */

/* Lets the scheduler go on, and returns when it lets this thread go on. */
static void pause(State state, int line)
{
    Launch *launch = now;
    Fiber *fiber = &launch->fiber[launch->thread];
    fiber->state = state;
    fiber->line = line;
    if (_setjmp(fiber->place) == 0) _longjmp(launch->scheduler, 1);
}

/* Runs thread `thread` until it pauses, or faults. */
static void resume(Launch *launch, int thread)
{
    launch->thread = thread;
    if (_setjmp(launch->scheduler) == 0) _longjmp(launch->fiber[thread].place, 1);
}

static void live()
{
    for (;;) {
        pause(ENDED, 0);
        now->kernel->call(*now);
    }
}

static void start_fiber(Launch *launch, int thread)
{
    ucontext_t context;
    launch->thread = thread;
    launch->fiber[thread].copies = 0;
    getcontext(&context);
    context.uc_stack.ss_sp = launch->stacks + (size_t)thread * STACK_BYTES;
    context.uc_stack.ss_size = STACK_BYTES;
    context.uc_link = NULL;
    makecontext(&context, live, 0);
    if (_setjmp(launch->scheduler) == 0) setcontext(&context);
}

/* ---- blocks ---- */

static const char *whereabouts(const Fiber &fiber, char text[40])
{
    if (fiber.state == ENDED) return "has ended";
    snprintf(text, 40, "waits at line %d", fiber.line);
    return text;
}

/* Whether the threads [first, first + count) all wait where the first that is in `state` does. */
static bool all_wait(const Launch *launch, int first, int count, State state, const char *what)
{
    int known = first;
    while (launch->fiber[known].state != state) known++;
    const Fiber &there = launch->fiber[known];
    for (int t = first; t < first + count; t++) {
        const Fiber &fiber = launch->fiber[t];
        char text[40];
        if (fiber.state != state || fiber.line != there.line)
            return fail(known, there.line, "%s is not reached by thread %d, which %s", what, t,
                        whereabouts(fiber, text));
    }
    return true;
}

static bool any_is(const Launch *launch, int first, int count, State state)
{
    for (int t = first; t < first + count; t++)
        if (launch->fiber[t].state == state) return true;
    return false;
}

/* The tree that the shuffles of the prelude make. */
static bool combine_warp(Launch *launch, int first)
{
    Fiber *lane = &launch->fiber[first];
    const char *what = lane->greatest ? "raft_warp_max" : "raft_warp_sum";
    if (!all_wait(launch, first, WARP, AT_SUM, what)) return false;
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        for (int i = 0; i < distance; i++)
            lane[i].value = lane->greatest ? fmaxf(lane[i].value, lane[i + distance].value)
                                           : lane[i].value + lane[i + distance].value;
    for (int i = 0; i < WARP; i++) {
        lane[i].value = lane[0].value;
        lane[i].state = READY;
    }
    return true;
}

/* Every thread has stopped. Lets those go on that can. */
static bool go_on(Launch *launch)
{
    int threads = launch->kernel->threads;
    bool summed = false;
    for (int first = 0; first < threads; first += WARP) {
        if (!any_is(launch, first, WARP, AT_SUM)) continue;
        if (!combine_warp(launch, first)) return false;
        summed = true;
    }
    if (summed) return true;
    if (!all_wait(launch, 0, threads, AT_BARRIER, "raft_barrier")) return false;
    for (int t = 0; t < threads; t++) launch->fiber[t].state = READY;
    launch->round++;
    return true;
}

static bool run_block(Launch *launch)
{
    int threads = launch->kernel->threads;
    launch->first_round = ++launch->round;
    launch->spill.start = launch->block * launch->kernel->spill_floats;
    for (int t = 0; t < threads; t++) {
        Fiber *fiber = &launch->fiber[t];
        fiber->state = READY;
        for (int i = 0; i < fiber->copies; i++) fiber->copy[i].word->written = 0;
        fiber->copies = 0;
    }
    do {
        for (int t = 0; t < threads; t++) {
            if (launch->fiber[t].state == READY) resume(launch, t);
            if (launch->failed) return false;
        }
        if (!any_is(launch, 0, threads, AT_BARRIER) && !any_is(launch, 0, threads, AT_SUM))
            return true;
    } while (go_on(launch));
    return false;
}

/* ---- launches ---- */

static long long round_up(long long bytes)
{
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

/* Memory that a launch of the kernel wants. */
static long long scratch_bytes(const Kernel &kernel)
{
    long long shared = kernel.shared_floats;
    if (kernel.fine_shared_floats > shared) shared = kernel.fine_shared_floats;
    return round_up(kernel.threads * (long long)sizeof(Fiber)) +
           (long long)kernel.threads * STACK_BYTES +
           (shared + kernel.spill_floats) * (long long)sizeof(Word);
}

static long long ceil_divide(__int128 a, long long b)
{
    return (long long)((a + b - 1) / b);
}

/* Runs the blocks that fall to the units [begin, end). There are half as many blocks as would hold
 * all units, so that most go twice through their loop; for one image, those of the shape for few images. Of
 * shares that between them have all units, each block is in one. */
static void run(const Kernel &kernel, float *const *argument, int64_t batch, int64_t begin,
                int64_t end, void *scratch)
{
    if (__atomic_load_n(&the_fault.claimed, __ATOMIC_ACQUIRE)) return;
    Launch launch = {};
    launch.kernel = &kernel;
    launch.argument = argument;
    launch.batch = batch;
    launch.units = kernel.units * (kernel.batched ? batch : 1);
    launch.grid = ceil_divide(launch.units, 2 * kernel.block);
    bool fine = kernel.fine && batch == 1;
    if (fine) launch.grid = kernel.fine;
    launch.fiber = (Fiber *)scratch;
    launch.stacks = (char *)scratch + round_up(kernel.threads * (long long)sizeof(Fiber));
    Word *words = (Word *)(launch.stacks + (size_t)kernel.threads * STACK_BYTES);
    long long shared = fine ? kernel.fine_shared_floats : kernel.shared_floats;
    launch.shared = {&launch, words, shared, 0};
    launch.spill = {&launch, words + shared, kernel.spill_floats, 0};
    memset((void *)words, 0, (size_t)(shared + kernel.spill_floats) * sizeof *words);
    now = &launch;
    for (int t = 0; t < kernel.threads; t++) start_fiber(&launch, t);
    long long stop = ceil_divide((__int128)end * launch.grid, launch.units);
    launch.block = ceil_divide((__int128)begin * launch.grid, launch.units);
    while (launch.block < stop && run_block(&launch)) launch.block++;
    now = NULL;
}

} // namespace emulator

#define threadIdx (emulator::Index{(unsigned)emulator::now->thread})
#define blockIdx  (emulator::Index{(unsigned)emulator::now->block})
#define gridDim   (emulator::Index{(unsigned)emulator::now->grid})

static inline void raft_barrier(int line = __builtin_LINE())
{
    emulator::pause(emulator::AT_BARRIER, line);
}

static inline float raft_combine_warp(float x, bool greatest, int line)
{
    emulator::Fiber *fiber = &emulator::now->fiber[emulator::now->thread];
    fiber->value = x;
    fiber->greatest = greatest;
    emulator::pause(emulator::AT_SUM, line);
    return fiber->value;
}

static inline float raft_warp_sum(float x, int line = __builtin_LINE())
{
    return raft_combine_warp(x, false, line);
}

static inline float raft_warp_max(float x, int line = __builtin_LINE())
{
    return raft_combine_warp(x, true, line);
}

static inline float raft_reciprocal(float x)
{
    return 1.0f / x;
}

static inline float raft_exp2(float x)
{
    return exp2f(x);
}

template <typename Number> static inline Number raft_again(Number x)
{
    return x;
}

template <int count> static inline int raft_thread()
{
    return (int)threadIdx.x;
}

/* Floats side by side must be aligned to their size: in scratch, counted from its start; in an argument, where it lies. */
static inline void raft_check_aligned(const raft_scratch &scratch, emulator::Place at, int count)
{
    long long index = scratch.offset + at.index;
    if (index % count != 0)
        emulator::fault(at.line, "takes %d floats at once from scratch[%lld], which are not aligned",
                        count, index);
}

template <typename Argument>
static inline void raft_check_aligned(const Argument &argument, emulator::Place at, int count)
{
    if (((uintptr_t)argument.data / sizeof(float) + (uintptr_t)at.index) % count != 0)
        emulator::fault(at.line, "takes %d floats at once from a%d[%lld], which are not aligned",
                        count, argument.number, at.index);
}

template <int count, typename Memory>
static inline void raft_load(float *to, const Memory &from, emulator::Place at)
{
    raft_check_aligned(from, at, count);
    for (int i = 0; i < count; i++) to[i] = from[{at.index + i, at.line}];
}

template <int count, typename Memory>
static inline void raft_store(const Memory &to, emulator::Place at, const float *from)
{
    raft_check_aligned(to, at, count);
    for (int i = 0; i < count; i++) to[{at.index + i, at.line}] = from[i];
}

template <int count>
static inline void raft_copy(const raft_scratch &to, emulator::Place at, const raft_input &from,
                             long long index, bool inside)
{
    emulator::Fiber *fiber = &emulator::now->fiber[emulator::now->thread];
    raft_check_aligned(to, at, count);
    if (inside) raft_check_aligned(from, {index, at.line}, count);
    if (fiber->copies + count > emulator::MOST_COPIES)
        emulator::fault(at.line, "starts more copies than the emulator has room for");
    for (int i = 0; i < count; i++) {
        float value = inside ? from[{index + i, at.line}] : 0.0f;
        emulator::Word *word = to[{at.index + i, at.line}].claim();
        word->written = emulator::ON_ITS_WAY;
        fiber->copy[fiber->copies++] = {word, value, fiber->groups};
    }
}

static inline void raft_copies_sent()
{
    emulator::now->fiber[emulator::now->thread].groups++;
}

template <int more> static inline void raft_copies_wait()
{
    emulator::Fiber *fiber = &emulator::now->fiber[emulator::now->thread];
    int left = 0;
    for (int i = 0; i < fiber->copies; i++) {
        const emulator::Copy copy = fiber->copy[i];
        if (copy.group + more < fiber->groups) {
            copy.word->value = copy.value;
            copy.word->written = emulator::now->round;
        } else {
            fiber->copy[left++] = copy;
        }
    }
    fiber->copies = left;
}

/* ---- what emulate.c looks up, and what it writes behind the kernels ---- */

#define RAFT_EXPORT extern "C" __attribute__((visibility("default")))

extern const emulator::Kernel emulated_kernel[];
extern const int emulated_count;

/* Kernel `number` as a RaftKernel; a table of them, emulated_wrapper, ends the text. */
template <int number>
static void emulate(float *const *argument, int64_t batch, int64_t begin, int64_t end,
                    void *scratch)
{
    emulator::run(emulated_kernel[number], argument, batch, begin, end, scratch);
}
typedef void EmulatedWrapper(float *const *, int64_t, int64_t, int64_t, void *);

/* The most that any kernel wants. */
RAFT_EXPORT int64_t emulated_scratch_bytes()
{
    long long most = 0;
    for (int i = 0; i < emulated_count; i++) {
        long long bytes = emulator::scratch_bytes(emulated_kernel[i]);
        if (bytes > most) most = bytes;
    }
    return most;
}

/* The message of the first fault and its line in the text, or NULL. */
RAFT_EXPORT const char *emulated_fault(int *line)
{
    if (!__atomic_load_n(&emulator::the_fault.complete, __ATOMIC_ACQUIRE)) return NULL;
    *line = emulator::the_fault.line;
    return emulator::the_fault.text;
}
