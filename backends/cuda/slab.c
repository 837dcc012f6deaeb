/* slab.c: brings operands of a product to shared memory, slab by slab, ahead of the sums.
 *
 * A slab holds `depth` indices of the sum for all tiles of one round: of the operand with the rows [tile][row][depth],
 * or [tile][depth][row] where they lie so in memory, of the one with the lanes [tile][depth][lane]. Slabs take turns: with
 * one the block computes, the others are on their way. All threads bring each slab together, `chunk` floats at a time. The
 * teams of a warp read their rows at the same time: tiles are padded so that these lie in different banks of the memory.
 */
#include "backends/cuda/product.h"

#include <string.h>

enum { MOST_PREPARED = 20 }; /* registers for where one operand's chunks lie, from slab to slab */

/* Have the sums left room for them? Where they are many, what the other operand has taken and indices of the sum must fit,
 * too: else a kernel needs all registers that there are, and whether some spill depends on how busy the machine is that
 * compiles it. */
static bool may_prepare(const Tile *t, int64_t numbers, int64_t taken)
{
    if (!has_many_sums(t)) return numbers <= MOST_PREPARED;
    return taken + numbers + 2 * t->linear->attributes.over.count < MOST_PREPARED;
}

static bool is_staged(const Tile *t)
{
    return t->side[ROWS].staged || t->side[LANES].staged;
}

/* Slabs that are on their way while one is computed with. */
static int slabs_ahead(const Tile *t)
{
    return t->buffers > 1 ? t->buffers - 1 : 1;
}

/* Has the operand room for all lanes of all tiles? A packed weight has zeros past its last lane. */
static bool has_padding(const Writer *w, const Tile *t, NodeId operand)
{
    const Node *read = graph_node(w->graph, operand);
    if (read->op != OP_READ || schedule_holds(&w->schedule, read->operands[0])) return false;
    const Node *stored = graph_node(w->graph, read->operands[0]);
    if (t->lane_axis >= 0 || stored->layout.rank == 0 ||
        !map_is_identity(&read->attributes.map, read->type.rank))
        return false;
    int axis = type_find(&read->type, t->p->lane), k = schedule_axis(&w->schedule, t->p->lane);
    int64_t room = 1, unit = k < 0 ? t->lane_extent : w->graph->kernels[w->schedule.kernel].tile[k];
    for (int i = 0; i < stored->layout.rank; i++)
        if (stored->layout.dim[i].axis == axis) room *= stored->layout.dim[i].extent;
    int64_t units = (t->lane_extent + unit - 1) / unit, tiles = (unit + t->width - 1) / t->width;
    return units * tiles * t->width <= room;
}

static void push_plus(Writer *w, const char *axis, const Sum *by)
{
    push_coordinate(w, axis, sum_add(w, *coordinate_at(w, axis), by, 1));
}

/* How what a slab has of one tile of an operand is laid out: lines of floats that lie side by side. */
static int64_t line_floats(const Tile *t, const Side *side)
{
    return side == &t->side[LANES] ? t->width : t->rows_together ? t->rows : t->depth;
}

static int64_t line_count(const Tile *t, const Side *side)
{
    return side == &t->side[LANES] || t->rows_together ? t->depth : t->rows;
}

/* Of which so many at most can lie side by side in memory, too. */
static int64_t memory_floats(const Tile *t, const Side *side)
{
    return side == &t->side[ROWS] && t->rows_together ? t->row[t->row_count - 1].tile
                                                      : line_floats(t, side);
}

/* Are turns of whole lines, and so many turns of a whole tile? Then chunks of a thread differ from turn to turn by what is known
 * when the text is compiled. */
static bool has_whole_lines(const Tile *t, const Side *side, int chunk)
{
    int64_t across = line_floats(t, side) / chunk, lines = line_count(t, side);
    return t->threads % across == 0 && lines % (t->threads / across) == 0;
}

