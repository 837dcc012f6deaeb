/* dataset.h: a data set in memory: what the readers of layouts fill in. */
#ifndef RAFT_DATASET_H
#define RAFT_DATASET_H

#include "runtime/rt.h"
#include "runtime/train/train.h"

struct RaftDataset {
    RtArena arena; /* paths and strings */
    const char *root;
    int classes;
    int64_t count, capacity;
    uint32_t *labels;
    const char **paths; /* of pictures; NULL: all are in `pixels` */
    /* Item i: channels x height x width bytes from pixels + i * stride. */
    uint8_t *pixels;
    int channels, height, width;
    size_t stride;
};

/* Fills in one part of a data set below dataset->root. */
typedef RaftStatus RtOpenDataset(RaftDataset *dataset, bool training, RaftError *error);
RtOpenDataset rt_open_cifar10, rt_open_cifar100, rt_open_idx;                /* dataset_binary.c */
RtOpenDataset rt_open_flowers, rt_open_cars, rt_open_inat18, rt_open_inat19; /* dataset_lists.c */

/* "ROOT/a/b" in the arena of the data set; NULL where memory is out. */
const char *rt_dataset_path(RaftDataset *dataset, const char *format, ...) RT_PRINTF_LIKE(2, 3);
/* Moves the root into the folder, where that is there: archives bring a folder of their own. */
RaftStatus rt_dataset_enter(RaftDataset *dataset, const char *folder, RaftError *error);
/* Adds an item; `path` is of the arena, or NULL where the items are pixels. */
RaftStatus rt_dataset_add(RaftDataset *dataset, const char *path, uint32_t label, RaftError *error);
/* Checks a label as a file has it, which counts from `first`, and gives it from 0. */
RaftStatus rt_dataset_label(const RaftDataset *dataset, const char *where, int64_t index,
                            double value, int first, uint32_t *label, RaftError *error);
/* Fails where files that the lists name are not there. */
RaftStatus rt_dataset_check_files(const RaftDataset *dataset, RaftError *error);

#endif
