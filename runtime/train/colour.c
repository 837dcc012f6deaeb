/* colour.c: Pillow's operations on the values of pixels, for 8-bit RGB, bit for bit. */
#include "runtime/rt.h"
#include "runtime/train/train.h"

#include <stdlib.h>
#include <string.h>

static size_t bytes_of(const RaftImage *image)
{
    return (size_t)image->width * (size_t)image->height * 3;
}

/* ---- ImageEnhance: between a degenerate picture and the picture itself, or beyond ------------- */

/* Image.blend: from `degenerate` (factor 0) to `value` (factor 1). */
static uint8_t blend(int degenerate, int value, float factor)
{
    float mixed = (float)degenerate + factor * (float)(value - degenerate);
    return (uint8_t)(mixed <= 0 ? 0 : mixed >= 255 ? 255 : mixed);
}

static void blend_with(RaftImage *image, uint8_t degenerate, double factor)
{
    uint8_t table[256];
    size_t bytes = bytes_of(image);
    for (int v = 0; v < 256; v++) table[v] = blend(degenerate, v, (float)factor);
    for (size_t i = 0; i < bytes; i++) image->rgb[i] = table[image->rgb[i]];
}

uint8_t raft_colour_grey(const uint8_t rgb[3])
{
    return (uint8_t)((rgb[0] * 19595 + rgb[1] * 38470 + rgb[2] * 7471 + 0x8000) >> 16);
}

void raft_colour_brightness(RaftImage *image, double factor)
{
    blend_with(image, 0, factor);
}

void raft_colour_contrast(RaftImage *image, double factor)
{
    uint64_t sum = 0;
    size_t bytes = bytes_of(image);
    for (size_t i = 0; i < bytes; i += 3) sum += raft_colour_grey(image->rgb + i);
    blend_with(image, (uint8_t)((double)sum / (double)(bytes / 3) + 0.5), factor);
}

void raft_colour_saturation(RaftImage *image, double factor)
{
    size_t bytes = bytes_of(image);
    for (size_t i = 0; i < bytes; i += 3) {
        uint8_t *rgb = image->rgb + i, grey = raft_colour_grey(rgb);
        for (int c = 0; c < 3; c++) rgb[c] = blend(grey, rgb[c], (float)factor);
    }
}

/* The degenerate picture is ImageFilter.SMOOTH's, where the edges are left as they are. */
RaftStatus raft_colour_sharpness(RaftImage *image, double factor, RaftError *error)
{
    size_t bytes = bytes_of(image), row = (size_t)image->width * 3;
    uint8_t *old = malloc(bytes);
    if (!old) return rt_no_memory(error, "sharpening a picture");
    memcpy(old, image->rgb, bytes);
    for (int y = 1; y < image->height - 1; y++)
        for (size_t x = 3; x + 3 < row; x++) {
            size_t i = (size_t)y * row + x;
            const uint8_t *p = old + i, *above = p - row, *below = p + row;
            int sum = above[-3] + above[0] + above[3] + p[-3] + 5 * p[0] + p[3] + below[-3] +
                      below[0] + below[3];
            image->rgb[i] = blend((sum * 2 + 13) / 26, p[0], (float)factor);
        }
    free(old);
    return RAFT_OK;
}

/* ---- ImageOps --------------------------------------------------------------------------------- */

static void apply(RaftImage *image, const uint8_t table[3][256])
{
    size_t bytes = bytes_of(image);
    for (size_t i = 0; i < bytes; i += 3)
        for (int c = 0; c < 3; c++) image->rgb[i + c] = table[c][image->rgb[i + c]];
}

static void count_values(const RaftImage *image, int64_t histogram[3][256])
{
    size_t bytes = bytes_of(image);
    memset(histogram, 0, 3 * sizeof *histogram);
    for (size_t i = 0; i < bytes; i += 3)
        for (int c = 0; c < 3; c++) histogram[c][image->rgb[i + c]]++;
}

void raft_colour_posterize(RaftImage *image, int bits)
{
    size_t bytes = bytes_of(image);
    for (size_t i = 0; i < bytes; i++) image->rgb[i] &= (uint8_t)(0xff << (8 - bits));
}

void raft_colour_solarize(RaftImage *image, double threshold)
{
    size_t bytes = bytes_of(image);
    for (size_t i = 0; i < bytes; i++)
        if (image->rgb[i] >= threshold) image->rgb[i] = (uint8_t)(255 - image->rgb[i]);
}

void raft_colour_invert(RaftImage *image)
{
    raft_colour_solarize(image, 0);
}

void raft_colour_autocontrast(RaftImage *image)
{
    int64_t histogram[3][256];
    uint8_t table[3][256];
    count_values(image, histogram);
    for (int c = 0; c < 3; c++) {
        int low = 0, high = 255;
        while (low < 255 && !histogram[c][low]) low++;
        while (high > 0 && !histogram[c][high]) high--;
        double scale = high > low ? 255.0 / (high - low) : 1;
        double offset = high > low ? -low * scale : 0;
        for (int v = 0; v < 256; v++) {
            int value = (int)(v * scale + offset);
            table[c][v] = (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
        }
    }
    apply(image, table);
}

void raft_colour_equalize(RaftImage *image)
{
    int64_t histogram[3][256];
    uint8_t table[3][256];
    count_values(image, histogram);
    for (int c = 0; c < 3; c++) {
        int64_t total = (int64_t)image->width * image->height;
        int last = 255;
        while (last > 0 && !histogram[c][last]) last--;
        int64_t step = (total - histogram[c][last]) / 255, sum = step / 2;
        for (int v = 0; v < 256; v++) {
            int64_t value = step ? sum / step : v; /* no step: left as it is */
            table[c][v] = (uint8_t)(value > 255 ? 255 : value);
            sum += histogram[c][v];
        }
    }
    apply(image, table);
}
