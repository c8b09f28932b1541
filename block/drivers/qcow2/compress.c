/*
 * Compression and decompression of single clusters, on worker threads.
 *
 * zlib: raw deflate with a window of 4 KiB. zstd: one frame. What follows the stream in its last sector is ignored.
 * Decompression has to fill its output exactly; nothing in the input makes it write or allocate more.
 */
#include "block/drivers/qcow2/qcow2.h"
#include <zlib.h>
#include <zstd.h>

#define ZLIB_WINDOW (-12)

typedef struct Job {
    const void *in;
    size_t in_size;
    void *out;
    size_t out_size;
    ssize_t ret;
} Job;

static int zlib_decompress(void *opaque)
{
    Job *job = opaque;
    z_stream strm = {.next_in = (Bytef *)job->in,
                     .avail_in = (uInt)job->in_size,
                     .next_out = job->out,
                     .avail_out = (uInt)job->out_size};
    int ret;

    if (inflateInit2(&strm, ZLIB_WINDOW) != Z_OK)
        return -ENOMEM;
    ret = inflate(&strm, Z_FINISH);
    inflateEnd(&strm);
    return (ret == Z_STREAM_END || ret == Z_BUF_ERROR) && strm.avail_out == 0 ? 0 : -EIO;
}

static int zlib_compress(void *opaque)
{
    Job *job = opaque;
    z_stream strm = {.next_in = (Bytef *)job->in,
                     .avail_in = (uInt)job->in_size,
                     .next_out = job->out,
                     .avail_out = (uInt)job->out_size};
    int ret = deflateInit2(&strm, Z_DEFAULT_COMPRESSION, Z_DEFLATED, ZLIB_WINDOW, 9, Z_DEFAULT_STRATEGY);

    if (ret != Z_OK)
        return -ENOMEM;
    ret = deflate(&strm, Z_FINISH);
    job->ret = ret == Z_STREAM_END ? (ssize_t)(job->out_size - strm.avail_out) : 0;
    deflateEnd(&strm);
    return 0;
}

static int zstd_decompress(void *opaque)
{
    Job *job = opaque;
    ZSTD_inBuffer in = {.src = job->in, .size = job->in_size};
    ZSTD_outBuffer out = {.dst = job->out, .size = job->out_size};
    ZSTD_DCtx *ctx = ZSTD_createDCtx();
    int ret = 0;

    if (!ctx)
        return -ENOMEM;
    while (out.pos < out.size && ret == 0) {
        size_t in_before = in.pos, out_before = out.pos;
        size_t left = ZSTD_decompressStream(ctx, &out, &in);
        if (ZSTD_isError(left) || (in.pos == in_before && out.pos == out_before))
            ret = -EIO;
    }
    ZSTD_freeDCtx(ctx);
    return ret;
}

static int zstd_compress(void *opaque)
{
    Job *job = opaque;
    ZSTD_inBuffer in = {.src = job->in, .size = job->in_size};
    ZSTD_outBuffer out = {.dst = job->out, .size = job->out_size};
    ZSTD_CCtx *ctx = ZSTD_createCCtx();
    size_t left;

    if (!ctx)
        return -ENOMEM;
    do {
        size_t before = out.pos;
        left = ZSTD_compressStream2(ctx, &out, &in, ZSTD_e_end);
        if (ZSTD_isError(left) || (left && (out.pos == out.size || out.pos == before)))
            break;
    } while (left);
    job->ret = left == 0 ? (ssize_t)out.pos : 0;
    ZSTD_freeCCtx(ctx);
    return 0;
}

int q2_co_decompress(Qcow2 *q, const void *in, size_t in_size, void *out, size_t out_size)
{
    Job job = {.in = in, .in_size = in_size, .out = out, .out_size = out_size};

    return aio_co_worker(q->header.compression_type ? zstd_decompress : zlib_decompress, &job);
}

ssize_t q2_co_compress(Qcow2 *q, const void *in, size_t in_size, void *out, size_t out_size)
{
    Job job = {.in = in, .in_size = in_size, .out = out, .out_size = out_size};
    int ret = aio_co_worker(q->header.compression_type ? zstd_compress : zlib_compress, &job);

    return ret < 0 ? ret : job.ret;
}
