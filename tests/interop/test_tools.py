"""Other people's NBD and image tools on a served image: nbdinfo, nbdcopy, qemu-img, qemu-io, fio, nbdkit's nbd plugin."""
import json
import os
import subprocess
import time

import sd

SIZE = 16 * sd.MIB
DATA = [(0, 65536, 0x11), (sd.MIB, 3 * sd.MIB, 0x22), (10 * sd.MIB - 512, 1024, 0x33), (SIZE - 4096, 4096, 0x44)]


class Tools(sd.Case):
    def serve(self, fmt='raw', writable=True, name='disk', data=DATA, options=None):
        """A daemon that exports an image with DATA in it: (daemon, image, URI)."""
        self.images = self.__dict__.get('images', 0) + 1
        image = sd.create_image(self.path(f'image{self.images}.{fmt}'), fmt, SIZE, data=data, options=options)
        d = self.daemon('--blockdev', f'{fmt},node-name=n,discard=unmap,file.driver=file,file.filename={image},'
                        'file.discard=unmap')
        return d, image, d.export('n', name, writable=writable)


class NbdInfo(Tools):
    def info(self, uri, *opts):
        return json.loads(sd.run('nbdinfo', '--json', *opts, uri).stdout)

    def test_facts(self):
        for fmt in ('raw', 'qcow2'):
            for writable in (True, False):
                with self.subTest(fmt=fmt, writable=writable):
                    _, _, uri = self.serve(fmt, writable)
                    export, = self.info(uri)['exports']
                    self.assertSubset({'export-name': 'disk', 'export-size': SIZE, 'is_read_only': not writable,
                                       'can_flush': True, 'can_df': True, 'is_rotational': False}, export)
                    if writable:
                        self.assertSubset({'can_trim': True, 'can_zero': True, 'can_fua': True, 'can_fast_zero': True},
                                          export)
                    self.assertIn('base:allocation', export['contexts'])

    def test_protocol(self):
        _, _, uri = self.serve()
        info = self.info(uri)
        self.assertEqual('newstyle-fixed', info['protocol'])
        self.assertTrue(info['structured'])
        self.assertFalse(info['TLS'])

    def test_list(self):
        d, _, _ = self.serve()
        d.cmd('blockdev-add', driver='null-co', node_name='null', size=65536, read_zeroes=True)
        d.export('null', 'ä b', export_id='second', description='the second one')
        exports = self.info(f'nbd+unix:///?socket={d.nbd_socket}', '--list')['exports']
        self.assertEqual({'disk', 'ä b'}, {e['export-name'] for e in exports})
        self.assertEqual({65536, SIZE}, {e['export-size'] for e in exports})
        self.assertEqual('the second one', next(e for e in exports if e['export-name'] == 'ä b')['description'])

    def test_map(self):
        for fmt in ('raw', 'qcow2'):
            with self.subTest(fmt):
                _, image, uri = self.serve(fmt)
                rows = json.loads(sd.run('nbdinfo', '--json', '--map', uri).stdout)
                self.assertEqual(SIZE, sum(r['length'] for r in rows))
                for start, length, _ in DATA:
                    self.assertTrue(any(r['offset'] <= start and start + length <= r['offset'] + r['length'] and
                                        r['type'] == 0 for r in rows), (start, rows))
                self.assertTrue(any(r['type'] == 3 and r['length'] >= 4 * sd.MIB for r in rows), rows)
                theirs = [m for m in json.loads(sd.qemu_img('map', '-U', '--output=json', image).stdout)
                          if m['data'] and not m['zero']]
                ours = [r for r in rows if r['type'] == 0]
                if fmt == 'raw':
                    self.assertEqual(sum(m['length'] for m in theirs), sum(r['length'] for r in ours))
                for r in ours:  # of clusters that were not written whole, we say what is a hole in the file
                    self.assertTrue(any(m['start'] <= r['offset'] and r['offset'] + r['length'] <= m['start'] + m['length']
                                        for m in theirs), (r, theirs))

    def test_unknown_export(self):
        d, _, _ = self.serve()
        p = sd.run('nbdinfo', sd.nbd_uri(d.nbd_socket, 'other'), check=False)
        self.assertNotEqual(0, p.returncode)
        sd.run('nbdinfo', sd.nbd_uri(d.nbd_socket, 'disk'))


