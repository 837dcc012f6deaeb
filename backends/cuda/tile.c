/* tile.c: how one product is cut: tiles of the result, teams that share them out, slabs of the sum. */
#include "backends/cuda/product.h"

#include <string.h>

/* Indices of a sum that has spans, and of one of them; spans of a sum; threads of a multiprocessor that have registers for what they
 * take. */
enum { LONG_SUM = 1536, LEAST_SPAN = 384, MOST_SPANS = 4, MOST_SPAN_THREADS = 384 };

static int64_t row_tile_of(const Product *p, const char *axis)
{
    for (int i = 0; i < p->row_count; i++)
        if (strcmp(p->row[i], axis) == 0) return p->row_tile[i];
    return 0;
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
        t->row[t->row_count] = (Row){dim->axis, t->row_count ? "r1" : "r0",
                                     1,         row_tile,
                                     whole,     whole % row_tile != 0 || whole % extent != 0};
        t->row_count++;
    } else if (whole % extent != 0) {
        t->edge[t->edge_count++] = (Row){dim->axis, NULL, 1, 1, whole, true};
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
static int64_t share_out(Tile *t)
{
    enum { ROUND = 1 << 20 };
    int64_t best = INT64_MAX, teams = t->threads / TEAM;
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

/* Indices of the sum: of each image where it goes over the batch. */
static int64_t count_sum(const Writer *w, Tile *t)
{
    const AxisNames *over = &t->linear->attributes.over;
    const Type *x = graph_type(w->graph, t->linear->operands[0]);
    int64_t sum = 1;
    for (int i = 0; i < over->count; i++) {
        const Axis *axis = &x->axis[type_find(x, over->name[i])];
        t->over_batch |= axis->symbol[0] != '\0';
        t->inner = axis->symbol[0] ? 1 : axis->extent;
        sum *= t->inner;
    }
    return sum;
}

/* A long sum is that of its spans, whatever the grid: where blocks are few, threads take them side by side, else one after
 * the other, with what they have so far where the result goes. */
static int count_spans(const Writer *w, Tile *t)
{
    const Kernel *kernel = &w->graph->kernels[w->schedule.kernel];
    int64_t sum = count_sum(w, t);
    bool batched = false;
    for (int i = 0; i < kernel->rank; i++) batched |= kernel->axis[i].symbol[0] != '\0';
    if (!batched || t->over_batch || t->stage->write_count == 0) return 1;
    if (w->blocks * w->threads > MOST_SPAN_THREADS) return 1;
    if (sum < LONG_SUM || !t->side[ROWS].staged || !t->side[LANES].staged) return 1;
    int spans = 1;
    while (spans < MOST_SPANS && sum % (2 * spans) == 0 && sum / (2 * spans) >= LEAST_SPAN)
        spans *= 2;
    return spans;
}

bool has_span_threads(const Writer *w, const Tile *t)
{
    return w->fine && t->spans > 1;
}

/* Indices of the sum in a slab: along its last axis, so many that slabs fit. */
static void choose_slab(Writer *w, Tile *t)
{
    int64_t sum = count_sum(w, t), bytes = 0, abreast = w->threads / t->threads;
    for (int s = 0; s < 2; s++)
        if (t->side[s].staged) bytes += 4 * t->side[s].teams * (s == ROWS ? t->rows : t->width);
    int64_t most = abreast > 1 ? SPAN_SLABS : w->fine ? FINE_SLABS : MOST_SLABS;
    t->depth = 1;
    for (int64_t step = 4; step > 0 && t->depth == 1; step /= 2)
        for (int64_t depth = step; depth <= 32 && !t->both; depth += step)
            if (t->inner % depth == 0 && sum / t->spans % depth == 0 &&
                abreast * most * depth * bytes <= staging_bytes(w))
                t->depth = depth;
    t->at_once = t->rows_together ? 1 : loaded_together(t->depth);
    t->slabs = sum / t->depth;
    int64_t own = t->slabs / abreast;
    t->buffers = (int)(own < most ? own : most);
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
    int64_t needed = abreast * t->buffers * t->slab_floats;
    int64_t others = (abreast - 1) * t->threads * t->rows * t->p->vectors; /* their sums */
    if (others > needed) needed = others;
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
    t.group = loaded_together(p->vectors);
    find_side(w, &t, &t.side[ROWS], t.linear->operands[p->rows_in_w ? 1 : 0]);
    find_side(w, &t, &t.side[LANES], t.linear->operands[p->rows_in_w ? 0 : 1]);
    t.rows_together = p->rows_together && t.side[ROWS].staged;
    find_tiles(w, &t);
    t.spans = count_spans(w, &t);
    t.threads = has_span_threads(w, &t) ? w->threads / t.spans : w->threads;
    *rounds = share_out(&t);
    return t;
}

/* Cycles of a round for four steps of the sum, where a multiprocessor has this block alone: what the warps that run one after
 * the other compute and load, or what all load from shared memory, where each float that a thread takes costs as much as
 * one of its own for every thread. */
static int64_t step_cycles(const Writer *w, const Tile *t)
{
    enum { ABREAST = 4 };
    int64_t warps = w->threads / t->threads * ceil_divide(t->teams * TEAM, WARP);
    int64_t own = product_step_cost(t->p, t->rows) * ceil_divide(warps, ABREAST);
    int64_t loads = 4 * (t->rows + t->p->vectors) * warps;
    return own > loads ? own : loads;
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
        int64_t cost = rounds * (w->fine ? step_cycles(w, &t) : product_step_cost(p, t.rows));
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

int64_t product_cycles(Writer *w, const Stage *stage)
{
    Tile t = find_tile(w, stage);
    int64_t rounds = t.unit_outer ? w->schedule.block : 1;
    for (int s = 0; s < 2; s++) rounds *= ceil_divide(t.side[s].tiles, t.side[s].teams);
    for (int i = 0; i < t.outer_count; i++) rounds *= t.outer[i].count;
    int64_t steps = count_sum(w, &t) * t.threads / w->threads;
    return rounds * ceil_divide(steps, 4) * step_cycles(w, &t);
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
