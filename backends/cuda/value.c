/* value.c: expressions of the values of nodes at the present coordinates. */
#include "backends/cuda/emit.h"

#include <string.h>

void line(Writer *w, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    text_vprintf(w->out, format, args);
    va_end(args);
    text_put(w->out, "\n");
}

void open_block(Writer *w, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    text_vprintf(w->out, format, args);
    va_end(args);
    text_put(w->out, " {\n");
    w->out->indent++;
}

void close_block(Writer *w)
{
    w->out->indent--;
    text_put(w->out, "}\n");
}

const char *new_name(Writer *w)
{
    return arena_printf(w->arena, "v%d", w->temporaries++);
}

const char *float_text(Writer *w, float value)
{
    const char *digits = arena_printf(w->arena, "%.9g", (double)value);
    return arena_printf(w->arena, strpbrk(digits, ".e") ? "%sf" : "%s.0f", digits);
}

/* ---- memory --------------------------------------------------------------------------------- */

static int argument_of(const Writer *w, NodeId stored)
{
    for (int i = 0; i < w->step->argument_count; i++)
        if (w->plan->buffers[w->step->arguments[i]].value == stored) return i;
    RAFTC_BUG("value %u is no argument of kernel %d", stored, w->schedule.kernel);
}

/* offset * (extent of the axis); an extent that is a symbol is known at run time only. */
static Sum scale_by_extent(Writer *w, const Sum *offset, const Axis *axis, int64_t extent)
{
    Sum zero = sum_constant(0);
    if (!axis->symbol[0]) return sum_add(w, zero, offset, extent);
    if (sum_is_constant(offset) && offset->constant == 0) return zero;
    return sum_term(arena_printf(w->arena, "(%s) * batch", sum_text(w, offset)), 1, 0);
}

static Sum stored_at(Writer *w, NodeId stored, const Sum at[MAX_AXES])
{
    const Node *node = graph_node(w->graph, stored);
    Layout layout = node->layout.rank ? node->layout : layout_row_major(&node->type);
    Sum offset = sum_constant(0);
    for (int i = 0; i < layout.rank; i++) {
        int axis = layout.dim[i].axis;
        int64_t divisor = layout.dim[i].divisor, extent = layout.dim[i].extent;
        Sum digit = sum_divide(w, &at[axis], divisor);
        bool top =
            node->type.axis[axis].symbol[0] || divisor * extent >= node->type.axis[axis].extent;
        if (!top) digit = sum_modulo(w, &digit, extent);
        offset = scale_by_extent(w, &offset, &node->type.axis[axis], extent);
        offset = sum_add(w, offset, &digit, 1);
    }
    return offset;
}

static const char *argument_text(Writer *w, NodeId stored)
{
    return arena_printf(w->arena, "a%d", argument_of(w, stored));
}

const char *stored_text(Writer *w, NodeId stored, const Sum at[MAX_AXES])
{
    Sum offset = stored_at(w, stored, at);
    return arena_printf(w->arena, "%s[%s]", argument_text(w, stored), sum_text(w, &offset));
}

/* Index along an axis, from the first of the unit. */
static Sum local_index(Writer *w, const char *axis)
{
    Sum at = *coordinate_at(w, axis);
    int k = schedule_axis(&w->schedule, axis);
    return k < 0 ? at : sum_add(w, at, &w->base[k], -1);
}

static Sum slot_at(Writer *w, const Slot *slot)
{
    Sum offset = sum_constant(slot->offset);
    for (int i = 0; i < slot->rank; i++) {
        Sum at = local_index(w, slot->dim[i].axis);
        offset = sum_add(w, offset, &at, slot->dim[i].stride);
    }
    return offset;
}

const char *slot_text(Writer *w, const Slot *slot)
{
    Sum offset = slot_at(w, slot);
    return arena_printf(w->arena, "unit[%s]", sum_text(w, &offset));
}

Sum window_start(Writer *w, const Node *read, int d)
{
    const Index *index = &read->attributes.map.dim[d];
    Sum start = sum_constant(index->offset);
    for (int i = 0; i < read->type.rank; i++) {
        int k = schedule_axis(&w->schedule, read->type.axis[i].name);
        if (index->coefficient[i] != 0 && k >= 0)
            start = sum_add(w, start, &w->base[k], index->coefficient[i]);
    }
    return start;
}

