"""Everything at once, from a seed: jobs started, steered, cancelled and completed, bitmaps and exports coming and going,
while a client writes. Commands may be refused; nothing may crash, hang, lose a write or leave a broken image."""
import os
import random
import threading
import time

import nbd
import sd

SIZE = 8 * sd.MIB
BLOCK = 4096
SECONDS = 4


class Writer(threading.Thread):
    """Writes, zeroes and reads back over NBD; @model is what the disk must hold."""

    def __init__(self, uri, seed):
        super().__init__()
        self.uri, self.rng, self.model = uri, random.Random(seed), bytearray(SIZE)
        self.stop, self.error, self.count = threading.Event(), None, 0

    def run(self):
        try:
            with sd.nbd_connect(self.uri) as h:
                while not self.stop.is_set():
                    self.step(h)
                h.flush()
        except BaseException as e:  # the case looks at it
            self.error = e

    def step(self, h):
        start = self.rng.randrange(SIZE)
        length = min(self.rng.choice((512, BLOCK, 3 * BLOCK, 65536, 200000)), SIZE - start)
        kind = self.rng.randrange(8)
        self.count += 1
        if kind < 4:
            data = self.rng.randbytes(length)
            h.pwrite(data, start)
            self.model[start:start + length] = data
        elif kind < 6:
            h.zero(length, start, nbd.CMD_FLAG_NO_HOLE if kind == 4 else 0)
            self.model[start:start + length] = bytes(length)
        elif h.pread(length, start) != self.model[start:start + length]:
            raise AssertionError(f'{start}+{length} does not read as it was written')


