/* parse.c: text to graph, by recursive descent with one token of look-ahead. ir.md has the grammar.
 *
 * The parser knows what text can look like; what a graph may mean is for verify.c and check.c,
 * which run at the end. It stops at the first fault. No function calls itself, and every loop takes
 * a token, so that time and stack stay in proportion to the text, whatever it holds. */
#include "ir/private.h"

#include <string.h>

/* A trie over the hash of the names: each level takes two more bits of it. */
typedef struct Name Name;
struct Name {
    Token token; /* where it is defined */
    NodeId id;
    Name *child[4];
};

typedef struct Parser {
    Lexer lexer;
    Graph *graph;
    Name *names;
    int kernel;       /* the one that is open, or NO_KERNEL */
    NodeId *operands; /* of the node that is parsed; used again for the next one */
    uint32_t operand_count, operand_capacity;
    Lexer map; /* the place of a map while the type that it needs is still to come */
} Parser;

/* ---- types and layouts ----------------------------------------------------------------------- */

static bool parse_axis_name(Parser *p, char name[NAME_SIZE])
{
    Token token = p->lexer.token;
    if (token.kind != TOKEN_WORD) return lex_expected(&p->lexer, "the name of an axis");
    if (!is_axis_name(token.text, token.length))
        return lex_expected(&p->lexer, "the name of an axis (" AXIS_NAME_RULE ")");
    memset(name, 0, NAME_SIZE);
    memcpy(name, token.text, token.length);
    lex_next(&p->lexer);
    return true;
}

typedef bool ElementParser(Parser *p, void *list);

/* open, elements with commas between them or nothing, close. */
static bool parse_list(Parser *p, const char *open, const char *close, ElementParser *parse_element,
                       void *list)
{
    if (!lex_expect(&p->lexer, open[1], open)) return false;
    if (lex_accept(&p->lexer, close[1])) return true;
    do {
        if (!parse_element(p, list)) return false;
    } while (lex_accept(&p->lexer, ','));
    return lex_accept(&p->lexer, close[1]) ||
           lex_expected(&p->lexer, arena_printf(p->lexer.diag->arena, "',' or %s", close));
}

static bool has_room(const Parser *p, int count, int most, const char *what)
{
    if (count < most) return true;
    return diag_error(p->lexer.diag, p->lexer.token.loc, "more than %d %s", most, what);
}

static bool parse_axis(Parser *p, Axis *axis)
{
    *axis = (Axis){0};
    if (!parse_axis_name(p, axis->name)) return false;
    if (lex_is(&p->lexer, TOKEN_NUMBER)) {
        Loc loc = p->lexer.token.loc;
        if (!lex_integer(&p->lexer, &axis->extent)) return false;
        if (axis->extent == 0) return diag_error(p->lexer.diag, loc, "an extent is at least 1");
        return true;
    }
    if (lex_accept(&p->lexer, '$')) return parse_axis_name(p, axis->symbol);
    memcpy(axis->symbol, axis->name, NAME_SIZE);
    return true;
}

static bool parse_type_axis(Parser *p, void *list)
{
    Type *type = list;
    return has_room(p, type->rank, MAX_AXES, "axes") && parse_axis(p, &type->axis[type->rank++]);
}

static bool parse_type(Parser *p, Type *type)
{
    *type = (Type){0};
    int dtype;
    if (!lex_choice(&p->lexer, "a type", dtype_names, DTYPE_COUNT, &dtype)) return false;
    type->dtype = (DType)dtype;
    return parse_list(p, "'['", "']'", parse_type_axis, type);
}

typedef struct LayoutOfType {
    Layout layout;
    const Type *type;
} LayoutOfType;

static bool parse_layout_dim(Parser *p, void *list)
{
    LayoutOfType *of = list;
    if (!has_room(p, of->layout.rank, MAX_AXES, "dimensions")) return false;
    char name[NAME_SIZE];
    Loc loc = p->lexer.token.loc;
    if (!parse_axis_name(p, name)) return false;
    int axis = type_find(of->type, name);
    if (axis < 0) return diag_error(p->lexer.diag, loc, "the type has no axis '%s'", name);
    int64_t divisor = 1, extent = 0;
    if (lex_accept(&p->lexer, '/') && !lex_integer(&p->lexer, &divisor)) return false;
    if (!of->type->axis[axis].symbol[0] && !lex_integer(&p->lexer, &extent)) return false;
    of->layout.dim[of->layout.rank].axis = axis;
    of->layout.dim[of->layout.rank].divisor = divisor;
    of->layout.dim[of->layout.rank++].extent = extent;
    return true;
}