/* Names the rows of a tile that begin `step` times `number` after its first. */
static void enter_rows(Writer *w, Tile t, const char *number, int64_t step)
{
    if (t.row_count > 0) t.row[t.row_count - 1].step = step;
    int64_t inner = t.row_count == 2 ? t.row[1].tile / step : 1;
    if (t.row_count > 0) line(w, "const int r0 = %s;", digit_text(w, number, inner, 0));
    if (t.row_count == 2) line(w, "const int r1 = %s;", digit_text(w, number, 1, inner));
    at_rows(w, &t, true);
}

/* Writes what chunk `e` of the slab is, and sets coordinates to its first element. Returns the axis along which its floats
 * lie. */
static const char *enter_chunk(Writer *w, const Tile *t, const Side *side, int chunk)
{
    const AxisNames *over = &t->linear->attributes.over;
    const char *last = over->name[over->count - 1];
    int64_t across = line_floats(t, side) / chunk, lines = line_count(t, side);
    const char *tile =
        arena_printf(w->arena, "%se / %lld", side->first, (long long)(across * lines));
    if (side->tiles % side->teams != 0)
        tile = arena_printf(w->arena, "raft_min(%s, %lld)", tile, (long long)side->tiles - 1);
    line(w, "const int tile = %s;", tile);
    line(w, "const int c = %s;", digit_text(w, "e", 1, across));
    line(w, "const int l = %s;", digit_text(w, "e", across, side->teams > 1 ? lines : 0));
    enter_side(w, side, "tile");
    Sum c = sum_term("c", chunk, across), l = sum_term("l", 1, lines);
    if (side == &t->side[ROWS]) {
        bool together = t->rows_together;
        enter_rows(w, *t, together ? "c" : "l", together ? chunk : 1);
        clamp_edges(w, t, side);
        push_plus(w, last, together ? &l : &c);
        return together ? t->row[t->row_count - 1].axis : last;
    }
    push_plus(w, last, &l);
    push_plus(w, t->p->lane, &c);
    clamp_edges(w, t, side);
    if (!has_padding(w, t, side->operand)) clamp_lane(w, t);
    return t->p->lane;
}

/* The most floats that lie side by side in every chunk. */
static int find_chunk(Writer *w, const Tile *t, const Side *side)
{
    Text *out = w->out, nothing = text_new(w->arena);
    int64_t length = memory_floats(t, side);
    w->out = &nothing;
    int chunk = 4;
    for (; chunk > 1; chunk /= 2) {
        int mark = w->coordinate_count;
        Spot spot;
        bool fits = length % chunk == 0 &&
                    find_floats(w, side->operand, enter_chunk(w, t, side, chunk), chunk, &spot);
        w->coordinate_count = mark;
        if (fits) break;
    }
    w->out = out;
    return chunk;
}

/* Splits an index into what changes from slab to slab, the terms of the sum's coordinates, and the rest. False: some term
 * has both. */
static bool split_slab(const Sum *at, Sum *changing, Sum *rest)
{
    *changing = sum_constant(0);
    *rest = sum_constant(at->constant);
    for (int i = 0; i < at->count; i++) {
        bool own = strncmp(at->term[i].name, "k_", 2) == 0;
        if (!own && strstr(at->term[i].name, "k_")) return false;
        Sum *to = own ? changing : rest;
        to->term[to->count++] = at->term[i];
    }
    return true;
}

/* What a thread brings of one operand: `turns` chunks, of which the places in the first slab are known before. */
typedef struct Load {
    const char *name;
    int chunk;
    int64_t chunks, turns;
    bool ready; /* known before: name_from[turn], and name_at[bound][turn] for bounds */
    Spot spot;  /* at the coordinates of a turn */
} Load;

/* Where nothing is ready, what each turn takes is computed anew in every slab, not kept in registers. */
static void open_turns(Writer *w, const Tile *t, const Load *load, bool guarded)
{
    line(w, "raft_unroll");
    open_block(w, "for (int turn = 0; turn < %lld; turn++)", (long long)load->turns);
    if (guarded && !load->ready) line(w, "const int thread = %s;", thread_text(w, t));
    line(w, "const int e = thread + turn * %lld;", (long long)t->threads);
    if (guarded && load->chunks % t->threads != 0)
        line(w, "if (e >= %lld) continue;", (long long)load->chunks);
}

