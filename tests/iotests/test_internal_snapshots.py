"""Internal snapshots: taking, deleting, applying and listing them; qemu-img reads what we wrote, and we what it wrote."""
import json
import os
import random
import threading

import sd

SIZE = 4 * sd.MIB
CREATE = 'blockdev-snapshot-internal-sync'
DELETE = 'blockdev-snapshot-delete-internal-sync'
APPLY = 'blockdev-snapshot-apply-internal-sync'


def action(kind, **data):
    return {'type': kind, 'data': {k.replace('_', '-'): v for k, v in data.items()}}


class SnapshotCase(sd.Case):
    def image(self, name='a.qcow2', size=SIZE, data=(), **options):
        return sd.create_image(self.path(name), 'qcow2', size, options=options, data=data)

    def start(self, image, node='n', **more):
        d = self.d = self.daemon()
        self.add(image, node, **more)
        return d

    def add(self, image, node='n', **more):
        self.d.cmd('blockdev-add', driver='qcow2', node_name=node, discard='unmap',
                   file={'driver': 'file', 'filename': image}, **more)

    def io(self, *commands, node='n'):
        for c in commands:
            out = self.d.cmd('human-monitor-command', command_line=f'qemu-io {node} "{c}"')
            self.assertNotRegex(out, '(?i)fail|error', c)

    def snapshots(self, node='n'):
        return self.d.node(node)['image'].get('snapshots', [])

    def names(self, node='n'):
        return [s['name'] for s in self.snapshots(node)]

    def content(self, image, snapshot=None):
        """The disk, or what it was in a snapshot, as qemu-img reads it."""
        out = self.path('content.raw')
        sd.qemu_img('convert', '-U', '-f', 'qcow2', *(['-l', f'snapshot.name={snapshot}'] if snapshot else []), '-O', 'raw',
                    image, out)
        with open(out, 'rb') as f:
            return f.read()


