/* value.c: emits the value of a node at the present coordinates. */
#include "backends/llvm/emit.h"

#include <string.h>

static int find_argument(const Emitter *e, NodeId stored)
{
    for (int i = 0; i < e->step->argument_count; i++)
        if (e->plan->buffers[e->step->arguments[i]].value == stored) return i;
    RAFTC_BUG("value %u is no argument of kernel %d", stored, e->schedule.kernel);
}

LLVMValueRef buffer_of(Emitter *e, NodeId stored)
{
    return e->buffer[find_argument(e, stored)];
}

/* a * (extent of the axis); an extent that is a symbol is known at run time only. */
static Affine scale_by_extent(Emitter *e, Affine a, const Axis *axis, int64_t extent)
{
    if (!axis->symbol[0]) return affine_scale(a, extent);
    if (a.count == 0 && a.constant == 0) return a;
    return affine_value(LLVMBuildNSWMul(e->builder, affine_emit(e, &a), e->batch, ""), 1);
}

/* The stride along dimension d of what is stored, where an argument tells it; else NULL. */
static LLVMValueRef told_stride(const Emitter *e, NodeId stored, int d)
{
    const TwinStrides *strides = e->strides;
    for (int i = 0; strides && i < strides->of.count; i++)
        if (strides->of.item[i].stored == stored && strides->of.item[i].dim == d)
            return LLVMGetParam(e->function, (unsigned)(KERNEL_PARAMETERS + strides->argument[i]));
    return NULL;
}

/* a + index * stride: the constant part apart, since it is the same in all turns of a loop. */
static Affine add_told(Emitter *e, Affine a, Affine index, LLVMValueRef stride)
{
    Affine fixed = affine_constant(index.constant);
    index.constant = 0;
    const Affine *part[] = {&index, &fixed};
    for (int i = 0; i < 2; i++) {
        if (part[i]->count == 0 && part[i]->constant == 0) continue;
        LLVMValueRef product = LLVMBuildNSWMul(e->builder, affine_emit(e, part[i]), stride, "");
        a = affine_add(e, a, (Affine[]){affine_value(product, 1)}, 1);
    }
    return a;
}

/* Of what is stored row-major, some strides being told. */
static Affine told_offset(Emitter *e, NodeId stored, const Affine at[MAX_AXES])
{
    const Type *type = graph_type(e->graph, stored);
    Affine offset = affine_constant(0);
    int64_t stride = 1;
    for (int d = type->rank; d-- > 0; stride *= type->axis[d].extent) {
        LLVMValueRef told = told_stride(e, stored, d);
        offset = told ? add_told(e, offset, at[d], told) : affine_add(e, offset, &at[d], stride);
    }
    return offset;
}

Affine storage_offset(Emitter *e, NodeId stored, const Affine at[MAX_AXES])
{
    const Node *node = graph_node(e->graph, stored);
    for (int d = 0; d < node->type.rank; d++)
        if (told_stride(e, stored, d)) return told_offset(e, stored, at);
    Layout layout = node->layout.rank ? node->layout : layout_row_major(&node->type);
    Affine offset = affine_constant(0);
    for (int i = 0; i < layout.rank; i++) {
        int axis = layout.dim[i].axis;
        int64_t divisor = layout.dim[i].divisor, extent = layout.dim[i].extent;
        Affine digit = affine_divide(e, &at[axis], divisor);
        bool top =
            node->type.axis[axis].symbol[0] || divisor * extent >= node->type.axis[axis].extent;
        if (!top) digit = affine_modulo(e, &digit, extent);
        offset = scale_by_extent(e, offset, &node->type.axis[axis], extent);
        offset = affine_add(e, offset, &digit, 1);
    }
    return offset;
}

