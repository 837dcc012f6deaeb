/* safetensors.c: the safetensors format, read and written.
 *
 *     8 bytes: N, little-endian | N bytes: a JSON object, padded with spaces | the data
 *     {"__metadata__": {"key": "value"}, "name": {"dtype": "F32", "shape": [64, 48],
 *      "data_offsets": [0, 12288]}}
 *
 * The tensors' ranges must cover the data exactly, without overlap or hole, so that no byte of a
 * file escapes the checks. The JSON itself is jansson's; what is checked here is what it says.
 */
#include "runtime/rt.h"

#include <assert.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { LENGTH_BYTES = 8, MAX_HEADER = 16 << 20, MAX_RANK = 8 };
static_assert(sizeof((RaftTensor *)0)->shape == MAX_RANK * sizeof(int64_t), "as RaftTensor");

typedef struct Format {
    const char *name;
    RaftDType dtype;
    int64_t bytes; /* of an element */
} Format;

/* clang-format off */
static const Format formats[] = {
    {"F32", RAFT_F32, 4}, {"F16", RAFT_F16, 2}, {"BF16", RAFT_BF16, 2}, {"F64", RAFT_F64, 8},
    {"I8", RAFT_I8, 1}, {"I16", RAFT_I16, 2}, {"I32", RAFT_I32, 4}, {"I64", RAFT_I64, 8},
    {"U8", RAFT_U8, 1}, {"BOOL", RAFT_BOOL, 1}, {"U16", RAFT_OTHER, 2}, {"U32", RAFT_OTHER, 4},
    {"U64", RAFT_OTHER, 8}, {"C64", RAFT_OTHER, 8},
    {"F8_E4M3", RAFT_OTHER, 1}, {"F8_E5M2", RAFT_OTHER, 1}, {"F8_E8M0", RAFT_OTHER, 1},
};
/* clang-format on */
enum { FORMATS = sizeof formats / sizeof formats[0] };

/* ---- reading --------------------------------------------------------------------------------- */

typedef struct Reader {
    RaftWeights *weights;
    const uint8_t *file;
    int64_t data_start, data_size; /* in bytes; the header lies before */
    RaftError *error;
} Reader;

typedef struct Entry {
    RaftTensor tensor;
    int64_t begin, end; /* of its data, in bytes from data_start */
} Entry;

/* Where `key` stands in the header: the JSON tree keeps no places. */
static uint64_t offset_of(const Reader *reader, const char *key)
{
    const char *start = (const char *)reader->file, *end = start + reader->data_start;
    size_t length = strlen(key);
    for (const char *p = start + LENGTH_BYTES; (p = memchr(p, '"', end - p)); p++)
        if ((size_t)(end - p) > length + 1 && !memcmp(p + 1, key, length) && p[length + 1] == '"')
            return (uint64_t)(p - start);
    return LENGTH_BYTES; /* it is written with escapes */
}

static RaftStatus bad_entry(const Reader *reader, const char *name, const char *problem)
{
    return rt_bad_file(reader->error, reader->weights->path, offset_of(reader, name),
                       "tensor '%s': %s", name, problem);
}

/* Reads `count` non-negative integers. */
static bool read_extents(const json_t *array, size_t count, int64_t *extent)
{
    for (size_t i = 0; i < count; i++) {
        const json_t *item = json_array_get(array, i);
        if (!json_is_integer(item) || json_integer_value(item) < 0) return false;
        extent[i] = json_integer_value(item);
    }
    return true;
}

static const Format *find_format(const char *name)
{
    for (int i = 0; i < FORMATS; i++)
        if (!strcmp(formats[i].name, name)) return &formats[i];
    return NULL;
}

