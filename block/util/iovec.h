/*
 * Scatter-gather lists: slicing and copying. Offsets and sizes in bytes; no function here allocates.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* Zeroes to write from. Never written to: its pages are the kernel's one zero page. */
#define IOV_ZEROES (64 * 1024)
extern uint8_t iov_zeroes[IOV_ZEROES];

/*
 * Describes @bytes bytes from @offset of @src's content in @dst, which has room for @max elements (@niov are always
 * enough). Returns the number of elements used (0 for no bytes; empty elements are left out), or -1 when @src is
 * shorter or @max too small. @dst may be @src itself.
 */
int iov_slice(struct iovec *dst, int max, const struct iovec *src, int niov, size_t offset, size_t bytes);

/* The same as far as there is: with less in @src, or in @dst, *@ret_bytes says how much is described. */
int iov_slice_some(struct iovec *dst, int max, const struct iovec *src, int niov, size_t offset, size_t bytes,
                   size_t *ret_bytes);

/* Copy between a buffer and @bytes bytes from @offset of the list's content; return how many there were to copy. */
size_t iov_to_buf(const struct iovec *iov, int niov, size_t offset, void *buf, size_t bytes);
size_t iov_from_buf(const struct iovec *iov, int niov, size_t offset, const void *buf, size_t bytes);

/* Fills @bytes bytes from @offset with @value; returns how many there were to fill. */
size_t iov_memset(const struct iovec *iov, int niov, size_t offset, int value, size_t bytes);

/* Are @bytes bytes from @offset all zero? What lies past the end counts as zero. */
bool iov_is_zero(const struct iovec *iov, int niov, size_t offset, size_t bytes);
