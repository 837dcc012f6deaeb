/* test_dataset.c: tiny data sets in each layout that is read, whole and damaged.
 *
 * The .mat files are scipy's; data/sets/make_mat.py says what is in them. */
#define _XOPEN_SOURCE 700 /* nftw */
#define _DEFAULT_SOURCE
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <zlib.h>

#include "runtime/rt.h"
#include "runtime/train/train.h"

static char root[] = "/tmp/test_dataset.XXXXXX"; /* made by main; emptied before each test */

static int remove_entry(const char *path, const struct stat *status, int type, struct FTW *walk)
{
    (void)status;
    (void)type;
    return walk->level ? remove(path) : 0;
}

static int empty_root(void **state)
{
    (void)state;
    return nftw(root, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

static const char *in_root(const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", root, name);
    return path;
}

/* Writes a file below the root, and its folders. */
static void put(const char *name, const void *data, size_t size)
{
    char path[512];
    snprintf(path, sizeof path, "%s", in_root(name));
    for (char *p = path + strlen(root) + 1; (p = strchr(p, '/')); *p++ = '/') {
        *p = 0;
        mkdir(path, 0777);
    }
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, size, file), size);
    fclose(file);
}

static void put_copy(const char *name, const char *source)
{
    char path[512];
    RtFile file;
    RaftError error = {"no message"};
    snprintf(path, sizeof path, "%s/data/%s", TEST_DATA, source);
    if (rt_file_map(path, &file, &error)) fail_msg("%s", error.message);
    put(name, file.data, file.size);
    rt_file_unmap(&file);
}

static void put_picture(const char *name)
{
    put_copy(name, strstr(name, ".png") ? "images/rgb8.png" : "images/rgb420.jpg");
}

static RaftDataset *open_good(const char *name, bool training, int classes)
{
    RaftDataset *dataset;
    RaftError error = {"no message"};
    if (raft_dataset_open(name, root, training, classes, &dataset, &error))
        fail_msg("%s: %s", name, error.message);
    return dataset;
}

static void open_bad(const char *name, bool training, int classes, const char *part)
{
    RaftDataset *dataset;
    RaftError error = {"no message"};
    assert_int_not_equal(raft_dataset_open(name, root, training, classes, &dataset, &error),
                         RAFT_OK);
    assert_null(dataset);
    if (!strstr(error.message, part)) fail_msg("'%s' lacks '%s'", error.message, part);
    if (!strstr(error.message, root) && strcmp(name, "imagenet21k"))
        fail_msg("'%s' names no path", error.message);
}

/* Checks the items: "LABEL FILE" each, and that their pictures can be read. */
static void check(RaftDataset *dataset, const char *const *wanted)
{
    int64_t count = 0;
    for (; wanted[count]; count++) {
        char shown[600], buffer[512];
        RaftImage image;
        RaftError error = {"no message"};
        bool truncated = true;
        assert_true(count < raft_dataset_count(dataset));
        snprintf(shown, sizeof shown, "%u %s", raft_dataset_label(dataset, count),
                 raft_dataset_where(dataset, count, buffer) + sizeof root);
        assert_string_equal(shown, wanted[count]);
        if (raft_dataset_read(dataset, count, 0, &image, &truncated, &error))
            fail_msg("%s", error.message);
        assert_true(image.rgb && !truncated);
        raft_image_free(&image);
    }
    assert_int_equal(raft_dataset_count(dataset), count);
    raft_dataset_close(dataset);
}

/* ---- folders ----------------------------------------------------------------------------------- */