static RaftStatus read_entry(const Reader *reader, const char *name, const json_t *json,
                             Entry *entry)
{
    const json_t *dtype = json_object_get(json, "dtype");
    const json_t *shape = json_object_get(json, "shape");
    const json_t *offsets = json_object_get(json, "data_offsets");
    RaftTensor *tensor = &entry->tensor;
    int64_t range[2], bytes;
    if (!json_is_string(dtype) || !json_is_array(shape) || !json_is_array(offsets))
        return bad_entry(reader, name,
                         "needs \"dtype\", a string, and \"shape\" and "
                         "\"data_offsets\", arrays");
    const Format *format = find_format(json_string_value(dtype));
    if (!format) return bad_entry(reader, name, "unknown dtype; F32, F16, BF16 and F64 are usual");
    if (json_array_size(shape) > MAX_RANK) return bad_entry(reader, name, "more than 8 axes");
    if (!read_extents(shape, json_array_size(shape), tensor->shape))
        return bad_entry(reader, name, "an extent of the shape is not a whole number from 0 on");
    if (json_array_size(offsets) != 2 || !read_extents(offsets, 2, range))
        return bad_entry(reader, name, "data_offsets must be two whole numbers, begin and end");
    if (range[0] > range[1] || range[1] > reader->data_size)
        return bad_entry(reader, name,
                         "data_offsets must run forwards, within the data that the file holds");
    if (!rt_count_elements((int)json_array_size(shape), tensor->shape, &tensor->elements) ||
        __builtin_mul_overflow(tensor->elements, format->bytes, &bytes) ||
        bytes != range[1] - range[0])
        return bad_entry(reader, name, "shape and dtype do not fit the size in data_offsets");

    tensor->name = rt_strdup(&reader->weights->arena, name, strlen(name));
    if (!tensor->name) return rt_no_memory(reader->error, reader->weights->path);
    tensor->dtype = format->dtype;
    tensor->rank = (int)json_array_size(shape);
    tensor->data = reader->file + reader->data_start + range[0];
    entry->begin = range[0];
    entry->end = range[1];
    return RAFT_OK;
}

static RaftStatus bad_metadata(const Reader *reader)
{
    return rt_bad_file(reader->error, reader->weights->path, offset_of(reader, "__metadata__"),
                       "__metadata__ must be an object whose values are strings");
}

static RaftStatus read_metadata(const Reader *reader, json_t *json)
{
    RaftWeights *weights = reader->weights;
    const char *key;
    json_t *value;
    if (!json_is_object(json)) return bad_metadata(reader);
    weights->metadata = rt_alloc(&weights->arena, 2 * json_object_size(json), sizeof(char *));
    if (!weights->metadata) return rt_no_memory(reader->error, weights->path);
    json_object_foreach(json, key, value)
    {
        if (!json_is_string(value)) return bad_metadata(reader);
        const char **pair = &weights->metadata[2 * weights->metadata_count++];
        pair[0] = rt_strdup(&weights->arena, key, strlen(key));
        pair[1] = rt_strdup(&weights->arena, json_string_value(value), json_string_length(value));
        if (!pair[0] || !pair[1]) return rt_no_memory(reader->error, weights->path);
    }
    return RAFT_OK;
}

static int compare_entries(const void *a, const void *b)
{
    const Entry *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    if (x->end != y->end) return x->end < y->end ? -1 : 1; /* an empty one comes first */
    return strcmp(x->tensor.name, y->tensor.name);
}

/* Checks that the sorted entries cover the data exactly, and takes their tensors over. */
static RaftStatus take_tensors(const Reader *reader, const Entry *entries, int count)
{
    RaftWeights *weights = reader->weights;
    int64_t end = 0;
    weights->tensor = rt_alloc(&weights->arena, count, sizeof *weights->tensor);
    if (!weights->tensor) return rt_no_memory(reader->error, weights->path);
    for (int i = 0; i < count; end = entries[i++].end) {
        const Entry *entry = &entries[i];
        if (entry->begin != end)
            return rt_bad_file(
                reader->error, weights->path, offset_of(reader, entry->tensor.name),
                "data of tensor '%s' begins at %lld; the data before it ends at %lld",
                entry->tensor.name, (long long)entry->begin, (long long)end);
        weights->tensor[weights->count++] = entry->tensor;
    }
    if (end != reader->data_size)
        return rt_bad_file(reader->error, weights->path, (uint64_t)(reader->data_start + end),
                           "the last tensor ends here, but %lld more bytes follow",
                           (long long)(reader->data_size - end));
    return RAFT_OK;
}

