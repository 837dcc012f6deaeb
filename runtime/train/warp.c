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

typedef uint8_t Bytes __attribute__((vector_size(16)));
typedef int32_t Values __attribute__((vector_size(16))); /* of a pixel; the fourth is another's */
typedef double Reals __attribute__((vector_size(32)));

/* The parts of the cubic with a = -1 through v[1] and v[2], which is, at d of the way, */
#define CUBIC_1(v)     ((v)[2] - (v)[0])
#define CUBIC_2(v)     (2 * ((v)[0] - (v)[1]) + (v)[2] - (v)[3])
#define CUBIC_3(v)     ((v)[1] - (v)[0] + (v)[3] - (v)[2])
#define CUBIC(v, d)    ((v)[1] + (d) * (CUBIC_1(v) + (d) * (CUBIC_2(v) + (d)*CUBIC_3(v))))
#define TO_REALS(x)    __builtin_convertvector(x, Reals)
#define CUBIC_OF(v, d) /* of whole numbers, their parts exact */                                   \
    (TO_REALS((v)[1]) +                                                                            \
     (d) * (TO_REALS(CUBIC_1(v)) + (d) * (TO_REALS(CUBIC_2(v)) + (d)*TO_REALS(CUBIC_3(v)))))

static int clamp(int value, int count)
{
    return value < 0 ? 0 : value >= count ? count - 1 : value;
}

/* Of numbers from -1/2 on. */
static int floor_of(double value)
{
    return value < 0 ? -1 : (int)value;
}

/* Pixels left - 1 to left + 2 of a row, or the two in the middle alone. A byte behind them is read. */
static inline void read_pixels(const uint8_t *row, int left, int width, bool all, Values value[4])
{
    bool within = left > 0 && left + 2 < width;
    for (int k = !all; k < (all ? 4 : 2); k++) {
        int32_t bytes, column = left - 1 + k;
        memcpy(&bytes, row + 3 * (size_t)(within ? column : clamp(column, width)), 4);
        value[k] = (Values)__builtin_shufflevector((Bytes)(Values){bytes}, (Bytes){0}, 0, 16, 16,
                                                   16, 1, 16, 16, 16, 2, 16, 16, 16, 3, 16, 16, 16);
    }
}

static inline void write_pixel(Values rounded, uint8_t *out)
{
    Values over = rounded > 255;
    rounded &= rounded >= 0;
    rounded = (rounded & ~over) | (over & 255);
    for (int c = 0; c < 3; c++) out[c] = (uint8_t)rounded[c];
}

RT_WIDE static void bicubic(const uint8_t *rgb, int width, int height, const double m[6],
                            uint8_t *out)
{
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++, out += 3) {
            double from_x = m[0] * (x + 0.5) + m[1] * (y + 0.5) + m[2];
            double from_y = m[3] * (x + 0.5) + m[4] * (y + 0.5) + m[5];
            if (!(from_x >= 0 && from_x < width && from_y >= 0 && from_y < height)) continue;
            int left = floor_of(from_x - 0.5), top = floor_of(from_y - 0.5);
            double right_part = from_x - 0.5 - left, lower_part = from_y - 0.5 - top;
            bool across = right_part != 0, down = lower_part != 0; /* sheared: one of them */
            Reals column[4];
            for (int i = !down; i < (down ? 4 : 2); i++) {
                Values value[4];
                const uint8_t *row = rgb + 3 * (size_t)clamp(top - 1 + i, height) * (size_t)width;
                read_pixels(row, left, width, across, value);
                column[i] = across ? CUBIC_OF(value, right_part) : TO_REALS(value[1]);
            }
            if (down) column[1] = CUBIC(column, lower_part);
            write_pixel(__builtin_convertvector(column[1], Values), out);
        }
}

RaftStatus raft_warp_affine(RaftImage *image, const double matrix[6], bool cubic_taps, uint8_t fill,
                            RaftError *error)
{
    size_t bytes = (size_t)image->width * (size_t)image->height * 3;
    RaftStatus status = RAFT_OK;
    uint8_t *old = malloc(bytes + 1);
    if (!old) return rt_no_memory(error, "turning a picture");
    memcpy(old, image->rgb, bytes);
    old[bytes] = 0; /* is read, not used */
    memset(image->rgb, fill, bytes);
    if (cubic_taps)
        bicubic(old, image->width, image->height, matrix, image->rgb);
    else if (matrix[1] == 0 && matrix[3] == 0)
        status = shift(old, image->width, image->height, matrix, image->rgb, error);
    else
        nearest(old, image->width, image->height, matrix, image->rgb);
    free(old);
    return status;
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
