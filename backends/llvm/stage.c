/* stage.c: the loop nests of a kernel, but for products and reductions. */
#include "backends/llvm/emit.h"

#include <string.h>

Dim unit_dim(Emitter *e, const Axis *axis, int64_t tile)
{
    Dim dim = {
        .axis = axis->name, .base = affine_constant(0), .extent = axis->extent, .tile = tile};
    int k = schedule_axis(&e->schedule, axis->name);
    if (k >= 0) {
        dim.base = e->base[k];
        dim.extent = e->extent[k];
    }
    if (schedule_walks_along(&e->schedule, axis->name)) {
        dim.base = e->walked;
        dim.extent = e->graph->kernels[e->schedule.kernel].step;
    }
    return dim;
}

static void visit_tile(Nest *nest, int at, Affine start, int64_t count)
{
    Emitter *e = nest->e;
    int mark = e->coordinate_count;
    nest->dim[at].start = start;
    nest->dim[at].count = count;
    coordinate_push(e, nest->dim[at].axis, start);
    emit_nest(nest, at + 1);
    e->coordinate_count = mark;
}

void emit_nest(Nest *nest, int from)
{
    if (from == nest->count) {
        nest->leaf(nest);
        return;
    }
    Emitter *e = nest->e;
    const Dim dim = nest->dim[from];
    if (dim.extent == 0) { /* a symbol */
        Loop loop = loop_begin(e, e->batch);
        visit_tile(nest, from, affine_value(loop.index, 1), 1);
        loop_end(e, &loop);
        return;
    }
    int64_t full = dim.extent / dim.tile, rest = dim.extent % dim.tile;
    if (full == 1) {
        visit_tile(nest, from, dim.base, dim.tile);
    } else if (full > 1) {
        Loop loop = loop_begin(e, int_constant(e, full));
        Affine index = affine_value(loop.index, dim.tile);
        visit_tile(nest, from, affine_add(e, index, &dim.base, 1), dim.tile);
        loop_end(e, &loop);
    }
    if (rest > 0) {
        Affine start = dim.base;
        start.constant += full * dim.tile;
        visit_tile(nest, from, start, rest);
    }
}

Lanes tile_lanes(const Emitter *e, const char *axis, int64_t count)
{
    if (!axis) return (Lanes){NULL, 1, 1};
    return (Lanes){axis, e->target->vector_floats, (int)count};
}

void store_end(Emitter *e, const Stage *stage, Lanes lanes)
{
    LLVMValueRef value = emit_value(e, stage->end, lanes);
    const Slot *slot = &schedule_place(&e->schedule, stage->end)->value;
    if (slot->elements) {
        Affine offset = slot_offset(e, slot);
        bool padded =
            lanes.axis && slot->rank && strcmp(slot->dim[slot->rank - 1].axis, lanes.axis) == 0;
        store_lanes(e, value, e->scratch, &offset, &lanes, padded);
    }
    for (int i = 0; i < stage->write_count; i++) emit_write(e, stage->writes[i], value, lanes);
}

void add_dims(Nest *nest, const Type *type, const AxisNames *without, const char *lane)
{
    Emitter *e = nest->e;
    for (int i = 0; i < type->rank; i++) {
        const Axis *axis = &type->axis[i];
        if (axis->symbol[0] || (without && names_contain(without, axis->name))) continue;
        bool is_lane = lane && strcmp(lane, axis->name) == 0;
        nest->dim[nest->count++] = unit_dim(e, axis, is_lane ? e->target->vector_floats : 1);
    }
}

Lanes leaf_lanes(const Nest *nest, const char *lane)
{
    for (int i = 0; lane && i < nest->count; i++)
        if (strcmp(nest->dim[i].axis, lane) == 0)
            return tile_lanes(nest->e, lane, nest->dim[i].count);
    return (Lanes){NULL, 1, 1};
}

/* ---- map: every element on its own ---------------------------------------------------------- */

/* The value is emitted from its operands: its own slot is what is being filled. */
static void map_leaf(Nest *nest)
{
    Emitter *e = nest->e;
    NodeId end = nest->stage->end;
    Lanes lanes = leaf_lanes(nest, schedule_lane(&e->schedule, end));
    Slot slot = schedule_place(&e->schedule, end)->value;
    schedule_place(&e->schedule, end)->value.elements = 0;
    LLVMValueRef value = emit_value(e, end, lanes);
    schedule_place(&e->schedule, end)->value = slot;
    e->computed[end - e->schedule.first] = value;
    store_end(e, nest->stage, lanes);
    e->computed[end - e->schedule.first] = NULL;
}

