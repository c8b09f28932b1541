"""Block status and structured reads against internal snapshots: whoever takes one has the node to himself."""
import itertools
import random
import threading
import time
import unittest

import nbd
import sd

CREATE = 'blockdev-snapshot-internal-sync'
DELETE = 'blockdev-snapshot-delete-internal-sync'
MAP = nbd.CONTEXT_BASE_ALLOCATION
SIZE = 4 * sd.MIB
SHORT = 0.3  # seconds in which nothing may happen; what happens wrongly does so at once


@unittest.skipIf(sd.STAND_IN, 'the storage daemon of QEMU has no human monitor')
class Held(sd.Case):
    """One is held up at a breakpoint, and the other has to wait."""

    def start(self):
        """A disk on a backing file, both qcow2 with a blkdebug node under them; another session, and a client."""
        base = sd.create_image(self.path('base'), 'qcow2', SIZE, data=[(0, sd.MIB, 0x11)])
        top = sd.create_image(self.path('top'), 'qcow2', backing=base, backing_fmt='qcow2')
        d = self.daemon()
        for name, image, more in (('base', base, {'read-only': True}), ('n', top, {'backing': 'base'})):
            d.cmd('blockdev-add', {'driver': 'qcow2', 'node-name': name, **more, 'file': {
                'driver': 'blkdebug', 'image': {'driver': 'file', 'filename': image}}})
        uri = d.export('n', writable=True)
        other = d.connect()
        self.addCleanup(other.close)
        return d, other, self.enterContext(sd.nbd_connect(uri, meta=[MAP]))

    def io(self, d, node, line):
        self.assertEqual('', d.cmd('human-monitor-command', command_line=f'qemu-io {node} "{line}"'))

    def break_at(self, d, node, event):
        self.io(d, node, f'break {event} A')
        # When the case fails, the client could not leave with its request held up.
        self.addCleanup(d.qmp, 'human-monitor-command', command_line=f'qemu-io {node} "remove_break A"')

    def ask_status(self, h):
        """Starts the question for what is where; when it is over, what was returned says whether the answer is right."""
        got = []
        cookie = h.aio_block_status(SIZE, 0, lambda context, offset, entries, err: got.extend(entries) or 0)
        return cookie, lambda: got == [sd.MIB, 0, SIZE - sd.MIB, nbd.STATE_HOLE | nbd.STATE_ZERO]

    def ask_read(self, h):
        """The same for a read of nothing but zeroes, which is answered with a hole."""
        buf = nbd.Buffer.from_bytearray(bytearray(b'x' * sd.MIB))
        return h.aio_pread_structured(buf, sd.MIB, lambda *_: 0), lambda: bytes(buf.to_bytearray()) == bytes(sd.MIB)

    @staticmethod
    def over(h, cookie, seconds):
        """Is the request answered within that time?"""
        end = time.monotonic() + seconds
        while not h.aio_command_completed(cookie):
            left = end - time.monotonic()
            if left <= 0:
                return False
            h.poll(int(left * 1000) + 1)
        return True

    def snapshot_waits(self, ask):
        d, other, h = self.start()
        self.break_at(d, 'base', 'l2_load')  # in the backing file: the snapshot itself needs nothing of it
        cookie, right = ask(h)
        self.assertFalse(self.over(h, cookie, 0))
        self.io(d, 'base', 'wait_break A')
        create = other.start(CREATE, device='n', name='s')
        with self.assertRaises(sd.Timeout, msg='a snapshot was taken with a question under way'):
            other.receive_reply(SHORT)
        self.io(d, 'base', 'resume A')
        self.assertIn('return', other.finish(create))
        self.assertTrue(self.over(h, cookie, sd.TIMEOUT))
        self.assertTrue(right())

    def question_waits(self, ask):
        d, other, h = self.start()
        self.break_at(d, 'n', 'cluster_alloc')
        create = other.start(CREATE, device='n', name='s')
        self.io(d, 'n', 'wait_break A')
        cookie, right = ask(h)
        self.assertFalse(self.over(h, cookie, SHORT), 'a question was answered while a snapshot was taken')
        self.io(d, 'n', 'resume A')
        self.assertIn('return', other.finish(create))
        self.assertTrue(self.over(h, cookie, sd.TIMEOUT))
        self.assertTrue(right())

    def test_snapshot_waits_for_block_status(self):
        self.snapshot_waits(self.ask_status)

    def test_snapshot_waits_for_structured_read(self):
        self.snapshot_waits(self.ask_read)

    def test_block_status_waits_for_snapshot(self):
        self.question_waits(self.ask_status)

    def test_structured_read_waits_for_snapshot(self):
        self.question_waits(self.ask_read)


