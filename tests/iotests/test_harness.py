"""The harness judges itself: what fails, crashes, hangs or runs nothing must count as failed, and nothing may be left."""
import contextlib
import io
import os
import subprocess
import sys
import textwrap
import unittest

import sd

sys.path.insert(0, os.path.join(sd.TOP, 'tests'))
import run


class Runner(sd.Case):
    def child(self, text, timeout=20, only=None):
        path = self.path('test_sample.py')
        with open(path, 'w') as f:
            f.write('import os, time, unittest\nimport sd\nclass T(unittest.TestCase):\n' + textwrap.indent(textwrap.dedent(text), '    '))
        argv = [sys.executable, os.path.join(sd.TOP, 'tests', 'run.py'), '--child', path] + (['--only', only] if only else [])
        return run.Python('python', 'sample', argv, timeout, only).run(dict(os.environ))

    def verdicts(self, item):
        return sorted((c[0].split('.')[-1], c[1]) for c in item.cases)

    def test_verdicts(self):
        item = self.child('''
            def test_good(self): pass
            def test_wrong(self): self.assertEqual(1, 2)
            def test_error(self): raise OSError
            @unittest.skip('no reason')
            def test_skip(self): pass
            def test_sub(self):
                for i in range(3):
                    with self.subTest(i): self.assertEqual(i, 0)
        ''')
        self.assertEqual([('test_error', run.FAIL), ('test_good', run.PASS), ('test_skip', run.SKIP),
                          ('test_sub', run.FAIL), ('test_wrong', run.FAIL)], self.verdicts(item))

    def test_crash_counts(self):
        item = self.child('def test_a(self): pass\ndef test_b(self): os.abort()\ndef test_c(self): pass\n')
        self.assertEqual([('test_a', run.PASS), ('test_b', run.FAIL)], self.verdicts(item))

    def test_hang_counts(self):
        item = self.child('def test_a(self): time.sleep(60)\n', timeout=1)
        self.assertTrue(item.cases and all(c[1] == run.FAIL for c in item.cases), item.cases)
        self.assertLess(item.seconds, 20)

    def test_nothing_counts_as_failure(self):
        self.assertEqual(run.FAIL, self.child('pass\n').cases[0][1])
        self.assertEqual([], self.child('pass\n', only='zzz').cases)

    def test_import_error_counts(self):
        self.assertEqual(run.FAIL, self.child('import no_such_module_at_all\n').cases[0][1])

    def test_only(self):
        item = self.child('def test_a(self): pass\ndef test_b(self): pass\n', only=r'T\.test_b')
        self.assertEqual([('test_b', run.PASS)], self.verdicts(item))

    def test_cmocka_output(self):
        item = run.Cmocka('unit', 'x', ['printf', r'1..4\nok 1 - a\nnot ok 2 - b\n# 1 != 2\nnot ok 3 # SKIP c\n'], 5)
        item.run(dict(os.environ))
        self.assertEqual([run.PASS, run.FAIL, run.SKIP, run.FAIL], [c[1] for c in item.cases])

    def test_plain(self):
        for argv, want in ((['true'], run.PASS), (['false'], run.FAIL), (['sleep', '60'], run.FAIL),
                           (['sh', '-c', 'kill -SEGV $$'], run.FAIL), (['/no/such/program'], run.FAIL)):
            item = run.Plain('lint', 'x', argv, 1).run(dict(os.environ))
            self.assertEqual([want], [c[1] for c in item.cases], argv)

    def test_closing_line(self):
        lines = subprocess.run([sys.executable, '-c', 'import sys; sys.path.insert(0, sys.argv[1]); import run\n'
                                'sys.exit(run.summary([("a", "passed", ""), ("b", "skipped", "why"), ("c", "failed", "")]))',
                                os.path.join(sd.TOP, 'tests')], stdout=subprocess.PIPE, text=True)
        self.assertEqual(1, lines.returncode)
        self.assertEqual(['skipped: b: why', 'failed: c', '1 passed, 1 failed, 1 skipped'], lines.stdout.splitlines())


class Harness(sd.Case):
    def test_death_is_noticed(self):
        class Inner(sd.Case):
            def test(self):
                os.kill(self.daemon().pid, 6)

        self.assertEqual((1, 0), self.outcome(Inner))

    def test_silence_is_noticed(self):
        with self.assertRaises(sd.Timeout):
            self.daemon().event_wait('NO_SUCH_EVENT', timeout=0.1)

    def test_exit_code_is_judged(self):
        d = self.daemon()
        with self.assertRaisesRegex(AssertionError, 'ended with 0, not 7'):
            d.shutdown(code=7)

    def test_sanitizer_is_noticed(self):
        for text in ('==1==ERROR: AddressSanitizer: heap-use-after-free', 'x.c:3:4: runtime error: signed overflow',
                     'SUMMARY: LeakSanitizer: 3 byte(s) leaked'):
            self.assertTrue(sd.SANITIZER.search(text), text)

    def test_no_start_is_explained(self):
        with self.assertRaisesRegex(AssertionError, 'no-such-option'):
            self.daemon('--no-such-option')

    def test_nothing_left(self):
        class Inner(sd.Case):
            def test(self):
                d = self.daemon()
                Inner.made = [d.dir, self.dir]
                Inner.pid = d.pid
                raise AssertionError

        self.assertEqual((1, 0), self.outcome(Inner))
        self.assertFalse([p for p in Inner.made if os.path.exists(p)])
        with self.assertRaises(ProcessLookupError):
            os.kill(Inner.pid, 0)

    def outcome(self, case):
        """(failures, errors) of running one inner case, quietly."""
        result = unittest.TestResult()
        with contextlib.redirect_stderr(io.StringIO()):
            case('test').run(result)
        self.assertEqual(1, result.testsRun)
        return len(result.failures), len(result.errors)

    def test_qemu_io_failures_raise(self):
        path = sd.create_image(self.path('a'), 'raw', 65536)
        with self.assertRaises(AssertionError):
            sd.qemu_io(path, 'read -P 1 0 512', fmt='raw')
        with self.assertRaises(AssertionError):
            sd.qemu_io(path, 'read 65536 512', fmt='raw')
        sd.qemu_io(path, 'read -P 0 0 512', fmt='raw')

    def test_compare(self):
        a = sd.create_image(self.path('a'), 'raw', 65536, data=[(512, 512, 1)])
        b = sd.create_image(self.path('b'), 'qcow2', 65536, data=[(512, 512, 1)])
        self.assertTrue(sd.compare_images(a, b, 'raw', 'qcow2'))
        sd.write_pattern(b, 'qcow2', (0, 1, 5))
        self.assertFalse(sd.compare_images(a, b, 'raw', 'qcow2'))

    def test_schema_covers_a_reply(self):
        if sd.STAND_IN:
            self.skipTest('a stand-in is under test')
        schema = sd.schema()
        schema.check_reply('query-version', self.daemon().qmp('query-version'))
        for bad in ({'return': {}}, {'return': []}, {}, {'error': {'class': 'Nonsense', 'desc': 'x'}}):
            with self.assertRaises(Exception, msg=bad):
                schema.check_reply('query-version', bad)


if __name__ == '__main__':
    sd.main()
