"""Mirroring: what is copied, what clients write meanwhile, switching over, refusals, errors of the devices."""
import itertools
import os
import time

import sd
from jobs import ChainCase, FaultyPeer, JobCase, Writer

SOME = ((0, 65536, 0x11), (sd.MIB, 100 * 1024, 0x22), (3 * sd.MIB + 512, 512, 0x33))


class Copy(JobCase):
    def full(self, fmt, target_fmt, size, data, **more):
        d = self.daemon()
        a, b = self.pair(d, fmt, target_fmt, size, data)
        d.cmd('blockdev-mirror', job_id='m', device='src', target='dst', sync='full', **more)
        ready = d.wait_ready('m')['data']
        self.assertEqual(ready['len'], ready['offset'])
        done = d.complete('m')['data']
        self.assertSubset({'type': 'mirror', 'device': 'm', 'len': ready['len'], 'offset': ready['len'], 'speed': 0}, done)
        self.wait_gone(d, 'm')
        d.shutdown()
        self.assertImagesEqual(a, b, fmt, target_fmt)
        if target_fmt == 'qcow2':
            sd.check_image(b)

    def test_formats(self):
        for fmt, target_fmt in itertools.product(('raw', 'qcow2'), repeat=2):
            with self.subTest(source=fmt, target=target_fmt):
                self.full(fmt, target_fmt, 8 * sd.MIB, SOME)

    def test_lengths(self):
        for size in (0, 512, 65536 + 512, 1025 * 1024, 2 * sd.MIB - 512):
            with self.subTest(size=size):
                self.full('raw', 'raw', size, [(0, size, 0x5a)] if size else [])

    def test_length_of_a_file_is_any(self):
        a, b = self.path('odd.img'), self.path('odd2.img')
        with open(a, 'wb') as f:
            f.write(os.urandom(1100 * 1000 + 7))
        with open(b, 'wb') as f:
            f.truncate(1100 * 1000 + 7)
        d = self.daemon()
        self.node(d, 'src', a)
        self.node(d, 'dst', b)
        d.cmd('blockdev-mirror', job_id='m', device='src', target='dst', sync='full')
        d.complete('m')
        d.shutdown()
        with open(a, 'rb') as f, open(b, 'rb') as g:
            content, copy = f.read(), g.read()
            self.assertEqual(content, copy[:len(content)])
            self.assertFalse(any(copy[len(content):]))

    def test_granularity_and_buffer(self):
        for granularity, buf_size in ((512, 0), (8192, 4096), (65536, 1), (1 << 20, 65536), (64 * sd.MIB, 0)):
            with self.subTest(granularity=granularity, buf_size=buf_size):
                self.full('qcow2', 'raw', 4 * sd.MIB, SOME, granularity=granularity, buf_size=buf_size)

    def test_write_blocking(self):
        self.full('qcow2', 'qcow2', 4 * sd.MIB, SOME, copy_mode='write-blocking')

    def test_old_data_in_target_goes(self):
        for fmt in ('raw', 'qcow2'):
            with self.subTest(fmt=fmt):
                d = self.daemon()
                a = sd.create_image(self.path('a.img'), fmt, 4 * sd.MIB, data=SOME)
                b = sd.create_image(self.path('b.img'), fmt, 4 * sd.MIB, data=[(0, 4 * sd.MIB, 0xee)])
                self.node(d, 'src', a, fmt)
                self.node(d, 'dst', b, fmt)
                d.cmd('blockdev-mirror', job_id='m', device='src', target='dst', sync='full')
                d.complete('m')
                d.shutdown()
                self.assertImagesEqual(a, b, fmt, fmt)

    def test_holes_stay_holes(self):
        d = self.daemon()
        a = sd.create_image(self.path('a.img'), 'raw', 64 * sd.GIB, data=[(5 * sd.GIB, 65536, 7), (60 * sd.GIB, 512, 8)])
        b = sd.create_image(self.path('b.img'), 'raw', 64 * sd.GIB)
        self.node(d, 'src', a)
        self.node(d, 'dst', b)
        start = time.monotonic()
        d.cmd('blockdev-mirror', job_id='m', device='src', target='dst', sync='full')
        d.complete('m')
        self.assertLess(time.monotonic() - start, 10)
        d.shutdown()
        self.assertLess(os.stat(b).st_blocks * 512, 4 * sd.MIB)
        self.assertImagesEqual(a, b, 'raw', 'raw')