/* Gelus of several vectors, whose polynomials are taken together. */
static void gelu_leaf(Nest *nest)
{
    Emitter *e = nest->e;
    NodeId end = nest->stage->end, x = graph_node(e->graph, end)->operands[0];
    const char *lane = schedule_lane(&e->schedule, end);
    int width = e->target->vector_floats, mark = e->coordinate_count;
    int64_t count = leaf_lanes(nest, lane).active, vectors = (count + width - 1) / width;
    Affine start = *coordinate_of(e, lane);
    LLVMValueRef value[MAX_TILE];
    for (int pass = 0; pass < 2; pass++) {
        for (int v = 0; v < vectors; v++) {
            int64_t left = count - (int64_t)v * width;
            Lanes lanes = {lane, width, (int)(left < width ? left : width)};
            Affine at = start;
            at.constant += (int64_t)v * width;
            coordinate_push(e, lane, at);
            e->computed[end - e->schedule.first] = pass == 0 ? NULL : value[v];
            if (pass == 0)
                value[v] = emit_value(e, x, lanes);
            else
                store_end(e, nest->stage, lanes);
            e->coordinate_count = mark;
        }
        if (pass == 0) emit_gelu_groups(e, value, (int)vectors, width);
    }
    e->computed[end - e->schedule.first] = NULL;
}

static void emit_map(Emitter *e, const Stage *stage)
{
    if (emit_turned_copy(e, stage)) return;
    Nest nest = {.e = e, .stage = stage, .leaf = map_leaf};
    const Node *node = graph_node(e->graph, stage->end);
    const char *lane = schedule_lane(&e->schedule, stage->end);
    if (node->op == OP_READ && stage->write_count > 0)
        lane = schedule_lane(&e->schedule, stage->writes[0]);
    e->schedule.lane[stage->end - e->schedule.first] = lane;
    add_dims(&nest, &node->type, NULL, lane);
    for (int i = 0; lane && node->op == OP_GELU && i < nest.count; i++) {
        if (strcmp(nest.dim[i].axis, lane) != 0) continue;
        nest.dim[i].tile *= gelus_together(e);
        nest.leaf = gelu_leaf;
    }
    emit_nest(&nest, 0);
}

/* ---- window --------------------------------------------------------------------------------- */

/* One run along the innermost axis of the window; lanes outside the tensor are zero. */
static void window_leaf(Nest *nest)
{
    Emitter *e = nest->e;
    NodeId id = nest->stage->root;
    const Node *read = graph_node(e->graph, id);
    const Type *operand = graph_type(e->graph, read->operands[0]);
    const Slot *window = &schedule_place(&e->schedule, id)->window;
    int width = e->target->vector_floats, last = operand->rank - 1;
    Affine at[MAX_AXES], to = affine_constant(window->offset);
    LLVMValueRef inside = NULL;
    for (int d = 0; d <= last; d++) {
        const Affine *local = &nest->dim[d].start;
        Affine base = window_base(e, read, d);
        to = affine_add(e, to, local, window->dim[d].stride);
        at[d] = affine_add(e, base, local, 1);
        if (d == last || operand->axis[d].symbol[0]) continue;
        LLVMValueRef index = affine_emit(e, &at[d]);
        LLVMValueRef here = LLVMBuildICmp(e->builder, LLVMIntULT, index,
                                          int_constant(e, operand->axis[d].extent), "");
        inside = emit_and(e, inside, here);
        at[d] = affine_value(LLVMBuildSelect(e->builder, inside, index, int_constant(e, 0), ""), 1);
    }
    int64_t count = nest->dim[last].count;
    LLVMValueRef mask =
        lanes_below(e, affine_emit(e, &at[last]), operand->axis[last].extent, count);
    if (inside) mask = emit_and(e, mask, splat(e, inside, width));
    Affine from = storage_offset(e, read->operands[0], at);
    LLVMValueRef value =
        load_masked(e, buffer_of(e, read->operands[0]), &from, mask, float_type(e, width));
    store_lanes(e, value, e->scratch, &to, &(Lanes){NULL, width, (int)count}, false);
}

/* The window's axes are the operand's, so its nest has coordinates of its own. */
static void emit_window(Emitter *e, const Stage *stage)
{
    const Slot *window = &schedule_place(&e->schedule, stage->root)->window;
    Nest nest = {.e = e, .stage = stage, .leaf = window_leaf, .count = window->rank};
    for (int d = 0; d < window->rank; d++) {
        bool innermost = d == window->rank - 1;
        nest.dim[d] = (Dim){window->dim[d].axis,
                            affine_constant(0),
                            window->dim[d].extent,
                            innermost ? e->target->vector_floats : 1,
                            {0},
                            0};
    }
    emit_nest(&nest, 0);
}

void emit_stage(Emitter *e, const Stage *stage)
{
    switch (stage->kind) {
    case STAGE_WINDOW:
        emit_window(e, stage);
        break;
    case STAGE_STATISTICS:
        emit_statistics(e, stage);
        break;
    case STAGE_TURN:
        emit_turn(e, stage);
        break;
    case STAGE_MAP:
        emit_map(e, stage);
        break;
    case STAGE_REDUCTION:
        emit_reduction(e, stage);
        break;
    case STAGE_PRODUCT:
        emit_product(e, stage, NULL);
        break;
    }
}
