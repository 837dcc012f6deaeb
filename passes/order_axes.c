/* order_axes.c
 *
 * Stores a value so that the axis along which the kernels that read it have their vectors is the innermost:
 * what lies otherwise is gathered, element by element. The kernel that writes it takes up that axis for its own
 * vectors, unless what it reads is against that.
 *
 *   before  %2 = write %1 [b, w, group, k] : f32[b, w 56, group 32, k 224]
 *           %3 = read %2 [b, w, group, k]; %5 = linear %3, %4 over (k); %6 = write %5 [b, w, raft, h, group]
 *   after   %2 = write %1 [b, w, k, group] : f32[b, w 56, k 224, group 32]
 *
 * What a kernel adds up step by step stays as it is: it lies along the vectors of the product that makes it.
 *
 * needs: every op in a kernel.  keeps: kernels and the order of their nodes.  breaks: nothing. Outputs stay as
 * they are, and so does all else that their kernels write.
 */
#include "passes/products.h"

#include <string.h>

typedef struct OrderAxes {
    PassContext *context;
    Graph *graph; /* changed in place */
    NodeId *first,
        *next; /* of each value: the first read of it; of each read: the next of that value */
} OrderAxes;

/* How much each axis of what a kernel writes is wanted for vectors, by place in `shape`. */
typedef struct Votes {
    const Type *shape;
    int64_t weight[MAX_AXES];
} Votes;

static void find_reads(OrderAxes *o)
{
    o->first = arena_array(o->context->arena, o->graph->node_count, sizeof *o->first);
    o->next = arena_array(o->context->arena, o->graph->node_count, sizeof *o->next);
    for (NodeId id = 0; id < o->graph->node_count; id++) {
        const Node *node = graph_node(o->graph, id);
        o->first[id] = NO_NODE;
        if (node->op != OP_READ) continue;
        o->next[id] = o->first[node->operands[0]];
        o->first[node->operands[0]] = id;
    }
}

/* Elements of its operands that the op takes, about. A product that brings them to scratch memory first takes
 * any order, and so does a sum whose vectors go along memory. */
static int64_t elements_taken(const OrderAxes *o, NodeId user, const char *lane)
{
    NodeId product = product_of_gelu(o->graph, user);
    if (product != NO_NODE) user = product;
    const Node *node = graph_node(o->graph, user);
    bool along = node->op == OP_SUM && names_contain(&node->attributes.over, lane);
    if (node->op != OP_LINEAR)
        return along ? 0 : type_elements(graph_type(o->graph, node->operands[0]), NULL);
    bool in_parts = product_tile(o->graph, user, lane, o->context->target).in_parts;
    return in_parts ? 0 : op_cost(o->graph, user);
}

/* The axis of what is read along which elements `lane` of the read lie one by one, or -1. */
static int axis_along(const Node *read, const char *lane)
{
    int at = type_find(&read->type, lane), found = -1;
    for (int d = 0; at >= 0 && d < read->attributes.map.rank; d++) {
        int64_t step = read->attributes.map.dim[d].coefficient[at];
        if (step == 0) continue;
        if (step != 1 || found >= 0) return -1;
        found = d;
    }
    return found;
}

/* The axis of a read that axis `d` of the value is, as it is, or -1. */
static int plain_axis(const Node *read, int d)
{
    const Index *index = &read->attributes.map.dim[d];
    int found = -1;
    for (int i = 0; i < read->type.rank; i++) {
        if (index->coefficient[i] == 0) continue;
        if (index->coefficient[i] != 1 || found >= 0) return -1;
        found = i;
    }
    return index->offset == 0 ? found : -1;
}

/* How many elements of read `read` the ops of its kernel take as vectors along each axis of the value. */
static void count_vectors(const OrderAxes *o, NodeId read, int64_t *taken)
{
    NodeId first, end;
    const Node *node = graph_node(o->graph, read);
    kernel_range(o->graph, node->kernel, &first, &end);
    const char **lane = kernel_lanes(o->graph, node->kernel, o->context->target, o->context->arena);
    for (NodeId id = read + 1; id < end; id++) {
        const Node *user = graph_node(o->graph, id);
        const char *own = lane[id - first];
        int at = own ? type_find(&node->type, own) : -1;
        if (user->op == OP_READ || at < 0 ||
            node->type.axis[at].extent < o->context->target->vector_floats)
            continue;
        for (uint32_t i = 0; i < user->operand_count; i++)
            if (user->operands[i] == read && axis_along(node, own) >= 0)
                taken[axis_along(node, own)] += elements_taken(o, id, own);
    }
}

