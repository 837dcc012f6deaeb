/* module.c: all kernels of a plan as one LLVM module. Kernels that differ only in the buffers they
 * are given are one function. */
#include "backends/llvm/emit.h"
#include "backends/llvm/llvm.h"

#include <llvm-c/Analysis.h>
#include <llvm-c/Transforms/PassBuilder.h>
#include <string.h>

/* Kept short: the emitter already writes the loops as they are to be; this promotes the sums to
 * registers and cleans addresses up. Nothing here may reorder arithmetic. */
#define PASSES                                                                                     \
    "function(sroa,early-cse<memssa>,instcombine<no-verify-fixpoint>,simplifycfg,loop-simplify,"   \
    "lcssa,"                                                                                       \
    "loop-mssa(licm),early-cse<memssa>,instcombine<no-verify-fixpoint>,simplifycfg)"

static bool emit_kernels(Emitter *e, CpuCode *code)
{
    const Plan *plan = code->plan;
    const char **key = arena_array(e->arena, (size_t)plan->step_count, sizeof *key);
    for (int s = 0; s < plan->step_count; s++) {
        key[s] = kernel_key(e->arena, plan->graph, plan->steps[s].kernel, true);
        int same = 0;
        while (same < s && strcmp(key[same], key[s]) != 0) same++;
        if (same < s) {
            code->steps[s] = code->steps[same];
            continue;
        }
        StepCode *step = &code->steps[s];
        step->symbol = arena_printf(code->arena, "%s_k%d_%s", plan->graph->name, s,
                                    kernel_name(plan->graph, plan->steps[s].kernel, e->arena));
        int64_t scratch_bytes;
        if (!emit_kernel(e, &plan->steps[s], step->symbol, &step->units, &step->batched,
                         &scratch_bytes))
            return false;
        if (scratch_bytes > code->scratch_bytes) code->scratch_bytes = scratch_bytes;
    }
    return true;
}

/* Every function is compiled for the chosen machine, also where a later tool reads the IR. */
static void set_target_attributes(CpuCode *code)
{
    char *cpu = LLVMGetTargetMachineCPU(code->machine);
    char *features = LLVMGetTargetMachineFeatureString(code->machine);
    for (LLVMValueRef f = LLVMGetFirstFunction(code->module); f; f = LLVMGetNextFunction(f)) {
        if (LLVMIsDeclaration(f)) continue;
        LLVMAttributeRef a =
            LLVMCreateStringAttribute(code->context, "target-cpu", 10, cpu, (unsigned)strlen(cpu));
        LLVMAddAttributeAtIndex(f, LLVMAttributeFunctionIndex, a);
        a = LLVMCreateStringAttribute(code->context, "target-features", 15, features,
                                      (unsigned)strlen(features));
        LLVMAddAttributeAtIndex(f, LLVMAttributeFunctionIndex, a);
        const char *plain[] = {"nounwind", code->sanitized ? "sanitize_address" : NULL};
        for (size_t i = 0; i < ARRAY_SIZE(plain) && plain[i]; i++) {
            unsigned kind = LLVMGetEnumAttributeKindForName(plain[i], strlen(plain[i]));
            LLVMAddAttributeAtIndex(f, LLVMAttributeFunctionIndex,
                                    LLVMCreateEnumAttribute(code->context, kind, 0));
        }
    }
    LLVMDisposeMessage(cpu);
    LLVMDisposeMessage(features);
}

static bool optimise(CpuCode *code, Diag *diag)
{
    char *message = NULL;
    if (LLVMVerifyModule(code->module, LLVMReturnStatusAction, &message))
        RAFTC_BUG("invalid LLVM IR: %s", message);
    LLVMDisposeMessage(message);
    LLVMPassBuilderOptionsRef options = LLVMCreatePassBuilderOptions();
    LLVMErrorRef error = LLVMRunPasses(code->module, code->sanitized ? PASSES ",asan" : PASSES,
                                       code->machine, options);
    LLVMDisposePassBuilderOptions(options);
    if (!error) return true;
    char *text = LLVMGetErrorMessage(error);
    diag_error(diag, (Loc){0}, "LLVM: %s", text);
    LLVMDisposeErrorMessage(text);
    return false;
}

