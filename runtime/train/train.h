/* train.h: what training needs beside the compiled step: random numbers, augmented batches of real
 * data, the schedule, metrics, checkpoints.
 *
 * Like raft.h: statuses and messages, nothing printed, no global state. Every random choice is a
 * function of the seed, the epoch, the sample and what it is for; so neither the number of threads
 * nor a resumed run changes any.
 */
#ifndef RAFT_TRAIN_H
#define RAFT_TRAIN_H

#include "runtime/raft.h"

struct RtView; /* runtime/rt.h */
struct RtRect;

/* ---- random.c -------------------------------------------------------------------------------- */

/* What a random number is for: streams of different purposes have nothing in common. */
typedef enum RaftPurpose {
    RAFT_FOR_ORDER,
    RAFT_FOR_AUGMENTATION,
    RAFT_FOR_MIXING,
    RAFT_FOR_DROPPING, /* drop path and dropout */
    RAFT_FOR_WEIGHTS
} RaftPurpose;

typedef struct RaftRandom { /* one stream; a copy continues at the same place */
    uint32_t key[2], counter[4], block[4];
    int used; /* numbers of the block */
} RaftRandom;

/* Streams begin anywhere at no cost: the numbers are a function (Philox) of their place. `sample`
 * is an index in the data set or, for choices of one a batch, the number of the batch. */
RaftRandom raft_random(uint64_t seed, uint32_t epoch, uint32_t sample, RaftPurpose purpose);
uint32_t raft_random_bits(RaftRandom *random);
double raft_random_uniform(RaftRandom *random, double low, double high); /* [low, high) */
uint32_t raft_random_below(RaftRandom *random, uint32_t bound);          /* 0 to bound - 1 */
bool raft_random_chance(RaftRandom *random, double probability);
double raft_random_beta(RaftRandom *random, double alpha); /* Beta(alpha, alpha); alpha > 0 */
void raft_random_permutation(RaftRandom *random, uint32_t count, uint32_t *order);

/* ---- drop.c: drop path and dropout ------------------------------------------------------------ */

typedef struct RaftDrop {
    uint64_t seed;
    uint32_t step, layer; /* layers are numbered as one likes, below 2^24 */
    double rate;
    int64_t elements; /* of an image: 1 where a whole branch is dropped */
} RaftDrop;

/* mask[count][elements] for the images of the global batch from `first` on: 0 with the probability
 * `rate`, else 1 / (1 - rate). */
void raft_drop_draw(const RaftDrop *drop, uint32_t first, int64_t count, float *mask);

/* ---- colour.c: Pillow's ImageEnhance and ImageOps on RGB, in place --------------------------- */

void raft_colour_brightness(RaftImage *image, double factor);
void raft_colour_contrast(RaftImage *image, double factor);
void raft_colour_saturation(RaftImage *image, double factor); /* ImageEnhance.Color */
RaftStatus raft_colour_sharpness(RaftImage *image, double factor, RaftError *error);
void raft_colour_posterize(RaftImage *image, int bits);
void raft_colour_solarize(RaftImage *image, double threshold);
void raft_colour_autocontrast(RaftImage *image);
void raft_colour_equalize(RaftImage *image);
void raft_colour_invert(RaftImage *image);
uint8_t raft_colour_grey(const uint8_t rgb[3]); /* convert("L") */

/* ---- warp.c: moving pixels ------------------------------------------------------------------- */

/* Replaces the picture by a part of it; what lies outside is 0. */
RaftStatus raft_warp_crop(RaftImage *image, int left, int top, int width, int height,
                          RaftError *error);
void raft_warp_flip(RaftImage *image); /* left to right */
/* Image.transform(size, AFFINE, matrix): output (x, y) is the input at (m0 x + m1 y + m2, m3 x +
 * m4 y + m5), of nearest neighbours; what lies outside is `fill`. */
