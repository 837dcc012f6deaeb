/* raftc_report.c: --report: what was fused and what not, where tensors lie, what kernels cost, and
 * what took how long. */
#include "frontend/raftc.h"

#include <string.h>

int64_t graph_multiply_adds(const Graph *graph, Arena *arena)
{
    const bool *param_only = graph_param_only(graph, arena);
    int64_t sum = 0;
    for (NodeId id = 0; id < graph->node_count; id++)
        if (op_info[graph_node(graph, id)->op].cost == COST_OVER && !param_only[id])
            sum = saturating_add(sum, op_cost(graph, id));
    return sum;
}

int64_t kernel_cost(const Graph *graph, int kernel)
{
    NodeId first, end;
    kernel_range(graph, kernel, &first, &end);
    int64_t sum = 0;
    for (NodeId id = first; id < end; id++) sum = saturating_add(sum, op_cost(graph, id));
    return sum;
}

bool *graph_prepare_kernels(const Graph *graph, Arena *arena)
{
    const bool *param_only = graph_param_only(graph, arena);
    bool *prepare = arena_array(arena, graph->kernel_count, sizeof *prepare);
    for (uint32_t k = 0; k < graph->kernel_count; k++) prepare[k] = true;
    for (NodeId id = 0; id < graph->node_count; id++)
        if (graph->nodes[id].kernel != NO_KERNEL)
            prepare[graph->nodes[id].kernel] &= param_only[id];
    return prepare;
}

/* ---- fusion ---------------------------------------------------------------------------------- */

/* For each kernel the bytes for one image of values that it computes and uses itself, and of windows
 * that it reads where they lie: what ops on their own would write to memory, and read again. */
static int64_t *bytes_inside(const Graph *graph, Arena *arena)
{
    int64_t *bytes = arena_array(arena, graph->kernel_count, sizeof *bytes);
    bool *stored = arena_array(arena, graph->node_count, sizeof *stored);
    for (NodeId id = 0; id < graph->node_count; id++) {
        const Node *node = graph_node(graph, id);
        stored[id] |= node->op == OP_WRITE || node->kernel == NO_KERNEL;
        if (node->op == OP_WRITE) stored[node->operands[0]] = true;
    }
    for (NodeId id = 0; id < graph->node_count; id++) {
        const Node *node = graph_node(graph, id);
        int64_t elements = type_elements(&node->type, NULL);
        bool same = node->op == OP_READ &&
                    elements <= type_elements(graph_type(graph, node->operands[0]), NULL);
        if (stored[id] || same) continue;
        bytes[node->kernel] = saturating_add(bytes[node->kernel], 4 * elements);
    }
    return bytes;
}

void report_kernels(const Graph *graph, Text *out)
{
    Arena *arena = out->arena;
    const bool *prepare = graph_prepare_kernels(graph, arena);
    const int64_t *inside = bytes_inside(graph, arena);
    const char **name = arena_array(arena, graph->kernel_count, sizeof *name);
    for (uint32_t k = 0; k < graph->kernel_count; k++)
        name[k] = arena_printf(arena, "%s%s", prepare[k] ? "prepare: " : "",
                               kernel_name(graph, (int)k, arena));
    text_printf(out, "%7s %15s %15s  %s\n", "kernels", "multiply-adds", "bytes saved",
                "fused from");
    for (uint32_t k = 0; k < graph->kernel_count; k++) {
        uint32_t before = 0;
        while (strcmp(name[before], name[k]) != 0) before++;
        if (before < k) continue; /* told already */
        int64_t count = 0, cost = 0, saved = 0;
        for (uint32_t i = k; i < graph->kernel_count; i++) {
            if (strcmp(name[i], name[k]) != 0) continue;
            count++;
            cost = saturating_add(cost, kernel_cost(graph, (int)i));
            saved = saturating_add(saved, inside[i]);
        }
        text_printf(out, "%7lld %15s %15s  %s\n", (long long)count, grouped(arena, cost),
                    grouped(arena, saved), name[k]);
    }
}

/* Remarks, each once where it comes several times in a row: the layers of a level share a place. */
static void report_missed(const Diag *diag, Text *out)
{
    const Message *last = NULL;
    for (uint32_t i = 0; i < diag->count; i++) {
        const Message *message = &diag->messages[i];
        if (message->kind != MESSAGE_REMARK) continue;
        bool again = last && last->loc.line == message->loc.line &&
                     last->loc.column == message->loc.column && !strcmp(last->text, message->text);
        last = message;
        if (again) continue;
        const Source *source = message->loc.source;
        text_printf(out, "%s:%u:%u: %s\n", source ? source->path : "raftc", message->loc.line,
                    message->loc.column, message->text);
    }
    if (!last) text_put(out, "nothing was missed\n");
}

/* ---- cost ------------------------------------------------------------------------------------ */