static const char *window_text(Writer *w, const Node *read, const Slot *window,
                               const Sum at[MAX_AXES])
{
    Sum offset = sum_constant(window->offset);
    for (int d = 0; d < window->rank; d++) {
        Sum start = window_start(w, read, d), local = sum_add(w, at[d], &start, -1);
        offset = sum_add(w, offset, &local, window->dim[d].stride);
    }
    return arena_printf(w->arena, "unit[%s]", sum_text(w, &offset));
}

/* ---- ops ------------------------------------------------------------------------------------ */

/* Finds the indices that could be outside the operand. */
static void find_bounds(Writer *w, const Node *read, const Sum at[MAX_AXES], Spot *spot)
{
    const Type *operand = graph_type(w->graph, read->operands[0]);
    for (int d = 0; d < operand->rank; d++) {
        int64_t least, greatest, extent = operand->axis[d].extent;
        if (!index_range(&read->attributes.map.dim[d], &read->type, &least, &greatest)) continue;
        if (least >= 0 && greatest < extent) continue;
        spot->bound[spot->bound_count++] = (Bound){at[d], least < 0, greatest >= extent, extent};
    }
}

const char *inside_text(Writer *w, const Spot *spot)
{
    Text text = text_new(w->arena);
    for (int i = 0; i < spot->bound_count; i++) {
        const Bound *bound = &spot->bound[i];
        const char *index = sum_text(w, &bound->at);
        if (bound->below) text_printf(&text, "%s%s >= 0", text.length ? " && " : "", index);
        if (bound->above)
            text_printf(&text, "%s%s < %lld", text.length ? " && " : "", index,
                        (long long)bound->extent);
    }
    return text.length ? text.data : "";
}

static const char *read_text(Writer *w, NodeId id)
{
    const Node *read = graph_node(w->graph, id);
    const Type *operand = graph_type(w->graph, read->operands[0]);
    const Slot *window = &schedule_place(&w->schedule, id)->window;
    Sum at[MAX_AXES];
    for (int d = 0; d < operand->rank; d++)
        at[d] = map_index(w, &read->attributes.map.dim[d], &read->type);
    if (window->elements) return window_text(w, read, window, at);
    const char *value;
    Spot spot = {0};
    find_bounds(w, read, at, &spot);
    const char *inside = inside_text(w, &spot);
    if (!schedule_holds(&w->schedule, read->operands[0])) {
        value = stored_text(w, read->operands[0], at);
    } else {
        int mark = w->coordinate_count;
        for (int d = 0; d < operand->rank; d++) push_coordinate(w, operand->axis[d].name, at[d]);
        value = value_text(w, read->operands[0]);
        w->coordinate_count = mark;
    }
    return inside[0] ? arena_printf(w->arena, "(%s ? %s : 0.0f)", inside, value) : value;
}

static const char *normalise_text(Writer *w, NodeId id)
{
    const Place *place = schedule_place(&w->schedule, id);
    const char *x = value_text(w, graph_node(w->graph, id)->operands[0]);
    return arena_printf(w->arena, "(%s - %s) * %s", x, slot_text(w, &place->mean),
                        slot_text(w, &place->rstd));
}

static const char *layernorm_text(Writer *w, NodeId id)
{
    const Node *node = graph_node(w->graph, id);
    const char *normal = normalise_text(w, id), *scale = value_text(w, node->operands[1]);
    return arena_printf(w->arena, "fmaf(%s, %s, %s)", normal, scale,
                        value_text(w, node->operands[2]));
}

/* What is written before an expression inside a condition must not run outside it: a temporary takes the value. */
static const char *concat_text(Writer *w, NodeId id)
{
    const Node *node = graph_node(w->graph, id);
    const char *axis = node->attributes.over.name[0], *result = new_name(w);
    Sum index = *coordinate_at(w, axis);
    int64_t before = 0;
    line(w, "float %s = 0.0f;", result);
    for (uint32_t i = 0; i < node->operand_count; i++) {
        const Type *type = graph_type(w->graph, node->operands[i]);
        int64_t extent = type->axis[type_find(type, axis)].extent;
        const char *at = sum_text(w, &index);
        open_block(w, "if (%s >= %lld && %s < %lld)", at, (long long)before, at,
                   (long long)(before + extent));
        Sum local = index;
        local.constant -= before;
        int mark = w->coordinate_count;
        push_coordinate(w, axis, local);
        line(w, "%s = %s;", result, value_text(w, node->operands[i]));
        w->coordinate_count = mark;
        close_block(w);
        before += extent;
    }
    return result;
}