class Chains(ChainCase):
    def mirror(self, d, **more):
        d.cmd('drive-mirror', device='drive0', target=self.target, **more)
        d.complete('drive0')
        self.wait_gone(d, 'drive0')

    def inserted(self, d):
        return next(b for b in d.cmd('query-block') if b['device'] == 'drive0')['inserted']

    def test_full_has_no_backing(self):
        d = self.drive()
        self.mirror(d, sync='full')
        self.assertSubset({'file': self.target, 'drv': 'qcow2', 'backing_file_depth': 0}, self.inserted(d))
        d.shutdown()
        self.assertImagesEqual(self.top, self.target, 'qcow2', 'qcow2')
        self.assertNotIn('backing-filename', sd.image_info(self.target))

    def test_top_shares_the_backing(self):
        d = self.drive()
        self.mirror(d, sync='top')
        self.assertSubset({'file': self.target, 'backing_file': self.base, 'backing_file_depth': 1}, self.inserted(d))
        d.shutdown()
        self.assertEqual(self.base, sd.image_info(self.target)['backing-filename'])
        self.assertImagesEqual(self.top, self.target, 'qcow2', 'qcow2')
        own = sum(e['length'] for e in sd.image_map(self.target, 'qcow2') if e['depth'] == 0)
        self.assertEqual(2 * 65536, own)

    def test_top_copies_large_clusters_whole(self):
        sd.create_image(self.target, 'qcow2', backing=self.base, options={'cluster_size': 2 * sd.MIB})
        d = self.drive()
        self.mirror(d, sync='top', mode='existing')
        d.shutdown()
        self.assertImagesEqual(self.top, self.target, 'qcow2', 'qcow2')

    def test_top_small_granularity_new_image(self):
        d = self.drive()
        self.mirror(d, sync='top', granularity=4096)
        d.shutdown()
        self.assertImagesEqual(self.top, self.target, 'qcow2', 'qcow2')

    def test_none_has_the_source_behind(self):
        for copy_mode in ('background', 'write-blocking'):
            with self.subTest(copy_mode=copy_mode):
                d = self.drive()
                d.cmd('drive-mirror', device='drive0', target=self.target, sync='none', copy_mode=copy_mode)
                self.assertEqual(0, d.wait_ready('drive0')['data']['len'])
                with sd.nbd_connect(d.export('top', writable=True)) as h:
                    h.pwrite(b'\xcd' * 512, 3 * sd.MIB + 1024)
                d.complete('drive0')
                self.assertSubset({'file': self.target, 'backing_file': self.top, 'backing_file_depth': 2},
                                  self.inserted(d))
                d.shutdown()
                sd.qemu_io(self.target, f'read -P 0xcd {3 * sd.MIB + 1024} 512', f'read -P 0x10 {3 * sd.MIB} 1024',
                           f'read -P 0x77 {sd.MIB} 512', fmt='qcow2', readonly=True)
                os.unlink(self.target)

    def test_existing_keeps_its_own_backing(self):
        other = sd.create_image(self.path('other.img'), 'qcow2', 4 * sd.MIB, data=[(0, 4 * sd.MIB, 0x99)])
        sd.create_image(self.target, 'qcow2', backing=other)
        d = self.drive()
        self.mirror(d, sync='full', mode='existing')
        self.assertSubset({'backing_file': other}, self.inserted(d))
        d.shutdown()
        self.assertImagesEqual(self.top, self.target, 'qcow2', 'qcow2')

    def test_format_is_asked_for(self):
        d = self.drive()
        self.mirror(d, sync='full', format='raw')
        self.assertSubset({'file': self.target, 'drv': 'raw'}, self.inserted(d))
        d.shutdown()
        self.assertImagesEqual(self.top, self.target, 'qcow2', 'raw')

    def test_filter_is_not_shown(self):
        d = self.drive()
        before = d.cmd('query-block')
        d.cmd('drive-mirror', device='drive0', target=self.target, sync='full')
        d.wait_ready('drive0')
        during = d.cmd('query-block')
        for inserted in (before[0]['inserted'], during[0]['inserted']):
            inserted.pop('dirty-bitmaps', None)
        self.assertEqual(before, during)
        self.assertEqual('BLOCK_JOB_CANCELLED', d.cancel('drive0', force=True)['event'])
        self.wait_gone(d, 'drive0')
        self.assertEqual(before, d.cmd('query-block'))


