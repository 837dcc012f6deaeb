/* minimise.h: makes a failing case small enough to read. */
#ifndef RAFTC_TESTS_MINIMISE_H
#define RAFTC_TESTS_MINIMISE_H

#include "tests/check_case.h"

typedef bool FailsFunction(const Case *c);

/* The smallest graph found, by leaving out outputs and nodes, for which the case still fails. */
const Graph *minimise(Arena *arena, const Case *c, FailsFunction *fails);

#endif
