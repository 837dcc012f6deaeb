/* products.c: lanes and register tiles. */
#include "passes/products.h"

#include <string.h>

/* A unit has one index along a symbolic axis, so lanes are never along one. */
static const char *last_axis(const Type *type)
{
    for (int i = type->rank; i-- > 0;)
        if (!type->axis[i].symbol[0]) return type->axis[i].name;
    return NULL;
}

/* The axis that walks memory one element at a time when the value is written. */
static const char *written_lane(const Graph *graph, const Node *write)
{
    const Type *x = graph_type(graph, write->operands[0]);
    if (write->type.rank == 0) return last_axis(x);
    const Index *innermost = &write->attributes.map.dim[write->type.rank - 1];
    for (int i = 0; i < x->rank; i++)
        if (innermost->coefficient[i] == 1 && !x->axis[i].symbol[0]) return x->axis[i].name;
    return last_axis(x);
}

const char **kernel_lanes(const Graph *graph, int kernel, Arena *arena)
{
    NodeId first, end;
    kernel_range(graph, kernel, &first, &end);
    const char **lane = arena_array(arena, end - first, sizeof *lane);
    for (NodeId id = end; id-- > first;) {
        const Node *node = graph_node(graph, id);
        if (node->op == OP_WRITE) lane[id - first] = written_lane(graph, node);
        if (node->op == OP_READ) continue;
        const char *own = lane[id - first] ? lane[id - first] : last_axis(&node->type);
        lane[id - first] = own;
        for (uint32_t i = 0; own && i < node->operand_count; i++) {
            NodeId operand = node->operands[i];
            const Type *type = graph_type(graph, operand);
            if (operand < first || lane[operand - first]) continue;
            lane[operand - first] = type_find(type, own) >= 0 ? own : last_axis(type);
        }
    }
    return lane;
}

/* Rows that fit in the registers beside `vectors` vectors of the other operand and one broadcast.
 */
static int64_t most_rows(const Target *target, int vectors)
{
    int64_t rows = (target->vector_registers - vectors - 1) / vectors;
    return rows > 14 ? 14 : rows;
}

/* Indices a tile along an axis of `extent`: as even as can be with at most `most`. */
static int64_t even_tile(int64_t extent, int64_t most)
{
    int64_t tiles = (extent + most - 1) / most;
    return (extent + tiles - 1) / tiles;
}

Product product_tile(const Graph *graph, NodeId linear, const char *lane, const Target *target)
{
    const Node *node = graph_node(graph, linear);
    const Type *x = graph_type(graph, node->operands[0]), *w = graph_type(graph, node->operands[1]);
    Product p = {.lane = lane, .vectors = 1};
    int64_t width = 1;
    if (lane) {
        p.lane_in_x = type_find(x, lane) >= 0;
        p.lane_in_w = type_find(w, lane) >= 0;
        width = node->type.axis[type_find(&node->type, lane)].extent;
    }
    if (width > target->vector_floats) p.vectors = 2;
    p.rows_in_w = !p.lane_in_w;
    const Type *rows = p.rows_in_w ? w : x, *vectors = p.rows_in_w ? x : w;
    int64_t most = most_rows(target, p.vectors);
    for (int i = node->type.rank; i-- > 0 && p.row_count < 2;) {
        const Axis *axis = &node->type.axis[i];
        bool is_row = (!lane || strcmp(axis->name, lane) != 0) && !axis->symbol[0] &&
                      type_find(rows, axis->name) >= 0 && type_find(vectors, axis->name) < 0;
        if (!is_row) continue;
        int64_t tile = even_tile(axis->extent, most);
        p.row[1] = p.row[0];
        p.row_tile[1] = p.row_tile[0];
        p.row[0] = axis->name;
        p.row_tile[0] = tile;
        p.row_count++;
        if (tile < axis->extent || most / tile < 2) break;
        most /= tile;
    }
    /* Without rows to hide the latency of an addition behind, more vectors do. */
    int64_t needed = (width + target->vector_floats - 1) / target->vector_floats;
    if (p.row_count == 0 && lane) p.vectors = needed > 8 ? 8 : (int)needed;
    return p;
}
