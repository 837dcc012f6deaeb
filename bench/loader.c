/* loader.c: how fast pictures are loaded for training, beside libjpeg-turbo's own decoding of the same files
 * by as many threads.
 * usage: loader_rate [--threads N] PICTURE.jpg... */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <jpeglib.h>

#include "runtime/rt.h"
#include "runtime/train/train.h"

enum { SIDE = 224, BATCH = 32, BATCHES = 16, ROUNDS = 5 };
enum { IMAGES = BATCH * BATCHES };

static char folder[] = "/tmp/loader_rate.XXXXXX";
static int file_count, threads = 2;
static RtFile *files;

/* Seconds by the clock, and of processors: on a busy machine, the latter tell more. */
typedef struct Time {
    double wall, cpu;
} Time;

static double read_clock(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static Time now(void)
{
    return (Time){read_clock(CLOCK_MONOTONIC), read_clock(CLOCK_PROCESS_CPUTIME_ID)};
}

static Time since(Time start)
{
    Time end = now();
    return (Time){end.wall - start.wall, end.cpu - start.cpu};
}

static Time least(Time a, Time b)
{
    return (Time){a.wall < b.wall ? a.wall : b.wall, a.cpu < b.cpu ? a.cpu : b.cpu};
}

static void fail(const char *message)
{
    fprintf(stderr, "loader_rate: %s\n", message);
    exit(1);
}

/* ---- libjpeg-turbo alone ------------------------------------------------------------------------ */

static void decode(const RtFile *file)
{
    struct jpeg_error_mgr errors;
    struct jpeg_decompress_struct jpeg = {.err = jpeg_std_error(&errors)};
    jpeg_create_decompress(&jpeg);
    jpeg_mem_src(&jpeg, file->data, file->size);
    jpeg_read_header(&jpeg, TRUE);
    jpeg.out_color_space = JCS_RGB;
    jpeg_start_decompress(&jpeg);
    size_t row = (size_t)jpeg.output_width * 3;
    uint8_t *pixels = malloc(row * jpeg.output_height);
    if (!pixels) fail("out of memory");
    while (jpeg.output_scanline < jpeg.output_height) {
        uint8_t *line = pixels + row * jpeg.output_scanline;
        jpeg_read_scanlines(&jpeg, &line, 1);
    }
    jpeg_finish_decompress(&jpeg);
    jpeg_destroy_decompress(&jpeg);
    free(pixels);
}

static void *decode_share(void *argument)
{
    for (int i = *(int *)argument; i < IMAGES; i += threads) decode(&files[i % file_count]);
    return NULL;
}

static Time time_decoding(void)
{
    pthread_t thread[256];
    int share[256];
    Time start = now();
    for (int i = 0; i < threads; i++) {
        share[i] = i;
        if (pthread_create(&thread[i], NULL, decode_share, &share[i])) fail("no threads");
    }
    for (int i = 0; i < threads; i++) pthread_join(thread[i], NULL);
    return since(start);
}

/* ---- the loader --------------------------------------------------------------------------------- */

static Time time_loading(const RaftDataset *dataset, uint32_t epoch)
{
    RaftLoading loading = {.channels = 3,
                           .batch = BATCH,
                           .training = true,
                           .seed = 42,
                           .epoch = epoch,
                           .threads = threads,
                           .ahead = 4,
                           .most_unreadable = 0};
    RaftLoader *loader;
    RaftBatch batch;
    RaftError error;
    raft_augmentation_of("folder", &loading.augmentation);
    loading.augmentation.height = loading.augmentation.width = SIDE;
    loading.augmentation.color_jitter = 0.4;
    Time start = now();
    if (raft_loader_open(dataset, &loading, &loader, &error)) fail(error.message);
    do
        if (raft_loader_next(loader, &batch, &error)) fail(error.message);
    while (batch.count);
    raft_loader_close(loader);
    return since(start);
}

/* ---- files -------------------------------------------------------------------------------------- */

static const char *link_of(int i)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/train/class/%04d.jpg", folder, i);
    return path;
}

static RaftDataset *make_set(char **pictures)
{
    char path[256];
    RaftDataset *dataset;
    RaftError error;
    if (!mkdtemp(folder)) fail("no temporary folder");
    snprintf(path, sizeof path, "%s/train", folder);
    mkdir(path, 0700);
    snprintf(path, sizeof path, "%s/train/class", folder);
    mkdir(path, 0700);
    for (int i = 0; i < IMAGES; i++)
        if (symlink(realpath(pictures[i % file_count], NULL), link_of(i))) fail("no links");
    if (raft_dataset_open("folder", folder, true, 1, &dataset, &error)) fail(error.message);
    return dataset;
}

static void remove_set(RaftDataset *dataset)
{
    char path[256];
    raft_dataset_close(dataset);
    for (int i = 0; i < IMAGES; i++) unlink(link_of(i));
    snprintf(path, sizeof path, "%s/train/class", folder);
    rmdir(path);
    snprintf(path, sizeof path, "%s/train", folder);
    rmdir(path);
    rmdir(folder);
}

int main(int argc, char **argv)
{
    char **pictures = argv + 1;
    if (argc > 2 && strcmp(argv[1], "--threads") == 0) {
        threads = atoi(argv[2]);
        pictures += 2;
    }
    file_count = (int)(argv + argc - pictures);
    if (file_count < 1 || threads < 1 || threads > 256)
        fail("usage: loader_rate [--threads N] PICTURE.jpg...");
    files = calloc((size_t)file_count, sizeof *files);
    for (int i = 0; files && i < file_count; i++)
        if (rt_file_map(pictures[i], &files[i], NULL)) fail(pictures[i]);
    RaftDataset *dataset = make_set(pictures);
    Time decoding = {1e9, 1e9}, loading = {1e9, 1e9};
    for (int i = 0; i < ROUNDS; i++) { /* in turns: the machine may be busy */
        decoding = least(decoding, time_decoding());
        loading = least(loading, time_loading(dataset, (uint32_t)i));
    }
    remove_set(dataset);
    printf("%d files, %d threads, best of %d rounds of %d pictures\n", file_count, threads, ROUNDS,
           IMAGES);
    printf("  libjpeg-turbo decodes %8.1f pictures/s, in %.3f ms of a processor each\n",
           IMAGES / decoding.wall, 1e3 * decoding.cpu / IMAGES);
    printf("  the loader makes      %8.1f pictures/s, in %.3f ms, of %d x %d, augmented\n",
           IMAGES / loading.wall, 1e3 * loading.cpu / IMAGES, SIDE, SIDE);
    printf("  its share of the rate of decoding: %.0f %% by the clock, %.0f %% by the processors\n",
           100 * decoding.wall / loading.wall, 100 * decoding.cpu / loading.cpu);
    for (int i = 0; i < file_count; i++) rt_file_unmap(&files[i]);
    free(files);
    return 0;
}
