"""Dirty bitmaps as commands see them: life, granules, merging, refusals."""
import sd
from jobs import JobCase


class Bitmap(JobCase):
    def setUp(self):
        self.d = self.daemon()
        self.a = sd.create_image(self.path('a.img'), 'raw', 8 * sd.MIB)
        self.node(self.d, 'a', self.a)
        self.uri = self.d.export('a', writable=True)

    def add(self, name='b', **more):
        self.d.cmd('block-dirty-bitmap-add', node=more.pop('node', 'a'), name=name, **more)

    def do(self, verb, name='b', node='a'):
        self.d.cmd('block-dirty-bitmap-' + verb, node=node, name=name)

    def merge(self, target, *sources, node='a'):
        self.d.cmd('block-dirty-bitmap-merge', node=node, target=target, bitmaps=list(sources))

    def write(self, *runs):
        with sd.nbd_connect(self.uri) as h:
            for offset, length in runs:
                h.pwrite(b'\x01' * length, offset)

    def count(self, name='b', node='a'):
        return self.d.bitmap(node, name)['count']

    def test_life(self):
        self.assertIsNone(self.d.bitmap('a', 'b'))
        self.add()
        self.assertSubset({'name': 'b', 'count': 0, 'granularity': 65536, 'recording': True, 'busy': False,
                           'persistent': False, 'status': 'active'}, self.d.bitmap('a', 'b'))
        self.write((0, 1), (3 * sd.MIB - 1, 2))
        self.assertEqual(3 * 65536, self.count())
        self.do('disable')
        self.assertSubset({'recording': False, 'status': 'disabled'}, self.d.bitmap('a', 'b'))
        self.write((5 * sd.MIB, 512))
        self.assertEqual(3 * 65536, self.count())
        self.do('enable')
        self.write((5 * sd.MIB, 512))
        self.assertEqual(4 * 65536, self.count())
        self.do('clear')
        self.assertEqual(0, self.count())
        self.do('remove')
        self.assertIsNone(self.d.bitmap('a', 'b'))

    def test_every_kind_of_write(self):
        self.add(granularity=512)
        with sd.nbd_connect(self.uri) as h:
            h.pwrite(b'\x01' * 512, 0)
            self.assertEqual(512, self.count())
            h.zero(1024, 4096)
            self.assertEqual(1536, self.count())
            h.pread(4096, 65536)
            h.flush()
            self.assertEqual(1536, self.count())

    def test_granularity(self):
        self.add('small', granularity=512)
        self.add('large', granularity=1 << 31)
        self.write((1000, 100))
        self.assertEqual(1024, self.count('small'))
        self.assertEqual(1 << 31, self.count('large'))

    def test_default_granularity_follows_clusters(self):
        for cluster, want in ((512, 4096), (16384, 16384), (2 * sd.MIB, 65536)):
            with self.subTest(cluster=cluster):
                path = sd.create_image(self.path(f'{cluster}.img'), 'qcow2', sd.MIB, options={'cluster_size': cluster})
                self.node(self.d, f'q{cluster}', path, 'qcow2')
                self.add(node=f'q{cluster}')
                self.assertEqual(want, self.d.bitmap(f'q{cluster}', 'b')['granularity'])

    def test_disabled_from_the_start(self):
        self.add(disabled=True)
        self.write((0, 512))
        self.assertEqual(0, self.count())

    def test_merge(self):
        self.add('fine', granularity=4096)
        self.add('coarse', granularity=sd.MIB)
        self.write((4096, 4096), (7 * sd.MIB, 4096))
        self.add('sum', granularity=65536, disabled=True)
        self.merge('sum', 'fine')
        self.assertEqual(2 * 65536, self.count('sum'))
        self.merge('sum', 'fine', {'node': 'a', 'name': 'coarse'})
        self.assertEqual(2 * sd.MIB, self.count('sum'))
        self.assertEqual(8192, self.count('fine'))
        self.merge('sum')
        self.assertEqual(2 * sd.MIB, self.count('sum'))

    def test_merge_is_all_or_nothing(self):
        other = sd.create_image(self.path('o.img'), 'raw', sd.MIB)
        self.node(self.d, 'other', other)
        self.add('x')
        self.add('y', node='other')
        self.write((0, 512))
        self.add('sum')
        for bad, text in (('nope', "Dirty bitmap 'nope' not found"),
                          ({'node': 'other', 'name': 'y'}, 'Bitmaps are of different sizes'),
                          ({'node': 'zz', 'name': 'y'}, "Node 'zz' not found")):
            self.fails(self.d, text, 'block-dirty-bitmap-merge', node='a', target='sum', bitmaps=['x', bad])
            self.assertEqual(0, self.count('sum'))

    def test_stays_with_its_node_under_a_job(self):
        self.add()
        target = sd.create_image(self.path('t.img'), 'raw', 8 * sd.MIB)
        self.node(self.d, 't', target)
        self.d.cmd('blockdev-mirror', job_id='m', device='a', target='t', sync='full')
        self.d.wait_ready('m')
        self.write((0, 512))
        self.assertEqual(65536, self.count())
        self.d.cancel('m')
        self.write((sd.MIB, 512))
        self.assertEqual(2 * 65536, self.count())

    def test_exported_from_a_node_that_was_replaced(self):
        """The export shows the bitmap of the node that it was made for, which so stays."""
        d = self.d
        self.add()
        uri = d.export('a', 'e', writable=True, bitmaps=['b'])
        self.write((0, 65536))
        self.node(d, 't', sd.create_image(self.path('t.img'), 'raw', 8 * sd.MIB))
        d.cmd('blockdev-mirror', job_id='m', device='a', target='t', sync='full')
        d.wait_ready('m')
        d.complete('m')
        self.fails(d, 'Block device a is in use', 'blockdev-del', node_name='a')
        with sd.nbd_connect(uri, meta=['qemu:dirty-bitmap:b']) as h:
            self.assertEqual([(0, 65536, 1), (65536, 8 * sd.MIB - 65536, 0)], sd.nbd_extents(h, 'qemu:dirty-bitmap:b'))
        d.cmd('block-export-del', id='exp-e', mode='hard')
        d.event_wait('BLOCK_EXPORT_DELETED')
        d.cmd('blockdev-del', node_name='a')

    def test_job_bitmaps_are_not_shown(self):
        target = sd.create_image(self.path('t.img'), 'raw', 8 * sd.MIB)
        self.node(self.d, 't', target)
        self.d.cmd('blockdev-mirror', job_id='m', device='a', target='t', sync='full')
        self.d.wait_ready('m')
        self.assertNotIn('dirty-bitmaps', self.d.node('a'))

    def test_refused(self):
        d = self.d
        self.add()

        def no(text, command, **args):
            self.fails(d, text, 'block-dirty-bitmap-' + command, **{'node': 'a', 'name': 'b', **args})

        no('Bitmap already exists: b', 'add')
        no("Cannot find device='zz' nor node-name='zz'", 'add', node='zz')
        no('Bitmap name cannot be empty', 'add', name='')
        no('Bitmap name too long: ', 'add', name='q' * 1024)
        self.add('q' * 1023)
        for granularity in (0, 100, 256, 513, 64000, (1 << 31) + 1):
            no('Granularity must be power of 2 and at least 512', 'add', name='c', granularity=granularity)
        no("Parameter 'granularity' expects uint32", 'add', name='c', granularity=1 << 32)
        for verb in ('remove', 'clear', 'enable', 'disable'):
            no("Dirty bitmap 'x' not found", verb, name='x')
            no("Node 'zz' not found", verb, node='zz')


if __name__ == '__main__':
    sd.main()
