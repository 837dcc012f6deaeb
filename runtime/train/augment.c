/* augment.c: what the published trainer does with a picture before it is normalised. The order of
 * the draws from the stream is part of what a seed means. */
#include "runtime/rt.h"
#include "runtime/train/train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
static const struct {
    const char *name;
    RaftCrop crop;
    bool rand_augment;
} recipes[] = {
    {"imagenet",      RAFT_CROP_SHORT_SIDE, true},
    {"folder",        RAFT_CROP_SHORT_SIDE, true},
    {"cifar10",       RAFT_CROP_PADDED,     true},
    {"cifar100",      RAFT_CROP_PADDED,     true},
    {"cars",          RAFT_CROP_RESIZED,    true},
    {"flowers102",    RAFT_CROP_RESIZED,    true},
    {"inat18",        RAFT_CROP_RESIZED,    true},
    {"inat19",        RAFT_CROP_RESIZED,    true},
    {"fashion_mnist", RAFT_CROP_NONE,       false},
};
/* clang-format on */

bool raft_augmentation_of(const char *dataset_name, RaftAugmentation *augmentation)
{
    for (size_t i = 0; i < sizeof recipes / sizeof recipes[0]; i++) {
        if (strcmp(recipes[i].name, dataset_name)) continue;
        *augmentation =
            (RaftAugmentation){.crop = recipes[i].crop, .rand_augment = recipes[i].rand_augment};
        return true;
    }
    return false;
}

/* ---- crops ------------------------------------------------------------------------------------ */

/* What is kept of a picture: a part of it, or of it resized to `whole`. */
typedef struct Cut {
    int whole_width, whole_height; /* 0: not resized before */
    RtRect part;
} Cut;

/* Replaces the picture by a part of the whole resized. */
static RaftStatus resize_part(RaftImage *image, const Cut *cut, bool flipped, RaftError *error)
{
    const RtRect *from = &cut->part;
    if (cut->whole_width == image->width && cut->whole_height == image->height) {
        RaftStatus status =
            raft_warp_crop(image, from->left, from->top, from->width, from->height, error);
        if (!status && flipped) raft_warp_flip(image);
        return status;
    }
    RaftImage part = {.width = from->width, .height = from->height, .warnings = image->warnings};
    part.rgb = malloc((size_t)from->width * (size_t)from->height * 3);
    if (!part.rgb) return rt_no_memory(error, "resizing a picture");
    RaftStatus status = rt_image_resize_part(image, cut->whole_width, cut->whole_height, from->left,
                                             from->top, flipped, &part, error);
    RaftImage *unused = status ? &part : image;
    raft_image_free(unused);
    if (!status) *image = part;
    return status;
}

static RaftStatus resize_whole(RaftImage *image, int width, int height, bool flipped,
                               RaftError *error)
{
    const Cut all = {width, height, {0, 0, width, height}};
    if (width != image->width || height != image->height)
        return resize_part(image, &all, flipped, error);
    if (flipped) raft_warp_flip(image);
    return RAFT_OK;
}

/* A random place for `part` of `whole`; the middle, rounded as Python does, without `random`. */
static int choose_place(RaftRandom *random, int whole, int part)
{
    int rest = whole - part;
    if (random) return (int)raft_random_below(random, (uint32_t)rest + 1);
    return rest / 2 + (rest % 2 && rest / 2 % 2);
}

static int64_t short_side(const RaftAugmentation *to)
{
    return ((to->width < to->height ? to->width : to->height) * (int64_t)16 + 7) / 14;
}

int raft_augment_least_side(const RaftAugmentation *to)
{
    int64_t longer = to->width > to->height ? to->width : to->height;
    switch (to->crop) {
    case RAFT_CROP_SHORT_SIDE:
        return (int)(2 * short_side(to));
    case RAFT_CROP_RESIZED: /* of a part, which has 4/5 of the pixels or more, in ratios from 3/4 */
        return (int)ceil(2 * (double)longer / sqrt(0.8 * 0.75));
    case RAFT_CROP_PADDED:
    case RAFT_CROP_NONE:
        break;
    }
    return 0;
}

/* False: the picture is too narrow for that. */
static bool cut_short_side(const RaftAugmentation *to, RaftRandom *random, int from_width,
                           int from_height, Cut *cut)
{
    int64_t side = short_side(to);
    bool upright = from_width <= from_height;
    int64_t width = upright ? side : side * from_width / from_height;
    int64_t height = upright ? side * from_height / from_width : side;
    if (width > RT_MAX_SIDE || height > RT_MAX_SIDE) return false;
    /* Where a side of the size is far longer than the other, zeros fill it up, before and behind. */
    *cut = (Cut){.whole_width = (int)width, .whole_height = (int)height};
    cut->part.width = width < to->width ? (int)width : to->width;
    cut->part.height = height < to->height ? (int)height : to->height;
    cut->part.left = choose_place(random, (int)width, cut->part.width);
    cut->part.top = choose_place(random, (int)height, cut->part.height);
    return true;
}

