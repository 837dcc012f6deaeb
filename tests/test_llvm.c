/* test_llvm.c: what the LLVM backend writes: objects that need nothing of others, product loops
 * without spills, the same bytes every time, each kernel once, and messages where it cannot.
 * test_jit.c runs its code.
 */
#include <pthread.h>
#include <setjmp.h>
#include <spawn.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "backends/backend.h"
#include "tests/compile.h"

extern char **environ;

typedef struct Compiled {
    const Plan *plan;
    CpuCode *code;
} Compiled;

typedef struct Bytes {
    const char *data;
    size_t size;
} Bytes;

/* All passes for the machine of the options, and its code; llvm_free it. */
static Compiled compile(Arena *arena, const Graph *graph, const CpuOptions *options)
{
    Diag diag = diag_new(arena);
    Target target;
    Compiled c;
    if (!llvm_target(options, &target, &diag)) compile_failed(&diag, graph->name);
    c.plan = plan_memory(arena, compile_passes(arena, graph, &target, NULL));
    c.code = llvm_compile(arena, c.plan, options, &diag);
    if (!c.code) compile_failed(&diag, graph->name);
    return c;
}

static Bytes write_code(Arena *arena, CpuCode *code, CodeKind kind)
{
    Diag diag = diag_new(arena);
    Bytes bytes;
    if (!llvm_write(code, kind, arena, &bytes.data, &bytes.size, &diag))
        compile_failed(&diag, "the code");
    return bytes;
}

static Bytes compile_to(Arena *arena, const Graph *graph, const CpuOptions *options, CodeKind kind)
{
    Compiled c = compile(arena, graph, options);
    Bytes bytes = write_code(arena, c.code, kind);
    llvm_free(c.code);
    return bytes;
}

static const Graph *small_model(Arena *arena)
{
    return build_graph(arena, compile_published(arena, "raftmlp-s", 224, 224));
}

static const Graph *tiny_model(Arena *arena, int index)
{
    return build_graph(arena, compile_tiny(arena, index, 0, 0));
}

/* ---- two at once ---------------------------------------------------------------------------- */

/* One compilation in a thread of its own. */
typedef struct Job {
    Arena arena;
    int model;
    CpuOptions options;
    Bytes object;
} Job;

static void *run_job(void *argument)
{
    Job *job = argument;
    const Graph *graph = tiny_model(&job->arena, job->model);
    job->object = compile_to(&job->arena, graph, &job->options, CODE_OBJECT);
    return NULL;
}

static void expect_same(Bytes a, Bytes b)
{
    assert_int_equal(a.size, b.size);
    assert_memory_equal(a.data, b.data, a.size);
}

/* Compilations in threads give the bytes that they give one after the other. (The first test: the
 * first use of LLVM is in two threads at once.) */
static void test_threads(void **state)
{
    (void)state;
    enum { JOBS = 4 };
    if (!llvm_available()) skip();
    Job jobs[2 * JOBS] = {0};
    pthread_t threads[JOBS];
    for (int i = 0; i < 2 * JOBS; i++) {
        jobs[i].model = i % JOBS;
        if (jobs[i].model == 2) jobs[i].options.triple = "aarch64-linux-gnu";
    }
    for (int i = 0; i < JOBS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, run_job, &jobs[i]), 0);
    for (int i = 0; i < JOBS; i++) pthread_join(threads[i], NULL);
    for (int i = JOBS; i < 2 * JOBS; i++) run_job(&jobs[i]);
    for (int i = 0; i < JOBS; i++) expect_same(jobs[i].object, jobs[JOBS + i].object);
    for (int i = 0; i < 2 * JOBS; i++) arena_free(&jobs[i].arena);
}

