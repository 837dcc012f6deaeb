/* fuzz_mutator.h: changes to a graph as text that often leave it legal, for fuzzers: names and
 * numbers changed everywhere, values exchanged, ops and outputs added, lines dropped. */
#ifndef RAFTC_TESTS_FUZZ_MUTATOR_H
#define RAFTC_TESTS_FUZZ_MUTATOR_H

#include "tests/random.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Mutation {
    char *text; /* terminated */
    size_t most;
    Random random;
} Mutation;

static size_t pick_index(Mutation *m, size_t count)
{
    return (size_t)random_from(&m->random, 0, (int64_t)count - 1);
}

static bool is_word(char c)
{
    return c == '_' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* Puts `text` in the place of `length` bytes at `at`, where there is room. */
static void replace_bytes(Mutation *m, size_t at, size_t length, const char *text)
{
    size_t size = strlen(m->text), added = strlen(text);
    if (size - length + added >= m->most) return;
    memmove(m->text + at + added, m->text + at + length, size - at - length + 1);
    memcpy(m->text + at, text, added);
}

/* A word of the text, of digits or not, as `word`; its place, or SIZE_MAX. */
static size_t pick_word(Mutation *m, bool digits, char word[64])
{
    size_t size = strlen(m->text), start = pick_index(m, size);
    for (size_t i = 0; i < size; i++) {
        size_t at = (start + i) % size, length = 0;
        char first = m->text[at];
        if (!is_word(first) || (at > 0 && is_word(m->text[at - 1]))) continue;
        if ((first >= '0' && first <= '9') != digits) continue;
        while (length < 63 && is_word(m->text[at + length])) length++;
        memcpy(word, m->text + at, length);
        word[length] = '\0';
        return at;
    }
    return SIZE_MAX;
}

/* All of the words that equal `old`, or those from `from` on that have `before` before them. */
static void replace_words(Mutation *m, size_t from, char before, const char *old, const char *word)
{
    size_t length = strlen(old);
    if (length == 0) return; /* an earlier change left a '%' alone: there is nothing to replace */
    for (size_t at = from; m->text[at]; at++) {
        bool starts =
            before ? at > 0 && m->text[at - 1] == before : at == 0 || !is_word(m->text[at - 1]);
        if (!starts || strncmp(m->text + at, old, length) || is_word(m->text[at + length]))
            continue;
        replace_bytes(m, at, length, word);
        at += strlen(word) - 1;
    }
}

static void change_word(Mutation *m, bool digits)
{
    static const char *const numbers[] = {"1",  "2",  "3",  "4",  "5",   "7",    "8",
                                          "15", "16", "17", "33", "512", "4096", "1048576"};
    char old[64], word[64];
    size_t at = pick_word(m, digits, old);
    if (at == SIZE_MAX) return;
    if (digits && random_chance(&m->random, 70))
        snprintf(word, sizeof word, "%s", numbers[pick_index(m, sizeof numbers / sizeof *numbers)]);
    else
        pick_word(m, digits, word);
    if (random_chance(&m->random, 70))
        replace_words(m, 0, '\0', old, word);
    else
        replace_bytes(m, at, strlen(old), word);
}

/* The value `%name` of a line that makes one, and the text of its type; the end of the line. */
static size_t pick_value(Mutation *m, char name[64], char type[256])
{
    size_t size = strlen(m->text), start = pick_index(m, size);
    for (size_t i = 0; i < size; i++) {
        size_t at = (start + i) % size, length = 0;
        if (m->text[at] != '%' || strcspn(m->text + at, "=\n") > 60) continue;
        while (length < 62 && is_word(m->text[at + 1 + length])) length++;
        size_t end = at + strcspn(m->text + at, "\n");
        const char *colon = memchr(m->text + at, ':', end - at);
        if (strncmp(m->text + at + 1 + length, " =", 2) || !colon || m->text[end] == '\0') continue;
        snprintf(name, 64, "%%%.*s", (int)length, m->text + at + 1);
        snprintf(type, 256, "%.*s", (int)(m->text + end - colon - 1), colon + 1);
        return end;
    }
    return SIZE_MAX;
}

/* "[b, h, w]" of " f32[b, h 56, w 56] packed ..". */
static void identity_map(const char *type, char map[256])
{
    size_t length = 0;
    bool skip = false;
    type = strchr(type, '[') ? strchr(type, '[') : "[]";
    for (; *type && length < 250; type++) {
        if (*type == ' ' && is_word(type[1]) && length > 0 && is_word(map[length - 1])) skip = true;
        if (*type == ',' || *type == ']') skip = false;
        if (!skip) map[length++] = *type;
        if (*type == ']') break;
    }
    map[length] = '\0';
}

static void add_op(Mutation *m)
{
    static const char *const ops[] = {"gelu", "pack", "rearrange", "read", "write", "add", "mul"};
    char name[64], type[256], map[256] = "", line[900], word[64];
    size_t end = pick_value(m, name, type);
    if (end == SIZE_MAX) return;
    size_t op = pick_index(m, sizeof ops / sizeof *ops);
    if (op == 3 || op == 4) identity_map(type, map);
    snprintf(word, sizeof word, "n%d", (int)pick_index(m, 1000));
    snprintf(line, sizeof line, "\n%%%s = %s %s%s%s %s :%s", word, ops[op], name,
             op >= 5 ? ", " : "", op >= 5 ? name : "", map, type);
    replace_bytes(m, end, 0, line);
    if (random_chance(&m->random, 60)) replace_words(m, end + strlen(line), '%', name + 1, word);
}

static void add_output(Mutation *m)
{
    char name[64], type[256], line[128], *end = strrchr(m->text, '}');
    if (!end || pick_value(m, name, type) == SIZE_MAX) return;
    snprintf(line, sizeof line, "output %s.z%d = %s\n",
             random_chance(&m->random, 50) ? "forward" : "features", (int)pick_index(m, 1000),
             name);
    replace_bytes(m, (size_t)(end - m->text), 0, line);
}

static void exchange_value(Mutation *m)
{
    char old[64], name[64], type[256];
    if (pick_value(m, old, type) == SIZE_MAX) return;
    size_t from = pick_value(m, name, type);
    if (from != SIZE_MAX) replace_words(m, from, '%', old + 1, name + 1);
}

static void drop_line(Mutation *m)
{
    size_t at = pick_index(m, strlen(m->text)), end = at + strcspn(m->text + at, "\n");
    while (at > 0 && m->text[at - 1] != '\n') at--;
    replace_bytes(m, at, end - at, "");
}

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed)
{
    Mutation m = {.most = most, .random = {seed}};
    if (size == 0 || size >= most || memchr(data, '\0', size) || random_chance(&m.random, 10))
        return LLVMFuzzerMutate(data, size, most);
    m.text = malloc(most + 1);
    if (!m.text) abort();
    memcpy(m.text, data, size);
    m.text[size] = '\0';
    for (size_t changes = 1 + pick_index(&m, 3); changes > 0 && *m.text; changes--) {
        switch (random_from(&m.random, 0, 6)) {
        case 0:
            change_word(&m, false);
            break;
        case 1:
            change_word(&m, true);
            break;
        case 2:
        case 3:
            add_op(&m);
            break;
        case 4:
            add_output(&m);
            break;
        case 5:
            exchange_value(&m);
            break;
        default:
            drop_line(&m);
        }
    }
    size = strlen(m.text);
    memcpy(data, m.text, size);
    free(m.text);
    return size;
}

#endif
