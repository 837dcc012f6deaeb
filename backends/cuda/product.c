/* product.c: matrix products: a thread block computes tiles of rows x lanes, one a team of threads at a time.
 *
 * An operand that lies in scratch is read there. Of any other the block brings a slab to shared memory, some indices of
 * the sum for the tiles that its teams work on, while it computes with those before (slab.c). Each thread has its lanes
 * of every row of its team's tile, and adds along the sum in one order, whatever the grid.
 */
#include "backends/cuda/product.h"

#include <string.h>

/* ---- coordinates ---------------------------------------------------------------------------- */

static void push_moved(Writer *w, const char *axis, const Sum *by)
{
    push_coordinate(w, axis, sum_add(w, *coordinate_at(w, axis), by, 1));
}

/* Holds the coordinate at `last` or below, for loads that must not leave their tensor. */
static void clamp(Writer *w, const char *axis, const char *last, int64_t extent)
{
    const char *at = sum_text(w, coordinate_at(w, axis));
    push_coordinate(w, axis,
                    sum_term(arena_printf(w->arena, "raft_min(%s, %s)", at, last), 1, extent));
}

const char *last_lane(Writer *w, const Tile *t)
{
    const char *last = arena_printf(w->arena, "%lld", (long long)t->lane_extent - 1);
    if (t->lane_axis < 0) return last;
    Sum end = w->base[t->lane_axis];
    int64_t tile = w->graph->kernels[w->schedule.kernel].tile[t->lane_axis];
    end.constant += tile - 1;
    if (t->lane_extent % tile == 0) return sum_text(w, &end);
    return arena_printf(w->arena, "raft_min(%s, %s)", sum_text(w, &end), last);
}

void clamp_lane(Writer *w, const Tile *t)
{
    if (t->lane_edge) clamp(w, t->p->lane, last_lane(w, t), t->lane_extent);
}

/* Holds the coordinate at the last index of the axis. */
static void clamp_row(Writer *w, const Row *row)
{
    clamp(w, row->axis, arena_printf(w->arena, "%lld", (long long)row->extent - 1), row->extent);
}

static bool has_dim(const Side *side, const char *axis)
{
    for (int i = 0; i < side->dim_count; i++)
        if (strcmp(side->dim[i].axis, axis) == 0) return true;
    return false;
}

void clamp_edges(Writer *w, const Tile *t, const Side *side)
{
    for (int k = 0; k < t->edge_count; k++) {
        bool other =
            side && has_dim(&t->side[side == &t->side[ROWS] ? LANES : ROWS], t->edge[k].axis);
        if (!other) clamp_row(w, &t->edge[k]);
    }
}

void at_rows(Writer *w, const Tile *t, bool clamped)
{
    for (int k = 0; k < t->row_count; k++) {
        const Row *row = &t->row[k];
        Sum by = sum_term(row->name, row->step, row->tile / row->step);
        push_moved(w, t->row[k].axis, &by);
        if (clamped && t->row[k].edge) clamp_row(w, &t->row[k]);
    }
}

/* The lane of vector v: `group` lanes that follow one another belong to one thread. */
static void at_lane(Writer *w, const Tile *t, int v, bool clamped)
{
    if (!t->p->lane) return;
    Sum by = sum_term("lane", t->group, TEAM);
    by.constant = v / t->group * t->group * TEAM + v % t->group;
    push_moved(w, t->p->lane, &by);
    if (clamped) clamp_lane(w, t);
}

/* The first lane of this thread. */
static void at_group(Writer *w, const Tile *t)
{
    if (!t->p->lane) return;
    Sum by = sum_term("lane", t->group, TEAM);
    push_moved(w, t->p->lane, &by);
}

Sum row_number(Writer *w, const Tile *t)
{
    Sum row = sum_constant(0);
    int64_t stride = t->row_count == 2 ? t->row[1].tile : 1;
    for (int k = 0; k < t->row_count; k++, stride = 1) {
        Sum term = sum_term(t->row[k].name, stride, t->row[k].tile);
        row = sum_add(w, row, &term, 1);
    }
    return row;
}

void enter_side(Writer *w, const Side *side, const char *index)
{
    int64_t before = 1;
    for (int i = side->dim_count; i-- > 0;) {
        const ItemDim *dim = &side->dim[i];
        if (dim->count == 1) continue;
        bool top = before * dim->count == side->tiles;
        line(w, "const int %s = %s;", dim->name,
             digit_text(w, index, before, top ? 0 : dim->count));
        before *= dim->count;
    }
    if (side->of_unit) {
        if (w->schedule.block > 1) line(w, "const int g = %s;", digit_text(w, index, before, 0));
        enter_unit(w, true);
    }
    push_dims(w, side->dim, side->dim_count);
}

