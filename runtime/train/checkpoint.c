/* checkpoint.c: all that the next step depends on, as one safetensors file that is there whole or
 * not at all (file.c), and whose metadata holds a checksum of everything else in it. */
#include "runtime/pickle.h"
#include "runtime/train/private.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BEST = 2, CHECKSUM_LENGTH = 15 /* crc32c: and 8 digits */ };

/* ---- checksums --------------------------------------------------------------------------------- */

static uint32_t add_text(uint32_t crc, const char *text)
{
    return rt_crc32c(crc, text, strlen(text) + 1);
}

static uint32_t add_tensor(uint32_t crc, const RaftTensor *tensor)
{
    int64_t elements = 0, description[2] = {tensor->dtype, tensor->rank};
    rt_count_elements(tensor->rank, tensor->shape, &elements);
    crc = add_text(crc, tensor->name);
    crc = rt_crc32c(crc, description, sizeof description);
    crc = rt_crc32c(crc, tensor->shape, (size_t)tensor->rank * sizeof tensor->shape[0]);
    if (tensor->dtype == RAFT_OTHER) return crc; /* the writer refuses it */
    int64_t bytes = elements * rt_pickle_storage(tensor->dtype)->element_bytes;
    return rt_crc32c(crc, tensor->data, (size_t)bytes);
}

static void print_checksum(uint32_t crc, char text[static CHECKSUM_LENGTH + 1])
{
    snprintf(text, CHECKSUM_LENGTH + 1, "crc32c:%08x", crc);
}

RaftStatus raft_checkpoint_open(const char *path, RaftWeights **checkpoint, RaftError *error)
{
    char text[CHECKSUM_LENGTH + 1];
    const char *key, *value, *wanted = NULL;
    uint32_t crc = 0;
    RaftStatus status = raft_weights_open(path, checkpoint, error);
    if (status) return status;
    for (int i = 0; raft_weights_metadata(*checkpoint, i, &key, &value); i++)
        if (!strcmp(key, "checksum"))
            wanted = value;
        else
            crc = add_text(add_text(crc, key), value);
    for (int i = 0; i < raft_weights_count(*checkpoint); i++)
        crc = add_tensor(crc, raft_weights_tensor(*checkpoint, i));
    print_checksum(crc, text);
    if (!wanted)
        status =
            rt_fail(error, RAFT_BAD_FILE, "%s: holds no checksum; it is not a checkpoint", path);
    else if (strcmp(text, wanted))
        status = rt_fail(error, RAFT_BAD_FILE,
                         "%s: is damaged: its checksum is %s, and what it holds gives %s", path,
                         wanted, text);
    if (status) {
        raft_weights_close(*checkpoint);
        *checkpoint = NULL;
    }
    return status;
}

static RaftStatus write_file(const char *path, const RaftTensor *tensors, int count,
                             const char *const *metadata, RaftError *error)
{
    char text[CHECKSUM_LENGTH + 1];
    uint32_t crc = 0;
    int entries = 0;
    while (metadata[entries]) crc = add_text(crc, metadata[entries++]);
    for (int i = 0; i < count; i++) crc = add_tensor(crc, &tensors[i]);
    print_checksum(crc, text);
    const char **all = calloc((size_t)entries + 3, sizeof *all);
    if (!all) return rt_no_memory(error, path);
    for (int i = 0; i < entries; i++) all[i] = metadata[i];
    all[entries] = "checksum";
    all[entries + 1] = text;
    RaftStatus status = raft_weights_write(path, tensors, count, all, error);
    free(all);
    return status;
}

/* ---- files of a folder ------------------------------------------------------------------------- */

typedef struct Found {
    double rank;     /* the step or the accuracy */
    long long epoch; /* of best ones */
    char name[96];
} Found;

static int compare_found(const void *a, const void *b) /* greatest first */
{
    const Found *x = a, *y = b;
    if (x->rank != y->rank) return x->rank > y->rank ? -1 : 1;
    return (x->epoch > y->epoch) - (x->epoch < y->epoch); /* the first to get there */
}

/* Recognises a name by writing it again; `*left_over` where a killed run left it half written. */
static bool recognise(const char *name, bool best, Found *found, bool *left_over)
{
    long long step = 0;
    *found = (Found){0};
    if (best && sscanf(name, "best-%lf-%lld.", &found->rank, &found->epoch) == 2)
        snprintf(found->name, sizeof found->name, "best-%.6f-%06lld.safetensors", found->rank,
                 found->epoch);
    else if (!best && sscanf(name, "checkpoint-%lld.", &step) == 1)
        snprintf(found->name, sizeof found->name, "checkpoint-%010lld.safetensors", step);
    else
        return false;
    if (!best) found->rank = (double)step;
    size_t length = strlen(found->name), whole = strlen(name);
    if (strncmp(name, found->name, length)) return false;
    *left_over = whole > length + 4 && !strcmp(name + whole - 4, ".tmp");
    return whole == length || *left_over;
}

