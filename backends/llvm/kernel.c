/* kernel.c: the function of a kernel: arguments, blocks, units, variants of a unit, stages. */
#include "backends/llvm/emit.h"

#include <string.h>

/* Units along an axis of the kernel; 0: as many as the batch has images. */
static int64_t units_along(const Kernel *kernel, int i)
{
    if (kernel->axis[i].symbol[0]) return 0;
    return ceil_divide(kernel->axis[i].extent, kernel->tile[i]);
}

/* Where there is one unit along an axis the index is a constant, so that whatever divides it knows. */
void unit_base(Emitter *e, LLVMValueRef unit, Affine *base)
{
    const Kernel *kernel = &e->graph->kernels[e->schedule.kernel];
    for (int i = kernel->rank; i-- > 0;) {
        int64_t units = units_along(kernel, i);
        LLVMValueRef index = unit;
        if (i > 0 && units != 1) {
            LLVMValueRef count = units ? int_constant(e, units) : e->batch;
            index = LLVMBuildURem(e->builder, unit, count, "");
            unit = LLVMBuildUDiv(e->builder, unit, count, "");
        }
        base[i] = units == 1 ? affine_constant(0) : affine_value(index, kernel->tile[i]);
    }
}

LLVMValueRef later_unit(Emitter *e)
{
    const Kernel *kernel = &e->graph->kernels[e->schedule.kernel];
    int last = kernel->rank - 1;
    int64_t units =
        e->unit_of_block && last >= 0 && kernel->tile[last] > 1 ? units_along(kernel, last) : 1;
    return LLVMBuildNSWAdd(e->builder, e->unit, int_constant(e, units > 1 ? units : 1), "");
}

LLVMValueRef units_beside(Emitter *e)
{
    const Kernel *kernel = &e->graph->kernels[e->schedule.kernel];
    LLVMValueRef count = int_constant(e, 1);
    for (int i = 1; i < kernel->rank; i++) {
        int64_t units = units_along(kernel, i);
        count = LLVMBuildNSWMul(e->builder, count, units ? int_constant(e, units) : e->batch, "");
    }
    return count;
}

/* Emits body() for the present unit: once where its extents are always the same, else behind a test
 * for each kind of unit at an edge. */
typedef void UnitBody(Emitter *e, const Stage *stage, const Dim *lanes);

static void emit_variants(Emitter *e, const Kernel *kernel, int from, const Stage *stage,
                          const Dim *lanes, UnitBody *body)
{
    if (from == kernel->rank) {
        body(e, stage, lanes);
        return;
    }
    const Axis *axis = &kernel->axis[from];
    int64_t tile = kernel->tile[from];
    e->extent[from] = axis->symbol[0] || axis->extent >= tile ? tile : axis->extent;
    int64_t rest = axis->symbol[0] ? 0 : axis->extent % tile;
    if (rest == 0 || axis->extent < tile) {
        emit_variants(e, kernel, from + 1, stage, lanes, body);
        return;
    }
    LLVMBasicBlockRef whole = LLVMAppendBasicBlockInContext(e->context, e->function, "whole");
    LLVMBasicBlockRef edge = LLVMAppendBasicBlockInContext(e->context, e->function, "edge");
    LLVMBasicBlockRef after = LLVMAppendBasicBlockInContext(e->context, e->function, "after");
    LLVMValueRef at_edge = LLVMBuildICmp(e->builder, LLVMIntEQ, affine_emit(e, &e->base[from]),
                                         int_constant(e, axis->extent - rest), "");
    LLVMBuildCondBr(e->builder, at_edge, edge, whole);
    for (int k = 0; k < 2; k++) {
        LLVMPositionBuilderAtEnd(e->builder, k == 0 ? whole : edge);
        e->extent[from] = k == 0 ? tile : rest;
        emit_variants(e, kernel, from + 1, stage, lanes, body);
        LLVMBuildBr(e->builder, after);
    }
    LLVMPositionBuilderAtEnd(e->builder, after);
}

typedef struct Block {
    LLVMValueRef first, count, scratch;
} Block;

