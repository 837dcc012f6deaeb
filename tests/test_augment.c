/* test_augment.c: random numbers, and the augmentation of training against Pillow.
 *
 * data/augment/pillow.safetensors holds what Pillow makes of small pictures; the script beside it
 * says how. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "runtime/train/train.h"

/* ---- random numbers --------------------------------------------------------------------------- */

/* The known answers that the authors of Philox publish; their words of the counter stand in the
 * order that raft_random fills. */
static void test_known_answers(void **state)
{
    (void)state;
    static const struct {
        uint32_t counter[4], key[2], out[4];
    } known[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        RaftRandom random =
            raft_random(known[i].key[0] | (uint64_t)known[i].key[1] << 32, known[i].counter[2],
                        known[i].counter[1], (RaftPurpose)known[i].counter[3]);
        random.counter[0] = known[i].counter[0];
        for (int k = 0; k < 4; k++) assert_int_equal(raft_random_bits(&random), known[i].out[k]);
    }
}

/* Streams that differ in one part of their place share no block. */
static void test_streams(void **state)
{
    (void)state;
    RaftRandom streams[] = {
        raft_random(1, 2, 3, RAFT_FOR_ORDER),  raft_random(2, 2, 3, RAFT_FOR_ORDER),
        raft_random(1, 3, 3, RAFT_FOR_ORDER),  raft_random(1, 2, 4, RAFT_FOR_ORDER),
        raft_random(1, 2, 3, RAFT_FOR_MIXING), raft_random(1ull << 32, 2, 3, RAFT_FOR_ORDER),
    };
    uint32_t drawn[6][64];
    for (int i = 0; i < 6; i++)
        for (int k = 0; k < 64; k++) drawn[i][k] = raft_random_bits(&streams[i]);
    for (int i = 0; i < 6; i++)
        for (int k = 0; k < i; k++) {
            int same = 0;
            for (int n = 0; n < 64; n++) same += drawn[i][n] == drawn[k][n];
            assert_in_range(same, 0, 1);
        }
}

static void test_uniform(void **state)
{
    (void)state;
    enum { DRAWS = 70000, BOUND = 7 };
    int histogram[BOUND] = {0};
    double sum = 0;
    RaftRandom random = raft_random(42, 0, 0, RAFT_FOR_AUGMENTATION);
    for (int i = 0; i < DRAWS; i++) {
        histogram[raft_random_below(&random, BOUND)]++;
        double u = raft_random_uniform(&random, -3, 5);
        assert_true(u >= -3 && u < 5);
        sum += u;
    }
    for (int i = 0; i < BOUND; i++) assert_in_range(histogram[i], 9600, 10400); /* 4.3 sigma */
    assert_true(fabs(sum / DRAWS - 1) < 0.035);                                 /* 4 sigma */
    for (int i = 0; i < 100; i++) assert_int_equal(raft_random_below(&random, 1), 0);
}

/* Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)). */
static void test_beta(void **state)
{
    (void)state;
    static const double alphas[] = {1e-4, 0.2, 0.8, 1, 3};
    enum { DRAWS = 20000 };
    for (int i = 0; i < 5; i++) {
        RaftRandom random = raft_random(42, 0, (uint32_t)i, RAFT_FOR_MIXING);
        double sum = 0, squares = 0;
        for (int k = 0; k < DRAWS; k++) {
            double lambda = raft_random_beta(&random, alphas[i]);
            assert_true(lambda >= 0 && lambda <= 1);
            sum += lambda;
            squares += (lambda - 0.5) * (lambda - 0.5);
        }
        assert_true(fabs(sum / DRAWS - 0.5) < 0.015);
        assert_true(fabs(squares / DRAWS * (4 * (2 * alphas[i] + 1)) - 1) < 0.04);
    }
}

