"""The command line: words, errors, sockets, start-up and its failures, the background, signals, systemd, drives."""
import json
import os
import signal
import socket
import subprocess
import time

import sd


def daemon(*args, **kw):
    """Runs it to its end; for options that must fail or only say something."""
    return sd.run(sd.DAEMON, *args, check=False, **kw)


def alive(pid):
    try:
        with open(f'/proc/{pid}/stat') as f:
            return f.read().rsplit(')', 1)[1].split()[0] != 'Z'
    except FileNotFoundError:
        return False


def wait_for(condition, what):
    deadline = time.monotonic() + sd.TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            raise sd.Timeout(what)
        time.sleep(0.005)


class Words(sd.Case):
    def assertRefused(self, *args, text):
        p = daemon(*args)
        self.assertEqual(p.returncode, 1, p.stderr)
        self.assertTrue(p.stderr.startswith('storage-daemon: '), p.stderr)
        self.assertIn(text, p.stderr)
        self.assertEqual(p.stdout, '')
        return p.stderr

    def test_help(self):
        for words in (('--help',), ('-h',), ('--check', '--help'), ('--blockdev', '--help'), ('--check', 'x', '--help')):
            p = daemon(*words)
            self.assertEqual(p.returncode, 0)
            self.assertIn('Examples:', p.stdout)
            for name in ('blockdev', 'drive', 'chardev', 'monitor', 'qmp', 'nbd-server', 'export', 'config', 'pidfile',
                         'daemonize', 'check-config', 'refuse-image-names'):
                self.assertIn(f'--{name}', p.stdout)
            self.assertLessEqual(max(map(len, p.stdout.splitlines())), 110)

    def test_version(self):
        for word in ('--version', '-V'):
            p = daemon(word)
            self.assertEqual(p.returncode, 0)
            self.assertRegex(p.stdout, r'^storage-daemon version \d+\.\d+\.\d+\n$')

    def test_unknown_words(self):
        for word, near in (('--blokdev', '--blockdev'), ('--nbdserver', '--nbd-server'), ('--expor', '--export'),
                           ('--deamonize', '--daemonize'), ('-monitor', '--monitor')):
            with self.subTest(word=word):
                self.assertRefused(word, 'x', text=f"unrecognized option '{word}'")
                self.assertIn(near, daemon(word, 'x').stderr)
        self.assertRefused('--zzzzzz', text="unrecognized option '--zzzzzz'")
        self.assertRefused('image.qcow2', text='image.qcow2: Unexpected argument')

    def test_values(self):
        self.assertRefused('--blockdev', text="option '--blockdev' requires an argument")
        self.assertRefused('--daemonize=yes', text="option '--daemonize' doesn't allow an argument")

    def test_errors_name_the_option(self):
        for word, value, text in (
                ('--blockdev', 'nosuch', "Parameter 'driver' does not accept value 'nosuch'"),
                ('--blockdev', 'node-name=x', "Parameter 'driver' is missing"),
                ('--blockdev', 'null-co,node-name=x,y=1', "Parameter 'y' is unexpected"),
                ('--blockdev', 'null-co,node-name=x,read-only=maybe', "'read-only'"),
                ('--blockdev', 'file,node-name=x,filename=/no/such', "/no/such"),
                ('--blockdev', '{"driver": "null-co"', 'JSON'),
                ('--blockdev', 'json:{"driver": "null-co", "size": "1"}', "'size'"),
                ('--chardev', 'nosuch,id=c', "'nosuch'"),
                ('--chardev', 'socket,id=c', "exactly one of 'path'"),
                ('--chardev', 'socket,id=c,path=p,host=h', "exactly one of 'path'"),
                ('--chardev', 'socket,id=c,host=h', "'port' is missing"),
                ('--chardev', 'socket,id=c,fd=x', "'fd'"),
                ('--chardev', 'socket,id=c,fd=99', 'fd 99'),
                ('--chardev', 'socket,id=c,path=p,wait=off', "'wait' works with server=on only"),
                ('--chardev', 'socket,id=c,path=/no/such/dir,server=on,wait=off', '/no/such/dir'),
                ('--chardev', 'socket,id=c,path=/no/such/dir', '/no/such/dir'),
                ('--monitor', 'c', 'chardev "c" not found'),
                ('--monitor', 'c,mode=readline', "Parameter 'mode' does not accept value 'readline'"),
                ('--nbd-server', 'addr.type=unix', "Parameter 'addr.path' is missing"),
                ('--export', 'nbd,id=e,node-name=nosuch', 'nosuch'),
                ('--object', 'wizard,id=s,data=x', "Parameter 'qom-type' does not accept value 'wizard'"),
                ('--object', 'throttle-group,id=g,limits.iops-size=5', 'iops size requires an iops value'),
                ('--drive', 'file=x', "Parameter 'id' is missing")):
            with self.subTest(value=value):
                self.assertRefused(word, value, text=f'{word} {value}: ')
                self.assertIn(text, daemon(word, value).stderr)

    def test_twice(self):
        self.assertRefused('--blockdev', 'null-co,node-name=n', '--blockdev', 'null-co,node-name=n', text='n')
        qmp = self.path('qmp')
        chardev = f'socket,id=c,path={qmp},server=on,wait=off'
        self.assertRefused('--chardev', chardev, '--chardev', f'socket,id=c,path={qmp}2,server=on,wait=off',
                           text="'c' already exists")
        self.assertRefused('--chardev', chardev, '--monitor', 'c', '--monitor', 'c', text='in use')
        self.assertRefused('--chardev', 'stdio,id=a', '--chardev', 'stdio,id=b', text="'a'")
        self.assertEqual(os.listdir(self.dir), [])

    def test_failure_leaves_nothing(self):
        """What was opened before the failing option is closed again, its sockets are gone."""
        qmp, nbd, pid = self.path('qmp'), self.path('nbd'), self.path('pid')
        image = sd.create_image(self.path('a.raw'), 'raw', 1 << 20)
        self.assertRefused('--qmp', qmp, '--pidfile', pid, '--blockdev', f'file,node-name=a,filename={image}',
                           '--nbd-server', f'addr.type=unix,addr.path={nbd}',
                           '--export', 'nbd,id=e,node-name=a,writable=on',
                           '--blockdev', 'file,node-name=b,filename=/no/such', text='/no/such')
        self.assertEqual(os.listdir(self.dir), ['a.raw'])


