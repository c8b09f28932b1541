"""The rows of the table: what is measured, on whom, and what it is to reach.

A row measures each peer once a round, by turns; bench.py takes medians and makes ratios. measure(work, peer) returns one
number, or a dict of them for a row with several columns; prepare(work) makes what all rounds use.
"""
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time

import servers
from servers import CEILING, NBDKIT, OURS, OWN_RAW, QSD, sd

RUNTIME = float(os.environ.get('RUNTIME', '2'))  # of one fio run, seconds
FILE_SIZE = sd.GIB


class Row:
    unit, lower_is_better, peers, goal = '', True, (OURS, QSD), ''
    own = ()  # those of peers that the row makes itself: no program of that name is looked for

    def __init__(self, name, **more):
        self.name = name
        self.__dict__.update(more)

    def prepare(self, work):
        pass

    def measure(self, work, peer):
        raise NotImplementedError


class Work:
    """Where a run keeps its files: @tmpfs in memory, @disk on a real file system. Sources are made once."""

    def __init__(self, tmpfs, disk):
        self.dirs = {'tmpfs': tmpfs, 'disk': disk}

    def path(self, place, name):
        return os.path.join(self.dirs[place], name)

    def random_raw(self, place, size=FILE_SIZE):
        """A file of @size random bytes with a fixed seed."""
        path = self.path(place, f'random-{size}.raw')
        if not os.path.exists(path):
            rng = random.Random(5)
            with open(path, 'wb') as f:
                for _ in range(size // (4 * sd.MIB)):
                    f.write(rng.randbytes(4 * sd.MIB))
        return path

    def random_qcow2(self, place, size=FILE_SIZE):
        path = self.path(place, f'random-{size}.qcow2')
        if not os.path.exists(path):
            sd.qemu_img('convert', '-f', 'raw', '-O', 'qcow2', self.random_raw(place, size), path)
        return path

    def source(self, place, fmt):
        return self.random_raw(place) if fmt == 'raw' else self.random_qcow2(place)


class Fio(Row):
    """IOPS over one NBD connection, by fio's nbd engine."""
    unit, lower_is_better, peers = 'IOPS', False, (OURS, QSD, NBDKIT)
    place, fmt, rw, bs, depth, direct = 'tmpfs', 'raw', 'randread', '4k', 64, False
    span = FILE_SIZE  # of what requests reach

    def image(self, work, peer):
        """A peer's own copy, so that none reads what another wrote."""
        if self.fmt == 'null' or peer == CEILING:
            return None
        path = work.path(self.place, f'{peer}.{self.fmt}')
        if not os.path.exists(path):
            sd.run('cp', work.source(self.place, self.fmt), path)
        return path

    def fio(self, *target, rw=None, more=()):
        p = sd.run('fio', '--name=row', f'--rw={rw or self.rw}', f'--bs={self.bs}', f'--iodepth={self.depth}',
                   '--randseed=5', '--output-format=json', *target, *(more or ('--time_based', f'--runtime={RUNTIME}',
                   '--ramp_time=0.3')), f'--size={self.span}')
        return json.loads(p.stdout[p.stdout.index('{'):])['jobs'][0]

    def measure(self, work, peer):
        image = self.image(work, peer)
        if peer == 'fio':
            job = self.fio('--ioengine=io_uring', '--direct=1', f'--filename={image}')
        else:
            with servers.nbd(peer, self.fmt, image, self.direct) as uri:
                job = self.fio('--ioengine=nbd', f'--uri={uri}')
        if job['error']:
            raise AssertionError(f'fio: error {job["error"]}')
        return job['read' if 'read' in self.rw else 'write']['iops']

    def verify(self, work, peer):
        """Once, untimed: what is written over NBD is what is read back, every block of it."""
        if self.fmt != 'null' and peer not in ('fio', CEILING) and 'write' in self.rw:
            with servers.nbd(peer, self.fmt, self.image(work, peer), self.direct) as uri:
                self.fio('--ioengine=nbd', f'--uri={uri}', '--verify=crc32c', '--do_verify=1', '--verify_fatal=1',
                         '--verify_state_save=0', more=(f'--io_size={64 * sd.MIB}',))


class FioBesideRaw(Fio):
    """The same requests on a qcow2 image and on its file as a raw one: what the format costs."""
    fmt, peers, goal = 'qcow2', (OURS, OWN_RAW), '>= 0.85x own raw'

    def measure(self, work, peer):
        with servers.nbd(peer, 'raw' if peer == OWN_RAW else self.fmt, self.image(work, peer)) as uri:
            return self.fio('--ioengine=nbd', f'--uri={uri}')['read' if 'read' in self.rw else 'write']['iops']

    def verify(self, work, peer):
        if peer != OWN_RAW:
            super().verify(work, peer)


class FioAllocating(Fio):
    """Writes to an empty image, each to a cluster of its own, in random order: fio is given the offsets."""
    fmt, rw, peers = 'qcow2', 'randwrite', (OURS, QSD)
    span, cluster = 2 * sd.GIB, 64 * 1024

    def prepare(self, work):
        offsets = list(range(0, self.span, self.cluster))
        random.Random(8).shuffle(offsets)
        self.log = work.path(self.place, 'offsets')
        with open(self.log, 'w') as f:
            f.write('fio version 2 iolog\nnbd add\nnbd open\n')
            f.writelines(f'nbd write {offset} 4096\n' for offset in offsets)
            f.write('nbd close\n')

    def image(self, work, peer):
        path = work.path(self.place, f'{peer}.new')
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        sd.qemu_img('create', '-q', '-f', self.fmt, '-o', f'cluster_size={self.cluster}', path, str(self.span))
        return path

    def measure(self, work, peer):
        path = self.image(work, peer)
        with servers.nbd(peer, self.fmt, path) as uri:
            job = self.fio('--ioengine=nbd', f'--uri={uri}', more=(f'--read_iolog={self.log}', '--replay_no_stall=1'))
        sd.check_image(path, self.fmt)
        os.unlink(path)
        if job['write']['total_ios'] != self.span // self.cluster:
            raise AssertionError(f"{job['write']['total_ios']} writes")
        return job['write']['iops']


class Copy(Row):
    """Seconds of a mirror or backup from the command to its end."""
    unit, place, fmt, job, direct, column = 's', 'tmpfs', 'raw', 'mirror', False, 'time'
    size, mode = None, 'full'

    def prepare(self, work):
        self.src = work.source(self.place, self.fmt)
        self.size = FILE_SIZE

    def measure(self, work, peer):
        target = work.path(self.place, 'target')
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target)
        if peer in ('cp', 'dd'):
            argv = ['cp', '--reflink=never', self.src, target] if peer == 'cp' else \
                ['dd', f'if={self.src}', f'of={target}', 'bs=1M', 'iflag=direct', 'oflag=direct', 'status=none']
            start = time.monotonic()
            sd.run(*argv)
            return time.monotonic() - start
        sd.create_image(target, self.fmt, self.size)
        with servers.daemon(peer, *servers.blockdevs('a', self.fmt, self.src, self.direct),
                            *servers.blockdevs('b', self.fmt, target, self.direct)) as d:
            cpu, start = servers.cpu_seconds(d.pid), time.monotonic()
            self.copy(d)
            seconds = time.monotonic() - start
            got = {'time': seconds, 'CPU': servers.cpu_seconds(d.pid) - cpu, 'memory': servers.memory_mib(d.pid, 'VmHWM')}
        self.check(target)
        return got[self.column]

    def copy(self, d):
        d.cmd(f'blockdev-{self.job}', job_id='j', device='a', target='b', sync='full')
        if self.job == 'mirror':
            d.complete('j', timeout=600)
        else:
            d.wait_completed('j', timeout=600)

    def check(self, target):
        if not sd.compare_images(self.src, target, self.fmt, self.fmt):
            raise AssertionError(f'{self.name}: source and target differ')


