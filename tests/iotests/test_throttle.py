"""throttle nodes, throttle-group objects, limits of devices: how much goes in a time, on a clock that the test moves."""
import contextlib
import time
import unittest

import nbd
import sd

BLOCK = 4096
MANY = 150
SECOND = 1_000_000_000
LIMITS = ('iops-total', 'iops-read', 'iops-write', 'bps-total', 'bps-read', 'bps-write')
NO_LIMITS = {f'{k}{s}': v for k in LIMITS for s, v in (('', 0), ('-max', 0), ('-max-length', 1))}
NO_LIMITS['iops-size'] = 0


class ThrottleCase(sd.Case):
    def setUp(self):
        self.bufs = []

    def clocked(self, *options):
        return self.daemon('--manual-rate-clock', *options)

    def group(self, d, name='g', **limits):
        d.cmd('object-add', {'qom-type': 'throttle-group', 'id': name,
                             'limits': {k.replace('_', '-'): v for k, v in limits.items()}})

    def node(self, d, name='t', group='g', size=64 * sd.MIB):
        d.cmd('blockdev-add', {'driver': 'throttle', 'node-name': name, 'throttle-group': group, 'discard': 'unmap',
                               'file': {'driver': 'null-co', 'size': size}})
        h = self.connect(d.export(name, writable=True))
        self.addCleanup(self.lift, d, group)  # closing the handle waits for its requests
        return h

    def lift(self, d, group='g'):
        with contextlib.suppress(OSError, sd.Disconnected):
            d.cmd('qom-set', path=group, property='limits', value=NO_LIMITS)

    def connect(self, uri):
        return self.enterContext(sd.nbd_connect(uri))

    def step(self, d, seconds):
        d.cmd('x-rate-clock-step', ns=round(seconds * SECOND))

    def send(self, h, n, op='write', size=BLOCK):
        """@n requests at once; their cookies."""
        buf = nbd.Buffer.from_bytearray(bytearray(size))
        self.bufs.append(buf)  # has to outlive the requests
        call = {'write': lambda i: h.aio_pwrite(buf, i * size), 'zero': lambda i: h.aio_zero(size, i * size),
                'read': lambda i: h.aio_pread(buf, i * size), 'trim': lambda i: h.aio_trim(size, i * size),
                'flush': lambda i: h.aio_flush()}[op]
        return [call(i) for i in range(n)]

    def settle(self, h, cookies, want=0):
        """How many have completed, once @want have, or some seconds are over, and nothing more comes."""
        n, deadline = 0, time.monotonic() + sd.TIMEOUT
        while True:
            enough = n >= want or time.monotonic() > deadline
            quiet = h.poll(30 if enough else 200) == 0
            done = [c for c in cookies if h.aio_command_completed(c)]
            for c in done:
                cookies.remove(c)
            n += len(done)
            if enough and quiet:
                return n


@unittest.skipIf(sd.STAND_IN, 'the clock is ours')
class Rates(ThrottleCase):
    def pace(self, limits, op, size, first, steps):
        """@first requests go at once; then after each step as many more as are said."""
        with self.subTest(limits=limits, op=op, size=size):
            d = self.clocked()
            self.group(d, **limits)
            h = self.node(d)
            cookies = self.send(h, MANY, op, size)
            got = [self.settle(h, cookies, first)]
            for seconds, want in steps:
                self.step(d, seconds)
                got.append(self.settle(h, cookies, want))
            self.assertEqual([first] + [n for _, n in steps], got)
            self.lift(d)
            self.settle(h, cookies, len(cookies))

    def test_iops(self):
        # Without a burst rate a tenth of a second's worth may be owed: 1 above that starts, the others wait.
        self.pace({'iops_total': 10}, 'write', BLOCK, 2, [(0.05, 0), (0.05, 1), (0.1, 1), (1, 10), (0.5, 5)])
        self.pace({'iops_total': 20}, 'read', BLOCK, 3, [(0.1, 2), (1, 20)])

    def test_bps(self):
        self.pace({'bps_total': 100 * BLOCK}, 'write', BLOCK, 11, [(0.1, 10), (0.2, 20)])
        self.pace({'bps_write': 10 * BLOCK}, 'write', BLOCK, 2, [(0.1, 1), (1, 10)])
        self.pace({'bps_read': 10 * BLOCK}, 'read', 10 * BLOCK, 1, [(0.5, 0), (0.5, 1), (2, 2)])

    def test_what_counts(self):
        for op in ('zero', 'trim', 'write'):
            self.pace({'iops_write': 10}, op, BLOCK, 2, [(0.1, 1)])
            self.pace({'iops_read': 10}, op, BLOCK, MANY, [])
        self.pace({'iops_total': 10}, 'flush', BLOCK, MANY, [])
        self.pace({'iops_write': 10}, 'read', BLOCK, MANY, [])

    def test_op_size(self):
        self.pace({'iops_total': 10, 'iops_size': BLOCK}, 'write', 5 * BLOCK, 1, [(0.1, 0), (0.3, 1), (0.5, 1)])
        self.pace({'iops_total': 10, 'iops_size': 64 * BLOCK}, 'write', 5 * BLOCK, 2, [(0.1, 1)])

    def test_burst(self):
        self.pace({'iops_total': 10, 'iops_total_max': 30}, 'write', BLOCK, 31, [(0.1, 1), (1, 10)])
        # The bucket holds 2 seconds of 20, and leaks 10 a second meanwhile: it is full after 3.7 seconds.
        self.pace({'iops_total': 10, 'iops_total_max': 20, 'iops_total_max_length': 2}, 'write', BLOCK, 3,
                  [(3, 60), (2, 28), (1, 10)])

    def test_both_limits(self):
        self.pace({'iops_total': 10, 'bps_total': 1000 * BLOCK}, 'write', BLOCK, 2, [(1, 10)])
        self.pace({'iops_total': 1000, 'bps_total': 10 * BLOCK}, 'write', BLOCK, 2, [(1, 10)])


