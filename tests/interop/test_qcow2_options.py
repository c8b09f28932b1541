"""qcow2 as qemu-img makes it, in every pair of options: we read what it wrote, it reads and checks what we wrote."""
import itertools
import json
import os
import unittest

from check_images import ours
from qcow2_options import (DEFAULTS, IMPOSSIBLE, OptionCase, REFUSED, SECRET, SIZE, all_pairs, impossible_pairs, pairs, pairwise,
                           possible)
import sd


class Pairs(OptionCase):
    def test_all_are_there(self):
        """Each pair of values is in a row, or a rule says why not."""
        for rules in IMPOSSIBLE, IMPOSSIBLE + REFUSED:
            rows = pairwise(rules)
            self.assertEqual(impossible_pairs(rules), all_pairs() - set().union(*map(pairs, rows)))
            self.assertTrue(all(possible(row, rules) for row in rows))

    def test_what_is_impossible(self):
        """qemu-img itself refuses what no row has."""
        for reason, rule in IMPOSSIBLE:
            for values in itertools.product(*rule.values()):
                row = {**DEFAULTS, **dict(zip(rule, values))}
                with self.subTest(reason, **dict(zip(rule, values))):
                    with self.assertRaises(AssertionError):
                        self.add_extras(row, self.image(row, 'i')[0])


class Options(OptionCase):
    def test_every_pair_1(self):
        self.every_pair(0)

    def test_every_pair_2(self):
        self.every_pair(1)

    def test_every_pair_3(self):
        self.every_pair(2)

    def every_pair(self, part):
        rows = pairwise()
        self.assertGreater(len(rows), 10)
        for i, row in list(enumerate(rows))[part::3]:
            with self.subTest(**row):
                path, data = self.image(row, f'i{i}')
                opts, kept = self.options(row, path), bytes(data)
                self.add_extras(row, path)
                d = self.daemon(*SECRET, '--blockdev', f'{opts},node-name=q')
                with sd.nbd_connect(d.export('q', writable=True)) as h:
                    self.unit = h.get_block_size(0) or 1
                    self.assertEqual(SIZE, h.get_size())
                    self.assertTrue(self.read_all(h) == data, 'we read something else than qemu-img wrote')
                    self.writes(h, data)
                    self.assertTrue(self.read_all(h) == data, 'we read something else than we wrote')
                d.shutdown()
                self.check_content(row, path, data, kept)
                self.check_repairs(row, path, data, lambda p=path: ours(p, '--repair', 'all')[0])

    def refused(self, text, path, **options):
        d = self.daemon()
        self.fails(d, text, 'blockdev-add', driver='qcow2', node_name='q', file={'driver': 'file', 'filename': path})
        self.assertEqual([], d.cmd('query-named-block-nodes'))

    @unittest.skipIf(sd.STAND_IN, 'the peer supports it')
    def test_unsupported_is_named(self):
        """What of qcow2 we have not is refused by its name, or works."""
        cases = {'extended_l2': ({'extended_l2': 'on'}, r'(?i)extended|subcluster'),
                 'data_file': ({'data_file': self.path('data'), 'data_file_raw': 'on'}, r'(?i)data.file'),
                 'luks': ({'encrypt.format': 'luks', 'encrypt.key-secret': 's'}, r'(?i)luks|crypt')}
        for name, (options, text) in cases.items():
            with self.subTest(name):
                path = self.path(f'{name}.qcow2')
                for last in (False, False, False, True):  # on a busy machine qemu-img cannot always measure LUKS's cost
                    p = sd.qemu_img('create', '-q', '-f', 'qcow2', '--object', 'secret,id=s,data=x', '-o',
                                    ','.join(f'{k}={v}' for k, v in options.items()), path, '4M', check=last)
                    if p.returncode == 0:
                        break
                d = self.daemon()
                reply = d.qmp('blockdev-add', driver='qcow2', node_name='q', file={'driver': 'file', 'filename': path})
                if 'error' in reply:
                    self.assertRegex(reply['error']['desc'], text)
                    self.assertEqual([], d.cmd('query-named-block-nodes'))
                else:
                    with sd.nbd_connect(d.export('q', writable=True)) as h:
                        h.pwrite(b'x' * 1000, 70000)
                    d.shutdown()
                    sd.check_image(path)

    def test_grows_tables(self):
        """Writes over a large, sparse disk grow the L1 reach and the refcount table."""
        for cluster in ('512', '65536'):
            with self.subTest(cluster):
                path = self.path(f'large-{cluster}.qcow2')
                size = 64 * sd.GIB if cluster == '65536' else sd.GIB
                sd.qemu_img('create', '-q', '-f', 'qcow2', '-o', f'cluster_size={cluster}', path, str(size))
                d = self.daemon('--blockdev', f'qcow2,node-name=q,file.driver=file,file.filename={path}')
                places = [size // 97 * i for i in range(97)] + [size - 512]
                with sd.nbd_connect(d.export('q', writable=True)) as h:
                    for i, place in enumerate(places):
                        h.pwrite(bytes([i + 1]) * 512, place)
                    h.pwrite(os.urandom(8 * sd.MIB), 0)
                    for i, place in enumerate(places[10:], 10):
                        self.assertEqual(bytes([i + 1]) * 512, h.pread(512, place))
                d.shutdown()
                sd.check_image(path)
                sd.qemu_io(path, *(f'read -q -P {i + 1} {place} 512' for i, place in enumerate(places) if i > 9), fmt='qcow2')


if __name__ == '__main__':
    sd.main()
