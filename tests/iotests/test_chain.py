"""Backing chains: deep ones, ones that bite their own tail, names of overridden backing files."""
import json
import unittest

import sd


def create(path, size='64M', backing=None):
    sd.qemu_img('create', '-q', '-u', '-f', 'qcow2', *(['-b', backing, '-F', 'qcow2'] if backing else []), path, size)
    return path


def blockdev(path, name, **more):
    return {'driver': 'qcow2', 'node-name': name, 'file': {'driver': 'file', 'filename': path}, **more}


class Chain(sd.Case):
    def setUp(self):
        self.d = self.daemon()

    def test_own_backing_file(self):
        a = create(self.path('a'))
        sd.qemu_img('rebase', '-u', '-f', 'qcow2', '-b', a, '-F', 'qcow2', a)
        error = self.d.qmp('blockdev-add', **blockdev(a, 'a', **{'read-only': True}))['error']['desc']
        self.assertIn('does an image name itself?', error)
        self.assertEqual(error.count('Could not open backing file'), 2)  # at the top and where it ended
        self.assertEqual(self.d.cmd('query-named-block-nodes'), [])

    def test_two_hundred_deep(self):
        top = create(self.path('0'))
        sd.qemu_io(top, 'write -P 7 1M 64k', fmt='qcow2')
        for i in range(1, 200):
            top = create(self.path(str(i)), backing=top)
        self.d.cmd('blockdev-add', **blockdev(top, 'top', **{'read-only': True}))
        self.assertEqual(self.d.node('top')['backing_file_depth'], 199)
        uri = self.d.export('top')
        sd.qemu_io(uri, 'read -P 7 1M 64k', 'read -P 0 0 1M', fmt='raw', readonly=True)

    def test_names(self):
        base = create(self.path('base'))
        other = create(self.path('other'))
        sd.qemu_io(other, 'write -P 9 0 64k', fmt='qcow2')
        top = create(self.path('top'), backing=base)
        self.d.cmd('blockdev-add', **blockdev(top, 'plain', **{'read-only': True}))
        self.assertEqual(self.d.node('plain')['file'], top)
        self.assertEqual(self.d.node('plain')['backing_file'], base)
        self.d.cmd('blockdev-add', **blockdev(other, 'other', **{'read-only': True}))
        self.d.cmd('blockdev-add', **blockdev(top, 'moved', backing='other', **{'read-only': True}))
        name = self.d.node('moved')['file']
        self.assertTrue(name.startswith('json:'), name)
        self.assertEqual(json.loads(name[5:])['backing']['file']['filename'], other)
        # The name says everything: qemu-io opens the same tree by it.
        sd.qemu_io(name, 'read -P 9 0 64k', readonly=True)


if __name__ == '__main__':
    unittest.main()
