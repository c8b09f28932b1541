"""The harness for iotests scripts judges itself: what is counted, what is named, what the names in it do."""
import os
import subprocess
import sys
import textwrap

import sd

HERE = os.path.dirname(os.path.abspath(__file__))


class Run(sd.Case):
    """tests/iotests/run"""

    def script(self, text, name='sample'):
        with open(self.path(name), 'w') as f:
            f.write('import os, time\nimport iotests\n' + textwrap.dedent(text))
        return self.path(name)

    def go(self, *argv, env=None):
        return subprocess.run([sys.executable, os.path.join(HERE, 'run'), '-j2', *argv], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=4 * sd.TIMEOUT,
                              env={**os.environ, 'STORAGE_DAEMON': sd.DAEMON, **(env or {})})

    def lines(self, p):
        """What closes the run: from the first verdict named on."""
        return [line for line in p.stdout.splitlines() if line.startswith(('skipped:', 'failed:')) or ' passed, ' in line]

    CASES = '''
        class A(iotests.QMPTestCase):
            def test_good(self): self.assertTrue(os.path.isdir(iotests.test_dir))
            def test_bad(self): self.fail('so it is')
            def test_error(self): raise OSError
            def test_crash(self): os.abort()
            @iotests.skip_if_unsupported(['no-such-driver'])
            def test_skip(self): self.fail()
            @iotests.skip_for_formats(['qcow2'])
            def test_not_qcow2(self): pass
        class B(A):
            test_bad = test_error = test_crash = None
        if __name__ == '__main__':
            iotests.main(supported_fmts=['qcow2', 'raw'], supported_protocols=['file'])
    '''

    def test_counts(self):
        p = self.go('-f', 'qcow2', self.script(self.CASES))
        self.assertEqual(1, p.returncode)
        self.assertEqual(['skipped: sample A.test_not_qcow2 (qcow2): not suitable for image format qcow2',
                          'skipped: sample A.test_skip (qcow2): drivers not supported: no-such-driver',
                          'skipped: sample B.test_not_qcow2 (qcow2): not suitable for image format qcow2',
                          'skipped: sample B.test_skip (qcow2): drivers not supported: no-such-driver',
                          'failed: sample A.test_bad (qcow2)', 'failed: sample A.test_crash (qcow2): did not end',
                          'failed: sample A.test_error (qcow2)', '2 passed, 3 failed, 4 skipped'],
                         [line.replace('exit status -6', 'did not end') for line in self.lines(p)])
        self.assertIn('so it is', p.stdout)

    def test_chosen_cases(self):
        script = self.script(self.CASES)
        p = self.go('-f', 'raw', script, 'A.test_good', 'B')
        self.assertEqual((0, '3 passed, 0 failed, 1 skipped'), (p.returncode, p.stdout.splitlines()[-1]))
        self.assertNotEqual(0, self.go(script, 'A.test_gone').returncode)
        self.assertNotEqual(0, self.go(self.path('no-script')).returncode)

    def test_unsuitable_format(self):
        p = self.go('-f', 'qed', self.script(self.CASES))
        self.assertEqual(['skipped: sample (qed): not suitable for this image format: qed', '0 passed, 0 failed, 1 skipped'],
                         self.lines(p))

    def test_hanging_case(self):
        p = self.go('--timeout', '1', self.script('''
            class A(iotests.QMPTestCase):
                def test_hang(self): time.sleep(60)
            iotests.main()
        '''))
        self.assertEqual(['failed: sample A.test_hang (qcow2): still running after 1 s', '0 passed, 1 failed'], self.lines(p))

    def test_broken_script(self):
        p = self.go(self.script('import no_such_module_at_all\n'))
        self.assertEqual((1, '0 passed, 1 failed'), (p.returncode, p.stdout.splitlines()[-1]))

    def test_script_that_logs(self):
        script = self.script('''
            def main():
                with iotests.VM() as vm:
                    vm.launch()
                    vm.qmp_log('query-block-jobs')
                    iotests.log('in %s' % iotests.test_dir, [iotests.filter_testfiles])
            iotests.script_main(main, supported_fmts=['qcow2'])
        ''')
        self.assertEqual('1 passed, 0 failed', self.go(script).stdout.splitlines()[-1])
        want = '{"execute": "query-block-jobs"}\n{"return": []}\nin TEST_DIR\n'
        for text, verdict in ((want, '1 passed, 0 failed'), (want + 'more\n', '0 passed, 1 failed')):
            with open(f'{script}.out', 'w') as f:
                f.write(text)
            self.assertEqual(verdict, self.go(script).stdout.splitlines()[-1])
        self.assertEqual('0 passed, 0 failed, 1 skipped', self.go('-f', 'raw', script).stdout.splitlines()[-1])

    def test_bad_end_of_the_daemon_counts(self):
        p = self.go(self.script('''
            class A(iotests.QMPTestCase):
                def test_dies(self):
                    self.vm = iotests.VM()
                    self.vm.launch()
                    os.kill(self.vm.get_pid(), 9)
                    time.sleep(0.1)
                    self.vm.shutdown()
            iotests.main()
        '''))
        self.assertEqual('0 passed, 1 failed', p.stdout.splitlines()[-1])
        self.assertIn('ended with -9', p.stdout)

    def test_nothing_left(self):
        """Neither files nor processes, whatever a case leaves."""
        p = self.go(self.script('''
            class A(iotests.QMPTestCase):
                def test(self):
                    open('here', 'w').close()
                    open(os.path.join(iotests.test_dir, 'there'), 'w').close()
                    self.vm = iotests.VM()
                    self.vm.launch()
                    print('PID', self.vm.get_pid(), iotests.test_dir)
                    raise OSError
            iotests.main()
        '''))
        self.assertEqual('0 passed, 1 failed', p.stdout.splitlines()[-1])
        pid, folder = next(line for line in p.stdout.splitlines() if 'PID' in line).split('PID')[1].split()
        self.assertFalse(os.path.exists(folder))
        self.assertFalse(os.path.exists(f'/proc/{pid}/exe'))  # it may be waiting for init to take notice of its end


