"""The graph as a client sees it: nodes made, shown, refused and removed; files that are missing, busy or broken."""
import os
import re
import socket
import stat
import struct
import subprocess
import unittest

import sd

FILE_LOCK = re.compile(r'lock|in use', re.I)


def open_files(d):
    """Regular files that the daemon holds open."""
    out = set()
    for fd in os.listdir(f'/proc/{d.pid}/fd'):
        try:
            out.add(os.readlink(f'/proc/{d.pid}/fd/{fd}'))
        except FileNotFoundError:
            pass
    return out


class Graph(sd.Case):
    def names(self, d):
        return sorted(n['node-name'] for n in d.cmd('query-named-block-nodes'))

    def image(self, name='a.img', fmt='raw', size=sd.MIB, **kw):
        return sd.create_image(self.path(name), fmt, size, **kw)

    def refused(self, d, text, cls='GenericError', **options):
        """blockdev-add must fail with @text and leave neither node nor open file behind."""
        nodes, files = self.names(d), open_files(d)
        error = self.fails(d, text, 'blockdev-add', options, cls=cls)
        self.assertEqual(nodes, self.names(d))
        self.assertEqual(files, open_files(d))
        return error['desc']


class Add(Graph):
    def test_tree_in_one_command(self):
        path = self.image(fmt='qcow2', size=8 * sd.MIB)
        d = self.daemon()
        d.cmd('blockdev-add', driver='qcow2', node_name='disk', file={'driver': 'file', 'filename': path})
        self.assertEqual(2, len(self.names(d)))
        node = d.node('disk')
        self.assertSubset({'drv': 'qcow2', 'ro': False, 'file': path, 'backing_file_depth': 0,
                           'image': {'virtual-size': 8 * sd.MIB, 'format': 'qcow2', 'filename': path},
                           'cache': {'writeback': True, 'direct': False, 'no-flush': False}}, node)
        protocol = next(n for n in d.cmd('query-named-block-nodes') if n['drv'] == 'file')
        self.assertTrue(protocol['node-name'].startswith('#block'), protocol)
        d.cmd('blockdev-del', node_name='disk')
        self.assertEqual([], self.names(d))
        self.assertNotIn(path, open_files(d))

    def test_tree_by_reference(self):
        d = self.daemon()
        d.cmd('blockdev-add', driver='file', node_name='f', filename=self.image())
        d.cmd('blockdev-add', driver='raw', node_name='r', file='f')
        self.assertEqual(['f', 'r'], self.names(d))
        self.assertIn('error', d.qmp('blockdev-del', node_name='f'))  # 'r' needs it
        self.assertEqual(['f', 'r'], self.names(d))
        d.cmd('blockdev-del', node_name='r')
        d.cmd('blockdev-del', node_name='f')
        self.assertEqual([], self.names(d))

    def test_command_line(self):
        path = self.image()
        d = self.daemon('--blockdev', f'driver=file,node-name=f,filename={path}', '--blockdev',
                        '{"driver": "raw", "node-name": "r", "file": "f", "read-only": true}',
                        '--blockdev', f'driver=raw,node-name=q,read-only=on,file.driver=file,file.filename={path}')
        self.assertSubset({'drv': 'raw', 'ro': True, 'file': path}, d.node('q'))
        self.assertSubset({'drv': 'raw', 'ro': True}, d.node('r'))

    def test_duplicate_name(self):
        d = self.daemon('--blockdev', 'null-co,node-name=n')
        self.refused(d, "Duplicate nodes with node-name='n'", driver='null-co', **{'node-name': 'n'})

    def test_bad_name(self):
        d = self.daemon()
        for name in ('1a', 'a b', '', 'a/b', '#block1', 'x' * 32):
            with self.subTest(name):
                self.refused(d, re.compile('node.name', re.I), driver='null-co', **{'node-name': name})
        self.refused(d, 'node-name', driver='null-co')

    def test_wrong_arguments(self):
        d = self.daemon()
        name = {'node-name': 'n'}
        self.refused(d, "Parameter 'driver' is missing", **name)
        self.refused(d, "Parameter 'driver' does not accept value 'flop'", driver='flop', **name)
        self.refused(d, "Parameter 'filename' is missing", driver='file', **name)
        self.refused(d, "Parameter 'bogus' is unexpected", driver='null-co', bogus=1, **name)
        self.refused(d, "Invalid parameter type for 'filename', expected: string", driver='file', filename=3, **name)
        self.refused(d, "Parameter 'file.filename' is missing", driver='raw', file={'driver': 'file'}, **name)
        self.refused(d, 'nope', driver='raw', file='nope', **name)

    def test_del_unknown(self):
        d = self.daemon()
        self.fails(d, "Failed to find node with node-name='n'", 'blockdev-del', node_name='n')

    def test_del_inner_node(self):
        d = self.daemon()
        d.cmd('blockdev-add', driver='raw', node_name='r', file={'driver': 'null-co', 'node-name': 'inner'})
        self.fails(d, re.compile('inner.*(not owned|in use|used)'), 'blockdev-del', node_name='inner')
        self.assertEqual(['inner', 'r'], self.names(d))

    def test_del_exported(self):
        d = self.daemon('--blockdev', 'null-co,node-name=n,size=65536')
        d.export('n')
        self.fails(d, re.compile(r'\bn\b.*in use|in use.*\bn\b|used'), 'blockdev-del', node_name='n')
        d.cmd('block-export-del', id='exp-n')
        d.event_wait('BLOCK_EXPORT_DELETED', {'id': 'exp-n'})
        d.cmd('blockdev-del', node_name='n')

    def test_many(self):
        d = self.daemon()
        for i in range(300):
            d.cmd('blockdev-add', driver='null-co', node_name=f'n{i}')
        self.assertEqual(300, len(self.names(d)))
        for i in range(300):
            d.cmd('blockdev-del', node_name=f'n{i}')
        self.assertEqual([], self.names(d))

    def test_options_are_shown(self):
        d = self.daemon()
        d.cmd('blockdev-add', driver='file', node_name='f', filename=self.image(), discard='unmap', read_only=False,
              detect_zeroes='unmap', cache={'direct': False, 'no-flush': True})
        self.assertSubset({'cache': {'direct': False, 'no-flush': True}, 'detect_zeroes': 'unmap', 'ro': False}, d.node('f'))
        self.fails(d, re.compile('unmap'), 'blockdev-add', driver='null-co', node_name='z', detect_zeroes='unmap')

    def test_aio_hints(self):
        path = self.image()
        d = self.daemon()
        for aio in ('threads', 'io_uring'):
            d.cmd('blockdev-add', driver='file', node_name='f', filename=path, aio=aio)
            d.cmd('blockdev-del', node_name='f')
        d.cmd('blockdev-add', driver='file', node_name='f', filename=path, aio='native', cache={'direct': True})
        d.cmd('blockdev-del', node_name='f')

    def test_auto_read_only(self):
        path = self.image()
        os.chmod(path, 0o444)
        d = self.daemon(wrapper=drop_override())
        self.refused(d, os.path.basename(path), driver='file', filename=path, **{'node-name': 'f'})
        d.cmd('blockdev-add', driver='file', node_name='f', filename=path, auto_read_only=True)
        d.cmd('blockdev-add', driver='raw', node_name='r', file='f', read_only=True)
        self.assertTrue(d.node('r')['ro'])


