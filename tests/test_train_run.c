/* test_train_run.c: a run that was stopped in whatever way goes on to the bits of one never stopped.
 * usage: test_train_run [KILLS]
 *
 * A tiny model on made-up images of 28 x 28 in IDX files, with all of the recipe that has a state or
 * chance: mixing, drop path, dropout, an average of the weights, batches in parts. */
#define _GNU_SOURCE /* posix_spawn_file_actions_addchdir_np */
#include "tests/cli_place.h"

#include <signal.h>
#include <sys/resource.h>
#include <time.h>

#include "runtime/train/train.h"

enum { SIDE = 28, CLASSES = 3, TRAINING = 100, VALIDATION = 20, STEPS = 18 };

#define TRAIN "raftc train run.yaml --target reference "

static Place place;
static int kills = 6;

static const char settings[] = "dataset_name: fashion_mnist\n"
                               "data_path: images\n"
                               "in_channels: 1\n"
                               "num_classes: 3\n"
                               "pretrained_image_size: 28\n"
                               "layers:\n"
                               "- {depth: 1, dim: 8, patch_size: 7, raft_size: 2}\n"
                               "batch_size: 16\n"
                               "lr: 1e-2\n"
                               "weight_decay: 0.05\n"
                               "num_epochs: 3\n"
                               "num_warmup_epochs: 1\n"
                               "label_smoothing_alpha: 0.1\n"
                               "mixup_alpha: 0.8\n"
                               "mixup_p: 0.5\n"
                               "cutmix_p: 0.5\n"
                               "drop_path_rate: 0.2\n"
                               "dropout: 0.1\n"
                               "max_grad_norm: 1\n"
                               "ema_decay: 0.9\n"
                               "accumulation_steps: 3\n"
                               "checkpoint_every: 1\n";

/* ---- data -------------------------------------------------------------------------------------- */

static FILE *create(const char *name)
{
    FILE *file = fopen(in_folder(&place, name), "wb");
    if (!file) fail_msg("%s: %s", name, strerror(errno));
    return file;
}

static void put_number(FILE *file, uint32_t number)
{
    for (int shift = 24; shift >= 0; shift -= 8) fputc((int)(number >> shift & 255), file);
}

/* Grey of a level that tells the class, with noise. */
static void write_part(const char *part, uint32_t count)
{
    char name[64];
    RaftRandom random = raft_random(1, 0, count, RAFT_FOR_WEIGHTS);
    snprintf(name, sizeof name, "images/%s-images-idx3-ubyte", part);
    FILE *images = create(name);
    snprintf(name, sizeof name, "images/%s-labels-idx1-ubyte", part);
    FILE *labels = create(name);
    put_number(images, 0x803);
    put_number(images, count);
    put_number(images, SIDE);
    put_number(images, SIDE);
    put_number(labels, 0x801);
    put_number(labels, count);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t label = i % CLASSES;
        fputc((int)label, labels);
        for (int k = 0; k < SIDE * SIDE; k++)
            fputc((int)(60 * label + raft_random_below(&random, 100)), images);
    }
    fclose(images);
    fclose(labels);
}

static void write_data(void)
{
    mkdir(in_folder(&place, "images"), 0700);
    write_part("train", TRAINING);
    write_part("t10k", VALIDATION);
    FILE *file = create("run.yaml");
    fputs(settings, file);
    fclose(file);
}

/* ---- what is the same ---------------------------------------------------------------------------- */

static const char *file_of(const char *folder, const char *name)
{
    return in_folder(&place, arena_printf(&place.arena, "%s/%s", folder, name));
}

static bool exists(const char *path)
{
    return access(path, F_OK) == 0;
}

/* Weights and all states after the last step, and the run's average, against those of the folder `whole`,
 * which a run never stopped has left. */
static void expect_whole(const char *folder)
{
    static const char *const names[] = {"checkpoint-0000000018.safetensors", "last.safetensors"};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        size_t wanted_size, size;
        const char *wanted = read_all(&place.arena, file_of("whole", names[i]), &wanted_size);
        const char *found = read_all(&place.arena, file_of(folder, names[i]), &size);
        assert_int_equal(size, wanted_size);
        if (memcmp(found, wanted, size) != 0) fail_msg("%s/%s differs", folder, names[i]);
    }
}

