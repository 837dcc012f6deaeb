/* values.h: made-up parameters and images, and what the program of kernels.c should give for them:
 * small integers, so that every result is exact. For C and C++. */
#ifndef TEST_VALUES_H
#define TEST_VALUES_H

enum { MOST_BATCH = 20 };

typedef struct Values {
    float weight[5 * 8], scale[8], bias[5];
    float image[MOST_BATCH * 8];
    float logits[MOST_BATCH * 5], maps[2][MOST_BATCH * 8];
} Values;

static void make_values(Values *v, int seed)
{
    for (int i = 0; i < 5 * 8; i++) v->weight[i] = (float)((i * 7 + seed) % 11 - 5);
    for (int i = 0; i < 8; i++) v->scale[i] = (float)((i * 3 + seed) % 4 - 1);
    for (int i = 0; i < 5; i++) v->bias[i] = (float)(i + seed);
    for (int i = 0; i < MOST_BATCH * 8; i++) {
        v->image[i] = (float)((i * 5 + seed) % 13 - 6);
        v->maps[0][i] = 2 * (v->image[i] * v->image[i] + 1);
        v->maps[1][i] = v->image[i] * v->image[i] - 2;
    }
    for (int u = 0; u < MOST_BATCH * 5; u++) {
        int image = u / 5, o = u % 5;
        v->logits[u] = v->bias[o];
        for (int i = 0; i < 8; i++)
            v->logits[u] += v->weight[o * 8 + i] * v->scale[i] * (v->maps[1][image * 8 + i] + 1);
    }
}

#endif
