/* fetch.c: what a tile fetches for later units, or a later stage, while its sums are taken.
 *
 * Memory takes longer to answer than a tile takes. So each tile fetches what the same tile of a later unit
 * needs, row by row in the turns of its innermost loop: a core waits for but a few lines at a time, and
 * many at once would hold up the tile itself.
 */
#include "backends/llvm/tile.h"

#include <string.h>

/* Moves the present coordinates from the present unit to a later one, which begins at `later`. */
static void move_to(Emitter *e, const Affine *later)
{
    const Kernel *kernel = &e->graph->kernels[e->schedule.kernel];
    for (int i = 0; i < kernel->rank; i++) {
        Affine at = affine_add(e, *coordinate_of(e, kernel->axis[i].name), &e->base[i], -1);
        coordinate_push(e, kernel->axis[i].name, affine_add(e, at, &later[i], 1));
    }
    if (!schedule_walks(&e->schedule)) return;
    Affine at = *coordinate_of(e, kernel->walk);
    at.constant += kernel->step;
    coordinate_push(e, kernel->walk, at);
}

/* Nothing where a tile has no coordinate along an axis of what is fetched. */
static void add_fetch(Tile *tile, TileFetch fetch)
{
    const Emitter *e = tile->nest.e;
    const Type *result = graph_type(e->graph, tile->nest.stage->root);
    for (int i = 0; i < fetch.space->rank; i++) {
        const char *axis = fetch.space->axis[i].name;
        if (schedule_axis(&e->schedule, axis) < 0 && type_find(result, axis) < 0 &&
            !schedule_walks_along(&e->schedule, axis))
            return;
    }
    if (tile->fetch_count < MAX_FETCHES) tile->fetch[tile->fetch_count++] = fetch;
}

/* Of a value that was stored long ago, if it lies along the tile's lanes. */
static void add_read(Tile *tile, NodeId id, bool here)
{
    Emitter *e = tile->nest.e;
    const Node *read = graph_node(e->graph, id);
    if (read->op != OP_READ || schedule_holds(&e->schedule, read->operands[0])) return;
    const char *lane = memory_lane(e->graph, id);
    if (lane && strcmp(lane, tile->lanes.axis) == 0)
        add_fetch(tile,
                  (TileFetch){&read->attributes.map, &read->type, read->operands[0], .here = here});
}

/* Of a place that is written to, unless `id` is NO_NODE. */
static void add_write(Tile *tile, NodeId id, bool here)
{
    const Graph *graph = tile->nest.e->graph;
    if (id == NO_NODE) return;
    const Node *write = graph_node(graph, id);
    add_fetch(tile, (TileFetch){&write->attributes.map, graph_type(graph, write->operands[0]), id,
                                .to_write = true, .here = here});
}

/* The slopes of a GELU are of values that were stored long ago. */
static void find_slopes(Tile *tile)
{
    Emitter *e = tile->nest.e;
    const Stage *stage = tile->nest.stage;
    for (NodeId id = stage->root + 1; id <= stage->end; id++) {
        const Node *node = graph_node(e->graph, id);
        if (node->op != OP_GELU_GRAD) continue;
        add_read(tile, node->operands[0], false);
    }
}

static bool is_used_inside(const Emitter *e, NodeId value)
{
    for (NodeId id = value + 1; id < e->schedule.end; id++) {
        const Node *node = graph_node(e->graph, id);
        for (uint32_t i = 0; node->op != OP_WRITE && i < node->operand_count; i++)
            if (node->operands[i] == value) return true;
    }
    return false;
}

/* What a kernel stores of values that it goes on with goes to places far apart. Stores that wait for them
 * would hold up all stores after them, those to scratch memory, too. */
static void find_places(Tile *tile)
{
    Emitter *e = tile->nest.e;
    const Stage *stage = tile->nest.stage;
    for (NodeId id = stage->end + 1; id < e->schedule.end; id++) {
        const Node *node = graph_node(e->graph, id);
        NodeId value = node->operands[0];
        if (node->op == OP_WRITE && value >= stage->root && value <= stage->end &&
            is_used_inside(e, value))
            add_write(tile, id, false);
    }
}

/* The first `op` in the kernel that takes `value`, or NO_NODE. */
static NodeId find_user(const Emitter *e, NodeId value, Op op)
{
    for (NodeId id = value + 1; id < e->schedule.end; id++) {
        const Node *node = graph_node(e->graph, id);
        for (uint32_t i = 0; node->op == op && i < node->operand_count; i++)
            if (node->operands[i] == value) return id;
    }
    return NO_NODE;
}

/* What LayerNorm's gradient takes of the same rows as soon as it has the products, and where that, or the residual sum with it,
 * is stored. */
static void find_normal(Tile *tile)
{
    Emitter *e = tile->nest.e;
    NodeId result = find_user(e, tile->nest.stage->end, OP_LAYERNORM_GRAD);
    if (result == NO_NODE) return;
    add_read(tile, graph_node(e->graph, result)->operands[0], true);
    NodeId sum = find_user(e, result, OP_ADD);
    if (sum != NO_NODE) result = sum;
    add_write(tile, find_user(e, result, OP_WRITE), true);
}

static bool is_last_product(const Tile *tile)
{
    const Schedule *s = &tile->nest.e->schedule;
    for (const Stage *stage = tile->nest.stage + 1; stage < s->stages + s->stage_count; stage++)
        if (stage->kind == STAGE_PRODUCT) return false;
    return true;
}

/* What the next unit of a forward normalises, and where it stores that if a backward pass wants it; and where the result of the
 * present one is stored. Tiles of 16 registers are too small: finding the places would take up their loops. */
