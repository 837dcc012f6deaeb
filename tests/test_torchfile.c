/* test_torchfile.c: weights that torch.save wrote, in both of its formats, and hostile files.
 *
 * In data/weights, views.pt and views_old.pt hold tensors that share storages, with offsets and
 * strides, and views.safetensors the same tensors; wrapped.pt and wrapped_old.pt a dictionary with
 * a state_dict and an optimiser's; evil.pt and evil_old.pt a call of os.system. make_weights.py there
 * made checkpoint, protocol4 and expanded; torch_files.py tries more of them where PyTorch is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime/pickle.h"

#define WEIGHTS TEST_DATA "/data/weights/"

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

static void assert_same_tensors(const char *path, const char *wanted_path)
{
    static const size_t bytes[] = {4, 2, 2, 8, 4, 8, 1, 1, 2, 1};
    RaftWeights *weights = open_good(path), *wanted = open_good(wanted_path);
    assert_int_equal(raft_weights_count(weights), raft_weights_count(wanted));
    for (int i = 0; i < raft_weights_count(wanted); i++) {
        const RaftTensor *want = raft_weights_tensor(wanted, i);
        const RaftTensor *tensor = raft_weights_find(weights, want->name);
        if (!tensor) fail_msg("%s: no tensor '%s'", path, want->name);
        assert_int_equal(tensor->dtype, want->dtype);
        assert_int_equal(tensor->rank, want->rank);
        assert_memory_equal(tensor->shape, want->shape, sizeof want->shape);
        assert_int_equal(tensor->elements, want->elements);
        if (memcmp(tensor->data, want->data, (size_t)want->elements * bytes[want->dtype]))
            fail_msg("%s: other values in '%s'", path, want->name);
    }
    raft_weights_close(weights);
    raft_weights_close(wanted);
}

static void test_tiny(void **state)
{
    (void)state;
    assert_same_tensors(WEIGHTS "tiny-last_model_0.pt", TEST_DATA "/data/goldens/tiny.safetensors");
}

static void test_views(void **state)
{
    (void)state;
    assert_same_tensors(WEIGHTS "views.pt", WEIGHTS "views.safetensors");
    assert_same_tensors(WEIGHTS "views_old.pt", WEIGHTS "views.safetensors");
}

static void test_wrapped(void **state)
{
    (void)state;
    static const float wanted[] = {0, 1, 2, 3, 4, 5};
    static const char *const paths[] = {WEIGHTS "wrapped.pt", WEIGHTS "wrapped_old.pt"};
    for (int i = 0; i < 2; i++) {
        RaftWeights *weights = open_good(paths[i]);
        assert_int_equal(raft_weights_count(weights), 2);
        const RaftTensor *weight = raft_weights_find(weights, "weight"); /* not module.weight */
        assert_non_null(weight);
        assert_memory_equal(weight->data, wanted, sizeof wanted);
        assert_string_equal(raft_weights_tensor(weights, 0)->name, "weight");
        raft_weights_close(weights);
    }
}

/* What training scripts keep beside the weights is passed over: options, measures, sets, bytes. */
static void test_checkpoints(void **state)
{
    (void)state;
    static const char *const paths[] = {WEIGHTS "checkpoint.pt", WEIGHTS "checkpoint_old.pt",
                                        WEIGHTS "protocol4.pt", WEIGHTS "protocol4_old.pt"};
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++) {
        RaftWeights *weights = open_good(paths[i]);
        assert_int_equal(raft_weights_count(weights), 2);
        const RaftTensor *weight = raft_weights_tensor(weights, 0);
        const RaftTensor *bias = raft_weights_tensor(weights, 1);
        assert_string_equal(weight->name, "fc.weight");
        assert_string_equal(bias->name, "fc.bias");
        float values[20];
        assert_int_equal(raft_tensor_read_f32(weight, values, NULL), RAFT_OK);
        assert_int_equal(raft_tensor_read_f32(bias, values + 15, NULL), RAFT_OK);
        for (int k = 0; k < 20; k++) assert_true(values[k] == (float)k / 8 - 1);
        raft_weights_close(weights);
    }
}