@unittest.skipIf(sd.STAND_IN, 'the clock is ours')
class Sharing(ThrottleCase):
    def test_turns(self):
        # One node has many requests waiting, the other few: they go in turn.
        d = self.clocked()
        self.group(d, iops_total=10)
        one, other = self.node(d, 'a'), self.node(d, 'b')
        first = self.send(one, 40)
        self.assertEqual(2, self.settle(one, first, 2))
        second = self.send(other, 5)
        self.assertEqual(0, self.settle(other, second))
        self.step(d, 0.8)
        self.assertEqual([4, 4], [self.settle(one, first, 4), self.settle(other, second, 4)])
        self.step(d, 1)
        self.assertEqual([9, 1], [self.settle(one, first, 9), self.settle(other, second, 1)])

    def test_groups_are_apart(self):
        d = self.clocked()
        self.group(d, 'g', iops_total=10)
        self.group(d, 'h', iops_total=10)
        one, other = self.node(d, 'a', 'g'), self.node(d, 'b', 'h')
        first, second = self.send(one, 10), self.send(other, 10)
        self.assertEqual([2, 2], [self.settle(one, first, 2), self.settle(other, second, 2)])
        self.step(d, 1)
        self.assertEqual([8, 8], [self.settle(one, first, 8), self.settle(other, second, 8)])

    def test_reads_and_writes_have_turns_of_their_own(self):
        d = self.clocked()
        self.group(d, iops_write=10)
        h = self.node(d)
        writes = self.send(h, 20)
        self.assertEqual(2, self.settle(h, writes, 2))
        reads = self.send(h, 20, 'read')
        self.assertEqual(20, self.settle(h, reads, 20))
        self.step(d, 2)
        self.assertEqual(18, self.settle(h, writes, 18))

    def test_new_limits_hold_at_once(self):
        d = self.clocked()
        self.group(d, iops_total=1)
        h = self.node(d)
        cookies = self.send(h, 30)
        self.settle(h, cookies, 1)
        d.cmd('qom-set', path='/objects/g', property='limits', value={'iops-total': 100})
        self.assertEqual(11, self.settle(h, cookies, 11))
        d.cmd('qom-set', path='/objects/g', property='limits', value={'iops-total': 0})
        self.settle(h, cookies, len(cookies))
        self.assertEqual([], cookies)

    def test_drained_sections_do_not_wait(self):
        # A mirror's start drains its source; what waits there goes on, the clock standing still.
        d = self.clocked()
        self.group(d, iops_total=1)
        h = self.node(d, size=sd.MIB)
        cookies = self.send(h, 30)
        self.assertEqual(1, self.settle(h, cookies, 1))
        d.cmd('blockdev-add', driver='null-co', node_name='dst', size=sd.MIB)
        d.cmd('blockdev-mirror', job_id='m', device='t', target='dst', sync='none')
        self.settle(h, cookies, len(cookies))
        self.assertEqual([], cookies)
        d.cmd('block-job-cancel', device='m', force=True)

    def test_quit_while_waiting(self):
        d = self.clocked()
        self.group(d, iops_total=1)
        h = self.node(d)
        self.settle(h, self.send(h, 30), 1)
        d.shutdown()


