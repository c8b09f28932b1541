"""Backup: the copy is the source as it was at the start, whatever clients write; bitmaps; refusals; device errors."""
import itertools
import os
import time

import sd
from jobs import ChainCase, FaultyPeer, JobCase, Peer, Writer

SOME = ((0, 65536, 0x11), (sd.MIB, 100 * 1024, 0x22), (3 * sd.MIB + 512, 512, 0x33))


class Copy(JobCase):
    def full(self, fmt, target_fmt, size, data, **more):
        d = self.daemon()
        a, b = self.pair(d, fmt, target_fmt, size, data)
        d.cmd('blockdev-backup', job_id='b', device='src', target='dst', sync='full', **more)
        done = d.wait_completed('b')['data']
        whole = -(-size // 65536) * 65536
        self.assertEqual({'type': 'backup', 'device': 'b', 'len': whole, 'offset': whole, 'speed': 0}, done)
        self.wait_gone(d, 'b')
        d.shutdown()
        self.assertImagesEqual(a, b, fmt, target_fmt)
        if target_fmt == 'qcow2':
            sd.check_image(b)
        return b

    def test_formats(self):
        for fmt, target_fmt in itertools.product(('raw', 'qcow2'), repeat=2):
            with self.subTest(source=fmt, target=target_fmt):
                self.full(fmt, target_fmt, 8 * sd.MIB, SOME)

    def test_lengths(self):
        for size in (0, 512, 65536 + 512, 1025 * 1024):
            with self.subTest(size=size):
                self.full('raw', 'qcow2', size, [(0, size, 0x5a)] if size else [])

    def test_perf(self):
        for perf in ({'max-workers': 1}, {'max-workers': 200, 'max-chunk': 65536}, {'max-chunk': 100000},
                     {'use-copy-range': True}):
            with self.subTest(perf=perf):
                self.full('qcow2', 'raw', 4 * sd.MIB, SOME, x_perf=perf)

    def test_compress(self):
        b = self.full('qcow2', 'qcow2', 4 * sd.MIB, SOME, compress=True)
        self.assertTrue(any(e.get('compressed', True) and e['data'] for e in sd.image_map(b, 'qcow2')))
        self.assertLess(os.stat(b).st_size, 400 * 1024)

    def test_old_data_in_target_goes(self):
        d = self.daemon()
        a = sd.create_image(self.path('a.img'), 'qcow2', 4 * sd.MIB, data=SOME)
        b = sd.create_image(self.path('b.img'), 'qcow2', 4 * sd.MIB, data=[(0, 4 * sd.MIB, 0xee)])
        self.node(d, 'src', a, 'qcow2')
        self.node(d, 'dst', b, 'qcow2')
        d.cmd('blockdev-backup', job_id='b', device='src', target='dst', sync='full')
        d.wait_completed('b')
        d.shutdown()
        self.assertImagesEqual(a, b, 'qcow2', 'qcow2')

    def test_holes_stay_holes(self):
        d = self.daemon()
        a = sd.create_image(self.path('a.img'), 'qcow2', 256 * sd.GIB, data=[(5 * sd.GIB, 65536, 7)])
        b = sd.create_image(self.path('b.img'), 'raw', 256 * sd.GIB)
        self.node(d, 'src', a, 'qcow2')
        self.node(d, 'dst', b)
        d.cmd('blockdev-backup', job_id='b', device='src', target='dst', sync='full')
        d.wait_completed('b', timeout=10)
        d.shutdown()
        self.assertLess(os.stat(b).st_blocks * 512, 2 * sd.MIB)
        self.assertImagesEqual(a, b, 'qcow2', 'raw')


class Chains(ChainCase):
    def backup(self, **more):
        d = self.drive()
        d.cmd('drive-backup', device='drive0', target=self.target, **more)
        return d

    def test_full(self):
        d = self.backup(sync='full')
        d.wait_completed('drive0')
        d.shutdown()
        self.assertImagesEqual(self.top, self.target, 'qcow2', 'qcow2')
        self.assertNotIn('backing-filename', sd.image_info(self.target))

    def test_top(self):
        d = self.backup(sync='top')
        self.assertEqual(2 * 65536, d.wait_completed('drive0')['data']['len'])
        d.shutdown()
        self.assertEqual(self.base, sd.image_info(self.target)['backing-filename'])
        self.assertImagesEqual(self.top, self.target, 'qcow2', 'qcow2')

    def test_format(self):
        d = self.backup(sync='full', format='raw')
        d.wait_completed('drive0')
        d.shutdown()
        self.assertImagesEqual(self.top, self.target, 'qcow2', 'raw')

    def test_none_is_a_snapshot_until_cancelled(self):
        d = self.backup(sync='none')
        d.nbd_server()
        d.cmd('nbd-server-add', device='drive0', name='disk', writable=True)
        with sd.nbd_connect(sd.nbd_uri(d.nbd_socket, 'disk')) as h:
            h.pwrite(b'\xcd' * 1024, 3 * sd.MIB)
        self.assertSubset({'status': 'running', 'offset': 65536, 'len': 4 * sd.MIB}, d.job('drive0'))
        self.fails(d, "Job 'drive0' in state 'running' cannot accept command verb 'complete'", 'job-complete', id='drive0')
        self.assertEqual('BLOCK_JOB_CANCELLED', d.cancel('drive0')['event'])
        d.shutdown()
        sd.qemu_io(self.top, f'read -P 0xcd {3 * sd.MIB} 1024', fmt='qcow2', readonly=True)
        # The copy shows the old data where it was overwritten.
        sd.qemu_io(self.target, f'read -P 0x10 {3 * sd.MIB} 65536', f'read -P 0x77 {sd.MIB} 512', fmt='qcow2',
                   readonly=True)


class Clients(JobCase):
    """A client writes all the time; the copy must be the disk at one moment: the start."""
    SIZE = 8 * sd.MIB

    def check(self, fmt, target_fmt, **more):
        d = self.daemon()
        a, b = self.pair(d, fmt, target_fmt, size=self.SIZE, data=[(0, self.SIZE, 0x10)])
        uri = d.export('src', writable=True)
        writer = Writer(uri, self.SIZE)
        writer.start()
        writer.wait_for(100)
        before = writer.stop()  # nobody writes at the moment the backup starts: so it is known what it must hold
        d.cmd('blockdev-backup', job_id='b', device='src', target='dst', sync='full', speed=2 * sd.MIB, **more)
        writer = Writer(uri, self.SIZE, seed=2)
        writer.start()
        writer.wait_for(200)
        d.cmd('block-job-set-speed', device='b', speed=0)
        d.wait_completed('b')
        writer.wait_for(20)
        after = writer.stop()
        d.shutdown()
        self.assertNotEqual(before, after)
        for path, f, want in ((b, target_fmt, before), (a, fmt, after)):
            sd.qemu_img('convert', '-f', f, '-O', 'raw', path, self.path('flat.raw'))
            with open(self.path('flat.raw'), 'rb') as flat:
                self.assertEqual(want, flat.read(), path)

    def test_snapshot(self):
        for fmt, target_fmt in (('raw', 'raw'), ('qcow2', 'qcow2'), ('raw', 'qcow2')):
            with self.subTest(source=fmt, target=target_fmt):
                self.check(fmt, target_fmt)

    def test_one_worker(self):
        self.check('qcow2', 'raw', x_perf={'max-workers': 1})

    def test_pause(self):
        d = self.daemon()
        self.pair(d, 'raw', size=self.SIZE, data=[(0, self.SIZE, 1)])
        d.cmd('blockdev-backup', job_id='b', device='src', target='dst', sync='full', speed=sd.MIB)
        self.wait_status(d, 'b', 'paused')  # the drained section at the start
        d.cmd('job-pause', id='b')
        self.wait_status(d, 'b', 'paused')
        self.assertSubset({'paused': True, 'status': 'paused', 'busy': False}, d.job('b'))
        offset = d.job('b')['offset']
        d.poll(0.3)
        self.assertEqual(offset, d.job('b')['offset'])
        d.cmd('job-resume', id='b')
        d.cmd('block-job-set-speed', device='b', speed=0)
        d.wait_completed('b')


class Bitmaps(JobCase):
    SIZE = 8 * sd.MIB

    def setUp(self):
        self.a = sd.create_image(self.path('a.img'), 'qcow2', self.SIZE, data=[(0, self.SIZE, 0x10)])
        self.d = self.daemon('--drive', f'id=drive0,file={self.a},format=qcow2,node-name=node0,if=none')
        self.d.nbd_server()
        self.d.cmd('nbd-server-add', device='drive0', name='disk', writable=True)
        self.last = None
        self.number = 0

    def write(self, *runs):
        with sd.nbd_connect(sd.nbd_uri(self.d.nbd_socket, 'disk')) as h:
            for offset, length, byte in runs:
                h.pwrite(bytes([byte]) * length, offset)
            h.flush()

    def full(self, **more):
        self.last = self.path('full.img')
        self.d.cmd('drive-backup', device='drive0', target=self.last, sync='full', format='qcow2', **more)
        self.d.wait_completed('drive0')

    def increment(self, start=True, bitmap='b0', **more):
        """A new layer on top of the last one; the job, or (unless @start) the arguments for it."""
        self.number += 1
        target = sd.create_image(self.path(f'inc{self.number}.img'), 'qcow2', backing=self.last,
                                 options=more.pop('options', None))
        args = {'device': 'drive0', 'target': target, 'sync': 'incremental', 'bitmap': bitmap, 'format': 'qcow2',
                'mode': 'existing', **more}
        if start:
            self.d.cmd('drive-backup', args)
            done = self.d.wait_completed('drive0')['data']
            self.last = target
            return done
        return args

    def check_now(self):
        """The last layer shows what the disk shows."""
        ref = self.path('ref.img')
        self.d.cmd('drive-backup', device='drive0', target=ref, sync='full', format='qcow2')
        self.d.wait_completed('drive0')
        self.assertImagesEqual(self.last, ref, 'qcow2', 'qcow2')
        os.unlink(ref)

    def check_series(self, granularity, options=None):
        d = self.d
        self.full()
        d.cmd('block-dirty-bitmap-add', {'granularity': granularity} if granularity else {}, node='drive0', name='b0')
        granule = granularity or 65536
        self.assertEqual(0, self.increment(options=options)['len'])
        self.write((0, 512, 0xab), (2 * sd.MIB, 256 * 1024, 0xfe), (5 * sd.MIB - 32768, 65536, 0x64))
        count = d.bitmap('node0', 'b0')['count']
        spans = ((0, 512), (2 * sd.MIB, 2 * sd.MIB + 262144), (5 * sd.MIB - 32768, 5 * sd.MIB + 32768))
        self.assertEqual(len({g for a, b in spans for g in range(a // granule, -(-b // granule))}) * granule, count)
        done = self.increment(options=options)
        self.assertEqual(done['len'], done['offset'])
        self.assertGreaterEqual(done['len'], min(count, self.SIZE))
        self.assertEqual(0, d.bitmap('node0', 'b0')['count'])
        self.check_now()
        self.write((0, 512, 0x9a), (6 * sd.MIB, 352 * 1024, 0x55))
        self.increment(options=options)
        self.check_now()
        last = self.last
        d.shutdown()
        self.assertImagesEqual(last, self.a, 'qcow2', 'qcow2')
        sd.check_image(last)

    def test_increments(self):
        self.check_series(None)

    def test_small_granularity(self):
        self.check_series(4096)

    def test_large_granularity(self):
        self.check_series(sd.MIB)

    def test_large_target_clusters(self):
        self.check_series(None, {'cluster_size': '2M'})

    def test_zeroes_are_told_apart_from_nothing(self):
        self.full()
        self.d.cmd('block-dirty-bitmap-add', node='drive0', name='b0')
        with sd.nbd_connect(sd.nbd_uri(self.d.nbd_socket, 'disk')) as h:
            h.zero(sd.MIB, sd.MIB)
        self.increment()
        self.check_now()

    def test_only_dirty_data_is_copied(self):
        self.full()
        self.d.cmd('block-dirty-bitmap-add', node='drive0', name='b0')
        self.write((sd.MIB, 65536, 1), (4 * sd.MIB, 512, 2))
        self.assertEqual(2 * 65536, self.increment()['len'])
        own = sum(e['length'] for e in sd.image_map(self.last, 'qcow2') if e['depth'] == 0)
        self.assertEqual(2 * 65536, own)

    def test_frozen_while_the_job_runs(self):
        d = self.d
        self.full()
        d.cmd('block-dirty-bitmap-add', node='drive0', name='b0')
        self.write((0, 65536, 1), (2 * sd.MIB, 65536, 3))
        args = self.increment(start=False, speed=1)
        d.cmd('drive-backup', args)
        self.write((4 * sd.MIB, 65536, 2))
        self.assertSubset({'busy': True, 'recording': True, 'count': 2 * 65536, 'status': 'frozen'}, d.bitmap('node0', 'b0'))
        for command in ('remove', 'clear', 'enable', 'disable'):
            self.fails(d, "Bitmap 'b0' is currently in use by another operation and cannot be used",
                       'block-dirty-bitmap-' + command, node='node0', name='b0')
        self.assertEqual('BLOCK_JOB_CANCELLED', d.cancel('drive0')['event'])
        # Nothing is lost: what was written before and what was written meanwhile.
        self.assertSubset({'busy': False, 'recording': True, 'count': 3 * 65536, 'status': 'active'},
                          d.bitmap('node0', 'b0'))
        os.unlink(args['target'])
        self.number -= 1
        self.increment()
        self.check_now()

    def modes(self, mode, fail):
        d = self.d
        self.full()
        d.cmd('block-dirty-bitmap-add', node='drive0', name='b0')
        self.write((0, 65536, 1), (2 * sd.MIB, 65536, 3))
        args = self.increment(start=False, sync='bitmap', **{'bitmap-mode': mode, 'auto-finalize': False,
                                                             'speed': 1 if fail else 0})
        d.cmd('drive-backup', args)
        if fail:
            self.write((4 * sd.MIB, 65536, 2))
            self.assertEqual('BLOCK_JOB_CANCELLED', d.cancel('drive0')['event'])
        else:
            d.event_wait('BLOCK_JOB_PENDING', {'id': 'drive0'})
            self.write((4 * sd.MIB, 65536, 2))
            d.cmd('block-job-finalize', id='drive0')
            d.wait_completed('drive0')
        return d.bitmap('node0', 'b0')['count'] // 65536

    def test_mode_never(self):
        self.assertEqual(3, self.modes('never', False))

    def test_mode_on_success(self):
        self.assertEqual(1, self.modes('on-success', False))

    def test_mode_on_success_fails(self):
        self.assertEqual(3, self.modes('on-success', True))

    def test_mode_always(self):
        self.assertEqual(1, self.modes('always', False))

    def test_mode_always_fails(self):
        self.assertIn(self.modes('always', True), (2, 3))  # one cluster may have been copied before the job slept

    def test_full_with_bitmap(self):
        self.d.cmd('block-dirty-bitmap-add', node='drive0', name='b0')
        self.write((0, 65536, 1))
        self.full(bitmap='b0', bitmap_mode='on-success')
        self.assertEqual(0, self.d.bitmap('node0', 'b0')['count'])
        self.write((sd.MIB, 512, 2))
        self.increment()
        self.check_now()

    def test_disabled_bitmap_stays_disabled(self):
        self.full()
        self.d.cmd('block-dirty-bitmap-add', node='drive0', name='b0')
        self.write((0, 65536, 1))
        self.d.cmd('block-dirty-bitmap-disable', node='drive0', name='b0')
        self.write((sd.MIB, 65536, 1))
        self.assertEqual(65536, self.increment()['len'])
        self.assertSubset({'recording': False, 'count': 0}, self.d.bitmap('node0', 'b0'))


class Parts(JobCase):
    """Increments of granules that are mostly holes."""
    SIZE = 8 * sd.MIB
    RUNS = ((0, 4096, 1), (sd.MIB + 57344, 8192, 2), (3 * sd.MIB + 24576, 512, 3))

    def increment(self, target, **options):
        a = sd.create_image(self.path('a.img'), 'raw', self.SIZE)
        d = self.daemon()
        self.node(d, 'src', a)
        d.cmd('blockdev-add', node_name='dst', **options, file={'driver': 'file', 'filename': target})
        d.cmd('block-dirty-bitmap-add', node='src', name='bm')
        with sd.nbd_connect(d.export('src', writable=True)) as h:
            for offset, length, byte in self.RUNS:
                h.pwrite(bytes([byte]) * length, offset)
        d.cmd('blockdev-backup', job_id='b', device='src', target='dst', sync='incremental', bitmap='bm')
        self.assertEqual(0, d.wait_completed('b')['data']['len'] % (3 * 65536))
        d.shutdown()
        return a

    def test_holes_of_raw_stay_holes(self):
        b = sd.create_image(self.path('b.img'), 'raw', self.SIZE)
        a = self.increment(b, driver='raw')
        self.assertImagesEqual(a, b)
        self.assertLessEqual(os.stat(b).st_blocks * 512, 48 * 1024)  # of 192: short holes do not count

    def test_old_data_goes(self):
        b = sd.create_image(self.path('b.img'), 'raw', self.SIZE, data=[(0, self.SIZE, 0xee)])
        a = self.increment(b, driver='raw')
        want = bytearray(b'\xee' * self.SIZE)
        with open(a, 'rb') as src, open(b, 'rb') as dst:
            for offset, _, _ in self.RUNS:
                start = offset // 65536 * 65536
                src.seek(start)
                want[start:start + 65536] = src.read(65536)
            self.assertEqual(want, dst.read())

    def test_backing_that_comes_later_does_not_show(self):
        """The target is opened without the file behind it, which shows through what was not written."""
        base = sd.create_image(self.path('base.img'), 'qcow2', self.SIZE, data=[(0, self.SIZE, 0xee)])
        for i, options in enumerate(({}, {'extended_l2': 'on', 'cluster_size': '128k'}, {'cluster_size': '4k'})):
            with self.subTest(options=options):
                b = sd.create_image(self.path(f'b{i}.img'), 'qcow2', backing=base, backing_fmt='qcow2', options=options)
                a = self.increment(b, driver='qcow2', backing=None)
                sd.check_image(b)
                flat = self.path('flat.img')
                sd.qemu_img('convert', '-f', 'qcow2', '-O', 'raw', b, flat)
                with open(a, 'rb') as src, open(flat, 'rb') as dst:
                    for offset, _, _ in self.RUNS:
                        start = offset // 65536 * 65536
                        src.seek(start)
                        dst.seek(start)
                        self.assertEqual(src.read(65536), dst.read(65536))


class Refused(JobCase):
    def setUp(self):
        self.d = self.daemon()
        self.pair(self.d, 'raw', 'qcow2')
        self.d.cmd('block-dirty-bitmap-add', node='src', name='bm')

    def no(self, text, command='blockdev-backup', **more):
        args = {'job_id': 'b', 'device': 'src', 'target': 'dst', 'sync': 'full', **more}
        self.fails(self.d, text, command, **{k: v for k, v in args.items() if v is not None})
        self.assertEqual([], self.d.cmd('query-jobs'))
        self.assertFalse(self.d.bitmap('src', 'bm')['busy'])

    def test_names(self):
        self.no("Cannot find device='x' nor node-name='x'", device='x')
        self.no("Cannot find device='x' nor node-name='x'", target='x')
        self.no('Source and target cannot be the same', target='src')
        self.no("Invalid job ID ''", job_id=None)
        self.no("Could not create node: Duplicate nodes with node-name='dst'", filter_node_name='dst')

    def test_bitmaps(self):
        self.no("must provide a valid bitmap name for 'incremental' sync mode", sync='incremental')
        self.no("must provide a valid bitmap name for 'bitmap' sync mode", sync='bitmap')
        self.no("Bitmap 'x' could not be found", sync='incremental', bitmap='x')
        self.no("Bitmap sync mode must be 'on-success' when using sync mode 'incremental'", sync='incremental', bitmap='bm',
                bitmap_mode='always')
        self.no('Bitmap sync mode must be given when providing a bitmap', sync='bitmap', bitmap='bm')
        self.no('Cannot specify bitmap sync mode without a bitmap', bitmap_mode='never')
        self.no("Bitmap sync mode 'never' has no meaningful effect when combined with sync mode 'full'", bitmap='bm',
                bitmap_mode='never')
        self.no("sync mode 'none' does not produce meaningful bitmap outputs", sync='none', bitmap='bm',
                bitmap_mode='always')

    def test_numbers(self):
        self.no("Parameter 'speed' expects a non-negative value", speed=-1)
        self.no('max-workers must be between 1 and 2147483647', x_perf={'max-workers': 0})
        self.no('max-chunk must be zero (which means no limit) or positive', x_perf={'max-chunk': -1})
        self.no('Required max-chunk (100) is less than backup cluster size (65536)', x_perf={'max-chunk': 100})

    def test_targets(self):
        raw = sd.create_image(self.path('r.img'), 'raw', 4 * sd.MIB)
        small = sd.create_image(self.path('s.img'), 'raw', sd.MIB)
        self.node(self.d, 'raw', raw)
        self.node(self.d, 'small', small)
        self.no('Compression is not supported for this drive', target='raw', compress=True)
        self.no('Source and target image have different sizes', target='small')
        file_node = next(n['node-name'] for n in self.d.cmd('query-named-block-nodes')
                         if n['drv'] == 'file' and n['file'] == self.path('src.img'))
        self.no('Permission conflict', target=file_node)

    def test_bitmap_in_use(self):
        d = self.d
        d.cmd('blockdev-backup', job_id='b', device='src', target='dst', sync='bitmap', bitmap='bm', bitmap_mode='never',
              auto_finalize=False)
        d.event_wait('BLOCK_JOB_PENDING')
        third = sd.create_image(self.path('3.img'), 'raw', 4 * sd.MIB)
        self.node(d, 'third', third)
        self.assertIn('error', d.qmp('blockdev-backup', job_id='c', device='src', target='third', sync='incremental',
                                     bitmap='bm'))


class Together(JobCase):
    def test_writes_to_the_last_cluster(self):
        """While the old data of the last cluster that is to be copied is read, nobody may overwrite it."""
        import nbd
        d = self.daemon()
        peer = Peer(self, 'slow', 65536, 'delay', 'delay-read=300ms')
        sd.qemu_io(peer.uri(), 'write -P 0x11 0 64k', fmt='raw')
        peer.add(d, 'src')
        copy = sd.create_image(self.path('copy.img'), 'raw', 65536, data=[(0, 65536, 0x99)])
        self.node(d, 'dst', copy)
        uri = d.export('src', writable=True)
        d.cmd('blockdev-backup', job_id='b', device='src', target='dst', sync='none')
        with sd.nbd_connect(uri) as h:
            data = [nbd.Buffer.from_bytearray(bytearray(b'\x44' * 4096)) for _ in range(2)]
            pending = [h.aio_pwrite(data[0], 0), h.aio_pwrite(data[1], 8192)]
            for cookie in pending:
                while not h.aio_command_completed(cookie):
                    h.poll(100)
        d.cancel('b')
        d.shutdown()
        with open(copy, 'rb') as f:
            self.assertEqual(b'\x11' * 65536, f.read())


class DeviceErrors(JobCase):
    SIZE = 2 * sd.MIB

    def start(self, where, errno, policy, **more):
        d = self.daemon()
        peer = FaultyPeer(self, f'peer-{where}', self.SIZE, where, errno)
        other = sd.create_image(self.path('o.img'), 'raw', self.SIZE, data=[(0, self.SIZE, 0x61)])
        self.node(d, 'other', other)
        if where == 'pread':
            sd.qemu_io(peer.uri(), f'write -P 0x62 0 {self.SIZE}', fmt='raw')
        peer.add(d, 'peer')
        source, target = ('peer', 'other') if where == 'pread' else ('other', 'peer')
        d.cmd('block-dirty-bitmap-add', node=source, name='bm')
        self.uri = d.export(source, writable=True)
        with sd.nbd_connect(self.uri) as h:
            h.pwrite(b'\x63' * 65536, sd.MIB)
        peer.fail()
        side = 'on-source-error' if where == 'pread' else 'on-target-error'
        d.cmd('blockdev-backup', {side: policy, **more}, job_id='b', device=source, target=target)
        return d, peer, other, source

    def test_report_keeps_the_bitmap(self):
        for where, operation in (('pread', 'read'), ('pwrite', 'write')):
            with self.subTest(where=where):
                d, _, _, source = self.start(where, 'EIO', 'report', sync='incremental', bitmap='bm')
                d.event_wait('BLOCK_JOB_ERROR', {'device': 'b', 'operation': operation, 'action': 'report'})
                d.wait_completed('b', 'Input/output error')
                self.assertSubset({'count': 65536, 'busy': False}, d.bitmap(source, 'bm'))

    def test_stop_and_resume(self):
        for where, errno, policy, status in (('pread', 'EIO', 'stop', 'failed'), ('pwrite', 'ENOSPC', 'enospc', 'nospace')):
            with self.subTest(where=where):
                d, peer, other, _ = self.start(where, errno, policy, sync='full')
                d.event_wait('BLOCK_JOB_ERROR', {'device': 'b', 'action': 'stop'})
                self.assertSubset({'paused': True, 'io-status': status}, d.job('b'))
                # Several requests may fail; one that fails after "resume" would stop the job again.
                while d.job('b')['status'] != 'paused':
                    time.sleep(0.01)
                peer.fail(False)
                d.cmd('block-job-resume', device='b')
                d.wait_completed('b')
                d.shutdown()
                self.assertImagesEqual(peer.uri(), other, 'raw', 'raw')

    def test_ignore_tries_again(self):
        d, peer, other, _ = self.start('pwrite', 'EIO', 'ignore', sync='full')
        d.event_wait('BLOCK_JOB_ERROR', {'device': 'b', 'action': 'ignore'})
        peer.fail(False)
        d.wait_completed('b')
        d.shutdown()
        self.assertImagesEqual(peer.uri(), other, 'raw', 'raw')

    def test_client_write_fails_rather_than_the_copy(self):
        import nbd
        d, peer, _, _ = self.start('pwrite', 'EIO', 'report', sync='none')
        with sd.nbd_connect(self.uri) as h:
            with self.assertRaises(nbd.Error):
                h.pwrite(b'\x01' * 65536, 0)
            peer.fail(False)
            h.pwrite(b'\x01' * 65536, 0)
            h.flush()
        d.cancel('b')
        d.shutdown()
        sd.qemu_io(peer.uri(), 'read -P 0x61 0 65536', fmt='raw')


if __name__ == '__main__':
    sd.main()