/* Nothing of one compilation is left for the next, and writing does not change what is written. */
static void test_same_bytes(void **state)
{
    (void)state;
    if (!llvm_available()) skip();
    Arena arena = {0};
    const CpuOptions host = {0};
    for (CodeKind kind = CODE_IR; kind <= CODE_OBJECT; kind++) {
        Compiled c = compile(&arena, tiny_model(&arena, 1), &host);
        Bytes first = write_code(&arena, c.code, kind);
        expect_same(first, write_code(&arena, c.code, kind));
        llvm_free(c.code);
        compile_to(&arena, tiny_model(&arena, 0), &host, kind);
        expect_same(first, compile_to(&arena, tiny_model(&arena, 1), &host, kind));
    }
    arena_free(&arena);
}

/* ---- symbols -------------------------------------------------------------------------------- */

/* What `nm -P OPTION` prints for an object. */
static const char *run_nm(Arena *arena, char *option, Bytes object)
{
    char object_path[] = "/tmp/test_llvm_XXXXXX", output_path[] = "/tmp/test_llvm_XXXXXX";
    int object_file = mkstemp(object_path), output_file = mkstemp(output_path);
    assert_true(object_file >= 0 && output_file >= 0);
    assert_int_equal(write(object_file, object.data, object.size), object.size);
    close(object_file);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, output_file, STDOUT_FILENO);
    char *arguments[] = {"nm", "-P", option, object_path, NULL};
    pid_t child;
    int status = -1, failed = posix_spawnp(&child, "nm", &actions, NULL, arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (!failed) waitpid(child, &status, 0);
    close(output_file);
    Diag diag = diag_new(arena);
    const Source *output = diag_read_source(&diag, output_path, 1 << 20);
    unlink(object_path);
    unlink(output_path);
    if (failed || status != 0 || !output) fail_msg("nm %s: status %d", option, status);
    return output->text;
}

/* C's memory functions and what becomes an instruction on most machines. */
static bool is_allowed(const char *symbol, size_t length)
{
    static const char *const allowed[] = {"memcpy", "memset", "memmove", "fmaf", "sqrtf"};
    for (size_t i = 0; i < ARRAY_SIZE(allowed); i++)
        if (strlen(allowed[i]) == length && memcmp(allowed[i], symbol, length) == 0) return true;
    return false;
}

static void check_symbols(const char *machine, const CpuOptions *options)
{
    Arena arena = {0};
    Compiled c = compile(&arena, small_model(&arena), options);
    Bytes object = write_code(&arena, c.code, CODE_OBJECT);
    const char *line = run_nm(&arena, "-u", object);
    for (size_t length; *line; line += length + (line[length] == '\n')) {
        length = strcspn(line, "\n");
        if (!is_allowed(line, strcspn(line, " ")))
            fail_msg("code for %s wants %.*s", machine, (int)length, line);
    }
    const char *defined = run_nm(&arena, "--defined-only", object);
    for (int s = 0; s < c.plan->step_count; s++)
        if (!strstr(defined, arena_printf(&arena, "%s T ", llvm_steps(c.code)[s].symbol)))
            fail_msg("code for %s lacks %s", machine, llvm_steps(c.code)[s].symbol);
    llvm_free(c.code);
    arena_free(&arena);
}

/* Objects for this machine and others link with no library at all, or little more than that. */
static void test_symbols(void **state)
{
    (void)state;
    if (!llvm_available()) skip();
    check_symbols("this machine", &(CpuOptions){0});
    check_symbols("x86-64", &(CpuOptions){.triple = "x86_64-linux-gnu", .cpu = "x86-64"});
    check_symbols("x86-64-v3", &(CpuOptions){.triple = "x86_64-linux-gnu", .cpu = "x86-64-v3"});
    check_symbols("x86-64-v4", &(CpuOptions){.triple = "x86_64-linux-gnu", .cpu = "x86-64-v4"});
    check_symbols("aarch64", &(CpuOptions){.triple = "aarch64-linux-gnu"});
}

/* With AddressSanitizer it wants functions of that. The test above sees such things. */
static void test_sanitized_symbols(void **state)
{
    (void)state;
    if (!llvm_available()) skip();
    Arena arena = {0};
    const CpuOptions options = {.sanitize_address = true};
    Bytes object = compile_to(&arena, tiny_model(&arena, 0), &options, CODE_OBJECT);
    assert_non_null(strstr(run_nm(&arena, "-u", object), "__asan_report_"));
    arena_free(&arena);
}

