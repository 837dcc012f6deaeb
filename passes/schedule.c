/* schedule.c: which values of a kernel are kept, where, and the loop nests that compute them. */
#include "passes/schedule.h"

#include <string.h>

enum { MAX_WINDOW = 1 << 20, BLOCK_ROWS = 98 };

int schedule_axis(const Schedule *s, const char *name)
{
    return kernel_find(&s->graph->kernels[s->kernel], name);
}

static const Node *node_at(const Schedule *s, NodeId id)
{
    return graph_node(s->graph, id);
}

static bool is_pointwise(Op op)
{
    return op == OP_ADD || op == OP_MUL || op == OP_DIV || op == OP_SQRT || op == OP_SCALE ||
           op == OP_GELU || op == OP_GELU_GRAD;
}
static bool is_root(Op op)
{
    return op == OP_LINEAR || op == OP_MEAN || op == OP_SUM;
}
static bool is_normal(Op op)
{
    return op == OP_LAYERNORM || op == OP_NORMALISE || op == OP_LAYERNORM_GRAD;
}
static bool is_loss(Op op)
{
    return op == OP_CROSS_ENTROPY || op == OP_CROSS_ENTROPY_GRAD;
}
/* Does it take elements of its operands more than once? */
static bool takes_again(Op op)
{
    return op == OP_LINEAR || is_normal(op) || is_loss(op) || op == OP_RESAMPLE ||
           op == OP_RESAMPLE_GRAD;
}

/* Uses of a value in the kernel; of those that do not count in an epilogue the writes of a product. */
static uint32_t count_uses(const Schedule *s, NodeId id, bool writes, NodeId *user)
{
    uint32_t uses = 0;
    for (NodeId n = id + 1; n < s->end; n++)
        for (uint32_t i = 0; i < node_at(s, n)->operand_count; i++)
            if (node_at(s, n)->operands[i] == id && (writes || node_at(s, n)->op != OP_WRITE)) {
                uses++;
                *user = n;
            }
    return uses;
}

/* The last op of the epilogue of each product and mean: stage_end[root - first]. The later root
 * takes a sum of two. */
static NodeId *find_epilogues(Schedule *s, Arena *arena)
{
    NodeId *stage_end = arena_array(arena, s->end - s->first, sizeof *stage_end);
    for (NodeId id = s->end; id-- > s->first;) {
        if (!is_root(node_at(s, id)->op)) continue;
        NodeId at = id, user = NO_NODE;
        bool writes = node_at(s, id)->op != OP_LINEAR || s->target->stages_operands;
        while (count_uses(s, at, writes, &user) == 1 && is_pointwise(node_at(s, user)->op) &&
               !schedule_place(s, user)->fused &&
               node_at(s, user)->type.rank == node_at(s, at)->type.rank) {
            schedule_place(s, user)->fused = true;
            at = user;
        }
        schedule_place(s, id)->fused = at != id;
        stage_end[id - s->first] = at;
    }
    return stage_end;
}

/* Extent along one axis inside a unit; -1 where a symbol is no axis of the kernel. */
static int64_t unit_extent(const Schedule *s, const Axis *axis)
{
    int at = schedule_axis(s, axis->name);
    const Kernel *kernel = &s->graph->kernels[s->kernel];
    if (at >= 0) return kernel->tile[at];
    if (schedule_walks_along(s, axis->name)) return kernel->step;
    return axis->symbol[0] ? -1 : axis->extent;
}

static int64_t round_up(int64_t n, int64_t to)
{
    return (n + to - 1) / to * to;
}

/* Register tiles load whole vectors; threads look where the lanes end, but load four lanes at once. */
static int64_t lane_padding(const Schedule *s)
{
    return s->target->stages_operands ? 4 : 2 * s->target->vector_floats;
}

