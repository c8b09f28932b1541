/*
 * What query-qmp-schema answers.
 */
#pragma once
#include "qapi/rt/type.h"

/* The array of SchemaInfo, made at build time; the caller owns the tree. */
Tree *qapi_introspect(void);

/* The generated text that it parses. */
extern const char qapi_introspection[];
extern const size_t qapi_introspection_len;
