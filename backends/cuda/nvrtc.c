/* nvrtc.c: CUDA C++ text to PTX and cubins, by NVIDIA's compiler library, which is looked for when it
 * is needed:
 *
 *   $RAFTC_NVRTC           the library, or the folder where it is; nothing else is then tried
 *   $CUDA_PATH, $CUDA_HOME the folder of a toolkit
 *   /usr/local/cuda ..     where toolkits are installed
 *   the dynamic loader     LD_LIBRARY_PATH and the system's folders
 *   nvidia-cuda-nvrtc      the wheel of PyPI, of the python3 on PATH
 */
#include "backends/cuda/cache.h"

#include <dlfcn.h>
#include <glob.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

typedef void *Program;

/* Entry points are declared here, so that no header of CUDA is needed. They return 0, or an error. */
struct CudaCompiler {
    int major, minor;
    int (*version)(int *major, int *minor);
    int (*create)(Program *program, const char *source, const char *name, int header_count,
                  const char *const *headers, const char *const *names);
    int (*compile)(Program program, int option_count, const char *const *options);
    int (*log_size)(Program program, size_t *size);
    int (*log)(Program program, char *log);
    int (*ptx_size)(Program program, size_t *size);
    int (*ptx)(Program program, char *ptx);
    int (*cubin_size)(Program program, size_t *size);
    int (*cubin)(Program program, char *cubin);
    int (*destroy)(Program *program);
    const char *(*error)(int result);
};

/* ---- looking for the library ----------------------------------------------------------------- */

/* Opens the last in the order of names of what the pattern finds: libnvrtc.so.13 before .so.12. */
static void *open_pattern(const char *pattern)
{
    glob_t found;
    void *library = NULL;
    if (glob(pattern, GLOB_BRACE, NULL, &found) == 0)
        for (size_t i = found.gl_pathc; i-- > 0 && !library;)
            library = dlopen(found.gl_pathv[i], RTLD_NOW | RTLD_LOCAL);
    globfree(&found);
    return library;
}

static void *open_folder(Arena *arena, const char *folder)
{
    return open_pattern(arena_printf(arena, "%s/libnvrtc.so.[0-9]*", folder));
}

static void *open_toolkits(Arena *arena)
{
    static const char *const variable[] = {"CUDA_PATH", "CUDA_HOME"};
    void *library = NULL;
    for (size_t i = 0; i < ARRAY_SIZE(variable) && !library; i++) {
        const char *toolkit = getenv(variable[i]);
        if (!toolkit || !*toolkit) continue;
        library = open_folder(arena, arena_printf(arena, "%s/{lib64,lib}", toolkit));
    }
    if (!library) library = open_folder(arena, "{/usr/local/cuda,/opt/cuda}/{lib64,lib}");
    if (!library) library = open_folder(arena, "/usr/local/cuda-*/lib64");
    return library;
}

