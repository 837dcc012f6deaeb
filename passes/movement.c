/* movement.c: the ops that only move elements, as reads and writes with access maps. */
#include "passes/kernels.h"

#include <string.h>

bool is_movement(Op op)
{
    return op == OP_REARRANGE || op == OP_UNFOLD || op == OP_SLICE;
}

/* sum of axis * (product of the extents to its right), over `names` as axes of `space`. */
static Index mixed_radix(const AxisNames *names, const Type *space)
{
    Index index = {0};
    int64_t stride = 1;
    for (int i = names->count; i-- > 0;) {
        int axis = type_find(space, names->name[i]);
        RAFTC_ASSERT(axis >= 0);
        index.coefficient[axis] = stride;
        stride *= space->axis[axis].extent;
    }
    return index;
}

/* The group that takes the axis `name` in, or NULL. */
static const Group *group_of(const Attributes *a, const char *name)
{
    for (int i = 0; i < a->group_count; i++)
        if (names_contain(&a->groups[i].from, name)) return &a->groups[i];
    return NULL;
}

static bool merges(const Group *group)
{
    return group && group->from.count > 1;
}

static NodeId lower_window(Graph *to, const Node *node, NodeId x)
{
    Type from = *graph_type(to, x);
    Map map = {.rank = from.rank};
    for (int i = 0; i < from.rank; i++) {
        const char *name = from.axis[i].name;
        int at = type_find(&node->type, name);
        if (at >= 0) map.dim[i] = index_axis(at);
        for (int k = 0; k < node->attributes.window_count; k++) {
            const Window *w = &node->attributes.windows[k];
            if (strcmp(w->from, name) != 0) continue;
            map.dim[i] = (Index){.offset = -w->pad};
            map.dim[i].coefficient[type_find(&node->type, w->outer)] = w->stride;
            map.dim[i].coefficient[type_find(&node->type, w->inner)] = 1;
        }
    }
    return build_read(to, x, &map, &node->type, node->loc);
}

static NodeId lower_slice(Graph *to, const Node *node, NodeId x)
{
    Map map = map_identity(graph_type(to, x), &node->type);
    map.dim[type_find(graph_type(to, x), node->attributes.over.name[0])].offset =
        node->attributes.offset;
    return build_read(to, x, &map, &node->type, node->loc);
}

/* Splits and renames: a read. Its result has the order of the node's result where that is the end
 * of it. */
static NodeId split_axes(Graph *to, const Node *node, NodeId x, bool last)
{
    const Attributes *a = &node->attributes;
    const Type from = *graph_type(to, x);
    Type type = {.dtype = from.dtype};
    for (int i = 0; i < from.rank; i++) {
        const Group *g = group_of(a, from.axis[i].name);
        if (!g || merges(g)) type_append(&type, &from.axis[i]);
        for (int k = 0; g && !merges(g) && k < g->to.count; k++)
            type_append(&type, &node->type.axis[type_find(&node->type, g->to.name[k])]);
    }
    if (last) type = node->type;
    Map map = {.rank = from.rank};
    for (int i = 0; i < from.rank; i++) {
        const Group *g = group_of(a, from.axis[i].name);
        map.dim[i] = g && !merges(g) ? mixed_radix(&g->to, &type)
                                     : index_axis(type_find(&type, from.axis[i].name));
    }
    if (type_equal(&from, &type) && map_is_identity(&map, type.rank)) return x;
    return build_read(to, x, &map, &type, node->loc);
}

/* Merges, once everything else is split: a write. A group merges into one axis (check_REARRANGE).
 */
static NodeId merge_axes(Graph *to, const Node *node, NodeId x)
{
    const Attributes *a = &node->attributes;
    const Type *from = graph_type(to, x);
    Map map = {.rank = node->type.rank};
    for (int i = 0; i < node->type.rank; i++) {
        const char *name = node->type.axis[i].name;
        const Group *merged = NULL;
        for (int k = 0; k < a->group_count; k++)
            if (merges(&a->groups[k]) && names_contain(&a->groups[k].to, name))
                merged = &a->groups[k];
        map.dim[i] = merged ? mixed_radix(&merged->from, from) : index_axis(type_find(from, name));
    }
    return build_write(to, x, &map, &node->type, node->loc);
}

static NodeId lower_rearrange(Graph *to, const Node *node, NodeId x)
{
    const Attributes *a = &node->attributes;
    bool any_merge = false;
    for (int i = 0; i < a->group_count; i++) any_merge |= merges(&a->groups[i]);
    x = split_axes(to, node, x, !any_merge);
    return any_merge ? merge_axes(to, node, x) : x;
}

NodeId lower_movement(Graph *to, const Node *node, NodeId x)
{
    if (node->op == OP_UNFOLD) return lower_window(to, node, x);
    if (node->op == OP_SLICE) return lower_slice(to, node, x);
    return lower_rearrange(to, node, x);
}
