/* twins.c: kernels that are one function but for the strides of what they read and write.
 *
 *   k3(...)      { shared(..., 3584, 256); }      MLP along the columns
 *   k4(...)      { shared(..., 256, 3584); }      MLP along the rows
 *
 * Half as much code is to be generated. Strides are used where rows are fetched and stored; the products
 * walk through scratch memory, which lies in one order for both.
 */
#include "backends/llvm/emit.h"

#include <string.h>

static bool is_twin(const StepKey *key, int s, int t)
{
    return key[t].same == t && strcmp(key[s].strided, key[t].strided) == 0;
}

/* Are the strides number i and j equal in step s and in all of its twins? */
static bool always_equal(const StepKey *key, int count, int s, int i, int j)
{
    for (int t = s; t < count; t++)
        if (is_twin(key, s, t) && key[t].strides.item[i].stride != key[t].strides.item[j].stride)
            return false;
    return true;
}

bool find_twins(const StepKey *key, int count, int s, TwinStrides *strides)
{
    bool any = false;
    for (int t = s + 1; t < count; t++) any |= is_twin(key, s, t);
    *strides = (TwinStrides){.of = key[s].strides};
    for (int i = 0; i < strides->of.count && any; i++) {
        const KernelStride *item = strides->of.item;
        int first = i;
        for (int j = i; j-- > 0;) {
            bool equal = always_equal(key, count, s, i, j);
            if (equal) first = j;
            /* A dimension that two reads walk along is told once. */
            if (!equal && item[i].stored == item[j].stored && item[i].dim == item[j].dim)
                any = false;
        }
        strides->argument[i] = first < i ? strides->argument[first] : strides->argument_count++;
    }
    return any;
}

void emit_twins(Emitter *e, const StepKey *key, int count, int s, const TwinStrides *strides,
                StepCode *steps)
{
    LLVMValueRef shared = e->function, argument[KERNEL_PARAMETERS + MAX_STRIDES];
    LLVMTypeRef type = LLVMGlobalGetValueType(shared), parameter[KERNEL_PARAMETERS + MAX_STRIDES];
    LLVMGetParamTypes(type, parameter);
    LLVMTypeRef plain =
        LLVMFunctionType(LLVMGetReturnType(type), parameter, KERNEL_PARAMETERS, false);
    for (int t = s; t < count; t++) {
        if (!is_twin(key, s, t)) continue;
        const char *symbol = kernel_symbol(e, t);
        LLVMValueRef function = LLVMAddFunction(e->module, symbol, plain);
        LLVMSetVisibility(function, LLVMHiddenVisibility);
        LLVMPositionBuilderAtEnd(e->builder,
                                 LLVMAppendBasicBlockInContext(e->context, function, "entry"));
        for (unsigned i = 0; i < KERNEL_PARAMETERS; i++) argument[i] = LLVMGetParam(function, i);
        for (int i = 0; i < strides->of.count; i++)
            argument[KERNEL_PARAMETERS + strides->argument[i]] =
                int_constant(e, key[t].strides.item[i].stride);
        LLVMBuildCall2(e->builder, type, shared, argument,
                       (unsigned)(KERNEL_PARAMETERS + strides->argument_count), "");
        LLVMBuildRetVoid(e->builder);
        steps[t] = steps[s];
        steps[t].symbol = symbol;
    }
}
