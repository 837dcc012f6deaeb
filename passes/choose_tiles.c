/* choose_tiles.c
 *
 * Cuts each kernel into units of work: along the kernel's axes, one unit takes as many indices as
 * the register tile of its costliest product has rows; a kernel without products takes some
 * thousand elements.
 *
 *   before  kernel for (b, h 56, w 56) {          after  kernel for (b, h 56, w 56 by 14) {
 *
 * Where a source has a better choice for a kernel, what was tuned for one, that is taken instead.
 *
 * needs: every op in a kernel.  keeps: everything else.  breaks: nothing. Units never change how a
 * sum is taken.
 */
#include "passes/choices.h"
#include "passes/kernels.h"

#include <string.h>

/* Elements of a unit of a kernel that only moves or maps; units an image below which lanes are shared
 * out, too; lanes that a block of threads takes of many, rows of a product of two operands that differ from image to
 * image, sums, and elements. */
enum {
    UNIT_ELEMENTS = 4096,
    FEW_UNITS = 8,
    ENOUGH_UNITS = 4,
    LONG_LANES = 4 * UNIT_ELEMENTS,
    BLOCK_LANES = 128,
    BLOCK_ROWS = 64,
    BLOCK_SUMS = 128,
    BLOCK_ELEMENTS = 2048
};

/* Does the kernel read overlapping or padded windows? They are copied once a unit, so units take
 * whole rows. */
static bool reads_windows(const Graph *graph, NodeId first, NodeId end)
{
    for (NodeId id = first; id < end; id++) {
        const Node *node = graph_node(graph, id);
        if (node->op == OP_READ &&
            map_may_leave(&node->attributes.map, &node->type, graph_type(graph, node->operands[0])))
            return true;
    }
    return false;
}

static NodeId costliest_product(const Graph *graph, NodeId first, NodeId end)
{
    NodeId best = NO_NODE;
    for (NodeId id = first; id < end; id++)
        if (graph_node(graph, id)->op == OP_LINEAR &&
            (best == NO_NODE || op_cost(graph, id) > op_cost(graph, best)))
            best = id;
    return best;
}

/* Units an image with the lane axis left whole. */
static int64_t units_without(const Kernel *kernel, const char *lane)
{
    int64_t units = 1;
    for (int i = 0; i < kernel->rank; i++) {
        const Axis *axis = &kernel->axis[i];
        if (!axis->symbol[0] && strcmp(axis->name, lane) != 0)
            units *= (axis->extent + kernel->tile[i] - 1) / kernel->tile[i];
    }
    return units;
}

static void move_axis(Kernel *kernel, int from, int to)
{
    Axis axis = kernel->axis[from];
    int64_t tile = kernel->tile[from];
    for (int i = from; i > to; i--) {
        kernel->axis[i] = kernel->axis[i - 1];
        kernel->tile[i] = kernel->tile[i - 1];
    }
    kernel->axis[to] = axis;
    kernel->tile[to] = tile;
}

/* Units that take other weights lie far apart: those of a block share a panel, and a thread reads its part of the
 * weights only. Where all weights stay in the cache it is what they are multiplied by that should stay nearer. */
static void move_weights_out(const Graph *graph, Kernel *kernel, NodeId linear, const char *lane,
                             const Target *target)
{
    const NodeId *operand = graph_node(graph, linear)->operands;
    const Type *x = graph_type(graph, operand[0]), *w = graph_type(graph, operand[1]);
    int front = 0;
    if (type_elements(w, NULL) * (int64_t)sizeof(float) <= target->l2_bytes / 4) return;
    for (int i = 0; i < kernel->rank; i++) {
        const Axis *axis = &kernel->axis[i];
        if (axis->symbol[0] || strcmp(axis->name, lane) == 0) continue;
        if (kernel->tile[i] < axis->extent && type_find(w, axis->name) >= 0 &&
            type_find(x, axis->name) < 0)
            move_axis(kernel, i, front++);
    }
}

