/*
 * The descriptors that the generator emits, one per schema type, and the engine that walks them.
 *
 * A value of kind STRUCT, ALTERNATE, LIST, STR or ANY is reached through a pointer wherever it is a member or a list
 * element; the branches of a union lie in the struct itself. All other kinds are stored by value, and where they are
 * optional a bool tells whether they are there. The generated header "qapi/types.h" wraps these functions per type
 * (the macros at the end of this file); nothing else should need them. Nothing here yields or keeps state: every
 * function may be called from anywhere.
 */
#pragma once
#include "qapi/rt/tree.h"
#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum QapiKind {
    QAPI_KIND_STR,
    QAPI_KIND_INT,  /* signed, of any width: .size and .min/.max tell */
    QAPI_KIND_UINT, /* unsigned, of any width */
    QAPI_KIND_BOOL,
    QAPI_KIND_NUMBER, /* double */
    QAPI_KIND_ENUM,
    QAPI_KIND_NULL,   /* has no C value: only a branch of an alternate */
    QAPI_KIND_ANY,    /* a tree as it came */
    QAPI_KIND_STRUCT, /* also unions: then .tag is set */
    QAPI_KIND_ALTERNATE,
    QAPI_KIND_LIST,
} QapiKind;

typedef struct QapiType QapiType;

/* One member of a struct, or one branch of an alternate (its offset is that of the union). */
typedef struct QapiMember {
    const char *name; /* as it stands in JSON */
    const QapiType *type;
    uint32_t offset;    /* of the value or the pointer to it */
    int32_t has_offset; /* of has_x; -1: required, or absent is told by NULL */
    bool optional;
    const char *preset; /* the schema's default, spelled as on the command line; NULL: none */
} QapiMember;

struct QapiType {
    QapiKind kind;
    const char *name;          /* the schema's; error texts show it */
    uint32_t size;             /* of the C value (what the pointer points at, for kinds reached through one) */
    bool suffixes;             /* UINT: a size, which takes K, M, G … on the command line */
    int64_t min;               /* INT */
    uint64_t max;              /* INT, UINT; ENUM: number of values */
    const char *const *values; /* ENUM */
    const QapiMember *members; /* STRUCT, ALTERNATE */
    uint32_t n_members;
    const QapiMember *tag;           /* STRUCT: the discriminator, one of .members; NULL: not a union */
    const QapiType *const *branches; /* STRUCT with tag: by enum value, NULL: nothing added */
    uint32_t branch_offset;          /* of the union in the struct */
    const QapiType *element;         /* LIST */
};

/* A list in C, whatever its element. */
typedef struct QapiList {
    size_t len;
    void *items;
} QapiList;

/* Adds @item to a list of any type, which takes it over; for short lists. */
#define QAPI_LIST_ADD(list, item)                                                                                      \
    do {                                                                                                               \
        (list)->items = g_realloc_n((list)->items, (list)->len + 1, sizeof(*(list)->items));                           \
        (list)->items[(list)->len++] = (item);                                                                         \
    } while (0)

/* Are members and elements of this type pointers? */
static inline bool qapi_is_pointer(const QapiType *type)
{
    return type->kind == QAPI_KIND_STR || type->kind >= QAPI_KIND_ANY;
}

typedef enum QapiSource {
    QAPI_SOURCE_JSON,   /* strict: a number is a number, a string a string */
    QAPI_SOURCE_KEYVAL, /* scalars may also be spelled as strings, as keyval_parse() gives them */
} QapiSource;

/*
 * Decodes @in as @type (STRUCT, ALTERNATE or LIST). Returns a new value for qapi_free(), or NULL with @error set,
 * naming the offending member by its dotted path. Unknown and missing members are errors, optional members with a
 * default get it. @in stays the caller's; "any" members hold references into it.
 */
void *qapi_decode(const QapiType *type, QapiSource source, Tree *in, GError **error);

/*
 * Decodes one command line option: key=value pairs as keyval_parse() reads them, or JSON (then decoded strictly) where
 * the text starts with '{' or "json:". @implied_key may be NULL.
 */
void *qapi_decode_option(const QapiType *type, const char *text, const char *implied_key, GError **error);

/* Encodes a value. A missing required string or list comes out empty. */
Tree *qapi_encode(const QapiType *type, const void *value);

/* Frees a value with all that it holds. NULL is fine, and so are half-filled values (zeroed where unfilled). */
void qapi_free(const QapiType *type, void *value);

/* A deep copy; "any" members are shared, so do not change them in place. NULL gives NULL. */
void *qapi_clone(const QapiType *type, const void *value);

/* Do both values encode to the same JSON? Two NULLs are equal. */
bool qapi_equal(const QapiType *type, const void *a, const void *b);

/* The name of an enum value, "?" when out of range; and back: -1 when there is no such name. */
const char *qapi_enum_str(const QapiType *type, int value);
int qapi_enum_find(const QapiType *type, const char *name);

/* What "qapi/types.h" declares for each type Foo: qapi_decode_Foo(), qapi_free_Foo() and so on, typed. */
#define QAPI_DEFINE_TYPE(Foo)                                                                                          \
    extern const QapiType qapi_type_##Foo;                                                                             \
    static inline void qapi_free_##Foo(Foo *value)                                                                     \
    {                                                                                                                  \
        qapi_free(&qapi_type_##Foo, value);                                                                            \
    }                                                                                                                  \
    static inline Foo *qapi_clone_##Foo(const Foo *value)                                                              \
    {                                                                                                                  \
        return (Foo *)qapi_clone(&qapi_type_##Foo, value);                                                             \
    }                                                                                                                  \
    static inline bool qapi_equal_##Foo(const Foo *a, const Foo *b)                                                    \
    {                                                                                                                  \
        return qapi_equal(&qapi_type_##Foo, a, b);                                                                     \
    }                                                                                                                  \
    static inline Foo *qapi_decode_##Foo(Tree *in, GError **error)                                                     \
    {                                                                                                                  \
        return (Foo *)qapi_decode(&qapi_type_##Foo, QAPI_SOURCE_JSON, in, error);                                      \
    }                                                                                                                  \
    static inline Foo *qapi_decode_keyval_##Foo(Tree *in, GError **error)                                              \
    {                                                                                                                  \
        return (Foo *)qapi_decode(&qapi_type_##Foo, QAPI_SOURCE_KEYVAL, in, error);                                    \
    }                                                                                                                  \
    static inline Foo *qapi_decode_option_##Foo(const char *text, const char *implied_key, GError **error)             \
    {                                                                                                                  \
        return (Foo *)qapi_decode_option(&qapi_type_##Foo, text, implied_key, error);                                  \
    }                                                                                                                  \
    static inline Tree *qapi_encode_##Foo(const Foo *value)                                                            \
    {                                                                                                                  \
        return qapi_encode(&qapi_type_##Foo, value);                                                                   \
    }                                                                                                                  \
    G_DEFINE_AUTOPTR_CLEANUP_FUNC(Foo, qapi_free_##Foo)

#define QAPI_DEFINE_ENUM(Foo)                                                                                          \
    extern const QapiType qapi_type_##Foo;                                                                             \
    static inline const char *qapi_##Foo##_str(Foo value)                                                              \
    {                                                                                                                  \
        return qapi_enum_str(&qapi_type_##Foo, (int)value);                                                            \
    }
