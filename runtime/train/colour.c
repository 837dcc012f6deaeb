/* colour.c: Pillow's operations on the values of pixels, for 8-bit RGB, bit for bit. */
#include "runtime/rt.h"
#include "runtime/train/train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

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

#if defined(__x86_64__)
/* The same of eight values, as whole numbers that are not held to 0 to 255 yet. */
__attribute__((target("avx2"))) static inline __m256i blend_avx2(__m256 degenerate, __m256i value,
                                                                 __m256 factor)
{
    __m256 beyond = _mm256_sub_ps(_mm256_cvtepi32_ps(value), degenerate);
    return _mm256_cvttps_epi32(_mm256_add_ps(degenerate, _mm256_mul_ps(factor, beyond)));
}

/* As blend_all, of the first bytes: how many. */
__attribute__((target("avx2"))) static size_t blend_most(uint8_t *rgb, size_t bytes, int degenerate,
                                                         float factor)
{
    const __m256 from = _mm256_set1_ps((float)degenerate), by = _mm256_set1_ps(factor);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    size_t done = 0;
    for (; done + 32 <= bytes; done += 32) {
        __m256i mixed[4];
        for (int i = 0; i < 4; i++) {
            __m128i eight = _mm_loadl_epi64((const __m128i *)(rgb + done + 8 * i));
            mixed[i] = blend_avx2(from, _mm256_cvtepu8_epi32(eight), by);
        }
        __m256i all = _mm256_packus_epi16(_mm256_packs_epi32(mixed[0], mixed[1]),
                                          _mm256_packs_epi32(mixed[2], mixed[3]));
        _mm256_storeu_si256((__m256i *)(rgb + done), _mm256_permutevar8x32_epi32(all, order));
    }
    return done;
}
#endif

static void blend_all(uint8_t *rgb, size_t bytes, int degenerate, float factor)
{
    size_t done = 0;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) done = blend_most(rgb, bytes, degenerate, factor);
#endif
    for (; done < bytes; done++) rgb[done] = blend(degenerate, rgb[done], factor);
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

#if defined(__x86_64__)
/* As saturate, of the first pixels: how many. Half a register has four pixels. */
__attribute__((target("avx2"))) static size_t saturate_most(uint8_t *rgb, size_t pixels,
                                                            float factor)
{
    enum { RED = 19595, HALF_GREEN = 19235, BLUE = 7471 }; /* as rt_grey has them */
    const __m256i red =
        _mm256_setr_epi8(0, -1, -1, -1, 3, -1, -1, -1, 6, -1, -1, -1, 9, -1, -1, -1, 0, -1, -1, -1,
                         3, -1, -1, -1, 6, -1, -1, -1, 9, -1, -1, -1);
    const __m256i back = _mm256_setr_epi8(0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11, -1, -1, -1, -1, 0,
                                          4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11, -1, -1, -1, -1);
    const __m256i half = _mm256_set1_epi32(1 << 15);
    const __m256i first = _mm256_set1_epi32(HALF_GREEN << 16 | RED);
    const __m256i second = _mm256_set1_epi32(BLUE << 16 | HALF_GREEN);
    const __m256 by = _mm256_set1_ps(factor);
    size_t done = 0;
    for (; done + 10 <= pixels; done += 8, rgb += 24) {
        __m256i bytes =
            _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)rgb)),
                                    _mm_loadu_si128((const __m128i *)(rgb + 12)), 1);
        __m256i r = _mm256_shuffle_epi8(bytes, red);
        __m256i g = _mm256_shuffle_epi8(_mm256_bsrli_epi128(bytes, 1), red);
        __m256i b = _mm256_shuffle_epi8(_mm256_bsrli_epi128(bytes, 2), red);
        __m256i two = _mm256_or_si256(r, _mm256_slli_epi32(g, 16));
        __m256i grey = _mm256_add_epi32(half, _mm256_madd_epi16(two, first));
        two = _mm256_or_si256(g, _mm256_slli_epi32(b, 16));
        grey = _mm256_srli_epi32(_mm256_add_epi32(grey, _mm256_madd_epi16(two, second)), 16);
        __m256 from = _mm256_cvtepi32_ps(grey);
        __m256i blue = blend_avx2(from, b, by);
        __m256i mixed = _mm256_packus_epi16(
            _mm256_packs_epi32(blend_avx2(from, r, by), blend_avx2(from, g, by)),
            _mm256_packs_epi32(blue, blue));
        mixed = _mm256_shuffle_epi8(mixed, back);
        for (int i = 0; i < 2; i++) { /* no more than is new: the next load would wait for it */
            __m128i four = i ? _mm256_extracti128_si256(mixed, 1) : _mm256_castsi256_si128(mixed);
            int32_t last = _mm_extract_epi32(four, 2);
            _mm_storel_epi64((__m128i *)(rgb + 12 * i), four);
            memcpy(rgb + 12 * i + 8, &last, sizeof last);
        }
    }
    return done;
}
#endif

static void saturate(uint8_t *rgb, size_t pixels, float factor)
{
    size_t i = 0;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) i = saturate_most(rgb, pixels, factor);
    rgb += 3 * i;
#endif
    for (; i < pixels; i++, rgb += 3) {
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
