/* fuzz_image.c: the decoder of JPEG and PNG pictures, and what follows it. */
#include <stdlib.h>
#include <string.h>

#include "runtime/rt.h"
#include "tests/fuzz.h"

/* A byte of PNG may stand for 1032 bytes of 8 pixels, each of 3 bytes here. The limit that all
 * pictures have stands above that. */
const FuzzLimits fuzz_limits = {.base = 4 << 20, .factor = 1032 * 8 * 3};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
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
