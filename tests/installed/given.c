/* given.c: a library that trains takes the gradients of a loss of its caller's.
 * usage: given WEIGHTS, which are those of the library, by the fill rule. */
#include "tiny.h"

#include <fcntl.h>
#include <math.h>
#include <raft/raft.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    BATCH = 2,
    PIXELS = tiny_CHANNELS * tiny_HEIGHT * tiny_WIDTH,
    MOST_PARAMETERS = 100,
    MOST_OUTPUTS = 1 + tiny_FEATURES
};

static float images[BATCH * PIXELS];
/* The logits, then the maps; what the loss multiplies each with: so it is the gradient. */
static float *output[MOST_OUTPUTS], *given[MOST_OUTPUTS];
static int64_t floats[MOST_OUTPUTS];

static void die(int line, tiny *m)
{
    fprintf(stderr, "given.c:%d: %s\n", line, m ? tiny_error(m) : "");
    exit(1);
}
#define CHECK(good)                                                                                \
    do {                                                                                           \
        if (!(good)) die(__LINE__, model);                                                         \
    } while (0)

static tiny *open_model(const char *path, int threads)
{
    struct stat status;
    tiny *model = NULL;
    int file = open(path, O_RDONLY);
    CHECK(file >= 0 && fstat(file, &status) == 0);
    size_t size = (size_t)status.st_size;
    tiny_Options options = {.size = sizeof options,
                            .threads = threads,
                            .weights = mmap(NULL, size, PROT_READ, MAP_PRIVATE, file, 0),
                            .weights_size = size};
    close(file);
    CHECK(tiny_create(&options, &model, NULL, 0) == tiny_OK);
    return model;
}

static void make_outputs(tiny *model)
{
    int count;
    const tiny_Parameter *info = tiny_outputs(model, &count);
    CHECK(count == MOST_OUTPUTS);
    for (int i = 0, map = 1; i < count; i++) {
        int at = info[i].rank == 1 ? 0 : map++;
        floats[at] = BATCH * info[i].elements;
        output[at] = calloc((size_t)floats[at], sizeof(float));
        given[at] = calloc((size_t)floats[at], sizeof(float));
        raft_fill_input(floats[at], given[at]);
    }
}

/* The sum of all products of an output and what is given. */
static double loss_of(tiny *model, int logits, int maps)
{
    double sum = 0;
    CHECK(tiny_forward(model, BATCH, images, output[0]) == tiny_OK);
    CHECK(tiny_features(model, BATCH, images, output + 1) == tiny_OK);
    for (int i = logits ? 0 : 1; i < (maps ? MOST_OUTPUTS : 1); i++)
        for (int64_t k = 0; k < floats[i]; k++) sum += (double)given[i][k] * (double)output[i][k];
    return sum;
}

static double draw(uint32_t *state) /* from -1 to 1 */
{
    *state = *state * 1664525 + 1013904223;
    return (double)(*state >> 8) / (1 << 23) - 1;
}

/* Along a drawn direction of each parameter, the loss grows as its gradient says. */
static void check_differences(tiny *model, int logits, int maps)
{
    int count;
    const tiny_Parameter *parameter = tiny_parameters(model, &count);
    CHECK(tiny_zero_gradients(model) == tiny_OK);
    CHECK(tiny_forward_keep(model, BATCH, images, logits ? output[0] : NULL,
                            maps ? output + 1 : NULL) == tiny_OK);
    CHECK(tiny_backward_from(model, logits ? given[0] : NULL,
                             maps ? (const float *const *)given + 1 : NULL, NULL) == tiny_OK);
    for (int p = 0; p < count; p++) {
        const double width = 1e-2;
        float *data = tiny_parameter(model, parameter[p].name);
        const float *gradient = tiny_gradient(model, parameter[p].name);
        float *before = malloc((size_t)parameter[p].elements * sizeof(float));
        double expected = 0, length = 0, loss[2];
        memcpy(before, data, (size_t)parameter[p].elements * sizeof(float));
        for (int side = 0; side < 2; side++) {
            uint32_t state = (uint32_t)p;
            for (int64_t k = 0; k < parameter[p].elements; k++) {
                double step = draw(&state) / sqrt((double)parameter[p].elements);
                data[k] = before[k] + (float)(side ? width * step : -width * step);
                expected += side ? step * (double)gradient[k] : 0;
                length += side ? (double)gradient[k] * (double)gradient[k] : 0;
            }
            loss[side] = loss_of(model, logits, maps);
        }
        memcpy(data, before, (size_t)parameter[p].elements * sizeof(float));
        free(before);
        double difference = (loss[1] - loss[0]) / (2 * width) - expected;
        int of_head = !strncmp(parameter[p].name, "classifier", strlen("classifier")) ||
                      !strncmp(parameter[p].name, "heads", strlen("heads"));
        CHECK(of_head && !logits ? length == 0 : length > 0);
        if (fabs(difference) > 2e-3 * sqrt(length) + 2e-2) {
            fprintf(stderr, "%s: %g beside %g\n", parameter[p].name, difference, expected);
            die(__LINE__, NULL);
        }
    }
}

