/* faults.c: makes calls of a program fail, for test_faults.c: loaded into it by LD_PRELOAD.
 *
 *     FAULTS_REPORT=FILE   holds a FaultReport (faults.h): which calls fail, and what happened
 *
 * The program is started once and forked for each run: most of a short run is to load LLVM.
 * Only calls made by the program itself fail, or by the libraries that read files for it, not those
 * of LLVM, of the OpenMP runtime or of libc. */
#define _GNU_SOURCE /* RTLD_NEXT, dladdr, dl_iterate_phdr */
#include "tests/faults.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define CALLER __builtin_return_address(0)

static FaultReport *report;

/* Where the code lies that promises to cope: the program, and the libraries that read files for it.
 * (dladdr would search all names of LLVM at each call.) */
enum { MOST_PARTS = 16 };
static struct Part {
    uintptr_t begin, end;
    bool is_library;
} part[MOST_PARTS];
static int part_count;

static bool is_wanted(const char *path)
{
    static const char *const libraries[] = {"libyaml", "libjansson", "libpng",
                                            "libjpeg", "libzip",     "libz."};
    const char *slash = path ? strrchr(path, '/') : NULL;
    for (size_t i = 0; slash && i < sizeof libraries / sizeof *libraries; i++)
        if (!strncmp(slash + 1, libraries[i], strlen(libraries[i]))) return true;
    return false;
}

/* The first object is the program. */
static int note_part(struct dl_phdr_info *info, size_t size, void *user)
{
    bool *first = user, is_program = *first;
    (void)size;
    *first = false;
    if (part_count == MOST_PARTS || (!is_program && !is_wanted(info->dlpi_name))) return 0;
    struct Part *new = &part[part_count++];
    *new = (struct Part){info->dlpi_addr, info->dlpi_addr, !is_program};
    for (int i = 0; i < info->dlpi_phnum; i++) {
        uintptr_t end = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr + info->dlpi_phdr[i].p_memsz;
        if (info->dlpi_phdr[i].p_type == PT_LOAD && end > new->end) new->end = end;
    }
    return 0;
}

/* What the run before printed is gone. */
static void rewind_output(int file)
{
    if (ftruncate(file, 0) != 0 || lseek(file, 0, SEEK_SET) != 0) _exit(99);
}

/* Returns in each child alone. */
static void serve(void)
{
    for (;;) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* the test may end early */
        while (sem_wait(&report->begin) != 0) continue;
        pid_t child = fork();
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            rewind_output(STDOUT_FILENO);
            rewind_output(STDERR_FILENO);
            return;
        }
        if (waitpid(child, &report->state, 0) != child) _exit(99);
        sem_post(&report->ended);
    }
}

