"""quorum: votes, failures and their events, children that come and go; what a mirror may replace."""
import time
import unittest

import nbd
import sd

SIZE = 2 * sd.MIB
PART = 65536


class QuorumCase(sd.Case):
    def child(self, i, fmt='raw', data=((0, SIZE, 0x11),)):
        return sd.create_image(self.path(f'{i}.img'), fmt, SIZE, data=data)

    def children(self, n, fmt='raw', faults=None, **more):
        """Definitions of @n children c0, c1 …; @faults: rules of blkdebug by child."""
        out = []
        for i in range(n):
            file = {'driver': 'file', 'filename': self.child(i, fmt, **more)}
            if faults and i in faults:
                file = {'driver': 'blkdebug', 'image': file, 'inject-error': faults[i]}
            out.append({'driver': fmt, 'node-name': f'c{i}', 'file': file})
        return out

    def quorum(self, n, threshold, fmt='raw', faults=None, **options):
        d = self.daemon()
        d.cmd('blockdev-add', {'driver': 'quorum', 'node-name': 'q', 'vote-threshold': threshold,
                               'children': self.children(n, fmt, faults), **options})
        return d, self.enterContext(sd.nbd_connect(d.export('q', writable=True)))

    def spoil(self, i, offset=0, length=PART, byte=0x99):
        """Changes a child behind everybody's back."""
        with open(self.path(f'{i}.img'), 'r+b') as f:
            f.seek(offset)
            f.write(bytes([byte]) * length)

    def content(self, i, offset, length):
        with open(self.path(f'{i}.img'), 'rb') as f:
            f.seek(offset)
            return f.read(length)

    def fails_io(self, call, code='EIO'):
        with self.assertRaises(nbd.Error) as caught:
            call()
        self.assertEqual(code, caught.exception.errno, caught.exception.string)


