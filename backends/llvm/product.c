/* product.c: matrix products in register tiles of rows x lanes.
 *
 * For a tile, all sums are kept in registers while the contracted axes are walked once, in the
 * order in which they are named; each step loads the vectors of one operand and, for each row, one
 * number of the other. Then the epilogue computes what follows and stores it.
 */
#include "backends/llvm/tile.h"

#include <string.h>

static Lanes vector_lanes(const Tile *tile, int vector)
{
    if (!tile->lanes.axis) return (Lanes){NULL, 1, 1};
    int width = tile->nest.e->target->vector_floats;
    int64_t left = tile->lanes.count - (int64_t)vector * width;
    return (Lanes){tile->lanes.axis, width, (int)(left < width ? left : width)};
}

void at_row(Tile *tile, int row)
{
    int64_t inner = tile->row_dim[1] >= 0 ? tile->nest.dim[tile->row_dim[1]].count : 1;
    int64_t offset[] = {row / inner, row % inner};
    for (int k = 0; k < 2; k++) {
        if (tile->row_dim[k] < 0) continue;
        const Dim *dim = &tile->nest.dim[tile->row_dim[k]];
        Affine at = dim->start;
        at.constant += offset[k];
        coordinate_push(tile->nest.e, dim->axis, at);
    }
}

void at_vector(Tile *tile, int vector)
{
    if (!tile->lanes.axis) return;
    Affine at = tile->lanes.start;
    at.constant += (int64_t)vector * tile->nest.e->target->vector_floats;
    coordinate_push(tile->nest.e, tile->lanes.axis, at);
}

static LLVMTypeRef sum_type(const Tile *tile)
{
    return float_type(tile->nest.e, tile->lanes.axis ? tile->nest.e->target->vector_floats : 1);
}

static void start_sums(Tile *tile, const Node *linear)
{
    Emitter *e = tile->nest.e;
    for (int row = 0; row < tile->rows; row++) {
        for (int v = 0; v < tile->vectors; v++) {
            int mark = e->coordinate_count;
            at_row(tile, row);
            at_vector(tile, v);
            LLVMValueRef start = LLVMConstNull(sum_type(tile));
            if (linear->operand_count == 3)
                start = emit_value(e, linear->operands[2], vector_lanes(tile, v));
            LLVMBuildStore(e->builder, start, tile->sum[row * tile->vectors + v]);
            e->coordinate_count = mark;
        }
    }
}

LLVMValueRef address_of_sums(Emitter *e)
{
    Affine at = e->sums ? slot_offset(e, e->sums) : written_offset(e, e->sums_write);
    return address(e, e->sums ? e->scratch : buffer_of(e, e->sums_write), &at);
}

/* Between the sums and their place in memory. */
static void move_sums(Tile *tile, bool store)
{
    Emitter *e = tile->nest.e;
    for (int i = 0; i < tile->rows * tile->vectors; i++) {
        int mark = e->coordinate_count;
        at_row(tile, i / tile->vectors);
        at_vector(tile, i % tile->vectors);
        Lanes lanes = vector_lanes(tile, i % tile->vectors);
        Affine at = e->sums ? slot_offset(e, e->sums) : affine_constant(0);
        if (store) {
            LLVMValueRef sum = LLVMBuildLoad2(e->builder, sum_type(tile), tile->sum[i], "");
            if (e->sums)
                store_lanes(e, sum, e->scratch, &at, &lanes, true);
            else
                store_written(e, e->sums_write, sum, lanes);
        } else {
            LLVMValueRef sum = e->sums ? load_lanes(e, e->scratch, &at, &lanes, true)
                                       : load_written(e, e->sums_write, lanes);
            LLVMBuildStore(e->builder, sum, tile->sum[i]);
        }
        e->coordinate_count = mark;
    }
}

static void add_to_sum(Tile *tile, int row, int v, LLVMValueRef a, LLVMValueRef b)
{
    Emitter *e = tile->nest.e;
    LLVMValueRef slot = tile->sum[row * tile->vectors + v];
    LLVMValueRef sum = LLVMBuildLoad2(e->builder, sum_type(tile), slot, "");
    sum = LLVMTypeOf(a) == e->pointer ? multiply_add_loaded(e, a, b, sum)
                                      : multiply_add(e, a, b, sum);
    LLVMBuildStore(e->builder, sum, slot);
}

