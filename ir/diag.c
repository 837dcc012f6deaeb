/* diag.c: the messages meant for the user, each with its place and the line it is about. */
#include "ir/base.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
    ERRORS_KEPT = 20,
    MESSAGE_MOST = 1000, /* bytes of a message, which may quote the user at length */
    LINE_SHOWN = 160,    /* characters of a source line; */
    CARET_MOST = 120,    /* a line whose caret would stand further right is cut on the left */
};

Diag diag_new(Arena *arena)
{
    return (Diag){.arena = arena};
}

/* ---- sources ----------------------------------------------------------------------------- */

const Source *diag_add_source(Diag *diag, const char *path, const char *text, size_t size)
{
    Source *source = arena_alloc(diag->arena, sizeof *source);
    *source = (Source){.path = arena_strdup(diag->arena, path), .text = text, .size = size};
    return source;
}

/* Grows as the file is read: a size that a file only claims is never trusted. */
static bool read_all(Arena *arena, FILE *file, size_t limit, char **text, size_t *size)
{
    size_t capacity = 4096, length = 0;
    char *bytes = arena_alloc(arena, capacity);
    for (;;) {
        length += fread(bytes + length, 1, capacity - 1 - length, file);
        if (length < capacity - 1 || length > limit) break;
        char *grown = arena_array(arena, capacity, 2);
        memcpy(grown, bytes, length);
        bytes = grown;
        capacity *= 2;
    }
    bytes[length] = '\0';
    *text = bytes;
    *size = length;
    return !ferror(file);
}

const Source *diag_read_source(Diag *diag, const char *path, size_t limit)
{
    const Source *source = diag_add_source(diag, path, "", 0);
    const Loc whole = {.source = source};
    FILE *file = fopen(path, "rb");
    if (!file) {
        diag_error(diag, whole, "cannot be opened: %s", strerror(errno));
        return NULL;
    }
    char *text;
    size_t size;
    errno = 0;
    bool read = read_all(diag->arena, file, limit, &text, &size);
    int reason = errno;
    fclose(file);
    if (!read) {
        diag_error(diag, whole, "cannot be read: %s", strerror(reason));
        return NULL;
    }
    if (size > limit) {
        diag_error(diag, whole, "is larger than %zu bytes, the most that is read", limit);
        return NULL;
    }
    return diag_add_source(diag, path, text, size);
}

/* ---- adding messages --------------------------------------------------------------------- */

static void add(Diag *diag, Message message, const char *format, va_list args)
{
    if (message.kind == MESSAGE_ERROR) diag->errors++;
    bool of_error = message.kind == MESSAGE_ERROR || message.kind == MESSAGE_NOTE;
    if (of_error && diag->errors > ERRORS_KEPT) return;
    Text text = text_new(diag->arena);
    text_vprintf(&text, format, args);
    if (text.length > MESSAGE_MOST) memcpy(text.data + MESSAGE_MOST, "...", 4);
    message.text = text.data;
    *ARENA_PUSH(diag->arena, diag->messages, diag->count, diag->capacity) = message;
}

/* The variadic functions differ only in the message they start from. */
#define ADD(...)                                                                                   \
    do {                                                                                           \
        va_list args;                                                                              \
        va_start(args, format);                                                                    \
        add(diag, (Message){__VA_ARGS__}, format, args);                                           \
        va_end(args);                                                                              \
    } while (0)

bool diag_error(Diag *diag, Loc loc, const char *format, ...)
{
    ADD(.kind = MESSAGE_ERROR, .loc = loc);
    return false;
}

bool diag_error_at_byte(Diag *diag, const Source *source, uint64_t offset, const char *format, ...)
{
    ADD(.kind = MESSAGE_ERROR, .loc = {.source = source}, .has_offset = true, .offset = offset);
    return false;
}

void diag_warning(Diag *diag, Loc loc, const char *format, ...)
{
    ADD(.kind = MESSAGE_WARNING, .loc = loc);
}

void diag_note(Diag *diag, Loc loc, const char *format, ...)
{
    ADD(.kind = MESSAGE_NOTE, .loc = loc);
}

void diag_remark(Diag *diag, Loc loc, const char *format, ...)
{
    ADD(.kind = MESSAGE_REMARK, .loc = loc);
}

/* ---- printing ---------------------------------------------------------------------------- */

/* Length in bytes of the character at `text`: 1 to 4, or 0 where it is not valid UTF-8. */
static size_t character_length(const unsigned char *text, const unsigned char *end)
{
    if (text[0] < 0x80) return 1;
    size_t length = text[0] >= 0xF0 ? 4 : text[0] >= 0xE0 ? 3 : 2;
    if (text[0] < 0xC2 || text[0] > 0xF4 || (size_t)(end - text) < length) return 0;
    for (size_t i = 1; i < length; i++)
        if ((text[i] & 0xC0) != 0x80) return 0;
    bool overlong = (text[0] == 0xE0 && text[1] < 0xA0) || (text[0] == 0xF0 && text[1] < 0x90);
    bool surrogate = text[0] == 0xED && text[1] >= 0xA0;
    bool too_large = text[0] == 0xF4 && text[1] >= 0x90;
    return overlong || surrogate || too_large ? 0 : length;
}

