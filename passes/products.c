/* products.c: register tiles. */
#include "passes/products.h"

#include <string.h>

static bool is_used_once(const Graph *graph, NodeId value)
{
    int uses = 0, kernel = graph_node(graph, value)->kernel;
    for (NodeId id = value + 1; id < graph->node_count; id++) {
        const Node *node = graph_node(graph, id);
        if (node->kernel != kernel) break;
        for (uint32_t i = 0; i < node->operand_count; i++) uses += node->operands[i] == value;
    }
    return uses == 1;
}

NodeId own_read(const Graph *graph, NodeId operand)
{
    const Node *node = graph_node(graph, operand);
    NodeId read = node->op == OP_GELU ? node->operands[0] : operand;
    bool own = graph_node(graph, read)->op == OP_READ && is_used_once(graph, operand) &&
               is_used_once(graph, read);
    return own ? read : NO_NODE;
}

NodeId product_of_gelu(const Graph *graph, NodeId id)
{
    if (graph_node(graph, id)->op != OP_GELU || own_read(graph, id) == NO_NODE) return NO_NODE;
    for (NodeId user = id + 1;; user++) { /* own_read found it to have one */
        const Node *node = graph_node(graph, user);
        for (uint32_t i = 0; i < node->operand_count; i++)
            if (node->operands[i] == id)
                return node->op == OP_LINEAR && sums_over_batch(graph, user) ? user : NO_NODE;
    }
}

/* The greatest divisor of the extent that is `most` or less. */
static int64_t divisor_below(int64_t extent, int64_t most)
{
    int64_t divisor = extent < most ? extent : most;
    while (extent % divisor != 0) divisor--;
    return divisor;
}

bool sums_over_batch(const Graph *graph, NodeId id)
{
    const Node *node = graph_node(graph, id);
    const AxisNames *over = &node->attributes.over;
    const Type *x = graph_type(graph, node->operands[0]);
    for (int i = 0; i < over->count; i++)
        if (x->axis[type_find(x, over->name[i])].symbol[0]) return true;
    return false;
}

bool sums_walk(const Graph *graph, NodeId id)
{
    const Node *node = graph_node(graph, id);
    const char *walk = node->kernel == NO_KERNEL ? "" : graph->kernels[node->kernel].walk;
    return node->op == OP_LINEAR && walk[0] && names_contain(&node->attributes.over, walk);
}

/* A sum over the batch is long. The inner axes are taken whole as far as a part has room. Returns the
 * indices in a part. */
static int64_t size_parts(const Graph *graph, NodeId linear, int64_t part[MAX_AXES])
{
    enum { PART = 64 };
    const Node *node = graph_node(graph, linear);
    const Type *x = graph_type(graph, node->operands[0]);
    const AxisNames *over = &node->attributes.over;
    int64_t room = PART, inside = 1;
    for (int i = over->count; i-- > 0;) {
        const Axis *axis = &x->axis[type_find(x, over->name[i])];
        part[i] = axis->symbol[0] ? 1 : divisor_below(axis->extent, room);
        room = part[i] == axis->extent ? room / axis->extent : 1;
        inside *= part[i];
    }
    return inside;
}

/* Is it a sum over the batch whose operands are read for it alone? */
static bool sums_reads(const Graph *graph, NodeId linear)
{
    const Node *node = graph_node(graph, linear);
    return sums_over_batch(graph, linear) && own_read(graph, node->operands[0]) != NO_NODE &&
           own_read(graph, node->operands[1]) != NO_NODE;
}

bool product_in_parts(const Graph *graph, NodeId linear, const Target *target)
{
    int64_t part[MAX_AXES];
    return !target->stages_operands && sums_reads(graph, linear) &&
           size_parts(graph, linear, part) > 1;
}

bool product_of_images(const Graph *graph, NodeId linear)
{
    for (int i = 0; i < 2; i++) {
        int symbols;
        type_elements(graph_type(graph, graph_node(graph, linear)->operands[i]), &symbols);
        if (symbols == 0) return false;
    }
    return true;
}

/* May a read of the product leave what it reads? */
static bool takes_windows(const Graph *graph, const Node *linear)
{
    for (int i = 0; i < 2; i++) {
        const Node *read = graph_node(graph, linear->operands[i]);
        if (read->op == OP_READ &&
            map_may_leave(&read->attributes.map, &read->type, graph_type(graph, read->operands[0])))
            return true;
    }
    return false;
}

