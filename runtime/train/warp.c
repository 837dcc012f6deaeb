/* warp.c: Pillow's operations that move pixels, for 8-bit RGB, bit for bit. */
#include "runtime/rt.h"
#include "runtime/train/train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Puts new pixels into a picture. */
static void replace(RaftImage *image, uint8_t *rgb, int width, int height)
{
    free(image->rgb);
    image->rgb = rgb;
    image->width = width;
    image->height = height;
}

RaftStatus raft_warp_crop(RaftImage *image, int left, int top, int width, int height,
                          RaftError *error)
{
    if (width < 1 || height < 1 || width > RT_MAX_SIDE || height > RT_MAX_SIDE)
        return rt_fail(error, RAFT_INVALID, "a picture cannot be cut to %d x %d", width, height);
    uint8_t *rgb = calloc((size_t)width * (size_t)height, 3);
    if (!rgb) return rt_no_memory(error, "cutting a picture");
    int first = left < 0 ? -left : 0;
    int end = left + width > image->width ? image->width - left : width;
    for (int y = 0; y < height && first < end; y++) {
        int row = top + y;
        if (row < 0 || row >= image->height) continue;
        memcpy(rgb + ((size_t)y * (size_t)width + (size_t)first) * 3,
               image->rgb + ((size_t)row * (size_t)image->width + (size_t)(left + first)) * 3,
               (size_t)(end - first) * 3);
    }
    replace(image, rgb, width, height);
    return RAFT_OK;
}

/* A row's pixels in the order from its end: swapped by threes of bytes within fours, which do not overlap
 * until the middle. */
static void flip_row(uint8_t *row, int width)
{
    uint8_t *a = row, *b = row + 3 * ((size_t)width - 1);
    for (; a + 6 <= b; a += 3, b -= 3) {
        uint32_t left, right; /* right: with the byte before */
        memcpy(&left, a, 4);
        memcpy(&right, b - 1, 4);
        uint32_t new_left = (left & 0xff000000) | right >> 8;
        uint32_t new_right = (right & 0xff) | left << 8;
        memcpy(a, &new_left, 4);
        memcpy(b - 1, &new_right, 4);
    }
    for (; a < b; a += 3, b -= 3)
        for (int c = 0; c < 3; c++) {
            uint8_t value = a[c];
            a[c] = b[c];
            b[c] = value;
        }
}

void raft_warp_flip(RaftImage *image)
{
    for (int y = 0; y < image->height; y++)
        flip_row(image->rgb + (size_t)y * (size_t)image->width * 3, image->width);
}

void raft_warp_erase(RaftImage *image, int left, int top, int width, int height)
{
    int right = left + width < image->width ? left + width : image->width;
    int bottom = top + height < image->height ? top + height : image->height;
    if (left < 0) left = 0;
    for (int y = top < 0 ? 0 : top; y < bottom && left < right; y++)
        memset(image->rgb + ((size_t)y * (size_t)image->width + (size_t)left) * 3, 0,
               (size_t)(right - left) * 3);
}

/* ---- affine ----------------------------------------------------------------------------------- */

/* Fixed point of 16 bits. */
static int64_t to_fixed(double value)
{
    return (int64_t)floor(value * 65536.0 + 0.5);
}

static bool is_within(int64_t value, int count)
{
    return value >= 0 && value < count;
}

/* Neither turned nor sheared: all rows take the same columns. Shifts are summed up step by step, as Pillow
 * does: a last bit may choose another pixel. */
static RaftStatus shift(const uint8_t *rgb, int width, int height, const double m[6], uint8_t *out,
                        RaftError *error)
{
    int64_t *from = malloc((size_t)width * sizeof *from);
    if (!from) return rt_no_memory(error, "moving a picture");
    double from_x = m[2] + m[0] * 0.5, from_y = m[5] + m[4] * 0.5;
    for (int x = 0; x < width; x++, from_x += m[0]) from[x] = (int64_t)floor(from_x);
    for (int y = 0; y < height; y++, from_y += m[4]) {
        int64_t row = (int64_t)floor(from_y);
        if (!is_within(row, height)) {
            out += (size_t)width * 3;
            continue;
        }
        for (int x = 0; x < width; x++, out += 3)
            if (is_within(from[x], width)) memcpy(out, rgb + 3 * (row * width + from[x]), 3);
    }
    free(from);
    return RAFT_OK;
}

/* In fixed point, as Pillow does. */
static void nearest(const uint8_t *rgb, int width, int height, const double m[6], uint8_t *out)
{
    int64_t row_x = to_fixed(m[2] + m[0] * 0.5 + m[1] * 0.5);
    int64_t row_y = to_fixed(m[5] + m[3] * 0.5 + m[4] * 0.5);
    const int64_t right[2] = {to_fixed(m[0]), to_fixed(m[3])};
    for (int y = 0; y < height; y++, row_x += to_fixed(m[1]), row_y += to_fixed(m[4])) {
        int64_t at_x = row_x, at_y = row_y;
        for (int x = 0; x < width; x++, out += 3, at_x += right[0], at_y += right[1])
            if (is_within(at_x >> 16, width) && is_within(at_y >> 16, height))
                memcpy(out, rgb + 3 * ((at_y >> 16) * width + (at_x >> 16)), 3);
    }
}

