/* golden.h: the compiled model tiny, with weights that the runtime library reads from a file, against
 * what PyTorch computed. For C and C++. */
#ifndef GOLDEN_H
#define GOLDEN_H

#include "tiny.h"

#include <math.h>
#include <raft/raft.h>
#include <stdio.h>

enum { BATCH = 2, PIXELS = tiny_CHANNELS * tiny_HEIGHT * tiny_WIDTH, MOST_ELEMENTS = 1 << 16 };

static int set_parameters(tiny *model, const RaftWeights *weights)
{
    static float data[MOST_ELEMENTS];
    RaftError error;
    for (int i = 0; i < raft_weights_count(weights); i++) {
        const RaftTensor *tensor = raft_weights_tensor(weights, i);
        if (tensor->elements > MOST_ELEMENTS) return 1;
        if (raft_tensor_read_f32(tensor, data, &error) != RAFT_OK) return 1;
        if (tiny_set_parameter(model, tensor->name, tensor->shape, tensor->rank, data) != tiny_OK) {
            fprintf(stderr, "%s\n", tiny_error(model));
            return 1;
        }
    }
    return 0;
}

/* The file of golden numbers holds the logits of two images that the fill rule makes. */
static int check_logits(tiny *model, const RaftWeights *golden)
{
    static float images[BATCH * PIXELS];
    float logits[BATCH * tiny_CLASSES], wanted[BATCH * tiny_CLASSES], largest = 1;
    const RaftTensor *tensor = raft_weights_find(golden, "32x32.logits");
    if (!tensor || tensor->elements != BATCH * tiny_CLASSES) return 1;
    if (raft_tensor_read_f32(tensor, wanted, NULL) != RAFT_OK) return 1;
    raft_fill_input(BATCH * PIXELS, images);
    if (tiny_forward(model, BATCH, images, logits) != tiny_OK) return 1;
    for (int i = 0; i < BATCH * tiny_CLASSES; i++) largest = fmaxf(largest, fabsf(wanted[i]));
    for (int i = 0; i < BATCH * tiny_CLASSES; i++) {
        if (fabsf(logits[i] - wanted[i]) <= 2e-5f * largest) continue;
        fprintf(stderr, "logit %d is %g, not %g\n", i, (double)logits[i], (double)wanted[i]);
        return 1;
    }
    return 0;
}

static int check_golden(tiny *model, const char *weights_path, const char *golden_path)
{
    RaftWeights *weights = NULL, *golden = NULL;
    RaftError error;
    int failed = 1;
    if (raft_weights_open(weights_path, &weights, &error) != RAFT_OK ||
        raft_weights_open(golden_path, &golden, &error) != RAFT_OK)
        fprintf(stderr, "%s\n", error.message);
    else
        failed = set_parameters(model, weights) || check_logits(model, golden);
    raft_weights_close(weights);
    raft_weights_close(golden);
    return failed;
}

#endif
