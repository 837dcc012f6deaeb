/* bound_training.c: bounds of the ops that only training has: losses, gradients, optimisers. */
#include "backends/reference/bound.h"

#include <stdlib.h>

/* ---- point by point --------------------------------------------------------------------------- */

/* The factor is rounded itself; a product. */
bool bound_SCALE(const Run *run, NodeId id)
{
    Bounded x = operand_bounded(run, id, 0);
    double *result = run->bounds[id], factor = fabs(run_node(run, id)->attributes.factor);
    Walk walk = operand_walk(run, id, run_type(run, id), 0);
    for (int64_t i = 0; i < walk_points(&walk); i++)
        result[i] = factor * (grown(3) * most(x, i) - fabs(x.value[i])) + FLT_MIN;
    return true;
}

/* |sqrt(a) - sqrt(b)| = |a - b| / (sqrt(a) + sqrt(b)); what may be negative has any root. */
bool bound_SQRT(const Run *run, NodeId id)
{
    Bounded x = operand_bounded(run, id, 0);
    double *result = run->bounds[id];
    Walk walk = operand_walk(run, id, run_type(run, id), 0);
    for (int64_t i = 0; i < walk_points(&walk); i++) {
        double error = x.error[i] + FLT_MIN; /* a tiny operand may be flushed */
        double exact = sqrt(x.value[i]), least = sqrt(fmax(x.value[i] - error, 0));
        double carried = exact + least > 0 ? error / (exact + least) : sqrt(error);
        bool any = x.error[i] > x.value[i];
        result[i] = any ? INFINITY : grown(1) * (exact + carried) - exact;
    }
    return true;
}

/* |a/b - c/d| <= (|a - c| + |a/b| |b - d|) / |d| */
bool bound_DIV(const Run *run, NodeId id)
{
    Bounded a = operand_bounded(run, id, 0), b = operand_bounded(run, id, 1);
    double *result = run->bounds[id];
    Walk walk = operand_walk(run, id, run_type(run, id), 1);
    for (int64_t i = 0; i < walk_points(&walk); i++) {
        int64_t j = walk_offset(&walk, i);
        double exact = fabs(a.value[i] / b.value[j]), least = fabs(b.value[j]) - b.error[j];
        double carried = (a.error[i] + exact * b.error[j]) / least;
        result[i] = least > FLT_MIN ? grown(1) * (exact + carried) - exact + FLT_MIN : INFINITY;
    }
    return true;
}

/* The slope of GELU is at most 1.129, and its own slope, phi(x) (2 - x^2), at most 0.798. */
bool bound_GELU_GRAD(const Run *run, NodeId id)
{
    Bounded x = operand_bounded(run, id, 0), dy = operand_bounded(run, id, 1);
    double *result = run->bounds[id];
    Walk walk = operand_walk(run, id, run_type(run, id), 0);
    for (int64_t i = 0; i < walk_points(&walk); i++) {
        double at = x.value[i];
        double slope = fabs(0.5 * (1 + erf(at * M_SQRT1_2)) +
                            at * exp(-0.5 * at * at) * M_2_SQRTPI * M_SQRT1_2 / 2);
        double large = slope + 0.798 * x.error[i] + GELU_GRAD_ERROR;
        result[i] = grown(2) * most(dy, i) * large - fabs(dy.value[i]) * slope + FLT_MIN;
    }
    return true;
}

/* ---- layernorm -------------------------------------------------------------------------------- */

/* Of one group: n = (x - mean) * factor, g = dy * scale, with errors. */
typedef struct Slopes {
    Bounded x, scale, dy;
    const Normal *along;
    Spread spread;
    double mean, mean_error;       /* of g */
    double product, product_error; /* the mean of g * n */
} Slopes;

static double exact_g(const Slopes *s, int64_t k)
{
    return s->dy.value[s->along->shift[k]] * s->scale.value[s->along->scale[k]];
}

static double most_g(const Slopes *s, int64_t k)
{
    return grown(1) * most(s->dy, s->along->shift[k]) * most(s->scale, s->along->scale[k]) +
           FLT_MIN;
}

static double exact_n(const Slopes *s, int64_t k)
{
    return (s->x.value[s->along->x[k]] - s->spread.mean) * s->spread.factor;
}

/* A root, a reciprocal, a product. */
static double most_n(const Slopes *s, int64_t k)
{
    double factor = s->spread.factor + s->spread.factor_error;
    return grown(3) * most_difference(s->x, s->along->x[k], &s->spread) * factor + FLT_MIN;
}

