"""blockdev-create: what it makes, held against what qemu-img create makes; its job; what it refuses."""
import itertools
import os
import random

import sd

SIZE = 10 * sd.MIB

# Each option of qcow2 with its values; None: left out.
OPTIONS = {
    'version': [None, 'v2', 'v3'],
    'cluster-size': [None, 512, 4096, 2 * sd.MIB],
    'preallocation': [None, 'off', 'metadata', 'falloc', 'full'],
    'refcount-bits': [None, 1, 8, 64],
    'lazy-refcounts': [None, True, False],
    'compression-type': [None, 'zlib', 'zstd'],
    'extended-l2': [None, True, False],
    'data-file': [None, 'd'],
    'data-file-raw': [None, True],
    'backing-file': [None, 'base'],
    'backing-fmt': [None, 'raw'],
    'size': [0, 512, SIZE, 33 * sd.MIB + 512],
}


def is_possible(o):
    """What QEMU takes."""
    v2 = o['version'] == 'v2'
    if v2 and (o['lazy-refcounts'] or o['compression-type'] == 'zstd' or o['extended-l2'] or o['data-file'] or
               o['refcount-bits']):
        return False
    if o['extended-l2'] and (o['cluster-size'] or 65536) < 16384:
        return False
    if o['data-file-raw'] and (not o['data-file'] or o['backing-file']):
        return False
    if o['backing-fmt'] and not o['backing-file']:
        return False
    if o['backing-file'] and (not o['backing-fmt'] or
                              o['preallocation'] not in (None, 'off') and not o['extended-l2']):
        return False
    return True


def pairwise(options, seed=1):
    """Combinations in which each possible pair of values of two options occurs."""
    rng, names = random.Random(seed), list(options)
    pairs = {((a, x), (b, y)) for a, b in itertools.combinations(names, 2)
             for x in range(len(options[a])) for y in range(len(options[b]))}
    for _ in range(4000):
        best, covered = None, set()
        for _ in range(12):
            pick = {n: rng.randrange(len(options[n])) for n in names}
            if not is_possible({n: options[n][i] for n, i in pick.items()}):
                continue
            hit = {p for p in itertools.combinations(pick.items(), 2)} & pairs
            if len(hit) > len(covered):
                best, covered = pick, hit
        if best:
            pairs -= covered
            yield {n: options[n][i] for n, i in best.items()}


def qemu_words(o, data):
    """The -o argument of qemu-img create."""
    words = {'v2': ['compat=0.10'], 'v3': ['compat=1.1']}.get(o['version'], [])
    for name, value in o.items():
        if name not in ('version', 'size', 'backing-file', 'backing-fmt', 'data-file') and value is not None:
            words.append(f"{name.replace('-', '_')}={ {True: 'on', False: 'off'}.get(value, value)}"
                         if isinstance(value, bool) else f"{name.replace('-', '_')}={value}")
    if o['data-file']:
        words.append(f'data_file={data}')
    return ['-o', ','.join(words)] if words else []


