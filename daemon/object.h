/*
 * Objects: things with a name that are neither nodes, jobs nor exports and that those refer to. The kinds are those of
 * QMP's ObjectType; what a kind can do stands in one table (object.c).
 *
 * Loop's thread. Only making one may yield.
 */
#pragma once
#include "daemon/daemon.h"
#include "qapi/types.h"
#include "qapi/rt/tree.h"

typedef struct ObjectKind ObjectKind;

typedef struct Object {
    char *id; /* unique */
    const ObjectKind *kind;
    void *thing; /* the kind's */
} Object;

struct ObjectKind {
    ObjectType type;
    const QapiType *properties; /* the struct that object-add takes */
    /* Makes the thing; NULL with @error. */
    void *(*co_make)(Daemon *daemon, const ObjectOptions *options, GError **error);
    /* Is it referred to, so that it must stay? */
    bool (*in_use)(const void *thing);
    void (*free)(void *thing);
    /* The value of a property that exists; the caller's. NULL with @error: it is not for showing. */
    Tree *(*get)(const void *thing, const char *property, GError **error);
    bool (*set)(void *thing, const char *property, Tree *value, GError **error);
};

/* As object-add. */
bool object_co_add(Daemon *daemon, const ObjectOptions *options, GError **error);
bool object_del(Daemon *daemon, const char *id, GError **error);
/* Borrowed; NULL: there is none. */
Object *object_find(Daemon *daemon, const char *id);
/* "throttle-group" */
const char *object_kind_name(const ObjectKind *kind);
const ObjectKind *object_kind_find(const char *name);
/* Frees all of them: for the end, after the nodes. */
void objects_free(Daemon *daemon);

/* For the table of options: --object. */
bool object_co_apply(Daemon *daemon, void *value, GError **error);
