/* stage.c: the loops of a kernel's stages, but for products. */
#include "backends/cuda/emit.h"

#include <string.h>

/* How many tiles the kernel has along an axis; 0: as many as a symbol says. */
static int64_t tiles_along(const Writer *w, int k)
{
    const Kernel *kernel = &w->graph->kernels[w->schedule.kernel];
    const Axis *axis = &kernel->axis[k];
    return axis->symbol[0] ? 0 : ceil_divide(axis->extent, kernel->tile[k]);
}

int64_t outermost_tiles(const Writer *w)
{
    const Kernel *kernel = &w->graph->kernels[w->schedule.kernel];
    return kernel->rank > 1 && tiles_along(w, 0) > 1 ? tiles_along(w, 0) : 1;
}

bool kernel_axis_is_fixed(const Writer *w, int k)
{
    return tiles_along(w, k) == 1 || (k == 0 && outermost_tiles(w) > 1);
}

void enter_block(Writer *w)
{
    const Kernel *kernel = &w->graph->kernels[w->schedule.kernel];
    for (int i = 0; i < kernel->rank; i++) {
        if (!kernel_axis_is_fixed(w, i)) continue;
        const char *name = arena_printf(w->arena, "u_%s", kernel->axis[i].name);
        w->base[i] = sum_term(name, kernel->tile[i], tiles_along(w, i));
        push_coordinate(w, kernel->axis[i].name, w->base[i]);
    }
}

/* `of` / before % count, without what changes nothing; count 0: it is below that. */
const char *digit_text(Writer *w, const char *of, int64_t before, int64_t count)
{
    Text text = text_new(w->arena);
    text_put(&text, of);
    if (before > 1) text_printf(&text, " / %lld", (long long)before);
    if (count > 0) text_printf(&text, " %% %lld", (long long)count);
    return text.data;
}

/* Is it the first axis along which units of a block differ? */
static bool is_outermost(const Writer *w, int k)
{
    for (int i = 0; i < k; i++)
        if (!kernel_axis_is_fixed(w, i)) return false;
    return true;
}

void enter_unit(Writer *w, bool clamped)
{
    const Kernel *kernel = &w->graph->kernels[w->schedule.kernel];
    bool split = false;
    for (int i = 0; i < kernel->rank; i++) split |= !kernel_axis_is_fixed(w, i);
    bool several = w->schedule.block > 1;
    const char *g = clamped ? "there" : "g";
    if (clamped && several) line(w, "const int there = raft_min(g, here - 1);");
    if (split)
        line(w, "const %s number = first%s;", w->index,
             several ? arena_printf(w->arena, " + %s", g) : "");
    if (w->schedule.unit_floats > 0)
        line(w, "const raft_scratch unit = scratch%s;",
             several ? arena_printf(w->arena, " + %s * %lld", g, (long long)w->schedule.unit_floats)
                     : "");
    const char *of = "number";
    int64_t before = 1;
    for (int i = kernel->rank; i-- > 0;) {
        if (kernel_axis_is_fixed(w, i)) continue;
        const Axis *axis = &kernel->axis[i];
        int64_t count = tiles_along(w, i);
        const char *name = arena_printf(w->arena, "u_%s", axis->name);
        w->base[i] = sum_term(name, kernel->tile[i], count);
        push_coordinate(w, axis->name, w->base[i]);
        bool top = is_outermost(w, i);
        const char *digit = digit_text(w, of, before, top ? 0 : count);
        line(w, top || count ? "const %s %s = %s;" : "const %s %s = %s %% batch;",
             count ? "int" : w->index, name, digit);
        before *= count ? count : 1;
        if (count == 0) of = digit_text(w, arena_printf(w->arena, "%s / batch", of), before, 0);
        if (count == 0) before = 1;
    }
}

void push_dims(Writer *w, const ItemDim *dim, int count)
{
    for (int i = 0; i < count; i++) {
        Sum at = sum_term(dim[i].name, dim[i].tile, dim[i].count);
        if (dim[i].kernel_axis >= 0) at = sum_add(w, at, &w->base[dim[i].kernel_axis], 1);
        if (dim[i].axis) push_coordinate(w, dim[i].axis, at);
    }
}

static int64_t items_before(const ItemDim *dim, int count)
{
    int64_t items = 1;
    for (int i = 0; i < count; i++) items *= dim[i].count;
    return items;
}

