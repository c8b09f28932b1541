"""human-monitor-command: qemu-io on devices and nodes, info block, info block-jobs, commit, block_resize."""
import re

import sd


class Hmp(sd.Case):
    def setUp(self):
        self.base = sd.create_image(self.path('base.qcow2'), 'qcow2', sd.MIB, data=[(0, 65536, 0x11)])
        self.top = sd.create_image(self.path('top.qcow2'), 'qcow2', backing=self.base)

    def start(self, *more):
        self.d = self.daemon('--drive', f'id=drive0,file={self.top},format=qcow2,node-name=top,backing.node-name=base',
                             *more)
        self.read = 0
        return self.d

    def hmp(self, line):
        return self.d.cmd('human-monitor-command', command_line=line)

    def io(self, command, target='drive0', reply=''):
        """What a qemu-io command prints on standard output; the reply must be @reply."""
        self.assertEqual(reply, self.hmp(f'qemu-io {target} "{command}"'))
        text = self.d.stdout()
        new, self.read = text[self.read:], len(text)
        return new

    def ok(self, out, verb, size, offset):
        self.assertRegex(out, rf'\A{verb} {size}/{size} bytes at offset {offset}\n'
                              r'[\d.]+ (bytes|[KMG]iB), 1 ops; \d\d\.\d\d sec '
                              r'\([\d.]+ (bytes|[KMGTPE]iB)/sec and [\d.]+ ops/sec\)\n\Z')


