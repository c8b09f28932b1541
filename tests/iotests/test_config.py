"""The configuration file: what it says is done, errors name file, line and key, --check-config opens nothing."""
import os
import re
import time

import sd

EXAMPLE = os.path.join(sd.TOP, 'storage-daemon.conf.example')


class Config(sd.Case):
    def write(self, text, name='sd.conf'):
        path = self.path(name)
        with open(path, 'wb') as f:
            f.write(text if isinstance(text, bytes) else text.encode())
        return path

    def check(self, text):
        return sd.run(sd.DAEMON, '--config', self.write(text), '--check-config', check=False)

    def assertRefused(self, text, line, *parts):
        """--check-config names file, line and what is wrong; a start without it says the same and opens nothing."""
        p = self.check(text)
        self.assertEqual(p.returncode, 1, p.stdout)
        self.assertTrue(p.stderr.startswith(f"storage-daemon: {self.path('sd.conf')}:{line}: "), p.stderr)
        for part in parts:
            self.assertIn(part, p.stderr)
        return p.stderr


class Works(Config):
    def test_everything(self):
        image = sd.create_image(self.path('disk, the "first".qcow2'), 'qcow2', 1 << 20)
        other = sd.create_image(self.path('other'), 'qcow2', 65536)
        d = self.daemon('--config', self.write(f'''
            # a comment
            ; another
            qmp = {self.path('qmp')}
            pidfile = {self.path('pid')}

            [blockdev "disk"]
            driver = qcow2
            file.driver=file
            file.filename =   {image}
            discard = unmap

            [blockdev]
            driver = null-co
            node-name = "nothing"
            size = 4096

            [drive "drive0"]
            file = {other}
            format = qcow2
            node-name = d0
            read-only = on

            [nbd-server]
            addr.type = unix
            addr.path = {self.path('nbd')}

            [export "e0"]
            type = nbd
            node-name = disk
            name = x
            writable = on

            [chardev "c"]
            backend = socket
            path = {self.path('second')}
            server = on
            wait = off

            [monitor "c"]
            pretty = off
            '''))
        with sd.Qmp.connect(self.path('qmp')) as q, sd.Qmp.connect(self.path('second')) as second:
            nodes = {n['node-name']: n for n in q.cmd('query-named-block-nodes')}
            self.assertLessEqual({'disk', 'nothing', 'd0'}, set(nodes))
            self.assertEqual(nodes['disk']['file'], image)
            self.assertEqual([b['device'] for b in second.cmd('query-block')], ['drive0'])
        self.assertEqual(sd.run('nbdinfo', '--size', sd.nbd_uri(self.path('nbd'), 'x')).stdout, '1048576\n')
        with open(self.path('pid')) as f:
            self.assertEqual(int(f.read()), d.pid)

    def test_with_words_of_the_command_line(self):
        """A file counts as given in the place of its option."""
        config = self.write('[blockdev "middle"]\ndriver = raw\nfile = below\n')
        d = self.daemon('--blockdev', 'null-co,node-name=below', '--config', config,
                        '--blockdev', 'raw,node-name=above,file=middle')
        self.assertEqual(len(d.cmd('query-named-block-nodes')), 3)
        p = sd.run(sd.DAEMON, '--config', config, '--blockdev', 'null-co,node-name=below', check=False)
        self.assertEqual(p.returncode, 1)
        self.assertIn('sd.conf:1: [blockdev "middle"]: ', p.stderr)

    def test_two_files(self):
        a = self.write('[blockdev "a"]\ndriver = null-co\n', 'a.conf')
        b = self.write('[blockdev "b"]\ndriver = null-co\n', 'b.conf')
        d = self.daemon('--config', a, '--config', b)
        self.assertEqual({n['node-name'] for n in d.cmd('query-named-block-nodes')}, {'a', 'b'})

    def test_quotes_keep_blanks(self):
        image = sd.create_image(self.path(' a '), 'raw', 1 << 20)
        os.chdir(self.dir)
        self.addCleanup(os.chdir, sd.TOP)
        d = self.daemon('--config', self.write('[blockdev "a"]\ndriver = file\nfilename = " a "\n'),
                        program=os.path.join(sd.TOP, sd.DAEMON))
        self.assertEqual(d.node('a')['image']['virtual-size'], 1 << 20)
        self.assertTrue(os.path.exists(image))

    def test_crlf(self):
        d = self.daemon('--config', self.write('[blockdev "a"]\r\ndriver = null-co\r\nsize = 512\r\n'))
        self.assertEqual(d.node('a')['image']['virtual-size'], 512)

    def test_a_failing_open_names_its_section(self):
        p = sd.run(sd.DAEMON, '--config', self.write('# x\n[blockdev "a"]\ndriver = file\nfilename = /no/such\n'),
                   '--qmp', self.path('qmp'), check=False)
        self.assertEqual(p.returncode, 1)
        self.assertRegex(p.stderr, r'^storage-daemon: .*/sd\.conf:\d: \[blockdev "a"\]: .*/no/such')
        self.assertEqual(os.listdir(self.dir), ['sd.conf'])


