/* graph.c: building graphs, and the facts that passes ask about them. */
#include "ir/ir.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

const OpInfo op_info[OP_COUNT] = {
#define OP(NAME, text, least, most, attributes, mixes, cost, linear, gradient)                     \
    [OP_##NAME] = {text, least, most, attributes, mixes, cost, linear},
#include "ir/op.def"
#undef OP
};

Graph *graph_new(Arena *arena, const char *name)
{
    Graph *graph = arena_alloc(arena, sizeof *graph);
    graph->arena = arena;
    graph->name = arena_strdup(arena, name);
    return graph;
}

NodeId graph_add(Graph *graph, Op op, const NodeId *operands, uint32_t count, const Type *type,
                 const Attributes *attributes, Loc loc)
{
    RAFTC_ASSERT(graph->node_count < MAX_NODES);
    Node node = {.op = op, .operand_count = count, .type = *type, .kernel = NO_KERNEL, .loc = loc};
    node.operands = arena_array(graph->arena, count, sizeof *operands);
    for (uint32_t i = 0; i < count; i++) {
        RAFTC_ASSERT(operands[i] < graph->node_count);
        node.operands[i] = operands[i];
    }
    if (attributes) node.attributes = *attributes;
    *ARENA_PUSH(graph->arena, graph->nodes, graph->node_count, graph->node_capacity) = node;
    return graph->node_count - 1;
}

void graph_add_output(Graph *graph, const char *name, const char *entry, NodeId value)
{
    Output output = {arena_strdup(graph->arena, name), arena_strdup(graph->arena, entry), value};
    *ARENA_PUSH(graph->arena, graph->outputs, graph->output_count, graph->output_capacity) = output;
}

/* ---- builders ------------------------------------------------------------------------------- */

NodeId build_input(Graph *g, const char *name, const Type *type, Loc loc)
{
    Attributes a = {.name = arena_strdup(g->arena, name)};
    return graph_add(g, OP_INPUT, NULL, 0, type, &a, loc);
}

NodeId build_param(Graph *g, const char *name, const Type *type, int rank, const int64_t *stored,
                   Loc loc)
{
    Attributes a = {.name = arena_strdup(g->arena, name), .stored_rank = rank};
    RAFTC_ASSERT(rank <= (int)ARRAY_SIZE(a.stored));
    for (int i = 0; i < rank; i++) a.stored[i] = stored[i];
    return graph_add(g, OP_PARAM, NULL, 0, type, &a, loc);
}

NodeId build_rearrange(Graph *g, NodeId x, const char *groups, const Type *type, Loc loc)
{
    Attributes a = {0};
    a.groups = arena_array(g->arena, MAX_AXES, sizeof *a.groups);
    char *text = arena_strdup(g->arena, groups);
    for (char *rest, *term = strtok_r(text, ";", &rest); term; term = strtok_r(NULL, ";", &rest)) {
        char *arrow = strstr(term, "->");
        RAFTC_ASSERT(arrow && a.group_count < MAX_AXES);
        *arrow = '\0';
        a.groups[a.group_count++] = (Group){names_make(term), names_make(arrow + 2)};
    }
    return graph_add(g, OP_REARRANGE, &x, 1, type, &a, loc);
}

NodeId build_unfold(Graph *g, NodeId x, const Window *windows, int count, const Type *type, Loc loc)
{
    Attributes a = {.window_count = count};
    a.windows = arena_array(g->arena, (size_t)count, sizeof *windows);
    memcpy(a.windows, windows, (size_t)count * sizeof *windows);
    return graph_add(g, OP_UNFOLD, &x, 1, type, &a, loc);
}

NodeId build_slice(Graph *g, NodeId x, const char *axis, int64_t offset, int64_t extent, Loc loc)
{
    Attributes a = {.over = names_make(axis), .offset = offset};
    Type type = *graph_type(g, x);
    int at = type_find(&type, axis);
    RAFTC_ASSERT(at >= 0);
    type.axis[at].extent = extent;
    return graph_add(g, OP_SLICE, &x, 1, &type, &a, loc);
}

NodeId build_concat(Graph *g, const NodeId *xs, uint32_t count, const char *axis, Loc loc)
{
    Attributes a = {.over = names_make(axis)};
    Type type = *graph_type(g, xs[0]);
    int at = type_find(&type, axis);
    RAFTC_ASSERT(at >= 0);
    for (uint32_t i = 1; i < count; i++) {
        const Type *t = graph_type(g, xs[i]);
        type.axis[at].extent += t->axis[type_find(t, axis)].extent;
    }
    return graph_add(g, OP_CONCAT, xs, count, &type, &a, loc);
}

NodeId build_read(Graph *g, NodeId x, const Map *map, const Type *type, Loc loc)
{
    Attributes a = {.map = *map};
    return graph_add(g, OP_READ, &x, 1, type, &a, loc);
}

NodeId build_write(Graph *g, NodeId x, const Map *map, const Type *type, Loc loc)
{
    Attributes a = {.map = *map};
    return graph_add(g, OP_WRITE, &x, 1, type, &a, loc);
}

NodeId build_linear(Graph *g, NodeId x, NodeId w, NodeId bias, const char *over, Loc loc)
{
    Attributes a = {.over = names_make(over)};
    Type type = type_without(graph_type(g, x), &a.over);
    const Type *weights = graph_type(g, w);
    for (int i = 0; i < weights->rank; i++)
        if (!names_contain(&a.over, weights->axis[i].name) &&
            type_find(graph_type(g, x), weights->axis[i].name) < 0)
            type_append(&type, &weights->axis[i]);
    NodeId operands[] = {x, w, bias};
    return graph_add(g, OP_LINEAR, operands, bias == NO_NODE ? 2 : 3, &type, &a, loc);
}

NodeId build_layernorm(Graph *g, NodeId x, NodeId scale, NodeId shift, const char *over, double eps,
                       Loc loc)
{
    Attributes a = {.over = names_make(over), .eps = eps};
    NodeId operands[] = {x, scale, shift};
    return graph_add(g, OP_LAYERNORM, operands, 3, graph_type(g, x), &a, loc);
}

NodeId build_unary(Graph *g, Op op, NodeId x, Loc loc)
{
    Type type = *graph_type(g, x);
    return graph_add(g, op, &x, 1, &type, NULL, loc);
}

NodeId build_binary(Graph *g, Op op, NodeId a, NodeId b, Loc loc)
{
    Type type = *graph_type(g, a);
    NodeId operands[] = {a, b};
    return graph_add(g, op, operands, 2, &type, NULL, loc);
}

NodeId build_reduction(Graph *g, Op op, NodeId x, const char *over, Loc loc)
{
    Attributes a = {.over = names_make(over)};
    Type type = type_without(graph_type(g, x), &a.over);
    return graph_add(g, op, &x, 1, &type, &a, loc);
}

NodeId build_scale(Graph *g, NodeId x, double factor, Loc loc)
{
    Attributes a = {.factor = factor};
    Type type = *graph_type(g, x);
    return graph_add(g, OP_SCALE, &x, 1, &type, &a, loc);
}

NodeId build_cross_entropy(Graph *g, NodeId logits, NodeId target, const char *over, Loc loc)
{
    Attributes a = {.over = names_make(over)};
    Type type = type_without(graph_type(g, logits), &a.over);
    NodeId operands[] = {logits, target};
    return graph_add(g, OP_CROSS_ENTROPY, operands, 2, &type, &a, loc);
}

NodeId build_resample(Graph *g, NodeId x, const char *over, int64_t first, int64_t second, Loc loc)
{
    Attributes a = {.over = names_make(over)};
    Type type = *graph_type(g, x);
    RAFTC_ASSERT(a.over.count == 2);
    type.axis[type_find(&type, a.over.name[0])].extent = first;
    type.axis[type_find(&type, a.over.name[1])].extent = second;
    return graph_add(g, OP_RESAMPLE, &x, 1, &type, &a, loc);
}

/* ---- facts ---------------------------------------------------------------------------------- */

uint32_t *graph_uses(const Graph *graph, Arena *arena)
{
    uint32_t *uses = arena_array(arena, graph->node_count, sizeof *uses);
    for (NodeId id = 0; id < graph->node_count; id++)
        for (uint32_t i = 0; i < graph->nodes[id].operand_count; i++)
            uses[graph->nodes[id].operands[i]]++;
    for (uint32_t i = 0; i < graph->output_count; i++) uses[graph->outputs[i].value]++;
    return uses;
}

bool *graph_param_only(const Graph *graph, Arena *arena)
{
    bool *only = arena_array(arena, graph->node_count, sizeof *only);
    for (NodeId id = 0; id < graph->node_count; id++) {
        const Node *node = &graph->nodes[id];
        only[id] = node->op != OP_INPUT;
        for (uint32_t i = 0; i < node->operand_count; i++) only[id] &= only[node->operands[i]];
    }
    return only;
}

int64_t op_cost(const Graph *graph, NodeId id)
{
    const Node *node = graph_node(graph, id);
    int64_t each = 0;
    if (op_info[node->op].cost == COST_TAPS) each = 16;
    if (op_info[node->op].cost == COST_OVER) {
        const Type *x = graph_type(graph, node->operands[0]);
        each = 1;
        for (int i = 0; i < x->rank; i++)
            if (names_contain(&node->attributes.over, x->axis[i].name) && !x->axis[i].symbol[0])
                each *= x->axis[i].extent;
    }
    return each * type_elements(&node->type, NULL);
}

void kernel_range(const Graph *graph, int kernel, NodeId *first, NodeId *end)
{
    NodeId id = 0;
    while (id < graph->node_count && graph->nodes[id].kernel != kernel) id++;
    *first = id;
    while (id < graph->node_count && graph->nodes[id].kernel == kernel) id++;
    *end = id;
}

int kernel_find(const Kernel *kernel, const char *name)
{
    for (int i = 0; i < kernel->rank; i++)
        if (strcmp(kernel->axis[i].name, name) == 0) return i;
    return -1;
}

const char *kernel_name(const Graph *graph, int kernel, Arena *arena)
{
    NodeId first, end;
    kernel_range(graph, kernel, &first, &end);
    Text text = text_new(arena);
    for (NodeId id = first; id < end; id++) {
        Op op = graph->nodes[id].op;
        if (op == OP_READ || op == OP_WRITE) continue;
        if (text.length > 0) text_put(&text, "_");
        text_put(&text, op == OP_LAYERNORM ? "norm" : op_info[op].name);
    }
    if (text.length == 0) text_put(&text, "copy");
    return text.data;
}

/* ---- rewriting ------------------------------------------------------------------------------ */

Rewriter rewriter_new(const Graph *from, Arena *arena)
{
    Rewriter r = {.from = from, .to = graph_new(arena, from->name)};
    r.renamed = arena_array(arena, from->node_count, sizeof *r.renamed);
    /* Few passes add many nodes: so this is room for nearly all, and little is copied when there are more. */
    r.to->node_capacity = from->node_count + from->node_count / 8 + 8;
    r.to->nodes = arena_array(arena, r.to->node_capacity, sizeof *r.to->nodes);
    for (NodeId id = 0; id < from->node_count; id++) r.renamed[id] = NO_NODE;
    for (uint32_t i = 0; i < from->kernel_count; i++)
        *ARENA_PUSH(arena, r.to->kernels, r.to->kernel_count, r.to->kernel_capacity) =
            from->kernels[i];
    return r;
}

NodeId rewriter_copy(Rewriter *rewriter, NodeId id)
{
    if (rewriter->renamed[id] != NO_NODE) return rewriter->renamed[id];
    const Node *node = graph_node(rewriter->from, id);
    NodeId *operands = arena_array(rewriter->to->arena, node->operand_count, sizeof *operands);
    for (uint32_t i = 0; i < node->operand_count; i++)
        operands[i] = rewriter_value(rewriter, node->operands[i]);
    NodeId copy = graph_add(rewriter->to, node->op, operands, node->operand_count, &node->type,
                            &node->attributes, node->loc);
    Node *made = graph_node(rewriter->to, copy);
    made->layout = node->layout;
    made->kernel = node->kernel;
    rewriter->renamed[id] = copy;
    return copy;
}

/* Kernels are numbered in the order of their nodes; those that have none left are gone. */
static void drop_empty_kernels(Graph *graph)
{
    Kernel *kept = arena_array(graph->arena, graph->kernel_count, sizeof *kept);
    uint32_t count = 0;
    int last = NO_KERNEL;
    for (NodeId id = 0; id < graph->node_count; id++) {
        int kernel = graph->nodes[id].kernel;
        if (kernel != NO_KERNEL && kernel != last) kept[count++] = graph->kernels[kernel];
        if (kernel != NO_KERNEL) graph->nodes[id].kernel = (int)count - 1;
        last = kernel;
    }
    graph->kernels = kept;
    graph->kernel_count = graph->kernel_capacity = count;
}

Graph *graph_without_dead(const Graph *graph, Arena *arena)
{
    bool *live = arena_array(arena, graph->node_count, sizeof *live);
    for (uint32_t i = 0; i < graph->output_count; i++) live[graph->outputs[i].value] = true;
    for (NodeId id = graph->node_count; id-- > 0;) {
        const Node *node = &graph->nodes[id];
        if (node->op == OP_INPUT || node->op == OP_PARAM) live[id] = true;
        for (uint32_t i = 0; live[id] && i < node->operand_count; i++)
            live[node->operands[i]] = true;
    }
    Rewriter r = rewriter_new(graph, arena);
    for (NodeId id = 0; id < graph->node_count; id++)
        if (live[id]) rewriter_copy(&r, id);
    drop_empty_kernels(r.to);
    rewriter_copy_outputs(&r);
    return r.to;
}

void rewriter_copy_outputs(Rewriter *rewriter)
{
    const Graph *from = rewriter->from;
    for (uint32_t i = 0; i < from->output_count; i++)
        graph_add_output(rewriter->to, from->outputs[i].name, from->outputs[i].entry,
                         rewriter_value(rewriter, from->outputs[i].value));
}

Graph *rewriter_finish(Rewriter *rewriter)
{
    rewriter_copy_outputs(rewriter);
    return graph_without_dead(rewriter->to, rewriter->to->arena);
}