/* Kernels that differ in their buffers alone are one function. */
static void test_each_kernel_once(void **state)
{
    (void)state;
    if (!llvm_available()) skip();
    Arena arena = {0};
    /* Not for this machine: what is one kernel depends on its caches. */
    const CpuOptions options = {.triple = "x86_64-linux-gnu", .cpu = "x86-64-v4"};
    Compiled c = compile(&arena, small_model(&arena), &options);
    const StepCode *steps = llvm_steps(c.code);
    int forward_mlps = 0, mlp_functions = 0, apart = 0, functions_apart = 0;
    for (int s = 0; s < c.plan->step_count; s++) {
        int same = 0;
        while (strcmp(steps[same].symbol, steps[s].symbol) != 0) same++;
        assert_int_equal(steps[same].units, steps[s].units);
        assert_true(steps[same].batched == steps[s].batched);
        if (strstr(steps[s].symbol, "norm_linear_gelu_linear_add")) {
            forward_mlps++;
            mlp_functions += same == s;
        } else if (strstr(steps[s].symbol, "linear_gelu") ||
                   strstr(steps[s].symbol, "linear_add")) {
            apart++;
            functions_apart += same == s;
        }
    }
    /* 12 layers of three blocks; but one function for each block of each of the 4 levels. The last level has two layers, and
     * its MLPs of channels are two kernels each, beside the LayerNorm. */
    assert_int_equal(forward_mlps, 34);
    assert_int_equal(mlp_functions, 11);
    assert_int_equal(apart, 4);
    assert_int_equal(functions_apart, 2);
    llvm_free(c.code);
    arena_free(&arena);
}

static int count_twins(Arena *arena, const Graph *graph)
{
    Bytes text = compile_to(arena, graph, &(CpuOptions){0}, CODE_IR);
    int count = 0;
    for (const char *at = text.data; (at = strstr(at, "define internal")); at++) count++;
    return count;
}

static int count_model_twins(int height, int width)
{
    Arena arena = {0};
    int count = count_twins(
        &arena, build_graph(&arena, compile_published(&arena, "raftmlp-s", height, width)));
    arena_free(&arena);
    return count;
}

/* The same strides, but vectors run along raft in the first kernel, and along a dimension of one in the second: its
 * sums have another order. */
static const char other_lanes[] =
    "graph g {\n"
    "input @x : f32[b, h 2, w 2, c 6]\n"
    "kernel for (b, h 2, w 2) {\n"
    "%0 = read @x [b, h, w, raft + group] : f32[b, h 2, w 2, raft 6, group 1]\n"
    "%1 = normalise %0 over (raft, group) eps 1e-05 : f32[b, h 2, w 2, raft 6, group 1]\n"
    "%2 = write %1 [b, h, w, raft + group] : f32[b, h 2, w 2, c 6]\n"
    "}\n"
    "kernel for (b, h 2, w 2) {\n"
    "%3 = read %2 [b, h, w, raft + group] : f32[b, h 2, w 2, raft 6, group 1]\n"
    "%4 = normalise %3 over (raft, group) eps 1e-05 : f32[b, h 2, w 2, raft 6, group 1]\n"
    "%5 = write %4 [b, h, w, raft, group] : f32[b, h 2, w 2, raft 6, group 1]\n"
    "}\n"
    "output features.x = %2\n"
    "output forward.y = %5\n"
    "}\n";

static void test_twins(void **state)
{
    (void)state;
    if (!llvm_available()) skip();
    assert_int_equal(count_model_twins(224, 224), 4);
    assert_int_equal(count_model_twins(224, 192), 4);
}

static void test_other_lanes(void **state)
{
    (void)state;
    if (!llvm_available()) skip();
    Arena arena = {0};
    assert_int_equal(count_twins(&arena, compile_text(&arena, other_lanes)), 0);
    arena_free(&arena);
}

/* ---- product loops -------------------------------------------------------------------------- */