class Errors(Config):
    def test_lines_that_are_nothing(self):
        for text in ('hello', '= x', '[blockdev', '[blockdev "a" ]]', '[]', '[blockdev a]', '[blockdev ""]',
                     '[blockdev "a] ', 'blockdev "a"'):
            with self.subTest(text=text):
                self.assertRefused(f'# first\n{text}\n', 2)

    def test_unknown_words(self):
        self.assertRefused('qpm = x\n', 1, "'qpm'", "'qmp'")
        self.assertRefused('[blockdv "a"]\n', 1, "'blockdv'", "'blockdev'")
        self.assertRefused('zzzzzz = x\n', 1, "'zzzzzz'")
        self.assertRefused('config = x\n', 1, 'command line only')
        self.assertRefused('[device "x"]\n', 1, 'command line only')

    def test_words_in_the_wrong_shape(self):
        self.assertRefused('blockdev = driver=null-co\n', 1, '[blockdev "name"]')
        self.assertRefused('[qmp]\n', 1, "'qmp = …'")
        self.assertRefused('[nbd-server "x"]\n', 1, 'no name')
        self.assertRefused('qmp =\n', 1, "'qmp' has no value")
        self.assertRefused('daemonize = yes\n', 1, "on or off, not 'yes'")

    def test_keys(self):
        head = '\n[blockdev "a"]\ndriver = raw\nfile.driver = file\n'
        self.assertRefused(head + 'file.filename = x\n\nnosuch = 1\n', 7, "'nosuch' is unexpected")
        self.assertRefused(head + 'file.nosuch = 1\nfile.filename = x\n', 5, "'file.nosuch' is unexpected")
        self.assertRefused(head, 2, "[blockdev \"a\"]", "'file.filename' is missing")
        self.assertRefused(head + 'file.filename = x\noffset = many\n', 6, "'offset'")
        self.assertRefused(head + 'file.filename = x\nread-only = maybe\n', 6, "'read-only'")
        self.assertRefused('[blockdev "a"]\n# x\ndriver = nosuch\n', 3, "'driver' does not accept value 'nosuch'")
        self.assertRefused('[drive "d"]\nfile = x\nformat = raw\nnosuch = 1\n', 4, "'nosuch' is unexpected")
        self.assertRefused('[chardev "c"]\nbackend = socket\n', 1, "exactly one of 'path'")

    def test_twice(self):
        self.assertRefused('[blockdev "a"]\ndriver = null-co\nsize = 1\nsize = 2\n', 4, "'size' was set in line 3")
        self.assertRefused('[blockdev "a"]\ndriver = null-co\nnode-name = b\n', 3, 'line 1')
        self.assertRefused('[blockdev "a"]\ndriver = null-co\nfile = x\nfile.driver = y\n', 4, 'file')

    def test_bytes(self):
        self.assertRefused(b'qmp = /x\n# \xff\n', 2, 'UTF-8')
        p = self.check(b'qmp = \0\n')
        self.assertEqual(p.returncode, 1)
        self.assertIn('NUL', p.stderr)

    def test_file(self):
        for path, text in (('/no/such.conf', 'No such file'), (self.dir, 'directory')):
            p = sd.run(sd.DAEMON, '--config', path, check=False)
            self.assertEqual(p.returncode, 1)
            self.assertIn(path, p.stderr)
            self.assertIn(text, p.stderr)


