/*
 * The create job.
 *
 * Nodes that the options name, or describe, are opened by the job itself, as are its ports: an error there is the job's
 * error. The driver does the rest (Driver.co_create): it looks at the options first and empties the node then. A node's
 * permissions are the lock: what is in use by others who would notice is refused before anything of it is touched.
 */
#include "block/jobs/create.h"
#include "block/graph/driver.h"
#include "block/jobs/job-int.h"

typedef struct CreateJob {
    Job common;
    BlockdevCreateOptions *options;
} CreateJob;

/* A node to write to, and our port on it. */
typedef struct Place {
    Node *node;
    Port *port;
} Place;

static bool place_co_open(Job *job, const BlockdevRef *ref, Place *place, GError **error)
{
    NodeFlags flags = {.discard_unmap = true};

    if (ref->kind == BLOCKDEV_REF_REFERENCE) {
        Node *node = graph_lookup(job->graph, ref->u.reference, error);
        place->node = node ? node_ref(node) : NULL;
    } else {
        place->node = node_co_open(job->graph, ref->u.definition, &flags, error);
    }
    if (place->node)
        place->port = port_co_new(job->graph, place->node, PERM_CONSISTENT_READ | PERM_WRITE | PERM_RESIZE,
                                  PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED, NULL, job, error);
    if (place->port)
        place->port->writable = true;
    return place->port != NULL;
}

static void place_co_close(Place *place)
{
    port_co_free(place->port);
    node_co_unref(place->node);
}

/* Lays the image out in @file. */
static bool create_co_in_file(Job *job, const BlockdevRef *file, const CreateOptions *options, GError **error)
{
    const Driver *drv = driver_find(qapi_BlockdevDriver_str(((CreateJob *)job)->options->driver));
    Place place = {0};
    bool ok = place_co_open(job, file, &place, error);

    if (ok) {
        g_autofree char *filename = node_filename(place.node);
        ok = drv->co_create(job->graph, filename, place.port, options, error);
    }
    place_co_close(&place);
    return ok;
}

static bool create_co_qcow2(Job *job, const BlockdevCreateOptionsQcow2 *o, GError **error)
{
    g_autofree char *data_name = NULL;
    Place data = {0};
    CreateOptions options = {
        .size = o->size,
        .exact = true,
        .backing_file = o->backing_file && *o->backing_file ? o->backing_file : NULL,
        .cluster_size = o->has_cluster_size ? MAX(o->cluster_size, 1) : 0, /* 0 is no size, 1 is refused */
        .preallocation = o->has_preallocation ? o->preallocation : PREALLOC_MODE_OFF,
        .version = o->has_version && o->version == BLOCKDEV_QCOW2_VERSION_V2 ? 2 : 3,
        .refcount_bits = !o->has_refcount_bits ? 0
                         : o->refcount_bits    ? o->refcount_bits
                                               : -1,
        .lazy_refcounts = o->lazy_refcounts,
        .extended_l2 = o->extended_l2,
        .zstd = o->has_compression_type && o->compression_type == QCOW2_COMPRESSION_TYPE_ZSTD,
        .data_file_raw = o->data_file_raw,
        .encrypt = o->encrypt,
    };
    bool ok = !o->data_file || place_co_open(job, o->data_file, &data, error);

    if (o->has_backing_fmt && (options.backing_file || !o->backing_file))
        options.backing_format = qapi_BlockdevDriver_str(o->backing_fmt);
    if (ok && o->data_file) {
        options.data_file = data.port;
        options.data_file_name = data_name = node_filename(data.node);
    }
    ok = ok && create_co_in_file(job, o->file, &options, error);
    place_co_close(&data);
    return ok;
}