static void find_means(Slopes *s)
{
    double n = (double)s->along->count, exact = 0, large = 0, exact_products = 0;
    double large_products = 0;
    for (int64_t k = 0; k < s->along->count; k++) {
        double g = exact_g(s, k);
        s->mean += g / n;
        s->product += g * exact_n(s, k) / n;
        exact += fabs(g);
        exact_products += fabs(g * exact_n(s, k));
        large += most_g(s, k);
        large_products += most_g(s, k) * most_n(s, k);
    }
    s->mean_error = (grown(s->along->count + 2) * large - exact) / n + (n + 2) * FLT_MIN;
    s->product_error =
        (grown(s->along->count + 3) * large_products - exact_products) / n + (n + 2) * FLT_MIN;
}

bool bound_LAYERNORM_GRAD(const Run *run, NodeId id)
{
    double *result = run->bounds[id];
    Normal along;
    bool done = normal_tables(run, id, &along);
    for (int64_t i = 0; done && i < walk_points(&along.outer); i++) {
        int64_t start = walk_offset(&along.outer, i);
        Slopes s = {.x = bounded_at(operand_bounded(run, id, 0), start),
                    .scale = operand_bounded(run, id, 1),
                    .dy = bounded_at(operand_bounded(run, id, 2), start),
                    .along = &along};
        s.spread = bound_spread(s.x, &along, run_node(run, id)->attributes.eps);
        find_means(&s);
        for (int64_t k = 0; k < along.count; k++) {
            double n = fabs(exact_n(&s, k)), factor = s.spread.factor;
            double exact = (fabs(exact_g(&s, k)) + fabs(s.mean) + n * fabs(s.product)) * factor;
            double large = most_g(&s, k) + fabs(s.mean) + s.mean_error +
                           most_n(&s, k) * (fabs(s.product) + s.product_error);
            /* root, reciprocal, two products, two differences, one to spare */
            result[start + along.x[k]] =
                grown(7) * large * (factor + s.spread.factor_error) - exact + 4 * FLT_MIN;
        }
    }
    normal_free(&along);
    return done || run_out_of_memory(run, id);
}

/* ---- cross-entropy ---------------------------------------------------------------------------- */

typedef struct LogSum {
    double value, error; /* log(sum(exp(x))) */
    double targets, targets_error;
} LogSum;

/* The logarithm moves by no more than the greatest error of x. Each term exp(x - most) has the
 * errors of a difference and of exp; the sum has n roundings. */
static LogSum bound_log_sum(Bounded x, Bounded t, const int64_t *table, int64_t count)
{
    LogSum s = {0};
    double top = x.value[table[0]], carried = 0, sum = 0, off = 0, exact = 0, large = 0;
    for (int64_t k = 0; k < count; k++) {
        top = fmax(top, x.value[table[k]]);
        carried = fmax(carried, x.error[table[k]]);
        s.targets += t.value[table[k]];
        exact += fabs(t.value[table[k]]);
        large += most(t, table[k]);
    }
    for (int64_t k = 0; k < count; k++) {
        double distance = top - x.value[table[k]] + 2 * carried, term = exp(-distance);
        sum += exp(x.value[table[k]] - top);
        off += term * (grown(1) * EXP_ERROR + 2 * distance * (grown(1) - 1)) + FLT_MIN;
    }
    s.value = top + log(sum);
    s.error = carried + 2 * (off / sum + grown(count + 2) - 1) + LOG_ERROR * (1 + log(sum)) +
              (grown(2) - 1) * (fabs(top) + carried + fabs(s.value) + log(sum));
    s.targets_error = grown(count + 1) * large - exact + (double)count * FLT_MIN;
    return s;
}

/* A difference, a product, n - 1 additions. */
static double bound_loss(const LogSum *s, Bounded x, Bounded t, const int64_t *table, int64_t count)
{
    double exact = 0, large = 0;
    for (int64_t k = 0; k < count; k++) {
        double distance = fabs(s->value - x.value[table[k]]);
        exact += fabs(t.value[table[k]]) * distance;
        large += most(t, table[k]) * (distance + s->error + x.error[table[k]]);
    }
    return grown(count + 3) * large - exact + (double)(count + 1) * FLT_MIN;
}

