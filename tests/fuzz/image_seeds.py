#!/usr/bin/env python3
"""Makes inputs that the fuzz target drivers-image begins with: images of qemu-img, small, with a script at the end.

    image_seeds.py DIR       writes them to DIR, usually tests/fuzz/corpus/drivers-image

What needs an image's name in the corpus to mean something is made here; scripts found by the fuzzer are kept beside.
"""
import os
import random
import struct
import sys
import tempfile

TESTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..')
sys.path[:0] = [os.path.join(TESTS, 'interop'), os.path.join(TESTS, 'iotests')]
import sd  # pylint: disable=wrong-import-position
from broken_images import COPIED, OFFSET, Image  # pylint: disable=wrong-import-position

SECRET = ('--object', 'secret,id=k,data=k')
(READ, WRITE, ZERO, ZERO_UNMAP, DISCARD, FLUSH, COMPRESS, STATUS, RESIZE, REOPEN, REOPEN_READ_ONLY, REBASE, CHECK, SNAPSHOT,
 BITMAP, KEY_SLOT) = range(16)
SMALL_CACHES, READ_ONLY_FIRST, LONGER = 1, 2, 8
EXT_CRYPTO = 0x0537be77


def create(path, size, fmt='qcow2', **options):
    o = ','.join(f'{k.replace("__", ".").replace("_secret", "-secret").replace("iter_time", "iter-time")}={v}'
                 for k, v in options.items())
    sd.qemu_img('create', '-q', *SECRET, '-f', fmt, *(['-o', o] if o else []), path, size)


def io(path, *commands):
    sd.run('qemu-io', '-f', 'qcow2', *[x for c in commands for x in ('-c', c)], path)


