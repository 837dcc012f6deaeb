/* library.c: the text of a library: its C header, and the C source of the shell around its kernels.
 *
 * The source is the shell (runtime/shell.c), the tables of one program, and the exported functions.
 * In the templates here the word NAME stands for the prefix. The source names types of the header
 * by their tags alone, so that no prefix can clash with a name inside shell.c.
 */
#include "backends/backend.h"
#include "backends/library_text.h"
/* Made by CMake: the bytes of shell.c, its devices and training.c, and what they include. */
#include "cpu_text.h"
#include "cuda_text.h"
#include "shell_text.h"
#include "training_text.h"

#include <ctype.h>
#include <string.h>

static void put_template(Text *out, const char *template, const char *prefix)
{
    const char *end;
    for (; (end = strstr(template, "NAME")); template = end + strlen("NAME"))
        text_printf(out, "%.*s%s", (int)(end - template), template, prefix);
    text_put(out, template);
}

/* ---- checks ---------------------------------------------------------------------------------- */

/* Words that C or C++ gives a meaning of its own, or that would clash with the shell. */
static bool is_reserved(const char *word)
{
    /* clang-format off */
    static const char *const reserved[] = {
        "alignas", "alignof", "and", "and_eq", "asm", "auto", "bitand", "bitor", "bool", "break",
        "case", "catch", "char", "char16_t", "char32_t", "char8_t", "class", "co_await",
        "co_return", "co_yield", "compl", "concept", "const", "const_cast", "consteval",
        "constexpr", "constinit", "continue", "decltype", "default", "delete", "do", "double",
        "dynamic_cast", "else", "enum", "explicit", "export", "extern", "false", "float", "for",
        "friend", "goto", "if", "inline", "int", "linux", "long", "main", "mutable", "namespace",
        "new", "noexcept", "not", "not_eq", "nullptr", "operator", "or", "or_eq", "private",
        "protected", "public", "raft_shell", "register", "reinterpret_cast", "requires",
        "restrict", "return", "short", "signed", "sizeof", "static", "static_assert",
        "static_cast", "struct", "switch", "template", "this", "thread_local", "throw", "true",
        "try", "typedef", "typeid", "typename", "typeof", "union", "unix", "unsigned", "using",
        "virtual", "void", "volatile", "wchar_t", "while", "xor", "xor_eq"};
    /* clang-format on */
    for (size_t i = 0; i < ARRAY_SIZE(reserved); i++)
        if (strcmp(word, reserved[i]) == 0) return true;
    return false;
}

static bool check_prefix(const char *prefix, Diag *diag)
{
    bool good = isalpha((unsigned char)prefix[0]) || prefix[0] == '_';
    for (const char *p = prefix; *p; p++) good &= isalnum((unsigned char)*p) || *p == '_';
    if (!good)
        return diag_error(diag, (Loc){0},
                          "the prefix '%s' is not a C name: letters, digits and _, no digit first",
                          prefix);
    if (is_reserved(prefix))
        return diag_error(diag, (Loc){0}, "the prefix '%s' has a meaning of its own in C or C++",
                          prefix);
    return true;
}

static const Type *output_type(const Graph *graph, uint32_t index)
{
    return graph_type(graph, graph->outputs[index].value);
}

static const Node *find_input(const Graph *graph)
{
    for (NodeId id = 0; id < graph->node_count; id++)
        if (graph->nodes[id].op == OP_INPUT) return &graph->nodes[id];
    return NULL;
}

static bool is_of(const Output *output, const char *entry)
{
    return strcmp(output->entry, entry) == 0;
}

static int count_outputs(const Graph *graph, const char *entry)
{
    int count = 0;
    for (uint32_t i = 0; i < graph->output_count; i++) count += is_of(&graph->outputs[i], entry);
    return count;
}

/* What differentiate adds: inputs beside the images, and outputs of an entry of their own. */
static bool is_of_training(const Node *node, const LibraryOptions *options)
{
    const char *name = node->attributes.name;
    return options->training && (strcmp(name, "target") == 0 || strcmp(name, "weight") == 0 ||
                                 strncmp(name, "grad.", strlen("grad.")) == 0);
}