static void test_folders(void **state)
{
    (void)state;
    static const char *const train[] = {"0 train/n01/a.JPEG",     "0 train/n01/b.png",
                                        "1 train/n02/more/c.jpg", "1 train/n02/z.Jpg",
                                        "2 train/n10/a.jpg",      NULL};
    static const char *const val[] = {"0 val/n01/x.jpg", "2 val/n10/y.jpg", NULL};
    for (int i = 0; train[i]; i++) put_picture(train[i] + 2);
    for (int i = 0; val[i]; i++) put_picture(val[i] + 2);
    put("train/n01/readme.txt", "", 0);
    put("train/classes.txt", "", 0);
    put("train/n01/.hidden.jpg", "", 0);
    check(open_good("imagenet", true, 3), train);
    check(open_good("folder", false, 3), val);

    open_bad("imagenet", true, 1000, "train: holds 3 folders, one a class; the model has 1000");
    put_picture("val/n11/y.jpg");
    open_bad("folder", false, 3, "val/n11: there is no class 'n11' in");
    put("train/n12/y.txt", "", 0);
    open_bad("folder", true, 4, "train/n12: holds no .jpg, .jpeg or .png file");
}

static void test_missing(void **state)
{
    (void)state;
    RaftDataset *dataset;
    RaftError error;
    open_bad("imagenet", true, 3, "train: is not there; expected are a folder 'train' with");
    open_bad("cifar10", true, 10, "data_batch_1.bin: No such file");
    open_bad("cifar100", false, 100, "test.bin: No such file");
    open_bad("fashion_mnist", true, 10, "train-images-idx3-ubyte: No such file");
    open_bad("flowers102", true, 102, "setid.mat: cannot be opened: No such file");
    open_bad("cars", true, 196, "devkit/cars_train_annos.mat: cannot be opened");
    open_bad("cars", false, 196, "devkit/cars_test_annos_withlabels.mat: cannot be opened");
    open_bad("inat18", true, 8142, "train2018.json: ");
    open_bad("inat19", false, 1010, "val2019.json: ");
    open_bad("imagenet21k", true, 3, "no data set is called 'imagenet21k'");
    assert_int_equal(raft_dataset_open("folder", in_root("none"), true, 3, &dataset, &error),
                     RAFT_IO);
    assert_non_null(strstr(error.message, "none: is not a folder (data_path"));
    put_picture("train/n01/a.jpg");
    open_bad("folder", false, 1, "val: No such file");
}

/* Damaged pictures are found when they are read. */
static void test_damaged_pictures(void **state)
{
    (void)state;
    RtFile file;
    RaftImage image;
    RaftError error = {"no message"};
    bool truncated = false;
    assert_int_equal(rt_file_map(TEST_DATA "/data/images/rgb420.jpg", &file, &error), RAFT_OK);
    put("train/n01/a.jpg", file.data, file.size - 50);
    rt_file_unmap(&file);
    put("train/n01/b.jpg", "none", 4);
    put_picture("train/n01/c.jpg");
    RaftDataset *dataset = open_good("folder", true, 1);
    unlink(in_root("train/n01/c.jpg"));
    assert_int_equal(raft_dataset_read(dataset, 0, 0, &image, &truncated, &error), RAFT_OK);
    assert_true(truncated && image.rgb);
    raft_image_free(&image);
    assert_int_equal(raft_dataset_read(dataset, 1, 0, &image, &truncated, &error), RAFT_BAD_FILE);
    assert_int_equal(raft_dataset_read(dataset, 2, 0, &image, &truncated, &error), RAFT_IO);
    assert_null(image.rgb);
    raft_dataset_close(dataset);
}

/* ---- CIFAR and IDX ----------------------------------------------------------------------------- */

static uint8_t pixel(int item, int c, int y, int x)
{
    return (uint8_t)(7 * item + 90 * c + 3 * y + 5 * x);
}

static size_t make_record(uint8_t *out, int labels, int label, int item)
{
    size_t size = 0;
    for (int i = 0; i < labels; i++) out[size++] = (uint8_t)(i == labels - 1 ? label : 77);
    for (int c = 0; c < 3; c++)
        for (int y = 0; y < 32; y++)
            for (int x = 0; x < 32; x++) out[size++] = pixel(item, c, y, x);
    return size;
}

