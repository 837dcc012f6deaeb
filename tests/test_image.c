/* test_image.c: decoding, resizing and preprocessing of pictures.
 *
 * In data/images, decoded.safetensors holds what Pillow 13 makes of each picture there, as
 * [height, width, 3], and resized.safetensors what Pillow makes of source.png ("20x17"), and
 * torchvision 0.29 ("source.png 28x28", height x width, normalised). */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "runtime/rt.h"

#define IMAGES TEST_DATA "/data/images/"

static const double mean[3] = {.485, .456, .406}, std[3] = {.229, .224, .225};

static void assert_message(const RaftError *error, const char *part)
{
    if (!strstr(error->message, part)) fail_msg("'%s' lacks '%s'", error->message, part);
}

static RaftImage read_image(const char *name)
{
    char path[512];
    RaftError error = {"no message"};
    RaftImage image;
    snprintf(path, sizeof path, "%s%s", name[0] == '/' ? "" : IMAGES, name);
    if (raft_image_read(path, &image, &error)) fail_msg("%s", error.message);
    return image;
}

static RaftWeights *open_tensors(const char *path)
{
    RaftError error = {"no message"};
    RaftWeights *tensors;
    if (raft_weights_open(path, &tensors, &error)) fail_msg("%s", error.message);
    return tensors;
}

/* ---- decoding -------------------------------------------------------------------------------- */

static void test_decode(void **state)
{
    (void)state;
    RaftWeights *wanted = open_tensors(IMAGES "decoded.safetensors");
    int count = raft_weights_count(wanted);
    assert_int_equal(count, 58);
    for (int i = 0; i < count; i++) {
        const RaftTensor *tensor = raft_weights_tensor(wanted, i);
        const uint8_t *pixels = tensor->data;
        RaftImage image = read_image(tensor->name);
        assert_int_equal(image.height, tensor->shape[0]);
        assert_int_equal(image.width, tensor->shape[1]);
        assert_int_equal(image.warnings, 0);
        int tolerance = strstr(tensor->name, ".jpg") ? 1 : 0;
        for (int64_t k = 0; k < tensor->elements; k++)
            if (abs(image.rgb[k] - pixels[k]) > tolerance)
                fail_msg("%s: value %d is %d, not %d", tensor->name, (int)k, image.rgb[k],
                         pixels[k]);
        raft_image_free(&image);
    }
    raft_weights_close(wanted);
}

static void test_refused(void **state)
{
    (void)state;
    RaftImage image;
    RaftError error;
    assert_int_equal(raft_image_read(IMAGES "none.jpg", &image, &error), RAFT_IO);
    assert_int_equal(raft_image_read(IMAGES "decoded.safetensors", &image, &error), RAFT_BAD_FILE);
    assert_message(&error, "decoded.safetensors: byte 0: neither a JPEG nor a PNG file");
    assert_null(image.rgb);
    assert_int_equal(rt_image_decode("x", NULL, 0, &image, &error), RAFT_BAD_FILE);
}

/* Pictures of kinds that are not read are called by their names. */
static void test_other_kinds(void **state)
{
    (void)state;
    static const struct {
        const char *bytes, *kind;
    } others[] = {
        {"RIFF\x10...WEBPVP8 ", "WebP"},
        {"GIF89a......", "GIF"},
        {"II*\0........", "TIFF"},
        {"MM\0*........", "TIFF"},
        {"\0\0\0\x18"
         "ftypheic",
         "HEIF"},
        {"\0\0\0\x18"
         "ftypmif1",
         "HEIF"},
        {"\0\0\0\x18"
         "ftypavif",
         "AVIF"},
        {"BM..........", "BMP"},
    };
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        RaftImage image;
        RaftError error;
        const uint8_t *bytes = (const uint8_t *)others[i].bytes;
        char wanted[100];
        snprintf(wanted, sizeof wanted,
                 "x: byte 0: a %s picture; JPEG and PNG are read: convert it to PNG",
                 others[i].kind);
        assert_int_equal(rt_image_decode("x", bytes, 12, &image, &error), RAFT_BAD_FILE);
        assert_string_equal(error.message, wanted);
        assert_int_equal(rt_image_decode("x", bytes, 1, &image, &error), RAFT_BAD_FILE);
        assert_message(&error, "neither a JPEG nor a PNG file");
    }
}

