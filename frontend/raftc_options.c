/* raftc_options.c: the command line: one table of options drives reading, help and hints; the
 * values are read in raftc_values.c. */
#include "frontend/raftc_options.h"

#include <string.h>
#include <unistd.h>

enum {
    COMPILE = 1 << VERB_COMPILE,
    RUN = 1 << VERB_RUN,
    BENCH = 1 << VERB_BENCH,
    INSPECT = 1 << VERB_INSPECT,
    CONVERT = 1 << VERB_CONVERT,
    TRAIN = 1 << VERB_TRAIN,
    EVAL = 1 << VERB_EVAL,
    TUNE = 1 << VERB_TUNE,
    MODEL = COMPILE | RUN | BENCH | TUNE | INSPECT | TRAIN | EVAL, /* those that take a model */
    ALL = MODEL | CONVERT
};

/* Instrumented code calls what AddressSanitizer brings into the program. */
#ifdef __SANITIZE_ADDRESS__
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif

/* clang-format off */
#define HEADING(text) {.verbs = ALL, .help = text}
#define FLAG(name, verbs, member, help) \
    {name, NULL, verbs, read_flag, NULL, 0, 0, offsetof(Options, member), help}
#define TEXT(name, argument, verbs, read, member, help) \
    {name, argument, verbs, read, NULL, 0, 0, offsetof(Options, member), help}
#define NUMBER(name, argument, verbs, least, most, member, help) \
    {name, argument, verbs, read_number, NULL, least, most, offsetof(Options, member), help}
#define WORDS(name, argument, verbs, read, words, member, help) \
    {name, argument, verbs, read, words, 0, 0, offsetof(Options, member), help}