static void check_pixels(RaftDataset *dataset, int64_t count, int side, bool grey)
{
    assert_int_equal(raft_dataset_count(dataset), count);
    for (int item = 0; item < count; item++) {
        RaftImage image;
        bool truncated = true;
        assert_int_equal(raft_dataset_label(dataset, item), item % 10);
        assert_int_equal(raft_dataset_read(dataset, item, 0, &image, &truncated, NULL), RAFT_OK);
        assert_true(image.width == side && image.height == side && !truncated);
        for (int i = 0; i < side * side * 3; i++)
            assert_int_equal(image.rgb[i],
                             pixel(item, grey ? 0 : i % 3, i / 3 / side, i / 3 % side));
        raft_image_free(&image);
    }
    raft_dataset_close(dataset);
}

static void test_cifar(void **state)
{
    (void)state;
    uint8_t bytes[4 * 3074];
    char name[64], buffer[512];
    for (int batch = 0; batch < 5; batch++) {
        size_t size = make_record(bytes, 1, 2 * batch, 2 * batch);
        size += make_record(bytes + size, 1, 2 * batch + 1, 2 * batch + 1);
        snprintf(name, sizeof name, "cifar-10-batches-bin/data_batch_%d.bin", batch + 1);
        put(name, bytes, size);
        put(strchr(name, '/') + 1, bytes, size); /* not looked at: the folder goes first */
    }
    put("test_batch.bin", bytes, make_record(bytes, 1, 0, 0));
    check_pixels(open_good("cifar10", true, 10), 10, 32, false);
    open_bad("cifar10", false, 10, "cifar-10-batches-bin/test_batch.bin: No such file");
    put("cifar-10-batches-bin/test_batch.bin", bytes, make_record(bytes, 1, 0, 0));
    RaftDataset *dataset = open_good("cifar10", false, 10);
    assert_non_null(strstr(raft_dataset_where(dataset, 0, buffer), "item 0 of /tmp/"));
    check_pixels(dataset, 1, 32, false);

    put("cifar-10-batches-bin/data_batch_3.bin", bytes, 3000);
    open_bad("cifar10", true, 10, "data_batch_3.bin: 3000 bytes; expected are records of 3073");
    put("cifar-10-batches-bin/data_batch_3.bin", bytes, 0);
    open_bad("cifar10", true, 10, "data_batch_3.bin: 0 bytes");
    put("cifar-10-batches-bin/test_batch.bin", bytes, make_record(bytes, 1, 10, 0));
    open_bad("cifar10", false, 10,
             "test_batch.bin: label 0 is 10; the model's 10 classes make it a whole number from 0 "
             "to 9 (num_classes in the settings)");

    size_t size = make_record(bytes, 2, 0, 0);
    size += make_record(bytes + size, 2, 1, 1);
    put("train.bin", bytes, size);
    put("test.bin", bytes, size);
    check_pixels(open_good("cifar100", true, 100), 2, 32, false);
    check_pixels(open_good("cifar100", false, 100), 2, 32, false);
}

static size_t make_idx(uint8_t *bytes, int rank, int count, int side)
{
    size_t size = 0;
    uint8_t header[16] = {0, 0, 8, (uint8_t)rank, 0, 0, 0, (uint8_t)count,
                          0, 0, 0, (uint8_t)side, 0, 0, 0, (uint8_t)side};
    size = 4 + 4 * (size_t)rank;
    memcpy(bytes, header, size);
    for (int i = 0; i < count; i++)
        if (rank == 1)
            bytes[size++] = (uint8_t)(i % 10);
        else
            for (int k = 0; k < side * side; k++) bytes[size++] = pixel(i, 0, k / side, k % side);
    return size;
}

static void put_compressed(const char *name, const uint8_t *bytes, size_t size)
{
    gzFile file = gzopen(in_root(name), "wb");
    assert_non_null(file);
    assert_int_equal(gzwrite(file, bytes, (unsigned)size), size);
    gzclose(file);
}

