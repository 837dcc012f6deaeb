/* source.c: the kernels of a plan as one self-contained CUDA C++ text. */
#include "backends/cuda/emit.h"
#include "backends/cuda/prelude.h"

#include <string.h>

/* Threads of a block, and blocks that are to fit on a multiprocessor; registers for sums that so many threads leave, that three
 * blocks of half the threads leave; shared memory of which four of these fit. */
enum { THREADS = 256, BLOCKS = 2, FEW_SUMS = 76, SOME_SUMS = 100, SMALL_SHARED_BYTES = 56 << 10 };

void cuda_target(Target *target)
{
    /* A team of threads is the vector. Half of `l2_bytes` bounds the scratch of a block of units, which is to fit in the shared
     * memory of a thread block beside the parts of operands. */
    *target = (Target){.vector_floats = TEAM,
                       .vector_registers = 72,
                       .fma = true,
                       .l1_bytes = 48 << 10,
                       .l2_bytes = 2 * (CUDA_SHARED_BYTES - (24 << 10)),
                       .packs_weights = true,
                       .stages_operands = true,
                       .registers_alone = 144,
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
                w->threads, w->blocks, made->symbol);
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
    int64_t before = made->shared_bytes / 4 - w->staging;
    if (w->staging > 0)
        line(w,
             before > 0 ? "const raft_scratch slabs = shared + %lld;"
                        : "const raft_scratch slabs = shared;",
             (long long)before);
}

/* The loop over the blocks of units that fall to this thread block: of `units` an image, where `launched` are counted in
 * the kernel's argument. Where all units of a block have the same index along the outermost axis, that changes first:
 * blocks that run side by side then read the same activations. */
static void write_loop(Writer *w, int64_t launched, int64_t units)
{
    const Kernel *kernel = &w->graph->kernels[w->schedule.kernel];
    long long outer = outermost_tiles(w), block = w->schedule.block, each = units / outer;
    const char *share = digit_text(w, arena_printf(w->arena, "raft_again((%s)units)", w->index),
                                   each % launched == 0 ? 1 : launched, 0);
    long long times = each % launched == 0 ? each / launched : each;
    open_block(w, "for (%s part = blockIdx.x;; part += gridDim.x)", w->index);
    const char *part = "part";
    if (outer > 1) {
        line(w, "const int u_%s = part %% %lld;", kernel->axis[0].name, outer);
        part = arena_printf(w->arena, "part / %lld", outer);
    }
    line(w, block > 1 ? "const %s first = %s * %lld;" : "const %s first = %s;", w->index, part,
         block);
    line(w, times > 1 ? "const %s each = %s * %lld;" : "const %s each = %s;", w->index, share,
         times);
    line(w, "if (first >= each) break;");
    if (block > 1) line(w, "const int here = raft_min(each - first, %lld);", block);
    enter_block(w);
    for (int i = 0; i < w->schedule.stage_count; i++) write_stage(w, &w->schedule.stages[i]);
    close_block(w);
}

/* ---- the fine shape --------------------------------------------------------------------------- */

static int64_t count_units(const Kernel *kernel)
{
    int64_t units = 1;
    for (int i = 0; i < kernel->rank; i++)
        if (!kernel->axis[i].symbol[0])
            units *= (kernel->axis[i].extent + kernel->tile[i] - 1) / kernel->tile[i];
    return units;
}

/* Halves the kernel's tile along an axis, to whole multiples of `least`. False: it is no more than that. */
static bool halve(Kernel *kernel, int k, int64_t least)
{
    if (k < 0 || kernel->axis[k].symbol[0] || kernel->tile[k] <= least) return false;
    int64_t half = (kernel->tile[k] + 1) / 2;
    kernel->tile[k] = (half + least - 1) / least * least;
    return true;
}

/* The same kernel cut into smaller units, for a graph of its own: as many an image as a GPU has multiprocessors, if
 * products have lanes or rows enough along the axes of the kernel. */
