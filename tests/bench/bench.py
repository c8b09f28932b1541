"""make bench: every row of rows.py against each peer that is installed, by turns in one run, as ratios of medians.

ROWS="NAME…" picks rows (a name or the beginning of some), ROUNDS=5 how often each is measured, RUNTIME=2 the seconds of
one fio run. A run of all rows writes docs/benchmarks.md, with a picture beside it; REPORT=FILE.md does so for any run.
What was copied or written is verified; a row that fails is shown as failed and makes the exit status 1, it is never left
out.
"""
import os
import platform
import random
import shutil
import statistics
import sys
import tempfile
import traceback

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import chart
import growth
import rows
import servers
from servers import OURS

ROUNDS = int(os.environ.get('ROUNDS', '5'))
ROWS = [*rows.nbd_rows(), *rows.copy_rows(), *rows.control_rows(), *growth.rows()]


def chosen(names):
    picked = [r for r in ROWS if not names or any(r.name.startswith(n) for n in names)]
    unknown = [n for n in names if not any(r.name.startswith(n) for r in ROWS)]
    if unknown:
        sys.exit(f"bench: no such row: {' '.join(unknown)}. Rows: {' '.join(r.name for r in ROWS)}")
    return picked


def measure(row, work):
    """{peer: median} of one row."""
    peers = [p for p in row.peers if p in row.own or servers.installed(p)]
    row.prepare(work)
    got = {p: [] for p in peers}
    for i in range(ROUNDS):
        # Not in the same order each time: on a disk it matters who was there before.
        for p in random.Random(f'{row.name} {i}').sample(peers, len(peers)):
            got[p].append(row.measure(work, p))
            print(f'\r{row.name}: round {i + 1}/{ROUNDS}, {p}          ', end='', file=sys.stderr, flush=True)
    print('\r' + ' ' * 70 + '\r', end='', file=sys.stderr, flush=True)
    for p in peers:
        if hasattr(row, 'verify'):
            row.verify(work, p)
    return {p: statistics.median(v) for p, v in got.items()}


def number(value):
    return f'{value:,.0f}' if value >= 1000 else f'{value:.3g}'


def cells(row, result):
    """The row of the table: name, our figure, each peer's with ours as a ratio to it, the goal."""
    if isinstance(result, str):
        return [row.name, result, '', '', row.goal]
    others = [f'{p} {number(v)}' for p, v in result.items() if p != OURS]
    ratios = [f'{result[OURS] / v:.2f}x {p}' for p, v in result.items() if p != OURS and v]
    missing = [f'{p} not installed' for p in row.peers if p not in result]
    return [row.name, f'{number(result[OURS])} {row.unit}', ', '.join(others + missing), ', '.join(ratios), row.goal]


HEAD = ['row', 'ours', 'peers', 'ours as a ratio', 'goal']


def print_table(table):
    widths = [max(len(r[i]) for r in [HEAD, *table]) for i in range(len(HEAD))]
    for r in [HEAD, *table]:
        print('  '.join(c.ljust(w) for c, w in zip(r, widths)).rstrip())


def bars(results):
    """What the picture shows: how many times better ours is than each peer."""
    out = []
    for row, result in results:
        if isinstance(result, str):
            continue
        better = [(p, result[OURS] / v if not row.lower_is_better else v / result[OURS]) for p, v in result.items()
                  if p != OURS and v and result[OURS]]
        if better:
            out.append((row.name, better))
    return out


def processor():
    with open('/proc/cpuinfo') as f:
        model = next((line.split(':')[1].strip() for line in f if line.startswith('model name')), platform.machine())
    return f'{os.cpu_count()} cores ({model})'


def write_report(path, table, results):
    picture = os.path.splitext(path)[0] + '.svg'
    with open(picture, 'w') as f:
        f.write(chart.svg(bars(results), 'storage-daemon: times better than its peers, in one run (right of 1x: faster or '
                          'smaller)'))
    with open(path, 'w') as f:
        f.write('# Benchmarks\n\nWritten by `make bench`. Medians of '
                f'{ROUNDS}, measured by turns in one run. IOPS: more is better; everything else: less is.\n\n')
        f.write(f'![How many times better than its peers]({os.path.basename(picture)})\n\n')
        f.write(f'Machine: {processor()}. ' + '; '.join(servers.versions()) + '.\n\n')
        f.write('| ' + ' | '.join(HEAD) + ' |\n|' + '---|' * len(HEAD) + '\n')
        f.writelines('| ' + ' | '.join(r) + ' |\n' for r in table)


def main():
    picked = chosen(os.environ.get('ROWS', '').split())
    tmpfs = tempfile.mkdtemp(prefix='sd-bench-', dir='/dev/shm')
    disk = tempfile.mkdtemp(prefix='sd-bench-', dir=os.environ.get('BENCH_DISK', '/var/tmp'))
    print('\n'.join(servers.versions()), flush=True)
    table, results, failed = [], [], 0
    try:
        work = rows.Work(tmpfs, disk)
        for row in picked:
            try:
                result = measure(row, work)
            except Exception:
                traceback.print_exc()
                result, failed = 'failed', failed + 1
            table.append(cells(row, result))
            results.append((row, result))
            print('  '.join(c for c in table[-1] if c), flush=True)
    finally:
        shutil.rmtree(tmpfs, ignore_errors=True)
        shutil.rmtree(disk, ignore_errors=True)
    print()
    print_table(table)
    report = os.environ.get('REPORT') or (len(picked) == len(ROWS) and not failed and 'docs/benchmarks.md')
    if report:
        write_report(report, table, results)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
