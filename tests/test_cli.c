/* test_cli.c: the command line as people meet it: what raftc prints and how it ends.
 *
 * The cases are transcripts in cli/NAME.txt:
 *     # what the next case is about
 *     $ raftc --bacth 4
 *     ! raftc: error: unknown option '--bacth'; did you mean '--batch'?
 *     = 2
 * After $ the command (cli_place.h), then the lines of stdout after >, those of stderr after !, and
 * the exit status after =. {*} in a line stands for any text, as a whole line for any lines. Cases
 * of one program run in one folder, in order; those in cpu-*.txt need LLVM, those in nvrtc.txt
 * NVRTC, and those in no-gpu.txt a machine without NVIDIA's driver. Those in emulated.txt are left out
 * under AddressSanitizer, which takes the stacks that the emulator switches between for a fault.
 */
#define _GNU_SOURCE /* memmem */
#include "tests/cli_place.h"

#ifdef __SANITIZE_ADDRESS__
enum { MAX_CASES = 512, SANITIZED = 1 };
#else
enum { MAX_CASES = 512, SANITIZED = 0 };
#endif

typedef struct Case {
    const char *name; /* "usage.txt:12: raftc --bacth 4" */
    const char *file; /* "usage.txt" */
    const char *command;
    const char *expected; /* the lines that begin with > and ! */
    int exit;             /* -1: the transcript does not say */
    Place *place;
} Case;

/* ---- transcripts ----------------------------------------------------------------------------- */

static const char wildcard[] = "{*}";

/* Does the line match the pattern? */
static bool line_matches(const char *pattern, size_t pattern_length, const char *line,
                         size_t length)
{
    const char *star = memmem(pattern, pattern_length, wildcard, strlen(wildcard));
    size_t before = star ? (size_t)(star - pattern) : pattern_length;
    if (length < before || memcmp(pattern, line, before) != 0) return false;
    if (!star) return length == before;
    size_t rest = pattern_length - before - strlen(wildcard);
    for (size_t skip = before; skip <= length; skip++)
        if (line_matches(star + strlen(wildcard), rest, line + skip, length - skip)) return true;
    return false;
}

/* The next line of `text` that begins with `mark`, without that; NULL: there is none. */
static const char *next_line(const char **text, char mark, size_t *length)
{
    while (**text) {
        const char *line = *text;
        size_t size = strcspn(line, "\n");
        *text = line + size + (line[size] == '\n');
        if (mark && line[0] != mark) continue;
        size_t skip = !mark ? 0 : size > 1 ? 2 : 1;
        *length = size - skip;
        return line + skip;
    }
    return NULL;
}

/* The lines of `pattern` that begin with `mark` against all of `text`. */
static bool text_matches(const char *pattern, char mark, const char *text)
{
    size_t pattern_length, length;
    const char *wanted = next_line(&pattern, mark, &pattern_length);
    if (wanted && pattern_length == strlen(wildcard) &&
        memcmp(wanted, wildcard, pattern_length) == 0) {
        for (;;) {
            if (text_matches(pattern, mark, text)) return true;
            if (!next_line(&text, '\0', &length)) return false;
        }
    }
    const char *line = next_line(&text, '\0', &length);
    if (!wanted || !line) return !wanted && !line;
    return line_matches(wanted, pattern_length, line, length) && text_matches(pattern, mark, text);
}

static void run_case(void **state)
{
    const Case *c = *state;
    Place *place = c->place;
    if (strncmp(c->file, "cpu-", 4) == 0 && !place->has_llvm) skip();
    if (strncmp(c->file, "nvrtc", 5) == 0 && !place->has_nvrtc) skip();
    if (strncmp(c->file, "no-gpu", 6) == 0 && place->has_gpu) skip();
    if (strncmp(c->file, "emulated", 8) == 0 && SANITIZED) skip();
    int exit = run(place, c->command);
    const char *output = read_text(&place->arena, place->output);
    const char *errors = read_text(&place->arena, place->errors);
    if (exit == c->exit && text_matches(c->expected, '>', output) &&
        text_matches(c->expected, '!', errors))
        return;
    fail_msg("expected:\n%s= %d\nstdout:\n%sstderr:\n%s= %d", c->expected, c->exit, output, errors,
             exit);
}

/* Adds the cases of one transcript. */
static void read_cases(Place *place, const char *file, Case *cases, int *count)
{
    Arena *arena = &place->arena;
    const char *path = arena_printf(arena, TEST_DATA "/cli/%s", file);
    const char *text = read_text(arena, path);
    Text expected = text_new(arena);
    Case *c = NULL;
    size_t length;
    int number = 0;
    for (const char *line; (line = next_line(&text, '\0', &length));) {
        number++;
        if (line[0] == '$') {
            RAFTC_ASSERT(*count < MAX_CASES);
            c = &cases[(*count)++];
            expected = text_new(arena);
            *c = (Case){.file = file, .exit = -1, .place = place, .expected = ""};
            c->command = arena_strndup(arena, line + 2, length - 2);
            c->name = arena_printf(arena, "%s:%d: %s", file, number, c->command);
        } else if (line[0] == '=' && c) {
            c->exit = atoi(line + 1);
        } else if ((line[0] == '>' || line[0] == '!') && c) {
            text_printf(&expected, "%.*s\n", (int)length, line);
            c->expected = expected.data;
        } else if (length > 0 && line[0] != '#') {
            RAFTC_BUG("%s:%d: what is this?", file, number);
        }
    }
}

static int by_name(const void *left, const void *right)
{
    return strcmp(*(const char *const *)left, *(const char *const *)right);
}

static int list_cases(Place *place, Case *cases)
{
    const char *files[64];
    size_t file_count = 0;
    int count = 0;
    DIR *folder = opendir(TEST_DATA "/cli");
    for (const struct dirent *entry; folder && (entry = readdir(folder));) {
        const char *dot = strrchr(entry->d_name, '.');
        if (!dot || strcmp(dot, ".txt") != 0) continue;
        RAFTC_ASSERT(file_count < ARRAY_SIZE(files));
        files[file_count++] = arena_strdup(&place->arena, entry->d_name);
    }
    if (folder) closedir(folder);
    qsort(files, file_count, sizeof *files, by_name);
    for (size_t i = 0; i < file_count; i++) read_cases(place, files[i], cases, &count);
    return count;
}

int main(void)
{
    static struct CMUnitTest tests[MAX_CASES];
    static Case cases[MAX_CASES];
    Place place;
    open_place(&place);
    size_t count = (size_t)list_cases(&place, cases);
    RAFTC_ASSERT(count >= 60);
    for (size_t i = 0; i < count; i++)
        tests[i] = (struct CMUnitTest){cases[i].name, run_case, NULL, NULL, &cases[i]};
    int failures = _cmocka_run_group_tests("command line", tests, count, NULL, NULL);
    close_place(&place);
    return failures;
}
