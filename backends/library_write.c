/* library_write.c: the files of a library, made by the C compiler and the archiver of the target.
 *
 * Everything is made in a temporary folder, then each file takes its place whole. While the folder
 * exists nothing is allocated in an arena: running out of memory there would leave it behind. The C
 * compiler works side by side with whoever makes the objects of the kernels.
 */
#include "backends/backend.h"
#include "runtime/rt.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    SHELL_SOURCE,
    SHELL_OBJECT,
    WEIGHTS,
    CUBINS,
    EXPORTS,
    SHARED,
    ARCHIVE,
    COMPILER_LOG,
    ARCHIVER_LOG,
    FILE_COUNT
};
static const char *const file_name[FILE_COUNT] = {
    "shell.c",    "shell.o",   "weights",      "cubins",       "exports.map",
    "library.so", "library.a", "compiler.log", "archiver.log",
};

typedef struct Tool {
    const char *what;     /* "C compiler" */
    const char *variable; /* of the environment, where it may be named */
    const char *package;  /* that has it, on Debian */
    int log;              /* number of the file of what it prints */
    int word_count;
    const char **words; /* of its command line, so far */
} Tool;

/* A command line is the words of a tool, at most so many more, and, in the place of one of them, the
 * paths of all objects. */
enum { MORE_WORDS = 24 };
static const char OBJECTS[] = "objects";

typedef struct Job {
    Tool compiler, archiver;
    char *folder;
    char **path; /* FILE_COUNT of them, then one for each object */
    int path_count;
    char *prefix_map;     /* an option: the compiler must not name the folder */
    const char *effort;   /* likewise: how much the compiler optimises the shell */
    const char *openmp;   /* likewise: whether the shell shares work out over threads */
    const char *loader;   /* likewise: "-ldl", or NULL */
    const char **command; /* room for one */
    RaftError error;
    RaftStatus status; /* that of the error */
    char log[3000];    /* the beginning of what the failed tool said */
} Job;

/* ---- tools ----------------------------------------------------------------------------------- */

/* The name that cross tools of a triple begin with: that without its vendor, aarch64-linux-gnu. */
static const char *tool_prefix(Arena *arena, const char *triple)
{
    const char *vendor = strchr(triple, '-');
    const char *system = vendor ? strchr(vendor + 1, '-') : NULL;
    if (!system || !strchr(system + 1, '-')) return triple;
    return arena_printf(arena, "%.*s%s", (int)(vendor - triple), triple, system);
}

/* Fills in the words: those of the environment variable or `name`, or a cross tool. */
static void find_tool(Arena *arena, Tool *tool, const char *name, const char *cross_name,
                      const char *triple)
{
    const char *value = triple ? NULL : getenv(tool->variable);
    if (triple) {
        const char *prefix = tool_prefix(arena, triple);
        char *package = arena_printf(arena, "%s-%s", tool->package, prefix);
        for (char *p = package; *p; p++)
            if (*p == '_') *p = '-'; /* gcc-x86-64-linux-gnu */
        tool->package = package;
        tool->variable = NULL;
        value = arena_printf(arena, "%s-%s", prefix, cross_name);
    }
    char *text = arena_strdup(arena, value ? value : ""), *rest = text;
    tool->words = arena_array(arena, strlen(text) / 2 + 2, sizeof *tool->words);
    for (char *word; (word = strtok_r(rest, " \t\n", &rest));)
        tool->words[tool->word_count++] = word;
    if (tool->word_count == 0) tool->words[tool->word_count++] = name;
}

static bool tool_cannot_run(Job *job, const Tool *tool, int reason)
{
    const char *variable = tool->variable ? tool->variable : "";
    job->status = rt_fail(
        &job->error, RAFT_UNSUPPORTED,
        "the %s '%s'%s%s%s cannot be run: %s; a library needs it: install the package %s, or "
        "write an object alone",
        tool->what, tool->words[0], *variable ? " ($" : "", variable, *variable ? ")" : "",
        strerror(reason), tool->package);
    return false;
}

static bool tool_failed(Job *job, const Tool *tool)
{
    FILE *log = fopen(job->path[tool->log], "r");
    size_t length = log ? fread(job->log, 1, sizeof job->log - 1, log) : 0;
    if (log) fclose(log);
    job->log[length] = '\0';
    job->status =
        rt_fail(&job->error, RAFT_UNSUPPORTED, "the %s '%s' failed", tool->what, tool->words[0]);
    return false;
}

/* Starts the tool with its words and these, up to NULL; what it prints goes to the log. */
static bool start_tool(Job *job, const Tool *tool, const char *const *more, pid_t *process)
{
    int count = 0;
    for (int i = 0; i < tool->word_count; i++) job->command[count++] = tool->words[i];
    for (int i = 0; more[i]; i++) {
        RAFTC_ASSERT(i < MORE_WORDS);
        if (more[i] != OBJECTS) job->command[count++] = more[i];
        for (int j = FILE_COUNT; j < job->path_count && more[i] == OBJECTS; j++)
            job->command[count++] = job->path[j];
    }
    job->command[count] = NULL;
    int reason = rt_start_program(job->command, job->path[tool->log], process);
    return reason ? tool_cannot_run(job, tool, reason) : true;
}

