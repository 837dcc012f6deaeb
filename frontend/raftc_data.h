/* raftc_data.h: real data as the settings describe it, and how well a model does on it. */
#ifndef RAFTC_DATA_H
#define RAFTC_DATA_H

#include "frontend/raftc.h"
#include "runtime/train/comm.h"
#include "runtime/train/train.h"

#include <signal.h>

enum { DATA_MOST_BAD = 1000 /* unreadable pictures that an epoch bears */ };

typedef struct Data {
    Session *session;
    const Settings *settings;
    const char *path;
    RaftPixels pixels;
    RaftLoading loading; /* for training in batches of batch_size; epoch and place are open */
} Data;

/* Says what is missing from the settings, or the build. `batch`: in place of batch_size; 0: as it is. */
Exit data_describe(Session *session, const Compilation *compilation, int64_t batch, Data *data);
/* Opens the part for training or for validation. */
Exit data_open(const Data *data, bool training, RaftDataset **dataset);

typedef struct Score {
    double top1, top5, loss,
        plain; /* means: shares of the images, losses with and without smoothing */
    int64_t images, truncated, unreadable;
    bool stopped; /* some process left off */
} Score;

/* What computes the logits[count][classes] of the first `count` images of `images`, at most `room`. */
typedef struct Scorer {
    float *images, *logits;
    int64_t room;
    Exit (*forward)(void *user, int64_t count);
    void *user;
    const RaftComm *comm;              /* each process scores its share of a batch; NULL: alone */
    const volatile sig_atomic_t *stop; /* not 0: leave off; may be NULL */
} Scorer;

/* Scores all of a part, loaded in batches of twice the training's, without chance. */
Exit data_score(const Data *data, const RaftDataset *dataset, const Scorer *scorer, Score *score);

#endif
