/* pickle.h: what a pickle describes, as data.
 *
 * Nothing of a pickle is ever executed: a call is a node that names a function out of a closed list
 * and holds the arguments; torchfile.c looks at both. */
#ifndef RAFT_PICKLE_H
#define RAFT_PICKLE_H

#include "runtime/rt.h"

typedef enum PickleKind {
    PICKLE_NONE,
    PICKLE_BOOL,
    PICKLE_INTEGER,
    PICKLE_OTHER, /* a float, bytes, ...: the value is not kept */
    PICKLE_TEXT,
    PICKLE_TUPLE,
    PICKLE_LIST,
    PICKLE_DICT,      /* items: key, value, key, value, ... in their order */
    PICKLE_GLOBAL,    /* a function or class */
    PICKLE_CALL,      /* items: the global, the tuple of arguments */
    PICKLE_PERSISTENT /* items: what identifies an object outside the pickle */
} PickleKind;

typedef enum PickleRole {
    ROLE_DICT,
    ROLE_TENSOR,
    ROLE_PARAMETER,
    ROLE_TYPED, /* a tensor of a given class */
    ROLE_STORAGE,
    ROLE_OBJECT /* of no interest */
} PickleRole;

typedef struct PickleGlobal {
    const char *module, *name;
    PickleRole role;
    RaftDType dtype;   /* of a storage */
    int element_bytes; /* likewise */
} PickleGlobal;

typedef struct PickleValue PickleValue;

typedef struct PickleList {
    PickleValue **item;
    uint32_t count, capacity;
} PickleList;

struct PickleValue {
    PickleKind kind;
    uint32_t offset; /* of the opcode that made it */
    union {
        int64_t integer; /* and bool */
        const char *text;
        const PickleGlobal *global;
        PickleList list;
    };
};

typedef struct Pickle {
    const PickleValue *root;
    PickleList persistent; /* all of that kind */
    size_t size;           /* bytes read; others may follow */
} Pickle;

/* Reads one pickle of protocol 2 to 5 from the front of `data`; offsets in messages count from `base`.
 * What it returns lives in `arena`. */
RaftStatus rt_pickle_read(const char *path, const uint8_t *data, size_t size, size_t base,
                          RtArena *arena, Pickle *pickle, RaftError *error);

/* The storage that holds elements of this type; NULL where none does. */
const PickleGlobal *rt_pickle_storage(RaftDType dtype);

#endif
