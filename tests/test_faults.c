/* test_faults.c: memory runs out, disks fail, and signals strike, at every call: raftc ends with the
 * right status and message, and leaves each file as it was or whole, and nothing else.
 *
 * faults.c, loaded into raftc, makes the n-th call fail, once and from then on, for each n until
 * nothing is left to fail. Arguments: N tries only each N-th call; then
 * the name of a scenario, alone. */
#define _GNU_SOURCE /* posix_spawn_file_actions_addchdir_np */
#include "tests/cli_place.h"
#include "tests/faults.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>

enum { MOST_OUTPUTS = 5, MOST_SECONDS = 60 /* of one run */ };

#define STAND_IN SOURCE_ROOT "/tests/stand_in_compiler.sh"

typedef struct Scenario {
    const char *name;
    const char *command;
    const char *outputs[MOST_OUTPUTS]; /* files that it writes */
    bool llvm;                         /* needs it */
} Scenario;

static const Scenario scenarios[] = {
    {"graph", "raftc cli/tiny.yaml --target reference --emit ir -o made -q", {"made.ir"}, false},
    {"graph again",
     "raftc cli/block.ir --target reference --emit ir -o made -q --dump-ir form_kernels "
     "--dump-dir .",
     {"made.ir", "13-form_kernels.ir"},
     false},
    {"inspect", "raftc inspect data/weights/wrapped.pt --json", {NULL}, false},
    {"read .pt",
     "raftc convert data/weights/views_old.pt made.safetensors -q",
     {"made.safetensors"},
     false},
    {"write .pt", "raftc convert data/weights/views.safetensors made.pt -q", {"made.pt"}, false},
    {"run",
     "raftc run cli/block.ir --weights @fill @fill --target reference -q --output made.safetensors "
     "--dump-input input.safetensors",
     {"made.safetensors", "input.safetensors"},
     false},
    {"photographs",
     "raftc run cli/one-level.yaml --image 8x8 --weights @fill data/images/exif6.jpg "
     "data/images/grey16.png --target reference -q --output made.safetensors",
     {"made.safetensors"},
     false},
    {"object", "raftc cli/block.ir --emit obj -o made -q", {"made.o"}, true},
    {"library",
     "raftc cli/block.ir --emit lib,obj -o made -q --weights @fill",
     {"made.o", "made.so", "made.a", "made.h", "made.weights"},
     true},
};

/* What is to fail. */
typedef struct Fault {
    const char *name;
    FaultCall call;
    int error;
    int in_libraries;
    bool harmless; /* nothing is lost by it */
    bool signals;  /* strike there, each in turn */
} Fault;

typedef struct Bench {
    Place place;
    FaultReport *report;
    const char *preload, *report_path, *temporary;
    const char *good[MOST_OUTPUTS]; /* what the command writes */
    size_t good_size[MOST_OUTPUTS];
    pid_t process; /* that runs the command, again and again */
    int step;      /* each so many-th allocation fails */
} Bench;

static int count_outputs(const Scenario *scenario)
{
    int count = 0;
    while (count < MOST_OUTPUTS && scenario->outputs[count]) count++;
    return count;
}

/* ---- one run --------------------------------------------------------------------------------- */

static bool is_link(const char *name)
{
    static const char *const links[] = {".", "..", "models", "data", "cli", "cache"};
    for (size_t i = 0; i < ARRAY_SIZE(links); i++)
        if (!strcmp(name, links[i])) return true;
    return false;
}

static const char old_content[] = "as it was\n";

/* Lets the outputs be there from before, or not, and nothing else. */
static void set_outputs(Bench *bench, const Scenario *scenario, bool exist)
{
    DIR *folder = opendir(bench->place.folder);
    for (const struct dirent *entry; (entry = readdir(folder));)
        if (!is_link(entry->d_name)) remove(in_folder(&bench->place, entry->d_name));
    closedir(folder);
    for (int i = 0; i < count_outputs(scenario); i++) {
        const char *path = in_folder(&bench->place, scenario->outputs[i]);
        FILE *file = exist ? fopen(path, "w") : NULL;
        if (file && (fputs(old_content, file) < 0 || fclose(file) != 0)) fail_msg("%s", path);
    }
}

static void stop_command(Bench *bench)
{
    if (bench->process <= 0) return;
    kill(bench->process, SIGKILL);
    finish(bench->process);
    bench->process = 0;
}

static void start_command(Bench *bench, const Scenario *scenario)
{
    stop_command(bench); /* that of a test that failed */
    bench->process = start(
        &bench->place,
        arena_printf(&bench->place.arena,
                     "LD_PRELOAD=%s FAULTS_REPORT=%s TMPDIR=%s OMP_NUM_THREADS=1 "
                     "CC=" STAND_IN " AR=" STAND_IN " "
                     "ASAN_OPTIONS=verify_asan_link_order=0:allocator_may_return_null=1 %s",
                     bench->preload, bench->report_path, bench->temporary, scenario->command));
}

