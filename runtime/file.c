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

enum { BUFFER_BYTES = 1 << 16 };

/* Opens a new file `PATH.PROCESS-N.tmp`. On failure `temporary` is NULL and errno tells why. */
static bool create_temporary(RtOutput *output)
{
    size_t size = strlen(output->path) + 48;
    char *name = malloc(size);
    for (int n = 0; name && n < 1000; n++) {
        snprintf(name, size, "%s.%ld-%d.tmp", output->path, (long)getpid(), n);
        output->descriptor = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (output->descriptor >= 0 || errno != EEXIST) break;
    }
    if (output->descriptor >= 0)
        output->temporary = name;
    else
        free(name);
    return output->temporary;
}

RaftStatus rt_output_open(const char *path, RtOutput *output, RaftError *error)
{
    struct stat old;
    bool replaces = stat(path, &old) == 0;
    *output = (RtOutput){.descriptor = -1};
    /* A rename would put a plain file in the place of a device such as /dev/null. */
    if (replaces && !S_ISREG(old.st_mode))
        return rt_fail(error, RAFT_IO, "%s: is not a regular file; name one, or a new one", path);
    output->path = replaces ? realpath(path, NULL) : strdup(path);
    output->buffer = malloc(BUFFER_BYTES);
    if (output->path && output->buffer && create_temporary(output) &&
        (!replaces || !fchmod(output->descriptor, old.st_mode & 07777)))
        return RAFT_OK;
    RaftStatus status = io_error(error, path, "written");
    rt_output_discard(output);
    return status;
}

static void write_all(RtOutput *output, const uint8_t *data, size_t size)
{
    while (size > 0 && !output->failure) {
        ssize_t written = write(output->descriptor, data, size);
        if (written < 0 && errno != EINTR) output->failure = errno;
        if (written == 0) output->failure = EIO; /* no file does so */
        if (written <= 0) continue;
        data += written;
        size -= (size_t)written;
    }
}

static void flush(RtOutput *output)
{
    write_all(output, output->buffer, output->buffered);
    output->buffered = 0;
}

void rt_output_write(RtOutput *output, const void *data, size_t size)
{
    if (size > BUFFER_BYTES - output->buffered) flush(output);
    if (size >= BUFFER_BYTES) {
        write_all(output, data, size);
    } else if (size > 0) {
        memcpy(output->buffer + output->buffered, data, size);
        output->buffered += size;
    }
}

void rt_output_seek(RtOutput *output, int64_t offset)
{
    flush(output);
    if (!output->failure && lseek(output->descriptor, offset, SEEK_SET) < 0)
        output->failure = errno;
}

static bool sync_to_disk(int descriptor)
{
    int failed;
    do failed = fsync(descriptor);
    while (failed && errno == EINTR);
    return !failed;
}

/* Makes the rename itself last through a power cut. `path` is used up. */
static bool sync_folder_of(char *path)
{
    int folder = open(dirname(path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) return false;
    bool good = sync_to_disk(folder) || errno == EINVAL; /* not every file system can */
    close(folder);
    return good;
}

/* What is written comes to the disk before it gets its name. */
static void sync_and_close(RtOutput *output)
{
    int descriptor = output->descriptor;
    flush(output);
    if (!output->failure && !sync_to_disk(descriptor)) output->failure = errno;
    output->descriptor = -1;
    /* After EINTR, the descriptor is gone all the same; the content is on the disk. */
    if (close(descriptor) && errno != EINTR && !output->failure) output->failure = errno;
}

RaftStatus rt_output_commit(RtOutput *output, RaftError *error)
{
    sync_and_close(output);
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
    if (output->descriptor >= 0) close(output->descriptor);
    if (output->temporary) unlink(output->temporary);
    free(output->temporary);
    free(output->buffer);
    free(output->path);
    *output = (RtOutput){.descriptor = -1};
}
