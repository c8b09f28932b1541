"""Exports as QMP manages them: servers, names, removal, events; what clients see of it."""
import json
import os
import re
import socket
import subprocess
import time

import sd


def listening(path):
    return {'type': 'unix', 'data': {'path': path}}


class Exports(sd.Case):
    def serve(self, *more):
        d = self.daemon('--blockdev', 'null-co,node-name=n,size=1048576,read-zeroes=on', *more)
        return d

    def ids(self, d):
        return [e['id'] for e in d.cmd('query-block-exports')]


class Server(Exports):
    def test_start_and_stop(self):
        d = self.serve()
        path = self.path('nbd')
        self.fails(d, 'NBD server not running', 'nbd-server-stop')
        d.cmd('nbd-server-start', addr=listening(path))
        self.fails(d, 'NBD server already running', 'nbd-server-start', addr=listening(self.path('other')))
        self.assertFalse(os.path.exists(self.path('other')))
        d.cmd('block-export-add', type='nbd', id='e', node_name='n')
        sd.run('nbdinfo', sd.nbd_uri(path, 'n'))
        d.cmd('nbd-server-stop')
        self.assertFalse(os.path.exists(path))
        self.assertEqual([], d.cmd('query-block-exports'))
        d.event_wait('BLOCK_EXPORT_DELETED', {'id': 'e'})
        d.cmd('nbd-server-start', addr=listening(path))
        d.cmd('block-export-add', type='nbd', id='e', node_name='n')
        sd.run('nbdinfo', sd.nbd_uri(path, 'n'))

    def test_stop_drops_clients(self):
        d = self.serve()
        with sd.nbd_connect(d.export('n')) as h:
            d.cmd('nbd-server-stop')
            with self.assertRaises(Exception):
                h.pread(512, 0)
                h.pread(512, 0)

    def test_quit_with_clients(self):
        d = self.serve()
        clients = [sd.nbd_connect(d.export('n', f'x{i}')) for i in range(3)]
        for c in clients:
            c.__enter__()
        d.shutdown()
        for c in clients:
            c.__exit__(None, None, None)

    def test_inet(self):
        d = self.serve()
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            port = s.getsockname()[1]
        d.cmd('nbd-server-start', addr={'type': 'inet', 'data': {'host': '127.0.0.1', 'port': str(port)}})
        d.cmd('block-export-add', type='nbd', id='e', node_name='n')
        info = json.loads(sd.run('nbdinfo', '--json', f'nbd://127.0.0.1:{port}/n').stdout)
        self.assertEqual(1048576, info['exports'][0]['export-size'])
        other = self.serve()
        self.fails(other, 'Address already in use', 'nbd-server-start',
                   addr={'type': 'inet', 'data': {'host': '127.0.0.1', 'port': str(port)}})

    def test_inet_name_and_range(self):
        """A name is looked up; of a range of ports the first free one is taken."""
        d = self.serve()
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            s.listen()
            port = s.getsockname()[1]
            d.cmd('nbd-server-start', addr={'type': 'inet', 'data': {'host': 'localhost', 'port': str(port),
                                                                     'to': port + 5, 'ipv4': True}})
        d.cmd('block-export-add', type='nbd', id='e', node_name='n')
        sd.run('nbdinfo', f'nbd://localhost:{port + 1}/n')

    def test_refused_addresses(self):
        d = self.serve()
        for addr, text in (({'type': 'vsock', 'data': {'cid': '2', 'port': '1'}}, "type 'vsock' are not supported"),
                           ({'type': 'fd', 'data': {'str': 'x'}}, "'x' is no file descriptor number"),
                           ({'type': 'fd', 'data': {'str': '0'}}, 'File descriptor 0 is no socket'),
                           ({'type': 'inet', 'data': {'host': '127.0.0.1', 'port': 'no such service'}}, 'no such service'),
                           ({'type': 'inet', 'data': {'host': '127.0.0.1', 'port': '1', 'ipv4': False, 'ipv6': False}},
                            'Cannot disable IPv4 and IPv6'),
                           (listening('/nowhere/at/all'), '/nowhere/at/all'),
                           (listening('/tmp/' + 'x' * 200), 'too long')):
            with self.subTest(addr):
                self.fails(d, text, 'nbd-server-start', addr=addr)
        self.fails(d, 'tls-creds', 'nbd-server-start', {'addr': listening(self.path('nbd')), 'tls-creds': 'tls0'})
        self.assertFalse(os.path.exists(self.path('nbd')))

    def test_stale_socket_is_taken_over(self):
        path = self.path('nbd')
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(path)
            s.listen()
        self.assertTrue(os.path.exists(path))
        d = self.serve()
        d.cmd('nbd-server-start', addr=listening(path))
        d.cmd('block-export-add', type='nbd', id='e', node_name='n')
        sd.run('nbdinfo', sd.nbd_uri(path, 'n'))

    def test_live_socket_is_refused(self):
        first, second = self.serve(), self.serve()
        path = first.nbd_server()
        error = self.fails(second, path, 'nbd-server-start', addr=listening(path))
        self.assertIn(f'PID {first.pid}', error['desc'])
        sd.run('nbdinfo', '--list', f'nbd+unix:///?socket={path}', check=False)

    def test_other_files_are_left_alone(self):
        path = self.path('precious')
        with open(path, 'w') as f:
            f.write('data')
        self.fails(self.serve(), 'no socket', 'nbd-server-start', addr=listening(path))
        with open(path) as f:
            self.assertEqual('data', f.read())

    def test_command_line(self):
        path = self.path('nbd')
        d = self.serve('--nbd-server', f'addr.type=unix,addr.path={path}', '--export',
                       'nbd,id=e,node-name=n,name=disk,writable=on')
        self.assertEqual(['e'], self.ids(d))
        info = json.loads(sd.run('nbdinfo', '--json', sd.nbd_uri(path, 'disk')).stdout)
        self.assertFalse(info['exports'][0]['is_read_only'])