bool is_contiguous(Emitter *e, NodeId stored, int axis, const Affine *at, int width)
{
    const Node *node = graph_node(e->graph, stored);
    if (node->layout.rank == 0) return axis == node->type.rank - 1;
    int last = node->layout.rank - 1;
    if (node->layout.dim[last].axis != axis || node->layout.dim[last].divisor != 1) return false;
    int64_t extent = node->layout.dim[last].extent;
    for (int i = 0; i < at->count; i++)
        if (at->term[i].scale % extent != 0) return false;
    (void)e;
    return at->constant >= 0 && at->constant % extent + width <= extent;
}

LLVMValueRef emit_each_lane(Emitter *e, NodeId id, Lanes lanes)
{
    LLVMValueRef value = LLVMConstNull(float_type(e, lanes.width));
    Affine start = *coordinate_of(e, lanes.axis);
    int mark = e->coordinate_count;
    for (int i = 0; i < lanes.active; i++) {
        Affine at = start;
        at.constant += i;
        coordinate_push(e, lanes.axis, at);
        LLVMValueRef one = emit_value(e, id, (Lanes){NULL, 1, 1});
        value = LLVMBuildInsertElement(e->builder, value, one, int_constant(e, i), "");
        e->coordinate_count = mark;
    }
    return value;
}

LLVMValueRef emit_and(Emitter *e, LLVMValueRef a, LLVMValueRef b)
{
    return a && b ? LLVMBuildAnd(e->builder, a, b, "") : a ? a : b;
}

LLVMValueRef lanes_below(Emitter *e, LLVMValueRef start, int64_t bound, int64_t count)
{
    int width = e->target->vector_floats;
    if (width == 1) return LLVMBuildICmp(e->builder, LLVMIntULT, start, int_constant(e, bound), "");
    LLVMValueRef lane[MAX_TILE], limit[MAX_TILE], keep[MAX_TILE];
    for (int i = 0; i < width; i++) {
        lane[i] = int_constant(e, i);
        limit[i] = int_constant(e, bound);
        keep[i] = LLVMConstInt(LLVMInt1TypeInContext(e->context), i < count, false);
    }
    LLVMValueRef index = LLVMBuildAdd(e->builder, splat(e, start, width),
                                      LLVMConstVector(lane, (unsigned)width), "");
    LLVMValueRef below =
        LLVMBuildICmp(e->builder, LLVMIntULT, index, LLVMConstVector(limit, (unsigned)width), "");
    return emit_and(e, below, LLVMConstVector(keep, (unsigned)width));
}

/* May a read leave its operand along dimension d? */
static bool leaves_along(const Emitter *e, const Node *read, int d)
{
    const Type *operand = graph_type(e->graph, read->operands[0]);
    return index_may_leave(&read->attributes.map.dim[d], &read->type, &operand->axis[d]);
}

/* i1: are the indices of a read inside the operand, but for dimension `without`? NULL where they cannot be outside. */
static LLVMValueRef emit_inside(Emitter *e, const Node *read, const Affine at[MAX_AXES],
                                int without)
{
    const Type *operand = graph_type(e->graph, read->operands[0]);
    LLVMValueRef inside = NULL;
    for (int d = 0; d < operand->rank; d++) {
        if (d == without || !leaves_along(e, read, d)) continue;
        /* One unsigned comparison: a negative index is a huge one. */
        LLVMValueRef check = LLVMBuildICmp(e->builder, LLVMIntULT, affine_emit(e, &at[d]),
                                           int_constant(e, operand->axis[d].extent), "");
        inside = inside ? LLVMBuildAnd(e->builder, inside, check, "") : check;
    }
    return inside;
}

/* Indices outside the operand become 0: the value there is not used. */
static void clamp_outside(Emitter *e, LLVMValueRef inside, Affine *at)
{
    LLVMValueRef index = affine_emit(e, at);
    *at = affine_value(LLVMBuildSelect(e->builder, inside, index, int_constant(e, 0), ""), 1);
}

