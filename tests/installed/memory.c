/* memory.c: how much memory a program has more of once it has run a model on one image, as the
 * system counts it. Prints a number that stands for the logits, the memory, and its limit: the packed
 * weights and the arena as raftc plans them, and 8 MB.
 * usage: memory PACKED_BYTES ARENA_BYTES WEIGHTS
 * WEIGHTS: a file, which is mapped; or `pointers`, each parameter given by itself; or `embedded`. */
#include "model.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

enum { PIXELS = model_CHANNELS * model_HEIGHT * model_WIDTH, MOST_ELEMENTS = 1 << 23 };

static float parameter[MOST_ELEMENTS], image[PIXELS], logits[model_CLASSES];

/* A line of /proc/self/status, such as "VmHWM:   123 kB", in bytes. */
static long long status(const char *field)
{
    char line[256];
    long long value = -1;
    FILE *file = fopen("/proc/self/status", "r");
    while (file && fgets(line, sizeof line, file))
        if (strncmp(line, field, strlen(field)) == 0) value = atoll(line + strlen(field)) * 1024;
    if (file) fclose(file);
    return value;
}

static int set_parameters(model *instance)
{
    int count;
    const model_Parameter *p = model_parameters(instance, &count);
    for (int i = 0; i < count; i++) {
        if (p[i].elements > MOST_ELEMENTS) return 1;
        if (model_set_parameter(instance, p[i].name, p[i].shape, p[i].rank, parameter)) return 1;
    }
    return 0;
}

static int map_weights(model_Options *options, const char *path)
{
    struct stat file_status;
    int file = open(path, O_RDONLY);
    if (file < 0 || fstat(file, &file_status) != 0) return 1;
    options->weights_size = (size_t)file_status.st_size;
    options->weights = mmap(NULL, options->weights_size, PROT_READ, MAP_PRIVATE, file, 0);
    return options->weights == MAP_FAILED;
}

int main(int argc, char **argv)
{
    if (argc != 4) return 2;
    long long packed = atoll(argv[1]), arena = atoll(argv[2]), spare = 8 << 20;
    int pointers = strcmp(argv[3], "pointers") == 0, embedded = strcmp(argv[3], "embedded") == 0;
    for (int i = 0; i < MOST_ELEMENTS; i++) parameter[i] = (float)(i % 17 - 8) / 256;
    for (int i = 0; i < PIXELS; i++) image[i] = (float)(i % 23 - 11) / 8;
    memset(logits, 0, sizeof logits);

    long long before = status("VmRSS:");
    model_Options options = {.size = sizeof options};
    model *instance;
    char message[256];
    if (!pointers && !embedded && map_weights(&options, argv[3])) return 3;
    if (model_create(&options, &instance, message, sizeof message) != model_OK) {
        fprintf(stderr, "%s\n", message);
        return 4;
    }
    if (pointers && set_parameters(instance)) return 5;
    if (model_forward(instance, 1, image, logits) != model_OK) return 6;
    long long most = status("VmHWM:") - before;
    model_destroy(instance);
    double sum = 0;
    for (int i = 0; i < model_CLASSES; i++) sum += (double)logits[i] * (i % 31 + 1);
    printf("logits: %.17g\n", sum);
    printf(
        "memory: weights %s: %lld bytes more at most; limit %lld: packed weights %lld, arena %lld, "
        "and %lld\n",
        argv[3], most, packed + arena + spare, packed, arena, spare);
    return before <= 0 || most <= 0 || most > packed + arena + spare;
}
