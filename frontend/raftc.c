/* raftc.c: the command line program: raftc VERB FILE...
 *
 *   options_parse        the command line, checked
 *   compilation_load     settings -> Model -> Graph, or a graph from its text
 *   compilation_optimise the passes
 *   compilation_plan     steps and buffers
 *   compilation_generate machine code
 *   and then what the verb wants: files, answers, times, or what is in a file.
 */
#include "frontend/raftc.h"
#include "frontend/raftc_json.h"

#include <errno.h>
#include <omp.h>
#include <string.h>

static Exit run_verb(Session *session)
{
    switch (session->options->verb) {
    case VERB_COMPILE:
        return verb_compile(session);
    case VERB_RUN:
        return verb_run(session);
    case VERB_BENCH:
        return verb_bench(session);
    case VERB_TUNE:
        return verb_tune(session);
    case VERB_INSPECT:
        return verb_inspect(session);
    case VERB_CONVERT:
        return verb_convert(session);
    case VERB_TRAIN:
        return verb_train(session);
    case VERB_EVAL:
        return verb_eval(session);
    default:
        RAFTC_BUG("verb %d is not in this build", session->options->verb);
    }
}

/* As many as OMP_NUM_THREADS says, but no more than there are processors for us. */
static int default_threads(void)
{
    int wanted = omp_get_max_threads(), processors = omp_get_num_procs();
    int threads = wanted < processors ? wanted : processors;
    return threads < RAFT_MAX_THREADS ? threads : RAFT_MAX_THREADS;
}

static Exit run_session(Session *session, Options *options)
{
    if (session->argc < 2) {
        options_help(VERB_COMPILE, stderr);
        return EXIT_USAGE;
    }
    Exit exit = options_parse(session->arena, session->argc, session->argv, options, session->diag);
    if (exit != EXIT_DONE) return exit;
    if (options->help) {
        options_help(options->verb, stdout);
    } else if (options->version) {
        puts(raftc_version());
    } else {
        session->threads = options->threads ? (int)options->threads : default_threads();
        omp_set_num_threads(session->threads);
        exit = run_verb(session);
    }
    return exit;
}

/* All but the release of memory, which outlives a jump out of here. */
static Exit run_guarded(Arena *arena, int argc, char **argv)
{
    jmp_buf out_of_memory;
    arena->out_of_memory = &out_of_memory;
    if (setjmp(out_of_memory)) {
        fputs("raftc: error: out of memory\n", stderr);
        return EXIT_UNDONE;
    }
    Diag diag = diag_new(arena);
    Options options;
    Session session = {arena, &diag, &options, argc, argv, .stage_count = 0};
    Exit exit = run_session(&session, &options);
    if (json_lost() && exit != EXIT_UNDONE) /* jansson may have told of something else */
        exit = session_fail(&session, EXIT_UNDONE, "out of memory");
    if (fflush(stdout) || ferror(stdout)) {
        diag_error(&diag, (Loc){0}, "the results cannot be written: %s", strerror(errno));
        if (exit == EXIT_DONE) exit = EXIT_UNDONE;
    }
    diag_print(&diag, stderr);
    return exit;
}

int main(int argc, char **argv)
{
    Arena arena = {0};
    signals_prepare();
    json_prepare();
    Exit exit = run_guarded(&arena, argc, argv);
    arena_free(&arena);
    return exit;
}
