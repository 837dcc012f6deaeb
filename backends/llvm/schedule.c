/* schedule.c: which values of a kernel are kept, where, and the loop nests that compute them.
 *
 * A product or mean takes the point-wise ops that follow it into its epilogue, as long as each is its predecessor's only
 * user. What feeds a product, or is used more than once, is kept in scratch; all else is computed where it is used.
 */
#include "backends/llvm/emit.h"

#include <string.h>

enum { MAX_WINDOW = 1 << 20, BLOCK_ROWS = 56 };

int kernel_axis(const Emitter *e, const char *name)
{
    const Kernel *kernel = &e->graph->kernels[e->kernel];
    for (int i = 0; i < kernel->rank; i++)
        if (strcmp(kernel->axis[i].name, name) == 0) return i;
    return -1;
}

static const Node *node_at(const Emitter *e, NodeId id)
{
    return graph_node(e->graph, id);
}

static bool is_pointwise(Op op)
{
    return op == OP_ADD || op == OP_MUL || op == OP_GELU;
}
static bool is_root(Op op)
{
    return op == OP_LINEAR || op == OP_MEAN;
}

static uint32_t count_uses(const Emitter *e, NodeId id, NodeId *user)
{
    uint32_t uses = 0;
    for (NodeId n = id + 1; n < e->end; n++)
        for (uint32_t i = 0; i < node_at(e, n)->operand_count; i++)
            if (node_at(e, n)->operands[i] == id) {
                uses++;
                *user = n;
            }
    return uses;
}

/* The last op of the epilogue of each product and mean: stage_end[root - first]. The later root takes a sum of two. */
static NodeId *find_epilogues(Emitter *e)
{
    NodeId *stage_end = arena_array(e->arena, e->end - e->first, sizeof *stage_end);
    for (NodeId id = e->end; id-- > e->first;) {
        if (!is_root(node_at(e, id)->op)) continue;
        NodeId at = id, user = NO_NODE;
        while (count_uses(e, at, &user) == 1 && is_pointwise(node_at(e, user)->op) &&
               !place_of(e, user)->fused &&
               node_at(e, user)->type.rank == node_at(e, at)->type.rank) {
            place_of(e, user)->fused = true;
            at = user;
        }
        place_of(e, id)->fused = at != id;
        stage_end[id - e->first] = at;
    }
    return stage_end;
}

/* Extent along one axis inside a unit; -1 where a symbol is no axis of the kernel. */
static int64_t unit_extent(const Emitter *e, const Axis *axis)
{
    int at = kernel_axis(e, axis->name);
    if (at >= 0) return e->graph->kernels[e->kernel].tile[at];
    return axis->symbol[0] ? -1 : axis->extent;
}

static int64_t round_up(int64_t n, int64_t to)
{
    return (n + to - 1) / to * to;
}

/* Rows-major over `type` less `without`, the lane axis last. Symbolic axes have one index in a unit. */
static bool make_slot(Emitter *e, Slot *slot, const Type *type, const AxisNames *without,
                      const char *lane)
{
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < type->rank; i++) {
            const Axis *axis = &type->axis[i];
            bool is_lane = lane && strcmp(axis->name, lane) == 0;
            if ((without && names_contain(without, axis->name)) || is_lane != (pass == 1)) continue;
            int64_t extent = unit_extent(e, axis);
            if (extent < 0) return false;
            if (axis->symbol[0]) continue;
            slot->dim[slot->rank].axis = axis->name;
            slot->dim[slot->rank++].extent =
                is_lane ? round_up(extent, 2 * e->target->vector_floats) : extent;
        }
    }
    slot->elements = 1;
    for (int i = slot->rank; i-- > 0;) {
        slot->dim[i].stride = slot->elements;
        if (__builtin_mul_overflow(slot->elements, slot->dim[i].extent, &slot->elements))
            return false;
    }
    slot->offset = e->unit_floats;
    e->unit_floats += round_up(slot->elements, 16);
    return true;
}