static void emit_units(Emitter *e, const Block *block, const Stage *stage, const Dim *lanes,
                       UnitBody *body)
{
    const Kernel *kernel = &e->graph->kernels[e->schedule.kernel];
    Loop loop = loop_begin(e, block->count);
    int mark = e->coordinate_count;
    e->unit = LLVMBuildNSWAdd(e->builder, block->first, loop.index, "");
    Affine offset = affine_value(loop.index, e->schedule.unit_floats);
    e->scratch = address(e, block->scratch, &offset);
    e->unit_of_block = lanes ? loop.index : NULL;
    unit_base(e, e->unit, e->base);
    for (int i = 0; i < kernel->rank; i++) coordinate_push(e, kernel->axis[i].name, e->base[i]);
    emit_variants(e, kernel, 0, stage, lanes, body);
    e->coordinate_count = mark;
    loop_end(e, &loop);
}

static void stage_body(Emitter *e, const Stage *stage, const Dim *lanes)
{
    (void)lanes;
    emit_stage(e, stage);
}

/* A panel of weights serves all units of the block before the next is fetched. */
typedef struct PanelNest {
    Nest nest;
    const Block *block;
} PanelNest;

static void panel_leaf(Nest *nest)
{
    PanelNest *panel = (PanelNest *)nest;
    emit_units(nest->e, panel->block, nest->stage, &nest->dim[0], emit_product);
}

/* Are the weights the vector operand, and their lanes all in every unit? */
static bool has_panels(const Emitter *e, const Stage *stage)
{
    const Product *p = &stage->product;
    if (stage->kind != STAGE_PRODUCT || !p->lane || p->lane_in_x || p->in_parts ||
        e->schedule.block == 1)
        return false;
    int axis = schedule_axis(&e->schedule, p->lane);
    const Kernel *kernel = &e->graph->kernels[e->schedule.kernel];
    return axis < 0 || kernel->tile[axis] >= kernel->axis[axis].extent;
}

static int64_t lane_extent(const Emitter *e, const Stage *stage)
{
    const Type *type = graph_type(e->graph, stage->root);
    return type->axis[type_find(type, stage->product.lane)].extent;
}

/* The panels of `count` lanes from `start` on. */
static void emit_panels(Emitter *e, const Block *block, const Stage *stage, Affine start,
                        int64_t count)
{
    PanelNest panel = {.nest = {.e = e, .stage = stage, .leaf = panel_leaf, .count = 1},
                       .block = block};
    panel.nest.dim[0] =
        (Dim){stage->product.lane, start, count, product_width(&stage->product, e->target), {0}, 0};
    emit_nest(&panel.nest, 0);
}

static void start_part_of_chain(Nest *nest)
{
    Chain *chain = &nest->e->chain;
    chain->start = nest->dim[0].start;
    chain->count = nest->dim[0].count;
}

static void chain_leaf(Nest *nest)
{
    Emitter *e = nest->e;
    const Block *block = ((PanelNest *)nest)->block;
    const Chain *chain = &e->chain;
    start_part_of_chain(nest);
    e->step_of_sums = SUMS_WHOLE;
    emit_panels(e, block, chain->first, chain->start, chain->count);
    e->step_of_sums = SUMS_ADD;
    emit_panels(e, block, chain->second, affine_constant(0), lane_extent(e, chain->second));
    e->chain.count = 0;
}

/* All units take a part of their sums before the next part of the weights is fetched. */
static void long_sum_leaf(Nest *nest)
{
    Emitter *e = nest->e;
    start_part_of_chain(nest);
    e->step_of_sums = SUMS_ADD;
    emit_units(e, ((PanelNest *)nest)->block, nest->stage, NULL, stage_body);
    e->chain.count = 0;
}

/* Takes in all parts; the sums are finished with the stages after it. */
static void emit_chain(Emitter *e, const Block *block)
{
    const Chain *chain = &e->chain;
    const Node *linear = graph_node(e->graph, chain->second->root);
    const Type *x = graph_type(e->graph, linear->operands[0]);
    int64_t extent = x->axis[type_find(x, chain->axis)].extent;
    PanelNest parts = {.nest = {.e = e,
                                .stage = chain->second,
                                .leaf = chain->first ? chain_leaf : long_sum_leaf,
                                .count = 1},
                       .block = block};
    parts.nest.dim[0] = (Dim){chain->axis, affine_constant(0), extent, chain->part, {0}, 0};
    e->sums = &chain->sums;
    e->step_of_sums = SUMS_START;
    emit_units(e, block, chain->second, NULL, stage_body);
    emit_nest(&parts.nest, 0);
    e->step_of_sums = SUMS_WHOLE;
}