/* Lists what a folder holds, the greatest first; the caller frees *list. With `tidy`, files that a
 * killed run left half written are removed. */
static RaftStatus list_files(const char *folder, bool best, bool tidy, Found **list, int *count,
                             RaftError *error)
{
    int capacity = 0;
    *list = NULL;
    *count = 0;
    DIR *directory = opendir(folder);
    if (!directory) return rt_fail(error, RAFT_IO, "%s: %s", folder, strerror(errno));
    for (struct dirent *entry; (entry = readdir(directory));) {
        Found found;
        bool left_over;
        if (!recognise(entry->d_name, best, &found, &left_over)) continue;
        if (left_over) {
            if (tidy) unlinkat(dirfd(directory), entry->d_name, 0);
            continue;
        }
        if (*count == capacity) {
            capacity = capacity ? 2 * capacity : 16;
            Found *larger = realloc(*list, (size_t)capacity * sizeof *larger);
            if (!larger) {
                free(*list);
                *list = NULL;
                closedir(directory);
                return rt_no_memory(error, folder);
            }
            *list = larger;
        }
        (*list)[(*count)++] = found;
    }
    closedir(directory);
    if (*count) qsort(*list, (size_t)*count, sizeof **list, compare_found);
    return RAFT_OK;
}

static void remove_file(const char *folder, const char *name)
{
    char path[4352];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    unlink(path); /* what cannot be removed does no harm */
}

/* ---- saving ------------------------------------------------------------------------------------ */

RaftStatus raft_checkpoint_save(const char *folder, int64_t step, int keep,
                                const RaftTensor *tensors, int count, const char *const *metadata,
                                RaftError *error)
{
    char path[4352];
    Found *list;
    int found, older = 0;
    snprintf(path, sizeof path, "%s/checkpoint-%010lld.safetensors", folder, (long long)step);
    RaftStatus status = write_file(path, tensors, count, metadata, error);
    if (!status) status = list_files(folder, false, true, &list, &found, error);
    if (status) return status;
    for (int i = 0; i < found; i++)
        if (list[i].rank <= (double)step && ++older > keep) remove_file(folder, list[i].name);
    free(list);
    return RAFT_OK;
}

RaftStatus raft_checkpoint_save_best(const char *folder, double accuracy, int64_t epoch,
                                     const RaftTensor *tensors, int count,
                                     const char *const *metadata, RaftError *error)
{
    char path[4352];
    Found *list;
    int found;
    RaftStatus status = list_files(folder, true, true, &list, &found, error);
    if (status) return status;
    /* Names tell six digits. */
    bool worse = found >= BEST && !(accuracy > list[BEST - 1].rank + 5e-7);
    free(list);
    if (worse) return RAFT_OK;
    snprintf(path, sizeof path, "%s/best-%.6f-%06lld.safetensors", folder, accuracy,
             (long long)epoch);
    status = write_file(path, tensors, count, metadata, error);
    if (!status) status = list_files(folder, true, false, &list, &found, error);
    if (status) return status;
    for (int i = BEST; i < found; i++) remove_file(folder, list[i].name);
    free(list);
    return RAFT_OK;
}

/* ---- finding ----------------------------------------------------------------------------------- */

RaftStatus raft_checkpoint_newest(const char *folder, RaftWeights **checkpoint, int64_t *step,
                                  RaftError *refused, RaftError *error)
{
    Found *list;
    int found;
    RaftError reason, first;
    *checkpoint = NULL;
    rt_fail(refused, RAFT_OK, "%s", "");
    RaftStatus status = list_files(folder, false, false, &list, &found, error);
    if (status) return status;
    status = RAFT_BAD_FILE;
    for (int i = 0; status && i < found; i++) {
        char path[4352];
        snprintf(path, sizeof path, "%s/%s", folder, list[i].name);
        status = raft_checkpoint_open(path, checkpoint, &reason);
        if (status) rt_add(refused, "%s\n", reason.message);
        if (i == 0) first = reason;
        *step = (int64_t)list[i].rank;
    }
    free(list);
    if (!found) return rt_fail(error, RAFT_IO, "%s: holds no checkpoint", folder);
    return status ? rt_fail(error, status, "%s: holds no good checkpoint; the newest: %s", folder,
                            first.message)
                  : RAFT_OK;
}
