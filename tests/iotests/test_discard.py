"""What becomes of discards in qcow2 images: pass-discard-request, discard-no-unref."""
import os

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


if __name__ == '__main__':
    sd.main()
