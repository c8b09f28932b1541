"""Options of qcow2 images, what of them does not go together and why, and few combinations that hold all pairs."""
import itertools
import json
import random

import broken_images
import sd
from check_images import ours

SIZE = 8 * sd.MIB + 512 * 7  # ends inside a cluster
SECRET = ('--object', 'secret,id=s,data=x')

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
DEFAULTS = {name: values[0] for name, values in OPTIONS.items()}

# What qemu-img refuses when all of these values come together, and its reason. test_qcow2_options.py tries them.
IMPOSSIBLE = [
    ('version 2 has no other refcounts', {'compat': ('0.10',), 'refcount_bits': ('1', '64')}),
    ('version 2 has no dirty bit', {'compat': ('0.10',), 'lazy_refcounts': ('on',)}),
    ('version 2 has no compression type', {'compat': ('0.10',), 'compression_type': ('zstd',)}),
    ('version 2 has no subclusters', {'compat': ('0.10',), 'extended_l2': ('on',)}),
    ('version 2 has no data files', {'compat': ('0.10',), 'data_file': ('mapped', 'raw')}),
    ('version 2 has no bitmaps', {'compat': ('0.10',), 'bitmaps': ('one',)}),
    ('a subcluster has 512 bytes at least', {'cluster_size': ('512', '4096'), 'extended_l2': ('on',)}),
    ('what has its place cannot be compressed any more', {'preallocation': ('metadata',), 'data': ('compressed',)}),
    ('compressed clusters do not lie at their own offset', {'data_file': ('mapped', 'raw'), 'data': ('compressed',)}),
    ('compressed clusters are not encrypted', {'encryption': ('luks',), 'data': ('compressed',)}),
    ('a raw data file shows no other', {'data_file': ('raw',), 'backing': ('raw', 'qcow2', 'short')}),
    ('what has its place hides the backing file, but for subclusters',
     {'preallocation': ('metadata',), 'backing': ('raw', 'qcow2', 'short'), 'extended_l2': ('off',)}),
    ('data files are not counted', {'data_file': ('mapped', 'raw'), 'snapshots': ('one',)}),
    ('no cluster can be shared', {'refcount_bits': ('1',), 'snapshots': ('one',)}),
]


# What we refuse to make besides, though qemu-img makes it.
REFUSED = [
    ('a raw data file is not encrypted', {'data_file': ('raw',), 'encryption': ('luks',)}),
    ('zeroes are noise in version 2', {'compat': ('0.10',), 'preallocation': ('metadata',), 'encryption': ('luks',)}),
]


def possible(row, rules=IMPOSSIBLE):
    return not any(all(row[name] in values for name, values in rule.items()) for _, rule in rules)


def pairs(row):
    return set(itertools.combinations(row.items(), 2))


def all_pairs():
    """Every value of an option with every value of each later one."""
    return {((a, x), (b, y)) for a, b in itertools.combinations(OPTIONS, 2) for x in OPTIONS[a] for y in OPTIONS[b]}


def impossible_pairs(rules=IMPOSSIBLE):
    """What the rules about two options alone exclude; those about three exclude no pair."""
    out = set()
    for _, rule in rules:
        if len(rule) == 2:
            a, b = sorted(rule, key=list(OPTIONS).index)
            out |= {((a, x), (b, y)) for x in rule[a] for y in rule[b]}
    return out


def pairwise(rules=IMPOSSIBLE):
    """Rows that together hold every pair that is possible, greedily and always the same."""
    rows = [r for r in (dict(zip(OPTIONS, values)) for values in itertools.product(*OPTIONS.values()))
            if possible(r, rules)]
    random.Random(1).shuffle(rows)
    left, chosen = all_pairs() - impossible_pairs(rules), []
    while left:
        (a, x), (b, y) = min(left)
        fitting = [r for r in rows if r[a] == x and r[b] == y]
        assert fitting, f'no row holds {a}={x} and {b}={y}, and no rule says why'
        chosen.append(max(fitting[:150], key=lambda r: len(pairs(r) & left)))
        left -= pairs(chosen[-1])
    return chosen