bool schedule_slot(Schedule *s, Slot *slot, const Type *type, const AxisNames *without,
                   const char *lane)
{
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < type->rank; i++) {
            const Axis *axis = &type->axis[i];
            bool is_lane = lane && strcmp(axis->name, lane) == 0;
            if ((without && names_contain(without, axis->name)) || is_lane != (pass == 1)) continue;
            int64_t extent = unit_extent(s, axis);
            if (extent < 0) return false;
            if (axis->symbol[0]) continue;
            slot->dim[slot->rank].axis = axis->name;
            slot->dim[slot->rank++].extent = is_lane ? round_up(extent, lane_padding(s)) : extent;
        }
    }
    slot->elements = 1;
    for (int i = slot->rank; i-- > 0;) {
        slot->dim[i].stride = slot->elements;
        if (__builtin_mul_overflow(slot->elements, slot->dim[i].extent, &slot->elements))
            return false;
    }
    slot->offset = s->unit_floats;
    s->unit_floats += round_up(slot->elements, 16);
    return true;
}

/* The part of the operand that a unit reads, if the map may leave it: one extent an axis of the
 * operand. */
static void make_window(Schedule *s, NodeId id)
{
    const Node *read = node_at(s, id);
    const Type *operand = graph_type(s->graph, read->operands[0]);
    Slot *window = &schedule_place(s, id)->window;
    int64_t elements = 1;
    if (schedule_holds(s, read->operands[0])) return;
    if (operand->axis[operand->rank - 1].symbol[0]) return; /* it is copied along the last axis */
    for (int d = 0; d < operand->rank; d++) {
        int64_t extent = 1;
        for (int i = 0; i < read->type.rank; i++) {
            int64_t c = read->attributes.map.dim[d].coefficient[i];
            int64_t indices = unit_extent(s, &read->type.axis[i]);
            if (c < 0 || (c > 0 && indices < 0)) return;
            if (c > 0) extent += c * (indices - 1);
        }
        window->dim[d].axis = operand->axis[d].name;
        window->dim[d].extent = extent;
        if (__builtin_mul_overflow(elements, extent, &elements) || elements > MAX_WINDOW) return;
    }
    window->rank = operand->rank;
    window->elements = 1;
    for (int d = operand->rank; d-- > 0;) {
        window->dim[d].stride = window->elements;
        window->elements *= window->dim[d].extent;
    }
    window->offset = s->unit_floats;
    s->unit_floats += round_up(window->elements, 16);
}

/* Does node `user` take vectors of the value along its own lanes, though others run along another axis? */
static bool takes_turned(const Schedule *s, NodeId id, NodeId user)
{
    if (!schedule_walks(s) || (!sums_walk(s->graph, user) && node_at(s, user)->op != OP_SUM))
        return false;
    const char *lane = schedule_lane(s, user), *own = schedule_lane(s, id);
    return lane && own && strcmp(lane, own) != 0 && type_find(&node_at(s, id)->type, lane) >= 0;
}

/* Is it read for a product that adds up steps, and for another? */
static bool is_read_again(const Schedule *s, NodeId id)
{
    int products = 0, sums = 0;
    for (NodeId n = id + 1; n < s->end; n++) {
        if (node_at(s, n)->op != OP_LINEAR || node_at(s, n)->operands[0] != id) continue;
        products++;
        sums += sums_walk(s->graph, n);
    }
    return sums > 0 && products > sums;
}

/* Is the value read many times over, or by several? Then it is kept. */
static bool is_kept(const Schedule *s, NodeId id)
{
    const Node *node = node_at(s, id);
    if (node->op == OP_WRITE) return false;
    if (node->op == OP_READ) return schedule_walks(s) && is_read_again(s, id);
    int uses = 0;
    for (NodeId n = id + 1; n < s->end; n++) {
        const Node *user = node_at(s, n);
        for (uint32_t i = 0; i < user->operand_count; i++) {
            if (user->operands[i] != id || user->op == OP_WRITE || takes_turned(s, id, n)) continue;
            uses++;
            bool reduced = user->op == OP_MEAN || user->op == OP_SUM;
            if (takes_again(user->op) || is_root(node->op) || (reduced && !is_normal(node->op)))
                uses++;
        }
    }
    return uses > 1 || (uses > 0 && schedule_place(s, id)->fused);
}

