/* arena.c: memory in chunks that are released all at once. */
#include "ir/base.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 16, CHUNK_SIZE = 1 << 16 };

struct ArenaChunk {
    ArenaChunk *previous;
    size_t used, size; /* of `data`, in bytes */
    _Alignas(ALIGNMENT) char data[];
};

_Noreturn void arena_out_of_memory(Arena *arena, size_t size)
{
    if (arena->out_of_memory) longjmp(*arena->out_of_memory, 1);
    RAFTC_BUG("out of memory: no room for %zu more bytes", size);
}

/* calloc zeroes large chunks at no cost, and a chunk is never used twice: all memory is zeroed. */
static ArenaChunk *chunk_new(Arena *arena, size_t size)
{
    size_t total;
    if (__builtin_add_overflow(size, sizeof(ArenaChunk), &total)) arena_out_of_memory(arena, size);
    ArenaChunk *chunk = calloc(1, total);
    if (!chunk) arena_out_of_memory(arena, size);
    chunk->size = size;
    return chunk;
}

void *arena_alloc(Arena *arena, size_t size)
{
    size_t rounded;
    if (__builtin_add_overflow(size, (size_t)(ALIGNMENT - 1), &rounded))
        arena_out_of_memory(arena, size);
    rounded -= rounded % ALIGNMENT;

    ArenaChunk *chunk = arena->chunks;
    if (!chunk || chunk->size - chunk->used < rounded) {
        chunk = chunk_new(arena, rounded > CHUNK_SIZE ? rounded : CHUNK_SIZE);
        if (arena->chunks && rounded > CHUNK_SIZE) {
            /* A large block goes behind the current chunk, which still has room. */
            chunk->previous = arena->chunks->previous;
            arena->chunks->previous = chunk;
        } else {
            chunk->previous = arena->chunks;
            arena->chunks = chunk;
        }
    }
    void *memory = chunk->data + chunk->used;
    chunk->used += rounded;
    return memory;
}

void *arena_array(Arena *arena, size_t count, size_t size)
{
    size_t total;
    if (__builtin_mul_overflow(count, size, &total)) arena_out_of_memory(arena, SIZE_MAX);
    return arena_alloc(arena, total);
}

char *arena_strndup(Arena *arena, const char *string, size_t length)
{
    RAFTC_ASSERT(length < SIZE_MAX);
    char *copy = arena_alloc(arena, length + 1);
    if (length) memcpy(copy, string, length);
    return copy;
}

char *arena_strdup(Arena *arena, const char *string)
{
    return arena_strndup(arena, string, strlen(string));
}

char *arena_printf(Arena *arena, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int length = vsnprintf(NULL, 0, format, args);
    va_end(args);
    RAFTC_ASSERT(length >= 0);

    char *string = arena_alloc(arena, (size_t)length + 1);
    va_start(args, format);
    vsnprintf(string, (size_t)length + 1, format, args);
    va_end(args);
    return string;
}

void arena_free(Arena *arena)
{
    ArenaChunk *chunk = arena->chunks;
    arena->chunks = NULL;
    while (chunk) {
        ArenaChunk *previous = chunk->previous;
        free(chunk);
        chunk = previous;
    }
}

void *arena_grow(Arena *arena, void *array, uint32_t count, uint32_t *capacity, size_t size)
{
    if (count < *capacity) return array;
    uint32_t grown = 8;
    if (*capacity && __builtin_mul_overflow(*capacity, 2u, &grown))
        arena_out_of_memory(arena, SIZE_MAX);
    void *copy = arena_array(arena, grown, size);
    if (count) memcpy(copy, array, count * size);
    *capacity = grown;
    return copy;
}
