/* gradients.h: reverse mode: how the gradient of a value becomes gradients of what it is made of. */
#ifndef RAFTC_GRADIENTS_H
#define RAFTC_GRADIENTS_H

#include "ir/ir.h"

/* A backward pass under construction: the nodes of the forward, then what the rules append. */
typedef struct Backward {
    Graph *graph;
    const bool *wanted; /* of each value of the forward: does it depend on a parameter? */
    NodeId *gradient;   /* likewise: the sum of what its users gave so far, or NO_NODE */
    Diag *diag;
} Backward;

/* The rule of one op: given the gradient `dy` of node `id`, gives those of its operands that are
 * wanted. False after an error at the node: there is no such gradient. */
typedef bool GradientFunction(Backward *b, NodeId id, NodeId dy);
extern GradientFunction *const op_gradient[OP_COUNT];

#endif
