/* resize.c: Pillow's bilinear resize, bit for bit, and the test transform made of it.
 *
 * Each output value is a weighted sum of the inputs under a triangle as wide as two output pixels
 * (two input pixels, where the picture grows). Weights are fixed-point numbers of 22 bits; the sum
 * is rounded to 8 bits after the horizontal pass and again after the vertical one. Output pixels do
 * not depend on each other, so a crop of a large result is computed alone. */
#include "runtime/rt.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { PRECISION_BITS = 32 - 8 - 2 };

/* Outputs [first, first + count) of a line of `from` pixels resized to `to`. */
typedef struct Window {
    int64_t from, to, first;
    int count;
    bool backwards; /* the last one first */
} Window;

/* For each output of a window: the inputs that it sums, and their weights. */
typedef struct Taps {
    int *start, *length; /* [count] */
    int32_t *weight;     /* [count][most] */
    int most;
    int32_t
        *pair; /* the weights once more, as sum_columns_avx2 takes them; NULL: it cannot be used */
    int groups;
} Taps;

static double triangle(double x)
{
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

static void free_taps(Taps *taps)
{
    free(taps->start);
    free(taps->length);
    free(taps->weight);
    free(taps->pair);
}

/* The inputs that an output sums: as many as are within `support` of its centre. */
static double find_inputs(const Window *window, int index, double support, int *start, int *end)
{
    double scale = (double)window->from / (double)window->to;
    double centre = ((double)(window->first + index) + 0.5) * scale;
    *start = (int)(centre - support + 0.5);
    *end = (int)(centre + support + 0.5);
    if (*start < 0) *start = 0;
    if (*end > window->from) *end = (int)window->from;
    return centre;
}

void rt_resize_reach(int from, int to, int first, int count, int *start, int *end)
{
    Window window = {.from = from, .to = to, .first = first, .count = count};
    double support = from > to ? (double)from / to : 1.0;
    int other;
    find_inputs(&window, 0, support, start, &other);
    find_inputs(&window, count - 1, support, &other, end);
}

/* Weights of one output, normalised so that they sum to 1, then rounded. */
static void fill_taps(Taps *taps, const Window *window, int index, double *weight)
{
    double scale = (double)window->from / (double)window->to;
    double support = scale < 1.0 ? 1.0 : scale, sum = 0.0;
    int start, end, place = window->backwards ? window->count - 1 - index : index;
    double centre = find_inputs(window, index, support, &start, &end);
    for (int i = start; i < end; i++) {
        weight[i - start] = triangle((i - centre + 0.5) * (1.0 / support));
        sum += weight[i - start];
    }
    for (int i = 0; i < end - start; i++)
        taps->weight[(size_t)place * (size_t)taps->most + (size_t)i] =
            (int32_t)(0.5 + (sum != 0.0 ? weight[i] / sum : weight[i]) * (1 << PRECISION_BITS));
    taps->start[place] = start;
    taps->length[place] = end - start;
}

/* To be released with free_taps, whether it succeeds or not. */
static bool make_taps(const Window *window, Taps *taps)
{
    double scale = (double)window->from / (double)window->to;
    taps->most = (int)ceil(scale < 1.0 ? 1.0 : scale) * 2 + 1;
    size_t count = (size_t)window->count, most = (size_t)taps->most;
    double *weight = malloc(most * sizeof *weight);
    taps->start = malloc(count * sizeof *taps->start);
    taps->length = malloc(count * sizeof *taps->length);
    taps->weight = malloc(count * most * sizeof *taps->weight);
    bool good = weight && taps->start && taps->length && taps->weight;
    for (int i = 0; good && i < window->count; i++) fill_taps(taps, window, i, weight);
    free(weight);
    return good;
}

static inline uint8_t rounded(int32_t sum)
{
    sum >>= PRECISION_BITS;
    return (uint8_t)(sum > 255 ? 255 : sum);
}

/* A row of pixels to a narrower one. */
static void sum_columns(const Taps *taps, int count, const uint8_t *row, uint8_t *out)
{
    for (int x = 0; x < count; x++, out += 3) {
        const int32_t *weight = taps->weight + (size_t)x * (size_t)taps->most;
        const uint8_t *input = row + 3 * (size_t)taps->start[x];
        int32_t sum[3] = {1 << (PRECISION_BITS - 1), 1 << (PRECISION_BITS - 1),
                          1 << (PRECISION_BITS - 1)};
        for (int i = 0; i < taps->length[x]; i++, input += 3)
            for (int c = 0; c < 3; c++) sum[c] += input[c] * weight[i];
        for (int c = 0; c < 3; c++) out[c] = rounded(sum[c]);
    }
}

#if defined(__x86_64__)
/* Products of 16 bits are quicker than those of 32: a weight is LOW_BITS of it and the rest, and the sums of
 * both are exact. */
enum { LOW_BITS = 11, GROUP = 4 };

/* For each output, the weights of as many groups of inputs, zeros behind the last one: of the first two
 * and of the last two, their low bits and the rest, each two numbers of 16 bits. */
static bool make_pairs(Taps *taps, int count)
{
    taps->groups = 0;
    for (int x = 0; x < count; x++)
        if (taps->length[x] > GROUP * taps->groups)
            taps->groups = (taps->length[x] + GROUP - 1) / GROUP;
    taps->pair = calloc((size_t)count * (size_t)taps->groups, GROUP * sizeof *taps->pair);
    for (int x = 0; taps->pair && x < count; x++)
        for (int i = 0; i < taps->length[x]; i++) {
            int32_t weight = taps->weight[(size_t)x * (size_t)taps->most + (size_t)i];
            size_t group = (size_t)x * (size_t)taps->groups + (size_t)(i / GROUP);
            int32_t *pair = taps->pair + GROUP * group + i % GROUP / 2 * 2;
            int place = i % 2 * 16;
            pair[0] |= (weight & ((1 << LOW_BITS) - 1)) << place;
            pair[1] |= weight >> LOW_BITS << place;
        }
    return taps->pair;
}

enum { BEHIND = 16 }; /* bytes behind a row that sum_columns_avx2 may read */

/* A pixel of two rows, as four values each. */
__attribute__((target("avx2"))) static inline __m256i sum_pixel(const int32_t *pair, int groups,
                                                                const uint8_t *a, const uint8_t *b)
{
    const __m256i first = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
    const __m256i second = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1));
    __m256i low = _mm256_set1_epi32(1 << (PRECISION_BITS - 1)), high = _mm256_setzero_si256();
    for (int i = 0; i < groups; i++, a += 3 * GROUP, b += 3 * GROUP, pair += GROUP) {
        __m256i bytes =
            _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)a)),
                                    _mm_loadu_si128((const __m128i *)b), 1);
        __m256i two = _mm256_shuffle_epi8(bytes, first);
        low = _mm256_add_epi32(low, _mm256_madd_epi16(two, _mm256_set1_epi32(pair[0])));
        high = _mm256_add_epi32(high, _mm256_madd_epi16(two, _mm256_set1_epi32(pair[1])));
        two = _mm256_shuffle_epi8(bytes, second);
        low = _mm256_add_epi32(low, _mm256_madd_epi16(two, _mm256_set1_epi32(pair[2])));
        high = _mm256_add_epi32(high, _mm256_madd_epi16(two, _mm256_set1_epi32(pair[3])));
    }
    return _mm256_srai_epi32(_mm256_add_epi32(low, _mm256_slli_epi32(high, LOW_BITS)),
                             PRECISION_BITS);
}

