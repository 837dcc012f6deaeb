/* fuzz_ir.c: graphs as text: the parser, verifier and printer. */
#include "tests/fuzz.h"
#include "tests/fuzz_mutator.h"
#include "tests/ir_property.h"

const FuzzLimits fuzz_limits = {.base = 4 << 20, .factor = 2000};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *fault = ir_text_fault((const char *)data, size);
    if (fault) fuzz_fail(fault);
    return 0;
}
