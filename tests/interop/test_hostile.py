"""Images from strangers: what we open reads as qemu-img reads it, or both refuse; it costs little; it opens no other file.

SD_SEED=N makes other mutants, SD_MUTANTS=N more of them."""
import glob
import json
import os
import random
import struct
import subprocess
import time

import broken_crafted
import broken_images
import sd

MUTANTS = int(os.environ.get('SD_MUTANTS', 150))
SEED = int(os.environ.get('SD_SEED', 1))
WINDOW = 2 * sd.MIB
CORPUS = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'fuzz', 'corpus', 'drivers-image')
NUMBERS = (0, 1, 2, 8, 9, 21, 22, 63, 64, 511, 512, 0x7fffffff, 0x80000000, 0xffffffff, 0x100000000, 1 << 56, 1 << 62,
           1 << 63, (1 << 63) - 1, (1 << 64) - 1)


SECRET = ('--object', 'secret,id=k,data=k')


def options_of(path):
    """Driver and key of the image's node."""
    with open(path, 'rb') as f:
        head = f.read(36)
    if head[:4] in (b'QED\0', b'LUKS'):
        return {'driver': 'qed', 'backing': None} if head[:3] == b'QED' else {'driver': 'luks', 'key-secret': 'k'}
    crypt = {1: 'aes', 2: 'luks'}.get(int.from_bytes(head[32:36], 'big'))
    more = {'encrypt': {'format': crypt, 'key-secret': 'k'}} if crypt else {}
    return {'driver': 'qcow2', 'backing': None, **more}


def windows(size):
    """The parts of a disk that are compared: all of a small one."""
    if size <= 16 * WINDOW:
        return [(at, min(WINDOW, size - at)) for at in range(0, size, WINDOW)]
    middle = size // 2 // 65536 * 65536
    return [(0, WINDOW), (middle, WINDOW), (size - WINDOW, WINDOW)]