/* An innermost loop of the assembly, by the name of its first block. */
typedef struct InnerLoop {
    char header[24];
    int products, spills, gathered; /* gathered: numbers put into a vector one by one */
    int scalars;                    /* instructions that count and compare, or work out addresses */
    int loading;   /* products that load a number for all lanes, from an address in one register */
    int index;     /* scalars that find lines which are fetched in each turn */
    bool guards;   /* has it a block that only fetches, in few turns? Its scalars are not counted */
    uint64_t sums; /* the registers that products are added to, by number */
} InnerLoop;

typedef struct InnerLoops {
    InnerLoop *loop;
    uint32_t count, capacity;
} InnerLoops;

static InnerLoop *find_loop(InnerLoops *loops, const char *header)
{
    for (uint32_t i = 0; i < loops->count; i++)
        if (strcmp(loops->loop[i].header, header) == 0) return &loops->loop[i];
    return NULL;
}

/* The BB13_25 that stands after `before` in the line; false: there is none. */
static bool block_name(const char *line, const char *before, char name[24])
{
    const char *at = strstr(line, before);
    return at && sscanf(at + strlen(before), "BB%20[0-9_]", name) == 1;
}

/* LLVM's comments tell which loop a block is in, and which of them is innermost:
 *     .LBB13_25:                              # %body
 *                                             #   Parent Loop BB13_20 Depth=1
 *                                             # =>  This Inner Loop Header: Depth=2
 *     # %bb.26:                               #   in Loop: Header=BB13_25 Depth=2
 */
static void read_line(const char *line, char block[24], char loop[24])
{
    bool labelled = strncmp(line, ".L", 2) == 0 && block_name(line, ".L", block);
    bool starts_block = labelled || strncmp(line, "# %bb.", 6) == 0;
    bool starts_function = line[0] != '.' && line[0] != '#' && line[0] != '\t' && line[0] != ' ';
    if (starts_block || starts_function) loop[0] = '\0';
    if (strstr(line, "Loop Header: Depth=") && strstr(line, "This ")) strcpy(loop, block);
    block_name(line, "in Loop: Header=", loop);
}

/* Is it a multiply-add? Its last operand is the sum. */
static bool read_product(InnerLoop *loop, const char *line)
{
    const char *sum = strrchr(line, '%');
    unsigned number;
    if (strncmp(line, "\tvfmadd", 7) != 0 || !sum || sscanf(sum, "%%%*1[xyz]mm%u", &number) != 1)
        return false;
    loop->sums |= 1ull << number;
    loop->loading += strstr(line, "){1to16}") && !strstr(line, ",%");
    return true;
}

/* What was read of a block of an innermost loop; of its scalars so many stand right before a line that is fetched. */
typedef struct InnerBlock {
    int products, scalars, together, index;
    bool fetches;
} InnerBlock;

static void read_scalar(InnerBlock *block, const char *line)
{
    if (line[0] != '\t' || strchr(".#", line[1])) return;
    if (strstr(line, "prefetch")) {
        block->fetches = true;
        block->index += block->together;
    }
    bool scalar = line[1] != 'v' && !strstr(line, "prefetch");
    block->scalars += scalar;
    block->together = scalar ? block->together + 1 : 0;
}

static void end_block(InnerLoops *loops, const char *loop, InnerBlock *block)
{
    InnerLoop *inner = find_loop(loops, loop);
    if (inner) {
        bool guarded = block->fetches && block->products == 0;
        inner->guards |= guarded;
        inner->index += guarded || !block->fetches ? 0 : block->index > 1 ? block->index : 1;
        inner->products += block->products;
        inner->scalars += guarded ? 0 : block->scalars;
    }
    *block = (InnerBlock){0};
}