/* Prints the character at `text`, whatever it is, and returns where the next one begins. */
static const char *print_character(const char *text, const char *end, FILE *file)
{
    const unsigned char *bytes = (const unsigned char *)text;
    size_t length = character_length(bytes, (const unsigned char *)end);
    bool control = length == 1 ? (bytes[0] < 0x20 && bytes[0] != '\t') || bytes[0] == 0x7F
                               : length == 2 && bytes[0] == 0xC2 && bytes[1] < 0xA0;
    if (length == 0 || control)
        fputc('?', file);
    else
        fwrite(text, 1, length, file);
    return text + (length ? length : 1);
}

static void print_clean(const char *string, FILE *file)
{
    const char *end = string + strlen(string);
    while (string < end) string = print_character(string, end, file);
}

static const char *next_character(const char *text, const char *end)
{
    size_t length = character_length((const unsigned char *)text, (const unsigned char *)end);
    return text + (length ? length : 1);
}

/* The bytes of a line, without its end and the byte order mark that a file may begin with. */
static bool find_line(const Source *source, uint32_t line, const char **begin, const char **end)
{
    const char *text = source->text, *stop = source->text + source->size;
    if (source->size >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0) text += 3;
    for (uint32_t i = 1; i < line; i++) {
        text = memchr(text, '\n', (size_t)(stop - text));
        if (!text) return false;
        text++;
    }
    const char *newline = memchr(text, '\n', (size_t)(stop - text));
    *begin = text;
    *end = newline ? newline : stop;
    if (*end > *begin && (*end)[-1] == '\r') --*end;
    return true;
}

/* The line without its indentation, two spaces in, and a caret below the column. */
static void print_line(Loc loc, FILE *file)
{
    const char *text, *end;
    if (!loc.source->text || !find_line(loc.source, loc.line, &text, &end)) return;
    uint32_t before = loc.column ? loc.column - 1 : 0;
    for (; before && text < end && (*text == ' ' || *text == '\t'); before--) text++;

    bool cut = before > CARET_MOST;
    for (; before > CARET_MOST / 2 && cut && text < end; before--) text = next_character(text, end);
    fputs(cut ? "  ..." : "  ", file);
    const char *shown = text;
    int count = 0;
    while (text < end && count++ < LINE_SHOWN) text = print_character(text, end, file);
    fputs(text < end ? "...\n" : "\n", file);
    if (!loc.column) return;

    fputs(cut ? "     " : "  ", file);
    for (; before; before--) {
        fputc(shown < end && *shown == '\t' ? '\t' : ' ', file);
        if (shown < end) shown = next_character(shown, end);
    }
    fputs("^\n", file);
}

static void print_message(const Message *message, FILE *file)
{
    static const char *const kinds[] = {"error", "warning", "note", "remark"};
    const Loc loc = message->loc;
    print_clean(loc.source ? loc.source->path : "raftc", file);
    if (message->has_offset)
        fprintf(file, ": byte %llu", (unsigned long long)message->offset);
    else if (loc.source && loc.line)
        fprintf(file, ":%u:%u", loc.line, loc.column);
    fprintf(file, ": %s: ", kinds[message->kind]);
    print_clean(message->text, file);
    fputc('\n', file);
    if (loc.source && loc.line) print_line(loc, file);
}

void diag_print(const Diag *diag, FILE *file)
{
    for (uint32_t i = 0; i < diag->count; i++)
        if (diag->messages[i].kind != MESSAGE_REMARK) print_message(&diag->messages[i], file);
    if (diag->errors > ERRORS_KEPT)
        fprintf(file, "raftc: errors not shown: %u\n", diag->errors - ERRORS_KEPT);
}

/* ---- near names -------------------------------------------------------------------------- */

enum { NAME_MOST = 96 };

/* Insertions, deletions, replacements and exchanges of two neighbours, each counted once. */
static size_t edit_distance(const char *a, size_t a_length, const char *b, size_t b_length)
{
    size_t rows[3][NAME_MOST + 1];
    for (size_t j = 0; j <= b_length; j++) rows[0][j] = j;
    for (size_t i = 1; i <= a_length; i++) {
        size_t *row = rows[i % 3];
        const size_t *above = rows[(i + 2) % 3], *above_that = rows[(i + 1) % 3];
        row[0] = i;
        for (size_t j = 1; j <= b_length; j++) {
            size_t best = above[j - 1] + (a[i - 1] != b[j - 1]);
            if (above[j] + 1 < best) best = above[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            bool exchanged = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if (exchanged && above_that[j - 2] + 1 < best) best = above_that[j - 2] + 1;
            row[j] = best;
        }
    }
    return rows[a_length % 3][b_length];
}

const char *diag_nearest(const char *word, const char *const *names, size_t count)
{
    size_t length = strlen(word);
    if (length > NAME_MOST) return NULL;
    size_t least = length >= 3 ? length / 3 + 1 : 2; /* one more than what is near enough */
    const char *nearest = NULL;
    for (size_t i = 0; i < count; i++) {
        size_t name_length = strlen(names[i]);
        if (name_length > NAME_MOST) continue;
        size_t distance = edit_distance(word, length, names[i], name_length);
        if (distance >= least) continue;
        least = distance;
        nearest = names[i];
    }
    return nearest;
}

/* ---- broken invariants ------------------------------------------------------------------- */

void raftc_bug(const char *file, int line, const char *format, ...)
{
    va_list args;
    fprintf(stderr, "raftc: internal error at %s:%d: ", file, line);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputs("\nraftc: this is a fault of raftc; please report it with the command line\n", stderr);
    exit(70);
}
