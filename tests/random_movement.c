/* random_movement.c: random ops that move elements. */
#include "tests/random_ops.h"

#include <string.h>

/* ---- moving elements ----------------------------------------------------------------------- */

/* Splits one axis in two or three. */
static void split_axis(Maker *m, const Type *x, int axis, Type *result, Text *groups)
{
    int64_t left = x->axis[axis].extent;
    text_printf(groups, "%s%s -> (", groups->length ? "; " : "", x->axis[axis].name);
    for (int parts = (int)from_to(m, 2, 3); parts > 0; parts--) {
        int64_t extent = parts == 1 ? left : from_to(m, 1, left);
        while (left % extent) extent--;
        Axis made = axis_constant(fresh_name(m, result, x), extent);
        type_append(result, &made);
        text_printf(groups, "%s%s", made.name, parts == 1 ? ")" : ", ");
        left /= extent;
    }
}

/* Merges the axes from `first` to `last`. */
static void merge_axes(Maker *m, const Type *x, int first, int last, Type *result, Text *groups)
{
    int64_t extent = 1;
    text_printf(groups, "%s(", groups->length ? "; " : "");
    for (int i = first; i <= last; i++) {
        extent *= x->axis[i].extent;
        text_printf(groups, "%s%s", x->axis[i].name, i == last ? ")" : ", ");
    }
    Axis made = axis_constant(fresh_name(m, result, x), extent);
    type_append(result, &made);
    text_printf(groups, " -> %s", made.name);
}

NodeId make_rearrange(Maker *m)
{
    NodeId id = pick(m);
    Type x = *type_of(m, id), result = {.dtype = DTYPE_F32};
    Text groups = text_new(m->arena);
    int split = x.rank; /* axes when all splits are made */
    shuffle(m, &x, 0);
    for (int i = 0; i < x.rank; i++) {
        int merged = i;
        while (merged + 1 < x.rank && is_constant(&x.axis[i]) && is_constant(&x.axis[merged + 1]) &&
               chance(m, 30))
            merged++;
        if (merged > i) {
            merge_axes(m, &x, i, merged, &result, &groups);
        } else if (is_constant(&x.axis[i]) && split + 2 <= MAX_AXES && chance(m, 25)) {
            split_axis(m, &x, i, &result, &groups);
            split += 2;
        } else if (is_constant(&x.axis[i]) && chance(m, 15)) {
            Axis made = axis_constant(fresh_name(m, &result, &x), x.axis[i].extent);
            type_append(&result, &made);
            text_printf(&groups, "%s%s -> %s", groups.length ? "; " : "", x.axis[i].name,
                        made.name);
        } else {
            type_append(&result, &x.axis[i]);
        }
        i = merged;
    }
    if (chance(m, 70)) shuffle(m, &result, 0);
    return build_rearrange(m->graph, id, groups.data, &result, (Loc){0});
}

NodeId make_unfold(Maker *m)
{
    NodeId id = pick(m);
    const Type x = *type_of(m, id), from = some_axes(m, &x, 60, 3);
    Window windows[3];
    const AxisNames names = names_of(&from);
    Type result = type_without(&x, &names);
    if (from.rank == 0 || x.rank + from.rank > MAX_AXES) return NO_NODE;
    for (int i = 0; i < from.rank; i++) {
        const Axis *axis = &from.axis[i];
        Window *w = &windows[i];
        *w = (Window){.pad = from_to(m, 0, 3)};
        w->stride = from_to(m, 1, 4);
        int64_t padded = axis->extent + 2 * w->pad;
        w->kernel = from_to(m, 1, padded < 5 ? padded : 5);
        Axis outer = axis_constant(axis->name, (padded - w->kernel) / w->stride + 1);
        if (chance(m, 50)) outer = axis_constant(fresh_name(m, &result, &x), outer.extent);
        Axis inner = axis_constant(fresh_name(m, &result, &x), w->kernel);
        if (strcmp(inner.name, outer.name) == 0) return NO_NODE;
        strcpy(w->from, axis->name);
        strcpy(w->outer, outer.name);
        strcpy(w->inner, inner.name);
        type_append(&result, &outer);
        type_append(&result, &inner);
    }
    if (chance(m, 50)) shuffle(m, &result, 0);
    return build_unfold(m->graph, id, windows, from.rank, &result, (Loc){0});
}

static NodeId slice_of(Maker *m, NodeId x, int axis)
{
    const Axis of = type_of(m, x)->axis[axis];
    int64_t extent = from_to(m, 1, of.extent), offset = from_to(m, 0, of.extent - extent);
    return build_slice(m->graph, x, of.name, offset, extent, (Loc){0});
}

