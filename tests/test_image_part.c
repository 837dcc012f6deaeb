/* test_image_part.c: of a JPEG picture, the part that is looked at is the same bits as in the whole.
 *
 * Chroma is interpolated from neighbours, and blocks are skipped: so in every sampling, baseline and
 * progressive, with and without restart markers, in colour and grey, at each scale. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jpeglib.h>

#include "runtime/rt.h"
#include "runtime/train/train.h"

enum { WIDTH = 83, HEIGHT = 71, PARTS = 40 };

typedef struct Kind {
    int channels, across, down; /* blocks of luma in the place of one of chroma */
    bool progressive;
    int restart; /* rows of blocks from marker to marker */
} Kind;

/* Soft gradients with noise on them. */
static void draw_row(RaftRandom *random, int y, int channels, uint8_t *row)
{
    for (int x = 0; x < WIDTH; x++)
        for (int c = 0; c < channels; c++)
            *row++ = (uint8_t)(x * (c + 1) + y * (3 - c) / 2 + (int)raft_random_below(random, 60));
}

static unsigned char *encode(const Kind *kind, unsigned long *size)
{
    struct jpeg_error_mgr errors;
    struct jpeg_compress_struct jpeg = {.err = jpeg_std_error(&errors)};
    unsigned char *data = NULL;
    uint8_t pixels[3 * WIDTH], *row = pixels;
    RaftRandom random = raft_random(1, 0, 0, RAFT_FOR_AUGMENTATION);
    jpeg_create_compress(&jpeg);
    jpeg_mem_dest(&jpeg, &data, size);
    jpeg.image_width = WIDTH;
    jpeg.image_height = HEIGHT;
    jpeg.input_components = kind->channels;
    jpeg.in_color_space = kind->channels == 3 ? JCS_RGB : JCS_GRAYSCALE;
    jpeg_set_defaults(&jpeg);
    jpeg_set_quality(&jpeg, 90, TRUE);
    jpeg.comp_info[0].h_samp_factor = kind->across;
    jpeg.comp_info[0].v_samp_factor = kind->down;
    jpeg.restart_in_rows = kind->restart;
    if (kind->progressive) jpeg_simple_progression(&jpeg);
    jpeg_start_compress(&jpeg, TRUE);
    for (int y = 0; y < HEIGHT; y++) {
        draw_row(&random, y, kind->channels, pixels);
        jpeg_write_scanlines(&jpeg, &row, 1);
    }
    jpeg_finish_compress(&jpeg);
    jpeg_destroy_compress(&jpeg);
    return data;
}

static RtRect give_part(const void *user, int width, int height)
{
    RtRect part = *(const RtRect *)user;
    assert_true(part.left + part.width <= width && part.top + part.height <= height);
    return part;
}

static RaftImage decode(const unsigned char *data, unsigned long size, const RtView *view)
{
    RaftImage image;
    bool truncated;
    RaftError error = {"no message"};
    if (rt_image_decode_part("x", data, size, view, &image, &truncated, &error))
        fail_msg("%s", error.message);
    assert_false(truncated);
    return image;
}

static int draw_below(RaftRandom *random, int bound)
{
    return (int)raft_random_below(random, (uint32_t)bound);
}

static void compare_parts(const unsigned char *data, unsigned long size, int least_side)
{
    RtView view = {.least_side = least_side};
    RaftImage whole = decode(data, size, &view);
    RaftRandom random = raft_random(2, 0, 0, RAFT_FOR_AUGMENTATION);
    RtRect part;
    view.part = give_part;
    view.user = &part;
    for (int i = 0; i < PARTS; i++) {
        part.left = draw_below(&random, whole.width);
        part.top = draw_below(&random, whole.height);
        part.width = 1 + draw_below(&random, whole.width - part.left);
        part.height = 1 + draw_below(&random, whole.height - part.top);
        RaftImage found = decode(data, size, &view);
        assert_int_equal(found.width, whole.width);
        assert_int_equal(found.height, whole.height);
        for (int y = part.top; y < part.top + part.height; y++) {
            size_t at = 3 * ((size_t)y * (size_t)whole.width + (size_t)part.left);
            assert_memory_equal(found.rgb + at, whole.rgb + at, 3 * (size_t)part.width);
        }
        raft_image_free(&found);
    }
    raft_image_free(&whole);
}

static void test_kinds(void **state)
{
    (void)state;
    static const int samplings[][2] = {{1, 1}, {2, 1}, {1, 2}, {2, 2}, {4, 1}, {4, 2}};
    static const int least_sides[] = {0, HEIGHT / 2, HEIGHT / 4, HEIGHT / 8};
    for (int i = 0; i < 4 * 7; i++) {
        bool grey = i / 4 == 6;
        Kind kind = {.channels = grey ? 1 : 3, .progressive = i & 1, .restart = i & 2 ? 2 : 0};
        kind.across = grey ? 1 : samplings[i / 4][0];
        kind.down = grey ? 1 : samplings[i / 4][1];
        unsigned long size;
        unsigned char *data = encode(&kind, &size);
        for (int k = 0; k < 4; k++) compare_parts(data, size, least_sides[k]);
        free(data);
    }
}

/* Where the end of a file is missing, only who looks at it is told. */
static void test_truncated(void **state)
{
    (void)state;
    const Kind kind = {.channels = 3, .across = 2, .down = 2};
    unsigned long size;
    unsigned char *data = encode(&kind, &size);
    unsigned char *half = malloc(size / 2);
    memcpy(half, data, size / 2);
    free(data);
    for (int top = 0; top < 2; top++) {
        RtRect part = {0, top ? HEIGHT - 8 : 0, WIDTH, 8};
        const RtView view = {.part = give_part, .user = &part};
        RaftImage image;
        bool truncated;
        assert_int_equal(rt_image_decode_part("x", half, size / 2, &view, &image, &truncated, NULL),
                         RAFT_OK);
        assert_int_equal(truncated, top);
        raft_image_free(&image);
    }
    free(half);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {cmocka_unit_test(test_kinds),
                                              cmocka_unit_test(test_truncated)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