class NbdCopy(Tools):
    def test_download(self):
        for fmt in ('raw', 'qcow2'):
            with self.subTest(fmt):
                _, image, uri = self.serve(fmt, writable=False)
                out = self.path('out.raw')
                sd.run('nbdcopy', uri, out)
                self.assertTrue(sd.run('cmp', out, self.as_raw(image, fmt)).returncode == 0)

    def as_raw(self, image, fmt):
        raw = self.path('reference.raw')
        sd.qemu_img('convert', '-U', '-f', fmt, '-O', 'raw', image, raw)
        return raw

    def test_upload(self):
        for fmt in ('raw', 'qcow2'):
            with self.subTest(fmt):
                d, image, uri = self.serve(fmt, data=())
                source = sd.create_image(self.path('source.raw'), 'raw', SIZE, data=DATA)
                sd.run('nbdcopy', '--flush', source, uri)
                d.shutdown()
                self.assertImagesEqual(source, image, 'raw', fmt)
                if fmt == 'qcow2':
                    sd.check_image(image)

    def test_upload_overwrites(self):
        """Holes of the source become zeroes over old data."""
        d, image, uri = self.serve('qcow2', data=[(0, SIZE, 0xee)])
        source = sd.create_image(self.path('source.raw'), 'raw', SIZE, data=DATA)
        sd.run('nbdcopy', '--flush', source, uri)
        d.shutdown()
        self.assertImagesEqual(source, image, 'raw', 'qcow2')
        sd.check_image(image)

    def test_four_connections(self):
        _, image, uri = self.serve()
        out = self.path('out.raw')
        sd.run('nbdcopy', '--connections=4', '--requests=64', uri, out)
        self.assertImagesEqual(out, self.as_raw(image, 'raw'), 'raw', 'raw')

    def test_between_two_daemons(self):
        _, image, source = self.serve()
        target = sd.create_image(self.path('target.qcow2'), 'qcow2', SIZE)
        other = self.daemon('--blockdev', f'qcow2,node-name=t,file.driver=file,file.filename={target}')
        sd.run('nbdcopy', '--flush', source, other.export('t', writable=True))
        other.shutdown()
        sd.qemu_io(target, *(f'read -q -P {byte} {start} {length}' for start, length, byte in DATA), fmt='qcow2')
        sd.check_image(target)


class QemuTools(Tools):
    def test_convert_out(self):
        for fmt in ('raw', 'qcow2'):
            with self.subTest(fmt):
                _, image, uri = self.serve(fmt, writable=False)
                out = self.path('out.qcow2')
                sd.qemu_img('convert', '-O', 'qcow2', uri, out)
                sd.qemu_io(out, *(f'read -q -P {byte} {start} {length}' for start, length, byte in DATA), fmt='qcow2')
                self.assertLess(os.stat(out).st_blocks * 512, 6 * sd.MIB)

    def test_convert_in(self):
        d, image, uri = self.serve('qcow2', data=[(0, SIZE, 0xee)])
        source = sd.create_image(self.path('source.raw'), 'raw', SIZE, data=DATA)
        sd.qemu_img('convert', '-n', '-f', 'raw', '-O', 'raw', source, uri)
        d.shutdown()
        self.assertImagesEqual(source, image, 'raw', 'qcow2')
        sd.check_image(image)

    def test_compare_and_map(self):
        _, image, uri = self.serve(writable=False)
        same = sd.create_image(self.path('same.qcow2'), 'qcow2', SIZE, data=DATA)
        self.assertTrue(sd.compare_images(uri, same, 'raw', 'qcow2'))
        sd.write_pattern(same, 'qcow2', (5, 1, 1))
        self.assertFalse(sd.compare_images(uri, same, 'raw', 'qcow2'))
        data = [(m['start'], m['length']) for m in sd.image_map(uri, 'raw') if m['data']]
        self.assertEqual([(m['start'], m['length']) for m in
                          json.loads(sd.qemu_img('map', '-U', '--output=json', '-f', 'raw', image).stdout) if m['data']], data)

    def test_qemu_io_commands(self):
        d, image, uri = self.serve('qcow2')
        sd.qemu_io(uri, 'write -P 1 0 1000', 'write -f -P 2 3000000 5000', 'write -z 1M 1M', 'write -z -u 2M 64k',
                   'discard 3M 128k', 'flush', 'read -P 1 0 1000', 'read -P 2 3000000 5000', 'read -P 0 1M 1M', fmt='raw')
        d.shutdown()
        sd.qemu_io(image, 'read -P 1 0 1000', 'read -P 0x11 1000 64000', 'read -P 2 3000000 5000', 'read -P 0 1M 1M',
                   'read -P 0 2M 64k', fmt='qcow2')
        sd.check_image(image)

    def test_past_the_end(self):
        _, _, uri = self.serve()
        p = sd.qemu_io(uri, f'write {SIZE} 512', f'read {SIZE - 512} 1024', 'read 0 512', fmt='raw', check=False)
        self.assertRegex(p.stdout, 'read 512/512')

    def test_read_only_is_refused(self):
        _, _, uri = self.serve(writable=False)
        self.assertNotEqual(0, sd.qemu_io(uri, 'write 0 512', fmt='raw', check=False).returncode)


