/* verify.c: is this graph what ir.md says a graph is? Runs on parsed text and after every pass.
 *
 * In three steps, each relying on the one before: every node by itself (type, layout, attributes),
 * every node with its operands (check.c has the rules of the ops), and the graph as a whole
 * (kernels, names, outputs). Each step collects all the faults that it finds. */
#include "ir/private.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const int64_t MOST_ELEMENTS = (INT64_C(1) << 40) - 1;
enum { MOST_OPERANDS = 4096, MOST_ENTRIES = 8 };

#define LOWER   "abcdefghijklmnopqrstuvwxyz"
#define LETTERS LOWER "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
#define DIGITS  "0123456789"

static bool consists_of(const char *text, const char *alphabet)
{
    return text && *text && text[strspn(text, alphabet)] == '\0';
}

bool is_axis_name(const char *text, size_t length)
{
    if (length == 0 || length >= NAME_SIZE || !memchr(LETTERS, text[0], strlen(LETTERS)))
        return false;
    for (size_t i = 1; i < length; i++)
        if (!memchr(LETTERS DIGITS "_", text[i], strlen(LETTERS DIGITS "_"))) return false;
    return true;
}

static bool in_range(int64_t value, int64_t least)
{
    return value >= least && value <= MOST_ELEMENTS;
}

/* The file as a whole. */
static Loc place_of(const Graph *graph)
{
    return (Loc){.source = graph->node_count ? graph->nodes[0].loc.source : NULL};
}

/* ---- each node by itself --------------------------------------------------------------------- */

static bool verify_axes(Diag *diag, const Node *node, const Axis *axis, int rank)
{
    for (int i = 0; i < rank; i++) {
        const char *name = axis[i].name, *symbol = axis[i].symbol;
        if (!is_axis_name(name, strnlen(name, NAME_SIZE)))
            return node_error(diag, node, "the name of axis %d is not " AXIS_NAME_RULE, i + 1);
        if (symbol[0] && !is_axis_name(symbol, strnlen(symbol, NAME_SIZE)))
            return node_error(diag, node, "the symbol of axis '%s' is not " AXIS_NAME_RULE, name);
        if (symbol[0] ? axis[i].extent != 0 : !in_range(axis[i].extent, 1))
            return node_error(diag, node, "extent %" PRId64 " of axis '%s' is out of range",
                              axis[i].extent, name);
        for (int k = 0; k < i; k++)
            if (strcmp(axis[k].name, name) == 0)
                return node_error(diag, node, "two axes are called '%s'", name);
    }
    return true;
}

static bool verify_type(Diag *diag, const Node *node)
{
    const Type *type = &node->type;
    if (type->rank < 0 || type->rank > MAX_AXES || (unsigned)type->dtype >= DTYPE_COUNT)
        return node_error(diag, node, "no type has rank %d and dtype %d", type->rank, type->dtype);
    return verify_axes(diag, node, type->axis, type->rank) &&
           (type_elements(type, NULL) <= MOST_ELEMENTS ||
            node_error(diag, node, "a tensor has less than 2^40 elements"));
}

/* The dimensions of the layout over one axis must be the digits of its index, enough of them. */
static bool layout_covers(const Layout *layout, int index, const Axis *axis)
{
    int64_t weight[MAX_AXES], extent[MAX_AXES];
    int count = 0;
    for (int i = 0; i < layout->rank; i++) {
        if (layout->dim[i].axis != index) continue;
        weight[count] = layout->dim[i].divisor;
        extent[count++] = layout->dim[i].extent;
    }
    if (axis->symbol[0]) return count == 1 && weight[0] == 1;
    return digits_product(count, weight, extent) >= axis->extent;
}

