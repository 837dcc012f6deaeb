/* torchfile.h: what the readers of torch.save's two formats share: torchfile.c, torcharchive.c. */
#ifndef RAFT_TORCHFILE_H
#define RAFT_TORCHFILE_H

#include "runtime/pickle.h"

/* A storage: the memory of one tensor or of several. */
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
    size_t copied; /* bytes of tensors and storages: a multiple of the file's size is the limit */
    RaftError *error;

    struct zip *archive; /* NULL: the old format */
    const char *folder;  /* NAME of the entries */
    uint8_t **loaded;    /* by the index of the entry: NULL, or a storage */

    Storage *storage; /* sorted by key */
    uint32_t storage_count;
} TorchFile;

/* Counts bytes that are about to be copied: many tensors may claim the same ones. */
bool rt_torch_may_copy(TorchFile *file, int64_t bytes);

/* Opens the archive and reads its pickle. */
RaftStatus rt_torch_open_archive(TorchFile *file);
void rt_torch_close_archive(TorchFile *file);
/* Finds the bytes of a storage, which `value` names. */
RaftStatus rt_torch_load_archived(TorchFile *file, const PickleValue *value, int64_t bytes,
                                  Storage *storage);

#endif
