/* dataset_binary.c: data sets whose pixels lie in a few files: CIFAR's binary version, and IDX. zlib
 * reads them, whether they are compressed or not. */
#include "runtime/train/dataset.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

/* ---- files ------------------------------------------------------------------------------------- */

/* Reads at most `most` bytes of a file to the end of *bytes. */
static RaftStatus read_bytes(const char *path, size_t most, uint8_t **bytes, size_t *size,
                             RaftError *error)
{
    RaftStatus status = RAFT_OK;
    gzFile file = gzopen(path, "rb");
    if (!file) return rt_fail(error, RAFT_IO, "%s: %s", path, strerror(errno));
    size_t capacity = *size;
    for (int got = 1; !status && got > 0;) {
        if (*size == capacity) {
            capacity = capacity < (1 << 16) ? 1 << 16 : capacity * 3 / 2;
            uint8_t *larger = realloc(*bytes, capacity);
            if (!larger) {
                status = rt_no_memory(error, path);
                break;
            }
            *bytes = larger;
        }
        size_t room = capacity - *size < 1 << 20 ? capacity - *size : 1 << 20;
        got = gzread(file, *bytes + *size, (unsigned)room);
        if (got < 0) status = rt_fail(error, RAFT_BAD_FILE, "%s: damaged compression", path);
        if (got > 0) *size += (size_t)got;
        if (*size > most) status = rt_fail(error, RAFT_BAD_FILE, "%s: over %zu bytes", path, most);
    }
    if (gzclose_r(file) == Z_BUF_ERROR && !status)
        status = rt_fail(error, RAFT_BAD_FILE, "%s: the compressed file ends too early", path);
    return status;
}

/* PATH or PATH.gz, whichever is there. */
static const char *plain_or_compressed(RaftDataset *dataset, const char *name)
{
    const char *plain = rt_dataset_path(dataset, "%s", name);
    const char *compressed = rt_dataset_path(dataset, "%s.gz", name);
    return compressed && plain && access(plain, F_OK) && !access(compressed, F_OK) ? compressed
                                                                                   : plain;
}

/* ---- CIFAR: records of one or two labels and 3 x 32 x 32 bytes ---------------------------------- */

enum { SIDE = 32, MOST_BYTES = 1 << 30 };

static RaftStatus read_records(RaftDataset *dataset, const char *name, int labels, RaftError *error)
{
    size_t before = (size_t)dataset->count * dataset->stride, size = before;
    const char *path = rt_dataset_path(dataset, "%s", name);
    if (!path) return rt_no_memory(error, dataset->root);
    RaftStatus status = read_bytes(path, MOST_BYTES, &dataset->pixels, &size, error);
    if (!status && ((size - before) % dataset->stride || size == before))
        status = rt_fail(error, RAFT_BAD_FILE,
                         "%s: %zu bytes; expected are records of %zu, as in CIFAR's binary version",
                         path, size - before, dataset->stride);
    for (size_t at = before; !status && at < size; at += dataset->stride) {
        uint32_t label = 0;
        status = rt_dataset_label(dataset, path, (int64_t)((at - before) / dataset->stride),
                                  dataset->pixels[at + (size_t)labels - 1], 0, &label, error);
        if (!status) status = rt_dataset_add(dataset, NULL, label, error);
    }
    return status;
}

/* The pixels of an item follow `labels` bytes, the last of which is its label. */
static RaftStatus open_cifar(RaftDataset *dataset, const char *folder, const char *const *names,
                             int labels, RaftError *error)
{
    RaftStatus status = rt_dataset_enter(dataset, folder, error);
    dataset->channels = 3;
    dataset->height = dataset->width = SIDE;
    dataset->stride = (size_t)labels + 3 * SIDE * SIDE;
    for (int i = 0; !status && names[i]; i++)
        status = read_records(dataset, names[i], labels, error);
    /* So that item i begins with its pixels. */
    if (!status)
        memmove(dataset->pixels, dataset->pixels + labels,
                (size_t)dataset->count * dataset->stride - (size_t)labels);
    return status;
}

