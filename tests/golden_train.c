/* golden_train.c: trains whole models as people do, and compares with PyTorch's numbers (data/goldens/).
 *
 *     golden_train RAFTC reference|cpu|cuda|cuda-emulate FILE.safetensors
 *
 * cuda-emulate: the kernels of --target cuda, on the CPU.
 * A file holds the description of a model and of a run in its metadata (`config`, `classes`, `batch`,
 * `size`, `steps`, `lr`, `weight_decay`, `label_smoothing`), and what AdamW made of the made-up weights
 * and batch:
 *     losses      [steps]    before each step
 *     grad.P                 the gradient of step 1 of parameter P, or grad.P.head its first 8 numbers,
 *     grad.P.norm [1]        and its L2 norm
 *     after.P                the parameter after the last step (not in every file)
 * A loss may be off by 1e-3 of itself, a gradient by 2e-4 of the greater of its norm and 1e-4 of the norm
 * of all gradients, a parameter by 5e-4 of its norm. Where a gradient is below that floor it is rounding
 * noise, which AdamW blows up to whole steps: `after` is not compared there. Exit status 1 if any is past it.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ir/base.h"
#include "runtime/raft.h"

static const double loss_tolerance = 1e-3, gradient_tolerance = 2e-4, after_tolerance = 5e-4;
static const double floor_share = 1e-4;

typedef struct Score {
    int checks, failures;
    double worst; /* of its tolerance */
} Score;

static _Noreturn void die(const char *what, const char *why)
{
    fprintf(stderr, "golden_train: %s: %s\n", what, why);
    exit(1);
}

static RaftWeights *open_file(const char *path)
{
    RaftWeights *file;
    RaftError error;
    if (raft_weights_open(path, &file, &error) != RAFT_OK) die(path, error.message);
    return file;
}

static const char *metadata(const RaftWeights *file, const char *wanted)
{
    const char *key, *value;
    for (int i = 0; raft_weights_metadata(file, i, &key, &value); i++)
        if (strcmp(key, wanted) == 0) return value;
    die("metadata", wanted);
}

/* NULL where the file has no such tensor. */
static float *read_tensor(Arena *arena, const RaftWeights *file, const char *name, int64_t *count)
{
    const RaftTensor *tensor = raft_weights_find(file, name);
    RaftError error;
    if (!tensor) return NULL;
    float *data = arena_array(arena, (size_t)tensor->elements, sizeof *data);
    if (raft_tensor_read_f32(tensor, data, &error) != RAFT_OK) die(name, error.message);
    *count = tensor->elements;
    return data;
}

static double norm(const float *a, const float *b, int64_t count)
{
    double sum = 0;
    for (int64_t i = 0; i < count; i++) {
        double difference = (double)a[i] - (b ? (double)b[i] : 0);
        sum += difference * difference;
    }
    return sqrt(sum);
}

static void judge(Score *score, const char *name, double ratio)
{
    bool good = ratio <= 1; /* false of a NaN */
    score->checks++;
    score->failures += !good;
    score->worst = fmax(score->worst, isnan(ratio) ? INFINITY : ratio);
    if (!good) printf("FAIL %s: %.3g of the tolerance\n", name, ratio);
}

/* ---- running ---------------------------------------------------------------------------------- */

static void write_config(const char *path, const char *config)
{
    FILE *file = fopen(path, "w");
    if (!file || fputs(config, file) < 0 || fclose(file) != 0) die(path, "cannot be written");
}

static void run(Arena *arena, const char *raftc, const char *target, const RaftWeights *golden,
                const char *folder)
{
    write_config(arena_printf(arena, "%s/model.yaml", folder), metadata(golden, "config"));
    const char *command = arena_printf(
        arena,
        "%s train %s/model.yaml --target %s --weights @fill --data @fill --batch %s --image %s "
        "--steps %s --set num_classes=%s --set lr=%s --set weight_decay=%s "
        "--set label_smoothing_alpha=%s --metrics %s/m.jsonl --dump-gradients %s/g.safetensors "
        "--save %s/w.safetensors -q",
        raftc, folder, strcmp(target, "cuda-emulate") == 0 ? "cuda --emulate" : target,
        metadata(golden, "batch"), metadata(golden, "size"), metadata(golden, "steps"),
        metadata(golden, "classes"), metadata(golden, "lr"), metadata(golden, "weight_decay"),
        metadata(golden, "label_smoothing"), folder, folder, folder);
    if (system(command) != 0) die("this fails", command);
}

