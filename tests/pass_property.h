/* pass_property.h: what must hold of any legal graph once the passes have run, for the fuzzers. */
#ifndef RAFTC_TESTS_PASS_PROPERTY_H
#define RAFTC_TESTS_PASS_PROPERTY_H

#include "passes/pass.h"

#include <stdlib.h>
#include <string.h>

static inline const char *pass_outputs_fault(const Graph *before, const Graph *after)
{
    if (before->output_count != after->output_count) return "an output is lost";
    for (uint32_t i = 0; i < before->output_count; i++) {
        const Output *a = &before->outputs[i], *b = &after->outputs[i];
        if (strcmp(a->name, b->name) != 0 || strcmp(a->entry, b->entry) != 0)
            return "an output has another name";
        if (!type_equal(graph_type(before, a->value), graph_type(after, b->value)))
            return "an output has another type";
    }
    for (NodeId id = 0; id < after->node_count; id++) {
        const Node *node = graph_node(after, id);
        if (node->kernel == NO_KERNEL && node->op != OP_INPUT && node->op != OP_PARAM)
            return "an op is left outside kernels";
    }
    return NULL;
}

static inline bool pass_buffers_meet(const Buffer *a, const Buffer *b)
{
    return a->first_step <= b->last_step && b->first_step <= a->last_step &&
           a->offset < b->offset + b->elements && b->offset < a->offset + a->elements;
}

static inline const char *pass_plan_fault(const Plan *plan)
{
    for (int i = 0; i < plan->buffer_count; i++) {
        const Buffer *a = &plan->buffers[i];
        bool prepared = a->kind == BUFFER_PREPARED;
        if (!prepared && a->kind != BUFFER_ARENA) continue;
        if (a->elements < 1 || a->offset < 0 || a->offset % 16 != 0)
            return "a buffer has no place";
        if (a->offset > (prepared ? plan->prepared_floats : plan->arena_floats) - a->elements)
            return "a buffer ends behind its block";
        for (int k = 0; k < i && !prepared; k++)
            if (plan->buffers[k].kind == BUFFER_ARENA && pass_buffers_meet(a, &plan->buffers[k]))
                return "two buffers overlap";
    }
    return NULL;
}

/* Runs the passes, up to `rewrite_limit` rewrites, and plans the memory. Returns what is wrong with
 * them, or NULL. */
static inline const char *pass_graph_fault(Arena *arena, const Graph *graph, const Target *target,
                                           int64_t rewrite_limit)
{
    Diag diag = diag_new(arena);
    const PipelineOptions options = {.rewrite_limit = rewrite_limit};
    const Graph *result = pipeline_run(arena, graph, target, &options, &diag, NULL);
    if (!result) {
        diag_print(&diag, stderr);
        return "the passes refuse a legal graph";
    }
    const char *fault = pass_outputs_fault(graph, result);
    if (fault) return fault;
    const Plan *plan = plan_memory(arena, result);
    Text text = text_new(arena);
    plan_print(plan, &text);
    return pass_plan_fault(plan);
}

#endif
