/* test_loader.c: batches are the same for any number of threads and from any start; damaged files
 * are counted, skipped, and in the end refused.
 * usage: test_loader [--race]: with a planted race, for a build under ThreadSanitizer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime/rt.h"
#include "runtime/train/train.h"

enum { ITEMS = 53, CLASSES = 3, SIDE = 24, MOST_BATCHES = 64 };

static char root[] = "/tmp/test_loader.XXXXXX"; /* made and removed by main */
static RtFile picture;

static const char *path_of(const char *part, int item)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s/%d/%02d.jpg", root, part, item % CLASSES, item);
    return path;
}

static void put(const char *part, int item, size_t size)
{
    FILE *file = fopen(path_of(part, item), "wb");
    assert_non_null(file);
    fwrite(picture.data, 1, size, file);
    fclose(file);
}

static int make_pictures(void **state)
{
    (void)state;
    for (int i = 0; i < ITEMS; i++) {
        put("train", i, picture.size);
        put("val", i, picture.size);
    }
    return 0;
}

static RaftDataset *open_set(bool training)
{
    RaftDataset *dataset;
    RaftError error = {"no message"};
    if (raft_dataset_open("folder", root, training, CLASSES, &dataset, &error))
        fail_msg("%s", error.message);
    return dataset;
}

static RaftLoading loading_of(bool training, int threads)
{
    RaftLoading loading = {.channels = 3,
                           .batch = 8,
                           .training = training,
                           .seed = 42,
                           .threads = threads,
                           .ahead = 3,
                           .most_unreadable = 5};
    assert_true(raft_augmentation_of("folder", &loading.augmentation));
    loading.augmentation.height = loading.augmentation.width = SIDE;
    loading.augmentation.color_jitter = 0.4;
    loading.augmentation.cutout_p = 0.25;
    return loading;
}

typedef struct Epoch {
    int batches, images;
    uint64_t hash[MOST_BATCHES]; /* of images and labels, by the number of the batch */
    int64_t truncated, unreadable;
    int labels[CLASSES];
} Epoch;

static uint64_t hash_of(const RaftBatch *batch, size_t image_size)
{
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < (size_t)batch->count * image_size; i++)
        hash = (hash ^ batch->bytes[i]) * 1099511628211u;
    for (int i = 0; i < batch->count; i++) hash = (hash ^ batch->labels[i]) * 1099511628211u;
    return hash;
}

static RaftStatus read_epoch(const RaftDataset *dataset, const RaftLoading *loading, Epoch *epoch,
                             RaftError *error)
{
    RaftLoader *loader;
    RaftBatch batch;
    RaftStatus status = raft_loader_open(dataset, loading, &loader, error);
    *epoch = (Epoch){0};
    assert_int_equal(status, RAFT_OK);
    for (int64_t wanted = loading->first; !status; wanted++) {
        status = raft_loader_next(loader, &batch, error);
        assert_int_equal(batch.index, wanted);
        if (status || !batch.count) break;
        epoch->batches++;
        epoch->images += batch.count;
        epoch->hash[batch.index] = hash_of(&batch, (size_t)loading->channels * SIDE * SIDE);
        for (int i = 0; i < batch.count; i++) epoch->labels[batch.labels[i]]++;
    }
    epoch->truncated = batch.truncated;
    epoch->unreadable = batch.unreadable;
    raft_loader_close(loader);
    return status;
}

static Epoch read_good(const RaftDataset *dataset, const RaftLoading *loading)
{
    Epoch epoch;
    RaftError error = {"no message"};
    if (read_epoch(dataset, loading, &epoch, &error)) fail_msg("%s", error.message);
    return epoch;
}

static void test_threads(void **state)
{
    (void)state;
    for (int training = 0; training < 2; training++) {
        RaftDataset *dataset = open_set(training);
        RaftLoading loading = loading_of(training, 1);
        Epoch one = read_good(dataset, &loading);
        assert_int_equal(one.batches, training ? 6 : 7);
        assert_int_equal(one.images, training ? 48 : ITEMS);
        if (!training) assert_int_equal(one.labels[2], 17);
        for (int threads = 2; threads <= 7; threads++)
            for (int ahead = 2; ahead < 5; ahead++) {
                loading.threads = threads;
                loading.ahead = ahead;
                Epoch many = read_good(dataset, &loading);
                assert_memory_equal(&one, &many, sizeof one);
            }
        raft_dataset_close(dataset);
    }
}

