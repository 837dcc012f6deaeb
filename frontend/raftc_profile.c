/* raftc_profile.c: bench --profile: what each kernel takes, beside what the machine could do.
 *
 * The time of a step is that of the thread that takes longest, and the least of all runs; steps that
 * share code are one row. Balance: how much of that time the threads work, on average.
 */
#include "frontend/raftc_profile.h"

#include <float.h>
#include <string.h>

void profile_begin(Profile *profile, Arena *arena, const Compilation *c, RaftShell *shell,
                   int64_t batch, int threads)
{
    *profile = (Profile){.shell = shell, .plan = c->plan, .batch = batch, .threads = threads};
    profile->code = c->made->steps;
    profile->step = arena_array(arena, (size_t)c->plan->step_count, sizeof *profile->step);
    for (int s = 0; s < c->plan->step_count; s++)
        if (!c->plan->steps[s].prepare) profile->step[profile->step_count++] = s;
    size_t count = (size_t)profile->step_count;
    profile->seconds = arena_array(arena, count * (size_t)profile->threads, sizeof(double));
    profile->least = arena_array(arena, count, sizeof(double));
    profile->work = arena_array(arena, count, sizeof(double));
    for (size_t s = 0; s < count; s++) profile->least[s] = DBL_MAX;
    profile->run = arena_array(arena, count * (size_t)profile->threads, sizeof(double));
    profile->moments =
        arena_array(arena, count * (size_t)profile->threads, sizeof *profile->moments);
    profile->run_moments =
        arena_array(arena, count * (size_t)profile->threads, sizeof *profile->moments);
    raft_shell_measure(profile->shell, profile->seconds, profile->moments);
}

void profile_add(Profile *profile, bool fastest)
{
    size_t all = (size_t)profile->step_count * (size_t)profile->threads;
    if (fastest) {
        memcpy(profile->run, profile->seconds, all * sizeof *profile->run);
        memcpy(profile->run_moments, profile->moments, all * sizeof *profile->moments);
    }
    for (int s = 0; s < profile->step_count; s++) {
        double longest = 0, work = 0;
        for (int thread = 0; thread < profile->threads; thread++) {
            double *seconds = &profile->seconds[thread * profile->step_count + s];
            if (*seconds > longest) longest = *seconds;
            work += *seconds;
            *seconds = 0;
        }
        if (longest >= profile->least[s]) continue;
        profile->least[s] = longest;
        profile->work[s] = work;
    }
}

/* ---- rows ------------------------------------------------------------------------------------ */

static ProfileRow *find_row(ProfileRow *rows, int count, const Profile *profile, int step)
{
    for (int i = 0; i < count; i++)
        if (strcmp(profile->code[rows[i].first].symbol, profile->code[step].symbol) == 0)
            return &rows[i];
    return NULL;
}

/* What a step does beside multiply-adds, for `batch` images, in the time that those take: gelu has 21
 * operations and goes through memory, which takes as long as 30 of them (samples of perf on AVX2). */
static void count_operations(ProfileRow *row, const Graph *graph, int kernel, int64_t batch)
{
    enum { OF_GELU = 30, OF_NORM = 6 };
    NodeId first, end;
    kernel_range(graph, kernel, &first, &end);
    for (NodeId id = first; id < end; id++) {
        const Node *node = graph_node(graph, id);
        const Type *type = node->operand_count ? graph_type(graph, node->operands[0]) : &node->type;
        double count = (double)type_elements(type, NULL) * (double)batch;
        if (node->op == OP_GELU || node->op == OP_GELU_GRAD)
            row->gelu += OF_GELU * count;
        else if (op_info[node->op].cost == COST_NONE && node->op != OP_READ && node->op != OP_WRITE)
            row->others += (op_info[node->op].mixes == MIX_OVER ? OF_NORM : 1) * count;
        row->resamples |= op_info[node->op].cost == COST_TAPS;
    }
}

/* Adds one row for each kernel that ran; returns how many. */
static int add_rows(const Profile *profile, ProfileRow *rows)
{
    int64_t batch = profile->batch;
    int count = 0;
    for (int s = 0; s < profile->step_count; s++) {
        if (profile->least[s] <= 0) continue; /* of another entry */
        int at = profile->step[s];
        const Step *step = &profile->plan->steps[at];
        ProfileRow *row = find_row(rows, count, profile, at);
        if (!row) {
            row = &rows[count++];
            *row = (ProfileRow){.profile = profile, .first = at};
        }
        row->steps++;
        row->seconds += profile->least[s];
        row->work += profile->work[s];
        row->flops += 2 * (double)kernel_cost(profile->plan->graph, step->kernel) * (double)batch;
        count_operations(row, profile->plan->graph, step->kernel, batch);
        row->bytes += (double)step_bytes(profile->plan, step, true) * (double)batch +
                      (double)step_bytes(profile->plan, step, false);
    }
    return count;
}

