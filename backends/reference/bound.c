/* bound.c: for every op, how far an f32 evaluation may be from the exact value of each element; the ops
 * that training alone has are in bound_training.c.
 *
 * Higham, Accuracy and Stability of Numerical Algorithms, chapters 2 to 4. With u = 2^-24, a term
 * that passes through n roundings, in any order, is off by a factor of at most 1 + gamma(n), where
 * gamma(n) = n u / (1 - n u). An operand x with error bound e is anything within |x| + e. So a sum
 * of products x w is off by at most
 *     (1 + gamma) * sum of (|x| + ex) (|w| + ew)  -  sum of |x| |w|
 * and by FLT_MIN for each rounding, should it underflow. The double arithmetic that computes this
 * errs by less than the one rounding that every gamma has to spare.
 */
#include "backends/reference/bound.h"

#include <stdlib.h>

/* ---- exact ops ------------------------------------------------------------------------------ */

/* The caller's tensors are exact in f32: their bounds stay zero. */
bool bound_INPUT(const Run *run, NodeId id)
{
    (void)run, (void)id;
    return true;
}

bool bound_PARAM(const Run *run, NodeId id)
{
    (void)run, (void)id;
    return true;
}

/* Errors move with their elements. */
static bool move_bounds(const Run *run, NodeId id)
{
    Run moved = *run;
    moved.values = run->bounds;
    return op_reference[run_node(run, id)->op].f64(&moved, id);
}

bool bound_REARRANGE(const Run *run, NodeId id)
{
    return move_bounds(run, id);
}

bool bound_UNFOLD(const Run *run, NodeId id)
{
    return move_bounds(run, id);
}

bool bound_SLICE(const Run *run, NodeId id)
{
    return move_bounds(run, id);
}

bool bound_CONCAT(const Run *run, NodeId id)
{
    return move_bounds(run, id);
}

bool bound_READ(const Run *run, NodeId id)
{
    return move_bounds(run, id);
}

bool bound_WRITE(const Run *run, NodeId id)
{
    return move_bounds(run, id);
}

bool bound_PACK(const Run *run, NodeId id)
{
    return move_bounds(run, id);
}

/* ---- arithmetic ----------------------------------------------------------------------------- */

/* A product, K - 1 additions, one for the bias, one to spare. */
bool bound_LINEAR(const Run *run, NodeId id)
{
    const Node *node = run_node(run, id);
    bool biased = node->operand_count > 2;
    double *result = run->bounds[id];
    Walk walk[3];
    for (uint32_t i = 0; i < 3; i++)
        walk[i] = operand_walk(run, id, &node->type, i < node->operand_count ? i : 0);
    Type over = type_select(run_type(run, node->operands[0]), &node->attributes.over);
    Walk x_over = operand_walk(run, id, &over, 0), w_over = operand_walk(run, id, &over, 1);
    int64_t *x_table = walk_table(&x_over), *w_table = walk_table(&w_over);
    bool done = x_table && w_table;
    int64_t terms = walk_points(&x_over), points = done ? walk_points(&walk[0]) : 0;
#pragma omp parallel for if (points * terms > FEW_POINTS)
    for (int64_t i = 0; i < points; i++) {
        Bounded x = bounded_at(operand_bounded(run, id, 0), walk_offset(&walk[0], i));
        Bounded w = bounded_at(operand_bounded(run, id, 1), walk_offset(&walk[1], i));
        double exact = 0, large = 0;
        for (int64_t k = 0; k < terms; k++) {
            exact += fabs(x.value[x_table[k]] * w.value[w_table[k]]);
            large += most(x, x_table[k]) * most(w, w_table[k]);
        }
        if (biased) {
            Bounded bias = bounded_at(operand_bounded(run, id, 2), walk_offset(&walk[2], i));
            exact += fabs(bias.value[0]);
            large += most(bias, 0);
        }
        result[i] = grown(terms + 2) * large - exact + (double)(terms + 2) * FLT_MIN;
    }
    free(x_table);
    free(w_table);
    return done || run_out_of_memory(run, id);
}

