/* raftc_options.h: what the two files behind the command line share. */
#ifndef RAFTC_OPTIONS_H
#define RAFTC_OPTIONS_H

#include "frontend/raftc.h"

typedef struct Parser {
    Arena *arena;
    Options *options;
    Diag *diag;
    int argc;
    char **argv;
    int next;    /* index of the argument to be read */
    bool *given; /* of each row of the table */
} Parser;

typedef struct Row Row;

/* Reads the value of an option (NULL: of a flag) into its member; false after an error. */
typedef bool ReadFunction(const Parser *parser, const Row *row, const char *value, void *member);

struct Row {
    const char *name;     /* NULL: a heading */
    const char *argument; /* as --help shows it; NULL: a flag; [=X]: it may be left out */
    unsigned verbs;
    ReadFunction *read;
    const char *words;   /* of a choice or a list: "f32|bf16" */
    int64_t least, most; /* of a number */
    size_t member;       /* offset in Options */
    const char *help;
};

/* Always false: an error of usage. */
#define wrong(parser, ...) diag_error((parser)->diag, (Loc){0}, __VA_ARGS__)

/* ---- raftc_values.c -------------------------------------------------------------------------- */

ReadFunction read_flag;          /* bool */
ReadFunction read_text;          /* const char *: not empty */
ReadFunction read_strings;       /* Strings: one more */
ReadFunction read_number;        /* int64_t: digits, within the row's limits */
ReadFunction read_time;          /* int64_t: milliseconds, given as 60s or 5m */
ReadFunction read_size;          /* int64_t: bytes, given as 600M or 2G */
ReadFunction read_choice;        /* int64_t: index of one of the row's words */
ReadFunction read_list;          /* int64_t: set of them, given with commas */
ReadFunction read_image;         /* height and width */
ReadFunction read_prefix;        /* const char *: a C name */
ReadFunction read_passes;        /* const char *: names of passes with commas, or nothing */
ReadFunction read_disabled;      /* Strings: the name of a pass that is not needed */
ReadFunction read_architectures; /* Architectures: sm_80,sm_90 */
ReadFunction read_dump;          /* const char *: the name of a pass, or all */

#endif
