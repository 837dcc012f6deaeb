/* test_settings.c: settings and models: the published files, values, wrong inputs and their
 * messages. Hostile inputs are in test_settings_hostile.c. */
#include "frontend/frontend.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_OVERRIDES = 8, MAX_CASES = 512 };

typedef struct Fixture {
    Arena arena;
    Diag diag;
} Fixture;

static void begin(Fixture *f)
{
    *f = (Fixture){0};
    f->diag = diag_new(&f->arena);
}

static const char *printed(Fixture *f)
{
    char *text = NULL;
    size_t size = 0;
    FILE *file = open_memstream(&text, &size);
    diag_print(&f->diag, file);
    fclose(file);
    const char *copy = arena_strndup(&f->arena, text, size);
    free(text);
    return copy;
}

static const Source *read_file(Fixture *f, const char *folder, const char *name)
{
    const Source *source = diag_read_source(
        &f->diag, arena_printf(&f->arena, "%s/%s", folder, name), SETTINGS_MAX_SIZE);
    if (!source) fail_msg("%s/%s cannot be read", folder, name);
    return source;
}

static Model *resolve(Fixture *f, const Source *source, const char *const *overrides, int count)
{
    Settings *settings = settings_parse(&f->arena, source, overrides, count, &f->diag);
    return settings ? model_resolve(&f->arena, settings, NULL, 0, 0, &f->diag) : NULL;
}

static const Settings *parse_text(Fixture *f, const char *text, const char *const *overrides,
                                  int count)
{
    const Source *source = diag_add_source(&f->diag, "text.yaml", text, strlen(text));
    const Settings *settings = settings_parse(&f->arena, source, overrides, count, &f->diag);
    if (!settings) fail_msg("refused:\n%s", printed(f));
    return settings;
}

/* ---- wrong inputs: NAME.yaml gives the messages in NAME.err ------------------------------ */

/* Overrides stand in comments at the top of a file: `# --set KEY=VALUE`. */
static int read_overrides(Fixture *f, const Source *source, const char **overrides)
{
    static const char start[] = "# --set ";
    int count = 0;
    for (const char *line = source->text; strncmp(line, start, strlen(start)) == 0;) {
        assert_true(count < MAX_OVERRIDES);
        line += strlen(start);
        size_t length = strcspn(line, "\n");
        overrides[count++] = arena_strndup(&f->arena, line, length);
        line += length + (line[length] == '\n');
    }
    return count;
}

/* The messages about a case; its path is printed as NAME.yaml. */
static const char *messages_of(Fixture *f, const char *folder, const char *name)
{
    const Source *read = read_file(f, folder, name);
    const Source *source = diag_add_source(&f->diag, name, read->text, read->size);
    const char *overrides[MAX_OVERRIDES];
    int count = read_overrides(f, source, overrides);
    return resolve(f, source, overrides, count) ? "accepted\n" : printed(f);
}

static int list_yaml(const char *folder, struct dirent ***names)
{
    int count = scandir(folder, names, NULL, alphasort), kept = 0;
    assert_true(count >= 0);
    for (int i = 0; i < count; i++) {
        size_t length = strlen((*names)[i]->d_name);
        if (length > 5 && strcmp((*names)[i]->d_name + length - 5, ".yaml") == 0)
            (*names)[kept++] = (*names)[i];
        else
            free((*names)[i]);
    }
    return kept;
}

static void test_wrong_inputs(void **state)
{
    (void)state;
    const char *folder = TEST_DATA "/data/settings";
    struct dirent **names;
    int count = list_yaml(folder, &names), wrong = 0;
    for (int i = 0; i < count; i++) {
        Fixture f;
        begin(&f);
        const char *name = names[i]->d_name, *found = messages_of(&f, folder, name);
        const char *expected_name = arena_printf(&f.arena, "%.*s.err", (int)strlen(name) - 5, name);
        const char *expected = read_file(&f, folder, expected_name)->text;
        if (strcmp(found, expected) != 0) {
            print_error("%s: expected\n%sbut found\n%s", name, expected, found);
            wrong++;
        }
        arena_free(&f.arena);
        free(names[i]);
    }
    free(names);
    assert_int_equal(wrong, 0);
    assert_true(count >= 40);
}

