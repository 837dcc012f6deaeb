/* builder.c: a thin layer over the LLVM builder. */
#include "backends/llvm/emit.h"

#include <string.h>

LLVMValueRef int_constant(Emitter *e, int64_t value)
{
    return LLVMConstInt(e->i64, (unsigned long long)value, true);
}

LLVMTypeRef float_type(Emitter *e, int width)
{
    return width == 1 ? e->f32 : LLVMVectorType(e->f32, (unsigned)width);
}

LLVMValueRef float_constant(Emitter *e, float value, int width)
{
    LLVMValueRef lane[MAX_TILE], scalar = LLVMConstReal(e->f32, (double)value);
    if (width == 1) return scalar;
    for (int i = 0; i < width; i++) lane[i] = scalar;
    return LLVMConstVector(lane, (unsigned)width);
}

LLVMValueRef splat(Emitter *e, LLVMValueRef scalar, int width)
{
    if (width == 1) return scalar;
    LLVMValueRef poison = LLVMGetPoison(LLVMVectorType(LLVMTypeOf(scalar), (unsigned)width));
    LLVMValueRef first = LLVMBuildInsertElement(e->builder, poison, scalar, int_constant(e, 0), "");
    LLVMValueRef zeros = LLVMConstNull(LLVMVectorType(e->i32, (unsigned)width));
    return LLVMBuildShuffleVector(e->builder, first, poison, zeros, "");
}

LLVMValueRef intrinsic(Emitter *e, const char *name, LLVMValueRef *arguments, unsigned count)
{
    unsigned id = LLVMLookupIntrinsicID(name, strlen(name));
    RAFTC_ASSERT(id != 0);
    LLVMTypeRef type = LLVMTypeOf(arguments[0]);
    LLVMValueRef function = LLVMGetIntrinsicDeclaration(e->module, id, &type, 1);
    LLVMTypeRef function_type = LLVMIntrinsicGetType(e->context, id, &type, 1);
    return LLVMBuildCall2(e->builder, function_type, function, arguments, count, "");
}

LLVMValueRef multiply_add(Emitter *e, LLVMValueRef a, LLVMValueRef b, LLVMValueRef c)
{
    if (!e->target->fma)
        return LLVMBuildFAdd(e->builder, LLVMBuildFMul(e->builder, a, b, ""), c, "");
    return intrinsic(e, "llvm.fma", (LLVMValueRef[]){a, b, c}, 3);
}

/* In place of LLVM, which loads a number that several take once, to a register of its own. Its own addressing
 * would have an index, with which the processor makes two instructions of one again. */
LLVMValueRef multiply_add_loaded(Emitter *e, LLVMValueRef at, LLVMValueRef b, LLVMValueRef c)
{
    static const char text[] = "vfmadd231ps ${4:c}($3){1to16}, $2, $0",
                      constraints[] = "=v,0,v,r,i";
    enum { READS_ARGUMENTS = 1 };
    int64_t offset = 0;
    if (LLVMIsAGetElementPtrInst(at) && LLVMIsAConstantInt(LLVMGetOperand(at, 1))) {
        offset = 4 * LLVMConstIntGetSExtValue(LLVMGetOperand(at, 1));
        at = LLVMGetOperand(at, 0);
    }
    LLVMValueRef arguments[] = {c, b, at, int_constant(e, offset)};
    LLVMTypeRef vector = LLVMTypeOf(b), types[] = {vector, vector, e->pointer, e->i64};
    LLVMTypeRef type = LLVMFunctionType(vector, types, 4, false);
    LLVMValueRef instruction =
        LLVMGetInlineAsm(type, text, strlen(text), constraints, strlen(constraints), false, false,
                         LLVMInlineAsmDialectATT, false);
    LLVMValueRef call = LLVMBuildCall2(e->builder, type, instruction, arguments, 4, "");
    unsigned memory = LLVMGetEnumAttributeKindForName("memory", strlen("memory"));
    LLVMAddCallSiteAttribute(call, (LLVMAttributeIndex)LLVMAttributeFunctionIndex,
                             LLVMCreateEnumAttribute(e->context, memory, READS_ARGUMENTS));
    return call;
}

