/* test_settings_hostile.c: no text crashes or delays the reader of settings, and every refusal says
 * where the fault is. */
#include "frontend/frontend.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* Every message names a line and a column that the source has. */
static void check_places(const Diag *diag)
{
    for (uint32_t i = 0; i < diag->count; i++) {
        const Message *message = &diag->messages[i];
        assert_non_null(message->loc.source);
        const char *text = message->loc.source->text, *end = text + message->loc.source->size;
        assert_in_range(message->loc.line, 1, UINT32_MAX);
        for (uint32_t line = 1; line < message->loc.line; line++) {
            text = memchr(text, '\n', (size_t)(end - text));
            if (!text) fail_msg("no line %u: %s", message->loc.line, message->text);
            text++;
        }
        const char *newline = memchr(text, '\n', (size_t)(end - text));
        size_t most = (size_t)((newline ? newline : end) - text) + 1;
        if (message->loc.column < 1 || message->loc.column > most)
            fail_msg("no column %u: %s", message->loc.column, message->text);
    }
}

/* What is printed stays short, and nothing in it can steer a terminal. */
static void check_printed(const Diag *diag)
{
    char *text = NULL;
    size_t size = 0;
    FILE *file = open_memstream(&text, &size);
    diag_print(diag, file);
    fclose(file);
    assert_true(size < 100000);
    for (size_t i = 0; i < size; i++)
        if ((unsigned char)text[i] < 0x20 && text[i] != '\n' && text[i] != '\t')
            fail_msg("byte %d in a message", text[i]);
    free(text);
}

/* Parses, resolves and checks the messages; true if accepted. */
static bool try_text(const char *text, size_t size, const char *const *overrides, int count)
{
    Arena arena = {0};
    Diag diag = diag_new(&arena);
    const Source *source = diag_add_source(&diag, "hostile.yaml", text, size);
    const Settings *settings = settings_parse(&arena, source, overrides, count, &diag);
    const Model *model = settings ? model_resolve(&arena, settings, NULL, 0, 0, &diag) : NULL;
    if ((model == NULL) != (diag.errors > 0))
        fail_msg("%u errors, but %s", diag.errors, model ? "accepted" : "refused");
    check_places(&diag);
    check_printed(&diag);
    arena_free(&arena);
    return model;
}

static void refuse_repeated(const char *start, const char *unit, size_t size)
{
    char *text = malloc(size);
    assert_non_null(text);
    size_t length = strlen(start), step = strlen(unit);
    memcpy(text, start, length);
    for (; length + step <= size; length += step) memcpy(text + length, unit, step);
    double before = seconds();
    assert_false(try_text(text, length, NULL, 0));
    double taken = seconds() - before;

    if (taken > 1) fail_msg("'%s...' took %.1f s", unit, taken);
    free(text);
}

/* A megabyte of anything is refused at once. */
static void test_bombs(void **state)
{
    static const char *const units[] = {
        "[",
        "{a: ",
        "- ",
        "? ",
        "a: [",
        "\n%TAG !a! tag:b\n",
        "&a ",
        "*a\n",
        "!!x ",
        "'a' ",
        "[[],",
        "{a: b, ",
        "a: b\n",
        "- a\n",
        "<<: ",
        "#",
        " ",
        "\n",
        "\xEF\xBB\xBF",
        "x",
        "\"",
        "[a, ",
        "a:\n",
        "|\n  a",
        "a: |\n b\n",
        "\t",
        "? a\n",
        ", ",
        "---\n",
        "--- a\n...\n",
        "[]: ",
        "{}",
        "- - a\n",
        "\\",
        "- {a: b}\n",
    };
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(units); i++) {
        refuse_repeated("", units[i], SETTINGS_MAX_SIZE);
        refuse_repeated("layers:\n- ", units[i], SETTINGS_MAX_SIZE);
    }
    refuse_repeated("", "a", SETTINGS_MAX_SIZE + 1);
}

