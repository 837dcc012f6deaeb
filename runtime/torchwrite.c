/* torchwrite.c: weights as torch.load reads them: an archive as in torchfile.c, by libzip.
 *
 * Its pickle makes an OrderedDict; each tensor has a storage to itself, entry archive/data/INDEX. */
#include "runtime/pickle.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zip.h>

/* ---- the pickle ------------------------------------------------------------------------------ */

typedef struct Bytes {
    char *data;
    size_t size, capacity;
    bool failed; /* memory ran out */
} Bytes;

static void put(Bytes *bytes, const void *data, size_t size)
{
    if (size > bytes->capacity - bytes->size) {
        size_t capacity = 2 * (bytes->size + size);
        char *grown = bytes->failed ? NULL : realloc(bytes->data, capacity);
        if (!grown) {
            bytes->failed = true;
            return;
        }
        bytes->data = grown;
        bytes->capacity = capacity;
    }
    memcpy(bytes->data + bytes->size, data, size);
    bytes->size += size;
}
#define PUT(bytes, literal) put(bytes, literal, sizeof(literal) - 1)

static void put_text(Bytes *bytes, const char *text)
{
    uint32_t length = (uint32_t)strlen(text);
    PUT(bytes, "X");
    put(bytes, &length, sizeof length);
    put(bytes, text, length);
}

static void put_integer(Bytes *bytes, int64_t integer)
{
    PUT(bytes, "\x8a\x08");
    put(bytes, &integer, sizeof integer);
}

static void put_global(Bytes *bytes, const char *module, const char *name)
{
    PUT(bytes, "c");
    put(bytes, module, strlen(module));
    PUT(bytes, "\n");
    put(bytes, name, strlen(name));
    PUT(bytes, "\n");
}

static void put_tensor(Bytes *bytes, const RaftTensor *tensor, int64_t elements, int index)
{
    const PickleGlobal *storage = rt_pickle_storage(tensor->dtype);
    int64_t stride[sizeof tensor->shape / sizeof *tensor->shape], next = 1;
    char key[16];
    snprintf(key, sizeof key, "%d", index);
    put_text(bytes, tensor->name);
    put_global(bytes, "torch._utils", "_rebuild_tensor_v2");
    PUT(bytes, "((");
    put_text(bytes, "storage");
    put_global(bytes, storage->module, storage->name);
    put_text(bytes, key);
    put_text(bytes, "cpu");
    put_integer(bytes, elements);
    PUT(bytes, "tQK\0("); /* offset 0; the shape */
    for (int i = 0; i < tensor->rank; i++) put_integer(bytes, tensor->shape[i]);
    PUT(bytes, "t(");
    for (int i = tensor->rank - 1; i >= 0; i--) {
        stride[i] = next;
        next *= tensor->shape[i] ? tensor->shape[i] : 1;
    }
    for (int i = 0; i < tensor->rank; i++) put_integer(bytes, stride[i]);
    PUT(bytes, "t\x89"); /* no gradient, no hooks */
    put_global(bytes, "collections", "OrderedDict");
    PUT(bytes, ")RtR");
}

/* ---- the archive ----------------------------------------------------------------------------- */

/* Where libzip writes to. */
typedef struct Sink {
    RtOutput output;
    int64_t position;
    zip_error_t error;
} Sink;

static zip_int64_t seek(Sink *sink, void *data, zip_uint64_t length)
{
    zip_int64_t to = zip_source_seek_compute_offset((zip_uint64_t)sink->position, INT64_MAX, data,
                                                    length, &sink->error);
    if (to < 0) return -1;
    sink->position = to;
    rt_output_seek(&sink->output, to);
    return 0;
}

