"""Plays QEMU's harness towards qemu-compat: how it starts the program and listens for its monitor and qtest."""
import os
import shutil
import socket
import subprocess
import tempfile

import sd

LAUNCHER = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'qemu-compat')


class Launched(sd.Daemon):
    """The daemon behind the launcher. @by_fd: monitor and qtest as newer harnesses hand them over. .log is what went to
    stdout and stderr, which that harness keeps in one file."""

    def __init__(self, *options, by_fd=False, machine='pc', wait=True):
        self.dir = tempfile.mkdtemp(prefix='sd-')
        self.session, self.qtest, self.peer, self._stopped = None, None, False, False
        self._stderr = self._stdout = open(os.path.join(self.dir, 'log'), 'wb+')
        listeners, fds = [], []
        argv = [LAUNCHER, '-display', 'none', '-vga', 'none']
        for ident, words in (('mon', ['-mon', 'chardev=mon,mode=control']), ('qtest', ['-qtest', 'chardev:qtest'])):
            path = os.path.join(self.dir, ident)
            if by_fd:
                ours, theirs = socket.socketpair()
                listeners.append(ours)
                fds.append(theirs)
                argv += ['-chardev', f'socket,id={ident},fd={theirs.fileno()}', *words]
            else:
                listeners.append(socket.create_server(path, family=socket.AF_UNIX))
                argv += ['-qtest', f'unix:path={path}'] if ident == 'qtest' else \
                    ['-chardev', f'socket,id={ident},path={path}', *words]
        argv += ['-accel', 'qtest', '-nodefaults', '-machine', machine, *options]
        # A test's STORAGE_DAEMON is what the launcher starts.
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=self._stdout, stderr=subprocess.STDOUT,
                                        pass_fds=[s.fileno() for s in fds], preexec_fn=sd._die_with_parent,
                                        env={**os.environ, 'STORAGE_DAEMON': sd.DAEMON})
        self.pid = self.process.pid
        for s in fds:
            s.close()
        if not wait:
            self._listeners = listeners
            return
        try:
            mon, qtest = listeners if by_fd else [self._accept(s) for s in listeners]
            self.qtest = qtest.makefile('rw', newline='\n')
            self.session = sd.Qmp(mon)
            self.session.cmd('qmp_capabilities')
        except BaseException:
            self.cleanup()
            raise

    def _accept(self, listener):
        with listener:
            listener.settimeout(sd.TIMEOUT)
            try:
                return listener.accept()[0]
            except TimeoutError:
                raise sd.Timeout(f'the program does not connect:\n{self.stderr()}') from None

    def clock_step(self, ns):
        """What the program answers to one step of the clock."""
        self.qtest.write(f'clock_step {ns}\n')
        self.qtest.flush()
        return self.qtest.readline().strip()

    @property
    def log(self):
        return self.stderr()

    def cleanup(self):
        super().cleanup()
        if self.qtest:
            self.qtest.close()
        shutil.rmtree(self.dir, ignore_errors=True)
