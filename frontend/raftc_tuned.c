/* raftc_tuned.c: the database of tuned choices; raftc_tuned.h says how it is used. */
#include "frontend/raftc_tuned.h"

#include <errno.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { APPLICATION = 0x52414654 /* "RAFT" */, BUSY_MILLISECONDS = 10000 };

struct Tuned {
    Session *session;
    const Target *target;
    const char *path, *machine;
    sqlite3 *database;
    sqlite3_stmt *find, *keep;
    bool noted; /* one note is enough */
};

/* ---- where ----------------------------------------------------------------------------------- */

/* In the user's cache; NULL: there is no place for one. */
static const char *default_path(Arena *arena)
{
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (cache && *cache == '/') return arena_printf(arena, "%s/raftc/tuned.sqlite", cache);
    return home && *home ? arena_printf(arena, "%s/.cache/raftc/tuned.sqlite", home) : NULL;
}

/* Makes the folders that the file lies in. */
static void make_folders(Arena *arena, const char *path)
{
    char *part = arena_strdup(arena, path);
    for (char *slash = part; (slash = strchr(slash + 1, '/'));) {
        *slash = '\0';
        mkdir(part, 0777); /* what goes wrong is told when the file is opened */
        *slash = '/';
    }
}

/* ---- opening --------------------------------------------------------------------------------- */

static const char schema[] =
    "CREATE TABLE IF NOT EXISTS choice (kernel TEXT, machine TEXT, threads INTEGER, version TEXT,"
    " choice TEXT NOT NULL, by_rule REAL, seconds REAL,"
    " PRIMARY KEY (kernel, machine, threads, version)) WITHOUT ROWID";

static bool run(Tuned *t, const char *statement)
{
    return sqlite3_exec(t->database, statement, NULL, NULL, NULL) == SQLITE_OK;
}

/* The first column of the first row; -1 after an error. */
static int ask_number(Tuned *t, const char *question)
{
    sqlite3_stmt *statement;
    int number = -1;
    if (sqlite3_prepare_v2(t->database, question, -1, &statement, NULL) != SQLITE_OK) return -1;
    if (sqlite3_step(statement) == SQLITE_ROW) number = sqlite3_column_int(statement, 0);
    sqlite3_finalize(statement);
    return number;
}

/* Is the file a database of ours, or (to be `made`) as good as empty? */
static bool is_ours(Tuned *t, bool make, const char **why)
{
    int tables = ask_number(t, "SELECT count(*) FROM sqlite_master");
    int application = ask_number(t, "PRAGMA application_id"); /* last: another may just make it */
    if (application == APPLICATION || (make && application == 0 && tables == 0)) return true;
    *why = application < 0 || tables < 0 ? sqlite3_errmsg(t->database)
                                         : "it is a database of another program";
    return false;
}

static bool prepare(Tuned *t, const char *text, sqlite3_stmt **statement)
{
    return sqlite3_prepare_v2(t->database, text, -1, statement, NULL) == SQLITE_OK;
}

