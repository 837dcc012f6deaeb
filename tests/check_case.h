/* check_case.h: one graph through passes and backends, compared with the reference in f64. */
#ifndef RAFTC_TESTS_CHECK_CASE_H
#define RAFTC_TESTS_CHECK_CASE_H

#include "backends/backend.h"

enum { MAX_PASSES = 32, MAX_DISABLED = 8 };

typedef struct Case {
    const Graph *graph;
    uint64_t seed; /* of the tensors */
    int64_t batch;
    const char *cpu; /* NULL: this machine's own */
    bool cuda;       /* as CUDA kernels, emulated, in place of code for a CPU */
    int64_t rewrite_limit;
    const char *disabled[MAX_DISABLED]; /* passes */
    int disabled_count;
    uint64_t choices; /* not 0: the seed of choices for kernels, which must give the same bits */
    int stop; /* so many passes run first; their graph is printed, parsed, and goes through all */
} Case;

typedef enum { VERDICT_NONE, VERDICT_PASSED, VERDICT_FAILED } Verdict;

/* Lies in memory that a process shares with its child. */
typedef struct Outcome {
    Verdict verdict;
    bool same;          /* the disabled passes did nothing: the case with all passes tells */
    double ratio;       /* greatest error as a share of its bound */
    int outputs, loose; /* loose: so many of them have bounds too loose to be compared with */
    int64_t rewrites[MAX_PASSES];
    char why[2048];
} Outcome;

/* The graph after passes must give what it gave before: run by the reference in f32, and as machine
 * code (or as emulated kernels) with 1 and 2 threads, all images at once and each alone, with the same
 * bits. Not run is what has the same kernels with all passes as without those that are disabled. */
void check_case(const Case *c, Outcome *outcome);

#endif