/* Tables [out][4] of the taps of one axis, written once: its name without _index or _weight. */
static const char *tap_tables(Writer *w, int64_t in, int64_t out)
{
    const char *name = arena_printf(w->arena, "bicubic_%lld_%lld", (long long)in, (long long)out);
    const char *head =
        arena_printf(w->arena, "raft_table(int, %s_index, %lld)", name, (long long)(4 * out));
    if (strstr(w->tables->data, head)) return name;
    for (int weights = 0; weights < 2; weights++) {
        text_printf(w->tables, "raft_table(%s, %s_%s, %lld) = {", weights ? "float" : "int", name,
                    weights ? "weight" : "index", (long long)(4 * out));
        for (int64_t i = 0; i < out; i++) {
            int64_t index[4];
            float weight[4];
            bicubic_taps(in, out, i, index, weight);
            for (int k = 0; k < 4; k++) {
                text_put(w->tables, i + k == 0 ? "" : i % 2 == 0 && k == 0 ? ",\n    " : ", ");
                if (weights)
                    text_put(w->tables, float_text(w, weight[k]));
                else
                    text_printf(w->tables, "%lld", (long long)index[k]);
            }
        }
        text_put(w->tables, "};\n");
    }
    return name;
}

static const char *resample_text(Writer *w, NodeId id)
{
    const Node *node = graph_node(w->graph, id);
    const Type *in = graph_type(w->graph, node->operands[0]);
    const char *axis[2], *table[2], *at[2], *tap[2];
    for (int k = 0; k < 2; k++) {
        axis[k] = node->attributes.over.name[k];
        table[k] = tap_tables(w, in->axis[type_find(in, axis[k])].extent,
                              node->type.axis[type_find(&node->type, axis[k])].extent);
        at[k] = sum_text(w, coordinate_at(w, axis[k]));
        tap[k] = new_name(w);
    }
    const char *sum = new_name(w), *row = new_name(w);
    line(w, "float %s = 0.0f;", sum);
    open_block(w, "for (int %s = 0; %s < 4; %s++)", tap[0], tap[0], tap[0]);
    line(w, "float %s = 0.0f;", row);
    open_block(w, "for (int %s = 0; %s < 4; %s++)", tap[1], tap[1], tap[1]);
    int mark = w->coordinate_count;
    for (int k = 0; k < 2; k++)
        push_coordinate(
            w, axis[k],
            sum_term(arena_printf(w->arena, "%s_index[(%s) * 4 + %s]", table[k], at[k], tap[k]), 1,
                     0));
    const char *x = value_text(w, node->operands[0]);
    line(w, "%s = fmaf(%s, %s_weight[(%s) * 4 + %s], %s);", row, x, table[1], at[1], tap[1], row);
    w->coordinate_count = mark;
    close_block(w);
    line(w, "%s = fmaf(%s, %s_weight[(%s) * 4 + %s], %s);", sum, row, table[0], at[0], tap[0], sum);
    close_block(w);
    return sum;
}

static const char *operand_text(Writer *w, NodeId id, int operand)
{
    return value_text(w, graph_node(w->graph, id)->operands[operand]);
}

static const char *gelu_text(Writer *w, NodeId id)
{
    return arena_printf(w->arena, "raft_gelu(%s)", operand_text(w, id, 0));
}

static const char *add_text(Writer *w, NodeId id)
{
    const char *a = operand_text(w, id, 0);
    return arena_printf(w->arena, "(%s + %s)", a, operand_text(w, id, 1));
}

static const char *mul_text(Writer *w, NodeId id)
{
    const char *a = operand_text(w, id, 0);
    return arena_printf(w->arena, "%s * %s", a, operand_text(w, id, 1));
}

/* In parentheses: as a factor it must not divide in another order. */
static const char *div_text(Writer *w, NodeId id)
{
    const char *a = operand_text(w, id, 0);
    return arena_printf(w->arena, "(%s / (%s))", a, operand_text(w, id, 1));
}

static const char *sqrt_text(Writer *w, NodeId id)
{
    return arena_printf(w->arena, "sqrtf(%s)", operand_text(w, id, 0));
}

static const char *scale_text(Writer *w, NodeId id)
{
    float factor = (float)graph_node(w->graph, id)->attributes.factor;
    return arena_printf(w->arena, "%s * %s", operand_text(w, id, 0), float_text(w, factor));
}

static const char *pack_text(Writer *w, NodeId id)
{
    return operand_text(w, id, 0);
}

