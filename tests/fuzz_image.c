/* fuzz_image.c: the decoder of JPEG and PNG pictures, and what follows it. */
#include <stdlib.h>
#include <string.h>

#include "runtime/rt.h"
#include "tests/fuzz.h"

/* A byte of PNG may stand for 1032 bytes of 8 pixels, each of 3 bytes here. The limit that all
 * pictures have stands above that. */
const FuzzLimits fuzz_limits = {.base = 4 << 20, .factor = 1032 * 8 * 3};

/* A part of the picture that the size of the file draws. */
static RtRect draw_part(const void *user, int width, int height)
{
    unsigned drawn = *(const unsigned *)user * 2654435761u;
    RtRect part = {(int)(drawn % (unsigned)width), (int)(drawn / 7 % (unsigned)height), 0, 0};
    part.width = 1 + (int)(drawn / 49 % (unsigned)(width - part.left));
    part.height = 1 + (int)(drawn / 343 % (unsigned)(height - part.top));
    return part;
}

/* As training reads it: a part, at a smaller scale, and of a damaged file what there is. */
static void decode_part(const uint8_t *data, size_t size)
{
    RaftImage image;
    RaftError error = {""};
    bool truncated;
    const unsigned drawn = (unsigned)size;
    const RtView view = {.least_side = (int)(drawn % 3 * 8), .part = draw_part, .user = &drawn};
    if (rt_image_decode_part("x", data, size, &view, &image, &truncated, &error)) {
        if (image.rgb) fuzz_fail("pixels of a refused picture");
        return;
    }
    uint64_t sum = 0;
    RtRect part = draw_part(&drawn, image.width, image.height);
    for (int y = part.top; y < part.top + part.height; y++)
        for (int x = 3 * part.left; x < 3 * (part.left + part.width); x++)
            sum += image.rgb[(size_t)y * 3 * (size_t)image.width + (size_t)x];
    if (sum > UINT64_C(765) * (unsigned)part.width * (unsigned)part.height)
        fuzz_fail("a value that no level has");
    raft_image_free(&image);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    decode_part(data, size);
    static const double mean[3] = {.485, .456, .406}, std[3] = {.229, .224, .225};
    RaftImage image;
    RaftError error = {""};
    if (rt_image_decode("x", data, size, &image, &error)) {
        if (strncmp(error.message, "x: byte ", 8)) fuzz_fail("a refusal that does not say where");
        if (image.rgb) fuzz_fail("pixels of a refused picture");
        return 0;
    }
    /* a bit a block of 64 pixels in JPEG, deflate's greatest ratio and 1 bit a pixel in PNG */
    if ((size_t)image.width * (size_t)image.height / (1032 * 8) > size)
        fuzz_fail("more pixels than the file can hold");
    float chw[3 * 20 * 24];
    if (raft_image_preprocess(&image, 20, 24, size % 2, mean, std, chw, &error))
        fuzz_fail(error.message);
    for (int i = 0; i < 3 * 20 * 24; i++)
        if (!(chw[i] > -3 && chw[i] < 3)) fuzz_fail("a value that no level has");
    raft_image_free(&image);
    return 0;
}
