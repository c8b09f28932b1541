"""Base of the process-level tests: a real daemon, real images, other people's tools as judges.

A test module:

    import sd

    class Mirror(sd.Case):
        def test_full(self):
            sd.create_image(self.path('a.img'), 'raw', 1 << 20, data=[(0, 65536, 0x11)])
            d = self.daemon()
            d.cmd('blockdev-add', driver='file', node_name='a', filename=self.path('a.img'))
            ...
            self.assertImagesEqual(self.path('a.img'), self.path('b.img'))

    if __name__ == '__main__':
        sd.main()

Environment: STORAGE_DAEMON (program under test, default BUILD/storage-daemon), STORAGE_CTL, BUILD (default build),
TMPDIR (default /tmp), SD_TIMEOUT (seconds for one wait, default 30; sanitizer runs want more).
Everything waits with a limit, every reply and event is held against the schema, nothing is left running.
"""
import contextlib
import ctypes
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import unittest

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.join(TOP, os.environ.get('BUILD', 'build'))
DAEMON = os.environ.get('STORAGE_DAEMON', os.path.join(BUILD, 'storage-daemon'))
CTL = os.environ.get('STORAGE_CTL', os.path.join(BUILD, 'storage-ctl'))
# A peer put in our place shows whether a test judges rightly; its replies need not follow our schema.
STAND_IN = 'qemu' in os.path.basename(DAEMON)
TIMEOUT = float(os.environ.get('SD_TIMEOUT', '30'))
SANITIZER = re.compile(r'(ERROR|WARNING): (Address|Leak|Thread|Memory)Sanitizer|runtime error:|SUMMARY: \w*Sanitizer')

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


class Timeout(Exception):
    """Something that had to happen did not in time."""


class QmpError(Exception):
    """A command failed; .cls and .desc are the error's."""

    def __init__(self, command, error):
        super().__init__(f"{command}: {error['class']}: {error['desc']}")
        self.cls, self.desc = error['class'], error['desc']


class Disconnected(Exception):
    """The daemon closed the connection."""


_schema = None


def schema():
    """The validator made of qapi/schema, or None while a stand-in is under test."""
    global _schema
    if _schema is None and not STAND_IN:
        sys.path.insert(0, os.path.join(TOP, 'qapi', 'gen'))
        import validate
        _schema = validate.Schema.load(os.path.join(TOP, 'qapi', 'schema'))
    return _schema


def is_subset(want, got):
    """Does @got contain all that @want says (dicts by key, everything else by value)?"""
    if isinstance(want, dict) and isinstance(got, dict):
        return all(k in got and is_subset(v, got[k]) for k, v in want.items())
    return want == got