class RealTime(ThrottleCase):
    def test_pace(self):
        d = self.daemon()
        self.group(d, iops_total=50)
        h = self.node(d)
        start = time.monotonic()
        for i in range(30):
            h.pwrite(b'x' * BLOCK, i * BLOCK)
        took = time.monotonic() - start
        self.assertGreater(took, 24 / 50 * 0.95)
        self.assertLess(took, 3)

    def test_data_passes(self):
        d = self.daemon()
        path = sd.create_image(self.path('a.img'), 'raw', 4 * sd.MIB, data=[(0, 4 * sd.MIB, 0x11)])
        self.group(d, bps_total=100 * sd.MIB)
        d.cmd('blockdev-add', {'driver': 'throttle', 'node-name': 't', 'throttle-group': 'g', 'discard': 'unmap',
                               'file': {'driver': 'file', 'filename': path, 'discard': 'unmap'}})
        h = self.connect(d.export('t', writable=True))
        h.pwrite(b'w' * 1000, 100)
        h.zero(65536, sd.MIB)
        h.flush()
        self.assertEqual(b'\x11' * 100 + b'w' * 1000 + b'\x11' * 100, bytes(h.pread(1200, 0)))
        self.assertEqual(bytes(65536) + b'\x11' * 512, bytes(h.pread(66048, sd.MIB)))


class Objects(ThrottleCase):
    def test_limits_that_do_not_go_together(self):
        d = self.daemon()
        for limits, why in (({'bps-total': 100, 'bps-read': 5}, 'cannot be used at the same time'),
                            ({'iops-total': -1}, 'must be within [0, 1000000000000000]'),
                            ({'iops-total': 1 << 60}, 'must be within [0, 1000000000000000]'),
                            ({'iops-total-max': 5}, 'require corresponding bps/iops values'),
                            ({'iops-total': 10, 'iops-total-max': 5}, 'cannot be lower than bps/iops'),
                            ({'iops-total': 10, 'iops-total-max': 50, 'iops-total-max-length': 0},
                             'burst length cannot be 0'),
                            ({'iops-total': 10, 'iops-total-max-length': 5}, 'burst length set without burst rate'),
                            ({'bps-total': 1, 'bps-total-max': 10**14, 'bps-total-max-length': 100},
                             'burst length too high'),
                            ({'iops-size': 10}, 'iops size requires an iops value'),
                            ({'foo': 1}, "'limits.foo' is unexpected")):
            with self.subTest(**limits):
                self.fails(d, why, 'object-add', {'qom-type': 'throttle-group', 'id': 'x', 'limits': limits})
        self.fails(d, 'not found', 'object-del', id='x')

    def test_life(self):
        d = self.daemon()
        self.group(d)
        self.fails(d, 'duplicate', 'object-add', {'qom-type': 'throttle-group', 'id': 'g'})
        self.fails(d, "'id' expects an identifier", 'object-add', {'qom-type': 'throttle-group', 'id': '1x'})
        self.fails(d, "'qom-type'", 'object-add', {'qom-type': 'nosuch', 'id': 'x'})
        self.fails(d, "'no' does not exist", 'blockdev-add', driver='throttle', node_name='t', throttle_group='no',
                   file={'driver': 'null-co'})
        d.cmd('blockdev-add', driver='throttle', node_name='t', throttle_group='g', file={'driver': 'null-co'})
        self.fails(d, "'g' is in use", 'object-del', id='g')
        d.cmd('blockdev-del', node_name='t')
        d.cmd('object-del', id='g')
        self.fails(d, "'g' not found", 'object-del', id='g')
        self.group(d)

    def test_properties(self):
        d = self.daemon()
        d.cmd('object-add', {'qom-type': 'throttle-group', 'id': 'g', 'x-bps-read': 77, 'limits': {'iops-write': 5}})
        want = {**NO_LIMITS, 'bps-read': 77, 'iops-write': 5}
        for path in ('g', '/objects/g'):
            self.assertEqual(want, d.cmd('qom-get', path=path, property='limits'))
        self.assertEqual(77, d.cmd('qom-get', path='g', property='x-bps-read'))
        self.assertEqual('throttle-group', d.cmd('qom-get', path='g', property='type'))
        self.fails(d, 'cannot be lower', 'qom-set', path='g', property='limits', value={'iops-write-max': 2})
        d.cmd('qom-set', path='g', property='limits', value={'iops-write-max': 20, 'iops-write-max-length': 3})
        want.update({'iops-write-max': 20, 'iops-write-max-length': 3})
        self.assertEqual(want, d.cmd('qom-get', path='g', property='limits'))
        self.fails(d, 'cannot be set after initialization', 'qom-set', path='g', property='x-bps-read', value=1)
        self.fails(d, 'not writable', 'qom-set', path='g', property='type', value=1)
        self.fails(d, "expected: object", 'qom-set', path='g', property='limits', value=1)
        self.fails(d, 'not found', 'qom-get', path='g', property='nosuch')
        self.fails(d, "'/objects/z' not found", 'qom-get', path='/objects/z', property='type', cls='DeviceNotFound')

    def test_lists(self):
        d = self.daemon()
        self.group(d)
        self.assertIn({'name': 'g', 'type': 'child<throttle-group>'}, d.cmd('qom-list', path='/objects'))
        self.assertIn({'name': 'objects', 'type': 'child<container>'}, d.cmd('qom-list', path='/'))
        props = d.cmd('qom-list', path='/objects/g')
        self.assertIn({'name': 'limits', 'type': 'ThrottleLimits'}, props)
        self.assertIn({'name': 'x-iops-total', 'type': 'int'}, props)
        self.assertIn('throttle-group', [t['name'] for t in d.cmd('qom-list-types', implements='user-creatable')])
        self.assertCountEqual(props, d.cmd('qom-list-properties', typename='throttle-group'))

    def test_command_line(self):
        d = self.daemon('--object', 'throttle-group,id=g,limits.iops-total=7,x-bps-total=9',
                        '--blockdev', 'null-co,node-name=n', '--blockdev', 'throttle,node-name=t,throttle-group=g,file=n')
        limits = d.cmd('qom-get', path='g', property='limits')
        self.assertEqual((7, 9), (limits['iops-total'], limits['bps-total']))
        name = d.node('t')['file']
        self.assertTrue(name.startswith('json:') and '"throttle-group": "g"' in name, name)