static RaftStatus read_header(const Reader *reader, json_t *header)
{
    int count = 0;
    const char *name;
    json_t *value;
    RaftStatus status = RAFT_OK;
    if (!json_is_object(header))
        return rt_bad_file(reader->error, reader->weights->path, LENGTH_BYTES,
                           "the header is not a JSON object");
    Entry *entries = calloc(json_object_size(header) + 1, sizeof *entries);
    if (!entries) return rt_no_memory(reader->error, reader->weights->path);
    json_object_foreach(header, name, value)
    {
        if (!strcmp(name, "__metadata__"))
            status = read_metadata(reader, value);
        else
            status = read_entry(reader, name, value, &entries[count++]);
        if (status) break;
    }
    qsort(entries, count, sizeof *entries, compare_entries);
    if (!status) status = take_tensors(reader, entries, count);
    free(entries);
    return status;
}

RaftStatus rt_safetensors_read(RaftWeights *weights, const uint8_t *data, size_t size,
                               RaftError *error)
{
    const char *path = weights->path;
    uint64_t length = 0;
    if (size < LENGTH_BYTES)
        return rt_bad_file(error, path, size,
                           "the file ends within the 8 bytes that a safetensors "
                           "file begins with");
    for (int i = 0; i < LENGTH_BYTES; i++) length |= (uint64_t)data[i] << 8 * i;
    if (length > MAX_HEADER || length > size - LENGTH_BYTES)
        return rt_bad_file(error, path, 0,
                           "a header of %llu bytes; at most %zu fit, and 16 MiB is the "
                           "limit (is it a safetensors file?)",
                           (unsigned long long)length, size - LENGTH_BYTES);
    if (length == 0 || data[LENGTH_BYTES] != '{')
        return rt_bad_file(error, path, LENGTH_BYTES, "the header must begin with '{'");

    json_error_t problem;
    json_t *header =
        json_loadb((const char *)data + LENGTH_BYTES, length, JSON_REJECT_DUPLICATES, &problem);
    if (!header && !problem.text[0]) return rt_no_memory(error, path);
    if (!header)
        return rt_bad_file(error, path, LENGTH_BYTES + (uint64_t)problem.position, "the header: %s",
                           problem.text);
    Reader reader = {.weights = weights, .file = data, .error = error};
    reader.data_start = LENGTH_BYTES + (int64_t)length;
    reader.data_size = (int64_t)size - reader.data_start;
    RaftStatus status = read_header(&reader, header);
    json_decref(header);
    return status;
}

/* ---- writing, here and in torchwrite.c ------------------------------------------------------- */

static const Format *format_of(RaftDType dtype)
{
    for (int i = 0; i < FORMATS; i++)
        if (formats[i].dtype == dtype && dtype != RAFT_OTHER) return &formats[i];
    return NULL;
}

static bool is_utf8(const char *text)
{
    for (const uint8_t *c = (const uint8_t *)text; *c; c++) {
        int more = *c < 0x80   ? 0
                   : *c < 0xc2 ? -1
                   : *c < 0xe0 ? 1
                   : *c < 0xf0 ? 2
                   : *c < 0xf5 ? 3
                               : -1;
        uint8_t first = *c; /* the next may be neither overlong, a surrogate, nor past U+10FFFF */
        if (more < 0 || (first == 0xe0 && c[1] < 0xa0) || (first == 0xed && c[1] > 0x9f) ||
            (first == 0xf0 && c[1] < 0x90) || (first == 0xf4 && c[1] > 0x8f))
            return false;
        for (; more > 0; more--)
            if ((*++c & 0xc0) != 0x80) return false;
    }
    return true;
}

/* Why jansson took no text: its bytes, or memory. */
static RaftStatus not_taken(RaftError *error, const char *text, const char *what, const char *name)
{
    if (is_utf8(text)) return rt_no_memory(error, "writing weights");
    return rt_fail(error, RAFT_INVALID, "%s '%s' is not UTF-8", what, name);
}

