/* plan_memory.c: the order of the kernels as steps, and a place for every stored value.
 *
 * Values that live at the same time get disjoint ranges of one arena, placed by the better of two
 * rules: the largest first, or the earliest first. What depends on parameters alone goes to the
 * prepared block, which stays.
 */
#include "passes/pass.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGN_FLOATS = 16 }; /* 64 bytes: a cache line, and the widest vector */

static int64_t round_up(int64_t n)
{
    return (n + ALIGN_FLOATS - 1) / ALIGN_FLOATS * ALIGN_FLOATS;
}

static bool is_stored(const Node *node)
{
    return node->op == OP_INPUT || node->op == OP_PARAM || node->op == OP_WRITE;
}

static int output_index(const Graph *graph, NodeId value)
{
    for (uint32_t i = 0; i < graph->output_count; i++)
        if (graph->outputs[i].value == value) return (int)i;
    return -1;
}

static int *list_buffers(Arena *arena, Plan *plan)
{
    const Graph *g = plan->graph;
    bool *param_only = graph_param_only(g, arena);
    int *buffer_of = arena_array(arena, g->node_count, sizeof *buffer_of);
    plan->buffers = arena_array(arena, g->node_count, sizeof *plan->buffers);
    int inputs = 0, params = 0;
    for (NodeId id = 0; id < g->node_count; id++) {
        const Node *node = graph_node(g, id);
        buffer_of[id] = -1;
        if (!is_stored(node)) continue;
        int symbols, output = output_index(g, id);
        type_elements(&node->type, &symbols);
        Buffer b = {.value = id, .first_step = -1, .last_step = -1, .batched = symbols > 0};
        b.elements = layout_elements(&node->type, &node->layout);
        if (node->op == OP_INPUT) {
            b.kind = BUFFER_INPUT;
            b.index = inputs++;
        } else if (node->op == OP_PARAM) {
            b.kind = BUFFER_PARAM;
            b.index = params++;
        } else if (output >= 0) {
            b.kind = BUFFER_OUTPUT;
            b.index = output;
        } else {
            b.kind = param_only[id] ? BUFFER_PREPARED : BUFFER_ARENA;
        }
        buffer_of[id] = plan->buffer_count;
        plan->buffers[plan->buffer_count++] = b;
    }
    return buffer_of;
}

static void add_argument(Step *step, int buffer)
{
    for (int i = 0; i < step->argument_count; i++)
        if (step->arguments[i] == buffer) return;
    step->arguments[step->argument_count++] = buffer;
}

/* One step a kernel, in the order of the nodes: what it reads, then what it writes. */
static void list_steps(Arena *arena, Plan *plan, const int *buffer_of)
{
    const Graph *g = plan->graph;
    bool *param_only = graph_param_only(g, arena);
    plan->steps = arena_array(arena, g->kernel_count, sizeof *plan->steps);
    for (NodeId id = 0; id < g->node_count;) {
        int kernel = g->nodes[id].kernel;
        if (kernel == NO_KERNEL) {
            RAFTC_ASSERT(is_stored(&g->nodes[id]));
            id++;
            continue;
        }
        NodeId first, end;
        kernel_range(g, kernel, &first, &end);
        Step *step = &plan->steps[plan->step_count++];
        step->kernel = kernel;
        step->prepare = true;
        step->arguments = arena_array(arena, 2 * (size_t)(end - first), sizeof *step->arguments);
        for (NodeId n = first; n < end; n++) {
            const Node *node = &g->nodes[n];
            if (node->op == OP_READ && buffer_of[node->operands[0]] >= 0)
                add_argument(step, buffer_of[node->operands[0]]);
        }
        for (NodeId n = first; n < end; n++) {
            if (g->nodes[n].op != OP_WRITE) continue;
            add_argument(step, buffer_of[n]);
            step->prepare &= param_only[n];
        }
        id = end;
    }
}

