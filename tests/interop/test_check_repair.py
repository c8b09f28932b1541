"""storage-daemon --check --repair: what it makes of every broken image."""
import os

from check_images import Broken, content, ours, theirs
import sd

# What no repair can mend, and why; qemu-img's leaves these alone, too. All others have to be repaired.
STAYS = {
    # More references than the image's counts can say.
    'rc1-data-shared', 'rc1-data-on-header', 'rc1-data-on-refcount-table', 'rc4-data-shared-often',
    # Version 2 has no zero clusters to put in the place of what is lost, and the backing file would show.
    'backed2-data-unaligned', 'backed2-data-behind-the-end', 'backed2-data-far-behind-the-end',
    'backed2-cut-by-a-cluster',
    # Nobody knows where the snapshot's L1 table is, or how long; it may have data that is wanted.
    'snap-snapshot-l1-offset-0x0', 'snap2-snapshot-l1-offset-0x0', 'snap-snapshot-l1-offset-0x200',
    'snap-snapshot-l1-offset-0x10000000000', 'snap-snapshot-l1-size-0x400000', 'snap-snapshot-l1-size-0x400001',
    'snap-snapshot-l1-size-0xffffffff',
    # A snapshot that there never was, whose table is the header.
    'v3-n-snapshots-0x1',
}
# A snapshot table that goes on behind its largest size: not even the check gets through it, but the repair does.
ENDLESS = {'snap-snapshot-extra-0x8', 'snap-snapshot-extra-0xffffffff', 'snap-n-snapshots-0x3e8',
           'snap2-n-snapshots-0x3e8'}
# A snapshot's L1 table on top of the counts: the first repair gives each its own place, the second mends the table.
TWICE = {'snap-snapshot-l1-on-refcounts'}


class Repair(Broken):
    def test_repair_all(self):
        stays = set()

        def judge(name, path):
            before = ours(path)
            if not before[0] or (not before[1] and name not in ENDLESS):
                return None  # nothing to do, or nothing that could be opened
            raw = path + '.raw'
            was = content(path, raw)
            mine = ours(path, '--repair', 'all')
            if name in TWICE and mine[0]:
                mine = ours(path, '--repair', 'all')
            their, again = theirs(path), ours(path)
            now = content(path, raw)
            for file in path, raw:
                if os.path.exists(file):
                    os.unlink(file)
            if mine[0] != their[0] or again[0] != their[0]:
                return f'{name}: repaired to {mine}, then we say {again} and qemu-img says {their}'
            if was is not None and was != now:
                return f'{name}: a guest sees something else after the repair'
            if mine[0] != 0:
                stays.add(name)
            return None

        self.each(judge)
        self.assertEqual(stays, STAYS)

    def test_repair_leaks(self):
        def judge(name, path):
            before = ours(path)
            if not before[1].get('leaks'):
                return None
            raw = path + '.raw'
            was = content(path, raw)
            mine, their = ours(path, '--repair', 'leaks'), theirs(path)
            if mine[0] != their[0]:
                return f'{name}: repaired to {mine}, then qemu-img says {their}'
            if before[0] == 3 and mine[0] != 0:
                return f'{name}: leaks are left: {mine}'
            if mine[1].get('corruptions', 0) > before[1].get('corruptions', 0):
                return f'{name}: more corrupt than before: {mine}'
            now = content(path, raw)
            return f'{name}: a guest sees something else after the repair' if was is not None and was != now else None

        self.each(judge)


if __name__ == '__main__':
    sd.main()
