"""qemu-compat, driven as QEMU's own iotests harness drives its QEMU_PROG."""
import json
import os
import socket
import subprocess
import time

import sd
from iotests_launcher import LAUNCHER, Launched


class Compat(sd.Case):
    def launched(self, *options, **kw):
        d = Launched(*options, **kw)
        self._said.append(d)
        self.addCleanup(d.cleanup)
        return d

    def run_program(self, *argv, input='', code=0):
        p = subprocess.run([LAUNCHER, *argv], input=input, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                           timeout=sd.TIMEOUT, env={**os.environ, 'STORAGE_DAEMON': sd.DAEMON})
        self.assertEqual(code, p.returncode, f'{p.stdout}{p.stderr}')
        return p


class Probes(Compat):
    """What the harness asks before it runs anything."""

    def test_machines(self):
        out = self.run_program('-machine', 'help').stdout
        self.assertRegex(out, r'(?m)^pc .*\(default\)$')
        self.assertRegex(out, r'(?m)^none ')

    def test_formats(self):
        lines = self.run_program('-drive', 'format=help').stdout.splitlines()
        self.assertTrue(lines[0].startswith('Supported formats: '))
        self.assertTrue(lines[1].startswith('Supported formats (read-only): '))
        for line in lines:
            names = line.split(':')[1].split()
            self.assertLessEqual({'qcow2', 'raw', 'file', 'nbd', 'null-co'}, set(names))
            self.assertNotIn('vmdk', names)

    def test_devices(self):
        out = self.run_program('-M', 'none', '-device', 'help').stdout
        for name in ('virtio-blk', 'virtio-scsi', 'scsi-hd'):
            self.assertIn(f'name "{name}", bus ', out)

    def test_version_and_help(self):
        self.assertRegex(self.run_program('-version').stdout, r'^QEMU emulator version \d+\.\d+\.\d+')
        self.assertIn('-blockdev', self.run_program('-help').stdout)


class Failures(Compat):
    """Start-up errors: PROGRAM: -OPTION ARGS: message, exit 1."""

    def fails_to_start(self, *argv):
        p = self.run_program('-nodefaults', *argv, code=1)
        return p.stderr

    def test_drive(self):
        args = 'file=/no/such/image,if=virtio,format=qcow2,id=drive0'
        self.assertEqual(f"qemu-compat: -drive {args}: Could not open '/no/such/image': No such file or directory\n",
                         self.fails_to_start('-drive', args))

    def test_blockdev(self):
        args = 'driver=qcow2,node-name=a,file=nowhere'
        self.assertTrue(self.fails_to_start('-blockdev', args).startswith(f'qemu-compat: -blockdev {args}: Cannot find'))

    def test_device(self):
        self.assertEqual("qemu-compat: -device virtio-blk,drive=none: Property 'drive' can't find value 'none'\n",
                         self.fails_to_start('-device', 'virtio-blk,drive=none'))
        self.assertIn("'e1000' is not a valid device model name", self.fails_to_start('-device', 'e1000'))

    def test_words(self):
        self.assertEqual('qemu-compat: -no-such-thing: invalid option\n', self.fails_to_start('-no-such-thing'))
        self.assertIn('requires an argument', self.fails_to_start('-drive'))
        self.assertIn('unsupported machine type', self.fails_to_start('-machine', 'toaster'))
        self.assertIn('unsupported bus type', self.fails_to_start('-drive', 'if=pigeon'))
        self.assertIn('chardev "x" not found', self.fails_to_start('-mon', 'chardev=x,mode=control'))

    def test_harness_sees_the_end(self):
        """The monitor's socket is connected and closed again; the process is gone with exit code 1."""
        d = self.launched('-drive', 'file=/no/such/image,if=virtio', wait=False)
        self.assertEqual(1, d.wait())
        self.assertIn("qemu-compat: -drive file=/no/such/image,if=virtio: Could not open '/no/such/image'", d.log)