/* Strides of 0, no elements, no axes. */
static void test_expanded(void **state)
{
    (void)state;
    RaftWeights *weights = open_good(WEIGHTS "expanded.pt");
    const RaftTensor *a = raft_weights_find(weights, "a"), *b = raft_weights_find(weights, "b"),
                     *c = raft_weights_find(weights, "c");
    assert_int_equal(a->elements, 6);
    float values[6];
    assert_int_equal(raft_tensor_read_f32(a, values, NULL), RAFT_OK);
    for (int k = 0; k < 6; k++) assert_true(values[k] == 1);
    assert_int_equal(b->elements, 0);
    assert_int_equal(c->rank, 0);
    assert_int_equal(raft_tensor_read_f32(c, values, NULL), RAFT_OK);
    assert_true(values[0] == 2.5f);
    raft_weights_close(weights);
}

/* Parameters and buffers as they are in a module (keep_vars), with what else is beside them. */
static void test_buffers(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        RaftDType dtype;
        int64_t elements;
        uint8_t data[4];
    } wanted[] = {
        {"tagged", RAFT_F32, 1, {0, 0, 0, 0x3f}}, {"buffer", RAFT_F32, 1, {0, 0, 0x20, 0x40}},
        {"mask", RAFT_BOOL, 3, {1, 0, 1}},        {"small", RAFT_I8, 2, {255, 127}},
        {"short", RAFT_I16, 2, {0, 1, 255, 255}},
    };
    RaftWeights *weights = open_good(WEIGHTS "buffers.pt");
    assert_int_equal(raft_weights_count(weights), 5);
    for (int i = 0; i < 5; i++) {
        const RaftTensor *tensor = raft_weights_tensor(weights, i);
        assert_string_equal(tensor->name, wanted[i].name);
        assert_int_equal(tensor->dtype, wanted[i].dtype);
        assert_int_equal(tensor->elements, wanted[i].elements);
        size_t size =
            wanted[i].dtype == RAFT_F32 || wanted[i].dtype == RAFT_I16 ? 4 : tensor->elements;
        assert_memory_equal(tensor->data, wanted[i].data, size);
    }
    /* Integers beside a model's parameters are no fault, as a counter of batches is none. */
    RaftTensorInfo both[] = {{.name = "tagged", .rank = 1, .shape = {1}},
                             {.name = "buffer", .rank = 1, .shape = {1}}};
    RaftError error = {"no message"};
    assert_int_equal(raft_weights_match(weights, both, 2, &error), RAFT_OK);
    assert_int_equal(raft_weights_match(weights, both, 1, &error), RAFT_BAD_FILE);
    assert_message(&error, "does not fit the model\n  not the model's: buffer");
    assert_null(strstr(error.message, "mask"));
    raft_weights_close(weights);
}

