/* fuse_gradients.c
 *
 * Makes one kernel of all gradients of an MLP: of what it took and, on the way, of its weights. So the gradient of the hidden
 * values is not stored, nor do other kernels read it, the hidden values and what went in once more; the forward need not store
 * what LayerNorm gave. Each unit walks along an axis of pixels and adds up what every step gives to the gradients of weights.
 *
 *   before  %3 = gelu_grad %1, %2; %4 = linear %3, @w over (k); %5 = layernorm_grad %0, @scale, %4 over (c); ..
 *           %7 = linear %3, %6 over (b, h, w) : f32[k 256, c 64]; %9 = linear %8, %gelu over (b, h, w); %10 = sum %3 over (b, h, w)
 *   after   kernel for (b, h_part 4) walk h_in by 1 {
 *             %3 = gelu_grad .. : f32[b, h_part 4, h_in 14, w 56, k 256]; ..; %6 = layernorm %0, ..
 *             %7 = linear %3, %6 over (h_in, w) : f32[b, h_part 4, k 256, c 64]; ..; %10 = sum %3 over (w)
 *             ..
 *           }
 *           sum %7 over (b, h_part); ..; sum %10 over (b, h_part, h_in)
 *
 * Only where weights and their gradients stay in the L2 cache beside what a unit keeps, and sums of a part are little beside
 * what is no longer moved. Not for machines that stage operands.
 *
 * needs: nothing.  keeps: kernels that are there.  breaks: nothing, but sums are taken in another order.
 */
#include "passes/kernels.h"
#include "passes/products.h"

#include <string.h>

/* What is made of a node of the chain. */
typedef enum {
    NOT_IN_CHAIN,
    MEMBER,
    FIRST_WEIGHTS,
    SECOND_WEIGHTS,
    BIAS,
    SUM_OF_ROWS, /* of a member, over all rows */
    WRITE_OF     /* of what one of the above gives */
} Role;

typedef struct Gradients {
    NodeId before; /* values that the GELU was taken of */
    NodeId dy, hidden, norm_grad, first_weights, second_weights, bias;
    NodeId members[MOST_GRADIENTS];
    int member_count;
    char walk[NAME_SIZE];  /* axis, cut into */
    int64_t parts, extent; /* so many parts of so many indices; 1: it stays as it is */
    char part[NAME_SIZE], in[NAME_SIZE];
    NodeId own_gelu, own_norm; /* in the new graph, when they are there */
    NodeId *made;              /* what goes into the kernel */
    uint32_t made_count, made_capacity;
} Gradients;

typedef struct Fuse {
    PassContext *context;
    Draft from; /* of the old graph, for what is free and used how often */
    Rewriter r;
    Gradients *list;
    uint32_t count, capacity;
    Role *role;     /* of each node of the old graph, */
    int *chain;     /* the number of its chain, */
    NodeId *inside; /* and its value in the new one, with the axis cut; */
    NodeId *read;   /* or, for chain `reader`, that of another node, read so */
    int *reader;    /* (0: none) */
} Fuse;

static bool missed(const Fuse *f, const Gradients *c, const char *why)
{
    pass_missed(f->context, f->from.graph, c->hidden, c->hidden, "fuse_gradients", why);
    return false;
}

/* ---- finding ----------------------------------------------------------------------------------- */

/* The product over the batch of `x` and the `op` of `operand`. */
static NodeId find_weights(const Fuse *f, NodeId x, Op op, NodeId operand)
{
    const Graph *g = f->from.graph;
    for (NodeId id = x + 1; id < g->node_count; id++) {
        const Node *node = graph_node(g, id);
        if (node->op != OP_LINEAR || node->operands[0] != x || !draft_free(&f->from, id) ||
            !sums_over_batch(g, id) || f->role[id] != NOT_IN_CHAIN)
            continue;
        const Node *w = graph_node(g, node->operands[1]);
        if (w->op == op && w->operands[0] == operand) return id;
    }
    return NO_NODE;
}

