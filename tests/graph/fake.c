#include "tests/graph/fake.h"
#include "block/util/iovec.h"

Graph *fake_graph;

static int fake_co_gate(Fake *f)
{
    if (f->hold) {
        f->held_count++;
        coqueue_co_wait(&f->held, NULL);
        f->held_count--;
    }
    return -f->fail;
}

static void check_request(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset)
{
    const Limits *l = &node->limits;
    struct iovec iov[64];
    int n;

    assert_true((offset | bytes) % l->request_alignment == 0);
    assert_true(bytes > 0 && offset + bytes <= node->size);
    assert_true(!vec || !l->max_transfer || bytes <= l->max_transfer);
    if (!vec)
        return;
    n = iov_slice(iov, 64, vec->iov, vec->n, vec_offset, bytes);
    assert_true(n > 0);
    for (int i = 0; i < n; i++) {
        assert_true((uintptr_t)iov[i].iov_base % l->min_mem_align == 0);
        assert_true(l->min_mem_align == 1 || iov[i].iov_len % l->request_alignment == 0);
    }
}

static int fake_co_preadv(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                          ReqFlags flags)
{
    Fake *f = node->state;
    int ret;

    check_request(node, offset, bytes, vec, vec_offset);
    g_string_append_printf(f->log, "r%" G_GUINT64_FORMAT "+%" G_GUINT64_FORMAT " ", offset, bytes);
    ret = fake_co_gate(f);
    if (ret == 0)
        iov_from_buf(vec->iov, vec->n, vec_offset, f->data + offset, bytes);
    return ret;
}

static int fake_co_pwritev(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                           ReqFlags flags)
{
    Fake *f = node->state;
    int ret;

    check_request(node, offset, bytes, vec, vec_offset);
    g_string_append_printf(f->log, "w%" G_GUINT64_FORMAT "+%" G_GUINT64_FORMAT "%s ", offset, bytes,
                           flags & REQ_FUA ? "!" : "");
    ret = fake_co_gate(f);
    if (ret == 0)
        iov_to_buf(vec->iov, vec->n, vec_offset, f->data + offset, bytes);
    return ret;
}

static int fake_co_pwrite_zeroes(Node *node, uint64_t offset, uint64_t bytes, ReqFlags flags)
{
    Fake *f = node->state;
    int ret;

    check_request(node, offset, bytes, NULL, 0);
    if (!f->zeroes_native)
        return -ENOTSUP;
    g_string_append_printf(f->log, "z%" G_GUINT64_FORMAT "+%" G_GUINT64_FORMAT "%s ", offset, bytes,
                           flags & REQ_MAY_UNMAP ? "u" : "");
    ret = fake_co_gate(f);
    if (ret == 0)
        memset(f->data + offset, 0, bytes);
    return ret;
}

static int fake_co_pdiscard(Node *node, uint64_t offset, uint64_t bytes)
{
    Fake *f = node->state;

    check_request(node, offset, bytes, NULL, 0);
    if (!f->zeroes_native)
        return -ENOTSUP;
    g_string_append_printf(f->log, "d%" G_GUINT64_FORMAT "+%" G_GUINT64_FORMAT " ", offset, bytes);
    return fake_co_gate(f);
}

static int fake_co_flush_to_disk(Node *node)
{
    Fake *f = node->state;
    int ret;

    g_string_append(f->log, "f ");
    ret = fake_co_gate(f);
    if (f->fail_flush) {
        node->failed = true;
        return -f->fail_flush;
    }
    return ret;
}

static int fake_co_block_status(Node *node, bool want_zero, uint64_t offset, uint64_t bytes, BlockStatus *ret)
{
    Fake *f = node->state;
    bool first = !f->allocated || f->allocated(offset);
    uint64_t n = 512 - offset % 512;

    while (n < bytes && (!f->allocated || f->allocated(offset + n)) == first)
        n += 512;
    ret->bytes = MIN(n, bytes);
    ret->flags = first ? STATUS_DATA | STATUS_ALLOCATED | STATUS_OFFSET_VALID : 0;
    ret->map = offset;
    ret->file = node;
    return 0;
}

static bool fake_check_perm(Node *node, unsigned perm, unsigned shared, GError **error)
{
    Fake *f = node->state;

    if (f->refuse_perm)
        return error_set(error, "fake '%s' refuses", node->name);
    f->perm_prepared++;
    return true;
}

static void fake_set_perm(Node *node, unsigned perm, unsigned shared)
{
    fake_of(node)->perm_set++;
}

static void fake_abort_perm(Node *node)
{
    fake_of(node)->perm_aborted++;
}