ProfileRow *profile_rows(const Profile *profile, Arena *arena, int *count)
{
    int steps = 0, rows = 0;
    for (int i = 0; i < *count; i++) steps += profile[i].step_count;
    ProfileRow *row = arena_array(arena, (size_t)steps, sizeof *row);
    for (int i = 0; i < *count; i++) rows += add_rows(&profile[i], row + rows);
    *count = rows;
    return row;
}

const char *profile_row_text(const ProfileRow *row, Arena *arena)
{
    const Plan *plan = row->profile->plan;
    const Graph *graph = plan->graph;
    int at = plan->steps[row->first].kernel;
    const Kernel *kernel = &graph->kernels[at];
    Text text = text_new(arena);
    text_printf(&text, "%s (", kernel_name(graph, at, arena));
    for (int i = 0; i < kernel->rank; i++) {
        const Axis *axis = &kernel->axis[i];
        text_printf(&text, "%s%s", i ? ", " : "", axis->name);
        if (!axis->symbol[0]) text_printf(&text, " %lld", (long long)axis->extent);
        if (kernel->tile[i] != 1) text_printf(&text, " by %lld", (long long)kernel->tile[i]);
    }
    text_put(&text, ")");
    return text.data;
}

static double share(double part, double whole)
{
    return whole > 0 ? part / whole : 0;
}

/* What takes most of the time that the multiply-adds do not. What is left after all that can be counted
 * is taken by loads, and by waiting for results. */
const char *profile_row_cause(const ProfileRow *row, double peak_gflops, double peak_gbytes)
{
    const double enough = 0.65, most_of_memory = 0.7, out_of_caches = 1.5;
    double seconds = row->seconds, operations = 0.5e9 * peak_gflops; /* in a second */
    if (seconds <= 0 || 1e-9 * row->flops >= enough * peak_gflops * seconds) return "";
    double memory = share(1e-9 * row->bytes / seconds, peak_gbytes);
    if (memory >= most_of_memory && memory <= out_of_caches) return "memory";
    if (row->resamples) return "resampling";
    double waiting = seconds - row->work / row->profile->threads;
    double gelu = row->gelu / operations, others = row->others / operations;
    double rest = seconds - 0.5 * row->flops / operations - waiting - gelu - others;
    if (waiting >= gelu && waiting >= others && waiting >= rest) return "waiting";
    if (gelu >= others && gelu >= rest) return "gelu";
    return others >= rest ? "operations" : "loads";
}

/* ---- printing -------------------------------------------------------------------------------- */

void profile_print(const Profile *profile, int count, Arena *arena, double peak_gflops,
                   double peak_gbytes)
{
    const ProfileRow *rows = profile_rows(profile, arena, &count);
    double seconds = 0;
    for (int i = 0; i < count; i++) seconds += rows[i].seconds;
    printf("%4s %5s %9s %6s %8s %9s %7s %9s %8s %9s  %-10s  %s\n", "step", "times", "ms", "time",
           "balance", "GFLOP/s", "of peak", "MB", "GB/s", "of memory", "slowed by", "kernel");
    for (int i = 0; i < count; i++) {
        const ProfileRow *row = &rows[i];
        double gflops = 1e-9 * row->flops / row->seconds, gbytes = 1e-9 * row->bytes / row->seconds;
        printf("%4d %5d %9.3f %4.1f %% %6.1f %% %9.2f %5.1f %% %9.3f %8.2f %7.1f %%  %-10s  %s\n",
               row->first, row->steps, 1e3 * row->seconds, 100 * row->seconds / seconds,
               100 * row->work / row->seconds / row->profile->threads, gflops,
               100 * share(gflops, peak_gflops), 1e-6 * row->bytes, gbytes,
               100 * share(gbytes, peak_gbytes), profile_row_cause(row, peak_gflops, peak_gbytes),
               profile_row_text(row, arena));
    }
    printf("%10s %9.3f ms in kernels, each at its best; memory %.2f GB/s\n", "", 1e3 * seconds,
           peak_gbytes);
}

json_t *profile_json(const Profile *profile, int count, Arena *arena, double peak_gflops,
                     double peak_gbytes)
{
    const ProfileRow *rows = profile_rows(profile, arena, &count);
    json_t *list = json_array();
    for (int i = 0; i < count; i++) {
        const ProfileRow *row = &rows[i];
        json_array_append_new(
            list, json_pack("{s:i, s:i, s:f, s:f, s:f, s:f, s:f, s:s, s:s}", "step", row->first,
                            "times", row->steps, "ms", 1e3 * row->seconds, "balance",
                            row->work / row->seconds / row->profile->threads, "gflops",
                            1e-9 * row->flops / row->seconds, "mbytes", 1e-6 * row->bytes,
                            "gbytes_per_second", 1e-9 * row->bytes / row->seconds, "slowed_by",
                            profile_row_cause(row, peak_gflops, peak_gbytes), "kernel",
                            profile_row_text(row, arena)));
    }
    return list;
}