/* After the stages that one unit runs at once: those from `stage` on that share no panels of weights with other units. */
static const Stage *end_of_run(const Emitter *e, const Stage *stage)
{
    const Stage *end = e->schedule.stages + e->schedule.stage_count;
    do stage++;
    while (stage < end && stage != e->chain.first && stage != e->chain.second &&
           !has_panels(e, stage));
    return stage;
}

/* One after the other for the same unit, so that each finds in the cache what the one before it took and made. */
static void run_body(Emitter *e, const Stage *stage, const Dim *lanes)
{
    (void)lanes;
    for (const Stage *end = end_of_run(e, stage); stage < end; stage++) {
        e->step_of_sums = stage == e->chain.second ? SUMS_FINISH : SUMS_WHOLE;
        emit_stage(e, stage);
    }
    e->step_of_sums = SUMS_WHOLE;
}

/* Indices along the axis that the kernel walks. */
static int64_t walk_extent(const Emitter *e)
{
    const char *walk = e->graph->kernels[e->schedule.kernel].walk;
    for (NodeId id = e->schedule.first; id < e->schedule.end; id++) {
        const Type *type = graph_type(e->graph, id);
        int at = type_find(type, walk);
        if (at >= 0 && graph_node(e->graph, id)->op != OP_WRITE) return type->axis[at].extent;
    }
    RAFTC_BUG("kernel %d has no axis '%s' to walk", e->schedule.kernel, walk);
}

/* All stages for one step after the other along the axis that the kernel walks. */
static void walk_body(Emitter *e, const Stage *stage, const Dim *lanes)
{
    const Kernel *kernel = &e->graph->kernels[e->schedule.kernel];
    int mark = e->coordinate_count;
    Loop loop = loop_begin(e, int_constant(e, walk_extent(e) / kernel->step));
    e->walked = affine_value(loop.index, kernel->step);
    coordinate_push(e, kernel->walk, e->walked);
    run_body(e, stage, lanes);
    e->coordinate_count = mark;
    loop_end(e, &loop);
}

static void emit_block(Emitter *e, const Block *block)
{
    const Stage *stage = e->schedule.stages, *end = stage + e->schedule.stage_count;
    if (schedule_walks(&e->schedule)) {
        emit_units(e, block, stage, NULL, walk_body);
        return;
    }
    while (stage < end) {
        if (stage == e->chain.first) {
            stage++;
        } else if (stage != e->chain.second && has_panels(e, stage)) {
            emit_panels(e, block, stage, affine_constant(0), lane_extent(e, stage));
            stage++;
        } else {
            if (stage == e->chain.second) emit_chain(e, block);
            emit_units(e, block, stage, NULL, run_body);
            stage = end_of_run(e, stage);
        }
    }
}

/* Blocks of at most e->schedule.block units from begin to end. */
static void emit_blocks(Emitter *e, LLVMValueRef begin, LLVMValueRef end, LLVMValueRef scratch)
{
    LLVMValueRef size = int_constant(e, e->schedule.block),
                 units = LLVMBuildNSWSub(e->builder, end, begin, "");
    LLVMValueRef rounded =
        LLVMBuildNSWAdd(e->builder, units, int_constant(e, e->schedule.block - 1), "");
    LLVMValueRef count = LLVMBuildSDiv(e->builder, rounded, size, "");
    LLVMBasicBlockRef work = LLVMAppendBasicBlockInContext(e->context, e->function, "work");
    LLVMBasicBlockRef leave = LLVMAppendBasicBlockInContext(e->context, e->function, "leave");
    LLVMValueRef any = LLVMBuildICmp(e->builder, LLVMIntSGT, count, int_constant(e, 0), "");
    LLVMBuildCondBr(e->builder, any, work, leave);
    LLVMPositionBuilderAtEnd(e->builder, work);
    Loop loop = loop_begin(e, count);
    Affine offset = affine_value(loop.index, e->schedule.block), from = affine_value(begin, 1);
    offset = affine_add(e, offset, &from, 1);
    Block block = {.first = affine_emit(e, &offset), .scratch = scratch};
    LLVMValueRef left = LLVMBuildNSWSub(e->builder, end, block.first, "");
    block.count = LLVMBuildSelect(e->builder, LLVMBuildICmp(e->builder, LLVMIntSLT, left, size, ""),
                                  left, size, "");
    emit_block(e, &block);
    loop_end(e, &loop);
    LLVMBuildBr(e->builder, leave);
    LLVMPositionBuilderAtEnd(e->builder, leave);
    LLVMBuildRetVoid(e->builder);
}

