/*
 * libnbd, loaded when the first nbd node is opened.
 *
 * It brings TLS, XML and Unicode libraries along, whose loading takes longer than all else that the daemon does at its
 * start (measured: 2.3 of 3.7 ms up to the greeting). A daemon without nbd nodes does without them.
 */
#pragma once
#include <glib.h>
#include <libnbd.h>
#include <stdbool.h>

/* Every function of libnbd that we call, without its prefix. */
#define LIBNBD_FUNCTIONS(F)                                                                                            \
    F(add_meta_context)                                                                                                \
    F(aio_block_status)                                                                                                \
    F(aio_connect_socket)                                                                                              \
    F(aio_disconnect)                                                                                                  \
    F(aio_flush)                                                                                                       \
    F(aio_get_direction)                                                                                               \
    F(aio_get_fd)                                                                                                      \
    F(aio_is_closed)                                                                                                   \
    F(aio_is_connecting)                                                                                               \
    F(aio_is_dead)                                                                                                     \
    F(aio_is_ready)                                                                                                    \
    F(aio_notify_read)                                                                                                 \
    F(aio_notify_write)                                                                                                \
    F(aio_pread)                                                                                                       \
    F(aio_pwrite)                                                                                                      \
    F(aio_trim)                                                                                                        \
    F(aio_zero)                                                                                                        \
    F(can_fast_zero)                                                                                                   \
    F(can_flush)                                                                                                       \
    F(can_fua)                                                                                                         \
    F(can_meta_context)                                                                                                \
    F(can_trim)                                                                                                        \
    F(can_zero)                                                                                                        \
    F(close)                                                                                                           \
    F(create)                                                                                                          \
    F(get_block_size)                                                                                                  \
    F(get_errno)                                                                                                       \
    F(get_error)                                                                                                       \
    F(get_size)                                                                                                        \
    F(is_read_only)                                                                                                    \
    F(set_export_name)                                                                                                 \
    F(set_pread_initialize)                                                                                            \
    F(set_tls)

#define LIBNBD_MEMBER(name) __typeof__(nbd_##name) *name;
typedef struct LibNbd {
    LIBNBD_FUNCTIONS(LIBNBD_MEMBER)
} LibNbd;
#undef LIBNBD_MEMBER

/* Filled in by nbdc_library_co_load(), constant from then on. Any thread. */
extern LibNbd libnbd;

/* Loads it, on a worker thread, if that has not been done; it stays. False when it is not installed. */
bool nbdc_library_co_load(GError **error);
