/* check.c: do the types of an op's operands and of its result fit? What the shape rules share, and
 * those of the ops that move elements; the others are in check_arithmetic.c.
 *
 * verify.c has seen to everything else before it calls these: types and attributes are each legal
 * in themselves, every operand and the result have the same dtype. */
#include "ir/private.h"

#include <inttypes.h>
#include <string.h>

/* An index may leave its tensor (and reads 0 there), but no address it leads to may overflow. */
static const int64_t MOST_REACH = INT64_C(1) << 62;

CheckFunction *const op_check[OP_COUNT] = {
#define OP(NAME, ...) [OP_##NAME] = check_##NAME,
#include "ir/op.def"
#undef OP
};

/* ---- what the rules have in common ----------------------------------------------------------- */

bool node_error(Diag *diag, const Node *node, const char *format, ...)
{
    Text text = text_new(diag->arena);
    text_printf(&text, "%s: ", op_info[node->op].name);
    va_list args;
    va_start(args, format);
    text_vprintf(&text, format, args);
    va_end(args);
    return diag_error(diag, node->loc, "%s", text.data);
}

int64_t digits_product(int count, const int64_t *weight, const int64_t *extent)
{
    int64_t product = 1;
    int left = 0;
    for (int i = 0; i < count; i++) left += extent[i] != 1;
    for (bool found = true; found; left -= found) {
        found = false;
        for (int i = 0; i < count && !found; i++) {
            found = extent[i] > 1 && weight[i] == product;
            if (found) product *= extent[i];
        }
    }
    return left == 0 ? product : 0;
}

const char *shown_type(Diag *diag, const Type *type)
{
    Text text = text_new(diag->arena);
    type_print(type, &text);
    return text.data;
}

static const char *extent_text(Diag *diag, const Axis *axis)
{
    if (axis->symbol[0]) return axis->symbol;
    return arena_printf(diag->arena, "%" PRId64, axis->extent);
}

static bool is_constant(const Axis *axis)
{
    return axis->symbol[0] == '\0';
}

bool expect_result(Diag *diag, const Node *node, const Type *expected)
{
    if (type_equal(&node->type, expected)) return true;
    return node_error(diag, node, "the result is %s, but is declared %s",
                      shown_type(diag, expected), shown_type(diag, &node->type));
}

bool expect_result_of_operand(const Graph *graph, NodeId id, Diag *diag)
{
    const Node *node = graph_node(graph, id);
    return expect_result(diag, node, graph_type(graph, node->operands[0]));
}

/* `whose` says in the message whose type it is: "operand 1", "the result". */
static bool find_axis(Diag *diag, const Node *node, const char *whose, const Type *type,
                      const char *name, int *axis)
{
    *axis = type_find(type, name);
    if (*axis >= 0) return true;
    return node_error(diag, node, "%s, %s, has no axis '%s'", whose, shown_type(diag, type), name);
}

bool has_axes(Diag *diag, const Node *node, const char *whose, const Type *type,
              const AxisNames *names)
{
    int axis = -1;
    for (int i = 0; i < names->count; i++)
        if (!find_axis(diag, node, whose, type, names->name[i], &axis)) return false;
    return true;
}

/* Of the first operand. */
bool find_constant_axis(Diag *diag, const Node *node, const Type *x, const char *name, int *axis)
{
    if (!find_axis(diag, node, "operand 1", x, name, axis)) return false;
    if (is_constant(&x->axis[*axis])) return true;
    return node_error(diag, node, "the extent of '%s' must be a constant", name);
}

/* Axes of the same name in both have the same extent. */
bool extents_agree(Diag *diag, const Node *node, const Type *a, const Type *b)
{
    for (int i = 0; i < b->rank; i++) {
        int at = type_find(a, b->axis[i].name);
        if (at >= 0 && !axis_same_extent(&a->axis[at], &b->axis[i]))
            return node_error(diag, node, "axis '%s' is %s in %s, but %s in %s", b->axis[i].name,
                              extent_text(diag, &a->axis[at]), shown_type(diag, a),
                              extent_text(diag, &b->axis[i]), shown_type(diag, b));
    }
    return true;
}

/* Every axis of operand `number` is one of `whole`: it is broadcast along the others. */
bool is_part_of(const Graph *graph, const Node *node, int number, const Type *whole, Diag *diag)
{
    const Type *part = graph_type(graph, node->operands[number]);
    for (int i = 0; i < part->rank; i++)
        if (type_find(whole, part->axis[i].name) < 0)
            return node_error(diag, node, "axis '%s' of operand %d is not in %s",
                              part->axis[i].name, number + 1, shown_type(diag, whole));
    return extents_agree(diag, node, whole, part);
}