static const Row table[] = {
    HEADING("The model"),
    TEXT("--set", "KEY=VALUE", MODEL, read_strings, set,
         "override a key of the settings, as in layers.0.dim=96; repeatable"),
    TEXT("--image", "HxW", MODEL, read_image, height,
         "height x width of the images; default: by dataset_name"),
    WORDS("--dtype", "f32|bf16", MODEL, read_choice, "f32|bf16", dtype,
          "arithmetic of the products; default f32"),
    TEXT("--weights", "FILE|@fill", COMPILE | RUN | BENCH | TRAIN | EVAL, read_text, weights,
         "a weight file, or made-up weights"),

    HEADING("Images and answers"),
    TEXT("--input", "X", RUN, read_strings, inputs,
         "the same as a bare argument: a picture, a folder of pictures,\n"
         "a .safetensors with `input` [b, c, h, w], or @fill; repeatable"),
    NUMBER("--batch", "N", RUN | BENCH | TUNE | TRAIN, 1, 1 << 20, batch,
           "images in one forward or step, and how many @fill makes; default 1"),
    NUMBER("--threads", "N", RUN | BENCH | TUNE | TRAIN | EVAL, 1, RAFT_MAX_THREADS, threads,
           "default: OMP_NUM_THREADS, else the processors that raftc may use"),
    NUMBER("--top", "K", RUN, 1, 1 << 24, top, "print the K likeliest classes; default 5"),
    TEXT("--labels", "FILE", RUN, read_text, labels, "names of the classes, one a line"),
    TEXT("--output", "FILE.safetensors", RUN, read_text, output, "write `logits` [b, classes]"),
    FLAG("--features", RUN, with_features, "and `feature0`.. [b, c, h, w] to the same file"),
    TEXT("--dump-input", "FILE.safetensors", RUN, read_text, dump_input,
         "write the preprocessed `input` [b, c, h, w]"),

    HEADING("Training"),
    TEXT("--data", "FOLDER|@fill", TRAIN | EVAL, read_text, data,
         "where the data set is, in place of data_path; or, to train on, one\n"
         "made-up batch of images and labels, in every step"),
    NUMBER("--steps", "N", TRAIN, 1, INT64_MAX, steps, "how many steps to take at most"),
    TEXT("--resume", "[=FILE]", TRAIN, read_text, resume,
         "go on from a checkpoint; default: the newest in the folder of the run"),
    TEXT("--metrics", "FILE.jsonl", TRAIN, read_text, metrics,
         "write one object a step: `step` and `loss`"),
    TEXT("--dump-gradients", "FILE", TRAIN, read_text, dump_gradients,
         "write the gradients of the first step (.safetensors)"),
    TEXT("--save", "FILE", TRAIN, read_text, save,
         "write the weights after the last step (.safetensors, .pt)"),

    HEADING("What is written"),
    TEXT("-o", "PATH", COMPILE | TRAIN, read_text, output_base,
         "base name, or folder; default: the name of the file, here;\n"
         "of a training run: its folder; default: task_name"),
    WORDS("--emit", "KIND[,KIND]", COMPILE, read_list,
          "lib|obj|header|ir|llvm|asm|cuda|ptx|cubin", emit,
          "lib (shared, static and header: the default), obj, header, ir,\nllvm, asm; with --target cuda: lib, header, ir, cuda,\nptx, cubin"),
    FLAG("--embed", COMPILE, embed, "put the weights into the library, not into a file beside it"),
    TEXT("--name", "PREFIX", COMPILE, read_prefix, name,
         "symbol prefix of the library; default: from the file name"),
    WORDS("--report", "KIND[,KIND]", COMPILE | BENCH | TRAIN, read_list, "fusion|memory|cost|time", report,
          "fusion (what was fused, what was not and why), memory, cost,\ntime"),
    FLAG("--train", COMPILE | BENCH, train,
         "with a backward pass and the step of the optimiser: a library that\n"
         "trains; bench times whole steps"),
    TEXT("--memory-limit", "SIZE", BENCH | TRAIN, read_size, memory_limit,
         "of what lies between forward and backward, as in 600M or 2G: what\n"
         "would take more is computed again"),
    FLAG("--check-numerics", RUN | BENCH | TRAIN, check_numerics,
         "stop at the first NaN or infinity, and tell where it comes from"),
    FLAG("--profile", BENCH, profile,
         "each kernel: time, share of the peak and of the memory's speed"),
    TEXT("--roofline", "FILE.svg", BENCH, read_text, roofline,
         "draw each kernel under what the machine could do"),
    TEXT("--trace", "FILE.json", BENCH, read_text, trace,
         "what ran when: passes, and kernels on each thread (for Perfetto)"),
    TEXT("--budget", "TIME", TUNE, read_time, budget, "how long to search, as in 60s or 5m; default 60s"),
    TEXT("--tune-db", "FILE", MODEL, read_text, tune_database,
         "what `raftc tune` found (SQLite); default: in the user's cache"),
    TEXT("--graph", "FILE.svg", INSPECT, read_text, graph,
         "draw the graph after the passes (needs Graphviz)"),
    FLAG("--json", BENCH | INSPECT | EVAL, json, "one object on stdout"),

    HEADING("Code"),
    WORDS("--target", "cpu|cuda|reference", MODEL, read_choice, "cpu|cuda|reference", target,
          "default cpu; reference: plain loops, to compare with"),
    TEXT("--gpu-arch", "sm_80,sm_90", COMPILE, read_architectures, architectures,
         "with --target cuda: for which GPUs; default: the one that is there,\nelse both"),
    FLAG("--emulate", RUN | TRAIN, emulate, "with --target cuda: run its kernels on the CPU, checked"),
    TEXT("--mtriple", "TRIPLE", COMPILE | INSPECT, read_text, triple,
         "of the machine, as LLVM's; default: this machine's"),
    TEXT("--mcpu", "CPU", MODEL, read_text, cpu, "as LLVM's; default: host"),
    TEXT("--mattr", "+A,-B", MODEL, read_text, features, "features of the CPU, as LLVM's"),
    TEXT("--passes", "A,B", MODEL, read_passes, passes, "run these passes only"),
    TEXT("--disable-pass", "NAME", MODEL, read_disabled, disabled_passes,
         "do not run this pass; repeatable"),
    NUMBER("--rewrite-limit", "N", MODEL, 0, INT64_MAX, rewrite_limit,
           "rewrite no more than N times: finds a wrong rewrite by halving"),
    TEXT("--dump-ir", "PASS|all", MODEL, read_dump, dump_ir, "print the graph after a pass"),
    TEXT("--dump-dir", "DIR", MODEL, read_text, dump_dir,
         "what --dump-ir prints goes to numbered files there"),
    WORDS("--sanitize", "address", COMPILE | RUN, read_list, "address", sanitize,
          "instrument the generated code"),

    HEADING("All commands"),
    FLAG("-v", ALL, verbose, "tell what takes how long"),
    FLAG("-q", ALL, quiet, "results and errors only"),
    FLAG("--help", ALL, help, "print this; after the name of a command: its options"),
    FLAG("--version", ALL, version, "print the version"),
};
/* clang-format on */

