/* cli_place.h: a folder in which tests run raftc, and what it printed.
 *
 * A command is text: words parted by blanks, perhaps in '', perhaps VARIABLE=VALUE before them. In
 * the folder lie models, data (tests/data), cli (tests/cli) and fake (where a libcuda.so.1 of ours is), so
 * that messages name the same paths everywhere. To be included after _GNU_SOURCE is defined.
 */
#ifndef CLI_PLACE_H
#define CLI_PLACE_H

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "ir/base.h"

enum { MAX_WORDS = 64, MAX_VARIABLES = 512 };

extern char **environ;

typedef struct Place {
    Arena arena;
    char root[64];               /* temporary */
    const char *folder;          /* in which commands run */
    const char *output, *errors; /* files: what the last command printed */
    bool has_llvm, has_nvrtc, has_gpu;
} Place;

/* ---- running --------------------------------------------------------------------------------- */

static const char *read_all(Arena *arena, const char *path, size_t *size)
{
    struct stat status;
    FILE *file = fopen(path, "rb");
    if (!file || fstat(fileno(file), &status) != 0) fail_msg("%s: %s", path, strerror(errno));
    char *text = arena_alloc(arena, (size_t)status.st_size + 1);
    *size = fread(text, 1, (size_t)status.st_size, file);
    fclose(file);
    return text;
}

static const char *read_text(Arena *arena, const char *path)
{
    size_t size;
    return read_all(arena, path, &size);
}

/* Words parted by blanks; '' keeps blanks together. */
static inline int split(Arena *arena, const char *command, char *words[MAX_WORDS + 1])
{
    int count = 0;
    for (const char *c = command; *c;) {
        if (*c == ' ') {
            c++;
            continue;
        }
        if (count == MAX_WORDS) fail_msg("too many words: %s", command);
        Text word = text_new(arena);
        for (bool quoted = false; *c && (quoted || *c != ' '); c++) {
            if (*c == '\'')
                quoted = !quoted;
            else
                text_printf(&word, "%c", *c);
        }
        words[count++] = word.data;
    }
    words[count] = NULL;
    return count;
}

/* Starts a command. */
static inline pid_t start(Place *place, const char *command)
{
    char *words[MAX_WORDS + 1], *environment[MAX_WORDS + MAX_VARIABLES];
    int first = 0, variables = 0;
    split(&place->arena, command, words);
    while (words[first] && strchr(words[first], '=')) environment[variables++] = words[first++];
    for (char **variable = environ; *variable && variables < MAX_VARIABLES; variable++)
        environment[variables++] = *variable;
    environment[variables] = NULL;
    if (!words[first] || strcmp(words[first], "raftc") != 0) fail_msg("not raftc: %s", command);

    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, place->output, O_WRONLY | O_CREAT | O_TRUNC,
                                     0600);
    posix_spawn_file_actions_addopen(&actions, 2, place->errors, O_WRONLY | O_CREAT | O_TRUNC,
                                     0600);
    posix_spawn_file_actions_addchdir_np(&actions, place->folder);
    pid_t process;
    int reason = posix_spawn(&process, RAFTC_BINARY, &actions, NULL, words + first, environment);
    posix_spawn_file_actions_destroy(&actions);
    if (reason) fail_msg("%s: %s", RAFTC_BINARY, strerror(reason));
    return process;
}

static inline int finish(pid_t process)
{
    int state;
    if (waitpid(process, &state, 0) != process) fail_msg("waitpid: %s", strerror(errno));
    return state;
}

/* Runs it to its end; its exit status, 128 + N where signal N ended it. */
static inline int run(Place *place, const char *command)
{
    int state = finish(start(place, command));
    return WIFEXITED(state) ? WEXITSTATUS(state) : 128 + WTERMSIG(state);
}

static inline void run_well(Place *place, const char *command)
{
    int exit = run(place, command);
    if (exit != 0)
        fail_msg("%s: exit status %d\n%s", command, exit, read_text(&place->arena, place->errors));
}

static const char *in_folder(Place *place, const char *name)
{
    return arena_printf(&place->arena, "%s/%s", place->folder, name);
}

/* ---- the folder ------------------------------------------------------------------------------ */

static inline void link_to(Place *place, const char *name, const char *target)
{
    if (symlink(target, in_folder(place, name)) != 0) fail_msg("%s: %s", name, strerror(errno));
}

static inline void open_place_in(Place *place, const char *parent)
{
    *place = (Place){0};
    snprintf(place->root, sizeof place->root, "%s/test_cli.XXXXXX", parent);
    if (!mkdtemp(place->root)) fail_msg("%s: %s", place->root, strerror(errno));
    place->folder = arena_printf(&place->arena, "%s/folder", place->root);
    place->output = arena_printf(&place->arena, "%s/stdout", place->root);
    place->errors = arena_printf(&place->arena, "%s/stderr", place->root);
    if (mkdir(place->folder, 0700) != 0) fail_msg("%s: %s", place->folder, strerror(errno));
    link_to(place, "models", SOURCE_ROOT "/models");
    link_to(place, "data", TEST_DATA "/data");
    link_to(place, "cli", TEST_DATA "/cli");
    link_to(place, "fake",
            arena_printf(&place->arena, "%.*s/fake",
                         (int)(strrchr(RAFTC_BINARY, '/') - RAFTC_BINARY), RAFTC_BINARY));
    run_well(place, "raftc --version");
    place->has_llvm = strstr(read_text(&place->arena, place->output), "with LLVM");
    setenv("XDG_CACHE_HOME", in_folder(place, "cache"), 1);
    place->has_nvrtc = run(place, "raftc cli/block.ir --target cuda --emit ptx -o probe") == 0;
    void *driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    place->has_gpu = driver != NULL;
    if (driver) dlclose(driver);
}

static inline void open_place(Place *place)
{
    open_place_in(place, "/tmp");
}

static inline void remove_all(Arena *arena, const char *path)
{
    struct stat status;
    if (lstat(path, &status) != 0) return;
    DIR *folder = S_ISDIR(status.st_mode) ? opendir(path) : NULL;
    for (const struct dirent *entry; folder && (entry = readdir(folder));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            remove_all(arena, arena_printf(arena, "%s/%s", path, entry->d_name));
    if (folder) closedir(folder);
    remove(path);
}

static inline void close_place(Place *place)
{
    remove_all(&place->arena, place->root);
    arena_free(&place->arena);
}

#endif