static bool verify_layout(Diag *diag, const Node *node)
{
    const Layout *layout = &node->layout;
    const Type *type = &node->type;
    if (layout->rank == 0) return true;
    if (layout->rank < 0 || layout->rank > MAX_AXES)
        return node_error(diag, node, "a layout cannot have %d dimensions", layout->rank);
    for (int i = 0; i < layout->rank; i++) {
        int axis = layout->dim[i].axis;
        int64_t divisor = layout->dim[i].divisor, extent = layout->dim[i].extent;
        if (axis < 0 || axis >= type->rank)
            return node_error(diag, node, "the layout packs axis %d, which does not exist", axis);
        if (!in_range(divisor, 1) ||
            (type->axis[axis].symbol[0] ? extent != 0 : !in_range(extent, 1)))
            return node_error(diag, node,
                              "divisor %" PRId64 " or extent %" PRId64
                              " of packed '%s' is out of range",
                              divisor, extent, type->axis[axis].name);
    }
    if (layout_elements(type, layout) > MOST_ELEMENTS)
        return node_error(diag, node, "a packed tensor has less than 2^40 elements");
    for (int i = 0; i < type->rank; i++)
        if (!layout_covers(layout, i, &type->axis[i]))
            return node_error(diag, node, "the layout does not hold each index of '%s' once",
                              type->axis[i].name);
    return !(op_info[node->op].attributes & ATTR_NAME) ||
           node_error(diag, node, "what the caller gives is never packed");
}

static bool verify_stored(Diag *diag, const Node *node)
{
    const Attributes *attributes = &node->attributes;
    if (attributes->stored_rank < 0 ||
        attributes->stored_rank > (int)ARRAY_SIZE(attributes->stored))
        return node_error(diag, node, "a stored shape cannot have %d extents",
                          attributes->stored_rank);
    for (int i = 0; i < attributes->stored_rank; i++)
        if (!in_range(attributes->stored[i], 1))
            return node_error(diag, node, "stored extent %" PRId64 " is out of range",
                              attributes->stored[i]);
    return true;
}

static bool verify_groups(Diag *diag, const Node *node)
{
    const Attributes *attributes = &node->attributes;
    bool legal = attributes->group_count >= 0 && attributes->group_count <= MAX_AXES;
    for (int i = 0; legal && i < attributes->group_count; i++) {
        const Group *group = &attributes->groups[i];
        legal = group->from.count >= 1 && group->from.count <= MAX_AXES && group->to.count >= 1 &&
                group->to.count <= MAX_AXES;
    }
    return legal || node_error(diag, node, "there are at most 8 groups, of 1 to 8 axes");
}

static bool verify_windows(Diag *diag, const Node *node)
{
    const Attributes *attributes = &node->attributes;
    if (attributes->window_count < 1 || attributes->window_count > MAX_AXES)
        return node_error(diag, node, "has %d windows, not 1 to %d", attributes->window_count,
                          MAX_AXES);
    for (int i = 0; i < attributes->window_count; i++) {
        const Window *window = &attributes->windows[i];
        if (!in_range(window->kernel, 1) || !in_range(window->stride, 1) ||
            !in_range(window->pad, 0))
            return node_error(diag, node,
                              "window %" PRId64 ", stride %" PRId64 " or pad %" PRId64
                              " is out of range",
                              window->kernel, window->stride, window->pad);
    }
    return true;
}

static bool verify_over(Diag *diag, const Node *node)
{
    const AxisNames *over = &node->attributes.over;
    if (over->count < 1 || over->count > MAX_AXES)
        return node_error(diag, node, "over must name 1 to %d axes, not %d", MAX_AXES, over->count);
    for (int i = 0; i < over->count; i++)
        for (int k = 0; k < i; k++)
            if (strcmp(over->name[i], over->name[k]) == 0)
                return node_error(diag, node, "over names '%s' twice", over->name[i]);
    return true;
}

/* Rows and vectors of a register tile, or neither. */
static bool verify_tile(Diag *diag, const Node *node)
{
    int64_t rows = node->attributes.tile_rows, vectors = node->attributes.tile_vectors;
    bool legal = rows == 0 ? vectors == 0
                           : rows > 0 && vectors > 0 && rows <= MOST_SUMS && vectors <= MOST_SUMS &&
                                 rows * vectors <= MOST_SUMS;
    return legal ||
           node_error(diag, node, "a register tile has 1 to %d sums, not %" PRId64 " by %" PRId64,
                      MOST_SUMS, rows, vectors);
}

