/* parts.c: products whose sums are long, taken part by part.
 *
 * A unit keeps all its sums in scratch memory, or where they are written in the end. For each part of the sum,
 * in order, it brings what the part takes of both operands to scratch memory, each in the order in which
 * register tiles read it: the one for all rows of the unit, the other for one tile of lanes after the other,
 * and adds the part to every tile. The order of a sum is that of its axes, whatever the parts. */
#include "backends/llvm/emit.h"

#include <string.h>

typedef struct Fill {
    Nest nest;
    NodeId operand;
    const char *lane; /* along which the operand lies in memory, or NULL */
    const char *last; /* along which the slot does, */
    const char *row;  /* a leaf has several indices along, or NULL */
    bool padded;      /* with room for whole vectors at the end of each row */
} Fill;

/* The operand itself: its slot is what is being filled. */
static LLVMValueRef operand_value(Fill *fill, Lanes lanes)
{
    Emitter *e = fill->nest.e;
    NodeId read = own_read(e->graph, fill->operand);
    Place *place = schedule_place(&e->schedule, read);
    Slot slot = place->value;
    place->value.elements = 0;
    LLVMValueRef value = emit_value(e, read, lanes);
    place->value = slot;
    return value;
}

/* The gelu of each, if the operand is one. */
static void apply_gelu(const Fill *fill, LLVMValueRef *vector, int count, int width)
{
    Emitter *e = fill->nest.e;
    if (graph_node(e->graph, fill->operand)->op == OP_GELU)
        emit_gelu_groups(e, vector, count, width);
}

/* A square of the operand, loaded along `lane` and stored along `last`. */
static void fill_square(Fill *fill)
{
    Emitter *e = fill->nest.e;
    int width = e->target->vector_floats, mark = e->coordinate_count;
    const Dim *last = dim_of(&fill->nest, fill->last), *lane = dim_of(&fill->nest, fill->lane);
    LLVMValueRef vector[MAX_TILE];
    for (int i = 0; i < width; i++) {
        Affine at = last->start;
        at.constant += i;
        coordinate_push(e, fill->last, at);
        vector[i] = i < last->count ? operand_value(fill, tile_lanes(e, fill->lane, lane->count))
                                    : LLVMConstNull(float_type(e, width));
        e->coordinate_count = mark;
    }
    apply_gelu(fill, vector, (int)last->count, width);
    emit_transpose(e, vector, width);
    for (int i = 0; i < lane->count; i++) {
        Affine at = lane->start;
        at.constant += i;
        coordinate_push(e, fill->lane, at);
        Affine to = slot_offset(e, &schedule_place(&e->schedule, fill->operand)->value);
        store_lanes(e, vector[i], e->scratch, &to, &(Lanes){fill->last, width, width}, true);
        e->coordinate_count = mark;
    }
}

/* Vector number `i` of the present block, of `vectors` a row: pushes its coordinates; the caller restores
 * coordinate_count. */
static Lanes at_vector_of_block(Fill *fill, int i, int vectors)
{
    Nest *nest = &fill->nest;
    Emitter *e = nest->e;
    int width = e->target->vector_floats;
    if (fill->row) {
        const Dim *row = dim_of(nest, fill->row);
        Affine at = row->start;
        at.constant += i / vectors;
        coordinate_push(e, fill->row, at);
    }
    if (!fill->lane) return (Lanes){NULL, 1, 1};
    const Dim *lane = dim_of(nest, fill->lane);
    Affine at = lane->start;
    int first = i % vectors * width, left = (int)lane->count - first;
    at.constant += first;
    coordinate_push(e, fill->lane, at);
    return tile_lanes(e, fill->lane, left < width ? left : width);
}

/* Loaded and stored together: what the loops around cost is little beside it. */
static void fill_block(Fill *fill)
{
    Emitter *e = fill->nest.e;
    int width = e->target->vector_floats, mark = e->coordinate_count, vectors = 1, count = 1;
    if (fill->lane) vectors = ((int)dim_of(&fill->nest, fill->lane)->count + width - 1) / width;
    if (fill->row) count = (int)dim_of(&fill->nest, fill->row)->count;
    count *= vectors;
    LLVMValueRef value[MAX_TILE];
    for (int i = 0; i < count; i++) {
        Lanes lanes = at_vector_of_block(fill, i, vectors);
        value[i] = operand_value(fill, lanes);
        e->coordinate_count = mark;
    }
    apply_gelu(fill, value, count, fill->lane ? width : 1);
    for (int i = 0; i < count; i++) {
        Lanes lanes = at_vector_of_block(fill, i, vectors);
        Affine to = slot_offset(e, &schedule_place(&e->schedule, fill->operand)->value);
        store_lanes(e, value[i], e->scratch, &to, &lanes, lanes.axis && fill->padded);
        e->coordinate_count = mark;
    }
}

