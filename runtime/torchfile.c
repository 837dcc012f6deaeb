/* torchfile.c: weights as torch.save writes them.
 *
 *     since PyTorch 1.6   a zip archive of stored entries: NAME/data.pkl, and NAME/data/KEY for
 *                         each storage (the memory of one tensor or of several)
 *     before              pickles one after another: a magic number, the version, about the
 *                         machine, the object, the keys of the storages; then each storage:
 *                         8 bytes that count its elements, and these
 *
 * In both, the object is a state_dict, names with tensors, or a dictionary that holds one as
 * `model`, `state_dict` or `model_state_dict`; each tensor names a storage and says by offset and strides what of it is
 * its own. libzip reads archives; pickle.c reads pickles and runs nothing of them. */
#include "runtime/pickle.h"

#include <stdlib.h>
#include <string.h>
#include <zip.h>

enum { MAX_RANK = 8 };

/* A storage of the old format. */
typedef struct Storage {
    const char *key;
    const PickleGlobal *type;
    int64_t elements;
    const uint8_t *data; /* NULL: not found yet */
} Storage;

typedef struct TorchFile {
    RaftWeights *weights;
    const uint8_t *data;
    size_t size;
    const char *where; /* the path, and in an archive the entry with the pickle */
    RtArena arena;     /* what is needed only while reading */
    Pickle pickle;
    size_t
        copied; /* bytes of tensors and storages that were copied; the file's size is the limit */
    RaftError *error;

    zip_t *archive;
    const char *folder; /* NAME of the entries */
    uint8_t **loaded;   /* by the index of the entry: NULL, or a storage */

    Storage *storage; /* sorted by key */
    uint32_t storage_count;
} TorchFile;

static RaftStatus bad(const TorchFile *file, const PickleValue *value, const char *name,
                      const char *problem)
{
    return rt_bad_file(file->error, file->where, value->offset, "'%s': %s", name, problem);
}

/* What a persistent identifier says: ('storage', type, key, device, elements[, None]). */
static bool describe_storage(const PickleValue *value, Storage *storage)
{
    if (value->kind != PICKLE_PERSISTENT || value->list.item[0]->kind != PICKLE_TUPLE) return false;
    const PickleList *list = &value->list.item[0]->list;
    PickleValue *const *item = list->item;
    if (list->count < 5 || list->count > 6 || (list->count == 6 && item[5]->kind != PICKLE_NONE))
        return false;
    if (item[0]->kind != PICKLE_TEXT || strcmp(item[0]->text, "storage") ||
        item[1]->kind != PICKLE_GLOBAL || item[1]->global->role != ROLE_STORAGE ||
        item[2]->kind != PICKLE_TEXT || item[4]->kind != PICKLE_INTEGER || item[4]->integer < 0)
        return false;
    *storage =
        (Storage){.key = item[2]->text, .type = item[1]->global, .elements = item[4]->integer};
    return true;
}

/* Counts bytes that are about to be copied: many tensors may claim the same ones. */
static bool may_copy(TorchFile *file, int64_t bytes)
{
    enum { MOST_COPIES = 4 };
    if ((uint64_t)bytes / MOST_COPIES > file->size - file->copied / MOST_COPIES) return false;
    file->copied += (size_t)bytes;
    return true;
}

static int compare_keys(const void *a, const void *b)
{
    return strcmp(((const Storage *)a)->key, ((const Storage *)b)->key);
}

/* ---- archives -------------------------------------------------------------------------------- */

static RaftStatus bad_entry(const TorchFile *file, const char *name, const char *problem)
{
    return rt_bad_file(file->error, file->weights->path, 0, "archive entry '%s': %s", name,
                       problem);
}