const char *slabs_text(Writer *w, const Tile *t)
{
    const char *each = arena_printf(w->arena, "%lld", (long long)t->slabs);
    if (!t->over_batch) return each;
    return t->slabs == 1 ? "batch" : arena_printf(w->arena, "batch * %s", each);
}

const char *slab_type(const Writer *w, const Tile *t)
{
    return t->over_batch ? w->index : "int";
}

/* The coordinates of the sum in a slab; the last moves by `depth` from slab to slab. */
void enter_slab(Writer *w, const Tile *t)
{
    const AxisNames *over = &t->linear->attributes.over;
    const Type *x = graph_type(w->graph, t->linear->operands[0]);
    const char *of = "slab";
    int64_t before = 1;
    for (int i = over->count; i-- > 0;) {
        const Axis *axis = &x->axis[type_find(x, over->name[i])];
        int64_t step = i == over->count - 1 ? t->depth : 1, count = axis->extent / step;
        const char *name = arena_printf(w->arena, "k_%s", over->name[i]);
        push_coordinate(w, over->name[i], sum_term(name, step, count));
        if (count == 1) continue;
        const char *digit = digit_text(w, of, before, i > 0 ? count : 0);
        before *= count;
        if (!axis->symbol[0]) {
            line(w, "const int %s = %s;", name, digit);
            continue;
        }
        line(w, i > 0 ? "const %s %s = %s %% batch;" : "const %s %s = %s;", w->index, name, digit);
        of = arena_printf(w->arena, "%s / batch", digit);
        before = 1;
    }
}

const char *thread_text(Writer *w, const Tile *t)
{
    const char *thread = arena_printf(w->arena, "raft_thread<%d>()", w->threads);
    return digit_text(w, thread, 1, has_span_threads(w, t) ? t->threads : 0);
}

/* ---- loops ---------------------------------------------------------------------------------- */

static void open_unrolled(Writer *w, const char *name, int64_t count)
{
    line(w, "raft_unroll");
    open_block(w, "for (int %s = 0; %s < %lld; %s++)", name, name, (long long)count, name);
}

int open_rows(Writer *w, const Tile *t)
{
    for (int k = 0; k < t->row_count; k++) open_unrolled(w, t->row[k].name, t->row[k].tile);
    return t->row_count;
}

void close_blocks(Writer *w, int count)
{
    while (count-- > 0) close_block(w);
}

const char *sum_name(Writer *w, const Tile *t, int v)
{
    Sum row = row_number(w, t);
    return arena_printf(w->arena, "sum[%s][%d]", sum_text(w, &row), v);
}

static void start_sums(Writer *w, const Tile *t)
{
    const Node *linear = t->linear;
    bool added = linear->operand_count == 3, abreast = has_span_threads(w, t);
    int blocks = open_rows(w, t), mark = w->coordinate_count;
    at_rows(w, t, true);
    clamp_edges(w, t, NULL);
    int rows = w->coordinate_count;
    for (int v = 0; v < t->p->vectors; v++) {
        at_lane(w, t, v, true);
        line(w, abreast && added ? "%s = span == 0 ? %s : 0.0f;" : "%s = %s;", sum_name(w, t, v),
             added ? value_text(w, linear->operands[2]) : "0.0f");
        w->coordinate_count = rows;
    }
    w->coordinate_count = mark;
    close_blocks(w, blocks);
}

static const char *last_over(const Tile *t)
{
    const AxisNames *over = &t->linear->attributes.over;
    return over->name[over->count - 1];
}

/* The sum's last axis at element `name` of `count` after q * at_once. */
static void at_sum(Writer *w, const Tile *t, const char *name)
{
    Sum q = sum_term("q", t->at_once, t->depth / t->at_once);
    push_moved(w, last_over(t), &q);
    if (!name) return;
    Sum j = sum_term(name, 1, t->at_once);
    push_moved(w, last_over(t), &j);
}