static void test_idx(void **state)
{
    (void)state;
    uint8_t bytes[20000];
    put("train-images-idx3-ubyte", bytes, make_idx(bytes, 3, 12, 28));
    put("train-labels-idx1-ubyte", bytes, make_idx(bytes, 1, 12, 0));
    check_pixels(open_good("fashion_mnist", true, 10), 12, 28, true);
    put_compressed("t10k-images-idx3-ubyte.gz", bytes, make_idx(bytes, 3, 5, 28));
    put_compressed("t10k-labels-idx1-ubyte.gz", bytes, make_idx(bytes, 1, 5, 0));
    check_pixels(open_good("fashion_mnist", false, 10), 5, 28, true);

    open_bad("fashion_mnist", true, 9, "train-labels-idx1-ubyte: label 9 is 9; the model's 9 cl");
    put("train-labels-idx1-ubyte", bytes, make_idx(bytes, 1, 11, 0));
    open_bad("fashion_mnist", true, 10, "11 labels for 12 images");
    put("train-images-idx3-ubyte", bytes, make_idx(bytes, 3, 12, 28) - 1);
    open_bad("fashion_mnist", true, 10, "the extents ask for 9424 bytes, the file has 9423");
    put("train-images-idx3-ubyte", bytes, make_idx(bytes, 1, 12, 28));
    open_bad("fashion_mnist", true, 10, "byte 0: not an IDX file of bytes with 3 axes");
    memset(bytes, 0xff, 16);
    memcpy(bytes, "\0\0\10\3", 4);
    put("train-images-idx3-ubyte", bytes, 16);
    open_bad("fashion_mnist", true, 10, "the extents ask for 1073741840 bytes, the file has 16");
    size_t size = make_idx(bytes, 3, 5, 28);
    put_compressed("t10k-images-idx3-ubyte.gz", bytes, size);
    assert_int_equal(truncate(in_root("t10k-images-idx3-ubyte.gz"), 100), 0);
    open_bad("fashion_mnist", false, 10, "t10k-images-idx3-ubyte.gz: ");
}

/* The data set that a Debian package brings, where it is installed. */
static void test_fashion_mnist(void **state)
{
    (void)state;
    static const char path[] = "/usr/share/datasets/fashion-mnist";
    if (access(path, R_OK)) skip();
    for (int training = 0; training < 2; training++) {
        RaftDataset *dataset;
        int histogram[10] = {0};
        assert_int_equal(raft_dataset_open("fashion_mnist", path, training, 10, &dataset, NULL),
                         RAFT_OK);
        assert_int_equal(raft_dataset_count(dataset), training ? 60000 : 10000);
        for (int64_t i = 0; i < raft_dataset_count(dataset); i++)
            histogram[raft_dataset_label(dataset, i)]++;
        for (int k = 0; k < 10; k++) assert_int_equal(histogram[k], training ? 6000 : 1000);
        raft_dataset_close(dataset);
    }
}

/* ---- lists ------------------------------------------------------------------------------------- */

static void test_flowers(void **state)
{
    (void)state;
    static const char *const train[] = {"0 flowers-102/jpg/image_00006.jpg",
                                        "1 flowers-102/jpg/image_00003.jpg",
                                        "1 flowers-102/jpg/image_00004.jpg", NULL};
    static const char *const val[] = {"2 flowers-102/jpg/image_00005.jpg",
                                      "0 flowers-102/jpg/image_00002.jpg", NULL};
    char name[64];
    put_copy("flowers-102/setid.mat", "sets/setid.mat");
    open_bad("flowers102", true, 3, "flowers-102/imagelabels.mat: cannot be opened");
    put_copy("flowers-102/imagelabels.mat", "sets/imagelabels.mat");
    open_bad("flowers102", true, 3, "image_00006.jpg: is missing or cannot be read (3 of 3 files");
    for (int i = 2; i <= 6; i++) {
        snprintf(name, sizeof name, "flowers-102/jpg/image_%05d.jpg", i);
        put_picture(name);
    }
    check(open_good("flowers102", true, 3), train);
    check(open_good("flowers102", false, 3), val);
    open_bad("flowers102", false, 2,
             "setid.mat: label 5 is 3; the model's 2 classes make it a "
             "whole number from 1 to 2");
    put_copy("flowers-102/setid.mat", "sets/setid_outside.mat");
    open_bad("flowers102", false, 3,
             "setid.mat: entry 1 is not the number of one of the 6 labelle");
    open_bad("flowers102", true, 3, "setid.mat: 'tstid' is not a list of at most 16777216 elem");
    put_copy("flowers-102/setid.mat", "sets/imagelabels.mat");
    open_bad("flowers102", true, 3, "setid.mat: there is no variable 'tstid'");
    put("flowers-102/setid.mat", "MATLAB 7.3 MAT-file", 20);
    open_bad("flowers102", true, 3, "setid.mat: byte 0: not a file of MATLAB 5");
}