double most_difference(Bounded x, int64_t k, const Spread *s)
{
    double difference = fabs(x.value[k] - s->mean) + x.error[k] + s->mean_error;
    return difference * grown(1) + FLT_MIN;
}

Spread bound_spread(Bounded x, const Normal *along, double eps)
{
    Spread s = {0};
    double n = (double)along->count, exact = 0, large = 0;
    for (int64_t k = 0; k < along->count; k++) {
        s.mean += x.value[along->x[k]] / n;
        exact += fabs(x.value[along->x[k]]);
        large += most(x, along->x[k]);
    }
    s.mean_error = (grown(along->count + 2) * large - exact) / n + (n + 2) * FLT_MIN;

    double squares = 0, large_squares = 0;
    for (int64_t k = 0; k < along->count; k++) {
        double difference = x.value[along->x[k]] - s.mean;
        double large_difference = most_difference(x, along->x[k], &s);
        squares += difference * difference;
        large_squares += large_difference * large_difference;
    }
    /* n products, n - 1 additions, a division, eps rounded and added, one to spare */
    double radicand = squares / n + eps;
    double error =
        grown(along->count + 4) * (large_squares / n + eps) - radicand + (n + 2) * FLT_MIN;
    /* |1/sqrt(a) - 1/sqrt(b)| = |a - b| / (sqrt(a) sqrt(b) (sqrt(a) + sqrt(b))), b at least eps */
    double root = sqrt(radicand), least_root = sqrt(fmax(radicand - error, eps / grown(2)));
    s.factor = 1 / root;
    s.factor_error = error / (root * least_root * (root + least_root));
    return s;
}

/* Without a second and a third operand: scale 1, shift 0. */
static bool bound_normal(const Run *run, NodeId id)
{
    bool affine = run_node(run, id)->operand_count > 1;
    Bounded scale = operand_bounded(run, id, affine), shift = operand_bounded(run, id, 2 * affine);
    double *result = run->bounds[id];
    Normal along;
    bool done = normal_tables(run, id, &along);
    for (int64_t i = 0; done && i < walk_points(&along.outer); i++) {
        int64_t start = walk_offset(&along.outer, i);
        Bounded x = bounded_at(operand_bounded(run, id, 0), start);
        Spread s = bound_spread(x, &along, run_node(run, id)->attributes.eps);
        for (int64_t k = 0; k < along.count; k++) {
            int64_t at = along.x[k];
            double factor = affine ? fabs(scale.value[along.scale[k]]) : 1;
            double g = affine ? most(scale, along.scale[k]) : 1;
            double h = affine ? most(shift, along.shift[k]) : 0;
            double exact = fabs((x.value[at] - s.mean) * s.factor) * factor +
                           (affine ? fabs(shift.value[along.shift[k]]) : 0);
            double large = most_difference(x, at, &s) * (s.factor + s.factor_error) * g + h;
            /* root, reciprocal, two products, an addition, one to spare */
            result[start + at] = grown(6) * large - exact + (g + 2) * FLT_MIN;
        }
    }
    normal_free(&along);
    return done || run_out_of_memory(run, id);
}

bool bound_LAYERNORM(const Run *run, NodeId id)
{
    return bound_normal(run, id);
}

bool bound_NORMALISE(const Run *run, NodeId id)
{
    return bound_normal(run, id);
}

/* The slope of GELU is at most 1.129 (at x = sqrt(2)). */
bool bound_GELU(const Run *run, NodeId id)
{
    Bounded x = operand_bounded(run, id, 0);
    double *result = run->bounds[id];
    Walk walk = operand_walk(run, id, run_type(run, id), 0);
    for (int64_t i = 0; i < walk_points(&walk); i++)
        result[i] = 1.129 * x.error[i] + GELU_ERROR * most(x, i) + FLT_MIN;
    return true;
}

