/* target.c: what machine to compile for. */
#define _GNU_SOURCE /* pipe2 */
#include "backends/llvm/llvm.h"

#include <errno.h>
#include <fcntl.h>
#include <llvm-c/Support.h>
#include <llvm-c/Target.h>
#include <pthread.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

bool llvm_available(void)
{
    return true;
}

static bool is_host(const CpuOptions *options)
{
    return !options->triple && (!options->cpu || strcmp(options->cpu, "host") == 0);
}

/* The emitter writes addresses and the order of a tile's instructions as they should be. LLVM's loop
 * strength reduction and its second scheduler gain nothing more (bench/results/kernels-2026-11-26.md),
 * and take a third of the time in which code is generated. */
static void initialise_targets(void)
{
    static const char *const arguments[] = {"raftc", "-disable-lsr", "-post-RA-scheduler=0"};
    LLVMInitializeAllTargetInfos();
    LLVMInitializeAllTargets();
    LLVMInitializeAllTargetMCs();
    LLVMInitializeAllAsmPrinters();
    LLVMInitializeAllAsmParsers();
    LLVMParseCommandLineOptions(ARRAY_SIZE(arguments), arguments, NULL);
}

LLVMTargetMachineRef llvm_machine(Arena *arena, const CpuOptions *options, Diag *diag)
{
    /* LLVM's list of targets is global and must not be filled by two threads at once. */
    static pthread_once_t targets = PTHREAD_ONCE_INIT;
    pthread_once(&targets, initialise_targets);
    char *triple =
        options->triple ? LLVMNormalizeTargetTriple(options->triple) : LLVMGetDefaultTargetTriple();
    char *cpu = is_host(options) ? LLVMGetHostCPUName() : NULL;
    char *features = is_host(options) ? LLVMGetHostCPUFeatures() : NULL, *message = NULL;
    if (!triple || (is_host(options) && (!cpu || !features))) arena_out_of_memory(arena, 0);
    const char *all = arena_printf(arena, "%s%s%s", features ? features : "",
                                   features && options->features ? "," : "",
                                   options->features ? options->features : "");
    const char *name = cpu ? cpu : options->cpu ? options->cpu : "generic";
    if (strcmp(name, "host") == 0) name = "generic";
    LLVMTargetRef target = NULL;
    LLVMTargetMachineRef machine = NULL;
    if (LLVMGetTargetFromTriple(triple, &target, &message)) {
        diag_error(diag, (Loc){0}, "unknown target triple '%s': %s", triple, message);
        LLVMDisposeMessage(message);
    } else {
        machine = LLVMCreateTargetMachine(target, triple, name, all, LLVMCodeGenLevelAggressive,
                                          LLVMRelocPIC, LLVMCodeModelDefault);
        if (!machine) diag_error(diag, (Loc){0}, "LLVM has no code generator for '%s'", triple);
    }
    /* Assembly says which loop a block is in, and what is spilled. */
    if (machine) LLVMSetTargetMachineAsmVerbosity(machine, true);
    if (cpu) LLVMDisposeMessage(cpu);
    if (features) LLVMDisposeMessage(features);
    LLVMDisposeMessage(triple);
    return machine;
}

const char *llvm_describe(Arena *arena, const CpuOptions *options, Diag *diag)
{
    LLVMTargetMachineRef machine = llvm_machine(arena, options, diag);
    if (!machine) return NULL;
    char *triple = LLVMGetTargetMachineTriple(machine), *cpu = LLVMGetTargetMachineCPU(machine);
    char *features = LLVMGetTargetMachineFeatureString(machine);
    const char *text = arena_printf(arena, "%s %s %s", triple, cpu, features);
    LLVMDisposeMessage(triple);
    LLVMDisposeMessage(cpu);
    LLVMDisposeMessage(features);
    LLVMDisposeTargetMachine(machine);
    return text;
}

/* Stores some lanes of a vector, as kernels do at their edges. */
static void store_some(LLVMModuleRef module, LLVMBuilderRef builder, LLVMValueRef y,
                       LLVMValueRef pointer)
{
    LLVMContextRef context = LLVMGetModuleContext(module);
    LLVMTypeRef i1 = LLVMInt1TypeInContext(context), i32 = LLVMInt32TypeInContext(context);
    LLVMTypeRef types[] = {LLVMTypeOf(y), LLVMTypeOf(pointer)};
    LLVMValueRef lane[16];
    for (unsigned i = 0; i < 16; i++) lane[i] = LLVMConstInt(i1, i < 5 || i == 8, false);
    unsigned id = LLVMLookupIntrinsicID("llvm.masked.store", 17);
    LLVMValueRef store = LLVMGetIntrinsicDeclaration(module, id, types, 2);
    LLVMValueRef arguments[] = {y, pointer, LLVMConstInt(i32, 4, false), LLVMConstVector(lane, 16)};
    LLVMBuildCall2(builder, LLVMIntrinsicGetType(context, id, types, 2), store, arguments, 4, "");
}

/* Assembly of a function that multiplies and adds vectors of 16 floats: the registers it uses tell
 * what the machine has, whatever its name and features are called. */
