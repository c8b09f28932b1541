"""qcow2 with lazy refcounts: the dirty bit, and the repair of what was not closed."""
import json
import subprocess
import time

import sd

DIRTY = 1


class Lazy(sd.Case):
    def image(self, lazy='on'):
        return sd.create_image(self.path('disk.qcow2'), 'qcow2', 8 * sd.MIB,
                               options={'lazy_refcounts': lazy, 'cluster_size': 4096})

    def open(self, image, **more):
        d = self.daemon()
        d.cmd('blockdev-add', {'driver': 'qcow2', 'node-name': 'n', **more,
                               'file': {'driver': 'file', 'filename': image}})
        return d

    def incompat(self, image):
        with open(image, 'rb') as f:
            return int.from_bytes(f.read(80)[72:], 'big')

    def write(self, d, commands, writable=True):
        uri = d.export('n', 'n', writable=writable, export_id='n')
        sd.run('qemu-io', '-f', 'raw', *([] if writable else ['-r']), *[x for c in commands for x in ('-c', c)], uri)

    def crashed(self):
        """An image with data, left dirty by a daemon that was killed."""
        image = self.image()
        d = self.open(image)
        self.write(d, ['write -P 7 0 64k', 'write -P 8 1M 4k', 'flush'])
        self.assertEqual(self.incompat(image), DIRTY)
        d.kill(image)
        self.assertEqual(self.incompat(image), DIRTY)
        return image

    def check(self, image, *options):
        return subprocess.run([sd.DAEMON, '--check', image, '--output=json', *options], capture_output=True, text=True,
                              timeout=sd.TIMEOUT, check=False)

    def test_clean_close(self):
        image = self.image()
        d = self.open(image)
        self.assertEqual(self.incompat(image), 0, 'opening writes nothing')
        self.write(d, ['write -P 7 0 64k', 'flush'])
        self.assertEqual(self.incompat(image), DIRTY)
        d.shutdown()
        self.assertEqual(self.incompat(image), 0)
        sd.check_image(image)

    def test_repaired_when_it_gets_a_writer(self):
        image = self.crashed()
        code = self.check(image).returncode
        self.assertIn(code, (2, 3), 'counts were late')
        d = self.open(image)
        self.assertIn("qcow2 image of node 'n' was not closed and has been repaired", d.stderr())
        self.assertEqual(self.incompat(image), 0)
        self.write(d, ['read -P 7 0 64k', 'read -P 8 1M 4k', 'write -P 9 2M 64k'])
        d.shutdown()
        sd.check_image(image)

    def test_read_only(self):
        image = self.crashed()
        d = self.open(image, **{'read-only': True})
        self.write(d, ['read -P 7 0 64k', 'read -P 8 1M 4k'], writable=False)
        d.shutdown()
        self.assertEqual(self.incompat(image), DIRTY)

    def test_commit_into_it(self):
        """A backing file is opened for reading. A commit makes it writable, which repairs it, and read-only again."""
        base = self.crashed()
        top = sd.create_image(self.path('top.qcow2'), 'qcow2', backing=base, backing_fmt='qcow2',
                              data=[(2 * sd.MIB, 65536, 9)])
        d = self.open(top)
        self.assertEqual(self.incompat(base), DIRTY)
        d.cmd('block-commit', job_id='j', device='n')
        d.wait_ready('j')
        self.assertIn('has been repaired', d.stderr())
        d.complete('j')
        d.shutdown()
        self.assertEqual(self.incompat(base), 0)
        sd.check_image(base)
        sd.run('qemu-io', '-f', 'qcow2', '-r', '-c', 'read -P 7 0 64k', '-c', 'read -P 8 1M 4k',
               '-c', f'read -P 9 {2 * sd.MIB} 64k', base)

    def test_cleaning_during_the_repair(self):
        """The caches are cleaned while there are none, since the repair is under way."""
        image = self.crashed()
        d = self.daemon()
        d.cmd('blockdev-add', {'driver': 'qcow2', 'node-name': 'n', 'read-only': True, 'cache-clean-interval': 1, 'file': {
            'driver': 'blkdebug', 'node-name': 'debug', 'image': {'driver': 'file', 'filename': image}}})

        def qemu_io(command):
            return {'command-line': f'qemu-io n "{command}"'}

        d.cmd('human-monitor-command', qemu_io('break reftable_load here'))
        with d.connect() as other:
            reopen = other.start('human-monitor-command', qemu_io('reopen -w'))
            d.cmd('human-monitor-command', qemu_io('wait_break here'))
            time.sleep(1.5)  # longer than the interval, and nothing tells when it is over
            d.cmd('human-monitor-command', qemu_io('resume here'))
            self.assertNotIn('error', other.finish(reopen))
        self.assertEqual(self.incompat(image), 0)
        d.shutdown()

    def test_what_cannot_be_repaired(self):
        """More references than one bit can count: nobody gets to write."""
        image = sd.create_image(self.path('one.qcow2'), 'qcow2', 8 * sd.MIB, data=[(0, 131072, 7)],
                                options={'refcount_bits': 1})
        with open(image, 'r+b') as f:
            header = f.read(104)
            f.seek(int.from_bytes(header[40:48], 'big'))
            l2 = int.from_bytes(f.read(8), 'big') & 0x00fffffffffffe00
            f.seek(l2)
            entry = f.read(8)
            f.seek(l2 + 8)
            f.write(entry)
            f.seek(72)
            f.write(DIRTY.to_bytes(8, 'big'))
        d = self.daemon()
        self.fails(d, 'Could not repair dirty image: 1 errors are left', 'blockdev-add',
                   {'driver': 'qcow2', 'node-name': 'n', 'file': {'driver': 'file', 'filename': image}})
        self.assertEqual(self.incompat(image), DIRTY)

    def test_option(self):
        """It decides over what the image says, both ways."""
        for image_says, option, dirty in (('on', False, 0), ('off', True, DIRTY)):
            with self.subTest(image=image_says):
                image = self.image(image_says)
                d = self.open(image, **{'lazy-refcounts': option})
                self.write(d, ['write -P 7 0 64k', 'flush'])
                self.assertEqual(self.incompat(image), dirty)
                d.shutdown()
                self.assertEqual(self.incompat(image), 0)
                sd.check_image(image)

    def test_version_2(self):
        image = sd.create_image(self.path('old.qcow2'), 'qcow2', sd.MIB, options={'compat': '0.10'})
        self.fails(self.daemon(), 'Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level',
                   'blockdev-add', {'driver': 'qcow2', 'node-name': 'n', 'lazy-refcounts': True,
                                    'file': {'driver': 'file', 'filename': image}})

    def test_check_sees_it(self):
        image = self.crashed()
        self.assertEqual(self.check(image, '--repair', 'all').returncode, 0)
        self.assertEqual(self.incompat(image), 0)
        self.assertEqual(json.loads(sd.run('qemu-img', 'check', '--output=json', image).stdout)['check-errors'], 0)


if __name__ == '__main__':
    sd.main()
