/*
 * Wiping, and its opposite.
 */
#include "block/crypto/wipe.h"
#include <errno.h>
#include <glib.h>
#include <stdint.h>
#include <sys/random.h>

void wipe_free(void *mem, size_t size)
{
    if (mem)
        explicit_bzero(mem, size);
    g_free(mem);
}

void wipe_free_string(char *text)
{
    wipe_free(text, text ? strlen(text) : 0);
}

void crypto_random(void *buf, size_t size)
{
    uint8_t *at = buf;

    while (size) {
        ssize_t n = getrandom(at, size, 0);
        if (n < 0 && errno == EINTR)
            continue;
        g_assert(n > 0); /* fails for bad arguments only */
        at += n;
        size -= (size_t)n;
    }
}
