/* raftc_draw.c: inspect --graph: a graph as a picture, laid out by Graphviz.
 *
 * A box is a kernel with its ops, or an op that is in no kernel; an arrow is a tensor, with its type.
 * Boxes are grouped by the part of the model whose parameters they take. What depends on parameters
 * alone, and only packs them, is left out.
 */
#include "frontend/raftc.h"
#include "runtime/rt.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct Drawing {
    const Graph *graph;
    const bool *param_only;
    Text out;
    const char *group; /* that is open; NULL: none */
    int group_count;
} Drawing;

/* ---- the text for Graphviz ------------------------------------------------------------------- */

/* Text inside a quoted string. */
static void put_escaped(Text *out, const char *text)
{
    for (; *text; text++) {
        bool plain = (unsigned char)*text >= ' ' && *text != 127;
        text_printf(out, "%s%c", *text == '"' || *text == '\\' ? "\\" : "", plain ? *text : '?');
    }
}

/* The box of a value: that of its kernel, else its own. */
static void put_box_name(Drawing *drawing, NodeId id)
{
    int kernel = graph_node(drawing->graph, id)->kernel;
    text_printf(&drawing->out, kernel == NO_KERNEL ? "node%d" : "kernel%d",
                kernel == NO_KERNEL ? (int)id : kernel);
}

static void put_op(Text *out, const Node *node)
{
    text_put(out, op_info[node->op].name);
    const AxisNames *over = &node->attributes.over;
    if (op_info[node->op].attributes & ATTR_OVER)
        for (int i = 0; i < over->count; i++)
            text_printf(out, "%s%s", i ? ", " : " over ", over->name[i]);
    text_put(out, "\\n");
}

static void put_loop(Text *out, const Kernel *kernel)
{
    for (int i = 0; i < kernel->rank; i++) {
        text_printf(out, "%s%s", i ? ", " : "for ", kernel->axis[i].name);
        if (!kernel->axis[i].symbol[0])
            text_printf(out, " %lld", (long long)kernel->axis[i].extent);
        if (kernel->tile[i] > 1) text_printf(out, " by %lld", (long long)kernel->tile[i]);
    }
    text_put(out, "\\n");
}

static void put_box(Drawing *drawing, NodeId first, NodeId end)
{
    const Graph *graph = drawing->graph;
    Text *out = &drawing->out;
    int64_t cost = 0;
    put_box_name(drawing, first);
    text_put(out, " [label=\"");
    bool copies = true;
    for (NodeId id = first; id < end; id++) {
        const Node *node = graph_node(graph, id);
        cost = saturating_add(cost, op_cost(graph, id));
        if (node->kernel != NO_KERNEL && (node->op == OP_READ || node->op == OP_WRITE)) continue;
        put_op(out, node);
        copies = false;
    }
    if (copies) text_put(out, "copy\\n");
    if (graph_node(graph, first)->kernel != NO_KERNEL)
        put_loop(out, &graph->kernels[graph_node(graph, first)->kernel]);
    if (cost) text_printf(out, "%s multiply-adds\\n", grouped(out->arena, cost));
    text_put(out, "\"];\n");
}

/* What comes from other boxes: for each value one arrow. */
static void put_arrows(Drawing *drawing, NodeId first, NodeId end)
{
    const Graph *graph = drawing->graph;
    Text *out = &drawing->out;
    bool *drawn = arena_array(out->arena, first + 1, sizeof *drawn);
    for (NodeId id = first; id < end; id++) {
        const Node *node = graph_node(graph, id);
        for (uint32_t i = 0; i < node->operand_count; i++) {
            NodeId from = node->operands[i];
            if (from >= first || drawing->param_only[from] || drawn[from]) continue;
            drawn[from] = true;
            put_box_name(drawing, from);
            text_put(out, " -> ");
            put_box_name(drawing, first);
            text_put(out, " [label=\"");
            type_print(graph_type(graph, from), out);
            text_put(out, "\"];\n");
        }
    }
}

/* The part of the model whose parameters the box takes; NULL: it takes none. */
static const char *find_group(const Drawing *drawing, NodeId first, NodeId end)
{
    for (NodeId id = first; id < end; id++) {
        const Node *node = graph_node(drawing->graph, id);
        for (uint32_t i = 0; i < node->operand_count; i++) {
            const char *parameter = drawing->param_only[node->operands[i]]
                                        ? parameter_of(drawing->graph, node->operands[i])
                                        : NULL;
            if (parameter) return part_name(drawing->out.arena, parameter);
        }
    }
    return NULL;
}

static void open_group(Drawing *drawing, const char *group)
{
    if (!group || (drawing->group && strcmp(group, drawing->group) == 0)) return;
    if (drawing->group) text_put(&drawing->out, "}\n");
    text_printf(&drawing->out, "subgraph cluster%d {\nlabel=\"", drawing->group_count++);
    put_escaped(&drawing->out, group);
    text_put(&drawing->out, "\";\n");
    drawing->group = group;
}

/* One past the last node of the box that begins with this one. */
static NodeId box_end(const Graph *graph, NodeId first)
{
    NodeId start, end = first + 1;
    int kernel = graph_node(graph, first)->kernel;
    if (kernel != NO_KERNEL) kernel_range(graph, kernel, &start, &end);
    return end;
}