class Storm(sd.Case):
    SECONDS = 2
    CLIENTS = 4
    SHARE = sd.MIB  # of each client

    def client(self, uri, number, stop, errors):
        """Writes, reads and asks in a part of the disk that is its alone, and knows what it should find."""
        rng = random.Random(number)
        start, want = number * self.SHARE, bytearray(self.SHARE)
        try:
            with sd.nbd_connect(uri, meta=[MAP]) as h:
                while not stop.is_set():
                    length = 512 * rng.randrange(1, 400)
                    at = 512 * rng.randrange((self.SHARE - length) // 512 + 1)
                    what = rng.random()
                    if what < 0.3:
                        want[at:at + length] = bytes([rng.randrange(1, 256)]) * length
                        h.pwrite(want[at:at + length], start + at)
                    elif what < 0.4:
                        want[at:at + length] = bytes(length)
                        h.zero(length, start + at)
                    elif what < 0.7:
                        if h.pread(length, start + at) != want[at:at + length]:
                            raise AssertionError(f'other data within {length} bytes at {start + at}')
                    else:
                        self.check_status(h, start + at, want[at:at + length])
        except Exception as e:  # pylint: disable=broad-except
            errors.append(e)
            stop.set()

    @staticmethod
    def check_status(h, offset, want):
        """What is said to be zero must be."""
        got = []
        h.block_status(len(want), offset, lambda context, at, entries, err: got.extend(entries) or 0)
        at = 0
        for length, flags in zip(got[0::2], got[1::2]):
            if flags & nbd.STATE_ZERO and any(want[at:at + length]):
                raise AssertionError(f'said to be zero: {length} bytes at {offset + at}')
            at += length

    def test_storm(self):
        """The smallest clusters and tables, so that everything is asked of the image and nothing is there already."""
        image = sd.create_image(self.path('a'), 'qcow2', self.CLIENTS * self.SHARE,
                                options={'cluster_size': 512, 'refcount_bits': 64})
        d = self.daemon()
        d.cmd('blockdev-add', {'driver': 'qcow2', 'node-name': 'n', 'l2-cache-size': 0, 'refcount-cache-size': 0,
                               'file': {'driver': 'file', 'filename': image}})
        uri = d.export('n', writable=True)
        stop, errors, rng, taken = threading.Event(), [], random.Random(0), []
        threads = [threading.Thread(target=self.client, args=(uri, i, stop, errors)) for i in range(self.CLIENTS)]
        for t in threads:
            t.start()
        end = time.monotonic() + self.SECONDS
        try:
            for i in itertools.takewhile(lambda _: not stop.is_set() and time.monotonic() < end, itertools.count()):
                if len(taken) < 4:
                    d.cmd(CREATE, device='n', name=f's{i}')
                    taken.append(f's{i}')
                else:
                    d.cmd(DELETE, device='n', name=taken.pop(rng.randrange(4)))
        except sd.Disconnected:
            pass  # the clients' errors and the daemon's end say more
        finally:
            stop.set()
            for t in threads:
                t.join()
        self.assertEqual([], errors)
        d.shutdown()
        sd.check_image(image)


if __name__ == '__main__':
    sd.main()
