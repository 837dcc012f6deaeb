/* base.h: what every part of the compiler stands on: arenas, text, places in files, diagnostics.
 *
 *   Arena     memory that is released all at once; nothing in it is freed alone
 *   Text      a growable string with indentation, for everything that prints
 *   Source    one input file (or command line) in memory, so that a message can show its line
 *   Loc       a place in a Source; every IR node keeps one
 *   Diag      collects the messages meant for the user; the compiler never prints or exits itself
 *
 * A broken invariant of ours is not a diagnostic: it is RAFTC_BUG, which ends the process with 70.
 */
#ifndef RAFTC_BASE_H
#define RAFTC_BASE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define ARRAY_SIZE(a)           (sizeof(a) / sizeof((a)[0]))
#define PRINTF_LIKE(fmt, first) __attribute__((format(printf, fmt, first)))

/* ---- arena.c ---------------------------------------------------------------------------- */

typedef struct ArenaChunk ArenaChunk;

/* Zero-initialise to use. When memory runs out, allocation longjmps to `*out_of_memory` if that is
 * set (the one owner of the arenas of a compilation sets it and reports the failure), else it ends
 * the process as a bug would. So no caller ever sees NULL. */
typedef struct Arena {
    ArenaChunk *chunks;
    jmp_buf *out_of_memory;
} Arena;

/* `size` bytes, zeroed, aligned to 16. Valid until arena_free. */
void *arena_alloc(Arena *arena, size_t size);
/* A zeroed array of `count` elements of `size` bytes; the product is checked. */
void *arena_array(Arena *arena, size_t count, size_t size);
char *arena_strdup(Arena *arena, const char *string);
char *arena_strndup(Arena *arena, const char *string, size_t length);
char *arena_printf(Arena *arena, const char *format, ...) PRINTF_LIKE(2, 3);
/* What an allocation of `size` bytes does where memory has run out; for code that found so itself. */
_Noreturn void arena_out_of_memory(Arena *arena, size_t size);
/* Releases every allocation; the arena may be used again. */
void arena_free(Arena *arena);

/* Room for one more element in an arena array of `*capacity`: returns `array`, or a grown copy. */
void *arena_grow(Arena *arena, void *array, uint32_t count, uint32_t *capacity, size_t size);
#define ARENA_PUSH(arena, array, count, capacity)                                                  \
    ((array) = arena_grow((arena), (array), (count), &(capacity), sizeof *(array)),                \
     &(array)[(count)++])

/* ---- text.c ----------------------------------------------------------------------------- */

/* A growable, always terminated string in an arena. */
typedef struct Text {
    Arena *arena;
    char *data;
    size_t length, capacity;
    int indent; /* levels of two spaces, put before the first character of a line */
} Text;

Text text_new(Arena *arena);
void text_put(Text *text, const char *string);
void text_printf(Text *text, const char *format, ...) PRINTF_LIKE(2, 3);
void text_vprintf(Text *text, const char *format, va_list args);

/* ---- diag.c ----------------------------------------------------------------------------- */

typedef struct Source {
    const char *path; /* as the user wrote it */
    const char *text; /* may hold any bytes; NULL for a binary file */
    size_t size;
} Source;

/* line and column count from 1, column in characters (code points). line 0: the file as a whole. */
typedef struct Loc {
    const Source *source; /* NULL: no place is known */
    uint32_t line, column;
} Loc;

typedef struct Message Message;
struct Message {
    enum { MESSAGE_ERROR, MESSAGE_WARNING, MESSAGE_NOTE, MESSAGE_REMARK } kind;
    Loc loc;
    bool has_offset; /* binary files: a byte offset stands in place of the line */
    uint64_t offset;
    const char *text;
};

typedef struct Diag {
    Arena *arena;
    Message *messages;
    uint32_t count, capacity;
    uint32_t errors;
} Diag;

Diag diag_new(Arena *arena);
/* Reads a whole file of at most `limit` bytes as a Source. On failure: an error that names the
 * path and the reason, and NULL. */
const Source *diag_read_source(Diag *diag, const char *path, size_t limit);
/* A Source from text in memory; `text` must outlive the Diag's arena. */
const Source *diag_add_source(Diag *diag, const char *path, const char *text, size_t size);

/* Each adds one message and returns false, so that a failing function can `return diag_error(...)`.
 * Past 20 errors further ones are only counted. A note explains the error before it. */
bool diag_error(Diag *diag, Loc loc, const char *format, ...) PRINTF_LIKE(3, 4);
bool diag_error_at_byte(Diag *diag, const Source *source, uint64_t offset, const char *format, ...)
    PRINTF_LIKE(4, 5);
void diag_warning(Diag *diag, Loc loc, const char *format, ...) PRINTF_LIKE(3, 4);
void diag_note(Diag *diag, Loc loc, const char *format, ...) PRINTF_LIKE(3, 4);
/* A remark is printed only where a report asks for it (why a fusion did not happen). */
void diag_remark(Diag *diag, Loc loc, const char *format, ...) PRINTF_LIKE(3, 4);

/* Writes all messages but remarks:
 *     models/mine.yaml:9:16: error: raft_size 3 does not divide dim 64
 *       raft_size: 3
 *                  ^
 *     models/mine.yaml:9:16: note: ...
 * A tab in the source line is kept, so that the caret stands under the character; control
 * characters and bytes that are not UTF-8 are shown as '?'. */
void diag_print(const Diag *diag, FILE *file);

/* The entry of `names` (count of them) nearest to `word` by edit distance, or NULL where none is
 * near enough (distance over a third of the word's length, at least 1) to be what was meant. */
const char *diag_nearest(const char *word, const char *const *names, size_t count);

/* A broken invariant of the compiler: prints the place and the message, then exits with 70. */
_Noreturn void raftc_bug(const char *file, int line, const char *format, ...) PRINTF_LIKE(3, 4);
#define RAFTC_BUG(...) raftc_bug(__FILE__, __LINE__, __VA_ARGS__)
#define RAFTC_ASSERT(condition)                                                                    \
    ((condition) ? (void)0 : raftc_bug(__FILE__, __LINE__, "assertion failed: %s", #condition))

#endif