static int run_with(Bench *bench, const Scenario *scenario, const FaultOrder *order)
{
    FaultReport *report = bench->report;
    struct timespec limit;
    report->order = *order;
    report->count = report->failed = 0;
    sem_post(&report->begin);
    clock_gettime(CLOCK_REALTIME, &limit);
    limit.tv_sec += MOST_SECONDS;
    while (sem_timedwait(&report->ended, &limit) != 0)
        if (errno == ETIMEDOUT)
            fail_msg("%s: not ended after %d s (call %d)", scenario->name, MOST_SECONDS, order->at);
    int state = report->state;
    return WIFEXITED(state) ? WEXITSTATUS(state) : 128 + WTERMSIG(state);
}

static bool is_output(const Scenario *scenario, const char *name)
{
    for (int i = 0; i < count_outputs(scenario); i++)
        if (!strcmp(name, scenario->outputs[i])) return true;
    return false;
}

/* Each file is as it was or whole, and there is no other. */
static const char *files_fault(Bench *bench, const Scenario *scenario, bool existed, bool all_good)
{
    Arena *arena = &bench->place.arena;
    for (int i = 0; i < count_outputs(scenario); i++) {
        const char *path = in_folder(&bench->place, scenario->outputs[i]);
        size_t size = 0;
        bool exists = access(path, F_OK) == 0;
        const char *text = exists ? read_all(arena, path, &size) : NULL;
        bool good = exists && size == bench->good_size[i] && !memcmp(text, bench->good[i], size);
        bool old = existed ? exists && !strcmp(text, old_content) : !exists;
        if (!good && (all_good || !old))
            return arena_printf(arena, "%s is neither old nor new", scenario->outputs[i]);
    }
    DIR *folder = opendir(bench->place.folder);
    const char *left = NULL;
    for (const struct dirent *entry; (entry = readdir(folder));)
        if (!is_link(entry->d_name) && !is_output(scenario, entry->d_name))
            left = arena_printf(arena, "%s is left behind", entry->d_name);
    closedir(folder);
    folder = opendir(bench->temporary);
    for (const struct dirent *entry; (entry = readdir(folder));)
        if (entry->d_name[0] != '.')
            left = arena_printf(arena, "temporary %s is left behind", entry->d_name);
    closedir(folder);
    return left;
}

static const char *outcome_fault(Bench *bench, const Fault *fault, int exit)
{
    if (fault->signals)
        return exit == 128 + bench->report->order.signal ? NULL : "it does not end by the signal";
    if (fault->harmless) return exit == 0 ? NULL : "it does not go on";
    const char *errors = read_text(&bench->place.arena, bench->place.errors);
    if (fault->in_libraries) { /* some of them say that the file is at fault, or can do without */
        bool told = (exit == 1 || exit == 3) && strstr(errors, "error: ");
        return exit == 0 || told ? NULL : "it does not end well";
    }
    if (exit == 0 && bench->report->failed > 0) return "it goes on";
    const char *reason = fault->call == FAULT_MEMORY ? "memory" : strerror(fault->error);
    if (!strstr(errors, "error: ") || !strstr(errors, reason)) return "the message is wrong";
    return exit == 1 ? NULL : "the exit status is not 1";
}

/* ---- all of them ----------------------------------------------------------------------------- */

/* Returns how many calls there are without a fault. */
static int run_undisturbed(Bench *bench, const Scenario *scenario, const Fault *fault)
{
    set_outputs(bench, scenario, false);
    const FaultOrder none = {.call = fault->call, .in_libraries = fault->in_libraries};
    int exit = run_with(bench, scenario, &none);
    if (exit != 0)
        fail_msg("%s: exit status %d\n%s", scenario->command, exit,
                 read_text(&bench->place.arena, bench->place.errors));
    for (int i = 0; i < count_outputs(scenario); i++)
        bench->good[i] =
            read_all(&bench->place.arena, in_folder(&bench->place, scenario->outputs[i]),
                     &bench->good_size[i]);
    return bench->report->count;
}

/* Returns how many calls failed. */
static int try_call(Bench *bench, const Scenario *scenario, const Fault *fault, int at,
                    bool from_then_on, bool exist)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE};
    const FaultOrder order = {.call = fault->call,
                              .signal = fault->signals ? signals[(at + exist) % 5] : 0,
                              .at = at,
                              .from_then_on = from_then_on,
                              .error = fault->error,
                              .in_libraries = fault->in_libraries};
    set_outputs(bench, scenario, exist);
    int exit = run_with(bench, scenario, &order), failed = bench->report->failed;
    const char *wrong = outcome_fault(bench, fault, exit);
    if (!wrong) wrong = files_fault(bench, scenario, exist, exit == 0);
    if (wrong)
        fail_msg("%s: %s, call %d (at %#lx)%s: %s; exit status %d\n%s", scenario->name, fault->name,
                 at, (unsigned long)bench->report->place, from_then_on ? " and all after it" : "",
                 wrong, exit, read_text(&bench->place.arena, bench->place.errors));
    return failed;
}