/* The product or sum that takes `x` first, over the batch or not, and is in no chain; or NO_NODE. */
static NodeId find_taker(const Fuse *f, NodeId x, Op op, bool over_batch)
{
    const Graph *g = f->from.graph;
    for (NodeId id = x + 1; id < g->node_count; id++) {
        const Node *node = graph_node(g, id);
        if (node->op == op && node->operands[0] == x && sums_over_batch(g, id) == over_batch &&
            draft_free(&f->from, id) && f->role[id] == NOT_IN_CHAIN)
            return id;
    }
    return NO_NODE;
}

static bool mixes(const Fuse *f, const Gradients *c, const char *axis)
{
    const Graph *g = f->from.graph;
    for (int i = 0; i < c->member_count; i++)
        if (node_mixes(g, graph_node(g, c->members[i]), axis)) return true;
    return false;
}

/* Elements of an image. */
static int64_t elements_of(const Fuse *f, NodeId id)
{
    return type_elements(graph_type(f->from.graph, id), NULL);
}

/* Into how many parts the walk is cut: threads share them out. 0: the sums of one would be much beside what need not be moved. */
static int64_t count_parts(const Fuse *f, const Gradients *c, int64_t extent)
{
    enum { MOST_PARTS = 4, LITTLE = 8, LEAST = 2 };
    int64_t weights = elements_of(f, c->first_weights) + elements_of(f, c->second_weights);
    int64_t spared = 3 * elements_of(f, c->hidden) + 2 * elements_of(f, c->dy);
    for (int64_t parts = MOST_PARTS; parts > 0; parts--)
        if (extent % parts == 0 && parts * 2 * weights * (parts > 1 ? LITTLE : LEAST) <= spared)
            return parts;
    return 0;
}

static bool name_parts(const Fuse *f, Gradients *c)
{
    const Graph *g = f->from.graph;
    memcpy(c->in, c->walk, NAME_SIZE);
    if (c->parts == 1) return true;
    bool fits = snprintf(c->part, NAME_SIZE, "%s_part", c->walk) < NAME_SIZE &&
                snprintf(c->in, NAME_SIZE, "%s_in", c->walk) < NAME_SIZE;
    for (int i = 0; i <= c->member_count; i++) {
        const Type *type = graph_type(g, i < c->member_count ? c->members[i] : c->dy);
        fits &= type->rank < MAX_AXES && type_find(type, c->part) < 0 && type_find(type, c->in) < 0;
    }
    return fits;
}

/* The outermost axis that no member mixes. */
static bool choose_walk(const Fuse *f, Gradients *c)
{
    const Type *hidden = graph_type(f->from.graph, c->hidden);
    for (int i = 0; i < hidden->rank; i++) {
        const Axis *axis = &hidden->axis[i];
        if (axis->symbol[0] || mixes(f, c, axis->name)) continue;
        memcpy(c->walk, axis->name, NAME_SIZE);
        c->parts = count_parts(f, c, axis->extent);
        c->extent = c->parts ? axis->extent / c->parts : 0;
        if (c->parts == 0)
            return missed(f, c, "sums of so few positions are as much to move as they spare");
        return name_parts(f, c);
    }
    return missed(f, c, "all axes are mixed");
}

/* Do weights and their gradients stay in the L2 cache, beside all that a unit keeps and takes? With more than a quarter nothing was
 * gained (bench/results/kernels-2026-11-28.md). */
static bool stays_in_cache(const Fuse *f, const Gradients *c)
{
    int64_t weights = elements_of(f, c->first_weights) + elements_of(f, c->second_weights);
    return 2 * weights * (int64_t)sizeof(float) <= f->context->target->l2_bytes / 4;
}

/* Does the sum, if there is one, take all along the walk? */
static bool sums_along(const Fuse *f, const Gradients *c, NodeId id)
{
    return id == NO_NODE || names_contain(&graph_node(f->from.graph, id)->attributes.over, c->walk);
}

