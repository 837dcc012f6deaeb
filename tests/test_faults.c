/* test_faults.c: memory runs out, and disks fail, at every call: raftc ends with the right status
 * and message, and leaves each file as it was or whole.
 *
 * faults.c, loaded into raftc, makes the n-th call fail, once or from then on, for each n until
 * nothing is left to fail. The first argument, a number N, tries only each N-th call. */
#define _GNU_SOURCE /* posix_spawn_file_actions_addchdir_np */
#include "tests/cli_place.h"
#include "tests/faults.h"

#include <sys/mman.h>

enum { MOST_OUTPUTS = 5 };

typedef struct Scenario {
    const char *name;
    const char *command;
    const char *outputs[MOST_OUTPUTS]; /* files that it writes */
    int llvm; /* 0: goes without. Takes long: only each so many-th call fails */
} Scenario;

static const Scenario scenarios[] = {
    {"graph", "raftc cli/tiny.yaml --target reference --emit ir -o made -q", {"made.ir"}, 0},
    {"graph again",
     "raftc cli/block.ir --target reference --emit ir -o made -q --dump-ir form_kernels "
     "--dump-dir .",
     {"made.ir", "07-form_kernels.ir"},
     0},
    {"inspect", "raftc inspect data/weights/wrapped.pt --json", {NULL}, 0},
    {"read .pt",
     "raftc convert data/weights/views_old.pt made.safetensors -q",
     {"made.safetensors"},
     0},
    {"write .pt", "raftc convert data/weights/views.safetensors made.pt -q", {"made.pt"}, 0},
    {"run",
     "raftc run cli/block.ir --weights @fill @fill --target reference -q --output made.safetensors "
     "--dump-input input.safetensors",
     {"made.safetensors", "input.safetensors"},
     0},
    {"photographs",
     "raftc run cli/one-level.yaml --image 8x8 --weights @fill data/images/exif6.jpg "
     "data/images/grey16.png --target reference -q --output made.safetensors",
     {"made.safetensors"},
     0},
    {"object", "raftc cli/block.ir --emit obj -o made -q", {"made.o"}, 1},
    {"library",
     "raftc cli/block.ir --emit lib,obj -o made -q --weights @fill",
     {"made.o", "made.so", "made.a", "made.h", "made.weights"},
     5},
};

/* What is to fail. */
typedef struct Fault {
    const char *name;
    FaultCall call;
    int error;
    int in_libraries;
    bool harmless; /* nothing is lost by it */
} Fault;

typedef struct Bench {
    Place place;
    FaultReport *report;
    const char *preload, *report_path, *temporary;
    const char *good[MOST_OUTPUTS]; /* what the command writes */
    size_t good_size[MOST_OUTPUTS];
    int step;
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

static int run_with(Bench *bench, const Scenario *scenario, const FaultReport *wanted)
{
    *bench->report = *wanted;
    return run(&bench->place,
               arena_printf(&bench->place.arena,
                            "LD_PRELOAD=%s FAULTS_REPORT=%s TMPDIR=%s OMP_NUM_THREADS=1 "
                            "ASAN_OPTIONS=verify_asan_link_order=0:allocator_may_return_null=1 %s",
                            bench->preload, bench->report_path, bench->temporary,
                            scenario->command));
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
    const FaultReport none = {.call = fault->call, .in_libraries = fault->in_libraries};
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

static void try_fault(Bench *bench, const Scenario *scenario, const Fault *fault)
{
    int calls = run_undisturbed(bench, scenario, fault), failed = 0, step = bench->step;
    if (scenario->llvm) step *= scenario->llvm;
    for (int at = 1; at <= calls; at += step) {
        bool exist = at / step % 2;
        const FaultReport wanted = {.call = fault->call,
                                    .at = at,
                                    .from_then_on = !fault->harmless && at / step % 4 > 1,
                                    .error = fault->error,
                                    .in_libraries = fault->in_libraries};
        set_outputs(bench, scenario, exist);
        int exit = run_with(bench, scenario, &wanted);
        failed += bench->report->failed > 0;
        const char *wrong = outcome_fault(bench, fault, exit);
        if (!wrong) wrong = files_fault(bench, scenario, exist, exit == 0);
        if (wrong)
            fail_msg("%s: %s, call %d of %d%s: %s; exit status %d\n%s", scenario->name, fault->name,
                     at, calls, wanted.from_then_on ? " and all after it" : "", wrong, exit,
                     read_text(&bench->place.arena, bench->place.errors));
    }
    set_outputs(bench, scenario, false);
    print_message("%s: %s: %d of %d calls failed\n", scenario->name, fault->name, failed, calls);
}

static void try_faults(Bench *bench, const Fault *faults, size_t count)
{
    for (size_t s = 0; s < ARRAY_SIZE(scenarios); s++) {
        if (scenarios[s].llvm && !bench->place.has_llvm) continue;
        for (size_t f = 0; f < count; f++) try_fault(bench, &scenarios[s], &faults[f]);
    }
}

static void memory_runs_out(void **state)
{
    static const Fault faults[] = {{"memory", FAULT_MEMORY, ENOMEM, 0, false},
                                   {"memory of libraries", FAULT_MEMORY, ENOMEM, 1, false}};
    try_faults(*state, faults, ARRAY_SIZE(faults));
}

static void disks_fail(void **state)
{
    static const Fault faults[] = {
        {"open: ENOSPC", FAULT_OPEN, ENOSPC, 0, false},
        {"write: ENOSPC", FAULT_WRITE, ENOSPC, 0, false},
        {"write: EIO", FAULT_WRITE, EIO, 0, false},
        {"fsync: EIO", FAULT_SYNC, EIO, 0, false},
        {"rename: EIO", FAULT_RENAME, EIO, 0, false},
        {"close: EIO", FAULT_CLOSE, EIO, 0, false},
    };
    try_faults(*state, faults, ARRAY_SIZE(faults));
}

static void writes_are_interrupted(void **state)
{
    static const Fault faults[] = {{"write: EINTR", FAULT_WRITE, EINTR, 0, true},
                                   {"write: short", FAULT_WRITE, 0, 0, true},
                                   {"fsync: EINTR", FAULT_SYNC, EINTR, 0, true}};
    try_faults(*state, faults, ARRAY_SIZE(faults));
}

static void open_bench(Bench *bench)
{
    open_place(&bench->place);
    bench->preload = FAULTS_LIBRARY;
    bench->report_path = arena_printf(&bench->place.arena, "%s/report", bench->place.root);
    bench->temporary = arena_printf(&bench->place.arena, "%s/temporary", bench->place.root);
    if (mkdir(bench->temporary, 0700) != 0) fail_msg("%s", bench->temporary);
    int file = open(bench->report_path, O_RDWR | O_CREAT, 0600);
    if (file < 0 || ftruncate(file, sizeof *bench->report) != 0) fail_msg("%s", bench->report_path);
    bench->report = mmap(NULL, sizeof *bench->report, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (bench->report == MAP_FAILED) fail_msg("%s", strerror(errno));
}

int main(int argc, char **argv)
{
    Bench bench = {.step = argc > 1 ? atoi(argv[1]) : 1};
    if (bench.step < 1) bench.step = 1;
    open_bench(&bench);
    struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_runs_out),
        cmocka_unit_test(disks_fail),
        cmocka_unit_test(writes_are_interrupted),
    };
    for (size_t i = 0; i < ARRAY_SIZE(tests); i++) tests[i].initial_state = &bench;
    int failures = cmocka_run_group_tests(tests, NULL, NULL);
    munmap(bench.report, sizeof *bench.report);
    close_place(&bench.place);
    return failures;
}
