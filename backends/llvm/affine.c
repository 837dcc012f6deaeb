/* affine.c: symbolic indices, and the coordinates of the value being emitted. */
#include "backends/llvm/emit.h"

#include <string.h>

Affine affine_constant(int64_t constant)
{
    return (Affine){.constant = constant};
}

Affine affine_value(LLVMValueRef value, int64_t scale)
{
    Affine a = {.count = 1};
    a.term[0].value = value;
    a.term[0].scale = scale;
    return a;
}

Affine affine_scale(Affine a, int64_t scale)
{
    a.constant *= scale;
    for (int i = 0; i < a.count; i++) a.term[i].scale *= scale;
    if (scale == 0) a.count = 0;
    return a;
}

Affine affine_add(Emitter *e, Affine a, const Affine *b, int64_t scale)
{
    a.constant += b->constant * scale;
    for (int i = 0; i < b->count; i++) {
        int at = 0;
        while (at < a.count && a.term[at].value != b->term[i].value) at++;
        if (at == MAX_TERMS) { /* too many for the form: what is there becomes one term */
            LLVMValueRef sum = affine_emit(e, &a);
            a = affine_value(sum, 1);
            at = 1;
        }
        if (at == a.count) {
            a.term[a.count].value = b->term[i].value;
            a.term[a.count++].scale = 0;
        }
        a.term[at].scale += b->term[i].scale * scale;
        if (a.term[at].scale == 0) a.term[at] = a.term[--a.count];
    }
    return a;
}

static bool divides(const Affine *a, int64_t divisor)
{
    for (int i = 0; i < a->count; i++)
        if (a->term[i].scale % divisor != 0) return false;
    return a->constant >= 0;
}

Affine affine_divide(Emitter *e, const Affine *a, int64_t divisor)
{
    if (divisor == 1) return *a;
    if (!divides(a, divisor))
        return affine_value(
            LLVMBuildUDiv(e->builder, affine_emit(e, a), int_constant(e, divisor), ""), 1);
    Affine result = *a;
    result.constant /= divisor;
    for (int i = 0; i < result.count; i++) result.term[i].scale /= divisor;
    return result;
}

Affine affine_modulo(Emitter *e, const Affine *a, int64_t divisor)
{
    if (divides(a, divisor)) return affine_constant(a->constant % divisor);
    return affine_value(LLVMBuildURem(e->builder, affine_emit(e, a), int_constant(e, divisor), ""),
                        1);
}

LLVMValueRef affine_emit(Emitter *e, const Affine *a)
{
    LLVMValueRef sum = NULL;
    for (int i = 0; i < a->count; i++) {
        LLVMValueRef term = a->term[i].value;
        if (a->term[i].scale != 1 && e->counted && term == e->counted->index)
            term = loop_multiple(e, e->counted, a->term[i].scale);
        else if (a->term[i].scale != 1)
            term = LLVMBuildNSWMul(e->builder, term, int_constant(e, a->term[i].scale), "");
        sum = sum ? LLVMBuildNSWAdd(e->builder, sum, term, "") : term;
    }
    if (!sum) return int_constant(e, a->constant);
    if (a->constant == 0) return sum;
    return LLVMBuildNSWAdd(e->builder, sum, int_constant(e, a->constant), "");
}

void coordinate_push(Emitter *e, const char *axis, Affine at)
{
    RAFTC_ASSERT(e->coordinate_count < MAX_COORDINATES);
    e->coordinate[e->coordinate_count++] = (Coordinate){axis, at};
}

const Affine *coordinate_of(Emitter *e, const char *axis)
{
    for (int i = e->coordinate_count; i-- > 0;)
        if (strcmp(e->coordinate[i].axis, axis) == 0) return &e->coordinate[i].at;
    RAFTC_BUG("axis %s has no coordinate in kernel %d", axis, e->schedule.kernel);
}

Affine index_at(Emitter *e, const Index *index, const Type *space)
{
    Affine result = affine_constant(index->offset);
    for (int i = 0; i < space->rank; i++)
        if (index->coefficient[i] != 0)
            result =
                affine_add(e, result, coordinate_of(e, space->axis[i].name), index->coefficient[i]);
    return result;
}
