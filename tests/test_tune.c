/* test_tune.c: raftc tune, and the database that it keeps: what is found is used, gives the same bits,
 * outlives an interruption, and is shared by processes; what is foreign or damaged is told and left. */
#define _GNU_SOURCE
#include "tests/cli_place.h"

#include <signal.h>
#include <sqlite3.h>
#include <time.h>

static Place place;

static void skip_without_llvm(void)
{
    if (!place.has_llvm) skip();
}

/* ---- the database ---------------------------------------------------------------------------- */

static sqlite3 *open_database(const char *name)
{
    sqlite3 *database;
    assert_int_equal(sqlite3_open(in_folder(&place, name), &database), SQLITE_OK);
    sqlite3_busy_timeout(database, 10000);
    return database;
}

static void change(const char *name, const char *statement)
{
    sqlite3 *database = open_database(name);
    char *message = NULL;
    if (sqlite3_exec(database, statement, NULL, NULL, &message) != SQLITE_OK)
        fail_msg("%s: %s", statement, message);
    sqlite3_close(database);
}

/* The first column of the first row, as text; NULL: there is none, or no table. */
static const char *ask(const char *name, const char *question)
{
    sqlite3 *database = open_database(name);
    sqlite3_stmt *statement;
    const char *answer = NULL;
    if (sqlite3_prepare_v2(database, question, -1, &statement, NULL) == SQLITE_OK &&
        sqlite3_step(statement) == SQLITE_ROW)
        answer = arena_strdup(&place.arena, (const char *)sqlite3_column_text(statement, 0));
    sqlite3_finalize(statement);
    sqlite3_close(database);
    return answer;
}

static int rows(const char *name)
{
    const char *count = ask(name, "SELECT count(*) FROM choice");
    return count ? atoi(count) : 0;
}

/* ---- what raftc does with it ----------------------------------------------------------------- */

static const char *errors_of(const char *command)
{
    run_well(&place, command);
    return read_text(&place.arena, place.errors);
}

/* The bytes of the logits, with what the database says. */
static const char *logits(const char *database, size_t *size)
{
    run_well(&place,
             arena_printf(&place.arena,
                          "raftc run cli/tiny.yaml --weights @fill @fill --batch 3 --threads 2 "
                          "--output logits.safetensors -q %s%s",
                          database ? "--tune-db " : "", database ? database : ""));
    return read_all(&place.arena, in_folder(&place, "logits.safetensors"), size);
}

static void check_same_logits(const char *database)
{
    size_t expected_size, size;
    const char *expected = logits(NULL, &expected_size), *tuned = logits(database, &size);
    assert_int_equal(size, expected_size);
    assert_memory_equal(tuned, expected, size);
}

/* The graph after the passes. */
static const char *graph(const char *database, const char **errors)
{
    *errors = errors_of(arena_printf(&place.arena,
                                     "raftc run cli/tiny.yaml --weights @fill @fill --threads 2 "
                                     "--dump-ir choose_tiles --tune-db %s",
                                     database));
    return read_text(&place.arena, place.output);
}

static void test_search(void **state)
{
    (void)state;
    skip_without_llvm();
    run_well(&place, "raftc tune cli/tiny.yaml --threads 2 --budget 1s --tune-db found.sqlite");
    const char *table = read_text(&place.arena, place.output);
    assert_non_null(strstr(table, "norm_linear_gelu_linear_add: b,"));
    assert_non_null(strstr(table, "all kernels: by rule "));
    const char *notes = read_text(&place.arena, place.errors);
    assert_non_null(strstr(notes, "the best are in found.sqlite"));
    assert_true(rows("found.sqlite") >= 8);
    assert_string_equal(ask("found.sqlite", "SELECT count(*) FROM choice WHERE threads <> 2 OR "
                                            "seconds > by_rule OR length(kernel) <> 32"),
                        "0");
    assert_string_equal(ask("found.sqlite", "PRAGMA journal_mode"), "wal");
    check_same_logits("found.sqlite");
}

/* The same search goes on from what was found; another number of threads has records of its own. */
static void test_goes_on(void **state)
{
    (void)state;
    skip_without_llvm();
    int before = rows("found.sqlite");
    run_well(&place, "raftc tune cli/tiny.yaml --threads 2 --budget 1s --tune-db found.sqlite -q");
    assert_int_equal(rows("found.sqlite"), before);
    run_well(&place, "raftc tune cli/tiny.yaml --threads 1 --budget 1s --tune-db found.sqlite -q");
    assert_int_equal(rows("found.sqlite"), 2 * before);
}

