"""blkdebug: which requests fail, when, and with what; states; limits; permissions; breakpoints; names."""
import errno
import threading
import time
import unittest

import nbd
import sd

CLUSTER = 65536


def rule(event, **more):
    return {'event': event, **{k.replace('_', '-') if k != 'new_state' else k: v for k, v in more.items()}}


class BlkdebugCase(sd.Case):
    def image(self, name='a.img', fmt='raw', size=4 * sd.MIB, data=((0, 4 * sd.MIB, 0x11),), **more):
        return sd.create_image(self.path(name), fmt, size, data=data, **more)

    def add(self, d, path, fmt='raw', name='n', discard=None, **options):
        """@fmt over blkdebug (called 'dbg') over a file."""
        file = {'driver': 'file', 'filename': path}
        if discard:
            file['discard'] = options['discard'] = discard
        d.cmd('blockdev-add', {'driver': fmt, 'node-name': name, **({'discard': discard} if discard else {}),
                               'file': {'driver': 'blkdebug', 'node-name': 'dbg', 'image': file, **options}})

    def open(self, fmt='raw', **options):
        """A writable NBD handle on such a node."""
        d = self.daemon()
        self.add(d, self.image(fmt=fmt), fmt, **options)
        return d, self.connect(d.export('n', writable=True))

    def connect(self, uri, **settings):
        return self.enterContext(sd.nbd_connect(uri, **settings))

    def refused(self, call, code):
        with self.assertRaises(nbd.Error) as caught:
            call()
        self.assertEqual(code, caught.exception.errno, caught.exception.string)


class Errors(BlkdebugCase):
    def test_once(self):
        _, h = self.open(**{'inject-error': [rule('read_aio', once=True)]})
        self.refused(lambda: h.pread(512, 0), 'EIO')
        self.assertEqual(b'\x11' * 512, bytes(h.pread(512, 0)))

    def test_stays_armed(self):
        # The event is read_aio; whatever comes after it fails as well.
        _, h = self.open(**{'inject-error': [rule('read_aio', errno=errno.ENOSPC)]})
        h.pwrite(b'x' * 512, 0)
        for _ in range(2):
            self.refused(lambda: h.pread(512, 0), 'ENOSPC')
        self.refused(lambda: h.pwrite(b'x' * 512, 0), 'ENOSPC')

    def test_sector(self):
        _, h = self.open(**{'inject-error': [rule('read_aio', sector=8)]})
        h.pread(8 * 512, 0)
        h.pread(512, 9 * 512)
        self.refused(lambda: h.pread(512, 8 * 512), 'EIO')
        self.refused(lambda: h.pread(16 * 512, 0), 'EIO')

    def test_errno_0_does_nothing(self):
        _, h = self.open(**{'inject-error': [rule('read_aio', errno=0)]})
        h.pread(512, 0)

    def test_immediately(self):
        _, h = self.open(**{'inject-error': [rule('read_aio', immediately=True, once=True)]})
        self.refused(lambda: h.pread(512, 0), 'EIO')
        h.pread(512, 0)

    def test_first_rule_counts(self):
        _, h = self.open(**{'inject-error': [rule('read_aio', errno=errno.ENOSPC, once=True),
                                             rule('read_aio', errno=errno.EINVAL, once=True)]})
        self.refused(lambda: h.pread(512, 0), 'ENOSPC')
        self.refused(lambda: h.pread(512, 0), 'EINVAL')
        h.pread(512, 0)

    def test_kinds(self):
        calls = {'read': lambda h: h.pread(CLUSTER, 0), 'write': lambda h: h.pwrite(b'x' * CLUSTER, 0),
                 'write-zeroes': lambda h: h.zero(CLUSTER, 0), 'discard': lambda h: h.trim(CLUSTER, 0),
                 'flush': lambda h: h.flush()}
        for kind in calls:
            with self.subTest(kind=kind):
                d = self.daemon()
                self.add(d, self.image(f'{kind}.img'), discard='unmap',
                         **{'inject-error': [rule('none', iotype=kind, errno=errno.ENOSPC)]})
                h = self.connect(d.export('n', writable=True))
                for other, call in calls.items():
                    if other == kind:
                        self.refused(lambda: call(h), 'ENOSPC')
                    elif other != 'flush':
                        call(h)

    def test_kind_of_status(self):
        d = self.daemon()
        self.add(d, self.image(), **{'inject-error': [rule('none', iotype='block-status')]})
        h = self.connect(d.export('n'), meta=[nbd.CONTEXT_BASE_ALLOCATION])
        h.pread(512, 0)
        self.refused(lambda: h.block_status(sd.MIB, 0, lambda *_: 0), 'EIO')

    def test_flush_may_succeed_later(self):
        _, h = self.open(**{'inject-error': [rule('flush_to_disk', iotype='flush', once=True)]})
        h.pwrite(b'x' * 512, 0)
        self.refused(lambda: h.flush(), 'EIO')
        h.flush()

    def test_flush_event_needs_a_write(self):
        _, h = self.open(**{'inject-error': [rule('read_aio', state=2, once=True)],
                            'set-state': [rule('flush_to_disk', state=1, new_state=2)]})
        h.flush()
        h.pread(512, 0)
        h.pwrite(b'x' * 512, 0)
        h.flush()
        self.refused(lambda: h.pread(512, 0), 'EIO')
        h.pread(512, 0)


