"""qed images as a user meets them: options, queries, drives, jobs from, to and over them."""
import sd

SIZE = 8 * sd.MIB


def blockdev(path, name='q', **more):
    return {'driver': 'qed', 'node-name': name, 'file': {'driver': 'file', 'filename': path}, **more}


class Qed(sd.Case):
    def setUp(self):
        self.d = self.daemon()
        self.base = sd.create_image(self.path('base'), 'raw', SIZE, data=[(0, SIZE, 1)])
        self.image = sd.create_image(self.path('image'), 'qed', SIZE, self.base, 'raw',
                                     data=[(sd.MIB, sd.MIB, 2)], options={'cluster_size': 4096})

    def test_queries(self):
        self.d.cmd('blockdev-add', blockdev(self.image))
        info = self.d.node('q')
        self.assertSubset({'drv': 'qed', 'file': self.image, 'backing_file': self.base, 'backing_file_depth': 1,
                           'ro': False}, info)
        self.assertSubset({'format': 'qed', 'virtual-size': SIZE, 'cluster-size': 4096, 'dirty-flag': False,
                           'backing-filename': self.base, 'backing-filename-format': 'raw'}, info['image'])
        uri = self.d.export('q', writable=True)
        sd.qemu_io(uri, 'write -P 3 4M 4k', 'read -P 1 0 1M', 'read -P 2 1M 1M', 'read -P 1 2M 2M', 'read -P 3 4M 4k',
                   fmt='raw')
        self.assertTrue(self.d.node('q')['image']['dirty-flag'])
        with sd.nbd_connect(uri, meta=('base:allocation',)) as h:
            h.zero(sd.MIB, 6 * sd.MIB)
            extents = sd.nbd_extents(h, 'base:allocation')
        self.assertIn((6 * sd.MIB, sd.MIB, 3), extents)  # a hole that reads as zeroes
        self.d.cmd('block-export-del', id='exp-q')
        self.d.event_wait('BLOCK_EXPORT_DELETED')
        self.d.cmd('blockdev-del', node_name='q')
        sd.check_image(self.image, 'qed')
        sd.qemu_io(self.image, 'read -P 0 6M 1M', 'read -P 1 7M 1M', fmt='qed', readonly=True)

    def test_options(self):
        self.fails(self.d, "Parameter 'l2-cache-size' is unexpected", 'blockdev-add',
                   blockdev(self.image, **{'l2-cache-size': 4096}))
        self.fails(self.d, 'Image not in QED format', 'blockdev-add', blockdev(self.base))
        self.fails(self.d, 'file', 'blockdev-add', {'driver': 'qed', 'node-name': 'x'})
        self.d.cmd('blockdev-add', blockdev(self.image, backing=None))
        self.assertNotIn('backing_file', self.d.node('q'))

    def test_drive_probes(self):
        d = self.daemon('--drive', f'id=disk,file={self.image}')
        self.assertEqual('qed', d.cmd('query-block')[0]['inserted']['drv'])

    def test_mirror(self):
        """Onto a new image beside the source, with clients writing, and on with the copy."""
        target = self.path('target')
        d = self.daemon('--drive', f'id=disk,file={self.image},format=qed,node-name=top')
        uri = d.export('top', writable=True)
        d.cmd('drive-mirror', job_id='m', device='disk', target=target, sync='top', format='qed')
        with sd.nbd_connect(uri) as h:
            for i in range(64):
                h.pwrite(bytes([5]) * 5000, i * 100000)
            d.complete('m')
            for i in range(64):
                h.pwrite(bytes([6]) * 3000, i * 100000)
            h.flush()
        d.shutdown()
        info = sd.image_info(target)
        self.assertSubset({'format': 'qed', 'backing-filename-format': 'raw', 'dirty-flag': False}, info)
        sd.check_image(target, 'qed')
        sd.check_image(self.image, 'qed')
        sd.qemu_io(target, 'read -P 6 0 3000', 'read -P 5 3000 2000', 'read -P 1 5000 95000', 'read -P 1 7M 1M',
                   fmt='qed', readonly=True)

    def test_backup(self):
        """Between formats, both ways."""
        self.d.cmd('blockdev-add', blockdev(self.image))
        for fmt in ('qcow2', 'qed'):
            self.d.cmd('drive-backup', job_id='b', device='q', target=self.path(fmt), sync='full', format=fmt)
            self.d.wait_completed('b')
            self.assertImagesEqual(self.image, self.path(fmt), 'qed', fmt)
            sd.check_image(self.path(fmt), fmt)

    def test_create_refuses(self):
        self.d.cmd('blockdev-add', {'driver': 'raw', 'node-name': 'r',
                                    'file': {'driver': 'file', 'filename': self.base}})
        uri = self.d.export('r', writable=True)
        d = self.daemon('--blockdev', 'null-co,node-name=n,size=1048576,read-zeroes=on')
        self.fails(d, 'needs a file that can grow', 'drive-mirror', job_id='m', device='n', target=uri, sync='full',
                   format='qed')

    def test_reopen_for_writing(self):
        """Snapshots leave the old top read-only and closed."""
        d = self.daemon('--drive', f'id=disk,file={self.image},format=qed,node-name=top')
        with sd.nbd_connect(d.export('top', writable=True)) as h:
            h.pwrite(b'x' * 4096, 0)
            d.cmd('blockdev-snapshot-sync', device='disk', snapshot_file=self.path('snap'), format='qed')
            self.assertEqual('qed', d.cmd('query-block')[0]['inserted']['drv'])
            h.pwrite(b'y' * 4096, 4096)
            h.flush()
        sd.check_image(self.image, 'qed')
        d.shutdown()
        sd.check_image(self.path('snap'), 'qed')
        sd.qemu_io(self.path('snap'), 'read -P 120 0 4k', 'read -P 121 4k 4k', 'read -P 1 8k 4k', fmt='qed', readonly=True)


if __name__ == '__main__':
    sd.main()