class Create(sd.Case):
    def setUp(self):
        self.d = self.daemon()
        self.base = sd.create_image(self.path('base'), 'raw', SIZE, data=[(0, SIZE, 3)])

    def run_job(self, options, error=None):
        self.d.cmd('blockdev-create', job_id='c', options=options)
        self.d.event_wait('JOB_STATUS_CHANGE', {'id': 'c', 'status': 'concluded'})
        self.assertEqual({'id': 'c', 'type': 'create', 'status': 'concluded', 'current-progress': 1, 'total-progress': 1,
                          **({'error': error} if error else {})}, self.d.cmd('query-jobs')[0])
        self.d.cmd('job-dismiss', id='c')

    def node(self, name, size=0):
        path = self.path(name)
        with open(path, 'wb') as f:
            f.truncate(size)
        self.d.cmd('blockdev-add', driver='file', node_name=name, filename=path)
        return path

    def info(self, path):
        info = sd.image_info(path)
        for name in ('filename', 'actual-size', 'full-backing-filename', 'children'):
            info.pop(name, None)
        info.get('format-specific', {}).get('data', {}).pop('data-file', None)
        return info

    def test_pairwise(self):
        """As qemu-img create does it: the same to be told of the images, the same to be read, nothing wrong in them."""
        n = 0
        for o in pairwise(OPTIONS):
            mine, theirs = self.node('i'), self.path('theirs')
            data = o['data-file'] and self.node('d')
            if o['backing-file']:
                o['backing-file'] = self.base
            with self.subTest(**{k: v for k, v in o.items() if v is not None}):
                self.run_job({'driver': 'qcow2', 'file': 'i', **{k: v for k, v in o.items() if v is not None}})
                for name in ['i'] + (['d'] if data else []):
                    self.d.cmd('blockdev-del', node_name=name)
                sd.qemu_img('create', '-q', '-f', 'qcow2', *qemu_words(o, self.path('their-data')),
                            *(['-b', self.base, '-F', 'raw'] if o['backing-file'] else []), theirs, str(o['size']))
                self.assertEqual(self.info(theirs), self.info(mine))
                sd.check_image(mine)
                self.assertImagesEqual(mine, theirs, 'qcow2', 'qcow2')
                if o['preallocation'] in ('falloc', 'full'):
                    self.assertGreaterEqual(os.stat(data or mine).st_blocks * 512, o['size'])
                if o['size'] and n % 4 == 0:
                    sd.qemu_io(mine, 'write -P 5 0 512', f"write -P 6 {o['size'] // 2 // 512 * 512} 512")
                    sd.check_image(mine)
            n += 1
        self.assertGreater(n, 20)

    def test_space_is_prepared(self):
        """Writes to an image with prepared space change no metadata, and nothing shows through that was there before."""
        path = self.node('i')
        self.run_job({'driver': 'qcow2', 'file': 'i', 'size': SIZE, 'preallocation': 'metadata'})
        before = os.path.getsize(path)
        self.d.cmd('blockdev-add', driver='qcow2', node_name='q', file='i')
        uri = self.d.export('q', writable=True)
        with sd.nbd_connect(uri) as h:
            self.assertEqual(bytes(SIZE), h.pread(SIZE, 0))
            for at in range(0, SIZE, sd.MIB):
                h.pwrite(b'\1' * 4096, at)
            h.flush()
        self.assertEqual(before, os.path.getsize(path))
        self.d.shutdown()
        sd.check_image(path)
        self.assertTrue(all(e['present'] for e in sd.image_map(path)))

    def test_growing_prepares_space(self):
        path = self.node('i')
        self.run_job({'driver': 'qcow2', 'file': 'i', 'size': sd.MIB + 512})
        self.d.cmd('blockdev-add', driver='qcow2', node_name='q', file='i')

        def truncate(mode, size):
            return self.d.cmd('human-monitor-command', command_line=f'qemu-io q "truncate -m {mode} {size}"')

        self.assertEqual('', truncate('metadata', 4 * sd.MIB))
        self.assertLess(os.stat(path).st_blocks * 512, sd.MIB)
        for mode, size in (('falloc', 8 * sd.MIB), ('full', 12 * sd.MIB)):
            before = os.stat(path).st_blocks * 512
            self.assertEqual('', truncate(mode, size))
            self.assertGreaterEqual(os.stat(path).st_blocks * 512 - before, 4 * sd.MIB)
        truncate('full', sd.MIB)  # refused
        self.assertEqual(12 * sd.MIB, self.d.node('q')['image']['virtual-size'])
        self.d.shutdown()
        sd.check_image(path)
        sd.qemu_io(path, f'read -P 0 0 {12 * sd.MIB}', readonly=True)
        here = [(e['start'], e['present']) for e in sd.image_map(path)]
        self.assertEqual((0, False), here[0])
        self.assertTrue(all(present == (start >= sd.MIB + 65536) for start, present in here))

    def test_inline_nodes(self):
        """The job opens what the options describe, and closes it again."""
        self.run_job({'driver': 'file', 'filename': self.path('i'), 'size': 0})
        self.run_job({'driver': 'file', 'filename': self.path('d'), 'size': 0})
        self.run_job({'driver': 'qcow2', 'size': SIZE, 'file': {'driver': 'file', 'filename': self.path('i')},
                      'data-file': {'driver': 'file', 'filename': self.path('d')}})
        self.assertEqual([], self.d.cmd('query-named-block-nodes'))
        self.assertEqual(self.path('d'), sd.image_info(self.path('i'))['format-specific']['data']['data-file'])
        sd.check_image(self.path('i'))

    def test_file(self):
        path = self.path('f')
        for mode, least in (('off', 0), ('falloc', sd.MIB), ('full', sd.MIB)):
            self.run_job({'driver': 'file', 'filename': path, 'size': sd.MIB, 'preallocation': mode,
                          'extent-size-hint': 0})
            self.assertEqual(sd.MIB, os.path.getsize(path))
            self.assertGreaterEqual(os.stat(path).st_blocks * 512, least)
            os.unlink(path)
        self.run_job({'driver': 'file', 'filename': path, 'size': 1, 'preallocation': 'metadata'},
                     'Unsupported preallocation mode: metadata')
        self.run_job({'driver': 'file', 'filename': path, 'size': 1, 'extent-size-hint': 1 << 40},
                     'Extent size hint is too large')
        self.run_job({'driver': 'file', 'filename': self.path('no/f'), 'size': 1},
                     f"Could not create '{self.path('no/f')}': No such file or directory")

    def test_qed(self):
        path = self.node('e')
        self.run_job({'driver': 'qed', 'file': 'e', 'size': SIZE, 'cluster-size': 4096, 'table-size': 2,
                      'backing-file': self.base, 'backing-fmt': 'raw'})
        sd.check_image(path, 'qed')
        self.assertSubset({'cluster-size': 4096, 'backing-filename-format': 'raw'}, sd.image_info(path))
        for more, error in (({'cluster-size': 1000}, 'QED cluster size must be within range [4096, 2097152] and power of 2'),
                            ({'table-size': 3}, 'QED table size must be within range [1, 16] and power of 2'),
                            ({'size': 1000}, 'QED image size must be a non-zero multiple of cluster size and less than '
                                             '70368744177664 bytes')):
            self.run_job({'driver': 'qed', 'file': 'e', 'size': SIZE, **more}, error)

    def test_refusals(self):
        self.node('i')
        self.node('d')
        above = 'only supported with compatibility level 1.1 and above (use version=v3 or greater)'
        refused = [
            ({'size': 1000}, 'Image size must be a multiple of 512 bytes'),
            ({'size': 1 << 60}, "The image size is too large for file format 'qcow2' (try using a larger cluster size)"),
            ({'cluster-size': 1000}, 'Cluster size must be a power of two between 512 and 2048k'),
            ({'cluster-size': 0}, 'Cluster size must be a power of two between 512 and 2048k'),
            ({'cluster-size': 4 * sd.MIB}, 'Cluster size must be a power of two between 512 and 2048k'),
            ({'version': 'v2', 'lazy-refcounts': True}, f'Lazy refcounts {above}'),
            ({'version': 'v2', 'compression-type': 'zstd'}, f'Non-zlib compression type is {above}'),
            ({'version': 'v2', 'extended-l2': True}, f'Extended L2 entries are {above}'),
            ({'version': 'v2', 'data-file': 'd'}, f'External data files are {above}'),
            ({'version': 'v2', 'refcount-bits': 8}, 'Different refcount widths than 16 bits require compatibility level '
                                                    '1.1 or above (use version=v3 or greater)'),
            ({'refcount-bits': 0}, 'Refcount width must be a power of two and may not exceed 64 bits'),
            ({'refcount-bits': 128}, 'Refcount width must be a power of two and may not exceed 64 bits'),
            ({'extended-l2': True, 'cluster-size': 8192},
             'Extended L2 entries are only supported with cluster sizes of at least 16384 bytes'),
            ({'backing-fmt': 'raw'}, 'Backing format cannot be used without backing file'),
            ({'backing-file': 'x' * 1100, 'backing-fmt': 'raw'},
             'Backing file name too long: it has 1100 bytes, the limit is 1023'),
            ({'backing-file': 'x', 'backing-fmt': 'raw', 'preallocation': 'metadata'},
             'Backing file and preallocation can only be used at the same time if extended_l2 is on'),
            ({'data-file-raw': True}, 'data-file-raw requires data-file'),
            ({'data-file': 'd', 'data-file-raw': True, 'backing-file': 'x'},
             'Backing file and data-file-raw cannot be used at the same time'),
            ({'data-file': 'none'}, "Cannot find device='none' nor node-name='none'"),
            ({'file': 'none'}, "Cannot find device='none' nor node-name='none'"),
        ]
        for more, error in refused:
            with self.subTest(**more):
                self.run_job({'driver': 'qcow2', 'file': 'i', 'size': SIZE, **more}, error)
        self.fails(self.d, "Parameter 'options.size' is unexpected", 'blockdev-create', job_id='c',
                   options={'driver': 'raw', 'size': SIZE})
        self.fails(self.d, 'Driver does not support blockdev-create', 'blockdev-create', job_id='c',
                   options={'driver': 'raw'})

    def test_in_use(self):
        """An image that somebody works with is not overwritten."""
        image = sd.create_image(self.path('used'), 'qcow2', SIZE, data=[(0, sd.MIB, 9)])
        self.d.cmd('blockdev-add', driver='file', node_name='f', filename=image)
        self.d.cmd('blockdev-add', driver='qcow2', node_name='q', file='f')
        self.d.cmd('blockdev-create', job_id='c', options={'driver': 'qcow2', 'file': 'f', 'size': SIZE})
        self.d.event_wait('JOB_STATUS_CHANGE', {'id': 'c', 'status': 'concluded'})
        self.assertIn('Permission conflict', self.d.cmd('query-jobs')[0]['error'])
        sd.qemu_io(self.d.export('q'), 'read -P 9 0 1M', fmt='raw', readonly=True)

    def test_events(self):
        path = self.node('i')
        for size, error, states in ((SIZE, None, ('created', 'running', 'waiting', 'pending')),
                                    (1, 'Image size must be a multiple of 512 bytes', ('created', 'running', 'aborting'))):
            self.run_job({'driver': 'qcow2', 'file': 'i', 'size': size}, error)
            self.assertEqual([*states, 'null'],
                             [e['data']['status'] for e in self.d.take_events('JOB_STATUS_CHANGE')])
        self.fails(self.d, 'Job not found', 'job-cancel', id='c')
        self.assertEqual(SIZE, sd.image_info(path)['virtual-size'])
        self.assertEqual([], self.d.cmd('query-block-jobs'))


if __name__ == '__main__':
    sd.main()
