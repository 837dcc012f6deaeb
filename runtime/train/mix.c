/* mix.c: mixup, then cutmix, then what is left of the loss: targets.
 *
 *     mixed[i] = lm x[i] + (1 - lm) x[pm[i]]
 *     out[i]   = mixed[i], but within the box mixed[pc[i]]
 *
 * Both are done at once, from bytes to f32: a batch in f32 is held once. */
#include "runtime/train/train.h"

#include <math.h>

/* Whether it is applied, its lambda and its permutation. */
static double draw(RaftRandom *random, double probability, double alpha, int count, uint32_t *order)
{
    if (!raft_random_chance(random, probability) || alpha <= 0) return 1;
    double lambda = raft_random_beta(random, alpha);
    raft_random_permutation(random, (uint32_t)count, order);
    return lambda;
}

static int draw_corner(RaftRandom *random, int rest)
{
    return rest > 0 ? (int)raft_random_below(random, (uint32_t)rest) : 0;
}

void raft_mix_draw(const RaftMixing *mixing, RaftRandom *random, int height, int width,
                   RaftMix *mix)
{
    double alpha = mixing->uses_cutmix_alpha ? mixing->cutmix_alpha : mixing->mixup_alpha;
    mix->mixup = draw(random, mixing->mixup_p, mixing->mixup_alpha, mix->count, mix->mixup_order);
    mix->cutmix = draw(random, mixing->cutmix_p, alpha, mix->count, mix->cutmix_order);
    double side = sqrt(1 - mix->cutmix);
    mix->height = (int)(height * side);
    mix->width = (int)(width * side);
    mix->top = draw_corner(random, height - mix->height);
    mix->left = draw_corner(random, width - mix->width);
}

/* The image that is mixed into image i by mixup. */
static uint32_t partner(const RaftMix *mix, uint32_t i)
{
    return mix && mix->mixup < 1 ? mix->mixup_order[i] : i;
}

/* `count` values of a row of mixed[i], beginning at `offset` in the image. */
static void mix_row(const RaftMix *mix, const float normal[256], const uint8_t *bytes,
                    size_t image_size, uint32_t i, size_t offset, int count, float *out)
{
    const uint8_t *a = bytes + i * image_size + offset;
    const uint8_t *b = bytes + partner(mix, i) * image_size + offset;
    float lambda = mix ? (float)mix->mixup : 1;
    if (a == b)
        for (int x = 0; x < count; x++) out[x] = normal[a[x]];
    else
        for (int x = 0; x < count; x++)
            out[x] = lambda * normal[a[x]] + (1 - lambda) * normal[b[x]];
}

static void mix_image(const RaftMix *mix, const RaftPixels *pixels, float normal[3][256],
                      const uint8_t *bytes, uint32_t i, float *out)
{
    int height = pixels->height, width = pixels->width;
    size_t size = (size_t)pixels->channels * (size_t)height * (size_t)width;
    bool boxed = mix && mix->cutmix < 1;
    for (int c = 0; c < pixels->channels; c++)
        for (int y = 0; y < height; y++) {
            size_t row = ((size_t)c * (size_t)height + (size_t)y) * (size_t)width;
            mix_row(mix, normal[c], bytes, size, i, row, width, out + row);
            if (boxed && y >= mix->top && y < mix->top + mix->height)
                mix_row(mix, normal[c], bytes, size, mix->cutmix_order[i], row + (size_t)mix->left,
                        mix->width, out + row + mix->left);
        }
}

void raft_mix_images(const RaftMix *mix, const RaftPixels *pixels, const uint8_t *bytes, int first,
                     int count, float *images)
{
    size_t size = (size_t)pixels->channels * (size_t)pixels->height * (size_t)pixels->width;
    const size_t many =
        1 << 20; /* fewer are not worth the spinning of OpenMP's threads afterwards */
    float normal[3][256];
    for (int c = 0; c < pixels->channels; c++)
        for (int v = 0; v < 256; v++)
            normal[c][v] = ((float)v / 255.0f - (float)pixels->mean[c]) / (float)pixels->std[c];
#pragma omp parallel for schedule(static) if ((size_t)count * size >= many)
    for (int i = 0; i < count; i++)
        mix_image(mix, pixels, normal, bytes, (uint32_t)(first + i), images + (size_t)i * size);
}

void raft_mix_targets(const RaftMix *mix, const uint32_t *labels, int classes, double smoothing,
                      int first, int count, float *targets)
{
    double cutmix = mix ? mix->cutmix : 1, mixup = mix ? mix->mixup : 1;
    for (int i = 0; i < count; i++, targets += classes) {
        uint32_t here = (uint32_t)(first + i);
        uint32_t there = cutmix < 1 ? mix->cutmix_order[here] : here;
        for (int k = 0; k < classes; k++) targets[k] = (float)(smoothing / classes);
        double sure = 1 - smoothing;
        targets[labels[here]] += (float)(sure * cutmix * mixup);
        targets[labels[partner(mix, here)]] += (float)(sure * cutmix * (1 - mixup));
        targets[labels[there]] += (float)(sure * (1 - cutmix) * mixup);
        targets[labels[partner(mix, there)]] += (float)(sure * (1 - cutmix) * (1 - mixup));
    }
}
