/* test_weights.c: the fill rule, safetensors files, conversions, matching with a model. */
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime/rt.h"

#define TINY   TEST_DATA "/data/goldens/tiny.safetensors"
#define DTYPES TEST_DATA "/data/weights/dtypes.safetensors"

static char folder[] = "/tmp/test_weights.XXXXXX"; /* made and removed by main */

static const char *in_folder(const char *name)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void assert_message(const RaftError *error, const char *part)
{
    if (!strstr(error->message, part)) fail_msg("'%s' lacks '%s'", error->message, part);
}

static RaftWeights *open_good(const char *path)
{
    RaftError error = {"no message"};
    RaftWeights *weights = NULL;
    if (raft_weights_open(path, &weights, &error)) fail_msg("%s", error.message);
    return weights;
}

static const RaftTensor *tensor_of(const RaftWeights *weights, const char *name)
{
    const RaftTensor *tensor = raft_weights_find(weights, name);
    if (!tensor) fail_msg("no tensor '%s'", name);
    return tensor;
}

/* ---- fill ------------------------------------------------------------------------------------ */

static void test_fill_parameters(void **state)
{
    (void)state;
    RaftWeights *weights = open_good(TINY);
    assert_int_equal(raft_weights_count(weights), 62);
    for (int i = 0; i < raft_weights_count(weights); i++) {
        const RaftTensor *tensor = raft_weights_tensor(weights, i);
        float *filled = malloc((size_t)tensor->elements * sizeof *filled);
        raft_fill_parameter(tensor->name, tensor->rank, tensor->shape, filled);
        assert_memory_equal(filled, tensor->data, (size_t)tensor->elements * sizeof *filled);
        free(filled);
    }
    raft_weights_close(weights);
}

static void test_fill_input_and_labels(void **state)
{
    (void)state;
    RaftWeights *golden = open_good(TEST_DATA "/data/goldens/forward-tiny.safetensors");
    const RaftTensor *dark = tensor_of(golden, "dark.input"); /* the input times 0.01 */
    float *input = malloc((size_t)dark->elements * sizeof *input);
    raft_fill_input(dark->elements, input);
    for (int64_t i = 0; i < dark->elements; i++) input[i] *= 0.01f;
    assert_memory_equal(input, dark->data, (size_t)dark->elements * sizeof *input);
    free(input);
    raft_weights_close(golden);

    static const uint32_t wanted[] = {5, 5, 2, 3}; /* of the golden training runs */
    uint32_t labels[4];
    raft_fill_labels(4, 10, labels);
    assert_memory_equal(labels, wanted, sizeof wanted);
}

/* ---- safetensors: reading -------------------------------------------------------------------- */

/* A file of the given header, ' standing for ", and `data_size` bytes of data. */
static size_t make_file(const char *header, size_t data_size, uint8_t *file)
{
    size_t length = strlen(header);
    for (int i = 0; i < 8; i++) file[i] = (uint8_t)(length >> 8 * i);
    for (size_t i = 0; i < length; i++) file[8 + i] = header[i] == '\'' ? '"' : (uint8_t)header[i];
    memset(file + 8 + length, 0, data_size);
    return 8 + length + data_size;
}

static RaftStatus parse(const uint8_t *data, size_t size, RaftError *error)
{
    RaftWeights *weights;
    uint8_t *exact = malloc(size); /* so that the sanitizer sees a read past the end */
    memcpy(exact, data, size);
    RaftStatus status = rt_weights_parse("x", exact, size, &weights, error);
    raft_weights_close(weights);
    free(exact);
    return status;
}

