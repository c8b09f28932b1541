"""kill -9 at random moments under load, 200 times: the image opens, the checker finds leaks at worst, and each block holds
what was flushed or something newer (LAW 9). Then the same image goes on.

KILLS=N makes it another number, SEED=N another sequence.
"""
import concurrent.futures
import os
import random
import subprocess
import threading
import time

import nbd
import sd

SANITIZED = 'SD_TIMEOUT' in os.environ  # make check-asan
KILLS, SEED = int(os.environ.get('KILLS', '40' if SANITIZED else '200')), int(os.environ.get('SEED', '1'))
SECTOR, BLOCK, BLOCKS, DEPTH = 512, 4096, 1024, 16
LIVES = 10  # of one image
IMAGES = (  # options of qemu-img create, of the node
    ('', ''),
    ('cluster_size=4k', ',l2-cache-entry-size=512,l2-cache-size=2048'),
    ('extended_l2=on,cluster_size=32k', ''),
    ('cluster_size=512,refcount_bits=64', ''),
    ('cluster_size=2k,compat=0.10', ',cache.direct=off'),
)


class Block:
    """What the sectors of one block may hold: the last value that a flush covers (several, when the last daemon died
    while it wrote), and all that were issued since."""

    def __init__(self):
        self.floor, self.newer = {0}, []  # newer: [[stamp, completed?, optional?]] in order of submission

    def issue(self, stamp, optional=False):
        self.newer.append([stamp, False, optional])
        return self.newer[-1]

    def allowed(self):
        return self.floor | {n[0] for n in self.newer}

    def covered(self, last):
        """A flush that was submitted when @last had completed has completed."""
        at = next((i for i, n in enumerate(self.newer) if n is last), None)
        if at is not None:
            self.floor = {last[0]}
            del self.newer[:at + 1]


class Life:
    """One image through some daemons, each of which is killed."""

    def __init__(self, case, number):
        self.case, self.rng = case, random.Random(SEED * 100003 + number)
        self.create, self.node = IMAGES[number % len(IMAGES)]
        self.path, self.socket = case.path(f'{number}.qcow2'), case.path(f'{number}.sock')
        sd.qemu_img('create', '-q', '-f', 'qcow2', *(['-o', self.create] if self.create else []), self.path,
                    str(BLOCK * BLOCKS))
        self.blocks, self.stamp, self.requests = [Block() for _ in range(BLOCKS)], 0, 0

    def connect(self, process):
        deadline = time.monotonic() + 60
        while True:
            h = nbd.NBD()
            try:
                h.connect_uri(f'nbd+unix:///q?socket={self.socket}')
                return h
            except nbd.Error as e:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f'{self.path}: no daemon: {e}: {process.stderr.read()}') from e
                time.sleep(0.005)

    def start(self):
        if os.path.exists(self.socket):
            os.remove(self.socket)
        return subprocess.Popen(
            [sd.DAEMON, '--blockdev', f'qcow2,node-name=q,discard=unmap,file.driver=file,file.filename={self.path}{self.node}',
             '--nbd-server', f'addr.type=unix,addr.path={self.socket}',
             '--export', 'type=nbd,id=e,node-name=q,name=q,writable=on'],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def verify(self, h):
        data = h.pread(BLOCK * BLOCKS, 0)
        for i, block in enumerate(self.blocks):
            found = set()
            for at in range(i * BLOCK, (i + 1) * BLOCK, SECTOR):
                got = bytes(data[at:at + SECTOR])
                self.case.assertEqual(got[:8] * (SECTOR // 8), got, f'{self.path}: sector at {at} is a mixture')
                found.add(int.from_bytes(got[:8], 'little'))
            self.case.assertLessEqual(found, block.allowed(), f'{self.path}: block {i}')
            block.floor, block.newer = found, []  # the host did not die: what the file has it keeps

    def load(self, h):
        """Requests until the connection is gone."""
        busy, flying = set(), [0]

        def done(i, entry):
            def callback(error):
                flying[0] -= 1
                busy.discard(i)
                if not error.value:
                    entry[1] = True
                return 1
            return callback

        def flushed(last):
            def callback(error):
                flying[0] -= 1
                if not error.value:
                    for i, entry in last:
                        self.blocks[i].covered(entry)
                return 1
            return callback

        def certain(block):
            """The last that has completed, with nothing open before it."""
            best = None
            for n in block.newer:
                if n[1] and not n[2]:
                    best = n
            return best

        while True:
            while flying[0] < DEPTH:
                flying[0] += 1
                self.requests += 1
                kind = self.rng.randrange(100)
                if kind < 8:
                    last = [(i, e) for i, b in enumerate(self.blocks) if b.newer and (e := certain(b))]
                    h.aio_flush(flushed(last))
                    continue
                i = self.rng.randrange(BLOCKS)
                while i in busy:
                    i = self.rng.randrange(BLOCKS)
                busy.add(i)
                self.stamp += 1
                if kind < 18:
                    h.aio_zero(BLOCK, i * BLOCK, done(i, self.blocks[i].issue(0)),
                               nbd.CMD_FLAG_NO_HOLE if kind % 2 else 0)
                elif kind < 25:
                    h.aio_trim(BLOCK, i * BLOCK, done(i, self.blocks[i].issue(0, optional=True)))
                else:
                    data = bytearray(self.stamp.to_bytes(8, 'little') * (BLOCK // 8))
                    h.aio_pwrite(nbd.Buffer.from_bytearray(data), i * BLOCK, done(i, self.blocks[i].issue(self.stamp)))
            h.poll(-1)

    def once(self):
        process = self.start()
        killer = None
        try:
            h = self.connect(process)
            self.verify(h)
            killer = threading.Timer(self.rng.uniform(0, 0.08), process.kill)
            killer.start()
            try:
                self.load(h)
            except nbd.Error:
                pass
            killer.join()
        finally:
            if killer:
                killer.cancel()
            process.kill()
            process.wait()
            process.stderr.close()
        self.case.assertEqual(-9, process.returncode)
        for argv in ((sd.DAEMON, '--check', self.path), ('qemu-img', 'check', '-f', 'qcow2', self.path)):
            sd.wait_unlocked(self.path)
            p = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
            self.case.assertIn(p.returncode, (0, 3), f'{argv}:\n{p.stdout}')


class Kill(sd.Case):
    CASE_TIMEOUT = 390

    def life(self, number):
        life = Life(self, number)
        lives = min(LIVES, KILLS - number * LIVES)
        for _ in range(lives):
            life.once()
        os.remove(life.path)
        return lives, life.requests

    def test_under_load(self):
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            results = list(pool.map(self.life, range(-(-KILLS // LIVES))))
        self.assertEqual(KILLS, sum(r[0] for r in results))
        print(f'{KILLS} kills, {sum(r[1] for r in results)} requests')
        self.assertGreater(sum(r[1] for r in results), KILLS * 20)


if __name__ == '__main__':
    sd.main()
