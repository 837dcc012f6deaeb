/* raftc_trace.c: bench --trace: what ran when, as Chrome and Perfetto show it: the stages of raftc and
 * the passes on its own line, and the fastest run with a line for each thread.
 *
 * Where a batch is run in parts, a run is that of the last part. A GPU tells how long kernels take, not
 * when they begin: they are put one after the other. */
#include "frontend/raftc_profile.h"

#include <stdlib.h>
#include <string.h>

enum { COMPILER = 1, RUNS = 2 }; /* what Chrome calls processes */

typedef struct Trace {
    Session *session;
    json_t *events;
    double origin; /* when raftc began to work */
} Trace;

static void add_event(Trace *trace, const char *name, const char *kind, int process, int thread,
                      double start, double seconds)
{
    json_array_append_new(trace->events,
                          json_pack("{s:o, s:s, s:s, s:f, s:f, s:i, s:i}", "name",
                                    json_text(trace->session->arena, name), "cat", kind, "ph", "X",
                                    "ts", 1e6 * (start - trace->origin), "dur", 1e6 * seconds,
                                    "pid", process, "tid", thread));
}

static void name_line(Trace *trace, const char *what, const char *name, int process, int thread)
{
    json_array_append_new(trace->events,
                          json_pack("{s:s, s:s, s:i, s:i, s:{s:s}}", "name", what, "ph", "M", "pid",
                                    process, "tid", thread, "args", "name", name));
}

static void add_compiler(Trace *trace, const Compilation *c)
{
    const Session *session = trace->session;
    name_line(trace, "process_name", "raftc", COMPILER, 0);
    name_line(trace, "thread_name", "compiler", COMPILER, 0);
    for (int i = 0; i < session->stage_count; i++)
        add_event(trace, session->stage[i].name, "stage", COMPILER, 0, session->stage[i].start,
                  session->stage[i].seconds);
    for (int i = 0; i < pass_count && c->statistics; i++)
        if (c->statistics[i].start > 0)
            add_event(trace, pass_table[i].name, "pass", COMPILER, 0, c->statistics[i].start,
                      c->statistics[i].seconds);
}

/* Begins at `start` where the shell does not know better; returns when it ends. */
static double add_run(Trace *trace, const Profile *profile, int thread, double start)
{
    for (int s = 0; s < profile->step_count; s++) {
        size_t at = (size_t)thread * (size_t)profile->step_count + (size_t)s;
        RaftMoments moments = profile->run_moments[at];
        if (profile->run[at] <= 0) continue; /* of another entry */
        if (moments.began <= 0) moments = (RaftMoments){start, start + profile->run[at]};
        int kernel = profile->plan->steps[profile->step[s]].kernel;
        add_event(trace, kernel_name(profile->plan->graph, kernel, trace->session->arena), "kernel",
                  RUNS, thread, moments.began, moments.ended - moments.began);
        start = moments.ended;
    }
    return start;
}

static void add_runs(Trace *trace, const Profile *profile, int count)
{
    name_line(trace, "process_name", "the fastest run", RUNS, 0);
    for (int thread = 0; thread < profile->threads; thread++) {
        double start = seconds_now();
        name_line(trace, "thread_name", arena_printf(trace->session->arena, "thread %d", thread),
                  RUNS, thread);
        for (int i = 0; i < count; i++) start = add_run(trace, &profile[i], thread, start);
    }
}

Exit trace_write(Session *session, const Compilation *c, const Profile *profile, int count)
{
    Trace trace = {session, json_array(), session->stage[0].start};
    add_compiler(&trace, c);
    add_runs(&trace, profile, count);
    json_t *object = json_pack("{s:o, s:s}", "traceEvents", trace.events, "displayTimeUnit", "ms");
    char *text = json_dumps(object, JSON_REAL_PRECISION(12));
    json_decref(object);
    if (!text || json_lost()) {
        free(text);
        return session_fail(session, EXIT_UNDONE, "out of memory");
    }
    Exit exit = session_write(session, session->options->trace, text, strlen(text));
    free(text);
    return exit;
}
