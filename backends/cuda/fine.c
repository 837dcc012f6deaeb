/* fine.c: the shape of a kernel for few images.
 *
 * Few images need fewer thread blocks than there are multiprocessors, with all of which busy the usual shape is the fastest.
 * So the kernel has another one, too: smaller units, fewer of them in a block, tiles of fewer sums; every sum is taken as
 * it always is. Of some such shapes that is chosen which should take the least time for one image, if that is less than
 * the usual one should take.
 */
#include "backends/cuda/product.h"
#include "passes/kernels.h"

#include <string.h>

/* Multiprocessors that a shape is chosen for; units an image that are enough for them; cycles of a block beside its sums, and
 * for each group of statistics that a warp takes. */
enum { PROCESSORS = 132, ENOUGH_UNITS = 2 * PROCESSORS, BLOCK_CYCLES = 3000, GROUP_CYCLES = 300 };

/* Halves the kernel's tile along an axis, to whole multiples of `least`. False: it is no more than that. */
static bool halve(Kernel *kernel, int k, int64_t least)
{
    if (k < 0 || kernel->axis[k].symbol[0] || kernel->tile[k] <= least) return false;
    int64_t half = (kernel->tile[k] + 1) / 2;
    kernel->tile[k] = (half + least - 1) / least * least;
    return true;
}

/* Can units share out the lanes of a product that each has whole? Where nothing in the kernel mixes along them but the
 * statistics of what was there before, which every unit takes for itself, and each write has them. */
static bool can_share(const Writer *w, NodeId linear, const char *lane)
{
    const Schedule *s = &w->schedule;
    const Type *result = graph_type(w->graph, linear);
    const Axis *axis = &result->axis[type_find(result, lane)];
    for (NodeId id = s->first; id < s->end; id++) {
        const Node *node = graph_node(w->graph, id);
        NodeId from = node->operand_count ? node->operands[0] : NO_NODE;
        if (node->op == OP_READ && schedule_holds(s, from)) return false;
        if (node->op == OP_WRITE) {
            const Type *written = graph_type(w->graph, from);
            int at = type_find(written, lane);
            if (at < 0 || !axis_same_extent(&written->axis[at], axis)) return false;
        } else if (node->op != OP_READ && node_mixes(w->graph, node, lane) &&
                   !(node->op == OP_LAYERNORM && graph_node(w->graph, from)->op == OP_READ)) {
            return false;
        }
    }
    return true;
}

/* Makes the lanes of some product, which units have whole, the outermost axis of the kernel. */
static bool share_lanes(Writer *w, Kernel *kernel)
{
    const Schedule *s = &w->schedule;
    for (int i = 0; i < s->stage_count; i++) {
        const char *lane = s->stages[i].product.lane;
        if (s->stages[i].kind != STAGE_PRODUCT || !lane || kernel->rank == MAX_AXES) continue;
        if (schedule_axis(s, lane) >= 0 || !can_share(w, s->stages[i].root, lane)) continue;
        const Type *result = graph_type(w->graph, s->stages[i].root);
        memmove(kernel->axis + 1, kernel->axis, (size_t)kernel->rank * sizeof *kernel->axis);
        memmove(kernel->tile + 1, kernel->tile, (size_t)kernel->rank * sizeof *kernel->tile);
        kernel->axis[0] = result->axis[type_find(result, lane)];
        kernel->tile[0] = kernel->axis[0].extent;
        kernel->rank++;
        return true;
    }
    return false;
}

/* Cuts the kernel into smaller units: the lanes of a product, to no fewer than `least`, or its rows. False: it has no more. */
static bool cut_finer(const Schedule *s, Kernel *kernel, int64_t least)
{
    for (int i = 0; i < s->stage_count; i++) {
        const Product *p = &s->stages[i].product;
        if (s->stages[i].kind != STAGE_PRODUCT) continue;
        if (p->lane && halve(kernel, kernel_find(kernel, p->lane), least)) return true;
        for (int k = 0; k < p->row_count; k++)
            if (halve(kernel, kernel_find(kernel, p->row[k]), 1)) return true;
    }
    return false;
}

