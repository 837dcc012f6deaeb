/* pack_weights.c
 *
 * Lays each weight of a product out in the order in which the inner loop reads it: panels of lanes
 * where the weight is the vector operand, rows of the register tile side by side where it is the
 * other. What is added or multiplied lane by lane, as a LayerNorm's parameters are, gets the lane
 * axis last. A kernel in `prepare` makes the copy.
 *
 *   before  %2 = read @w [k, c] : f32[k 256, c 64]
 *           %3 = linear %1, %2 over (c)
 *   after   kernel for (k 256, c 64) {
 *             %0 = read @w [k, c] : f32[k 256, c 64]
 *             %1 = write %0 [k, c] : f32[k 256, c 64] packed (k/32 8, c 64, k 32)
 *           }
 *           %2 = read %1 [k, c] : f32[k 256, c 64]
 *
 * needs: every op in a kernel.  keeps: kernels, order.  breaks: nothing.
 */
#include "passes/products.h"

#include <string.h>

static void add_dim(Layout *layout, int axis, int64_t divisor, int64_t extent)
{
    RAFTC_ASSERT(layout->rank < MAX_AXES);
    layout->dim[layout->rank].axis = axis;
    layout->dim[layout->rank].divisor = divisor;
    layout->dim[layout->rank++].extent = extent;
}

/* Tiles outermost, then what is contracted, then the indices inside a tile. False: the row-major
 * order is as good, or the layout would need too many dimensions. */
static bool product_layout(const Type *w, const AxisNames *over, const Product *p, int64_t width,
                           Layout *layout)
{
    int64_t tile[MAX_AXES];
    int tiled = 0, free_axes = 0;
    for (int i = 0; i < w->rank; i++) {
        tile[i] = 0;
        if (w->axis[i].symbol[0]) return false;
        if (names_contain(over, w->axis[i].name)) continue;
        free_axes++;
        if (!p->rows_in_w && strcmp(w->axis[i].name, p->lane) == 0) tile[i] = width;
        for (int k = 0; p->rows_in_w && k < p->row_count; k++)
            if (strcmp(w->axis[i].name, p->row[k]) == 0) tile[i] = p->row_tile[k];
        tiled += tile[i] > 0;
    }
    if (tiled == 0 || free_axes + tiled + over->count > MAX_AXES) return false;
    for (int i = 0; i < w->rank; i++)
        if (!names_contain(over, w->axis[i].name))
            add_dim(layout, i, tile[i] ? tile[i] : 1,
                    ceil_divide(w->axis[i].extent, tile[i] ? tile[i] : 1));
    for (int i = 0; i < over->count; i++) {
        int axis = type_find(w, over->name[i]);
        add_dim(layout, axis, 1, w->axis[axis].extent);
    }
    for (int i = 0; i < w->rank; i++)
        if (tile[i]) add_dim(layout, i, 1, tile[i]);
    return true;
}

/* The axes in order, the lane axis last. False: it is last already, or there is none. */
static bool lane_layout(const Type *type, const char *lane, Layout *layout)
{
    int at = lane ? type_find(type, lane) : -1;
    if (at < 0 || at == type->rank - 1) return false;
    for (int i = 0; i < type->rank; i++)
        if (i != at) add_dim(layout, i, 1, type->axis[i].extent);
    add_dim(layout, at, 1, type->axis[at].extent);
    return true;
}

/* Does the operand read a stored value that depends on parameters alone, and that is not packed
 * yet? */
static bool is_packable(const Graph *graph, const bool *param_only, NodeId operand)
{
    const Node *read = graph_node(graph, operand);
    if (read->op != OP_READ || !param_only[operand]) return false;
    const Node *stored = graph_node(graph, read->operands[0]);
    return stored->layout.rank == 0 && (stored->op == OP_PARAM || stored->op == OP_WRITE);
}

/* What a pack kernel has stored of what `read` reads, in this layout; NO_NODE: there is none. */
static NodeId find_packed(const Graph *to, const Node *read, NodeId stored, const Layout *layout)
{
    for (NodeId id = stored + 1; id < to->node_count; id++) {
        const Node *write = graph_node(to, id);
        if (write->op != OP_WRITE || memcmp(&write->layout, layout, sizeof *layout) != 0) continue;
        const Node *view = graph_node(to, write->operands[0]);
        if (view->op == OP_READ && view->operands[0] == stored &&
            type_equal(&view->type, &read->type) &&
            memcmp(&view->attributes.map, &read->attributes.map, sizeof read->attributes.map) == 0)
            return id;
    }
    return NO_NODE;
}

