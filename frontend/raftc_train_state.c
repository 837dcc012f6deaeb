/* raftc_train_state.c: how a run begins, and its checkpoints. */
#include "frontend/raftc_train_run.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { KEPT_CHECKPOINTS = 3 };

/* ---- the start ---------------------------------------------------------------------------------- */

/* The index of the parameter, or -1. */
static int find_parameter(const Trainer *t, const char *name)
{
    for (int i = 0; i < t->parameter_count; i++)
        if (strcmp(t->parameters[i].name, name) == 0) return i;
    return -1;
}

/* PyTorch's: Linear weights and biases uniform within 1 / sqrt(inputs), LayerNorm 1 and 0. */
static void draw_weights(Run *run)
{
    Trainer *t = &run->trainer;
    for (int i = 0; i < t->parameter_count; i++) {
        const RaftTensorInfo *info = &t->parameters[i];
        const char *dot = strrchr(info->name, '.');
        bool bias = dot && strcmp(dot, ".bias") == 0;
        int weight = i;
        if (bias)
            weight = find_parameter(t, arena_printf(run->session->arena, "%.*s.weight",
                                                    (int)(dot - info->name), info->name));
        bool linear = weight >= 0 && t->parameters[weight].rank == 2;
        double bound = linear ? 1 / sqrt((double)t->parameters[weight].shape[1]) : 0;
        RaftRandom random =
            raft_random((uint64_t)run->settings->seed, 0, (uint32_t)i, RAFT_FOR_WEIGHTS);
        float *data = trainer_weights(t, i);
        for (int64_t k = 0; k < info->elements; k++)
            data[k] = linear ? (float)raft_random_uniform(&random, -bound, bound) : !bias;
    }
}

static bool same_shape(const RaftTensor *tensor, const RaftTensorInfo *info)
{
    return tensor->rank == info->rank &&
           !memcmp(tensor->shape, info->shape, (size_t)info->rank * sizeof info->shape[0]);
}

/* Takes what fits of a weight file, but for the classifier, and names what does not. */
static Exit take_pretrained(Run *run, const char *path)
{
    Trainer *t = &run->trainer;
    RaftWeights *weights;
    RaftError error;
    RaftStatus status = raft_weights_open(path, &weights, &error);
    if (status) return run_fail(run, status, &error);
    for (int i = 0; !status && i < t->parameter_count; i++) {
        const RaftTensorInfo *info = &t->parameters[i];
        if (strncmp(info->name, "classifier.", 11) == 0) continue;
        const RaftTensor *tensor = raft_weights_find(weights, info->name);
        if (tensor && same_shape(tensor, info))
            status = raft_tensor_read_f32(tensor, trainer_weights(t, i), &error);
        else
            session_note(run->session, "%s: '%s' %s; it starts anew", path, info->name,
                         tensor ? "is of another shape" : "is missing");
    }
    raft_weights_close(weights);
    return status ? run_fail(run, status, &error) : EXIT_DONE;
}

static Exit start_weights(Run *run)
{
    const Options *options = run->session->options;
    Trainer *t = &run->trainer;
    const float **data;
    draw_weights(run);
    if (run->settings->pretrained_from) return take_pretrained(run, run->settings->pretrained_from);
    if (!options->weights) return EXIT_DONE;
    Exit exit = parameters_read(run->session, run->session->arena, options->weights, t->parameters,
                                t->parameter_count, &data);
    for (int i = 0; exit == EXIT_DONE && i < t->parameter_count; i++)
        memcpy(trainer_weights(t, i), data[i], (size_t)t->parameters[i].elements * sizeof(float));
    return exit;
}

/* ---- checkpoints -------------------------------------------------------------------------------- */

/* The weights that the run is for, under the names that a model knows, then each other state as one
 * tensor; *count of them. */
static RaftTensor *state_tensors(Run *run, int *count)
{
    Trainer *t = &run->trainer;
    Arena *arena = run->session->arena;
    const float *best = trainer_best(t);
    *count = t->parameter_count;
    RaftTensor *all = arena_array(arena, (size_t)(*count + t->state_count), sizeof *all);
    memcpy(all, trainer_tensors(t, best), (size_t)*count * sizeof *all);
    for (int k = 0; k < t->state_count; k++)
        if (t->state[k].block[0] != best)
            all[(*count)++] =
                (RaftTensor){.name = arena_printf(arena, RAFT_STATE_PREFIX "%s", t->state[k].name),
                             .dtype = RAFT_F32,
                             .rank = 1,
                             .shape = {t->floats},
                             .elements = t->floats,
                             .data = t->state[k].block[0]};
    return all;
}

/* What a resumed run must have in common with the one before, then what changes how its sums are rounded,
 * then what else a checkpoint says, as key, value, ..., NULL. */
enum { MUST_AGREE = 5, SHOULD_AGREE = 7, FACTS = 9 };

static const char **identity(const Run *run, const char *step)
{
    Arena *arena = run->session->arena;
    const RaftPixels *pixels = &run->data.pixels;
    const struct {
        const char *key, *value;
    } facts[FACTS] = {
        {"seed", arena_printf(arena, "%lld", (long long)run->settings->seed)},
        {"batch_size", arena_printf(arena, "%lld", (long long)run->trainer.batch)},
        {"images", arena_printf(arena, "%lld", (long long)raft_dataset_count(run->train))},
        {"num_epochs", arena_printf(arena, "%lld", (long long)run->epochs)},
        {"image", arena_printf(arena, "%dx%d", pixels->height, pixels->width)},
        {"processes", arena_printf(arena, "%d", run->comm.size)},
        {"accumulation_steps", arena_printf(arena, "%lld", (long long)run->trainer.parts)},
        {"step", step},
        {"validation", run->due ? "due" : "done"}};
    const char **pairs = arena_array(arena, 2 * FACTS + 1, sizeof *pairs);
    for (size_t i = 0; i < FACTS; i++) {
        pairs[2 * i] = facts[i].key;
        pairs[2 * i + 1] = facts[i].value;
    }
    return pairs;
}