class Commands(SnapshotCase):
    def test_create_list_delete(self):
        image = self.image(data=[(0, sd.MIB, 0x11)])
        d = self.start(image)
        self.assertNotIn('snapshots', d.node('n')['image'])
        d.cmd(CREATE, device='n', name='one')
        self.io('write -P 0x22 64k 128k')
        d.cmd(CREATE, device='n', name='two')
        self.io('write -P 0x33 128k 1M')
        one, two = self.snapshots()
        self.assertEqual(('1', 'one', 0), (one['id'], one['name'], one['vm-state-size']))
        self.assertEqual(('2', 'two'), (two['id'], two['name']))
        self.assertNotIn('icount', one)
        self.assertLessEqual((one['date-sec'], one['date-nsec']), (two['date-sec'], two['date-nsec']))
        listed = sd.image_info(image)['snapshots']
        self.assertEqual([one, two], [{k: v for k, v in s.items() if k != 'icount'} for s in listed])
        said = d.cmd('human-monitor-command', command_line='info snapshots')
        self.assertRegex(said, r'Internal snapshots of n:\r\n.*\r\n1 +one +0 bytes +\d{4}-.*\r\n2 +two ')
        self.assertEqual(said, d.cmd('human-monitor-command', command_line='info snapshots n'))
        # By id, by name, by both; what was deleted is returned. Ids go on from the highest.
        self.assertEqual(one, d.cmd(DELETE, device='n', id='1', name='one'))
        d.cmd(CREATE, device='n', name='three')
        self.assertEqual(['2', '3'], [s['id'] for s in self.snapshots()])
        self.assertEqual(two, d.cmd(DELETE, device='n', name='two'))
        d.cmd(CREATE, device='n', name='1')
        d.shutdown()
        sd.check_image(image)
        self.assertEqual(['three', '1'], [s['name'] for s in sd.image_info(image)['snapshots']])
        want = b'\x11' * 65536 + b'\x22' * 65536 + b'\x33' * sd.MIB
        self.assertEqual(want + bytes(SIZE - len(want)), self.content(image, 'three'))

    def test_refused(self):
        self.image('v.qcow2')
        raw = sd.create_image(self.path('r.raw'), 'raw', sd.MIB)
        d = self.start(self.image())
        self.add(self.path('v.qcow2'), 'ro', read_only=True)
        d.cmd('blockdev-add', driver='raw', node_name='r', file={'driver': 'file', 'filename': raw})
        d.cmd(CREATE, device='n', name='s')
        self.fails(d, "Snapshot with name 's' already exists on device 'n'", CREATE, device='n', name='s')
        self.fails(d, 'Name is empty', CREATE, device='n', name='')
        self.fails(d, "name 'nnn", CREATE, device='n', name='n' * 256)
        self.fails(d, "Cannot find device='x' nor node-name='x'", CREATE, device='x', name='s')
        self.fails(d, "Block format 'raw' used by device 'r' does not support internal snapshots", CREATE, device='r', name='s')
        self.fails(d, "Device 'ro' is read only", CREATE, device='ro', name='s')
        self.fails(d, 'Name or id must be provided', DELETE, device='n')
        for command in (DELETE, APPLY):
            self.fails(d, "Snapshot with id '9' and name 'null' does not exist on device 'n'", command, device='n', id='9')
            self.fails(d, "Snapshot with id 'null' and name 'x' does not exist", command, device='n', name='x')
            self.fails(d, "Snapshot with id '1' and name 'x' does not exist", command, device='n', id='1', name='x')
            self.fails(d, "Cannot find device='x'", command, device='x', id='1')
        # Jobs and snapshots keep away from each other.
        d.cmd('blockdev-add', driver='null-co', node_name='t', size=SIZE)
        d.cmd('blockdev-mirror', job_id='j', device='n', target='t', sync='full')
        for command, more in ((CREATE, {'name': 'z'}), (DELETE, {'id': '1'}), (APPLY, {'id': '1'})):
            self.fails(d, "Node 'n' is busy: block device is in use by block job: mirror", command, device='n', **more)
        d.cancel('j', force=True)
        self.assertEqual(['s'], self.names())

    def test_apply(self):
        image = self.image(data=[(0, sd.MIB, 0x11)])
        d = self.start(image)
        d.cmd('block-dirty-bitmap-add', node='n', name='b', granularity=65536)
        d.cmd('block-dirty-bitmap-add', node='n', name='off', granularity=65536, disabled=True)
        uri = d.export('n', writable=True)
        d.cmd(CREATE, device='n', name='one')
        with sd.nbd_connect(uri) as h:
            h.pwrite(b'\x22' * sd.MIB, 512 << 10)
            d.cmd('block-dirty-bitmap-clear', node='n', name='b')
            d.cmd(APPLY, device='n', name='one')
            self.assertEqual(SIZE, d.bitmap('n', 'b')['count'])
            self.assertEqual(0, d.bitmap('n', 'off')['count'])
            self.assertEqual(b'\x11' * sd.MIB + bytes(sd.MIB), h.pread(2 * sd.MIB, 0))
            h.pwrite(b'\x33' * 65536, 0)
            d.cmd(CREATE, device='n', name='two')
            d.cmd(APPLY, device='n', id='1')
            self.assertEqual(b'\x11' * 65536, h.pread(65536, 0))
            d.cmd(APPLY, device='n', id='2', name='two')
            self.assertEqual(b'\x33' * 65536 + b'\x11' * 65536, h.pread(131072, 0))
        d.shutdown()
        sd.check_image(image)

    def test_apply_other_size(self):
        """The disk takes the snapshot's size, and whoever relies on the size is asked."""
        image = self.image(data=[(0, sd.MIB, 0x11)])
        d = self.start(image)
        d.cmd('block-dirty-bitmap-add', node='n', name='b', granularity=65536)
        d.cmd(CREATE, device='n', name='small')
        d.cmd('block_resize', node_name='n', size=700 * sd.MIB)  # with 64 KiB clusters a second L1 entry
        self.io('write -P 0x44 699M 1M')
        d.cmd(CREATE, device='n', name='large')
        d.export('n', writable=True)
        self.fails(d, "resize", APPLY, device='n', name='small')
        self.assertEqual(700 * sd.MIB, d.node('n')['image']['virtual-size'])
        d.cmd('block-export-del', id='exp-n', mode='hard')
        d.event_wait('BLOCK_EXPORT_DELETED')
        d.cmd(APPLY, device='n', name='small')
        self.assertEqual(SIZE, d.node('n')['image']['virtual-size'])
        self.assertEqual(SIZE, d.bitmap('n', 'b')['count'])
        self.io('read -P 0x11 0 1M', 'read -P 0 1M 3M')
        d.cmd(APPLY, device='n', name='large')
        self.assertEqual(700 * sd.MIB, d.node('n')['image']['virtual-size'])
        self.io('read -P 0x11 0 1M', 'read -P 0 1M 698M', 'read -P 0x44 699M 1M')
        d.cmd('block_resize', node_name='n', size=64 << 10)
        d.cmd(APPLY, device='n', name='large')
        d.cmd('block_resize', node_name='n', size=64 << 10)
        d.shutdown()
        sd.check_image(image)
        for name, size in (('small', SIZE), ('large', 700 * sd.MIB)):
            sd.qemu_img('snapshot', '-a', name, image)
            self.assertEqual(size, sd.image_info(image)['virtual-size'])
            sd.qemu_io(image, 'read -P 0x11 0 1M', 'read -P 0 1M 3M', fmt='qcow2')
        sd.qemu_io(image, 'read -P 0x44 699M 1M', fmt='qcow2')
        sd.check_image(image)

    def test_resize(self):
        """Version 3 images change their size with snapshots, which keep theirs; version 2 does not, as in QEMU."""
        image = self.image(data=[(0, SIZE, 0x11)])
        old = self.image('old.qcow2', compat='0.10')
        d = self.start(image)
        self.add(old, 'old')
        for node in ('n', 'old'):
            d.cmd(CREATE, device=node, name='s')
        for size in (2 * SIZE, SIZE // 2):
            self.fails(d, "Can't resize a v2 image which has snapshots", 'block_resize', node_name='old', size=size)
            d.cmd('block_resize', node_name='n', size=size)
        d.cmd('block_resize', node_name='n', size=SIZE)
        self.io(f'read -P 0x11 0 {SIZE // 2}', f'read -P 0 {SIZE // 2} {SIZE // 2}')
        d.cmd(CREATE, device='n', name='t')
        d.cmd(APPLY, device='n', name='s')
        self.io(f'read -P 0x11 0 {SIZE}')
        d.cmd(DELETE, device='old', name='s')
        d.cmd('block_resize', node_name='old', size=2 * SIZE)
        d.shutdown()
        sd.check_image(image)
        sd.check_image(old)
        self.assertEqual(b'\x11' * (SIZE // 2) + bytes(SIZE // 2), self.content(image, 't'))

    def test_through_raw_and_filters(self):
        """A node that passes an image's data on passes its snapshots on, too; bitmaps above know of the change."""
        image = self.image(data=[(0, sd.MIB, 0x11)])
        d = self.start(image)
        d.cmd('blockdev-add', driver='raw', node_name='r', file='n')
        d.cmd('blockdev-add', driver='copy-on-read', node_name='f', file='r')
        for node in ('n', 'r', 'f'):
            d.cmd('block-dirty-bitmap-add', node=node, name='b', granularity=65536)
        d.cmd(CREATE, device='f', name='s')
        for node in ('n', 'r', 'f'):
            self.assertEqual(['s'], self.names(node))
        self.io('write -P 0x22 0 64k', node='f')
        for applied in ('f', 'n'):
            for node in ('n', 'r', 'f'):
                d.cmd('block-dirty-bitmap-clear', node=node, name='b')
            d.cmd(APPLY, device=applied, name='s')
            self.io('read -P 0x11 0 1M', node='f')
            for node in ('n', 'r', 'f'):
                self.assertEqual(SIZE, d.bitmap(node, 'b')['count'], node)
        d.cmd('block_resize', node_name='n', size=SIZE // 2)
        d.export('n')
        self.fails(d, "required by the applying of a snapshot (uses node 'n' as 'root' child) and unshared by nbd export",
                   APPLY, device='n', name='s')
        d.cmd('block-export-del', id='exp-n')
        d.event_wait('BLOCK_EXPORT_DELETED')
        d.cmd(APPLY, device='n', name='s')
        self.assertEqual([SIZE] * 3, [d.node(n)['image']['virtual-size'] for n in 'nrf'])
        d.cmd(DELETE, device='r', name='s')
        self.assertEqual([], self.names())
        d.shutdown()
        sd.check_image(image)

    def test_backing_file_stays(self):
        """Who is below somebody that relies on its content is not turned back."""
        base = self.image('base.qcow2', data=[(0, sd.MIB, 0x11)])
        top = sd.create_image(self.path('top.qcow2'), 'qcow2', backing=base)
        d = self.start(base)
        d.cmd(CREATE, device='n', name='s')
        d.cmd('blockdev-add', driver='qcow2', node_name='top', backing='n', file={'driver': 'file', 'filename': top})
        d.export('top', writable=True)
        self.fails(d, "Node 'n' is busy: node is used as backing hd of 'top'", APPLY, device='n', name='s')
        d.cmd(CREATE, device='top', name='t')
        self.io('write -P 0x22 0 64k', node='top')
        d.cmd(APPLY, device='top', name='t')
        self.io('read -P 0x11 0 1M', node='top')
        d.shutdown()
        sd.check_image(top)

    def test_without_room_for_a_reference(self):
        """With one bit for each count no cluster can be shared: refused, and nothing is half done."""
        image = self.image(data=[(0, sd.MIB, 0x11)], refcount_bits=1)
        d = self.start(image)
        self.fails(d, "a cluster cannot have more than 1 references with 1 bits", CREATE, device='n', name='s')
        self.io('write -P 0x22 64k 64k', 'write -P 0x33 2M 64k')
        self.assertEqual([], self.snapshots())
        d.shutdown()
        sd.check_image(image)
        image = self.image('b.qcow2', data=[(0, sd.MIB, 0x11)], refcount_bits=2)
        self.start(image)
        self.d.cmd(CREATE, device='n', name='1')
        self.d.cmd(CREATE, device='n', name='2')
        self.fails(self.d, 'more than 3 references', CREATE, device='n', name='3')
        self.d.cmd(APPLY, device='n', name='1')
        self.io('write -P 0x22 0 1M')
        self.d.cmd(CREATE, device='n', name='3')
        self.d.cmd(DELETE, device='n', name='1')
        self.d.shutdown()
        sd.check_image(image)
        self.assertEqual(b'\x11' * sd.MIB + bytes(SIZE - sd.MIB), self.content(image, '2'))
        self.assertEqual(b'\x22' * sd.MIB + bytes(SIZE - sd.MIB), self.content(image, '3'))

    def test_compressed_clusters(self):
        """Several of them share a host cluster, which has as many references."""
        image = self.image('a.qcow2')
        for i in range(24):
            sd.qemu_io(image, f'write -c -P {i + 1} {i * 64}k 64k', fmt='qcow2')
        before = self.content(image)
        d = self.start(image)
        for i in range(5):
            d.cmd(CREATE, device='n', name=f's{i}')
            self.io(f'write -c -P {i + 50} {i * 128}k 64k', f'write -P {i + 100} {i * 128 + 64}k 4k')
        d.cmd(DELETE, device='n', name='s2')
        d.cmd(APPLY, device='n', name='s3')
        d.cmd(APPLY, device='n', name='s0')
        d.shutdown()
        sd.check_image(image)
        self.assertEqual(before, self.content(image))
        self.assertEqual(before, self.content(image, 's0'))

    def test_external_data_file(self):
        image = self.path('d.qcow2')
        sd.run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', f'data_file={self.path("d.raw")}', image, '1M')
        d = self.daemon()
        reply = d.qmp('blockdev-add', driver='qcow2', node_name='n', file={'driver': 'file', 'filename': image},
                      data_file={'driver': 'file', 'filename': self.path('d.raw')})
        if 'error' in reply:
            self.skipTest('no external data files')
        self.fails(d, 'data file', CREATE, device='n', name='s')


class Transactions(SnapshotCase):
    def test_several_at_one_moment(self):
        images = [self.image(f'{n}.qcow2') for n in 'ab']
        d = self.d = self.daemon()
        for image, node in zip(images, 'ab'):
            self.add(image, node)
        uris = [d.export(n, writable=True) for n in 'ab']
        stop, writer_error, last = threading.Event(), [], [0]

        def write():
            try:
                with sd.nbd_connect(uris[0]) as a, sd.nbd_connect(uris[1]) as b:
                    while not stop.is_set():
                        last[0] += 1
                        block = last[0].to_bytes(8, 'big') * 512
                        a.pwrite(block, 0)
                        b.pwrite(block, 65536)
            except Exception as e:
                writer_error.append(e)

        thread = threading.Thread(target=write)
        thread.start()
        try:
            for i in range(10):
                d.cmd('transaction', actions=[action(CREATE, device=n, name=f's{i}') for n in 'ab'])
        finally:
            stop.set()
            thread.join()
        self.assertEqual([], writer_error)
        d.shutdown()
        for image in images:
            sd.check_image(image)
        for i in range(10):
            a = int.from_bytes(self.content(images[0], f's{i}')[:8], 'big')
            b = int.from_bytes(self.content(images[1], f's{i}')[65536:65544], 'big')
            self.assertIn(a - b, (0, 1), f'snapshot {i}: the disks are {a - b} writes apart')

    def test_undone(self):
        image = self.image(data=[(0, sd.MIB, 0x11)])
        d = self.start(image)
        taken = "Snapshot with name 'x' already exists on device 'n'"
        self.fails(d, taken, 'transaction', actions=[action(CREATE, device='n', name='x'), action(CREATE, device='n', name='x')])
        self.assertEqual([], self.names())
        self.fails(d, 'Abort', 'transaction', actions=[action(CREATE, device='n', name='x'), action('abort')])
        # One that fails when all is prepared: the bitmap is added by the first action, and is there already for the second.
        self.fails(d, 'Bitmap already exists', 'transaction',
                   actions=[action('block-dirty-bitmap-add', node='n', name='b'), action(CREATE, device='n', name='x'),
                            action('block-dirty-bitmap-add', node='n', name='b')])
        self.assertEqual([], self.names())
        self.assertIsNone(d.bitmap('n', 'b'))
        self.fails(d, 'completion-mode = grouped', 'transaction', properties={'completion-mode': 'grouped'},
                   actions=[action(CREATE, device='n', name='x')])
        d.cmd('transaction', actions=[action('block-dirty-bitmap-add', node='n', name='b'), action(CREATE, device='n', name='x'),
                                      action(CREATE, device='n', name='y')])
        self.assertEqual(['x', 'y'], self.names())
        d.shutdown()
        sd.check_image(image)

    def test_with_an_overlay(self):
        """Internally first, then an overlay on top: each finds what those before it have done."""
        image = self.image(data=[(0, sd.MIB, 0x11)])
        d = self.start(image)
        over = self.path('over.qcow2')
        d.cmd('transaction', actions=[
            action(CREATE, device='n', name='x'),
            action('blockdev-snapshot-sync', node_name='n', snapshot_file=over, snapshot_node_name='o', format='qcow2')])
        self.io('write -P 0x22 0 64k', node='o')
        d.shutdown()
        self.assertEqual(b'\x11' * sd.MIB + bytes(SIZE - sd.MIB), self.content(image, 'x'))
        sd.qemu_io(over, 'read -P 0x22 0 64k', 'read -P 0x11 64k 960k', fmt='qcow2')


class Interop(SnapshotCase):
    def test_random(self):
        """Snapshots by us and by qemu-img in turn, against what they must hold."""
        for seed, options in enumerate((dict(), dict(cluster_size=512, refcount_bits=64), dict(compat='0.10', cluster_size=4096),
                                        dict(cluster_size='2M'), dict(cluster_size=1024, refcount_bits=8))):
            with self.subTest(**options):
                self.random_run(random.Random(seed), f'{seed}.qcow2', options)

    def random_run(self, rng, name, options):
        size = 2 * sd.MIB
        image = self.image(name, size, **options)
        disk, kept = bytearray(size), {}
        for round_ in range(4):
            self.start(image, **{'l2-cache-size': 4096, 'l2-cache-entry-size': 512})
            with sd.nbd_connect(self.d.export('n', writable=True)) as h:
                for _ in range(60):
                    self.random_step(rng, h, disk, kept)
                self.assertEqual(bytes(disk), h.pread(size, 0))
            self.assertEqual(sorted(kept), sorted(self.names()))
            self.d.shutdown()
            sd.check_image(image)
            for snapshot, content in kept.items():
                self.assertEqual(content, self.content(image, snapshot), snapshot)
            # Its turn.
            new = f'q{round_}'
            sd.qemu_img('snapshot', '-c', new, image)
            kept[new] = bytes(disk)
            if rng.random() < 0.7:
                gone = rng.choice(sorted(kept))
                sd.qemu_img('snapshot', '-d', gone, image)
                del kept[gone]
            if kept and rng.random() < 0.5:
                back = rng.choice(sorted(kept))
                sd.qemu_img('snapshot', '-a', back, image)
                disk[:] = kept[back]
            sd.check_image(image)

    def random_step(self, rng, h, disk, kept):
        size, what = len(disk), rng.random()
        offset = rng.randrange(size // 512) * 512
        length = min(rng.choice((512, 4096, 65536, 262144)), size - offset)
        if what < 0.55:
            data = rng.randbytes(64) * (length // 64)
            h.pwrite(data, offset)
            disk[offset:offset + length] = data
        elif what < 0.7:
            h.zero(length, offset)
            disk[offset:offset + length] = bytes(length)
        elif what < 0.85 and len(kept) < 6:
            name = f's{rng.randrange(10 ** 9)}'
            self.d.cmd(CREATE, device='n', name=name)
            kept[name] = bytes(disk)
        elif kept:
            name = rng.choice(sorted(kept))
            if what < 0.94:
                self.d.cmd(DELETE, device='n', name=name)
                del kept[name]
            else:
                self.d.cmd(APPLY, device='n', name=name)
                disk[:] = kept[name]

    def test_file_does_not_grow(self):
        """What one change of all counts leaves behind is where the next one goes, with the smallest tables as well."""
        image = sd.create_image(self.path('small.qcow2'), 'qcow2', 4 * sd.MIB, data=[(0, 2 * sd.MIB, 1)],
                                options={'cluster_size': 512, 'refcount_bits': 64})
        d = self.daemon()
        d.cmd('blockdev-add', {'driver': 'qcow2', 'node-name': 'small', 'file': {'driver': 'file', 'filename': image}})
        sizes = []
        for _ in range(60):
            d.cmd('blockdev-snapshot-internal-sync', device='small', name='s')
            d.cmd('blockdev-snapshot-delete-internal-sync', device='small', name='s')
            sizes.append(os.path.getsize(image))
        self.assertLess(sizes[-1], sizes[0] * 5 // 4)
        d.shutdown()
        sd.check_image(image)


if __name__ == '__main__':
    sd.main()