class States(BlkdebugCase):
    def test_turns(self):
        # Every other read is in state 1.
        _, h = self.open(**{'inject-error': [rule('read_aio', state=1, sector=0, once=True),
                                             rule('read_aio', state=1, sector=0, once=True)],
                            'set-state': [rule('read_aio', state=1, new_state=2),
                                          rule('read_aio', state=2, new_state=1)]})
        self.refused(lambda: h.pread(512, 0), 'EIO')
        self.refused(lambda: h.pread(512, 0), 'EIO')  # the second rule is still armed
        h.pread(512, 0)

    def test_state_0_and_none_fit_any(self):
        for more in ({'state': 0}, {}):
            with self.subTest(**more):
                d = self.daemon()
                self.add(d, self.image(f'{len(more)}.img'), **{
                    'inject-error': [rule('read_aio', once=True, **more)],
                    'set-state': [rule('write_aio', new_state=77, **more)]})
                h = self.connect(d.export('n', writable=True))
                h.pwrite(b'x' * 512, 0)
                self.refused(lambda: h.pread(512, 0), 'EIO')
                h.pread(512, 0)

    def test_first_change_counts(self):
        _, h = self.open(**{'inject-error': [rule('read_aio', state=5, once=True)],
                            'set-state': [rule('write_aio', new_state=5), rule('write_aio', new_state=6)]})
        h.pread(512, 0)
        h.pwrite(b'x' * 512, 0)
        self.refused(lambda: h.pread(512, 0), 'EIO')


