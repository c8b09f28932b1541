"""qcow2 as qemu-img makes it, in every pair of options: we read what it wrote, it reads and checks what we wrote."""
import itertools
import json
import os
import random
import unittest

import sd

SIZE = 8 * sd.MIB + 512 * 7  # ends inside a cluster
OPTIONS = {
    'compat': ('1.1', '0.10'),
    'cluster_size': ('65536', '512', '4096', '2097152'),
    'refcount_bits': ('16', '1', '64'),
    'lazy_refcounts': ('off', 'on'),
    'preallocation': ('off', 'metadata'),
    'compression_type': ('zlib', 'zstd'),
    'extended_l2': ('off', 'on'),
    'data_file': ('none', 'mapped', 'raw'),
    'encryption': ('none', 'luks'),
    'backing': ('none', 'raw', 'qcow2', 'short'),
    'data': ('plain', 'compressed'),
    'snapshots': ('none', 'one'),
    'bitmaps': ('none', 'one'),
}
ONLY_V3 = {'refcount_bits': '16', 'lazy_refcounts': 'off', 'compression_type': 'zlib', 'extended_l2': 'off',
           'data_file': 'none', 'bitmaps': 'none'}
SECRET = ('--object', 'secret,id=s,data=x')


def possible(o):
    """What qemu-img itself takes."""
    if o['compat'] == '0.10' and any(o[k] != v for k, v in ONLY_V3.items()):
        return False
    if o['preallocation'] != 'off' and (o['backing'], o['data']) != ('none', 'plain'):
        return False
    if o['data'] == 'compressed' and (o['data_file'] != 'none' or o['encryption'] != 'none'):
        return False
    if o['extended_l2'] == 'on' and int(o['cluster_size']) < 16384:
        return False
    if o['data_file'] == 'raw' and o['backing'] != 'none':
        return False
    return o['snapshots'] == 'none' or (o['data_file'] == 'none' and o['refcount_bits'] != '1')


def pairwise():
    """Rows that together hold every possible pair of values, greedily and always the same."""
    names = list(OPTIONS)
    rows = [r for r in (dict(zip(names, values)) for values in itertools.product(*OPTIONS.values())) if possible(r)]
    random.Random(1).shuffle(rows)

    def pairs(row):
        return set(itertools.combinations(row.items(), 2))

    left = set()
    for (i, a), (k, b) in itertools.combinations(enumerate(OPTIONS), 2):
        left.update({((a, r[a]), (b, r[b])) for r in rows})
    chosen = []
    while left:
        (a, x), (b, y) = min(left)
        fitting = [r for r in rows if r[a] == x and r[b] == y]
        chosen.append(max(fitting[:150], key=lambda r: len(pairs(r) & left)))
        left -= pairs(chosen[-1])
    return chosen