static void find_next_normal(Tile *tile)
{
    Emitter *e = tile->nest.e;
    if (e->target->vector_registers <= 16) return;
    for (NodeId id = e->schedule.first; id < tile->nest.stage->root; id++) {
        const Node *node = graph_node(e->graph, id);
        if (node->op != OP_LAYERNORM || !is_last_product(tile)) continue;
        add_read(tile, node->operands[0], false);
        add_write(tile, find_user(e, id, OP_WRITE), false);
        add_write(tile, find_user(e, tile->nest.stage->end, OP_WRITE), true);
    }
}

/* What a kernel that walks copies at the beginning of the next step. */
static void find_next_copies(Tile *tile)
{
    Emitter *e = tile->nest.e;
    if (!schedule_walks(&e->schedule)) return;
    for (NodeId id = e->schedule.first; id < e->schedule.end; id++)
        if (graph_node(e->graph, id)->op == OP_READ &&
            schedule_place(&e->schedule, id)->value.elements)
            add_read(tile, id, false);
}

/* Where the later unit begins; a kernel that walks goes on in the same. */
static void find_later(Tile *tile)
{
    Emitter *e = tile->nest.e;
    if (schedule_walks(&e->schedule))
        memcpy(tile->later, e->base, sizeof tile->later);
    else
        unit_base(e, later_unit(e), tile->later);
}

void find_fetches(Tile *tile)
{
    if (!tile->lanes.axis) return;
    find_slopes(tile);
    find_places(tile);
    find_normal(tile);
    find_next_normal(tile);
    find_next_copies(tile);
    if (tile->fetch_count > 0) find_later(tile);
}

/* Coordinates of the row with this number, which the program computes. */
static void at_numbered_row(Tile *tile, const Affine *row)
{
    Emitter *e = tile->nest.e;
    int64_t inner = tile->row_dim[1] >= 0 ? tile->nest.dim[tile->row_dim[1]].count : 1;
    Affine offset[] = {affine_divide(e, row, inner), affine_modulo(e, row, inner)};
    for (int k = 0; k < 2; k++) {
        if (tile->row_dim[k] < 0) continue;
        const Dim *dim = &tile->nest.dim[tile->row_dim[k]];
        coordinate_push(e, dim->axis, affine_add(e, offset[k], &dim->start, 1));
    }
}

/* After the last unit that is something else, which does no harm. */
static void fetch_row(Tile *tile, const Affine *row)
{
    Emitter *e = tile->nest.e;
    int width = e->target->vector_floats, step = width < LINE ? LINE / width : 1;
    for (int i = 0; i < tile->fetch_count; i++) {
        const TileFetch *fetch = &tile->fetch[i];
        for (int v = 0; v < tile->vectors; v += step) {
            int mark = e->coordinate_count;
            Affine at[MAX_AXES];
            at_numbered_row(tile, row);
            at_vector(tile, v);
            if (!fetch->here) move_to(e, tile->later);
            for (int d = 0; d < fetch->map->rank; d++)
                at[d] = index_at(e, &fetch->map->dim[d], fetch->space);
            Affine offset = storage_offset(e, fetch->stored, at);
            e->coordinate_count = mark;
            fetch_line(e, address(e, buffer_of(e, fetch->stored), &offset), fetch->to_write);
        }
    }
}

void fetch_rows_at_once(Tile *tile)
{
    for (int row = 0; row < tile->rows; row++) fetch_row(tile, (Affine[]){affine_constant(row)});
}

/* The share of the present turn of fetching all rows. */
static void share_rows(Tile *tile, int64_t turns, void (*fetch)(Tile *tile, const Affine *row))
{
    Emitter *e = tile->nest.e;
    int64_t rows = (tile->rows + turns - 1) / turns, last = (tile->rows + rows - 1) / rows;
    Branch branch;
    if (last < turns)
        branch = branch_begin(e, LLVMBuildICmp(e->builder, LLVMIntSLT, affine_emit(e, &tile->turn),
                                               int_constant(e, last), ""));
    for (int64_t i = 0; i < rows; i++) {
        Affine row = affine_scale(tile->turn, rows);
        row.constant += i;
        fetch(tile, &row);
    }
    if (last == turns) return;
    branch_else(e, &branch);
    branch_end(e, &branch);
}

void fetch_rows(Tile *tile, int64_t turns)
{
    if (tile->fetch_count > 0 && turns > 0) share_rows(tile, turns, fetch_row);
}

/* After the last tile that is something else, which does no harm. */
static void fetch_row_of_sums(Tile *tile, const Affine *row)
{
    Emitter *e = tile->nest.e;
    int width = e->target->vector_floats, step = width < LINE ? LINE / width : 1;
    Affine next = *row;
    next.constant += tile->rows;
    for (int v = 0; v < tile->vectors; v += step) {
        int mark = e->coordinate_count;
        at_numbered_row(tile, &next);
        at_vector(tile, v);
        fetch_near(e, address_of_sums(e));
        e->coordinate_count = mark;
    }
}

/* Do the sums of a unit come from the far end of the L2 cache, or beyond? What is nearer comes soon enough by itself
 * (bench/results/kernels-2026-11-27.md). */
static bool sums_are_far(const Tile *tile)
{
    Emitter *e = tile->nest.e;
    const Type *type = graph_type(e->graph, tile->nest.stage->root);
    int64_t bytes = sizeof(float);
    for (int i = 0; i < type->rank; i++) bytes *= unit_dim(e, &type->axis[i], 1).extent;
    return bytes > e->target->l2_bytes / 6;
}

void fetch_sums(Tile *tile, int64_t turns)
{
    if (tile->row_dim[0] >= 0 && sums_are_far(tile)) share_rows(tile, turns, fetch_row_of_sums);
}