class Qmp:
    """One QMP session over a connected socket."""

    def __init__(self, sock, check=True):
        """@check False: a peer's session, whose messages need not follow our schema."""
        self.sock = sock
        self.events = []     # received, not yet taken by event_wait() or take_events()
        self.event_log = []  # all that were ever received
        self.check = check and not STAND_IN
        self._buf = b''
        self._id = 0
        self.greeting = self.receive()
        if 'QMP' not in self.greeting:
            raise AssertionError(f'not a QMP greeting: {self.greeting}')

    @classmethod
    def connect(cls, path, negotiate=True, timeout=None, check=True):
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(timeout or TIMEOUT)
            sock.connect(path)
            qmp = cls(sock, check)
            if negotiate:
                qmp.cmd('qmp_capabilities')
            return qmp
        except BaseException:
            sock.close()
            raise

    def close(self):
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    # ---- bytes and messages ----
    def send_raw(self, data):
        self.sock.settimeout(TIMEOUT)
        self.sock.sendall(data)

    def send(self, message):
        self.send_raw(json.dumps(message).encode() + b'\n')

    def receive(self, timeout=None):
        """The next message, event or reply."""
        deadline = time.monotonic() + (TIMEOUT if timeout is None else timeout)
        while b'\n' not in self._buf:
            left = deadline - time.monotonic()
            if left <= 0:
                raise Timeout(f'no message from the daemon; so far: {self._buf!r}')
            self.sock.settimeout(left)
            try:
                data = self.sock.recv(1 << 16)
            except TimeoutError:
                continue
            except ConnectionResetError:
                data = b''
            if not data:
                raise Disconnected(f'connection closed; last bytes: {self._buf!r}')
            self._buf += data
        line, self._buf = self._buf.split(b'\n', 1)
        message = json.loads(line)
        if 'event' in message:
            self._check_event(message)
        return message

    def receive_reply(self, timeout=None):
        """The next reply; events on the way are queued."""
        deadline = time.monotonic() + (TIMEOUT if timeout is None else timeout)
        while True:
            message = self.receive(max(0, deadline - time.monotonic()))
            if 'event' in message:
                self._keep(message)
            elif 'QMP' not in message or self.check:  # qemu-storage-daemon now and then greets twice
                return message

    def _keep(self, event):
        self.events.append(event)
        self.event_log.append(event)

    def _check_event(self, event):
        stamp = event.get('timestamp')
        if not isinstance(stamp, dict) or not all(isinstance(stamp.get(k), int) for k in ('seconds', 'microseconds')):
            raise AssertionError(f'event without a proper timestamp: {event}')
        if self.check and schema():
            schema().check_event(event)

    # ---- commands ----
    def start(self, command, arguments=None, **more):
        """Sends without waiting; the id to hand to finish()."""
        args = {k.replace('_', '-'): v for k, v in more.items()}
        args.update(arguments or {})
        self._id += 1
        message = {'execute': command, 'id': self._id}
        if args:
            message['arguments'] = args
        self.send(message)
        return command, self._id

    def finish(self, started, timeout=None):
        command, want_id = started
        reply = self.receive_reply(timeout)
        if reply.pop('id', None) != want_id:
            raise AssertionError(f'{command}: reply without its id {want_id}: {reply}')
        if self.check and schema():
            schema().check_reply(command, reply)
        return reply

    def qmp(self, command, arguments=None, *, timeout=None, **more):
        """The whole reply: {'return': …} or {'error': …}. Keyword names get '-' for '_'."""
        return self.finish(self.start(command, arguments, **more), timeout)

    def cmd(self, command, arguments=None, *, timeout=None, **more):
        """What the command returns; QmpError when it fails."""
        reply = self.qmp(command, arguments, timeout=timeout, **more)
        if 'error' in reply:
            raise QmpError(command, reply['error'])
        return reply['return']

    # ---- events ----
    def poll(self, timeout=0.0):
        """Takes in what arrives within @timeout seconds (0: what is there already)."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                self._keep(self.receive(max(0.001, deadline - time.monotonic())))
            except Timeout:
                if time.monotonic() >= deadline:
                    return

    def event_wait(self, name, match=None, timeout=None):
        """The first queued or coming event @name (or one of a tuple of names) whose data contains @match; it is taken
        off the queue, the others stay."""
        names = (name,) if isinstance(name, str) else tuple(name)
        deadline = time.monotonic() + (TIMEOUT if timeout is None else timeout)
        seen = 0
        while True:
            for i in range(seen, len(self.events)):
                event = self.events[i]
                if event['event'] in names and is_subset(match or {}, event.get('data', {})):
                    return self.events.pop(i)
            seen = len(self.events)
            try:
                self._keep(self.receive(max(0, deadline - time.monotonic())))
            except Timeout:
                raise Timeout(f'no event {name} {match or ""}; queued: {self.events}') from None

    def take_events(self, name=None, match=None):
        """All queued events (of that name, with that data), taken off the queue."""
        self.poll()

        def fits(e):
            return (name is None or e['event'] == name) and is_subset(match or {}, e.get('data', {}))

        taken = [e for e in self.events if fits(e)]
        self.events = [e for e in self.events if not fits(e)]
        return taken


F_OFD_GETLK = 36  # which Python's fcntl does not name


def wait_unlocked(path):
    """Until nobody holds any of the byte-range locks that guard images."""
    flock = struct.Struct('hhqqi')  # l_type, l_whence, l_start, l_len, l_pid
    deadline = time.monotonic() + TIMEOUT
    with open(path, 'r+b') as f:
        while True:
            question = flock.pack(fcntl.F_WRLCK, os.SEEK_SET, 100, 200, 0).ljust(32, b'\0')
            answer = fcntl.fcntl(f, F_OFD_GETLK, question)
            if flock.unpack_from(answer)[0] == fcntl.F_UNLCK:
                return
            if time.monotonic() > deadline:
                raise Timeout(f'{path} stays locked')
            time.sleep(0.005)


def _die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Daemon:
    """A daemon process with a QMP socket. Also usable as `with sd.Daemon() as d:`."""

    def __init__(self, *options, program=None, qmp=True, wait=True, env=None, stdin=subprocess.DEVNULL, wrapper=()):
        """@options: command line words. @program: a peer to run in place of ours. @qmp False: no socket of ours (the
        options bring one). @wait False: do not wait for the greeting. @wrapper: words before the program (strace, …)."""
        self.dir = tempfile.mkdtemp(prefix='sd-')
        self.socket = os.path.join(self.dir, 'qmp')
        self.session = None
        self._stopped = False
        self.peer = program is not None and program != DAEMON
        argv = [*wrapper, program or DAEMON, *map(str, options)]
        if qmp:
            argv += ['--chardev', f'socket,id=sd-qmp,path={self.socket},server=on,wait=off',
                     '--monitor', 'chardev=sd-qmp']
        self._stderr = open(os.path.join(self.dir, 'stderr'), 'wb+')
        self._stdout = open(os.path.join(self.dir, 'stdout'), 'wb+')
        try:
            self.process = subprocess.Popen(argv, stdin=stdin, stdout=self._stdout, stderr=self._stderr,
                                            env={**os.environ, **(env or {})}, preexec_fn=_die_with_parent)
        except BaseException:
            shutil.rmtree(self.dir, ignore_errors=True)
            raise
        self.pid = self.process.pid
        if qmp and wait:
            try:
                self.session = self.connect()
            except BaseException:
                self.cleanup()
                raise

    def __enter__(self):
        return self

    def __exit__(self, kind, *exc):
        if kind is None and not self._stopped:
            self.shutdown()
        self.cleanup()

    # ---- talking ----
    def connect(self, negotiate=True, path=None):
        """One more session; waits for the socket to appear."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            try:
                return Qmp.connect(path or self.socket, negotiate, check=not self.peer)
            except (FileNotFoundError, ConnectionRefusedError):
                if self.process.poll() is not None:
                    raise AssertionError(f'the daemon ended with {self.process.returncode} before it listened:\n'
                                         f'{self.stderr()}') from None
                if time.monotonic() > deadline:
                    raise Timeout(f'no QMP socket:\n{self.stderr()}') from None
                time.sleep(0.005)

    def __getattr__(self, name):
        # qmp, cmd, events, event_log, event_wait, take_events, poll, send_raw, receive, … of the first session
        if name.startswith('_') or self.__dict__.get('session') is None:
            raise AttributeError(name)
        return getattr(self.session, name)

    @staticmethod
    def _text(stream):
        with open(stream.name, 'rb') as f:
            return f.read().decode(errors='replace')

    def stderr(self):
        return self._last_stderr if self._stderr.closed else self._text(self._stderr)

    def stdout(self):
        return self._last_stdout if self._stdout.closed else self._text(self._stdout)

    # ---- ending ----
    def wait(self, timeout=None):
        """Waits for the process to end by itself; its exit code."""
        try:
            code = self.process.wait(TIMEOUT if timeout is None else timeout)
        except subprocess.TimeoutExpired:
            raise Timeout(f'the daemon does not end:\n{self.stderr()}') from None
        self._stopped = True
        return code

    def shutdown(self, code=0):
        """Ends it by `quit` and checks how it ended."""
        with contextlib.suppress(Disconnected, BrokenPipeError, ConnectionResetError):
            self.session.send({'execute': 'quit'})
            while True:
                message = self.session.receive()
                if 'event' in message:
                    self.session._keep(message)
        self.check_exit(code)

    def terminate(self, code=0):
        """Ends it by SIGTERM and checks how it ended."""
        self.process.send_signal(signal.SIGTERM)
        self.check_exit(code)

    def check_exit(self, code=0):
        got = self.wait()
        if got != code:
            raise AssertionError(f'the daemon ended with {got}, not {code}:\n{self.stderr()}')
        self.check_sanitizer()

    def check_sanitizer(self):
        if SANITIZER.search(self.stderr()):
            raise AssertionError(f'a sanitizer complained:\n{self.stderr()}')

    def kill(self, *paths):
        """SIGKILL, as a crash would be; then waits for the locks on @paths to go (the kernel takes an io_uring, and the
        files in it, down a moment after the process)."""
        self.process.kill()
        self.process.wait()
        self._stopped = True
        for path in paths:
            wait_unlocked(path)

    def cleanup(self):
        """Leaves nothing behind, whatever state it is in."""
        if self.session:
            self.session.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._stopped = True
        if not self._stderr.closed:
            self._last_stderr, self._last_stdout = self._text(self._stderr), self._text(self._stdout)
            self._stderr.close()
            self._stdout.close()
        shutil.rmtree(self.dir, ignore_errors=True)

    # ---- jobs ----
    def wait_ready(self, job, timeout=None):
        """Until a mirror or commit is ready; fails at once when it ends instead."""
        event = self.event_wait(('BLOCK_JOB_READY', 'BLOCK_JOB_COMPLETED', 'BLOCK_JOB_CANCELLED'), {'device': job},
                                timeout)
        if event['event'] != 'BLOCK_JOB_READY':
            raise AssertionError(f'{job} ended before it was ready: {event}')
        return event

    def wait_completed(self, job, error=None, timeout=None):
        """Until a job completes; @error: text its error must contain (None: it must have none)."""
        event = self.event_wait(('BLOCK_JOB_COMPLETED', 'BLOCK_JOB_CANCELLED'), {'device': job}, timeout)
        got = event['data'].get('error')
        if event['event'] != 'BLOCK_JOB_COMPLETED' or (error is None) != (got is None) or \
                (error or '') not in (got or ''):
            raise AssertionError(f'{job}: wanted completion with error {error!r}, got {event}\n{self.stderr()}')
        return event

    def complete(self, job, timeout=None):
        """Ready, complete, completed: the good end of a mirror."""
        if not (self.job(job) or {}).get('ready'):
            self.wait_ready(job, timeout)
        self.cmd('block-job-complete', device=job)
        return self.wait_completed(job, timeout=timeout)

    def cancel(self, job, force=False, timeout=None):
        """Cancels and waits for the end, which is returned (a ready mirror COMPLETES unless forced)."""
        self.cmd('block-job-cancel', device=job, force=force)
        return self.event_wait(('BLOCK_JOB_COMPLETED', 'BLOCK_JOB_CANCELLED'), {'device': job}, timeout)

    def job(self, job):
        """Its row of query-block-jobs, None when it is gone."""
        return next((j for j in self.cmd('query-block-jobs') if j['device'] == job), None)

    def node(self, name):
        """Its row of query-named-block-nodes, None when there is none."""
        return next((n for n in self.cmd('query-named-block-nodes') if n['node-name'] == name), None)

    def bitmap(self, node, name):
        """The bitmap's info, None when there is none."""
        return next((b for b in (self.node(node) or {}).get('dirty-bitmaps', []) if b.get('name') == name), None)

    # ---- NBD ----
    def nbd_server(self, **more):
        """Starts the NBD server on a socket in the daemon's folder; its path."""
        path = os.path.join(self.dir, 'nbd')
        self.cmd('nbd-server-start', addr={'type': 'unix', 'data': {'path': path}}, **more)
        self.nbd_socket = path
        return path

    def export(self, node, name=None, writable=False, export_id=None, **more):
        """Exports a node over NBD (starting the server when needed); its URI."""
        if 'nbd_socket' not in self.__dict__:
            self.nbd_server()
        name = node if name is None else name
        self.cmd('block-export-add', type='nbd', id=export_id or f'exp-{name}', node_name=node, name=name,
                 writable=writable, **more)
        return nbd_uri(self.nbd_socket, name)


