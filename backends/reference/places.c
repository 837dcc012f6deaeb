/* places.c: which elements of its operand an op takes, where names of axes alone do not say it. */
#include "backends/reference/reference.h"

#include <stdlib.h>
#include <string.h>

static void append_all(Type *type, const Type *from)
{
    for (int i = 0; i < from->rank; i++) type_append(type, &from->axis[i]);
}

void rearrange_spaces(const Node *node, const Type *operand, Type *from, Type *to)
{
    const Attributes *a = &node->attributes;
    *from = *to = (Type){.dtype = operand->dtype};
    Type rest = *operand;
    for (int i = 0; i < a->group_count; i++) {
        const Group *group = &a->groups[i];
        Type before = type_select(operand, &group->from);
        Type after = type_select(&node->type, &group->to);
        append_all(from, &before);
        append_all(to, &after);
        rest = type_without(&rest, &group->from);
    }
    append_all(from, &rest);
    append_all(to, &rest);
}

Map window_map(const Node *node, const Type *operand)
{
    const Attributes *a = &node->attributes;
    Map map = {.rank = operand->rank};
    for (int i = 0; i < operand->rank; i++) {
        int same = type_find(&node->type, operand->axis[i].name);
        if (same >= 0) map.dim[i] = index_axis(same);
        for (int k = 0; k < a->window_count; k++) {
            const Window *window = &a->windows[k];
            if (strcmp(window->from, operand->axis[i].name) != 0) continue;
            map.dim[i] = (Index){.offset = -window->pad};
            map.dim[i].coefficient[type_find(&node->type, window->outer)] = window->stride;
            map.dim[i].coefficient[type_find(&node->type, window->inner)] = 1;
        }
    }
    return map;
}

Map slice_map(const Node *node, const Type *operand)
{
    Map map = map_identity(operand, &node->type);
    map.dim[type_find(operand, node->attributes.over.name[0])].offset = node->attributes.offset;
    return map;
}

bool normal_tables(const Run *run, NodeId id, Normal *normal)
{
    const Node *node = run_node(run, id);
    Type outer = type_without(&node->type, &node->attributes.over);
    Type over = type_select(&node->type, &node->attributes.over);
    Walk x = operand_walk(run, id, &over, 0);
    uint32_t last = node->operand_count - 1;
    Walk scale = operand_walk(run, id, &over, last < 1 ? last : 1);
    Walk shift = operand_walk(run, id, &over, last < 2 ? last : 2);
    *normal = (Normal){.outer = operand_walk(run, id, &outer, 0),
                       .count = walk_points(&x),
                       .x = walk_table(&x),
                       .scale = walk_table(&scale),
                       .shift = walk_table(&shift)};
    return normal->x && normal->scale && normal->shift;
}

void normal_free(Normal *normal)
{
    free(normal->x);
    free(normal->scale);
    free(normal->shift);
}

/* Along one axis: where the elements of `made` take theirs from `tapped`. */
static Taps axis_taps(const Run *run, const Type *tapped, const Type *made, const char *axis)
{
    AxisNames name = {.count = 1};
    memcpy(name.name[0], axis, NAME_SIZE);
    Type in_space = type_select(tapped, &name), out_space = type_select(made, &name);
    Walk in = walk_names(&in_space, tapped, run->batch);
    Walk out = walk_names(&out_space, made, run->batch);
    Taps taps = {.tap = calloc((size_t)out.inner, sizeof *taps.tap), .count = out.inner};
    for (int64_t i = 0; taps.tap && i < taps.count; i++) {
        Tap *tap = &taps.tap[i];
        bicubic_taps(in.inner, out.inner, i, tap->offset, tap->weight);
        for (int k = 0; k < 4; k++) tap->offset[k] *= walk_step(&in);
        tap->result = i * walk_step(&out);
    }
    return taps;
}

bool resample_taps(const Run *run, NodeId id, bool adjoint, Taps *first, Taps *second)
{
    const AxisNames *over = &run_node(run, id)->attributes.over;
    const Type *operand = run_type(run, run_operand(run, id, 0)), *result = run_type(run, id);
    const Type *tapped = adjoint ? result : operand, *made = adjoint ? operand : result;
    *first = axis_taps(run, tapped, made, over->name[0]);
    *second = axis_taps(run, tapped, made, over->name[1]);
    return first->tap && second->tap;
}