static bool parse_layout(Parser *p, const Type *type, Layout *layout)
{
    LayoutOfType of = {.type = type};
    Loc loc = p->lexer.token.loc;
    if (lex_accept_word(&p->lexer, "packed")) {
        if (!parse_list(p, "'('", "')'", parse_layout_dim, &of)) return false;
        if (of.layout.rank == 0)
            return diag_error(p->lexer.diag, loc, "a packed layout has dimensions");
    }
    *layout = of.layout;
    return true;
}

/* ---- maps ------------------------------------------------------------------------------------ */

typedef struct MapOfSpace {
    Map map;
    const Type *space;
} MapOfSpace;

/* integer, or axis, or axis * integer; adds it, with its sign, to the index. */
static bool parse_term(Parser *p, bool negative, const Type *space, Index *index)
{
    int64_t value = 1, *sum = &index->offset;
    Loc loc = p->lexer.token.loc;
    if (lex_is(&p->lexer, TOKEN_WORD)) {
        char name[NAME_SIZE];
        if (!parse_axis_name(p, name)) return false;
        int axis = type_find(space, name);
        if (axis < 0)
            return diag_error(p->lexer.diag, loc, "'%s' is no axis of the space of this map", name);
        sum = &index->coefficient[axis];
        if (lex_accept(&p->lexer, '*') && !lex_integer(&p->lexer, &value)) return false;
    } else if (!lex_is(&p->lexer, TOKEN_NUMBER)) {
        return lex_expected(&p->lexer, "an axis or an integer");
    } else if (!lex_integer(&p->lexer, &value)) {
        return false;
    }
    if (negative ? __builtin_sub_overflow(*sum, value, sum)
                 : __builtin_add_overflow(*sum, value, sum))
        return diag_error(p->lexer.diag, loc, "the number does not fit 64 bits");
    return true;
}

static bool parse_index(Parser *p, void *list)
{
    MapOfSpace *of = list;
    if (!has_room(p, of->map.rank, MAX_AXES, "indices")) return false;
    Index *index = &of->map.dim[of->map.rank++];
    bool negative = lex_accept(&p->lexer, '-');
    for (;;) {
        if (!parse_term(p, negative, of->space, index)) return false;
        negative = lex_is(&p->lexer, '-');
        if (!negative && !lex_is(&p->lexer, '+')) return true;
        lex_next(&p->lexer);
    }
}

/* A map may name the axes of a type that stands after it: remember it, and parse it later. */
static bool skip_map(Parser *p)
{
    p->map = p->lexer;
    if (!lex_expect(&p->lexer, '[', "'['")) return false;
    while (!lex_is(&p->lexer, ']') && !lex_is(&p->lexer, TOKEN_END)) lex_next(&p->lexer);
    return lex_expect(&p->lexer, ']', "']'");
}

static bool parse_skipped_map(Parser *p, const Type *space, Map *map)
{
    MapOfSpace of = {.space = space};
    Lexer here = p->lexer;
    p->lexer = p->map;
    if (!parse_list(p, "'['", "']'", parse_index, &of)) return false;
    p->lexer = here;
    *map = of.map;
    return true;
}

/* ---- attributes ------------------------------------------------------------------------------ */

static bool parse_name_in(Parser *p, void *list)
{
    AxisNames *names = list;
    return has_room(p, names->count, MAX_AXES, "names") &&
           parse_axis_name(p, names->name[names->count++]);
}

static bool parse_names(Parser *p, AxisNames *names)
{
    return parse_list(p, "'('", "')'", parse_name_in, names);
}

/* One name, or any number of them in parentheses. */
static bool parse_group_side(Parser *p, AxisNames *names)
{
    return lex_is(&p->lexer, '(') ? parse_names(p, names) : parse_name_in(p, names);
}

