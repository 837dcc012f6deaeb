/* run.c: a library called golden as a filter, for golden.c to run on another machine.
 * usage: run WEIGHTS BATCH <images >outputs, all of them floats. FEATURES: whether it has feature maps. */
#include "golden.h"

#include <stdio.h>
#include <stdlib.h>

enum { MOST_OUTPUTS = 8, IMAGE = golden_CHANNELS * golden_HEIGHT * golden_WIDTH };

/* Reads a file into memory as the header asks for it. */
static void *read_all(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END) != 0) return NULL;
    *size = (size_t)ftell(file);
    rewind(file);
    void *data = aligned_alloc(64, (*size + 63) / 64 * 64);
    if (data && fread(data, 1, *size, file) != *size) data = NULL;
    fclose(file);
    return data;
}

int main(int argc, char **argv)
{
    golden_Options options = {.size = sizeof options, .threads = 2};
    float *output[MOST_OUTPUTS], *maps[MOST_OUTPUTS], *logits = NULL;
    char message[256];
    golden *model;
    int count, map_count = 0;
    const golden_Parameter *table = golden_outputs(NULL, &count);
    int64_t batch = argc == 3 ? atoll(argv[2]) : 0;
    if (batch < 1 || count > MOST_OUTPUTS) return 2;
    options.weights = read_all(argv[1], &options.weights_size);
    if (golden_create(&options, &model, message, sizeof message) != golden_OK) {
        fprintf(stderr, "%s\n", message);
        return 3;
    }
    for (int i = 0; i < count; i++) {
        output[i] = calloc((size_t)(batch * table[i].elements), sizeof(float));
        if (table[i].rank == 1)
            logits = output[i];
        else
            maps[map_count++] = output[i];
    }
    float *images = calloc((size_t)batch * IMAGE, sizeof *images);
    if (fread(images, sizeof *images * IMAGE, (size_t)batch, stdin) != (size_t)batch) return 4;
    int status = golden_forward(model, batch, images, logits);
#ifdef FEATURES
    if (status == golden_OK) status = golden_features(model, batch, images, maps);
#endif
    if (status != golden_OK) {
        fprintf(stderr, "%s\n", golden_error(model));
        return 5;
    }
    for (int i = 0; i < count; i++)
        if (fwrite(output[i], sizeof(float) * (size_t)table[i].elements, (size_t)batch, stdout) !=
            (size_t)batch)
            return 6;
    return fflush(stdout) ? 6 : 0;
}
