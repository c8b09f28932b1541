/*
 * JSON text to trees and back.
 *
 * The parser is strict (RFC 8259, plus QEMU's single-quoted strings with \' in them), iterative and bounded: a value
 * has at most JSON_MAX_SIZE bytes, JSON_MAX_TOKENS tokens and JSON_MAX_DEPTH levels. Duplicate keys, invalid UTF-8,
 * lone surrogates, \u0000, and numbers that are malformed or out of range are errors. Integers are int64_t or uint64_t,
 * numbers with a fraction or exponent are doubles.
 *
 * Nothing here yields. A JsonStream belongs to one session; calls on it must not overlap.
 */
#pragma once
#include "qapi/rt/type.h"

enum {
    JSON_MAX_DEPTH = 256,
    JSON_MAX_SIZE = 4 * 1024 * 1024,
    JSON_MAX_TOKENS = 256 * 1024,
    JSON_MAX_MEMBERS = 8192, /* of one object: bounds what a collision of hashes can cost */
    JSON_MAX_WORD = 512,     /* characters of a number or keyword */
};

/* Parses exactly one value. @len -1: the text ends with a zero byte. The caller owns the tree; NULL sets @error. */
Tree *json_parse(const char *text, gssize len, GError **error);

/* ---- streams of values: a QMP session's input ------------------------------------------------------------------- */

typedef struct JsonStream JsonStream;

typedef enum JsonStreamResult {
    JSON_STREAM_MESSAGE,   /* *ret is a value, the caller's */
    JSON_STREAM_ERROR,     /* @error is set; go on calling json_stream_next() */
    JSON_STREAM_NEED_MORE, /* all that was fed is used up */
} JsonStreamResult;

JsonStream *json_stream_new(void);
void json_stream_free(JsonStream *stream);
/* Overwrites what was parsed and is still in its buffers. */
void json_stream_wipe(JsonStream *stream);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(JsonStream, json_stream_free)

/*
 * Adds received bytes, which are copied. Values may be split anywhere. Take out what there is with json_stream_next()
 * before feeding more: then memory stays within one value and one read.
 */
void json_stream_feed(JsonStream *stream, const void *bytes, size_t n);

/*
 * The next value or error. A value at the top level that is no object, array or string ends at the byte after it.
 *
 * An error is reported once and at the byte that causes it; then input is skipped up to where the next value is likely
 * to start: past the bracket that closes the value in error, or at a '{' that begins a line, whichever comes first; for
 * garbage between values, after the line or at the next '{'. So one bad command costs one error, also when it spans
 * lines, and a client that forgot a bracket is heard again with its next line.
 */
JsonStreamResult json_stream_next(JsonStream *stream, Tree **ret, GError **error);

/* At the end of input: is there an unfinished value? */
bool json_stream_pending(const JsonStream *stream);

/* ---- printing --------------------------------------------------------------------------------------------------- */

/*
 * Appends @tree as JSON, members in their order, on one line with a blank after ':' and ',' (as QEMU prints) or, with
 * @pretty, indented by four blanks. ASCII only: everything else is written as \uXXXX. Text that is not UTF-8 (a file
 * name, say) gets U+FFFD for the bad bytes. Non-finite doubles become null.
 */
void json_print(const Tree *tree, bool pretty, GString *out);

/* The same as a new string. */
char *json_to_str(const Tree *tree, bool pretty);
