"""Random I/O through our NBD export against a flat file in memory, in every kind of image, with the daemon started anew
in between; at the end qemu-img reads the same and finds nothing wrong. SD_SEED=N makes another run, SD_OPS=N a longer one."""
import os
import random

import sd

SIZE = 3 * sd.MIB + 512 * 5
OPS = int(os.environ.get('SD_OPS', 100))
SEED = int(os.environ.get('SD_SEED', 1))


class Model:
    """Keeps requests in flight that do not overlap, and knows what each byte must read."""

    def __init__(self, case, data, rng):
        self.case, self.data, self.rng = case, data, rng
        self.unit = 1  # what the server says requests are to be aligned to
        self.flying = []  # (handle, cookie, start, end, what, buffer)

    def place(self):
        rng = self.rng
        start, length = rng.choice((
            lambda: (rng.randrange(SIZE // 512) * 512, rng.choice((512, 4096, 512 * rng.randint(1, 60)))),
            lambda: (rng.randrange(SIZE), rng.randint(1, 20000)),
            lambda: (rng.randrange(SIZE // 65536) * 65536, 65536 * rng.randint(1, 5)),
            lambda: (rng.randrange(SIZE // 4096) * 4096, 4096)))()
        start -= start % self.unit
        return start, min(start + length + -length % self.unit, SIZE)

    def wait(self, overlapping=None):
        """Until nothing that overlaps is in flight (None: nothing at all)."""
        rest = []
        for handle, cookie, start, end, what, buf in self.flying:
            if overlapping and (end <= overlapping[0] or overlapping[1] <= start):
                rest.append((handle, cookie, start, end, what, buf))
                continue
            while not handle.aio_command_completed(cookie):
                handle.poll(-1)
            if what == 'read':
                self.case.assertTrue(buf.to_bytearray() == self.data[start:end],
                                     f'what was read at {start}+{end - start} is not what was written')
        self.flying = rest

    def trim(self, handle, start, end):
        """A hint: each sector reads as before or as zeroes afterwards, and so it stays."""
        import nbd
        handle.trim(end - start, start, nbd.CMD_FLAG_FUA if self.rng.random() < .1 else 0)
        got = handle.pread(end - start, start)
        for at in range(start, end):
            if got[at - start] != self.data[at]:
                self.case.assertEqual(0, got[at - start], f'byte {at} after a trim')
        self.data[start:end] = got

    def status(self, handle, start, end):
        """What is said to read as zeroes does."""
        found = []
        handle.block_status(end - start, start, lambda name, at, entries, error: found.append((at, list(entries))) or 0)
        self.case.assertTrue(found)
        for at, entries in found:
            for length, flags in zip(entries[::2], entries[1::2]):
                self.case.assertGreater(length, 0)
                stop = min(at + length, SIZE)
                if flags & 2:
                    self.case.assertEqual(0, sum(self.data[at:stop]), f'{at}+{length} is said to be zero')
                at += length

    def step(self, handle):
        import nbd
        what = self.rng.choices(('write', 'zero', 'read', 'trim', 'status', 'flush'), (40, 18, 25, 7, 6, 4))[0]
        start, end = self.place()
        self.wait((start, end))
        flags = nbd.CMD_FLAG_FUA if self.rng.random() < .05 else 0
        if what == 'write':
            buf = self.rng.randbytes(end - start) if self.rng.random() < .9 else bytes(end - start)
            self.data[start:end] = buf
            keep = nbd.Buffer.from_bytearray(bytearray(buf))
            self.flying.append((handle, handle.aio_pwrite(keep, start, flags=flags), start, end, what, keep))
        elif what == 'zero':
            self.data[start:end] = bytes(end - start)
            flags |= nbd.CMD_FLAG_NO_HOLE if self.rng.random() < .5 else 0
            self.flying.append((handle, handle.aio_zero(end - start, start, flags=flags), start, end, what, None))
        elif what == 'read':
            buf = nbd.Buffer(end - start)
            self.flying.append((handle, handle.aio_pread(buf, start), start, end, what, buf))
        elif what == 'trim':
            self.trim(handle, start, end)
        elif what == 'status':
            self.status(handle, start, end)
        else:
            handle.flush()

    def read_all(self, handle):
        self.wait()
        for at in range(0, SIZE, sd.MIB):
            n = min(sd.MIB, SIZE - at)
            self.case.assertTrue(handle.pread(n, at) == self.data[at:at + n], f'the MiB at {at} is not what was written')


class NbdModel(sd.Case):
    def run_model(self, make, secret=()):
        """@make: makes the image at a path; its node's options in words of --blockdev, its format, how it begins."""
        import nbd
        rng = random.Random(f'{SEED} {self.id()}')
        data = bytearray(SIZE)
        path = self.path('image')
        options, fmt, begin = make(path)
        if begin:
            data[:len(begin)] = begin
        model = Model(self, data, rng)
        for _ in range(3):
            d = self.daemon(*secret, '--blockdev', f'{options},node-name=q,discard=unmap,file.driver=file,'
                            f'file.filename={path}')
            uri = d.export('q', writable=True)
            with sd.nbd_connect(uri, meta=['base:allocation']) as a, sd.nbd_connect(uri, meta=['base:allocation']) as b:
                self.assertEqual(SIZE, a.get_size())
                model.unit = a.get_block_size(nbd.SIZE_MINIMUM) or 1
                for _ in range(OPS):
                    model.step(rng.choice((a, b)))
                    if len(model.flying) > 12:
                        model.wait()
                model.read_all(a)
                if rng.random() < .5:
                    b.flush()
            d.shutdown()
        image = f'{options},discard=unmap,file.driver=file,file.filename={path}'
        if fmt == 'qcow2':
            sd.qemu_img('check', *secret, '--image-opts', image)
        sd.qemu_img('convert', *secret, '--image-opts', '-O', 'raw', image, self.path('got'))
        with open(self.path('got'), 'rb') as got:
            self.assertTrue(got.read() == data, 'qemu-img reads something else')

    def qcow2(self, words='', base=None, node='', compressed=False, **options):
        def make(path):
            begin = None
            if base or compressed:
                below = random.Random(7).randbytes(SIZE // 2) + b'again ' * (SIZE // 12)
                with open(self.path('below'), 'wb') as f:
                    f.write(below[:SIZE - SIZE % 512])
                begin = below[:SIZE - SIZE % 512]
            if base:
                sd.qemu_img('convert', '-f', 'raw', '-O', base, self.path('below'), self.path('base'))
            if compressed:
                sd.qemu_img('convert', '-c', '-f', 'raw', '-O', 'qcow2', '-o', ','.join(f'{k}={v}' for k, v in options.items()),
                            self.path('below'), path)
                sd.qemu_img('resize', '-f', 'qcow2', path, str(SIZE))
            else:
                sd.create_image(path, 'qcow2', SIZE, backing=self.path('base') if base else None, backing_fmt=base,
                                options=options)
            return 'driver=qcow2' + node, 'qcow2', begin
        return make

    def test_raw(self):
        def make(path):
            sd.create_image(path, 'raw', SIZE)
            return 'driver=raw', 'raw', None
        self.run_model(make)

    def test_qed(self):
        def make(path):
            sd.create_image(path, 'qed', SIZE // 512 * 512)
            return 'driver=qed', 'qed', None
        self.run_model(make)

    def test_64k(self):
        self.run_model(self.qcow2())

    def test_512_small_caches(self):
        self.run_model(self.qcow2(cluster_size=512, refcount_bits=64,
                                  node=',l2-cache-entry-size=512,l2-cache-size=1024,refcount-cache-size=2048'))

    def test_2m(self):
        self.run_model(self.qcow2(cluster_size='2M'))

    def test_version_2(self):
        self.run_model(self.qcow2(cluster_size=4096, compat='0.10'))

    def test_backing(self):
        self.run_model(self.qcow2(base='qcow2', cluster_size=16384))

    def test_backing_version_2(self):
        self.run_model(self.qcow2(base='raw', cluster_size=1024, compat='0.10'))

    def test_compressed(self):
        self.run_model(self.qcow2(compressed=True, cluster_size=8192))

    def test_compressed_zstd(self):
        self.run_model(self.qcow2(compressed=True, compression_type='zstd'))

    def test_lazy_refcounts(self):
        self.run_model(self.qcow2(lazy_refcounts='on', cluster_size=4096))

    def test_preallocated(self):
        self.run_model(self.qcow2(preallocation='metadata', cluster_size=4096))

    def test_detect_zeroes(self):
        self.run_model(self.qcow2(cluster_size=4096, node=',detect-zeroes=unmap'))

    def test_data_file(self):
        self.run_model(self.qcow2(data_file=self.path('data'), cluster_size=4096))

    def test_raw_data_file(self):
        self.run_model(self.qcow2(data_file=self.path('data'), data_file_raw='on'))
        with open(self.path('data'), 'rb') as f, open(self.path('got'), 'rb') as want:
            self.assertTrue(f.read()[:SIZE] == want.read(), 'the data file by itself is the disk')

    def test_luks(self):
        def make(path):
            sd.qemu_img('create', '-q', '-f', 'qcow2', '--object', 'secret,id=s,data=x', '-o',
                        'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=20,cluster_size=4096', path, str(SIZE))
            return 'driver=qcow2,encrypt.format=luks,encrypt.key-secret=s', 'qcow2', None
        self.run_model(make, ('--object', 'secret,id=s,data=x'))


if __name__ == '__main__':
    sd.main()
