"""drive-mirror to a target that exists, has a backing file and clusters larger than the job's granularity."""
import sd


class WholeClusters(sd.Case):
    def test_rest_of_a_cluster_comes_from_the_source(self):
        """sync=top copies what the top image holds; the target would fill up the cluster around it from a backing file
        of its own, which says something else here."""
        base = sd.create_image(self.path('base.raw'), 'raw', 2 * sd.MIB, data=[(0, 2 * sd.MIB, 0x11)])
        other = sd.create_image(self.path('other.raw'), 'raw', 2 * sd.MIB, data=[(0, 2 * sd.MIB, 0x22)])
        top = sd.create_image(self.path('top.qcow2'), 'qcow2', backing=base, backing_fmt='raw',
                              data=[(sd.MIB + 65536, 512, 0x33)])
        target = sd.create_image(self.path('t.qcow2'), 'qcow2', backing=other, backing_fmt='raw',
                                 options={'cluster_size': 131072})
        d = self.daemon('--drive', f'id=drive0,file={top},format=qcow2')
        d.cmd('drive-mirror', device='drive0', target=target, format='qcow2', sync='top', mode='existing')
        d.complete('drive0')
        d.shutdown()
        sd.qemu_io(target, 'read -P 0x11 1M 64k', f'read -P 0x33 {sd.MIB + 65536} 512',
                   f'read -P 0x11 {sd.MIB + 66048} 65024', 'read -P 0x22 0 1M', 'read -P 0x22 1152k 896k', fmt='qcow2')
        sd.check_image(target)

    def test_writes_meanwhile(self):
        """The same for what a client writes into a cluster that the target has not got."""
        base = sd.create_image(self.path('base.raw'), 'raw', 2 * sd.MIB, data=[(0, 2 * sd.MIB, 0x11)])
        other = sd.create_image(self.path('other.raw'), 'raw', 2 * sd.MIB, data=[(0, 2 * sd.MIB, 0x22)])
        top = sd.create_image(self.path('top.qcow2'), 'qcow2', backing=base, backing_fmt='raw')
        target = sd.create_image(self.path('t.qcow2'), 'qcow2', backing=other, backing_fmt='raw',
                                 options={'cluster_size': 131072})
        d = self.daemon('--drive', f'id=drive0,file={top},format=qcow2')
        d.cmd('drive-mirror', device='drive0', target=target, format='qcow2', sync='top', mode='existing')
        d.wait_ready('drive0')
        d.cmd('human-monitor-command', command_line='qemu-io drive0 "write -P 0x44 192k 4k"')
        d.complete('drive0')
        d.shutdown()
        sd.qemu_io(target, 'read -P 0x11 128k 64k', 'read -P 0x44 192k 4k', 'read -P 0x11 196k 60k', 'read -P 0x22 0 128k',
                   fmt='qcow2')

    def test_subclusters(self):
        """Of a target's clusters with extended entries only the subclusters that are touched are copied whole."""
        base = sd.create_image(self.path('base.raw'), 'raw', 8 * sd.MIB, data=[(0, 8 * sd.MIB, 0x11)])
        for command in 'drive-mirror', 'drive-backup':
            with self.subTest(command):
                top = sd.create_image(self.path(command), 'qcow2', backing=base, backing_fmt='raw',
                                      data=[(n * 2 * sd.MIB + sd.MIB, 512, 0x33) for n in range(4)])
                target = sd.create_image(self.path(command + '.t'), 'qcow2', backing=base, backing_fmt='raw',
                                         options={'cluster_size': '2M', 'extended_l2': 'on'})
                d = self.daemon('--drive', f'id=drive0,file={top},format=qcow2')
                d.cmd(command, device='drive0', target=target, format='qcow2', sync='top', mode='existing')
                if command == 'drive-mirror':
                    d.complete('drive0')
                else:
                    d.event_wait('BLOCK_JOB_COMPLETED')
                d.shutdown()
                self.assertImagesEqual(top, target, 'qcow2', 'qcow2')
                data = sum(e['length'] for e in sd.image_map(target) if e['depth'] == 0 and e['data'])
                self.assertEqual(data, 4 * 65536)
                sd.check_image(target)


class ZeroesAreWritten(sd.Case):
    """While a mirror with sync=top runs, its target has no backing file yet and reads as zeroes. What clients zero has to
    be zeroed there all the same: the backing file comes at the end."""

    def chain(self, fmt, **options):
        base = sd.create_image(self.path('base.raw'), 'raw', 4 * sd.MIB, data=[(0, 4 * sd.MIB, 0x11)])
        top = sd.create_image(self.path('top.' + fmt), fmt, backing=base, backing_fmt='raw')
        return base, top, self.daemon('--drive', f'id=drive0,file={top},format={fmt},discard=unmap')

    def zero_some(self, d):
        for command in ('write -z 256k 192k', 'write -z -u 1M 64k', 'write -P 0 1088k 64k', 'write -z 2M 1000'):
            self.assertNotIn('fail', d.cmd('human-monitor-command', command_line=f'qemu-io drive0 "{command}"'))

    def judge(self, target, fmt):
        sd.qemu_io(target, 'read -P 0x11 0 256k', 'read -P 0 256k 192k', 'read -P 0x11 448k 576k', 'read -P 0 1M 128k',
                   'read -P 0x11 1152k 896k', 'read -P 0 2M 1000', f'read -P 0x11 {2 * sd.MIB + 1000} 1M', fmt=fmt)
        sd.check_image(target, fmt)

    def test_new_target(self):
        for fmt in ('qcow2', 'qed'):
            for copy_mode in ('background', 'write-blocking'):
                with self.subTest(fmt, copy_mode=copy_mode):
                    base, top, d = self.chain(fmt)
                    target = self.path(f'{copy_mode}.{fmt}')
                    d.cmd('drive-mirror', device='drive0', target=target, format=fmt, sync='top', copy_mode=copy_mode)
                    d.wait_ready('drive0')
                    self.zero_some(d)
                    d.complete('drive0')
                    out = d.cmd('human-monitor-command', command_line='qemu-io drive0 "read -P 0 256k 192k"')
                    self.assertNotIn('verification failed', out)
                    d.shutdown()
                    self.judge(target, fmt)

    def test_target_opened_without_its_backing_file(self):
        """As libvirt does: whoever opens the image by name afterwards finds the backing file that its header names.
        With sync=full all of the target must cover it, be it with zeroes."""
        for sync, compat in (('top', '1.1'), ('full', '1.1'), ('full', '0.10')):
            with self.subTest(sync, compat=compat):
                base, top, d = self.chain('qcow2')
                other = base
                if sync == 'full':
                    other = sd.create_image(self.path('other.raw'), 'raw', 4 * sd.MIB, data=[(0, 4 * sd.MIB, 0x22)])
                    self.zero_some(d)
                target = sd.create_image(self.path('target.qcow2'), 'qcow2', backing=other, backing_fmt='raw',
                                         options={'compat': compat})
                d.cmd('blockdev-add', driver='qcow2', node_name='t', backing=None,
                      file={'driver': 'file', 'filename': target})
                d.cmd('blockdev-mirror', job_id='m', device='drive0', target='t', sync=sync)
                d.wait_ready('m')
                self.zero_some(d)
                d.complete('m')
                d.shutdown()
                self.judge(target, 'qcow2')


if __name__ == '__main__':
    sd.main()