/* Rows that fit in the registers beside `vectors` vectors of the other operand and one broadcast.
 */
static int64_t most_rows(const Target *target, int vectors)
{
    int64_t rows = (target->vector_registers - vectors - 1) / vectors;
    return rows > 14 ? 14 : rows;
}

/* Indices a tile along an axis of `extent`: as even as can be with at most `most`. */
static int64_t even_tile(int64_t extent, int64_t most)
{
    return ceil_divide(extent, ceil_divide(extent, most));
}

static bool is_row(const Product *p, const Type *rows, const Type *vectors, const Axis *axis)
{
    return (!p->lane || strcmp(axis->name, p->lane) != 0) && !axis->symbol[0] &&
           type_find(rows, axis->name) >= 0 && type_find(vectors, axis->name) < 0;
}

/* Takes up to `most` rows of the result along its longest axis, of several the innermost. */
static void choose_long_rows(Product *p, const Type *result, const Type *rows, const Type *vectors,
                             int64_t most)
{
    const Axis *longest = NULL;
    for (int i = 0; i < result->rank; i++)
        if (is_row(p, rows, vectors, &result->axis[i]) &&
            (!longest || result->axis[i].extent >= longest->extent))
            longest = &result->axis[i];
    p->row_count = longest != NULL;
    if (!longest) return;
    p->row[0] = longest->name;
    p->row_tile[0] = even_tile(longest->extent, most);
}

/* Takes up to `most` rows of the result from its inner axes: all of the innermost and some of the next, some of the innermost
 * alone, or up to `inner` of it, where that is less, and some of the next. */
static void choose_rows(Product *p, const Type *result, const Type *rows, const Type *vectors,
                        int64_t most, int64_t inner)
{
    if (p->in_parts) {
        choose_long_rows(p, result, rows, vectors, most);
        return;
    }
    bool some = inner < most;
    p->row_count = 0;
    for (int i = result->rank; i-- > 0 && p->row_count < 2;) {
        const Axis *axis = &result->axis[i];
        if (!is_row(p, rows, vectors, axis) || (p->row_count > 0 && axis->extent == 1)) continue;
        int64_t tile = even_tile(axis->extent, p->row_count == 0 ? inner : most);
        p->row[1] = p->row[0];
        p->row_tile[1] = p->row_tile[0];
        p->row[0] = axis->name;
        p->row_tile[0] = tile;
        p->row_count++;
        if ((tile < axis->extent && !some) || most / tile < 2) break;
        most /= tile;
    }
}

/* What a step of the contraction takes in a tile. Two multiply-adds and two loads go side by side; a
 * sum can be added to every fourth cycle, and some more sums than that keep both units busy. Of
 * tiles that are equal so far, the one with fewer loads is better: vectors as wide as a cache line come from
 * the L2 cache line by line, and count twice. From scratch memory, where parts of sums
 * lie in rows far apart, loads take longer. */
static int64_t step_cost(const Product *p, int64_t rows, int64_t vectors)
{
    enum { SUMS = 10, WEIGHT = 16 };
    int64_t products = rows * vectors, loads = rows + vectors, cost = SUMS;
    int64_t busy = p->in_parts ? loads * 5 / 4 : loads;
    if (products > cost) cost = products;
    if (busy > cost) cost = busy;
    return WEIGHT * cost + rows + vectors * p->load_cost;
}

/* Full tiles along an axis, and what is left of it. */
typedef struct Cut {
    int64_t size[2], count[2];
} Cut;

static Cut cut_axis(int64_t extent, int64_t tile)
{
    return (Cut){{tile, extent % tile}, {extent / tile, extent % tile > 0}};
}

/* The same for so many indices along each row axis, of so many vectors. */
static int64_t tiles_cost(const Product *p, const int64_t rows[2], int64_t width)
{
    int64_t cost = 0;
    const Cut outer = cut_axis(rows[0], p->row_tile[0]),
              inner = p->row_count > 1 ? cut_axis(rows[1], p->row_tile[1]) : cut_axis(1, 1),
              lanes = cut_axis(width, p->vectors);
    for (int i = 0; i < 8; i++) {
        int a = i >> 2, b = i >> 1 & 1, c = i & 1;
        int64_t tiles = outer.count[a] * inner.count[b] * lanes.count[c];
        if (tiles > 0) cost += tiles * step_cost(p, outer.size[a] * inner.size[b], lanes.size[c]);
    }
    return cost;
}

