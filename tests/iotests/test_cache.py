"""Caches of qcow2's metadata: what they cost, and cache-clean-interval."""
import os
import time
import unittest

import sd

TABLES = 2048  # of 4 KiB, each for 2 MiB of the disk


@unittest.skipIf('SD_TIMEOUT' in os.environ, 'sanitizers take memory of their own')
class Cache(sd.Case):
    def memory(self, d):
        """Bytes."""
        with open(f'/proc/{d.pid}/statm') as f:
            return int(f.read().split()[1]) * 4096

    def test_memory(self):
        """Tables cost what they hold, and after a while without use nothing."""
        image = sd.create_image(self.path('disk'), 'qcow2', TABLES * 2 * sd.MIB, options={'cluster_size': 4096})
        d = self.daemon()
        d.cmd('blockdev-add', {'driver': 'qcow2', 'node-name': 'q', 'cache-clean-interval': 1,
                               'l2-cache-size': TABLES * 4096, 'file': {'driver': 'file', 'filename': image}})
        with sd.nbd_connect(d.export('q', writable=True)) as h:
            h.pwrite(bytes(512), 0)  # what the first request costs once
            before = self.memory(d)
            for i in range(TABLES):
                h.pwrite(b'x' * 512, i * 2 * sd.MIB)
            h.flush()
            most = self.memory(d) - before
            self.assertLess(most, TABLES * 4096 * 3 // 2)
            self.assertGreater(most, TABLES * 4096 // 2)
            deadline = time.monotonic() + sd.TIMEOUT
            while self.memory(d) - before > most // 4:
                self.assertLess(time.monotonic(), deadline, 'the memory does not come back')
                time.sleep(0.1)
            for i in range(0, TABLES, 64):
                self.assertEqual(b'x' * 512, h.pread(512, i * 2 * sd.MIB))
        d.shutdown()
        sd.check_image(image)


if __name__ == '__main__':
    sd.main()
