/* raftc_train_run.c: raftc train on real data: the published recipe, epoch by epoch.
 *
 * All that is random is a function of the seed and the place in the run, and a checkpoint holds the
 * rest; so a run that was stopped, in whatever way, goes on to the same bits. */
#define _GNU_SOURCE /* strchrnul */
#include "frontend/raftc_train_run.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>

static volatile sig_atomic_t stop_signal;

static void on_stop(int signal)
{
    stop_signal = signal;
}

/* ---- validation --------------------------------------------------------------------------------- */

static Exit forward(void *user, int64_t count)
{
    Run *run = user;
    return trainer_run_forward(&run->trainer, count, run->logits);
}

static Exit validate(Run *run, int64_t epoch)
{
    static const char *const tags[] = {"validation/loss", "validation/cross-entropy",
                                       "validation/accuracy", "validation/top5-accuracy"};
    const Scorer scorer = {.images = run->trainer.image,
                           .logits = run->logits,
                           .room = run->trainer.room,
                           .forward = forward,
                           .user = run,
                           .comm = &run->comm,
                           .stop = &stop_signal};
    Score score;
    RaftError error;
    Exit exit = data_score(&run->data, run->val, &scorer, &score);
    run->stopped |= score.stopped;
    if (exit != EXIT_DONE || run->stopped || run->comm.rank > 0) return exit;
    const double values[] = {score.loss, score.plain, score.top1, score.top5};
    RaftStatus status = raft_metrics_add(run->metrics, run->step, 4, tags, values, &error);
    if (status) return run_fail_write(run, &error);
    run_tell_damage(run, epoch, "validation: ", score.truncated, score.unreadable);
    run_clear_line(run);
    printf("epoch %lld  accuracy %.4f  top-5 %.4f  loss %.4f  cross-entropy %.4f\n",
           (long long)epoch + 1, values[2], values[3], values[0], values[1]);
    fflush(stdout);
    if (epoch < run->epochs / 2) return EXIT_DONE;
    const char *const no_metadata[] = {NULL};
    signals_hold();
    status = raft_checkpoint_save_best(run->folder, values[2], epoch + 1,
                                       trainer_tensors(&run->trainer, trainer_best(&run->trainer)),
                                       run->trainer.parameter_count, no_metadata, &error);
    signals_release();
    return status ? run_fail_write(run, &error) : EXIT_DONE;
}

/* ---- steps -------------------------------------------------------------------------------------- */

static RaftMix draw_mix(Run *run, const RaftBatch *batch, int64_t epoch)
{
    RaftRandom random = raft_random((uint64_t)run->settings->seed, (uint32_t)epoch,
                                    (uint32_t)batch->index, RAFT_FOR_MIXING);
    RaftMix mix = {
        .count = batch->count, .mixup_order = run->orders[0], .cutmix_order = run->orders[1]};
    raft_mix_draw(&run->mixing, &random, run->data.pixels.height, run->data.pixels.width, &mix);
    return mix;
}

/* One part of this process's share of the batch: its losses and gradients are added to those of the parts
 * before it. */
static Exit run_part(Run *run, const RaftBatch *batch, const RaftMix *mix, int64_t part)
{
    Trainer *t = &run->trainer;
    int64_t place = run->comm.rank * t->parts + part, places = run->comm.size * t->parts;
    int64_t first = batch->count * place / places;
    int64_t count = batch->count * (place + 1) / places - first;
    raft_mix_images(mix, &run->data.pixels, batch->bytes, (int)first, (int)count, t->image);
    raft_mix_targets(mix, batch->labels, (int)run->settings->num_classes,
                     run->settings->label_smoothing_alpha, (int)first, (int)count, t->target);
    trainer_drop(t, run->step, first, count);
    Exit exit = trainer_run_backward(t, count, batch->count, part);
    for (int64_t i = 0; i < count; i++) run->loss += (double)t->loss[i] / batch->count;
    return exit;
}

/* Adds up what the processes have computed, and learns whether one of them is to stop. */
static Exit gather(Run *run)
{
    RaftError error;
    double sums[] = {run->loss, stop_signal != 0};
    double start = seconds_now();
    RaftStatus status = raft_comm_sum_end(&run->comm, &error);
    run->exchanged += seconds_now() - start;
    if (!status) status = raft_comm_sum_doubles(&run->comm, sums, ARRAY_SIZE(sums), &error);
    if (status) return run_fail_write(run, &error);
    run->loss = sums[0];
    run->stopped |= sums[1] > 0;
    return EXIT_DONE;
}

static Exit take_step(Run *run, const RaftBatch *batch, int64_t epoch)
{
    RaftMix mix = draw_mix(run, batch, epoch);
    Exit exit = EXIT_DONE;
    run->loss = 0;
    run->trainer.step = run->step + 1;
    for (int64_t part = 0; part < run->trainer.parts && exit == EXIT_DONE; part++)
        exit = run_part(run, batch, &mix, part);
    if (exit == EXIT_DONE) exit = gather(run);
    double lr = raft_schedule_rate(&run->schedule, run->step);
    if (exit == EXIT_DONE) exit = trainer_run_step(&run->trainer, lr);
    run->step++;
    run->due = run->step % run->batches == 0 && run->step / run->batches % run->validate_every == 0;
    run->seen += batch->count;
    if (exit == EXIT_DONE && run->comm.rank == 0) exit = run_tell(run, batch->count, lr);
    if (exit == EXIT_DONE && run->step % run->checkpoint_every == 0 && !run->due)
        exit = run_save(run);
    return exit;
}

