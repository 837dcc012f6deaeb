/* module.c: all kernels of a plan as LLVM modules. Kernels that differ only in the buffers they are
 * given are one function.
 *
 * A module holds some successive kernels, so that several processors optimise them and generate their
 * code side by side. Which kernels depends on nothing but the kernels, and so do all bytes.
 */
#define _GNU_SOURCE /* sched_getaffinity */
#include "backends/llvm/emit.h"
#include "backends/llvm/llvm.h"

#include <llvm-c/Analysis.h>
#include <llvm-c/BitReader.h>
#include <llvm-c/BitWriter.h>
#include <llvm-c/Linker.h>
#include <llvm-c/Transforms/PassBuilder.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>

/* Kept short: the emitter already writes the loops as they are to be; this promotes the sums to
 * registers and cleans addresses up. Nothing here may reorder arithmetic. */
#define PASSES                                                                                     \
    "function(mem2reg,early-cse,instcombine<no-verify-fixpoint>,simplifycfg,loop-simplify,"        \
    "lcssa,loop-mssa(licm),early-cse<memssa>,simplifycfg)"

/* ---- emission -------------------------------------------------------------------------------- */

static LLVMModuleRef new_module(const CpuCode *code, LLVMContextRef context)
{
    LLVMTargetMachineRef machine = code->machine[0];
    LLVMModuleRef module = LLVMModuleCreateWithNameInContext(code->plan->graph->name, context);
    char *triple = LLVMGetTargetMachineTriple(machine);
    LLVMSetTarget(module, triple);
    LLVMDisposeMessage(triple);
    LLVMTargetDataRef layout = LLVMCreateTargetDataLayout(machine);
    char *text = LLVMCopyStringRepOfTargetData(layout);
    LLVMSetDataLayout(module, text);
    LLVMDisposeMessage(text);
    LLVMDisposeTargetData(layout);
    return module;
}

/* A part of the code, in which the emitter is to put what follows. */
static void begin_part(Emitter *e, CpuCode *code)
{
    CodePart *part = ARENA_PUSH(code->arena, code->part, code->part_count, code->part_capacity);
    *part = (CodePart){.context = LLVMContextCreate()};
    part->module = new_module(code, part->context);
    e->context = part->context;
    e->module = part->module;
    e->builder = LLVMCreateBuilderInContext(e->context);
    e->entry_builder = LLVMCreateBuilderInContext(e->context);
    e->f32 = LLVMFloatTypeInContext(e->context);
    e->i32 = LLVMInt32TypeInContext(e->context);
    e->i64 = LLVMInt64TypeInContext(e->context);
    e->pointer = LLVMPointerTypeInContext(e->context, 0);
}

static void end_part(Emitter *e)
{
    LLVMDisposeBuilder(e->builder);
    LLVMDisposeBuilder(e->entry_builder);
}

static int count_instructions(LLVMValueRef function)
{
    int count = 0;
    for (LLVMBasicBlockRef b = LLVMGetFirstBasicBlock(function); b; b = LLVMGetNextBasicBlock(b))
        for (LLVMValueRef i = LLVMGetFirstInstruction(b); i; i = LLVMGetNextInstruction(i)) count++;
    return count;
}

const char *kernel_symbol(Emitter *e, int step)
{
    const char *name = kernel_name(e->graph, e->plan->steps[step].kernel, e->arena);
    return arena_printf(e->arena, "%s_k%d_%s", e->graph->name, step, name);
}

static StepKey *make_keys(Emitter *e)
{
    const Plan *plan = e->plan;
    StepKey *key = arena_array(e->arena, (size_t)plan->step_count, sizeof *key);
    for (int s = 0; s < plan->step_count; s++) {
        int kernel = plan->steps[s].kernel;
        key[s] = (StepKey){.exact = kernel_key(e->arena, plan->graph, kernel, true)};
        while (strcmp(key[key[s].same].exact, key[s].exact) != 0) key[s].same++;
        if (key[s].same == s)
            key[s].strided = kernel_key_strided(e->arena, plan->graph, kernel, &key[s].strides);
    }
    return key;
}

