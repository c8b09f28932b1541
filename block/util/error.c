#include "block/util/error.h"
#include <stdarg.h>

GQuark sd_error_quark(void)
{
    return g_quark_from_static_string("sd-error-quark");
}

static G_GNUC_PRINTF(3, 0) bool set_valist(GError **error, SdErrorClass cls, const char *fmt, va_list ap)
{
    if (error) {
        /* A second error over a first one is a bug of the caller; keep the first and let glib say so. */
        g_propagate_error(error, g_error_new_valist(SD_ERROR, cls, fmt, ap));
    }
    return false;
}

bool error_set(GError **error, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    set_valist(error, SD_ERROR_GENERIC, fmt, ap);
    va_end(ap);
    return false;
}

bool error_set_class(GError **error, SdErrorClass cls, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    set_valist(error, cls, fmt, ap);
    va_end(ap);
    return false;
}

bool error_set_errno(GError **error, int errnum, const char *fmt, ...)
{
    if (!error)
        return false;
    va_list ap;
    va_start(ap, fmt);
    g_autofree char *what = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    return error_set(error, "%s: %s", what, g_strerror(errnum));
}