/* The one axis in `over`, of the first operand. */
static bool find_only_axis(Diag *diag, const Node *node, const Type *x, int *axis)
{
    const AxisNames *over = &node->attributes.over;
    if (over->count != 1)
        return node_error(diag, node, "over must name one axis, not %d", over->count);
    return find_constant_axis(diag, node, x, over->name[0], axis);
}

/* `expected`, with the extent of one axis as the result declares it, if it does. */
void take_declared_extent(Type *expected, int axis, const Type *declared)
{
    if (axis < declared->rank && is_constant(&declared->axis[axis]))
        expected->axis[axis].extent = declared->axis[axis].extent;
}

bool append_made_axis(Diag *diag, const Node *node, Type *type, const Axis *axis)
{
    if (type_find(type, axis->name) >= 0)
        return node_error(diag, node, "the result would have two axes '%s'", axis->name);
    if (type->rank == MAX_AXES)
        return node_error(diag, node, "the result would have more than %d axes", MAX_AXES);
    type_append(type, axis);
    return true;
}

/* ---- declarations ---------------------------------------------------------------------------- */

bool check_INPUT(const Graph *graph, NodeId id, Diag *diag)
{
    (void)graph, (void)id, (void)diag; /* any legal type will do */
    return true;
}

bool check_PARAM(const Graph *graph, NodeId id, Diag *diag)
{
    const Node *node = graph_node(graph, id);
    const Type *type = &node->type;
    int axis = 0;
    for (int i = 0; i < type->rank; i++)
        if (!is_constant(&type->axis[i]))
            return node_error(diag, node, "the extent of '%s' must be a constant",
                              type->axis[i].name);
    for (int i = 0; i < node->attributes.stored_rank; i++) {
        int64_t product = 1;
        while (product < node->attributes.stored[i] && axis < type->rank)
            product *= type->axis[axis++].extent;
        if (product != node->attributes.stored[i])
            return node_error(diag, node,
                              "stored extent %" PRId64 " is no product of axes of %s, in order",
                              node->attributes.stored[i], shown_type(diag, type));
    }
    for (; axis < type->rank; axis++)
        if (type->axis[axis].extent != 1)
            return node_error(diag, node, "axis '%s' is beyond what is stored",
                              type->axis[axis].name);
    return true;
}

/* ---- rearrange and unfold -------------------------------------------------------------------- */

/* Adds `names` to `all`, in which each may stand once. */
static bool gather(Diag *diag, const Node *node, const AxisNames *names, AxisNames *all)
{
    for (int i = 0; i < names->count; i++) {
        if (names_contain(all, names->name[i]))
            return node_error(diag, node, "axis '%s' is named twice", names->name[i]);
        memcpy(all->name[all->count++], names->name[i], NAME_SIZE);
    }
    return true;
}

/* Product of the extents of some axes of a type, 0 where one of them is a symbol. */
static int64_t product_of(const Type *type, const AxisNames *names)
{
    int64_t product = 1;
    for (int i = 0; i < names->count; i++)
        product *= type->axis[type_find(type, names->name[i])].extent;
    return product;
}

/* One axis is split, or several are merged; a name that the operand has already is taken over
 * within its group only. */
static bool group_fits(Diag *diag, const Node *node, const Type *x, const Group *group)
{
    if (group->from.count > 1 && group->to.count > 1)
        return node_error(diag, node, "one side of each group must be a single axis");
    for (int i = 0; i < group->to.count; i++) {
        const char *name = group->to.name[i];
        if (type_find(x, name) >= 0 && !names_contain(&group->from, name))
            return node_error(diag, node, "the operand has an axis '%s' already", name);
    }
    int64_t from = product_of(x, &group->from), to = product_of(&node->type, &group->to);
    if (from == to && from > 0) return true;
    if (from > 0 && to > 0)
        return node_error(
            diag, node, "a group of %" PRId64 " elements cannot become one of %" PRId64, from, to);
    bool renames = group->from.count == 1 && group->to.count == 1 &&
                   axis_same_extent(&x->axis[type_find(x, group->from.name[0])],
                                    &node->type.axis[type_find(&node->type, group->to.name[0])]);
    return renames ||
           node_error(diag, node, "an axis whose extent is a symbol can only be renamed");
}

