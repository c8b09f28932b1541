"""Snapshots: an overlay takes an image's place, at one moment, for everybody; or everything stays as it was."""
import hashlib
import os

import sd
from jobs import JobCase, Writer

SIZE = 4 * sd.MIB


def digest(path):
    with open(path, 'rb') as f:
        return hashlib.sha256(f.read()).hexdigest()


class SnapshotCase(JobCase):
    def image(self, name, fmt='qcow2', size=SIZE, **more):
        return sd.create_image(self.path(name), fmt, size, **more)

    def drive(self, fmt='qcow2', *more):
        """A daemon with a device 'disk' on the node 'base', exported for writing; the image's path."""
        self.base = self.image('base.img', fmt, data=[(0, SIZE, 0x10)])
        d = self.daemon('--drive', f'id=disk,file={self.base},format={fmt},node-name=base,if=none', *more)
        d.nbd_server()
        d.cmd('nbd-server-add', device='disk', name='disk', writable=True)
        self.uri = sd.nbd_uri(d.nbd_socket, 'disk')
        return d

    def inserted(self, d):
        return d.cmd('query-block')[0]['inserted']['node-name']

    def write(self, byte, offset, length=65536):
        with sd.nbd_connect(self.uri) as h:
            h.pwrite(bytes([byte]) * length, offset)

    def read(self, offset):
        with sd.nbd_connect(self.uri) as h:
            return h.pread(1, offset)[0]


class Sync(SnapshotCase):
    def check(self, fmt, **more):
        d = self.drive(fmt)
        over = self.path('over.img')
        self.write(0x11, 0)
        d.cmd('blockdev-snapshot-sync', device='disk', snapshot_file=over, snapshot_node_name='over', **more)
        self.assertEqual('over', self.inserted(d))
        self.assertSubset({'ro': True}, d.node('base'))
        self.assertSubset({'ro': False, 'backing_file': self.base, 'backing_file_depth': 1}, d.node('over'))
        before = digest(self.base)
        self.write(0x22, sd.MIB)
        self.assertEqual([0x11, 0x22, 0x10], [self.read(o) for o in (0, sd.MIB, 2 * sd.MIB)])
        d.shutdown()
        self.assertEqual(before, digest(self.base))
        sd.check_image(over)
        self.assertSubset({'format': 'qcow2', 'virtual-size': SIZE, 'backing-filename': self.base,
                           'backing-filename-format': fmt}, sd.image_info(over))
        sd.qemu_io(over, 'read -P 0x11 0 64k', 'read -P 0x22 1M 64k', 'read -P 0x10 2M 64k', fmt='qcow2', readonly=True)
        sd.qemu_io(self.base, 'read -P 0x11 0 64k', 'read -P 0x10 1M 64k', fmt=fmt, readonly=True)

    def test_qcow2(self):
        self.check('qcow2')

    def test_raw_base(self):
        self.check('raw', format='qcow2', mode='absolute-paths')

    def test_existing_overlay(self):
        """Its header is trusted for nothing but the format: the image under it is the node."""
        d = self.drive()
        over = self.image('over.img', data=[(sd.MIB, 65536, 0x77)])
        d.cmd('blockdev-snapshot-sync', device='disk', snapshot_file=over, mode='existing')
        self.assertEqual([0x10, 0x77], [self.read(o) for o in (0, sd.MIB)])

    def test_by_node_name(self):
        d = self.drive()
        d.cmd('blockdev-snapshot-sync', node_name='base', snapshot_file=self.path('over.img'), snapshot_node_name='over')
        self.assertEqual('over', self.inserted(d))
        self.write(0x22, 0)
        self.assertEqual(0x22, self.read(0))

    def test_unused_node(self):
        """Nobody uses the node but who added it: the overlay is there for him, and can be deleted."""
        d = self.daemon()
        self.node(d, 'a', self.image('a.img'), 'qcow2')
        d.cmd('blockdev-snapshot-sync', node_name='a', snapshot_file=self.path('b.img'), snapshot_node_name='b')
        self.assertSubset({'backing_file': self.path('a.img')}, d.node('b'))
        self.fails(d, "Node 'a' is busy: node is used as backing hd of 'b'", 'blockdev-snapshot-sync', node_name='a',
                   snapshot_file=self.path('c.img'), snapshot_node_name='c')
        d.cmd('blockdev-del', node_name='b')
        d.cmd('blockdev-del', node_name='a')

    def test_read_only_node(self):
        """Its overlay is read-only as well."""
        d = self.daemon()
        self.node(d, 'a', self.image('a.img'), 'qcow2', read_only=True)
        uri = d.export('a')
        d.cmd('blockdev-snapshot-sync', node_name='a', snapshot_file=self.path('b.img'), snapshot_node_name='b')
        self.assertSubset({'ro': True}, d.node('b'))
        with sd.nbd_connect(uri) as h:
            self.assertEqual(b'\0', h.pread(1, 0))

    def test_relative_names(self):
        """A header's relative name counts from the header's folder, the daemon's from its own."""
        base = os.path.relpath(self.image('base.img', data=[(0, SIZE, 0x10)]))
        os.mkdir(self.path('sub'))
        d = self.daemon()
        self.node(d, 'a', base, 'qcow2')
        d.cmd('blockdev-snapshot-sync', node_name='a', snapshot_file=self.path('sub/over.img'), snapshot_node_name='b')
        d.shutdown()
        sd.qemu_io(self.path('sub/over.img'), 'read -P 0x10 0 64k', fmt='qcow2', readonly=True)

    def test_chain(self):
        d = self.drive()
        for i in range(12):
            d.cmd('blockdev-snapshot-sync', device='disk', snapshot_file=self.path(f'{i}.img'), snapshot_node_name=f'n{i}')
            self.write(i + 1, i * 65536)
        self.assertEqual(list(range(1, 13)), [self.read(i * 65536) for i in range(12)])
        d.shutdown()
        for i in range(12):
            sd.check_image(self.path(f'{i}.img'))
            sd.qemu_io(self.path('11.img'), f'read -P {i + 1} {i * 65536} 64k', fmt='qcow2', readonly=True)

    def test_under_load(self):
        d = self.drive()
        w = Writer(self.uri, SIZE, longest=16)
        w.start()
        for i in range(5):
            w.wait_for(20)
            d.cmd('blockdev-snapshot-sync', device='disk', snapshot_file=self.path(f'{i}.img'), snapshot_node_name=f'n{i}')
        w.wait_for(20)
        want = w.stop()
        d.shutdown()
        with open(self.path('want'), 'wb') as f:
            f.write(want)
        self.assertImagesEqual(self.path('want'), self.path('4.img'), 'raw', 'qcow2')

    def test_bitmaps_stay(self):
        """A bitmap belongs to its node: it does not follow the device."""
        d = self.drive()
        d.cmd('block-dirty-bitmap-add', node='disk', name='b')
        self.write(1, 0)
        d.cmd('blockdev-snapshot-sync', device='disk', snapshot_file=self.path('over.img'), snapshot_node_name='over')
        self.write(1, sd.MIB)
        self.assertEqual(65536, d.bitmap('base', 'b')['count'])
        self.assertIsNone(d.bitmap('over', 'b'))