/* A unit of a product whose sum is taken in parts: so many indices along the rows, the lanes, and each of the
 * axes beside them. */
typedef struct PartsUnit {
    int64_t rows, lanes, beside;
} PartsUnit;

/* What bringing an element to scratch memory takes, in multiply-adds of vectors, of the operand with rows and of the other. */
typedef struct Bringing {
    int64_t row, lane;
} Bringing;

/* Cuts an axis into `count` units, each a multiple of `least`; how many indices one has. */
static int64_t even_unit(int64_t extent, int64_t least, int64_t count)
{
    int64_t share = (extent + count - 1) / count;
    share = (share + least - 1) / least * least;
    return share < extent ? share : extent;
}

static int64_t bringing_cost(const Graph *graph, NodeId operand)
{
    enum { BRING = 16, OF_GELU = 48 };
    return graph_node(graph, operand)->op == OP_GELU ? BRING + OF_GELU : BRING;
}

/* What all units take, on two and on four threads. INT64_MAX: a unit does not stay in the cache. */
static int64_t parts_cost(const Product *p, const PartsUnit *unit, const PartsUnit *whole,
                          const Bringing *bringing, const Target *target)
{
    int64_t part = 1, cost = 0;
    for (int i = 0; i < MAX_AXES; i++) part *= p->part[i] ? p->part[i] : 1;
    int64_t rows = unit->rows * unit->beside, floats = rows + unit->lanes;
    if (rows > target->l2_bytes || unit->lanes > target->l2_bytes) return INT64_MAX;
    int64_t most = rows * unit->lanes + part * (rows + product_width(p, target) + floats);
    if (4 * most > target->l2_bytes / 8 * 7) return INT64_MAX;
    int64_t units = (whole->rows + unit->rows - 1) / unit->rows;
    units *= (whole->lanes + unit->lanes - 1) / unit->lanes;
    units *= whole->beside / unit->beside;
    int64_t one = unit->beside * product_unit_cost(p, unit->rows, unit->lanes, target);
    one += bringing->row * rows + bringing->lane * unit->lanes;
    for (int64_t threads = 2; threads <= ENOUGH_UNITS; threads *= 2)
        cost += (units + threads - 1) / threads * threads * one;
    return cost;
}

/* Many whole tiles, so that what is brought to scratch memory serves often, but units of about the same
 * size, and enough of them. */
static void tile_parts(const Graph *graph, Kernel *kernel, NodeId linear, const Product *p,
                       const Target *target)
{
    enum { MOST_CUTS = 64 };
    const NodeId *operand = graph_node(graph, linear)->operands, of_rows = operand[p->rows_in_w],
                 of_vectors = operand[!p->rows_in_w];
    const Type *rows = graph_type(graph, of_rows), *lanes = graph_type(graph, of_vectors);
    const Bringing bringing = {bringing_cost(graph, of_rows), bringing_cost(graph, of_vectors)};
    PartsUnit whole = {1, 1, 1};
    int lane = -1, row = -1;
    bool of_lanes =
        false; /* a tile of them would hold all that is beside, and leave the L1 cache */
    for (int i = 0; i < kernel->rank; i++) {
        const char *name = kernel->axis[i].name;
        int64_t extent = kernel->axis[i].extent;
        if (p->row_count > 0 && strcmp(name, p->row[0]) == 0) {
            row = i, whole.rows = extent;
        } else if (p->lane && strcmp(name, p->lane) == 0) {
            lane = i, whole.lanes = extent;
        } else if (!kernel->axis[i].symbol[0]) {
            whole.beside *= extent;
            of_lanes |= type_find(rows, name) < 0 && type_find(lanes, name) >= 0;
        }
    }
    PartsUnit best = {even_unit(whole.rows, p->row_tile[0], whole.rows),
                      even_unit(whole.lanes, LINE, whole.lanes), 1};
    int64_t least = parts_cost(p, &best, &whole, &bringing, target);
    for (int64_t beside = 1;; beside = whole.beside) {
        for (int64_t i = 1; i <= MOST_CUTS; i++) {
            for (int64_t k = 1; k <= MOST_CUTS; k++) {
                PartsUnit unit = {even_unit(whole.rows, 1, i), even_unit(whole.lanes, LINE, k),
                                  beside};
                int64_t cost = parts_cost(p, &unit, &whole, &bringing, target);
                if (cost >= least) continue;
                least = cost;
                best = unit;
            }
        }
        if (beside == whole.beside || of_lanes) break;
    }
    for (int i = 0; i < kernel->rank; i++)
        if (!kernel->axis[i].symbol[0] && best.beside > 1) kernel->tile[i] = kernel->axis[i].extent;
    if (row >= 0) kernel->tile[row] = best.rows;
    if (lane >= 0) kernel->tile[lane] = best.lanes;
}

