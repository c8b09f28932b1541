"""Secrets, encrypted qcow2 images and LUKS volumes as a user meets them. qemu-img's judgement: the passwords it opens an
image with, and what it reads. Images travel in tests/interop/test_encryption.py."""
import base64
import os
import random
import unittest

import sd

SIZE = 2 * sd.MIB + 3 * 512
FAST = 20  # ms of PBKDF2
SECRETS = {'s': 'correct horse', 't': 'battery staple', 'wrong': 'wrong'}

# cipher, mode, IV generator, hash of it, hash: each pair of neighbours somewhere
MATRIX = (
    ('aes-256', 'xts', 'plain64', None, 'sha256'),
    ('aes-128', 'xts', 'plain', None, 'sha1'),
    ('aes-192', 'xts', 'plain64', None, 'sha512'),
    ('aes-256', 'xts', 'essiv', 'sha256', 'sha384'),
    ('aes-128', 'cbc', 'essiv', 'md5', 'ripemd160'),
    ('aes-256', 'cbc', 'essiv', 'sha256', 'sha224'),
    ('aes-256', 'cbc', 'plain', None, 'md5'),
    ('aes-128', 'ecb', 'plain64', None, 'sha256'),
    ('aes-256', 'ctr', 'plain64', None, 'sha256'),
    ('serpent-128', 'xts', 'plain64', None, 'sha256'),
    ('serpent-256', 'xts', 'essiv', 'sha256', 'sha1'),
    ('serpent-256', 'cbc', 'plain64', None, 'sha512'),
    ('serpent-256', 'ecb', 'plain', None, 'sha256'),
    ('twofish-128', 'ctr', 'plain', None, 'ripemd160'),
    ('twofish-256', 'xts', 'plain64', None, 'sha256'),
    ('twofish-256', 'cbc', 'essiv', 'sha256', 'sha256'),
    ('cast5-128', 'cbc', 'plain64', None, 'sha256'),
    ('cast5-128', 'ctr', 'plain', None, 'sha1'),
    ('cast5-128', 'ecb', 'plain64', None, 'sha512'),
)


def file(path):
    return {'driver': 'file', 'filename': path}


def concluded(case, d, job, error=None):
    """Waits for the end of a job that says nothing but that, and dismisses it."""
    d.event_wait('JOB_STATUS_CHANGE', {'id': job, 'status': 'concluded'})
    found = next(j for j in d.cmd('query-jobs') if j['id'] == job).get('error')
    if error:
        case.assertIn(error, found)
    else:
        case.assertIsNone(found)
    d.cmd('job-dismiss', id=job)