/* Loads a picture and changes the size in its header. */
static size_t load_with_size(const char *name, unsigned width, unsigned height, uint8_t *bytes,
                             size_t capacity)
{
    char path[512];
    snprintf(path, sizeof path, "%s%s", IMAGES, name);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    size_t size = fread(bytes, 1, capacity, file);
    fclose(file);
    if (strstr(name, ".png")) {
        for (int i = 0; i < 4; i++) {
            bytes[16 + i] = (uint8_t)(width >> 8 * (3 - i));
            bytes[20 + i] = (uint8_t)(height >> 8 * (3 - i));
        }
        uint32_t sum = 0xffffffffu; /* CRC-32 of the header chunk */
        for (int i = 12; i < 29; i++) {
            sum ^= bytes[i];
            for (int k = 0; k < 8; k++) sum = sum >> 1 ^ (sum & 1 ? 0xedb88320u : 0);
        }
        for (int i = 0; i < 4; i++) bytes[29 + i] = (uint8_t)(~sum >> 8 * (3 - i));
        return size;
    }
    for (size_t i = 0; i + 9 < size; i++) {
        if (bytes[i] != 0xff || (bytes[i + 1] != 0xc0 && bytes[i + 1] != 0xc2)) continue;
        uint8_t sides[] = {(uint8_t)(height >> 8), (uint8_t)height, (uint8_t)(width >> 8),
                           (uint8_t)width};
        memcpy(bytes + i + 5, sides, sizeof sides);
        return size;
    }
    fail_msg("%s has no frame header", name);
    return 0;
}

static void test_claims(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        unsigned width, height;
        const char *message;
    } claims[] = {
        {"rgb420.jpg", 65535, 1, "65500"},
        {"rgb420.jpg", 1, 65535, "65500"},
        {"rgb420.jpg", 20000, 20000, "20000"},
        {"rgb420.jpg", 13000, 13000, "too early"},
        {"progressive.jpg", 13000, 13000, "too early"},
        {"rgb8.png", 13000, 13000, "too early"},
        {"rgb8.png", 65501, 1, "65501"},
        {"rgb8.png", 1, 65501, "65501"},
        {"rgb8.png", 15000, 15000, "15000 x 15000; at most 65500 a side and 178956970 pixels"},
        {"grey1.png", 0x7fffffff, 0x7fffffff, "byte"},
        {"rgb8.png", 0, 5, "byte"},
        {"rgb420.jpg", 0, 5, "byte"},
    };
    for (size_t i = 0; i < sizeof claims / sizeof claims[0]; i++) {
        uint8_t bytes[8192];
        RaftImage image;
        RaftError error = {"no message"};
        size_t size =
            load_with_size(claims[i].name, claims[i].width, claims[i].height, bytes, sizeof bytes);
        if (rt_image_decode("x", bytes, size, &image, &error) != RAFT_BAD_FILE)
            fail_msg("%s as %u x %u is read", claims[i].name, claims[i].width, claims[i].height);
        assert_message(&error, "x: byte ");
        assert_message(&error, claims[i].message);
        assert_null(image.rgb);
    }
}

/* ---- damaged files --------------------------------------------------------------------------- */

/* Decodes a copy of exactly `size` bytes, so that the sanitizer sees a read past the end. */
static RaftStatus decode(const uint8_t *bytes, size_t size, RaftError *error)
{
    RaftImage image;
    uint8_t *exact = malloc(size + !size);
    memcpy(exact, bytes, size);
    RaftStatus status = rt_image_decode("x", exact, size, &image, error);
    if (status)
        assert_null(image.rgb);
    else
        assert_true(image.width > 0 && image.height > 0 && image.rgb);
    raft_image_free(&image);
    free(exact);
    return status;
}

