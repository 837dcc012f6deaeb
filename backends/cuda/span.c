/* span.c: the sums of a product whose long sum is taken in spans, put together in one order.
 *
 * Blocks of many images take one span after the other, and leave what they have so far where the result goes; in those of
 * few images each span has threads of its own, and the sums of all meet in shared memory.
 */
#include "backends/cuda/product.h"

static void add_left(Writer *w, const Tile *t, const Spot *spot, int count, int v)
{
    line(w, "%sraft_add<%d>(&%s, %s, %s);", t->lane_edge ? "    " : "", count, sum_name(w, t, v),
         spot->base, sum_text(w, &spot->at));
}

static void leave_sum(Writer *w, const Tile *t, const Spot *spot, int count, int v)
{
    line(w, "%sraft_store<%d>(%s, %s, &%s);", t->lane_edge ? "    " : "", count, spot->base,
         sum_text(w, &spot->at), sum_name(w, t, v));
    for (int i = v; i < v + count; i++) line(w, "%s = 0.0f;", sum_name(w, t, i));
}

/* Sums of this thread, if `which` and `here` are so, and where the result goes. */
static void at_left_sums(Writer *w, const Tile *t, const char *which, const char *here,
                         void (*take)(Writer *, const Tile *, const Spot *, int count, int v))
{
    int mark = w->coordinate_count;
    open_tile(w, t, true);
    open_block(w, here[0] ? "if (%s && %s)" : "if (%s)", which, here);
    int blocks = 2 + open_rows_here(w, t);
    at_stored_lanes(w, t, t->stage->writes[0], take);
    w->coordinate_count = mark;
    close_blocks(w, blocks);
}

void end_span(Writer *w, const Tile *t, int64_t own, const char *here)
{
    long long slabs = own;
    open_block(w, "if (slab %% %lld == %lld)", slabs, slabs - 1);
    at_left_sums(w, t, arena_printf(w->arena, "slab >= %lld", slabs), here, add_left);
    at_left_sums(w, t, arena_printf(w->arena, "slab < %lld", (long long)t->slabs - 1), here,
                 leave_sum);
    close_block(w);
}

/* A place in shared memory for what another span has for sum v of this thread. */
static const char *shared_sum(Writer *w, const Tile *t, const char *span, int v)
{
    Sum at = row_number(w, t), thread = sum_term("thread", 1, t->threads);
    at = sum_add(w, sum_constant(v * t->threads), &at, t->p->vectors * t->threads);
    at = sum_add(w, at, &thread, 1);
    long long each = t->rows * t->p->vectors * t->threads;
    return arena_printf(w->arena, "slabs[(%s - 1) * %lld + %s]", span, each, sum_text(w, &at));
}

void join_spans(Writer *w, const Tile *t)
{
    line(w, "raft_barrier();");
    open_block(w, "if (span > 0)");
    int blocks = 1 + open_rows(w, t);
    for (int v = 0; v < t->p->vectors; v++)
        line(w, "%s = %s;", shared_sum(w, t, "span", v), sum_name(w, t, v));
    close_blocks(w, blocks);
    line(w, "raft_barrier();");
    open_block(w, "if (span == 0)");
    line(w, "raft_unroll");
    open_block(w, "for (int other = 1; other < %d; other++)", t->spans);
    blocks = 2 + open_rows(w, t);
    for (int v = 0; v < t->p->vectors; v++)
        line(w, "%s += %s;", sum_name(w, t, v), shared_sum(w, t, "other", v));
    close_blocks(w, blocks);
}
