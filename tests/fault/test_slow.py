"""Slow devices behind nbdkit's delay filter: what waits for one holds up nothing else."""
import os
import signal
import subprocess
import threading
import time

import sd

CLUSTER = 65536


class Slow(sd.Case):
    def slow_disk(self, size, *delays):
        """A memory disk behind nbdkit that takes its time: the options of a node on it."""
        path = self.path('slow')
        p = subprocess.Popen(['nbdkit', '-f', '-U', path, '-P', self.path('pid'), '--filter=delay', 'memory', str(size), *delays],
                             stdin=subprocess.DEVNULL)
        self.addCleanup(p.wait)
        self.addCleanup(p.kill)  # it would wait for the daemon to leave
        deadline = time.monotonic() + sd.TIMEOUT
        while not os.path.exists(path) and time.monotonic() < deadline:
            time.sleep(0.01)
        return {'driver': 'nbd', 'server': {'type': 'unix', 'path': path}}

    def test_the_end_does_not_wait_for_a_silent_server(self):
        """A server that hangs takes a request and never answers: the daemon leaves without that."""
        d = self.daemon()
        d.cmd('blockdev-add', self.slow_disk(CLUSTER), node_name='n')
        with open(self.path('pid')) as f:
            os.kill(int(f.read()), signal.SIGSTOP)
        d.cmd('human-monitor-command', command_line='qemu-io n "aio_write 0 4k"')  # on its way when this returns
        begin = time.monotonic()
        d.terminate()
        self.assertGreater(time.monotonic() - begin, 5)  # it did wait
        self.assertIn("node 'n'", d.stderr())

    def test_backup_waits_for_a_client(self):
        """The last cluster is being copied on behalf of a client's write when the job has nothing else left to do."""
        source = sd.create_image(self.path('s.img'), 'raw', 2 * CLUSTER, data=[(0, 2 * CLUSTER, 0x11)])
        d = self.daemon('--blockdev', f'raw,node-name=s,file.driver=file,file.filename={source}')
        d.cmd('blockdev-add', self.slow_disk(2 * CLUSTER, 'wdelay=1500ms'), node_name='t')
        uri = d.export('s', writable=True)
        d.cmd('blockdev-backup', job_id='j', device='s', target='t', sync='full', speed=CLUSTER)

        def write():
            with sd.nbd_connect(uri) as h:
                h.pwrite(b'\x22' * 512, CLUSTER)

        client = threading.Timer(0.3, write)
        client.start()
        for _ in range(40):  # a daemon that spins would not answer
            d.cmd('query-jobs', timeout=1)
            time.sleep(0.1)
        client.join()
        d.wait_completed('j')
        with sd.nbd_connect(d.export('t')) as h:
            self.assertEqual(b'\x11' * 2 * CLUSTER, h.pread(2 * CLUSTER, 0))


if __name__ == '__main__':
    sd.main()
