/* yaml.c: YAML text to a tree in which every key and value knows its place.
 *
 * libyaml scans and parses; its events are turned into the tree here. The text may be hostile: what
 * libyaml would take too long over, or settings have no use for, is refused.
 */
#include "frontend/yaml.h"

#include <string.h>
#include <yaml.h>

enum {
    MAX_DEPTH = 64, /* libyaml 0.2.5 takes time quadratic in the depth */
    MAX_VALUES = 100000,
    MAX_KEYS = 256, /* of one mapping, which is searched from end to end for each key */
};

typedef struct Loader {
    Arena *arena;
    Diag *diag;
    const Source *source;
    const char *text; /* what is parsed, a part of the source */
    size_t size;
    uint32_t column; /* of its first character, on line 1 */
    Yaml *root;
    Yaml *open[MAX_DEPTH]; /* the lists and mappings around the next event */
    int depth;
    uint32_t values;
} Loader;

/* ---- places ------------------------------------------------------------------------------ */

static uint32_t count_characters(const char *text, size_t size)
{
    uint32_t count = 0;
    for (size_t i = 0; i < size; i++) count += ((unsigned char)text[i] & 0xC0) != 0x80;
    return count;
}

/* libyaml counts characters and, in texts that pass check_lines, the lines that we count. */
static Loc place(const Loader *loader, yaml_mark_t mark)
{
    uint32_t first_column = mark.line == 0 ? loader->column : 1;
    return (Loc){loader->source, (uint32_t)mark.line + 1, (uint32_t)mark.column + first_column};
}

static Loc place_of_byte(const Loader *loader, size_t offset)
{
    yaml_mark_t mark = {0};
    size_t line_start = 0;
    for (size_t i = 0; i < offset; i++) {
        if (loader->text[i] != '\n') continue;
        mark.line++;
        line_start = i + 1;
    }
    mark.column = count_characters(loader->text + line_start, offset - line_start);
    return place(loader, mark);
}

/* Refuses the line ends that only YAML knows, so that lines are what every editor shows, and
 * directives, over which libyaml takes time quadratic in their number. */
static bool check_lines(Loader *loader)
{
    const char *text = loader->text;
    for (size_t i = 0; i < loader->size; i++) {
        size_t left = loader->size - i;
        bool line_start = i == 0 || text[i - 1] == '\n';
        bool lone_return = text[i] == '\r' && (left < 2 || text[i + 1] != '\n');
        bool separator = (left >= 2 && memcmp(text + i, "\xC2\x85", 2) == 0) ||
                         (left >= 3 && memcmp(text + i, "\xE2\x80\xA8", 3) == 0) ||
                         (left >= 3 && memcmp(text + i, "\xE2\x80\xA9", 3) == 0);
        if (lone_return || separator)
            return diag_error(loader->diag, place_of_byte(loader, i),
                              "a line must end in a line feed, not in this character");
        if (line_start && text[i] == '%')
            return diag_error(loader->diag, place_of_byte(loader, i),
                              "YAML directives are not supported");
    }
    return true;
}

/* ---- events to tree ---------------------------------------------------------------------- */

static Yaml *new_value(Loader *loader, int kind, Loc loc)
{
    Yaml *value = arena_alloc(loader->arena, sizeof *value);
    value->kind = kind;
    value->loc = loc;
    return value;
}

static YamlEntry *push_entry(Arena *arena, Yaml *parent)
{
    return ARENA_PUSH(arena, parent->entries, parent->count, parent->capacity);
}

static YamlEntry *find_entry(const Yaml *map, const char *key)
{
    for (uint32_t i = 0; map->kind == YAML_MAP && i < map->count; i++)
        if (strcmp(map->entries[i].key, key) == 0) return &map->entries[i];
    return NULL;
}

static Yaml *innermost(const Loader *loader)
{
    return loader->depth ? loader->open[loader->depth - 1] : NULL;
}

static bool key_is_next(const Loader *loader)
{
    const Yaml *parent = innermost(loader);
    if (!parent || parent->kind != YAML_MAP) return false;
    return parent->count == 0 || parent->entries[parent->count - 1].value;
}

static bool add_value(Loader *loader, Yaml *value)
{
    if (++loader->values > MAX_VALUES)
        return diag_error(loader->diag, value->loc, "there are more than %d values", MAX_VALUES);
    Yaml *parent = innermost(loader);
    if (!parent)
        loader->root = value;
    else if (parent->kind == YAML_LIST)
        push_entry(loader->arena, parent)->value = value;
    else
        parent->entries[parent->count - 1].value = value;
    return true;
}

