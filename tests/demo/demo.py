"""make demo: the whole way, on a real file system, judged by tools that are not ours.

A file system made of this machine's own files lies in a qcow2 chain. The daemon exports it over NBD, and a client keeps
writing to it while it is mirrored, switched over and backed up. Then qemu-img and e2fsck say whether every image is what
it should be. KEEP=1 leaves the images.
"""
import concurrent.futures
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:0] = [os.path.join(TOP, 'tests', 'iotests'), os.path.dirname(os.path.abspath(__file__))]
import sd
import writer

WANTED = 300 * sd.MIB  # of real files
LIVE = 64 * sd.MIB     # the file that the client writes to
START = time.monotonic()


class Differs(Exception):
    """What the demo closes with when something is not as it should be."""


def say(text):
    print(f'[{time.monotonic() - START:5.1f} s] {text}', flush=True)


def mib(n):
    return f'{n / sd.MIB:.0f} MiB'


def gather(target):
    """Copies real files of this machine to @target until there are enough; bytes."""
    total = 0
    for top in ('/usr/share', '/usr/include', '/usr/lib/python3', '/usr/lib'):
        for entry in sorted(os.scandir(top), key=lambda e: e.name):
            if not entry.is_dir(follow_symlinks=False) or os.path.exists(os.path.join(target, entry.path[1:])):
                continue
            size = int(sd.run('du', '-sxB1', entry.path, check=False).stdout.split('\t')[0] or 0)
            if size > WANTED - total:
                continue
            into = os.path.join(target, top[1:])
            os.makedirs(into, exist_ok=True)
            sd.run('cp', '-rx', '--no-dereference', '--preserve=mode,timestamps', entry.path, into, check=False)
            total += size
            if total > WANTED * 0.95:
                return total
    return total


def live_blocks(filesystem):
    """The data blocks of the live file: leaf extents, as debugfs shows them."""
    text = sd.run('debugfs', '-R', 'dump_extents -l /live.dat', filesystem).stdout
    blocks = []
    for m in re.finditer(r'^\s*\d+/\s*\d+\s+\d+/\s*\d+\s+\d+ -\s+\d+\s+(\d+) -\s+(\d+)\s+\d+(.*)$', text, re.M):
        if 'Uninit' not in m[3]:
            blocks += range(int(m[1]), int(m[2]) + 1)
    if len(blocks) * writer.BLOCK != LIVE:
        raise Differs(f'debugfs shows {len(blocks)} blocks of the live file')
    return blocks