static void fill_leaf(Nest *nest)
{
    Fill *fill = (Fill *)nest;
    if (fill->lane && strcmp(fill->lane, fill->last) != 0)
        fill_square(fill);
    else
        fill_block(fill);
}

/* Makes the leaves of the nest blocks of a few vectors: along the lanes, which become the innermost dim, and, where
 * these are few, along the dim before. A window that may leave what it reads takes much code for each. */
static void choose_blocks(Fill *fill)
{
    Nest *nest = &fill->nest;
    Emitter *e = nest->e;
    const Node *read = graph_node(e->graph, own_read(e->graph, fill->operand));
    int64_t most = gelus_together(e), width = 1, vectors = 1;
    if (map_may_leave(&read->attributes.map, &read->type, graph_type(e->graph, read->operands[0])))
        return;
    int last = nest->count - 1;
    if (fill->lane) {
        width = e->target->vector_floats;
        int at = (int)(dim_of(nest, fill->lane) - nest->dim);
        Dim lane = nest->dim[at];
        for (; at < last; at++) nest->dim[at] = nest->dim[at + 1];
        vectors = (lane.extent + width - 1) / width;
        if (vectors > most) vectors = most;
        lane.tile = vectors * width;
        nest->dim[last--] = lane;
    }
    if (last < 0 || most / vectors < 2) return;
    fill->row = nest->dim[last].axis;
    nest->dim[last].tile = most / vectors;
}

/* lanes: those that a panel is to hold, or NULL */
static void fill_slot(Emitter *e, const Stage *stage, int operand, const Dim *lanes)
{
    const Node *linear = graph_node(e->graph, stage->root);
    const AxisNames *over = &linear->attributes.over;
    NodeId id = linear->operands[operand];
    const Slot *slot = &schedule_place(&e->schedule, id)->value;
    int width = e->target->vector_floats;
    const char *last = slot->dim[slot->rank - 1].axis;
    Fill fill = {.nest = {.e = e, .stage = stage, .leaf = fill_leaf},
                 .operand = id,
                 .lane = memory_lane(e->graph, id),
                 .last = last,
                 .padded = !names_contain(over, last)};
    for (int i = 0; i < over->count; i++) {
        int64_t count = stage->product.part[i];
        bool is_lane = fill.lane && strcmp(over->name[i], fill.lane) == 0;
        if (is_lane && count == 1) fill.lane = NULL;
        if (count > 1)
            fill.nest.dim[fill.nest.count++] =
                (Dim){over->name[i], e->part_start[i], count, is_lane ? width : 1, {0}, 0};
    }
    add_dims(&fill.nest, graph_type(e->graph, id), over, fill.lane);
    for (int i = 0; i < fill.nest.count; i++) {
        Dim *dim = &fill.nest.dim[i];
        if (fill.lane && strcmp(dim->axis, fill.last) == 0) dim->tile = width;
        if (!lanes || strcmp(dim->axis, lanes->axis) != 0) continue;
        dim->base = lanes->start;
        dim->extent = lanes->count;
    }
    if (!fill.lane || strcmp(fill.lane, last) == 0) choose_blocks(&fill);
    emit_nest(&fill.nest, 0);
}

/* The innermost axis of the sum of which a part takes but some; -1: there is one part. */
static int parted_axis(const Emitter *e, const Node *linear)
{
    const Type *x = graph_type(e->graph, linear->operands[0]);
    for (int i = linear->attributes.over.count; i-- > 0;) {
        const Axis *axis = &x->axis[type_find(x, linear->attributes.over.name[i])];
        if (axis->symbol[0] || axis->extent != e->parted->product.part[i]) return i;
    }
    return -1;
}

static int64_t tiles_along(const Dim *dim)
{
    return (dim->extent + dim->tile - 1) / dim->tile;
}