class SparseCopy(Copy):
    """1 TiB virtual, 256 MiB of data in 4 MiB runs."""
    fmt = 'qcow2'

    def prepare(self, work):
        self.size = 1 << 40
        self.src = work.path('tmpfs', 'sparse.qcow2')
        if not os.path.exists(self.src):
            rng = random.Random(6)
            runs = [(rng.randrange(self.size // (4 * sd.MIB)) * 4 * sd.MIB, 4 * sd.MIB, 1 + i % 255) for i in range(64)]
            sd.create_image(self.src, 'qcow2', self.size, data=runs)


class Incremental(Copy):
    """Incremental backup of 64 GiB of which 1 % is dirty, in 64 KiB granules."""
    job = 'backup'

    def prepare(self, work):
        self.size = 64 * sd.GIB
        self.src = work.path('tmpfs', 'incremental.raw')
        sd.create_image(self.src, 'raw', self.size)

    def copy(self, d):
        d.cmd(f'blockdev-{self.job}', job_id='j', device='a', target='b', sync='incremental', bitmap='dirty')
        d.wait_completed('j', timeout=600)

    def measure(self, work, peer):
        target = work.path('tmpfs', 'target')
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target)
        sd.create_image(target, 'raw', self.size)
        granules = random.Random(7).sample(range(self.size >> 16), (self.size >> 16) // 100)
        with servers.daemon(peer, *servers.blockdevs('a', 'raw', self.src), *servers.blockdevs('b', 'raw', target)) as d:
            d.cmd('block-dirty-bitmap-add', node='a', name='dirty', granularity=65536)
            with sd.nbd_connect(d.export('a', writable=True)) as h:
                for g in granules:
                    h.pwrite(b'%08d' % g * 512, g << 16)
            start = time.monotonic()
            self.copy(d)
            seconds = time.monotonic() - start
        self.check(target)
        return seconds


class RoundTrip(Row):
    """Microseconds of one QMP command and its reply."""
    unit, peers, own = 'µs', (OURS, QSD, 'echo'), ('echo',)
    COUNT = 3000

    def measure(self, work, peer):
        if peer == 'echo':
            ours, theirs = socket.socketpair()
            child = subprocess.Popen([sys.executable, '-c', 'import socket, sys; s = socket.socket(fileno=0)\n'
                                      'while d := s.recv(65536): s.sendall(d)'], stdin=theirs)
            theirs.close()
            got = self.time(ours)
            ours.close()
            child.wait()
            return got
        with servers.daemon(peer) as d:
            return self.time(d.session.sock)

    def time(self, sock):
        times = []
        for _ in range(self.COUNT):
            start = time.perf_counter()
            sock.sendall(b'{"execute": "query-version"}\n')
            while not sock.recv(65536).endswith(b'\n'):
                pass
            times.append(time.perf_counter() - start)
        return sorted(times)[len(times) // 2] * 1e6


class Start(Row):
    """Milliseconds from exec to the greeting."""
    unit = 'ms'

    def measure(self, work, peer):
        argv = [servers.PROGRAMS[peer], '--chardev', 'stdio,id=c', '--monitor', 'c']
        times = []
        for _ in range(10):
            start = time.perf_counter()
            p = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            line = p.stdout.readline()
            times.append(time.perf_counter() - start)
            p.terminate()
            p.communicate()
            if b'QMP' not in line:
                raise AssertionError(f'{peer}: no greeting')
        return sorted(times)[5] * 1e3


class ManyNodes(Row):
    """Seconds of 1000 blockdev-add and one query-named-block-nodes."""
    unit = 's'

    def measure(self, work, peer):
        with servers.daemon(peer) as d:
            start = time.monotonic()
            for i in range(1000):
                d.cmd('blockdev-add', driver='null-co', node_name=f'n{i}')
            nodes = d.cmd('query-named-block-nodes')
            seconds = time.monotonic() - start
        if len(nodes) != 1000:
            raise AssertionError(f'{len(nodes)} nodes')
        return seconds


class Idle(Row):
    """MiB resident with one exported image."""
    unit = 'MiB'

    def prepare(self, work):
        self.src = work.random_raw('tmpfs')

    def measure(self, work, peer):
        with servers.daemon(peer, *servers.blockdevs('a', 'raw', self.src)) as d:
            d.export('a')
            return servers.memory_mib(d.pid, 'VmRSS')


def nbd_rows():
    client = dict(peers=(OURS, QSD, NBDKIT, CEILING))  # who limits these is fio
    yield Fio('nbd-null-randread', fmt='null', goal='>= 1.4x the better peer', **client)
    yield Fio('nbd-null-randwrite', fmt='null', rw='randwrite', goal='>= 1.4x the better peer', **client)
    yield Fio('nbd-raw-randread-q64', goal='>= 3.5x qsd, >= 1.7x nbdkit', **client)
    yield Fio('nbd-raw-randwrite-q64', rw='randwrite', goal='>= 2.7x qsd, >= 1.2x nbdkit', **client)
    yield Fio('nbd-raw-randread-q1', depth=1, goal='>= 1.7x qsd, >= 1.1x nbdkit')
    yield Fio('nbd-raw-read-256k-q16', rw='read', bs='256k', depth=16, goal='>= 2x qsd, >= 1x nbdkit')
    yield Fio('nbd-raw-write-256k-q16', rw='write', bs='256k', depth=16, goal='>= 2x qsd, >= 1x nbdkit')
    yield Fio('nbd-qcow2-randread-q64', fmt='qcow2', peers=(OURS, QSD, CEILING), goal='>= 3x qsd')
    yield Fio('nbd-qcow2-randwrite-q64', fmt='qcow2', rw='randwrite', peers=(OURS, QSD, CEILING),
              goal='>= 2.5x qsd')
    yield FioBesideRaw('nbd-qcow2-beside-raw-randread-q64')
    yield FioBesideRaw('nbd-qcow2-beside-raw-randwrite-q64', rw='randwrite')
    yield FioAllocating('nbd-qcow2-alloc-randwrite-q64', goal='>= 1.5x qsd')
    disk = dict(place='disk', direct=True, peers=(OURS, QSD, 'fio'))
    yield Fio('nbd-disk-randread-q64', goal='>= 1.6x qsd, >= 0.9x fio', **disk)
    yield Fio('nbd-disk-randwrite-q64', rw='randwrite', goal='>= 1.3x qsd or >= 0.9x fio', **disk)
    yield Fio('nbd-disk-read-256k-q16', rw='read', bs='256k', depth=16, goal='>= 1.3x qsd or >= 0.9x fio', **disk)


def copy_rows():
    yield Copy('mirror-raw-tmpfs', peers=(OURS, QSD, 'cp'), goal='<= 1.25x cp')
    yield Copy('mirror-qcow2-tmpfs', fmt='qcow2', peers=(OURS, QSD, 'cp'), goal='<= 0.8x qsd')
    yield Copy('backup-raw-tmpfs', job='backup', peers=(OURS, QSD, 'cp'), goal='<= 0.8x qsd')
    yield Copy('backup-qcow2-tmpfs', fmt='qcow2', job='backup', goal='<= 0.8x qsd')
    yield Copy('backup-raw-tmpfs-cpu', job='backup', column='CPU', goal='<= 0.6x qsd')
    yield Copy('backup-qcow2-tmpfs-cpu', fmt='qcow2', job='backup', column='CPU', goal='<= 0.6x qsd')
    for job in ('mirror', 'backup'):
        for fmt in ('raw', 'qcow2'):
            yield Copy(f'{job}-{fmt}-disk', job=job, fmt=fmt, place='disk', direct=True, goal='<= 1.0x qsd',
                       peers=(OURS, QSD, 'dd'))
        yield SparseCopy(f'{job}-sparse-1T', job=job, goal='<= 0.1x qsd')
    yield Incremental('incremental-64G', goal='<= 0.5x qsd')


def control_rows():
    yield RoundTrip('qmp-round-trip', goal='<= 0.2x qsd')
    yield Start('start-to-greeting', goal='<= 0.5x qsd')
    yield ManyNodes('blockdev-add-1000', goal='<= 0.2x qsd')
    yield Idle('memory-idle', goal='<= 0.7x qsd')
    yield Copy('memory-mirror-raw', unit='MiB', column='memory', goal='<= 0.7x qsd')
    yield Copy('memory-backup-raw', unit='MiB', job='backup', column='memory', goal='<= 0.3x qsd')