/* clang-format off */
static const struct {
    const char *header;
    size_t data_size;
    const char *message; /* NULL: the file is good */
} headers[] = {
    {"{}", 0, NULL},
    {"{}   ", 0, NULL},
    {"{'a':{'dtype':'F32','shape':[2],'data_offsets':[0,8]}}", 8, NULL},
    {"{'a':{'dtype':'F32','shape':[],'data_offsets':[0,4]}}", 4, NULL},
    {"{'a':{'dtype':'F32','shape':[0,9],'data_offsets':[0,0]}}", 0, NULL},
    {"{'b':{'dtype':'U8','shape':[1],'data_offsets':[1,2]},"
      "'e':{'dtype':'U8','shape':[0],'data_offsets':[1,1]},"
      "'a':{'dtype':'U8','shape':[1],'data_offsets':[0,1]}}", 2, NULL},
    {"{'__metadata__':{'k':'v'}}", 0, NULL},
    {"", 0, "byte 8: the header must begin with '{'"},
    {" {}", 0, "byte 8: the header must begin with '{'"},
    {"[]", 0, "byte 8: the header must begin with '{'"},
    {"{", 0, "byte 9: the header:"},
    {"{}x", 0, "byte 11: the header:"},
    {"{'a':{},'a':{}}", 0, "duplicate"},
    {"{'a':{'dtype':'F32','dtype':'F32','shape':[],'data_offsets':[0,4]}}", 4, "duplicate"},
    {"{'\xff':{}}", 0, "decode byte 0xff"},
    {"{'a\\u0000b':{}}", 0, "byte"},
    {"{'__metadata__':[]}", 0, "byte 9: __metadata__ must be an object"},
    {"{'__metadata__':{'k':1}}", 0, "byte 9: __metadata__ must be an object"},
    {"{'a':3}", 0, "byte 9: tensor 'a': needs"},
    {"{'a':{'shape':[],'data_offsets':[0,4]}}", 4, "tensor 'a': needs"},
    {"{'a':{'dtype':'F32','data_offsets':[0,4]}}", 4, "tensor 'a': needs"},
    {"{'a':{'dtype':'F32','shape':[]}}", 4, "tensor 'a': needs"},
    {"{'a':{'dtype':'F33','shape':[],'data_offsets':[0,4]}}", 4, "unknown dtype"},
    {"{'a':{'dtype':'F32','shape':[1,1,1,1,1,1,1,1,1],'data_offsets':[0,4]}}", 4, "8 axes"},
    {"{'a':{'dtype':'F32','shape':[-1],'data_offsets':[0,4]}}", 4, "whole number"},
    {"{'a':{'dtype':'F32','shape':[1.0],'data_offsets':[0,4]}}", 4, "whole number"},
    {"{'a':{'dtype':'F32','shape':['1'],'data_offsets':[0,4]}}", 4, "whole number"},
    {"{'a':{'dtype':'F32','shape':[99999999999999999999],'data_offsets':[0,4]}}", 4, "too big"},
    {"{'a':{'dtype':'F32','shape':[1],'data_offsets':[0]}}", 4, "begin and end"},
    {"{'a':{'dtype':'F32','shape':[1],'data_offsets':[-4,0]}}", 4, "begin and end"},
    {"{'a':{'dtype':'F32','shape':[1],'data_offsets':[4,0]}}", 4, "must run forwards, within the data"},
    {"{'a':{'dtype':'F32','shape':[1],'data_offsets':[0,4]}}", 3, "must run forwards, within the data"},
    {"{'a':{'dtype':'F32','shape':[2],'data_offsets':[0,4]}}", 4, "do not fit the size"},
    /* 2^62 + 1 elements of 4 bytes, 2^62 x 4 and 2^31 x 2^33: each product wraps to the size */
    {"{'a':{'dtype':'F32','shape':[4611686018427387905],'data_offsets':[0,4]}}", 4, "do not fit"},
    {"{'a':{'dtype':'U8','shape':[4611686018427387904,4],'data_offsets':[0,0]}}", 0, "do not fit"},
    {"{'a':{'dtype':'U8','shape':[2147483648,8589934592],'data_offsets':[0,0]}}", 0, "do not fit"},
    {"{'a':{'dtype':'U8','shape':[1],'data_offsets':[1,2]}}", 2, "at 1; the data before it ends at 0"},
    {"{'a':{'dtype':'U8','shape':[2],'data_offsets':[0,2]},"
      "'b':{'dtype':'U8','shape':[2],'data_offsets':[1,3]}}", 3, "at 1; the data before it ends at 2"},
    {"{'a':{'dtype':'U8','shape':[1],'data_offsets':[0,1]},"
      "'b':{'dtype':'U8','shape':[1],'data_offsets':[2,3]}}", 3, "tensor 'b' begins at 2"},
    {"{'a':{'dtype':'U8','shape':[1],'data_offsets':[0,1]}}", 2, "byte 62: the last tensor ends here"},
    {"{}", 1, "byte 10: the last tensor ends here, but 1 more"},
};
/* clang-format on */