class Hostile(sd.Case):
    def setUp(self):
        super().setUp()
        self.d, self.opened = None, 0

    def add(self, path, **more):
        return self.d.qmp('blockdev-add', node_name='q', read_only=True, file={'driver': 'file', 'filename': path},
                          **options_of(path), **more)

    def ours(self, path):
        """Why it does not open; or its size, and what its windows read: None where that fails."""
        reply = self.add(path)
        if 'error' in reply:
            return reply['error']['desc']
        with sd.nbd_connect(self.d.export('q')) as h:
            import nbd
            size, parts = h.get_size(), []
            for at, n in windows(size):
                try:
                    parts.append(bytes(h.pread(n, at)))
                except nbd.Error:
                    parts.append(None)
        self.d.cmd('block-export-del', id='exp-q')
        self.d.event_wait('BLOCK_EXPORT_DELETED')
        self.d.cmd('blockdev-del', node_name='q')
        return size, parts

    def theirs(self, path, size):
        """What qemu-img reads; None where that fails."""
        parts = []
        for at, n in windows(size):
            image = {**options_of(path), 'file': {'driver': 'file', 'filename': path}}
            whole = {'driver': 'raw', 'offset': at, 'size': -(-n // 512) * 512, 'file': image}
            p = subprocess.run(['qemu-img', 'convert', *SECRET, '-O', 'raw', 'json:' + json.dumps(whole),
                                self.path('theirs')],
                               capture_output=True, text=True, errors='replace', timeout=60, check=False)
            if p.returncode:
                parts.append(None)
                continue
            with open(self.path('theirs'), 'rb') as f:
                parts.append(f.read()[:n])
        return parts

    def compare(self, path):
        """What is wrong with how we read it, or None."""
        ours = self.ours(path)
        if isinstance(ours, str):
            self.assertRegex(ours, r'\S{3}')
            return None
        size, parts = ours
        theirs = self.theirs(path, size)
        self.opened += 1
        for (at, n), a, b in zip(windows(size), parts, theirs):
            if a != b:
                what = 'fails' if a is None else 'differs' if b is not None else 'works'
                return f'reading {at}+{n} of {size} {what} with us' + (' alone' if b is None or a is None else '')
        return None

    def all_of(self, paths):
        """Compares images (name, path)."""
        wrong, n = [], 0
        self.d = self.daemon(*SECRET)
        for name, path in paths:
            n += 1
            text = self.compare(path)
            if text:
                wrong.append(f'{name}: {text}')
                if keep := os.environ.get('SD_KEEP'):
                    subprocess.run(['cp', path, os.path.join(keep, name.replace('/', '-'))], check=True)
        self.d.shutdown()
        self.assertFalse(wrong, f'{len(wrong)} of {n}:\n' + '\n'.join(wrong))
        return n

    # ---- which images ----

    def test_corpus(self):
        """What the fuzzer keeps, without the scripts at the end."""
        def images():
            for path in sorted(glob.glob(os.path.join(CORPUS, '*'))):
                with open(path, 'rb') as f:
                    data = f.read()
                if data[-4:] == b'SDS1':  # the option says that zeroes follow
                    data = data[:-6 - 4 * data[-5]] + bytes(sd.MIB if data[-6] & 8 else 0)
                with open(self.path('image'), 'wb') as f:
                    f.write(data)
                yield os.path.basename(path), self.path('image')
        self.assertGreater(self.all_of(images()), 10)

    def test_broken(self):
        self.all_of(broken_images.make_all(self.dir))
        self.assertGreater(self.opened, 50)

    def test_luks(self):
        """Headers of encrypted images; those that open do so with the key."""
        self.all_of(broken_crafted.make_all_luks(self.dir))
        self.assertEqual(4, self.opened)

    def test_header_fields(self):
        """Each field of the header at its edges."""
        def images():
            base = sd.create_image(self.path('base'), 'qcow2', sd.MIB, options={'cluster_size': 4096},
                                   data=[(0, 65536, 0x5a)])
            with open(base, 'rb') as f:
                sound = f.read()
            fields = [(4, 4), (8, 8), (16, 4), (20, 4), (24, 8), (32, 4), (36, 4), (40, 8), (48, 8), (56, 4), (60, 4),
                      (64, 8), (72, 8), (80, 8), (88, 8), (96, 4), (100, 4), (104, 1), (112, 4), (116, 4)]
            for at, size in fields:
                old = int.from_bytes(sound[at:at + size], 'big')
                for value in sorted({v for v in (*NUMBERS, old - 1, old + 1, old * 2, old + 4096, 0x200001) if 0 <= v < 1 << 8 * size}):
                    image = bytearray(sound)
                    image[at:at + size] = value.to_bytes(size, 'big')
                    with open(self.path('image'), 'wb') as f:
                        f.write(image)
                    yield f'{at}={value:#x}', self.path('image')
        self.assertGreater(self.all_of(images()), 250)

    def mutant(self, image, rng):
        """Changes a few numbers that mean something."""
        i = broken_images.Image(image)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            places = [rng.randrange(0, 112), i.l1 + 8 * rng.randrange(4), i.rt + 8 * rng.randrange(2),
                      i.snapshots + rng.randrange(64), rng.randrange(112, 400)]
            l2 = i.get(i.l1 + 8 * rng.randrange(2), 8) & broken_images.OFFSET
            places += [l2 + 8 * rng.randrange(40)] * 6 + [l2 + 8 * rng.randrange(40) + rng.randrange(8)]
            at, size = rng.choice(places), rng.choice((1, 4, 8, 8, 8))
            if at + size > len(i.data):
                continue
            old = i.get(at, size)
            value = rng.choice((rng.choice(NUMBERS), old ^ 1 << rng.randrange(64), old + i.cluster * rng.randint(-3, 3),
                                old & ~broken_images.OFFSET | rng.randrange(i.clusters + 2) * i.cluster,
                                rng.getrandbits(64)))
            i.put(at, size, value % (1 << 8 * size))
        return i.data

    def test_mutants(self):
        def images():
            bases = sorted(broken_images.make_bases(self.dir).items())
            rng = random.Random(SEED)
            for k in range(MUTANTS):
                name, path = rng.choice(bases)
                with open(path, 'rb') as f:
                    data = f.read()
                with open(self.path('image'), 'wb') as f:
                    f.write(self.mutant(data, rng) if data[:3] == b'QFI' else data)
                yield f'{name}-{SEED}.{k}', self.path('image')
        self.all_of(images())


class Costs(sd.Case):
    """What a small file can make us spend is bounded."""
    MEMORY = 300 * 1024  # KiB at most, at any time
    SECONDS = 20

    def base(self, size='64M', **options):
        return broken_images.Image.read(sd.create_image(self.path('base'), 'qcow2', size, options=options))

    def open(self, image, ok, text=None, readable=True):
        """Opens it, reads its first 64 MiB, closes it."""
        image.save(self.path('image'))
        d = self.daemon()
        start = time.monotonic()
        reply = d.qmp('blockdev-add', driver='qcow2', node_name='q', backing=None,
                      file={'driver': 'file', 'filename': self.path('image')}, timeout=4 * self.SECONDS)
        self.assertEqual(ok, 'return' in reply, reply)
        if not ok:
            self.assertRegex(reply['error']['desc'], text)
        else:
            with sd.nbd_connect(d.export('q')) as h:
                import nbd
                for at in range(0, min(64 * sd.MIB, h.get_size()), sd.MIB):
                    try:
                        h.pread(min(sd.MIB, h.get_size() - at), at)
                    except nbd.Error:
                        self.assertFalse(readable)
        self.assertLess(time.monotonic() - start, self.SECONDS)
        with open(f'/proc/{d.process.pid}/status', encoding='ascii') as f:
            peak = next(int(line.split()[1]) for line in f if line.startswith('VmHWM'))
        if 'asan' not in sd.BUILD:
            self.assertLess(peak, self.MEMORY)
        d.shutdown()

    def test_l1(self):
        for entries, ok in (((32 << 20) // 8, True), ((32 << 20) // 8 + 1, False), (0xffffffff, False)):
            with self.subTest(entries):
                i = self.base()
                i.l1_size = entries
                i.size = min(entries * 8192 * 65536, 1 << 61) // 2
                self.open(i, ok, r'L1.*too large')

    def test_refcount_table(self):
        for clusters, ok in ((128, True), (129, False), (0xffffffff, False)):
            with self.subTest(clusters):
                i = self.base()
                i.rt_clusters = clusters
                self.open(i, ok, r'(?i)reference count table')

    def test_snapshots(self):
        i = self.base()
        i.n_snapshots, i.snapshots = 65537, 65536
        self.open(i, False, r'(?i)too many snapshots|nb_snapshots|snapshot')
        # As many as there may be, each as small as it can be.
        i = self.base(cluster_size='2M')
        i.n_snapshots, i.snapshots = 65536, i.clusters * i.cluster
        i.data.extend(bytes(i.snapshots - len(i.data)) + bytes(56) * 65536)
        i.save(self.path('many'))
        theirs = sd.qemu_img('info', '-f', 'qcow2', self.path('many'), check=False).returncode
        self.open(i, theirs == 0, r'(?i)snapshot')

    def test_snapshot_table(self):
        """As many snapshots as there may be, with as much extra data: more than 64 MiB."""
        i = self.base(cluster_size='2M')
        entry = bytes(36) + (1024).to_bytes(4, 'big') + bytes(1024)
        i.n_snapshots, i.snapshots = 65536, i.clusters * i.cluster
        i.data.extend(bytes(i.snapshots - len(i.data)) + entry * 65536)
        i.save(self.path('many'))
        self.assertNotEqual(0, sd.qemu_img('info', '-f', 'qcow2', self.path('many'), check=False).returncode)
        self.open(i, False, r'(?i)snapshot table')

    def test_many_bitmaps(self):
        """65535 bitmaps that share one table: as many as there may be, and one more."""
        for n, ok in ((65535, True), (65536, False)):
            i = self.base(size='1M', cluster_size='64k')
            table, directory = i.clusters * i.cluster, (i.clusters + 1) * i.cluster
            entries = b''.join(struct.pack('>QIIBBHI', table, 1, 2, 1, 16, 5, 0) + b'%05d' % k + bytes(3) for k in range(n))
            i.data.extend(bytes(directory - len(i.data)) + entries)
            broken_crafted.replace_extensions(i, broken_crafted.extension(
                broken_images.EXT_BITMAPS, struct.pack('>IIQQ', n, 0, len(entries), directory)))
            i.autoclear = 1
            with self.subTest(n):
                self.open(i, ok, r'nb_bitmaps')

    def test_bitmaps(self):
        i = self.base()
        i.put(104, 8, 0)  # compression type and padding
        i.put(i.header_length, 8, broken_images.EXT_BITMAPS << 32 | 24)
        i.put(i.header_length + 8, 4, 65536)
        i.put(i.header_length + 16, 8, 1 << 20)
        i.put(i.header_length + 24, 8, 1 << 20)
        i.put(i.header_length + 32, 8, 0)
        i.autoclear = 1
        self.open(i, False, r'(?i)bitmaps')

    def bomb(self, packed, zstd=False, readable=True):
        """Opens 64 MiB of clusters that all are @packed."""
        i = self.base(cluster_size='2M', **({'compression_type': 'zstd'} if zstd else {}))
        at, l2 = 6 * i.cluster, 5 * i.cluster
        i.data.extend(bytes(7 * i.cluster - len(i.data)))
        i.data[at:at + len(packed)] = packed
        shift = 62 - (i.cluster_bits - 8)
        sectors = len(packed) // 512 + 1
        for gc in range(32):
            i.put(l2 + gc * 8, 8, broken_images.COMPRESSED | sectors << shift | at)
        i.put(i.l1, 8, broken_images.COPIED | l2)
        self.open(i, True, readable=readable)

    def test_compression_bomb(self):
        """2 KiB which expand to as much as a cluster, and more."""
        import zlib
        for times in (1, 16):
            c = zlib.compressobj(9, zlib.DEFLATED, -12)
            self.bomb(c.compress(bytes(times * 2 * sd.MIB)) + c.flush())

    def test_zstd_bomb(self):
        """A frame of blocks that say to repeat a byte 128 Ki times, with windows of 2 MiB and of 2 TiB."""
        for times, window in ((1, 0x58), (64, 0x58), (1, 0xff)):
            n = times * 2 * sd.MIB >> 17
            blocks = b''.join(struct.pack('<I', (1 << 17) << 3 | 1 << 1 | (k == n - 1))[:3] + b'z' for k in range(n))
            with self.subTest(times=times, window=window):
                self.bomb(b'\x28\xb5\x2f\xfd\0' + bytes([window]) + blocks, True, window == 0x58)

    def test_backing_files_in_a_ring(self):
        """An image that is its own backing file, at once and by way of another."""
        for ring in ('a',), ('a', 'b'), ('a', 'b', 'c'):
            paths = [self.path(f'{len(ring)}{name}') for name in ring]
            for k, path in enumerate(paths):
                sd.create_image(path, 'qcow2', sd.MIB)
            for k, path in enumerate(paths):
                sd.qemu_img('rebase', '-u', '-f', 'qcow2', '-F', 'qcow2', '-b', paths[(k + 1) % len(paths)], path)
            with self.subTest(ring):
                d = self.daemon()
                start = time.monotonic()
                reply = d.qmp('blockdev-add', driver='qcow2', node_name='q', read_only=True,
                              file={'driver': 'file', 'filename': paths[0]}, timeout=4 * self.SECONDS)
                self.assertRegex(reply['error']['desc'], r'(?i)backing|chain|lock|deep|loop|many')
                self.assertLess(time.monotonic() - start, self.SECONDS)
                self.assertEqual([], d.cmd('query-named-block-nodes'))
                d.shutdown()

    def test_tables_in_a_ring(self):
        """L2 tables that are the L1 table, and all the same one."""
        i = self.base('1G', cluster_size=4096)
        for k in range(i.l1_size):
            i.put(i.l1 + 8 * k, 8, i.l1)
        i.save(self.path('image'))
        d = self.daemon()
        reply = d.qmp('blockdev-add', driver='qcow2', node_name='q', read_only=True,
                      file={'driver': 'file', 'filename': self.path('image')})
        if 'return' in reply:
            with sd.nbd_connect(d.export('q')) as h:
                import nbd
                for at in range(0, sd.GIB, 64 * sd.MIB):
                    try:
                        h.pread(4096, at)
                    except nbd.Error:
                        pass
        d.shutdown()


class Watch:
    """Tells which of some files anybody opened, by inotify."""

    def __init__(self, paths):
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.inotify_init1(os.O_NONBLOCK)
        assert self.fd >= 0
        self.names = {}
        for path in paths:
            wd = libc.inotify_add_watch(self.fd, path.encode(), 0x20)  # IN_OPEN
            assert wd >= 0, path
            self.names[wd] = path

    def opened(self):
        try:
            data = os.read(self.fd, 65536)
        except BlockingIOError:
            return []
        found = []
        while data:
            wd, _, _, length = struct.unpack_from('iIII', data)
            found.append(self.names[wd])
            data = data[16 + length:]
        return found

    def close(self):
        os.close(self.fd)


class Names(sd.Case):
    """An image names other files: none is opened unless the user wants that. They are FIFOs, which would hang an open."""

    def setUp(self):
        super().setUp()
        self.decoys = [self.path(n) for n in ('secret', 'data')]
        for path in self.decoys:
            os.mkfifo(path)
        self.watch = Watch(self.decoys)
        self.addCleanup(self.watch.close)

    def images(self):
        """(name, path, the option that replaces the name)"""
        secret, data = self.decoys
        names = {'path': secret, 'relative': 'secret', 'file': f'file:{secret}',
                 'json': 'json:' + json.dumps({'driver': 'raw', 'file': {'driver': 'file', 'filename': secret}}),
                 'json-device': 'json:' + json.dumps({'driver': 'host_device', 'filename': secret})}
        for kind, name in names.items():
            for fmt in ('qcow2', 'qed'):
                for backing_format in ('raw', None, 'qcow2'):
                    path = self.path(f'{kind}-{fmt}-{backing_format}')
                    sd.create_image(path, fmt, sd.MIB)
                    sd.create_image(self.path('stand-in'), 'raw', sd.MIB)
                    sd.qemu_img('rebase', '-u', '-f', fmt, '-b', name, *(['-F', backing_format] if backing_format else []),
                                path, check=backing_format is not None)
                    with open(path, 'rb') as f:
                        if name.encode() in f.read():
                            yield os.path.basename(path), path, fmt, {'backing': None}
        for raw in ('on', 'off'):
            path = self.path(f'data-{raw}')
            image = broken_images.Image.read(sd.create_image(
                path, 'qcow2', sd.MIB, options={'data_file': self.path('data-stand-in'), 'data_file_raw': raw}))
            where = bytes(image.data).index(b'data-stand-in')
            at = bytes(image.data).index(self.path('').encode())
            image.put(at - 4, 4, len(data))
            image.data[at:where + len(b'data-stand-in')] = data.encode().ljust(where + 13 - at, b'\0')
            image.save(path)
            yield os.path.basename(path), path, 'qcow2', {
                'data-file': {'driver': 'file', 'filename': self.path('data-stand-in')}}

    def test_daemon(self):
        """--refuse-image-names: refused by its name; what the options say instead is taken."""
        d = self.daemon('--refuse-image-names')
        n = 0
        for name, path, fmt, instead in self.images():
            with self.subTest(name):
                n += 1
                self.watch.opened()  # qemu-img's doings
                options = {'driver': fmt, 'node-name': 'q', 'file': {'driver': 'file', 'filename': path}}
                reply = d.qmp('blockdev-add', options)
                self.assertIn('error', reply)
                reply = d.qmp('blockdev-add', {**options, **instead})
                self.assertIn('return', reply, reply)
                d.cmd('human-monitor-command', command_line='qemu-io q "read 0 64k"')
                d.cmd('query-named-block-nodes')
                d.cmd('blockdev-del', node_name='q')
                self.assertEqual([], self.watch.opened())
        self.assertGreater(n, 15)

    def hostile(self, name='hostile', fmt='qcow2', backing_format='raw'):
        """An image whose backing file is a decoy."""
        path = self.path(name)
        sd.create_image(path, fmt, sd.MIB)
        sd.qemu_img('rebase', '-u', '-f', fmt, '-b', self.decoys[0], '-F', backing_format, path)
        self.watch.opened()
        return path

    def blockdev(self, path, **more):
        more = {name.replace('_', '-'): value for name, value in more.items()}
        return {'driver': 'qcow2', 'file': {'driver': 'file', 'filename': path}, **more}

    def test_below_what_is_named(self):
        """A backing file that the user names may name another."""
        path, top = self.hostile(), sd.create_image(self.path('top'), 'qcow2', sd.MIB)
        d = self.daemon('--refuse-image-names')
        self.fails(d, 'names another file', 'blockdev-add', self.blockdev(top, node_name='q', backing=self.blockdev(path)))
        self.fails(d, 'names another file', 'blockdev-add', {
            'driver': 'raw', 'node-name': 'q', 'file': {'driver': 'copy-on-read', 'file': self.blockdev(path)}})
        self.assertEqual([], self.watch.opened())
        self.assertEqual([], d.cmd('query-named-block-nodes'))

    def test_written_by_a_guest(self):
        """A raw disk whose guest writes an image's header into it; then something probes what it is."""
        path = self.hostile()
        with open(path, 'rb') as f:
            header = f.read()
        disk = self.path('disk.raw')
        with open(disk, 'wb') as f:
            f.write(header.ljust(sd.MIB, b'\0'))
        over = sd.create_image(self.path('over'), 'qcow2', sd.MIB)
        sd.qemu_img('rebase', '-u', '-f', 'qcow2', '-b', disk, over, check=False)
        broken = broken_images.Image.read(over)
        if not broken.backing_offset:  # qemu-img wants a format: put the name there by hand
            broken.backing_offset, broken.backing_size = 2048, len(disk)
            broken.data[2048:2048 + len(disk)] = disk.encode()
            broken.save(over)
        self.watch.opened()
        d = self.daemon('--refuse-image-names')
        self.fails(d, 'names another file', 'blockdev-add', self.blockdev(over, node_name='q'))
        source = sd.create_image(self.path('source'), 'raw', sd.MIB)
        d.cmd('blockdev-add', driver='raw', node_name='s', file={'driver': 'file', 'filename': source})
        for command, more in (('drive-mirror', {'sync': 'full'}), ('drive-backup', {'sync': 'full'})):
            for target in disk, path:
                for fmt in None, 'qcow2':
                    reply = d.qmp(command, device='s', target=target, mode='existing', job_id='j', **more,
                                  **({'format': fmt} if fmt else {}))
                    self.assertIn('error', reply, (command, target, fmt))
        self.assertEqual([], self.watch.opened())

    def test_commands_that_open(self):
        """An overlay that exists has the node below it, whatever it names; an image without its backing file stays so."""
        path, base = self.hostile(), sd.create_image(self.path('base'), 'qcow2', sd.MIB)
        d = self.daemon('--refuse-image-names')
        d.cmd('blockdev-add', self.blockdev(base, node_name='b'))
        reply = d.qmp('blockdev-snapshot-sync', node_name='b', snapshot_file=path, snapshot_node_name='over',
                      format='qcow2', mode='existing')
        if 'return' in reply:  # then its backing file is the node, whatever it names
            d.cmd('human-monitor-command', command_line='qemu-io over "read 0 64k"')
            d.cmd('blockdev-del', node_name='over')
        d.cmd('blockdev-add', self.blockdev(path, node_name='q', backing=None))
        d.cmd('human-monitor-command', command_line='qemu-io q "read 0 64k"')
        self.assertEqual([], self.watch.opened())

    def test_checker(self):
        for name, path, fmt, _ in self.images():
            if fmt != 'qcow2':
                continue
            with self.subTest(name):
                self.watch.opened()
                for more in ((), ('--repair', 'all')):
                    subprocess.run([sd.DAEMON, '--check', path, *more], capture_output=True, timeout=sd.TIMEOUT, check=False)
                self.assertEqual([], self.watch.opened())

    def test_the_watch_works(self):
        fd = os.open(self.decoys[0], os.O_RDONLY | os.O_NONBLOCK)
        os.close(fd)
        self.assertEqual([self.decoys[0]], self.watch.opened())


if __name__ == '__main__':
    sd.main()