/* What is written for torch.load holds the same tensors, and is the same bytes each time. */
static void test_written(void **state)
{
    (void)state;
    static const char *const names[] = {"views.safetensors", "expanded.pt", "dtypes.safetensors",
                                        "buffers.pt"};
    char folder[] = "/tmp/test_torchfile.XXXXXX", first[64], second[64], source[512];
    assert_non_null(mkdtemp(folder));
    snprintf(first, sizeof first, "%s/first.pt", folder);
    snprintf(second, sizeof second, "%s/second.pt", folder);
    for (int i = 0; i < 4; i++) {
        snprintf(source, sizeof source, WEIGHTS "%s", names[i]);
        RaftWeights *weights = open_good(source);
        RaftTensor tensors[32];
        int count = raft_weights_count(weights);
        assert_in_range(count, 1, 32);
        for (int k = 0; k < count; k++) tensors[k] = *raft_weights_tensor(weights, k);
        RaftError error = {"no message"};
        RaftStatus status = raft_weights_write(first, tensors, count, NULL, &error);
        if (status) fail_msg("%s", error.message);
        assert_int_equal(raft_weights_write(second, tensors, count, NULL, &error), RAFT_OK);
        assert_same_tensors(first, source);
        RtFile files[2];
        assert_int_equal(rt_file_map(first, &files[0], &error), RAFT_OK);
        assert_int_equal(rt_file_map(second, &files[1], &error), RAFT_OK);
        assert_int_equal(files[0].size, files[1].size);
        assert_memory_equal(files[0].data, files[1].data, files[0].size);
        rt_file_unmap(&files[0]);
        rt_file_unmap(&files[1]);
        unlink(first);
        unlink(second);
        tensors[0].dtype = RAFT_OTHER; /* of no name here */
        assert_int_equal(raft_weights_write(first, tensors, count, NULL, &error), RAFT_INVALID);
        assert_message(&error, "cannot be written");
        raft_weights_close(weights);
    }
    assert_int_equal(rmdir(folder), 0); /* no temporary file is left */
}

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        const char *path, *message;
    } files[] = {
        {WEIGHTS "evil.pt", "evil.pt:evil/data.pkl: byte "},
        {WEIGHTS "evil.pt", "'posix.system' is refused"},
        {WEIGHTS "evil_old.pt", "evil_old.pt: byte "},
        {WEIGHTS "evil_old.pt", "'posix.system' is refused"},
        {WEIGHTS "deflated.pt", "compressed or encrypted; torch.save stores"},
    };
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        RaftWeights *weights;
        RaftError error = {"no message"};
        assert_int_equal(raft_weights_open(files[i].path, &weights, &error), RAFT_BAD_FILE);
        assert_null(weights);
        assert_message(&error, files[i].message);
    }
    assert_int_equal(access("/tmp/executed", F_OK), -1); /* what the calls would have made */
}

/* ---- the pickle machine ---------------------------------------------------------------------- */

#define BYTES(literal) literal, sizeof literal - 1