static void test_resume(void **state)
{
    (void)state;
    RaftDataset *dataset = open_set(true);
    RaftLoading loading = loading_of(true, 3);
    Epoch whole = read_good(dataset, &loading);
    for (int first = 1; first <= whole.batches; first++) {
        loading.first = first;
        Epoch rest = read_good(dataset, &loading);
        assert_int_equal(rest.batches, whole.batches - first);
        for (int i = first; i < whole.batches; i++) assert_true(rest.hash[i] == whole.hash[i]);
    }
    raft_dataset_close(dataset);
}

/* The seed and the epoch change what comes; without training neither does. */
static void test_seeds(void **state)
{
    (void)state;
    for (int training = 0; training < 2; training++) {
        RaftDataset *dataset = open_set(training);
        RaftLoading loading = loading_of(training, 2);
        Epoch first = read_good(dataset, &loading);
        loading.seed++;
        Epoch second = read_good(dataset, &loading);
        loading.seed--;
        loading.epoch++;
        Epoch third = read_good(dataset, &loading);
        for (int i = 0; i < first.batches; i++) {
            assert_int_equal(first.hash[i] == second.hash[i], !training);
            assert_int_equal(first.hash[i] == third.hash[i], !training);
            assert_int_equal(second.hash[i] == third.hash[i], !training);
        }
        raft_dataset_close(dataset);
    }
}

static void test_grey(void **state)
{
    (void)state;
    RaftDataset *dataset = open_set(false);
    RaftLoading loading = loading_of(false, 2);
    RaftLoader *loaders[2];
    RaftBatch colour, grey;
    assert_int_equal(raft_loader_open(dataset, &loading, &loaders[0], NULL), RAFT_OK);
    loading.channels = 1;
    assert_int_equal(raft_loader_open(dataset, &loading, &loaders[1], NULL), RAFT_OK);
    assert_int_equal(raft_loader_next(loaders[0], &colour, NULL), RAFT_OK);
    assert_int_equal(raft_loader_next(loaders[1], &grey, NULL), RAFT_OK);
    assert_int_equal(grey.count, 8);
    for (int i = 0; i < 8 * SIDE * SIDE; i++) {
        const uint8_t *planes = colour.bytes + i / (SIDE * SIDE) * 3 * SIDE * SIDE;
        uint8_t rgb[3];
        for (int c = 0; c < 3; c++) rgb[c] = planes[(c * SIDE * SIDE) + i % (SIDE * SIDE)];
        assert_int_equal(grey.bytes[i], raft_colour_grey(rgb));
    }
    raft_loader_close(loaders[0]); /* in the middle of an epoch */
    raft_loader_close(loaders[1]);
    raft_dataset_close(dataset);
}

static void test_damaged(void **state)
{
    (void)state;
    for (int training = 0; training < 2; training++) {
        const char *part = training ? "train" : "val";
        RaftDataset *dataset = open_set(training);
        RaftLoading loading = loading_of(training, 3);
        loading.batch = 53;
        put(part, 7, picture.size - 60);
        for (int i = 20; i < 25; i++) put(part, i, i == 22 ? 0 : 10);
        Epoch epoch = read_good(dataset, &loading);
        assert_int_equal(epoch.unreadable, 5);
        assert_int_equal(epoch.images, training ? ITEMS : ITEMS - 5);
        assert_in_range(epoch.truncated, 1, training ? 6 : 1);
        loading.threads = 1;
        Epoch again = read_good(dataset, &loading);
        assert_memory_equal(&epoch, &again, sizeof epoch);

        RaftError error = {"no message"};
        unlink(path_of(part, 50));
        assert_int_equal(read_epoch(dataset, &loading, &epoch, &error), RAFT_BAD_FILE);
        static const char *const parts[] = {
            "6 pictures could not be read in this epoch, and 6 end it; the first:\n",
            "20.jpg: ", "22.jpg: ", "24.jpg: ", "50.jpg: cannot be opened: No such file"};
        for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
            if (!strstr(error.message, parts[i]))
                fail_msg("'%s' lacks '%s'", error.message, parts[i]);
        raft_dataset_close(dataset);
    }
}

/* Where nothing can be read it is said, whatever the limit. */
static void test_nothing_left(void **state)
{
    (void)state;
    for (int training = 0; training < 2; training++) {
        RaftDataset *dataset = open_set(training);
        RaftLoading loading = loading_of(training, 3);
        Epoch epoch;
        RaftError error = {"no message"};
        loading.most_unreadable = 1000000;
        for (int i = 0; i < ITEMS; i++) put(training ? "train" : "val", i, 3);
        assert_int_equal(read_epoch(dataset, &loading, &epoch, &error), RAFT_BAD_FILE);
        assert_non_null(strstr(error.message, "8 pictures could not be read"));
        raft_dataset_close(dataset);
    }
}

