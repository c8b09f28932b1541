"""qcow2 as we make it, in every pair of options: qemu-img reads and checks it, and repairs it when it is damaged."""
import itertools

from check_images import ours
from qcow2_options import DEFAULTS, IMPOSSIBLE, OptionCase, REFUSED, SECRET, SIZE, pairwise
import sd


class Refused(Exception):
    """An image is not made."""


class MadeHere(OptionCase):
    def create(self, row, name):
        """The image that @row describes, empty; what lies below is what the backing file reads."""
        path, base = self.path(f'{name}.qcow2'), self.path('below.raw')
        d = self.daemon(*SECRET)
        o = {'driver': 'qcow2', 'file': 'f', 'size': SIZE, 'version': 'v2' if row['compat'] == '0.10' else 'v3',
             'cluster-size': int(row['cluster_size']), 'preallocation': row['preallocation']}
        more = {'refcount-bits': int(row['refcount_bits']), 'lazy-refcounts': row['lazy_refcounts'] == 'on',
                'compression-type': row['compression_type'], 'extended-l2': row['extended_l2'] == 'on'}
        o.update({k: v for k, v in more.items() if row['compat'] == '1.1' or v not in (16, False, 'zlib')})
        if row['data_file'] != 'none':
            o.update({'data-file': 'd', 'data-file-raw': row['data_file'] == 'raw'})
        if row['encryption'] == 'luks':
            o['encrypt'] = {'format': 'luks', 'key-secret': 's', 'iter-time': 20}
        below = bytearray(SIZE)
        if row['backing'] != 'none':
            size = SIZE if row['backing'] != 'short' else 3 * sd.MIB
            below[:size] = self.content(2, size)
            fmt = 'qcow2' if row['backing'] == 'qcow2' else 'raw'
            with open(base, 'wb') as f:
                f.write(below[:size])
            if fmt == 'qcow2':
                base = self.path('below.qcow2')
                sd.qemu_img('convert', '-f', 'raw', '-O', 'qcow2', self.path('below.raw'), base)
            o.update({'backing-file': base, 'backing-fmt': fmt})
        for node, file in (('f', path), ('d', path + '.data')):
            if node == 'f' or 'data-file' in o:
                d.cmd('blockdev-create', job_id='c', options={'driver': 'file', 'filename': file, 'size': 0})
                self.job_end(d)
                d.cmd('blockdev-add', driver='file', node_name=node, filename=file)
        d.cmd('blockdev-create', job_id='c', options=o)
        self.job_end(d)
        d.shutdown()
        return path, below

    def job_end(self, d):
        """Raises what the job says went wrong."""
        d.event_wait('JOB_STATUS_CHANGE', {'id': 'c', 'status': 'concluded'})
        job, = d.cmd('query-jobs')
        d.cmd('job-dismiss', id='c')
        if 'error' in job:
            raise Refused(job['error'])

    def compress(self, d, row, data, clusters):
        """Writes compressed clusters: number, value."""
        cluster = int(row['cluster_size'])
        for gc, value in clusters:
            d.cmd('human-monitor-command', command_line=f'qemu-io q "write -c -P {value} {gc * cluster} {cluster}"')
            data[gc * cluster:(gc + 1) * cluster] = bytes([value]) * cluster

    def test_what_is_impossible(self):
        """What no row has is refused, and the error names an option."""
        for reason, rule in IMPOSSIBLE + REFUSED:
            if not {'data', 'snapshots', 'bitmaps'} & set(rule):
                for values in itertools.product(*rule.values()):
                    with self.subTest(reason, **dict(zip(rule, values))):
                        with self.assertRaisesRegex(Refused, r'compat|version|cluster|data.file|preallocation'):
                            self.create({**DEFAULTS, **dict(zip(rule, values))}, 'i')

    def test_every_pair_1(self):
        self.every_pair(0)

    def test_every_pair_2(self):
        self.every_pair(1)

    def test_every_pair_3(self):
        self.every_pair(2)

    def every_pair(self, part):
        for i, row in list(enumerate(pairwise(IMPOSSIBLE + REFUSED)))[part::3]:
            with self.subTest(**row):
                path, data = self.create(row, f'i{i}')
                self.assertTrue(self.raw(row, path) == data, 'qemu-img reads something else in the new image')
                opts = self.options(row, path)
                d = self.daemon(*SECRET, '--blockdev', f'{opts},node-name=q')
                with sd.nbd_connect(d.export('q', writable=True)) as h:
                    self.unit = h.get_block_size(0) or 1
                    if row['data'] == 'compressed':
                        self.compress(d, row, data, ((0, 1), (1, 2), (2, 3), (1, 4)))
                    else:
                        noise = self.content(1, sd.MIB)
                        h.pwrite(bytes(noise), 2 * sd.MIB)
                        data[2 * sd.MIB:3 * sd.MIB] = noise
                    kept = bytes(data)
                    if row['snapshots'] == 'one':
                        d.cmd('blockdev-snapshot-internal-sync', device='q', name='kept')
                    if row['bitmaps'] == 'one':
                        d.cmd('block-dirty-bitmap-add', node='q', name='b0', persistent=True)
                    self.writes(h, data)
                    if row['data'] == 'compressed':
                        self.compress(d, row, data, ((2, 5),))
                    self.assertTrue(self.read_all(h) == data, 'we read something else than we wrote')
                d.shutdown()
                self.check_content(row, path, data, kept)
                self.assertEqual(row['data'] == 'compressed', bool(ours(path)[1].get('compressed-clusters')))
                self.check_repairs(row, path, data, lambda r=row, p=path: self.verdict(r, p, '-r', 'all'))


if __name__ == '__main__':
    sd.main()
