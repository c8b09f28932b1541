/*
 * storage-daemon: options, start-up, loop, end.
 */
#include "daemon/check-image.h"
#include "daemon/options.h"
#include "daemon/process.h"
#include "daemon/startup.h"
#include "block/aio/io.h"
#include "block/graph/driver.h"
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

/* Before any thread exists, so that all inherit the mask and the signals reach the loop only. */
static int signals_take(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static void signals_co_entry(void *opaque)
{
    Daemon *d = opaque;
    d->signals = coroutine_self();
    while (!d->quitting) {
        struct signalfd_siginfo info;
        if (aio_co_poll(d->signal_fd, POLLIN) > 0 && read(d->signal_fd, &info, sizeof(info)) == sizeof(info))
            daemon_end(d, SHUTDOWN_CAUSE_HOST_SIGNAL);
    }
    d->signals = NULL;
    coqueue_wake_all(&d->idle);
}

static int run(const Options *options)
{
    g_autoptr(GError) error = NULL;
    if (options_last(options, "daemonize") && !process_daemonize(&error)) {
        g_printerr("storage-daemon: %s\n", error->message);
        return 1;
    }
    int signal_fd = signals_take();
    Loop *loop = loop_new(&error);
    if (!loop) {
        g_printerr("storage-daemon: %s\n", error->message);
        return 1;
    }
    bool failed = false;
    Daemon *daemon = daemon_new(loop);
    daemon->signal_fd = signal_fd;
    coroutine_start(loop, signals_co_entry, daemon);
    startup_begin(daemon, options, &failed);
    loop_run(loop);
    process_pidfile_remove();
    if (!daemon->stuck) {
        daemon_free(daemon);
        loop_free(loop);
    }
    close(signal_fd);
    return failed ? 1 : 0;
}

/* Bytes as they are: file names in messages need not be what the locale thinks of. */
static void print_raw(const char *text)
{
    fputs(text, stderr);
}

int main(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Options) options = options_new();
    g_set_printerr_handler(print_raw);
    driver_set_list(driver_list);
    if (!options_parse_argv(options, argc, argv, &error)) {
        g_printerr("storage-daemon: %s\n", error->message);
        return 1;
    }
    if (options_last(options, "help")) {
        options_print_help();
        return 0;
    }
    if (options_last(options, "version")) {
        printf("storage-daemon version " SD_VERSION "\n");
        return 0;
    }
    if (options_last(options, "check"))
        return check_image_main(options);
    bool checking = options_last(options, "check-config") != NULL;
    if (!options_check_background(options, &error) || (checking && !options_check_names(options, &error))) {
        g_printerr("storage-daemon: %s\n", error->message);
        return 1;
    }
    if (checking) {
        printf("storage-daemon: configuration OK\n");
        return 0;
    }
    return run(options);
}