/* The factor of a row for multiply-adds of `width` lanes: its number in all lanes; or where in memory that is: then they
 * load it themselves, which is fewer instructions for one vector or two. For more it would be more loads than
 * there can be: then some rows do so. */
static LLVMValueRef row_factor(Tile *tile, int row, LLVMValueRef number, int width)
{
    Emitter *e = tile->nest.e;
    bool loads_itself = tile->vectors <= 2 || (tile->vectors == 3 && row % 3 != 0);
    if (width < 16 || e->sanitized || !loads_itself || !LLVMIsALoadInst(number))
        return splat(e, number, width);
    return LLVMGetOperand(number, 0);
}

/* One step of the contraction. The operand without lanes is loaded once a row, the other once a
 * vector. */
static void add_products(Tile *tile, const Node *linear)
{
    Emitter *e = tile->nest.e;
    const Product *p = &tile->nest.stage->product;
    NodeId vector = linear->operands[p->rows_in_w ? 0 : 1],
           number = linear->operands[p->rows_in_w ? 1 : 0];
    bool both = p->lane_in_x && p->lane_in_w;
    LLVMValueRef loaded[MAX_TILE];
    int mark = e->coordinate_count;
    for (int v = 0; v < tile->vectors; v++) {
        at_row(tile, 0);
        at_vector(tile, v);
        loaded[v] = emit_value(e, vector, vector_lanes(tile, v));
        e->coordinate_count = mark;
    }
    for (int row = 0; row < tile->rows; row++) {
        LLVMValueRef one = NULL;
        for (int v = 0; v < tile->vectors; v++) {
            at_row(tile, row);
            at_vector(tile, v);
            Lanes lanes = vector_lanes(tile, v);
            if (both)
                one = emit_value(e, number, lanes);
            else if (!one)
                one =
                    row_factor(tile, row, emit_value(e, number, (Lanes){NULL, 1, 1}), lanes.width);
            add_to_sum(tile, row, v, one, loaded[v]);
            e->coordinate_count = mark;
        }
    }
}

/* Indices along contracted axis `axis`; 0: a symbol, the batch. */
static int64_t contracted_extent(const Tile *tile, const Node *linear, int axis)
{
    const Emitter *e = tile->nest.e;
    const char *name = linear->attributes.over.name[axis];
    if (e->step_of_sums == SUMS_ADD) return e->chain.count;
    if (schedule_walks_along(&e->schedule, name)) return e->graph->kernels[e->schedule.kernel].step;
    const Type *x = graph_type(e->graph, linear->operands[0]);
    return x->axis[type_find(x, name)].extent;
}

/* A turn of the innermost loop takes up to four steps, of some 48 multiply-adds in all, beside which what
 * the loop itself costs is little (bench/results/kernels-2026-11-26.md). With more, LLVM spills, or keeps
 * in registers what overlapping windows share; where multiply-adds load the numbers themselves, 56 fit. In
 * what is left at an edge the few sums wait for each other, whatever the loop costs: one step, which is less
 * code. */
static int64_t steps_of_turn(const Tile *tile)
{
    enum { MOST_STEPS = 4, PRODUCTS = 48, MORE_PRODUCTS = 56 };
    const Product *p = &tile->nest.stage->product;
    int64_t sums = tile->rows * tile->vectors, whole = p->vectors;
    for (int i = 0; i < p->row_count; i++) whole *= p->row_tile[i];
    if (!p->in_parts && 2 * sums <= whole) return 1;
    int64_t steps = (tile->vectors == 2 ? MORE_PRODUCTS : PRODUCTS) / sums;
    return steps > MOST_STEPS ? MOST_STEPS : steps < 1 ? 1 : steps;
}

/* Indices along contracted axis `axis` in one turn of its loop. */
static int64_t indices_of_turn(const Tile *tile, const Node *linear, int axis)
{
    int64_t steps = steps_of_turn(tile), inner = 1;
    for (int i = axis + 1; i < linear->attributes.over.count; i++) {
        int64_t extent = contracted_extent(tile, linear, i);
        if (extent == 0 || extent > steps) return 1;
        inner *= extent;
    }
    int64_t extent = contracted_extent(tile, linear, axis), most = steps / inner;
    return extent == 0 || most < 1 ? 1 : extent < most ? extent : most;
}