/* Reads an entry, whose bytes are checked against their CRC. */
static RaftStatus read_entry(TorchFile *file, zip_uint64_t index, RtArena *arena, uint8_t **bytes,
                             size_t *size)
{
    enum { NEEDED = ZIP_STAT_SIZE | ZIP_STAT_COMP_SIZE | ZIP_STAT_COMP_METHOD };
    const char *name = zip_get_name(file->archive, index, 0);
    zip_stat_t status;
    if (!name || zip_stat_index(file->archive, index, 0, &status) ||
        (status.valid & NEEDED) != NEEDED)
        return bad_entry(file, name ? name : "?", "cannot be found");
    if (status.comp_method != ZIP_CM_STORE || status.comp_size != status.size ||
        ((status.valid & ZIP_STAT_ENCRYPTION_METHOD) && status.encryption_method != ZIP_EM_NONE))
        return bad_entry(file, name, "compressed or encrypted; torch.save stores");
    if (status.size > file->size || !may_copy(file, (int64_t)status.size))
        return bad_entry(file, name, "more bytes than the file holds");
    *size = status.size;
    *bytes = rt_alloc(arena, status.size, 1);
    zip_file_t *entry = *bytes ? zip_fopen_index(file->archive, index, 0) : NULL;
    if (!*bytes) return rt_no_memory(file->error, file->weights->path);
    uint8_t past;
    /* the CRC is checked where the end is reached */
    bool good = entry && zip_fread(entry, *bytes, *size) == (zip_int64_t)*size &&
                zip_fread(entry, &past, 1) == 0;
    bool no_memory = zip_error_code_zip(entry ? zip_file_get_error(entry)
                                              : zip_get_error(file->archive)) == ZIP_ER_MEMORY;
    if (entry) zip_fclose(entry);
    if (no_memory) return rt_no_memory(file->error, file->weights->path);
    return good ? RAFT_OK : bad_entry(file, name, "damaged: its CRC or headers are wrong");
}

/* Sets *index to that of the entry `folder/NAME`, -1 where there is none. */
static RaftStatus find_entry(const TorchFile *file, const char *name, zip_int64_t *index)
{
    char path[512];
    int length = snprintf(path, sizeof path, "%s/%s", file->folder, name);
    if (length >= (int)sizeof path) return bad_entry(file, name, "a name of over 500 bytes");
    *index = zip_name_locate(file->archive, path, 0);
    return RAFT_OK;
}

static RaftStatus load_archived(TorchFile *file, const Storage *storage, int64_t bytes,
                                const uint8_t **data)
{
    char name[256];
    zip_int64_t index = -1;
    zip_stat_t entry;
    if (snprintf(name, sizeof name, "data/%s", storage->key) >= (int)sizeof name)
        return bad_entry(file, "data/", "a key of over 250 bytes");
    RaftStatus status = find_entry(file, name, &index);
    if (status) return status;
    if (index < 0) return bad_entry(file, name, "is missing");
    if (zip_stat_index(file->archive, (zip_uint64_t)index, 0, &entry) ||
        !(entry.valid & ZIP_STAT_SIZE) || entry.size != (zip_uint64_t)bytes)
        return bad_entry(file, name, "not of the size that data.pkl says");
    uint8_t **loaded = &file->loaded[index];
    size_t size;
    if (!*loaded)
        status = read_entry(file, (zip_uint64_t)index, &file->weights->arena, loaded, &size);
    *data = *loaded;
    return status;
}

/* ---- tensors --------------------------------------------------------------------------------- */

static RaftStatus find_storage(TorchFile *file, const char *name, const PickleValue *value,
                               Storage *storage)
{
    int64_t bytes;
    if (!describe_storage(value, storage) ||
        __builtin_mul_overflow(storage->elements, storage->type->element_bytes, &bytes))
        return bad(file, value, name, "its storage is not described as torch.save does");
    if (file->archive) return load_archived(file, storage, bytes, &storage->data);
    const Storage *found =
        bsearch(storage, file->storage, file->storage_count, sizeof *storage, compare_keys);
    if (!found || !found->data) return bad(file, value, name, "its storage is missing");
    if (found->type != storage->type || found->elements != storage->elements)
        return bad(file, value, name, "its storage is described otherwise elsewhere");
    *storage = *found;
    return RAFT_OK;
}