/* The same of two rows at a time, by two pixels: so some bytes are written behind both results. */
__attribute__((target("avx2"), always_inline)) static inline void
sum_columns_by(int groups, const Taps *taps, int count, const uint8_t *a, const uint8_t *b,
               uint8_t *out_a, uint8_t *out_b)
{
    const __m256i threes = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 2, 4, 5, 6, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1));
    for (int x = 0; x < count; x += 2, out_a += 6, out_b += 6) {
        int next = x + 1 < count ? x + 1 : x;
        size_t at = 3 * (size_t)taps->start[x], at_next = 3 * (size_t)taps->start[next];
        const int32_t *pair = taps->pair + (size_t)x * (size_t)(GROUP * groups);
        const int32_t *pair_next = taps->pair + (size_t)next * (size_t)(GROUP * groups);
        __m256i both = _mm256_packus_epi32(sum_pixel(pair, groups, a + at, b + at),
                                           sum_pixel(pair_next, groups, a + at_next, b + at_next));
        __builtin_prefetch(a + at + 2 * (b - a)); /* the next two rows are not behind these */
        __builtin_prefetch(b + at + 2 * (b - a));
        both = _mm256_packus_epi16(both, both); /* in both, what is over 255 becomes 255 */
        both = _mm256_shuffle_epi8(both, threes);
        _mm_storel_epi64((__m128i *)out_a, _mm256_castsi256_si128(both));
        _mm_storel_epi64((__m128i *)out_b, _mm256_extracti128_si256(both, 1));
    }
}

