"""change-backing-file: another name in an image's header, and nothing else."""
import sd
from jobs import JobCase


class ChangeBacking(JobCase):
    def setUp(self):
        self.base = sd.create_image(self.path('base'), 'raw', sd.MIB, data=[(0, sd.MIB, 0x11)])
        self.mid = sd.create_image(self.path('mid'), 'qcow2', backing=self.base, backing_fmt='raw',
                                   data=[(0, sd.MIB, 0x11)])
        self.top = sd.create_image(self.path('top'), 'qcow2', backing=self.mid)
        self.lone = sd.create_image(self.path('lone'), 'qcow2', sd.MIB)

    def start(self):
        d = self.daemon()
        self.node(d, 'top', self.top, 'qcow2', backing={
            'driver': 'qcow2', 'node-name': 'mid', 'file': {'driver': 'file', 'filename': self.mid},
            'backing': {'driver': 'raw', 'node-name': 'base', 'file': {'driver': 'file', 'filename': self.base}}})
        self.node(d, 'lone', self.lone, 'qcow2')
        return d

    def change(self, d, image, name, device='top'):
        d.cmd('change-backing-file', device=device, image_node_name=image, backing_file=name)

    def test_names(self):
        d = self.start()
        self.change(d, 'top', 'elsewhere')
        self.change(d, 'mid', '/srv/base')  # read-only, and so it is afterwards
        self.assertTrue(d.node('mid')['ro'])
        self.assertEqual(d.node('top')['image']['backing-filename'], 'elsewhere')
        uri = d.export('top')
        with sd.nbd_connect(uri) as h:
            self.assertEqual(h.pread(65536, 0), b'\x11' * 65536)
        self.assertIn('mid', [n['node-name'] for n in d.cmd('query-named-block-nodes')])
        d.shutdown()
        for image, name, fmt in (self.top, 'elsewhere', 'qcow2'), (self.mid, '/srv/base', 'raw'):
            info = sd.image_info(image)
            self.assertEqual((info['backing-filename'], info['backing-filename-format']), (name, fmt))

    def test_none(self):
        d = self.start()
        self.change(d, 'mid', '')
        d.shutdown()
        self.assertNotIn('backing-filename', sd.image_info(self.mid))

    def test_qed(self):
        image = sd.create_image(self.path('q'), 'qed', backing=self.base, backing_fmt='raw')
        d = self.daemon()
        self.node(d, 'q', image, 'qed')
        self.change(d, 'q', '../base', device='q')
        d.shutdown()
        self.assertEqual(sd.image_info(image)['backing-filename'], '../base')

    def test_refused(self):
        d = self.start()

        def fails(text, device='top', image='top', name='x'):
            self.fails(d, text, 'change-backing-file', device=device, image_node_name=image, backing_file=name)

        fails("Cannot find device='nope' nor node-name='nope'", device='nope')
        fails("Cannot find device='' nor node-name='nope'", image='nope')
        fails('Need a root block node', device='mid')
        fails('not allowing backing file change on an image without a backing file', image='lone')
        fails('not allowing backing file change on an image without a backing file', image='base')
        fails("'lone' and image file are not in the same chain", device='lone', image='mid')
        fails("Could not change backing file to 'xxx", name='x' * 1024)
        d.cmd('block-commit', job_id='j', device='top', top_node='mid', base_node='base', speed=1)
        fails('is busy', image='mid')
        d.cmd('block-job-cancel', device='j', force=True)
        d.event_wait('BLOCK_JOB_CANCELLED')
        self.change(d, 'top', 'x')


if __name__ == '__main__':
    sd.main()