/* The code of step s, and of those that share it. */
static bool emit_step(Emitter *e, CpuCode *code, const StepKey *key, int s)
{
    int count = e->plan->step_count;
    StepCode *step = &code->steps[s];
    TwinStrides strides;
    bool twins = find_twins(key, count, s, &strides);
    int64_t scratch_bytes;
    step->symbol = kernel_symbol(e, s);
    const char *symbol = twins ? arena_printf(e->arena, "%s_twins", step->symbol) : step->symbol;
    if (!emit_kernel(e, &e->plan->steps[s], symbol, twins ? &strides : NULL, step, &scratch_bytes))
        return false;
    if (scratch_bytes > code->scratch_bytes) code->scratch_bytes = scratch_bytes;
    code->part[code->part_count - 1].instructions += count_instructions(e->function);
    if (!twins) return true;
    LLVMSetVisibility(e->function, LLVMDefaultVisibility);
    LLVMSetLinkage(e->function, LLVMInternalLinkage);
    emit_twins(e, key, count, s, &strides, code->steps);
    return true;
}

static bool emit_kernels(Emitter *e, CpuCode *code)
{
    enum { MOST = 6000 }; /* instructions of a part, and one kernel more; S has some 50,000 */
    const StepKey *key = make_keys(e);
    for (int s = 0; s < e->plan->step_count; s++) {
        if (key[s].same < s) code->steps[s] = code->steps[key[s].same];
        if (code->steps[s].symbol) continue;
        /* a program has one constructor of ASan's */
        if (code->part[code->part_count - 1].instructions > MOST && !code->sanitized) {
            end_part(e);
            begin_part(e, code);
        }
        if (!emit_step(e, code, key, s)) return false;
    }
    return true;
}

static void order_parts(CpuCode *code)
{
    code->order = arena_array(code->arena, code->part_count, sizeof *code->order);
    for (uint32_t i = 0; i < code->part_count; i++) {
        uint32_t at = i;
        for (; at > 0 && code->part[code->order[at - 1]].instructions < code->part[i].instructions;
             at--)
            code->order[at] = code->order[at - 1];
        code->order[at] = i;
    }
}

/* ---- what several processors do -------------------------------------------------------------- */

/* Every function is compiled for the chosen machine, also where a later tool reads the IR. */
static void set_target_attributes(const CodePart *part, LLVMTargetMachineRef machine,
                                  bool sanitized)
{
    char *cpu = LLVMGetTargetMachineCPU(machine);
    char *features = LLVMGetTargetMachineFeatureString(machine);
    for (LLVMValueRef f = LLVMGetFirstFunction(part->module); f; f = LLVMGetNextFunction(f)) {
        if (LLVMIsDeclaration(f)) continue;
        LLVMAttributeRef a =
            LLVMCreateStringAttribute(part->context, "target-cpu", 10, cpu, (unsigned)strlen(cpu));
        LLVMAddAttributeAtIndex(f, LLVMAttributeFunctionIndex, a);
        a = LLVMCreateStringAttribute(part->context, "target-features", 15, features,
                                      (unsigned)strlen(features));
        LLVMAddAttributeAtIndex(f, LLVMAttributeFunctionIndex, a);
        const char *plain[] = {"nounwind", sanitized ? "sanitize_address" : NULL};
        for (size_t i = 0; i < ARRAY_SIZE(plain) && plain[i]; i++) {
            unsigned kind = LLVMGetEnumAttributeKindForName(plain[i], strlen(plain[i]));
            LLVMAddAttributeAtIndex(f, LLVMAttributeFunctionIndex,
                                    LLVMCreateEnumAttribute(part->context, kind, 0));
        }
    }
    LLVMDisposeMessage(cpu);
    LLVMDisposeMessage(features);
}