class OptionCase(sd.Case):
    """Makes an image of each row, and damages it."""
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
        words += [k for k in ('lazy_refcounts', 'refcount_bits', 'compression_type', 'extended_l2')
                  if row['compat'] == '1.1' or row[k] != DEFAULTS[k]]
        o = ','.join(f'{k}={row[k]}' for k in words)
        if row['data_file'] != 'none':
            o += f",data_file={path}.data,data_file_raw={'on' if row['data_file'] == 'raw' else 'off'}"
        if row['encryption'] == 'luks':
            o += ',encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=20'
        argv = ['convert', *SECRET, '-f', 'raw', '-O', 'qcow2', '-o', o]
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

    def add_extras(self, row, path):
        """What is kept beside the disk, by qemu-img."""
        if row['snapshots'] == 'one':
            sd.qemu_img('snapshot', *SECRET, '--image-opts', '-c', 'kept', self.options(row, path))
        if row['bitmaps'] == 'one':
            sd.qemu_img('bitmap', *SECRET, '--image-opts', '--add', self.options(row, path), 'b0')

    def check_content(self, row, path, data, kept):
        """What the peer says of an image that we wrote to: @data now, @kept in the snapshot."""
        opts = self.options(row, path)
        sd.qemu_img('check', *SECRET, '--image-opts', opts)
        self.assertEqual(0, ours(path)[0])
        self.assertTrue(self.raw(row, path) == data, 'qemu-img reads something else than we wrote')
        if row['snapshots'] == 'one':
            self.assertTrue(self.raw(row, path, '-l', 'snapshot.name=kept') == kept, 'the snapshot has changed')
        if row['bitmaps'] == 'one':
            info = sd.qemu_img('info', *SECRET, '--image-opts', '--output=json', opts).stdout
            bitmaps = json.loads(info)['format-specific']['data']['bitmaps']
            self.assertEqual([('b0', ['auto'])], [(b['name'], b['flags']) for b in bitmaps])

    # ---- damage ----

    def verdict(self, row, path, *more):
        """qemu-img check's exit code."""
        p = sd.qemu_img('check', *SECRET, *more, '--image-opts', self.options(row, path), check=False)
        return p.returncode

    def reads(self, row, path):
        """What we read."""
        d = self.daemon(*SECRET, '--blockdev', f'{self.options(row, path)},node-name=q,read-only=on')
        with sd.nbd_connect(d.export('q')) as h:
            data = self.read_all(h)
        d.shutdown()
        return data

    def damaged(self, path):
        """Damages the image at @path in one way after the other, which gets its old bytes back each time: names."""
        sound = broken_images.Image.read(path)
        used = [ci for ci in range(sound.clusters) if sound.block(ci) and sound.refcount(ci)]
        some = random.Random(1).sample(used, min(5, len(used)))
        table = next(k for k in range(sound.l1_size) if sound.l2(k))
        first = table * (sound.cluster // sound.entry_size)

        def leaks(i):
            for _ in range(3):
                if i.block(i.clusters):
                    i.append_cluster()
            if i.max_refcount > 4:
                i.set_refcount(some[0], i.refcount(some[0]) + 2)

        def low_counts(i):
            for ci in (i.l1 // i.cluster, i.l2(table) // i.cluster, *some):
                i.set_refcount(ci, 0)

        def flags(i):
            i.put(i.l1 + 8 * table, 8, i.get(i.l1 + 8 * table, 8) ^ broken_images.COPIED)
            for gc in range(first, first + 4):
                if i.host(gc) and not i.entry(gc) & broken_images.COMPRESSED:
                    i.set_entry(gc, i.entry(gc) ^ broken_images.COPIED)

        def dirty(i):
            i.incompat |= 1
            low_counts(i)

        def everything(i):
            leaks(i)
            flags(i)
            low_counts(i)

        for function in leaks, low_counts, flags, dirty, everything:
            if function is dirty and sound.version < 3:
                continue
            image = broken_images.Image(sound.data)
            function(image)
            image.save(path)
            yield function.__name__
        sound.save(path)

    def check_repairs(self, row, path, data, repair):
        """After each damage both checkers say the same; after @repair(), that nothing is wrong, and all data are there."""
        for name in self.damaged(path):
            before = ours(path)[0]
            self.assertIn(before, (2, 3), name)
            self.assertEqual(before, self.verdict(row, path), name)
            self.assertEqual(0, repair(), name)
            self.assertEqual(0, ours(path)[0], name)
            self.assertEqual(0, self.verdict(row, path), name)
            self.assertTrue(self.raw(row, path) == data, f'{name}: qemu-img reads something else after the repair')
            if name == 'everything':
                self.assertTrue(self.reads(row, path) == data, f'{name}: we read something else after the repair')
