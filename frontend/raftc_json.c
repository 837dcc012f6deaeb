/* raftc_json.c: what --json prints: one object, on one line. */
#include "frontend/raftc_json.h"

#include <stdio.h>

void json_print(json_t *object)
{
    json_dumpf(object, stdout, JSON_REAL_PRECISION(6));
    putchar('\n');
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