static void add_attribute(Emitter *e, const char *name, const char *value)
{
    LLVMAttributeRef attribute = LLVMCreateStringAttribute(e->context, name, (unsigned)strlen(name),
                                                           value, (unsigned)strlen(value));
    LLVMAddAttributeAtIndex(e->function, LLVMAttributeFunctionIndex, attribute);
}

static LLVMValueRef load_argument(Emitter *e, int i)
{
    LLVMValueRef index = int_constant(e, i), list = LLVMGetParam(e->function, 0);
    LLVMValueRef at = LLVMBuildGEP2(e->builder, e->pointer, list, &index, 1, "");
    return LLVMBuildLoad2(e->builder, e->pointer, at, "");
}

/* How a step is cut. A piece may be half a block: so many units still share a panel of weights for long
 * enough to fetch the next one meanwhile (bench/results/kernels-2026-11-27.md); all units of a long sum do. */
static void cut_step(const Emitter *e, const Kernel *kernel, StepCode *code)
{
    code->units = kernel_units(kernel);
    code->batched = false;
    code->piece = has_long_sum(e) ? e->schedule.block : ceil_divide(e->schedule.block, 2);
    code->adds = adds_up(e);
    for (int i = 0; i < kernel->rank; i++) code->batched |= kernel->axis[i].symbol[0] != 0;
}

bool emit_kernel(Emitter *e, const Step *step, const char *symbol, const TwinStrides *strides,
                 StepCode *code, int64_t *scratch_bytes)
{
    e->step = step;
    e->strides = strides;
    e->coordinate_count = 0;
    e->gelu_room = NULL;
    e->parted = NULL;
    if (!schedule_kernel(&e->schedule, e->arena, e->graph, step->kernel, e->target, e->diag))
        return false;
    find_chain(e);
    e->computed = arena_array(e->arena, e->schedule.end - e->schedule.first, sizeof *e->computed);
    cut_step(e, &e->graph->kernels[step->kernel], code);
    *scratch_bytes = 4 * e->schedule.block * e->schedule.unit_floats;

    LLVMTypeRef parameter[KERNEL_PARAMETERS + MAX_STRIDES] = {e->pointer, e->i64, e->i64, e->i64,
                                                              e->pointer};
    unsigned parameters = KERNEL_PARAMETERS;
    for (int i = 0; strides && i < strides->argument_count; i++) parameter[parameters++] = e->i64;
    LLVMTypeRef type =
        LLVMFunctionType(LLVMVoidTypeInContext(e->context), parameter, parameters, false);
    e->function = LLVMAddFunction(e->module, symbol, type);
    LLVMSetVisibility(e->function, LLVMHiddenVisibility);
    if (e->target->vector_floats == 16) {
        add_attribute(e, "prefer-vector-width", "512");
        add_attribute(e, "min-legal-vector-width", "512");
    }
    LLVMBasicBlockRef entry = LLVMAppendBasicBlockInContext(e->context, e->function, "entry");
    LLVMBasicBlockRef start = LLVMAppendBasicBlockInContext(e->context, e->function, "start");
    LLVMPositionBuilderAtEnd(e->entry_builder, entry);
    LLVMPositionBuilderAtEnd(e->builder, start);
    e->batch = LLVMGetParam(e->function, 1);
    e->buffer = arena_array(e->arena, (size_t)step->argument_count, sizeof *e->buffer);
    for (int i = 0; i < step->argument_count; i++) e->buffer[i] = load_argument(e, i);
    e->adds = NULL;
    if (code->adds)
        e->adds = LLVMBuildIsNotNull(e->builder, load_argument(e, step->argument_count), "");
    emit_blocks(e, LLVMGetParam(e->function, 2), LLVMGetParam(e->function, 3),
                LLVMGetParam(e->function, 4));
    LLVMBuildBr(e->entry_builder, start);
    return true;
}
