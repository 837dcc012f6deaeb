/* kernels.h: what the fusion passes share: turning sets of nodes into kernels, and taking apart the
 * ops that only move elements. */
#ifndef RAFTC_KERNELS_H
#define RAFTC_KERNELS_H

#include "passes/pass.h"

/* Which nodes are to become kernels. group[id]: a draft number, or -1. Nodes that are in a kernel
 * of the graph already have none. walk[group]: the axis that its kernel walks, or NULL. */
typedef struct Draft {
    const Graph *graph;
    uint32_t *uses;
    int *group;
    const char **walk;
    int count;
} Draft;

Draft draft_new(Arena *arena, const Graph *graph);
/* Is the node free to join a new kernel: a computation in no kernel and no draft? */
bool draft_free(const Draft *draft, NodeId id);
/* Is it a node of kind `op` that is free, and used once? */
bool draft_is_link(const Draft *draft, NodeId id, Op op);
/* A new group with these members. Values are used outside the group only through its last member,
 * and a `write` that is the only use of that joins too. */
void draft_add(Draft *draft, const NodeId *members, int count);
/* The graph with every draft as a kernel. Outside values come in through `read`s (a `read` outside
 * kernels is copied into each kernel that uses it), results leave through `write`s; the kernel's
 * axes are those along which nothing in it mixes. */
Graph *draft_finish(PassContext *context, const Draft *draft);

/* Does the node treat the axis otherwise than point by point? */
bool node_mixes(const Graph *graph, const Node *node, const char *axis);

/* A rearrange, unfold or slice as reads (splits, renames, windows, ranges) and writes (merges) of
 * its operand, appended to `to`; `x` is the operand there. Returns the last value. */
NodeId lower_movement(Graph *to, const Node *node, NodeId x);
bool is_movement(Op op);

/* Do what a product takes and what it gives stay together in half of the L2 cache, where a unit has one index along each of
 * the axes `split` and all along the others? */
bool product_stays_in_cache(const Graph *graph, NodeId linear, const AxisNames *split,
                            const Target *target);

/* Does it, a linear with a weight, read more weights than stay in the L2 cache for but a few positions of an image? Units of
 * all lanes would each read all of them: lanes are shared out, and a thread reads its part only. */
bool shares_out_weights(const Graph *graph, NodeId linear, const Target *target);

/* ---- mlp_gradients.c -------------------------------------------------------------------------- */

/* Gradients of an MLP, at most: three, and those of a LayerNorm. */
enum { MOST_GRADIENTS = 9 };

/* Does what the members take from outside depend on values of their own, those that follow from the first? Then these have
 * to be there before it. A member may be NO_NODE. */
bool makes_circle(Arena *arena, const Graph *graph, const NodeId *members, int count);
/* Adds what LayerNorm's gradient makes of that of the normalised values, `value`: the sums of a row for its scale and its shift,
 * if there are any (sum_rows), its result, and the residual sum with that. Returns how many these are. */
int add_norm_gradients(const Draft *draft, NodeId value, NodeId *members);
/* Has a unit of a kernel of these gradients, which takes one index along each axis that none of them mixes, room in the cache?
 * The first three members are the two products, and that of the GELU between them. */
bool gradients_stay_in_cache(const Target *target, const Graph *graph, const NodeId *members,
                             int count);

#endif
