"""Long reads over NBD: answered with the pages of a file in memory where that is right, with copies elsewhere."""
import os
import random
import shutil
import tempfile

import sd
from test_nbd_protocol import DATA, DF, FLUSH, HOLE, READ, TRIM, Raw

SIZE = 8 * sd.MIB
BLOCK = 256 * 1024


class Pages(sd.Case):
    def setUp(self):
        self.memory = tempfile.mkdtemp(prefix='sd-t-', dir='/dev/shm')
        self.addCleanup(shutil.rmtree, self.memory, ignore_errors=True)
        self.image = os.path.join(self.memory, 'a.raw')
        self.content = random.Random(1).randbytes(SIZE)
        with open(self.image, 'wb') as f:
            f.write(self.content)
        self.d = self.daemon()
        self.add('disk', driver='raw', file=self.file())

    def file(self, **more):
        return {'driver': 'file', 'filename': self.image, **more}

    def add(self, name, **options):
        self.d.cmd('blockdev-add', node_name=name, **options)
        self.d.export(name, name, writable=True)

    def raw(self, name='disk', structured=True):
        r = Raw(self.d.nbd_socket)
        self.addCleanup(r.sock.close)
        return r.go(name.encode(), structured=structured)

    def pipes(self):
        """How many ends of pipes the daemon has."""
        fds = f'/proc/{self.d.pid}/fd'
        return sum(os.readlink(f'{fds}/{fd}').startswith('pipe:') for fd in os.listdir(fds))

    def answers(self, r, cookies):
        """Data of the reads @cookies, each in one chunk, in whatever order they come."""
        got = {}
        for _ in cookies:
            cookie, error, chunks = r.reply()
            self.assertEqual((0, [DATA]), (error, [k for k, _ in chunks]))
            got[cookie] = chunks[0][1][8:]
        return [got[c] for c in cookies]

    def requests(self, r, n):
        return [r.send_request(READ, i * BLOCK, BLOCK) for i in range(n)]


class Content(Pages):
    def test_any_range(self):
        before = self.pipes()
        for structured in (False, True):
            r = self.raw(structured=structured)
            for offset, length in ((0, 65536), (1, 65536), (4095, 65537), (12345, BLOCK), (BLOCK, BLOCK), (8191, 2 * BLOCK),
                                   (0, 2 * BLOCK), (3, 2 * BLOCK + 1), (5, sd.MIB), (SIZE - BLOCK, BLOCK), (77, SIZE - 77)):
                with self.subTest(structured=structured, offset=offset, length=length):
                    self.assertEqual(self.content[offset:offset + length], r.read(offset, length))
        self.assertGreater(self.pipes(), before)

    def test_holes(self):
        with open(self.image, 'r+b') as f:
            f.truncate(BLOCK)
            f.truncate(SIZE)
            for at in (2 * BLOCK + 4096, 2 * BLOCK + 65536, 2 * BLOCK + 100000):
                f.seek(at)
                f.write(b'd' * 5000)
        with open(self.image, 'rb') as f:
            want = f.read()
        r = self.raw()
        for offset, length in ((0, BLOCK), (BLOCK - 4096, 8192 * 16), (2 * BLOCK, BLOCK), (2 * BLOCK + 5, BLOCK - 7),
                               (0, 4 * BLOCK), (4 * BLOCK, BLOCK)):
            self.assertEqual(want[offset:offset + length], r.read(offset, length), (offset, length))
        error, chunks = r.request(READ, 2 * BLOCK - 65536, 2 * 65536)
        self.assertEqual((0, [HOLE, DATA]), (error, [k for k, _ in chunks][:2]))
        error, chunks = r.request(READ, BLOCK - 65536, 2 * 65536, flags=DF)
        self.assertEqual((0, [DATA]), (error, [k for k, _ in chunks]))
        self.assertEqual(want[BLOCK - 65536:BLOCK + 65536], chunks[0][1][8:])
        self.assertEqual(want[:BLOCK * 2], self.raw(structured=False).read(0, BLOCK * 2))

    def test_range_of_a_file(self):
        self.d.cmd('blockdev-add', driver='file', node_name='f', filename=self.image, read_only=True)
        self.d.cmd('blockdev-add', driver='raw', node_name='part', file='f', offset=12800, size=sd.MIB, read_only=True)
        self.d.export('part', 'part')
        self.assertEqual(self.content[12801:12801 + BLOCK], self.raw('part').read(1, BLOCK))
        self.assertEqual(22, self.raw('part').request(READ, sd.MIB - 65536, BLOCK)[0])

    def test_file_cut_by_somebody_else(self):
        r = self.raw(structured=False)
        os.truncate(self.image, sd.MIB + 100)
        self.assertEqual(self.content[sd.MIB - 1000:sd.MIB + 100] + bytes(BLOCK - 1100), r.read(sd.MIB - 1000, BLOCK))
        self.assertEqual(bytes(BLOCK), r.read(2 * sd.MIB, BLOCK))


