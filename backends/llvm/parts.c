/* parts.c: products whose sums are long, taken part by part.
 *
 * A unit keeps all its sums in scratch memory. For each part of the sum, in order, it brings what the
 * part takes of both operands to scratch memory, each in the order in which register tiles read it,
 * and adds the part to every tile. The order of a sum is that of its axes, whatever the parts. */
#include "backends/llvm/emit.h"

#include <string.h>

typedef struct Fill {
    Nest nest;
    NodeId operand;
    const char *lane; /* along which the operand lies in memory, or NULL */
} Fill;

/* The axis of a read along which it walks memory one element at a time, or NULL. */
static const char *memory_lane(const Emitter *e, NodeId id)
{
    const Node *read = graph_node(e->graph, id);
    const Node *stored = graph_node(e->graph, read->operands[0]);
    int last = stored->layout.rank ? stored->layout.dim[stored->layout.rank - 1].axis
                                   : stored->type.rank - 1;
    if (last < 0) return NULL;
    for (int i = 0; i < read->type.rank; i++)
        if (read->attributes.map.dim[last].coefficient[i] == 1 && !read->type.axis[i].symbol[0])
            return read->type.axis[i].name;
    return NULL;
}

static void fill_leaf(Nest *nest)
{
    Fill *fill = (Fill *)nest;
    Emitter *e = nest->e;
    Lanes lanes = leaf_lanes(nest, fill->lane);
    Place *place = schedule_place(&e->schedule, fill->operand);
    Slot slot = place->value;
    place->value.elements = 0;
    LLVMValueRef value = emit_value(e, fill->operand, lanes);
    place->value = slot;
    Affine at = slot_offset(e, &slot);
    bool along = slot.rank && lanes.axis && strcmp(slot.dim[slot.rank - 1].axis, lanes.axis) == 0;
    if (along || !lanes.axis) {
        store_lanes(e, value, e->scratch, &at, &lanes, along);
        return;
    }
    int64_t stride = 0;
    for (int i = 0; i < slot.rank; i++)
        if (strcmp(slot.dim[i].axis, lanes.axis) == 0) stride = slot.dim[i].stride;
    for (int i = 0; i < lanes.active; i++) {
        LLVMValueRef one = LLVMBuildExtractElement(e->builder, value, int_constant(e, i), "");
        store_lanes(e, one, e->scratch, &at, &(Lanes){NULL, 1, 1}, false);
        at.constant += stride;
    }
}

static void fill_slot(Emitter *e, const Stage *stage, int operand)
{
    const Node *linear = graph_node(e->graph, stage->root);
    const AxisNames *over = &linear->attributes.over;
    NodeId id = linear->operands[operand];
    Fill fill = {.nest = {.e = e, .stage = stage, .leaf = fill_leaf},
                 .operand = id,
                 .lane = memory_lane(e, id)};
    for (int i = 0; i < over->count; i++) {
        int64_t count = stage->product.part[i];
        bool is_lane = fill.lane && strcmp(over->name[i], fill.lane) == 0;
        if (count > 1)
            fill.nest.dim[fill.nest.count++] =
                (Dim){over->name[i], e->part_start[i],
                      count,         is_lane ? e->target->vector_floats : 1,
                      {0},           0};
        else if (is_lane)
            fill.lane = NULL;
    }
    add_dims(&fill.nest, graph_type(e->graph, id), over, fill.lane);
    emit_nest(&fill.nest, 0);
}

/* The parts along the axes of the sum from number `axis` on. */
static void walk_parts(Emitter *e, const Stage *stage, int axis)
{
    const Node *linear = graph_node(e->graph, stage->root);
    const AxisNames *over = &linear->attributes.over;
    if (axis == over->count) {
        fill_slot(e, stage, 0);
        fill_slot(e, stage, 1);
        emit_tiles(e, stage, NULL);
        return;
    }
    const Type *x = graph_type(e->graph, linear->operands[0]);
    const Axis *along = &x->axis[type_find(x, over->name[axis])];
    int64_t part = stage->product.part[axis], parts = along->extent / part; /* 0: the batch */
    int mark = e->coordinate_count;
    if (parts == 1) {
        e->part_start[axis] = affine_constant(0);
        coordinate_push(e, along->name, e->part_start[axis]);
        walk_parts(e, stage, axis + 1);
    } else {
        Loop loop = loop_begin(e, parts ? int_constant(e, parts) : e->batch);
        e->part_start[axis] = affine_value(loop.index, part);
        coordinate_push(e, along->name, e->part_start[axis]);
        walk_parts(e, stage, axis + 1);
        loop_end(e, &loop);
    }
    e->coordinate_count = mark;
}

void emit_parts(Emitter *e, const Stage *stage)
{
    e->sums = &schedule_place(&e->schedule, stage->root)->sums;
    e->step_of_sums = SUMS_START;
    emit_tiles(e, stage, NULL);
    e->parted = stage;
    e->step_of_sums = SUMS_ADD;
    walk_parts(e, stage, 0);
    e->parted = NULL;
    e->step_of_sums = SUMS_FINISH;
    emit_tiles(e, stage, NULL);
    e->step_of_sums = SUMS_WHOLE;
}
