/* test_mix.c: mixup and cutmix against their formulas, and the loss of the targets against the
 * mixture of losses. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "runtime/train/train.h"

enum { COUNT = 12, CHANNELS = 3, HEIGHT = 10, WIDTH = 14, CLASSES = 5 };
enum { PLANE = HEIGHT * WIDTH, IMAGE = CHANNELS * PLANE };

static const RaftPixels pixels = {CHANNELS, HEIGHT, WIDTH, {.485, .456, .406}, {.229, .224, .225}};
static uint8_t bytes[COUNT * IMAGE];
static uint32_t labels[COUNT], orders[2][COUNT];

static void fill_batch(void)
{
    RaftRandom random = raft_random(5, 0, 0, RAFT_FOR_WEIGHTS);
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)raft_random_bits(&random);
    for (int i = 0; i < COUNT; i++) labels[i] = raft_random_below(&random, CLASSES);
}

static RaftMix draw(const RaftMixing *mixing, uint32_t batch)
{
    RaftRandom random = raft_random(42, 1, batch, RAFT_FOR_MIXING);
    RaftMix mix = {.count = COUNT, .mixup_order = orders[0], .cutmix_order = orders[1]};
    raft_mix_draw(mixing, &random, HEIGHT, WIDTH, &mix);
    return mix;
}

static double value(int image, int i)
{
    int c = i / PLANE;
    return (bytes[image * IMAGE + i] / 255.0 - pixels.mean[c]) / pixels.std[c];
}

static double mixed(const RaftMix *mix, uint32_t image, int i)
{
    if (mix->mixup >= 1) return value((int)image, i);
    return mix->mixup * value((int)image, i) +
           (1 - mix->mixup) * value((int)mix->mixup_order[image], i);
}

static void check_images(const RaftMix *mix)
{
    static float images[COUNT * IMAGE], part[2 * IMAGE];
    raft_mix_images(mix, &pixels, bytes, 0, COUNT, images);
    for (int n = 0; n < COUNT; n++)
        for (int i = 0; i < IMAGE; i++) {
            int y = i / WIDTH % HEIGHT, x = i % WIDTH;
            bool inside = mix->cutmix < 1 && y >= mix->top && y < mix->top + mix->height &&
                          x >= mix->left && x < mix->left + mix->width;
            double wanted = mixed(mix, inside ? mix->cutmix_order[n] : (uint32_t)n, i);
            assert_true(fabs(images[n * IMAGE + i] - wanted) < 2e-6);
        }
    raft_mix_images(mix, &pixels, bytes, 7, 2, part); /* a part of the batch */
    assert_memory_equal(part, images + 7 * IMAGE, sizeof part);
}

/* -log p[label] with label smoothing, of made-up logits. */
static double loss_of(const double *log_p, uint32_t label, double smoothing)
{
    double all = 0;
    for (int k = 0; k < CLASSES; k++) all -= log_p[k] / CLASSES;
    return smoothing * all - (1 - smoothing) * log_p[label];
}

static void check_targets(const RaftMix *mix, double smoothing)
{
    static const double log_p[CLASSES] = {-0.3, -1.2, -2.5, -4.1, -0.9};
    float targets[COUNT * CLASSES], part[CLASSES];
    double lm = mix->mixup, lc = mix->cutmix;
    raft_mix_targets(mix, labels, CLASSES, smoothing, 0, COUNT, targets);
    for (int i = 0; i < COUNT; i++) {
        double sum = 0, loss = 0, wanted = 0;
        for (int k = 0; k < CLASSES; k++) {
            sum += targets[i * CLASSES + k];
            loss -= targets[i * CLASSES + k] * log_p[k];
        }
        uint32_t pc = lc < 1 ? mix->cutmix_order[i] : (uint32_t)i;
        wanted += lc * lm * loss_of(log_p, labels[i], smoothing);
        wanted += (1 - lc) * lm * loss_of(log_p, labels[pc], smoothing);
        if (lm < 1) {
            const uint32_t *pm = mix->mixup_order;
            wanted += lc * (1 - lm) * loss_of(log_p, labels[pm[i]], smoothing);
            wanted += (1 - lc) * (1 - lm) * loss_of(log_p, labels[pm[pc]], smoothing);
        }
        assert_true(fabs(sum - 1) < 1e-6);
        assert_true(fabs(loss - wanted) < 1e-6);
    }
    raft_mix_targets(mix, labels, CLASSES, smoothing, 4, 1, part);
    assert_memory_equal(part, targets + 4 * CLASSES, sizeof part);
}