/* A record is used where it fits, which this one does for the embeddings alone. */
static void test_used(void **state)
{
    (void)state;
    skip_without_llvm();
    change("found.sqlite", "DELETE FROM choice WHERE threads <> 2");
    change("found.sqlite", "UPDATE choice SET choice = 'b,h,w,c:16 block=3 part=0 1x1'");
    const char *errors, *text = graph("found.sqlite", &errors);
    assert_non_null(strstr(errors, "a tuned choice is not used: the record is damaged"));
    const char *kernel = strstr(text, "block 3");
    assert_non_null(kernel);
    assert_non_null(strstr(kernel, "tile 1 by 1"));
    check_same_logits("found.sqlite");
    change("found.sqlite", "UPDATE choice SET threads = 77");
    text = graph("found.sqlite", &errors);
    assert_null(strstr(errors, "tuned choice"));
    assert_null(strstr(text, " tile "));
    change("found.sqlite", "UPDATE choice SET threads = 2, machine = machine || '+feature'");
    text = graph("found.sqlite", &errors);
    assert_null(strstr(text, " tile "));
    change("found.sqlite", "UPDATE choice SET machine = replace(machine, '+feature', '')");
}

static void test_damaged(void **state)
{
    (void)state;
    skip_without_llvm();
    static const char *const wrong[] = {
        "'nonsense'",
        "''",
        "'b,h,w,c:16 block=3 part=0 1x1 1x1 1x1'",
        "'b,h,w,c:3 block=0 part=0 1x1'",
        "'b,h,w,c:16 block=0 part=0 99x99'",
        "'b:9,h,w,c:16 block=0 part=0 1x1'",
        "'b,b,w,c:16 block=0 part=0 1x1'",
        "'b,h,w,c:16 block=0 part=0 1x1 '",
        "'b,h,w,c:16 block=-1 part=0 1x1'",
        "'b,h,w,c:16 block=99999999999999999999 part=0 1x1'",
        "x'00ff00ff'",
        "17.5",
    };
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
        change("found.sqlite",
               arena_printf(&place.arena, "UPDATE choice SET choice = %s", wrong[i]));
        const char *errors, *text = graph("found.sqlite", &errors);
        const char *note = "found.sqlite: a tuned choice is not used: the record is damaged";
        const char *first = strstr(errors, note);
        assert_non_null(first);
        assert_null(strstr(first + 1, note));
        assert_null(strstr(text, " tile "));
    }
    check_same_logits("found.sqlite");
}

/* Files that are no database of ours: told, not used, and never changed. */
static void check_foreign(const char *name, const char *why)
{
    size_t before_size, size;
    const char *before = read_all(&place.arena, in_folder(&place, name), &before_size);
    const char *errors;
    graph(name, &errors);
    assert_non_null(strstr(errors, "tuned choices are not used: "));
    assert_non_null(strstr(errors, why));
    int exit = run(&place, arena_printf(&place.arena,
                                        "raftc tune cli/tiny.yaml --budget 1s --tune-db %s", name));
    assert_int_equal(exit, 3);
    assert_non_null(strstr(read_text(&place.arena, place.errors), why));
    const char *after = read_all(&place.arena, in_folder(&place, name), &size);
    assert_int_equal(size, before_size);
    assert_memory_equal(after, before, size);
}

static void test_foreign(void **state)
{
    (void)state;
    skip_without_llvm();
    change("other.sqlite", "CREATE TABLE choice (kernel TEXT, choice TEXT)");
    check_foreign("other.sqlite", "it is a database of another program");
    FILE *file = fopen(in_folder(&place, "text.sqlite"), "w");
    assert_non_null(file);
    for (int i = 0; i < 1000; i++) fputs("This is no database. ", file);
    fclose(file);
    check_foreign("text.sqlite", "not a database");
    assert_int_equal(run(&place, "raftc cli/tiny.yaml --emit ir --tune-db nosuch.sqlite"), 3);
    assert_non_null(strstr(read_text(&place.arena, place.errors), "nosuch.sqlite: No such file"));
}

static void test_together(void **state)
{
    (void)state;
    skip_without_llvm();
    pid_t process[3];
    for (size_t i = 0; i < ARRAY_SIZE(process); i++)
        process[i] =
            start(&place, "raftc tune cli/one-level.yaml --budget 1s --tune-db together.sqlite -q");
    for (size_t i = 0; i < ARRAY_SIZE(process); i++) assert_int_equal(finish(process[i]), 0);
    assert_string_equal(ask("together.sqlite", "PRAGMA integrity_check"), "ok");
    assert_true(rows("together.sqlite") >= 4);
}

static void test_interrupted(void **state)
{
    (void)state;
    skip_without_llvm();
    const struct timespec moment = {0, 50000000};
    pid_t process =
        start(&place, "raftc tune cli/tiny.yaml --threads 2 --budget 5m --tune-db stopped.sqlite");
    for (int i = 0; i < 1200 && rows("stopped.sqlite") == 0; i++) nanosleep(&moment, NULL);
    kill(process, SIGINT);
    int status = finish(process);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGINT);
    assert_true(rows("stopped.sqlite") > 0);
    assert_string_equal(ask("stopped.sqlite", "PRAGMA integrity_check"), "ok");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_search),      cmocka_unit_test(test_goes_on),
        cmocka_unit_test(test_used),        cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_foreign),     cmocka_unit_test(test_together),
        cmocka_unit_test(test_interrupted),
    };
    open_place(&place);
    int failures = cmocka_run_group_tests_name("tune", tests, NULL, NULL);
    close_place(&place);
    return failures;
}
