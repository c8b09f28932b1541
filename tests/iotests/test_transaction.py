"""Transactions: all actions at one moment or none of them, and jobs that end together."""
import os
import socket
import subprocess
import threading
import time

import sd
from jobs import JobCase, Writer, wait_listening

SIZE = 4 * sd.MIB


def action(kind, **data):
    return {'type': kind, 'data': {k.replace('_', '-'): v for k, v in data.items()}}


def bitmap(verb, node='a', name='b', **more):
    return action('block-dirty-bitmap-' + verb, node=node, name=name, **more)


def backup(device, target, **more):
    return action('blockdev-backup', job_id='job-' + device, device=device, target=target,
                  **{'sync': 'full', **more})


ABORT = action('abort')
ABORTED = 'Transaction aborted using Abort action'


class TransactionCase(JobCase):
    def transact(self, *actions, mode=None):
        self.d.cmd('transaction', actions=list(actions),
                   **({'properties': {'completion-mode': mode}} if mode else {}))

    def refuse(self, text, *actions, mode=None):
        self.fails(self.d, text, 'transaction', actions=list(actions),
                   **({'properties': {'completion-mode': mode}} if mode else {}))

    def image(self, name, fmt='qcow2', size=SIZE, **more):
        return sd.create_image(self.path(name + '.img'), fmt, size, **more)

    def disks(self, *names, data=((0, SIZE, 0x10),)):
        """Nodes with data, and nodes for copies of them, called copy-NAME; both qcow2."""
        for name in names:
            self.node(self.d, name, self.image(name, data=data), 'qcow2')
            self.node(self.d, 'copy-' + name, self.image('copy-' + name), 'qcow2')


class Course(TransactionCase):
    def setUp(self):
        self.d = self.daemon()

    def test_empty(self):
        self.transact()
        self.transact(mode='grouped')

    def test_syntax(self):
        self.refuse(ABORTED, ABORT)
        self.refuse(ABORTED, ABORT, mode='grouped')
        self.refuse("Parameter 'actions[0].data' is missing", {'type': 'abort'})
        self.refuse("Parameter 'actions[0].type' is missing", {'data': {}})
        self.refuse("does not accept value 'nope'", action('nope'))
        self.refuse("Parameter 'actions[0].data.node' is missing", action('block-dirty-bitmap-add', name='b'))
        self.fails(self.d, "Parameter 'actions' is missing", 'transaction')
        self.refuse("completion-mode' does not accept value 'x'", mode='x')

    def test_grouped_is_for_jobs(self):
        self.disks('a')
        for one in (bitmap('add'), bitmap('clear'), action('blockdev-snapshot', node='a', overlay='copy-a'),
                    action('blockdev-snapshot-sync', node_name='a', snapshot_file=self.path('x'), snapshot_node_name='x')):
            self.refuse(f"Action '{one['type']}' does not support Transaction property completion-mode = grouped",
                        backup('a', 'copy-a'), one, mode='grouped')
        self.assertIsNone(self.d.bitmap('a', 'b'))
        self.assertEqual([], self.d.cmd('query-jobs'))

    def test_waiting_for_a_server_holds_up_nobody(self):
        """While an action opens an image on a server that does not answer, clients of its node and other sessions go on."""
        self.disks('a')
        uri = self.d.export('a', writable=True)
        path = self.path('silent')
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen()
            started = self.d.start('transaction', actions=[
                bitmap('add'), action('blockdev-snapshot-sync', node_name='a', snapshot_file=f'nbd:unix:{path}',
                                      snapshot_node_name='over', mode='existing')])
            peer, _ = server.accept()
            with self.d.connect() as other:
                self.assertIn('a', [n['node-name'] for n in other.cmd('query-named-block-nodes')])
                self.assertNotIn('b', [b['name'] for n in other.cmd('query-named-block-nodes')
                                       for b in n.get('dirty-bitmaps', [])])
            with sd.nbd_connect(uri) as h:
                h.pwrite(b'\x55' * 512, 0)
                h.flush()
            peer.close()
            self.assertIn('error', self.d.finish(started))
        self.assertIsNone(self.d.bitmap('a', 'b'))
        self.assertIsNone(self.d.node('over'))