class Clients(JobCase):
    """A client writes all the time; nothing of it may be lost, on either side."""
    SIZE = 8 * sd.MIB

    def start(self, fmt, **more):
        d = self.daemon()
        self.a, self.b = self.pair(d, fmt, size=self.SIZE, data=SOME)
        self.writer = Writer(d.export('src', name='disk', writable=True), self.SIZE)
        self.writer.start()
        self.writer.wait_for(20)
        d.cmd('blockdev-mirror', job_id='m', device='src', target='dst', sync='full', **more)
        return d

    def read(self, path, fmt):
        raw = self.path('flat.raw')
        sd.qemu_img('convert', '-f', fmt, '-O', 'raw', path, raw)
        with open(raw, 'rb') as f:
            return f.read()

    def check_complete(self, fmt, **more):
        d = self.start(fmt, **more)
        d.wait_ready('m')
        self.writer.wait_for(100)
        d.complete('m')
        self.writer.wait_for(100)  # these reach the target only
        model = self.writer.stop()
        d.shutdown()
        self.assertEqual(model, self.read(self.b, fmt))
        if fmt == 'qcow2':
            sd.check_image(self.b)
            sd.check_image(self.a)

    def test_complete(self):
        for fmt, copy_mode in itertools.product(('raw', 'qcow2'), ('background', 'write-blocking')):
            with self.subTest(fmt=fmt, copy_mode=copy_mode):
                self.check_complete(fmt, copy_mode=copy_mode)

    def test_odd_granularity(self):
        for copy_mode in ('background', 'write-blocking'):
            for granularity in (512, sd.MIB):
                with self.subTest(copy_mode=copy_mode, granularity=granularity):
                    self.check_complete('qcow2', copy_mode=copy_mode, granularity=granularity)

    def test_cancel_when_ready_leaves_a_snapshot(self):
        for copy_mode in ('background', 'write-blocking'):
            with self.subTest(copy_mode=copy_mode):
                d = self.start('qcow2', copy_mode=copy_mode)
                d.wait_ready('m')
                self.writer.wait_for(100)
                model = self.writer.stop()
                self.assertEqual('BLOCK_JOB_COMPLETED', d.cancel('m')['event'])
                self.wait_gone(d, 'm')
                with sd.nbd_connect(sd.nbd_uri(d.nbd_socket, 'disk')) as h:
                    h.pwrite(bytes(self.SIZE), 0)  # the source is still the disk, and the copy its own
                d.shutdown()
                self.assertEqual(model, self.read(self.b, 'qcow2'))

    def test_client_that_came_later(self):
        """It writes to the source itself, not through the filter: to the granule that another client writes just now."""
        import nbd
        d = self.daemon()
        a, b = self.pair(d, 'raw', size=self.SIZE, data=SOME)
        before = d.export('src', name='before', writable=True)
        d.cmd('blockdev-mirror', job_id='m', device='src', target='dst', sync='full', copy_mode='write-blocking',
              granularity=65536)
        d.wait_ready('m')
        with sd.nbd_connect(before) as h1, sd.nbd_connect(d.export('src', name='later', writable=True)) as h2:
            for offset in range(0, self.SIZE, 65536):
                data = [(h, nbd.Buffer.from_bytearray(bytearray(bytes([n % 255]) * n)))
                        for h, n in ((h1, 65536), (h2, 512))]
                pending = [(h, h.aio_pwrite(buf, offset)) for h, buf in data]
                pending = [(h, c) for h, c in pending if not h.aio_command_completed(c)]
                for h, cookie in pending:
                    while not h.aio_command_completed(cookie):
                        h.poll(100)
        d.cancel('m')
        d.shutdown()
        self.assertImagesEqual(a, b, 'raw', 'raw')

    def test_discard_beside_a_write(self):
        """A granule that is written while another part of it is discarded is not in step."""
        import nbd
        d = self.daemon()
        a = sd.create_image(self.path('a.img'), 'raw', self.SIZE, data=[(0, self.SIZE, 0x55)])
        b = sd.create_image(self.path('b.img'), 'raw', self.SIZE)
        d.cmd('blockdev-add', driver='raw', node_name='src', discard='unmap',
              file={'driver': 'file', 'filename': a, 'discard': 'unmap'})
        self.node(d, 'dst', b)
        uri = d.export('src', writable=True)
        d.cmd('blockdev-mirror', job_id='m', device='src', target='dst', sync='full', copy_mode='write-blocking',
              granularity=65536)
        d.wait_ready('m')
        data = nbd.Buffer.from_bytearray(bytearray(b'\x66' * 32768))
        with sd.nbd_connect(uri) as h:
            for offset in range(0, self.SIZE, 65536):
                pending = [h.aio_pwrite(data, offset), h.aio_trim(32768, offset + 32768)]
                for cookie in pending:
                    while not h.aio_command_completed(cookie):
                        h.poll(100)
        d.cancel('m')
        d.shutdown()
        self.assertImagesEqual(a, b, 'raw', 'raw')

    def test_forced_cancel_harms_nothing(self):
        d = self.start('qcow2')
        d.wait_ready('m')
        self.writer.wait_for(50)
        self.assertEqual('BLOCK_JOB_CANCELLED', d.cancel('m', force=True)['event'])
        self.writer.wait_for(50)
        model = self.writer.stop()
        d.shutdown()
        self.assertEqual(model, self.read(self.a, 'qcow2'))

    def test_pause_lets_the_client_write(self):
        d = self.start('raw', speed=256 * 1024)
        d.cmd('block-job-pause', device='m')
        self.wait_status(d, 'm', 'paused')
        offset = d.job('m')['offset']
        self.writer.wait_for(50)
        self.assertSubset({'offset': offset, 'paused': True, 'busy': False, 'status': 'paused'}, d.job('m'))
        d.cmd('block-job-resume', device='m')
        d.cmd('block-job-set-speed', device='m', speed=0)
        d.complete('m')
        model = self.writer.stop()
        d.shutdown()
        self.assertEqual(model, self.read(self.b, 'raw'))

    def test_again_and_again(self):
        d = self.start('raw')
        d.complete('m')
        for i, (source, target) in enumerate([('dst', 'src'), ('src', 'dst')] * 2):
            d.cmd('blockdev-mirror', job_id=f'm{i}', device=source, target=target, sync='full')
            d.complete(f'm{i}')
            self.writer.wait_for(20)
        model = self.writer.stop()
        d.shutdown()
        self.assertEqual(model, self.read(self.b, 'raw'))

    def test_waits_for_finalize(self):
        d = self.start('raw', auto_finalize=False)
        d.wait_ready('m')
        model = self.writer.stop()
        d.cmd('job-complete', id='m')
        d.event_wait('BLOCK_JOB_PENDING', {'id': 'm'})
        d.cmd('job-finalize', id='m')
        self.wait_gone(d, 'm')
        d.shutdown()
        self.assertEqual(model, self.read(self.b, 'raw'))


    def test_process_ends_before_finalize(self):
        """The client's write waits while the job is pending; that must not hold up the end."""
        for end in ('terminate', 'shutdown'):
            with self.subTest(end=end):
                d = self.start('raw', auto_finalize=False)
                d.wait_ready('m')
                d.cmd('job-complete', id='m')
                d.event_wait('BLOCK_JOB_PENDING', {'id': 'm'})
                getattr(d, end)()
                with self.assertRaises(Exception):
                    self.writer.stop()