static bool writes(const Plan *plan, const Step *step, int buffer)
{
    return graph_node(plan->graph, plan->buffers[buffer].value)->kernel == step->kernel;
}

/* Whether all that a step of prepare reads from other such steps is there. */
static bool can_run(const Plan *plan, const Step *step, const bool *written)
{
    bool good = true;
    for (int i = 0; i < step->argument_count; i++) {
        int buffer = step->arguments[i];
        if (plan->buffers[buffer].kind == BUFFER_PREPARED && !writes(plan, step, buffer))
            good &= written[buffer];
    }
    return good;
}

static int64_t step_elements(const Plan *plan, const Step *step)
{
    int64_t elements = 0;
    for (int i = 0; i < step->argument_count; i++)
        elements += plan->buffers[step->arguments[i]].elements;
    return elements;
}

/* The steps of prepare come first, the largest first: while one runs there are in memory its
 * parameter and all that was packed so far, which is the most at the end, with the smallest. */
static void order_prepare(Arena *arena, Plan *plan)
{
    Step *ordered = arena_array(arena, (size_t)plan->step_count, sizeof *ordered);
    bool *taken = arena_array(arena, (size_t)plan->step_count, sizeof *taken);
    bool *written = arena_array(arena, (size_t)plan->buffer_count, sizeof *written);
    int count = 0;
    for (int best = 0; best >= 0;) {
        best = -1;
        for (int s = 0; s < plan->step_count; s++) {
            const Step *step = &plan->steps[s];
            if (!step->prepare || taken[s] || !can_run(plan, step, written)) continue;
            if (best < 0 || step_elements(plan, step) > step_elements(plan, &plan->steps[best]))
                best = s;
        }
        if (best < 0) break;
        taken[best] = true;
        ordered[count++] = plan->steps[best];
        for (int i = 0; i < plan->steps[best].argument_count; i++)
            written[plan->steps[best].arguments[i]] = true;
    }
    for (int s = 0; s < plan->step_count; s++)
        if (!taken[s]) ordered[count++] = plan->steps[s];
    RAFTC_ASSERT(count == plan->step_count);
    plan->steps = ordered;
}

/* Which entries need which steps: backwards from their outputs. */
static void find_entries(Arena *arena, Plan *plan, const int *buffer_of)
{
    const Graph *g = plan->graph;
    unsigned *needed = arena_array(arena, (size_t)plan->buffer_count, sizeof *needed);
    for (uint32_t i = 0; i < g->output_count; i++) {
        int entry = 0;
        while (entry < plan->entry_count && strcmp(plan->entry[entry], g->outputs[i].entry) != 0)
            entry++;
        RAFTC_ASSERT(entry < (int)ARRAY_SIZE(plan->entry));
        plan->entry[entry] = g->outputs[i].entry;
        if (entry == plan->entry_count) plan->entry_count++;
        needed[buffer_of[g->outputs[i].value]] |= 1u << entry;
    }
    for (int s = plan->step_count; s-- > 0;) {
        Step *step = &plan->steps[s];
        for (int i = 0; i < step->argument_count; i++) {
            NodeId value = plan->buffers[step->arguments[i]].value;
            if (g->nodes[value].kernel == step->kernel) step->entries |= needed[step->arguments[i]];
        }
        for (int i = 0; i < step->argument_count; i++) needed[step->arguments[i]] |= step->entries;
    }
}

/* What every entry but `backward` needs comes first: then it may be run alone, and the rest of the
 * backward entry after it. */
static void order_forward(Arena *arena, Plan *plan)
{
    Step *ordered = arena_array(arena, (size_t)plan->step_count, sizeof *ordered);
    unsigned forward = 0;
    int count = 0;
    for (int i = 0; i < plan->entry_count; i++)
        if (strcmp(plan->entry[i], "backward") != 0) forward |= 1u << i;
    for (int rest = 0; rest < 2; rest++)
        for (int s = 0; s < plan->step_count; s++) {
            const Step *step = &plan->steps[s];
            bool first = step->prepare || step->entries & forward;
            if (first == !rest) ordered[count++] = *step;
        }
    plan->steps = ordered;
}

