/* source.c: the kernels of a plan as one self-contained CUDA C++ text. */
#include "backends/cuda/emit.h"
#include "backends/cuda/prelude.h"

#include <string.h>

enum { THREADS = 256, BLOCKS = 2 }; /* of a thread block; of these on a multiprocessor */

void cuda_target(Target *target)
{
    /* A warp is the vector. Half of `l2_bytes` bounds the scratch of a block of units, which is to fit in the shared
     * memory of a thread block beside the parts of operands. */
    *target = (Target){.vector_floats = WARP,
                       .vector_registers = 64,
                       .fma = true,
                       .l1_bytes = 48 << 10,
                       .l2_bytes = 2 * (CUDA_SHARED_BYTES - (24 << 10)),
                       .packs_weights = true,
                       .stages_operands = true,
                       .fused_bytes = 88 << 10};
}

static void write_comment(Writer *w)
{
    const Graph *g = w->graph;
    const Kernel *kernel = &g->kernels[w->schedule.kernel];
    Text text = text_new(w->arena);
    for (NodeId id = w->schedule.first; id < w->schedule.end; id++) {
        text_put(&text, "// ");
        node_print(g, id, &text);
        text_put(&text, "\n");
    }
    text_put(w->out, "// kernel for (");
    for (int i = 0; i < kernel->rank; i++) {
        text_printf(w->out, "%s%s", i ? ", " : "", kernel->axis[i].name);
        if (!kernel->axis[i].symbol[0])
            text_printf(w->out, " %lld by %lld", (long long)kernel->axis[i].extent,
                        (long long)kernel->tile[i]);
    }
    text_printf(w->out, "), %d threads, %lld units a block\n%s", w->threads,
                (long long)w->schedule.block, text.data);
}

static void write_head(Writer *w, const CudaKernel *made)
{
    const Step *step = w->step;
    text_printf(w->out, "extern \"C\" __global__ void __launch_bounds__(%d, %d) %s(\n    ",
                w->threads, BLOCKS, made->symbol);
    for (int i = 0; i < step->argument_count; i++) {
        NodeId value = w->plan->buffers[step->arguments[i]].value;
        bool written = schedule_holds(&w->schedule, value);
        text_printf(w->out, "%s a%d, ", written ? "raft_output" : "raft_input", i);
    }
    text_put(w->out, "long long batch, long long units, raft_scratch spill)\n{\n");
    w->out->indent++;
    if (made->shared_bytes > 0)
        line(w, "raft_shared(shared, %lld);", (long long)made->shared_bytes / 4);
    if (made->spill_bytes > 0)
        line(w, "const raft_scratch scratch = spill + blockIdx.x * %lldll;",
             (long long)made->spill_bytes / 4);
    else if (made->shared_bytes > 4 * w->staging)
        line(w, "const raft_scratch scratch = shared;");
    if (w->staging > 0)
        line(w, "const raft_scratch slabs = shared + %lld;",
             (long long)(made->shared_bytes / 4 - w->staging));
}

/* The loop over the blocks of units that fall to this thread block; a unit is one of `pieces` of the units that are launched. */
static void write_loop(Writer *w, long long pieces)
{
    const Kernel *kernel = &w->graph->kernels[w->schedule.kernel];
    long long outer = outermost_tiles(w), block = w->schedule.block;
    const char *units = pieces > 1 ? arena_printf(w->arena, "units * %lld", pieces) : "units";
    line(w, "const long long each = %s / %lld, parts = (each + %lld) / %lld;", units, outer,
         block - 1, block);
    open_block(w, "for (long long part = blockIdx.x; part < parts * %lld; part += gridDim.x)",
               outer);
    if (outer > 1) line(w, "const int u_%s = (int)(part / parts);", kernel->axis[0].name);
    line(w, "const long long first = part %% parts * %lld;", block);
    enter_block(w);
    for (int i = 0; i < w->schedule.stage_count; i++) write_stage(w, &w->schedule.stages[i]);
    close_block(w);
}

/* ---- the fine shape --------------------------------------------------------------------------- */

/* The largest divisor of n up to `most`. */
static int64_t divisor(int64_t n, int64_t most)
{
    while (n % most != 0) most--;
    return most;
}