static bool read_extents(const PickleValue *value, int count, int64_t *extent)
{
    if (value->kind != PICKLE_TUPLE || value->list.count != (uint32_t)count) return false;
    for (int i = 0; i < count; i++) {
        const PickleValue *item = value->list.item[i];
        if (item->kind != PICKLE_INTEGER || item->integer < 0) return false;
        extent[i] = item->integer;
    }
    return true;
}

/* Where a tensor lies in its storage, in elements. */
typedef struct View {
    int64_t offset, stride[MAX_RANK];
} View;

/* The position of the last element; false where it is past what a number holds. */
static bool find_last(const RaftTensor *tensor, const View *view, int64_t *last)
{
    *last = view->offset;
    for (int i = 0; i < tensor->rank; i++) {
        int64_t span;
        if (__builtin_mul_overflow(tensor->shape[i] - 1, view->stride[i], &span) ||
            __builtin_add_overflow(*last, span, last))
            return false;
    }
    return true;
}

static bool is_contiguous(const RaftTensor *tensor, const View *view)
{
    int64_t expected = 1;
    for (int i = tensor->rank - 1; i >= 0; expected *= tensor->shape[i--])
        if (tensor->shape[i] != 1 && view->stride[i] != expected) return false;
    return true;
}

static void copy_strided(const RaftTensor *tensor, const View *view, const uint8_t *source,
                         size_t bytes, uint8_t *out)
{
    int64_t index[MAX_RANK] = {0}, position = view->offset;
    for (int64_t n = 0; n < tensor->elements; n++) {
        memcpy(out + (size_t)n * bytes, source + (size_t)position * bytes, bytes);
        for (int i = tensor->rank - 1; i >= 0; i--) {
            if (++index[i] < tensor->shape[i]) {
                position += view->stride[i];
                break;
            }
            position -= view->stride[i] * (tensor->shape[i] - 1);
            index[i] = 0;
        }
    }
}

/* Points tensor->data to the elements, in their order. */
static RaftStatus place_tensor(TorchFile *file, const PickleValue *value, const Storage *storage,
                               const View *view, RaftTensor *tensor)
{
    size_t bytes = (size_t)storage->type->element_bytes;
    int64_t last;
    tensor->dtype = storage->type->dtype;
    tensor->data = storage->data;
    if (tensor->elements == 0) return RAFT_OK;
    if (!find_last(tensor, view, &last) || last >= storage->elements)
        return bad(file, value, tensor->name, "it reaches past the end of its storage");
    tensor->data = storage->data + (size_t)view->offset * bytes;
    if (is_contiguous(tensor, view)) return RAFT_OK;
    int64_t copied;
    if (__builtin_mul_overflow(tensor->elements, bytes, &copied) || !may_copy(file, copied))
        return bad(file, value, tensor->name,
                   "its elements overlap in their storage, and would take too much apart");
    uint8_t *copy = rt_alloc(&file->weights->arena, (size_t)tensor->elements, bytes);
    if (!copy) return rt_no_memory(file->error, file->weights->path);
    copy_strided(tensor, view, storage->data, bytes, copy);
    tensor->data = copy;
    return RAFT_OK;
}

/* The arguments where `value` is a call of a function of that role, else NULL. */
static const PickleList *arguments_of(const PickleValue *value, PickleRole role)
{
    bool is_call = value->kind == PICKLE_CALL && value->list.item[0]->global->role == role;
    return is_call ? &value->list.item[1]->list : NULL;
}

