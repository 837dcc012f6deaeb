/* memory.c: memory that is released all at once. */
#include "runtime/rt.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 16, CHUNK_BYTES = 4096 };

struct RtChunk {
    RtChunk *next;
    size_t used, size; /* of bytes */
    _Alignas(ALIGNMENT) unsigned char bytes[];
};

void *rt_alloc(RtArena *arena, size_t count, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes) || bytes > SIZE_MAX / 2) return NULL;
    bytes = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    RtChunk *chunk = arena->chunks;
    if (!chunk || bytes > chunk->size - chunk->used) {
        size_t room = bytes > CHUNK_BYTES ? bytes : CHUNK_BYTES;
        chunk = calloc(1, sizeof *chunk + room);
        if (!chunk) return NULL;
        chunk->size = room;
        chunk->next = arena->chunks;
        arena->chunks = chunk;
    }
    void *memory = chunk->bytes + chunk->used;
    chunk->used += bytes;
    return memory;
}

char *rt_strdup(RtArena *arena, const char *string, size_t length)
{
    char *copy = rt_alloc(arena, length + 1, 1);
    return copy ? memcpy(copy, string, length) : NULL;
}

void rt_arena_free(RtArena *arena)
{
    for (RtChunk *chunk = arena->chunks, *next; chunk; chunk = next) {
        next = chunk->next;
        free(chunk);
    }
    *arena = (RtArena){0};
}