class Registry(Exports):
    def test_refusals(self):
        d = self.serve('--blockdev', 'null-co,node-name=ro,size=65536,read-only=on')
        self.fails(d, 'NBD server not running', 'block-export-add', type='nbd', id='e', node_name='n')
        self.assertEqual([], self.ids(d))
        d.nbd_server()
        add = {'type': 'nbd', 'id': 'e', 'node-name': 'n'}
        self.fails(d, "Cannot find device='' nor node-name='x'", 'block-export-add', {**add, 'node-name': 'x'})
        self.fails(d, 'Invalid block export id', 'block-export-add', {**add, 'id': '1 x'})
        self.fails(d, "Parameter 'node-name' is missing", 'block-export-add', type='nbd', id='e')
        self.fails(d, 'Cannot export read-only node as writable', 'block-export-add', type='nbd', id='e', node_name='ro',
                   writable=True)
        self.fails(d, 'too long', 'block-export-add', {**add, 'name': 'k' * 4097})
        self.fails(d, 'too long', 'block-export-add', {**add, 'description': 'k' * 4097})
        self.fails(d, "Bitmap 'b' is not found", 'block-export-add', {**add, 'bitmaps': ['b']})
        self.fails(d, "Dirty bitmap 'b' not found", 'block-export-add', {**add, 'bitmaps': [{'node': 'n', 'name': 'b'}]})
        self.assertEqual([], self.ids(d))
        d.cmd('block-export-add', add)
        self.fails(d, "Block export id 'e' is already in use", 'block-export-add', add)
        self.fails(d, "NBD server already has export named 'n'", 'block-export-add', type='nbd', id='f', node_name='n')
        d.cmd('block-export-add', type='nbd', id='f', node_name='n', name='k' * 4096, description='d' * 4096)
        self.fails(d, "Export 'g' is not found", 'block-export-del', id='g')
        self.assertEqual(['f', 'e'], self.ids(d))

    def test_remove(self):
        d = self.serve()
        d.export('n', export_id='e')
        d.cmd('block-export-del', id='e')
        d.event_wait('BLOCK_EXPORT_DELETED', {'id': 'e'})
        self.assertEqual([], self.ids(d))
        d.cmd('blockdev-del', node_name='n')

    def test_remove_with_clients(self):
        d = self.serve()
        with sd.nbd_connect(d.export('n', export_id='e')) as h:
            self.fails(d, "export 'e' still in use", 'block-export-del', id='e')
            self.fails(d, "export 'e' still in use", 'block-export-del', id='e', mode='safe')
            self.assertEqual([], d.take_events('BLOCK_EXPORT_DELETED'))
            h.pread(512, 0)
            d.cmd('block-export-del', id='e', mode='hard')
            d.event_wait('BLOCK_EXPORT_DELETED', {'id': 'e'})
            with self.assertRaises(Exception):
                h.pread(512, 0)
                h.pread(512, 0)
        self.assertEqual([], self.ids(d))

    def test_removed_when_client_leaves(self):
        d = self.serve()
        uri = d.export('n', export_id='e')
        with sd.nbd_connect(uri):
            self.fails(d, 'still in use', 'block-export-del', id='e')
        deadline = time.monotonic() + sd.TIMEOUT
        while 'error' in d.qmp('block-export-del', id='e') and time.monotonic() < deadline:
            time.sleep(0.01)
        d.event_wait('BLOCK_EXPORT_DELETED', {'id': 'e'})

    def test_node_stays_while_exported(self):
        d = self.serve()
        d.export('n', export_id='e')
        self.fails(d, re.compile('in use|used'), 'blockdev-del', node_name='n')
        d.cmd('block-export-del', id='e')
        d.event_wait('BLOCK_EXPORT_DELETED')
        d.cmd('blockdev-del', node_name='n')

    def test_slow_request_holds_removal_up(self):
        """shutting-down shows while a request is still with the driver; the event comes when it is done."""
        d = self.daemon('--blockdev', 'null-aio,node-name=n,size=1048576,latency-ns=1500000000')
        import nbd
        with sd.nbd_connect(d.export('n', export_id='e')) as h:
            h.aio_pread(nbd.Buffer(512), 0)
            time.sleep(0.1)
            d.cmd('block-export-del', id='e', mode='hard')
            self.assertEqual([True], [e['shutting-down'] for e in d.cmd('query-block-exports')])
            self.fails(d, "Export 'e' is already shutting down", 'block-export-del', id='e')
            self.fails(d, "Block export id 'e' is already in use", 'block-export-add', type='nbd', id='e', node_name='n')
            d.event_wait('BLOCK_EXPORT_DELETED', {'id': 'e'})
        self.assertEqual([], self.ids(d))

    def test_legacy_commands(self):
        d = self.serve('--blockdev', 'null-co,node-name=ro,size=65536,read-only=on')
        self.fails(d, 'NBD server not running', 'nbd-server-add', device='n')
        d.nbd_server()
        self.fails(d, "'nope'", 'nbd-server-add', device='nope')
        d.cmd('nbd-server-add', device='n', writable=True)
        d.cmd('nbd-server-add', device='n', name='second', description='words')
        d.cmd('nbd-server-add', device='ro', writable=True)
        info = {e['export-name']: e for e in
                json.loads(sd.run('nbdinfo', '--json', '--list', f'nbd+unix:///?socket={d.nbd_socket}').stdout)['exports']}
        self.assertEqual({'n': False, 'second': True, 'ro': True}, {n: e['is_read_only'] for n, e in info.items()})
        self.assertEqual('words', info['second']['description'])
        self.fails(d, "Export 'x' is not found", 'nbd-server-remove', name='x')
        d.cmd('nbd-server-remove', name='second')
        d.event_wait('BLOCK_EXPORT_DELETED', {'id': 'second'})
        self.assertEqual(['ro', 'n'], self.ids(d))

    def test_churn(self):
        """Exports come and go while clients come and go."""
        d = self.serve()
        d.nbd_server()
        for i in range(40):
            d.cmd('block-export-add', type='nbd', id='e', node_name='n', name='x')
            clients = []
            for _ in range(3):
                s = socket.socket(socket.AF_UNIX)
                s.connect(d.nbd_socket)
                s.sendall(b'\0\0\0\3IHAVEOPT\0\0\0\7\0\0\0\7\0\0\0\1x\0\0'[:i] if i % 2 else
                          b'\0\0\0\3IHAVEOPT\0\0\0\7\0\0\0\7\0\0\0\1x\0\0')
                clients.append(s)
            d.cmd('block-export-del', id='e', mode='hard')
            d.event_wait('BLOCK_EXPORT_DELETED', {'id': 'e'})
            for s in clients:
                s.close()


