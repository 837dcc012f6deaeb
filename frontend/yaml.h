/* yaml.h: YAML text as a tree, for settings.c. */
#ifndef RAFTC_YAML_H
#define RAFTC_YAML_H

#include "ir/base.h"

typedef struct Yaml Yaml;

typedef struct YamlEntry {
    const char *key; /* NULL in a list */
    Loc key_loc;
    Yaml *value;
} YamlEntry;

struct Yaml {
    enum { YAML_TEXT, YAML_LIST, YAML_MAP } kind;
    Loc loc;
    const char *text; /* of YAML_TEXT; never holds a zero byte */
    bool plain;       /* YAML_TEXT without quotes: may be a number, a bool or none */
    YamlEntry *entries;
    uint32_t count, capacity;
};

/* The one document in the text of `source` from byte `begin` on; an empty text gives an empty plain
 * YAML_TEXT. NULL with messages where the text is not YAML, and for what settings have no use for:
 * anchors, aliases, tags, merge keys, directives, a second document, keys given twice, keys that are
 * not text, more than 64 levels or 100,000 values. */
Yaml *yaml_parse(Arena *arena, const Source *source, size_t begin, Diag *diag);

/* The value of `key`, or NULL. */
const Yaml *yaml_find(const Yaml *map, const char *key);

/* Applies KEY=VALUE to the tree: KEY is a path of keys and indices with dots in between, VALUE is
 * YAML. The last part of the path may be a new key. Messages are about a source named --set. */
bool yaml_override(Arena *arena, Yaml *root, const char *override, Diag *diag);

#endif