/* torchvision's RandomResizedCrop: ten attempts, then the middle in the nearest ratio. */
static void cut_resized(RaftRandom *random, int from_width, int from_height, Cut *cut)
{
    const double least_ratio = 3.0 / 4, most_ratio = 4.0 / 3;
    double whole = (double)from_width * from_height;
    int width = 0, height = 0;
    bool found = false;
    for (int attempt = 0; attempt < 10 && !found; attempt++) {
        double area = whole * raft_random_uniform(random, 0.8, 1);
        double ratio = exp(raft_random_uniform(random, log(least_ratio), log(most_ratio)));
        width = (int)rint(sqrt(area * ratio));
        height = (int)rint(sqrt(area / ratio));
        found = width > 0 && width <= from_width && height > 0 && height <= from_height;
    }
    *cut = (Cut){0};
    if (found) {
        cut->part.top = choose_place(random, from_height, height);
        cut->part.left = choose_place(random, from_width, width);
    } else {
        double ratio = (double)from_width / from_height;
        width = from_width;
        height = from_height;
        if (ratio < least_ratio) height = (int)rint(width / least_ratio);
        if (ratio > most_ratio) width = (int)rint(height * most_ratio);
        if (height < 1) height = 1;
        if (width < 1) width = 1;
        cut->part.left = (from_width - width) / 2;
        cut->part.top = (from_height - height) / 2;
    }
    cut->part.width = width;
    cut->part.height = height;
}

static void cut_padded(RaftRandom *random, int width, int height, Cut *cut)
{
    enum { PADDING = 4 };
    *cut = (Cut){.part = {.width = width, .height = height}};
    cut->part.left = choose_place(random, width + 2 * PADDING, width) - PADDING;
    cut->part.top = choose_place(random, height + 2 * PADDING, height) - PADDING;
}

/* Without `random`, the test's; false: there is none. */
static bool choose_cut(const RaftAugmentation *to, RaftRandom *random, int width, int height,
                       Cut *cut)
{
    *cut = (Cut){.part = {.width = width, .height = height}};
    if (to->crop == RAFT_CROP_SHORT_SIDE) return cut_short_side(to, random, width, height, cut);
    if (random && to->crop == RAFT_CROP_RESIZED) cut_resized(random, width, height, cut);
    if (random && to->crop == RAFT_CROP_PADDED) cut_padded(random, width, height, cut);
    return true;
}

RtRect raft_augment_part(const RaftAugmentation *to, const RaftRandom *random, int width,
                         int height)
{
    Cut cut;
    RaftRandom draws = random ? *random : (RaftRandom){0};
    if (to->crop == RAFT_CROP_PADDED ||
        !choose_cut(to, random ? &draws : NULL, width, height, &cut))
        return (RtRect){0, 0, width, height};
    RtRect part = cut.part;
    if (!cut.whole_width) return part;
    int right, bottom;
    rt_resize_reach(width, cut.whole_width, part.left, part.width, &part.left, &right);
    rt_resize_reach(height, cut.whole_height, part.top, part.height, &part.top, &bottom);
    part.width = right - part.left;
    part.height = bottom - part.top;
    return part;
}

static RaftStatus apply_cut(const RaftAugmentation *to, const Cut *cut, bool flipped,
                            RaftImage *image, RaftError *error)
{
    const RtRect *part = &cut->part;
    if (!cut->whole_width) {
        RaftStatus status = RAFT_OK;
        if (part->left || part->top || part->width != image->width || part->height != image->height)
            status = raft_warp_crop(image, part->left, part->top, part->width, part->height, error);
        return status ? status : resize_whole(image, to->width, to->height, flipped, error);
    }
    bool full = part->width == to->width && part->height == to->height;
    RaftStatus status = resize_part(image, cut, flipped && full, error);
    if (status || full) return status;
    status = raft_warp_crop(image, -(to->width - part->width) / 2, -(to->height - part->height) / 2,
                            to->width, to->height, error);
    if (!status && flipped) raft_warp_flip(image);
    return status;
}

static RaftStatus too_narrow(const RaftImage *image, RaftError *error)
{
    return rt_fail(error, RAFT_BAD_FILE, "a picture of %d x %d is too narrow to be resized",
                   image->width, image->height);
}

/* ---- RandAugment, in UDA's form ---------------------------------------------------------------- */

RaftDraw raft_augment_draw(RaftRandom *random)
{
    RaftDraw draw;
    draw.op = (RaftOp)raft_random_below(random, RAFT_OPS);
    draw.step = 1 + (int)raft_random_below(random, 9);
    draw.applied = raft_random_chance(random, 0.5);
    draw.negative = raft_random_chance(random, 0.5);
    draw.across = raft_random_uniform(random, 0, 1);
    draw.down = raft_random_uniform(random, 0, 1);
    return draw;
}