static int64_t fake_co_getlength(Node *node)
{
    return (int64_t)fake_of(node)->length;
}

static bool fake_co_truncate(Node *node, uint64_t size, bool exact, PreallocMode prealloc, ReqFlags flags,
                             GError **error)
{
    Fake *f = node->state;

    f->data = g_realloc(f->data, size);
    if (size > node->size)
        memset(f->data + node->size, 0, size - node->size);
    f->length = size; /* the graph asks and updates the node itself */
    return true;
}

static bool fake_co_set_read_only(Node *node, bool read_only, GError **error)
{
    fake_co_gate(fake_of(node));
    return !fake_of(node)->refuse_reopen || error_set(error, "fake '%s' stays as it is", node->name);
}

static void fake_co_close(Node *node)
{
    g_free(fake_of(node)->data);
    g_string_free(fake_of(node)->log, TRUE);
}

static int fake_co_touch_bitmaps(Node *node)
{
    int ret = fake_co_gate(node->state);

    fake_of(node)->touched++;
    return ret;
}

#define FAKE_CALLBACKS                                                                                                 \
    .state_size = sizeof(Fake), .co_close = fake_co_close, .co_preadv = fake_co_preadv, .co_pwritev = fake_co_pwritev, \
    .co_pwrite_zeroes = fake_co_pwrite_zeroes, .co_pdiscard = fake_co_pdiscard,                                        \
    .co_block_status = fake_co_block_status, .check_perm = fake_check_perm, .set_perm = fake_set_perm,                 \
    .abort_perm = fake_abort_perm, .co_getlength = fake_co_getlength, .co_truncate = fake_co_truncate,                 \
    .co_set_read_only = fake_co_set_read_only, .co_touch_bitmaps = fake_co_touch_bitmaps

static const Driver driver_fake = {
    .name = "fake", .is_protocol = true, FAKE_CALLBACKS, .co_flush_to_disk = fake_co_flush_to_disk};
static const Driver driver_overlay = {.name = "fake-overlay", .is_format = true, FAKE_CALLBACKS};
static const Driver driver_filter = {.name = "fake-filter", .is_filter = true};

static Node *fake_new(const Driver *drv, const char *name, uint64_t size)
{
    NodeFlags flags = {.discard_unmap = true};
    Node *node = node_new_internal(fake_graph, drv, name, &flags, size, NULL);

    assert_non_null(node);
    if (drv->state_size) {
        fake_of(node)->data = g_malloc0(size);
        fake_of(node)->length = size;
        fake_of(node)->log = g_string_new(NULL);
        fake_of(node)->zeroes_native = true;
    }
    return node;
}

static void fake_co_attach(Node *parent, const char *name, Node *node, ChildRole role)
{
    g_autoptr(GraphTxn) txn = graph_txn_new(fake_graph);

    graph_txn_attach(txn, parent, name, node, role);
    assert_true(graph_txn_co_commit(txn, NULL));
}

Node *fake_node(const char *name, uint64_t size)
{
    return fake_new(&driver_fake, name, size);
}

Node *fake_co_filter(const char *name, Node *below)
{
    Node *node = fake_new(&driver_filter, name, below->size);

    fake_co_attach(node, "file", below, ROLE_FILTER);
    return node;
}

Node *fake_co_overlay(const char *name, uint64_t size, Node *backing)
{
    Node *node = fake_new(&driver_overlay, name, size);

    fake_co_attach(node, "backing", backing, ROLE_COW);
    return node;
}

char *fake_log_take(Node *node)
{
    Fake *f = node->state;
    char *text = g_strdup(g_strchomp(f->log->str));

    g_string_truncate(f->log, 0);
    return text;
}

void fake_release(Node *node)
{
    fake_of(node)->hold = false;
    coqueue_wake_all(&fake_of(node)->held);
}

void fake_pattern(void *buf, uint64_t offset, size_t size, unsigned seed)
{
    for (size_t i = 0; i < size; i++)
        ((uint8_t *)buf)[i] = (uint8_t)((offset + i) * 7 + (offset + i) / 251 + seed);
}

typedef struct Run {
    CoroutineEntry *entry;
    Loop *loop;
} Run;

static void run_co_entry(void *opaque)
{
    Run *run = opaque;

    run->entry(NULL);
    loop_stop(run->loop);
}

void fake_run(CoroutineEntry *entry)
{
    GError *error = NULL;
    Run run = {.entry = entry, .loop = loop_new(&error)};

    assert_non_null(run.loop);
    fake_graph = graph_new(run.loop);
    coroutine_start(run.loop, run_co_entry, &run);
    loop_run(run.loop);
    graph_free(fake_graph);
    loop_free(run.loop);
}
