"""The life of jobs: states and events in QEMU's order, verbs by state, finalisation, dismissal, the end of the daemon."""
import os
import signal

import sd
from jobs import JobCase, Writer

START = ['created', 'running']
END = ['waiting', 'pending', 'BLOCK_JOB_COMPLETED', 'concluded', 'null']
READY = [*START, 'ready', 'BLOCK_JOB_READY']
CANCELLED = ['aborting', 'BLOCK_JOB_CANCELLED', 'concluded', 'null']
# A backup starts inside a drained section of its source.
BACKUP = [*START, 'paused', 'running']


class Life(JobCase):
    def setUp(self):
        self.d = self.daemon()
        self.pair(self.d, 'raw', size=4 * sd.MIB, data=[(0, 4 * sd.MIB, 1)])

    def mirror(self, **more):
        self.d.cmd('blockdev-mirror', job_id='j', device='src', target='dst', sync='full', **more)

    def backup(self, **more):
        self.d.cmd('blockdev-backup', job_id='j', device='src', target='dst', **{'sync': 'full', **more})

    def tells(self, want):
        self.wait_gone(self.d, 'j')
        self.assertEqual(want, self.story(self.d, 'j'))
        self.d.session.event_log.clear()
        self.d.session.events.clear()

    def test_mirror_completes(self):
        for verb in ('block-job-complete', 'job-complete'):
            self.mirror()
            self.d.wait_ready('j')
            self.assertSubset({'type': 'mirror', 'device': 'j', 'len': 4 * sd.MIB, 'offset': 4 * sd.MIB, 'busy': False,
                               'paused': False, 'speed': 0, 'io-status': 'ok', 'ready': True, 'status': 'ready',
                               'auto-finalize': True, 'auto-dismiss': True}, self.d.job('j'))
            self.assertEqual([{'id': 'j', 'type': 'mirror', 'status': 'ready', 'current-progress': 4 * sd.MIB,
                               'total-progress': 4 * sd.MIB}], self.d.cmd('query-jobs'))
            self.d.cmd(verb, {'id': 'j'} if verb == 'job-complete' else {'device': 'j'})
            self.tells([*READY, *END])

    def test_mirror_cancelled_when_ready(self):
        for command, args, want in (('block-job-cancel', {'device': 'j'}, END),
                                    ('block-job-cancel', {'device': 'j', 'force': True}, CANCELLED),
                                    ('job-cancel', {'id': 'j'}, CANCELLED)):
            self.mirror()
            self.d.wait_ready('j')
            self.d.cmd(command, args)
            self.tells([*READY, *want])

    def test_mirror_cancelled_before(self):
        for command, args in (('block-job-cancel', {'device': 'j'}), ('block-job-cancel', {'device': 'j', 'force': True}),
                              ('job-cancel', {'id': 'j'})):
            self.mirror(speed=1)
            self.d.cmd(command, args)
            self.tells([*START, *CANCELLED])

    def test_backup(self):
        self.backup()
        self.tells([*BACKUP, *END])
        self.backup(sync='none')
        self.d.cmd('block-job-cancel', device='j')
        self.tells([*BACKUP, *CANCELLED])

    def test_pause(self):
        d = self.d
        self.mirror(speed=1)
        d.cmd('job-pause', id='j')
        self.wait_status(d, 'j', 'paused')
        self.assertSubset({'paused': True, 'status': 'paused', 'busy': False}, d.job('j'))
        self.fails(d, 'Job is already paused', 'job-pause', id='j')
        self.fails(d, "Job 'j' in state 'paused' cannot accept command verb 'complete'", 'job-complete', id='j')
        self.fails(d, "The block job for device 'j' is currently paused", 'block-job-cancel', device='j')
        d.cmd('block-job-resume', device='j')
        self.fails(d, "Can't resume a job that was not paused", 'job-resume', id='j')
        d.cmd('block-job-pause', device='j')
        self.wait_status(d, 'j', 'paused')
        d.cmd('block-job-cancel', device='j', force=True)
        self.tells([*START, 'paused', 'running', 'paused', 'running', *CANCELLED])

    def test_standby(self):
        d = self.d
        self.mirror()
        d.wait_ready('j')
        d.cmd('job-pause', id='j')
        self.wait_status(d, 'j', 'standby')
        self.assertSubset({'paused': True, 'status': 'standby', 'ready': True}, d.job('j'))
        d.cmd('job-complete', id='j')
        d.poll(0.1)
        self.assertEqual('standby', d.job('j')['status'])
        d.cmd('job-resume', id='j')
        self.tells([*READY, 'standby', 'ready', *END])

    def test_not_automatic(self):
        d = self.d
        self.mirror(auto_finalize=False, auto_dismiss=False)
        d.wait_ready('j')
        d.cmd('job-complete', id='j')
        d.event_wait('BLOCK_JOB_PENDING', {'id': 'j', 'type': 'mirror'})
        self.assertSubset({'status': 'pending', 'ready': False, 'auto-finalize': False, 'auto-dismiss': False}, d.job('j'))
        for verb in ('pause', 'complete', 'dismiss'):
            self.fails(d, f"Job 'j' in state 'pending' cannot accept command verb '{verb}'", 'job-' + verb, id='j')
        self.fails(d, "Can't resume a job that was not paused", 'job-resume', id='j')
        self.fails(d, "Job 'j' in state 'pending' cannot accept command verb 'set-speed'", 'block-job-set-speed',
                   device='j', speed=1)
        d.cmd('job-finalize', id='j')
        d.wait_completed('j')
        self.assertSubset({'status': 'concluded'}, d.job('j'))
        for verb in ('pause', 'complete', 'finalize', 'cancel'):
            self.fails(d, f"Job 'j' in state 'concluded' cannot accept command verb '{verb}'", 'job-' + verb, id='j')
        d.cmd('job-dismiss', id='j')
        self.tells([*READY, 'waiting', 'pending', 'BLOCK_JOB_PENDING', 'BLOCK_JOB_COMPLETED', 'concluded', 'null'])
        self.fails(d, 'Job not found', 'job-dismiss', id='j')

    def test_cancelled_while_pending(self):
        d = self.d
        self.mirror(auto_finalize=False, auto_dismiss=False)
        d.wait_ready('j')
        d.cmd('job-complete', id='j')
        d.event_wait('BLOCK_JOB_PENDING')
        self.assertEqual('BLOCK_JOB_CANCELLED', d.cancel('j')['event'])
        self.assertSubset({'status': 'concluded', 'error': 'Operation canceled'}, d.job('j'))
        self.assertEqual('Operation canceled', d.cmd('query-jobs')[0]['error'])
        d.cmd('block-job-dismiss', id='j')
        self.wait_gone(d, 'j')
        d.cmd('blockdev-del', node_name='dst')

    def test_verbs_while_running(self):
        d = self.d
        self.mirror(speed=1)
        for verb in ('complete', 'finalize', 'dismiss'):
            text = f"Job 'j' in state 'running' cannot accept command verb '{verb}'"
            self.fails(d, text, 'job-' + verb, id='j')
            self.fails(d, text, 'block-job-' + verb, {'device' if verb == 'complete' else 'id': 'j'})
        self.fails(d, "Parameter 'speed' expects a non-negative value", 'block-job-set-speed', device='j', speed=-1)

    def test_unknown(self):
        for verb in ('pause', 'resume', 'cancel', 'complete', 'finalize', 'dismiss'):
            self.fails(self.d, 'Job not found', 'job-' + verb, id='x')
            key = 'id' if verb in ('finalize', 'dismiss') else 'device'
            self.fails(self.d, "Block job 'x' not found", 'block-job-' + verb, {key: 'x'}, cls='DeviceNotActive')
        self.fails(self.d, "Block job 'x' not found", 'block-job-set-speed', device='x', speed=1, cls='DeviceNotActive')

    def test_ids(self):
        d = self.d
        self.mirror(speed=1)
        d.cmd('blockdev-add', driver='null-co', node_name='n1', size=sd.MIB)
        d.cmd('blockdev-add', driver='null-co', node_name='n2', size=sd.MIB)
        self.fails(d, "Job ID 'j' already in use", 'blockdev-mirror', job_id='j', device='n1', target='n2', sync='full')
        d.cmd('blockdev-mirror', job_id='k', device='n1', target='n2', sync='full')
        d.wait_ready('k')
        self.assertEqual(['k', 'j'], [j['id'] for j in d.cmd('query-jobs')])  # newest first


