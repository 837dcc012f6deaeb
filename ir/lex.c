/* lex.c: cuts the text form of the IR into tokens, and the steps that parsing is made of. */
#include "ir/private.h"

#include <stdlib.h>
#include <string.h>

static bool is_digit(int byte)
{
    return byte >= '0' && byte <= '9';
}

static bool begins_word(int byte)
{
    return (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z') || byte == '_';
}

static bool continues_name(int byte)
{
    return begins_word(byte) || is_digit(byte) || byte == '.';
}

/* The byte `ahead` of the position, or -1 past the end. */
static int peek(const Lexer *lexer, size_t ahead)
{
    size_t left = lexer->source->size - lexer->position;
    return ahead < left ? (unsigned char)lexer->source->text[lexer->position + ahead] : -1;
}

static void step(Lexer *lexer)
{
    int byte = peek(lexer, 0);
    lexer->position++;
    if (byte == '\n') {
        lexer->loc.line++;
        lexer->loc.column = 1;
    } else if ((peek(lexer, 0) & 0xc0) != 0x80) {
        lexer->loc.column++; /* columns count characters: the rest of one in UTF-8 adds nothing */
    }
}

static void skip_blanks(Lexer *lexer)
{
    for (int byte; (byte = peek(lexer, 0)) >= 0;) {
        if (byte == '#')
            while (peek(lexer, 0) >= 0 && peek(lexer, 0) != '\n') step(lexer);
        else if (byte == ' ' || byte == '\t' || byte == '\n' || byte == '\r')
            step(lexer);
        else
            return;
    }
}

static void step_while(Lexer *lexer, bool (*wanted)(int))
{
    while (wanted(peek(lexer, 0))) step(lexer);
}

static int lex_number(Lexer *lexer)
{
    step_while(lexer, is_digit);
    if (peek(lexer, 0) == '.' && is_digit(peek(lexer, 1))) {
        step(lexer);
        step_while(lexer, is_digit);
    }
    if (peek(lexer, 0) == 'e' || peek(lexer, 0) == 'E') {
        size_t sign = peek(lexer, 1) == '-' || peek(lexer, 1) == '+';
        if (is_digit(peek(lexer, 1 + sign))) {
            for (size_t i = 0; i < 1 + sign; i++) step(lexer);
            step_while(lexer, is_digit);
        }
    }
    return TOKEN_NUMBER;
}

static int lex_punctuation(Lexer *lexer)
{
    int byte = peek(lexer, 0);
    step(lexer);
    if (byte == '%' || byte == '@') {
        if (!continues_name(peek(lexer, 0))) return TOKEN_BAD;
        step_while(lexer, continues_name);
        return byte == '%' ? TOKEN_VALUE : TOKEN_NAME;
    }
    if (byte == '-' && peek(lexer, 0) == '>') {
        step(lexer);
        return TOKEN_ARROW;
    }
    return byte != 0 && strchr("{}()[],:=*+-/$", byte) ? byte : TOKEN_BAD;
}

void lex_next(Lexer *lexer)
{
    skip_blanks(lexer);
    size_t begin = lexer->position;
    Token *token = &lexer->token;
    token->text = lexer->source->text + begin;
    token->loc = lexer->loc;
    int byte = peek(lexer, 0);
    if (byte < 0) {
        token->kind = TOKEN_END;
    } else if (begins_word(byte)) {
        step_while(lexer, continues_name);
        token->kind = TOKEN_WORD;
    } else if (is_digit(byte)) {
        token->kind = lex_number(lexer);
    } else {
        token->kind = lex_punctuation(lexer);
    }
    token->length = lexer->position - begin;
}

Lexer lex_new(const Source *source, Diag *diag)
{
    Lexer lexer = {.source = source, .diag = diag, .loc = {source, 1, 1}};
    lex_next(&lexer);
    return lexer;
}

/* ---- parsing one token ----------------------------------------------------------------------- */

enum { SHOWN = 32 }; /* characters of a token that a message repeats */

int lex_shown(Token token)
{
    return token.length < SHOWN ? (int)token.length : SHOWN;
}

bool lex_expected(const Lexer *lexer, const char *what)
{
    Token token = lexer->token;
    if (token.kind == TOKEN_END)
        return diag_error(lexer->diag, token.loc, "expected %s, found the end of the file", what);
    unsigned char first = (unsigned char)token.text[0];
    if (first <= ' ' || first > '~')
        return diag_error(lexer->diag, token.loc, "expected %s, found byte 0x%02x", what, first);
    return diag_error(lexer->diag, token.loc, "expected %s, found '%.*s'", what, lex_shown(token),
                      token.text);
}

bool lex_is(const Lexer *lexer, int kind)
{
    return lexer->token.kind == kind;
}

bool lex_accept(Lexer *lexer, int kind)
{
    if (!lex_is(lexer, kind)) return false;
    lex_next(lexer);
    return true;
}

bool lex_expect(Lexer *lexer, int kind, const char *what)
{
    return lex_accept(lexer, kind) || lex_expected(lexer, what);
}

bool lex_accept_word(Lexer *lexer, const char *word)
{
    Token token = lexer->token;
    if (token.kind != TOKEN_WORD || token.length != strlen(word) ||
        memcmp(token.text, word, token.length) != 0)
        return false;
    lex_next(lexer);
    return true;
}

bool lex_expect_word(Lexer *lexer, const char *word)
{
    return lex_accept_word(lexer, word) ||
           lex_expected(lexer, arena_printf(lexer->diag->arena, "'%s'", word));
}

bool lex_choice(Lexer *lexer, const char *what, const char *const *words, int count, int *choice)
{
    Token token = lexer->token;
    for (*choice = 0; *choice < count; ++*choice)
        if (lex_accept_word(lexer, words[*choice])) return true;
    const char *word = arena_strndup(lexer->diag->arena, token.text, (size_t)lex_shown(token));
    const char *nearest = diag_nearest(word, words, (size_t)count);
    if (!nearest) return lex_expected(lexer, what);
    return diag_error(lexer->diag, token.loc, "expected %s, found '%s': did you mean '%s'?", what,
                      word, nearest);
}

bool lex_integer(Lexer *lexer, int64_t *value)
{
    Token token = lexer->token;
    if (token.kind != TOKEN_NUMBER) return lex_expected(lexer, "an integer");
    *value = 0;
    for (size_t i = 0; i < token.length; i++) {
        if (token.text[i] < '0' || token.text[i] > '9') return lex_expected(lexer, "an integer");
        if (__builtin_mul_overflow(*value, 10, value) ||
            __builtin_add_overflow(*value, token.text[i] - '0', value))
            return diag_error(lexer->diag, token.loc, "the number does not fit 64 bits");
    }
    lex_next(lexer);
    return true;
}

bool lex_double(Lexer *lexer, double *value)
{
    Token token = lexer->token;
    char digits[64];
    if (token.kind != TOKEN_NUMBER) return lex_expected(lexer, "a number");
    if (token.length >= sizeof digits)
        return diag_error(lexer->diag, token.loc, "a number has at most %zu characters",
                          sizeof digits - 1);
    memcpy(digits, token.text, token.length);
    digits[token.length] = '\0';
    *value = strtod(digits, NULL);
    lex_next(lexer);
    return true;
}