void open_items(Writer *w, const ItemDim *dim, int count, bool by_warp)
{
    int64_t items = w->schedule.block * items_before(dim, count);
    open_block(w, "for (int thread = raft_thread<%d>(), item = thread%s; item < %lld; item += %d)",
               w->threads, by_warp ? " / 32" : "", (long long)items,
               by_warp ? w->threads / WARP : w->threads);
    int64_t before = 1;
    for (int i = count; i-- > 0;) {
        if (dim[i].count == 1) continue;
        bool top = w->schedule.block * items_before(dim, i) == 1;
        line(w, "const int %s = %s;", dim[i].name,
             digit_text(w, "item", before, top ? 0 : dim[i].count));
        before *= dim[i].count;
    }
    if (w->schedule.block > 1) line(w, "const int g = %s;", digit_text(w, "item", before, 0));
    if (by_warp) line(w, "const int lane = thread %% 32;");
    if (w->schedule.block > 1) line(w, "if (g >= here) continue;");
    enter_unit(w, false);
    push_dims(w, dim, count);
}

int list_dims(Writer *w, const Type *type, const AxisNames *without, ItemDim dim[MAX_AXES])
{
    int count = 0;
    for (int i = 0; i < type->rank; i++) {
        const Axis *axis = &type->axis[i];
        if (axis->symbol[0] || (without && names_contain(without, axis->name))) continue;
        int k = schedule_axis(&w->schedule, axis->name);
        int64_t extent = k < 0 ? axis->extent : w->graph->kernels[w->schedule.kernel].tile[k];
        if (extent > axis->extent) extent = axis->extent;
        dim[count++] =
            (ItemDim){axis->name, arena_printf(w->arena, "i_%s", axis->name), extent, 1, k};
    }
    return count;
}

/* Threads that follow one another take elements that follow one another: the lane axis comes last. */
static void lane_last(ItemDim *dim, int count, const char *lane)
{
    for (int i = 0; lane && i + 1 < count; i++) {
        if (strcmp(dim[i].axis, lane) != 0) continue;
        ItemDim moved = dim[i];
        memmove(&dim[i], &dim[i + 1], (size_t)(count - 1 - i) * sizeof *dim);
        dim[count - 1] = moved;
        return;
    }
}

void skip_outside(Writer *w, const ItemDim *dim, int count)
{
    const Kernel *kernel = &w->graph->kernels[w->schedule.kernel];
    for (int i = 0; i < count; i++) {
        int k = dim[i].kernel_axis;
        if (k < 0 || kernel->axis[k].extent % kernel->tile[k] == 0) continue;
        line(w, "if (%s >= %lld) continue;", sum_text(w, coordinate_at(w, dim[i].axis)),
             (long long)kernel->axis[k].extent);
    }
}

void store_stage_end(Writer *w, const Stage *stage, const char *value)
{
    const Slot *slot = &schedule_place(&w->schedule, stage->end)->value;
    const char *name = new_name(w);
    line(w, "const float %s = %s;", name, value);
    if (slot->elements) line(w, "%s = %s;", slot_text(w, slot), name);
    for (int i = 0; i < stage->write_count; i++) write_store(w, stage->writes[i], name);
}

const char *fresh_value(Writer *w, NodeId id)
{
    Slot *slot = &schedule_place(&w->schedule, id)->value;
    int64_t elements = slot->elements;
    slot->elements = 0;
    const char *value = value_text(w, id);
    slot->elements = elements;
    return value;
}

static void write_map(Writer *w, const Stage *stage)
{
    const Node *node = graph_node(w->graph, stage->end);
    const char *lane =
        schedule_lane(&w->schedule, stage->write_count ? stage->writes[0] : stage->end);
    ItemDim dim[MAX_AXES];
    int count = list_dims(w, &node->type, NULL, dim);
    lane_last(dim, count, lane);
    line(w, "raft_several"); /* many loads at a time */
    open_items(w, dim, count, false);
    skip_outside(w, dim, count);
    store_stage_end(w, stage, fresh_value(w, stage->end));
    close_block(w);
}

