/* raftc_train.c: raftc train: the way of its data, and steps of AdamW on one made-up batch. */
#include "frontend/raftc_trainer.h"

#include <string.h>

static Exit fill_weights(Trainer *t)
{
    const float **data;
    const char *weights = t->session->options->weights;
    Exit exit = parameters_read(t->session, t->session->arena, weights ? weights : "@fill",
                                t->parameters, t->parameter_count, &data);
    for (int i = 0; exit == EXIT_DONE && i < t->parameter_count; i++)
        memcpy(trainer_weights(t, i), data[i], (size_t)t->parameters[i].elements * sizeof(float));
    return exit;
}

static void fill_batch(Trainer *t)
{
    const Settings *settings = t->model.compilation.settings;
    int64_t classes = settings->num_classes;
    uint32_t *labels = arena_array(t->session->arena, (size_t)t->batch, sizeof *labels);
    raft_fill_input(t->batch * t->pixels, t->image);
    raft_fill_labels(t->batch, classes, labels);
    double alpha = settings->label_smoothing_alpha;
    for (int64_t i = 0; i < t->batch; i++)
        for (int64_t k = 0; k < classes; k++)
            t->target[i * classes + k] =
                (float)(alpha / (double)classes + (labels[i] == k) * (1 - alpha));
}

static void add_metrics(Trainer *t, int64_t step, Text *metrics)
{
    double loss = 0;
    for (int64_t i = 0; i < t->batch; i++) loss += (double)t->loss[i] / (double)t->batch;
    text_printf(metrics, "{\"step\": %lld, \"loss\": %.9g}\n", (long long)step, loss);
    if (!t->session->options->quiet) printf("step %lld  loss %.6f\n", (long long)step, loss);
}

/* The parameters' tensors in a block, as a file. */
static Exit write_block(Trainer *t, const char *path, const float *block)
{
    const RaftTensor *tensors = trainer_tensors(t, block);
    const char *const no_metadata[] = {NULL};
    RaftError error;
    signals_hold();
    RaftStatus status = raft_weights_write(path, tensors, t->parameter_count, no_metadata, &error);
    signals_release();
    return status == RAFT_OK ? EXIT_DONE
                             : session_fail(t->session, EXIT_UNDONE, "%s", error.message);
}

static Exit dump_gradients(Trainer *t, const char *path)
{
    Exit exit = trainer_bring_gradients(t);
    return exit == EXIT_DONE ? write_block(t, path, t->gradients) : exit;
}

static Exit take_steps(Trainer *t, Text *metrics)
{
    const Options *options = t->session->options;
    double lr = t->model.compilation.settings->lr;
    Exit exit = EXIT_DONE;
    for (int64_t step = 1; step <= options->steps && exit == EXIT_DONE; step++) {
        t->step = step;
        exit = trainer_run_backward(t, t->batch, t->batch, 0);
        if (exit != EXIT_DONE) break;
        add_metrics(t, step, metrics);
        if (step == 1 && options->dump_gradients) exit = dump_gradients(t, options->dump_gradients);
        if (exit == EXIT_DONE) exit = trainer_run_step(t, lr);
    }
    return exit;
}

Exit trainer_fill(Trainer *t)
{
    Exit exit = fill_weights(t);
    if (exit == EXIT_DONE) fill_batch(t);
    return exit;
}

static Exit train_filled(Trainer *t)
{
    const Options *options = t->session->options;
    Exit exit = trainer_open(t, t->session, options->batch ? options->batch : 1, NULL);
    if (exit == EXIT_DONE) exit = report_print(t->session, &t->model.compilation);
    if (exit == EXIT_DONE) exit = trainer_fill(t);
    if (exit != EXIT_DONE) return exit;
    Text metrics = text_new(t->session->arena);
    exit = take_steps(t, &metrics);
    if (exit == EXIT_DONE && options->metrics)
        exit = session_write(t->session, options->metrics, metrics.data, metrics.length);
    if (exit == EXIT_DONE && options->save) exit = trainer_bring_states(t);
    if (exit == EXIT_DONE && options->save) exit = write_block(t, options->save, NULL);
    return exit;
}

Exit verb_train(Session *session)
{
    if (!session->options->data || strcmp(session->options->data, "@fill") != 0)
        return train_run(session);
    Trainer trainer = {.session = session};
    Exit exit = train_filled(&trainer);
    trainer_close(&trainer);
    return exit;
}