static void add_writes(const Schedule *s, Stage *stage)
{
    for (NodeId n = stage->end + 1; n < s->end; n++)
        if (node_at(s, n)->op == OP_WRITE && node_at(s, n)->operands[0] == stage->end) {
            RAFTC_ASSERT(stage->write_count < MAX_WRITES);
            stage->writes[stage->write_count++] = n;
        }
}

static Stage *add_stage(Schedule *s, StageKind kind, NodeId root, NodeId end)
{
    Stage *stage = &s->stages[s->stage_count++];
    *stage = (Stage){.kind = kind, .root = root, .end = end};
    if (kind == STAGE_PRODUCT)
        stage->product = product_tile(s->graph, root, s->lane[root - s->first], s->target);
    if (kind >= STAGE_MAP) add_writes(s, stage);
    return stage;
}

static bool is_padded_operand(const Schedule *s, NodeId id)
{
    const Node *read = node_at(s, id);
    if (s->target->stages_operands || read->op != OP_READ ||
        !map_may_leave(&read->attributes.map, &read->type, graph_type(s->graph, read->operands[0])))
        return false;
    for (NodeId n = id + 1; n < s->end; n++)
        if (node_at(s, n)->op == OP_LINEAR && node_at(s, n)->operands[0] == id) return true;
    return false;
}

/* Has a unit one index along every axis of symbolic extent, or is summed over it? */
static bool symbols_are_split(const Schedule *s, const Node *user, const Type *type)
{
    for (int i = 0; i < type->rank; i++) {
        bool summed =
            is_root(user->op) && names_contain(&user->attributes.over, type->axis[i].name);
        if (unit_extent(s, &type->axis[i]) < 0 && !(summed && user->op != OP_MEAN)) return false;
    }
    return true;
}

/* Tiles walk down a part, a row of it at a time. In rows so long that they all lie at the same few places
 * of the cache, each would push out the one before: those get a line more. */
static void spread_rows(Schedule *s, Slot *slot, int outer)
{
    enum { FEW = 4 * LINE };
    int64_t row = outer > 0 ? slot->dim[outer - 1].stride : 0;
    if (row == 0 || row % FEW != 0) return;
    for (int i = 0; i < outer; i++) slot->dim[i].stride = slot->dim[i].stride / row * (row + LINE);
    int64_t rows = slot->elements / row;
    slot->elements += rows * LINE;
    s->unit_floats += rows * LINE;
}

/* Lanes of a panel: those of a tile, or of a unit that has fewer. */
static int64_t panel_width(const Schedule *s, NodeId linear, const Product *p)
{
    const Type *result = graph_type(s->graph, linear);
    int64_t lanes = unit_extent(s, &result->axis[type_find(result, p->lane)]),
            width = product_width(p, s->target);
    lanes = round_up(lanes, s->target->vector_floats);
    return lanes < width ? lanes : width;
}

/* Cuts a slot, the last so far, down to a panel of `width` lanes. */
static void cut_to_panel(Schedule *s, Slot *slot, int64_t width)
{
    slot->panel = true;
    slot->dim[slot->rank - 1].extent = width;
    slot->elements = 1;
    for (int i = slot->rank; i-- > 0;) {
        slot->dim[i].stride = slot->elements;
        slot->elements *= slot->dim[i].extent;
    }
    s->unit_floats = slot->offset + round_up(slot->elements, 16);
}

/* Does the operand lie in memory along the last axis of the sum of which a part has several indices? */
static bool lies_along_sum(const Schedule *s, NodeId read, const AxisNames *over, const Product *p)
{
    const char *lane = memory_lane(s->graph, read);
    int last = over->count - 1;
    while (last > 0 && p->part[last] == 1) last--;
    return lane && strcmp(lane, over->name[last]) == 0;
}