static void test_cars(void **state)
{
    (void)state;
    static const char *const train[] = {"1 cars_train/00001.jpg", "0 cars_train/00002.jpg",
                                        "2 cars_train/00003.jpg", NULL};
    static const char *const test[] = {"2 cars_test/00001.jpg", "2 cars_test/00002.jpg", NULL};
    for (int i = 0; train[i]; i++) put_picture(train[i] + 2);
    for (int i = 0; test[i]; i++) put_picture(test[i] + 2);
    put_copy("devkit/cars_train_annos.mat", "sets/cars_train_annos.mat");
    put_copy("devkit/cars_test_annos_withlabels.mat", "sets/cars_test_annos_withlabels.mat");
    check(open_good("cars", true, 3), train);
    check(open_good("cars", false, 3), test);
    put_copy("cars_test_annos_withlabels.mat", "sets/cars_train_annos.mat");
    open_bad("cars", false, 3, "cars_test/00003.jpg: is missing or cannot be read (1 of 3 files");
    open_bad("cars", true, 2, "cars_train_annos.mat: label 2 is 3; the model's 2 classes");
    put_copy("devkit/cars_train_annos.mat", "sets/cars_unlabelled.mat");
    open_bad("cars", true, 3, "annotation 0 has no number 'class' and file name 'fname'");
    put_copy("devkit/cars_train_annos.mat", "sets/cars_outside.mat");
    open_bad("cars", true, 3, "annotation 0 has no number 'class' and file name 'fname'");
    put_copy("devkit/cars_train_annos.mat", "sets/setid.mat");
    open_bad("cars", true, 3, "there is no variable 'annotations'");
}

/* A list that ends too early is refused, or gives what comes before the end. */
static void test_truncated_mat(void **state)
{
    (void)state;
    static const char *const files[] = {"cars_train_annos.mat", "setid.mat"};
    for (int k = 0; k < 2; k++) {
        char path[512];
        RtFile file;
        int opened = 0;
        snprintf(path, sizeof path, "%s/data/sets/%s", TEST_DATA, files[k]);
        assert_int_equal(rt_file_map(path, &file, NULL), RAFT_OK);
        put_copy("imagelabels.mat", "sets/imagelabels.mat");
        for (size_t size = 0; size < file.size; size++) {
            RaftDataset *dataset;
            put(k ? "setid.mat" : "devkit/cars_train_annos.mat", file.data, size);
            opened += !raft_dataset_open(k ? "flowers102" : "cars", root, true, 3, &dataset, NULL);
            raft_dataset_close(dataset);
        }
        assert_int_equal(opened, 0); /* the pictures are not there */
        rt_file_unmap(&file);
    }
}

static void put_json(const char *name, const char *text)
{
    char json[1024];
    snprintf(json, sizeof json, "%s", text);
    for (char *p = json; *p; p++)
        if (*p == '\'') *p = '"';
    put(name, json, strlen(json));
}