/* float y[at_once][vectors]: the lanes of this thread at the next indices of the sum. */
static void load_lanes(Writer *w, const Tile *t)
{
    const Side *side = &t->side[LANES];
    int mark = w->coordinate_count, vectors = t->p->vectors;
    Spot spot;
    line(w, "float y[%d][%d];", t->at_once, vectors);
    open_unrolled(w, "j", t->at_once);
    clamp_edges(w, t, side);
    at_sum(w, t, "j");
    bool whole = !side->staged && !t->lane_edge;
    if (whole) {
        int start = w->coordinate_count;
        at_group(w, t);
        whole = find_floats(w, side->operand, t->p->lane, t->group, &spot);
        w->coordinate_count = start;
    }
    for (int v = 0; v < vectors; v += whole || side->staged ? t->group : 1) {
        int start = w->coordinate_count;
        at_lane(w, t, v, true);
        if (side->staged) {
            Sum lane = sum_term("lane", t->group, TEAM);
            lane.constant = v * TEAM;
            line(w, "raft_load<%d>(&y[j][%d], slab_lanes, (q * %d + j) * %lld + %s);", t->group, v,
                 t->at_once, (long long)t->width, sum_text(w, &lane));
        } else if (whole) {
            find_spot(w, side->operand, &spot);
            line(w, "raft_load<%d>(&y[j][%d], %s, %s);", t->group, v, spot.base,
                 sum_text(w, &spot.at));
        } else {
            line(w, "y[j][%d] = %s;", v, value_text(w, side->operand));
        }
        w->coordinate_count = start;
    }
    w->coordinate_count = mark;
    close_block(w);
}

/* float x[at_once]: one row at the next indices of the sum. */
static void load_row(Writer *w, const Tile *t)
{
    const Side *side = &t->side[ROWS];
    int mark = w->coordinate_count;
    Spot spot;
    line(w, "float x[%d];", t->at_once);
    if (side->staged) {
        Sum row = row_number(w, t);
        Sum at = sum_term("q", t->at_once, t->depth / t->at_once);
        at = sum_add(w, at, &row, t->depth);
        line(w, "raft_load<%d>(x, slab_rows, %s);", t->at_once, sum_text(w, &at));
        return;
    }
    at_rows(w, t, true);
    clamp_edges(w, t, side);
    at_sum(w, t, NULL);
    if (find_floats(w, side->operand, last_over(t), t->at_once, &spot)) {
        line(w, "raft_load<%d>(x, %s, %s);", t->at_once, spot.base, sum_text(w, &spot.at));
    } else {
        w->coordinate_count = mark;
        at_rows(w, t, true);
        clamp_edges(w, t, side);
        at_sum(w, t, "j");
        open_unrolled(w, "j", t->at_once);
        line(w, "x[j] = %s;", value_text(w, side->operand));
        close_block(w);
    }
    w->coordinate_count = mark;
}

/* Both operands have the lanes: they go along them together. */
static void add_both(Writer *w, const Tile *t)
{
    int blocks = open_rows(w, t), mark = w->coordinate_count;
    at_rows(w, t, true);
    clamp_edges(w, t, NULL);
    at_sum(w, t, NULL);
    int rows = w->coordinate_count;
    for (int v = 0; v < t->p->vectors; v++) {
        at_lane(w, t, v, true);
        const char *x = value_text(w, t->side[ROWS].operand);
        const char *y = value_text(w, t->side[LANES].operand);
        line(w, "%s = fmaf(%s, %s, %s);", sum_name(w, t, v), x, y, sum_name(w, t, v));
        w->coordinate_count = rows;
    }
    w->coordinate_count = mark;
    close_blocks(w, blocks);
}

/* float x[rows]: all rows at the next index of the sum. */
static void load_rows(Writer *w, const Tile *t)
{
    int group = loaded_together(t->row[t->row_count - 1].tile);
    line(w, "float x[%lld];", (long long)t->rows);
    for (int64_t row = 0; row < t->rows; row += group)
        line(w, "raft_load<%d>(&x[%lld], slab_rows, q * %lld + %lld);", group, (long long)row,
             (long long)t->rows, (long long)row);
}

/* The products of one row, `x` at `at_once` indices of the sum. */
static void add_row(Writer *w, const Tile *t, const char *x)
{
    open_unrolled(w, "j", t->at_once);
    for (int v = 0; v < t->p->vectors; v++)
        line(w, "%s = fmaf(%s, y[j][%d], %s);", sum_name(w, t, v), x, v, sum_name(w, t, v));
    close_block(w);
}

