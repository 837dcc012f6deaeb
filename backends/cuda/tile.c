/* tile.c: how one product is cut: tiles of the result, warps that share them out, slabs of the sum. */
#include "backends/cuda/product.h"

#include <string.h>

static int64_t row_tile_of(const Product *p, const char *axis)
{
    for (int i = 0; i < p->row_count; i++)
        if (strcmp(p->row[i], axis) == 0) return p->row_tile[i];
    return 0;
}

static int64_t ceil_divide(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* Cuts one axis of the result into tiles, and notes where they reach past its end, or past what the unit has of it. */
static void cut_axis(Writer *w, Tile *t, ItemDim *dim)
{
    const Product *p = t->p;
    const Kernel *kernel = &w->graph->kernels[w->schedule.kernel];
    int64_t extent = dim->count, row_tile = row_tile_of(p, dim->axis);
    int64_t whole = dim->kernel_axis < 0 ? extent : kernel->axis[dim->kernel_axis].extent;
    if (p->lane && strcmp(dim->axis, p->lane) == 0) {
        dim->tile = t->width;
        bool part = extent < whole && extent % dim->tile != 0;
        t->lane_extent = whole;
        t->lane_axis = part ? dim->kernel_axis : -1;
        t->lane_edge = part || whole % dim->tile != 0 || whole % extent != 0;
    } else if (row_tile > 0) {
        while (extent < whole && extent % row_tile != 0) row_tile--;
        dim->tile = row_tile;
        t->rows *= row_tile;
        t->row[t->row_count] = (Row){dim->axis, t->row_count ? "r1" : "r0", row_tile, whole,
                                     whole % row_tile != 0 || whole % extent != 0};
        t->row_count++;
    }
    dim->count = ceil_divide(extent, dim->tile);
}

/* Does the operand differ from unit to unit of a thread block? */
static bool is_of_unit(const Writer *w, NodeId id)
{
    const Node *node = graph_node(w->graph, id);
    if (node->op != OP_READ || schedule_holds(&w->schedule, node->operands[0])) return true;
    for (int i = 0; i < node->type.rank; i++) {
        int k = schedule_axis(&w->schedule, node->type.axis[i].name);
        if (k >= 0 && !kernel_axis_is_fixed(w, k)) return true;
    }
    return false;
}

static void find_side(Writer *w, Tile *t, Side *side, NodeId operand)
{
    side->operand = operand;
    side->of_unit = is_of_unit(w, operand);
    side->tiles = 1;
    side->staged = !t->both && t->p->lane && !schedule_place(&w->schedule, operand)->value.elements;
}

static void find_tiles(Writer *w, Tile *t)
{
    const Type *type = &t->linear->type;
    ItemDim dim[MAX_AXES];
    int count = list_dims(w, type, NULL, dim);
    for (int i = 0; i < count; i++) {
        cut_axis(w, t, &dim[i]);
        Side *in = NULL;
        for (int s = 0; s < 2; s++) {
            bool has = type_find(graph_type(w->graph, t->side[s].operand), dim[i].axis) >= 0;
            if (has) in = in ? NULL : &t->side[s];
        }
        if (!in) {
            t->outer[t->outer_count++] = dim[i];
            continue;
        }
        in->dim[in->dim_count++] = dim[i];
        in->tiles *= dim[i].count;
    }
    t->unit_outer = t->side[ROWS].of_unit == t->side[LANES].of_unit;
    for (int s = 0; s < 2; s++) {
        if (t->unit_outer) t->side[s].of_unit = false;
        if (t->side[s].of_unit) t->side[s].tiles *= w->schedule.block;
    }
}

/* Shares the tiles out over warps: in the fewest rounds, then with the fewest floats to bring. */
static void share_out(const Writer *w, Tile *t)
{
    int64_t best = INT64_MAX;
    int64_t floats[2] = {t->side[ROWS].staged ? t->rows : 0, t->side[LANES].staged ? t->width : 0};
    for (int along = 1; along <= w->threads / WARP; along *= 2) {
        int64_t across = w->threads / WARP / along;
        int64_t rounds =
            ceil_divide(t->side[ROWS].tiles, across) * ceil_divide(t->side[LANES].tiles, along);
        int64_t cost = rounds * 4096 + across * floats[ROWS] + along * floats[LANES];
        if (cost >= best) continue;
        best = cost;
        t->side[ROWS].warps = across;
        t->side[LANES].warps = along;
    }
}

/* Shared memory for slabs: what scratch leaves, if that is enough for any. */
static int64_t staging_bytes(const Writer *w)
{
    int64_t rest = CUDA_SHARED_BYTES - 4 * w->schedule.block * w->schedule.unit_floats;
    return rest < LEAST_STAGING || rest > MOST_STAGING ? MOST_STAGING : rest;
}

/* Indices of the sum in a slab: along its last axis, so many that slabs fit. */
static void choose_slab(Writer *w, Tile *t)
{
    const AxisNames *over = &t->linear->attributes.over;
    const Type *x = graph_type(w->graph, t->linear->operands[0]);
    int64_t sum = 1, bytes = 0;
    for (int i = 0; i < over->count; i++) {
        t->inner = x->axis[type_find(x, over->name[i])].extent;
        sum *= t->inner;
    }
    if (t->side[ROWS].staged) bytes += 4 * t->side[ROWS].warps * t->rows;
    if (t->side[LANES].staged) bytes += 4 * t->side[LANES].warps * t->width;
    t->depth = 1;
    for (int64_t step = 4; step > 0 && t->depth == 1; step /= 2)
        for (int64_t depth = step; depth <= 32 && !t->both; depth += step)
            if (t->inner % depth == 0 && MAX_SLABS * depth * bytes <= staging_bytes(w))
                t->depth = depth;
    t->at_once = t->depth % 4 == 0 ? 4 : t->depth % 2 == 0 ? 2 : 1;
    t->slabs = sum / t->depth;
    t->buffers = t->slabs < MAX_SLABS ? (int)t->slabs : MAX_SLABS;
    for (int s = 0; s < 2; s++) {
        Side *side = &t->side[s];
        int64_t tile = s == ROWS ? t->rows : t->width;
        side->slab = t->slab_floats;
        /* Copies are of up to four floats, aligned to their size. */
        if (side->staged) t->slab_floats += (side->warps * tile * t->depth + 3) / 4 * 4;
    }
    int64_t needed = t->buffers * t->slab_floats;
    if (needed > w->staging) w->staging = needed;
}

Tile find_tile(Writer *w, const Stage *stage)
{
    const Product *p = &stage->product;
    Tile t = {.stage = stage,
              .p = p,
              .linear = graph_node(w->graph, stage->root),
              .rows = 1,
              .width = product_width(p, w->target),
              .lane_axis = -1,
              .both = p->lane_in_x && p->lane_in_w};
    t.group = p->vectors % 4 == 0 ? 4 : p->vectors % 2 == 0 ? 2 : 1;
    find_side(w, &t, &t.side[ROWS], t.linear->operands[p->rows_in_w ? 1 : 0]);
    find_side(w, &t, &t.side[LANES], t.linear->operands[p->rows_in_w ? 0 : 1]);
    find_tiles(w, &t);
    share_out(w, &t);
    choose_slab(w, &t);
    return t;
}

int64_t product_tiles(Writer *w, const Stage *stage)
{
    const Node *linear = graph_node(w->graph, stage->root);
    Tile t = {.p = &stage->product, .width = product_width(&stage->product, w->target), .rows = 1};
    ItemDim dim[MAX_AXES];
    int count = list_dims(w, &linear->type, NULL, dim);
    int64_t tiles = 1;
    for (int i = 0; i < count; i++) {
        cut_axis(w, &t, &dim[i]);
        tiles *= dim[i].count;
    }
    return tiles;
}
