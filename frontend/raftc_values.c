/* raftc_values.c: the values of options: each reader checks one and puts it into its place. */
#include "frontend/raftc_options.h"

#include <ctype.h>
#include <string.h>

bool read_flag(const Parser *parser, const Row *row, const char *value, void *member)
{
    (void)parser, (void)row, (void)value;
    *(bool *)member = true;
    return true;
}

bool read_text(const Parser *parser, const Row *row, const char *value, void *member)
{
    if (!*value) return wrong(parser, "%s is empty; it takes %s", row->name, row->argument);
    *(const char **)member = value;
    return true;
}

bool read_strings(const Parser *parser, const Row *row, const char *value, void *member)
{
    Strings *strings = member;
    (void)row;
    *ARENA_PUSH(parser->arena, strings->item, strings->count, strings->capacity) = value;
    return true;
}

/* Digits alone, as a number of `least` to `most`. */
static bool parse_number(const char *text, size_t length, int64_t least, int64_t most,
                         int64_t *number)
{
    *number = 0;
    for (size_t i = 0; i < length; i++) {
        if (text[i] < '0' || text[i] > '9') return false;
        if (__builtin_mul_overflow(*number, 10, number)) return false;
        if (__builtin_add_overflow(*number, text[i] - '0', number)) return false;
    }
    return length > 0 && *number >= least && *number <= most;
}

bool read_number(const Parser *parser, const Row *row, const char *value, void *member)
{
    if (parse_number(value, strlen(value), row->least, row->most, member)) return true;
    if (row->most == INT64_MAX)
        return wrong(parser, "%s must be a whole number, %lld or more, not '%s'", row->name,
                     (long long)row->least, value);
    return wrong(parser, "%s must be a whole number, %lld to %lld, not '%s'", row->name,
                 (long long)row->least, (long long)row->most, value);
}

bool read_time(const Parser *parser, const Row *row, const char *value, void *member)
{
    const int64_t most = 24 * 60 * 60;
    size_t digits = strspn(value, "0123456789");
    int64_t number, second = strcmp(value + digits, "m") == 0 ? 60 : 1;
    bool unit = strcmp(value + digits, "s") == 0 || second == 60;
    if (!unit || !parse_number(value, digits, 1, most / second, &number))
        return wrong(parser, "%s must be a time, as in 60s or 5m, not '%s'", row->name, value);
    *(int64_t *)member = 1000 * number * second;
    return true;
}

bool read_size(const Parser *parser, const Row *row, const char *value, void *member)
{
    static const char units[] = "KMGT";
    size_t digits = strspn(value, "0123456789");
    const char *unit = value[digits] ? strchr(units, value[digits]) : NULL;
    int64_t number, scale = unit ? (int64_t)1 << 10 * (unit - units + 1) : 1;
    bool whole = !value[digits] || (unit && !value[digits + 1]);
    if (!whole || !parse_number(value, digits, 1, INT64_MAX / scale, &number))
        return wrong(parser, "%s must be a size, as in 600M or 2G, not '%s'", row->name, value);
    *(int64_t *)member = number * scale;
    return true;
}

/* The words of "f32|bf16". */
static Strings split(Arena *arena, const char *words, const char *separator)
{
    Strings split = {0};
    char *rest = arena_strdup(arena, words);
    for (char *word; (word = strsep(&rest, separator));)
        *ARENA_PUSH(arena, split.item, split.count, split.capacity) = word;
    return split;
}

/* Index of the word in the list, or -1 after an error. */
static int find_word(const Parser *parser, const Row *row, const char *word)
{
    Strings known = split(parser->arena, row->words, "|");
    for (uint32_t i = 0; i < known.count; i++)
        if (strcmp(word, known.item[i]) == 0) return (int)i;
    const char *nearest = diag_nearest(word, known.item, known.count);
    Text list = text_new(parser->arena);
    for (uint32_t i = 0; i < known.count; i++)
        text_printf(&list, "%s%s", i ? ", " : "", known.item[i]);
    wrong(parser, "%s: unknown '%s'%s%s%s", row->name, word, nearest ? "; did you mean '" : "",
          nearest ? nearest : "", nearest ? "'?" : "");
    diag_note(parser->diag, (Loc){0}, "values that fit: %s", list.data);
    return -1;
}

bool read_choice(const Parser *parser, const Row *row, const char *value, void *member)
{
    int choice = find_word(parser, row, value);
    if (choice >= 0) *(int64_t *)member = choice;
    return choice >= 0;
}

