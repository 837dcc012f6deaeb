/* chain.c: finds products that take turns, how many lanes a turn takes, and long sums.
 *
 * The second product reads a panel of its weights, part x lanes of its tile, for every tile of rows
 * of the block: that should stay in the L1 cache. With the hidden values cut down to a part, a block
 * can take more units, and so all weights are read fewer times.
 *
 * Where lanes are shared out, all units with the same ones stream a panel, all of the sum x lanes, past rows as long. A sum of
 * thousands is taken in parts, too: a part of the panel by each unit in turn, so that it stays in the L2 cache and the
 * rows in the L1 cache.
 */
#include "backends/llvm/emit.h"

#include <string.h>

/* Do all units have all lanes, and are they those of the weights? */
static bool has_whole_panels(const Emitter *e, const Stage *stage)
{
    const Product *p = &stage->product;
    return stage->kind == STAGE_PRODUCT && p->lane && !p->lane_in_x &&
           schedule_axis(&e->schedule, p->lane) < 0;
}

static bool is_chain(const Emitter *e, const Stage *first, const Stage *second)
{
    if (!has_whole_panels(e, first) || !has_whole_panels(e, second)) return false;
    const Node *linear = graph_node(e->graph, second->root);
    const AxisNames *over = &linear->attributes.over;
    if (linear->operands[0] != first->end || over->count != 1 ||
        strcmp(over->name[0], first->product.lane) != 0)
        return false;
    for (NodeId id = first->end + 1; id < e->schedule.end; id++) {
        const Node *node = graph_node(e->graph, id);
        for (uint32_t i = 0; node->op != OP_WRITE && i < node->operand_count; i++)
            if (node->operands[i] == first->end && (id != second->root || i > 0)) return false;
    }
    return true;
}

/* Whole panels of the first product, in parts of one size where there is such a number of them that is not
 * much greater than the least: a last part of another size is code of its own. 0: all fit. */
static int64_t choose_part(const Emitter *e, const Chain *chain, int64_t extent)
{
    int64_t panel = product_width(&chain->first->product, e->target);
    int64_t bytes_of_index = 4 * product_width(&chain->second->product, e->target);
    int64_t most = e->target->l1_bytes * 3 / 4 / bytes_of_index / panel;
    int64_t panels = (extent + panel - 1) / panel;
    int64_t chosen = e->graph->kernels[e->schedule.kernel].part;
    if (chosen > 0) {
        int64_t part = chosen < extent ? (chosen + panel - 1) / panel * panel : extent;
        return part < extent ? part : 0;
    }
    if (most < 1 || panels <= most) return 0;
    int64_t parts = (panels + most - 1) / most;
    for (int64_t even = parts; extent % panel == 0 && even <= 2 * parts; even++)
        if (panels % even == 0) return panels / even * panel;
    return (panels + parts - 1) / parts * panel;
}

static void move_slot(Slot *slot, int64_t after, int64_t by)
{
    if (slot->elements && slot->offset > after) slot->offset -= by;
}

/* The slot of the hidden values, cut down to a part: what lies behind it moves up, so many floats. */
static int64_t cut_slot(Emitter *e, Slot *slot, int64_t part)
{
    const int64_t unit = 16; /* slots are multiples of this */
    int64_t before = (slot->elements + unit - 1) / unit * unit;
    int64_t lanes = 2 * e->target->vector_floats;
    slot->dim[slot->rank - 1].extent = (part + lanes - 1) / lanes * lanes;
    slot->elements = 1;
    for (int i = slot->rank; i-- > 0;) {
        slot->dim[i].stride = slot->elements;
        slot->elements *= slot->dim[i].extent;
    }
    int64_t saved = before - (slot->elements + unit - 1) / unit * unit;
    for (NodeId id = e->schedule.first; id < e->schedule.end; id++) {
        Place *place = schedule_place(&e->schedule, id);
        Slot *slots[] = {&place->value,  &place->mean, &place->rstd,  &place->first,
                         &place->second, &place->sums, &place->lines, &place->window};
        for (size_t i = 0; i < ARRAY_SIZE(slots); i++) move_slot(slots[i], slot->offset, saved);
    }
    e->schedule.unit_floats -= saved;
    return saved;
}