static void test_header_rules(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof headers / sizeof headers[0]; i++) {
        uint8_t file[512];
        RaftError error = {"no message"};
        size_t size = make_file(headers[i].header, headers[i].data_size, file);
        RaftStatus status = parse(file, size, &error);
        if (status != (headers[i].message ? RAFT_BAD_FILE : RAFT_OK))
            fail_msg("%s: status %d, %s", headers[i].header, status, error.message);
        if (headers[i].message) {
            assert_message(&error, "x: byte ");
            assert_message(&error, headers[i].message);
        }
    }
}

static void test_header_length(void **state)
{
    (void)state;
    static const uint64_t lengths[] = {1,          3,          4,     (16 << 20) + 1,
                                       1ull << 32, 1ull << 63, ~0ull, ~7ull};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        RaftError error;
        uint8_t file[10] = {0, 0, 0, 0, 0, 0, 0, 0, '{', '}'};
        for (int k = 0; k < 8; k++) file[k] = (uint8_t)(lengths[i] >> 8 * k);
        assert_int_equal(parse(file, sizeof file, &error), RAFT_BAD_FILE);
    }
    /* 16 MiB and a little is too much even where the file holds as many bytes */
    size_t length = (16 << 20) + 1;
    uint8_t *file = malloc(8 + length);
    RaftError error;
    memset(file, ' ', 8 + length);
    for (int k = 0; k < 8; k++) file[k] = (uint8_t)(length >> 8 * k);
    memcpy(file + 8, "{}", 2);
    assert_int_equal(parse(file, 8 + length, &error), RAFT_BAD_FILE);
    assert_message(&error, "16 MiB");
    length--;
    for (int k = 0; k < 8; k++) file[k] = (uint8_t)(length >> 8 * k);
    assert_int_equal(parse(file, 8 + length, &error), RAFT_OK);
    free(file);
}

static void test_truncated(void **state)
{
    (void)state;
    RtFile file;
    RaftError error;
    assert_int_equal(rt_file_map(TINY, &file, &error), RAFT_OK);
    for (size_t size = 0; size < file.size; size += size < 6000 ? 1 : 997) {
        assert_int_equal(parse(file.data, size, &error), RAFT_BAD_FILE);
        assert_message(&error, "x: byte ");
    }
    rt_file_unmap(&file);
}

