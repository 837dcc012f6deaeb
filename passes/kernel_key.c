/* kernel_key.c: when two kernels can share one function, and by which name results of tuning go: all
 * that the code of a kernel depends on, as text, with values from outside by the number of the
 * argument, and axes by the order in which they are named.
 *
 * In a square image the MLPs along both axes are the same function but for where rows and columns lie in
 * memory: so there is a key without these strides, too.
 */
#include "passes/pass.h"

#include <string.h>

/* Arguments as the steps of a plan have them: what is read in order of first use, then the writes. */
typedef struct Arguments {
    NodeId *value;
    int count;
} Arguments;

typedef struct Key {
    Arena *arena;
    const Graph *graph;
    NodeId first, end;
    Arguments arguments;
    const char **name; /* of each axis, in the order in which they are named */
    uint32_t name_count, name_capacity;
    bool choices;
    KernelStrides *strides; /* NULL: they belong to the key */
    Text text;
} Key;

/* ---- axes ------------------------------------------------------------------------------------ */

static int number_of(Key *key, const char *name)
{
    for (uint32_t i = 0; i < key->name_count; i++)
        if (strcmp(key->name[i], name) == 0) return (int)i;
    *ARENA_PUSH(key->arena, key->name, key->name_count, key->name_capacity) = name;
    return (int)key->name_count - 1;
}

/* The axes of the type in the order of their numbers. */
static void sort_axes(Key *key, const Type *type, int order[MAX_AXES])
{
    for (int i = 0; i < type->rank; i++) {
        int number = number_of(key, type->axis[i].name), at = i;
        for (; at > 0 && number_of(key, type->axis[order[at - 1]].name) > number; at--)
            order[at] = order[at - 1];
        order[at] = i;
    }
}

static void print_type(Key *key, const Type *type, bool sorted)
{
    int order[MAX_AXES];
    sort_axes(key, type, order);
    text_printf(&key->text, "%d", type->dtype);
    for (int i = 0; i < type->rank; i++) {
        const Axis *axis = &type->axis[sorted ? order[i] : i];
        text_printf(&key->text, " %d:%s%lld", number_of(key, axis->name), axis->symbol,
                    (long long)axis->extent);
    }
}

/* ---- arguments ------------------------------------------------------------------------------- */

static int argument_of(const Arguments *arguments, NodeId value)
{
    int i = 0;
    while (i < arguments->count && arguments->value[i] != value) i++;
    return i;
}

static bool is_outside(const Key *key, NodeId id)
{
    return id < key->first || id >= key->end;
}

static void list_arguments(Key *key)
{
    Arguments *a = &key->arguments;
    a->value = arena_array(key->arena, 2 * (size_t)(key->end - key->first), sizeof *a->value);
    for (NodeId id = key->first; id < key->end; id++) {
        const Node *node = graph_node(key->graph, id);
        if (node->op == OP_READ && is_outside(key, node->operands[0]) &&
            argument_of(a, node->operands[0]) == a->count)
            a->value[a->count++] = node->operands[0];
    }
    for (NodeId id = key->first; id < key->end; id++)
        if (graph_node(key->graph, id)->op == OP_WRITE) a->value[a->count++] = id;
}

static void print_argument(Key *key, NodeId value)
{
    const Layout *layout = &key->graph->nodes[value].layout;
    text_printf(&key->text, " $%d ", argument_of(&key->arguments, value));
    print_type(key, graph_type(key->graph, value), false);
    for (int d = 0; d < layout->rank; d++)
        text_printf(&key->text, " %d/%lld%%%lld", layout->dim[d].axis,
                    (long long)layout->dim[d].divisor, (long long)layout->dim[d].extent);
}

/* ---- strides --------------------------------------------------------------------------------- */

/* What a read or write takes, or puts, where. */
typedef struct Access {
    NodeId stored;
    const Type *space, *type; /* of the indices, and of what is stored */
    const Map *map;
} Access;

static Access access_of(const Graph *graph, NodeId id)
{
    const Node *node = graph_node(graph, id);
    const Type *operand = graph_type(graph, node->operands[0]);
    if (node->op == OP_WRITE) return (Access){id, operand, &node->type, &node->attributes.map};
    return (Access){node->operands[0], &node->type, operand, &node->attributes.map};
}

/* From one index along dimension d of what is stored to the next. */
static int64_t stride_of(const Type *type, int d)
{
    int64_t stride = 1;
    for (int i = d + 1; i < type->rank; i++) stride *= type->axis[i].extent;
    return stride;
}

/* The dimension that axis i of the indices alone makes; -1: there is none, or more goes there. */
static int own_dimension(const Access *access, int i)
{
    int found = -1;
    for (int d = 0; d < access->map->rank; d++) {
        const Index *index = &access->map->dim[d];
        if (index->coefficient[i] == 0) continue;
        if (found >= 0 || index->coefficient[i] != 1 || index->offset != 0) return -1;
        for (int k = 0; k < access->space->rank; k++)
            if (k != i && index->coefficient[k] != 0) return -1;
        found = d;
    }
    return found;
}

/* May another kernel have axis i in the place of another axis? Not where its elements lie side by side. */
static bool is_exchangeable(const Access *access, int i)
{
    int d = own_dimension(access, i);
    if (d < 0 || d == access->type->rank - 1 || access->space->axis[i].symbol[0]) return false;
    for (int k = 0; k < access->space->rank; k++)
        if (k != i && access->space->axis[k].extent == access->space->axis[i].extent) {
            int other = own_dimension(access, k);
            if (other >= 0 && other != access->type->rank - 1) return true;
        }
    return false;
}

