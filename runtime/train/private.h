/* private.h: what the files of this folder share and nobody else sees, but for data sets. */
#ifndef RAFT_TRAIN_PRIVATE_H
#define RAFT_TRAIN_PRIVATE_H

#include "runtime/rt.h"
#include "runtime/train/train.h"

/* CRC-32C (Castagnoli) of more bytes; begin with 0. */
uint32_t rt_crc32c(uint32_t crc, const void *data, size_t size);

/* A TensorBoard event file. Failures are errno, or 0. */
FILE *rt_events_open(const char *folder, int64_t first);
int rt_events_add(FILE *events, int64_t step, int count, const char *const *tags,
                  const double *values);

#endif