class Bitmaps(TransactionCase):
    def setUp(self):
        self.d = self.daemon()
        self.disks('a')
        self.uri = self.d.export('a', writable=True)

    def write(self, offset):
        with sd.nbd_connect(self.uri) as h:
            h.pwrite(b'\x77' * 512, offset)

    def state(self):
        return [(b['name'], b['count'], b['status']) for b in self.d.node('a').get('dirty-bitmaps', [])]

    def test_add(self):
        self.refuse(ABORTED, bitmap('add'), bitmap('add', name='c'), ABORT)
        self.assertEqual([], self.state())
        self.refuse('Bitmap already exists: b', bitmap('add'), bitmap('add'))
        self.assertEqual([], self.state())
        self.refuse("Cannot find device='nope' nor node-name='nope'", bitmap('add'), bitmap('add', node='nope'))
        self.refuse('Granularity must be power of 2', bitmap('add'), bitmap('add', name='c', granularity=1000))
        self.assertEqual([], self.state())
        self.transact(bitmap('add'), bitmap('add', name='c', disabled=True))
        self.assertEqual([('b', 0, 'active'), ('c', 0, 'disabled')], self.state())

    def test_everything_comes_back(self):
        self.transact(bitmap('add'), bitmap('add', name='c', disabled=True), bitmap('add', name='e'))
        self.write(0)
        before = self.state()
        self.assertEqual([('b', 65536, 'active'), ('c', 0, 'disabled'), ('e', 65536, 'active')], before)
        for verb in ('remove', 'clear', 'disable', 'enable'):
            for name in ('b', 'c', 'e'):
                with self.subTest(verb=verb, bitmap=name):
                    self.refuse(ABORTED, bitmap(verb, name=name), ABORT)
                    self.assertEqual(before, self.state())
        merge = action('block-dirty-bitmap-merge', node='a', target='c', bitmaps=['b', {'node': 'a', 'name': 'e'}])
        self.refuse(ABORTED, merge, ABORT)
        self.assertEqual(before, self.state())
        # Many on the same one: undone in the right order.
        self.refuse(ABORTED, bitmap('clear'), bitmap('disable'), merge, bitmap('remove', name='e'), bitmap('remove'),
                    bitmap('add', disabled=True), bitmap('add', name='e'), bitmap('enable', name='c'), ABORT)
        self.assertEqual(before, self.state())
        self.write(sd.MIB)  # those that are restored still work
        self.assertEqual([('b', 131072, 'active'), ('c', 0, 'disabled'), ('e', 131072, 'active')], self.state())

    def test_each_finds_what_was_done_before(self):
        self.transact(bitmap('add'))
        self.write(0)
        self.transact(bitmap('add', name='tmp', disabled=True),
                      action('block-dirty-bitmap-merge', node='a', target='tmp', bitmaps=['b']),
                      bitmap('remove'), bitmap('add', granularity=4096))
        self.assertEqual([('tmp', 65536, 'disabled'), ('b', 0, 'active')], self.state())
        self.refuse("Dirty bitmap 'gone' not found",
                    action('block-dirty-bitmap-merge', node='a', target='b', bitmaps=['tmp', 'gone']))
        self.assertEqual([('tmp', 65536, 'disabled'), ('b', 0, 'active')], self.state())

    def test_no_write_is_lost_between_two(self):
        """One bitmap takes over from another while a client writes: each write is in one of them, or in both."""
        self.d.cmd('block-dirty-bitmap-add', node='a', name='b0', granularity=512)
        w = Writer(self.uri, SIZE, longest=8)
        w.start()
        for i in range(20):
            w.wait_for(5)
            self.transact(bitmap('add', name=f'b{i + 1}', granularity=512), bitmap('disable', name=f'b{i}'))
        w.wait_for(5)
        w.stop()
        self.d.cmd('block-dirty-bitmap-add', node='a', name='all', granularity=512, disabled=True)
        self.transact(action('block-dirty-bitmap-merge', node='a', target='all', bitmaps=[f'b{i}' for i in range(21)]))
        # What changed is known from the images.
        self.d.cmd('blockdev-backup', job_id='j', device='a', target='copy-a', sync='bitmap', bitmap='all',
                   bitmap_mode='never')
        self.d.wait_completed('j')
        self.wait_gone(self.d, 'j')
        self.d.shutdown()
        sd.create_image(self.path('old.img'), 'qcow2', SIZE, data=((0, SIZE, 0x10),))
        sd.qemu_img('rebase', '-u', '-f', 'qcow2', '-b', self.path('old.img'), '-F', 'qcow2', self.path('copy-a.img'))
        self.assertImagesEqual(self.path('a.img'), self.path('copy-a.img'), 'qcow2', 'qcow2')

    def test_nothing_is_made_for_a_transaction_that_cannot_succeed(self):
        d = self.d
        target = self.image('old', data=((0, SIZE, 0x99),))
        drive = action('drive-backup', device='a', target=target, sync='full')
        for bad in (bitmap('clear', name='gone'), bitmap('add', node='gone'), bitmap('add', name=''),
                    action('block-dirty-bitmap-merge', node='a', target='gone', bitmaps=[]), backup('a', 'gone')):
            with self.subTest(bad=bad):
                self.assertIn('error', d.qmp('transaction', actions=[bad, drive]))
        sd.qemu_io(target, f'read -P 0x99 0 {SIZE}', fmt='qcow2', readonly=True)