static bool parse_groups(Parser *p, Attributes *attributes)
{
    attributes->groups = arena_array(p->graph->arena, MAX_AXES, sizeof *attributes->groups);
    if (lex_is(&p->lexer, ':')) return true;
    do {
        if (!has_room(p, attributes->group_count, MAX_AXES, "groups")) return false;
        Group *group = &attributes->groups[attributes->group_count++];
        if (!parse_group_side(p, &group->from) || !lex_expect(&p->lexer, TOKEN_ARROW, "'->'") ||
            !parse_group_side(p, &group->to))
            return false;
    } while (lex_accept(&p->lexer, ','));
    return true;
}

static bool parse_windows(Parser *p, Attributes *attributes)
{
    attributes->windows = arena_array(p->graph->arena, MAX_AXES, sizeof *attributes->windows);
    do {
        if (!has_room(p, attributes->window_count, MAX_AXES, "windows")) return false;
        Window *window = &attributes->windows[attributes->window_count++];
        if (!parse_axis_name(p, window->from) || !lex_expect(&p->lexer, TOKEN_ARROW, "'->'") ||
            !lex_expect(&p->lexer, '(', "'('") || !parse_axis_name(p, window->outer) ||
            !lex_expect(&p->lexer, ',', "','") || !parse_axis_name(p, window->inner) ||
            !lex_integer(&p->lexer, &window->kernel) || !lex_expect(&p->lexer, ')', "')'") ||
            !lex_expect_word(&p->lexer, "stride") || !lex_integer(&p->lexer, &window->stride) ||
            !lex_expect_word(&p->lexer, "pad") || !lex_integer(&p->lexer, &window->pad))
            return false;
    } while (lex_accept(&p->lexer, ','));
    return true;
}

static bool parse_stored_extent(Parser *p, void *list)
{
    Attributes *attributes = list;
    return has_room(p, attributes->stored_rank, (int)ARRAY_SIZE(attributes->stored), "extents") &&
           lex_integer(&p->lexer, &attributes->stored[attributes->stored_rank++]);
}

static bool parse_factor(Parser *p, double *factor)
{
    if (!lex_expect_word(&p->lexer, "by")) return false;
    bool negative = lex_accept(&p->lexer, '-');
    if (!lex_double(&p->lexer, factor)) return false;
    if (negative) *factor = -*factor;
    return true;
}

static bool parse_attributes(Parser *p, unsigned has, Attributes *attributes)
{
    if (has & ATTR_STORED && !(lex_expect_word(&p->lexer, "stored") &&
                               parse_list(p, "'['", "']'", parse_stored_extent, attributes)))
        return false;
    if (has & ATTR_GROUPS && !parse_groups(p, attributes)) return false;
    if (has & ATTR_WINDOWS && !parse_windows(p, attributes)) return false;
    if (has & ATTR_MAP && !skip_map(p)) return false;
    if (has & ATTR_OVER &&
        !(lex_expect_word(&p->lexer, "over") && parse_names(p, &attributes->over)))
        return false;
    if (has & ATTR_OFFSET &&
        !(lex_expect_word(&p->lexer, "from") && lex_integer(&p->lexer, &attributes->offset)))
        return false;
    if (has & ATTR_EPS &&
        !(lex_expect_word(&p->lexer, "eps") && lex_double(&p->lexer, &attributes->eps)))
        return false;
    if (has & ATTR_TILE && lex_accept_word(&p->lexer, "tile") &&
        !(lex_integer(&p->lexer, &attributes->tile_rows) && lex_expect_word(&p->lexer, "by") &&
          lex_integer(&p->lexer, &attributes->tile_vectors)))
        return false;
    return !(has & ATTR_FACTOR) || parse_factor(p, &attributes->factor);
}

/* ---- values ---------------------------------------------------------------------------------- */

/* Where the name of `token` is, or would be put. */
static Name **find_name(Parser *p, Token token)
{
    uint64_t hash = UINT64_C(14695981039346656037);
    for (size_t i = 0; i < token.length; i++)
        hash = (hash ^ (unsigned char)token.text[i]) * UINT64_C(1099511628211);
    Name **slot = &p->names;
    for (; *slot; hash >>= 2) {
        Token other = (*slot)->token;
        if (other.length == token.length && memcmp(other.text, token.text, token.length) == 0)
            break;
        slot = &(*slot)->child[hash & 3];
    }
    return slot;
}