static LLVMValueRef zero_outside(Emitter *e, LLVMValueRef inside, LLVMValueRef value)
{
    if (!inside) return value;
    return LLVMBuildSelect(e->builder, inside, value, LLVMConstNull(LLVMTypeOf(value)), "");
}

static LLVMValueRef emit_stored(Emitter *e, NodeId stored, const Affine at[MAX_AXES], int lane_dim,
                                Lanes lanes)
{
    Affine offset = storage_offset(e, stored, at);
    if (lane_dim >= 0) return load_lanes(e, buffer_of(e, stored), &offset, &lanes, false);
    LLVMValueRef one = load_lanes(e, buffer_of(e, stored), &offset, &(Lanes){NULL, 1, 1}, false);
    return splat(e, one, lanes.width);
}

/* A read of a value of the same kernel: that value, at the mapped coordinates. */
static LLVMValueRef emit_nested(Emitter *e, const Node *read, const Affine at[MAX_AXES],
                                int lane_dim, Lanes lanes)
{
    const Type *operand = graph_type(e->graph, read->operands[0]);
    int mark = e->coordinate_count;
    for (int d = 0; d < operand->rank; d++) coordinate_push(e, operand->axis[d].name, at[d]);
    LLVMValueRef value;
    if (lane_dim >= 0) {
        lanes.axis = operand->axis[lane_dim].name;
        value = emit_value(e, read->operands[0], lanes);
    } else {
        value = splat(e, emit_value(e, read->operands[0], (Lanes){NULL, 1, 1}), lanes.width);
    }
    e->coordinate_count = mark;
    return value;
}

/* Are the lanes, of which some may be outside, a vector of what lies together? */
static bool takes_masked(const Emitter *e, const Node *read, int lane_dim, const Lanes *lanes)
{
    const Node *stored = graph_node(e->graph, read->operands[0]);
    return !schedule_holds(&e->schedule, read->operands[0]) && stored->layout.rank == 0 &&
           lane_dim == stored->type.rank - 1 && lanes->width == e->target->vector_floats;
}

static LLVMValueRef emit_masked(Emitter *e, const Node *read, const Affine at[MAX_AXES],
                                int lane_dim, const Lanes *lanes)
{
    NodeId stored = read->operands[0];
    int64_t extent = graph_type(e->graph, stored)->axis[lane_dim].extent;
    Affine offset = storage_offset(e, stored, at);
    LLVMValueRef mask = lanes_below(e, affine_emit(e, &at[lane_dim]), extent, lanes->active);
    return load_masked(e, buffer_of(e, stored), &offset, mask, float_type(e, lanes->width));
}

static Affine window_offset(Emitter *e, NodeId id, const Affine at[MAX_AXES]);

/* The one axis of the operand along which the lanes run: its index; -1: none, -2: more, or not by
 * ones. */
static int find_lane_dim(const Emitter *e, const Node *read, const Lanes *lanes)
{
    (void)e;
    int axis = lanes->axis ? type_find(&read->type, lanes->axis) : -1, found = -1;
    for (int d = 0; axis >= 0 && d < read->attributes.map.rank; d++) {
        int64_t c = read->attributes.map.dim[d].coefficient[axis];
        if (c == 0) continue;
        if (c != 1 || found >= 0) return -2;
        found = d;
    }
    return found;
}

