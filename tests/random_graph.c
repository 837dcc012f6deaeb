/* random_graph.c: random values, axes and types to choose from, and the graph as a whole. */
#include "tests/random_graph.h"

#include "tests/random_ops.h"

#include <string.h>

enum { MOST_OPS = 25, MOST_OUTPUTS = 6 };

/* ---- axes and types ------------------------------------------------------------------------ */

static void add_name(AxisNames *names, const char *name)
{
    RAFTC_ASSERT(names->count < MAX_AXES);
    memset(names->name[names->count], 0, NAME_SIZE);
    strcpy(names->name[names->count++], name);
}

const char *names_text(Maker *m, const AxisNames *names)
{
    Text text = text_new(m->arena);
    for (int i = 0; i < names->count; i++)
        text_printf(&text, "%s%s", i ? ", " : "", names->name[i]);
    return text.data;
}

const char *fresh_name(Maker *m, const Type *first, const Type *second)
{
    static const char *const names[] = {"h", "w",  "c",  "k", "y", "x",      "f",
                                        "i", "ky", "kx", "d", "g", "raft_2", "fifteen_letters"};
    for (;;) {
        const char *name = names[from_to(m, 0, ARRAY_SIZE(names) - 1)];
        if (type_find(first, name) < 0 && (!second || type_find(second, name) < 0)) return name;
    }
}

int64_t new_extent(Maker *m)
{
    int64_t most[] = {1, 6, 6, 12, 20, 40, 72};
    return from_to(m, 1, most[from_to(m, 0, ARRAY_SIZE(most) - 1)]);
}

void shuffle(Maker *m, Type *type, int from)
{
    for (int i = type->rank - 1; i > from; i--) {
        int k = (int)from_to(m, from, i);
        Axis axis = type->axis[i];
        type->axis[i] = type->axis[k];
        type->axis[k] = axis;
    }
}

void append_axes(Maker *m, Type *type, int64_t most, const Type *other)
{
    for (int64_t count = from_to(m, 0, most); count > 0 && type->rank < MAX_AXES; count--) {
        int64_t extent = new_extent(m);
        Axis axis = axis_constant(fresh_name(m, type, other), extent);
        if (type_elements(type, NULL) * axis.extent <= m->most_elements) type_append(type, &axis);
    }
}

Type some_axes(Maker *m, const Type *type, int percent, int most)
{
    Type some = {.dtype = DTYPE_F32}, mixed = *type;
    shuffle(m, &mixed, 0);
    for (int i = 0; i < mixed.rank && some.rank < most; i++)
        if (is_constant(&mixed.axis[i]) && chance(m, percent)) type_append(&some, &mixed.axis[i]);
    return some;
}

AxisNames names_of(const Type *type)
{
    AxisNames names = {0};
    for (int i = 0; i < type->rank; i++) add_name(&names, type->axis[i].name);
    return names;
}

int pick_axis(Maker *m, const Type *type)
{
    Type one = some_axes(m, type, 100, 1);
    return one.rank ? type_find(type, one.axis[0].name) : -1;
}

/* ---- values -------------------------------------------------------------------------------- */

NodeId pick(Maker *m)
{
    NodeId count = m->graph->node_count, best = NO_NODE;
    if (chance(m, 30)) return count - 1;
    for (int tries = 0; tries < 4; tries++) {
        NodeId id = (NodeId)from_to(m, chance(m, 50) ? count * 3 / 4 : 0, count - 1);
        if (best == NO_NODE || graph_node(m->graph, best)->op == OP_PARAM) best = id;
    }
    return best;
}

/* Stored as a vector, or as up to 4 extents of which the axes are a split. */
static NodeId new_param(Maker *m, const Type *type)
{
    int64_t stored[4] = {1, 1, 1, 1};
    int rank = (int)from_to(m, 1, 4);
    for (int i = 0, at = 0; i < type->rank; i++) {
        if (at + 1 < rank && i > 0 && stored[at] > 1 && chance(m, 50)) at++;
        stored[at] *= type->axis[i].extent;
    }
    const char *name = arena_printf(m->arena, "p.%d", m->declared++);
    return build_param(m->graph, name, type, type->rank ? rank : 0, stored, (Loc){0});
}

NodeId new_input(Maker *m, const Type *type)
{
    return build_input(m->graph, arena_printf(m->arena, "x%d", m->declared++), type, (Loc){0});
}

