"""Is the replay of power cuts any good? Each place where order matters is left out in turn: it must notice."""
import glob
import os
import re
import subprocess
import unittest

import sd

PROGRAM = os.path.join(sd.BUILD, 'tests/fault/crash-replay-mutable')
SITE = re.compile(r'(?:order_left_out|(?:q2|check)_co_barrier|q2_co_header_switch|bits_co_set)\([^";]*"([a-z0-9-]+)"')
STATES = 8000
# Where to look, for what only some workloads come by.
WORKLOADS = {
    'autoclear': '^autoclear',
    'backup-end': '^backup',
    'bitmap-directory': '^bitmaps, many flushes',
    'bitmap-in-use': '^bitmaps',
    'commit-data-file': '^data file',
    'commit-job-end': '^commit$',
    'commit-refblocks': '^512, 64 bits, refcount table grows',
    'extension': '^bitmaps',
    'header-back': 'the header fails',
    'incompat': '^damage',
    'lazy-dirty': '^lazy_refcounts',
    'luks-header': '^LUKS, another password',
    'mirror-end': '^(mirror|commit, active)',
    **dict.fromkeys(('qed-check-ends', 'qed-check-entries', 'qed-features', 'qed-repair-entries'), '^repair, qed'),
    'rebase': '^the backing file',
    'refcount-table': '^512, 64 bits, refcount table grows',
    'refcount-table-header': '^512, 64 bits, refcount table grows',
    **dict.fromkeys(('repair-begins', 'repair-complete', 'repair-copy', 'repair-ends', 'repair-entries',
                     'repair-refcounts', 'repair-snapshots'), '^repair, [^q]'),
    'resize-l1': '^resize, L1',
    'resize-l1-header': '^resize, L1',
    'resize-size': '^resize',
    'settle': '^resize, tails',
    'shadow-header': '^snapshots',
    'shadow-tables': '^snapshots',
    'stream-end': '^stream',
}


def sites():
    """{name: the file it is in}"""
    top = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    found = {}
    for path in sorted(glob.glob(f'{top}/block/**/*.c', recursive=True)):
        with open(path) as f:
            for m in SITE.finditer(f.read()):
                found.setdefault(m[1], os.path.relpath(path, top))
    return found


def replay(site, states, only=None, seed=1):
    """The replay with @site left out: (noticed?, what it said)."""
    argv = [PROGRAM, '--states', str(states), '--seed', str(seed), '--jobs', '2', '--no-faults',
            '--keep', os.path.join(os.environ.get('TMPDIR', '/tmp'), 'kept')] + (['--only', only] if only else [])
    p = subprocess.run(argv, env={**os.environ, 'SD_MUTATE': site}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                       text=True, errors='replace')
    return p.returncode != 0, p.stdout


@unittest.skipIf('SD_TIMEOUT' in os.environ, 'says nothing about memory, and would take long with sanitizers')
class Mutation(unittest.TestCase):
    def test_nothing_left_out(self):
        """The program that is judged here is right as long as nothing is left out."""
        noticed, said = replay('', 500)
        self.assertFalse(noticed, said)

    def test_sites(self):
        found = sites()
        self.assertGreater(len(found), 15, found)
        self.assertFalse(set(WORKLOADS) - set(found), 'these are gone')


def case(site, path):
    def test(self):
        for seed in range(1, 6):  # what a run meets depends on the scheduler, too
            noticed, said = replay(site, STATES, WORKLOADS.get(site), seed)
            if noticed:
                break
        self.assertTrue(noticed, f'{path}: without {site}\n{said}')
        # Noticed means judged, not that something went wrong on the way.
        self.assertRegex(said, r'power cut after moment|sector \d+ reads')
    return test


for name, where in sites().items():
    setattr(Mutation, f'test_{name.replace("-", "_")}', case(name, where))


if __name__ == '__main__':
    sd.main()