class Jobs(TransactionCase):
    CREATED = ['created', 'running', 'paused', 'running']
    GOOD = CREATED + ['waiting', 'pending', 'BLOCK_JOB_COMPLETED', 'concluded', 'null']

    def setUp(self):
        self.d = self.daemon()
        self.disks('a', 'b')

    def stories(self):
        return [self.story(self.d, 'job-a'), self.story(self.d, 'job-b')]

    def order(self):
        """(job, what happened to it) of both jobs, as it came."""
        self.d.poll()
        return [(e['data'].get('device', e['data'].get('id'))[-1], e['data'].get('status', e['event']))
                for e in self.d.event_log if e['event'].startswith(('JOB_STATUS_CHANGE', 'BLOCK_JOB'))]

    def gone(self, *jobs):
        for job in jobs or ('a', 'b'):
            self.wait_status(self.d, 'job-' + job, 'null')
        self.assertEqual([], self.d.cmd('query-jobs'))

    def test_individual(self):
        self.transact(backup('a', 'copy-a'), backup('b', 'copy-b'))
        self.gone()
        self.assertEqual([self.GOOD, self.GOOD], self.stories())
        self.d.shutdown()
        for name in 'ab':
            self.assertImagesEqual(self.path(f'{name}.img'), self.path(f'copy-{name}.img'), 'qcow2', 'qcow2')

    def test_all_are_there_before_one_runs(self):
        self.transact(backup('a', 'copy-a'), backup('b', 'copy-b'))
        self.gone()
        self.assertEqual([('a', 'created'), ('b', 'created'), ('a', 'running'), ('a', 'paused'), ('b', 'running'),
                          ('b', 'paused'), ('a', 'running'), ('b', 'running')], self.order()[:8])

    def test_grouped(self):
        self.transact(backup('a', 'copy-a'), backup('b', 'copy-b'), mode='grouped')
        self.gone()
        self.assertEqual([self.GOOD, self.GOOD], self.stories())
        order = self.order()
        self.assertLess(max(order.index((j, 'waiting')) for j in 'ab'), min(order.index((j, 'pending')) for j in 'ab'))
        self.assertLess(max(order.index((j, 'pending')) for j in 'ab'),
                        min(order.index((j, 'BLOCK_JOB_COMPLETED')) for j in 'ab'))

    def slow_and_quick(self, **more):
        """The first job goes on and on, the second is done and waits for it."""
        self.transact(backup('a', 'copy-a', speed=1), backup('b', 'copy-b', **more), mode='grouped')
        self.wait_status(self.d, 'job-b', 'waiting')

    def test_individual_waits_for_nobody(self):
        self.transact(backup('a', 'copy-a', speed=1), backup('b', 'copy-b'))
        self.wait_status(self.d, 'job-b', 'null')
        self.assertIsNotNone(self.d.job('job-a'))
        self.d.cancel('job-a')

    def test_cancelling_one_cancels_all(self):
        for who in 'ab':
            with self.subTest(cancelled=who):
                self.slow_and_quick()
                self.d.cmd('job-cancel', id='job-' + who)
                self.gone()
                for story in self.stories():
                    self.assertEqual(['aborting', 'BLOCK_JOB_CANCELLED', 'concluded', 'null'], story[-4:])

    def test_finalize_one_finalizes_all(self):
        self.transact(backup('a', 'copy-a', auto_finalize=False), backup('b', 'copy-b'), mode='grouped')
        self.d.event_wait('BLOCK_JOB_PENDING', {'id': 'job-a'})
        self.assertEqual(['pending', 'pending'], [j['status'] for j in self.d.cmd('query-jobs')])
        self.d.cmd('job-finalize', id='job-b')
        self.gone()
        for story in self.stories():
            self.assertIn('BLOCK_JOB_COMPLETED', story)

    def test_cancel_while_pending(self):
        self.transact(*(backup(j, 'copy-' + j, auto_finalize=False) for j in 'ab'), mode='grouped')
        for j in 'ab':
            self.d.event_wait('BLOCK_JOB_PENDING', {'id': 'job-' + j})
        self.d.cmd('job-cancel', id='job-a')
        self.gone()
        for story in self.stories():
            self.assertEqual(['aborting', 'BLOCK_JOB_CANCELLED', 'concluded', 'null'], story[-4:])

    def undone(self, text, *actions):
        """Both jobs were made and undone; the nodes are as before."""
        before = self.d.cmd('query-named-block-nodes')
        self.refuse(text, *actions)
        self.gone()
        for story in self.stories():
            self.assertEqual(['created', 'aborting', 'concluded', 'null'], story)
        self.assertEqual(before, self.d.cmd('query-named-block-nodes'))

    def test_abort_takes_jobs_back(self):
        # The last fails only when everything is at rest and the jobs before it are made.
        self.undone("Bitmap already exists: x", backup('a', 'copy-a'), backup('b', 'copy-b'), bitmap('add', name='x'),
                    bitmap('add', name='x'))
        self.transact(backup('a', 'copy-a'), backup('b', 'copy-b'), mode='grouped')
        self.gone()

    def test_grouped_jobs_are_taken_back(self):
        self.disks('c')
        self.refuse('is busy: block device is in use by block job: backup', backup('a', 'copy-a'),
                    backup('b', 'copy-b'), action('blockdev-backup', job_id='again', device='a', target='copy-c',
                                                  sync='full'), mode='grouped')
        self.gone()
        self.transact(backup('a', 'copy-a'), backup('b', 'copy-b'), mode='grouped')
        self.gone()