class Options(sd.Case):
    CASE_TIMEOUT = 10 * sd.TIMEOUT

    def content(self, seed, size):
        """A few runs of noise in zeroes, as bytes."""
        rng, data = random.Random(seed), bytearray(size)
        for _ in range(12):
            start = rng.randrange(size)
            length = min(rng.choice((512, 5000, 70000, 300000)), size - start)
            data[start:start + length] = rng.randbytes(length // 2) + b'compressible' * (length // 24 + 1)
            del data[size:]
        return data

    def image(self, row, name):
        """The image that @row describes, and what it reads as."""
        data = self.content(1, SIZE)
        source = self.path('source.raw')
        with open(source, 'wb') as f:
            f.write(data)
        path = self.path(f'{name}.qcow2')
        words = ['compat', 'cluster_size', 'preallocation']
        if row['compat'] == '1.1':
            words += ['lazy_refcounts', 'refcount_bits', 'compression_type', 'extended_l2']
        o = ','.join(f'{k}={row[k]}' for k in words)
        if row['data_file'] != 'none':
            o += f",data_file={path}.data,data_file_raw={'on' if row['data_file'] == 'raw' else 'off'}"
        if row['encryption'] == 'luks':
            o += ',encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=20'
        argv = ['convert', *SECRET, '-f', 'raw', '-O', 'qcow2', '-o', o]
        if row['data'] == 'compressed':
            argv.append('-c')
        if row['backing'] == 'none':
            self.make(*argv, source, path)
            return path, data
        below_size = SIZE if row['backing'] != 'short' else 3 * sd.MIB
        below = self.content(2, below_size)
        fmt = 'qcow2' if row['backing'] == 'qcow2' else 'raw'
        with open(self.path('below.raw'), 'wb') as f:
            f.write(below)
        base = self.path('below.raw')
        if fmt == 'qcow2':
            base = self.path('below.qcow2')
            sd.qemu_img('convert', '-f', 'raw', '-O', 'qcow2', self.path('below.raw'), base)
        # Only what differs from the backing file is stored, so both layers show through.
        data[SIZE // 2:] = (bytes(below) + bytes(SIZE))[SIZE // 2:SIZE]
        with open(source, 'wb') as f:
            f.write(data)
        self.make(*argv, '-B', base, '-F', fmt, source, path)
        return path, data

    def make(self, *argv):
        for last in (False,) * 7 + (True,):  # on a busy machine qemu-img cannot always measure LUKS's cost
            if sd.qemu_img(*argv, check=last).returncode == 0:
                return

    def options(self, row, path):
        """Of the node, in words."""
        more = ',encrypt.format=luks,encrypt.key-secret=s' if row['encryption'] == 'luks' else ''
        return f'driver=qcow2{more},file.driver=file,file.filename={path}'

    def raw(self, row, path, *more):
        """What qemu-img reads."""
        sd.qemu_img('convert', *SECRET, *more, '--image-opts', '-O', 'raw', self.options(row, path), self.path('out.raw'))
        with open(self.path('out.raw'), 'rb') as f:
            return f.read()

    def writes(self, h, data):
        """Some writes of all kinds, in the export and in @data."""
        rng = random.Random(3)
        for i in range(40):
            start = rng.randrange(SIZE) // self.unit * self.unit
            length = min(-(-rng.choice((1, 512, 4096, 65536, 200000)) // self.unit) * self.unit, SIZE - start)
            if i % 4 == 3:
                h.zero(length, start)
                data[start:start + length] = bytes(length)
            else:
                noise = rng.randbytes(length)
                h.pwrite(noise, start)
                data[start:start + length] = noise
        h.flush()

    def read_all(self, h):
        return b''.join(h.pread(min(sd.MIB, SIZE - i), i) for i in range(0, SIZE, sd.MIB))

    def test_every_pair_1(self):
        self.every_pair(0)

    def test_every_pair_2(self):
        self.every_pair(1)

    def test_every_pair_3(self):
        self.every_pair(2)

    def every_pair(self, part):
        rows = pairwise()
        self.assertGreater(len(rows), 10)
        for i, row in list(enumerate(rows))[part::3]:
            with self.subTest(**row):
                path, data = self.image(row, f'i{i}')
                opts = self.options(row, path)
                if row['snapshots'] == 'one':
                    sd.qemu_img('snapshot', *SECRET, '--image-opts', '-c', 'kept', opts)
                    kept = bytes(data)
                if row['bitmaps'] == 'one':
                    sd.qemu_img('bitmap', *SECRET, '--image-opts', '--add', opts, 'b0')
                d = self.daemon(*SECRET, '--blockdev', f'{opts},node-name=q')
                with sd.nbd_connect(d.export('q', writable=True)) as h:
                    self.unit = h.get_block_size(0) or 1
                    self.assertEqual(SIZE, h.get_size())
                    self.assertTrue(self.read_all(h) == data, 'we read something else than qemu-img wrote')
                    self.writes(h, data)
                    self.assertTrue(self.read_all(h) == data, 'we read something else than we wrote')
                d.shutdown()
                sd.qemu_img('check', *SECRET, '--image-opts', opts)
                self.assertTrue(self.raw(row, path) == data, 'qemu-img reads something else than we wrote')
                if row['snapshots'] == 'one':
                    got = self.raw(row, path, '-l', 'snapshot.name=kept')
                    self.assertTrue(got == kept, 'the snapshot has changed')
                if row['bitmaps'] == 'one':
                    info = sd.qemu_img('info', *SECRET, '--image-opts', '--output=json', opts).stdout
                    bitmaps = json.loads(info)['format-specific']['data']['bitmaps']
                    self.assertEqual([('b0', ['auto'])], [(b['name'], b['flags']) for b in bitmaps])

    def refused(self, text, path, **options):
        d = self.daemon()
        self.fails(d, text, 'blockdev-add', driver='qcow2', node_name='q', file={'driver': 'file', 'filename': path})
        self.assertEqual([], d.cmd('query-named-block-nodes'))

    @unittest.skipIf(sd.STAND_IN, 'the peer supports it')
    def test_unsupported_is_named(self):
        """What of qcow2 we have not is refused by its name, or works."""
        cases = {'extended_l2': ({'extended_l2': 'on'}, r'(?i)extended|subcluster'),
                 'data_file': ({'data_file': self.path('data'), 'data_file_raw': 'on'}, r'(?i)data.file'),
                 'luks': ({'encrypt.format': 'luks', 'encrypt.key-secret': 's'}, r'(?i)luks|crypt')}
        for name, (options, text) in cases.items():
            with self.subTest(name):
                path = self.path(f'{name}.qcow2')
                for last in (False, False, False, True):  # on a busy machine qemu-img cannot always measure LUKS's cost
                    p = sd.qemu_img('create', '-q', '-f', 'qcow2', '--object', 'secret,id=s,data=x', '-o',
                                    ','.join(f'{k}={v}' for k, v in options.items()), path, '4M', check=last)
                    if p.returncode == 0:
                        break
                d = self.daemon()
                reply = d.qmp('blockdev-add', driver='qcow2', node_name='q', file={'driver': 'file', 'filename': path})
                if 'error' in reply:
                    self.assertRegex(reply['error']['desc'], text)
                    self.assertEqual([], d.cmd('query-named-block-nodes'))
                else:
                    with sd.nbd_connect(d.export('q', writable=True)) as h:
                        h.pwrite(b'x' * 1000, 70000)
                    d.shutdown()
                    sd.check_image(path)

    def test_grows_tables(self):
        """Writes over a large, sparse disk grow the L1 reach and the refcount table."""
        for cluster in ('512', '65536'):
            with self.subTest(cluster):
                path = self.path(f'large-{cluster}.qcow2')
                size = 64 * sd.GIB if cluster == '65536' else sd.GIB
                sd.qemu_img('create', '-q', '-f', 'qcow2', '-o', f'cluster_size={cluster}', path, str(size))
                d = self.daemon('--blockdev', f'qcow2,node-name=q,file.driver=file,file.filename={path}')
                places = [size // 97 * i for i in range(97)] + [size - 512]
                with sd.nbd_connect(d.export('q', writable=True)) as h:
                    for i, place in enumerate(places):
                        h.pwrite(bytes([i + 1]) * 512, place)
                    h.pwrite(os.urandom(8 * sd.MIB), 0)
                    for i, place in enumerate(places[10:], 10):
                        self.assertEqual(bytes([i + 1]) * 512, h.pread(512, place))
                d.shutdown()
                sd.check_image(path)
                sd.qemu_io(path, *(f'read -q -P {i + 1} {place} 512' for i, place in enumerate(places) if i > 9), fmt='qcow2')


if __name__ == '__main__':
    sd.main()
