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


if __name__ == '__main__':
    sd.main()
