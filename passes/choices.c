/* choices.c: choices for kernels: in graphs, as text, and what lies next to one. */
#include "passes/choices.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_BLOCK = 1 << 12, MOST_PART = 1 << 20 };

/* ---- in graphs ------------------------------------------------------------------------------- */

/* The linears of a kernel, at most MOST_PRODUCTS; -1: there are more. */
static int list_products(const Graph *graph, int kernel, NodeId products[MOST_PRODUCTS])
{
    NodeId first, end;
    int count = 0;
    kernel_range(graph, kernel, &first, &end);
    for (NodeId id = first; id < end; id++) {
        if (graph_node(graph, id)->op != OP_LINEAR) continue;
        if (count == MOST_PRODUCTS) return -1;
        products[count++] = id;
    }
    return count;
}

static int find_axis(const Kernel *kernel, const char *name, size_t length)
{
    for (int i = 0; i < kernel->rank; i++)
        if (strlen(kernel->axis[i].name) == length &&
            strncmp(kernel->axis[i].name, name, length) == 0)
            return i;
    return -1;
}

bool choice_read(const Graph *formed, const Graph *graph, int k, Choice *choice)
{
    const Kernel *kernel = &graph->kernels[k];
    NodeId product[MOST_PRODUCTS];
    *choice = (Choice){.rank = kernel->rank, .block = kernel->block, .part = kernel->part};
    choice->products = list_products(graph, k, product);
    if (choice->products < 0) return false;
    for (int i = 0; i < kernel->rank; i++) {
        const char *name = kernel->axis[i].name;
        choice->axis[i] = find_axis(&formed->kernels[k], name, strlen(name));
        choice->unit[i] = kernel->tile[i];
    }
    for (int i = 0; i < choice->products; i++) {
        choice->product[i].rows = graph_node(graph, product[i])->attributes.tile_rows;
        choice->product[i].vectors = graph_node(graph, product[i])->attributes.tile_vectors;
    }
    return true;
}

void choice_write(Graph *graph, int k, const Choice *choice)
{
    Kernel formed = graph->kernels[k], *kernel = &graph->kernels[k];
    NodeId product[MOST_PRODUCTS];
    for (int i = 0; i < kernel->rank; i++) {
        kernel->axis[i] = formed.axis[choice->axis[i]];
        kernel->tile[i] = choice->unit[i];
    }
    kernel->block = choice->block;
    kernel->part = choice->part;
    list_products(graph, k, product);
    for (int i = 0; i < choice->products; i++) {
        graph_node(graph, product[i])->attributes.tile_rows = choice->product[i].rows;
        graph_node(graph, product[i])->attributes.tile_vectors = choice->product[i].vectors;
    }
}

/* A panel of weights, or a vector, lies in one unit: is this so along axis `axis`, cut into `unit`? */
static bool keeps_lanes(const Graph *graph, int k, const Target *target, const Choice *choice,
                        const Axis *axis, int64_t unit)
{
    NodeId first, end;
    int product = 0;
    Arena arena = {0};
    bool good = true;
    kernel_range(graph, k, &first, &end);
    const char **lane = kernel_lanes(graph, k, target, &arena);
    for (NodeId id = first; id < end; id++) {
        bool linear = graph_node(graph, id)->op == OP_LINEAR;
        int at = product;
        product += linear;
        const char *own = lane[id - first];
        if (!own || strcmp(own, axis->name) != 0) continue;
        int64_t width = target->vector_floats;
        if (linear) {
            Product p = product_of_tile(graph, id, own, target, choice->product[at].rows,
                                        choice->product[at].vectors);
            if (!p.in_parts) width = product_width(&p, target);
        }
        good &= unit % width == 0;
    }
    arena_free(&arena);
    return good;
}

bool choice_fits(const Graph *graph, int k, const Target *target, const Choice *choice)
{
    const Kernel *kernel = &graph->kernels[k];
    NodeId product[MOST_PRODUCTS];
    if (choice->rank != kernel->rank || choice->products != list_products(graph, k, product))
        return false;
    if (choice->block < 0 || choice->block > MOST_BLOCK || choice->part < 0 ||
        choice->part > MOST_PART)
        return false;
    for (int i = 0; i < choice->products; i++) {
        int64_t rows = choice->product[i].rows, vectors = choice->product[i].vectors;
        bool good = rows == 0 ? vectors == 0
                              : rows > 0 && vectors > 0 && rows <= MOST_SUMS &&
                                    vectors <= MOST_SUMS && rows * vectors <= MOST_SUMS;
        if (!good) return false;
    }
    unsigned seen = 0;
    for (int i = 0; i < choice->rank; i++) {
        if (choice->axis[i] < 0 || choice->axis[i] >= kernel->rank) return false;
        const Axis *axis = &kernel->axis[choice->axis[i]];
        int64_t unit = choice->unit[i];
        seen |= 1u << choice->axis[i];
        if (axis->symbol[0] ? unit != 1 : unit < 1 || unit > axis->extent) return false;
        bool whole = axis->symbol[0] || unit == axis->extent;
        if (!whole && !keeps_lanes(graph, k, target, choice, axis, unit)) return false;
    }
    return seen == (1u << kernel->rank) - 1;
}

