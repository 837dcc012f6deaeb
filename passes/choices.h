/* choices.h: what of a kernel is free to be chosen. A choice changes how fast the kernel is, and no
 * bit of what it computes: it says how results are grouped, never how a sum is split.
 *
 * choose_tiles writes a choice into the graph, by rule or from a source (pass.h), and everything after
 * it reads it there.
 */
#ifndef RAFTC_CHOICES_H
#define RAFTC_CHOICES_H

#include "passes/products.h"

enum { MOST_PRODUCTS = 16 }; /* of a kernel whose choice is changed */

typedef struct Choice {
    int rank;
    int axis[MAX_AXES];     /* of the kernel as formed, in the order in which units walk them, */
    int64_t unit[MAX_AXES]; /* each unit taking so many indices */
    int64_t block, part;    /* as in Kernel */
    int products;           /* the linears, in the order of the graph: */
    struct {
        int64_t rows, vectors; /* 0: by rule */
    } product[MOST_PRODUCTS];
} Choice;

/* The choice in a graph after choose_tiles, for a kernel that was formed as `formed` has it. False: it
 * has too many products. */
bool choice_read(const Graph *formed, const Graph *graph, int kernel, Choice *choice);
/* Writes it into a graph that has the kernel as formed. It must fit. */
void choice_write(Graph *graph, int kernel, const Choice *choice);
/* Is it one for this kernel as formed? */
bool choice_fits(const Graph *graph, int kernel, const Target *target, const Choice *choice);
bool choice_equal(const Choice *a, const Choice *b);

/* As one line of text, and back: "w:14,b block=4 part=256 6x2 0x0". False: it does not fit. */
void choice_print(const Graph *graph, int kernel, const Choice *choice, Text *out);
bool choice_parse(const Graph *graph, int kernel, const Target *target, const char *text,
                  Choice *choice);

/* All that differ from `from` in one respect, *count of them. `pruned`: without those for which the
 * estimates hold out no hope. */
Choice *choice_neighbours(Arena *arena, const Graph *graph, int kernel, const Target *target,
                          const Choice *from, bool pruned, int *count);

/* ---- isolate.c ------------------------------------------------------------------------------- */

/* A graph of this kernel alone, of number 0 there, to be run by itself. */
Graph *kernel_isolate(Arena *arena, const Graph *graph, int kernel);

#endif
