/*
 * What a Unix service does around its work: going to the background, the pid file, talking to systemd.
 */
#pragma once
#include <glib.h>
#include <stdbool.h>

/*
 * Forks. The parent never returns: it waits for process_ready() in the child and exits 0, or 1 when the child ends
 * without it. The child returns, in a session of its own. Before any thread or loop exists.
 */
bool process_daemonize(GError **error);

/* Start-up is complete: lets the parent of process_daemonize() go (standard streams lead nowhere from now on) and tells
 * systemd. */
void process_ready(void);

/* The end begins: tells systemd. */
void process_stopping(void);

/*
 * Refuses when a live process holds pid file @path, naming it. Early, before anything is opened; process_pidfile_take()
 * has the last word.
 */
bool process_pidfile_check(const char *path, GError **error);

/* Makes and locks @path and writes the pid into it; process_pidfile_remove() or the end of the process frees it. */
bool process_pidfile_take(const char *path, GError **error);
void process_pidfile_remove(void);
