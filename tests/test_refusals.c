/* test_refusals.c: wrong files of weights and pictures, and the whole message that each gets.
 *
 * The files are made here: a safetensors file of a header and some zeros, a file of torch.save's older
 * format around a pickle, or a good file with some bytes changed. data/refusals.txt has a line
 * `NAME: MESSAGE` for each, in this order. */
#define _GNU_SOURCE /* memmem */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "runtime/rt.h"

enum { MOST_BYTES = 1 << 20, MOST_TEXT = sizeof(RaftError) + 64 };

typedef struct Bytes {
    const char *data;
    size_t size;
} Bytes;
#define BYTES(literal)                                                                             \
    {                                                                                              \
        literal, sizeof literal - 1                                                                \
    }

typedef struct Case {
    const char *name;
    Bytes header;     /* of a safetensors file, or: */
    Bytes pickle;     /* the object of a .pt file, or: */
    const char *base; /* a file of data/ */
    int zeros;        /* behind the header */
    Bytes find, put;  /* every one of these becomes that, of the same size */
    Bytes find2, put2;
    int keep;   /* so many bytes; of all but so many where that is negative */
    Bytes more; /* at the end */
} Case;

#define TENSOR "{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":"
#define STORAGE                                                                                    \
    "ctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0007X\3\0" \
    "\0\0cpuK\6tQ"
#define DICTIONARY "\x80\x02}X\1\0\0\0w"
#define HOOKS                                                                                      \
    "\x89"                                                                                         \
    "ccollections\nOrderedDict\n)RtRs."
#define JPEG    .base = "images/rgb444.jpg"
#define PNG     .base = "images/rgb8.png"
#define ARCHIVE .base = "weights/wrapped.pt"