/* clang-format off */
static const struct {
    const char *bytes;
    size_t size;
    const char *message; /* NULL: it is read */
} pickles[] = {
    {BYTES("\x80\x02N."), NULL},
    {BYTES("\x80\x02}q\0(X\1\0\0\0aK\1U\1bM\0\1X\1\0\0\0cJ\xff\xff\xff\xffu."), NULL},
    {BYTES("\x80\x02]q\1(\x88\x89G?\xf0\0\0\0\0\0\0\x8a\0\x8a\2\xff\x80" "e."), NULL},
    {BYTES("\x80\x02((K\1K\2tK\3\x85\x86t."), NULL},
    {BYTES("\x80\x02" "ccollections\nOrderedDict\n)R}b."), NULL},
    {BYTES("\x80\x02" "ctorch\nFloatStorage\n(K\1tR."), NULL},
    {BYTES("\x80\x02]q\0h\0a."), NULL}, /* a list that holds itself */
    {BYTES(""), "byte 0: pickle: it ends too early"},
    {BYTES("\x80\x02N"), "byte 3: pickle: it ends too early"},
    {BYTES("\x80"), "byte 0: pickle: it ends within an operand"},
    {BYTES("\x80\x04\x95\1\0\0\0\0\0\0\0N."), NULL},
    {BYTES("\x80\x05\x8c\2ab\x94h\0\x86."), NULL},
    {BYTES("\x80\x03\x8a\x09\0\0\0\0\0\0\0\0\1" "C\2a\0B\1\0\0\0a\x87."), NULL},
    {BYTES("X\2\0\0\0a\0."), NULL}, /* no name, but bytes */
    {BYTES("\x8f(K\1K\2\x90."), NULL},
    {BYTES("\x80\4(K\1K\2\x91\x94."), NULL}, /* a frozenset */
    {BYTES("(]q\1(h\1tq\0" "0h\0t."), NULL}, /* a tuple that holds itself */
    {BYTES("(](N1K\1t."), NULL},
    {BYTES("0."), "too few values"},
    {BYTES("(0."), "too few values"},
    {BYTES("N1."), "no mark"},
    {BYTES("cargparse\nNamespace\n)\x81}(U\2lrK\1ub."), NULL},
    {BYTES("ccollections\ndefaultdict\nc__builtin__\nlist\n\x85RU\1aK\1s."), NULL},
    {BYTES("\x80\x04\x8c\x0b" "collections\x8c\x0b" "OrderedDict\x93)R."), NULL},
    {BYTES("\x80\x06N."), "byte 0: pickle: not of protocol 2, 3, 4 or 5"},
    {BYTES("\x80\x01N."), "byte 0: pickle: not of protocol 2, 3, 4 or 5"},
    {BYTES("\x80\x04\x95\1\0\0."), "it ends within an operand"},
    {BYTES("\x96\xff\xff\xff\xff\xff\xff\xff\xff" "a."), "it ends within an operand"},
    {BYTES("C\5a."), "it ends within an operand"},
    {BYTES("\x94."), "too few values"},
    {BYTES("N\x94\x94\x94."), "an index far past the others"},
    {BYTES("NN\x93."), "a name that is no text"},
    {BYTES("\x8c\5posix\x8c\6system\x93."), "'posix.system' is refused"},
    {BYTES("\x93."), "too few values"},
    {BYTES("N\x81."), "too few values"},
    {BYTES("ctorch\nFloatStorage\n)\x81."), "an object of what is no class"},
    {BYTES("ctorch._utils\n_rebuild_tensor_v2\n)R}b."), "attributes of what is no dictionary"},
    {BYTES("cargparse\nNamespace\nN\x81."), "a call of what is no function"},
    {BYTES("."), "too few values"},
    {BYTES("(."), "too few values"},
    {BYTES("NN."), "more than one result"},
    {BYTES("(N."), "more than one result"},
    {BYTES("N\x85\x86."), "too few values"},
    {BYTES("N(N\x86."), "too few values"},
    {BYTES("Nt."), "no mark"},
    {BYTES("Nu."), "no mark"},
    {BYTES("(u."), "too few values"},
    {BYTES("}(Nu."), "items for what is no list or dictionary"},
    {BYTES("](NNu."), "items for what is no list or dictionary"},
    {BYTES("}(NNe."), "items for what is no list or dictionary"},
    {BYTES("}Na."), "items for what is no list or dictionary"},
    {BYTES("](Na."), "too few values"},
    {BYTES("N}b."), "attributes of what is no dictionary"},
    {BYTES("h\0."), "never stored"},
    {BYTES("Nq\1h\0."), "never stored"},
    {BYTES("Nr\xff\xff\xff\xff."), "an index far past the others"},
    {BYTES("q\0."), "too few values"},
    {BYTES("j\xff\xff\xff\xff."), "never stored"},
    {BYTES("X\xff\xff\xff\xff" "a."), "it ends within an operand"},
    {BYTES("cos\nsystem"), "it ends within a name"},
    {BYTES("cos"), "it ends within a name"},
    {BYTES("cos\nsystem\n(X\1\0\0\0atR."), "'os.system' is refused"},
    {BYTES("cbuiltins\neval\n."), "'builtins.eval' is refused"},
    {BYTES("c__builtin__\neval\n."), "'__builtin__.eval' is refused"},
    {BYTES("ctorch\nload\n."), "'torch.load' is refused"},
    {BYTES("ctorch\nFloatStorag\n."), "refused"},
    {BYTES("ctorc\nFloatStorage\n."), "refused"},
    {BYTES("c\x1b[2J\nx\n."), "'?[2J.x' is refused"},
    {BYTES("NNR."), "a call of what is no function"},
    {BYTES("ccollections\nOrderedDict\n]R."), "a call of what is no function"},
    {BYTES("ccollections\nOrderedDict\n(K\1tR."), "a dictionary with arguments"},
    {BYTES("(ios\nsystem\n."), "opcode 0x69"},
    {BYTES("(X\1\0\0\0aos\nsystem\n."), "opcode 0x6f"},
    {BYTES("I1\n."), "opcode 0x49"},
    {BYTES("P1\n."), "opcode 0x50"},
    {BYTES("\x82\1."), "opcode 0x82"},
};
/* clang-format on */

