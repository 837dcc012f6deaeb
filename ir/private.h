/* private.h: what the files behind the text form and the verifier share among themselves.
 *
 *   Token   a word, number, value name or punctuation mark, with its place
 *   Lexer   a Source cut into tokens, one of look-ahead; copying it remembers a position
 */
#ifndef RAFTC_PRIVATE_H
#define RAFTC_PRIVATE_H

#include "ir/ir.h"

/* ---- lex.c ----------------------------------------------------------------------------------- */

/* A punctuation mark is its own kind: '(' and so on. */
enum {
    TOKEN_END = 256,
    TOKEN_BAD,    /* a byte that begins no token */
    TOKEN_WORD,   /* letter or _, then letters, digits, _ and . */
    TOKEN_NUMBER, /* digits, perhaps with fraction and exponent; no sign */
    TOKEN_VALUE,  /* %7 */
    TOKEN_NAME,   /* @levels.0.fn.0.fc.weight */
    TOKEN_ARROW,  /* -> */
};

typedef struct Token {
    int kind;
    const char *text; /* in the source; with the % or @ of a value or name */
    size_t length;
    Loc loc;
} Token;

typedef struct Lexer {
    const Source *source;
    Diag *diag;
    size_t position; /* of the first byte after `token`, */
    Loc loc;         /* and its place */
    Token token;     /* the next token to be parsed */
} Lexer;

Lexer lex_new(const Source *source, Diag *diag);
void lex_next(Lexer *lexer);
/* How much of a token's text a message repeats. */
int lex_shown(Token token);
/* Always false, with an error at the next token: "expected `what`, found ...". */
bool lex_expected(const Lexer *lexer, const char *what);
bool lex_is(const Lexer *lexer, int kind);
/* Takes the next token if it is of that kind, or is that word. */
bool lex_accept(Lexer *lexer, int kind);
bool lex_accept_word(Lexer *lexer, const char *word);
/* Likewise, or an error. */
bool lex_expect(Lexer *lexer, int kind, const char *what);
bool lex_expect_word(Lexer *lexer, const char *word);
/* Takes one of `words`; else the error names the nearest. */
bool lex_choice(Lexer *lexer, const char *what, const char *const *words, int count, int *choice);
bool lex_integer(Lexer *lexer, int64_t *value);
bool lex_double(Lexer *lexer, double *value);

/* ---- print.c --------------------------------------------------------------------------------- */

enum { DTYPE_COUNT = DTYPE_I32 + 1 };
extern const char *const dtype_names[DTYPE_COUNT];

/* The name of the kernel that begins with node `first`; takes time only for its own nodes. */
const char *kernel_name_from(const Graph *graph, NodeId first, Arena *arena);

/* ---- check.c --------------------------------------------------------------------------------- */

/* Always false: an error at the node's place that begins with its op. */
bool node_error(Diag *diag, const Node *node, const char *format, ...) PRINTF_LIKE(3, 4);
/* How many values a number with these digits takes, each once: the product of the extents, where
 * the weights are 1 and then each the product of the extents of lesser weight; else 0. A digit of
 * extent 1 is none. */
int64_t digits_product(int count, const int64_t *weight, const int64_t *extent);

#define OP(NAME, ...) CheckFunction check_##NAME;
#include "ir/op.def"
#undef OP

/* What the shape rules share; each gives false after an error at the node. */
const char *shown_type(Diag *diag, const Type *type);
bool expect_result(Diag *diag, const Node *node, const Type *expected);
bool expect_result_of_operand(const Graph *graph, NodeId id, Diag *diag);
/* `whose` says in the message whose type it is: "operand 1", "the result". */
bool has_axes(Diag *diag, const Node *node, const char *whose, const Type *type,
              const AxisNames *names);
/* Of the first operand. */
bool find_constant_axis(Diag *diag, const Node *node, const Type *x, const char *name, int *axis);
/* Axes of the same name in both have the same extent. */
bool extents_agree(Diag *diag, const Node *node, const Type *a, const Type *b);
/* Every axis of operand `number` is one of `whole`: it is broadcast along the others. */
bool is_part_of(const Graph *graph, const Node *node, int number, const Type *whole, Diag *diag);
/* `expected`, with the extent of one axis as the result declares it, if it does. */
void take_declared_extent(Type *expected, int axis, const Type *declared);
bool append_made_axis(Diag *diag, const Node *node, Type *type, const Axis *axis);

/* ---- verify.c -------------------------------------------------------------------------------- */

#define AXIS_NAME_RULE "letters, digits and _, first a letter, at most 15 in all"
bool is_axis_name(const char *text, size_t length);

#endif
