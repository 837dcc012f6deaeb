/* fuzz_ir.c: the IR parser, verifier and printer under libFuzzer.
 *
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined -I. tests/fuzz_ir.c ir/[a-z]*.c -lm -o fuzz_ir
 *   ./fuzz_ir -timeout=1 -max_len=4096 CORPUS tests/ir
 *
 * With -DREPLAY (and without fuzzer in -fsanitize): a program that replays the files it is given. */
#include "tests/ir_property.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *fault = ir_text_fault((const char *)data, size);
    if (!fault) return 0;
    fprintf(stderr, "fuzz_ir: %s\n", fault);
    abort();
}

#ifdef REPLAY
int main(int argc, char **argv)
{
    Arena arena = {0};
    Diag diag = diag_new(&arena);
    for (int i = 1; i < argc; i++) {
        const Source *source = diag_read_source(&diag, argv[i], (size_t)1 << 26);
        if (source) LLVMFuzzerTestOneInput((const uint8_t *)source->text, source->size);
    }
    diag_print(&diag, stderr);
    arena_free(&arena);
    return diag.errors > 0;
}
#endif
