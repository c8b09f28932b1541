"""blkverify: the same goes to both nodes; a difference ends the process, with where it is."""
import unittest

import nbd
import sd

SIZE = sd.MIB


class Blkverify(sd.Case):
    def files(self, fmt='qcow2', data=((0, SIZE, 0x11),)):
        return (sd.create_image(self.path('raw.img'), 'raw', SIZE, data=data),
                sd.create_image(self.path('test.img'), fmt, SIZE, data=data))

    def open(self, d, fmt='qcow2', **more):
        raw, test = self.files(fmt, **more)
        d.cmd('blockdev-add', driver='blkverify', node_name='v', raw={'driver': 'file', 'filename': raw},
              test={'driver': fmt, 'file': {'driver': 'file', 'filename': test}})
        return self.enterContext(sd.nbd_connect(d.export('v', writable=True)))

    def spoil(self, offset, data=b'?'):
        with open(self.path('raw.img'), 'r+b') as f:
            f.seek(offset)
            f.write(data)

    def test_both_get_everything(self):
        d = self.daemon()
        h = self.open(d)
        h.pwrite(b'x' * 100000, 12345)
        if not sd.STAND_IN:  # which dies of an assertion
            h.zero(65536, 300000)
            h.trim(65536, 500000)
        h.flush()
        whole = bytes(h.pread(SIZE, 0))
        h.shutdown()
        d.shutdown()
        with open(self.path('raw.img'), 'rb') as f:
            self.assertEqual(whole, f.read())
        self.assertImagesEqual(self.path('raw.img'), self.path('test.img'), 'raw', 'qcow2')

    def ends(self, d, call, text):
        with self.assertRaises(nbd.Error):
            call()
        self.assertEqual(1, d.wait())
        self.assertIn(text, d.stderr())

    def test_difference(self):
        d = self.daemon()
        h = self.open(d)
        self.spoil(5000)
        h.pread(5000, 0)
        h.pread(SIZE - 5001, 5001)
        self.ends(d, lambda: h.pread(SIZE, 0), 'contents mismatch at offset 5000')

    def test_other_result(self):
        raw, test = self.files('raw')
        d = self.daemon()
        d.cmd('blockdev-add', {'driver': 'blkverify', 'node-name': 'v', 'raw': {'driver': 'file', 'filename': raw},
                               'test': {'driver': 'raw', 'file': {
                                   'driver': 'blkdebug', 'image': {'driver': 'file', 'filename': test},
                                   'inject-error': [{'event': 'write_aio', 'errno': 28, 'once': True}]}}})
        h = self.enterContext(sd.nbd_connect(d.export('v', writable=True)))
        self.ends(d, lambda: h.pwrite(b'x' * 512, 0), 'return value mismatch')

    def test_same_error(self):
        raw, test = self.files('raw')
        fault = [{'event': 'none', 'errno': 28, 'iotype': 'write', 'once': True}]
        d = self.daemon()
        d.cmd('blockdev-add', {'driver': 'blkverify', 'node-name': 'v', 'raw': {
            'driver': 'blkdebug', 'image': {'driver': 'file', 'filename': raw}, 'inject-error': fault}, 'test': {
                'driver': 'blkdebug', 'image': {'driver': 'file', 'filename': test}, 'inject-error': fault}})
        h = self.enterContext(sd.nbd_connect(d.export('v', writable=True)))
        with self.assertRaises(nbd.Error) as caught:
            h.pwrite(b'x' * 512, 0)
        self.assertEqual('ENOSPC', caught.exception.errno)
        h.pwrite(b'x' * 512, 0)

    @unittest.skipIf(sd.STAND_IN, 'races show there')
    def test_writes_under_way_are_no_difference(self):
        d = self.daemon()
        h = self.open(d, 'raw')
        bufs = [nbd.Buffer.from_bytearray(bytearray([i % 256]) * 16384) for i in range(64)]
        reads = [nbd.Buffer(65536) for _ in range(64)]
        cookies = []
        for i, (w, r) in enumerate(zip(bufs, reads)):
            cookies += [h.aio_pwrite(w, (i % 4) * 4096), h.aio_pread(r, 0)]
        for cookie in cookies:
            while not h.aio_command_completed(cookie):
                h.poll(-1)

    def test_filename(self):
        raw, test = self.files()
        name = f'blkverify:{raw}:{test}'
        sd.qemu_img('create', '-u', '-f', 'qcow2', '-F', 'raw', '-b', name, self.path('top.qcow2'), str(SIZE))
        d = self.daemon()
        d.cmd('blockdev-add', driver='qcow2', node_name='t',
              file={'driver': 'file', 'filename': self.path('top.qcow2')})
        h = self.enterContext(sd.nbd_connect(d.export('t')))
        self.assertEqual(b'\x11' * SIZE, bytes(h.pread(SIZE, 0)))
        files = {n['drv']: n['file'] for n in d.cmd('query-named-block-nodes')}
        self.assertEqual(name, files['blkverify'])
        self.spoil(0)
        self.ends(d, lambda: h.pread(512, 0), 'contents mismatch at offset 0')

    def test_bad_filename(self):
        self.files()
        sd.qemu_img('create', '-u', '-f', 'qcow2', '-F', 'raw', '-b', 'blkverify:x', self.path('top.qcow2'), '1M')
        d = self.daemon()
        self.fails(d, 'requires raw copy and original image path', 'blockdev-add', driver='qcow2', node_name='t',
                   file={'driver': 'file', 'filename': self.path('top.qcow2')})


if __name__ == '__main__':
    sd.main()