RaftStatus rt_open_cifar10(RaftDataset *dataset, bool training, RaftError *error)
{
    static const char *const train[] = {"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin",
                                        "data_batch_4.bin", "data_batch_5.bin", NULL};
    static const char *const test[] = {"test_batch.bin", NULL};
    return open_cifar(dataset, "cifar-10-batches-bin", training ? train : test, 1, error);
}

RaftStatus rt_open_cifar100(RaftDataset *dataset, bool training, RaftError *error)
{
    static const char *const train[] = {"train.bin", NULL}, *const test[] = {"test.bin", NULL};
    return open_cifar(dataset, "cifar-100-binary", training ? train : test, 2, error);
}

/* ---- IDX: 0, 0, type 8 (bytes), rank; extents, big-endian; the data ----------------------------- */

/* Reads a file of bytes of the given rank; the data follow the header in *bytes. */
static RaftStatus read_idx(const char *path, int rank, uint32_t *extent, uint8_t **bytes,
                           RaftError *error)
{
    size_t size = 0, header = 4 + 4 * (size_t)rank, wanted = header;
    struct stat file;
    if (stat(path, &file))
        return rt_fail(error, RAFT_IO, "%s: %s; expected is an IDX file of that name, or .gz", path,
                       strerror(errno));
    RaftStatus status = read_bytes(path, MOST_BYTES, bytes, &size, error);
    if (status) return status;
    if (size < header || memcmp(*bytes, "\0\0\10", 3) || (*bytes)[3] != rank)
        return rt_bad_file(error, path, 0, "not an IDX file of bytes with %d axes", rank);
    size_t elements = 1;
    for (int i = 0; i < rank; i++) {
        const uint8_t *b = *bytes + 4 + 4 * i;
        extent[i] = (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 | b[3];
        if (__builtin_mul_overflow(elements, extent[i], &elements)) elements = SIZE_MAX / 2;
    }
    wanted += elements < MOST_BYTES ? elements : MOST_BYTES;
    if (size != wanted)
        return rt_bad_file(error, path, size, "the extents ask for %zu bytes, the file has %zu",
                           wanted, size);
    memmove(*bytes, *bytes + header, size - header);
    return RAFT_OK;
}

static RaftStatus take_labels(RaftDataset *dataset, const char *path, uint32_t images,
                              RaftError *error)
{
    uint8_t *bytes = NULL;
    uint32_t count = 0;
    RaftStatus status = read_idx(path, 1, &count, &bytes, error);
    if (!status && count != images)
        status = rt_fail(error, RAFT_BAD_FILE, "%s: %u labels for %u images", path, count, images);
    for (uint32_t i = 0; !status && i < count; i++) {
        uint32_t label = 0;
        status = rt_dataset_label(dataset, path, i, bytes[i], 0, &label, error);
        if (!status) status = rt_dataset_add(dataset, NULL, label, error);
    }
    free(bytes);
    return status;
}

RaftStatus rt_open_idx(RaftDataset *dataset, bool training, RaftError *error)
{
    uint32_t extent[3] = {0};
    const char *images = plain_or_compressed(dataset, training ? "train-images-idx3-ubyte"
                                                               : "t10k-images-idx3-ubyte");
    const char *labels = plain_or_compressed(dataset, training ? "train-labels-idx1-ubyte"
                                                               : "t10k-labels-idx1-ubyte");
    if (!images || !labels) return rt_no_memory(error, dataset->root);
    RaftStatus status = read_idx(images, 3, extent, &dataset->pixels, error);
    if (status) return status;
    if (extent[1] < 1 || extent[2] < 1 || extent[1] > RT_MAX_SIDE || extent[2] > RT_MAX_SIDE)
        return rt_bad_file(error, images, 8, "images of %u x %u", extent[1], extent[2]);
    dataset->channels = 1;
    dataset->height = (int)extent[1];
    dataset->width = (int)extent[2];
    dataset->stride = (size_t)extent[1] * extent[2];
    return take_labels(dataset, labels, extent[0], error);
}
