/* kernels.c: makes kernels of sets of nodes. */
#include "passes/kernels.h"

#include <string.h>

bool node_mixes(const Graph *graph, const Node *node, const char *axis)
{
    const Attributes *a = &node->attributes;
    Mix mixes = op_info[node->op].mixes;
    if (mixes == MIX_NONE) return false;
    if (mixes == MIX_TAPS && graph_node(graph, node->operands[0])->op == OP_READ) return false;
    if (names_contain(&a->over, axis)) return true;
    for (int i = 0; i < a->group_count; i++)
        if (names_contain(&a->groups[i].from, axis) || names_contain(&a->groups[i].to, axis))
            return true;
    for (int i = 0; i < a->window_count; i++)
        if (strcmp(a->windows[i].from, axis) == 0 || strcmp(a->windows[i].outer, axis) == 0 ||
            strcmp(a->windows[i].inner, axis) == 0)
            return true;
    return false;
}

Draft draft_new(Arena *arena, const Graph *graph)
{
    Draft draft = {.graph = graph, .uses = graph_uses(graph, arena)};
    draft.group = arena_array(arena, graph->node_count, sizeof *draft.group);
    draft.walk = arena_array(arena, graph->node_count, sizeof *draft.walk);
    for (NodeId id = 0; id < graph->node_count; id++) draft.group[id] = -1;
    return draft;
}

bool draft_free(const Draft *draft, NodeId id)
{
    const Node *node = graph_node(draft->graph, id);
    return node->op != OP_INPUT && node->op != OP_PARAM && node->op != OP_READ &&
           node->kernel == NO_KERNEL && draft->group[id] < 0;
}

bool draft_is_link(const Draft *draft, NodeId id, Op op)
{
    return graph_node(draft->graph, id)->op == op && draft_free(draft, id) && draft->uses[id] == 1;
}

void draft_add(Draft *draft, const NodeId *members, int count)
{
    for (int i = 0; i < count; i++) draft->group[members[i]] = draft->count;
    NodeId last = members[count - 1];
    Op op = graph_node(draft->graph, last)->op;
    bool writes = draft->uses[last] == 1 && op != OP_WRITE && !is_movement(op);
    for (NodeId id = last + 1; writes && id < draft->graph->node_count; id++) {
        const Node *node = graph_node(draft->graph, id);
        if (node->op == OP_WRITE && node->operands[0] == last && draft_free(draft, id))
            draft->group[id] = draft->count;
    }
    draft->count++;
}

/* ---- finishing ------------------------------------------------------------------------------ */

typedef struct Finish {
    const Draft *draft;
    Rewriter rewriter;
    NodeId *first, *next;  /* members of each unit in order: kernels of the graph, then drafts */
    NodeId *inside;        /* number of a value inside the kernel being made */
    int *inside_of;        /* the unit for which inside[] holds */
    uint32_t *inside_uses; /* uses of a value by its own unit */
    bool *emitted;         /* by unit */
} Finish;

/* The unit that a node belongs to, or -1: existing kernels come first, then the drafts. */
static int unit_of(const Finish *f, NodeId id)
{
    const Node *node = graph_node(f->draft->graph, id);
    if (node->kernel != NO_KERNEL) return node->kernel;
    return f->draft->group[id] < 0 ? -1 : f->draft->group[id] + (int)f->draft->graph->kernel_count;
}

static bool is_virtual(const Finish *f, NodeId id)
{
    return graph_node(f->draft->graph, id)->op == OP_READ && unit_of(f, id) < 0;
}

static NodeId add_to_kernel(Finish *f, int kernel, NodeId made)
{
    graph_node(f->rewriter.to, made)->kernel = kernel;
    return made;
}

static NodeId bring_inside(Finish *f, int unit, int kernel, NodeId id);

/* What a read inside the kernel reads: a stored value, or another read. */
static NodeId bring_source(Finish *f, int unit, int kernel, NodeId id)
{
    return is_virtual(f, id) || f->inside_of[id] == unit ? bring_inside(f, unit, kernel, id)
                                                         : rewriter_value(&f->rewriter, id);
}

/* The number, inside kernel `unit`, of an operand: a member, a copy of a read, or a new plain read.
 */
