/* device.h: what an instance (shell.c) and the device that runs its steps know of each other.
 *
 *   cpu.c    kernels are functions; their units are shared out over threads
 *   cuda.c   kernels are in cubins, and run on an NVIDIA GPU
 *
 * A program names its device in its table. Like shell.c, all this is compiled into raftc and written
 * out as text into generated libraries.
 */
#ifndef RAFT_DEVICE_H
#define RAFT_DEVICE_H

#include "runtime/shell.h"

#include <stdbool.h>

typedef struct RaftParameter {
    float *data; /* NULL: not set, or packed */
    bool owned;  /* data is a copy of ours, not in the caller's blob */
    bool packed; /* its steps of prepare have run, and nothing else needs it */
} RaftParameter;

/* What a caller gives for one input or output. */
typedef struct RaftSpan {
    const RaftTensorInfo *info;
    const float *data;
    size_t bytes;
} RaftSpan;

struct RaftShell {
    const RaftProgram *program;
    RaftParameter *parameter;
    const char *weights; /* the caller's blob, or NULL */
    size_t weights_size;
    unsigned *input_entries;  /* of each input: bits of the entries whose steps read it */
    unsigned *output_entries; /* of each output: of those whose steps write it */
    float **output;           /* room for the outputs, */
    RaftSpan *span;           /* and the inputs and outputs of one call */
    bool packed;              /* prepared is what the parameters give */
    double *seconds;          /* NULL, or where steps are timed */
    RaftMoments *moments;     /* likewise; NULL where seconds is */
    RaftWatch *watch;         /* NULL, or what looks at each step */
    void *watch_user;
    void *device; /* its state; NULL: not open */
    char error[512];
};

/* Failures leave their message in the instance. */
struct RaftDevice {
    /* Checks what the options say of the machine, and takes what an instance needs. What it took is
     * given back by close, also where it failed. */
    RaftStatus (*open)(RaftShell *shell, const RaftShellOptions *options);
    void (*close)(RaftShell *shell);
    /* Copies what a caller gives for a parameter. */
    RaftStatus (*read)(RaftShell *shell, float *to, const float *from, size_t bytes);
    /* raft_shell_run, its arguments checked: first prepare, where parameters have changed. */
    RaftStatus (*run)(RaftShell *shell, unsigned entry, int64_t batch, const float *const *inputs,
                      float *const *outputs);
    /* Packs what a caller gives for a parameter at once, so that there need be no copy. False: its
     * data must be kept. NULL: likewise for all. */
    bool (*pack)(RaftShell *shell, int parameter, const float *data);
};

RAFT_SHELL_DATA const RaftDevice raft_cpu;

RAFT_SHELL_LINKAGE RaftStatus raft_shell_fail(RaftShell *shell, RaftStatus status,
                                              const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static inline int64_t raft_least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline size_t raft_round_up(size_t bytes, size_t alignment)
{
    return (bytes + alignment - 1) / alignment * alignment;
}

/* a * b * sizeof(float), where it is a possible size. */
static inline bool raft_float_bytes(int64_t a, int64_t b, size_t *bytes)
{
    int64_t elements;
    if (__builtin_mul_overflow(a, b, &elements)) return false;
    if (elements > PTRDIFF_MAX / (int64_t)sizeof(float)) return false;
    *bytes = (size_t)elements * sizeof(float);
    return true;
}

/* At least one byte, aligned to 64, to be freed with free; NULL where there is none. */
RAFT_SHELL_LINKAGE void *raft_allocate(size_t bytes);

#endif