static void train(const char *folder, const char *options)
{
    run_well(&place, arena_printf(&place.arena, TRAIN "-o %s %s", folder, options));
}

/* ---- tests --------------------------------------------------------------------------------------- */

/* In the middle of an epoch and at its end, each time with other numbers of threads. */
static void test_resumed(void **state)
{
    (void)state;
    train("stops", "--steps 1 --threads 2");
    train("stops", "--steps 2 --resume --threads 1");
    train("stops", "--steps 6 --resume --threads 3 --set num_workers=1");
    train("stops", "--steps 13 --resume");
    train("stops", "--resume=stops/checkpoint-0000000012.safetensors");
    expect_whole("stops");
}

static void test_asked_to_stop(void **state)
{
    (void)state;
    pid_t process = start(&place, TRAIN "-o asked");
    while (!exists(file_of("asked", "checkpoint-0000000002.safetensors"))) usleep(500);
    kill(process, SIGTERM);
    int status = finish(process);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
    assert_false(exists(file_of("asked", "last.safetensors")));
    train("asked", "--resume");
    expect_whole("asked");
}

/* Accumulation, clipping and the average are in the bits: without each they are others. */
static void test_settings_matter(void **state)
{
    (void)state;
    static const char *const changes[] = {"dropout=0", "drop_path_rate=0", "max_grad_norm=0.5",
                                          "ema_decay=0.8"};
    size_t wanted_size, size;
    const char *wanted = read_all(&place.arena, file_of("whole", "last.safetensors"), &wanted_size);
    for (size_t i = 0; i < ARRAY_SIZE(changes); i++) {
        train("other", arena_printf(&place.arena, "--set %s", changes[i]));
        const char *found = read_all(&place.arena, file_of("other", "last.safetensors"), &size);
        assert_int_equal(size, wanted_size);
        if (memcmp(found, wanted, size) == 0) fail_msg("%s changes nothing", changes[i]);
    }
}

/* The parts of a batch add up to it, but for rounding. */
static void test_parts(void **state)
{
    (void)state;
    RaftWeights *all[2];
    RaftError error;
    train("one", "--steps 6 --set accumulation_steps=1");
    train("five", "--steps 6 --set accumulation_steps=5");
    for (int i = 0; i < 2; i++)
        if (raft_weights_open(file_of(i ? "five" : "one", "last.safetensors"), &all[i], &error))
            fail_msg("%s", error.message);
    for (int i = 0; i < raft_weights_count(all[0]); i++) {
        const RaftTensor *one = raft_weights_tensor(all[0], i);
        const RaftTensor *five = raft_weights_find(all[1], one->name);
        const float *a = one->data, *b = five->data;
        for (int64_t k = 0; k < one->elements; k++)
            if (!((double)(a[k] - b[k]) <= 2e-4 && (double)(b[k] - a[k]) <= 2e-4))
                fail_msg("%s[%d]: %g and %g", one->name, (int)k, (double)a[k], (double)b[k]);
    }
    for (int i = 0; i < 2; i++) raft_weights_close(all[i]);
}

/* In a checkpoint, the weights are those that the run is for, here their average. */
static void test_weights_of_checkpoint(void **state)
{
    (void)state;
    const char *const files[] = {"last.safetensors", "checkpoint-0000000018.safetensors"};
    const char *answer[2];
    for (int i = 0; i < 2; i++) {
        run_well(&place, arena_printf(&place.arena,
                                      "raftc eval run.yaml --target reference --weights whole/%s",
                                      files[i]));
        answer[i] = read_text(&place.arena, place.output);
    }
    assert_string_equal(answer[0], answer[1]);
    train("tuned", "--steps 1 --weights whole/checkpoint-0000000018.safetensors");
    run_well(&place, "raftc run run.yaml --target reference @fill "
                     "--weights tuned/checkpoint-0000000001.safetensors");
}

/* A change of what only rounds sums otherwise is told; one of what the weights learned from is refused, and
 * leaves the settings of the run as they are. */