class QemuIo(Hmp):
    def test_write_and_read(self):
        self.start()
        self.ok(self.io('write -P 0x5a 64k 128k'), 'wrote', 131072, 65536)
        self.ok(self.io('read -P 0x5a 64k 128k'), 'read', 131072, 65536)
        self.ok(self.io('read -P0x11 0 64k', target='top'), 'read', 65536, 0)
        self.assertTrue(self.io('read -P 1 0 1k').startswith('Pattern verification failed at offset 0, 1024 bytes\nread 1024'))
        self.assertEqual('', self.io('write -q -P 7 0 512'))
        self.assertEqual('', self.io('read -q -P 7 0 512'))
        self.ok(self.io('writev -P 8 0 512 1k'), 'wrote', 1536, 0)
        self.ok(self.io('readv -P 8 0 1k 512'), 'read', 1536, 0)
        self.assertEqual('', self.io('flush'))
        self.d.shutdown()
        sd.qemu_io(self.top, 'read -P 8 0 1536', 'read -P 0x11 1536 64000', 'read -P 0x5a 64k 128k', fmt='qcow2')
        sd.check_image(self.top)

    def test_options_anywhere_and_together(self):
        self.start()
        self.ok(self.io('write 0 512 -P 4'), 'wrote', 512, 0)
        self.ok(self.io('write -zu 0 64k'), 'wrote', 65536, 0)
        self.ok(self.io('read -P0 0 64k'), 'read', 65536, 0)
        self.ok(self.io('write -f -P 5 0 512'), 'wrote', 512, 0)
        self.assertRegex(self.io('read -C 0 512'), r'\A512,1,0:00:00\.\d\d,[\d.]+,[\d.]+\n\Z')
        self.ok(self.io('read -P 5 -s 2 -l 10 0 512'), 'read', 512, 0)
        self.assertIn('failed at offset 4, 6 bytes', self.io('read -P 1 -s 4 -l 6 0 512'))

    def test_dump(self):
        self.start()
        self.io('write -P 0x41 0 16')
        self.assertTrue(self.io('read -v 0 20').startswith(
            '00000000:  ' + ' '.join(['41'] * 16) + '  ' + 'A' * 16 + '\n00000010:  11 11 11 11  ....\nread 20/20'))

    def test_like_qemu_io(self):
        """The same commands to qemu-io itself print the same, numbers of time left out."""
        commands = ['write -P 3 4k 60k', 'read -P 3 4k 60k', 'read -P 4 4k 60k', 'read -v 4000 200', 'write 2M 512',
                    'read 2M 512', 'write 1 1', 'write -z 0 128k', 'write -zu 0 64k', 'discard 64k 64k', 'alloc 0',
                    'alloc 0 256k', 'alloc 3M', 'length', 'map', 'write 0', 'write x 1', 'write 0 x', 'write -P xx 0 512',
                    'read 0 1.5k', 'readv -P 0 64k 1k 512', 'write -u 0 64k', 'write -n 0 512', 'flush', 'flush 1',
                    'discard 9M 1k', 'nosuch 1', 'sleep x', 'sleep 1', 'read -P 1 -s 4 -l 600 0 512', 'aio_flush',
                    'break write_aio A', 'resume A', 'remove_break A', 'truncate 2M', 'length', 'write 0 3G',
                    'write -f 0 1k', 'write -q 0 1k', 'read -C 0 1k', 'read -qv 0 16']
        twin = sd.create_image(self.path('twin.qcow2'), 'qcow2', backing=self.base)
        self.start()

        def timeless(text):
            text = re.sub(r'1 ops; .*', '1 ops;', text)
            return re.sub(r'(?m)^(\d+,1),.*', r'\1', text)

        for command in commands:
            with self.subTest(command):
                p = sd.run('qemu-io', '-f', 'qcow2', '-c', command, twin, check=False)
                self.assertEqual(timeless(p.stdout + p.stderr), timeless(self.io(command)))
        self.d.shutdown()
        self.assertImagesEqual(twin, self.top, 'qcow2', 'qcow2')
        sd.check_image(self.top)

    def test_aio(self):
        self.start()
        self.io('aio_write -P 6 0 64k')
        self.io('aio_write -z 64k 64k')
        self.io('aio_flush')
        self.assertIn('wrote 65536/65536 bytes at offset 0', self.d.stdout())
        self.io('aio_read -P 6 0 32k 32k')
        self.io('aio_flush')
        self.assertIn('read 65536/65536 bytes at offset 0', self.d.stdout())
        self.assertNotIn('Pattern', self.d.stdout())
        self.io('aio_read -P 7 0 512')
        self.io('aio_flush')
        self.assertIn('Pattern verification failed at offset 0, 512 bytes', self.d.stdout())
        self.io('aio_write 8M 512')
        self.io('aio_flush')
        self.assertIn('aio_write failed: Input/output error', self.d.stdout())

    def test_aio_counts_as_client(self):
        self.start()
        self.io('write 0 1k')
        self.assertEqual(0, self.d.cmd('query-blockstats')[0]['stats']['wr_operations'])
        self.io('aio_write 0 1k')
        self.io('aio_flush')
        stats = self.d.cmd('query-blockstats')[0]['stats']
        self.assertEqual((1, 1024), (stats['wr_operations'], stats['wr_bytes']))

    def test_failures_are_told(self):
        self.start('--drive', 'id=cd,media=cdrom', '--blockdev',
                   f'qcow2,node-name=ro,read-only=on,file.driver=file,file.filename={self.base}')
        self.assertEqual("Error: Cannot find device='none' nor node-name='none'\r\n", self.hmp('qemu-io none "read 0 1"'))
        self.assertEqual("Error: Device 'cd' has no medium\r\n", self.hmp('qemu-io cd "read 0 1"'))
        self.assertIn("Block node is read-only", self.hmp('qemu-io ro "write 0 512"'))
        self.assertIn('Error: Device \'q\' not found', self.hmp('qemu-io -d q "read 0 1"'))
        self.ok(self.io('read 0 512', target='ro'), 'read', 512, 0)
        self.assertIn('write: invalid option -- \'Z\'\nwrite [', self.io('write -Z 0 1'))
        self.assertIn('requires an argument', self.io('write 0 512 -P'))
        self.assertIn('Usage: qemu-io', self.hmp('qemu-io drive0'))
        self.assertIn('Usage: qemu-io', self.hmp('qemu-io drive0 read 0 512'))
        self.assertEqual('Error: unterminated string\r\n', self.hmp('qemu-io drive0 "read 0 512'))
        # Nothing of a port stays behind.
        self.d.cmd('blockdev-del', node_name='ro')

    def test_break(self):
        self.d = self.daemon('--blockdev', 'raw,node-name=n,file.driver=blkdebug,file.image.driver=null-co,file.image.size=1048576')
        self.read = 0
        self.assertEqual('', self.io('break write_aio A', target='n'))
        self.assertNotIn('wrote', self.io('aio_write 0 512', target='n'))
        self.io('wait_break A', target='n')
        self.assertIn('Could not resume request', self.io('resume B', target='n'))
        self.assertNotIn('wrote 512', self.d.stdout())
        # Others are not held up.
        self.ok(self.io('read 0 512', target='n'), 'read', 512, 0)
        self.io('resume A', target='n')
        self.io('aio_flush', target='n')
        self.assertIn('wrote 512/512', self.d.stdout())
        self.read = len(self.d.stdout())
        self.assertIn('Could not set breakpoint', self.io('break no_such_event A', target='n'))
        self.assertIn('Could not remove breakpoint Z', self.io('remove_break Z', target='n'))
        self.io('break read_aio B', target='n')
        self.io('aio_read 0 512', target='n')
        self.io('wait_break B', target='n')
        self.io('remove_break B', target='n')
        self.io('aio_flush', target='n')
        self.assertIn('read 512/512', self.d.stdout())

    def test_end_with_requests_held_up(self):
        """Neither a request at a breakpoint nor a command that waits for one keeps the process from ending well."""
        d = self.d = self.daemon('--blockdev',
                                 f'qcow2,node-name=n,file.driver=blkdebug,file.image.driver=file,file.image.filename={self.top}')
        self.hmp('qemu-io n "break write_aio A"')
        self.hmp('qemu-io n "aio_write -P 9 0 64k"')
        self.hmp('qemu-io n "wait_break A"')
        with d.connect() as other:
            other.start('human-monitor-command', command_line='qemu-io n "wait_break never"')
            d.shutdown()
        sd.check_image(self.top)
        sd.qemu_io(self.top, 'read -P 9 0 64k', fmt='qcow2')

    def test_wait_break_without_blkdebug(self):
        self.start()
        self.assertIn('not supported', self.io('wait_break A'))

    def test_other_sessions_go_on(self):
        """A reader of standard output that sleeps, and a qemu-io that sleeps, delay their own session only."""
        d = self.start()
        with d.connect() as other:
            sleeper = other.start('human-monitor-command', command_line='qemu-io drive0 "sleep 400"')
            d.cmd('query-block', timeout=0.3)
            self.assertEqual({'return': ''}, other.finish(sleeper))

    def test_during_a_mirror(self):
        """Writes go through the job's filter, by the name of the device and of the node alike."""
        d = self.start()
        d.cmd('drive-mirror', device='drive0', target=self.path('t.qcow2'), format='qcow2', sync='full')
        d.wait_ready('drive0')
        self.ok(self.io('write -P 0x77 0 64k'), 'wrote', 65536, 0)
        d.complete('drive0')
        self.ok(self.io('read -P 0x77 0 64k'), 'read', 65536, 0)
        d.shutdown()
        sd.qemu_io(self.path('t.qcow2'), 'read -P 0x77 0 64k', fmt='qcow2')

    def test_reopen(self):
        d = self.start()
        self.assertEqual('', self.io('reopen -r'))
        self.assertTrue(d.node('top')['ro'])
        self.io('write 0 512', reply="Error: Block node is read-only (node 'top')\r\n")
        self.assertEqual('', self.io('reopen -w'))
        self.ok(self.io('write -P 3 0 512'), 'wrote', 512, 0)
        d.export('top', writable=True)
        self.assertIn('Cannot make block node read-only, there is a writer on it', self.io('reopen -r'))
        self.assertFalse(d.node('top')['ro'])
        self.assertIn('reopen', self.io('reopen'))
        # A backing file, too.
        self.assertEqual('', self.io('reopen -w', target='base'))
        d.shutdown()
        sd.check_image(self.top)
        sd.check_image(self.base)

    def test_reopen_many_times(self):
        d = self.start()
        for i in range(8):
            self.io('reopen -r')
            self.io('reopen -w')
            self.ok(self.io(f'write -P {i + 1} {i * 64}k 64k'), 'wrote', 65536, i * 65536)
        d.shutdown()
        sd.check_image(self.top)
        sd.qemu_io(self.top, *(f'read -P {i + 1} {i * 64}k 64k' for i in range(8)), fmt='qcow2')

    def test_reopen_refused_by_the_file(self):
        other = sd.create_image(self.path('locked.qcow2'), 'qcow2', sd.MIB)
        options = f'read-only=on,file.driver=file,file.filename={other}'
        holder = self.daemon('--blockdev', f'qcow2,node-name=h,{options}')
        self.d, self.read = self.daemon('--blockdev', f'qcow2,node-name=n,{options}'), 0
        self.assertIn('lock', self.io('reopen -w', target='n'))
        self.assertTrue(self.d.node('n')['ro'])
        holder.shutdown()
        self.assertEqual('', self.io('reopen -w', target='n'))
        self.ok(self.io('write 0 512', target='n'), 'wrote', 512, 0)