/* As in the backend for CPUs: products, means and sums have a value in their stage only. */
static const char *(*const text_of[OP_COUNT])(Writer *, NodeId) = {
    [OP_READ] = read_text,
    [OP_PACK] = pack_text,
    [OP_CONCAT] = concat_text,
    [OP_ADD] = add_text,
    [OP_MUL] = mul_text,
    [OP_DIV] = div_text,
    [OP_SQRT] = sqrt_text,
    [OP_SCALE] = scale_text,
    [OP_GELU] = gelu_text,
    [OP_GELU_GRAD] = gelu_grad_text,
    [OP_LAYERNORM] = layernorm_text,
    [OP_NORMALISE] = normalise_text,
    [OP_LAYERNORM_GRAD] = layernorm_grad_text,
    [OP_RESAMPLE] = resample_text,
    [OP_RESAMPLE_GRAD] = resample_grad_text,
    [OP_CROSS_ENTROPY] = cross_entropy_text,
    [OP_CROSS_ENTROPY_GRAD] = cross_entropy_grad_text,
};

const char *value_text(Writer *w, NodeId id)
{
    RAFTC_ASSERT(schedule_holds(&w->schedule, id));
    const char *computed = w->computed[id - w->schedule.first];
    if (computed) return computed;
    const Slot *slot = &schedule_place(&w->schedule, id)->value;
    if (slot->elements) return slot_text(w, slot);
    Op op = graph_node(w->graph, id)->op;
    if (!text_of[op]) RAFTC_BUG("op '%s' has no value in a kernel", op_info[op].name);
    return text_of[op](w, id);
}

/* ---- places --------------------------------------------------------------------------------- */

/* Where a write puts the element at the present coordinates. */
static Sum written_at(Writer *w, NodeId write)
{
    const Node *node = graph_node(w->graph, write);
    const Type *from = graph_type(w->graph, node->operands[0]);
    Sum at[MAX_AXES];
    for (int d = 0; d < node->type.rank; d++)
        at[d] = map_index(w, &node->attributes.map.dim[d], from);
    return stored_at(w, write, at);
}

void write_store(Writer *w, NodeId write, const char *value)
{
    Sum at = written_at(w, write);
    line(w, "%s[%s] = %s;", argument_text(w, write), sum_text(w, &at), value);
}

bool find_spot(Writer *w, NodeId id, Spot *spot)
{
    const Node *node = graph_node(w->graph, id);
    const Slot *slot = &schedule_place(&w->schedule, id)->value;
    *spot = (Spot){.value = id, .stored = true};
    if (node->op == OP_WRITE) {
        spot->base = argument_text(w, id);
        spot->at = written_at(w, id);
        return true;
    }
    if (slot->elements) {
        *spot = (Spot){.base = "unit", .at = slot_at(w, slot), .value = id};
        return true;
    }
    if (node->op != OP_READ || w->computed[id - w->schedule.first] ||
        schedule_holds(&w->schedule, node->operands[0]))
        return false;
    Sum at[MAX_AXES];
    spot->value = node->operands[0];
    for (int d = 0; d < graph_type(w->graph, spot->value)->rank; d++)
        at[d] = map_index(w, &node->attributes.map.dim[d], &node->type);
    spot->base = argument_text(w, spot->value);
    spot->at = stored_at(w, spot->value, at);
    find_bounds(w, node, at, spot);
    return true;
}

/* Memory that the caller gives may begin anywhere. */
static bool is_aligned(const Writer *w, const Spot *spot, int count)
{
    if (spot->stored && graph_node(w->graph, spot->value)->op == OP_INPUT) return false;
    for (uint32_t i = 0; i < w->graph->output_count; i++)
        if (spot->stored && w->graph->outputs[i].value == spot->value) return false;
    for (int i = 0; i < spot->at.count; i++)
        if (spot->at.term[i].scale % count != 0) return false;
    return spot->at.constant % count == 0;
}

bool find_floats(Writer *w, NodeId id, const char *axis, int count, Spot *spot)
{
    if (!find_spot(w, id, spot)) return false;
    if (count == 1) return true;
    if (!axis || !is_aligned(w, spot, count)) return false;
    int mark = w->coordinate_count;
    for (int i = 1; i < count; i++) {
        Spot next;
        Sum at = *coordinate_at(w, axis);
        at.constant++;
        push_coordinate(w, axis, at);
        find_spot(w, id, &next);
        next.at.constant -= i;
        if (strcmp(sum_text(w, &next.at), sum_text(w, &spot->at)) != 0 ||
            strcmp(inside_text(w, &next), inside_text(w, spot)) != 0) {
            w->coordinate_count = mark;
            return false;
        }
    }
    w->coordinate_count = mark;
    return true;
}
