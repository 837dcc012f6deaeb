/* pipeline.c: runs the passes of pass.def in order, and does for all of them what none does itself:
 * selection, rewrite limit, verifying, dumping, timing. */
#include "passes/pass.h"

#include <errno.h>
#include <string.h>
#include <time.h>

const PassInfo pass_table[] = {
#define PASS(name, use, summary)                                                                   \
    {#name, summary, pass_##name, PASS_##use != PASS_OPTIONAL, PASS_##use == PASS_TRAINING},
#include "passes/pass.def"
#undef PASS
};
const int pass_count = ARRAY_SIZE(pass_table);

bool pass_may_rewrite(PassContext *context)
{
    if (context->rewrites >= context->rewrite_limit) return false;
    context->rewrites++;
    return true;
}

void pass_missed(PassContext *context, const Graph *graph, NodeId node, NodeId stored,
                 const char *pass, const char *why)
{
    int64_t elements = type_elements(graph_type(graph, stored), NULL);
    diag_remark(context->diag, graph_node(graph, node)->loc, "missed: %s: %s (%lld bytes an image)",
                pass, why, (long long)(4 * elements));
}

static int find_pass(const char *name)
{
    for (int i = 0; i < pass_count; i++)
        if (strcmp(pass_table[i].name, name) == 0) return i;
    return -1;
}

/* An error where no pass has this name; "all" is one too where dumps are chosen. */
static bool check_name(const char *name, Diag *diag)
{
    if (find_pass(name) >= 0) return true;
    const char *names[ARRAY_SIZE(pass_table)];
    for (int i = 0; i < pass_count; i++) names[i] = pass_table[i].name;
    diag_error(diag, (Loc){0}, "there is no pass called '%s'", name);
    const char *near = diag_nearest(name, names, ARRAY_SIZE(names));
    if (near) diag_note(diag, (Loc){0}, "did you mean '%s'?", near);
    return false;
}

/* Fills selected[pass_count]; false with messages where a name is unknown or a required pass is
 * disabled. */
static bool select_passes(Arena *arena, const PipelineOptions *options, bool *selected, Diag *diag)
{
    for (int i = 0; i < pass_count; i++)
        selected[i] = options->only == NULL && (options->train || !pass_table[i].training);
    char *list = options->only ? arena_strdup(arena, options->only) : NULL, *rest = NULL;
    for (char *name = list ? strtok_r(list, ",", &rest) : NULL; name;
         name = strtok_r(NULL, ",", &rest)) {
        if (!check_name(name, diag)) return false;
        selected[find_pass(name)] = true;
    }
    for (int i = 0; i < options->disabled_count; i++) {
        const char *name = options->disabled[i];
        if (!check_name(name, diag)) return false;
        const PassInfo *pass = &pass_table[find_pass(name)];
        if (pass->training)
            return diag_error(diag, (Loc){0},
                              "pass '%s' cannot be disabled: it does what training, or its limit "
                              "of memory, asks for, and nothing else",
                              name);
        if (pass->required)
            return diag_error(diag, (Loc){0},
                              "pass '%s' cannot be disabled: no backend but the "
                              "reference runs a graph without it",
                              name);
        selected[find_pass(name)] = false;
    }
    return !options->dump || strcmp(options->dump, "all") == 0 || check_name(options->dump, diag);
}

static bool dump(Arena *arena, const Graph *graph, int number, const char *pass,
                 const PipelineOptions *options)
{
    Text text = text_new(arena);
    graph_print(graph, &text);
    if (!options->dump_dir) {
        fprintf(options->dump_file, "# after %s\n%s", pass, text.data);
        return true;
    }
    const char *name = options->dump_name ? options->dump_name : "";
    const char *path =
        arena_printf(arena, "%s/%s%02d-%s.ir", options->dump_dir, name, number, pass);
    return options->dump_write(options->dump_user, path, text.data, text.length);
}

static double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

Graph *pipeline_run(Arena *arena, const Graph *graph, const Target *target,
                    const PipelineOptions *options, Diag *diag, PassStatistics *statistics)
{
    bool *selected = arena_array(arena, (size_t)pass_count, sizeof *selected);
    if (!select_passes(arena, options, selected, diag)) return NULL;
    bool dump_all = options->dump && strcmp(options->dump, "all") == 0;
    if (dump_all && !dump(arena, graph, 0, "frontend", options)) return NULL;
    PassContext context = {.arena = arena,
                           .target = target,
                           .choices = options->choices,
                           .diag = diag,
                           .rewrite_limit = options->rewrite_limit,
                           .recompute = options->recompute,
                           .given = options->given};
    for (int i = 0; i < pass_count; i++) {
        if (!selected[i]) continue;
        int64_t rewrites = context.rewrites;
        double start = seconds_now();
        graph = pass_table[i].run(&context, graph);
        if (!graph) return NULL;
        if (statistics)
            statistics[i] = (PassStatistics){context.rewrites - rewrites, start,
                                             seconds_now() - start, graph->node_count};
        bool wanted = dump_all || (options->dump && strcmp(options->dump, pass_table[i].name) == 0);
        if (wanted && !dump(arena, graph, i + 1, pass_table[i].name, options)) return NULL;
        if (!graph_verify(graph, diag)) {
            diag_error(diag, (Loc){0},
                       "the graph is not valid after pass '%s': this is a fault of raftc",
                       pass_table[i].name);
            return NULL;
        }
    }
    return (Graph *)graph;
}