class Options(QuorumCase):
    def test_refused(self):
        d = self.daemon()
        small = sd.create_image(self.path('small.img'), 'raw', SIZE // 2)
        two = self.children(2)
        for more, why in (({'children': []}, 'children must be 1 or more'),
                          ({'vote-threshold': 0}, "'vote-threshold' expects a value >= 1"),
                          ({'vote-threshold': 3}, 'threshold may not exceed children count'),
                          ({'vote-threshold': 1, 'blkverify': True}, 'exactly two files and vote-threshold is 2'),
                          ({'blkverify': True, 'rewrite-corrupted': True}, 'cannot be used with blkverify=on'),
                          ({'children': [two[0], 'nosuch']}, "node-name='nosuch'"),
                          ({'children': [two[0], {'driver': 'file', 'filename': small}]}, 'Input/output error')):
            with self.subTest(**more):
                self.fails(d, why, 'blockdev-add', {'driver': 'quorum', 'node-name': 'q', 'vote-threshold': 2,
                                                    'children': two, **more})

    @unittest.skipIf(sd.STAND_IN, 'the peer ignores them')
    def test_fifo_compares_nothing(self):
        d = self.daemon()
        for option in ('blkverify', 'rewrite-corrupted'):
            self.fails(d, f'{option}=on cannot be used with read-pattern=fifo', 'blockdev-add',
                       {'driver': 'quorum', 'node-name': 'q', 'vote-threshold': 2, 'children': self.children(2),
                        'read-pattern': 'fifo', option: True})

    def test_filename(self):
        d, _ = self.quorum(2, 1)
        name = d.node('q')['file']
        self.assertTrue(name.startswith('json:'), name)
        for i in range(2):
            self.assertIn(self.path(f'{i}.img'), name)


class Reading(QuorumCase):
    def test_all_agree(self):
        d, h = self.quorum(3, 2)
        self.assertEqual(b'\x11' * SIZE, bytes(h.pread(SIZE, 0)))
        self.assertEqual([], d.take_events('QUORUM_REPORT_BAD'))

    def test_majority(self):
        d, h = self.quorum(3, 2)
        self.spoil(0, PART)
        self.assertEqual(b'\x11' * PART, bytes(h.pread(PART, PART)))
        bad = d.event_wait('QUORUM_REPORT_BAD')['data']
        self.assertEqual({'type': 'read', 'node-name': 'c0', 'sector-num': 128, 'sectors-count': 128}, bad)
        self.assertEqual(b'\x99' * PART, self.content(0, PART, PART))

    def test_no_majority(self):
        d, h = self.quorum(3, 2)
        self.spoil(0, byte=1)
        self.spoil(1, byte=2)
        self.fails_io(lambda: h.pread(512, 512))
        self.assertEqual({'reference': 'q', 'sector-num': 1, 'sectors-count': 1},
                         d.event_wait('QUORUM_FAILURE')['data'])
        h.pread(512, PART)

    def test_rewrite(self):
        d, h = self.quorum(3, 2, **{'rewrite-corrupted': True})
        self.spoil(1, 512, 512)
        self.assertEqual(b'\x11' * PART, bytes(h.pread(PART, 0)))
        d.event_wait('QUORUM_REPORT_BAD', {'node-name': 'c1'})
        self.assertEqual(b'\x11' * PART, self.content(1, 0, PART))
        h.pread(PART, 0)
        self.assertEqual([], d.take_events('QUORUM_REPORT_BAD'))

    def test_errors(self):
        d, h = self.quorum(3, 2, faults={2: [{'event': 'read_aio', 'iotype': 'read'}]})
        self.assertEqual(b'\x11' * 512, bytes(h.pread(512, 0)))
        bad = d.event_wait('QUORUM_REPORT_BAD')['data']
        self.assertSubset({'type': 'read', 'node-name': 'c2', 'error': 'Input/output error'}, bad)

    def test_too_many_errors(self):
        d, h = self.quorum(3, 3, faults={1: [{'event': 'read_aio', 'errno': 28}]})
        # ENOSPC is what most of those who failed say.
        self.fails_io(lambda: h.pread(512, 0), 'ENOSPC')
        d.event_wait('QUORUM_REPORT_BAD', {'node-name': 'c1'})
        d.event_wait('QUORUM_FAILURE', {'reference': 'q'})

    def test_fifo(self):
        d, h = self.quorum(3, 1, faults={0: [{'event': 'read_aio', 'iotype': 'read'}]}, **{'read-pattern': 'fifo'})
        self.spoil(1, byte=0x77)
        self.assertEqual(b'\x77' * 512, bytes(h.pread(512, 0)))
        d.event_wait('QUORUM_REPORT_BAD', {'node-name': 'c0', 'type': 'read'})

    def test_fifo_all_fail(self):
        fault = [{'event': 'read_aio', 'iotype': 'read'}]
        d, h = self.quorum(2, 1, faults={0: fault, 1: fault}, **{'read-pattern': 'fifo'})
        self.fails_io(lambda: h.pread(512, 0))

    def test_status(self):
        d = self.daemon()
        paths = [sd.create_image(self.path(f'{i}.img'), 'qcow2', SIZE, data=[(i * 2 * PART, PART, 0x11)])
                 for i in range(2)]
        d.cmd('blockdev-add', {'driver': 'quorum', 'node-name': 'q', 'vote-threshold': 1, 'children': [
            {'driver': 'qcow2', 'file': {'driver': 'file', 'filename': p}} for p in paths]})
        h = self.enterContext(sd.nbd_connect(d.export('q'), meta=[nbd.CONTEXT_BASE_ALLOCATION]))
        got = sd.nbd_extents(h, nbd.CONTEXT_BASE_ALLOCATION)
        zero = [(o, o + n) for o, n, flags in got if flags & 2]
        data = [(o, o + n) for o, n, flags in got if not flags & 2]
        self.assertTrue(all(not (a < 3 * PART and 2 * PART < b) and not a < PART for a, b in zero), got)
        self.assertTrue(zero and zero[-1][1] == SIZE, got)
        self.assertEqual(0, data[0][0])

    @unittest.skipIf(sd.STAND_IN, 'races show there')
    def test_writes_under_way_are_no_disagreement(self):
        d, h = self.quorum(2, 2)
        out = [h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([i % 256]) * PART), (i % 4) * 4096) for i in range(64)]
        bufs = [nbd.Buffer(PART) for _ in range(64)]
        out += [h.aio_pread(b, (i % 4) * 4096) for i, b in enumerate(bufs)]
        for cookie in out:
            while not h.aio_command_completed(cookie):
                h.poll(-1)
        self.assertEqual([], d.take_events('QUORUM_REPORT_BAD'))