class Info(Hmp):
    def test_info_block(self):
        self.start('--drive', 'id=cd,media=cdrom', '--blockdev', 'null-co,node-name=null0,cache.no-flush=on')
        self.assertEqual(f'drive0 (top): {self.top} (qcow2)\r\n'
                         '    Cache mode:       writeback\r\n'
                         f'    Backing file:     {self.base} (chain depth: 1)\r\n'
                         '\r\n'
                         'cd: [not inserted]\r\n'
                         '    Removable device: not locked, tray closed\r\n', self.hmp('info block'))
        self.assertTrue(self.hmp('info block cd').startswith('cd: [not inserted]'))
        self.assertEqual('', self.hmp('info block nothing'))
        self.assertIn('null0: null-co:// (null-co)\r\n    Cache mode:       writeback, ignore flushes\r\n',
                      self.hmp('info block -n'))
        self.assertIn('base: ', self.hmp('info block -n base'))
        self.assertIn('Usage', self.hmp('info block -v drive0'))

    def test_info_block_jobs(self):
        d = self.start()
        self.assertEqual('No active jobs\r\n', self.hmp('info block-jobs'))
        d.cmd('drive-mirror', device='drive0', target=self.path('t.qcow2'), format='qcow2', sync='full')
        d.wait_ready('drive0')
        job = d.job('drive0')
        self.assertEqual(f"Type mirror, device drive0: Completed {job['offset']} of {job['len']} bytes, speed limit 0 "
                         'bytes/s\r\n', self.hmp('info block-jobs'))
        d.cancel('drive0', force=True)

    def test_unknown(self):
        self.start()
        self.assertEqual("unknown command: 'savevm x'\r\n", self.hmp('savevm x'))
        self.assertEqual('', self.hmp('  '))
        self.assertIn('block_resize DEVICE SIZE', self.hmp('help'))
        self.assertIn('Usage: block_resize', self.hmp('block_resize drive0'))

    def test_block_resize(self):
        d = self.start()
        self.assertEqual('', self.hmp('block_resize drive0 3'))
        self.assertEqual(3 * sd.MIB, d.node('top')['image']['virtual-size'])
        self.assertEqual('', self.hmp('block_resize top 4096k'))
        self.assertEqual(4 * sd.MIB, d.node('top')['image']['virtual-size'])
        self.assertIn('Error: ', self.hmp('block_resize drive0 big'))


