"""block_resize: sizes, bitmaps, exports, and who refuses."""
import sd


class Resize(sd.Case):
    def start(self, fmt, size=sd.MIB):
        self.img = sd.create_image(self.path(f'a.{fmt}'), fmt, size)
        return self.daemon('--drive', f'id=drive0,file={self.img},format={fmt},node-name=n')

    def size(self, d, node='n'):
        return d.node(node)['image']['virtual-size']

    def test_grow_and_shrink(self):
        for fmt in ('raw', 'qcow2'):
            with self.subTest(fmt):
                d = self.start(fmt)
                d.cmd('block_resize', device='drive0', size=3 * sd.MIB)
                self.assertEqual(3 * sd.MIB, self.size(d))
                d.cmd('human-monitor-command', command_line='qemu-io drive0 "write -P 5 2M 1M"')
                d.cmd('block_resize', node_name='n', size=2 * sd.MIB + 65536)
                self.assertEqual(2 * sd.MIB + 65536, self.size(d))
                d.cmd('block_resize', device='drive0', size=3 * sd.MIB)
                d.shutdown()
                # What was cut off does not come back.
                sd.qemu_io(self.img, 'read -P 0 0 2M', 'read -P 5 2M 64k', f'read -P 0 {2 * sd.MIB + 65536} 960k', fmt=fmt)
                self.assertEqual(3 * sd.MIB, sd.image_info(self.img, '-f', fmt)['virtual-size'])
                if fmt == 'qcow2':
                    sd.check_image(self.img)

    def test_grow_over_a_longer_backing_file(self):
        """What the backing file has behind the old end does not come to light."""
        for compat in ('1.1', '0.10'):
            with self.subTest(compat):
                base = sd.create_image(self.path(f'base-{compat}'), 'raw', 4 * sd.MIB, data=[(0, 4 * sd.MIB, 0x11)])
                top = self.path(f'top-{compat}')
                sd.run('qemu-img', 'create', '-q', '-f', 'qcow2', '-b', base, '-F', 'raw', '-o', f'compat={compat}', top,
                       '1M')
                d = self.daemon()
                d.cmd('blockdev-add', driver='copy-on-read', node_name='f',
                      file={'driver': 'qcow2', 'node-name': 'n', 'file': {'driver': 'file', 'filename': top}})
                d.cmd('block-dirty-bitmap-add', node='n', name='b', granularity=65536)
                d.cmd('block_resize', node_name='n', size=3 * sd.MIB)
                self.assertEqual(2 * sd.MIB, d.bitmap('n', 'b')['count'])
                d.cmd('block_resize', node_name='f', size=6 * sd.MIB)
                d.shutdown()
                sd.qemu_io(top, 'read -P 0x11 0 1M', 'read -P 0 1M 5M', fmt='qcow2')
                sd.check_image(top)

    def test_bitmaps_grow(self):
        d = self.start('qcow2')
        d.cmd('block-dirty-bitmap-add', node='drive0', name='b', granularity=65536)
        d.cmd('human-monitor-command', command_line='qemu-io drive0 "write 960k 64k"')
        d.cmd('block_resize', device='drive0', size=65 * sd.MIB)
        self.assertEqual(65536, d.bitmap('n', 'b')['count'])
        d.cmd('human-monitor-command', command_line='qemu-io drive0 "write 64M 128k"')
        self.assertEqual(3 * 65536, d.bitmap('n', 'b')['count'])
        # And the backup that uses it takes what lies past the old end.
        target = sd.create_image(self.path('t.qcow2'), 'qcow2', 65 * sd.MIB)
        d.cmd('drive-backup', device='drive0', sync='incremental', bitmap='b', target=target, mode='existing',
              format='qcow2', job_id='j')
        d.wait_completed('j')
        d.shutdown()
        self.assertImagesEqual(self.img, target, 'qcow2', 'qcow2')

    def test_bitmaps_shrink(self):
        d = self.start('raw')
        d.cmd('block-dirty-bitmap-add', node='n', name='b', granularity=65536)
        d.cmd('human-monitor-command', command_line='qemu-io drive0 "write 512k 512k"')
        d.cmd('block_resize', node_name='n', size=768 * 1024)
        self.assertEqual(256 * 1024, d.bitmap('n', 'b')['count'])
        d.cmd('block_resize', node_name='n', size=2 * sd.MIB)
        self.assertEqual(256 * 1024, d.bitmap('n', 'b')['count'])

    def test_refused(self):
        d = self.start('qcow2')
        ro = sd.create_image(self.path('ro.raw'), 'raw', sd.MIB)
        d.cmd('blockdev-add', driver='raw', node_name='ro', read_only=True, file={'driver': 'file', 'filename': ro})
        d.cmd('blockdev-add', driver='null-co', node_name='null')
        self.fails(d, "Parameter 'size' expects a >0 size", 'block_resize', device='drive0', size=-1)
        self.fails(d, "Either 'device' or 'node-name' must be set but not both", 'block_resize', size=1)
        self.fails(d, "Either 'device' or 'node-name' must be set but not both", 'block_resize', device='drive0',
                   node_name='n', size=1)
        self.fails(d, 'Cannot find', 'block_resize', device='x', size=1)
        self.fails(d, 'Cannot find', 'block_resize', node_name='drive0', size=1)
        self.fails(d, 'read-only', 'block_resize', node_name='ro', size=1)
        self.fails(d, 'does not support resize', 'block_resize', node_name='null', size=1)
        self.assertEqual(sd.MIB, self.size(d))

    def test_refused_while_exported(self):
        d = self.start('qcow2')
        d.export('n')
        self.fails(d, "permissions 'resize' are both required by an unnamed block device (uses node 'n' as 'root' child) "
                   'and unshared by nbd export', 'block_resize', node_name='n', size=2 * sd.MIB)
        self.assertEqual(sd.MIB, self.size(d))

    def test_refused_while_a_job_holds_it(self):
        d = self.start('qcow2')
        d.cmd('drive-mirror', device='drive0', target=self.path('t.qcow2'), format='qcow2', sync='full', node_name='t')
        d.wait_ready('drive0')
        for name, node in (({'device': 'drive0'}, 'n'), ({'node_name': 'n'}, 'n'), ({'node_name': 't'}, 't')):
            with self.subTest(name):
                self.fails(d, f"Node '{node}' is busy: block device is in use by block job: mirror", 'block_resize',
                           size=2 * sd.MIB, **name)
        d.complete('drive0')
        d.cmd('block_resize', device='drive0', size=2 * sd.MIB)
        self.assertEqual(2 * sd.MIB, self.size(d, 't'))

    def test_refused_by_an_export(self):
        """An NBD client was told the size when it came."""
        d = self.start('raw')
        d.export('n', writable=True)
        reply = d.qmp('block_resize', device='drive0', size=2 * sd.MIB)
        self.assertIn('resize', reply['error']['desc'])
        d.cmd('block-export-del', id='exp-n')
        d.event_wait('BLOCK_EXPORT_DELETED')
        d.cmd('block_resize', device='drive0', size=2 * sd.MIB)

    def test_odd_sizes(self):
        d = self.start('raw')
        d.cmd('block_resize', device='drive0', size=sd.MIB + 1)
        self.assertGreaterEqual(self.size(d), sd.MIB + 1)
        d.cmd('block_resize', device='drive0', size=0)
        self.assertEqual(0, self.size(d))
        self.fails(d, '', 'block_resize', device='drive0', size=2**63 - 1)
        self.assertEqual(0, self.size(d))


if __name__ == '__main__':
    sd.main()
