/* file.c: files read through a mapping, and files written whole or not at all. */
#include "runtime/rt.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static RaftStatus io_error(RaftError *error, const char *path, const char *doing)
{
    return rt_fail(error, RAFT_IO, "%s: cannot be %s: %s", path, doing, strerror(errno));
}

/* ---- reading --------------------------------------------------------------------------------- */

static RaftStatus map_descriptor(const char *path, int descriptor, RtFile *file, RaftError *error)
{
    struct stat status;
    if (fstat(descriptor, &status)) return io_error(error, path, "examined");
    if (S_ISDIR(status.st_mode))
        return rt_fail(error, RAFT_IO, "%s: is a folder, not a file", path);
    if (!S_ISREG(status.st_mode)) return rt_fail(error, RAFT_IO, "%s: is not a regular file", path);
    if (status.st_size == 0) return RAFT_OK; /* nothing to map */
    void *data = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (data == MAP_FAILED) return io_error(error, path, "mapped");
    *file = (RtFile){.data = data, .size = (size_t)status.st_size};
    return RAFT_OK;
}

RaftStatus rt_file_map(const char *path, RtFile *file, RaftError *error)
{
    *file = (RtFile){0};
    /* O_NONBLOCK: opening a named pipe must not wait for its writer. */
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) return io_error(error, path, "opened");
    RaftStatus status = map_descriptor(path, descriptor, file, error);
    close(descriptor);
    return status;
}

void rt_file_unmap(RtFile *file)
{
    if (file->size) munmap((void *)file->data, file->size);
    *file = (RtFile){0};
}

/* ---- writing --------------------------------------------------------------------------------- */

/* Opens a new file `PATH.PROCESS-N.tmp`. On failure `*name` is NULL and errno tells why. */
static FILE *create_temporary(const char *path, char **name)
{
    size_t size = strlen(path) + 48;
    int descriptor = -1;
    *name = malloc(size);
    for (int n = 0; *name && n < 1000; n++) {
        snprintf(*name, size, "%s.%ld-%d.tmp", path, (long)getpid(), n);
        descriptor = open(*name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (descriptor >= 0 || errno != EEXIST) break;
    }
    FILE *stream = descriptor >= 0 ? fdopen(descriptor, "wb") : NULL;
    if (stream) return stream;
    if (descriptor >= 0) {
        close(descriptor);
        unlink(*name);
    }
    free(*name);
    *name = NULL;
    return NULL;
}

RaftStatus rt_output_open(const char *path, RtOutput *output, RaftError *error)
{
    struct stat old;
    bool replaces = stat(path, &old) == 0;
    *output = (RtOutput){0};
    /* A rename would put a plain file in the place of a device such as /dev/null. */
    if (replaces && !S_ISREG(old.st_mode))
        return rt_fail(error, RAFT_IO, "%s: is not a regular file; name one, or a new one", path);
    output->path = replaces ? realpath(path, NULL) : strdup(path);
    if (output->path) output->stream = create_temporary(output->path, &output->temporary);
    if (output->stream && (!replaces || !fchmod(fileno(output->stream), old.st_mode & 07777)))
        return RAFT_OK;
    RaftStatus status = io_error(error, path, "written");
    rt_output_discard(output);
    return status;
}

void rt_output_write(RtOutput *output, const void *data, size_t size)
{
    if (!output->failure && fwrite(data, 1, size, output->stream) != size) output->failure = errno;
}

/* Makes the rename itself last through a power cut. `path` is used up. */
static bool sync_folder_of(char *path)
{
    int folder = open(dirname(path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) return false;
    bool good = fsync(folder) == 0 || errno == EINVAL; /* not every file system can */
    close(folder);
    return good;
}

RaftStatus rt_output_commit(RtOutput *output, RaftError *error)
{
    FILE *stream = output->stream;
    output->stream = NULL;
    if (!output->failure && (fflush(stream) || fsync(fileno(stream)))) output->failure = errno;
    if (fclose(stream) && !output->failure) output->failure = errno;
    if (!output->failure && rename(output->temporary, output->path)) output->failure = errno;
    errno = output->failure;
    RaftStatus status = RAFT_OK;
    if (output->failure) {
        status = io_error(error, output->path, "written");
    } else {
        free(output->temporary);
        output->temporary = NULL;
        if (!sync_folder_of(output->path)) status = io_error(error, output->path, "synced");
    }
    rt_output_discard(output);
    return status;
}

void rt_output_discard(RtOutput *output)
{
    if (output->stream) fclose(output->stream);
    if (output->temporary) unlink(output->temporary);
    free(output->temporary);
    free(output->path);
    *output = (RtOutput){0};
}