/* As a set of bits, in the order of the words. */
bool read_list(const Parser *parser, const Row *row, const char *value, void *member)
{
    Strings given = split(parser->arena, value, ",");
    for (uint32_t i = 0; i < given.count; i++) {
        int choice = find_word(parser, row, given.item[i]);
        if (choice < 0) return false;
        *(int64_t *)member |= (int64_t)1 << choice;
    }
    return true;
}

bool read_image(const Parser *parser, const Row *row, const char *value, void *member)
{
    Options *options = parser->options;
    (void)member;
    if (image_size_parse(value, &options->height, &options->width)) return true;
    return wrong(parser, "%s must be height x width, as in 224x224, each 1 to %d, not '%s'",
                 row->name, MAX_SIDE, value);
}

bool read_prefix(const Parser *parser, const Row *row, const char *value, void *member)
{
    enum { LONGEST = 63 };
    bool good = *value && strlen(value) <= LONGEST && !isdigit((unsigned char)*value);
    for (const char *c = value; *c; c++) good &= isalnum((unsigned char)*c) || *c == '_';
    if (good) return read_text(parser, row, value, member);
    return wrong(parser,
                 "%s must be a C name (letters, digits and _, no digit first, %d at most), "
                 "not '%s'",
                 row->name, LONGEST, value);
}

/* The pass of that name, or NULL after an error. */
static const PassInfo *find_pass(const Parser *parser, const Row *row, const char *name)
{
    const char **names = arena_array(parser->arena, (size_t)pass_count, sizeof *names);
    for (int i = 0; i < pass_count; i++) {
        names[i] = pass_table[i].name;
        if (strcmp(name, names[i]) == 0) return &pass_table[i];
    }
    const char *nearest = diag_nearest(name, names, (size_t)pass_count);
    wrong(parser, "%s: there is no pass '%s'%s%s%s", row->name, name,
          nearest ? "; did you mean '" : "", nearest ? nearest : "", nearest ? "'?" : "");
    diag_note(parser->diag, (Loc){0}, "`raftc --help` lists the passes");
    return NULL;
}

/* An empty list is one, too: no pass. */
bool read_passes(const Parser *parser, const Row *row, const char *value, void *member)
{
    Strings names = split(parser->arena, value, ",");
    for (uint32_t i = 0; *value && i < names.count; i++)
        if (!find_pass(parser, row, names.item[i])) return false;
    *(const char **)member = value;
    return true;
}

bool read_disabled(const Parser *parser, const Row *row, const char *value, void *member)
{
    const PassInfo *pass = find_pass(parser, row, value);
    if (!pass) return false;
    if (!pass->required) return read_strings(parser, row, value, member);
    if (pass->training)
        return wrong(
            parser, "%s: %s does what training, or its limit of memory, asks for, and nothing else",
            row->name, value);
    wrong(parser, "%s: %s is needed: without it there is nothing that can be run", row->name,
          value);
    diag_note(parser->diag, (Loc){0}, "--passes A,B runs the passes that it names, and no other");
    return false;
}

bool read_dump(const Parser *parser, const Row *row, const char *value, void *member)
{
    if (strcmp(value, "all") != 0 && !find_pass(parser, row, value)) return false;
    *(const char **)member = value;
    return true;
}

/* Like sm_80,sm_90; each once. */
bool read_architectures(const Parser *parser, const Row *row, const char *value, void *member)
{
    enum { MOST = 999 };
    Architectures *list = member;
    Strings given = split(parser->arena, value, ",");
    list->count = 0;
    for (uint32_t i = 0; i < given.count; i++) {
        const char *word = given.item[i];
        int64_t number;
        bool good = strncmp(word, "sm_", 3) == 0 &&
                    parse_number(word + 3, strlen(word + 3), 1, MOST, &number);
        if (!good) return wrong(parser, "%s takes names like sm_80, not '%s'", row->name, word);
        if (number < CUDA_LEAST_ARCHITECTURE)
            return wrong(parser, "%s %s: kernels need sm_%d or newer", row->name, word,
                         CUDA_LEAST_ARCHITECTURE);
        if (list->count == MAX_ARCHITECTURES)
            return wrong(parser, "%s takes at most %d names", row->name, MAX_ARCHITECTURES);
        bool again = false;
        for (int k = 0; k < list->count; k++) again |= list->item[k] == number;
        if (!again) list->item[list->count++] = (int)number;
    }
    return true;
}