class Values(sd.Case):
    """The ways in which a value is written all lead to the same."""

    def test_forms(self):
        image = sd.create_image(self.path('a,b.raw'), 'raw', 1 << 20)
        comma = image.replace(',', ',,')
        d = self.daemon('--blockdev', f'driver=file,node-name=f1,filename={comma}',
                        f'--blockdev=file,node-name=f2,filename={comma},read-only=on,cache.direct=off',
                        '--blockdev', json.dumps({'driver': 'raw', 'node-name': 'r1', 'file': 'f1', 'size': 65536}),
                        '--blockdev', 'json:' + json.dumps({'driver': 'null-co', 'node-name': 'n1', 'size': 512}),
                        '--blockdev', f'raw,node-name=r2,file.driver=file,file.filename={comma},file.node-name=f3,'
                        'read-only=on')
        nodes = {n['node-name']: n for n in d.cmd('query-named-block-nodes')}
        self.assertEqual(set(nodes), {'f1', 'f2', 'f3', 'r1', 'r2', 'n1'})
        self.assertEqual(nodes['f3']['file'], image)
        self.assertTrue(nodes['f2']['ro'])
        self.assertEqual(nodes['r1']['image']['virtual-size'], 65536)

    def test_order(self):
        """Options are carried out in the order given: a node cannot stand on a later one."""
        p = daemon('--blockdev', 'raw,node-name=r,file=f', '--blockdev', 'null-co,node-name=f')
        self.assertEqual(p.returncode, 1)
        self.assertIn("node-name='f'", p.stderr)

    def test_export(self):
        nbd = self.path('nbd')
        d = self.daemon('--blockdev', 'null-co,node-name=n,size=1048576,read-zeroes=on',
                        '--nbd-server', f'addr.type=unix,addr.path={nbd},max-connections=5',
                        '--export', 'nbd,id=e,node-name=n,name=x,writable=on')
        self.assertEqual([e['id'] for e in d.cmd('query-block-exports')], ['e'])
        self.assertEqual(sd.run('nbdinfo', '--size', sd.nbd_uri(nbd, 'x')).stdout, '1048576\n')

    def test_short_flags(self):
        """The old spelling of flags that scripts still have."""
        path = self.path('qmp')
        d = self.daemon('--chardev', f'socket,id=c,path={path},server,nowait', '--monitor', 'c,pretty')
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(sd.TIMEOUT)
            s.connect(path)
            self.assertEqual(s.recv(2), b'{\n')
        d.shutdown()