/* Calls `test` with the bytes of every picture; returns the sum of the results. */
static int for_every_picture(int (*test)(const char *name, uint8_t *bytes, size_t size))
{
    RaftWeights *pictures = open_tensors(IMAGES "decoded.safetensors");
    int sum = 0;
    for (int i = 0; i < raft_weights_count(pictures); i++) {
        const char *name = raft_weights_tensor(pictures, i)->name;
        char path[512];
        uint8_t bytes[8192];
        snprintf(path, sizeof path, "%s%s", IMAGES, name);
        FILE *file = fopen(path, "rb");
        assert_non_null(file);
        size_t size = fread(bytes, 1, sizeof bytes, file);
        fclose(file);
        sum += test(name, bytes, size);
    }
    raft_weights_close(pictures);
    return sum;
}

static int truncate_everywhere(const char *name, uint8_t *bytes, size_t size)
{
    for (size_t left = 0; left < size; left++) {
        RaftError error = {"no message"};
        if (decode(bytes, left, &error) != RAFT_BAD_FILE)
            fail_msg("%s is read from %d of %d bytes", name, (int)left, (int)size);
        assert_message(&error, "x: byte ");
    }
    return 1;
}

static void test_truncated(void **state)
{
    (void)state;
    assert_int_equal(for_every_picture(truncate_everywhere), 58);

    RtFile china;
    RaftError error;
    assert_int_equal(rt_file_map(SOURCE_ROOT "/models/photos/china.jpg", &china, &error), RAFT_OK);
    for (size_t size = 0; size < china.size; size += 9973) {
        assert_int_equal(decode(china.data, size, &error), RAFT_BAD_FILE);
        assert_message(&error, "x: byte ");
    }
    assert_int_equal(decode(china.data, china.size - 1, &error), RAFT_BAD_FILE);
    assert_message(&error, "the file ends too early");
    rt_file_unmap(&china);
}

/* What Pillow gives with LOAD_TRUNCATED_IMAGES; data/images/make_truncated.py says how the file
 * was made. */
static void test_what_is_there(void **state)
{
    (void)state;
    RaftWeights *wanted = open_tensors(IMAGES "truncated.safetensors");
    for (int i = 0; i < raft_weights_count(wanted); i++) {
        const RaftTensor *tensor = raft_weights_tensor(wanted, i);
        const uint8_t *pixels = tensor->data;
        char name[64], path[512];
        int size;
        bool truncated = false;
        RtFile file;
        RaftImage image;
        RaftError error = {"no message"};
        assert_int_equal(sscanf(tensor->name, "%63s %d", name, &size), 2);
        snprintf(path, sizeof path, "%s%s", IMAGES, name);
        assert_int_equal(rt_file_map(path, &file, &error), RAFT_OK);
        uint8_t *exact = malloc((size_t)size);
        memcpy(exact, file.data, (size_t)size);
        if (rt_image_decode_part("x", exact, (size_t)size, NULL, &image, &truncated, &error))
            fail_msg("%s: %s", tensor->name, error.message);
        assert_int_equal(image.height, tensor->shape[0]);
        assert_int_equal(image.width, tensor->shape[1]);
        assert_true(truncated);
        for (int64_t k = 0; k < tensor->elements; k++)
            if (abs(image.rgb[k] - pixels[k]) > 1)
                fail_msg("%s: value %d is %d, not %d", tensor->name, (int)k, image.rgb[k],
                         pixels[k]);
        free(exact);
        raft_image_free(&image);
        rt_file_unmap(&file);
    }
    assert_int_equal(raft_weights_count(wanted), 7);
    raft_weights_close(wanted);
}

/* Against means of the whole picture's pixels: on average nearly the same, which one pixel off is not. */
static double difference(const RaftImage *whole, const RaftImage *small, int scale)
{
    double sum = 0;
    int width = whole->width / scale, height = whole->height / scale;
    for (int y = 0; y < height; y++)
        for (int x = 0; x < 3 * width; x++) {
            int all = 0;
            for (int i = 0; i < scale * scale; i++)
                all += whole->rgb[3 * ((y * scale + i / scale) * whole->width + x / 3 * scale +
                                       i % scale) +
                                  x % 3];
            sum += fabs((double)all / (scale * scale) - small->rgb[3 * y * small->width + x]);
        }
    return sum / (3 * width * height);
}