class Writing(QuorumCase):
    def test_all_get_it(self):
        for fmt in ('raw', 'qcow2'):
            with self.subTest(fmt=fmt):
                d, h = self.quorum(3, 2, fmt)
                h.pwrite(b'x' * 100000, 12345)
                h.zero(200000, sd.MIB)
                h.flush()
                whole = bytes(h.pread(SIZE, 0))
                h.shutdown()
                d.shutdown()
                for i in range(3):
                    sd.qemu_img('convert', '-f', fmt, '-O', 'raw', self.path(f'{i}.img'), self.path('flat'))
                    with open(self.path('flat'), 'rb') as f:
                        self.assertEqual(whole, f.read(), i)

    def test_enough_succeed(self):
        d, h = self.quorum(3, 2, faults={0: [{'event': 'write_aio', 'iotype': 'write', 'once': True}]})
        h.pwrite(b'x' * 512, 0)
        bad = d.event_wait('QUORUM_REPORT_BAD')['data']
        self.assertSubset({'type': 'write', 'node-name': 'c0', 'error': 'Input/output error'}, bad)
        self.assertEqual(b'x' * 512, bytes(h.pread(512, 0)))

    def test_too_few_succeed(self):
        d, h = self.quorum(2, 2, faults={0: [{'event': 'write_aio', 'iotype': 'write', 'once': True, 'errno': 28}]})
        self.fails_io(lambda: h.pwrite(b'x' * 512, 0), 'ENOSPC')
        d.event_wait('QUORUM_FAILURE')

    def test_flush(self):
        fault = [{'event': 'flush_to_disk', 'iotype': 'flush', 'once': True}]
        d, h = self.quorum(3, 2, faults={0: fault})
        h.pwrite(b'x' * 512, 0)
        h.flush()
        bad = d.event_wait('QUORUM_REPORT_BAD')['data']
        self.assertSubset({'type': 'flush', 'node-name': 'c0', 'error': 'Input/output error'}, bad)

    def test_flush_fails(self):
        fault = [{'event': 'flush_to_disk', 'iotype': 'flush', 'once': True}]
        d, h = self.quorum(3, 2, faults={0: fault, 2: fault})
        h.pwrite(b'x' * 512, 0)
        self.fails_io(lambda: h.flush())
        h.flush()

    def test_blkverify(self):
        d, h = self.quorum(2, 2, blkverify=True)
        h.pwrite(b'x' * 512, 0)
        h.pread(PART, 0)
        self.spoil(1, 1024, 512)
        h.pread(1024, 0)
        with self.assertRaises(nbd.Error):
            h.pread(PART, 0)
        self.assertEqual(1, d.wait())
        self.assertIn('contents mismatch at offset 1024', d.stderr())


