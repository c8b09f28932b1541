"""The NBD server, byte by byte: what good clients may send, and what bad ones do."""
import os
import signal
import socket
import struct
import time

import sd

SIZE = 8 * sd.MIB
GREETING = b'NBDMAGICIHAVEOPT\0\3'
OPTION_REPLY = 0x3e889045565a9
EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED, LIST_META, SET_META = 1, 2, 3, 5, 6, 7, 8, 9, 10
ACK, SERVER, REP_INFO, META = 1, 2, 3, 4
UNSUP, POLICY, INVALID, UNKNOWN, TOO_BIG = (0x80000000 + n for n in (1, 2, 3, 6, 9))
READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16
EPERM, EIO, EINVAL, ENOSPC = 1, 5, 22, 28
DATA, HOLE, STATUS, ERROR = 1, 2, 5, 0x8001


def string(text):
    return struct.pack('>I', len(text)) + text


class Raw:
    """An NBD client that sends what it is told to."""

    def __init__(self, path, flags=3):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(sd.TIMEOUT)
        self.sock.connect(path)
        self.cookie = 0
        self.structured = False
        if flags is not None:
            assert self.recv(18) == GREETING
            self.send(struct.pack('>I', flags))

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.sock.close()

    def send(self, data):
        self.sock.sendall(data)

    def recv(self, size):
        data = b''
        while len(data) < size:
            part = self.sock.recv(size - len(data))
            if not part:
                raise EOFError(f'closed after {data!r}')
            data += part
        return data

    def closed(self):
        """Does the server close the connection (whatever it says before)?"""
        try:
            while self.sock.recv(65536):
                pass
        except ConnectionResetError:
            pass
        except TimeoutError:
            return False
        return True

    # ---- negotiation ----
    def send_option(self, option, data=b'', length=None):
        self.send(b'IHAVEOPT' + struct.pack('>II', option, len(data) if length is None else length) + data)

    def option_reply(self, option):
        magic, opt, kind, length = struct.unpack('>QIII', self.recv(20))
        assert (magic, opt) == (OPTION_REPLY, option), (hex(magic), opt)
        return kind, self.recv(length)

    def option(self, option, data=b''):
        """All replies up to the final one: [(type, payload)]."""
        self.send_option(option, data)
        replies = [self.option_reply(option)]
        while replies[-1][0] != ACK and not replies[-1][0] & 0x80000000:
            replies.append(self.option_reply(option))
        if option == STRUCTURED and replies[-1][0] == ACK:
            self.structured = True
        return replies

    def go(self, name=b'disk', structured=False, contexts=()):
        if structured:
            self.option(STRUCTURED)
        if contexts:
            self.option(SET_META, string(name) + struct.pack('>I', len(contexts)) + b''.join(map(string, contexts)))
        replies = self.option(GO, string(name) + struct.pack('>HH', 1, 3))
        assert replies[-1][0] == ACK, replies
        return self

    # ---- transmission ----
    def send_request(self, kind, offset=0, length=0, data=b'', flags=0, magic=0x25609513):
        self.cookie += 1
        self.send(struct.pack('>IHHQQI', magic, flags, kind, self.cookie, offset, length) + data)
        return self.cookie

    def reply(self):
        """(cookie, error, data) of a simple reply, (cookie, error, [(type, payload)]) of a structured one."""
        magic, = struct.unpack('>I', self.recv(4))
        if magic == 0x67446698:
            error, cookie = struct.unpack('>IQ', self.recv(12))
            return cookie, error, None
        assert magic == 0x668e33ef, hex(magic)
        chunks, error = [], 0
        while True:
            flags, kind, cookie, length = struct.unpack('>HHQI', self.recv(16))
            chunks.append((kind, self.recv(length)))
            if kind & 0x8000:
                error, = struct.unpack('>I', chunks[-1][1][:4])
            if flags & 1:
                return cookie, error, chunks
            assert self.recv(4) == struct.pack('>I', 0x668e33ef)

    def request(self, kind, offset=0, length=0, data=b'', flags=0):
        cookie = self.send_request(kind, offset, length, data, flags)
        got, error, chunks = self.reply()
        assert got == cookie, (got, cookie)
        if kind == READ and not error and not self.structured:
            return 0, self.recv(length)
        return error, chunks

    def write(self, offset, data, flags=0):
        return self.request(WRITE, offset, len(data), data, flags)[0]

    def read(self, offset, length):
        """Data of a read, put together where it comes in chunks."""
        error, got = self.request(READ, offset, length)
        assert not error, error
        if not self.structured:
            return got
        data = bytearray(length)
        for kind, payload in got:
            if kind == DATA:
                at = struct.unpack('>Q', payload[:8])[0] - offset
                data[at:at + len(payload) - 8] = payload[8:]
        return bytes(data)


