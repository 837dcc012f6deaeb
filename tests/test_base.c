/* test_base.c: arenas, growable text, and how diagnostics are kept and printed. */
#include "ir/base.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

/* AddressSanitizer asks this: an allocation that is too large shall fail, as it does without it. */
__attribute__((visibility("default"))) const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "allocator_may_return_null=1";
}

/* ---- arena ------------------------------------------------------------------------------- */

static bool all_zero(const char *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (bytes[i]) return false;
    return true;
}

/* Blocks are aligned, zeroed and apart, whatever their sizes. */
static void test_blocks(void **state)
{
    (void)state;
    Arena arena = {0};
    enum { COUNT = 2000 };
    char *block[COUNT];
    size_t size[COUNT];
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < COUNT; i++) {
            size[i] = i % 97 == 0 ? (size_t)100000 + i : (size_t)(i * 37) % 301;
            block[i] = arena_alloc(&arena, size[i]);
            assert_int_equal((uintptr_t)block[i] % 16, 0);
            assert_true(all_zero(block[i], size[i]));
            memset(block[i], i % 255 + 1, size[i]);
        }
        for (int i = 0; i < COUNT; i++)
            for (size_t j = 0; j < size[i]; j++)
                assert_int_equal((unsigned char)block[i][j], i % 255 + 1);
        arena_free(&arena);
        assert_null(arena.chunks);
    }
}

static void test_strings(void **state)
{
    (void)state;
    Arena arena = {0};
    assert_string_equal(arena_strdup(&arena, "raft"), "raft");
    assert_string_equal(arena_strdup(&arena, ""), "");
    assert_string_equal(arena_strndup(&arena, "raftmlp", 4), "raft");
    assert_string_equal(arena_strndup(&arena, NULL, 0), "");
    assert_string_equal(arena_printf(&arena, "%s %d", "dim", 64), "dim 64");
    const char *wide = arena_printf(&arena, "%300000d", 7);
    assert_int_equal(strlen(wide), 300000);
    assert_int_equal(wide[299999], '7');
    arena_free(&arena);
}

static void test_push(void **state)
{
    (void)state;
    Arena arena = {0};
    int *numbers = NULL;
    uint32_t count = 0, capacity = 0;
    for (int i = 0; i < 10000; i++) *ARENA_PUSH(&arena, numbers, count, capacity) = i;
    assert_int_equal(count, 10000);
    assert_true(capacity >= count);
    for (int i = 0; i < 10000; i++) assert_int_equal(numbers[i], i);
    arena_free(&arena);
}

/* Sizes that no machine has, and products that overflow, reach the handler. */
static void test_out_of_memory(void **state)
{
    (void)state;
    static const size_t requests[][2] = {
        {1, SIZE_MAX},      {1, SIZE_MAX - 15},   {1, SIZE_MAX / 2},
        {SIZE_MAX / 8, 16}, {SIZE_MAX, SIZE_MAX},
    };
    for (volatile size_t i = 0; i < ARRAY_SIZE(requests); i++) {
        jmp_buf failed;
        Arena arena = {.out_of_memory = &failed};
        volatile bool returned = false;
        if (setjmp(failed) == 0) {
            arena_array(&arena, requests[i][0], requests[i][1]);
            returned = true;
        }
        assert_false(returned);
        assert_string_equal(arena_strdup(&arena, "usable"), "usable");
        arena_free(&arena);
    }
}

/* ---- text -------------------------------------------------------------------------------- */

static void test_text(void **state)
{
    (void)state;
    Arena arena = {0};
    Text text = text_new(&arena);
    assert_string_equal(text.data, "");
    text_put(&text, "graph {\n");
    text.indent = 2;
    text_put(&text, "one\n\ntwo");
    text_printf(&text, " %d\n", 3);
    text_put(&text, "");
    text.indent = 0;
    text_put(&text, "}\n");
    assert_string_equal(text.data, "graph {\n    one\n\n    two 3\n}\n");
    assert_int_equal(text.length, strlen(text.data));
    arena_free(&arena);
}

