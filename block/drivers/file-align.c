/*
 * What O_DIRECT asks of requests. The kernel says so since Linux 6.1 (statx(2), STATX_DIOALIGN); where it or the file
 * system does not, small reads are tried until one is taken.
 */
#include "block/drivers/file.h"
#include "block/util/bytes.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ALIGN_MIN = 512, ALIGN_MAX = 65536, TRIAL_MAX = 4096 };

static bool ask_statx(int fd, uint32_t *ret_align, uint32_t *ret_mem_align)
{
#ifdef STATX_DIOALIGN
    struct statx stx;

    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) < 0 || !(stx.stx_mask & STATX_DIOALIGN))
        return false;
    if (!is_pow2(stx.stx_dio_offset_align) || !is_pow2(stx.stx_dio_mem_align) || stx.stx_dio_offset_align > ALIGN_MAX ||
        stx.stx_dio_mem_align > ALIGN_MAX)
        return false;
    *ret_align = MAX(stx.stx_dio_offset_align, ALIGN_MIN);
    *ret_mem_align = MAX(stx.stx_dio_mem_align, 2); /* 1 would say that there is nothing to look at */
    return true;
#else
    return false;
#endif
}

static bool read_works(int fd, void *buf, size_t size)
{
    ssize_t ret;

    do {
        ret = pread(fd, buf, size, 0);
    } while (ret < 0 && errno == EINTR);
    /* Any other error is not about alignment. */
    return ret >= 0 || errno != EINVAL;
}

static bool try_reads(int fd, uint32_t *ret_align, uint32_t *ret_mem_align)
{
    void *buf = aligned_alloc(TRIAL_MAX, 2 * TRIAL_MAX);
    uint32_t align, mem;
    bool ok = false;

    if (!buf)
        return false;
    for (align = ALIGN_MIN; align <= TRIAL_MAX && !ok; align *= 2)
        if (read_works(fd, buf, align)) {
            *ret_align = align;
            ok = true;
        }
    if (ok) {
        for (mem = ALIGN_MIN; mem < TRIAL_MAX && !read_works(fd, (char *)buf + mem, *ret_align); mem *= 2)
            ;
        *ret_mem_align = mem;
    }
    free(buf);
    return ok;
}

bool file_probe_alignment(int fd, uint32_t *ret_align, uint32_t *ret_mem_align)
{
    struct stat st;
    int sector;

    if (ask_statx(fd, ret_align, ret_mem_align))
        return true;
    if (fstat(fd, &st) < 0)
        return false;
    if (S_ISREG(st.st_mode) && st.st_size == 0) {
        /* An empty file takes reads of any shape: no trial. A page is enough everywhere. */
        *ret_align = *ret_mem_align = TRIAL_MAX;
        return true;
    }
    if (!try_reads(fd, ret_align, ret_mem_align))
        return false;
    if (ioctl(fd, BLKSSZGET, &sector) == 0 && sector > 0 && is_pow2((uint64_t)sector) && sector <= ALIGN_MAX)
        *ret_align = MAX(*ret_align, (uint32_t)sector);
    return true;
}