class Nbd(sd.Case):
    def setUp(self):
        self.image = self.path('a.raw')
        with open(self.image, 'wb') as f:
            f.truncate(SIZE)
        self.d = self.daemon('--blockdev', f'raw,node-name=n,discard=unmap,file.driver=file,file.filename={self.image},'
                             'file.discard=unmap')
        self.d.export('n', 'disk', writable=True)

    def raw(self, flags=3):
        r = Raw(self.d.nbd_socket, flags)
        self.addCleanup(r.sock.close)
        return r

    def alive(self):
        """The server goes on serving others."""
        with Raw(self.d.nbd_socket) as r:
            self.assertEqual(4096, len(r.go().read(0, 4096)))
        self.d.cmd('query-block-exports')


class Negotiation(Nbd):
    def test_many_options_then_go(self):
        r = self.raw()
        for _ in range(100):
            self.assertEqual(UNSUP, r.option(77, b'x' * 100)[0][0])
        self.assertEqual([SERVER, ACK], [k for k, _ in r.option(LIST)])
        self.assertEqual(POLICY, r.option(STARTTLS)[0][0])
        self.assertEqual(UNKNOWN, r.option(GO, string(b'nope') + b'\0\0')[0][0])
        r.go()
        self.assertEqual(bytes(512), r.read(0, 512))

    def test_pipelined(self):
        """Options and the first requests in one packet."""
        r = self.raw(None)
        go = string(b'disk') + b'\0\0'
        r.send(struct.pack('>I', 3) + b'IHAVEOPT' + struct.pack('>II', GO, len(go)) + go +
               struct.pack('>IHHQQI', 0x25609513, 0, WRITE, 1, 0, 4) + b'abcd' +
               struct.pack('>IHHQQI', 0x25609513, 0, FLUSH, 2, 0, 0))
        r.recv(18)
        while r.option_reply(GO)[0] != ACK:
            pass
        self.assertEqual([(1, 0, None), (2, 0, None)], sorted([r.reply(), r.reply()]))

    def test_export_name(self):
        for flags, padding in ((3, 0), (1, 124), (0, 124)):
            r = self.raw(flags)
            r.send_option(EXPORT_NAME, b'disk')
            size, _ = struct.unpack('>QH', r.recv(10))
            self.assertEqual(SIZE, size)
            self.assertEqual(bytes(padding), r.recv(padding))
            self.assertEqual(bytes(10), r.read(0, 10))

    def test_export_name_unknown(self):
        r = self.raw()
        r.send_option(EXPORT_NAME, b'nope')
        self.assertTrue(r.closed())
        self.alive()

    def test_abort(self):
        r = self.raw()
        self.assertEqual([(ACK, b'')], r.option(ABORT))
        self.assertTrue(r.closed())

    def test_wrong_flags(self):
        self.assertTrue(self.raw(0xffff).closed())
        self.alive()

    def test_wrong_option_magic(self):
        r = self.raw()
        r.send(b'IHAVEOPS' + struct.pack('>II', LIST, 0))
        self.assertTrue(r.closed())
        self.alive()

    def test_long_option(self):
        r = self.raw()
        self.assertEqual(TOO_BIG, r.option(GO, bytes(100000))[0][0])
        self.assertEqual(TOO_BIG, r.option(99, bytes(1 << 20))[0][0])
        r.go()

    def test_endless_option(self):
        r = self.raw()
        r.send_option(GO, b'', 0xffffffff)
        self.assertTrue(r.closed())
        self.alive()

    def test_long_names(self):
        r = self.raw()
        self.assertEqual(INVALID, r.option(GO, string(b'n' * 4097) + b'\0\0')[0][0])
        self.assertEqual(UNKNOWN, r.option(GO, string(b'n' * 4096) + b'\0\0')[0][0])

    def test_truncated(self):
        """Cut at every place, a negotiation leaves nothing behind."""
        go = string(b'disk') + struct.pack('>HH', 1, 3)
        talk = struct.pack('>I', 3) + b'IHAVEOPT' + struct.pack('>II', GO, len(go)) + go
        for cut in range(len(talk)):
            with Raw(self.d.nbd_socket, None) as r:
                r.send(talk[:cut])
        self.alive()

    def test_silent_client_is_dropped(self):
        silent = self.raw(None)
        dribbling = self.raw(None)
        dribbling.recv(18)
        start = time.monotonic()
        talk = struct.pack('>I', 3) + (b'IHAVEOPT' + struct.pack('>II', 77, 0)) * 1000
        try:
            while time.monotonic() - start < sd.TIMEOUT:
                dribbling.send(talk[:1])
                talk = talk[1:]
                time.sleep(0.1)
        except (BrokenPipeError, ConnectionResetError):
            pass
        took = time.monotonic() - start
        self.assertTrue(5 < took < 20, took)
        self.assertTrue(silent.closed())
        self.alive()

    def test_who_negotiated_may_be_silent(self):
        r = self.raw().go()
        time.sleep(12)
        self.assertEqual(bytes(512), r.read(0, 512))


