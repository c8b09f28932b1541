"""Shared by the job tests: nodes, a client that keeps writing over NBD, peers that fail on demand."""
import os
import random
import socket
import subprocess
import threading
import time

import sd


class JobCase(sd.Case):
    def node(self, d, name, path, fmt='raw', **more):
        d.cmd('blockdev-add', driver=fmt, node_name=name, file={'driver': 'file', 'filename': path}, **more)

    def pair(self, d, fmt='raw', target_fmt=None, size=4 * sd.MIB, data=(), options=None, target_options=None):
        """Nodes 'src' and 'dst' on new images; their paths."""
        target_fmt = target_fmt or fmt
        a = sd.create_image(self.path('src.img'), fmt, size, data=data, options=options)
        b = sd.create_image(self.path('dst.img'), target_fmt, size, options=target_options)
        self.node(d, 'src', a, fmt)
        self.node(d, 'dst', b, target_fmt)
        return a, b

    def statuses(self, d, job):
        """What JOB_STATUS_CHANGE told of the job so far, in order."""
        d.poll()
        return [e['data']['status'] for e in d.event_log if e['event'] == 'JOB_STATUS_CHANGE' and e['data']['id'] == job]

    def story(self, d, job, poll=True):
        """All events of the job in order: states in lower case, other events by name."""
        if poll:
            d.poll()
        out = []
        for e in d.event_log:
            data = e.get('data', {})
            if e['event'] == 'JOB_STATUS_CHANGE' and data['id'] == job:
                out.append(data['status'])
            elif data.get('device', data.get('id')) == job and e['event'].startswith('BLOCK_JOB'):
                out.append(e['event'])
        return out

    def wait_status(self, d, job, status, timeout=None):
        return d.event_wait('JOB_STATUS_CHANGE', {'id': job, 'status': status}, timeout)

    def wait_gone(self, d, job):
        self.wait_status(d, job, 'null')
        self.assertIsNone(d.job(job))

    def cpu_seconds(self, d):
        with open(f'/proc/{d.pid}/stat', encoding='ascii') as f:
            fields = f.read().rsplit(')', 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


class ChainCase(JobCase):
    """A device 'drive0' on an overlay, with places of its own, over a full base image."""

    def setUp(self):
        self.base = sd.create_image(self.path('base.img'), 'qcow2', 4 * sd.MIB, data=[(0, 4 * sd.MIB, 0x10)])
        self.top = sd.create_image(self.path('top.img'), 'qcow2', backing=self.base,
                                   data=[(sd.MIB, 512, 0x77), (2 * sd.MIB + 65536, 65536, 0x78)])
        self.target = self.path('target.img')

    def drive(self, *more):
        return self.daemon('--drive', f'id=drive0,file={self.top},format=qcow2,node-name=top,if=none', *more)


class Writer(threading.Thread):
    """A client that writes random runs over NBD and remembers what the disk must hold: 512-byte blocks, each written with
    a value of its own."""

    def __init__(self, uri, size, seed=1, pause=0.0, longest=64):
        super().__init__(daemon=True)
        self.uri, self.size, self.pause, self.longest = uri, size, pause, longest
        self.random = random.Random(seed)
        self.writes = 0
        self.model = None
        self.error = None
        self._stop_now = threading.Event()

    def run(self):
        try:
            with sd.nbd_connect(self.uri) as h:
                self.model = bytearray(h.pread(self.size, 0)) if self.size <= 32 * sd.MIB else None
                while not self._stop_now.is_set():
                    self._one(h)
                    if self.pause:
                        time.sleep(self.pause)
                h.flush()
        except Exception as e:  # shown by stop()
            self.error = e

    def _one(self, h):
        blocks = self.random.randint(1, self.longest)
        offset = self.random.randrange(0, self.size // 512) * 512
        length = min(blocks * 512, self.size - offset)
        if self.random.random() < 0.1:
            h.zero(length, offset)
            data = bytes(length)
        else:
            data = self.random.randbytes(length)
            h.pwrite(data, offset)
        if self.model is not None:
            self.model[offset:offset + length] = data
        self.writes += 1

    def wait_for(self, writes):
        deadline = time.monotonic() + sd.TIMEOUT
        goal = self.writes + writes
        while self.writes < goal:
            if self.error or time.monotonic() > deadline:
                raise AssertionError(f'the client is stuck at {self.writes} writes: {self.error}')
            time.sleep(0.002)

    def stop(self):
        """Ends it; what the disk must hold now."""
        self._stop_now.set()
        self.join(sd.TIMEOUT)
        if self.error:
            raise self.error
        assert not self.is_alive()
        return bytes(self.model) if self.model is not None else None


def wait_listening(process, path):
    """Until the server @process takes connections on the unix socket @path: some time after the file is there."""
    deadline = time.monotonic() + sd.TIMEOUT
    while True:
        with socket.socket(socket.AF_UNIX) as s:
            try:
                return s.connect(path)
            except (FileNotFoundError, ConnectionRefusedError):
                pass
        if time.monotonic() > deadline or process.poll() is not None:
            raise AssertionError(f'nothing listens on {path}')
        time.sleep(0.01)


class Peer:
    """nbdkit with memory behind one of its filters."""

    def __init__(self, case, name, size, filter_name, *words):
        self.socket = case.path(name + '.sock')
        self.process = subprocess.Popen(
            ['nbdkit', '-f', '--exit-with-parent', '-U', self.socket, f'--filter={filter_name}', 'memory', str(size),
             *words], stdin=subprocess.DEVNULL)
        case.addCleanup(self._end)
        wait_listening(self.process, self.socket)

    def _end(self):
        self.process.kill()
        self.process.wait()

    def add(self, d, node):
        d.cmd('blockdev-add', driver='nbd', node_name=node, server={'type': 'unix', 'path': self.socket})

    def uri(self):
        return f'nbd+unix:///?socket={self.socket}'


class FaultyPeer(Peer):
    """Behind the error filter: requests of one kind fail while a trigger file exists."""

    def __init__(self, case, name, size, kind, errno):
        self.trigger = case.path(name + '.fail')
        super().__init__(case, name, size, 'error', f'error-{kind}={errno}', f'error-{kind}-rate=100%',
                         f'error-{kind}-file={self.trigger}')

    def fail(self, on=True):
        if on:
            open(self.trigger, 'w', encoding='ascii').close()
        else:
            os.unlink(self.trigger)