/* The gradient of the cross-entropy, given, is as if the library took it. */
static void check_cross_entropy(tiny *model)
{
    static float target[BATCH * tiny_CLASSES], loss[BATCH], slope[BATCH * tiny_CLASSES];
    int count;
    double most = 0, difference = 0;
    const tiny_Parameter *parameter = tiny_parameters(model, &count);
    float *gradient[MOST_PARAMETERS];
    CHECK(count <= MOST_PARAMETERS);
    for (int i = 0; i < BATCH; i++) target[i * tiny_CLASSES + i] = 1;
    CHECK(tiny_zero_gradients(model) == tiny_OK);
    CHECK(tiny_backward(model, BATCH, images, target, NULL, loss) == tiny_OK);
    CHECK(tiny_forward_keep(model, BATCH, images, output[0], NULL) == tiny_OK);
    for (int i = 0; i < BATCH; i++) {
        double sum = 0;
        const float *x = output[0] + i * tiny_CLASSES;
        for (int k = 0; k < tiny_CLASSES; k++) sum += exp((double)x[k]);
        for (int k = 0; k < tiny_CLASSES; k++)
            slope[i * tiny_CLASSES + k] = (float)((exp((double)x[k]) / sum - (k == i)) / BATCH);
    }
    for (int p = 0; p < count; p++)
        gradient[p] = malloc((size_t)parameter[p].elements * sizeof(float));
    CHECK(tiny_backward_from(model, slope, NULL, gradient) == tiny_OK);
    for (int p = 0; p < count; p++) {
        const float *wanted = tiny_gradient(model, parameter[p].name);
        for (int64_t k = 0; k < parameter[p].elements; k++) {
            most = fmax(most, fabs((double)wanted[k]));
            difference = fmax(difference, fabs((double)wanted[k] - (double)gradient[p][k]));
        }
    }
    CHECK(difference <= 1e-6 * most);
    /* Of the same, added to nothing, and once more, for other threads: the same bits. */
    for (int threads = 1; threads <= 3; threads++) {
        tiny_Options options = {.size = sizeof options, .threads = threads};
        tiny *other;
        CHECK(tiny_create(&options, &other, NULL, 0) == tiny_OK);
        for (int p = 0; p < count; p++)
            CHECK(tiny_set_parameter(other, parameter[p].name, parameter[p].shape,
                                     parameter[p].rank,
                                     tiny_parameter(model, parameter[p].name)) == tiny_OK);
        for (int twice = 1; twice <= 2; twice++) {
            CHECK(tiny_forward_keep(other, BATCH, images, NULL, NULL) == tiny_OK);
            CHECK(tiny_backward_from(other, slope, NULL, NULL) == tiny_OK);
            for (int p = 0; p < count; p++)
                for (int64_t k = 0; k < parameter[p].elements; k++)
                    CHECK(tiny_gradient(other, parameter[p].name)[k] ==
                          (float)twice * gradient[p][k]);
        }
        tiny_destroy(other);
    }
    for (int p = 0; p < count; p++) free(gradient[p]);
}

/* The gradients of the instance are those given, which are freed, but for the order in which they were added. */
static void check_gradients(tiny *model, float **gradient)
{
    int count;
    const tiny_Parameter *parameter = tiny_parameters(model, &count);
    double most = 0, difference = 0;
    for (int p = 0; p < count; p++) {
        const float *wanted = tiny_gradient(model, parameter[p].name);
        for (int64_t k = 0; k < parameter[p].elements; k++) {
            most = fmax(most, fabs((double)wanted[k]));
            difference = fmax(difference, fabs((double)wanted[k] - (double)gradient[p][k]));
        }
        free(gradient[p]);
    }
    CHECK(most > 0 && difference <= 1e-5 * most);
}

/* More images than a part of a batch has are kept at once: the gradients are the sums of halves'. */
static void check_large(tiny *model)
{
    enum { LARGE = 80, HALF = LARGE / 2 };
    int count;
    float *many = malloc((size_t)LARGE * PIXELS * sizeof(float));
    float *slope = malloc((size_t)LARGE * tiny_CLASSES * sizeof(float));
    const tiny_Parameter *parameter = tiny_parameters(model, &count);
    float *gradient[MOST_PARAMETERS];
    raft_fill_input(LARGE * PIXELS, many);
    raft_fill_input(LARGE * tiny_CLASSES, slope);
    for (int p = 0; p < count; p++)
        gradient[p] = malloc((size_t)parameter[p].elements * sizeof(float));
    CHECK(tiny_forward_keep(model, LARGE, many, NULL, NULL) == tiny_OK);
    CHECK(tiny_backward_from(model, slope, NULL, gradient) == tiny_OK);
    CHECK(tiny_zero_gradients(model) == tiny_OK);
    for (int half = 0; half < 2; half++) {
        CHECK(tiny_forward_keep(model, HALF, many + half * HALF * PIXELS, NULL, NULL) == tiny_OK);
        CHECK(tiny_backward_from(model, slope + half * HALF * tiny_CLASSES, NULL, NULL) == tiny_OK);
    }
    check_gradients(model, gradient);
    free(many);
    free(slope);
}