__attribute__((target("avx2"))) static void sum_columns_avx2(const Taps *taps, int count,
                                                             const uint8_t *a, const uint8_t *b,
                                                             uint8_t *out_a, uint8_t *out_b)
{
    if (taps->groups == 1)
        sum_columns_by(1, taps, count, a, b, out_a, out_b);
    else
        sum_columns_by(taps->groups, taps, count, a, b, out_a, out_b);
}
#endif

/* Narrows rows [first, last) of the picture to rows of `stride` bytes, a few more than they take. */
static void narrow(const RaftImage *image, const Taps *columns, int count, int first, int last,
                   size_t stride, uint8_t *out)
{
    size_t row_bytes = (size_t)image->width * 3;
    const uint8_t *row = image->rgb + (size_t)first * row_bytes;
    int y = first;
#if defined(__x86_64__)
    if (columns->pair)
        for (; y + 2 <= last && y + 2 < image->height; y += 2) { /* a row is behind them */
            sum_columns_avx2(columns, count, row, row + row_bytes, out, out + stride);
            row += 2 * row_bytes;
            out += 2 * stride;
        }
#endif
    for (; y < last; y++, row += row_bytes, out += stride) sum_columns(columns, count, row, out);
}

enum { OPEN = 32 /* sums, as many as a few registers hold */, AT_ONCE = 8 /* rows */ };

/* A result row of so many bytes from the rows that it sums, whose stride is a multiple of OPEN. */
RT_WIDE static void sum_rows(const int32_t *restrict weight, int length,
                             const uint8_t *restrict rows, size_t stride, size_t bytes,
                             uint8_t *restrict out)
{
    for (size_t x = 0; x < bytes; x += OPEN) {
        int32_t sum[OPEN];
        uint8_t result[OPEN];
        for (int k = 0; k < OPEN; k++) sum[k] = 1 << (PRECISION_BITS - 1);
        for (int i = 0; i < length; i++) {
            const uint8_t *input = rows + (size_t)i * stride + x;
            for (int k = 0; k < OPEN; k++) sum[k] += input[k] * weight[i];
        }
        for (int k = 0; k < OPEN; k++) result[k] = rounded(sum[k]);
        memcpy(out + x, result, bytes - x < OPEN ? bytes - x : OPEN);
    }
}

/* Fills out[down.count][across.count][3]. */
static RaftStatus resample(const RaftImage *image, const Window *across, const Window *down,
                           uint8_t *out, RaftError *error)
{
    Taps columns = {0}, rows = {0};
    uint8_t *narrowed = NULL;
    bool good = make_taps(across, &columns) && make_taps(down, &rows);
#if defined(__x86_64__)
    if (good && __builtin_cpu_supports("avx2") && 3 * image->width >= BEHIND)
        good = make_pairs(&columns, across->count);
#endif
    int first = good ? rows.start[0] : 0;
    int last = good ? rows.start[down->count - 1] + rows.length[down->count - 1] : 0;
    size_t row_bytes = (size_t)across->count * 3;
    size_t stride = (row_bytes + 5 + OPEN - 1) / OPEN * OPEN;
    if (good) narrowed = malloc((size_t)(last - first) * stride);
    good = narrowed;
    for (int y = 0, made = first; good && y < down->count; y++) {
        for (; made < rows.start[y] + rows.length[y]; made += AT_ONCE) /* not long before its use */
            narrow(image, &columns, across->count, made,
                   made + AT_ONCE < last ? made + AT_ONCE : last, stride,
                   narrowed + (size_t)(made - first) * stride);
        sum_rows(rows.weight + (size_t)y * (size_t)rows.most, rows.length[y],
                 narrowed + (size_t)(rows.start[y] - first) * stride, stride, row_bytes,
                 out + (size_t)y * row_bytes);
    }
    free(narrowed);
    free_taps(&columns);
    free_taps(&rows);
    return good ? RAFT_OK : rt_no_memory(error, "resizing a picture");
}