static bool finish_tool(Job *job, const Tool *tool, pid_t process)
{
    bool good;
    int reason = rt_finish_program(process, &good);
    if (reason) return tool_cannot_run(job, tool, reason);
    return good || tool_failed(job, tool);
}

/* ---- files ----------------------------------------------------------------------------------- */

static bool place(Job *job, const char *path, const void *data, size_t size)
{
    RtOutput output;
    job->status = rt_output_open(path, &output, &job->error);
    if (job->status != RAFT_OK) return false;
    rt_output_write(&output, data, size);
    job->status = rt_output_commit(&output, &job->error);
    return job->status == RAFT_OK;
}

/* Into the temporary folder, where nothing has to outlive a power cut. */
static bool place_aside(Job *job, int number, const void *data, size_t size)
{
    int file = open(job->path[number], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    const char *next = data, *end = next + size;
    bool good = file >= 0;
    while (good && next < end) {
        ssize_t written = write(file, next, (size_t)(end - next));
        if (written == 0) errno = EIO; /* no file does so */
        if (written > 0) next += written;
        good = written > 0 || (written < 0 && errno == EINTR);
    }
    int reason = errno;
    if (file >= 0 && close(file) != 0 && errno != EINTR && good) {
        reason = errno;
        good = false;
    }
    if (!good)
        job->status = rt_fail(&job->error, RAFT_IO, "%s: cannot be written: %s", job->path[number],
                              strerror(reason));
    return good;
}

static bool place_file(Job *job, const char *path, int file)
{
    RtFile content;
    job->status = rt_file_map(job->path[file], &content, &job->error);
    if (job->status != RAFT_OK) return false;
    bool good = place(job, path, content.data, content.size);
    rt_file_unmap(&content);
    return good;
}

/* Makes the temporary folder; the paths in it have room for its name. */
static bool make_folder(Job *job)
{
    if (!mkdtemp(job->folder)) {
        job->status = rt_fail(&job->error, RAFT_IO, "%s: a temporary folder cannot be made: %s",
                              job->folder, strerror(errno));
        return false;
    }
    for (int i = 0; i < job->path_count; i++)
        memcpy(job->path[i], job->folder, strlen(job->folder));
    memcpy(strchr(job->prefix_map, '=') + 1, job->folder, strlen(job->folder));
    return true;
}

static void remove_folder(Job *job)
{
    for (int i = 0; i < job->path_count; i++) unlink(job->path[i]);
    rmdir(job->folder);
}

/* ---- the library ----------------------------------------------------------------------------- */

/* Same inputs, same bytes: no debug information, no names of temporary files, no times. */
static bool start_compiler(Job *job, pid_t *process)
{
    const char *const more[] = {"-std=gnu17",
                                job->effort,
                                "-g0",
                                "-pipe",
                                "-fPIC",
                                job->openmp,
                                "-ffp-contract=off",
                                job->prefix_map,
                                "-Xassembler",
                                "-I",
                                "-Xassembler",
                                job->folder,
                                "-c",
                                job->path[SHELL_SOURCE],
                                "-o",
                                job->path[SHELL_OBJECT],
                                NULL};
    return start_tool(job, &job->compiler, more, process);
}

static bool make_objects(Job *job, const LibraryObjects *objects)
{
    const char *fault = objects->make(objects->context, objects->object);
    if (fault)
        job->status = rt_fail(&job->error, RAFT_INVALID, "LLVM cannot write the code: %s", fault);
    bool good = !fault;
    for (int i = 0; i < objects->count && good; i++)
        good = place_aside(job, FILE_COUNT + i, objects->object[i].data, objects->object[i].size);
    return good;
}

/* The shell and the kernels, at the same time. */
static bool make_parts(Job *job, const LibraryObjects *objects)
{
    pid_t process;
    if (!start_compiler(job, &process)) return false;
    bool made = !objects || make_objects(job, objects);
    return finish_tool(job, &job->compiler, process) && made;
}

static bool start_linker(Job *job, const char *name, pid_t *process)
{
    const char *const more[] = {"-shared",
                                job->openmp,
                                "-Xlinker",
                                "--version-script",
                                "-Xlinker",
                                job->path[EXPORTS],
                                "-Xlinker",
                                "-soname",
                                "-Xlinker",
                                name,
                                job->path[SHELL_OBJECT],
                                OBJECTS,
                                "-lm",
                                "-o",
                                job->path[SHARED],
                                job->loader,
                                NULL};
    return start_tool(job, &job->compiler, more, process);
}

static bool start_archiver(Job *job, pid_t *process)
{
    const char *const more[] = {"rcsD", job->path[ARCHIVE], job->path[SHELL_OBJECT], OBJECTS, NULL};
    return start_tool(job, &job->archiver, more, process);
}

/* The shared library, unless its name is NULL, and the archive, at the same time. */
static bool join_parts(Job *job, const char *shared_name, bool archive)
{
    pid_t linker, archiver;
    if (shared_name && !start_linker(job, shared_name, &linker)) return false;
    bool archiving = archive && start_archiver(job, &archiver);
    bool good = archiving || !archive;
    if (shared_name) good = finish_tool(job, &job->compiler, linker) && good;
    if (archiving) good = finish_tool(job, &job->archiver, archiver) && good;
    return good;
}

static Job *new_job(Arena *arena, const char *triple, int object_count)
{
    Job *job = arena_alloc(arena, sizeof *job);
    job->compiler =
        (Tool){.what = "C compiler", .variable = "CC", .package = "gcc", .log = COMPILER_LOG};
    job->archiver =
        (Tool){.what = "archiver", .variable = "AR", .package = "binutils", .log = ARCHIVER_LOG};
    find_tool(arena, &job->compiler, "cc", "gcc", triple);
    find_tool(arena, &job->archiver, "ar", "ar", triple);
    int words = job->compiler.word_count + job->archiver.word_count + MORE_WORDS + object_count;
    job->command = arena_array(arena, (size_t)words, sizeof *job->command);
    const char *parent = getenv("TMPDIR");
    job->folder = arena_printf(arena, "%s/raftc-XXXXXX", parent && *parent ? parent : "/tmp");
    job->path_count = FILE_COUNT + object_count;
    job->path = arena_array(arena, (size_t)job->path_count, sizeof *job->path);
    for (int i = 0; i < FILE_COUNT; i++)
        job->path[i] = arena_printf(arena, "%s/%s", job->folder, file_name[i]);
    for (int i = FILE_COUNT; i < job->path_count; i++)
        job->path[i] = arena_printf(arena, "%s/kernels%d.o", job->folder, i - FILE_COUNT);
    job->prefix_map = arena_printf(arena, "-ffile-prefix-map=%s/=", job->folder);
    return job;
}

/* The error, and the first lines of the tool's own messages. */
static RaftStatus report(Job *job, Diag *diag)
{
    enum { MOST_LINES = 12 };
    char *rest = job->log;
    diag_error(diag, (Loc){0}, "%s", job->error.message);
    for (int i = 0; i < MOST_LINES; i++) {
        const char *line = strtok_r(rest, "\n", &rest);
        if (line) diag_note(diag, (Loc){0}, "%s", line);
    }
    return job->status;
}

/* What the two files are made of, then they themselves. */
typedef struct Content {
    const char *source, *exports;
    const LibraryObjects *objects;
    const void *weights, *cubins;
    size_t weights_size, cubins_size;
    const char *shared, *archive; /* paths, or NULL */
} Content;

static bool make_files(Job *job, const Content *content)
{
    const char *slash = content->shared ? strrchr(content->shared, '/') : NULL;
    const char *shared_name = slash ? slash + 1 : content->shared;
    return place_aside(job, SHELL_SOURCE, content->source, strlen(content->source)) &&
           place_aside(job, EXPORTS, content->exports, strlen(content->exports)) &&
           (!content->weights ||
            place_aside(job, WEIGHTS, content->weights, content->weights_size)) &&
           (!content->cubins || place_aside(job, CUBINS, content->cubins, content->cubins_size)) &&
           make_parts(job, content->objects) && join_parts(job, shared_name, content->archive) &&
           (!content->shared || place_file(job, content->shared, SHARED)) &&
           (!content->archive || place_file(job, content->archive, ARCHIVE));
}

RaftStatus library_write(Arena *arena, const Plan *plan, const ProgramCode *code,
                         const LibraryObjects *objects, const LibraryOptions *options, Diag *diag)
{
    if (!library_check(plan, options, diag)) return RAFT_INVALID;
    const char *base = options->base;
    Content content = {
        .source = library_source(arena, plan, code, options),
        .exports = library_exports(arena, plan, options),
        .objects = objects,
        .weights = options->weights,
        .weights_size = options->weights_size,
        .shared = options->shared ? arena_printf(arena, "%s.so", base) : NULL,
        .archive = options->archive ? arena_printf(arena, "%s.a", base) : NULL,
    };
    if (code->cuda) content.cubins = library_cubins(arena, code, &content.cubins_size);
    const char *header = library_header(arena, plan, options);
    const char *header_path = arena_printf(arena, "%s.h", base);
    Job *job = new_job(arena, options->triple, objects ? objects->count : 0);
    /* The shell calls kernels and waits for them, but an optimiser's step has loops of its own, and launches should
     * take no time. */
    job->effort = objects && !options->training ? "-O0" : "-O1";
    job->openmp = objects ? "-fopenmp" : "-fno-openmp";
    job->loader = objects ? NULL : "-ldl";
    bool good = true;
    if (content.shared || content.archive) {
        good = make_folder(job);
        if (good) {
            good = make_files(job, &content);
            remove_folder(job);
        }
    }
    if (good && options->header) good = place(job, header_path, header, strlen(header));
    return good ? RAFT_OK : report(job, diag);
}