/* Every bit of a header flipped in turn: refused or read, never worse. */
static void test_flipped_bits(void **state)
{
    (void)state;
    uint8_t file[512];
    size_t size = make_file("{'__metadata__':{'k':'v'},"
                            "'a':{'dtype':'F32','shape':[2,3],'data_offsets':[0,24]},"
                            "'b':{'dtype':'F16','shape':[0],'data_offsets':[24,24]}}",
                            24, file);
    int refused = 0;
    for (size_t bit = 0; bit < 8 * (size - 24); bit++) {
        RaftError error = {"no message"};
        file[bit / 8] ^= (uint8_t)(1 << bit % 8);
        if (parse(file, size, &error)) {
            assert_message(&error, "x: byte ");
            refused++;
        }
        file[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    assert_in_range(refused, 500, 8 * (size - 24) - 1);
}

static void test_opening(void **state)
{
    (void)state;
    RaftWeights *weights;
    RaftError error;
    assert_int_equal(raft_weights_open("/nonexistent/x", &weights, &error), RAFT_IO);
    assert_null(weights);
    assert_message(&error, "/nonexistent/x: cannot be opened: No such file");
    assert_int_equal(raft_weights_open(folder, &weights, &error), RAFT_IO);
    assert_message(&error, "is a folder");
    const char *pipe = in_folder("pipe");
    assert_int_equal(mkfifo(pipe, 0600), 0);
    assert_int_equal(raft_weights_open(pipe, &weights, &error), RAFT_IO); /* and does not wait */
    assert_message(&error, "not a regular file");
    unlink(pipe);
    assert_int_equal(raft_weights_open("/nonexistent/x", &weights, NULL), RAFT_IO);
}

/* ---- conversions ----------------------------------------------------------------------------- */

/* PyTorch wrote each tensor X and, as X.as_f32, what it becomes. */
static void test_conversions(void **state)
{
    (void)state;
    static const char *const names[] = {"f64", "f16", "bf16", "scalar", "f64.as_f32"};
    RaftWeights *weights = open_good(DTYPES);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char as_f32[32];
        float data[32];
        const RaftTensor *tensor = tensor_of(weights, names[i]);
        snprintf(as_f32, sizeof as_f32, "%s.as_f32", names[i]);
        const RaftTensor *wanted = raft_weights_find(weights, as_f32);
        if (!wanted) wanted = tensor;
        assert_int_equal(raft_tensor_read_f32(tensor, data, NULL), RAFT_OK);
        assert_memory_equal(data, wanted->data, (size_t)tensor->elements * sizeof *data);
    }
    static const char *const unfit[] = {"i32", "i64", "u8", "bool"};
    for (size_t i = 0; i < sizeof unfit / sizeof unfit[0]; i++) {
        RaftError error;
        assert_int_equal(raft_tensor_read_f32(tensor_of(weights, unfit[i]), NULL, &error),
                         RAFT_UNSUPPORTED);
        assert_message(&error, unfit[i]);
    }
    const RaftTensor *empty = tensor_of(weights, "empty");
    assert_int_equal(empty->rank, 2);
    assert_int_equal(empty->shape[1], 7);
    assert_int_equal(empty->elements, 0);
    assert_int_equal(raft_tensor_read_f32(empty, NULL, NULL), RAFT_OK);
    const char *key, *value;
    assert_true(raft_weights_metadata(weights, 1, &key, &value));
    assert_string_equal(key, "made by");
    assert_string_equal(value, "safetensors (Python)");
    assert_false(raft_weights_metadata(weights, 2, &key, &value));
    assert_false(raft_weights_metadata(weights, -1, &key, &value));
    raft_weights_close(weights);
}

static void test_every_half(void **state)
{
    (void)state;
    for (uint32_t bits = 0; bits < 65536; bits++) {
        uint16_t half = (uint16_t)bits;
        int exponent = half >> 10 & 31, fraction = half & 1023;
        double magnitude = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
        double wanted = half & 0x8000 ? -magnitude : magnitude;
        RaftTensor tensor = {.name = "half", .dtype = RAFT_F16, .elements = 1, .data = &half};
        float value;
        assert_int_equal(raft_tensor_read_f32(&tensor, &value, NULL), RAFT_OK);
        if (exponent < 31)
            assert_true(value == wanted && !!signbit(value) == half >> 15);
        else
            assert_true(fraction ? isnan(value) : isinf(value) && !!signbit(value) == half >> 15);
    }
}

/* ---- writing --------------------------------------------------------------------------------- */

static const float four[] = {1, 2, 3, 4};
static const int64_t wide[] = {-5};
static const RaftTensor two_tensors[] = {
    {.name = "w\"\n", .dtype = RAFT_F32, .rank = 2, .shape = {2, 2}, .data = four},
    {.name = "i", .dtype = RAFT_I64, .rank = 0, .data = wide},
};

static size_t read_back(const char *path, char *bytes, size_t size)
{
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    size = fread(bytes, 1, size, file);
    fclose(file);
    return size;
}

static void test_write(void **state)
{
    (void)state;
    static const char *const metadata[] = {"config", "depth: 2\n", "b", "", NULL};
    static const char header[] =
        "\xa8\0\0\0\0\0\0\0{\"__metadata__\":{\"config\":\"depth: 2\\n\",\"b\":\"\"},"
        "\"w\\\"\\n\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]},"
        "\"i\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[16,24]}}       ";
    char bytes[512];
    const char *path = in_folder("two.safetensors");
    RaftError error;
    assert_int_equal(raft_weights_write(path, two_tensors, 2, metadata, &error), RAFT_OK);
    size_t size = read_back(path, bytes, sizeof bytes);
    assert_int_equal(size, sizeof header - 1 + 24);
    assert_memory_equal(bytes, header, sizeof header - 1);

    RaftWeights *weights = open_good(path);
    const RaftTensor *w = tensor_of(weights, "w\"\n");
    assert_int_equal(w->rank, 2);
    assert_int_equal(w->elements, 4);
    assert_memory_equal(w->data, four, sizeof four);
    assert_memory_equal(tensor_of(weights, "i")->data, wide, sizeof wide);
    raft_weights_close(weights);
    unlink(path);
}

static void test_write_wrong_arguments(void **state)
{
    (void)state;
    const char *path = in_folder("never");
    RaftError error;
    RaftTensor twice[] = {two_tensors[0], two_tensors[0]};
    assert_int_equal(raft_weights_write(path, twice, 2, NULL, &error), RAFT_INVALID);
    assert_message(&error, "two tensors are called 'w\"");
    RaftTensor other = {.name = "o", .dtype = RAFT_OTHER};
    assert_int_equal(raft_weights_write(path, &other, 1, NULL, &error), RAFT_INVALID);
    RaftTensor vast = {.name = "v", .rank = 2, .shape = {1ll << 40, 1ll << 40}};
    assert_int_equal(raft_weights_write(path, &vast, 1, NULL, &error), RAFT_INVALID);
    RaftTensor unnamed = {.name = "\xff", .dtype = RAFT_F32};
    assert_int_equal(raft_weights_write(path, &unnamed, 1, NULL, &error), RAFT_INVALID);
    assert_message(&error, "not UTF-8");
    const char *const metadata[] = {"k", "\xff", NULL};
    assert_int_equal(raft_weights_write(path, two_tensors, 1, metadata, &error), RAFT_INVALID);
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(raft_weights_write("/nonexistent/x", two_tensors, 1, NULL, &error), RAFT_IO);
    assert_message(&error, "/nonexistent/x: cannot be written: No such file");
    assert_int_equal(raft_weights_write("/dev/null", two_tensors, 1, NULL, &error), RAFT_IO);
    assert_message(&error, "not a regular file");
}

/* A write that fails half-way leaves the old file and nothing else. */
static void test_write_full_disk(void **state)
{
    (void)state;
    const char *path = in_folder("old");
    char bytes[512];
    RaftError error;
    static float much[1 << 16];
    RaftTensor large = {.name = "l", .rank = 1, .shape = {1 << 16}, .data = much};
    assert_int_equal(raft_weights_write(path, two_tensors, 2, NULL, &error), RAFT_OK);
    assert_int_equal(chmod(path, 0640), 0);
    size_t size = read_back(path, bytes, sizeof bytes);

    struct rlimit old_limit, limit;
    getrlimit(RLIMIT_FSIZE, &old_limit);
    limit = (struct rlimit){.rlim_cur = 1 << 16, .rlim_max = old_limit.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &limit);
    RaftStatus status = raft_weights_write(path, &large, 1, NULL, &error);
    setrlimit(RLIMIT_FSIZE, &old_limit);
    assert_int_equal(status, RAFT_IO);
    assert_message(&error, "cannot be written: File too large");
    char after[512];
    assert_int_equal(read_back(path, after, sizeof after), size);
    assert_memory_equal(after, bytes, size);

    assert_int_equal(raft_weights_write(path, &large, 1, NULL, &error), RAFT_OK);
    struct stat new;
    assert_int_equal(stat(path, &new), 0);
    assert_int_equal(new.st_mode & 07777, 0640); /* as the old one's */
    assert_true(new.st_size > 1 << 18);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(folder), 0); /* it fails where a temporary file is left */
    assert_int_equal(mkdir(folder, 0700), 0);
}