typedef struct VerbInfo {
    const char *name; /* NULL: the verb that needs none */
    const char *arguments, *summary;
    uint32_t least, most; /* arguments */
} VerbInfo;

/* clang-format off */
static const VerbInfo verbs[VERB_COUNT] = {
    [VERB_COMPILE] = {NULL, "MODEL.yaml", "compile; by default to a library: .so, .a, .h", 1, 1},
    [VERB_RUN] = {"run", "MODEL.yaml IMAGE...", "classify pictures", 1, UINT32_MAX},
    [VERB_BENCH] = {"bench", "MODEL.yaml", "time a forward, or a step of training", 1, 1},
    [VERB_TUNE] = {"tune", "MODEL.yaml", "search tiles for this machine", 1, 1},
    [VERB_TRAIN] = {"train", "SETTINGS.yaml", "train a model", 1, 1},
    [VERB_EVAL] = {"eval", "SETTINGS.yaml", "measure the accuracy of a model on its data set", 1, 1},
    [VERB_INSPECT] = {"inspect", "FILE",
                      "what is in a model, graph, weight file or library of raftc", 1, 1},
    [VERB_CONVERT] = {"convert", "IN OUT", "copy weights, as .safetensors or .pt", 2, 2},
};
/* clang-format on */

/* ---- reading --------------------------------------------------------------------------------- */

static const Row *find_row(const Parser *parser, const char *word, size_t length)
{
    const char *names[ARRAY_SIZE(table)];
    size_t count = 0;
    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        const char *name = table[i].name;
        if (!name) continue;
        if (strlen(name) == length && strncmp(name, word, length) == 0) return &table[i];
        names[count++] = name;
    }
    const char *unknown = arena_strndup(parser->arena, word, length);
    const char *nearest = length > 2 ? diag_nearest(unknown, names, count) : NULL;
    wrong(parser, "unknown option '%s'%s%s%s", unknown, nearest ? "; did you mean '" : "",
          nearest ? nearest : "", nearest ? "'?" : "");
    if (!nearest) diag_note(parser->diag, (Loc){0}, "`raftc --help` lists the options");
    return NULL;
}

/* Reads the option at `next` and its value, which follows = or is the next argument. */
static bool read_option(Parser *parser)
{
    const char *word = parser->argv[parser->next++], *equals = strchr(word, '=');
    size_t length = equals ? (size_t)(equals - word) : strlen(word);
    const char *value = equals ? equals + 1 : NULL;
    const Row *row = find_row(parser, word, length);
    if (!row) return false;
    parser->given[row - table] = true;
    if (!row->argument && value) return wrong(parser, "%s takes no value: %s", row->name, word);
    bool optional = row->argument && row->argument[0] == '[';
    if (optional && !value) {
        *(const char **)((char *)parser->options + row->member) = "";
        return true;
    }
    if (row->argument && !value) {
        const char *next = parser->next < parser->argc ? parser->argv[parser->next] : "--";
        if (strncmp(next, "--", 2) == 0)
            return wrong(parser, "%s needs a value: %s %s", row->name, row->name, row->argument);
        value = next;
        parser->next++;
    }
    return row->read(parser, row, value, (char *)parser->options + row->member);
}