# ---- other people's tools ------------------------------------------------------------------------------------------

def run(*argv, check=True, input=None, timeout=None, env=None):
    """Runs a tool: CompletedProcess with text in stdout and stderr; with @check a failure raises with what it said."""
    try:
        p = subprocess.run([str(a) for a in argv], input=input, stdin=None if input is not None else subprocess.DEVNULL,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors='replace',
                           timeout=timeout or 2 * TIMEOUT, env={**os.environ, **(env or {})})
    except subprocess.TimeoutExpired as e:
        raise Timeout(f"{' '.join(map(str, argv))}: still running after {e.timeout:.0f} s; {e.stdout} {e.stderr}"
                      ) from None
    if check and p.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, argv))}: exit {p.returncode}\n{p.stdout}{p.stderr}")
    return p


def qemu_img(*args, check=True, **kw):
    """Again while it cannot measure what a key of LUKS costs: every third time here, since the kernel counts its user time in
    ticks and it asks for a few."""
    for _ in range(50):
        p = run('qemu-img', *args, check=False, **kw)
        if 'accurate CPU usage' not in p.stderr:
            break
    if check and p.returncode:
        raise AssertionError(f"qemu-img {' '.join(map(str, args))}: exit {p.returncode}\n{p.stdout}{p.stderr}")
    return p


