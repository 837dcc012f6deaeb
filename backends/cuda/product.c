/* product.c: matrix products: a warp computes a tile of rows x lanes, each thread its lanes of every row. */
#include "backends/cuda/emit.h"

#include <string.h>

typedef struct Tile {
    const Stage *stage;
    const Product *p;
    int64_t rows;
    int row_count;
    struct {
        const char *axis, *name; /* r0, r1: the row within the tile */
        int64_t tile, extent;    /* extent of the axis: rows past it are not stored */
        bool edge;               /* are there such rows? */
    } row[2];
    int64_t lane_extent; /* likewise of the lanes */
    bool lane_edge;
} Tile;

/* An index that is held below `extent`, for loads that must not leave their tensor. */
static Sum clamp(Writer *w, const Sum *at, int64_t extent)
{
    return sum_term(
        arena_printf(w->arena, "raft_min(%s, %lld)", sum_text(w, at), (long long)extent - 1), 1,
        extent);
}

/* Is memory past the end of the lanes, or rows, there and harmless: in a padded slot, a packed weight? */
static bool is_padded(const Writer *w, NodeId id, bool lanes)
{
    const Node *node = graph_node(w->graph, id);
    if (schedule_place(&w->schedule, id)->value.elements) return lanes;
    if (node->op != OP_READ || schedule_holds(&w->schedule, node->operands[0])) return false;
    return graph_node(w->graph, node->operands[0])->layout.rank > 0 &&
           map_is_identity(&node->attributes.map, node->type.rank);
}

static void at_rows(Writer *w, const Tile *t, bool padded)
{
    for (int k = 0; k < t->row_count; k++) {
        Sum at = *coordinate_at(w, t->row[k].axis),
            offset = sum_term(t->row[k].name, 1, t->row[k].tile);
        at = sum_add(w, at, &offset, 1);
        if (t->row[k].edge && !padded) at = clamp(w, &at, t->row[k].extent);
        push_coordinate(w, t->row[k].axis, at);
    }
}

static void at_lane(Writer *w, const Tile *t, bool padded)
{
    if (!t->p->lane) return;
    Sum at = *coordinate_at(w, t->p->lane), lane = sum_term("lane", 1, WARP);
    Sum vector = sum_term("v", WARP, t->p->vectors);
    at = sum_add(w, at, &vector, 1);
    at = sum_add(w, at, &lane, 1);
    if (t->lane_edge && !padded) at = clamp(w, &at, t->lane_extent);
    push_coordinate(w, t->p->lane, at);
}

static void open_unrolled(Writer *w, const char *name, int64_t count)
{
    line(w, "raft_unroll");
    open_block(w, "for (int %s = 0; %s < %lld; %s++)", name, name, (long long)count, name);
}

static int open_rows(Writer *w, const Tile *t)
{
    for (int k = 0; k < t->row_count; k++) open_unrolled(w, t->row[k].name, t->row[k].tile);
    return t->row_count;
}

static int open_vectors(Writer *w, const Tile *t)
{
    if (t->p->vectors == 1) return 0;
    open_unrolled(w, "v", t->p->vectors);
    return 1;
}

static void close_blocks(Writer *w, int count)
{
    while (count-- > 0) close_block(w);
}

static const char *sum_name(Writer *w, const Tile *t)
{
    Sum row = sum_constant(0);
    int64_t stride = t->row_count == 2 ? t->row[1].tile : 1;
    for (int k = 0; k < t->row_count; k++, stride = 1) {
        Sum term = sum_term(t->row[k].name, stride, t->row[k].tile);
        row = sum_add(w, row, &term, 1);
    }
    return arena_printf(w->arena, "sum[%s][%s]", sum_text(w, &row), t->p->vectors == 1 ? "0" : "v");
}

static void start_sums(Writer *w, const Tile *t, const Node *linear)
{
    line(w, "float sum[%lld][%d];", (long long)t->rows, t->p->vectors);
    int blocks = open_rows(w, t) + open_vectors(w, t), mark = w->coordinate_count;
    at_rows(w, t, false);
    at_lane(w, t, false);
    line(w, "%s = %s;", sum_name(w, t),
         linear->operand_count == 3 ? value_text(w, linear->operands[2]) : "0.0f");
    w->coordinate_count = mark;
    close_blocks(w, blocks);
}

