/*
 * JSON from a socket: the first byte says into what pieces the rest is cut. Whatever comes in, the stream must give the
 * same values and errors however it is cut, and each value must survive printing, parsing and decoding.
 */
#include "qapi/rt/json.h"
#include "qapi/types.h"
#include "qapi/rt/tree.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_value(Tree *node)
{
    g_autofree char *line = json_to_str(node, false);
    g_autofree char *pretty = json_to_str(node, true);
    g_autoptr(Tree) a = json_parse(line, -1, NULL);
    g_autoptr(Tree) b = json_parse(pretty, -1, NULL);
    if (!a || !b) {
        /* Escapes and blanks may have taken it over the limit of size, nothing else. */
        g_assert_cmpuint(strlen(pretty), >, JSON_MAX_SIZE);
        return;
    }
    g_autofree char *again = json_to_str(a, false);
    g_autofree char *from_pretty = json_to_str(b, false);
    g_assert_cmpstr(again, ==, line);
    g_assert_cmpstr(from_pretty, ==, line);

    g_autoptr(BlockdevOptions) options = qapi_decode_BlockdevOptions(node, NULL);
    g_autoptr(BlockdevOptions) copy = qapi_clone_BlockdevOptions(options);
    g_assert(qapi_equal_BlockdevOptions(options, copy));
    g_autoptr(SchemaInfoList) list = qapi_decode_SchemaInfoList(node, NULL);
    g_autoptr(SchemaInfoList) list_copy = qapi_clone_SchemaInfoList(list);
    g_assert(qapi_equal_SchemaInfoList(list, list_copy));
}

static GString *run(const uint8_t *data, size_t size, size_t piece, bool check)
{
    g_autoptr(JsonStream) stream = json_stream_new();
    GString *log = g_string_new(NULL);
    for (size_t at = 0; at < size; at += piece) {
        json_stream_feed(stream, data + at, MIN(piece, size - at));
        for (;;) {
            g_autoptr(Tree) node = NULL;
            g_autoptr(GError) error = NULL;
            JsonStreamResult result = json_stream_next(stream, &node, &error);
            if (result == JSON_STREAM_NEED_MORE)
                break;
            g_assert((result == JSON_STREAM_ERROR) == (error != NULL));
            if (error) {
                g_string_append(log, error->message);
            } else {
                json_print(node, false, log);
                if (check)
                    check_value(node);
            }
            g_string_append_c(log, '\n');
        }
    }
    g_string_append(log, json_stream_pending(stream) ? "pending" : "");
    return log;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    size_t piece = *data;
    data++;
    size--;
    GString *whole = run(data, size, size ? size : 1, true);
    GString *cut = run(data, size, piece ? piece : 1, false);
    g_assert_cmpstr(whole->str, ==, cut->str);
    g_string_free(whole, TRUE);
    g_string_free(cut, TRUE);
    return 0;
}