bool choice_equal(const Choice *a, const Choice *b)
{
    if (a->rank != b->rank || a->block != b->block || a->part != b->part ||
        a->products != b->products)
        return false;
    for (int i = 0; i < a->rank; i++)
        if (a->axis[i] != b->axis[i] || a->unit[i] != b->unit[i]) return false;
    for (int i = 0; i < a->products; i++)
        if (a->product[i].rows != b->product[i].rows ||
            a->product[i].vectors != b->product[i].vectors)
            return false;
    return true;
}

/* ---- as text --------------------------------------------------------------------------------- */

void choice_print(const Graph *graph, int k, const Choice *choice, Text *out)
{
    for (int i = 0; i < choice->rank; i++) {
        text_printf(out, "%s%s", i ? "," : "", graph->kernels[k].axis[choice->axis[i]].name);
        if (choice->unit[i] != 1) text_printf(out, ":%lld", (long long)choice->unit[i]);
    }
    text_printf(out, " block=%lld part=%lld", (long long)choice->block, (long long)choice->part);
    for (int i = 0; i < choice->products; i++)
        text_printf(out, " %lldx%lld", (long long)choice->product[i].rows,
                    (long long)choice->product[i].vectors);
}

/* Digits, at most nine of them. */
static bool parse_number(const char **text, int64_t *number)
{
    size_t digits = strspn(*text, "0123456789");
    if (digits == 0 || digits > 9) return false;
    *number = strtoll(*text, NULL, 10);
    *text += digits;
    return true;
}

static bool parse_word(const char **text, const char *word)
{
    if (strncmp(*text, word, strlen(word)) != 0) return false;
    *text += strlen(word);
    return true;
}

bool choice_parse(const Graph *graph, int k, const Target *target, const char *text, Choice *choice)
{
    const Kernel *kernel = &graph->kernels[k];
    *choice = (Choice){.rank = kernel->rank};
    for (int i = 0; i < kernel->rank; i++) {
        size_t length = strcspn(text, ":, ");
        choice->axis[i] = find_axis(kernel, text, length);
        choice->unit[i] = 1;
        text += length;
        if (*text == ':' && (text++, !parse_number(&text, &choice->unit[i]))) return false;
        if (i + 1 < kernel->rank && !parse_word(&text, ",")) return false;
    }
    if (!parse_word(&text, " block=") || !parse_number(&text, &choice->block) ||
        !parse_word(&text, " part=") || !parse_number(&text, &choice->part))
        return false;
    for (; *text && choice->products < MOST_PRODUCTS; choice->products++) {
        int at = choice->products;
        if (!parse_word(&text, " ") || !parse_number(&text, &choice->product[at].rows) ||
            !parse_word(&text, "x") || !parse_number(&text, &choice->product[at].vectors))
            return false;
    }
    return !*text && choice_fits(graph, k, target, choice);
}

/* ---- what lies next to one ------------------------------------------------------------------- */

typedef struct Neighbours {
    Arena *arena;
    const Graph *graph;
    int kernel;
    const Target *target;
    const Choice *from;
    Choice *list;
    uint32_t count, capacity;
} Neighbours;

static void add(Neighbours *n, const Choice *choice)
{
    if (choice_equal(choice, n->from) || !choice_fits(n->graph, n->kernel, n->target, choice))
        return;
    for (uint32_t i = 0; i < n->count; i++)
        if (choice_equal(choice, &n->list[i])) return;
    *ARENA_PUSH(n->arena, n->list, n->count, n->capacity) = *choice;
}

/* Units that walked the rows of the product's old tile walk those of the new one. */
static void follow_rows(const Neighbours *n, Choice *choice, const Product *old,
                        const Product *made)
{
    const Kernel *kernel = &n->graph->kernels[n->kernel];
    for (int i = 0; i < choice->rank; i++) {
        const char *name = kernel->axis[choice->axis[i]].name;
        for (int a = 0; a < old->row_count; a++)
            for (int b = 0; b < made->row_count; b++)
                if (strcmp(old->row[a], name) == 0 && strcmp(made->row[b], name) == 0 &&
                    choice->unit[i] == old->row_tile[a])
                    choice->unit[i] = made->row_tile[b];
    }
}