class Connections(Pages):
    def test_many_in_flight(self):
        """More than there are pipes, and more than the socket takes; short reads between them."""
        r = self.raw()
        cookies = []
        for i in range(31):
            cookies.append(r.send_request(READ, i * BLOCK, BLOCK))
            cookies.append(r.send_request(READ, i * 4096, 4096))
        got = self.answers(r, cookies)
        for i in range(31):
            self.assertEqual(self.content[i * BLOCK:(i + 1) * BLOCK], got[2 * i])
            self.assertEqual(self.content[i * 4096:(i + 1) * 4096], got[2 * i + 1])

    def test_many_clients(self):
        """Answers that nobody reads hold pipes: others get copies."""
        clients = [self.raw() for _ in range(40)]
        cookies = [self.requests(r, 4) for r in clients]
        self.assertEqual(self.content[:BLOCK], self.raw().read(0, BLOCK))
        self.assertLessEqual(self.pipes(), 40)
        for r, c in zip(clients, cookies):
            self.assertEqual([self.content[i * BLOCK:(i + 1) * BLOCK] for i in range(4)], self.answers(r, c))

    def test_answers_not_read(self):
        """There are few pipes: a client that takes no answers does not keep them all."""
        r = self.raw()
        before = self.pipes()
        r.sock.settimeout(1)
        with self.assertRaises(TimeoutError):
            for _ in range(5000):
                r.send_request(READ, 0, BLOCK // 2)
        self.assertLessEqual(self.pipes() - before, 2 * 12)  # of 16, both ends of each
        self.assertEqual(self.content[:BLOCK], self.raw().read(0, BLOCK))

    def test_client_leaves(self):
        """Pipes with answers that nobody will read are given up."""
        for _ in range(30):
            r = self.raw()
            self.requests(r, 16)
            r.recv(1000)
            r.sock.close()
        r = self.raw()
        self.assertEqual(self.content[:BLOCK], self.answers(r, self.requests(r, 1))[0])
        self.assertLessEqual(self.pipes(), 40)


class Meanwhile(Pages):
    """What is written between the request and the moment at which the client reads the answer."""

    def test_raw(self):
        """Old or new."""
        r, other = self.raw(), self.raw()
        cookies = self.requests(r, 1)
        r.sock.recv(1, 2)  # MSG_PEEK: the answer is on its way
        self.assertEqual(0, other.write(0, b'n' * BLOCK))
        got = self.answers(r, cookies)[0]
        for i in range(0, BLOCK, 512):
            self.assertIn(got[i:i + 512], (self.content[i:i + 512], b'n' * 512))

    def test_qcow2(self):
        """Never another block's data: the cluster may be another block's by then."""
        path = os.path.join(self.memory, 'a.qcow2')
        sd.qemu_img('create', '-q', '-f', 'qcow2', '-o', f'cluster_size={BLOCK}', path, str(SIZE))
        self.add('q', driver='qcow2', discard='unmap', file={'driver': 'file', 'filename': path})
        before = self.pipes()
        r, other = self.raw('q'), self.raw('q')
        self.assertEqual(0, other.write(0, b'o' * BLOCK))
        cookies = self.requests(r, 1)
        r.sock.recv(1, 2)
        self.assertEqual(0, other.request(TRIM, 0, BLOCK)[0])
        for _ in range(2):  # free for good
            self.assertEqual(0, other.request(FLUSH)[0])
        for i in range(1, SIZE // BLOCK):
            self.assertEqual(0, other.write(i * BLOCK, b'n' * BLOCK))
        with open(path, 'rb') as f:
            self.assertFalse(b'o' * 4096 in f.read(), 'nobody has got the cluster')
        self.assertEqual(b'o' * BLOCK, self.answers(r, cookies)[0])
        self.assertEqual(before, self.pipes())

    def test_filters_copy(self):
        """Whoever has not said that it may be so gets copies made."""
        before = self.pipes()
        for name, driver in (('debug', 'blkdebug'), ('copying', 'copy-on-read')):
            options = {'image' if driver == 'blkdebug' else 'file': 'disk'}
            self.d.cmd('blockdev-add', node_name=name, driver=driver, read_only=True, **options)
            self.d.export(name, name)
            r = self.raw(name)
            self.assertEqual(self.content[:BLOCK], self.answers(r, self.requests(r, 1))[0])
        self.assertEqual(before, self.pipes())


if __name__ == '__main__':
    sd.main()