/* The same for all rows of the result. */
static int64_t result_cost(const Product *p, const Type *result, const Type *rows,
                           const Type *vectors, int64_t width)
{
    int64_t extent[2] = {1, 1}, others = 1;
    for (int i = 0; i < result->rank; i++) {
        const Axis *axis = &result->axis[i];
        if (!is_row(p, rows, vectors, axis)) continue;
        bool tiled = false;
        for (int k = 0; k < p->row_count; k++) {
            if (strcmp(p->row[k], axis->name) != 0) continue;
            extent[k] = axis->extent;
            tiled = true;
        }
        if (!tiled) others *= axis->extent;
    }
    return others * tiles_cost(p, extent, width);
}

int64_t product_step_cost(const Product *p, int64_t rows)
{
    enum { LOAD = 7 }; /* multiply-adds that take as long as a load */
    int64_t loads = 4 * p->vectors / loaded_together(p->vectors);
    loads += p->rows_together ? 4 * rows / loaded_together(p->row_tile[p->row_count - 1]) : rows;
    return 4 * rows * p->vectors + LOAD * loads;
}

/* Indices of a tile along an axis of the rows; 0: it is not of those. */
static int64_t row_tile(const Product *p, const char *axis)
{
    for (int i = 0; i < p->row_count; i++)
        if (strcmp(p->row[i], axis) == 0) return p->row_tile[i];
    return 0;
}

/* The same for the whole result, where the rows and lanes of a tile take their time, be they past the end or not; looking
 * where the end is takes some, too. Along axes of rows that a tile has none of, it is one of many, which a block of threads
 * takes side by side, unless both operands differ from image to image. */
static int64_t threads_cost(const Product *p, const Type *result, const Type *of_rows,
                            const Type *of_vectors, int64_t width)
{
    int64_t rows = 1, tiles = ceil_divide(width, p->vectors);
    bool edge = width % p->vectors != 0;
    for (int i = 0; i < result->rank; i++) {
        const Axis *axis = &result->axis[i];
        int64_t tile = row_tile(p, axis->name);
        if (tile == 0 && !(p->of_images && is_row(p, of_rows, of_vectors, axis))) continue;
        if (tile == 0) tile = 1;
        rows *= tile;
        tiles *= ceil_divide(axis->extent, tile);
        edge |= axis->extent % tile != 0;
    }
    int64_t cost = tiles * product_step_cost(p, rows);
    return edge ? cost + cost / 16 : cost;
}

/* Do elements along the axis lie side by side in what is read, at a place that raftc has chosen? What the caller gives may
 * begin anywhere. */
static bool lie_together(const Graph *graph, const Node *read, const char *axis)
{
    if (graph_node(graph, read->operands[0])->op == OP_INPUT) return false;
    const Map *map = &read->attributes.map;
    return map->rank > 0 && map->dim[map->rank - 1].coefficient[type_find(&read->type, axis)] == 1;
}

/* Is it the one product of its kernel, of operands that are read, many elements at a time? To bring them one by one takes
 * threads. */
static bool is_alone(const Graph *graph, NodeId linear, bool rows_in_w)
{
    const Node *node = graph_node(graph, linear),
               *rows = graph_node(graph, node->operands[rows_in_w]);
    const AxisNames *over = &node->attributes.over;
    for (int i = 0; i < 2; i++)
        if (graph_node(graph, node->operands[i])->op != OP_READ) return false;
    if (!lie_together(graph, rows, over->name[over->count - 1])) return false;
    NodeId first, end;
    kernel_range(graph, node->kernel, &first, &end);
    for (NodeId id = first; id < end; id++)
        if (id != linear && graph_node(graph, id)->op == OP_LINEAR) return false;
    return true;
}