class RawWindow(Graph):
    def test_offset_and_size(self):
        path = self.image(data=[(0, 65536, 1), (65536, 65536, 2), (131072, 65536, 3)])
        d = self.daemon('--blockdev', f'raw,node-name=w,offset=65536,size=65536,file.driver=file,file.filename={path}')
        with sd.nbd_connect(d.export('w', writable=True)) as h:
            self.assertEqual(65536, h.get_size())
            self.assertEqual(b'\2' * 65536, h.pread(65536, 0))
            h.pwrite(b'\7' * 512, 65024)
            h.flush()
        d.shutdown()
        with open(path, 'rb') as f:
            data = f.read(196608)
        self.assertEqual(b'\1' * 65536 + b'\2' * 65024 + b'\7' * 512 + b'\3' * 65536, data)

    def test_refused(self):
        d = self.daemon('--blockdev', f'file,node-name=f,filename={self.image()}')
        name = {'node-name': 'w', 'driver': 'raw', 'file': 'f'}
        self.refused(d, re.compile('offset|size', re.I), offset=2 * sd.MIB, size=512, **name)
        self.refused(d, re.compile('offset|size', re.I), offset=512, size=sd.MIB, **name)
        self.refused(d, re.compile('offset|size|integer|uint', re.I), offset=-1, **name)

    def test_offset_without_size(self):
        d = self.daemon('--blockdev', f'file,node-name=f,filename={self.image()}')
        d.cmd('blockdev-add', driver='raw', node_name='w', file='f', offset=4096)
        self.assertEqual(sd.MIB - 4096, d.node('w')['image']['virtual-size'])