class Config(BlkdebugCase):
    def config(self, text):
        with open(self.path('rules'), 'w') as f:
            f.write(text)
        return self.path('rules')

    def test_file(self):
        _, h = self.open(config=self.config('''
# a comment
[inject-error]
  event = "read_aio"
  state = "2"
  errno = "28"
once = "on"
immediately = "off"

[set-state]
event = "write_aio"
state = "1"
new_state = "2"
'''))
        h.pread(512, 0)
        h.pwrite(b'x' * 512, 0)
        self.refused(lambda: h.pread(512, 0), 'ENOSPC')
        h.pread(512, 0)

    def test_file_before_options(self):
        _, h = self.open(config=self.config('[inject-error]\nevent = "read_aio"\nerrno = "28"\nonce = "on"\n'),
                         **{'inject-error': [rule('read_aio', errno=errno.EINVAL, once=True)]})
        self.refused(lambda: h.pread(512, 0), 'ENOSPC')
        self.refused(lambda: h.pread(512, 0), 'EINVAL')

    @unittest.skipIf(sd.STAND_IN, 'our words')
    def test_refused(self):
        d = self.daemon()
        path = self.image()
        for text, line, why in (
                ('[foo]\n', 1, "no option group 'foo'"),
                ('event = "read_aio"\n', 1, 'no group defined'),
                ('[inject-error]\n\nbla\n', 3, 'expected [section] or key = "value"'),
                ('[inject-error]\nevent = read_aio\n', 2, "value of 'event' must stand in double quotes"),
                ('[inject-error]\nevent = "read_aio\n', 2, "value of 'event' must stand in double quotes"),
                ('\n[inject-error]\nevent = "bogus"\n', 2, "'event' does not accept value 'bogus'"),
                ('[inject-error]\n[set-state]\n', 1, "'event' is missing"),
                ('[inject-error]\nevent = "read_aio"\nbla = "1"\n', 1, "'bla' is unexpected"),
                ('[inject-error]\nevent = "read_aio"\nerrno = "-3"\n', 1, "'errno' expects"),
                ('[set-state]\nevent = "read_aio"\n', 1, "'new_state' is missing"),
                ('[set-state]\nevent = "read_aio"\nnew_state = "x"\n', 1, "'new_state' expects"),
                ('[set-state', 1, 'no option group'),
                ('#' * 70000, None, 'File too large')):
            with self.subTest(text=text[:60]):
                config = self.config(text)
                self.fails(d, why, 'blockdev-add', driver='blkdebug', node_name='n', config=config,
                           image={'driver': 'file', 'filename': path})
                if line:
                    self.fails(d, f'{config}:{line}: ', 'blockdev-add', driver='blkdebug', node_name='n',
                               config=config, image={'driver': 'file', 'filename': path})
        self.fails(d, 'Could not read blkdebug config file', 'blockdev-add', driver='blkdebug', node_name='n',
                   config=self.path('none'), image={'driver': 'file', 'filename': path})
        d.cmd('blockdev-add', driver='blkdebug', node_name='n', config=self.config(''),
              image={'driver': 'file', 'filename': path})

    def test_filename(self):
        config = self.config('[inject-error]\nevent = "read_aio"\nonce = "on"\n')
        base = self.image('base.img')
        sd.qemu_img('create', '-f', 'qcow2', '-F', 'raw', '-b', f'blkdebug:{config}:{base}', self.path('top.qcow2'))
        d = self.daemon()
        d.cmd('blockdev-add', driver='qcow2', node_name='n', file={'driver': 'file', 'filename': self.path('top.qcow2')})
        h = self.connect(d.export('n'))
        self.refused(lambda: h.pread(512, 0), 'EIO')
        self.assertEqual(b'\x11' * 512, bytes(h.pread(512, 0)))
        names = {n['drv']: n['file'] for n in d.cmd('query-named-block-nodes')}
        self.assertEqual(f'blkdebug:{config}:{base}', names['blkdebug'])
        self.assertEqual(f'blkdebug:{config}:{base}', names['raw'])

    def test_filename_with_options(self):
        path = self.image()
        d = self.daemon()
        self.add(d, path, align=4096)
        name = d.node('n')['file']
        self.assertTrue(name.startswith('json:'), name)
        for word in ('"blkdebug"', '"align": 4096', path):
            self.assertIn(word, name)

    @unittest.skipIf(sd.STAND_IN, 'the peer probes differently')
    def test_filename_refused(self):
        d = self.daemon(wait=True)
        self.image('base.img')
        for name, why in (('blkdebug:x', 'requires both config file and image path'),
                          ('blkdebug::nosuch:y', "Unknown protocol 'nosuch'")):
            sd.qemu_img('create', '-u', '-f', 'qcow2', '-F', 'raw', '-b', name, self.path('t.qcow2'), '1M')
            self.fails(d, why, 'blockdev-add', driver='qcow2', node_name='n',
                       file={'driver': 'file', 'filename': self.path('t.qcow2')})


class Limits(BlkdebugCase):
    def test_refused(self):
        d = self.daemon()
        path = self.image()
        for options, name in (({'align': 3}, 'align 3'), ({'align': 1 << 31}, 'align 2147483648'),
                              ({'align': 512, 'max-transfer': 100}, 'max-transfer 100'),
                              ({'align': 4096, 'opt-write-zero': 512}, 'opt-write-zero 512'),
                              ({'opt-write-zero': 3, 'max-write-zero': 4}, 'max-write-zero 4'),
                              ({'align': 512, 'opt-discard': 5}, 'opt-discard 5'),
                              ({'opt-discard': 3, 'max-discard': 7}, 'max-discard 7')):
            with self.subTest(**options):
                self.fails(d, f'Cannot meet constraints with {name}', 'blockdev-add',
                           {'driver': 'blkdebug', 'node-name': 'x', 'image': {'driver': 'file', 'filename': path},
                            **options})

    def test_alignment(self):
        # A write of one sector becomes one that reads and writes the whole block.
        d, h = self.open(align=4096, **{'inject-error': [rule('pwritev_rmw_head', iotype='read', once=True)]})
        self.refused(lambda: h.pwrite(b'x' * 512, 512), 'EIO')
        h.pwrite(b'x' * 512, 512)
        self.assertEqual(b'\x11' * 512 + b'x' * 512 + b'\x11' * 3072, bytes(h.pread(4096, 0)))

    def test_odd_preferences(self):
        _, h = self.open(discard='unmap', **{'max-transfer': 5 * 512, 'align': 512, 'opt-write-zero': 3 * 512,
                                             'max-write-zero': 9 * 512, 'opt-discard': 7 * 512,
                                             'max-discard': 14 * 512})
        want = bytearray(b'\x11' * (4 * sd.MIB))
        for i, (start, length) in enumerate(((0, 99 * 512), (512, 40000 - 40000 % 512), (1 << 20, 512), (12800, 1536))):
            h.zero(length, start)
            want[start:start + length] = bytes(length)
            h.pwrite(bytes([i + 1]) * 5120, start + 1024)
            want[start + 1024:start + 1024 + 5120] = bytes([i + 1]) * 5120
        h.trim(123 * 512, 2 << 20)
        want[2 << 20:(2 << 20) + 123 * 512] = bytes(h.pread(123 * 512, 2 << 20))
        self.assertEqual(bytes(want), bytes(h.pread(4 * sd.MIB, 0)))