class Sockets(sd.Case):
    def qmp_over(self, sock):
        self.addCleanup(sock.close)
        sock.settimeout(sd.TIMEOUT)
        return sd.Qmp(sock)

    def test_qmp_word(self):
        a, b = self.path('a'), self.path('b')
        d = self.daemon('--qmp', a, '--qmp', b)
        for path in (a, b):
            with sd.Qmp.connect(path) as q:
                q.cmd('query-version')
        d.shutdown()
        self.assertEqual(os.listdir(self.dir), [])

    def test_stale_socket(self):
        d = self.daemon(qmp=False, *('--qmp', self.path('qmp')))
        wait_for(lambda: os.path.exists(self.path('qmp')), 'no socket')
        d.kill()
        self.assertTrue(os.path.exists(self.path('qmp')))
        d = self.daemon('--qmp', self.path('qmp'))
        sd.Qmp.connect(self.path('qmp')).close()

    def test_live_socket(self):
        d = self.daemon()
        p = daemon('--qmp', d.socket)
        self.assertEqual(p.returncode, 1)
        self.assertIn(d.socket, p.stderr)
        self.assertIn(str(d.pid), p.stderr)
        with d.connect() as q:
            q.cmd('query-version')

    def test_tcp(self):
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            port = s.getsockname()[1]
        d = self.daemon('--chardev', f'socket,id=c,host=127.0.0.1,port={port},server=on,wait=off', '--monitor', 'c')
        q = self.qmp_over(socket.create_connection(('127.0.0.1', port)))
        q.cmd('qmp_capabilities')
        q.cmd('query-version')
        q.close()
        d.shutdown()

    def test_inherited_connection(self):
        ours, theirs = socket.socketpair()
        p = subprocess.Popen([sd.DAEMON, '--chardev', f'socket,id=c,fd={theirs.fileno()}', '--monitor', 'c'],
                             pass_fds=[theirs.fileno()], preexec_fn=sd._die_with_parent)
        self.addCleanup(p.kill)
        theirs.close()
        q = self.qmp_over(ours)
        q.cmd('qmp_capabilities')
        q.cmd('quit')
        self.assertEqual(p.wait(sd.TIMEOUT), 0)

    def test_inherited_listener(self):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.path('qmp'))
            listener.listen()
            fd = listener.fileno()
            wrong = sd.run('sh', '-c', f'exec "$0" --chardev socket,id=c,fd={fd} {fd}<&0', sd.DAEMON, check=False)
            self.assertEqual(wrong.returncode, 1)
            p = subprocess.Popen([sd.DAEMON, '--chardev', f'socket,id=c,fd={fd},server=on,wait=off', '--monitor', 'c'],
                                 pass_fds=[fd], preexec_fn=sd._die_with_parent)
            self.addCleanup(p.kill)
        with sd.Qmp.connect(self.path('qmp')) as a, sd.Qmp.connect(self.path('qmp')) as b:
            a.cmd('query-version')
            b.cmd('quit')
        self.assertEqual(p.wait(sd.TIMEOUT), 0)

    def test_connects_out(self):
        """server=off: we connect, and with reconnect again when the connection is lost."""
        with socket.socket(socket.AF_UNIX) as listener:
            listener.settimeout(sd.TIMEOUT)
            listener.bind(self.path('there'))
            listener.listen()
            d = self.daemon('--chardev', f"socket,id=c,path={self.path('there')},reconnect=1", '--monitor', 'c')
            for _ in range(2):
                q = self.qmp_over(listener.accept()[0])
                q.cmd('qmp_capabilities')
                q.cmd('query-version')
                q.close()
            d.shutdown()

    def test_reconnect_waits_for_the_other_side(self):
        d = self.daemon('--chardev', f"socket,id=c,path={self.path('there')},reconnect=1", '--monitor', 'c')
        self.assertIn('trying again', d.stderr())
        with socket.socket(socket.AF_UNIX) as listener:
            listener.settimeout(sd.TIMEOUT)
            listener.bind(self.path('there'))
            listener.listen()
            self.qmp_over(listener.accept()[0]).cmd('qmp_capabilities')

    def test_waits_for_a_client(self):
        """server=on without wait=off: start-up goes on when somebody has connected."""
        qmp, pid = self.path('qmp'), self.path('pid')
        d = self.daemon('--chardev', f'socket,id=c,path={qmp},server=on', '--monitor', 'c', '--pidfile', pid, qmp=False)
        wait_for(lambda: os.path.exists(qmp), 'no socket')
        time.sleep(0.05)
        self.assertFalse(os.path.exists(pid))
        with sd.Qmp.connect(qmp) as q:
            wait_for(lambda: os.path.exists(pid), 'no pid file')
            q.cmd('quit')
        d.check_exit()

    def test_sigterm_while_waiting(self):
        qmp = self.path('qmp')
        d = self.daemon('--chardev', f'socket,id=c,path={qmp},server=on', '--monitor', 'c', qmp=False)
        wait_for(lambda: os.path.exists(qmp), 'no socket')
        d.terminate()
        self.assertEqual(os.listdir(self.dir), [])

    def test_sessions_wait_for_start_up(self):
        """Nobody sees a half-built graph."""
        qmp, late = self.path('qmp'), self.path('late')
        d = self.daemon('--qmp', qmp, '--blockdev', 'null-co,node-name=a', '--chardev',
                        f'socket,id=c,path={late},server=on', '--monitor', 'c', '--blockdev', 'null-co,node-name=b',
                        qmp=False)
        wait_for(lambda: os.path.exists(late), 'no socket')
        with socket.socket(socket.AF_UNIX) as early:
            early.connect(qmp)
            early.settimeout(0.1)
            with self.assertRaises(TimeoutError):
                early.recv(1)
            with sd.Qmp.connect(late):
                early.settimeout(sd.TIMEOUT)
                q = sd.Qmp(early)
                q.cmd('qmp_capabilities')
                self.assertEqual({n['node-name'] for n in q.cmd('query-named-block-nodes')}, {'a', 'b'})
        d.terminate()


