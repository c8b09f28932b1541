/*
 * Options from the command line or the configuration file.
 */
#include "qapi/rt/json.h"
#include "qapi/rt/keyval.h"
#include "qapi/types.h"
#include "qapi/rt/tree.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autofree char *text = g_strndup((const char *)data, size);
    g_autoptr(GError) error = NULL;
    g_autoptr(Tree) node = keyval_parse(text, "driver", &error);
    g_assert(!node == !!error);
    g_autoptr(GError) why = NULL;
    g_autoptr(BlockdevOptions) options = qapi_decode_option_BlockdevOptions(text, "driver", &why);
    g_assert(!options == !!why);
    if (options) {
        /* What options decode to, JSON can say as well. */
        g_autoptr(Tree) encoded = qapi_encode_BlockdevOptions(options);
        g_autoptr(BlockdevOptions) again = qapi_decode_BlockdevOptions(encoded, NULL);
        g_assert(qapi_equal_BlockdevOptions(options, again));
    }
    return 0;
}
