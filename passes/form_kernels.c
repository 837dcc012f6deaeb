/* form_kernels.c
 *
 * Makes every op that is in no kernel yet a kernel of its own, with the reads before it and the
 * write after it; the embedding, a product that reads windows of the image, thus becomes one kernel
 * that stores no window. After it only inputs, parameters and kernels are left.
 *
 *   before  %1 = read @x [b, c, h*4 + ky, w*4 + kx]
 *           %2 = linear %1, @w, @b over (c, ky, kx)
 *   after   kernel for (b, h 56, w 56, k 64) {
 *             %1 = read @x [b, c, h*4 + ky, w*4 + kx]; %2 = read @w ..; %3 = read @b ..
 *             %4 = linear %1, %2, %3 over (c, ky, kx)
 *             %5 = write %4 [b, h, w, k]
 *           }
 *
 * needs: nothing.  keeps: kernels that are there.  breaks: nothing. Required: backends run kernels.
 */
#include "passes/kernels.h"

/* Which values outside kernels must be stored, be they mere reads: what the caller wants, and what
 * kernels that are there take; the kernels to be made have reads of their own. */
static bool *find_stored(Arena *arena, const Graph *graph)
{
    bool *stored = arena_array(arena, graph->node_count, sizeof *stored);
    for (uint32_t i = 0; i < graph->output_count; i++) stored[graph->outputs[i].value] = true;
    for (NodeId id = 0; id < graph->node_count; id++) {
        const Node *node = graph_node(graph, id);
        for (uint32_t i = 0; node->kernel != NO_KERNEL && i < node->operand_count; i++)
            stored[node->operands[i]] = true;
    }
    return stored;
}

/* An output is row-major memory of the caller's, which a run of another entry does not have: so what
 * is used otherwise too, is packed, or belongs to the caller itself, is copied for it. */
static Graph *separate_outputs(Arena *arena, const Graph *graph)
{
    Rewriter r = rewriter_new(graph, arena);
    uint32_t *uses = graph_uses(graph, arena);
    for (NodeId id = 0; id < graph->node_count; id++) rewriter_copy(&r, id);
    for (uint32_t i = 0; i < graph->output_count; i++) {
        Output output = graph->outputs[i];
        const Node *node = graph_node(graph, output.value);
        bool own = uses[output.value] == 1 && node->layout.rank == 0 && node->op != OP_INPUT &&
                   node->op != OP_PARAM;
        NodeId value = rewriter_value(&r, output.value);
        if (!own) value = build_rearrange(r.to, value, "", &node->type, node->loc);
        graph_add_output(r.to, output.name, output.entry, value);
    }
    return r.to;
}

Graph *pass_form_kernels(PassContext *context, const Graph *graph)
{
    graph = separate_outputs(context->arena, graph);
    Draft draft = draft_new(context->arena, graph);
    const bool *stored = find_stored(context->arena, graph);
    for (NodeId id = 0; id < graph->node_count; id++) {
        const Node *node = graph_node(graph, id);
        bool stored_read = node->op == OP_READ && node->kernel == NO_KERNEL && stored[id];
        if (draft_free(&draft, id) || stored_read) draft_add(&draft, &id, 1);
    }
    return draft_finish(context, &draft);
}