class Commit(Hmp):
    def test_commit(self):
        self.start()
        self.io('write -P 0x22 64k 64k')
        self.io('write -z 0 64k')
        self.assertEqual('', self.hmp('commit drive0'))
        self.ok(self.io('read -P 0x22 64k 64k', target='base'), 'read', 65536, 65536)
        self.assertTrue(self.d.node('base')['ro'])
        self.d.shutdown()
        sd.qemu_io(self.base, 'read -P 0 0 64k', 'read -P 0x22 64k 64k', 'read -P 0 128k 896k', fmt='qcow2')
        self.assertImagesEqual(self.base, self.top)
        sd.check_image(self.base)

    def test_larger_than_its_backing_file(self):
        d = self.start()
        d.cmd('block_resize', device='drive0', size=2 * sd.MIB)
        self.io('write -P 3 1536k 64k')
        self.assertEqual('', self.hmp('commit all'))
        d.shutdown()
        self.assertEqual(2 * sd.MIB, sd.image_info(self.base)['virtual-size'])
        sd.qemu_io(self.base, 'read -P 0x11 0 64k', 'read -P 3 1536k 64k', fmt='qcow2')
        sd.check_image(self.base)

    def test_refused(self):
        d = self.start('--drive', 'id=cd,media=cdrom')
        self.assertIn('has no medium', self.hmp('commit cd'))
        self.assertIn("has no backing file", self.hmp('commit base'))
        self.assertIn('Cannot find', self.hmp('commit nothing'))
        d.cmd('drive-mirror', device='drive0', target=self.path('t.qcow2'), format='qcow2', sync='top')
        d.wait_ready('drive0')
        self.assertIn('is busy', self.hmp('commit drive0'))
        d.cancel('drive0', force=True)
        self.assertTrue(d.node('base')['ro'])


if __name__ == '__main__':
    sd.main()
