"""Commit: overlays go down into an image below, while a client writes; nobody sees other data at any time."""
import os

import sd
from chains import SIZE, ChainCase
from jobs import Writer


class Below(ChainCase):
    """Between images of which none is the client's own."""

    STORY = ['created', 'running', 'waiting', 'pending', 'BLOCK_JOB_COMPLETED', 'concluded', 'null']

    def test_one(self):
        d = self.start()
        done = self.run_job(d, 'block-commit', device='n3', top_node='n2', base_node='n1')
        self.assertEqual({'type': 'commit', 'device': 'j', 'len': SIZE, 'offset': SIZE, 'speed': 0}, done)
        self.assertEqual(self.STORY, self.story(d, 'j'))
        self.assertEqual(['n3', 'n1', 'n0'], self.chain(d, 'n3'))
        self.assertIsNone(d.node('n2'))
        self.assertSubset({'ro': True}, d.node('n1'))
        self.assertWant(self.content())
        d.shutdown()
        os.unlink(self.image(2))
        self.assertEqual(self.image(1), self.backing(3))
        self.assertImage(3)

    def test_many(self):
        d = self.start(6)
        self.run_job(d, 'block-commit', device='n5', top_node='n4')
        self.assertEqual(['n5', 'n0'], self.chain(d, 'n5'))
        self.assertWant(self.content())
        d.shutdown()
        for i in range(1, 5):
            os.unlink(self.image(i))
        self.assertImage(5)
        sd.check_image(self.image(0))

    def test_raw_base(self):
        d = self.start(3, fmts=['raw', 'qcow2', 'qcow2'])
        self.run_job(d, 'block-commit', device='n2', top_node='n1')
        self.assertWant(self.content())
        d.shutdown()
        self.assertSubset({'backing-filename': self.image(0), 'backing-filename-format': 'raw'},
                          sd.image_info(self.image(2)))
        self.assertImage(2)

    def test_qed(self):
        """Names come and go in qed headers as well; only raw is named as a format there."""
        d = self.start(5, fmts=['raw', 'qed', 'qed', 'qed', 'qed'])
        for top, base in ((3, 2), (2, 1)):
            self.run_job(d, 'block-commit', device='n4', top_node=f'n{top}', base_node=f'n{base}')
            self.assertEqual(self.image(base), self.backing(4))
        self.run_job(d, 'block-commit', device='n4', top_node='n1')
        self.assertSubset({'backing-filename': self.image(0), 'backing-filename-format': 'raw'},
                          sd.image_info(self.image(4)))
        self.run_job(d, 'block-stream', device='n4')
        self.assertIsNone(self.backing(4))
        d.cmd('blockdev-snapshot-sync', node_name='n4', snapshot_file=self.path('top.img'), snapshot_node_name='top',
              format='qed')
        with sd.nbd_connect(self.uri) as h:
            h.pwrite(b'\x66' * 512, 0)
        d.cmd('block-commit', job_id='j', device='top')
        d.complete('j')
        self.wait_gone(d, 'j')
        d.shutdown()
        with open(self.path('want'), 'r+b') as f:
            f.write(b'\x66' * 512)
        self.assertImage(4, 'qed')
        sd.check_image(self.image(4), 'qed')

    def test_by_file_name(self):
        d = self.start()
        self.run_job(d, 'block-commit', device='n3', top=self.image(2), base=self.image(0))
        self.assertEqual(['n3', 'n0'], self.chain(d, 'n3'))
        self.assertWant(self.content())

    def test_backing_file(self):
        d = self.start()
        self.run_job(d, 'block-commit', device='n3', top_node='n2', base_node='n1', backing_file='1.img')
        self.assertEqual(['n3', 'n1', 'n0'], [n for n in self.chain(d, 'n3')])
        d.shutdown()
        self.assertEqual('1.img', self.backing(3))
        self.assertImage(3)

    def test_short_base(self):
        sd.create_image(self.image(0), 'qcow2', 3 * sd.MIB, data=[(0, 3 * sd.MIB, 0x10)])
        sd.create_image(self.image(1), 'qcow2', 2 * sd.MIB, backing=self.image(0), data=[(sd.MIB, 1000, 0x11)])
        sd.create_image(self.image(2), 'qcow2', SIZE, backing=self.image(1), data=[(5 * sd.MIB, 70000, 0x77)])
        sd.create_image(self.image(3), 'qcow2', backing=self.image(2))
        self.fmts = ['qcow2'] * 4
        sd.qemu_img('convert', '-O', 'raw', self.image(3), self.path('want'))
        d = self.open(3)
        self.run_job(d, 'block-commit', device='n3', top_node='n2', base_node='n1')
        self.assertWant(self.content())
        d.shutdown()
        self.assertEqual(SIZE, sd.image_info(self.image(1))['virtual-size'])
        self.assertImage(3)

    def test_under_load(self):
        d = self.start()
        w = Writer(self.uri, SIZE, longest=16)
        w.start()
        w.wait_for(20)
        self.run_job(d, 'block-commit', device='n3', top_node='n2', base_node='n0')
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
        d.cmd('block-commit', job_id='j', device='n2', top_node='n1')
        d.wait_completed('j', timeout=10)
        d.shutdown()
        sd.qemu_io(self.image(2), *(f'read -P {0x20 + i} {i * (100 << 30)} 64k' for i in range(3)), fmt='qcow2',
                   readonly=True)
        self.assertLess(os.stat(self.image(0)).st_blocks * 512, 2 * sd.MIB)

    def test_zeroes(self):
        """Zeroes written over data below become zeroes in the base."""
        self.make_images(3)
        sd.qemu_io(self.image(1), 'write -z 1M 512k', 'write -z -u 300k 100k', fmt='qcow2')
        sd.qemu_img('convert', '-O', 'raw', self.image(2), self.path('want'))
        d = self.open(2)
        self.run_job(d, 'block-commit', device='n2', top_node='n1')
        self.assertWant(self.content())
        d.shutdown()
        self.assertImage(2)

    def test_two_overlays(self):
        """Another overlay on the same image follows as well."""
        self.make_images(3)
        sd.create_image(self.path('other.img'), 'qcow2', backing=self.image(1), data=[(0, 65536, 0x99)])
        d = self.open(2)
        d.cmd('blockdev-add', driver='qcow2', node_name='other', backing='n1',
              file={'driver': 'file', 'filename': self.path('other.img')})
        self.run_job(d, 'block-commit', device='n2', top_node='n1', base_node='n0')
        self.assertWant(self.content())
        d.shutdown()
        self.assertEqual([self.image(0)] * 2, [self.backing(2), sd.image_info(self.path('other.img'))['backing-filename']])
        self.assertImage(2)
        sd.qemu_io(self.path('other.img'), 'read -P 0x99 0 64k', f'read -P 0x11 {sd.MIB} 64k', fmt='qcow2', readonly=True)

    def test_cancel(self):
        d = self.start()
        d.cmd('block-commit', job_id='j', device='n3', top_node='n2', base_node='n0', speed=65536)
        d.event_wait('JOB_STATUS_CHANGE', {'id': 'j', 'status': 'running'})
        self.assertEqual('BLOCK_JOB_CANCELLED', d.cancel('j')['event'])
        self.wait_gone(d, 'j')
        self.assertEqual(['n3', 'n2', 'n1', 'n0'], self.chain(d, 'n3'))
        self.assertSubset({'ro': True}, d.node('n0'))
        self.assertWant(self.content())
        d.shutdown()
        self.assertImage(3)

    def test_finalize(self):
        d = self.start()
        d.cmd('block-commit', job_id='j', device='n3', top_node='n2', auto_finalize=False, filter_node_name='filter')
        d.event_wait('BLOCK_JOB_PENDING', {'id': 'j'})
        self.assertSubset({'drv': 'commit_top'}, d.node('filter'))
        self.assertEqual(self.image(2), self.backing(3))
        d.cmd('job-finalize', id='j')
        self.wait_gone(d, 'j')
        self.assertEqual(['n3', 'n0'], self.chain(d, 'n3'))
        self.assertIsNone(d.node('filter'))

    def test_full_disk(self):
        """The base's disk is full: the job stops and goes on when there is room; or reports, and nothing has changed."""
        self.make_images(2)
        sd.create_image(self.image(2), 'qcow2', backing=self.image(1))
        self.fmts = ['qcow2'] * 3
        sd.qemu_img('convert', '-O', 'raw', self.image(2), self.path('want'))
        d = self.daemon()
        o = self.options(2)
        o['backing']['backing']['file'] = {
            'driver': 'blkdebug', 'image': {'driver': 'file', 'filename': self.image(0)},
            'inject-error': [{'event': 'write_aio', 'errno': 28, 'once': True}]}
        d.cmd('blockdev-add', o)
        self.uri = d.export('n2', name='disk', writable=True)
        d.cmd('block-commit', job_id='j', device='n2', top_node='n1', on_error='enospc')
        d.event_wait('BLOCK_JOB_ERROR', {'device': 'j', 'operation': 'write', 'action': 'stop'})
        self.wait_status(d, 'j', 'paused')
        self.assertSubset({'status': 'paused', 'io-status': 'nospace'}, d.job('j'))
        d.cmd('block-job-resume', device='j')
        d.wait_completed('j')
        self.wait_gone(d, 'j')
        self.assertWant(self.content())
        d.shutdown()
        self.assertImage(2)

    def test_error(self):
        self.make_images(3)
        d = self.daemon()
        o = self.options(2)
        o['backing']['backing']['file'] = {
            'driver': 'blkdebug', 'image': {'driver': 'file', 'filename': self.image(0)},
            'inject-error': [{'event': 'write_aio', 'errno': 5, 'once': True}]}
        d.cmd('blockdev-add', o)
        self.uri = d.export('n2', name='disk', writable=True)
        d.cmd('block-commit', job_id='j', device='n2', top_node='n1')
        d.wait_completed('j', error='Input/output error')
        self.wait_gone(d, 'j')
        self.assertEqual(['n2', 'n1'], self.chain(d, 'n2')[:2])
        self.assertWant(self.content())
        d.shutdown()
        self.assertImage(2)

    def test_header_write_fails(self):
        """What cannot be said in the header must not become so in the graph."""
        d = self.start()
        d.cmd('block-commit', job_id='j', device='n3', top_node='n2', backing_file='x' * 1024)
        d.wait_completed('j', error='Backing file name too long')
        self.wait_gone(d, 'j')
        self.assertEqual(['n3', 'n2', 'n1', 'n0'], self.chain(d, 'n3'))
        d.shutdown()
        self.assertEqual(self.image(2), self.backing(3))
        self.assertImage(3)


