/* sum.c: symbolic indices of the CUDA text, and the coordinates of the value being written. */
#include "backends/cuda/emit.h"

#include <string.h>

Sum sum_constant(int64_t constant)
{
    return (Sum){.constant = constant};
}

Sum sum_term(const char *name, int64_t scale, int64_t extent)
{
    Sum sum = {.count = extent == 1 ? 0 : 1};
    sum.term[0].name = name;
    sum.term[0].scale = scale;
    sum.term[0].extent = extent;
    return sum;
}

bool sum_is_constant(const Sum *a)
{
    return a->count == 0;
}

Sum sum_add(Writer *w, Sum a, const Sum *b, int64_t scale)
{
    a.constant += b->constant * scale;
    for (int i = 0; i < b->count; i++) {
        int at = 0;
        while (at < a.count && strcmp(a.term[at].name, b->term[i].name) != 0) at++;
        if (at == MAX_TERMS) { /* too many for the form: what is there becomes one term */
            a = sum_term(arena_printf(w->arena, "(%s)", sum_text(w, &a)), 1, 0);
            at = 1;
        }
        if (at == a.count) {
            a.term[a.count] = b->term[i];
            a.term[a.count++].scale = 0;
        }
        a.term[at].scale += b->term[i].scale * scale;
        if (a.term[at].scale == 0) {
            a.count--;
            memmove(&a.term[at], &a.term[at + 1], (size_t)(a.count - at) * sizeof a.term[0]);
        }
    }
    return a;
}

/* Splits a = quotient * divisor + rest, where rest is known to stay below the divisor. */
static bool split(const Sum *a, int64_t divisor, Sum *quotient, Sum *rest)
{
    if (a->constant < 0) return false;
    *quotient = sum_constant(a->constant / divisor);
    *rest = sum_constant(a->constant % divisor);
    int64_t most = rest->constant;
    for (int i = 0; i < a->count; i++) {
        Sum *to = a->term[i].scale % divisor == 0 ? quotient : rest;
        to->term[to->count] = a->term[i];
        if (to == quotient)
            to->term[to->count].scale /= divisor;
        else if (a->term[i].extent == 0 || a->term[i].scale < 0)
            return false;
        else
            most += a->term[i].scale * (a->term[i].extent - 1);
        to->count++;
    }
    return most < divisor;
}

/* The same by the greatest divisor of `divisor` for which that can be done, which it returns: 1 at least. */
static int64_t split_coarsely(const Sum *a, int64_t divisor, Sum *quotient, Sum *rest)
{
    for (int64_t part = divisor; part > 1; part--)
        if (divisor % part == 0 && split(a, part, quotient, rest)) return part;
    *quotient = *a;
    *rest = sum_constant(0);
    return 1;
}

/* The text of a sum that is a part of a product. */
static const char *factor_text(Writer *w, const Sum *a)
{
    bool is_name = a->count == 1 && a->constant == 0 && a->term[0].scale == 1;
    return arena_printf(w->arena, is_name ? "%s" : "(%s)", sum_text(w, a));
}

Sum sum_divide(Writer *w, const Sum *a, int64_t divisor)
{
    Sum quotient, rest;
    int64_t left = divisor / split_coarsely(a, divisor, &quotient, &rest);
    if (left == 1) return quotient;
    return sum_term(
        arena_printf(w->arena, "(%s / %lld)", factor_text(w, &quotient), (long long)left), 1, 0);
}

Sum sum_modulo(Writer *w, const Sum *a, int64_t divisor)
{
    Sum quotient, rest;
    int64_t part = split_coarsely(a, divisor, &quotient, &rest), left = divisor / part;
    if (left == 1) return rest;
    Sum turn =
        sum_term(arena_printf(w->arena, "(%s %% %lld)", factor_text(w, &quotient), (long long)left),
                 part, left);
    return sum_add(w, turn, &rest, 1);
}

const char *sum_text(Writer *w, const Sum *a)
{
    Text text = text_new(w->arena);
    for (int i = 0; i < a->count; i++) {
        int64_t scale = a->term[i].scale;
        if (i > 0) text_put(&text, scale < 0 ? " - " : " + ");
        if (i > 0 && scale < 0) scale = -scale;
        text_put(&text, a->term[i].name);
        if (scale != 1) text_printf(&text, " * %lld", (long long)scale);
    }
    if (a->count == 0)
        text_printf(&text, "%lld", (long long)a->constant);
    else if (a->constant != 0)
        text_printf(&text, " %c %lld", a->constant < 0 ? '-' : '+',
                    (long long)(a->constant < 0 ? -a->constant : a->constant));
    return text.data;
}

void push_coordinate(Writer *w, const char *axis, Sum at)
{
    RAFTC_ASSERT(w->coordinate_count < MAX_COORDINATES);
    w->coordinate[w->coordinate_count].axis = axis;
    w->coordinate[w->coordinate_count++].at = at;
}

const Sum *coordinate_at(Writer *w, const char *axis)
{
    for (int i = w->coordinate_count; i-- > 0;)
        if (strcmp(w->coordinate[i].axis, axis) == 0) return &w->coordinate[i].at;
    RAFTC_BUG("axis %s has no coordinate in kernel %d", axis, w->schedule.kernel);
}

Sum map_index(Writer *w, const Index *index, const Type *space)
{
    Sum sum = sum_constant(index->offset);
    for (int i = 0; i < space->rank; i++)
        if (index->coefficient[i] != 0)
            sum = sum_add(w, sum, coordinate_at(w, space->axis[i].name), index->coefficient[i]);
    return sum;
}