/* ---- arguments ------------------------------------------------------------------------------- */

static int find_verb(const char *word)
{
    for (int i = 0; i < VERB_COUNT; i++)
        if (verbs[i].name && strcmp(word, verbs[i].name) == 0) return i;
    return -1;
}

/* The verbs that an option is for, as text: "compile, run and bench". */
static const char *verb_list(Arena *arena, unsigned set)
{
    Text list = text_new(arena);
    int left = __builtin_popcount(set);
    for (int i = 0; i < VERB_COUNT; i++) {
        if (!(set >> i & 1)) continue;
        const char *joint = left == 1 ? "" : left == 2 ? " and " : ", ";
        text_printf(&list, "%s%s", verbs[i].name ? verbs[i].name : "compiling", joint);
        left--;
    }
    return list.data;
}

static bool check_verb_of_options(const Parser *parser)
{
    Verb verb = parser->options->verb;
    bool good = true;
    for (size_t i = 0; i < ARRAY_SIZE(table); i++)
        if (parser->given[i] && !(table[i].verbs >> verb & 1))
            good = wrong(parser, "%s is not for %s, but for %s", table[i].name,
                         verbs[verb].name ? verbs[verb].name : "compiling",
                         verb_list(parser->arena, table[i].verbs));
    return good;
}

/* A word that is no path is meant as a command. */
static bool check_unknown_verb(const Parser *parser)
{
    const Options *options = parser->options;
    const char *word = options->arguments.count ? options->arguments.item[0] : ".";
    if (options->verb != VERB_COMPILE || strpbrk(word, "./") || access(word, F_OK) == 0)
        return true;
    const char *names[VERB_COUNT];
    size_t count = 0;
    for (int i = 0; i < VERB_COUNT; i++)
        if (verbs[i].name) names[count++] = verbs[i].name;
    const char *nearest = diag_nearest(word, names, count);
    if (nearest) return wrong(parser, "unknown command '%s'; did you mean '%s'?", word, nearest);
    wrong(parser, "'%s' is neither a command nor a file", word);
    diag_note(parser->diag, (Loc){0}, "`raftc --help` lists the commands");
    return false;
}

static bool check_arguments(const Parser *parser)
{
    const Options *options = parser->options;
    const VerbInfo *verb = &verbs[options->verb];
    uint32_t count = options->arguments.count;
    if (count >= verb->least && count <= verb->most) return true;
    const char *given = count == 0            ? "nothing is given"
                        : count < verb->least ? "too little is given"
                                              : "too much is given";
    const char *extra = count > verb->most ? options->arguments.item[verb->most] : NULL;
    return wrong(parser, "%s%s%s%s; usage: raftc %s%s%s [OPTION...]", given, extra ? ": '" : "",
                 extra ? extra : "", extra ? "'" : "", verb->name ? verb->name : "",
                 verb->name ? " " : "", verb->arguments);
}