/* The numbers that a thread keeps of it. */
static int64_t prepared_numbers(const Load *load)
{
    return load->ready ? load->turns * (1 + load->spot.bound_count) : 0;
}

/* Writes where the chunks of this thread lie in the first slab. `taken`: numbers that it keeps of the other operand. */
static Load prepare_side(Writer *w, const Tile *t, const Side *side, int64_t taken)
{
    bool rows = side == &t->side[ROWS];
    Load load = {.name = rows ? "rows" : "lanes", .chunk = find_chunk(w, t, side)};
    load.chunks = side->teams * (rows ? t->rows : t->width) * t->depth / load.chunk;
    load.turns = (load.chunks + t->threads - 1) / t->threads;
    int mark = w->coordinate_count;
    Text *out = w->out, text = text_new(w->arena);
    w->out = &text;
    text.indent = out->indent;
    open_turns(w, t, &load, false);
    enter_chunk(w, t, side, load.chunk);
    Sum changing, rest;
    load.ready = find_spot(w, side->operand, &load.spot) && load.spot.stored &&
                 split_slab(&load.spot.at, &changing, &rest);
    if (load.ready) {
        line(w, "%s_from[turn] = %s;", load.name, sum_text(w, &rest));
        for (int i = 0; i < load.spot.bound_count; i++) {
            load.ready &= split_slab(&load.spot.bound[i].at, &changing, &rest);
            line(w, "%s_at%d[turn] = %s;", load.name, i, sum_text(w, &rest));
        }
        load.ready &= may_prepare(t, prepared_numbers(&load), taken);
        /* The end of a span takes registers, too. */
        if (has_many_sums(t) && t->spans > 1) load.ready &= !has_whole_lines(t, side, load.chunk);
    }
    close_block(w);
    w->coordinate_count = mark;
    w->out = out;
    if (!load.ready) return load;
    line(w, "%s %s_from[%lld];", w->index, load.name, (long long)load.turns);
    for (int i = 0; i < load.spot.bound_count; i++)
        line(w, "int %s_at%d[%lld];", load.name, i, (long long)load.turns);
    int indent = w->out->indent;
    w->out->indent = 0;
    text_put(w->out, text.data);
    w->out->indent = indent;
    return load;
}

/* The index with what is known before by its name. */
static void use_prepared(Writer *w, Sum *at, const char *name)
{
    Sum changing, rest;
    split_slab(at, &changing, &rest);
    rest = sum_term(name, 1, 0);
    *at = sum_add(w, rest, &changing, 1);
}

static void bring_side(Writer *w, const Tile *t, const Side *side, Load *load)
{
    int mark = w->coordinate_count;
    int64_t tile = line_floats(t, side) * line_count(t, side);
    Sum at = sum_constant(side->slab), e = sum_term("e", load->chunk, 0);
    Sum padding = sum_term(arena_printf(w->arena, "(e / %lld)", (long long)(tile / load->chunk)),
                           side->tile_floats - tile, side->teams);
    at = sum_add(w, at, &e, 1);
    if (side->tile_floats > tile) at = sum_add(w, at, &padding, 1);
    const char *to = sum_text(w, &at);
    open_turns(w, t, load, true);
    Spot *spot = &load->spot;
    if (load->ready) {
        use_prepared(w, &spot->at, arena_printf(w->arena, "%s_from[turn]", load->name));
        for (int i = 0; i < spot->bound_count; i++)
            use_prepared(w, &spot->bound[i].at,
                         arena_printf(w->arena, "%s_at%d[turn]", load->name, i));
    } else {
        enter_chunk(w, t, side, load->chunk);
    }
    if (load->ready || (find_spot(w, side->operand, spot) && spot->stored))
        line(w, "raft_copy<%d>(to, %s, %s, %s, %s);", load->chunk, to, spot->base,
             sum_text(w, &spot->at), spot->bound_count ? inside_text(w, spot) : "true");
    else
        line(w, "to[%s] = %s;", to, value_text(w, side->operand));
    w->coordinate_count = mark;
    close_block(w);
}