/* The same kernel cut into smaller units, for a graph of its own: fewer lanes in each. */
static Graph *cut_finer(Writer *w, int64_t *pieces)
{
    const Schedule *s = &w->schedule;
    Graph *graph = arena_alloc(w->arena, sizeof *graph);
    *graph = *w->graph;
    graph->kernels = arena_array(w->arena, graph->kernel_count, sizeof *graph->kernels);
    memcpy(graph->kernels, w->graph->kernels, graph->kernel_count * sizeof *graph->kernels);
    Kernel *kernel = &graph->kernels[s->kernel];
    *pieces = 1;
    for (int i = 0; i < s->stage_count; i++) {
        const Product *p = &s->stages[i].product;
        int k = s->stages[i].kind == STAGE_PRODUCT && p->lane ? schedule_axis(s, p->lane) : -1;
        if (k < 0 || kernel->axis[k].symbol[0] || kernel->tile[k] <= FINE_LANES) continue;
        if (kernel->tile[k] % FINE_LANES != 0 || kernel->axis[k].extent % kernel->tile[k] != 0)
            continue;
        *pieces *= kernel->tile[k] / FINE_LANES;
        kernel->tile[k] = FINE_LANES;
    }
    return graph;
}

/* Few images need fewer thread blocks than there are multiprocessors. Then more are launched, and share the work in
 * smaller pieces: one unit a block at most, and tiles of fewer sums, with every sum as it always is. Returns false where the
 * kernel has no products whose tiles can be smaller. */
static bool write_fine(Writer *w, CudaKernel *made, int64_t *scratch)
{
    const Schedule schedule = w->schedule;
    const Graph *graph = w->graph;
    int64_t pieces;
    bool shared = false;
    for (int i = 0; i < schedule.stage_count; i++)
        shared |= schedule.stages[i].kind == STAGE_PRODUCT &&
                  !schedule.stages[i].product.rows_in_w && schedule.stages[i].product.row_count > 0;
    if (!shared) return false;
    w->graph = cut_finer(w, &pieces);
    if ((pieces == 1 && schedule.block == 1) ||
        !schedule_kernel(&w->schedule, w->arena, w->graph, schedule.kernel, w->target, w->diag)) {
        w->graph = graph;
        w->schedule = schedule;
        return false;
    }
    w->schedule.block = 1;
    w->fine = true;
    for (int i = 0; i < w->schedule.stage_count; i++) {
        Product *p = &w->schedule.stages[i].product;
        if (w->schedule.stages[i].kind != STAGE_PRODUCT || p->row_count == 0) continue;
        p->vectors = 1;
        p->row_tile[p->row_count - 1] = divisor(p->row_tile[p->row_count - 1], FINE_ROWS);
    }
    made->fine = pieces;
    write_loop(w, pieces);
    *scratch = 4 * w->schedule.unit_floats;
    w->fine = false;
    w->graph = graph;
    w->schedule = schedule;
    return true;
}

/* ---- kernels ---------------------------------------------------------------------------------- */

static void write_body(Writer *w, CudaKernel *made, int64_t *scratch)
{
    Text *out = w->out, fine = text_new(w->arena);
    int64_t fine_scratch = 0;
    int mark = w->coordinate_count;
    w->out = &fine;
    fine.indent = 2;
    bool has_fine = write_fine(w, made, &fine_scratch);
    w->coordinate_count = mark;
    w->out = out;
    if (has_fine) {
        long long outer = outermost_tiles(w), block = w->schedule.block;
        open_block(w, "if (gridDim.x > (units / %lld + %lld) / %lld * %lld)", outer, block - 1,
                   block, outer);
        w->out->indent = 0;
        text_put(w->out, fine.data);
        w->out->indent = 1;
        line(w, "return;");
        close_block(w);
    }
    write_loop(w, 1);
    *scratch = 4 * w->schedule.block * w->schedule.unit_floats;
    if (fine_scratch > *scratch) *scratch = fine_scratch;
    w->out->indent--;
    text_put(w->out, "}\n\n");
}

/* Scratch lies in shared memory if it fits beside the slabs. */
static void write_kernel(Writer *w, CudaKernel *made)
{
    Text *out = w->out, body = text_new(w->arena);
    w->out = &body;
    body.indent = 1;
    int64_t scratch;
    write_body(w, made, &scratch);
    w->out = out;
    made->shared_bytes = 4 * w->staging;
    if (scratch + made->shared_bytes > CUDA_SHARED_BYTES)
        made->spill_bytes = scratch;
    else
        made->shared_bytes += scratch;
    write_comment(w);
    write_head(w, made);
    w->out->indent = 0;
    text_put(w->out, body.data);
}