static void test_long_text(void **state)
{
    (void)state;
    Arena arena = {0};
    Text text = text_new(&arena);
    text.indent = 1;
    for (int i = 0; i < 10000; i++) text_printf(&text, "%*d\n", i % 400, i % 10);
    text_printf(&text, "%s", "end");
    size_t length = 0;
    for (int i = 0; i < 10000; i++) length += 2 + (size_t)(i % 400 ? i % 400 : 1) + 1;
    assert_int_equal(text.length, length + 2 + 3);
    assert_string_equal(text.data + length, "  end");
    arena_free(&arena);
}

/* ---- diagnostics ------------------------------------------------------------------------- */

static void check_printed(const Diag *diag, const char *expected)
{
    char *text = NULL;
    size_t size = 0;
    FILE *file = open_memstream(&text, &size);
    diag_print(diag, file);
    fclose(file);
    assert_string_equal(text, expected);
    free(text);
}

static const Source *source_of(Diag *diag, const char *text)
{
    return diag_add_source(diag, "m.yaml", text, strlen(text));
}

static void test_messages(void **state)
{
    (void)state;
    Arena arena = {0};
    Diag diag = diag_new(&arena);
    const Source *source = source_of(&diag, "layers:\n  - raft_size: 3\r\nlast");
    const Source *binary = diag_add_source(&diag, "w.safetensors", NULL, 0);
    assert_false(diag_error(&diag, (Loc){source, 2, 16}, "raft_size %d does not fit", 3));
    diag_note(&diag, (Loc){source, 2, 16}, "values that fit: 1, 2");
    diag_remark(&diag, (Loc){source, 1, 1}, "missed: never printed");
    diag_warning(&diag, (Loc){source, 3, 5}, "at the end");
    diag_error(&diag, (Loc){source, 0, 0}, "of the file");
    diag_error(&diag, (Loc){0}, "of no place");
    diag_error(&diag, (Loc){source, 9, 1}, "past the end");
    assert_false(diag_error_at_byte(&diag, binary, 120, "negative extent"));
    assert_int_equal(diag.errors, 5);
    assert_int_equal(diag.count, 8);
    check_printed(&diag, "m.yaml:2:16: error: raft_size 3 does not fit\n"
                         "  - raft_size: 3\n"
                         "               ^\n"
                         "m.yaml:2:16: note: values that fit: 1, 2\n"
                         "  - raft_size: 3\n"
                         "               ^\n"
                         "m.yaml:3:5: warning: at the end\n"
                         "  last\n"
                         "      ^\n"
                         "m.yaml: error: of the file\n"
                         "raftc: error: of no place\n"
                         "m.yaml:9:1: error: past the end\n"
                         "w.safetensors: byte 120: error: negative extent\n");
    arena_free(&arena);
}

/* The caret stands under its character; what a terminal must not get is shown as '?'. */
static void test_source_lines(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint32_t column;
        const char *printed;
    } cases[] = {
        {"\ta:\tb", 5, "  a:\tb\n    \t^\n"},
        {"\tx", 1, "  \tx\n  ^\n"},
        {"gr\xC3\xB6\xC3\x9F"
         "e: 1",
         8,
         "  gr\xC3\xB6\xC3\x9F"
         "e: 1\n         ^\n"},
        {"\xEF\xBB\xBFkey", 1, "  key\n  ^\n"},
        {"a\x1B[31m\x7F\xC2\x9B", 2, "  a?[31m??\n   ^\n"},
        {"\xFF\xC3*\xE2\x82\xED\xA0\x80\xC0\xAF\xF5z", 1, "  ??*????????z\n  ^\n"},
        {"\xF0\x9F\x8C\x8A!", 2, "  \xF0\x9F\x8C\x8A!\n   ^\n"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        Arena arena = {0};
        Diag diag = diag_new(&arena);
        diag_error(&diag, (Loc){source_of(&diag, cases[i].text), 1, cases[i].column}, "x\x07\n");
        const char *expected =
            arena_printf(&arena, "m.yaml:1:%u: error: x??\n%s", cases[i].column, cases[i].printed);
        check_printed(&diag, expected);
        arena_free(&arena);
    }
}