/* (share * targets - target) * dy */
static double bound_slope(const LogSum *s, Bounded x, Bounded t, int64_t at, Bounded dy, int64_t i)
{
    double distance = x.value[at] - s->value, carried = x.error[at] + s->error;
    double share = exp(distance), slope = dy.value[i];
    double relative = expm1(carried + 2 * (grown(1) - 1) * (fabs(distance) + carried) + EXP_ERROR);
    double most_share = share * (1 + relative) + FLT_MIN;
    double exact = (share * fabs(s->targets) + fabs(t.value[at])) * fabs(slope);
    double large = most_share * (fabs(s->targets) + s->targets_error) + most(t, at);
    return grown(4) * large * most(dy, i) - exact + 3 * FLT_MIN;
}

static bool bound_rows_of_logits(const Run *run, NodeId id, bool gradient)
{
    double *result = run->bounds[id];
    const Type *logits = run_type(run, run_operand(run, id, 0));
    Type over = type_select(logits, &run_node(run, id)->attributes.over);
    Type rows = type_without(logits, &run_node(run, id)->attributes.over);
    Walk walk = operand_walk(run, id, &rows, 0), along = operand_walk(run, id, &over, 0);
    int64_t *table = walk_table(&along), count = walk_points(&along);
    for (int64_t i = 0; table && i < walk_points(&walk); i++) {
        int64_t at = walk_offset(&walk, i);
        Bounded x = bounded_at(operand_bounded(run, id, 0), at);
        Bounded t = bounded_at(operand_bounded(run, id, 1), at);
        LogSum s = bound_log_sum(x, t, table, count);
        if (!gradient) result[i] = bound_loss(&s, x, t, table, count);
        for (int64_t k = 0; gradient && k < count; k++)
            result[at + table[k]] = bound_slope(&s, x, t, table[k], operand_bounded(run, id, 2), i);
    }
    free(table);
    return table != NULL || run_out_of_memory(run, id);
}

bool bound_CROSS_ENTROPY(const Run *run, NodeId id)
{
    return bound_rows_of_logits(run, id, false);
}

bool bound_CROSS_ENTROPY_GRAD(const Run *run, NodeId id)
{
    return bound_rows_of_logits(run, id, true);
}

/* ---- resampling ------------------------------------------------------------------------------- */

/* Sums of one plane: by element of the result, so `terms` of them go into it. */
typedef struct Spreading {
    double *exact, *large, *terms;
} Spreading;

static void spread_bounds(Bounded dy, const Spreading *to, const Taps *first, const Taps *second)
{
    for (int64_t i = 0; i < first->count; i++)
        for (int64_t j = 0; j < second->count; j++) {
            const Tap *row = &first->tap[i], *column = &second->tap[j];
            int64_t from = row->result + column->result;
            for (int k = 0; k < 16; k++) {
                double weight = fabs((double)row->weight[k / 4] * (double)column->weight[k % 4]);
                int64_t at = row->offset[k / 4] + column->offset[k % 4];
                to->exact[at] += weight * fabs(dy.value[from]);
                to->large[at] += weight * most(dy, from);
                to->terms[at]++;
            }
        }
}

/* Two products, n - 1 additions, one to spare. */
bool bound_RESAMPLE_GRAD(const Run *run, NodeId id)
{
    int64_t elements;
    double *result = run->bounds[id];
    Taps first, second;
    bool done = value_elements(run_type(run, id), run->batch, &elements);
    double *sums = done ? calloc((size_t)elements, 3 * sizeof *sums) : NULL;
    done = resample_taps(run, id, true, &first, &second) && sums;
    Type planes = type_without(run_type(run, id), &run_node(run, id)->attributes.over);
    Walk from = operand_walk(run, id, &planes, 0);
    Walk to = walk_names(&planes, run_type(run, id), run->batch);
    for (int64_t i = 0; done && i < walk_points(&from); i++) {
        double *at = sums + walk_offset(&to, i);
        const Spreading plane = {at, at + elements, at + 2 * elements};
        spread_bounds(bounded_at(operand_bounded(run, id, 0), walk_offset(&from, i)), &plane,
                      &first, &second);
    }
    for (int64_t i = 0; done && i < elements; i++) {
        double terms = sums[2 * elements + i];
        result[i] = grown((int64_t)terms + 3) * sums[elements + i] - sums[i] + 3 * terms * FLT_MIN;
    }
    free(first.tap);
    free(second.tap);
    free(sums);
    return done || run_out_of_memory(run, id);
}
