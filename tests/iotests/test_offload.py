"""Copies that the host makes from file to file: the right bytes from the right place, and nobody is passed over."""
import os
import time
import unittest

import sd

MIB = sd.MIB


class Offload(sd.Case):
    def random(self, name, size):
        path = self.path(name)
        with open(path, 'wb') as f:
            f.write(os.urandom(size))
        return path

    def mirror(self, d, source, target, timeout=30):
        d.cmd('blockdev-mirror', job_id='j', device=source, target=target, sync='full')
        d.complete('j', timeout=timeout)

    def read(self, path, offset=0, size=-1):
        with open(path, 'rb') as f:
            f.seek(offset)
            return f.read(size)

    def test_ranges_of_files(self):
        a, b = self.random('a', 8 * MIB + 512), self.random('b', 9 * MIB)
        before = self.read(b)
        d = self.daemon()
        d.cmd('blockdev-add', driver='raw', node_name='a', offset=MIB + 512, size=5 * MIB + 1024,
              file={'driver': 'file', 'filename': a})
        d.cmd('blockdev-add', driver='raw', node_name='b', offset=2 * MIB, size=5 * MIB + 1024,
              file={'driver': 'file', 'filename': b})
        self.mirror(d, 'a', 'b')
        after = self.read(b)
        end = 2 * MIB + 5 * MIB + 1024
        self.assertEqual(after[2 * MIB:end], self.read(a, MIB + 512, 5 * MIB + 1024))
        self.assertEqual(after[:2 * MIB] + after[end:], before[:2 * MIB] + before[end:])

    def test_out_of_qcow2(self):
        base = sd.create_image(self.path('base'), 'qcow2', 16 * MIB, data=[(0, 3 * MIB, 1), (5 * MIB, MIB, 2)])
        top = sd.create_image(self.path('top'), 'qcow2', 16 * MIB, backing=base, backing_fmt='qcow2',
                              data=[(2 * MIB, MIB, 3), (9 * MIB, 65536, 4)])
        raw = sd.create_image(self.path('raw'), 'raw', 16 * MIB)
        with open(raw, 'r+b') as f:  # what must become zeroes
            f.seek(12 * MIB)
            f.write(b'x' * MIB)
        d = self.daemon()
        d.cmd('blockdev-add', driver='qcow2', node_name='a', file={'driver': 'file', 'filename': top})
        d.cmd('blockdev-add', driver='raw', node_name='b', file={'driver': 'file', 'filename': raw})
        self.mirror(d, 'a', 'b')
        d.shutdown()
        self.assertImagesEqual(top, raw, 'qcow2', 'raw')

    def test_into_qcow2(self):
        """New clusters, those that are there, parts of clusters, subclusters, a data file, an encrypted image."""
        size = 9 * MIB + 512
        source = self.random('source', size + MIB)
        secret = ('--object', 'secret,id=key,data=sesame')
        kinds = [('cluster_size=512', {}), ('cluster_size=64k', {}), ('cluster_size=2M', {}),
                 ('cluster_size=64k,extended_l2=on', {}), ('cluster_size=4k,compat=0.10', {}),
                 (f'data_file={self.path("data")},data_file_raw=on', {}),
                 ('encrypt.format=luks', {'encrypt': {'format': 'luks', 'key-secret': 'key'}})]
        for i, (options, more) in enumerate(kinds):
            with self.subTest(options=options):
                target = self.path(f't{i}')
                d = self.daemon(*(secret if more else ()))
                if more:
                    sd.create_image(target, 'raw', 0)
                    d.cmd('blockdev-add', driver='file', node_name='new', filename=target)
                    d.cmd('blockdev-create', job_id='new', options={
                        'driver': 'qcow2', 'file': 'new', 'size': size, 'encrypt': {**more['encrypt'], 'iter-time': 10}})
                    d.event_wait('JOB_STATUS_CHANGE', {'id': 'new', 'status': 'concluded'})
                    d.cmd('job-dismiss', id='new')
                    d.cmd('blockdev-del', node_name='new')
                else:
                    sd.qemu_img('create', '-q', '-f', 'qcow2', '-o', options, target, str(size))
                d.cmd('blockdev-add', driver='raw', node_name='a', offset=MIB // 2 + 512, size=size,
                      file={'driver': 'file', 'filename': source})
                d.cmd('blockdev-add', driver='qcow2', node_name='b', file={'driver': 'file', 'filename': target}, **more)
                with sd.nbd_connect(d.export('b', writable=True)) as h:  # some of it is there already
                    h.pwrite(b'x' * (3 * MIB), MIB + 1536)
                d.cmd('block-export-del', id='exp-b')
                self.mirror(d, 'a', 'b')
                with sd.nbd_connect(d.export('b')) as h:
                    got = h.pread(size, 0)
                self.assertEqual(self.read(source, MIB // 2 + 512, size), got)
                d.shutdown()
                if not more:
                    sd.check_image(target)

    def test_holes_stay_holes(self):
        a = sd.create_image(self.path('a'), 'raw', 256 * MIB, data=[(100 * MIB, MIB, 7)])
        b = sd.create_image(self.path('b'), 'raw', 256 * MIB)
        d = self.daemon()
        for name, path in ('a', a), ('b', b):
            d.cmd('blockdev-add', driver='raw', node_name=name, file={'driver': 'file', 'filename': path})
        self.mirror(d, 'a', 'b')
        d.shutdown()
        self.assertImagesEqual(a, b, 'raw', 'raw')
        self.assertLess(os.stat(b).st_blocks * 512, 8 * MIB)

    def test_not_around_a_filter(self):
        """An error injector over the file must see the reads."""
        a, b = self.random('a', 4 * MIB), sd.create_image(self.path('b'), 'raw', 4 * MIB)
        d = self.daemon()
        d.cmd('blockdev-add', driver='raw', node_name='a', file={
            'driver': 'blkdebug', 'image': {'driver': 'file', 'filename': a},
            'inject-error': [{'event': 'none', 'iotype': 'read', 'errno': 5, 'sector': 4096}]})
        d.cmd('blockdev-add', driver='raw', node_name='b', file={'driver': 'file', 'filename': b})
        d.cmd('blockdev-mirror', job_id='j', device='a', target='b', sync='full')
        self.assertEqual(d.event_wait('BLOCK_JOB_ERROR')['data']['operation'], 'read')
        d.wait_completed('j', error='Input/output error')

    def test_not_around_a_throttle(self):
        a, b = self.random('a', 4 * MIB), sd.create_image(self.path('b'), 'raw', 4 * MIB)
        d = self.daemon()
        d.cmd('object-add', qom_type='throttle-group', id='g', limits={'bps-read': 2 * MIB})
        d.cmd('blockdev-add', driver='throttle', node_name='a', throttle_group='g',
              file={'driver': 'file', 'filename': a})
        d.cmd('blockdev-add', driver='raw', node_name='b', file={'driver': 'file', 'filename': b})
        start = time.monotonic()
        self.mirror(d, 'a', 'b')  # a burst of 0.1 s goes at once
        self.assertGreater(time.monotonic() - start, 1)
        self.assertEqual(self.read(a), self.read(b))


if __name__ == '__main__':
    unittest.main()