/* clang-format off */
static const Case cases[] = {
    /* safetensors */
    {"empty", .header = BYTES(""), .keep = -8},
    {"cut in the length", .header = BYTES("{}"), .keep = 5},
    {"length too large", .header = BYTES("{}"), .find = BYTES("\2\0\0\0\0\0\0\0"), .put = BYTES("\2\0\0\0\0\1\0\0")},
    {"no header", .header = BYTES("")},
    {"array", .header = BYTES("[]")},
    {"blank first", .header = BYTES(" {}")},
    {"not JSON", .header = BYTES("{nothing}")},
    {"text behind", .header = BYTES("{}x")},
    {"not UTF-8", .header = BYTES("{\"a\xff\":" TENSOR "[0,4]}}"), .zeros = 4},
    {"key twice", .header = BYTES("{\"a\":" TENSOR "[0,4]},\"a\":" TENSOR "[4,8]}}"), .zeros = 8},
    {"no entry", .header = BYTES("{\"a\":1}")},
    {"no offsets", .header = BYTES("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}"), .zeros = 4},
    {"unknown dtype", .header = BYTES("{\"a\":{\"dtype\":\"F31\",\"shape\":[1],\"data_offsets\":[0,4]}}"), .zeros = 4},
    {"nine axes", .header = BYTES("{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}"), .zeros = 4},
    {"negative extent", .header = BYTES("{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}"), .zeros = 4},
    {"fraction", .header = BYTES("{\"a\":{\"dtype\":\"F32\",\"shape\":[1.5],\"data_offsets\":[0,4]}}"), .zeros = 4},
    {"vast extent", .header = BYTES("{\"a\":{\"dtype\":\"F32\",\"shape\":[99999999999999999999],\"data_offsets\":[0,4]}}"), .zeros = 4},
    {"vast product", .header = BYTES("{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,4],\"data_offsets\":[0,4]}}"), .zeros = 4},
    {"other size", .header = BYTES("{\"a\":" TENSOR "[0,8]}}"), .zeros = 8},
    {"three offsets", .header = BYTES("{\"a\":" TENSOR "[0,2,4]}}"), .zeros = 4},
    {"backwards", .header = BYTES("{\"a\":" TENSOR "[4,0]}}"), .zeros = 4},
    {"past the end", .header = BYTES("{\"a\":" TENSOR "[0,4]}}"), .zeros = 3},
    {"overlap", .header = BYTES("{\"a\":" TENSOR "[0,4]},\"b\":" TENSOR "[2,6]}}"), .zeros = 6},
    {"hole", .header = BYTES("{\"a\":" TENSOR "[0,4]},\"b\":" TENSOR "[8,12]}}"), .zeros = 12},
    {"hole at the start", .header = BYTES("{\"a\":" TENSOR "[4,8]}}"), .zeros = 8},
    {"bytes left over", .header = BYTES("{\"a\":" TENSOR "[0,4]}}"), .zeros = 9},
    {"metadata of numbers", .header = BYTES("{\"__metadata__\":{\"a\":1}}")},
    /* .pt, the older format */
    {"no dictionary", .pickle = BYTES("\x80\x02K\1.")},
    {"call of a program", .pickle = BYTES("\x80\x02" "cposix\nsystem\nX\2\0\0\0ls\x85R.")},
    {"no tensor", .pickle = BYTES(DICTIONARY "K\1s.")},
    {"key a number", .pickle = BYTES("\x80\x02}K\1K\2s.")},
    {"name twice", .pickle = BYTES(DICTIONARY "K\1sX\1\0\0\0wK\2s.")},
    {"class of no tensor", .pickle = BYTES(DICTIONARY "ctorch._tensor\n_rebuild_from_type_v2\n(ctorch\nSize\nctorch\nTensor\n)}tRs.")},
    {"past its storage", .pickle = BYTES(DICTIONARY STORAGE "K\0K\7\x85K\1\x85" HOOKS)},
    {"overlapping", .pickle = BYTES(DICTIONARY STORAGE "K\0M\xff\xff\x85K\0\x85" HOOKS)},
    {"negative stride", .pickle = BYTES(DICTIONARY STORAGE "K\0K\2\x85J\xff\xff\xff\xff\x85" HOOKS)},
    {"axes and strides", .pickle = BYTES(DICTIONARY STORAGE "K\0K\2K\3\x86K\1\x85" HOOKS)},
    {"offset a text", .pickle = BYTES(DICTIONARY STORAGE "X\1\0\0\0aK\2\x85K\1\x85" HOOKS)},
    {"storage a number", .pickle = BYTES(DICTIONARY "ctorch._utils\n_rebuild_tensor_v2\n(K\1K\0K\2\x85K\1\x85" HOOKS)},
    {"unknown opcode", .pickle = BYTES("\x80\x02I1\n.")},
    {"protocol 1", .pickle = BYTES("\x80\x01N.")},
    {"stack empty", .pickle = BYTES("\x80\x02s.")},
    {"pickle cut", .pickle = BYTES(DICTIONARY "X\xff\0\0\0a")},
    {"bytes behind", .pickle = BYTES(DICTIONARY STORAGE "K\0K\2\x85K\1\x85" HOOKS), .more = BYTES("!")},
    {"storage cut", .pickle = BYTES(DICTIONARY STORAGE "K\0K\2\x85K\1\x85" HOOKS), .keep = -1},
    /* .pt, archives */
    {"archive cut", ARCHIVE, .keep = -10},
    {"no data.pkl", ARCHIVE, .find = BYTES("data.pkl"), .put = BYTES("atad.pkl")},
    {"CRC of a storage", ARCHIVE, .find = BYTES("\0\0\x80\x3f"), .put = BYTES("\0\0\x80\xbf")},
    {"no storage", ARCHIVE, .find = BYTES("/data/6"), .put = BYTES("/data/9")},
    {"storage of another size", ARCHIVE, .find = BYTES("K\6tqKQK\0"), .put = BYTES("K\5tqKQK\0"), .find2 = BYTES("mQ\x81\xfc"), .put2 = BYTES(")\xf3\xa8\xcf")},
    {"CRC of the byte order", ARCHIVE, .find = BYTES("little"), .put = BYTES("bigger")},
    {"big-endian", ARCHIVE, .find = BYTES("little"), .put = BYTES("bigger"), .find2 = BYTES("\x85=\xe3\x19"), .put2 = BYTES("#\x87""4-")},
    {"two sizes of an entry", ARCHIVE, .find = BYTES("PK\3\4\0\0"), .put = BYTES("PK\3\4\1\0")},
    {"deflated", .base = "weights/deflated.pt"},
    /* pictures */
    {"no picture", .base = "weights/make_weights.py"},
    {"JPEG cut in the header", JPEG, .keep = 30},
    {"JPEG cut in the picture", JPEG, .keep = -40},
    {"JPEG without end", JPEG, .keep = -2},
    {"JPEG of 12 bits", JPEG, .find = BYTES("\xff\xc0\0\x11\x8"), .put = BYTES("\xff\xc1\0\x11\xc")},
    {"JPEG without loss", JPEG, .find = BYTES("\xff\xc0\0\x11\x8"), .put = BYTES("\xff\xc3\0\x11\x8")},
    {"JPEG of no height", JPEG, .find = BYTES("\xff\xc0\0\x11\x8\0\x0d"), .put = BYTES("\xff\xc0\0\x11\x8\0\0")},
    {"JPEG of vast width", JPEG, .find = BYTES("\xff\xc0\0\x11\x8\0\x0d\0\x13"), .put = BYTES("\xff\xc0\0\x11\x8\0\x0d\xff\xff")},
    {"JPEG marker too short", JPEG, .find = BYTES("\xff\xc0\0\x11"), .put = BYTES("\xff\xc0\0\x0b")},
    {"JPEG marker alone", JPEG, .keep = 3},
    {"PNG cut in the header", PNG, .keep = 20},
    {"PNG cut in the picture", PNG, .keep = -30},
    {"PNG without end", PNG, .keep = -12},
    {"PNG of wrong CRC", PNG, .find = BYTES("IHDR\0\0\0"), .put = BYTES("IHDR\0\0\1")},
    {"PNG of another chunk", PNG, .find = BYTES("IDAT"), .put = BYTES("IDAX")},
    {"PNG palette missing", .base = "images/palette8.png", .find = BYTES("PLTE"), .put = BYTES("PLtE")},
    {"PNG of nothing", PNG, .keep = 8, .more = BYTES("\0\0\0\0IEND\xae\x42\x60\x82")},
};
/* clang-format on */
enum { CASES = sizeof cases / sizeof *cases };

