/* test_threads.c: the threads of an instance, seen from outside: they sleep when there is nothing to do,
 * more of them than processors cost little, and they stay on the processors that the caller may use. */
#include "tests/shell_program.h"

#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double clock_of(clockid_t id)
{
    struct timespec now;
    clock_gettime(id, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void sleep_ms(long ms)
{
    const struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&time, NULL);
}

static RaftShell *open_shell(Values *v, int threads)
{
    make_values(v, 1);
    RaftShell *shell = create(&table, threads);
    assert_int_equal(set_all(shell, v), RAFT_OK);
    expect_run(shell, v, 1);
    return shell;
}

/* Processor time of all threads for so many runs, each followed by a pause. */
static double processor_time(RaftShell *shell, Values *v, int runs, long pause_ms)
{
    float logits[MOST_BATCH * CLASSES];
    double before = clock_of(CLOCK_PROCESS_CPUTIME_ID);
    for (int i = 0; i < runs; i++) {
        assert_int_equal(raft_shell_forward(shell, 1, v->image, logits), RAFT_OK);
        sleep_ms(pause_ms);
    }
    return clock_of(CLOCK_PROCESS_CPUTIME_ID) - before;
}

/* A run takes some microseconds; what is more than that is the spinning of idle threads, at most one
 * millisecond of each. */
static void test_idle_threads_sleep(void **state)
{
    enum { RUNS = 40, THREADS = 3 };
    Values v;
    (void)state;
    RaftShell *shell = open_shell(&v, THREADS);
    double each = processor_time(shell, &v, RUNS, 30) / RUNS;
    assert_true(each < 1e-3 * THREADS);
    sleep_ms(50);
    double before = clock_of(CLOCK_PROCESS_CPUTIME_ID);
    sleep_ms(300); /* long idle: nothing at all */
    assert_true(clock_of(CLOCK_PROCESS_CPUTIME_ID) - before < 2e-3);
    raft_shell_destroy(shell);
}

/* With far more threads than processors a run still ends soon: no thread spins while the one that it
 * waits for could run. */
static void test_more_threads_than_processors(void **state)
{
    enum { RUNS = 50 };
    Values v;
    (void)state;
    RaftShell *shell = open_shell(&v, 32);
    double start = clock_of(CLOCK_MONOTONIC);
    double processor = processor_time(shell, &v, RUNS, 0);
    double wall = clock_of(CLOCK_MONOTONIC) - start;
    assert_true(processor / RUNS < 20e-3);
    assert_true(wall / RUNS < 0.5); /* beside whatever else runs here */
    raft_shell_destroy(shell);
}

/* Processor time of the run's threads shows that they share the one processor that is allowed. */
static void test_affinity_is_respected(void **state)
{
    Values v;
    cpu_set_t before, one;
    (void)state;
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    int processor = sched_getcpu();
    CPU_ZERO(&one);
    CPU_SET(processor, &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    RaftShell *shell = open_shell(&v, 4);
    double wall = clock_of(CLOCK_MONOTONIC);
    double used = processor_time(shell, &v, 2000, 0);
    wall = clock_of(CLOCK_MONOTONIC) - wall;
    assert_true(used <= 1.02 * wall + 1e-3);
    const Pool *pool = &cpu_of(shell)->pool;
    assert_int_equal(pool->started, 3);
    for (int i = 0; i < pool->started; i++) {
        cpu_set_t set;
        assert_int_equal(pthread_getaffinity_np(pool->list[i].thread, sizeof set, &set), 0);
        assert_true(CPU_EQUAL(&set, &one));
    }
    raft_shell_destroy(shell);
    assert_int_equal(raft_shell_create(&table, NULL, &shell, NULL, 0), RAFT_OK);
    assert_int_equal(cpu_of(shell)->threads, 1);
    raft_shell_destroy(shell);
    assert_int_equal(sched_setaffinity(0, sizeof before, &before), 0);
}

/* The first units of a step end when all others are done: by the other thread, which then takes from the
 * share of the one that is late, step after step and run after run; never fewer than make a piece. */
enum { LATE_UNITS = 64, LATE_PIECE = 5 };
static atomic_int late_done, late_alone, late_small;

/* Until `done` is `enough`; after 5 seconds it counts that nobody came. */
static void wait_until(atomic_int *done, int enough, atomic_int *alone)
{
    const struct timespec moment = {.tv_nsec = 100000};
    for (int i = 0; atomic_load(done) < enough; i++) {
        if (i == 50000) {
            atomic_fetch_add(alone, 1);
            return;
        }
        nanosleep(&moment, NULL);
    }
}

/* An instance on two threads whose forward has these steps instead. */
static RaftShell *create_with_steps(const RaftStep *own, int count, int64_t chunk, Values *v)
{
    static RaftProgram program; /* it is looked at until the instance is gone */
    program = table;
    program.step = own;
    program.step_count = count;
    program.chunk = chunk;
    make_values(v, 1);
    RaftShell *shell = create(&program, 2);
    assert_int_equal(set_all(shell, v), RAFT_OK);
    return shell;
}

static void kernel_late(float *const *arguments, int64_t images, int64_t begin, int64_t end,
                        void *scratch)
{
    (void)arguments, (void)images, (void)scratch;
    int mine = (int)(end - begin), before = atomic_load(&late_done) / LATE_UNITS * LATE_UNITS;
    if (mine < LATE_PIECE && end % (LATE_UNITS / 2) != 0) atomic_fetch_add(&late_small, 1);
    if (begin == 0) wait_until(&late_done, before + LATE_UNITS - mine, &late_alone);
    atomic_fetch_add(&late_done, mine);
}

static void test_late_thread_is_helped(void **state)
{
    enum { STEPS = 3 };
    const RaftStep late = {kernel_late, "late", LATE_UNITS, 0, LATE_PIECE, 0, 1, FORWARD, 0, NULL};
    const RaftStep three[STEPS] = {late, late, late};
    Values v;
    float logits[MOST_BATCH * CLASSES];
    (void)state;
    RaftShell *shell = create_with_steps(three, STEPS, table.chunk, &v);
    for (int run = 1; run <= 4; run++) {
        assert_int_equal(raft_shell_forward(shell, 1, v.image, logits), RAFT_OK);
        assert_int_equal(atomic_load(&late_done), run * STEPS * LATE_UNITS);
    }
    assert_int_equal(atomic_load(&late_alone), 0);
    assert_int_equal(atomic_load(&late_small), 0);
    raft_shell_destroy(shell);
}

/* A thread goes on to a step that waits for nothing while another is still at the one before; the third waits for both, in every
 * chunk. */
static atomic_int first_done, second_done, third_early, never_beside;

static void kernel_first(float *const *arguments, int64_t images, int64_t begin, int64_t end,
                         void *scratch)
{
    (void)arguments, (void)images, (void)scratch;
    int before = atomic_load(&first_done) / 2 * 2;
    if (begin == 0) wait_until(&second_done, before + 1, &never_beside);
    atomic_fetch_add(&first_done, (int)(end - begin));
}

static void kernel_second(float *const *arguments, int64_t images, int64_t begin, int64_t end,
                          void *scratch)
{
    (void)arguments, (void)images, (void)scratch;
    atomic_fetch_add(&second_done, (int)(end - begin));
}

static void kernel_third(float *const *arguments, int64_t images, int64_t begin, int64_t end,
                         void *scratch)
{
    (void)arguments, (void)images, (void)scratch, (void)begin, (void)end;
    int first = atomic_load(&first_done), second = atomic_load(&second_done);
    if (first % 2 != 0 || first != second) atomic_fetch_add(&third_early, 1);
}

static void test_steps_run_beside_each_other(void **state)
{
    const RaftStep three[] = {
        {kernel_first, "first", 2, 0, 1, 0, 1, FORWARD, 0, NULL},
        {kernel_second, "second", 2, 0, 1, 0, 0, FORWARD, 0, NULL},
        {kernel_third, "third", 2, 0, 1, 0, 1, FORWARD, 0, NULL},
    };
    Values v;
    float logits[MOST_BATCH * CLASSES];
    (void)state;
    RaftShell *shell = create_with_steps(three, ARRAY_SIZE(three), 1, &v);
    for (int run = 1; run <= 4; run++) {
        assert_int_equal(raft_shell_forward(shell, 2, v.image, logits), RAFT_OK);
        assert_int_equal(atomic_load(&first_done), 4 * run);
        assert_int_equal(atomic_load(&second_done), 4 * run);
    }
    assert_int_equal(atomic_load(&third_early), 0);
    assert_int_equal(atomic_load(&never_beside), 0);
    raft_shell_destroy(shell);
}

/* Sums over the images that come in chunks: one kernel adds to what is there where it is told to, what the other
 * writes is added when it is done. */
static void kernel_total(float *const *argument, int64_t images, int64_t begin, int64_t end,
                         void *scratch)
{
    (void)scratch;
    for (int64_t i = begin; i < end; i++) {
        float sum = argument[2] ? argument[1][i] : 0;
        for (int64_t b = 0; b < images; b++) sum += argument[0][b * PIXELS + i];
        argument[1][i] = sum;
    }
}

static void test_sums_of_chunks(void **state)
{
    const RaftBuffer buffer[] = {
        {RAFT_BUFFER_INPUT, 0}, {RAFT_BUFFER_OUTPUT, 0}, {RAFT_BUFFER_OUTPUT, 1}};
    const RaftStep two[] = {
        {kernel_total, "goes on", PIXELS, 0, 1, 1, 1, FORWARD, ARGUMENTS(0, 1)},
        {kernel_total, "is added", PIXELS, 0, 1, 0, 1, FORWARD, ARGUMENTS(0, 2)},
    };
    const RaftTensorInfo total[] = {{"goes_on", 1, {PIXELS}, PIXELS},
                                    {"is_added", 1, {PIXELS}, PIXELS}};
    const RaftProgram program = {.device = &raft_cpu,
                                 .name = "total",
                                 .buffer_count = ARRAY_SIZE(buffer),
                                 .buffer = buffer,
                                 .step_count = ARRAY_SIZE(two),
                                 .step = two,
                                 .input_count = ARRAY_SIZE(inputs),
                                 .input = inputs,
                                 .output_count = ARRAY_SIZE(total),
                                 .output = total,
                                 .fixed = (const int[]){1, 1},
                                 .forward_entry = FORWARD,
                                 .chunk = 2};
    (void)state;
    for (int threads = 1; threads <= 3; threads++) {
        RaftShell *shell = create(&program, threads);
        for (int64_t batch = 1; batch <= MOST_BATCH; batch++) {
            float image[MOST_BATCH * PIXELS], sums[2][PIXELS], wanted[PIXELS] = {0};
            const float *given[] = {image};
            float *results[] = {sums[0], sums[1]};
            memset(sums, 0xff, sizeof sums); /* not to be read by the first chunk */
            for (int64_t i = 0; i < batch * PIXELS; i++) {
                image[i] = (float)(i % 7);
                wanted[i % PIXELS] += image[i];
            }
            assert_int_equal(raft_shell_run(shell, FORWARD, batch, given, results), RAFT_OK);
            for (int k = 0; k < 2; k++) assert_memory_equal(sums[k], wanted, sizeof wanted);
        }
        raft_shell_destroy(shell);
    }
}

/* As many as asked for, whatever comes between. */
static void test_thread_count_is_respected(void **state)
{
    (void)state;
    for (int threads = 1; threads <= 5; threads++) {
        Values v;
        RaftShell *shell = open_shell(&v, threads);
        assert_int_equal(cpu_of(shell)->threads, threads);
        assert_int_equal(cpu_of(shell)->pool.started, threads - 1);
        raft_shell_destroy(shell);
    }
}

/* A forked process has none of the threads, and does all the work itself. */
static void test_forked_process_runs(void **state)
{
    Values v;
    int status;
    (void)state;
    RaftShell *shell = open_shell(&v, 3);
    pid_t child = fork();
    if (child == 0) {
        float logits[MOST_BATCH * CLASSES];
        alarm(20);
        bool good = raft_shell_forward(shell, MOST_BATCH, v.image, logits) == RAFT_OK &&
                    memcmp(logits, v.logits, sizeof logits) == 0;
        raft_shell_destroy(shell);
        _exit(good ? 0 : 1);
    }
    assert_true(child > 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    expect_run(shell, &v, 2);
    raft_shell_destroy(shell);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_idle_threads_sleep),
        cmocka_unit_test(test_more_threads_than_processors),
        cmocka_unit_test(test_affinity_is_respected),
        cmocka_unit_test(test_late_thread_is_helped),
        cmocka_unit_test(test_steps_run_beside_each_other),
        cmocka_unit_test(test_sums_of_chunks),
        cmocka_unit_test(test_thread_count_is_respected),
        cmocka_unit_test(test_forked_process_runs),
    };
    return cmocka_run_group_tests_name("threads", tests, NULL, NULL);
}
