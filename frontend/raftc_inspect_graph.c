/* raftc_inspect_graph.c: what is in a model or a graph: how large, how much work, how compiled. */
#include "frontend/raftc.h"
#include "frontend/raftc_json.h"

#include <string.h>

/* What belongs together: the parameters called levels.0.*, and the products that take them. */
typedef struct Part {
    const char *name;
    int64_t parameters, multiply_adds, activations;
} Part;

typedef struct OpCount {
    int64_t nodes, multiply_adds;
} OpCount;

/* The whole, counted on the graph as it was built or read, for one image. */
typedef struct Counts {
    Part *part;
    uint32_t part_count, part_capacity;
    Part all;
    OpCount op[OP_COUNT];
} Counts;

/* ---- counting -------------------------------------------------------------------------------- */

const char *part_name(Arena *arena, const char *parameter)
{
    size_t length = strcspn(parameter, ".");
    const char *next = parameter + length + (parameter[length] == '.');
    size_t digits = strspn(next, "0123456789");
    bool numbered = digits > 0 && (next[digits] == '.' || !next[digits]);
    return arena_strndup(arena, parameter, numbered ? (size_t)(next - parameter) + digits : length);
}

static Part *find_part(Arena *arena, Counts *counts, const char *parameter)
{
    const char *name = part_name(arena, parameter);
    for (uint32_t i = 0; i < counts->part_count; i++)
        if (strcmp(counts->part[i].name, name) == 0) return &counts->part[i];
    Part *part = ARENA_PUSH(arena, counts->part, counts->part_count, counts->part_capacity);
    *part = (Part){.name = name};
    return part;
}

const char *parameter_of(const Graph *graph, NodeId id)
{
    const Node *node = graph_node(graph, id);
    while (node->op != OP_PARAM && node->operand_count > 0)
        node = graph_node(graph, node->operands[0]);
    return node->op == OP_PARAM ? node->attributes.name : NULL;
}

static void add_product(Part *part, int64_t cost, int64_t results)
{
    part->multiply_adds = saturating_add(part->multiply_adds, cost);
    part->activations = saturating_add(part->activations, results);
}

/* The activations are the results of the products. */
static Counts *count(Arena *arena, const Graph *graph)
{
    Counts *counts = arena_alloc(arena, sizeof *counts);
    const bool *param_only = graph_param_only(graph, arena);
    for (NodeId id = 0; id < graph->node_count; id++) {
        const Node *node = graph_node(graph, id);
        int64_t elements = type_elements(&node->type, NULL), cost = op_cost(graph, id);
        OpCount *op = &counts->op[node->op];
        op->nodes++;
        op->multiply_adds = saturating_add(op->multiply_adds, cost);
        if (node->op == OP_PARAM) {
            find_part(arena, counts, node->attributes.name)->parameters += elements;
            counts->all.parameters += elements;
        }
        if (op_info[node->op].cost != COST_OVER || param_only[id]) continue;
        const char *parameter = parameter_of(graph, node->operands[1]);
        const char *owner = parameter ? parameter : "without parameters";
        add_product(find_part(arena, counts, owner), cost, elements);
        add_product(&counts->all, cost, elements);
    }
    return counts;
}

/* ---- text ------------------------------------------------------------------------------------ */

static void put_part(Text *out, const char *name, const Part *part)
{
    text_printf(out, "%-20s %15s %17s %15s\n", name, grouped(out->arena, part->parameters),
                grouped(out->arena, part->multiply_adds), grouped(out->arena, part->activations));
}

static void put_counts(Text *out, const Counts *counts)
{
    text_printf(out, "\n%-20s %15s %17s %15s\n", "for one image", "parameters", "multiply-adds",
                "activations");
    for (uint32_t i = 0; i < counts->part_count; i++)
        put_part(out, counts->part[i].name, &counts->part[i]);
    put_part(out, "all", &counts->all);
    text_printf(out, "\n%-20s %15s %17s\n", "op", "nodes", "multiply-adds");
    for (int op = 0; op < OP_COUNT; op++)
        if (counts->op[op].nodes)
            text_printf(out, "%-20s %15s %17s\n", op_info[op].name,
                        grouped(out->arena, counts->op[op].nodes),
                        grouped(out->arena, counts->op[op].multiply_adds));
}

static void put_model(Text *out, const Compilation *c)
{
    const Model *model = c->model;
    const Settings *settings = model->settings;
    text_printf(out, "%s: %d %s, %lldx%lld images of %lld %s, %lld classes, ", model->name,
                model->level_count, model->level_count == 1 ? "level" : "levels",
                (long long)model->height, (long long)model->width, (long long)settings->in_channels,
                settings->in_channels == 1 ? "channel" : "channels",
                (long long)settings->num_classes);
    text_printf(out, "%d feature maps\n", model->feature_count);
    text_printf(out, "%-5s %6s %6s %6s %6s %9s %9s  %s\n", "level", "depth", "dim", "patch", "raft",
                "grid", "mixed", "kernels");
    for (int i = 0; i < model->level_count; i++) {
        const Level *level = &model->levels[i];
        text_printf(out, "%-5d %6lld %6lld %6lld %6lld %4lldx%-4lld %4lldx%-4lld ", i,
                    (long long)level->depth, (long long)level->dim, (long long)level->patch,
                    (long long)level->raft, (long long)level->height, (long long)level->width,
                    (long long)level->grid, (long long)level->grid);
        for (int k = 0; k < level->kernel_count; k++)
            text_printf(out, " %lld", (long long)level->kernels[k]);
        text_put(out, "\n");
    }
}