class Incremental(TransactionCase):
    """Two disks with bitmaps; what becomes of these when a job of a group fails."""

    def faulty(self, name):
        """A disk of which one read fails, the first one after a flush."""
        self.d.cmd('blockdev-add', driver='qcow2', node_name=name, file={
            'driver': 'blkdebug', 'image': {'driver': 'file', 'filename': self.image(name, data=((0, SIZE, 0x10),))},
            'set-state': [{'event': 'flush_to_disk', 'state': 1, 'new_state': 2}],
            'inject-error': [{'event': 'read_aio', 'errno': 5, 'state': 2, 'immediately': False, 'once': True}]})
        self.node(self.d, 'copy-' + name, self.image('copy-' + name), 'qcow2')

    def setUp(self):
        self.d = self.daemon()
        self.disks('a')
        self.faulty('b')
        self.transact(*(bitmap('add', node=n, name='bm') for n in 'ab'),
                      *(backup(n, 'copy-' + n) for n in 'ab'))
        for n in 'ab':
            self.d.wait_completed('job-' + n)
            self.wait_gone(self.d, 'job-' + n)

    def write(self, node, byte):
        with sd.nbd_connect(self.d.export(node, name=f'{node}-{byte}', writable=True)) as h:
            h.pwrite(bytes([byte]) * 65536, byte * 65536)
            h.flush()

    def increments(self, n):
        """Targets for the nth increment, on top of the one before."""
        for node in 'ab':
            below = self.path(f'copy-{node}.img' if n == 1 else f'inc-{node}{n - 1}.img')
            path = sd.create_image(self.path(f'inc-{node}{n}.img'), 'qcow2', backing=below)
            self.node(self.d, f'inc-{node}{n}', path, 'qcow2', backing=None)
        return [backup(node, f'inc-{node}{n}', sync='incremental', bitmap='bm') for node in 'ab']

    def failing(self, mode):
        self.transact(*self.increments(1), mode=mode)
        self.d.event_wait('BLOCK_JOB_ERROR', {'device': 'job-b', 'operation': 'read', 'action': 'report'})
        self.d.wait_completed('job-b', error='Input/output error')

    def check(self):
        counts = [self.d.bitmap(n, 'bm')['count'] for n in 'ab']
        self.d.shutdown()
        return counts

    def test_group_fails_together(self):
        self.write('a', 1)
        self.write('b', 2)
        self.failing('grouped')
        self.d.event_wait('BLOCK_JOB_CANCELLED', {'device': 'job-a'})
        for n in 'ab':
            self.wait_gone(self.d, 'job-' + n)
            self.assertSubset({'count': 65536, 'status': 'active', 'busy': False}, self.d.bitmap(n, 'bm'))
        # Then it goes well, over the same bitmaps.
        for n in 'ab':
            self.d.cmd('blockdev-del', node_name=f'inc-{n}1')
            os.unlink(self.path(f'inc-{n}1.img'))
        self.transact(*self.increments(1), mode='grouped')
        for n in 'ab':
            self.d.wait_completed('job-' + n)
        self.assertEqual([0, 0], self.check())
        for n in 'ab':
            self.assertImagesEqual(self.path(f'{n}.img'), self.path(f'inc-{n}1.img'), 'qcow2', 'qcow2')

    def test_job_without_work_is_cancelled_too(self):
        self.write('b', 2)
        self.failing('grouped')
        self.d.event_wait('BLOCK_JOB_CANCELLED', {'device': 'job-a'})
        self.assertEqual([0, 65536], self.check())

    def test_individual_fails_alone(self):
        self.write('a', 1)
        self.write('b', 2)
        self.failing('individual')
        self.d.wait_completed('job-a')
        self.assertEqual([0, 65536], self.check())
        self.assertImagesEqual(self.path('a.img'), self.path('inc-a1.img'), 'qcow2', 'qcow2')

    def test_bitmap_starts_with_the_backup(self):
        """clear and backup at one moment, while a client writes: the increment after it completes the copy."""
        w = Writer(self.d.export('a', writable=True), SIZE, longest=16)
        w.start()
        w.wait_for(50)
        self.transact(bitmap('clear', name='bm'), backup('a', 'copy-a'))
        w.wait_for(50)
        self.d.wait_completed('job-a')
        self.wait_gone(self.d, 'job-a')
        w.wait_for(50)
        w.stop()
        self.transact(self.increments(1)[0])
        self.d.wait_completed('job-a')
        self.d.shutdown()
        self.assertImagesEqual(self.path('a.img'), self.path('inc-a1.img'), 'qcow2', 'qcow2')


