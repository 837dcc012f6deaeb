/* drop.c: which branches and elements of a model are dropped, as a function of their place. */
#include "runtime/train/train.h"

void raft_drop_draw(const RaftDrop *drop, uint32_t first, int64_t count, float *mask)
{
    /* OpenMP's threads spin for milliseconds after what they have done, while those of the model run. */
    const int64_t many = 1 << 16;
    float kept = (float)(1 / (1 - drop->rate));
#pragma omp parallel for schedule(static) if (count * drop->elements >= many)
    for (int64_t i = 0; i < count; i++) {
        RaftRandom random =
            raft_random(drop->seed, drop->step, first + (uint32_t)i, RAFT_FOR_DROPPING);
        random.counter[3] |= drop->layer << 8; /* beside the purpose */
        for (int64_t k = 0; k < drop->elements; k++)
            mask[i * drop->elements + k] = raft_random_chance(&random, drop->rate) ? 0 : kept;
    }
}