/* Opens loops over the axes `over` of the operand and sets their coordinates. */
static void open_loops(Writer *w, const Type *type, const AxisNames *over)
{
    for (int i = 0; i < over->count; i++) {
        const Axis *axis = &type->axis[type_find(type, over->name[i])];
        int64_t extent = axis->extent; /* 0: the batch */
        const char *name = arena_printf(w->arena, "k_%s", over->name[i]);
        line(w, extent && extent <= 8 ? "raft_unroll" : "raft_several"); /* many loads at a time */
        open_block(w, "for (%s %s = 0; %s < %s; %s++)", extent ? "int" : w->index, name, name,
                   extent ? arena_printf(w->arena, "%lld", (long long)extent) : "batch", name);
        push_coordinate(w, over->name[i], sum_term(name, 1, extent));
    }
}

static int64_t count_over(const Type *type, const AxisNames *over)
{
    int64_t count = 1;
    for (int i = 0; i < over->count; i++)
        count *= type->axis[type_find(type, over->name[i])].extent;
    return count;
}

static void write_reduction(Writer *w, const Stage *stage)
{
    const Node *node = graph_node(w->graph, stage->root);
    const Type *x = graph_type(w->graph, node->operands[0]);
    const AxisNames *over = &node->attributes.over;
    ItemDim dim[MAX_AXES];
    int count = list_dims(w, &node->type, NULL, dim);
    lane_last(dim, count, schedule_lane(&w->schedule, stage->root));
    open_items(w, dim, count, false);
    skip_outside(w, dim, count);
    line(w, "float sum = 0.0f;");
    int mark = w->coordinate_count;
    open_loops(w, x, over);
    line(w, "sum += %s;", value_text(w, node->operands[0]));
    for (int i = 0; i < over->count; i++) close_block(w);
    w->coordinate_count = mark;
    const char *result = "sum";
    if (node->op == OP_MEAN) {
        result = new_name(w);
        line(w, "const float %s = sum * %s;", result,
             float_text(w, (float)(1.0 / (double)count_over(x, over))));
    }
    w->computed[stage->root - w->schedule.first] = result;
    store_stage_end(w, stage, stage->end == stage->root ? result : fresh_value(w, stage->end));
    w->computed[stage->root - w->schedule.first] = NULL;
    close_block(w);
}

/* The coordinates of element e over the axes `over`. */
static void enter_over(Writer *w, NodeId x, const AxisNames *over)
{
    const Type *type = graph_type(w->graph, x);
    int64_t before = 1;
    for (int i = over->count; i-- > 0;) {
        int64_t extent = type->axis[type_find(type, over->name[i])].extent;
        const char *name = arena_printf(w->arena, "e_%s", over->name[i]);
        line(w, "const int %s = %s;", name, digit_text(w, "e", before, i > 0 ? extent : 0));
        push_coordinate(w, over->name[i], sum_term(name, 1, extent));
        before *= extent;
    }
}

void open_elements(Writer *w, const Node *node)
{
    NodeId x = node->operands[0];
    const AxisNames *over = &node->attributes.over;
    open_block(w, "for (int e = lane; e < %lld; e += 32)",
               (long long)count_over(graph_type(w->graph, x), over));
    enter_over(w, x, over);
}

/* Adds something for each element x. */
static void sum_over(Writer *w, const Node *node, const char *add)
{
    int mark = w->coordinate_count;
    open_elements(w, node);
    line(w, "const float x = %s;", value_text(w, node->operands[0]));
    line(w, "%s", add);
    w->coordinate_count = mark;
    close_block(w);
}

/* Sums of all elements and of their squared distances from the mean; where there are not too many, each thread keeps its
 * own in registers in between. */
static void sum_twice(Writer *w, const Node *node, const char *inverse)
{
    NodeId x = node->operands[0];
    const AxisNames *over = &node->attributes.over;
    int64_t count = count_over(graph_type(w->graph, x), over);
    bool kept = count % WARP == 0 && count / WARP <= 32;
    int mark = w->coordinate_count;
    if (!kept) {
        sum_over(w, node, "sum += x;");
        line(w, "const float mean = raft_warp_sum(sum) * %s;", inverse);
        sum_over(w, node, "square = fmaf(x - mean, x - mean, square);");
        return;
    }
    long long each = count / WARP;
    line(w, "float kept[%lld];", each);
    line(w, "raft_unroll");
    open_block(w, "for (int i = 0; i < %lld; i++)", each);
    line(w, "const int e = i * 32 + lane;");
    enter_over(w, x, over);
    line(w, "kept[i] = %s;", value_text(w, x));
    w->coordinate_count = mark;
    close_block(w);
    line(w, "raft_unroll");
    line(w, "for (int i = 0; i < %lld; i++) sum += kept[i];", each);
    line(w, "const float mean = raft_warp_sum(sum) * %s;", inverse);
    line(w, "raft_unroll");
    line(w, "for (int i = 0; i < %lld; i++) square = fmaf(kept[i] - mean, kept[i] - mean, square);",
         each);
}