Exit run_save(Run *run)
{
    int count;
    RaftError error;
    if (run->comm.rank > 0) return EXIT_DONE;
    Exit exit = trainer_bring_states(&run->trainer);
    if (exit != EXIT_DONE) return exit;
    const RaftTensor *tensors = state_tensors(run, &count);
    const char *step = arena_printf(run->session->arena, "%lld", (long long)run->step);
    signals_hold();
    RaftStatus status = raft_checkpoint_save(run->folder, run->step, KEPT_CHECKPOINTS, tensors,
                                             count, identity(run, step), &error);
    signals_release();
    return status ? run_fail_write(run, &error) : EXIT_DONE;
}

/* Each state of the checkpoint must be one of this run, and the other way round: an average that is not gone
 * on with would be taken for the weights. */
static Exit check_states(Run *run, const RaftWeights *checkpoint)
{
    Trainer *t = &run->trainer;
    const char *folder = run->folder;
    const size_t prefix = strlen(RAFT_STATE_PREFIX);
    int count, states = 0;
    const RaftTensor *tensors = state_tensors(run, &count);
    if (raft_weights_find(checkpoint, RAFT_STATE_PREFIX "e"))
        return session_fail(
            run->session, EXIT_FILES,
            "%s: its checkpoint is of an older raftc, which kept the average of the "
            "weights (ema_decay) in another place: go on with that one, or begin a "
            "run with its weights, by --weights FILE",
            folder);
    for (int i = 0; i < raft_weights_count(checkpoint); i++)
        states += strncmp(raft_weights_tensor(checkpoint, i)->name, RAFT_STATE_PREFIX, prefix) == 0;
    bool same = states == count - t->parameter_count;
    for (int i = t->parameter_count; i < count; i++)
        same = same && raft_weights_find(checkpoint, tensors[i].name);
    if (same) return EXIT_DONE;
    return session_fail(run->session, EXIT_FILES,
                        "%s: the run there has another optimiser, or another kind of average "
                        "(optimizer, ema_decay); it cannot go on so",
                        folder);
}

static Exit take_checkpoint(Run *run, const RaftWeights *checkpoint)
{
    int count;
    const char *key, *value;
    const RaftTensor *tensors = state_tensors(run, &count);
    const char **wanted = identity(run, NULL);
    for (int i = 0; raft_weights_metadata(checkpoint, i, &key, &value); i++) {
        if (strcmp(key, "step") == 0) run->step = strtoll(value, NULL, 10);
        if (strcmp(key, "validation") == 0) run->due = strcmp(value, "due") == 0;
        for (int k = 0; k < SHOULD_AGREE; k++) {
            if (strcmp(key, wanted[2 * k]) || !strcmp(value, wanted[2 * k + 1])) continue;
            const char *difference =
                arena_printf(run->session->arena, "%s: the run there has %s %s, this one %s",
                             run->folder, key, value, wanted[2 * k + 1]);
            if (k < MUST_AGREE)
                return session_fail(run->session, EXIT_FILES, "%s; it cannot go on so", difference);
            if (run->comm.rank == 0)
                session_note(run->session,
                             "%s; it goes on from the same state, but sums are rounded otherwise",
                             difference);
        }
    }
    Exit exit = check_states(run, checkpoint);
    if (exit != EXIT_DONE) return exit;
    for (int i = 0; i < count; i++) {
        const RaftTensor *tensor = raft_weights_find(checkpoint, tensors[i].name);
        if (!tensor || tensor->dtype != RAFT_F32 || tensor->elements != tensors[i].elements)
            return session_fail(run->session, EXIT_FILES,
                                "%s: its checkpoint is of another model: '%s' differs", run->folder,
                                tensors[i].name);
        memcpy((float *)tensors[i].data, tensor->data, (size_t)tensor->elements * sizeof(float));
    }
    return EXIT_DONE;
}

static Exit resume_newest(Run *run)
{
    RaftWeights *checkpoint;
    RaftError error, refused;
    RaftStatus status =
        raft_checkpoint_newest(run->folder, &checkpoint, &run->step, &refused, &error);
    if (refused.message[0] && run->comm.rank == 0)
        session_note(run->session, "passed over: %s", refused.message);
    if (status) return run_fail(run, status, &error);
    Exit exit = take_checkpoint(run, checkpoint);
    raft_weights_close(checkpoint);
    return exit;
}

static Exit resume_file(Run *run, const char *path)
{
    RaftWeights *checkpoint;
    RaftError error;
    RaftStatus status = raft_checkpoint_open(path, &checkpoint, &error);
    if (status) return run_fail(run, status, &error);
    Exit exit = take_checkpoint(run, checkpoint);
    raft_weights_close(checkpoint);
    return exit;
}

Exit run_begin(Run *run)
{
    const char *path = run->session->options->resume;
    if (!path) path = run->settings->resume_from;
    if (path) return *path ? resume_file(run, path) : resume_newest(run);
    Exit exit = start_weights(run);
    trainer_begin_average(&run->trainer);
    return exit;
}