class SyncRefusals(SnapshotCase):
    """Each leaves no file, no node and the device where it was."""

    def refuse(self, text, **args):
        args.setdefault('snapshot_file', self.path('over.img'))
        before = digest(self.base), sorted(os.listdir(self.dir)), [n['node-name'] for n in
                                                                  self.d.cmd('query-named-block-nodes')]
        self.fails(self.d, text, 'blockdev-snapshot-sync', **args)
        self.assertEqual(before, (digest(self.base), sorted(os.listdir(self.dir)),
                                  [n['node-name'] for n in self.d.cmd('query-named-block-nodes')]))
        self.assertEqual('base', self.inserted(self.d))

    def setUp(self):
        self.d = self.drive()

    def test_names(self):
        self.refuse("Cannot find device='nope' nor node-name=''", device='nope')
        self.refuse("Cannot find device='' nor node-name='nope'", node_name='nope', snapshot_node_name='over')
        self.refuse("Cannot find device='' nor node-name=''")
        self.refuse('New overlay node-name missing', node_name='base')
        self.refuse('New overlay node-name already in use', device='disk', snapshot_node_name='base')
        self.refuse('New overlay node-name already in use', device='disk', snapshot_node_name='disk')

    def test_images(self):
        over = self.path('over.img')
        self.refuse("Unknown file format 'nope'", device='disk', format='nope')
        self.refuse("Backing file not supported for file format 'raw'", device='disk', format='raw')
        self.refuse(f"Could not open '{over}': No such file or directory", device='disk', mode='existing')
        self.refuse(f"Could not create '{self.path('no/over.img')}': No such file or directory", device='disk',
                    snapshot_file=self.path('no/over.img'))
        self.refuse('Error: Trying to create an image with the same filename as the backing file', device='disk',
                    snapshot_file=self.base)
        sd.create_image(over, 'raw', SIZE)
        self.refuse('The overlay does not support backing images', device='disk', format='raw', mode='existing')

    def test_image_in_use(self):
        other = self.image('other.img')
        self.node(self.d, 'other', other, 'qcow2')
        before = digest(other)
        for mode in ('existing', 'absolute-paths'):
            self.refuse('Failed to get "write" lock', device='disk', snapshot_file=other, mode=mode)
        self.assertEqual(before, digest(other))

    def test_empty_device(self):
        d = self.daemon('--drive', 'id=cd,media=cdrom,if=none')
        self.fails(d, "Device 'cd' has no medium", 'blockdev-snapshot-sync', device='cd', snapshot_file=self.path('x'))

    def test_job(self):
        self.d.cmd('drive-mirror', job_id='m', device='disk', target=self.path('copy.img'), sync='full', speed=65536)
        self.fails(self.d, 'is busy: block device is in use by block job: mirror', 'blockdev-snapshot-sync',
                   node_name='base', snapshot_file=self.path('over.img'), snapshot_node_name='over')
        self.fails(self.d, 'is busy: block device is in use by block job: mirror', 'blockdev-snapshot-sync',
                   device='disk', snapshot_file=self.path('over.img'))
        self.d.cancel('m', force=True)