/* Mean and variance of a group, which normalisations take. */
static void write_moments(Writer *w, const Node *node, const Place *place)
{
    const Type *x = graph_type(w->graph, node->operands[0]);
    const char *inverse =
        float_text(w, (float)(1.0 / (double)count_over(x, &node->attributes.over)));
    line(w, "float sum = 0.0f, square = 0.0f;");
    sum_twice(w, node, inverse);
    line(w, "const float variance = raft_warp_sum(square) * %s;", inverse);
    if (node->op == OP_LAYERNORM_GRAD) {
        write_gradient_means(w, node, place, inverse);
        return;
    }
    open_block(w, "if (lane == 0)");
    line(w, "%s = mean;", slot_text(w, &place->mean));
    line(w, "%s = 1.0f / sqrtf(variance + %s);", slot_text(w, &place->rstd),
         float_text(w, (float)node->attributes.eps));
    close_block(w);
}

static void write_statistics(Writer *w, const Stage *stage)
{
    const Node *node = graph_node(w->graph, stage->root);
    const Place *place = schedule_place(&w->schedule, stage->root);
    ItemDim dim[MAX_AXES];
    const Type *x = graph_type(w->graph, node->operands[0]);
    int count = list_dims(w, x, &node->attributes.over, dim);
    int64_t each = count_over(x, &node->attributes.over) / WARP; /* kept in registers */
    if (w->fine && each <= 16) line(w, each <= 8 ? "raft_several" : "raft_twice");
    open_items(w, dim, count, true);
    skip_outside(w, dim, count);
    if (place->rstd.elements)
        write_moments(w, node, place);
    else
        write_loss_statistics(w, node, place);
    close_block(w);
}

static void write_window(Writer *w, const Stage *stage)
{
    const Node *read = graph_node(w->graph, stage->root);
    const Type *operand = graph_type(w->graph, read->operands[0]);
    const Slot *window = &schedule_place(&w->schedule, stage->root)->window;
    ItemDim dim[MAX_AXES];
    for (int d = 0; d < window->rank; d++)
        dim[d] = (ItemDim){NULL, arena_printf(w->arena, "i_%s", window->dim[d].axis),
                           window->dim[d].extent, 1, -1};
    open_items(w, dim, window->rank, false);
    Sum at[MAX_AXES], offset = sum_constant(window->offset);
    Text inside = text_new(w->arena);
    for (int d = 0; d < window->rank; d++) {
        Sum local = sum_term(dim[d].name, 1, dim[d].count), start = window_start(w, read, d);
        offset = sum_add(w, offset, &local, window->dim[d].stride);
        at[d] = sum_add(w, start, &local, 1);
        if (operand->axis[d].symbol[0]) continue;
        const char *index = sum_text(w, &at[d]);
        text_printf(&inside, "%s%s >= 0 && %s < %lld", inside.length ? " && " : "", index, index,
                    (long long)operand->axis[d].extent);
    }
    line(w, "unit[%s] = %s ? %s : 0.0f;", sum_text(w, &offset),
         inside.length ? inside.data : "true", stored_text(w, read->operands[0], at));
    close_block(w);
}

void write_stage(Writer *w, const Stage *stage)
{
    static void (*const writers[])(Writer *, const Stage *) = {
        [STAGE_WINDOW] = write_window,   [STAGE_STATISTICS] = write_statistics,
        [STAGE_MAP] = write_map,         [STAGE_REDUCTION] = write_reduction,
        [STAGE_PRODUCT] = write_product,
    };
    int mark = w->coordinate_count;
    writers[stage->kind](w, stage);
    w->coordinate_count = mark;
    line(w, "raft_barrier();");
}