static void find_live_ranges(Plan *plan)
{
    for (int s = 0; s < plan->step_count; s++) {
        for (int i = 0; i < plan->steps[s].argument_count; i++) {
            Buffer *b = &plan->buffers[plan->steps[s].arguments[i]];
            if (b->first_step < 0) b->first_step = s;
            b->last_step = s;
        }
    }
}

static bool live_together(const Buffer *a, const Buffer *b)
{
    return a->first_step <= b->last_step && b->first_step <= a->last_step;
}

/* Lowest offset at which `b` overlaps none of the `count` placed buffers that live with it. */
static int64_t lowest_offset(const Buffer *b, Buffer *const *placed, int count)
{
    int64_t offset = 0;
    for (bool moved = true; moved;) {
        moved = false;
        for (int i = 0; i < count; i++) {
            const Buffer *p = placed[i];
            int64_t end = p->offset + round_up(p->elements);
            if (live_together(b, p) && offset < end && p->offset < offset + round_up(b->elements)) {
                offset = end;
                moved = true;
            }
        }
    }
    return offset;
}

static int by_size(const void *left, const void *right)
{
    const Buffer *a = *(Buffer *const *)left, *b = *(Buffer *const *)right;
    if (a->elements != b->elements) return a->elements > b->elements ? -1 : 1;
    return a->value < b->value ? -1 : 1;
}

static int by_step(const void *left, const void *right)
{
    const Buffer *a = *(Buffer *const *)left, *b = *(Buffer *const *)right;
    if (a->first_step != b->first_step) return a->first_step < b->first_step ? -1 : 1;
    return a->value < b->value ? -1 : 1;
}

/* Highest offset at which it overlaps none and ends at `top` or before; below 0: there is none. */
static int64_t highest_offset(const Buffer *b, Buffer *const *placed, int count, int64_t top)
{
    int64_t size = round_up(b->elements), offset = top - size;
    for (bool moved = true; moved;) {
        moved = false;
        for (int i = 0; i < count; i++) {
            const Buffer *p = placed[i];
            int64_t end = p->offset + round_up(p->elements);
            if (live_together(b, p) && offset < end && p->offset < offset + size) {
                offset = p->offset - size;
                moved = true;
            }
        }
    }
    return offset;
}

static int64_t end_of(Buffer *const *list, int count)
{
    int64_t end = 0;
    for (int i = 0; i < count; i++)
        if (list[i]->offset + round_up(list[i]->elements) > end)
            end = list[i]->offset + round_up(list[i]->elements);
    return end;
}

/* The largest first, each as low as can be. */
static int64_t place_by_size(Buffer **list, int count)
{
    qsort(list, (size_t)count, sizeof *list, by_size);
    for (int i = 0; i < count; i++) list[i]->offset = lowest_offset(list[i], list, i);
    return end_of(list, count);
}

/* In the order of steps, each as near as can be to one of the ends of an arena of `top` floats: so
 * a chain of tensors of different sizes alternates between them. */
static int64_t place_at_ends(Buffer **list, int count, int64_t top)
{
    qsort(list, (size_t)count, sizeof *list, by_step);
    for (int i = 0; i < count; i++) {
        int64_t low = lowest_offset(list[i], list, i), high = highest_offset(list[i], list, i, top);
        bool at_top = high >= 0 && top - high - round_up(list[i]->elements) < low;
        list[i]->offset = at_top ? high : low;
    }
    return end_of(list, count);
}

static void find_peak(Plan *plan, Buffer *const *list, int count)
{
    for (int s = 0; s < plan->step_count; s++) {
        int64_t live = 0;
        for (int i = 0; i < count; i++)
            if (list[i]->first_step <= s && s <= list[i]->last_step)
                live += round_up(list[i]->elements);
        if (live > plan->peak_floats) plan->peak_floats = live;
    }
}