static void append_part(Type *dims, const AxisNames *over, const Product *p)
{
    for (int i = 0; i < over->count; i++) {
        Axis axis = axis_constant(over->name[i], p->part[i]);
        if (p->part[i] > 1) type_append(dims, &axis);
    }
}

/* Room for a part of one operand of a product. Of the operand with the lanes each tile of them is brought by
 * itself: it stays in the L1 cache while all rows pass by. The other is read number by number: it lies along
 * its rows, or along the sum where it does in memory. */
static bool place_part(Schedule *s, NodeId linear, int operand, const Product *p)
{
    const Node *node = node_at(s, linear);
    const AxisNames *over = &node->attributes.over;
    NodeId id = node->operands[operand];
    const Type *type = graph_type(s->graph, id);
    Slot *slot = &schedule_place(s, id)->value;
    bool panel = type_find(type, p->lane) >= 0;
    bool along = !panel && lies_along_sum(s, id, over, p);
    Type *dims = arena_alloc(s->graph->arena, sizeof *dims); /* the slot refers to its names */
    if (!along) append_part(dims, over, p);
    int outer = dims->rank;
    for (int i = 0; i < type->rank; i++)
        if (!names_contain(over, type->axis[i].name)) type_append(dims, &type->axis[i]);
    if (along) append_part(dims, over, p);
    const char *last = panel ? p->lane : along ? NULL : p->row[0];
    if (!schedule_slot(s, slot, dims, NULL, last)) return false;
    if (panel) cut_to_panel(s, slot, panel_width(s, linear, p));
    spread_rows(s, slot, outer);
    return true;
}

/* Room for a number for each line of an operand in a part, and as many for each tile. */
static void place_lines(Schedule *s, NodeId linear, int operand, const Product *p)
{
    const Node *node = node_at(s, linear);
    const AxisNames *over = &node->attributes.over;
    NodeId id = own_read(s->graph, node->operands[operand]);
    const Type *type = graph_type(s->graph, id);
    const char *lane = memory_lane(s->graph, id);
    Slot *slot = &schedule_place(s, id)->lines;
    int64_t lines = 1, tiles = 1;
    for (int i = 0; i < type->rank; i++) {
        const Axis *axis = &type->axis[i];
        int64_t extent = axis->symbol[0] ? 1 : unit_extent(s, axis);
        for (int k = 0; k < over->count; k++)
            if (strcmp(over->name[k], axis->name) == 0) extent = p->part[k];
        lines *= lane && strcmp(lane, axis->name) == 0 ? ceil_divide(extent, LINE) : extent;
    }
    for (int i = 0; i < node->type.rank; i++) {
        const Axis *axis = &node->type.axis[i];
        int64_t extent = axis->symbol[0] ? 1 : unit_extent(s, axis);
        tiles *= ceil_divide(extent, product_tile_along(p, axis->name, s->target));
    }
    slot->offset = s->unit_floats;
    slot->elements = lines + tiles;
    s->unit_floats += round_up(slot->elements, 16);
}

/* Is what the sums become written as they are, whole cache lines of it? Then that is where they are kept, unless its
 * rows are so long that those of a tile lie at few places of the cache. */
static bool sums_are_written(const Schedule *s, NodeId linear, const char *lane)
{
    enum { PAGE = 1024 }; /* floats */
    NodeId user = NO_NODE;
    if (count_uses(s, linear, true, &user) != 1 || node_at(s, user)->op != OP_WRITE) return false;
    const Node *write = node_at(s, user);
    if (write->layout.rank > 0 || write->type.rank == 0) return false;
    const Index *innermost = &write->attributes.map.dim[write->type.rank - 1];
    int64_t row = write->type.axis[write->type.rank - 1].extent;
    int at = type_find(&node_at(s, linear)->type, lane);
    return innermost->coefficient[at] == 1 && row % LINE == 0 && row < PAGE;
}