/* What libzip asks of the file: it is new, and written from its start. */
static zip_int64_t serve(void *user, void *data, zip_uint64_t length, zip_source_cmd_t command)
{
    Sink *sink = user;
    switch (command) {
    case ZIP_SOURCE_SUPPORTS:
        return ZIP_SOURCE_SUPPORTS_WRITABLE;
    case ZIP_SOURCE_STAT:
        zip_error_set(&sink->error, ZIP_ER_READ, ENOENT);
        return -1;
    case ZIP_SOURCE_ERROR:
        return zip_error_to_data(&sink->error, data, length);
    case ZIP_SOURCE_WRITE:
        rt_output_write(&sink->output, data, length);
        sink->position += (int64_t)length;
        break;
    case ZIP_SOURCE_SEEK_WRITE:
        if (seek(sink, data, length)) return -1;
        break;
    case ZIP_SOURCE_TELL_WRITE:
        return sink->position;
    case ZIP_SOURCE_BEGIN_WRITE:
    case ZIP_SOURCE_COMMIT_WRITE: /* rt_torch_write does */
    case ZIP_SOURCE_ROLLBACK_WRITE:
    case ZIP_SOURCE_FREE:
        return 0;
    default:
        zip_error_set(&sink->error, ZIP_ER_OPNOTSUPP, 0);
        return -1;
    }
    if (!sink->output.failure) return command == ZIP_SOURCE_WRITE ? (zip_int64_t)length : 0;
    zip_error_set(&sink->error, ZIP_ER_WRITE, sink->output.failure);
    return -1;
}

/* Stored, as torch.load wants, and of no time, so that the same weights give the same bytes. */
static bool add_entry(zip_t *archive, const char *name, const void *data, size_t size)
{
    enum { YEAR_1980 = 1 << 5 | 1 };
    zip_source_t *source = zip_source_buffer(archive, data, size, 0);
    zip_int64_t index = source ? zip_file_add(archive, name, source, ZIP_FL_ENC_UTF_8) : -1;
    if (index < 0) zip_source_free(source);
    return index >= 0 && !zip_set_file_compression(archive, (zip_uint64_t)index, ZIP_CM_STORE, 0) &&
           !zip_file_set_dostime(archive, (zip_uint64_t)index, 0, YEAR_1980, 0);
}

static bool add_entries(zip_t *archive, const Bytes *pickle, const RaftTensor *tensors, int count)
{
    char name[40];
    bool good = add_entry(archive, "archive/data.pkl", pickle->data, pickle->size) &&
                add_entry(archive, "archive/byteorder", "little", 6);
    for (int i = 0; good && i < count; i++) {
        int64_t elements = 0;
        rt_count_elements(tensors[i].rank, tensors[i].shape, &elements);
        snprintf(name, sizeof name, "archive/data/%d", i);
        good = add_entry(archive, name, tensors[i].data,
                         (size_t)elements *
                             (size_t)rt_pickle_storage(tensors[i].dtype)->element_bytes);
    }
    return good && add_entry(archive, "archive/version", "3\n", 2);
}

/* True where libzip gave everything to the sink, whose writes may have failed all the same. */
static bool write_archive(Sink *sink, const Bytes *pickle, const RaftTensor *tensors, int count)
{
    zip_source_t *source = zip_source_function_create(serve, sink, &sink->error);
    zip_t *archive =
        source ? zip_open_from_source(source, ZIP_CREATE | ZIP_TRUNCATE, &sink->error) : NULL;
    if (!archive) zip_source_free(source);
    if (archive && add_entries(archive, pickle, tensors, count) && !zip_close(archive)) return true;
    if (archive) zip_discard(archive);
    return false;
}

static RaftStatus write_torch(const char *path, const Bytes *pickle, const RaftTensor *tensors,
                              int count, RaftError *error)
{
    Sink sink = {.position = 0};
    RaftStatus status = rt_output_open(path, &sink.output, error);
    if (status) return status;
    zip_error_init(&sink.error);
    bool good = write_archive(&sink, pickle, tensors, count);
    zip_error_fini(&sink.error);
    if (good || sink.output.failure) return rt_output_commit(&sink.output, error);
    rt_output_discard(&sink.output);
    return rt_no_memory(error, path); /* what else can go wrong there */
}

RaftStatus rt_torch_write(const char *path, const RaftTensor *tensors, int count, RaftError *error)
{
    Bytes pickle = {0};
    PUT(&pickle, "\x80\x02");
    put_global(&pickle, "collections", "OrderedDict");
    PUT(&pickle, ")R(");
    for (int i = 0; i < count; i++) {
        int64_t elements = 0;
        rt_count_elements(tensors[i].rank, tensors[i].shape, &elements);
        put_tensor(&pickle, &tensors[i], elements, i);
    }
    PUT(&pickle, "u.");
    RaftStatus status = pickle.failed ? rt_no_memory(error, path)
                                      : write_torch(path, &pickle, tensors, count, error);
    free(pickle.data);
    return status;
}
