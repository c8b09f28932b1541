"""Transactions, snapshots, streams and commits at random, from several sessions at once, while a client writes to each of
three disks. Commands may be refused; nothing may hang, no write may be lost, no image may come out broken."""
import os
import random
import threading

import sd
from jobs import JobCase, Writer

SIZE = 4 * sd.MIB
DISKS = 'abc'
ROUNDS = 600


def action(kind, **data):
    return {'type': kind, 'data': {k.replace('_', '-'): v for k, v in data.items()}}


class Session(threading.Thread):
    def __init__(self, case, daemon, number, seed):
        super().__init__(daemon=True)
        self.case, self.number, self.rng, self.error = case, number, random.Random(seed * 100 + number), None
        self.qmp, self.count, self.accepted = daemon.connect(), 0, 0

    def run(self):
        try:
            for _ in range(ROUNDS):
                self.step()
                self.qmp.events.clear()
        except BaseException as e:  # the case looks at it
            self.error = e
        finally:
            self.qmp.close()

    def name(self, what):
        self.count += 1
        return f'{what}{self.number}-{self.count}'

    def disk(self):
        return 'd' + self.rng.choice(DISKS)

    def action(self):
        kind = self.rng.randrange(12)
        if kind == 0:
            return action('abort')
        if kind < 3:
            name = self.name('s')
            return action('blockdev-snapshot-sync', device=self.disk(), snapshot_file=self.case.path(name + '.img'),
                          snapshot_node_name=name)
        if kind < 6:
            name = self.name('b')
            return action('drive-backup', job_id=name, device=self.disk(), target=self.case.path(name + '.img'),
                          sync=self.rng.choice(('full', 'top', 'none')), speed=self.rng.choice((0, 0, sd.MIB)))
        if kind < 10:
            verb = self.rng.choice(('add', 'remove', 'clear', 'enable', 'disable'))
            return action('block-dirty-bitmap-' + verb, node=self.disk(), name=self.rng.choice('xy'))
        return action('block-dirty-bitmap-merge', node=self.disk(), target='x', bitmaps=['y'])

    def step(self):
        what = self.rng.randrange(10)
        if what < 6:
            actions = [self.action() for _ in range(self.rng.randint(1, 4))]
            mode = self.rng.choice(('individual', 'individual', 'grouped'))
            reply = self.qmp.qmp('transaction', actions=actions, properties={'completion-mode': mode})
        elif what < 8:
            command = ('block-stream', 'block-commit')[what - 6]
            reply = self.qmp.qmp(command, job_id=self.name('c'), device=self.disk())
        else:
            reply = self.steer()
        self.accepted += 'return' in reply

    def steer(self):
        for job in self.qmp.cmd('query-block-jobs'):
            choice = self.rng.randrange(4)
            if choice == 0:
                self.qmp.qmp('block-job-cancel', device=job['device'], force=self.rng.random() < 0.5)
            elif choice == 1 and job['ready']:
                self.qmp.qmp('block-job-complete', device=job['device'])
        return {'return': {}}


class Storm(JobCase):
    def storm(self, seed):
        options = []
        for n in DISKS:
            path = sd.create_image(self.path(n + '.img'), 'qcow2', SIZE)
            options += ['--drive', f'id=d{n},file={path},format=qcow2,node-name={n},if=none']
        d = self.daemon(*options)
        d.nbd_server()
        writers = []
        for i, n in enumerate(DISKS):
            d.cmd('nbd-server-add', device='d' + n, name=n, writable=True)
            writers.append(Writer(sd.nbd_uri(d.nbd_socket, n), SIZE, seed=seed + i, longest=8, pause=0.001))
        sessions = [Session(self, d, i, seed) for i in range(3)]
        for thread in writers + sessions:
            thread.start()
        for s in sessions:
            s.join(3 * sd.TIMEOUT)
            self.assertFalse(s.is_alive(), f'a command does not come back; seed {seed}')
            if s.error:
                raise s.error
            self.assertGreater(s.accepted, ROUNDS // 10)
        for job in d.cmd('query-block-jobs'):
            d.qmp('block-job-cancel', device=job['device'], force=True)
        wants = [w.stop() for w in writers]
        tops = [row['inserted']['image']['filename'] for row in d.cmd('query-block')]
        d.shutdown()
        for want, top in zip(wants, tops):
            with open(self.path('want'), 'wb') as f:
                f.write(want)
            self.assertImagesEqual(self.path('want'), top, 'raw', 'qcow2')
            sd.check_image(top)

    def test_storm(self):
        seed = int(os.environ.get('SD_SEED', random.randrange(1 << 30)))
        print(f'SD_SEED={seed}')
        self.storm(seed)


if __name__ == '__main__':
    sd.main()
