/* schedule.h: how a kernel is computed, unit by unit, on any machine with registers and a small
 * fast memory.
 *
 *   Slot      scratch memory of one unit for one tensor
 *   Place     where a kernel keeps a node's value: nowhere (recomputed where it is used), or in slots
 *   Stage     one loop nest of a kernel: computes a node for a whole unit and stores it
 *   Schedule  the places and stages of one kernel
 *
 * In a kernel that walks an axis a unit runs all stages for one step after the other; slots hold one step. A product that
 * sums over the axis adds to its result in every step, where that is written in the end.
 *
 * A product, mean or sum takes the point-wise ops that follow it into its epilogue, as long as each is
 * its predecessor's only user; on CPUs those of a product may be stored on the way, too. What feeds a
 * product, or is used more than once, is kept in a slot, laid out along the lanes of the stage that fills
 * it; all else is computed where it is used.
 */
#ifndef RAFTC_SCHEDULE_H
#define RAFTC_SCHEDULE_H

#include "passes/products.h"

#include <string.h>

enum { MAX_WRITES = 8 };

/* Memory of one unit for one tensor: row-major over `dim`, the lane axis last and padded to whole
 * tiles. */
typedef struct Slot {
    int rank;
    struct {
        const char *axis;
        int64_t extent, stride;
    } dim[MAX_AXES];
    int64_t offset;   /* in floats, from the start of the unit's scratch */
    int64_t elements; /* 0: there is no slot */
    bool panel;       /* holds one register tile of lanes at a time */
} Slot;

typedef struct Place {
    Slot value;      /* of the node's own value */
    Slot turned;     /* of the same again, with its vectors along another axis */
    Slot mean, rstd; /* of a layernorm and its like: its statistics, */
    bool shared;     /* which another, before it, has computed */
    Slot first,
        second; /* of a layernorm_grad: the means of g and of g * n; of a cross_entropy and its gradient:
                           the logarithm, and the loss or the sum of the target */
    Slot sums;  /* of a product whose sum is taken in parts */
    Slot lines; /* of an operand of such a product: where lies in memory what the next part takes */
    Slot window; /* of a read that may leave its tensor: what a unit reads, with zeros around;
                        its axes are those of the tensor */
    bool fused;  /* belongs to a product or mean with an epilogue, stored at the end of that */
} Place;

typedef enum {
    STAGE_WINDOW,
    STAGE_STATISTICS,
    STAGE_TURN,
    STAGE_MAP,
    STAGE_REDUCTION,
    STAGE_PRODUCT
} StageKind;

typedef struct Stage {
    StageKind kind;
    NodeId root; /* the read, layernorm, mean, sum or linear; for a map the same as `end` */
    NodeId end;  /* whose value is stored: root, or the last of the point-wise ops after it */
    int write_count;
    NodeId writes[MAX_WRITES]; /* nodes of op write that store it to a buffer */
    Product product;           /* of a product */
} Stage;

typedef struct Schedule {
    const Graph *graph;
    const Target *target;
    int kernel;
    NodeId first, end; /* the nodes of the kernel */
    const char **lane; /* of each node: the axis along which vectors run, or NULL */
    Place *place;      /* of each node; both by number less `first` */
    Stage *stages;     /* in the order in which a unit runs them */
    int stage_count;
    int64_t unit_floats; /* scratch of one unit */
    int64_t block; /* units that should run side by side: a panel of weights serves them all */
} Schedule;

/* False with a message where the kernel mixes along an axis of symbolic extent, unless it sums over it. */
bool schedule_kernel(Schedule *schedule, Arena *arena, const Graph *graph, int kernel,
                     const Target *target, Diag *diag);
static inline Place *schedule_place(const Schedule *s, NodeId id)
{
    return &s->place[id - s->first];
}
static inline const char *schedule_lane(const Schedule *s, NodeId id)
{
    return s->lane[id - s->first];
}
static inline bool schedule_holds(const Schedule *s, NodeId id)
{
    return id >= s->first && id < s->end;
}
/* Does a unit of the kernel walk an axis? Blocks of threads, which stage operands, have all of it at once. */
static inline bool schedule_walks(const Schedule *s)
{
    return s->graph->kernels[s->kernel].walk[0] && !s->target->stages_operands;
}
/* Is this the axis that it walks? */
static inline bool schedule_walks_along(const Schedule *s, const char *axis)
{
    return schedule_walks(s) && strcmp(axis, s->graph->kernels[s->kernel].walk) == 0;
}
/* Makes room in a unit for a tensor: row-major over `type` less `without`, the lane axis last.
 * Symbolic axes have one index in a unit. False where an axis has a symbol and is not split. */
bool schedule_slot(Schedule *schedule, Slot *slot, const Type *type, const AxisNames *without,
                   const char *lane);
/* Units of an image. */
int64_t kernel_units(const Kernel *kernel);
/* Rows of a unit of the product of a stage. */
int64_t schedule_rows(const Schedule *s, const Stage *stage);
/* Units of a block: what is chosen for the kernel, else `units`, at most `most` and at least one. */
int64_t schedule_block(const Schedule *s, int64_t units, int64_t most);
/* Index into the kernel's axes, or -1. */
int schedule_axis(const Schedule *s, const char *name);

#endif