/* ---- the published files ----------------------------------------------------------------- */

static void check_count(const char *name, int64_t parameters)
{
    Fixture f;
    begin(&f);
    Model *model = resolve(&f, read_file(&f, SOURCE_ROOT "/models", name), NULL, 0);
    if (!model) fail_msg("%s", printed(&f));
    assert_int_equal(model_parameter_count(model), parameters);
    arena_free(&f.arena);
}

/* Counted in the published implementation. */
static void test_parameter_counts(void **state)
{
    (void)state;
    check_count("raftmlp-s.yaml", 9868768);
    check_count("raftmlp-m.yaml", 21413632);
    check_count("raftmlp-l.yaml", 36184672);
    check_count("imagenet-raft-mlp-cross-mlp-emb-s.yaml", 9868768);
    check_count("imagenet-org-mixer.yaml", 59918200);
    check_count("imagenet-raft-mlp-r-1.yaml", 58105432);
    check_count("imagenet-raft-mlp-r-2.yaml", 58162888);
    check_count("imagenet-raft-mlp.yaml", 58390696);
    check_count("imagenet-raft-mlp-r-2-cross-mlp-emb.yaml", 60522184);
    check_count("imagenet-raft-mlp-deep.yaml", 43532296);
    check_count("imagenet-raft-mlp-hierarchy-m.yaml", 19920640);
    check_count("cifar10-raft-mlp.yaml", 6032394);
    check_count("cifar10-org-mixer.yaml", 159511562);
    check_count("fashion-mnist.yaml", 298098);
}

static int accept_folder(const char *folder)
{
    struct dirent **names;
    int count = list_yaml(folder, &names);
    for (int i = 0; i < count; i++) {
        Fixture f;
        begin(&f);
        Model *model = resolve(&f, read_file(&f, folder, names[i]->d_name), NULL, 0);
        if (!model || f.diag.count) fail_msg("%s", printed(&f));
        assert_true(model->settings->task_name && model->settings->data_path);
        assert_true(model->settings->batch_size && model->settings->lr > 0);
        arena_free(&f.arena);
        free(names[i]);
    }
    free(names);
    return count;
}

static void test_published_files(void **state)
{
    (void)state;
    assert_int_equal(accept_folder(SOURCE_ROOT "/models"), 13 + 3 + 1);
    assert_int_equal(accept_folder(SOURCE_ROOT "/models/finetune"), 24);
}

/* ---- values ------------------------------------------------------------------------------ */

#define TINY "layers:\n- {depth: 2, dim: 16, patch_size: 4, raft_size: 2}\n"

static void test_defaults(void **state)
{
    (void)state;
    Fixture f;
    begin(&f);
    const Settings *s = parse_text(&f, TINY, NULL, 0);
    assert_int_equal(s->token_mixing, TOKEN_RAFT);
    assert_int_equal(s->embedding, EMBED_PATCH);
    assert_int_equal(s->pretrained_image_size, 224);
    assert_int_equal(s->token_expansion_factor, 2);
    assert_int_equal(s->channel_expansion_factor, 4);
    assert_string_equal(s->dataset_name, "imagenet");
    assert_int_equal(s->in_channels, 3);
    assert_int_equal(s->num_classes, 1000);
    assert_int_equal(s->default_height, 224);
    assert_int_equal(s->default_width, 224);
    assert_false(s->shortcut);
    assert_true(s->dropout == 0 && s->drop_path_rate == 0);
    assert_int_equal(s->seed, 42);
    assert_null(s->pretrained_from);
    assert_int_equal(s->layer_count, 1);
    assert_int_equal(s->layers[0].kernel_count, 0);
    assert_int_equal(s->layers[0].dim_loc.line, 2);
    assert_int_equal(s->layers[0].dim_loc.column, 19);
    arena_free(&f.arena);
}