class Children(QuorumCase):
    def test_nobody_else_writes(self):
        d, h = self.quorum(3, 2)
        self.fails(d, 'Permission conflict' if not sd.STAND_IN else 'onflict', 'block-export-add', type='nbd', id='x',
                   node_name='c0', name='x', writable=True)
        d.cmd('block-export-add', type='nbd', id='x', node_name='c0', name='x')

    def test_change(self):
        d, h = self.quorum(3, 2)
        self.child(7)
        self.fails(d, "does not have child 'children.7'", 'x-blockdev-change', parent='q', child='children.7')
        self.fails(d, 'Either child or node', 'x-blockdev-change', parent='q')
        self.fails(d, 'in conflict', 'x-blockdev-change', parent='q', child='a', node='b')
        self.fails(d, "Node 'zz' not found", 'x-blockdev-change', parent='q', node='zz')
        self.fails(d, 'does not support adding', 'x-blockdev-change', parent='c0', node='c1')
        self.fails(d, 'does not support removing', 'x-blockdev-change', parent='c0', child='file')
        self.fails(d, 'already has a parent', 'x-blockdev-change', parent='q', node='c1')
        d.cmd('blockdev-add', driver='raw', node_name='c7', file={'driver': 'file', 'filename': self.path('7.img')})
        d.cmd('x-blockdev-change', parent='q', node='c7')
        h.pwrite(b'x' * 512, 512)
        h.flush()
        self.assertEqual(b'x' * 512, self.content(7, 512, 512))
        d.cmd('x-blockdev-change', parent='q', child='children.0')
        d.cmd('x-blockdev-change', parent='q', child='children.1')
        h.pwrite(b'y' * 512, 512)
        h.flush()
        self.assertEqual(b'x' * 512, self.content(0, 512, 512))
        self.assertEqual(b'y' * 512, self.content(2, 512, 512))
        self.fails(d, 'lower than the vote threshold 2', 'x-blockdev-change', parent='q', child='children.2')
        self.assertEqual(b'y' * 512, bytes(h.pread(512, 512)))

    @unittest.skipIf(sd.STAND_IN, 'the peer takes it and breaks')
    def test_add_other_size(self):
        d, h = self.quorum(2, 1)
        sd.create_image(self.path('s.img'), 'raw', SIZE // 2)
        d.cmd('blockdev-add', driver='file', node_name='s', filename=self.path('s.img'))
        self.fails(d, "Node 's' has", 'x-blockdev-change', parent='q', node='s')

    def test_change_while_busy(self):
        d, h = self.quorum(3, 1)
        self.child(3)
        d.cmd('blockdev-add', driver='raw', node_name='c3', file={'driver': 'file', 'filename': self.path('3.img')})
        bufs = [nbd.Buffer.from_bytearray(bytearray([i]) * 4096) for i in range(128)]
        cookies = [h.aio_pwrite(b, i * 4096) for i, b in enumerate(bufs)]
        d.cmd('x-blockdev-change', parent='q', node='c3')
        d.cmd('x-blockdev-change', parent='q', child='children.1')
        for cookie in cookies:
            while not h.aio_command_completed(cookie):
                h.poll(-1)
        h.flush()
        for i in range(128):
            self.assertEqual(bytes([i]) * 4096, bytes(h.pread(4096, i * 4096)))

    @unittest.skipIf(sd.STAND_IN, 'the storage daemon of QEMU has no human monitor')
    def test_others_change_meanwhile(self):
        """While a change waits for requests, what it is about may go."""
        d, h = self.quorum(3, 1, faults={0: []})
        self.child(3)
        d.cmd('blockdev-add', driver='raw', node_name='c3', file={'driver': 'file', 'filename': self.path('3.img')})
        d.cmd('human-monitor-command', command_line='qemu-io c0 "break write_aio A"')
        cookie = h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b'x' * 512)), 0)
        d.cmd('human-monitor-command', command_line='qemu-io c0 "wait_break A"')
        sessions = [d.connect() for _ in range(3)]
        add = sessions[0].start('x-blockdev-change', parent='q', node='c3')
        removals = [s.start('x-blockdev-change', parent='q', child='children.1') for s in sessions[1:]]
        time.sleep(0.2)  # for all of them to have come
        d.cmd('blockdev-del', node_name='c3')
        d.cmd('human-monitor-command', command_line='qemu-io c0 "resume A"')
        self.assertIn("Node 'c3' not found", sessions[0].finish(add)['error']['desc'])
        replies = [s.finish(r) for s, r in zip(sessions[1:], removals)]
        self.assertEqual(1, sum('return' in r for r in replies), replies)
        while not h.aio_command_completed(cookie):
            h.poll(-1)
        self.assertEqual(b'x' * 512, bytes(h.pread(512, 0)))
        d.shutdown()


class Replacing(QuorumCase):
    WHY = 'because it cannot be guaranteed that doing so would not lead to an abrupt change of visible data'

    def start(self, **more):
        d, h = self.quorum(3, 2)
        sd.create_image(self.path('new.img'), 'raw', SIZE)
        d.cmd('blockdev-add', driver='raw', node_name='new', file={'driver': 'file', 'filename': self.path('new.img')})
        return d, h

    def edge(self, d, name):
        graph = d.cmd('x-debug-query-block-graph')
        ids = {n['id']: n['name'] for n in graph['nodes']}
        return [ids[e['child']] for e in graph['edges'] if ids[e['parent']] == 'q' and e['name'] == name]

    def test_child(self):
        d, h = self.start()
        self.spoil(1)
        d.cmd('blockdev-mirror', job_id='m', device='q', target='new', sync='full', replaces='c1')
        d.complete('m')
        self.assertEqual(['new'], self.edge(d, 'children.1'))
        d.take_events('QUORUM_REPORT_BAD')
        h.pread(SIZE, 0)
        self.assertEqual([], d.take_events('QUORUM_REPORT_BAD'))
        h.pwrite(b'n' * 512, 0)
        h.flush()
        with open(self.path('new.img'), 'rb') as f:
            self.assertEqual(b'n' * 512 + b'\x11' * 512, f.read(1024))

    def test_child_with_another_parent(self):
        d, h = self.start()
        d.cmd('block-export-add', type='nbd', id='x', node_name='c1', name='x')
        self.fails(d, f"Cannot replace 'c1' by a node mirrored from 'q', {self.WHY}", 'blockdev-mirror', job_id='m',
                   device='q', target='new', sync='full', replaces='c1')

    def test_below_a_child(self):
        d, h = self.start()
        self.fails(d, self.WHY, 'blockdev-mirror', job_id='m', device='q', target='new', sync='full',
                   replaces=d.cmd('query-named-block-nodes')[0]['node-name'])


if __name__ == '__main__':
    sd.main()
