/* fuzz_passes.c: any graph through the passes and the memory plan. */
#include "tests/fuzz.h"
#include "tests/fuzz_mutator.h"
#include "tests/pass_property.h"

const FuzzLimits fuzz_limits = {.base = 16 << 20, .factor = 20000};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const Target targets[] = {
        {.vector_floats = 16, .vector_registers = 32, .packs_weights = true},
        {.vector_floats = 4, .vector_registers = 16, .packs_weights = true},
    };
    Arena arena = {0};
    Diag diag = diag_new(&arena);
    const Source *source = diag_add_source(&diag, "text", (const char *)data, size);
    const Graph *graph = graph_parse(&arena, source, &diag);
    const char *fault = NULL;
    for (size_t i = 0; graph && !fault && i < ARRAY_SIZE(targets); i++)
        fault =
            pass_graph_fault(&arena, graph, &targets[i], i == 0 ? INT64_MAX : (int64_t)size % 8);
    if (fault) fuzz_fail(fault);
    arena_free(&arena);
    return 0;
}