/* The mean over more images than a part has is the sum over halves whose weights say so. */
static void check_large_mean(tiny *model)
{
    enum { LARGE = 80, HALF = LARGE / 2 };
    int count;
    float *many = malloc((size_t)LARGE * PIXELS * sizeof(float));
    float *target = calloc((size_t)LARGE * tiny_CLASSES, sizeof(float));
    float weight[HALF], loss[2][LARGE];
    const tiny_Parameter *parameter = tiny_parameters(model, &count);
    float *gradient[MOST_PARAMETERS];
    raft_fill_input(LARGE * PIXELS, many);
    for (int i = 0; i < LARGE; i++) target[i * tiny_CLASSES + i % tiny_CLASSES] = 1;
    for (int i = 0; i < HALF; i++) weight[i] = 1.0f / LARGE;
    CHECK(tiny_zero_gradients(model) == tiny_OK);
    CHECK(tiny_backward(model, LARGE, many, target, NULL, loss[0]) == tiny_OK);
    for (int p = 0; p < count; p++) {
        size_t bytes = (size_t)parameter[p].elements * sizeof(float);
        gradient[p] = malloc(bytes);
        memcpy(gradient[p], tiny_gradient(model, parameter[p].name), bytes);
    }
    CHECK(tiny_zero_gradients(model) == tiny_OK);
    for (int half = 0; half < 2; half++)
        CHECK(tiny_backward(model, HALF, many + half * HALF * PIXELS,
                            target + half * HALF * tiny_CLASSES, weight,
                            loss[1] + half * HALF) == tiny_OK);
    CHECK(memcmp(loss[0], loss[1], sizeof loss[0]) == 0);
    check_gradients(model, gradient);
    free(many);
    free(target);
}

static void check_refusals(tiny *model)
{
    CHECK(tiny_backward_from(model, given[0], NULL, NULL) == tiny_NOT_READY);
    CHECK(strstr(tiny_error(model), "forward_keep comes before"));
    CHECK(tiny_forward_keep(model, BATCH, images, output[0], output + 1) == tiny_OK);
    CHECK(tiny_forward(model, BATCH, images, output[0]) == tiny_OK); /* takes the memory */
    CHECK(tiny_backward_from(model, given[0], NULL, NULL) == tiny_NOT_READY);
    CHECK(tiny_forward_keep(model, BATCH, NULL, output[0], NULL) == tiny_INVALID);
    CHECK(tiny_forward_keep(model, tiny_BATCH + 1, images, output[0], NULL) == tiny_INVALID);
    CHECK(strstr(tiny_error(model), "more than 1024 at a time"));
    CHECK(tiny_backward_from(model, given[0], NULL, NULL) == tiny_NOT_READY);
    CHECK(tiny_forward_keep(model, BATCH, images, images, NULL) == tiny_INVALID);
    CHECK(tiny_forward_keep(model, BATCH, images, output[0], NULL) == tiny_OK);
    float *gradients[MOST_PARAMETERS] = {NULL};
    CHECK(tiny_backward_from(model, given[0], NULL, gradients) == tiny_INVALID);
    CHECK(tiny_backward_from(model, given[0], NULL, NULL) == tiny_OK); /* nothing was changed */
    CHECK(tiny_backward_from(model, given[0], NULL, NULL) == tiny_NOT_READY);
    CHECK(tiny_forward_keep(NULL, BATCH, images, NULL, NULL) == tiny_INVALID);
    CHECK(tiny_backward_from(NULL, NULL, NULL, NULL) == tiny_INVALID);
}

int main(int argc, char **argv)
{
    if (argc != 2) return 2;
    tiny *model = open_model(argv[1], 2);
    raft_fill_input(BATCH * PIXELS, images);
    make_outputs(model);
    check_refusals(model);
    check_differences(model, 1, 0);
    check_differences(model, 0, 1);
    check_differences(model, 1, 1);
    check_cross_entropy(model);
    check_large(model);
    check_large_mean(model);
    for (int i = 0; i < MOST_OUTPUTS; i++) {
        free(output[i]);
        free(given[i]);
    }
    tiny_destroy(model);
    puts("given.c: the gradients of other losses");
    return 0;
}
