/* random_patterns.c: what single passes look for, or nearly. */
#include "tests/random_ops.h"

/* LayerNorm, product, GELU, product and sum; now and then with something of it used elsewhere. */
NodeId make_mlp(Maker *m)
{
    NodeId x = pick(m), normal = x;
    Type over = some_axes(m, type_of(m, x), 50, 2);
    if (over.rank == 0) return NO_NODE;
    AxisNames names = names_of(&over);
    if (chance(m, 80)) {
        shuffle(m, &over, 0);
        NodeId scale = new_weight(m, &over), shift = new_weight(m, &over);
        normal = build_layernorm(m->graph, x, scale, shift, names_text(m, &names), 1e-5, (Loc){0});
    }
    int64_t extent = new_extent(m);
    Axis hidden = axis_constant(fresh_name(m, type_of(m, x), NULL), extent);
    Type type = over, bias = {.dtype = DTYPE_F32};
    type_append(&type, &hidden);
    type_append(&bias, &hidden);
    shuffle(m, &type, 0);
    NodeId w = new_weight(m, &type), added = chance(m, 80) ? new_weight(m, &bias) : NO_NODE;
    NodeId k = build_linear(m->graph, normal, w, added, names_text(m, &names), (Loc){0});
    k = build_unary(m->graph, OP_GELU, k, (Loc){0});
    shuffle(m, &type, 0);
    NodeId y = build_linear(m->graph, k, new_weight(m, &type), NO_NODE, hidden.name, (Loc){0});
    if (!is_part(type_of(m, x), type_of(m, y))) return y;
    return chance(m, 50) ? build_binary(m->graph, OP_ADD, x, y, (Loc){0})
                         : build_binary(m->graph, OP_ADD, y, x, (Loc){0});
}

/* LayerNorm, mean, and point-wise ops or a product after it. */
NodeId make_head(Maker *m)
{
    NodeId x = pick(m);
    Type over = some_axes(m, type_of(m, x), 50, 2), mean = some_axes(m, type_of(m, x), 60, 3);
    AxisNames names = names_of(&over), averaged = names_of(&mean);
    if (over.rank == 0 || mean.rank == 0) return NO_NODE;
    NodeId scale = new_weight(m, &over), shift = new_weight(m, &over);
    NodeId y = build_layernorm(m->graph, x, scale, shift, names_text(m, &names), 1e-5, (Loc){0});
    y = build_reduction(m->graph, OP_MEAN, y, names_text(m, &averaged), (Loc){0});
    if (chance(m, 50)) y = build_binary(m->graph, OP_MUL, y, pick_part(m, type_of(m, y)), (Loc){0});
    Type left = some_axes(m, type_of(m, y), 60, 2);
    if (left.rank == 0) return y;
    Type type = left;
    append_axes(m, &type, 1, type_of(m, y));
    shuffle(m, &type, 0);
    names = names_of(&left);
    return build_linear(m->graph, y, new_weight(m, &type), NO_NODE, names_text(m, &names),
                        (Loc){0});
}

static Type type_from(int count, const Axis *axes)
{
    Type type = {.dtype = DTYPE_F32};
    for (int i = 0; i < count; i++) type_append(&type, &axes[i]);
    return type;
}

/* Windows of one stride over y and x, mostly centred and as much wider than the patch along
 * both. */
static NodeId window_features(Maker *m, NodeId image, int64_t patch, int64_t *features)
{
    const Type *type = type_of(m, image);
    Window windows[2] = {{.from = "y", .outer = "h", .inner = "ky"},
                         {.from = "x", .outer = "w", .inner = "kx"}};
    int64_t channels = type->axis[type_find(type, "c")].extent, grid[2], wider = from_to(m, 0, 2);
    for (int k = 0; k < 2; k++) {
        if (chance(m, 10)) wider = from_to(m, 0, 2);
        grid[k] = type->axis[type_find(type, windows[k].from)].extent / patch;
        windows[k].kernel = patch + 2 * wider;
        if (chance(m, 25)) windows[k].kernel -= from_to(m, 0, patch - 1);
        windows[k].stride = patch;
        windows[k].pad = wider;
    }
    *features = channels * windows[0].kernel * windows[1].kernel;
    const Axis b = axis_symbol("b"), h = axis_constant("h", grid[0]),
               w = axis_constant("w", grid[1]);
    const Type unfolded = type_from(6, (Axis[]){b, h, w, axis_constant("c", channels),
                                                axis_constant("ky", windows[0].kernel),
                                                axis_constant("kx", windows[1].kernel)});
    const Type flat = type_from(4, (Axis[]){b, h, w, axis_constant("f", *features)});
    NodeId x = build_unfold(m->graph, image, windows, 2, &unfolded, (Loc){0});
    const char *groups = chance(m, 90) ? "(c, ky, kx) -> f" : "(ky, kx, c) -> f";
    return build_rearrange(m->graph, x, groups, &flat, (Loc){0});
}

/* Features of several windows of one image, joined and multiplied: what merge_unfolds looks for,
 * but not always with one window that holds the others, or weights in the order that it knows. */
NodeId make_embedding(Maker *m)
{
    int64_t patch = from_to(m, 1, 3), total = 0;
    int64_t channels = from_to(m, 1, 3), rows = from_to(m, 4, 14), columns = from_to(m, 4, 14);
    Type image = type_from(4, (Axis[]){axis_symbol("b"), axis_constant("c", channels),
                                       axis_constant("y", patch * rows),
                                       axis_constant("x", patch * columns)});
    if (chance(m, 40)) shuffle(m, &image, 1);
    NodeId x = new_input(m, &image), parts[4];
    uint32_t count = (uint32_t)from_to(m, 1, 4);
    for (uint32_t i = 0; i < count; i++) {
        int64_t features;
        parts[i] = window_features(m, x, patch, &features);
        total += features;
    }
    NodeId joined = parts[0];
    if (count > 1 || chance(m, 30)) joined = build_concat(m->graph, parts, count, "f", (Loc){0});
    Type weight =
        type_from(2, (Axis[]){axis_constant("k", new_extent(m)), axis_constant("f", total)});
    if (chance(m, 20)) shuffle(m, &weight, 0);
    return build_linear(m->graph, joined, new_weight(m, &weight), NO_NODE, "f", (Loc){0});
}

/* A value once more, or nearly: what share looks for. */
NodeId make_twin(Maker *m)
{
    const Node *node = graph_node(m->graph, pick(m));
    if (node->operand_count == 0) return NO_NODE;
    Attributes attributes = node->attributes;
    if (node->op == OP_LAYERNORM && chance(m, 50)) attributes.eps *= 2;
    if (node->op == OP_SLICE && attributes.offset > 0 && chance(m, 50)) attributes.offset--;
    if (node->op == OP_READ && attributes.map.rank > 1 && chance(m, 50)) {
        Index *index = &attributes.map.dim[1];
        if (is_constant(&type_of(m, node->operands[0])->axis[1])) index->offset++;
    }
    const Layout layout = node->layout;
    NodeId made = graph_add(m->graph, node->op, node->operands, node->operand_count, &node->type,
                            &attributes, (Loc){0});
    graph_node(m->graph, made)->layout = layout;
    return made;
}
