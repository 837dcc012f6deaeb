/* status.c: error messages of the runtime library. */
#include "runtime/rt.h"

#include <stdarg.h>
#include <string.h>

static void write_message(RaftError *error, size_t start, const char *format, va_list arguments)
{
    vsnprintf(error->message + start, sizeof error->message - start, format, arguments);
    /* Names from files may hold what would steer a terminal. */
    for (char *p = error->message + start; *p; p++)
        if (((unsigned char)*p < ' ' && *p != '\n') || *p == 127) *p = '?';
}

RaftStatus rt_fail(RaftError *error, RaftStatus status, const char *format, ...)
{
    if (error) {
        va_list arguments;
        va_start(arguments, format);
        write_message(error, 0, format, arguments);
        va_end(arguments);
    }
    return status;
}

RaftStatus rt_bad_file(RaftError *error, const char *path, uint64_t offset, const char *format, ...)
{
    if (error) {
        va_list arguments;
        rt_fail(error, RAFT_BAD_FILE, "%s: byte %llu: ", path, (unsigned long long)offset);
        va_start(arguments, format);
        write_message(error, strlen(error->message), format, arguments);
        va_end(arguments);
    }
    return RAFT_BAD_FILE;
}

void rt_add(RaftError *error, const char *format, ...)
{
    va_list arguments;
    if (!error) return;
    va_start(arguments, format);
    write_message(error, strlen(error->message), format, arguments);
    va_end(arguments);
}

RaftStatus rt_no_memory(RaftError *error, const char *what)
{
    return rt_fail(error, RAFT_NO_MEMORY, "%s: out of memory", what);
}