bool check_REARRANGE(const Graph *graph, NodeId id, Diag *diag)
{
    const Node *node = graph_node(graph, id);
    const Type *x = graph_type(graph, node->operands[0]), *result = &node->type;
    AxisNames from = {0}, to = {0};
    int split = x->rank;
    for (int i = 0; i < node->attributes.group_count; i++) {
        const Group *group = &node->attributes.groups[i];
        if (!has_axes(diag, node, "operand 1", x, &group->from) ||
            !has_axes(diag, node, "the result", result, &group->to) ||
            !gather(diag, node, &group->from, &from) || !gather(diag, node, &group->to, &to) ||
            !group_fits(diag, node, x, group))
            return false;
        if (group->from.count == 1) split += group->to.count - 1;
    }
    if (split > MAX_AXES)
        return node_error(diag, node, "there are %d axes when all splits are made, more than %d",
                          split, MAX_AXES);
    for (int i = 0; i < x->rank; i++) {
        const Axis *axis = &x->axis[i];
        if (names_contain(&from, axis->name)) continue;
        int at = type_find(result, axis->name);
        if (at < 0 || !axis_same_extent(axis, &result->axis[at]))
            return node_error(diag, node, "axis '%s' is in no group, so it must stay as it is",
                              axis->name);
    }
    for (int i = 0; i < result->rank; i++) {
        const char *name = result->axis[i].name;
        if (!names_contain(&to, name) && (type_find(x, name) < 0 || names_contain(&from, name)))
            return node_error(diag, node, "axis '%s' of the result comes from no group", name);
    }
    return true;
}

/* Appends the two axes that a window over axis `from` makes. */
static bool apply_window(Diag *diag, const Node *node, const Window *window, const Axis *from,
                         Type *type)
{
    int64_t padded = from->extent + 2 * window->pad;
    if (window->kernel > padded)
        return node_error(diag, node,
                          "a window of %" PRId64 " does not fit axis '%s', with padding %" PRId64,
                          window->kernel, from->name, padded);
    Axis outer = axis_constant(window->outer, (padded - window->kernel) / window->stride + 1);
    Axis inner = axis_constant(window->inner, window->kernel);
    return append_made_axis(diag, node, type, &outer) && append_made_axis(diag, node, type, &inner);
}

static bool same_axes_in_any_order(const Type *a, const Type *b)
{
    bool same = a->rank == b->rank;
    for (int i = 0; same && i < a->rank; i++) {
        int at = type_find(b, a->axis[i].name);
        same = at >= 0 && axis_same_extent(&a->axis[i], &b->axis[at]);
    }
    return same;
}

bool check_UNFOLD(const Graph *graph, NodeId id, Diag *diag)
{
    const Node *node = graph_node(graph, id);
    const Type *x = graph_type(graph, node->operands[0]);
    const Window *windows = node->attributes.windows;
    int count = node->attributes.window_count, axis[MAX_AXES];
    AxisNames from = {0};
    for (int i = 0; i < count; i++) {
        AxisNames one = {.count = 1};
        memcpy(one.name[0], windows[i].from, NAME_SIZE);
        if (!find_constant_axis(diag, node, x, windows[i].from, &axis[i]) ||
            !gather(diag, node, &one, &from))
            return false;
    }
    Type expected = type_without(x, &from);
    for (int i = 0; i < count; i++)
        if (!apply_window(diag, node, &windows[i], &x->axis[axis[i]], &expected)) return false;
    if (same_axes_in_any_order(&expected, &node->type)) return true;
    return node_error(diag, node, "the result has the axes of %s in some order, but is declared %s",
                      shown_type(diag, &expected), shown_type(diag, &node->type));
}

/* ---- slice and concat ------------------------------------------------------------------------ */

bool check_SLICE(const Graph *graph, NodeId id, Diag *diag)
{
    const Node *node = graph_node(graph, id);
    const Type *x = graph_type(graph, node->operands[0]);
    Type expected = *x;
    int axis = -1;
    if (!find_only_axis(diag, node, x, &axis)) return false;
    take_declared_extent(&expected, axis, &node->type);
    if (!expect_result(diag, node, &expected)) return false;
    if (node->attributes.offset <= x->axis[axis].extent - expected.axis[axis].extent) return true;
    return node_error(diag, node,
                      "%" PRId64 " elements from %" PRId64 " on are not in axis '%s', %" PRId64,
                      expected.axis[axis].extent, node->attributes.offset, x->axis[axis].name,
                      x->axis[axis].extent);
}

bool check_CONCAT(const Graph *graph, NodeId id, Diag *diag)
{
    const Node *node = graph_node(graph, id);
    Type expected = *graph_type(graph, node->operands[0]);
    int axis = -1;
    if (!find_only_axis(diag, node, &expected, &axis)) return false;
    for (uint32_t i = 1; i < node->operand_count; i++) {
        const Type *x = graph_type(graph, node->operands[i]);
        Type alike = expected;
        take_declared_extent(&alike, axis, x);
        if (!type_equal(x, &alike))
            return node_error(
                diag, node, "operand %" PRIu32 ", %s, and operand 1, %s, must differ in '%s' only",
                i + 1, shown_type(diag, x), shown_type(diag, graph_type(graph, node->operands[0])),
                node->attributes.over.name[0]);
        expected.axis[axis].extent += x->axis[axis].extent;
    }
    return expect_result(diag, node, &expected);
}