static void test_pickles(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof pickles / sizeof pickles[0]; i++) {
        RtArena arena = {0};
        Pickle pickle;
        RaftError error = {"no message"};
        uint8_t *bytes = malloc(pickles[i].size + 1);
        memcpy(bytes, pickles[i].bytes, pickles[i].size);
        RaftStatus status = rt_pickle_read("x", bytes, pickles[i].size, 0, &arena, &pickle, &error);
        if (!pickles[i].message && status) fail_msg("%d: %s", (int)i, error.message);
        if (pickles[i].message) {
            if (status != RAFT_BAD_FILE) fail_msg("%d: status %d", (int)i, status);
            assert_message(&error, "x: byte ");
            assert_message(&error, pickles[i].message);
        }
        rt_arena_free(&arena);
        free(bytes);
    }
}

static void test_every_opcode(void **state)
{
    (void)state;
    static const char known[] = "(.01NKMJGUTX)t]}aesuqrhjcRbQCB"
                                "\x80\x81\x85\x86\x87\x88\x89\x8a\x8c\x8f\x90\x91\x93\x94\x95\x96";
    for (int opcode = 0; opcode < 256; opcode++) {
        uint8_t bytes[] = {(uint8_t)opcode, 0, 0, 0, 0, 0, 0, 0, 0, 0};
        RtArena arena = {0};
        Pickle pickle;
        RaftError error = {"no message"};
        assert_int_equal(rt_pickle_read("x", bytes, sizeof bytes, 0, &arena, &pickle, &error),
                         RAFT_BAD_FILE);
        bool refused = strstr(error.message, "x: byte 0: pickle: opcode 0x");
        assert_int_equal(!refused, opcode && strchr(known, (char)opcode));
        rt_arena_free(&arena);
    }
}

/* Pickles that grow without end are stopped by the limits on values, stack and bytes. */
static void test_pickle_limits(void **state)
{
    (void)state;
    static const struct {
        char unit;
        const char *message;
    } bombs[] = {{'N', "a million values"}, {'(', "a stack of a million"}, {'}', "a million"}};
    size_t size = 17 << 20;
    uint8_t *bytes = malloc(size);
    RaftError error;
    Pickle pickle;
    RtArena arena = {0};
    for (size_t i = 0; i < sizeof bombs / sizeof bombs[0]; i++) {
        memset(bytes, bombs[i].unit, size);
        assert_int_equal(rt_pickle_read("x", bytes, size, 0, &arena, &pickle, &error),
                         RAFT_BAD_FILE);
        assert_message(&error, bombs[i].message);
        rt_arena_free(&arena);
    }
    for (size_t i = 0; i < size; i++) bytes[i] = "\x80\x02"[i % 2]; /* costs nothing but bytes */
    assert_int_equal(rt_pickle_read("x", bytes, size, 0, &arena, &pickle, &error), RAFT_BAD_FILE);
    assert_message(&error, "more than 16 MiB");
    rt_arena_free(&arena);
    free(bytes);
}

/* ---- files made here ------------------------------------------------------------------------- */

typedef struct Buffer {
    uint8_t bytes[1024];
    size_t size;
} Buffer;

static void put(Buffer *buffer, const void *bytes, size_t size)
{
    assert_true(size <= sizeof buffer->bytes - buffer->size);
    memcpy(buffer->bytes + buffer->size, bytes, size);
    buffer->size += size;
}
#define PUT(buffer, literal) put(buffer, literal, sizeof literal - 1)

static void put_integer(Buffer *buffer, int64_t integer)
{
    PUT(buffer, "\x8a\x08");
    put(buffer, &integer, sizeof integer);
}

static void put_extents(Buffer *buffer, int rank, const int64_t *extent)
{
    PUT(buffer, "(");
    for (int i = 0; i < rank; i++) put_integer(buffer, extent[i]);
    PUT(buffer, "t");
}