static bool define(Parser *p, Token token, NodeId id)
{
    Name **slot = find_name(p, token);
    if (*slot) {
        diag_error(p->lexer.diag, token.loc, "'%.*s' is defined twice", lex_shown(token),
                   token.text);
        diag_note(p->lexer.diag, (*slot)->token.loc, "first here");
        return false;
    }
    *slot = arena_alloc(p->lexer.diag->arena, sizeof **slot);
    **slot = (Name){.token = token, .id = id};
    return true;
}

static bool parse_operand(Parser *p, NodeId *id)
{
    Token token = p->lexer.token;
    if (token.kind != TOKEN_VALUE && token.kind != TOKEN_NAME)
        return lex_expected(&p->lexer, "a value (%... or @...)");
    const Name *name = *find_name(p, token);
    if (!name)
        return diag_error(p->lexer.diag, token.loc, "'%.*s' is not defined before this",
                          lex_shown(token), token.text);
    *id = name->id;
    lex_next(&p->lexer);
    return true;
}

static bool parse_operands(Parser *p, const OpInfo *info)
{
    p->operand_count = 0;
    if (info->most_operands == 0) return true;
    do {
        NodeId id;
        if (!parse_operand(p, &id)) return false;
        *ARENA_PUSH(p->lexer.diag->arena, p->operands, p->operand_count, p->operand_capacity) = id;
    } while (lex_accept(&p->lexer, ','));
    return true;
}

static bool parse_op(Parser *p, Op *op)
{
    const char *names[OP_COUNT];
    for (int i = 0; i < OP_COUNT; i++) names[i] = op_info[i].name;
    int choice;
    if (!lex_choice(&p->lexer, "an op", names, OP_COUNT, &choice)) return false;
    *op = (Op)choice;
    return true;
}

/* What follows the op (and, of a declaration, the name): operands, attributes, type, layout. */
static bool parse_node(Parser *p, Token name, Op op, Loc loc)
{
    const OpInfo *info = &op_info[op];
    Attributes attributes = {0};
    Type type;
    Layout layout;
    if (info->attributes & ATTR_NAME)
        attributes.name = arena_strndup(p->graph->arena, name.text + 1, name.length - 1);
    if (!parse_operands(p, info) || !parse_attributes(p, info->attributes, &attributes) ||
        !lex_expect(&p->lexer, ':', "':' and a type") || !parse_type(p, &type) ||
        !parse_layout(p, &type, &layout))
        return false;
    if (info->attributes & ATTR_MAP) {
        const Type *space = op == OP_WRITE ? graph_type(p->graph, p->operands[0]) : &type;
        if (!parse_skipped_map(p, space, &attributes.map)) return false;
    }
    if (p->graph->node_count == MAX_NODES)
        return diag_error(p->lexer.diag, loc, "a graph has at most %d nodes", MAX_NODES);
    NodeId id = graph_add(p->graph, op, p->operands, p->operand_count, &type, &attributes, loc);
    graph_node(p->graph, id)->layout = layout;
    graph_node(p->graph, id)->kernel = p->kernel;
    return define(p, name, id);
}

/* %N = op ... */
static bool parse_value(Parser *p)
{
    Token name = p->lexer.token;
    if (!lex_expect(&p->lexer, TOKEN_VALUE, "a value (%N = ...)") ||
        !lex_expect(&p->lexer, '=', "'='"))
        return false;
    Loc loc = p->lexer.token.loc;
    Op op;
    if (!parse_op(p, &op)) return false;
    if (op_info[op].attributes & ATTR_NAME)
        return diag_error(p->lexer.diag, loc, "'%s' declares a name: write '%s @name ...'",
                          op_info[op].name, op_info[op].name);
    return parse_node(p, name, op, loc);
}

/* op @name ... */
static bool parse_declaration(Parser *p)
{
    Loc loc = p->lexer.token.loc;
    Op op;
    if (!parse_op(p, &op)) return false;
    if (!(op_info[op].attributes & ATTR_NAME))
        return diag_error(p->lexer.diag, loc,
                          "the value of '%s' needs a name: write '%%N = %s ...'", op_info[op].name,
                          op_info[op].name);
    Token name = p->lexer.token;
    return lex_expect(&p->lexer, TOKEN_NAME, "a name (@...)") && parse_node(p, name, op, loc);
}