static void test_scaled(void **state)
{
    (void)state;
    static const struct {
        int least_side, scale;
    } cases[] = {{0, 1}, {427, 1}, {214, 1}, {213, 2}, {107, 2}, {106, 4}, {53, 8}, {1, 8}};
    RtFile file;
    RaftImage whole, small;
    bool truncated;
    assert_int_equal(rt_file_map(SOURCE_ROOT "/models/photos/china.jpg", &file, NULL), RAFT_OK);
    assert_int_equal(rt_image_decode("x", file.data, file.size, &whole, NULL), RAFT_OK);
    assert_int_equal(whole.height, 427);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int scale = cases[i].scale;
        const RtView view = {.least_side = cases[i].least_side};
        assert_int_equal(
            rt_image_decode_part("x", file.data, file.size, &view, &small, &truncated, NULL),
            RAFT_OK);
        assert_int_equal(small.height, (427 + scale - 1) / scale);
        assert_int_equal(small.width, (whole.width + scale - 1) / scale);
        double off = difference(&whole, &small, scale);
        if (!(off <= (scale > 1 ? 2 : 0))) fail_msg("1 / %d: off by %g", scale, off);
        raft_image_free(&small);
    }
    raft_image_free(&whole);
    rt_file_unmap(&file);
}

/* Whatever the length: an error without the header, and a picture with it. */
static int take_parts(const char *name, uint8_t *bytes, size_t size)
{
    int pictures = 0;
    for (size_t left = 0; left <= size; left++) {
        bool truncated = false;
        RaftImage image;
        RaftError error = {"no message"};
        uint8_t *exact = malloc(left + !left);
        memcpy(exact, bytes, left);
        if (rt_image_decode_part("x", exact, left, NULL, &image, &truncated, &error))
            assert_message(&error, "x: byte ");
        else
            pictures++;
        if (left == size && (truncated || !image.rgb)) fail_msg("%s is whole", name);
        raft_image_free(&image);
        free(exact);
    }
    return pictures;
}

static void test_parts(void **state)
{
    (void)state;
    assert_in_range(for_every_picture(take_parts), 1000, 58 * 4000);
}

static int flip_bits(const char *name, uint8_t *bytes, size_t size)
{
    uint64_t random = 88172645463325252u; /* xorshift64 */
    int refused = 0;
    (void)name;
    for (int i = 0; i < 50; i++) {
        uint8_t damaged[8192];
        memcpy(damaged, bytes, size);
        for (int k = 0; k <= i % 4; k++) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            damaged[random / 8 % size] ^= (uint8_t)(1 << random % 8);
        }
        RaftError error = {"no message"};
        if (decode(damaged, size, &error)) {
            assert_message(&error, "x: byte ");
            refused++;
        }
    }
    return refused;
}

static void test_flipped_bits(void **state)
{
    (void)state;
    assert_in_range(for_every_picture(flip_bits), 500, 58 * 50 - 100);
}

/* A scan that ends too early, though the file does not, is Pillow's warning and ours. */
static void test_warnings(void **state)
{
    (void)state;
    uint8_t bytes[8192];
    RaftImage image;
    RaftError error = {"no message"};
    size_t size = load_with_size("rgb420.jpg", 19, 13, bytes, sizeof bytes);
    memmove(bytes + size - 40, bytes + size - 2, 2);
    assert_int_equal(rt_image_decode("x", bytes, size - 38, &image, &error), RAFT_OK);
    assert_int_equal(image.warnings, 1);
    raft_image_free(&image);
}

/* ---- resizing -------------------------------------------------------------------------------- */

static void test_resize(void **state)
{
    (void)state;
    RaftWeights *wanted = open_tensors(IMAGES "resized.safetensors");
    RaftImage source = read_image("source.png");
    int checked = 0;
    for (int i = 0; i < raft_weights_count(wanted); i++) {
        const RaftTensor *tensor = raft_weights_tensor(wanted, i);
        RaftImage image;
        RaftError error = {"no message"};
        if (tensor->dtype != RAFT_U8) continue;
        int height = (int)tensor->shape[0], width = (int)tensor->shape[1];
        assert_int_equal(raft_image_resize(&source, width, height, &image, &error), RAFT_OK);
        assert_int_equal(image.width, width);
        assert_int_equal(image.height, height);
        assert_memory_equal(image.rgb, tensor->data, (size_t)tensor->elements);
        raft_image_free(&image);
        checked++;
    }
    assert_int_equal(checked, 9);
    raft_image_free(&source);
    raft_weights_close(wanted);
}