class Stdio(sd.Case):
    def test_conversation(self):
        commands = [{'execute': 'qmp_capabilities'}, {'execute': 'query-version', 'id': 1}, {'execute': 'quit'}]
        p = daemon('--chardev', 'stdio,id=s', '--monitor', 's', input='\n'.join(map(json.dumps, commands)))
        self.assertEqual(p.returncode, 0)
        lines = [json.loads(line) for line in p.stdout.splitlines()]
        self.assertIn('QMP', lines[0])
        self.assertEqual([line for line in lines if 'return' in line][1]['id'], 1)
        self.assertEqual(lines[-1], {'return': {}})
        self.assertEqual([line['event'] for line in lines if 'event' in line], ['SHUTDOWN'])

    def test_end_of_input(self):
        """The end of standard input ends the session, not the process."""
        d = self.daemon('--chardev', 'stdio,id=s', '--monitor', 's')
        wait_for(lambda: 'QMP' in d.stdout(), 'no greeting')
        d.cmd('query-version')


class Ends(sd.Case):
    def test_signals(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            with self.subTest(signal=number):
                image = sd.create_image(self.path('a.qcow2'), 'qcow2', 16 << 20)
                nbd = self.path('nbd')
                d = self.daemon('--blockdev', f'qcow2,node-name=a,file.driver=file,file.filename={image}',
                                '--blockdev', 'null-co,node-name=b,size=16777216',
                                '--nbd-server', f'addr.type=unix,addr.path={nbd}',
                                '--export', 'nbd,id=e,node-name=a,writable=on')
                with sd.nbd_connect(sd.nbd_uri(nbd, 'a')) as h:
                    h.pwrite(b'x' * 4096, 65536)
                    d.cmd('blockdev-mirror', job_id='j', device='a', target='b', sync='full', speed=1)
                    d.process.send_signal(number)
                    self.assertEqual(d.event_wait('SHUTDOWN')['data']['reason'], 'host-signal')
                    d.check_exit()
                sd.check_image(image)
                sd.qemu_io(image, 'read -P 0x78 65536 4096', fmt='qcow2')
                self.assertEqual(os.listdir(self.dir), ['a.qcow2'])

    def test_pidfile(self):
        path = self.path('pid')
        d = self.daemon('--pidfile', path)
        with open(path) as f:
            self.assertEqual(f.read(), f'{d.pid}\n')
        other = daemon('--pidfile', path)
        self.assertEqual(other.returncode, 1)
        self.assertIn(str(d.pid), other.stderr)
        self.assertIn(path, other.stderr)
        d.cmd('query-version')
        d.shutdown()
        self.assertFalse(os.path.exists(path))

    def test_pidfile_of_the_dead(self):
        path = self.path('pid')
        d = self.daemon('--pidfile', path)
        d.kill()
        d = self.daemon('--pidfile', path)
        with open(path) as f:
            self.assertEqual(f.read(), f'{d.pid}\n')

    def test_pidfile_that_cannot_be(self):
        p = daemon('--pidfile', '/no/such/dir/pid')
        self.assertEqual(p.returncode, 1)
        self.assertIn('/no/such/dir/pid', p.stderr)

    def test_background(self):
        """The command returns when everything is in place; relative names mean what they meant."""
        qmp, pid = self.path('qmp'), self.path('pid')
        sd.create_image(self.path('a.raw'), 'raw', 1 << 20)
        p = subprocess.run([os.path.abspath(sd.DAEMON), '--daemonize', '--qmp', 'qmp', '--pidfile', 'pid', '--blockdev',
                            'file,node-name=a,filename=a.raw'], cwd=self.dir, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, timeout=sd.TIMEOUT)
        self.assertEqual((p.returncode, p.stdout, p.stderr), (0, b'', b''))
        with open(pid) as f:
            number = int(f.read())
        try:
            with sd.Qmp.connect(qmp) as q:
                self.assertEqual(len(q.cmd('query-named-block-nodes')), 1)
                self.assertEqual(os.getsid(number), number)
                self.assertEqual(os.readlink(f'/proc/{number}/fd/2'), '/dev/null')
                q.cmd('quit')
            wait_for(lambda: not alive(number), 'the daemon does not end')
        finally:
            if alive(number):
                os.kill(number, signal.SIGKILL)
        self.assertEqual(os.listdir(self.dir), ['a.raw'])

    def test_background_fails(self):
        p = daemon('--daemonize', '--qmp', self.path('qmp'), '--blockdev', 'file,node-name=a,filename=/no/such')
        self.assertEqual(p.returncode, 1)
        self.assertIn('/no/such', p.stderr)
        self.assertEqual(os.listdir(self.dir), [])

    def test_no_stdio_in_the_background(self):
        for more in ([], ['--check-config']):
            p = daemon('--daemonize', '--chardev', 'stdio,id=s', '--monitor', 's', *more)
            self.assertEqual(p.returncode, 1)
            self.assertIn('--chardev stdio,id=s: ', p.stderr)

    def test_systemd(self):
        """Type=notify."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.settimeout(sd.TIMEOUT)
            s.bind(self.path('notify'))
            d = self.daemon(env={'NOTIFY_SOCKET': self.path('notify')})
            self.assertIn('READY=1', s.recv(4096).decode().splitlines())
            d.shutdown()
            self.assertIn('STOPPING=1', s.recv(4096).decode().splitlines())


class Drives(sd.Case):
    def device(self, d, name='drive0'):
        return next(b for b in d.cmd('query-block') if b['device'] == name)

    def test_named_format(self):
        image = sd.create_image(self.path('a.qcow2'), 'qcow2', 1 << 20)
        d = self.daemon('--drive', f'if=none,id=drive0,file={image},format=qcow2,node-name=top,cache=none,aio=io_uring,'
                        'discard=unmap,detect-zeroes=unmap')
        inserted = self.device(d)['inserted']
        self.assertSubset({'node-name': 'top', 'drv': 'qcow2', 'file': image, 'detect_zeroes': 'unmap',
                           'cache': {'direct': True, 'no-flush': False}, 'ro': False}, inserted)
        self.assertEqual(d.stderr(), '')

    def test_caches(self):
        image = sd.create_image(self.path('a.raw'), 'raw', 1 << 20)
        for word, writeback, direct, no_flush in (
                ('none', True, True, False), ('writeback', True, False, False), ('unsafe', True, False, True),
                ('writethrough', False, False, False), ('directsync', False, True, False)):
            d = self.daemon('--drive', f'id=drive0,file={image},format=raw,cache={word}')
            self.assertEqual({'writeback': writeback, 'direct': direct, 'no-flush': no_flush},
                             self.device(d)['inserted']['cache'])
            d.shutdown()
        p = daemon('--drive', f'id=drive0,file={image},format=raw,cache=x')
        self.assertEqual(p.returncode, 1)
        self.assertIn("Parameter 'cache' does not accept value 'x'", p.stderr)

    def test_writethrough(self):
        """A write through the device is over when the disk has it: here the disk fails to."""
        image = sd.create_image(self.path('a.qcow2'), 'qcow2', 1 << 20)
        for word, durable in (('writeback', False), ('writethrough', True), ('directsync', True)):
            d = self.daemon('--drive', f'id=drive0,node-name=top,format=qcow2,cache={word},'
                            f'file.driver=blkdebug,file.image.driver=file,file.image.filename={image},'
                            'file.inject-error.0.event=flush_to_disk,file.inject-error.0.errno=5')
            self.assertEqual(d.cmd('query-named-block-nodes')[0]['cache']['writeback'], True)  # nodes are all the same
            d.cmd('human-monitor-command', command_line='qemu-io drive0 "write 0 4k"')
            self.assertEqual('write failed: Input/output error' in d.stdout(), durable, d.stdout())
            self.assertIn('writethrough' if durable else 'writeback',
                          d.cmd('human-monitor-command', command_line='info block'))
            d.kill()

    def test_writethrough_export(self):
        import nbd
        image = sd.create_image(self.path('a.qcow2'), 'qcow2', 1 << 20)
        d = self.daemon('--blockdev', 'qcow2,node-name=top,file.driver=blkdebug,file.image.driver=file,'
                        f'file.image.filename={image},'
                        'file.inject-error.0.event=flush_to_disk,file.inject-error.0.errno=5')
        for name, durable in (('back', False), ('through', True)):
            with sd.nbd_connect(d.export('top', name, writable=True, writethrough=durable)) as h:
                if durable:
                    with self.assertRaisesRegex(nbd.Error, 'Input/output error'):
                        h.pwrite(b'x' * 512, 0)
                else:
                    h.pwrite(b'x' * 512, 0)
        d.kill()

    def test_probed(self):
        qcow2 = sd.create_image(self.path('a.qcow2'), 'qcow2', 1 << 20)
        raw = sd.create_image(self.path('a.raw'), 'raw', 1 << 20)
        d = self.daemon('--drive', f'id=drive0,file={qcow2}', '--drive', f'id=drive1,file.filename={raw},node-name=r')
        self.assertEqual(self.device(d)['inserted']['drv'], 'qcow2')
        self.assertSubset({'drv': 'raw', 'node-name': 'r'}, self.device(d, 'drive1')['inserted'])
        self.assertIn(raw, d.stderr())
        self.assertNotIn(qcow2, d.stderr())

    def test_backing_names(self):
        base = sd.create_image(self.path('base'), 'qcow2', 1 << 20)
        middle = sd.create_image(self.path('middle'), 'qcow2', backing=base)
        top = sd.create_image(self.path('top'), 'qcow2', backing=middle)
        d = self.daemon('--drive', f'id=drive0,file={top},format=qcow2,node-name=top,backing.node-name=middle,'
                        'backing.backing.node-name=base')
        nodes = {n['node-name']: n for n in d.cmd('query-named-block-nodes')}
        self.assertLessEqual({'top', 'middle', 'base'}, set(nodes))
        self.assertEqual(nodes['base']['file'], base)
        self.assertEqual(self.device(d)['inserted']['backing_file_depth'], 2)

    def test_driver_options(self):
        image = sd.create_image(self.path('a.raw'), 'raw', 1 << 20)
        d = self.daemon('--drive', f'id=drive0,format=raw,file.driver=file,file.filename={image},file.node-name=f,'
                        'offset=512,size=1024', '--drive', 'id=n,driver=null-co,size=4096')
        self.assertEqual(self.device(d)['inserted']['image']['virtual-size'], 1024)
        self.assertEqual(d.node('f')['file'], image)
        self.assertEqual(self.device(d, 'n')['inserted']['drv'], 'null-co')

    def test_cdrom(self):
        image = sd.create_image(self.path('a.raw'), 'raw', 1 << 20)
        d = self.daemon('--drive', 'if=none,id=cd0,media=cdrom', '--drive',
                        f'id=cd1,media=cdrom,file={image},format=raw')
        empty, full = self.device(d, 'cd0'), self.device(d, 'cd1')
        self.assertTrue(empty['removable'] and full['removable'])
        self.assertNotIn('inserted', empty)
        self.assertTrue(full['inserted']['ro'])

    def test_read_only(self):
        image = sd.create_image(self.path('a.raw'), 'raw', 1 << 20)
        d = self.daemon('--drive', f'id=drive0,file={image},format=raw,read-only=on')
        self.assertTrue(self.device(d)['inserted']['ro'])

    def test_refusals(self):
        image = sd.create_image(self.path('a.raw'), 'raw', 1 << 20)
        for value, text in ((f'id=d,file={image},format=raw,nosuch=1', "'nosuch' is unexpected"),
                            (f'id=d,file={image},nosuch=1', "'nosuch' is unexpected"),
                            (f'id=d,file={image},format=nosuch', 'nosuch'),
                            (f'id=d,file={image},format=raw,driver=raw', "both 'driver' and 'format'"),
                            (f'id=d,file={image},if=virtio', "'if' does not accept value 'virtio'"),
                            (f'id=d,file={image},aio=x', "'aio' does not accept value 'x'"),
                            (f'id=d,file={image},media=tape', "'media' does not accept value 'tape'"),
                            (f'id=d,file={image},format=raw,werror=stop', "'werror' is unexpected"),
                            ('id=d,file=/no/such,format=raw', '/no/such'),
                            ('id=d,file=/no/such', '/no/such'),
                            (f'id=d,file={self.dir}', 'directory'),
                            (f'id=d,file={image},format=qcow2', 'qcow2'),
                            ('id=d,node-name=n', "'file' is missing")):
            with self.subTest(value=value):
                p = daemon('--drive', value)
                self.assertEqual(p.returncode, 1)
                self.assertIn(text, p.stderr)
                self.assertIn(f'--drive {value}: ', p.stderr)

    def test_names_taken(self):
        for options in (['--drive', 'id=x,format=null-co', '--drive', 'id=x,format=null-co'],
                        ['--blockdev', 'null-co,node-name=x', '--drive', 'id=x,format=null-co'],
                        ['--drive', 'id=x,format=null-co', '--blockdev', 'null-co,node-name=x']):
            with self.subTest(options=options):
                p = daemon(*options)
                self.assertEqual(p.returncode, 1)
                self.assertIn('x', p.stderr)


if __name__ == '__main__':
    sd.main()