class Storm(sd.Case):
    def setUp(self):
        self.log = []

    def act(self, command, **arguments):
        """Gives a command; refusals are fine, they are part of it."""
        reply = self.d.qmp(command, **arguments)
        self.log.append((command, arguments, reply.get('error', {}).get('desc', 'ok')))
        return 'return' in reply

    def jobs(self):
        return self.d.cmd('query-block-jobs')

    def new_path(self):
        self.images += 1
        return self.path(f'{self.images}.qcow2')

    # ---- what may happen ----
    def crowded(self):
        """Most commands that start a job find one at work already; a few shall, to be refused."""
        return self.jobs() and self.rng.random() < 0.9

    def start_mirror(self):
        r = self.rng
        if self.crowded():
            return
        self.act('drive-mirror', device='drive0', target=self.new_path(), format='qcow2', sync=r.choice(('full', 'top')),
                 job_id=f'j{len(self.log)}', speed=r.choice((0, 0, 2 * sd.MIB, 16 * sd.MIB)),
                 copy_mode=r.choice(('background', 'write-blocking')), granularity=r.choice((4096, 65536, 1 << 20)),
                 auto_dismiss=r.random() < 0.8, auto_finalize=r.random() < 0.8)

    def start_backup(self):
        r = self.rng
        if self.crowded():
            return
        more = r.choice(({'sync': 'full'}, {'sync': 'none'}, {'sync': 'incremental', 'bitmap': 'b0'},
                         {'sync': 'bitmap', 'bitmap': 'b1', 'bitmap-mode': 'never'}, {'sync': 'top'}))
        arguments = dict(device='drive0', target=self.new_path(), format='qcow2', job_id=f'j{len(self.log)}',
                         speed=r.choice((0, 0, 2 * sd.MIB)), auto_dismiss=r.random() < 0.8,
                         auto_finalize=r.random() < 0.8)
        arguments.update({k.replace('-', '_'): v for k, v in more.items()})
        self.act('drive-backup', **arguments)

    def steer(self):
        jobs = self.d.cmd('query-jobs')
        if jobs:
            verb = self.rng.choice(('pause', 'resume', 'resume', 'cancel', 'complete', 'complete', 'finalize', 'dismiss'))
            self.act(f'job-{verb}', id=self.rng.choice(jobs)['id'])

    def steer_block(self):
        jobs = self.jobs()
        if jobs:
            job = self.rng.choice(jobs)['device']
            verb = self.rng.choice(('pause', 'resume', 'cancel', 'complete', 'set-speed'))
            more = {'speed': self.rng.choice((0, sd.MIB, 64 * sd.MIB))} if verb == 'set-speed' else {}
            if verb == 'cancel' and self.rng.random() < 0.5:
                more = {'force': True}
            self.act(f'block-job-{verb}', device=job, **more)

    def change_bitmap(self):
        name, verb = self.rng.choice(('b0', 'b1', 'b2')), self.rng.choice(('add', 'remove', 'clear', 'enable', 'disable'))
        self.act(f'block-dirty-bitmap-{verb}', node='drive0', name=name)

    def merge_bitmaps(self):
        self.act('block-dirty-bitmap-merge', node='drive0', target='b2', bitmaps=['b0', 'b1'])

    def change_export(self):
        top = next(b for b in self.d.cmd('query-block') if b['device'] == 'drive0')['inserted']['node-name']
        if self.rng.random() < 0.5:
            self.act('block-export-add', type='nbd', id='more', node_name=top, name='more')
        else:
            self.act('block-export-del', id='more', mode=self.rng.choice(('safe', 'hard')))

    def look(self):
        for command in ('query-block', 'query-named-block-nodes', 'query-blockstats', 'query-jobs', 'query-block-exports',
                        'x-debug-query-block-graph'):
            self.d.cmd(command)

    def remove_in_use(self):
        node = self.rng.choice(self.d.cmd('query-named-block-nodes'))['node-name']
        self.assertFalse(self.act('blockdev-del', node_name=node), f'{node} is in use')

    ACTIONS = (start_mirror, start_mirror, start_backup, start_backup, steer, steer, steer, steer_block, steer_block,
               change_bitmap, change_bitmap, merge_bitmaps, change_export, look, remove_in_use)

    # ---- the storm ----
    def end_jobs(self):
        deadline = time.monotonic() + sd.TIMEOUT
        while jobs := self.d.cmd('query-jobs'):
            self.assertLess(time.monotonic(), deadline, f'jobs do not end: {jobs}')
            for job in jobs:
                verb = {'concluded': 'dismiss', 'pending': 'finalize', 'paused': 'resume', 'standby': 'resume'}.get(
                    job['status'], 'cancel')
                self.act(f'job-{verb}', id=job['id'])
                if verb == 'resume':
                    self.act('job-cancel', id=job['id'])
            time.sleep(0.02)

    def storm(self, seed):
        self.rng, self.images, self.log = random.Random(seed), seed * 1000, []
        base = sd.create_image(self.new_path(), 'qcow2', SIZE)
        start = sd.create_image(self.new_path(), 'qcow2', backing=base)
        self.d = self.daemon('--drive', f'id=drive0,file={start},format=qcow2,node-name=start,discard=unmap')
        writer = Writer(self.d.export('start', 'disk', writable=True), seed)
        writer.start()
        try:
            end = time.monotonic() + SECONDS
            while time.monotonic() < end and not writer.error:
                self.rng.choice(self.ACTIONS)(self)
                time.sleep(self.rng.choice((0, 0, 0.005, 0.05)))
            self.end_jobs()
        finally:
            writer.stop.set()
            writer.join(sd.TIMEOUT)
        self.assertFalse(writer.is_alive(), 'the client hangs')
        if writer.error:
            raise writer.error
        self.assertGreater(writer.count, 50)
        with sd.nbd_connect(sd.nbd_uri(self.d.nbd_socket, 'disk')) as h:
            self.assertTrue(h.pread(SIZE, 0) == writer.model, 'the disk does not hold what was written')
        last = next(b for b in self.d.cmd('query-block') if b['device'] == 'drive0')['inserted']['file']
        self.d.shutdown()
        with open(self.path('model'), 'wb') as f:
            f.write(writer.model)
        self.assertImagesEqual(last, self.path('model'), 'qcow2', 'raw')
        for i in range(seed * 1000 + 1, self.images + 1):
            if os.path.exists(self.path(f'{i}.qcow2')):
                sd.check_image(self.path(f'{i}.qcow2'))

    def test_storm(self):
        for seed in [int(s) for s in os.environ.get('STORM_SEEDS', '1 2 3').split()]:
            with self.subTest(seed=seed):
                try:
                    self.storm(seed)
                except BaseException:
                    print(f'seed {seed}:')
                    for command, arguments, outcome in self.log[-60:]:
                        print(f'    {command} {arguments}: {outcome}')
                    raise


if __name__ == '__main__':
    sd.main()