/* What a thread has for sums, and for the operand with the lanes. */
static int64_t registers_for(const Graph *graph, NodeId linear, bool rows_in_w,
                             const Target *target)
{
    enum { OF_IMAGES = 12 }; /* hold at which image a sum over the batch is */
    if (sums_over_batch(graph, linear)) return target->vector_registers - OF_IMAGES;
    bool more =
        target->registers_alone > target->vector_registers && is_alone(graph, linear, rows_in_w);
    return more ? target->registers_alone : target->vector_registers;
}

/* The most rows beside p->vectors vectors. Of the operands, threads hold four steps of the lanes, or one of both. */
static int64_t most_thread_rows(const Product *p, int64_t registers)
{
    enum { MOST_ROWS = 16, TOGETHER = 84 };
    int64_t rows = registers / p->vectors - 4;
    if (p->rows_together) rows = (TOGETHER - p->vectors) / (p->vectors + 1);
    return rows < MOST_ROWS ? rows : MOST_ROWS;
}

/* Is the operand with the rows read along them, as it lies in memory? */
static bool are_rows_together(const Graph *graph, NodeId linear, const Product *p)
{
    const Node *node = graph_node(graph, linear);
    NodeId of_rows = node->operands[p->rows_in_w], of_vectors = node->operands[!p->rows_in_w];
    Product one = *p;
    choose_rows(&one, &node->type, graph_type(graph, of_rows), graph_type(graph, of_vectors), 1, 1);
    const char *lane =
        graph_node(graph, of_rows)->op == OP_READ ? memory_lane(graph, of_rows) : NULL;
    return lane && one.row_count > 0 && strcmp(lane, one.row[0]) == 0;
}

/* The cheapest tile for threads: `registers` hold its sums, and what is taken of the operand with the lanes. */
static Product threads_tile(Product p, const Type *result, const Type *rows, const Type *vectors,
                            int64_t width, int64_t registers)
{
    enum { MOST_VECTORS = 8 };
    Product best = {0};
    int64_t least = INT64_MAX;
    for (p.vectors = 1; p.vectors <= MOST_VECTORS && p.vectors <= width; p.vectors++) {
        for (int64_t most = most_thread_rows(&p, registers); most > 0; most--) {
            choose_rows(&p, result, rows, vectors, most, most);
            int64_t cost = threads_cost(&p, result, rows, vectors, width);
            if (cost >= least) continue;
            least = cost;
            best = p;
        }
    }
    return best;
}

static int64_t lane_vectors(const Type *result, const char *lane, const Target *target)
{
    if (!lane) return 1;
    return ceil_divide(result->axis[type_find(result, lane)].extent, target->vector_floats);
}

int64_t product_cost(const Graph *graph, NodeId linear, const Product *p, const Target *target)
{
    const Type *result = graph_type(graph, linear);
    int64_t width = lane_vectors(result, p->lane, target);
    const Type *x = graph_type(graph, graph_node(graph, linear)->operands[0]),
               *w = graph_type(graph, graph_node(graph, linear)->operands[1]);
    return p->row_count ? result_cost(p, result, p->rows_in_w ? w : x, p->rows_in_w ? x : w, width)
                        : INT64_MAX;
}

/* Do the operands lie in memory along different axes? */
static bool is_transposed(const Graph *graph, NodeId linear)
{
    const Node *node = graph_node(graph, linear);
    const char *x = memory_lane(graph, node->operands[0]),
               *w = memory_lane(graph, node->operands[1]);
    return x && w && strcmp(x, w) != 0;
}

int64_t product_unit_cost(const Product *p, int64_t rows, int64_t lanes, const Target *target)
{
    return tiles_cost(p, (int64_t[]){rows, 1}, ceil_divide(lanes, target->vector_floats));
}

int64_t product_tile_along(const Product *p, const char *axis, const Target *target)
{
    if (p->lane && strcmp(p->lane, axis) == 0) return product_width(p, target);
    int64_t rows = row_tile(p, axis);
    return rows ? rows : 1;
}

/* The result as a unit of the kernel has it, if units have been cut: those that are not take one index of each axis. */
static Type result_in_unit(const Graph *graph, NodeId linear)
{
    const Node *node = graph_node(graph, linear);
    const Kernel *kernel = &graph->kernels[node->kernel];
    Type result = node->type;
    bool cut = false;
    for (int i = 0; i < kernel->rank; i++) cut |= kernel->tile[i] > 1;
    for (int i = 0; i < kernel->rank && cut; i++) {
        int at = type_find(&result, kernel->axis[i].name);
        if (at >= 0 && !result.axis[at].symbol[0] && kernel->tile[i] < result.axis[at].extent)
            result.axis[at].extent = kernel->tile[i];
    }
    return result;
}