/* _rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks[, metadata]) */
static RaftStatus read_tensor(TorchFile *file, const char *name, const PickleValue *value,
                              RaftTensor *tensor)
{
    const PickleList *list = arguments_of(value, ROLE_PARAMETER);
    if (list && list->count) value = list->item[0];
    list = arguments_of(value, ROLE_TENSOR);
    if (!list)
        return bad(file, value, name,
                   "not a tensor; a dictionary of these is read, model.state_dict(), alone or as "
                   "'model' or 'state_dict' of another");
    View view;
    Storage storage;
    tensor->name = rt_strdup(&file->weights->arena, name, strlen(name));
    if (!tensor->name) return rt_no_memory(file->error, file->weights->path);
    if (list->count < 6 || list->count > 7 ||
        (list->count == 7 && list->item[6]->kind != PICKLE_NONE) ||
        list->item[1]->kind != PICKLE_INTEGER || list->item[1]->integer < 0 ||
        list->item[2]->kind != PICKLE_TUPLE)
        return bad(file, value, name, "not described as torch.save does");
    if (list->item[2]->list.count > MAX_RANK) return bad(file, value, name, "more than 8 axes");
    tensor->rank = (int)list->item[2]->list.count;
    view.offset = list->item[1]->integer;
    if (!read_extents(list->item[2], tensor->rank, tensor->shape) ||
        !read_extents(list->item[3], tensor->rank, view.stride) ||
        !rt_count_elements(tensor->rank, tensor->shape, &tensor->elements))
        return bad(file, value, name, "its shape or strides are wrong");
    RaftStatus status = find_storage(file, name, list->item[0], &storage);
    return status ? status : place_tensor(file, value, &storage, &view, tensor);
}

/* ---- the dictionary -------------------------------------------------------------------------- */

/* The dictionary in a dictionary, by name; NULL where there is none. */
static const PickleValue *find_inner(const PickleValue *dictionary, const char *name)
{
    for (uint32_t i = 0; i < dictionary->list.count; i += 2) {
        const PickleValue *key = dictionary->list.item[i], *value = dictionary->list.item[i + 1];
        if (key->kind == PICKLE_TEXT && value->kind == PICKLE_DICT && !strcmp(key->text, name))
            return value;
    }
    return NULL;
}

static const PickleValue *find_state(const PickleValue *root)
{
    enum { MOST_WRAPPERS = 4 }; /* a dictionary may hold itself */
    for (int depth = 0; depth < MOST_WRAPPERS; depth++) {
        const PickleValue *inner = find_inner(root, "state_dict");
        if (!inner) inner = find_inner(root, "model");
        if (!inner) inner = find_inner(root, "model_state_dict");
        if (!inner) break;
        root = inner;
    }
    return root;
}

static RaftStatus read_state(TorchFile *file)
{
    RaftWeights *weights = file->weights;
    const PickleValue *root = file->pickle.root;
    if (root->kind != PICKLE_DICT)
        return bad(file, root, "the file",
                   "not a dictionary; save model.state_dict(), alone or as 'model' or "
                   "'state_dict' of a dictionary");
    const PickleList *list = &find_state(root)->list;
    weights->tensor = rt_alloc(&weights->arena, list->count / 2, sizeof *weights->tensor);
    if (!weights->tensor) return rt_no_memory(file->error, weights->path);
    for (uint32_t i = 0; i < list->count; i += 2) {
        const PickleValue *key = list->item[i];
        if (key->kind != PICKLE_TEXT)
            return bad(file, key, "a key", "not a text, which names of parameters are");
        RaftStatus status =
            read_tensor(file, key->text, list->item[i + 1], &weights->tensor[weights->count]);
        if (status) return status;
        weights->count++;
    }
    return RAFT_OK;
}

/* ---- the two formats ------------------------------------------------------------------------- */