/* A scalar is resolved by the type of its key. */
static void test_scalars(void **state)
{
    (void)state;
    Fixture f;
    begin(&f);
    const Settings *s =
        parse_text(&f,
                   TINY "lr: 1e-5\nend_lr: 0.\nweight_decay: .5\nmixup_alpha: +1.5E+0\n"
                        "mixup_p: 1\nshortcut: True\nwith_amp: off\nwith_clearml: YES\n"
                        "task_name: 123\nproject_name: 'true'\nbucket_name: ~\n"
                        "data_path: \"\"\nstop_iteration: null\nresume_from:\nbackend: NULL\n"
                        "num_workers: +020\nseed: 9223372036854775807\n",
                   NULL, 0);
    assert_true(s->lr == 1e-5 && s->end_lr == 0 && s->weight_decay == 0.5);
    assert_true(s->mixup_alpha == 1.5 && s->mixup_p == 1);
    assert_true(s->shortcut && !s->with_amp && s->with_clearml);
    assert_string_equal(s->task_name, "123");
    assert_string_equal(s->project_name, "true");
    assert_null(s->bucket_name);
    assert_null(s->data_path);
    assert_null(s->resume_from);
    assert_null(s->backend);
    assert_int_equal(s->stop_iteration, 0);
    assert_int_equal(s->num_workers, 20);
    assert_int_equal(s->seed, INT64_MAX);
    arena_free(&f.arena);
}

/* What is printed gives, parsed again, the same. */
static void expect_printed(Fixture *f, const Settings *s)
{
    Text first = text_new(&f->arena), second = text_new(&f->arena);
    settings_print(s, &first);
    const Settings *again = parse_text(f, first.data, NULL, 0);
    settings_print(again, &second);
    assert_string_equal(second.data, first.data);
    assert_true(again->seed == s->seed && again->lr == s->lr && again->momentum == s->momentum);
    assert_int_equal(again->layers[0].kernel_count, s->layers[0].kernel_count);
    assert_int_equal(again->num_classes, s->num_classes);
    if (s->data_path) assert_string_equal(again->data_path, s->data_path);
}

static void test_printed(void **state)
{
    (void)state;
    Fixture f;
    begin(&f);
    expect_printed(&f,
                   parse_text(&f,
                              TINY "lr: 0.1\nseed: 0\nmomentum: 0\noptimizer: sgd\n"
                                   "decay_biases_and_norms: no\nmax_grad_norm: 1e-3\n"
                                   "data_path: \"a \\\"b\\\" \\\\ \\x07: # é\"\nshortcut: yes\n",
                              NULL, 0));
    arena_free(&f.arena);
}

static void test_data_sets(void **state)
{
    static const struct {
        const char *name;
        int64_t classes, height, width, tuned_height, tuned_width;
        double mean, std;
    } sets[] = {
        {"imagenet", 1000, 224, 224, 224, 224, .485, .229},
        {"cifar10", 10, 32, 32, 224, 224, .4914, .2023},
        {"cifar100", 100, 32, 32, 224, 224, .507, .267},
        {"cars", 196, 256, 224, 256, 224, .467, .295},
        {"flowers102", 102, 256, 224, 256, 224, .435, .267},
        {"inat18", 8142, 256, 224, 256, 224, .467, .295},
        {"inat19", 1010, 256, 224, 256, 224, .471, .239},
        {"fashion_mnist", 10, 28, 28, 28, 28, .286, .353},
        {"folder", 1000, 224, 224, 224, 224, .485, .229},
    };
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(sets); i++) {
        Fixture f;
        begin(&f);
        const char *name = arena_printf(&f.arena, "dataset_name=%s", sets[i].name);
        const char *const overrides[] = {name, "pretrained_from=weights.pt", "num_classes=7"};
        const Settings *s = parse_text(&f, TINY, overrides, 1);
        assert_int_equal(s->num_classes, sets[i].classes);
        assert_int_equal(s->default_height, sets[i].height);
        assert_int_equal(s->default_width, sets[i].width);
        assert_true(s->mean[0] == sets[i].mean && s->std[0] == sets[i].std);
        s = parse_text(&f, TINY, overrides, 3);
        assert_int_equal(s->default_height, sets[i].tuned_height);
        assert_int_equal(s->default_width, sets[i].tuned_width);
        assert_int_equal(s->num_classes, 7);
        arena_free(&f.arena);
    }
}