/* Is the loop along contracted axis `axis` the innermost? */
static bool is_innermost(const Tile *tile, const Node *linear, int axis)
{
    for (int i = axis + 1; i < linear->attributes.over.count; i++)
        if (indices_of_turn(tile, linear, i) != contracted_extent(tile, linear, i)) return false;
    return contracted_extent(tile, linear, axis) > 0;
}

/* Turns of the innermost loop in the whole contraction; 1: there is no loop. */
static int64_t turns_in_all(const Tile *tile, const Node *linear)
{
    int64_t turns = 1;
    for (int i = 0; i < linear->attributes.over.count; i++)
        turns *= contracted_extent(tile, linear, i) / indices_of_turn(tile, linear, i);
    return turns;
}

/* Where the sum, or the present part of it in a chain or step of a walk, starts along contracted axis `name`. */
static Affine contraction_start(const Emitter *e, const char *name)
{
    if (schedule_walks_along(&e->schedule, name)) return e->walked;
    return e->step_of_sums == SUMS_ADD ? e->chain.start : affine_constant(0);
}

/* The number of the present unit among those that take the same panel of weights, of which `fetching` fetch the next one;
 * NULL: it has a panel of its own. */
static LLVMValueRef unit_of_panel(const Tile *tile, int64_t fetching)
{
    Emitter *e = tile->nest.e;
    if (e->unit_of_block) return e->unit_of_block;
    if (!lanes_are_shared_out(e, tile->nest.stage)) return NULL;
    /* Counted so that the last ones fetch: what comes too early may have left the cache by then. */
    LLVMValueRef units = units_beside(e), number = LLVMBuildURem(e->builder, e->unit, units, "");
    LLVMValueRef left = LLVMBuildNSWSub(e->builder, units, number, "");
    LLVMValueRef late[] = {LLVMBuildNSWSub(e->builder, int_constant(e, fetching), left, ""),
                           int_constant(e, 0)};
    return intrinsic(e, "llvm.smax", late, 2);
}

/* Weights often come from beyond the L2 cache, and the first unit of those that a panel of them serves
 * would wait for all of it: so the units before fetch it, while the panel before is at work, one cache
 * line in each turn of their innermost loops, which has `innermost`. Returns where the lines that the next such loop of the
 * present unit fetches begin, the last units those of others again; NULL: no panel is at work, or all weights
 * stay in the cache. */
static LLVMValueRef next_panel(Tile *tile, const Node *linear, int64_t innermost)
{
    Emitter *e = tile->nest.e;
    const Product *p = &tile->nest.stage->product;
    const Node *read = graph_node(e->graph, linear->operands[1]);
    if (!p->lane || p->lane_in_x || read->op != OP_READ ||
        schedule_holds(&e->schedule, read->operands[0]))
        return NULL;
    const AxisNames *over = &linear->attributes.over;
    int64_t bytes = 4 * type_elements(graph_type(e->graph, read->operands[0]), NULL);
    int64_t floats = product_width(p, e->target);
    for (int i = 0; i < over->count; i++) floats *= contracted_extent(tile, linear, i);
    int64_t lines = floats / LINE, turns = turns_in_all(tile, linear);
    if (bytes <= e->target->l2_bytes / 4 || lines <= turns) return NULL;
    LLVMValueRef unit = unit_of_panel(tile, ceil_divide(lines, turns));
    if (!unit) return NULL;
    int mark = e->coordinate_count;
    for (int i = 0; i < over->count; i++)
        coordinate_push(e, over->name[i], contraction_start(e, over->name[i]));
    Affine lane = tile->lanes.start, at[MAX_AXES];
    if (e->unit_of_block) lane.constant += product_width(p, e->target);
    coordinate_push(e, p->lane, lane);
    for (int d = 0; d < read->attributes.map.rank; d++)
        at[d] = index_at(e, &read->attributes.map.dim[d], &read->type);
    Affine offset = storage_offset(e, read->operands[0], at);
    e->coordinate_count = mark;
    /* Lanes shared out: next is the rest of a long sum, then other lanes, all of which follow. */
    if (!e->unit_of_block) offset.constant += floats;
    LLVMValueRef line[] = {LLVMBuildNSWMul(e->builder, unit, int_constant(e, turns), ""),
                           int_constant(e, lines - turns)};
    Affine first = affine_value(intrinsic(e, "llvm.smin", line, 2), LINE);
    Affine before = affine_scale(tile->turn, innermost * LINE); /* loops around the innermost */
    first = affine_add(e, first, &before, 1);
    LLVMValueRef from = affine_emit(e, (Affine[]){affine_add(e, offset, &first, 1)});
    /* Not "in bounds": after the last panel there is none, and nothing is fetched. */
    return LLVMBuildGEP2(e->builder, e->f32, buffer_of(e, read->operands[0]), &from, 1, "");
}