/* Sizes beyond all measure are refused before anything is allocated for them. */
static void test_extreme_sizes(void **state)
{
    static const char *const overrides[] = {"layers.0.dim=1048576", "layers.0.depth=4096",
                                            "token_expansion_factor=1024",
                                            "channel_expansion_factor=1024"};
    static const char tiny[] = "layers: [{depth: 2, dim: 16, patch_size: 4, raft_size: 2}]\n";
    (void)state;
    double before = seconds();
    assert_false(try_text(tiny, strlen(tiny), overrides, ARRAY_SIZE(overrides)));
    assert_true(seconds() - before < 0.1);
}

static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += 0x9E3779B97F4A7C15;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    return z ^ z >> 31;
}

static size_t pick(uint64_t *state, size_t count)
{
    return (size_t)(next_random(state) % count);
}

/* One change: a byte, a piece left out, a piece doubled, or a word put in. */
static size_t mutate(char *text, size_t size, size_t room, uint64_t *random)
{
    static const char *const words[] = {
        "[",
        "]",
        "{",
        "}",
        ": ",
        "- ",
        "\n",
        "\n- ",
        "&a ",
        "*a",
        "!!int ",
        "<<: ",
        "'",
        "\"",
        "#",
        "|\n",
        "? ",
        "%",
        "---\n",
        "\t",
        "\r",
        "\xC3",
        "\xEF\xBB\xBF",
        "-1",
        "1e99",
        "0",
        "null",
        "yes",
        ".nan",
        "99999999999999999999",
        "layers:",
        "dim: 7",
        "\xE2\x80\xA8",
        "16384",
        "1048576",
        "raft_size: 3",
        "emb_cross_mlp",
        "original_tm",
        "[4, 8]",
    };
    size_t at = pick(random, size + 1), length = 1 + pick(random, 16);
    if (length > size - at) length = size - at;
    const char *word = words[pick(random, ARRAY_SIZE(words))];
    char piece[16];
    memcpy(piece, text + at, length);
    switch (pick(random, 4)) {
    case 0:
        if (at < size) text[at] = (char)next_random(random);
        return size;
    case 1:
        memmove(text + at, text + at + length, size - at - length);
        return size - length;
    case 2:
        word = piece;
        break;
    default:
        length = strlen(word);
    }
    if (length > room - size) return size;
    memmove(text + at + length, text + at, size - at);
    memcpy(text + at, word, length);
    return size + length;
}

static void test_mutations(void **state)
{
    static const char *const seeds[] = {
        SOURCE_ROOT "/models/raftmlp-s.yaml", SOURCE_ROOT "/models/cifar10-raft-mlp.yaml",
        SOURCE_ROOT "/models/imagenet-org-mixer.yaml", SOURCE_ROOT "/models/default.yaml"};
    (void)state;
    Arena arena = {0};
    Diag diag = diag_new(&arena);
    uint64_t random = 1;
    int accepted = 0, runs = 4000;
    for (int i = 0; i < runs; i++) {
        const Source *seed = diag_read_source(&diag, seeds[i % 4], SETTINGS_MAX_SIZE);
        assert_non_null(seed);
        char text[4096], set[64] = "layers.0.embedding_kernels=[4, 8]";
        size_t size = seed->size, set_size = strlen(set);
        assert_true(size < sizeof text);
        memcpy(text, seed->text, size);
        for (size_t n = 1 + pick(&random, 3); n; n--)
            size = mutate(text, size, sizeof text, &random);
        if (i % 2) set_size = mutate(set, set_size, sizeof set - 1, &random);
        set[set_size] = '\0';
        const char *const overrides[] = {set};
        accepted += try_text(text, size, overrides, i % 3 == 0);
    }
    arena_free(&arena);
    /* Both ways out are taken often, else the test shows little. */
    assert_in_range(accepted, runs / 50, runs / 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bombs),
        cmocka_unit_test(test_extreme_sizes),
        cmocka_unit_test(test_mutations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