static void add_products(Writer *w, const Tile *t)
{
    int64_t busy =
        (t->teams * TEAM + WARP - 1) / WARP * WARP; /* threads of the warps that have tiles */
    int blocks = 1;
    if (w->fine && busy < t->threads) {
        open_block(w, "if (thread < %lld)", (long long)busy);
        blocks++;
    }
    bool twice = t->rows_together || (has_many_sums(t) && t->spans == 1);
    line(w, w->fine ? "raft_unroll" : twice ? "raft_twice" : "raft_loop");
    open_block(w, "for (int q = 0; q < %lld; q++)", (long long)(t->depth / t->at_once));
    if (t->both) {
        add_both(w, t);
    } else {
        load_lanes(w, t);
        if (t->rows_together) load_rows(w, t);
        int rows = open_rows(w, t);
        if (!t->rows_together) load_row(w, t);
        Sum row = row_number(w, t);
        add_row(w, t,
                t->rows_together ? arena_printf(w->arena, "x[%s]", sum_text(w, &row)) : "x[j]");
        close_blocks(w, rows);
    }
    close_blocks(w, blocks);
}

/* ---- the end -------------------------------------------------------------------------------- */

void at_stored_lanes(Writer *w, const Tile *t, NodeId id,
                     void (*store)(Writer *, const Tile *, const Spot *, int count, int v))
{
    int mark = w->coordinate_count;
    Spot spot;
    at_group(w, t);
    bool whole = !t->lane_edge && find_floats(w, id, t->p->lane, t->group, &spot);
    w->coordinate_count = mark;
    for (int v = 0; v < t->p->vectors; v += whole ? t->group : 1) {
        at_lane(w, t, v, false);
        find_spot(w, id, &spot);
        if (t->lane_edge)
            line(w, "if (%s <= %s)", sum_text(w, coordinate_at(w, t->p->lane)), last_lane(w, t));
        store(w, t, &spot, whole ? t->group : 1, v);
        w->coordinate_count = mark;
    }
}

static void store_value(Writer *w, const Tile *t, const Spot *spot, int count, int v)
{
    const char *at = sum_text(w, &spot->at);
    if (count > 1)
        line(w, "raft_store<%d>(%s, %s, &value[%d]);", count, spot->base, at, v);
    else
        line(w, "%s%s[%s] = value[%d];", t->lane_edge ? "    " : "", spot->base, at, v);
}

int open_rows_here(Writer *w, const Tile *t)
{
    int blocks = open_rows(w, t);
    at_rows(w, t, false);
    for (int k = 0; k < t->row_count + t->edge_count; k++) {
        const Row *row = k < t->row_count ? &t->row[k] : &t->edge[k - t->row_count];
        if (!row->edge) continue;
        open_block(w, "if (%s < %lld)", sum_text(w, coordinate_at(w, row->axis)),
                   (long long)row->extent);
        blocks++;
    }
    return blocks;
}

static void finish_sums(Writer *w, const Tile *t)
{
    const Stage *stage = t->stage;
    int mark = w->coordinate_count, blocks = open_rows_here(w, t);
    int rows = w->coordinate_count;
    line(w, "float value[%d];", t->p->vectors);
    for (int v = 0; v < t->p->vectors; v++) {
        at_lane(w, t, v, true);
        w->computed[stage->root - w->schedule.first] = sum_name(w, t, v);
        line(w, "value[%d] = %s;", v, fresh_value(w, stage->end));
        w->coordinate_count = rows;
    }
    w->computed[stage->root - w->schedule.first] = NULL;
    if (schedule_place(&w->schedule, stage->end)->value.elements)
        at_stored_lanes(w, t, stage->end, store_value);
    for (int i = 0; i < stage->write_count; i++)
        at_stored_lanes(w, t, stage->writes[i], store_value);
    w->coordinate_count = mark;
    close_blocks(w, blocks);
}

/* Opens the loop over the tiles of one operand and names the present one; "" or a condition that it is one. */
static const char *open_side(Writer *w, Side *side, const char *name, const char *team, int *blocks)
{
    const char *first = "";
    if (side->tiles > side->teams) {
        first = arena_printf(w->arena, "%s0 + ", name);
        open_block(w, "for (int %s0 = 0; %s0 < %lld; %s0 += %lld)", name, name,
                   (long long)side->tiles, name, (long long)side->teams);
        ++*blocks;
    }
    side->first = first;
    side->team = team;
    if (side->tiles % side->teams == 0) return "";
    return arena_printf(w->arena, "%s%s < %lld", first, team, (long long)side->tiles);
}

static const char *present_tile(Writer *w, const Side *side)
{
    const char *tile = arena_printf(w->arena, "%s%s", side->first, side->team);
    if (side->tiles % side->teams == 0) return tile;
    return arena_printf(w->arena, "raft_min(%s, %lld)", tile, (long long)side->tiles - 1);
}

/* Names this thread, its team, and its place in that; anew, so that what follows from them is computed here, not kept in
 * registers from before. */