static bool verify_attributes(Diag *diag, const Node *node)
{
    unsigned has = op_info[node->op].attributes;
    const Attributes *attributes = &node->attributes;
    if (has & ATTR_NAME && !consists_of(attributes->name, LETTERS DIGITS "_."))
        return node_error(diag, node, "a name is made of letters, digits, _ and .");
    if (has & ATTR_STORED && !verify_stored(diag, node)) return false;
    if (has & ATTR_GROUPS && !verify_groups(diag, node)) return false;
    if (has & ATTR_WINDOWS && !verify_windows(diag, node)) return false;
    if (has & ATTR_OVER && !verify_over(diag, node)) return false;
    if (has & ATTR_OFFSET && !in_range(attributes->offset, 0))
        return node_error(diag, node, "offset %" PRId64 " is out of range", attributes->offset);
    if (has & ATTR_EPS && !(isfinite(attributes->eps) && attributes->eps > 0))
        return node_error(diag, node, "eps must be finite and greater than 0");
    if (has & ATTR_FACTOR && !(isfinite(attributes->factor) && attributes->factor != 0))
        return node_error(diag, node, "the factor must be finite and not 0");
    if (has & ATTR_TILE && !verify_tile(diag, node)) return false;
    if (has & ATTR_MAP && (attributes->map.rank < 0 || attributes->map.rank > MAX_AXES))
        return node_error(diag, node, "a map cannot have %d indices", attributes->map.rank);
    return true;
}

static bool verify_operand_count(Diag *diag, const Node *node)
{
    const OpInfo *info = &op_info[node->op];
    uint32_t least = (uint32_t)info->least_operands;
    uint32_t most = info->most_operands == MANY ? MOST_OPERANDS : (uint32_t)info->most_operands;
    if (node->operand_count >= least && node->operand_count <= most) return true;
    const char *range = least == most
                            ? arena_printf(diag->arena, "%" PRIu32, least)
                            : arena_printf(diag->arena, "%" PRIu32 " to %" PRIu32, least, most);
    return node_error(diag, node, "the number of operands is %" PRIu32 ", not %s",
                      node->operand_count, range);
}

static bool verify_node(const Graph *graph, NodeId id, Diag *diag)
{
    const Node *node = &graph->nodes[id];
    if ((unsigned)node->op >= OP_COUNT)
        return diag_error(diag, node->loc, "there is no op number %d", node->op);
    if (node->kernel != NO_KERNEL &&
        (node->kernel < 0 || (uint32_t)node->kernel >= graph->kernel_count))
        return node_error(diag, node, "there is no kernel number %d", node->kernel);
    if (!verify_operand_count(diag, node)) return false;
    for (uint32_t i = 0; i < node->operand_count; i++)
        if (node->operands[i] >= id)
            return node_error(diag, node, "operand %" PRIu32 " does not come before it", i + 1);
    return verify_type(diag, node) && verify_layout(diag, node) && verify_attributes(diag, node);
}

/* ---- each node with its operands ------------------------------------------------------------- */

static bool can_compute(DType dtype)
{
    return dtype == DTYPE_F32 || dtype == DTYPE_BF16;
}

static bool verify_dtypes(const Graph *graph, NodeId id, Diag *diag)
{
    const Node *node = graph_node(graph, id);
    DType dtype = node->type.dtype;
    if (node->operand_count > 0 && !can_compute(dtype))
        return node_error(diag, node, "computes in f32 or bf16, not %s", dtype_names[dtype]);
    for (uint32_t i = 0; i < node->operand_count; i++) {
        DType other = graph_type(graph, node->operands[i])->dtype;
        if (other != dtype)
            return node_error(diag, node, "operand %" PRIu32 " is %s, but the result %s", i + 1,
                              dtype_names[other], dtype_names[dtype]);
    }
    return true;
}

/* What is outside a kernel meets what is inside in reads and writes only. Why `node` cannot use
 * `operand`, or NULL. */