/* Results of long sums are few: each unit takes some lanes. */
static void tile_sums(Kernel *kernel, const char *lane)
{
    enum { SUM_LANES = 64 };
    for (int i = 0; i < kernel->rank; i++) {
        const Axis *axis = &kernel->axis[i];
        if (!lane || strcmp(axis->name, lane) != 0 || axis->symbol[0]) continue;
        int64_t few =
                    (ENOUGH_UNITS + units_without(kernel, lane) - 1) / units_without(kernel, lane),
                many = (axis->extent + SUM_LANES - 1) / SUM_LANES;
        kernel->tile[i] = even_unit(axis->extent, LINE, few > many ? few : many);
    }
}

/* Rows or lanes for each block of threads, whole tiles, at most `most` if one is not more: those that are past the end take
 * time, and the fewer there are, the less often does serve what is brought of the other operand. */
static int64_t block_share(int64_t extent, int64_t most, int64_t tile)
{
    enum { OTHER = 16 };
    int64_t best = tile, least = INT64_MAX;
    for (int64_t share = tile; share <= most; share += tile) {
        int64_t cost = ceil_divide(extent, share) * (share + OTHER);
        if (cost >= least) continue;
        least = cost;
        best = share;
    }
    return best < extent ? best : extent;
}

/* Both operands differ from image to image: a block of threads shares neither with other units, so one must be enough work. */
static void tile_images(const Graph *graph, Kernel *kernel, NodeId linear, const Product *p,
                        const Target *target)
{
    const NodeId *operand = graph_node(graph, linear)->operands;
    const Type *rows = graph_type(graph, operand[p->rows_in_w]),
               *vectors = graph_type(graph, operand[!p->rows_in_w]);
    int64_t room = BLOCK_ROWS;
    for (int i = kernel->rank; i-- > 0 && room > 0;) {
        const Axis *axis = &kernel->axis[i];
        if (axis->symbol[0] || type_find(rows, axis->name) < 0 ||
            type_find(vectors, axis->name) >= 0)
            continue;
        kernel->tile[i] =
            block_share(axis->extent, room, product_tile_along(p, axis->name, target));
        room /= kernel->tile[i];
    }
    int at = p->lane ? kernel_find(kernel, p->lane) : -1;
    if (at < 0 || kernel->axis[at].symbol[0]) return;
    kernel->tile[at] = block_share(kernel->axis[at].extent, BLOCK_LANES, product_width(p, target));
}

/* Units take axes of the weights beside those of the tile whole, as far as a block has threads for that: then weights are the same
 * for all units of a block. */
static void take_weights_whole(const Graph *graph, Kernel *kernel, NodeId linear, const Product *p)
{
    enum { MOST_ROWS = 128, MOST_LANES = 1024 };
    const NodeId *operand = graph_node(graph, linear)->operands;
    const Type *x = graph_type(graph, operand[0]), *weights = graph_type(graph, operand[1]);
    int64_t room = p->rows_in_w ? MOST_ROWS : MOST_LANES;
    int lane = p->rows_in_w || !p->lane ? -1 : kernel_find(kernel, p->lane);
    if (lane >= 0) room /= kernel->tile[lane];
    for (int i = kernel->rank; i-- > 0;) {
        const Axis *axis = &kernel->axis[i];
        if (i == lane || axis->symbol[0] || type_find(weights, axis->name) < 0 ||
            type_find(x, axis->name) >= 0)
            continue;
        if (axis->extent <= room) kernel->tile[i] = axis->extent;
        room /= kernel->tile[i];
    }
}

