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

void raft_warp_flip(RaftImage *image)
{
    for (int y = 0; y < image->height; y++) {
        uint8_t *a = image->rgb + (size_t)y * (size_t)image->width * 3;
        for (uint8_t *b = a + 3 * (image->width - 1); a < b; a += 3, b -= 3)
            for (int c = 0; c < 3; c++) {
                uint8_t value = a[c];
                a[c] = b[c];
                b[c] = value;
            }
    }
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

static const uint8_t *pixel(const RaftImage *image, int x, int y)
{
    return image->rgb + ((size_t)y * (size_t)image->width + (size_t)x) * 3;
}

/* Fixed point of 16 bits. */
static int64_t to_fixed(double value)
{
    return (int64_t)floor(value * 65536.0 + 0.5);
}

/* Shifts are summed up step by step and turns in fixed point, as Pillow does: a last bit may choose
 * another pixel. */
static void nearest(const RaftImage *image, const double m[6], uint8_t *out)
{
    double shift_y = m[5] + m[4] * 0.5;
    int64_t row_x = to_fixed(m[2] + m[0] * 0.5 + m[1] * 0.5);
    int64_t row_y = to_fixed(m[5] + m[3] * 0.5 + m[4] * 0.5);
    bool shift = m[1] == 0 && m[3] == 0;
    for (int y = 0; y < image->height; y++) {
        double shift_x = m[2] + m[0] * 0.5;
        int64_t at_x = row_x, at_y = row_y;
        for (int x = 0; x < image->width; x++, out += 3) {
            int64_t from_x = shift ? (int64_t)floor(shift_x) : at_x >> 16;
            int64_t from_y = shift ? (int64_t)floor(shift_y) : at_y >> 16;
            if (from_x >= 0 && from_x < image->width && from_y >= 0 && from_y < image->height)
                memcpy(out, pixel(image, (int)from_x, (int)from_y), 3);
            shift_x += m[0];
            at_x += to_fixed(m[0]);
            at_y += to_fixed(m[3]);
        }
        shift_y += m[4];
        row_x += to_fixed(m[1]);
        row_y += to_fixed(m[4]);
    }
}

/* The cubic with a = -1 through v[1] and v[2], at d of the way. */
static double cubic(const double v[4], double d)
{
    double p2 = v[2] - v[0], p3 = 2 * (v[0] - v[1]) + v[2] - v[3], p4 = v[1] - v[0] + v[3] - v[2];
    return v[1] + d * (p2 + d * (p3 + d * p4));
}

static int clamp(int value, int count)
{
    return value < 0 ? 0 : value >= count ? count - 1 : value;
}

static void bicubic_pixel(const RaftImage *image, double x, double y, uint8_t *out)
{
    int left = (int)floor(x - 0.5), top = (int)floor(y - 0.5);
    double right_part = x - 0.5 - left, lower_part = y - 0.5 - top;
    for (int c = 0; c < 3; c++) {
        double column[4];
        for (int i = 0; i < 4; i++) {
            double row[4];
            for (int k = 0; k < 4; k++)
                row[k] = pixel(image, clamp(left - 1 + k, image->width),
                               clamp(top - 1 + i, image->height))[c];
            column[i] = cubic(row, right_part);
        }
        double value = cubic(column, lower_part);
        out[c] = (uint8_t)(value <= 0 ? 0 : value >= 255 ? 255 : value);
    }
}

static void bicubic(const RaftImage *image, const double m[6], uint8_t *out)
{
    for (int y = 0; y < image->height; y++)
        for (int x = 0; x < image->width; x++, out += 3) {
            double from_x = m[0] * (x + 0.5) + m[1] * (y + 0.5) + m[2];
            double from_y = m[3] * (x + 0.5) + m[4] * (y + 0.5) + m[5];
            if (from_x >= 0 && from_x < image->width && from_y >= 0 && from_y < image->height)
                bicubic_pixel(image, from_x, from_y, out);
        }
}

RaftStatus raft_warp_affine(RaftImage *image, const double matrix[6], bool cubic_taps, uint8_t fill,
                            RaftError *error)
{
    size_t bytes = (size_t)image->width * (size_t)image->height * 3;
    uint8_t *rgb = malloc(bytes);
    if (!rgb) return rt_no_memory(error, "turning a picture");
    memset(rgb, fill, bytes);
    (cubic_taps ? bicubic : nearest)(image, matrix, rgb);
    replace(image, rgb, image->width, image->height);
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
    return raft_warp_affine(image, matrix, false, fill, error);
}