def qemu_io(image, *commands, fmt=None, check=True, readonly=False, opts=()):
    """qemu-io -c for each of @commands on @image; a failed command or pattern raises with @check."""
    argv = ['qemu-io', *opts]
    if readonly:
        argv.append('-r')
    if fmt:
        argv += ['-f', fmt]
    for c in commands:
        argv += ['-c', c]
    p = run(*argv, image, check=check)
    if check and re.search(r'failed|error|invalid', p.stdout + p.stderr, re.I):
        raise AssertionError(f"qemu-io {commands} {image}:\n{p.stdout}{p.stderr}")
    return p


def image_info(path, *opts):
    """qemu-img info as a dict; looks even at images in use."""
    return json.loads(qemu_img('info', '-U', '--output=json', *opts, path).stdout)


def image_map(path, fmt=None):
    """qemu-img map as a list of dicts."""
    return json.loads(qemu_img('map', '--output=json', *(['-f', fmt] if fmt else []), path).stdout)


def create_image(path, fmt, size=None, backing=None, backing_fmt=None, options=None, data=()):
    """Makes an image with qemu-img; @data: (offset, length, byte) runs written with qemu-io. @options: -o words."""
    argv = ['create', '-q', '-f', fmt]
    if options:
        argv += ['-o', ','.join(f'{k}={v}' for k, v in options.items())]
    if backing:
        argv += ['-b', backing, '-F', backing_fmt or fmt]
    qemu_img(*argv, path, *([str(size)] if size is not None else []))
    write_pattern(path, fmt, *data)
    return path


