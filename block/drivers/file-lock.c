/*
 * Image locks: how processes keep out of one another's images.
 *
 * The protocol is QEMU's, so that its tools and we refuse each other. For each permission bit i, byte 100+i of the
 * image is read-locked by whoever uses the permission and byte 200+i by whoever does not share it. Nobody ever takes a
 * write lock: to find out whether somebody objects, one asks the kernel whether a write lock would be possible there.
 * The locks are of the open file description (F_OFD_SETLK): they are not lost when some other descriptor of the file
 * is closed, and they conflict within a process, too.
 *
 * First take, then look: of two processes that start at the same time at most both are refused, never both let in.
 */
#include "block/drivers/file.h"
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

enum { LOCK_PERM_BASE = 100, LOCK_UNSHARED_BASE = 200, LOCK_BITS = 4 };

static int lock_byte(int fd, off_t byte, short type)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    int ret;

    do {
        ret = fcntl(fd, F_OFD_SETLK, &lock);
    } while (ret < 0 && errno == EINTR);
    return ret < 0 ? -errno : 0;
}

/* Does another description hold a lock on @byte? */
static bool byte_is_held(int fd, off_t byte)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

    return fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

bool file_lock_supported(void)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 1};
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    bool ok = fd >= 0 && fcntl(fd, F_OFD_GETLK, &lock) == 0;

    if (fd >= 0)
        close(fd);
    return ok;
}

/* Locks the bytes of @wanted that are not in @held. */
static bool lock_more(int fd, off_t base, unsigned held, unsigned wanted, unsigned *ret_held, GError **error)
{
    *ret_held = held;
    for (int i = 0; i < LOCK_BITS; i++) {
        unsigned bit = 1u << i;
        if (!(wanted & ~held & bit))
            continue;
        int ret = lock_byte(fd, base + i, F_RDLCK);
        if (ret < 0)
            return error_set_errno(error, -ret, "Failed to lock byte %d", (int)base + i);
        *ret_held |= bit;
    }
    return true;
}

/* Unlocks the bytes of @held that are not in @wanted. What cannot be unlocked stays held: more than needed. */
static unsigned lock_less(int fd, off_t base, unsigned held, unsigned wanted)
{
    for (int i = 0; i < LOCK_BITS; i++) {
        unsigned bit = 1u << i;
        if ((held & ~wanted & bit) && lock_byte(fd, base + i, F_UNLCK) == 0)
            held &= ~bit;
    }
    return held;
}

static bool look_around(int fd, const char *filename, unsigned perm, unsigned unshared, GError **error)
{
    for (int i = 0; i < LOCK_BITS; i++) {
        g_autofree char *name = perm_names(1u << i);
        if ((perm & (1u << i)) && byte_is_held(fd, LOCK_UNSHARED_BASE + i))
            return error_set(error, "Failed to get \"%s\" lock. Is another process using the image [%s]?", name,
                             filename);
    }
    for (int i = 0; i < LOCK_BITS; i++) {
        g_autofree char *name = perm_names(1u << i);
        if ((unshared & (1u << i)) && byte_is_held(fd, LOCK_PERM_BASE + i))
            return error_set(error, "Failed to get shared \"%s\" lock. Is another process using the image [%s]?", name,
                             filename);
    }
    return true;
}

bool file_lock_prepare(FileState *s, const char *filename, unsigned perm, unsigned shared, GError **error)
{
    unsigned unshared = ~shared & PERM_ALL;

    s->old_perm = s->held_perm;
    s->old_unshared = s->held_unshared;
    if (!s->locking)
        return true;
    if (lock_more(s->fd, LOCK_PERM_BASE, s->held_perm, perm, &s->held_perm, error) &&
        lock_more(s->fd, LOCK_UNSHARED_BASE, s->held_unshared, unshared, &s->held_unshared, error) &&
        look_around(s->fd, filename, perm, unshared, error))
        return true;
    file_lock_abort(s);
    return false;
}

void file_lock_commit(FileState *s, unsigned perm, unsigned shared)
{
    if (!s->locking)
        return;
    s->held_perm = lock_less(s->fd, LOCK_PERM_BASE, s->held_perm, perm);
    s->held_unshared = lock_less(s->fd, LOCK_UNSHARED_BASE, s->held_unshared, ~shared & PERM_ALL);
}

void file_lock_abort(FileState *s)
{
    if (!s->locking)
        return;
    s->held_perm = lock_less(s->fd, LOCK_PERM_BASE, s->held_perm, s->old_perm);
    s->held_unshared = lock_less(s->fd, LOCK_UNSHARED_BASE, s->held_unshared, s->old_unshared);
}

bool file_lock_copy(int fd, unsigned perm, unsigned shared, GError **error)
{
    unsigned held;

    return lock_more(fd, LOCK_PERM_BASE, 0, perm, &held, error) &&
           lock_more(fd, LOCK_UNSHARED_BASE, 0, ~shared & PERM_ALL, &held, error);
}
