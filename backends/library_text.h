/* library_text.h: what every library has alike: for library.c. NAME stands for the prefix. */
#ifndef RAFTC_LIBRARY_TEXT_H
#define RAFTC_LIBRARY_TEXT_H

static const char header_about[] =
    " *\n"
    " * Make an instance, give it every parameter (or a weights file), then run it on images:\n"
    " *\n"
    " *     NAME *model;\n"
    " *     char message[256];\n"
    " *     if (NAME_create(NULL, &model, message, sizeof message) != NAME_OK) ...\n"
    " *     if (NAME_set_parameter(model, name, shape, rank, data) != NAME_OK) ...\n"
    " *     if (NAME_forward(model, 1, image, logits) != NAME_OK) puts(NAME_error(model));\n"
    " *     NAME_destroy(model);\n"
    " *\n";

/* How it is linked and what it does, on a CPU and on a GPU. */
static const char header_failures[] =
    " * Failures: functions that return int give a NAME_Status. None ends the process, prints, or\n"
    " * keeps anything outside the instance. A wrong argument changes nothing.\n"
    " *\n"
    " * Threads: there may be any number of instances. Each is used by one thread at a time;\n"
    " * different ones may be used at the same time.";
static const char header_cpu[] =
    " A call shares its work out over OpenMP\n"
    " * threads; the results are the same bits for any number of them, and for an image alone or "
    "in\n"
    " * any batch. OpenMP ends the process where the system refuses it a thread. A child process\n"
    " * made by fork without exec must not run a model if its parent has.\n";
static const char header_cuda[] =
    "\n"
    " *\n"
    " * The model runs on an NVIDIA GPU; the driver is looked for when an instance is made. Images "
    "and\n"
    " * results may be in the host's memory or the GPU's. A run on a stream of the caller's "
    "returns as\n"
    " * soon as it is queued, if all its pointers are the GPU's, and else when it is done. The "
    "results\n"
    " * are the same bits on each kind of GPU, for an image alone or in any batch.\n";

static const char header_start[] = " */\n"
                                   "#ifndef NAME_H\n"
                                   "#define NAME_H\n"
                                   "\n"
                                   "#include <stddef.h>\n"
                                   "#include <stdint.h>\n"
                                   "\n";

static const char header_embedded[] = " * The weights are in the library: an instance has them "
                                      "from the start. Others may be given, as\n"
                                      " * a weights file or one by one.\n"
                                      " *\n";

static const char header_types[] =
    "\n"
    "#ifdef __cplusplus\n"
    "extern \"C\" {\n"
    "#endif\n"
    "\n"
    "typedef enum NAME_Status {\n"
    "    NAME_OK = 0,\n"
    "    NAME_INVALID = 1,    /* an argument is wrong; nothing was changed */\n"
    "    NAME_NO_MEMORY = 2,  /* the instance is as before, and can be used */\n"
    "    NAME_BAD_FILE = 4,   /* options->weights is damaged, or of another model */\n"
    "    NAME_NOT_READY = 5,  /* parameters are still missing */\n"
    "    NAME_UNSUPPORTED = 6, /* an option, or a GPU, that this library is not made for */\n"
    "    NAME_GPU_FAILED = 7   /* the GPU or its driver; the instance can only be destroyed */\n"
    "} NAME_Status;\n"
    "\n"
    "/* One instance of the model: its parameters and the memory to run it. */\n"
    "typedef struct NAME NAME;\n"
    "\n"
    "/* Zero stands for the default of every field but size. */\n"
    "typedef struct NAME_Options {\n"
    "    size_t size;         /* sizeof(NAME_Options) */\n";
static const char options_cpu[] =
    "    int threads;         /* 0: the processors that the process may use; at most 1024 */\n"
    "    int device;          /* must be 0: this library computes on the CPU */\n"
    "    void *stream;        /* must be NULL, likewise */\n";
static const char options_cuda[] =
    "    int threads;         /* not looked at: this library computes on a GPU, */\n"
    "    int device;          /* the one of this number */\n"
    "    void *stream;        /* CUstream or cudaStream_t; NULL: one of the instance's own */\n";

