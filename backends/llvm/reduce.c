/* reduce.c: sums over whole axes: means and sums, and the statistics that normalisations and losses
 * take of whole groups. Every sum has one order: vectors one after the other, then their lanes by halves. */
#include "backends/llvm/emit.h"

#include <string.h>

/* One term of a sum at the present coordinates: `value`, or value * factor. */
typedef struct Term {
    LLVMValueRef value, factor;
} Term;

typedef struct Reduction Reduction;
struct Reduction {
    Nest nest;
    NodeId
        node; /* what the terms are of: a value that is summed, or the op whose statistics these are */
    Term (*term[2])(const Reduction *r, Lanes lanes); /* of two sums side by side, or of one */
    LLVMValueRef with[2];  /* of each lane: statistics that the terms need */
    bool greatest;         /* of the terms, not their sum */
    LLVMValueRef total[2]; /* stack slots of what there is so far */
    const char *lane;      /* axis of the vectors, */
    int width;             /* so wide */
    bool lane_is_summed;
};

static LLVMValueRef greater(Emitter *e, LLVMValueRef a, LLVMValueRef b)
{
    return LLVMBuildSelect(e->builder, LLVMBuildFCmp(e->builder, LLVMRealOGT, a, b, ""), a, b, "");
}

static LLVMValueRef neutral(const Reduction *r, int width)
{
    Emitter *e = r->nest.e;
    return r->greatest ? float_constant(e, -__builtin_inff(), width)
                       : LLVMConstNull(float_type(e, width));
}

/* Adds to the k-th sum; of a vector that is not whole, what `mask` says. */
static void add_term(const Reduction *r, int k, Lanes lanes, LLVMValueRef mask)
{
    Emitter *e = r->nest.e;
    Term term = r->term[k](r, lanes);
    LLVMValueRef total = LLVMBuildLoad2(e->builder, float_type(e, r->width), r->total[k], "");
    if (mask) {
        LLVMValueRef none = neutral(r, r->width);
        term.value = LLVMBuildSelect(e->builder, mask, term.value, none, "");
        if (term.factor) term.factor = LLVMBuildSelect(e->builder, mask, term.factor, none, "");
    }
    if (r->greatest)
        total = greater(e, term.value, total);
    else if (term.factor)
        total = multiply_add(e, term.value, term.factor, total);
    else
        total = LLVMBuildFAdd(e->builder, total, term.value, "");
    LLVMBuildStore(e->builder, total, r->total[k]);
}

static void reduce_leaf(Nest *nest)
{
    Reduction *r = (Reduction *)nest;
    Emitter *e = nest->e;
    int width = r->width;
    Lanes lanes = {r->lane, width, width};
    for (int i = 0; i < nest->count; i++)
        if (r->lane && strcmp(nest->dim[i].axis, r->lane) == 0)
            lanes.active = (int)nest->dim[i].count;
    LLVMValueRef mask = NULL;
    if (lanes.active < width) { /* the rest of the vector counts for nothing */
        LLVMValueRef keep[MAX_TILE];
        LLVMTypeRef i1 = LLVMInt1TypeInContext(e->context);
        for (int i = 0; i < width; i++) keep[i] = LLVMConstInt(i1, i < lanes.active, false);
        mask = LLVMConstVector(keep, (unsigned)width);
    }
    for (int k = 0; k < 2 && r->term[k]; k++) add_term(r, k, lanes, mask);
}

/* Halves are combined until one number is left: one fixed tree. */
static LLVMValueRef reduce_lanes(const Reduction *r, LLVMValueRef value, int width)
{
    Emitter *e = r->nest.e;
    for (int half = width / 2; half >= 1; half /= 2) {
        LLVMValueRef low[MAX_TILE], high[MAX_TILE];
        for (int i = 0; i < half; i++) {
            low[i] = LLVMConstInt(e->i32, (unsigned)i, false);
            high[i] = LLVMConstInt(e->i32, (unsigned)(i + half), false);
        }
        LLVMValueRef poison = LLVMGetPoison(LLVMTypeOf(value));
        LLVMValueRef a = LLVMBuildShuffleVector(e->builder, value, poison,
                                                LLVMConstVector(low, (unsigned)half), "");
        LLVMValueRef b = LLVMBuildShuffleVector(e->builder, value, poison,
                                                LLVMConstVector(high, (unsigned)half), "");
        value = r->greatest ? greater(e, a, b) : LLVMBuildFAdd(e->builder, a, b, "");
    }
    return width > 1 ? LLVMBuildExtractElement(e->builder, value, int_constant(e, 0), "") : value;
}