class Refusals(ChainCase):
    def setUp(self):
        self.d = self.start()

    def refuse(self, text, cls='GenericError', **args):
        self.fails(self.d, text, 'block-commit', cls=cls, **{'job_id': 'j', 'device': 'n3', **args})
        self.assertEqual([], self.d.cmd('query-jobs'))
        self.assertEqual(['n3', 'n2', 'n1', 'n0'], self.chain(self.d, 'n3'))

    def test_arguments(self):
        self.refuse("Device 'nope' not found", cls='DeviceNotFound', device='nope')
        self.refuse('Need a root block node', device='n2')
        self.refuse("Cannot find device='' nor node-name='nope'", top_node='nope')
        self.refuse("Cannot find device='' nor node-name='nope'", base_node='nope')
        self.refuse('Top image file nope not found', top='nope')
        self.refuse("Can't find 'nope' in the backing chain", base='nope')
        self.refuse("'f1' is not in this backing file chain", top_node='f1')
        self.refuse("'n2' is not in this backing file chain", top_node='n1', base_node='n2')
        self.refuse('cannot commit an image into itself', top_node='n1', base_node='n1')
        self.refuse('cannot commit an image into itself', top_node='n0')
        self.refuse("'top-node' and 'top' are mutually exclusive", top_node='n1', top='x')
        self.refuse("'base-node' and 'base' are mutually exclusive", base_node='n1', base='x')
        self.refuse("'backing-file' specified, but 'top' is the active layer", backing_file='x')
        self.refuse("Parameter 'speed' expects a non-negative value", top_node='n2', speed=-1)
        self.refuse("Parameter 'speed' expects a non-negative value", speed=-1)
        self.refuse("Duplicate nodes with node-name='n1'", top_node='n2', filter_node_name='n1')
        self.fails(self.d, "Invalid job ID ''", 'block-commit', device='n3')

    def test_other_reader(self):
        """Somebody else relies on what is in the base."""
        sd.create_image(self.path('other.img'), 'qcow2', backing=self.image(0))
        self.d.cmd('blockdev-add', driver='qcow2', node_name='other', backing='n0',
                   file={'driver': 'file', 'filename': self.path('other.img')})
        self.d.export('other')
        text = "Node 'n0' is in use as backing file of 'other' as well, which would show other data"
        self.refuse(text, top_node='n2')
        self.refuse(text)
        self.assertSubset({'ro': True}, self.d.node('n0'))
        self.assertWant(self.content())

    def test_jobs(self):
        self.d.cmd('block-commit', job_id='a', device='n3', top_node='n2', base_node='n1', speed=1)
        for args in ({'top_node': 'n2', 'base_node': 'n0'}, {'top_node': 'n1', 'base_node': 'n0'}, {}):
            self.fails(self.d, 'is busy: block device is in use by block job: commit', 'block-commit', job_id='b',
                       device='n3', **args)
        self.fails(self.d, 'is busy: block device is in use by block job: commit', 'block-stream', job_id='b', device='n2')
        self.d.cancel('a')