static void start_module(CpuCode *code)
{
    code->context = LLVMContextCreate();
    code->module = LLVMModuleCreateWithNameInContext(code->plan->graph->name, code->context);
    char *triple = LLVMGetTargetMachineTriple(code->machine);
    LLVMSetTarget(code->module, triple);
    LLVMDisposeMessage(triple);
    LLVMTargetDataRef layout = LLVMCreateTargetDataLayout(code->machine);
    char *text = LLVMCopyStringRepOfTargetData(layout);
    LLVMSetDataLayout(code->module, text);
    LLVMDisposeMessage(text);
    LLVMDisposeTargetData(layout);
}

CpuCode *llvm_compile(Arena *arena, const Plan *plan, const CpuOptions *options, Diag *diag)
{
    Target target;
    if (!llvm_target(options, &target, diag)) return NULL;
    CpuCode *code = arena_alloc(arena, sizeof *code);
    *code = (CpuCode){.arena = arena, .plan = plan, .sanitized = options->sanitize_address};
    code->machine = llvm_machine(arena, options, diag);
    if (!code->machine) return NULL;
    start_module(code);
    code->steps = arena_array(arena, (size_t)plan->step_count, sizeof *code->steps);
    Emitter e = {
        .arena = arena, .diag = diag, .plan = plan, .graph = plan->graph, .target = &target};
    e.context = code->context;
    e.module = code->module;
    e.builder = LLVMCreateBuilderInContext(code->context);
    e.entry_builder = LLVMCreateBuilderInContext(code->context);
    e.f32 = LLVMFloatTypeInContext(code->context);
    e.i32 = LLVMInt32TypeInContext(code->context);
    e.i64 = LLVMInt64TypeInContext(code->context);
    e.pointer = LLVMPointerTypeInContext(code->context, 0);
    bool done = emit_kernels(&e, code);
    LLVMDisposeBuilder(e.builder);
    LLVMDisposeBuilder(e.entry_builder);
    if (done) {
        set_target_attributes(code);
        done = optimise(code, diag);
    }
    if (done) return code;
    llvm_free(code);
    return NULL;
}

void llvm_free(CpuCode *code)
{
    if (!code) return;
    if (code->jit) LLVMOrcDisposeLLJIT(code->jit);
    LLVMDisposeModule(code->module);
    LLVMContextDispose(code->context);
    LLVMDisposeTargetMachine(code->machine);
}

bool llvm_write(CpuCode *code, CodeKind kind, Arena *arena, const char **bytes, size_t *size,
                Diag *diag)
{
    if (kind == CODE_IR) {
        char *text = LLVMPrintModuleToString(code->module);
        *size = strlen(text);
        *bytes = arena_strdup(arena, text);
        LLVMDisposeMessage(text);
        return true;
    }
    LLVMMemoryBufferRef buffer = NULL;
    char *message = NULL;
    /* Code generation changes the module, so it works on a copy. */
    LLVMModuleRef module = LLVMCloneModule(code->module);
    LLVMCodeGenFileType type = kind == CODE_ASSEMBLY ? LLVMAssemblyFile : LLVMObjectFile;
    bool failed =
        LLVMTargetMachineEmitToMemoryBuffer(code->machine, module, type, &message, &buffer);
    LLVMDisposeModule(module);
    if (failed) {
        diag_error(diag, (Loc){0}, "LLVM cannot write the code: %s", message);
        LLVMDisposeMessage(message);
        return false;
    }
    *size = LLVMGetBufferSize(buffer);
    char *copy = arena_alloc(arena, *size + 1);
    memcpy(copy, LLVMGetBufferStart(buffer), *size);
    *bytes = copy;
    LLVMDisposeMemoryBuffer(buffer);
    return true;
}

const StepCode *llvm_steps(const CpuCode *code)
{
    return code->steps;
}
int64_t llvm_scratch_bytes(const CpuCode *code)
{
    return code->scratch_bytes;
}
