/* settings.c: YAML settings to typed values: every key checked, every default filled in.
 *
 * Two tables say all there is to know about a key. A value is read by the type of its key: `1e-5`
 * is a number, `False` a bool. Whole numbers are written in digits alone (neither 2e3 nor 64.0),
 * and numbers and bools without quotes. Where a key has no default, an empty value or `null` is as
 * good as leaving the key out.
 */
#include "frontend/frontend.h"
#include "frontend/yaml.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

typedef struct Reader {
    Arena *arena;
    Diag *diag;
} Reader;

typedef struct Key Key;

/* Reads the value of a key into its place in a record; false after an error. */
typedef bool ReadFunction(const Reader *reader, const Key *key, const Yaml *value, void *record);

struct Key {
    const char *name;
    ReadFunction *read;
    const char *otherwise; /* the value where the key is left out: REQUIRED, NONE or text */
    int64_t least, most;   /* of numbers */
    size_t member, place;  /* offsets in the record, of the value and of its Loc if that is kept */
};

static ReadFunction read_integer, read_real, read_rate, read_bool, read_text, read_token_mixing,
    read_embedding, read_data_set, read_optimizer, read_image, read_layers, read_kernels;

enum { MAX_LAYERS = 64 };

#define NONE      NULL
#define REQUIRED  "required"
#define NO_MEMBER 0
#define NO_PLACE  0