/* The chain whose hidden values have gradient `id`. */
static bool find_chain(const Fuse *f, NodeId id, Gradients *c)
{
    const Graph *g = f->from.graph;
    *c = (Gradients){.hidden = id, .own_gelu = NO_NODE, .own_norm = NO_NODE};
    const Node *hidden = graph_node(g, id);
    if (hidden->op != OP_GELU_GRAD || !draft_free(&f->from, id)) return false;
    NodeId first = hidden->operands[1], second = find_taker(f, id, OP_LINEAR, false);
    if (!draft_is_link(&f->from, first, OP_LINEAR) || sums_over_batch(g, first) ||
        second == NO_NODE)
        return false;
    c->before = hidden->operands[0];
    c->dy = graph_node(g, first)->operands[0];
    const NodeId products[] = {first, id, second};
    memcpy(c->members, products, sizeof products);
    c->member_count = 3 + add_norm_gradients(&f->from, second, c->members + 3);
    for (int i = 3; i < c->member_count; i++)
        if (graph_node(g, c->members[i])->op == OP_LAYERNORM_GRAD) c->norm_grad = c->members[i];
    if (c->member_count == 3) return false;
    c->first_weights = find_weights(f, id, OP_LAYERNORM, graph_node(g, c->norm_grad)->operands[0]);
    c->second_weights = find_weights(f, c->dy, OP_GELU, c->before);
    if (c->first_weights == NO_NODE || c->second_weights == NO_NODE) return false;
    c->bias = find_taker(f, id, OP_SUM, true);
    if (!stays_in_cache(f, c))
        return missed(f, c, "weights and their gradients would leave the cache");
    return choose_walk(f, c) && sums_along(f, c, c->first_weights) &&
           sums_along(f, c, c->second_weights) && sums_along(f, c, c->bias);
}

/* Is the node in the chain, but not its members: does it sum the rows of one, or write what one gives? */
static Role role_of_user(const Fuse *f, const Gradients *c, NodeId id)
{
    const Graph *g = f->from.graph;
    const Node *node = graph_node(g, id);
    if (node->operand_count == 0 || !draft_free(&f->from, id)) return NOT_IN_CHAIN;
    NodeId operand = node->operands[0];
    Role of = f->role[operand];
    if (of == NOT_IN_CHAIN || &f->list[f->chain[operand]] != c) return NOT_IN_CHAIN;
    if (node->op == OP_SUM && of == MEMBER && sums_over_batch(g, id) &&
        names_contain(&node->attributes.over, c->walk))
        return SUM_OF_ROWS;
    return node->op == OP_WRITE && f->from.uses[operand] == 1 ? WRITE_OF : NOT_IN_CHAIN;
}

static void set_role(Fuse *f, NodeId id, Role role)
{
    if (id == NO_NODE) return;
    f->role[id] = role;
    f->chain[id] = (int)f->count - 1;
}

static void add_chain(Fuse *f, const Gradients *found)
{
    Gradients *c = ARENA_PUSH(f->context->arena, f->list, f->count, f->capacity);
    *c = *found;
    for (int i = 0; i < c->member_count; i++) set_role(f, c->members[i], MEMBER);
    set_role(f, c->first_weights, FIRST_WEIGHTS);
    set_role(f, c->second_weights, SECOND_WEIGHTS);
    set_role(f, c->bias, BIAS);
    for (NodeId id = 0; id < f->from.graph->node_count; id++)
        if (f->role[id] == NOT_IN_CHAIN) {
            Role role = role_of_user(f, c, id);
            if (role != NOT_IN_CHAIN) set_role(f, id, role);
        }
}

/* ---- the axis cut ------------------------------------------------------------------------------ */

static Type cut_type(const Gradients *c, const Type *type)
{
    Type cut = {.dtype = type->dtype};
    for (int i = 0; i < type->rank; i++) {
        if (c->parts == 1 || strcmp(type->axis[i].name, c->walk) != 0) {
            type_append(&cut, &type->axis[i]);
            continue;
        }
        Axis part = axis_constant(c->part, c->parts), in = axis_constant(c->in, c->extent);
        type_append(&cut, &part);
        type_append(&cut, &in);
    }
    return cut;
}

/* A map of the indices of `from` as one of those of `to`, the same with the axis cut, in any order. */
static Map cut_map(const Gradients *c, const Map *map, const Type *from, const Type *to)
{
    Map cut = {.rank = map->rank};
    for (int d = 0; d < map->rank; d++) {
        cut.dim[d].offset = map->dim[d].offset;
        for (int i = 0; i < from->rank; i++) {
            int64_t step = map->dim[d].coefficient[i];
            int at = type_find(to, from->axis[i].name);
            if (at >= 0) {
                cut.dim[d].coefficient[at] = step;
                continue;
            }
            cut.dim[d].coefficient[type_find(to, c->part)] = step * c->extent;
            cut.dim[d].coefficient[type_find(to, c->in)] = step;
        }
    }
    return cut;
}

