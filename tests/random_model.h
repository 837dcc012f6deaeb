/* random_model.h: small random models: settings text, read and built as the compiler does it. */
#ifndef RAFTC_TESTS_RANDOM_MODEL_H
#define RAFTC_TESTS_RANDOM_MODEL_H

#include "ir/ir.h"

/* The graph of a model that depends on `seed` alone, of at most `most_work` multiply-adds an
 * image. Every third has a side or a channel count of more than two register tiles of any CPU,
 * and no multiple of one. *settings: its text, the size of the image in a comment. NULL with
 * messages where the frontend refuses it, which is a fault. */
Graph *random_model(Arena *arena, uint64_t seed, int64_t most_work, const char **settings,
                    Diag *diag);

#endif