class Fio(Tools):
    def test_verify(self):
        """fio writes a random pattern through the export and reads all of it back."""
        for fmt, options in (('raw', None), ('qcow2', None), ('qcow2', {'cluster_size': '4k'})):
            with self.subTest(fmt=fmt, options=options):
                d, image, uri = self.serve(fmt, data=(), options=options)
                sd.run('fio', '--name=verify', '--ioengine=nbd', f'--uri={uri}', '--rw=randwrite', '--bsrange=512-64k',
                       '--iodepth=32', f'--size={SIZE}', '--verify=crc32c', '--verify_fatal=1', '--do_verify=1',
                       '--randseed=3', '--verify_state_save=0', f'--output={self.path("log")}')
                d.shutdown()
                if fmt == 'qcow2':
                    sd.check_image(image)

    def test_mixed_with_trim(self):
        d, image, uri = self.serve('qcow2')
        sd.run('fio', '--name=mix', '--ioengine=nbd', f'--uri={uri}', '--rw=randrw', '--rwmixread=40', '--bs=4k',
               '--iodepth=64', f'--size={SIZE}', '--randseed=4', '--fsync=64', f'--output={self.path("log")}')
        sd.run('fio', '--name=trim', '--ioengine=nbd', f'--uri={uri}', '--rw=randtrim', '--bs=64k', '--iodepth=16',
               f'--size={SIZE}', '--randseed=4', f'--output={self.path("log")}')
        d.shutdown()
        sd.check_image(image)


class NbdKit(Tools):
    def test_as_proxy(self):
        """nbdkit's nbd plugin connects to us and serves us on: two hops keep the data."""
        d, image, uri = self.serve('qcow2')
        proxy = self.path('proxy')
        p = subprocess.Popen(['nbdkit', '-f', '-U', proxy, 'nbd', f'uri={uri}'], stdin=subprocess.DEVNULL)
        self.addCleanup(p.wait)
        self.addCleanup(p.terminate)
        deadline = time.monotonic() + sd.TIMEOUT
        while not os.path.exists(proxy) and time.monotonic() < deadline:
            time.sleep(0.01)
        with sd.nbd_connect(sd.nbd_uri(proxy)) as h:
            self.assertEqual(b'\x22' * 4096, h.pread(4096, sd.MIB))
            h.pwrite(b'\x55' * 4096, 0)
            h.zero(65536, 65536)
            h.trim(65536, 131072)
            h.flush()
        p.terminate()
        p.wait(sd.TIMEOUT)
        d.shutdown()
        sd.qemu_io(image, 'read -P 0x55 0 4096', 'read -P 0 65536 65536', fmt='qcow2')
        sd.check_image(image)

    def test_as_the_served_disk(self):
        """The other way round: our nbd driver on top of nbdkit's memory disk, exported again."""
        sock = self.path('kit')
        p = subprocess.Popen(['nbdkit', '-f', '-U', sock, 'memory', str(SIZE)], stdin=subprocess.DEVNULL)
        self.addCleanup(p.wait)
        self.addCleanup(p.terminate)
        deadline = time.monotonic() + sd.TIMEOUT
        while not os.path.exists(sock) and time.monotonic() < deadline:
            time.sleep(0.01)
        d = self.daemon('--blockdev', f'nbd,node-name=n,server.type=unix,server.path={sock}')
        self.assertEqual(SIZE, d.node('n')['image']['virtual-size'])
        with sd.nbd_connect(d.export('n', writable=True)) as h:
            h.pwrite(b'\x66' * 8192, 4096)
            h.zero(4096, 4096)
            self.assertEqual(bytes(4096) + b'\x66' * 4096, h.pread(8192, 4096))
        with sd.nbd_connect(sd.nbd_uri(sock)) as h:
            self.assertEqual(bytes(8192) + b'\x66' * 4096, h.pread(12288, 0))


if __name__ == '__main__':
    sd.main()