class Permissions(BlkdebugCase):
    def test_take_and_unshare(self):
        d = self.daemon()
        d.cmd('blockdev-add', driver='null-co', node_name='base')
        d.cmd('blockdev-add', {'driver': 'blkdebug', 'node-name': 'a', 'image': 'base',
                               'unshare-child-perms': ['write', 'resize']})
        self.fails(d, "'write'", 'blockdev-add', {'driver': 'blkdebug', 'node-name': 'b', 'image': 'base',
                                                  'take-child-perms': ['write']})
        d.cmd('blockdev-add', {'driver': 'blkdebug', 'node-name': 'b', 'image': 'base',
                               'take-child-perms': ['consistent-read']})
        self.fails(d, "'consistent read'", 'blockdev-add', {'driver': 'blkdebug', 'node-name': 'c', 'image': 'base',
                                                            'unshare-child-perms': ['consistent-read']})
        d.cmd('blockdev-del', node_name='a')
        d.cmd('blockdev-add', {'driver': 'blkdebug', 'node-name': 'c', 'image': 'base',
                               'take-child-perms': ['write', 'resize']})


@unittest.skipIf(sd.STAND_IN, 'the storage daemon of QEMU has no human monitor')
class Breakpoints(BlkdebugCase):
    def hmp(self, d, line, node='n'):
        return d.cmd('human-monitor-command', {'command-line': f'qemu-io {node} "{line}"'})

    def hold(self, d, h, event, call):
        """Starts @call in a thread; returns it once it stands at @event."""
        self.hmp(d, f'break {event} A')
        t = threading.Thread(target=call, daemon=True)
        t.start()
        self.hmp(d, 'wait_break A')
        self.assertTrue(t.is_alive())
        return t

    def test_hold_and_resume(self):
        d, h = self.open()
        got = []
        t = self.hold(d, h, 'read_aio', lambda: got.append(bytes(h.pread(512, 0))))
        time.sleep(0.1)
        self.assertTrue(t.is_alive())
        self.hmp(d, 'resume A')
        t.join(10)
        self.assertEqual([b'\x11' * 512], got)
        h.pread(512, 0)  # a breakpoint works once

    def test_remove(self):
        d, h = self.open()
        self.hmp(d, 'break read_aio B')
        self.hmp(d, 'remove_break B')
        h.pread(512, 0)
        t = self.hold(d, h, 'write_aio', lambda: h.pwrite(b'x' * 512, 0))
        self.hmp(d, 'remove_break A')
        t.join(10)
        self.assertFalse(t.is_alive())

    def test_others_go_on(self):
        for event in ('write_aio', 'l2_update', 'cluster_alloc'):
            with self.subTest(event=event):
                d = self.daemon()
                self.add(d, self.image(f'{event}.img', 'qcow2', data=((0, sd.MIB, 0x22),)), 'qcow2')
                uri = d.export('n', writable=True)
                one, other = self.connect(uri), self.connect(uri)

                def write():
                    one.pwrite(b'x' * 512, 2 * sd.MIB)
                    one.flush()
                t = self.hold(d, one, event, write)
                self.assertEqual(b'\x22' * 512, bytes(other.pread(512, 0)))
                other.pwrite(b'y' * 512, 0)
                self.hmp(d, 'resume A')
                t.join(10)
                self.assertFalse(t.is_alive())
                self.assertEqual(b'x' * 512, bytes(other.pread(512, 2 * sd.MIB)))

    def test_held_read_sees_a_discard(self):
        # The cluster that the read was to use is given to somebody else meanwhile.
        d = self.daemon()
        self.add(d, self.image(fmt='qcow2', data=((0, CLUSTER, 0x22),)), 'qcow2', discard='unmap')
        uri = d.export('n', writable=True)
        one, other = self.connect(uri), self.connect(uri)
        got = []
        t = self.hold(d, one, 'read_aio', lambda: got.append(bytes(one.pread(CLUSTER, 0))))
        other.trim(CLUSTER, 0)
        other.flush()
        other.flush()
        other.pwrite(b'z' * (2 * CLUSTER), sd.MIB)
        other.flush()
        self.hmp(d, 'resume A')
        t.join(10)
        # As it was before or after the discard, but never what has come to stand in its place.
        self.assertIn(got, ([bytes(CLUSTER)], [b'\x22' * CLUSTER]))

    def test_quit_while_held(self):
        d, h = self.open()

        def read():
            try:
                h.pread(512, 0)
            except nbd.Error:
                pass
        t = self.hold(d, h, 'read_aio', read)
        d.shutdown()
        t.join(10)