/* The slots of a product whose sum is taken in parts. */
static bool place_parts(Schedule *s, NodeId linear)
{
    const Node *node = node_at(s, linear);
    const Product p = product_tile(s->graph, linear, schedule_lane(s, linear), s->target);
    if (!p.in_parts) return true;
    for (int operand = 0; operand < 2; operand++) place_lines(s, linear, operand, &p);
    return place_part(s, linear, 0, &p) && place_part(s, linear, 1, &p) &&
           (sums_are_written(s, linear, p.lane) ||
            schedule_slot(s, &schedule_place(s, linear)->sums, &node->type, NULL, p.lane));
}

/* Are its mean and factor those of another in the kernel, before it? */
static bool share_statistics(const Schedule *s, NodeId id)
{
    const Node *node = node_at(s, id);
    if (!is_normal(node->op)) return false;
    for (NodeId n = s->first; n < id && schedule_lane(s, id); n++) {
        const Node *other = node_at(s, n);
        if (!is_normal(other->op) || !schedule_lane(s, n) ||
            other->operands[0] != node->operands[0] ||
            other->attributes.eps != node->attributes.eps ||
            !names_equal(&other->attributes.over, &node->attributes.over) ||
            strcmp(schedule_lane(s, n), schedule_lane(s, id)) != 0)
            continue;
        schedule_place(s, id)->mean = schedule_place(s, n)->mean;
        schedule_place(s, id)->rstd = schedule_place(s, n)->rstd;
        schedule_place(s, id)->shared = true;
        return true;
    }
    return false;
}

/* The stage and the slots of what a normalisation or a loss takes of whole groups. */
static bool place_statistics(Schedule *s, NodeId id)
{
    const Node *node = node_at(s, id);
    const AxisNames *over = &node->attributes.over;
    Place *place = schedule_place(s, id);
    Slot *slots[4] = {NULL};
    int count = 0;
    bool shared = share_statistics(s, id);
    if (is_normal(node->op) && !shared)
        slots[count++] = &place->mean, slots[count++] = &place->rstd;
    if (is_loss(node->op) || node->op == OP_LAYERNORM_GRAD)
        slots[count++] = &place->first, slots[count++] = &place->second;
    for (int i = 0; i < count; i++)
        if (!schedule_slot(s, slots[i], graph_type(s->graph, node->operands[0]), over,
                           schedule_lane(s, id)))
            return false;
    if (count > 0) add_stage(s, STAGE_STATISTICS, id, id);
    return true;
}

/* Is it the gelu of what a product that sums over the batch reads? It is computed where that takes it, to scratch memory
 * if the sum is taken in parts. */
static bool is_brought(const Schedule *s, NodeId id)
{
    return !s->target->stages_operands && product_of_gelu(s->graph, id) != NO_NODE;
}

/* Room for the operands that a node takes turned, and the stages that fill it. */
static bool place_turned(Schedule *s, NodeId user)
{
    const Node *node = node_at(s, user);
    for (uint32_t i = 0; i < node->operand_count; i++) {
        NodeId id = node->operands[i];
        Place *place = schedule_place(s, id);
        if (!takes_turned(s, id, user) || place->turned.elements) continue;
        const Type *type = graph_type(s->graph, id);
        if (!schedule_slot(s, &place->turned, type, NULL, schedule_lane(s, user))) return false;
        add_stage(s, STAGE_TURN, id, id);
    }
    return true;
}