bool library_check(const Plan *plan, const LibraryOptions *options, Diag *diag)
{
    const Graph *graph = plan->graph;
    bool good = check_prefix(options->prefix, diag);
    good &= program_check(plan, diag);
    int inputs = 0;
    for (NodeId id = 0; id < graph->node_count; id++) {
        const Node *node = graph_node(graph, id);
        if (node->op != OP_INPUT || is_of_training(node, options)) continue;
        if (inputs++ || node->type.rank != 4)
            good = diag_error(diag, node->loc, "a library has one input, of axes b, c, y and x");
    }
    for (uint32_t i = 0; i < graph->output_count; i++) {
        const Output *output = &graph->outputs[i];
        Loc loc = graph_node(graph, output->value)->loc;
        bool logits = is_of(output, "forward");
        if (options->training && is_of(output, "backward")) continue;
        if (!logits && !is_of(output, "features"))
            good = diag_error(diag, loc, "a library has no entry '%s', only forward and features",
                              output->entry);
        else if (output_type(graph, i)->rank != (logits ? 2 : 4))
            good = diag_error(diag, loc, "a library's output '%s' must have %s", output->name,
                              logits ? "two axes" : "four axes");
    }
    if (inputs == 0 || count_outputs(graph, "forward") != 1)
        good = diag_error(diag, (Loc){0}, "a library has one input and one output of forward");
    return good;
}

/* ---- header ---------------------------------------------------------------------------------- */

/* Text that may be a user's, inside a comment: it must neither end it nor seem to begin another. */
static void put_comment(Text *out, const char *string)
{
    char before = ' ';
    text_put(out, " * ");
    for (const char *p = string; *p; before = *p++) {
        bool mark = (*p == '/' && before == '*') || (*p == '*' && before == '/');
        bool plain = (unsigned char)*p >= ' ' && *p != 127 && !mark;
        if (*p == '\n')
            text_put(out, p[1] ? "\n * " : "");
        else
            text_printf(out, "%c", plain ? *p : '?');
    }
    text_put(out, "\n");
}

static void put_size(Text *out, const char *prefix, const char *name, int64_t value)
{
    text_printf(out, "#define %s_%s %lld\n", prefix, name, (long long)value);
}

static void put_features(Text *out, const Graph *graph, const char *prefix)
{
    int map = 0;
    put_template(out, "/* Runs the model up to its feature maps; writes\n", prefix);
    for (uint32_t i = 0; i < graph->output_count; i++) {
        const Axis *axis = output_type(graph, i)->axis;
        if (!is_of(&graph->outputs[i], "features")) continue;
        text_printf(out, " *     maps[%d][batch][%lld][%lld][%lld]\n", map++,
                    (long long)axis[1].extent, (long long)axis[2].extent,
                    (long long)axis[3].extent);
    }
    text_put(out, " * None of them may overlap another or nchw. */\n");
    put_template(out, header_features, prefix);
}

const char *library_header(Arena *arena, const Plan *plan, const LibraryOptions *options)
{
    const Graph *graph = plan->graph;
    const char *prefix = options->prefix;
    const Axis *input = find_input(graph)->type.axis;
    int maps = count_outputs(graph, "features");
    Text out = text_new(arena);
    text_printf(&out, "/* The model %s, compiled to machine code.\n *\n", prefix);
    put_comment(&out, options->made_by);
    put_template(&out, header_about, prefix);
    text_printf(&out, " * Link with the .so, or with the .a and %s.\n *\n",
                options->cuda ? "-ldl" : "-fopenmp -lm");
    if (options->weights_size) text_put(&out, header_embedded);
    put_template(&out, header_failures, prefix);
    text_put(&out, options->cuda ? header_cuda : header_cpu);
    put_template(&out, header_start, prefix);
    put_size(&out, prefix, "CHANNELS", input[1].extent);
    put_size(&out, prefix, "HEIGHT", input[2].extent);
    put_size(&out, prefix, "WIDTH", input[3].extent);
    for (uint32_t i = 0; i < graph->output_count; i++)
        if (is_of(&graph->outputs[i], "forward"))
            put_size(&out, prefix, "CLASSES", output_type(graph, i)->axis[1].extent);
    if (maps) put_size(&out, prefix, "FEATURES", maps);
    if (options->training) put_size(&out, prefix, "BATCH", PROGRAM_MOST_AT_ONCE);
    put_template(&out, header_types, prefix);
    text_put(&out, options->cuda ? options_cuda : options_cpu);
    put_template(&out, header_functions, prefix);
    if (maps) put_features(&out, graph, prefix);
    if (options->training) put_template(&out, header_training, prefix);
    put_template(&out, header_end, prefix);
    return out.data;
}