/* The part of the operand that a unit reads, if the map may leave it: one extent an axis of the operand. */
static void make_window(Emitter *e, NodeId id)
{
    const Node *read = node_at(e, id);
    const Type *operand = graph_type(e->graph, read->operands[0]);
    Slot *window = &place_of(e, id)->window;
    int64_t elements = 1;
    if (in_kernel(e, read->operands[0])) return;
    for (int d = 0; d < operand->rank; d++) {
        int64_t extent = 1;
        for (int i = 0; i < read->type.rank; i++) {
            int64_t c = read->attributes.map.dim[d].coefficient[i];
            if (c < 0) return;
            if (c > 0) extent += c * (unit_extent(e, &read->type.axis[i]) - 1);
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
    window->offset = e->unit_floats;
    e->unit_floats += round_up(window->elements, 16);
}

/* Is the value read many times over, or by several? Then it is kept. */
static bool is_kept(const Emitter *e, NodeId id)
{
    const Node *node = node_at(e, id);
    if (node->op == OP_READ || node->op == OP_WRITE) return false;
    int uses = 0;
    for (NodeId n = id + 1; n < e->end; n++) {
        const Node *user = node_at(e, n);
        for (uint32_t i = 0; i < user->operand_count; i++) {
            if (user->operands[i] != id || user->op == OP_WRITE) continue;
            uses++;
            bool again =
                user->op == OP_LINEAR || user->op == OP_LAYERNORM || user->op == OP_RESAMPLE;
            if (again || is_root(node->op) || (user->op == OP_MEAN && node->op != OP_LAYERNORM))
                uses++;
        }
    }
    return uses > 1 || (uses > 0 && place_of(e, id)->fused);
}

static void add_writes(const Emitter *e, Stage *stage)
{
    for (NodeId n = stage->end + 1; n < e->end; n++)
        if (node_at(e, n)->op == OP_WRITE && node_at(e, n)->operands[0] == stage->end) {
            RAFTC_ASSERT(stage->write_count < MAX_WRITES);
            stage->writes[stage->write_count++] = n;
        }
}

static Stage *add_stage(Emitter *e, StageKind kind, NodeId root, NodeId end)
{
    Stage *stage = &e->stages[e->stage_count++];
    *stage = (Stage){.kind = kind, .root = root, .end = end};
    if (kind == STAGE_PRODUCT)
        stage->product = product_tile(e->graph, root, e->lane[root - e->first], e->target);
    if (kind >= STAGE_MAP) add_writes(e, stage);
    return stage;
}

static bool is_padded_operand(const Emitter *e, NodeId id)
{
    const Node *read = node_at(e, id);
    if (read->op != OP_READ ||
        !map_may_leave(&read->attributes.map, &read->type, graph_type(e->graph, read->operands[0])))
        return false;
    for (NodeId n = id + 1; n < e->end; n++)
        if (node_at(e, n)->op == OP_LINEAR && node_at(e, n)->operands[0] == id) return true;
    return false;
}

/* The stages of one node, and its slots. */
static bool place_node(Emitter *e, NodeId id, const NodeId *root_of)
{
    const Node *node = node_at(e, id);
    Place *place = place_of(e, id);
    const char *lane = e->lane[id - e->first];
    if (node->op == OP_WRITE) return true;
    if (is_padded_operand(e, id)) {
        make_window(e, id);
        if (place->window.elements) add_stage(e, STAGE_WINDOW, id, id);
    }
    if (node->op == OP_LAYERNORM) {
        const AxisNames *over = &node->attributes.over;
        if (!make_slot(e, &place->mean, &node->type, over, lane) ||
            !make_slot(e, &place->rstd, &node->type, over, lane))
            return false;
        add_stage(e, STAGE_STATISTICS, id, id);
    }
    NodeId root = root_of[id - e->first];
    if (place->fused && root == NO_NODE) return true; /* inside an epilogue */
    bool kept = is_kept(e, id);
    if (kept && !make_slot(e, &place->value, &node->type, NULL, lane)) return false;
    Stage probe = {.end = id};
    add_writes(e, &probe);
    if (root != NO_NODE)
        add_stage(e, node_at(e, root)->op == OP_MEAN ? STAGE_MEAN : STAGE_PRODUCT, root, id);
    else if (kept || probe.write_count > 0)
        add_stage(e, STAGE_MAP, id, id);
    return true;
}

/* As many units as make BLOCK_ROWS rows share a panel of weights, if their scratch stays in half of the L2 cache. */
static void choose_block(Emitter *e)
{
    e->block = 1;
    for (int i = 0; i < e->stage_count; i++) {
        const Product *p = &e->stages[i].product;
        if (e->stages[i].kind != STAGE_PRODUCT || p->rows_in_w) continue;
        int64_t rows = 1;
        for (int k = 0; k < p->row_count; k++)
            if (kernel_axis(e, p->row[k]) >= 0)
                rows *= e->graph->kernels[e->kernel].tile[kernel_axis(e, p->row[k])];
        int64_t units = BLOCK_ROWS / rows;
        if (units > e->block) e->block = units;
    }
    int64_t most = e->target->l2_bytes / 2 / (4 * (e->unit_floats + 1));
    if (e->block > most) e->block = most > 1 ? most : 1;
}

bool schedule_kernel(Emitter *e)
{
    size_t nodes = e->end - e->first;
    e->lane = kernel_lanes(e->graph, e->kernel, e->arena);
    e->place = arena_array(e->arena, nodes, sizeof *e->place);
    e->stages = arena_array(e->arena, 3 * nodes, sizeof *e->stages);
    e->stage_count = 0;
    e->unit_floats = 0;
    NodeId *stage_end = find_epilogues(e);
    NodeId *root_of = arena_array(e->arena, nodes, sizeof *root_of);
    for (size_t i = 0; i < nodes; i++) root_of[i] = NO_NODE;
    for (NodeId id = e->first; id < e->end; id++)
        if (is_root(node_at(e, id)->op)) root_of[stage_end[id - e->first] - e->first] = id;
    for (NodeId id = e->first; id < e->end; id++)
        if (!place_node(e, id, root_of))
            return diag_error(e->diag, node_at(e, id)->loc,
                              "the cpu backend cannot split a kernel that mixes along an axis of "
                              "symbolic extent: '%s'",
                              op_info[node_at(e, id)->op].name);
    choose_block(e);
    return true;
}