/* Over the axes `over` of `type` at the present coordinates: of each sum a number, or a vector where the lanes
 * are not summed. */
static void reduce(Reduction r, const Type *type, const AxisNames *over, Lanes lanes,
                   LLVMValueRef *sum)
{
    Emitter *e = r.nest.e;
    r.nest.leaf = reduce_leaf;
    r.lane = lanes.axis;
    r.lane_is_summed = lanes.axis && names_contain(over, lanes.axis);
    int width = r.width = lanes.width;
    for (int i = 0; i < 2; i++)
        if (r.with[i] && r.lane_is_summed) r.with[i] = splat(e, r.with[i], width);
    for (int k = 0; k < 2 && r.term[k]; k++) {
        r.total[k] = stack_slot(e, float_type(e, width));
        LLVMBuildStore(e->builder, neutral(&r, width), r.total[k]);
    }
    for (int i = 0; i < over->count; i++) {
        const Axis *axis = &type->axis[type_find(type, over->name[i])];
        bool is_lane = lanes.axis && strcmp(lanes.axis, axis->name) == 0;
        r.nest.dim[r.nest.count++] = unit_dim(e, axis, is_lane ? width : 1);
    }
    if (lanes.axis && !r.lane_is_summed) {
        /* The caller walks the lanes: the nest only sums. */
        r.nest.dim[r.nest.count++] =
            (Dim){lanes.axis, *coordinate_of(e, lanes.axis), lanes.active, lanes.active, {0}, 0};
    }
    emit_nest(&r.nest, 0);
    for (int k = 0; k < 2 && r.term[k]; k++) {
        sum[k] = LLVMBuildLoad2(e->builder, float_type(e, width), r.total[k], "");
        if (r.lane_is_summed) sum[k] = reduce_lanes(&r, sum[k], width);
    }
}

static int64_t count_over(const Type *type, const AxisNames *over)
{
    int64_t count = 1;
    for (int i = 0; i < over->count; i++)
        count *= type->axis[type_find(type, over->name[i])].extent;
    return count;
}

static LLVMValueRef operand_value(const Reduction *r, uint32_t operand, Lanes lanes)
{
    return emit_value(r->nest.e, graph_node(r->nest.e->graph, r->node)->operands[operand], lanes);
}

/* ---- statistics of a normalisation ----------------------------------------------------------- */

/* What the statistics of one node are computed with. */
typedef struct Grouping {
    Emitter *e;
    NodeId id;
    const Node *node;
    const Type *type; /* of its first operand */
    Lanes in, out;    /* of the elements of a group, and of the groups */
} Grouping;

typedef Term TermFunction(const Reduction *, Lanes);

static LLVMValueRef group_sum(const Grouping *g, TermFunction *term, LLVMValueRef with,
                              bool greatest)
{
    LLVMValueRef sum;
    Reduction r = {
        .nest = {.e = g->e}, .node = g->id, .term = {term}, .with = {with}, .greatest = greatest};
    reduce(r, g->type, &g->node->attributes.over, g->in, &sum);
    return sum;
}

/* The means of two terms, or of one where the second is NULL, which need the mean and the factor of the group, or NULL. */
static void group_means(const Grouping *g, TermFunction *first, TermFunction *second,
                        LLVMValueRef mean, LLVMValueRef factor, LLVMValueRef *result)
{
    int64_t count = count_over(g->type, &g->node->attributes.over);
    LLVMValueRef inverse = float_constant(g->e, (float)(1.0 / (double)count), g->out.width);
    Reduction r = {
        .nest = {.e = g->e}, .node = g->id, .term = {first, second}, .with = {mean, factor}};
    reduce(r, g->type, &g->node->attributes.over, g->in, result);
    for (int k = 0; k < 2 && r.term[k]; k++)
        result[k] = LLVMBuildFMul(g->e->builder, result[k], inverse, "");
}

static void store_statistic(const Grouping *g, const Slot *slot, LLVMValueRef value)
{
    Affine at = slot_offset(g->e, slot);
    store_lanes(g->e, value, g->e->scratch, &at, &g->out, true);
}

static Term x_term(const Reduction *r, Lanes lanes)
{
    return (Term){operand_value(r, 0, lanes), NULL};
}

