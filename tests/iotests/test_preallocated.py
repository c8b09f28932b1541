"""Copies of disks whose space was taken in advance: what was never written takes no space in the target."""
import os

import sd
from jobs import JobCase

SIZE = 16 * sd.MIB
DATA = (5 * sd.MIB, 192 * 1024)


class Preallocated(JobCase):
    def copy(self, command, source, fmt, target, target_fmt):
        with open(source, 'rb') as f:
            os.fsync(f.fileno())  # else ext4 may call space data that is not written yet
        sd.create_image(target, target_fmt, SIZE)
        with self.daemon() as d:
            self.node(d, 's', source, fmt)
            self.node(d, 't', target, target_fmt, discard='unmap')
            d.cmd(command, job_id='j', device='s', target='t', sync='full')
            if command == 'blockdev-mirror':
                d.complete('j')
            else:
                d.wait_completed('j')
        return os.stat(target).st_blocks * 512

    def test_holes_behind_clusters(self):
        """qcow2 has clusters everywhere, and the file holes in them."""
        for mode in ('metadata', 'falloc'):
            source = self.path(f'{mode}.qcow2')
            for command in ('blockdev-mirror', 'blockdev-backup'):
                for fmt in ('raw', 'qcow2'):
                    with self.subTest(mode=mode, command=command, fmt=fmt):
                        # In a memory file it is data once somebody has read it.
                        sd.create_image(source, 'qcow2', SIZE, options={'preallocation': mode}, data=[(*DATA, 0x5a)])
                        target = self.path(f't.{fmt}')
                        taken = self.copy(command, source, 'qcow2', target, fmt)
                        self.assertLess(taken, 2 * sd.MIB)
                        self.assertImagesEqual(source, target, 'qcow2', fmt)
                        os.unlink(target)
                        os.unlink(source)


if __name__ == '__main__':
    sd.main()