static bool add_key(Loader *loader, const char *key, bool plain, Loc loc)
{
    Yaml *map = innermost(loader);
    if (map->count == MAX_KEYS)
        return diag_error(loader->diag, loc, "there are more than %d keys here", MAX_KEYS);
    const YamlEntry *first = find_entry(map, key);
    if (plain && strcmp(key, "<<") == 0) {
        diag_error(loader->diag, loc, "merge keys are not supported; write the keys out");
    } else if (first) {
        diag_error(loader->diag, loc, "the key '%s' is given twice", key);
        diag_note(loader->diag, first->key_loc, "it is given here first");
    }
    *push_entry(loader->arena, map) = (YamlEntry){.key = key, .key_loc = loc};
    return true;
}

static bool add_scalar(Loader *loader, const yaml_event_t *event, Loc loc)
{
    const char *text = (const char *)event->data.scalar.value;
    size_t length = event->data.scalar.length;
    bool plain = event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
    if (memchr(text, '\0', length))
        return diag_error(loader->diag, loc, "the character 0 cannot stand in a text");
    text = arena_strndup(loader->arena, text, length);
    if (key_is_next(loader)) return add_key(loader, text, plain, loc);
    Yaml *value = new_value(loader, YAML_TEXT, loc);
    value->text = text;
    value->plain = plain;
    return add_value(loader, value);
}

static bool open_value(Loader *loader, int kind, Loc loc)
{
    if (key_is_next(loader)) return diag_error(loader->diag, loc, "a key must be a word");
    if (loader->depth == MAX_DEPTH)
        return diag_error(loader->diag, loc, "values are nested deeper than %d levels", MAX_DEPTH);
    Yaml *value = new_value(loader, kind, loc);
    if (!add_value(loader, value)) return false;
    loader->open[loader->depth++] = value;
    return true;
}

static void refuse_properties(Loader *loader, const void *anchor, const void *tag, Loc loc)
{
    if (anchor) diag_error(loader->diag, loc, "anchors are not supported");
    if (tag) diag_error(loader->diag, loc, "tags are not supported; the key gives the type");
}

/* False where nothing can be made of the rest. */
static bool take_event(Loader *loader, const yaml_event_t *event)
{
    Loc loc = place(loader, event->start_mark);
    switch (event->type) {
    case YAML_DOCUMENT_START_EVENT:
        if (!loader->root) return true;
        return diag_error(loader->diag, loc, "a second document is not supported");
    case YAML_ALIAS_EVENT:
        return diag_error(loader->diag, loc, "aliases are not supported; write the value out");
    case YAML_SCALAR_EVENT:
        refuse_properties(loader, event->data.scalar.anchor, event->data.scalar.tag, loc);
        return add_scalar(loader, event, loc);
    case YAML_SEQUENCE_START_EVENT:
        refuse_properties(loader, event->data.sequence_start.anchor, event->data.sequence_start.tag,
                          loc);
        return open_value(loader, YAML_LIST, loc);
    case YAML_MAPPING_START_EVENT:
        refuse_properties(loader, event->data.mapping_start.anchor, event->data.mapping_start.tag,
                          loc);
        return open_value(loader, YAML_MAP, loc);
    case YAML_SEQUENCE_END_EVENT:
    case YAML_MAPPING_END_EVENT:
        loader->depth--;
        return true;
    default:
        return true;
    }
}

/* libyaml puts the end of a text on a line of its own, which may not be there. */
static Loc place_of_problem(const Loader *loader, yaml_mark_t mark)
{
    Loc loc = place(loader, mark), end = place_of_byte(loader, loader->size);
    return loc.line > end.line ? end : loc;
}

/* First byte of the character at a mark; 0 at the end. */
static char character_at(const Loader *loader, yaml_mark_t mark)
{
    size_t i = 0;
    for (size_t left = mark.index; left && i < loader->size; left--) {
        i++;
        while (i < loader->size && ((unsigned char)loader->text[i] & 0xC0) == 0x80) i++;
    }
    return i < loader->size ? loader->text[i] : '\0';
}

/* What libyaml says of the text; of bytes that are not characters it knows the offset alone. */
static void report(const Loader *loader, const yaml_parser_t *parser)
{
    const char *problem = parser->problem;
    if (parser->error == YAML_MEMORY_ERROR) return; /* yaml_parse tells */
    if (parser->error == YAML_READER_ERROR) {
        size_t offset =
            parser->problem_offset < loader->size ? parser->problem_offset : loader->size;
        diag_error(loader->diag, place_of_byte(loader, offset), "not text: %s", problem);
        return;
    }
    if (character_at(loader, parser->problem_mark) == '\t')
        problem = "a tab cannot stand here; indent with spaces";
    diag_error(loader->diag, place_of_problem(loader, parser->problem_mark), "%s", problem);
    if (parser->context)
        diag_note(loader->diag, place_of_problem(loader, parser->context_mark), "%s",
                  parser->context);
}