static const char *misuse(const Node *node, const Node *operand)
{
    bool reads = node->op == OP_READ, stored = operand->op == OP_WRITE;
    if (node->kernel != NO_KERNEL && operand->kernel == node->kernel) {
        if (stored) return "is stored only when its kernel is done";
        return reads && operand->op != OP_READ ? "is computed in this kernel: it cannot be read"
                                               : NULL;
    }
    if (operand->kernel != NO_KERNEL && !stored) return "is inside a kernel and not stored";
    return node->kernel != NO_KERNEL && !reads ? "is outside of this kernel: it must be read"
                                               : NULL;
}

static bool verify_place(const Graph *graph, NodeId id, Diag *diag)
{
    const Node *node = graph_node(graph, id);
    const OpInfo *info = &op_info[node->op];
    bool boundary = node->op == OP_READ || node->op == OP_WRITE;
    bool outside_only = info->attributes & ATTR_NAME || (info->mixes == MIX_ALL && !boundary);
    if (outside_only && node->kernel != NO_KERNEL)
        return node_error(diag, node, "stands outside of kernels only");
    for (uint32_t i = 0; i < node->operand_count; i++) {
        const Node *operand = graph_node(graph, node->operands[i]);
        const char *why = misuse(node, operand);
        if (why)
            return node_error(diag, node, "operand %" PRIu32 ", the result of %s, %s", i + 1,
                              op_info[operand->op].name, why);
    }
    return true;
}

/* ---- kernels --------------------------------------------------------------------------------- */

/* Along an axis of the kernel every value is computed point by point; what is read may have another
 * extent there, for a resampling, which reads the few points that it needs. */
static bool verify_along(const Graph *graph, const Node *node, const Axis *axis, Diag *diag)
{
    if (node->op == OP_READ) return true;
    const Node *x = graph_node(graph, node->operands[0]);
    const Type *inside = node->op == OP_WRITE ? &x->type : &node->type;
    int at = type_find(inside, axis->name);
    if (at < 0 && node->op == OP_WRITE)
        return node_error(diag, node, "what is written lacks the kernel's axis '%s'", axis->name);
    if (at >= 0 && !axis_same_extent(&inside->axis[at], axis))
        return node_error(diag, node, "'%s' and the kernel's axis '%s' differ in extent",
                          axis->name, axis->name);
    Mix mixes = op_info[node->op].mixes;
    bool whole = mixes == MIX_OVER || (mixes == MIX_TAPS && x->op != OP_READ);
    return !whole || !names_contain(&node->attributes.over, axis->name) ||
           node_error(diag, node, "mixes values along '%s', an axis of its kernel", axis->name);
}

/* Is the value used by one write alone, row-major, in its kernel, which ends before `end`? */
static bool is_only_written(const Graph *graph, NodeId id, NodeId end)
{
    int writes = 0;
    for (NodeId user = id + 1; user < end; user++) {
        const Node *node = graph_node(graph, user);
        for (uint32_t i = 0; i < node->operand_count; i++) {
            if (node->operands[i] != id) continue;
            if (node->op != OP_WRITE || node->layout.rank > 0) return false;
            writes++;
        }
    }
    return writes == 1;
}

/* Along the axis that each unit walks every value is computed point by point, or summed to a result. */
static bool verify_step(const Graph *graph, NodeId id, NodeId end, const Kernel *kernel, Diag *diag)
{
    const Node *node = graph_node(graph, id);
    int at = type_find(&node->type, kernel->walk);
    if (node->op == OP_WRITE) return true;
    if (at >= 0 &&
        (node->type.axis[at].symbol[0] || node->type.axis[at].extent % kernel->step != 0))
        return node_error(diag, node,
                          "steps of %" PRId64
                          " do not divide the extent of '%s', which its kernel walks",
                          kernel->step, kernel->walk);
    bool mixes = op_info[node->op].mixes != MIX_NONE && node->op != OP_READ &&
                 names_contain(&node->attributes.over, kernel->walk);
    if (mixes && node->op != OP_LINEAR)
        return node_error(diag, node,
                          "mixes values along '%s', which its kernel walks: only a linear may",
                          kernel->walk);
    return !mixes || is_only_written(graph, id, end) ||
           node_error(diag, node,
                      "sums over '%s', which its kernel walks: then one write, not packed, and "
                      "nothing else takes the result",
                      kernel->walk);
}