static void test_overrides(void **state)
{
    (void)state;
    Fixture f;
    begin(&f);
    const char *const overrides[] = {
        "layers.0.dim=8",
        "layers.0.dim=32",
        "layers.0.embedding_kernels=[4, 8]",
        "embedding_type=emb_cross_mlp",
        "layers.0.embedding_kernels.1=12",
        "task_name=a: 'b'",
        "lr=1e-3",
    };
    const int count = ARRAY_SIZE(overrides);
    const Settings *s;
    const char *text = TINY "task_name: tiny\n";
    const Source *source = diag_add_source(&f.diag, "text.yaml", text, strlen(text));
    assert_null(
        settings_parse(&f.arena, source, overrides, count, &f.diag)); /* task_name: a mapping */
    assert_int_equal(f.diag.errors, 1);

    s = parse_text(&f, text, overrides, 5);
    assert_int_equal(s->layers[0].dim, 32);
    assert_string_equal(s->layers[0].dim_loc.source->path, "--set");
    assert_int_equal(s->layers[0].dim_loc.column, 14);
    assert_int_equal(s->embedding, EMBED_CROSS);
    assert_int_equal(s->layers[0].kernel_count, 2);
    assert_int_equal(s->layers[0].kernels[0], 4);
    assert_int_equal(s->layers[0].kernels[1], 12);
    assert_string_equal(s->task_name, "tiny");

    const char *const whole[] = {"layers=[{depth: 1, dim: 8, patch_size: 2, raft_size: 1}]",
                                 "task_name=", "lr=1e-3"};
    s = parse_text(&f, text, whole, 3);
    assert_int_equal(s->layers[0].dim, 8);
    assert_null(s->task_name);
    assert_true(s->lr == 1e-3);
    arena_free(&f.arena);
}

/* ---- models ------------------------------------------------------------------------------ */

static void check_level(const Level *level, int64_t in_height, int64_t padded_height,
                        int64_t height, int64_t in_width, int64_t padded_width, int64_t width,
                        int64_t grid)
{
    assert_int_equal(level->in_height, in_height);
    assert_int_equal(level->padded_height, padded_height);
    assert_int_equal(level->height, height);
    assert_int_equal(level->in_width, in_width);
    assert_int_equal(level->padded_width, padded_width);
    assert_int_equal(level->width, width);
    assert_int_equal(level->grid, grid);
}

static void test_levels(void **state)
{
    (void)state;
    Fixture f;
    begin(&f);
    const Settings *s = parse_text(&f,
                                   "pretrained_image_size: 50\nin_channels: 1\nlayers:\n"
                                   "- {depth: 1, dim: 24, patch_size: 4, raft_size: 3}\n"
                                   "- {depth: 1, dim: 48, patch_size: 2, raft_size: 3}\n",
                                   NULL, 0);
    Model *model = model_resolve(&f.arena, s, "models/my-model.yaml", 41, 30, &f.diag);
    assert_non_null(model);
    assert_string_equal(model->name, "my_model");
    assert_int_equal(model->level_count, 2);
    assert_int_equal(model->feature_count, 2);
    check_level(&model->levels[0], 41, 44, 11, 30, 32, 8, 13);
    check_level(&model->levels[1], 11, 12, 6, 8, 8, 4, 7);
    assert_int_equal(model->levels[0].in_channels, 1);
    assert_int_equal(model->levels[1].in_channels, 24);
    assert_int_equal(model->levels[1].raft, 3);

    assert_null(model_resolve(&f.arena, s, NULL, 16385, 1, &f.diag));
    assert_null(model_resolve(&f.arena, s, NULL, 32, 0, &f.diag));
    assert_null(model_resolve(&f.arena, s, NULL, -1, 32, &f.diag));
    assert_string_equal(f.diag.messages[0].text, "image 16385x1: each side must be 1 to 16384");
    assert_int_equal(f.diag.errors, 3);
    arena_free(&f.arena);
}

