"""storage-ctl: what people at a terminal see, and the exit codes that scripts see."""
import os
import pty
import re
import subprocess
import time

import sd


class Ctl(sd.Case):
    def setUp(self):
        self.d = self.daemon()

    def ctl(self, *args, code=0, **kw):
        p = sd.run(sd.CTL, '-s', self.d.socket, *args, check=False, **kw)
        self.assertEqual(p.returncode, code, p.stdout + p.stderr)
        return p

    def nodes(self, size=1 << 30):
        """Two nodes to mirror between."""
        self.d.cmd('blockdev-add', driver='null-co', node_name='a', size=size)
        self.d.cmd('blockdev-add', driver='null-co', node_name='b', size=size)

    def mirror(self, **more):
        self.d.cmd('blockdev-mirror', job_id='j', device='a', target='b', sync='full', **more)


class Words(Ctl):
    def test_help(self):
        for word in ('--help', '-h', 'help'):
            p = sd.run(sd.CTL, word)
            for command in ('status', 'jobs', 'watch', 'graph', 'qmp', 'events', 'Examples:'):
                self.assertIn(command, p.stdout)

    def test_wrong(self):
        for args, text in (((), 'what shall it do'), (('nosuch',), "no command 'nosuch'"), (('watch',), 'JOB'),
                           (('watch', 'a', 'b'), 'JOB'), (('status', 'x'), 'no arguments'), (('--x',), "'--x'"),
                           (('graph', '--svg'), '--dot')):
            with self.subTest(args=args):
                self.assertIn(text, self.ctl(*args, code=2).stderr)

    def test_socket(self):
        p = sd.run(sd.CTL, 'status', env={'STORAGE_DAEMON_SOCKET': self.d.socket})
        self.assertIn('no nodes', p.stdout)
        p = sd.run(sd.CTL, f'--socket={self.d.socket}', 'status', env={'STORAGE_DAEMON_SOCKET': '/no/such'})
        self.assertIn('no nodes', p.stdout)
        p = sd.run(sd.CTL, 'status', env={'STORAGE_DAEMON_SOCKET': '/no/such'}, check=False)
        self.assertEqual(p.returncode, 1)
        self.assertIn('/no/such', p.stderr)


class Shows(Ctl):
    def test_status(self):
        image = sd.create_image(self.path('a.qcow2'), 'qcow2', 64 << 20)
        self.d.cmd('blockdev-add', driver='qcow2', node_name='disk', file={'driver': 'file', 'filename': image})
        self.d.export('disk', name='x', export_id='e')
        text = self.ctl('status').stdout
        self.assertRegex(text, rf'(?m)^disk +qcow2 +64 MiB +rw +{re.escape(image)}$')
        self.assertRegex(text, r'(?m)^e +nbd +disk$')
        self.assertIn('no jobs', text)
        self.assertIn('no devices', text)

    def test_jobs(self):
        self.nodes()
        self.mirror(speed=1 << 20)
        self.assertRegex(self.ctl('jobs').stdout, r'(?m)^j +mirror +running +\d+\.\d% +at most 1 MiB/s$')
        self.assertIn('j ', self.ctl('status').stdout)

    def test_graph(self):
        base = sd.create_image(self.path('base'), 'qcow2', 1 << 20)
        top = sd.create_image(self.path('top'), 'qcow2', backing=base)
        self.d.cmd('blockdev-add', driver='qcow2', node_name='top', file={'driver': 'file', 'filename': top})
        for locale, branch in (('C', '|- '), ('C.UTF-8', '├─ ')):
            text = self.ctl('graph', env={'LC_ALL': locale}).stdout
            self.assertTrue(text.startswith('top (qcow2, 1 MiB)\n'), text)
            self.assertRegex(text, re.escape(branch) + r'file: #block\d+ \(file, ')
            self.assertEqual(text.count('\n'), 4)
        dot = self.ctl('graph', '--dot').stdout
        self.assertEqual(dot.count('->'), 3)
        self.assertTrue(dot.startswith('digraph') and dot.endswith('}\n'))

    def test_events(self):
        p = subprocess.Popen([sd.CTL, '-s', self.d.socket, 'events'], stdout=subprocess.PIPE)
        try:
            # It listens when its first event comes; jobs until then are not seen.
            self.nodes(1 << 20)
            deadline = time.monotonic() + sd.TIMEOUT
            os.set_blocking(p.stdout.fileno(), False)
            text = b''
            while b'BLOCK_JOB_COMPLETED' not in text and time.monotonic() < deadline:
                self.mirror()
                self.d.complete('j')
                text += p.stdout.read() or b''
            self.assertRegex(text.decode(), r'(?m)^\d\d:\d\d:\d\d\.\d{6} BLOCK_JOB_COMPLETED \{.*"device": "j"')
        finally:
            p.kill()
            p.wait()
            p.stdout.close()