/* Units enough that every warp has a tile, if their scratch fits. */
static void fill_block(Writer *w)
{
    Schedule *s = &w->schedule;
    int64_t tiles = 0, most = w->target->l2_bytes / 2 / (4 * (s->unit_floats + 1));
    for (int i = 0; i < s->stage_count; i++) {
        const Stage *stage = &s->stages[i];
        if (stage->kind != STAGE_PRODUCT || stage->product.rows_in_w || !stage->product.lane)
            continue;
        int64_t own = product_tiles(w, stage);
        if (tiles == 0 || own < tiles) tiles = own;
    }
    while (tiles > 0 && tiles * s->block < w->threads / WARP && 2 * s->block <= most) s->block *= 2;
}

static bool emit_step(Writer *w, const Step *step, CudaKernel *made, int number)
{
    const Kernel *kernel = &w->graph->kernels[step->kernel];
    w->step = step;
    w->temporaries = w->coordinate_count = 0;
    w->staging = 0;
    if (!schedule_kernel(&w->schedule, w->arena, w->graph, step->kernel, w->target, w->diag))
        return false;
    w->threads = THREADS;
    fill_block(w);
    w->computed = arena_array(w->arena, w->schedule.end - w->schedule.first, sizeof *w->computed);
    made->symbol = arena_printf(w->arena, "%s_k%d_%s", w->graph->name, number,
                                kernel_name(w->graph, step->kernel, w->arena));
    made->threads = w->threads;
    made->block = w->schedule.block;
    made->units = 1;
    for (int i = 0; i < kernel->rank; i++) {
        if (kernel->axis[i].symbol[0])
            made->batched = true;
        else
            made->units *= (kernel->axis[i].extent + kernel->tile[i] - 1) / kernel->tile[i];
    }
    write_kernel(w, made);
    return true;
}

static bool sums_over_symbol(const Graph *graph, const Node *node)
{
    const Type *x = graph_type(graph, node->operands[0]);
    for (int i = 0; i < x->rank; i++)
        if (x->axis[i].symbol[0] && names_contain(&node->attributes.over, x->axis[i].name))
            return true;
    return false;
}

/* What training adds, this backend does not have. */
static bool check_ops(const Graph *graph, Diag *diag)
{
    for (NodeId id = 0; id < graph->node_count; id++) {
        const Node *node = graph_node(graph, id);
        if (node->kernel == NO_KERNEL) continue;
        if (!op_has_text(node->op) || (node->op == OP_LINEAR && sums_over_symbol(graph, node)))
            return diag_error(diag, node->loc, "the CUDA backend has no %s%s",
                              op_info[node->op].name,
                              op_has_text(node->op) ? " over the batch" : "");
    }
    return true;
}

CudaSource *cuda_emit(Arena *arena, const Plan *plan, Diag *diag)
{
    if (!check_ops(plan->graph, diag)) return NULL;
    Target target;
    cuda_target(&target);
    Text kernels = text_new(arena), tables = text_new(arena);
    Writer w = {.arena = arena,
                .diag = diag,
                .plan = plan,
                .graph = plan->graph,
                .target = &target,
                .out = &kernels,
                .tables = &tables};
    CudaSource *source = arena_alloc(arena, sizeof *source);
    source->kernels = arena_array(arena, (size_t)plan->step_count, sizeof *source->kernels);
    source->kernel_count = plan->step_count;
    const char **key = arena_array(arena, (size_t)plan->step_count, sizeof *key);
    for (int s = 0; s < plan->step_count; s++) {
        key[s] = kernel_key(arena, plan->graph, plan->steps[s].kernel, true);
        int same = 0;
        while (same < s && strcmp(key[same], key[s]) != 0) same++;
        if (same < s)
            source->kernels[s] = source->kernels[same];
        else if (!emit_step(&w, &plan->steps[s], &source->kernels[s], s))
            return NULL;
    }
    source->text = arena_printf(arena, "// %s: kernels made by raftc\n%s\n%s\n%s",
                                plan->graph->name, cuda_prelude, tables.data, kernels.data);
    return source;
}
