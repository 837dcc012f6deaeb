/* raftc_json.c: what --json prints: one object, on one line. */
#include "frontend/raftc_json.h"

#include <stdio.h>
#include <stdlib.h>

/* jansson leaves out what it has no memory for. */
static bool no_memory;

static void *allocate(size_t size)
{
    void *memory = malloc(size);
    no_memory |= !memory;
    return memory;
}

void json_prepare(void)
{
    json_set_alloc_funcs(allocate, free);
}

bool json_lost(void)
{
    return no_memory;
}

void json_print(json_t *object)
{
    if (!no_memory && json_dumpf(object, stdout, JSON_REAL_PRECISION(6)) == 0) putchar('\n');
    json_decref(object);
}

json_t *json_text(Arena *arena, const char *text)
{
    json_t *string = json_string(text);
    if (string) return string;
    char *plain = arena_strdup(arena, text);
    for (char *c = plain; *c; c++)
        if ((unsigned char)*c >= 0x80) *c = '?';
    return json_string(plain);
}