class Steps(Ctl):
    def test_no_rate_of_steps(self):
        """What a create or an amend job has done is no number of bytes."""
        self.ctl('qmp', 'blockdev-create', '{"job-id": "c", "options": {"driver": "file", "size": 0, "filename": "%s"}}'
                 % self.path('new'))
        text = self.ctl('watch', 'c').stdout
        self.assertIn('c is done', text)
        self.assertNotIn('/s', text)


class Commands(Ctl):
    def test_arguments(self):
        self.assertEqual(self.ctl('qmp', 'blockdev-add', 'driver=null-co', 'node-name=n', 'size=4096',
                                  'read-zeroes=true', 'cache.direct=false').stdout, '')
        self.assertEqual(self.d.node('n')['image']['virtual-size'], 4096)
        self.ctl('qmp', 'blockdev-add', '{"driver": "raw", "node-name": "r", "file": "n"}')
        self.ctl('qmp', 'nbd-server-start', 'addr.type=inet', 'addr.data.host=127.0.0.1', 'addr.data.port="0"')
        self.ctl('qmp', 'block-export-add', 'type=nbd', 'id=e', 'node-name=r', 'allocation-depth=true')
        self.assertIn('"node-name": "r"', self.ctl('qmp', 'query-block-exports').stdout)

    def test_errors(self):
        self.assertIn("nosuch has not been found", self.ctl('qmp', 'nosuch', code=1).stderr)
        self.assertIn("'driver' is missing", self.ctl('qmp', 'blockdev-add', code=1).stderr)
        self.assertIn("'x'", self.ctl('qmp', 'blockdev-add', 'x', code=1).stderr)
        self.assertIn('JSON', self.ctl('qmp', 'blockdev-add', '{', code=1).stderr)

    def test_quit(self):
        self.assertEqual(self.ctl('qmp', 'quit').stdout, '')
        self.d.check_exit()


class Watch(Ctl):
    def test_no_job(self):
        self.assertIn("no job 'j'", self.ctl('watch', 'j', code=1).stderr)

    def test_ready(self):
        self.nodes()
        self.mirror(speed=600 << 20)
        lines = self.ctl('watch', 'j').stdout.splitlines()
        self.assertEqual(lines[-1], 'j is ready')
        self.assertEqual(lines[-2], 'j 100.0%' if len(lines[-2]) < 10 else lines[-2])
        self.assertTrue(all(re.match(r'j +\d+\.\d%', line) for line in lines[:-1]), lines)
        # It is ready already.
        self.assertEqual(self.ctl('watch', 'j').stdout.splitlines()[-1], 'j is ready')

    def test_done(self):
        self.nodes()
        self.d.cmd('blockdev-backup', job_id='j', device='a', target='b', sync='full', speed=600 << 20)
        self.assertEqual(self.ctl('watch', 'j').stdout.splitlines()[-1], 'j is done')

    def test_concluded(self):
        self.nodes(1 << 20)
        self.d.cmd('blockdev-backup', job_id='j', device='a', target='b', sync='full', auto_dismiss=False)
        self.d.wait_completed('j')
        self.assertEqual(self.ctl('watch', 'j').stdout.splitlines()[-1], 'j is done')
        self.d.cmd('job-dismiss', id='j')

    def test_cancelled(self):
        self.nodes()
        self.mirror(speed=1 << 20)
        p = subprocess.Popen([sd.CTL, '-s', self.d.socket, 'watch', 'j'], stdout=subprocess.PIPE, text=True)
        self.assertRegex(p.stdout.readline(), r'^j +\d')
        self.d.cmd('job-cancel', id='j')
        self.assertEqual(p.stdout.read().splitlines()[-1], 'j failed: cancelled')
        self.assertEqual(p.wait(sd.TIMEOUT), 1)
        p.stdout.close()

    def test_terminal(self):
        """On a terminal a bar is drawn over and over."""
        self.nodes()
        self.mirror(speed=400 << 20)
        ours, theirs = pty.openpty()
        p = subprocess.Popen([sd.CTL, '-s', self.d.socket, 'watch', 'j'], stdout=theirs,
                             env={**os.environ, 'LC_ALL': 'C.UTF-8'})
        os.close(theirs)
        text = b''
        try:
            while True:
                text += os.read(ours, 4096)
        except OSError:  # what Linux says when the other side is closed
            pass
        os.close(ours)
        self.assertEqual(p.wait(sd.TIMEOUT), 0)
        text = text.decode()
        self.assertGreater(text.count('\rj '), 5)
        self.assertRegex(text, r'█+░+ +\d+\.\d%  .*MiB/s  0:0\d left')
        self.assertTrue(text.endswith('j is ready\r\n'), text)
        self.assertNotIn('\n', text[:text.rindex('j is ready') - 2])

    def test_daemon_dies(self):
        self.nodes()
        self.mirror(speed=1 << 20)
        p = subprocess.Popen([sd.CTL, '-s', self.d.socket, 'watch', 'j'], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True)
        p.stdout.readline()
        self.d.kill()
        out, err = p.communicate(timeout=sd.TIMEOUT)
        self.assertEqual(p.returncode, 1)
        self.assertIn('closed the connection', err)


if __name__ == '__main__':
    sd.main()