static bool is_batch(const Fuse *f, const Gradients *c, const char *axis)
{
    const Type *hidden = graph_type(f->from.graph, c->hidden);
    int at = type_find(hidden, axis);
    return at >= 0 && hidden->axis[at].symbol[0];
}

/* The names in a list of axes, with the axis cut, with the batch and the parts or without. */
static const char *names_after(Fuse *f, const Gradients *c, const AxisNames *over, bool batch)
{
    Text text = text_new(f->context->arena);
    for (int i = 0; i < over->count; i++) {
        if (is_batch(f, c, over->name[i]) && !batch) continue;
        bool walked = c->parts > 1 && strcmp(over->name[i], c->walk) == 0;
        if (walked && batch) text_printf(&text, "%s ", c->part);
        text_printf(&text, "%s ", walked ? c->in : over->name[i]);
    }
    return text.data;
}

/* ---- rewriting --------------------------------------------------------------------------------- */

static NodeId add_made(Fuse *f, Gradients *c, NodeId made)
{
    *ARENA_PUSH(f->context->arena, c->made, c->made_count, c->made_capacity) = made;
    return made;
}

/* A value of the old graph as the kernel takes it: a member's, or a read. */
static NodeId cut_value(Fuse *f, const Gradients *c, NodeId id)
{
    if (f->role[id] == MEMBER && &f->list[f->chain[id]] == c) return f->inside[id];
    NodeId value = rewriter_value(&f->r, id);
    const Type *type = graph_type(f->from.graph, id);
    if (c->parts == 1 || type_find(type, c->walk) < 0) return value;
    int chain = (int)(c - f->list) + 1;
    if (f->reader[id] == chain) return f->read[id];
    Type cut = cut_type(c, type);
    Map plain = map_identity(type, type), map = cut_map(c, &plain, type, &cut);
    const Node *read = graph_node(f->r.to, value);
    if (read->op == OP_READ && read->kernel == NO_KERNEL) {
        map = map_compose(&read->attributes.map, &map, cut.rank);
        value = read->operands[0];
    }
    f->reader[id] = chain;
    return f->read[id] = build_read(f->r.to, value, &map, &cut, graph_node(f->from.graph, id)->loc);
}

/* The node again, of values with the axis cut. */
static NodeId copy_cut(Fuse *f, Gradients *c, NodeId id)
{
    const Node *node = graph_node(f->from.graph, id);
    NodeId operands[4];
    RAFTC_ASSERT(node->operand_count <= ARRAY_SIZE(operands));
    for (uint32_t i = 0; i < node->operand_count; i++)
        operands[i] = cut_value(f, c, node->operands[i]);
    Type type = cut_type(c, &node->type);
    return add_made(f, c,
                    graph_add(f->r.to, node->op, operands, node->operand_count, &type,
                              &node->attributes, node->loc));
}

/* A copy of the kernel's own, if there is none yet. */
static NodeId own_copy(Fuse *f, Gradients *c, NodeId id, NodeId *own)
{
    if (*own == NO_NODE) *own = copy_cut(f, c, id);
    return *own;
}

/* The axes of a gradient of weights: those of the hidden values last, if the vectors of both operands run along what is summed. */
static Type order_weights(const Fuse *f, const Gradients *c, const Node *node)
{
    const Graph *g = f->from.graph;
    const Type *hidden = graph_type(g, c->hidden), *norm = graph_type(g, c->norm_grad);
    if (!names_contain(&node->attributes.over, norm->axis[norm->rank - 1].name)) return node->type;
    Type type = {.dtype = node->type.dtype};
    for (int of_hidden = 0; of_hidden < 2; of_hidden++)
        for (int i = 0; i < node->type.rank; i++)
            if ((type_find(hidden, node->type.axis[i].name) >= 0) == of_hidden)
                type_append(&type, &node->type.axis[i]);
    return type;
}