static void fetch_line_of_panel(Emitter *e, LLVMValueRef lines, LLVMValueRef turn)
{
    LLVMValueRef index = affine_emit(e, (Affine[]){affine_value(turn, LINE)});
    fetch_line(e, LLVMBuildGEP2(e->builder, e->f32, lines, &index, 1, ""), false);
}

static void contract(Tile *tile, const Node *linear, int axis);

/* For the `count` indices along contracted axis `axis` from `start` on, the contraction from axis number
 * `rest` on: what is between has its place already. */
static void contract_at(Tile *tile, const Node *linear, int axis, Affine start, int64_t count,
                        int rest)
{
    Emitter *e = tile->nest.e;
    int mark = e->coordinate_count;
    for (int64_t i = 0; i < count; i++) {
        Affine at = start;
        at.constant += i;
        coordinate_push(e, linear->attributes.over.name[axis], at);
        contract(tile, linear, rest);
        e->coordinate_count = mark;
    }
}

/* A part of a sum lies in scratch memory index after index: all of its axes are one loop, along the
 * last. */
static void contract_part(Tile *tile, const Node *linear)
{
    Emitter *e = tile->nest.e;
    const AxisNames *over = &linear->attributes.over;
    int mark = e->coordinate_count, last = over->count - 1;
    int64_t count = 1, turn = steps_of_turn(tile);
    for (int i = 0; i < over->count; i++) {
        count *= e->parted->product.part[i];
        if (e->parted->product.part[i] > 1) last = i;
        coordinate_push(e, over->name[i], e->part_start[i]);
    }
    Affine start = e->part_start[last];
    PartFetch fetch;
    fetch_begin(&fetch, &tile->nest, &tile->lanes);
    if (count < turn) {
        fetch_turn(e, &fetch, int_constant(e, 0), 1);
    } else {
        Loop loop = loop_begin(e, int_constant(e, count / turn));
        e->counted = &loop;
        fetch_turn(e, &fetch, loop.index, count / turn);
        tile->turn = affine_value(loop.index, 1);
        fetch_sums(tile, count / turn);
        Affine index = affine_value(loop.index, turn);
        contract_at(tile, linear, last, affine_add(e, index, &start, 1), turn, over->count);
        e->counted = NULL;
        loop_end(e, &loop);
    }
    start.constant += count / turn * turn;
    contract_at(tile, linear, last, start, count % turn, over->count);
    e->coordinate_count = mark;
}

/* The first part, or step of a walk, has no sums to go on with, but those of images before, if they are where sums are kept. */
static void start_part(Tile *tile, const Node *linear)
{
    Emitter *e = tile->nest.e;
    Affine start = e->parted ? affine_constant(0) : e->walked;
    for (int i = 0; e->parted && i < linear->attributes.over.count; i++)
        start = affine_add(e, start, &e->part_start[i], 1);
    LLVMValueRef is_first =
        LLVMBuildICmp(e->builder, LLVMIntEQ, affine_emit(e, &start), int_constant(e, 0), "");
    if (!e->sums && e->adds)
        is_first = LLVMBuildAnd(e->builder, is_first, LLVMBuildNot(e->builder, e->adds, ""), "");
    Branch branch = branch_begin(e, is_first);
    start_sums(tile, linear);
    branch_else(e, &branch);
    move_sums(tile, false);
    branch_end(e, &branch);
}