static bool set_up(Tuned *t, bool make, const char **why)
{
    sqlite3_busy_timeout(t->database, BUSY_MILLISECONDS);
    if (!is_ours(t, make, why)) return false;
    bool good = true;
    if (make)
        good = run(t, "PRAGMA journal_mode = WAL") && run(t, "BEGIN IMMEDIATE") && run(t, schema) &&
               run(t, "PRAGMA application_id = 0x52414654") && run(t, "COMMIT") &&
               prepare(t, "INSERT OR REPLACE INTO choice VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                       &t->keep);
    good = good && prepare(t,
                           "SELECT choice FROM choice WHERE kernel = ?1 AND machine = ?2 AND "
                           "threads = ?3 AND version = ?4",
                           &t->find);
    if (!good) *why = sqlite3_errmsg(t->database);
    return good;
}

static Exit open_file(Session *session, const Compilation *c, const char *path, bool make,
                      Tuned **out, const char **why)
{
    Tuned *t = arena_alloc(session->arena, sizeof *t);
    *t = (Tuned){.session = session, .target = &c->target, .path = path};
    const char *described = llvm_describe(session->arena, &c->cpu, session->diag);
    if (!described) return EXIT_LACKING;
    bool host = !c->cpu.triple && (!c->cpu.cpu || strcmp(c->cpu.cpu, "host") == 0);
    t->machine = arena_printf(session->arena, "%s %s", host ? machine_name(session->arena) : "any",
                              described);
    int flags = make ? SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE : SQLITE_OPEN_READONLY;
    bool good = sqlite3_open_v2(path, &t->database, flags, NULL) == SQLITE_OK;
    if (!good) *why = t->database ? sqlite3_errmsg(t->database) : "out of memory";
    good = good && set_up(t, make, why);
    *why = good ? NULL : arena_strdup(session->arena, *why);
    *out = t;
    if (!good) {
        tuned_close(t);
        *out = NULL;
    }
    return EXIT_DONE;
}

Exit tuned_open(Session *session, const Compilation *c, Tuned **tuned)
{
    const char *given = session->options->tune_database, *why = NULL;
    const char *path = given ? given : default_path(session->arena);
    *tuned = NULL;
    if (given && access(given, F_OK) != 0)
        return session_fail(session, EXIT_FILES, "%s: %s; `raftc tune` makes such a file", given,
                            strerror(errno));
    if (!path || access(path, F_OK) != 0) return EXIT_DONE;
    Exit exit = open_file(session, c, path, false, tuned, &why);
    if (why) session_note(session, "%s: tuned choices are not used: %s", path, why);
    return exit;
}

Exit tuned_create(Session *session, const Compilation *c, Tuned **tuned)
{
    const char *given = session->options->tune_database, *why = NULL;
    const char *path = given ? given : default_path(session->arena);
    *tuned = NULL;
    if (!path)
        return session_fail(session, EXIT_UNDONE,
                            "there is no home folder to keep what is found in; name a file: "
                            "--tune-db FILE");
    if (!given) make_folders(session->arena, path);
    Exit exit = open_file(session, c, path, true, tuned, &why);
    if (exit != EXIT_DONE || *tuned) return exit;
    return session_fail(session, EXIT_FILES, "%s: cannot hold what tuning finds: %s", path, why);
}

void tuned_close(Tuned *t)
{
    if (!t) return;
    sqlite3_finalize(t->find);
    sqlite3_finalize(t->keep);
    sqlite3_close(t->database);
    *t = (Tuned){0};
}

const char *tuned_path(const Tuned *t)
{
    return t->path;
}

/* ---- records --------------------------------------------------------------------------------- */

static const char by_the_rules[] = "rule"; /* in place of a choice */

static void bind_key(const Tuned *t, sqlite3_stmt *statement, const Graph *graph, int kernel)
{
    Arena *arena = t->session->arena;
    const char *text = kernel_key(arena, graph, kernel, false);
    uint64_t low = bytes_hash(text, strlen(text)), high = low ^ strlen(text);
    for (const char *c = text; *c; c++) high = high * 0x9e3779b97f4a7c15u + (unsigned char)*c;
    const char *key =
        arena_printf(arena, "%016llx%016llx", (unsigned long long)high, (unsigned long long)low);
    sqlite3_reset(statement);
    sqlite3_bind_text(statement, 1, key, -1, SQLITE_TRANSIENT);
    sqlite3_bind_text(statement, 2, t->machine, -1, SQLITE_TRANSIENT);
    sqlite3_bind_int(statement, 3, t->session->threads);
    sqlite3_bind_text(statement, 4, raftc_version(), -1, SQLITE_STATIC);
}

static void note_once(Tuned *t, const char *why)
{
    if (!t->noted) session_note(t->session, "%s: a tuned choice is not used: %s", t->path, why);
    t->noted = true;
}

bool tuned_find(Tuned *t, const Graph *graph, int kernel, Choice *choice)
{
    bind_key(t, t->find, graph, kernel);
    int status = sqlite3_step(t->find);
    bool good = false;
    if (status == SQLITE_ROW) {
        const char *text = (const char *)sqlite3_column_text(t->find, 0);
        good = text && choice_parse(graph, kernel, t->target, text, choice);
        if (!good && !(text && strcmp(text, by_the_rules) == 0))
            note_once(t, "the record is damaged; `raftc tune` makes it anew");
    } else if (status != SQLITE_DONE) {
        note_once(t, sqlite3_errmsg(t->database));
    }
    sqlite3_reset(t->find);
    return good;
}

static bool find_for_pass(void *user, const Graph *graph, int kernel, Choice *choice)
{
    return tuned_find(user, graph, kernel, choice);
}

ChoiceSource tuned_source(Tuned *t)
{
    return (ChoiceSource){t ? find_for_pass : NULL, t};
}

Exit tuned_keep(Tuned *t, const Graph *graph, int kernel, const Choice *choice, double by_rule,
                double seconds)
{
    Text text = text_new(t->session->arena);
    if (choice)
        choice_print(graph, kernel, choice, &text);
    else
        text_put(&text, by_the_rules);
    bind_key(t, t->keep, graph, kernel);
    sqlite3_bind_text(t->keep, 5, text.data, -1, SQLITE_TRANSIENT);
    sqlite3_bind_double(t->keep, 6, by_rule);
    sqlite3_bind_double(t->keep, 7, seconds);
    bool good = sqlite3_step(t->keep) == SQLITE_DONE;
    if (!good)
        session_fail(t->session, EXIT_UNDONE, "%s: cannot be written: %s", t->path,
                     sqlite3_errmsg(t->database));
    sqlite3_reset(t->keep);
    return good ? EXIT_DONE : EXIT_UNDONE;
}