/* Where line number `line` of those in the nest begins. */
static Affine line_offset(const Nest *nest, NodeId operand, LLVMValueRef line)
{
    Emitter *e = nest->e;
    const Node *read = graph_node(e->graph, operand);
    int mark = e->coordinate_count;
    Affine at[MAX_AXES];
    for (int i = nest->count; i-- > 0;) {
        const Dim *dim = &nest->dim[i];
        Affine start = dim->base;
        if (tiles_along(dim) > 1) {
            LLVMValueRef count = int_constant(e, tiles_along(dim));
            Affine digit = affine_value(LLVMBuildURem(e->builder, line, count, ""), dim->tile);
            line = LLVMBuildUDiv(e->builder, line, count, "");
            start = affine_add(e, digit, &start, 1);
        }
        coordinate_push(e, dim->axis, start);
    }
    for (int d = 0; d < read->attributes.map.rank; d++)
        at[d] = index_at(e, &read->attributes.map.dim[d], &read->type);
    Affine offset = storage_offset(e, read->operands[0], at);
    e->coordinate_count = mark;
    return offset;
}

/* The lines that the next part takes of an operand. */
static int64_t list_lines(Emitter *e, const Stage *stage, NodeId id, Nest *nest)
{
    const Node *linear = graph_node(e->graph, stage->root);
    const AxisNames *over = &linear->attributes.over;
    const char *lane = memory_lane(e->graph, id);
    int parted = parted_axis(e, linear);
    int64_t lines = 1;
    *nest = (Nest){.e = e, .stage = stage};
    NodeId stored = graph_node(e->graph, id)->operands[0];
    if (parted < 0 || !lane || schedule_holds(&e->schedule, stored) ||
        graph_node(e->graph, stored)->layout.rank > 0 ||
        type_elements(graph_type(e->graph, stored), NULL) > INT32_MAX)
        return 0;
    for (int i = 0; i < over->count; i++) {
        int64_t count = stage->product.part[i];
        Affine start = e->part_start[i];
        if (i == parted) start.constant += count;
        nest->dim[nest->count++] = (Dim){over->name[i], start, count, 1, {0}, 0};
    }
    add_dims(nest, graph_type(e->graph, id), over, NULL);
    for (int i = 0; i < nest->count; i++) {
        if (strcmp(nest->dim[i].axis, lane) != 0) continue;
        Dim along = nest->dim[i]; /* innermost: what lies together is fetched together */
        along.tile = LINE;
        nest->dim[i] = nest->dim[nest->count - 1];
        nest->dim[nest->count - 1] = along;
        break;
    }
    for (int i = 0; i < nest->count; i++) lines *= tiles_along(&nest->dim[i]);
    return lines;
}

/* Number of the tile along the dim, and how many there are. */
static void count_tiles(Emitter *e, const Dim *dim, Affine *number, int64_t *count)
{
    Affine at = affine_add(e, dim->start, &dim->base, -1);
    at = affine_divide(e, &at, dim->tile);
    *number = affine_add(e, *number, &at, *count);
    *count *= tiles_along(dim);
}

/* What each of `tiles` tiles fetches of the lines of an operand; 0: nothing. */
static int64_t lines_of_tile(int64_t lines, int64_t tiles)
{
    enum { MOST = 128 }; /* more would be many in each turn, and hold up the tile */
    int64_t share = (lines + tiles - 1) / tiles;
    return share > MOST ? 0 : share;
}

/* The place of line number `line` among those that are noted. */
static LLVMValueRef noted_line(Emitter *e, NodeId operand, const Affine *line)
{
    const Slot *slot = &schedule_place(&e->schedule, operand)->lines;
    return address(e, e->scratch,
                   (Affine[]){affine_add(e, *line, (Affine[]){affine_constant(slot->offset)}, 1)});
}