static void test_write_through_link(void **state)
{
    (void)state;
    char real[128], link[128];
    snprintf(real, sizeof real, "%s/real", folder);
    snprintf(link, sizeof link, "%s/link", folder);
    assert_int_equal(raft_weights_write(real, two_tensors, 1, NULL, NULL), RAFT_OK);
    assert_int_equal(symlink("real", link), 0);
    assert_int_equal(raft_weights_write(link, two_tensors, 2, NULL, NULL), RAFT_OK);
    RaftWeights *weights = open_good(real);
    assert_int_equal(raft_weights_count(weights), 2);
    raft_weights_close(weights);
    unlink(real);
    unlink(link);
}

/* ---- matching -------------------------------------------------------------------------------- */

static void test_match(void **state)
{
    (void)state;
    RaftWeights *weights = open_good(TINY);
    RaftTensorInfo wanted[64] = {{0}};
    RaftError error;
    int count = raft_weights_count(weights);
    for (int i = 0; i < count; i++) {
        const RaftTensor *tensor = raft_weights_tensor(weights, count - 1 - i);
        wanted[i] = (RaftTensorInfo){.name = tensor->name, .rank = tensor->rank};
        memcpy(wanted[i].shape, tensor->shape, sizeof wanted[i].shape);
    }
    assert_int_equal(raft_weights_match(weights, wanted, count, &error), RAFT_OK);

    wanted[0].shape[0]++;
    wanted[1].name = "no.such.tensor";
    const char *renamed = raft_weights_tensor(weights, count - 2)->name;
    assert_int_equal(raft_weights_match(weights, wanted, count, &error), RAFT_BAD_FILE);
    assert_message(&error, "tiny.safetensors: does not fit the model\n  missing: no.such.tensor\n");
    assert_message(&error, "\n  of another shape or type: ");
    assert_message(&error, renamed);
    assert_null(strstr(error.message, "begin with"));

    assert_int_equal(raft_weights_match(weights, wanted, 0, &error), RAFT_BAD_FILE);
    assert_message(&error, "  not the model's: ");
    assert_message(&error, " and 54 more");
    raft_weights_close(weights);

    weights = open_good(DTYPES);
    wanted[0] = (RaftTensorInfo){.name = "u8", .rank = 1, .shape = {3}};
    assert_int_equal(raft_weights_match(weights, wanted, 1, &error), RAFT_BAD_FILE);
    assert_message(&error, "u8 is not floating-point [3], the model's [3]");
    raft_weights_close(weights);
}