static const char header_functions[] =
    "    const void *weights; /* NULL, or a weights file that raftc wrote, mapped (or read to a\n"
    "                            multiple of 64); not copied: must stay until NAME_destroy */\n"
    "    size_t weights_size; /* in bytes */\n"
    "} NAME_Options;\n"
    "\n"
    "/* A parameter, or one image of what goes in and out: float[shape[0]]...[shape[rank - 1]],\n"
    " * row-major. */\n"
    "typedef struct NAME_Parameter {\n"
    "    const char *name;\n"
    "    int rank;\n"
    "    int64_t shape[4];\n"
    "    int64_t elements; /* product of the shape */\n"
    "} NAME_Parameter;\n"
    "\n"
    "/* Makes an instance. options: NULL for the defaults. On failure *out is NULL, and message, "
    "where\n"
    " * it is not NULL, says why in at most message_size bytes. */\n"
    "int NAME_create(const NAME_Options *options, NAME **out, char *message, size_t "
    "message_size);\n"
    "\n"
    "/* Releases an instance; NULL is legal. */\n"
    "void NAME_destroy(NAME *m);\n"
    "\n"
    "/* The parameters of the model, as in PyTorch's weights, *count of them; and, for programs "
    "that\n"
    " * do not include this header, what a run takes and gives: the logits (one axis) and the "
    "feature\n"
    " * maps (three). Constant; m may be NULL. */\n"
    "const NAME_Parameter *NAME_parameters(const NAME *m, int *count);\n"
    "const NAME_Parameter *NAME_inputs(const NAME *m, int *count);\n"
    "const NAME_Parameter *NAME_outputs(const NAME *m, int *count);\n"
    "\n"
    "/* Copies a parameter; the next run packs it. It may be set again at any time. */\n"
    "int NAME_set_parameter(NAME *m, const char *name, const int64_t *shape, int rank,\n"
    "                       const float *data);\n"
    "\n"
    "/* Runs the model on nchw[batch][NAME_CHANNELS][NAME_HEIGHT][NAME_WIDTH]; writes\n"
    " * logits[batch][NAME_CLASSES]. The two must not overlap. */\n"
    "int NAME_forward(NAME *m, int64_t batch, const float *nchw, float *logits);\n"
    "\n";

static const char header_features[] =
    "int NAME_features(NAME *m, int64_t batch, const float *nchw, float *const *maps);\n"
    "\n";

/* Of a library that trains. */
static const char header_training[] =
    "#define NAME_TRAINS 1\n"
    "\n"
    "/* A parameter's values and its gradient, to be read and changed between calls, for as long "
    "as "
    "the\n"
    " * instance lives; NULL: there is none of this name. A parameter that was asked for counts as "
    "set;\n"
    " * it is 0 at first. */\n"
    "float *NAME_parameter(NAME *m, const char *name);\n"
    "float *NAME_gradient(NAME *m, const char *name);\n"
    "\n"
    "/* Forward and backward of NAME_BATCH images at most; the gradients of several calls add up.\n"
    " * target[batch][NAME_CLASSES] holds the share of each class in an image, 1 in all: a label, "
    "smoothed\n"
    " * or mixed. Writes loss[batch], the cross-entropy of each image, and adds to the gradients "
    "those "
    "of\n"
    " * the sum of weight[i] * loss[i]; weight NULL: of the mean. */\n"
    "int NAME_backward(NAME *m, int64_t batch, const float *nchw, const float *target,\n"
    "                  const float *weight, float *loss);\n"
    "\n"
    "/* The gradients begin anew. */\n"
    "int NAME_zero_gradients(NAME *m);\n"
    "\n"
    "/* One step of the optimiser with the gradients as they are, which stay. */\n"
    "int NAME_step(NAME *m, double learning_rate);\n"
    "\n";

static const char header_end[] = "/* Why the last call on m that failed did so; \"\" if none did. "
                                 "Valid until the next call. */\n"
                                 "const char *NAME_error(const NAME *m);\n"
                                 "\n"
                                 "#ifdef __cplusplus\n"
                                 "}\n"
                                 "#endif\n"
                                 "\n"
                                 "#endif\n";