class EncryptionCase(sd.Case):
    def setUp(self):
        self.d = self.daemon()
        for name, data in SECRETS.items():
            self.d.cmd('object-add', qom_type='secret', id=name, data=data)

    def make(self, name, fmt='qcow2', **options):
        """An image of ours; its path."""
        path = self.path(name)
        self.d.cmd('blockdev-create', job_id='c', options={'driver': 'file', 'filename': path, 'size': 0})
        concluded(self, self.d, 'c')
        if fmt == 'luks':
            options = {'key-secret': 's', 'iter-time': FAST, **options}
        self.d.cmd('blockdev-create', job_id='c', options={'driver': fmt, 'file': file(path), 'size': SIZE, **options})
        concluded(self, self.d, 'c')
        return path

    def luks(self, secret='s', **options):
        return {'format': 'luks', 'key-secret': secret, 'iter-time': FAST, **options}

    def qemu_options(self, path, fmt='qcow2', secret='s'):
        key = 'key-secret' if fmt == 'luks' else 'encrypt.key-secret'
        return ('--object', f'secret,id={secret},data={SECRETS[secret]}', '--image-opts',
                f'driver={fmt},{key}={secret},file.driver=file,file.filename={path}')

    def qemu_reads(self, path, fmt='qcow2', secret='s'):
        raw = self.path('out.raw')
        *opts, image = self.qemu_options(path, fmt, secret)
        sd.qemu_img('convert', *opts, '-O', 'raw', image, raw)
        with open(raw, 'rb') as f:
            return f.read()

    def qemu_opens(self, path, fmt, secret):
        p = sd.run('qemu-io', '-r', '-c', 'read 0 512', *self.qemu_options(path, fmt, secret), check=False)
        if 'Invalid password' in p.stderr:
            return False
        self.assertIn('read 512/512 bytes', p.stdout)
        return True

    def add(self, path, fmt='qcow2', secret='s', name='n', **more):
        key = {'key-secret': secret} if fmt == 'luks' else {'encrypt': {'format': 'luks', 'key-secret': secret}}
        self.d.cmd('blockdev-add', {'driver': fmt, 'node-name': name, 'file': file(path), **key, **more})

    def noise(self, name='n'):
        """Writes through an export; what the disk then reads as."""
        data = bytearray(SIZE)
        rng = random.Random(1)
        with sd.nbd_connect(self.d.export(name, writable=True)) as h:
            self.assertEqual(SIZE, h.get_size())
            for i in range(24):
                start = rng.randrange(SIZE // 512) * 512
                length = min(rng.choice((512, 4096, 65536, 300032)), SIZE - start)
                piece = bytes(length) if i % 5 == 4 else rng.randbytes(length)
                h.pwrite(piece, start) if any(piece) else h.zero(length, start)
                data[start:start + length] = piece
            h.flush()
            self.assertTrue(h.pread(SIZE, 0) == data, 'we read something else than we wrote')
        self.d.cmd('block-export-del', id=f'exp-{name}')
        self.d.event_wait('BLOCK_EXPORT_DELETED')
        return data


class Images(EncryptionCase):
    def test_every_cipher(self):
        """What we make, qemu-img reads."""
        for i, (cipher, mode, ivgen, ivhash, hash_alg) in enumerate(MATRIX):
            with self.subTest(cipher=cipher, mode=mode, ivgen=ivgen, hash=hash_alg):
                o = {'cipher-alg': cipher, 'cipher-mode': mode, 'ivgen-alg': ivgen, 'hash-alg': hash_alg}
                if ivhash:
                    o['ivgen-hash-alg'] = ivhash
                fmt = 'luks' if i % 4 == 3 else 'qcow2'
                if fmt == 'luks':
                    path = self.make(f'i{i}', 'luks', **o)
                else:
                    path = self.make(f'i{i}', encrypt=self.luks(**o), **{'cluster-size': (65536, 512, 4096)[i % 3]})
                self.add(path, fmt)
                data = self.noise() if fmt == 'qcow2' else None
                if fmt == 'luks':
                    with sd.nbd_connect(self.d.export('n', writable=True)) as h:
                        data = random.Random(i).randbytes(SIZE)
                        h.pwrite(data, 0)
                    self.d.cmd('block-export-del', id='exp-n')
                    self.d.event_wait('BLOCK_EXPORT_DELETED')
                self.d.cmd('blockdev-del', node_name='n')
                self.assertTrue(self.qemu_reads(path, fmt) == data, 'qemu-img reads something else than we wrote')
                if fmt == 'qcow2':
                    sd.qemu_img('check', *self.qemu_options(path))

    def test_kinds_of_images(self):
        """Preallocated, with subclusters, with a data file, the old AES, over a backing file."""
        rows = {'prepared': {'preallocation': 'metadata'}, 'full': {'preallocation': 'full'},
                'subclusters': {'extended-l2': True, 'preallocation': 'metadata'}, 'v2': {'version': 'v2'},
                'data file': {'data-file': True}, 'aes': {'encrypt': {'format': 'qcow', 'key-secret': 's'}}}
        for name, o in rows.items():
            with self.subTest(name):
                if 'data-file' in o:
                    with open(self.path('data'), 'wb'):
                        pass
                    o = {**o, 'data-file': file(self.path('data'))}
                path = self.make('image', **{'encrypt': self.luks(), **o})
                scheme = 'aes' if name == 'aes' else 'luks'
                self.d.cmd('blockdev-add', {'driver': 'qcow2', 'node-name': 'n', 'file': file(path),
                                            'encrypt': {'format': scheme, 'key-secret': 's'}})
                with sd.nbd_connect(self.d.export('n')) as h:
                    self.assertEqual(bytes(SIZE), h.pread(SIZE, 0))
                self.d.cmd('block-export-del', id='exp-n')
                self.d.event_wait('BLOCK_EXPORT_DELETED')
                data = self.noise()
                self.d.cmd('blockdev-del', node_name='n')
                self.assertTrue(self.qemu_reads(path) == data)
                sd.qemu_img('check', *self.qemu_options(path))

    def test_backing_snapshot_and_jobs(self):
        base = self.make('base', encrypt=self.luks())
        self.add(base, name='base')
        data = self.noise('base')
        top = self.make('top', encrypt=self.luks('t'))
        self.add(top, secret='t', name='top', backing=None)
        self.d.cmd('blockdev-snapshot', node='base', overlay='top')
        with sd.nbd_connect(self.d.export('top', writable=True)) as h:
            h.pwrite(b'x' * 1024, 70144)
            data[70144:71168] = b'x' * 1024
            self.assertTrue(h.pread(SIZE, 0) == data)
        plain = sd.create_image(self.path('plain'), 'qcow2', SIZE)
        self.d.cmd('blockdev-add', driver='qcow2', node_name='plain', file=file(plain))
        self.d.cmd('blockdev-backup', job_id='b', device='top', target='plain', sync='full')
        self.d.wait_completed('b')
        again = self.make('again', encrypt=self.luks())
        self.add(again, name='again')
        self.d.cmd('blockdev-mirror', job_id='m', device='top', target='again', sync='full')
        self.d.complete('m')
        self.d.shutdown()
        with open(self.path('want.raw'), 'wb') as f:
            f.write(data)
        self.assertImagesEqual(plain, self.path('want.raw'), 'qcow2', 'raw')
        self.assertTrue(self.qemu_reads(again) == data)
        with open(again, 'rb') as f:
            self.assertNotIn(b'x' * 64, f.read())

    def test_compressed_clusters_are_refused(self):
        """They would not be encrypted: a backup that asks for them fails, and nothing of the source is in the image."""
        text = b'nobody shall find this. ' * 20000
        source = self.path('source')
        with open(source, 'wb') as f:
            f.write(text[:SIZE].ljust(SIZE, b'\0'))
        image = self.make('image', encrypt=self.luks())
        self.add(image, name='n')
        self.d.cmd('blockdev-add', driver='file', node_name='source', filename=source)
        self.d.cmd('blockdev-backup', job_id='b', device='source', target='n', sync='full', compress=True)
        self.d.wait_completed('b', error='Operation not supported')
        self.d.shutdown()
        self.assertFalse(any(self.qemu_reads(image)))

    def test_queries_show_no_password(self):
        path = self.make('image', encrypt=self.luks())
        self.add(path)
        node = self.d.node('n')
        self.assertTrue(node['encrypted'] and node['image']['encrypted'])
        info = node['image']['format-specific']['data']['encrypt']
        self.assertSubset({'format': 'luks', 'cipher-alg': 'aes-256', 'cipher-mode': 'xts', 'ivgen-alg': 'plain64',
                           'hash-alg': 'sha256', 'payload-offset': 2068480}, info)
        self.assertEqual([True] + 7 * [False], [s['active'] for s in info['slots']])
        theirs = sd.qemu_img('info', '-U', '--output=json', *self.qemu_options(path)).stdout
        self.assertIn(info['uuid'], theirs)
        self.assertNotIn('ivgen-hash-alg', info)
        everything = repr(self.d.cmd('query-named-block-nodes')) + repr(self.d.cmd('qom-list', path='/objects/s'))
        self.fails(self.d, "Property 'secret.data' is not readable", 'qom-get', path='/objects/s', property='data')
        self.assertNotIn(SECRETS['s'], everything)
        # A reader of the file below would get noise: the map does not lead there.
        with sd.nbd_connect(self.d.export('n', writable=True)) as h:
            h.pwrite(b'x' * 65536, 0)
        self.d.shutdown()
        self.assertNotIn(SECRETS['s'], self.d.stderr())

    def test_refused(self):
        path, plain = self.make('image', encrypt=self.luks()), sd.create_image(self.path('plain'), 'qcow2', SIZE)
        base = {'driver': 'qcow2', 'node-name': 'n'}
        for text, p, encrypt in (
                ("Parameter 'encrypt.key-secret' is required for cipher", path, None),
                ("Parameter 'encrypt.key-secret' is required for cipher", path, {'format': 'luks'}),
                ("Header reported 'luks' encryption format but options specify 'aes'", path,
                 {'format': 'aes', 'key-secret': 's'}),
                ("No secret with id 'nobody'", path, {'format': 'luks', 'key-secret': 'nobody'}),
                ('Invalid password, cannot unlock any keyslot', path, {'format': 'luks', 'key-secret': 'wrong'}),
                ("No encryption in image header, but options specified format 'luks'", plain,
                 {'format': 'luks', 'key-secret': 's'})):
            with self.subTest(text):
                self.fails(self.d, text, 'blockdev-add',
                           {**base, 'file': file(p), **({'encrypt': encrypt} if encrypt else {})})
        self.fails(self.d, "Parameter 'key-secret' is required for cipher", 'blockdev-add', driver='luks',
                   node_name='n', file=file(path))
        self.fails(self.d, 'Volume is not in LUKS format', 'blockdev-add', driver='luks', node_name='n',
                   key_secret='s', file=file(path))
        for text, o in (("Parameter 'encrypt.key-secret' is required for cipher", {'format': 'luks'}),
                        ("No secret with id 'nobody'", self.luks('nobody')),
                        ('iter-time must be non-zero', self.luks(**{'iter-time': 0})),
                        ("cannot be used in mode 'xts'", self.luks(**{'cipher-alg': 'cast5-128'})),
                        ("'essiv' with hash 'sha1'", self.luks(**{'ivgen-alg': 'essiv', 'ivgen-hash-alg': 'sha1'}))):
            with self.subTest(text):
                self.d.cmd('blockdev-create', job_id='c', options={
                    'driver': 'qcow2', 'file': file(plain), 'size': SIZE, 'encrypt': o})
                concluded(self, self.d, 'c', text)
        sd.check_image(plain)  # nothing of it was touched
        self.assertEqual([], self.d.cmd('query-named-block-nodes'))


class Slots(EncryptionCase):
    def amend(self, fmt, error=None, force=False, **o):
        options = {'driver': 'luks', **o} if fmt == 'luks' else {'driver': 'qcow2', 'encrypt': {'format': 'luks', **o}}
        self.d.cmd('x-blockdev-amend', job_id='a', node_name='n', options=options, force=force)
        concluded(self, self.d, 'a', error)

    def slots(self, fmt):
        data = self.d.node('n')['image']['format-specific']['data']
        return [i for i, s in enumerate((data if fmt == 'luks' else data['encrypt'])['slots']) if s['active']]

    def test_change_of_passwords(self):
        for fmt in ('qcow2', 'luks'):
            with self.subTest(fmt):
                path = self.make(fmt, fmt, **({} if fmt == 'luks' else {'encrypt': self.luks()}))
                self.add(path, fmt)
                new = {'state': 'active', 'new-secret': 't', 'iter-time': FAST}
                self.amend(fmt, **new)
                self.assertEqual([0, 1], self.slots(fmt))
                self.amend(fmt, **new, keyslot=5)
                self.amend(fmt, error='Refusing to overwrite active keyslot 5', **new, keyslot=5)
                self.amend(fmt, error='Invalid keyslot 8 specified', **new, keyslot=8)
                self.amend(fmt, error='Invalid password', **new, secret='wrong')
                self.amend(fmt, error='No keyslots match', state='inactive', **{'old-secret': 'wrong'})
                self.assertEqual([0, 1, 5], self.slots(fmt))
                self.amend(fmt, state='inactive', **{'old-secret': 't'})
                self.assertEqual([0], self.slots(fmt))
                self.amend(fmt, error='refusing operation', state='inactive', keyslot=0)
                self.amend(fmt, error='refusing operation', state='inactive', **{'old-secret': 's'})
                self.amend(fmt, **new)
                self.amend(fmt, state='inactive', keyslot=0)
                self.assertEqual([1], self.slots(fmt))
                self.amend(fmt, error='Invalid password', **new)  # the secret that opened it is none any more
                self.amend(fmt, force=True, secret='t', **{**new, 'new-secret': 's'}, keyslot=1)
                self.amend(fmt, secret='s', **new)
                self.d.cmd('blockdev-del', node_name='n')
                self.assertTrue(self.qemu_opens(path, fmt, 's'))
                self.assertTrue(self.qemu_opens(path, fmt, 't'))
                self.assertFalse(self.qemu_opens(path, fmt, 'wrong'))
                self.add(path, fmt, secret='t')
                self.amend(fmt, force=True, state='inactive', **{'old-secret': 't'})
                self.amend(fmt, force=True, state='inactive', keyslot=1)
                self.d.cmd('blockdev-del', node_name='n')
                self.assertFalse(self.qemu_opens(path, fmt, 's') or self.qemu_opens(path, fmt, 't'))

    def test_all_slots(self):
        path = self.make('image', 'luks')
        self.add(path, 'luks')
        for i in range(1, 8):
            self.amend('luks', state='active', **{'new-secret': 't', 'iter-time': 1})
        self.amend('luks', error="Can't add a keyslot - all keyslots are in use", state='active',
                   **{'new-secret': 't', 'iter-time': 1})
        self.assertEqual(list(range(8)), self.slots('luks'))

    def test_refused(self):
        self.fails(self.d, "Cannot find device='' nor node-name='n'", 'x-blockdev-amend', job_id='a', node_name='n',
                   options={'driver': 'qcow2'})
        path = self.make('image', encrypt=self.luks())
        self.add(path, **{'read-only': True})
        self.fails(self.d, "x-blockdev-amend doesn't support changing the block driver", 'x-blockdev-amend', job_id='a',
                   node_name='n', options={'driver': 'luks', 'state': 'active'})
        self.amend('qcow2', error="Node 'n' is read-only", state='active', **{'new-secret': 't'})
        plain = sd.create_image(self.path('plain'), 'qcow2', SIZE)
        self.d.cmd('blockdev-del', node_name='n')
        self.d.cmd('blockdev-add', driver='qcow2', node_name='n', file=file(plain))
        self.amend('qcow2', error="image is not encrypted, can't amend", state='active', **{'new-secret': 't'})


class Secrets(sd.Case):
    KEY = base64.b64encode(bytes(range(32))).decode()
    IV = base64.b64encode(b'0123456789abcdef').decode()

    def test_errors(self):
        d = self.daemon()
        d.cmd('object-add', qom_type='secret', id='master', data=self.KEY, format='base64')
        d.cmd('object-add', qom_type='secret', id='short', data='abc')
        for text, o in (("Either 'file' or 'data' must be provided", {}),
                        ("'file' and 'data' are mutually exclusive", {'data': 'x', 'file': 'y'}),
                        ('Unable to read /nowhere/at/all', {'file': '/nowhere/at/all'}),
                        ('a secret has at most 1048576 bytes', {'file': '/dev/zero'}),
                        ('Base64 data contains invalid characters', {'data': 'a-b', 'format': 'base64'}),
                        ("No secret with id 'nobody'", {'data': 'x', 'keyid': 'nobody'}),
                        ('IV is required to decrypt secret', {'data': 'x', 'keyid': 'master'}),
                        ('IV should be 16 bytes in length not 3', {'data': 'x', 'keyid': 'master', 'iv': 'AAAA'}),
                        ('Length 3 must be a multiple of block size 16', {'data': 'abc', 'keyid': 'master',
                                                                          'iv': self.IV}),
                        ('Key should be 32 bytes in length', {'data': 'x', 'keyid': 'short', 'iv': self.IV}),
                        ('Incorrect number of padding bytes', {'data': self.IV, 'format': 'base64',
                                                               'keyid': 'master', 'iv': self.IV}),
                        ("attempt to add duplicate property 'short'", {'data': 'x', 'id': 'short'})):
            with self.subTest(text):
                self.fails(d, text, 'object-add', {'qom-type': 'secret', 'id': 'x', **o})
        self.assertEqual('raw', d.cmd('qom-get', path='short', property='format'))
        d.cmd('object-del', id='short')

    def test_encrypted_secret_file_and_command_line(self):
        """A password from a file, encrypted under a master key, opens what qemu-img made with it."""
        key, iv = bytes(range(32)), b'0123456789abcdef'
        p = sd.run('openssl', 'enc', '-aes-256-cbc', '-K', key.hex(), '-iv', iv.hex(), '-base64', '-A',
                   input='correct horse', check=False) if os.path.exists('/usr/bin/openssl') else None
        if not p or p.returncode:
            raise unittest.SkipTest('no openssl')
        with open(self.path('password'), 'w') as f:
            f.write(p.stdout.strip() + '\n')
        d = self.daemon('--object', f'secret,id=master,data={self.KEY},format=base64',
                        '--object', f'secret,id=s,keyid=master,iv={self.IV},format=base64,file={self.path("password")}',
                        '--object', 'secret,id=same,data=correct horse')
        path = self.path('image')
        with open(path, 'wb'):
            pass
        d.cmd('blockdev-create', job_id='c', options={'driver': 'luks', 'file': file(path), 'size': SIZE,
                                                      'key-secret': 's', 'iter-time': FAST})
        concluded(self, d, 'c')
        d.cmd('blockdev-add', driver='luks', node_name='n', key_secret='same', file=file(path))
        d.cmd('object-del', id='same')


if __name__ == '__main__':
    sd.main()