static void contract(Tile *tile, const Node *linear, int axis)
{
    Emitter *e = tile->nest.e;
    if (axis == linear->attributes.over.count) {
        add_products(tile, linear);
        return;
    }
    int64_t extent = contracted_extent(tile, linear, axis);
    int64_t turn = indices_of_turn(tile, linear, axis), turns = extent / turn;
    Affine start = contraction_start(e, linear->attributes.over.name[axis]);
    if (turns == 1) {
        contract_at(tile, linear, axis, start, turn, axis + 1);
    } else {
        bool innermost = is_innermost(tile, linear, axis);
        LLVMValueRef ahead = innermost ? next_panel(tile, linear, turns) : NULL;
        Loop loop = loop_begin(e, extent == 0 ? e->batch : int_constant(e, turns));
        if (innermost) e->counted = &loop;
        if (ahead) fetch_line_of_panel(e, ahead, loop.index);
        Affine outer = tile->turn;
        tile->turn =
            affine_add(e, affine_scale(outer, turns), (Affine[]){affine_value(loop.index, 1)}, 1);
        if (innermost) fetch_rows(tile, turns_in_all(tile, linear));
        Affine index = affine_value(loop.index, turn);
        contract_at(tile, linear, axis, affine_add(e, index, &start, 1), turn, axis + 1);
        tile->turn = outer;
        e->counted = NULL;
        loop_end(e, &loop);
    }
    start.constant += turns * turn;
    contract_at(tile, linear, axis, start, extent % turn, axis + 1);
}

/* The op of the epilogue that uses node `id`; each value of an epilogue has one user in it. */
static NodeId next_of_epilogue(const Emitter *e, NodeId id, NodeId end)
{
    for (NodeId n = id + 1; n <= end; n++)
        for (uint32_t i = 0; i < graph_node(e->graph, n)->operand_count; i++)
            if (graph_node(e->graph, n)->op != OP_WRITE &&
                graph_node(e->graph, n)->operands[i] == id)
                return n;
    RAFTC_BUG("no path from value %u to the end %u of its stage", id, end);
}

/* The slopes at where x is, each times its dy; `from` is x or dy. */
static void apply_gelu_grad(Tile *tile, NodeId from, const Node *node, LLVMValueRef *values)
{
    Emitter *e = tile->nest.e;
    int count = tile->rows * tile->vectors;
    LLVMValueRef operand[2][MAX_TILE];
    for (int i = 0; i < count; i++) {
        int mark = e->coordinate_count;
        at_row(tile, i / tile->vectors);
        at_vector(tile, i % tile->vectors);
        for (int k = 0; k < 2; k++)
            operand[k][i] =
                node->operands[k] == from
                    ? values[i]
                    : emit_value(e, node->operands[k], vector_lanes(tile, i % tile->vectors));
        e->coordinate_count = mark;
    }
    emit_gelu_slope(e, operand[0], count, vector_lanes(tile, 0).width);
    for (int i = 0; i < count; i++)
        values[i] = LLVMBuildFMul(e->builder, operand[0][i], operand[1][i], "");
}

/* values[..] of node `from` become those of its user `to`. */
static void apply_op(Tile *tile, NodeId from, NodeId to, LLVMValueRef *values)
{
    Emitter *e = tile->nest.e;
    int count = tile->rows * tile->vectors, width = vector_lanes(tile, 0).width;
    if (graph_node(e->graph, to)->op == OP_GELU) {
        emit_gelu(e, values, count, width);
        return;
    }
    if (graph_node(e->graph, to)->op == OP_GELU_GRAD) {
        apply_gelu_grad(tile, from, graph_node(e->graph, to), values);
        return;
    }
    Place *place = schedule_place(&e->schedule, to);
    Slot slot = place->value;
    place->value.elements = 0; /* computed here, not loaded */
    for (int i = 0; i < count; i++) {
        int mark = e->coordinate_count;
        at_row(tile, i / tile->vectors);
        at_vector(tile, i % tile->vectors);
        e->computed[from - e->schedule.first] = values[i];
        values[i] = emit_value(e, to, vector_lanes(tile, i % tile->vectors));
        e->coordinate_count = mark;
    }
    e->computed[from - e->schedule.first] = NULL;
    place->value = slot;
}

/* Stores what the epilogue passes on its way and the kernel writes. */
static void write_on_the_way(Tile *tile, NodeId id, const LLVMValueRef *values)
{
    Emitter *e = tile->nest.e;
    for (NodeId n = id + 1; n < e->schedule.end; n++) {
        if (graph_node(e->graph, n)->op != OP_WRITE || graph_node(e->graph, n)->operands[0] != id)
            continue;
        for (int i = 0; i < tile->rows * tile->vectors; i++) {
            int mark = e->coordinate_count;
            at_row(tile, i / tile->vectors);
            at_vector(tile, i % tile->vectors);
            emit_write(e, n, values[i], vector_lanes(tile, i % tile->vectors));
            e->coordinate_count = mark;
        }
    }
}