class Names(sd.Case):
    """What scripts call."""

    def call(self, text):
        """Runs code with `iotests` at hand in a folder of its own; what it prints."""
        p = subprocess.run([sys.executable, '-c', 'import os, iotests\n' + textwrap.dedent(text)], stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, text=True, timeout=2 * sd.TIMEOUT, cwd=self.dir,
                           env={**os.environ, 'TEST_DIR': self.dir, 'IMGFMT': 'qcow2', 'PYTHONPATH': HERE,
                                'STORAGE_DAEMON': sd.DAEMON})
        self.assertEqual(0, p.returncode, p.stdout + p.stderr)
        return p.stdout

    def test_backing_format_is_supplied(self):
        self.call('''
            path = lambda name: os.path.join(iotests.test_dir, name)
            def backing(name):
                info = iotests.qemu_img_info(path(name))
                return info['backing-filename'], info['backing-filename-format']
            iotests.create_image(path('raw'), 65536)
            assert iotests.qemu_img('create', '-f', 'qcow2', '-o', 'backing_file=%s' % path('raw'), path('a')) == 0
            assert backing('a') == (path('raw'), 'raw')
            iotests.qemu_img('create', '-f', 'qcow2', '-ocluster_size=131072,backing_file=%s' % path('a'), path('b'))
            assert backing('b') == (path('a'), 'qcow2')
            iotests.qemu_img('create', '-f', 'qcow2', '-b', 'a', path('c'), '1M')
            assert backing('c') == ('a', 'qcow2')
            iotests.qemu_img('create', '-f', 'qcow2', '-b', path('a'), '-F', 'raw', path('d'), '1M')
            assert backing('d') == (path('a'), 'raw')
            assert iotests.qemu_img('rebase', '-u', '-b', path('raw'), path('b')) == 0
            assert backing('b') == (path('raw'), 'raw')
            assert iotests.image_size(path('a')) == 65536
            assert iotests.qemu_img('create', '-f', 'qcow2', '-b', path('none'), path('e')) != 0
        ''')

    def test_tools(self):
        out = self.call('''
            iotests.qemu_img('create', '-f', 'qcow2', 'a', '1M')
            iotests.qemu_img('create', '-f', 'qcow2', 'b', '1M')
            assert 'wrote 512/512' in iotests.qemu_io('-c', 'write -P 1 0 512', 'a')
            assert not iotests.compare_images('a', 'b')
            iotests.qemu_io('-c', 'write -P 1 0 512', 'b')
            assert iotests.compare_images('a', 'b')
            iotests.log(iotests.filter_qemu_io(iotests.qemu_io('-c', 'read 0 512', 'a')))
            with iotests.FilePath('x') as x:
                open(x, 'w').close()
            assert not os.path.exists(x)
        ''')
        self.assertEqual('read 512/512 bytes at offset 0\n512 bytes, X ops; XX:XX:XX.X (' + 'X' * 3 + ' YYY/sec and '
                         + 'X' * 3 + ' ops/sec)', out.strip())

    def test_vm(self):
        self.call('''
            iotests.qemu_img('create', '-f', 'qcow2', 'a', '1M')
            with iotests.VM() as vm:
                vm.add_drive('a', 'node-name=n').add_drive(None, 'media=cdrom', 'ide')
                assert vm.qmp_to_opts({'a': {'b': 'x,y'}, 'c': [True, 2]}) == 'a.b=x,,y,c.0=on,c.1=2'
                vm.add_blockdev(vm.qmp_to_opts({'driver': 'null-co', 'node-name': 'z', 'read-only': True}))
                vm.launch()
                assert [b['device'] for b in vm.qmp('query-block')['return']] == ['drive0', 'drive1']
                assert vm.node_info('z')['ro'] and vm.node_info('gone') is None
                vm.cmd('block-dirty-bitmap-add', node='n', name='b0')
                assert vm.check_bitmap_status('n', 'b0', {'count': 0, 'recording': True})
                assert not vm.check_bitmap_status('n', 'b1', {})
                assert vm.get_bitmap('n', 'b0', recording=False) is None
                assert vm.get_qmp_event() is None and vm.get_qmp_events() == []
                assert vm.event_wait('BLOCK_JOB_READY', timeout=0.1) is None
                assert 'error' in vm.qmp('block-job-cancel', device='j')
                try:
                    vm.hmp_qemu_io('nothing', 'read 0 1')
                except AssertionError:
                    pass
                else:
                    raise SystemExit('an unknown drive went unnoticed')
        ''')

    def test_jobs(self):
        out = self.call('''
            iotests.qemu_img('create', '-f', 'raw', 'a', '1M')
            iotests.qemu_img('create', '-f', 'raw', 'b', '1M')
            with iotests.VM() as vm:
                vm.add_blockdev('raw,node-name=a,file.driver=file,file.filename=a')
                vm.add_blockdev('raw,node-name=b,file.driver=file,file.filename=b')
                vm.launch()
                vm.qmp_log('blockdev-backup', job_id='j', device='a', target='b', sync='full', auto_dismiss=False,
                           auto_finalize=False)
                assert vm.run_job('j', auto_finalize=False) is None
        ''')
        self.assertIn('{"execute": "job-finalize", "arguments": {"id": "j"}}\n{"return": {}}', out.replace(
            '{"arguments": {"id": "j"}, "execute": "job-finalize"}', '{"execute": "job-finalize", "arguments": {"id": "j"}}'))
        self.assertIn('"BLOCK_JOB_COMPLETED"', out)
        self.assertIn('"USECS"', out)

    def test_assertions(self):
        self.call('''
            import unittest
            class T(iotests.QMPTestCase):
                def runTest(self):
                    d = {'return': [{'a': {'b': 1}}, {'c': [[5, 6]]}]}
                    self.assert_qmp(d, 'return[0]/a/b', 1)
                    self.assert_qmp(d, 'return[0]/a/b', [3, 1])
                    self.assert_qmp(d, 'return[1]/c[0][1]', 6)
                    self.assert_qmp_absent(d, 'return[0]/x')
                    self.assert_qmp_absent(d, 'return[2]')
                    for path, value in (('return[0]/a/b', 2), ('return[0]/x', 1), ('return[2]', 1), ('return/a', 1)):
                        with self.assertRaises(AssertionError, msg=path):
                            self.assert_qmp(d, path, value)
                    with self.assertRaises(AssertionError):
                        self.assert_qmp_absent(d, 'return[0]/a')
                    self.assert_json_filename_equal('json:{"driver": "raw", "a.b": 1}', {'a': {'b': 1}, 'driver': 'raw'})
                    with self.assertRaises(TimeoutError), iotests.Timeout(0.05):
                        import time
                        time.sleep(10)
            result = unittest.TestResult()
            T().run(result)
            assert result.wasSuccessful(), result
        ''')

    def test_block_path(self):
        self.call('''
            with iotests.VM() as vm:
                vm.add_blockdev('raw,node-name=top,file.driver=null-co,file.node-name=low')
                vm.launch()
                vm.assert_block_path('top', '', 'top')
                vm.assert_block_path('top', '/file', 'low')
                vm.assert_block_path('top', '/file/file', None)
                for root, path, node in (('top', '/file', 'top'), ('gone', '', 'gone'), ('top', '/backing/file', None)):
                    try:
                        vm.assert_block_path(root, path, node)
                    except AssertionError:
                        continue
                    raise SystemExit(f'{root} {path} {node} held')
        ''')


if __name__ == '__main__':
    sd.main()