static void try_fault(Bench *bench, const Scenario *scenario, const Fault *fault)
{
    int calls = run_undisturbed(bench, scenario, fault), tried = 0, failed = 0;
    Arena kept = bench->place.arena; /* what a run needs is not */
    /* Each memory can be another; files are few. Where a signal strikes shows in the files alone, and
     * that all memory fails from some call on rarely differs from failing at that call. */
    enum { SIGNALS_STEP = 7, FOREVER_STEP = 3 };
    bool memory = fault->call == FAULT_MEMORY;
    int step = !memory ? 1 : fault->signals ? SIGNALS_STEP * bench->step : bench->step;
    for (int at = 1; at <= calls; at += step) {
        bool once = fault->harmless || fault->signals || (memory && at / step % FOREVER_STEP != 0);
        for (int forever = 0; forever <= !once; forever++) {
            bench->place.arena = (Arena){0};
            failed += try_call(bench, scenario, fault, at, forever, tried++ / 2 % 2) > 0;
            arena_free(&bench->place.arena);
        }
    }
    bench->place.arena = kept;
    print_message("%s: %d calls, %d runs, of which %d met it\n", fault->name, calls, tried, failed);
}

static const Fault faults[] = {
    {"memory", FAULT_MEMORY, ENOMEM, 0, false, false},
    {"memory of libraries", FAULT_MEMORY, ENOMEM, 1, false, false},
    {"open: ENOSPC", FAULT_OPEN, ENOSPC, 0, false, false},
    {"write: ENOSPC", FAULT_WRITE, ENOSPC, 0, false, false},
    {"write: EIO", FAULT_WRITE, EIO, 0, false, false},
    {"fsync: EIO", FAULT_SYNC, EIO, 0, false, false},
    {"rename: EIO", FAULT_RENAME, EIO, 0, false, false},
    {"close: EIO", FAULT_CLOSE, EIO, 0, false, false},
    {"write: EINTR", FAULT_WRITE, EINTR, 0, true, false},
    {"write: short", FAULT_WRITE, 0, 0, true, false},
    {"fsync: EINTR", FAULT_SYNC, EINTR, 0, true, false},
    {"memory: signals", FAULT_MEMORY, .signals = true},
    {"open: signals", FAULT_OPEN, .signals = true},
    {"write: signals", FAULT_WRITE, .signals = true},
    {"fsync: signals", FAULT_SYNC, .signals = true},
    {"rename: signals", FAULT_RENAME, .signals = true},
    {"close: signals", FAULT_CLOSE, .signals = true},
};

static Bench bench;

static void run_scenario(void **state)
{
    const Scenario *scenario = *state;
    if (scenario->llvm && !bench.place.has_llvm) skip();
    start_command(&bench, scenario);
    for (size_t f = 0; f < ARRAY_SIZE(faults); f++) try_fault(&bench, scenario, &faults[f]);
    stop_command(&bench);
    set_outputs(&bench, scenario, false);
}

static void open_bench(void)
{
    /* In memory where that can be: each run syncs what it writes to the disk. */
    open_place_in(&bench.place, access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    bench.preload = FAULTS_LIBRARY;
    bench.report_path = arena_printf(&bench.place.arena, "%s/report", bench.place.root);
    bench.temporary = arena_printf(&bench.place.arena, "%s/temporary", bench.place.root);
    if (mkdir(bench.temporary, 0700) != 0) fail_msg("%s", bench.temporary);
    int file = open(bench.report_path, O_RDWR | O_CREAT, 0600);
    if (file < 0 || ftruncate(file, sizeof *bench.report) != 0) fail_msg("%s", bench.report_path);
    bench.report = mmap(NULL, sizeof *bench.report, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (bench.report == MAP_FAILED) fail_msg("%s", strerror(errno));
    if (sem_init(&bench.report->begin, 1, 0) != 0 || sem_init(&bench.report->ended, 1, 0) != 0)
        fail_msg("%s", strerror(errno));
}

int main(int argc, char **argv)
{
    static struct CMUnitTest tests[ARRAY_SIZE(scenarios)];
    size_t count = 0;
    setlinebuf(stdout);
    setrlimit(RLIMIT_CORE, &(struct rlimit){0}); /* SIGQUIT */
    bench.step = argc > 1 && atoi(argv[1]) > 1 ? atoi(argv[1]) : 1;
    open_bench();
    for (size_t i = 0; i < ARRAY_SIZE(scenarios); i++)
        if (argc < 3 || strcmp(argv[2], scenarios[i].name) == 0)
            tests[count++] = (struct CMUnitTest){scenarios[i].name, run_scenario, NULL, NULL,
                                                 (void *)&scenarios[i]};
    int failures = _cmocka_run_group_tests("faults", tests, count, NULL, NULL);
    stop_command(&bench);
    munmap(bench.report, sizeof *bench.report);
    close_place(&bench.place);
    return failures;
}