/* Where slab `slab` begins: each span that has threads of its own has buffers of its own. */
static Sum buffer_start(Writer *w, const Tile *t)
{
    Sum turn =
        sum_term(arena_printf(w->arena, "(slab %% %d)", t->buffers), t->slab_floats, t->buffers);
    if (!has_span_threads(w, t)) return turn;
    Sum span = sum_term("span", t->buffers * t->slab_floats, t->spans);
    return sum_add(w, turn, &span, 1);
}

void start_slabs(Writer *w, const Tile *t)
{
    if (!is_staged(t)) return;
    bool again =
        t->side[ROWS].first[0] || t->side[LANES].first[0] || t->outer_count > 0 || t->unit_outer;
    if (again) line(w, "raft_barrier();");
    Load load[2];
    Text names = text_new(w->arena), *out = w->out;
    int mark = w->coordinate_count;
    w->out = &names; /* of the coordinates of a slab: none is used before there is one */
    enter_slab(w, t);
    w->out = out;
    int64_t taken = 0;
    for (int s = 0; s < 2; s++) {
        if (!t->side[s].staged) continue;
        load[s] = prepare_side(w, t, &t->side[s], taken);
        taken += prepared_numbers(&load[s]);
    }
    open_block(w, "const auto bring = [&](%s slab)", slab_type(w, t));
    Sum buffer = buffer_start(w, t);
    line(w, "const raft_scratch to = slabs%s;",
         sum_is_constant(&buffer) ? "" : arena_printf(w->arena, " + (%s)", sum_text(w, &buffer)));
    w->coordinate_count = mark;
    enter_slab(w, t);
    for (int s = 0; s < 2; s++)
        if (t->side[s].staged) bring_side(w, t, &t->side[s], &load[s]);
    w->coordinate_count = mark;
    w->out->indent--;
    text_put(w->out, "};\n");
    bool abreast = has_span_threads(w, t);
    for (int i = 0; i < slabs_ahead(t); i++) {
        Sum slab = sum_term("span", t->slabs / t->spans, t->spans);
        if (!abreast) slab = sum_constant(0);
        slab.constant += i;
        line(w, "bring(%s); raft_copies_sent();", sum_text(w, &slab));
    }
}

void next_slab(Writer *w, const Tile *t)
{
    if (!is_staged(t)) return;
    int ahead = slabs_ahead(t);
    bool abreast = has_span_threads(w, t);
    int64_t own = abreast ? t->slabs / t->spans : t->slabs;
    line(w, "raft_copies_wait<%d>();", ahead - 1);
    line(w, "raft_barrier();");
    if (t->over_batch) {
        line(w, "if (slab + %d < %s) bring(slab + %d);", ahead, slabs_text(w, t), ahead);
        line(w, "raft_copies_sent();");
    } else if (own > ahead) {
        Sum last = sum_term("span", own, t->spans);
        if (!abreast) last = sum_constant(0);
        last.constant += own - ahead;
        line(w, "if (slab < %s) bring(slab + %d);", sum_text(w, &last), ahead);
        line(w, "raft_copies_sent();");
    }
    Sum buffer = buffer_start(w, t);
    for (int s = 0; s < 2; s++) {
        const Side *side = &t->side[s];
        if (!side->staged) continue;
        Sum at = sum_term(strchr(side->team, ' ') ? arena_printf(w->arena, "(%s)", side->team)
                                                  : side->team,
                          side->tile_floats, side->teams);
        at = sum_add(w, at, &buffer, 1);
        at.constant += side->slab;
        bool first = sum_is_constant(&at) && at.constant == 0;
        line(w, first ? "const raft_scratch %s = slabs;" : "const raft_scratch %s = slabs + (%s);",
             s == ROWS ? "slab_rows" : "slab_lanes", sum_text(w, &at));
    }
}
