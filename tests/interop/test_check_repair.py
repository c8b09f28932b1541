"""storage-daemon --check --repair: what it makes of every broken image."""
import os

from check_images import Broken, content, ours, theirs
import sd

# Nothing is to be saved there: the snapshot table cannot be read to its end.
HOPELESS = {'v3-n-snapshots-0x1', 'snap-snapshot-extra-0xffffffff', 'v3-n-snapshots-0x10000', 'v3-n-snapshots-0x10001',
            'v3-n-snapshots-0xffffffff', 'snap-n-snapshots-0x3e8'}


class Repair(Broken):
    def test_repair_all(self):
        fixed = []

        def judge(name, path):
            before = ours(path)
            if not before[0] or not before[1]:
                return None  # nothing to do, or nothing that could be opened
            raw = path + '.raw'
            was = content(path, raw)
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
            if mine[0] == 0:
                fixed.append(name)
            elif name not in HOPELESS and not self.may_stay(name):
                return f'{name}: not repaired: {mine}'
            return None

        made = self.each(judge)
        self.assertGreater(len(fixed), len(made) // 2)

    @staticmethod
    def may_stay(name):
        """More references than a count can say; no zeroes in version 2 above a backing file; tables that nobody has."""
        return name.startswith(('rc1-', 'backed2-')) or name in ('rc4-data-shared-often',) or 'l1' in name

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