static void *open_by_loader(void)
{
    static const char *const name[] = {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"};
    void *library = NULL;
    for (size_t i = 0; i < ARRAY_SIZE(name) && !library; i++)
        library = dlopen(name[i], RTLD_NOW | RTLD_LOCAL);
    return library;
}

static void *open_wheel(Arena *arena)
{
    static const char packages[] = "{lib,local/lib}/python3*/{site,dist}-packages";
    static const char wheel[] = "nvidia/{cu13,cuda_nvrtc}/lib";
    const char *path = getenv("PATH");
    char *rest = arena_strdup(arena, path ? path : "");
    void *library = NULL;
    struct stat status;
    for (char *folder; !library && (folder = strsep(&rest, ":"));) {
        if (stat(arena_printf(arena, "%s/python3", folder), &status) != 0) continue;
        library = open_folder(arena, arena_printf(arena, "%s/../%s/%s", folder, packages, wheel));
    }
    return library;
}

static void *open_library(Arena *arena, Diag *diag)
{
    const char *named = getenv("RAFTC_NVRTC");
    if (named && *named) {
        void *library = dlopen(named, RTLD_NOW | RTLD_LOCAL);
        if (!library) library = open_folder(arena, named);
        if (!library)
            diag_error(diag, (Loc){0},
                       "RAFTC_NVRTC is '%s', which is neither libnvrtc.so nor the "
                       "folder of one that can be loaded",
                       named);
        return library;
    }
    void *library = open_toolkits(arena);
    if (!library) library = open_by_loader();
    if (!library) library = open_wheel(arena);
    if (!library)
        diag_error(diag, (Loc){0},
                   "NVRTC, NVIDIA's compiler of CUDA kernels, is not found: install the CUDA "
                   "toolkit, or `pip install nvidia-cuda-nvrtc`, or let RAFTC_NVRTC name "
                   "libnvrtc.so");
    return library;
}

CudaCompiler *cuda_compiler_open(Arena *arena, Diag *diag)
{
    CudaCompiler *c = arena_alloc(arena, sizeof *c);
    void *library = open_library(arena, diag);
    if (!library) return NULL;
    const struct {
        void *function;
        const char *name;
    } wanted[] = {
        {&c->version, "nvrtcVersion"},
        {&c->create, "nvrtcCreateProgram"},
        {&c->compile, "nvrtcCompileProgram"},
        {&c->log_size, "nvrtcGetProgramLogSize"},
        {&c->log, "nvrtcGetProgramLog"},
        {&c->ptx_size, "nvrtcGetPTXSize"},
        {&c->ptx, "nvrtcGetPTX"},
        {&c->cubin_size, "nvrtcGetCUBINSize"},
        {&c->cubin, "nvrtcGetCUBIN"},
        {&c->destroy, "nvrtcDestroyProgram"},
        {&c->error, "nvrtcGetErrorString"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(wanted); i++) {
        void *function = dlsym(library, wanted[i].name);
        memcpy(wanted[i].function, &function, sizeof function);
        if (function) continue;
        diag_error(diag, (Loc){0}, "NVRTC is too old, or damaged: it lacks %s", wanted[i].name);
        return NULL;
    }
    c->version(&c->major, &c->minor);
    return c;
}

/* ---- compiling ------------------------------------------------------------------------------- */

/* All that NVRTC has to say. */
static void show_log(const CudaCompiler *c, Program program, Arena *arena, Diag *diag)
{
    size_t size = 0;
    c->log_size(program, &size);
    char *log = arena_alloc(arena, size + 1);
    c->log(program, log);
    for (char *line; (line = strsep(&log, "\n"));)
        if (*line) diag_note(diag, (Loc){0}, "%s", line);
}

static bool read_result(const CudaCompiler *c, Program program, CudaCodeKind kind, Arena *arena,
                        RaftCudaImage *image)
{
    bool ptx = kind == CUDA_PTX;
    size_t size = 0;
    int result = (ptx ? c->ptx_size : c->cubin_size)(program, &size);
    char *data = arena_alloc(arena, size + 1);
    if (result == 0) result = (ptx ? c->ptx : c->cubin)(program, data);
    image->data = data;
    image->size = ptx && size ? size - 1 : size; /* less the terminator */
    return result == 0;
}

static bool compile(const CudaCompiler *c, const char *text, const char *name, CudaCodeKind kind,
                    const char *const *options, int option_count, Arena *arena,
                    RaftCudaImage *image, Diag *diag)
{
    Program program = NULL;
    int result = c->create(&program, text, arena_printf(arena, "%s.cu", name), 0, NULL, NULL);
    if (result != 0)
        return diag_error(diag, (Loc){0}, "NVRTC cannot be used: %s", c->error(result));
    result = c->compile(program, option_count, options);
    if (result != 0)
        diag_error(diag, (Loc){0}, "NVRTC %d.%d refuses the kernels of %s for sm_%d: %s", c->major,
                   c->minor, name, image->architecture, c->error(result));
    show_log(c, program, arena, diag);
    bool good = result == 0 && read_result(c, program, kind, arena, image);
    if (result == 0 && !good)
        diag_error(diag, (Loc){0}, "NVRTC %d.%d gives no code for sm_%d", c->major, c->minor,
                   image->architecture);
    c->destroy(&program);
    return good;
}

bool cuda_compile(const CudaCompiler *c, Arena *arena, const char *text, const char *name,
                  int architecture, CudaCodeKind kind, RaftCudaImage *image, const char **note,
                  Diag *diag)
{
    const char *const options[] = {
        arena_printf(arena, "--gpu-architecture=%s_%d", kind == CUDA_PTX ? "compute" : "sm",
                     architecture),
        "--std=c++17",
        "--fmad=true",
        "--ptxas-options=--warn-on-spills",
        "--ptxas-options=--warn-on-local-memory-usage",
    };
    Text made_of = text_new(arena); /* all that the result depends on */
    text_printf(&made_of, "%s of NVRTC %d.%d", kind == CUDA_PTX ? "ptx" : "cubin", c->major,
                c->minor);
    for (size_t i = 0; i < ARRAY_SIZE(options); i++) text_printf(&made_of, " %s", options[i]);
    text_printf(&made_of, "\n%s\n%s", name, text);
    *image = (RaftCudaImage){.architecture = architecture};
    *note = NULL;
    if (cache_read(arena, made_of.data, image)) return true;
    if (!compile(c, text, name, kind, options, ARRAY_SIZE(options), arena, image, diag))
        return false;
    cache_write(arena, made_of.data, image, note);
    return true;
}