class Null(Graph):
    def test_null(self):
        for driver in ('null-co', 'null-aio'):
            with self.subTest(driver):
                d = self.daemon('--blockdev', f'{driver},node-name=n,size=1048576,read-zeroes=on')
                with sd.nbd_connect(d.export('n', writable=True)) as h:
                    self.assertEqual(bytes(4096), h.pread(4096, 8192))
                    h.pwrite(b'x' * 4096, 8192)
                    self.assertEqual(bytes(4096), h.pread(4096, 8192))
                self.assertEqual(driver, d.node('n')['drv'])

    def test_default_size(self):
        d = self.daemon('--blockdev', 'null-co,node-name=n')
        self.assertEqual(sd.GIB, d.node('n')['image']['virtual-size'])


def drop_override():
    """Words that let even root respect file modes."""
    if os.geteuid() == 0:
        return ('setpriv', '--bounding-set=-dac_override,-dac_read_search', '--inh-caps=-all')
    return ()


class Files(Graph):
    """Files that cannot be opened: the error names file and reason, nothing is half-added."""

    def test_missing(self):
        d = self.daemon()
        path = self.path('missing')
        for options in ({'driver': 'file', 'filename': path},
                        {'driver': 'raw', 'file': {'driver': 'file', 'filename': path}},
                        {'driver': 'qcow2', 'file': {'driver': 'file', 'filename': path, 'node-name': 'x'}}):
            desc = self.refused(d, path, **{'node-name': 'n'}, **options)
            self.assertIn('No such file or directory', desc)
        self.assertFalse(os.path.exists(path))

    def test_directory(self):
        d = self.daemon()
        for read_only in (False, True):
            desc = self.refused(d, self.dir, driver='file', filename=self.dir, **{'node-name': 'n', 'read-only': read_only})
            self.assertRegex(desc, 'directory|regular file')

    @unittest.skipIf(sd.STAND_IN, 'the peer waits for a writer of the fifo')
    def test_neither_file_nor_block_device(self):
        fifo = self.path('fifo')
        os.mkfifo(fifo)
        d = self.daemon()
        for path in (fifo, '/dev/null', self.path('socket')):
            if path.endswith('socket'):
                with socket.socket(socket.AF_UNIX) as s:
                    s.bind(path)
            for read_only in (True, False):
                self.refused(d, path, driver='file', filename=path, **{'node-name': 'n', 'read-only': read_only})

    def test_no_permission(self):
        path = self.image()
        os.chmod(path, 0)
        d = self.daemon(wrapper=drop_override())
        desc = self.refused(d, path, driver='file', filename=path, **{'node-name': 'n'})
        self.assertIn('Permission denied', desc)
        os.chmod(path, 0o444)
        self.assertIn('Permission denied', self.refused(d, path, driver='file', filename=path, **{'node-name': 'n'}))
        d.cmd('blockdev-add', driver='file', node_name='n', filename=path, read_only=True)

    def test_missing_parent_folder(self):
        d = self.daemon()
        self.refused(d, self.path('no/a.img'), driver='file', filename=self.path('no/a.img'), **{'node-name': 'n'})
        self.refused(d, 'a.img', driver='file', filename=self.image() + '/a.img', **{'node-name': 'n'})

    def test_names(self):
        d = self.daemon()
        for name in ('with space', 'com,ma', 'colon:in', 'ünïcode', 'q"uote', 'a=b', 'x' * 200):
            with self.subTest(name):
                path = self.path(name)
                with open(path, 'wb') as f:
                    f.truncate(sd.MIB)
                d.cmd('blockdev-add', driver='file', node_name='n', filename=path)
                self.assertEqual(path, d.node('n')['file'])
                d.cmd('blockdev-del', node_name='n')
        desc = self.refused(d, re.compile('File name too long|too long'), driver='file', filename=self.path('y' * 300),
                            **{'node-name': 'n'})
        self.assertTrue(desc)

    def test_odd_size(self):
        path = self.path('odd')
        with open(path, 'wb') as f:
            f.write(b'\5' * 1000)
        d = self.daemon('--blockdev', f'file,node-name=f,filename={path}', '--blockdev', 'raw,node-name=r,file=f')
        with sd.nbd_connect(d.export('r')) as h:
            self.assertIn(h.get_size(), (1000, 1024))
            self.assertEqual(b'\5' * 1000, bytes(h.pread(1000, 0)))

    def test_empty_file(self):
        path = self.path('empty')
        open(path, 'wb').close()
        d = self.daemon('--blockdev', f'file,node-name=f,filename={path}')
        self.assertEqual(0, d.node('f')['image']['virtual-size'])


