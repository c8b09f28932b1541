/*
 * How the engine finds its way around in a value. Internal to qapi/rt.
 */
#pragma once
#include "qapi/rt/type.h"

static inline void *qapi_at(void *value, size_t offset)
{
    return (char *)value + offset;
}

static inline const void *qapi_at_const(const void *value, size_t offset)
{
    return (const char *)value + offset;
}

/* Bytes that a member or list element of this type takes. */
static inline size_t qapi_step(const QapiType *type)
{
    return qapi_is_pointer(type) ? sizeof(void *) : type->size;
}

/* The branch that a union's tag chooses; NULL: it adds nothing. */
static inline const QapiType *qapi_branch(const QapiType *type, const void *value)
{
    unsigned tag = *(const unsigned *)qapi_at_const(value, type->tag->offset);
    return tag < type->tag->type->max ? type->branches[tag] : NULL;
}

/* The branch that an alternate holds; NULL when it holds a null. */
static inline const QapiMember *qapi_alternative(const QapiType *type, const void *value)
{
    unsigned kind = *(const unsigned *)value;
    const QapiMember *m = kind < type->n_members ? &type->members[kind] : NULL;
    return m && m->type->kind != QAPI_KIND_NULL ? m : NULL;
}

/* Encodes the member, element or return value of this type that lies at @at. */
Tree *qapi_encode_at(const QapiType *type, const void *at);