/* The constant part comes last, so that addresses that differ in it alone share the rest. */
LLVMValueRef address(Emitter *e, LLVMValueRef base, const Affine *offset)
{
    Affine variable = *offset;
    variable.constant = 0;
    if (variable.count > 0) {
        LLVMValueRef index = affine_emit(e, &variable);
        base = LLVMBuildGEP2(e->builder, e->f32, base, &index, 1, "");
    }
    if (offset->constant == 0) return base;
    LLVMValueRef index = int_constant(e, offset->constant);
    return LLVMBuildGEP2(e->builder, e->f32, base, &index, 1, "");
}

/* i1 lanes: true for the first `active`. */
static LLVMValueRef lane_mask(Emitter *e, const Lanes *lanes)
{
    LLVMTypeRef i1 = LLVMInt1TypeInContext(e->context);
    LLVMValueRef lane[MAX_TILE];
    for (int i = 0; i < lanes->width; i++) lane[i] = LLVMConstInt(i1, i < lanes->active, false);
    return LLVMConstVector(lane, (unsigned)lanes->width);
}

/* llvm.masked.load and .store are overloaded on the vector and the pointer. */
static LLVMValueRef masked(Emitter *e, const char *name, LLVMTypeRef vector,
                           LLVMValueRef *arguments)
{
    unsigned id = LLVMLookupIntrinsicID(name, strlen(name));
    LLVMTypeRef overload[] = {vector, e->pointer};
    LLVMValueRef function = LLVMGetIntrinsicDeclaration(e->module, id, overload, 2);
    LLVMTypeRef type = LLVMIntrinsicGetType(e->context, id, overload, 2);
    return LLVMBuildCall2(e->builder, type, function, arguments, 4, "");
}

LLVMValueRef load_masked(Emitter *e, LLVMValueRef base, const Affine *offset, LLVMValueRef mask,
                         LLVMTypeRef type)
{
    LLVMValueRef zero = LLVMConstNull(type);
    if (LLVMGetTypeKind(type) !=
        LLVMVectorTypeKind) { /* a number: read the first element in its stead */
        LLVMValueRef at = address(e, base, offset);
        at = LLVMBuildSelect(e->builder, mask, at, base, "");
        return LLVMBuildSelect(e->builder, mask, LLVMBuildLoad2(e->builder, type, at, ""), zero,
                               "");
    }
    LLVMValueRef arguments[] = {address(e, base, offset), LLVMConstInt(e->i32, 4, false), mask,
                                zero};
    return masked(e, "llvm.masked.load", type, arguments);
}

LLVMValueRef load_lanes(Emitter *e, LLVMValueRef base, const Affine *offset, const Lanes *lanes,
                        bool padded)
{
    LLVMTypeRef type = float_type(e, lanes->width);
    LLVMValueRef at = address(e, base, offset);
    LLVMValueRef align = LLVMConstInt(e->i32, 4, false);
    if (lanes->active < lanes->width && !padded)
        return masked(e, "llvm.masked.load", type,
                      (LLVMValueRef[]){at, align, lane_mask(e, lanes), LLVMConstNull(type)});
    LLVMValueRef value = LLVMBuildLoad2(e->builder, type, at, "");
    LLVMSetAlignment(value, 4);
    return value;
}

void store_lanes(Emitter *e, LLVMValueRef value, LLVMValueRef base, const Affine *offset,
                 const Lanes *lanes, bool padded)
{
    LLVMValueRef at = address(e, base, offset);
    LLVMValueRef align = LLVMConstInt(e->i32, 4, false);
    if (lanes->active < lanes->width && !padded) {
        masked(e, "llvm.masked.store", LLVMTypeOf(value),
               (LLVMValueRef[]){value, at, align, lane_mask(e, lanes)});
        return;
    }
    LLVMSetAlignment(LLVMBuildStore(e->builder, value, at), 4);
}

LLVMValueRef global_constant(Emitter *e, const char *name, LLVMValueRef value)
{
    LLVMValueRef global = LLVMAddGlobal(e->module, LLVMTypeOf(value), name);
    LLVMSetInitializer(global, value);
    LLVMSetLinkage(global, LLVMPrivateLinkage);
    LLVMSetGlobalConstant(global, true);
    LLVMSetUnnamedAddress(global, LLVMGlobalUnnamedAddr);
    return global;
}

LLVMValueRef stack_slot(Emitter *e, LLVMTypeRef type)
{
    return LLVMBuildAlloca(e->entry_builder, type, "");
}

