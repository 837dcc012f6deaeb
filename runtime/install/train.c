/* train.c: trains a model that raftc compiled, with a loop of its own, on images in IDX files (those of
 * MNIST and its likes), and tells how many of the last images it then gets right.
 *
 *     raftc fashion-mnist.yaml --train --name model -o model
 *     cc -O2 train.c model.a -fopenmp -lm -o train
 *     ./train train-images-idx3-ubyte train-labels-idx1-ubyte STEPS
 */
#include "model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    BATCH = 64,
    HELD_BACK = 500, /* images that are not trained on */
    PIXELS = model_CHANNELS * model_HEIGHT * model_WIDTH
};

static const double learning_rate = 3e-3, smoothing = 0.1;

static void die(const char *what)
{
    fprintf(stderr, "train: %s\n", what);
    exit(1);
}

/* ---- data --------------------------------------------------------------------------------------- */

/* The bytes of an IDX file with `rank` axes, of which the extents are given. */
static unsigned char *read_idx(const char *path, int rank, long extent[])
{
    unsigned char header[4 + 4 * 3];
    size_t header_size = 4 + 4 * (size_t)rank, size = 1;
    FILE *file = fopen(path, "rb");
    if (!file || fread(header, 1, header_size, file) != header_size) die(path);
    if (header[2] != 8 || header[3] != rank) die("not an IDX file of bytes with the right axes");
    for (int i = 0; i < rank; i++) {
        const unsigned char *bytes = header + 4 + 4 * i;
        extent[i] = (long)bytes[0] << 24 | bytes[1] << 16 | bytes[2] << 8 | bytes[3];
        size *= (size_t)extent[i];
    }
    unsigned char *data = malloc(size);
    if (!data || fread(data, 1, size, file) != size) die(path);
    fclose(file);
    return data;
}

static void take_image(const unsigned char *bytes, float *image)
{
    for (int i = 0; i < PIXELS; i++) image[i] = ((float)bytes[i] / 255 - 0.5f) / 0.5f;
}

/* ---- the start ---------------------------------------------------------------------------------- */

static double random_below(double bound)
{
    return bound * rand() / ((double)RAND_MAX + 1);
}

/* As PyTorch begins: matrices and biases by how many numbers are added up, the rest 1. */
static void draw_parameters(model *m)
{
    int count;
    double bound = 0;
    const model_Parameter *parameter = model_parameters(m, &count);
    for (int i = 0; i < count; i++) {
        float *data = model_parameter(m, parameter[i].name);
        int bias = strstr(parameter[i].name, "bias") != NULL;
        if (!bias) bound = parameter[i].rank == 2 ? 1 / sqrt((double)parameter[i].shape[1]) : 0;
        for (int64_t k = 0; k < parameter[i].elements; k++)
            data[k] = bound > 0 ? (float)(random_below(2 * bound) - bound) : !bias;
    }
}

/* ---- training ----------------------------------------------------------------------------------- */

static void check(model *m, int status)
{
    if (status != model_OK) die(model_error(m));
}

static double take_step(model *m, const unsigned char *images, const unsigned char *labels,
                        long count)
{
    static float image[BATCH][PIXELS], target[BATCH][model_CLASSES], loss[BATCH];
    double sum = 0;
    for (int i = 0; i < BATCH; i++) {
        long at = (long)random_below((double)count);
        take_image(images + at * PIXELS, image[i]);
        for (int k = 0; k < model_CLASSES; k++)
            target[i][k] =
                (float)(smoothing / model_CLASSES + (labels[at] == k ? 1 - smoothing : 0));
    }
    check(m, model_zero_gradients(m));
    check(m, model_backward(m, BATCH, image[0], target[0], NULL, loss));
    check(m, model_step(m, learning_rate));
    for (int i = 0; i < BATCH; i++) sum += (double)loss[i];
    return sum / BATCH;
}

static double accuracy(model *m, const unsigned char *images, const unsigned char *labels,
                       int count)
{
    int right = 0;
    for (int i = 0; i < count; i++) {
        static float image[PIXELS], logits[model_CLASSES];
        int best = 0;
        take_image(images + (long)i * PIXELS, image);
        check(m, model_forward(m, 1, image, logits));
        for (int k = 1; k < model_CLASSES; k++)
            if (logits[k] > logits[best]) best = k;
        right += best == labels[i];
    }
    return (double)right / count;
}

int main(int argc, char **argv)
{
    long extent[3], labelled;
    char message[256];
    model *m;
    if (argc != 4) die("usage: train IMAGES LABELS STEPS");
    unsigned char *images = read_idx(argv[1], 3, extent), *labels = read_idx(argv[2], 1, &labelled);
    long count = extent[0] - HELD_BACK;
    if (extent[0] != labelled || extent[1] * extent[2] != PIXELS || count < 1)
        die("the files do not fit each other, or the model");
    if (model_create(NULL, &m, message, sizeof message) != model_OK) die(message);
    draw_parameters(m);
    for (int step = 1, steps = atoi(argv[3]); step <= steps; step++) {
        double loss = take_step(m, images, labels, count);
        if (step == 1 || step % 20 == 0) printf("step %d  loss %.4f\n", step, loss);
    }
    printf("accuracy %.3f\n", accuracy(m, images + count * PIXELS, labels + count, HELD_BACK));
    model_destroy(m);
    free(images);
    free(labels);
    return 0;
}