class Events(BlkdebugCase):
    """Every event that qcow2 and the pipeline tell is met by a request that fails because of it."""

    def fails_at(self, event, fmt, call, iotype=None, code='EIO', **options):
        with self.subTest(event=event):
            d = self.daemon()
            data = options.pop('data', ((0, sd.MIB, 0x22),))
            path = self.image(f'{event}.img', fmt, data=data, **options.pop('image', {}))
            more = {'iotype': iotype} if iotype else {}
            self.add(d, path, fmt, discard='unmap',
                     **{'inject-error': [rule(event, once=True, errno=errno.EIO, **more)]}, **options)
            h = self.connect(d.export('n', writable=True))
            self.refused(lambda: call(h), code)
            call(h)
            h.flush()
            h.shutdown()
            d.shutdown()
            if fmt == 'qcow2':
                sd.check_image(path)

    def test_pipeline(self):
        self.fails_at('pwritev', 'raw', lambda h: h.pwrite(b'x' * 512, 0))
        self.fails_at('pwritev_zero', 'raw', lambda h: h.zero(CLUSTER, 0), 'write-zeroes')
        self.fails_at('pwritev_rmw_tail', 'raw', lambda h: h.pwrite(b'x' * 4096, 512), 'read', align=4096)
        self.fails_at('flush_to_os', 'raw', lambda h: (h.pwrite(b'x' * 512, 0), h.flush()), 'flush')

    def test_qcow2(self):
        new = 3 * sd.MIB

        def write_flush(h, offset=new):
            h.pwrite(b'x' * 512, offset)
            h.flush()
        self.fails_at('read_aio', 'qcow2', lambda h: h.pread(512, 0))
        self.fails_at('l2_load', 'qcow2', lambda h: h.pread(512, 0), 'read')
        self.fails_at('write_aio', 'qcow2', lambda h: h.pwrite(b'x' * 512, 0))
        self.fails_at('refblock_load', 'qcow2', lambda h: h.pwrite(b'x' * 512, new), 'read')
        base = self.image('base.raw')
        self.fails_at('cow_write', 'qcow2', lambda h: h.pwrite(b'x' * 512, new + 512), 'write', data=(),
                      image={'backing': base, 'backing_fmt': 'raw'})
        self.fails_at('cow_read', 'qcow2', lambda h: h.pwrite(b'x' * 512, new + 512), data=(),
                      image={'backing': base, 'backing_fmt': 'raw', 'options': {'cluster_size': '128k'}})
        self.fails_at('cluster_alloc', 'qcow2', lambda h: h.pwrite(b'x' * 512, new))
        self.fails_at('l2_update', 'qcow2', write_flush, 'write')
        self.fails_at('refblock_update_part', 'qcow2', write_flush, 'write')
        self.fails_at('l2_alloc_write', 'qcow2', lambda h: h.pwrite(b'x' * 512, 0), data=())
        self.fails_at('l1_update', 'qcow2', lambda h: write_flush(h, 0), 'write', data=())


if __name__ == '__main__':
    sd.main()