static void name_thread(Writer *w, const Tile *t)
{
    const char *team = arena_printf(w->arena, "thread / %d", TEAM);
    if (t->teams < t->threads / TEAM)
        team = arena_printf(w->arena, "raft_min(%s, %lld)", team, (long long)t->teams - 1);
    if (has_span_threads(w, t))
        line(w, "const int span = raft_thread<%d>() / %lld;", w->threads, (long long)t->threads);
    line(w, "const int thread = %s;", thread_text(w, t));
    line(w, "const int team = %s;", team);
    line(w, "const int lane = thread %% %d;", TEAM);
}

void open_tile(Writer *w, const Tile *t, bool again)
{
    text_put(w->out, "{\n");
    w->out->indent++;
    if (again) name_thread(w, t);
    line(w, "const int m = %s;", present_tile(w, &t->side[ROWS]));
    line(w, "const int n = %s;", present_tile(w, &t->side[LANES]));
    enter_side(w, &t->side[ROWS], "m");
    enter_side(w, &t->side[LANES], "n");
}

static int open_outer(Writer *w, const Tile *t)
{
    int blocks = t->outer_count;
    if (t->unit_outer) {
        if (w->schedule.block > 1) {
            open_block(w, "for (int g = 0; g < here; g++)");
            blocks++;
        }
        enter_unit(w, false);
    }
    for (int i = 0; i < t->outer_count; i++) {
        const ItemDim *dim = &t->outer[i];
        open_block(w, "for (int %s = 0; %s < %lld; %s++)", dim->name, dim->name,
                   (long long)dim->count, dim->name);
    }
    push_dims(w, t->outer, t->outer_count);
    return blocks;
}

static void contract(Writer *w, const Tile *t, const char *here)
{
    int mark = w->coordinate_count;
    long long own = t->slabs / t->spans;
    if (has_span_threads(w, t))
        open_block(w, "for (int slab = span * %lld; slab < span * %lld + %lld; slab++)", own, own,
                   own);
    else
        open_block(w, "for (%s slab = 0; slab < %s; slab++)", slab_type(w, t), slabs_text(w, t));
    next_slab(w, t);
    enter_slab(w, t);
    add_products(w, t);
    w->coordinate_count = mark;
    if (t->spans > 1 && !has_span_threads(w, t)) end_span(w, t, own, here);
    close_block(w);
}

void write_product(Writer *w, const Stage *stage)
{
    Tile t = find_tile(w, stage);
    Side *rows = &t.side[ROWS], *lanes = &t.side[LANES];
    bool abreast = has_span_threads(w, &t);
    text_put(w->out, "{\n");
    w->out->indent++;
    int blocks = 1 + open_outer(w, &t), outside = w->coordinate_count;
    name_thread(w, &t);
    const char *along =
        lanes->teams == 1 ? "0" : digit_text(w, "team", 1, rows->teams > 1 ? lanes->teams : 0);
    const char *across = rows->teams == 1 ? "0" : digit_text(w, "team", lanes->teams, 0);
    const char *rows_here = open_side(w, rows, "m", across, &blocks);
    const char *lanes_here = open_side(w, lanes, "n", along, &blocks);
    Text here = text_new(w->arena);
    bool partial = !t.unit_outer && w->schedule.block > 1;
    const char *unit_here = partial ? "g < here" : "";
    const char *team_here = t.teams < t.threads / TEAM
                                ? arena_printf(w->arena, "thread < %lld", (long long)t.teams * TEAM)
                                : "";
    const char *conditions[] = {
        abreast ? "span == 0" : "",  team_here, rows_here, lanes_here, unit_here,
        t.p->lane ? "" : "lane == 0"};
    for (size_t i = 0; i < ARRAY_SIZE(conditions); i++)
        if (conditions[i][0]) text_printf(&here, "%s%s", here.length ? " && " : "", conditions[i]);
    start_slabs(w, &t);
    line(w, "float sum[%lld][%d];", (long long)t.rows, t.p->vectors);
    int mark = w->coordinate_count;
    open_tile(w, &t, true);
    start_sums(w, &t);
    w->coordinate_count = mark;
    close_block(w);
    open_tile(w, &t, false);
    contract(w, &t, here.length ? here.data : "");
    w->coordinate_count = mark;
    close_block(w);
    if (abreast) join_spans(w, &t);
    open_tile(w, &t, true);
    blocks++;
    if (here.length) {
        open_block(w, "if (%s)", here.data);
        blocks++;
    }
    finish_sums(w, &t);
    w->coordinate_count = outside;
    close_blocks(w, blocks);
}
