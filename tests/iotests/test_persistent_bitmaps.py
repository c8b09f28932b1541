"""Bitmaps that a qcow2 image holds: kept over restarts, exchanged with QEMU's tools, lost safely in a crash."""
import json
import os
import random
import time

import sd
from jobs import JobCase

SIZE = 16 * sd.MIB
NAME = 'disk'


def granules(extents):
    """The dirty ones of sd.nbd_extents()."""
    return [(offset, length) for offset, length, flags in extents if flags]


def peer_extents(path, bitmap):
    """What qemu-nbd reads of a stored bitmap: offset and length of what is dirty."""
    sd.run('qemu-nbd', '--fork', '-r', '-f', 'qcow2', '-B', bitmap, '-k', path + '.nbd', path)  # until it listens
    with sd.nbd_connect(sd.nbd_uri(path + '.nbd'), meta=['qemu:dirty-bitmap:' + bitmap]) as h:
        got = granules(sd.nbd_extents(h, 'qemu:dirty-bitmap:' + bitmap))
    sd.wait_unlocked(path)  # it ends with its client
    return got


class Persistent(JobCase):
    def setUp(self):
        self.image = self.path('a.qcow2')

    def create(self, size=SIZE, **options):
        return sd.create_image(self.image, 'qcow2', size, options=options)

    def start(self, *more, **node):
        d = self.daemon(*more)
        self.node(d, NAME, self.image, 'qcow2', **node)
        return d

    def add(self, d, name='b', **more):
        d.cmd('block-dirty-bitmap-add', node=NAME, name=name, persistent=True, **more)

    def do(self, d, verb, name='b'):
        d.cmd('block-dirty-bitmap-' + verb, node=NAME, name=name)

    def write(self, d, *runs, node=NAME):
        uri = d.export(node, 'w', writable=True)
        with sd.nbd_connect(uri) as h:
            for offset, length in runs:
                h.pwrite(b'\x5a' * length, offset)
        self.unexport(d, 'exp-w')

    def unexport(self, d, export_id):
        d.cmd('block-export-del', id=export_id, mode='hard')
        d.event_wait('BLOCK_EXPORT_DELETED', {'id': export_id})

    def dirty(self, d, name='b', node=NAME):
        """What a client of an export sees of the bitmap."""
        uri = d.export(node, 'r', bitmaps=[{'node': node, 'name': name}], writable=not d.node(node)['ro'])
        with sd.nbd_connect(uri, meta=['qemu:dirty-bitmap:' + name]) as h:
            got = granules(sd.nbd_extents(h, 'qemu:dirty-bitmap:' + name))
        self.unexport(d, 'exp-r')
        return got

    def stored(self):
        """The bitmaps in the image, by qemu-img: name → set of flags."""
        info = sd.image_info(self.image)['format-specific']['data']
        return {b['name']: set(b['flags']) for b in info.get('bitmaps', [])}