NodeId new_weight(Maker *m, const Type *type)
{
    int64_t kind = type->rank ? from_to(m, 0, 14) : 3;
    if (kind == 0) return build_unary(m->graph, OP_GELU, new_param(m, type), (Loc){0});
    Type stored = *type;
    if (kind == 1) {
        shuffle(m, &stored, 0);
        return build_rearrange(m->graph, new_param(m, &stored), "", type, (Loc){0});
    }
    if (kind == 2) {
        Axis *axis = &stored.axis[from_to(m, 0, type->rank - 1)];
        int64_t extent = axis->extent, more = from_to(m, 0, 3), offset = from_to(m, 0, more);
        axis->extent += more;
        return build_slice(m->graph, new_param(m, &stored), axis->name, offset, extent, (Loc){0});
    }
    return new_param(m, type);
}

bool is_part(const Type *part, const Type *whole)
{
    for (int i = 0; i < part->rank; i++) {
        int at = type_find(whole, part->axis[i].name);
        if (at < 0 || !axis_same_extent(&whole->axis[at], &part->axis[i])) return false;
    }
    return true;
}

NodeId pick_part(Maker *m, const Type *whole)
{
    for (int tries = chance(m, 50) ? 12 : 0; tries > 0; tries--) {
        NodeId id = pick(m);
        if (is_part(type_of(m, id), whole)) return id;
    }
    Type type = some_axes(m, whole, 70, MAX_AXES);
    return new_weight(m, &type);
}

/* ---- graphs -------------------------------------------------------------------------------- */

static MakeFunction *const make[] = {
    make_rearrange, make_rearrange, make_unfold,    make_slice,  make_concat,    make_read,
    make_write,     make_pack,      make_linear,    make_linear, make_layernorm, make_gelu,
    make_add,       make_add,       make_mul,       make_mean,   make_resample,  make_mlp,
    make_mlp,       make_head,      make_embedding, make_twin,   make_training,
};

static bool is_small(const Maker *m, NodeId first)
{
    for (NodeId id = first; id < m->graph->node_count; id++)
        if (type_elements(type_of(m, id), NULL) > m->most_elements ||
            op_cost(m->graph, id) > 40 * m->most_elements)
            return false;
    return true;
}

/* One op, or several that belong together; false where none was added. */
static bool add_op(Maker *m)
{
    NodeId mark = m->graph->node_count;
    int declared = m->declared;
    NodeId made = make[from_to(m, 0, (int64_t)ARRAY_SIZE(make) - 1)](m);
    if (made != NO_NODE && is_small(m, mark)) return true;
    m->graph->node_count = mark;
    m->declared = declared;
    return false;
}

/* An output has b first; what the caller gave is not output as it is. */
static NodeId as_output(Maker *m, NodeId id)
{
    Op op = graph_node(m->graph, id)->op;
    Type type = *type_of(m, id);
    int b = type_find(&type, "b");
    if (b == 0 && op != OP_INPUT) return id;
    type.axis[b] = type.axis[0];
    type.axis[0] = axis_symbol("b");
    shuffle(m, &type, 1);
    return build_rearrange(m->graph, id, "", &type, (Loc){0});
}

/* The last value, most of those that nothing uses, and some others. */
static void add_outputs(Maker *m)
{
    Graph *g = m->graph;
    uint32_t *uses = graph_uses(g, m->arena);
    NodeId count = g->node_count, last = 0;
    for (NodeId id = 0; id < count; id++)
        if (type_find(type_of(m, id), "b") >= 0) last = id;
    for (NodeId id = 0; id <= last; id++) {
        if (type_find(type_of(m, id), "b") < 0) continue;
        bool wanted = id == last || (uses[id] == 0 && chance(m, 80)) || chance(m, 4);
        if (!wanted || (g->output_count + 1 == MOST_OUTPUTS && id != last)) continue;
        const char *name = arena_printf(m->arena, "out%u", g->output_count);
        const char *entry = chance(m, 75) ? "forward" : "features";
        graph_add_output(g, name, entry, as_output(m, id));
    }
}

Graph *random_graph(Arena *arena, uint64_t seed, int64_t most_elements)
{
    Random random = {seed};
    Maker m = {.graph = graph_new(arena, "random"), .arena = arena, .random = &random};
    m.most_elements = most_elements;
    for (int64_t count = from_to(&m, 1, 3); count > 0; count--) {
        Type type = type_make(DTYPE_F32, "b");
        append_axes(&m, &type, 4, &type);
        new_input(&m, &type);
    }
    for (int64_t left = from_to(&m, 1, MOST_OPS), tries = 8 * left; left > 0 && tries > 0; tries--)
        left -= add_op(&m);
    add_outputs(&m);
    m.graph = graph_without_dead(m.graph, arena);
    return chance(&m, 25) ? random_kernels(&m) : m.graph;
}
