/*
 * Secrets.
 */
#include "block/crypto/secret.h"
#include "block/aio/io.h"
#include "block/crypto/cipher.h"
#include "block/crypto/wipe.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

struct Secret {
    SecretStore *store;
    char *id;
    SecretProperties *properties; /* without data */
    uint8_t *value;               /* with a 0 behind */
    size_t size;
};

struct SecretStore {
    GHashTable *by_id; /* char * (the secret's) → Secret * */
};

SecretStore *secret_store_new(void)
{
    SecretStore *store = g_new0(SecretStore, 1);

    store->by_id = g_hash_table_new(g_str_hash, g_str_equal);
    return store;
}

void secret_store_free(SecretStore *store)
{
    if (!store)
        return;
    g_assert(g_hash_table_size(store->by_id) == 0);
    g_hash_table_unref(store->by_id);
    g_free(store);
}

/* ---- where a value comes from ----------------------------------------------------------------------------------- */

typedef struct Load {
    const char *path;
    uint8_t *buf; /* SECRET_MAX_BYTES + 1 */
    size_t size;
    const char *step; /* what failed */
} Load;

static int load_run(void *opaque)
{
    Load *load = opaque;
    int fd = open(load->path, O_RDONLY | O_CLOEXEC), ret = 0;

    load->step = "open";
    if (fd < 0)
        return -errno;
    load->step = "read";
    while (load->size <= SECRET_MAX_BYTES) {
        ssize_t n = read(fd, load->buf + load->size, SECRET_MAX_BYTES + 1 - load->size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            ret = n < 0 ? -errno : 0;
            break;
        }
        load->size += (size_t)n;
    }
    close(fd);
    return ret;
}

/* The file's content, with a 0 behind. */
static uint8_t *load_co_file(const char *path, size_t *ret_size, GError **error)
{
    Load load = {.path = path, .buf = g_try_malloc(SECRET_MAX_BYTES + 1)};
    uint8_t *value = NULL;
    int ret = load.buf ? aio_co_worker(load_run, &load) : -ENOMEM;

    if (ret < 0) {
        error_set(error, "Unable to read %s: Failed to %s file “%s”: %s", path, load.step ? load.step : "load", path,
                  g_strerror(-ret));
    } else if (load.size > SECRET_MAX_BYTES) {
        error_set(error, "Unable to read %s: a secret has at most %d bytes", path, SECRET_MAX_BYTES);
    } else {
        value = g_malloc(load.size + 1);
        if (load.size)
            memcpy(value, load.buf, load.size);
        value[load.size] = 0;
        *ret_size = load.size;
    }
    wipe_free(load.buf, SECRET_MAX_BYTES + 1);
    return value;
}

/* Line ends are allowed in base64, nothing else that does not belong there. */
static uint8_t *decode_base64(const uint8_t *text, size_t size, size_t *ret_size, GError **error)
{
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=\n";
    uint8_t *value;

    if (strlen((const char *)text) != size) {
        error_set(error, "Base64 data is not NUL terminated");
        return NULL;
    }
    if (strspn((const char *)text, letters) != size) {
        error_set(error, "Base64 data contains invalid characters");
        return NULL;
    }
    value = g_malloc0(size / 4 * 3 + 4);
    gint state = 0;
    guint save = 0;
    *ret_size = g_base64_decode_step((const char *)text, size, value, &state, &save);
    value[*ret_size] = 0;
    return value;
}

