/* raftc_compilation.c: from a file that the user names to code for the target, stage by stage. */
#include "frontend/raftc_tuned.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

enum { GRAPH_MAX_SIZE = 1 << 26 /* bytes */ };

/* ---- the graph ------------------------------------------------------------------------------- */

/* A fault in a --set is one of the command line, not of the file. */
static Exit settings_exit(const Diag *diag)
{
    for (uint32_t i = 0; i < diag->count; i++) {
        const Source *source = diag->messages[i].loc.source;
        bool is_error = diag->messages[i].kind == MESSAGE_ERROR;
        if (is_error && (!source || strcmp(source->path, "--set") != 0)) return EXIT_FILES;
    }
    return EXIT_USAGE;
}

static Exit load_settings(Session *session, Compilation *c)
{
    const Options *options = session->options;
    c->settings = settings_parse(session->arena, c->source, options->set.item,
                                 (int)options->set.count, session->diag);
    if (!c->settings) return settings_exit(session->diag);
    c->model = model_resolve(session->arena, c->settings, options->name, options->height,
                             options->width, session->diag);
    if (!c->model) return settings_exit(session->diag);
    c->built = build_graph(session->arena, c->model);
    return EXIT_DONE;
}

static Exit load_graph(Session *session, Compilation *c)
{
    const Options *options = session->options;
    const char *given = options->set.count ? "--set" : options->height ? "--image" : NULL;
    if (given)
        return session_fail(session, EXIT_USAGE,
                            "%s changes settings; %s is a graph, whose sizes are fixed", given,
                            c->path);
    c->built = graph_parse(session->arena, c->source, session->diag);
    if (!c->built) return EXIT_FILES;
    if (options->name) c->built->name = options->name;
    return EXIT_DONE;
}

Exit compilation_load(Session *session, const char *path, Compilation *c)
{
    double start = seconds_now();
    bool is_graph = has_extension(path, ".ir");
    *c = (Compilation){.path = path};
    c->source =
        diag_read_source(session->diag, path, is_graph ? GRAPH_MAX_SIZE : SETTINGS_MAX_SIZE);
    if (!c->source) return EXIT_FILES;
    Exit exit = is_graph ? load_graph(session, c) : load_settings(session, c);
    session_stage(session, "read", start);
    return exit;
}

/* ---- passes ---------------------------------------------------------------------------------- */

/* Code for another CPU may hold instructions that this one lacks, which would end raftc. */
static Exit check_host(Session *session, const Compilation *c)
{
    Target host;
    const CpuOptions here = {0};
    if (!llvm_target(&here, &host, session->diag)) return EXIT_LACKING;
    if (c->target.vector_floats <= host.vector_floats && c->target.fma <= host.fma)
        return EXIT_DONE;
    return session_fail(session, EXIT_LACKING,
                        "this machine lacks instructions of the chosen CPU; it can compile for "
                        "that, and run for --mcpu host");
}

Exit compilation_target(Session *session, Compilation *c)
{
    const Options *options = session->options;
    c->cpu = (CpuOptions){options->triple, options->cpu, options->features, options->sanitize != 0};
    bool inspects = options->verb == VERB_INSPECT; /* which can do without machine code */
    if (options->target == TARGET_REFERENCE || (inspects && !llvm_available())) {
        /* Plain loops: no vectors, and nothing to lay weights out for. */
        c->target = (Target){
            .vector_floats = 1, .vector_registers = 16, .l1_bytes = 32 << 10, .l2_bytes = 1 << 20};
        return EXIT_DONE;
    }
    if (options->target == TARGET_CUDA) {
        cuda_target(&c->target);
        return EXIT_DONE;
    }
    if (!llvm_available())
        return session_fail(session, EXIT_LACKING,
                            "this build of raftc has no LLVM, which --target cpu needs; "
                            "--target reference runs models slowly");
    bool known =
        llvm_check(&c->cpu, session->diag) && llvm_target(&c->cpu, &c->target, session->diag);
    if (!known) return EXIT_LACKING;
    bool runs = options->verb != VERB_COMPILE && !inspects && (options->cpu || options->features);
    return runs ? check_host(session, c) : EXIT_DONE;
}

static Exit make_folder(Session *session, const char *path)
{
    if (!path || mkdir(path, 0777) == 0 || errno == EEXIST) return EXIT_DONE;
    return session_fail(session, EXIT_UNDONE, "the folder %s cannot be made: %s", path,
                        strerror(errno));
}

static bool write_dump(void *user, const char *path, const char *text, size_t length)
{
    return session_write(user, path, text, length) == EXIT_DONE;
}

/* Images of a batch whose values are in memory at a time. */
static int64_t at_once(const Graph *graph, int64_t images)
{
    int64_t part = program_part(graph);
    return part < images ? part : images;
}

/* Bytes that a run takes for what it computes, with so many values computed again; -1 after an error. */
static int64_t planned_bytes(Session *session, const Compilation *c, PipelineOptions pipeline,
                             int64_t recompute)
{
    Arena arena = {.out_of_memory = session->arena->out_of_memory};
    Diag diag = diag_new(&arena); /* what is told of the passes is told once, of the last time */
    int64_t bytes = -1;
    pipeline.recompute = recompute;
    pipeline.dump = NULL;
    const Graph *graph = pipeline_run(&arena, c->built, &c->target, &pipeline, &diag, NULL);
    if (graph) bytes = 4 * plan_memory(&arena, graph)->arena_floats * at_once(graph, c->images);
    arena_free(&arena);
    return bytes;
}

