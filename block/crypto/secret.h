/*
 * Secrets: passwords and keys under the names that options of nodes and jobs call them by.
 *
 * A value leaves here only to whoever decrypts something with it: no query, no log and no error shows one. Memory that
 * held a value is wiped when it is given back. Loop's thread.
 */
#pragma once
#include "block/util/error.h"
#include "qapi/types.h"
#include <stddef.h>
#include <stdint.h>

#define SECRET_MAX_BYTES (1 << 20)

typedef struct Secret Secret;
typedef struct SecretStore SecretStore;

SecretStore *secret_store_new(void);
/* Every secret must be gone. Takes NULL. */
void secret_store_free(SecretStore *store);

/* Makes a secret, which is in the store until it is freed; its id must not be taken. Reads 'file' where that is said,
 * on a worker thread. NULL with @error. */
Secret *secret_co_new(SecretStore *store, const char *id, const SecretProperties *properties, GError **error);
void secret_free(Secret *secret); /* takes NULL */
/* Everything but the value; borrowed, the members may be NULL. */
const SecretProperties *secret_properties(const Secret *secret);

/* The value of the secret @id, terminated with a 0 that does not count; NULL with @error: there is none. For
 * wipe_free(value, *@ret_size). */
uint8_t *secret_value(SecretStore *store, const char *id, size_t *ret_size, GError **error);
/* The same as text, for wipe_free_string(); refuses what is not UTF-8. */
char *secret_password(SecretStore *store, const char *id, GError **error);
