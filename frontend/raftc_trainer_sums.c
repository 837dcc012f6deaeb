/* raftc_trainer_sums.c: gradients summed over the processes while the backward pass still runs.
 *
 * The block of gradients is cut into slices, from its end, as the pass goes from the last layer to the
 * first. The sum of a slice begins after the step that is the last to have a gradient of it, for the
 * last images of the last part of the batch. All processes begin them in the same order, and no bit
 * depends on when. */
#include "frontend/raftc_trainer.h"

#include <limits.h>

/* The last step of the backward pass that writes or reads the output. */
static int last_step(const RaftProgram *program, int output)
{
    for (int s = program->step_count; s-- > 0;) {
        const RaftStep *step = &program->step[s];
        if (!(step->entries & program->backward_entry)) continue;
        for (int i = 0; i < step->argument_count; i++) {
            const RaftBuffer *buffer = &program->buffer[step->argument[i]];
            if (buffer->kind == RAFT_BUFFER_OUTPUT && buffer->offset == output) return s;
        }
    }
    return 0;
}

static void begin_sums(Trainer *t, int step)
{
    for (; t->begun < t->slice_count && t->slice[t->begun].step <= step; t->begun++) {
        const Slice *slice = &t->slice[t->begun];
        if (t->adds) trainer_add_part(t, slice->first, slice->floats);
        raft_comm_sum_begin(t->comm, t->gradients + slice->first, slice->floats);
    }
}

static void look(void *user, int step, float *const *argument, int64_t first, int64_t images)
{
    Trainer *t = user;
    (void)argument;
    if (t->last && first + images == t->images) begin_sums(t, step);
}

void trainer_plan_sums(Trainer *t)
{
    const int64_t least = (t->floats + RAFT_COMM_SUMS - 1) / RAFT_COMM_SUMS;
    const RaftProgram *program = t->model.program;
    int64_t end = t->floats;
    int step = 0;
    for (int i = t->parameter_count; i-- > 0;) {
        int output = t->gradient[i];
        int last = program && output >= 0 ? last_step(program, output) : 0;
        if (last > step) step = last;
        if (end - t->offset[i] < least && i > 0) continue;
        t->slice[t->slice_count++] = (Slice){t->offset[i], end - t->offset[i], step};
        end = t->offset[i];
    }
    if (t->model.shell && !t->session->options->check_numerics)
        raft_shell_watch(t->model.shell, look, t);
}

void trainer_begin_rest(Trainer *t)
{
    begin_sums(t, INT_MAX);
}