class Overlay(SnapshotCase):
    """blockdev-snapshot: the overlay is a node already."""

    def overlay(self, name, **more):
        self.image(name + '.img')
        self.node(self.d, name, self.path(name + '.img'), 'qcow2', **more)

    def setUp(self):
        self.d = self.drive()

    def snapshot(self, node, overlay):
        self.d.cmd('blockdev-snapshot', node=node, overlay=overlay)

    def refuse(self, text, node, overlay):
        self.fails(self.d, text, 'blockdev-snapshot', node=node, overlay=overlay)
        self.assertEqual('base', self.inserted(self.d))

    def test_good(self):
        self.overlay('over', backing=None)
        self.write(0x11, 0)
        self.snapshot('disk', 'over')
        self.assertEqual('over', self.inserted(self.d))
        before = digest(self.base)
        self.write(0x22, sd.MIB)
        self.assertEqual([0x11, 0x22, 0x10], [self.read(o) for o in (0, sd.MIB, 2 * sd.MIB)])
        self.fails(self.d, 'Node over is in use', 'blockdev-del', node_name='over')
        self.d.shutdown()
        self.assertEqual(before, digest(self.base))
        # The header is the client's business.
        over = self.path('over.img')
        self.assertNotIn('backing-filename', sd.image_info(over))
        sd.qemu_img('rebase', '-u', '-f', 'qcow2', '-b', self.base, '-F', 'qcow2', over)
        sd.qemu_io(over, 'read -P 0x11 0 64k', 'read -P 0x22 1M 64k', 'read -P 0x10 2M 64k', fmt='qcow2', readonly=True)

    def test_user_of_the_overlay_stays(self):
        """A filter without users of its own may stand on the overlay already."""
        self.overlay('over')
        self.d.cmd('blockdev-add', driver='raw', node_name='view', file='over')
        self.snapshot('base', 'over')
        self.assertEqual('over', self.inserted(self.d))
        self.fails(self.d, 'Node over is in use', 'blockdev-del', node_name='over')
        self.d.cmd('blockdev-del', node_name='view')

    def test_refusals(self):
        self.overlay('over')
        self.refuse("Cannot find device='nope' nor node-name='nope'", 'base', 'nope')
        self.refuse("Cannot find device='nope' nor node-name='nope'", 'nope', 'over')
        self.refuse('The overlay is already in use', 'base', 'base')
        self.refuse("Making 'over' a backing child of 'over' would create a cycle", 'over', 'over')
        self.d.cmd('blockdev-add', driver='null-co', node_name='null', size=SIZE)
        self.refuse('The overlay does not support backing images', 'base', 'null')
        self.overlay('lower')
        self.d.cmd('blockdev-add', driver='copy-on-read', node_name='cor', file='lower')
        self.refuse('Filters cannot be used as overlays', 'base', 'cor')
        sd.create_image(self.path('chained.img'), 'qcow2', backing=self.path('lower.img'))
        self.node(self.d, 'chained', self.path('chained.img'), 'qcow2', backing='over')
        self.refuse('The overlay already has a backing image', 'base', 'chained')
        self.refuse("Node 'over' is busy: node is used as backing hd of 'chained'", 'over', 'lower')

    def test_overlay_in_use(self):
        self.overlay('over')
        self.d.export('over', writable=True)
        self.refuse('The overlay is already in use', 'base', 'over')

    def test_cycle(self):
        self.overlay('low', backing=None)
        self.overlay('high', backing='low')
        self.refuse("Making 'high' a backing child of 'low' would create a cycle", 'high', 'low')

    def test_read_only_overlay(self):
        self.image('over.img')
        self.node(self.d, 'over', self.path('over.img'), 'qcow2', read_only=True)
        self.refuse("Block node is read-only", 'base', 'over')
        self.write(0x22, 0)
        self.assertEqual(0x22, self.read(0))

    def test_smaller_and_larger(self):
        """What lies behind the end of the image below reads as zeroes."""
        self.image('over.img', size=2 * SIZE)
        self.node(self.d, 'over', self.path('over.img'), 'qcow2')
        self.snapshot('base', 'over')
        with sd.nbd_connect(self.uri) as h:
            self.assertEqual(0x10, h.pread(1, SIZE - 1)[0])
        self.assertEqual(2 * SIZE, self.d.cmd('query-block')[0]['inserted']['image']['virtual-size'])


if __name__ == '__main__':
    sd.main()
