/* ir_property.h: what must hold of any text given as IR, legal or not; for test_ir.c and fuzz_ir.c. */
#ifndef RAFTC_TESTS_IR_PROPERTY_H
#define RAFTC_TESTS_IR_PROPERTY_H

#include "ir/ir.h"

#include <stdlib.h>
#include <string.h>

static inline const char *ir_refusal_fault(const Diag *diag, const Source *source)
{
    if (diag->errors == 0) return "refused without an error";
    for (uint32_t i = 0; i < diag->count; i++)
        if (diag->messages[i].loc.source != source || diag->messages[i].loc.line == 0)
            return "a message has no place";
    char *printed = NULL;
    size_t size = 0;
    FILE *file = open_memstream(&printed, &size);
    if (!file) return "no memory";
    diag_print(diag, file);
    fclose(file);
    free(printed);
    return size > 0 ? NULL : "the messages print as nothing";
}

static inline const char *ir_graph_fault(Arena *arena, const Graph *graph, Diag *diag)
{
    Text first = text_new(arena), second = text_new(arena);
    if (diag->errors > 0) return "accepted with an error";
    graph_print(graph, &first);
    const Graph *again =
        graph_parse(arena, diag_add_source(diag, "again", first.data, first.length), diag);
    if (!again) return "what was printed is refused";
    graph_print(again, &second);
    return strcmp(first.data, second.data) == 0 ? NULL : "printed, parsed and printed: differs";
}

/* Parses `size` bytes. Returns what is wrong with the parser, or NULL: a text is either refused with
 * messages that all have a place, or is a graph whose print parses to one that prints the same. */
static inline const char *ir_text_fault(const char *text, size_t size)
{
    Arena arena = {0};
    Diag diag = diag_new(&arena);
    /* A copy that ends where the text does, so that a byte read past it is seen. */
    char *copy = malloc(size ? size : 1);
    if (!copy) return "no memory";
    if (size) memcpy(copy, text, size);
    const Source *source = diag_add_source(&diag, "text", copy, size);
    Graph *graph = graph_parse(&arena, source, &diag);
    const char *fault =
        graph ? ir_graph_fault(&arena, graph, &diag) : ir_refusal_fault(&diag, source);
    arena_free(&arena);
    free(copy);
    return fault;
}

#endif
