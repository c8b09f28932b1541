"""blklogwrites: the log is what dm-log-writes writes and others read, and with log-order=on says what was in flight."""
import os
import re
import struct
import unittest

import nbd
import sd

SIZE = sd.MIB
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8


def read_log(path, size=None):
    """(sector size, [(flags, offset, length, data)]) of what the super block counts; a mark's data is its text."""
    with open(path, 'rb') as f:
        log = f.read(size)
    magic, version, n, sector = struct.unpack_from('<QQQI', log)
    assert (magic, version) == (0x6a736677736872, 1), (hex(magic), version)
    at, entries = sector, []
    for _ in range(n):
        first, count, flags, length = struct.unpack_from('<QQQQ', log, at)
        data = log[at + 32:at + 32 + length] if flags & MARK else b''
        at += sector
        if not flags & (DISCARD | MARK):
            data = log[at:at + count * sector]
            assert len(data) == count * sector
            at += count * sector
        entries.append((flags, first * sector, count * sector, data))
    return sector, entries


class Blklogwrites(sd.Case):
    def setUp(self):
        super().setUp()
        self.image = sd.create_image(self.path('a.img'), 'raw', SIZE)
        self.log = self.path('log')
        open(self.log, 'w').close()

    def options(self, **more):
        return {'driver': 'blklogwrites', 'node-name': 'l', 'discard': 'unmap',
                'file': {'driver': 'file', 'filename': self.image}, 'log': {'driver': 'file', 'filename': self.log},
                **{k.replace('_', '-'): v for k, v in more.items()}}

    def load(self, d, **more):
        d.cmd('blockdev-add', self.options(**more))
        return self.enterContext(sd.nbd_connect(d.export('l', writable=True)))

    def run_requests(self, **more):
        d = self.daemon()
        h = self.load(d, **more)
        h.pwrite(b'a' * 8192, 4096)
        h.pwrite(b'b' * 4096, 65536, nbd.CMD_FLAG_FUA)
        h.flush()
        h.zero(16384, 131072)
        h.trim(65536, 262144)
        h.shutdown()
        d.shutdown()

    def test_format(self):
        for sector in (512, 4096):
            with self.subTest(sector=sector):
                self.run_requests(log_sector_size=sector)
                got, entries = read_log(self.log)
                self.assertEqual(sector, got)
                wanted = [(0, 4096, 8192, b'a' * 8192), (FUA, 65536, 4096, b'b' * 4096), (FLUSH, 0, 0, b''),
                          (0, 131072, 16384, bytes(16384)), (DISCARD, 262144, 65536, b'')]
                self.assertEqual(wanted, [e for e in entries if e[0] != FLUSH or e == wanted[2]][:5])

    def replay(self, entries):
        disk = bytearray(SIZE)
        for flags, offset, length, data in entries:
            if not flags & (MARK | DISCARD):
                disk[offset:offset + length] = data
        return disk

    def assertLogged(self, entries):
        with open(self.image, 'rb') as f:
            self.assertEqual(f.read(), self.replay(entries))

    def test_unaligned(self):
        d = self.daemon()
        d.cmd('blockdev-add', self.options())
        if sd.STAND_IN:
            self.skipTest('has no qemu-io')
        d.cmd('human-monitor-command', command_line='qemu-io l "write -P 120 700 1000"')
        d.shutdown()
        sector, entries = read_log(self.log)
        writes = [e for e in entries if not e[0] & FLUSH]
        self.assertEqual((512, 1536), (writes[0][1], sum(e[2] for e in writes)))
        self.assertLogged(entries)

    def test_append_and_peer(self):
        """We go on with QEMU's log, QEMU goes on with ours."""
        theirs = ['driver=blklogwrites', f'file.driver=file,file.filename={self.image}',
                  f'log.driver=file,log.filename={self.log}']
        sd.run('qemu-io', '--image-opts', ','.join(theirs), '-c', 'write -P 97 0 4k')
        d = self.daemon()
        h = self.load(d, log_append=True)
        h.pwrite(b'b' * 4096, 4096)
        h.shutdown()
        d.shutdown()
        sd.run('qemu-io', '--image-opts', ','.join(theirs + ['log-append=on']), '-c', 'write -P 99 8k 4k')
        _, entries = read_log(self.log)
        self.assertEqual([b'a', b'b', b'c'], [e[3][:1] for e in entries if e[2]])
        self.assertLogged(entries)

    @unittest.skipIf(sd.STAND_IN, 'an option of ours')
    def test_order(self):
        d = self.daemon()
        h = self.load(d, log_order=True)
        for i in range(200):
            h.aio_pwrite(bytearray([i]) * 4096, i * 4096, completion=lambda e: 1)
            if i % 50 == 49:
                h.aio_flush()
        while h.aio_in_flight():
            h.poll(-1)
        h.shutdown()
        d.cmd('block-export-del', id='exp-l', mode='hard')
        d.event_wait('BLOCK_EXPORT_DELETED')
        d.cmd('block_resize', node_name='l', size=SIZE // 2)
        d.shutdown()
        _, entries = read_log(self.log)
        requests, open_now, most, last, fresh = {}, set(), 0, 0, None
        for flags, offset, length, data in entries:
            text = data.decode() if flags & MARK else ''
            if m := re.fullmatch(r'sd (?:submit|size (\d+) at) (\d+)', text):
                fresh, last = int(m[2]), self.later(last, m[2])
                open_now.add(fresh)
                requests[fresh] = 'size' if m[1] else None
            elif m := re.fullmatch(r'sd complete (\d+) of (\d+)', text):
                last = self.later(last, m[1])
                open_now.remove(int(m[2]))
            else:
                self.assertEqual('', text)
                self.assertIsNone(requests[fresh])
                requests[fresh] = (flags, offset)
            most = max(most, len(open_now))
        self.assertFalse(open_now)
        self.assertGreater(most, 1)  # not one after the other
        self.assertEqual(200, sum(r != 'size' and not r[0] for r in requests.values()))
        self.assertEqual(1, sum(r == 'size' for r in requests.values()))

    def later(self, last, moment):
        self.assertGreater(int(moment), last)
        return int(moment)

    @unittest.skipIf(sd.STAND_IN, 'an option of ours')
    def test_failures_have_their_place(self):
        d = self.daemon()
        options = self.options(log_order=True)
        options['file'] = {'driver': 'blkdebug', 'image': options['file'],
                           'inject-error': [{'event': 'none', 'iotype': 'write', 'sector': 8, 'errno': 5}]}
        d.cmd('blockdev-add', options)
        with sd.nbd_connect(d.export('l', writable=True)) as h:
            self.assertRaises(nbd.Error, h.pwrite, b'x' * 512, 4096)
            h.pwrite(b'y' * 512, 0)
        d.shutdown()
        marks = [e[3].decode() for e in read_log(self.log)[1] if e[0] & MARK]
        self.assertEqual(['sd submit 1', 'sd failed 2 of 1 errno 5', 'sd submit 3', 'sd complete 4 of 3'], marks[:4])

    def test_log_fails(self):
        """What cannot be logged fails, and so does all that follows; the log ends before it."""
        d = self.daemon()
        options = self.options()
        options['log'] = {'driver': 'blkdebug', 'image': options['log'],
                          'inject-error': [{'event': 'none', 'iotype': 'write', 'sector': 20, 'once': True}]}
        d.cmd('blockdev-add', options)
        with sd.nbd_connect(d.export('l', writable=True)) as h:
            h.pwrite(b'1' * 4096, 0)
            h.pwrite(b'2' * 4096, 4096)
            self.assertRaises(nbd.Error, h.pwrite, b'3' * 4096, 8192)
            if not sd.STAND_IN:
                self.assertRaises(nbd.Error, h.pwrite, b'4' * 4096, 12288)
                self.assertRaises(nbd.Error, h.flush)
        d.shutdown()

    def test_read_only(self):
        os.remove(self.log)
        open(self.log, 'w').close()
        d = self.daemon()
        with self.subTest('nothing to log'):
            d.cmd('blockdev-add', self.options(read_only=True))
        d.shutdown()

    def test_refusals(self):
        d = self.daemon()
        for options, text in (
                ({'log-sector-size': 100}, 'Invalid log sector size 100'),
                ({'log-sector-size': 16}, 'Invalid log sector size 16'),
                ({'log-sector-size': 1 << 24}, 'Invalid log sector size 16777216'),
                ({'log-super-update-interval': 0}, 'Invalid log superblock update interval 0'),
                ({'log-append': True, 'log-sector-size': 512}, 'log-append and log-sector-size are mutually exclusive')):
            self.fails(d, text, 'blockdev-add', self.options(**options))
        with open(self.log, 'wb') as f:
            f.write(bytes(4096))
        self.fails(d, 'Invalid log superblock magic', 'blockdev-add', self.options(log_append=True))
        if sd.STAND_IN:
            return
        self.fails(d, 'at least 128', 'blockdev-add', self.options(log_order=True, log_sector_size=64))
        with open(self.log, 'wb') as f:
            f.write(struct.pack('<QQQI', 0x6a736677736872, 1, 3, 512))
        self.fails(d, 'The log ends after 0 of 3 entries', 'blockdev-add', self.options(log_append=True))


if __name__ == '__main__':
    sd.main()