static void put_outputs(Text *out, const Graph *graph)
{
    text_printf(out, "graph %s\n", graph->name);
    for (NodeId id = 0; id < graph->node_count; id++) {
        const Node *node = graph_node(graph, id);
        if (node->op != OP_INPUT) continue;
        text_printf(out, "  input %s : ", node->attributes.name);
        type_print(&node->type, out);
        text_put(out, "\n");
    }
    for (uint32_t i = 0; i < graph->output_count; i++) {
        const Output *output = &graph->outputs[i];
        text_printf(out, "  output %s.%s : ", output->entry, output->name);
        type_print(graph_type(graph, output->value), out);
        text_put(out, "\n");
    }
}

static void print_text(Session *session, const Compilation *c, const Counts *counts)
{
    Text out = text_new(session->arena);
    if (c->model)
        put_model(&out, c);
    else
        put_outputs(&out, c->built);
    put_counts(&out, counts);
    text_put(&out, "\n");
    report_kernels(c->graph, &out);
    if (c->plan) {
        text_put(&out, "\n");
        plan_print(c->plan, &out);
    }
    fputs(out.data, stdout);
}

/* ---- json ------------------------------------------------------------------------------------ */

static json_t *part_json(Arena *arena, const Part *part)
{
    return json_pack("{s:o, s:I, s:I, s:I}", "name", json_text(arena, part->name), "parameters",
                     (json_int_t)part->parameters, "multiply_adds", (json_int_t)part->multiply_adds,
                     "activations", (json_int_t)part->activations);
}

static json_t *kernels_json(Arena *arena, const Graph *graph)
{
    json_t *kernels = json_array();
    for (uint32_t k = 0; k < graph->kernel_count; k++)
        json_array_append_new(kernels, json_string(kernel_name(graph, (int)k, arena)));
    return kernels;
}

static void print_object(Session *session, const Compilation *c, const Counts *counts)
{
    Arena *arena = session->arena;
    const Part *all = &counts->all;
    json_t *object =
        json_pack("{s:s, s:o, s:s, s:I, s:I, s:I}", "kind", c->model ? "model" : "graph", "file",
                  json_text(arena, c->path), "name", c->built->name, "parameters",
                  (json_int_t)all->parameters, "multiply_adds", (json_int_t)all->multiply_adds,
                  "activations", (json_int_t)all->activations);
    if (c->model) {
        const Model *model = c->model;
        json_object_set_new(
            object, "image",
            json_sprintf("%lldx%lld", (long long)model->height, (long long)model->width));
        json_object_set_new(object, "classes", json_integer(model->settings->num_classes));
        json_object_set_new(object, "features", json_integer(model->feature_count));
    }
    json_t *parts = json_array(), *ops = json_object();
    for (uint32_t i = 0; i < counts->part_count; i++)
        json_array_append_new(parts, part_json(arena, &counts->part[i]));
    for (int op = 0; op < OP_COUNT; op++)
        if (counts->op[op].nodes)
            json_object_set_new(ops, op_info[op].name,
                                json_pack("{s:I, s:I}", "nodes", (json_int_t)counts->op[op].nodes,
                                          "multiply_adds",
                                          (json_int_t)counts->op[op].multiply_adds));
    json_object_set_new(object, "parts", parts);
    json_object_set_new(object, "ops", ops);
    json_object_set_new(object, "kernels", kernels_json(arena, c->graph));
    if (c->plan)
        json_object_set_new(object, "memory",
                            json_pack("{s:I, s:I, s:I}", "arena_bytes",
                                      4 * (json_int_t)c->plan->arena_floats, "lower_bound_bytes",
                                      4 * (json_int_t)c->plan->peak_floats, "prepared_bytes",
                                      4 * (json_int_t)c->plan->prepared_floats));
    json_print(object);
}

/* ---- all ------------------------------------------------------------------------------------- */

/* With --passes there may be no kernels, and then there is nothing to plan. */
static bool has_plan(const Graph *graph)
{
    for (NodeId id = 0; id < graph->node_count; id++) {
        const Node *node = graph_node(graph, id);
        if (node->kernel == NO_KERNEL && node->op != OP_INPUT && node->op != OP_PARAM) return false;
    }
    return true;
}

Exit inspect_model(Session *session, const char *path)
{
    Compilation c;
    Exit exit = compilation_load(session, path, &c);
    if (exit == EXIT_DONE) exit = compilation_optimise(session, &c);
    if (exit != EXIT_DONE) return exit;
    if (has_plan(c.graph)) exit = compilation_plan(session, &c);
    if (exit != EXIT_DONE) return exit;
    if (session->options->graph) exit = draw_graph(session, c.graph, session->options->graph);
    if (exit != EXIT_DONE) return exit;
    const Counts *counts = count(session->arena, c.built);
    if (session->options->json)
        print_object(session, &c, counts);
    else
        print_text(session, &c, counts);
    return EXIT_DONE;
}