static void finish_sums(Tile *tile)
{
    Emitter *e = tile->nest.e;
    const Stage *stage = tile->nest.stage;
    LLVMValueRef values[MAX_TILE];
    int count = tile->rows * tile->vectors;
    for (int i = 0; i < count; i++)
        values[i] = LLVMBuildLoad2(e->builder, sum_type(tile), tile->sum[i], "");
    for (NodeId at = stage->root; at != stage->end;) {
        NodeId next = next_of_epilogue(e, at, stage->end);
        write_on_the_way(tile, at, values);
        apply_op(tile, at, next, values);
        at = next;
    }
    for (int i = 0; i < count; i++) {
        int mark = e->coordinate_count;
        at_row(tile, i / tile->vectors);
        at_vector(tile, i % tile->vectors);
        e->computed[stage->end - e->schedule.first] = values[i];
        store_end(e, stage, vector_lanes(tile, i % tile->vectors));
        e->coordinate_count = mark;
    }
    e->computed[stage->end - e->schedule.first] = NULL;
}

static void tile_leaf(Nest *nest)
{
    Tile *tile = (Tile *)nest;
    Emitter *e = nest->e;
    const Node *linear = graph_node(e->graph, nest->stage->root);
    if (tile->lane_dim >= 0) tile->lanes = nest->dim[tile->lane_dim];
    tile->rows = 1;
    for (int k = 0; k < 2; k++)
        if (tile->row_dim[k] >= 0) tile->rows *= (int)nest->dim[tile->row_dim[k]].count;
    int width = e->target->vector_floats;
    tile->vectors = tile->lanes.axis ? (int)((tile->lanes.count + width - 1) / width) : 1;
    RAFTC_ASSERT(tile->rows * tile->vectors <= MAX_TILE);
    for (int i = 0; i < tile->rows * tile->vectors; i++)
        tile->sum[i] = stack_slot(e, sum_type(tile));
    SumsStep step = e->step_of_sums;
    tile->turn = affine_constant(0);
    tile->fetch_count = 0;
    if (step == SUMS_WHOLE) find_fetches(tile);
    if (turns_in_all(tile, linear) <= 1) fetch_rows_at_once(tile);
    if (e->parted || step == SUMS_WALK)
        start_part(tile, linear);
    else if (step == SUMS_WHOLE || step == SUMS_START)
        start_sums(tile, linear);
    else
        move_sums(tile, false);
    if (e->parted)
        contract_part(tile, linear);
    else if (step != SUMS_START && step != SUMS_FINISH)
        contract(tile, linear, 0);
    if (step == SUMS_WHOLE || step == SUMS_FINISH)
        finish_sums(tile);
    else
        move_sums(tile, true);
}

void emit_tiles(Emitter *e, const Stage *stage, const Dim *lanes)
{
    Tile tile = {
        .nest = {.e = e, .stage = stage, .leaf = tile_leaf}, .row_dim = {-1, -1}, .lane_dim = -1};
    const Product *p = &stage->product;
    const Type *type = graph_type(e->graph, stage->root);
    if (lanes) tile.lanes = *lanes;
    if (!lanes && p->lane) {
        const Axis *axis = &type->axis[type_find(type, p->lane)];
        tile.lane_dim = tile.nest.count;
        tile.nest.dim[tile.nest.count++] = unit_dim(e, axis, product_width(p, e->target));
    }
    for (int i = 0; i < type->rank; i++) {
        const Axis *axis = &type->axis[i];
        if (axis->symbol[0] || (p->lane && strcmp(axis->name, p->lane) == 0)) continue;
        for (int k = 0; k < p->row_count; k++)
            if (strcmp(p->row[k], axis->name) == 0) tile.row_dim[k] = tile.nest.count;
        tile.nest.dim[tile.nest.count++] =
            unit_dim(e, axis, product_tile_along(p, axis->name, e->target));
    }
    emit_nest(&tile.nest, 0);
}

void emit_product(Emitter *e, const Stage *stage, const Dim *lanes)
{
    if (stage->product.in_parts) {
        emit_parts(e, stage);
        return;
    }
    SumsStep step = e->step_of_sums;
    if (sums_walk(e->graph, stage->root)) {
        e->step_of_sums = SUMS_WALK;
        e->sums = NULL;
        e->sums_write = stage->writes[0];
    }
    emit_tiles(e, stage, lanes);
    e->step_of_sums = step;
}