def make_images(d):
    """The file system, and the qcow2 chain disk -> base that holds it."""
    tree, filesystem = f'{d}/tree', f'{d}/filesystem.raw'
    os.mkdir(tree)
    total = gather(tree)
    with open(f'{tree}/live.dat', 'wb') as f:
        for _ in range(LIVE // sd.MIB):
            f.write(os.urandom(sd.MIB))
    size = int(total * 1.3 + LIVE + 64 * sd.MIB) // sd.MIB
    sd.run('mke2fs', '-q', '-F', '-t', 'ext4', '-b', str(writer.BLOCK), '-d', tree, filesystem, f'{size}M')
    count = int(sd.run('sh', '-c', 'find "$1" -type f | wc -l', 'sh', tree).stdout)
    shutil.rmtree(tree)
    say(f'made a {size} MiB ext4 file system of {count} of this machine\'s files ({mib(total)}) with mke2fs -d')
    with open(f'{d}/blocks', 'w') as f:
        f.writelines(f'{b}\n' for b in live_blocks(filesystem))
    sd.qemu_img('convert', '-f', 'raw', '-O', 'qcow2', filesystem, f'{d}/base.qcow2')
    os.unlink(filesystem)
    sd.qemu_img('create', '-q', '-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', f'{d}/disk.qcow2')
    say('put it into a qcow2 chain with qemu-img: disk.qcow2 on base.qcow2')


CONFIG = '''\
qmp = {d}/qmp

[drive "disk"]
file = {d}/disk.qcow2
format = qcow2
node-name = disk-image

[nbd-server]
addr.type = unix
addr.path = {d}/nbd

[export "disk-export"]
type = nbd
node-name = disk-image
name = disk
writable = on
'''


class Client:
    """writer.py as a child."""

    def __init__(self, d):
        self.process = subprocess.Popen(
            [sys.executable, os.path.join(os.path.dirname(os.path.abspath(__file__)), 'writer.py'),
             sd.nbd_uri(f'{d}/nbd', 'disk'), f'{d}/blocks'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def order(self, *words):
        """Gives an order, waits until it is carried out; how many blocks were written so far."""
        try:
            self.process.stdin.write(' '.join(words) + '\n')
            self.process.stdin.flush()
            return int(self.process.stdout.readline().split()[1])
        except (BrokenPipeError, IndexError):
            raise Differs('the NBD client ended early') from None

    def end(self):
        self.process.stdin.close()
        if self.process.wait(30):
            raise Differs('the NBD client failed')


def watch(d, job):
    """storage-ctl shows the job's progress until it is ready or ends."""
    code = subprocess.call([sd.CTL, '--socket', f'{d}/qmp', 'watch', job])
    if code:
        raise Differs(f'storage-ctl watch {job}: exit status {code}')


def same(a, b, *opts):
    if sd.qemu_img('compare', '-q', *opts, a, b, check=False).returncode:
        raise Differs(f'{os.path.basename(a)} and {os.path.basename(b)} differ')


def mirror(d, daemon, client):
    daemon.cmd('drive-mirror', device='disk', job_id='mirror', target=f'{d}/mirror.qcow2', format='qcow2', sync='full',
               node_name='mirror-image', speed=160 * sd.MIB)
    say('drive-mirror of the device to mirror.qcow2, at 160 MiB/s, while the client writes:')
    watch(d, 'mirror')
    daemon.wait_ready('mirror')
    written = client.order('pause')
    client.order('dump', f'{d}/at-switch')
    daemon.cmd('block-job-complete', device='mirror')
    daemon.wait_completed('mirror')
    inserted = next(b for b in daemon.cmd('query-block') if b['device'] == 'disk')['inserted']
    if not inserted['file'].endswith('/mirror.qcow2'):
        raise Differs(f"after block-job-complete the device shows {inserted['file']}")
    same(f'{d}/disk.qcow2', f'{d}/mirror.qcow2', '-U')
    say(f'{written} blocks later the client pauses, the device switches over, both images are the same')


def backups(d, daemon, client):
    daemon.cmd('block-dirty-bitmap-add', node='disk', name='since-full')
    daemon.cmd('drive-backup', device='disk', job_id='full', target=f'{d}/full.qcow2', format='qcow2', sync='full',
               speed=200 * sd.MIB)
    before = client.order('resume')
    say('bitmap and full backup to full.qcow2 begin here; the client goes on, now on mirror.qcow2:')
    watch(d, 'full')
    daemon.wait_completed('full')
    time.sleep(1)
    written = client.order('pause') - before
    client.order('dump', f'{d}/at-end')
    dirty = daemon.cmd('query-block')
    count = next(b for b in dirty if b['device'] == 'disk')['inserted']['dirty-bitmaps'][0]['count']
    say(f'the client wrote {written} more blocks; the bitmap counts {mib(count)} dirty')
    sd.qemu_img('create', '-q', '-f', 'qcow2', '-b', 'full.qcow2', '-F', 'qcow2', f'{d}/inc.qcow2')
    daemon.cmd('drive-backup', device='disk', job_id='inc', target=f'{d}/inc.qcow2', format='qcow2', mode='existing',
               sync='incremental', bitmap='since-full')
    done = daemon.wait_completed('inc')
    say(f"incremental backup to inc.qcow2 on full.qcow2 copied {mib(done['data']['len'])}")


def judge_image(d, name, stamps):
    """qemu-img check, e2fsck on the file system inside, and every block that the client had written by then."""
    image, raw = f'{d}/{name}.qcow2', f'{d}/{name}.raw'
    p = sd.qemu_img('check', '-q', image, check=False)
    if p.returncode:
        raise Differs(f'qemu-img check {name}.qcow2: {p.stdout}{p.stderr}')
    sd.qemu_img('convert', '-O', 'raw', image, raw)
    p = sd.run('e2fsck', '-fn', raw, check=False)
    if p.returncode:
        raise Differs(f'e2fsck -fn in {name}.qcow2: {p.stdout}{p.stderr}')
    wrong = 0
    if stamps:
        with open(f'{d}/{stamps}') as f, open(raw, 'rb') as image_file:
            for block, stamp in json.load(f).items():
                image_file.seek(int(block) * writer.BLOCK)
                wrong += image_file.read(writer.BLOCK) != writer.content(int(block), stamp)
    os.unlink(raw)
    if wrong:
        raise Differs(f'{name}.qcow2: {wrong} blocks do not hold what the client wrote last')


def proof(d):
    pairs = [('disk', 'full'), ('mirror', 'inc')]
    images = [('base', None), ('disk', 'at-switch'), ('mirror', 'at-end'), ('full', 'at-switch'), ('inc', 'at-end')]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        work = [pool.submit(same, f'{d}/{a}.qcow2', f'{d}/{b}.qcow2') for a, b in pairs]
        work += [pool.submit(judge_image, d, *i) for i in images]
        for w in work:
            w.result()
    for a, b in pairs:
        say(f'qemu-img compare {a}.qcow2 {b}.qcow2: identical')
    say('qemu-img check of ' + ', '.join(f'{i}.qcow2' for i, _ in images) + ': no errors, no leaks')
    say('e2fsck -fn of the file system inside each: clean; every block holds what the client wrote last')


@contextlib.contextmanager
def daemon_of(d):
    """The daemon, started as a user would: from a configuration file."""
    with open(f'{d}/storage-daemon.conf', 'w') as f:
        f.write(CONFIG.format(d=d))
    with sd.Daemon('--config', f'{d}/storage-daemon.conf', qmp=False) as daemon:
        daemon.session = daemon.connect(path=f'{d}/qmp')
        yield daemon


def run(d):
    make_images(d)
    with daemon_of(d) as daemon:
        say(f'started storage-daemon from a configuration file: device disk, NBD export {sd.nbd_uri(f"{d}/nbd", "disk")}')
        client = Client(d)
        try:
            client.order('resume')
            say(f'a libnbd client writes {writer.RATE} blocks of 4 KiB a second into a file of that file system')
            mirror(d, daemon, client)
            backups(d, daemon, client)
            client.end()
        finally:
            client.process.kill()
            client.process.wait()
    say('quit: the daemon flushed, closed its images and left with exit status 0')
    proof(d)


def main():
    d = tempfile.mkdtemp(prefix='demo-')
    try:
        free = shutil.disk_usage(d).free
        if free < 4 * sd.GIB:
            raise Differs(f'{d}: only {mib(free)} free, the demo wants 4 GiB (set TMPDIR)')
        run(d)
    except (Differs, AssertionError, sd.Timeout, sd.QmpError, sd.Disconnected) as e:
        print(f'demo: {e}')
        return 1
    finally:
        if os.environ.get('KEEP'):
            print(f'demo: the images are in {d}')
        else:
            shutil.rmtree(d, ignore_errors=True)
    print('demo: all images identical')
    return 0


if __name__ == '__main__':
    sys.exit(main())