typedef struct Claim {
    int64_t elements, offset; /* of the storage, in it */
    int rank;
    int64_t shape[9], stride[9];
    const char *message; /* NULL: it is read */
} Claim;

/* A file of the old format with the tensor `w`, in a storage of the six floats 0 to 5. */
static void make_old_file(const Claim *claim, Buffer *file)
{
    static const float data[] = {0, 1, 2, 3, 4, 5};
    int64_t elements = 6;
    file->size = 0;
    PUT(file, "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.");
    PUT(file, "\x80\x02}X\x0d\0\0\0little_endian\x88s.\x80\x02}X\1\0\0\0w");
    PUT(file, "ctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\n");
    PUT(file, "X\1\0\0\0007X\3\0\0\0cpu");
    put_integer(file, claim->elements);
    PUT(file, "NtQ");
    put_integer(file, claim->offset);
    put_extents(file, claim->rank, claim->shape);
    put_extents(file, claim->rank, claim->stride);
    PUT(file, "\x89"
              "ccollections\nOrderedDict\n)RtRs.\x80\x02]X\1\0\0\0007a.");
    put(file, &elements, sizeof elements);
    put(file, data, sizeof data);
}

static RaftStatus parse(const uint8_t *bytes, size_t size, RaftWeights **weights, RaftError *error)
{
    uint8_t *exact = malloc(size + !size); /* so that the sanitizer sees a read past the end */
    memcpy(exact, bytes, size);
    RaftStatus status = rt_weights_parse("x", exact, size, weights, error);
    float sum = 0;
    for (int i = 0; !status && i < raft_weights_count(*weights); i++) {
        const RaftTensor *tensor = raft_weights_tensor(*weights, i);
        float *values = malloc(((size_t)tensor->elements + 1) * sizeof *values);
        if (!raft_tensor_read_f32(tensor, values, NULL) && tensor->elements)
            sum += values[tensor->elements - 1];
        free(values);
    }
    (void)sum;
    free(exact);
    return status;
}

#define VAST ((int64_t)1 << 62)

static void test_views_claimed(void **state)
{
    (void)state;
    static const Claim claims[] = {
        {6, 0, 2, {2, 3}, {3, 1}, NULL},
        {6, 0, 2, {3, 2}, {1, 3}, NULL},
        {6, 5, 1, {1}, {VAST}, NULL},
        {6, 5, 0, {0}, {0}, NULL},
        {6, 6, 1, {0}, {1}, NULL},
        {6, VAST, 2, {0, VAST}, {VAST, VAST}, NULL},
        {6, 0, 1, {6}, {0}, NULL},
        {6, 1, 2, {2, 3}, {3, 1}, "reaches past the end"},
        {6, 6, 0, {0}, {0}, "reaches past the end"},
        {6, 0, 1, {7}, {1}, "reaches past the end"},
        {6, 0, 1, {2}, {6}, "reaches past the end"},
        {6, 0, 1, {2}, {VAST}, "reaches past the end"},
        {6, VAST, 1, {3}, {VAST}, "reaches past the end"},
        {6, 0, 1, {5}, {VAST}, "reaches past the end"},
        {6, 0, 1, {7}, {0}, NULL}, /* expanded: little */
        {6, 0, 1, {4096}, {0}, "elements overlap"},
        {6, 0, 1, {VAST}, {0}, "elements overlap"},
        {6, 0, 2, {VAST, 4}, {0, 0}, "shape or strides"},
        {6, 0, 2, {2, 3}, {3, -1}, "shape or strides"},
        {6, 0, 1, {-1}, {1}, "shape or strides"},
        {6, -1, 1, {1}, {1}, "not described as torch.save does"},
        {6, 0, 9, {1, 1, 1, 1, 1, 1, 1, 1, 1}, {0}, "more than 8 axes"},
        {7, 0, 1, {6}, {1}, "storage '7' has 6 elements, where its tensors say 7"},
        {5, 0, 1, {5}, {1}, "storage '7' has 6 elements, where its tensors say 5"},
        {VAST + 6, 0, 1, {6}, {1}, "storage '7' has 6 elements"},
        {-6, 0, 1, {6}, {1}, "not described as torch.save does"},
    };
    for (size_t i = 0; i < sizeof claims / sizeof claims[0]; i++) {
        Buffer file;
        RaftWeights *weights;
        RaftError error = {"no message"};
        make_old_file(&claims[i], &file);
        RaftStatus status = parse(file.bytes, file.size, &weights, &error);
        if (status != (claims[i].message ? RAFT_BAD_FILE : RAFT_OK))
            fail_msg("claim %d: status %d, %s", (int)i, status, error.message);
        if (claims[i].message) {
            assert_message(&error, "x: byte ");
            assert_message(&error, claims[i].message);
        }
        raft_weights_close(weights);
    }
}