class Pair(threading.Thread):
    """A client of two disks: writes n to the first, then, when that is done, to the second; n counts up."""

    def __init__(self, first, second):
        super().__init__(daemon=True)
        self.uris, self.n, self.error, self.over = (first, second), 0, None, False

    def run(self):
        try:
            with sd.nbd_connect(self.uris[0]) as a, sd.nbd_connect(self.uris[1]) as b:
                while not self.over:
                    self.n += 1
                    a.pwrite(self.n.to_bytes(512, 'little'), 0)
                    b.pwrite(self.n.to_bytes(512, 'little'), 0)
        except Exception as e:
            self.error = e

    def wait_for(self, more):
        goal, deadline = self.n + more, time.monotonic() + sd.TIMEOUT
        while self.n < goal:
            if self.error or time.monotonic() > deadline:
                raise AssertionError(f'the client is stuck at {self.n}: {self.error}')
            time.sleep(0.001)

    def stop(self):
        self.over = True
        self.join(sd.TIMEOUT)
        if self.error:
            raise self.error


class OneMoment(TransactionCase):
    """Of two disks that a client writes to in turn, copies and snapshots show the same moment, also while a third one, on
    which another client's writes are slow, takes its time to come to rest."""

    def setUp(self):
        self.d = self.daemon()
        self.disks('a', 'b', data=())
        self.slow_disk()
        self.pair = Pair(self.d.export('a', writable=True), self.d.export('b', writable=True))
        self.pair.start()

    def slow_disk(self):
        path = self.path('slow.sock')
        server = subprocess.Popen(['nbdkit', '-f', '--exit-with-parent', '-U', path, '--filter=delay', 'memory', str(SIZE),
                                   'delay-write=50ms'], stdin=subprocess.DEVNULL)
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        wait_listening(server, path)
        self.d.cmd('blockdev-add', driver='nbd', node_name='s', server={'type': 'unix', 'path': path})
        self.node(self.d, 'copy-s', self.image('copy-s'), 'qcow2')
        self.slow = Writer(self.d.export('s', writable=True), SIZE)
        self.slow.start()
        self.slow.wait_for(1)

    def number(self, path):
        raw = self.path('number.raw')
        sd.qemu_img('convert', '-U', '-f', 'qcow2', '-O', 'raw', path, raw)
        with open(raw, 'rb') as f:
            return int.from_bytes(f.read(512), 'little')

    def assertOneMoment(self, a, b):
        a, b = self.number(self.path(a + '.img')), self.number(self.path(b + '.img'))
        self.assertIn(a - b, (0, 1))
        self.assertGreater(b, 0)

    def test_backups(self):
        for i in range(6):
            self.pair.wait_for(20)
            self.transact(backup('a', 'copy-a'), backup('s', 'copy-s'), backup('b', 'copy-b'), mode='grouped')
            for n in 'asb':
                self.d.wait_completed('job-' + n)
                self.wait_gone(self.d, 'job-' + n)
            self.assertOneMoment('copy-a', 'copy-b')
        self.pair.stop()
        self.slow.stop()

    def test_snapshots(self):
        tops = {n: n for n in 'asb'}
        for i in range(6):
            self.pair.wait_for(20)
            self.transact(*(action('blockdev-snapshot-sync', node_name=tops[n], snapshot_node_name=f'{n}{i}',
                                   snapshot_file=self.path(f'{n}{i}.img')) for n in 'asb'))
            self.assertOneMoment(tops['a'], tops['b'])
            tops = {n: f'{n}{i}' for n in 'asb'}
        self.pair.wait_for(20)
        self.pair.stop()
        self.slow.stop()
        self.d.shutdown()
        self.assertEqual([self.pair.n] * 2, [self.number(self.path(tops[n] + '.img')) for n in 'ab'])


