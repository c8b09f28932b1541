/*
 * What the parts of the file driver share: regular files (`file`) and block devices (`host_device`).
 */
#pragma once
#include "block/graph/driver.h"
#include <sys/types.h>

/* Loop's thread, except where a worker-thread function gets its own copy of what it needs. */
typedef struct FileState {
    int fd;
    bool writable;       /* fd is open for writing */
    bool device;         /* a block device */
    bool direct;         /* O_DIRECT */
    uint32_t align;      /* of offsets and lengths: 1 unless direct */
    uint32_t mem_align;  /* of buffer addresses: 1 unless direct, and never then */
    uint32_t block_size; /* devices: logical blocks, the unit of discard */

    /* Locks: bit i of held_perm is byte 100+i, of held_unshared byte 200+i. */
    bool locking;
    unsigned held_perm, held_unshared; /* taken now, on fd */
    unsigned old_perm, old_unshared;   /* between check_perm and set_perm or abort_perm: what to go back to */
    int pending_fd;                    /* the same file opened for writing, to replace fd in set_perm; -1: none */

    /* What the file system turned out not to do (each asked once). */
    bool no_punch, no_zero_range, no_fallocate, no_discard, no_dsync, no_copy;

    /* Block status: the last extent of data found. Data becomes a hole only by what we do ourselves, so that an
     * extent stays good until then; see file-map.c. */
    bool slow_seek;                /* lseek(2) may take long here: use a worker */
    bool memory;                   /* tmpfs: finding data is quick, finding a hole is not */
    bool no_seek;                  /* no SEEK_DATA: all is data */
    CoMutex seek_lock;             /* of slow ones: one look-up at a time */
    uint64_t data_start, data_end; /* empty: start == end */

    /* Writes past the end: one of them lengthens the file, for all that have come by then. */
    CoMutex grow_lock;
    uint64_t grow_to; /* bytes; 0: nothing since the last time */
} FileState;

/* ---- file-lock.c ------------------------------------------------------------------------------------------------ */

/* Does the kernel know open-file-description locks? */
bool file_lock_supported(void);
/* Takes what @perm and ~@shared need besides what is held, and looks whether anybody else holds what contradicts it.
 * On failure all is as before. Otherwise file_lock_commit() or file_lock_abort() must follow. Never yields. */
bool file_lock_prepare(FileState *s, const char *filename, unsigned perm, unsigned shared, GError **error);
void file_lock_commit(FileState *s, unsigned perm, unsigned shared);
void file_lock_abort(FileState *s);
/* Takes on @fd, another description of the same file, the locks for @perm and @shared, without looking around. */
bool file_lock_copy(int fd, unsigned perm, unsigned shared, GError **error);

/* ---- file-open.c ------------------------------------------------------------------------------------------------ */

bool file_co_open(Node *node, const BlockdevOptions *options, GError **error);
void file_co_close(Node *node);
/* Opens the file of @s once more, for writing: a new fd, or -errno. */
int file_reopen_writable(const FileState *s);

/* ---- file-align.c ----------------------------------------------------------------------------------------------- */

/* The alignment that O_DIRECT on @fd asks for, at most 64 KiB; false when no request works. Blocks: worker threads. */
bool file_probe_alignment(int fd, uint32_t *ret_align, uint32_t *ret_mem_align);

/* ---- file-io.c -------------------------------------------------------------------------------------------------- */

int file_co_preadv(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset, ReqFlags flags);
int file_co_read_pages(Node *node, uint64_t offset, uint64_t bytes, AioPipe *pipe);
int file_co_pwritev(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset, ReqFlags flags);
int file_co_flush_to_disk(Node *node);

/* ---- file-copy.c ------------------------------------------------------------------------------------------------ */

int file_co_copy_from(Node *node, uint64_t offset, uint64_t bytes, Node *source, uint64_t source_offset,
                      ReqFlags flags);

/* ---- file-space.c ----------------------------------------------------------------------------------------------- */

int file_co_pwrite_zeroes(Node *node, uint64_t offset, uint64_t bytes, ReqFlags flags);
int file_co_pdiscard(Node *node, uint64_t offset, uint64_t bytes);
/* Lengthens a file with O_DIRECT ahead of a write that ends at @end (bytes). Should it fail, the write is to say why.
 */
void file_co_make_room(FileState *s, uint64_t end);
bool file_co_truncate(Node *node, uint64_t size, bool exact, PreallocMode prealloc, ReqFlags flags, GError **error);
/* Brings the regular file @fd from @old to @size bytes. @ret_what: "resize file" or the like, for the error text. */
int file_co_resize(int fd, uint64_t old, uint64_t size, PreallocMode prealloc, const char **ret_what);

/* ---- file-map.c ------------------------------------------------------------------------------------------------- */

int file_co_block_status(Node *node, bool want_zero, uint64_t offset, uint64_t bytes, BlockStatus *ret);
/* Data may be about to become a hole, or has become one. */
static inline void file_map_forget(FileState *s)
{
    s->data_start = s->data_end = 0;
}

/* ---- file-create.c ---------------------------------------------------------------------------------------------- */

bool file_co_create(Graph *graph, const char *filename, Port *file, const CreateOptions *options, GError **error);
