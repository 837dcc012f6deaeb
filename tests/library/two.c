/* two.c: two generated libraries in one program, called by turns and by two threads at once. */
#include "other.h"
#include "tiny.h"

#include <pthread.h>
#include <string.h>

#include "tests/library/values.h"

/* A thread with an instance of one of the libraries; returns non-NULL if something is wrong. */
#define RUN(NAME)                                                                                  \
    static void *run_##NAME(void *seed)                                                            \
    {                                                                                              \
        static const int64_t shapes[3][2] = {{5, 8}, {8}, {5}};                                    \
        Values v;                                                                                  \
        float logits[MOST_BATCH * NAME##_CLASSES];                                                 \
        NAME *m = NULL;                                                                            \
        int wrong = NAME##_create(NULL, &m, NULL, 0) != NAME##_OK;                                 \
        make_values(&v, *(int *)seed);                                                             \
        wrong += NAME##_set_parameter(m, "head.weight", shapes[0], 2, v.weight) != NAME##_OK;      \
        wrong += NAME##_set_parameter(m, "norm.scale", shapes[1], 1, v.scale) != NAME##_OK;        \
        wrong += NAME##_set_parameter(m, "head.bias", shapes[2], 1, v.bias) != NAME##_OK;          \
        for (int i = 0; i < 20; i++) {                                                             \
            wrong += NAME##_forward(m, MOST_BATCH, v.image, logits) != NAME##_OK;                  \
            wrong += memcmp(logits, v.logits, sizeof logits) != 0;                                 \
        }                                                                                          \
        NAME##_destroy(m);                                                                         \
        return wrong ? seed : NULL;                                                                \
    }
RUN(tiny)
RUN(other)

int main(void)
{
    int seeds[] = {5, 6};
    pthread_t thread;
    if (run_tiny(&seeds[0]) || run_other(&seeds[1])) return 1;
    void *wrong = &thread;
    if (pthread_create(&thread, NULL, run_tiny, &seeds[0])) return 2;
    if (run_other(&seeds[1])) return 3;
    if (pthread_join(thread, &wrong) || wrong) return 4;
    return 0;
}