static bool finished(const Run *run)
{
    int64_t limit =
        run->session->options->steps ? run->session->options->steps : run->settings->stop_iteration;
    return run->stopped || (limit && run->step >= limit);
}

static Exit train_epoch(Run *run, int64_t epoch)
{
    RaftLoader *loader;
    RaftBatch batch;
    RaftError error;
    run->data.loading.epoch = (uint32_t)epoch;
    run->data.loading.first = run->step - epoch * run->batches;
    RaftStatus status = raft_loader_open(run->train, &run->data.loading, &loader, &error);
    if (status) return run_fail(run, status, &error);
    Exit exit = EXIT_DONE;
    while (exit == EXIT_DONE && !finished(run)) {
        double start = seconds_now();
        status = raft_loader_next(loader, &batch, &error);
        run->waited += seconds_now() - start;
        if (status) exit = run_fail(run, status, &error);
        if (status || batch.count == 0) break;
        exit = take_step(run, &batch, epoch);
    }
    if (!status) run_tell_damage(run, epoch, "", batch.truncated, batch.unreadable);
    raft_loader_close(loader);
    return exit;
}

/* Where a checkpoint falls on the end of an epoch, it comes after the validation. */
static Exit end_epoch(Run *run)
{
    double start = seconds_now();
    Exit exit = validate(run, run->step / run->batches - 1);
    run->started += seconds_now() - start; /* that was no training */
    if (exit != EXIT_DONE || run->stopped) return exit;
    run->due = false;
    return run->step % run->checkpoint_every == 0 ? run_save(run) : EXIT_DONE;
}

static Exit train_epochs(Run *run)
{
    Exit exit = EXIT_DONE;
    while (exit == EXIT_DONE && !run->stopped) {
        if (run->due)
            exit = end_epoch(run);
        else if (finished(run) || run->step >= run->schedule.iterations)
            break;
        else
            exit = train_epoch(run, run->step / run->batches);
    }
    return exit;
}

/* ---- the run ------------------------------------------------------------------------------------ */

static int64_t or (int64_t value, int64_t otherwise)
{
    return value ? value : otherwise;
}

static Exit open_data(Run *run)
{
    Trainer *t = &run->trainer;
    Exit exit = data_describe(run->session, &t->model.compilation, t->batch, &run->data);
    if (exit == EXIT_DONE) exit = data_open(&run->data, true, &run->train);
    if (exit == EXIT_DONE) exit = data_open(&run->data, false, &run->val);
    if (exit != EXIT_DONE) return exit;
    run->batches = raft_loader_batches(run->train, &run->data.loading);
    if (run->batches == 0)
        return session_fail(
            run->session, EXIT_FILES, "%s: %lld images to train on are less than a batch of %lld",
            run->data.path, (long long)raft_dataset_count(run->train), (long long)t->batch);
    return EXIT_DONE;
}

/* What the settings ask for and this build does not do. */
static void tell_what_lacks(const Run *run)
{
    if (run->settings->with_amp)
        session_note(run->session, "with_amp is not applied: training computes in f32");
}

static void apply_settings(Run *run)
{
    const Settings *s = run->settings;
    Arena *arena = run->session->arena;
    size_t batch = (size_t)run->trainer.batch;
    run->epochs = or (s->num_epochs, 1);
    run->validate_every = or (s->validate_every, 1);
    run->checkpoint_every = or (s->checkpoint_every, 1000);
    run->log_every = or (s->log_every_iters, 15);
    run->schedule = (RaftSchedule){.lr = s->lr,
                                   .end_lr = s->end_lr,
                                   .warmup = s->num_warmup_epochs * run->batches,
                                   .iterations = run->epochs * run->batches};
    run->mixing = (RaftMixing){.mixup_alpha = s->mixup_alpha,
                               .mixup_p = s->mixup_p,
                               .cutmix_alpha = s->cutmix_alpha,
                               .cutmix_p = s->cutmix_p};
    for (int i = 0; i < 2; i++) run->orders[i] = arena_array(arena, batch, sizeof *run->orders[i]);
    run->logits =
        arena_array(arena, (size_t)run->trainer.room * (size_t)s->num_classes, sizeof *run->logits);
}

static Exit make_folder(Run *run)
{
    const Options *options = run->session->options;
    const char *name = run->settings->task_name;
    run->folder = options->output_base ? options->output_base : name ? name : "run";
    if (run->comm.rank > 0) return EXIT_DONE;
    if (mkdir(run->folder, 0777) && errno != EEXIST)
        return session_fail(run->session, EXIT_UNDONE, "%s: cannot be made: %s", run->folder,
                            strerror(errno));
    run->data.loading.list = arena_printf(run->session->arena, "%s/unreadable.txt", run->folder);
    return EXIT_DONE;
}