static NodeId bring_inside(Finish *f, int unit, int kernel, NodeId id)
{
    if (f->inside_of[id] == unit) return f->inside[id];
    Graph *to = f->rewriter.to;
    const Node *node = graph_node(f->draft->graph, id);
    NodeId made;
    if (is_virtual(f, id)) {
        NodeId source = bring_source(f, unit, kernel, node->operands[0]);
        made = build_read(to, source, &node->attributes.map, &node->type, node->loc);
    } else {
        Map map = map_identity(&node->type, &node->type);
        made = build_read(to, rewriter_value(&f->rewriter, id), &map, &node->type, node->loc);
    }
    f->inside_of[id] = unit;
    return f->inside[id] = add_to_kernel(f, kernel, made);
}

/* The axes of every written value along which nothing in the kernel mixes. */
static void find_kernel_axes(Graph *to, int kernel)
{
    Kernel *k = &to->kernels[kernel];
    NodeId first, end;
    kernel_range(to, kernel, &first, &end);
    const Type *shape = NULL;
    for (NodeId id = first; id < end && !shape; id++)
        if (to->nodes[id].op == OP_WRITE) shape = graph_type(to, to->nodes[id].operands[0]);
    RAFTC_ASSERT(shape);
    for (int i = 0; i < shape->rank; i++) {
        const char *name = shape->axis[i].name;
        bool parallel = true;
        for (NodeId id = first; id < end; id++) {
            const Node *node = &to->nodes[id];
            bool boundary = node->op == OP_READ || node->op == OP_WRITE;
            if (!boundary && node_mixes(to, node, name)) parallel = false;
            if (node->op == OP_WRITE) {
                const Type *written = graph_type(to, node->operands[0]);
                int at = type_find(written, name);
                if (at < 0 || !axis_same_extent(&written->axis[at], &shape->axis[i]))
                    parallel = false;
            }
        }
        if (!parallel) continue;
        k->axis[k->rank] = shape->axis[i];
        k->tile[k->rank++] = 1;
    }
}

static NodeId copy_member(Finish *f, int unit, int kernel, NodeId id)
{
    const Node *node = graph_node(f->draft->graph, id);
    Graph *to = f->rewriter.to;
    if (is_movement(node->op)) {
        NodeId x = bring_inside(f, unit, kernel, node->operands[0]);
        NodeId before = to->node_count;
        NodeId made = lower_movement(to, node, x);
        for (NodeId i = before; i < to->node_count; i++) add_to_kernel(f, kernel, i);
        return made;
    }
    NodeId *operands = arena_array(to->arena, node->operand_count, sizeof *operands);
    for (uint32_t i = 0; i < node->operand_count; i++)
        operands[i] = node->op == OP_READ ? bring_source(f, unit, kernel, node->operands[i])
                                          : bring_inside(f, unit, kernel, node->operands[i]);
    NodeId made = graph_add(to, node->op, operands, node->operand_count, &node->type,
                            &node->attributes, node->loc);
    graph_node(to, made)->layout = node->layout;
    return add_to_kernel(f, kernel, made);
}

static void emit_node(Finish *f, NodeId id);

static void emit_outside_operands(Finish *f, int unit, NodeId id)
{
    const Node *node = graph_node(f->draft->graph, id);
    for (uint32_t i = 0; i < node->operand_count; i++) {
        NodeId operand = node->operands[i];
        if (is_virtual(f, operand)) emit_outside_operands(f, unit, operand);
        if (unit < 0 || unit_of(f, operand) != unit) emit_node(f, operand);
    }
}

