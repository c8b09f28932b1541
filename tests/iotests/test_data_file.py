"""qcow2 images whose data lies in a file of its own."""
import os

import sd

SIZE = 8 * sd.MIB


def blockdev(path, name='q', **more):
    return {'driver': 'qcow2', 'node-name': name, 'file': {'driver': 'file', 'filename': path}, **more}


class DataFile(sd.Case):
    def image(self, name='image', raw=False, backing=None, **options):
        options = {'data_file': self.path(name + '.data'), 'data_file_raw': 'on' if raw else 'off', **options}
        return sd.create_image(self.path(name), 'qcow2', SIZE, backing, backing and 'raw', options=options)

    def test_by_name(self):
        image = self.image()
        sd.qemu_io(image, 'write -P 1 1M 1M')
        d = self.daemon()
        d.cmd('blockdev-add', blockdev(image, discard='unmap'))
        node = d.node('q')
        self.assertEqual(image, node['file'])
        self.assertSubset({'data-file': self.path('image.data'), 'data-file-raw': False},
                          node['image']['format-specific']['data'])
        edges = d.cmd('x-debug-query-block-graph')['edges']
        self.assertEqual({'file': {'consistent-read', 'write-unchanged'},
                          'data-file': {'consistent-read', 'write', 'write-unchanged'}},
                         {e['name']: set(e['shared-perm']) for e in edges})
        uri = d.export('q', writable=True)
        with sd.nbd_connect(uri, meta=('base:allocation',)) as h:
            self.assertEqual(b'\1' * sd.MIB, h.pread(sd.MIB, sd.MIB))
            h.pwrite(b'\2' * 5000, 3 * sd.MIB + 100)
            h.zero(sd.MIB // 2, sd.MIB)
            h.trim(sd.MIB // 4, 3 * sd.MIB // 2)
            self.assertIn((0, 7 * sd.MIB // 4, 3), sd.nbd_extents(h, 'base:allocation'))
        d.shutdown()
        sd.check_image(image)
        sd.qemu_io(image, 'read -P 0 1M 768k', 'read -P 1 1792k 256k', 'read -P 0 3M 100', f'read -P 2 {3 * sd.MIB + 100} 5000',
                   readonly=True)
        # What has been given back is gone from the data file, and nothing of the data is in the image.
        self.assertLess(os.stat(self.path('image.data')).st_blocks * 512, sd.MIB)
        self.assertLess(os.path.getsize(image), sd.MIB)

    def test_by_option(self):
        image = self.image()
        other = sd.create_image(self.path('other'), 'raw', SIZE, data=[(0, SIZE, 7)])
        sd.qemu_io(image, f'write -P 1 0 {SIZE}')
        d = self.daemon()
        d.cmd('blockdev-add', {'driver': 'file', 'node-name': 'data', 'filename': other})
        d.cmd('blockdev-add', blockdev(image, **{'data-file': 'data'}))
        self.assertTrue(d.node('q')['file'].startswith('json:'))
        sd.qemu_io(d.export('q', writable=True), f'read -P 7 0 {SIZE}', 'write -P 8 0 64k', fmt='raw')
        d.shutdown()
        sd.qemu_io(other, 'read -P 8 0 64k', f'read -P 7 64k {SIZE - 65536}', fmt='raw', readonly=True)
        sd.qemu_io(image, f'read -P 1 0 {SIZE}', readonly=True)

    def test_refusals(self):
        plain = sd.create_image(self.path('plain'), 'qcow2', SIZE)
        image = self.image()
        d = self.daemon()
        self.fails(d, "'data-file' can only be set for images with an external data file", 'blockdev-add',
                   blockdev(plain, **{'data-file': {'driver': 'null-co'}}))
        with open(image, 'r+b') as f:  # the name's extension becomes one that nobody knows
            f.seek(112)
            self.assertEqual(b'DATA', f.read(4))
            f.seek(112)
            f.write(b'none')
        self.fails(d, "'data-file' is required for this image", 'blockdev-add', blockdev(image))
        d.cmd('blockdev-add', blockdev(image, **{'data-file': {'driver': 'file',
                                                               'filename': self.path('image.data')}}))
        self.assertNotIn('data-file', d.node('q')['image']['format-specific']['data'])

    def test_names_are_policy(self):
        base = sd.create_image(self.path('base'), 'raw', SIZE)
        image, overlay = self.image(), sd.create_image(self.path('overlay'), 'qcow2', SIZE, base, 'raw')
        d = self.daemon('--refuse-image-names')
        self.fails(d, f"names another file, '{self.path('image.data')}'", 'blockdev-add', blockdev(image))
        self.fails(d, f"names another file, '{base}'", 'blockdev-add', blockdev(overlay))
        d.cmd('blockdev-add', blockdev(overlay, backing=None))
        d.cmd('blockdev-add', blockdev(image, 'i', **{'data-file': {'driver': 'file',
                                                                    'filename': self.path('image.data')}}))

    def test_raw(self):
        """Who reads the data file sees what clients see, whatever they do."""
        image = self.image(raw=True)
        d = self.daemon()
        d.cmd('blockdev-add', blockdev(image, discard='unmap'))
        uri = d.export('q', writable=True)
        with sd.nbd_connect(uri) as h:
            for i in range(64):
                h.pwrite(bytes([i + 1]) * 100000, i * 120000)
                h.zero(30000 + i * 512, i * 130000 % (SIZE - sd.MIB))
                h.trim(65536 * (i % 5 + 1), i * 140000 % (SIZE - sd.MIB))
            h.flush()
        d.cmd('block-export-del', id='exp-q')
        d.event_wait('BLOCK_EXPORT_DELETED')
        d.cmd('block_resize', node_name='q', size=SIZE + 4096)
        d.shutdown()
        sd.check_image(image)
        self.assertTrue(sd.image_info(image)['format-specific']['data']['data-file-raw'])
        self.assertImagesEqual(image, self.path('image.data'), 'qcow2', 'raw')
        self.assertEqual(SIZE + 4096, os.path.getsize(self.path('image.data')))

    def test_resize(self):
        image = self.image()
        sd.qemu_io(image, f'write -P 1 0 {SIZE}')
        d = self.daemon()
        d.cmd('blockdev-add', blockdev(image))
        for size in (4 * sd.MIB + 512, 6 * sd.MIB):
            d.cmd('block_resize', node_name='q', size=size)
            self.assertEqual(size, os.path.getsize(self.path('image.data')))
        d.shutdown()
        sd.check_image(image)
        sd.qemu_io(image, f'read -P 1 0 {4 * sd.MIB + 512}', f'read -P 0 {4 * sd.MIB + 512} {2 * sd.MIB - 512}')

    def test_commit_makes_it_writable(self):
        """The data file follows its image from read-only to writable."""
        base = self.image('base')
        sd.qemu_io(base, f'write -P 1 0 {SIZE}')
        overlay = sd.create_image(self.path('overlay'), 'qcow2', SIZE, base, 'qcow2', data=[(sd.MIB, sd.MIB, 2)])
        d = self.daemon()
        d.cmd('blockdev-add', blockdev(overlay))
        d.cmd('block-commit', job_id='c', device='q')
        d.complete('c')
        d.shutdown()
        sd.check_image(base)
        sd.qemu_io(base, 'read -P 1 0 1M', 'read -P 2 1M 1M', 'read -P 1 2M 6M', readonly=True)


if __name__ == '__main__':
    sd.main()