/* The settings as they were understood, once it is certain that the run goes on with them. */
static Exit save_settings(Run *run)
{
    if (run->comm.rank > 0) return EXIT_DONE;
    Settings resolved = *run->settings;
    resolved.data_path = run->data.path;
    resolved.default_height = run->data.pixels.height;
    resolved.default_width = run->data.pixels.width;
    resolved.batch_size = run->trainer.batch;
    resolved.num_epochs = run->epochs;
    resolved.validate_every = run->validate_every;
    resolved.checkpoint_every = run->checkpoint_every;
    resolved.log_every_iters = run->log_every;
    Text text = text_new(run->session->arena);
    const char *made_by = session_made_by(run->session, run->settings->source);
    for (const char *end; *made_by; made_by = end + (*end == '\n')) {
        end = strchrnul(made_by, '\n');
        text_printf(&text, "# %.*s\n", (int)(end - made_by), made_by);
    }
    settings_print(&resolved, &text);
    return session_write(run->session,
                         arena_printf(run->session->arena, "%s/settings.yaml", run->folder),
                         text.data, text.length);
}

/* What stays of a run that came to its end. */
static Exit finish(Run *run)
{
    RaftError error;
    const char *const no_metadata[] = {NULL};
    const char *last = arena_printf(run->session->arena, "%s/last.safetensors", run->folder);
    Exit exit = run_save(run);
    if (exit == EXIT_DONE) exit = trainer_bring_states(&run->trainer);
    if (exit != EXIT_DONE) return exit;
    signals_hold();
    RaftStatus status =
        raft_weights_write(last, trainer_tensors(&run->trainer, trainer_best(&run->trainer)),
                           run->trainer.parameter_count, no_metadata, &error);
    if (!status) status = raft_metrics_page(run->folder, run->folder, &error);
    signals_release();
    return status ? run_fail_write(run, &error) : EXIT_DONE;
}

static Exit open_metrics(Run *run)
{
    RaftError error;
    if (run->comm.rank > 0) return EXIT_DONE;
    RaftStatus status =
        raft_metrics_open(run->folder, run->step ? run->step + 1 : 0, &run->metrics, &error);
    return status ? run_fail_write(run, &error) : EXIT_DONE;
}

static Exit prepare(Run *run)
{
    RaftError error;
    RaftStatus status = raft_comm_open(&run->comm, &error);
    if (status) return session_fail(run->session, EXIT_LACKING, "%s", error.message);
    Exit exit = trainer_open(&run->trainer, run->session, run->session->options->batch, &run->comm);
    if (exit == EXIT_DONE && run->comm.rank == 0)
        exit = report_print(run->session, &run->trainer.model.compilation);
    if (exit != EXIT_DONE) return exit;
    run->settings = run->trainer.model.compilation.settings;
    exit = open_data(run);
    if (exit != EXIT_DONE) return exit;
    apply_settings(run);
    if (run->comm.rank == 0) tell_what_lacks(run);
    exit = make_folder(run);
    if (exit == EXIT_DONE) exit = run_begin(run);
    if (exit == EXIT_DONE) exit = save_settings(run);
    if (exit == EXIT_DONE) exit = open_metrics(run);
    if (exit == EXIT_DONE) run_begin_telling(run);
    session_flush(run->session);
    return exit;
}

static Exit do_run(Run *run)
{
    Exit exit = prepare(run);
    if (exit == EXIT_DONE) exit = train_epochs(run);
    run_leave_line(run);
    if (exit != EXIT_DONE || run->comm.rank > 0) return exit;
    if (!run->stopped) return finish(run);
    exit = run_save(run);
    session_note(run->session, "stopped at step %lld; the same command with --resume goes on",
                 (long long)run->step);
    return exit;
}

/* Where one process fails, the others would wait for it. */
static void close_processes(Run *run, Exit exit)
{
    if (exit != EXIT_DONE && run->comm.size > 1) {
        session_note(run->session, "process %d of %d ends the run", run->comm.rank, run->comm.size);
        session_flush(run->session);
        raft_comm_abort(&run->comm, exit);
    }
    raft_comm_close(&run->comm);
}

Exit train_run(Session *session)
{
    Run run = {.session = session};
    struct sigaction action = {.sa_handler = on_stop}, old[2];
    sigaction(SIGINT, &action, &old[0]);
    sigaction(SIGTERM, &action, &old[1]);
    Exit exit = do_run(&run);
    close_processes(&run, exit);
    raft_metrics_close(run.metrics);
    raft_dataset_close(run.train);
    raft_dataset_close(run.val);
    trainer_close(&run.trainer);
    sigaction(SIGINT, &old[0], NULL);
    sigaction(SIGTERM, &old[1], NULL);
    if (exit == EXIT_DONE && stop_signal) {
        session_flush(session);
        raise(stop_signal);
    }
    return exit;
}