Loop loop_begin(Emitter *e, LLVMValueRef count)
{
    Loop loop = {.count = count, .before = LLVMGetInsertBlock(e->builder)};
    loop.body = LLVMAppendBasicBlockInContext(e->context, e->function, "loop");
    loop.exit = LLVMAppendBasicBlockInContext(e->context, e->function, "done");
    LLVMBuildBr(e->builder, loop.body);
    LLVMPositionBuilderAtEnd(e->builder, loop.body);
    loop.index = LLVMBuildPhi(e->builder, e->i64, "i");
    LLVMValueRef zero = int_constant(e, 0);
    LLVMAddIncoming(loop.index, &zero, &loop.before, 1);
    return loop;
}

LLVMValueRef loop_multiple(Emitter *e, Loop *loop, int64_t scale)
{
    for (int i = 0; i < loop->multiples; i++)
        if (loop->multiple[i].scale == scale) return loop->multiple[i].value;
    if (loop->multiples == MOST_MULTIPLES)
        return LLVMBuildNSWMul(e->builder, loop->index, int_constant(e, scale), "");
    LLVMBasicBlockRef present = LLVMGetInsertBlock(e->builder);
    LLVMPositionBuilderBefore(e->builder, loop->index);
    LLVMValueRef value = LLVMBuildPhi(e->builder, e->i64, ""), zero = int_constant(e, 0);
    LLVMAddIncoming(value, &zero, &loop->before, 1);
    LLVMPositionBuilderAtEnd(e->builder, present);
    loop->multiple[loop->multiples].scale = scale;
    loop->multiple[loop->multiples++].value = value;
    return value;
}

/* Adds `step` to a value that the loop counts. */
static LLVMValueRef count_on(Emitter *e, LLVMValueRef value, int64_t step)
{
    LLVMBasicBlockRef latch = LLVMGetInsertBlock(e->builder);
    LLVMValueRef next = LLVMBuildNSWAdd(e->builder, value, int_constant(e, step), "");
    LLVMAddIncoming(value, &next, &latch, 1);
    return next;
}

void loop_end(Emitter *e, Loop *loop)
{
    LLVMValueRef next = count_on(e, loop->index, 1), end = loop->count;
    for (int i = 0; i < loop->multiples; i++) {
        int64_t scale = loop->multiple[i].scale;
        LLVMValueRef multiple = count_on(e, loop->multiple[i].value, scale);
        if (i > 0 || !LLVMIsAConstantInt(end)) continue;
        end = int_constant(e, scale * LLVMConstIntGetSExtValue(end));
        next = multiple; /* nothing else may need the index itself */
    }
    LLVMValueRef more = LLVMBuildICmp(e->builder, LLVMIntNE, next, end, "");
    LLVMBuildCondBr(e->builder, more, loop->body, loop->exit);
    LLVMPositionBuilderAtEnd(e->builder, loop->exit);
}

Branch branch_begin(Emitter *e, LLVMValueRef condition)
{
    LLVMBasicBlockRef then = LLVMAppendBasicBlockInContext(e->context, e->function, "then");
    Branch branch = {LLVMAppendBasicBlockInContext(e->context, e->function, "else"),
                     LLVMAppendBasicBlockInContext(e->context, e->function, "end")};
    LLVMBuildCondBr(e->builder, condition, then, branch.otherwise);
    LLVMPositionBuilderAtEnd(e->builder, then);
    return branch;
}

void branch_else(Emitter *e, Branch *branch)
{
    LLVMBuildBr(e->builder, branch->end);
    LLVMPositionBuilderAtEnd(e->builder, branch->otherwise);
}

void branch_end(Emitter *e, Branch *branch)
{
    LLVMBuildBr(e->builder, branch->end);
    LLVMPositionBuilderAtEnd(e->builder, branch->end);
}

enum { TO_L2 = 2, TO_L1 = 3 }; /* as LLVM numbers them */

static void fetch(Emitter *e, LLVMValueRef at, bool to_write, unsigned cache)
{
    enum { DATA = 1 };
    LLVMValueRef call[] = {at, LLVMConstInt(e->i32, to_write, false),
                           LLVMConstInt(e->i32, cache, false), LLVMConstInt(e->i32, DATA, false)};
    intrinsic(e, "llvm.prefetch", call, 4);
}

void fetch_line(Emitter *e, LLVMValueRef at, bool to_write)
{
    fetch(e, at, to_write, TO_L2);
}

void fetch_near(Emitter *e, LLVMValueRef at)
{
    fetch(e, at, false, TO_L1);
}