/* Replaces a value with what it decrypts to. */
static bool decrypt(SecretStore *store, const SecretProperties *p, uint8_t *value, size_t *size, GError **error)
{
    size_t key_size = 0, iv_size = 0;
    g_autofree uint8_t *iv = NULL;
    uint8_t *key = secret_value(store, p->keyid, &key_size, error);
    bool ok = key;

    if (ok && key_size != 32)
        ok = error_set(error, "Key should be 32 bytes in length");
    if (ok && !p->iv)
        ok = error_set(error, "IV is required to decrypt secret");
    if (ok) {
        iv = decode_base64((const uint8_t *)p->iv, strlen(p->iv), &iv_size, error);
        ok = iv;
    }
    if (ok && iv_size != 16)
        ok = error_set(error, "IV should be 16 bytes in length not %zu", iv_size);
    if (ok && *size % 16)
        ok = error_set(error, "Length %zu must be a multiple of block size 16", *size);
    if (ok && *size) {
        cipher_decrypt_secret(key, iv, value, *size);
        unsigned pad = value[*size - 1];
        if (pad == 0 || pad > 16)
            ok = error_set(error, "Incorrect number of padding bytes (%u) found on decrypted data", pad);
        else
            *size -= pad;
        value[*size] = 0;
    }
    wipe_free(key, key_size);
    return ok;
}

static uint8_t *value_co_make(SecretStore *store, const SecretProperties *p, size_t *ret_size, GError **error)
{
    uint8_t *value = NULL;

    if (p->data && p->file) {
        error_set(error, "'file' and 'data' are mutually exclusive");
        return NULL;
    }
    if (!p->data && !p->file) {
        error_set(error, "Either 'file' or 'data' must be provided");
        return NULL;
    }
    if (p->file) {
        value = load_co_file(p->file, ret_size, error);
    } else {
        *ret_size = strlen(p->data);
        value = (uint8_t *)g_strdup(p->data);
    }
    if (value && p->has_format && p->format == Q_CRYPTO_SECRET_FORMAT_BASE64) {
        size_t size = *ret_size;
        uint8_t *plain = decode_base64(value, size, ret_size, error);
        wipe_free(value, size);
        value = plain;
    }
    if (value && p->keyid) {
        size_t size = *ret_size;
        if (!decrypt(store, p, value, ret_size, error)) {
            wipe_free(value, size);
            value = NULL;
        }
    }
    return value;
}

/* ---- secrets ---------------------------------------------------------------------------------------------------- */

Secret *secret_co_new(SecretStore *store, const char *id, const SecretProperties *p, GError **error)
{
    size_t size = 0;
    uint8_t *value = value_co_make(store, p, &size, error);
    Secret *s;

    if (!value)
        return NULL;
    if (g_hash_table_contains(store->by_id, id)) { /* somebody was quicker while the file was read */
        wipe_free(value, size);
        error_set(error, "Secret '%s' exists already", id);
        return NULL;
    }
    s = g_new0(Secret, 1);
    *s = (Secret){.store = store, .id = g_strdup(id), .value = value, .size = size};
    s->properties = g_new0(SecretProperties, 1);
    *s->properties = (SecretProperties){
        .has_format = p->has_format,
        .format = p->format,
        .keyid = g_strdup(p->keyid),
        .iv = g_strdup(p->iv),
        .file = g_strdup(p->file),
    };
    g_hash_table_insert(store->by_id, s->id, s);
    return s;
}

void secret_free(Secret *s)
{
    if (!s)
        return;
    g_hash_table_remove(s->store->by_id, s->id);
    wipe_free(s->value, s->size);
    qapi_free_SecretProperties(s->properties);
    g_free(s->id);
    g_free(s);
}

const SecretProperties *secret_properties(const Secret *s)
{
    return s->properties;
}

uint8_t *secret_value(SecretStore *store, const char *id, size_t *ret_size, GError **error)
{
    Secret *s = g_hash_table_lookup(store->by_id, id);
    uint8_t *copy;

    if (!s) {
        error_set(error, "No secret with id '%s'", id);
        return NULL;
    }
    copy = g_malloc(s->size + 1);
    if (s->size)
        memcpy(copy, s->value, s->size);
    copy[s->size] = 0;
    *ret_size = s->size;
    return copy;
}

char *secret_password(SecretStore *store, const char *id, GError **error)
{
    size_t size = 0;
    uint8_t *value = secret_value(store, id, &size, error);

    if (value && !g_utf8_validate((const char *)value, (gssize)size, NULL)) {
        error_set(error, "Data from secret %s is not valid UTF-8", id);
        wipe_free(value, size);
        return NULL;
    }
    return (char *)value;
}