/* Fills the picture, and gives what it was; NULL: there is no memory. */
static uint8_t *refill(RaftImage *image, uint8_t fill, RaftError *error)
{
    size_t bytes = (size_t)image->width * (size_t)image->height * 3;
    uint8_t *old = malloc(bytes);
    if (!old) {
        rt_no_memory(error, "turning a picture");
        return NULL;
    }
    memcpy(old, image->rgb, bytes);
    memset(image->rgb, fill, bytes);
    return old;
}

RaftStatus raft_warp_affine(RaftImage *image, const double matrix[6], uint8_t fill,
                            RaftError *error)
{
    uint8_t *old = refill(image, fill, error);
    RaftStatus status = RAFT_OK;
    if (!old) return RAFT_NO_MEMORY;
    if (matrix[1] == 0 && matrix[3] == 0)
        status = shift(old, image->width, image->height, matrix, image->rgb, error);
    else
        nearest(old, image->width, image->height, matrix, image->rgb);
    free(old);
    return status;
}

/* ---- shears ----------------------------------------------------------------------------------- */

/* What a row is made of: the bytes of four neighbours of each pixel, and, for each byte, how far it lies
 * from the second on the way to the third. */
typedef struct Taps {
    uint8_t *byte[4];
    double *part;
    int *at; /* of each pixel, the second neighbour along the shear */
} Taps;

static int clamp(int value, int count)
{
    return value < 0 ? 0 : value >= count ? count - 1 : value;
}

/* Of numbers from -1/2 on. */
static int floor_of(double value)
{
    return value < 0 ? -1 : (int)value;
}

/* Pixels first to first + count - 1 of a row, of which those at its ends go on for ever. */
static void copy_pixels(const uint8_t *row, int width, int first, int count, uint8_t *out)
{
    int inside = first < 0 ? 0 : first, end = first + count < width ? first + count : width;
    if (inside < end)
        memcpy(out + 3 * (inside - first), row + 3 * (size_t)inside, 3 * (size_t)(end - inside));
    for (int x = first; x < first + count; x++)
        if (x < 0 || x >= width)
            memcpy(out + 3 * (x - first), row + 3 * (size_t)clamp(x, width), 3);
}

/* The cubic with a = -1 through whole numbers, its coefficients exact. */
RT_WIDE static void blend(const Taps *taps, int first, int end, uint8_t *out)
{
    const uint8_t *a = taps->byte[0], *b = taps->byte[1], *c = taps->byte[2], *d = taps->byte[3];
    const double *part = taps->part;
#pragma omp simd
    for (int i = first; i < end; i++) {
        int once = c[i] - a[i], twice = 2 * (a[i] - b[i]) + c[i] - d[i];
        int thrice = b[i] - a[i] + d[i] - c[i];
        int value = (int)(b[i] + part[i] * (once + part[i] * (twice + part[i] * thrice)));
        out[i] = (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
    }
}

/* Pixels [*first, *end) of row y come from inside: from where, runs of them from neighbours. */
static void find_taps(const RaftImage *image, const uint8_t *old, bool down, double amount, int y,
                      Taps *taps, int *first, int *end)
{
    int width = image->width, height = image->height;
    *first = *end = 0;
    for (int x = 0; x < width; x++) {
        double from = (down ? y : x) + 0.5 + amount * ((down ? x : y) + 0.5);
        if (!(from >= 0 && from < (down ? height : width))) continue;
        if (*end == 0) *first = x;
        *end = x + 1;
        taps->at[x] = floor_of(from - 0.5);
        for (int c = 0; c < 3; c++) taps->part[3 * x + c] = from - 0.5 - taps->at[x];
    }
    for (int x = *first, next; x < *end; x = next) {
        int moved = taps->at[x] - (down ? 0 : x);
        for (next = x + 1; next < *end && taps->at[next] - (down ? 0 : next) == moved;) next++;
        for (int k = 0; k < 4; k++) {
            int row = down ? clamp(moved - 1 + k, height) : y;
            copy_pixels(old + 3 * (size_t)row * (size_t)width, width, down ? x : x + moved - 1 + k,
                        next - x, taps->byte[k] + 3 * x);
        }
    }
}

RaftStatus raft_warp_shear(RaftImage *image, bool down, double amount, uint8_t fill,
                           RaftError *error)
{
    size_t row = 3 * (size_t)image->width;
    uint8_t *old = refill(image, fill, error);
    double *room = malloc(row * (sizeof *room + sizeof(int) + 4));
    if (!old || !room) {
        free(old);
        free(room);
        return rt_no_memory(error, "turning a picture");
    }
    Taps taps = {.part = room, .at = (int *)(room + row)};
    for (int k = 0; k < 4; k++) taps.byte[k] = (uint8_t *)(taps.at + row) + (size_t)k * row;
    for (int y = 0; y < image->height; y++) {
        int first, end;
        find_taps(image, old, down, amount, y, &taps, &first, &end);
        blend(&taps, 3 * first, 3 * end, image->rgb + (size_t)y * row);
    }
    free(old);
    free(room);
    return RAFT_OK;
}

/* Pillow rounds so, to make multiples of 90 degrees exact. */
static double round15(double value)
{
    return rint(value * 1e15) / 1e15;
}

RaftStatus raft_warp_rotate(RaftImage *image, double degrees, uint8_t fill, RaftError *error)
{
    double angle = -degrees * (M_PI / 180), x = image->width / 2.0, y = image->height / 2.0;
    double c = round15(cos(angle)), s = round15(sin(angle));
    double matrix[6] = {c, s, -x * c + -y * s + x, -s, c, -x * -s + -y * c + y};
    return raft_warp_affine(image, matrix, fill, error);
}