@unittest.skipIf(sd.STAND_IN, 'the storage daemon of QEMU has no devices')
class Devices(ThrottleCase):
    NONE = dict(bps=0, bps_rd=0, bps_wr=0, iops=0, iops_rd=0, iops_wr=0)

    def device(self):
        path = sd.create_image(self.path('a.img'), 'raw', sd.MIB)
        return self.clocked('--drive', f'id=drive0,format=raw,file={path}', '--drive', 'id=cd,media=cdrom')

    def limit(self, d, **limits):
        d.cmd('block_set_io_throttle', {'device': 'drive0', **self.NONE, **limits})

    def io(self, d, line):
        return d.cmd('human-monitor-command', {'command-line': f'qemu-io drive0 "{line}"'})

    def test_limits(self):
        d = self.device()
        self.limit(d, iops=10, iops_max=20, iops_max_length=2, bps_rd=5 * BLOCK)
        shown = d.cmd('query-block')[0]['inserted']
        self.assertSubset({'iops': 10, 'iops_max': 20, 'iops_max_length': 2, 'bps_rd': 5 * BLOCK, 'bps': 0,
                           'group': 'drive0'}, shown)
        self.limit(d)
        shown = d.cmd('query-block')[0]['inserted']
        self.assertEqual(0, shown['iops'])
        self.assertNotIn('group', shown)

    def test_refused(self):
        d = self.device()
        self.fails(d, "'nosuch' not found", 'block_set_io_throttle', {'device': 'nosuch', **self.NONE},
                   cls='DeviceNotFound')
        self.fails(d, "'cd' has no medium", 'block_set_io_throttle', {'device': 'cd', **self.NONE})
        self.fails(d, 'exactly one', 'block_set_io_throttle', self.NONE)
        self.fails(d, 'at the same time', 'block_set_io_throttle', {'device': 'drive0', **self.NONE, 'bps': 1, 'bps_rd': 1})
        self.assertNotIn('group', d.cmd('query-block')[0]['inserted'])

    def test_requests_wait(self):
        d = self.device()
        self.limit(d, iops=10)
        for i in range(2):
            self.io(d, f'write {i * BLOCK} {BLOCK}')
        with d.connect() as other:
            started = other.start('human-monitor-command', {'command-line': 'qemu-io drive0 "write 0 4096"'})
            with self.assertRaises(sd.Timeout):
                other.finish(started, timeout=0.2)
            self.step(d, 0.1)
            other.finish(started)

    def test_group(self):
        d = self.device()
        self.group(d, 'shared', iops_total=1)
        self.limit(d, group='shared', iops=33)
        self.assertEqual(33, d.cmd('qom-get', path='shared', property='limits')['iops-total'])
        self.fails(d, 'in use', 'object-del', id='shared')
        self.limit(d)
        d.cmd('object-del', id='shared')


if __name__ == '__main__':
    sd.main()