static void __attribute__((constructor)) open_report(void)
{
    const char *path = getenv("FAULTS_REPORT");
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *memory = mmap(NULL, sizeof(FaultReport), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    unsetenv("FAULTS_REPORT"); /* the compilers that it starts are others' */
    unsetenv("LD_PRELOAD");
    dl_iterate_phdr(note_part, &(bool){true});
    if (memory == MAP_FAILED) return;
    report = memory;
    serve();
}

/* Whether the call comes from code that is to fail now. */
static bool is_ours(const void *caller)
{
    for (int i = 0; i < part_count; i++)
        if ((uintptr_t)caller >= part[i].begin && (uintptr_t)caller < part[i].end)
            return part[i].is_library == (report->order.in_libraries != 0);
    return false;
}

/* Counts a call; whether it fails. */
static bool fails(FaultCall call, const void *caller)
{
    const FaultOrder *order = report ? &report->order : NULL;
    if (!order || order->call != call || !is_ours(caller)) return false;
    int number = __atomic_add_fetch(&report->count, 1, __ATOMIC_RELAXED);
    if (order->at == 0 || number < order->at || (number > order->at && !order->from_then_on))
        return false;
    if (__atomic_add_fetch(&report->failed, 1, __ATOMIC_RELAXED) == 1)
        report->place = (long)((uintptr_t)caller - part[0].begin);
    if (order->signal) {
        raise(order->signal);
        return false;
    }
    errno = order->error;
    return true;
}

/* The function that would have been called. While it is looked for, memory comes from a small
 * block of ours. */
#define NEXT(name)                                                                                 \
    static __typeof__(&name) next;                                                                 \
    if (!next) next = (__typeof__(&name))find_next(#name)

static volatile bool searching; /* dlsym is said to call nothing back, but does */

static void *find_next(const char *name)
{
    searching = true;
    void *found = dlsym(RTLD_NEXT, name);
    searching = false;
    return found;
}

static _Alignas(16) char early[4096];
static size_t early_used;

static void *early_memory(size_t size)
{
    void *memory = early + early_used;
    early_used += (size + 15) / 16 * 16;
    return early_used <= sizeof early ? memory : NULL;
}

/* ---- memory ---------------------------------------------------------------------------------- */

EXPORT void *malloc(size_t size)
{
    if (searching) return early_memory(size);
    NEXT(malloc);
    return fails(FAULT_MEMORY, CALLER) ? NULL : next(size);
}

EXPORT void *calloc(size_t count, size_t size)
{
    if (searching) return early_memory(count * size);
    NEXT(calloc);
    return fails(FAULT_MEMORY, CALLER) ? NULL : next(count, size);
}

EXPORT void *realloc(void *memory, size_t size)
{
    NEXT(realloc);
    return fails(FAULT_MEMORY, CALLER) ? NULL : next(memory, size);
}

EXPORT void free(void *memory)
{
    if ((char *)memory >= early && (char *)memory < early + sizeof early) return;
    if (searching) return; /* dlsym forgets an old error: lost, for the function is not found yet */
    NEXT(free);
    next(memory);
}

EXPORT void *aligned_alloc(size_t alignment, size_t size)
{
    NEXT(aligned_alloc);
    return fails(FAULT_MEMORY, CALLER) ? NULL : next(alignment, size);
}

EXPORT char *strdup(const char *text)
{
    NEXT(strdup);
    return fails(FAULT_MEMORY, CALLER) ? NULL : next(text);
}

EXPORT char *realpath(const char *path, char *resolved)
{
    NEXT(realpath);
    return fails(FAULT_MEMORY, CALLER) ? NULL : next(path, resolved);
}

/* ---- files ----------------------------------------------------------------------------------- */

EXPORT int open(const char *path, int flags, ...)
{
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = flags & O_CREAT ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    NEXT(open);
    return flags & O_CREAT && fails(FAULT_OPEN, CALLER) ? -1 : next(path, flags, mode);
}

EXPORT ssize_t write(int file, const void *data, size_t size)
{
    NEXT(write);
    if (!fails(FAULT_WRITE, CALLER)) return next(file, data, size);
    return report->order.error ? -1 : next(file, data, (size + 1) / 2); /* a short write */
}

EXPORT int fsync(int file)
{
    NEXT(fsync);
    return fails(FAULT_SYNC, CALLER) ? -1 : next(file);
}

EXPORT int rename(const char *from, const char *to)
{
    NEXT(rename);
    return fails(FAULT_RENAME, CALLER) ? -1 : next(from, to);
}

/* Of what was written. The descriptor is gone either way, as Linux does it. */
EXPORT int close(int file)
{
    NEXT(close);
    bool reads = (fcntl(file, F_GETFL) & O_ACCMODE) == O_RDONLY;
    int result = next(file);
    return !reads && fails(FAULT_CLOSE, CALLER) ? -1 : result;
}

EXPORT FILE *fopen(const char *path, const char *mode)
{
    NEXT(fopen);
    return mode[0] == 'w' && fails(FAULT_OPEN, CALLER) ? NULL : next(path, mode);
}

EXPORT size_t fwrite(const void *data, size_t size, size_t count, FILE *file)
{
    NEXT(fwrite);
    return file != stdout && file != stderr && fails(FAULT_WRITE, CALLER)
               ? 0
               : next(data, size, count, file);
}

EXPORT int fclose(FILE *file)
{
    NEXT(fclose);
    bool reads = (fcntl(fileno(file), F_GETFL) & O_ACCMODE) == O_RDONLY;
    int result = next(file);
    return !reads && fails(FAULT_CLOSE, CALLER) ? EOF : result;
}
