/* test_ir.c: the text form of the IR and its rules: texts in tests/ir/ that print as they stand, texts
 * there that are refused with the message in the .err beside them, graphs that no text can make, and
 * seeded mutations of all of them. */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/ir_property.h"

typedef struct Fixture {
    Arena arena;
    Diag diag;
} Fixture;

static int set_up(void **state)
{
    Fixture *f = calloc(1, sizeof *f);
    if (!f) return -1;
    f->diag = diag_new(&f->arena);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    Fixture *f = *state;
    arena_free(&f->arena);
    free(f);
    return 0;
}

/* ---- files ---------------------------------------------------------------------------------- */

typedef struct Files {
    struct dirent **entry;
    int count;
} Files;

static bool ends_in(const char *name, const char *suffix)
{
    size_t length = strlen(name), end = strlen(suffix);
    return length > end && strcmp(name + length - end, suffix) == 0;
}

static int is_ir(const struct dirent *entry)
{
    return ends_in(entry->d_name, ".ir");
}

static int is_err(const struct dirent *entry)
{
    return ends_in(entry->d_name, ".err");
}

static Files list(int (*wanted)(const struct dirent *))
{
    Files files = {0};
    files.count = scandir(TEST_DATA "/ir", &files.entry, wanted, alphasort);
    assert_true(files.count > 0);
    return files;
}

static void release(Files files)
{
    for (int i = 0; i < files.count; i++) free(files.entry[i]);
    free(files.entry);
}

/* tests/ir/STEM.EXTENSION as a Source that is called by its name alone, or NULL where there is none. */
static const Source *open_file(Fixture *f, const char *name, const char *extension)
{
    const char *stem = arena_strndup(&f->arena, name, (size_t)(strrchr(name, '.') - name));
    const char *path = arena_printf(&f->arena, "%s/ir/%s%s", TEST_DATA, stem, extension);
    Diag unread = diag_new(&f->arena);
    const Source *file = diag_read_source(&unread, path, 1 << 20);
    if (!file) return NULL;
    return diag_add_source(&f->diag, strrchr(path, '/') + 1, file->text, file->size);
}

static const Source *from_text(Fixture *f, const char *text)
{
    return diag_add_source(&f->diag, "text", text, strlen(text));
}

static const char *printed_messages(Fixture *f)
{
    char *printed = NULL;
    size_t size = 0;
    FILE *file = open_memstream(&printed, &size);
    assert_non_null(file);
    diag_print(&f->diag, file);
    fclose(file);
    const char *copy = arena_strndup(&f->arena, printed, size);
    free(printed);
    return copy;
}

static const char *printed_graph(Fixture *f, const Graph *graph)
{
    Text text = text_new(&f->arena);
    graph_print(graph, &text);
    return text.data;
}

/* ---- texts ---------------------------------------------------------------------------------- */

/* Every .ir without an .err prints as it stands. */
static void test_round_trip(void **state)
{
    Fixture *f = *state;
    Files files = list(is_ir);
    int legal = 0;
    for (int i = 0; i < files.count; i++) {
        const char *name = files.entry[i]->d_name;
        if (open_file(f, name, ".err")) continue;
        const Source *source = open_file(f, name, ".ir");
        const Graph *graph = graph_parse(&f->arena, source, &f->diag);
        if (!graph) fail_msg("%s", printed_messages(f));
        assert_string_equal(printed_graph(f, graph), source->text);
        legal++;
    }
    assert_true(legal >= 12);
    release(files);
}

/* Every .err is what its .ir is refused with. */
static void test_refusals(void **state)
{
    Fixture *f = *state;
    Files files = list(is_err);
    assert_true(files.count >= 150);
    for (int i = 0; i < files.count; i++) {
        const char *name = files.entry[i]->d_name;
        const Source *expected = open_file(f, name, ".err"), *source = open_file(f, name, ".ir");
        if (!source) fail_msg("%s has no .ir", name);
        f->diag = diag_new(&f->arena);
        if (graph_parse(&f->arena, source, &f->diag)) fail_msg("%s is accepted", name);
        assert_string_equal(printed_messages(f), expected->text);
    }
    release(files);
}

static Graph *parse(Fixture *f, const char *text)
{
    Graph *graph = graph_parse(&f->arena, from_text(f, text), &f->diag);
    if (!graph) fail_msg("%s", printed_messages(f));
    return graph;
}