static void tile_product(const Graph *graph, Kernel *kernel, NodeId first, NodeId end,
                         NodeId linear, const char *lane, const Target *target)
{
    Product p = product_tile(graph, linear, lane, target);
    if (p.in_parts) {
        tile_parts(graph, kernel, linear, &p, target);
        return;
    }
    if (p.row_count == 0 && !target->stages_operands && sums_over_batch(graph, linear)) {
        tile_sums(kernel, lane);
        return;
    }
    bool whole_rows = !target->stages_operands && reads_windows(graph, first, end);
    for (int i = 0; i < kernel->rank; i++)
        for (int k = 0; k < p.row_count; k++)
            if (strcmp(kernel->axis[i].name, p.row[k]) == 0)
                kernel->tile[i] =
                    whole_rows && k == p.row_count - 1 ? kernel->axis[i].extent : p.row_tile[k];
    if (p.of_images) {
        tile_images(graph, kernel, linear, &p, target);
        return;
    }
    if (!target->stages_operands && p.lane_in_w)
        move_weights_out(graph, kernel, linear, lane, target);
    int at = lane ? kernel_find(kernel, lane) : -1;
    if (at >= 0 && kernel->axis[at].symbol[0]) at = -1;
    if (at < 0) return;
    int64_t width = product_width(&p, target), extent = kernel->axis[at].extent;
    bool staged = target->stages_operands &&
                  graph_node(graph, graph_node(graph, linear)->operands[0])->op == OP_READ;
    if (staged) width = block_share(extent, BLOCK_LANES, width);
    bool few = staged || units_without(kernel, lane) < FEW_UNITS ||
               (p.lane_in_w && shares_out_weights(graph, linear, target));
    bool shared = few && extent > width;
    kernel->tile[at] = shared ? width : extent;
    if (staged) take_weights_whole(graph, kernel, linear, &p);
    if (shared) move_axis(kernel, at, 0);
}

static NodeId find_sum(const Graph *graph, NodeId first, NodeId end)
{
    for (NodeId id = first; id < end; id++)
        if (graph_node(graph, id)->op == OP_SUM) return id;
    return NO_NODE;
}

/* Elements of what node `write` writes that differ at one point of the kernel. */
static int64_t elements_at_point(const Graph *graph, const Kernel *kernel, NodeId write)
{
    const Type *type = graph_type(graph, graph_node(graph, write)->operands[0]);
    int64_t elements = type_elements(type, NULL);
    for (int i = 0; i < kernel->rank; i++)
        if (type_find(type, kernel->axis[i].name) >= 0 && !kernel->axis[i].symbol[0])
            elements /= kernel->axis[i].extent;
    return elements;
}

/* The largest unit of at most `most` indices that leaves next to none past the end, or else the fewest. */
static int64_t even_share(int64_t extent, int64_t most)
{
    enum { NEXT_TO_NONE = 64 };
    int64_t best = 1, least = INT64_MAX;
    for (int64_t share = most < extent ? most : extent; share > 0; share--) {
        int64_t past = ceil_divide(extent, share) * share - extent;
        if (past <= extent / NEXT_TO_NONE) return share;
        if (past >= least) continue;
        least = past;
        best = share;
    }
    return best;
}

/* Threads take an element or a sum each: whole lines, and no more than keep all blocks busy. */
static void tile_threads(Kernel *kernel, const char *lane, int64_t room)
{
    int at = lane ? kernel_find(kernel, lane) : -1;
    for (int i = kernel->rank; i >= 0; i--) { /* the lane first */
        int k = i == kernel->rank ? at : i;
        if (k < 0 || (i < kernel->rank && i == at) || kernel->axis[k].symbol[0]) continue;
        kernel->tile[k] = even_share(kernel->axis[k].extent, room);
        room /= kernel->tile[k];
    }
}

