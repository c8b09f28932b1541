/*
 * Reads that do not copy: the data stays where it is, and its pages go to whoever asked.
 *
 * The request is over when the pages have been found, but they are looked at later, when the receiver copies them. What
 * is written there in between is what he gets. For a reader outside who has no answer yet that is as good as the old
 * data: his read and that write are under way at the same time. It is so only while a block of the disk has one place
 * for good. Where another block may get the place (qcow2 reuses clusters that were discarded), he would see data of a
 * block that he did not ask for. Where reads are held against writes until they have copied (a point in time that is
 * shown to somebody), he would see what came later. Hence a driver takes part only by having co_read_pages, filters
 * included: by default reads copy.
 */
#include "block/graph/graph-int.h"
#include <errno.h>

bool node_has_pages(const Node *node)
{
    while (node && node->drv->co_read_pages) {
        if (!node->file)
            return node->pages;
        node = node->file->node;
    }
    return false;
}

int child_co_read_pages(Child *child, uint64_t offset, uint64_t bytes, AioPipe *pipe)
{
    Node *node = child->node;
    int ret;

    /* Past the end there are zeroes and no pages. */
    if (!node->drv->co_read_pages || offset + bytes > node->size)
        return -ENOTSUP;
    node_in_flight_inc(node);
    ret = node->drv->co_read_pages(node, offset, bytes, pipe);
    node_in_flight_dec(node);
    return ret;
}