int64_t step_bytes(const Plan *plan, const Step *step, bool batched)
{
    int64_t bytes = 0;
    for (int i = 0; i < step->argument_count; i++) {
        const Buffer *buffer = &plan->buffers[step->arguments[i]];
        if (buffer->batched == batched) bytes += 4 * buffer->elements;
    }
    return bytes;
}

static int64_t forward_cost(const Plan *plan)
{
    int64_t total = 0;
    for (int s = 0; s < plan->step_count; s++)
        if (!plan->steps[s].prepare)
            total = saturating_add(total, kernel_cost(plan->graph, plan->steps[s].kernel));
    return total;
}

static void report_cost(const Plan *plan, Text *out)
{
    Arena *arena = out->arena;
    int64_t total = forward_cost(plan);
    text_printf(out, "%4s %15s %7s %15s %15s  %s\n", "step", "multiply-adds", "share",
                "bytes/image", "bytes of weights", "kernel, for one image");
    for (int s = 0; s < plan->step_count; s++) {
        const Step *step = &plan->steps[s];
        int64_t cost = kernel_cost(plan->graph, step->kernel);
        const char *share = "";
        if (!step->prepare && total)
            share = arena_printf(arena, "%.1f %%", 100 * (double)cost / (double)total);
        text_printf(out, "%4d %15s %7s %15s %15s  %s%s\n", s, grouped(arena, cost), share,
                    grouped(arena, step_bytes(plan, step, true)),
                    grouped(arena, step_bytes(plan, step, false)), step->prepare ? "prepare: " : "",
                    kernel_name(plan->graph, step->kernel, arena));
    }
    text_printf(out, "%4s %15s\n", "all", grouped(arena, total));
}

/* ---- memory ---------------------------------------------------------------------------------- */

static bool is_live(const Buffer *buffer, int step)
{
    return buffer->kind == BUFFER_ARENA && buffer->first_step <= step && step <= buffer->last_step;
}

static int64_t live_bytes(const Plan *plan, int step)
{
    int64_t bytes = 0;
    for (int i = 0; i < plan->buffer_count; i++)
        if (is_live(&plan->buffers[i], step)) bytes += 4 * plan->buffers[i].elements;
    return bytes;
}

/* The plan, and the first of the steps in which the most is needed at once. */
static void report_memory(const Plan *plan, Text *out)
{
    int peak = 0;
    plan_print(plan, out);
    if (plan->peak_floats == 0) return;
    for (int s = 1; s < plan->step_count; s++)
        if (live_bytes(plan, s) > live_bytes(plan, peak)) peak = s;
    text_printf(out, "peak: step %d, %s, with %lld bytes an image of\n", peak,
                kernel_name(plan->graph, plan->steps[peak].kernel, out->arena),
                (long long)live_bytes(plan, peak));
    for (int i = 0; i < plan->buffer_count; i++) {
        const Buffer *buffer = &plan->buffers[i];
        if (!is_live(buffer, peak)) continue;
        text_printf(out, "  %20lld %12lld %4d..%-4d  ", (long long)buffer->elements * 4,
                    (long long)buffer->offset * 4, buffer->first_step, buffer->last_step);
        type_print(graph_type(plan->graph, buffer->value), out);
        text_put(out, "\n");
    }
}

/* ---- time ------------------------------------------------------------------------------------ */

static void report_time(const Session *session, const Compilation *c, Text *out)
{
    text_printf(out, "%10s  %s\n", "ms", "stage");
    for (int i = 0; i < session->stage_count; i++)
        text_printf(out, "%10.3f  %s\n", 1e3 * session->stage[i].seconds, session->stage[i].name);
    text_printf(out, "%10s %9s %9s  %s\n", "ms", "rewrites", "nodes", "pass");
    for (int i = 0; i < pass_count; i++)
        if (c->statistics[i].nodes_after)
            text_printf(out, "%10.3f %9lld %9u  %s\n", 1e3 * c->statistics[i].seconds,
                        (long long)c->statistics[i].rewrites, c->statistics[i].nodes_after,
                        pass_table[i].name);
}

Exit report_print(Session *session, Compilation *c)
{
    int64_t wanted = session->options->report;
    Text out = text_new(session->arena);
    if (wanted & (REPORT_MEMORY | REPORT_COST)) {
        Exit exit = compilation_plan(session, c);
        if (exit != EXIT_DONE) return exit;
    }
    if (wanted & REPORT_FUSION) {
        report_kernels(c->graph, &out);
        report_missed(session->diag, &out);
    }
    if (wanted & REPORT_MEMORY) report_memory(c->plan, &out);
    if (wanted & REPORT_COST) report_cost(c->plan, &out);
    if (wanted & REPORT_TIME) report_time(session, c, &out);
    fputs(out.data, stdout);
    return EXIT_DONE;
}