/* ---- statements ------------------------------------------------------------------------------ */

static bool parse_kernel_axis(Parser *p, void *list)
{
    Kernel *kernel = list;
    if (!has_room(p, kernel->rank, MAX_AXES, "axes")) return false;
    int at = kernel->rank++;
    kernel->tile[at] = 1;
    return parse_axis(p, &kernel->axis[at]) &&
           (!lex_accept_word(&p->lexer, "by") || lex_integer(&p->lexer, &kernel->tile[at]));
}

static bool parse_walk(Parser *p, Kernel *kernel)
{
    return parse_axis_name(p, kernel->walk) && lex_expect_word(&p->lexer, "by") &&
           lex_integer(&p->lexer, &kernel->step);
}

static bool parse_kernel(Parser *p)
{
    Graph *graph = p->graph;
    Kernel kernel = {0};
    NodeId first = graph->node_count;
    if (!lex_expect_word(&p->lexer, "for") ||
        !parse_list(p, "'('", "')'", parse_kernel_axis, &kernel) ||
        (lex_accept_word(&p->lexer, "walk") && !parse_walk(p, &kernel)) ||
        (lex_accept_word(&p->lexer, "block") && !lex_integer(&p->lexer, &kernel.block)) ||
        (lex_accept_word(&p->lexer, "part") && !lex_integer(&p->lexer, &kernel.part)) ||
        !lex_expect(&p->lexer, '{', "'{'"))
        return false;
    p->kernel = (int)graph->kernel_count;
    *ARENA_PUSH(graph->arena, graph->kernels, graph->kernel_count, graph->kernel_capacity) = kernel;
    do {
        if (!parse_value(p)) return false;
    } while (!lex_accept(&p->lexer, '}'));
    graph->kernels[p->kernel].name = kernel_name_from(graph, first, graph->arena);
    p->kernel = NO_KERNEL;
    return true;
}

/* output entry.name = value */
static bool parse_output(Parser *p)
{
    Token token = p->lexer.token;
    const char *dot = token.kind == TOKEN_WORD ? memchr(token.text, '.', token.length) : NULL;
    if (!dot)
        return lex_expected(&p->lexer, "the entry and the name of an output, as in forward.logits");
    lex_next(&p->lexer);
    size_t entry_length = (size_t)(dot - token.text);
    const char *entry = arena_strndup(p->lexer.diag->arena, token.text, entry_length);
    const char *name =
        arena_strndup(p->lexer.diag->arena, dot + 1, token.length - entry_length - 1);
    NodeId value;
    if (!lex_expect(&p->lexer, '=', "'='") || !parse_operand(p, &value)) return false;
    graph_add_output(p->graph, name, entry, value);
    return true;
}

static bool parse_statement(Parser *p)
{
    if (lex_is(&p->lexer, TOKEN_VALUE)) return parse_value(p);
    if (lex_accept_word(&p->lexer, "kernel")) return parse_kernel(p);
    if (lex_accept_word(&p->lexer, "output")) return parse_output(p);
    if (lex_is(&p->lexer, TOKEN_WORD)) return parse_declaration(p);
    return lex_expected(&p->lexer, "a value, a kernel, a declaration, an output or '}'");
}

Graph *graph_parse(Arena *arena, const Source *source, Diag *diag)
{
    Parser p = {.lexer = lex_new(source, diag), .kernel = NO_KERNEL};
    if (!lex_expect_word(&p.lexer, "graph")) return NULL;
    Token name = p.lexer.token;
    if (name.kind != TOKEN_WORD || memchr(name.text, '.', name.length))
        return lex_expected(&p.lexer, "the name of the graph (letters, digits and _)"), NULL;
    lex_next(&p.lexer);
    p.graph = graph_new(arena, arena_strndup(diag->arena, name.text, name.length));
    if (!lex_expect(&p.lexer, '{', "'{'")) return NULL;
    while (!lex_is(&p.lexer, '}'))
        if (!parse_statement(&p)) return NULL;
    if (p.graph->output_count == 0) return lex_expected(&p.lexer, "an output"), NULL;
    lex_next(&p.lexer);
    if (!lex_expect(&p.lexer, TOKEN_END, "the end of the file")) return NULL;
    return graph_verify(p.graph, diag) ? p.graph : NULL;
}
