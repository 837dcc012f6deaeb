/* raftc_train_run.h: a run of the published recipe: what raftc_train_run.c, the loop,
 * raftc_train_tell.c, its progress, and raftc_train_state.c, its beginning and its checkpoints, share. */
#ifndef RAFTC_TRAIN_RUN_H
#define RAFTC_TRAIN_RUN_H

#include "frontend/raftc_data.h"
#include "frontend/raftc_trainer.h"

typedef struct Run {
    Session *session;
    const Settings *settings;
    const char *folder;
    RaftComm comm; /* only the first of all processes tells and writes anything */
    Trainer trainer;
    Data data;
    RaftDataset *train, *val;
    RaftMixing mixing;
    RaftSchedule schedule;
    RaftMetrics *metrics;
    int64_t step;    /* taken so far */
    bool due;        /* they end an epoch that is still to be validated */
    bool stopped;    /* some process was asked to stop */
    double loss, lr; /* of the last one, */
    int count;       /* and how many images it had */
    int64_t epochs, batches, validate_every, checkpoint_every, log_every;
    double started, waited, exchanged; /* seconds of waiting for data, and for other processes */
    int64_t seen;                      /* images since then */
    double image_flops, peak;          /* of a step, for an image; a second, of all processes */
    bool redraws, line;                /* on a terminal; a line of progress stands there now, */
    double drawn;                      /* since when */
    uint32_t *orders[2];
    float *logits;
} Run;

static inline Exit run_fail(const Run *run, RaftStatus status, const RaftError *error)
{
    return session_fail_file(run->session, status, error);
}

/* A result that cannot be written is not the fault of the given files. */
static inline Exit run_fail_write(const Run *run, const RaftError *error)
{
    return session_fail(run->session, EXIT_UNDONE, "%s", error->message);
}

/* Measures what the progress is set beside, and begins to count. */
void run_begin_telling(Run *run);
/* After a step of so many images: metrics and a line of progress each log_every steps; on a terminal the line is
 * drawn anew as it goes. */
Exit run_tell(Run *run, int count, double lr);
/* Notes how many pictures of an epoch, or of its validation, were damaged, if any. */
void run_tell_damage(Run *run, int64_t epoch, const char *of, int64_t truncated,
                     int64_t unreadable);
/* Before anything else is printed; and where the line is to stay. */
void run_clear_line(Run *run);
void run_leave_line(Run *run);

/* From the weights that settings and options name, or where a checkpoint was saved. */
Exit run_begin(Run *run);
Exit run_save(Run *run);

#endif