class Idle(JobCase):
    def test_costs_no_cpu_and_wakes_up(self):
        d = self.daemon()
        a, b = self.pair(d, 'raw', size=16 * sd.MIB, data=SOME)
        uri = d.export('src', writable=True)
        d.cmd('blockdev-mirror', job_id='m', device='src', target='dst', sync='full')
        d.wait_ready('m')
        before = self.cpu_seconds(d)
        time.sleep(1)
        self.assertLess(self.cpu_seconds(d) - before, 0.03)
        with sd.nbd_connect(uri) as h:
            h.pwrite(b'\x42' * 4096, 5 * sd.MIB)
        deadline = time.monotonic() + sd.TIMEOUT
        while True:
            with open(b, 'rb') as f:
                f.seek(5 * sd.MIB)
                if f.read(4096) == b'\x42' * 4096:
                    break
            self.assertLess(time.monotonic(), deadline, 'the write does not reach the target')
            time.sleep(0.01)

    def test_hot_block_is_copied_now_and_then(self):
        d = self.daemon()
        a, b = self.pair(d, 'raw', size=4 * sd.MIB)
        uri = d.export('src', writable=True)
        d.cmd('blockdev-mirror', job_id='m', device='src', target='dst', sync='full')
        before = d.wait_ready('m')['data']['offset']
        start = time.monotonic()
        with sd.nbd_connect(uri) as h:
            for i in range(2000):
                h.pwrite(bytes([i % 256]) * 512, sd.MIB)
        seconds = time.monotonic() - start
        d.poll(0.1)
        copied = (d.job('m')['offset'] - before) // 65536
        self.assertGreater(copied, 0)
        self.assertLess(copied, 20 + seconds * 110)  # not more often than every 10 ms
        d.cancel('m')
        d.shutdown()
        self.assertImagesEqual(a, b, 'raw', 'raw')

    def test_speed(self):
        d = self.daemon()
        self.pair(d, 'raw', size=8 * sd.MIB, data=[(0, 8 * sd.MIB, 1)])
        start = time.monotonic()
        d.cmd('blockdev-mirror', job_id='m', device='src', target='dst', sync='full', speed=4 * sd.MIB)
        self.assertEqual(4 * sd.MIB, d.job('m')['speed'])
        d.wait_ready('m')
        self.assertTrue(1.0 < time.monotonic() - start < 6.0)
        d.complete('m')

    def test_speed_can_be_raised(self):
        d = self.daemon()
        self.pair(d, 'raw', size=8 * sd.MIB, data=[(0, 8 * sd.MIB, 1)])
        d.cmd('blockdev-mirror', job_id='m', device='src', target='dst', sync='full', speed=1)
        d.cmd('block-job-set-speed', device='m', speed=0)
        d.complete('m', timeout=5)