static void place_arena(Arena *arena, Plan *plan)
{
    Buffer **list = arena_array(arena, (size_t)plan->buffer_count, sizeof *list);
    int count = 0;
    for (int i = 0; i < plan->buffer_count; i++)
        if (plan->buffers[i].kind == BUFFER_ARENA) list[count++] = &plan->buffers[i];
    find_peak(plan, list, count);
    plan->arena_floats = place_by_size(list, count);
    if (plan->arena_floats == plan->peak_floats) return;
    int64_t at_ends = place_at_ends(list, count, plan->peak_floats);
    if (at_ends < plan->arena_floats)
        plan->arena_floats = at_ends;
    else
        place_by_size(list, count);
}

/* Do both lie, in part, in the same memory? */
static bool in_same_memory(const Plan *plan, int one, int other)
{
    const Buffer *a = &plan->buffers[one], *b = &plan->buffers[other];
    return one == other || (a->kind == BUFFER_ARENA && b->kind == BUFFER_ARENA &&
                            a->offset < b->offset + round_up(b->elements) &&
                            b->offset < a->offset + round_up(a->elements));
}

/* Does one of two steps write where the other reads or writes? */
static bool are_in_order(const Plan *plan, const Step *a, const Step *b)
{
    for (int i = 0; i < a->argument_count; i++)
        for (int k = 0; k < b->argument_count; k++)
            if (in_same_memory(plan, a->arguments[i], b->arguments[k]) &&
                (writes(plan, a, a->arguments[i]) || writes(plan, b, b->arguments[k])))
                return true;
    return false;
}

/* Sums that follow a kernel depend on what it wrote, but not on each other, nor the next kernel on them. */
static void find_waits(Plan *plan)
{
    int first = 0; /* of the steps that may run beside each other */
    for (int s = 0; s < plan->step_count; s++) {
        Step *step = &plan->steps[s];
        step->waits = step->prepare || s - first >= MOST_TOGETHER;
        for (int t = first; t < s && !step->waits; t++)
            step->waits = are_in_order(plan, &plan->steps[t], step);
        if (step->waits) first = s;
    }
}

Plan *plan_memory(Arena *arena, const Graph *graph)
{
    Plan *plan = arena_alloc(arena, sizeof *plan);
    plan->graph = graph;
    int *buffer_of = list_buffers(arena, plan);
    list_steps(arena, plan, buffer_of);
    order_prepare(arena, plan);
    find_entries(arena, plan, buffer_of);
    order_forward(arena, plan);
    find_live_ranges(plan);
    place_arena(arena, plan);
    for (int i = 0; i < plan->buffer_count; i++) {
        Buffer *b = &plan->buffers[i];
        if (b->kind != BUFFER_PREPARED) continue;
        b->offset = plan->prepared_floats;
        plan->prepared_floats += round_up(b->elements);
    }
    find_waits(plan);
    return plan;
}

void plan_print(const Plan *plan, Text *out)
{
    static const char *const kind[] = {"input", "output", "param", "prepared", "arena"};
    text_printf(out,
                "arena %lld bytes an image, lower bound %lld; prepared %lld bytes\n"
                "buffer    bytes/image  offset       steps      type\n",
                (long long)plan->arena_floats * 4, (long long)plan->peak_floats * 4,
                (long long)plan->prepared_floats * 4);
    for (int i = 0; i < plan->buffer_count; i++) {
        const Buffer *b = &plan->buffers[i];
        if (b->kind == BUFFER_PARAM) continue;
        text_printf(out, "%-9s %12lld %12lld %4d..%-4d  ", kind[b->kind],
                    (long long)b->elements * 4, (long long)b->offset * 4, b->first_step,
                    b->last_step);
        type_print(graph_type(plan->graph, b->value), out);
        text_put(out, "\n");
    }
}