class Ends(JobCase):
    def test_many_at_once(self):
        d = self.daemon()
        for i in range(24):
            d.cmd('blockdev-add', driver='null-co', node_name=f's{i}', size=256 * sd.MIB)
            d.cmd('blockdev-add', driver='null-co', node_name=f't{i}', size=256 * sd.MIB)
        for i in range(24):
            d.cmd('blockdev-mirror' if i % 2 else 'blockdev-backup', job_id=f'j{i}', device=f's{i}', target=f't{i}',
                  sync='full')
        for i in range(24):
            if i % 2:
                d.complete(f'j{i}')
            else:
                d.wait_completed(f'j{i}')
        self.assertEqual([], d.cmd('query-jobs'))

    def check_end(self, end):
        d = self.daemon()
        a, _ = self.pair(d, 'qcow2', size=8 * sd.MIB, data=[(0, 8 * sd.MIB, 1)])
        for name in ('s2', 't2', 's3', 't3'):
            d.cmd('blockdev-add', driver='null-co', node_name=name, size=sd.GIB)
        writer = Writer(d.export('src', writable=True), 8 * sd.MIB, pause=0.001)
        d.cmd('blockdev-mirror', job_id='ready', device='src', target='dst', sync='full', auto_dismiss=False)
        d.cmd('blockdev-backup', job_id='slow', device='s2', target='t2', sync='full', speed=1)
        d.cmd('blockdev-mirror', job_id='pending', device='s3', target='t3', sync='full', auto_finalize=False)
        d.wait_ready('ready')
        d.wait_ready('pending')
        d.cmd('job-complete', id='pending')
        d.event_wait('BLOCK_JOB_PENDING')
        d.cmd('job-pause', id='slow')
        writer.start()
        writer.wait_for(20)
        end(d)
        for job in ('ready', 'slow', 'pending'):
            story = self.story(d, job, poll=False)
            self.assertEqual(CANCELLED, story[-4:], (job, story))
        sd.check_image(a)

    def test_quit(self):
        self.check_end(lambda d: d.shutdown())

    def test_sigterm(self):
        def end(d):
            os.kill(d.pid, signal.SIGTERM)
            try:
                while True:
                    message = d.receive()
                    if 'event' in message:
                        d.session._keep(message)
            except sd.Disconnected:
                pass
            d.check_exit()
        self.check_end(end)


if __name__ == '__main__':
    sd.main()