static void run_passes(LLVMModuleRef module, const char *passes, LLVMTargetMachineRef machine)
{
    LLVMPassBuilderOptionsRef options = LLVMCreatePassBuilderOptions();
    LLVMErrorRef error = LLVMRunPasses(module, passes, machine, options);
    LLVMDisposePassBuilderOptions(options);
    if (error) RAFTC_BUG("LLVM: %s", LLVMGetErrorMessage(error)); /* it knows no such pass */
}

/* Leaves what went wrong, if anything did, in `part->fault`. */
typedef void PartWork(CodePart *part, LLVMTargetMachineRef machine, bool sanitized);

static void optimise(CodePart *part, LLVMTargetMachineRef machine, bool sanitized)
{
    char *message = NULL;
    if (part->optimised) return;
    part->optimised = true;
    if (LLVMVerifyModule(part->module, LLVMReturnStatusAction, &message))
        RAFTC_BUG("invalid LLVM IR: %s", message);
    LLVMDisposeMessage(message);
    set_target_attributes(part, machine, sanitized);
    run_passes(part->module, sanitized ? PASSES ",asan" : PASSES, machine);
}

/* Uses the module up, which code generation changes. NULL with a fault. */
static LLVMMemoryBufferRef generate(LLVMModuleRef module, LLVMTargetMachineRef machine,
                                    LLVMCodeGenFileType type, char **fault)
{
    LLVMMemoryBufferRef buffer = NULL;
    if (LLVMTargetMachineEmitToMemoryBuffer(machine, module, type, fault, &buffer)) buffer = NULL;
    LLVMDisposeModule(module);
    return buffer;
}

static void generate_object(CodePart *part, LLVMTargetMachineRef machine, bool sanitized)
{
    optimise(part, machine, sanitized);
    part->object = generate(part->module, machine, LLVMObjectFile, &part->fault);
    part->module = NULL;
}

typedef struct Team {
    CpuCode *code;
    PartWork *work;
    const uint32_t
        *order;       /* of the parts: the longest first, so that nobody is left alone with it */
    atomic_uint next; /* place in the order that nobody has taken */
} Team;

typedef struct Worker {
    Team *team;
    LLVMTargetMachineRef machine;
} Worker;

static void *take_parts(void *argument)
{
    const Worker *worker = argument;
    CpuCode *code = worker->team->code;
    for (;;) {
        unsigned i = atomic_fetch_add(&worker->team->next, 1);
        if (i >= code->part_count) return NULL;
        CodePart *part = &code->part[worker->team->order[i]];
        worker->team->work(part, worker->machine, code->sanitized);
    }
}

/* NULL, or the first fault. Allocates in no arena. */
static const char *for_each_part(CpuCode *code, PartWork *work)
{
    Team team = {code, work, code->order, 0};
    Worker worker[MOST_WORKERS];
    pthread_t thread[MOST_WORKERS];
    int started = 0;
    for (int i = 0; i < code->machine_count; i++) worker[i] = (Worker){&team, code->machine[i]};
    while (started + 1 < code->machine_count &&
           pthread_create(&thread[started], NULL, take_parts, &worker[started + 1]) == 0)
        started++;
    take_parts(&worker[0]);
    for (int i = 0; i < started; i++) pthread_join(thread[i], NULL);
    for (uint32_t i = 0; i < code->part_count; i++)
        if (code->part[i].fault) return code->part[i].fault;
    return NULL;
}

/* ---- the whole ------------------------------------------------------------------------------- */

static bool add_machine(CpuCode *code, const CpuOptions *options, Diag *diag)
{
    LLVMTargetMachineRef machine = llvm_machine(code->arena, options, diag);
    if (machine) code->machine[code->machine_count++] = machine;
    return machine != NULL;
}

/* One target machine for each processor that the process may use and that has a part to work on. */
static bool add_machines(CpuCode *code, const CpuOptions *options, Diag *diag)
{
    cpu_set_t usable;
    int count = sched_getaffinity(0, sizeof usable, &usable) ? 1 : CPU_COUNT(&usable);
    if (count > MOST_WORKERS) count = MOST_WORKERS;
    if (count > (int)code->part_count) count = (int)code->part_count;
    while (code->machine_count < count)
        if (!add_machine(code, options, diag)) return false;
    return true;
}