const char *library_exports(Arena *arena, const Plan *plan, const LibraryOptions *options)
{
    Text out = text_new(arena);
    put_template(&out, exports_start, options->prefix);
    if (count_outputs(plan->graph, "features"))
        put_template(&out, exports_features, options->prefix);
    if (options->training) put_template(&out, exports_training, options->prefix);
    text_put(&out, exports_end);
    return out.data;
}

/* ---- source ---------------------------------------------------------------------------------- */

static void put_string(Text *out, const char *string)
{
    text_put(out, "\"");
    for (const unsigned char *p = (const unsigned char *)string; *p; p++) {
        bool plain = *p >= ' ' && *p < 127 && *p != '"' && *p != '\\' && *p != '?';
        text_printf(out, plain ? "%c" : "\\%03o", *p);
    }
    text_put(out, "\"");
}

/* A part of the shell, less the includes of its own files: they stand in a row here. */
static void put_shell(Text *out, const unsigned char *text)
{
    static const char include[] = "#include \"";
    const char *line = (const char *)text;
    while (*line) {
        const char *newline = strchr(line, '\n');
        int length = newline ? (int)(newline - line) + 1 : (int)strlen(line);
        if (strncmp(line, include, strlen(include)) != 0) text_printf(out, "%.*s", length, line);
        line += length;
    }
}

/* An array of C must have an element, even if there is none in the table. */
static void begin_table(Text *out, const char *type, const char *table, const char *name, int count)
{
    text_printf(out, "\nstatic const %s %s_%s[] = {%s\n", type, table, name, count ? "" : "{0},");
}

static void put_tensors(Text *out, const char *table, const char *name, const RaftTensorInfo *info,
                        int count)
{
    begin_table(out, "RaftTensorInfo", table, name, count);
    for (int i = 0; i < count; i++) {
        text_put(out, "    {");
        put_string(out, info[i].name);
        text_printf(out, ", %d, {", info[i].rank);
        for (int k = 0; k < info[i].rank || k == 0; k++)
            text_printf(out, "%s%lld", k ? ", " : "", (long long)info[i].shape[k]);
        text_printf(out, "}, %lld},\n", (long long)info[i].elements);
    }
    text_put(out, "};\n");
}

static void put_buffers(Text *out, const char *table, const RaftProgram *program)
{
    begin_table(out, "RaftBuffer", table, "buffer", program->buffer_count);
    for (int i = 0; i < program->buffer_count; i++)
        text_printf(out, "    {%d, %lld},\n", program->buffer[i].kind,
                    (long long)program->buffer[i].offset);
    text_put(out, "};\n");
}

/* Steps that run the same code share its symbol. All symbols have the prefix, or two libraries
 * could not be linked into one program. */
static void put_kernels(Text *out, const Plan *plan, const StepCode *steps, const char *prefix)
{
    text_put(out, "\n");
    for (int s = 0; s < plan->step_count; s++) {
        int same = 0;
        RAFTC_ASSERT(strncmp(steps[s].symbol, prefix, strlen(prefix)) == 0);
        while (strcmp(steps[same].symbol, steps[s].symbol) != 0) same++;
        if (same == s)
            text_printf(out, "extern RaftKernel %s __attribute__((visibility(\"hidden\")));\n",
                        steps[s].symbol);
    }
}