class Snapshots(TransactionCase):
    def setUp(self):
        for name in ('a', 'b'):
            self.image(name, data=((0, SIZE, 0x10),))
        self.d = self.daemon(*(word for n in 'ab' for word in (
            '--drive', f"id=d{n},file={self.path(n + '.img')},format=qcow2,node-name={n},if=none")))
        self.d.nbd_server()
        for n in 'ab':
            self.d.cmd('nbd-server-add', device='d' + n, name=n, writable=True)

    def snapshot(self, n, name, **more):
        return action('blockdev-snapshot-sync', device='d' + n, snapshot_node_name=name,
                      **{'snapshot_file': self.path(name + '.img'), **more})

    def write(self, n, byte):
        with sd.nbd_connect(sd.nbd_uri(self.d.nbd_socket, n)) as h:
            h.pwrite(bytes([byte]) * 65536, 0)

    def tops(self):
        return [i['inserted']['node-name'] for i in self.d.cmd('query-block')]

    def unchanged(self, text, *actions):
        before = sorted(os.listdir(self.dir)), self.d.cmd('query-named-block-nodes')
        self.refuse(text, *actions)
        self.assertEqual(['a', 'b'], self.tops())
        self.assertEqual(before, (sorted(os.listdir(self.dir)), self.d.cmd('query-named-block-nodes')))
        self.write('a', 0x31)
        self.write('b', 0x32)

    def test_none_of_two(self):
        self.unchanged(ABORTED, self.snapshot('a', 'a1'), self.snapshot('b', 'b1'), ABORT)
        self.unchanged('Failed to get "write" lock', self.snapshot('a', 'a1'), self.snapshot(
            'b', 'b1', snapshot_file=self.path('a.img')))
        self.unchanged('New overlay node-name already in use', self.snapshot('a', 'x'),
                       self.snapshot('b', 'x'))
        # These fail only when the parents have moved to the overlays already.
        twice = (bitmap('add', node='da'), bitmap('add', node='da'))
        self.unchanged('Bitmap already exists: b', self.snapshot('a', 'a1'), self.snapshot('b', 'b1'), *twice)
        self.unchanged('Bitmap already exists: b', self.snapshot('a', 'a1'), self.snapshot('a', 'a2'), *twice)
        self.node(self.d, 'over', self.image('over'), 'qcow2', backing=None)
        self.unchanged('Bitmap already exists: b', action('blockdev-snapshot', node='a', overlay='over'), *twice)
        self.d.cmd('blockdev-del', node_name='over')
        self.d.shutdown()
        for n, byte in ('a', 0x31), ('b', 0x32):
            sd.check_image(self.path(n + '.img'))
            sd.qemu_io(self.path(n + '.img'), f'read -P {byte} 0 64k', fmt='qcow2', readonly=True)

    def test_a_file_that_was_there_stays(self):
        old = self.image('old', data=((0, 65536, 0x99),))
        self.unchanged(ABORTED, self.snapshot('a', 'old', mode='existing'), ABORT)
        sd.qemu_io(old, 'read -P 0x99 0 64k', fmt='qcow2', readonly=True)

    def test_twice_and_backup(self):
        """Two overlays on one device, a backup and a bitmap of the upper one."""
        self.transact(self.snapshot('a', 'a1'), self.snapshot('a', 'a2'),
                      action('drive-backup', job_id='j', device='da', target=self.path('copy.img'), sync='full'),
                      bitmap('add', node='da', name='since'))
        self.write('a', 0x44)
        self.d.wait_completed('j')
        self.assertEqual(['a2', 'b'], self.tops())
        self.assertEqual(65536, self.d.bitmap('a2', 'since')['count'])
        self.d.shutdown()
        self.assertEqual([self.path('a1.img'), self.path('a.img')],
                         [sd.image_info(self.path(n + '.img'))['backing-filename'] for n in ('a2', 'a1')])
        sd.qemu_io(self.path('copy.img'), 'read -P 0x10 0 64k', fmt='qcow2', readonly=True)
        sd.qemu_io(self.path('a2.img'), 'read -P 0x44 0 64k', fmt='qcow2', readonly=True)

    def test_backup_with_a_bitmap_of_its_own(self):
        self.d.cmd('block-dirty-bitmap-add', node='da', name='old')
        self.write('a', 0x44)
        self.transact(bitmap('add', node='da', name='tmp', disabled=True),
                      action('block-dirty-bitmap-merge', node='da', target='tmp', bitmaps=['old']),
                      bitmap('clear', node='da', name='old'),
                      action('drive-backup', job_id='j', device='da', target=self.path('inc.img'), sync='incremental',
                             bitmap='tmp'))
        self.assertEqual(65536, self.d.wait_completed('j')['data']['len'])
        self.assertEqual(0, self.d.bitmap('a', 'old')['count'])
        self.d.shutdown()
        sd.qemu_io(self.path('inc.img'), 'read -P 0x44 0 64k', 'read -P 0 64k 64k', fmt='qcow2', readonly=True)

    def test_backup_and_snapshot_of_the_same(self):
        self.unchanged('is busy: block device is in use by block job: backup',
                       action('drive-backup', job_id='j', device='da', target=self.path('copy.img'), sync='full'),
                       self.snapshot('a', 'a1'))


if __name__ == '__main__':
    sd.main()