static int count_lines(const char *path)
{
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    int lines = 0;
    for (int c; (c = getc(file)) != EOF;) lines += c == '\n';
    fclose(file);
    return lines;
}

/* More than the message has room for are all in the file. */
static void test_list(void **state)
{
    (void)state;
    char list[300], lacking[300];
    snprintf(list, sizeof list, "%s/unreadable.txt", root);
    snprintf(lacking, sizeof lacking, "%s/no/unreadable.txt", root);
    for (int training = 0; training < 2; training++) {
        RaftDataset *dataset = open_set(training);
        RaftLoading loading = loading_of(training, 3);
        Epoch epoch;
        RaftError error = {"no message"};
        loading.batch = ITEMS;
        loading.list = list;
        loading.most_unreadable = 39;
        for (int i = 0; i < 40; i++) put(training ? "train" : "val", i, 3);
        assert_int_equal(read_epoch(dataset, &loading, &epoch, &error), RAFT_BAD_FILE);
        assert_non_null(strstr(error.message, "40 pictures could not be read"));
        assert_non_null(strstr(error.message, "unreadable.txt lists them; the first:\n"));
        assert_int_equal(count_lines(list), 40);
        unlink(list);
        loading.list = lacking;
        assert_int_equal(read_epoch(dataset, &loading, &epoch, &error), RAFT_BAD_FILE);
        assert_non_null(strstr(error.message, "the list of them was not written: "));
        raft_dataset_close(dataset);
    }
}

static void make_folders(void)
{
    char path[256];
    for (int part = 0; part < 2; part++) {
        snprintf(path, sizeof path, "%s/%s", root, part ? "train" : "val");
        mkdir(path, 0777);
        for (int i = 0; i < CLASSES; i++) {
            snprintf(path, sizeof path, "%s/%s/%d", root, part ? "train" : "val", i);
            mkdir(path, 0777);
        }
    }
}

static void remove_all(void)
{
    char path[256];
    for (int part = 0; part < 2; part++) {
        const char *name = part ? "train" : "val";
        for (int i = 0; i < ITEMS; i++) unlink(path_of(name, i));
        for (int i = 0; i < CLASSES; i++) {
            snprintf(path, sizeof path, "%s/%s/%d", root, name, i);
            rmdir(path);
        }
        snprintf(path, sizeof path, "%s/%s", root, name);
        rmdir(path);
    }
    rmdir(root);
}

/* Reads a batch that has been given back, while the threads make another in its place: a race, for
 * ThreadSanitizer to find. */
static void race(void **state)
{
    (void)state;
    RaftDataset *dataset = open_set(true);
    RaftLoading loading = loading_of(true, 2);
    RaftLoader *loader;
    RaftBatch given_back = {0}, batch;
    volatile uint64_t hash = 0; /* or nothing would be read */
    assert_int_equal(raft_loader_open(dataset, &loading, &loader, NULL), RAFT_OK);
    for (;;) {
        assert_int_equal(raft_loader_next(loader, &batch, NULL), RAFT_OK);
        for (int i = 0; given_back.count && i < 100; i++) /* long enough to meet a write */
            hash ^= hash_of(&given_back, (size_t)3 * SIDE * SIDE);
        if (!batch.count) break;
        given_back = batch;
    }
    raft_loader_close(loader);
    raft_dataset_close(dataset);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_threads, make_pictures),
        cmocka_unit_test_setup(test_resume, make_pictures),
        cmocka_unit_test_setup(test_seeds, make_pictures),
        cmocka_unit_test_setup(test_grey, make_pictures),
        cmocka_unit_test_setup(test_damaged, make_pictures),
        cmocka_unit_test_setup(test_nothing_left, make_pictures),
        cmocka_unit_test_setup(test_list, make_pictures),
    };
    if (!mkdtemp(root) || rt_file_map(TEST_DATA "/data/images/rgb420.jpg", &picture, NULL))
        return 1;
    make_folders();
    static const struct CMUnitTest planted[] = {cmocka_unit_test_setup(race, make_pictures)};
    bool races = argc == 2 && strcmp(argv[1], "--race") == 0;
    int failed = races ? cmocka_run_group_tests(planted, NULL, NULL)
                       : cmocka_run_group_tests(tests, NULL, NULL);
    remove_all();
    rt_file_unmap(&picture);
    return failed;
}