class Requests(Nbd):
    def test_every_command(self):
        for structured in (False, True):
            with self.subTest(structured=structured):
                r = self.raw().go(structured=structured)
                self.assertEqual(0, r.write(1000, b'x' * 3000))
                self.assertEqual(0, r.write(5000, b'y' * 100, FUA))
                self.assertEqual(b'\0' * 1000 + b'x' * 3000, r.read(0, 4000))
                self.assertEqual(b'y' * 100, r.read(5000, 100))
                self.assertEqual(0, r.request(FLUSH)[0])
                self.assertEqual(0, r.request(CACHE, 0, SIZE)[0])
                self.assertEqual(0, r.request(WRITE_ZEROES, 2000, 1000)[0])
                self.assertEqual(b'x' * 1000 + bytes(1000) + b'x' * 1000, r.read(1000, 3000))
                self.assertEqual(0, r.request(WRITE_ZEROES, 0, 8192, flags=NO_HOLE | FUA)[0])
                self.assertEqual(bytes(8192), r.read(0, 8192))
                self.assertEqual(0, r.request(TRIM, 0, SIZE, flags=FUA)[0])

    def test_large_write_and_read(self):
        r = self.raw().go(structured=True)
        data = os.urandom(5 * sd.MIB + 3)
        self.assertEqual(0, r.write(12345, data))
        self.assertEqual(data, r.read(12345, len(data)))
        with open(self.image, 'rb') as f:
            f.seek(12345)
            self.assertEqual(data, f.read(len(data)))

    def test_holes_are_not_sent(self):
        r = self.raw().go(structured=True)
        self.assertEqual(0, r.write(sd.MIB, b'd' * 65536))
        error, chunks = r.request(READ, 0, 2 * sd.MIB)
        self.assertEqual(0, error)
        self.assertEqual([HOLE, DATA, HOLE], [k for k, _ in chunks])
        self.assertEqual(struct.pack('>QI', 0, sd.MIB), chunks[0][1])
        self.assertEqual(struct.pack('>Q', sd.MIB) + b'd' * 65536, chunks[1][1])
        error, chunks = r.request(READ, 0, 2 * sd.MIB, flags=DF)
        self.assertEqual([DATA], [k for k, _ in chunks])
        self.assertEqual(2 * sd.MIB + 8, len(chunks[0][1]))

    def test_short_zeroes_are_not_sent(self):
        """Where the driver knows of them by itself; filters that look at the data get it all the same."""
        null = {'driver': 'null-co', 'size': SIZE, 'read-zeroes': True}
        self.d.cmd('blockdev-add', driver='raw', node_name='zeroes', file={'driver': 'blkdebug', 'image': dict(null)})
        self.d.cmd('blockdev-add', driver='copy-on-read', node_name='copied', file=dict(null))
        self.d.cmd('blockdev-add', driver='quorum', node_name='voted', vote_threshold=2, children=[dict(null)] * 3)
        for node, kind in (('zeroes', HOLE), ('copied', DATA), ('voted', DATA)):
            with self.subTest(node=node):
                self.d.export(node, node)
                r = self.raw().go(node.encode(), structured=True)
                error, chunks = r.request(READ, 8192, 4096)
                self.assertEqual((0, [kind]), (error, [k for k, _ in chunks]))
                self.assertEqual(struct.pack('>QI', 8192, 4096) if kind == HOLE else
                                 struct.pack('>Q', 8192) + bytes(4096), chunks[0][1])
                self.assertEqual(bytes(5000), r.read(1, 5000))
                self.assertEqual(bytes(4096), self.raw().go(node.encode()).read(0, 4096))

    def test_short_zeroes_of_formats(self):
        """What the tables of an image say is zero is not sent; what a backing file holds and what was written is."""
        for fmt in ('qcow2', 'qed'):
            base, top = self.path(f'base.{fmt}'), self.path(f'top.{fmt}')
            sd.create_image(base, fmt, sd.MIB, data=[(0, 65536, 0x62)])
            sd.create_image(top, fmt, sd.MIB, backing=base, backing_fmt=fmt)
            self.d.cmd('blockdev-add', driver=fmt, node_name=fmt, file={'driver': 'file', 'filename': top})
            self.d.export(fmt, fmt, writable=True)
            alone = f'{fmt}-alone'
            self.d.cmd('blockdev-add', driver=fmt, node_name=alone, read_only=True,
                       file={'driver': 'file', 'filename': self.copy_of(base)})
            self.d.export(alone, alone)
            r = self.raw().go(fmt.encode(), structured=True)
            self.assertEqual(0, r.write(3 * 65536, b'w' * 4096))
            self.assertEqual(0, r.request(WRITE_ZEROES, 0, 65536)[0])
            a = self.raw().go(alone.encode(), structured=True)
            for client, offset, kinds, want in ((r, 3 * 65536, (DATA,), b'w' * 4096), (r, 0, (HOLE,), bytes(4096)),
                                                (r, 4 * 65536, (DATA, HOLE), bytes(4096)), (a, 0, (DATA,), b'b' * 4096),
                                                (a, 4 * 65536, (HOLE,), bytes(4096)), (a, 65536 - 512, (DATA,), None)):
                with self.subTest(fmt=fmt, offset=offset):
                    error, chunks = client.request(READ, offset, 4096)
                    self.assertEqual((0, 1), (error, len(chunks)))
                    self.assertIn(chunks[0][0], kinds)
                    self.assertEqual(want or b'b' * 512 + bytes(3584), client.read(offset, 4096))

    def copy_of(self, path):
        sd.run('cp', path, path + '.copy')
        return path + '.copy'

    def test_many_small_holes(self):
        """More pieces than fit one answer: right all the same."""
        r = self.raw().go(structured=True)
        for i in range(0, 200, 2):
            self.assertEqual(0, r.write(i * 8192, bytes([i]) * 8192))
        want = b''.join(bytes([i if i % 2 == 0 else 0]) * 8192 for i in range(200))
        self.assertEqual(want, r.read(0, len(want)))
        self.assertEqual(want[5000:900001], r.read(5000, 895001))

    def test_pipelined(self):
        """A thousand requests in flight, of all sizes; each answered once and right."""
        r = self.raw().go()
        sizes = [1, 511, 512, 4096, 5000, 65536, 65537, 100000]
        sent, at = {}, 0
        for i in range(1000):
            n = sizes[i % len(sizes)]
            if at + n > SIZE:
                break
            sent[r.send_request(WRITE, at, n, bytes([i % 251]) * n)] = (at, n, i % 251)
            at += n
        got = [r.reply() for _ in sent]
        self.assertEqual({c: 0 for c in sent}, {c: e for c, e, _ in got})
        for at, n, byte in sent.values():
            self.assertEqual(bytes([byte]) * n, r.read(at, n))

    def test_requests_that_arrive_together(self):
        """Requests behind a write in the same packet are not lost, wherever the write's data is put."""
        direct = self.path('direct.raw')
        with open(direct, 'wb') as f:
            f.truncate(SIZE)
        self.d.cmd('blockdev-add', driver='file', node_name='d', filename=direct, cache={'direct': True})
        self.d.export('d', 'direct', writable=True)
        for name, sizes in ((b'disk', (512, 70000, 512, 130000, 66000, 1)), (b'direct', (512, 4096, 512, 8192, 700, 1))):
            with self.subTest(export=name):
                r = self.raw().go(name)
                packet, at, runs = b'', 0, []
                for i, n in enumerate(sizes, 1):
                    packet += struct.pack('>IHHQQI', 0x25609513, 0, WRITE, i, at, n) + bytes([i]) * n
                    runs.append((at, n, i))
                    at += n
                r.send(packet)
                self.assertEqual({i: 0 for _, _, i in runs}, {c: e for c, e, _ in (r.reply() for _ in runs)})
                for at, n, i in runs:
                    self.assertEqual(bytes([i]) * n, r.read(at, n))

    def test_replies_not_read(self):
        """Who does not take answers is not answered for ever, and holds up nobody."""
        r = self.raw().go()
        r.sock.settimeout(1)
        sent = 0
        try:
            while sent < 5000:
                r.send_request(READ, 0, sd.MIB)
                sent += 1
        except TimeoutError:
            pass
        self.assertTrue(64 <= sent < 5000, sent)
        self.alive()
        with open(f'/proc/{self.d.pid}/statm') as f:
            resident = int(f.read().split()[1]) * os.sysconf('SC_PAGESIZE')
        self.assertLess(resident, 300 * sd.MIB)
        r.sock.settimeout(sd.TIMEOUT)
        for _ in range(sent // 2):
            self.assertEqual(0, r.reply()[1])
            r.recv(sd.MIB)
        r.sock.close()
        self.alive()

    def test_requests_begin_while_answers_wait(self):
        """A client that still takes answers in has its next requests begun: the disk need not rest meanwhile."""
        r = self.raw().go()
        for i in range(16):
            r.send_request(READ, 0, 256 * sd.KIB)
        r.send_request(WRITE, SIZE - 512, 512, b'w' * 512)
        deadline = time.monotonic() + sd.TIMEOUT
        with open(self.image, 'rb') as f:
            while os.pread(f.fileno(), 512, SIZE - 512) != b'w' * 512:
                self.assertLess(time.monotonic(), deadline)
                time.sleep(0.01)
        for i in range(17):
            if r.reply()[0] <= 16:
                r.recv(256 * sd.KIB)

    def test_half_closed(self):
        """What was asked before the client's end of transmission is answered yet."""
        r = self.raw().go()
        for i in range(10):
            r.send_request(READ, i * 4096, 4096)
        r.sock.shutdown(socket.SHUT_WR)
        for _ in range(10):
            self.assertEqual(0, r.reply()[1])
            r.recv(4096)
        self.assertTrue(r.closed())

    def test_disc(self):
        r = self.raw().go()
        r.send_request(WRITE, 0, 5, b'hello')
        r.send_request(DISC)
        self.assertEqual(0, r.reply()[1])
        self.assertTrue(r.closed())
        with open(self.image, 'rb') as f:
            self.assertEqual(b'hello', f.read(5))

    def test_many_clients(self):
        clients = [self.raw().go() for _ in range(90)]
        for i, r in enumerate(clients):
            r.send_request(WRITE, i * 4096, 4096, bytes([i + 1]) * 4096)
        for r in clients:
            self.assertEqual(0, r.reply()[1])
        for i, r in enumerate(reversed(clients)):
            self.assertEqual(bytes([90 - i]) * 4096, clients[i].read((89 - i) * 4096, 4096))


class BadRequests(Nbd):
    def test_past_the_end(self):
        for structured in (False, True):
            r = self.raw().go(structured=structured)
            for offset, length in ((SIZE, 1), (SIZE - 1, 2), (1 << 63, 1), ((1 << 64) - 1, 2), (0, SIZE + 1)):
                with self.subTest(offset=offset, structured=structured):
                    self.assertEqual(EINVAL, r.request(READ, offset, length)[0])
                    self.assertEqual(ENOSPC, r.request(WRITE_ZEROES, offset, length)[0])
                    self.assertEqual(EINVAL, r.request(TRIM, offset, length)[0])
                    self.assertEqual(EINVAL, r.request(CACHE, offset, length)[0])
                    if length < 100:
                        self.assertEqual(ENOSPC, r.write(offset, b'z' * length))
            self.assertEqual(0, r.write(SIZE - 1, b'z'))
            self.assertEqual(0, r.request(WRITE_ZEROES, 0, SIZE)[0])
        self.assertEqual(SIZE, os.stat(self.image).st_size)

    def test_oversize_read(self):
        with open(self.image, 'r+b') as f:
            f.truncate(64 * sd.MIB)
        d = self.daemon('--blockdev', f'file,node-name=big,filename={self.image},locking=off,read-only=on')
        d.export('big')
        r = Raw(d.nbd_socket).go(b'big')
        self.assertEqual(32 * sd.MIB, len(r.read(1, 32 * sd.MIB)))
        self.assertEqual(EINVAL, r.request(READ, 0, 32 * sd.MIB + 1)[0])
        self.assertEqual(bytes(512), r.read(0, 512))
        r.sock.close()

    def test_oversize_write(self):
        """Its data cannot be skipped for ever: an error, then the end."""
        r = self.raw().go()
        cookie = r.send_request(WRITE, 0, 32 * sd.MIB + 1)
        self.assertEqual((cookie, EINVAL, None), r.reply())
        self.assertTrue(r.closed())
        self.alive()

    def test_wrong_magic(self):
        r = self.raw().go()
        r.send_request(READ, 0, 512, magic=0x25609514)
        self.assertTrue(r.closed())
        self.alive()

    def test_garbage(self):
        for seed in range(20):
            r = self.raw().go()
            try:
                r.send(os.urandom(1000 * seed + 28))
            except (BrokenPipeError, ConnectionResetError):
                pass
            self.assertTrue(r.closed())
        self.alive()

    def test_unknown_command_and_flags(self):
        r = self.raw().go(structured=True)
        self.assertEqual(EINVAL, r.request(8)[0])
        self.assertEqual(EINVAL, r.request(4711, 0, 512)[0])
        self.assertEqual(EINVAL, r.request(READ, 0, 512, flags=0x100)[0])
        self.assertEqual(EINVAL, r.request(READ, 0, 512, flags=FAST_ZERO)[0])
        self.assertEqual(EINVAL, r.request(WRITE, 0, 4, b'data', DF)[0])
        self.assertEqual(EINVAL, r.request(BLOCK_STATUS, 0, 512)[0])
        self.assertEqual(EINVAL, r.request(FLUSH, 512, 0)[0])
        self.assertEqual(bytes(512), r.read(0, 512))

    def test_df_needs_structured_replies(self):
        self.assertEqual(EINVAL, self.raw().go().request(READ, 0, 512, flags=DF)[0])

    def test_nothing(self):
        """Requests of no bytes are odd, but no error."""
        for structured in (False, True):
            r = self.raw().go(structured=structured)
            for kind in (READ, WRITE, TRIM, CACHE, WRITE_ZEROES):
                self.assertEqual(0, r.request(kind, 0, 0)[0], kind)
            self.assertEqual(0, r.request(READ, SIZE, 0)[0])

    def test_read_only(self):
        self.d.cmd('block-export-add', type='nbd', id='ro', node_name='n', name='ro')
        r = self.raw().go(b'ro')
        self.assertEqual(EPERM, r.write(0, b'data'))
        self.assertEqual(EPERM, r.write(0, b'data' * 50000))
        self.assertEqual(EPERM, r.request(TRIM, 0, 512)[0])
        self.assertEqual(EPERM, r.request(WRITE_ZEROES, 0, 512)[0])
        self.assertEqual(0, r.request(FLUSH)[0])
        self.assertEqual(bytes(512), r.read(0, 512))

    def test_truncated(self):
        """A client that dies within a request, at many places."""
        for data in (b'q' * 1000, b'q' * 200000):
            request = struct.pack('>IHHQQI', 0x25609513, 0, WRITE, 1, 0, len(data)) + data
            for cut in (1, 27, 28, 29, 500, len(request) // 2, len(request) - 1):
                if cut < len(request):
                    self.raw().go().sock.sendall(request[:cut])
        for r in range(10):
            with Raw(self.d.nbd_socket) as r:
                r.go().send(request[:len(request) - 1])
        self.alive()
        with open(self.image, 'rb') as f:
            self.assertEqual(bytes(1000), f.read(1000), 'half a write was written')

    def test_dies_with_requests_in_flight(self):
        for _ in range(20):
            with Raw(self.d.nbd_socket) as r:
                r.go()
                r.sock.settimeout(0.1)
                try:
                    for i in range(64):
                        r.send_request(READ, 0, sd.MIB) if i % 2 else r.send_request(WRITE, 0, 65536, bytes(65536))
                except TimeoutError:
                    pass  # the server takes no more while nobody reads its answers
        self.alive()


class Limits(sd.Case):
    def test_max_connections(self):
        d = self.daemon('--blockdev', 'null-co,node-name=n,size=65536,read-zeroes=on')
        path = self.path('nbd')
        d.cmd('nbd-server-start', {'addr': {'type': 'unix', 'data': {'path': path}}, 'max-connections': 2})
        d.cmd('block-export-add', type='nbd', id='e', node_name='n', name='disk')
        first, second = Raw(path).go(), Raw(path).go()
        third = Raw(path, None)
        third.sock.settimeout(0.5)
        with self.assertRaises(TimeoutError):
            third.recv(18)
        first.sock.close()
        third.sock.settimeout(sd.TIMEOUT)
        self.assertEqual(GREETING, third.recv(18))
        for r in (second, third):
            r.sock.close()

    def test_memory_of_cache_requests(self):
        """What is read for the cache takes memory as reads do: 16 requests of 1 MiB at a time, not 128."""
        d = self.daemon('--blockdev', 'null-co,node-name=n,size=1073741824,latency-ns=150000000')
        path = self.path('nbd')
        d.cmd('nbd-server-start', addr={'type': 'unix', 'data': {'path': path}})
        d.cmd('block-export-add', type='nbd', id='e', node_name='n', name='disk')
        r = Raw(path).go()
        begin = time.monotonic()
        sent = [r.send_request(CACHE, i << 20, 1 << 20) for i in range(128)]
        self.assertEqual({c: 0 for c in sent}, {c: e for c, e, _ in (r.reply() for _ in sent)})
        self.assertGreaterEqual(time.monotonic() - begin, 8 * 0.15)
        r.sock.close()

    def test_idle_clients_are_cheap(self):
        d = self.daemon('--blockdev', 'null-co,node-name=n,size=1048576,read-zeroes=on')
        path = self.path('nbd')
        d.cmd('nbd-server-start', {'addr': {'type': 'unix', 'data': {'path': path}}, 'max-connections': 0})
        d.cmd('block-export-add', type='nbd', id='e', node_name='n', name='disk')

        def resident():
            with open(f'/proc/{d.pid}/statm') as f:
                return int(f.read().split()[1]) * os.sysconf('SC_PAGESIZE')

        before = resident()
        clients = []
        self.addCleanup(lambda: [r.sock.close() for r in clients])
        for _ in range(400):
            clients.append(Raw(path).go())
        for r in clients:
            self.assertEqual(bytes(4096), r.read(0, 4096))
        time.sleep(4)  # until their buffers have been taken away
        if 'ASAN_OPTIONS' not in os.environ:  # a sanitizer keeps what is freed
            self.assertLess((resident() - before) / len(clients), 64 * 1024)
        for r in clients:
            self.assertEqual(bytes(4096), r.read(0, 4096))
            r.sock.close()
        Raw(path).go().sock.close()

    def test_out_of_descriptors(self):
        """Clients beyond what the process may open wait; the others and QMP go on."""
        d = self.daemon('--blockdev', 'null-co,node-name=n,size=65536,read-zeroes=on', wrapper=('prlimit', '--nofile=64:64'))
        path = self.path('nbd')
        d.cmd('nbd-server-start', {'addr': {'type': 'unix', 'data': {'path': path}}, 'max-connections': 0})
        d.cmd('block-export-add', type='nbd', id='e', node_name='n', name='disk')
        clients = [Raw(path, None) for _ in range(100)]
        self.addCleanup(lambda: [r.sock.close() for r in clients])
        self.assertEqual(GREETING, clients[0].recv(18))
        time.sleep(0.3)
        d.cmd('query-block-exports')
        with open(f'/proc/{d.pid}/stat') as f:
            before = sum(map(int, f.read().rsplit(')')[1].split()[11:13]))
        time.sleep(1)
        with open(f'/proc/{d.pid}/stat') as f:
            after = sum(map(int, f.read().rsplit(')')[1].split()[11:13]))
        self.assertLess((after - before) / os.sysconf('SC_CLK_TCK'), 0.5, 'it spins')
        for r in clients[:50]:
            r.sock.close()
        for r in clients[50:]:
            self.assertEqual(GREETING, r.recv(18))

    def test_stopped_daemon_goes_on(self):
        """Requests that arrive while the process stands still are all answered after."""
        d = self.daemon('--blockdev', 'null-co,node-name=n,size=1048576,read-zeroes=on')
        d.export('n', 'disk')
        r = Raw(d.nbd_socket).go()
        os.kill(d.pid, signal.SIGSTOP)
        try:
            r.send(b''.join(struct.pack('>IHHQQI', 0x25609513, 0, READ, i, 0, 512) for i in range(500)))
        finally:
            os.kill(d.pid, signal.SIGCONT)
        for _ in range(500):
            self.assertEqual(0, r.reply()[1])
            r.recv(512)
        r.sock.close()


if __name__ == '__main__':
    sd.main()
