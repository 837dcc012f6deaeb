/* turn.c: values loaded along one axis and stored along another, by squares of as many vectors as a vector has lanes: what lies
 * along the vectors of one product to where those of another take it, and weights to the order in which products read them. */
#include "backends/llvm/emit.h"

#include <string.h>

/* Swaps element j of vector i with element i of vector j, of `width` vectors so wide: blocks of 1, 2,
 * 4 .. elements change places. */
void emit_transpose(Emitter *e, LLVMValueRef *vector, int width)
{
    for (int block = 1; block < width; block *= 2) {
        LLVMValueRef low[MAX_TILE], high[MAX_TILE];
        for (int i = 0; i < width; i++) {
            bool second = i & block;
            low[i] = LLVMConstInt(e->i32, (unsigned)(second ? width + i - block : i), false);
            high[i] = LLVMConstInt(e->i32, (unsigned)(second ? width + i : i + block), false);
        }
        LLVMValueRef mask[] = {LLVMConstVector(low, (unsigned)width),
                               LLVMConstVector(high, (unsigned)width)};
        for (int i = 0; i < width; i++) {
            if (i & block) continue;
            LLVMValueRef a = vector[i], b = vector[i + block];
            vector[i] = LLVMBuildShuffleVector(e->builder, a, b, mask[0], "");
            vector[i + block] = LLVMBuildShuffleVector(e->builder, a, b, mask[1], "");
        }
    }
}

const Dim *dim_of(const Nest *nest, const char *axis)
{
    int i = 0;
    while (strcmp(nest->dim[i].axis, axis) != 0) i++;
    return &nest->dim[i];
}

typedef struct Turn {
    Nest nest;
    NodeId id, write;        /* a value, and where it is written; NO_NODE: to its turned slot */
    const char *lane, *last; /* loaded along, stored along */
} Turn;

/* Vectors along the lane, for so many indices along the other axis, from `first` of the present tile on; what is left of a square
 * is zero. */
static void load_square(const Turn *turn, int64_t first, int64_t count, LLVMValueRef *vector)
{
    Emitter *e = turn->nest.e;
    const Node *node = graph_node(e->graph, turn->id);
    const Dim *along = dim_of(&turn->nest, turn->lane), *last = dim_of(&turn->nest, turn->last);
    int width = e->target->vector_floats, mark = e->coordinate_count;
    bool gelu = node->op == OP_GELU && !schedule_place(&e->schedule, turn->id)->value.elements;
    for (int i = 0; i < width; i++) {
        Affine at = last->start;
        at.constant += first + i;
        coordinate_push(e, turn->last, at);
        vector[i] = i < count ? emit_value(e, gelu ? node->operands[0] : turn->id,
                                           tile_lanes(e, turn->lane, along->count))
                              : LLVMConstNull(float_type(e, width));
        e->coordinate_count = mark;
    }
    if (gelu) emit_gelu_groups(e, vector, (int)count, width);
}

static void store_square(const Turn *turn, int64_t first, int64_t count, LLVMValueRef *vector)
{
    Emitter *e = turn->nest.e;
    const Dim *along = dim_of(&turn->nest, turn->lane), *last = dim_of(&turn->nest, turn->last);
    int width = e->target->vector_floats, mark = e->coordinate_count;
    for (int i = 0; i < along->count; i++) {
        Affine at = along->start, start = last->start;
        at.constant += i;
        start.constant += first;
        coordinate_push(e, turn->lane, at);
        coordinate_push(e, turn->last, start);
        if (turn->write == NO_NODE) {
            Affine to = slot_offset(e, &schedule_place(&e->schedule, turn->id)->turned);
            store_lanes(e, vector[i], e->scratch, &to, &(Lanes){turn->last, width, width}, true);
        } else {
            emit_write(e, turn->write, vector[i], (Lanes){turn->last, width, (int)count});
        }
        e->coordinate_count = mark;
    }
}

static void turn_leaf(Nest *nest)
{
    const Turn *turn = (Turn *)nest;
    int64_t width = nest->e->target->vector_floats, count = dim_of(nest, turn->last)->count;
    for (int64_t first = 0; first < count; first += width) {
        LLVMValueRef vector[MAX_TILE];
        int64_t some = count - first < width ? count - first : width;
        load_square(turn, first, some, vector);
        emit_transpose(nest->e, vector, (int)width);
        store_square(turn, first, some, vector);
    }
}

/* tile: indices of a leaf along the axis of the stores. */
static void emit_squares(Turn turn, int64_t tile)
{
    Emitter *e = turn.nest.e;
    turn.nest.leaf = turn_leaf;
    add_dims(&turn.nest, graph_type(e->graph, turn.id), NULL, turn.lane);
    for (int i = 0; i < turn.nest.count; i++)
        if (strcmp(turn.nest.dim[i].axis, turn.last) == 0) turn.nest.dim[i].tile = tile;
    emit_nest(&turn.nest, 0);
}

void emit_turn(Emitter *e, const Stage *stage)
{
    const Slot *slot = &schedule_place(&e->schedule, stage->root)->turned;
    emit_squares((Turn){.nest = {.e = e, .stage = stage},
                        .id = stage->root,
                        .write = NO_NODE,
                        .lane = schedule_lane(&e->schedule, stage->root),
                        .last = slot->dim[slot->rank - 1].axis},
                 e->target->vector_floats);
}

/* The axis of the operand of a write along which its elements lie side by side, and how many do: those of a tile in a packed
 * layout. NULL: there is none. */
static const char *written_along(const Emitter *e, NodeId write, int64_t *count)
{
    const Node *node = graph_node(e->graph, write);
    const Type *from = graph_type(e->graph, node->operands[0]);
    const Layout *layout = &node->layout;
    if (node->type.rank == 0) return NULL;
    int last = layout->rank ? layout->dim[layout->rank - 1].axis : node->type.rank - 1;
    if (layout->rank && layout->dim[layout->rank - 1].divisor != 1) return NULL;
    *count = layout->rank ? layout->dim[layout->rank - 1].extent : e->target->vector_floats;
    for (int i = 0; i < from->rank; i++)
        if (node->attributes.map.dim[last].coefficient[i] == 1 && !from->axis[i].symbol[0])
            return from->axis[i].name;
    return NULL;
}

bool emit_turned_copy(Emitter *e, const Stage *stage)
{
    enum { MOST = 64 };
    int64_t tile = 0;
    const Node *read = graph_node(e->graph, stage->end);
    if (read->op != OP_READ || stage->write_count != 1 || e->target->vector_floats == 1 ||
        schedule_place(&e->schedule, stage->end)->value.elements ||
        schedule_holds(&e->schedule, read->operands[0]) ||
        map_may_leave(&read->attributes.map, &read->type, graph_type(e->graph, read->operands[0])))
        return false;
    const char *lane = memory_lane(e->graph, stage->end),
               *last = written_along(e, stage->writes[0], &tile);
    if (!lane || !last || strcmp(lane, last) == 0 || tile > MOST) return false;
    emit_squares((Turn){.nest = {.e = e, .stage = stage},
                        .id = stage->end,
                        .write = stage->writes[0],
                        .lane = lane,
                        .last = last},
                 tile);
    return true;
}
