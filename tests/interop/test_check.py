"""storage-daemon --check: our verdict on every broken image beside qemu-img's; its command line."""
import fcntl
import json
import os
import pty
import shutil
import struct
import subprocess
import termios
import unittest

import broken_images
from check_images import Broken, content, ours, theirs
import sd

COUNTS = ('image-end-offset', 'total-clusters', 'allocated-clusters', 'fragmented-clusters', 'compressed-clusters',
          'check-errors', 'corruptions', 'leaks')
# The header read as an L1 table, and that once more as an L2 table: we look at flags of ownership there as well.
OTHER_COUNTS = {'v3-l1-0x0': ('corruptions',), 'v3-l1-size-0x400000': ('corruptions',)}


class Verdicts(Broken):
    def test_verdicts(self):
        def judge(name, path):
            mine, their = ours(path), theirs(path)
            if mine[0] != their[0]:
                return f'{name}: we say {mine}, qemu-img says {their}'
            if not their[1]:  # it could not even open it
                return None
            differ = [f'{k}: {mine[1].get(k)}, not {their[1].get(k)}' for k in COUNTS
                      if mine[1].get(k) != their[1].get(k) and k not in OTHER_COUNTS.get(name, ())]
            return f'{name}: {"; ".join(differ)}' if differ else None

        self.assertGreater(len(self.each(judge)), 450)

    def test_check_writes_nothing(self):
        def judge(name, path):
            before = broken_images.Image.read(path).data
            ours(path)
            return None if broken_images.Image.read(path).data == before else f'{name} was changed'

        self.each(judge, lambda name: name.startswith(('v3-', 'snap-', 'bitmaps-', 'rc1-')))


class Qed(sd.Case):
    def test_verdicts_and_repair(self):
        for name, path in broken_images.make_all_qed(self.dir):
            with self.subTest(name):
                mine, their = ours(path), theirs(path)
                self.assertEqual(mine[:2], their[:2])
                if mine[0] in (0, 1):
                    continue
                raw = path + '.raw'
                was = content(path, raw)
                mine = ours(path, '--repair', 'all')
                self.assertEqual(mine[0], theirs(path)[0])
                if was is not None:
                    self.assertEqual(content(path, raw), was)
                if 'shared' not in name and 'on-l1' not in name:
                    self.assertIn(mine[0], (0, 3), 'nothing but leaks is left')