/* Where cubin `number` begins in the file that has all of them. */
static size_t cubin_offset(const RaftCudaImage *image, int number)
{
    enum { ALIGNMENT = 64 };
    size_t offset = 0;
    for (int i = 0; i < number; i++)
        offset += (image[i].size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return offset;
}

const char *library_cubins(Arena *arena, const ProgramCode *code, size_t *size)
{
    *size = cubin_offset(code->image, code->image_count);
    char *cubins = arena_alloc(arena, *size);
    for (int i = 0; i < code->image_count; i++)
        memcpy(cubins + cubin_offset(code->image, i), code->image[i].data, code->image[i].size);
    return cubins;
}

/* A file beside the source, as an array in its object: that takes the compiler no time. */
static void put_bytes(Text *out, const char *array, const char *file)
{
    text_printf(out,
                "\n__asm__(\".pushsection .rodata\\n.balign 64\\n%s:\\n.incbin \\\"%s\\\"\\n\"\n"
                "        \".popsection\\n\");\n"
                "extern const char %s[] __attribute__((visibility(\"hidden\")));\n",
                array, file, array);
}

static void put_launches(Text *out, const char *name, const RaftCudaKernel *kernel, int count)
{
    text_printf(out, "\nstatic const RaftCudaKernel program_%s_kernel[] = {%s\n", name,
                count ? "" : "{0},");
    for (int i = 0; i < count; i++)
        text_printf(out, "    {\"%s\", %d, %lld, %lld, %lld, %lld, %lld, %lld},\n",
                    kernel[i].symbol, kernel[i].threads, (long long)kernel[i].shared_bytes,
                    (long long)kernel[i].spill_bytes, (long long)kernel[i].block,
                    (long long)kernel[i].outer, (long long)kernel[i].fine,
                    (long long)kernel[i].fine_shared_bytes);
    text_put(out, "};\n");
}

/* The cubins, and how each kernel in them is launched. */
static void put_cuda_code(Text *out, const RaftProgram *program)
{
    const RaftCudaCode *code = program->code;
    put_bytes(out, "raft_cubins", "cubins");
    put_launches(out, "prepare", code->prepare, program->prepare_count);
    put_launches(out, "step", code->step, program->step_count);
    text_put(out, "\nstatic const RaftCudaImage program_image[] = {\n");
    for (int i = 0; i < code->image_count; i++)
        text_printf(out, "    {%d, raft_cubins + %zu, %zu},\n", code->image[i].architecture,
                    cubin_offset(code->image, i), code->image[i].size);
    text_printf(out,
                "};\nstatic const RaftCudaCode program_code = {\n"
                "    %d, program_image, program_prepare_kernel, program_step_kernel};\n",
                code->image_count);
}

/* The arguments of all steps of the plan in one array, then the steps of prepare and the others. */
static void put_steps(Text *out, const char *table, const Plan *plan, const StepCode *steps,
                      const RaftProgram *program)
{
    text_printf(out, "\nstatic const int %s_argument[] = {\n", table);
    for (int s = 0; s < plan->step_count; s++) {
        for (int i = 0; i < plan->steps[s].argument_count; i++)
            text_printf(out, "%s%d,", i ? " " : "    ", plan->steps[s].arguments[i]);
        text_put(out, "\n");
    }
    text_put(out, "    0};\n");
    for (int prepare = 1; prepare >= 0; prepare--) {
        const RaftStep *step = prepare ? program->prepare : program->step;
        begin_table(out, "RaftStep", table, prepare ? "prepare" : "step",
                    prepare ? program->prepare_count : program->step_count);
        for (int s = 0, argument = 0; s < plan->step_count; s++) {
            if (plan->steps[s].prepare == prepare) {
                text_printf(out, "    {%s, ", program->code ? "NULL" : steps[s].symbol);
                put_string(out, step->name);
                text_printf(out, ", %lld, %d, %lld, %d, %d, %u, %d, %s_argument + %d},\n",
                            (long long)step->units, step->batched, (long long)step->piece,
                            step->adds, step->waits, step->entries, step->argument_count, table,
                            argument);
                step++;
            }
            argument += plan->steps[s].argument_count;
        }
        text_put(out, "};\n");
    }
}

/* Which outputs have no batch axis, where some have none. */
static void put_fixed(Text *out, const char *table, const RaftProgram *program)
{
    if (!program->fixed) return;
    text_printf(out, "\nstatic const int %s_fixed[] = {", table);
    for (int i = 0; i < program->output_count; i++)
        text_printf(out, "%d,%s", program->fixed[i], i % 24 == 23 ? "\n    " : " ");
    text_put(out, "};\n");
}

/* The table `table` itself, whose parts have names that begin with its own. */
static void put_program(Text *out, const char *table, const RaftProgram *program)
{
    static const char *const parts[] = {"buffer",    "prepare", "step",
                                        "parameter", "input",   "output"};
    const int counts[] = {program->buffer_count,    program->prepare_count, program->step_count,
                          program->parameter_count, program->input_count,   program->output_count};
    text_printf(out, "\nstatic const RaftProgram %s = {\n", table);
    text_put(out, program->code ? "    .device = &raft_cuda,\n    .code = &program_code,\n"
                                : "    .device = &raft_cpu,\n");
    text_put(out, "    .name = ");
    put_string(out, program->name);
    text_put(out, ",\n    .made_by = ");
    put_string(out, program->made_by);
    text_put(out, ",\n");
    if (program->weights_size)
        text_printf(out, "    .weights = raft_embedded,\n    .weights_size = %zu,\n",
                    program->weights_size);
    for (size_t i = 0; i < ARRAY_SIZE(parts); i++)
        text_printf(out, "    .%s_count = %d,\n    .%s = %s_%s,\n", parts[i], counts[i], parts[i],
                    table, parts[i]);
    if (program->fixed) text_printf(out, "    .fixed = %s_fixed,\n", table);
    text_printf(out,
                "    .forward_entry = %u,\n    .features_entry = %u,\n"
                "    .backward_entry = %u,\n    .step_entry = %u,\n"
                "    .keep_entry = %u,\n    .rest_entry = %u,\n"
                "    .arena_floats = %lld,\n    .prepared_floats = %lld,\n"
                "    .scratch_bytes = %lld,\n    .chunk = %lld,\n    .whole = %d};\n",
                program->forward_entry, program->features_entry, program->backward_entry,
                program->step_entry, program->keep_entry, program->rest_entry,
                (long long)program->arena_floats, (long long)program->prepared_floats,
                (long long)program->scratch_bytes, (long long)program->chunk, program->whole);
}

/* A program with all its parts. */
static void put_tables(Text *out, const char *table, const RaftProgram *program, const Plan *plan,
                       const StepCode *steps, const char *prefix)
{
    if (!program->code) put_kernels(out, plan, steps, prefix);
    put_tensors(out, table, "parameter", program->parameter, program->parameter_count);
    put_tensors(out, table, "input", program->input, program->input_count);
    put_tensors(out, table, "output", program->output, program->output_count);
    put_buffers(out, table, program);
    put_steps(out, table, plan, steps, program);
    put_fixed(out, table, program);
    put_program(out, table, program);
}

/* What a library that trains has beside the others. */
static void put_training(Text *out, Arena *arena, const LibraryOptions *options)
{
    const LibraryTraining *training = options->training;
    RaftProgram *step = program_build(arena, training->plan, training->code, NULL);
    const RaftOptimiser *rule = &training->rule;
    step->name = options->prefix;
    put_tables(out, "step_program", step, training->plan, training->code->steps, options->prefix);
    text_printf(out,
                "\nstatic const RaftOptimiser rule = {\n"
                "    %d, %.17g, %.17g, %.17g, %.17g, %d};\n",
                rule->kind, rule->weight_decay, rule->momentum, rule->most_norm, rule->average,
                rule->exempts);
    put_template(out, source_training, options->prefix);
}

const char *library_source(Arena *arena, const Plan *plan, const ProgramCode *code,
                           const LibraryOptions *options)
{
    RaftProgram *program = program_build(arena, plan, code, NULL);
    program->name = options->prefix;
    program->made_by = options->made_by;
    program->weights_size = options->weights_size;
    Text out = text_new(arena);
    text_printf(&out, "/* The shell of the compiled model %s.\n *\n", options->prefix);
    put_comment(&out, options->made_by);
    text_put(&out, " */\n");
    text_put(&out, "#define RAFT_SHELL_LINKAGE static\n\n");
    put_shell(&out, shell_text);
    put_shell(&out, code->cuda ? cuda_text : cpu_text);
    if (options->training) put_shell(&out, training_text);
    if (code->cuda) put_cuda_code(&out, program);
    if (program->weights_size) put_bytes(&out, "raft_embedded", "weights");
    put_tables(&out, "program", program, plan, code->steps, options->prefix);
    if (options->training)
        put_training(&out, arena, options);
    else
        text_put(&out, source_shell);
    int callers = count_outputs(plan->graph, "forward") + count_outputs(plan->graph, "features");
    text_printf(&out, "#define INPUTS 1\n#define OUTPUTS %d\n", callers); /* what others follow */
    put_template(&out, source_exports, options->prefix);
    if (program->features_entry) put_template(&out, source_features, options->prefix);
    return out.data;
}