static Graph *cut_finer(Writer *w)
{
    const Schedule *s = &w->schedule;
    Graph *graph = arena_alloc(w->arena, sizeof *graph);
    *graph = *w->graph;
    graph->kernels = arena_array(w->arena, graph->kernel_count, sizeof *graph->kernels);
    memcpy(graph->kernels, w->graph->kernels, graph->kernel_count * sizeof *graph->kernels);
    Kernel *kernel = &graph->kernels[s->kernel];
    bool cut = true;
    while (cut && count_units(kernel) < FINE_UNITS) {
        cut = false;
        for (int i = 0; i < s->stage_count && !cut; i++) {
            const Product *p = &s->stages[i].product;
            if (s->stages[i].kind != STAGE_PRODUCT) continue;
            if (p->lane) cut = halve(kernel, schedule_axis(s, p->lane), TEAM * FINE_VECTORS);
            for (int k = 0; k < p->row_count && !cut; k++)
                cut = halve(kernel, schedule_axis(s, p->row[k]), 1);
        }
    }
    return graph;
}

/* Few images need fewer thread blocks than there are multiprocessors. Then more are launched, and share the work in
 * smaller pieces: one unit a block at most, and tiles of fewer sums, with every sum as it always is. Returns false where the
 * kernel has no products, or only those of whole units. */
static bool write_fine(Writer *w, CudaKernel *made)
{
    const Schedule schedule = w->schedule;
    const Graph *graph = w->graph;
    bool products = false;
    for (int i = 0; i < schedule.stage_count; i++)
        products |= schedule.stages[i].kind == STAGE_PRODUCT;
    if (!products) return false;
    w->graph = cut_finer(w);
    int64_t units = made->units, fine = count_units(&w->graph->kernels[schedule.kernel]);
    if ((fine == units && schedule.block == 1) ||
        !schedule_kernel(&w->schedule, w->arena, w->graph, schedule.kernel, w->target, w->diag)) {
        w->graph = graph;
        w->schedule = schedule;
        return false;
    }
    w->schedule.block = 1;
    w->fine = true;
    for (int i = 0; i < w->schedule.stage_count; i++) {
        Product *p = &w->schedule.stages[i].product;
        if (p->vectors > FINE_VECTORS) p->vectors = FINE_VECTORS;
    }
    made->fine = (fine + units - 1) / units;
    write_loop(w, units, fine);
    RAFTC_ASSERT(4 * w->schedule.unit_floats <= w->scratch);
    w->fine = false;
    w->graph = graph;
    w->schedule = schedule;
    return true;
}

/* ---- kernels ---------------------------------------------------------------------------------- */

static void write_body(Writer *w, CudaKernel *made)
{
    Text *out = w->out, fine = text_new(w->arena);
    int mark = w->coordinate_count;
    w->out = &fine;
    fine.indent = 2;
    bool has_fine = write_fine(w, made);
    w->coordinate_count = mark;
    w->out = out;
    if (has_fine) {
        const char *parts = digit_text(w, "units", made->outer, 0);
        long long block = w->schedule.block;
        if (block > 1)
            parts = arena_printf(w->arena, "(%s + %lld) / %lld", parts, block - 1, block);
        if (made->outer > 1)
            parts = arena_printf(w->arena, "%s * %lld", parts, (long long)made->outer);
        open_block(w, "if (gridDim.x > %s)", parts);
        line(w, "// Few images: smaller units, one in a block.");
        w->out->indent = 0;
        text_put(w->out, fine.data);
        w->out->indent = 2;
        line(w, "return;");
        close_block(w);
    }
    write_loop(w, made->units, made->units);
    w->out->indent--;
    text_put(w->out, "}\n\n");
}

/* Scratch lies in shared memory if it fits beside the slabs. */
static void write_kernel(Writer *w, CudaKernel *made)
{
    Text *out = w->out, body = text_new(w->arena);
    w->out = &body;
    body.indent = 1;
    w->scratch = 4 * w->schedule.block * w->schedule.unit_floats;
    write_body(w, made);
    w->out = out;
    made->shared_bytes = 4 * w->staging;
    if (w->scratch + made->shared_bytes > CUDA_SHARED_BYTES)
        made->spill_bytes = w->scratch;
    else
        made->shared_bytes += w->scratch;
    write_comment(w);
    write_head(w, made);
    w->out->indent = 0;
    text_put(w->out, tidy(w->arena, body.data));
}

