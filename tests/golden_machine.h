/* golden_machine.h: a model as a library for another machine, and a program with it run by QEMU; for
 * golden.c. */
#ifndef RAFTC_TESTS_GOLDEN_MACHINE_H
#define RAFTC_TESTS_GOLDEN_MACHINE_H

#include "backends/backend.h"
#include "runtime/raft.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

typedef struct Machine {
    const char *name;
    CpuOptions options;
    const char *compiler, *emulator;
} Machine;

static const Machine machines[] = {
    {"aarch64",
     {.triple = "aarch64-linux-gnu", .cpu = "cortex-a72"},
     "aarch64-linux-gnu-gcc",
     "qemu-aarch64 -cpu cortex-a72 -L /usr/aarch64-linux-gnu"},
    /* A processor without AVX-512: an instruction of that ends the program. */
    {"x86-64-v3",
     {.triple = "x86_64-linux-gnu", .cpu = "x86-64-v3"},
     "x86_64-linux-gnu-gcc",
     "qemu-x86_64 -cpu Haswell"},
};

/* Whether the tools are here. */
static bool machine_available(const Machine *machine)
{
    char command[200];
    snprintf(command, sizeof command,
             "%s --version >/dev/null 2>&1 && %s --version >/dev/null 2>&1", machine->compiler,
             machine->emulator);
    return system(command) == 0;
}

static bool write_bytes(const char *path, const void *data, size_t size)
{
    FILE *file = fopen(path, "wb");
    bool good = file && fwrite(data, 1, size, file) == size;
    return file && fclose(file) == 0 && good;
}

static bool write_weights(Arena *arena, const RaftProgram *program, const char *path)
{
    const float **data = arena_array(arena, (size_t)program->parameter_count, sizeof *data);
    for (int i = 0; i < program->parameter_count; i++) {
        const RaftTensorInfo *info = &program->parameter[i];
        float *room = arena_array(arena, (size_t)info->elements, sizeof *room);
        raft_fill_parameter(info->name, info->rank, info->shape, room);
        data[i] = room;
    }
    size_t size;
    const char *blob = weights_blob(arena, program, data, &size);
    return write_bytes(path, blob, size);
}

static bool read_outputs(const char *path, const RaftProgram *program, int64_t batch,
                         float *const *outputs)
{
    FILE *file = fopen(path, "rb");
    bool good = file != NULL;
    for (int i = 0; i < program->output_count && good; i++) {
        size_t count = (size_t)(batch * program->output[i].elements);
        good = fread(outputs[i], sizeof(float), count, file) == count;
    }
    good = good && fgetc(file) == EOF;
    if (file) fclose(file);
    return good;
}

static const char *make_objects(void *code, CodeObject *object)
{
    return llvm_objects(code, object);
}

/* In the folder: the library, its weights, a program with both, the images, and what comes out. */
static bool run_in_folder(Arena *arena, const Machine *machine, const Plan *plan, CpuCode *code,
                          const char *folder, int64_t batch, const float *input,
                          float *const *outputs, Diag *diag)
{
    const ProgramCode made = {.steps = llvm_steps(code), .scratch_bytes = llvm_scratch_bytes(code)};
    const RaftProgram *program = program_build(arena, plan, &made, NULL);
    const LibraryOptions library = {.base = arena_printf(arena, "%s/golden", folder),
                                    .prefix = "golden",
                                    .made_by = "made by a test",
                                    .triple = machine->options.triple,
                                    .archive = true,
                                    .header = true};
    const LibraryObjects objects = {
        llvm_object_count(code),
        arena_array(arena, (size_t)llvm_object_count(code), sizeof(CodeObject)), make_objects,
        code};
    if (library_write(arena, plan, &made, &objects, &library, diag) != RAFT_OK) return false;
    size_t input_bytes = (size_t)(batch * program->input[0].elements) * sizeof(float);
    const char *command =
        arena_printf(arena,
                     "cd %s && (%s -O1 %s " SOURCE_ROOT
                     "/tests/library/run.c -I. golden.a -fopenmp -lm -o run && "
                     "%s ./run weights %lld <input >output) 2>log || { cat log; false; }",
                     folder, machine->compiler, program->features_entry ? "-DFEATURES" : "",
                     machine->emulator, (long long)batch);
    return write_weights(arena, program, arena_printf(arena, "%s/weights", folder)) &&
           write_bytes(arena_printf(arena, "%s/input", folder), input, input_bytes) &&
           system(command) == 0 &&
           read_outputs(arena_printf(arena, "%s/output", folder), program, batch, outputs);
}

/* False, with or without messages, where anything fails. */
static bool machine_run(Arena *arena, const Machine *machine, const Graph *graph, int64_t batch,
                        const float *input, float *const *outputs, Diag *diag)
{
    char folder[] = "/tmp/golden-XXXXXX", command[64];
    if (!mkdtemp(folder)) return false;
    const Plan *plan = plan_memory(arena, graph);
    CpuCode *code = llvm_compile(arena, plan, &machine->options, diag);
    bool done =
        code && run_in_folder(arena, machine, plan, code, folder, batch, input, outputs, diag);
    llvm_free(code);
    snprintf(command, sizeof command, "rm -r %s", folder);
    return system(command) == 0 && done;
}

#endif