/* One rounding, which does less than gamma(1) by more than the double arithmetic errs. */
bool bound_ADD(const Run *run, NodeId id)
{
    Bounded a = operand_bounded(run, id, 0), b = operand_bounded(run, id, 1);
    double *result = run->bounds[id];
    Walk walk = operand_walk(run, id, run_type(run, id), 1);
    for (int64_t i = 0; i < walk_points(&walk); i++) {
        int64_t j = walk_offset(&walk, i);
        double exact = fabs(a.value[i] + b.value[j]);
        result[i] = grown(1) * (exact + a.error[i] + b.error[j]) - exact + FLT_MIN;
    }
    return true;
}

bool bound_MUL(const Run *run, NodeId id)
{
    Bounded a = operand_bounded(run, id, 0), b = operand_bounded(run, id, 1);
    double *result = run->bounds[id];
    Walk walk = operand_walk(run, id, run_type(run, id), 1);
    for (int64_t i = 0; i < walk_points(&walk); i++) {
        int64_t j = walk_offset(&walk, i);
        double exact = fabs(a.value[i] * b.value[j]);
        result[i] = grown(1) * most(a, i) * most(b, j) - exact + FLT_MIN;
    }
    return true;
}

/* n - 1 additions, of a mean a product with 1/n that is rounded itself, one to spare. */
static bool bound_reduction(const Run *run, NodeId id, bool mean)
{
    const Type *operand = run_type(run, run_operand(run, id, 0));
    double *result = run->bounds[id];
    Type over = type_select(operand, &run_node(run, id)->attributes.over);
    Walk walk = operand_walk(run, id, run_type(run, id), 0);
    Walk along = operand_walk(run, id, &over, 0);
    int64_t count = walk_points(&along), *table = walk_table(&along);
    for (int64_t i = 0; table && i < walk_points(&walk); i++) {
        Bounded x = bounded_at(operand_bounded(run, id, 0), walk_offset(&walk, i));
        double exact = 0, large = 0;
        for (int64_t k = 0; k < count; k++) {
            exact += fabs(x.value[table[k]]);
            large += most(x, table[k]);
        }
        result[i] = (grown(count + 2) * large - exact) / (mean ? (double)count : 1) +
                    (double)(count + 2) * FLT_MIN;
    }
    free(table);
    return table != NULL || run_out_of_memory(run, id);
}

bool bound_MEAN(const Run *run, NodeId id)
{
    return bound_reduction(run, id, true);
}

bool bound_SUM(const Run *run, NodeId id)
{
    return bound_reduction(run, id, false);
}

/* A product of two weights, which are exact, one with the element, 15 additions, one to spare. */
static void bound_plane(Bounded x, double *result, const Taps *first, const Taps *second)
{
    for (int64_t i = 0; i < first->count; i++)
        for (int64_t j = 0; j < second->count; j++) {
            const Tap *row = &first->tap[i], *column = &second->tap[j];
            double exact = 0, large = 0;
            for (int k = 0; k < 16; k++) {
                double weight = fabs((double)row->weight[k / 4] * (double)column->weight[k % 4]);
                int64_t offset = row->offset[k / 4] + column->offset[k % 4];
                exact += weight * fabs(x.value[offset]);
                large += weight * most(x, offset);
            }
            result[row->result + column->result] = grown(18) * large - exact + 18 * FLT_MIN;
        }
}

bool bound_RESAMPLE(const Run *run, NodeId id)
{
    const Node *node = run_node(run, id);
    Taps first, second;
    bool done = resample_taps(run, id, false, &first, &second);
    Type planes = type_without(&node->type, &node->attributes.over);
    Walk from = operand_walk(run, id, &planes, 0);
    Walk to = walk_names(&planes, &node->type, run->batch);
    for (int64_t i = 0; done && i < walk_points(&from); i++)
        bound_plane(bounded_at(operand_bounded(run, id, 0), walk_offset(&from, i)),
                    (double *)run->bounds[id] + walk_offset(&to, i), &first, &second);
    free(first.tap);
    free(second.tap);
    return done || run_out_of_memory(run, id);
}
