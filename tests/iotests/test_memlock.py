"""RLIMIT_MEMLOCK, which the kernel charges io_uring's entries to, unless a process has CAP_IPC_LOCK."""
import os
import subprocess
import unittest

import sd


@unittest.skipIf(os.geteuid(), 'other processes of the user would count as well')
class LockedMemory(sd.Case):
    @staticmethod
    def words(limit):
        return ['prlimit', f'--memlock={limit}', 'setpriv', '--bounding-set=-ipc_lock', '--inh-caps=-ipc_lock']

    def test_less_than_usual(self):
        """Enough for a smaller ring: slower, but it works, many requests at once included."""
        import nbd
        for limit in (48 << 10, 1 << 20):
            path = sd.create_image(self.path(f'{limit}.img'), 'raw', sd.MIB)
            with self.subTest(limit=limit):
                d = self.daemon('--blockdev', f'file,node-name=n,filename={path}', wrapper=self.words(limit))
                with sd.nbd_connect(d.export('n', writable=True)) as h:
                    cookies = [h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([i % 256]) * 4096), i * 4096)
                               for i in range(256)]
                    for cookie in cookies:
                        while not h.aio_command_completed(cookie):
                            h.poll(-1)
                    self.assertEqual(h.pread(4096, 200 * 4096), bytes([200]) * 4096)

    def test_none(self):
        p = subprocess.run([*self.words(0), sd.DAEMON, '--blockdev', 'null-co,node-name=n'], capture_output=True, text=True,
                           timeout=sd.TIMEOUT, check=False)
        self.assertEqual(p.returncode, 1)
        for text in ('Cannot create an io_uring', '0 KiB together', 'RLIMIT_MEMLOCK', 'LimitMEMLOCK=', 'CAP_IPC_LOCK'):
            self.assertIn(text, p.stderr)


if __name__ == '__main__':
    sd.main()
