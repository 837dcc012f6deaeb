/* instances.c: two models in one program, and four threads with an instance each: the same bits as
 * when each runs alone. */
#include "other.h"
#include "tiny.h"

#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { INSTANCES = 4, BATCH = 3, MOST_CLASSES = 16, RUNS = 20 };

typedef struct Job {
    uint32_t seed; /* says which model and what data */
    float logits[BATCH * MOST_CLASSES];
    int failed;
} Job;

static void make_up(float *data, int64_t count, uint32_t *state)
{
    for (int64_t i = 0; i < count; i++) {
        *state = *state * 1664525 + 1013904223;
        data[i] = (float)(*state >> 8) / (1 << 24) - 0.5f;
    }
}

/* Makes an instance, runs it several times on the same images, and keeps the logits. */
#define RUN(NAME)                                                                                  \
    static int run_##NAME(Job *job)                                                                \
    {                                                                                              \
        enum { PIXELS = NAME##_CHANNELS * NAME##_HEIGHT * NAME##_WIDTH };                          \
        enum { LOGITS = BATCH * NAME##_CLASSES };                                                  \
        uint32_t state = job->seed;                                                                \
        int count, failed = NAME##_CLASSES > MOST_CLASSES;                                         \
        float *images = calloc(BATCH * PIXELS, sizeof *images), logits[LOGITS];                    \
        NAME *model = NULL;                                                                        \
        const NAME##_Parameter *p = NAME##_parameters(NULL, &count);                               \
        failed |= !images || NAME##_create(NULL, &model, NULL, 0) != NAME##_OK;                    \
        for (int i = 0; i < count && !failed; i++) {                                               \
            float *data = calloc((size_t)p[i].elements, sizeof *data);                             \
            if (data) make_up(data, p[i].elements, &state);                                        \
            failed |= NAME##_set_parameter(model, p[i].name, p[i].shape, p[i].rank, data);         \
            free(data);                                                                            \
        }                                                                                          \
        if (!failed) make_up(images, BATCH *PIXELS, &state);                                       \
        for (int i = 0; i < RUNS && !failed; i++) {                                                \
            failed |= NAME##_forward(model, BATCH, images, logits) != NAME##_OK;                   \
            failed |= i > 0 && memcmp(logits, job->logits, sizeof logits) != 0;                    \
            memcpy(job->logits, logits, sizeof logits);                                            \
        }                                                                                          \
        NAME##_destroy(model);                                                                     \
        free(images);                                                                              \
        return failed;                                                                             \
    }
RUN(tiny)
RUN(other)

static void *run(void *data)
{
    Job *job = data;
    job->failed = job->seed % 2 ? run_tiny(job) : run_other(job);
    return NULL;
}

int main(void)
{
    static Job alone[INSTANCES], together[INSTANCES];
    pthread_t thread[INSTANCES];
    for (uint32_t i = 0; i < INSTANCES; i++) {
        alone[i].seed = together[i].seed = i;
        run(&alone[i]);
    }
    for (int i = 0; i < INSTANCES; i++)
        if (pthread_create(&thread[i], NULL, run, &together[i])) return 2;
    for (int i = 0; i < INSTANCES; i++)
        if (pthread_join(thread[i], NULL)) return 2;
    for (int i = 0; i < INSTANCES; i++) {
        if (alone[i].failed || together[i].failed) return 3;
        if (!isfinite(alone[i].logits[0]) || alone[i].logits[0] == alone[(i + 2) % 4].logits[0])
            return 4; /* the data of two instances of a model must make a difference */
        if (memcmp(alone[i].logits, together[i].logits, sizeof alone[i].logits) != 0) {
            fprintf(stderr, "instance %d gives other bits beside others than alone\n", i);
            return 5;
        }
    }
    puts("instances: two models, four threads: the same bits as alone");
    return 0;
}