RaftStatus raft_warp_affine(RaftImage *image, const double matrix[6], uint8_t fill,
                            RaftError *error);
/* The same, bicubic, for (x + amount y, y) or, down, (x, y + amount x). */
RaftStatus raft_warp_shear(RaftImage *image, bool down, double amount, uint8_t fill,
                           RaftError *error);
/* Image.rotate: by nearest neighbours, counterclockwise, about the centre. */
RaftStatus raft_warp_rotate(RaftImage *image, double degrees, uint8_t fill, RaftError *error);
/* Fills a rectangle, as much of it as lies inside, with 0. */
void raft_warp_erase(RaftImage *image, int left, int top, int width, int height);

/* ---- augment.c: the published augmentation ---------------------------------------------------- */

typedef enum RaftCrop {
    RAFT_CROP_SHORT_SIDE, /* short side to 256 / 224 of the size, a part of it; test: the middle */
    RAFT_CROP_RESIZED,    /* a random part of other ratio, resized; test: all of it, resized */
    RAFT_CROP_PADDED,     /* a random part of the picture with 4 zeros round it; test: all of it */
    RAFT_CROP_NONE        /* all of it, resized */
} RaftCrop;

typedef struct RaftAugmentation {
    RaftCrop crop;
    int height, width; /* of what comes out */
    bool rand_augment;
    double color_jitter, cutout_p; /* 0: none */
} RaftAugmentation;

/* What the recipe of a data set does; false where the name is unknown. Size, jitter and Cutout are
 * the settings'. */
bool raft_augmentation_of(const char *dataset_name, RaftAugmentation *augmentation);
/* How long the shorter side of a picture must be for training to see as much of it as of a larger one:
 * twice what it is resized to (as Pillow's thumbnail has it); 0: it must be as it is. */
int raft_augment_least_side(const RaftAugmentation *augmentation);
/* What raft_augment, with such a stream, or (NULL) raft_augment_not will look at of a picture of that size. */
struct RtRect raft_augment_part(const RaftAugmentation *augmentation, const RaftRandom *random,
                                int width, int height);
/* Replaces the picture as read by what training sees of it, up to the normalisation. */
RaftStatus raft_augment(const RaftAugmentation *augmentation, RaftRandom *random, RaftImage *image,
                        RaftError *error);
/* The same for tests: no chance. */
RaftStatus raft_augment_not(const RaftAugmentation *augmentation, RaftImage *image,
                            RaftError *error);

/* RandAugment's operations, and all that is random about one of them. */
typedef enum RaftOp {
    RAFT_OP_SHEAR_X,
    RAFT_OP_SHEAR_Y,
    RAFT_OP_TRANSLATE_X,
    RAFT_OP_TRANSLATE_Y,
    RAFT_OP_ROTATE,
    RAFT_OP_COLOR,
    RAFT_OP_POSTERIZE,
    RAFT_OP_SOLARIZE,
    RAFT_OP_CONTRAST,
    RAFT_OP_SHARPNESS,
    RAFT_OP_BRIGHTNESS,
    RAFT_OP_AUTOCONTRAST,
    RAFT_OP_EQUALIZE,
    RAFT_OP_INVERT,
    RAFT_OP_CUTOUT,
    RAFT_OPS
} RaftOp;

typedef struct RaftDraw {
    RaftOp op;
    int step; /* 1 to 9 */
    bool applied, negative;
    double across, down; /* the centre of a cutout, in [0, 1) of the sides */
} RaftDraw;

RaftDraw raft_augment_draw(RaftRandom *random);
/* Applies it whether or not `applied` is set. */
RaftStatus raft_augment_apply(const RaftDraw *draw, RaftImage *image, RaftError *error);

/* ---- mix.c: from a batch of bytes to what a step reads ---------------------------------------- */

typedef struct RaftMixing {
    double mixup_alpha, mixup_p, cutmix_alpha, cutmix_p;
    /* The published trainer reads cutmix_alpha and does not use it: it draws both lambdas from
     * Beta(mixup_alpha, mixup_alpha). False does the same. */
    bool uses_cutmix_alpha;
} RaftMixing;