static void test_formulas(void **state)
{
    (void)state;
    static const RaftMixing all[] = {
        {.mixup_alpha = .8, .mixup_p = 1, .cutmix_alpha = 1, .cutmix_p = 1},
        {.mixup_alpha = .8, .mixup_p = 1},
        {.mixup_alpha = .8, .cutmix_p = 1},
        {.mixup_alpha = .8, .mixup_p = .5, .cutmix_p = .5},
        {.mixup_p = 1, .cutmix_p = 1}, /* alpha 0: no mixing */
    };
    fill_batch();
    for (size_t k = 0; k < sizeof all / sizeof all[0]; k++)
        for (uint32_t batch = 0; batch < 40; batch++) {
            RaftMix mix = draw(&all[k], batch);
            check_images(&mix);
            check_targets(&mix, batch % 2 ? 0.1 : 0);
        }
}

static void test_not_mixed(void **state)
{
    (void)state;
    static float images[COUNT * IMAGE];
    float targets[COUNT * CLASSES];
    fill_batch();
    raft_mix_images(NULL, &pixels, bytes, 0, COUNT, images);
    raft_mix_targets(NULL, labels, CLASSES, 0, 0, COUNT, targets);
    for (int n = 0; n < COUNT; n++) {
        for (int i = 0; i < IMAGE; i++)
            assert_true(fabs(images[n * IMAGE + i] - value(n, i)) < 1e-6);
        for (int k = 0; k < CLASSES; k++)
            assert_true(targets[n * CLASSES + k] == ((uint32_t)k == labels[n]));
    }
}

/* The box is int(side sqrt(1 - l)), its corner below the rest; orders are permutations. */
static void test_draws(void **state)
{
    (void)state;
    static const RaftMixing mixing = {.mixup_alpha = .8, .mixup_p = .5, .cutmix_p = .5};
    int mixups = 0, cutmixes = 0;
    for (uint32_t batch = 0; batch < 4000; batch++) {
        RaftMix mix = draw(&mixing, batch);
        mixups += mix.mixup < 1;
        if (mix.cutmix >= 1) continue;
        cutmixes++;
        assert_int_equal(mix.height, (int)(HEIGHT * sqrt(1 - mix.cutmix)));
        assert_int_equal(mix.width, (int)(WIDTH * sqrt(1 - mix.cutmix)));
        assert_in_range(mix.top, 0, mix.height < HEIGHT ? HEIGHT - mix.height - 1 : 0);
        assert_in_range(mix.left, 0, mix.width < WIDTH ? WIDTH - mix.width - 1 : 0);
        int seen[COUNT] = {0};
        for (int i = 0; i < COUNT; i++) seen[mix.cutmix_order[i]]++;
        for (int i = 0; i < COUNT; i++) assert_int_equal(seen[i], 1);
    }
    assert_in_range(mixups, 1870, 2130);
    assert_in_range(cutmixes, 1870, 2130);
}

/* The variance of lambda tells from which alpha it was drawn: 1 / (4 (2 alpha + 1)). */
static double drawn_alpha(RaftMixing mixing)
{
    double squares = 0;
    for (uint32_t batch = 0; batch < 20000; batch++) {
        RaftMix mix = draw(&mixing, batch);
        squares += (mix.cutmix - 0.5) * (mix.cutmix - 0.5) / 20000;
    }
    return (0.25 / squares - 1) / 2;
}

static void test_cutmix_alpha(void **state)
{
    (void)state;
    RaftMixing mixing = {.mixup_alpha = .8, .mixup_p = 1, .cutmix_alpha = 4, .cutmix_p = 1};
    assert_true(fabs(drawn_alpha(mixing) - 0.8) < 0.05); /* as published */
    mixing.uses_cutmix_alpha = true;
    assert_true(fabs(drawn_alpha(mixing) - 4) < 0.3);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_formulas),
        cmocka_unit_test(test_not_mixed),
        cmocka_unit_test(test_draws),
        cmocka_unit_test(test_cutmix_alpha),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