/* Vectors of a tile that units with less than all lanes can fill. */
static int fine_vectors(const Schedule *s, const Product *p)
{
    int at = p->lane ? schedule_axis(s, p->lane) : -1, vectors = p->vectors;
    if (vectors > FINE_VECTORS) vectors = FINE_VECTORS;
    while (at >= 0 && vectors > 1 && s->graph->kernels[s->kernel].tile[at] < vectors * TEAM)
        vectors /= 2;
    return vectors;
}

int64_t count_blocks(const Writer *w)
{
    int64_t outer = outermost_tiles(w), block = w->schedule.block;
    int64_t each = kernel_units(&w->graph->kernels[w->schedule.kernel]) / outer;
    return (each + block - 1) / block * outer;
}

static int64_t groups_of(Writer *w, const Stage *stage)
{
    const Node *node = graph_node(w->graph, stage->root);
    ItemDim dim[MAX_AXES];
    int64_t groups = w->schedule.block;
    int count = list_dims(w, graph_type(w->graph, node->operands[0]), &node->attributes.over, dim);
    for (int i = 0; i < count; i++) groups *= dim[i].count;
    return groups;
}

/* What one image should take, in cycles of a multiprocessor, in the present shape. */
static int64_t estimate(Writer *w)
{
    int64_t cycles = BLOCK_CYCLES, staging = w->staging, warps = w->threads / WARP;
    for (int i = 0; i < w->schedule.stage_count; i++) {
        const Stage *stage = &w->schedule.stages[i];
        if (stage->kind == STAGE_PRODUCT) cycles += product_cycles(w, stage);
        if (stage->kind == STAGE_STATISTICS)
            cycles += (groups_of(w, stage) + warps - 1) / warps * GROUP_CYCLES;
    }
    w->staging = staging;
    return (count_blocks(w) + PROCESSORS - 1) / PROCESSORS * cycles;
}

/* Takes `block` units of the graph's kernel at a time. False: their scratch does not fit. */
static bool enter_shape(Writer *w, const Graph *graph, int64_t block)
{
    int kernel = w->schedule.kernel;
    w->graph = graph;
    if (!schedule_kernel(&w->schedule, w->arena, graph, kernel, w->target, w->diag)) return false;
    w->schedule.block = block;
    w->scratch = 4 * block * w->schedule.unit_floats;
    w->staging = 0;
    for (int i = 0; i < w->schedule.stage_count; i++) {
        Product *p = &w->schedule.stages[i].product;
        p->vectors = fine_vectors(&w->schedule, p);
    }
    return w->scratch <= w->shared - LEAST_STAGING;
}

/* A graph of its own for the same kernel in other units. */
static Graph *copy_kernels(Writer *w, const Graph *of)
{
    Graph *graph = arena_alloc(w->arena, sizeof *graph);
    *graph = *of;
    graph->kernels = arena_array(w->arena, of->kernel_count, sizeof *graph->kernels);
    memcpy(graph->kernels, of->kernels, of->kernel_count * sizeof *graph->kernels);
    return graph;
}

bool choose_fine(Writer *w)
{
    const Schedule usual = w->schedule;
    const Graph *graph = w->graph, *best = NULL;
    bool products = false;
    for (int i = 0; i < usual.stage_count; i++) products |= usual.stages[i].kind == STAGE_PRODUCT;
    if (!products) return false;
    int64_t usual_blocks = count_blocks(w), least = estimate(w), block = usual.block, chosen = 1;
    int64_t lanes = TEAM * FINE_VECTORS;
    bool whole = true; /* are the lanes of axis MLPs still whole? */
    while (lanes >= TEAM) {
        for (; block > 0; block /= 2) {
            if (!enter_shape(w, graph, block) || count_blocks(w) <= usual_blocks) continue;
            w->fine = true;
            int64_t cycles = estimate(w);
            w->fine = false;
            if (cycles >= least) continue;
            least = cycles;
            best = graph;
            chosen = block;
        }
        block = 1;
        Graph *finer = copy_kernels(w, graph);
        Kernel *kernel = &finer->kernels[usual.kernel];
        if (kernel_units(kernel) >= ENOUGH_UNITS) break;
        w->graph = graph;
        if (whole) share_lanes(w, kernel);
        whole = false;
        while (lanes >= TEAM && !cut_finer(&usual, kernel, lanes)) lanes /= 2;
        graph = finer;
    }
    return best && enter_shape(w, best, chosen);
}