/* Whether the arguments are within the limits of pictures; so no product below overflows. */
static RaftStatus check(const RaftImage *image, int width, int height, RaftError *error)
{
    if (!image->rgb || image->width < 1 || image->height < 1)
        return rt_fail(error, RAFT_INVALID, "the picture to be resized is empty");
    if (width < 1 || height < 1 || width > RT_MAX_SIDE || height > RT_MAX_SIDE ||
        (int64_t)width * height > RT_MAX_PIXELS || (int64_t)width * image->height > RT_MAX_PIXELS)
        return rt_fail(error, RAFT_INVALID, "a picture of %d x %d cannot be resized to %d x %d",
                       image->width, image->height, width, height);
    return RAFT_OK;
}

RaftStatus rt_image_resize_part(const RaftImage *image, int width, int height, int left, int top,
                                bool flipped, RaftImage *out, RaftError *error)
{
    RaftStatus status = check(image, width, height, error);
    if (status) return status;
    Window across = {image->width, width, left, out->width, flipped};
    Window down = {image->height, height, top, out->height, false};
    return resample(image, &across, &down, out->rgb, error);
}

RaftStatus raft_image_resize(const RaftImage *image, int width, int height, RaftImage *out,
                             RaftError *error)
{
    RaftStatus status = check(image, width, height, error);
    *out = (RaftImage){0};
    if (status) return status;
    RaftImage resized = {.width = width, .height = height, .warnings = image->warnings};
    Window across = {.from = image->width, .to = width, .count = width};
    Window down = {.from = image->height, .to = height, .count = height};
    resized.rgb = malloc((size_t)width * (size_t)height * 3);
    status = resized.rgb ? resample(image, &across, &down, resized.rgb, error)
                         : rt_no_memory(error, "resizing a picture");
    if (status)
        raft_image_free(&resized);
    else
        *out = resized;
    return status;
}

/* The middle `size` pixels of a line of `from` pixels resized to `to`, or all where these are fewer;
 * an odd rest is halved to the even side, as Python rounds. */
static Window centre_window(int64_t from, int64_t to, int size)
{
    Window window = {.from = from, .to = to, .count = to < size ? (int)to : size};
    int64_t rest = to - window.count;
    window.first = rest / 2 + (rest % 2 && rest / 2 % 2);
    return window;
}

/* chw[channels][height][width] from rgb[down.count][across.count][3], put in the middle of zeros. */
static void normalise(const uint8_t *rgb, const Window *across, const Window *down, int channels,
                      int height, int width, const double *mean, const double *std, float *chw)
{
    int left = (width - across->count) / 2, top = (height - down->count) / 2;
    for (int c = 0; c < channels; c++)
        for (int y = -top; y < height - top; y++)
            for (int x = -left; x < width - left; x++) {
                bool inside = x >= 0 && x < across->count && y >= 0 && y < down->count;
                const uint8_t *pixel = rgb + (inside ? (int64_t)y * across->count + x : 0) * 3;
                uint8_t value = channels == 1 ? rt_grey(pixel[0], pixel[1], pixel[2]) : pixel[c];
                if (!inside) value = 0;
                *chw++ = ((float)value / 255.0f - (float)mean[c]) / (float)std[c];
            }
}

RaftStatus rt_image_preprocess(const RaftImage *image, int channels, int height, int width,
                               bool exact, const double *mean, const double *std, float *chw,
                               RaftError *error)
{
    RaftStatus status = check(image, width, height, error);
    if (status) return status;
    int64_t from_width = image->width, from_height = image->height;
    int64_t to_width = width, to_height = height;
    if (!exact) {
        int64_t side = ((width < height ? width : height) * (int64_t)16 + 7) / 14; /* x 256 / 224 */
        bool upright = from_width <= from_height;
        to_width = upright ? side : side * from_width / from_height;
        to_height = upright ? side * from_height / from_width : side;
    }
    Window across = centre_window(from_width, to_width, width);
    Window down = centre_window(from_height, to_height, height);
    uint8_t *rgb = malloc((size_t)across.count * (size_t)down.count * 3);
    if (!rgb) return rt_no_memory(error, "resizing a picture");
    status = resample(image, &across, &down, rgb, error);
    if (!status) normalise(rgb, &across, &down, channels, height, width, mean, std, chw);
    free(rgb);
    return status;
}

RaftStatus raft_image_preprocess(const RaftImage *image, int height, int width, bool exact,
                                 const double mean[3], const double std[3], float *chw,
                                 RaftError *error)
{
    return rt_image_preprocess(image, 3, height, width, exact, mean, std, chw, error);
}