/* Finds the entry NAME/data.pkl, and so the folder. */
static RaftStatus find_pickle(TorchFile *file, zip_uint64_t *index)
{
    static const char wanted[] = "/data.pkl";
    zip_int64_t count = zip_get_num_entries(file->archive, 0);
    for (zip_int64_t i = 0; i < count; i++) {
        const char *name = zip_get_name(file->archive, (zip_uint64_t)i, 0);
        size_t length = name ? strlen(name) : 0, tail = sizeof wanted - 1;
        if (length <= tail || strcmp(name + length - tail, wanted)) continue;
        *index = (zip_uint64_t)i;
        file->folder = rt_strdup(&file->arena, name, length - tail);
        file->loaded = rt_alloc(&file->arena, (size_t)count, sizeof *file->loaded);
        size_t where_size = strlen(file->weights->path) + length + 2;
        char *where = rt_alloc(&file->arena, where_size, 1);
        if (!file->folder || !file->loaded || !where)
            return rt_no_memory(file->error, file->weights->path);
        snprintf(where, where_size, "%s:%s", file->weights->path, name);
        file->where = where;
        return RAFT_OK;
    }
    return rt_bad_file(file->error, file->weights->path, 0,
                       "an archive without data.pkl: not written by torch.save");
}

static RaftStatus check_byte_order(TorchFile *file)
{
    zip_int64_t index = -1;
    uint8_t *text;
    size_t size;
    RaftStatus status = find_entry(file, "byteorder", &index);
    if (status || index < 0) return status; /* older ones do not say */
    status = read_entry(file, (zip_uint64_t)index, &file->arena, &text, &size);
    if (!status && (size != 6 || memcmp(text, "little", 6)))
        status = bad_entry(file, "byteorder", "not little-endian");
    return status;
}

static RaftStatus read_archive(TorchFile *file)
{
    zip_uint64_t index = 0;
    uint8_t *bytes = NULL;
    size_t size = 0;
    RaftStatus status = find_pickle(file, &index);
    if (!status) status = check_byte_order(file);
    if (!status) status = read_entry(file, index, &file->arena, &bytes, &size);
    if (!status)
        status =
            rt_pickle_read(file->where, bytes, size, 0, &file->arena, &file->pickle, file->error);
    return status ? status : read_state(file);
}

static RaftStatus open_archive(TorchFile *file)
{
    zip_error_t problem;
    zip_error_init(&problem);
    zip_source_t *source = zip_source_buffer_create(file->data, file->size, 0, &problem);
    if (source) file->archive = zip_open_from_source(source, ZIP_RDONLY | ZIP_CHECKCONS, &problem);
    RaftStatus status = RAFT_OK;
    if (file->archive) {
        status = read_archive(file);
        zip_discard(file->archive);
    } else {
        zip_source_free(source);
        int code = zip_error_code_zip(&problem); /* libzip may leave it unset where memory is out */
        status = code == ZIP_ER_MEMORY || code == ZIP_ER_OK
                     ? rt_no_memory(file->error, file->weights->path)
                     : rt_bad_file(file->error, file->weights->path, 0,
                                   "not a good zip archive: %s", zip_error_strerror(&problem));
    }
    zip_error_fini(&problem);
    return status;
}

/* Describes the storages that the pickle names, sorted by key. */
static RaftStatus list_storages(TorchFile *file)
{
    const PickleList *list = &file->pickle.persistent;
    uint32_t count = 0;
    file->storage = rt_alloc(&file->arena, list->count, sizeof *file->storage);
    if (!file->storage) return rt_no_memory(file->error, file->weights->path);
    for (uint32_t i = 0; i < list->count; i++)
        if (!describe_storage(list->item[i], &file->storage[i]))
            return bad(file, list->item[i], "a storage", "not described as torch.save does");
    qsort(file->storage, list->count, sizeof *file->storage, compare_keys);
    for (uint32_t i = 0; i < list->count; i++) /* tensors may share one */
        if (count == 0 || strcmp(file->storage[i].key, file->storage[count - 1].key))
            file->storage[count++] = file->storage[i];
    file->storage_count = count;
    return RAFT_OK;
}