static void test_inat(void **state)
{
    (void)state;
    static const char *const train[] = {"2 train_val2018/Aves/7/b.jpg",
                                        "0 train_val2018/Aves/5/a.jpg", NULL};
    static const char *const val[] = {"1 train_val2019/Aves/5/a.jpg", NULL};
    static const struct {
        const char *json, *message;
    } bad[] = {
        {"{'images':[],'annotations':[]}", "holds nothing to train on"},
        {"{'images':[]}", "train2018.json: has no arrays 'images' and 'annotations'"},
        {"{'images':[\n 3 4]}", "train2018.json:2:4: "},
        {"{'images':[{'id':1,'file_name':'/etc/x.jpg'}],'annotations':[]}", "image 0 has no"},
        {"{'images':[{'id':1,'file_name':'a/../../x.jpg'}],'annotations':[]}", "image 0 has no"},
        {"{'images':[{'id':1,'file_name':'..'}],'annotations':[]}", "image 0 has no"},
        {"{'images':[{'id':'1','file_name':'a'}],'annotations':[]}", "image 0 has no"},
        {"{'images':[3],'annotations':[]}", "image 0 has no"},
        {"{'images':[{'id':1,'file_name':'a'}],'annotations':[{'image_id':2,'category_id':0}]}",
         "annotation 0 has no"},
        {"{'images':[{'id':1,'file_name':'a'}],'annotations':[{'image_id':1}]}",
         "annotation 0 has no"},
        {"{'images':[{'id':1,'file_name':'a'}],'annotations':[{'image_id':1,'category_id':3}]}",
         "label 0 is 3; the model's 3 classes make it a whole number from 0 to 2"},
        {"{'images':[{'id':1,'file_name':'a'}],'annotations':[{'image_id':1,'category_id':2}]}",
         "/a: is missing or cannot be read (1 of 1 files"},
    };
    for (int i = 0; train[i]; i++) put_picture(train[i] + 2);
    for (int i = 0; val[i]; i++) put_picture(val[i] + 2);
    put_json("train2018.json",
             "{'info':{},'images':[{'id':9,'file_name':'train_val2018/Aves/5/a.jpg','width':3},"
             "{'id':2,'file_name':'train_val2018/Aves/7/b.jpg'}],'annotations':"
             "[{'id':1,'image_id':2,'category_id':2},{'id':2,'image_id':9,'category_id':0}]}");
    put_json("val2019.json", "{'images':[{'id':268243,'file_name':'train_val2019/Aves/5/a.jpg'}],"
                             "'annotations':[{'image_id':268243,'category_id':1}]}");
    check(open_good("inat18", true, 3), train);
    check(open_good("inat19", false, 2), val);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        put_json("train2018.json", bad[i].json);
        open_bad("inat18", true, 3, bad[i].message);
    }
}

/* Prints why the data set in `folder` cannot be opened. */
static int tell_flowers(const char *folder)
{
    RaftError error = {"no message"};
    RaftDataset *dataset;
    return raft_dataset_open("flowers102", folder, true, 3, &dataset, &error) ? !puts(error.message)
                                                                              : 1;
}

/* In a process that finds an empty file in the place of the library. */
static void test_without_matio(void **state)
{
    (void)state;
    char self[512] = "", command[2048], told[512] = "";
    put("libmatio.so.11", "", 0);
    put_copy("flowers-102/setid.mat", "sets/setid.mat");
    assert_true(readlink("/proc/self/exe", self, sizeof self - 1) > 0);
    snprintf(command, sizeof command, "LD_LIBRARY_PATH=%s '%s' %s", root, self, root);
    FILE *process = popen(command, "r");
    assert_non_null(process);
    assert_non_null(fgets(told, sizeof told, process));
    assert_int_equal(pclose(process), 0);
    assert_non_null(
        strstr(told, "setid.mat: needs libmatio (Debian's libmatio11), which cannot be opened: "));
    assert_non_null(strstr(told, "file too short"));
}

int main(int argc, char **argv)
{
    if (argc > 1) return tell_flowers(argv[1]);
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_folders, empty_root),
        cmocka_unit_test_setup(test_missing, empty_root),
        cmocka_unit_test_setup(test_damaged_pictures, empty_root),
        cmocka_unit_test_setup(test_cifar, empty_root),
        cmocka_unit_test_setup(test_idx, empty_root),
        cmocka_unit_test(test_fashion_mnist),
        cmocka_unit_test_setup(test_flowers, empty_root),
        cmocka_unit_test_setup(test_without_matio, empty_root),
        cmocka_unit_test_setup(test_cars, empty_root),
        cmocka_unit_test_setup(test_truncated_mat, empty_root),
        cmocka_unit_test_setup(test_inat, empty_root),
    };
    if (!mkdtemp(root)) return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    empty_root(NULL);
    rmdir(root);
    return failed;
}