class Session(Compat):
    def test_by_path_and_by_fd(self):
        for by_fd in (False, True):
            with self.subTest(by_fd=by_fd):
                path = sd.create_image(self.path('a.qcow2'), 'qcow2', sd.MIB)
                d = self.launched('-S', '-nographic', '-serial', 'none', '-monitor', 'none', '-drive',
                                  f'file={path},if=virtio,id=drive0,format=qcow2,cache=writeback,aio=threads',
                                  by_fd=by_fd)
                self.assertEqual(path, d.cmd('query-block')[0]['inserted']['file'])
                d.shutdown()
                self.assertRegex(d.log, r'\A\[I \d+\.\d+\] OPENED\n\[I \+\d+\.\d+\] CLOSED\n\Z')

    def test_clock(self):
        """Speed limits follow the harness's clock only."""
        src = sd.create_image(self.path('src.raw'), 'raw', 4 * sd.MIB, data=[(0, 4 * sd.MIB, 7)])
        d = self.launched('-drive', f'file={src},if=none,id=drive0,format=raw,read-only=on')
        self.assertEqual('OK 0', d.clock_step(0))
        self.assertEqual('OK 1000', d.clock_step(1000))
        self.assertEqual('OK 4096', d.clock_step('0xc18'))
        self.assertTrue(d.clock_step('x').startswith('FAIL'))
        self.assertTrue(d.clock_step(-1).startswith('FAIL'))
        d.cmd('drive-mirror', device='drive0', target=self.path('dst.raw'), format='raw', sync='full', speed=sd.MIB)
        # However long it takes: without a step the clock stands still.
        with self.assertRaises(sd.Timeout):
            d.event_wait('BLOCK_JOB_READY', timeout=0.5)
        before = d.job('drive0')['offset']
        self.assertLess(before, 4 * sd.MIB)
        steps = 0
        while not d.take_events('BLOCK_JOB_READY'):
            d.clock_step(200_000_000)
            steps += 1
            self.assertLess(steps, 200)
        # Four seconds at a MiB a second, less what the first slices let through.
        self.assertGreater(steps, 3)
        self.assertEqual('BLOCK_JOB_COMPLETED', d.cancel('drive0')['event'])
        d.shutdown()

    def test_other_waiting_does_not_follow_the_clock(self):
        """A job that rests after an error which it ignores goes on while the clock stands still."""
        src = sd.create_image(self.path('src.raw'), 'raw', sd.MIB, data=[(0, sd.MIB, 7)])
        d = self.launched('-blockdev', 'raw,node-name=src,file.driver=blkdebug,file.image.driver=file,'
                          f'file.image.filename={src},file.inject-error.0.event=read_aio,file.inject-error.0.once=on',
                          '-blockdev', f'null-co,node-name=dst,size={sd.MIB}')
        d.cmd('blockdev-mirror', job_id='j', device='src', target='dst', sync='full', on_source_error='ignore')
        d.wait_ready('j')
        self.assertTrue(d.take_events('BLOCK_JOB_ERROR', {'action': 'ignore'}))
        d.cancel('j')
        d.shutdown()

    def test_qdev(self):
        a, b = (sd.create_image(self.path(n), 'raw', sd.MIB) for n in 'ab')
        d = self.launched('-object', 'iothread,id=io0', '-drive', f'file={a},if=none,id=drive0,format=raw',
                          '-blockdev', f'file,node-name=node0,filename={b}', '-device', 'virtio-scsi,id=scsi0,iothread=io0',
                          '-device', 'virtio-blk,drive=drive0,id=virtio0', '-device', 'scsi-hd,drive=node0,bus=scsi0.0')
        first, second = d.cmd('query-block')
        self.assertEqual(('drive0', '/machine/peripheral/virtio0/virtio-backend'), (first['device'], first['qdev']))
        self.assertEqual(('', '/machine/peripheral-anon/device[0]'), (second['device'], second['qdev']))
        self.assertEqual('node0', second['inserted']['node-name'])
        d.cmd('human-monitor-command', command_line='qemu-io -d virtio0 "write -P 9 0 64k"')
        d.shutdown()
        self.assertIn('wrote 65536/65536 bytes at offset 0', d.log)
        sd.qemu_io(a, 'read -P 9 0 64k', fmt='raw')

    def test_drives_without_id(self):
        a = sd.create_image(self.path('a'), 'raw', sd.MIB)
        d = self.launched('-drive', f'file={a},format=raw,if=virtio,werror=stop,rerror=report',
                          '-drive', 'if=ide,media=cdrom', '-drive', 'if=virtio')
        self.assertEqual(['virtio0', 'ide0-cd0', 'virtio1'], [b['device'] for b in d.cmd('query-block')])
        d.shutdown()

    def test_add_fd(self):
        path = sd.create_image(self.path('a'), 'raw', sd.MIB)
        with open(path, 'rb+') as f:
            p = subprocess.run([LAUNCHER, '-nodefaults', '-add-fd', f'fd={f.fileno()},set=3,opaque=rdwr', '-qmp', 'stdio',
                                '-blockdev', 'driver=file,filename=/dev/fdset/3,node-name=n'], text=True,
                               input="{'execute':'qmp_capabilities'}{'execute':'query-named-block-nodes'}"
                                     "{'execute':'quit'}", pass_fds=[f.fileno()], stdout=subprocess.PIPE,
                               timeout=sd.TIMEOUT, env={**os.environ, 'STORAGE_DAEMON': sd.DAEMON})
        self.assertEqual(0, p.returncode)
        self.assertIn('"node-name": "n"', p.stdout)

    def test_ends_with_the_harness(self):
        d = self.launched()
        children = subprocess.run(['pgrep', '-P', str(d.pid)], stdout=subprocess.PIPE, text=True).stdout.split()
        self.assertEqual(1, len(children))
        d.terminate()
        self.assertFalse(os.path.exists(f'/proc/{children[0]}'))
        d = self.launched()
        child = int(subprocess.run(['pgrep', '-P', str(d.pid)], stdout=subprocess.PIPE, text=True).stdout)
        d.kill()  # even then nothing stays behind
        for _ in range(100):
            if not os.path.exists(f'/proc/{child}') or open(f'/proc/{child}/stat').read().split()[2] == 'Z':
                return
            time.sleep(0.05)
        self.fail('the daemon outlives the launcher')

    def test_death_is_passed_on(self):
        d = self.launched()
        child = int(subprocess.run(['pgrep', '-P', str(d.pid)], stdout=subprocess.PIPE, text=True).stdout)
        os.kill(child, 9)
        self.assertEqual(-9, d.wait())