static LLVMValueRef emit_read(Emitter *e, NodeId id, Lanes lanes)
{
    const Node *read = graph_node(e->graph, id);
    const Type *operand = graph_type(e->graph, read->operands[0]);
    const Slot *window = &schedule_place(&e->schedule, id)->window;
    bool nested = schedule_holds(&e->schedule, read->operands[0]);
    int lane_dim = find_lane_dim(e, read, &lanes);
    if (lane_dim == -2) return emit_each_lane(e, id, lanes);
    Affine at[MAX_AXES];
    for (int d = 0; d < operand->rank; d++)
        at[d] = index_at(e, &read->attributes.map.dim[d], &read->type);
    if (window->elements) {
        if (lane_dim >= 0 && lane_dim != window->rank - 1) return emit_each_lane(e, id, lanes);
        Affine offset = window_offset(e, id, at);
        Lanes wanted = lane_dim >= 0 ? lanes : (Lanes){NULL, 1, 1};
        LLVMValueRef value = load_lanes(e, e->scratch, &offset, &wanted, false);
        return lane_dim >= 0 ? value : splat(e, value, lanes.width);
    }
    bool leaves = lane_dim >= 0 && leaves_along(e, read, lane_dim);
    bool masked = leaves && takes_masked(e, read, lane_dim, &lanes);
    if (lane_dim >= 0 && !masked &&
        (leaves ||
         (!nested && !is_contiguous(e, read->operands[0], lane_dim, &at[lane_dim], lanes.width))))
        return emit_each_lane(e, id, lanes);
    LLVMValueRef inside = emit_inside(e, read, at, masked ? lane_dim : -1);
    for (int d = 0; inside && d < operand->rank; d++)
        if (leaves_along(e, read, d) && !(masked && d == lane_dim))
            clamp_outside(e, inside, &at[d]);
    LLVMValueRef value = masked   ? emit_masked(e, read, at, lane_dim, &lanes)
                         : nested ? emit_nested(e, read, at, lane_dim, lanes)
                                  : emit_stored(e, read->operands[0], at, lane_dim, lanes);
    return zero_outside(e, inside, value);
}

/* ---- scratch -------------------------------------------------------------------------------- */

/* Index along an axis, from the first of the unit, or of the present part of a chain or sum. */
static Affine local_index(Emitter *e, const char *axis)
{
    Affine at = *coordinate_of(e, axis);
    int k = schedule_axis(&e->schedule, axis);
    if (e->chain.count && strcmp(axis, e->chain.axis) == 0)
        return affine_add(e, at, &e->chain.start, -1);
    const AxisNames *over =
        e->parted ? &graph_node(e->graph, e->parted->root)->attributes.over : NULL;
    for (int i = 0; over && i < over->count; i++)
        if (strcmp(over->name[i], axis) == 0) return affine_add(e, at, &e->part_start[i], -1);
    if (k >= 0) return affine_add(e, at, &e->base[k], -1);
    return schedule_walks_along(&e->schedule, axis) ? affine_add(e, at, &e->walked, -1) : at;
}

Affine slot_offset(Emitter *e, const Slot *slot)
{
    Affine offset = affine_constant(slot->offset);
    for (int i = 0; i < slot->rank; i++) {
        Affine at = local_index(e, slot->dim[i].axis);
        if (slot->panel && i == slot->rank - 1)
            at = affine_add(e, *coordinate_of(e, slot->dim[i].axis), &e->panel_start, -1);
        offset = affine_add(e, offset, &at, slot->dim[i].stride);
    }
    return offset;
}

Affine window_base(Emitter *e, const Node *read, int d)
{
    const Index *index = &read->attributes.map.dim[d];
    Affine base = affine_constant(index->offset);
    for (int i = 0; i < read->type.rank; i++) {
        int k = schedule_axis(&e->schedule, read->type.axis[i].name);
        if (index->coefficient[i] != 0 && k >= 0)
            base = affine_add(e, base, &e->base[k], index->coefficient[i]);
    }
    return base;
}

static Affine window_offset(Emitter *e, NodeId id, const Affine at[MAX_AXES])
{
    const Node *read = graph_node(e->graph, id);
    const Slot *window = &schedule_place(&e->schedule, id)->window;
    Affine offset = affine_constant(window->offset);
    for (int d = 0; d < window->rank; d++) {
        Affine base = window_base(e, read, d), local = affine_add(e, at[d], &base, -1);
        offset = affine_add(e, offset, &local, window->dim[d].stride);
    }
    return offset;
}

