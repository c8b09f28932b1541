"""Encrypted images go back and forth between qemu-img and us: every cipher, mode, IV generator and hash both know."""
import os
import random
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'iotests'))
import sd

SIZE = 3 * sd.MIB + 5 * 512
SECRET = 'correct horse'
OBJECT = f'secret,id=s,data={SECRET}'
FAST = 20  # ms of PBKDF2; on a busy machine qemu-img may fail to measure so little, and is asked again

# Those that qemu-img makes: cipher, mode, IV generator, hash of it, hash
MATRIX = (
    ('aes-256', 'xts', 'plain64', None, 'sha256'),
    ('aes-128', 'cbc', 'essiv', 'md5', 'ripemd160'),
    ('serpent-256', 'xts', 'essiv', 'sha256', 'sha1'),
    ('cast5-128', 'ctr', 'plain', None, 'sha512'),
)


class Encryption(sd.Case):
    def options(self, path, encrypt='luks'):
        """Of the image, for --image-opts."""
        return f'driver=qcow2,encrypt.format={encrypt},encrypt.key-secret=s,file.driver=file,file.filename={path}'

    def blockdev(self, path, encrypt='luks', **more):
        return {'driver': 'qcow2', 'node-name': 'q', 'encrypt': {'format': encrypt, 'key-secret': 's'},
                'file': {'driver': 'file', 'filename': path}, **more}

    def to_raw(self, path, encrypt='luks'):
        """What qemu-img reads."""
        raw = self.path('out.raw')
        sd.qemu_img('convert', '--object', OBJECT, '--image-opts', '-O', 'raw', self.options(path, encrypt), raw)
        with open(raw, 'rb') as f:
            return f.read()

    def writes(self, h, data, seed):
        rng = random.Random(seed)
        for i in range(40):
            start = rng.randrange(SIZE // 512) * 512
            length = min(rng.choice((512, 1024, 4096, 65536, 200192, 1500160)), SIZE - start)
            if i % 5 == 4:
                h.zero(length, start)
                data[start:start + length] = bytes(length)
            else:
                noise = rng.randbytes(length)
                h.pwrite(noise, start)
                data[start:start + length] = noise
        h.flush()

    def back_and_forth(self, path, data, encrypt='luks'):
        """We read what qemu-img wrote, and the other way round; no plain text reaches the file."""
        d = self.daemon('--object', OBJECT)
        d.cmd('blockdev-add', self.blockdev(path, encrypt))
        with sd.nbd_connect(d.export('q', writable=True)) as h:
            self.assertEqual(SIZE, h.get_size())
            self.assertTrue(h.pread(SIZE, 0) == data, 'we read something else than qemu-img wrote')
            self.writes(h, data, 1)
            self.assertTrue(h.pread(SIZE, 0) == data, 'we read something else than we wrote')
            for at in range(0, SIZE - 4096, 77824):
                self.assertEqual(h.pread(1536, at), data[at:at + 1536])
            mark = b'not for everybody.' * 512
            h.pwrite(mark, 512)
            data[512:512 + len(mark)] = mark
        d.shutdown()
        self.assertTrue(self.to_raw(path, encrypt) == data, 'qemu-img reads something else than we wrote')
        with open(path, 'rb') as f:
            self.assertNotIn(b'not for everybody', f.read())
        sd.qemu_img('check', '--object', OBJECT, '--image-opts', self.options(path, encrypt))

    def source(self):
        data = bytearray(random.Random(5).randbytes(SIZE))
        data[sd.MIB:2 * sd.MIB] = bytes(sd.MIB)
        with open(self.path('source.raw'), 'wb') as f:
            f.write(data)
        return data

    def convert(self, path, options):
        sd.qemu_img('convert', '--object', OBJECT, '-f', 'raw', '-O', 'qcow2', '-o', options, self.path('source.raw'), path)

    def test_luks(self):
        for i, (cipher, mode, ivgen, ivhash, hash_alg) in enumerate(MATRIX):
            with self.subTest(cipher=cipher, mode=mode, ivgen=ivgen, hash=hash_alg):
                data, path = self.source(), self.path(f'{i}.qcow2')
                o = (f'cluster_size={(65536, 4096, 512, 2097152)[i % 4]},compat={("1.1", "0.10")[i % 5 == 4]},'
                     f'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time={FAST},encrypt.cipher-alg={cipher},'
                     f'encrypt.cipher-mode={mode},encrypt.ivgen-alg={ivgen},encrypt.hash-alg={hash_alg}')
                self.convert(path, o + (f',encrypt.ivgen-hash-alg={ivhash}' if ivhash else ''))
                self.back_and_forth(path, data)

    def test_extended_l2(self):
        data, path = self.source(), self.path('x.qcow2')
        self.convert(path, f'extended_l2=on,encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time={FAST}')
        self.back_and_forth(path, data)

    def test_aes(self):
        for cluster_size in (512, 65536):
            with self.subTest(cluster_size=cluster_size):
                data, path = self.source(), self.path(f'{cluster_size}.qcow2')
                self.convert(path, f'cluster_size={cluster_size},encrypt.format=aes,encrypt.key-secret=s')
                self.back_and_forth(path, data, 'aes')


if __name__ == '__main__':
    sd.main()