/* Notes where the lines of the part after the first are: in all parts they lie in the same way. */
static void note_lines(Emitter *e, const Stage *stage, int64_t tiles)
{
    const Node *linear = graph_node(e->graph, stage->root);
    for (int i = 0; i < linear->attributes.over.count; i++) e->part_start[i] = affine_constant(0);
    for (int operand = 0; operand < 2; operand++) {
        Nest nest;
        NodeId id = own_read(e->graph, linear->operands[operand]);
        int64_t lines = list_lines(e, stage, id, &nest), share = lines_of_tile(lines, tiles);
        if (share == 0) continue;
        RAFTC_ASSERT(share * tiles <= schedule_place(&e->schedule, id)->lines.elements);
        Loop loop = loop_begin(e, int_constant(e, share * tiles));
        LLVMValueRef clamped[] = {loop.index, int_constant(e, lines - 1)};
        Affine offset = line_offset(&nest, id, intrinsic(e, "llvm.smin", clamped, 2));
        LLVMValueRef number = LLVMBuildTrunc(e->builder, affine_emit(e, &offset), e->i32, "");
        LLVMBuildStore(e->builder, number,
                       noted_line(e, id, (Affine[]){affine_value(loop.index, 1)}));
        loop_end(e, &loop);
    }
}

/* Where the present part begins in what a read reads, from where the first does. */
static Affine part_offset(Emitter *e, const Node *linear, const Node *read)
{
    Affine offset[2];
    for (int k = 0; k < 2; k++) {
        int mark = e->coordinate_count;
        Affine at[MAX_AXES];
        for (int i = 0; i < read->type.rank; i++)
            coordinate_push(e, read->type.axis[i].name, affine_constant(0));
        for (int i = 0; k == 0 && i < linear->attributes.over.count; i++)
            coordinate_push(e, linear->attributes.over.name[i], e->part_start[i]);
        for (int d = 0; d < read->attributes.map.rank; d++)
            at[d] = index_at(e, &read->attributes.map.dim[d], &read->type);
        offset[k] = storage_offset(e, read->operands[0], at);
        e->coordinate_count = mark;
    }
    return affine_add(e, offset[0], &offset[1], -1);
}

void fetch_begin(PartFetch *fetch, const Nest *tiles, const Dim *lanes)
{
    Emitter *e = tiles->e;
    const Node *linear = graph_node(e->graph, tiles->stage->root);
    Affine number = affine_constant(0);
    int64_t count = 1;
    for (int i = tiles->count; i-- > 0;) count_tiles(e, &tiles->dim[i], &number, &count);
    count_tiles(e, lanes, &number, &count);
    for (int operand = 0; operand < 2; operand++) {
        Nest nest;
        NodeId id = own_read(e->graph, linear->operands[operand]);
        const Node *read = graph_node(e->graph, id);
        int64_t share = lines_of_tile(list_lines(e, tiles->stage, id, &nest), count);
        fetch->share[operand] = share;
        if (share == 0) continue;
        LLVMValueRef part = affine_emit(e, (Affine[]){part_offset(e, linear, read)});
        /* Not "in bounds": past the last part there is nothing, which does no harm. */
        fetch->part[operand] =
            LLVMBuildGEP2(e->builder, e->f32, buffer_of(e, read->operands[0]), &part, 1, "");
        fetch->noted[operand] = noted_line(e, id, (Affine[]){affine_scale(number, share)});
    }
}

/* The lines of an operand that a turn of `turns` fetches. */
static int64_t lines_of_turn(const PartFetch *fetch, int operand, int64_t turns)
{
    return (fetch->share[operand] + turns - 1) / turns;
}

static void fetch_lines(Emitter *e, const PartFetch *fetch, int operand, LLVMValueRef turn,
                        int64_t lines, bool clamp)
{
    for (int64_t i = 0; i < lines; i++) {
        Affine at = affine_value(turn, lines);
        at.constant += i;
        LLVMValueRef number = affine_emit(e, &at);
        LLVMValueRef clamped[] = {number, int_constant(e, fetch->share[operand] - 1)};
        if (clamp) number = intrinsic(e, "llvm.smin", clamped, 2);
        LLVMValueRef line =
            LLVMBuildGEP2(e->builder, e->i32, fetch->noted[operand], &number, 1, "");
        line = LLVMBuildLoad2(e->builder, e->i32, line, "");
        line = LLVMBuildSExt(e->builder, line, e->i64, "");
        line = LLVMBuildGEP2(e->builder, e->f32, fetch->part[operand], &line, 1, "");
        fetch_line(e, line, false);
    }
}