/* The votes of those that read what node `write` writes. */
static void ask_readers(const OrderAxes *o, NodeId write, Votes *votes)
{
    const Node *node = graph_node(o->graph, write);
    const Type *from = graph_type(o->graph, node->operands[0]);
    int64_t taken[MAX_AXES] = {0};
    for (NodeId read = o->first[write]; read != NO_NODE; read = o->next[read])
        count_vectors(o, read, taken);
    for (int d = 0; d < node->type.rank; d++)
        for (int i = 0; i < from->rank; i++) {
            int at = type_find(votes->shape, from->axis[i].name);
            if (node->attributes.map.dim[d].coefficient[i] == 1 && at >= 0)
                votes->weight[at] += taken[d];
        }
}

/* The vote of a read, but of a parameter, for the axis along which it takes vectors that lie together already. */
static void ask_operand(const OrderAxes *o, NodeId read, Votes *votes)
{
    const Node *node = graph_node(o->graph, read);
    int64_t taken[MAX_AXES] = {0};
    int last = node->attributes.map.rank - 1;
    count_vectors(o, read, taken);
    for (int i = 0; last >= 0 && i < node->type.rank; i++) {
        int at = type_find(votes->shape, node->type.axis[i].name);
        if (node->attributes.map.dim[last].coefficient[i] == 1 && at >= 0)
            votes->weight[at] += taken[last];
    }
}

/* The vote of a product whose vectors run along another axis than that which its result has innermost: element by
 * element would be stored. */
static void ask_product(const OrderAxes *o, NodeId write, const char *lane, Votes *votes)
{
    NodeId id = graph_node(o->graph, write)->operands[0];
    const Node *linear = graph_node(o->graph, id);
    int at = lane ? type_find(votes->shape, lane) : -1;
    if (linear->op == OP_LINEAR && at >= 0 &&
        product_tile(o->graph, id, lane, o->context->target).in_parts)
        votes->weight[at] += type_elements(&linear->type, NULL);
}

/* The reader that takes most vectors along axis `lane` of the value; its read has all axes as they are. */
static const Node *main_reader(const OrderAxes *o, NodeId written, int lane)
{
    const Node *main = NULL;
    const Type *type = graph_type(o->graph, written);
    int64_t most = 0;
    for (NodeId read = o->first[written]; read != NO_NODE; read = o->next[read]) {
        const Node *node = graph_node(o->graph, read);
        int64_t taken[MAX_AXES] = {0};
        bool plain = node->type.rank == type->rank;
        for (int d = 0; d < type->rank; d++) plain &= plain_axis(node, d) >= 0;
        count_vectors(o, read, taken);
        if (!plain || taken[lane] <= most) continue;
        most = taken[lane];
        main = node;
    }
    return main;
}

/* order[i]: which axis of the value comes in place i: in the order in which its main reader names them, the
 * lane last. */
static void find_order(const OrderAxes *o, NodeId written, int lane, int *order)
{
    const Node *reader = main_reader(o, written, lane);
    int rank = graph_type(o->graph, written)->rank, at = 0;
    for (int i = 0; i < rank; i++)
        for (int d = 0; d < rank; d++)
            if (d != lane && (reader ? plain_axis(reader, d) : d) == i) order[at++] = d;
    order[at] = lane;
}

static void reorder_map(Map *map, const int *order)
{
    Map old = *map;
    for (int i = 0; i < map->rank; i++) map->dim[i] = old.dim[order[i]];
}

/* Makes the axis of the written value that runs along axis `name` of its operand the innermost. */
static void move_last(OrderAxes *o, NodeId written, const char *name)
{
    Node *write = graph_node(o->graph, written);
    int from = type_find(graph_type(o->graph, write->operands[0]), name), lane = -1;
    for (int d = 0; from >= 0 && d < write->type.rank; d++)
        if (write->attributes.map.dim[d].coefficient[from] == 1) lane = d;
    if (lane < 0) return;
    int order[MAX_AXES];
    find_order(o, written, lane, order);
    Type old = write->type;
    for (int i = 0; i < old.rank; i++) write->type.axis[i] = old.axis[order[i]];
    reorder_map(&write->attributes.map, order);
    for (NodeId read = o->first[written]; read != NO_NODE; read = o->next[read])
        reorder_map(&graph_node(o->graph, read)->attributes.map, order);
}