class Cli(sd.Case):
    def setUp(self):
        super().setUp()
        self.image = sd.create_image(self.path('disk.qcow2'), 'qcow2', 8 * sd.MIB, data=[(0, sd.MIB, 0x11)])

    def run_check(self, *options, image=None):
        return subprocess.run([sd.DAEMON, '--check', image or self.image, *options], capture_output=True, text=True,
                              timeout=sd.TIMEOUT, check=False)

    def test_human(self):
        p = self.run_check()
        self.assertEqual((p.returncode, p.stderr), (0, ''))
        self.assertIn('No errors were found on the image.\n16/128 = 12.50% allocated, 0.00% fragmented', p.stdout)
        self.assertRegex(p.stdout, r'\nImage end offset: \d+\n$')

    def test_json_is_qemu_imgs(self):
        p = json.loads(self.run_check('--output', 'json').stdout)
        self.assertEqual(p, theirs(self.image)[1])

    def test_formats(self):
        raw = sd.create_image(self.path('disk.raw'), 'raw', sd.MIB)
        self.assertEqual(self.run_check(image=raw).returncode, 63)
        self.assertEqual(self.run_check('--format', 'raw').returncode, 63)
        self.assertIn('not in qcow2 format', self.run_check('--format', 'qcow2', image=raw).stderr)
        self.assertIn("Unknown file format 'x'", self.run_check('--format', 'x').stderr)
        p = self.run_check(image=self.path('nothing'))
        self.assertEqual(p.returncode, 1)
        self.assertIn('No such file', p.stderr)

    def test_options(self):
        for args, text in ((['--repair', 'some'], "must be 'leaks' or 'all'"), (['--output', 'xml'], "'json' or 'human'"),
                           (['--qmp', 'x'], "'--qmp' does not go with --check")):
            p = self.run_check(*args)
            self.assertEqual(p.returncode, 1)
            self.assertIn(text, p.stderr)
        p = subprocess.run([sd.DAEMON, '--repair', 'all'], capture_output=True, text=True, check=False)
        self.assertEqual(p.returncode, 1)
        self.assertIn("'--repair' needs '--check'", p.stderr)

    def test_in_use(self):
        d = self.daemon('--blockdev', f'qcow2,node-name=n,file.driver=file,file.filename={self.image}')
        e = d.export('n', 'n', writable=True)
        self.assertTrue(e)
        p = self.run_check('--repair', 'all')
        self.assertEqual(p.returncode, 1)
        self.assertIn('lock', p.stderr)

    def test_repaired_is_told(self):
        broken = broken_images.Image.read(self.image)
        for _ in range(3):
            broken.append_cluster()
        broken.incompat |= 3
        broken.save(self.image)
        self.assertEqual(self.run_check().returncode, 3)
        p = self.run_check('--repair', 'leaks')
        self.assertEqual(p.returncode, 0)
        self.assertIn('found and repaired:\n\n    3 leaked clusters\n    0 corruptions\n', p.stdout)
        self.assertEqual(broken_images.Image.read(self.image).incompat, 0)

    def test_corrupt_bit(self):
        broken = broken_images.Image.read(self.image)
        broken.incompat |= 2
        broken.save(self.image)
        d = self.daemon()
        node = {'driver': 'qcow2', 'node-name': 'n', 'file': {'driver': 'file', 'filename': self.image}}
        with self.assertRaisesRegex(sd.QmpError, 'qcow2: Image is corrupt; cannot be opened read/write'):
            d.cmd('blockdev-add', node)
        d.cmd('blockdev-add', {**node, 'read-only': True})
        answer = d.cmd('human-monitor-command', command_line='qemu-io n "read -P 0x11 0 1M"')
        self.assertNotIn('fail', answer)
        d.cmd('blockdev-del', node_name='n')
        self.assertEqual(self.run_check('--repair', 'all').returncode, 0)
        d.cmd('blockdev-add', node)

    def test_bar(self):
        """On a terminal there is a bar when it takes time; it is gone at the end, and no part of what pipes get."""
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 100, 0, 0))
        image = sd.create_image(self.path('wide.qcow2'), 'qcow2', sd.MIB, options={'cluster_size': 512})
        wide = broken_images.Image.read(image)
        wide.l1_size, wide.size = 600000, 600000 * 64 * 512
        table = wide.append_cluster()
        wide.set_refcount(table // 512, 2)
        wide.l1 = wide.clusters * 512
        wide.data.extend(table.to_bytes(8, 'big') * wide.l1_size)
        wide.save(image)
        with subprocess.Popen([sd.DAEMON, '--check', image], stdout=subprocess.PIPE, stderr=slave, text=True) as p:
            os.close(slave)
            seen = b''
            while True:
                try:
                    data = os.read(master, 4096)
                except OSError:  # the other side is closed
                    break
                if not data:
                    break
                seen += data
            out = p.stdout.read()
        os.close(master)
        self.assertEqual(p.returncode, 2)
        self.assertIn('errors were found', out)
        self.assertNotIn('left', out)
        self.assertRegex(seen.decode(), r'\rChecking +\[#* *\] +\d+ %  [\d.]+ \S*B/s  \d+:\d\d left')
        self.assertNotIn(b'left', seen.rsplit(b'\r\x1b[K', 1)[1])


class Speed(sd.Case):
    @unittest.skipUnless(os.environ.get('SD_SPEED'), 'SD_SPEED is not set')
    def test_64_gib(self):
        """For figures: qemu-img's time and ours."""
        image = self.path('big.qcow2')
        sd.create_image(image, 'qcow2', 64 * sd.GIB)
        sd.run('qemu-io', '-f', 'qcow2', *[x for i in range(1024) for x in ('-c', f'write {i * 64}M 1M')], image)
        shutil.copy(image, image + '.copy')
        self.assertEqual(ours(image)[1], theirs(image)[1])


if __name__ == '__main__':
    sd.main()