static void test_match_prefix(void **state)
{
    (void)state;
    uint8_t file[256];
    RaftWeights *weights;
    RaftError error;
    size_t size = make_file("{'net.a.bias':{'dtype':'F32','shape':[2],"
                            "'data_offsets':[0,8]}}",
                            8, file);
    RaftTensorInfo wanted = {.name = "a.bias", .rank = 1, .shape = {2}};
    assert_int_equal(rt_weights_parse("x", file, size, &weights, &error), RAFT_OK);
    assert_int_equal(raft_weights_match(weights, &wanted, 1, &error), RAFT_BAD_FILE);
    assert_message(&error, "missing: a.bias\n  not the model's: net.a.bias\n"
                           "  names of the file begin with 'net.'");
    raft_weights_close(weights);
}

/* Names as what holds a model begins them, and the count that an averaged one has beside. */
static void test_wrapped_names(void **state)
{
    (void)state;
    static const struct {
        const char *first, *second, *found;
    } cases[] = {
        {"module.a", "module.b", "a"},
        {"model.module._orig_mod.a", "model.module._orig_mod.b", "a"},
        {"model.a", "module.a", "model.a"}, /* not of one */
        {"module.a", "module.", "module.a"},
        {"module.a", "b", "module.a"},
        {"module.a", "n_averaged", "a"},
        {"a", "n_averaged", "a"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char header[256];
        uint8_t file[512];
        RaftWeights *weights;
        RaftError error;
        snprintf(header, sizeof header,
                 "{'%s':{'dtype':'F32','shape':[1],'data_offsets':[0,4]},"
                 "'%s':{'dtype':'I64','shape':[],'data_offsets':[4,12]}}",
                 cases[i].first, cases[i].second);
        size_t size = make_file(header, 12, file);
        assert_int_equal(rt_weights_parse("x", file, size, &weights, &error), RAFT_OK);
        assert_string_equal(raft_weights_tensor(weights, 0)->name, cases[i].found);
        assert_non_null(raft_weights_find(weights, cases[i].found));
        /* the count is left out where it is a wrapper's */
        bool counts = !strcmp(cases[i].second, "n_averaged") && strcmp(cases[i].first, "a") != 0;
        assert_int_equal(raft_weights_count(weights), counts ? 1 : 2);
        raft_weights_close(weights);
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fill_parameters),
        cmocka_unit_test(test_fill_input_and_labels),
        cmocka_unit_test(test_header_rules),
        cmocka_unit_test(test_header_length),
        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_flipped_bits),
        cmocka_unit_test(test_opening),
        cmocka_unit_test(test_conversions),
        cmocka_unit_test(test_every_half),
        cmocka_unit_test(test_write),
        cmocka_unit_test(test_write_wrong_arguments),
        cmocka_unit_test(test_write_full_disk),
        cmocka_unit_test(test_write_through_link),
        cmocka_unit_test(test_match),
        cmocka_unit_test(test_match_prefix),
        cmocka_unit_test(test_wrapped_names),
    };
    if (!mkdtemp(folder)) return 1;
    int failures = cmocka_run_group_tests(tests, NULL, NULL);
    return rmdir(folder) ? 1 : failures;
}
