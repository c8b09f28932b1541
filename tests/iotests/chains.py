"""Shared by the tests of commit and stream: a chain of images with an NBD client on top."""
import sd
from jobs import JobCase

SIZE = 8 * sd.MIB


class ChainCase(JobCase):
    def image(self, i):
        return self.path(f'{i}.img')

    def make_images(self, n=4, size=SIZE, fmts=None, options=None):
        """Images 0 … n-1, each on the one before, with data of its own in the i-th and (i+1)-th MiB."""
        self.fmts = fmts or ['qcow2'] * n
        for i in range(n):
            below = {'backing': self.image(i - 1), 'backing_fmt': self.fmts[i - 1]} if i else {}
            sd.create_image(self.image(i), self.fmts[i], size, options=options, **below)
            sd.write_pattern(self.image(i), self.fmts[i], (i * sd.MIB, 2 * sd.MIB - 512, 0x10 + i))
        # What the whole must read as, whatever becomes of the chain.
        sd.qemu_img('convert', '-O', 'raw', '-f', self.fmts[-1], self.image(n - 1), self.path('want'))

    def options(self, i):
        o = {'driver': self.fmts[i], 'node-name': f'n{i}', 'file': {
            'driver': 'file', 'node-name': f'f{i}', 'filename': self.image(i)}}
        if self.fmts[i] != 'raw':
            o['backing'] = self.options(i - 1) if i else None
        return o

    def start(self, n=4, **more):
        """A daemon on the chain, nodes n0 …, the topmost exported for writing."""
        self.make_images(n, **more)
        return self.open(n - 1)

    def open(self, top):
        d = self.daemon()
        d.cmd('blockdev-add', self.options(top))
        self.uri = d.export(f'n{top}', name='disk', writable=True)
        return d

    def chain(self, d, top):
        """Node names from @top down."""
        names = []
        infos = {n['node-name']: n for n in d.cmd('query-named-block-nodes')}
        by_file = {n['image']['filename']: name for name, n in infos.items() if n['drv'] in ('qcow2', 'qed', 'raw')}
        info = infos.get(top)
        while info:
            names.append(info['node-name'])
            below = info.get('backing_file')
            info = infos[by_file[below]] if below else None
        return names

    def content(self):
        with sd.nbd_connect(self.uri) as h:
            return h.pread(h.get_size(), 0)

    def want(self):
        with open(self.path('want'), 'rb') as f:
            return f.read()

    def assertWant(self, got):
        self.assertTrue(got == self.want(), 'the disk does not read as it should')

    def assertImage(self, i, fmt='qcow2'):
        """The image, with what its header names below it, reads as the whole."""
        self.assertImagesEqual(self.path('want'), self.image(i), 'raw', fmt)
        if fmt == 'qcow2':
            sd.check_image(self.image(i))

    def backing(self, i):
        return sd.image_info(self.image(i)).get('backing-filename')

    def run_job(self, d, command, job='j', **args):
        d.cmd(command, job_id=job, **args)
        done = d.wait_completed(job)
        self.wait_gone(d, job)
        return done['data']