LLVMValueRef load_slot(Emitter *e, const Slot *slot, Lanes lanes)
{
    int at = -1;
    for (int i = 0; lanes.axis && i < slot->rank; i++)
        if (strcmp(slot->dim[i].axis, lanes.axis) == 0) at = i;
    Affine offset = slot_offset(e, slot);
    if (at >= 0 && slot->dim[at].stride == 1)
        return load_lanes(e, e->scratch, &offset, &lanes, at == slot->rank - 1);
    if (at < 0)
        return splat(e, load_lanes(e, e->scratch, &offset, &(Lanes){NULL, 1, 1}, true),
                     lanes.width);
    LLVMValueRef value = LLVMConstNull(float_type(e, lanes.width));
    for (int i = 0; i < lanes.active; i++) {
        Affine one = offset;
        one.constant += i * slot->dim[at].stride;
        LLVMValueRef lane = load_lanes(e, e->scratch, &one, &(Lanes){NULL, 1, 1}, true);
        value = LLVMBuildInsertElement(e->builder, value, lane, int_constant(e, i), "");
    }
    return value;
}

/* ---- ops ------------------------------------------------------------------------------------ */

static LLVMValueRef emit_normalise(Emitter *e, NodeId id, Lanes lanes)
{
    LLVMValueRef x = emit_value(e, graph_node(e->graph, id)->operands[0], lanes);
    LLVMValueRef mean = load_slot(e, &schedule_place(&e->schedule, id)->mean, lanes);
    LLVMValueRef rstd = load_slot(e, &schedule_place(&e->schedule, id)->rstd, lanes);
    return LLVMBuildFMul(e->builder, LLVMBuildFSub(e->builder, x, mean, ""), rstd, "");
}

static LLVMValueRef emit_layernorm(Emitter *e, NodeId id, Lanes lanes)
{
    const Node *node = graph_node(e->graph, id);
    LLVMValueRef normal = emit_normalise(e, id, lanes);
    LLVMValueRef scale = emit_value(e, node->operands[1], lanes);
    return multiply_add(e, normal, scale, emit_value(e, node->operands[2], lanes));
}

/* Joined along an axis: each part, where its indices are. */
static LLVMValueRef emit_concat(Emitter *e, NodeId id, Lanes lanes)
{
    const Node *node = graph_node(e->graph, id);
    const char *axis = node->attributes.over.name[0];
    if (lanes.axis && strcmp(lanes.axis, axis) == 0) return emit_each_lane(e, id, lanes);
    LLVMValueRef index = affine_emit(e, coordinate_of(e, axis)), result = NULL;
    int64_t before = 0;
    int mark = e->coordinate_count;
    for (uint32_t i = 0; i < node->operand_count; i++) {
        const Type *type = graph_type(e->graph, node->operands[i]);
        int64_t extent = type->axis[type_find(type, axis)].extent;
        LLVMValueRef local = LLVMBuildNSWSub(e->builder, index, int_constant(e, before), "");
        LLVMValueRef here =
            LLVMBuildICmp(e->builder, LLVMIntULT, local, int_constant(e, extent), "");
        local = LLVMBuildSelect(e->builder, here, local, int_constant(e, 0), "");
        coordinate_push(e, axis, affine_value(local, 1));
        LLVMValueRef part = emit_value(e, node->operands[i], lanes);
        e->coordinate_count = mark;
        result = result ? LLVMBuildSelect(e->builder, here, part, result, "") : part;
        before += extent;
    }
    return result;
}