static void test_resize_wrong_arguments(void **state)
{
    (void)state;
    static const int sizes[][2] = {{0, 5}, {5, 0}, {-1, 5}, {65501, 1}, {60000, 60000}};
    RaftImage source = read_image("source.png"), image, empty = {0};
    RaftError error;
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        assert_int_equal(raft_image_resize(&source, sizes[i][0], sizes[i][1], &image, &error),
                         RAFT_INVALID);
        assert_message(&error, "45 x 30 cannot be resized to");
        assert_null(image.rgb);
    }
    assert_int_equal(raft_image_resize(&empty, 5, 5, &image, &error), RAFT_INVALID);
    assert_int_equal(raft_image_preprocess(&source, 0, 5, false, mean, std, NULL, &error),
                     RAFT_INVALID);
    raft_image_free(&source);
}

/* ---- preprocessing --------------------------------------------------------------------------- */

static void test_preprocess(void **state)
{
    (void)state;
    RaftWeights *wanted = open_tensors(IMAGES "resized.safetensors");
    int checked = 0;
    for (int i = 0; i < raft_weights_count(wanted); i++) {
        const RaftTensor *tensor = raft_weights_tensor(wanted, i);
        if (tensor->dtype != RAFT_F32) continue;
        char name[32], exact[8] = "";
        int height, width;
        RaftError error = {"no message"};
        assert_in_range(sscanf(tensor->name, "%31s %dx%d %7s", name, &height, &width, exact), 3, 4);
        RaftImage image = read_image(name);
        float *chw = malloc((size_t)tensor->elements * sizeof *chw);
        assert_int_equal(3 * height * width, tensor->elements);
        assert_int_equal(
            raft_image_preprocess(&image, height, width, exact[0], mean, std, chw, &error),
            RAFT_OK);
        for (int64_t k = 0; k < tensor->elements; k++)
            if (memcmp(&chw[k], (const float *)tensor->data + k, sizeof *chw))
                fail_msg("%s: value %d is %.9g, not %.9g", tensor->name, (int)k, chw[k],
                         ((const float *)tensor->data)[k]);
        free(chw);
        raft_image_free(&image);
        checked++;
    }
    assert_int_equal(checked, 10);
    raft_weights_close(wanted);
}

/* The photograph as the models see it: decoder, resize and crop together, within a grey level. */
static void test_photograph(void **state)
{
    (void)state;
    RaftImage china = read_image(SOURCE_ROOT "/models/photos/china.jpg");
    RaftImage wanted = read_image("china224.png");
    float *chw = malloc(3 * 224 * 224 * sizeof *chw);
    assert_int_equal(raft_image_preprocess(&china, 224, 224, false, mean, std, chw, NULL), RAFT_OK);
    for (int c = 0; c < 3; c++)
        for (int i = 0; i < 224 * 224; i++) {
            double level = (chw[c * 224 * 224 + i] * std[c] + mean[c]) * 255;
            if (fabs(level - wanted.rgb[3 * i + c]) > 1.01)
                fail_msg("channel %d, pixel %d is %g, not %d", c, i, level, wanted.rgb[3 * i + c]);
        }
    free(chw);
    raft_image_free(&china);
    raft_image_free(&wanted);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decode),        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_claims),        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_flipped_bits),  cmocka_unit_test(test_warnings),
        cmocka_unit_test(test_resize),        cmocka_unit_test(test_resize_wrong_arguments),
        cmocka_unit_test(test_what_is_there), cmocka_unit_test(test_parts),
        cmocka_unit_test(test_preprocess),    cmocka_unit_test(test_photograph),
        cmocka_unit_test(test_scaled),        cmocka_unit_test(test_other_kinds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