static void emit_draft(Finish *f, int unit)
{
    Graph *to = f->rewriter.to;
    int kernel = (int)to->kernel_count;
    *ARENA_PUSH(to->arena, to->kernels, to->kernel_count, to->kernel_capacity) = (Kernel){0};
    for (NodeId id = f->first[unit]; id != NO_NODE; id = f->next[id]) {
        f->inside[id] = copy_member(f, unit, kernel, id);
        f->inside_of[id] = unit;
    }
    for (NodeId id = f->first[unit]; id != NO_NODE; id = f->next[id]) {
        const Node *made = graph_node(to, f->inside[id]);
        if (made->op == OP_WRITE) {
            f->rewriter.renamed[id] = f->inside[id];
        } else if (f->inside_uses[id] < f->draft->uses[id]) {
            Layout layout = made->layout;
            Map map = map_identity(&made->type, &made->type);
            Type type = made->type;
            NodeId write = build_write(to, f->inside[id], &map, &type, made->loc);
            graph_node(to, write)->layout = layout;
            f->rewriter.renamed[id] = add_to_kernel(f, kernel, write);
        }
    }
    find_kernel_axes(to, kernel);
    const char *walk = f->draft->walk[unit - (int)f->draft->graph->kernel_count];
    if (!walk) return;
    snprintf(to->kernels[kernel].walk, NAME_SIZE, "%s", walk);
    to->kernels[kernel].step = 1;
}

static void emit_node(Finish *f, NodeId id)
{
    if (f->rewriter.renamed[id] != NO_NODE) return;
    int unit = unit_of(f, id);
    if (unit < 0) {
        emit_outside_operands(f, unit, id);
        rewriter_copy(&f->rewriter, id);
        return;
    }
    if (f->emitted[unit]) return;
    f->emitted[unit] = true;
    for (NodeId member = f->first[unit]; member != NO_NODE; member = f->next[member])
        emit_outside_operands(f, unit, member);
    if (unit >= (int)f->draft->graph->kernel_count) {
        emit_draft(f, unit);
    } else {
        for (NodeId member = f->first[unit]; member != NO_NODE; member = f->next[member])
            rewriter_copy(&f->rewriter, member);
    }
}

Graph *draft_finish(PassContext *context, const Draft *draft)
{
    const Graph *graph = draft->graph;
    size_t nodes = graph->node_count, units = graph->kernel_count + (size_t)draft->count;
    Finish f = {.draft = draft, .rewriter = rewriter_new(graph, context->arena)};
    f.first = arena_array(context->arena, units, sizeof *f.first);
    f.next = arena_array(context->arena, nodes, sizeof *f.next);
    f.inside = arena_array(context->arena, nodes, sizeof *f.inside);
    f.inside_of = arena_array(context->arena, nodes, sizeof *f.inside_of);
    f.inside_uses = arena_array(context->arena, nodes, sizeof *f.inside_uses);
    f.emitted = arena_array(context->arena, units, sizeof *f.emitted);
    for (size_t i = 0; i < units; i++) f.first[i] = NO_NODE;
    for (NodeId id = graph->node_count; id-- > 0;) {
        f.inside_of[id] = -1;
        f.next[id] = NO_NODE;
        int unit = unit_of(&f, id);
        if (unit < 0) continue;
        f.next[id] = f.first[unit];
        f.first[unit] = id;
        for (uint32_t i = 0; i < graph->nodes[id].operand_count; i++)
            if (unit_of(&f, graph->nodes[id].operands[i]) == unit)
                f.inside_uses[graph->nodes[id].operands[i]]++;
    }
    for (NodeId id = 0; id < graph->node_count; id++) emit_node(&f, id);
    return rewriter_finish(&f.rewriter);
}

bool product_stays_in_cache(const Graph *graph, NodeId linear, const AxisNames *split,
                            const Target *target)
{
    const Node *node = graph_node(graph, linear);
    Type taken = type_without(graph_type(graph, node->operands[0]), split),
         given = type_without(&node->type, split);
    int64_t floats = type_elements(&taken, NULL) + type_elements(&given, NULL);
    return floats * (int64_t)sizeof(float) <= target->l2_bytes / 2;
}

bool shares_out_weights(const Graph *graph, NodeId linear, const Target *target)
{
    enum { FEW_POSITIONS = 64 };
    const Node *node = graph_node(graph, linear);
    const Type *weights = graph_type(graph, node->operands[1]);
    int64_t positions = 1;
    int of_weights = 0;
    for (int i = 0; i < node->type.rank; i++) {
        const Axis *axis = &node->type.axis[i];
        if (type_find(weights, axis->name) >= 0)
            of_weights++;
        else if (!axis->symbol[0])
            positions *= axis->extent;
    }
    return of_weights == 1 && positions <= FEW_POSITIONS &&
           type_elements(weights, NULL) * (int64_t)sizeof(float) > target->l2_bytes;
}
