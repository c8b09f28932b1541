/*
 * Bounce buffers: free lists of power-of-two classes. A list's links lie in the free buffers themselves.
 */
#include "block/aio/internal.h"
#include "block/aio/io.h"
#include "block/util/bytes.h"
#include <stdlib.h>
#include <unistd.h>

/* A buffer that was given back is out of bounds but for its link: AddressSanitizer tells who still uses it. */
#ifdef CONTEXT_ASAN
#include <sanitizer/asan_interface.h>
#define buf_hide(buf, size) ASAN_POISON_MEMORY_REGION((char *)(buf) + sizeof(FreeBuf), (size) - sizeof(FreeBuf))
#define buf_show(buf, size) ASAN_UNPOISON_MEMORY_REGION(buf, size)
#else
#define buf_hide(buf, size) ((void)0)
#define buf_show(buf, size) ((void)0)
#endif

#define CLASS_MIN_BITS 12 /* 4 KiB */
#define CLASS_MAX_BITS 22 /* 4 MiB */
#define CLASSES        (CLASS_MAX_BITS - CLASS_MIN_BITS + 1)
#define BUF_SIZE_MAX   (INT64_C(2) << 30)
/* Kept for reuse, all classes together: 64 requests in flight of 1 MiB. */
#define KEEP_BYTES (64 << 20)

typedef struct FreeBuf {
    struct FreeBuf *next;
} FreeBuf;

struct BufPool {
    FreeBuf *free[CLASSES];
    size_t kept; /* bytes */
    size_t page;
};

static unsigned class_bits(size_t size)
{
    return size <= (size_t)1 << CLASS_MIN_BITS ? CLASS_MIN_BITS : ilog2(size - 1) + 1;
}

void *aio_buf_get(Loop *loop, size_t size)
{
    if (size > BUF_SIZE_MAX)
        return NULL;
    if (!loop->bufs) {
        loop->bufs = g_new0(BufPool, 1);
        loop->bufs->page = (size_t)sysconf(_SC_PAGESIZE);
    }
    BufPool *pool = loop->bufs;
    unsigned bits = class_bits(size);
    if (bits <= CLASS_MAX_BITS) {
        FreeBuf *buf = pool->free[bits - CLASS_MIN_BITS];
        if (buf) {
            pool->free[bits - CLASS_MIN_BITS] = buf->next;
            pool->kept -= (size_t)1 << bits;
            buf_show(buf, (size_t)1 << bits);
            return buf;
        }
        size = (size_t)1 << bits;
    }
    void *mem;
    return posix_memalign(&mem, pool->page, size) == 0 ? mem : NULL;
}

void aio_buf_put(Loop *loop, void *buf, size_t size)
{
    if (!buf)
        return;
    BufPool *pool = loop->bufs;
    unsigned bits = class_bits(size);
    if (bits > CLASS_MAX_BITS || pool->kept + ((size_t)1 << bits) > KEEP_BYTES) {
        free(buf);
        return;
    }
    FreeBuf *item = buf;
    item->next = pool->free[bits - CLASS_MIN_BITS];
    pool->free[bits - CLASS_MIN_BITS] = item;
    pool->kept += (size_t)1 << bits;
    buf_hide(buf, (size_t)1 << bits);
}

void bufpool_free(Loop *loop)
{
    BufPool *pool = loop->bufs;
    if (!pool)
        return;
    for (int i = 0; i < CLASSES; i++) {
        while (pool->free[i]) {
            FreeBuf *buf = pool->free[i];
            pool->free[i] = buf->next;
            buf_show(buf, (size_t)1 << (CLASS_MIN_BITS + i));
            free(buf);
        }
    }
    g_free(pool);
    loop->bufs = NULL;
}
