/* metrics.c: what a run tells, a line for each time: {"step":15,"training/loss":6.9,"lr":0.0002}.
 * Lines hold nothing that differs from run to run; so a resumed run leaves the same bytes. */
#include "runtime/train/private.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct RaftMetrics {
    char *path; /* of the lines */
    FILE *lines, *events;
};

static RaftStatus cannot_write(RaftError *error, const char *path, int failure)
{
    return rt_fail(error, RAFT_IO, "%s: cannot be written: %s", path, strerror(failure));
}

/* The step that a whole line tells; -1 where it is none: the last may be torn. */
static int64_t step_of(const char *line, size_t size)
{
    json_t *json = size && line[size - 1] == '\n' ? json_loadb(line, size, 0, NULL) : NULL;
    const json_t *step = json_object_get(json, "step");
    int64_t number = json_is_integer(step) ? json_integer_value(step) : -1;
    json_decref(json);
    return number;
}

/* Writes again what a run told before `first`. */
static RaftStatus keep_lines(const char *path, int64_t first, RaftError *error)
{
    RtFile file;
    RtOutput output;
    FILE *old = fopen(path, "r");
    if (!old) return RAFT_OK; /* nothing was told yet */
    fclose(old);
    RaftStatus status = rt_file_map(path, &file, error);
    if (!status) status = rt_output_open(path, &output, error);
    if (!status) {
        const char *line = (const char *)file.data, *end = line + file.size;
        for (const char *next; line < end; line = next) {
            const char *stop = memchr(line, '\n', (size_t)(end - line));
            next = stop ? stop + 1 : end;
            int64_t step = step_of(line, (size_t)(next - line));
            if (step >= 0 && step < first) rt_output_write(&output, line, (size_t)(next - line));
        }
        status = rt_output_commit(&output, error);
    }
    rt_file_unmap(&file);
    return status;
}

RaftStatus raft_metrics_open(const char *folder, int64_t first, RaftMetrics **metrics,
                             RaftError *error)
{
    RaftMetrics *opened = calloc(1, sizeof *opened);
    size_t size = strlen(folder) + sizeof "/metrics.jsonl";
    *metrics = NULL;
    if (opened) opened->path = malloc(size);
    RaftStatus status = opened && opened->path ? RAFT_OK : rt_no_memory(error, folder);
    if (!status) {
        snprintf(opened->path, size, "%s/metrics.jsonl", folder);
        status = keep_lines(opened->path, first, error);
    }
    if (!status) {
        opened->lines = fopen(opened->path, "ae");
        if (opened->lines) opened->events = rt_events_open(folder, first);
        if (!opened->events) status = cannot_write(error, opened->path, errno);
    }
    if (status)
        raft_metrics_close(opened);
    else
        *metrics = opened;
    return status;
}

RaftStatus raft_metrics_add(RaftMetrics *metrics, int64_t step, int count, const char *const *tags,
                            const double *values, RaftError *error)
{
    fprintf(metrics->lines, "{\"step\":%lld", (long long)step);
    for (int i = 0; i < count; i++)
        if (isfinite(values[i]))
            fprintf(metrics->lines, ",\"%s\":%.9g", tags[i], values[i]);
        else
            fprintf(metrics->lines, ",\"%s\":null", tags[i]); /* JSON has no other word for it */
    fprintf(metrics->lines, "}\n");
    if (fflush(metrics->lines) || ferror(metrics->lines))
        return cannot_write(error, metrics->path, errno ? errno : EIO);
    int failure = rt_events_add(metrics->events, step, count, tags, values);
    return failure ? cannot_write(error, "the event file of TensorBoard", failure) : RAFT_OK;
}

void raft_metrics_close(RaftMetrics *metrics)
{
    if (!metrics) return;
    if (metrics->lines) fclose(metrics->lines);
    if (metrics->events) fclose(metrics->events);
    free(metrics->path);
    free(metrics);
}