static InnerLoops find_inner_loops(Arena *arena, const char *assembly)
{
    InnerLoops loops = {0};
    InnerBlock in = {0};
    for (int pass = 0; pass < 2; pass++) {
        char block[24] = "", loop[24] = "";
        char *text = arena_strdup(arena, assembly), *rest = NULL;
        for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
            if (strncmp(line, ".L", 2) == 0 || strncmp(line, "# %bb.", 6) == 0)
                end_block(&loops, loop, &in);
            read_line(line, block, loop);
            if (pass == 0 && strstr(line, "This Inner Loop Header"))
                strcpy(ARENA_PUSH(arena, loops.loop, loops.count, loops.capacity)->header, block);
            InnerLoop *inner = pass == 1 ? find_loop(&loops, loop) : NULL;
            if (!inner) continue;
            in.products += read_product(inner, line);
            inner->spills += strstr(line, " Spill") || strstr(line, " Reload");
            inner->gathered += strstr(line, "\tvinsertps") != NULL;
            read_scalar(&in, line);
        }
    }
    return loops;
}

static void check_product_loops(const char *model, const char *cpu, int registers)
{
    Arena arena = {0};
    const CpuOptions options = {.triple = "x86_64-linux-gnu", .cpu = cpu};
    const Graph *graph = build_graph(&arena, compile_published(&arena, model, 224, 224));
    Bytes assembly = compile_to(&arena, graph, &options, CODE_ASSEMBLY);
    if (!strstr(assembly.data, " Spill")) fail_msg("the assembly for %s has no comments", cpu);
    InnerLoops loops = find_inner_loops(&arena, assembly.data);
    enum { FULL_TURN = 40, FEW = 6, INDEX = 2, GUARD = 3 }; /* a count, a comparison, a branch */
    int products = 0, most = 0, loading = 0, scalars = 0;
    for (uint32_t i = 0; i < loops.count; i++) {
        const InnerLoop *loop = &loops.loop[i];
        if (loop->products < 2) continue;
        products++;
        int sums = __builtin_popcountll(loop->sums);
        if (sums > most) most = sums;
        loading += loop->loading > 0;
        /* Lines that are fetched are counted for themselves, with an index, and what guards them. */
        int index = loop->index < INDEX ? loop->index : INDEX;
        int beside = loop->scalars - index - (loop->guards ? GUARD : 0);
        if (loop->products > FULL_TURN && beside > scalars) scalars = beside;
        if (loop->spills > 0)
            fail_msg("%s for %s: %d spills and reloads among the %d products of the loop at BB%s",
                     model, cpu, loop->spills, loop->products, loop->header);
        if (loop->gathered > 0)
            fail_msg("%s for %s: %d numbers gathered for the %d products of the loop at BB%s",
                     model, cpu, loop->gathered, loop->products, loop->header);
    }
    print_message(
        "%s for %s: %d loops of up to %d sums, %d of products that load numbers, %d scalars\n",
        model, cpu, products, most, loading, scalars);
    assert_true(products >= 24); /* two for each residual MLP */
    assert_true(registers == 16 ? loading == 0 : loading > 0);
    assert_true(most >= registers * 3 / 4);
    assert_true(scalars <= FEW);
    arena_free(&arena);
}

/* No innermost loop with products spills: sums stay in registers, and fill most of them; so do the
 * values of a gelu. Beside products and loads there is little in a turn. */
static void test_product_loops(void **state)
{
    (void)state;
    if (!llvm_available()) skip();
    static const char *const models[] = {"raftmlp-s", "raftmlp-m", "raftmlp-l"};
    for (size_t i = 0; i < ARRAY_SIZE(models); i++) {
        check_product_loops(models[i], "x86-64-v3", 16);
        check_product_loops(models[i], "x86-64-v4", 32);
    }
}