/* Units of a block. Weights come from beyond the L2 cache, so many rows should share them; while a
 * panel is at work, its part of the hidden values and a few rows of the rest are what is needed, so
 * that all together may be twice what the cache holds. (On an EPYC with 512 KB of L2, 224 rows are a
 * sixth faster than the 56 that fit.) */
static int64_t choose_block(const Emitter *e, const Stage *stage)
{
    enum { BLOCK_ROWS = 224 };
    int64_t rows = schedule_rows(&e->schedule, stage),
            most = 2 * e->target->l2_bytes / (4 * e->schedule.unit_floats);
    int64_t units = rows < BLOCK_ROWS ? BLOCK_ROWS / rows : 1;
    return schedule_block(&e->schedule, units, most);
}

bool lanes_are_shared_out(const Emitter *e, const Stage *stage)
{
    const Product *p = &stage->product;
    const Kernel *kernel = &e->graph->kernels[e->schedule.kernel];
    if (stage->kind != STAGE_PRODUCT || !p->lane || p->lane_in_x || p->in_parts ||
        kernel->rank == 0 || strcmp(kernel->axis[0].name, p->lane) != 0)
        return false;
    const Type *weights = graph_type(e->graph, graph_node(e->graph, stage->root)->operands[1]);
    for (int i = 1; i < kernel->rank; i++)
        if (type_find(weights, kernel->axis[i].name) >= 0) return false;
    int64_t lanes = kernel->tile[0];
    return lanes == product_width(p, e->target) && lanes < kernel->axis[0].extent;
}

/* Its rows stay in a third of the L1 cache; a panel that is small beside the L2 cache stays there whole. */
static bool find_long_sum(Emitter *e, const Stage *stage)
{
    enum { EVEN = 64, LEAST_SHARE = 8 };
    const Product *p = &stage->product;
    const Node *linear = graph_node(e->graph, stage->root);
    if (!lanes_are_shared_out(e, stage) || linear->attributes.over.count != 1 ||
        graph_node(e->graph, linear->operands[0])->op != OP_READ)
        return false;
    Chain chain = {.second = stage, .axis = linear->attributes.over.name[0]};
    const Type *x = graph_type(e->graph, linear->operands[0]),
               *result = graph_type(e->graph, stage->root);
    const int64_t bytes = sizeof(float), extent = x->axis[type_find(x, chain.axis)].extent;
    int64_t rows = 1;
    for (int i = 0; i < p->row_count; i++) rows *= p->row_tile[i];
    int64_t most = e->target->l1_bytes / 3 / (bytes * rows) / EVEN * EVEN;
    int64_t panel = bytes * extent * product_width(p, e->target);
    if (panel < e->target->l2_bytes / LEAST_SHARE || most == 0 || extent <= most) return false;
    chain.part = ceil_divide(ceil_divide(extent, ceil_divide(extent, most)), EVEN) * EVEN;
    if (!schedule_slot(&e->schedule, &chain.sums, result, NULL, p->lane)) return false;
    e->chain = chain;
    const Kernel *kernel = &e->graph->kernels[e->schedule.kernel];
    int64_t units = kernel_units(kernel) / ceil_divide(kernel->axis[0].extent, kernel->tile[0]);
    e->schedule.block = schedule_block(&e->schedule, units, units);
    return true;
}

void find_chain(Emitter *e)
{
    Schedule *s = &e->schedule;
    e->chain = (Chain){0};
    if (schedule_walks(s)) return;
    if (s->stage_count == 1 && find_long_sum(e, &s->stages[0])) return;
    for (int i = 0; i + 1 < s->stage_count; i++) {
        Chain chain = {.first = &s->stages[i], .second = &s->stages[i + 1]};
        if (!is_chain(e, chain.first, chain.second)) continue;
        chain.axis = chain.first->product.lane;
        const Type *hidden = graph_type(e->graph, chain.first->end);
        int64_t extent = hidden->axis[type_find(hidden, chain.axis)].extent;
        Slot *slot = &schedule_place(s, chain.first->end)->value;
        chain.part = choose_part(e, &chain, extent);
        if (!chain.part || strcmp(slot->dim[slot->rank - 1].axis, chain.axis) != 0) continue;
        const Type *result = graph_type(e->graph, chain.second->root);
        if (!schedule_slot(s, &chain.sums, result, NULL, chain.second->product.lane)) continue;
        chain.sums.offset -= cut_slot(e, slot, chain.part);
        e->chain = chain;
        s->block = choose_block(e, chain.second);
        return;
    }
}