/* A constant table [out][4] of the taps of one axis: source indices (i32) or weights (f32). */
static LLVMValueRef tap_table(Emitter *e, int64_t in, int64_t out, bool weights)
{
    const char *name = arena_printf(e->arena, "bicubic_%s_%lld_%lld", weights ? "weight" : "index",
                                    (long long)in, (long long)out);
    LLVMValueRef table = LLVMGetNamedGlobal(e->module, name);
    if (table) return table;
    LLVMTypeRef type = weights ? e->f32 : e->i32;
    LLVMValueRef *entry = arena_array(e->arena, 4 * (size_t)out, sizeof *entry);
    for (int64_t i = 0; i < out; i++) {
        int64_t index[4];
        float weight[4];
        bicubic_taps(in, out, i, index, weight);
        for (int k = 0; k < 4; k++)
            entry[4 * i + k] = weights ? LLVMConstReal(type, (double)weight[k])
                                       : LLVMConstInt(type, (unsigned long long)index[k], false);
    }
    LLVMValueRef values = LLVMConstArray2(type, entry, 4 * (uint64_t)out);
    return global_constant(e, name, values);
}

static LLVMValueRef load_tap(Emitter *e, LLVMValueRef table, bool weights, const Affine *at,
                             int tap)
{
    LLVMValueRef index = LLVMBuildNSWMul(e->builder, affine_emit(e, at), int_constant(e, 4), "");
    index = LLVMBuildNSWAdd(e->builder, index, int_constant(e, tap), "");
    LLVMTypeRef type = weights ? e->f32 : e->i32;
    LLVMValueRef from = LLVMBuildGEP2(e->builder, type, table, &index, 1, "");
    LLVMValueRef value = LLVMBuildLoad2(e->builder, type, from, "");
    return weights ? value : LLVMBuildZExt(e->builder, value, e->i64, "");
}

/* Along the second axis for four indices of the first, then along the first: the order of the
 * published models. */
static LLVMValueRef emit_resample(Emitter *e, NodeId id, Lanes lanes)
{
    const Node *node = graph_node(e->graph, id);
    const Type *in = graph_type(e->graph, node->operands[0]);
    const char *axis[] = {node->attributes.over.name[0], node->attributes.over.name[1]};
    for (int k = 0; k < 2; k++)
        if (lanes.axis && strcmp(lanes.axis, axis[k]) == 0) return emit_each_lane(e, id, lanes);
    LLVMValueRef index[2][4], weight[2][4];
    for (int k = 0; k < 2; k++) {
        int64_t from = in->axis[type_find(in, axis[k])].extent;
        int64_t to = node->type.axis[type_find(&node->type, axis[k])].extent;
        LLVMValueRef indices = tap_table(e, from, to, false),
                     weights = tap_table(e, from, to, true);
        for (int tap = 0; tap < 4; tap++) {
            index[k][tap] = load_tap(e, indices, false, coordinate_of(e, axis[k]), tap);
            LLVMValueRef w = load_tap(e, weights, true, coordinate_of(e, axis[k]), tap);
            weight[k][tap] = splat(e, w, lanes.width);
        }
    }
    int mark = e->coordinate_count;
    LLVMValueRef sum = LLVMConstNull(float_type(e, lanes.width));
    for (int i = 0; i < 4; i++) {
        LLVMValueRef row = LLVMConstNull(float_type(e, lanes.width));
        for (int j = 0; j < 4; j++) {
            coordinate_push(e, axis[0], affine_value(index[0][i], 1));
            coordinate_push(e, axis[1], affine_value(index[1][j], 1));
            row = multiply_add(e, emit_value(e, node->operands[0], lanes), weight[1][j], row);
            e->coordinate_count = mark;
        }
        sum = multiply_add(e, row, weight[0][i], sum);
    }
    return sum;
}

static LLVMValueRef emit_operand(Emitter *e, NodeId id, int operand, Lanes lanes)
{
    return emit_value(e, graph_node(e->graph, id)->operands[operand], lanes);
}

static LLVMValueRef emit_gelu_of(Emitter *e, NodeId id, Lanes lanes)
{
    LLVMValueRef x = emit_operand(e, id, 0, lanes);
    emit_gelu(e, &x, 1, lanes.width);
    return x;
}

