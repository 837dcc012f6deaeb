/* random_graph.h: random legal graphs over all ops of the IR. */
#ifndef RAFTC_TESTS_RANDOM_GRAPH_H
#define RAFTC_TESTS_RANDOM_GRAPH_H

#include "ir/ir.h"

/* A graph that depends on `seed` alone, with 1 to about 25 ops, now and then some of them in
 * kernels, and no value of more than `most_elements`. No op mixes along the axis b, so that every
 * backend runs it. */
Graph *random_graph(Arena *arena, uint64_t seed, int64_t most_elements);

#endif
