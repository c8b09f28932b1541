"""Rows about how cost grows: with the depth of a chain, with jobs, with clients, with the size of a disk."""
import contextlib
import os
import random
import time

import servers
from rows import Copy, Fio, Row
from servers import OURS, QSD, sd

DEPTH = 200
CHAIN_SIZE = 256 * sd.MIB


def chain(work):
    """A chain of DEPTH images, each with a 64 KiB piece of the data, one below the other: the top's path."""
    top = work.path('tmpfs', f'chain-{DEPTH - 1}.qcow2')
    if os.path.exists(top):
        return top
    rng, below = random.Random(8), None
    pieces = rng.sample(range(CHAIN_SIZE // 65536), DEPTH)
    for i, piece in enumerate(pieces):
        path = work.path('tmpfs', f'chain-{i}.qcow2')
        sd.create_image(path, 'qcow2', CHAIN_SIZE, backing=below, backing_fmt='qcow2' if below else None,
                        data=[(0, CHAIN_SIZE, 1)] if not below else [(piece * 65536, 65536, 1 + i % 255)])
        below = path
    return top


class ChainOpen(Row):
    """Milliseconds of blockdev-add of an image with 199 backing files, which its header names one by one."""
    unit = 'ms'

    def prepare(self, work):
        self.top = chain(work)

    def measure(self, work, peer):
        with servers.daemon(peer) as d:
            start = time.monotonic()
            d.cmd('blockdev-add', driver='qcow2', node_name='top', file={'driver': 'file', 'filename': self.top})
            return (time.monotonic() - start) * 1e3


class ChainRead(Fio):
    """Random reads of the same; nearly all data lies at the bottom."""
    peers, span = (OURS, QSD), CHAIN_SIZE

    def prepare(self, work):
        self.top = chain(work)

    def measure(self, work, peer):
        with servers.nbd(peer, 'qcow2', self.top) as uri:
            return self.fio('--ioengine=nbd', f'--uri={uri}')['read']['iops']


class Mirrors(Row):
    """Seconds of 64 mirrors of 16 MiB each, all at once, from the first command to the last completion."""
    unit, COUNT, SIZE = 's', 64, 16 * sd.MIB

    def prepare(self, work):
        self.src = work.path('tmpfs', 'mirrors.raw')
        if not os.path.exists(self.src):
            with open(self.src, 'wb') as f:
                f.write(random.Random(9).randbytes(self.SIZE))

    def measure(self, work, peer):
        targets = [work.path('tmpfs', f'mirror-{i}') for i in range(self.COUNT)]
        with servers.daemon(peer) as d:
            for i, target in enumerate(targets):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(target)
                sd.create_image(target, 'raw', self.SIZE)
                for name, path in ((f's{i}', self.src), (f't{i}', target)):
                    d.cmd('blockdev-add', driver='raw', node_name=name, read_only=name[0] == 's',
                          file={'driver': 'file', 'filename': path, 'aio': 'io_uring', 'read-only': name[0] == 's'})
            start = time.monotonic()
            for i in range(self.COUNT):
                d.cmd('blockdev-mirror', job_id=f'j{i}', device=f's{i}', target=f't{i}', sync='full')
            for i in range(self.COUNT):
                d.complete(f'j{i}', timeout=600)
            seconds = time.monotonic() - start
        for target in targets[:1] + targets[-1:]:
            if not sd.compare_images(self.src, target, 'raw', 'raw'):
                raise AssertionError(f'{self.name}: source and target differ')
        return seconds


class IdleClients(Fio):
    """IOPS of one client while 1,000 others are connected and silent, beside what it gets alone."""
    peers, own, COUNT = (OURS, 'alone'), ('alone',), 1000

    def measure(self, work, peer):
        with contextlib.ExitStack() as stack:
            d = stack.enter_context(servers.daemon(OURS, *servers.blockdevs('n', 'raw', self.image(work, OURS))))
            d.nbd_server(max_connections=0)  # else no more than 100
            uri = d.export('n')
            if peer == OURS:
                for _ in range(self.COUNT):
                    stack.enter_context(sd.nbd_connect(uri))
            return self.fio('--ioengine=nbd', f'--uri={uri}')['read']['iops']


class HugeBitmap(Row):
    """A bitmap of 64 KiB granules over 16 TiB: to add it (ms); with 1 GiB dirty, what it takes (MiB), and to back that
    up (s)."""
    column = 'add'

    def measure(self, work, peer):
        null = 'null-co,size=17592186044416,read-zeroes=off'
        with servers.daemon(peer, '--blockdev', f'{null},node-name=a', '--blockdev', f'{null},node-name=b') as d:
            before, start = servers.memory_mib(d.pid, 'VmRSS'), time.monotonic()
            d.cmd('block-dirty-bitmap-add', node='a', name='dirty', granularity=65536)
            got = {'add': (time.monotonic() - start) * 1e3}
            if self.column != 'add':
                places = random.Random(7).sample(range(1 << 28), 1 << 14)
                with sd.nbd_connect(d.export('a', writable=True)) as h:
                    for place in places:
                        h.pwrite(b'd' * 65536, place << 16)
                count = d.bitmap('a', 'dirty')['count']
                if count != 1 << 30:
                    raise AssertionError(f'{count} bytes are dirty')
                got['memory'] = servers.memory_mib(d.pid, 'VmRSS') - before
                start = time.monotonic()
                d.cmd('blockdev-backup', job_id='j', device='a', target='b', sync='incremental', bitmap='dirty')
                d.wait_completed('j', timeout=600)
                got['incremental'] = time.monotonic() - start
            return got[self.column]


class PausedJobs(Row):
    """Percent of a processor that a daemon takes whose 8 jobs are paused, over two seconds."""
    unit, COUNT, SECONDS = '% CPU', 8, 2

    def measure(self, work, peer):
        with servers.daemon(peer) as d:
            for i in range(self.COUNT):
                for name in (f's{i}', f't{i}'):
                    d.cmd('blockdev-add', driver='null-co', node_name=name, size=1 << 40, read_zeroes=False)
                d.cmd('blockdev-mirror', job_id=f'j{i}', device=f's{i}', target=f't{i}', sync='full', speed=1 << 20)
                d.cmd('job-pause', id=f'j{i}')
            deadline = time.monotonic() + sd.TIMEOUT
            while not all(d.job(f'j{i}')['status'] == 'paused' for i in range(self.COUNT)):
                if time.monotonic() > deadline:
                    raise AssertionError('a job does not pause')
                time.sleep(0.05)
            cpu = servers.cpu_seconds(d.pid)
            time.sleep(self.SECONDS)
            percent = (servers.cpu_seconds(d.pid) - cpu) / self.SECONDS * 100
            for i in range(self.COUNT):
                d.cmd('block-job-cancel', device=f'j{i}', force=True)
            return percent


class Nbdcopy(Row):
    """Seconds of nbdcopy of 1 GiB to nowhere over four connections, beside the same over one."""
    unit, peers, own = 's', (OURS, 'one'), ('one',)

    def prepare(self, work):
        self.src = work.random_raw('tmpfs')

    def measure(self, work, peer):
        with servers.nbd(OURS, 'raw', self.src) as uri:
            start = time.monotonic()
            sd.run('nbdcopy', f'--connections={1 if peer == "one" else 4}', uri, 'null:', timeout=600)
            return time.monotonic() - start


def rows():
    yield ChainOpen('chain-200-open', goal='<= 1x qsd')
    yield ChainRead('chain-200-randread', goal='>= 1x qsd')
    yield Mirrors('mirrors-64', goal='<= 1x qsd')
    yield IdleClients('clients-1000-idle', goal='>= 0.9x alone')
    yield HugeBitmap('bitmap-16T-add', unit='ms', goal='<= 1x qsd')
    yield HugeBitmap('bitmap-16T-memory', unit='MiB', column='memory', goal='<= 1x qsd')
    yield HugeBitmap('bitmap-16T-incremental', unit='s', column='incremental', goal='<= 1x qsd')
    yield PausedJobs('paused-jobs', goal='0 % CPU')
    yield Nbdcopy('nbdcopy-4-connections', goal='<= 1x one connection')
