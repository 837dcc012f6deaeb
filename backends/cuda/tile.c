/* tile.c: how one product is cut: tiles of the result, teams that share them out, slabs of the sum. */
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
    } else if (whole % extent != 0) {
        t->edge[t->edge_count++] = (Row){dim->axis, NULL, 1, whole, true};
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

/* Shares the tiles out over teams: in the fewest rounds, then with the fewest floats to bring. Returns the rounds. */
static int64_t share_out(const Writer *w, Tile *t)
{
    enum { ROUND = 1 << 20 };
    int64_t best = INT64_MAX, teams = w->threads / TEAM;
    int64_t floats[2] = {t->side[ROWS].staged ? t->rows : 0, t->side[LANES].staged ? t->width : 0};
    for (int64_t along = 1; along <= teams && along <= t->side[LANES].tiles; along++) {
        int64_t across = teams / along;
        if (across > t->side[ROWS].tiles) across = t->side[ROWS].tiles;
        int64_t rounds =
            ceil_divide(t->side[ROWS].tiles, across) * ceil_divide(t->side[LANES].tiles, along);
        int64_t cost = rounds * ROUND + across * floats[ROWS] + along * floats[LANES];
        if (cost >= best) continue;
        best = cost;
        t->side[ROWS].teams = across;
        t->side[LANES].teams = along;
    }
    t->teams = t->side[ROWS].teams * t->side[LANES].teams;
    return best / ROUND;
}

/* Shared memory for slabs: what scratch leaves, if that is enough for any. */
static int64_t staging_bytes(const Writer *w)
{
    int64_t rest = w->shared - w->scratch;
    return rest < LEAST_STAGING || rest > MOST_STAGING ? MOST_STAGING : rest;
}

/* Indices of the sum in a slab: along its last axis, so many that slabs fit. */
static void choose_slab(Writer *w, Tile *t)
{
    const AxisNames *over = &t->linear->attributes.over;
    const Type *x = graph_type(w->graph, t->linear->operands[0]);
    int64_t sum = 1, bytes = 0;
    for (int i = 0; i < over->count; i++) {
        const Axis *axis = &x->axis[type_find(x, over->name[i])];
        t->over_batch |= axis->symbol[0] != '\0';
        t->inner = axis->symbol[0] ? 1 : axis->extent;
        sum *= t->inner;
    }
    for (int s = 0; s < 2; s++)
        if (t->side[s].staged) bytes += 4 * t->side[s].teams * (s == ROWS ? t->rows : t->width);
    int64_t most = w->fine ? FINE_SLABS : MOST_SLABS;
    t->depth = 1;
    for (int64_t step = 4; step > 0 && t->depth == 1; step /= 2)
        for (int64_t depth = step; depth <= 32 && !t->both; depth += step)
            if (t->inner % depth == 0 && most * depth * bytes <= staging_bytes(w)) t->depth = depth;
    t->at_once = t->depth % 4 == 0 ? 4 : t->depth % 2 == 0 ? 2 : 1;
    t->slabs = sum / t->depth;
    t->buffers = (int)(t->slabs < most ? t->slabs : most);
    if (t->over_batch && t->buffers == 1)
        t->buffers = 2; /* one image alone has as many as are ahead */
    for (int s = 0; s < 2; s++) {
        Side *side = &t->side[s];
        side->slab = t->slab_floats;
        side->tile_floats = (s == ROWS ? t->rows : t->width) * t->depth;
        /* Rows of up to four floats are read together: of an odd number of fours, no two teams meet in a bank. */
        if (s == ROWS && t->at_once == 4 && side->teams > 1 && side->tile_floats % 8 == 0)
            side->tile_floats += 4;
        /* Copies are of up to four floats, aligned to their size. */
        if (side->staged) t->slab_floats += (side->teams * side->tile_floats + 3) / 4 * 4;
    }
    int64_t needed = t->buffers * t->slab_floats;
    if (needed > w->staging) w->staging = needed;
}

static Tile cut(Writer *w, const Stage *stage, const Product *p, int64_t *rounds)
{
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
    *rounds = share_out(w, &t);
    return t;
}

/* Tiles of as many rows as take the least time on all teams of the block. Where warps are few, a thread has two rows at
 * least: with one, it loads as much as it computes. */
Tile find_tile(Writer *w, const Stage *stage)
{
    Product *p = arena_alloc(w->arena, sizeof *p);
    *p = stage->product;
    int64_t none = 1, rounds, least = INT64_MAX, best = 1;
    int64_t *inner = p->row_count ? &p->row_tile[p->row_count - 1] : &none;
    int64_t most = *inner, fewest = w->fine && most > 1 ? 2 : 1;
    for (int64_t tile = most; tile >= fewest; tile--) {
        *inner = tile;
        Tile t = cut(w, stage, p, &rounds);
        int64_t cost = rounds * product_step_cost(t.rows, p->vectors);
        if (t.row_count > 0 && t.row[t.row_count - 1].edge) cost += cost / 16;
        if (cost >= least) continue;
        least = cost;
        best = tile;
    }
    *inner = best;
    Tile t = cut(w, stage, p, &rounds);
    choose_slab(w, &t);
    return t;
}

bool has_many_sums(const Tile *t)
{
    return t->rows * t->p->vectors > 64;
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