/* with: the mean */
static Term square_term(const Reduction *r, Lanes lanes)
{
    LLVMValueRef x = operand_value(r, 0, lanes);
    LLVMValueRef difference = LLVMBuildFSub(r->nest.e->builder, x, r->with[0], "");
    return (Term){difference, difference};
}

/* g = dy * scale */
static Term g_term(const Reduction *r, Lanes lanes)
{
    return (Term){operand_value(r, 2, lanes), operand_value(r, 1, lanes)};
}

/* g * n; with: the mean and the factor */
static Term product_term(const Reduction *r, Lanes lanes)
{
    LLVMBuilderRef b = r->nest.e->builder;
    Term g = g_term(r, lanes);
    LLVMValueRef n = LLVMBuildFSub(b, operand_value(r, 0, lanes), r->with[0], "");
    n = LLVMBuildFMul(b, n, r->with[1], "");
    return (Term){LLVMBuildFMul(b, g.value, g.factor, ""), n};
}

/* Where another has computed mean and factor: what a gradient needs beside them. */
static void emit_gradient_moments(const Grouping *g)
{
    Emitter *e = g->e;
    const Place *place = schedule_place(&e->schedule, g->id);
    LLVMValueRef mean = load_slot(e, &place->mean, g->out),
                 rstd = load_slot(e, &place->rstd, g->out), moments[2];
    group_means(g, g_term, product_term, mean, rstd, moments);
    store_statistic(g, &place->first, moments[0]);
    store_statistic(g, &place->second, moments[1]);
}

/* Two passes: the mean, then the squared distances from it. Of a gradient g goes with the first, and g * n has a third: without
 * its factor n could be too large to be multiplied. */
static void emit_moments(const Grouping *g)
{
    Emitter *e = g->e;
    const Place *place = schedule_place(&e->schedule, g->id);
    bool gradient = g->node->op == OP_LAYERNORM_GRAD;
    LLVMValueRef mean[2], variance, product;
    if (place->shared) {
        emit_gradient_moments(g);
        return;
    }
    group_means(g, x_term, gradient ? g_term : NULL, NULL, NULL, mean);
    group_means(g, square_term, NULL, mean[0], NULL, &variance);
    LLVMValueRef eps = float_constant(e, (float)g->node->attributes.eps, g->out.width);
    variance = LLVMBuildFAdd(e->builder, variance, eps, "");
    LLVMValueRef root = intrinsic(e, "llvm.sqrt", &variance, 1);
    LLVMValueRef rstd = LLVMBuildFDiv(e->builder, float_constant(e, 1, g->out.width), root, "");
    store_statistic(g, &place->mean, mean[0]);
    store_statistic(g, &place->rstd, rstd);
    if (!gradient) return;
    group_means(g, product_term, NULL, mean[0], rstd, &product);
    store_statistic(g, &place->first, mean[1]);
    store_statistic(g, &place->second, product);
}

/* ---- statistics of a loss --------------------------------------------------------------------- */

/* with: the greatest */
static Term exp_term(const Reduction *r, Lanes lanes)
{
    Emitter *e = r->nest.e;
    LLVMValueRef x = LLVMBuildFSub(e->builder, operand_value(r, 0, lanes), r->with[0], "");
    return (Term){emit_exp(e, x, lanes.width), NULL};
}

static Term target_term(const Reduction *r, Lanes lanes)
{
    return (Term){operand_value(r, 1, lanes), NULL};
}

/* with: the logarithm */
static Term loss_term(const Reduction *r, Lanes lanes)
{
    LLVMValueRef x = operand_value(r, 0, lanes);
    return (Term){LLVMBuildFSub(r->nest.e->builder, r->with[0], x, ""), operand_value(r, 1, lanes)};
}

static void emit_logarithm(const Grouping *g)
{
    Emitter *e = g->e;
    const Place *place = schedule_place(&e->schedule, g->id);
    LLVMValueRef most = group_sum(g, x_term, NULL, true);
    LLVMValueRef sum = group_sum(g, exp_term, most, false);
    LLVMValueRef log = LLVMBuildFAdd(e->builder, most, emit_log(e, sum, g->out.width), "");
    store_statistic(g, &place->first, log);
    bool loss = g->node->op == OP_CROSS_ENTROPY;
    store_statistic(g, &place->second, group_sum(g, loss ? loss_term : target_term, log, false));
}