class Switch(JobCase):
    def test_replaces_a_node_below_the_source(self):
        d = self.daemon()
        inner = sd.create_image(self.path('a.img'), 'raw', sd.MIB, data=[(0, sd.MIB, 5)])
        copy = sd.create_image(self.path('b.img'), 'raw', sd.MIB)
        self.node(d, 'src', inner)
        self.node(d, 'dst', copy)
        self.fails(d, "Failed to find node with node-name='nope'", 'blockdev-mirror', job_id='m', device='src', target='dst',
                   sync='full', replaces='nope')
        self.fails(d, "Cannot replace 'dst' by a node mirrored from 'src', because it cannot be guaranteed", 'blockdev-mirror',
                   job_id='m', device='src', target='dst', sync='full', replaces='dst')
        d.cmd('blockdev-mirror', job_id='m', device='src', target='dst', sync='full', replaces='src')
        d.complete('m')

    def test_named_filter_is_shown_and_goes(self):
        d = self.daemon()
        self.pair(d, 'raw')
        d.cmd('blockdev-mirror', job_id='m', device='src', target='dst', sync='full', filter_node_name='flt')
        self.assertEqual('mirror_top', d.node('flt')['drv'])
        d.complete('m')
        self.wait_gone(d, 'm')
        self.assertIsNone(d.node('flt'))
        d.cmd('blockdev-del', node_name='src')
        d.cmd('blockdev-del', node_name='dst')

    def test_target_made_by_name_goes_with_the_job(self):
        d = self.daemon()
        a = sd.create_image(self.path('a.img'), 'qcow2', sd.MIB)
        self.node(d, 'src', a, 'qcow2')
        before = len(d.cmd('query-named-block-nodes'))
        d.cmd('drive-mirror', job_id='m', device='src', target=self.path('t.img'), sync='full')
        d.wait_ready('m')
        self.assertEqual('BLOCK_JOB_COMPLETED', d.cancel('m')['event'])
        self.wait_gone(d, 'm')
        self.assertEqual(before, len(d.cmd('query-named-block-nodes')))
        sd.check_image(self.path('t.img'))

    def test_exported_target_is_refused(self):
        d = self.daemon()
        self.pair(d, 'raw')
        d.export('dst')
        self.fails(d, 'Permission conflict', 'blockdev-mirror', job_id='m', device='src', target='dst', sync='full')
        self.assertEqual(['created', 'null'], self.statuses(d, 'm'))

    def test_write_through_node_below_is_mirrored(self):
        d = self.daemon()
        a, b = self.pair(d, 'raw', data=SOME)
        d.cmd('blockdev-mirror', job_id='m', device='src', target='dst', sync='full')
        d.wait_ready('m')
        with sd.nbd_connect(d.export('src', writable=True)) as h:  # past the job's filter
            h.pwrite(b'\x99' * 1024, 2 * sd.MIB)
        self.assertEqual('BLOCK_JOB_COMPLETED', d.cancel('m')['event'])
        d.shutdown()
        self.assertImagesEqual(a, b, 'raw', 'raw')


