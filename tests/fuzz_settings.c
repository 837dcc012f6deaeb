/* fuzz_settings.c: settings files (YAML), to the graph of the model: each text is refused with a
 * place, or gives a graph that the verifier passes. */
#include "frontend/frontend.h"
#include "tests/fuzz.h"

#include <stdlib.h>
#include <string.h>

/* A graph of MOST_LAYERS layers; for a value a node of the tree, a list entry, its text, and twice
 * that while lists grow. */
enum { MOST_LAYERS = 64 };
const FuzzLimits fuzz_limits = {.base = MOST_LAYERS << 18, .factor = 1000};

static const char *places_fault(const Diag *diag)
{
    for (uint32_t i = 0; i < diag->count; i++) {
        const Loc *loc = &diag->messages[i].loc;
        if (!loc->source || loc->line == 0 || loc->column == 0) return "a message has no place";
    }
    return NULL;
}

static const char *model_fault(Arena *arena, const Model *model, Diag *diag)
{
    if (diag->errors > 0) return "accepted with an error";
    int64_t layers = 0;
    for (int i = 0; i < model->settings->layer_count; i++)
        layers += model->settings->layers[i].depth;
    if (layers > MOST_LAYERS) return NULL;
    return graph_verify(build_graph(arena, model), diag) ? NULL : "the graph is not valid";
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Arena arena = {0};
    Diag diag = diag_new(&arena);
    const Source *source = diag_add_source(&diag, "x.yaml", (const char *)data, size);
    const Settings *settings = settings_parse(&arena, source, NULL, 0, &diag);
    const Model *model = settings ? model_resolve(&arena, settings, NULL, 0, 0, &diag) : NULL;
    const char *fault = places_fault(&diag);
    if (!fault && !model && diag.errors == 0) fault = "refused without an error";
    if (!fault && model) fault = model_fault(&arena, model, &diag);
    if (fault) fuzz_fail(fault);
    arena_free(&arena);
    return 0;
}