static void test_permutation(void **state)
{
    (void)state;
    enum { COUNT = 1000 };
    uint32_t order[COUNT], again[COUNT];
    int seen[COUNT] = {0}, moved = 0;
    RaftRandom random = raft_random(42, 3, 0, RAFT_FOR_ORDER), same = random;
    raft_random_permutation(&random, COUNT, order);
    raft_random_permutation(&same, COUNT, again);
    assert_memory_equal(order, again, sizeof order);
    for (int i = 0; i < COUNT; i++) seen[order[i]]++;
    for (int i = 0; i < COUNT; i++) {
        assert_int_equal(seen[i], 1);
        moved += order[i] != (uint32_t)i;
    }
    assert_in_range(moved, 990, COUNT);
    int first[4] = {0}; /* every element is as likely to come first */
    for (int i = 0; i < 8000; i++) {
        raft_random_permutation(&random, 4, order);
        first[order[0]]++;
    }
    for (int i = 0; i < 4; i++) assert_in_range(first[i], 1840, 2160);
}

/* ---- against Pillow --------------------------------------------------------------------------- */

static const char *const op_names[RAFT_OPS] = {
    [RAFT_OP_SHEAR_X] = "shear_x",         [RAFT_OP_SHEAR_Y] = "shear_y",
    [RAFT_OP_TRANSLATE_X] = "translate_x", [RAFT_OP_TRANSLATE_Y] = "translate_y",
    [RAFT_OP_ROTATE] = "rotate",           [RAFT_OP_COLOR] = "color",
    [RAFT_OP_POSTERIZE] = "posterize",     [RAFT_OP_SOLARIZE] = "solarize",
    [RAFT_OP_CONTRAST] = "contrast",       [RAFT_OP_SHARPNESS] = "sharpness",
    [RAFT_OP_BRIGHTNESS] = "brightness",   [RAFT_OP_AUTOCONTRAST] = "autocontrast",
    [RAFT_OP_EQUALIZE] = "equalize",       [RAFT_OP_INVERT] = "invert",
    [RAFT_OP_CUTOUT] = "cutout",
};

static RaftImage copy_of(const RaftTensor *tensor)
{
    RaftImage image = {.height = (int)tensor->shape[0], .width = (int)tensor->shape[1]};
    image.rgb = malloc((size_t)tensor->elements);
    memcpy(image.rgb, tensor->data, (size_t)tensor->elements);
    return image;
}

static void enhance(const char *name, double factor, RaftImage *image)
{
    if (!strcmp(name, "brightness"))
        raft_colour_brightness(image, factor);
    else if (!strcmp(name, "contrast"))
        raft_colour_contrast(image, factor);
    else
        raft_colour_saturation(image, factor);
}

/* The draw that a name such as "photo shear_x 5 -" asks for. */
static RaftDraw draw_of(const char *op, const char *step, const char *sign)
{
    RaftDraw draw = {.op = RAFT_OPS, .step = atoi(step), .negative = sign[0] == '-'};
    for (int i = 0; i < RAFT_OPS; i++)
        if (!strcmp(op_names[i], op)) draw.op = (RaftOp)i;
    assert_in_range(draw.op, 0, RAFT_OPS - 1);
    return draw;
}

static void test_pillow(void **state)
{
    (void)state;
    RaftError error = {"no message"};
    RaftWeights *tensors;
    int checked[RAFT_OPS] = {0}, enhanced = 0;
    if (raft_weights_open(TEST_DATA "/data/augment/pillow.safetensors", &tensors, &error))
        fail_msg("%s", error.message);
    for (int i = 0; i < raft_weights_count(tensors); i++) {
        const RaftTensor *wanted = raft_weights_tensor(tensors, i);
        char picture[16], op[16], first[16], second[16];
        if (sscanf(wanted->name, "%15s %15s %15s %15s", picture, op, first, second) != 4) continue;
        RaftImage image = copy_of(raft_weights_find(tensors, picture));
        if (!strcmp(op, "enhance")) {
            enhance(first, atof(second), &image);
            enhanced++;
        } else {
            RaftDraw draw = draw_of(op, first, second);
            assert_int_equal(raft_augment_apply(&draw, &image, &error), RAFT_OK);
            checked[draw.op]++;
        }
        for (int64_t k = 0; k < wanted->elements; k++)
            if (image.rgb[k] != ((const uint8_t *)wanted->data)[k])
                fail_msg("%s: value %d is %d, not %d", wanted->name, (int)k, image.rgb[k],
                         ((const uint8_t *)wanted->data)[k]);
        raft_image_free(&image);
    }
    assert_int_equal(enhanced, 30);
    for (int i = 0; i < RAFT_OPS; i++)
        if (i != RAFT_OP_CUTOUT) assert_in_range(checked[i], 2, 12);
    raft_weights_close(tensors);
}