/* A kernel that stores what `read`, of another graph, reads; its operand is `stored` in this one. A unit has `together` indices
 * of the first axis.
 */
static NodeId add_pack_kernel(Graph *to, const Node *read, NodeId stored, const Layout *layout,
                              int64_t together)
{
    Kernel kernel = {.rank = read->type.rank};
    for (int i = 0; i < kernel.rank; i++) {
        int64_t extent = read->type.axis[i].extent;
        kernel.axis[i] = read->type.axis[i];
        kernel.tile[i] = i > 0 || together > extent ? extent : together;
    }
    int index = (int)to->kernel_count;
    *ARENA_PUSH(to->arena, to->kernels, to->kernel_count, to->kernel_capacity) = kernel;
    Map plain = map_identity(&read->type, &read->type);
    NodeId view = build_read(to, stored, &read->attributes.map, &read->type, read->loc);
    NodeId write = build_write(to, view, &plain, &read->type, read->loc);
    graph_node(to, view)->kernel = graph_node(to, write)->kernel = index;
    graph_node(to, write)->layout = *layout;
    return write;
}

/* Indices of the first axis that a unit copies: on CPUs those that will lie together, which it turns in registers. */
static int64_t unit_of_copy(const Layout *layout, const Target *target)
{
    int last = layout->rank - 1;
    return layout->dim[last].axis == 0 && !target->stages_operands ? layout->dim[last].extent : 1;
}

/* Adds pack kernels for the constant operands of node `n`; packed[operand - first] is what is to be
 * read instead. */
static void pack_operands(PassContext *context, Rewriter *r, const bool *param_only, NodeId n,
                          const char *lane, NodeId first, NodeId *packed)
{
    const Graph *graph = r->from;
    const Node *node = graph_node(graph, n);
    bool product = node->op == OP_LINEAR;
    if (!product && node->op != OP_LAYERNORM && node->op != OP_LAYERNORM_GRAD) return;
    for (uint32_t i = 1; i < node->operand_count; i++) {
        NodeId operand = node->operands[i];
        if (!is_packable(graph, param_only, operand) || packed[operand - first] != NO_NODE)
            continue;
        const Node *read = graph_node(graph, operand);
        Layout layout = {0};
        bool packs;
        if (product && i == 1) {
            Product p = product_tile(graph, n, lane, context->target);
            packs = !(p.rows_in_w && context->target->stages_operands) &&
                    product_layout(&read->type, &node->attributes.over, &p,
                                   product_width(&p, context->target), &layout);
        } else {
            packs = lane_layout(&read->type, lane, &layout);
        }
        if (!packs || !pass_may_rewrite(context)) continue;
        NodeId stored = rewriter_value(r, read->operands[0]),
               made = find_packed(r->to, read, stored, &layout);
        packed[operand - first] = made != NO_NODE
                                      ? made
                                      : add_pack_kernel(r->to, read, stored, &layout,
                                                        unit_of_copy(&layout, context->target));
    }
}

Graph *pass_pack_weights(PassContext *context, const Graph *graph)
{
    Rewriter r = rewriter_new(graph, context->arena);
    if (!context->target->packs_weights) return (Graph *)graph;
    bool *param_only = graph_param_only(graph, context->arena);
    for (NodeId id = 0; id < graph->node_count;) {
        int k = graph->nodes[id].kernel;
        if (k == NO_KERNEL) {
            rewriter_copy(&r, id++);
            continue;
        }
        NodeId first, end;
        kernel_range(graph, k, &first, &end);
        const char **lane = kernel_lanes(graph, k, context->target, context->arena);
        NodeId *packed = arena_array(context->arena, end - first, sizeof *packed);
        for (NodeId n = first; n < end; n++) packed[n - first] = NO_NODE;
        for (NodeId n = first; n < end; n++)
            if (!param_only[n])
                pack_operands(context, &r, param_only, n, lane[n - first], first, packed);
        for (; id < end; id++) {
            NodeId made = rewriter_copy(&r, id);
            if (packed[id - first] != NO_NODE) {
                Node *read = graph_node(r.to, made);
                read->operands[0] = packed[id - first];
                read->attributes.map = map_identity(&read->type, &read->type);
            }
        }
    }
    return rewriter_finish(&r);
}
