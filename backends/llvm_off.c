/* llvm_off.c: in place of llvm/ where raftc is built without LLVM: says so. Whoever asks
 * llvm_available first gets no further. */
#include "backends/backend.h"

static bool absent(Diag *diag)
{
    return diag_error(diag, (Loc){0}, "this build of raftc has no LLVM");
}

bool llvm_available(void)
{
    return false;
}

bool llvm_check(const CpuOptions *options, Diag *diag)
{
    (void)options;
    return absent(diag);
}

bool llvm_target(const CpuOptions *options, Target *target, Diag *diag)
{
    (void)options, (void)target;
    return absent(diag);
}

const char *llvm_describe(Arena *arena, const CpuOptions *options, Diag *diag)
{
    (void)arena, (void)options;
    absent(diag);
    return NULL;
}

CpuCode *llvm_compile(Arena *arena, const Plan *plan, const CpuOptions *options, Diag *diag)
{
    (void)arena, (void)plan, (void)options;
    absent(diag);
    return NULL;
}

void llvm_free(CpuCode *code)
{
    RAFTC_ASSERT(!code);
}

bool llvm_write(CpuCode *code, CodeKind kind, Arena *arena, const char **bytes, size_t *size,
                Diag *diag)
{
    (void)code, (void)kind, (void)arena, (void)bytes, (void)size;
    return absent(diag);
}

int llvm_object_count(const CpuCode *code)
{
    (void)code;
    RAFTC_BUG("there is no code without LLVM");
}

const char *llvm_objects(CpuCode *code, CodeObject *objects)
{
    (void)code, (void)objects;
    RAFTC_BUG("there is no code without LLVM");
}

const RaftProgram *llvm_load(CpuCode *code, Diag *diag)
{
    (void)code;
    absent(diag);
    return NULL;
}

const StepCode *llvm_steps(const CpuCode *code)
{
    (void)code;
    RAFTC_BUG("there is no code without LLVM");
}

int64_t llvm_scratch_bytes(const CpuCode *code)
{
    (void)code;
    RAFTC_BUG("there is no code without LLVM");
}