/* The sum over all images and parts of what a unit has summed, as the axes of the old node were ordered; inside[id]: as they are. */
static void sum_parts(Fuse *f, NodeId id, NodeId partial, const char *names)
{
    const Node *node = graph_node(f->from.graph, id);
    NodeId sum = build_reduction(f->r.to, OP_SUM, partial, names, node->loc);
    f->inside[id] = f->r.renamed[id] = sum;
    if (type_equal(graph_type(f->r.to, sum), &node->type)) return;
    Map map = map_identity(graph_type(f->r.to, sum), &node->type);
    f->r.renamed[id] = build_read(f->r.to, sum, &map, &node->type, node->loc);
}

static void add_weights(Fuse *f, Gradients *c, NodeId id, NodeId x, NodeId w)
{
    const Node *node = graph_node(f->from.graph, id);
    Graph *to = f->r.to;
    NodeId partial =
        add_made(f, c,
                 build_linear(to, x, w, NO_NODE, names_after(f, c, &node->attributes.over, false),
                              node->loc));
    Type order = order_weights(f, c, node), type = {.dtype = order.dtype};
    const Type *given = graph_type(to, partial);
    Text names = text_new(f->context->arena);
    for (int i = 0; i < given->rank; i++) {
        if (type_find(&order, given->axis[i].name) >= 0) continue;
        type_append(&type, &given->axis[i]);
        text_printf(&names, "%s ", given->axis[i].name);
    }
    for (int i = 0; i < order.rank; i++) type_append(&type, &order.axis[i]);
    graph_node(to, partial)->type = type;
    sum_parts(f, id, partial, names.data);
}

/* Row by row first: a row are the axes that the batch and the walk leave. */
static void add_bias(Fuse *f, Gradients *c, NodeId id)
{
    NodeId x = f->inside[c->hidden];
    const Node *node = graph_node(f->from.graph, id);
    AxisNames row = {0}, others = {0};
    for (int i = 0; i < node->attributes.over.count; i++) {
        const char *name = node->attributes.over.name[i];
        bool of_row = strcmp(name, c->walk) != 0 && !is_batch(f, c, name);
        AxisNames *to = of_row ? &row : &others;
        strcpy(to->name[to->count++], name);
    }
    if (row.count > 0)
        x = add_made(
            f, c, build_reduction(f->r.to, OP_SUM, x, names_after(f, c, &row, false), node->loc));
    sum_parts(f, id, x, names_after(f, c, &others, true));
}

/* Is the value of a member taken by what is not in its chain? */
static bool is_used_outside(const Fuse *f, NodeId id)
{
    const Graph *g = f->from.graph;
    for (uint32_t i = 0; i < g->output_count; i++)
        if (g->outputs[i].value == id) return true;
    for (NodeId user = id + 1; user < g->node_count; user++) {
        if (f->role[user] != NOT_IN_CHAIN && f->chain[user] == f->chain[id]) continue;
        for (uint32_t i = 0; i < graph_node(g, user)->operand_count; i++)
            if (graph_node(g, user)->operands[i] == id) return true;
    }
    return false;
}

static void add_member(Fuse *f, Gradients *c, NodeId id)
{
    const Type *type = graph_type(f->from.graph, id);
    NodeId made = f->inside[id] = f->r.renamed[id] = copy_cut(f, c, id);
    if (c->parts == 1 || type_find(type, c->walk) < 0 || !is_used_outside(f, id)) return;
    Map plain = map_identity(type, type), map = cut_map(c, &plain, type, graph_type(f->r.to, made));
    f->r.renamed[id] =
        add_made(f, c, build_write(f->r.to, made, &map, type, graph_node(f->from.graph, id)->loc));
}

static void add_write(Fuse *f, Gradients *c, NodeId id)
{
    const Node *node = graph_node(f->from.graph, id);
    NodeId operand = node->operands[0], value = f->inside[operand];
    Map map = cut_map(c, &node->attributes.map, graph_type(f->from.graph, operand),
                      graph_type(f->r.to, value));
    NodeId write = build_write(f->r.to, value, &map, &node->type, node->loc);
    graph_node(f->r.to, write)->layout = node->layout;
    if (f->role[operand] == MEMBER) add_made(f, c, write);
    f->r.renamed[id] = write;
}

