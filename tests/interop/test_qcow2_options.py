"""qcow2 as qemu-img makes it, in every pair of options: we read what it wrote, it reads and checks what we wrote."""
import itertools
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
    'backing': ('none', 'raw', 'qcow2', 'short'),
    'data': ('plain', 'compressed'),
}
ONLY_V3 = {'refcount_bits': '16', 'lazy_refcounts': 'off', 'compression_type': 'zlib'}


def possible(options):
    """What qemu-img itself takes."""
    if options['compat'] == '0.10' and any(options[k] != v for k, v in ONLY_V3.items()):
        return False
    return options['preallocation'] == 'off' or (options['backing'], options['data']) == ('none', 'plain')


def pairwise():
    """Rows that together hold every possible pair of values, greedily and always the same."""
    names = list(OPTIONS)
    rows = [r for r in (dict(zip(names, values)) for values in itertools.product(*OPTIONS.values())) if possible(r)]
    random.Random(1).shuffle(rows)

    def pairs(row):
        return set(itertools.combinations(row.items(), 2))

    left = set().union(*map(pairs, rows))
    chosen = []
    while left:
        best = max(rows[:400] + rows[400::7], key=lambda r: len(pairs(r) & left))
        if not pairs(best) & left:
            best = max(rows, key=lambda r: len(pairs(r) & left))
        chosen.append(best)
        left -= pairs(best)
    return chosen


class Options(sd.Case):
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
        o = ','.join(f'{k}={row[k]}' for k in ('compat', 'cluster_size', 'lazy_refcounts', 'preallocation')
                     if not (k == 'lazy_refcounts' and row['compat'] == '0.10'))
        if row['compat'] == '1.1':
            o += f",refcount_bits={row['refcount_bits']},compression_type={row['compression_type']}"
        argv = ['convert', '-f', 'raw', '-O', 'qcow2', '-o', o]
        if row['data'] == 'compressed':
            argv.append('-c')
        if row['backing'] == 'none':
            sd.qemu_img(*argv, source, path)
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
        sd.qemu_img(*argv, '-B', base, '-F', fmt, source, path)
        return path, data

    def writes(self, h, data):
        """Some writes of all kinds, in the export and in @data."""
        rng = random.Random(3)
        for i in range(40):
            start = rng.randrange(SIZE)
            length = min(rng.choice((1, 512, 4096, 65536, 200000)), SIZE - start)
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

    def test_every_pair(self):
        rows = pairwise()
        self.assertGreater(len(rows), 10)
        for i, row in enumerate(rows):
            with self.subTest(**row):
                path, data = self.image(row, f'i{i}')
                d = self.daemon('--blockdev', f'qcow2,node-name=q,file.driver=file,file.filename={path}')
                with sd.nbd_connect(d.export('q', writable=True)) as h:
                    self.assertEqual(SIZE, h.get_size())
                    self.assertTrue(self.read_all(h) == data, 'we read something else than qemu-img wrote')
                    self.writes(h, data)
                    self.assertTrue(self.read_all(h) == data, 'we read something else than we wrote')
                d.shutdown()
                sd.check_image(path)
                with open(self.path('want.raw'), 'wb') as f:
                    f.write(data)
                self.assertImagesEqual(path, self.path('want.raw'), 'qcow2', 'raw')

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