/* Any names, numbers, order of terms and blanks become the normal ones. */
static void test_normal_form(void **state)
{
    Fixture *f = *state;
    const Graph *graph = parse(f, "graph g{input@x:f32[b $b,h 8,c 4]# no blanks\n"
                                  "%a.9=gelu@x:f32[b,h 8,c 4]\r\n\t%7=add%a.9,@x:f32[b,h 8,c 4]\n"
                                  "%0=read%7[b,-1+h*2+3-h,c-c*1+0]:f32[b,h 8,c 4]\n"
                                  "output f.y=%0 kernel for(b,c 4 by 1){ # any name\n"
                                  "%1=read@x[b,h,c]:f32[b,h 8,c 4]\n"
                                  "%2=write%1[b,c+h*4]:f32[b,f 32]}\n"
                                  "%3=layernorm%0,%0,%0 over(h,c,b)eps 0.0000100:f32[b,h 8,c 4]"
                                  "%4=rearrange%3(h)->(w):f32[b,w 8,c 4]packed(b,w/4 2,c 4,w/1 4)"
                                  "}# end");
    assert_string_equal(
        printed_graph(f, graph),
        "graph g {\n"
        "  input @x : f32[b, h 8, c 4]\n"
        "  %0 = gelu @x : f32[b, h 8, c 4]\n"
        "  %1 = add %0, @x : f32[b, h 8, c 4]\n"
        "  %2 = read %1 [b, h + 2, 0] : f32[b, h 8, c 4]\n"
        "  kernel for (b, c 4) {  # copy\n"
        "    %3 = read @x [b, h, c] : f32[b, h 8, c 4]\n"
        "    %4 = write %3 [b, h*4 + c] : f32[b, f 32]\n"
        "  }\n"
        "  %5 = layernorm %2, %2, %2 over (h, c, b) eps 1e-05 : f32[b, h 8, c 4]\n"
        "  %6 = rearrange %5 h -> w : f32[b, w 8, c 4] packed (b, w/4 2, c 4, w 4)\n"
        "  output f.y = %2\n"
        "}\n");
    assert_string_equal(graph->kernels[0].name, "copy");
}

/* Each node keeps its place, and prints alone as it does in the graph. */
static void test_nodes(void **state)
{
    Fixture *f = *state;
    const Graph *graph = parse(f, "graph g {\n  input @x : f32[b]\n  %9 =\n gelu @x : f32[b]\n"
                                  "  output f.y = %9\n}\n");
    assert_int_equal(graph->nodes[0].loc.line, 2);
    assert_int_equal(graph->nodes[0].loc.column, 3);
    assert_int_equal(graph->nodes[1].loc.line, 4);
    assert_int_equal(graph->nodes[1].loc.column, 2);
    Text text = text_new(&f->arena);
    node_print(graph, 0, &text);
    text_put(&text, "\n");
    node_print(graph, 1, &text);
    assert_string_equal(text.data, "input @x : f32[b]\n%0 = gelu @x : f32[b]");
}

/* The example in ir.md is a graph, in normal form. */
static void test_manual(void **state)
{
    Fixture *f = *state;
    const Source *manual = diag_read_source(&f->diag, SOURCE_ROOT "/ir/ir.md", 1 << 20);
    assert_non_null(manual);
    const char *line = strstr(manual->text, "    graph ");
    assert_non_null(line);
    Text example = text_new(&f->arena);
    for (bool last = false; !last; line = strchr(line, '\n') + 1) {
        last = strncmp(line, "    }\n", 6) == 0;
        text_printf(&example, "%.*s\n", (int)strcspn(line + 4, "\n"), line + 4);
    }
    assert_string_equal(printed_graph(f, parse(f, example.data)), example.data);
}

/* ---- limits --------------------------------------------------------------------------------- */

static void expect_refusal(Fixture *f, const char *text, const char *message)
{
    f->diag = diag_new(&f->arena);
    assert_null(graph_parse(&f->arena, from_text(f, text), &f->diag));
    assert_int_equal(f->diag.errors, 1);
    assert_string_equal(f->diag.messages[0].text, message);
}

static const char *graph_of_inputs(Fixture *f, int count)
{
    Text text = text_new(&f->arena);
    text_put(&text, "graph g {\n");
    for (int i = 0; i < count; i++) text_printf(&text, "input @x%d : f32[]\n", i);
    text_put(&text, "output f.y = @x0\n}\n");
    return text.data;
}

