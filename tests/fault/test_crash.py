"""SIGKILL at bad moments: images open again with leaks at worst, and what was flushed is there (LAW 9)."""
import json
import os
import random
import shutil
import threading
import time

import nbd
import sd

SIZE = 64 * sd.MIB
BLOCK = 4096


class Crash(sd.Case):
    def assertOpens(self, path, fmt='qcow2'):
        """qemu-img check may find leaked clusters, nothing worse."""
        p = sd.qemu_img('check', '--output=json', '-f', fmt, path, check=False)
        self.assertTrue(p.stdout, p.stderr)
        report = json.loads(p.stdout)
        self.assertEqual((0, 0), (report.get('corruptions', 0), report['check-errors']), report)

    def write_until_killed(self, d, path, uri, seed, moment):
        """Writes blocks at random, flushes now and then, kills the daemon @moment seconds after two flushes. For each
        block, what a reader may find: {block: set of stamps}, the last flushed one and all written since."""
        rng = random.Random(seed)
        allowed, since_flush = {}, {}
        killer = threading.Timer(moment, d.kill, [path])
        try:
            with sd.nbd_connect(uri) as h:
                for stamp in range(1, 1 << 20):
                    if stamp == 130:  # two flushes on
                        killer.start()
                    block = rng.randrange(SIZE // BLOCK)
                    since_flush.setdefault(block, set()).add(stamp)  # even if it fails: it may be half-way down
                    h.pwrite(self.content(block, stamp), block * BLOCK, nbd.CMD_FLAG_FUA if stamp % 50 == 0 else 0)
                    if stamp % 50 == 0:  # FUA covers that block
                        allowed[block] = {stamp}
                        since_flush.pop(block)
                    if stamp % 64 == 0:
                        h.flush()
                        for b, stamps in since_flush.items():
                            allowed[b] = {max(stamps)}
                        since_flush = {}
        except (nbd.Error, OSError):
            pass
        killer.join()
        self.assertGreater(len(allowed), 60)
        for block, stamps in since_flush.items():
            allowed[block] = allowed.get(block, {0}) | stamps
        return allowed

    @staticmethod
    def content(block, stamp):
        return (block << 32 | stamp).to_bytes(8, 'little') * (BLOCK // 8) if stamp else bytes(BLOCK)

    def assertHolds(self, path, allowed, fmt='qcow2'):
        raw = self.path('after.raw')
        sd.qemu_img('convert', '-f', fmt, '-O', 'raw', path, raw)
        with open(raw, 'rb') as f:
            for block, stamps in allowed.items():
                f.seek(block * BLOCK)
                got = f.read(BLOCK)
                self.assertTrue(any(got == self.content(block, s) for s in stamps),
                                f'block {block} holds {got[:16].hex()}, none of {stamps}')

    def kill_and_open(self, fmt, moments):
        for i, moment in enumerate(moments):
            with self.subTest(moment=moment):
                path = sd.create_image(self.path(f'{i}.{fmt}'), fmt, SIZE)
                d = self.daemon('--blockdev', f'{fmt},node-name=q,file.driver=file,file.filename={path}')
                allowed = self.write_until_killed(d, path, d.export('q', writable=True), i, moment)
                self.assertOpens(path, fmt)
                self.assertHolds(path, allowed, fmt)
                yield path, allowed
                again = self.daemon('--blockdev', f'{fmt},node-name=q,file.driver=file,file.filename={path}')
                with sd.nbd_connect(again.export('q', writable=True)) as h:
                    h.pwrite(bytes(BLOCK), 0)
                    h.flush()
                again.shutdown()
                self.assertOpens(path, fmt)

    def test_during_nbd_writes(self):
        for _ in self.kill_and_open('qcow2', (0.05, 0.17, 0.32)):
            pass

    def test_qed_is_repaired(self):
        """It says that it was not closed; opening it for writing makes it an image that was."""
        for path, allowed in self.kill_and_open('qed', (0.05, 0.17, 0.32)):
            self.assertEqual(2, self.features(path))
            theirs = shutil.copy(path, self.path('theirs.qed'))
            sd.qemu_io(theirs, 'write -P 7 0 4k', fmt='qed')  # QEMU repairs as well
            self.assertEqual(0, self.features(theirs))
            self.assertOpens(theirs, 'qed')
            d = self.daemon('--blockdev', f'qed,node-name=q,read-only=on,file.driver=file,file.filename={path}')
            d.shutdown()
            self.assertEqual(2, self.features(path))  # not for readers
            d = self.daemon('--blockdev', f'qed,node-name=q,file.driver=file,file.filename={path}')
            self.assertEqual(0, self.features(path))
            d.shutdown()
            self.assertOpens(path, 'qed')
            self.assertHolds(path, allowed, 'qed')

    @staticmethod
    def features(path):
        with open(path, 'rb') as f:
            return int.from_bytes(f.read(24)[16:], 'little')

    def test_during_mirror(self):
        """The source of a killed mirror is as good as that of any killed daemon; the target opens."""
        source = sd.create_image(self.path('s.qcow2'), 'qcow2', SIZE, data=[(0, SIZE, 0x77)])
        target = sd.create_image(self.path('t.qcow2'), 'qcow2', SIZE)
        d = self.daemon(*(w for n, p in (('s', source), ('t', target)) for w in
                          ('--blockdev', f'qcow2,node-name={n},file.driver=file,file.filename={p}')))
        d.cmd('blockdev-mirror', job_id='m', device='s', target='t', sync='full', speed=40 * sd.MIB)
        time.sleep(0.4)
        d.kill(source, target)
        for path in (source, target):
            self.assertOpens(path)
        sd.qemu_io(source, f'read -q -P 0x77 0 {SIZE}', fmt='qcow2')

    def test_client_killed(self):
        """A client that dies in mid-request costs nobody else anything."""
        path = sd.create_image(self.path('a.img'), 'raw', SIZE)
        d = self.daemon('--blockdev', f'raw,node-name=r,file.driver=file,file.filename={path}')
        uri = d.export('r', writable=True)
        with sd.nbd_connect(uri) as steady:
            for _ in range(10):
                pid = os.fork()
                if pid == 0:
                    try:
                        h = nbd.NBD()
                        h.connect_uri(uri)
                        for i in range(200):
                            h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b'z' * 65536)), i * 65536)
                        os.kill(os.getpid(), 9)
                    finally:
                        os._exit(1)
                os.waitpid(pid, 0)
                steady.pwrite(b'y' * BLOCK, SIZE - BLOCK)
                self.assertEqual(b'y' * BLOCK, steady.pread(BLOCK, SIZE - BLOCK))
        d.shutdown()


if __name__ == '__main__':
    sd.main()
