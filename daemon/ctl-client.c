#include "daemon/ctl.h"
#include "block/util/error.h"
#include "qapi/rt/tree.h"
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* Reads until there is one message; NULL without @error: @timeout_ms is over. */
static Tree *receive(Ctl *ctl, int timeout_ms, GError **error)
{
    for (;;) {
        Tree *message = NULL;
        switch (json_stream_next(ctl->stream, &message, error)) {
        case JSON_STREAM_MESSAGE:
            return message;
        case JSON_STREAM_ERROR:
            return NULL;
        case JSON_STREAM_NEED_MORE:
            break;
        }
        struct pollfd p = {.fd = ctl->fd, .events = POLLIN};
        int ready = poll(&p, 1, timeout_ms);
        if (ready == 0)
            return NULL;
        char buffer[16384];
        ssize_t n = ready < 0 ? -1 : recv(ctl->fd, buffer, sizeof(buffer), 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            error_set_errno(error, errno, "cannot read from the daemon");
            return NULL;
        }
        if (n == 0) {
            error_set(error, "the daemon closed the connection");
            return NULL;
        }
        json_stream_feed(ctl->stream, buffer, (size_t)n);
    }
}

static bool has_member(const Tree *message, const char *name)
{
    return tree_is_object(message) && tree_get(message, name);
}

static bool send_all(Ctl *ctl, const char *text, GError **error)
{
    size_t size = strlen(text);
    while (size) {
        ssize_t n = send(ctl->fd, text, size, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return error_set_errno(error, errno, "cannot write to the daemon");
        text += n;
        size -= (size_t)n;
    }
    return true;
}

/* Takes a reply apart. */
static Tree *unwrap(const char *command, const Tree *reply, GError **error)
{
    Tree *value = tree_get(reply, "return"), *e = tree_get(reply, "error");
    if (value)
        return tree_ref(value);
    const char *text = tree_is_object(e) ? tree_get_string(e, "desc") : NULL;
    error_set(error, "%s: %s", command, text ? text : "the daemon's reply makes no sense");
    return NULL;
}

Tree *ctl_call(Ctl *ctl, const char *command, Tree *arguments, GError **error)
{
    g_autoptr(Tree) message = tree_object();
    tree_set_string(message, "execute", command);
    if (arguments)
        tree_set(message, "arguments", arguments);
    tree_set(message, "id", tree_int(++ctl->next_id));
    g_autofree char *text = json_to_str(message, false);
    g_autofree char *line = g_strconcat(text, "\n", NULL);
    if (!send_all(ctl, line, error))
        return NULL;
    for (;;) {
        g_autoptr(Tree) reply = receive(ctl, -1, error);
        if (!reply)
            return NULL;
        if (has_member(reply, "event"))
            g_queue_push_tail(&ctl->events, g_steal_pointer(&reply));
        else if (has_member(reply, "return") || has_member(reply, "error"))
            return unwrap(command, reply, error);
    }
}

bool ctl_event(Ctl *ctl, int timeout_ms, Tree **ret, GError **error)
{
    *ret = g_queue_pop_head(&ctl->events);
    if (*ret)
        return true;
    GError *cause = NULL;
    *ret = receive(ctl, timeout_ms, &cause);
    if (cause) {
        g_propagate_error(error, cause);
        return false;
    }
    if (*ret && !has_member(*ret, "event"))
        g_clear_pointer(ret, tree_unref);
    return true;
}

bool ctl_connect(Ctl *ctl, const char *path, GError **error)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    *ctl = (Ctl){.fd = -1, .events = G_QUEUE_INIT};
    if (strlen(path) >= sizeof(addr.sun_path))
        return error_set(error, "socket path '%s' is too long", path);
    memcpy(addr.sun_path, path, strlen(path));
    ctl->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (ctl->fd < 0 || connect(ctl->fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
        error_set_errno(error, errno, "cannot reach a daemon at '%s'", path);
        ctl_close(ctl);
        return false;
    }
    ctl->stream = json_stream_new();
    g_autoptr(Tree) greeting = receive(ctl, 10000, error);
    if (!greeting || !has_member(greeting, "QMP")) {
        if (error && !*error)
            error_set(error, "what listens at '%s' does not speak QMP", path);
        ctl_close(ctl);
        return false;
    }
    g_autoptr(Tree) done = ctl_call(ctl, "qmp_capabilities", NULL, error);
    if (!done)
        ctl_close(ctl);
    return done != NULL;
}

void ctl_close(Ctl *ctl)
{
    if (ctl->fd >= 0) {
        close(ctl->fd);
        ctl->fd = -1;
    }
    g_clear_pointer(&ctl->stream, json_stream_free);
    g_queue_clear_full(&ctl->events, (GDestroyNotify)tree_unref);
}