static const char source_exports[] =
    "\n"
    "struct NAME;\n"
    "struct NAME_Options;\n"
    "struct NAME_Parameter;\n"
    "\n"
    "int NAME_create(const struct NAME_Options *options, struct NAME **out, char *message,\n"
    "                size_t message_size)\n"
    "{\n"
    "    INSTANCE *instance = NULL;\n"
    "    int status = CREATE((const RaftShellOptions *)options, out ? &instance : NULL, message,\n"
    "                        message_size);\n"
    "    if (out) *out = (struct NAME *)instance;\n"
    "    return status;\n"
    "}\n"
    "\n"
    "void NAME_destroy(struct NAME *m)\n"
    "{\n"
    "    CALL(destroy)((INSTANCE *)m);\n"
    "}\n"
    "\n"
    "const struct NAME_Parameter *NAME_parameters(const struct NAME *m, int *count)\n"
    "{\n"
    "    (void)m;\n"
    "    if (count) *count = program.parameter_count;\n"
    "    return (const struct NAME_Parameter *)program.parameter;\n"
    "}\n"
    "\n"
    "const struct NAME_Parameter *NAME_inputs(const struct NAME *m, int *count)\n"
    "{\n"
    "    (void)m;\n"
    "    if (count) *count = INPUTS;\n"
    "    return (const struct NAME_Parameter *)program.input;\n"
    "}\n"
    "\n"
    "const struct NAME_Parameter *NAME_outputs(const struct NAME *m, int *count)\n"
    "{\n"
    "    (void)m;\n"
    "    if (count) *count = OUTPUTS;\n"
    "    return (const struct NAME_Parameter *)program.output;\n"
    "}\n"
    "\n"
    "int NAME_set_parameter(struct NAME *m, const char *name, const int64_t *shape, int rank,\n"
    "                       const float *data)\n"
    "{\n"
    "    return CALL(set_parameter)((INSTANCE *)m, name, shape, rank, data);\n"
    "}\n"
    "\n"
    "int NAME_forward(struct NAME *m, int64_t batch, const float *nchw, float *logits)\n"
    "{\n"
    "    return CALL(forward)((INSTANCE *)m, batch, nchw, logits);\n"
    "}\n"
    "\n"
    "const char *NAME_error(const struct NAME *m)\n"
    "{\n"
    "    return CALL(error)((const INSTANCE *)m);\n"
    "}\n";

/* What an instance is, and so which functions do the work. */
static const char source_shell[] = "\n"
                                   "#define INSTANCE RaftShell\n"
                                   "#define CALL(name) raft_shell_##name\n"
                                   "#define CREATE(...) raft_shell_create(&program, __VA_ARGS__)\n";
static const char source_training[] =
    "\n"
    "#define INSTANCE RaftTraining\n"
    "#define CALL(name) raft_training_##name\n"
    "#define CREATE(...) raft_training_create(&program, &step_program, &rule, __VA_ARGS__)\n"
    "\n"
    "float *NAME_parameter(struct NAME *m, const char *name)\n"
    "{\n"
    "    return raft_training_parameter((RaftTraining *)m, name);\n"
    "}\n"
    "\n"
    "float *NAME_gradient(struct NAME *m, const char *name)\n"
    "{\n"
    "    return raft_training_gradient((RaftTraining *)m, name);\n"
    "}\n"
    "\n"
    "int NAME_backward(struct NAME *m, int64_t batch, const float *nchw, const float *target,\n"
    "                  const float *weight, float *loss)\n"
    "{\n"
    "    return raft_training_backward((RaftTraining *)m, batch, nchw, target, weight, loss);\n"
    "}\n"
    "\n"
    "int NAME_zero_gradients(struct NAME *m)\n"
    "{\n"
    "    return raft_training_zero((RaftTraining *)m);\n"
    "}\n"
    "\n"
    "int NAME_step(struct NAME *m, double learning_rate)\n"
    "{\n"
    "    return raft_training_step((RaftTraining *)m, learning_rate);\n"
    "}\n";

static const char source_features[] =
    "\n"
    "int NAME_features(struct NAME *m, int64_t batch, const float *nchw, float *const *maps)\n"
    "{\n"
    "    return CALL(features)((INSTANCE *)m, batch, nchw, maps);\n"
    "}\n";

static const char exports_start[] = "{\n"
                                    "    global:\n"
                                    "        NAME_create;\n"
                                    "        NAME_destroy;\n"
                                    "        NAME_error;\n"
                                    "        NAME_forward;\n"
                                    "        NAME_inputs;\n"
                                    "        NAME_outputs;\n"
                                    "        NAME_parameters;\n"
                                    "        NAME_set_parameter;\n";
static const char exports_features[] = "        NAME_features;\n";
static const char exports_training[] = "        NAME_backward;\n"
                                       "        NAME_gradient;\n"
                                       "        NAME_parameter;\n"
                                       "        NAME_step;\n"
                                       "        NAME_zero_gradients;\n";
static const char exports_end[] = "    local: *;\n"
                                  "};\n";

/* The weights in the shell's object, from a file beside its source. */
static const char source_weights[] =
    "\n"
    "__asm__(\".pushsection .rodata\\n.balign 64\\nraft_embedded:\\n.incbin \\\"weights\\\"\\n\"\n"
    "        \".popsection\\n\");\n"
    "extern const char raft_embedded[] __attribute__((visibility(\"hidden\")));\n";

#endif
