"""make profile ROW=NAME: one round of a row with our daemon under perf.

Leaves BUILD/profile/NAME.folded, a line for each stack with its number of samples, as flame graph programs take them,
and prints where the time goes.
"""
import collections
import os
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import bench
import rows
import servers


def fold(data):
    """perf's samples as 'outermost;…;innermost' with their counts."""
    p = subprocess.run(['perf', 'script', '-i', data, '-F', 'comm,ip,sym'], stdout=subprocess.PIPE, text=True,
                       errors='replace', check=True)
    stacks = collections.Counter()
    for sample in p.stdout.split('\n\n'):
        lines = [line for line in sample.splitlines() if line.strip()]
        if lines:
            frames = [line.split(None, 1)[1].split('+0x')[0] if len(line.split(None, 1)) > 1 else '?' for line in lines[1:]]
            stacks[';'.join([lines[0].strip(), *reversed(frames)])] += 1
    return stacks


def report(stacks):
    total = sum(stacks.values())
    own = collections.Counter()
    for stack, n in stacks.items():
        own[stack.rsplit(';', 1)[-1]] += n
    print(f'{total} samples; the functions that most of them were in:')
    for name, n in own.most_common(25):
        print(f'{100 * n / total:6.1f} %  {name}')


def main():
    names = os.environ.get('ROW', '').split()
    if len(names) != 1:
        sys.exit(f"profile: which row? make profile ROW=NAME. Rows: {' '.join(r.name for r in bench.ROWS)}")
    if not shutil.which('perf'):
        sys.exit('profile: perf is not installed: apt-get install linux-perf')
    row = next((r for r in bench.ROWS if r.name == names[0]), None)
    if not row:
        sys.exit(f"profile: no such row: {names[0]}. Rows: {' '.join(r.name for r in bench.ROWS)}")
    out = os.path.join(os.environ.get('BUILD', 'build'), 'profile')
    os.makedirs(out, exist_ok=True)
    tmpfs, disk = (tempfile.mkdtemp(prefix='sd-bench-', dir=d) for d in ('/dev/shm', os.environ.get('BENCH_DISK', '/var/tmp')))
    servers.profile = os.path.join(out, f'{row.name}.data')
    try:
        work = rows.Work(tmpfs, disk)
        row.prepare(work)
        row.measure(work, servers.OURS)
    finally:
        shutil.rmtree(tmpfs, ignore_errors=True)
        shutil.rmtree(disk, ignore_errors=True)
    stacks = fold(servers.profile)
    folded = os.path.join(out, f'{row.name}.folded')
    with open(folded, 'w') as f:
        f.writelines(f'{stack} {n}\n' for stack, n in sorted(stacks.items()))
    report(stacks)
    print(f'stacks: {folded}; samples: {servers.profile}')


if __name__ == '__main__':
    main()