/* Is the place of every element a sum of strides, some of which may be exchanged? */
static bool has_strides(const Graph *graph, const Access *access)
{
    bool any = false;
    if (graph_node(graph, access->stored)->layout.rank) return false;
    if (map_may_leave(access->map, access->space, access->type)) return false;
    for (int d = 1; d < access->type->rank; d++)
        if (access->type->axis[d].symbol[0]) return false;
    for (int i = 0; i < access->space->rank; i++) any |= is_exchangeable(access, i);
    return any;
}

/* How far apart the elements along axis i lie, and whether vectors may run along it (written_lane, memory_lane): beside a
 * dimension of one another axis may have the same stride, but a sum over it is taken in another order. */
static void print_stride(Key *key, const Access *access, int i)
{
    KernelStrides *strides = key->strides;
    if (is_exchangeable(access, i) && strides->count < MAX_STRIDES) {
        int d = own_dimension(access, i);
        strides->item[strides->count++] =
            (KernelStride){access->stored, d, stride_of(access->type, d)};
        text_put(&key->text, " ?");
        return;
    }
    int64_t stride = 0;
    for (int d = 0; d < access->map->rank; d++)
        stride += access->map->dim[d].coefficient[i] * stride_of(access->type, d);
    int innermost = access->map->rank - 1;
    bool vectors = innermost >= 0 && access->map->dim[innermost].coefficient[i] == 1;
    text_printf(&key->text, " %lld%s", (long long)stride, vectors ? " side by side" : "");
}

static void print_strides(Key *key, const Access *access)
{
    int order[MAX_AXES];
    sort_axes(key, access->space, order);
    int64_t offset = 0;
    for (int i = 0; i < access->space->rank; i++) print_stride(key, access, order[i]);
    for (int d = 0; d < access->map->rank; d++)
        offset += access->map->dim[d].offset * stride_of(access->type, d);
    text_printf(&key->text, " + %lld", (long long)offset);
}

/* ---- nodes ----------------------------------------------------------------------------------- */

static void print_map(Key *key, const Access *access)
{
    for (int d = 0; d < access->map->rank; d++) {
        const Index *index = &access->map->dim[d];
        text_printf(&key->text, "[%lld", (long long)index->offset);
        for (int i = 0; i < access->space->rank; i++)
            if (index->coefficient[i] != 0)
                text_printf(&key->text, " %d*%lld", number_of(key, access->space->axis[i].name),
                            (long long)index->coefficient[i]);
        text_put(&key->text, "]");
    }
}

static void print_access(Key *key, NodeId id)
{
    Access access = access_of(key->graph, id);
    bool outside = graph_node(key->graph, id)->op == OP_WRITE || is_outside(key, access.stored);
    if (key->strides && outside && has_strides(key->graph, &access)) {
        print_strides(key, &access);
        return;
    }
    if (outside) print_argument(key, access.stored);
    print_map(key, &access);
}

static void print_node(Key *key, NodeId id)
{
    const Node *node = graph_node(key->graph, id);
    const Attributes *attributes = &node->attributes;
    Text *text = &key->text;
    text_printf(text, "\n%s", op_info[node->op].name);
    for (uint32_t i = 0; i < node->operand_count; i++) {
        if (node->operands[i] >= key->first)
            text_printf(text, " %%%u", node->operands[i] - key->first);
        else
            text_printf(text, " $%d", argument_of(&key->arguments, node->operands[i]));
    }
    if (node->op == OP_WRITE) text_printf(text, " -> $%d", argument_of(&key->arguments, id));
    for (int i = 0; i < attributes->over.count; i++)
        text_printf(text, " %d", number_of(key, attributes->over.name[i]));
    text_printf(text, " %a %a ", attributes->eps, attributes->factor);
    if (key->choices && attributes->tile_rows)
        text_printf(text, "%lldx%lld ", (long long)attributes->tile_rows,
                    (long long)attributes->tile_vectors);
    if (node->op != OP_WRITE) print_type(key, &node->type, key->strides != NULL);
    if (op_info[node->op].attributes & ATTR_MAP) print_access(key, id);
}

static const char *make_key(Arena *arena, const Graph *graph, int k, bool choices,
                            KernelStrides *strides)
{
    const Kernel *kernel = &graph->kernels[k];
    Key key = {.arena = arena,
               .graph = graph,
               .choices = choices,
               .strides = strides,
               .text = text_new(arena)};
    kernel_range(graph, k, &key.first, &key.end);
    list_arguments(&key);
    for (int i = 0; i < kernel->rank; i++) {
        text_printf(&key.text, "%d %s%lld", number_of(&key, kernel->axis[i].name),
                    kernel->axis[i].symbol, (long long)kernel->axis[i].extent);
        if (choices) text_printf(&key.text, " %lld", (long long)kernel->tile[i]);
        text_put(&key.text, ";");
    }
    if (kernel->walk[0])
        text_printf(&key.text, "%d by %lld;", number_of(&key, kernel->walk),
                    (long long)kernel->step);
    if (choices)
        text_printf(&key.text, "%lld %lld;", (long long)kernel->block, (long long)kernel->part);
    for (NodeId id = key.first; id < key.end; id++) print_node(&key, id);
    return key.text.data;
}

const char *kernel_key(Arena *arena, const Graph *graph, int kernel, bool choices)
{
    return make_key(arena, graph, kernel, choices, NULL);
}

const char *kernel_key_strided(Arena *arena, const Graph *graph, int kernel, KernelStrides *strides)
{
    strides->count = 0;
    return make_key(arena, graph, kernel, true, strides);
}