class Life(Persistent):
    def test_no_room_in_the_header(self):
        """Clusters of 512 bytes and a long backing file's name leave none: to be told at once, not on closing."""
        for length, fits in ((10, True), (200, False)):
            name = 'b' * length
            sd.create_image(self.path(name), 'raw', SIZE)
            sd.run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'cluster_size=512', '-b', name, '-F', 'raw',
                   self.image)
            before = open(self.image, 'rb').read()
            d = self.start()
            if not fits:
                self.fails(d, "Can't store persistent bitmaps in 'disk': The header cluster of 'disk', 512 bytes, has no "
                           'room for an extension of 24 bytes', 'block-dirty-bitmap-add', node=NAME, name='b',
                           persistent=True)
                self.assertEqual(open(self.image, 'rb').read(), before)
                d.cmd('block-dirty-bitmap-add', node=NAME, name='b')
            else:
                self.add(d)
            d.shutdown()
            self.assertEqual(bool(sd.image_info(self.image)['format-specific']['data'].get('bitmaps')), fits)

    def test_over_restarts(self):
        self.create()
        d = self.start()
        self.add(d)
        self.add(d, 'off', disabled=True, granularity=512)
        self.assertSubset({'persistent': True, 'recording': True, 'count': 0}, d.bitmap(NAME, 'b'))
        self.write(d, (sd.MIB, 65536), (5 * sd.MIB - 1, 2))
        d.shutdown()
        self.assertEqual({'b': {'auto'}, 'off': set()}, self.stored())
        sd.check_image(self.image)
        d = self.start()
        self.assertSubset({'persistent': True, 'recording': True, 'count': 3 * 65536, 'busy': False,
                           'granularity': 65536}, d.bitmap(NAME, 'b'))
        self.assertSubset({'persistent': True, 'recording': False, 'granularity': 512, 'count': 0},
                          d.bitmap(NAME, 'off'))
        self.assertNotIn('inconsistent', d.bitmap(NAME, 'b'))
        self.write(d, (0, 1))
        self.do(d, 'enable', 'off')
        self.write(d, (sd.MIB, 512))
        self.do(d, 'disable')
        d.shutdown()
        self.assertEqual({'b': set(), 'off': {'auto'}}, self.stored())
        sd.check_image(self.image)
        d = self.start()
        self.assertEqual([(0, 65536), (sd.MIB, 65536), (5 * sd.MIB - 65536, 131072)], self.dirty(d))
        self.assertEqual([(sd.MIB, 512)], self.dirty(d, 'off'))
        self.do(d, 'clear')
        d.terminate()
        self.assertEqual([], peer_extents(self.image, 'b'))
        self.assertEqual([(sd.MIB, 512)], peer_extents(self.image, 'off'))
        sd.check_image(self.image)

    def test_nothing_changes_when_nothing_is_written(self):
        self.create()
        sd.qemu_img('bitmap', '--add', self.image, 'b')
        with open(self.image, 'rb') as f:
            before = f.read()
        for _ in range(2):
            d = self.start()
            self.assertEqual({'b': {'auto'}}, self.stored())
            d.shutdown()
        d = self.start()
        d.kill(self.image)
        with open(self.image, 'rb') as f:
            self.assertEqual(before, f.read())

    def test_removed_at_once(self):
        self.create()
        d = self.start()
        for name in 'abc':
            self.add(d, name)
        d.shutdown()
        d = self.start()
        self.do(d, 'remove', 'b')
        self.assertEqual({'a', 'c'}, set(self.stored()))
        self.do(d, 'remove', 'a')
        self.do(d, 'remove', 'c')
        self.assertEqual({}, self.stored())
        self.assertNotIn('bitmaps', d.node(NAME)['image']['format-specific']['data'])
        self.add(d, 'a')
        d.shutdown()
        self.assertEqual({'a'}, set(self.stored()))
        sd.check_image(self.image)

    def test_in_use_while_written_to(self):
        self.create()
        sd.qemu_img('bitmap', '--add', self.image, 'b')
        d = self.start()
        self.assertEqual([{'name': 'b', 'granularity': 65536, 'flags': ['auto']}],
                         d.node(NAME)['image']['format-specific']['data']['bitmaps'])
        self.write(d, (0, 512))
        self.assertEqual({'b': {'auto', 'in-use'}}, self.stored())
        self.assertEqual([{'name': 'b', 'granularity': 65536, 'flags': ['in-use', 'auto']}],
                         d.node(NAME)['image']['format-specific']['data']['bitmaps'])
        d.shutdown()
        self.assertEqual({'b': {'auto'}}, self.stored())

    def test_commands_mark_it_in_use(self):
        """What a crash would take back must not be taken for granted afterwards."""
        for verb in ('clear', 'enable', 'disable'):
            with self.subTest(verb=verb):
                self.create()
                sd.qemu_img('bitmap', '--add', self.image, 'b')
                d = self.start()
                self.do(d, verb)
                d.kill(self.image)
                self.assertEqual({'b': {'auto', 'in-use'}}, self.stored())

    def test_backing_file_and_names_in_the_header(self):
        base = sd.create_image(self.path('base.qcow2'), 'qcow2', SIZE)
        for cluster in (512, 65536):
            with self.subTest(cluster=cluster):
                sd.create_image(self.image, 'qcow2', backing=base, options={'cluster_size': cluster})
                d = self.start()
                self.add(d)
                self.write(d, (0, 65536))
                d.shutdown()
                info = sd.image_info(self.image)
                self.assertEqual((base, 'qcow2'), (info['backing-filename'], info['backing-filename-format']))
                self.assertEqual({'b': {'auto'}}, self.stored())
                sd.qemu_img('bitmap', '--add', self.image, 'c')  # rewrites the header
                sd.check_image(self.image)
                d = self.start()
                self.assertEqual([(0, 65536)], self.dirty(d))
                self.assertEqual(0, d.bitmap(NAME, 'c')['count'])
                d.shutdown()

    def test_many(self):
        self.create(size=sd.MIB)
        names = [f'{i:03}-' + 'n' * (i % 200) for i in range(300)] + ['x' * 1023]
        d = self.start()
        for i, name in enumerate(names):
            self.add(d, name, granularity=512 << i % 22)
        self.write(d, (100 * 512, 512))
        d.shutdown()
        self.assertEqual(set(names), set(self.stored()))
        d = self.start()
        got = {b['name']: b['count'] for b in d.node(NAME)['dirty-bitmaps']}
        self.assertEqual({name: 512 << i % 22 for i, name in enumerate(names)}, got)
        for name in names:
            self.do(d, 'remove', name)
        d.shutdown()
        sd.check_image(self.image)

    def test_resize(self):
        self.create()
        d = self.start()
        self.add(d)
        self.add(d, 'fine', granularity=512)
        self.write(d, (SIZE - 512, 512))
        for size in (3 * SIZE + 512, SIZE // 2, SIZE):
            d.cmd('block_resize', node_name=NAME, size=size)
        self.assertEqual(0, d.bitmap(NAME, 'fine')['count'])
        d.cmd('block_resize', node_name=NAME, size=40 * SIZE)
        self.write(d, (40 * SIZE - 512, 512))
        d.shutdown()
        self.assertEqual([(40 * SIZE - 512, 512)], peer_extents(self.image, 'fine'))
        self.assertEqual([(40 * SIZE - 65536, 65536)], peer_extents(self.image, 'b'))
        sd.check_image(self.image)
        d = self.start()
        self.fails(d, "Bitmap 'fine' could not be stored any more: Too much space will be occupied by the bitmap",
                   'block_resize', node_name=NAME, size=4 << 40)
        d.cmd('block_resize', node_name=NAME, size=SIZE)
        d.shutdown()
        self.assertEqual([], peer_extents(self.image, 'b'))
        sd.check_image(self.image)

    def test_no_disk_left(self):
        """The format cannot say anything about 0 bytes: the bitmap goes, and the image stays good."""
        self.create()
        d = self.start()
        self.add(d)
        self.add(d, 'other')
        d.shutdown()
        d = self.start()
        d.cmd('block_resize', node_name=NAME, size=0)
        self.fails(d, 'Cannot store dirty bitmaps of a disk of 0 bytes', 'block-dirty-bitmap-add', node=NAME, name='c',
                   persistent=True)
        d.cmd('block_resize', node_name=NAME, size=SIZE)
        self.write(d, (0, 4096))
        self.assertEqual([(0, 65536)], self.dirty(d))  # here they still are
        d.cmd('block_resize', node_name=NAME, size=0)
        d.shutdown()
        self.assertIn("bitmap 'other' of node 'disk' is not stored", d.stderr())
        sd.check_image(self.image)
        self.assertEqual({}, self.stored())
        d = self.start()
        self.assertNotIn('dirty-bitmaps', d.node(NAME))
        d.cmd('block_resize', node_name=NAME, size=SIZE)
        self.add(d)
        d.shutdown()
        self.assertEqual(['b'], list(self.stored()))

    def test_bitmaps_stay_with_their_node(self):
        """A snapshot makes their image read-only: they are stored then. commit writes to it again."""
        self.create()
        d = self.daemon('--drive', f'id=drive0,file={self.image},format=qcow2,node-name={NAME},if=none')
        self.add(d)
        self.write(d, (0, 65536))
        d.cmd('blockdev-snapshot-sync', device='drive0', snapshot_file=self.path('top.qcow2'),
              snapshot_node_name='top', format='qcow2')
        self.assertEqual({'b': {'auto'}}, self.stored())
        self.assertTrue(d.node(NAME)['ro'])
        self.fails(d, "Bitmap 'b' is readonly and cannot be modified", 'block-dirty-bitmap-clear', node=NAME, name='b')
        self.fails(d, 'is readonly', 'block-dirty-bitmap-remove', node=NAME, name='b')
        self.write(d, (sd.MIB, 65536), node='top')
        self.assertEqual([(0, 65536)], self.dirty(d))
        d.cmd('block-commit', job_id='c', device='drive0')
        d.complete('c')
        self.assertEqual([(0, 65536), (sd.MIB, 65536)], self.dirty(d))
        self.assertEqual({'b': {'auto', 'in-use'}}, self.stored())
        d.shutdown()
        self.assertEqual([(0, 65536), (sd.MIB, 65536)], peer_extents(self.image, 'b'))
        sd.check_image(self.image)

    def test_intermediate_commit_stores(self):
        self.create()
        sd.qemu_img('bitmap', '--add', self.image, 'b')
        mid = sd.create_image(self.path('mid.qcow2'), 'qcow2', backing=self.image, data=[(3 * sd.MIB, 65536, 7)])
        top = sd.create_image(self.path('top.qcow2'), 'qcow2', backing=mid)
        d = self.daemon('--drive', f'id=drive0,file={top},format=qcow2,node-name=top,if=none')
        d.cmd('block-commit', job_id='c', device='drive0', top=mid)
        d.wait_completed('c')
        self.assertEqual({'b': {'auto'}}, self.stored())
        d.shutdown()
        self.assertEqual([(3 * sd.MIB, 65536)], peer_extents(self.image, 'b'))
        sd.check_image(self.image)


class Crash(Persistent):
    def crashed(self):
        self.create()
        d = self.start()
        self.add(d)
        self.add(d, 'keep')
        d.shutdown()
        d = self.start()
        self.write(d, (0, 65536))
        self.add(d, 'new')
        d.kill(self.image)
        self.assertEqual({'b': {'auto', 'in-use'}, 'keep': {'auto', 'in-use'}}, self.stored())
        sd.qemu_img('check', self.image, check=False)

    def test_inconsistent_after_kill(self):
        self.crashed()
        d = self.start()
        self.assertSubset({'inconsistent': True, 'recording': False, 'persistent': True, 'count': 0,
                           'granularity': 65536}, d.bitmap(NAME, 'b'))
        self.assertIsNone(d.bitmap(NAME, 'new'))
        text = "Bitmap 'b' is inconsistent and cannot be used"
        for verb in ('clear', 'enable', 'disable'):
            self.fails(d, text, 'block-dirty-bitmap-' + verb, node=NAME, name='b')
        d.cmd('block-dirty-bitmap-add', node=NAME, name='c')
        self.fails(d, text, 'block-dirty-bitmap-merge', node=NAME, target='c', bitmaps=['b'])
        self.fails(d, text, 'block-dirty-bitmap-merge', node=NAME, target='b', bitmaps=['c'])
        self.fails(d, text, 'block_resize', node_name=NAME, size=2 * SIZE)
        d.nbd_server()
        self.fails(d, text, 'block-export-add', type='nbd', id='e', node_name=NAME, bitmaps=['b'])
        self.node(d, 't', sd.create_image(self.path('t'), 'raw', SIZE))
        self.fails(d, text, 'blockdev-backup', job_id='j', device=NAME, target='t', sync='incremental', bitmap='b')
        self.write(d, (sd.MIB, 65536))
        d.shutdown()
        self.assertEqual({'b': {'auto', 'in-use'}, 'keep': {'auto', 'in-use'}}, self.stored())
        d = self.start()
        self.do(d, 'remove')
        self.add(d)
        self.write(d, (2 * sd.MIB, 65536))
        d.shutdown()
        self.assertEqual({'b': {'auto'}, 'keep': {'auto', 'in-use'}}, self.stored())
        d = self.start()
        self.do(d, 'remove', 'keep')
        self.assertEqual([(2 * sd.MIB, 65536)], self.dirty(d))
        d.shutdown()
        p = sd.qemu_img('check', '-r', 'leaks', self.image, check=False)
        self.assertEqual(0, p.returncode, p.stdout + p.stderr)

    def test_removed_by_the_peer(self):
        self.crashed()
        sd.qemu_img('bitmap', '--remove', self.image, 'b')
        d = self.start()
        self.assertIsNone(d.bitmap(NAME, 'b'))
        self.assertTrue(d.bitmap(NAME, 'keep')['inconsistent'])

    def test_no_space_to_store(self):
        """They stay in use in the image, and the warning says why; the disk is whole."""
        self.create()
        d = self.start()
        self.add(d)
        self.write(d, (0, 65536))
        d.shutdown()
        d = self.daemon()
        rule = {'event': 'cluster_alloc', 'iotype': 'write', 'errno': 28}
        d.cmd('blockdev-add', driver='qcow2', node_name=NAME, file={
            'driver': 'blkdebug', 'image': {'driver': 'file', 'filename': self.image},
            'inject-error': [rule]})
        self.write(d, (512, 512))  # where there is a cluster already
        d.shutdown()
        self.assertIn("warning: Could not store bitmap 'b' of node 'disk': No space left on device", d.stderr())
        self.assertEqual({'b': {'auto', 'in-use'}}, self.stored())
        d = self.start()
        self.assertTrue(d.bitmap(NAME, 'b')['inconsistent'])

    def test_a_program_that_knows_no_bitmaps(self):
        """It clears the autoclear bit: the extension counts no more."""
        self.create()
        d = self.start()
        self.add(d)
        d.shutdown()
        with open(self.image, 'r+b') as f:
            f.seek(88)
            self.assertEqual(1, int.from_bytes(f.read(8), 'big'))
            f.seek(88)
            f.write(bytes(8))
        d = self.start()
        self.assertNotIn('dirty-bitmaps', d.node(NAME))
        self.add(d, 'b2')
        d.shutdown()
        self.assertEqual({'b2': {'auto'}}, self.stored())
        sd.qemu_img('check', '-r', 'leaks', self.image, check=False)
        sd.check_image(self.image)


class ReadOnly(Persistent):
    def test_as_it_is(self):
        self.create()
        sd.qemu_img('bitmap', '--add', self.image, 'b')
        sd.qemu_img('bitmap', '--add', '--disable', self.image, 'off')
        sd.qemu_io(self.image, 'write 1M 64k', fmt='qcow2')
        with open(self.image, 'rb') as f:
            before = f.read()
        os.chmod(self.image, 0o444)
        d = self.start(read_only=True)
        self.assertSubset({'persistent': True, 'recording': True, 'count': 65536}, d.bitmap(NAME, 'b'))
        self.assertEqual([(sd.MIB, 65536)], self.dirty(d))
        for verb in ('clear', 'remove'):
            self.fails(d, "Bitmap 'b' is readonly and cannot be modified", 'block-dirty-bitmap-' + verb, node=NAME,
                       name='b')
        self.fails(d, 'is readonly', 'block-dirty-bitmap-merge', node=NAME, target='off', bitmaps=['b'])
        self.fails(d, "Can't make bitmap 'c' persistent in 'disk': the node is read-only", 'block-dirty-bitmap-add',
                   node=NAME, name='c', persistent=True)
        d.cmd('block-dirty-bitmap-add', node=NAME, name='mem')
        d.cmd('block-dirty-bitmap-merge', node=NAME, target='mem', bitmaps=['b'])
        self.assertEqual(65536, d.bitmap(NAME, 'mem')['count'])
        d.shutdown()
        with open(self.image, 'rb') as f:
            self.assertEqual(before, f.read())


class Refused(Persistent):
    def test_add(self):
        sd.create_image(self.path('v2'), 'qcow2', sd.MIB, options={'compat': '0.10'})
        self.create()
        d = self.start()
        self.node(d, 'v2', self.path('v2'), 'qcow2')
        self.node(d, 'raw', sd.create_image(self.path('raw'), 'raw', sd.MIB))
        self.node(d, 'big', sd.create_image(self.path('big'), 'qcow2', 16 << 40), 'qcow2')

        def no(text, **args):
            self.fails(d, text, 'block-dirty-bitmap-add', **{'node': NAME, 'name': 'b', 'persistent': True, **args})

        no("Can't make bitmap 'b' persistent in 'v2': Cannot store dirty bitmaps in qcow2 v2 files", node='v2')
        no("Can't store persistent bitmaps to raw", node='raw')
        no("Can't make bitmap 'b' persistent in 'big': Too much space will be occupied by the bitmap. Use larger "
           'granularity', node='big', granularity=512)
        no('Bitmap name cannot be empty', name='')
        no('too long', name='n' * 1024)
        self.add(d)
        no('Bitmap already exists: b')
        self.assertIsNone(d.bitmap('v2', 'b'))
        self.assertIsNone(d.bitmap('big', 'b'))


class Transactions(Persistent):
    def actions(self, d, *list_):
        d.cmd('transaction', actions=[{'type': t, 'data': data} for t, data in list_])

    def test_all_or_nothing(self):
        self.create()
        d = self.start()
        self.add(d)
        self.write(d, (0, 512))
        d.shutdown()
        d = self.start()
        of = {'node': NAME, 'name': 'b'}
        with self.assertRaises(sd.QmpError):
            self.actions(d, ('block-dirty-bitmap-clear', of), ('block-dirty-bitmap-remove', of),
                         ('block-dirty-bitmap-add', {**of, 'name': 'c', 'persistent': True}), ('abort', {}))
        self.assertEqual(65536, d.bitmap(NAME, 'b')['count'])
        self.assertIsNone(d.bitmap(NAME, 'c'))
        self.write(d, (sd.MIB, 512))
        d.shutdown()
        self.assertEqual({'b'}, set(self.stored()))
        self.assertEqual([(0, 65536), (sd.MIB, 65536)], peer_extents(self.image, 'b'))
        d = self.start()
        self.actions(d, ('block-dirty-bitmap-add', {**of, 'name': 'c', 'persistent': True, 'granularity': 512}),
                     ('block-dirty-bitmap-merge', {'node': NAME, 'target': 'c', 'bitmaps': ['b']}),
                     ('block-dirty-bitmap-disable', {**of, 'name': 'c'}), ('block-dirty-bitmap-remove', of),
                     ('block-dirty-bitmap-add', {**of, 'persistent': True}))
        self.write(d, (2 * sd.MIB, 512))
        d.shutdown()
        self.assertEqual({'b': {'auto'}, 'c': set()}, self.stored())
        self.assertEqual([(2 * sd.MIB, 65536)], peer_extents(self.image, 'b'))
        self.assertEqual([(0, 65536), (sd.MIB, 65536)], peer_extents(self.image, 'c'))
        sd.check_image(self.image)

    def test_one_of_the_same_name_elsewhere(self):
        """That the transaction adds one of that name to another node must not hide the one that is to go."""
        self.create()
        sd.qemu_img('bitmap', '--add', self.image, 'b')
        d = self.start()
        self.node(d, 'raw', sd.create_image(self.path('raw'), 'raw', SIZE))
        self.actions(d, ('block-dirty-bitmap-add', {'node': 'raw', 'name': 'b'}),
                     ('block-dirty-bitmap-remove', {'node': NAME, 'name': 'b'}))
        self.assertIsNone(d.bitmap(NAME, 'b'))
        self.assertTrue(d.bitmap('raw', 'b'))
        d.kill(self.image)
        self.assertEqual({}, self.stored())

    def test_merge_from_another_image(self):
        self.create()
        other = sd.create_image(self.path('o.qcow2'), 'qcow2', SIZE)
        sd.qemu_img('bitmap', '--add', '-g', '4k', other, 'there')
        sd.qemu_io(other, 'write 64k 4k', fmt='qcow2')
        d = self.start()
        self.node(d, 'other', other, 'qcow2', read_only=True)
        self.add(d, granularity=512)
        d.shutdown()
        d = self.start()
        self.node(d, 'other', other, 'qcow2', read_only=True)
        d.cmd('block-dirty-bitmap-merge', node=NAME, target='b', bitmaps=[{'node': 'other', 'name': 'there'}])
        d.shutdown()
        self.assertEqual([(65536, 4096)], peer_extents(self.image, 'b'))
        self.assertEqual([(65536, 4096)], peer_extents(other, 'there'))


class Backup(Persistent):
    def backup(self, d, target, job='j', start=True, **more):
        self.node(d, 'target', target)
        d.cmd('blockdev-backup', job_id=job, device=NAME, target='target', **more)

    def finish(self, d, job='j'):
        d.wait_completed(job)
        d.cmd('blockdev-del', node_name='target')

    def test_incremental_across_a_restart(self):
        self.create()
        sd.write_pattern(self.image, 'qcow2', (0, SIZE, 1))
        copy = sd.create_image(self.path('copy'), 'raw', SIZE)
        d = self.start()
        self.add(d)
        self.backup(d, copy, sync='full')
        self.finish(d)
        rng = random.Random(4)
        for _ in range(3):
            runs = [(rng.randrange(SIZE // 512 - 300) * 512, rng.randrange(1, 300) * 512) for _ in range(12)]
            self.write(d, *runs[:6])
            d.shutdown()
            d = self.start()
            self.write(d, *runs[6:])
            dirty = d.bitmap(NAME, 'b')['count']
            self.assertTrue(0 < dirty < SIZE // 2)
            self.backup(d, copy, sync='incremental', bitmap='b')
            self.finish(d)
            self.assertEqual(0, d.bitmap(NAME, 'b')['count'])
            self.assertImagesEqual(self.image, copy, 'qcow2', 'raw')
        d.shutdown()
        self.assertEqual([], peer_extents(self.image, 'b'))
        sd.check_image(self.image)

    def test_the_daemon_ends_during_a_backup(self):
        """What the job did not copy for sure is still dirty afterwards, and what was written meanwhile."""
        self.create()
        d = self.start()
        self.add(d)
        self.write(d, (sd.MIB, 65536))
        d.shutdown()
        for end in ('shutdown', 'terminate'):
            d = self.start()
            copy = sd.create_image(self.path('copy'), 'raw', SIZE)
            uri = d.export(NAME, writable=True)
            self.backup(d, copy, sync='incremental', bitmap='b', speed=1)
            with sd.nbd_connect(uri) as h:
                h.pwrite(b'\x5a' * 65536, 4 * sd.MIB)
            self.assertTrue(d.bitmap(NAME, 'b')['busy'])
            self.fails(d, 'currently in use', 'block-dirty-bitmap-remove', node=NAME, name='b')
            getattr(d, end)()
            self.assertEqual({'b': {'auto'}}, self.stored())
            self.assertEqual([(sd.MIB, 65536), (4 * sd.MIB, 65536)], peer_extents(self.image, 'b'))
        sd.check_image(self.image)

    def test_success_without_a_write(self):
        """Nothing is written to the disk, and yet the stored bitmap is another one afterwards."""
        self.create()
        sd.qemu_img('bitmap', '--add', self.image, 'b')
        sd.qemu_io(self.image, 'write 1M 64k', fmt='qcow2')
        d = self.start()
        self.backup(d, sd.create_image(self.path('copy'), 'raw', SIZE), sync='incremental', bitmap='b')
        self.finish(d)
        d.shutdown()
        self.assertEqual([], peer_extents(self.image, 'b'))
        sd.check_image(self.image)

    def test_mirror(self):
        """The bitmap stays with its image, and records what the mirror's client writes."""
        self.create()
        d = self.start()
        self.add(d)
        self.node(d, 't', sd.create_image(self.path('t'), 'raw', SIZE))
        uri = d.export(NAME, writable=True)
        d.cmd('blockdev-mirror', job_id='m', device=NAME, target='t', sync='full')
        d.wait_ready('m')
        with sd.nbd_connect(uri) as h:
            h.pwrite(b'\x5a' * 65536, 0)
        self.assertEqual(65536, d.bitmap(NAME, 'b')['count'])
        d.shutdown()
        self.assertEqual([(0, 65536)], peer_extents(self.image, 'b'))


class Peers(Persistent):
    def test_both_ways(self):
        """Random bits, sizes that end within a granule, every granularity that matters; QEMU's tools write one half and
        read all of it."""
        rng = random.Random(11)
        for cluster, size, granularity in ((512, 3 * sd.MIB + 512, 512), (4096, 40 * sd.MIB + 1536, 4096),
                                           (65536, 100 * sd.MIB, 65536), (2 * sd.MIB, 64 * sd.MIB - 512, 512),
                                           (1024, 5 * sd.MIB, 1 << 31)):
            with self.subTest(cluster=cluster, granularity=granularity):
                if os.path.exists(self.image):
                    os.unlink(self.image)
                self.create(size=size, cluster_size=cluster)
                sd.qemu_img('bitmap', '--add', '-g', str(granularity), self.image, 'theirs')
                d = self.start()
                self.add(d, 'ours', granularity=granularity)
                runs = [(rng.randrange(size // 512 - 64) * 512, rng.randrange(1, 64) * 512) for _ in range(40)]
                runs += [(size - 512, 512), (sd.MIB, 2 * sd.MIB + 512)]  # the latter: whole clusters of set bits
                self.write(d, *runs)
                want = self.dirty(d, 'ours')
                self.assertEqual(want, self.dirty(d, 'theirs'))
                d.shutdown()
                for name in ('ours', 'theirs'):
                    self.assertEqual(want, peer_extents(self.image, name))
                sd.qemu_io(self.image, 'write 100k 200k', fmt='qcow2')
                sd.qemu_img('bitmap', '--add', '-g', str(granularity), self.image, 'sum')
                sd.qemu_img('bitmap', '--merge', 'ours', self.image, 'sum')
                want = peer_extents(self.image, 'sum')
                d = self.start()
                for name in ('ours', 'theirs', 'sum'):
                    self.assertEqual(want, self.dirty(d, name))
                self.do(d, 'remove', 'theirs')
                d.shutdown()
                sd.check_image(self.image)
                self.assertEqual(want, peer_extents(self.image, 'sum'))

    def test_disabled_and_enabled_by_the_peer(self):
        self.create()
        d = self.start()
        self.add(d)
        d.shutdown()
        sd.qemu_img('bitmap', '--disable', self.image, 'b')
        d = self.start()
        self.assertFalse(d.bitmap(NAME, 'b')['recording'])
        self.write(d, (0, 512))
        self.assertEqual(0, d.bitmap(NAME, 'b')['count'])
        d.shutdown()
        sd.qemu_img('bitmap', '--enable', self.image, 'b')
        d = self.start()
        self.assertTrue(d.bitmap(NAME, 'b')['recording'])


class Large(Persistent):
    def test_16_tib(self):
        """A bitmap of 32 MiB costs what is dirty of it, in memory and in the image."""
        self.create(size=16 << 40)
        d = self.start()
        self.add(d, granularity=65536)
        before = self.resident(d)
        self.write(d, (0, 512), ((16 << 40) - 512, 512), (5 << 40, sd.MIB))
        d.shutdown()
        self.assertLess(json.loads(sd.qemu_img('info', '--output=json', self.image).stdout)['actual-size'], 4 * sd.MIB)
        begin = time.monotonic()
        d = self.start()
        self.assertEqual(18 * 65536, d.bitmap(NAME, 'b')['count'])
        d.shutdown()
        self.assertLess(time.monotonic() - begin, 5)
        d = self.start()
        self.assertEqual([(0, 65536), (5 << 40, sd.MIB), ((16 << 40) - 65536, 65536)], self.dirty(d))
        self.assertLess(self.resident(d), before + 24 * sd.MIB)

    @staticmethod
    def resident(d):
        with open(f'/proc/{d.pid}/statm', encoding='ascii') as f:
            return int(f.read().split()[1]) * os.sysconf('SC_PAGESIZE')


if __name__ == '__main__':
    sd.main()
