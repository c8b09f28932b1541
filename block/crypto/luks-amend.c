/*
 * Key slots changed as x-blockdev-amend asks for it. What would lose the last way to the master key is refused before
 * anything is written, unless it is forced.
 */
#include "block/crypto/luks-int.h"
#include "block/crypto/wipe.h"
#include <errno.h>

typedef struct Amend {
    LuksHeader *header;
    const LuksIo *io;
    SecretStore *secrets;
    const QCryptoBlockAmendOptionsLUKS *o;
    bool force;
} Amend;

static unsigned active_slots(const LuksHeader *h)
{
    unsigned n = 0;

    for (unsigned i = 0; i < LUKS_SLOTS; i++)
        n += h->slots[i].active;
    return n;
}

/* The slot that is to be filled. */
static bool choose_slot(const Amend *a, unsigned *ret, GError **error)
{
    const LuksHeader *h = a->header;

    if (a->o->has_keyslot) {
        *ret = (unsigned)a->o->keyslot;
        if (h->slots[*ret].active && !a->force)
            return error_set(error, "Refusing to overwrite active keyslot %u - please erase it first", *ret);
        return true;
    }
    for (*ret = 0; *ret < LUKS_SLOTS; ++*ret)
        if (!h->slots[*ret].active)
            return true;
    return error_set(error, "Can't add a keyslot - all keyslots are in use");
}

static bool amend_co_fill(const Amend *a, const char *key_secret, GError **error)
{
    const char *secret = a->o->secret ? a->o->secret : key_secret;
    char *old_password = NULL, *new_password = NULL;
    uint8_t key[CIPHER_KEY_MAX];
    unsigned slot = 0;
    uint64_t iter_time = 0;
    bool ok;

    if (!a->o->new_secret)
        return error_set(error, "'new-secret' is required to activate a keyslot");
    if (a->o->old_secret)
        return error_set(error, "'old-secret' must not be given when activating keyslots");
    if (!secret)
        return error_set(error, "Parameter 'secret' is required: the image was opened without a secret");
    ok = luks_iter_time(a->o->has_iter_time, a->o->iter_time, 0, &iter_time, error) && choose_slot(a, &slot, error);
    if (ok) {
        old_password = secret_password(a->secrets, secret, error);
        ok = old_password;
    }
    if (ok) {
        new_password = secret_password(a->secrets, a->o->new_secret, error);
        ok = new_password;
    }
    if (ok)
        ok = luks_co_unlock(a->header, a->io, old_password, key, NULL, error);
    if (ok && a->header->slots[slot].active)
        ok = luks_co_erase_slot(a->header, a->io, slot, error);
    if (ok)
        ok = luks_co_fill_slot(a->header, a->io, slot, new_password, key, iter_time, error);
    explicit_bzero(key, sizeof(key));
    wipe_free_string(old_password);
    wipe_free_string(new_password);
    return ok;
}

/* Which slots the password unlocks: those in @among, a mask. */
static bool match_co_slots(const Amend *a, const char *password, unsigned among, unsigned *ret, GError **error)
{
    int64_t cpu_ns = LUKS_UNLOCK_NS;
    uint8_t key[CIPHER_KEY_MAX];
    int err = 0;

    *ret = 0;
    for (unsigned i = 0; i < LUKS_SLOTS && (err == 0 || err == -EACCES); i++) {
        if (!(among >> i & 1) || !a->header->slots[i].active)
            continue;
        err = luks_co_try_slot(a->header, a->io, i, password, key, &cpu_ns);
        *ret |= (err == 0) << i;
    }
    explicit_bzero(key, sizeof(key));
    return err == 0 || err == -EACCES || error_set_errno(error, -err, "Could not try the keyslots");
}

/* The slots to be erased, a mask. */
static bool choose_co_victims(const Amend *a, unsigned *ret, GError **error)
{
    const QCryptoBlockAmendOptionsLUKS *o = a->o;
    unsigned slot = (unsigned)o->keyslot;
    char *password;
    bool ok;

    if (o->has_keyslot && !a->header->slots[slot].active)
        return error_set(error, "Given keyslot %u is already erased (inactive) ", slot);
    *ret = o->has_keyslot ? 1u << slot : (1u << LUKS_SLOTS) - 1;
    if (!o->old_secret)
        return o->has_keyslot ||
               error_set(error, "To erase keyslot(s), either explicit keyslot index or the password currently "
                                "contained in them must be given");
    password = secret_password(a->secrets, o->old_secret, error);
    ok = password && match_co_slots(a, password, *ret, ret, error);
    wipe_free_string(password);
    if (ok && !*ret && o->has_keyslot)
        return error_set(error, "Given keyslot %u doesn't contain the given old password for erase operation", slot);
    if (ok && !*ret)
        return error_set(error, "No keyslots match given (old) password for erase operation");
    return ok;
}

static bool amend_co_erase(const Amend *a, GError **error)
{
    unsigned victims = 0;

    if (a->o->new_secret)
        return error_set(error, "'new-secret' must not be given when erasing keyslots");
    if (a->o->has_iter_time)
        return error_set(error, "'iter-time' must not be given when erasing keyslots");
    if (!choose_co_victims(a, &victims, error))
        return false;
    if (!a->force && (unsigned)__builtin_popcount(victims) == active_slots(a->header)) {
        if (!a->o->has_keyslot)
            return error_set(error, "All the active keyslots match the (old) password that was given and erasing them "
                                    "will erase all the data in the image irreversibly - refusing operation");
        return error_set(error,
                         "Attempt to erase the only active keyslot %u which will erase all the data in the image "
                         "irreversibly - refusing operation",
                         (unsigned)a->o->keyslot);
    }
    for (unsigned i = 0; i < LUKS_SLOTS; i++)
        if ((victims >> i & 1) && !luks_co_erase_slot(a->header, a->io, i, error))
            return false;
    return true;
}

bool luks_co_amend(LuksHeader *header, const LuksIo *io, SecretStore *secrets, const char *key_secret,
                   const QCryptoBlockAmendOptionsLUKS *o, bool force, GError **error)
{
    Amend a = {.header = header, .io = io, .secrets = secrets, .o = o, .force = force};

    if (o->has_keyslot && (o->keyslot < 0 || o->keyslot >= LUKS_SLOTS))
        return error_set(error, "Invalid keyslot %" G_GINT64_FORMAT " specified, must be between 0 and %d", o->keyslot,
                         LUKS_SLOTS - 1);
    return o->state == Q_CRYPTO_BLOCK_LUKS_KEYSLOT_STATE_ACTIVE ? amend_co_fill(&a, key_secret, error)
                                                                : amend_co_erase(&a, error);
}