typedef struct RaftMix {                  /* what is drawn for one batch */
    int count;                            /* of images in the batch */
    double mixup, cutmix;                 /* lambdas; 1: not applied */
    uint32_t *mixup_order, *cutmix_order; /* [count] */
    int left, top, width, height;         /* the box of cutmix */
} RaftMix;

/* Draws for a batch of mix->count images of height x width; the caller has set the count and the
 * two arrays. */
void raft_mix_draw(const RaftMixing *mixing, RaftRandom *random, int height, int width,
                   RaftMix *mix);

typedef struct RaftPixels { /* the layout of bytes[count][channels][height][width] */
    int channels, height, width;
    double mean[3], std[3];
} RaftPixels;

/* Normalises and mixes images [first, first + count) of a batch; without a mix (NULL) they are
 * normalised alone. */
void raft_mix_images(const RaftMix *mix, const RaftPixels *pixels, const uint8_t *bytes, int first,
                     int count, float *images);
/* Their labels as distributions [count][classes], smoothed: the loss of a mixture of mixtures is
 * the cross-entropy with the mixture of the labels. */
void raft_mix_targets(const RaftMix *mix, const uint32_t *labels, int classes, double smoothing,
                      int first, int count, float *targets);

/* ---- dataset.c, dataset_binary.c, dataset_lists.c: data sets on disk -------------------------- */

typedef struct RaftDataset RaftDataset;

/* Opens the training or the validation part of a data set, by the name that the settings give:
 *
 *     imagenet, folder      PATH/train/CLASS/..., PATH/val/CLASS/...: .jpg, .jpeg and .png files
 *     cifar10, cifar100     the binary version: data_batch_1.bin ..., train.bin and test.bin
 *     fashion_mnist         IDX: train-images-idx3-ubyte, t10k-... and labels, may end in .gz
 *     flowers102            jpg/, imagelabels.mat, setid.mat; trains on tstid, validates on valid
 *     cars                  cars_train/, cars_test/ and their annotations (.mat) in devkit/
 *     inat18, inat19        train2018.json, val2018.json and the files that they name
 *
 * Everything but the content of pictures is checked here: what is missing or does not fit is said
 * with its path and what belongs there. `classes` is what the model tells apart. */
RaftStatus raft_dataset_open(const char *name, const char *path, bool training, int classes,
                             RaftDataset **dataset, RaftError *error);
void raft_dataset_close(RaftDataset *dataset);
int64_t raft_dataset_count(const RaftDataset *dataset);
uint32_t raft_dataset_label(const RaftDataset *dataset, int64_t index);
/* Where an item came from, for messages: valid until the data set is closed; "item 7 of PATH" is
 * written to `buffer` where it has no file of its own. */
const char *raft_dataset_where(const RaftDataset *dataset, int64_t index, char buffer[static 512]);
/* Reads a picture; of a file that ends too early it gives what is there, and sets *truncated. `view`: how it will be looked at, where it need not be as it is. May be called from many threads at
 * a time. */
RaftStatus raft_dataset_read(const RaftDataset *dataset, int64_t index, const struct RtView *view,
                             RaftImage *image, bool *truncated, RaftError *error);

/* ---- loader.c: one epoch of a data set in batches, made ahead of the computation -------------- */

typedef struct RaftLoading {
    RaftAugmentation augmentation;
    int channels; /* 3, or 1: grey */
    int batch;    /* images in one */
    /* In a random order and augmented, an incomplete last batch dropped; else as the data set has
     * them, the last batch smaller. */
    bool training;
    uint64_t seed;
    uint32_t epoch;
    int64_t first; /* the number of the batch to begin with */
    int threads;
    int ahead;               /* batches in memory, at least 2: one is lent, others are being made */
    int64_t most_unreadable; /* more end the epoch with an error that lists the first of them */
    const char *list;        /* the file where it then writes all, with the reasons; NULL: none */
} RaftLoading;

