"""copy-on-read: what was read stays above; clients' writes win over copies; limits of where copies come from."""
import threading
import unittest

import nbd
import sd

SIZE = 4 * sd.MIB
CLUSTER = 65536


class Cor(sd.Case):
    def chain(self, d, n=2, fmt='qcow2', top_data=(), base_data=((0, SIZE, 0x11),), **options):
        """Files 0 (bottom, raw) to n-1; copy-on-read 'cor' over the topmost, node names n0 …"""
        sd.create_image(self.path('0.img'), 'raw', SIZE, data=base_data)
        d.cmd('blockdev-add', driver='raw', node_name='n0', file={'driver': 'file', 'filename': self.path('0.img')})
        for i in range(1, n):
            sd.create_image(self.path(f'{i}.img'), fmt, SIZE, data=top_data if i == n - 1 else ())
            sd.qemu_img('rebase', '-u', '-f', fmt, '-F', 'raw' if i == 1 else fmt, '-b', self.path(f'{i - 1}.img'),
                        self.path(f'{i}.img'))
            d.cmd('blockdev-add', driver=fmt, node_name=f'n{i}', backing=f'n{i - 1}',
                  file={'driver': 'file', 'filename': self.path(f'{i}.img')})
        d.cmd('blockdev-add', driver='copy-on-read', node_name='cor', file=f'n{n - 1}', **options)
        return self.enterContext(sd.nbd_connect(d.export('cor', writable=True)))

    def allocated(self, i, depth=0):
        """Ranges that file @i itself holds."""
        out = []
        for r in sd.image_map(self.path(f'{i}.img'), 'qcow2'):
            if r['depth'] != depth or not r['present']:
                continue
            if out and sum(out[-1]) == r['start']:
                out[-1] = (out[-1][0], out[-1][1] + r['length'])
            else:
                out.append((r['start'], r['length']))
        return out

    def test_copies_whole_clusters(self):
        d = self.daemon()
        h = self.chain(d)
        self.assertEqual(b'\x11' * 512, bytes(h.pread(512, CLUSTER + 1024)))
        self.assertEqual(b'\x11' * 1024, bytes(h.pread(1024, 5 * CLUSTER - 512)))
        h.shutdown()
        d.shutdown()
        self.assertEqual([(CLUSTER, CLUSTER), (4 * CLUSTER, 2 * CLUSTER)], self.allocated(1))
        sd.check_image(self.path('1.img'))
        self.assertImagesEqual(self.path('0.img'), self.path('1.img'), 'raw', 'qcow2')

    def test_leaves_what_is_there(self):
        d = self.daemon()
        h = self.chain(d, top_data=((CLUSTER, CLUSTER, 0x22),))
        self.assertEqual(b'\x11' * CLUSTER + b'\x22' * CLUSTER + b'\x11' * CLUSTER, bytes(h.pread(3 * CLUSTER, 0)))
        h.pwrite(b'z' * 512, 2 * CLUSTER)
        self.assertEqual(b'z' * 512 + b'\x11' * 512, bytes(h.pread(1024, 2 * CLUSTER)))
        h.shutdown()
        d.shutdown()
        self.assertEqual([(0, 3 * CLUSTER)], self.allocated(1))

    def test_long_read(self):
        d = self.daemon()
        h = self.chain(d, base_data=((sd.MIB + 512, 2 * sd.MIB, 0x33),))
        whole = bytes(h.pread(SIZE, 0))
        self.assertEqual(bytes(sd.MIB + 512) + b'\x33' * (2 * sd.MIB) + bytes(sd.MIB - 512), whole)
        h.shutdown()
        d.shutdown()
        # What is zero below may stay there.
        self.assertEqual([], [r for r in sd.image_map(self.path('1.img'), 'qcow2') if r['depth'] and not r['zero']])
        self.assertImagesEqual(self.path('0.img'), self.path('1.img'), 'raw', 'qcow2')

    def test_zeroes_stay_small(self):
        d = self.daemon()
        h = self.chain(d, base_data=())
        h.pread(SIZE, 0)
        h.shutdown()
        d.shutdown()
        self.assertTrue(all(r['zero'] for r in sd.image_map(self.path('1.img'), 'qcow2')))
        self.assertLess(sd.image_info(self.path('1.img'))['actual-size'], sd.MIB)

    def test_dirties_no_bitmap(self):
        d = self.daemon()
        h = self.chain(d)
        for node in ('cor', 'n1'):
            d.cmd('block-dirty-bitmap-add', node=node, name='b')
        h.pread(CLUSTER, 0)
        for node in ('cor', 'n1'):
            self.assertEqual(0, d.bitmap(node, 'b')['count'])
        h.pwrite(b'x' * 512, 0)
        self.assertEqual(CLUSTER, d.bitmap('n1', 'b')['count'])

    def test_needs_to_write(self):
        d = self.daemon()
        sd.create_image(self.path('a.img'), 'qcow2', SIZE)
        d.cmd('blockdev-add', driver='qcow2', node_name='a', read_only=True,
              file={'driver': 'file', 'filename': self.path('a.img')})
        self.fails(d, 'read-only', 'blockdev-add', driver='copy-on-read', node_name='c', file='a')

    def test_read_only_clients_copy_too(self):
        d = self.daemon()
        self.chain(d)
        h = self.enterContext(sd.nbd_connect(d.export('cor', name='ro')))
        self.assertTrue(h.is_read_only())
        h.pread(CLUSTER, 0)
        d.shutdown()
        self.assertEqual([(0, CLUSTER)], self.allocated(1))

    def test_base_longer_and_shorter(self):
        for size in (SIZE // 2 + 512, SIZE + 65536 * 3):
            with self.subTest(size=size):
                base, top = self.path(f'base{size}'), self.path(f'top{size}')
                sd.create_image(base, 'raw', size, data=[(0, size, 0x44)])
                sd.create_image(top, 'qcow2', SIZE, backing=base, backing_fmt='raw')
                d = self.daemon()
                d.cmd('blockdev-add', driver='copy-on-read', node_name='cor', file={
                    'driver': 'qcow2', 'file': {'driver': 'file', 'filename': top}})
                h = self.enterContext(sd.nbd_connect(d.export('cor')))
                n = min(size, SIZE)
                self.assertEqual(b'\x44' * n + bytes(SIZE - n), bytes(h.pread(SIZE, 0)))
                h.shutdown()
                d.shutdown()
                sd.qemu_img('rebase', '-u', '-f', 'qcow2', '-b', '', top)
                sd.qemu_img('convert', '-f', 'qcow2', '-O', 'raw', top, self.path('flat'))
                with open(self.path('flat'), 'rb') as f:
                    self.assertEqual(b'\x44' * n + bytes(SIZE - n), f.read())

    def test_bottom(self):
        d = self.daemon()
        h = self.chain(d, 4, bottom='n1')
        d.cmd('blockdev-add', driver='null-co', node_name='x')
        for bottom, why in (('nosuch', "'nosuch' not found"), ('cor', 'filter'), ('x', 'not in the backing chain')):
            if sd.STAND_IN and bottom == 'x':
                continue
            self.fails(d, why, 'blockdev-add', driver='copy-on-read', node_name='cor2', file='n3', bottom=bottom)
        h.pread(2 * CLUSTER, 0)  # n0 is below the bottom
        d.shutdown()
        self.assertEqual([], self.allocated(3))

    def test_copies_down_to_bottom(self):
        sd.create_image(self.path('b.img'), 'raw', SIZE, data=[(0, SIZE, 0x11)])
        sd.create_image(self.path('m.img'), 'qcow2', SIZE, backing=self.path('b.img'), backing_fmt='raw',
                        data=[(CLUSTER, CLUSTER, 0x22)])
        sd.create_image(self.path('1.img'), 'qcow2', SIZE, backing=self.path('m.img'), backing_fmt='qcow2')
        d = self.daemon()
        d.cmd('blockdev-add', driver='qcow2', node_name='m', file={'driver': 'file', 'filename': self.path('m.img')})
        d.cmd('blockdev-add', driver='qcow2', node_name='t', backing='m',
              file={'driver': 'file', 'filename': self.path('1.img')})
        d.cmd('blockdev-add', driver='copy-on-read', node_name='cor', file='t', bottom='m')
        h = self.enterContext(sd.nbd_connect(d.export('cor')))
        self.assertEqual(b'\x11' * CLUSTER + b'\x22' * CLUSTER + b'\x11' * CLUSTER, bytes(h.pread(3 * CLUSTER, 0)))
        h.shutdown()
        d.shutdown()
        self.assertEqual([(CLUSTER, CLUSTER)], self.allocated(1))

    def test_writes_win(self):
        # Writers and readers race over the same clusters; what was written last must be there in the end.
        d = self.daemon()
        h = self.chain(d)
        cookies, bufs, want = [], [], bytearray(b'\x11' * SIZE)
        for i in range(256):
            at = (i * 7919 * 512) % (SIZE - 2048)
            buf = nbd.Buffer(8192)
            bufs.append(buf)
            cookies.append(h.aio_pread(buf, max(0, at // 4096 * 4096 - 4096)))
            if i % 2:
                cookies.append(h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([i]) * 512), at // 512 * 512))
                want[at // 512 * 512:at // 512 * 512 + 512] = bytes([i]) * 512
            if len(cookies) > 32:
                h.poll(0)
        for cookie in cookies:
            while not h.aio_command_completed(cookie):
                h.poll(-1)
        self.assertEqual(bytes(want), bytes(h.pread(SIZE, 0)))
        h.shutdown()
        d.shutdown()
        sd.check_image(self.path('1.img'))

    @unittest.skipIf(sd.STAND_IN, 'the storage daemon of QEMU has no human monitor')
    def test_write_waits_for_the_copy(self):
        sd.create_image(self.path('b.img'), 'raw', SIZE, data=[(0, SIZE, 0x11)])
        sd.create_image(self.path('1.img'), 'qcow2', SIZE, backing=self.path('b.img'), backing_fmt='raw')
        d = self.daemon()
        d.cmd('blockdev-add', driver='copy-on-read', node_name='cor', file={
            'driver': 'blkdebug', 'image': {'driver': 'qcow2',
                                            'file': {'driver': 'file', 'filename': self.path('1.img')}}})
        uri = d.export('cor', writable=True)
        one, other = (self.enterContext(sd.nbd_connect(uri)) for _ in range(2))

        def hmp(line):
            d.cmd('human-monitor-command', {'command-line': f'qemu-io cor "{line}"'})
        hmp('break cor_write A')
        reader = threading.Thread(target=lambda: one.pread(512, 0), daemon=True)
        reader.start()
        hmp('wait_break A')
        writer = threading.Thread(target=lambda: other.pwrite(b'w' * 512, 1024), daemon=True)
        writer.start()
        writer.join(0.2)
        self.assertTrue(writer.is_alive(), 'a write has overtaken the copy of its cluster')
        hmp('resume A')
        reader.join(10)
        writer.join(10)
        self.assertEqual(b'\x11' * 1024 + b'w' * 512 + b'\x11' * 512, bytes(one.pread(2048, 0)))

    @unittest.skipIf(sd.STAND_IN, 'the storage daemon of QEMU has no drives')
    def test_drive(self):
        sd.create_image(self.path('b.img'), 'raw', SIZE, data=[(0, SIZE, 0x11)])
        top = sd.create_image(self.path('1.img'), 'qcow2', SIZE, backing=self.path('b.img'), backing_fmt='raw')
        d = self.daemon('--drive', f'id=d0,file={top},format=qcow2,node-name=top,copy-on-read=on')
        d.cmd('human-monitor-command', {'command-line': f'qemu-io d0 "read -P 0x11 {CLUSTER} 512"'})
        shown = d.cmd('query-block')[0]['inserted']
        self.assertEqual(('top', 'qcow2', 1), (shown['node-name'], shown['drv'], shown['backing_file_depth']))
        sd.create_image(self.path('2.img'), 'qcow2', SIZE)
        d.cmd('drive-mirror', device='d0', target=self.path('2.img'), format='qcow2', sync='full', mode='existing')
        d.complete('d0')
        d.shutdown()
        # The mirror may have read through the device's filter or past it; what the device read is there anyhow.
        self.assertTrue(any(a <= CLUSTER < a + n for a, n in self.allocated(1)), self.allocated(1))
        self.assertImagesEqual(self.path('2.img'), self.path('b.img'), 'qcow2', 'raw')

    @unittest.skipIf(sd.STAND_IN, 'the storage daemon of QEMU has no drives')
    def test_read_only_drive(self):
        path = sd.create_image(self.path('a.img'), 'raw', SIZE)
        d = self.daemon('--drive', f'id=d0,file={path},format=raw,read-only=on,copy-on-read=on')
        self.assertIn('read-only', d.stderr())
        self.assertEqual('raw', d.cmd('query-block')[0]['inserted']['drv'])


if __name__ == '__main__':
    sd.main()
