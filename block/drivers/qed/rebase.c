/*
 * Another backing file in the header: its name goes beside the old one, durably, and then offset, length and flags
 * change in one write within the first sector. After a crash one of the two names is there.
 */
#include "block/drivers/qed/qed.h"

/* Where a name of @len bytes goes. False when the header has no room for it. */
static bool place_name(const QedHeader *h, size_t len, uint32_t *ret)
{
    uint64_t old = h->features & QED_F_BACKING_FILE ? h->backing_offset : 0, old_end = old + h->backing_size;

    *ret = QED_HEADER_BYTES;
    if (old && QED_HEADER_BYTES + len > old)
        *ret = (uint32_t)old_end;
    return *ret + len <= h->header_bytes;
}

static int write_co_header(Qed *q, const QedHeader *h)
{
    uint8_t buf[QED_HEADER_BYTES];
    int ret;

    qed_header_store(h, buf);
    ret = child_co_pwrite(q->node->file, QED_H_FEATURES, QED_HEADER_BYTES - QED_H_FEATURES, buf + QED_H_FEATURES, 0);
    return ret < 0 ? ret : child_co_flush(q->node->file);
}

static int rebase_co_header(Qed *q, QedHeader *h, const char *file, const char *format)
{
    int ret = 0;

    h->autoclear = 0;
    h->features &= ~(QED_F_BACKING_FILE | QED_F_BACKING_FORMAT_NO_PROBE);
    h->backing_size = file ? (uint32_t)strlen(file) : 0;
    if (file) {
        h->features |= QED_F_BACKING_FILE | (g_strcmp0(format, "raw") ? 0 : QED_F_BACKING_FORMAT_NO_PROBE);
        ret = child_co_pwrite(q->node->file, h->backing_offset, h->backing_size, file, 0);
        if (ret == 0)
            ret = child_co_flush(q->node->file);
    } else {
        h->backing_offset = 0;
    }
    return ret < 0 ? ret : write_co_header(q, h);
}

bool qed_co_change_backing(Node *node, const char *file, const char *format, GError **error)
{
    Qed *q = qed_of(node);
    QedHeader h;
    int ret;

    comutex_co_lock(&q->header_lock);
    h = q->header;
    if (file && (strlen(file) > QED_MAX_BACKING || !place_name(&q->header, strlen(file), &h.backing_offset))) {
        comutex_unlock(&q->header_lock);
        return error_set(error,
                         "Backing file name too long: its %zu bytes do not fit into the header of %" G_GUINT64_FORMAT,
                         strlen(file), q->header.header_bytes);
    }
    ret = rebase_co_header(q, &h, file, format);
    if (ret == 0) {
        q->header = h;
        g_free(q->backing_file);
        q->backing_file = g_strdup(file);
    }
    comutex_unlock(&q->header_lock);
    return ret == 0 || error_set_errno(error, -ret, "Could not write the header of '%s'", node->name);
}