static void test_other_run(void **state)
{
    (void)state;
    train("other", "--steps 2");
    int status = run(&place, TRAIN "-o other --steps 3 --resume --set accumulation_steps=4");
    const char *errors = read_text(&place.arena, place.errors);
    if (status ||
        !strstr(errors,
                "note: other: the run there has accumulation_steps 3, this one 4; it goes "))
        fail_msg("exit status %d\n%s", status, errors);
    status = run(&place, TRAIN "-o other --resume --image 21x28");
    errors = read_text(&place.arena, place.errors);
    if (status != 3 ||
        !strstr(errors, "error: other: the run there has image 28x28, this one 21x28; it cannot "))
        fail_msg("exit status %d\n%s", status, errors);
    const char *saved = read_text(&place.arena, file_of("other", "settings.yaml"));
    if (!strstr(saved, "\nimage: 28x28\n")) fail_msg("%s", saved);
}

/* What has another state of the optimiser, or of the average, is refused, as is a checkpoint of a raftc
 * that kept the average beside the weights. */
static void test_other_states(void **state)
{
    (void)state;
    static const char *const changes[] = {"ema_decay=0", "optimizer=sgd"};
    for (size_t i = 0; i < ARRAY_SIZE(changes); i++) {
        int status =
            run(&place, arena_printf(&place.arena, TRAIN "-o whole --resume --set %s", changes[i]));
        const char *errors = read_text(&place.arena, place.errors);
        if (status != 3 ||
            !strstr(errors, "error: whole: the run there has another optimiser, or "
                            "another kind of average (optimizer, ema_decay); it cannot "))
            fail_msg("%s: exit status %d\n%s", changes[i], status, errors);
    }
    RaftWeights *checkpoint;
    RaftError error;
    if (raft_checkpoint_open(file_of("whole", "checkpoint-0000000018.safetensors"), &checkpoint,
                             &error))
        fail_msg("%s", error.message);
    int count = raft_weights_count(checkpoint);
    RaftTensor *tensors = arena_array(&place.arena, (size_t)count, sizeof *tensors);
    for (int i = 0; i < count; i++) {
        tensors[i] = *raft_weights_tensor(checkpoint, i);
        if (strcmp(tensors[i].name, RAFT_STATE_PREFIX "w") == 0)
            tensors[i].name = RAFT_STATE_PREFIX "e";
    }
    const char *metadata[] = {"step", "18", NULL};
    mkdir(in_folder(&place, "old"), 0700);
    if (raft_checkpoint_save(in_folder(&place, "old"), 18, 3, tensors, count, metadata, &error))
        fail_msg("%s", error.message);
    raft_weights_close(checkpoint);
    assert_int_equal(run(&place, TRAIN "-o old --resume"), 3);
    assert_non_null(
        strstr(read_text(&place.arena, place.errors),
               "error: old: its checkpoint is of an older raftc, which kept the average"));
    train("young", "--steps 1 --weights old/checkpoint-0000000018.safetensors");
}

static void damage(const char *path, bool cut)
{
    struct stat status;
    int file = open(path, O_RDWR);
    if (file < 0 || fstat(file, &status) != 0) fail_msg("%s: %s", path, strerror(errno));
    uint8_t byte;
    off_t middle = status.st_size / 2;
    assert_int_equal(pread(file, &byte, 1, middle), 1);
    byte ^= 16;
    if (cut)
        assert_int_equal(ftruncate(file, middle), 0);
    else
        assert_int_equal(pwrite(file, &byte, 1, middle), 1);
    close(file);
}

static void test_damaged(void **state)
{
    (void)state;
    train("damaged", "--steps 9");
    damage(file_of("damaged", "checkpoint-0000000009.safetensors"), true);
    damage(file_of("damaged", "checkpoint-0000000008.safetensors"), false);
    train("damaged", "--resume");
    const char *errors = read_text(&place.arena, place.errors);
    assert_non_null(strstr(errors, "passed over: damaged/checkpoint-0000000009.safetensors: "));
    assert_non_null(strstr(errors, "checkpoint-0000000008.safetensors: is damaged: its checksum "));
    expect_whole("damaged");
}

/* No file can grow beyond a limit, so that in turn each kind of file is the first that cannot be
 * written, even what the run prints: it ends with an error, and goes on once there is room. */
