/* rt.h: what the files of the runtime library share and nobody else sees.
 *
 *   RtFile    a file mapped for reading
 *   RtOutput  a file being written, which takes its name only when it is whole
 */
#ifndef RAFT_RT_H
#define RAFT_RT_H

#include <stdio.h>
#include <sys/types.h>

#include "runtime/raft.h"

#define RT_PRINTF_LIKE(text, first) __attribute__((format(printf, text, first)))

/* Such a function is compiled for the vectors of AVX2, too; which of the two runs is decided as a program
 * starts. That would be before a sanitizer has started. */
#if defined(__x86_64__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) &&                \
    !defined(__SANITIZE_THREAD__)
#define RT_WIDE __attribute__((target_clones("avx2", "default")))
#else
#define RT_WIDE
#endif

/* ---- status.c -------------------------------------------------------------------------------- */

/* Writes the message, where `error` is not NULL, and returns `status`. */
RaftStatus rt_fail(RaftError *error, RaftStatus status, const char *format, ...)
    RT_PRINTF_LIKE(3, 4);
/* "PATH: byte OFFSET: ..."; returns RAFT_BAD_FILE. */
RaftStatus rt_bad_file(RaftError *error, const char *path, uint64_t offset, const char *format, ...)
    RT_PRINTF_LIKE(4, 5);
/* Adds to the end of the message what fits. */
void rt_add(RaftError *error, const char *format, ...) RT_PRINTF_LIKE(2, 3);
/* Returns RAFT_NO_MEMORY with the message "WHAT: out of memory". */
RaftStatus rt_no_memory(RaftError *error, const char *what);

/* ---- file.c ---------------------------------------------------------------------------------- */

typedef struct RtFile {
    const uint8_t *data; /* NULL where size is 0 */
    size_t size;
} RtFile;

/* Maps a regular file, read only. Release with rt_file_unmap (a zeroed RtFile is legal there). */
RaftStatus rt_file_map(const char *path, RtFile *file, RaftError *error);
void rt_file_unmap(RtFile *file);

typedef struct RtOutput {
    int descriptor; /* -1: none */
    uint8_t *buffer;
    size_t buffered;
    char *path;      /* what is replaced, symbolic links resolved */
    char *temporary; /* beside it */
    int failure;     /* errno of the first write that failed */
} RtOutput;

/* Opens a new file beside `path`. Writes need no check, the commit tells. A commit syncs the file
 * and gives it its name: whatever happens, the old content or the new is there. One of commit and
 * discard must follow a successful open. */
RaftStatus rt_output_open(const char *path, RtOutput *output, RaftError *error);
void rt_output_write(RtOutput *output, const void *data, size_t size);
/* Further writes go to this place, counted from the start. */
void rt_output_seek(RtOutput *output, int64_t offset);
RaftStatus rt_output_commit(RtOutput *output, RaftError *error);
void rt_output_discard(RtOutput *output);

/* ---- process.c ------------------------------------------------------------------------------- */

/* Starts a program, which is looked for in $PATH, with nothing to read; what it prints goes to the file
 * `log`. command: its words, then NULL. Returns 0, or the errno for which it cannot be run. */
int rt_start_program(const char *const *command, const char *log, pid_t *process);
/* Waits for it. Returns 0 once it has ended (*good: with status 0), or the errno. */
int rt_finish_program(pid_t process, bool *good);
/* Both. */
int rt_run_program(const char *const *command, const char *log, bool *good);

/* ---- memory.c -------------------------------------------------------------------------------- */

typedef struct RtChunk RtChunk;
typedef struct RtArena { /* zero to begin with */
    RtChunk *chunks;
} RtArena;

/* A zeroed array, aligned to 16 bytes, until rt_arena_free; NULL where it is too large or memory is
 * out. */
void *rt_alloc(RtArena *arena, size_t count, size_t size);
/* `length` bytes of a string, terminated. */
char *rt_strdup(RtArena *arena, const char *string, size_t length);
void rt_arena_free(RtArena *arena);

/* ---- weights.c, safetensors.c, torchfile.c, torchwrite.c ------------------------------------- */

struct RaftWeights {
    char *path;
    RtFile file; /* zero where the caller owns the bytes */
    RaftTensor *tensor;
    int count;
    const RaftTensor **by_name; /* the tensors in the order of their names */
    const char **metadata;      /* key, value, ... */
    int metadata_count;         /* pairs */
    RtArena arena;              /* all of the above but the path and the file */
};

/* Reads a weight file in memory; `data` must outlive the weights. */
RaftStatus rt_weights_parse(const char *path, const uint8_t *data, size_t size,
                            RaftWeights **weights, RaftError *error);
/* The product of the extents; false where one is negative or the product overflows. */
bool rt_count_elements(int rank, const int64_t *shape, int64_t *elements);
/* Each fills in the tensors, in the order of the file, and what metadata there is. */
RaftStatus rt_safetensors_read(RaftWeights *weights, const uint8_t *data, size_t size,
                               RaftError *error);
/* Whether the file was written by torch.save. */
bool rt_torch_recognise(const uint8_t *data, size_t size);
RaftStatus rt_torch_read(RaftWeights *weights, const uint8_t *data, size_t size, RaftError *error);
/* Writes what torch.load reads; the tensors are checked already. */
RaftStatus rt_torch_write(const char *path, const RaftTensor *tensors, int count, RaftError *error);

/* ---- image.c, resize.c ----------------------------------------------------------------------- */

/* The most pixels that a picture may have (Pillow's limit), and its longest side. */
enum { RT_MAX_PIXELS = 178956970, RT_MAX_SIDE = 65500 };

/* Decodes a picture in memory; `path` is for messages. */
RaftStatus rt_image_decode(const char *path, const uint8_t *data, size_t size, RaftImage *image,
                           RaftError *error);
typedef struct RtRect {
    int left, top, width, height;
} RtRect;

/* How a picture will be looked at, by which JPEG is decoded faster. */
typedef struct RtView {
    int least_side; /* the shorter side may become so short: a half, a quarter or an eighth; 0: never */
    /* What will be looked at of a picture that has come so large: no other pixel is set. NULL: all. */
    RtRect (*part)(const void *user, int width, int height);
    const void *user;
} RtView;

/* The same, but of a file that ends too early it gives what is there, the rest grey or black, and sets
 * *truncated, if anything lacks that will be looked at (view NULL: all of it, as it is): so Pillow does with
 * LOAD_TRUNCATED_IMAGES. */
RaftStatus rt_image_decode_part(const char *path, const uint8_t *data, size_t size,
                                const RtView *view, RaftImage *image, bool *truncated,
                                RaftError *error);
/* The part of the picture resized to width x height that begins at (left, top) and is as large as
 * `out` says, into out->rgb; flipped: left to right. */
RaftStatus rt_image_resize_part(const RaftImage *image, int width, int height, int left, int top,
                                bool flipped, RaftImage *out, RaftError *error);
/* The pixels of a line of `from` that `count` of them depend on, from `first` on, when it is resized to
 * `to`: [*start, *end). */
void rt_resize_reach(int from, int to, int first, int count, int *start, int *end);
/* raft_image_preprocess for models of 3 channels, or of 1: resized in colour, then turned grey. */
RaftStatus rt_image_preprocess(const RaftImage *image, int channels, int height, int width,
                               bool exact, const double *mean, const double *std, float *chw,
                               RaftError *error);
/* Pillow's convert("L"). */
static inline uint8_t rt_grey(int red, int green, int blue)
{
    return (uint8_t)((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16);
}

#endif