NodeId make_slice(Maker *m)
{
    NodeId x = pick(m);
    int axis = pick_axis(m, type_of(m, x));
    return axis < 0 ? NO_NODE : slice_of(m, x, axis);
}

/* The value, parts of it, what is computed of it, and parameters. */
NodeId make_concat(Maker *m)
{
    NodeId x = pick(m), parts[4];
    int axis = pick_axis(m, type_of(m, x));
    uint32_t count = (uint32_t)from_to(m, 1, 4);
    if (axis < 0) return NO_NODE;
    bool batched = false;
    for (int i = 0; i < type_of(m, x)->rank; i++) batched |= !is_constant(&type_of(m, x)->axis[i]);
    for (uint32_t i = 0; i < count; i++) {
        Type type = *type_of(m, x);
        type.axis[axis].extent = from_to(m, 1, 5);
        switch (from_to(m, 0, 3)) {
        case 0:
            parts[i] = slice_of(m, x, axis);
            break;
        case 1:
            parts[i] = build_unary(m->graph, OP_GELU, x, (Loc){0});
            break;
        case 2:
            parts[i] = batched ? x : new_weight(m, &type);
            break;
        default:
            parts[i] = x;
        }
    }
    return build_concat(m->graph, parts, count, type_of(m, x)->axis[axis].name, (Loc){0});
}

/* Of each axis of x an index over new axes, which may well lead outside. */
NodeId make_read(Maker *m)
{
    NodeId id = pick(m);
    const Type x = *type_of(m, id);
    Type space = {.dtype = DTYPE_F32};
    Map map = {.rank = x.rank};
    for (int i = 0; i < x.rank; i++)
        if (!is_constant(&x.axis[i])) type_append(&space, &x.axis[i]);
    append_axes(m, &space, 4, &space);
    shuffle(m, &space, 0);
    for (int i = 0; i < x.rank; i++) {
        Index *index = &map.dim[i];
        int same = type_find(&space, x.axis[i].name);
        if (!is_constant(&x.axis[i])) {
            *index = index_axis(same);
            continue;
        }
        index->offset = from_to(m, chance(m, 30) ? -3 : 0, x.axis[i].extent - 1);
        for (int k = 0; k < space.rank; k++)
            if (is_constant(&space.axis[k]) && chance(m, 35))
                index->coefficient[k] = chance(m, 60) ? 1 : from_to(m, -2, 3);
    }
    return build_read(m->graph, id, &map, &space, (Loc){0});
}

/* Merges and transpositions, as a map. */
NodeId make_write(Maker *m)
{
    NodeId id = pick(m);
    const Type x = *type_of(m, id);
    Type mixed = x, result = {.dtype = DTYPE_F32};
    Map map = {0};
    shuffle(m, &mixed, 0);
    for (int i = 0; i < mixed.rank;) {
        Axis axis = mixed.axis[i];
        Index index = {0};
        int64_t weight = 1;
        do { /* the digits of one index, the least significant first */
            index.coefficient[type_find(&x, mixed.axis[i].name)] = weight;
            weight *= mixed.axis[i++].extent;
        } while (i < mixed.rank && is_constant(&axis) && is_constant(&mixed.axis[i]) &&
                 chance(m, 40));
        if (is_constant(&axis)) axis = axis_constant(fresh_name(m, &result, NULL), weight);
        map.dim[map.rank++] = index;
        type_append(&result, &axis);
    }
    return build_write(m->graph, id, &map, &result, (Loc){0});
}

/* The digits of each axis, in any order, perhaps with padding. */
static Layout random_layout(Maker *m, const Type *type)
{
    Layout layout = {0};
    for (int i = 0; i < type->rank; i++) {
        int64_t extent = type->axis[i].extent, tile = from_to(m, 2, 16);
        bool tiled = extent > 1 && layout.rank + type->rank - i < MAX_AXES && chance(m, 40);
        layout.dim[layout.rank].axis = i;
        layout.dim[layout.rank].divisor = tiled ? tile : 1;
        layout.dim[layout.rank++].extent = tiled ? (extent + tile - 1) / tile : extent;
        if (!tiled) continue;
        layout.dim[layout.rank].axis = i;
        layout.dim[layout.rank].divisor = 1;
        layout.dim[layout.rank++].extent = tile;
    }
    for (int i = layout.rank - 1; i > 0; i--) {
        int k = (int)from_to(m, 0, i);
        Layout swapped = layout;
        swapped.dim[i] = layout.dim[k];
        swapped.dim[k] = layout.dim[i];
        layout = swapped;
    }
    return layout;
}

NodeId make_pack(Maker *m)
{
    NodeId x = pick(m), made = build_unary(m->graph, OP_PACK, x, (Loc){0});
    graph_node(m->graph, made)->layout = random_layout(m, type_of(m, x));
    return made;
}
