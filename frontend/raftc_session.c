/* raftc_session.c: what all verbs of the command line need: messages, times, files, signals. */
#include "frontend/raftc.h"
#include "runtime/rt.h"

#include <ctype.h>
#include <signal.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>

/* ---- messages -------------------------------------------------------------------------------- */

Exit session_fail(Session *session, Exit exit, const char *format, ...)
{
    Text text = text_new(session->arena);
    va_list args;
    va_start(args, format);
    text_vprintf(&text, format, args);
    va_end(args);
    diag_error(session->diag, (Loc){0}, "%s", text.data);
    return exit;
}

Exit session_fail_file(Session *session, RaftStatus status, const RaftError *error)
{
    char *rest = arena_strdup(session->arena, error->message);
    diag_error(session->diag, (Loc){0}, "%s", strsep(&rest, "\n"));
    while (rest) {
        const char *line = strsep(&rest, "\n");
        diag_note(session->diag, (Loc){0}, "%s", line + strspn(line, " "));
    }
    return status == RAFT_NO_MEMORY ? EXIT_UNDONE : EXIT_FILES;
}

void session_note(Session *session, const char *format, ...)
{
    if (session->options->quiet) return;
    Text text = text_new(session->arena);
    va_list args;
    va_start(args, format);
    text_vprintf(&text, format, args);
    va_end(args);
    diag_note(session->diag, (Loc){0}, "%s", text.data);
}

void session_flush(Session *session)
{
    fflush(stdout); /* so that a message stands after the results that came before it */
    diag_print(session->diag, stderr);
    *session->diag = diag_new(session->arena);
}

/* ---- times ----------------------------------------------------------------------------------- */

double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void session_stage(Session *session, const char *name, double start)
{
    double seconds = seconds_now() - start;
    RAFTC_ASSERT(session->stage_count < MAX_STAGES);
    session->stage[session->stage_count].name = name;
    session->stage[session->stage_count].start = start;
    session->stage[session->stage_count++].seconds = seconds;
    if (session->options->verbose) fprintf(stderr, "raftc: %9.2f ms  %s\n", 1e3 * seconds, name);
}

/* ---- files ----------------------------------------------------------------------------------- */

void signals_prepare(void)
{
    signal(SIGXFSZ, SIG_IGN);
}

static void change_signals(int how)
{
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGHUP);
    sigaddset(&signals, SIGQUIT);
    sigaddset(&signals, SIGPIPE); /* whoever read the messages has left */
    sigprocmask(how, &signals, NULL);
}

void signals_hold(void)
{
    change_signals(SIG_BLOCK);
}

void signals_release(void)
{
    change_signals(SIG_UNBLOCK);
}

Exit session_write(Session *session, const char *path, const void *data, size_t size)
{
    RaftError error;
    RtOutput output;
    signals_hold();
    RaftStatus status = rt_output_open(path, &output, &error);
    if (status == RAFT_OK) {
        rt_output_write(&output, data, size);
        status = rt_output_commit(&output, &error);
    }
    signals_release();
    return status == RAFT_OK ? EXIT_DONE : session_fail(session, EXIT_UNDONE, "%s", error.message);
}

/* ---- text ------------------------------------------------------------------------------------ */

bool has_extension(const char *path, const char *extension)
{
    size_t length = strlen(path), suffix = strlen(extension);
    return length > suffix && strcmp(path + length - suffix, extension) == 0;
}

void print_clean(const char *text, FILE *file)
{
    for (const char *c = text; *c; c++) fputc(iscntrl((unsigned char)*c) ? '?' : *c, file);
}

int64_t saturating_add(int64_t a, int64_t b)
{
    int64_t sum;
    return __builtin_add_overflow(a, b, &sum) ? INT64_MAX : sum;
}

const char *grouped(Arena *arena, int64_t number)
{
    const char *digits = arena_printf(arena, "%lld", (long long)number);
    size_t length = strlen(digits);
    Text text = text_new(arena);
    for (size_t i = 0; i < length; i++) {
        bool comma = i > 0 && digits[i - 1] != '-' && (length - i) % 3 == 0;
        text_printf(&text, "%s%c", comma ? "," : "", digits[i]);
    }
    return text.data;
}

const char *raftc_version(void)
{
    return "raftc " RAFTC_VERSION;
}

const char *shell_argument(Arena *arena, const char *argument)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                "_-./=,:@%+";
    bool quoted = strspn(argument, plain) != strlen(argument) || !*argument;
    Text text = text_new(arena);
    text_put(&text, quoted ? "'" : "");
    for (const char *c = argument; *c; c++) {
        if (*c == '\'')
            text_put(&text, "'\\''");
        else
            text_printf(&text, "%c", iscntrl((unsigned char)*c) ? '?' : *c);
    }
    text_put(&text, quoted ? "'" : "");
    return text.data;
}

uint64_t bytes_hash(const char *bytes, size_t size)
{
    uint64_t value = 14695981039346656037u;
    for (size_t i = 0; i < size; i++) value = (value ^ (unsigned char)bytes[i]) * 1099511628211u;
    return value;
}

const char *session_made_by(Session *session, const Source *source)
{
    Text text = text_new(session->arena);
    text_printf(&text, "made by %s\ncommand: raftc", raftc_version());
    for (int i = 1; i < session->argc; i++)
        text_printf(&text, " %s", shell_argument(session->arena, session->argv[i]));
    text_printf(&text, "\nmodel: %zu bytes, FNV-1a hash %016llx", source->size,
                (unsigned long long)bytes_hash(source->text, source->size));
    return text.data;
}

const char *machine_name(Arena *arena)
{
    char line[512];
    FILE *file = fopen("/proc/cpuinfo", "r");
    const char *name = NULL;
    while (file && !name && fgets(line, sizeof line, file)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !colon) continue;
        line[strcspn(line, "\n")] = '\0';
        name = arena_strdup(arena, colon + 1 + strspn(colon + 1, " "));
    }
    if (file) fclose(file);
    struct utsname system;
    if (!name) name = uname(&system) == 0 ? arena_strdup(arena, system.machine) : "unknown";
    return name;
}
