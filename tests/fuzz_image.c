/* fuzz_image.c: the decoder of pictures, and what follows it, under libFuzzer.
 *
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined -I. tests/fuzz_image.c \
 *       runtime/{status,file,image,resize}.c -ljpeg -lpng -lm -o fuzz_image
 *   ./fuzz_image -timeout=5 -malloc_limit_mb=128 -max_len=4096 CORPUS tests/data/images
 *
 * With -DREPLAY, and without fuzzer in -fsanitize: a program that replays the files given to it. */
#include <stdlib.h>
#include <string.h>

#include "runtime/rt.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const double mean[3] = {.485, .456, .406}, std[3] = {.229, .224, .225};
    RaftImage image;
    RaftError error = {""};
    if (rt_image_decode("x", data, size, &image, &error)) {
        if (strncmp(error.message, "x: ", 3)) abort(); /* every refusal says where */
        if (image.rgb) abort();
        return 0;
    }
    /* a bit a block of 64 pixels in JPEG, deflate's greatest ratio and 1 bit a pixel in PNG */
    if ((size_t)image.width * (size_t)image.height / (1032 * 8) > size) abort();
    float chw[3 * 20 * 24];
    if (raft_image_preprocess(&image, 20, 24, size % 2, mean, std, chw, &error)) abort();
    for (int i = 0; i < 3 * 20 * 24; i++)
        if (!(chw[i] > -3 && chw[i] < 3)) abort();
    raft_image_free(&image);
    return 0;
}

#include "tests/fuzz_replay.h"
