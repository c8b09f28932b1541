"""Logs that a daemon wrote, below a format and above it, replayed by crash-replay: `--log`, `--image`, `--guest-log`."""
import os
import random
import re
import shutil
import struct
import subprocess
import unittest

import nbd
import sd

PROGRAM = os.path.join(sd.BUILD, 'tests/fault/crash-replay')
SIZE, BLOCK, DEPTH = 2 * sd.MIB, 4096, 8
STATES = 150 if 'SD_TIMEOUT' in os.environ else 400
MARK, DISCARD = 8, 4
IMAGES = (('qcow2', ''), ('qcow2', 'cluster_size=4k,extended_l2=off,lazy_refcounts=on'), ('qed', 'cluster_size=4096'))


def replay(*argv, states=STATES):
    """(exit code, what it said)"""
    p = subprocess.run([PROGRAM, '--states', str(states), '--keep', os.path.join(os.environ.get('TMPDIR', '/tmp'), 'kept'),
                        *argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace')
    return p.returncode, p.stdout


class Log(sd.Case):
    CASE_TIMEOUT = 8 * sd.TIMEOUT

    def create(self, fmt='qcow2', options=''):
        """An image with a copy of what it holds before it is used."""
        image = self.path(f'a.{fmt}')
        sd.qemu_img('create', '-q', '-f', fmt, *(['-o', options] if options else []), image, str(SIZE))
        sd.qemu_io(image, 'write -q -P 7 256k 300k', fmt=fmt)
        shutil.copy(image, self.path('before'))
        for name in ('disk.log', 'guest.log'):
            open(self.path(name), 'w').close()
        return image

    def logged(self, file, log, **more):
        return {'driver': 'blklogwrites', 'log-order': True, 'discard': 'unmap', 'file': file,
                'log': {'driver': 'file', 'filename': self.path(log)}, **more}

    def open(self, d, image, fmt='qcow2'):
        """Node g, the guest's: log over format over log over file."""
        below = self.logged({'driver': 'file', 'filename': image}, 'disk.log')
        d.cmd('blockdev-add', self.logged({'driver': fmt, 'node-name': 'q', 'discard': 'unmap', 'file': below},
                                          'guest.log', **{'node-name': 'g'}))

    def requests(self, uri, seed, n=120):
        """Writes, zeroes, discards and flushes, several at a time."""
        rng = random.Random(seed)
        with sd.nbd_connect(uri) as h:
            flying = {}  # cookie: (first block, blocks, buffer)

            def wait(done):
                while not done():
                    h.poll(-1)
                    for c in [c for c in flying if h.aio_command_completed(c)]:
                        del flying[c]

            for _ in range(n):
                first, blocks, buf = rng.randrange(SIZE // BLOCK - 16), rng.randrange(1, 12), None
                wait(lambda: len(flying) < DEPTH and not any(first < b + m and b < first + blocks
                                                             for b, m, _ in flying.values()))
                what, at, size = rng.random(), first * BLOCK, blocks * BLOCK
                if what < 0.1:
                    cookie, blocks = h.aio_flush(), 0
                elif what < 0.2:
                    cookie = h.aio_trim(size, at)
                elif what < 0.3:
                    cookie = h.aio_zero(size, at)
                else:
                    buf = nbd.Buffer.from_bytearray(bytearray(rng.randbytes(size)))
                    cookie = h.aio_pwrite(buf, at, flags=nbd.CMD_FLAG_FUA if what > 0.97 else 0)
                flying[cookie] = (first, blocks, buf)
            wait(lambda: not flying)
            h.flush()

    def files(self, fmt='qcow2'):
        return ('--format', fmt, '--log', self.path('disk.log'), '--image', self.path('before'),
                '--guest-log', self.path('guest.log'))

    def assertGood(self, *argv):
        code, said = replay(*argv)
        self.assertEqual(0, code, said)
        self.assertGreater(int(re.findall(r'(\d+) of \d+ distinct states', said)[-1]), 30, said)

    def test_export(self):
        for i, (fmt, options) in enumerate(IMAGES):
            with self.subTest(fmt=fmt, options=options):
                image = self.create(fmt, options)
                d = self.daemon()
                self.open(d, image, fmt)
                self.requests(d.export('g', writable=True), i)
                d.shutdown()
                self.assertGood(*self.files(fmt))
                self.assertGood(*self.files(fmt)[:-2])  # what the guest did is not needed for judging the image alone

    def test_killed(self):
        """Logs end with the last flush that a killed daemon did."""
        image = self.create()
        d = self.daemon()
        self.open(d, image)
        self.requests(d.export('g', writable=True), 5)
        d.kill(image)
        self.assertGood(*self.files())

    def test_job(self):
        """A mirror's target, with data that does not repeat, then a new size."""
        source = sd.create_image(self.path('s.raw'), 'raw', SIZE)
        with open(source, 'r+b') as f:
            f.write(random.Random(3).randbytes(SIZE // 2))
        image = self.create()
        d = self.daemon()
        self.open(d, image)
        d.cmd('blockdev-add', driver='raw', node_name='s', file={'driver': 'file', 'filename': source})
        d.cmd('blockdev-mirror', job_id='m', device='s', target='g', sync='full')
        d.complete('m')
        d.shutdown()
        self.assertGood(*self.files())

    def test_missing_flush(self):
        """The same log without the completions of flushes is that of a disk that had promised too much."""
        image = self.create()
        d = self.daemon()
        self.open(d, image)
        self.requests(d.export('g', writable=True), 9)
        d.shutdown()
        self.forget_flushes(self.path('disk.log'))
        code, said = replay(*self.files())
        self.assertEqual(1, code, said)
        self.assertRegex(said, 'neither flushed nor newer|does not open|corruptions')

    @staticmethod
    def forget_flushes(path):
        with open(path, 'rb') as f:
            log = bytearray(f.read())
        _, _, n, sector = struct.unpack_from('<QQQI', log)
        at, submitted, flushes = sector, None, set()
        for _ in range(n):
            _, count, flags, length = struct.unpack_from('<QQQQ', log, at)
            text = log[at + 32:at + 32 + length].decode() if flags & MARK else ''
            if flags & MARK and text.startswith('sd submit'):
                submitted = text.split()[2]
            elif flags & MARK and text.startswith('sd complete') and text.split()[4] in flushes:
                log[at + 32:at + 34] = b'xx'
            elif not flags & MARK and flags & 1:
                flushes.add(submitted)
            at += sector * (1 + (0 if flags & (MARK | DISCARD) else count))
        assert flushes
        with open(path, 'wb') as f:
            f.write(log)

    def test_refused(self):
        """What cannot be replayed is refused by its name."""
        image, over = self.create(), self.path('over.qcow2')
        sd.qemu_img('create', '-q', '-f', 'qcow2', '-b', image, '-F', 'qcow2', over)
        plain = self.path('plain.log')
        open(plain, 'w').close()
        d = self.daemon()
        d.cmd('blockdev-add', self.logged({'driver': 'file', 'filename': image}, 'plain.log',
                                          **{'node-name': 'n', 'log-order': False}))
        with sd.nbd_connect(d.export('n', writable=True)) as h:
            h.pwrite(bytes(512), 0)
            h.flush()
        d.shutdown()
        before = self.path('before')
        for code, text, argv in ((2, 'belong together', ('--log', plain)),
                                 (2, 'cannot be read', ('--log', self.path('none'), '--image', before)),
                                 (2, "not 'vmdk'", ('--log', plain, '--image', before, '--format', 'vmdk')),
                                 (2, 'backing file', ('--log', plain, '--image', over)),
                                 (1, 'log-order=on', ('--log', plain, '--image', before)),
                                 (1, 'not a log', ('--log', before, '--image', before))):
            with self.subTest(text=text):
                got, said = replay(*argv, '--jobs', '1')
                self.assertEqual(code, got, said)
                self.assertIn(text, said)


if __name__ == '__main__':
    sd.main()