static const char *graph_of_operands(Fixture *f, int count)
{
    Text text = text_new(&f->arena);
    text_put(&text, "graph g {\ninput @x : f32[c 1]\n%0 = concat @x");
    for (int i = 1; i < count; i++) text_put(&text, ", @x");
    text_printf(&text, " over (c) : f32[c %d]\noutput f.y = %%0\n}\n", count);
    return text.data;
}

static void test_limits(void **state)
{
    Fixture *f = *state;
    assert_int_equal(parse(f, graph_of_inputs(f, MAX_NODES))->node_count, MAX_NODES);
    expect_refusal(f, graph_of_inputs(f, MAX_NODES + 1), "a graph has at most 65536 nodes");
    parse(f, graph_of_operands(f, 4096));
    expect_refusal(f, graph_of_operands(f, 4097),
                   "concat: the number of operands is 4097, not 1 to 4096");
}

/* ---- graphs that no text can make -------------------------------------------------------------- */

static const char kernel_text[] = "graph g {\n"
                                  "  input @x : f32[b, c 4]\n"         /* 0 */
                                  "  param @w stored [4] : f32[c 4]\n" /* 1 */
                                  "  kernel for (b) {\n"
                                  "    %0 = read @x [b, c] : f32[b, c 4]\n"  /* 2 */
                                  "    %1 = gelu %0 : f32[b, c 4]\n"         /* 3 */
                                  "    %2 = write %1 [b, c] : f32[b, c 4]\n" /* 4 */
                                  "  }\n"
                                  "  %3 = pack @w : f32[c 4] packed (c 4)\n"         /* 5 */
                                  "  %4 = unfold %2 c -> (h, k 2) stride 1 pad 0 : " /* 6 */
                                  "f32[b, h 3, k 2]\n"
                                  "  %5 = rearrange %4 (h, k) -> c : f32[b, c 6]\n" /* 7 */
                                  "  %6 = mean %5 over (c) : f32[b]\n"              /* 8 */
                                  "  output forward.y = %6\n"
                                  "}\n";

#define CORRUPT(name, statement)                                                                   \
    static void corrupt_##name(Graph *g)                                                           \
    {                                                                                              \
        statement;                                                                                 \
    }
CORRUPT(op, g->nodes[3].op = OP_COUNT)
CORRUPT(own_operand, g->nodes[3].operands[0] = 3)
CORRUPT(later_operand, g->nodes[3].operands[0] = UINT32_MAX)
CORRUPT(no_operand, g->nodes[4].operand_count = 0)
CORRUPT(kernel_number, g->nodes[3].kernel = 1)
CORRUPT(kernel_negative, g->nodes[3].kernel = -2)
CORRUPT(kernel_split, g->nodes[6].kernel = 0; g->nodes[6].op = OP_GELU; g->nodes[6].operands[0] = 3;
        g->nodes[6].type = g->nodes[3].type; g->node_count = 7; g->outputs[0].value = 4)
CORRUPT(kernel_empty, g->kernel_count++; g->kernels = arena_array(g->arena, 2, sizeof *g->kernels))
CORRUPT(kernel_rank, g->kernels[0].rank = MAX_AXES + 1)
CORRUPT(declared_inside, g->nodes[1].kernel = 0)
CORRUPT(rank, g->nodes[3].type.rank = MAX_AXES + 1)
CORRUPT(dtype, g->nodes[3].type.dtype = (DType)7)
CORRUPT(axis_name, memset(g->nodes[3].type.axis[1].name, 'c', NAME_SIZE))
CORRUPT(axis_no_name, g->nodes[3].type.axis[1].name[0] = '\0')
CORRUPT(axis_symbol, memset(g->nodes[3].type.axis[0].symbol, 'b', NAME_SIZE))
CORRUPT(axis_both, g->nodes[3].type.axis[0].extent = 1)
CORRUPT(axis_neither, g->nodes[3].type.axis[0].symbol[0] = '\0')
CORRUPT(layout_rank, g->nodes[5].layout.rank = MAX_AXES + 1)
CORRUPT(layout_axis, g->nodes[5].layout.dim[0].axis = 1)
CORRUPT(layout_overflow, g->nodes[5].layout.dim[0].extent = INT64_MIN)
CORRUPT(no_name, g->nodes[1].attributes.name = NULL)
CORRUPT(wrong_name, g->nodes[1].attributes.name = "a b")
CORRUPT(same_name, g->nodes[1].attributes.name = "x")
CORRUPT(stored_rank, g->nodes[1].attributes.stored_rank = 5)
CORRUPT(windows, g->nodes[6].attributes.window_count = 0)
CORRUPT(pad, g->nodes[6].attributes.windows[0].pad = -1)
CORRUPT(groups, g->nodes[7].attributes.group_count = -1)
CORRUPT(group_size, g->nodes[7].attributes.groups[0].from.count = 9)
CORRUPT(over, g->nodes[8].attributes.over.count = 9)
CORRUPT(map_rank, g->nodes[2].attributes.map.rank = -1)
CORRUPT(map_axis, g->nodes[2].attributes.map.dim[1].coefficient[5] = 1)
CORRUPT(output, g->outputs[0].value = g->node_count)
CORRUPT(no_output, g->output_count = 0)
CORRUPT(graph_name, g->name = "2g")

