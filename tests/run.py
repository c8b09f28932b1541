"""Runs the tests: lints, cmocka binaries, replays of fuzz corpora, Python test modules; several at a time.

    python3 tests/run.py [--build DIR] [--jobs N] [--only PATTERN] [--timeout SECONDS] [KIND…]

KIND: lint unit graph fuzz fault python seeds (all of them when none is named). Seeds are the QEMU iotests in $SEEDS, if that
folder is there (docs/iotests.md). PATTERN is a regular expression; it selects what
contains it in its name: a binary, a corpus, a lint, a Python file, or one case (FILE Class.test_name).
Every case counts singly. A test that crashes, hangs or has no cases counts as failed. Output of what failed is printed;
the last line is 'N passed, N failed' with ', N skipped' when some were, each named above. Exit 0 only without failures.
"""
import argparse
import concurrent.futures
import glob
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PASS, FAIL, SKIP = 'passed', 'failed', 'skipped'


running = set()  # process groups


def stop_all(*_):
    """Ctrl-C or SIGTERM: nothing outlives the run."""
    for pid in list(running):
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    os._exit(130)


class Item:
    """One process to run. Its cases come out as (name, PASS | FAIL | SKIP, detail)."""

    def __init__(self, kind, name, argv, timeout, only=None):
        self.kind, self.name, self.argv, self.timeout, self.only = kind, name, argv, timeout, only
        self.cases, self.output, self.seconds = [], '', 0.0

    def run(self, env):
        start = time.monotonic()
        with tempfile.TemporaryFile() as out:
            try:
                p = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, cwd=TOP,
                                     env={**env, **self.more_env()}, start_new_session=True)
            except OSError as e:
                self.cases = [(self.name, FAIL, str(e))]
                return self
            running.add(p.pid)
            trouble = None
            try:
                p.wait(self.timeout)
            except subprocess.TimeoutExpired:
                trouble = f'still running after {self.timeout:.0f} s'
            try:  # whatever of its process group is left has no business any more
                os.killpg(p.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            code = p.wait()
            running.discard(p.pid)
            out.seek(0)
            self.output = out.read().decode(errors='replace')
        self.seconds = time.monotonic() - start
        self.cases = self.collect()
        if trouble is None and code != 0 and not any(c[1] == FAIL for c in self.cases):
            trouble = f'exit status {code}'
        if trouble is None and not self.cases and not self.only:
            trouble = 'no test cases'
        if trouble:
            self.cases.append((self.name, FAIL, trouble))
        return self

    def more_env(self):
        return {}

    def collect(self):
        """The cases, read off self.output."""
        raise NotImplementedError


class Plain(Item):
    """A process whose exit status is its one case."""

    def run(self, env):
        super().run(env)
        if len(self.cases) > 1:  # the trouble that run() added says it all
            self.cases = self.cases[1:]
        return self

    def collect(self):
        return [(self.name, PASS, '')]


class Cmocka(Item):
    """A cmocka binary, asked for TAP. Groups follow each other, each with its own plan."""

    def more_env(self):
        return {'CMOCKA_MESSAGE_OUTPUT': 'TAP'}

    def collect(self):
        cases, planned = [], 0
        for line in self.output.splitlines():
            if m := re.match(r'1\.\.(\d+)', line):
                planned += int(m[1])
            elif m := re.match(r'(not )?ok (\d+)(?: # SKIP (.*)| - (.*))$', line):
                cases.append((f'{self.name} {m[3] or m[4]}', SKIP if m[3] else FAIL if m[1] else PASS, ''))
        if len(cases) < planned:
            cases.append((self.name, FAIL, f'{planned - len(cases)} of {planned} cases did not report'))
        return cases


class Python(Item):
    """A file of unittest cases, run by this very script as a child, which reports each case as it ends."""

    def run(self, env):
        with tempfile.NamedTemporaryFile('r', prefix='sd-result-') as f:
            self.report = f
            self.argv = [*self.argv, '--report', f.name]
            return super().run(env)

    def collect(self):
        rows = [json.loads(line) for line in self.report]
        cases = [(f'{self.name} {r["case"]}', r['status'], r['detail']) for r in rows if 'status' in r]
        started = {r['case'] for r in rows} - {r['case'] for r in rows if 'status' in r}
        return cases + [(f'{self.name} {c}', FAIL, 'did not end') for c in sorted(started)]


class Script(Python):
    """A script of QEMU's iotests, run by tests/iotests/run, which reports its cases."""

    def collect(self):
        return [(r['case'], r['status'], r['detail']) for r in map(json.loads, self.report)]


# ---- the child that runs a Python file ----------------------------------------------------------------------------

class Reporter(unittest.TextTestResult):
    """Writes a JSON line when a case starts and one when it ends."""
    stream_to = None

    def _case(self, test):
        return '.'.join(test.id().split('.')[-2:])

    def _row(self, **row):
        self.stream_to.write(json.dumps(row) + '\n')
        self.stream_to.flush()

    def startTest(self, test):
        self._verdict = (PASS, '')
        self._row(case=self._case(test))
        super().startTest(test)

    def stopTest(self, test):
        super().stopTest(test)
        self._row(case=self._case(test), status=self._verdict[0], detail=self._verdict[1])

    def _bad(self, test):
        self._verdict = (FAIL, '')
        if not isinstance(test, unittest.TestCase):  # setUpClass and the like
            self._row(case=str(test), status=FAIL, detail='')

    def addError(self, test, err):
        super().addError(test, err)
        self._bad(test)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self._bad(test)

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err:
            self._bad(test)

    def addUnexpectedSuccess(self, test):
        super().addUnexpectedSuccess(test)
        self._bad(test)

    def addExpectedFailure(self, test, err):
        super().addExpectedFailure(test, err)
        self._verdict = (SKIP, 'a known failure')

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self._verdict = (SKIP, reason)
        if not isinstance(test, unittest.TestCase):
            self._row(case=str(test), status=SKIP, detail=reason)


def flatten(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from flatten(test)
        else:
            yield test


def load(path):
    sys.path[:0] = [os.path.join(TOP, 'tests', 'iotests'), os.path.dirname(os.path.abspath(path))]
    spec = importlib.util.spec_from_file_location(os.path.splitext(os.path.basename(path))[0], path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return list(flatten(unittest.defaultTestLoader.loadTestsFromModule(module)))


def child(path, only, report):
    tests = load(path)
    name = os.path.relpath(path, TOP)
    if only and not re.search(only, name):
        tests = [t for t in tests if re.search(only, f'{name} {".".join(t.id().split(".")[-2:])}')]
    with open(report, 'w') as f:
        Reporter.stream_to = f
        result = unittest.TextTestRunner(resultclass=Reporter, stream=sys.stdout).run(unittest.TestSuite(tests))
    return 0 if result.wasSuccessful() else 1


SEED_RUNS = [('qcow2', '041'), ('qcow2', '124'), ('qed', '041')]


# ---- the whole run --------------------------------------------------------------------------------------------------

def find(build, kinds, only, timeout):
    """The items to run."""
    rel = lambda p: os.path.relpath(p, TOP)
    items = []

    def add(item):
        if item.kind in kinds and (not only or re.search(only, item.name) or item.kind == 'python'):
            items.append(item)

    for path in sorted(glob.glob(f'{TOP}/tests/lint/*.py')):
        if os.path.basename(path).startswith('_'):
            continue
        add(Plain('lint', rel(path), [sys.executable, path], timeout))
        add(Plain('lint', f'{rel(path)} --self-test', [sys.executable, path, '--self-test'], timeout))
    for kind, pattern in (('unit', 'tests/unit/*.c'), ('graph', 'tests/graph/test-*.c')):
        for src in sorted(glob.glob(f'{TOP}/{pattern}')):
            name = rel(src)[:-2]
            add(Cmocka(kind, name, [os.path.join(build, name)], timeout))
    for src in sorted(glob.glob(f'{TOP}/tests/fuzz/*-*.c')):
        name = rel(src)[:-2]
        corpus = os.path.join(TOP, 'tests/fuzz/corpus', os.path.basename(name))
        add(Plain('fuzz', name, [os.path.join(build, name), corpus], timeout))
    add(Plain('fault', 'tests/fault/crash-replay', [os.path.join(build, 'tests/fault/crash-replay')], timeout))
    for src in sorted(glob.glob(f'{TOP}/tests/*/test_*.py')):
        argv = [sys.executable, os.path.abspath(__file__), '--child', src] + (['--only', only] if only else [])
        add(Python('python', rel(src), argv, timeout, only))
    return items


def find_seeds(source, scripts, only, timeout):
    """The seeds out of folder @source, extracted into folder @scripts; none when it is not there."""
    extract = os.path.join(source, 'extract.py')
    if not source or not os.path.isfile(extract):
        return []
    subprocess.run([sys.executable, '-B', extract, scripts], check=True, stdout=subprocess.DEVNULL)
    program = os.path.join(TOP, 'tests', 'iotests', 'run')
    items = [Script('seeds', f'seeds {script} ({fmt})',
                    [sys.executable, program, '-f', fmt, '-j1', os.path.join(scripts, script)], timeout)
             for fmt, script in SEED_RUNS]
    return [i for i in items if not only or re.search(only, i.name)]


def show(item, verbose):
    bad = [c for c in item.cases if c[1] == FAIL]
    if not item.cases:
        return
    print(f"{'FAIL' if bad else 'ok  '} {item.name} ({len(item.cases)} case{'s' * (len(item.cases) != 1)}, "
          f'{item.seconds:.1f} s)', flush=True)
    if bad or verbose:
        lines = item.output.splitlines()
        if len(lines) > 400:
            lines = lines[:100] + [f'… {len(lines) - 400} lines …'] + lines[-300:]
        print('\n'.join(f'     | {line}' for line in lines))
        for name, _, detail in bad:
            print(f'     FAILED: {name}{": " + detail if detail else ""}')
        sys.stdout.flush()


def times_file(build):
    return os.path.join(build, 'test-times.json')


def run_all(args):
    signal.signal(signal.SIGINT, stop_all)
    signal.signal(signal.SIGTERM, stop_all)
    build = os.path.abspath(args.build)
    kinds = args.kinds or ['lint', 'unit', 'graph', 'fuzz', 'fault', 'python', 'seeds']
    items = find(build, kinds, args.only, args.timeout)
    tmp = tempfile.mkdtemp(prefix='sd-check-')
    if 'seeds' in kinds:
        items += find_seeds(os.environ.get('SEEDS', ''), os.path.join(tmp, 'seeds'), args.only, args.timeout)
    try:
        with open(times_file(build)) as f:
            times = json.load(f)
    except (OSError, ValueError):
        times = {}
    # The long ones first, so that no core idles at the end; what was never timed counts as long when it is Python.
    items.sort(key=lambda i: -times.get(i.name, 30 if i.kind in ('python', 'seeds', 'fault') else 0))
    env = {**os.environ, 'BUILD': build, 'TMPDIR': tmp, 'PYTHONDONTWRITEBYTECODE': '1'}
    env.setdefault('STORAGE_DAEMON', os.path.join(build, 'storage-daemon'))
    env.setdefault('STORAGE_CTL', os.path.join(build, 'storage-ctl'))
    try:
        with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
            for done in concurrent.futures.as_completed([pool.submit(i.run, env) for i in items]):
                item = done.result()
                times[item.name] = round(item.seconds, 1)
                show(item, args.verbose)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
    if os.path.isdir(build):
        with open(times_file(build), 'w') as f:
            json.dump(times, f, indent=1)
    return summary([c for i in items for c in i.cases])


def summary(cases):
    skipped = [c for c in cases if c[1] == SKIP]
    failed = [c for c in cases if c[1] == FAIL]
    for name, _, reason in sorted(skipped):
        print(f'skipped: {name}: {reason}')
    for name, _, detail in sorted(failed):
        print(f'failed: {name}{": " + detail if detail else ""}')
    passed = len(cases) - len(skipped) - len(failed)
    print(f'{passed} passed, {len(failed)} failed' + (f', {len(skipped)} skipped' if skipped else ''))
    return 1 if failed or not cases else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--build', default=os.environ.get('BUILD') or os.path.join(TOP, 'build'))
    parser.add_argument('--jobs', type=int, default=os.cpu_count())
    parser.add_argument('--only', default=None)
    parser.add_argument('--timeout', type=float, default=600, help='of one process, seconds')
    parser.add_argument('--verbose', action='store_true')
    parser.add_argument('--child', metavar='FILE', help=argparse.SUPPRESS)
    parser.add_argument('--report', help=argparse.SUPPRESS)
    parser.add_argument('kinds', nargs='*', choices=[[], 'lint', 'unit', 'graph', 'fuzz', 'fault', 'python', 'seeds'])
    args = parser.parse_args()
    if args.child:
        return child(args.child, args.only, args.report)
    return run_all(args)


if __name__ == '__main__':
    sys.exit(main())