static uint8_t file[MOST_BYTES];
static size_t file_size;

static void append(const void *data, size_t size)
{
    assert_true(size <= sizeof file - file_size);
    if (size) memcpy(file + file_size, data, size);
    file_size += size;
}
#define APPEND(literal) append(literal, sizeof literal - 1)

static void append_file(const char *name)
{
    char path[512];
    RtFile content;
    snprintf(path, sizeof path, TEST_DATA "/data/%s", name);
    if (rt_file_map(path, &content, NULL)) fail_msg("%s cannot be read", path);
    append(content.data, content.size);
    rt_file_unmap(&content);
}

/* The pickle in a file of the older format; where it names a storage, with six floats in '7'. */
static void append_torch(const Bytes *pickle)
{
    static const float values[6] = {0, 1, 2, 3, 4, 5};
    static const uint64_t count = 6;
    APPEND("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.");
    APPEND("\x80\x02}X\x0d\0\0\0little_endian\x88s.");
    append(pickle->data, pickle->size);
    if (!memmem(pickle->data, pickle->size, "FloatStorage", 12)) {
        APPEND("\x80\x02].");
        return;
    }
    APPEND("\x80\x02]X\1\0\0\0007a.");
    append(&count, sizeof count);
    append(values, sizeof values);
}

static void append_safetensors(const Case *c)
{
    static const uint8_t zeros[64];
    uint64_t length = c->header.size;
    append(&length, sizeof length);
    append(c->header.data, c->header.size);
    append(zeros, (size_t)c->zeros);
}

static void change(const Case *c, const Bytes *find, const Bytes *put)
{
    bool found = !find->size;
    assert_int_equal(find->size, put->size);
    for (size_t i = 0; find->size && i + find->size <= file_size; i++) {
        if (memcmp(file + i, find->data, find->size) != 0) continue;
        memcpy(file + i, put->data, put->size);
        found = true;
    }
    if (!found) fail_msg("%s: nothing to change", c->name);
}

static void make_file(const Case *c)
{
    file_size = 0;
    if (c->base)
        append_file(c->base);
    else if (c->pickle.data)
        append_torch(&c->pickle);
    else
        append_safetensors(c);
    change(c, &c->find, &c->put);
    change(c, &c->find2, &c->put2);
    if (c->keep > 0) file_size = (size_t)c->keep;
    if (c->keep < 0) file_size -= (size_t)-c->keep;
    append(c->more.data, c->more.size);
}

static RaftStatus open_file(const Case *c, RaftError *error)
{
    bool is_picture =
        (c->base && !strncmp(c->base, "images/", 7)) || !strcmp(c->name, "no picture");
    uint8_t *exact = malloc(file_size + !file_size); /* so that the sanitizer sees a read past it */
    memcpy(exact, file, file_size);
    RaftWeights *weights = NULL;
    RaftImage image = {0};
    RaftStatus status = is_picture ? rt_image_decode("x", exact, file_size, &image, error)
                                   : rt_weights_parse("x", exact, file_size, &weights, error);
    raft_image_free(&image);
    raft_weights_close(weights);
    free(exact);
    return status;
}

static void messages_are_as_written(void **state)
{
    (void)state;
    char line[MOST_TEXT], found[MOST_TEXT];
    int differ = 0;
    FILE *wanted = fopen(TEST_DATA "/data/refusals.txt", "r");
    assert_non_null(wanted);
    for (int i = 0; i < CASES; i++) {
        RaftError error = {"no message"};
        make_file(&cases[i]);
        RaftStatus status = open_file(&cases[i], &error);
        snprintf(found, sizeof found, "%s: %s\n", cases[i].name, error.message);
        if (status != RAFT_BAD_FILE) fail_msg("%s: status %d", found, status);
        if (fgets(line, sizeof line, wanted) && !strcmp(line, found)) continue;
        print_error("%s", found);
        differ++;
    }
    assert_null(fgets(line, sizeof line, wanted));
    fclose(wanted);
    assert_int_equal(differ, 0);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {cmocka_unit_test(messages_are_as_written)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
