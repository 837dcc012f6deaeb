/* tidy.c: takes out of emitted text what nothing uses.
 *
 * Writers name all coordinates of a tile, a unit or a chunk, whether or not what they write next depends on each. Here lines
 * that declare a name which nothing in its scope has a use for go again, from the last line to the first, so that
 * names that only they had a use for go, too.
 */
#define _GNU_SOURCE
#include "backends/cuda/emit.h"

#include <ctype.h>
#include <string.h>

typedef struct Line {
    const char *text; /* NULL: taken out */
    int indent;
    const char *name; /* that it declares and does nothing else; or NULL */
    size_t name_size;
} Line;

static bool is_word(char c)
{
    return isalnum((unsigned char)c) || c == '_';
}

/* Finds the name in `const int NAME = ...;`. */
static void find_name(Line *line)
{
    static const char *const types[] = {"const int ", "const long long ", "const raft_scratch "};
    const char *text = line->text + line->indent;
    if (text[strlen(text) - 1] != ';') return;
    for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
        if (strncmp(text, types[i], strlen(types[i])) != 0) continue;
        line->name = text + strlen(types[i]);
        while (is_word(line->name[line->name_size])) line->name_size++;
    }
}

static bool same_name(const Line *a, const Line *b)
{
    return a->name_size == b->name_size && a->name && b->name &&
           memcmp(a->name, b->name, a->name_size) == 0;
}

static bool mentions(const char *text, const Line *declared)
{
    size_t size = declared->name_size;
    for (const char *at = text; (at = memmem(at, strlen(at), declared->name, size)); at += size)
        if ((at == text || !is_word(at[-1])) && !is_word(at[size])) return true;
    return false;
}

/* The first line after the scope of line i. */
static size_t scope_end(const Line *lines, size_t count, size_t i)
{
    size_t end = i + 1;
    while (end < count && lines[end].indent >= lines[i].indent) end++;
    return end;
}

static bool is_used(const Line *lines, size_t count, size_t i)
{
    size_t end = scope_end(lines, count, i);
    for (size_t j = i + 1; j < end; j++) {
        if (!lines[j].text) continue;
        if (same_name(&lines[i], &lines[j]))
            j = scope_end(lines, end, j) - 1; /* another of that name */
        else if (mentions(lines[j].text, &lines[i]))
            return true;
    }
    return false;
}

const char *tidy(Arena *arena, const char *text)
{
    char *rest = arena_strdup(arena, text);
    size_t count = 0;
    for (const char *c = text; *c; c++) count += *c == '\n';
    Line *lines = arena_array(arena, count + 1, sizeof *lines);
    for (size_t i = 0; i < count; i++) {
        Line *line = &lines[i];
        line->text = strsep(&rest, "\n");
        line->indent = (int)strspn(line->text, " ");
        if (line->text[line->indent]) find_name(line);
    }
    for (size_t i = count; i-- > 0;)
        if (lines[i].name && !is_used(lines, count, i)) lines[i].text = NULL;
    Text result = text_new(arena);
    for (size_t i = 0; i < count; i++)
        if (lines[i].text) text_printf(&result, "%s\n", lines[i].text);
    return result.data;
}