/* Of a long line only what is near the caret is shown. */
static void test_long_lines(void **state)
{
    (void)state;
    Arena arena = {0};
    Diag diag = diag_new(&arena);
    char *line = arena_printf(&arena, "%0100000d", 0);
    line[5000] = 'X';
    diag_error(&diag, (Loc){source_of(&diag, line), 1, 5001}, "here");
    char *printed = arena_printf(&arena,
                                 "m.yaml:1:5001: error: here\n"
                                 "  ...%060dX%099d...\n"
                                 "     %60s^\n",
                                 0, 0, "");
    check_printed(&diag, printed);
    diag = diag_new(&arena);
    diag_error(&diag, (Loc){0}, "%s", line);
    assert_true(strlen(diag.messages[0].text) < 1100);
    arena_free(&arena);
}

static void test_many_errors(void **state)
{
    (void)state;
    Arena arena = {0};
    Diag diag = diag_new(&arena);
    for (int i = 0; i < 100; i++) {
        diag_error(&diag, (Loc){0}, "error %d", i);
        diag_note(&diag, (Loc){0}, "note %d", i);
    }
    diag_remark(&diag, (Loc){0}, "kept");
    assert_int_equal(diag.errors, 100);
    assert_int_equal(diag.count, 41);
    assert_string_equal(diag.messages[38].text, "error 19");
    assert_string_equal(diag.messages[39].text, "note 19");
    arena_free(&arena);
}

static void test_read_source(void **state)
{
    (void)state;
    Arena arena = {0};
    Diag diag = diag_new(&arena);
    char path[] = "/tmp/raftc-test-base-XXXXXX";
    int file = mkstemp(path);
    assert_true(file >= 0);
    char bytes[9000];
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (char)(i % 251);
    assert_int_equal(write(file, bytes, sizeof bytes), sizeof bytes);
    close(file);

    const Source *source = diag_read_source(&diag, path, sizeof bytes);
    assert_non_null(source);
    assert_int_equal(source->size, sizeof bytes);
    assert_memory_equal(source->text, bytes, sizeof bytes);
    assert_string_equal(source->path, path);

    assert_null(diag_read_source(&diag, path, sizeof bytes - 1));
    assert_null(diag_read_source(&diag, "/nowhere/m.yaml", 10));
    assert_null(diag_read_source(&diag, "/", 10));
    const char *expected =
        arena_printf(&arena,
                     "%s: error: is larger than 8999 bytes, the most that is read\n"
                     "/nowhere/m.yaml: error: cannot be opened: No such file or directory\n"
                     "/: error: cannot be read: Is a directory\n",
                     path);
    check_printed(&diag, expected);
    unlink(path);
    arena_free(&arena);
}

static void test_nearest(void **state)
{
    (void)state;
    static const char *const names[] = {"depth", "dim", "patch_size", "raft_size", "seed"};
    static const char *const cases[][2] = {
        {"dmi", "dim"},
        {"dims", "dim"},
        {"deepth", "depth"},
        {"raftsize", "raft_size"},
        {"raft-sise", "raft_size"},
        {"patchsize", "patch_size"},
        {"sede", "seed"},
        {"dim", "dim"},
        {"colour", NULL},
        {"", NULL},
        {"x", NULL},
        {"size", NULL},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        const char *found = diag_nearest(cases[i][0], names, ARRAY_SIZE(names));
        if (cases[i][1])
            assert_string_equal(found, cases[i][1]);
        else
            assert_null(found);
    }
    char word[1000];
    memset(word, 'd', sizeof word - 1);
    word[sizeof word - 1] = '\0';
    assert_null(diag_nearest(word, names, ARRAY_SIZE(names)));
}

/* A bug ends the process with 70 and says where. */
static void test_bug(void **state)
{
    (void)state;
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        raftc_bug("pass.c", 12, "no such axis: %s", "k");
    }
    close(ends[1]);
    char text[512] = "";
    FILE *output = fdopen(ends[0], "r");
    size_t length = fread(text, 1, sizeof text - 1, output);
    fclose(output);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 70);
    assert_true(length > 0);
    assert_non_null(strstr(text, "pass.c:12: no such axis: k"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_blocks),      cmocka_unit_test(test_strings),
        cmocka_unit_test(test_push),        cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_text),        cmocka_unit_test(test_long_text),
        cmocka_unit_test(test_messages),    cmocka_unit_test(test_source_lines),
        cmocka_unit_test(test_long_lines),  cmocka_unit_test(test_many_errors),
        cmocka_unit_test(test_read_source), cmocka_unit_test(test_nearest),
        cmocka_unit_test(test_bug),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
