/* minimise.c: tries one change after the other, and keeps each after which the case still fails. */
#include "tests/minimise.h"

#include <string.h>

/* A copy in which value `id` is a new input or parameter; NULL where its type fits neither. */
static Graph *replace_by_declaration(Arena *arena, const Graph *graph, NodeId id)
{
    const Type *type = graph_type(graph, id);
    int symbols;
    int64_t elements = type_elements(type, &symbols);
    bool input = symbols == 1 && strcmp(type->axis[0].symbol, "b") == 0;
    if (!input && symbols > 0) return NULL;
    const char *name = arena_printf(arena, "m%u", id);
    Rewriter r = rewriter_new(graph, arena);
    for (NodeId n = 0; n < graph->node_count; n++) {
        if (n != id)
            rewriter_copy(&r, n);
        else
            r.renamed[n] = input ? build_input(r.to, name, type, (Loc){0})
                                 : build_param(r.to, name, type, 1, &elements, (Loc){0});
    }
    return rewriter_finish(&r);
}

/* A copy in which users of value `id` take its first operand of the same type; NULL: it has
 * none. */
static Graph *bypass(Arena *arena, const Graph *graph, NodeId id)
{
    const Node *node = graph_node(graph, id);
    for (uint32_t i = 0; i < node->operand_count; i++) {
        if (!type_equal(&node->type, graph_type(graph, node->operands[i]))) continue;
        Rewriter r = rewriter_new(graph, arena);
        for (NodeId n = 0; n < graph->node_count; n++) {
            if (n != id)
                rewriter_copy(&r, n);
            else
                r.renamed[n] = rewriter_value(&r, node->operands[i]);
        }
        return rewriter_finish(&r);
    }
    return NULL;
}

static Graph *without_output(Arena *arena, const Graph *graph, uint32_t left_out)
{
    if (graph->output_count == 1) return NULL;
    Graph fewer = *graph;
    fewer.outputs = arena_array(arena, graph->output_count, sizeof *fewer.outputs);
    fewer.output_count = 0;
    for (uint32_t i = 0; i < graph->output_count; i++)
        if (i != left_out) fewer.outputs[fewer.output_count++] = graph->outputs[i];
    return graph_without_dead(&fewer, arena);
}

/* Declarations that nothing uses. */
static Graph *without_declarations(Arena *arena, const Graph *graph)
{
    const uint32_t *uses = graph_uses(graph, arena);
    bool found = false;
    Rewriter r = rewriter_new(graph, arena);
    for (NodeId id = 0; id < graph->node_count; id++) {
        if (uses[id] > 0)
            rewriter_copy(&r, id);
        else
            found = true;
    }
    return found ? rewriter_finish(&r) : NULL;
}

/* Change number `number`, or NULL where it cannot be made; *past: there are no more changes. */
static const Graph *change(Arena *arena, const Graph *graph, uint32_t number, bool *past)
{
    uint32_t nodes = graph->node_count;
    *past = false;
    if (number < graph->output_count) return without_output(arena, graph, number);
    number -= graph->output_count;
    if (number == 0) return without_declarations(arena, graph);
    number--;
    if (number < 2 * nodes) { /* the last first: that leaves out most */
        NodeId id = nodes - 1 - number / 2;
        Op op = graph_node(graph, id)->op;
        if (op == OP_INPUT || op == OP_PARAM) return NULL;
        return number % 2 ? bypass(arena, graph, id) : replace_by_declaration(arena, graph, id);
    }
    *past = true;
    return NULL;
}

const Graph *minimise(Arena *arena, const Case *c, FailsFunction *fails)
{
    Case smaller = *c;
    bool past = false;
    for (uint32_t number = 0; !past; number++) {
        const Graph *changed = change(arena, smaller.graph, number, &past);
        Diag diag = diag_new(arena);
        if (!changed || !graph_verify(changed, &diag)) continue;
        Case candidate = smaller;
        candidate.graph = changed;
        if (!fails(&candidate)) continue;
        smaller = candidate;
        number = UINT32_MAX; /* from the start again */
    }
    return smaller.graph;
}
