/* test_cuda_cache.c: compiled kernels on disk: kept, found again, and not trusted blindly. */
#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "backends/cuda/cache.h"

enum { SIZE = 1 << 18, PROCESSES = 6, ROUNDS = 20 };

static char folder[64], content[SIZE];

static int open_folder(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/test_cuda_cache.XXXXXX");
    assert_non_null(mkdtemp(folder));
    for (int i = 0; i < SIZE; i++) content[i] = (char)(i * 7 + i / 256);
    return setenv("XDG_CACHE_HOME", folder, 1);
}

static int close_folder(void **state)
{
    char command[100];
    (void)state;
    snprintf(command, sizeof command, "rm -r %s", folder);
    return system(command);
}

static RaftCudaImage whole(void)
{
    return (RaftCudaImage){90, content, SIZE};
}

static bool holds(Arena *arena, const char *made_of)
{
    RaftCudaImage image = {.architecture = 90};
    if (!cache_read(arena, made_of, &image)) return false;
    assert_int_equal(image.size, SIZE);
    assert_memory_equal(image.data, content, SIZE);
    return true;
}

/* The path of the one entry. */
static const char *entry(Arena *arena)
{
    const char *path = NULL;
    DIR *list = opendir(arena_printf(arena, "%s/raftc", folder));
    assert_non_null(list);
    for (const struct dirent *file; (file = readdir(list));) {
        if (file->d_name[0] == '.') continue;
        assert_null(path);
        path = arena_printf(arena, "%s/raftc/%s", folder, file->d_name);
    }
    closedir(list);
    return path;
}

static void test_kept(void **state)
{
    Arena arena = {0};
    const RaftCudaImage image = whole();
    const char *note = NULL;
    (void)state;
    assert_false(holds(&arena, "text"));
    cache_write(&arena, "text", &image, &note);
    assert_null(note);
    assert_true(holds(&arena, "text"));
    assert_false(holds(&arena, "texT"));
    assert_false(holds(&arena, "text "));
    arena_free(&arena);
}

/* An entry that was cut, or of which a byte has changed, is as none; and is replaced. */
static void test_damaged(void **state)
{
    Arena arena = {0};
    const RaftCudaImage image = whole();
    const char *note = NULL, *path = entry(&arena);
    struct stat status;
    (void)state;
    assert_int_equal(stat(path, &status), 0);
    const long places[] = {0, 10, 20, 30, 39, 40, 1000, status.st_size - 1};
    for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
        FILE *file = fopen(path, "r+b");
        assert_int_equal(fseek(file, places[i], SEEK_SET), 0);
        int byte = fgetc(file);
        assert_int_equal(fseek(file, places[i], SEEK_SET), 0);
        fputc(byte ^ 1, file);
        fclose(file);
        assert_false(holds(&arena, "text"));
        cache_write(&arena, "text", &image, &note);
        assert_true(holds(&arena, "text"));
    }
    const long sizes[] = {0, 1, 39, 40, 41, status.st_size - 1, status.st_size + 1};
    for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
        assert_int_equal(truncate(path, sizes[i]), 0);
        assert_false(holds(&arena, "text"));
        cache_write(&arena, "text", &image, &note);
        assert_true(holds(&arena, "text"));
    }
    assert_null(note);
    arena_free(&arena);
}

/* Many processes write and read the same entry: each reads all of it, or none. */
static void test_processes(void **state)
{
    pid_t process[PROCESSES];
    (void)state;
    for (int p = 0; p < PROCESSES; p++) {
        process[p] = fork();
        assert_true(process[p] >= 0);
        if (process[p] > 0) continue;
        int good = 0;
        for (int round = 0; round < ROUNDS; round++) {
            Arena arena = {0};
            const RaftCudaImage image = whole();
            RaftCudaImage found = {.architecture = 90};
            const char *note = NULL;
            cache_write(&arena, "shared", &image, &note);
            good += !note && cache_read(&arena, "shared", &found) && found.size == SIZE &&
                    memcmp(found.data, content, SIZE) == 0;
            arena_free(&arena);
        }
        _exit(good == ROUNDS ? 0 : 1);
    }
    for (int p = 0; p < PROCESSES; p++) {
        int status;
        assert_int_equal(waitpid(process[p], &status, 0), process[p]);
        assert_int_equal(status, 0);
    }
}

static void test_not_writable(void **state)
{
    Arena arena = {0};
    const RaftCudaImage image = whole();
    const char *note = NULL;
    (void)state;
    setenv("XDG_CACHE_HOME", "/proc/nosuch", 1);
    cache_write(&arena, "text", &image, &note);
    assert_string_equal(note, "/proc/nosuch/raftc: compiled kernels cannot be kept there: No such "
                              "file or directory");
    assert_false(holds(&arena, "text"));
    /* Without XDG_CACHE_HOME, below HOME; a relative path is none. */
    setenv("XDG_CACHE_HOME", "relative", 1);
    setenv("HOME", arena_printf(&arena, "%s/home", folder), 1);
    note = NULL;
    cache_write(&arena, "text", &image, &note);
    assert_null(note);
    assert_true(holds(&arena, "text"));
    assert_int_equal(access(arena_printf(&arena, "%s/home/.cache/raftc", folder), F_OK), 0);
    unsetenv("HOME");
    assert_false(holds(&arena, "text"));
    cache_write(&arena, "text", &image, &note);
    assert_null(note);
    arena_free(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kept),
        cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_processes),
        cmocka_unit_test(test_not_writable),
    };
    return cmocka_run_group_tests(tests, open_folder, close_folder);
}