/* Units enough that every team has a tile, if their scratch fits; no more where each has one row of its own. */
static void fill_block(Writer *w)
{
    Schedule *s = &w->schedule;
    bool rows = false;
    int64_t tiles = 0, room = w->target->l2_bytes / 2;
    if (room > w->shared - LEAST_STAGING) room = w->shared - LEAST_STAGING;
    for (int i = 0; i < s->stage_count; i++) {
        const Stage *stage = &s->stages[i];
        if (stage->kind != STAGE_PRODUCT || stage->product.rows_in_w || !stage->product.lane)
            continue;
        int64_t own = product_tiles(w, stage);
        if (tiles == 0 || own < tiles) tiles = own;
        rows |= stage->product.row_count > 0;
    }
    int64_t units = tiles > 0 ? w->threads / TEAM / tiles : 0;
    int64_t most = room / (4 * (s->unit_floats + 1));
    if (units > most) units = most;
    if (units > s->block || (units > 0 && !rows)) s->block = units;
}

/* Registers for the sums of a thread, and for four steps of the operand with the lanes. */
static int64_t registers_of(const Product *p)
{
    int64_t rows = 1;
    for (int k = 0; k < p->row_count; k++) rows *= p->row_tile[k];
    return (rows + 4) * p->vectors;
}

/* Half the threads a block where each needs more registers, or where two products leave room for twice as many blocks: while
 * one is at a barrier, others compute. */
static void choose_threads(Writer *w)
{
    const Schedule *s = &w->schedule;
    int products = 0;
    int64_t registers = 0;
    for (int i = 0; i < s->stage_count; i++) {
        if (s->stages[i].kind != STAGE_PRODUCT) continue;
        products++;
        int64_t own = registers_of(&s->stages[i].product);
        if (own > registers) registers = own;
    }
    bool few = registers <= FEW_SUMS;
    bool small = few && products > 1 && 4 * s->unit_floats + LEAST_STAGING <= SMALL_SHARED_BYTES;
    w->threads = few && !small ? THREADS : THREADS / 2;
    w->blocks = small ? 2 * BLOCKS : few || registers > SOME_SUMS ? BLOCKS : BLOCKS + 1;
    w->shared = small ? SMALL_SHARED_BYTES : CUDA_SHARED_BYTES;
}

static bool emit_step(Writer *w, const Step *step, CudaKernel *made, int number)
{
    const Kernel *kernel = &w->graph->kernels[step->kernel];
    w->step = step;
    w->temporaries = w->coordinate_count = 0;
    w->staging = 0;
    if (!schedule_kernel(&w->schedule, w->arena, w->graph, step->kernel, w->target, w->diag))
        return false;
    choose_threads(w);
    fill_block(w);
    w->computed = arena_array(w->arena, w->schedule.end - w->schedule.first, sizeof *w->computed);
    made->symbol = arena_printf(w->arena, "%s_k%d_%s", w->graph->name, number,
                                kernel_name(w->graph, step->kernel, w->arena));
    made->threads = w->threads;
    made->block = w->schedule.block;
    made->units = count_units(kernel);
    made->outer = outermost_tiles(w);
    for (int i = 0; i < kernel->rank; i++) made->batched |= kernel->axis[i].symbol[0] != '\0';
    write_kernel(w, made);
    return true;
}

/* The type of all indices: the elements of every buffer, for as many images as there are at a time, can be counted with an
 * int, unless a model is huge. */
static const char *index_type(const Plan *plan)
{
    for (int i = 0; i < plan->buffer_count; i++) {
        const Buffer *buffer = &plan->buffers[i];
        if (buffer->elements > CUDA_INT_ELEMENTS / (buffer->batched ? cuda_chunk(plan) : 1))
            return "long long";
    }
    return "int";
}

CudaSource *cuda_emit(Arena *arena, const Plan *plan, Diag *diag)
{
    Target target;
    cuda_target(&target);
    Text kernels = text_new(arena), tables = text_new(arena);
    Writer w = {.arena = arena,
                .diag = diag,
                .plan = plan,
                .graph = plan->graph,
                .target = &target,
                .out = &kernels,
                .tables = &tables,
                .index = index_type(plan)};
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