static bool cuts_evenly(const Product *p, const Type *result)
{
    for (int k = 0; k < p->row_count; k++)
        if (result->axis[type_find(result, p->row[k])].extent % p->row_tile[k] != 0) return false;
    return true;
}

/* The cheapest tile for what a unit has of the result, some of its lanes if they are `shared` out: no panel of weights lies
 * in two units. Beside tiles of whole inner axes there are, if `both`, those that take some of two axes, where that comes
 * out even. */
static Product cheapest_tile(Product p, const Type *result, const Type *rows, const Type *vectors,
                             bool shared, bool both, const Target *target)
{
    enum { MOST_VECTORS = 4 };
    Product best = {0};
    int64_t least = INT64_MAX, width = lane_vectors(result, p.lane, target);
    for (p.vectors = 1; p.vectors <= MOST_VECTORS && p.vectors <= width; p.vectors++) {
        if (shared && width % p.vectors != 0) continue;
        const int64_t most = most_rows(target, p.vectors);
        for (int64_t inner = most; inner > 0; inner--) {
            choose_rows(&p, result, rows, vectors, most, inner);
            if (p.row_count == 0) return p;
            if (inner < most && !(both && p.row_count == 2 && cuts_evenly(&p, result))) continue;
            int64_t cost = result_cost(&p, result, rows, vectors, width);
            if (p.row_count == 2) cost += cost / 32; /* more addresses, which may take registers */
            if (cost >= least) continue;
            least = cost;
            best = p;
        }
    }
    return best;
}

Product product_of_tile(const Graph *graph, NodeId linear, const char *lane, const Target *target,
                        int64_t chosen_rows, int64_t chosen_vectors)
{
    const Node *node = graph_node(graph, linear);
    const Type *x = graph_type(graph, node->operands[0]), *w = graph_type(graph, node->operands[1]);
    Product p = {.lane = lane, .vectors = 1, .load_cost = target->vector_floats < LINE ? 1 : 2};
    p.lane_in_x = lane && type_find(x, lane) >= 0;
    p.lane_in_w = lane && type_find(w, lane) >= 0;
    const int64_t width = lane_vectors(&node->type, lane, target);
    p.rows_in_w = !p.lane_in_w;
    p.in_parts = product_in_parts(graph, linear, target);
    if (p.in_parts) size_parts(graph, linear, p.part);
    const Type *rows = p.rows_in_w ? w : x, *vectors = p.rows_in_w ? x : w;
    if (target->stages_operands) {
        p.of_images = product_of_images(graph, linear);
        p.rows_together = are_rows_together(graph, linear, &p);
        return threads_tile(p, &node->type, rows, vectors, width,
                            registers_for(graph, linear, p.rows_in_w, target));
    }
    if (chosen_rows) {
        p.vectors = (int)(chosen_vectors < width ? chosen_vectors : width);
        choose_rows(&p, &node->type, rows, vectors, chosen_rows, chosen_rows);
        return p;
    }
    const Type unit = p.in_parts ? node->type : result_in_unit(graph, linear);
    const bool shared = lane_vectors(&unit, lane, target) < width;
    /* Windows are copied once a unit, whole rows of them. */
    const bool both = !p.in_parts && !takes_windows(graph, node);
    p = cheapest_tile(p, &unit, rows, vectors, shared, both, target);
    for (int k = 0; k < p.row_count; k++) /* the names of what lives longer */
        p.row[k] = node->type.axis[type_find(&node->type, p.row[k])].name;
    if (p.row_count > 0) return p;
    /* Without rows to hide the latency of an addition behind, more vectors do. */
    p.vectors = width > 8 ? 8 : (int)width;
    p.in_parts &= lane && is_transposed(graph, linear);
    p.row_tile[0] = 1;
    return p;
}

Product product_tile(const Graph *graph, NodeId linear, const char *lane, const Target *target)
{
    const Attributes *attributes = &graph_node(graph, linear)->attributes;
    return product_of_tile(graph, linear, lane, target, attributes->tile_rows,
                           attributes->tile_vectors);
}