static void verify_walk(const Graph *graph, NodeId first, NodeId end, Diag *diag)
{
    const Kernel *kernel = &graph->kernels[graph->nodes[first].kernel];
    bool any = false;
    if (!is_axis_name(kernel->walk, strnlen(kernel->walk, NAME_SIZE)) ||
        !in_range(kernel->step, 1) || kernel_find(kernel, kernel->walk) >= 0) {
        diag_error(
            diag, graph->nodes[first].loc,
            "a kernel walks an axis that is none of its own, by 1 index or more at a time, not "
            "'%.*s' by %" PRId64,
            NAME_SIZE - 1, kernel->walk, kernel->step);
        return;
    }
    for (NodeId id = first; id < end; id++) {
        if (!verify_step(graph, id, end, kernel, diag)) return;
        const Node *node = graph_node(graph, id);
        any |= node->op == OP_WRITE &&
               type_find(graph_type(graph, node->operands[0]), kernel->walk) >= 0;
    }
    if (!any)
        diag_error(diag, graph->nodes[first].loc,
                   "no value that the kernel writes has the axis that it walks, '%s'",
                   kernel->walk);
}

static void verify_kernel(const Graph *graph, NodeId first, NodeId end, Diag *diag)
{
    const Node *node = &graph->nodes[first];
    const Kernel *kernel = &graph->kernels[node->kernel];
    if (kernel->rank < 0 || kernel->rank > MAX_AXES) {
        diag_error(diag, node->loc, "a kernel cannot have %d axes", kernel->rank);
        return;
    }
    if (!verify_axes(diag, node, kernel->axis, kernel->rank)) return;
    for (int i = 0; i < kernel->rank; i++) {
        const Axis *axis = &kernel->axis[i];
        if (!in_range(kernel->tile[i], 1) || (axis->symbol[0] && kernel->tile[i] != 1))
            diag_error(diag, node->loc, "the kernel's axis '%s' cannot have tile %" PRId64,
                       axis->name, kernel->tile[i]);
    }
    if (!in_range(kernel->block, 0) || !in_range(kernel->part, 0))
        diag_error(diag, node->loc, "a kernel cannot have block %" PRId64 " and part %" PRId64,
                   kernel->block, kernel->part);
    bool writes = false;
    for (NodeId id = first; id < end; id++) {
        node = &graph->nodes[id];
        writes |= node->op == OP_WRITE;
        for (int i = 0; i < kernel->rank; i++)
            if (!verify_along(graph, node, &kernel->axis[i], diag)) break;
    }
    if (!writes) diag_error(diag, graph->nodes[first].loc, "the kernel writes nothing");
    if (kernel->walk[0] || kernel->step) verify_walk(graph, first, end, diag);
}

/* The nodes of each kernel are consecutive, and there are some. */
static void verify_kernels(const Graph *graph, Diag *diag)
{
    bool *seen = arena_array(diag->arena, graph->kernel_count, sizeof *seen);
    for (NodeId first = 0, end; first < graph->node_count; first = end) {
        int kernel = graph->nodes[first].kernel;
        for (end = first + 1; end < graph->node_count && graph->nodes[end].kernel == kernel;) end++;
        if (kernel == NO_KERNEL) continue;
        if (seen[kernel])
            node_error(diag, &graph->nodes[first], "its kernel is in two pieces");
        else
            verify_kernel(graph, first, end, diag);
        seen[kernel] = true;
    }
    for (uint32_t i = 0; i < graph->kernel_count; i++)
        if (!seen[i]) diag_error(diag, place_of(graph), "kernel %" PRIu32 " has no nodes", i);
}

/* ---- names and outputs ----------------------------------------------------------------------- */

typedef struct NamedNode {
    const char *entry, *name;
    NodeId id;
} NamedNode;

