/* torcharchive.c: the zip archives of torch.save: entries by name, and what the list of them lacks,
 * their places in the file. libzip checks and reads them. */
#define _GNU_SOURCE /* memmem */
#include "runtime/torchfile.h"

#include <string.h>
#include <zip.h>

/* ---- entries --------------------------------------------------------------------------------- */

/* Where the header of an entry stands, which libzip keeps to itself; 0: not found. */
static size_t offset_of(const TorchFile *file, const char *name)
{
    enum { HEADER_BYTES = 30 }; /* before the name */
    size_t length = strlen(name);
    const uint8_t *end = file->data + file->size, *p = file->data + HEADER_BYTES;
    while (p < end && (p = memmem(p, (size_t)(end - p), name, length))) {
        if (!memcmp(p - HEADER_BYTES, "PK\3\4", 4)) return (size_t)(p - HEADER_BYTES - file->data);
        p++;
    }
    return 0;
}

static RaftStatus bad_entry(const TorchFile *file, const char *name, const char *problem)
{
    return rt_bad_file(file->error, file->weights->path, offset_of(file, name),
                       "archive entry '%s': %s", name, problem);
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
    if (status.size > file->size || !rt_torch_may_copy(file, (int64_t)status.size))
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

/* The index of the entry `folder/NAME`; -1 where there is none. */
static zip_int64_t find_entry(const TorchFile *file, const char *name)
{
    char path[512];
    int length = snprintf(path, sizeof path, "%s/%s", file->folder, name);
    return length < (int)sizeof path ? zip_name_locate(file->archive, path, 0) : -1;
}

RaftStatus rt_torch_load_archived(TorchFile *file, const PickleValue *value, int64_t bytes,
                                  Storage *storage)
{
    char name[256];
    int length = snprintf(name, sizeof name, "data/%s", storage->key);
    zip_int64_t index = length < (int)sizeof name ? find_entry(file, name) : -1;
    zip_stat_t entry;
    if (index < 0)
        return rt_bad_file(file->error, file->where, value->offset,
                           "the archive has no entry '%s/%s' for this storage", file->folder, name);
    if (zip_stat_index(file->archive, (zip_uint64_t)index, 0, &entry) ||
        !(entry.valid & ZIP_STAT_SIZE) || entry.size != (zip_uint64_t)bytes)
        return rt_bad_file(file->error, file->where, value->offset,
                           "a storage of %lld bytes, where archive entry '%s/%s' has another size",
                           (long long)bytes, file->folder, name);
    uint8_t **loaded = &file->loaded[index];
    size_t size;
    RaftStatus status = RAFT_OK;
    if (!*loaded)
        status = read_entry(file, (zip_uint64_t)index, &file->weights->arena, loaded, &size);
    storage->data = *loaded;
    return status;
}

/* ---- the archive ----------------------------------------------------------------------------- */

/* Where the list of the entries begins; 0: not found. */
static size_t find_list(const TorchFile *file)
{
    const uint8_t *found = memmem(file->data, file->size, "PK\1\2", 4);
    return found ? (size_t)(found - file->data) : 0;
}

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
    return rt_bad_file(file->error, file->weights->path, find_list(file),
                       "an archive without an entry NAME/data.pkl: not written by torch.save");
}

static RaftStatus check_byte_order(TorchFile *file)
{
    zip_int64_t index = find_entry(file, "byteorder");
    uint8_t *text;
    size_t size;
    if (index < 0) return RAFT_OK; /* older ones do not say */
    RaftStatus status = read_entry(file, (zip_uint64_t)index, &file->arena, &text, &size);
    if (!status && (size != 6 || memcmp(text, "little", 6)))
        status = bad_entry(file, zip_get_name(file->archive, (zip_uint64_t)index, 0),
                           "its numbers are not 'little'-endian, which alone is read");
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
    return status;
}

RaftStatus rt_torch_open_archive(TorchFile *file)
{
    zip_error_t problem;
    zip_error_init(&problem);
    const char *path = file->weights->path;
    zip_source_t *source = zip_source_buffer_create(file->data, file->size, 0, &problem);
    if (source) file->archive = zip_open_from_source(source, ZIP_RDONLY | ZIP_CHECKCONS, &problem);
    RaftStatus status;
    int code = zip_error_code_zip(&problem); /* libzip may leave it unset where memory is out */
    if (file->archive)
        status = read_archive(file);
    else if (code == ZIP_ER_MEMORY || code == ZIP_ER_OK)
        status = rt_no_memory(file->error, path);
    else if (code == ZIP_ER_NOZIP)
        status = rt_bad_file(file->error, path, file->size,
                             "the file ends too early: a zip archive ends with a list of its "
                             "entries");
    else
        status = rt_bad_file(file->error, path, find_list(file), "not a good zip archive: %s",
                             zip_error_strerror(&problem));
    if (!file->archive) zip_source_free(source);
    zip_error_fini(&problem);
    return status;
}

void rt_torch_close_archive(TorchFile *file)
{
    if (file->archive) zip_discard(file->archive);
}
