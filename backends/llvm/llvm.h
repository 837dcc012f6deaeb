/* llvm.h: what module.c, target.c and jit.c share. */
#ifndef RAFTC_LLVM_H
#define RAFTC_LLVM_H

#include <llvm-c/Core.h>
#include <llvm-c/LLJIT.h>
#include <llvm-c/TargetMachine.h>

#include "backends/backend.h"

/* Some successive kernels. */
typedef struct CodePart {
    LLVMContextRef context;
    LLVMModuleRef module; /* NULL from llvm_objects on */
    int instructions;     /* as emitted */
    bool optimised;
    LLVMMemoryBufferRef object; /* NULL until llvm_objects */
    char *fault;                /* what LLVM says; NULL: none */
} CodePart;

enum { MOST_WORKERS = 8 };

struct CpuCode {
    Arena *arena;
    const Plan *plan;
    CodePart *part;
    uint32_t part_count, part_capacity, *order;
    int machine_count; /* one for each thread that optimises and generates */
    LLVMTargetMachineRef machine[MOST_WORKERS];
    StepCode *steps;
    int64_t scratch_bytes;
    bool sanitized;
    LLVMOrcLLJITRef jit; /* NULL until llvm_load */
};

/* A target machine for the options, and the names it was made with (in `arena`); NULL with
 * messages. */
LLVMTargetMachineRef llvm_machine(Arena *arena, const CpuOptions *options, Diag *diag);

#endif
