/* test_drop.c: what is dropped is a function of seed, step, place in the global batch and layer, and as
 * much of it as the rate says. */
#include <math.h>
#include <omp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "runtime/train/train.h"

enum { BATCH = 64, ELEMENTS = 37, ALL = BATCH * ELEMENTS };

static void draw(RaftDrop drop, float mask[static ALL])
{
    drop.elements = ELEMENTS;
    if (drop.rate == 0) drop.rate = 0.25;
    raft_drop_draw(&drop, 0, BATCH, mask);
}

static void test_any_split(void **state)
{
    (void)state;
    static const int parts[] = {1, 5, 16, 64};
    static float whole[ALL], split[ALL];
    int threads = omp_get_max_threads();
    RaftDrop drop = {.seed = 42, .step = 7, .layer = 3, .rate = 0.25, .elements = ELEMENTS};
    draw(drop, whole);
    for (size_t k = 0; k < sizeof parts / sizeof parts[0]; k++) {
        omp_set_num_threads((int)k + 1);
        memset(split, 0xff, sizeof split);
        for (int first = 0; first < BATCH; first += parts[k]) {
            int count = BATCH - first < parts[k] ? BATCH - first : parts[k];
            raft_drop_draw(&drop, (uint32_t)first, count, split + first * ELEMENTS);
        }
        assert_memory_equal(split, whole, sizeof whole);
    }
    omp_set_num_threads(threads);
}

/* Of each two masks about as many elements agree as of independent ones: 0.25^2 + 0.75^2 of them. */
static void test_all_differ(void **state)
{
    (void)state;
    static const RaftDrop drops[] = {
        {.seed = 42, .step = 7, .layer = 3},
        {.seed = 43, .step = 7, .layer = 3},
        {.seed = 42, .step = 8, .layer = 3},
        {.seed = 42, .step = 7, .layer = 4},
        {.seed = 42 | 1l << 32, .step = 7, .layer = 3},
        {.seed = 42, .step = 7, .layer = 3 + (1 << 23)},
    };
    enum { DRAWS = sizeof drops / sizeof drops[0] };
    static float mask[DRAWS][ALL];
    for (int i = 0; i < DRAWS; i++) draw(drops[i], mask[i]);
    for (int i = 0; i < DRAWS; i++)
        for (int k = 0; k < i; k++) {
            int equal = 0;
            for (int n = 0; n < ALL; n++) equal += mask[i][n] == mask[k][n];
            assert_true(fabs((double)equal / ALL - 0.625) < 5 * sqrt(0.625 * 0.375 / ALL));
        }
    int equal = 0; /* and the images of one */
    for (int n = 0; n < ALL - ELEMENTS; n++) equal += mask[0][n] == mask[0][n + ELEMENTS];
    assert_true(fabs((double)equal / ALL - 0.625) < 0.05);
}

static void test_rates(void **state)
{
    (void)state;
    static const double rates[] = {0.1, 0.25, 0.5, 0.9};
    static float mask[ALL];
    for (size_t k = 0; k < sizeof rates / sizeof rates[0]; k++) {
        double rate = rates[k], sum = 0;
        float kept = (float)(1 / (1 - rate));
        int dropped = 0, steps = 20;
        for (int step = 0; step < steps; step++) {
            draw((RaftDrop){.seed = 1, .step = (uint32_t)step, .rate = rate}, mask);
            for (int n = 0; n < ALL; n++) {
                assert_true(mask[n] == 0 || mask[n] == kept);
                dropped += mask[n] == 0;
                sum += (double)mask[n];
            }
        }
        double draws = (double)steps * ALL, share = dropped / draws;
        assert_true(fabs(share - rate) < 4 * sqrt(rate * (1 - rate) / draws));
        assert_true(fabs(sum / draws - 1) < 4 * sqrt(rate / (1 - rate) / draws));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_split),
        cmocka_unit_test(test_all_differ),
        cmocka_unit_test(test_rates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