typedef struct RaftBatch {
    int64_t index;        /* in the epoch */
    int count;            /* of images; 0: the epoch is over */
    const uint8_t *bytes; /* [count][channels][height][width] */
    const uint32_t *labels;
    int64_t truncated, unreadable; /* pictures in this batch and those before it */
} RaftBatch;

typedef struct RaftLoader RaftLoader;

int64_t raft_loader_batches(const RaftDataset *dataset, const RaftLoading *loading); /* an epoch */
/* The data set must outlive the loader. What the batches hold depends on nothing but the data set,
 * batch, seed and epoch: neither on the number of threads nor on where one begins. */
RaftStatus raft_loader_open(const RaftDataset *dataset, const RaftLoading *loading,
                            RaftLoader **loader, RaftError *error);
void raft_loader_close(RaftLoader *loader);
/* Waits for the next batch, which is the caller's to read until the next call. In the place of an
 * unreadable picture stands, in training, the next readable one of the data set, and none else. */
RaftStatus raft_loader_next(RaftLoader *loader, RaftBatch *batch, RaftError *error);

/* ---- schedule.c ------------------------------------------------------------------------------- */

typedef struct RaftSchedule {
    double lr, end_lr;
    int64_t warmup, iterations; /* of the run; the warm-up is among them */
} RaftSchedule;

/* The learning rate of an iteration, from 0: it rises in a line from 0, then falls as half a
 * cosine. */
double raft_schedule_rate(const RaftSchedule *schedule, int64_t iteration);

/* ---- metrics.c, events.c, page.c: what a run tells -------------------------------------------- */

typedef struct RaftMetrics RaftMetrics;

/* Writes FOLDER/metrics.jsonl, a line for each call of raft_metrics_add, and an event file for
 * TensorBoard beside it. A run that goes on from an earlier step says the same again: what is there
 * of steps from `first` on is dropped from the lines, and TensorBoard is told to pass over it. */
RaftStatus raft_metrics_open(const char *folder, int64_t first, RaftMetrics **metrics,
                             RaftError *error);
RaftStatus raft_metrics_add(RaftMetrics *metrics, int64_t step, int count, const char *const *tags,
                            const double *values, RaftError *error);
void raft_metrics_close(RaftMetrics *metrics);
/* Draws the curves of FOLDER/metrics.jsonl as FOLDER/metrics.html, which needs no other file. */
RaftStatus raft_metrics_page(const char *folder, const char *title, RaftError *error);

/* ---- checkpoint.c ----------------------------------------------------------------------------- */

/* Writes FOLDER/checkpoint-STEP.safetensors, whole or not at all, with a checksum of all that is in
 * it; then removes all but the last `keep` up to that step. The metadata (key, value, ..., NULL)
 * and the tensors together are all that the next step depends on. */
RaftStatus raft_checkpoint_save(const char *folder, int64_t step, int keep,
                                const RaftTensor *tensors, int count, const char *const *metadata,
                                RaftError *error);
/* Keeps the two best of a run: writes FOLDER/best-ACCURACY-EPOCH.safetensors if it is one of them,
 * and removes the one that is no longer. */
RaftStatus raft_checkpoint_save_best(const char *folder, double accuracy, int64_t epoch,
                                     const RaftTensor *tensors, int count,
                                     const char *const *metadata, RaftError *error);
/* Opens a checkpoint if its checksum is right. */
RaftStatus raft_checkpoint_open(const char *path, RaftWeights **checkpoint, RaftError *error);
/* Opens the newest good one of a folder. `refused` says, a line each, which newer ones were passed
 * over, and why. */
RaftStatus raft_checkpoint_newest(const char *folder, RaftWeights **checkpoint, int64_t *step,
                                  RaftError *refused, RaftError *error);

#endif