def write_pattern(path, fmt, *runs):
    """(offset, length, byte) runs, with qemu-io."""
    if runs:
        qemu_io(path, *(f'write -q -P {byte} {offset} {length}' for offset, length, byte in runs), fmt=fmt)


def compare_images(a, b, fmt_a=None, fmt_b=None, strict=False):
    """Are they the same to a reader (a shorter one counts as padded with zeroes, unless @strict)?"""
    argv = ['compare', '-q', '-U']
    if strict:
        argv.append('-s')
    if fmt_a:
        argv += ['-f', fmt_a]
    if fmt_b:
        argv += ['-F', fmt_b]
    p = qemu_img(*argv, a, b, check=False)
    if p.returncode not in (0, 1):
        raise AssertionError(f'qemu-img compare {a} {b}: exit {p.returncode}\n{p.stdout}{p.stderr}')
    return p.returncode == 0


def check_image(path, fmt='qcow2'):
    """qemu-img check must find nothing, leaks included."""
    p = qemu_img('check', '-f', fmt, path, check=False)
    if p.returncode != 0:
        raise AssertionError(f'qemu-img check {path}: exit {p.returncode}\n{p.stdout}{p.stderr}')


def nbd_uri(path, export=''):
    return f'nbd+unix:///{export}?socket={path}'