static int compare_names(const void *left, const void *right)
{
    const NamedNode *a = left, *b = right;
    int order = strcmp(a->entry, b->entry);
    if (order == 0) order = strcmp(a->name, b->name);
    return order ? order : (a->id > b->id) - (a->id < b->id);
}

/* Sorts `named`; an error at the second of two equal names. Returns the number of entries. */
static uint32_t verify_unique(const Graph *graph, NamedNode *named, uint32_t count, Diag *diag)
{
    uint32_t entries = count > 0;
    qsort(named, count, sizeof *named, compare_names);
    for (uint32_t i = 1; i < count; i++) {
        if (strcmp(named[i - 1].entry, named[i].entry) != 0)
            entries++;
        else if (strcmp(named[i - 1].name, named[i].name) == 0)
            diag_error(diag, graph_node(graph, named[i].id)->loc, "'%s%s%s' is defined twice",
                       named[i].entry, named[i].entry[0] ? "." : "", named[i].name);
    }
    return entries;
}

static void verify_declared_names(const Graph *graph, Diag *diag)
{
    NamedNode *named = arena_array(diag->arena, graph->node_count, sizeof *named);
    uint32_t count = 0;
    for (NodeId id = 0; id < graph->node_count; id++)
        if (op_info[graph->nodes[id].op].attributes & ATTR_NAME)
            named[count++] = (NamedNode){"", graph->nodes[id].attributes.name, id};
    verify_unique(graph, named, count, diag);
}

static bool verify_output(const Graph *graph, const Output *output, Diag *diag)
{
    if (output->value >= graph->node_count)
        return diag_error(diag, place_of(graph),
                          "an output is value %" PRIu32 ", which does not exist", output->value);
    const Node *node = graph_node(graph, output->value);
    if (!consists_of(output->entry, LOWER) || !consists_of(output->name, LETTERS DIGITS "_."))
        return diag_error(
            diag, node->loc,
            "output '%s.%s': an entry is made of a to z, a name of letters, digits, _ and .",
            output->entry, output->name);
    if (node->kernel != NO_KERNEL && node->op != OP_WRITE)
        return node_error(diag, node, "is inside a kernel and cannot be output '%s.%s'",
                          output->entry, output->name);
    return can_compute(node->type.dtype) ||
           node_error(diag, node, "output '%s.%s' must be f32 or bf16, not %s", output->entry,
                      output->name, dtype_names[node->type.dtype]);
}

static void verify_outputs(const Graph *graph, Diag *diag)
{
    NamedNode *named = arena_array(diag->arena, graph->output_count, sizeof *named);
    if (graph->output_count == 0) diag_error(diag, place_of(graph), "the graph has no output");
    for (uint32_t i = 0; i < graph->output_count; i++) {
        const Output *output = &graph->outputs[i];
        if (!verify_output(graph, output, diag)) return;
        named[i] = (NamedNode){output->entry, output->name, output->value};
    }
    if (verify_unique(graph, named, graph->output_count, diag) > MOST_ENTRIES)
        diag_error(diag, graph_node(graph, named[0].id)->loc,
                   "the outputs have more than %d entries", MOST_ENTRIES);
}

/* ---- all ------------------------------------------------------------------------------------- */

bool graph_verify(const Graph *graph, Diag *diag)
{
    uint32_t before = diag->errors;
    if (!consists_of(graph->name, LETTERS DIGITS "_") || strchr(DIGITS, graph->name[0]))
        diag_error(diag, place_of(graph),
                   "the name of a graph is letters, digits and _, first no digit");
    if (graph->node_count > MAX_NODES)
        diag_error(diag, place_of(graph), "a graph has at most %d nodes", MAX_NODES);
    for (NodeId id = 0; id < graph->node_count; id++) verify_node(graph, id, diag);
    if (diag->errors > before) return false;

    for (NodeId id = 0; id < graph->node_count; id++)
        if (verify_dtypes(graph, id, diag) && verify_place(graph, id, diag))
            op_check[graph->nodes[id].op](graph, id, diag);
    if (diag->errors > before) return false;

    verify_kernels(graph, diag);
    verify_declared_names(graph, diag);
    verify_outputs(graph, diag);
    return diag->errors == before;
}
