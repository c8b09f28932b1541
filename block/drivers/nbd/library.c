#include "block/drivers/nbd/library.h"
#include "block/aio/io.h"
#include "block/util/error.h"
#include <dlfcn.h>

LibNbd libnbd;

static const struct {
    const char *symbol;
    size_t offset;
} functions[] = {
#define LIBNBD_FUNCTION(name) {"nbd_" #name, offsetof(LibNbd, name)},
    LIBNBD_FUNCTIONS(LIBNBD_FUNCTION)
#undef LIBNBD_FUNCTION
};

typedef struct Load {
    LibNbd lib;
    char *cause; /* of a failure: malloc'ed by the worker */
} Load;

static int load_on_worker(void *opaque)
{
    Load *load = opaque;
    void *handle = dlopen("libnbd.so.0", RTLD_NOW | RTLD_LOCAL);

    for (size_t i = 0; handle && i < G_N_ELEMENTS(functions); i++) {
        void *symbol = dlsym(handle, functions[i].symbol);
        if (!symbol) {
            load->cause = g_strdup(dlerror());
            dlclose(handle);
            return -1;
        }
        memcpy((char *)&load->lib + functions[i].offset, &symbol, sizeof(symbol));
    }
    if (!handle)
        load->cause = g_strdup(dlerror());
    return handle ? 0 : -1;
}

bool nbdc_library_co_load(GError **error)
{
    Load load = {0};

    if (libnbd.create)
        return true;
    if (aio_co_worker(load_on_worker, &load) < 0) {
        error_set(error, "Driver 'nbd' needs the library libnbd, which could not be loaded: %s", load.cause);
        g_free(load.cause);
        return false;
    }
    libnbd = load.lib; /* two at once get the same */
    return true;
}
