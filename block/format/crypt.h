/*
 * Encrypted data in a child, and LUKS headers on a file that is being made: for formats that encrypt.
 */
#pragma once
#include "block/crypto/luks.h"
#include "block/graph/port.h"

/*
 * Reads and decrypts, encrypts and writes @bytes at @offset of the child; whole sectors, of which the first has the
 * number @sector. 0 or -errno. Writes go through buffers of the pool, a bounded part at a time; reads are decrypted
 * where they arrive when that is one piece of memory. What takes longer than a change of threads runs on workers.
 */
int crypt_co_read(Child *file, const Cipher *cipher, uint64_t sector, uint64_t offset, uint64_t bytes, const IoVec *vec,
                  size_t vec_offset);
int crypt_co_write(Child *file, const Cipher *cipher, uint64_t sector, uint64_t offset, uint64_t bytes,
                   const IoVec *vec, size_t vec_offset);

/* Makes a LUKS header at @offset of @file, durably, with one password. The file reaches over the header's area of
 * luks_create_bytes(). */
bool crypt_co_create(Port *file, uint64_t offset, const QCryptoBlockCreateOptionsLUKS *options, GError **error);