@contextlib.contextmanager
def nbd_connect(uri, meta=(), **settings):
    """A libnbd handle on @uri; @meta: contexts to ask for; @settings: handle.set_NAME(value) before it connects."""
    import nbd
    h = nbd.NBD()
    for name in meta:
        h.add_meta_context(name)
    for name, value in settings.items():
        getattr(h, 'set_' + name)(value)
    try:
        h.connect_uri(uri)
        yield h
    finally:
        with contextlib.suppress(nbd.Error):
            h.shutdown()
        del h


def nbd_extents(h, context, length=None, step=1 << 30):
    """Block status of a whole export as (offset, length, flags), equal neighbours joined."""
    length = h.get_size() if length is None else length
    out, pos = [], 0
    while pos < length:
        got = []

        def extent(name, offset, entries, err):
            if name == context:
                got.extend(zip(entries[0::2], entries[1::2]))
            return 0

        h.block_status(min(step, length - pos), pos, extent)
        if not got:
            raise AssertionError(f'no extents for {context} at {pos}')
        for size, flags in got:
            size = min(size, length - pos)
            if out and out[-1][2] == flags:
                out[-1] = (out[-1][0], out[-1][1] + size, flags)
            else:
                out.append((pos, size, flags))
            pos += size
    return out


# ---- test cases ------------------------------------------------------------------------------------------------------

class Case(unittest.TestCase):
    """A test with a folder of its own, daemons that end with it, and what they said when it fails."""
    CASE_TIMEOUT = 4 * TIMEOUT  # of one case, seconds

    def run(self, result=None):
        self._said = []
        result = result if result is not None else self.defaultTestResult()
        before = len(result.failures) + len(result.errors)

        def alarm(*_):
            raise Timeout(f'the case took longer than {self.CASE_TIMEOUT:.0f} s')

        old = signal.signal(signal.SIGALRM, alarm)
        signal.alarm(int(self.CASE_TIMEOUT))
        try:
            super().run(result)
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, old)
        if len(result.failures) + len(result.errors) > before:
            for d in self._said:
                if d.stderr():
                    print(f'--- stderr of daemon {d.pid} in {self.id()} ---\n{d.stderr()}', file=sys.stderr)
        return result

    @property
    def dir(self):
        if '_dir' not in self.__dict__:
            self._dir = tempfile.mkdtemp(prefix='sd-t-')
            self.addCleanup(shutil.rmtree, self._dir, ignore_errors=True)
        return self._dir

    def path(self, name):
        return os.path.join(self.dir, name)

    def daemon(self, *options, **kw):
        """A running daemon; ended by `quit`, and its end judged, when the case is over."""
        d = Daemon(*options, **kw)
        self._said.append(d)

        def end():
            try:
                if d.process.poll() is not None and not d._stopped:
                    raise AssertionError(f'the daemon died with {d.process.returncode}:\n{d.stderr()}')
                if not d._stopped and d.session:
                    try:
                        d.shutdown()
                    except OSError:  # the case closed the session itself
                        d.terminate()
                d.check_sanitizer()
            finally:
                d.cleanup()

        self.addCleanup(end)
        return d

    def fails(self, d, text, command, arguments=None, cls='GenericError', **more):
        """The command must fail with an error of class @cls that contains @text, or matches a compiled pattern."""
        reply = d.qmp(command, arguments, **more)
        self.assertIn('error', reply, f'{command} was to fail')
        desc = reply['error']['desc']
        found = text.search(desc) if isinstance(text, re.Pattern) else text in desc
        self.assertTrue(found, f'{command}: error is {desc!r}, wanted {text!r}')
        self.assertEqual(cls, reply['error']['class'])
        return reply['error']

    def assertSubset(self, want, got):
        self.assertTrue(is_subset(want, got), f'{want} is not within {got}')

    def assertImagesEqual(self, a, b, fmt_a=None, fmt_b=None):
        self.assertTrue(compare_images(a, b, fmt_a, fmt_b), f'{a} and {b} differ')


def main():
    unittest.main(verbosity=2 if '-v' in sys.argv else 1)