/* ---- what is drawn ---------------------------------------------------------------------------- */

/* A picture whose every pixel tells its place. */
static RaftImage places(int width, int height)
{
    RaftImage image = {.width = width, .height = height};
    image.rgb = malloc((size_t)width * (size_t)height * 3);
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++) {
            uint8_t *rgb = image.rgb + (y * width + x) * 3;
            rgb[0] = (uint8_t)(x + 1);
            rgb[1] = (uint8_t)(y + 1);
            rgb[2] = 200;
        }
    return image;
}

static void test_draws(void **state)
{
    (void)state;
    enum { DRAWS = 27000 };
    int ops[RAFT_OPS] = {0}, steps[10] = {0}, applied = 0, negative = 0;
    RaftRandom random = raft_random(42, 0, 0, RAFT_FOR_AUGMENTATION);
    for (int i = 0; i < DRAWS; i++) {
        RaftDraw draw = raft_augment_draw(&random);
        ops[draw.op]++;
        steps[draw.step]++;
        applied += draw.applied;
        negative += draw.negative;
        assert_true(draw.across >= 0 && draw.across < 1 && draw.down >= 0 && draw.down < 1);
    }
    for (int i = 0; i < RAFT_OPS; i++) assert_in_range(ops[i], 1630, 1970);
    for (int i = 1; i <= 9; i++) assert_in_range(steps[i], 2780, 3220);
    assert_in_range(applied, 13150, 13850);
    assert_in_range(negative, 13150, 13850);
}

static void test_square(void **state)
{
    (void)state;
    static const int sides[] = {0, 2, 4, 7, 9, 11, 13, 16, 18, 20}; /* round(20 i / 9) */
    for (int step = 1; step <= 9; step++)
        for (int corner = 0; corner < 2; corner++) {
            RaftImage image = places(50, 40);
            RaftDraw draw = {.op = RAFT_OP_CUTOUT, .step = step, .across = .5, .down = .5};
            if (corner) draw.across = draw.down = 0;
            int erased = 0, side = sides[step], left = (side + 1) / 2;
            assert_int_equal(raft_augment_apply(&draw, &image, NULL), RAFT_OK);
            for (int i = 0; i < 50 * 40; i++) erased += image.rgb[3 * i + 2] == 0;
            assert_int_equal(erased, corner ? left * left : side * side);
            raft_image_free(&image);
        }
}

/* The place of a crop can be read from its first pixel. */
static void test_crops(void **state)
{
    (void)state;
    RaftAugmentation cifar;
    assert_true(raft_augmentation_of("cifar10", &cifar));
    assert_int_equal(cifar.crop, RAFT_CROP_PADDED);
    assert_true(cifar.rand_augment);
    cifar.width = cifar.height = 32;
    cifar.rand_augment = false;
    int flipped = 0, shifts[9][9] = {{0}};
    for (uint32_t i = 0; i < 4000; i++) {
        RaftImage image = places(32, 32);
        RaftRandom random = raft_random(1, 0, i, RAFT_FOR_AUGMENTATION);
        assert_int_equal(raft_augment(&cifar, &random, &image, NULL), RAFT_OK);
        assert_true(image.width == 32 && image.height == 32);
        const uint8_t *middle = image.rgb + (16 * 32 + 16) * 3;
        bool flip = middle[-3] > middle[0];
        flipped += flip;
        if (flip) raft_warp_flip(&image);
        int across = middle[0] - 17, down = middle[1] - 17;
        assert_true(abs(across) <= 4 && abs(down) <= 4);
        shifts[down + 4][across + 4]++;
        for (int y = 0; y < 32; y++)
            for (int x = 0; x < 32; x++) {
                int from_x = x + across, from_y = y + down;
                bool inside = from_x >= 0 && from_x < 32 && from_y >= 0 && from_y < 32;
                const uint8_t *rgb = image.rgb + (y * 32 + x) * 3;
                assert_int_equal(rgb[0], inside ? from_x + 1 : 0);
                assert_int_equal(rgb[1], inside ? from_y + 1 : 0);
            }
        raft_image_free(&image);
    }
    assert_in_range(flipped, 1870, 2130);
    for (int i = 0; i < 81; i++) assert_in_range(shifts[i / 9][i % 9], 20, 85);
}

