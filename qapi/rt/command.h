/*
 * Commands and events as the generated code declares them.
 */
#pragma once
#include "qapi/rt/type.h"

/* The session that a command came from. The dispatcher hands it through; daemon/ defines it. */
typedef struct QmpContext QmpContext;

typedef struct QapiCommand {
    const char *name;
    const QapiType *arg; /* NULL: takes no arguments */
    const QapiType *ret; /* NULL: returns {} */
    bool preconfig;      /* allowed before the capabilities are negotiated */
    /* Calls the handler; @arg is a decoded value of .arg, @ret points at a C value of .ret (a pointer to one for kinds
     * reached through a pointer). */
    bool (*call_co_handler)(QmpContext *ctx, const void *arg, void *ret, GError **error);
} QapiCommand;

/* Finds a command in a table sorted by name; NULL: there is none. */
const QapiCommand *qapi_find_command(const QapiCommand *table, size_t n, const char *name);

/*
 * Decodes @arguments (an object, or NULL for none; not consumed), runs the handler and encodes what it returns into
 * *@ret (an empty object where the command returns nothing), which the caller owns. Yields as the handler does.
 */
bool qapi_co_dispatch(const QapiCommand *command, QmpContext *ctx, Tree *arguments, Tree **ret, GError **error);

/*
 * Where events go. @data is an object or NULL and belongs to the sink. Set once at start-up; without a sink events are
 * dropped. Loop's thread only.
 */
typedef void QapiEventSink(const char *name, Tree *data, void *opaque);
void qapi_set_event_sink(QapiEventSink *sink, void *opaque);

/* For the generated emitters: encodes @event (NULL where @type is NULL) and hands it to the sink. */
void qapi_emit(const char *name, const QapiType *type, const void *event);

/* The builtin types. */
extern const QapiType qapi_type_str, qapi_type_int, qapi_type_int32, qapi_type_uint64, qapi_type_uint32,
    qapi_type_uint16, qapi_type_uint8, qapi_type_size, qapi_type_bool, qapi_type_number, qapi_type_any, qapi_type_null;