static void cut_square(const RaftDraw *draw, RaftImage *image)
{
    int side = (int)rint(20.0 * draw->step / 9);
    int x = (int)(draw->across * image->width), y = (int)(draw->down * image->height);
    raft_warp_erase(image, x - side / 2, y - side / 2, side, side);
}

RaftStatus raft_augment_apply(const RaftDraw *draw, RaftImage *image, RaftError *error)
{
    enum { FILL = 128 };
    double part = draw->step / 9.0, sign = draw->negative ? -1 : 1;
    double shear = sign * 0.3 * part, shift = sign * 150.0 / 331 * part;
    double factor = 1 + sign * 0.9 * part;
    double matrix[6] = {1, 0, 0, 0, 1, 0};
    switch (draw->op) {
    case RAFT_OP_SHEAR_X:
    case RAFT_OP_SHEAR_Y:
        return raft_warp_shear(image, draw->op == RAFT_OP_SHEAR_Y, shear, FILL, error);
    case RAFT_OP_TRANSLATE_X:
        matrix[2] = shift * image->width;
        return raft_warp_affine(image, matrix, FILL, error);
    case RAFT_OP_TRANSLATE_Y:
        matrix[5] = shift * image->height;
        return raft_warp_affine(image, matrix, FILL, error);
    case RAFT_OP_ROTATE:
        return raft_warp_rotate(image, 30 * part, FILL, error);
    case RAFT_OP_SHARPNESS:
        return raft_colour_sharpness(image, factor, error);
    case RAFT_OP_COLOR:
        raft_colour_saturation(image, factor);
        break;
    case RAFT_OP_CONTRAST:
        raft_colour_contrast(image, factor);
        break;
    case RAFT_OP_BRIGHTNESS:
        raft_colour_brightness(image, factor);
        break;
    case RAFT_OP_POSTERIZE:
        raft_colour_posterize(image, (int)rint(8 - 4 * part));
        break;
    case RAFT_OP_SOLARIZE:
        raft_colour_solarize(image, 256 - 256 * part);
        break;
    case RAFT_OP_AUTOCONTRAST:
        raft_colour_autocontrast(image);
        break;
    case RAFT_OP_EQUALIZE:
        raft_colour_equalize(image);
        break;
    case RAFT_OP_INVERT:
        raft_colour_invert(image);
        break;
    case RAFT_OP_CUTOUT:
    case RAFT_OPS:
        cut_square(draw, image);
        break;
    }
    return RAFT_OK;
}

/* ---- the rest, and all of it ------------------------------------------------------------------- */

static void jitter(double strength, RaftRandom *random, RaftImage *image)
{
    static void (*const adjust[3])(RaftImage *, double) = {
        raft_colour_brightness, raft_colour_contrast, raft_colour_saturation};
    uint32_t order[3];
    double least = strength < 1 ? 1 - strength : 0;
    raft_random_permutation(random, 3, order);
    for (int i = 0; i < 3; i++)
        adjust[order[i]](image, raft_random_uniform(random, least, 1 + strength));
}

static void cutout(RaftRandom *random, RaftImage *image)
{
    double area = (double)image->width * image->height * raft_random_uniform(random, 0.02, 1.0 / 3);
    double aspect = exp(raft_random_uniform(random, log(0.3), log(1 / 0.3)));
    int height = (int)rint(sqrt(area * aspect)), width = (int)rint(sqrt(area / aspect));
    if (height > image->height || width > image->width) return;
    int top = choose_place(random, image->height, height);
    int left = choose_place(random, image->width, width);
    raft_warp_erase(image, left, top, width, height);
}

RaftStatus raft_augment(const RaftAugmentation *augmentation, RaftRandom *random, RaftImage *image,
                        RaftError *error)
{
    Cut cut;
    if (!choose_cut(augmentation, random, image->width, image->height, &cut))
        return too_narrow(image, error);
    bool flipped = raft_random_chance(random, 0.5);
    RaftStatus status = apply_cut(augmentation, &cut, flipped, image, error);
    if (status) return status;
    if (augmentation->color_jitter > 0) jitter(augmentation->color_jitter, random, image);
    for (int i = 0; i < 2 && augmentation->rand_augment && !status; i++) {
        RaftDraw draw = raft_augment_draw(random);
        if (draw.applied) status = raft_augment_apply(&draw, image, error);
    }
    /* 0 before or after the division by 255. */
    if (raft_random_chance(random, augmentation->cutout_p)) cutout(random, image);
    return status;
}

RaftStatus raft_augment_not(const RaftAugmentation *augmentation, RaftImage *image,
                            RaftError *error)
{
    Cut cut;
    if (!choose_cut(augmentation, NULL, image->width, image->height, &cut))
        return too_narrow(image, error);
    return apply_cut(augmentation, &cut, false, image, error);
}
