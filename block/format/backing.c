/*
 * Backing files: opening, reading.
 */
#include "block/format/backing.h"
#include "block/graph/debug.h"
#include "block/graph/io.h"
#include "block/util/bytes.h"
#include "block/util/iovec.h"

bool backing_co_open(Node *node, const BlockdevRefOrNull *given, const char *filename, const char *format,
                     GError **error)
{
    if (given && given->kind == BLOCKDEV_REF_OR_NULL_NULL) {
        node->backing_expected = filename != NULL;
        return true;
    }
    if (given) {
        BlockdevRef ref = {.kind = BLOCKDEV_REF_REFERENCE, .u.reference = given->u.reference};
        if (given->kind == BLOCKDEV_REF_OR_NULL_DEFINITION) {
            ref.kind = BLOCKDEV_REF_DEFINITION;
            ref.u.definition = given->u.definition;
        }
        return node_co_open_child(node, "backing", &ref, ROLE_COW, error) != NULL;
    }
    return !filename || node_co_open_backing(node, filename, format, error) != NULL;
}

int backing_co_read(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset)
{
    Child *backing = node->backing;
    uint64_t size = backing ? backing->node->size : 0, inside = offset < size ? u64_min(bytes, size - offset) : 0;

    if (inside < bytes)
        iov_memset(vec->iov, vec->n, vec_offset + inside, 0, bytes - inside);
    if (!inside)
        return 0;
    child_co_debug_event(node->file, BLKDEBUG_EVENT_READ_BACKING_AIO);
    return child_co_preadv(backing, offset, inside, vec, vec_offset, 0);
}