def luks_header(path, cipher, mode, ivgen, digest):
    """The LUKS header of a volume and the material of its first slot."""
    o = f'key-secret=k,iter-time=1,cipher-alg={cipher},cipher-mode={mode},ivgen-alg={ivgen},hash-alg={digest}'
    if ivgen == 'essiv':
        o += ',ivgen-hash-alg=sha256'
    sd.qemu_img('create', '-q', *SECRET, '-f', 'luks', '-o', o, path, '4k')
    with open(path, 'rb') as f:
        data = bytearray(f.read())
    first, = struct.unpack_from('>I', data, 208 + 40)
    key_bytes, = struct.unpack_from('>I', data, 108)
    del data[(first * 512 + key_bytes * 4000 + 511) // 512 * 512:]
    return data


def encrypted(path, header, cluster_bits=11):
    """A qcow2 image of 16 clusters of data, and the LUKS header last, so that what its free slots take are zeroes."""
    cluster, order = 1 << cluster_bits, 4
    area = struct.unpack_from('>I', header, 104)[0] * 512
    i = Image(bytes(cluster * 24))
    i.put(0, 4, 0x514649fb)
    i.version, i.cluster_bits, i.size, i.crypt, i.l1_size = 3, cluster_bits, 32 * cluster, 2, 1
    i.l1, i.rt, i.rt_clusters, i.refcount_order, i.header_length = 3 * cluster, cluster, 1, order, 104
    i.put(104, 8, EXT_CRYPTO << 32 | 16)
    i.put(112, 8, 24 * cluster)
    i.put(120, 8, area)
    i.put(i.rt, 8, 2 * cluster)
    i.put(i.l1, 8, 4 * cluster | COPIED)
    for gc in range(16):
        i.put(4 * cluster + 8 * gc, 8, (5 + gc) * cluster | COPIED)
    i.set_entry(7, 12 * cluster | COPIED | 1)
    for ci in [*range(21), *range(24, 24 + -(-area // cluster))]:
        i.set_refcount(ci, 1)
    i.data += header
    i.save(path)


def script(seed, also, n=24):
    """Operations at random, of which many are those of @also."""
    rng = random.Random(seed)
    ops = [(rng.choice((*also, *also, READ, WRITE, ZERO, ZERO_UNMAP, DISCARD, FLUSH, STATUS, RESIZE, REOPEN, CHECK)),
            rng.randrange(256), rng.randrange(256), rng.randrange(256)) for _ in range(n)]
    # Sizes of the disk change little.
    return [(op, 0, b, c & ~0x20) if op == RESIZE else (op, a, b, c) for op, a, b, c in ops]


class Seeds:
    def __init__(self, directory):
        self.directory = directory
        self.temporary = tempfile.TemporaryDirectory()
        self.image = os.path.join(self.temporary.name, 'image')

    def path(self, name):
        return os.path.join(self.temporary.name, name)

    def add(self, name, ops=(), options=0):
        """The image that was made, under @name, with a script."""
        with open(self.image, 'rb') as f:
            data = f.read()
        trailer = b''.join(bytes(op) for op in ops) + bytes([options, len(ops)]) + b'SDS1'
        with open(os.path.join(self.directory, name), 'wb') as f:
            f.write(data + trailer)

    def make_encrypted(self):
        # Slow hashes: few iterations.
        kinds = {'essiv': ('aes-128', 'cbc', 'essiv', 'ripemd160'), 'xts': ('aes-128', 'xts', 'plain64', 'sha512')}
        for name, kind in kinds.items():
            encrypted(self.image, luks_header(self.path('luks'), *kind))
            self.add(f'luks-{name}', script(name, (KEY_SLOT, SNAPSHOT, BITMAP)), LONGER)
        with open(self.image, 'wb') as f:
            f.write(luks_header(self.path('luks'), *kinds['essiv']))
        self.add('luks-volume', script('volume', (KEY_SLOT,)), LONGER)
        create(self.image, '128k', cluster_size=4096, encrypt__format='aes', encrypt__key_secret='k')
        self.add('aes', script('aes', (SNAPSHOT,)))

    def make_bitmaps(self):
        for name, cluster, granularities in (('4k', 4096, (512, 4096, 65536)), ('512', 512, (512, 65536))):
            create(self.image, '1M', cluster_size=cluster)
            for k, g in enumerate(granularities):
                sd.qemu_img('bitmap', '--add', '-g', str(g), self.image, f'b{k}')
            io(self.image, 'write -P 1 0 4k', 'write -P 2 512k 8k', 'write -z 256k 4k')
            self.add(f'bitmaps-{name}', script(name, (BITMAP,)))
        sd.qemu_img('bitmap', '--disable', self.image, 'b1')
        i = Image.read(self.image)
        at = i.bitmap_directory
        i.put(at + 12, 4, i.get(at + 12, 4) | 1)  # in use: inconsistent
        i.save(self.image)
        self.add('bitmaps-in-use', script('in use', (BITMAP,)))

    def make_snapshots(self):
        for name, options in (('4k', {'cluster_size': 4096}), ('512', {'cluster_size': 512, 'refcount_bits': 4}),
                              ('v2', {'cluster_size': 4096, 'compat': '0.10'})):
            create(self.image, '256k', **options)
            for k in range(3):
                io(self.image, f'write -P {k + 1} {k * 8}k 12k', f'write -P 4 {128 + k}k 1k')
                sd.qemu_img('snapshot', '-c', f's{k}', self.image)
            io(self.image, 'write -P 9 4k 4k')
            if name != 'v2':
                sd.qemu_img('resize', '-q', self.image, '300k')
                sd.qemu_img('bitmap', '--add', self.image, 'b0')
            self.add(f'snapshots-{name}', script(name, (SNAPSHOT, BITMAP)), SMALL_CACHES if name == '512' else 0)
        # One has state of a machine, and data that nobody knows.
        create(self.image, '256k', cluster_size=4096)
        io(self.image, 'write -P 1 0 16k')
        sd.qemu_img('snapshot', '-c', 's0', self.image)
        i = Image.read(self.image)
        at = i.snapshots
        entry = bytes(i.data[at:at + 64])
        i.put(at + 32, 4, 5000)
        i.put(at + 36, 4, 40)
        i.data[at + 40:at + 80] = struct.pack('>QQQ', 5000, i.size, 7) + b'unknown data 16b'
        i.data[at + 80:at + 80 + 24] = entry[64 - 24:]
        i.save(self.image)
        self.add('snapshots-extra', script('extra', (SNAPSHOT,)))

    def make_data_files(self):
        for raw in ('on', 'off'):
            create(self.image, '256k', cluster_size=4096, data_file=self.path('data'), data_file_raw=raw)
            sd.qemu_img('bitmap', '--add', self.image, 'b0')
            io(self.image, 'write -P 1 0 16k', 'write -z 64k 4k')
            i = Image.read(self.image)
            assert i.host(1) == 4096 and i.l2() & OFFSET
            self.add(f'data-file-{raw}', script(raw, (BITMAP,)))


def main():
    seeds = Seeds(sys.argv[1])
    seeds.make_encrypted()
    seeds.make_bitmaps()
    seeds.make_snapshots()
    seeds.make_data_files()


if __name__ == '__main__':
    main()
