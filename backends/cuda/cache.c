/* cache.c: compiled kernels on disk; cache.h says how. */
#include "backends/cuda/cache.h"
#include "runtime/rt.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

typedef struct Header {
    char magic[8]; /* "RAFTCUDA" */
    uint64_t key[2], size, hash;
} Header;

static const char magic[8] = {'R', 'A', 'F', 'T', 'C', 'U', 'D', 'A'};

/* FNV-1a, 64 bits. */
static uint64_t hash(uint64_t start, const void *data, size_t size)
{
    const unsigned char *bytes = data;
    for (size_t i = 0; i < size; i++) start = (start ^ bytes[i]) * 0x100000001b3;
    return start;
}

static Header make_header(const char *made_of, const RaftCudaImage *image)
{
    const uint64_t start[2] = {0xcbf29ce484222325, 0x9e3779b97f4a7c15};
    Header header = {.size = image->size, .hash = hash(start[0], image->data, image->size)};
    memcpy(header.magic, magic, sizeof magic);
    for (int i = 0; i < 2; i++) header.key[i] = hash(start[i], made_of, strlen(made_of));
    return header;
}

/* NULL where there is no place for one. */
static const char *cache_folder(Arena *arena)
{
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (cache && *cache == '/') return arena_printf(arena, "%s/raftc", cache);
    return home && *home ? arena_printf(arena, "%s/.cache/raftc", home) : NULL;
}

static const char *entry_path(Arena *arena, const char *folder, const Header *header)
{
    return arena_printf(arena, "%s/%016llx%016llx", folder, (unsigned long long)header->key[0],
                        (unsigned long long)header->key[1]);
}

bool cache_read(Arena *arena, const char *made_of, RaftCudaImage *image)
{
    RtFile file = {0};
    const char *folder = cache_folder(arena);
    Header wanted = make_header(made_of, image), found;
    if (!folder || rt_file_map(entry_path(arena, folder, &wanted), &file, NULL) != RAFT_OK)
        return false;
    bool good = file.size >= sizeof found;
    if (good) {
        memcpy(&found, file.data, sizeof found);
        wanted.size = file.size - sizeof found;
        wanted.hash = found.hash;
        good = memcmp(&found, &wanted, sizeof found) == 0;
    }
    if (good) {
        char *data = arena_alloc(arena, found.size + 1);
        memcpy(data, file.data + sizeof found, found.size);
        const RaftCudaImage read = {image->architecture, data, found.size};
        good = make_header(made_of, &read).hash == found.hash;
        if (good) *image = read;
    }
    rt_file_unmap(&file);
    return good;
}

/* Makes the folder and those above it. */
static bool make_folders(Arena *arena, const char *path)
{
    char *part = arena_strdup(arena, path);
    for (char *slash = part; (slash = strchr(slash + 1, '/'));) {
        *slash = '\0';
        mkdir(part, 0777); /* most are there */
        *slash = '/';
    }
    return mkdir(part, 0777) == 0 || errno == EEXIST;
}

void cache_write(Arena *arena, const char *made_of, const RaftCudaImage *image, const char **note)
{
    RaftError error;
    RtOutput output;
    const char *folder = cache_folder(arena);
    Header header = make_header(made_of, image);
    if (!folder) return;
    if (!make_folders(arena, folder)) {
        *note = arena_printf(arena, "%s: compiled kernels cannot be kept there: %s", folder,
                             strerror(errno));
        return;
    }
    RaftStatus status = rt_output_open(entry_path(arena, folder, &header), &output, &error);
    if (status == RAFT_OK) {
        rt_output_write(&output, &header, sizeof header);
        rt_output_write(&output, image->data, image->size);
        status = rt_output_commit(&output, &error);
    }
    if (status != RAFT_OK)
        *note = arena_printf(arena, "compiled kernels cannot be kept: %s", error.message);
}