/* Options that need others. */
static bool check_together(const Parser *parser)
{
    const Options *options = parser->options;
    bool good = true;
    if (options->verb == VERB_RUN && !options->weights)
        good =
            wrong(parser, "run needs weights: --weights FILE, or --weights @fill for made-up ones");
    if (options->verb == VERB_EVAL && !options->weights)
        good = wrong(parser, "eval needs weights: --weights FILE");
    if (options->verb == VERB_RUN && options->inputs.count == 0)
        good = wrong(parser, "run needs images: pictures, folders of pictures, a .safetensors with "
                             "`input`, or @fill");
    bool filled = options->data && strcmp(options->data, "@fill") == 0;
    const char *alone = options->metrics          ? "--metrics"
                        : options->dump_gradients ? "--dump-gradients"
                        : options->save           ? "--save"
                                                  : NULL;
    if (options->verb == VERB_TRAIN && !filled && alone)
        good =
            wrong(parser, "%s is for --data @fill: a run on a data set writes into its folder, -o",
                  alone);
    if (options->verb == VERB_TRAIN && filled && (!options->weights || !options->steps))
        good = wrong(parser, "training on a made-up batch needs %s",
                     options->steps ? "weights: --weights FILE, or --weights @fill for made-up ones"
                                    : "to know how long: --steps N");
    if (options->with_features && !options->output)
        good = wrong(parser, "--features needs a file to write them to: --output FILE.safetensors");
    if (options->dump_dir && !options->dump_ir)
        good = wrong(parser, "--dump-dir needs to know what: --dump-ir PASS, or --dump-ir all");
    if (options->emulate && options->target != TARGET_CUDA)
        good = wrong(parser, "--emulate is about the kernels of --target cuda");
    if (options->memory_limit && options->verb == VERB_BENCH && !options->train)
        good = wrong(parser, "--memory-limit is about what training keeps: give --train, too");
    if (options->check_numerics && options->target == TARGET_CUDA && !options->emulate)
        good = wrong(parser, "--check-numerics looks at what kernels compute on the CPU; with "
                             "--target cuda it needs --emulate");
    if (options->json && (options->report || (options->dump_ir && !options->dump_dir)))
        good = wrong(parser, "--json prints one object and nothing else: %s",
                     options->report ? "leave --report out" : "give --dump-ir a --dump-dir");
    if (options->verb == VERB_TUNE && options->target != TARGET_CPU)
        good = wrong(parser, "tune searches kernels of --target cpu alone");
    const char *kernels = options->profile    ? "--profile"
                          : options->roofline ? "--roofline"
                          : options->trace    ? "--trace"
                                              : NULL;
    if (kernels && options->target == TARGET_REFERENCE)
        good = wrong(parser, "%s is of kernels, and --target reference runs none", kernels);
    return good;
}

/* What this build does not have, though the command line is right. */
static Exit check_lacking(const Parser *parser)
{
    const Options *options = parser->options;
    Exit exit = EXIT_DONE;
    if (options->dtype != 0) {
        wrong(parser, "this build of raftc computes products in f32 alone: no backend has bf16 "
                      "kernels; use --dtype f32");
        exit = EXIT_LACKING;
    }
    if (options->verb == VERB_RUN && options->sanitize && !SANITIZED) {
        wrong(parser, "this build of raftc cannot run instrumented code; build raftc with cmake "
                      "-DRAFTC_SANITIZE=ON");
        exit = EXIT_LACKING;
    }
    return exit;
}

/* Options, and the words between them: the first may be the name of a verb. */
static bool read_all(Parser *parser)
{
    Options *options = parser->options;
    bool good = true, only_words = false, first = true;
    while (parser->next < parser->argc) {
        const char *word = parser->argv[parser->next];
        if (!only_words && word[0] == '-' && word[1]) {
            only_words = strcmp(word, "--") == 0;
            if (only_words)
                parser->next++;
            else
                good &= read_option(parser);
            continue;
        }
        parser->next++;
        int verb = first && !only_words ? find_verb(word) : -1;
        first = false;
        if (verb < 0) {
            Strings *arguments = &options->arguments;
            *ARENA_PUSH(parser->arena, arguments->item, arguments->count, arguments->capacity) =
                word;
            continue;
        }
        options->verb = (Verb)verb;
    }
    return good;
}