static void add_tiles(Neighbours *n, int at, NodeId linear, const char *lane, bool pruned)
{
    enum { MOST_VECTORS = 4, MOST_ROWS = 16 };
    Product old = product_of_tile(n->graph, linear, lane, n->target, n->from->product[at].rows,
                                  n->from->product[at].vectors);
    Product rule = product_of_tile(n->graph, linear, lane, n->target, 0, 0);
    int64_t least = product_cost(n->graph, linear, &rule, n->target);
    for (int vectors = 1; vectors <= MOST_VECTORS; vectors++) {
        for (int rows = MOST_ROWS; rows >= 1; rows--) {
            Product p = product_of_tile(n->graph, linear, lane, n->target, rows, vectors);
            int64_t cost = product_cost(n->graph, linear, &p, n->target), taken = p.row_tile[0];
            if (p.row_count > 1) taken *= p.row_tile[1];
            if (p.vectors != vectors || p.row_count == 0 || taken != rows) continue;
            bool fits = (rows + 1) * vectors + 1 <= n->target->vector_registers;
            if (pruned && (!fits || cost / 5 > least / 4)) continue;
            Choice choice = *n->from;
            choice.product[at].rows = rows;
            choice.product[at].vectors = vectors;
            follow_rows(n, &choice, &old, &p);
            add(n, &choice);
        }
    }
}

static void add_units(Neighbours *n)
{
    const Kernel *kernel = &n->graph->kernels[n->kernel];
    for (int i = 0; i < n->from->rank; i++) {
        const Axis *axis = &kernel->axis[n->from->axis[i]];
        int64_t unit = n->from->unit[i], half = (unit + 1) / 2;
        const int64_t other[] = {2 * unit, half, 4 * unit, axis->extent,
                                 n->target->vector_floats * 4};
        for (size_t k = 0; k < ARRAY_SIZE(other) && !axis->symbol[0]; k++) {
            Choice choice = *n->from;
            choice.unit[i] = other[k];
            add(n, &choice);
        }
    }
}

static void add_orders(Neighbours *n)
{
    for (int from = 1; from < n->from->rank; from++) {
        Choice choice = *n->from;
        for (int i = from; i > 0; i--) {
            choice.axis[i] = choice.axis[i - 1];
            choice.unit[i] = choice.unit[i - 1];
        }
        choice.axis[0] = n->from->axis[from];
        choice.unit[0] = n->from->unit[from];
        add(n, &choice);
    }
}

static void add_blocks(Neighbours *n)
{
    const int64_t start[] = {1, 2, 4, 8, 16, 32};
    int64_t old = n->from->block;
    const int64_t other[] = {2 * old, old / 2};
    for (size_t i = 0; i < (old ? ARRAY_SIZE(other) : ARRAY_SIZE(start)); i++) {
        Choice choice = *n->from;
        choice.block = old ? other[i] : start[i];
        add(n, &choice);
    }
}

/* Products may take turns where the second sums over the lanes of the first. */
static void add_parts(Neighbours *n, const NodeId *product, const char *lane)
{
    const Node *second = graph_node(n->graph, product[1]);
    const Type *hidden = graph_type(n->graph, product[0]);
    if (!lane || !names_contain(&second->attributes.over, lane)) return;
    int64_t extent = hidden->axis[type_find(hidden, lane)].extent, old = n->from->part;
    const int64_t start[] = {extent, extent / 2, extent / 4, extent / 8};
    const int64_t other[] = {2 * old, old / 2};
    for (size_t i = 0; i < (old ? ARRAY_SIZE(other) : ARRAY_SIZE(start)); i++) {
        Choice choice = *n->from;
        choice.part = old ? other[i] : start[i];
        add(n, &choice);
    }
}

Choice *choice_neighbours(Arena *arena, const Graph *graph, int k, const Target *target,
                          const Choice *from, bool pruned, int *count)
{
    Neighbours n = {arena, graph, k, target, from, NULL, 0, 0};
    NodeId product[MOST_PRODUCTS], first, end;
    kernel_range(graph, k, &first, &end);
    const char **lane = kernel_lanes(graph, k, target, arena);
    int products = list_products(graph, k, product);
    for (int i = products; i-- > 0;) add_tiles(&n, i, product[i], lane[product[i] - first], pruned);
    add_units(&n);
    if (products > 0) add_blocks(&n);
    if (products == 2) add_parts(&n, product, lane[product[0] - first]);
    add_orders(&n);
    *count = (int)n.count;
    return n.list;
}
