/* raftc_tuned.h: choices for kernels that `raftc tune` found, in an SQLite database.
 *
 * A record is found by the kernel (a hash of its text before anything is chosen), the machine, the
 * number of threads, and the versions of raftc and LLVM. Any number of processes may use one file: it
 * keeps a log of changes (WAL), each change is a transaction, and who finds it busy waits. What cannot
 * be used is told in a note, and the rules choose.
 */
#ifndef RAFTC_TUNED_H
#define RAFTC_TUNED_H

#include "frontend/raftc.h"
#include "passes/choices.h"

typedef struct Tuned Tuned;

/* Opens the database for reading. *tuned NULL: there is none. Fails where the user named one that is
 * not there. */
Exit tuned_open(Session *session, const Compilation *compilation, Tuned **tuned);
/* Opens it for reading and writing, and makes it where there is none. */
Exit tuned_create(Session *session, const Compilation *compilation, Tuned **tuned);
void tuned_close(Tuned *tuned); /* NULL is legal */
const char *tuned_path(const Tuned *tuned);

/* What it has for a kernel as formed that is better than the rules. */
bool tuned_find(Tuned *tuned, const Graph *graph, int kernel, Choice *choice);
/* The same as a source for the passes; of NULL: none. */
ChoiceSource tuned_source(Tuned *tuned);
/* Keeps a choice (NULL: the rules are best, whatever they will be), with the seconds that the kernel
 * took by rule and takes now. */
Exit tuned_keep(Tuned *tuned, const Graph *graph, int kernel, const Choice *choice, double by_rule,
                double seconds);

#endif