class Stdio(Compat):
    """What scripts in bash do."""

    def talk(self, commands, *argv):
        return self.run_program('-nographic', '-nodefaults', '-monitor', 'null', '-serial', 'none', *argv,
                                input=commands).stdout

    def test_bash_style(self):
        path = sd.create_image(self.path('a.qcow2'), 'qcow2', sd.MIB)
        out = self.talk(f"""{{ 'execute': 'qmp_capabilities' }}{{ 'execute': 'human-monitor-command',
            'arguments': {{ 'command-line': 'qemu-io drive0 "write -P 0x2a 0 64k"' }} }}
            {{ 'execute': 'drive-mirror',
               'arguments': {{ 'device': 'drive0', 'target': '{self.path("t.qcow2")}',
                               'sync': 'none' }} }}
            {{ 'execute': 'quit' }}""", '-qmp', 'stdio', '-drive', f'file={path},if=virtio,id=drive0,format=qcow2')
        lines = out.replace('\r', '').splitlines()
        self.assertIn('QMP', json.loads(lines[0]))
        self.assertIn('{"return": {}}', lines)
        self.assertIn('wrote 65536/65536 bytes at offset 0', lines)
        self.assertIn('{"return": ""}', lines)
        formatting = next(line for line in lines if line.startswith('Formatting'))
        self.assertEqual(f"Formatting '{self.path('t.qcow2')}', fmt=qcow2 cluster_size=65536 extended_l2=off "
                         f'compression_type=zlib size=1048576 backing_file={path} backing_fmt=qcow2 lazy_refcounts=off '
                         'refcount_bits=16', formatting)
        # SHUTDOWN first, then the job's last events, then the reply.
        events = [json.loads(line).get('event') for line in lines if line.startswith('{"timestamp')]
        start = events.index('SHUTDOWN')
        self.assertIn('JOB_STATUS_CHANGE', events[start:])
        self.assertTrue({'BLOCK_JOB_COMPLETED', 'BLOCK_JOB_CANCELLED'} & set(events[start:]), events)
        self.assertEqual('{"return": {}}', lines[-1])

    def test_pretty(self):
        out = self.talk("{'execute':'qmp_capabilities'}\n{'execute':'quit'}", '-qmp-pretty', 'stdio')
        self.assertIn('\n    "QMP": {', out.replace('\r', ''))

    def test_human_monitor(self):
        path = sd.create_image(self.path('a.qcow2'), 'qcow2', sd.MIB)
        out = self.run_program('-nodefaults', '-monitor', 'stdio', '-drive', f'file={path},if=virtio,id=d,format=qcow2',
                               input='info block d\nqemu-io d "write 0 64k"\nnonsense\nquit\n').stdout
        self.assertTrue(out.startswith('QEMU '))
        self.assertIn('(qemu) info block d\nd (', out)
        self.assertIn('wrote 65536/65536', out)
        self.assertIn("unknown command: 'nonsense'", out)
        self.assertTrue(out.endswith('(qemu) quit\n'))


class Sockets(Compat):
    def test_nobody_listens(self):
        """A harness that is gone: the program ends instead of waiting for ever."""
        path = self.path('qtest')
        with socket.create_server(path, family=socket.AF_UNIX):
            pass
        p = subprocess.run([LAUNCHER, '-nodefaults', '-qtest', f'unix:path={path}'], stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, text=True, timeout=sd.TIMEOUT, stdin=subprocess.DEVNULL,
                           env={**os.environ, 'STORAGE_DAEMON': sd.DAEMON})
        self.assertNotEqual(0, p.returncode)
        self.assertIn('cannot connect', p.stderr)


if __name__ == '__main__':
    sd.main()
