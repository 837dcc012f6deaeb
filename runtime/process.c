/* process.c: runs other programs: compilers, archivers, Graphviz. */
#include "runtime/rt.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>

extern char **environ;

int rt_start_program(const char *const *command, const char *log, pid_t *process)
{
    posix_spawn_file_actions_t actions;
    int reason = posix_spawn_file_actions_init(&actions);
    if (reason) return reason;
    reason = posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    if (!reason)
        reason =
            posix_spawn_file_actions_addopen(&actions, 1, log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (!reason) reason = posix_spawn_file_actions_adddup2(&actions, 1, 2);
    if (!reason)
        reason = posix_spawnp(process, command[0], &actions, NULL, (char *const *)command, environ);
    posix_spawn_file_actions_destroy(&actions);
    return reason;
}

int rt_finish_program(pid_t process, bool *good)
{
    pid_t ended;
    int state = 0;
    *good = false;
    do ended = waitpid(process, &state, 0);
    while (ended < 0 && errno == EINTR);
    if (ended < 0) return errno;
    *good = WIFEXITED(state) && WEXITSTATUS(state) == 0;
    return 0;
}

int rt_run_program(const char *const *command, const char *log, bool *good)
{
    pid_t process;
    *good = false;
    int reason = rt_start_program(command, log, &process);
    return reason ? reason : rt_finish_program(process, good);
}
