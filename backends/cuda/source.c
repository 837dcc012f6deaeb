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

/* The loop over the blocks of units that fall to this thread block. */
static void write_body(Writer *w)
{
    const Kernel *kernel = &w->graph->kernels[w->schedule.kernel];
    long long outer = outermost_tiles(w), block = w->schedule.block;
    line(w, "const long long each = units / %lld, parts = (each + %lld) / %lld;", outer, block - 1,
         block);
    open_block(w, "for (long long part = blockIdx.x; part < parts * %lld; part += gridDim.x)",
               outer);
    if (outer > 1) line(w, "const int u_%s = (int)(part / parts);", kernel->axis[0].name);
    line(w, "const long long first = part %% parts * %lld;", block);
    enter_block(w);
    for (int i = 0; i < w->schedule.stage_count; i++) write_stage(w, &w->schedule.stages[i]);
    close_block(w);
    w->out->indent--;
    text_put(w->out, "}\n\n");
}

/* Scratch lies in shared memory if it fits beside the slabs. */
static void write_kernel(Writer *w, CudaKernel *made)
{
    Text *out = w->out, body = text_new(w->arena);
    w->out = &body;
    body.indent = 1;
    write_body(w);
    w->out = out;
    int64_t scratch = 4 * w->schedule.block * w->schedule.unit_floats;
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

static bool emit_step(Writer *w, const Step *step, CudaKernel *made, int number)
{
    const Kernel *kernel = &w->graph->kernels[step->kernel];
    w->step = step;
    w->temporaries = w->coordinate_count = 0;
    w->staging = 0;
    if (!schedule_kernel(&w->schedule, w->arena, w->graph, step->kernel, w->target, w->diag))
        return false;
    w->computed = arena_array(w->arena, w->schedule.end - w->schedule.first, sizeof *w->computed);
    w->threads = THREADS;
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
                .tables = &tables};
    CudaSource *source = arena_alloc(arena, sizeof *source);
    source->kernels = arena_array(arena, (size_t)plan->step_count, sizeof *source->kernels);
    source->kernel_count = plan->step_count;
    const char **key = arena_array(arena, (size_t)plan->step_count, sizeof *key);
    for (int s = 0; s < plan->step_count; s++) {
        key[s] = step_key(arena, plan, &plan->steps[s]);
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