/* Every picture, however narrow, gives the size that is asked for. */
static void test_sizes(void **state)
{
    (void)state;
    static const int sides[][2] = {{1, 1}, {1, 40}, {40, 1}, {33, 20}, {20, 33}, {90, 91}};
    static const char *const names[] = {"imagenet", "folder", "cars",          "flowers102",
                                        "inat18",   "inat19", "fashion_mnist", "cifar100"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        for (size_t k = 0; k < sizeof sides / sizeof sides[0]; k++)
            for (uint32_t n = 0; n < 40; n++) {
                RaftAugmentation recipe;
                RaftError error = {"no message"};
                assert_true(raft_augmentation_of(names[i], &recipe));
                recipe.height = 32;
                recipe.width = 28;
                recipe.color_jitter = 0.4;
                recipe.cutout_p = 0.25;
                for (int test = 0; test < 2; test++) {
                    RaftImage image = places(sides[k][0], sides[k][1]);
                    RaftRandom random = raft_random(n, 0, 0, RAFT_FOR_AUGMENTATION);
                    if (test ? raft_augment_not(&recipe, &image, &error)
                             : raft_augment(&recipe, &random, &image, &error))
                        fail_msg("%s, %d x %d: %s", names[i], sides[k][0], sides[k][1],
                                 error.message);
                    assert_true(image.width == 28 && image.height == 32);
                    raft_image_free(&image);
                }
            }
    RaftAugmentation recipe;
    assert_false(raft_augmentation_of("imagenet21k", &recipe));
}

/* Without chance the picture is that of raft_image_preprocess. */
static void test_test_transform(void **state)
{
    (void)state;
    static const double mean[3] = {0, 0, 0}, std[3] = {1, 1, 1};
    static const int sides[][2] = {{57, 33}, {33, 57}, {16, 16}, {90, 91}};
    static const char *const names[] = {"imagenet", "cars"};
    float chw[3 * 24 * 20];
    for (int n = 0; n < 2; n++)
        for (int k = 0; k < 4; k++) {
            RaftAugmentation recipe;
            RaftImage image = places(sides[k][0], sides[k][1]);
            assert_true(raft_augmentation_of(names[n], &recipe));
            recipe.height = 24;
            recipe.width = 20;
            assert_int_equal(raft_image_preprocess(&image, 24, 20, n == 1, mean, std, chw, NULL),
                             RAFT_OK);
            assert_int_equal(raft_augment_not(&recipe, &image, NULL), RAFT_OK);
            for (int c = 0; c < 3; c++)
                for (int i = 0; i < 24 * 20; i++)
                    assert_int_equal(image.rgb[3 * i + c], lrintf(chw[c * 24 * 20 + i] * 255));
            raft_image_free(&image);
        }
}

/* A fixed seed means the same pixels for ever: a change of what is drawn, or in which order, breaks
 * resumed runs, and shows here. */
static void test_same_for_ever(void **state)
{
    (void)state;
    RaftAugmentation recipe;
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    assert_true(raft_augmentation_of("imagenet", &recipe));
    recipe.height = recipe.width = 28;
    recipe.color_jitter = 0.4;
    recipe.cutout_p = 0.25;
    for (uint32_t i = 0; i < 64; i++) {
        RaftImage image = places(40, 50);
        RaftRandom random = raft_random(42, 7, i, RAFT_FOR_AUGMENTATION);
        assert_int_equal(raft_augment(&recipe, &random, &image, NULL), RAFT_OK);
        for (int k = 0; k < 28 * 28 * 3; k++) hash = (hash ^ image.rgb[k]) * 1099511628211u;
        raft_image_free(&image);
    }
    if (hash != 0x713be8e3ad25f86) fail_msg("0x%llx", (unsigned long long)hash);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_answers),  cmocka_unit_test(test_streams),
        cmocka_unit_test(test_uniform),        cmocka_unit_test(test_beta),
        cmocka_unit_test(test_permutation),    cmocka_unit_test(test_pillow),
        cmocka_unit_test(test_draws),          cmocka_unit_test(test_square),
        cmocka_unit_test(test_crops),          cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_test_transform), cmocka_unit_test(test_same_for_ever),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