static bool take_events(Loader *loader, yaml_parser_t *parser)
{
    for (;;) {
        yaml_event_t event;
        if (!yaml_parser_parse(parser, &event)) {
            report(loader, parser);
            return false;
        }
        bool last = event.type == YAML_STREAM_END_EVENT;
        bool taken = take_event(loader, &event);
        yaml_event_delete(&event);
        if (last || !taken) return taken;
    }
}

Yaml *yaml_parse(Arena *arena, const Source *source, size_t begin, Diag *diag)
{
    uint32_t errors = diag->errors;
    Loader loader = {.arena = arena, .diag = diag, .source = source};
    loader.column = count_characters(source->text, begin) + 1;
    bool has_mark = source->size >= 3 && memcmp(source->text, "\xEF\xBB\xBF", 3) == 0;
    if (begin == 0 && has_mark) begin = 3;
    loader.text = source->text + begin;
    loader.size = source->size - begin;
    if (!check_lines(&loader)) return NULL;

    yaml_parser_t parser;
    if (!yaml_parser_initialize(&parser)) arena_out_of_memory(arena, 0);
    yaml_parser_set_encoding(&parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&parser, (const unsigned char *)loader.text, loader.size);
    take_events(&loader, &parser);
    bool no_memory = parser.error == YAML_MEMORY_ERROR;
    yaml_parser_delete(&parser);
    if (no_memory) arena_out_of_memory(arena, 0);
    if (diag->errors != errors) return NULL;
    if (loader.root) return loader.root;

    Yaml *nothing = new_value(&loader, YAML_TEXT, place_of_byte(&loader, 0));
    nothing->text = "";
    nothing->plain = true;
    return nothing;
}

const Yaml *yaml_find(const Yaml *map, const char *key)
{
    const YamlEntry *entry = find_entry(map, key);
    return entry ? entry->value : NULL;
}

/* ---- overrides --------------------------------------------------------------------------- */

static bool parse_index(const char *text, uint32_t *index)
{
    uint64_t value = 0;
    size_t length = strlen(text);
    if (length == 0 || length > 9) return false;
    for (const char *digit = text; *digit; digit++) {
        if (*digit < '0' || *digit > '9') return false;
        value = value * 10 + (uint64_t)(*digit - '0');
    }
    *index = (uint32_t)value;
    return true;
}

static YamlEntry *find_index(const Yaml *list, const char *part, Loc loc, Diag *diag)
{
    uint32_t index;
    if (parse_index(part, &index) && index < list->count) return &list->entries[index];
    diag_error(diag, loc, "'%s' is not an index here: the list has %u %s, counted from 0", part,
               list->count, list->count == 1 ? "entry" : "entries");
    return NULL;
}

static YamlEntry *find_key(Arena *arena, Yaml *map, const char *part, bool last, Loc loc,
                           Diag *diag)
{
    YamlEntry *entry = find_entry(map, part);
    if (entry) return entry;
    if (last) {
        entry = push_entry(arena, map);
        *entry = (YamlEntry){.key = part, .key_loc = loc};
        return entry;
    }
    const char **keys = arena_array(arena, map->count, sizeof *keys);
    for (uint32_t i = 0; i < map->count; i++) keys[i] = map->entries[i].key;
    const char *nearest = diag_nearest(part, keys, map->count);
    if (nearest)
        diag_error(diag, loc, "there is no key '%s' here; did you mean '%s'?", part, nearest);
    else
        diag_error(diag, loc, "there is no key '%s' here", part);
    return NULL;
}

bool yaml_override(Arena *arena, Yaml *root, const char *override, Diag *diag)
{
    const char *text = arena_strdup(diag->arena, override);
    const Source *source = diag_add_source(diag, "--set", text, strlen(text));
    const char *equals = strchr(text, '=');
    if (!equals)
        return diag_error(diag, (Loc){source, 1, 1}, "must be KEY=VALUE, as in layers.0.dim=96");
    Yaml *value = yaml_parse(arena, source, (size_t)(equals - text) + 1, diag);
    if (!value) return false;

    Yaml *at = root;
    for (const char *part = text;;) {
        size_t length = strcspn(part, ".=");
        bool last = part + length == equals;
        const char *name = arena_strndup(arena, part, length);
        Loc loc = {source, 1, count_characters(text, (size_t)(part - text)) + 1};
        if (length == 0) return diag_error(diag, loc, "a key is missing here");
        if (at->kind == YAML_TEXT)
            return diag_error(diag, loc, "there is no '%s' in a single value", name);
        YamlEntry *entry = at->kind == YAML_LIST ? find_index(at, name, loc, diag)
                                                 : find_key(arena, at, name, last, loc, diag);
        if (!entry) return false;
        if (last) {
            entry->value = value;
            return true;
        }
        at = entry->value;
        part += length + 1;
    }
}