/* The 48 sums of a unit, three vectors or six, stay vectors from turn to turn. */
static void test_sum_loops(void **state)
{
    (void)state;
    if (!llvm_available()) skip();
    static const char *const cpus[] = {"x86-64-v3", "x86-64-v4"};
    for (size_t i = 0; i < ARRAY_SIZE(cpus); i++) {
        Arena arena = {0};
        const CpuOptions options = {.triple = "x86_64-linux-gnu", .cpu = cpus[i]};
        const Graph *graph = compile_text(
            &arena, "graph g {\ninput @x : f32[b, h 14, k 192]\n"
                    "%0 = sum @x over (b, h) : f32[k 192]\noutput forward.y = %0\n}\n");
        Bytes assembly = compile_to(&arena, graph, &options, CODE_ASSEMBLY);
        InnerLoops loops = find_inner_loops(&arena, assembly.data);
        assert_true(loops.count > 0);
        for (uint32_t n = 0; n < loops.count; n++) {
            if (loops.loop[n].gathered > 0)
                fail_msg("%d numbers gathered in the loop at BB%s for %s", loops.loop[n].gathered,
                         loops.loop[n].header, cpus[i]);
        }
        arena_free(&arena);
    }
}

/* ---- faults of the user --------------------------------------------------------------------- */

static void expect_message(const Diag *diag, const char *expected)
{
    assert_int_equal(diag->count, 1);
    assert_int_equal(diag->messages[0].kind, MESSAGE_ERROR);
    if (!strstr(diag->messages[0].text, expected))
        fail_msg("'%s' instead of '%s'", diag->messages[0].text, expected);
}

static void expect_unknown(const CpuOptions *options, const char *expected)
{
    Arena arena = {0};
    Diag diag = diag_new(&arena);
    assert_false(llvm_check(options, &diag));
    expect_message(&diag, expected);
    arena_free(&arena);
}

static void test_unknown_machines(void **state)
{
    (void)state;
    if (!llvm_available()) skip();
    expect_unknown(&(CpuOptions){.triple = "nonsense"}, "unknown target triple 'nonsense'");
    expect_unknown(&(CpuOptions){.cpu = "nonsense"}, "'nonsense' is not a recognized processor");
    expect_unknown(&(CpuOptions){.triple = "aarch64-linux-gnu", .cpu = "x86-64-v3"},
                   "'x86-64-v3' is not a recognized processor");
    expect_unknown(&(CpuOptions){.features = "+nonsense"},
                   "'+nonsense' is not a recognized feature");
    expect_unknown(&(CpuOptions){.triple = "x86_64-linux-gnu", .cpu = "i386"},
                   "LLVM cannot compile for the chosen CPU: ");
}

/* Kernels that cannot be split, for they mix along the batch, whose extent nobody knows, otherwise than
 * in a sum. */
static void test_contractions_over_symbols(void **state)
{
    (void)state;
    if (!llvm_available()) skip();
    static const char *const bodies[] = {
        "%0 = mean @x over (b) : f32[c 4]\n",
        "%1 = layernorm @x, @s, @s over (c) eps 1e-05 : f32[b, c 4]\n"
        "%0 = mean %1 over (b) : f32[c 4]\n",
    };
    for (size_t i = 0; i < ARRAY_SIZE(bodies); i++) {
        Arena arena = {0};
        Diag diag = diag_new(&arena);
        const Graph *graph = compile_text(&arena, arena_printf(&arena,
                                                               "graph g {\n"
                                                               "input @x : f32[b, c 4]\n"
                                                               "input @y : f32[b, k 3]\n"
                                                               "param @s stored [4] : f32[c 4]\n"
                                                               "%soutput forward.z = %%0\n}\n",
                                                               bodies[i]));
        const Plan *plan = plan_memory(&arena, compile_passes(&arena, graph, &wide_target, NULL));
        assert_null(llvm_compile(&arena, plan, &(CpuOptions){0}, &diag));
        expect_message(&diag, "cannot split a kernel that mixes along an axis of symbolic extent");
        arena_free(&arena);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_same_bytes),
        cmocka_unit_test(test_symbols),
        cmocka_unit_test(test_sanitized_symbols),
        cmocka_unit_test(test_each_kernel_once),
        cmocka_unit_test(test_twins),
        cmocka_unit_test(test_other_lanes),
        cmocka_unit_test(test_product_loops),
        cmocka_unit_test(test_sum_loops),
        cmocka_unit_test(test_unknown_machines),
        cmocka_unit_test(test_contractions_over_symbols),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
