"""Stream: an image takes in what is below it, while a client writes; nobody sees other data at any time."""
import os
import struct

import sd
from chains import SIZE, ChainCase
from jobs import Writer


class Stream(ChainCase):
    STORY = ['created', 'running', 'waiting', 'pending', 'BLOCK_JOB_COMPLETED', 'concluded', 'null']

    def test_all(self):
        d = self.start()
        done = self.run_job(d, 'block-stream', device='n3')
        self.assertEqual({'type': 'stream', 'device': 'j', 'len': SIZE, 'offset': SIZE, 'speed': 0}, done)
        self.assertEqual(self.STORY, self.story(d, 'j'))
        self.assertEqual(['n3'], self.chain(d, 'n3'))
        self.assertEqual(['n3'], [n for n in ('n0', 'n1', 'n2', 'n3') if d.node(n)])
        self.assertWant(self.content())
        d.shutdown()
        for i in range(3):
            os.unlink(self.image(i))
        self.assertIsNone(self.backing(3))
        self.assertImage(3)

    def test_base(self):
        for how in ({'base_node': 'n1'}, {'base': 1}, {'bottom': 'n2'}):
            with self.subTest(how=how):
                d = self.start()
                args = {k: self.image(v) if k == 'base' else v for k, v in how.items()}
                self.run_job(d, 'block-stream', device='n3', **args)
                self.assertEqual(['n3', 'n1', 'n0'], self.chain(d, 'n3'))
                self.assertWant(self.content())
                d.shutdown()
                self.assertEqual(self.image(1), self.backing(3))
                self.assertImage(3)
                # What the base has is not copied.
                top = sd.image_map(self.image(3))
                self.assertTrue(all(e['depth'] > 0 for e in top if e['start'] + e['length'] <= sd.MIB))

    def test_middle(self):
        """An image that is a backing file itself, and read-only."""
        d = self.start()
        self.run_job(d, 'block-stream', device='n2', base_node='n0')
        self.assertEqual(['n3', 'n2', 'n0'], self.chain(d, 'n3'))
        self.assertSubset({'ro': True}, d.node('n2'))
        self.assertWant(self.content())
        d.shutdown()
        os.unlink(self.image(1))
        self.assertImage(3)

    def test_two_at_a_time(self):
        d = self.start(6)
        d.cmd('block-stream', job_id='a', device='n5', base_node='n3', speed=1 << 30)
        d.cmd('block-stream', job_id='b', device='n3', base_node='n1', speed=1 << 30)
        for job in 'ab':
            self.wait_gone(d, job)
        self.assertEqual(['n5', 'n3', 'n1', 'n0'], self.chain(d, 'n5'))
        self.assertWant(self.content())
        d.shutdown()
        self.assertImage(5)

    def test_backing_file(self):
        d = self.start()
        self.run_job(d, 'block-stream', device='n3', base_node='n1', backing_file='1.img')
        d.shutdown()
        self.assertEqual('1.img', self.backing(3))
        self.assertImage(3)

    def test_nothing_below(self):
        d = self.start()
        self.run_job(d, 'block-stream', device='n0')
        self.assertWant(self.content())

    def test_sizes(self):
        """A top that is longer than what is below it, and one that is shorter; ends within clusters."""
        for size in (SIZE + 512, sd.MIB + 512):
            with self.subTest(size=size):
                self.make_images(2, size=4 * sd.MIB)
                sd.create_image(self.image(2), 'qcow2', size, backing=self.image(1))
                self.fmts = ['qcow2'] * 3
                sd.qemu_img('convert', '-O', 'raw', self.image(2), self.path('want'))
                d = self.open(2)
                self.run_job(d, 'block-stream', device='n2')
                self.assertWant(self.content())
                d.shutdown()
                self.assertImage(2)

    def test_under_load(self):
        d = self.start(4, size=32 * sd.MIB)
        w = Writer(self.uri, 32 * sd.MIB, longest=16)
        w.start()
        w.wait_for(20)
        self.run_job(d, 'block-stream', device='n3', base_node='n0')
        w.wait_for(20)
        self.run_job(d, 'block-stream', device='n3')
        w.wait_for(20)
        want = w.stop()
        d.shutdown()
        with open(self.path('want'), 'wb') as f:
            f.write(want)
        self.assertImage(3)

    def test_holes_stay_holes(self):
        size = 1 << 40
        for i in range(3):
            sd.create_image(self.image(i), 'qcow2', size, **({'backing': self.image(i - 1)} if i else {}),
                            data=[(i * (100 << 30), 65536, 0x20 + i)])
        self.fmts = ['qcow2'] * 3
        d = self.open(2)
        d.cmd('block-stream', job_id='j', device='n2')
        d.wait_completed('j', timeout=10)
        d.shutdown()
        sd.qemu_io(self.image(2), *(f'read -P {0x20 + i} {i * (100 << 30)} 64k' for i in range(3)), fmt='qcow2',
                   readonly=True)
        self.assertLess(os.stat(self.image(2)).st_blocks * 512, 2 * sd.MIB)

    def test_cancel(self):
        d = self.start()
        d.cmd('block-stream', job_id='j', device='n3', speed=65536, filter_node_name='filter')
        self.assertSubset({'drv': 'stream_top'}, d.node('filter'))
        self.assertEqual('BLOCK_JOB_CANCELLED', d.cancel('j')['event'])
        self.wait_gone(d, 'j')
        self.assertIsNone(d.node('filter'))
        self.assertEqual(['n3', 'n2', 'n1', 'n0'], self.chain(d, 'n3'))
        self.assertWant(self.content())
        d.shutdown()
        self.assertImage(3)

    def test_errors(self):
        """A read below fails once: reported, or waited for."""
        for policy in ('report', 'stop', 'ignore'):
            with self.subTest(policy=policy):
                self.make_images(3)
                d = self.daemon()
                o = self.options(2)
                o['backing']['backing']['file'] = {
                    'driver': 'blkdebug', 'image': {'driver': 'file', 'filename': self.image(0)},
                    'inject-error': [{'event': 'read_aio', 'errno': 5, 'once': True}]}
                d.cmd('blockdev-add', o)
                self.uri = d.export('n2', name='disk', writable=True)
                d.cmd('block-stream', job_id='j', device='n2', on_error=policy)
                d.event_wait('BLOCK_JOB_ERROR', {'device': 'j', 'operation': 'read', 'action': policy})
                if policy == 'stop':
                    self.wait_status(d, 'j', 'paused')
                    self.assertSubset({'status': 'paused', 'io-status': 'failed'}, d.job('j'))
                    d.cmd('block-job-resume', device='j')
                d.wait_completed('j', error='Input/output error' if policy == 'report' else None)
                self.wait_gone(d, 'j')
                self.assertEqual(self.image(1) if policy == 'report' else None, self.backing(2))
                self.assertWant(self.content())
                d.shutdown()
                self.assertImage(2)

    def test_refusals(self):
        d = self.start()

        def refuse(text, **args):
            self.fails(d, text, 'block-stream', **{'job_id': 'j', 'device': 'n3', **args})
            self.assertEqual([], d.cmd('query-jobs'))
            self.assertEqual(['n3', 'n2', 'n1', 'n0'], self.chain(d, 'n3'))

        refuse("Cannot find device='nope' nor node-name='nope'", device='nope')
        refuse("Can't find 'nope' in the backing chain", base='nope')
        refuse("Cannot find device='' nor node-name='nope'", base_node='nope')
        refuse("Cannot find device='' nor node-name='nope'", bottom='nope')
        refuse("Node 'f1' is not in a chain starting from 'n3'", bottom='f1')
        refuse("Node 'n3' is not a backing image of 'n3'", base_node='n3')
        refuse("Node 'n3' is not a backing image of 'n1'", device='n1', base_node='n3')
        refuse("'base' and 'base-node' cannot be specified at the same time", base='x', base_node='n1')
        refuse("'base' and 'bottom' cannot be specified at the same time", base='x', bottom='n1')
        refuse("'bottom' and 'base-node' cannot be specified at the same time", bottom='n1', base_node='n1')
        refuse('backing file specified, but streaming the entire chain', backing_file='x')
        refuse("Parameter 'speed' expects a non-negative value", speed=-1)
        self.fails(d, "Invalid job ID ''", 'block-stream', device='n3')
        d.cmd('block-stream', job_id='a', device='n2', base_node='n0', speed=1)
        for device in ('n2', 'n1', 'n3'):
            self.fails(d, 'is busy: block device is in use by block job: stream', 'block-stream', job_id='b', device=device)
        d.cancel('a')