void fetch_turn(Emitter *e, const PartFetch *fetch, LLVMValueRef turn, int64_t turns)
{
    int64_t last = 0; /* turn that fetches anything, and one */
    Branch branch;
    for (int operand = 0; operand < 2; operand++) {
        int64_t lines = lines_of_turn(fetch, operand, turns);
        int64_t of_operand = lines ? (fetch->share[operand] + lines - 1) / lines : 0;
        if (of_operand > last) last = of_operand;
    }
    if (last == 0) return;
    bool some = last < turns;
    if (some)
        branch =
            branch_begin(e, LLVMBuildICmp(e->builder, LLVMIntSLT, turn, int_constant(e, last), ""));
    for (int operand = 0; operand < 2; operand++) {
        int64_t lines = lines_of_turn(fetch, operand, turns);
        fetch_lines(e, fetch, operand, turn, lines, lines * last > fetch->share[operand]);
    }
    if (!some) return;
    branch_else(e, &branch);
    branch_end(e, &branch);
}

/* Register tiles of a unit. */
static int64_t tiles_of_unit(Emitter *e, const Stage *stage)
{
    const Product *p = &stage->product;
    const Type *type = graph_type(e->graph, stage->root);
    int64_t tiles = 1;
    for (int i = 0; i < type->rank; i++) {
        const Axis *axis = &type->axis[i];
        Dim dim = unit_dim(e, axis, product_tile_along(p, axis->name, e->target));
        if (!axis->symbol[0]) tiles *= tiles_along(&dim);
    }
    return tiles;
}

static bool is_panel(const Emitter *e, const Stage *stage, int operand)
{
    NodeId id = graph_node(e->graph, stage->root)->operands[operand];
    return schedule_place(&e->schedule, id)->value.panel;
}

static void panel_leaf(Nest *nest)
{
    Emitter *e = nest->e;
    e->panel_start = nest->dim[0].start;
    for (int operand = 0; operand < 2; operand++)
        if (is_panel(e, nest->stage, operand)) fill_slot(e, nest->stage, operand, &nest->dim[0]);
    emit_tiles(e, nest->stage, &nest->dim[0]);
}

static void emit_part(Emitter *e, const Stage *stage)
{
    const Product *p = &stage->product;
    const Type *type = graph_type(e->graph, stage->root);
    for (int operand = 0; operand < 2; operand++)
        if (!is_panel(e, stage, operand)) fill_slot(e, stage, operand, NULL);
    Nest panels = {.e = e, .stage = stage, .leaf = panel_leaf, .count = 1};
    panels.dim[0] = unit_dim(e, &type->axis[type_find(type, p->lane)], product_width(p, e->target));
    emit_nest(&panels, 0);
}

/* The parts along the axes of the sum from number `axis` on. */
static void walk_parts(Emitter *e, const Stage *stage, int axis)
{
    const Node *linear = graph_node(e->graph, stage->root);
    const AxisNames *over = &linear->attributes.over;
    if (axis == over->count) {
        emit_part(e, stage);
        return;
    }
    const Type *x = graph_type(e->graph, linear->operands[0]);
    const Axis *along = &x->axis[type_find(x, over->name[axis])];
    int64_t part = stage->product.part[axis], parts = along->extent / part; /* 0: the batch */
    int mark = e->coordinate_count;
    Loop loop;
    if (parts != 1) loop = loop_begin(e, parts ? int_constant(e, parts) : e->batch);
    e->part_start[axis] = parts == 1 ? affine_constant(0) : affine_value(loop.index, part);
    coordinate_push(e, along->name, e->part_start[axis]);
    walk_parts(e, stage, axis + 1);
    if (parts != 1) loop_end(e, &loop);
    e->coordinate_count = mark;
}

/* From where the sums were kept to where they are written: row by row, as both lie in memory. */
static void finish_parts(Emitter *e, const Stage *stage)
{
    enum { VECTORS = 16 };
    Stage rows = *stage;
    rows.product.row_tile[0] = 1;
    rows.product.vectors = VECTORS;
    e->step_of_sums = SUMS_FINISH;
    emit_tiles(e, &rows, NULL);
}

void emit_parts(Emitter *e, const Stage *stage)
{
    const Slot *sums = &schedule_place(&e->schedule, stage->root)->sums;
    e->sums = sums->elements ? sums : NULL;
    if (!e->sums) e->sums_write = stage->writes[0];
    e->parted = stage;
    note_lines(e, stage, tiles_of_unit(e, stage));
    e->step_of_sums = SUMS_ADD;
    walk_parts(e, stage, 0);
    e->parted = NULL;
    if (e->sums) finish_parts(e, stage);
    e->step_of_sums = SUMS_WHOLE;
}
