/* walk.c: where the points of an index space lie in a tensor, by names of axes or through a map. */
#include "backends/reference/reference.h"

#include <stdlib.h>

static int64_t extent_of(const Axis *axis, int64_t batch)
{
    return axis->symbol[0] ? batch : axis->extent;
}

bool value_elements(const Type *type, int64_t batch, int64_t *elements)
{
    RAFTC_ASSERT(batch > 0);
    *elements = 1;
    for (int i = 0; i < type->rank; i++)
        if (__builtin_mul_overflow(*elements, extent_of(&type->axis[i], batch), elements))
            return false;
    return true;
}

static void row_major(const Type *type, int64_t batch, int64_t strides[MAX_AXES])
{
    int64_t stride = 1;
    for (int i = type->rank; i-- > 0;) {
        strides[i] = stride;
        stride *= extent_of(&type->axis[i], batch);
    }
}

Walk walk_names(const Type *space, const Type *tensor, int64_t batch)
{
    Walk walk = {.rank = space->rank, .rows = 1};
    int64_t strides[MAX_AXES];
    row_major(tensor, batch, strides);
    for (int i = 0; i < space->rank; i++) {
        int axis = type_find(tensor, space->axis[i].name);
        walk.extent[i] = extent_of(&space->axis[i], batch);
        walk.stride[i] = axis < 0 ? 0 : strides[axis];
    }
    if (walk.rank == 0) walk.extent[walk.rank++] = 1;
    walk.inner = walk.extent[walk.rank - 1];
    for (int i = 0; i < walk.rank - 1; i++) walk.rows *= walk.extent[i];
    return walk;
}

Walk operand_walk(const Run *run, NodeId id, const Type *space, uint32_t index)
{
    return walk_names(space, run_type(run, run_operand(run, id, index)), run->batch);
}

int64_t walk_offset(const Walk *walk, int64_t point)
{
    int64_t offset = 0;
    for (int i = walk->rank; i-- > 0;) {
        offset += point % walk->extent[i] * walk->stride[i];
        point /= walk->extent[i];
    }
    return offset;
}

int64_t *walk_table(const Walk *walk)
{
    int64_t points = walk_points(walk);
    int64_t *table = calloc((size_t)points, sizeof *table);
    for (int64_t i = 0; table && i < points; i++) table[i] = walk_offset(walk, i);
    return table;
}

Type type_select(const Type *type, const AxisNames *names)
{
    Type selected = {.dtype = type->dtype};
    for (int i = 0; i < names->count; i++)
        type_append(&selected, &type->axis[type_find(type, names->name[i])]);
    return selected;
}

MapWalk map_walk(const Map *map, const Type *space, const Type *target, int64_t batch)
{
    MapWalk walk = {.space = walk_names(space, space, batch), .map = *map};
    row_major(target, batch, walk.stride);
    for (int i = 0; i < target->rank; i++) walk.extent[i] = extent_of(&target->axis[i], batch);
    return walk;
}

void map_walk_row(const MapWalk *walk, int64_t row, int64_t at[MAX_AXES])
{
    for (int i = 0; i < walk->map.rank; i++) at[i] = walk->map.dim[i].offset;
    for (int axis = walk->space.rank - 1; axis-- > 0;) {
        int64_t index = row % walk->space.extent[axis];
        row /= walk->space.extent[axis];
        for (int i = 0; i < walk->map.rank; i++)
            at[i] += walk->map.dim[i].coefficient[axis] * index;
    }
}