/* Finds how few values must be computed again to stay within the limit. */
static Exit find_recompute(Session *session, const Compilation *c, PipelineOptions *pipeline)
{
    const int64_t limit = session->options->memory_limit;
    int64_t few = 0, enough = 0;
    int64_t all = planned_bytes(session, c, *pipeline, 0), bytes = all;
    if (all > limit) {
        enough = c->built->node_count;
        bytes = planned_bytes(session, c, *pipeline, enough);
    }
    if (bytes > limit) /* kernels compute again of their own: all of it asked for may keep more */
        return session_fail(
            session, EXIT_UNDONE, "--memory-limit: %lld images take at least %s bytes",
            (long long)c->images, grouped(session->arena, all < bytes ? all : bytes));
    while (enough - few > 1) {
        int64_t middle = few + (enough - few) / 2;
        int64_t there = planned_bytes(session, c, *pipeline, middle);
        if (there > limit)
            few = middle;
        else
            enough = middle, bytes = there;
    }
    pipeline->recompute = enough;
    session_note(session, "%lld values are computed again: %s bytes are kept, not %s",
                 (long long)enough, grouped(session->arena, bytes), grouped(session->arena, all));
    return EXIT_DONE;
}

Exit compilation_optimise(Session *session, Compilation *c)
{
    const Options *options = session->options;
    Exit exit = compilation_target(session, c);
    if (exit == EXIT_DONE) exit = make_folder(session, options->dump_dir);
    if (exit != EXIT_DONE) return exit;
    Tuned *tuned = NULL;
    if (options->target == TARGET_CPU && llvm_available()) exit = tuned_open(session, c, &tuned);
    if (exit != EXIT_DONE) return exit;
    double start = seconds_now();
    PipelineOptions pipeline = {.only = options->passes,
                                .disabled = options->disabled_passes.item,
                                .disabled_count = (int)options->disabled_passes.count,
                                .train = c->train,
                                .given = c->given,
                                .choices = tuned_source(tuned),
                                .rewrite_limit = options->rewrite_limit,
                                .dump = options->dump_ir,
                                .dump_dir = options->dump_dir,
                                .dump_name = c->dump_name,
                                .dump_file = stdout,
                                .dump_write = write_dump,
                                .dump_user = session};
    c->statistics = arena_array(session->arena, (size_t)pass_count, sizeof *c->statistics);
    if (c->images) exit = find_recompute(session, c, &pipeline);
    c->graph = exit != EXIT_DONE ? NULL
                                 : pipeline_run(session->arena, c->built, &c->target, &pipeline,
                                                session->diag, c->statistics);
    tuned_close(tuned);
    session_stage(session, "passes", start);
    if (exit != EXIT_DONE) return exit;
    if (c->graph) return EXIT_DONE;
    if (c->train) return EXIT_FILES; /* there is nothing to train in it */
    /* The options are checked already: a dump was not written, or a pass broke the graph. */
    return options->dump_dir ? EXIT_UNDONE : EXIT_BUG;
}

/* ---- plan and code --------------------------------------------------------------------------- */

Exit compilation_plan(Session *session, Compilation *c)
{
    if (c->plan) return EXIT_DONE;
    for (NodeId id = 0; id < c->graph->node_count; id++) {
        const Node *node = graph_node(c->graph, id);
        bool declared = node->op == OP_INPUT || node->op == OP_PARAM;
        if (declared || node->kernel != NO_KERNEL) continue;
        diag_error(session->diag, node->loc, "this %s is in no kernel, so it cannot be compiled",
                   op_info[node->op].name);
        diag_note(session->diag, (Loc){0},
                  "the pass form_kernels makes kernels; --passes leaves "
                  "it out");
        return EXIT_USAGE;
    }
    double start = seconds_now();
    c->plan = plan_memory(session->arena, c->graph);
    session_stage(session, "memory plan", start);
    return plan_verify(c->plan, session->diag) ? EXIT_DONE : EXIT_BUG;
}

Exit compilation_generate(Session *session, Compilation *c)
{
    if (!program_check(c->plan, session->diag)) return EXIT_FILES;
    double start = seconds_now();
    if (session->options->target == TARGET_CUDA) {
        c->cuda = cuda_emit(session->arena, c->plan, session->diag);
        if (c->cuda) c->made = cuda_program_code(session->arena, c->cuda, NULL, 0);
    } else {
        c->code = llvm_compile(session->arena, c->plan, &c->cpu, session->diag);
        c->made = arena_alloc(session->arena, sizeof *c->made);
        if (c->code)
            *c->made = (ProgramCode){.steps = llvm_steps(c->code),
                                     .scratch_bytes = llvm_scratch_bytes(c->code)};
    }
    session_stage(session, "code", start);
    return c->code || c->cuda ? EXIT_DONE : EXIT_UNDONE;
}

Exit compilation_load_code(Session *session, Compilation *c, const RaftProgram **program)
{
    double start = seconds_now();
    *program = NULL;
    if (c->code) {
        *program = llvm_load(c->code, session->diag);
    } else {
        c->emulation = cuda_emulate(session->arena, c->plan, c->cuda, session->diag);
        if (c->emulation) *program = c->emulation->program;
    }
    session_stage(session, "load", start);
    if (*program) return EXIT_DONE;
    return c->code ? EXIT_UNDONE : EXIT_LACKING; /* of a compiler */
}

void compilation_close(Compilation *c)
{
    llvm_free(c->code);
    cuda_emulation_free(c->emulation);
    c->code = NULL;
    c->emulation = NULL;
}
