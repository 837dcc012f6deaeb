/* user.c: a program that uses a generated library as a person would. usage: user [WEIGHTS]; without
 * them, they are in the library. */
#include "tiny.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/library/values.h"

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "user.c:%d: %s\n", __LINE__, #condition);                              \
            return 1;                                                                              \
        }                                                                                          \
    } while (0)

static int check_results(tiny *model, const Values *v)
{
    float logits[MOST_BATCH * tiny_CLASSES], map0[MOST_BATCH * 8], map1[MOST_BATCH * 8];
    float *maps[tiny_FEATURES] = {map0, map1};
    CHECK(tiny_forward(model, MOST_BATCH, v->image, logits) == tiny_OK);
    CHECK(memcmp(logits, v->logits, sizeof logits) == 0);
    CHECK(tiny_features(model, MOST_BATCH, v->image, maps) == tiny_OK);
    CHECK(memcmp(map0, v->maps[0], sizeof map0) == 0);
    CHECK(memcmp(map1, v->maps[1], sizeof map1) == 0);
    return 0;
}

static int set_parameters(tiny *model, const Values *v)
{
    int count = 0;
    const tiny_Parameter *parameter = tiny_parameters(model, &count);
    CHECK(count == 3);
    for (int i = 0; i < count; i++) {
        const float *data = strcmp(parameter[i].name, "head.weight") == 0  ? v->weight
                            : strcmp(parameter[i].name, "norm.scale") == 0 ? v->scale
                                                                           : v->bias;
        int64_t elements = 1;
        for (int k = 0; k < parameter[i].rank; k++) elements *= parameter[i].shape[k];
        CHECK(elements == parameter[i].elements);
        CHECK(tiny_set_parameter(model, parameter[i].name, parameter[i].shape, parameter[i].rank,
                                 data) == tiny_OK);
    }
    return 0;
}

/* What a program learns that does not include the header. */
static int check_shapes(void)
{
    int inputs = 0, outputs = 0;
    const tiny_Parameter *input = tiny_inputs(NULL, &inputs),
                         *output = tiny_outputs(NULL, &outputs);
    CHECK(inputs == 1 && input->rank == 3 && input->elements == 8);
    CHECK(input->shape[0] == 2 && input->shape[1] == 2 && input->shape[2] == 2);
    CHECK(outputs == 3 && output[0].rank == 1 && output[0].shape[0] == tiny_CLASSES);
    CHECK(strcmp(output[0].name, "logits") == 0 && strcmp(output[2].name, "feature1") == 0);
    CHECK(output[2].rank == 3 && output[2].elements == 8);
    return 0;
}

static int use_mapped_weights(const char *path, const Values *v)
{
    int file = open(path, O_RDONLY);
    struct stat status;
    CHECK(file >= 0 && fstat(file, &status) == 0);
    size_t size = (size_t)status.st_size;
    void *weights = mmap(NULL, size, PROT_READ, MAP_PRIVATE, file, 0);
    CHECK(weights != MAP_FAILED);
    tiny_Options options = {.size = sizeof options, .weights = weights, .weights_size = size};
    char message[256];
    tiny *model;
    if (tiny_create(&options, &model, message, sizeof message) != tiny_OK) {
        fprintf(stderr, "%s\n", message);
        return 1;
    }
    if (check_results(model, v)) return 1;
    tiny_destroy(model);
    options.weights_size--;
    CHECK(tiny_create(&options, &model, message, sizeof message) == tiny_BAD_FILE);
    CHECK(model == NULL);
    munmap(weights, size);
    close(file);
    return 0;
}

static int use_embedded_weights(const Values *v)
{
    char message[256];
    tiny *model;
    if (tiny_create(NULL, &model, message, sizeof message) != tiny_OK) {
        fprintf(stderr, "%s\n", message);
        return 1;
    }
    int status = check_results(model, v);
    tiny_destroy(model);
    return status;
}

int main(int argc, char **argv)
{
    Values v;
    make_values(&v, 3);
    if (argc == 1) return use_embedded_weights(&v);
    CHECK(argc == 2);
    CHECK(tiny_CHANNELS == 2 && tiny_HEIGHT == 2 && tiny_WIDTH == 2 && tiny_CLASSES == 5);
    tiny *model = NULL;
    char message[256] = "";
    CHECK(tiny_create(NULL, &model, message, sizeof message) == tiny_OK);
    float logits[tiny_CLASSES];
    CHECK(tiny_forward(model, 1, v.image, logits) == tiny_NOT_READY);
    CHECK(strstr(tiny_error(model), "3 of 3") != NULL);
    CHECK(tiny_set_parameter(model, "x", NULL, 0, NULL) == tiny_INVALID);
    CHECK(tiny_create(NULL, NULL, message, sizeof message) == tiny_INVALID && message[0]);
    if (check_shapes() || set_parameters(model, &v) || check_results(model, &v)) return 1;
    tiny_destroy(model);
    return use_mapped_weights(argv[1], &v);
}
