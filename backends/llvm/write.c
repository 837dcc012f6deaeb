/* write.c: where values go that a kernel writes.
 *
 * A kernel of sums over the images may be told that others of the same batch came before: then it adds to what
 * is there. */
#include "backends/llvm/emit.h"

#include <string.h>

static void find_places(Emitter *e, NodeId write, Affine at[MAX_AXES])
{
    const Node *node = graph_node(e->graph, write);
    const Type *from = graph_type(e->graph, node->operands[0]);
    for (int d = 0; d < node->type.rank; d++)
        at[d] = index_at(e, &node->attributes.map.dim[d], from);
}

Affine written_offset(Emitter *e, NodeId write)
{
    Affine at[MAX_AXES];
    find_places(e, write, at);
    return storage_offset(e, write, at);
}

LLVMValueRef load_written(Emitter *e, NodeId write, Lanes lanes)
{
    Affine offset = written_offset(e, write);
    return load_lanes(e, buffer_of(e, write), &offset, &lanes, false);
}

void store_written(Emitter *e, NodeId write, LLVMValueRef value, Lanes lanes)
{
    Affine offset = written_offset(e, write);
    store_lanes(e, value, buffer_of(e, write), &offset, &lanes, false);
}

bool adds_up(const Emitter *e)
{
    bool writes = false;
    for (NodeId id = e->schedule.first; id < e->schedule.end; id++) {
        const Node *node = graph_node(e->graph, id);
        if (node->op != OP_WRITE) continue;
        int symbols;
        writes = true;
        type_elements(&node->type, &symbols);
        if (symbols > 0) return false;
    }
    return writes && !e->step->prepare;
}

/* The value and what is there, if the kernel is to add to it. */
static LLVMValueRef add_written(Emitter *e, NodeId write, LLVMValueRef value, Lanes lanes)
{
    if (!e->adds) return value;
    LLVMTypeRef type = LLVMTypeOf(value);
    LLVMValueRef total = stack_slot(e, type);
    LLVMBuildStore(e->builder, value, total);
    Branch branch = branch_begin(e, e->adds);
    value = LLVMBuildFAdd(e->builder, load_written(e, write, lanes), value, "");
    LLVMBuildStore(e->builder, value, total);
    branch_else(e, &branch);
    branch_end(e, &branch);
    return LLVMBuildLoad2(e->builder, type, total, "");
}

void emit_write(Emitter *e, NodeId write, LLVMValueRef value, Lanes lanes)
{
    const Node *node = graph_node(e->graph, write);
    const Type *from = graph_type(e->graph, node->operands[0]);
    Affine at[MAX_AXES];
    int axis = lanes.axis ? type_find(from, lanes.axis) : -1, lane_dim = -1;
    find_places(e, write, at);
    for (int d = 0; d < node->type.rank; d++)
        if (axis >= 0 && node->attributes.map.dim[d].coefficient[axis] == 1) lane_dim = d;
    if (lanes.width == 1 ||
        (lane_dim >= 0 && is_contiguous(e, write, lane_dim, &at[lane_dim], lanes.active))) {
        store_written(e, write, add_written(e, write, value, lanes), lanes);
        return;
    }
    int mark = e->coordinate_count;
    Affine start = *coordinate_of(e, lanes.axis);
    for (int i = 0; i < lanes.active; i++) {
        Affine lane = start;
        lane.constant += i;
        coordinate_push(e, lanes.axis, lane);
        emit_write(e, write, LLVMBuildExtractElement(e->builder, value, int_constant(e, i), ""),
                   (Lanes){NULL, 1, 1});
        e->coordinate_count = mark;
    }
}