/* The stages of one node, and its slots. */
static bool place_node(Schedule *s, NodeId id, const NodeId *root_of)
{
    const Node *node = node_at(s, id);
    Place *place = schedule_place(s, id);
    const char *lane = schedule_lane(s, id);
    if (is_brought(s, id)) return true;
    for (uint32_t i = 0; i < node->operand_count && node->op != OP_READ; i++)
        if (!symbols_are_split(s, node, graph_type(s->graph, node->operands[i]))) return false;
    if (node->op == OP_WRITE) return true;
    if (is_padded_operand(s, id)) {
        make_window(s, id);
        if (place->window.elements) add_stage(s, STAGE_WINDOW, id, id);
    }
    if (!place_statistics(s, id)) return false;
    if (node->op == OP_LINEAR && !place_parts(s, id)) return false;
    if (!place_turned(s, id)) return false;
    NodeId root = root_of[id - s->first];
    if (place->fused && root == NO_NODE) return true; /* inside an epilogue */
    bool kept = is_kept(s, id);
    if (root != NO_NODE) lane = schedule_lane(s, root); /* the tiles that fill it have those */
    if (kept && !schedule_slot(s, &place->value, &node->type, NULL, lane)) return false;
    if (kept && schedule_walks(s)) spread_rows(s, &place->value, place->value.rank - 1);
    Stage probe = {.end = id};
    add_writes(s, &probe);
    if (root != NO_NODE)
        add_stage(s, node_at(s, root)->op == OP_LINEAR ? STAGE_PRODUCT : STAGE_REDUCTION, root, id);
    else if (kept || probe.write_count > 0)
        add_stage(s, STAGE_MAP, id, id);
    return true;
}

int64_t kernel_units(const Kernel *kernel)
{
    int64_t units = 1;
    for (int i = 0; i < kernel->rank; i++)
        if (!kernel->axis[i].symbol[0])
            units *= ceil_divide(kernel->axis[i].extent, kernel->tile[i]);
    return units;
}

int64_t schedule_rows(const Schedule *s, const Stage *stage)
{
    const Type *result = graph_type(s->graph, stage->root);
    int64_t rows = 1;
    for (int i = 0; i < stage->product.row_count; i++)
        rows *= unit_extent(s, &result->axis[type_find(result, stage->product.row[i])]);
    return rows;
}

int64_t schedule_block(const Schedule *s, int64_t units, int64_t most)
{
    const int64_t most_floats = 4 << 20; /* scratch is memory, whatever is chosen */
    int64_t chosen = s->graph->kernels[s->kernel].block;
    if (chosen) {
        units = chosen;
        most = most_floats / (s->unit_floats + 1);
    }
    return units < most ? units : most > 1 ? most : 1;
}

/* As many units as make BLOCK_ROWS rows share a panel of weights, if their scratch stays in half of
 * the L2 cache. */
static void choose_block(Schedule *s)
{
    s->block = 1;
    if (schedule_walks(s)) return;
    for (int i = 0; i < s->stage_count; i++) {
        const Product *p = &s->stages[i].product;
        if (s->stages[i].kind != STAGE_PRODUCT || p->rows_in_w || p->in_parts || p->of_images)
            continue;
        int64_t units = BLOCK_ROWS / schedule_rows(s, &s->stages[i]);
        if (units > s->block) s->block = units;
    }
    int64_t most = s->target->l2_bytes / 2 / (4 * (s->unit_floats + 1));
    s->block = schedule_block(s, s->block, most);
}

bool schedule_kernel(Schedule *s, Arena *arena, const Graph *graph, int kernel,
                     const Target *target, Diag *diag)
{
    *s = (Schedule){.graph = graph, .target = target, .kernel = kernel};
    kernel_range(graph, kernel, &s->first, &s->end);
    size_t nodes = s->end - s->first;
    s->lane = kernel_lanes(graph, kernel, target, arena);
    s->place = arena_array(arena, nodes, sizeof *s->place);
    s->stages = arena_array(arena, 4 * nodes, sizeof *s->stages);
    NodeId *stage_end = find_epilogues(s, arena);
    NodeId *root_of = arena_array(arena, nodes, sizeof *root_of);
    for (size_t i = 0; i < nodes; i++) root_of[i] = NO_NODE;
    for (NodeId id = s->first; id < s->end; id++)
        if (is_root(node_at(s, id)->op)) root_of[stage_end[id - s->first] - s->first] = id;
    for (NodeId id = s->first; id < s->end; id++)
        if (!place_node(s, id, root_of))
            return diag_error(diag, node_at(s, id)->loc,
                              "this backend cannot split a kernel that mixes along an axis of "
                              "symbolic extent: '%s'",
                              op_info[node_at(s, id)->op].name);
    choose_block(s);
    return true;
}
