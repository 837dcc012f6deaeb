/* fuzz_passes.c: any graph through the passes and the memory plan under libFuzzer.
 *
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined -I. tests/fuzz_passes.c {ir,passes}/[a-z]*.c \
 *       -lm -o fuzz_passes
 *   ./fuzz_passes -timeout=1 -max_len=4096 -dict=tests/corpus/ir.dict CORPUS tests/passes
 *
 * With -DREPLAY, and without fuzzer in -fsanitize: a program that replays the files given to it. */
#include "tests/pass_property.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
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
        fault = pass_graph_fault(&arena, graph, &targets[i], i == 0 ? INT64_MAX : (int64_t)size % 8);
    if (fault) {
        fprintf(stderr, "fuzz_passes: %s\n", fault);
        abort();
    }
    arena_free(&arena);
    return 0;
}

#ifndef REPLAY
#include "tests/fuzz_mutator.h"
#endif
#include "tests/fuzz_replay.h"
