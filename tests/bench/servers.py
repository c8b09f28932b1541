"""The programs that are measured, each behind the same face."""
import contextlib
import os
import shutil
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'iotests'))
import sd

OURS, QSD, NBDKIT = 'ours', 'qsd', 'nbdkit'
OWN_RAW = 'own raw'  # ours, with raw instead of the format that the row is about
CEILING = 'ceiling'  # ceiling.c: no work at all, so what fio itself can reach
PROGRAMS = {OURS: sd.DAEMON, OWN_RAW: sd.DAEMON, QSD: shutil.which('qemu-storage-daemon'), NBDKIT: shutil.which('nbdkit'),
            CEILING: os.path.join(sd.BUILD, 'tests/bench/ceiling')}


def installed(peer):
    """Can this peer be measured here? Tools that are no servers are named as they are called."""
    program = PROGRAMS.get(peer, shutil.which(peer))
    return bool(program) and os.access(program, os.X_OK)


def versions():
    """What ran, for the table's head."""
    out = []
    for name, argv in ((OURS, [PROGRAMS[OURS], '--version']), (QSD, ['qemu-storage-daemon', '--version']),
                       (NBDKIT, ['nbdkit', '--version']), ('fio', ['fio', '--version']), ('kernel', ['uname', '-r'])):
        with contextlib.suppress(OSError):
            text = subprocess.run(argv, stdout=subprocess.PIPE, text=True).stdout.splitlines()
            out.append(f'{name}: {text[0] if text else "?"}')
    return out


def blockdevs(name, fmt, path, direct=False):
    """Command line words that make node @name over @path."""
    if fmt == 'null':
        return ['--blockdev', f'null-co,node-name={name},size={1 << 30},read-zeroes=on']
    cache = ',cache.direct=on' if direct else ''
    return ['--blockdev', f'file,node-name={name}-file,filename={path},aio=io_uring{cache}',
            '--blockdev', f'{fmt},node-name={name},file={name}-file{cache}']


profile = None  # where perf puts its samples of our daemon, for profile.py


@contextlib.contextmanager
def daemon(peer, *options):
    """Our daemon or qemu-storage-daemon."""
    with sd.Daemon(*options, program=PROGRAMS[peer]) as d, contextlib.ExitStack() as stack:
        if profile and peer == OURS:
            perf = subprocess.Popen(['perf', 'record', '-q', '-F', '997', '-g', '-o', profile, '-p', str(d.pid)])
            stack.callback(perf.wait)
            stack.callback(perf.terminate)
            time.sleep(0.2)  # perf says nothing when it has begun
        yield d


@contextlib.contextmanager
def nbd(peer, fmt, path=None, direct=False):
    """Serves an image over NBD on a unix socket: the URI."""
    if peer not in (NBDKIT, CEILING):
        with daemon(peer, *blockdevs('n', fmt, path, direct)) as d:
            yield d.export('n', 'x', writable=True)
        return
    tmp = sd.tempfile.mkdtemp(prefix='sd-bench-')
    socket = f'{tmp}/s'
    if peer == CEILING:
        argv = [PROGRAMS[peer], socket, 'hole' if fmt == 'null' else 'data']
    else:
        argv = ['nbdkit', '-f', '-U', socket, '-e', 'x']
        argv += ['null', f'size={1 << 30}'] if fmt == 'null' else ['file', path]
    p = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + sd.TIMEOUT
        while not os.path.exists(socket):
            if p.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f'{peer} does not start')
            time.sleep(0.01)
        yield sd.nbd_uri(socket, 'x')
    finally:
        p.terminate()
        p.wait()
        shutil.rmtree(tmp, ignore_errors=True)


def cpu_seconds(pid):
    """User and system time of a process so far."""
    with open(f'/proc/{pid}/stat') as f:
        fields = f.read().rsplit(')', 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def memory_mib(pid, key):
    """VmRSS (now) or VmHWM (peak) of a process."""
    with open(f'/proc/{pid}/status') as f:
        return next(int(line.split()[1]) for line in f if line.startswith(key + ':')) / 1024