/* The arguments of run after the model are inputs. */
static void take_inputs(const Parser *parser)
{
    Strings *arguments = &parser->options->arguments, *inputs = &parser->options->inputs;
    for (uint32_t i = 1; i < arguments->count; i++)
        *ARENA_PUSH(parser->arena, inputs->item, inputs->count, inputs->capacity) =
            arguments->item[i];
}

Exit options_parse(Arena *arena, int argc, char **argv, Options *options, Diag *diag)
{
    *options = (Options){.verb = VERB_COMPILE, .rewrite_limit = INT64_MAX};
    Parser parser = {.arena = arena, .options = options, .diag = diag, .argc = argc, .argv = argv};
    parser.next = 1;
    parser.given = arena_array(arena, ARRAY_SIZE(table), sizeof *parser.given);
    bool good = read_all(&parser);
    if (!good || !check_unknown_verb(&parser)) return EXIT_USAGE;
    if (!check_verb_of_options(&parser)) return EXIT_USAGE;
    if (options->help || options->version) return EXIT_DONE;
    if (options->verb == VERB_RUN) take_inputs(&parser);
    if (!check_arguments(&parser) || !check_together(&parser)) return EXIT_USAGE;
    return check_lacking(&parser);
}

/* ---- help ------------------------------------------------------------------------------------ */

enum { NAME_COLUMN = 2, HELP_COLUMN = 33 };

static void print_usage(FILE *file)
{
    fputs("raftc compiles RaftMLP vision models to machine code.\n\n", file);
    for (int i = 0; i < VERB_COUNT; i++) {
        char usage[80];
        snprintf(usage, sizeof usage, "raftc %s%s%s", verbs[i].name ? verbs[i].name : "",
                 verbs[i].name ? " " : "", verbs[i].arguments);
        fprintf(file, "  %-*s %s\n", HELP_COLUMN - NAME_COLUMN, usage, verbs[i].summary);
    }
    fputs("\nMODEL.yaml: settings with the published keys, or a graph (.ir).\n", file);
}

/* Each line of the help text in its column. */
static void print_row(const Row *row, FILE *file)
{
    char usage[80];
    snprintf(usage, sizeof usage, "%s%s%s", row->name,
             row->argument && row->argument[0] != '[' ? " " : "",
             row->argument ? row->argument : "");
    for (const char *line = row->help; line;) {
        const char *end = strchr(line, '\n');
        fprintf(file, "  %-*s %.*s\n", HELP_COLUMN - NAME_COLUMN, line == row->help ? usage : "",
                end ? (int)(end - line) : (int)strlen(line), line);
        line = end ? end + 1 : NULL;
    }
}

static void print_passes(FILE *file)
{
    fputs("\nPasses, in the order in which they run\n", file);
    for (int i = 0; i < pass_count; i++)
        fprintf(file, "  %-*s %s%s\n", HELP_COLUMN - NAME_COLUMN, pass_table[i].name,
                pass_table[i].summary, pass_table[i].required ? " (needed)" : "");
}

void options_help(Verb verb, FILE *file)
{
    unsigned set = verb == VERB_COMPILE ? ALL : 1u << verb;
    const char *heading = NULL;
    if (verb == VERB_COMPILE)
        print_usage(file);
    else
        fprintf(file, "raftc %s %s [OPTION...]: %s\n", verbs[verb].name, verbs[verb].arguments,
                verbs[verb].summary);
    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        const Row *row = &table[i];
        if (!row->name) {
            heading = row->help;
        } else if (row->verbs & set) {
            if (heading) fprintf(file, "\n%s\n", heading);
            heading = NULL;
            print_row(row, file);
        }
    }
    if (set & MODEL) print_passes(file);
    fputs("\nExit status: 0 done, 1 it could not be done, 2 wrong usage, 3 the given files are at "
          "fault,\n4 a check was missed, 5 this build or machine lacks the target or tool, 70 a "
          "fault of raftc,\n128 + N ended by signal N.\n",
          file);
}