class Locks(Graph):
    """The locks that qemu-img, qemu-io and we take on each other."""

    def hold(self, path, *opts, fmt='qcow2'):
        """A qemu-io that keeps @path open until the case ends."""
        p = subprocess.Popen(['qemu-io', '-f', fmt, *opts, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT)

        def end():
            p.stdin.close()
            p.stdout.close()
            p.wait(sd.TIMEOUT)

        self.addCleanup(end)
        p.stdin.write(b'length\n')
        p.stdin.flush()
        self.assertIn(b'MiB', p.stdout.readline())
        return p

    def locked_out(self, d, path, **options):
        """blockdev-add must be refused for the lock, and say whose."""
        desc = self.refused(d, FILE_LOCK, **options)
        if not sd.STAND_IN:  # the peer tells the name on a terminal only
            self.assertIn(path, desc)

    def qcow2(self, path, name='q', **more):
        return {'driver': 'qcow2', 'node-name': name, 'file': {'driver': 'file', 'filename': path}, **more}

    def test_held_by_qemu_io(self):
        path = self.image(fmt='qcow2')
        holder = self.hold(path)
        d = self.daemon()
        self.locked_out(d, path, **self.qcow2(path))
        self.locked_out(d, path, **self.qcow2(path, **{'read-only': True}))
        d.cmd('blockdev-add', driver='qcow2', node_name='q', file={'driver': 'file', 'filename': path, 'locking': 'off'},
              read_only=True)
        d.cmd('blockdev-del', node_name='q')
        holder.stdin.close()
        holder.wait(sd.TIMEOUT)
        d.cmd('blockdev-add', self.qcow2(path))

    def test_held_read_only_by_qemu_io(self):
        path = self.image(fmt='qcow2')
        self.hold(path, '-r')
        d = self.daemon()
        d.cmd('blockdev-add', self.qcow2(path, **{'read-only': True}))
        d.cmd('blockdev-del', node_name='q')
        self.locked_out(d, path, **self.qcow2(path))

    def test_export_of_a_held_raw_image(self):
        """A raw node takes nothing of its file until somebody uses it: then the lock refuses."""
        path = self.image(fmt='qcow2')
        self.hold(path)
        d = self.daemon('--blockdev', f'raw,node-name=r,file.driver=file,file.filename={path}')
        d.nbd_server()
        for writable in (True, False):
            self.fails(d, FILE_LOCK, 'block-export-add', type='nbd', id='e', node_name='r', writable=writable)
        self.assertEqual([], d.cmd('query-block-exports'))

    def test_held_by_us(self):
        path = self.image(fmt='qcow2')
        d = self.daemon('--blockdev', f'qcow2,node-name=q,file.driver=file,file.filename={path}')
        for tool in (('qemu-img', 'info', path), ('qemu-io', '-f', 'qcow2', '-c', 'write 0 512', path),
                     ('qemu-img', 'check', path), ('qemu-img', 'resize', '-f', 'qcow2', path, '2M')):
            p = sd.run(*tool, check=False)
            self.assertNotEqual(0, p.returncode, tool)
            self.assertRegex(p.stdout + p.stderr, FILE_LOCK)
        sd.qemu_img('info', '-U', path)
        d.cmd('blockdev-del', node_name='q')
        sd.qemu_io(path, 'write 0 512', fmt='qcow2')

    def test_held_read_only_by_us(self):
        path = self.image(fmt='qcow2')
        self.daemon('--blockdev', f'qcow2,node-name=q,read-only=on,file.driver=file,file.filename={path}')
        sd.qemu_img('info', path)
        sd.qemu_io(path, 'read 0 512', fmt='qcow2', readonly=True)
        p = sd.qemu_io(path, 'write 0 512', fmt='qcow2', check=False)
        self.assertRegex(p.stdout + p.stderr, FILE_LOCK)

    def test_two_daemons(self):
        path = self.image(fmt='qcow2')
        self.daemon('--blockdev', f'qcow2,node-name=q,file.driver=file,file.filename={path}')
        self.locked_out(self.daemon(), path, **self.qcow2(path))

    def test_twice_in_one_daemon(self):
        path = self.image(fmt='qcow2')
        d = self.daemon('--blockdev', f'qcow2,node-name=a,file.driver=file,file.filename={path}')
        self.locked_out(d, path, **self.qcow2(path))

    def test_locks_go_with_the_process(self):
        path = self.image()
        d = self.daemon('--blockdev', f'file,node-name=f,filename={path}')
        d.export('f', writable=True)
        d.kill(path)
        sd.qemu_io(path, 'write 0 512', fmt='raw')


# Offsets of the qcow2 header's fields and what to write there.
BROKEN_QCOW2 = {
    'magic': (0, '>4s', b'QFJ\xfb', 'not in qcow2 format'),
    'version 1': (4, '>I', 1, 'version'),
    'version 9': (4, '>I', 9, 'version'),
    'version 0': (4, '>I', 0, 'version'),
    'cluster bits 8': (20, '>I', 8, 'cluster'),
    'cluster bits 22': (20, '>I', 22, 'cluster'),
    'cluster bits huge': (20, '>I', 0xffffffff, 'cluster'),
    'backing name past the header': (8, '>QI', (0x20000, 8), 'backing'),
    'backing name too long': (8, '>QI', (0x100, 0xffffff), 'backing|eader'),
    'size without table': (24, '>Q', 1 << 60, 'L1|size|table|big'),
    'size odd and huge': (24, '>Q', (1 << 64) - 1, 'L1|size|table|large|big'),
    'encrypted': (32, '>I', 2, 'encrypt|crypt|AES|LUKS'),
    'unknown encryption': (32, '>I', 77, 'encrypt|crypt'),
    'L1 too large': (36, '>I', 0x7fffffff, 'L1'),
    'L1 too small': (36, '>I', 0, 'L1'),
    'L1 unaligned': (40, '>Q', 0x30001, '[Ll]1'),
    'L1 overflow': (40, '>Q', 0xffffffffffff0000, '[Ll]1'),
    'refcount table unaligned': (48, '>Q', 0x10001, 'efcount|eference'),
    'refcount table empty': (56, '>I', 0, 'efcount|eference'),
    'refcount table huge': (56, '>I', 0x7fffffff, 'efcount|eference'),
    'snapshots huge': (60, '>I', 0x7fffffff, 'napshot'),
    'incompatible feature': (72, '>Q', 1 << 40, 'feature'),
    'refcount order 7': (96, '>I', 7, 'efcount|eference'),
    'header length 40': (100, '>I', 40, 'eader'),
    'header length huge': (100, '>I', 0x10000000, 'eader'),
}


class BrokenQcow2(Graph):
    def attempt(self, path, reason):
        """qcow2 must refuse it with the file's name and a reason, and neither hang nor eat memory."""
        d = self.daemon()
        desc = self.refused(d, re.compile(reason), driver='qcow2', file={'driver': 'file', 'filename': path},
                            **{'node-name': 'q'})
        if not sd.STAND_IN:
            self.assertIn(path, desc)
        sd.qemu_io(path, 'length', fmt='raw')  # no lock stayed
        self.assertEqual({}, {n: 1 for n in self.names(d)})
        with open(f'/proc/{d.pid}/status') as f:
            peak = int(re.search(r'VmHWM:\s+(\d+)', f.read())[1])
        self.assertLess(peak, 600 * 1024)
        d.shutdown()

    def test_broken_headers(self):
        for name, (offset, layout, value, reason) in BROKEN_QCOW2.items():
            with self.subTest(name):
                path = self.image('broken.qcow2', 'qcow2', 4 * sd.MIB)
                with open(path, 'r+b') as f:
                    f.seek(offset)
                    f.write(struct.pack(layout, *(value if isinstance(value, tuple) else (value,))))
                self.attempt(path, reason)

    def test_not_qcow2(self):
        for name, content in (('empty', b''), ('text', b'hello\n' * 1000), ('zeroes', bytes(65536)),
                              ('magic alone', b'QFI\xfb'), ('short', b'QFI\xfb\0\0\0\3' + bytes(20))):
            with self.subTest(name):
                path = self.path('x.qcow2')
                with open(path, 'wb') as f:
                    f.write(content)
                self.attempt(path, '.')

    def test_truncated(self):
        whole = self.image('whole.qcow2', 'qcow2', 4 * sd.MIB, data=[(0, 65536, 1)])
        with open(whole, 'rb') as f:
            content = f.read()
        for length in (8, 71, 72, 103):
            with self.subTest(length):
                path = self.path('cut.qcow2')
                with open(path, 'wb') as f:
                    f.write(content[:length])
                self.attempt(path, '.')

    def test_extension_past_the_end(self):
        path = self.image('ext.qcow2', 'qcow2', 4 * sd.MIB)
        with open(path, 'r+b') as f:
            f.seek(100)
            length, = struct.unpack('>I', f.read(4))
            f.seek(length)
            f.write(struct.pack('>II', 0x6803f857, 0x7fffffff))
        self.attempt(path, 'xtension|eader')

    def test_missing_backing(self):
        base = self.image('base.qcow2', 'qcow2')
        top = sd.create_image(self.path('top.qcow2'), 'qcow2', backing='base.qcow2')
        os.unlink(base)
        d = self.daemon()
        desc = self.refused(d, 'base.qcow2', driver='qcow2', file={'driver': 'file', 'filename': top}, **{'node-name': 'q'})
        self.assertIn('No such file or directory', desc)

    def test_backing_loop(self):
        """An image that is its own backing file must be refused, not followed for ever."""
        a = self.image('a.qcow2', 'qcow2')
        sd.qemu_img('rebase', '-u', '-b', 'b.qcow2', '-F', 'qcow2', a)
        b = sd.create_image(self.path('b.qcow2'), 'qcow2', sd.MIB)
        sd.qemu_img('rebase', '-u', '-b', 'a.qcow2', '-F', 'qcow2', b)
        if sd.STAND_IN:
            self.skipTest('the peer needs its lock check for this')
        d = self.daemon()
        self.refused(d, 'qcow2', driver='qcow2', file={'driver': 'file', 'filename': a}, **{'node-name': 'q'})


class Queries(Graph):
    def test_backing_chain(self):
        base = self.image('base.img', 'raw', sd.MIB)
        mid = sd.create_image(self.path('mid.qcow2'), 'qcow2', backing='base.img', backing_fmt='raw')
        top = sd.create_image(self.path('top.qcow2'), 'qcow2', backing=mid, backing_fmt='qcow2')
        d = self.daemon('--blockdev', f'qcow2,node-name=top,file.driver=file,file.filename={top}')
        node = d.node('top')
        self.assertEqual(2, node['backing_file_depth'])
        self.assertEqual(mid, node['backing_file'])
        self.assertEqual(mid, node['image']['backing-image']['filename'])
        self.assertEqual(base, node['image']['backing-image']['backing-image']['filename'])
        flat = next(n for n in d.cmd('query-named-block-nodes', flat=True) if n['node-name'] == 'top')
        self.assertNotIn('backing-image', flat['image'])

    def test_backing_by_node_and_none(self):
        self.image('base.img', 'raw', sd.MIB, data=[(0, 4096, 9)])
        top = sd.create_image(self.path('top.qcow2'), 'qcow2', backing='base.img', backing_fmt='raw')
        d = self.daemon()
        d.cmd('blockdev-add', driver='null-co', node_name='zeroes', size=sd.MIB, read_zeroes=True)
        d.cmd('blockdev-add', driver='qcow2', node_name='top', backing='zeroes', file={'driver': 'file', 'filename': top})
        with sd.nbd_connect(d.export('top')) as h:
            self.assertEqual(bytes(4096), h.pread(4096, 0))
        d.cmd('block-export-del', id='exp-top')
        d.event_wait('BLOCK_EXPORT_DELETED')
        d.cmd('blockdev-del', node_name='top')
        d.cmd('blockdev-add', {'driver': 'qcow2', 'node-name': 'top', 'backing': None,
                               'file': {'driver': 'file', 'filename': top}})
        self.assertEqual(0, d.node('top')['backing_file_depth'])

    def test_graph(self):
        d = self.daemon('--blockdev', 'null-co,node-name=n', '--blockdev', 'raw,node-name=r,file=n')
        graph = d.cmd('x-debug-query-block-graph')
        ids = {n['name']: n['id'] for n in graph['nodes']}
        self.assertLessEqual({'n', 'r'}, set(ids))
        edges = [e for e in graph['edges'] if e['parent'] == ids['r']]
        self.assertEqual([ids['n']], [e['child'] for e in edges])
        self.assertEqual('file', edges[0]['name'])

    def test_graph_tells_jobs_from_exports(self):
        d = self.daemon('--blockdev', 'null-co,node-name=n', '--blockdev', 'null-co,node-name=t')
        d.export('n')
        d.cmd('blockdev-mirror', job_id='j', device='n', target='t', sync='full')
        graph = d.cmd('x-debug-query-block-graph')
        types = {n['id']: n['type'] for n in graph['nodes']}
        t, = [n['id'] for n in graph['nodes'] if n['name'] == 't']
        self.assertIn('block-job', [types[e['parent']] for e in graph['edges'] if e['child'] == t])
        self.assertEqual(1, list(types.values()).count('block-job'))
        self.assertIn('block-backend', types.values())

    def test_blockstats_count_nbd_traffic(self):
        d = self.daemon('--blockdev', f'file,node-name=f,filename={self.image()}', '--blockdev', 'raw,node-name=r,file=f')
        with sd.nbd_connect(d.export('r', writable=True)) as h:
            h.pwrite(b'x' * 4096, 0)
            h.pwrite(b'x' * 8192, 65536)
            h.pread(4096, 0)
            h.flush()
        rows = {r.get('node-name'): r['stats'] for r in d.cmd('query-blockstats', query_nodes=True)}
        self.assertLessEqual({'f', 'r'}, set(rows))
        self.assertEqual(65536 + 8192, rows['f']['wr_highest_offset'])
        if not sd.STAND_IN:
            self.assertSubset({'wr_bytes': 12288, 'wr_operations': 2, 'rd_bytes': 4096, 'rd_operations': 1,
                               'flush_operations': 1, 'failed_rd_operations': 0}, rows['r'])
            self.assertGreater(rows['r']['wr_total_time_ns'], 0)

    def test_write_reaches_the_file(self):
        path = self.image()
        d = self.daemon('--blockdev', f'raw,node-name=r,file.driver=file,file.filename={path}')
        with sd.nbd_connect(d.export('r', writable=True)) as h:
            h.pwrite(b'\x5a' * 65536, 131072)
            h.flush()
        d.shutdown()
        sd.qemu_io(path, 'read -P 0x5a 131072 65536', 'read -P 0 0 131072', 'read -P 0 196608 65536', fmt='raw')

    def test_order_and_depth(self):
        """Nodes come after their files and before their backing files; query-blockstats has the oldest first."""
        base = sd.create_image(self.path('base.qcow2'), 'qcow2', sd.MIB)
        top = sd.create_image(self.path('top.qcow2'), 'qcow2', backing=base)
        d = self.daemon()
        d.cmd('blockdev-add', driver='qcow2', node_name='top',
              file={'driver': 'file', 'node-name': 'top-file', 'filename': top},
              backing={'driver': 'qcow2', 'node-name': 'base',
                       'file': {'driver': 'file', 'node-name': 'base-file', 'filename': base}})
        oldest_first = ['top-file', 'top', 'base-file', 'base']
        nodes = d.cmd('query-named-block-nodes')
        self.assertEqual(oldest_first[::-1], [n['node-name'] for n in nodes])
        self.assertEqual(1, nodes[2]['backing_file_depth'])
        self.assertEqual(0, d.cmd('query-named-block-nodes', flat=True)[2]['backing_file_depth'])
        stats = d.cmd('query-blockstats', query_nodes=True)
        self.assertEqual(oldest_first, [s['node-name'] for s in stats])
        self.assertEqual('top-file', stats[1]['parent']['node-name'])
        self.assertNotIn('backing', stats[1])
        self.assertFalse(stats[1]['stats']['account_failed'])

    def test_who_keeps_a_node(self):
        d = self.daemon()
        d.cmd('blockdev-add', driver='null-co', node_name='n', size=sd.MIB)
        d.cmd('blockdev-add', driver='raw', node_name='r', file='n')
        self.fails(d, 'Block device n is in use', 'blockdev-del', node_name='n')
        d.export('r')
        self.fails(d, 'Node r is in use', 'blockdev-del', node_name='r')


@unittest.skipIf(sd.STAND_IN, 'the peer has no --drive')
class Drives(Graph):
    def test_device(self):
        path = self.image(fmt='qcow2', size=2 * sd.MIB)
        d = self.daemon('--drive', f'id=drive0,file={path},format=qcow2,node-name=top')
        device, = d.cmd('query-block')
        self.assertSubset({'device': 'drive0', 'removable': False, 'inserted': {
            'file': path, 'drv': 'qcow2', 'node-name': 'top', 'backing_file_depth': 0, 'ro': False,
            'image': {'virtual-size': 2 * sd.MIB}}}, device)
        stats, = d.cmd('query-blockstats')
        self.assertEqual('drive0', stats['device'])

    def test_empty_cd(self):
        d = self.daemon('--drive', 'id=cd0,media=cdrom')
        device, = d.cmd('query-block')
        self.assertEqual((True, False), (device['removable'], 'inserted' in device))
        self.fails(d, "Device 'cd0' has no medium", 'block-dirty-bitmap-add', node='cd0', name='b')

    def test_probing(self):
        """Without a format the first bytes decide; raw comes with a warning and cannot be turned into another format."""
        qcow2 = self.image('a.qcow2', 'qcow2', 2 * sd.MIB)
        raw = self.image('b.img', 'raw', sd.MIB)
        d = self.daemon('--drive', f'id=q,file={qcow2}', '--drive', f'id=r,file={raw},node-name=raw-node')
        self.assertEqual({'q': 'qcow2', 'r': 'raw'}, {b['device']: b['inserted']['drv'] for b in d.cmd('query-block')})
        self.assertRegex(d.stderr(), r'(?i)warning.*b\.img')
        with open(qcow2, 'rb') as f:
            header = f.read(512)
        import nbd
        with sd.nbd_connect(d.export('raw-node', writable=True)) as h:
            with self.assertRaises(nbd.Error):
                h.pwrite(header, 0)
            h.pwrite(header, 4096)
            h.pwrite(b'harmless' * 64, 0)
        d.shutdown()
        self.assertEqual('raw', sd.image_info(raw)['format'])

    def test_given_raw_is_free(self):
        qcow2, raw = self.image('a.qcow2', 'qcow2', 2 * sd.MIB), self.image('b.img', 'raw', sd.MIB)
        d = self.daemon('--drive', f'id=r,file={raw},format=raw,node-name=raw-node')
        with open(qcow2, 'rb') as f:
            header = f.read(512)
        with sd.nbd_connect(d.export('raw-node', writable=True)) as h:
            h.pwrite(header, 0)

    def test_missing(self):
        d = sd.Daemon('--drive', f'id=r,file={self.path("missing")},format=raw', qmp=False)
        self.addCleanup(d.cleanup)
        self.assertEqual(1, d.wait())
        self.assertIn('missing', d.stderr())
        self.assertIn('No such file or directory', d.stderr())


class BlockDevice(Graph):
    def test_loop_device(self):
        """A block device by its node, where this machine lets us make one."""
        path = self.image(size=4 * sd.MIB)
        p = sd.run('losetup', '--find', '--show', path, check=False)
        if p.returncode:
            self.skipTest(f'no loop device: {p.stderr.strip()}')
        device = p.stdout.strip()
        self.addCleanup(sd.run, 'losetup', '-d', device)
        self.assertTrue(stat.S_ISBLK(os.stat(device).st_mode))
        d = self.daemon()
        d.cmd('blockdev-add', driver='host_device', node_name='dev', filename=device)
        self.assertEqual(4 * sd.MIB, d.node('dev')['image']['virtual-size'])
        with sd.nbd_connect(d.export('dev', writable=True)) as h:
            h.pwrite(b'\x21' * 4096, 4096)
            self.assertEqual(b'\x21' * 4096, h.pread(4096, 4096))
        d.shutdown()


class HalfOpen(sd.Case):
    """A node that another session is opening, or that closes, has a name but is not there yet, or no more."""

    def setUp(self):
        self.server = socket.socket(socket.AF_UNIX)
        self.addCleanup(self.server.close)
        self.server.bind(self.path('silent'))
        self.server.settimeout(sd.TIMEOUT)
        self.server.listen()
        image = sd.create_image(self.path('a.img'), 'raw', sd.MIB)
        self.d = self.daemon('--drive', f'id=drive0,file={image},format=raw,node-name=a,if=none')

    def try_all(self):
        d = self.d
        for command in ('query-named-block-nodes', 'x-debug-query-block-graph'):
            self.assertNotIn("'half'", str(d.cmd(command)))
        self.assertNotIn("'half'", str(d.cmd('query-blockstats', query_nodes=True)))
        missing = "nor node-name='half'"
        for job in ('blockdev-mirror', 'blockdev-backup'):
            self.fails(d, missing, job, job_id='j', device='a', target='half', sync='full')
            self.fails(d, missing, job, job_id='j', device='half', target='a', sync='full')
        self.fails(d, missing, 'block-dirty-bitmap-add', node='half', name='b')
        self.fails(d, missing, 'block_resize', node_name='half', size=512)
        self.fails(d, missing, 'blockdev-add', driver='raw', node_name='above', file='half')
        self.fails(d, "Failed to find node with node-name='half'", 'blockdev-del', node_name='half')
        self.fails(d, "Duplicate nodes with node-name='half'", 'blockdev-add', driver='null-co', node_name='half')

    def test_opening(self):
        self.d.nbd_server()
        nbd = {'driver': 'nbd', 'server': {'type': 'unix', 'path': self.path('silent')}}
        for options in (nbd, {'driver': 'raw', 'file': nbd}, {'driver': 'qcow2', 'file': nbd}):
            with self.subTest(driver=options['driver']):
                with self.d.connect() as other:
                    adding = other.start('blockdev-add', options, node_name='half')
                    connection = self.server.accept()[0]
                    self.try_all()
                    self.fails(self.d, "nor node-name='half'", 'block-export-add', type='nbd', id='e', node_name='half')
                    connection.close()
                    self.assertIn('error', other.finish(adding))

    def test_its_own_child(self):
        self.fails(self.d, "Cannot find device='half' nor node-name='half'", 'blockdev-add', driver='raw',
                   node_name='half', file='half')


if __name__ == '__main__':
    sd.main()
