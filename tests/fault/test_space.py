"""A full disk: errors reach the client and the job, images stay whole, and work goes on when there is room again."""
import errno
import os

import nbd
import sd

SIZE = 32 * sd.MIB


class Full(sd.Case):
    def tmpfs(self, size):
        """A small file system of its own for the daemon; the case sees it through /proc. (words to start it, path)"""
        p = sd.run('unshare', '-m', 'true', check=False)
        if p.returncode:
            self.skipTest(f'no mount namespaces here: {p.stderr.strip()}')
        mount = self.path('small')
        os.mkdir(mount)
        return ('unshare', '-m', 'sh', '-c', f'mount -t tmpfs -o size={size} none "$0" && exec "$@"', mount), mount

    def inside(self, d, path):
        return f'/proc/{d.pid}/root{path}'

    def fill(self, h):
        """Writes until it fails; (bytes that went well, errno)."""
        for start in range(0, SIZE, 65536):
            try:
                h.pwrite(os.urandom(65536), start)
            except nbd.Error as e:
                return start, e.errnum
        self.fail('the disk never filled up')

    def test_nbd_writes(self):
        for fmt in ('raw', 'qcow2'):
            with self.subTest(fmt):
                wrapper, mount = self.tmpfs(sd.MIB * 2) if fmt == 'raw' else self.again
                self.again = wrapper, mount
                d = self.daemon(wrapper=wrapper)
                image = f'{mount}/a.{fmt}'
                sd.create_image(self.inside(d, image), fmt, SIZE)
                d.cmd('blockdev-add', driver=fmt, node_name='n', file={'driver': 'file', 'filename': image})
                with sd.nbd_connect(d.export('n', writable=True)) as h:
                    good, number = self.fill(h)
                    self.assertEqual(errno.ENOSPC, number)
                    self.assertGreater(good, sd.MIB // 2)
                    h.pwrite(b'k' * 65536, 0)  # what is allocated can still be written
                    self.assertEqual(b'k' * 65536, h.pread(65536, 0))
                    h.flush()
                d.cmd('block-export-del', id='exp-n')
                d.event_wait('BLOCK_EXPORT_DELETED')
                d.cmd('blockdev-del', node_name='n')
                if fmt == 'qcow2':
                    p = sd.qemu_img('check', '-f', fmt, self.inside(d, image), check=False)
                    self.assertIn(p.returncode, (0, 3), p.stdout + p.stderr)  # leaks at worst
                sd.qemu_io(self.inside(d, image), 'read -q -P 0x6b 0 65536', fmt=fmt)

    def test_room_again(self):
        wrapper, mount = self.tmpfs(4 * sd.MIB)
        d = self.daemon(wrapper=wrapper)
        ballast = self.inside(d, f'{mount}/ballast')
        with open(ballast, 'wb') as f:
            f.write(bytes(2 * sd.MIB))
        sd.create_image(self.inside(d, f'{mount}/a.qcow2'), 'qcow2', SIZE)
        d.cmd('blockdev-add', driver='qcow2', node_name='n', file={'driver': 'file', 'filename': f'{mount}/a.qcow2'})
        with sd.nbd_connect(d.export('n', writable=True)) as h:
            good, _ = self.fill(h)
            os.unlink(ballast)
            h.pwrite(b'r' * 65536, good)
            self.assertEqual(b'r' * 65536, h.pread(65536, good))
            h.flush()

    def test_jobs(self):
        for job in ('mirror', 'backup'):
            with self.subTest(job):
                wrapper, mount = self.tmpfs(2 * sd.MIB) if job == 'mirror' else self.again
                self.again = wrapper, mount
                d = self.daemon(wrapper=wrapper)
                source = sd.create_image(self.path(f'{job}.img'), 'raw', SIZE, data=[(0, 8 * sd.MIB, 0x42)])
                sd.create_image(self.inside(d, f'{mount}/t.qcow2'), 'qcow2', SIZE)
                d.cmd('blockdev-add', driver='raw', node_name='s', file={'driver': 'file', 'filename': source})
                d.cmd('blockdev-add', driver='qcow2', node_name='t', file={'driver': 'file', 'filename': f'{mount}/t.qcow2'})
                d.cmd(f'blockdev-{job}', job_id='j', device='s', target='t', sync='full')
                d.event_wait('BLOCK_JOB_ERROR', {'device': 'j', 'operation': 'write', 'action': 'report'})
                d.wait_completed('j', error='No space left on device')
                self.assertEqual([], d.cmd('query-block-jobs'))
                with sd.nbd_connect(d.export('s', writable=True)) as h:
                    h.pwrite(b'w' * 512, 0)
                d.cmd('block-export-del', id='exp-s')
                d.event_wait('BLOCK_EXPORT_DELETED')
                for node in 's', 't':
                    d.cmd('blockdev-del', node_name=node)


if __name__ == '__main__':
    sd.main()
