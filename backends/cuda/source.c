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
}

/* Names shared memory and its parts: scratch, unless it is spilled, and slabs after it. Returns its bytes. */
static int64_t write_memory(Writer *w, int64_t spilled)
{
    long long scratch = (spilled ? 0 : w->scratch) / 4, all = scratch + w->staging;
    if (all > 0) line(w, "raft_shared(shared, %lld);", all);
    if (spilled)
        line(w, "const raft_scratch scratch = spill + blockIdx.x * %lldll;",
             (long long)spilled / 4);
    else if (scratch > 0)
        line(w, "const raft_scratch scratch = shared;");
    if (w->staging > 0 && scratch > 0)
        line(w, "const raft_scratch slabs = shared + %lld;", scratch);
    else if (w->staging > 0)
        line(w, "const raft_scratch slabs = shared;");
    return 4 * all;
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

/* ---- the shape for few images ------------------------------------------------------------------ */

/* Writes the kernel in the shape for few images, if there is one, with memory of its own. */
static bool write_fine(Writer *w, CudaKernel *made)
{
    const Schedule schedule = w->schedule;
    const Graph *graph = w->graph;
    int64_t scratch = w->scratch, staging = w->staging;
    bool found = choose_fine(w);
    if (found) {
        const Kernel *kernel = &w->graph->kernels[schedule.kernel];
        Text *out = w->out, loop = text_new(w->arena);
        w->out = &loop;
        loop.indent = out->indent;
        w->fine = true;
        write_loop(w, made->units, kernel_units(kernel));
        w->fine = false;
        w->out = out;
        made->fine_shared_bytes = write_memory(w, 0);
        w->out->indent = 0;
        text_put(w->out, loop.data);
        made->fine = count_blocks(w);
    }
    w->scratch = scratch;
    w->staging = staging;
    w->graph = graph;
    w->schedule = schedule;
    return found;
}

/* ---- kernels ---------------------------------------------------------------------------------- */

/* The shape for few images, and when it is taken. */
static void write_few(Writer *w, CudaKernel *made)
{
    Text *out = w->out, fine = text_new(w->arena);
    int mark = w->coordinate_count;
    w->out = &fine;
    fine.indent = 2;
    bool has_fine = write_fine(w, made);
    w->coordinate_count = mark;
    w->out = out;
    if (!has_fine) return;
    const char *parts = digit_text(w, "units", made->outer, 0);
    long long block = w->schedule.block;
    if (block > 1) parts = arena_printf(w->arena, "(%s + %lld) / %lld", parts, block - 1, block);
    if (made->outer > 1) parts = arena_printf(w->arena, "%s * %lld", parts, (long long)made->outer);
    open_block(w, "if (gridDim.x > %s)", parts);
    line(w, "// Few images: more and smaller blocks.");
    w->out->indent = 0;
    text_put(w->out, fine.data);
    w->out->indent = 2;
    line(w, "return;");
    close_block(w);
}

/* Scratch lies in shared memory if it fits beside the slabs. */
static void write_kernel(Writer *w, CudaKernel *made)
{
    Text *out = w->out, few = text_new(w->arena), memory = text_new(w->arena),
         all = text_new(w->arena);
    few.indent = memory.indent = all.indent = 1;
    w->scratch = 4 * w->schedule.block * w->schedule.unit_floats;
    w->out = &few;
    write_few(w, made);
    w->temporaries = 0;
    w->out = &all;
    write_loop(w, made->units, made->units);
    if (w->scratch + 4 * w->staging > CUDA_SHARED_BYTES) made->spill_bytes = w->scratch;
    w->out = &memory;
    made->shared_bytes = write_memory(w, made->spill_bytes);
    w->out = out;
    write_comment(w);
    write_head(w, made);
    w->out->indent = 0;
    text_put(w->out, tidy(w->arena,
                          arena_printf(w->arena, "%s%s%s}\n\n", few.data, memory.data, all.data)));
}

static int count_products(const Schedule *s)
{
    int count = 0;
    for (int i = 0; i < s->stage_count; i++) count += s->stages[i].kind == STAGE_PRODUCT;
    return count;
}

/* Units enough that every team has a tile, if their scratch fits; no more where each has one row of its own, or rows are
 * brought side by side. */
static void fill_block(Writer *w)
{
    Schedule *s = &w->schedule;
    bool rows = false;
    int64_t tiles = 0, room = w->target->l2_bytes / 2;
    if (room > w->shared - LEAST_STAGING) room = w->shared - LEAST_STAGING;
    for (int i = 0; i < s->stage_count; i++) {
        const Stage *stage = &s->stages[i];
        const Product *p = &stage->product;
        if (stage->kind != STAGE_PRODUCT || !p->lane || p->of_images) continue;
        if (p->rows_in_w && count_products(s) > 1) continue; /* units are another's */
        int64_t own = product_tiles(w, stage);
        if (tiles == 0 || own < tiles) tiles = own;
        rows |= p->row_count > 0 && !p->rows_together;
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
 * one is at a barrier, others compute. Sums have a thread each, and want many blocks, too. */
static void choose_threads(Writer *w)
{
    const Schedule *s = &w->schedule;
    int products = count_products(s);
    int64_t registers = 0;
    bool sums = false;
    for (int i = 0; i < s->stage_count; i++) {
        sums |= s->stages[i].kind == STAGE_REDUCTION &&
                graph_node(s->graph, s->stages[i].root)->op == OP_SUM;
        if (s->stages[i].kind != STAGE_PRODUCT) continue;
        int64_t own = registers_of(&s->stages[i].product);
        if (own > registers) registers = own;
    }
    bool few = registers <= FEW_SUMS;
    bool small = few && products > 1 && 4 * s->unit_floats + LEAST_STAGING <= SMALL_SHARED_BYTES;
    small |= sums && products == 0;
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
    made->units = kernel_units(kernel);
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
