/*
 * The negotiation of NBD ("fixed newstyle"), as a pure machine: options in, answers out, no sockets and no waiting. The
 * fuzzer feeds it directly; nbd-client.c moves the bytes.
 */
#pragma once
#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The metadata contexts of one export, whose numbers are bits of a uint64_t. */
#define NBD_MAX_CONTEXTS 64

/* Longest payload of an option: a name and a dozen queries of 4 KiB each. More is answered with TOO_BIG … */
#define NBD_OPTION_MAX (64u * 1024)
/* … after reading past it, and more than this closes the connection. */
#define NBD_OPTION_SKIP_MAX (1024u * 1024)

/* What clients are told about an export. Owned by the export; stands still while nothing yields. */
typedef struct NbdExportInfo {
    uint64_t serial;                /* never used twice in a process */
    char *name;                     /* at most NBD_MAX_STRING bytes */
    char *description;              /* NULL: none; at most NBD_MAX_STRING bytes */
    uint64_t size;                  /* bytes */
    uint16_t flags;                 /* NBD_FLAG_*, but for SEND_DF, which depends on the client */
    uint32_t min_block, pref_block; /* bytes */
    GPtrArray *contexts;            /* of char *; the index is the context's id on the wire */
} NbdExportInfo;

typedef enum NbdHandshakeState {
    NBD_HS_OPTIONS,  /* wants another option */
    NBD_HS_TRANSMIT, /* after @out the client sends requests to @chosen */
    NBD_HS_CLOSE,    /* after @out the connection is closed */
} NbdHandshakeState;

typedef struct NbdHandshake {
    const GPtrArray *exports; /* of NbdExportInfo *, borrowed */
    GByteArray *out;          /* what is to be sent; the mover of bytes empties it */
    NbdHandshakeState state;
    bool fixed, no_zeroes, structured;
    const NbdExportInfo *chosen; /* set together with NBD_HS_TRANSMIT */
    uint64_t contexts;           /* bits of the selected contexts of export @contexts_serial */
    uint64_t contexts_serial;
} NbdHandshake;

/* @exports stays the caller's and may change between calls. Puts the greeting into @out. */
void nbd_handshake_init(NbdHandshake *hs, const GPtrArray *exports);
void nbd_handshake_clear(NbdHandshake *hs);

/* The client's 4 bytes of flags. */
void nbd_handshake_client_flags(NbdHandshake *hs, uint32_t flags);

/* One option with its payload of @len bytes, at most NBD_OPTION_MAX; @data may be NULL for none. */
void nbd_handshake_option(NbdHandshake *hs, uint32_t option, const uint8_t *data, size_t len);

/* One option whose payload, longer than NBD_OPTION_MAX, was skipped. */
void nbd_handshake_option_too_big(NbdHandshake *hs, uint32_t option);
