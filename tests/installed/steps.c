/* steps.c: a library that trains takes the steps of `raftc train`, to the bit.
 * usage: steps WEIGHTS TRAINED GRADIENTS
 * WEIGHTS: of the library, by the fill rule; TRAINED and GRADIENTS: what raftc saved of 3 steps on a
 * made-up batch of 4 images. The batch is given in two parts, and then, for the bits, as one. */
#include "tiny.h"

#include <dirent.h>
#include <fcntl.h>
#include <math.h>
#include <raft/raft.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BATCH = 4, STEPS = 3, PIXELS = tiny_CHANNELS * tiny_HEIGHT * tiny_WIDTH };
static const double lr = 0.002, smoothing = 0.1;

static float images[BATCH * PIXELS], target[BATCH * tiny_CLASSES], loss[BATCH];

static tiny *open_model(const char *path)
{
    struct stat status;
    tiny *model;
    char message[256] = "";
    int file = open(path, O_RDONLY);
    if (file < 0 || fstat(file, &status) != 0) return NULL;
    size_t size = (size_t)status.st_size;
    tiny_Options options = {.size = sizeof options,
                            .threads = 1,
                            .weights = mmap(NULL, size, PROT_READ, MAP_PRIVATE, file, 0),
                            .weights_size = size};
    close(file);
    if (tiny_create(&options, &model, message, sizeof message) == tiny_OK) return model;
    fprintf(stderr, "%s\n", message);
    return NULL;
}

static void fill_batch(void)
{
    uint32_t labels[BATCH];
    raft_fill_input(BATCH * PIXELS, images);
    raft_fill_labels(BATCH, tiny_CLASSES, labels);
    for (int i = 0; i < BATCH; i++)
        for (int k = 0; k < tiny_CLASSES; k++)
            target[i * tiny_CLASSES + k] =
                (float)(smoothing / tiny_CLASSES + ((int)labels[i] == k) * (1 - smoothing));
}

/* How far the tensors of a file are from those of the model, at most. */
static double difference(tiny *model, const char *path, float *data_of(tiny *, const char *))
{
    RaftWeights *file;
    RaftError error;
    int count;
    double most = 0;
    const tiny_Parameter *parameter = tiny_parameters(model, &count);
    if (raft_weights_open(path, &file, &error) != RAFT_OK) return INFINITY;
    for (int i = 0; i < count; i++) {
        const RaftTensor *tensor = raft_weights_find(file, parameter[i].name);
        const float *data = data_of(model, parameter[i].name),
                    *wanted = tensor ? tensor->data : NULL;
        if (!wanted || !data || tensor->elements != parameter[i].elements) return INFINITY;
        for (int64_t k = 0; k < tensor->elements; k++)
            most = fmax(most, fabs((double)data[k] - (double)wanted[k]));
    }
    raft_weights_close(file);
    return most;
}

/* Those of the process, the one thread that was asked for among them. */
static int count_threads(void)
{
    DIR *folder = opendir("/proc/self/task");
    int count = 0;
    for (struct dirent *entry; folder && (entry = readdir(folder));)
        count += entry->d_name[0] != '.';
    if (folder) closedir(folder);
    return count;
}

int main(int argc, char **argv)
{
    const float half[BATCH] = {0.25f, 0.25f, 0.25f, 0.25f}; /* of the mean over the batch */
    tiny *model = argc == 4 ? open_model(argv[1]) : NULL;
    if (!model) return 2;
    fill_batch();
    for (int part = 0; part < 2; part++)
        if (tiny_backward(model, BATCH / 2, images + part * (BATCH / 2) * PIXELS,
                          target + part * (BATCH / 2) * tiny_CLASSES, half, loss) != tiny_OK)
            return 3;
    double in_parts = difference(model, argv[3], tiny_gradient);
    if (!(in_parts < 1e-5)) return 4; /* summed in another order */
    for (int step = 1; step <= STEPS; step++) {
        if (tiny_zero_gradients(model) != tiny_OK ||
            tiny_backward(model, BATCH, images, target, NULL, loss) != tiny_OK)
            return 5;
        if (step == 1 && difference(model, argv[3], tiny_gradient) != 0) return 6;
        if (tiny_step(model, lr) != tiny_OK) return 7;
    }
    if (difference(model, argv[2], tiny_parameter) != 0) return 8;
    if (count_threads() != 1) return 10;
    if (tiny_backward(model, 0, images, target, NULL, loss) != tiny_INVALID ||
        !strstr(tiny_error(model), "at least 1") || tiny_parameter(model, "nothing"))
        return 9;
    tiny_destroy(model);
    puts("steps.c: the same bits as raftc train");
    return 0;
}
