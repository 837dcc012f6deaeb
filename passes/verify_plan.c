/* verify_plan.c: whether all values of a plan lie within their block, and those that are alive at the same
 * time apart; and whether steps that run beside each other leave alone what the others use. When each value is alive is found
 * again from the steps: nothing of the plan is believed. */
#include "passes/pass.h"

typedef struct Life {
    int first, last; /* steps; -1: none */
} Life;

static Life *find_lives(const Plan *plan)
{
    Life *life = arena_array(plan->graph->arena, (size_t)plan->buffer_count, sizeof *life);
    for (int i = 0; i < plan->buffer_count; i++) life[i] = (Life){-1, -1};
    for (int s = 0; s < plan->step_count; s++)
        for (int i = 0; i < plan->steps[s].argument_count; i++) {
            Life *l = &life[plan->steps[s].arguments[i]];
            if (l->first < 0) l->first = s;
            l->last = s;
        }
    return life;
}

/* What is prepared stays for ever. */
static bool alive_together(const Buffer *b, const Life *one, const Life *other)
{
    if (one->first < 0 || other->first < 0) return false;
    return b->kind == BUFFER_PREPARED || (one->first <= other->last && other->first <= one->last);
}

static bool fault(const Plan *plan, int buffer, Diag *diag, const char *what)
{
    return diag_error(diag, graph_node(plan->graph, plan->buffers[buffer].value)->loc,
                      "the memory plan is wrong: buffer %d %s: this is a fault of raftc", buffer,
                      what);
}

static bool is_written_by(const Plan *plan, int buffer, const Step *step)
{
    return graph_node(plan->graph, plan->buffers[buffer].value)->kernel == step->kernel;
}

static bool share_memory(const Buffer *a, const Buffer *b)
{
    if (a == b) return true;
    return a->kind == BUFFER_ARENA && b->kind == BUFFER_ARENA &&
           a->offset < b->offset + b->elements && b->offset < a->offset + a->elements;
}

/* What the step uses of which the other writes something, or the other way round: number of a buffer; -1: nothing. */
static int find_conflict(const Plan *plan, const Step *step, const Step *other)
{
    for (int i = 0; i < step->argument_count; i++)
        for (int k = 0; k < other->argument_count; k++) {
            int mine = step->arguments[i], its = other->arguments[k];
            if (share_memory(&plan->buffers[mine], &plan->buffers[its]) &&
                (is_written_by(plan, mine, step) || is_written_by(plan, its, other)))
                return mine;
        }
    return -1;
}

/* Does every step wait that depends on one since the last that does? */
static bool verify_waits(const Plan *plan, Diag *diag)
{
    for (int s = 0, first = 0; s < plan->step_count; s++) {
        const Step *step = &plan->steps[s];
        if (step->waits) first = s;
        if (s - first >= MOST_TOGETHER)
            return fault(plan, step->arguments[0], diag, "is of too many steps together");
        for (int t = first; t < s; t++) {
            int buffer = find_conflict(plan, step, &plan->steps[t]);
            if (buffer >= 0)
                return fault(plan, buffer, diag, "is used beside a step that it depends on");
        }
    }
    return true;
}

bool plan_verify(const Plan *plan, Diag *diag)
{
    const Life *life = find_lives(plan);
    for (int i = 0; i < plan->buffer_count; i++) {
        const Buffer *a = &plan->buffers[i];
        if (a->kind != BUFFER_ARENA && a->kind != BUFFER_PREPARED) continue;
        int64_t room = a->kind == BUFFER_ARENA ? plan->arena_floats : plan->prepared_floats;
        if (a->offset < 0 || a->elements > room - a->offset)
            return fault(plan, i, diag, "lies outside its block");
        for (int k = 0; k < i; k++) {
            const Buffer *b = &plan->buffers[k];
            bool apart =
                a->offset + a->elements <= b->offset || b->offset + b->elements <= a->offset;
            if (a->kind == b->kind && !apart && alive_together(a, &life[i], &life[k]))
                return fault(plan, i, diag, "overlaps another that is alive, too");
        }
    }
    return verify_waits(plan, diag);
}