static void add_products(Writer *w, const Tile *t, const Node *linear)
{
    const Product *p = t->p;
    NodeId vector = linear->operands[p->rows_in_w ? 0 : 1],
           number = linear->operands[p->rows_in_w ? 1 : 0];
    bool both = p->lane_in_x && p->lane_in_w;
    int mark = w->coordinate_count;
    line(w, "float y[%d];", p->vectors);
    int blocks = open_vectors(w, t);
    at_lane(w, t, is_padded(w, vector, true));
    line(w, "y[%s] = %s;", p->vectors == 1 ? "0" : "v", value_text(w, vector));
    w->coordinate_count = mark;
    close_blocks(w, blocks);

    blocks = open_rows(w, t);
    at_rows(w, t, is_padded(w, number, false));
    if (!both) line(w, "const float x = %s;", value_text(w, number));
    blocks += open_vectors(w, t);
    if (both) {
        at_lane(w, t, is_padded(w, number, true));
        line(w, "const float x = %s;", value_text(w, number));
    }
    line(w, "%s = fmaf(x, y[%s], %s);", sum_name(w, t), p->vectors == 1 ? "0" : "v",
         sum_name(w, t));
    w->coordinate_count = mark;
    close_blocks(w, blocks);
}

static void contract(Writer *w, const Tile *t, const Node *linear)
{
    const AxisNames *over = &linear->attributes.over;
    const Type *x = graph_type(w->graph, linear->operands[0]);
    int mark = w->coordinate_count;
    for (int i = 0; i < over->count; i++) {
        int64_t extent = x->axis[type_find(x, over->name[i])].extent;
        const char *name = arena_printf(w->arena, "k_%s", over->name[i]);
        open_block(w, "for (int %s = 0; %s < %lld; %s++)", name, name, (long long)extent, name);
        push_coordinate(w, over->name[i], sum_term(name, 1, extent));
    }
    add_products(w, t, linear);
    w->coordinate_count = mark;
    close_blocks(w, over->count);
}

static void finish_sums(Writer *w, const Tile *t)
{
    const Stage *stage = t->stage;
    int blocks = open_rows(w, t) + open_vectors(w, t), mark = w->coordinate_count;
    at_rows(w, t, true);
    at_lane(w, t, true);
    for (int k = 0; k < t->row_count; k++)
        if (t->row[k].edge)
            line(w, "if (%s >= %lld) continue;", sum_text(w, coordinate_at(w, t->row[k].axis)),
                 (long long)t->row[k].extent);
    if (t->lane_edge)
        line(w, "if (%s >= %lld) continue;", sum_text(w, coordinate_at(w, t->p->lane)),
             (long long)t->lane_extent);
    if (!t->p->lane) line(w, "if (lane > 0) continue;");
    w->computed[stage->root - w->schedule.first] = sum_name(w, t);
    Slot *slot = &schedule_place(&w->schedule, stage->end)->value;
    int64_t elements = slot->elements;
    slot->elements = 0; /* computed here, not loaded */
    const char *value = value_text(w, stage->end);
    slot->elements = elements;
    store_stage_end(w, stage, value);
    w->computed[stage->root - w->schedule.first] = NULL;
    w->coordinate_count = mark;
    close_blocks(w, blocks);
}

static int64_t row_tile_of(const Product *p, const char *axis)
{
    for (int i = 0; i < p->row_count; i++)
        if (strcmp(p->row[i], axis) == 0) return p->row_tile[i];
    return 1;
}

void write_product(Writer *w, const Stage *stage)
{
    const Node *linear = graph_node(w->graph, stage->root);
    const Product *p = &stage->product;
    const Kernel *kernel = &w->graph->kernels[w->schedule.kernel];
    Tile t = {.stage = stage, .p = p, .rows = 1};
    ItemDim dim[MAX_AXES];
    int count = list_dims(w, &linear->type, NULL, dim);
    for (int i = 0; i < count; i++) {
        int64_t tile = row_tile_of(p, dim[i].axis), extent = dim[i].count;
        bool is_lane = p->lane && strcmp(dim[i].axis, p->lane) == 0, is_row = false;
        int k = dim[i].kernel_axis;
        int64_t whole = k < 0 ? extent : kernel->axis[k].extent;
        if (is_lane) tile = product_width(p, w->target);
        for (int r = 0; r < p->row_count; r++) is_row |= strcmp(p->row[r], dim[i].axis) == 0;
        dim[i].tile = tile;
        dim[i].count = (extent + tile - 1) / tile;
        if (is_lane) {
            t.lane_extent = whole;
            t.lane_edge = whole % tile != 0;
        }
        if (!is_row) continue;
        t.rows *= tile;
        t.row[t.row_count].axis = dim[i].axis;
        t.row[t.row_count].name = t.row_count ? "r1" : "r0";
        t.row[t.row_count].tile = tile;
        t.row[t.row_count].extent = whole;
        t.row[t.row_count++].edge = whole % tile != 0;
    }
    open_items(w, dim, count, true);
    for (int i = 0; i < count; i++) /* rows and lanes are checked one by one */
        if (dim[i].tile == 1) skip_outside(w, &dim[i], 1);
    start_sums(w, &t, linear);
    contract(w, &t, linear);
    finish_sums(w, &t);
    close_block(w);
}