static bool create_co_qed(Job *job, const BlockdevCreateOptionsQed *o, GError **error)
{
    const CreateOptions options = {
        .size = o->size,
        .exact = true,
        .backing_file = o->backing_file,
        .backing_format = o->has_backing_fmt ? qapi_BlockdevDriver_str(o->backing_fmt) : NULL,
        .cluster_size = o->has_cluster_size ? MAX(o->cluster_size, 1) : 0,
        .table_size = !o->has_table_size ? 0
                      : o->table_size    ? o->table_size
                                         : -1,
    };

    return create_co_in_file(job, o->file, &options, error);
}

static bool create_co_luks(Job *job, const BlockdevCreateOptionsLUKS *o, GError **error)
{
    QCryptoBlockCreateOptionsLUKS luks = {
        .key_secret = o->key_secret,
        .has_cipher_alg = o->has_cipher_alg,
        .cipher_alg = o->cipher_alg,
        .has_cipher_mode = o->has_cipher_mode,
        .cipher_mode = o->cipher_mode,
        .has_ivgen_alg = o->has_ivgen_alg,
        .ivgen_alg = o->ivgen_alg,
        .has_ivgen_hash_alg = o->has_ivgen_hash_alg,
        .ivgen_hash_alg = o->ivgen_hash_alg,
        .has_hash_alg = o->has_hash_alg,
        .hash_alg = o->hash_alg,
        .has_iter_time = o->has_iter_time,
        .iter_time = o->iter_time,
    };
    const CreateOptions options = {
        .size = o->size,
        .exact = true,
        .preallocation = o->has_preallocation ? o->preallocation : PREALLOC_MODE_OFF,
        .luks = &luks,
    };

    return create_co_in_file(job, o->file, &options, error);
}

static bool create_co_file(Job *job, const BlockdevCreateOptionsFile *o, GError **error)
{
    const CreateOptions options = {
        .size = o->size,
        .exact = true,
        .preallocation = o->has_preallocation ? o->preallocation : PREALLOC_MODE_OFF,
        .nocow = o->nocow,
        .has_extent_size_hint = o->has_extent_size_hint,
        .extent_size_hint = (int64_t)o->extent_size_hint,
    };

    return driver_find("file")->co_create(job->graph, o->filename, NULL, &options, error);
}

static int create_co_run(Job *job, GError **error)
{
    const BlockdevCreateOptions *o = ((CreateJob *)job)->options;
    bool ok;

    job_progress_set_remaining(job, 1);
    switch (o->driver) {
    case BLOCKDEV_DRIVER_FILE:
        ok = create_co_file(job, &o->u.file, error);
        break;
    case BLOCKDEV_DRIVER_QCOW2:
        ok = create_co_qcow2(job, &o->u.qcow2, error);
        break;
    case BLOCKDEV_DRIVER_LUKS:
        ok = create_co_luks(job, &o->u.luks, error);
        break;
    default:
        ok = create_co_qed(job, &o->u.qed, error);
        break;
    }
    job_progress_done(job, 1); /* an attempt is all that there is to do */
    return ok ? 0 : -EIO;
}

static void create_free(Job *job)
{
    qapi_free_BlockdevCreateOptions(((CreateJob *)job)->options);
}

static const JobDriver create_job_driver = {
    .type = JOB_TYPE_CREATE,
    .size = sizeof(CreateJob),
    .co_run = create_co_run,
    .free = create_free,
};

Job *create_job_new(JobList *list, const char *id, const BlockdevCreateOptions *options, GError **error)
{
    Job *job;

    if (options->driver != BLOCKDEV_DRIVER_FILE && options->driver != BLOCKDEV_DRIVER_QCOW2 &&
        options->driver != BLOCKDEV_DRIVER_QED && options->driver != BLOCKDEV_DRIVER_LUKS) {
        error_set(error, "Driver does not support blockdev-create");
        return NULL;
    }
    job = job_new(list, &create_job_driver, id, NULL, true, false, error);
    if (job)
        ((CreateJob *)job)->options = qapi_clone_BlockdevCreateOptions(options);
    return job;
}
