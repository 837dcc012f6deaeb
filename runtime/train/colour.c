/* colour.c: Pillow's operations on the values of pixels, for 8-bit RGB, bit for bit. */
#include "runtime/rt.h"
#include "runtime/train/train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static size_t bytes_of(const RaftImage *image)
{
    return (size_t)image->width * (size_t)image->height * 3;
}

/* ---- ImageEnhance: between a degenerate picture and the picture itself, or beyond ------------- */

/* Image.blend: from `degenerate` (factor 0) to `value` (factor 1). */
static inline uint8_t blend(int degenerate, int value, float factor)
{
    int mixed = (int)((float)degenerate + factor * (float)(value - degenerate));
    return (uint8_t)(mixed < 0 ? 0 : mixed > 255 ? 255 : mixed);
}

RT_WIDE static void blend_all(uint8_t *rgb, size_t bytes, int degenerate, float factor)
{
    for (size_t i = 0; i < bytes; i++) rgb[i] = blend(degenerate, rgb[i], factor);
}

uint8_t raft_colour_grey(const uint8_t rgb[3])
{
    return rt_grey(rgb[0], rgb[1], rgb[2]);
}

RT_WIDE static uint64_t sum_of_grey(const uint8_t *rgb, size_t pixels)
{
    enum { SPAN = 1 << 16 }; /* pixels, of which 32 bits hold the sum */
    uint64_t total = 0;
    for (size_t first = 0; first < pixels; first += SPAN) {
        uint32_t sum = 0, count = (uint32_t)(pixels - first < SPAN ? pixels - first : SPAN);
        for (uint32_t i = 0; i < count; i++, rgb += 3) sum += rt_grey(rgb[0], rgb[1], rgb[2]);
        total += sum;
    }
    return total;
}

void raft_colour_brightness(RaftImage *image, double factor)
{
    blend_all(image->rgb, bytes_of(image), 0, (float)factor);
}

void raft_colour_contrast(RaftImage *image, double factor)
{
    size_t pixels = bytes_of(image) / 3;
    uint64_t sum = sum_of_grey(image->rgb, pixels);
    blend_all(image->rgb, 3 * pixels, (uint8_t)((double)sum / (double)pixels + 0.5), (float)factor);
}

RT_WIDE static void saturate(uint8_t *rgb, size_t pixels, float factor)
{
    for (size_t i = 0; i < pixels; i++, rgb += 3) {
        int red = rgb[0], green = rgb[1], blue = rgb[2], grey = rt_grey(red, green, blue);
        rgb[0] = blend(grey, red, factor);
        rgb[1] = blend(grey, green, factor);
        rgb[2] = blend(grey, blue, factor);
    }
}

void raft_colour_saturation(RaftImage *image, double factor)
{
    saturate(image->rgb, bytes_of(image) / 3, (float)factor);
}

RT_WIDE static void sharpen_row(const uint8_t *restrict p, size_t row, size_t count, float factor,
                                uint8_t *restrict out)
{
    for (size_t x = 0; x < count; x++, p++) {
        const uint8_t *above = p - row, *below = p + row;
        int sum = above[-3] + above[0] + above[3] + p[-3] + 5 * p[0] + p[3] + below[-3] + below[0] +
                  below[3];
        out[x] = blend((sum * 2 + 13) / 26, p[0], factor);
    }
}

/* The degenerate picture is ImageFilter.SMOOTH's, where the edges are left as they are. */
RaftStatus raft_colour_sharpness(RaftImage *image, double factor, RaftError *error)
{
    size_t bytes = bytes_of(image), row = (size_t)image->width * 3;
    uint8_t *old = malloc(bytes);
    if (!old) return rt_no_memory(error, "sharpening a picture");
    memcpy(old, image->rgb, bytes);
    for (int y = 1; y < image->height - 1 && image->width > 2; y++) {
        size_t first = (size_t)y * row + 3;
        sharpen_row(old + first, row, row - 6, (float)factor, image->rgb + first);
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

RT_WIDE static void invert_from(uint8_t *rgb, size_t bytes, int least)
{
    for (size_t i = 0; i < bytes; i++) rgb[i] = (uint8_t)(rgb[i] >= least ? 255 - rgb[i] : rgb[i]);
}

void raft_colour_solarize(RaftImage *image, double threshold)
{
    invert_from(image->rgb, bytes_of(image), (int)ceil(threshold));
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