static LLVMMemoryBufferRef probe_assembly(LLVMTargetMachineRef machine)
{
    LLVMContextRef context = LLVMContextCreate();
    LLVMModuleRef module = LLVMModuleCreateWithNameInContext("probe", context);
    LLVMTypeRef f32 = LLVMFloatTypeInContext(context), vector = LLVMVectorType(f32, 16);
    LLVMTypeRef pointer = LLVMPointerTypeInContext(context, 0);
    LLVMTypeRef parameter[] = {pointer, vector, vector};
    LLVMTypeRef type = LLVMFunctionType(LLVMVoidTypeInContext(context), parameter, 3, false);
    LLVMValueRef function = LLVMAddFunction(module, "probe", type);
    LLVMAttributeRef wide = LLVMCreateStringAttribute(context, "prefer-vector-width", 19, "512", 3);
    LLVMAddAttributeAtIndex(function, LLVMAttributeFunctionIndex, wide);
    LLVMBuilderRef builder = LLVMCreateBuilderInContext(context);
    LLVMPositionBuilderAtEnd(builder, LLVMAppendBasicBlockInContext(context, function, "entry"));
    LLVMValueRef x = LLVMBuildLoad2(builder, vector, LLVMGetParam(function, 0), "");
    unsigned id = LLVMLookupIntrinsicID("llvm.fma", 8);
    LLVMValueRef fma = LLVMGetIntrinsicDeclaration(module, id, &vector, 1);
    LLVMValueRef arguments[] = {x, LLVMGetParam(function, 1), LLVMGetParam(function, 2)};
    LLVMValueRef y = LLVMBuildCall2(builder, LLVMIntrinsicGetType(context, id, &vector, 1), fma,
                                    arguments, 3, "");
    LLVMBuildStore(builder, y, LLVMGetParam(function, 0));
    store_some(module, builder, y, LLVMGetParam(function, 0));
    LLVMBuildRetVoid(builder);
    LLVMDisposeBuilder(builder);
    LLVMMemoryBufferRef buffer = NULL;
    char *message = NULL;
    if (LLVMTargetMachineEmitToMemoryBuffer(machine, module, LLVMAssemblyFile, &message, &buffer)) {
        LLVMDisposeMessage(message);
        buffer = NULL;
    }
    LLVMDisposeModule(module);
    LLVMContextDispose(context);
    return buffer;
}

/* What is written to `end` until it is closed: the beginning of it, terminated. */
static void read_all(int end, char *text, size_t size)
{
    char rest[256];
    size_t length = 0;
    for (;;) {
        bool full = length + 1 == size;
        ssize_t count =
            read(end, full ? rest : text + length, full ? sizeof rest : size - 1 - length);
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) break;
        if (!full) length += (size_t)count;
    }
    text[length] = '\0';
}

/* Of CPUs and features that it does not know LLVM complains on the standard error stream alone,
 * and it ends the process where it can generate no code with the rest. So what the user chose is
 * tried in a child first, and its complaint is the message. */
bool llvm_check(const CpuOptions *options, Diag *diag)
{
    if (is_host(options) && !options->features) return true;
    int end[2], status = 0;
    char text[1024];
    if (pipe2(end, O_CLOEXEC) != 0) return diag_error(diag, (Loc){0}, "pipe: %s", strerror(errno));
    fflush(NULL); /* LLVM may leave the child through exit() */
    pid_t child = fork();
    if (child == 0) {
        dup2(end[1], STDERR_FILENO);
        LLVMTargetMachineRef machine = llvm_machine(diag->arena, options, diag);
        _exit(machine && probe_assembly(machine) ? 0 : 1);
    }
    close(end[1]);
    if (child > 0) read_all(end[0], text, sizeof text);
    close(end[0]);
    if (child < 0) return diag_error(diag, (Loc){0}, "fork: %s", strerror(errno));
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) continue;
    bool complains = strstr(text, "not a recognized") || (status != 0 && text[0]);
    if (!complains && !WIFSIGNALED(status)) {
        LLVMTargetMachineRef machine = llvm_machine(diag->arena, options, diag);
        if (machine) LLVMDisposeTargetMachine(machine);
        return machine;
    }
    if (strstr(text, "Cannot select")) /* what follows is about LLVM's inner life */
        return diag_error(diag, (Loc){0},
                          "LLVM cannot compile for the chosen CPU: its features do not "
                          "go together");
    char *aside = strstr(text, " (ignoring");
    text[aside ? (size_t)(aside - text) : strcspn(text, "\n")] = '\0';
    return diag_error(diag, (Loc){0}, "LLVM cannot compile for the chosen CPU: %s", text);
}

bool llvm_target(const CpuOptions *options, Target *target, Diag *diag)
{
    LLVMTargetMachineRef machine = llvm_machine(diag->arena, options, diag);
    if (!machine) return false;
    LLVMMemoryBufferRef buffer = probe_assembly(machine);
    LLVMDisposeTargetMachine(machine);
    if (!buffer) return diag_error(diag, (Loc){0}, "LLVM cannot generate code for this target");
    const char *text =
        arena_strndup(diag->arena, LLVMGetBufferStart(buffer), LLVMGetBufferSize(buffer));
    LLVMDisposeMemoryBuffer(buffer);
    bool zmm = strstr(text, "zmm"), ymm = strstr(text, "ymm"), neon = strstr(text, "fmla");
    *target = (Target){.vector_floats = zmm   ? 16
                                        : ymm ? 8
                                              : 4,
                       .vector_registers = zmm || neon ? 32 : 16,
                       .fma = strstr(text, "vfmadd") || neon,
                       .l1_bytes = 32 << 10,
                       .l2_bytes = 1 << 20,
                       .packs_weights = true};
    if (is_host(options)) {
        long l1 = sysconf(_SC_LEVEL1_DCACHE_SIZE), l2 = sysconf(_SC_LEVEL2_CACHE_SIZE);
        if (l1 > 0) target->l1_bytes = l1;
        if (l2 > 0) target->l2_bytes = l2;
    }
    return true;
}