/* Finds the elements of each storage, from `position` on, in the order of the keys. */
static RaftStatus find_elements(TorchFile *file, const PickleValue *keys, size_t position)
{
    const char *path = file->where;
    if (keys->kind != PICKLE_LIST) return bad(file, keys, "keys of storages", "not a list");
    for (uint32_t i = 0; i < keys->list.count; i++) {
        const PickleValue *item = keys->list.item[i];
        Storage key = {.key = item->kind == PICKLE_TEXT ? item->text : ""};
        Storage *storage =
            bsearch(&key, file->storage, file->storage_count, sizeof key, compare_keys);
        if (!storage || storage->data) return bad(file, item, "key of a storage", "not expected");
        size_t left = file->size - position;
        int64_t elements, bytes;
        if (left < 8) return rt_bad_file(file->error, path, position, "the file ends too early");
        memcpy(&elements, file->data + position, 8);
        if (elements != storage->elements ||
            __builtin_mul_overflow(elements, storage->type->element_bytes, &bytes) ||
            (uint64_t)bytes > left - 8)
            return rt_bad_file(file->error, path, position,
                               "storage '%s' of %lld elements, not of %lld, or cut off",
                               storage->key, (long long)elements, (long long)storage->elements);
        storage->data = file->data + position + 8;
        position += 8 + (size_t)bytes;
    }
    if (position != file->size)
        return rt_bad_file(file->error, path, position, "more bytes than the storages take");
    return RAFT_OK;
}

static bool says_little_endian(const PickleValue *value)
{
    if (value->kind != PICKLE_DICT) return false;
    for (uint32_t i = 0; i < value->list.count; i += 2) {
        const PickleValue *key = value->list.item[i], *endian = value->list.item[i + 1];
        if (key->kind == PICKLE_TEXT && !strcmp(key->text, "little_endian"))
            return endian->kind == PICKLE_BOOL && endian->integer;
    }
    return false;
}

/* The size of the pickle of the magic number, by which files of the old format begin; 0: there is
 * none. Protocol 4 tells how long it is before it begins. */
static size_t old_magic(const uint8_t *data, size_t size)
{
    static const char number[] = "\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
    enum { LENGTH = sizeof number - 1 };
    if (size < 3 || data[0] != 0x80 || data[1] < 2 || data[1] > 5) return 0;
    size_t start = data[2] == 0x95 ? 11 : 2;
    bool found = size >= start + LENGTH && !memcmp(data + start, number, LENGTH);
    return found ? start + LENGTH : 0;
}

static RaftStatus read_old(TorchFile *file)
{
    enum { VERSION, MACHINE, OBJECT, KEYS, PICKLES };
    Pickle pickle[PICKLES];
    size_t position = old_magic(file->data, file->size);
    for (int i = 0; i < PICKLES; i++) {
        RaftStatus status =
            rt_pickle_read(file->where, file->data + position, file->size - position, position,
                           &file->arena, &pickle[i], file->error);
        if (status) return status;
        position += pickle[i].size;
    }
    const PickleValue *version = pickle[VERSION].root;
    if (version->kind != PICKLE_INTEGER || version->integer != 1001)
        return bad(file, version, "version", "not 1001");
    if (!says_little_endian(pickle[MACHINE].root))
        return bad(file, pickle[MACHINE].root, "machine", "not little-endian");
    file->pickle = pickle[OBJECT];
    RaftStatus status = list_storages(file);
    if (!status) status = find_elements(file, pickle[KEYS].root, position);
    return status ? status : read_state(file);
}

bool rt_torch_recognise(const uint8_t *data, size_t size)
{
    return (size >= 4 && !memcmp(data, "PK\3\4", 4)) || old_magic(data, size) > 0;
}

RaftStatus rt_torch_read(RaftWeights *weights, const uint8_t *data, size_t size, RaftError *error)
{
    TorchFile file = {.weights = weights, .data = data, .size = size, .error = error};
    file.where = weights->path;
    RaftStatus status = data[0] == 'P' ? open_archive(&file) : read_old(&file);
    rt_arena_free(&file.arena);
    return status;
}