/* ---- comparing -------------------------------------------------------------------------------- */

static void check_losses(Arena *arena, const RaftWeights *golden, const char *path, Score *score)
{
    int64_t count;
    const float *losses = read_tensor(arena, golden, "losses", &count);
    FILE *file = fopen(path, "r");
    if (!losses || !file) die(path, "no losses");
    for (int64_t i = 0; i < count; i++) {
        long long step;
        double loss;
        if (fscanf(file, " {\"step\": %lld, \"loss\": %lf}", &step, &loss) != 2 || step != i + 1)
            die(path, "is not one object a step");
        double share = fabs(loss / (double)losses[i] - 1) / loss_tolerance;
        judge(score, arena_printf(arena, "loss of step %lld", step), share);
    }
    if (fscanf(file, " %*c") != EOF) die(path, "has more than one object a step");
    fclose(file);
}

static double total_norm(Arena *arena, const RaftWeights *golden)
{
    double squares = 0;
    for (int i = 0; i < raft_weights_count(golden); i++) {
        const char *name = raft_weights_tensor(golden, i)->name;
        const char *end = strlen(name) > 5 ? name + strlen(name) - 5 : name;
        int64_t count;
        if (strcmp(end, ".norm") != 0) continue;
        double value = (double)read_tensor(arena, golden, name, &count)[0];
        squares += value * value;
    }
    return sqrt(squares);
}

/* Of one parameter: its gradient, and what became of it. */
static void check_parameter(Arena *arena, const RaftWeights *golden, const RaftWeights *gradients,
                            const RaftWeights *after, const char *name, double total, Score *score)
{
    int64_t count, one, head = 0, whole = 0;
    const float *gradient = read_tensor(arena, gradients, name, &count);
    const char *stem = arena_printf(arena, "grad.%s", name);
    const float *length = read_tensor(arena, golden, arena_printf(arena, "%s.norm", stem), &one);
    const float *expected = read_tensor(arena, golden, stem, &head);
    if (!length) die(name, "the golden does not have it");
    double floor = fmax((double)length[0], floor_share * total) * gradient_tolerance;
    if (!expected) {
        expected = read_tensor(arena, golden, arena_printf(arena, "%s.head", stem), &head);
        judge(score, stem, fabs(norm(gradient, NULL, count) - (double)length[0]) / floor);
    }
    if (!expected || head > count) die(name, "the golden does not have it");
    judge(score, stem, norm(gradient, expected, head) / floor);
    const float *weights = read_tensor(arena, after, name, &count);
    expected = read_tensor(arena, golden, arena_printf(arena, "after.%s", name), &whole);
    if (!expected || (double)length[0] < floor_share * total) return;
    if (whole != count) die(name, "has another size");
    judge(score, arena_printf(arena, "after.%s", name),
          norm(weights, expected, count) / norm(expected, NULL, count) / after_tolerance);
}

int main(int argc, char **argv)
{
    if (argc != 4)
        die("usage", "golden_train RAFTC reference|cpu|cuda|cuda-emulate FILE.safetensors");
    Arena arena = {0};
    Score score = {0};
    char folder[] = "/tmp/golden-train-XXXXXX";
    if (!mkdtemp(folder)) die(folder, "cannot be made");
    RaftWeights *golden = open_file(argv[3]);
    run(&arena, argv[1], argv[2], golden, folder);
    RaftWeights *gradients = open_file(arena_printf(&arena, "%s/g.safetensors", folder));
    RaftWeights *after = open_file(arena_printf(&arena, "%s/w.safetensors", folder));
    check_losses(&arena, golden, arena_printf(&arena, "%s/m.jsonl", folder), &score);
    double total = total_norm(&arena, golden);
    for (int i = 0; i < raft_weights_count(gradients); i++)
        check_parameter(&arena, golden, gradients, after, raft_weights_tensor(gradients, i)->name,
                        total, &score);
    if (system(arena_printf(&arena, "rm -r %s", folder)) != 0) die(folder, "cannot be removed");
    printf("golden_train: %s: %d checks, %d failed, worst %.3g of the tolerance\n", argv[2],
           score.checks, score.failures, score.worst);
    raft_weights_close(golden);
    raft_weights_close(gradients);
    raft_weights_close(after);
    arena_free(&arena);
    return score.failures > 0 || score.checks == 0;
}