class Check(Config):
    def test_ok(self):
        p = self.check('[blockdev "a"]\ndriver = file\nfilename = /no/such\n')
        self.assertEqual((p.returncode, p.stdout, p.stderr), (0, 'storage-daemon: configuration OK\n', ''))

    def test_opens_nothing(self):
        """No file is made, opened, locked or listened on."""
        image = sd.create_image(self.path('a.qcow2'), 'qcow2', 1 << 20)
        before = os.stat(image).st_atime_ns
        time.sleep(0.02)
        p = self.check(f'qmp = {self.path("qmp")}\npidfile = {self.path("pid")}\n'
                       f'[drive "d"]\nfile = {image}\n[blockdev "b"]\ndriver = qcow2\nfile.driver = file\n'
                       f'file.filename = {image}\n')
        self.assertEqual(p.returncode, 0, p.stderr)
        self.assertEqual(sorted(os.listdir(self.dir)), ['a.qcow2', 'sd.conf'])
        self.assertEqual(os.stat(image).st_atime_ns, before)

    def test_names(self):
        null = '[blockdev "a"]\ndriver = null-co\n'
        self.assertRefused(null + null, 3, "node 'a' exists already")
        self.assertRefused('[blockdev "b"]\ndriver = raw\nfile = a\n' + null, 3, "no node 'a'")
        self.assertRefused('[blockdev "b"]\ndriver = qcow2\nfile.driver = raw\nfile.file = a\n', 4, "no node 'a'")
        self.assertRefused('[monitor "c"]\n', 1, "no chardev 'c'")
        server = '[nbd-server]\naddr.type = unix\naddr.path = /x\n'
        export = '[export "e"]\ntype = nbd\nnode-name = a\n'
        self.assertRefused(server + export, 6, "no node 'a'")
        self.assertRefused(null + export, 4, 'nbd-server')
        self.assertRefused(server + server, 4, 'NBD server')
        self.assertRefused(null + server + export + export, 9, "export 'e' exists already")
        self.assertEqual(self.check(null + server + export).returncode, 0)
        self.assertEqual(self.check('[drive "d"]\nfile = x\nformat = qcow2\nnode-name = a\n' + server + export)
                         .returncode, 0)

    def test_command_line_alone(self):
        p = sd.run(sd.DAEMON, '--blockdev', 'null-co,node-name=a', '--check-config')
        self.assertIn('OK', p.stdout)
        p = sd.run(sd.DAEMON, '--blockdev', 'raw,node-name=a,file=b', '--check-config', check=False)
        self.assertEqual(p.returncode, 1)
        self.assertIn("--blockdev raw,node-name=a,file=b: 'file': there is no node 'b'", p.stderr)


class Example(Config):
    def test_as_it_is(self):
        p = sd.run(sd.DAEMON, '--config', EXAMPLE, '--check-config')
        self.assertIn('OK', p.stdout)

    def settings(self):
        """The file with each setting that it leaves out put in on its own: (line, whole text)."""
        with open(EXAMPLE) as f:
            lines = f.read().splitlines()
        section, commented = [], False
        for number, line in enumerate(lines, 1):
            if line.startswith('#['):
                commented, section = True, []
            elif line.startswith('['):
                commented = False
            elif not line:
                section = []
            if commented:
                # A section that is left out as a whole: checked by itself when complete.
                if line.startswith('#') and line[1:2] not in ('', ' '):
                    section.append(line[1:])
                    following = lines[number] if number < len(lines) else ''
                    if not following.startswith('#') or following.startswith('#['):
                        yield number, '\n'.join(section) + '\n'
            elif re.match(r'#[a-z]', line):
                key = line[1:].split('=')[0].strip()
                text = [x for x in lines]
                text[number - 1] = line[1:]
                # An alternative to what stands in the section replaces it.
                start = max(i for i in range(number) if i == 0 or lines[i - 1].startswith('['))
                end = next((i for i in range(number, len(lines)) if lines[i].startswith('[')), len(lines))
                for i in range(start, end):
                    if i != number - 1 and lines[i].split('=')[0].strip() == key:
                        text[i] = ''
                yield number, '\n'.join(text) + '\n'

    def test_every_setting(self):
        """Each is a word that the daemon knows, with a value that it takes. Alternatives that need one another
        (addr.type with addr.host) may only complain about that."""
        n = 0
        for line, text in self.settings():
            p = self.check(text)
            n += 1
            with self.subTest(line=line):
                if p.returncode:
                    self.assertRegex(p.stderr, r"is missing|'(addr|server)\.[a-z]+' is unexpected|with server=o")
        self.assertGreater(n, 25)


if __name__ == '__main__':
    sd.main()