class Counters(Exports):
    def test_blockstats(self):
        """NBD traffic is client traffic."""
        d = self.serve()
        with sd.nbd_connect(d.export('n', writable=True)) as h:
            h.pread(4096, 0)
            h.pwrite(b'x' * 512, 0)
            h.pwrite(b'x' * 512, 512)
            h.flush()
            h.zero(4096, 0)
            h.trim(4096, 0)
        stats = next(s for s in d.cmd('query-blockstats', query_nodes=True) if s.get('node-name') == 'n')['stats']
        self.assertSubset({'rd_bytes': 4096, 'rd_operations': 1}, stats)
        self.assertSubset({'flush_operations': 1}, stats)
        self.assertGreaterEqual(stats['wr_bytes'], 1024)


class Status(sd.Case):
    """Metadata contexts."""
    SIZE = 4 * sd.MIB

    def test_dirty_bitmap(self):
        import nbd
        image = sd.create_image(self.path('a.qcow2'), 'qcow2', self.SIZE)
        d = self.daemon('--blockdev', f'qcow2,node-name=n,file.driver=file,file.filename={image}')
        d.cmd('block-dirty-bitmap-add', node='n', name='b', granularity=65536)
        d.cmd('block-dirty-bitmap-add', node='n', name='c', granularity=65536)
        d.nbd_server()
        self.fails(d, "Enabled bitmap 'b' incompatible with readonly export", 'block-export-add', type='nbd', id='e',
                   node_name='n', bitmaps=['b'])
        uri = d.export('n', 'disk', writable=True, bitmaps=['b', {'node': 'n', 'name': 'c'}])
        self.fails(d, re.compile("in use|busy"), 'block-dirty-bitmap-remove', node='n', name='b')
        context = 'qemu:dirty-bitmap:b'
        with sd.nbd_connect(uri, meta=[context, 'qemu:dirty-bitmap:c', 'base:allocation']) as h:
            self.assertTrue(h.can_meta_context(context))
            self.assertEqual([(0, self.SIZE, 0)], sd.nbd_extents(h, context))
            h.pwrite(b'x' * 4096, 1 << 20)
            h.zero(65536, 3 << 20)
            want = [(0, 1 << 20, 0), (1 << 20, 65536, 1), ((1 << 20) + 65536, (2 << 20) - 65536, 0),
                    (3 << 20, 65536, 1), ((3 << 20) + 65536, (1 << 20) - 65536, 0)]
            self.assertEqual(want, sd.nbd_extents(h, context))
            self.assertEqual(want, sd.nbd_extents(h, 'qemu:dirty-bitmap:c'))
            got = []
            h.block_status(self.SIZE, 0, lambda name, offset, e, err: got.append((name, list(e))) or 0,
                           nbd.CMD_FLAG_REQ_ONE)
            self.assertEqual({context, 'qemu:dirty-bitmap:c', 'base:allocation'}, {n for n, _ in got})
            self.assertEqual([1 << 20, 0], dict(got)[context])
        deadline = time.monotonic() + sd.TIMEOUT
        while 'error' in d.qmp('block-export-del', id='exp-disk') and time.monotonic() < deadline:
            time.sleep(0.01)
        d.event_wait('BLOCK_EXPORT_DELETED')
        d.cmd('block-dirty-bitmap-remove', node='n', name='b')

    def test_bitmap_of_the_backing_file(self):
        base = sd.create_image(self.path('base.qcow2'), 'qcow2', self.SIZE)
        sd.qemu_img('bitmap', '--add', base, 'old')
        sd.qemu_io(base, 'write 1M 64k', fmt='qcow2')
        top = sd.create_image(self.path('top.qcow2'), 'qcow2', backing=base)
        d = self.daemon('--blockdev', f'file,node-name=bf,filename={base},read-only=on', '--blockdev',
                        f'qcow2,node-name=base,file=bf,read-only=on', '--blockdev',
                        f'qcow2,node-name=n,backing=base,file.driver=file,file.filename={top}')
        with sd.nbd_connect(d.export('n', 'disk', writable=True, bitmaps=['old']), meta=['qemu:dirty-bitmap:old']) as h:
            self.assertIn((1 << 20, 65536, 1), sd.nbd_extents(h, 'qemu:dirty-bitmap:old'))

    def test_allocation_depth(self):
        base = sd.create_image(self.path('base.qcow2'), 'qcow2', self.SIZE, data=[(0, 65536, 1), (sd.MIB, 65536, 1)])
        top = sd.create_image(self.path('top.qcow2'), 'qcow2', backing=base)
        sd.write_pattern(top, 'qcow2', (sd.MIB, 65536, 2))
        d = self.daemon('--blockdev', f'qcow2,node-name=n,file.driver=file,file.filename={top},backing.driver=qcow2,'
                        f'backing.file.driver=file,backing.file.filename={base}')
        context = 'qemu:allocation-depth'
        with sd.nbd_connect(d.export('n', 'disk', allocation_depth=True), meta=[context]) as h:
            self.assertEqual([(0, 65536, 2), (65536, sd.MIB - 65536, 0), (sd.MIB, 65536, 1),
                              (sd.MIB + 65536, self.SIZE - sd.MIB - 65536, 0)], sd.nbd_extents(h, context))
        with sd.nbd_connect(d.export('n', 'plain'), meta=[context]) as h:
            self.assertFalse(h.can_meta_context(context))

    def test_same_as_the_peer(self):
        """base:allocation of a chain, extent by extent, as qemu-storage-daemon tells it."""
        base = sd.create_image(self.path('base.qcow2'), 'qcow2', self.SIZE, data=[(0, 65536, 1), (sd.MIB, 131072, 1)])
        top = sd.create_image(self.path('top.qcow2'), 'qcow2', backing=base)
        sd.qemu_io(top, f'write -P 2 {sd.MIB} 64k', 'write -z 2M 128k', 'write 3M 512', 'discard 3145728 65536',
                   fmt='qcow2')
        options = ('--blockdev', f'qcow2,node-name=n,file.driver=file,file.filename={top},backing.driver=qcow2,'
                   f'backing.file.driver=file,backing.file.filename={base}')
        maps = []
        for program in (None, 'qemu-storage-daemon'):
            path = self.path(f'nbd-{program}')
            if program:
                words = [program, '--blockdev', 'driver=' + options[1], '--nbd-server', f'addr.type=unix,addr.path={path}',
                         '--export', 'nbd,id=e,node-name=n,name=disk,allocation-depth=on']
                p = subprocess.Popen(words)
                self.addCleanup(p.wait)
                self.addCleanup(p.kill)
                deadline = time.monotonic() + sd.TIMEOUT
                while not os.path.exists(path) and time.monotonic() < deadline:
                    time.sleep(0.01)
                time.sleep(0.2)
                uri = sd.nbd_uri(path, 'disk')
            else:
                d = self.daemon(*options)
                uri = d.export('n', 'disk', allocation_depth=True)
            with sd.nbd_connect(uri, meta=['base:allocation', 'qemu:allocation-depth']) as h:
                maps.append([sd.nbd_extents(h, c) for c in ('base:allocation', 'qemu:allocation-depth')])
            if not program:
                d.shutdown()
        self.assertEqual(maps[1], maps[0])


if __name__ == '__main__':
    sd.main()