/* May what the kernel writes be stored in any order? */
static bool is_free(const OrderAxes *o, NodeId first, NodeId end, const bool *fixed)
{
    for (NodeId id = first; id < end; id++) {
        const Node *node = graph_node(o->graph, id);
        if (node->op == OP_WRITE && (fixed[id] || node->layout.rank > 0)) return false;
    }
    return true;
}

/* Does the kernel write a value that has the axis, and have its vectors along another? */
static bool has_other_lane(const OrderAxes *o, NodeId first, NodeId end, const char **lane,
                           const char *name)
{
    for (NodeId id = first; id < end; id++) {
        const Node *node = graph_node(o->graph, id);
        if (node->op == OP_WRITE && lane[id - first] && strcmp(lane[id - first], name) != 0 &&
            type_find(graph_type(o->graph, node->operands[0]), name) >= 0)
            return true;
    }
    return false;
}

/* Threads bring what they read to fast memory in any order: they gain only where the lanes are as few as the taps of a
 * window. */
static bool may_gain(const OrderAxes *o, const Axis *lane)
{
    enum { FEW = 4 };
    return !o->context->target->stages_operands || (!lane->symbol[0] && lane->extent <= FEW);
}

static void order_kernel(OrderAxes *o, NodeId first, NodeId end, const bool *param_only)
{
    const Graph *graph = o->graph;
    int kernel = graph_node(graph, first)->kernel;
    Votes votes = {0};
    const char *now = NULL,
               **lane = kernel_lanes(graph, kernel, o->context->target, o->context->arena);
    for (NodeId id = end; id-- > first;) {
        const Node *node = graph_node(graph, id);
        if (node->op != OP_WRITE) continue;
        if (!votes.shape) {
            votes.shape = graph_type(graph, node->operands[0]);
            now = lane[id - first];
        }
        ask_readers(o, id, &votes);
        NodeId value = node->operands[0];
        if (value >= first) ask_product(o, id, lane[value - first], &votes);
    }
    for (NodeId id = first; id < end; id++)
        if (graph_node(graph, id)->op == OP_READ && !param_only[id]) ask_operand(o, id, &votes);
    int best = now ? type_find(votes.shape, now) : -1;
    if (best < 0 || !may_gain(o, &votes.shape->axis[best])) return;
    for (int i = 0; i < votes.shape->rank; i++)
        if (votes.weight[i] > votes.weight[best]) best = i;
    const char *name = votes.shape->axis[best].name;
    if (!has_other_lane(o, first, end, lane, name) || !pass_may_rewrite(o->context)) return;
    for (NodeId id = first; id < end; id++) {
        const Node *node = graph_node(graph, id);
        if (node->op == OP_WRITE && !sums_walk(graph, node->operands[0])) move_last(o, id, name);
    }
}

/* From the last kernel to the first, as the vectors of a kernel are along what it writes. */
Graph *pass_order_axes(PassContext *context, const Graph *graph)
{
    Rewriter r = rewriter_new(graph, context->arena);
    for (NodeId id = 0; id < graph->node_count; id++) rewriter_copy(&r, id);
    OrderAxes o = {.context = context, .graph = r.to};
    find_reads(&o);
    bool *fixed = graph_param_only(r.to, context->arena);
    for (uint32_t i = 0; i < graph->output_count; i++)
        fixed[rewriter_value(&r, graph->outputs[i].value)] = true;
    for (NodeId end = r.to->node_count; end > 0;) {
        NodeId first = end - 1;
        int kernel = graph_node(r.to, first)->kernel;
        while (kernel != NO_KERNEL && first > 0 && graph_node(r.to, first - 1)->kernel == kernel)
            first--;
        if (kernel != NO_KERNEL && is_free(&o, first, end, fixed))
            order_kernel(&o, first, end, fixed);
        end = first;
    }
    return rewriter_finish(&r);
}