static void put_boxes(Drawing *drawing, bool arrows)
{
    const Graph *graph = drawing->graph;
    for (NodeId first = 0, end; first < graph->node_count; first = end) {
        end = box_end(graph, first);
        if (drawing->param_only[end - 1] || graph_node(graph, first)->op == OP_INPUT) continue;
        if (arrows) {
            put_arrows(drawing, first, end);
        } else {
            open_group(drawing, find_group(drawing, first, end));
            put_box(drawing, first, end);
        }
    }
}

static void put_ends(Drawing *drawing)
{
    const Graph *graph = drawing->graph;
    Text *out = &drawing->out;
    for (NodeId id = 0; id < graph->node_count; id++) {
        if (graph_node(graph, id)->op != OP_INPUT) continue;
        text_printf(out, "node%u [shape=oval, label=\"", id);
        put_escaped(out, graph_node(graph, id)->attributes.name);
        text_put(out, "\"];\n");
    }
    for (uint32_t i = 0; i < graph->output_count; i++) {
        const Output *output = &graph->outputs[i];
        text_printf(out, "output%u [shape=oval, label=\"%s.%s\"];\n", i, output->entry,
                    output->name);
        put_box_name(drawing, output->value);
        text_printf(out, " -> output%u [label=\"", i);
        type_print(graph_type(graph, output->value), out);
        text_put(out, "\"];\n");
    }
}

static const char *graph_text(Arena *arena, const Graph *graph)
{
    Drawing drawing = {.graph = graph, .out = text_new(arena)};
    drawing.param_only = graph_param_only(graph, arena);
    text_printf(
        &drawing.out,
        "digraph \"%s\" {\n"
        "graph [label=\"%s\", labelloc=t, fontname=\"Helvetica\", style=\"rounded,filled\", "
        "fillcolor=\"#eef3f8\", color=\"#b8c8d8\"];\n"
        "node [shape=box, style=filled, fillcolor=white, fontname=\"Helvetica\", "
        "fontsize=11];\n"
        "edge [fontname=\"Helvetica\", fontsize=9, fontcolor=\"#555555\"];\n",
        graph->name, graph->name);
    put_boxes(&drawing, false);
    if (drawing.group) text_put(&drawing.out, "}\n");
    put_boxes(&drawing, true);
    put_ends(&drawing);
    text_put(&drawing.out, "}\n");
    return drawing.out.data;
}

/* ---- Graphviz -------------------------------------------------------------------------------- */

static const char *const formats[] = {".svg", ".png", ".pdf"};

/* Runs dot on a file; what it prints comes into another. */
static Exit run_dot(Session *session, const char *text_path, const char *format,
                    const char *picture_path)
{
    const char *option = arena_printf(session->arena, "-T%s", format + 1);
    const char *const command[] = {"dot", option, "-o", picture_path, text_path, NULL};
    bool good;
    int reason = rt_run_program(command, "/dev/null", &good);
    if (reason)
        return session_fail(session, EXIT_LACKING,
                            "the program 'dot' cannot be run: %s; --graph needs it: install the "
                            "package graphviz",
                            strerror(reason));
    if (good) return EXIT_DONE;
    return session_fail(session, EXIT_UNDONE, "the program 'dot' could not draw the graph");
}

static Exit place_picture(Session *session, const char *picture_path, const char *path)
{
    RtFile picture;
    RaftError error;
    RaftStatus status = rt_file_map(picture_path, &picture, &error);
    if (status != RAFT_OK) return session_fail(session, EXIT_UNDONE, "%s", error.message);
    Exit exit = session_write(session, path, picture.data, picture.size);
    rt_file_unmap(&picture);
    return exit;
}

/* A new empty file; its name is in `path`. */
static bool make_temporary(char *path)
{
    int file = mkstemp(path);
    return file >= 0 && close(file) == 0;
}

Exit draw_graph(Session *session, const Graph *graph, const char *path)
{
    const char *text = graph_text(session->arena, graph), *folder = getenv("TMPDIR"),
               *format = NULL;
    if (has_extension(path, ".dot")) return session_write(session, path, text, strlen(text));
    for (size_t i = 0; i < ARRAY_SIZE(formats); i++)
        if (has_extension(path, formats[i])) format = formats[i];
    if (!format)
        return session_fail(session, EXIT_USAGE,
                            "--graph writes .svg, .png, .pdf, or .dot for Graphviz, not '%s'",
                            path);
    if (!folder || !*folder) folder = "/tmp";
    char *text_path = arena_printf(session->arena, "%s/raftc-XXXXXX", folder);
    char *picture_path = arena_printf(session->arena, "%s/raftc-XXXXXX", folder);
    signals_hold();
    Exit exit = EXIT_DONE;
    if (!make_temporary(text_path) || !make_temporary(picture_path))
        exit = session_fail(session, EXIT_UNDONE, "%s: a temporary file cannot be made: %s", folder,
                            strerror(errno));
    if (exit == EXIT_DONE) exit = session_write(session, text_path, text, strlen(text));
    if (exit == EXIT_DONE) exit = run_dot(session, text_path, format, picture_path);
    if (exit == EXIT_DONE) exit = place_picture(session, picture_path, path);
    unlink(text_path);
    unlink(picture_path);
    signals_release();
    return exit;
}