class Header(ChainCase):
    """The backing file's name in all sorts of qcow2 headers; what else is in them stays."""

    def rewrite(self, options=None, extensions=(), name_at=None, old_format='qcow2', base='0.img', size=SIZE):
        """Streams image 2 down to image 0, and looks at its header before and after."""
        self.make_images(3, options=options, size=size)
        path = self.image(2)
        with open(path, 'r+b') as f:
            head = bytearray(f.read(65536))
            at = struct.unpack_from('>I', head, 100)[0] if struct.unpack_from('>I', head, 4)[0] > 2 else 72
            out = bytearray()
            if old_format:
                out += struct.pack('>II', 0xe2792aca, len(old_format)) + old_format.encode().ljust(-(-len(old_format) // 8) * 8, b'\0')
            for kind, data in extensions:
                out += struct.pack('>II', kind, len(data)) + data.ljust(-(-len(data) // 8) * 8, b'\0')
            out += bytes(8)
            name = self.image(1).encode()
            place = name_at or at + len(out)
            self.assertGreaterEqual(place, at + len(out))
            f.seek(at)
            f.write(out + bytes(place - at - len(out)) + name)
            f.seek(8)
            f.write(struct.pack('>QI', place, len(name)))
        d = self.open(2)
        self.run_job(d, 'block-stream', device='n2', base_node='n0', backing_file=base)
        self.assertWant(self.content())
        d.kill()  # what the header says is on the disk
        self.assertSubset({'backing-filename': base, 'backing-filename-format': 'qcow2'}, sd.image_info(path))
        self.assertEqual(dict(extensions), self.extensions(path))
        if os.path.basename(base) == base or os.path.isabs(base):
            self.assertImagesEqual(self.path('want'), path, 'raw', 'qcow2')

    def extensions(self, path):
        """All but the backing format and what only fills space."""
        with open(path, 'rb') as f:
            head = f.read(65536)
        at = struct.unpack_from('>I', head, 100)[0] if struct.unpack_from('>I', head, 4)[0] > 2 else 72
        found = {}
        while True:
            kind, length = struct.unpack_from('>II', head, at)
            if not kind:
                return found
            if kind not in (0xe2792aca, 0x66696c6c):
                self.assertNotIn(kind, found)
                found[kind] = head[at + 8:at + 8 + length]
            at += 8 + -(-length // 8) * 8

    UNKNOWN = ((0x12345678, b'left by somebody'), (0x0badcafe, b'odd'))

    def test_plain(self):
        self.rewrite()

    def test_absolute(self):
        self.rewrite(base=None or self.path('0.img'))

    def test_unknown_extensions(self):
        self.rewrite(extensions=self.UNKNOWN)

    def test_without_format(self):
        self.rewrite(extensions=self.UNKNOWN, old_format=None)

    def test_longer_format(self):
        self.rewrite(extensions=self.UNKNOWN, old_format='a-format-of-its')

    def test_name_far_behind(self):
        self.rewrite(extensions=self.UNKNOWN, name_at=5000)

    def test_long_name(self):
        self.rewrite(extensions=self.UNKNOWN, base='./' * 500 + '0.img')

    def test_small_clusters(self):
        self.rewrite(options={'cluster_size': 512}, size=4 * sd.MIB)

    def test_version_2(self):
        self.rewrite(options={'compat': '0.10'}, extensions=self.UNKNOWN)

    def test_no_room(self):
        """A header cluster of 512 bytes has no room for a long name."""
        self.make_images(3, options={'cluster_size': 512}, size=4 * sd.MIB)
        d = self.open(2)
        d.cmd('block-stream', job_id='j', device='n2', base_node='n0', backing_file='./' * 200 + '0.img')
        d.wait_completed('j', error='Backing file name too long')
        self.wait_gone(d, 'j')
        self.assertEqual(['n2', 'n1', 'n0'], self.chain(d, 'n2'))
        self.assertWant(self.content())
        d.shutdown()
        self.assertEqual(self.image(1), self.backing(2))
        self.assertImage(2)

    def test_again_and_again(self):
        """Names move within the cluster and never out of it."""
        self.make_images(1)
        self.fmts = ['qcow2']
        d = self.open(0)
        top = 'n0'
        for i in range(40):
            d.cmd('blockdev-snapshot-sync', node_name=top, snapshot_file=self.path(f's{i}.img'), snapshot_node_name=f's{i}')
            top = f's{i}'
            if i:
                self.run_job(d, 'block-commit', device=top, top_node=f's{i - 1}', base_node='n0',
                             backing_file='/' * (i * 7 % 90) + self.image(0))
        self.run_job(d, 'block-stream', device=top)
        for i in range(30):
            d.cmd('blockdev-snapshot-sync', node_name=top, snapshot_file=self.path('x.img'), snapshot_node_name='x')
            self.run_job(d, 'block-stream', device='x', base_node=top, backing_file='/' * (i * 7 % 90) + self.path(top[1:]))
            d.cmd('block-commit', job_id=f'c{i}', device='x')
            d.complete(f'c{i}')
            self.wait_gone(d, f'c{i}')
        self.assertWant(self.content())
        d.shutdown()
        self.assertImagesEqual(self.path('want'), self.path(f'{top}.img'), 'raw', 'qcow2')
        sd.check_image(self.path(f'{top}.img'))


if __name__ == '__main__':
    sd.main()
