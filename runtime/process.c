/* process.c: runs other programs: compilers, archivers, Graphviz. */
#include "runtime/rt.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>

extern char **environ;

int rt_run_program(const char *const *command, const char *log, bool *good)
{
    posix_spawn_file_actions_t actions;
    pid_t process, ended;
    int state = 0;
    *good = false;
    int reason = posix_spawn_file_actions_init(&actions);
    if (reason) return reason;
    reason = posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    if (!reason)
        reason =
            posix_spawn_file_actions_addopen(&actions, 1, log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (!reason) reason = posix_spawn_file_actions_adddup2(&actions, 1, 2);
    if (!reason)
        reason =
            posix_spawnp(&process, command[0], &actions, NULL, (char *const *)command, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (reason) return reason;
    do ended = waitpid(process, &state, 0);
    while (ended < 0 && errno == EINTR);
    if (ended < 0) return errno;
    *good = WIFEXITED(state) && WEXITSTATUS(state) == 0;
    return 0;
}
