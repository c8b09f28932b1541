/*
 * Character devices, which is what QEMU calls the places that monitors talk at, and the monitors that do.
 *
 * A chardev accepts or makes connections from the moment it is there; they wait until start-up is complete and a
 * monitor has taken the chardev, and then each becomes a QMP session of its own.
 */
#pragma once
#include "daemon/daemon.h"
#include "qapi/types.h"

/* Decode and carry out a --chardev; with server=on and wait=on the latter waits for the first client. */
void *chardev_decode(Tree *tree, QapiSource source, GError **error);
void chardev_free_options(void *options);
bool chardev_co_apply(Daemon *daemon, void *options, GError **error);
bool chardev_co_new(Daemon *daemon, const ChardevOptions *options, GError **error);

/* The same for --monitor. */
bool monitor_co_apply(Daemon *daemon, void *options, GError **error);
bool monitor_new(Daemon *daemon, const MonitorOptions *options, GError **error);

/* Start-up is complete: connections become sessions. */
void chardevs_serve(Daemon *daemon);

/* The process ends: start-up, if it waits for a client, goes on. */
void chardevs_stop_waiting(Daemon *daemon);

/* The end, when start-up is over: no connection is accepted or made any more, sockets are removed. Sessions stay. */
void chardevs_co_close(Daemon *daemon);

/* Frees what chardevs_co_close() left; no session may be there any more. */
void chardevs_free(Daemon *daemon);