static LLVMValueRef emit_add(Emitter *e, NodeId id, Lanes lanes)
{
    LLVMValueRef a = emit_operand(e, id, 0, lanes);
    return LLVMBuildFAdd(e->builder, a, emit_operand(e, id, 1, lanes), "");
}

static LLVMValueRef emit_mul(Emitter *e, NodeId id, Lanes lanes)
{
    LLVMValueRef a = emit_operand(e, id, 0, lanes);
    return LLVMBuildFMul(e->builder, a, emit_operand(e, id, 1, lanes), "");
}

static LLVMValueRef emit_div(Emitter *e, NodeId id, Lanes lanes)
{
    LLVMValueRef a = emit_operand(e, id, 0, lanes);
    return LLVMBuildFDiv(e->builder, a, emit_operand(e, id, 1, lanes), "");
}

static LLVMValueRef emit_sqrt(Emitter *e, NodeId id, Lanes lanes)
{
    LLVMValueRef x = emit_operand(e, id, 0, lanes);
    return intrinsic(e, "llvm.sqrt", &x, 1);
}

static LLVMValueRef emit_scale(Emitter *e, NodeId id, Lanes lanes)
{
    float factor = (float)graph_node(e->graph, id)->attributes.factor;
    LLVMValueRef x = emit_operand(e, id, 0, lanes);
    return LLVMBuildFMul(e->builder, x, float_constant(e, factor, lanes.width), "");
}

static LLVMValueRef emit_gelu_grad(Emitter *e, NodeId id, Lanes lanes)
{
    LLVMValueRef slope = emit_operand(e, id, 0, lanes);
    emit_gelu_slope(e, &slope, 1, lanes.width);
    return LLVMBuildFMul(e->builder, slope, emit_operand(e, id, 1, lanes), "");
}

/* The layout is the storage's business. */
static LLVMValueRef emit_pack(Emitter *e, NodeId id, Lanes lanes)
{
    return emit_operand(e, id, 0, lanes);
}

/* The ops that have a value at a point. Products, means and sums have one only in their stage, and
 * elements are moved by reads and writes alone. */
static LLVMValueRef (*const emit_op[OP_COUNT])(Emitter *, NodeId, Lanes) = {
    [OP_READ] = emit_read,
    [OP_PACK] = emit_pack,
    [OP_CONCAT] = emit_concat,
    [OP_ADD] = emit_add,
    [OP_MUL] = emit_mul,
    [OP_DIV] = emit_div,
    [OP_SQRT] = emit_sqrt,
    [OP_SCALE] = emit_scale,
    [OP_GELU] = emit_gelu_of,
    [OP_GELU_GRAD] = emit_gelu_grad,
    [OP_LAYERNORM] = emit_layernorm,
    [OP_NORMALISE] = emit_normalise,
    [OP_LAYERNORM_GRAD] = emit_layernorm_grad,
    [OP_RESAMPLE] = emit_resample,
    [OP_RESAMPLE_GRAD] = emit_resample_grad,
    [OP_CROSS_ENTROPY] = emit_cross_entropy,
    [OP_CROSS_ENTROPY_GRAD] = emit_cross_entropy_grad,
};

LLVMValueRef emit_value(Emitter *e, NodeId id, Lanes lanes)
{
    RAFTC_ASSERT(schedule_holds(&e->schedule, id));
    if (e->computed[id - e->schedule.first]) return e->computed[id - e->schedule.first];
    const Slot *turned = &schedule_place(&e->schedule, id)->turned;
    if (turned->elements && lanes.axis &&
        strcmp(turned->dim[turned->rank - 1].axis, lanes.axis) == 0)
        return load_slot(e, turned, lanes);
    if (schedule_place(&e->schedule, id)->value.elements)
        return load_slot(e, &schedule_place(&e->schedule, id)->value, lanes);
    Op op = graph_node(e->graph, id)->op;
    if (!emit_op[op]) RAFTC_BUG("op '%s' has no value in a kernel", op_info[op].name);
    return emit_op[op](e, id, lanes);
}
