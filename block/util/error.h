/*
 * Errors of the control path: GError with one domain whose codes are the QMP error classes.
 *
 * LAW 7: a control-path function is `bool f(..., GError **error)`, false exactly when the error is set. Each setter
 * here returns false, so a refusal reads `return error_set(error, "...")`. The text names the object, its value and
 * the limit, without a final full stop. Data-path functions return 0 or -errno instead and never touch a GError.
 */
#pragma once
#include <glib.h>
#include <stdbool.h>

#define SD_ERROR (sd_error_quark())
GQuark sd_error_quark(void);

/* Codes of SD_ERROR. Errors of any other domain reach QMP clients as GenericError. */
typedef enum SdErrorClass {
    SD_ERROR_GENERIC,
    SD_ERROR_COMMAND_NOT_FOUND,
    SD_ERROR_DEVICE_NOT_ACTIVE,
    SD_ERROR_DEVICE_NOT_FOUND,
} SdErrorClass;

/* Sets a GenericError. @error may be NULL. Always returns false. */
bool error_set(GError **error, const char *fmt, ...) G_GNUC_PRINTF(2, 3);

/* Sets an error of class @cls. Always returns false. */
bool error_set_class(GError **error, SdErrorClass cls, const char *fmt, ...) G_GNUC_PRINTF(3, 4);

/* Sets a GenericError whose text is "FMT: strerror(errnum)"; @errnum is a positive errno. Always returns false. */
bool error_set_errno(GError **error, int errnum, const char *fmt, ...) G_GNUC_PRINTF(3, 4);