/* Adds a tensor, whose data begins at `*end`, to the header and moves `*end` behind it. */
static RaftStatus add_tensor(json_t *header, const RaftTensor *tensor, int64_t *end,
                             RaftError *error)
{
    const Format *format = format_of(tensor->dtype);
    int64_t elements, begin = *end, bytes;
    if (tensor->dtype == RAFT_OTHER)
        return rt_fail(
            error, RAFT_INVALID,
            "tensor '%s': its type cannot be written; f32, f16, bf16, f64, i8, i16, i32, "
            "i64, u8 and bool can",
            tensor->name);
    if (!format || tensor->rank < 0 || tensor->rank > MAX_RANK ||
        !rt_count_elements(tensor->rank, tensor->shape, &elements) ||
        __builtin_mul_overflow(elements, format->bytes, &bytes) ||
        __builtin_add_overflow(begin, bytes, end))
        return rt_fail(error, RAFT_INVALID, "tensor '%s': its dtype or shape cannot be written",
                       tensor->name);
    if (json_object_get(header, tensor->name))
        return rt_fail(error, RAFT_INVALID, "two tensors are called '%s'", tensor->name);
    bool good = true;
    json_t *shape = json_array();
    for (int i = 0; i < tensor->rank; i++)
        good = !json_array_append_new(shape, json_integer(tensor->shape[i])) && good;
    json_t *entry = json_pack("{s:s, s:o, s:[I, I]}", "dtype", format->name, "shape", shape,
                              "data_offsets", (json_int_t)begin, (json_int_t)*end);
    if (!good || !entry) {
        json_decref(entry);
        return rt_no_memory(error, "writing weights");
    }
    if (json_object_set_new(header, tensor->name, entry))
        return not_taken(error, tensor->name, "the name of a tensor", tensor->name);
    return RAFT_OK;
}

static RaftStatus add_metadata(json_t *header, const char *const *metadata, RaftError *error)
{
    json_t *object = json_object();
    if (json_object_set_new(header, "__metadata__", object))
        return rt_no_memory(error, "writing weights");
    for (int i = 0; metadata[i]; i += 2)
        if (json_object_set_new(object, metadata[i], json_string(metadata[i + 1])))
            return not_taken(error, is_utf8(metadata[i]) ? metadata[i + 1] : metadata[i],
                             "metadata", metadata[i]);
    return RAFT_OK;
}

/* The header's text, padded so that the data begin at a multiple of 8; NULL if memory is out. */
static char *print_header(const json_t *header, size_t *length)
{
    size_t text_length = json_dumpb(header, NULL, 0, JSON_COMPACT); /* 0: no memory */
    *length = (text_length + 7) / 8 * 8;
    char *text = text_length ? malloc(*length + 1) : NULL;
    if (!text) return NULL;
    memset(text, ' ', *length);
    if (json_dumpb(header, text, text_length, JSON_COMPACT) == text_length) return text;
    free(text);
    return NULL;
}

static RaftStatus write_file(const char *path, const char *header, size_t length,
                             const RaftTensor *tensors, int count, RaftError *error)
{
    RtOutput output;
    uint8_t prefix[LENGTH_BYTES];
    RaftStatus status = rt_output_open(path, &output, error);
    if (status) return status;
    for (int i = 0; i < LENGTH_BYTES; i++) prefix[i] = (uint8_t)(length >> 8 * i);
    rt_output_write(&output, prefix, sizeof prefix);
    rt_output_write(&output, header, length);
    for (int i = 0; i < count; i++) {
        int64_t elements = 0;
        rt_count_elements(tensors[i].rank, tensors[i].shape, &elements);
        rt_output_write(&output, tensors[i].data,
                        (size_t)elements * (size_t)format_of(tensors[i].dtype)->bytes);
    }
    return rt_output_commit(&output, error);
}

static bool is_torch_name(const char *path)
{
    size_t length = strlen(path);
    return length > 3 && !strcmp(path + length - 3, ".pt");
}

RaftStatus raft_weights_write(const char *path, const RaftTensor *tensors, int count,
                              const char *const *metadata, RaftError *error)
{
    int64_t end = 0;
    size_t length = 0;
    json_t *header = json_object();
    RaftStatus status = header ? RAFT_OK : rt_no_memory(error, path);
    if (!status && metadata && metadata[0]) status = add_metadata(header, metadata, error);
    for (int i = 0; !status && i < count; i++)
        status = add_tensor(header, &tensors[i], &end, error);
    if (status || is_torch_name(path)) {
        json_decref(header);
        return status ? status : rt_torch_write(path, tensors, count, error);
    }
    char *text = print_header(header, &length);
    if (!text) status = rt_no_memory(error, path);
    if (!status && length > MAX_HEADER)
        status = rt_fail(error, RAFT_INVALID, "%s: the header would exceed 16 MiB", path);
    if (!status) status = write_file(path, text, length, tensors, count, error);
    free(text);
    json_decref(header);
    return status;
}