/* Is the gradient of the second weights made after that of the hidden values, which takes the same from memory? So it can be,
 * unless it is used before. */
static bool is_late(const Fuse *f, const Gradients *c)
{
    const Graph *g = f->from.graph;
    for (NodeId user = c->second_weights + 1; user < c->hidden; user++)
        for (uint32_t i = 0; i < graph_node(g, user)->operand_count; i++)
            if (graph_node(g, user)->operands[i] == c->second_weights) return false;
    return c->second_weights < c->hidden;
}

static NodeId own_gelu(Fuse *f, Gradients *c)
{
    const Node *weights = graph_node(f->from.graph, c->second_weights);
    return own_copy(f, c, weights->operands[1], &c->own_gelu);
}

static void add_second_weights(Fuse *f, Gradients *c)
{
    add_weights(f, c, c->second_weights, cut_value(f, c, c->dy), own_gelu(f, c));
}

static void add_node(Fuse *f, NodeId id)
{
    const Graph *g = f->from.graph;
    const Node *node = graph_node(g, id);
    Gradients *c = f->role[id] == NOT_IN_CHAIN ? NULL : &f->list[f->chain[id]];
    switch (f->role[id]) {
    case NOT_IN_CHAIN:
        rewriter_copy(&f->r, id);
        break;
    case MEMBER:
        if (id == c->hidden) own_gelu(f, c); /* before it: the vectors of both are its own */
        add_member(f, c, id);
        if (id == c->hidden && is_late(f, c)) add_second_weights(f, c);
        break;
    case FIRST_WEIGHTS:
        add_weights(f, c, id, f->inside[c->hidden],
                    own_copy(f, c, node->operands[1], &c->own_norm));
        break;
    case SECOND_WEIGHTS:
        if (!is_late(f, c)) add_second_weights(f, c);
        break;
    case BIAS:
        add_bias(f, c, id);
        break;
    case SUM_OF_ROWS:
        sum_parts(f, id, f->inside[node->operands[0]],
                  names_after(f, c, &node->attributes.over, true));
        break;
    case WRITE_OF:
        add_write(f, c, id);
        break;
    }
}

/* In one kernel? Not if what it takes from outside were made of what it gives. */
static bool may_fuse(Fuse *f, const Gradients *c)
{
    NodeId all[MOST_GRADIENTS + 3];
    int count = c->member_count;
    memcpy(all, c->members, sizeof c->members);
    all[count++] = c->first_weights;
    all[count++] = c->second_weights;
    all[count++] = c->bias;
    if (makes_circle(f->context->arena, f->from.graph, all, count))
        return missed(f, c, "what it takes is made of what it gives");
    if (!gradients_stay_in_cache(f->context->target, f->from.graph, c->members, c->member_count))
        return missed(f, c, "a unit would leave the cache");
    return pass_may_rewrite(f->context);
}

Graph *pass_fuse_gradients(PassContext *context, const Graph *graph)
{
    if (context->target->stages_operands) return (Graph *)graph;
    Fuse f = {.context = context,
              .from = draft_new(context->arena, graph),
              .r = rewriter_new(graph, context->arena)};
    f.role = arena_array(context->arena, graph->node_count, sizeof *f.role);
    f.chain = arena_array(context->arena, graph->node_count, sizeof *f.chain);
    f.inside = arena_array(context->arena, graph->node_count, sizeof *f.inside);
    f.read = arena_array(context->arena, graph->node_count, sizeof *f.read);
    f.reader = arena_array(context->arena, graph->node_count, sizeof *f.reader);
    for (NodeId id = 0; id < graph->node_count; id++) {
        Gradients found;
        if (find_chain(&f, id, &found) && may_fuse(&f, &found)) add_chain(&f, &found);
    }
    for (NodeId id = 0; id < graph->node_count; id++) add_node(&f, id);
    rewriter_copy_outputs(&f.r);
    Draft draft = draft_new(context->arena, f.r.to);
    for (uint32_t i = 0; i < f.count; i++) {
        draft.walk[draft.count] = f.list[i].in;
        draft_add(&draft, f.list[i].made, (int)f.list[i].made_count);
    }
    return draft_finish(context, &draft);
}
