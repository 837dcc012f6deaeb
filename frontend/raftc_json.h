/* raftc_json.h: what --json prints. */
#ifndef RAFTC_JSON_H
#define RAFTC_JSON_H

#include <jansson.h>

#include "ir/base.h"

/* To be called before jansson is used. */
void json_prepare(void);
/* Whether memory ran out in jansson; then nothing is printed. */
bool json_lost(void);
/* Prints the object to stdout, and releases it. */
void json_print(json_t *object);
/* A string of any bytes: where they are not UTF-8, '?' stands for those that are not ASCII. */
json_t *json_text(Arena *arena, const char *text);

#endif