static const struct {
    void (*corrupt)(Graph *graph);
    const char *message;
} corruptions[] = {
    {corrupt_op, "there is no op number 26"},
    {corrupt_own_operand, "gelu: operand 1 does not come before it"},
    {corrupt_later_operand, "gelu: operand 1 does not come before it"},
    {corrupt_no_operand, "write: the number of operands is 0, not 1"},
    {corrupt_kernel_number, "gelu: there is no kernel number 1"},
    {corrupt_kernel_negative, "gelu: there is no kernel number -2"},
    {corrupt_kernel_split, "gelu: its kernel is in two pieces"},
    {corrupt_kernel_empty, "kernel 1 has no nodes"},
    {corrupt_kernel_rank, "a kernel cannot have 9 axes"},
    {corrupt_declared_inside, "param: stands outside of kernels only"},
    {corrupt_rank, "gelu: no type has rank 9 and dtype 0"},
    {corrupt_dtype, "gelu: no type has rank 2 and dtype 7"},
    {corrupt_axis_name, "gelu: the name of axis 2 is not letters, digits and _, first a letter, at "
                        "most 15 in all"},
    {corrupt_axis_no_name, "gelu: the name of axis 2 is not letters, digits and _, first a letter, "
                           "at most 15 in all"},
    {corrupt_axis_symbol, "gelu: the symbol of axis 'b' is not letters, digits and _, first a "
                          "letter, at most 15 in all"},
    {corrupt_axis_both, "gelu: extent 1 of axis 'b' is out of range"},
    {corrupt_axis_neither, "gelu: extent 0 of axis 'b' is out of range"},
    {corrupt_layout_rank, "pack: a layout cannot have 9 dimensions"},
    {corrupt_layout_axis, "pack: the layout packs axis 1, which does not exist"},
    {corrupt_layout_overflow, "pack: divisor 1 or extent -9223372036854775808 of packed 'c' is out "
                              "of range"},
    {corrupt_no_name, "param: a name is made of letters, digits, _ and ."},
    {corrupt_wrong_name, "param: a name is made of letters, digits, _ and ."},
    {corrupt_same_name, "'x' is defined twice"},
    {corrupt_stored_rank, "param: a stored shape cannot have 5 extents"},
    {corrupt_windows, "unfold: has 0 windows, not 1 to 8"},
    {corrupt_pad, "unfold: window 2, stride 1 or pad -1 is out of range"},
    {corrupt_groups, "rearrange: there are at most 8 groups, of 1 to 8 axes"},
    {corrupt_group_size, "rearrange: there are at most 8 groups, of 1 to 8 axes"},
    {corrupt_over, "mean: over must name 1 to 8 axes, not 9"},
    {corrupt_map_rank, "read: a map cannot have -1 indices"},
    {corrupt_map_axis, "read: the map uses an axis that f32[b, c 4] lacks"},
    {corrupt_output, "an output is value 9, which does not exist"},
    {corrupt_no_output, "the graph has no output"},
    {corrupt_graph_name, "the name of a graph is letters, digits and _, first no digit"},
};

static void test_corrupt_graphs(void **state)
{
    Fixture *f = *state;
    for (size_t i = 0; i < ARRAY_SIZE(corruptions); i++) {
        Graph *graph = parse(f, kernel_text);
        corruptions[i].corrupt(graph);
        f->diag = diag_new(&f->arena);
        assert_false(graph_verify(graph, &f->diag));
        assert_true(f->diag.count > 0);
        assert_string_equal(f->diag.messages[0].text, corruptions[i].message);
        f->diag = diag_new(&f->arena);
    }
}