CpuCode *llvm_compile(Arena *arena, const Plan *plan, const CpuOptions *options, Diag *diag)
{
    Target target;
    if (!llvm_target(options, &target, diag)) return NULL;
    CpuCode *code = arena_alloc(arena, sizeof *code);
    *code = (CpuCode){.arena = arena, .plan = plan, .sanitized = options->sanitize_address};
    bool done = add_machine(code, options, diag);
    if (done) {
        code->steps = arena_array(arena, (size_t)plan->step_count, sizeof *code->steps);
        Emitter e = {.arena = arena,
                     .diag = diag,
                     .plan = plan,
                     .graph = plan->graph,
                     .target = &target,
                     .sanitized = code->sanitized};
        begin_part(&e, code);
        done = emit_kernels(&e, code);
        end_part(&e);
        order_parts(code);
        done = done && add_machines(code, options, diag);
    }
    if (done) return code;
    llvm_free(code);
    return NULL;
}

void llvm_free(CpuCode *code)
{
    if (!code) return;
    if (code->jit) LLVMOrcDisposeLLJIT(code->jit);
    for (uint32_t i = 0; i < code->part_count; i++) {
        CodePart *part = &code->part[i];
        LLVMDisposeMessage(part->fault);
        if (part->object) LLVMDisposeMemoryBuffer(part->object);
        if (part->module) LLVMDisposeModule(part->module);
        LLVMContextDispose(part->context);
    }
    for (int i = 0; i < code->machine_count; i++) LLVMDisposeTargetMachine(code->machine[i]);
}

int llvm_object_count(const CpuCode *code)
{
    return (int)code->part_count;
}

const char *llvm_objects(CpuCode *code, CodeObject *objects)
{
    const char *fault = for_each_part(code, generate_object);
    for (uint32_t i = 0; i < code->part_count && !fault; i++) {
        LLVMMemoryBufferRef object = code->part[i].object;
        objects[i] = (CodeObject){LLVMGetBufferStart(object), LLVMGetBufferSize(object)};
    }
    return fault;
}

/* All parts as one module, in the context of the first. */
static LLVMModuleRef link_parts(const CpuCode *code)
{
    LLVMContextRef context = code->part[0].context;
    LLVMModuleRef whole = LLVMCloneModule(code->part[0].module);
    for (uint32_t i = 1; i < code->part_count; i++) {
        LLVMMemoryBufferRef bitcode = LLVMWriteBitcodeToMemoryBuffer(code->part[i].module);
        LLVMModuleRef part;
        if (LLVMParseBitcodeInContext2(context, bitcode, &part) || LLVMLinkModules2(whole, part))
            RAFTC_BUG("part %u of the code of %s cannot be linked", i, code->plan->graph->name);
        LLVMDisposeMemoryBuffer(bitcode);
    }
    run_passes(whole, "constmerge", code->machine[0]); /* tables that several parts have */
    return whole;
}

static void write_text(LLVMModuleRef module, Arena *arena, const char **bytes, size_t *size)
{
    char *text = LLVMPrintModuleToString(module);
    *size = strlen(text);
    *bytes = arena_strdup(arena, text);
    LLVMDisposeMessage(text);
    LLVMDisposeModule(module);
}

bool llvm_write(CpuCode *code, CodeKind kind, Arena *arena, const char **bytes, size_t *size,
                Diag *diag)
{
    for_each_part(code, optimise);
    LLVMModuleRef whole = link_parts(code);
    if (kind == CODE_IR) {
        write_text(whole, arena, bytes, size);
        return true;
    }
    char *fault = NULL;
    LLVMCodeGenFileType type = kind == CODE_ASSEMBLY ? LLVMAssemblyFile : LLVMObjectFile;
    LLVMMemoryBufferRef buffer = generate(whole, code->machine[0], type, &fault);
    if (!buffer) {
        diag_error(diag, (Loc){0}, "LLVM cannot write the code: %s", fault);
        LLVMDisposeMessage(fault);
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
