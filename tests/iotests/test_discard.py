"""What becomes of discards in qcow2 images: pass-discard-request, discard-no-unref."""
import errno
import os

import nbd
import sd

SIZE = 8 * sd.MIB


class Discard(sd.Case):
    def start(self, create=None, **more):
        self.image = sd.create_image(self.path('image'), 'qcow2', SIZE, options=create)
        sd.qemu_io(self.image, f'write -P 1 0 {SIZE}')
        self.d = self.daemon()
        self.d.cmd('blockdev-add', {'driver': 'qcow2', 'node-name': 'q', 'discard': 'unmap',
                                    'file': {'driver': 'file', 'filename': self.image}, **more})
        return self.d.export('q', writable=True)

    def space(self):
        return os.stat(self.image).st_blocks * 512

    def test_places_are_kept(self):
        uri = self.start(**{'discard-no-unref': True})
        length = os.path.getsize(self.image)
        with sd.nbd_connect(uri) as h:
            for _ in range(3):
                h.trim(SIZE, 0)
                self.assertLess(self.space(), SIZE // 4)
                self.assertEqual(bytes(SIZE), h.pread(SIZE, 0))
                for at in reversed(range(0, SIZE, 65536)):
                    h.pwrite(b'\2' * 512, at)
                h.zero(SIZE // 2, 0)
                h.flush()
        self.assertEqual(length, os.path.getsize(self.image))
        self.d.shutdown()
        sd.check_image(self.image)
        sd.qemu_io(self.image, f'read -P 0 0 {SIZE // 2}', f'read -P 2 {SIZE // 2} 512', readonly=True)
        # In the order in which they were at first, not in that of the later writes.
        data = [e for e in sd.image_map(self.image) if 'offset' in e]
        self.assertEqual(1, len({e['offset'] - e['start'] for e in data}))

    def test_not_passed_on(self):
        for more in ({}, {'discard-no-unref': True}):
            with self.subTest(**more):
                uri = self.start(**{'pass-discard-request': False}, **more)
                with sd.nbd_connect(uri) as h:
                    h.trim(SIZE, 0)
                    h.flush()
                    self.assertEqual(bytes(SIZE), h.pread(SIZE, 0))
                self.assertGreaterEqual(self.space(), SIZE)
                self.d.shutdown()
                sd.check_image(self.image)

    def test_version_2(self):
        image = sd.create_image(self.path('old'), 'qcow2', SIZE, options={'compat': '0.10'})
        self.fails(self.daemon(), 'discard-no-unref is only supported since qcow2 version 3', 'blockdev-add',
                   {'driver': 'qcow2', 'node-name': 'q', 'file': {'driver': 'file', 'filename': image},
                    'discard-no-unref': True})

    def full(self):
        """All of a file that cannot grow is in use, by the first SIZE bytes of a larger disk."""
        space = SIZE + 16 * 65536
        image = sd.create_image(self.path('full'), 'qcow2', 4 * SIZE)
        os.truncate(image, space)
        self.d = self.daemon()
        self.d.cmd('blockdev-add', {'driver': 'qcow2', 'node-name': 'q', 'discard': 'unmap', 'file': {
            'driver': 'raw', 'size': space, 'file': {'driver': 'file', 'filename': image}}})
        return image, self.d.export('q', writable=True)

    def fill(self, h, start, byte):
        """Writes until there is no space left; how far it came."""
        for at in range(start, start + SIZE, 65536):
            try:
                h.pwrite(bytes([byte]) * 65536, at)
            except nbd.Error as e:
                self.assertEqual(errno.ENOSPC, e.errnum)
                return at - start
        return SIZE

    def test_space_is_used_again(self):
        """Nobody flushes, but what was discarded is free when it is needed."""
        image, uri = self.full()
        with sd.nbd_connect(uri) as h:
            self.assertEqual(SIZE, self.fill(h, 0, 1))
            for i in range(1, 4):
                h.trim(SIZE, (i - 1) * SIZE)
                self.assertEqual(SIZE, self.fill(h, i * SIZE, i + 1), f'round {i}')
            self.assertLess(self.fill(h, 0, 5), SIZE)
            self.assertEqual(b'\4' * SIZE, h.pread(SIZE, 3 * SIZE))
            h.zero(SIZE, 3 * SIZE)  # and so is what was zeroed, by whatever needs space
        self.d.cmd('blockdev-snapshot-internal-sync', device='q', name='s')
        self.d.cmd('block-dirty-bitmap-add', node='q', name='b', persistent=True)
        self.d.shutdown()
        sd.check_image(image)
        self.assertEqual(['b'], [b['name'] for b in sd.image_info(image)['format-specific']['data']['bitmaps']])


if __name__ == '__main__':
    sd.main()