static void test_disk_full(void **state)
{
    (void)state;
    struct rlimit old;
    static const rlim_t limits[] = {0, 100, 700, 5000, 9000, 16000};
    train("full", "--steps 3");
    getrlimit(RLIMIT_FSIZE, &old);
    for (size_t i = 0; i < ARRAY_SIZE(limits); i++) {
        const struct rlimit limit = {.rlim_cur = limits[i], .rlim_max = old.rlim_max};
        setrlimit(RLIMIT_FSIZE, &limit);
        int status = run(&place, TRAIN "-o full --resume");
        setrlimit(RLIMIT_FSIZE, &old);
        const char *errors = read_text(&place.arena, place.errors);
        if (status != 1 || (limits[i] > 200 && !strstr(errors, "File too large")))
            fail_msg("limit %d: exit status %d\n%s", (int)limits[i], status, errors);
    }
    train("full", "--resume");
    expect_whole("full");
}

/* ---- kills ------------------------------------------------------------------------------------- */

static bool is_saving(const char *folder)
{
    bool found = false;
    DIR *directory = opendir(in_folder(&place, folder));
    for (const struct dirent *entry; directory && (entry = readdir(directory));)
        found |= strstr(entry->d_name, ".tmp") != NULL;
    if (directory) closedir(directory);
    return found;
}

/* At a random moment; each fourth time while a file is written. Whether the process was still there. */
static bool kill_some_time(pid_t process, const char *folder, RaftRandom *random, double seconds)
{
    int status;
    bool during_save = raft_random_below(random, 4) == 0;
    double wait = during_save ? 2 * seconds : raft_random_uniform(random, 0, seconds);
    struct timespec start, now;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (;;) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        double passed =
            (double)(now.tv_sec - start.tv_sec) + 1e-9 * (double)(now.tv_nsec - start.tv_nsec);
        if (passed > wait || (during_save && is_saving(folder))) break;
        if (waitpid(process, &status, WNOHANG) == process) return false;
        usleep(during_save ? 50 : 1000);
    }
    kill(process, SIGKILL);
    finish(process);
    return true;
}

static void test_killed(void **state)
{
    (void)state;
    RaftRandom random = raft_random(3, 0, 0, RAFT_FOR_ORDER);
    struct timespec start_time, end_time;
    clock_gettime(CLOCK_MONOTONIC, &start_time);
    train("timed", "");
    clock_gettime(CLOCK_MONOTONIC, &end_time);
    double seconds = (double)(end_time.tv_sec - start_time.tv_sec) +
                     1e-9 * (double)(end_time.tv_nsec - start_time.tv_nsec);
    bool begun = false;
    for (int killed = 0; killed < kills;) {
        pid_t process = start(&place, begun ? TRAIN "-o killed --resume" : TRAIN "-o killed");
        if (kill_some_time(process, "killed", &random, seconds)) {
            killed++;
        } else { /* it came to its end before */
            expect_whole("killed");
            remove_all(&place.arena, in_folder(&place, "killed"));
        }
        RaftWeights *checkpoint;
        RaftError refused = {""}, error;
        int64_t step;
        begun = raft_checkpoint_newest(in_folder(&place, "killed"), &checkpoint, &step, &refused,
                                       &error) == RAFT_OK;
        if (begun) raft_weights_close(checkpoint);
        assert_string_equal(refused.message, ""); /* what is there is whole */
    }
    train("killed", begun ? "--resume" : "");
    expect_whole("killed");
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_resumed),
        cmocka_unit_test(test_asked_to_stop),
        cmocka_unit_test(test_settings_matter),
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_weights_of_checkpoint),
        cmocka_unit_test(test_other_run),
        cmocka_unit_test(test_other_states),
        cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_disk_full),
        cmocka_unit_test(test_killed),
    };
    if (argc > 1) kills = atoi(argv[1]);
    setenv("OMP_WAIT_POLICY", "passive", 1); /* processors are for those who work */
    setenv("OMP_NUM_THREADS", "1", 1);
    open_place(&place);
    write_data();
    train("whole", "");
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    close_place(&place);
    return failed;
}