/* ---- read and write -------------------------------------------------------------------------- */

/* A symbolic axis is only read or written whole; a constant one never along a symbolic one. */
static bool symbols_fit(Diag *diag, const Node *node, const Index *index, const Type *space,
                        const Axis *target)
{
    int used = 0, last = 0;
    for (int i = 0; i < space->rank; i++) {
        if (index->coefficient[i] == 0) continue;
        used++;
        last = i;
        if (is_constant(target) && !is_constant(&space->axis[i]))
            return node_error(diag, node,
                              "axis '%s' has a constant extent, its index cannot use '%s'",
                              target->name, space->axis[i].name);
    }
    bool plain = used == 1 && index->coefficient[last] == 1 && index->offset == 0;
    if (is_constant(target) || (plain && axis_same_extent(&space->axis[last], target))) return true;
    return node_error(diag, node, "the index of '%s' must be just an axis of extent %s",
                      target->name, target->symbol);
}

/* |offset| + sum of |coefficient| * extent, or INT64_MAX. */
static int64_t index_reach(const Index *index, const Type *space)
{
    uint64_t sum = index->offset < 0 ? 0 - (uint64_t)index->offset : (uint64_t)index->offset;
    for (int i = 0; i < space->rank; i++) {
        int64_t c = index->coefficient[i];
        uint64_t extent = is_constant(&space->axis[i]) ? (uint64_t)space->axis[i].extent : 1;
        uint64_t term;
        if (__builtin_mul_overflow(c < 0 ? 0 - (uint64_t)c : (uint64_t)c, extent, &term) ||
            __builtin_add_overflow(sum, term, &sum))
            return INT64_MAX;
    }
    return sum > INT64_MAX ? INT64_MAX : (int64_t)sum;
}

/* The rules that reads and writes share: one index over `space` for each axis of `target`. */
static bool map_fits(Diag *diag, const Node *node, const Type *space, const Type *target)
{
    const Map *map = &node->attributes.map;
    if (map->rank != target->rank)
        return node_error(diag, node, "the map has %d indices for the %d axes of %s", map->rank,
                          target->rank, shown_type(diag, target));
    for (int i = 0; i < target->rank; i++) {
        const Index *index = &map->dim[i];
        for (int k = space->rank; k < MAX_AXES; k++)
            if (index->coefficient[k] != 0)
                return node_error(diag, node, "the map uses an axis that %s lacks",
                                  shown_type(diag, space));
        if (!symbols_fit(diag, node, index, space, &target->axis[i])) return false;
        int64_t address;
        if (__builtin_mul_overflow(index_reach(index, space), type_elements(target, NULL),
                                   &address) ||
            address > MOST_REACH)
            return node_error(diag, node, "the index of '%s' gets too large", target->axis[i].name);
    }
    return true;
}

bool check_READ(const Graph *graph, NodeId id, Diag *diag)
{
    const Node *node = graph_node(graph, id);
    return map_fits(diag, node, &node->type, graph_type(graph, node->operands[0]));
}

/* Does the index run through 0 .. extent - 1, each value once? */
static bool counts_once(const Index *index, const Type *space, int64_t extent)
{
    int64_t weight[MAX_AXES], extents[MAX_AXES];
    int count = 0;
    for (int i = 0; i < space->rank; i++) {
        if (index->coefficient[i] == 0) continue;
        weight[count] = index->coefficient[i];
        extents[count++] = space->axis[i].extent;
    }
    return index->offset == 0 && digits_product(count, weight, extents) == extent;
}

bool check_WRITE(const Graph *graph, NodeId id, Diag *diag)
{
    const Node *node = graph_node(graph, id);
    const Map *map = &node->attributes.map;
    const Type *x = graph_type(graph, node->operands[0]), *result = &node->type;
    if (!map_fits(diag, node, x, result)) return false;
    for (int i = 0; i < x->rank; i++) {
        int uses = 0;
        for (int k = 0; k < map->rank; k++) uses += map->dim[k].coefficient[i] != 0;
        if (uses != 1 && x->axis[i].extent != 1)
            return node_error(diag, node, "the map uses axis '%s' %d times, not once",
                              x->axis[i].name, uses);
    }
    for (int i = 0; i < result->rank; i++)
        if (is_constant(&result->axis[i]) && !counts_once(&map->dim[i], x, result->axis[i].extent))
            return node_error(diag, node,
                              "the index of '%s' must take each value from 0 to %" PRId64 " once",
                              result->axis[i].name, result->axis[i].extent - 1);
    return true;
}

bool check_PACK(const Graph *graph, NodeId id, Diag *diag)
{
    return expect_result_of_operand(graph, id, diag);
}
