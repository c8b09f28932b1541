/*
 * What test harnesses need, QEMU's above all: a clock of rate limits that they move, guest devices that a drive is said
 * to be attached to, and a line on standard output for every image that is made. tests/iotests/qemu-compat uses it.
 */
#pragma once
#include "daemon/daemon.h"

/* For the table of words. */
bool harness_co_manual_rate_clock(Daemon *daemon, void *value, GError **error);
bool harness_co_announce_images(Daemon *daemon, void *value, GError **error);
bool harness_co_device(Daemon *daemon, void *value, GError **error);