/* clang-format off */
/* A plain key; one whose place is kept; one whose reader knows alone where the value belongs. */
#define KEY(name, read, otherwise, least, most) \
    {#name, read, otherwise, least, most, offsetof(Settings, name), NO_PLACE}
#define PLACED(name, read, otherwise, least, most, place) \
    {#name, read, otherwise, least, most, offsetof(Settings, name), offsetof(Settings, place)}
#define OTHER(name, read, otherwise, place) \
    {#name, read, otherwise, 0, 0, NO_MEMBER, place}
static const Key settings_keys[] = {
    /* the model */
    OTHER(layers, read_layers, REQUIRED, NO_PLACE),
    OTHER(dataset_name, read_data_set, "imagenet", NO_PLACE),
    OTHER(token_mixing_type, read_token_mixing, "ser_pm", offsetof(Settings, token_mixing_loc)),
    OTHER(embedding_type, read_embedding, "emb_mixer", offsetof(Settings, embedding_loc)),
    PLACED(pretrained_image_size,    read_integer, "224",   1, MAX_SIDE, pretrained_image_size_loc),
    PLACED(token_expansion_factor,   read_integer, "2",     1, 1024,     token_expansion_loc),
    PLACED(channel_expansion_factor, read_integer, "4",     1, 1024,     channel_expansion_loc),
    PLACED(in_channels,              read_integer, "3",     1, 65536,    in_channels_loc),
    PLACED(num_classes,              read_integer, NONE,    1, 1 << 24,  num_classes_loc),
    PLACED(shortcut,                 read_bool,    "false", 0, 0,        shortcut_loc),
    KEY(dropout,               read_rate,    "0",  0, 0),
    KEY(drop_path_rate,        read_rate,    "0",  0, 0),
    /* the recipe */
    KEY(data_path,             read_text,    NONE, 0, 0),
    KEY(pretrained_from,       read_text,    NONE, 0, 0),
    KEY(resume_from,           read_text,    NONE, 0, 0),
    KEY(task_name,             read_text,    NONE, 0, 0),
    KEY(project_name,          read_text,    NONE, 0, 0),
    KEY(bucket_name,           read_text,    NONE, 0, 0),
    KEY(backend,               read_text,    NONE, 0, 0),
    KEY(batch_size,            read_integer, NONE, 1, 1 << 24),
    KEY(num_workers,           read_integer, NONE, 0, 4096),
    KEY(num_epochs,            read_integer, NONE, 1, 1 << 24),
    KEY(num_warmup_epochs,     read_integer, NONE, 0, 1 << 24),
    KEY(validate_every,        read_integer, NONE, 1, 1 << 24),
    KEY(checkpoint_every,      read_integer, NONE, 1, INT32_MAX),
    KEY(log_every_iters,       read_integer, NONE, 1, INT32_MAX),
    KEY(stop_iteration,        read_integer, NONE, 1, INT64_MAX),
    KEY(nproc_per_node,        read_integer, NONE, 1, 4096),
    KEY(seed,                  read_integer, "42", 0, INT64_MAX),
    KEY(lr,                    read_real,    NONE, 0, 1000),
    KEY(end_lr,                read_real,    NONE, 0, 1000),
    KEY(weight_decay,          read_real,    NONE, 0, 1000),
    KEY(label_smoothing_alpha, read_real,    NONE, 0, 1),
    KEY(mixup_alpha,           read_real,    NONE, 0, 1000),
    KEY(mixup_p,               read_real,    NONE, 0, 1),
    KEY(cutmix_alpha,          read_real,    NONE, 0, 1000),
    KEY(cutmix_p,              read_real,    NONE, 0, 1),
    KEY(cutout_p,              read_real,    NONE, 0, 1),
    KEY(color_jitter,          read_real,    NONE, 0, 1000),
    KEY(with_amp,              read_bool,    NONE, 0, 0),
    KEY(with_clearml,          read_bool,    NONE, 0, 0),
    /* not of the published recipe */
    KEY(decay_biases_and_norms, read_bool,   "true", 0, 0),
    KEY(momentum,              read_rate,    "0.9", 0, 0),
    KEY(max_grad_norm,         read_real,    NONE, 0, 1000000),
    KEY(ema_decay,             read_rate,    NONE, 0, 0),
    KEY(accumulation_steps,    read_integer, NONE, 1, 1 << 24),
    OTHER(optimizer,           read_optimizer, "adamw", NO_PLACE),
    OTHER(image,               read_image, NONE, NO_PLACE),
};
#undef KEY
#undef PLACED
#undef OTHER

#define KEY(name, read, otherwise, least, most, member, place)             \
    {#name, read, otherwise, least, most, offsetof(LayerSettings, member), \
     offsetof(LayerSettings, place)}
static const Key layer_keys[] = {
    KEY(depth,             read_integer, REQUIRED, 1, 4096,     depth,      depth_loc),
    KEY(dim,               read_integer, REQUIRED, 1, 1 << 20,  dim,        dim_loc),
    KEY(patch_size,        read_integer, REQUIRED, 1, MAX_SIDE, patch_size, patch_loc),
    KEY(raft_size,         read_integer, NONE,     1, 1 << 20,  raft_size,  raft_loc),
    KEY(embedding_kernels, read_kernels, NONE,     1, MAX_SIDE, kernels,    kernels_loc),
};
#undef KEY

/* height and width are those of training from the start; fine-tuning takes `tuned`. */
typedef struct DataSet {
    const char *name;
    int64_t classes, height, width, tuned_height, tuned_width;
    double mean[3], std[3];
} DataSet;

static const DataSet data_sets[] = {
    {"imagenet",   1000, 224, 224, 224, 224, {.485,  .456,  .406},  {.229,  .224,  .225}},
    {"cifar10",      10,  32,  32, 224, 224, {.4914, .4822, .4465}, {.2023, .1994, .2010}},
    {"cifar100",    100,  32,  32, 224, 224, {.507,  .487,  .441},  {.267,  .256,  .276}},
    {"cars",        196, 256, 224, 256, 224, {.467,  .456,  .450},  {.295,  .294,  .302}},
    {"flowers102",  102, 256, 224, 256, 224, {.435,  .378,  .287},  {.267,  .246,  .270}},
    {"inat18",     8142, 256, 224, 256, 224, {.467,  .456,  .450},  {.295,  .294,  .302}},
    {"inat19",     1010, 256, 224, 256, 224, {.471,  .482,  .401},  {.239,  .233,  .259}},
    /* Not of the paper. A folder of any classes has as many as num_classes says. */
    {"fashion_mnist", 10, 28,  28,  28,  28, {.286,  .286,  .286},  {.353,  .353,  .353}},
    {"folder",     1000, 224, 224, 224, 224, {.485,  .456,  .406},  {.229,  .224,  .225}},
};
/* clang-format on */

/* ---- single values ----------------------------------------------------------------------- */

/* The user's text as a message shows it: not all of it where it is long. */
static const char *cut(const Reader *reader, const char *text)
{
    size_t length = strlen(text), most = 40;
    if (length <= most) return text;
    while (((unsigned char)text[most] & 0xC0) == 0x80) most--; /* a whole character is left out */
    return arena_printf(reader->arena, "%.*s...", (int)most, text);
}

static const char *shown(const Reader *reader, const Yaml *value)
{
    if (value->kind == YAML_LIST) return "a list";
    if (value->kind == YAML_MAP) return "a mapping";
    if (value->plain && !*value->text) return "an empty value";
    return arena_printf(reader->arena, "%s'%s'", value->plain ? "" : "the quoted text ",
                        cut(reader, value->text));
}

static bool is_one_of(const Yaml *value, const char *const *words, size_t count)
{
    if (value->kind != YAML_TEXT || !value->plain) return false;
    for (size_t i = 0; i < count; i++)
        if (strcmp(value->text, words[i]) == 0) return true;
    return false;
}

static bool is_none(const Yaml *value)
{
    static const char *const words[] = {"", "~", "null", "Null", "NULL"};
    return is_one_of(value, words, ARRAY_SIZE(words));
}

static bool must_be(const Reader *reader, const Key *key, const char *what, const Yaml *value)
{
    return diag_error(reader->diag, value->loc, "%s must be %s, not %s", key->name, what,
                      shown(reader, value));
}

static bool out_of_range(const Reader *reader, const Key *key, const Yaml *value)
{
    return diag_error(reader->diag, value->loc, "%s %s is out of range: it must be %lld to %lld",
                      key->name, cut(reader, value->text), (long long)key->least,
                      (long long)key->most);
}

static const char *skip_digits(const char *text)
{
    return text + strspn(text, "0123456789");
}

static bool parse_integer(const Reader *reader, const Key *key, const Yaml *value, int64_t *number)
{
    const char *digits = value->kind == YAML_TEXT ? value->text : "";
    if (*digits == '+' || *digits == '-') digits++;
    bool whole = skip_digits(digits) != digits && !*skip_digits(digits);
    if (!whole || !value->plain) return must_be(reader, key, "a whole number", value);
    errno = 0;
    *number = strtoll(value->text, NULL, 10);
    if (errno || *number < key->least || *number > key->most)
        return out_of_range(reader, key, value);
    return true;
}

static bool read_integer(const Reader *reader, const Key *key, const Yaml *value, void *record)
{
    return parse_integer(reader, key, value, (int64_t *)((char *)record + key->member));
}

/* [+-] digits [. digits] [e [+-] digits], with a digit before or after the point. */
static bool is_decimal(const char *text)
{
    if (*text == '+' || *text == '-') text++;
    const char *fraction = skip_digits(text), *end = fraction;
    if (*fraction == '.') end = skip_digits(fraction + 1);
    if (fraction == text && end <= fraction + 1) return false;
    if (*end == 'e' || *end == 'E') {
        const char *exponent = end + 1;
        if (*exponent == '+' || *exponent == '-') exponent++;
        end = skip_digits(exponent);
        if (end == exponent) return false;
    }
    return !*end;
}

static bool parse_real(const Reader *reader, const Key *key, const Yaml *value, double *number)
{
    if (value->kind != YAML_TEXT || !value->plain || !is_decimal(value->text))
        return must_be(reader, key, "a number", value);
    *number = strtod(value->text, NULL);
    return true;
}

static bool read_real(const Reader *reader, const Key *key, const Yaml *value, void *record)
{
    double *number = (double *)((char *)record + key->member);
    if (!parse_real(reader, key, value, number)) return false;
    bool inside = *number >= (double)key->least && *number <= (double)key->most;
    return inside || out_of_range(reader, key, value);
}

/* The share that is dropped: something must be left. */
static bool read_rate(const Reader *reader, const Key *key, const Yaml *value, void *record)
{
    double *rate = (double *)((char *)record + key->member);
    if (!parse_real(reader, key, value, rate)) return false;
    if (*rate >= 0 && *rate < 1) return true;
    return diag_error(reader->diag, value->loc,
                      "%s %s is out of range: it must be at least 0 and less than 1", key->name,
                      cut(reader, value->text));
}

static bool read_bool(const Reader *reader, const Key *key, const Yaml *value, void *record)
{
    static const char *const yes[] = {"true", "True", "TRUE", "yes", "Yes",
                                      "YES",  "on",   "On",   "ON"};
    static const char *const no[] = {"false", "False", "FALSE", "no", "No",
                                     "NO",    "off",   "Off",   "OFF"};
    bool is_yes = is_one_of(value, yes, ARRAY_SIZE(yes));
    if (!is_yes && !is_one_of(value, no, ARRAY_SIZE(no)))
        return must_be(reader, key, "true or false", value);
    *(bool *)((char *)record + key->member) = is_yes;
    return true;
}

static bool read_text(const Reader *reader, const Key *key, const Yaml *value, void *record)
{
    if (value->kind != YAML_TEXT) return must_be(reader, key, "text", value);
    *(const char **)((char *)record + key->member) = *value->text ? value->text : NULL;
    return true;
}

static bool read_choice(const Reader *reader, const Key *key, const Yaml *value,
                        const char *const *names, size_t count, size_t *choice)
{
    if (value->kind != YAML_TEXT || is_none(value)) return must_be(reader, key, "a name", value);
    for (*choice = 0; *choice < count; ++*choice)
        if (strcmp(value->text, names[*choice]) == 0) return true;
    const char *nearest = diag_nearest(value->text, names, count);
    Text known = text_new(reader->arena);
    for (size_t i = 0; i < count; i++) text_printf(&known, "%s%s", i ? ", " : "", names[i]);
    diag_error(reader->diag, value->loc, "unknown %s '%s'%s%s%s", key->name,
               cut(reader, value->text), nearest ? "; did you mean '" : "", nearest ? nearest : "",
               nearest ? "'?" : "");
    diag_note(reader->diag, value->loc, "values that fit: %s", known.data);
    return false;
}

static const char *const mixing_names[] = {[TOKEN_RAFT] = "ser_pm", [TOKEN_MIXER] = "original_tm"};
static const char *const embedding_names[] = {
    [EMBED_CROSS] = "emb_cross_mlp", [EMBED_PATCH] = "emb_mixer"};
static const char *const optimizer_names[] = {"adamw", "sgd"};

static bool read_token_mixing(const Reader *reader, const Key *key, const Yaml *value, void *record)
{
    size_t choice = 0;
    if (!read_choice(reader, key, value, mixing_names, ARRAY_SIZE(mixing_names), &choice))
        return false;
    ((Settings *)record)->token_mixing = (TokenMixing)choice;
    return true;
}

static bool read_embedding(const Reader *reader, const Key *key, const Yaml *value, void *record)
{
    size_t choice = 0;
    if (!read_choice(reader, key, value, embedding_names, ARRAY_SIZE(embedding_names), &choice))
        return false;
    ((Settings *)record)->embedding = (EmbeddingType)choice;
    return true;
}

static bool read_data_set(const Reader *reader, const Key *key, const Yaml *value, void *record)
{
    const char *names[ARRAY_SIZE(data_sets)];
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) names[i] = data_sets[i].name;
    size_t choice = 0;
    if (!read_choice(reader, key, value, names, ARRAY_SIZE(names), &choice)) return false;
    ((Settings *)record)->dataset_name = names[choice];
    return true;
}

static bool read_optimizer(const Reader *reader, const Key *key, const Yaml *value, void *record)
{
    size_t choice = 0;
    if (!read_choice(reader, key, value, optimizer_names, ARRAY_SIZE(optimizer_names), &choice))
        return false;
    ((Settings *)record)->sgd = choice == 1;
    return true;
}

/* A side of an image; *end: what follows it. 0 where it is none. */
static int64_t parse_side(const char *text, const char **end)
{
    *end = skip_digits(text);
    int64_t side = 0;
    for (; text < *end && side <= MAX_SIDE; text++) side = 10 * side + (*text - '0');
    return side <= MAX_SIDE ? side : 0;
}

bool image_size_parse(const char *text, int64_t *height, int64_t *width)
{
    *height = parse_side(text, &text);
    *width = *text == 'x' ? parse_side(text + 1, &text) : 0;
    return *height && *width && !*text;
}

static bool read_image(const Reader *reader, const Key *key, const Yaml *value, void *record)
{
    Settings *settings = record;
    const char *text = value->kind == YAML_TEXT ? value->text : "";
    if (image_size_parse(text, &settings->default_height, &settings->default_width)) return true;
    return must_be(
        reader, key,
        arena_printf(reader->arena, "height x width, as in 224x224, each 1 to %d", MAX_SIDE),
        value);
}

/* ---- records ----------------------------------------------------------------------------- */

static bool report_unknown(const Reader *reader, const YamlEntry *entry, const Key *keys,
                           size_t count)
{
    const char **names = arena_array(reader->arena, count, sizeof *names);
    for (size_t i = 0; i < count; i++) names[i] = keys[i].name;
    const char *nearest = diag_nearest(entry->key, names, count), *key = cut(reader, entry->key);
    if (!nearest) return diag_error(reader->diag, entry->key_loc, "unknown key '%s'", key);
    return diag_error(reader->diag, entry->key_loc, "unknown key '%s'; did you mean '%s'?", key,
                      nearest);
}

static bool read_entry(const Reader *reader, const YamlEntry *entry, const Key *keys, size_t count,
                       void *record)
{
    const Key *key = keys;
    while (key < keys + count && strcmp(entry->key, key->name) != 0) key++;
    if (key == keys + count) return report_unknown(reader, entry, keys, count);
    if (key->place) *(Loc *)((char *)record + key->place) = entry->value->loc;
    if (key->otherwise == NONE && is_none(entry->value)) return true;
    return key->read(reader, key, entry->value, record);
}

static bool read_otherwise(const Reader *reader, const Yaml *map, const Key *key, void *record)
{
    if (key->place) *(Loc *)((char *)record + key->place) = map->loc;
    if (key->otherwise == NONE) return true;
    if (strcmp(key->otherwise, REQUIRED) == 0)
        return diag_error(reader->diag, map->loc, "%s is missing", key->name);
    const Yaml value = {.loc = map->loc, .text = key->otherwise, .plain = true};
    return key->read(reader, key, &value, record);
}

/* Reads a mapping whole, whatever is wrong, so that all faults are found. */
static bool read_record(const Reader *reader, const Yaml *map, const Key *keys, size_t count,
                        void *record)
{
    bool good = true;
    for (uint32_t i = 0; i < map->count; i++)
        good &= read_entry(reader, &map->entries[i], keys, count, record);
    for (size_t i = 0; i < count; i++)
        if (!yaml_find(map, keys[i].name)) good &= read_otherwise(reader, map, &keys[i], record);
    return good;
}

static bool read_kernels(const Reader *reader, const Key *key, const Yaml *value, void *record)
{
    LayerSettings *layer = record;
    if (value->kind != YAML_LIST) return must_be(reader, key, "a list of kernel sizes", value);
    if (value->count == 0 || value->count > MAX_EMBEDDING_KERNELS)
        return diag_error(reader->diag, value->loc, "%s must have 1 to %d entries, not %u",
                          key->name, MAX_EMBEDDING_KERNELS, value->count);
    bool good = true;
    for (uint32_t i = 0; i < value->count; i++) {
        const Yaml *kernel = value->entries[i].value;
        layer->kernel_loc[i] = kernel->loc;
        good &= parse_integer(reader, key, kernel, &layer->kernels[i]);
    }
    layer->kernel_count = (int)value->count;
    return good;
}

static bool read_layers(const Reader *reader, const Key *key, const Yaml *value, void *record)
{
    Settings *settings = record;
    if (value->kind != YAML_LIST) return must_be(reader, key, "a list of layers", value);
    if (value->count == 0 || value->count > MAX_LAYERS)
        return diag_error(reader->diag, value->loc, "%s must have 1 to %d entries, not %u",
                          key->name, MAX_LAYERS, value->count);
    settings->layer_count = (int)value->count;
    settings->layers = arena_array(reader->arena, value->count, sizeof *settings->layers);
    bool good = true;
    for (uint32_t i = 0; i < value->count; i++) {
        const Yaml *layer = value->entries[i].value;
        settings->layers[i].loc = layer->loc;
        good &= layer->kind == YAML_MAP ? read_record(reader, layer, layer_keys,
                                                      ARRAY_SIZE(layer_keys), &settings->layers[i])
                                        : must_be(reader, key, "a list of mappings", layer);
    }
    return good;
}

/* ---- the whole --------------------------------------------------------------------------- */

/* Keys of a layer that only some types of mixing and embedding need. */
static bool check_layer_keys(const Settings *settings, Diag *diag)
{
    bool good = true;
    for (int i = 0; i < settings->layer_count; i++) {
        const LayerSettings *layer = &settings->layers[i];
        if (settings->token_mixing == TOKEN_RAFT && layer->raft_size == 0)
            good = diag_error(diag, layer->loc,
                              "raft_size is missing: token_mixing_type ser_pm needs it");
        if (settings->embedding == EMBED_CROSS && layer->kernel_count == 0)
            good =
                diag_error(diag, layer->loc,
                           "embedding_kernels is missing: embedding_type emb_cross_mlp needs it");
    }
    return good;
}

static void apply_data_set(Settings *settings)
{
    const DataSet *set = data_sets;
    while (strcmp(set->name, settings->dataset_name) != 0) set++;
    bool tuned = settings->pretrained_from;
    if (settings->default_height == 0) {
        settings->default_height = tuned ? set->tuned_height : set->height;
        settings->default_width = tuned ? set->tuned_width : set->width;
    }
    if (settings->num_classes == 0) settings->num_classes = set->classes;
    memcpy(settings->mean, set->mean, sizeof set->mean);
    memcpy(settings->std, set->std, sizeof set->std);
}

Settings *settings_parse(Arena *arena, const Source *source, const char *const *overrides,
                         int override_count, Diag *diag)
{
    const Loc start = {source, 1, 1};
    if (source->size > SETTINGS_MAX_SIZE) {
        diag_error(diag, start, "is larger than %d bytes, the most that is read",
                   SETTINGS_MAX_SIZE);
        return NULL;
    }
    Yaml *root = yaml_parse(arena, source, 0, diag);
    if (!root) return NULL;
    if (is_none(root)) root->kind = YAML_MAP; /* an empty file has no keys */
    if (root->kind != YAML_MAP) {
        diag_error(diag, root->loc, "settings must be a mapping of keys to values");
        return NULL;
    }
    bool good = true;
    for (int i = 0; i < override_count; i++) good &= yaml_override(arena, root, overrides[i], diag);

    Settings *settings = arena_alloc(arena, sizeof *settings);
    settings->source = source;
    settings->loc = root->loc;
    const Reader reader = {arena, diag};
    good &= read_record(&reader, root, settings_keys, ARRAY_SIZE(settings_keys), settings);
    if (!good || !check_layer_keys(settings, diag)) return NULL;
    apply_data_set(settings);
    return settings;
}

/* ---- printing ------------------------------------------------------------------------------ */

static void print_text(const char *text, Text *out)
{
    text_printf(out, "\"");
    for (const char *c = text; *c; c++) {
        bool plain = (unsigned char)*c >= ' ' && *c != 0x7f && *c != '"' && *c != '\\';
        text_printf(out, plain ? "%c" : "\\x%02x", *c);
    }
    text_printf(out, "\"\n");
}

/* The value of one key; nothing where it is that of a key left out. */
static void print_key(const Key *key, const Settings *s, Text *out)
{
    const void *member = (const char *)s + key->member;
    bool always = key->otherwise != NONE; /* else 0 is as good as left out */
    if (key->read == read_integer && (always || *(const int64_t *)member))
        text_printf(out, "%s: %lld\n", key->name, *(const long long *)member);
    bool real = key->read == read_real || key->read == read_rate;
    if (real && (always || *(const double *)member != 0)) {
        text_printf(out, "%s: ", key->name);
        double_print(*(const double *)member, out);
        text_printf(out, "\n");
    }
    if (key->read == read_bool)
        text_printf(out, "%s: %s\n", key->name, *(const bool *)member ? "True" : "False");
    if (key->read == read_text && *(const char *const *)member) {
        text_printf(out, "%s: ", key->name);
        print_text(*(const char *const *)member, out);
    }
    if (key->read == read_data_set) text_printf(out, "%s: %s\n", key->name, s->dataset_name);
    if (key->read == read_token_mixing)
        text_printf(out, "%s: %s\n", key->name, mixing_names[s->token_mixing]);
    if (key->read == read_embedding)
        text_printf(out, "%s: %s\n", key->name, embedding_names[s->embedding]);
    if (key->read == read_optimizer)
        text_printf(out, "%s: %s\n", key->name, optimizer_names[s->sgd]);
    if (key->read == read_image)
        text_printf(out, "%s: %lldx%lld\n", key->name, (long long)s->default_height,
                    (long long)s->default_width);
}

static void print_layer(const LayerSettings *layer, Text *out)
{
    text_printf(out, "- {depth: %lld, dim: %lld, patch_size: %lld", (long long)layer->depth,
                (long long)layer->dim, (long long)layer->patch_size);
    if (layer->raft_size) text_printf(out, ", raft_size: %lld", (long long)layer->raft_size);
    for (int i = 0; i < layer->kernel_count; i++)
        text_printf(out, "%s%lld", i ? ", " : ", embedding_kernels: [",
                    (long long)layer->kernels[i]);
    text_printf(out, layer->kernel_count ? "]}\n" : "}\n");
}

void settings_print(const Settings *settings, Text *out)
{
    text_printf(out, "layers:\n");
    for (int i = 0; i < settings->layer_count; i++) print_layer(&settings->layers[i], out);
    for (size_t i = 0; i < ARRAY_SIZE(settings_keys); i++)
        print_key(&settings_keys[i], settings, out);
}