class Refused(JobCase):
    def setUp(self):
        self.d = self.daemon('--drive', 'id=cd0,if=none,media=cdrom')
        self.pair(self.d, 'raw')

    def no(self, text, command='blockdev-mirror', **more):
        args = {'job_id': 'm', 'device': 'src', 'target': 'dst', 'sync': 'full', **more}
        self.fails(self.d, text, command, **{k: v for k, v in args.items() if v is not None})
        self.assertEqual([], self.d.cmd('query-jobs'))

    def test_names(self):
        self.no("Cannot find device='x' nor node-name='x'", device='x')
        self.no("Cannot find device='x' nor node-name='x'", target='x')
        self.no("Can't mirror node into itself", target='src')
        self.no("Invalid job ID ''", job_id=None)
        self.no("Invalid job ID '1 x'", job_id='1 x')
        self.no("Duplicate nodes with node-name='dst'", filter_node_name='dst')
        self.no("Device 'cd0' has no medium", device='cd0')
        node = next(n for n in self.d.cmd('query-named-block-nodes') if n['drv'] == 'file')['node-name']
        self.no('Need a root block node', device=node)

    def test_numbers(self):
        self.no("Parameter 'speed' expects a non-negative value", speed=-1)
        self.no("Parameter 'granularity' expects a value in range [512B, 64MB]", granularity=256)
        self.no("Parameter 'granularity' expects a value in range [512B, 64MB]", granularity=128 * sd.MIB)
        self.no("Parameter 'granularity' expects a power of 2", granularity=1000)
        self.no("Invalid parameter 'buf-size'", buf_size=-1)

    def test_modes(self):
        self.no("Sync mode 'incremental' not supported", sync='incremental')
        self.no("Sync mode 'bitmap' not supported", sync='bitmap')
        self.no("Parameter 'sync' does not accept value 'all'", sync='all')

    def test_sizes_differ(self):
        other = sd.create_image(self.path('o.img'), 'raw', 5 * sd.MIB)
        self.node(self.d, 'other', other)
        self.d.cmd('blockdev-mirror', job_id='m', device='src', target='other', sync='full')
        done = self.d.wait_completed('m', 'Source and target image have different sizes')
        self.assertEqual((0, 0), (done['data']['len'], done['data']['offset']))

    def test_busy(self):
        d = self.d
        d.cmd('blockdev-mirror', job_id='m', device='src', target='dst', sync='full', filter_node_name='flt')
        third = sd.create_image(self.path('3.img'), 'raw', 4 * sd.MIB)
        self.node(d, 'third', third)
        self.fails(d, 'Need a root block node', 'blockdev-mirror', job_id='n', device='src', target='third', sync='full')
        self.fails(d, "Node 'dst' is busy: block device is in use by block job: mirror", 'blockdev-mirror', job_id='n',
                   device='third', target='dst', sync='full')
        self.fails(d, "Node 'flt' is busy: block device is in use by block job: mirror", 'blockdev-mirror', job_id='n',
                   device='flt', target='third', sync='full')
        for node in ('src', 'dst', 'flt'):
            self.assertIn('error', d.qmp('blockdev-del', node_name=node))

    def test_drive_mirror(self):
        t = self.path('t.img')
        self.no('Could not open', 'drive-mirror', target=t, mode='existing')
        self.no("Unknown file format 'jpeg'", 'drive-mirror', target=t, format='jpeg')
        self.no('No such file or directory', 'drive-mirror', target=self.path('no/where.img'))
        self.no('a node-name must be provided when replacing a named node of the graph', 'drive-mirror', target=t,
                replaces='src')
        self.no("Sync mode 'bitmap' not supported", 'drive-mirror', target=t, sync='bitmap')
        self.no("Cannot find device='x' nor node-name='x'", 'drive-mirror', target=t, device='x')
        self.no("Duplicate nodes with node-name='dst'", 'drive-mirror', target=self.path('u.img'), node_name='dst')
        self.assertFalse(os.path.exists(t))


