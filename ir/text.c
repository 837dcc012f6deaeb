/* text.c: a growable string with indentation. */
#include "ir/base.h"

#include <string.h>

enum { FIRST_CAPACITY = 64 };

Text text_new(Arena *arena)
{
    return (Text){
        .arena = arena, .data = arena_alloc(arena, FIRST_CAPACITY), .capacity = FIRST_CAPACITY};
}

/* Room for `more` bytes and the terminating zero. */
static void reserve(Text *text, size_t more)
{
    size_t needed, doubled;
    if (__builtin_add_overflow(text->length, more, &needed) ||
        __builtin_add_overflow(needed, (size_t)1, &needed))
        needed = SIZE_MAX; /* the arena reports it */
    if (needed <= text->capacity) return;
    if (__builtin_mul_overflow(text->capacity, (size_t)2, &doubled)) doubled = SIZE_MAX;
    size_t capacity = needed > doubled ? needed : doubled;
    char *data = arena_alloc(text->arena, capacity);
    memcpy(data, text->data, text->length);
    text->data = data;
    text->capacity = capacity;
}

static void append(Text *text, const char *bytes, size_t length)
{
    reserve(text, length);
    memcpy(text->data + text->length, bytes, length);
    text->length += length;
    text->data[text->length] = '\0';
}

static bool at_line_start(const Text *text)
{
    return text->length == 0 || text->data[text->length - 1] == '\n';
}

/* Line by line, so that each is indented; an empty line stays empty. */
static void append_lines(Text *text, const char *bytes, size_t length)
{
    while (length) {
        const char *newline = memchr(bytes, '\n', length);
        size_t line = newline ? (size_t)(newline - bytes) + 1 : length;
        if (at_line_start(text) && bytes[0] != '\n')
            for (int i = 0; i < text->indent; i++) append(text, "  ", 2);
        append(text, bytes, line);
        bytes += line;
        length -= line;
    }
}

void text_put(Text *text, const char *string)
{
    append_lines(text, string, strlen(string));
}

void text_printf(Text *text, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    text_vprintf(text, format, args);
    va_end(args);
}

void text_vprintf(Text *text, const char *format, va_list args)
{
    char small[256];
    va_list again;
    va_copy(again, args);
    int length = vsnprintf(small, sizeof small, format, args);
    RAFTC_ASSERT(length >= 0);
    char *formatted = small;
    if ((size_t)length >= sizeof small) {
        formatted = arena_alloc(text->arena, (size_t)length + 1);
        vsnprintf(formatted, (size_t)length + 1, format, again);
    }
    va_end(again);
    append_lines(text, formatted, (size_t)length);
}