/* ---- stages ----------------------------------------------------------------------------------- */

static void statistics_leaf(Nest *nest)
{
    Emitter *e = nest->e;
    NodeId id = nest->stage->root;
    Grouping g = {.e = e, .id = id, .node = graph_node(e->graph, id)};
    g.type = graph_type(e->graph, g.node->operands[0]);
    const char *lane = schedule_lane(&e->schedule, id);
    bool summed = lane && names_contain(&g.node->attributes.over, lane);
    g.out = summed ? (Lanes){NULL, 1, 1} : leaf_lanes(nest, lane);
    g.in = summed ? tile_lanes(e, lane, e->target->vector_floats) : g.out;
    bool normal = schedule_place(&e->schedule, id)->rstd.elements > 0;
    (normal ? emit_moments : emit_logarithm)(&g);
}

void emit_statistics(Emitter *e, const Stage *stage)
{
    Nest nest = {.e = e, .stage = stage, .leaf = statistics_leaf};
    const Node *node = graph_node(e->graph, stage->root);
    add_dims(&nest, graph_type(e->graph, node->operands[0]), &node->attributes.over,
             schedule_lane(&e->schedule, stage->root));
    emit_nest(&nest, 0);
}

static Term value_term(const Reduction *r, Lanes lanes)
{
    return (Term){emit_value(r->nest.e, r->node, lanes), NULL};
}

static void reduction_leaf(Nest *nest)
{
    Emitter *e = nest->e;
    NodeId root = nest->stage->root, end = nest->stage->end;
    const Node *node = graph_node(e->graph, root);
    const Type *x = graph_type(e->graph, node->operands[0]);
    Lanes lanes = leaf_lanes(nest, schedule_lane(&e->schedule, root));
    if (lanes.active > lanes.width) { /* several vectors as one */
        int vector = lanes.width;
        lanes.width = (lanes.active + vector - 1) / vector * vector;
    }
    Reduction r = {.nest = {.e = e}, .node = node->operands[0], .term = {value_term}};
    const char *lane = schedule_lane(&e->schedule, root);
    bool summed = lane && names_contain(&node->attributes.over, lane);
    LLVMValueRef sum;
    reduce(r, x, &node->attributes.over,
           summed ? tile_lanes(e, lane, e->target->vector_floats) : lanes, &sum);
    if (node->op == OP_MEAN) {
        float inverse = (float)(1.0 / (double)count_over(x, &node->attributes.over));
        sum = LLVMBuildFMul(e->builder, sum, float_constant(e, inverse, lanes.width), "");
    }
    e->computed[root - e->schedule.first] = sum;
    Slot slot = schedule_place(&e->schedule, end)->value;
    if (end != root) {
        schedule_place(&e->schedule, end)->value.elements = 0;
        LLVMValueRef value = emit_value(e, end, lanes);
        schedule_place(&e->schedule, end)->value = slot;
        e->computed[end - e->schedule.first] = value;
    }
    store_end(e, nest->stage, lanes);
    e->computed[root - e->schedule.first] = e->computed[end - e->schedule.first] = NULL;
}

/* A sum walks much memory, or looks much up for each of its few terms: it takes as many lanes along as registers
 * hold, 1, 2, 4 or 8 vectors of `extent` lanes, in what is left at the end, too: LLVM keeps three vectors
 * that are one from turn to turn of a loop as so many numbers. */
static int64_t lanes_together(const Emitter *e, int64_t extent)
{
    enum { VECTORS = 8 };
    int64_t width = e->target->vector_floats, most = VECTORS * width;
    if (most > MAX_TILE) most = MAX_TILE;
    for (; most > width; most /= 2) {
        int64_t left = (extent % most + width - 1) / width;
        if (extent >= most && (left & (left - 1)) == 0) break;
    }
    return most;
}

void emit_reduction(Emitter *e, const Stage *stage)
{
    Nest nest = {.e = e, .stage = stage, .leaf = reduction_leaf};
    const char *lane = schedule_lane(&e->schedule, stage->root);
    add_dims(&nest, graph_type(e->graph, stage->root), NULL, lane);
    for (int i = 0; i < nest.count; i++)
        if (lane && strcmp(nest.dim[i].axis, lane) == 0 &&
            graph_node(e->graph, stage->root)->op == OP_SUM)
            nest.dim[i].tile = lanes_together(e, nest.dim[i].extent);
    emit_nest(&nest, 0);
}
