/* jit.c: loads the object code of all parts into this process: the same functions that a library would
 * hold. */
#include "backends/llvm/llvm.h"

#include <string.h>

static bool failed(LLVMErrorRef error, Diag *diag)
{
    if (!error) return false;
    char *text = LLVMGetErrorMessage(error);
    diag_error(diag, (Loc){0}, "LLVM's loader: %s", text);
    LLVMDisposeErrorMessage(text);
    return true;
}

/* memcpy, memset, fmaf and the sanitizer's functions are this process's. */
static bool add_process_symbols(CpuCode *code, LLVMOrcJITDylibRef library, Diag *diag)
{
    LLVMOrcDefinitionGeneratorRef generator;
    char prefix = LLVMOrcLLJITGetGlobalPrefix(code->jit);
    if (failed(LLVMOrcCreateDynamicLibrarySearchGeneratorForProcess(&generator, prefix, NULL, NULL),
               diag))
        return false;
    LLVMOrcJITDylibAddGenerator(library, generator);
    return true;
}

const RaftProgram *llvm_load(CpuCode *code, Diag *diag)
{
    CodeObject *objects = arena_array(code->arena, code->part_count, sizeof *objects);
    const char *fault = llvm_objects(code, objects);
    if (fault) {
        diag_error(diag, (Loc){0}, "LLVM cannot write the code: %s", fault);
        return NULL;
    }
    if (failed(LLVMOrcCreateLLJIT(&code->jit, NULL), diag)) return NULL;
    LLVMOrcJITDylibRef library = LLVMOrcLLJITGetMainJITDylib(code->jit);
    if (!add_process_symbols(code, library, diag)) return NULL;
    for (uint32_t i = 0; i < code->part_count; i++) {
        LLVMMemoryBufferRef object = code->part[i].object; /* the loader's from now on */
        code->part[i].object = NULL;
        if (failed(LLVMOrcLLJITAddObjectFile(code->jit, library, object), diag)) return NULL;
    }
    const Plan *plan = code->plan;
    RaftKernel **kernels = arena_array(code->arena, (size_t)plan->step_count, sizeof(RaftKernel *));
    for (int s = 0; s < plan->step_count; s++) {
        LLVMOrcExecutorAddress at;
        if (failed(LLVMOrcLLJITLookup(code->jit, &at, code->steps[s].symbol), diag)) return NULL;
        memcpy(&kernels[s], &at, sizeof at);
    }
    const ProgramCode made = {.steps = code->steps, .scratch_bytes = code->scratch_bytes};
    return program_build(code->arena, plan, &made, kernels);
}
