/* test_checkpoint.c: checkpoints survive kills, full disks and damage: the newest good one is found. */
#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime/rt.h"
#include "runtime/train/train.h"

enum { VALUES = 3000 };

static char folder[] = "/tmp/test_checkpoint.XXXXXX"; /* made by main; emptied before each test */

static const char *in_folder(const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static int empty_folder(void **state)
{
    struct dirent **names;
    (void)state;
    int count = scandir(folder, &names, NULL, NULL);
    for (int i = 0; i < count; i++) {
        unlink(in_folder(names[i]->d_name));
        free(names[i]);
    }
    free(names);
    return 0;
}

/* The names in the folder, in order, between spaces. */
static const char *listing(void)
{
    static char text[4096];
    struct dirent **names;
    int count = scandir(folder, &names, NULL, alphasort);
    text[0] = 0;
    for (int i = 0; i < count; i++) {
        if (names[i]->d_name[0] != '.') {
            strcat(text, names[i]->d_name);
            strcat(text, " ");
        }
        free(names[i]);
    }
    free(names);
    return text;
}

/* A state that the step determines. */
static RaftStatus save(int64_t step, int keep, RaftError *error)
{
    static float weights[VALUES];
    static int64_t count;
    char text[24];
    const char *metadata[] = {"step", text, "seed", "42", NULL};
    RaftTensor tensors[] = {
        {.name = "w", .dtype = RAFT_F32, .rank = 2, .shape = {30, VALUES / 30}, .data = weights},
        {.name = "step", .dtype = RAFT_I64, .rank = 1, .shape = {1}, .data = &count},
    };
    for (int i = 0; i < VALUES; i++) weights[i] = (float)(step * 7 + i);
    count = step;
    snprintf(text, sizeof text, "%lld", (long long)step);
    return raft_checkpoint_save(folder, step, keep, tensors, 2, metadata, error);
}

static void save_good(int64_t step, int keep)
{
    RaftError error = {"no message"};
    if (save(step, keep, &error)) fail_msg("%s", error.message);
}

/* Finds the newest and checks what is in it; returns its step. */
static int64_t find_good(RaftError *refused)
{
    RaftWeights *checkpoint;
    RaftError error = {"no message"};
    int64_t step = -1;
    if (raft_checkpoint_newest(folder, &checkpoint, &step, refused, &error))
        fail_msg("%s", error.message);
    const RaftTensor *weights = raft_weights_find(checkpoint, "w");
    const RaftTensor *count = raft_weights_find(checkpoint, "step");
    assert_memory_equal(count->data, &step, sizeof step);
    for (int i = 0; i < VALUES; i++)
        assert_true(((const float *)weights->data)[i] == (float)(step * 7 + i));
    raft_weights_close(checkpoint);
    return step;
}

static void test_keep(void **state)
{
    (void)state;
    RaftError refused, error;
    RaftWeights *checkpoint;
    int64_t step;
    assert_int_equal(raft_checkpoint_newest(folder, &checkpoint, &step, &refused, &error), RAFT_IO);
    assert_non_null(strstr(error.message, "holds no checkpoint"));
    FILE *left_over = fopen(in_folder("checkpoint-0000000007.safetensors.123-0.tmp"), "w");
    fclose(left_over);
    for (int i = 1; i <= 4; i++) save_good(1000 * i, 2);
    assert_string_equal(listing(),
                        "checkpoint-0000003000.safetensors checkpoint-0000004000.safetensors ");
    assert_int_equal(find_good(&refused), 4000);
    assert_string_equal(refused.message, "");
    save_good(3500, 1); /* a run that went on from an older one leaves newer ones alone */
    assert_string_equal(listing(),
                        "checkpoint-0000003500.safetensors checkpoint-0000004000.safetensors ");
    assert_int_equal(raft_checkpoint_newest("/tmp/none", &checkpoint, &step, &refused, &error),
                     RAFT_IO);
}

static void test_best(void **state)
{
    (void)state;
    static const double accuracies[] = {0.5, 0.75, 0.625, 0.625, 0.5, 0.875};
    static const char *const left[] = {
        "best-0.500000-000000.safetensors ",
        "best-0.500000-000000.safetensors best-0.750000-000001.safetensors ",
        "best-0.625000-000002.safetensors best-0.750000-000001.safetensors ",
        "best-0.625000-000002.safetensors best-0.750000-000001.safetensors ",
        "best-0.625000-000002.safetensors best-0.750000-000001.safetensors ",
        "best-0.750000-000001.safetensors best-0.875000-000005.safetensors ",
    };
    float value = 3;
    RaftTensor tensor = {.name = "w", .dtype = RAFT_F32, .rank = 0, .data = &value};
    const char *metadata[] = {NULL};
    for (int i = 0; i < 6; i++) {
        RaftError error = {"no message"};
        if (raft_checkpoint_save_best(folder, accuracies[i], i, &tensor, 1, metadata, &error))
            fail_msg("%s", error.message);
        assert_string_equal(listing(), left[i]);
    }
    RaftWeights *weights;
    assert_int_equal(
        raft_checkpoint_open(in_folder("best-0.875000-000005.safetensors"), &weights, NULL),
        RAFT_OK);
    raft_weights_close(weights);
}

/* ---- damage ------------------------------------------------------------------------------------ */

static size_t read_file(const char *name, uint8_t *bytes, size_t capacity)
{
    FILE *file = fopen(in_folder(name), "rb");
    assert_non_null(file);
    size_t size = fread(bytes, 1, capacity, file);
    fclose(file);
    assert_true(size < capacity);
    return size;
}

static void write_file(const char *name, const uint8_t *bytes, size_t size)
{
    FILE *file = fopen(in_folder(name), "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, size, file), size);
    fclose(file);
}

/* Every bit of the header, and bits all over the data; every length of the header, and others. */
static void test_damaged(void **state)
{
    (void)state;
    static const char newest[] = "checkpoint-0000000002.safetensors";
    static uint8_t bytes[2 * 4 * VALUES];
    RaftError refused;
    save_good(1, 2);
    save_good(2, 2);
    size_t size = read_file(newest, bytes, sizeof bytes);
    size_t data = size - 4 * VALUES - 8;
    int file = open(in_folder(newest), O_RDWR);
    assert_true(file >= 0);
    for (size_t bit = 0; bit < 8 * size; bit += bit < 8 * data ? 1 : 97) {
        uint8_t flipped = bytes[bit / 8] ^ (uint8_t)(1 << bit % 8);
        assert_int_equal(pwrite(file, &flipped, 1, (off_t)bit / 8), 1);
        if (find_good(&refused) != 1) fail_msg("bit %d is not noticed", (int)bit);
        assert_non_null(strstr(refused.message, newest));
        assert_int_equal(pwrite(file, bytes + bit / 8, 1, (off_t)bit / 8), 1);
    }
    for (size_t left = size - 1; left-- > 0; left -= left > data + 508 ? 500 : 0) {
        assert_int_equal(ftruncate(file, (off_t)left), 0);
        assert_int_equal(find_good(&refused), 1);
        assert_non_null(strstr(refused.message, newest));
    }
    close(file);
    write_file(newest, bytes, size);
    assert_int_equal(find_good(&refused), 2);
}

static void test_all_damaged(void **state)
{
    (void)state;
    static uint8_t bytes[2 * 4 * VALUES];
    RaftWeights *checkpoint;
    RaftError refused, error = {"no message"};
    int64_t step;
    save_good(1, 2);
    save_good(2, 2);
    size_t size = read_file("checkpoint-0000000002.safetensors", bytes, sizeof bytes);
    bytes[size - 1] ^= 1;
    write_file("checkpoint-0000000002.safetensors", bytes, size);
    write_file("checkpoint-0000000001.safetensors", bytes, 100);
    assert_int_equal(raft_checkpoint_newest(folder, &checkpoint, &step, &refused, &error),
                     RAFT_BAD_FILE);
    assert_null(checkpoint);
    assert_non_null(strstr(error.message, "holds no good checkpoint; the newest: "));
    assert_non_null(strstr(error.message, "0002.safetensors: is damaged: its checksum is crc32c:"));
    assert_non_null(strstr(refused.message, "0001.safetensors: byte "));
    assert_int_equal(
        raft_checkpoint_open(TEST_DATA "/data/goldens/tiny.safetensors", &checkpoint, &error),
        RAFT_BAD_FILE);
    assert_non_null(strstr(error.message, "holds no checksum; it is not a checkpoint"));
}

/* ---- kills and full disks ---------------------------------------------------------------------- */

/* A process that saves without end is killed at any moment: whatever it said to be saved is there,
 * or something newer. */
static void test_killed(void **state)
{
    (void)state;
    enum { KILLS = 40 };
    int64_t step = 0, told, left_over = 0;
    save_good(step, 2);
    for (int i = 0; i < KILLS; i++) {
        int pipe_ends[2];
        assert_int_equal(pipe(pipe_ends), 0);
        pid_t child = fork();
        if (child == 0) {
            for (int64_t next = step + 1; !save(next, 2, NULL); next++)
                if (write(pipe_ends[1], &next, sizeof next) != sizeof next) break;
            _exit(1);
        }
        close(pipe_ends[1]);
        RaftRandom random = raft_random(42, 0, (uint32_t)i, RAFT_FOR_ORDER);
        struct timespec wait = {.tv_nsec = 1000 * (long)raft_random_below(&random, 30000)};
        nanosleep(&wait, NULL);
        kill(child, SIGKILL);
        assert_int_equal(waitpid(child, NULL, 0), child);
        for (told = step; read(pipe_ends[0], &told, sizeof told) == sizeof told;) continue;
        close(pipe_ends[0]);
        RaftError refused;
        step = find_good(&refused);
        assert_true(step >= told && step <= told + 1);
        assert_string_equal(refused.message, "");
        left_over += strstr(listing(), ".tmp") != NULL;
    }
    assert_true(step > 0);
    assert_true(left_over > 0); /* some kills met a file half written */
    save_good(step + 1, 2);
    assert_null(strstr(listing(), ".tmp"));
}

/* However much of the file fits, the save fails, says so, and leaves the last one good. */
static void test_disk_full(void **state)
{
    (void)state;
    struct rlimit old, limit;
    RaftError refused;
    save_good(1, 1);
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    for (rlim_t size = 0; size < 4 * VALUES; size += 999) {
        RaftError error = {"no message"};
        limit = (struct rlimit){.rlim_cur = size, .rlim_max = old.rlim_max};
        setrlimit(RLIMIT_FSIZE, &limit);
        RaftStatus status = save(2, 1, &error);
        setrlimit(RLIMIT_FSIZE, &old);
        assert_int_equal(status, RAFT_IO);
        assert_non_null(strstr(error.message, "0002.safetensors: cannot be written: File too"));
        assert_string_equal(listing(), "checkpoint-0000000001.safetensors ");
        assert_int_equal(find_good(&refused), 1);
    }
    save_good(2, 1);
    assert_int_equal(find_good(&refused), 2);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_keep, empty_folder),
        cmocka_unit_test_setup(test_best, empty_folder),
        cmocka_unit_test_setup(test_damaged, empty_folder),
        cmocka_unit_test_setup(test_all_damaged, empty_folder),
        cmocka_unit_test_setup(test_killed, empty_folder),
        cmocka_unit_test_setup(test_disk_full, empty_folder),
    };
    if (!mkdtemp(folder)) return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    empty_folder(NULL);
    rmdir(folder);
    return failed;
}
