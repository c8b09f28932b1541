/*
 * The JSON parser: a state machine that takes one byte after the other and can stop anywhere.
 *
 * Two small machines work together. The lexer (lex) collects strings and words: numbers and keywords are both runs of
 * the characters that words are made of, told apart when they end. The grammar (expect) says which token may come next;
 * nesting is an explicit stack. Containers are hung up in their parent when they open, so the root always owns all.
 */
#include "block/util/error.h"
#include "qapi/rt/json.h"
#include <errno.h>
#include <string.h>

typedef enum Lex {
    LEX_IDLE,
    LEX_STRING,
    LEX_ESCAPE,  /* after the backslash */
    LEX_UNICODE, /* in the four digits of \uXXXX */
    LEX_WORD,
} Lex;

typedef enum Expect {
    EXPECT_VALUE,
    EXPECT_VALUE_OR_END, /* after '[' */
    EXPECT_KEY,
    EXPECT_KEY_OR_END, /* after '{' */
    EXPECT_COLON,
    EXPECT_SEPARATOR, /* ',' or the end of the container */
    EXPECT_NOTHING,   /* the value is complete */
} Expect;

struct JsonStream {
    GByteArray *in; /* fed; up to in_pos used up */
    size_t in_pos;
    char last; /* the last byte used up */

    Lex lex;
    Expect expect;
    Tree *root;
    int depth;
    Tree *stack[JSON_MAX_DEPTH]; /* the open containers, owned by the root */
    char *key;                   /* of the member whose value comes next */
    size_t size;                 /* bytes since the value began */
    guint tokens;                /* since the value began */

    GString *token;  /* the string or word so far */
    char quote;      /* what ends the string */
    bool plain;      /* the string has been ASCII so far */
    unsigned unit;   /* digits of \uXXXX so far */
    int unit_digits; /* how many */
    unsigned high;   /* a high surrogate that waits for the low one; 0: none */

    bool skipping; /* after an error, up to the next likely start */
    int64_t nest;  /* open brackets meanwhile */
    char skip_quote;
    bool skip_backslash;
    bool line_start;
};

static bool fail(GError **error, const char *format, ...) G_GNUC_PRINTF(2, 3);
static bool fail(GError **error, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *reason = g_strdup_vprintf(format, args);
    va_end(args);
    return error_set(error, "JSON parse error, %s", reason);
}

