"""qcow2 with extended L2 entries, under jobs and clients; qemu-img judges what is left."""
import sd
from chains import ChainCase
from jobs import JobCase, Writer

SUBCLUSTERS = {'extended_l2': 'on', 'cluster_size': '128k'}
CLUSTER, SUB = 131072, 4096


class Chains(ChainCase):
    def test_stream(self):
        d = self.start(options=SUBCLUSTERS)
        with_client = Writer(self.uri, sd.MIB)
        with_client.start()
        with_client.wait_for(20)
        self.run_job(d, 'block-stream', device='n3', base_node='n0')
        model = with_client.stop()
        got = self.content()
        self.assertTrue(got[:sd.MIB] == model and got[sd.MIB:] == self.want()[sd.MIB:])
        d.shutdown()
        for i in (0, 3):
            sd.check_image(self.image(i))

    def test_commit(self):
        for args in ({'top_node': 'n2', 'base_node': 'n0'}, {'top_node': 'n1'}):
            with self.subTest(**args):
                d = self.start(options=SUBCLUSTERS)
                self.run_job(d, 'block-commit', device='n3', **args)
                self.assertWant(self.content())
                d.shutdown()
                self.assertImage(3)
                sd.check_image(self.image(0))


class Copies(JobCase):
    DATA = [(0, 5000, 1), (300000, 70000, 2), (sd.MIB, sd.MIB, 3), (3 * sd.MIB - 512, 512, 4)]

    def copy(self, job, options, target_options):
        d = self.daemon()
        a, b = self.pair(d, 'qcow2', size=4 * sd.MIB, data=self.DATA, options=options, target_options=target_options)
        writer = Writer(d.export('src', name='disk', writable=True), 4 * sd.MIB, pause=0.001)
        if job == 'mirror':
            writer.start()
            writer.wait_for(20)
        d.cmd(f'blockdev-{job}', job_id='j', device='src', target='dst', sync='full')
        if job == 'mirror':
            d.wait_ready('j')
            writer.stop()
            d.complete('j')
        else:
            d.wait_completed('j')
        d.shutdown()
        self.assertImagesEqual(a, b, 'qcow2', 'qcow2')
        for path in (a, b):
            sd.check_image(path)

    def test_copies(self):
        for job in ('mirror', 'backup'):
            for options in ((SUBCLUSTERS, None), (None, SUBCLUSTERS), (SUBCLUSTERS, SUBCLUSTERS)):
                with self.subTest(job=job, options=options):
                    self.copy(job, *options)


class Clients(sd.Case):
    def image(self, *runs):
        base = sd.create_image(self.path('base.raw'), 'raw', 4 * sd.MIB, data=[(0, 4 * sd.MIB, 0x11)])
        return sd.create_image(self.path('top.qcow2'), 'qcow2', backing=base, backing_fmt='raw', options=SUBCLUSTERS,
                               data=runs)

    def allocated(self, path):
        return [(e['start'], e['length']) for e in sd.image_map(path) if e['depth'] == 0]

    def test_copy_on_read_by_subclusters(self):
        top = self.image()
        d = self.daemon()
        d.cmd('blockdev-add', driver='copy-on-read', node_name='cor', file={
            'driver': 'qcow2', 'file': {'driver': 'file', 'filename': top}})
        with sd.nbd_connect(d.export('cor', writable=True)) as h:
            self.assertEqual(b'\x11' * 512, bytes(h.pread(512, CLUSTER + 3 * SUB + 100)))
        d.shutdown()
        self.assertEqual([(CLUSTER + 3 * SUB, SUB)], self.allocated(top))
        sd.check_image(top)

    def test_small_requests_stay_small(self):
        top = self.image()
        d = self.daemon('--blockdev', f'file,node-name=f,filename={top},discard=unmap',
                        '--blockdev', 'qcow2,node-name=q,file=f,discard=unmap')
        with sd.nbd_connect(d.export('q', writable=True)) as h:
            h.pwrite(b'x' * 512, 5 * SUB)
            h.zero(SUB, CLUSTER + SUB)
            h.pwrite(b'y' * 2 * SUB, 2 * CLUSTER + 10 * SUB)
            h.trim(SUB, 2 * CLUSTER + 10 * SUB)
            self.assertEqual(b'\x11' * 512 + b'x' * 512, bytes(h.pread(1024, 5 * SUB - 512)))
            self.assertEqual(bytes(SUB) + b'y' * SUB, bytes(h.pread(2 * SUB, 2 * CLUSTER + 10 * SUB)))
        d.shutdown()
        self.assertEqual([(5 * SUB, SUB), (CLUSTER + SUB, SUB), (2 * CLUSTER + 10 * SUB, SUB),
                          (2 * CLUSTER + 11 * SUB, SUB)], self.allocated(top))
        sd.check_image(top)

    def test_facts_are_those_of_qemu(self):
        """The same node in qemu-storage-daemon."""
        top = self.image((0, 4096, 1), (500000, 12345, 2))
        said = []
        for program in (None, '/usr/bin/qemu-storage-daemon'):
            with sd.Daemon('--blockdev', f'file,node-name=f,filename={top}', '--blockdev', 'qcow2,node-name=q,file=f',
                           **({'program': program} if program else {})) as d:
                said.append(d.node('q')['image'])
        self.assertEqual(said[1]['format-specific'], said[0]['format-specific'])
        self.assertEqual(said[1]['cluster-size'], said[0]['cluster-size'])


if __name__ == '__main__':
    sd.main()