/* Whole inner axes, the lane axis first, up to UNIT_ELEMENTS; `elements` are in a point. */
static void tile_elements(Kernel *kernel, const char *lane, int64_t elements)
{
    int64_t most = elements > 1 ? 4 * UNIT_ELEMENTS : UNIT_ELEMENTS;
    int at = lane ? kernel_find(kernel, lane) : -1;
    if (at >= 0 && kernel->axis[at].symbol[0]) at = -1;
    if (at >= 0) {
        int64_t extent = kernel->axis[at].extent;
        kernel->tile[at] = extent > LONG_LANES ? UNIT_ELEMENTS : extent;
        elements *= kernel->tile[at];
    }
    for (int i = kernel->rank; i-- > 0;) {
        const Axis *axis = &kernel->axis[i];
        if (axis->symbol[0] || i == at) continue;
        if (elements * axis->extent > most) break;
        kernel->tile[i] = axis->extent;
        elements *= axis->extent;
    }
}

/* The step of a walk: so many indices that a product which adds up steps takes some terms in each, for it loads and stores its
 * sums for them. */
static void choose_step(const Graph *graph, Kernel *kernel, NodeId first, NodeId end)
{
    enum { TERMS = 56 };
    for (NodeId id = first; id < end; id++) {
        if (!sums_walk(graph, id)) continue;
        const Node *linear = graph_node(graph, id);
        const Type *x = graph_type(graph, linear->operands[0]);
        const AxisNames *over = &linear->attributes.over;
        int64_t terms = 1, extent = x->axis[type_find(x, kernel->walk)].extent;
        for (int i = 0; i < over->count; i++)
            if (strcmp(over->name[i], kernel->walk) != 0)
                terms *= x->axis[type_find(x, over->name[i])].extent;
        while (kernel->step < extent &&
               (extent % kernel->step != 0 || kernel->step * terms < TERMS))
            kernel->step++;
        return;
    }
}

/* In place of the choice by rule, which `to` has. */
static void ask_source(const PassContext *context, const Graph *graph, Graph *to, int k)
{
    Choice choice;
    const ChoiceSource *source = &context->choices;
    if (!source->find || !choice_read(graph, to, k, &choice) ||
        !source->find(source->user, graph, k, &choice))
        return;
    to->kernels[k] = graph->kernels[k];
    choice_write(to, k, &choice);
}

Graph *pass_choose_tiles(PassContext *context, const Graph *graph)
{
    Rewriter r = rewriter_new(graph, context->arena);
    for (NodeId id = 0; id < graph->node_count; id++) rewriter_copy(&r, id);
    for (uint32_t k = 0; k < graph->kernel_count; k++) {
        NodeId first, end;
        kernel_range(graph, (int)k, &first, &end);
        if (first == end || !pass_may_rewrite(context)) continue;
        const char **lane = kernel_lanes(graph, (int)k, context->target, context->arena);
        NodeId linear = costliest_product(graph, first, end), sum = find_sum(graph, first, end);
        int64_t elements = elements_at_point(graph, &graph->kernels[k], end - 1);
        bool threads = context->target->stages_operands && (sum != NO_NODE || elements == 1);
        if (linear != NO_NODE)
            tile_product(graph, &r.to->kernels[k], first, end, linear, lane[linear - first],
                         context->target);
        else if (threads)
            tile_threads(&r.to->kernels[k], lane[end - 1 - first],
                         sum != NO_NODE ? BLOCK_SUMS : BLOCK_ELEMENTS);
        else if (sum != NO_NODE && sums_over_batch(graph, sum))
            tile_sums(&r.to->kernels[k], lane[end - 1 - first]);
        else
            tile_elements(&r.to->kernels[k], lane[end - 1 - first], elements);
        ask_source(context, graph, r.to, (int)k);
        if (graph->kernels[k].walk[0]) choose_step(graph, &r.to->kernels[k], first, end);
    }
    return rewriter_finish(&r);
}