static bool is_space(uint8_t c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static bool is_word(uint8_t c)
{
    return g_ascii_isalnum(c) || c == '+' || c == '-' || c == '.' || c == '_';
}

/* ---- the grammar ------------------------------------------------------------------------------------------------ */

static void forget_value(JsonStream *s)
{
    g_clear_pointer(&s->root, tree_unref);
    g_clear_pointer(&s->key, g_free);
    s->lex = LEX_IDLE;
    s->expect = EXPECT_VALUE;
    s->depth = 0;
    s->size = 0;
    s->tokens = 0;
    s->high = 0;
    g_string_truncate(s->token, 0);
}

static bool count_token(JsonStream *s, GError **error)
{
    return ++s->tokens <= JSON_MAX_TOKENS ||
           error_set(error, "JSON value has more than %d tokens", (int)JSON_MAX_TOKENS);
}

static bool in_object(const JsonStream *s)
{
    return tree_is_object(s->stack[s->depth - 1]);
}

static bool may_have_value(const JsonStream *s, GError **error)
{
    switch (s->expect) {
    case EXPECT_VALUE:
    case EXPECT_VALUE_OR_END:
        return true;
    case EXPECT_KEY:
    case EXPECT_KEY_OR_END:
        return fail(error, "key is not a string in object");
    case EXPECT_COLON:
        return fail(error, "missing : in object pair");
    default:
        return fail(error, "expected separator in %s", in_object(s) ? "dict" : "list");
    }
}

/* Hangs a value up where it belongs; the grammar allowed it already. */
static void add_value(JsonStream *s, Tree *tree)
{
    if (s->depth == 0) {
        s->root = tree;
        s->expect = EXPECT_NOTHING;
        return;
    }
    if (in_object(s)) {
        tree_set(s->stack[s->depth - 1], s->key, tree);
        g_clear_pointer(&s->key, g_free);
    } else {
        tree_add(s->stack[s->depth - 1], tree);
    }
    s->expect = EXPECT_SEPARATOR;
}

static bool open_container(JsonStream *s, bool object, GError **error)
{
    if (!may_have_value(s, error) || !count_token(s, error))
        return false;
    if (s->depth == JSON_MAX_DEPTH)
        return error_set(error, "JSON value is nested deeper than %d levels", (int)JSON_MAX_DEPTH);
    Tree *container = object ? tree_object() : tree_list();
    add_value(s, container);
    s->stack[s->depth++] = container;
    s->expect = object ? EXPECT_KEY_OR_END : EXPECT_VALUE_OR_END;
    return true;
}

static bool close_container(JsonStream *s, char bracket, GError **error)
{
    if (s->depth == 0)
        return fail(error, "stray '%c'", bracket);
    if (s->expect == EXPECT_COLON)
        return fail(error, "missing : in object pair");
    bool object = in_object(s);
    if (object != (bracket == '}'))
        return fail(error, "'%c' where '%c' is expected", bracket, object ? '}' : ']');
    if (s->expect == EXPECT_VALUE)
        return fail(error, "expecting value");
    if (s->expect == EXPECT_KEY)
        return fail(error, "key is not a string in object");
    s->depth--;
    s->expect = s->depth ? EXPECT_SEPARATOR : EXPECT_NOTHING;
    return count_token(s, error);
}

static bool separator(JsonStream *s, GError **error)
{
    if (s->expect != EXPECT_SEPARATOR)
        return s->expect == EXPECT_COLON ? fail(error, "missing : in object pair") : fail(error, "expecting value");
    s->expect = in_object(s) ? EXPECT_KEY : EXPECT_VALUE;
    return count_token(s, error);
}

static bool colon(JsonStream *s, GError **error)
{
    if (s->expect != EXPECT_COLON)
        return fail(error, "stray ':'");
    s->expect = EXPECT_VALUE;
    return count_token(s, error);
}

/* ---- strings and words ------------------------------------------------------------------------------------------ */

static bool end_string(JsonStream *s, GError **error)
{
    s->lex = LEX_IDLE;
    if (!s->plain && !g_utf8_validate_len(s->token->str, s->token->len, NULL))
        return fail(error, "invalid UTF-8 sequence in string");
    if (s->expect == EXPECT_KEY || s->expect == EXPECT_KEY_OR_END) {
        const Tree *object = s->stack[s->depth - 1];
        if (tree_get(object, s->token->str))
            return fail(error, "duplicate key");
        if (tree_size(object) >= JSON_MAX_MEMBERS)
            return error_set(error, "JSON object has more than %d members", (int)JSON_MAX_MEMBERS);
        s->key = g_strndup(s->token->str, s->token->len);
        s->expect = EXPECT_COLON;
        return true;
    }
    add_value(s, tree_string(s->token->str));
    return true;
}

/* Does the word follow the grammar of numbers? Tells whether it has a fraction or an exponent. */
static bool is_number(const char *p, bool *fractional)
{
    *fractional = false;
    p += *p == '-';
    if (!g_ascii_isdigit(*p) || (*p == '0' && g_ascii_isdigit(p[1])))
        return false;
    p += strspn(p, "0123456789");
    if (*p == '.') {
        *fractional = true;
        size_t digits = strspn(++p, "0123456789");
        if (!digits)
            return false;
        p += digits;
    }
    if (*p == 'e' || *p == 'E') {
        *fractional = true;
        p++;
        p += *p == '-' || *p == '+';
        size_t digits = strspn(p, "0123456789");
        if (!digits)
            return false;
        p += digits;
    }
    return *p == 0;
}

static Tree *parse_number(const char *text, GError **error)
{
    bool fractional;
    if (!is_number(text, &fractional)) {
        fail(error, "malformed number '%s'", text);
        return NULL;
    }
    errno = 0;
    if (fractional) {
        double value = g_ascii_strtod(text, NULL);
        if (value - value == 0)
            return tree_double(value);
    } else {
        int64_t value = g_ascii_strtoll(text, NULL, 10);
        if (errno == 0)
            return tree_int(value);
        errno = 0;
        uint64_t natural = g_ascii_strtoull(text, NULL, 10);
        if (errno == 0 && *text != '-')
            return tree_uint(natural);
    }
    error_set(error, "JSON number '%s' is out of range", text);
    return NULL;
}

static bool end_word(JsonStream *s, GError **error)
{
    const char *text = s->token->str;
    s->lex = LEX_IDLE;
    Tree *value;
    if (!strcmp(text, "true") || !strcmp(text, "false")) {
        value = tree_bool(*text == 't');
    } else if (!strcmp(text, "null")) {
        value = tree_null();
    } else if (g_ascii_isalpha(*text) || *text == '_') {
        return fail(error, "invalid keyword '%s'", text);
    } else {
        value = parse_number(text, error);
        if (!value)
            return false;
    }
    add_value(s, value);
    return true;
}

static bool begin_string(JsonStream *s, char quote, GError **error)
{
    bool key = s->expect == EXPECT_KEY || s->expect == EXPECT_KEY_OR_END;
    if ((!key && !may_have_value(s, error)) || !count_token(s, error))
        return false;
    s->lex = LEX_STRING;
    s->quote = quote;
    s->plain = true;
    g_string_truncate(s->token, 0);
    return true;
}

static bool begin_word(JsonStream *s, GError **error)
{
    if (!may_have_value(s, error) || !count_token(s, error))
        return false;
    s->lex = LEX_WORD;
    g_string_truncate(s->token, 0);
    return true;
}

static bool lone_surrogate(JsonStream *s, unsigned unit, GError **error)
{
    s->high = 0;
    return fail(error, "\\u%04x is not a valid Unicode character", unit);
}

static bool end_unicode(JsonStream *s, GError **error)
{
    gunichar c = s->unit;
    s->lex = LEX_STRING;
    if (s->high) {
        if (c < 0xdc00 || c > 0xdfff)
            return lone_surrogate(s, s->high, error);
        c = 0x10000 + ((s->high - 0xd800) << 10) + (c - 0xdc00);
        s->high = 0;
    } else if (c >= 0xd800 && c <= 0xdbff) {
        s->high = c;
        return true;
    } else if (c == 0 || (c >= 0xdc00 && c <= 0xdfff)) {
        return lone_surrogate(s, c, error);
    }
    g_string_append_unichar(s->token, c);
    return true;
}

static bool escape(JsonStream *s, uint8_t c, GError **error)
{
    static const char from[] = "\"\\/'bfnrt", to[] = "\"\\/'\b\f\n\r\t";
    if (c == 'u') {
        s->lex = LEX_UNICODE;
        s->unit = 0;
        s->unit_digits = 0;
        return true;
    }
    if (s->high)
        return lone_surrogate(s, s->high, error);
    const char *found = c ? strchr(from, c) : NULL;
    if (!found)
        return fail(error, "invalid escape sequence in string");
    g_string_append_c(s->token, to[found - from]);
    s->lex = LEX_STRING;
    return true;
}

/* ---- bytes: each takes some of them and says how many, also where it fails -------------------------------------- */

static bool string_bytes(JsonStream *s, const uint8_t *p, size_t n, size_t *used, GError **error)
{
    size_t i = 0;
    while (i < n && p[i] != (uint8_t)s->quote && p[i] != '\\' && p[i] >= ' ') {
        s->plain = s->plain && p[i] < 0x80;
        i++;
    }
    *used = i;
    if (i && s->high)
        return lone_surrogate(s, s->high, error);
    g_string_append_len(s->token, (const char *)p, (gssize)i);
    if (i == n)
        return true;
    if (p[i] < ' ')
        return fail(error, "control character 0x%02x in string", p[i]);
    *used = i + 1;
    if (p[i] == '\\') {
        s->lex = LEX_ESCAPE;
        return true;
    }
    s->lex = s->high ? LEX_IDLE : s->lex;
    return s->high ? lone_surrogate(s, s->high, error) : end_string(s, error);
}

static bool unicode_byte(JsonStream *s, uint8_t c, GError **error)
{
    if (!g_ascii_isxdigit(c)) {
        s->lex = LEX_STRING;
        return fail(error, "invalid escape sequence in string");
    }
    s->unit = s->unit * 16 + (unsigned)g_ascii_xdigit_value((char)c);
    return ++s->unit_digits < 4 || end_unicode(s, error);
}

static bool word_bytes(JsonStream *s, const uint8_t *p, size_t n, size_t *used, GError **error)
{
    size_t i = 0;
    while (i < n && is_word(p[i]))
        i++;
    *used = i;
    if (s->token->len + i > JSON_MAX_WORD)
        return fail(error, "a number or keyword is longer than %d characters", (int)JSON_MAX_WORD);
    g_string_append_len(s->token, (const char *)p, (gssize)i);
    return i == n || end_word(s, error);
}

static bool idle_byte(JsonStream *s, uint8_t c, size_t *used, GError **error)
{
    *used = 0;
    if (is_word(c))
        return begin_word(s, error);
    bool ok;
    switch (c) {
    case '{':
    case '[':
        ok = open_container(s, c == '{', error);
        break;
    case '}':
    case ']':
        ok = close_container(s, (char)c, error);
        break;
    case ',':
        ok = separator(s, error);
        break;
    case ':':
        ok = colon(s, error);
        break;
    case '"':
    case '\'':
        ok = begin_string(s, (char)c, error);
        break;
    default:
        ok = g_ascii_isprint(c) ? fail(error, "stray '%c'", c) : fail(error, "stray byte 0x%02x", c);
    }
    *used = ok ? 1 : 0;
    return ok;
}

/* Takes some bytes of a value, at least one unless it fails or a word just ended before them. */
static bool value_bytes(JsonStream *s, const uint8_t *p, size_t n, size_t *used, GError **error)
{
    *used = 1;
    switch (s->lex) {
    case LEX_STRING:
        return string_bytes(s, p, n, used, error);
    case LEX_ESCAPE:
        return escape(s, *p, error);
    case LEX_UNICODE:
        return unicode_byte(s, *p, error);
    case LEX_WORD:
        return word_bytes(s, p, n, used, error);
    case LEX_IDLE:
        break;
    }
    size_t i = 0;
    while (i < n && is_space(p[i]))
        i++;
    *used = i;
    return i || idle_byte(s, *p, used, error);
}

/* Parses until the value is complete, an error, or the end of input; *@used counts also what an error took. */
static bool parse_bytes(JsonStream *s, const uint8_t *p, size_t n, size_t *used, GError **error)
{
    *used = 0;
    while (*used < n && s->expect != EXPECT_NOTHING) {
        size_t step = 0;
        size_t room = MIN(n - *used, (size_t)JSON_MAX_SIZE + 1 - s->size);
        bool ok = value_bytes(s, p + *used, room, &step, error);
        *used += step;
        if (!ok)
            return false;
        bool begun = s->depth > 0 || s->lex != LEX_IDLE || s->expect == EXPECT_NOTHING;
        s->size = begun ? s->size + step : 0;
        if (s->size > JSON_MAX_SIZE)
            return error_set(error, "JSON value is larger than %d bytes", (int)JSON_MAX_SIZE);
    }
    return true;
}

/* ---- after an error --------------------------------------------------------------------------------------------- */

static void begin_skipping(JsonStream *s)
{
    s->skipping = true;
    s->nest = s->depth;
    s->skip_quote = s->lex == LEX_STRING || s->lex == LEX_ESCAPE || s->lex == LEX_UNICODE ? s->quote : 0;
    s->skip_backslash = false;
    s->line_start = s->last == '\n';
    forget_value(s);
}

/* Skips one byte inside a string. A line's end is an end of the string: it cannot stand in one. */
static void skip_in_string(JsonStream *s, uint8_t c)
{
    if (c == '\n' || (c == (uint8_t)s->skip_quote && !s->skip_backslash))
        s->skip_quote = 0;
    s->skip_backslash = c == '\\' && !s->skip_backslash;
}

/* One byte of skipping; returns true when the byte starts the next value and was not taken. */
static bool skip_byte(JsonStream *s, uint8_t c)
{
    bool line_start = s->line_start;
    s->line_start = c == '\n';
    if (s->skip_quote) {
        skip_in_string(s, c);
        return false;
    }
    if (c == '{' && (line_start || s->nest <= 0))
        return true;
    if (c == '"' || c == '\'') {
        s->skip_quote = s->nest > 0 ? (char)c : 0;
        s->skip_backslash = false;
    } else if (c == '{' || c == '[') {
        s->nest++;
    } else if (c == '}' || c == ']') {
        s->skipping = --s->nest != 0;
    } else if (c == '\n' && s->nest <= 0) {
        s->skipping = false;
    }
    return false;
}

static void skip(JsonStream *s)
{
    while (s->skipping && s->in_pos < s->in->len) {
        if (skip_byte(s, s->in->data[s->in_pos])) {
            s->skipping = false;
            return;
        }
        s->last = (char)s->in->data[s->in_pos++];
    }
}

/* ---- the interface ---------------------------------------------------------------------------------------------- */

/* What grows leaves its old content behind, so both begin with room for what most requests need. */
enum { ROOM_AT_FIRST = 4096 };

JsonStream *json_stream_new(void)
{
    JsonStream *s = g_new0(JsonStream, 1);
    s->in = g_byte_array_sized_new(ROOM_AT_FIRST);
    s->token = g_string_sized_new(ROOM_AT_FIRST);
    return s;
}

void json_stream_wipe(JsonStream *s)
{
    if (s->in->len) /* what is behind in_pos is still to be parsed */
        explicit_bzero(s->in->data, s->in_pos);
    if (!s->token->len)
        explicit_bzero(s->token->str, s->token->allocated_len);
}

void json_stream_free(JsonStream *s)
{
    if (!s)
        return;
    forget_value(s);
    json_stream_wipe(s);
    g_byte_array_unref(s->in);
    g_string_free(s->token, TRUE);
    g_free(s);
}

void json_stream_feed(JsonStream *s, const void *bytes, size_t n)
{
    if (s->in_pos == s->in->len) {
        g_byte_array_set_size(s->in, 0);
        s->in_pos = 0;
    } else if (s->in_pos > s->in->len / 2) {
        g_byte_array_remove_range(s->in, 0, (guint)s->in_pos);
        s->in_pos = 0;
    }
    g_byte_array_append(s->in, bytes, (guint)n);
}

JsonStreamResult json_stream_next(JsonStream *s, Tree **ret, GError **error)
{
    skip(s);
    size_t used;
    bool ok = parse_bytes(s, s->in->data + s->in_pos, s->in->len - s->in_pos, &used, error);
    if (used) {
        s->in_pos += used;
        s->last = (char)s->in->data[s->in_pos - 1];
    }
    if (!ok) {
        begin_skipping(s);
        return JSON_STREAM_ERROR;
    }
    if (s->expect != EXPECT_NOTHING)
        return JSON_STREAM_NEED_MORE;
    *ret = g_steal_pointer(&s->root);
    forget_value(s);
    return JSON_STREAM_MESSAGE;
}

bool json_stream_pending(const JsonStream *s)
{
    return s->depth > 0 || s->lex != LEX_IDLE;
}

static bool parse_whole(JsonStream *s, const uint8_t *p, size_t n, GError **error)
{
    size_t used;
    if (!parse_bytes(s, p, n, &used, error))
        return false;
    if (s->lex == LEX_WORD && s->depth == 0 && !end_word(s, error))
        return false;
    if (s->expect != EXPECT_NOTHING)
        return fail(error, "premature end of input");
    while (used < n && is_space(p[used]))
        used++;
    return used == n || fail(error, "something follows the value");
}

Tree *json_parse(const char *text, gssize len, GError **error)
{
    g_autoptr(JsonStream) s = json_stream_new();
    size_t n = len < 0 ? strlen(text) : (size_t)len;
    return parse_whole(s, (const uint8_t *)text, n, error) ? g_steal_pointer(&s->root) : NULL;
}