class Active(ChainCase):
    """The client's own image: ready, then the client is on the base."""

    def test_complete(self):
        d = self.start()
        d.cmd('block-commit', job_id='j', device='n3')
        ready = d.wait_ready('j')['data']
        self.assertEqual('commit', ready['type'])
        self.assertSubset({'type': 'commit', 'ready': True, 'status': 'ready'}, d.job('j'))
        with sd.nbd_connect(self.uri) as h:
            h.pwrite(b'\xcd' * 65536, 3 * sd.MIB)
        want = bytearray(self.want())
        want[3 * sd.MIB:3 * sd.MIB + 65536] = b'\xcd' * 65536
        d.cmd('block-job-complete', device='j')
        d.wait_completed('j')
        self.wait_gone(d, 'j')
        self.assertEqual('n0', d.cmd('query-block-exports')[0]['node-name'])
        self.assertSubset({'ro': False}, d.node('n0'))
        with sd.nbd_connect(self.uri) as h:
            h.pwrite(b'\xce' * 65536, 5 * sd.MIB)
        want[5 * sd.MIB:5 * sd.MIB + 65536] = b'\xce' * 65536
        self.assertTrue(self.content() == want)
        d.shutdown()
        with open(self.path('want'), 'wb') as f:
            f.write(want)
        self.assertImage(0)
        self.assertIsNone(self.backing(0))

    def test_to_the_middle(self):
        d = self.start()
        d.cmd('block-commit', job_id='j', device='n3', base_node='n1')
        d.complete('j')
        self.wait_gone(d, 'j')
        self.assertEqual('n1', d.cmd('query-block-exports')[0]['node-name'])
        self.assertWant(self.content())
        d.shutdown()
        self.assertEqual(self.image(0), self.backing(1))
        self.assertImage(1)

    def test_cancel_when_ready(self):
        """The base is a whole copy then, and everybody stays where he is."""
        for force in (False, True):
            with self.subTest(force=force):
                d = self.start()
                d.cmd('block-commit', job_id='j', device='n3')
                d.wait_ready('j')
                self.assertEqual('BLOCK_JOB_CANCELLED' if force else 'BLOCK_JOB_COMPLETED', d.cancel('j', force)['event'])
                self.wait_gone(d, 'j')
                self.assertEqual('n3', d.cmd('query-block-exports')[0]['node-name'])
                self.assertEqual(['n3', 'n2', 'n1', 'n0'], self.chain(d, 'n3'))
                self.assertSubset({'ro': True}, d.node('n0'))
                self.assertWant(self.content())
                d.shutdown()
                self.assertImage(3)
                self.assertImage(0)

    def test_under_load(self):
        d = self.start()
        w = Writer(self.uri, SIZE, longest=16)
        w.start()
        w.wait_for(20)
        d.cmd('block-commit', job_id='j', device='n3')
        d.wait_ready('j')
        w.wait_for(20)
        d.complete('j')
        w.wait_for(20)
        want = w.stop()
        d.shutdown()
        with open(self.path('want'), 'wb') as f:
            f.write(want)
        self.assertImage(0)

    def test_device(self):
        """On a named device whose chain was opened by its headers, into a shorter raw image."""
        sd.create_image(self.image(0), 'raw', sd.MIB, data=[(0, sd.MIB, 0x10)])
        sd.create_image(self.image(1), 'qcow2', SIZE, backing=self.image(0), backing_fmt='raw',
                        data=[(512, 1024, 0x11), (7 * sd.MIB, 65536, 0x12)])
        sd.qemu_img('convert', '-O', 'raw', self.image(1), self.path('want'))
        d = self.daemon('--drive', f'id=drive0,file={self.image(1)},format=qcow2,if=none')
        d.cmd('block-commit', device='drive0', base=self.image(0))
        d.complete('drive0')
        self.wait_gone(d, 'drive0')
        self.assertEqual(self.image(0), d.cmd('query-block')[0]['inserted']['file'])
        d.shutdown()
        self.assertImage(0, 'raw')

    def test_after_snapshot(self):
        """Snapshot, then back: the usual way to copy an image that is in use."""
        d = self.start(1)
        for i in range(3):
            d.cmd('blockdev-snapshot-sync', node_name='n0', snapshot_file=self.path('over.img'),
                  snapshot_node_name='over')
            with sd.nbd_connect(self.uri) as h:
                h.pwrite(bytes([0x60 + i]) * 65536, (4 + i) * sd.MIB)
            self.assertSubset({'ro': True}, d.node('n0'))
            d.cmd('block-commit', job_id=f'j{i}', device='over')
            d.complete(f'j{i}')
            self.wait_gone(d, f'j{i}')
            self.assertEqual('n0', d.cmd('query-block-exports')[0]['node-name'])
            self.assertIsNone(d.node('over'))
        d.shutdown()
        sd.check_image(self.image(0))
        sd.qemu_io(self.image(0), *(f'read -P {0x60 + i} {4 + i}M 64k' for i in range(3)), fmt='qcow2', readonly=True)


if __name__ == '__main__':
    sd.main()