class DeviceErrors(JobCase):
    SIZE = 2 * sd.MIB

    def start(self, where, errno, policy, size=SIZE):
        """A mirror whose source ('pread') or target ('pwrite') fails from the start."""
        d = self.daemon()
        peer = FaultyPeer(self, f'peer-{where}', size, where, errno)
        other = sd.create_image(self.path('o.img'), 'raw', size, data=[(0, size, 0x61)])
        self.node(d, 'other', other)
        if where == 'pread':
            sd.qemu_io(peer.uri(), f'write -P 0x62 0 {size}', fmt='raw')
        peer.add(d, 'peer')
        peer.fail()
        source, target = ('peer', 'other') if where == 'pread' else ('other', 'peer')
        side = 'on-source-error' if where == 'pread' else 'on-target-error'
        d.cmd('blockdev-mirror', {side: policy}, job_id='m', device=source, target=target, sync='full')
        return d, peer, other

    def check_report(self, where, errno, policy, operation, message):
        d, _, _ = self.start(where, errno, policy)
        d.event_wait('BLOCK_JOB_ERROR', {'device': 'm', 'operation': operation, 'action': 'report'})
        d.wait_completed('m', message)
        self.wait_gone(d, 'm')

    def test_report(self):
        self.check_report('pread', 'EIO', 'report', 'read', 'Input/output error')

    def test_report_write(self):
        self.check_report('pwrite', 'EIO', 'report', 'write', 'Input/output error')

    def test_enospc_reports_what_is_not(self):
        self.check_report('pwrite', 'EIO', 'enospc', 'write', 'Input/output error')

    def check_stop(self, where, errno, policy, operation, status):
        d, peer, other = self.start(where, errno, policy)
        d.event_wait('BLOCK_JOB_ERROR', {'device': 'm', 'operation': operation, 'action': 'stop'})
        self.wait_status(d, 'm', 'paused')
        self.assertSubset({'paused': True, 'busy': False, 'io-status': status, 'status': 'paused'}, d.job('m'))
        peer.fail(False)
        d.cmd('block-job-resume', device='m')
        self.assertSubset({'paused': False, 'io-status': 'ok'}, d.job('m'))
        d.complete('m')
        d.shutdown()
        self.assertImagesEqual(peer.uri(), other, 'raw', 'raw')

    def test_stop_read(self):
        self.check_stop('pread', 'EIO', 'stop', 'read', 'failed')

    def test_stop_write(self):
        self.check_stop('pwrite', 'EIO', 'stop', 'write', 'failed')

    def test_enospc_stops(self):
        self.check_stop('pwrite', 'ENOSPC', 'enospc', 'write', 'nospace')

    def test_ignore_tries_again(self):
        for where, operation in (('pread', 'read'), ('pwrite', 'write')):
            with self.subTest(where=where):
                d, peer, other = self.start(where, 'EIO', 'ignore')
                d.event_wait('BLOCK_JOB_ERROR', {'device': 'm', 'operation': operation, 'action': 'ignore'})
                self.assertFalse(d.job('m')['paused'])
                peer.fail(False)
                d.complete('m')
                d.shutdown()
                self.assertImagesEqual(peer.uri(), other, 'raw', 'raw')

    def test_cancel_while_stopped(self):
        d, _, _ = self.start('pwrite', 'EIO', 'stop')
        self.wait_status(d, 'm', 'paused')
        self.fails(d, "The block job for device 'm' is currently paused", 'block-job-cancel', device='m')
        self.assertEqual('BLOCK_JOB_CANCELLED', d.cancel('m', force=True)['event'])

    def test_write_blocking_target_fails(self):
        d = self.daemon()
        peer = FaultyPeer(self, 'peer', self.SIZE, 'pwrite', 'EIO')
        other = sd.create_image(self.path('o.img'), 'raw', self.SIZE, data=[(0, self.SIZE, 0x61)])
        self.node(d, 'other', other)
        peer.add(d, 'peer')
        uri = d.export('other', writable=True)
        d.cmd('blockdev-mirror', job_id='m', device='other', target='peer', sync='full', copy_mode='write-blocking')
        d.wait_ready('m')
        peer.fail()
        with sd.nbd_connect(uri) as h:
            h.pwrite(b'\x01' * 65536, 0)  # the client's own write succeeds
        d.wait_completed('m', 'Input/output error')


if __name__ == '__main__':
    sd.main()
