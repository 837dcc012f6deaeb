/* type.c: axes, types, affine indices and the maps made of them. */
#include "ir/ir.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

static void set_name(char name[NAME_SIZE], const char *text, size_t length)
{
    RAFTC_ASSERT(length > 0 && length < NAME_SIZE);
    memset(name, 0, NAME_SIZE);
    memcpy(name, text, length);
}

Axis axis_constant(const char *name, int64_t extent)
{
    Axis axis = {.extent = extent};
    set_name(axis.name, name, strlen(name));
    return axis;
}

Axis axis_symbol(const char *name)
{
    Axis axis = {.extent = 0};
    set_name(axis.name, name, strlen(name));
    set_name(axis.symbol, name, strlen(name));
    return axis;
}

bool axis_same_extent(const Axis *a, const Axis *b)
{
    return a->extent == b->extent && strcmp(a->symbol, b->symbol) == 0;
}

int type_find(const Type *type, const char *name)
{
    for (int i = 0; i < type->rank; i++)
        if (strcmp(type->axis[i].name, name) == 0) return i;
    return -1;
}

bool type_equal(const Type *a, const Type *b)
{
    if (a->dtype != b->dtype || a->rank != b->rank) return false;
    for (int i = 0; i < a->rank; i++)
        if (strcmp(a->axis[i].name, b->axis[i].name) != 0 ||
            !axis_same_extent(&a->axis[i], &b->axis[i]))
            return false;
    return true;
}

static int64_t saturating_product(int64_t a, int64_t b)
{
    int64_t product;
    return __builtin_mul_overflow(a, b, &product) ? INT64_MAX : product;
}

int64_t type_elements(const Type *type, int *symbols)
{
    int64_t elements = 1;
    int symbolic = 0;
    for (int i = 0; i < type->rank; i++) {
        if (type->axis[i].symbol[0])
            symbolic++;
        else
            elements = saturating_product(elements, type->axis[i].extent);
    }
    if (symbols) *symbols = symbolic;
    return elements;
}

/* The next word of `*text` (letters, digits, _), past spaces, commas and parentheses. */
static size_t next_word(const char **text)
{
    while (**text && !isalnum((unsigned char)**text) && **text != '_') (*text)++;
    size_t length = 0;
    while (isalnum((unsigned char)(*text)[length]) || (*text)[length] == '_') length++;
    return length;
}

Type type_make(DType dtype, const char *axes)
{
    Type type = {.dtype = dtype};
    size_t length;
    while ((length = next_word(&axes)) > 0) {
        RAFTC_ASSERT(type.rank < MAX_AXES);
        Axis *axis = &type.axis[type.rank++];
        set_name(axis->name, axes, length);
        axes += length;
        while (*axes == ' ') axes++;
        if (isdigit((unsigned char)*axes)) {
            char *end;
            axis->extent = strtoll(axes, &end, 10);
            axes = end;
        } else {
            memcpy(axis->symbol, axis->name, NAME_SIZE);
        }
    }
    return type;
}

Type type_without(const Type *type, const AxisNames *names)
{
    Type result = {.dtype = type->dtype};
    for (int i = 0; i < type->rank; i++)
        if (!names_contain(names, type->axis[i].name)) type_append(&result, &type->axis[i]);
    return result;
}

void type_append(Type *type, const Axis *axis)
{
    RAFTC_ASSERT(type->rank < MAX_AXES);
    type->axis[type->rank++] = *axis;
}

AxisNames names_make(const char *names)
{
    AxisNames result = {0};
    size_t length;
    while ((length = next_word(&names)) > 0) {
        RAFTC_ASSERT(result.count < MAX_AXES);
        set_name(result.name[result.count++], names, length);
        names += length;
    }
    return result;
}

bool names_contain(const AxisNames *names, const char *name)
{
    for (int i = 0; i < names->count; i++)
        if (strcmp(names->name[i], name) == 0) return true;
    return false;
}

bool names_equal(const AxisNames *a, const AxisNames *b)
{
    if (a->count != b->count) return false;
    for (int i = 0; i < a->count; i++)
        if (strcmp(a->name[i], b->name[i]) != 0) return false;
    return true;
}

Index index_axis(int axis)
{
    Index index = {0};
    index.coefficient[axis] = 1;
    return index;
}

Map map_identity(const Type *operand, const Type *space)
{
    Map map = {.rank = operand->rank};
    for (int i = 0; i < operand->rank; i++) {
        int axis = type_find(space, operand->axis[i].name);
        RAFTC_ASSERT(axis >= 0);
        map.dim[i] = index_axis(axis);
    }
    return map;
}

bool map_is_identity(const Map *map, int rank)
{
    if (map->rank != rank) return false;
    for (int i = 0; i < rank; i++) {
        Index plain = index_axis(i);
        if (memcmp(&map->dim[i], &plain, sizeof plain) != 0) return false;
    }
    return true;
}

bool index_range(const Index *index, const Type *space, int64_t *least, int64_t *greatest)
{
    *least = *greatest = index->offset;
    for (int i = 0; i < space->rank; i++) {
        int64_t c = index->coefficient[i];
        if (c == 0) continue;
        if (space->axis[i].symbol[0]) return false;
        int64_t span;
        if (__builtin_mul_overflow(c, space->axis[i].extent - 1, &span) ||
            __builtin_add_overflow(c > 0 ? *greatest : *least, span, c > 0 ? greatest : least)) {
            *least = INT64_MIN;
            *greatest = INT64_MAX;
            return true;
        }
    }
    return true;
}

bool index_may_leave(const Index *index, const Type *space, const Axis *target)
{
    int64_t least, greatest;
    return index_range(index, space, &least, &greatest) &&
           (least < 0 || greatest >= target->extent);
}

bool map_may_leave(const Map *map, const Type *space, const Type *target)
{
    for (int i = 0; i < map->rank; i++)
        if (index_may_leave(&map->dim[i], space, &target->axis[i])) return true;
    return false;
}

Map map_compose(const Map *outer, const Map *inner, int inner_space_rank)
{
    Map result = {.rank = outer->rank};
    for (int i = 0; i < outer->rank; i++) {
        result.dim[i].offset = outer->dim[i].offset;
        for (int k = 0; k < inner->rank; k++) {
            int64_t c = outer->dim[i].coefficient[k];
            result.dim[i].offset += c * inner->dim[k].offset;
            for (int j = 0; j < inner_space_rank; j++)
                result.dim[i].coefficient[j] += c * inner->dim[k].coefficient[j];
        }
    }
    return result;
}

Layout layout_row_major(const Type *type)
{
    Layout layout = {.rank = type->rank};
    for (int i = 0; i < type->rank; i++) {
        layout.dim[i].axis = i;
        layout.dim[i].divisor = 1;
        layout.dim[i].extent = type->axis[i].extent;
    }
    return layout;
}

int64_t layout_elements(const Type *type, const Layout *layout)
{
    if (layout->rank == 0) return type_elements(type, NULL);
    int64_t elements = 1;
    for (int i = 0; i < layout->rank; i++)
        if (!type->axis[layout->dim[i].axis].symbol[0])
            elements = saturating_product(elements, layout->dim[i].extent);
    return elements;
}
