/* shell.h: an instance of a compiled model: its parameters, its memory, and the run of its steps.
 *
 * shell.c and its devices (device.h) work in two ways: compiled into raftc for its JIT, and as text in
 * the source of every generated library, where RAFT_SHELL_LINKAGE is static and the exported
 * functions (backends/library.c) call these. So they depend on libc, and OpenMP or libdl, alone.
 *
 * No function exits, prints or keeps global state. An instance is used by one thread at a time;
 * each call shares its work out over threads of the instance, which sleep between calls.
 * raft_shell_error says why a call failed.
 */
#ifndef RAFT_SHELL_H
#define RAFT_SHELL_H

#include "program.h"

#ifdef RAFT_SHELL_LINKAGE
#define RAFT_SHELL_DATA RAFT_SHELL_LINKAGE
#else
#define RAFT_SHELL_LINKAGE
#define RAFT_SHELL_DATA extern
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum RaftStatus {
    RAFT_OK = 0,
    RAFT_INVALID = 1, /* an argument is wrong; nothing was changed */
    RAFT_NO_MEMORY = 2,
    RAFT_IO = 3,        /* a file cannot be opened, read or written */
    RAFT_BAD_FILE = 4,  /* a file is damaged or not what it should be */
    RAFT_NOT_READY = 5, /* parameters are still missing */
    RAFT_UNSUPPORTED = 6,
    RAFT_GPU_FAILED = 7 /* the GPU or its driver; the instance can only be destroyed */
} RaftStatus;

typedef struct RaftShell RaftShell;

/* Zero stands for the default of every field but `size`. */
typedef struct RaftShellOptions {
    size_t size;         /* sizeof (RaftShellOptions), so that fields can be added later */
    int threads;         /* 0: the processors that the process may use */
    int device;          /* number of the GPU; 0 where there is but the CPU */
    void *stream;        /* of a GPU; NULL: one of its own */
    const void *weights; /* a weights blob, aligned to 64 bytes; must outlive the instance */
    size_t weights_size; /* in bytes */
} RaftShellOptions;

enum { RAFT_MAX_THREADS = 1024 };

/* Makes an instance without parameters (or with those of options->weights). `options` may be NULL.
 * On failure *out is NULL and `message` (of message_size bytes; may be NULL) says why. The program
 * must outlive the instance. */
RAFT_SHELL_LINKAGE RaftStatus raft_shell_create(const RaftProgram *program,
                                                const RaftShellOptions *options, RaftShell **out,
                                                char *message, size_t message_size);
RAFT_SHELL_LINKAGE void raft_shell_destroy(RaftShell *shell); /* NULL is legal */

/* Copies one parameter; the next run packs it. It may be set again at any time. */
RAFT_SHELL_LINKAGE RaftStatus raft_shell_set_parameter(RaftShell *shell, const char *name,
                                                       const int64_t *shape, int rank,
                                                       const float *data);

/* Takes all parameters from a weights blob, as with options->weights; and again after its numbers
 * have changed, for what was packed of them is packed anew by the next run. */
RAFT_SHELL_LINKAGE RaftStatus raft_shell_use_weights(RaftShell *shell, const void *weights,
                                                     size_t size);

/* Runs the steps of `entry` (a bit of RaftStep.entries) for `batch` images. `inputs`: a pointer for
 * each input of the program; `outputs`: one for each output; those that the entry does not read or
 * compute are not looked at. No output may overlap an input or another output. */
RAFT_SHELL_LINKAGE RaftStatus raft_shell_run(RaftShell *shell, unsigned entry, int64_t batch,
                                             const float *const *inputs, float *const *outputs);
/* The entry `forward` of a program with one input, of which it computes one output. */
RAFT_SHELL_LINKAGE RaftStatus raft_shell_forward(RaftShell *shell, int64_t batch, const float *nchw,
                                                 float *logits);
/* The entry `features`: maps[i] is its i-th output. */
RAFT_SHELL_LINKAGE RaftStatus raft_shell_features(RaftShell *shell, int64_t batch,
                                                  const float *nchw, float *const *maps);

/* Looks at what a step has just computed for the `images` images from the `first` on; `step` is its
 * number in the table, argument[i] its i-th buffer. No thread works meanwhile. */
typedef void RaftWatch(void *user, int step, float *const *argument, int64_t first, int64_t images);
/* From now on every run on the CPU calls `watch` after each step; NULL, as at first: it does not. */
RAFT_SHELL_LINKAGE void raft_shell_watch(RaftShell *shell, RaftWatch *watch, void *user);

/* When a thread last worked on a step, in seconds of omp_get_wtime. */
typedef struct RaftMoments {
    double began, ended;
} RaftMoments;

/* From now on every run adds to seconds[thread * step_count + step] how long each thread works on
 * each step, the time that it waits for others excepted, and on the CPU sets moments[..] (may be NULL)
 * likewise. Room for the threads of the instance, and the caller's; NULL, as at first: nothing is
 * measured. */
RAFT_SHELL_LINKAGE void raft_shell_measure(RaftShell *shell, double *seconds, RaftMoments *moments);

/* The message of the last call on `shell` that failed; "" if none did. Owned by the shell. */
RAFT_SHELL_LINKAGE const char *raft_shell_error(const RaftShell *shell);

/* The first 64 bytes of a weights blob, in the byte order of the machine. The parameters follow in
 * the order of the program, as f32, each at the next multiple of 64 bytes, zeros between. */
typedef struct RaftWeightsHeader {
    char magic[8]; /* "RAFTBLOB" */
    uint32_t version, parameters;
    uint64_t hash; /* of names and shapes: the blob serves every library of the same model */
    uint64_t size; /* of the whole blob, in bytes */
    char zero[32];
} RaftWeightsHeader;

enum { RAFT_ALIGNMENT = 64 };

/* The only header that a blob of this program may have. */
RAFT_SHELL_LINKAGE RaftWeightsHeader raft_weights_header(const RaftProgram *program);
/* Bytes that a parameter takes in the blob: its data, rounded up. */
RAFT_SHELL_LINKAGE size_t raft_weights_stride(const RaftTensorInfo *parameter);

#ifdef __cplusplus
}
#endif

#endif
