/* torchfile.c: weights as torch.save writes them.
 *
 *     since PyTorch 1.6   a zip archive of stored entries: NAME/data.pkl, and NAME/data/KEY for
 *                         each storage (the memory of one tensor or of several)
 *     before              pickles one after another: a magic number, the version, about the
 *                         machine, the object, the keys of the storages; then each storage:
 *                         8 bytes that count its elements, and these
 *
 * In both, the object is a state_dict, names with tensors, or a dictionary that holds one as
 * `model`, `state_dict` or `model_state_dict`; each tensor names a storage and says by offset and
 * strides what of it is its own. torcharchive.c reads archives; pickle.c reads pickles and runs
 * nothing of them. */
#include "runtime/torchfile.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_RANK = 8 };

static RaftStatus bad(const TorchFile *file, const PickleValue *value, const char *problem)
{
    return rt_bad_file(file->error, file->where, value->offset, "%s", problem);
}

static RaftStatus bad_tensor(const TorchFile *file, const PickleValue *value, const char *name,
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

static int compare_keys(const void *a, const void *b)
{
    return strcmp(((const Storage *)a)->key, ((const Storage *)b)->key);
}

/* Counts bytes that are about to be copied: many tensors may claim the same ones. */
bool rt_torch_may_copy(TorchFile *file, int64_t bytes)
{
    enum { MOST_COPIES = 4 };
    if ((uint64_t)bytes / MOST_COPIES > file->size - file->copied / MOST_COPIES) return false;
    file->copied += (size_t)bytes;
    return true;
}

/* ---- tensors --------------------------------------------------------------------------------- */

static RaftStatus find_storage(TorchFile *file, const char *name, const PickleValue *value,
                               Storage *storage)
{
    int64_t bytes;
    if (!describe_storage(value, storage) ||
        __builtin_mul_overflow(storage->elements, storage->type->element_bytes, &bytes))
        return bad_tensor(file, value, name, "its storage is not described as torch.save does");
    if (file->archive) return rt_torch_load_archived(file, value, bytes, storage);
    const Storage *found =
        bsearch(storage, file->storage, file->storage_count, sizeof *storage, compare_keys);
    if (!found || !found->data) return bad_tensor(file, value, name, "its storage is missing");
    if (found->type != storage->type || found->elements != storage->elements)
        return bad_tensor(file, value, name, "its storage is described otherwise elsewhere");
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
        return bad_tensor(file, value, tensor->name, "it reaches past the end of its storage");
    tensor->data = storage->data + (size_t)view->offset * bytes;
    if (is_contiguous(tensor, view)) return RAFT_OK;
    int64_t copied;
    if (__builtin_mul_overflow(tensor->elements, bytes, &copied) ||
        !rt_torch_may_copy(file, copied))
        return bad_tensor(file, value, tensor->name,
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

/* The arguments of _rebuild_tensor_v2, of which a tensor is made: (storage, offset, shape, strides,
 * requires_grad, hooks[, metadata]); NULL where it is none. A Parameter is made of a tensor, and a
 * torch.nn.Buffer, which has attributes of its own, is _rebuild_from_type_v2(_rebuild_tensor_v2,
 * class, arguments, attributes). */
static const PickleList *find_tensor(const PickleValue *value)
{
    const PickleList *list = arguments_of(value, ROLE_PARAMETER);
    if (list && list->count) value = list->item[0];
    list = arguments_of(value, ROLE_TYPED);
    if (!list) return arguments_of(value, ROLE_TENSOR);
    bool good = list->count == 4 && list->item[0]->kind == PICKLE_GLOBAL &&
                list->item[0]->global->role == ROLE_TENSOR && list->item[2]->kind == PICKLE_TUPLE;
    return good ? &list->item[2]->list : NULL;
}

static RaftStatus read_tensor(TorchFile *file, const char *name, const PickleValue *value,
                              RaftTensor *tensor)
{
    const PickleList *list = find_tensor(value);
    if (!list)
        return bad_tensor(
            file, value, name,
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
        return bad_tensor(file, value, name, "not described as torch.save does");
    if (list->item[2]->list.count > MAX_RANK)
        return bad_tensor(file, value, name, "more than 8 axes");
    tensor->rank = (int)list->item[2]->list.count;
    view.offset = list->item[1]->integer;
    if (!read_extents(list->item[2], tensor->rank, tensor->shape) ||
        !read_extents(list->item[3], tensor->rank, view.stride) ||
        !rt_count_elements(tensor->rank, tensor->shape, &tensor->elements))
        return bad_tensor(file, value, name, "its shape or strides are wrong");
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

static int compare_texts(const void *a, const void *b)
{
    const PickleValue *const *x = a, *const *y = b;
    int order = strcmp((*x)->text, (*y)->text);
    return order ? order : (*x > *y) - (*x < *y);
}

/* Each key is a text, and stands once. */
static RaftStatus check_keys(TorchFile *file, const PickleList *list)
{
    uint32_t count = list->count / 2;
    const PickleValue **key = rt_alloc(&file->arena, count, sizeof *key);
    if (!key) return rt_no_memory(file->error, file->weights->path);
    for (uint32_t i = 0; i < count; i++) {
        key[i] = list->item[2 * i];
        if (key[i]->kind != PICKLE_TEXT)
            return bad(file, key[i], "a key that is not a text, as names of parameters are");
    }
    qsort(key, count, sizeof *key, compare_texts);
    for (uint32_t i = 1; i < count; i++)
        if (!strcmp(key[i - 1]->text, key[i]->text))
            return bad_tensor(file, key[i], key[i]->text, "a name that stands twice");
    return RAFT_OK;
}

static RaftStatus read_state(TorchFile *file)
{
    RaftWeights *weights = file->weights;
    const PickleValue *root = file->pickle.root;
    if (root->kind != PICKLE_DICT)
        return bad(file, root,
                   "not a dictionary; save model.state_dict(), alone or as 'model' or "
                   "'state_dict' of a dictionary");
    const PickleList *list = &find_state(root)->list;
    weights->tensor = rt_alloc(&weights->arena, list->count / 2, sizeof *weights->tensor);
    if (!weights->tensor) return rt_no_memory(file->error, weights->path);
    RaftStatus status = check_keys(file, list);
    for (uint32_t i = 0; !status && i < list->count; i += 2) {
        status = read_tensor(file, list->item[i]->text, list->item[i + 1],
                             &weights->tensor[weights->count]);
        weights->count += !status;
    }
    return status;
}

/* ---- the two formats ------------------------------------------------------------------------- */

/* Describes the storages that the pickle names, sorted by key. */
static RaftStatus list_storages(TorchFile *file)
{
    const PickleList *list = &file->pickle.persistent;
    uint32_t count = 0;
    file->storage = rt_alloc(&file->arena, list->count, sizeof *file->storage);
    if (!file->storage) return rt_no_memory(file->error, file->weights->path);
    for (uint32_t i = 0; i < list->count; i++)
        if (!describe_storage(list->item[i], &file->storage[i]))
            return bad(file, list->item[i], "a storage that is not described as torch.save does");
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
    if (keys->kind != PICKLE_LIST) return bad(file, keys, "not the list of the storages' keys");
    for (uint32_t i = 0; i < keys->list.count; i++) {
        const PickleValue *item = keys->list.item[i];
        Storage key = {.key = item->kind == PICKLE_TEXT ? item->text : ""};
        Storage *storage =
            bsearch(&key, file->storage, file->storage_count, sizeof key, compare_keys);
        if (!storage || storage->data)
            return bad(file, item, "not the key of a storage that a tensor has, once each");
        size_t left = file->size - position;
        int64_t elements, bytes;
        if (left < 8) return rt_bad_file(file->error, path, position, "the file ends too early");
        memcpy(&elements, file->data + position, 8);
        if (elements != storage->elements)
            return rt_bad_file(file->error, path, position,
                               "storage '%s' has %lld elements, where its tensors say %lld",
                               storage->key, (long long)elements, (long long)storage->elements);
        if (__builtin_mul_overflow(elements, storage->type->element_bytes, &bytes) ||
            (uint64_t)bytes > left - 8)
            return rt_bad_file(file->error, path, file->size,
                               "the file ends within storage '%s' of %lld elements", storage->key,
                               (long long)elements);
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
        return bad(file, version, "the version of the format is not 1001");
    if (!says_little_endian(pickle[MACHINE].root))
        return bad(file, pickle[MACHINE].root,
                   "its numbers are not little-endian, which alone is read");
    file->pickle = pickle[OBJECT];
    RaftStatus status = list_storages(file);
    return status ? status : find_elements(file, pickle[KEYS].root, position);
}

bool rt_torch_recognise(const uint8_t *data, size_t size)
{
    return (size >= 4 && !memcmp(data, "PK\3\4", 4)) || old_magic(data, size) > 0;
}

RaftStatus rt_torch_read(RaftWeights *weights, const uint8_t *data, size_t size, RaftError *error)
{
    TorchFile file = {.weights = weights, .data = data, .size = size, .error = error};
    file.where = weights->path;
    RaftStatus status = data[0] == 'P' ? rt_torch_open_archive(&file) : read_old(&file);
    if (!status) status = read_state(&file);
    rt_torch_close_archive(&file);
    rt_arena_free(&file.arena);
    return status;
}