static void test_old_file(void **state)
{
    (void)state;
    static const Claim transposed = {6, 0, 2, {3, 2}, {1, 3}, NULL};
    static const float wanted[] = {0, 3, 1, 4, 2, 5};
    Buffer file;
    RaftWeights *weights;
    RaftError error = {"no message"};
    make_old_file(&transposed, &file);
    assert_int_equal(rt_weights_parse("x", file.bytes, file.size, &weights, &error), RAFT_OK);
    assert_memory_equal(raft_weights_find(weights, "w")->data, wanted, sizeof wanted);
    raft_weights_close(weights);
    PUT(&file, "!");
    assert_int_equal(rt_weights_parse("x", file.bytes, file.size, &weights, &error), RAFT_BAD_FILE);
    assert_message(&error, "more bytes than the storages take");
}

static const char *const good_files[] = {WEIGHTS "views.pt", WEIGHTS "views_old.pt",
                                         WEIGHTS "wrapped.pt", WEIGHTS "wrapped_old.pt"};

static void test_truncated(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof good_files / sizeof good_files[0]; i++) {
        RtFile file;
        assert_int_equal(rt_file_map(good_files[i], &file, NULL), RAFT_OK);
        for (size_t size = 0; size < file.size; size++) {
            RaftWeights *weights;
            RaftError error = {"no message"};
            if (parse(file.data, size, &weights, &error) != RAFT_BAD_FILE)
                fail_msg("%s: %d bytes are read", good_files[i], (int)size);
            assert_message(&error, "x: byte ");
        }
        rt_file_unmap(&file);
    }
}

static void test_flipped_bits(void **state)
{
    (void)state;
    uint64_t random = 88172645463325252u; /* xorshift64 */
    int refused = 0, tried = 0;
    for (size_t i = 0; i < sizeof good_files / sizeof good_files[0]; i++) {
        RtFile file;
        assert_int_equal(rt_file_map(good_files[i], &file, NULL), RAFT_OK);
        uint8_t *damaged = malloc(file.size);
        for (int n = 0; n < 1000; n++, tried++) {
            RaftWeights *weights;
            RaftError error = {"no message"};
            memcpy(damaged, file.data, file.size);
            for (int k = 0; k <= n % 3; k++) {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                damaged[random / 8 % file.size] ^= (uint8_t)(1 << random % 8);
            }
            if (parse(damaged, file.size, &weights, &error)) {
                assert_message(&error, "x");
                assert_message(&error, ": ");
                refused++;
            }
            raft_weights_close(weights);
        }
        free(damaged);
        rt_file_unmap(&file);
    }
    assert_in_range(refused, tried / 4, tried - 1);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tiny),          cmocka_unit_test(test_views),
        cmocka_unit_test(test_wrapped),       cmocka_unit_test(test_refused),
        cmocka_unit_test(test_checkpoints),   cmocka_unit_test(test_expanded),
        cmocka_unit_test(test_buffers),       cmocka_unit_test(test_written),
        cmocka_unit_test(test_pickles),       cmocka_unit_test(test_every_opcode),
        cmocka_unit_test(test_pickle_limits), cmocka_unit_test(test_views_claimed),
        cmocka_unit_test(test_old_file),      cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_flipped_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