/* ---- mutations ------------------------------------------------------------------------------ */

static const char *const words[] = {
    "graph",
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    ",",
    ":",
    "=",
    "->",
    "*",
    "+",
    "-",
    "/",
    "$",
    "@",
    "%",
    "#",
    "\n",
    "0",
    "1",
    "7",
    "2",
    "64",
    "1e-5",
    "input",
    "add",
    "mul",
    "kernel",
    "for",
    "output",
    "by",
    "over",
    "from",
    "packed",
    "eps",
    "read",
    "gelu",
    "mean",
    "stored",
    "pack",
    "write",
    "b",
    "h",
    "c",
    "w",
    "@x",
    "%0",
    "%1",
    "%2",
    "f32[",
    "bf16",
    "\xff",
    "\xc3\xa9",
    "9223372036854775807",
    "1099511627775",
    "concat",
    "linear",
    "resample",
};

typedef struct Mutant {
    char text[4096];
    size_t size;
} Mutant;

static uint32_t draw(uint64_t *state, size_t below)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return (uint32_t)((*state >> 20) % below);
}

/* Puts `bytes` in the place of the `cut` bytes at `at`. */
static void replace(Mutant *m, size_t at, size_t cut, const char *bytes, size_t size)
{
    if (m->size - cut + size > sizeof m->text) return;
    memmove(m->text + at + size, m->text + at + cut, m->size - at - cut);
    memcpy(m->text + at, bytes, size);
    m->size += size - cut;
}

static void mutate(Mutant *m, const Source *other, uint64_t *seed)
{
    size_t at = draw(seed, m->size + 1), left = m->size - at;
    size_t cut = draw(seed, left < 12 ? left + 1 : 12);
    const char *word = words[draw(seed, ARRAY_SIZE(words))];
    char byte = (char)draw(seed, 256);
    size_t from = draw(seed, other->size + 1), most = other->size - from;
    switch (draw(seed, 5)) {
    case 0:
        replace(m, at, cut, "", 0);
        break;
    case 1:
        replace(m, at, left > 0, &byte, 1);
        break;
    case 2:
        replace(m, at, 0, word, strlen(word));
        break;
    case 3:
        replace(m, at, cut, word, strlen(word));
        break;
    default:
        replace(m, at, cut, other->text + from, draw(seed, most < 80 ? most + 1 : 80));
        break;
    }
}

static void expect_handled(const char *text, size_t size)
{
    const char *fault = ir_text_fault(text, size);
    if (fault) fail_msg("%s:\n%.*s", fault, (int)size, text);
}

/* Whatever the text, it is refused with places, or is a graph that prints and parses again. */
static void test_mutations(void **state)
{
    Fixture *f = *state;
    enum { MUTANTS = 40000 };
    Files files = list(is_ir);
    const Source **sources = arena_array(&f->arena, (size_t)files.count, sizeof *sources);
    for (int i = 0; i < files.count; i++) sources[i] = open_file(f, files.entry[i]->d_name, ".ir");
    uint64_t seed = 20211108;
    for (int i = 0; i < MUTANTS; i++) {
        const Source *source = sources[draw(&seed, (size_t)files.count)];
        Mutant mutant = {.size = source->size};
        assert_true(source->size < sizeof mutant.text / 2);
        memcpy(mutant.text, source->text, source->size);
        for (uint32_t k = draw(&seed, 4) + 1; k > 0; k--)
            mutate(&mutant, sources[draw(&seed, (size_t)files.count)], &seed);
        expect_handled(mutant.text, mutant.size);
    }
    release(files);
}

/* Nor does it matter where a text breaks off. */
static void test_prefixes(void **state)
{
    Fixture *f = *state;
    Files files = list(is_ir);
    for (int i = 0; i < files.count; i++) {
        if (open_file(f, files.entry[i]->d_name, ".err")) continue;
        const Source *source = open_file(f, files.entry[i]->d_name, ".ir");
        for (size_t size = 0; size <= source->size; size++) expect_handled(source->text, size);
    }
    release(files);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_round_trip),     TEST(test_refusals),  TEST(test_normal_form),
        TEST(test_nodes),          TEST(test_manual),    TEST(test_limits),
        TEST(test_corrupt_graphs), TEST(test_mutations), TEST(test_prefixes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
