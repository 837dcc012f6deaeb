/* cache.h: compiled kernels are kept on disk: in $XDG_CACHE_HOME/raftc, or ~/.cache/raftc.
 *
 * An entry is named by a hash of all that it was made of, and holds that hash, its size and a hash of
 * its bytes; one that does not fit is as none. It takes its name only when it is whole, so any number
 * of processes can share the folder. It may be deleted at any time.
 */
#ifndef RAFTC_CUDA_CACHE_H
#define RAFTC_CUDA_CACHE_H

#include "backends/backend.h"

/* Fills in data and size, in `arena`, where there is an entry made of this text. */
bool cache_read(Arena *arena, const char *made_of, RaftCudaImage *image);
/* Where the entry cannot be written, *note says why. */
void cache_write(Arena *arena, const char *made_of, const RaftCudaImage *image, const char **note);

#endif