/* A saved run has the size that it was given; --image goes before it. */
static void test_image_key(void **state)
{
    (void)state;
    static const struct {
        const char *override;
        int64_t height, width;
    } cases[] = {{"image=40x24", 40, 24}, {"image=16384x1", 16384, 1}};
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        Fixture f;
        begin(&f);
        const Settings *s =
            parse_text(&f, "layers:\n- {depth: 1, dim: 24, patch_size: 4, raft_size: 2}\n",
                       &cases[i].override, 1);
        assert_int_equal(s->default_height, cases[i].height);
        assert_int_equal(s->default_width, cases[i].width);
        assert_int_equal(model_resolve(&f.arena, s, NULL, 32, 16, &f.diag)->height, 32);
        arena_free(&f.arena);
    }
}

/* The CIFAR models keep the grid of 224 for images of 32. */
static void test_grid_ignores_image(void **state)
{
    (void)state;
    Fixture f;
    begin(&f);
    const Source *source = read_file(&f, SOURCE_ROOT "/models", "cifar10-raft-mlp.yaml");
    const Model *model = resolve(&f, source, NULL, 0);
    assert_non_null(model);
    check_level(&model->levels[0], 32, 32, 16, 32, 32, 16, 112);
    assert_int_equal(model->feature_count, 2);
    arena_free(&f.arena);
}

static void test_feature_counts(void **state)
{
    static const struct {
        const char *depth;
        int count;
    } cases[] = {{"layers.0.depth=9", 0}, {"layers.0.depth=10", 4}, {"layers.0.depth=12", 4}};
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        Fixture f;
        begin(&f);
        const Settings *s = parse_text(&f, TINY, &cases[i].depth, 1);
        const Model *model = model_resolve(&f.arena, s, NULL, 0, 0, &f.diag);
        assert_non_null(model);
        assert_int_equal(model->feature_count, cases[i].count);
        arena_free(&f.arena);
    }
}

/* raft_size and kernels may stand where the types do not use them. */
static void test_unused_keys(void **state)
{
    (void)state;
    Fixture f;
    begin(&f);
    const char *const overrides[] = {"token_mixing_type=original_tm", "layers.0.raft_size=5",
                                     "layers.0.embedding_kernels=[3]"};
    const Settings *s = parse_text(&f, TINY, overrides, 3);
    const Model *model = model_resolve(&f.arena, s, NULL, 0, 0, &f.diag);
    assert_non_null(model);
    assert_int_equal(model->levels[0].raft, 0);
    assert_int_equal(model->levels[0].kernel_count, 0);
    arena_free(&f.arena);
}

static void test_identifiers(void **state)
{
    static const char *const cases[][2] = {
        {"models/raftmlp-l.yaml", "raftmlp_l"},
        {"a.b.yml", "a_b"},
        {"graph.ir", "graph"},
        {"/x/3x3.yaml", "_3x3"},
        {"über.yaml", "__ber"},
        {"folder/", "model"},
        {".yaml", "model"},
        {"", "model"},
        {"a.yaml.ir", "a_yaml"},
        {"quote\"*;\n%s.yaml", "quote_____s"},
    };
    (void)state;
    Arena arena = {0};
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        assert_string_equal(model_identifier(&arena, cases[i][0]), cases[i][1]);
    }
    arena_free(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wrong_inputs),
        cmocka_unit_test(test_parameter_counts),
        cmocka_unit_test(test_published_files),
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_scalars),
        cmocka_unit_test(test_printed),
        cmocka_unit_test(test_data_sets),
        cmocka_unit_test(test_overrides),
        cmocka_unit_test(test_levels),
        cmocka_unit_test(test_image_key),
        cmocka_unit_test(test_grid_ignores_image),
        cmocka_unit_test(test_feature_counts),
        cmocka_unit_test(test_unused_keys),
        cmocka_unit_test(test_identifiers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
